//! The output of an attempt: kept on this machine while it runs, and in the blob store once it has
//! ended.

mod live;

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use ion_jobs::job::AttemptOutcome;
use ion_jobs::logs::{KeptOutput, copy_without_hole};
use ion_model::clock;
use ion_model::errors::{error_chain, is_no_room};
use ion_model::event::{Context, DocumentType};
use ion_model::id::JobId;
use ion_model::record::{AttemptEnd, LogRecord};
use ion_model::record::{StoredLog, logs_prefix};
use ion_plane::node::live_log_path;
use ion_plane::upload::{UploadError, empty_file_entry, store_open_file};
use ion_stores::{Collection, DataPlane, StoreError, encode};
use ion_system::home::make_private_folder;
use ion_system::patience::{FailedTry, Retry};
use tokio::io::{AsyncRead, AsyncReadExt as _};

pub(super) use self::live::OutputNotifier;
pub use self::live::{LiveOutput, OutputWatcher};
use crate::secrets::SecretMask;

/// The tries to store an attempt's output. The stores' own deadlines come on top.
const STORE: Retry = Retry::times(20).waiting(Duration::from_secs(1));

/// The reason why an attempt's output is not stored.
#[derive(Debug, thiserror::Error)]
enum LogStoreError {
    /// The log on this machine cannot be read.
    #[error("{} cannot be read", .path.display())]
    Unreadable {
        /// The log.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The log cannot be made a blob.
    #[error(transparent)]
    Upload(#[from] UploadError),
    /// The document that names the log cannot be written.
    #[error(transparent)]
    Document(#[from] StoreError),
}

/// Returns the end of an attempt whose log could not be created.
pub(super) fn no_log_outcome(error: &io::Error) -> AttemptOutcome {
    let failed = AttemptOutcome::failed(format!("the log of its output cannot be made: {error}"));
    if is_no_room(error) { AttemptOutcome { end: AttemptEnd::NoRoom, ..failed } } else { failed }
}

/// The local log file of an attempt's output.
pub(super) struct JobLog {
    attempt: u32,
    path: PathBuf,
}

impl JobLog {
    /// Creates an empty log.
    ///
    /// # Errors
    /// If the disk has no room for it, or this user may not create it.
    pub(super) fn begin(home: &Path, job: &JobId, attempt: u32) -> io::Result<Self> {
        let path = live_log_path(home, job, attempt);
        let folder = path.parent().map_or(Ok(()), make_private_folder);
        let mut empty = std::fs::OpenOptions::new();
        empty.write(true).create(true).truncate(true).mode(0o600);
        folder.and_then(|()| empty.open(&path))?;
        Ok(Self { attempt, path })
    }

    /// Returns the path of the log file.
    #[cfg(feature = "kubernetes")]
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a line of Ion's own, such as why the attempt failed: people look into the log first.
    pub(super) fn note(&self, reason: &str) {
        let newline = if self.ends_within_a_line() { "\n" } else { "" };
        self.append(format!("{newline}ion: {reason}\n").as_bytes());
    }

    fn ends_within_a_line(&self) -> bool {
        let last = || {
            let log = File::open(&self.path)?;
            let mut last = [b'\n'];
            if let Some(at) = log.metadata()?.len().checked_sub(1) {
                log.read_exact_at(&mut last, at)?;
            }
            Ok::<_, io::Error>(last)
        };
        last().is_ok_and(|last| last != *b"\n")
    }

    pub(super) fn append(&self, words: &[u8]) {
        let log = std::fs::OpenOptions::new().append(true).open(&self.path);
        if let Err(error) = log.and_then(|mut log| log.write_all(words)) {
            tracing::warn!(%error, "a line could not be added to a job's log");
        }
    }

    /// Stores the attempt's output and the document that names it. It retries for a while, so that
    /// the output is not lost when a store is unavailable for a moment; returns none after the last
    /// try.
    pub(super) async fn store(
        &self,
        plane: &DataPlane,
        context: &Context,
        succeeded: bool,
    ) -> Option<StoredLog> {
        let again = |failed: FailedTry<'_, LogStoreError>| {
            tracing::debug!(error = error_chain(failed.error), "a job's output is not stored yet");
            true
        };
        let store = async |_| self.try_to_store(plane, context, succeeded).await;
        let failed = |error: &LogStoreError| {
            tracing::error!(error = error_chain(error), "a job's output could not be stored");
        };
        STORE.run(store, again).await.inspect_err(failed).ok()
    }

    /// Like [`JobLog::store`], but an empty log needs neither a blob nor a document.
    pub(super) async fn store_unless_empty(
        &self,
        plane: &DataPlane,
        context: &Context,
        succeeded: bool,
    ) -> Option<StoredLog> {
        let is_empty = std::fs::metadata(&self.path).is_ok_and(|log| log.len() == 0);
        if is_empty { None } else { self.store(plane, context, succeeded).await }
    }

    async fn try_to_store(
        &self,
        plane: &DataPlane,
        context: &Context,
        succeeded: bool,
    ) -> Result<StoredLog, LogStoreError> {
        let key = format!(
            "{}/{}/{}-attempt-{}.log",
            logs_prefix(&context.correlation_id),
            context.event_id,
            context.name,
            self.attempt
        );
        let stored = self.store_blob(plane, key).await?;
        let name = LogRecord::id(&context.name, &context.event_id, self.attempt);
        let record = LogRecord {
            id: name.clone(),
            desc: name,
            context: Context { document_type: DocumentType::ModuleLogs, ..context.clone() },
            logs: stored.entry.clone(),
            succeeded,
            created: clock::now(),
        };
        plane.documents.put(Collection::Events, encode(&record), None).await?;
        Ok(stored)
    }

    async fn store_blob(&self, plane: &DataPlane, key: String) -> Result<StoredLog, LogStoreError> {
        let name = "log".to_owned();
        let path = self.path.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let log = File::open(&path)?;
            let length = log.metadata()?.len();
            let folder = path.parent().unwrap_or(Path::new("."));
            let whole = copy_without_hole(&log, folder)?.map_or(log, |whole| whole);
            Ok::<_, io::Error>((length, whole))
        });
        let opened = opened.await.map_err(io::Error::other).flatten();
        let (length, log) = opened
            .map_err(|source| LogStoreError::Unreadable { path: self.path.clone(), source })?;
        // Most jobs of some modules write nothing, and no store has to keep an empty blob.
        let entry = match length {
            0 => empty_file_entry(key, name),
            _ => store_open_file(&*plane.blobs, key, name, log, &AtomicU64::new(0)).await?,
        };
        Ok(StoredLog { left_out: length.saturating_sub(entry.size), entry })
    }
}

/// Copies a job's output to its log as it comes, and notifies the watcher that shows it. `mask`
/// replaces the job's secrets in it before anything is written.
pub(super) async fn keep_output(
    mut pipe: impl AsyncRead + Unpin,
    log: PathBuf,
    mut news: Option<OutputNotifier>,
    mut mask: Option<SecretMask>,
) {
    let mut kept = KeptOutput::open(&log)
        .inspect_err(
            |error| tracing::error!(log = %log.display(), %error, "a job's output cannot be kept"),
        )
        .ok();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let piece = match pipe.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(length) => &buffer[..length],
        };
        let Some(kept) = &mut kept else { continue };
        match &mut mask {
            None => kept.add(piece),
            Some(mask) => kept.add(&mask.add(piece)),
        }
        if let Some(news) = &mut news {
            news.notify(|| kept.reader());
        }
    }
    if let (Some(kept), Some(mask)) = (&mut kept, &mut mask) {
        kept.add(&mask.finish());
    }
    if let Some(bytes @ 1..) = kept.map(KeptOutput::finish) {
        tracing::error!(log = %log.display(), bytes, "the end of a job's output could not be kept");
    }
    // Dropping it tells the watcher that the output has ended; the log is whole by now.
    drop(news);
}
