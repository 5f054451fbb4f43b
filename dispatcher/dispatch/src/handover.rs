//! Jobs whose dispatcher is gone: they are lost with it, or handed over to another dispatcher.

use std::sync::PoisonError;

use ion_jobs::job::Transition;
use ion_model::errors::error_chain;
use ion_model::record::{AttemptEnd, JobRecord};
use ion_model::usage::AttemptUsage;
use ion_stores::StoreError;

use super::served::ServedModule;
use super::{DispatchNotice, DispatchState};

impl DispatchState {
    /// Returns whether a module's jobs go on when their dispatcher ends.
    pub(super) async fn outlives_dispatcher(&self, module: &str) -> Result<bool, StoreError> {
        if let Some(served) = self.served.get(module) {
            return Ok(served.module.executor.outlives_dispatchers());
        }
        Ok(self
            .ledger
            .module(module)
            .await?
            .is_some_and(|module| module.executor.outlives_dispatchers()))
    }

    /// Hands a job over: it goes on, and the first dispatcher that sees it may adopt it.
    pub(super) async fn hand_over(&self, job: &JobRecord) {
        if let Err(error) = self.ledger.advance(job, &Transition::Left).await {
            // The job is adopted when its lease has expired.
            tracing::debug!(
                job = %job.id,
                error = error_chain(&error),
                "cannot write that the job is handed over"
            );
        }
    }

    /// Adds a job to those of its module that wait to be adopted. An earlier look may have added it
    /// already.
    pub(super) fn queue_for_adoption(served: &ServedModule, job: JobRecord) {
        let mut left = served.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.retain(|waiting| waiting.id != job.id);
        left.push(job);
        drop(left);
        served.due.notify_one();
    }

    /// Adopts one of the module's jobs whose dispatcher is gone, to go on with its running attempt.
    pub(super) async fn adopt_next_job(&self, served: &ServedModule) -> Option<JobRecord> {
        loop {
            let job = served.left.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            if self.running.has(&job.id) {
                continue;
            }
            let adopted = Transition::Adopted { holder: self.id.clone(), lease: self.lease() };
            match self.ledger.advance(&job, &adopted).await {
                Ok(record) => {
                    self.metrics.count_adopted();
                    tracing::info!(
                        job = %job.id,
                        attempt = job.attempt,
                        "a job whose dispatcher is gone is adopted"
                    );
                    return Some(record);
                }
                // Another dispatcher has adopted it, or it has ended.
                Err(error) => {
                    tracing::debug!(
                        job = %job.id,
                        error = error_chain(&error),
                        "a handed-over job could not be adopted"
                    )
                }
            }
        }
    }

    /// Ends the attempt of a job whose holder is gone. The job has another attempt, or is dead.
    pub(super) async fn mark_lost(&self, job: &JobRecord) {
        match self.ledger.mark_lost(job, "its dispatcher died").await {
            Ok(record) => {
                self.metrics.count_end(&record.module, AttemptEnd::Lost, AttemptUsage::default());
                self.served.wake_module(&record.module);
                self.notices.send(DispatchNotice::Ended(record));
            }
            // Another dispatcher has ended the attempt, or its holder has. If the store failed, a
            // later look finds the job again.
            Err(error) => {
                tracing::debug!(
                    job = %job.id,
                    error = error_chain(&error),
                    "the attempt could not be marked as lost"
                )
            }
        }
    }
}
