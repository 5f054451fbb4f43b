//! The jobs that run in this dispatcher.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ion_model::id::JobId;
use ion_run::executor::StopReason;

use super::attempt::StopSender;

/// The jobs that run in this dispatcher, and what ends each of them.
#[derive(Debug, Default)]
pub(super) struct RunningJobs(Mutex<HashMap<JobId, StopSender>>);

impl RunningJobs {
    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, StopSender>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, job: JobId, stop: StopSender) {
        self.lock().insert(job, stop);
    }

    pub(super) fn remove(&self, job: &JobId) {
        self.lock().remove(job);
    }

    pub(super) fn has(&self, job: &JobId) -> bool {
        self.lock().contains_key(job)
    }

    /// Ends all of them.
    pub(super) fn stop_all(&self, reason: StopReason) {
        for stop in self.lock().values() {
            stop.send_replace(Some(reason));
        }
    }
}
