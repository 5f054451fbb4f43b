//! One budget for all bytes of blobs in memory: blocks on their way from a store or the disk, and
//! those just read.
//!
//! Whoever wants to fill a block first takes room for it. Where there is none, blocks that were
//! read are let go, the longest unread first; then, for what somebody waits for, those that were
//! brought ahead; if all are in use it waits. So the daemon's memory does not grow with the files
//! that are open.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of one permit: a semaphore counts to 2^32 at least, so budgets may be large.
const GRAIN: u64 = 4096;

/// Bytes that a block takes of the budget, given back when the last of its readers is done.
#[derive(Debug)]
pub(super) struct Room {
    _permits: OwnedSemaphorePermit,
}

/// A block that was compared with its checksum.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) bytes: Bytes,
    _room: Room,
}

impl Block {
    pub(super) fn new(bytes: Bytes, room: Room) -> Arc<Self> {
        Arc::new(Self { bytes, _room: room })
    }
}

/// A block of an open blob: the blob's number and the block's index.
pub(super) type BlockId = (u64, u64);

#[derive(Debug)]
pub(super) struct Memory {
    room: Arc<Semaphore>,
    most: u64,
    held: Mutex<Held>,
    /// Those who wait for room. While there are any, no block stays that nobody reads.
    waiting: AtomicUsize,
}

#[derive(Debug, Default)]
struct Held {
    blocks: HashMap<BlockId, (u64, Arc<Block>)>,
    /// Those that were read, by when.
    read: BTreeMap<u64, BlockId>,
    /// Those brought ahead that nobody has read yet, by when they came.
    ahead: BTreeMap<u64, BlockId>,
    clock: u64,
}

impl Held {
    fn touch(&mut self, id: BlockId) -> Option<Arc<Block>> {
        self.clock += 1;
        let (at, block) = self.blocks.get_mut(&id)?;
        self.ahead.remove(at);
        self.read.remove(at);
        *at = self.clock;
        self.read.insert(self.clock, id);
        Some(block.clone())
    }

    fn remove(&mut self, id: BlockId) -> Option<Arc<Block>> {
        let (at, block) = self.blocks.remove(&id)?;
        self.ahead.remove(&at);
        self.read.remove(&at);
        Some(block)
    }

    fn remove_read(&mut self) -> Option<Arc<Block>> {
        let (_, id) = self.read.pop_first()?;
        self.blocks.remove(&id).map(|(_, block)| block)
    }

    fn remove_oldest(&mut self) -> Option<Arc<Block>> {
        self.remove_read().or_else(|| {
            let (_, id) = self.ahead.pop_first()?;
            self.blocks.remove(&id).map(|(_, block)| block)
        })
    }
}

impl Memory {
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

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes taken now.
    pub(super) fn taken(&self) -> u64 {
        self.most - self.room.available_permits() as u64 * GRAIN
    }

    fn grains(&self, bytes: u64) -> u32 {
        // What is larger than all there is takes all there is, alone.
        u32::try_from(bytes.min(self.most).div_ceil(GRAIN)).unwrap_or(u32::MAX)
    }

    /// Room for `bytes` if there is some without waiting: for what nobody has asked for yet. What
    /// was read makes way for it.
    pub(super) fn try_room(&self, bytes: u64) -> Option<Room> {
        let mut freed = 0;
        loop {
            if let Some(room) = self.free_room(bytes) {
                return Some(room);
            }
            // A block that somebody still holds frees nothing yet: no more are let go for it.
            if freed >= bytes {
                return None;
            }
            let block = self.lock().remove_read()?;
            freed += block.bytes.len() as u64;
        }
    }

    fn free_room(&self, bytes: u64) -> Option<Room> {
        let permits = self.room.clone().try_acquire_many_owned(self.grains(bytes)).ok()?;
        Some(Room { _permits: permits })
    }

    /// Room for `bytes`, once there is some.
    pub(super) async fn room(&self, bytes: u64) -> Room {
        if let Some(room) = self.free_room(bytes) {
            return room;
        }
        let _waits = Waits::of(&self.waiting);
        while let Some(oldest) = { self.lock().remove_oldest() } {
            drop(oldest);
            if let Some(room) = self.free_room(bytes) {
                return room;
            }
        }
        let permits = self.room.clone().acquire_many_owned(self.grains(bytes)).await;
        Room { _permits: permits.expect("the semaphore is never closed") }
    }

    pub(super) fn has(&self, id: BlockId) -> bool {
        self.lock().blocks.contains_key(&id)
    }

    pub(super) fn get(&self, id: BlockId) -> Option<Arc<Block>> {
        self.lock().touch(id)
    }

    pub(super) fn put(&self, id: BlockId, block: Arc<Block>) {
        let mut held = self.lock();
        // Under the lock: whoever waits has looked here before, or will not find it.
        if self.waiting.load(Ordering::SeqCst) > 0 {
            return;
        }
        held.remove(id);
        held.clock += 1;
        let at = held.clock;
        held.ahead.insert(at, id);
        held.blocks.insert(id, (at, block));
    }

    /// Lets go of all blocks of a blob.
    pub(super) fn drop_blob(&self, blob: u64) {
        let mut held = self.lock();
        let ids: Vec<BlockId> =
            held.blocks.keys().filter(|(one, _)| *one == blob).copied().collect();
        for id in ids {
            held.remove(id);
        }
    }
}

/// One who waits, until it does not any more.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn of(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_read_makes_way_for_what_comes_and_what_was_not_stays() {
        let memory = Memory::new(4 * GRAIN);
        let bytes = || Bytes::from(vec![0; 4096]);
        for index in 0..4 {
            let room = memory.try_room(GRAIN).expect("it is empty");
            memory.put((1, index), Block::new(bytes(), room));
        }
        assert!(memory.try_room(GRAIN).is_none(), "nobody has read any");
        assert!(memory.get((1, 2)).is_some());
        let room = memory.try_room(GRAIN).expect("one was read");
        assert!(!memory.has((1, 2)) && memory.has((1, 0)));
        drop(room);
        let held = memory.get((1, 0)).expect("it stayed");
        let both = memory.try_room(2 * GRAIN);
        assert!(both.is_none() && memory.has((1, 1)), "one that is still in use frees nothing");
        drop(held);
        drop(memory.room(4 * GRAIN).await);
        assert_eq!(memory.taken(), 0, "for what is waited for, all make way");
    }

    #[tokio::test]
    async fn the_budget_holds_and_what_is_unread_makes_way() {
        let memory = Arc::new(Memory::new(10 * GRAIN));
        for index in 0..100 {
            let room = memory.room(2 * GRAIN).await;
            memory.put((1, index), Block::new(Bytes::new(), room));
            assert!(memory.taken() <= 10 * GRAIN);
        }
        assert!(memory.get((1, 0)).is_none() && memory.get((1, 95)).is_some(), "the oldest went");
        // In use, though nobody finds it any more: its bytes are still there.
        let kept: Vec<_> = (95..100).map(|index| memory.get((1, index)).expect("held")).collect();
        memory.drop_blob(1);
        assert!(memory.try_room(GRAIN).is_none());
        let waiting = tokio::spawn({
            let memory = memory.clone();
            async move { drop(memory.room(u64::MAX).await) }
        });
        tokio::task::yield_now().await;
        drop(kept);
        waiting.await.expect("it got all there is");
        assert_eq!(memory.taken(), 0);
    }
}
