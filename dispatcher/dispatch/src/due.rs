//! Starts the jobs of a module that wait in the ledger: retries, released and gathering jobs, and
//! attempts that another dispatcher has left running.

use std::collections::HashMap;
use std::sync::PoisonError;

use ion_jobs::gather::GatheredWork;
use ion_jobs::job::{AttemptOutcome, Transition, runs_alone};
use ion_jobs::ledger::LedgerError;
use ion_jobs::pipeline::Module;
use ion_model::errors::error_chain;
use ion_model::event::Event;
use ion_model::id::EventId;
use ion_model::record::{AttemptEnd, JobRecord};

use super::DispatchState;
use super::attempt::{ClaimedJob, ClaimedJobs};
use super::claims::JobMaterials;
use super::serve::{DueLook, ModuleTask};
use super::slots::JobSlot;

/// Jobs that were taken from the ledger, to be run together.
struct TakenJobs {
    /// One, unless the module takes batches.
    jobs: Vec<JobRecord>,
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
            let taken = match self.take_due_jobs().await {
                Ok(taken) => taken,
                Err(due) => return due,
            };
            if let Some(due) = self.begin_taken_jobs(taken).await {
                return due;
            }
        }
    }

    /// Takes a slot and one job of the module, or as many as it takes into a batch: one that was
    /// handed over, else what is due.
    async fn take_due_jobs(&mut self) -> Result<TakenJobs, DueLook> {
        let (dispatch, module) = (&self.dispatch, &self.served.module);
        let unreadable = |error: &LedgerError| {
            let module = &module.name;
            tracing::debug!(module, error = error_chain(error), "the ledger cannot be read");
            DueLook::Nothing
        };
        // The look itself takes no slot, so modules that have nothing to run take none from the
        // others.
        while !self.served.left.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            let slot = self.slots.take().ok_or(DueLook::Behind)?;
            if let Some(job) = dispatch.adopt_next_job(&self.served).await {
                return Ok(TakenJobs { jobs: vec![job], source: JobSource::Adopted, slot });
            }
        }
        let due = dispatch.ledger.due_jobs(module, &mut self.seen).await;
        let due = due.map_err(|error| unreadable(&error.into()))?;
        if due.is_empty() {
            return Err(DueLook::Nothing);
        }
        let slot = self.slots.take().ok_or(DueLook::Behind)?;
        let (ledger, holder, lease) = (&dispatch.ledger, &dispatch.id, dispatch.lease());
        let taken = match chosen_of_due(due, module) {
            ChosenJobs::AnyOf(due) => {
                let claimed = ledger.claim_queued(&due, holder, lease).await;
                claimed.map(|job| job.into_iter().collect())
            }
            ChosenJobs::All(due) => ledger.claim_queued_all(&due, holder, lease).await,
        };
        let jobs: Vec<JobRecord> = taken.map_err(|error| unreadable(&error))?;
        if jobs.is_empty() {
            return Err(DueLook::Nothing);
        }
        jobs.iter().for_each(|_| dispatch.metrics.count_taken());
        Ok(TakenJobs { jobs, source: JobSource::Queue, slot })
    }

    /// Begins taken jobs, if all that they begin with is there. Returns why the look into the ledger
    /// ends, if it does.
    async fn begin_taken_jobs(&mut self, taken: TakenJobs) -> Option<DueLook> {
        let (dispatch, module) = (self.dispatch.clone(), self.served.module.clone());
        if module.batch.is_some() {
            let events = match dispatch.read_events_patiently(&taken.jobs).await {
                Ok(events) => events,
                Err(error) => {
                    dispatch.give_back_jobs(taken, &module, &error).await;
                    return Some(DueLook::Nothing);
                }
            };
            self.begin_batch(taken, events).await;
            return None;
        }
        let job = taken.jobs.first()?;
        match dispatch.read_materials_patiently(job, &module).await {
            Ok(materials) => self.begin_taken_job(taken, materials).await,
            Err(error) => {
                dispatch.give_back_jobs(taken, &module, &error).await;
                return Some(DueLook::Nothing);
            }
        }
        None
    }

    /// Begins the jobs of a batch whose events are there.
    async fn begin_batch(&mut self, taken: TakenJobs, mut events: HashMap<EventId, Event>) {
        let module = self.served.module.clone();
        let (mut jobs, mut without_event) = (Vec::new(), Vec::new());
        for job in taken.jobs {
            match events.remove(&job.event_id) {
                Some(event) => jobs.push(ClaimedJob { job, event, gathered: None }),
                None => {
                    let reason = format!("event {} is not there any more", job.event_id);
                    without_event.push((job, AttemptOutcome::failed(reason)));
                }
            }
        }
        if !without_event.is_empty() {
            self.dispatch.end_attempts(&module, without_event).await;
        }
        if !jobs.is_empty() {
            self.begin_jobs(ClaimedJobs { module, jobs }, taken.slot);
        }
    }

    /// Begins a taken job that runs by itself, if all that it begins with is there.
    async fn begin_taken_job(&mut self, taken: TakenJobs, materials: JobMaterials) {
        let TakenJobs { jobs, source, slot } = taken;
        let module = self.served.module.clone();
        let Some(job) = jobs.into_iter().next() else { return };
        match materials {
            JobMaterials::Ready { event, gathered: None } => {
                let jobs = vec![ClaimedJob { job, event: *event, gathered: None }];
                self.begin_jobs(ClaimedJobs { module, jobs }, slot);
            }
            JobMaterials::Ready { event, gathered: Some(GatheredWork { events, without }) } => {
                let job = self.dispatch.write_missing_jobs(job, without).await;
                let jobs = vec![ClaimedJob { job, event: *event, gathered: Some(events) }];
                self.begin_jobs(ClaimedJobs { module, jobs }, slot);
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
                let ended = vec![(job, AttemptOutcome::failed(reason))];
                self.dispatch.end_attempts(&module, ended).await;
            }
        }
    }
}

impl DispatchState {
    /// Gives taken jobs back, because the ledger cannot be read.
    async fn give_back_jobs(&self, taken: TakenJobs, module: &Module, error: &LedgerError) {
        let TakenJobs { jobs, source, slot: _ } = taken;
        let error = error_chain(error);
        match source {
            JobSource::Adopted => {
                for job in jobs {
                    tracing::warn!(
                        job = %job.id,
                        error,
                        "the events of an adopted job cannot be read; the job is handed over again"
                    );
                    self.hand_over(&job).await;
                }
            }
            JobSource::Queue => {
                let released = |job| {
                    let released = AttemptOutcome::failed(error.as_str());
                    (job, AttemptOutcome { end: AttemptEnd::Released, ..released })
                };
                self.end_attempts(module, jobs.into_iter().map(released).collect()).await;
            }
        }
    }
}

/// Which of the due jobs are taken.
#[derive(Debug)]
enum ChosenJobs {
    /// One of these: the first that no other dispatcher takes.
    AnyOf(Vec<JobRecord>),
    /// All of these, as a batch.
    All(Vec<JobRecord>),
}

/// Chooses which of the due jobs of a module are taken now: for a module that takes batches, as many
/// as it takes, unless the first is to run alone.
fn chosen_of_due(due: Vec<JobRecord>, module: &Module) -> ChosenJobs {
    if module.batch.is_none() {
        return ChosenJobs::AnyOf(due);
    }
    let first_runs_alone = due.first().is_some_and(runs_alone);
    let (alone, together): (Vec<_>, Vec<_>) = due.into_iter().partition(runs_alone);
    match first_runs_alone {
        true => ChosenJobs::AnyOf(alone),
        false => ChosenJobs::All(together.into_iter().take(module.jobs_at_once()).collect()),
    }
}
