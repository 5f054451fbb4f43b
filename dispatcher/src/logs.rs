//! What a job says: from the file that its dispatcher writes while it runs on this host, from the blob once it has ended.

use std::io::{self, SeekFrom};
use std::path::PathBuf;

use bytes::Bytes;
use ionfs::id::JobId;
use ionfs::node::live_log;
use ionfs::stores::StoreError;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use crate::ledger::{Ledger, LedgerError};

/// Bytes of a log read at a time: less is more requests to a remote store, more is memory for each who follows.
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
    /// Nothing new; the attempt runs on. One that runs on another host says nothing here until it has ended.
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
        let attempt =
            attempt.ok_or_else(|| LogError::NoAttempt { job: self.job.clone(), attempt: self.attempt })?;
        let piece = match &attempt.log {
            Some(log) => {
                let end = log.size.min(self.at + PIECE);
                self.ledger.plane().blobs.get_range(&log.key, self.at.min(end)..end).await?
            }
            None => {
                let read = self.live_piece().await;
                read.map_err(|source| LogError::Local { job: self.job.clone(), source })?
            }
        };
        self.at += piece.len() as u64;
        Ok(match (piece.is_empty(), attempt.ended) {
            (false, _) => Said::More(piece),
            (true, Some(_)) => Said::Nothing,
            (true, None) => Said::NothingYet,
        })
    }

    async fn live_piece(&self) -> io::Result<Bytes> {
        let mut file = match tokio::fs::File::open(&self.live).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Bytes::new()),
            Err(error) => return Err(error),
        };
        file.seek(SeekFrom::Start(self.at)).await?;
        let mut piece = Vec::new();
        file.take(PIECE).read_to_end(&mut piece).await?;
        Ok(piece.into())
    }
}
