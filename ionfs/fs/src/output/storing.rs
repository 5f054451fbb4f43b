//! Stores staged files as blobs: in the background once they are closed, and at the latest when an
//! event names them.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use ion_model::event::{FileEntry, clean_path, is_draft};
use ion_plane::commit::{DirectoryContent, Refusal, Staging};
use ion_plane::upload::{UploadError, store_file};
use rustix::fs::OFlags;
use tokio::sync::SemaphorePermit;

use super::super::{Errno, Ino, errno};
use super::table::{BlobCell, NodeBody, OutputTable};
use super::{DATA, Output};

/// How long a commit waits for the RELEASE of a handle that was closed: the kernel sends it after
/// close() has returned. A shorter time refuses events on a busy machine; a longer one delays the
/// refusal of a file that really is open.
const RELEASE_WAIT: Duration = Duration::from_secs(2);

/// How often a commit tries to name a file that the module goes on writing and closing.
const NAMING_TRIES: usize = 3;

/// The most symbolic links followed in one path: the kernel's own limit.
const LINKS_MAX: usize = 40;

/// The blob that holds a file's content, and who made it.
#[derive(Debug)]
enum ContentBlob {
    /// A blob of this job.
    Own(FileEntry),
    /// A blob of an ancestor event. The file refers to it, from the first byte to the last.
    OfAnAncestor(FileEntry),
}

impl Output {
    pub(super) async fn upload_in_background(&self, ino: Ino) -> std::result::Result<(), Refusal> {
        let _place = self.daemon.background.acquire().await.expect("the semaphore is never closed");
        let _turn = self.upload_turn(ino).await;
        match self.staging.lock().file_mut(ino) {
            Ok(file) => file.upload_waits = false,
            // The file was removed while it waited.
            Err(_) => return Ok(()),
        }
        let path = {
            let table = self.staging.lock();
            let Some(path) = table.path(ino) else { return Ok(()) };
            let Ok(path) = path.strip_prefix("data") else { return Ok(()) };
            let Some(path) = path.to_str().map(str::to_owned) else { return Ok(()) };
            path
        };
        if path.rsplit('/').next().is_some_and(is_draft) {
            return Ok(());
        }
        self.stored(ino, &path).await.map(|_| ())
    }

    /// Waits for a permit to upload a file of its current length.
    async fn upload_turn(&self, ino: Ino) -> SemaphorePermit<'_> {
        let bytes = self.staging.getattr(ino).map_or(0, |attr| attr.size);
        self.daemon.upload_turn(bytes).await
    }

    /// Returns the blob of the file's current content: the existing one, or a new one. The caller
    /// must hold an upload permit.
    async fn stored(&self, ino: Ino, path: &str) -> std::result::Result<ContentBlob, Refusal> {
        let (generation, cell, former) = {
            let mut table = self.staging.lock();
            let missing = |_| Refusal::Missing(path.to_owned());
            let file = table.file_mut(ino).map_err(missing)?;
            if let Some(reference) =
                file.reference.as_ref().filter(|reference| reference.is_whole())
            {
                return Ok(ContentBlob::OfAnAncestor(FileEntry::clone(reference.entry())));
            }
            match &file.stored {
                Some((generation, cell)) if *generation == file.generation => {
                    (*generation, cell.clone(), None)
                }
                _ => {
                    let cell = BlobCell::default();
                    let former = file.stored.replace((file.generation, cell.clone()));
                    (file.generation, cell, former)
                }
            }
        };
        if let Some((_, former)) = former
            && let Some(entry) = former.get()
        {
            self.own_blobs.discard(&entry.key);
        }
        let entry = cell.get_or_try_init(|| self.upload(ino, path)).await?.clone();
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

    /// Returns the blob of the file's current content, for an event that is about to name it: no
    /// later content removes the blob.
    async fn stored_for_an_event(
        &self,
        ino: Ino,
        path: &str,
    ) -> std::result::Result<FileEntry, Refusal> {
        for _ in 0..NAMING_TRIES {
            let stored = {
                let _turn = self.upload_turn(ino).await;
                self.stored(ino, path).await?
            };
            match stored {
                ContentBlob::OfAnAncestor(entry) => return Ok(entry),
                ContentBlob::Own(entry) if self.own_blobs.is_named(&entry.key) => return Ok(entry),
                // The file was written to and closed again since it was stored; that blob is being
                // removed.
                ContentBlob::Own(_) => {}
            }
        }
        Err(Refusal::StillOpen(path.to_owned()))
    }

    async fn upload(&self, ino: Ino, path: &str) -> std::result::Result<FileEntry, Refusal> {
        if let Some((_, errno)) = self.staging.lock().file(ino).ok().and_then(|file| file.failed) {
            return Err(Refusal::NotWhole { path: path.to_owned(), source: errno.into() });
        }
        let unreadable =
            |errno: Errno| Refusal::Unreadable { path: path.to_owned(), source: errno.into() };
        // A failure here is not recorded as a failed read: an event that names the file is refused,
        // and if no event names it, nothing has read the bytes.
        let filled = self.fill_all(ino).await;
        filled
            .map_err(|error| Refusal::Unreadable { path: path.to_owned(), source: error.into() })?;
        let written = self.staging.lock().file_mut(ino).ok().and_then(|file| {
            let (summer, upload) = file.in_order.as_mut()?.take_upload();
            Some((file.generation, summer, upload))
        });
        let (written, followed) = match written {
            Some((generation, summer, upload)) => {
                (Some((generation, summer)), self.followed(upload).await)
            }
            None => (None, None),
        };
        let stored = match followed {
            Some(stored) => stored,
            None => {
                let file = self.read_only(ino).map_err(unreadable)?;
                let key = self.fresh_key(path);
                self.own_blobs.made(&key);
                let blobs = &*self.daemon.plane.blobs;
                store_file(blobs, key, path.to_owned(), file, &self.moved, None).await
            }
        };
        let entry = stored.map_err(|error| match error {
            UploadError::Read { source, .. } => {
                // The disk reports lost data only once, so remember the error.
                self.not_whole(ino, 0, errno(&source));
                Refusal::Unreadable { path: path.to_owned(), source }
            }
            error => error.into(),
        })?;
        self.daemon.metrics.bytes_uploaded.add(entry.size);
        if let Some((generation, sums)) = written
            && sums.total() == entry.size
            && sums.finish() != entry.checksums
            && self.staging.lock().file(ino).is_ok_and(|file| file.generation == generation)
        {
            tracing::error!(path, "the disk gives back other bytes than were written to it");
            self.not_whole(ino, 0, Errno::IO);
            return Err(Refusal::NotWhole { path: path.to_owned(), source: Errno::IO.into() });
        }
        Ok(entry)
    }

    /// Lets other jobs of this node read a blob that an event names from the staged file.
    fn offer(&self, ino: Ino, stored: &FileEntry) {
        if self.read_only(ino).is_ok_and(|file| self.daemon.cache.produced(stored, file)) {
            self.named.lock().unwrap_or_else(PoisonError::into_inner).push((ino, stored.clone()));
        }
    }

    fn read_only(&self, ino: Ino) -> super::super::Result<File> {
        self.read_only_in(&self.staging.lock(), ino)
    }

    pub(super) fn read_only_in(&self, table: &OutputTable, ino: Ino) -> super::super::Result<File> {
        // The staged file of a reference does not hold its bytes.
        if table.file(ino)?.reference.is_some() {
            return Err(Errno::NOENT);
        }
        self.staging.open_file(table, ino, OFlags::RDONLY)
    }

    /// Gives the node's cache the files that still are as events named them. Called when the job
    /// has ended.
    pub(super) fn hand_down(&self) {
        let named = std::mem::take(&mut *self.named.lock().unwrap_or_else(PoisonError::into_inner));
        for (ino, entry) in named {
            let unchanged = {
                let table = self.staging.lock();
                let file = table.file(ino).ok().filter(|file| file.writers.is_empty());
                file.and_then(|file| file.stored.as_ref().filter(|(at, _)| *at == file.generation))
                    .is_some_and(|(_, cell)| {
                        cell.get().is_some_and(|stored| stored.key == entry.key)
                    })
            };
            let file = if unchanged { self.read_only(ino).ok() } else { None };
            self.daemon.cache.producer_ended(&entry, file.as_ref());
        }
    }

    /// Returns the inode of a file at a path below `out/data`. Follows symbolic links that stay
    /// inside.
    fn resolve(&self, path: &str) -> std::result::Result<Ino, Refusal> {
        let table = self.staging.lock();
        let at = self.resolve_any(&table, path)?;
        match table.file(at) {
            Ok(_) => Ok(at),
            Err(Errno::ISDIR) => Err(Refusal::Invalid(format!(
                "{path:?} is a directory; name its files, or {:?} for all of them",
                format!("{path}/")
            ))),
            Err(_) => {
                Err(Refusal::Invalid(format!("{path:?} is a pipe or a socket; it has no content")))
            }
        }
    }

    /// Like [`Output::resolve`], for an inode of any kind.
    fn resolve_any(&self, table: &OutputTable, path: &str) -> std::result::Result<Ino, Refusal> {
        let missing = || Refusal::Missing(path.to_owned());
        let mut todo: Vec<OsString> = path.split('/').rev().map(OsString::from).collect();
        let mut at = DATA;
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == "." || part.is_empty() {
                continue;
            }
            if part == ".." {
                if at == DATA {
                    return Err(Refusal::Invalid(format!("{path:?} leads out of out/data")));
                }
                at = table.place(at).map_or(DATA, |(parent, _)| parent);
                continue;
            }
            let child = table.child(at, &part).ok().flatten().ok_or_else(missing)?;
            let Ok(node) = table.node(child) else { return Err(missing()) };
            if !matches!(node.body, NodeBody::Symlink) {
                at = child;
                continue;
            }
            links += 1;
            let target = self.staging.pin(table, child).and_then(|link| link.link_target());
            let target = target.map_err(|_| missing())?;
            if links > LINKS_MAX || target.starts_with(b"/") {
                return Err(Refusal::Invalid(format!("{path:?} leads out of out/data")));
            }
            use std::os::unix::ffi::OsStrExt as _;
            let parts = target.split(|byte| *byte == b'/');
            todo.extend(parts.rev().map(|part| OsStr::from_bytes(part).to_owned()));
        }
        Ok(at)
    }

    /// Returns what is below a directory, sorted; none if `path` is not a directory.
    fn below_directory(
        &self,
        path: &str,
    ) -> std::result::Result<Option<DirectoryContent>, Refusal> {
        let table = self.staging.lock();
        let top = self.resolve_any(&table, path)?;
        if table.directory(top).is_err() {
            return Ok(None);
        }
        let mut below = DirectoryContent::default();
        let mut todo = vec![(path.to_owned(), top)];
        while let Some((path, ino)) = todo.pop() {
            let Ok(directory) = table.directory(ino) else {
                below.files.push(path);
                if below.files.len() as u64 > self.staging.limits().most().event_files {
                    // The event will be refused: the rest of a large tree need not be walked.
                    break;
                }
                continue;
            };
            let mut entries: Vec<_> = directory.iter().collect();
            if entries.is_empty() {
                self.check_name(&path)?;
                below.empty.push(path);
                continue;
            }
            // The first name goes last onto the stack, so that it is taken first. A retried job
            // names the same files in the same order.
            entries.sort_unstable_by(|a, b| b.0.cmp(a.0));
            for (name, child) in entries {
                let Some(name) = name.to_str() else {
                    let shown = Path::new(&path).join(&**name);
                    return Err(Refusal::Invalid(format!(
                        "{shown:?} is not UTF-8, and names in an event are; rename it"
                    )));
                };
                todo.push((format!("{path}/{name}"), child));
            }
        }
        Ok(Some(below))
    }

    /// Waits until no handle can write the file any more. Fails at once if a handle was not closed
    /// yet; if it was closed, its RELEASE is on the way.
    pub(super) async fn closed(&self, ino: Ino, path: &str) -> std::result::Result<(), Refusal> {
        let deadline = tokio::time::Instant::now() + RELEASE_WAIT;
        loop {
            let released = self.released.notified();
            {
                let table = self.staging.lock();
                let file = table.file(ino).map_err(|_| Refusal::Missing(path.to_owned()))?;
                if file.writers.is_empty() {
                    return Ok(());
                }
                if file.writers.iter().any(|writer| writer.is_surely_open()) {
                    return Err(Refusal::StillOpen(path.to_owned()));
                }
            }
            if tokio::time::timeout_at(deadline, released).await.is_err() {
                return Err(Refusal::StillOpen(path.to_owned()));
            }
        }
    }
}

impl Output {
    /// Returns a refusal if an event may not name this path.
    fn check_name(&self, path: &str) -> std::result::Result<(), Refusal> {
        self.staging.limits().most().may_name(path).map_err(|error| Refusal::TooLong(error.to_string()))
    }
}

#[async_trait]
impl Staging for Output {
    async fn durable(&self, path: &str) -> std::result::Result<FileEntry, Refusal> {
        self.check_name(path)?;
        let ino = self.resolve(path)?;
        self.closed(ino, path).await?;
        let stored = self.stored_for_an_event(ino, path).await?;
        self.offer(ino, &stored);
        let attr = self.staging.getattr(ino).map_err(|_| Refusal::Missing(path.to_owned()))?;
        let (mtime, mtime_nanos) = ion_model::clock::millis_and_nanos(attr.mtime);
        Ok(FileEntry {
            name: path.to_owned(),
            mtime,
            mtime_nanos,
            mode: u32::from(attr.perm),
            ..stored
        })
    }

    fn has(&self, path: &str) -> bool {
        clean_path(path).is_some_and(|path| self.resolve(&path).is_ok())
    }

    async fn below(&self, path: &str) -> std::result::Result<Option<DirectoryContent>, Refusal> {
        self.below_directory(path)
    }

    fn files_max(&self) -> u64 {
        self.staging.limits().most().event_files
    }

    fn moved(&self) -> u64 {
        self.bytes_moved()
    }

    fn fresh_key(&self, path: &str) -> String {
        let origin = self.committer.origin();
        // The attempt and a number: each key is written once, also when a later attempt makes the
        // same file again.
        let generation = self.blobs_made.fetch_add(1, Ordering::Relaxed);
        format!(
            "{}/{}/{}.{generation}/{path}",
            origin.parent.correlation_id, origin.job_id, origin.attempt
        )
    }
}
