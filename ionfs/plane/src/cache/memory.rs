//! The memory budget for all bytes of blobs: for blocks on their way from a store or the disk, and
//! for blocks that were read recently.
//!
//! A task that fills a block first takes room for it. If there is none, blocks that were read are
//! dropped, the least recently read first. For a block that a reader waits for, blocks that were
//! brought ahead are dropped next. If all blocks are in use, the task waits. So the daemon's memory
//! does not grow with the number of open files.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The bytes of one permit. `acquire_many` takes a u32: with permits of 4 KiB a budget may have
/// 16 TiB.
const GRAIN: u64 = 4096;

/// The bytes of the budget that a block takes. They are returned when the last reader of the block
/// is done.
#[derive(Debug)]
pub(super) struct Room {
    _permits: OwnedSemaphorePermit,
}

/// A block that has matched its checksum.
#[derive(Debug)]
pub(super) struct CachedBlock {
    pub(super) bytes: Bytes,
    _room: Room,
}

impl CachedBlock {
    pub(super) fn new(bytes: Bytes, room: Room) -> Arc<Self> {
        Arc::new(Self { bytes, _room: room })
    }
}

/// A block of an open blob: the blob's number and the block's index.
pub(super) type BlockId = (u64, u64);

#[derive(Debug)]
pub(super) struct BlockMemory {
    room: Arc<Semaphore>,
    most: u64,
    held: Mutex<HeldBlocks>,
    /// The number of tasks that wait for room. While there are any, a new block stays only as long
    /// as its readers hold it.
    waiting: AtomicUsize,
}

#[derive(Debug, Default)]
struct HeldBlocks {
    blocks: HashMap<BlockId, (u64, Arc<CachedBlock>)>,
    /// The blocks that were read, by the time of the last read.
    read: BTreeMap<u64, BlockId>,
    /// The blocks that nobody has read yet, by the time of their arrival.
    ahead: BTreeMap<u64, BlockId>,
    clock: u64,
}

impl HeldBlocks {
    fn mark_read(&mut self, id: BlockId) -> Option<Arc<CachedBlock>> {
        self.clock += 1;
        let (at, block) = self.blocks.get_mut(&id)?;
        self.ahead.remove(at);
        self.read.remove(at);
        *at = self.clock;
        self.read.insert(self.clock, id);
        Some(block.clone())
    }

    fn remove(&mut self, id: BlockId) -> Option<Arc<CachedBlock>> {
        let (at, block) = self.blocks.remove(&id)?;
        self.ahead.remove(&at);
        self.read.remove(&at);
        Some(block)
    }

    fn remove_oldest_read(&mut self) -> Option<Arc<CachedBlock>> {
        let (_, id) = self.read.pop_first()?;
        self.blocks.remove(&id).map(|(_, block)| block)
    }

    fn remove_oldest(&mut self) -> Option<Arc<CachedBlock>> {
        self.remove_oldest_read().or_else(|| {
            let (_, id) = self.ahead.pop_first()?;
            self.blocks.remove(&id).map(|(_, block)| block)
        })
    }
}

impl BlockMemory {
    pub(super) fn new(bytes: u64) -> Self {
        let permits =
            usize::try_from(bytes / GRAIN).unwrap_or(Semaphore::MAX_PERMITS).min(u32::MAX as usize);
        let most = permits as u64 * GRAIN;
        Self {
            room: Arc::new(Semaphore::new(permits)),
            most,
            held: Mutex::default(),
            waiting: AtomicUsize::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HeldBlocks> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of bytes of the budget that are taken now.
    pub(super) fn taken_bytes(&self) -> u64 {
        self.most - self.room.available_permits() as u64 * GRAIN
    }

    fn permit_count(&self, bytes: u64) -> u32 {
        // A block larger than the whole budget takes the whole budget.
        u32::try_from(bytes.min(self.most).div_ceil(GRAIN)).unwrap_or(u32::MAX)
    }

    /// Takes room for `bytes` without waiting, for a block that no reader has asked for yet. Drops
    /// blocks that were read to make room. Returns `None` if that is not enough.
    pub(super) fn try_take_room(&self, bytes: u64) -> Option<Room> {
        let mut freed = 0;
        loop {
            if let Some(room) = self.take_free_room(bytes) {
                return Some(room);
            }
            // A dropped block that a reader still holds frees nothing yet. So this stops when the
            // dropped blocks add up to `bytes`.
            if freed >= bytes {
                return None;
            }
            let block = self.lock().remove_oldest_read()?;
            freed += block.bytes.len() as u64;
        }
    }

    fn take_free_room(&self, bytes: u64) -> Option<Room> {
        let permits = self.room.clone().try_acquire_many_owned(self.permit_count(bytes)).ok()?;
        Some(Room { _permits: permits })
    }

    /// Takes room for `bytes`. Drops blocks to make room, and waits until there is enough.
    pub(super) async fn take_room(&self, bytes: u64) -> Room {
        if let Some(room) = self.take_free_room(bytes) {
            return room;
        }
        let _waits = WaitingGuard::new(&self.waiting);
        while let Some(oldest) = { self.lock().remove_oldest() } {
            drop(oldest);
            if let Some(room) = self.take_free_room(bytes) {
                return room;
            }
        }
        let permits = self.room.clone().acquire_many_owned(self.permit_count(bytes)).await;
        Room { _permits: permits.expect("the semaphore is never closed") }
    }

    pub(super) fn has(&self, id: BlockId) -> bool {
        self.lock().blocks.contains_key(&id)
    }

    pub(super) fn get(&self, id: BlockId) -> Option<Arc<CachedBlock>> {
        self.lock().mark_read(id)
    }

    pub(super) fn put(&self, id: BlockId, block: Arc<CachedBlock>) {
        let mut held = self.lock();
        // The count is read under the lock: a task that waits has either searched the blocks
        // already, so that this block must not stay, or it will still find and drop this block.
        if self.waiting.load(Ordering::SeqCst) > 0 {
            return;
        }
        held.remove(id);
        held.clock += 1;
        let at = held.clock;
        held.ahead.insert(at, id);
        held.blocks.insert(id, (at, block));
    }

    /// Drops all blocks of a blob.
    pub(super) fn drop_blob(&self, blob: u64) {
        let mut held = self.lock();
        let ids: Vec<BlockId> =
            held.blocks.keys().filter(|(one, _)| *one == blob).copied().collect();
        for id in ids {
            held.remove(id);
        }
    }
}

/// Counts a waiting task until it is dropped.
struct WaitingGuard<'a>(&'a AtomicUsize);

impl<'a> WaitingGuard<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for WaitingGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_read_makes_way_for_what_comes_and_what_was_not_stays() {
        let memory = BlockMemory::new(4 * GRAIN);
        let bytes = || Bytes::from(vec![0; 4096]);
        for index in 0..4 {
            let room = memory.try_take_room(GRAIN).expect("it is empty");
            memory.put((1, index), CachedBlock::new(bytes(), room));
        }
        assert!(memory.try_take_room(GRAIN).is_none(), "nobody has read any");
        assert!(memory.get((1, 2)).is_some());
        let room = memory.try_take_room(GRAIN).expect("one was read");
        assert!(!memory.has((1, 2)) && memory.has((1, 0)));
        drop(room);
        let held = memory.get((1, 0)).expect("it stayed");
        let both = memory.try_take_room(2 * GRAIN);
        assert!(both.is_none() && memory.has((1, 1)), "one that is still in use frees nothing");
        drop(held);
        drop(memory.take_room(4 * GRAIN).await);
        assert_eq!(memory.taken_bytes(), 0, "for what is waited for, all make way");
    }

    #[tokio::test]
    async fn the_budget_holds_and_what_is_unread_makes_way() {
        let memory = Arc::new(BlockMemory::new(10 * GRAIN));
        for index in 0..100 {
            let room = memory.take_room(2 * GRAIN).await;
            memory.put((1, index), CachedBlock::new(Bytes::new(), room));
            assert!(memory.taken_bytes() <= 10 * GRAIN);
        }
        assert!(memory.get((1, 0)).is_none() && memory.get((1, 95)).is_some(), "the oldest went");
        // Readers still hold the blocks after they are dropped from the cache, so their bytes stay
        // taken.
        let kept: Vec<_> = (95..100).map(|index| memory.get((1, index)).expect("held")).collect();
        memory.drop_blob(1);
        assert!(memory.try_take_room(GRAIN).is_none());
        let waiting = tokio::spawn({
            let memory = memory.clone();
            async move { drop(memory.take_room(u64::MAX).await) }
        });
        tokio::task::yield_now().await;
        drop(kept);
        waiting.await.expect("it got all there is");
        assert_eq!(memory.taken_bytes(), 0);
    }
}
