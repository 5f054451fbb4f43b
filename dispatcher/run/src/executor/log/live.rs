//! The output of a running attempt, for a program that shows it live.
//!
//! # How it works
//! The writer and the viewer share only the attempt's log: the viewer reads that file at its own
//! pace. So a viewer that is slow, or stops reading, delays no job and fills no memory, and misses
//! nothing that the log keeps.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ion_jobs::logs::{LogPiece, read_piece};
use ion_model::id::JobId;

/// The output of one attempt. Watchers are not notified of an attempt that writes nothing.
#[derive(Debug)]
pub struct LiveOutput {
    /// The module.
    pub module: String,
    /// The job.
    pub job: JobId,
    log: File,
    /// The length of the output, without what Ion itself adds to the log later. [`RUNS`] until the
    /// output has ended.
    end: AtomicU64,
}

/// The value of `end` while the attempt runs: no output is this long.
const RUNS: u64 = u64::MAX;

impl LiveOutput {
    /// Returns at most `most` bytes of the output from byte `at` on; none where there are no more
    /// yet.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn read(&self, at: u64, most: usize) -> io::Result<LogPiece> {
        let left = self.end.load(Ordering::Acquire).saturating_sub(at);
        read_piece(&self.log, at, most.min(usize::try_from(left).unwrap_or(most)))
    }

    /// Returns the length of the output so far in bytes, including the bytes that are not kept.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn length(&self) -> io::Result<u64> {
        Ok(self.log.metadata()?.len().min(self.end.load(Ordering::Acquire)))
    }

    /// Returns whether the attempt has written its last byte.
    pub fn has_ended(&self) -> bool {
        self.end.load(Ordering::Acquire) != RUNS
    }
}

/// A watcher that shows what jobs write. None of these calls may block.
pub trait OutputWatcher: Debug + Send + Sync {
    /// Called when an attempt has written output for the first time.
    fn on_begin(&self, output: Arc<LiveOutput>);

    /// Called when an attempt that has begun has written more, or has ended.
    fn on_change(&self);
}

/// One attempt's output, and the watcher that is notified of it.
#[derive(Debug)]
pub(in crate::executor) struct OutputNotifier {
    watcher: Arc<dyn OutputWatcher>,
    module: String,
    job: JobId,
    output: Option<Arc<LiveOutput>>,
}

impl OutputNotifier {
    pub(in crate::executor) fn new(
        watcher: Arc<dyn OutputWatcher>,
        module: &str,
        job: &JobId,
    ) -> Self {
        Self { watcher, module: module.to_owned(), job: job.clone(), output: None }
    }

    /// Notifies the watcher that the log has grown; `log` opens the log.
    pub(super) fn notify(&mut self, log: impl FnOnce() -> io::Result<File>) {
        if self.output.is_some() {
            return self.watcher.on_change();
        }
        match log() {
            Ok(log) => {
                let (module, job) = (self.module.clone(), self.job.clone());
                let output = Arc::new(LiveOutput { module, job, log, end: AtomicU64::new(RUNS) });
                self.watcher.on_begin(output.clone());
                self.output = Some(output);
            }
            Err(error) => tracing::debug!(%error, "a job's output is not shown"),
        }
    }
}

impl Drop for OutputNotifier {
    fn drop(&mut self) {
        if let Some(output) = &self.output {
            output.end.store(output.log.metadata().map_or(0, |log| log.len()), Ordering::Release);
            self.watcher.on_change();
        }
    }
}
