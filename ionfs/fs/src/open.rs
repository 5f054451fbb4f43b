//! Open files and directories of a tree.

use std::fs::File;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use ion_plane::cache::BlobReader;

use super::output::{CloseReport, StagedHandle};
use super::view::Listing;
use super::{Errno, Result};

/// An open file or directory.
#[derive(Clone, Debug)]
pub(crate) enum OpenFile {
    /// A file below `out/`.
    Staged(Arc<StagedHandle>),
    /// A file of the view whose bytes are a blob.
    Blob(Arc<BlobReader>),
    /// A small file of the view, held in memory.
    Text(Bytes),
    /// A local file that grows.
    Live(Arc<File>),
    /// A directory. Holds what a view directory listed when it was last read from the start; none
    /// before that, and for a directory below `out/`.
    Directory(Arc<Mutex<Option<Listing>>>),
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

impl OpenFile {
    /// Returns the handle of a file below `out/`. Returns EISDIR for a directory, and EROFS for a
    /// file of the view.
    pub(crate) fn staged(&self) -> Result<&Arc<StagedHandle>> {
        match self {
            Self::Staged(staged) => Ok(staged),
            Self::Directory(_) => Err(Errno::ISDIR),
            Self::Blob(_) | Self::Text(_) | Self::Live(_) => Err(Errno::ROFS),
        }
    }

    /// Returns the local file that holds a blob whole, if there is one: the kernel may read it by
    /// itself.
    pub(crate) fn whole_blob(&self) -> Option<&File> {
        match self {
            Self::Blob(reader) => reader.blob().whole(),
            _ => None,
        }
    }

    /// Returns how the kernel is to report closes.
    pub(crate) fn close_report(&self) -> CloseReport {
        match self {
            Self::Staged(staged) => staged.closing(),
            Self::Blob(_) | Self::Text(_) | Self::Live(_) => CloseReport::Releases,
            Self::Directory(_) => CloseReport::Flushes,
        }
    }
}
