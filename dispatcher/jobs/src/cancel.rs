//! Cancels a correlation, or an event and everything below it.
//!
//! # How it works
//! The registry says what is being cancelled ([`CancelOrder`]): an event that is committed below it
//! from then on is for no module. The events that were committed before are visited one by one:
//! waiting and queued jobs are cancelled, running jobs are asked to stop, and jobs that no
//! dispatcher has claimed yet are inserted as cancelled, so that a message finds them in the
//! ledger. A running job may commit events until it has stopped, so all events are visited again,
//! until two rounds in a row have found no job that had not ended. Then the registry forgets the
//! cancellation.
//!
//! # After a crash
//! If the command that began a cancellation dies, dispatchers finish it: each looks for
//! cancellations that have been in the registry for [`GRACE`].
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

/// How many events have their jobs cancelled concurrently.
const AT_A_TIME: usize = 16;

/// How long dispatchers leave a cancellation to the command that began it. If this were shorter,
/// both would do the work.
const GRACE: Duration = Duration::from_secs(20);

/// How long a dispatcher works on a cancellation, at most, before it does other work.
const ROUND: Duration = Duration::from_millis(200);

/// What a cancellation has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CancelProgress {
    /// Events that the last round visited.
    pub events: usize,
    /// Jobs that were waiting or queued, and are now cancelled.
    pub queued: usize,
    /// Jobs that no dispatcher had claimed yet, and that are now cancelled.
    pub prevented: usize,
    /// Running jobs that were asked to stop.
    pub stopped: usize,
    /// Jobs that still run.
    pub running: usize,
    /// Dead jobs, which stay as they are.
    pub dead: usize,
}

/// What the cancellation has found or done about one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JobCancelOutcome {
    Queued,
    Prevented,
    /// It runs. True: it was asked to stop just now. False: it was asked before.
    Runs(bool),
    Dead,
    Over,
}

/// One cancellation under way.
#[derive(Debug)]
pub struct Cancellation {
    what: CancelOrder,
    events: Option<CancelledEvents>,
    /// What was done in all rounds.
    done: CancelProgress,
    rounds: CancelRounds,
    /// How many events and dead jobs this round has found.
    seen: (usize, usize),
    /// How many jobs of this round were asked to stop and still run.
    running: usize,
}

/// Decides when all events were visited often enough.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct CancelRounds {
    /// How many jobs of this round had not ended.
    found: usize,
    /// How many rounds in a row have found none.
    clean: u32,
}

impl CancelRounds {
    /// Ends a round. Returns true when nothing below the cancellation runs any more. One clean
    /// round is not enough: it may have passed the place of an event before a job committed the
    /// event, and have come to that job only after the job had ended.
    fn end(&mut self) -> bool {
        self.clean = if self.found == 0 { self.clean + 1 } else { 0 };
        self.found = 0;
        self.clean >= 2
    }
}

impl Cancellation {
    /// Begins a cancellation: an event that is committed below it from now on starts nothing.
    ///
    /// # Errors
    /// When a store fails, or too many cancellations are under way.
    pub async fn begin(ledger: &Ledger, what: CancelOrder) -> Result<Self, LedgerError> {
        match Registry::begin_cancelling(&ledger.plane().documents, &what).await? {
            true => {
                failpoint::hit("cancel.begun");
                Ok(Self::going_on(what))
            }
            false => Err(LedgerError::TooManyCancellations),
        }
    }

    /// Returns a cancellation that is in the registry already.
    fn going_on(what: CancelOrder) -> Self {
        Self {
            what,
            events: None,
            done: CancelProgress::default(),
            rounds: CancelRounds::default(),
            seen: (0, 0),
            running: 0,
        }
    }

    /// Returns what was done so far.
    pub fn done(&self) -> CancelProgress {
        self.done
    }

    /// Continues the cancellation until `until` at most. Returns true when no job below it runs any
    /// more, and none will start.
    ///
    /// # Errors
    /// When a store fails. The caller may call it again.
    pub async fn go_on(&mut self, ledger: &Ledger, until: Instant) -> Result<bool, LedgerError> {
        let went_on = self.try_to_go_on(ledger, until).await;
        if went_on.is_err() {
            // Some events of a page may not have been handled, so the rounds are counted from zero.
            self.end_round();
            self.rounds = CancelRounds::default();
        }
        went_on
    }

    async fn try_to_go_on(&mut self, ledger: &Ledger, until: Instant) -> Result<bool, LedgerError> {
        let documents = &ledger.plane().documents;
        loop {
            let events = self.events.get_or_insert_with(|| CancelledEvents::new(&self.what));
            let Some(page) = events.next(ledger).await? else {
                if self.end_round() {
                    Registry::end_cancelling(documents, &self.what).await?;
                    return Ok(true);
                }
                if self.done.running > 0 {
                    return Ok(false);
                }
                continue;
            };
            let registered = ledger.registered().await?;
            for some in page.chunks(AT_A_TIME) {
                let fates = some.iter().map(|event| cancel_jobs_of(ledger, &registered, event));
                let fates = try_join_all(fates).await?;
                fates.into_iter().flatten().for_each(|fate| self.count(fate));
            }
            self.seen.0 += page.len();
            if Instant::now() >= until {
                return Ok(false);
            }
        }
    }

    fn count(&mut self, fate: JobCancelOutcome) {
        self.rounds.found +=
            usize::from(!matches!(fate, JobCancelOutcome::Dead | JobCancelOutcome::Over));
        match fate {
            JobCancelOutcome::Queued => self.done.queued += 1,
            JobCancelOutcome::Prevented => self.done.prevented += 1,
            JobCancelOutcome::Runs(asked) => {
                self.running += 1;
                self.done.stopped += usize::from(asked);
            }
            JobCancelOutcome::Dead => self.seen.1 += 1,
            JobCancelOutcome::Over => {}
        }
    }

    fn end_round(&mut self) -> bool {
        self.events = None;
        (self.done.events, self.done.dead) = self.seen;
        self.done.running = std::mem::take(&mut self.running);
        self.seen = (0, 0);
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
        // The event is not visible yet. If its job succeeds, the event is committed then, for no
        // module.
        return Ok(vec![]);
    }
    let of_event =
        Query::equal(Collection::Jobs, vec![("eventId", json!(event.id))]).order_by("created");
    let jobs: Vec<JobRecord> = ledger.plane().documents.find_as(of_event).await?;
    let mut fates = Vec::new();
    for job in &jobs {
        fates.push(cancel(ledger, job).await?);
    }
    let has_job = |name: &str| jobs.iter().any(|job| job.module == name);
    for module in registered.expected(event).filter(|module| !has_job(&module.name)) {
        fates.push(match ledger.claim_cancelled(module, event).await? {
            ClaimOutcome::Won(_) => JobCancelOutcome::Prevented,
            ClaimOutcome::Known(job) => cancel(ledger, &job).await?,
        });
    }
    Ok(fates)
}

async fn cancel(ledger: &Ledger, job: &JobRecord) -> Result<JobCancelOutcome, LedgerError> {
    match job.state {
        JobState::Dead => return Ok(JobCancelOutcome::Dead),
        JobState::Succeeded | JobState::Cancelled => return Ok(JobCancelOutcome::Over),
        JobState::Starting | JobState::Running if job.cancel => {
            return Ok(JobCancelOutcome::Runs(false));
        }
        JobState::Waiting | JobState::Queued | JobState::Starting | JobState::Running => {}
    }
    match ledger.cancel(&job.id).await {
        Ok(job) if job.state == JobState::Cancelled => Ok(JobCancelOutcome::Queued),
        Ok(_) => Ok(JobCancelOutcome::Runs(true)),
        // The job has ended meanwhile.
        Err(LedgerError::Illegal { .. }) => Ok(JobCancelOutcome::Over),
        Err(error) => Err(error),
    }
}

/// The events that a cancellation covers, read page by page.
#[derive(Debug)]
enum CancelledEvents {
    /// All events of a correlation.
    Correlation(Pages),
    /// First the event itself, then its children, then the children of those.
    Event { root: Option<String>, levels: Vec<ChildPages> },
}

/// The children of one event.
#[derive(Debug)]
struct ChildPages {
    of: String,
    pages: Pages,
    /// The events of the last page whose children are still to be read.
    below: Vec<String>,
}

impl ChildPages {
    fn new(id: String) -> Self {
        let children = Query::equal(Collection::Events, vec![("context.parentEventId", json!(id))]);
        Self { pages: Pages::new(children, "jobId"), of: id, below: vec![] }
    }
}

impl CancelledEvents {
    fn new(what: &CancelOrder) -> Self {
        match &what.event {
            None => {
                let of_it = vec![("context.correlationId", json!(what.correlation))];
                Self::Correlation(Pages::new(Query::equal(Collection::Events, of_it), "created"))
            }
            Some(event) => Self::Event { root: Some(event.to_string()), levels: vec![] },
        }
    }

    /// Returns the next page of events; none after the last one.
    async fn next(&mut self, ledger: &Ledger) -> Result<Option<Vec<Event>>, StoreError> {
        let documents = &*ledger.plane().documents;
        match self {
            Self::Correlation(pages) => Ok(pages.next(documents).await?.map(events)),
            Self::Event { root, levels } => {
                if let Some(id) = root {
                    let found = documents.get(Collection::Events, id).await?;
                    levels.extend(root.take().map(ChildPages::new));
                    return Ok(Some(events(found.into_iter().collect())));
                }
                while let Some(level) = levels.last_mut() {
                    if let Some(id) = level.below.pop() {
                        // Ids and parents that were chosen by hand may form a cycle.
                        if levels.iter().all(|level| level.of != id) {
                            levels.push(ChildPages::new(id));
                        }
                        continue;
                    }
                    match level.pages.next(documents).await? {
                        Some(page) => {
                            let page = events(page);
                            level.below.extend(page.iter().map(|event| event.id.to_string()));
                            return Ok(Some(page));
                        }
                        None => drop(levels.pop()),
                    }
                }
                Ok(None)
            }
        }
    }
}

/// Returns the events among the documents. An event that cannot be decoded is left out: it starts
/// nothing, and `ion check` reports it.
fn events(documents: Vec<Value>) -> Vec<Event> {
    let kind = DocumentType::EventMeta.as_str();
    let events =
        documents.into_iter().filter(|document| document["context"]["documentType"] == kind);
    events.filter_map(|document| decode(Collection::Events, document).ok()).collect()
}

/// The cancellations whose commands have died, as a dispatcher continues them.
#[derive(Debug, Default)]
pub struct LeftCancellations {
    seen: StateAges<i64>,
    /// By [`CancelOrder::id`].
    at_work: BTreeMap<String, Cancellation>,
    /// The id of the one that the dispatcher continued last.
    last: String,
}

impl LeftCancellations {
    /// Continues one cancellation that has been in the registry for [`GRACE`].
    pub async fn round(&mut self, ledger: &Ledger) -> Result<(), LedgerError> {
        let registered = ledger.registered().await?;
        let all: Vec<&CancelOrder> = registered.registry.cancelling().collect();
        let stood = self.seen.update(all.iter().map(|what| (what.id(), what.since)));
        let left = all.into_iter().zip(stood).filter(|(_, stood)| *stood >= GRACE);
        let left: BTreeMap<String, &CancelOrder> =
            left.map(|(what, _)| (what.id(), what)).collect();
        self.at_work.retain(|id, _| left.contains_key(id));
        // The cancellations take turns, so that none of them waits for a running job of another
        // one.
        let behind = (Bound::Excluded(self.last.clone()), Bound::Unbounded);
        let Some((id, what)) = left.range(behind).next().or_else(|| left.iter().next()) else {
            return Ok(());
        };
        self.last.clone_from(id);
        let going_on = || Cancellation::going_on((*what).clone());
        let at_work = self.at_work.entry(id.clone()).or_insert_with(going_on);
        if at_work.go_on(ledger, Instant::now() + ROUND).await? {
            let done = at_work.done;
            tracing::info!(what = id, ?done, "a cancellation left by its command is done");
            self.at_work.remove(id);
        }
        Ok(())
    }
}
