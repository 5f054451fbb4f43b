//! Files written in order: what is known of them while they are written, and their uploads, which
//! begin before they end.
//!
//! A large file that a module writes from the first byte to the last follows its writer into the
//! store, so that the close of its event waits for the rest only. One that is written anywhere
//! else, or cut, is uploaded anew when it is closed: its first upload is given up, and nothing of
//! it is ever a blob.

use std::path::Path;
use std::time::{Duration, Instant};

use ion_model::checksum::Summer;
use ion_model::event::{FileEntry, is_draft};
use ion_plane::commit::Staging as _;
use ion_plane::upload::{UploadError, Written, store_file};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::task::AbortOnDropHandle;

use super::super::Ino;
use super::Output;

/// Bytes of a file before its upload begins, and between the tries if there was no place for
/// another: what a store takes in a few parts. Smaller files are stored in no time once they are
/// closed.
const EARLY_MIN: u64 = 16 << 20;

/// How long a file is written before its upload begins. What is written in less gains nothing: its
/// upload would take the writer's processors, and most of it would still be to do at the end.
const EARLY_AFTER: Duration = Duration::from_secs(1);

/// What is known of a file as long as each of its bytes was written once and in order.
#[derive(Debug)]
pub(super) struct InOrder {
    summer: Summer,
    since: Instant,
    /// The length at which an upload is begun.
    begin_at: u64,
    upload: Option<Following>,
}

/// An upload that follows the file's writer. Dropped, it is given up.
#[derive(Debug)]
pub(super) struct Following {
    key: String,
    written: watch::Sender<Written>,
    upload: AbortOnDropHandle<Result<FileEntry, UploadError>>,
    _place: OwnedSemaphorePermit,
}

impl Default for InOrder {
    fn default() -> Self {
        Self { summer: Summer::default(), since: Instant::now(), begin_at: EARLY_MIN, upload: None }
    }
}

impl InOrder {
    /// Bytes written so far.
    pub(super) fn total(&self) -> u64 {
        self.summer.total()
    }

    /// Takes the next bytes, which are about to be written.
    pub(super) fn update(&mut self, data: &[u8]) {
        self.summer.update(data);
    }

    /// Whether its upload should begin.
    pub(super) fn is_to_begin(&self) -> bool {
        self.upload.is_none()
            && self.total() >= self.begin_at
            && self.since.elapsed() >= EARLY_AFTER
    }

    /// The bytes taken so far are in the staged file.
    pub(super) fn are_written(&self) {
        if let Some(upload) = &self.upload {
            upload.written.send_if_modified(|written| written.reach(self.summer.total()));
        }
    }

    /// The sums of all bytes, and the upload that has begun.
    pub(super) fn take_upload(&mut self) -> (Summer, Option<Following>) {
        (self.summer.clone(), self.upload.take())
    }
}

impl Following {
    /// Tells the upload that nothing more comes, and waits for it.
    pub(super) async fn finish(self) -> Result<FileEntry, UploadError> {
        self.written.send_modify(Written::end);
        match self.upload.await {
            Ok(outcome) => outcome,
            Err(error) => Err(UploadError::Read { path: self.key, source: error.into() }),
        }
    }
}

impl Output {
    /// Begins to upload a file that is being written, if there is a place.
    pub(super) fn upload_early(&self, ino: Ino) {
        let mut table = self.lock();
        let Some(path) = table.path(ino) else { return };
        let Ok(Some(in_order)) = table.file_mut(ino).map(|file| file.in_order.as_mut()) else {
            return;
        };
        let total = in_order.total();
        in_order.begin_at = total + EARLY_MIN;
        let Some(name) = path.strip_prefix("data").ok().and_then(Path::to_str) else { return };
        if name.rsplit('/').next().is_some_and(is_draft) {
            return;
        }
        let Ok(place) = self.daemon.early_uploads.clone().try_acquire_owned() else { return };
        let Ok(file) = self.read_only_in(&table, ino) else { return };
        let (key, name) = (self.fresh_key(name), name.to_owned());
        let (written, more) = watch::channel(Written::default());
        let (blobs, moved) = (self.daemon.plane.blobs.clone(), self.moved.clone());
        let upload = self.runtime.spawn({
            let key = key.clone();
            async move { store_file(&*blobs, key, name, file, &moved, Some(more)).await }
        });
        let upload = AbortOnDropHandle::new(upload);
        if let Ok(Some(in_order)) = table.file_mut(ino).map(|file| file.in_order.as_mut()) {
            in_order.upload = Some(Following { key, written, upload, _place: place });
            in_order.are_written();
        }
    }

    /// The blob of an upload that followed its file; none when there was none, or the store failed:
    /// then the file is stored anew.
    pub(super) async fn followed(
        &self,
        upload: Option<Following>,
    ) -> Option<Result<FileEntry, UploadError>> {
        let upload = upload?;
        let key = upload.key.clone();
        self.own_blobs.made(&key);
        match upload.finish().await {
            Err(UploadError::Store { source, .. }) => {
                tracing::debug!(key, %source, "an upload that had begun early failed; it begins anew");
                None
            }
            outcome => Some(outcome),
        }
    }
}
