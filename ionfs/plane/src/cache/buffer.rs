//! Memory for blocks, used again and again: a page that the system has to find and clear first
//! costs more than all that is done with its bytes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// What the bytes of a buffer are aligned to: the largest sector of a disk, as writing past the
/// page cache wants it.
pub(super) const ALIGNMENT: usize = 4096;

/// Buffers kept that nobody uses. Blocks come and go one for one, so few are ever spare but when a
/// blob is let go.
const SPARE_MAX: usize = 8;

/// Buffers of `size` bytes.
#[derive(Debug)]
pub(super) struct Buffers {
    size: usize,
    spare: Mutex<Vec<Vec<u8>>>,
}

/// Bytes to be filled, then shared. Its memory goes back to where it came from when the last reader
/// is done.
#[derive(Debug)]
pub(super) struct Buffer {
    home: Arc<Buffers>,
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffers {
    /// For blocks of `size` bytes and less.
    pub(super) fn new(size: usize) -> Arc<Self> {
        Arc::new(Self { size, spare: Mutex::default() })
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for `length` bytes, which hold anything.
    pub(super) fn take(self: &Arc<Self>, length: usize) -> Buffer {
        // What is much smaller than a block would keep a whole one.
        let spare = if self.fits(length) { self.spare().pop() } else { None };
        let bytes = if self.fits(length) { self.size } else { length };
        let memory = spare.unwrap_or_else(|| vec![0; bytes + ALIGNMENT]);
        let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Buffer { home: self.clone(), memory, start, length }
    }

    fn fits(&self, length: usize) -> bool {
        length <= self.size && length > self.size / 2
    }
}

impl Buffer {
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }

    /// Its bytes, as they are now.
    pub(super) fn share(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.home.fits(self.length) {
            let mut spare = self.home.spare();
            if spare.len() < SPARE_MAX {
                spare.push(std::mem::take(&mut self.memory));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_and_is_where_a_disk_wants_it() {
        let buffers = Buffers::new(3 * ALIGNMENT);
        let mut first = buffers.take(3 * ALIGNMENT);
        first.bytes().fill(7);
        let at = first.as_ref().as_ptr();
        let shared = first.share();
        let copy = shared.slice(ALIGNMENT..);
        drop(shared);
        assert_eq!((at.addr() % ALIGNMENT, copy[0]), (0, 7));
        assert_ne!(buffers.take(3 * ALIGNMENT).as_ref().as_ptr(), at, "somebody still reads it");
        drop(copy);
        let again = buffers.take(2 * ALIGNMENT);
        assert_eq!((again.as_ref().len(), buffers.spare().len()), (2 * ALIGNMENT, 1));
        // Small ones and larger ones are memory like any other.
        drop((buffers.take(1), buffers.take(9 * ALIGNMENT)));
        assert_eq!(buffers.spare().len(), 1);
        drop((0..20).map(|_| buffers.take(3 * ALIGNMENT)).collect::<Vec<_>>());
        assert_eq!(buffers.spare().len(), SPARE_MAX);
    }
}
