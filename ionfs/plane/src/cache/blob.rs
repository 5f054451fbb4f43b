//! One open blob: where its blocks are, and which of them are being brought into memory.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt as _;
use ion_model::event::FileEntry;
use ion_stores::StoreError;
use ion_system::patience::{FailedTry, Retry};
use ion_system::run_blocking;
use tokio::sync::watch;

use super::ahead::ReadAhead;
use super::buffer::Buffer;
use super::memory::{CachedBlock, Room};
use super::{CacheError, CacheShared, disk};

/// The tries of one fetch before its readers receive EIO. A shorter wait overloads a store that is
/// restarting.
const FETCH: Retry =
    Retry::times(4).doubling(Duration::from_millis(100), Duration::from_millis(400));

/// The size of one request to a store, in bytes. With larger requests it takes longer until the
/// work is spread over several connections; smaller ones pay for a round trip more often.
const RUN_BYTES: u64 = 8 << 20;

/// The number of bytes that one task reads from the disk.
const LOCAL_BYTES: u64 = 4 << 20;

/// The kind of a blob's local file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LocalFileKind {
    /// The store's own file: nothing is copied.
    Store,
    /// A file in the node's cache folder.
    Node,
    /// The staged file of a job that still runs and may write to it. Its blocks are used as long as
    /// they match their checksums.
    Producer,
}

/// The outcome of reading blocks from the local file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DiskRead {
    /// Nothing is left to do: each block was delivered, has failed, or found no room in memory.
    All,
    /// The first of the remaining blocks is not what was written.
    Bad,
}

/// A set of bits that are only ever set, never cleared.
#[derive(Debug)]
struct BlockBits {
    words: Vec<AtomicU64>,
    count: AtomicU64,
}

impl BlockBits {
    fn new(bits: u64) -> Self {
        let words = usize::try_from(bits.div_ceil(64)).unwrap_or(usize::MAX);
        Self { words: (0..words).map(|_| AtomicU64::new(0)).collect(), count: AtomicU64::new(0) }
    }

    fn set(&self, index: u64) {
        let bit = 1 << (index % 64);
        if let Some(word) = self.words.get(usize::try_from(index / 64).unwrap_or(usize::MAX))
            && word.fetch_or(bit, Ordering::AcqRel) & bit == 0
        {
            self.count.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn has(&self, index: u64) -> bool {
        let word = self.words.get(usize::try_from(index / 64).unwrap_or(usize::MAX));
        word.is_some_and(|word| word.load(Ordering::Acquire) & (1 << (index % 64)) != 0)
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }
}

/// The outcome of bringing a block into memory; `None` while it is on its way.
type BlockOutcome = Option<Result<Arc<CachedBlock>, Arc<CacheError>>>;

/// The blocks of one request, in order, each with the sender of its outcome.
type Waiting = VecDeque<(u64, watch::Sender<BlockOutcome>)>;

/// For what a block is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BlockDemand {
    /// A reader that waits for the block: it waits for room in memory too.
    Reader,
    /// The read-ahead: without room in memory it leaves the block.
    ReadAhead,
}

/// Where a block is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BlockSource {
    Disk,
    Store,
}

/// A run of blocks that one task brings into memory.
struct BlockRequest {
    from: BlockSource,
    waiting: Waiting,
}

/// Counts the bytes that are brought from the blob store for some readers. Clones count together.
/// Bytes that several readers wait for count for the one that asked first.
#[derive(Clone, Debug, Default)]
pub struct FetchCount(Arc<AtomicU64>);

impl FetchCount {
    /// Returns the bytes so far.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// An open blob: its local file, and which blocks of the file may be read.
#[derive(Debug)]
pub struct CachedBlob {
    id: u64,
    shared: Arc<CacheShared>,
    entry: FileEntry,
    place: LocalFileKind,
    /// Whether no producer can change the file any more: the job that made it has ended and left it
    /// as it was committed.
    frozen: AtomicBool,
    file: File,
    block: u64,
    blocks: u64,
    /// The blocks that the file has, or once had.
    present: BlockBits,
    /// The blocks of the file that have matched their checksums since the file was opened.
    sound: BlockBits,
    /// The blocks on their way, each with the channel of its outcome.
    arriving: Mutex<HashMap<u64, watch::Receiver<BlockOutcome>>>,
}

impl CachedBlob {
    pub(super) fn new(
        shared: Arc<CacheShared>,
        entry: &FileEntry,
        place: LocalFileKind,
        file: File,
    ) -> Self {
        let block = entry.checksums.block.max(1);
        let blocks = entry.size.div_ceil(block);
        let present = BlockBits::new(blocks);
        match place {
            LocalFileKind::Node => {
                disk::for_each_whole_block(&file, entry.size, block, |index| present.set(index))
            }
            LocalFileKind::Store | LocalFileKind::Producer => {
                (0..blocks).for_each(|index| present.set(index))
            }
        }
        Self {
            id: shared.next_id.fetch_add(1, Ordering::Relaxed),
            shared,
            entry: entry.clone(),
            place,
            frozen: AtomicBool::new(place != LocalFileKind::Producer),
            file,
            block,
            blocks,
            present,
            sound: BlockBits::new(blocks),
            arriving: Mutex::default(),
        }
    }

    /// Returns the blob's file entry.
    pub fn entry(&self) -> &FileEntry {
        &self.entry
    }

    /// Returns whether the blob has this entry's key, checksums and size.
    pub fn matches_entry(&self, entry: &FileEntry) -> bool {
        self.entry.key == entry.key
            && self.entry.checksums == entry.checksums
            && self.entry.size == entry.size
    }

    /// Returns the file if it may be read without further checks: every block has matched its
    /// checksum, and nobody can write to the file.
    pub fn whole_file(&self) -> Option<&File> {
        (self.sound.count() == self.blocks && self.frozen.load(Ordering::Acquire))
            .then_some(&self.file)
    }

    /// Records that the file is now in the cache folder, and that its producer can no longer change
    /// it.
    pub(super) fn freeze(&self) {
        self.frozen.store(true, Ordering::Release);
    }

    /// Reads up to `length` bytes from `offset`, fewer only at the blob's end. Brings only the
    /// blocks that it needs.
    ///
    /// # Errors
    /// The error of the first block that could not be brought. It has been logged.
    pub(super) async fn read(
        self: &Arc<Self>,
        offset: u64,
        length: u64,
        fetched: &FetchCount,
    ) -> Result<Bytes, Arc<CacheError>> {
        let end = offset.saturating_add(length).min(self.entry.size);
        if offset >= end {
            return Ok(Bytes::new());
        }
        let (first, last) = (offset / self.block, (end - 1) / self.block);
        let part = |index: u64, bytes: &Bytes| {
            let start = index * self.block;
            let at = |position: u64| {
                usize::try_from(position.saturating_sub(start)).unwrap_or(usize::MAX)
            };
            bytes.slice(at(offset).min(bytes.len())..at(end).min(bytes.len()))
        };
        // The number of bytes that this read takes from a block.
        let asked =
            |index: u64| ((index + 1) * self.block).min(end) - (index * self.block).max(offset);
        if first == last {
            return Ok(part(first, &self.read_block(first, asked(first), fetched).await?.bytes));
        }
        self.request_blocks(first..last + 1, BlockDemand::Reader, fetched);
        let mut all = BytesMut::with_capacity(usize::try_from(end - offset).unwrap_or(0));
        for index in first..=last {
            let block = self.read_block(index, asked(index), fetched).await?;
            all.extend_from_slice(&part(index, &block.bytes));
        }
        Ok(all.freeze())
    }

    /// Starts to bring the blocks that overlap `range` if there is room in memory, and does not
    /// wait for them.
    fn prefetch(self: &Arc<Self>, range: Range<u64>, fetched: &FetchCount) {
        let end = range.end.min(self.entry.size);
        if range.start < end {
            let run = range.start / self.block..end.div_ceil(self.block);
            self.request_blocks(run, BlockDemand::ReadAhead, fetched);
        }
    }

    /// Returns a block, for a reader that takes `asked` bytes of it.
    async fn read_block(
        self: &Arc<Self>,
        index: u64,
        asked: u64,
        fetched: &FetchCount,
    ) -> Result<Arc<CachedBlock>, Arc<CacheError>> {
        let metrics = &self.shared.metrics;
        let mut waited = false;
        loop {
            if let Some(block) = self.shared.memory.get((self.id, index)) {
                if !waited {
                    metrics.cache_hits.add(1);
                    metrics.bytes_remembered.add(asked);
                }
                return Ok(block);
            }
            if !std::mem::replace(&mut waited, true) {
                metrics.cache_misses.add(1);
            }
            let arriving = self.lock_arriving().get(&index).cloned();
            let arriving = arriving
                .or_else(|| self.request_blocks(index..index + 1, BlockDemand::Reader, fetched));
            // `None`: the block has arrived in between.
            let Some(mut arriving) = arriving else { continue };
            // An error: the read-ahead that was to bring the block found no room. The loop now
            // requests the block itself, and waits for room.
            if let Ok(landed) = arriving.wait_for(Option::is_some).await
                && let Some(landed) = landed.clone()
            {
                // Marks the block as read.
                let _ = self.shared.memory.get((self.id, index));
                return landed;
            }
        }
    }

    fn lock_arriving(&self) -> MutexGuard<'_, HashMap<u64, watch::Receiver<BlockOutcome>>> {
        self.arriving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to bring every block of `run` that is neither in memory nor on its way, so that a
    /// block is fetched once, however many readers wait. Returns the outcome of the last block that
    /// it started to bring.
    fn request_blocks(
        self: &Arc<Self>,
        run: Range<u64>,
        demand: BlockDemand,
        fetched: &FetchCount,
    ) -> Option<watch::Receiver<BlockOutcome>> {
        let mut requests: Vec<BlockRequest> = Vec::new();
        let mut last = None;
        {
            let mut arriving = self.lock_arriving();
            for index in run {
                if arriving.contains_key(&index) || self.shared.memory.has((self.id, index)) {
                    continue;
                }
                let (sender, receiver) = watch::channel(None);
                arriving.insert(index, receiver.clone());
                last = Some(receiver);
                let (from, bytes) = match self.present.has(index) {
                    true => (BlockSource::Disk, LOCAL_BYTES),
                    false => (BlockSource::Store, RUN_BYTES),
                };
                match requests.last_mut() {
                    Some(request)
                        if request.from == from
                            && request
                                .waiting
                                .back()
                                .is_some_and(|(last, _)| last + 1 == index)
                            && (request.waiting.len() as u64) < bytes / self.block =>
                    {
                        request.waiting.push_back((index, sender));
                    }
                    _ => {
                        let waiting = VecDeque::from([(index, sender)]);
                        requests.push(BlockRequest { from, waiting });
                    }
                }
            }
        }
        for BlockRequest { from, mut waiting } in requests {
            let (this, fetched) = (self.clone(), fetched.clone());
            tokio::spawn(async move {
                match from {
                    BlockSource::Disk => {
                        while this.read_from_disk(&mut waiting, demand, &fetched).await
                            == DiskRead::Bad
                        {
                            let mut bad: Waiting = waiting.pop_front().into_iter().collect();
                            this.fetch_from_store(&mut bad, BlockDemand::Reader, &fetched).await;
                        }
                    }
                    BlockSource::Store => {
                        this.fetch_from_store(&mut waiting, demand, &fetched).await
                    }
                }
                // These blocks found no room in memory.
                let mut arriving = this.lock_arriving();
                for (index, _) in &waiting {
                    arriving.remove(index);
                }
            });
        }
        last
    }

    fn block_length(&self, index: u64) -> u64 {
        self.block.min(self.entry.size - index * self.block)
    }

    /// Returns a buffer for a block, for which the caller has room.
    fn take_buffer(&self, index: u64) -> Buffer {
        self.shared.buffers.take(usize::try_from(self.block_length(index)).unwrap_or(usize::MAX))
    }

    async fn take_room(&self, index: u64, demand: BlockDemand) -> Option<Room> {
        let bytes = self.block_length(index);
        match demand {
            BlockDemand::Reader => Some(self.shared.memory.take_room(bytes).await),
            BlockDemand::ReadAhead => self.shared.memory.try_take_room(bytes),
        }
    }

    /// Reads blocks from the local file, until all are done or one does not match its checksum.
    async fn read_from_disk(
        self: &Arc<Self>,
        waiting: &mut Waiting,
        demand: BlockDemand,
        fetched: &FetchCount,
    ) -> DiskRead {
        while let Some((index, _)) = waiting.front() {
            let index = *index;
            let Some(room) = self.take_room(index, demand).await else { return DiskRead::All };
            let this = self.clone();
            let read = run_blocking(move || {
                let mut buffer = this.take_buffer(index);
                this.file.read_exact_at(buffer.bytes_mut(), index * this.block)?;
                let bytes = buffer.share();
                Ok::<_, io::Error>((this.entry.checksums.block_matches(index, &bytes), bytes))
            });
            let error = match read.await {
                Ok((true, bytes)) => {
                    match self.place {
                        LocalFileKind::Store if !self.sound.has(index) => {
                            self.count_fetched(bytes.len() as u64, fetched);
                        }
                        _ => self.shared.metrics.bytes_cached.add(bytes.len() as u64),
                    }
                    self.sound.set(index);
                    self.deliver_first(waiting, CachedBlock::new(bytes, room));
                    continue;
                }
                Ok((false, _)) => CacheError::Corrupt { key: self.entry.key.clone(), block: index },
                Err(source) => CacheError::Local { key: self.entry.key.clone(), source },
            };
            if self.place == LocalFileKind::Store {
                self.fail_waiting(waiting, error);
                return DiskRead::All;
            }
            tracing::warn!(
                key = self.entry.key,
                block = index,
                error = &error as &dyn std::error::Error,
                "a block of the node's cache is not what was written; it is fetched again"
            );
            return DiskRead::Bad;
        }
        DiskRead::All
    }

    /// Fetches blocks from the store in one request. If the request breaks off, fetches the
    /// remaining blocks again.
    async fn fetch_from_store(
        self: &Arc<Self>,
        waiting: &mut Waiting,
        demand: BlockDemand,
        fetched: &FetchCount,
    ) {
        let again = |failed: FailedTry<'_, CacheError>| match failed.error {
            CacheError::Store { source: StoreError::Unavailable { .. }, .. } => true,
            // The network may have damaged the bytes.
            CacheError::Corrupt { .. } => failed.number == 0,
            _ => false,
        };
        // One try at a time has the blocks: no try waits for this lock.
        let blocks = tokio::sync::Mutex::new(&mut *waiting);
        let fetch = async |_| {
            let mut waiting = blocks.lock().await;
            self.try_fetch(&mut waiting, demand, fetched).await
        };
        if let Err(error) = FETCH.run(fetch, again).await {
            self.fail_waiting(waiting, error);
        }
    }

    /// Fetches the blocks of `waiting` with one request. Blocks that arrive leave `waiting`, so
    /// that a next try asks only for the rest. If there is no room for a block, the remaining
    /// blocks stay in `waiting` and it returns without an error.
    async fn try_fetch(
        self: &Arc<Self>,
        waiting: &mut Waiting,
        demand: BlockDemand,
        fetched: &FetchCount,
    ) -> Result<(), CacheError> {
        let (Some((first, _)), Some((last, _))) = (waiting.front(), waiting.back()) else {
            return Ok(());
        };
        let range = first * self.block..(last * self.block + self.block_length(*last));
        let from_store = |source| CacheError::Store { key: self.entry.key.clone(), source };
        let _slot = self.shared.fetches.acquire().await;
        let mut body =
            self.shared.blobs.get_stream(&self.entry.key, range).await.map_err(from_store)?;
        let mut rest = Bytes::new();
        while let Some((index, _)) = waiting.front() {
            let index = *index;
            let corrupt = || CacheError::Corrupt { key: self.entry.key.clone(), block: index };
            let Some(room) = self.take_room(index, demand).await else { return Ok(()) };
            let mut buffer = self.take_buffer(index);
            let mut empty = buffer.bytes_mut();
            while !empty.is_empty() {
                if rest.is_empty() {
                    rest = body.try_next().await.map_err(from_store)?.ok_or_else(corrupt)?;
                }
                let piece = rest.split_to(rest.len().min(empty.len()));
                let (filled, left) = empty.split_at_mut(piece.len());
                filled.copy_from_slice(&piece);
                empty = left;
            }
            let bytes = buffer.share();
            self.count_fetched(bytes.len() as u64, fetched);
            if !self.entry.checksums.block_matches(index, &bytes) {
                return Err(corrupt());
            }
            let block = CachedBlock::new(bytes, room);
            self.deliver_first(waiting, block.clone());
            self.keep_on_disk(index, block);
        }
        Ok(())
    }

    fn count_fetched(&self, bytes: u64, fetched: &FetchCount) {
        self.shared.metrics.bytes_fetched.add(bytes);
        fetched.add(bytes);
    }

    /// Delivers the first waiting block to its readers.
    fn deliver_first(&self, waiting: &mut Waiting, block: Arc<CachedBlock>) {
        let Some((index, sender)) = waiting.pop_front() else { return };
        // The block is in memory before it leaves `arriving`, so that a reader finds it in one of
        // the two.
        self.shared.memory.put((self.id, index), block.clone());
        let _ = sender.send(Some(Ok(block)));
        self.lock_arriving().remove(&index);
    }

    /// Fails all waiting blocks with this error.
    fn fail_waiting(&self, waiting: &mut Waiting, error: CacheError) {
        tracing::error!(
            key = self.entry.key,
            block = waiting.front().map(|(index, _)| *index),
            error = &error as &dyn std::error::Error,
            "a read of a blob failed"
        );
        let error = Arc::new(error);
        let mut arriving = self.lock_arriving();
        for (index, sender) in waiting.drain(..) {
            arriving.remove(&index);
            let _ = sender.send(Some(Err(error.clone())));
        }
    }

    /// Writes a block to the node's cache folder, if that has room. Readers do not wait for this.
    fn keep_on_disk(self: &Arc<Self>, index: u64, block: Arc<CachedBlock>) {
        let disk = &self.shared.disk;
        if self.place != LocalFileKind::Node || !disk.try_reserve(block.bytes.len() as u64) {
            self.shared.make_room_if_full();
            return;
        }
        let this = self.clone();
        tokio::task::spawn_blocking(move || {
            let disk = &this.shared.disk;
            match disk.write(&this.file, &block.bytes, index * this.block) {
                Ok(()) => {
                    this.present.set(index);
                    this.sound.set(index);
                }
                Err(error) => {
                    tracing::warn!(%error, "the node's cache cannot keep a block");
                    disk.mark_disk_full();
                }
            }
        });
        self.shared.make_room_if_full();
    }
}

impl Drop for CachedBlob {
    fn drop(&mut self) {
        self.shared.memory.drop_blob(self.id);
    }
}

/// One open file over a blob, with its read-ahead.
#[derive(Debug)]
pub struct BlobReader {
    blob: Arc<CachedBlob>,
    begun: AtomicBool,
    ahead: Mutex<ReadAhead>,
    fetched: FetchCount,
}

impl BlobReader {
    /// Makes a reader that has not read anything yet.
    pub fn new(blob: Arc<CachedBlob>) -> Self {
        Self::counted(blob, &FetchCount::default())
    }

    /// Makes such a reader. What is fetched for it counts in `fetched`, too.
    pub fn counted(blob: Arc<CachedBlob>, fetched: &FetchCount) -> Self {
        let fetched = fetched.clone();
        Self { blob, begun: AtomicBool::new(false), ahead: Mutex::default(), fetched }
    }

    /// Returns the blob that it reads.
    pub fn blob(&self) -> &Arc<CachedBlob> {
        &self.blob
    }

    /// Returns true at the first call only, when the file is about to be read for the first time.
    pub fn note_first_read(&self) -> bool {
        !self.begun.load(Ordering::Relaxed) && !self.begun.swap(true, Ordering::Relaxed)
    }

    /// Starts to bring the whole blob if it comes from a store and there is room in memory, and
    /// does not wait.
    pub fn prefetch_whole(&self) {
        let blob = &self.blob;
        if blob.place == LocalFileKind::Node && blob.present.count() < blob.blocks {
            blob.prefetch(0..blob.entry.size, &self.fetched);
        }
    }

    /// Reads up to `length` bytes from `offset`, fewer only at the blob's end. Brings the blocks
    /// that it needs, and starts to bring the bytes that are likely to be read next.
    ///
    /// # Errors
    /// The error of the first block that could not be brought. It has been logged.
    pub async fn read(&self, offset: u64, length: u64) -> Result<Bytes, Arc<CacheError>> {
        let blob = &self.blob;
        let end = offset.saturating_add(length).min(blob.entry.size);
        let ahead =
            self.ahead.lock().unwrap_or_else(PoisonError::into_inner).note_read(offset, end);
        if let Some(ahead) = ahead {
            // The requested blocks come before those that may be read next.
            if offset < end {
                let run = offset / blob.block..end.div_ceil(blob.block);
                blob.request_blocks(run, BlockDemand::Reader, &self.fetched);
            }
            blob.prefetch(ahead, &self.fetched);
        }
        blob.read(offset, length, &self.fetched).await
    }
}
