//! Claims the jobs of messages, and reads what a job begins with.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use ion_jobs::gather::{GatheredWork, gather};
use ion_jobs::job::Transition;
use ion_jobs::ledger::{ClaimOutcome, LedgerError, MessageSubject};
use ion_jobs::pipeline::Module;
use ion_model::clock;
use ion_model::errors::error_chain;
use ion_model::event::{Event, Message};
use ion_model::id::EventId;
use ion_model::record::{JobRecord, JobState};
use ion_stores::{DeadLetter, Delivery, StoreError, encode};
use ion_system::patience::{FailedTry, Retry};

use super::attempt::{ClaimedJob, ClaimedJobs};
use super::served::ServedModule;
use super::slots::JobSlot;
use super::{DispatchState, STORE_WAIT};

/// The tries to claim a message's job before the message goes back to its queue. All of them take
/// far less than the half hour after which a broker takes a message back.
const CLAIM: Retry = Retry::times(600).waiting(STORE_WAIT);

/// The tries to read the documents that a job begins with before the job goes back to its queue.
const READ_MATERIALS: Retry = Retry::times(20).waiting(STORE_WAIT);

/// The part of a lease that may pass between the claim of a job and the beginning of its attempt
/// without a renewal: the times after which a holder gives up, and others take a job, lie further
/// apart.
const LEASE_SLACK: u32 = 12;

/// What a job begins with.
#[derive(Debug)]
pub(super) enum JobMaterials {
    /// All that it begins with is there.
    Ready {
        /// Its event.
        event: Box<Event>,
        /// What it gathers, for a job of a module with `gather`.
        gathered: Option<GatheredWork>,
    },
    /// A job below the event of a gathering job works again.
    WaitsAgain,
    /// The job cannot begin, for this reason.
    Missing(String),
}

/// What to do with the job of a message.
#[derive(Debug)]
pub(super) enum ClaimIntent {
    /// Run it here, in this slot.
    Run(JobSlot),
    /// Queue it in the ledger.
    Queue,
}

/// Messages whose jobs were claimed together.
#[derive(Debug)]
pub(super) struct ClaimedMessages {
    /// The subscription's numbers of the deliveries.
    pub(super) tags: Vec<u64>,
    pub(super) end: ClaimEnd,
}

/// How a claim ended.
#[derive(Debug)]
pub(super) enum ClaimEnd {
    /// This dispatcher has these jobs, and runs them in this slot.
    Run(ClaimedJobs, JobSlot),
    /// This dispatcher has nothing to run now: the jobs run elsewhere or later, or the messages
    /// start no job.
    NothingToRun,
    /// The jobs could not be claimed.
    Failed(LedgerError),
}

/// Which try of a claim it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClaimTry {
    First,
    /// The answer to an earlier try may have been lost, so the job may be this dispatcher's.
    Repeated,
}

impl DispatchState {
    /// Reads what a job begins with, and tries again while the store is unavailable, which is no
    /// failure of the module.
    pub(super) async fn read_materials_patiently(
        &self,
        job: &JobRecord,
        module: &Module,
    ) -> Result<JobMaterials, LedgerError> {
        let is_unavailable = |failed: FailedTry<'_, LedgerError>| {
            let LedgerError::Store(error) = failed.error else { return false };
            tracing::debug!(job = %job.id, error = error_chain(error), "its event cannot be read yet");
            true
        };
        let read = |_| self.read_materials(job, module);
        READ_MATERIALS.run_until(self.stopping.cancelled(), read, is_unavailable).await
    }

    /// Reads the event of a job and the events that it gathers. The ledger holds only their ids.
    async fn read_materials(
        &self,
        job: &JobRecord,
        module: &Module,
    ) -> Result<JobMaterials, LedgerError> {
        let event = match self.ledger.event(&job.event_id).await {
            Ok(Some(event)) => Box::new(event),
            Ok(None) => {
                return Ok(JobMaterials::Missing(format!(
                    "event {} is not there any more",
                    job.event_id
                )));
            }
            Err(malformed @ StoreError::Malformed { .. }) => {
                return Ok(JobMaterials::Missing(error_chain(&malformed)));
            }
            Err(error) => return Err(error.into()),
        };
        if module.gather.is_none() {
            return Ok(JobMaterials::Ready { event, gathered: None });
        }
        let registered = self.ledger.registered_modules().await?;
        let gathered = gather(&self.ledger, job, module, &registered);
        Ok(match self.keep_lease_during(job, gathered).await? {
            gathered @ Some(_) => JobMaterials::Ready { event, gathered },
            None => JobMaterials::WaitsAgain,
        })
    }

    /// Renews the lease of a job again and again. Never returns.
    async fn keep_lease(&self, job: &JobRecord) -> Infallible {
        loop {
            tokio::time::sleep(self.settings.lease / 3).await;
            // If somebody has taken the job meanwhile, this attempt is fenced.
            if let Err(error) = self.ledger.advance(job, &Transition::Renewed).await {
                let error = error_chain(&error);
                tracing::warn!(job = %job.id, error, "the lease could not be renewed");
            }
        }
    }

    /// Renews the lease of a job while its events are being gathered, which may take minutes.
    async fn keep_lease_during<T>(
        &self,
        job: &JobRecord,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, LedgerError> {
        let begun = Instant::now();
        let done = tokio::select! {
            done = work => done?,
            never = self.keep_lease(job) => match never {},
        };
        // The attempt counts its lease from its own beginning.
        if begun.elapsed() > self.settings.lease / LEASE_SLACK {
            self.ledger.advance(job, &Transition::Renewed).await?;
        }
        Ok(done)
    }

    /// Reads the events of the jobs of a batch, and tries again while the store is unavailable. An
    /// event that cannot be read is left out.
    pub(super) async fn read_events_patiently(
        &self,
        jobs: &[JobRecord],
    ) -> Result<HashMap<EventId, Event>, LedgerError> {
        let ids: Vec<EventId> = jobs.iter().map(|job| job.event_id.clone()).collect();
        let warn = |failed: FailedTry<'_, StoreError>| {
            let error = error_chain(failed.error);
            tracing::debug!(jobs = ids.len(), error, "the events of a batch cannot be read yet");
            true
        };
        let read = |_| self.ledger.events(&ids);
        let read = READ_MATERIALS.run_until(self.stopping.cancelled(), read, warn).await;
        Ok(read?)
    }

    /// Claims the jobs of messages, and tries again while the store is unavailable, because a broker
    /// counts each return of a message and gives the message up in the end.
    pub(super) async fn claim_patiently(
        self: Arc<Self>,
        served: Arc<ServedModule>,
        deliveries: Vec<Delivery>,
        intent: ClaimIntent,
    ) -> ClaimedMessages {
        let tags = deliveries.iter().map(|delivery| delivery.tag).collect();
        let claim = |number| {
            let which = if number == 0 { ClaimTry::First } else { ClaimTry::Repeated };
            self.claim(&served, &deliveries, &intent, which)
        };
        let warn = |failed: FailedTry<'_, LedgerError>| {
            let (module, error) = (&served.module.name, error_chain(failed.error));
            tracing::warn!(module, error, "a job could not be claimed yet");
            true
        };
        let claimed = CLAIM.run_until(self.stopping.cancelled(), claim, warn).await;
        let end = match (claimed, intent) {
            (Ok(jobs), ClaimIntent::Run(slot)) if !jobs.is_empty() => {
                ClaimEnd::Run(ClaimedJobs { module: served.module.clone(), jobs }, slot)
            }
            (Ok(_), _) => ClaimEnd::NothingToRun,
            (Err(error), _) => ClaimEnd::Failed(error),
        };
        ClaimedMessages { tags, end }
    }

    /// Claims the jobs of messages once. Returns those to run here: none that is known or waits, and
    /// none for a message that is not one of Ion's.
    async fn claim(
        &self,
        served: &ServedModule,
        deliveries: &[Delivery],
        intent: &ClaimIntent,
        which: ClaimTry,
    ) -> Result<Vec<ClaimedJob>, LedgerError> {
        let module = &served.module;
        let mut messages = Vec::with_capacity(deliveries.len());
        for delivery in deliveries {
            match &delivery.message {
                Ok(message) => messages.push(message),
                Err(unreadable) => {
                    let body = String::from_utf8_lossy(&unreadable.body).into_owned();
                    let reason = format!("it is no message of Ion's: {}", unreadable.reason);
                    self.write_dead_letter(module, &unreadable.id(), body, reason).await?;
                }
            }
        }
        let events = self.read_announced_events(served, &messages).await?;
        if events.is_empty() {
            return Ok(vec![]);
        }
        let wants_to_run = matches!(intent, ClaimIntent::Run(_));
        let holder = wants_to_run.then(|| (self.id.as_str(), self.lease()));
        let claims = self.ledger.claim_all(module, &events, holder).await?;
        let mut to_run = Vec::new();
        for (event, claim) in events.into_iter().zip(claims) {
            let claim = match claim {
                Ok(claim) => claim,
                // Another read would give the same document.
                Err(malformed) => {
                    let body = encode(&event.message()).to_string();
                    let (id, reason) = (event.id.as_str(), error_chain(&malformed));
                    self.write_dead_letter(module, id, body, reason).await?;
                    continue;
                }
            };
            self.metrics.count_claim(&claim);
            let runs_here = |job| ClaimedJob { job, event, gathered: None };
            match claim {
                ClaimOutcome::Won(job) if job.state == JobState::Waiting => {
                    self.ended.notify_one();
                }
                ClaimOutcome::Won(job) if wants_to_run => to_run.push(runs_here(job)),
                ClaimOutcome::Won(_) => self.served.wake_module(&module.name),
                // The answer to this dispatcher's first try was lost. It holds the job all the
                // same.
                ClaimOutcome::Known(job)
                    if which == ClaimTry::Repeated && self.has_just_won(&job) =>
                {
                    to_run.push(runs_here(job));
                }
                ClaimOutcome::Known(_) => {}
            }
        }
        Ok(to_run)
    }

    /// Returns the events that messages name and that are for the module, each once.
    async fn read_announced_events(
        &self,
        served: &ServedModule,
        messages: &[&Message],
    ) -> Result<Vec<Event>, LedgerError> {
        let module = &served.module;
        let ids: Vec<EventId> =
            messages.iter().map(|message| message.context.event_id.clone()).collect();
        let subjects = self.ledger.message_subjects(&ids).await?;
        let (mut events, mut seen) = (Vec::with_capacity(subjects.len()), HashSet::new());
        for (message, subject) in messages.iter().zip(subjects) {
            let event = match subject {
                MessageSubject::Event(event) => *event,
                MessageSubject::NotYet => {
                    // The message is not lost: the write that makes the event visible publishes it.
                    let event = message.context.event_id.as_str();
                    tracing::warn!(
                        module = module.name,
                        event,
                        "a message names an event that is only staged"
                    );
                    continue;
                }
                MessageSubject::NoEvent(reason) => {
                    self.reject_message(module, message, reason).await?;
                    continue;
                }
            };
            if !served.registration.receives(&module.name, &event) {
                // The queue received the message before the module was registered, or the message
                // is left from a former module.
                tracing::info!(
                    module = module.name,
                    event = %event.id,
                    event_type = event.event_type,
                    "a message of an event that was committed before the module was registered, \
                     or is for others"
                );
                continue;
            }
            // A message may have come twice.
            if seen.insert(event.id.clone()) {
                events.push(event);
            }
        }
        Ok(events)
    }

    /// Returns whether this dispatcher holds a job that it has not begun to run.
    fn has_just_won(&self, job: &JobRecord) -> bool {
        job.state == JobState::Starting
            && job.attempt == 1
            && job.holder.as_ref() == Some(&self.id)
            && !self.running.has(&job.id)
    }

    async fn reject_message(
        &self,
        module: &Module,
        message: &Message,
        reason: String,
    ) -> Result<(), StoreError> {
        let body = encode(message).to_string();
        self.write_dead_letter(module, message.context.event_id.as_str(), body, reason).await
    }

    async fn write_dead_letter(
        &self,
        module: &Module,
        event_id: &str,
        body: String,
        reason: String,
    ) -> Result<(), StoreError> {
        tracing::warn!(module = module.name, reason, "a message is dead");
        let letter = DeadLetter::new(&module.name, event_id, body, reason, clock::now());
        self.ledger.plane().bus.add_dead_letter(letter).await
    }
}
