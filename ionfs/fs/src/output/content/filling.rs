//! The bytes of references: read from the blob, or copied into the staged file.
//!
//! A write copies only the blocks that it touches into the staged file. The other blocks are copied
//! when the file is closed, since a new blob needs all of them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use ion_model::event::FileEntry;
use ion_plane::cache::BlobReader;
use rustix::fs::{self, OFlags, Timespec, Timestamps};

use super::StagedContent;
use crate::blob::{open_blob, read_blob};
use crate::eventfile::ContentChange;
use crate::output::handle::StagedHandle;
use crate::output::reference::{Reference, ReferencePiece};
use crate::output::table::OutputTable;
use crate::reads::ReadFailure;
use crate::{Errno, Ino, Result, errno};

/// Why bytes of a blob could not be copied into the staged file that refers to it.
#[derive(Debug)]
pub(in crate::output) enum FillFailure {
    /// The blob could not be read.
    Read(ReadFailure),
    /// The staged file could not be written, or is gone.
    Local(Errno),
}

impl From<ReadFailure> for FillFailure {
    fn from(failure: ReadFailure) -> Self {
        Self::Read(failure)
    }
}

impl From<Errno> for FillFailure {
    fn from(errno: Errno) -> Self {
        Self::Local(errno)
    }
}

impl From<FillFailure> for io::Error {
    fn from(error: FillFailure) -> Self {
        match error {
            FillFailure::Read(failure) => Self::other(failure),
            FillFailure::Local(errno) => errno.into(),
        }
    }
}

impl StagedContent {
    /// Returns whether a handle only reads, and its file is a blob from the first byte to the last.
    pub(crate) fn reads_whole_blob(&self, staged: &StagedHandle) -> bool {
        let table = self.staging.lock();
        let reference = table.file(staged.ino()).ok().and_then(|file| file.reference.as_ref());
        !staged.writes() && reference.is_some_and(Reference::is_whole)
    }

    /// Returns whether a file's bytes are, at least in part, a blob's.
    pub(crate) fn is_reference(&self, ino: Ino) -> bool {
        self.staging.lock().file(ino).is_ok_and(|file| file.reference.is_some())
    }

    /// Returns the blob that holds a file's bytes, and how many of the blob's bytes the file has;
    /// none if the file has bytes of its own.
    pub(crate) fn blob_of(&self, ino: Ino) -> Result<Option<(Arc<FileEntry>, u64)>> {
        let table = self.staging.lock();
        let reference =
            table.file(ino)?.reference.as_ref().filter(|reference| reference.is_untouched());
        Ok(reference.map(|reference| (reference.entry().clone(), reference.length())))
    }

    /// Reads a file of which some bytes may be a blob's.
    pub(crate) async fn read_through(
        &self,
        staged: &StagedHandle,
        offset: u64,
        size: u32,
    ) -> Result<Bytes> {
        let end = offset.saturating_add(size.into());
        let mut at = offset;
        let mut all = BytesMut::new();
        while at < end {
            let (of_blob, upto) = match &self.staging.lock().file(staged.ino())?.reference {
                Some(reference) => match reference.piece_at(at, end) {
                    ReferencePiece::OfBlob(end) => (Some(reference.entry().clone()), end),
                    ReferencePiece::OfFile(end) => (None, end),
                },
                None => (None, end),
            };
            let bytes = match of_blob {
                Some(entry) => {
                    let failed = |failure: ReadFailure| self.read_failed(staged.ino(), &failure);
                    let reader =
                        staged.reader(&entry, || self.open_reader(&entry)).map_err(failed)?;
                    read_blob(&self.daemon, &reader, at, upto - at).await.map_err(failed)?
                }
                None => self.read(staged, at, usize::try_from(upto - at).unwrap_or(0))?,
            };
            let length = bytes.len() as u64;
            if at == offset && (length == u64::from(size) || length < upto - at) {
                return Ok(bytes);
            }
            all.extend_from_slice(&bytes);
            if length < upto - at {
                break;
            }
            at = upto;
        }
        Ok(all.freeze())
    }

    fn open_reader(&self, entry: &FileEntry) -> std::result::Result<Arc<BlobReader>, ReadFailure> {
        let blob = open_blob(&self.daemon, entry)?;
        Ok(Arc::new(BlobReader::counted(blob, self.reads.fetched())))
    }

    /// Makes the next bytes of `to` a reference to the blob `entry`, without moving any. Returns
    /// how many. Works only for an empty file, or for a file that is the same blob up to just
    /// there; otherwise returns EOPNOTSUPP, and the caller copies the bytes.
    pub(crate) fn extend_reference(
        &self,
        to: &StagedHandle,
        entry: &Arc<FileEntry>,
        from_offset: u64,
        to_offset: u64,
        length: u64,
    ) -> Result<u64> {
        let mut table = self.staging.lock();
        table.check_change(to.ino())?;
        let file = table.file_mut(to.ino())?;
        let held = match &file.reference {
            Some(reference) if reference.entry().key == entry.key && reference.is_untouched() => {
                reference.length()
            }
            None if to.file().metadata().is_ok_and(|metadata| metadata.len() == 0) => 0,
            _ => return Err(Errno::OPNOTSUPP),
        };
        // Another reader may have the hole open by passthrough, and an event file's content must
        // lie in the staged file.
        if from_offset != held || to_offset != held || file.opens != 1 || file.event.is_some() {
            return Err(Errno::OPNOTSUPP);
        }
        let end = held.saturating_add(length).min(entry.size);
        // The kernel accepts at most 4 GiB less a page as the answer.
        let end = end.min(held + (u64::from(u32::MAX) & !0xfff));
        to.file().set_len(end).map_err(|error| errno(&error))?;
        file.note_change(ContentChange::Written);
        file.reference = Some(Reference::new(entry.clone(), end));
        to.writer().note_write();
        Ok(end - held)
    }

    /// Copies the blocks that a write to `range` touches from the blob into the staged file. Does
    /// nothing if the file is not a reference.
    pub(crate) async fn fill_range(&self, staged: &StagedHandle, range: Range<u64>) -> Result<()> {
        let filled = self.fill_blocks(staged.ino(), staged.file(), range).await;
        filled.map_err(|error| self.fill_failed(staged.ino(), &error))
    }

    /// Turns a reference into a file of its own, because the module asked for it. Does nothing for
    /// other files.
    pub(crate) async fn fill_content(&self, ino: Ino) -> Result<()> {
        self.fill_all(ino).await.map_err(|error| self.fill_failed(ino, &error))
    }

    /// Returns the errno that the module receives. Records a failed read of the blob.
    fn fill_failed(&self, ino: Ino, error: &FillFailure) -> Errno {
        match error {
            FillFailure::Read(failure) => self.read_failed(ino, failure),
            FillFailure::Local(errno) => *errno,
        }
    }

    /// Turns a reference into a file of its own. Does nothing for other files.
    pub(in crate::output) async fn fill_all(
        &self,
        ino: Ino,
    ) -> std::result::Result<(), FillFailure> {
        if !self.is_reference(ino) {
            return Ok(());
        }
        let file = self.staging.open_file(&self.staging.lock(), ino, OFlags::WRONLY)?;
        self.fill_blocks(ino, &file, 0..u64::MAX).await
    }

    async fn fill_blocks(
        &self,
        ino: Ino,
        file: &File,
        range: Range<u64>,
    ) -> std::result::Result<(), FillFailure> {
        let (entry, missing, block) = {
            let mut table = self.staging.lock();
            let Some(reference) = &mut table.file_mut(ino)?.reference else { return Ok(()) };
            let (entry, missing) = (reference.entry().clone(), reference.missing_blocks(&range));
            let (length, block) = (reference.length(), reference.block_size());
            // In the end the whole content may lie on the staging disk, so charge all of it.
            self.staging.limits().raise_charge(&mut table, ino, length)?;
            (entry, missing, block)
        };
        let reader = self.open_reader(&entry)?;
        for index in missing {
            let start = index * block;
            let bytes = read_blob(&self.daemon, &reader, start, block).await?;
            // Check again for each block: another task may have copied it first and its writer may
            // have written to it, or the file was cut. The result must not be overwritten.
            let mut table = self.staging.lock();
            let Some(reference) = &mut table.file_mut(ino)?.reference else { return Ok(()) };
            if reference.entry().key != entry.key {
                return Ok(());
            }
            let Some(kept) = reference.take_block(index, bytes.len()) else { continue };
            self.write_block(&mut table, ino, file, &bytes[..kept], start)?;
        }
        let mut table = self.staging.lock();
        let node = table.file_mut(ino)?;
        let all = |reference: &Reference| {
            reference.entry().key == entry.key
                && reference.missing_blocks(&(0..u64::MAX)).is_empty()
        };
        if node.reference.as_ref().is_some_and(all) {
            node.reference = None;
        }
        Ok(())
    }

    /// Writes a blob's bytes into the staged file. The attributes stay as they were, because
    /// nothing has changed for anyone who reads the file.
    fn write_block(
        &self,
        table: &mut OutputTable,
        ino: Ino,
        file: &File,
        bytes: &[u8],
        at: u64,
    ) -> Result<()> {
        let before = fs::fstat(file)?;
        let shown = self.staging.stat(table, ino)?;
        table.file_mut(ino)?.shown.get_or_insert_with(|| Box::new(shown));
        self.staging
            .limits()
            .remember_no_room(file.write_all_at(bytes, at).map_err(|error| errno(&error)))?;
        let time = |seconds, nanos: u64| Timespec { tv_sec: seconds, tv_nsec: nanos.cast_signed() };
        let times = Timestamps {
            last_access: time(before.st_atime, before.st_atime_nsec),
            last_modification: time(before.st_mtime, before.st_mtime_nsec),
        };
        fs::futimens(file, &times)
    }
}
