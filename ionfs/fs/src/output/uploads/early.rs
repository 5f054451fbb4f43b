//! Uploads that begin before the writing of a file ends.
//!
//! When a module writes a large file from the first byte to the last, the upload follows the
//! writer, so that the close of the file's event waits only for the rest. A file whose upload was
//! abandoned is uploaded again when it is closed.

use ion_model::event::FileEntry;
use ion_plane::upload::{UploadError, WriteProgress, store_file};
use tokio::sync::watch;

use super::{StagedUploads, UploadPlace};
use crate::Ino;
use crate::output::in_order::EarlyUpload;

impl StagedUploads {
    /// Begins to upload a file that is being written, if there is a permit for one more upload.
    pub(in crate::output) fn begin_early_upload(&self, ino: Ino) {
        let mut table = self.staging.lock();
        let Ok(Some(in_order)) = table.file_mut(ino).map(|file| file.in_order.as_mut()) else {
            return;
        };
        in_order.put_off_upload();
        let Some(UploadPlace { path: name, prefix }) = self.place_ahead(&table, ino) else {
            return;
        };
        let Ok(place) = self.daemon.early_uploads.clone().try_acquire_owned() else { return };
        let Ok(file) = self.open_own_content_in(&table, ino) else { return };
        let key = self.own_blobs.fresh_key(&prefix, &name);
        let (written, more) = watch::channel(WriteProgress::default());
        let (blobs, moved) = (self.daemon.plane.blobs.clone(), self.moved.clone());
        let upload = self.tasks.spawn({
            let key = key.clone();
            async move { store_file(&*blobs, key, name, file, &moved, Some(more)).await }
        });
        if let Ok(Some(in_order)) = table.file_mut(ino).map(|file| file.in_order.as_mut()) {
            in_order.follow_with(EarlyUpload::new(key, written, upload, place));
        }
    }

    /// Waits for an upload that followed its writer, and returns its outcome. Returns none if there
    /// was no such upload or the store failed: the caller then stores the file again.
    pub(super) async fn finish_early_upload(
        &self,
        upload: Option<EarlyUpload>,
    ) -> Option<Result<FileEntry, UploadError>> {
        let upload = upload?;
        let key = upload.key().to_owned();
        self.own_blobs.note_upload(&key);
        match upload.finish().await {
            Err(UploadError::Store { source, .. }) => {
                tracing::debug!(
                    key,
                    %source,
                    "an early upload failed; the file will be uploaded again"
                );
                None
            }
            outcome => Some(outcome),
        }
    }
}
