//! Files written in order: their checksums, which are made while they are written, and their
//! uploads, which begin before the writing ends.
//!
//! When a module writes a large file from the first byte to the last, the upload follows the
//! writer, so that the close of the file's event waits only for the rest. If the file is written
//! anywhere else, or cut, that upload is abandoned and never becomes a blob, and the file is
//! uploaded again when it is closed.

use std::path::Path;
use std::time::{Duration, Instant};

use ion_model::checksum::BlockChecksummer;
use ion_model::event::{FileEntry, is_draft};
use ion_plane::commit::Staging as _;
use ion_plane::upload::{UploadError, WriteProgress, store_file};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::task::AbortOnDropHandle;

use super::super::Ino;
use super::Output;

/// Bytes that a file has before its upload begins, and bytes between two attempts if there was no
/// permit for one more upload: what a store takes in a few parts. A smaller file is stored quickly
/// once it is closed.
const EARLY_MIN: u64 = 16 << 20;

/// How long a file is written before its upload begins. A file that is written in less time gains
/// nothing: its upload would take processors from the writer, and most of it would still be left at
/// the end.
const EARLY_AFTER: Duration = Duration::from_secs(1);

/// What is known of a file as long as each of its bytes was written once and in order.
#[derive(Debug)]
pub(super) struct InOrder {
    summer: BlockChecksummer,
    since: Instant,
    /// The length at which an upload is begun.
    begin_at: u64,
    upload: Option<EarlyUpload>,
}

/// An upload that follows the file's writer. Dropping it abandons the upload.
#[derive(Debug)]
pub(super) struct EarlyUpload {
    key: String,
    written: watch::Sender<WriteProgress>,
    upload: AbortOnDropHandle<Result<FileEntry, UploadError>>,
    _place: OwnedSemaphorePermit,
}

impl Default for InOrder {
    fn default() -> Self {
        Self {
            summer: BlockChecksummer::default(),
            since: Instant::now(),
            begin_at: EARLY_MIN,
            upload: None,
        }
    }
}

impl InOrder {
    /// Returns the bytes written so far.
    pub(super) fn total(&self) -> u64 {
        self.summer.total()
    }

    /// Adds the next bytes, which are about to be written, to the checksums.
    pub(super) fn update(&mut self, data: &[u8]) {
        self.summer.update(data);
    }

    /// Returns whether the upload should begin.
    pub(super) fn is_to_begin(&self) -> bool {
        self.upload.is_none()
            && self.total() >= self.begin_at
            && self.since.elapsed() >= EARLY_AFTER
    }

    /// Tells the upload that the bytes added so far are in the staged file.
    pub(super) fn are_written(&self) {
        if let Some(upload) = &self.upload {
            upload.written.send_if_modified(|written| written.reach(self.summer.total()));
        }
    }

    /// Returns the checksums of all bytes, and takes the upload that has begun, if there is one.
    pub(super) fn take_upload(&mut self) -> (BlockChecksummer, Option<EarlyUpload>) {
        (self.summer.clone(), self.upload.take())
    }
}

impl EarlyUpload {
    /// Tells the upload that no more bytes come, and waits for it.
    pub(super) async fn finish(self) -> Result<FileEntry, UploadError> {
        self.written.send_modify(WriteProgress::end);
        match self.upload.await {
            Ok(outcome) => outcome,
            Err(error) => Err(UploadError::Read { path: self.key, source: error.into() }),
        }
    }
}

impl Output {
    /// Begins to upload a file that is being written, if there is a permit for one more upload.
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
        let (written, more) = watch::channel(WriteProgress::default());
        let (blobs, moved) = (self.daemon.plane.blobs.clone(), self.moved.clone());
        let upload = self.runtime.spawn({
            let key = key.clone();
            async move { store_file(&*blobs, key, name, file, &moved, Some(more)).await }
        });
        let upload = AbortOnDropHandle::new(upload);
        if let Ok(Some(in_order)) = table.file_mut(ino).map(|file| file.in_order.as_mut()) {
            in_order.upload = Some(EarlyUpload { key, written, upload, _place: place });
            in_order.are_written();
        }
    }

    /// Waits for an upload that followed its writer, and returns its outcome. Returns none if there
    /// was no such upload or the store failed: the caller then stores the file again.
    pub(super) async fn followed(
        &self,
        upload: Option<EarlyUpload>,
    ) -> Option<Result<FileEntry, UploadError>> {
        let upload = upload?;
        let key = upload.key.clone();
        self.own_blobs.made(&key);
        match upload.finish().await {
            Err(UploadError::Store { source, .. }) => {
                tracing::debug!(key, %source, "an early upload failed; the file will be uploaded \
                                               again");
                None
            }
            outcome => Some(outcome),
        }
    }
}
