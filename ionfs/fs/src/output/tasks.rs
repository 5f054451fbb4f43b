//! The background tasks of one job, and the end of its waits when it is ended by force.

use tokio::runtime::Handle as Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::super::{Errno, Result};

/// Where a job's tasks run, and whether they still wait for stores and uploads.
#[derive(Clone, Debug)]
pub(super) struct JobTasks {
    runtime: Runtime,
    /// Cancelled when the job ends.
    stopped: CancellationToken,
}

impl JobTasks {
    /// Must be called inside a Tokio runtime.
    pub(super) fn new() -> Self {
        Self { runtime: Runtime::current(), stopped: CancellationToken::new() }
    }

    /// Returns the runtime that runs the tasks.
    pub(super) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Runs `task` in the background.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.runtime.spawn(task)
    }

    /// Ends the waits of a job that is ended by force: requests that wait for a store are answered
    /// now, and nothing is committed any more. A process whose request is not answered cannot die.
    pub(super) fn stop(&self) {
        self.stopped.cancel();
    }

    /// Returns whether the waits were ended.
    pub(super) fn are_stopped(&self) -> bool {
        self.stopped.is_cancelled()
    }

    /// Awaits `work`. Returns EIO when the job is ended by force.
    pub(super) async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        tokio::select! {
            // Check for the end first: `work` that is polled even once may hand its document to the
            // store, if what it waits for is quick.
            biased;
            () = self.stopped.cancelled() => Err(Errno::IO),
            outcome = work => outcome,
        }
    }
}
