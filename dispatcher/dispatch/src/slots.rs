//! The slots in which jobs run: their number bounds the jobs that run at the same time.

use std::sync::Arc;

use ion_jobs::pipeline::AT_A_TIME_MAX;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Whether the module and the dispatcher have room for one more job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotState {
    Free,
    Taken,
}

/// The right to run one job: a slot of its module and a slot of the dispatcher.
#[derive(Debug)]
pub(super) struct JobSlot {
    _of_module: OwnedSemaphorePermit,
    _of_dispatcher: OwnedSemaphorePermit,
}

/// The slots in which a module's jobs run.
#[derive(Debug)]
pub(super) struct ModuleSlots {
    of_module: Arc<Semaphore>,
    of_dispatcher: Arc<Semaphore>,
}

impl ModuleSlots {
    /// Makes the slots of a module that may run this many jobs at the same time.
    pub(super) fn new(concurrency: usize, of_dispatcher: Arc<Semaphore>) -> Self {
        let jobs = concurrency.clamp(1, AT_A_TIME_MAX);
        Self { of_module: Arc::new(Semaphore::new(jobs)), of_dispatcher }
    }

    /// Takes a slot, if both kinds are free.
    pub(super) fn take(&self) -> Option<JobSlot> {
        Some(JobSlot {
            _of_module: self.of_module.clone().try_acquire_owned().ok()?,
            _of_dispatcher: self.of_dispatcher.clone().try_acquire_owned().ok()?,
        })
    }

    /// Returns whether a slot could be taken now.
    pub(super) fn state(&self) -> SlotState {
        match self.of_module.available_permits() > 0 && self.of_dispatcher.available_permits() > 0 {
            true => SlotState::Free,
            false => SlotState::Taken,
        }
    }
}
