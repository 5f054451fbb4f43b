//! Jobs whose dispatcher is gone: lost with it, or left to whoever adopts them.

use std::sync::PoisonError;

use ion_jobs::job::Transition;
use ion_model::errors::chain;
use ion_model::record::{AttemptEnd, JobRecord};
use ion_stores::StoreError;

use super::modules::ServedModule;
use super::{DispatchNotice, DispatchState};

impl DispatchState {
    /// Whether a module's jobs go on when their dispatcher ends.
    pub(super) async fn outlives(&self, module: &str) -> Result<bool, StoreError> {
        if let Some(served) = self.served.get(module) {
            return Ok(served.module.executor.outlives_dispatchers());
        }
        Ok(self
            .ledger
            .module(module)
            .await?
            .is_some_and(|module| module.executor.outlives_dispatchers()))
    }

    /// The job goes on, and whoever sees it first may adopt it.
    pub(super) async fn leave(&self, job: &JobRecord) {
        if let Err(error) = self.ledger.advance(job, &Transition::Left).await {
            // Its lease runs out.
            tracing::debug!(job = %job.id, error = chain(&error), "that a job is left could not be written");
        }
    }

    /// One of the module's jobs waits to be adopted; it may have waited there since an earlier
    /// look.
    pub(super) fn note_left(served: &ServedModule, job: JobRecord) {
        let mut left = served.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.retain(|waiting| waiting.id != job.id);
        left.push(job);
        drop(left);
        served.due.notify_one();
    }

    /// Takes over one of the module's jobs whose dispatcher is gone, to go on with what runs of it.
    pub(super) async fn adopt(&self, served: &ServedModule) -> Option<JobRecord> {
        loop {
            let job = served.left.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            if self.runs(&job.id) {
                continue;
            }
            let adopted = Transition::Adopted { holder: self.id.clone(), lease: self.lease() };
            match self.ledger.advance(&job, &adopted).await {
                Ok(record) => {
                    self.metrics.adopted();
                    tracing::info!(job = %job.id, attempt = job.attempt, "a job whose dispatcher is gone is adopted");
                    return Some(record);
                }
                // Somebody else was faster, or it has ended.
                Err(error) => {
                    tracing::debug!(job = %job.id, error = chain(&error), "a left job was not ours")
                }
            }
        }
    }

    /// The job's holder is gone: another attempt, or dead.
    pub(super) async fn lose(&self, job: &JobRecord) {
        match self.ledger.lose(job, "its dispatcher died").await {
            Ok(record) => {
                self.metrics.ended(&record.module, AttemptEnd::Lost);
                self.served.ring(&record.module);
                self.notice(DispatchNotice::Ended(record)).await;
            }
            // Somebody else was faster, which is as good.
            Err(error) => {
                tracing::debug!(job = %job.id, error = chain(&error), "a lost job was not ours to move")
            }
        }
    }
}
