//! Reads the log of a job: from the file that its dispatcher writes while the job runs on this
//! host, and from the blob once the attempt has ended.

mod kept;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use ion_model::id::JobId;
use ion_plane::node::live_log_path;
use ion_stores::StoreError;

pub use self::kept::{HEAD, KeptOutput, LogPiece, copy_without_hole, read_piece};
use crate::ledger::{Ledger, LedgerError};

/// How many bytes of a log are read at once, at most. A smaller number means more requests to a
/// remote store, a larger one more memory for each reader.
const PIECE: u64 = 1 << 20;

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The job's record cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The blob cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The job has no attempt of this number.
    #[error("job {job} has no attempt {attempt}")]
    NoAttempt {
        /// The job.
        job: JobId,
        /// The requested number.
        attempt: u32,
    },
    /// The log file of a running job cannot be read.
    #[error("the log of job {job}, which runs on this host, cannot be read")]
    Local {
        /// The job.
        job: JobId,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// The result of reading the next piece of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogRead {
    /// The next bytes.
    More(Bytes),
    /// Nothing new, and the attempt still runs. The log of an attempt on another host can be read
    /// only after the attempt has ended.
    NothingYet,
    /// The attempt has ended, and its log was read to the end.
    Nothing,
}

/// A reader of one attempt's log.
#[derive(Debug)]
pub struct LogReader {
    ledger: Ledger,
    job: JobId,
    attempt: u32,
    home: PathBuf,
    at: u64,
}

impl LogReader {
    /// Returns a reader of an attempt's log from byte `at` on. `home` is this host's state folder.
    pub fn new(ledger: Ledger, home: &Path, job: &JobId, attempt: u32, at: u64) -> Self {
        Self { ledger, job: job.clone(), attempt, home: home.to_owned(), at }
    }

    /// Returns the offset of the next byte.
    pub fn offset(&self) -> u64 {
        self.at
    }

    /// Reads the next piece.
    ///
    /// # Errors
    /// When there is no such attempt, or a store or the disk fails.
    pub async fn next(&mut self) -> Result<LogRead, LogError> {
        // The record is read before the file: once the record says that the attempt has ended, the
        // stored log is complete.
        let job = self.ledger.get(&self.job).await?;
        let attempt = job.attempts.iter().find(|attempt| attempt.number == self.attempt);
        let attempt = attempt
            .ok_or_else(|| LogError::NoAttempt { job: self.job.clone(), attempt: self.attempt })?;
        let piece = match &attempt.log {
            Some(log) => {
                // Offsets count the bytes that the attempt wrote; the middle of them may not be
                // stored.
                let at = if self.at > HEAD {
                    HEAD.max(self.at - attempt.log_left_out.min(self.at))
                } else {
                    self.at
                };
                let end = log.size.min(at + PIECE);
                let piece = self.ledger.plane().blobs.get_range(&log.key, at.min(end)..end).await?;
                let end = at + piece.len() as u64;
                self.at = if end > HEAD { end + attempt.log_left_out } else { end };
                piece
            }
            None => {
                let live = match &attempt.batch {
                    // The output of a batch is the log of its first job.
                    Some(batch) => live_log_path(&self.home, &batch.first, batch.first_attempt),
                    None => live_log_path(&self.home, &self.job, self.attempt),
                };
                let read = self.read_live_piece(live).await;
                let piece =
                    read.map_err(|source| LogError::Local { job: self.job.clone(), source })?;
                self.at += piece.length();
                [piece.left_out_line().unwrap_or_default().into_bytes(), piece.bytes]
                    .concat()
                    .into()
            }
        };
        Ok(match (piece.is_empty(), attempt.ended) {
            (false, _) => LogRead::More(piece),
            (true, Some(_)) => LogRead::Nothing,
            (true, None) => LogRead::NothingYet,
        })
    }

    async fn read_live_piece(&self, path: PathBuf) -> io::Result<LogPiece> {
        let at = self.at;
        let read = tokio::task::spawn_blocking(move || match File::open(&path) {
            Ok(file) => read_piece(&file, at, PIECE as usize),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(LogPiece::default()),
            Err(error) => Err(error),
        });
        read.await.map_err(io::Error::other)?
    }
}
