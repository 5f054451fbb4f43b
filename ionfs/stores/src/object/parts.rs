//! Multipart uploads. Parts are sent in parallel, with bounded memory. An upload that fails, is
//! dropped or is left behind by its process is ended.

use std::io;
use std::path::Path as FilePath;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt as _;
use ion_model::clock::{Millis, millis};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload, Result, WriteMultipart};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{ObjectBlobs, PART, PARTS_MAX, UPLOADS};
use crate::UnfinishedUploads;

/// The content of a marker blob: which upload to end.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    location: String,
    id: String,
}

/// One upload in progress.
pub(super) enum MultipartUpload {
    /// An upload to a store that drops the parts of an unfinished upload when its process ends.
    Plain(Option<WriteMultipart>),
    /// An upload to a store where the parts outlive the process, so the upload has a marker.
    Marked(Box<MarkedUpload>),
}

pub(super) struct MarkedUpload {
    open: OpenUpload,
    pending: BytesMut,
    next: usize,
    parts: Vec<PartId>,
    under_way: JoinSet<Result<(usize, PartId)>>,
}

/// An open multipart upload and its marker. Dropping this value ends the upload unless it is
/// finished.
struct OpenUpload {
    store: Arc<dyn ObjectStore>,
    multipart: Arc<dyn MultipartStore>,
    location: Path,
    id: String,
    marker: Path,
    finished: bool,
}

impl MultipartUpload {
    pub(super) async fn begin(blobs: &ObjectBlobs, location: &Path) -> Result<Self> {
        let Some(multipart) = &blobs.multipart else {
            let upload = blobs.store.put_multipart(location).await?;
            return Ok(Self::Plain(Some(WriteMultipart::new_with_chunk_size(upload, PART))));
        };
        let id = multipart.create_multipart(location).await?;
        let marker = blobs.to_location(UPLOADS).join(Uuid::new_v4().to_string());
        let content = Marker { location: location.to_string(), id: id.clone() };
        let open = OpenUpload {
            store: blobs.store.clone(),
            multipart: multipart.clone(),
            location: location.clone(),
            id,
            marker,
            finished: false,
        };
        let content = serde_json::to_vec(&content).unwrap_or_default();
        open.store.put(&open.marker, PutPayload::from(content)).await?;
        let marked = MarkedUpload {
            open,
            pending: BytesMut::new(),
            next: 0,
            parts: Vec::new(),
            under_way: JoinSet::new(),
        };
        Ok(Self::Marked(Box::new(marked)))
    }

    /// Takes more bytes. Waits while the maximum number of parts is in flight.
    pub(super) async fn write(&mut self, mut piece: Bytes) -> Result<()> {
        match self {
            Self::Plain(writer) => {
                let Some(writer) = writer else { return Ok(()) };
                writer.wait_for_capacity(PARTS_MAX).await?;
                writer.put(piece);
            }
            Self::Marked(marked) => {
                while !piece.is_empty() {
                    let room = PART - marked.pending.len();
                    marked.pending.extend_from_slice(&piece.split_to(room.min(piece.len())));
                    if marked.pending.len() == PART {
                        marked.send_part().await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Sends the rest, and makes the blob of all parts.
    pub(super) async fn finish(mut self) -> Result<()> {
        match &mut self {
            Self::Plain(writer) => {
                if let Some(writer) = writer.take() {
                    writer.finish().await?;
                }
                Ok(())
            }
            Self::Marked(marked) => marked.finish().await,
        }
    }
}

impl Drop for MultipartUpload {
    fn drop(&mut self) {
        if let Self::Plain(writer) = self
            && let Some(writer) = writer.take()
        {
            tokio::spawn(writer.abort());
        }
    }
}

impl MarkedUpload {
    async fn send_part(&mut self) -> Result<()> {
        while self.under_way.len() >= PARTS_MAX {
            self.wait_for_part().await?;
        }
        let (multipart, location) = (self.open.multipart.clone(), self.open.location.clone());
        let (id, index, part) = (self.open.id.clone(), self.next, self.pending.split().freeze());
        self.next += 1;
        self.under_way.spawn(async move {
            Ok((
                index,
                multipart.put_part(&location, &id, index, PutPayload::from_bytes(part)).await?,
            ))
        });
        Ok(())
    }

    async fn wait_for_part(&mut self) -> Result<()> {
        match self.under_way.join_next().await {
            Some(Ok(sent)) => {
                let (index, part) = sent?;
                if self.parts.len() <= index {
                    self.parts.resize(index + 1, PartId { content_id: String::new() });
                }
                self.parts[index] = part;
                Ok(())
            }
            Some(Err(source)) => Err(object_store::Error::JoinError { source }),
            None => Ok(()),
        }
    }

    async fn finish(&mut self) -> Result<()> {
        if !self.pending.is_empty() {
            self.send_part().await?;
        }
        while !self.under_way.is_empty() {
            self.wait_for_part().await?;
        }
        let parts = std::mem::take(&mut self.parts);
        self.open.multipart.complete_multipart(&self.open.location, &self.open.id, parts).await?;
        self.open.finished = true;
        // A marker that stays costs `gc` one look.
        let _ = self.open.store.delete(&self.open.marker).await;
        Ok(())
    }
}

impl Drop for OpenUpload {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let (store, multipart) = (self.store.clone(), self.multipart.clone());
        let (location, id, marker) = (self.location.clone(), self.id.clone(), self.marker.clone());
        tokio::spawn(async move {
            // The marker is removed only when the upload is ended: `gc` ends an upload that cannot
            // be ended now. If the store does not know the upload, it was finished and only the
            // answer was lost.
            let ended = multipart.abort_multipart(&location, &id).await;
            if matches!(ended, Ok(()) | Err(object_store::Error::NotFound { .. })) {
                let _ = store.delete(&marker).await;
            }
        });
    }
}

/// Ends (or only counts) the uploads whose markers are older than `before`, and returns their
/// number.
pub(super) async fn end_uploads(
    blobs: &ObjectBlobs,
    before: Millis,
    how: UnfinishedUploads,
) -> Result<usize> {
    let Some(multipart) = &blobs.multipart else { return Ok(0) };
    let folder = blobs.to_location(UPLOADS);
    let markers: Vec<_> = blobs.store.list(Some(&folder)).try_collect().await?;
    let mut ended = 0;
    for meta in markers.iter().filter(|meta| meta.last_modified.timestamp_millis() < before) {
        ended += 1;
        if how == UnfinishedUploads::Count {
            continue;
        }
        let content = match blobs.store.get(&meta.location).await {
            Ok(found) => found.bytes().await?,
            // The upload was finished after the markers were listed.
            Err(object_store::Error::NotFound { .. }) => continue,
            Err(error) => return Err(error),
        };
        if let Ok(marker) = serde_json::from_slice::<Marker>(&content) {
            let location = Path::parse(&marker.location)?;
            match multipart.abort_multipart(&location, &marker.id).await {
                // Not found: the upload was finished, and its process died before it removed the
                // marker.
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        blobs.store.delete(&meta.location).await?;
    }
    Ok(ended)
}

/// Removes (or only counts) the files that killed puts left on a local disk, and returns their
/// number. The backend writes to `<name>#<number>` and then renames the file. A file that
/// disappears during the sweep was removed by another process, and is no error.
pub(super) fn remove_partial_files(
    directory: &FilePath,
    before: Millis,
    how: UnfinishedUploads,
) -> io::Result<usize> {
    let mut swept = 0;
    for entry in ignore_not_found(std::fs::read_dir(directory))?.into_iter().flatten() {
        let Some(entry) = ignore_not_found(entry)? else { continue };
        let Some(metadata) = ignore_not_found(entry.metadata())? else { continue };
        if metadata.is_dir() {
            swept += remove_partial_files(&entry.path(), before, how)?;
            continue;
        }
        let name = entry.file_name();
        let unfinished =
            name.to_str().and_then(|name| name.rsplit_once('#')).is_some_and(|(_, number)| {
                !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
            });
        let modified = metadata.modified()?.duration_since(std::time::UNIX_EPOCH);
        if unfinished && modified.map_or(0, millis) < before {
            let gone = match how {
                UnfinishedUploads::End => {
                    ignore_not_found(std::fs::remove_file(entry.path()))?.is_some()
                }
                UnfinishedUploads::Count => true,
            };
            swept += usize::from(gone);
        }
    }
    Ok(swept)
}

/// Returns `None` if the file was not found.
fn ignore_not_found<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        outcome => outcome.map(Some),
    }
}
