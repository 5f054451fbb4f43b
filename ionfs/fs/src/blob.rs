//! Blobs whose bytes files have: opened, and read within the daemon's deadline.

use std::sync::Arc;

use bytes::Bytes;
use ion_model::event::FileEntry;
use ion_plane::cache::{BlobReader, CachedBlob};
use ion_plane::node::Node as Daemon;

use super::reads::ReadFailure;

/// Opens the blob of an entry.
pub(crate) fn open_blob(
    daemon: &Daemon,
    entry: &FileEntry,
) -> Result<Arc<CachedBlob>, ReadFailure> {
    daemon.cache.open(entry).map_err(|error| ReadFailure::from_cache_error(&error))
}

/// Reads a blob within the daemon's deadline.
pub(crate) async fn read_blob(
    daemon: &Daemon,
    reader: &BlobReader,
    offset: u64,
    length: u64,
) -> Result<Bytes, ReadFailure> {
    let read = reader.read(offset, length);
    let answered = tokio::time::timeout(daemon.settings.read_deadline, read).await;
    let unanswered = |_| ReadFailure::unanswered(Some(&reader.blob().entry().key));
    answered.map_err(unanswered)?.map_err(|error| ReadFailure::from_cache_error(&error))
}
