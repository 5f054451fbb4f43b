//! What an attempt says: kept on this machine while it runs, in the blob store when it has ended.

use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ionfs::clock;
use ionfs::errors::{chain, is_no_room};
use ionfs::event::{Context, DocumentType, FileEntry};
use ionfs::home::private_folder;
use ionfs::id::JobId;
use ionfs::node::live_log;
use ionfs::record::{AttemptEnd, LogRecord};
use ionfs::stores::{Collection, DataPlane, encode};
use ionfs::upload::{empty_file, store_path};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::{Ended, OutputLine, OutputSink, logs_below};

/// Tries to store an attempt's output, and the wait between them. The stores' own deadlines come on top.
const STORE_TRIES: u32 = 20;
const STORE_WAIT: Duration = Duration::from_secs(1);

/// Bytes of output kept of one attempt. A module that says more is cut off there; it goes on.
const LOG_MAX: u64 = 256 << 20;

/// Bytes of output that wait while the disk does not take them.
const PENDING_MAX: usize = 1 << 20;

/// Bytes of a line shown live.
const LINE_MAX: usize = 4096;

/// The end of an attempt whose log could not be begun.
pub(super) fn without_log(error: &io::Error) -> Ended {
    let failed = Ended::failed(format!("the log of its output cannot be made: {error}"));
    if is_no_room(error) { Ended { end: AttemptEnd::NoRoom, ..failed } } else { failed }
}

/// Where an attempt's output lies.
pub(super) struct JobLog {
    attempt: u32,
    path: PathBuf,
}

impl JobLog {
    /// An empty one.
    ///
    /// # Errors
    /// When the disk has no room for it, or does not let this user make it.
    pub(super) fn begin(home: &Path, job: &JobId, attempt: u32) -> io::Result<Self> {
        let path = live_log(home, job, attempt);
        let folder = path.parent().map_or(Ok(()), private_folder);
        let mut empty = std::fs::OpenOptions::new();
        empty.write(true).create(true).truncate(true).mode(0o600);
        folder.and_then(|()| empty.open(&path))?;
        Ok(Self { attempt, path })
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Ion's own word at its end: why the attempt failed stands where people look first.
    pub(super) fn note(&self, reason: &str) {
        self.append(format!("ion: {reason}\n").as_bytes());
    }

    pub(super) fn append(&self, words: &[u8]) {
        let log = std::fs::OpenOptions::new().append(true).open(&self.path);
        if let Err(error) = log.and_then(|mut log| log.write_all(words)) {
            tracing::warn!(%error, "words could not be added to a log");
        }
    }

    /// Stores the attempt's output and the document that says where. What a person will look for is not given up because a
    /// store is away for a moment; none after [`STORE_TRIES`].
    pub(super) async fn store(
        &self,
        plane: &DataPlane,
        context: &Context,
        succeeded: bool,
    ) -> Option<FileEntry> {
        for _ in 1..STORE_TRIES {
            match self.try_to_store(plane, context, succeeded).await {
                Ok(entry) => return Some(entry),
                Err(error) => tracing::debug!(error, "a job's output is not stored yet"),
            }
            tokio::time::sleep(STORE_WAIT).await;
        }
        let last = self.try_to_store(plane, context, succeeded).await;
        last.inspect_err(|error| tracing::error!(error, "a job's output could not be stored")).ok()
    }

    async fn try_to_store(
        &self,
        plane: &DataPlane,
        context: &Context,
        succeeded: bool,
    ) -> Result<FileEntry, String> {
        let key = format!(
            "{}/{}/{}-attempt-{}.log",
            logs_below(&context.correlation_id),
            context.event_id,
            context.name,
            self.attempt
        );
        let stored = match tokio::fs::metadata(&self.path).await {
            // Most jobs of some modules say nothing, and no store has to keep that.
            Ok(metadata) if metadata.len() == 0 => Ok(empty_file(key, "log".into())),
            _ => store_path(&*plane.blobs, key, "log".into(), &self.path).await,
        };
        let entry = stored.map_err(|error| chain(&error))?;
        let name = LogRecord::id(&context.name, &context.event_id, self.attempt);
        let record = LogRecord {
            id: name.clone(),
            desc: name,
            context: Context { document_type: DocumentType::ModuleLogs, ..context.clone() },
            logs: entry.clone(),
            succeeded,
            created: clock::now(),
        };
        let put = plane.documents.put(Collection::Events, encode(&record), None).await;
        put.map(|()| entry).map_err(|error| chain(&error))
    }
}

/// Keeps a module's output as it comes, and shows it line by line to whoever watches.
pub(super) async fn keep_output(
    mut pipe: impl AsyncRead + Unpin,
    log: PathBuf,
    sink: Option<(OutputSink, String, String)>,
) {
    let mut kept = Kept {
        file: std::fs::OpenOptions::new().append(true).open(&log).ok(),
        length: 0,
        pending: Vec::new(),
    };
    let mut line = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let piece = match pipe.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(length) => &buffer[..length],
        };
        kept.add(piece);
        let Some((sink, module, job)) = &sink else { continue };
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(&part[..part.len().min(LINE_MAX)]);
            if part.ends_with(b"\n") || line.len() >= LINE_MAX {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                let _ = sink.try_send(OutputLine { module: module.clone(), job: job.clone(), text });
                line.clear();
            }
        }
    }
    kept.write();
    if !kept.pending.is_empty() {
        tracing::error!(log = %log.display(), bytes = kept.pending.len(), "the end of a job's output could not be kept");
    }
}

/// A log being written. What a full disk does not take waits for a while: the module's own words about it are in
/// there, and it may make room again.
struct Kept {
    file: Option<std::fs::File>,
    length: u64,
    pending: Vec<u8>,
}

impl Kept {
    fn add(&mut self, piece: &[u8]) {
        if self.length >= LOG_MAX {
            return;
        }
        self.length += piece.len() as u64;
        if self.pending.len() < PENDING_MAX {
            self.pending.extend_from_slice(piece);
        }
        if self.length >= LOG_MAX {
            self.pending.extend_from_slice(b"\nion: more output than is kept\n");
        }
        self.write();
    }

    fn write(&mut self) {
        let Some(file) = &mut self.file else { return };
        while !self.pending.is_empty() {
            match file.write(&self.pending) {
                Ok(length) => drop(self.pending.drain(..length)),
                Err(error) => {
                    tracing::debug!(%error, "a job's output is not kept yet");
                    return;
                }
            }
        }
    }
}
