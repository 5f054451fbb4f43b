//! The output of a running attempt, for a program that shows it live.
//!
//! # How it works
//! Only the log of the attempt stands between the two: whoever shows it reads that file at its own
//! pace. So one who is slow, or stands still, holds up no job and fills no memory, and misses
//! nothing that is kept.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ion_jobs::logs::{LogPiece, read_piece};
use ion_model::id::JobId;

/// What one attempt writes. Nobody is told of one that writes nothing.
#[derive(Debug)]
pub struct LiveOutput {
    /// The module.
    pub module: String,
    /// The job.
    pub job: JobId,
    log: File,
    /// Where its last byte ends: what Ion itself adds to the log is none of its output. [`RUNS`]
    /// before it has ended.
    end: AtomicU64,
}

/// No output is as long.
const RUNS: u64 = u64::MAX;

impl LiveOutput {
    /// At most `most` bytes of it from byte `at` on; none where there are no more by now.
    ///
    /// # Errors
    /// The disk's.
    pub fn read(&self, at: u64, most: usize) -> io::Result<LogPiece> {
        let left = self.end.load(Ordering::Acquire).saturating_sub(at);
        read_piece(&self.log, at, most.min(usize::try_from(left).unwrap_or(most)))
    }

    /// Its bytes by now, with those that are not kept.
    ///
    /// # Errors
    /// The disk's.
    pub fn length(&self) -> io::Result<u64> {
        Ok(self.log.metadata()?.len().min(self.end.load(Ordering::Acquire)))
    }

    /// Whether it has written its last byte.
    pub fn has_ended(&self) -> bool {
        self.end.load(Ordering::Acquire) != RUNS
    }
}

/// Shows what jobs write. None of these calls may wait.
pub trait OutputWatcher: Debug + Send + Sync {
    /// An attempt has written something for the first time.
    fn begins(&self, output: Arc<LiveOutput>);

    /// One that has begun has written more, or has ended.
    fn goes_on(&self);
}

/// One attempt's output, and who is told of it.
#[derive(Debug)]
pub(in crate::executor) struct OutputNews {
    watcher: Arc<dyn OutputWatcher>,
    module: String,
    job: JobId,
    output: Option<Arc<LiveOutput>>,
}

impl OutputNews {
    pub(in crate::executor) fn new(
        watcher: Arc<dyn OutputWatcher>,
        module: &str,
        job: &JobId,
    ) -> Self {
        Self { watcher, module: module.to_owned(), job: job.clone(), output: None }
    }

    /// There is more in the log, which `log` opens.
    pub(super) fn goes_on(&mut self, log: impl FnOnce() -> io::Result<File>) {
        if self.output.is_some() {
            return self.watcher.goes_on();
        }
        match log() {
            Ok(log) => {
                let (module, job) = (self.module.clone(), self.job.clone());
                let output = Arc::new(LiveOutput { module, job, log, end: AtomicU64::new(RUNS) });
                self.watcher.begins(output.clone());
                self.output = Some(output);
            }
            Err(error) => tracing::debug!(%error, "a job's output is not shown"),
        }
    }
}

impl Drop for OutputNews {
    fn drop(&mut self) {
        if let Some(output) = &self.output {
            output.end.store(output.log.metadata().map_or(0, |log| log.len()), Ordering::Release);
            self.watcher.goes_on();
        }
    }
}
