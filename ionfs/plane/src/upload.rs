//! Files become blobs: read once, checksummed on the way, durable when this returns.
//!
//! A store's answer may be lost although it did what it was asked. So when a put fails whose bytes
//! were all sent, the blob is looked for, and taken if it holds them. What is not there is put
//! again under a key of its own, by [`in_tries`] or by whoever repeats the whole act: what the
//! store makes late of the first try is then a blob that no event names.

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
use ion_model::checksum::{self, Checksums, Summer};
use ion_model::clock::millis_and_nanos;
use ion_model::errors::chain;
use ion_model::event::FileEntry;
use ion_stores::object::IN_FLIGHT_MAX;
use ion_stores::{Blobs, StoreError};
use ion_system::run_blocking;
use tokio::sync::watch;

/// Bytes read at a time: one block, so that memory stays small and a store still gets large parts.
const PIECE: usize = 1 << 20;

/// Tries of what nobody would try again. Each has the retries of the store's own client in it: more
/// of them keep a person waiting for minutes before a store that is away.
const TRIES: u32 = 3;

/// How long to wait between two tries. Most of what fails has failed for long already.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Why a file did not become a blob.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The file could not be read.
    #[error("{path:?} cannot be read")]
    Read {
        /// Its path, as people know it.
        path: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The blob store refused or failed.
    #[error("{path:?} cannot be stored")]
    Store {
        /// Its path, as people know it.
        path: String,
        /// The store's error.
        #[source]
        source: StoreError,
    },
    /// The documents that say where it belongs could not be read.
    #[error(transparent)]
    Documents(#[from] StoreError),
}

/// Stores something, a few times if the store fails. `store` is given the number of the try and
/// must use another key for each: see [`try_suffix`].
///
/// # Errors
/// The last error; at once, what another try would not mend.
pub async fn in_tries<S>(store: impl Fn(u32) -> S) -> Result<FileEntry, UploadError>
where
    S: Future<Output = Result<FileEntry, UploadError>>,
{
    let mut number = 0;
    loop {
        match store(number).await {
            Err(error @ UploadError::Store { source: StoreError::Unavailable { .. }, .. })
                if number + 1 < TRIES =>
            {
                tracing::warn!(error = chain(&error), "a file could not be stored; trying again");
                number += 1;
                tokio::time::sleep(TRY_AGAIN).await;
            }
            outcome => return outcome,
        }
    }
}

/// What a part of a key ends with at this try of [`in_tries`].
pub fn try_suffix(number: u32) -> String {
    if number == 0 { String::new() } else { format!(".{number}") }
}

/// Stores the file at `path` as blob `key` and gives its entry under `name`.
pub async fn store_path(
    blobs: &dyn Blobs,
    key: String,
    name: String,
    path: &Path,
) -> Result<FileEntry, UploadError> {
    let owned = path.to_owned();
    let file = run_blocking(move || open_regular(&owned)).await?;
    store_open(blobs, key, name, file, &AtomicU64::new(0)).await
}

/// Opens a file to be stored, whatever stands at its path by now: a pipe is not waited for.
///
/// # Errors
/// [`UploadError::Read`], also when it is no regular file.
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

/// Stores an open file, from its beginning to its end, as blob `key` and gives its entry under
/// `name`. `moved` grows while the store takes bytes.
pub async fn store_open(
    blobs: &dyn Blobs,
    key: String,
    name: String,
    file: File,
    moved: &AtomicU64,
) -> Result<FileEntry, UploadError> {
    store_file(blobs, key, name, file, moved, None).await
}

/// How much of a file that is still being written has been.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    bytes: u64,
    all: bool,
}

impl Written {
    /// So many bytes now. Whether there is a piece more to read than before.
    pub fn reach(&mut self, bytes: u64) -> bool {
        let pieces = |bytes| bytes / PIECE as u64;
        let more = pieces(bytes) > pieces(self.bytes);
        self.bytes = bytes;
        more
    }

    /// Nothing more comes.
    pub fn end(&mut self) {
        self.all = true;
    }
}

/// Waits until the piece from `at` on may be read. An error: whoever writes the file has given the
/// upload up.
async fn is_written(more: &mut Option<watch::Receiver<Written>>, at: u64) -> io::Result<()> {
    let Some(more) = more else { return Ok(()) };
    let enough = |written: &Written| written.all || written.bytes >= at + PIECE as u64;
    more.wait_for(enough).await.map(drop).map_err(|_| io::Error::other("its writer has changed it"))
}

/// Stores an open file, from its beginning to its end, as blob `key` and gives its entry under
/// `name`. `moved` grows while the store takes bytes; those that may only have filled its buffers
/// do not count. With `more` the file is still being written, and its end is where it is when that
/// says so.
pub async fn store_file(
    blobs: &dyn Blobs,
    key: String,
    name: String,
    file: File,
    moved: &AtomicU64,
    more: Option<watch::Receiver<Written>>,
) -> Result<FileEntry, UploadError> {
    let unreadable = |source| UploadError::Read { path: name.clone(), source };
    let metadata = file.metadata().map_err(unreadable)?;
    let body = stream::try_unfold((file, 0, more), |(mut file, at, mut more)| async move {
        is_written(&mut more, at).await?;
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
    let (size, checksums) = put_summed(blobs, &key, &name, body.boxed()).await?;
    moved.fetch_add(size, Ordering::Relaxed);
    let (mtime, mtime_nanos) = millis_and_nanos(metadata.modified().map_err(unreadable)?);
    let mode = metadata.mode() & 0o7777;
    Ok(FileEntry { name, key, size, mtime, mtime_nanos, mode, checksums })
}

/// The entry of an empty file that no blob stands for: nothing of it is ever read.
pub fn empty_file(key: String, name: String) -> FileEntry {
    made_now(name, key, 0, checksum::of(&[]))
}

/// Stores bytes at hand as blob `key` and gives their entry under `name`.
pub async fn store_bytes(
    blobs: &dyn Blobs,
    key: String,
    name: String,
    bytes: Bytes,
) -> Result<FileEntry, UploadError> {
    let body = stream::once(async move { Ok(bytes) }).boxed();
    store_stream(blobs, key, name, body).await
}

/// The same, durable only after [`Blobs::settle`] of its key.
pub async fn store_bytes_soon(
    blobs: &dyn Blobs,
    key: String,
    name: String,
    bytes: Bytes,
) -> Result<FileEntry, UploadError> {
    let (checksums, size) = (checksum::of(&bytes), bytes.len() as u64);
    blobs
        .put_soon(&key, bytes)
        .await
        .map_err(|source| UploadError::Store { path: name.clone(), source })?;
    Ok(made_now(name, key, size, checksums))
}

/// Stores bytes as they come, to the end of `body`, as blob `key` and gives their entry under
/// `name`. Memory use is bounded whatever the length; a body that fails leaves no blob.
pub async fn store_stream(
    blobs: &dyn Blobs,
    key: String,
    name: String,
    body: BoxStream<'_, io::Result<Bytes>>,
) -> Result<FileEntry, UploadError> {
    let (size, checksums) = put_summed(blobs, &key, &name, body).await?;
    Ok(made_now(name, key, size, checksums))
}

fn made_now(name: String, key: String, size: u64, checksums: Checksums) -> FileEntry {
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

/// Stores a stream as blob `key`; gives its length and checksums.
async fn put_summed(
    blobs: &dyn Blobs,
    key: &str,
    name: &str,
    body: BoxStream<'_, io::Result<Bytes>>,
) -> Result<(u64, Checksums), UploadError> {
    let summer = Arc::new(Mutex::new(Summer::default()));
    let passing = summer.clone();
    let unreadable = Arc::new(Mutex::new(None));
    let failing = unreadable.clone();
    let body = body.map(move |piece| {
        match piece {
            Ok(piece) => {
                passing.lock().unwrap_or_else(PoisonError::into_inner).update(&piece);
                Ok(piece)
            }
            // The store's error only says that there was one.
            Err(error) => {
                let told = error.kind().into();
                *failing.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                Err(told)
            }
        }
    });
    let sent = Arc::new(AtomicBool::new(false));
    let end = sent.clone();
    let body = body.chain(stream::poll_fn(move |_| {
        end.store(true, Ordering::Release);
        Poll::Ready(None)
    }));
    let stored = blobs.put(key, body.boxed()).await;
    if let Some(source) = unreadable.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(UploadError::Read { path: name.to_owned(), source });
    }
    let summer = std::mem::take(&mut *summer.lock().unwrap_or_else(PoisonError::into_inner));
    let (size, checksums) = (summer.total(), summer.finish());
    if let Err(source) = stored {
        let all_sent = sent.load(Ordering::Acquire);
        if !(all_sent && holds(blobs, key, size, &checksums).await) {
            return Err(UploadError::Store { path: name.to_owned(), source });
        }
        tracing::info!(key, error = chain(&source), "the store has it all the same");
    }
    Ok((size, checksums))
}

/// Whether the blob is there with these bytes. It is read again: a key that another process used
/// before may hold others.
async fn holds(blobs: &dyn Blobs, key: &str, size: u64, checksums: &Checksums) -> bool {
    if !matches!(blobs.size(key).await, Ok(Some(there)) if there == size) {
        return false;
    }
    let read = async {
        let mut pieces = blobs.get(key, 0..size).await?;
        let mut summer = Summer::default();
        while let Some(piece) = pieces.try_next().await? {
            summer.update(&piece);
        }
        Ok::<_, StoreError>(summer.finish())
    };
    read.await.is_ok_and(|there| there == *checksums)
}
