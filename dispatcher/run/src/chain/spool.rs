//! The input and the outputs of a chain's run on their way to the blob store: one spool for stdin,
//! and one for what each link writes.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, stream};
use ion_model::event::FileEntry;
use ion_plane::upload::{UploadError, store_bytes_unsynced, store_stream};
use ion_stores::DataPlane;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// Up to this many bytes are kept in memory and stored by one put, which is durable only with the
/// documents that name the blob. More bytes are streamed while they arrive, and are durable when
/// the stream ends.
const IN_MEMORY_MAX: usize = 256 << 10;

/// The most pieces that wait for the store; then the link waits. More would take memory, fewer
/// would let the link wait more often.
const STORE_PIECES: usize = 4;

/// A blob that was put into the store.
#[derive(Clone, Debug)]
pub(super) struct SpooledBlob {
    /// Its entry in an event's list of files.
    pub(super) entry: FileEntry,
    /// The bytes of a small blob, which is not durable yet. Who writes the documents that name it
    /// must pass them to `create_with_documents` or `insert_with_blobs`.
    pub(super) not_durable: Option<Bytes>,
}

/// The future of a blob that is being stored.
pub(super) type Storing = BoxFuture<'static, Result<SpooledBlob, UploadError>>;

/// A stream of bytes that becomes one blob. If it is dropped before [`Self::finish`], storing
/// stops, and no event names what was stored.
#[derive(Debug)]
pub(super) struct Spool {
    plane: Arc<DataPlane>,
    /// The blob's key.
    key: String,
    /// The file's name in the event: `stdin` or `stdout`.
    name: &'static str,
    length: u64,
    into: SpoolTarget,
}

type StoringTask = AbortOnDropHandle<Result<FileEntry, UploadError>>;

#[derive(Debug)]
enum SpoolTarget {
    Memory(BytesMut),
    /// The task comes first, so that dropping the target aborts it before its input ends: else it
    /// would store a part of the bytes as the whole.
    Store {
        task: StoringTask,
        pieces: mpsc::Sender<Bytes>,
    },
    /// Storing has failed. The task's result says why; further bytes are dropped.
    Failed(StoringTask),
}

impl Spool {
    pub(super) fn new(plane: Arc<DataPlane>, key: String, name: &'static str) -> Self {
        Self { plane, key, name, length: 0, into: SpoolTarget::Memory(BytesMut::new()) }
    }

    /// Returns how many bytes were added so far.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Adds the next bytes; waits while the store does not keep up. A failure is reported by
    /// [`Self::finish`].
    pub(super) async fn add(&mut self, piece: &Bytes) {
        self.length += piece.len() as u64;
        match &mut self.into {
            SpoolTarget::Memory(memory) => {
                memory.extend_from_slice(piece);
                if memory.len() > IN_MEMORY_MAX {
                    let first = memory.split().freeze();
                    self.into = self.begin_upload(first);
                }
            }
            SpoolTarget::Store { pieces, .. } => {
                if pieces.send(piece.clone()).await.is_err() {
                    // The placeholder is replaced at once.
                    let into =
                        std::mem::replace(&mut self.into, SpoolTarget::Memory(BytesMut::new()));
                    if let SpoolTarget::Store { task, .. } = into {
                        self.into = SpoolTarget::Failed(task);
                    }
                }
            }
            SpoolTarget::Failed(_) => {}
        }
    }

    fn begin_upload(&self, first: Bytes) -> SpoolTarget {
        let (pieces, queue) = mpsc::channel::<Bytes>(STORE_PIECES);
        let rest =
            stream::unfold(queue, async |mut queue| queue.recv().await.map(|piece| (piece, queue)));
        let body = stream::iter([first]).chain(rest).map(Ok::<_, io::Error>).boxed();
        let (plane, key, name) = (self.plane.clone(), self.key.clone(), self.name.to_owned());
        let task = tokio::spawn(async move { store_stream(&*plane.blobs, key, name, body).await });
        SpoolTarget::Store { task: AbortOnDropHandle::new(task), pieces }
    }

    /// Stores the rest and returns the blob, or why it could not be stored. Storing begins at once,
    /// even if the future is not polled; if the future is dropped, storing is aborted.
    pub(super) fn finish(self) -> Storing {
        let path = self.name.to_owned();
        let (task, not_durable) = match self.into {
            SpoolTarget::Memory(memory) => {
                let (plane, key, name, bytes) =
                    (self.plane, self.key, path.clone(), memory.freeze());
                let not_durable = Some(bytes.clone());
                let store =
                    async move { store_bytes_unsynced(&*plane.blobs, key, name, bytes).await };
                (AbortOnDropHandle::new(tokio::spawn(store)), not_durable)
            }
            SpoolTarget::Store { task, .. } | SpoolTarget::Failed(task) => (task, None),
        };
        Box::pin(async move {
            let ended = task.await;
            // An error of the handle: the task panicked or was aborted.
            let entry = ended.unwrap_or_else(|error| {
                Err(UploadError::Read { path, source: io::Error::other(error) })
            })?;
            Ok(SpooledBlob { entry, not_durable })
        })
    }
}
