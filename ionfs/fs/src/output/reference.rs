//! References: content whose bytes are those of a blob until the module writes to them.
//!
//! `cp`, `ln` and `mv` from `in/data` make a reference at once, whatever its size: a hole in the
//! staging folder and the name of a blob.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use ion_model::event::FileEntry;

/// Content that equals the first bytes of a blob, except for the blocks that were written to. Those
/// lie in the staged file, which is a hole elsewhere.
#[derive(Clone, Debug)]
pub(super) struct Reference {
    entry: Arc<FileEntry>,
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
    pub(super) fn new(entry: Arc<FileEntry>, length: u64) -> Self {
        Self { entry, length, own: BTreeSet::new(), touched: false }
    }

    /// Returns the blob.
    pub(super) fn entry(&self) -> &Arc<FileEntry> {
        &self.entry
    }

    /// Returns how many of the blob's bytes the content has.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Returns whether the content has only bytes of the blob.
    pub(super) fn is_untouched(&self) -> bool {
        !self.touched
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
    pub(super) fn note_write(&mut self) {
        self.touched = true;
    }

    /// Returns whether the file takes room on the staging disk once it has `size` bytes: it then
    /// becomes a file of its own.
    pub(super) fn takes_room_at(&self, size: u64) -> bool {
        self.touched || size > self.length
    }

    pub(super) fn block_size(&self) -> u64 {
        self.entry.checksums.block.max(1)
    }

    /// Returns the blocks of the blob that `range` touches and that are not in the staged file.
    pub(super) fn missing_blocks(&self, range: &Range<u64>) -> Vec<u64> {
        let block = self.block_size();
        let blocks = range.start / block..range.end.min(self.length).div_ceil(block);
        blocks.filter(|index| !self.own.contains(index)).collect()
    }

    /// Notes that a block, of which `read` bytes were read from the blob, lies in the staged file
    /// from now on. Returns how many of these bytes belong to the content. Returns none if the
    /// block lies there already or behind the end: the bytes must then not be written.
    pub(super) fn take_block(&mut self, index: u64, read: usize) -> Option<usize> {
        let start = index * self.block_size();
        if start >= self.length || !self.own.insert(index) {
            return None;
        }
        Some(usize::try_from(self.length - start).unwrap_or(usize::MAX).min(read))
    }

    /// Returns where the bytes from `at` on lie, and up to which offset, at most `end`.
    pub(super) fn piece_at(&self, at: u64, end: u64) -> ReferencePiece {
        if at >= self.length {
            return ReferencePiece::OfFile(end);
        }
        let block = self.block_size();
        let index = at / block;
        if self.own.contains(&index) {
            return ReferencePiece::OfFile(end.min((index + 1) * block));
        }
        let next = self.own.range(index..).next().map_or(u64::MAX, |own| own * block);
        ReferencePiece::OfBlob(end.min(self.length).min(next))
    }
}

/// Where a piece of the content of a reference lies, and the offset at which the piece ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReferencePiece {
    /// The bytes are the blob's.
    OfBlob(u64),
    /// The bytes lie in the staged file.
    OfFile(u64),
}

#[cfg(test)]
mod tests {
    use super::*;
    use ion_model::checksum::{self, BLOCK_BYTES};

    #[test]
    fn pieces_are_the_blobs_but_for_what_was_written() {
        let entry = FileEntry {
            name: "f".into(),
            key: "k".into(),
            size: 10 * BLOCK_BYTES + 5,
            mtime: 0,
            mtime_nanos: 0,
            mode: 0o644,
            checksums: checksum::of(&[]),
        };
        let nothing = FileEntry { size: 0, ..entry.clone() };
        assert!(Reference::new(Arc::new(nothing), 0).missing_blocks(&(0..u64::MAX)).is_empty());
        let mut reference = Reference::new(Arc::new(entry.clone()), entry.size);
        assert!(reference.is_whole());
        assert_eq!(reference.piece_at(7, u64::MAX), ReferencePiece::OfBlob(entry.size));
        assert_eq!(reference.piece_at(entry.size, u64::MAX), ReferencePiece::OfFile(u64::MAX));
        reference.own.extend([2, 10]);
        assert_eq!(
            reference.piece_at(BLOCK_BYTES, 9 * BLOCK_BYTES),
            ReferencePiece::OfBlob(2 * BLOCK_BYTES)
        );
        assert_eq!(
            reference.piece_at(2 * BLOCK_BYTES + 1, 9 * BLOCK_BYTES),
            ReferencePiece::OfFile(3 * BLOCK_BYTES)
        );
        assert_eq!(
            reference.piece_at(3 * BLOCK_BYTES, u64::MAX),
            ReferencePiece::OfBlob(10 * BLOCK_BYTES)
        );
        assert_eq!(reference.missing_blocks(&(BLOCK_BYTES - 1..3 * BLOCK_BYTES)), [0, 1]);
        assert_eq!(reference.missing_blocks(&(0..u64::MAX)).len(), 9);
        reference.resize(5 * BLOCK_BYTES + 1);
        assert!(!reference.is_whole() && !reference.takes_room_at(5 * BLOCK_BYTES + 1));
        reference.resize(8 * BLOCK_BYTES);
        assert!(reference.takes_room_at(1));
        assert_eq!(
            reference.piece_at(5 * BLOCK_BYTES, u64::MAX),
            ReferencePiece::OfBlob(5 * BLOCK_BYTES + 1),
            "the rest is the file's own"
        );
    }
}
