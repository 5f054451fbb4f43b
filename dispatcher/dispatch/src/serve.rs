//! The task of one module: it turns messages of the module's queue, and jobs that wait in the
//! ledger, into running jobs.
//!
//! # How it works
//! The task waits for a happening, [`ServePlan`] decides what follows, and the task performs it.
//! It takes messages only while a slot is free, since another dispatcher may have a slot for their
//! jobs: one message, or as many as are there and the module takes into a batch. Claims run beside the task, so that one slow answer of the ledger holds up no
//! other message; jobs run beside it too.
//!
//! # After a crash
//! A message whose job was not claimed was not acknowledged, so it comes again.

mod plan;

use std::sync::Arc;
use std::time::Instant;

use ion_model::errors::error_chain;
use ion_stores::{Delivery, StoreError, Subscription};
use ion_system::failpoint;
use ion_system::patience::StateAges;
use tokio::task::{JoinError, JoinSet};

pub(super) use self::plan::DueLook;
use self::plan::{ServeAction, ServeHappening, ServePlan};
use super::attempt::ClaimedJobs;
use super::claims::{ClaimEnd, ClaimIntent, ClaimedMessages};
use super::served::ServedModule;
use super::slots::{JobSlot, ModuleSlots, SlotState};
use super::{DispatchState, STORE_WAIT};

/// How many messages are queued in the ledger by one write.
const QUEUED_AT_ONCE: usize = 100;

/// What follows an action of a module's task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TaskProgress {
    GoesOn,
    /// A look into the ledger has ended with this.
    Looked(DueLook),
    Ends,
}

/// The task of one module.
pub(super) struct ModuleTask {
    pub(super) dispatch: Arc<DispatchState>,
    pub(super) served: Arc<ServedModule>,
    pub(super) slots: ModuleSlots,
    /// How long the jobs that wait in the ledger have been in their states.
    pub(super) seen: StateAges<i64>,
    queue: Box<dyn Subscription>,
    claims: JoinSet<ClaimedMessages>,
    jobs: JoinSet<()>,
}

impl ModuleTask {
    pub(super) fn new(
        dispatch: Arc<DispatchState>,
        served: Arc<ServedModule>,
        queue: Box<dyn Subscription>,
    ) -> Self {
        let slots = ModuleSlots::new(served.module.concurrency, dispatch.slots.clone());
        let (claims, jobs) = (JoinSet::new(), JoinSet::new());
        Self { dispatch, served, slots, seen: StateAges::default(), queue, claims, jobs }
    }

    /// Serves the module until it is not served any more and its jobs have ended.
    pub(super) async fn run(mut self) {
        let mut plan = ServePlan::new(Instant::now());
        let mut happening = ServeHappening::Woken;
        'serving: loop {
            let mut looked = None;
            for action in plan.decide(happening, Instant::now(), self.slots.state()) {
                match self.perform(action).await {
                    TaskProgress::GoesOn => {}
                    TaskProgress::Looked(found) => looked = Some(ServeHappening::Looked(found)),
                    TaskProgress::Ends => break 'serving,
                }
            }
            happening = match looked {
                Some(looked) => looked,
                None => self.next_happening(&plan).await,
            };
        }
        self.end().await;
    }

    async fn next_happening(&mut self, plan: &ServePlan) -> ServeHappening {
        // A task that has ended keeps its memory until it is joined, and under load something else
        // always comes before that below.
        while self.jobs.try_join_next().is_some() {}
        // This begins to listen before the slots are looked at, so that no freed slot is missed.
        let freed = self.dispatch.freed.notified();
        let (slot, most) = (self.slots.state(), self.served.module.jobs_at_once());
        if plan.is_behind() && slot == SlotState::Free {
            return ServeHappening::Woken;
        }
        tokio::select! {
            biased;
            () = self.served.stopping.cancelled() => ServeHappening::Stopping,
            Some(claimed) = self.claims.join_next() => match claimed_messages(claimed) {
                Some(claimed) => ServeHappening::Claimed(claimed),
                None => ServeHappening::Woken,
            },
            received = self.queue.next(most), if slot == SlotState::Free => match received {
                Ok(deliveries) => ServeHappening::Delivered(deliveries),
                Err(error) => ServeHappening::QueueFailed(error),
            },
            // Only a task that waits for a slot listens. The others would look into their
            // queues at each end of a job.
            () = freed, if slot == SlotState::Taken => ServeHappening::Woken,
            () = self.served.due.notified() => ServeHappening::JobWaits,
            Some(_) = self.jobs.join_next() => ServeHappening::Woken,
            () = tokio::time::sleep_until(plan.next_look().into()) => ServeHappening::Woken,
        }
    }

    async fn perform(&mut self, action: ServeAction) -> TaskProgress {
        match action {
            ServeAction::Claim(deliveries) => self.begin_claim(deliveries),
            ServeAction::Finish(claimed) => return self.finish_claim(claimed).await,
            ServeAction::WarnOfQueue(error) => self.warn_of_queue(&error),
            ServeAction::Rest => self.dispatch.sleep_unless_stopped(STORE_WAIT).await,
            ServeAction::Pause => return self.pause_queue().await,
            ServeAction::Look => return TaskProgress::Looked(self.start_due_jobs().await),
            ServeAction::End => return TaskProgress::Ends,
        }
        TaskProgress::GoesOn
    }

    fn warn_of_queue(&self, error: &StoreError) {
        let (module, error) = (&self.served.module.name, error_chain(error));
        tracing::warn!(module, error, "the queue cannot be read; trying again");
    }

    /// Begins to claim the jobs of messages: to run them here, or to queue them if another module has
    /// taken the last slot meanwhile.
    fn begin_claim(&mut self, deliveries: Vec<Delivery>) {
        let intent = self.slots.take().map_or(ClaimIntent::Queue, ClaimIntent::Run);
        let (dispatch, served) = (self.dispatch.clone(), self.served.clone());
        self.claims.spawn(dispatch.claim_patiently(served, deliveries, intent));
    }

    /// Runs jobs beside this task.
    pub(super) fn begin_jobs(&mut self, jobs: ClaimedJobs, slot: JobSlot) {
        self.jobs.spawn(self.dispatch.clone().run_jobs(jobs, slot));
    }

    /// Acknowledges messages whose jobs were claimed, and runs the jobs that this dispatcher holds.
    /// The task ends when the dispatcher stops before the jobs were claimed.
    async fn finish_claim(&mut self, claimed: ClaimedMessages) -> TaskProgress {
        let ClaimedMessages { tags, end } = claimed;
        if let ClaimEnd::Failed(error) = end {
            let (module, error) = (&self.served.module.name, error_chain(&error));
            tracing::warn!(module, error, "a job could not be claimed; its message goes back");
            for tag in tags {
                let _ = self.queue.give_back(tag).await;
            }
            return match self.dispatch.stopping.is_cancelled() {
                true => TaskProgress::Ends,
                false => TaskProgress::GoesOn,
            };
        }
        // The jobs are in the ledger now, so the messages are not needed any more.
        failpoint::hit("claim.settled");
        if let ClaimEnd::Run(jobs, slot) = end {
            self.begin_jobs(jobs, slot);
        }
        if let Err(error) = self.queue.acknowledge(&tags).await {
            let error = error_chain(&error);
            tracing::warn!(
                error,
                "a message could not be acknowledged; it will come again and find its job there"
            );
        }
        TaskProgress::GoesOn
    }

    /// Queues the messages that the bus has sent ahead in the ledger. They must not stay here
    /// unacknowledged for as long as a job may run; in the ledger any dispatcher with a free slot
    /// finds their jobs.
    async fn pause_queue(&mut self) -> TaskProgress {
        let mut ahead = match self.queue.pause().await {
            Ok(ahead) => ahead,
            Err(error) => {
                let (module, error) = (&self.served.module.name, error_chain(&error));
                tracing::warn!(module, error, "the queue cannot be paused");
                return TaskProgress::GoesOn;
            }
        };
        while !ahead.is_empty() {
            let rest = ahead.split_off(ahead.len().min(QUEUED_AT_ONCE));
            let deliveries = std::mem::replace(&mut ahead, rest);
            let (dispatch, served) = (self.dispatch.clone(), self.served.clone());
            let claimed = dispatch.claim_patiently(served, deliveries, ClaimIntent::Queue).await;
            if self.finish_claim(claimed).await == TaskProgress::Ends {
                return TaskProgress::Ends;
            }
        }
        TaskProgress::GoesOn
    }

    /// Finishes the claims, removes the queue of a removed module, and waits for the jobs.
    async fn end(mut self) {
        while let Some(claimed) = self.claims.join_next().await {
            if let Some(claimed) = claimed_messages(claimed) {
                self.finish_claim(claimed).await;
            }
        }
        // The messages that the bus has sent ahead are queued in the ledger. Returning them would
        // count as a delivery.
        self.pause_queue().await;
        let Self { dispatch, served, queue, mut jobs, .. } = self;
        drop(queue);
        dispatch.remove_retired_queue(&served).await;
        while jobs.join_next().await.is_some() {}
    }
}

fn claimed_messages(claimed: Result<ClaimedMessages, JoinError>) -> Option<ClaimedMessages> {
    let warn =
        |error: &JoinError| tracing::error!(%error, "a claim ended badly; its messages come again");
    claimed.inspect_err(warn).ok()
}
