//! References: files whose bytes are those of a blob until the module writes to them.
//!
//! `cp`, `ln` and `mv` from `in/data` make a reference at once, whatever its size: a hole in the
//! staging folder and the name of a blob. A write copies only the blocks that it touches into the
//! staged file. The other blocks are copied when the file is closed, since a new blob needs all of
//! them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use ion_model::event::FileEntry;
use ion_plane::cache::BlobReader;
use rustix::fs::{self, OFlags, Timespec, Timestamps};

use super::super::eventfile::ContentChange;
use super::super::reads::ReadFailure;
use super::super::{Errno, Ino, Result, errno};
use super::Output;
use super::content::{StagedHandle, open_blob, read_within};
use super::table::OutputTable;

/// Content that equals the first bytes of a blob, except for the blocks that were written to. Those
/// lie in the staged file, which is a hole elsewhere.
#[derive(Clone, Debug)]
pub(super) struct Reference {
    pub(super) entry: Arc<FileEntry>,
    /// How many of the blob's bytes the content has: all of them, unless a copy is still growing or
    /// was cut.
    length: u64,
    /// The blocks that lie in the staged file. Blocks that begin at `length` or behind it all lie
    /// there.
    own: BTreeSet<u64>,
    /// Whether the content was written to, or grew beyond `length`.
    touched: bool,
}

impl Reference {
    /// Makes a reference to the first `length` bytes of a blob.
    pub(super) fn to(entry: Arc<FileEntry>, length: u64) -> Self {
        Self { entry, length, own: BTreeSet::new(), touched: false }
    }

    /// Returns whether the content is the blob, from the first byte to the last.
    pub(super) fn is_whole(&self) -> bool {
        !self.touched && self.length == self.entry.size
    }

    /// Notes that the file has `size` bytes from now on.
    pub(super) fn resize(&mut self, size: u64) {
        self.touched |= size > self.length;
        self.length = self.length.min(size);
    }

    /// Notes that the file's bytes are being changed.
    pub(super) fn touch(&mut self) {
        self.touched = true;
    }

    /// Returns whether the file takes room on the staging disk once it has `size` bytes: it then
    /// becomes a file of its own.
    pub(super) fn takes_room_at(&self, size: u64) -> bool {
        self.touched || size > self.length
    }

    fn block(&self) -> u64 {
        self.entry.checksums.block.max(1)
    }

    /// Returns the blocks of the blob that `range` touches and that are not in the staged file.
    fn missing(&self, range: &Range<u64>) -> Vec<u64> {
        let block = self.block();
        let blocks = range.start / block..range.end.min(self.length).div_ceil(block);
        blocks.filter(|index| !self.own.contains(index)).collect()
    }

    /// Returns whether the bytes from `at` on are the blob's, and the offset up to which that
    /// holds, at most `end`.
    fn piece(&self, at: u64, end: u64) -> (bool, u64) {
        if at >= self.length {
            return (false, end);
        }
        let block = self.block();
        let index = at / block;
        if self.own.contains(&index) {
            return (false, end.min((index + 1) * block));
        }
        let next = self.own.range(index..).next().map_or(u64::MAX, |own| own * block);
        (true, end.min(self.length).min(next))
    }
}

/// Why bytes of a blob could not be copied into the staged file that refers to it.
#[derive(Debug)]
pub(super) enum NotOwned {
    /// The blob could not be read.
    Read(ReadFailure),
    /// The staged file could not be written, or is gone.
    Local(Errno),
}

impl From<ReadFailure> for NotOwned {
    fn from(failure: ReadFailure) -> Self {
        Self::Read(failure)
    }
}

impl From<Errno> for NotOwned {
    fn from(errno: Errno) -> Self {
        Self::Local(errno)
    }
}

impl From<NotOwned> for io::Error {
    fn from(error: NotOwned) -> Self {
        match error {
            NotOwned::Read(failure) => Self::other(failure),
            NotOwned::Local(errno) => errno.into(),
        }
    }
}

impl Output {
    /// Returns whether a handle only reads, and its file is a blob from the first byte to the last.
    pub(crate) fn is_untouched(&self, staged: &StagedHandle) -> bool {
        let table = self.lock();
        let reference = table.file(staged.ino()).ok().and_then(|file| file.reference.as_ref());
        !staged.writes() && reference.is_some_and(Reference::is_whole)
    }

    /// Returns whether a file's bytes are, at least in part, a blob's.
    pub(crate) fn refers(&self, ino: Ino) -> bool {
        self.lock().file(ino).is_ok_and(|file| file.reference.is_some())
    }

    /// Returns the blob that holds a file's bytes, and how many of the blob's bytes the file has;
    /// none if the file has bytes of its own.
    pub(crate) fn referenced(&self, ino: Ino) -> Result<Option<(Arc<FileEntry>, u64)>> {
        let table = self.lock();
        let reference = table.file(ino)?.reference.as_ref().filter(|reference| !reference.touched);
        Ok(reference.map(|reference| (reference.entry.clone(), reference.length)))
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
            let (of_blob, upto) = match &self.lock().file(staged.ino())?.reference {
                Some(reference) => match reference.piece(at, end) {
                    (true, upto) => (Some(reference.entry.clone()), upto),
                    (false, upto) => (None, upto),
                },
                None => (None, end),
            };
            let bytes = match of_blob {
                Some(entry) => {
                    let failed = |failure: ReadFailure| self.read_failed(staged.ino(), &failure);
                    let reader = staged.reader(&entry, || self.reader(&entry)).map_err(failed)?;
                    read_within(&self.daemon, &reader, at, upto - at).await.map_err(failed)?
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

    fn reader(&self, entry: &FileEntry) -> std::result::Result<Arc<BlobReader>, ReadFailure> {
        Ok(Arc::new(BlobReader::new(open_blob(&self.daemon, entry)?)))
    }

    /// Makes the next bytes of `to` a reference to the blob `entry`, without moving any. Returns
    /// how many. Works only for an empty file, or for a file that is the same blob up to just
    /// there; otherwise returns EOPNOTSUPP, and the caller copies the bytes.
    pub(crate) fn refer(
        &self,
        to: &StagedHandle,
        entry: &Arc<FileEntry>,
        from_offset: u64,
        to_offset: u64,
        length: u64,
    ) -> Result<u64> {
        let mut table = self.lock();
        let file = table.file_mut(to.ino())?;
        file.check_change()?;
        let held = match &file.reference {
            Some(reference) if reference.entry.key == entry.key && !reference.touched => {
                reference.length
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
        file.changes(ContentChange::Written);
        file.reference = Some(Reference::to(entry.clone(), end));
        to.writer().wrote();
        Ok(end - held)
    }

    /// Copies the blocks that a write to `range` touches from the blob into the staged file. Does
    /// nothing if the file is not a reference.
    pub(crate) async fn own_range(&self, staged: &StagedHandle, range: Range<u64>) -> Result<()> {
        let owned = self.own(staged.ino(), staged.file(), range).await;
        owned.map_err(|error| self.not_owned(staged.ino(), &error))
    }

    /// Turns a reference into a file of its own, because the module asked for it. Does nothing for
    /// other files.
    pub(crate) async fn own_content(&self, ino: Ino) -> Result<()> {
        self.own_all(ino).await.map_err(|error| self.not_owned(ino, &error))
    }

    /// Returns the errno that the module receives. Records a failed read of the blob.
    fn not_owned(&self, ino: Ino, error: &NotOwned) -> Errno {
        match error {
            NotOwned::Read(failure) => self.read_failed(ino, failure),
            NotOwned::Local(errno) => *errno,
        }
    }

    /// Turns a reference into a file of its own. Does nothing for other files.
    pub(super) async fn own_all(&self, ino: Ino) -> std::result::Result<(), NotOwned> {
        if !self.refers(ino) {
            return Ok(());
        }
        let file = self.open_staged(&self.lock(), ino, OFlags::WRONLY)?;
        self.own(ino, &file, 0..u64::MAX).await
    }

    async fn own(
        &self,
        ino: Ino,
        file: &File,
        range: Range<u64>,
    ) -> std::result::Result<(), NotOwned> {
        let (entry, missing) = {
            let mut table = self.lock();
            let Some(reference) = &mut table.file_mut(ino)?.reference else { return Ok(()) };
            let (entry, missing) = (reference.entry.clone(), reference.missing(&range));
            let length = reference.length;
            // In the end the whole content may lie on the staging disk, so charge all of it.
            self.charge_to(&mut table, ino, length)?;
            (entry, missing)
        };
        let reader = self.reader(&entry)?;
        let block = entry.checksums.block.max(1);
        for index in missing {
            let start = index * block;
            let bytes = read_within(&self.daemon, &reader, start, block).await?;
            // Check again for each block: another task may have copied it first and its writer may
            // have written to it, or the file was cut. The result must not be overwritten.
            let mut table = self.lock();
            let Some(reference) = &mut table.file_mut(ino)?.reference else { return Ok(()) };
            if reference.entry.key != entry.key {
                return Ok(());
            }
            if start >= reference.length || reference.own.contains(&index) {
                continue;
            }
            let kept =
                usize::try_from(reference.length - start).unwrap_or(usize::MAX).min(bytes.len());
            reference.own.insert(index);
            self.fill(&mut table, ino, file, &bytes[..kept], start)?;
        }
        let mut table = self.lock();
        let node = table.file_mut(ino)?;
        let all = |reference: &Reference| {
            reference.entry.key == entry.key && reference.missing(&(0..u64::MAX)).is_empty()
        };
        if node.reference.as_ref().is_some_and(all) {
            node.reference = None;
        }
        Ok(())
    }

    /// Writes a blob's bytes into the staged file. The attributes stay as they were, because
    /// nothing has changed for anyone who reads the file.
    fn fill(
        &self,
        table: &mut OutputTable,
        ino: Ino,
        file: &File,
        bytes: &[u8],
        at: u64,
    ) -> Result<()> {
        let before = fs::fstat(file)?;
        let shown = self.stat(table, ino)?;
        table.file_mut(ino)?.shown.get_or_insert_with(|| Box::new(shown));
        self.of_disk(file.write_all_at(bytes, at).map_err(|error| errno(&error)))?;
        let time = |seconds, nanos: u64| Timespec { tv_sec: seconds, tv_nsec: nanos.cast_signed() };
        let times = Timestamps {
            last_access: time(before.st_atime, before.st_atime_nsec),
            last_modification: time(before.st_mtime, before.st_mtime_nsec),
        };
        fs::futimens(file, &times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ion_model::checksum::{self, BLOCK};

    #[test]
    fn pieces_are_the_blobs_but_for_what_was_written() {
        let entry = FileEntry {
            name: "f".into(),
            key: "k".into(),
            size: 10 * BLOCK + 5,
            mtime: 0,
            mtime_nanos: 0,
            mode: 0o644,
            checksums: checksum::of(&[]),
        };
        let nothing = FileEntry { size: 0, ..entry.clone() };
        assert!(Reference::to(Arc::new(nothing), 0).missing(&(0..u64::MAX)).is_empty());
        let mut reference = Reference::to(Arc::new(entry.clone()), entry.size);
        assert!(reference.is_whole());
        assert_eq!(reference.piece(7, u64::MAX), (true, entry.size));
        assert_eq!(reference.piece(entry.size, u64::MAX), (false, u64::MAX));
        reference.own.extend([2, 10]);
        assert_eq!(reference.piece(BLOCK, 9 * BLOCK), (true, 2 * BLOCK));
        assert_eq!(reference.piece(2 * BLOCK + 1, 9 * BLOCK), (false, 3 * BLOCK));
        assert_eq!(reference.piece(3 * BLOCK, u64::MAX), (true, 10 * BLOCK));
        assert_eq!(reference.missing(&(BLOCK - 1..3 * BLOCK)), [0, 1]);
        assert_eq!(reference.missing(&(0..u64::MAX)).len(), 9);
        reference.resize(5 * BLOCK + 1);
        assert!(!reference.is_whole() && !reference.takes_room_at(5 * BLOCK + 1));
        reference.resize(8 * BLOCK);
        assert!(reference.takes_room_at(1));
        assert_eq!(
            reference.piece(5 * BLOCK, u64::MAX),
            (true, 5 * BLOCK + 1),
            "the rest is the file's own"
        );
    }
}
