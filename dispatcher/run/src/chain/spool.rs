//! Streams of bytes that are stored as blobs.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, stream};
use ion_model::event::FileEntry;
use ion_plane::upload::{UploadError, store_bytes_soon, store_stream};
use ion_stores::DataPlane;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// Up to this many bytes are kept in memory, and stored by one put instead of a stream.
const SMALL: usize = 256 << 10;

/// The most pieces that wait for the store. When they are reached, the writer waits.
const PIECES: usize = 4;

/// A blob that was stored.
#[derive(Clone, Debug)]
pub(super) struct SpooledBlob {
    /// Its entry in an event's list of files.
    pub(super) entry: FileEntry,
    /// Its bytes, if it is not durable yet.
    pub(super) soon: Option<Bytes>,
}

/// The future of a blob that is being stored.
pub(super) type Storing = BoxFuture<'static, Result<SpooledBlob, UploadError>>;

/// A stream of bytes that becomes one blob. If it is dropped before [`Self::finish`], no blob is
/// made.
#[derive(Debug)]
pub(super) struct Spool {
    plane: Arc<DataPlane>,
    key: String,
    name: &'static str,
    bytes: u64,
    into: SpoolTarget,
}

#[derive(Debug)]
enum SpoolTarget {
    Memory(BytesMut),
    Store(mpsc::Sender<Bytes>, AbortOnDropHandle<Result<FileEntry, UploadError>>),
    /// Storing failed: the task's result says why.
    Nowhere(AbortOnDropHandle<Result<FileEntry, UploadError>>),
}

impl Spool {
    pub(super) fn new(plane: Arc<DataPlane>, key: String, name: &'static str) -> Self {
        Self { plane, key, name, bytes: 0, into: SpoolTarget::Memory(BytesMut::new()) }
    }

    /// Returns the bytes added so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds the next bytes; waits while the store does not keep up.
    pub(super) async fn add(&mut self, piece: &Bytes) {
        self.bytes += piece.len() as u64;
        match &mut self.into {
            SpoolTarget::Memory(memory) => {
                memory.extend_from_slice(piece);
                if memory.len() > SMALL {
                    let begun = memory.split().freeze();
                    self.into = self.stream(begun);
                }
            }
            SpoolTarget::Store(store, _) => {
                if store.send(piece.clone()).await.is_err() {
                    let into =
                        std::mem::replace(&mut self.into, SpoolTarget::Memory(BytesMut::new()));
                    if let SpoolTarget::Store(_, task) = into {
                        self.into = SpoolTarget::Nowhere(task);
                    }
                }
            }
            SpoolTarget::Nowhere(_) => {}
        }
    }

    fn stream(&self, begun: Bytes) -> SpoolTarget {
        let (store, pieces) = mpsc::channel::<Bytes>(PIECES);
        let rest = stream::unfold(pieces, async |mut pieces| {
            pieces.recv().await.map(|piece| (piece, pieces))
        });
        let body = stream::iter([begun]).chain(rest).map(Ok::<_, io::Error>).boxed();
        let (plane, key, name) = (self.plane.clone(), self.key.clone(), self.name.to_owned());
        let task = tokio::spawn(async move { store_stream(&*plane.blobs, key, name, body).await });
        SpoolTarget::Store(store, AbortOnDropHandle::new(task))
    }

    /// Stores the rest and returns the blob. Storing begins at once, even if the future is not
    /// polled.
    pub(super) fn finish(self) -> Storing {
        let path = self.name.to_owned();
        let (task, soon) = match self.into {
            SpoolTarget::Memory(memory) => {
                let (plane, key, name, bytes) =
                    (self.plane, self.key, path.clone(), memory.freeze());
                let soon = Some(bytes.clone());
                let store = async move { store_bytes_soon(&*plane.blobs, key, name, bytes).await };
                (AbortOnDropHandle::new(tokio::spawn(store)), soon)
            }
            SpoolTarget::Store(_, task) | SpoolTarget::Nowhere(task) => (task, None),
        };
        Box::pin(async move {
            let ended = task.await;
            let entry = ended.unwrap_or_else(|error| {
                Err(UploadError::Read { path, source: io::Error::other(error) })
            })?;
            Ok(SpooledBlob { entry, soon })
        })
    }
}
