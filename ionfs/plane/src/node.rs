//! The state that all mounts of one daemon share: the stores, the cache, the counters, the folders
//! and the deadlines.

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
use ion_system::home::{make_home, make_private_folder};
use ion_system::metrics::{PlaneMetrics, Registry, describe_bytes};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::cache::{Cache, CacheLimits};
use crate::upload::{UploadError, store_file, store_with_retries};

/// The number of bytes that one daemon uploads concurrently, in units of [`UPLOAD_UNIT`]: 32 small
/// files, so that a remote store is not idle between them, or three files of many parts.
const UPLOADS_MAX: usize = 32;

/// The bytes of one unit of [`UPLOADS_MAX`]: the most memory that a small file takes.
const UPLOAD_UNIT: u64 = 4 << 20;

/// The number of files, within [`UPLOADS_MAX`], that are uploaded concurrently before an event
/// names them. More would take the disk and the processors from the module that is still writing.
/// When the module closes its event, the remaining files may use all of [`UPLOADS_MAX`].
const BACKGROUND_MAX: usize = 4;

/// The number of files that are uploaded concurrently while they are still being written. They are
/// counted apart from [`UPLOADS_MAX`], because each upload may last as long as its job.
const EARLY_UPLOADS_MAX: usize = 2;

/// The settings of a daemon.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// The folder of all the daemon's state: staging, cache, locks.
    pub home: PathBuf,
    /// Whether the kernel may serve reads of whole blobs by itself, where it can. Default true. If
    /// false, the daemon answers every read, which is slower and gives the same bytes.
    pub passthrough: bool,
    /// How long a close of an event file waits without progress for the stores to make the event
    /// durable. Default 30 s: longer than a replica set's election and a store's restart. A
    /// dispatcher whose document store is unavailable for longer gives up its leases.
    pub commit_deadline: Duration,
    /// How long one read or listing may take. Default 30 s.
    pub read_deadline: Duration,
    /// The limits of the cache.
    pub cache: CacheLimits,
    /// The limits of a job, unless its module sets others.
    pub limits: Limits,
}

impl NodeSettings {
    /// Returns the default settings, with all state below `home`.
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

/// The shared state of one daemon.
#[derive(Debug)]
pub struct Node {
    /// The stores.
    pub plane: DataPlane,
    /// The daemon's settings.
    pub settings: NodeSettings,
    /// The cache of verified blocks of blobs.
    pub cache: Cache,
    /// The daemon's counters.
    pub metrics: Arc<PlaneMetrics>,
    /// Bounds the concurrent uploads.
    uploads: Semaphore,
    /// Bounds the concurrent uploads that no event waits for.
    pub background: Semaphore,
    /// Bounds the concurrent uploads of files that are still being written.
    pub early_uploads: Arc<Semaphore>,
    passthrough_refused: AtomicBool,
}

impl Node {
    /// Makes the shared state of a daemon over these stores, and its folders.
    ///
    /// # Errors
    /// When the daemon's folders cannot be made.
    pub fn new(plane: DataPlane, settings: NodeSettings) -> std::io::Result<Arc<Self>> {
        make_home(&settings.home)?;
        make_private_folder(&settings.home.join("jobs"))?;
        let cache_dir = settings.home.join("cache");
        make_private_folder(&cache_dir)?;
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

    /// Waits for a permit to upload a file of this many bytes. All jobs share the permits.
    pub async fn acquire_upload_permit(&self, bytes: u64) -> SemaphorePermit<'_> {
        let units = bytes.min(IN_FLIGHT_MAX).div_ceil(UPLOAD_UNIT).max(1);
        let units = u32::try_from(units).expect("a few parts");
        self.uploads.acquire_many(units).await.expect("the semaphore is never closed")
    }

    /// Waits for an upload permit, then stores an open file that nobody writes to any more, from
    /// its beginning to its end, whatever its position. Returns its entry under `name`. `key`
    /// returns the key for each [try](store_with_retries).
    ///
    /// # Errors
    /// When the file cannot be read, or the store fails.
    pub async fn store_file(
        &self,
        key: impl Fn(u32) -> String,
        name: String,
        file: File,
    ) -> Result<FileEntry, UploadError> {
        let unreadable = |source| UploadError::Read { path: name.clone(), source };
        let bytes = file.metadata().map_err(unreadable)?.len();
        let _turn = self.acquire_upload_permit(bytes).await;
        let (blobs, file, name, unreadable) = (&*self.plane.blobs, &file, &name, &unreadable);
        let store = |number| {
            let key = key(number);
            async move {
                let mut same = file.try_clone().map_err(unreadable)?;
                same.rewind().map_err(unreadable)?;
                store_file(blobs, key, name.clone(), same, &AtomicU64::new(0), None).await
            }
        };
        let entry = store_with_retries(store).await?;
        self.metrics.bytes_uploaded.add(entry.size);
        Ok(entry)
    }

    /// Registers the metrics of this daemon and of its stores, with their names.
    pub fn describe(self: &Arc<Self>, registry: &mut Registry) {
        self.metrics.describe(registry);
        let node = self.clone();
        describe_bytes(registry, "cache_memory", "Memory taken by blocks of blobs.", move || {
            node.cache.memory_taken()
        });
    }

    /// Returns whether to offer the kernel a file to read by itself.
    pub fn may_pass_through(&self) -> bool {
        self.settings.passthrough && !self.passthrough_refused.load(Ordering::Relaxed)
    }

    /// Records that the kernel refused passthrough. It would refuse again, so from now on the
    /// daemon answers all reads.
    pub fn disable_passthrough(&self, error: &std::io::Error) {
        if !self.passthrough_refused.swap(true, Ordering::Relaxed) {
            tracing::info!(
                %error,
                "the kernel refuses passthrough; the daemon answers reads itself"
            );
        }
    }
}

/// Returns the folder of one attempt, which holds its staged files and its live log.
pub fn job_dir(home: &Path, job: &JobId, attempt: u32) -> PathBuf {
    home.join("jobs").join(format!("{job}-{attempt}"))
}

/// Returns the path of the file that keeps an attempt's output while it runs.
pub fn live_log_path(home: &Path, job: &JobId, attempt: u32) -> PathBuf {
    job_dir(home, job, attempt).join("log")
}
