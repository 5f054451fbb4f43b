//! Cancels a correlation, or an event and everything below it.
//!
//! # How it works
//! The registry says what is being cancelled ([`CancelOrder`]): an event that is committed below it
//! from then on is for no module. The events that were committed before are visited one by one:
//! waiting and queued jobs are cancelled, running jobs are asked to stop, and jobs that no
//! dispatcher has claimed yet are inserted as cancelled, so that a dispatcher that receives the
//! event's message later finds them cancelled. A running job may commit events until it has
//! stopped, so all events are visited again, until two rounds in a row have found no job that had
//! not ended. Then the registry forgets the cancellation.
//!
//! # Who finishes it
//! A command or a request that begins a cancellation may end before the cancellation does: it may
//! die, or its time may be up. So each dispatcher also continues, one at a time, the cancellations
//! that it has seen in the registry for [`GRACE`].
//!
//! # What it never does
//! It never reads more than a page of events at a time. It never changes a job that has ended: dead
//! jobs stay as they are.

#[cfg(test)]
mod model;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use ion_model::event::{DocumentType, Event, PublicationState};
use ion_model::record::{JobRecord, JobState};
use ion_stores::registry::{CancelOrder, Registry};
use ion_stores::{Collection, Pages, Query, StoreError, decode};
use ion_system::failpoint;
use ion_system::patience::StateAges;
use serde::Serialize;
use serde_json::{Value, json};

use crate::ledger::{ClaimOutcome, Ledger, LedgerError, RegisteredModules};

/// How many events have their jobs cancelled at the same time.
const EVENTS_AT_A_TIME: usize = 16;

/// How long dispatchers leave a cancellation to the process that began it. Most cancellations have
/// ended by then. After that, both may work on it, which does no harm: each step can be repeated.
const GRACE: Duration = Duration::from_secs(20);

/// How long a dispatcher works on a cancellation, at most, before it does other work.
const TIME_SLICE: Duration = Duration::from_millis(200);

/// What this process has done for a cancellation so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CancelProgress {
    /// Events that the last finished round visited.
    pub events: usize,
    /// Jobs that were waiting or queued, and are now cancelled.
    pub queued: usize,
    /// Jobs that no dispatcher had claimed yet, and that are now cancelled.
    pub prevented: usize,
    /// Running jobs that were asked to stop.
    pub stopped: usize,
    /// Jobs that still ran when the last finished round visited them.
    pub running: usize,
    /// Dead jobs that the last finished round found, which stay as they are.
    pub dead: usize,
}

/// What the cancellation has found or done about one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JobCancelOutcome {
    /// It was waiting or queued, and is cancelled now.
    Cancelled,
    /// No dispatcher had claimed it, and it is cancelled now.
    CancelledUnclaimed,
    /// It runs, and was asked to stop.
    Runs {
        /// Whether it was asked just now.
        asked_now: bool,
    },
    /// It is dead, and stays so.
    Dead,
    /// It had ended before.
    EndedBefore,
}

/// One cancellation under way.
#[derive(Debug)]
pub struct Cancellation {
    order: CancelOrder,
    events: Option<CancelledEvents>,
    /// What was done in all rounds; `events`, `running` and `dead` are those of the last round that
    /// ended.
    done: CancelProgress,
    rounds: CancelRounds,
    /// How many events this round has found.
    events_seen: usize,
    /// How many dead jobs this round has found.
    dead_seen: usize,
    /// How many jobs of this round were asked to stop and still run.
    running: usize,
}

/// Decides when all events were visited often enough.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct CancelRounds {
    /// How many jobs of this round had not ended.
    not_ended: usize,
    /// How many rounds in a row have found none.
    clean_in_a_row: u32,
}

impl CancelRounds {
    /// Ends a round. Returns true when nothing below the cancellation runs any more. One clean
    /// round is not enough: a job may commit an event where the round has already passed, and end
    /// before the round comes to that job.
    fn end(&mut self) -> bool {
        self.clean_in_a_row = if self.not_ended == 0 { self.clean_in_a_row + 1 } else { 0 };
        self.not_ended = 0;
        self.clean_in_a_row >= 2
    }
}

impl Cancellation {
    /// Begins a cancellation: an event that is committed below it from now on starts nothing. If
    /// the same cancellation is under way already, joins it.
    ///
    /// # Errors
    /// When a store fails, or too many cancellations are under way.
    pub async fn begin(ledger: &Ledger, order: CancelOrder) -> Result<Self, LedgerError> {
        match Registry::begin_cancelling(&ledger.plane().documents, &order).await? {
            true => {
                failpoint::hit("cancel.begun");
                Ok(Self::from_order(order))
            }
            false => Err(LedgerError::TooManyCancellations),
        }
    }

    /// Returns a cancellation that is in the registry already.
    fn from_order(order: CancelOrder) -> Self {
        Self {
            order,
            events: None,
            done: CancelProgress::default(),
            rounds: CancelRounds::default(),
            events_seen: 0,
            dead_seen: 0,
            running: 0,
        }
    }

    /// Returns what was done so far.
    pub fn progress(&self) -> CancelProgress {
        self.done
    }

    /// Works on the cancellation until about `until`: the page that is being worked on then is
    /// finished. Returns true when no job below it runs any more and none will start. Returns false
    /// when the time is up, and also after a round that found running jobs: then the caller waits
    /// before it calls again.
    ///
    /// # Errors
    /// When a store fails. The caller may call it again.
    pub async fn work_until(
        &mut self,
        ledger: &Ledger,
        until: Instant,
    ) -> Result<bool, LedgerError> {
        let worked = self.try_to_work_until(ledger, until).await;
        if worked.is_err() {
            // Some events of a page may not have been handled, so the rounds are counted from zero.
            self.end_round();
            self.rounds = CancelRounds::default();
        }
        worked
    }

    async fn try_to_work_until(
        &mut self,
        ledger: &Ledger,
        until: Instant,
    ) -> Result<bool, LedgerError> {
        let documents = &ledger.plane().documents;
        loop {
            let events = self.events.get_or_insert_with(|| CancelledEvents::new(&self.order));
            let Some(page) = events.next(ledger).await? else {
                if self.end_round() {
                    Registry::end_cancelling(documents, &self.order).await?;
                    return Ok(true);
                }
                if self.done.running > 0 {
                    return Ok(false);
                }
                continue;
            };
            let registered = ledger.registered_modules().await?;
            for chunk in page.chunks(EVENTS_AT_A_TIME) {
                let outcomes = chunk.iter().map(|event| cancel_jobs_of(ledger, &registered, event));
                let outcomes = try_join_all(outcomes).await?;
                outcomes.into_iter().flatten().for_each(|outcome| self.count(outcome));
            }
            self.events_seen += page.len();
            if Instant::now() >= until {
                return Ok(false);
            }
        }
    }

    fn count(&mut self, outcome: JobCancelOutcome) {
        let had_ended = matches!(outcome, JobCancelOutcome::Dead | JobCancelOutcome::EndedBefore);
        self.rounds.not_ended += usize::from(!had_ended);
        match outcome {
            JobCancelOutcome::Cancelled => self.done.queued += 1,
            JobCancelOutcome::CancelledUnclaimed => self.done.prevented += 1,
            JobCancelOutcome::Runs { asked_now } => {
                self.running += 1;
                self.done.stopped += usize::from(asked_now);
            }
            JobCancelOutcome::Dead => self.dead_seen += 1,
            JobCancelOutcome::EndedBefore => {}
        }
    }

    fn end_round(&mut self) -> bool {
        self.events = None;
        self.done.events = std::mem::take(&mut self.events_seen);
        self.done.dead = std::mem::take(&mut self.dead_seen);
        self.done.running = std::mem::take(&mut self.running);
        self.rounds.end()
    }
}

/// Cancels all jobs of an event that have not ended, also those that no dispatcher has claimed.
async fn cancel_jobs_of(
    ledger: &Ledger,
    registered: &RegisteredModules,
    event: &Event,
) -> Result<Vec<JobCancelOutcome>, LedgerError> {
    if event.publication == PublicationState::Staged {
        // The event is not visible yet, so it has no jobs. If the job that wrote it succeeds, it is
        // committed then, for no module.
        return Ok(vec![]);
    }
    let of_event = vec![("eventId", json!(event.id))];
    let query = Query::equal(Collection::Jobs, of_event).order_by("created");
    let jobs: Vec<JobRecord> = ledger.plane().documents.find_as(query).await?;
    let mut outcomes = Vec::new();
    for job in &jobs {
        outcomes.push(cancel_job(ledger, job).await?);
    }
    let has_job = |name: &str| jobs.iter().any(|job| job.module == name);
    for module in registered.modules_for(event).filter(|module| !has_job(&module.name)) {
        outcomes.push(match ledger.claim_cancelled(module, event).await? {
            ClaimOutcome::Won(_) => JobCancelOutcome::CancelledUnclaimed,
            ClaimOutcome::Known(job) => cancel_job(ledger, &job).await?,
        });
    }
    Ok(outcomes)
}

/// Cancels a job that has not ended.
async fn cancel_job(ledger: &Ledger, job: &JobRecord) -> Result<JobCancelOutcome, LedgerError> {
    match job.state {
        JobState::Dead => return Ok(JobCancelOutcome::Dead),
        JobState::Succeeded | JobState::Cancelled => return Ok(JobCancelOutcome::EndedBefore),
        JobState::Starting | JobState::Running if job.cancel => {
            return Ok(JobCancelOutcome::Runs { asked_now: false });
        }
        JobState::Waiting | JobState::Queued | JobState::Starting | JobState::Running => {}
    }
    Ok(match ledger.cancel_unless_ended(&job.id).await? {
        Some(job) if job.state == JobState::Cancelled => JobCancelOutcome::Cancelled,
        Some(_) => JobCancelOutcome::Runs { asked_now: true },
        // The next round finds out how it ended.
        None => JobCancelOutcome::EndedBefore,
    })
}

/// The events that a cancellation covers, read page by page.
#[derive(Debug)]
enum CancelledEvents {
    /// All events of a correlation.
    Correlation(Pages),
    /// The event itself, then its descendants, depth first: after each page of children, all that
    /// is below these.
    Event {
        /// The event itself, until it is read.
        root: Option<String>,
        /// The events from the root down to the one whose children are being read.
        path: Vec<ChildPages>,
    },
}

/// The children of one event.
#[derive(Debug)]
struct ChildPages {
    parent: String,
    pages: Pages,
    /// The events of the last page whose children are still to be read.
    unvisited: Vec<String>,
}

impl ChildPages {
    fn new(id: String) -> Self {
        let children = Query::equal(Collection::Events, vec![("context.parentEventId", json!(id))]);
        // In the order of the index that has `context.parentEventId`.
        Self { pages: Pages::new(children, "jobId"), parent: id, unvisited: vec![] }
    }
}

impl CancelledEvents {
    fn new(order: &CancelOrder) -> Self {
        match &order.event {
            None => {
                let of_it = vec![("context.correlationId", json!(order.correlation))];
                Self::Correlation(Pages::new(Query::equal(Collection::Events, of_it), "created"))
            }
            Some(event) => Self::Event { root: Some(event.to_string()), path: vec![] },
        }
    }

    /// Returns the next page of events; none after the last one.
    async fn next(&mut self, ledger: &Ledger) -> Result<Option<Vec<Event>>, StoreError> {
        let documents = &*ledger.plane().documents;
        match self {
            Self::Correlation(pages) => Ok(pages.next(documents).await?.map(decode_events)),
            Self::Event { root, path } => {
                if let Some(id) = root {
                    let found = documents.get(Collection::Events, id).await?;
                    path.extend(root.take().map(ChildPages::new));
                    return Ok(Some(decode_events(found.into_iter().collect())));
                }
                while let Some(parent) = path.last_mut() {
                    if let Some(id) = parent.unvisited.pop() {
                        // Ids and parents that were chosen by hand may form a cycle.
                        if path.iter().all(|above| above.parent != id) {
                            path.push(ChildPages::new(id));
                        }
                        continue;
                    }
                    match parent.pages.next(documents).await? {
                        Some(page) => {
                            let page = decode_events(page);
                            parent.unvisited.extend(page.iter().map(|event| event.id.to_string()));
                            return Ok(Some(page));
                        }
                        None => drop(path.pop()),
                    }
                }
                Ok(None)
            }
        }
    }
}

/// Returns the events among the documents; the collection also holds insights and logs. An event
/// that cannot be decoded is left out: it starts nothing, and `ion check` reports it.
fn decode_events(documents: Vec<Value>) -> Vec<Event> {
    let kind = DocumentType::EventMeta.as_str();
    let events =
        documents.into_iter().filter(|document| document["context"]["documentType"] == kind);
    events.filter_map(|document| decode(Collection::Events, document).ok()).collect()
}

/// The cancellations that have been in the registry for [`GRACE`], as a dispatcher continues them,
/// whether or not their command still runs.
#[derive(Debug, Default)]
pub struct OldCancellations {
    seen: StateAges<i64>,
    /// By [`CancelOrder::id`].
    at_work: BTreeMap<String, Cancellation>,
    /// The id of the one that the dispatcher continued last.
    last: String,
}

impl OldCancellations {
    /// Continues one cancellation that has been in the registry for [`GRACE`].
    pub async fn continue_one(&mut self, ledger: &Ledger) -> Result<(), LedgerError> {
        let registered = ledger.registered_modules().await?;
        let all: Vec<&CancelOrder> = registered.registry.cancel_orders().collect();
        let ages = self.seen.update(all.iter().map(|order| (order.id(), order.since)));
        let old = all.into_iter().zip(ages).filter(|(_, age)| *age >= GRACE);
        let old: BTreeMap<String, &CancelOrder> =
            old.map(|(order, _)| (order.id(), order)).collect();
        self.at_work.retain(|id, _| old.contains_key(id));
        // The cancellations take turns, so that none of them waits for a running job of another
        // one.
        let after_last = (Bound::Excluded(self.last.clone()), Bound::Unbounded);
        let Some((id, order)) = old.range(after_last).next().or_else(|| old.iter().next()) else {
            return Ok(());
        };
        self.last.clone_from(id);
        let of_order = || Cancellation::from_order((*order).clone());
        let at_work = self.at_work.entry(id.clone()).or_insert_with(of_order);
        if at_work.work_until(ledger, Instant::now() + TIME_SLICE).await? {
            let done = at_work.done;
            tracing::info!(order = id, ?done, "a dispatcher has finished a cancellation");
            self.at_work.remove(id);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ion_model::id::JobId;
    use ion_stores::{DataPlane, Durability, encode};

    use super::*;

    /// A job is read as running, and dies before the cancellation writes.
    #[tokio::test]
    async fn a_job_that_has_died_meanwhile_stays_dead() {
        let ledger = Ledger::new(DataPlane::in_memory().unwrap());
        let record = |state: &str, version: i64| -> JobRecord {
            serde_json::from_value(json!({
                "id": "j", "version": version, "module": "m", "eventId": "e", "eventType": "t",
                "correlationId": "c", "state": state, "attempt": 1, "created": 1, "due": 1,
                "term": 0, "failures": 1, "losses": 0, "attempts": [],
            }))
            .unwrap()
        };
        let (read, dead) = (record("running", 1), encode(&record("dead", 2)));
        let documents = &ledger.plane().documents;
        documents.insert(Collection::Jobs, dead, None, Durability::Now).await.unwrap();
        assert_eq!(cancel_job(&ledger, &read).await.unwrap(), JobCancelOutcome::EndedBefore);
        let now = ledger.get(&JobId::new("j")).await.unwrap();
        assert_eq!((now.state, now.version), (JobState::Dead, 2));
        assert_eq!(cancel_job(&ledger, &now).await.unwrap(), JobCancelOutcome::Dead);
    }
}
