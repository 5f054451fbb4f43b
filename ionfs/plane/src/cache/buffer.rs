//! Reusable memory for blocks. A page that the system must find and clear first costs more than
//! everything else that is done with its bytes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// The alignment of a buffer's bytes: the largest sector of a disk, which writes past the page
/// cache need.
pub(super) const ALIGNMENT: usize = 4096;

/// The number of unused buffers that are kept. A new block usually replaces an old one, so many
/// buffers are unused only when a blob is dropped.
const SPARE_MAX: usize = 8;

/// A pool of buffers of `size` bytes.
#[derive(Debug)]
pub(super) struct Buffers {
    size: usize,
    spare: Mutex<Vec<Vec<u8>>>,
}

/// A buffer to fill and then share. Its memory returns to the pool when the last reader is done.
#[derive(Debug)]
pub(super) struct Buffer {
    home: Arc<Buffers>,
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffers {
    /// Makes a pool for blocks of at most `size` bytes.
    pub(super) fn new(size: usize) -> Arc<Self> {
        Arc::new(Self { size, spare: Mutex::default() })
    }

    fn lock_spare(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a buffer of `length` bytes with unspecified content.
    pub(super) fn take(self: &Arc<Self>, length: usize) -> Buffer {
        // Bytes that are much smaller than a block would occupy a whole buffer, so they get memory
        // of their own.
        let spare = if self.is_poolable(length) { self.lock_spare().pop() } else { None };
        let bytes = if self.is_poolable(length) { self.size } else { length };
        let memory = spare.unwrap_or_else(|| vec![0; bytes + ALIGNMENT]);
        let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Buffer { home: self.clone(), memory, start, length }
    }

    fn is_poolable(&self, length: usize) -> bool {
        length <= self.size && length > self.size / 2
    }
}

impl Buffer {
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }

    /// Converts the buffer to shared bytes with its current content.
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
        if self.home.is_poolable(self.length) {
            let mut spare = self.home.lock_spare();
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
        first.bytes_mut().fill(7);
        let at = first.as_ref().as_ptr();
        let shared = first.share();
        let copy = shared.slice(ALIGNMENT..);
        drop(shared);
        assert_eq!((at.addr() % ALIGNMENT, copy[0]), (0, 7));
        assert_ne!(buffers.take(3 * ALIGNMENT).as_ref().as_ptr(), at, "somebody still reads it");
        drop(copy);
        let again = buffers.take(2 * ALIGNMENT);
        assert_eq!((again.as_ref().len(), buffers.lock_spare().len()), (2 * ALIGNMENT, 1));
        // Much smaller and larger buffers are not pooled.
        drop((buffers.take(1), buffers.take(9 * ALIGNMENT)));
        assert_eq!(buffers.lock_spare().len(), 1);
        drop((0..20).map(|_| buffers.take(3 * ALIGNMENT)).collect::<Vec<_>>());
        assert_eq!(buffers.lock_spare().len(), SPARE_MAX);
    }
}
