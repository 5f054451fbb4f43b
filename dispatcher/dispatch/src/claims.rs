//! Claims the jobs of messages, and reads what a job begins with.

use ion_jobs::gather::{Readiness, readiness};
use ion_jobs::ledger::{ClaimOutcome, LedgerError, MessageSubject};
use ion_jobs::pipeline::Module;
use ion_model::clock;
use ion_model::errors::chain;
use ion_model::event::{Event, Message};
use ion_model::record::{JobRecord, JobState, MissingJobs};
use ion_stores::{DeadLetter, Delivery, StoreError, encode};

use super::modules::ServedModule;
use super::{DispatchState, JobToRun};

/// What a job begins with.
pub(super) enum JobMaterials {
    /// Its event, and the events that it gathers.
    Ready(Box<Event>, Option<(Vec<Event>, MissingJobs)>),
    /// A job below the event of a gathering job works again.
    WaitsAgain,
    /// The job cannot begin, for this reason.
    Missing(String),
}

impl DispatchState {
    /// Reads the event of a job and the events that it gathers. The ledger holds only their ids.
    pub(super) async fn materials(
        &self,
        job: &JobRecord,
        module: &Module,
    ) -> Result<JobMaterials, LedgerError> {
        let event = match self.ledger.event(&job.event_id).await {
            Ok(Some(event)) => event,
            Ok(None) => {
                return Ok(JobMaterials::Missing(format!(
                    "event {} is not there any more",
                    job.event_id
                )));
            }
            Err(malformed @ StoreError::Malformed { .. }) => {
                return Ok(JobMaterials::Missing(chain(&malformed)));
            }
            Err(error) => return Err(error.into()),
        };
        if module.gather.is_none() {
            return Ok(JobMaterials::Ready(Box::new(event), None));
        }
        let registered = self.ledger.registered().await?;
        Ok(match readiness(&self.ledger, job, module, &registered).await? {
            Readiness::Ready(gathered, without) => {
                JobMaterials::Ready(Box::new(event), Some((gathered, without)))
            }
            Readiness::Waiting(_) | Readiness::Unsettled => JobMaterials::WaitsAgain,
        })
    }

    /// Claims the job of a message. Returns none if there is nothing to run: the job is known or
    /// waits, or the message is not one of Ion's.
    pub(super) async fn claim(
        &self,
        served: &ServedModule,
        delivery: &Delivery,
        ours: bool,
        again: bool,
    ) -> Result<Option<JobToRun>, LedgerError> {
        let module = &served.module;
        let message: &Message = match &delivery.message {
            Ok(message) => message,
            Err(unreadable) => {
                let body = String::from_utf8_lossy(&unreadable.body).into_owned();
                let reason = format!("it is no message of Ion's: {}", unreadable.reason);
                self.bury(module, &unreadable.id(), body, reason).await?;
                return Ok(None);
            }
        };
        match self.claim_announced(served, message, ours, again).await {
            // Another read would give the same document.
            Err(LedgerError::Store(malformed @ StoreError::Malformed { .. })) => {
                self.bury_message(module, message, chain(&malformed)).await?;
                Ok(None)
            }
            claimed => claimed,
        }
    }

    /// Claims the job of a message that can be read.
    async fn claim_announced(
        &self,
        served: &ServedModule,
        message: &Message,
        ours: bool,
        again: bool,
    ) -> Result<Option<JobToRun>, LedgerError> {
        let module = &served.module;
        let event = match self.ledger.announced(&message.context.event_id).await? {
            MessageSubject::Event(event) => *event,
            MessageSubject::NotYet => {
                // The message is not lost: the write that makes the event visible publishes it.
                let event = message.context.event_id.as_str();
                tracing::warn!(
                    module = module.name,
                    event,
                    "a message names an event that is only staged"
                );
                return Ok(None);
            }
            MessageSubject::NoEvent(reason) => {
                self.bury_message(module, message, reason).await?;
                return Ok(None);
            }
        };
        if !served.registration.is_for(&module.name, &event) {
            // The queue received the message before the module was registered, or the message is
            // left from a former module.
            tracing::info!(
                module = module.name,
                event = %event.id,
                event_type = event.event_type,
                "a message of an event that was committed before the module was registered, or is \
                 for others"
            );
            return Ok(None);
        }
        let holder = ours.then(|| (self.id.as_str(), self.lease()));
        let claim = self.ledger.claim(module, &event, holder).await?;
        self.metrics.claimed(&claim);
        match claim {
            ClaimOutcome::Won(job) if job.state == JobState::Waiting => {
                self.ended.notify_one();
                Ok(None)
            }
            ClaimOutcome::Won(job) if ours => Ok(Some((job, event))),
            ClaimOutcome::Won(_) => {
                self.served.ring(&module.name);
                Ok(None)
            }
            // The answer to this dispatcher's first try was lost. It holds the job all the same.
            ClaimOutcome::Known(job)
                if again
                    && job.state == JobState::Starting
                    && job.attempt == 1
                    && job.holder.as_ref() == Some(&self.id)
                    && !self.runs(&job.id) =>
            {
                Ok(Some((job, event)))
            }
            ClaimOutcome::Known(_) => Ok(None),
        }
    }

    async fn bury_message(
        &self,
        module: &Module,
        message: &Message,
        reason: String,
    ) -> Result<(), StoreError> {
        let body = encode(message).to_string();
        self.bury(module, message.context.event_id.as_str(), body, reason).await
    }

    async fn bury(
        &self,
        module: &Module,
        event_id: &str,
        body: String,
        reason: String,
    ) -> Result<(), StoreError> {
        tracing::warn!(module = module.name, reason, "a message is dead");
        let letter = DeadLetter::new(&module.name, event_id, body, reason, clock::now());
        self.ledger.plane().bus.bury(letter).await
    }
}
