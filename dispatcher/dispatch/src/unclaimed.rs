//! Sends the message of an event to a module again when the message seems to be lost. Queues and
//! brokers can lose messages; the event's document stays.
//!
//! # How it works
//! An event for which a module has to start is marked `unclaimed` until every module that it is
//! for, and that is still registered, has a job of it. A dispatcher makes that job when it
//! receives the message. The walk reads the published events with this mark, oldest first, again
//! and again. It removes the mark from an event that has all its jobs. For each missing job it
//! remembers, by this process's monotonic clock, when it first found it missing. After a lease it
//! sends the message again if the module's queue is empty or gone; after [`BEHIND_OTHERS`] it also
//! does so if messages wait there, although the event's own may be among them. The wait doubles
//! with each repetition, up to [`SENT_AGAIN_MAX`]. A second message does no harm: only one claim of
//! a job succeeds.
//!
//! # What it never does
//! It never uses a clock of another host, never begins a page after [`ROUND_TIME`], and never
//! remembers more than [`REMEMBERED_MAX`] missing jobs.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ion_jobs::ledger::{Ledger, LedgerError, RegisteredModules};
use ion_model::errors::error_chain;
use ion_model::event::Event;
use ion_model::id::JobId;
use ion_stores::{Collection, Durability, Pages, StoreError, decode, encode};
use serde_json::Value;

/// The least time between two rounds. The housekeeping also runs whenever a job ends, which may be
/// often.
const ROUND_EVERY: Duration = Duration::from_secs(1);

/// How long a round begins new pages. More would take time from jobs; with this much, a walk over a
/// million events takes some minutes.
const ROUND_TIME: Duration = Duration::from_millis(50);

/// How many missing jobs are remembered, which bounds the memory. Further ones wait until some of
/// these exist.
const REMEMBERED_MAX: usize = 10_000;

/// How long an event may be unclaimed while its module's queue holds messages, since its own may be
/// among them.
const BEHIND_OTHERS: Duration = Duration::from_secs(600);

/// The longest time between two repetitions of an event's message.
const SENT_AGAIN_MAX: Duration = Duration::from_secs(3_600);

/// A job that an event's module does not have yet.
#[derive(Debug)]
struct MissingJob {
    /// When the walk first found the job missing, or last sent its message again.
    waiting_since: Instant,
    /// How often its message was sent again.
    repetitions: u32,
    /// The number of the last walk that has seen the event.
    walk: u64,
}

/// Whether the modules' queues held messages when a round first came to one of their events. The
/// messages that the round itself sends again must not prevent it from sending more.
#[derive(Debug, Default)]
struct ModuleQueues(HashMap<String, bool>);

impl ModuleQueues {
    /// Returns whether a module's queue holds a message. One is enough to know. A module without a
    /// queue holds none; sending declares its queue again.
    async fn holds_messages(&mut self, ledger: &Ledger, module: &str) -> Result<bool, StoreError> {
        if let Some(holds) = self.0.get(module) {
            return Ok(*holds);
        }
        let holds =
            ledger.plane().bus.count_messages(module, 1).await?.is_some_and(|depth| depth > 0);
        self.0.insert(module.to_owned(), holds);
        Ok(holds)
    }
}

/// The walk, and the events that it has seen.
#[derive(Debug)]
pub(super) struct Unclaimed {
    /// How long a job may be missing while its module's queue is empty: the dispatcher's lease.
    lease: Duration,
    /// When the last round began.
    last_round: Option<Instant>,
    pages: Option<Pages>,
    walk: u64,
    missing: HashMap<JobId, MissingJob>,
}

impl Unclaimed {
    pub(super) fn new(lease: Duration) -> Self {
        Self { lease, last_round: None, pages: None, walk: 0, missing: HashMap::new() }
    }

    /// Continues the walk for [`ROUND_TIME`], unless the last round began less than [`ROUND_EVERY`]
    /// ago.
    pub(super) async fn run_round(&mut self, ledger: &Ledger) -> Result<(), LedgerError> {
        let begun = Instant::now();
        if self.last_round.is_some_and(|before| begun.duration_since(before) < ROUND_EVERY) {
            return Ok(());
        }
        self.last_round = Some(begun);
        let documents = &ledger.plane().documents;
        let mut registered = None;
        let mut queues = ModuleQueues::default();
        while begun.elapsed() < ROUND_TIME {
            let pages = self.pages.get_or_insert_with(Ledger::unclaimed_events);
            let Some(page) = pages.next(&**documents).await? else {
                self.pages = None;
                // What this walk has not seen has its job now, or its module is gone.
                let walk = self.walk;
                self.missing.retain(|_, missing| missing.walk == walk);
                self.walk += 1;
                break;
            };
            let registered = match &registered {
                Some(registered) => registered,
                None => registered.insert(ledger.registered_modules().await?),
            };
            self.handle_page(ledger, registered, &mut queues, page).await?;
        }
        Ok(())
    }

    /// Removes the mark of those events of a page that have all their jobs, and sends overdue
    /// messages of the others again.
    async fn handle_page(
        &mut self,
        ledger: &Ledger,
        registered: &RegisteredModules,
        queues: &mut ModuleQueues,
        page: Vec<Value>,
    ) -> Result<(), LedgerError> {
        let documents = &ledger.plane().documents;
        // An event that cannot be read must not delay the others. `ion check` reports it.
        let events: Vec<Event> = page
            .into_iter()
            .filter_map(|document| decode(Collection::Events, document).ok())
            .collect();
        let jobs_of = |event: &Event| -> Vec<(String, JobId)> {
            let of = |name: &str| (name.to_owned(), JobId::derive(&event.id, name));
            registered.registry.modules_for(event).map(of).collect()
        };
        let wanted = events.iter().flat_map(&jobs_of).map(|(_, job)| job.to_string());
        let present = documents.find_existing_ids(Collection::Jobs, wanted.collect()).await?;
        let mut claimed = Vec::new();
        let mut unclaimed = Vec::new();
        for event in events {
            let missing: Vec<(String, JobId)> = jobs_of(&event)
                .into_iter()
                .filter(|(_, job)| !present.contains(job.as_str()))
                .collect();
            if missing.is_empty() {
                let event = encode(&Event { unclaimed: false, ..event });
                claimed.push((event, Ledger::unclaimed_conditions()));
            } else {
                unclaimed.push((event, missing));
            }
        }
        if !claimed.is_empty() {
            let durability = Durability::WithNextSync;
            documents.replace_all(Collection::Events, claimed, durability).await?;
        }
        let mut failed = Ok(());
        for (event, missing) in unclaimed {
            for (module, job) in missing {
                // A queue that fails must not delay the others, whose jobs this walk has to see.
                let sent = match self.note_missing(ledger, queues, &module, &job).await {
                    Ok(true) => self.send_again(ledger, registered, &event, &module, &job).await,
                    noted => noted.map(drop),
                };
                failed = failed.and(sent);
            }
        }
        Ok(failed?)
    }

    /// Notes that a job is missing. Returns whether it has been missing for so long that its
    /// message is probably lost. If too many are remembered already, the job waits.
    async fn note_missing(
        &mut self,
        ledger: &Ledger,
        queues: &mut ModuleQueues,
        module: &str,
        job: &JobId,
    ) -> Result<bool, StoreError> {
        let now = Instant::now();
        let walk = self.walk;
        if self.missing.len() >= REMEMBERED_MAX && !self.missing.contains_key(job) {
            return Ok(false);
        }
        let first = MissingJob { waiting_since: now, repetitions: 0, walk };
        let missing = self.missing.entry(job.clone()).or_insert(first);
        missing.walk = walk;
        let missing_for = now.duration_since(missing.waiting_since);
        // 16 only keeps the shift in range.
        let factor = 1 << missing.repetitions.min(16);
        let after_repetitions = |wait: Duration| wait.saturating_mul(factor).min(SENT_AGAIN_MAX);
        if missing_for < after_repetitions(self.lease) {
            return Ok(false);
        }
        match queues.holds_messages(ledger, module).await? {
            true => Ok(missing_for >= after_repetitions(BEHIND_OTHERS.max(self.lease))),
            false => Ok(true),
        }
    }

    async fn send_again(
        &mut self,
        ledger: &Ledger,
        registered: &RegisteredModules,
        event: &Event,
        module: &str,
        job: &JobId,
    ) -> Result<(), StoreError> {
        let Some(definition) = registered.module(module) else { return Ok(()) };
        tracing::warn!(
            event = %event.id,
            event_type = event.event_type,
            module,
            "the module has no job of this event yet; its message is sent again"
        );
        if let Err(error) = ledger.send_again(definition, event).await {
            tracing::warn!(
                module,
                error = error_chain(&error),
                "a message could not be sent again yet"
            );
            return Err(error);
        }
        if let Some(missing) = self.missing.get_mut(job) {
            missing.waiting_since = Instant::now();
            missing.repetitions += 1;
        }
        Ok(())
    }
}
