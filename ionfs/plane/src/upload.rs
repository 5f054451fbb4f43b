//! Stores files as blobs. A file is read once and checksummed on the way, and its blob is durable
//! when the call returns.
//!
//! A store's answer may be lost although the store did its work. So when a put fails after all
//! bytes were sent, the blob is looked up, and used if it holds those bytes. If it does not,
//! [`store_with_retries`] or a caller that repeats the whole operation puts the file again under
//! another key. If the store completes the first try late, the result is a blob that no event
//! names.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use ion_model::checksum::{self, BlockChecksummer, Checksums};
use ion_model::clock::millis_and_nanos;
use ion_model::errors::error_chain;
use ion_model::event::FileEntry;
use ion_stores::object::IN_FLIGHT_MAX;
use ion_stores::{Blobs, Durability, StoreError};
use ion_system::patience::{FailedTry, Retry};
use ion_system::run_blocking;
use tokio::sync::watch;

/// The number of bytes that are read at once: one block, so that memory use stays small and a store
/// still receives large parts.
const PIECE: usize = 1 << 20;

/// The tries to store a file, where no caller would retry. Each try includes the retries of the
/// store's own client: more tries would keep a person waiting for minutes when a store is
/// unavailable. The wait can be short, because a store that fails has mostly failed for long
/// already.
const TRIES: Retry = Retry::times(3).waiting(Duration::from_secs(1));

/// Why a file did not become a blob.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The file could not be read.
    #[error("{path:?} cannot be read")]
    Read {
        /// The file's path, as people know it.
        path: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The blob store refused or failed.
    #[error("{path:?} cannot be stored")]
    Store {
        /// The file's path, as people know it.
        path: String,
        /// The store's error.
        #[source]
        source: StoreError,
    },
    /// The documents that determine the blob's key could not be read.
    #[error(transparent)]
    Documents(#[from] StoreError),
}

/// Calls `store`, and calls it again if the store fails, three times at most. `store` receives the
/// number of the try, from 0, and must use another key for each try: see [`retry_suffix`].
///
/// # Errors
/// The error of the last try. An error that another try would not fix is returned at once.
pub async fn store_with_retries<S>(store: impl Fn(u32) -> S) -> Result<FileEntry, UploadError>
where
    S: Future<Output = Result<FileEntry, UploadError>>,
{
    let again = |failed: FailedTry<'_, UploadError>| match failed.error {
        UploadError::Store { source: StoreError::Unavailable { .. }, .. } => {
            tracing::warn!(
                error = error_chain(failed.error),
                "a file could not be stored; trying again"
            );
            true
        }
        _ => false,
    };
    TRIES.run(async |number| store(number).await, again).await
}

/// Returns the suffix that makes a key different for each try of [`store_with_retries`].
pub fn retry_suffix(number: u32) -> String {
    if number == 0 { String::new() } else { format!(".{number}") }
}

/// Stores the file at `path` as blob `key`. Returns its entry under `name`.
///
/// # Errors
/// [`UploadError::Read`], also when the path is no regular file, and [`UploadError::Store`].
pub async fn store_path(
    blobs: &dyn Blobs,
    key: String,
    name: String,
    path: &Path,
) -> Result<FileEntry, UploadError> {
    let owned = path.to_owned();
    let file = run_blocking(move || open_regular(&owned)).await?;
    store_open_file(blobs, key, name, file, &AtomicU64::new(0)).await
}

/// Opens a file that is to be stored. Never blocks, even if a pipe is now at the path.
///
/// # Errors
/// [`UploadError::Read`], also when the path is no regular file.
pub fn open_regular(path: &Path) -> Result<File, UploadError> {
    let opened = || {
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")),
        }
    };
    opened().map_err(|source| UploadError::Read { path: path.display().to_string(), source })
}

/// Stores an open file, from its current position to its end, as blob `key`. Returns its entry
/// under `name`. `moved` grows while the store takes bytes.
///
/// # Errors
/// [`UploadError::Read`] and [`UploadError::Store`].
pub async fn store_open_file(
    blobs: &dyn Blobs,
    key: String,
    name: String,
    file: File,
    moved: &AtomicU64,
) -> Result<FileEntry, UploadError> {
    store_file(blobs, key, name, file, moved, None).await
}

/// How much of a file has been written while it is still being written.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteProgress {
    bytes: u64,
    all: bool,
}

impl WriteProgress {
    /// Records that the file has `bytes` bytes now. Returns whether another piece can be read.
    pub fn advance_to(&mut self, bytes: u64) -> bool {
        let pieces = |bytes| bytes / PIECE as u64;
        let more = pieces(bytes) > pieces(self.bytes);
        self.bytes = bytes;
        more
    }

    /// Records that the file is complete.
    pub fn end(&mut self) {
        self.all = true;
    }
}

/// Waits until the piece from `at` on may be read.
///
/// # Errors
/// When the writer of the file has given the upload up.
async fn wait_for_piece(
    more: &mut Option<watch::Receiver<WriteProgress>>,
    at: u64,
) -> io::Result<()> {
    let Some(more) = more else { return Ok(()) };
    let enough = |written: &WriteProgress| written.all || written.bytes >= at + PIECE as u64;
    more.wait_for(enough).await.map(drop).map_err(|_| io::Error::other("it changed meanwhile"))
}

/// Stores an open file, from its current position to its end, as blob `key`. Returns its entry
/// under `name`. `moved` grows while the store takes bytes; bytes that may only have filled the
/// client's buffers do not count.
///
/// If `more` is given, the file is still being written. A piece is read when `more` says that it
/// has been written; the blob ends at the file's end when `more` says that the file is complete.
///
/// # Errors
/// [`UploadError::Read`], also when the writer of the file has given the upload up, and
/// [`UploadError::Store`].
pub async fn store_file(
    blobs: &dyn Blobs,
    key: String,
    name: String,
    file: File,
    moved: &AtomicU64,
    more: Option<watch::Receiver<WriteProgress>>,
) -> Result<FileEntry, UploadError> {
    let unreadable = |source| UploadError::Read { path: name.clone(), source };
    let metadata = file.metadata().map_err(unreadable)?;
    let body = stream::try_unfold((file, 0, more), |(mut file, at, mut more)| async move {
        wait_for_piece(&mut more, at).await?;
        let (file, piece) = run_blocking(move || {
            let mut piece = Vec::with_capacity(PIECE);
            let read = (&mut file).take(PIECE as u64).read_to_end(&mut piece);
            let read = read.and_then(|bytes| {
                if bytes == 0 { ion_system::sys::check_writeback(&file) } else { Ok(()) }
            });
            (file, read.map(|()| Bytes::from(piece)))
        })
        .await;
        let piece = piece?;
        let end = at + piece.len() as u64;
        Ok((!piece.is_empty()).then_some((piece, (file, end, more))))
    });
    let mut read = 0;
    let body = body.inspect_ok(move |piece| {
        read += piece.len() as u64;
        if read > IN_FLIGHT_MAX {
            moved.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
    });
    let SummedBlob { size, checksums } =
        put_with_checksums(blobs, &key, &name, body.boxed()).await?;
    moved.fetch_add(size, Ordering::Relaxed);
    let (mtime, mtime_nanos) = millis_and_nanos(metadata.modified().map_err(unreadable)?);
    let mode = metadata.mode() & 0o7777;
    Ok(FileEntry { name, key, size, mtime, mtime_nanos, mode, checksums })
}

/// Returns the entry of an empty file. It has no blob, because nothing of it is ever read.
pub fn empty_file_entry(key: String, name: String) -> FileEntry {
    new_entry(name, key, 0, checksum::of(&[]))
}

/// Stores bytes as blob `key`. Returns their entry under `name`.
///
/// # Errors
/// [`UploadError::Store`].
pub async fn store_bytes(
    blobs: &dyn Blobs,
    key: String,
    name: String,
    bytes: Bytes,
) -> Result<FileEntry, UploadError> {
    let body = stream::once(async move { Ok(bytes) }).boxed();
    store_stream(blobs, key, name, body).await
}

/// Stores bytes as blob `key` like [`store_bytes`], but the blob is durable only after
/// [`Blobs::sync`] of its key.
///
/// # Errors
/// [`UploadError::Store`].
pub async fn store_bytes_unsynced(
    blobs: &dyn Blobs,
    key: String,
    name: String,
    bytes: Bytes,
) -> Result<FileEntry, UploadError> {
    let (checksums, size) = (checksum::of(&bytes), bytes.len() as u64);
    blobs
        .put_bytes(&key, bytes, Durability::WithNextSync)
        .await
        .map_err(|source| UploadError::Store { path: name.clone(), source })?;
    Ok(new_entry(name, key, size, checksums))
}

/// Stores the bytes of `body` as they arrive, to its end, as blob `key`. Returns their entry under
/// `name`. Memory use is bounded whatever the length. A body that fails leaves no blob.
///
/// # Errors
/// [`UploadError::Read`] when the body fails, and [`UploadError::Store`].
pub async fn store_stream(
    blobs: &dyn Blobs,
    key: String,
    name: String,
    body: BoxStream<'_, io::Result<Bytes>>,
) -> Result<FileEntry, UploadError> {
    let SummedBlob { size, checksums } = put_with_checksums(blobs, &key, &name, body).await?;
    Ok(new_entry(name, key, size, checksums))
}

fn new_entry(name: String, key: String, size: u64, checksums: Checksums) -> FileEntry {
    FileEntry {
        name,
        key,
        size,
        mtime: ion_model::clock::now(),
        mtime_nanos: 0,
        mode: 0o644,
        checksums,
    }
}

/// The length and the checksums of a blob that was stored.
struct SummedBlob {
    size: u64,
    checksums: Checksums,
}

/// Stores a stream as blob `key`. Returns its length and checksums.
///
/// # Errors
/// [`UploadError::Read`] when the body fails, and [`UploadError::Store`]. Both have `name` as path.
async fn put_with_checksums(
    blobs: &dyn Blobs,
    key: &str,
    name: &str,
    body: BoxStream<'_, io::Result<Bytes>>,
) -> Result<SummedBlob, UploadError> {
    let summer = Arc::new(Mutex::new(BlockChecksummer::default()));
    let passing = summer.clone();
    let unreadable = Arc::new(Mutex::new(None));
    let failing = unreadable.clone();
    let body = body.map(move |piece| {
        match piece {
            Ok(piece) => {
                passing.lock().unwrap_or_else(PoisonError::into_inner).update(&piece);
                Ok(piece)
            }
            // The store's error only says that reading failed, so this keeps the error itself.
            Err(error) => {
                let kind = error.kind().into();
                *failing.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                Err(kind)
            }
        }
    });
    let sent = Arc::new(AtomicBool::new(false));
    let end = sent.clone();
    let body = body.chain(stream::poll_fn(move |_| {
        end.store(true, Ordering::Release);
        Poll::Ready(None)
    }));
    let stored = blobs.put(key, body.boxed(), Durability::Now).await;
    if let Some(source) = unreadable.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(UploadError::Read { path: name.to_owned(), source });
    }
    let summer = std::mem::take(&mut *summer.lock().unwrap_or_else(PoisonError::into_inner));
    let (size, checksums) = (summer.total(), summer.finish());
    if let Err(source) = stored {
        let all_sent = sent.load(Ordering::Acquire);
        if !(all_sent && blob_matches(blobs, key, size, &checksums).await) {
            return Err(UploadError::Store { path: name.to_owned(), source });
        }
        tracing::info!(key, error = error_chain(&source), "a put failed, but the blob is whole");
    }
    Ok(SummedBlob { size, checksums })
}

/// Returns whether the blob exists with these bytes. It is read again to find out, because a key
/// that another process used before may hold other bytes.
async fn blob_matches(blobs: &dyn Blobs, key: &str, size: u64, checksums: &Checksums) -> bool {
    if !matches!(blobs.size(key).await, Ok(Some(there)) if there == size) {
        return false;
    }
    let read = async {
        let mut pieces = blobs.get_stream(key, 0..size).await?;
        let mut summer = BlockChecksummer::default();
        while let Some(piece) = pieces.try_next().await? {
            summer.update(&piece);
        }
        Ok::<_, StoreError>(summer.finish())
    };
    read.await.is_ok_and(|there| there == *checksums)
}
