//! What a handle of a tree has open. The view is the read-only part (`in/`, `events/`); files below
//! `out/` are staged, and only these can be written.

use std::fs::File;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use ion_plane::cache::BlobReader;

use super::item::Listing;
use super::output::{CloseReport, StagedHandle};
use super::part::PartReader;
use super::{Errno, Result};

/// An open file or directory.
#[derive(Clone, Debug)]
pub(crate) enum OpenInode {
    /// A file below `out/`.
    Staged(Arc<StagedHandle>),
    /// A file of the view whose bytes are a blob.
    Blob(Arc<BlobReader>),
    /// A small file of the view, held in memory.
    InMemory(Bytes),
    /// The output of a job that runs on this machine: a local file that grows.
    Live(Arc<File>),
    /// A directory. Holds what was read of a view directory. `None` until the first read, and
    /// always for a directory below `out/`, whose names are read anew each time.
    Directory(Arc<Mutex<Option<OpenListing>>>),
}

/// What an open view directory holds.
#[derive(Debug)]
pub(crate) enum OpenListing {
    /// All its entries, from its last read from the start.
    Whole(Listing),
    /// Some entries of a directory that may have any number of them.
    Part(PartReader),
}

/// What the kernel may cache of an open file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KernelCaching {
    /// The pages of a file.
    Pages,
    /// Nothing of a file: its content changes without the kernel.
    NoPages,
    /// The names of a directory.
    Names,
    /// Nothing of a directory.
    NoNames,
}

impl OpenInode {
    /// Returns the handle of a file below `out/`. Returns EISDIR for a directory, and EROFS for a
    /// file of the view.
    pub(crate) fn staged(&self) -> Result<&Arc<StagedHandle>> {
        match self {
            Self::Staged(staged) => Ok(staged),
            Self::Directory(_) => Err(Errno::ISDIR),
            Self::Blob(_) | Self::InMemory(_) | Self::Live(_) => Err(Errno::ROFS),
        }
    }

    /// Returns the local file that the kernel may read without the daemon (FUSE passthrough): a
    /// view file's blob, once all its blocks are verified and nobody can write to it.
    pub(crate) fn passthrough_file(&self) -> Option<&File> {
        match self {
            Self::Blob(reader) => reader.blob().whole_file(),
            _ => None,
        }
    }

    /// Returns how the kernel is to report closes. `Flushes` is also the answer where there is
    /// nothing to turn off.
    pub(crate) fn close_report(&self) -> CloseReport {
        match self {
            Self::Staged(staged) => staged.close_report(),
            Self::Blob(_) | Self::InMemory(_) | Self::Live(_) => CloseReport::Releases,
            // The kernel sends no FLUSH for a directory, so nothing needs to be turned off.
            Self::Directory(_) => CloseReport::Flushes,
        }
    }
}
