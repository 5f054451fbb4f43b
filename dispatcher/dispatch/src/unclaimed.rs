//! Events that a module has not claimed. Their messages may be lost, whatever happened to the
//! queue.
//!
//! # How it works
//! Each event is in an index until each of its modules has a job of it. Then the event is marked,
//! and leaves the index. A walk reads the index again and again, a few pages at a time. It sends an
//! event again that it has seen unclaimed for a lease, by its own monotonic clock, if the module's
//! queue holds no message that could be the event's.
//!
//! # What it never does
//! It never uses a clock of another host, never reads more than a few pages at a time, and never
//! remembers more than [`REMEMBERED_MAX`] events.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ion_jobs::ledger::{Ledger, LedgerError, RegisteredModules};
use ion_model::errors::error_chain;
use ion_model::event::Event;
use ion_model::id::JobId;
use ion_stores::{Collection, Durability, Pages, StoreError, decode, encode};
use serde_json::Value;

/// How often the walk goes on, and for how long. More would take time from jobs. The walk reads a
/// million waiting events in some minutes.
const EVERY: Duration = Duration::from_secs(1);
const ROUND: Duration = Duration::from_millis(50);

/// How many unclaimed events are remembered. Others are remembered when these are claimed.
const REMEMBERED_MAX: usize = 10_000;

/// How long an event may be unclaimed while its module's queue holds messages, since its own may be
/// among them.
const BEHIND_OTHERS: Duration = Duration::from_secs(600);

/// The longest time between two repetitions of an event's message.
const SENT_AGAIN_MAX: Duration = Duration::from_secs(3_600);

/// An event that one module has not claimed.
#[derive(Debug)]
struct UnclaimedEvent {
    since: Instant,
    sent: u32,
    /// The number of the last walk that has seen the event.
    walk: u64,
}

/// Whether the modules' queues held messages when a round first came to one of their events. The
/// messages that the round itself sends again must not prevent it from sending more.
#[derive(Debug, Default)]
struct ModuleQueues(HashMap<String, bool>);

impl ModuleQueues {
    async fn holds_messages(&mut self, ledger: &Ledger, module: &str) -> Result<bool, StoreError> {
        if let Some(holds) = self.0.get(module) {
            return Ok(*holds);
        }
        let holds = ledger.plane().bus.depth(module, 1).await?.is_some_and(|depth| depth > 0);
        self.0.insert(module.to_owned(), holds);
        Ok(holds)
    }
}

/// The walk, and the events that it has seen.
#[derive(Debug)]
pub(super) struct Unclaimed {
    /// How long an event may be unclaimed.
    patience: Duration,
    /// The time of the last round.
    last_round: Option<Instant>,
    pages: Option<Pages>,
    walk: u64,
    seen: HashMap<JobId, UnclaimedEvent>,
}

impl Unclaimed {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, last_round: None, pages: None, walk: 0, seen: HashMap::new() }
    }

    /// Goes on with the walk for a few pages, if it is time.
    pub(super) async fn round(&mut self, ledger: &Ledger) -> Result<(), LedgerError> {
        let begun = Instant::now();
        if self.last_round.is_some_and(|before| begun.duration_since(before) < EVERY) {
            return Ok(());
        }
        self.last_round = Some(begun);
        let documents = &ledger.plane().documents;
        let mut registered = None;
        let mut queues = ModuleQueues::default();
        while begun.elapsed() < ROUND {
            let pages = self.pages.get_or_insert_with(Ledger::unclaimed_events);
            let Some(page) = pages.next(&**documents).await? else {
                self.pages = None;
                let walk = self.walk;
                self.seen.retain(|_, seen| seen.walk == walk);
                self.walk += 1;
                break;
            };
            let registered = match &registered {
                Some(registered) => registered,
                None => registered.insert(ledger.registered().await?),
            };
            self.judge_page(ledger, registered, &mut queues, page).await?;
        }
        Ok(())
    }

    async fn judge_page(
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
            registered.registry.expected(event).map(of).collect()
        };
        let wanted = events.iter().flat_map(&jobs_of).map(|(_, job)| job.to_string());
        let present = documents.present(Collection::Jobs, wanted.collect()).await?;
        let mut claimed = Vec::new();
        let mut unclaimed = Vec::new();
        for event in events {
            let missing: Vec<(String, JobId)> = jobs_of(&event)
                .into_iter()
                .filter(|(_, job)| !present.contains(job.as_str()))
                .collect();
            if missing.is_empty() {
                claimed.push(encode(&Event { unclaimed: false, ..event }));
            } else {
                unclaimed.push((event, missing));
            }
        }
        if !claimed.is_empty() {
            let (expect, durability) = (Ledger::unclaimed(), Durability::WithNextSync);
            documents.replace_all(Collection::Events, claimed, expect, durability).await?;
        }
        for (event, missing) in unclaimed {
            for (module, job) in missing {
                if self.is_overdue(ledger, queues, &module, &job).await? {
                    self.send_again(ledger, registered, &event, &module, &job).await?;
                }
            }
        }
        Ok(())
    }

    /// Returns whether an event has been unclaimed for so long that its message must be lost.
    async fn is_overdue(
        &mut self,
        ledger: &Ledger,
        queues: &mut ModuleQueues,
        module: &str,
        job: &JobId,
    ) -> Result<bool, StoreError> {
        let now = Instant::now();
        let walk = self.walk;
        if self.seen.len() >= REMEMBERED_MAX && !self.seen.contains_key(job) {
            return Ok(false);
        }
        let seen =
            self.seen.entry(job.clone()).or_insert(UnclaimedEvent { since: now, sent: 0, walk });
        seen.walk = walk;
        let stood = now.duration_since(seen.since);
        let doubled =
            |wait: Duration| wait.saturating_mul(1 << seen.sent.min(16)).min(SENT_AGAIN_MAX);
        if stood < doubled(self.patience) {
            return Ok(false);
        }
        match queues.holds_messages(ledger, module).await? {
            true => Ok(stood >= doubled(BEHIND_OTHERS.max(self.patience))),
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
            "its message never reached the module; it is sent again"
        );
        if let Err(error) = ledger.send_again(definition, event).await {
            tracing::warn!(
                module,
                error = error_chain(&error),
                "a message could not be sent again yet"
            );
            return Err(error);
        }
        if let Some(seen) = self.seen.get_mut(job) {
            seen.since = Instant::now();
            seen.sent += 1;
        }
        Ok(())
    }
}
