//! What is known of a file that is written in order: its checksums, which are made while it is
//! written, and its upload, which begins before the writing ends.
//!
//! If the file is written anywhere else, or cut, that upload is abandoned and never becomes a blob.

use std::time::{Duration, Instant};

use ion_model::checksum::BlockChecksummer;
use ion_model::event::FileEntry;
use ion_plane::upload::{UploadError, WriteProgress};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

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
    pub(super) fn should_begin_upload(&self) -> bool {
        self.upload.is_none()
            && self.total() >= self.begin_at
            && self.since.elapsed() >= EARLY_AFTER
    }

    /// Puts off the beginning of the upload, because there is no permit for it now.
    pub(super) fn put_off_upload(&mut self) {
        self.begin_at = self.total() + EARLY_MIN;
    }

    /// Keeps an upload that follows the writer from now on.
    pub(super) fn follow_with(&mut self, upload: EarlyUpload) {
        self.upload = Some(upload);
        self.note_written();
    }

    /// Lets the upload take the bytes added so far: they are in the staged file.
    pub(super) fn note_written(&self) {
        if let Some(upload) = &self.upload {
            upload.written.send_if_modified(|written| written.advance_to(self.summer.total()));
        }
    }

    /// Returns the checksums of all bytes, and takes the upload that has begun, if there is one.
    pub(super) fn take_upload(&mut self) -> (BlockChecksummer, Option<EarlyUpload>) {
        (self.summer.clone(), self.upload.take())
    }
}

impl EarlyUpload {
    /// Makes the owner of an upload that runs as the task `upload`, learns through `written` how
    /// far the file is written, and holds the permit `place`.
    pub(super) fn new(
        key: String,
        written: watch::Sender<WriteProgress>,
        upload: JoinHandle<Result<FileEntry, UploadError>>,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self { key, written, upload: AbortOnDropHandle::new(upload), _place: place }
    }

    /// Returns the key of the blob that the upload makes.
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// Ends the upload after the bytes that are written, and waits for it.
    pub(super) async fn finish(self) -> Result<FileEntry, UploadError> {
        self.written.send_modify(WriteProgress::end);
        match self.upload.await {
            Ok(outcome) => outcome,
            Err(error) => Err(UploadError::Read { path: self.key, source: error.into() }),
        }
    }
}
