//! Blobs as local files whose blocks are fetched when first read and checked before anybody sees them.
//!
//! A blob is immutable, so a block that was checked once stays right and needs no coherence. The bytes of a
//! blob lie either in the store's own local file (nothing is copied) or in an unnamed sparse file of ours that
//! fills as blocks arrive; unnamed, so that it goes with the process whatever happens. A blob of which every
//! block was checked is *whole*: the kernel may read its file directly.
//!
//! One fetch a block however many readers wait for it. Never reads more than the blocks asked for.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::try_join_all;

use crate::event::FileEntry;
use crate::metrics::Metrics;
use crate::stores::{Blobs, StoreError};

/// Tries of one fetch before its reader gets EIO; the wait between them doubles from [`RETRY_WAIT`].
const TRIES: u32 = 4;

/// The wait before the second try. Shorter hammers a store that is starting again.
const RETRY_WAIT: Duration = Duration::from_millis(100);

/// Locks that keep two readers from fetching one block twice. Fewer make readers of different blocks wait for
/// each other; more cost memory in every open blob.
const STRIPES: usize = 16;

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The store did not give the bytes.
    #[error("blob {key:?} cannot be read")]
    Store {
        /// The blob.
        key: String,
        /// The store's error.
        #[source]
        source: StoreError,
    },
    /// The bytes are not those that were written.
    #[error("blob {key:?}: block {block} does not match its checksum")]
    Corrupt {
        /// The blob.
        key: String,
        /// The block's index.
        block: u64,
    },
    /// The local file failed.
    #[error("the local file of blob {key:?} failed")]
    Local {
        /// The blob.
        key: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// What a cache may hold.
#[derive(Clone, Copy, Debug)]
pub struct CacheLimits {
    /// Bytes on disk of blobs copied from a store that is not local. Default 10 GiB.
    pub bytes_max: u64,
    /// Blobs kept open that nobody reads. Default 512: each holds a descriptor, and opening again is cheap.
    pub idle_max: usize,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self { bytes_max: 10 << 30, idle_max: 512 }
    }
}

/// The blobs open on this node.
#[derive(Debug)]
pub struct Cache {
    blobs: Arc<dyn Blobs>,
    directory: PathBuf,
    limits: CacheLimits,
    metrics: Arc<Metrics>,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    by_key: HashMap<String, (u64, Arc<CachedBlob>)>,
    clock: u64,
}

impl Cache {
    pub(crate) fn new(
        blobs: Arc<dyn Blobs>,
        directory: PathBuf,
        limits: CacheLimits,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { blobs, directory, limits, metrics, open: Mutex::default() }
    }

    /// The blob that `entry` names, shared by all its readers. Fetches nothing.
    pub fn open(&self, entry: &FileEntry) -> Result<Arc<CachedBlob>, CacheError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.clock += 1;
        let now = open.clock;
        if let Some((used, blob)) = open.by_key.get_mut(&entry.key) {
            // Another document may name the same key with other sums only if one of them lies: each reader is
            // held to its own document.
            if blob.entry.checksums == entry.checksums && blob.entry.size == entry.size {
                *used = now;
                return Ok(blob.clone());
            }
        }
        let blob = Arc::new(self.attach(entry)?);
        open.by_key.insert(entry.key.clone(), (now, blob.clone()));
        self.evict(&mut open);
        Ok(blob)
    }

    fn attach(&self, entry: &FileEntry) -> Result<CachedBlob, CacheError> {
        let local = self.blobs.open_local(&entry.key);
        let stores_own = local.is_some();
        let file = match local {
            Some(file) => file,
            None => unnamed_file(&self.directory, entry.size)
                .map_err(|source| CacheError::Local { key: entry.key.clone(), source })?,
        };
        let blocks = entry.size.div_ceil(entry.checksums.block.max(1));
        let words = usize::try_from(blocks.div_ceil(64)).unwrap_or(usize::MAX);
        Ok(CachedBlob {
            blobs: self.blobs.clone(),
            metrics: self.metrics.clone(),
            entry: entry.clone(),
            file,
            stores_own,
            blocks,
            checked: (0..words).map(|_| AtomicU64::new(0)).collect(),
            checked_count: AtomicU64::new(0),
            fetching: Default::default(),
        })
    }

    /// Lets go of the blobs longest unopened that nobody reads, until the limits hold.
    fn evict(&self, open: &mut Open) {
        let mut idle: Vec<(u64, String)> = open
            .by_key
            .iter()
            .filter(|(_, (_, blob))| Arc::strong_count(blob) == 1)
            .map(|(key, (used, _))| (*used, key.clone()))
            .collect();
        let mut bytes: u64 = open.by_key.values().map(|(_, blob)| blob.bytes_held()).sum();
        if idle.len() <= self.limits.idle_max && bytes <= self.limits.bytes_max {
            return;
        }
        idle.sort_unstable();
        let mut left = idle.len();
        for (_, key) in idle {
            if left <= self.limits.idle_max && bytes <= self.limits.bytes_max {
                break;
            }
            if let Some((_, blob)) = open.by_key.remove(&key) {
                bytes -= blob.bytes_held().min(bytes);
                left -= 1;
            }
        }
    }
}

/// A file without a name, of this length and without any block on disk yet.
fn unnamed_file(directory: &std::path::Path, size: u64) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = File::from(open(directory, flags, Mode::RUSR | Mode::WUSR)?);
    file.set_len(size)?;
    Ok(file)
}

/// One blob's local file and which of its blocks may be read.
#[derive(Debug)]
pub struct CachedBlob {
    blobs: Arc<dyn Blobs>,
    metrics: Arc<Metrics>,
    entry: FileEntry,
    file: File,
    stores_own: bool,
    blocks: u64,
    checked: Vec<AtomicU64>,
    checked_count: AtomicU64,
    fetching: [tokio::sync::Mutex<()>; STRIPES],
}

impl CachedBlob {
    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.entry.size
    }

    /// The file to read without asking further, if every block was checked.
    pub fn whole(&self) -> Option<&File> {
        (self.checked_count.load(Ordering::Acquire) == self.blocks).then_some(&self.file)
    }

    /// Up to `length` bytes from `offset`; fewer only at the end. Fetches and checks the blocks it needs.
    pub async fn read(self: &Arc<Self>, offset: u64, length: u64) -> Result<Bytes, CacheError> {
        let end = offset.saturating_add(length).min(self.entry.size);
        if offset >= end {
            return Ok(Bytes::new());
        }
        self.require(offset, end).await?;
        let this = self.clone();
        if end - offset <= 1 << 20 && self.whole().is_some() {
            // In the page cache nearly always; a hop to a blocking thread would cost more than the read.
            return this.read_file(offset, end);
        }
        blocking(move || this.read_file(offset, end)).await
    }

    /// Fetches and checks every block that the bytes from `offset` to `end` touch.
    pub async fn require(self: &Arc<Self>, offset: u64, end: u64) -> Result<(), CacheError> {
        let end = end.min(self.entry.size);
        if offset >= end {
            return Ok(());
        }
        let block = self.entry.checksums.block.max(1);
        let missing: Vec<u64> =
            (offset / block..end.div_ceil(block)).filter(|index| !self.is_checked(*index)).collect();
        for some in missing.chunks(STRIPES) {
            try_join_all(some.iter().map(|index| self.require_block(*index))).await?;
        }
        Ok(())
    }

    async fn require_block(self: &Arc<Self>, index: u64) -> Result<(), CacheError> {
        let stripe = usize::try_from(index % STRIPES as u64).unwrap_or(0);
        let _one_fetch = self.fetching[stripe].lock().await;
        if self.is_checked(index) {
            return Ok(());
        }
        let start = index * self.entry.checksums.block;
        let end = (start + self.entry.checksums.block).min(self.entry.size);
        let mut wait = RETRY_WAIT;
        let mut tries = 1;
        loop {
            match self.fetch(index, start, end).await {
                Ok(()) => break,
                Err(CacheError::Store { source: StoreError::Unavailable { .. }, .. }) if tries < TRIES => {
                    tokio::time::sleep(wait).await;
                    wait *= 2;
                    tries += 1;
                }
                Err(error) => {
                    tracing::error!(
                        key = self.entry.key,
                        block = index,
                        error = &error as &dyn std::error::Error,
                        "a read of a blob failed"
                    );
                    return Err(error);
                }
            }
        }
        let bit = 1 << (index % 64);
        let word = usize::try_from(index / 64).unwrap_or(usize::MAX);
        if self.checked[word].fetch_or(bit, Ordering::AcqRel) & bit == 0 {
            self.checked_count.fetch_add(1, Ordering::AcqRel);
        }
        Ok(())
    }

    /// One block: read, counted, checked, and written to our file if it is not the store's own.
    async fn fetch(self: &Arc<Self>, index: u64, start: u64, end: u64) -> Result<(), CacheError> {
        let bytes = if self.stores_own {
            None
        } else {
            let bytes = self.blobs.get_range(&self.entry.key, start..end).await;
            Some(bytes.map_err(|source| CacheError::Store { key: self.entry.key.clone(), source })?)
        };
        let this = self.clone();
        blocking(move || {
            let bytes = match &bytes {
                Some(bytes) => bytes,
                None => &this.read_file(start, end)?,
            };
            this.metrics.bytes_fetched.add(bytes.len() as u64);
            if bytes.len() as u64 != end - start || !this.entry.checksums.agrees(index, bytes) {
                return Err(CacheError::Corrupt { key: this.entry.key.clone(), block: index });
            }
            if !this.stores_own {
                this.file.write_all_at(bytes, start).map_err(|source| this.local(source))?;
            }
            Ok(())
        })
        .await
    }

    fn read_file(&self, start: u64, end: u64) -> Result<Bytes, CacheError> {
        let length = usize::try_from(end - start).unwrap_or(usize::MAX);
        let mut buffer = vec![0; length];
        let mut filled = 0;
        while filled < length {
            match self.file.read_at(&mut buffer[filled..], start + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.local(source)),
            }
        }
        buffer.truncate(filled);
        Ok(buffer.into())
    }

    fn is_checked(&self, index: u64) -> bool {
        let word = usize::try_from(index / 64).unwrap_or(usize::MAX);
        self.checked[word].load(Ordering::Acquire) & (1 << (index % 64)) != 0
    }

    /// Bytes on disk that are ours.
    fn bytes_held(&self) -> u64 {
        if self.stores_own {
            0
        } else {
            self.checked_count.load(Ordering::Relaxed) * self.entry.checksums.block
        }
    }

    fn local(&self, source: io::Error) -> CacheError {
        CacheError::Local { key: self.entry.key.clone(), source }
    }
}

/// The one door for blocking work of the data plane.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("blocking work neither panics nor is cancelled")
}
