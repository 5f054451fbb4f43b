//! The node's cache of blobs. It holds blocks in memory and on the local disk, fetches a block when
//! it is first read, and compares it with its checksum before a reader receives it.
//!
//! A blob is immutable, so blocks need no cache coherence: a block is right or it is not. The bytes
//! of a blob are in one of three places: in the store's own local file (nothing is copied); in a
//! file of the node's cache folder, which fills as blocks arrive and outlives the daemon; or in the
//! staging folder of the job that made the blob, while that job runs. A blob is *whole* when every
//! block has been compared: the kernel may then read its file directly.
//!
//! Reads go through memory, block by block. A block is fetched once, however many readers wait for
//! it. One budget covers all blocks in memory, however many files are open.

mod ahead;
mod blob;
mod buffer;
mod disk;
mod memory;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ion_model::checksum;
use ion_model::event::FileEntry;
use ion_stores::{Blobs, StoreError};
use ion_system::metrics::PlaneMetrics;
use tokio::sync::Semaphore;

use self::blob::LocalFileKind;
pub use self::blob::{BlobReader, CachedBlob, FetchCount};
use self::buffer::Buffers;
use self::disk::DiskCache;
use self::memory::BlockMemory;

/// The number of concurrent requests to the store: enough for a remote store, and few enough for
/// its rate limits.
const FETCHES_MAX: usize = 32;

/// The largest block size that a document may name, in bytes. A whole block is in memory, so a
/// larger size is refused as an error in the document.
const BLOCK_MAX: u64 = 64 << 20;

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The store did not return the bytes.
    #[error("blob {key:?} cannot be read")]
    Store {
        /// The blob's key.
        key: String,
        /// The store's error.
        #[source]
        source: StoreError,
    },
    /// The bytes differ from those that were written.
    #[error("blob {key:?}: block {block} does not match its checksum")]
    Corrupt {
        /// The blob's key.
        key: String,
        /// The block's index.
        block: u64,
    },
    /// The blob's document names a block size above the limit, which no document of Ion's does.
    #[error("blob {key:?} has blocks of {block} bytes, which is more than this version reads")]
    Block {
        /// The blob's key.
        key: String,
        /// The size of the blob's blocks, in bytes.
        block: u64,
    },
    /// The blob's local file could not be opened or read.
    #[error("the local file of blob {key:?} failed")]
    Local {
        /// The blob's key.
        key: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// The limits of a cache.
#[derive(Clone, Copy, Debug)]
pub struct CacheLimits {
    /// Bytes on disk, for blobs copied from a store that is not local. Default 10 GiB.
    pub disk_bytes: u64,
    /// Bytes in memory, for blocks. Default: see [`default_memory`].
    pub memory_bytes: u64,
    /// The number of blobs that are kept open although nobody reads them. Default 2,048, and at
    /// most a quarter of the file descriptors that this process may have, because each blob holds
    /// one. A blob that was closed and is opened again is compared again.
    pub idle_max: usize,
}

impl Default for CacheLimits {
    fn default() -> Self {
        let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let idle_max =
            descriptors.map_or(2048, |most| usize::try_from(most / 4).unwrap_or(2048).min(2048));
        Self { disk_bytes: 10 << 30, memory_bytes: default_memory(), idle_max }
    }
}

/// Returns the default memory budget in bytes: a 256th of the memory that this process may use (its
/// cgroup's limit, or the machine's memory), between 64 and 256 MiB, the most that two to eight
/// streams read ahead.
pub fn default_memory() -> u64 {
    let machine = rustix::system::sysinfo();
    let machine = machine.totalram as u64 * u64::from(machine.mem_unit.max(1));
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        match (parts.next()?, parts.next()?) {
            ("", group) => number(&format!("/sys/fs/cgroup{group}/memory.max")),
            ("memory", group) => {
                number(&format!("/sys/fs/cgroup/memory{group}/memory.limit_in_bytes"))
            }
            _ => None,
        }
    });
    // In a container, the process sees its own cgroup as the root.
    let root = number("/sys/fs/cgroup/memory.max");
    let least = own.chain(root).chain([machine]).min().unwrap_or(machine);
    (least / 256).clamp(64 << 20, 256 << 20)
}

/// The state that all open blobs share.
#[derive(Debug)]
struct CacheShared {
    blobs: Arc<dyn Blobs>,
    metrics: Arc<PlaneMetrics>,
    memory: BlockMemory,
    buffers: Arc<Buffers>,
    disk: DiskCache,
    fetches: Semaphore,
    next_id: AtomicU64,
    idle_max: usize,
    making_room: AtomicBool,
    open: Mutex<OpenBlobs>,
}

#[derive(Debug, Default)]
struct OpenBlobs {
    by_key: HashMap<String, OpenBlob>,
    /// Counts the openings.
    clock: u64,
}

#[derive(Debug)]
struct OpenBlob {
    /// The clock when the blob was last opened.
    used: u64,
    blob: Arc<CachedBlob>,
}

impl OpenBlob {
    /// Returns whether nobody but the cache has the blob.
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.blob) == 1
    }
}

impl OpenBlobs {
    /// Returns the open blob of this entry. Two documents can name the same key with different
    /// checksums only if one of them is wrong. So an entry never shares a blob with other
    /// checksums.
    fn find(&mut self, entry: &FileEntry) -> Option<&mut OpenBlob> {
        self.by_key.get_mut(&entry.key).filter(|open| open.blob.matches_entry(entry))
    }
}

impl CacheShared {
    fn lock_open_blobs(&self) -> MutexGuard<'_, OpenBlobs> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to remove files from the cache folder if it has little room left. The documentation
    /// of `disk` says which files are removed.
    fn make_room_if_full(self: &Arc<Self>) {
        if !self.disk.is_nearly_full() || self.making_room.swap(true, Ordering::AcqRel) {
            return;
        }
        let this = self.clone();
        tokio::task::spawn_blocking(move || {
            let in_use: HashSet<String> = {
                let mut open = this.lock_open_blobs();
                // An open blob keeps its space on the disk even when its file is removed.
                open.by_key.retain(|_, open| !open.is_idle());
                open.by_key.values().map(|open| DiskCache::file_name(open.blob.entry())).collect()
            };
            this.disk.make_room(&in_use);
            this.making_room.store(false, Ordering::Release);
        });
    }
}

/// The cache of blobs on this node.
#[derive(Debug)]
pub struct Cache {
    shared: Arc<CacheShared>,
}

impl Cache {
    pub(crate) fn new(
        blobs: Arc<dyn Blobs>,
        directory: PathBuf,
        limits: CacheLimits,
        metrics: Arc<PlaneMetrics>,
    ) -> Self {
        Self {
            shared: Arc::new(CacheShared {
                blobs,
                metrics,
                memory: BlockMemory::new(limits.memory_bytes),
                buffers: Buffers::new(usize::try_from(checksum::BLOCK_BYTES).unwrap_or(usize::MAX)),
                disk: DiskCache::new(directory, limits.disk_bytes),
                fetches: Semaphore::new(FETCHES_MAX),
                next_id: AtomicU64::new(0),
                idle_max: limits.idle_max,
                making_room: AtomicBool::new(false),
                open: Mutex::default(),
            }),
        }
    }

    /// Opens the blob that `entry` names. All its readers share the returned value. Fetches
    /// nothing.
    ///
    /// # Errors
    /// When the blob's local file cannot be made, or `entry` names a block size above the limit.
    pub fn open(&self, entry: &FileEntry) -> Result<Arc<CachedBlob>, CacheError> {
        if entry.checksums.block > BLOCK_MAX {
            return Err(CacheError::Block { key: entry.key.clone(), block: entry.checksums.block });
        }
        let mut open = self.shared.lock_open_blobs();
        open.clock += 1;
        let now = open.clock;
        if let Some(found) = open.find(entry) {
            found.used = now;
            return Ok(found.blob.clone());
        }
        let (place, file) = match self.shared.blobs.open_local(&entry.key) {
            Some(file) => (LocalFileKind::Store, file),
            None => {
                let local = |source| CacheError::Local { key: entry.key.clone(), source };
                (
                    LocalFileKind::Node,
                    self.shared
                        .disk
                        .open(&DiskCache::file_name(entry), entry.size)
                        .map_err(local)?,
                )
            }
        };
        Ok(self.insert(&mut open, entry, place, file))
    }

    /// Adds a blob that a job of this node has made. `file` is the blob's staged file, so that its
    /// readers need not ask the store. Returns whether the caller must call
    /// [`Cache::end_staged_file`] when the job has ended.
    pub fn add_staged_file(&self, entry: &FileEntry, file: File) -> bool {
        if self.shared.blobs.open_local(&entry.key).is_some() {
            return false;
        }
        let mut open = self.shared.lock_open_blobs();
        if open.find(entry).is_none() {
            open.clock += 1;
            self.insert(&mut open, entry, LocalFileKind::Producer, file);
        }
        true
    }

    /// Ends the use of a staged file, because the job that made the blob has ended. `file` is the
    /// staged file if its content is still that of the blob: the cache then keeps the file.
    /// Otherwise the cache forgets the blob.
    pub fn end_staged_file(&self, entry: &FileEntry, file: Option<&File>) {
        let kept = file.is_some_and(|file| {
            self.shared.disk.link_file(&DiskCache::file_name(entry), file).is_ok()
        });
        let mut open = self.shared.lock_open_blobs();
        if let Some(found) = open.find(entry) {
            if kept {
                found.blob.freeze();
            } else {
                open.by_key.remove(&entry.key);
            }
        }
        drop(open);
        self.shared.make_room_if_full();
    }

    /// Returns the number of bytes that blocks take in memory now.
    pub fn memory_taken(&self) -> u64 {
        self.shared.memory.taken_bytes()
    }

    fn insert(
        &self,
        open: &mut OpenBlobs,
        entry: &FileEntry,
        place: LocalFileKind,
        file: File,
    ) -> Arc<CachedBlob> {
        let blob = Arc::new(CachedBlob::new(self.shared.clone(), entry, place, file));
        let opened = OpenBlob { used: open.clock, blob: blob.clone() };
        open.by_key.insert(entry.key.clone(), opened);
        let idle_max = self.shared.idle_max;
        if open.by_key.len() > idle_max {
            let idle = open.by_key.iter().filter(|(_, open)| open.is_idle());
            let mut idle: Vec<(u64, String)> =
                idle.map(|(key, open)| (open.used, key.clone())).collect();
            idle.sort_unstable();
            // Removes several at once, so that this search does not run for every blob.
            for (_, key) in idle.iter().take((idle.len() + idle_max / 8).saturating_sub(idle_max)) {
                open.by_key.remove(key);
            }
        }
        blob
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // Each open blob holds a reference to the shared state, which in turn holds the blobs: this
        // breaks the cycle.
        let open = std::mem::take(&mut *self.shared.lock_open_blobs());
        drop(open);
    }
}

#[cfg(test)]
mod tests;
