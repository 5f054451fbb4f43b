//! The uploads: closed files become blobs, in the background once they are closed, and at the
//! latest when an event names them.
//!
//! The table says which blob holds which generation of a file, so that a file that was not changed
//! is stored once. A blob that no event has named is removed when its file is gone or changes.

mod delivered;
mod early;
mod own_blobs;
mod paths;

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use ion_model::event::{FileEntry, clean_path, is_draft};
use ion_model::source::{STATE_KEYS, state_prefix};
use ion_plane::commit::{DirectoryContent, Origin, Refusal, Staging};
use ion_plane::node::Node as Daemon;
use ion_plane::upload::{UploadError, store_file};
use ion_stores::DataPlane;
use rustix::fs::OFlags;
use tokio::sync::SemaphorePermit;
use tokio::time::Instant;

pub(super) use self::delivered::DeliveredContent;
use self::own_blobs::OwnBlobs;
use self::paths::{OUT_DATA, check_name, directory_content, resolve_file};
use super::super::{Errno, Ino, errno};
use super::closed::ClosedFiles;
use super::content::{StagedContent, WritersLeft};
use super::delivery::INBOX;
use super::staging::StagingArea;
use super::table::{BlobCell, OrphanedFile, Orphans, OutputTable, StoredContent};
use super::tasks::JobTasks;

/// How long a commit waits for the RELEASE of a handle that was closed: the kernel sends it after
/// close() has returned. A shorter time refuses events on a busy machine; a longer one delays the
/// refusal of a file that really is open.
const RELEASE_WAIT: Duration = Duration::from_secs(2);

/// How often a commit tries to name a file that the module goes on writing and closing.
const NAMING_TRIES: usize = 3;

/// The most files of one job that wait for an upload permit at the same time. All jobs together get
/// fewer permits than they ask for.
const STORERS_MAX: usize = 4;

/// How long a closed file rests before it is stored ahead of its event. A file that lives for less,
/// as most temporary files do, is never stored; a longer time would shorten the head start of the
/// other files.
const REST_BEFORE_STORE: Duration = Duration::from_millis(100);

/// The uploads of one attempt.
#[derive(Debug)]
pub(super) struct StagedUploads {
    staging: Arc<StagingArea>,
    content: Arc<StagedContent>,
    daemon: Arc<Daemon>,
    tasks: JobTasks,
    /// Data files whose last writer is gone.
    closed: Arc<ClosedFiles<RestingFile>>,
    own_blobs: Arc<OwnBlobs>,
    keys: UploadKeys,
    /// Bytes that uploads have moved. A request that waits for uploads may wait while this grows.
    moved: Arc<AtomicU64>,
    /// Bytes of files that were stored as blobs.
    stored: AtomicU64,
    /// Files as events named them, for their next reader on this node.
    named: Mutex<Vec<NamedFile>>,
}

/// A closed file that rests until it is stored.
#[derive(Clone, Copy, Debug)]
struct RestingFile {
    ino: Ino,
    /// The time from which it can be stored.
    until: Instant,
}

/// A file, and its entry in an event.
#[derive(Debug)]
struct NamedFile {
    ino: Ino,
    entry: FileEntry,
}

/// What the keys of the blobs begin with.
#[derive(Clone, Debug)]
pub(super) enum UploadKeys {
    /// Of one attempt.
    Job {
        /// Those of the files in `out/data`.
        files: Arc<str>,
        /// Those of the state that the job leaves.
        state: String,
    },
    /// Of an inbox: each delivery has its own beginning.
    Inbox,
}

impl UploadKeys {
    /// Returns what the keys of an attempt's blobs begin with.
    pub(super) fn of_attempt(origin: &Origin) -> Self {
        let correlation = &origin.parent.correlation_id;
        let attempt = format!("{}/{}", origin.job_id, origin.attempt);
        Self::Job {
            files: format!("{correlation}/{attempt}").into(),
            state: format!("{}/{attempt}", state_prefix(correlation)),
        }
    }
}

/// The path of a file as its event will name it, and what the key of its blob begins with.
#[derive(Clone, Debug)]
struct UploadPlace {
    path: String,
    prefix: Arc<str>,
}

/// The blob that holds a file's content, and who made it.
#[derive(Debug)]
enum ContentBlob {
    /// A blob of this job.
    Own(FileEntry),
    /// A blob of an ancestor event. The file refers to it, from the first byte to the last.
    OfAnAncestor(FileEntry),
}

impl StagedUploads {
    pub(super) fn new(
        staging: Arc<StagingArea>,
        content: Arc<StagedContent>,
        daemon: Arc<Daemon>,
        tasks: JobTasks,
        keys: UploadKeys,
    ) -> Arc<Self> {
        let (blobs, runtime) = (daemon.plane.blobs.clone(), tasks.runtime().clone());
        Arc::new(Self {
            staging,
            content,
            daemon,
            tasks,
            closed: ClosedFiles::new(STORERS_MAX),
            own_blobs: OwnBlobs::new(blobs, runtime),
            keys,
            moved: Arc::default(),
            stored: AtomicU64::new(0),
            named: Mutex::default(),
        })
    }

    /// Returns the bytes that uploads have moved.
    pub(super) fn bytes_moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Returns the bytes of the files that were stored as blobs.
    pub(super) fn bytes_stored(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }

    /// Stores a closed file in the background, once it has rested.
    pub(super) fn store_in_background(self: &Arc<Self>, ino: Ino) {
        self.closed.add(RestingFile { ino, until: Instant::now() + REST_BEFORE_STORE });
        let this = self.clone();
        self.closed.start_workers(&self.tasks, move |file: RestingFile| {
            let this = this.clone();
            async move {
                tokio::time::sleep_until(file.until).await;
                if let Err(refusal) = this.store_ahead(file.ino).await {
                    tracing::debug!(
                        %refusal,
                        "a file was not stored ahead; its event will try again"
                    );
                }
            }
        });
    }

    /// Stores a file before an event names it.
    async fn store_ahead(&self, ino: Ino) -> Result<(), Refusal> {
        let _place = self.daemon.background.acquire().await.expect("the semaphore is never closed");
        let _turn = self.upload_turn(ino).await;
        match self.staging.lock().file_mut(ino) {
            Ok(file) => file.upload_waits = false,
            // The file was removed while it waited.
            Err(_) => return Ok(()),
        }
        let place = self.place_ahead(&self.staging.lock(), ino);
        match place {
            Some(place) => self.store(ino, &place).await.map(|_| ()),
            None => Ok(()),
        }
    }

    /// Returns the place of a file that an event may name later; none for drafts and for files that
    /// no event can name.
    fn place_ahead(&self, table: &OutputTable, ino: Ino) -> Option<UploadPlace> {
        let path = table.path(ino)?;
        let place = match &self.keys {
            UploadKeys::Job { files, .. } => {
                let path = path.strip_prefix("data").ok()?.to_str()?.to_owned();
                UploadPlace { path, prefix: files.clone() }
            }
            UploadKeys::Inbox => {
                let (around, delivery) = table.delivery_around(ino)?;
                let above = if around == ino { table.place(ino)?.0 } else { around };
                let path = path.strip_prefix(table.path(above)?).ok()?.to_str()?.to_owned();
                UploadPlace { path, prefix: delivery.blob_prefix().into() }
            }
        };
        let name = place.path.rsplit('/').next();
        (!name.is_some_and(is_draft)).then_some(place)
    }

    /// Waits for a permit to upload a file of its current length.
    async fn upload_turn(&self, ino: Ino) -> SemaphorePermit<'_> {
        let bytes = self.staging.getattr(ino).map_or(0, |attr| attr.size);
        self.daemon.acquire_upload_permit(bytes).await
    }

    /// Stores the file's current content, unless it is stored already. The caller must hold an
    /// upload permit.
    async fn store(&self, ino: Ino, place: &UploadPlace) -> Result<ContentBlob, Refusal> {
        let UploadPlace { path, prefix } = place;
        let (generation, cell, former) = {
            let mut table = self.staging.lock();
            let missing = |_| Refusal::Missing(path.clone());
            let file = table.file_mut(ino).map_err(missing)?;
            let reference = file.reference.as_ref();
            if let Some(whole) = reference.filter(|reference| reference.is_whole()) {
                return Ok(ContentBlob::OfAnAncestor(FileEntry::clone(whole.entry())));
            }
            let generation = file.generation;
            match &file.stored {
                Some(stored) if stored.generation == generation && stored.prefix == *prefix => {
                    (generation, stored.blob.clone(), None)
                }
                _ => {
                    let (cell, prefix) = (BlobCell::default(), prefix.clone());
                    let stored = StoredContent { generation, prefix, blob: cell.clone() };
                    (generation, cell, file.stored.replace(stored))
                }
            }
        };
        if let Some(former) = former
            && let Some(entry) = former.blob.get()
        {
            self.own_blobs.discard(&entry.key);
        }
        let entry = cell.get_or_try_init(|| self.upload(ino, place)).await?.clone();
        let now = {
            let table = self.staging.lock();
            table.file(ino).ok().filter(|_| table.is_in_use(ino)).map(|file| file.generation)
        };
        // The file was written to while it was read: the blob may hold parts of both contents.
        if now == Some(generation) {
            return Ok(ContentBlob::Own(entry));
        }
        self.own_blobs.discard(&entry.key);
        Err(Refusal::StillOpen(path.to_owned()))
    }

    /// Stores the file's current content for an event that is about to name it: no later content
    /// removes the blob.
    async fn store_for_event(&self, ino: Ino, place: &UploadPlace) -> Result<FileEntry, Refusal> {
        for _ in 0..NAMING_TRIES {
            let stored = {
                let _turn = self.upload_turn(ino).await;
                self.store(ino, place).await?
            };
            match stored {
                ContentBlob::OfAnAncestor(entry) => return Ok(entry),
                ContentBlob::Own(entry) if self.own_blobs.keep_for_event(&entry.key) => {
                    return Ok(entry);
                }
                // The file was written to and closed again since it was stored; that blob is being
                // removed.
                ContentBlob::Own(_) => {}
            }
        }
        Err(Refusal::StillOpen(place.path.clone()))
    }

    /// Returns the entry of a stored file as an event names it: with its current attributes.
    fn entry_for_event(
        &self,
        ino: Ino,
        path: &str,
        stored: FileEntry,
    ) -> Result<FileEntry, Refusal> {
        let attr = self.staging.getattr(ino).map_err(|_| Refusal::Missing(path.to_owned()))?;
        let (mtime, mtime_nanos) = ion_model::clock::millis_and_nanos(attr.mtime);
        let mode = u32::from(attr.perm);
        Ok(FileEntry { name: path.to_owned(), mtime, mtime_nanos, mode, ..stored })
    }

    /// Returns a new key for a blob of the state that the job leaves.
    pub(super) fn state_key(&self, path: &str) -> String {
        let prefix = match &self.keys {
            UploadKeys::Job { state, .. } => state,
            UploadKeys::Inbox => INBOX,
        };
        self.own_blobs.fresh_key(prefix, path)
    }

    /// Returns what the keys of the files in `out/data` begin with.
    fn job_prefix(&self) -> Arc<str> {
        match &self.keys {
            UploadKeys::Job { files, .. } => files.clone(),
            UploadKeys::Inbox => INBOX.into(),
        }
    }

    /// Returns the plane that blobs are stored in.
    pub(super) fn plane(&self) -> &DataPlane {
        &self.daemon.plane
    }

    /// Stores a file of `out/state`, unless the blob that it refers to is of an earlier state. All
    /// other blobs are removed with their correlation, and the state outlives it.
    pub(super) async fn store_state_file(
        &self,
        ino: Ino,
        path: &str,
    ) -> Result<FileEntry, Refusal> {
        let kept = self.content.blob_of(ino).ok().flatten();
        let kept = kept
            .filter(|(entry, length)| entry.key.starts_with(STATE_KEYS) && *length == entry.size);
        if let Some((entry, _)) = kept {
            return Ok(FileEntry { name: path.to_owned(), ..FileEntry::clone(&entry) });
        }
        let unreadable =
            |error: io::Error| Refusal::Unreadable { path: path.to_owned(), source: error };
        let filled = self.content.fill_all(ino).await;
        filled.map_err(|error| unreadable(error.into()))?;
        let file = self.staging.open_file(&self.staging.lock(), ino, OFlags::RDONLY);
        let file = file.map_err(|errno| unreadable(errno.into()))?;
        let key = self.state_key(path);
        self.own_blobs.note_upload(&key);
        let blobs = &*self.daemon.plane.blobs;
        let entry = store_file(blobs, key, path.to_owned(), file, &self.moved, None).await?;
        self.own_blobs.keep_for_event(&entry.key);
        self.stored.fetch_add(entry.size, Ordering::Relaxed);
        Ok(entry)
    }

    /// Uploads the file's current content.
    async fn upload(&self, ino: Ino, place: &UploadPlace) -> Result<FileEntry, Refusal> {
        let UploadPlace { path, prefix } = place;
        if let Some(write) = self.staging.lock().file(ino).ok().and_then(|file| file.failed) {
            return Err(Refusal::NotWhole { path: path.to_owned(), source: write.errno.into() });
        }
        let unreadable =
            |errno: Errno| Refusal::Unreadable { path: path.to_owned(), source: errno.into() };
        // A failure here is not recorded as a failed read: an event that names the file is refused,
        // and if no event names it, nothing has read the bytes.
        let filled = self.content.fill_all(ino).await;
        filled
            .map_err(|error| Refusal::Unreadable { path: path.to_owned(), source: error.into() })?;
        let in_order = self.staging.lock().file_mut(ino).ok().and_then(|file| {
            let (sums, upload) = file.in_order.as_mut()?.take_upload();
            Some((file.generation, sums, upload))
        });
        let (written, early) = match in_order {
            Some((generation, sums, upload)) => (Some((generation, sums)), upload),
            None => (None, None),
        };
        // An upload that follows a file under another beginning of its key is given up.
        let early = early.filter(|early| early.key().starts_with(&**prefix));
        let stored = match self.finish_early_upload(early).await {
            Some(stored) => stored,
            None => {
                let file = self.open_own_content(ino).map_err(unreadable)?;
                let key = self.own_blobs.fresh_key(prefix, path);
                self.own_blobs.note_upload(&key);
                let blobs = &*self.daemon.plane.blobs;
                store_file(blobs, key, path.to_owned(), file, &self.moved, None).await
            }
        };
        let entry = stored.map_err(|error| match error {
            UploadError::Read { source, .. } => {
                // The disk reports lost data only once, so remember the error.
                self.content.note_failure(ino, 0, errno(&source));
                Refusal::Unreadable { path: path.to_owned(), source }
            }
            error => error.into(),
        })?;
        self.daemon.metrics.bytes_uploaded.add(entry.size);
        self.stored.fetch_add(entry.size, Ordering::Relaxed);
        if let Some((generation, sums)) = written
            && sums.total() == entry.size
            && sums.finish() != entry.checksums
            && self.staging.lock().file(ino).is_ok_and(|file| file.generation == generation)
        {
            tracing::error!(path, "the disk gives back other bytes than were written to it");
            self.content.note_failure(ino, 0, Errno::IO);
            return Err(Refusal::NotWhole { path: path.to_owned(), source: Errno::IO.into() });
        }
        Ok(entry)
    }

    /// Opens the staged file of content that is not a reference. The staged file of a reference
    /// does not hold its bytes.
    fn open_own_content(&self, ino: Ino) -> Result<File, Errno> {
        self.open_own_content_in(&self.staging.lock(), ino)
    }

    /// Like [`StagedUploads::open_own_content`], for a caller that holds the table.
    fn open_own_content_in(&self, table: &OutputTable, ino: Ino) -> Result<File, Errno> {
        if table.file(ino)?.reference.is_some() {
            return Err(Errno::NOENT);
        }
        self.staging.open_file(table, ino, OFlags::RDONLY)
    }

    /// Waits until no handle can write the file any more. Fails at once if a handle was not closed
    /// yet; if it was closed, its RELEASE is on the way.
    pub(super) async fn wait_until_closed(&self, ino: Ino, path: &str) -> Result<(), Refusal> {
        match self.content.wait_for_writers(ino, RELEASE_WAIT).await {
            WritersLeft::None => Ok(()),
            WritersLeft::Some => Err(Refusal::StillOpen(path.to_owned())),
            WritersLeft::NoFile => Err(Refusal::Missing(path.to_owned())),
        }
    }

    /// Removes the blobs of files that are gone. An upload that is still running removes its own
    /// blob when it ends. The file's local space is freed now, because a module that removed a file
    /// counts on that space; what the upload reads after that is named by no event.
    pub(super) fn discard(&self, orphans: Orphans) {
        for OrphanedFile { blob, known } in orphans.0 {
            match (blob.get(), known) {
                (Some(entry), _) => self.own_blobs.discard(&entry.key),
                // If the truncation is refused, the space is freed when the upload ends.
                (None, Some(content)) => drop(content.open(OFlags::WRONLY | OFlags::TRUNC)),
                (None, None) => {}
            }
        }
    }

    /// Lets other jobs of this node read a blob that an event names from the staged file.
    fn share_with_node(&self, ino: Ino, stored: &FileEntry) {
        if self
            .open_own_content(ino)
            .is_ok_and(|file| self.daemon.cache.add_staged_file(stored, file))
        {
            let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
            named.push(NamedFile { ino, entry: stored.clone() });
        }
    }

    /// Finishes the uploads after the job has ended: removes the blobs that no event names, and
    /// gives the node's cache the files that still are as events named them.
    pub(super) async fn finish(self: &Arc<Self>) {
        self.own_blobs.discard_unnamed().await;
        let this = self.clone();
        ion_system::run_blocking(move || this.give_files_to_cache()).await;
    }

    fn give_files_to_cache(&self) {
        let named = std::mem::take(&mut *self.named.lock().unwrap_or_else(PoisonError::into_inner));
        for NamedFile { ino, entry } in named {
            let file =
                if self.is_as_named(ino, &entry) { self.open_own_content(ino).ok() } else { None };
            self.daemon.cache.end_staged_file(&entry, file.as_ref());
        }
    }

    /// Returns whether a file still has the content under which an event named it.
    fn is_as_named(&self, ino: Ino, entry: &FileEntry) -> bool {
        let table = self.staging.lock();
        let file = table.file(ino).ok().filter(|file| file.writers.is_empty());
        let stored = file.and_then(|file| {
            file.stored.as_ref().filter(|stored| stored.generation == file.generation)
        });
        stored.and_then(|stored| stored.blob.get()).is_some_and(|blob| blob.key == entry.key)
    }
}

#[async_trait]
impl Staging for StagedUploads {
    async fn make_durable(&self, path: &str) -> Result<FileEntry, Refusal> {
        check_name(&self.staging, path)?;
        let ino = resolve_file(&self.staging, OUT_DATA, path)?;
        self.wait_until_closed(ino, path).await?;
        let place = UploadPlace { path: path.to_owned(), prefix: self.job_prefix() };
        let stored = self.store_for_event(ino, &place).await?;
        self.share_with_node(ino, &stored);
        self.entry_for_event(ino, path, stored)
    }

    fn has_file(&self, path: &str) -> bool {
        clean_path(path).is_some_and(|path| resolve_file(&self.staging, OUT_DATA, &path).is_ok())
    }

    async fn list_directory(&self, path: &str) -> Result<Option<DirectoryContent>, Refusal> {
        directory_content(&self.staging, OUT_DATA, path)
    }

    fn files_max(&self) -> u64 {
        self.staging.limits().job_limits().event_files
    }

    fn uploaded_bytes(&self) -> u64 {
        self.bytes_moved()
    }

    fn fresh_key(&self, path: &str) -> String {
        self.own_blobs.fresh_key(&self.job_prefix(), path)
    }
}
