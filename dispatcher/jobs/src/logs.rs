//! What a job says: from the file that its dispatcher writes while it runs on this host, from the
//! blob once it has ended.

mod kept;

use std::fs::File;
use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use ion_model::id::JobId;
use ion_plane::node::live_log;
use ion_stores::StoreError;

pub use self::kept::{HEAD, KeptOutput, LogPiece, read_piece, without_hole};
use crate::ledger::{Ledger, LedgerError};

/// Bytes of a log read at a time: less is more requests to a remote store, more is memory for each
/// who follows.
const PIECE: u64 = 1 << 20;

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The job's record.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The blob.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The job has no attempt of this number.
    #[error("job {job} has no attempt {attempt}")]
    NoAttempt {
        /// The job.
        job: JobId,
        /// The number asked for.
        attempt: u32,
    },
    /// The file of a running job.
    #[error("the log of job {job}, which runs on this host, cannot be read")]
    Local {
        /// The job.
        job: JobId,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// What a look at a log gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// The next bytes.
    More(Bytes),
    /// Nothing new; the attempt runs on. One that runs on another host says nothing here until it
    /// has ended.
    NothingYet,
    /// The attempt has ended, and this was all.
    Nothing,
}

/// The log of one attempt, read from some place on.
#[derive(Debug)]
pub struct Log {
    ledger: Ledger,
    job: JobId,
    attempt: u32,
    live: PathBuf,
    at: u64,
}

impl Log {
    /// The log of an attempt from byte `at` on; `home` is this host's folder of state.
    pub fn new(ledger: Ledger, home: &std::path::Path, job: &JobId, attempt: u32, at: u64) -> Self {
        Self { ledger, job: job.clone(), attempt, live: live_log(home, job, attempt), at }
    }

    /// The byte that comes next.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// What comes next.
    ///
    /// # Errors
    /// When there is no such attempt, or a store or the disk fails.
    pub async fn next(&mut self) -> Result<Said, LogError> {
        // The record before the file: once the record says that it ended, the stored log is whole.
        let job = self.ledger.get(&self.job).await?;
        let attempt = job.attempts.iter().find(|attempt| attempt.number == self.attempt);
        let attempt = attempt
            .ok_or_else(|| LogError::NoAttempt { job: self.job.clone(), attempt: self.attempt })?;
        let piece = match &attempt.log {
            Some(log) => {
                // Places are those in what was written; the middle of it may not be stored.
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
                let read = self.live_piece().await;
                let piece =
                    read.map_err(|source| LogError::Local { job: self.job.clone(), source })?;
                self.at += piece.length();
                [piece.words().unwrap_or_default().into_bytes(), piece.bytes].concat().into()
            }
        };
        Ok(match (piece.is_empty(), attempt.ended) {
            (false, _) => Said::More(piece),
            (true, Some(_)) => Said::Nothing,
            (true, None) => Said::NothingYet,
        })
    }

    async fn live_piece(&self) -> io::Result<LogPiece> {
        let (path, at) = (self.live.clone(), self.at);
        let read = tokio::task::spawn_blocking(move || match File::open(&path) {
            Ok(file) => read_piece(&file, at, PIECE as usize),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(LogPiece::default()),
            Err(error) => Err(error),
        });
        read.await.map_err(io::Error::other)?
    }
}
