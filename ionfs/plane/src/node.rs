//! What all mounts of one daemon share: the stores, the cache, the counters, the folders and the
//! deadlines.

use std::fs::File;
use std::io::Seek as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ion_model::event::FileEntry;
use ion_model::id::JobId;
use ion_model::limits::Limits;
use ion_stores::DataPlane;
use ion_stores::object::IN_FLIGHT_MAX;
use ion_system::home::{make_home, private_folder};
use ion_system::metrics::{Metrics, Registry, describe_bytes};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::cache::{Cache, CacheLimits};
use crate::upload::{UploadError, in_tries, store_file};

/// Bytes of files that one daemon has under way to the store, in units of [`UPLOAD_UNIT`]: 32 small
/// files at a time, so that a remote store is not idle between them, or three of many parts.
const UPLOADS_MAX: usize = 32;

/// Bytes of one of [`UPLOADS_MAX`]: what a small file takes of memory at most.
const UPLOAD_UNIT: u64 = 4 << 20;

/// Files of [`UPLOADS_MAX`] that are uploaded before an event names them. More take the disk and
/// the processors from the module that goes on writing; what is left when it closes its event has
/// all places.
const BACKGROUND_MAX: usize = 4;

/// Files uploaded at the same time while they are still being written: beside [`UPLOADS_MAX`], as
/// each may last as long as its job.
const EARLY_UPLOADS_MAX: usize = 2;

/// How a daemon behaves.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// The folder of all state: staging, cache, locks.
    pub home: PathBuf,
    /// Whether the kernel may serve whole blobs by itself, where it can. Default true; off, the
    /// daemon answers every read: slower, and the same to see.
    pub passthrough: bool,
    /// How long a close of an event file waits while nothing moves until the stores have made it
    /// durable. Default 30 s: it outlasts a replica set's election and a store's restart; a
    /// dispatcher whose document store is away for longer gives up its leases.
    pub commit_deadline: Duration,
    /// How long one read or listing may take. Default 30 s.
    pub read_deadline: Duration,
    /// What the cache may hold.
    pub cache: CacheLimits,
    /// What a job may take unless its module says otherwise.
    pub limits: Limits,
}

impl NodeSettings {
    /// The defaults, with all state below `home`.
    pub fn new(home: impl Into<PathBuf>) -> Self {
        Self {
            home: home.into(),
            passthrough: true,
            commit_deadline: Duration::from_secs(30),
            read_deadline: Duration::from_secs(30),
            cache: CacheLimits::default(),
            limits: Limits::default(),
        }
    }
}

/// One daemon's shared parts.
#[derive(Debug)]
pub struct Node {
    /// The stores.
    pub plane: DataPlane,
    /// How it behaves.
    pub settings: NodeSettings,
    /// Verified blocks of blobs.
    pub cache: Cache,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Bounds the uploads under way.
    uploads: Semaphore,
    /// Bounds those of them that no event waits for.
    pub background: Semaphore,
    /// Bounds those of files that are still being written.
    pub early_uploads: Arc<Semaphore>,
    passthrough_refused: AtomicBool,
}

impl Node {
    /// A daemon over these stores.
    ///
    /// # Errors
    /// When its folders cannot be made.
    pub fn new(plane: DataPlane, settings: NodeSettings) -> std::io::Result<Arc<Self>> {
        make_home(&settings.home)?;
        private_folder(&settings.home.join("jobs"))?;
        let cache_dir = settings.home.join("cache");
        private_folder(&cache_dir)?;
        let metrics = plane.metrics.clone();
        let cache = Cache::new(plane.blobs.clone(), cache_dir, settings.cache, metrics.clone());
        Ok(Arc::new(Self {
            plane,
            settings,
            cache,
            metrics,
            uploads: Semaphore::new(UPLOADS_MAX),
            background: Semaphore::new(BACKGROUND_MAX),
            early_uploads: Arc::new(Semaphore::new(EARLY_UPLOADS_MAX)),
            passthrough_refused: AtomicBool::new(false),
        }))
    }

    /// A turn to upload a file of so many bytes: all jobs share them.
    pub async fn upload_turn(&self, bytes: u64) -> SemaphorePermit<'_> {
        let units = bytes.min(IN_FLIGHT_MAX).div_ceil(UPLOAD_UNIT).max(1);
        let units = u32::try_from(units).expect("a few parts");
        self.uploads.acquire_many(units).await.expect("the semaphore is never closed")
    }

    /// Stores an open file that nobody writes to any more, in its turn among all that is uploaded,
    /// and gives its entry under `name`. From its beginning to its end, wherever it stands. `key`
    /// gives a key for each [try](in_tries).
    ///
    /// # Errors
    /// When it cannot be read, or the store does not take it.
    pub async fn store(
        &self,
        key: impl Fn(u32) -> String,
        name: String,
        file: File,
    ) -> Result<FileEntry, UploadError> {
        let unreadable = |source| UploadError::Read { path: name.clone(), source };
        let bytes = file.metadata().map_err(unreadable)?.len();
        let _turn = self.upload_turn(bytes).await;
        let (blobs, file, name, unreadable) = (&*self.plane.blobs, &file, &name, &unreadable);
        let store = |number| {
            let key = key(number);
            async move {
                let mut same = file.try_clone().map_err(unreadable)?;
                same.rewind().map_err(unreadable)?;
                store_file(blobs, key, name.clone(), same, &AtomicU64::new(0), None).await
            }
        };
        let entry = in_tries(store).await?;
        self.metrics.bytes_uploaded.add(entry.size);
        Ok(entry)
    }

    /// Gives the numbers of this daemon and of its stores their names.
    pub fn describe(self: &Arc<Self>, registry: &mut Registry) {
        self.metrics.describe(registry);
        let node = self.clone();
        describe_bytes(registry, "cache_memory", "Memory taken by blocks of blobs.", move || {
            node.cache.memory_taken()
        });
    }

    /// Whether to offer the kernel a file of its own.
    pub fn may_pass_through(&self) -> bool {
        self.settings.passthrough && !self.passthrough_refused.load(Ordering::Relaxed)
    }

    /// The kernel refused: it would refuse again, so the daemon answers from now on.
    pub fn passthrough_was_refused(&self, error: &std::io::Error) {
        if !self.passthrough_refused.swap(true, Ordering::Relaxed) {
            tracing::info!(%error, "the kernel refuses passthrough; the daemon answers reads itself");
        }
    }
}

/// The folder of one attempt: its staged files and its live log.
pub fn job_dir(home: &Path, job: &JobId, attempt: u32) -> PathBuf {
    home.join("jobs").join(format!("{job}-{attempt}"))
}

/// Where an attempt's output is kept while it runs.
pub fn live_log(home: &Path, job: &JobId, attempt: u32) -> PathBuf {
    job_dir(home, job, attempt).join("log")
}
