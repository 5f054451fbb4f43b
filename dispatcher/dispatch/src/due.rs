//! Starts the jobs of a module that wait in the ledger: retries, released and gathering jobs, and
//! attempts that another dispatcher has left running.

use std::sync::PoisonError;

use ion_jobs::gather::GatheredWork;
use ion_jobs::job::{AttemptOutcome, Transition};
use ion_jobs::ledger::LedgerError;
use ion_jobs::pipeline::Module;
use ion_model::errors::error_chain;
use ion_model::record::{AttemptEnd, JobRecord};

use super::DispatchState;
use super::attempt::ClaimedJob;
use super::claims::JobMaterials;
use super::serve::{DueLook, ModuleTask};
use super::slots::JobSlot;

/// A job that was taken from the ledger.
struct TakenJob {
    job: JobRecord,
    source: JobSource,
    slot: JobSlot,
}

/// Where a taken job comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JobSource {
    /// It was queued, and begins a new attempt.
    Queue,
    /// Its attempt runs already, since its former dispatcher has handed it over.
    Adopted,
}

impl ModuleTask {
    /// Starts jobs that wait in the ledger while there are free slots.
    pub(super) async fn start_due_jobs(&mut self) -> DueLook {
        loop {
            if self.served.stopping.is_cancelled() {
                return DueLook::Stopping;
            }
            let taken = match self.take_due_job().await {
                Ok(taken) => taken,
                Err(due) => return due,
            };
            let materials =
                self.dispatch.read_materials_patiently(&taken.job, &self.served.module).await;
            match materials {
                Ok(materials) => self.begin_taken_job(taken, materials).await,
                Err(error) => {
                    self.dispatch.give_back_job(taken, &self.served.module, &error).await;
                    return DueLook::Nothing;
                }
            }
        }
    }

    /// Takes a slot and one job of the module: one that was handed over, else one that is due.
    async fn take_due_job(&mut self) -> Result<TakenJob, DueLook> {
        let (dispatch, module) = (&self.dispatch, &self.served.module.name);
        let unreadable = |error: &LedgerError| {
            tracing::debug!(module, error = error_chain(error), "the ledger cannot be read");
            DueLook::Nothing
        };
        // The look itself takes no slot, so modules that have nothing to run take none from the
        // others.
        while !self.served.left.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            let slot = self.slots.take().ok_or(DueLook::Behind)?;
            if let Some(job) = dispatch.adopt_next_job(&self.served).await {
                return Ok(TakenJob { job, source: JobSource::Adopted, slot });
            }
        }
        let due = dispatch.ledger.due_jobs(module, &mut self.seen).await;
        let due = due.map_err(|error| unreadable(&error.into()))?;
        if due.is_empty() {
            return Err(DueLook::Nothing);
        }
        let slot = self.slots.take().ok_or(DueLook::Behind)?;
        let taken = dispatch.ledger.claim_queued(&due, &dispatch.id, dispatch.lease()).await;
        let job = taken.map_err(|error| unreadable(&error))?.ok_or(DueLook::Nothing)?;
        dispatch.metrics.count_taken();
        Ok(TakenJob { job, source: JobSource::Queue, slot })
    }

    /// Begins a taken job, if all that it begins with is there.
    async fn begin_taken_job(&mut self, taken: TakenJob, materials: JobMaterials) {
        let TakenJob { job, source, slot } = taken;
        let module = self.served.module.clone();
        match materials {
            JobMaterials::Ready { event, gathered: None } => {
                self.begin_job(ClaimedJob { job, module, event: *event, gathered: None }, slot);
            }
            JobMaterials::Ready { event, gathered: Some(GatheredWork { events, without }) } => {
                let job = self.dispatch.write_missing_jobs(job, without).await;
                let gathered = Some(events);
                self.begin_job(ClaimedJob { job, module, event: *event, gathered }, slot);
            }
            // The attempt that runs goes on as it began. If the job were put back, another attempt
            // would get the same number, find the pod of this attempt with what that has gathered,
            // and take it for its own.
            JobMaterials::WaitsAgain if source == JobSource::Adopted => {
                self.dispatch.hand_over(&job).await;
            }
            JobMaterials::WaitsAgain => {
                if let Err(error) =
                    self.dispatch.ledger.advance(&job, &Transition::WaitsAgain).await
                {
                    let error = error_chain(&error);
                    tracing::warn!(job = %job.id, error, "cannot write that the job waits again");
                }
            }
            JobMaterials::Missing(reason) => {
                self.dispatch.end_attempt(&job, &module, AttemptOutcome::failed(reason)).await;
            }
        }
    }
}

impl DispatchState {
    /// Gives a taken job back, because the ledger cannot be read.
    async fn give_back_job(&self, taken: TakenJob, module: &Module, error: &LedgerError) {
        let TakenJob { job, source, slot: _ } = taken;
        let error = error_chain(error);
        match source {
            JobSource::Adopted => {
                tracing::warn!(
                    job = %job.id,
                    error,
                    "the events of an adopted job cannot be read; the job is handed over again"
                );
                self.hand_over(&job).await;
            }
            JobSource::Queue => {
                let released = AttemptOutcome::failed(error);
                let released = AttemptOutcome { end: AttemptEnd::Released, ..released };
                self.end_attempt(&job, module, released).await;
            }
        }
    }
}
