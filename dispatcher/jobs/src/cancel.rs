//! Cancelling a correlation, or an event and all that came of it.
//!
//! # How it works
//! The registry says what is being cancelled ([`Cancelling`]): from then on what is committed below
//! it is for no module. What was committed before is gone through, event by event: jobs that wait
//! or are queued are cancelled, those that run are asked to stop, and those that nobody has claimed
//! yet are written down as cancelled, so that a message finds them there. A job that runs may
//! commit until it has stopped, so all of it is gone through again until nothing was found twice in
//! a row; then the registry forgets it.
//!
//! # After a crash
//! If the command that began it dies, dispatchers finish it: each looks for cancellations that have
//! stood in the registry for [`GRACE`].
//!
//! # What it never does
//! Read more than a page of events at a time; touch what has ended: dead jobs stay as they are.

#[cfg(test)]
mod model;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use ion_model::event::{DocumentType, Event, Publication};
use ion_model::record::{JobRecord, JobState};
use ion_stores::registry::{Cancelling, Registry};
use ion_stores::{Collection, Pages, Query, StoreError, decode};
use ion_system::failpoint;
use ion_system::patience::Standing;
use serde::Serialize;
use serde_json::{Value, json};

use crate::ledger::{Claim, Ledger, LedgerError, Registered};

/// Events whose jobs are looked at side by side.
const AT_A_TIME: usize = 16;

/// How long dispatchers leave a cancellation to the command that began it. Shorter, and both would
/// do the work.
const GRACE: Duration = Duration::from_secs(20);

/// The longest that a dispatcher goes on with it before it looks after other things.
const ROUND: Duration = Duration::from_millis(200);

/// What was done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cancelled {
    /// Events that were gone through.
    pub events: usize,
    /// Jobs that waited or were queued, and are cancelled.
    pub queued: usize,
    /// Jobs that would still have been started, and are cancelled.
    pub prevented: usize,
    /// Jobs that ran and were asked to stop.
    pub stopped: usize,
    /// Jobs that still run.
    pub running: usize,
    /// Dead jobs, which stay as they are.
    pub dead: usize,
}

/// What became of one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Queued,
    Prevented,
    /// It runs; whether it was asked to stop just now.
    Runs(bool),
    Dead,
    Over,
}

/// One cancellation under way.
#[derive(Debug)]
pub struct Cancellation {
    what: Cancelling,
    events: Option<Below>,
    /// What was done, in all rounds.
    done: Cancelled,
    rounds: Rounds,
    /// Events and dead jobs of this round.
    seen: (usize, usize),
    /// Jobs that were asked to stop and run.
    running: usize,
}

/// When all of it was gone through often enough.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Rounds {
    /// Jobs of this round that had not ended.
    found: usize,
    /// Rounds in a row that have found none.
    clean: u32,
}

impl Rounds {
    /// A round is over. True: nothing of it runs any more. One clean round alone may have passed an
    /// event by that a job committed just before it ended, and then have come to that job.
    fn end(&mut self) -> bool {
        self.clean = if self.found == 0 { self.clean + 1 } else { 0 };
        self.found = 0;
        self.clean >= 2
    }
}

impl Cancellation {
    /// Begins it: nothing that is committed below it from now on starts anything.
    ///
    /// # Errors
    /// When a store does not do its part, or too much is being cancelled already.
    pub async fn begin(ledger: &Ledger, what: Cancelling) -> Result<Self, LedgerError> {
        match Registry::begin_cancelling(&ledger.plane().documents, &what).await? {
            true => {
                failpoint::reach("cancel.begun");
                Ok(Self::going_on(what))
            }
            false => Err(LedgerError::TooManyCancellations),
        }
    }

    /// One that somebody has begun.
    fn going_on(what: Cancelling) -> Self {
        Self {
            what,
            events: None,
            done: Cancelled::default(),
            rounds: Rounds::default(),
            seen: (0, 0),
            running: 0,
        }
    }

    /// What was done so far.
    pub fn done(&self) -> Cancelled {
        self.done
    }

    /// Goes on with it until then at most; true when nothing of it runs any more, or will.
    ///
    /// # Errors
    /// When a store does not do its part; it may be called again.
    pub async fn go_on(&mut self, ledger: &Ledger, until: Instant) -> Result<bool, LedgerError> {
        let went_on = self.try_to_go_on(ledger, until).await;
        if went_on.is_err() {
            // Part of a page may not have been gone into.
            self.end_round();
            self.rounds = Rounds::default();
        }
        went_on
    }

    async fn try_to_go_on(&mut self, ledger: &Ledger, until: Instant) -> Result<bool, LedgerError> {
        let documents = &ledger.plane().documents;
        loop {
            let events = self.events.get_or_insert_with(|| Below::new(&self.what));
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

    fn count(&mut self, fate: Fate) {
        self.rounds.found += usize::from(!matches!(fate, Fate::Dead | Fate::Over));
        match fate {
            Fate::Queued => self.done.queued += 1,
            Fate::Prevented => self.done.prevented += 1,
            Fate::Runs(asked) => {
                self.running += 1;
                self.done.stopped += usize::from(asked);
            }
            Fate::Dead => self.seen.1 += 1,
            Fate::Over => {}
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

/// Cancels all jobs of an event that have not ended, also those that nobody has claimed.
async fn cancel_jobs_of(
    ledger: &Ledger,
    registered: &Registered,
    event: &Event,
) -> Result<Vec<Fate>, LedgerError> {
    if event.publication == Publication::Staged {
        // Nobody may see it; should its job end well, it is committed then, for no module.
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
            Claim::Won(_) => Fate::Prevented,
            Claim::Known(job) => cancel(ledger, &job).await?,
        });
    }
    Ok(fates)
}

async fn cancel(ledger: &Ledger, job: &JobRecord) -> Result<Fate, LedgerError> {
    match job.state {
        JobState::Dead => return Ok(Fate::Dead),
        JobState::Succeeded | JobState::Cancelled => return Ok(Fate::Over),
        JobState::Starting | JobState::Running if job.cancel => return Ok(Fate::Runs(false)),
        JobState::Waiting | JobState::Queued | JobState::Starting | JobState::Running => {}
    }
    match ledger.cancel(&job.id).await {
        Ok(job) if job.state == JobState::Cancelled => Ok(Fate::Queued),
        Ok(_) => Ok(Fate::Runs(true)),
        // It has ended meanwhile.
        Err(LedgerError::Illegal { .. }) => Ok(Fate::Over),
        Err(error) => Err(error),
    }
}

/// The events of what is cancelled, a page at a time.
#[derive(Debug)]
enum Below {
    /// All of a correlation.
    Correlation(Pages),
    /// First the event itself, then its children, then theirs.
    Event { root: Option<String>, levels: Vec<Level> },
}

/// The children of one event.
#[derive(Debug)]
struct Level {
    of: String,
    pages: Pages,
    /// What of the last page is still to be gone into.
    below: Vec<String>,
}

impl Level {
    fn new(id: String) -> Self {
        let children = Query::equal(Collection::Events, vec![("context.parentEventId", json!(id))]);
        Self { pages: Pages::new(children, "jobId"), of: id, below: vec![] }
    }
}

impl Below {
    fn new(what: &Cancelling) -> Self {
        match &what.event {
            None => {
                let of_it = vec![("context.correlationId", json!(what.correlation))];
                Self::Correlation(Pages::new(Query::equal(Collection::Events, of_it), "created"))
            }
            Some(event) => Self::Event { root: Some(event.to_string()), levels: vec![] },
        }
    }

    /// The next events; none behind the last.
    async fn next(&mut self, ledger: &Ledger) -> Result<Option<Vec<Event>>, StoreError> {
        let documents = &*ledger.plane().documents;
        match self {
            Self::Correlation(pages) => Ok(pages.next(documents).await?.map(events)),
            Self::Event { root, levels } => {
                if let Some(id) = root {
                    let found = documents.get(Collection::Events, id).await?;
                    levels.extend(root.take().map(Level::new));
                    return Ok(Some(events(found.into_iter().collect())));
                }
                while let Some(level) = levels.last_mut() {
                    if let Some(id) = level.below.pop() {
                        // Ids and parents that were chosen by hand may make a circle.
                        if levels.iter().all(|level| level.of != id) {
                            levels.push(Level::new(id));
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

/// The events among documents. One that cannot be read starts nothing: `ion check` tells of it.
fn events(documents: Vec<Value>) -> Vec<Event> {
    let kind = DocumentType::EventMeta.as_str();
    let events =
        documents.into_iter().filter(|document| document["context"]["documentType"] == kind);
    events.filter_map(|document| decode(Collection::Events, document).ok()).collect()
}

/// What a dispatcher does about cancellations whose commands have died.
#[derive(Debug, Default)]
pub struct LeftCancellations {
    seen: Standing<i64>,
    /// By [`Cancelling::id`].
    at_work: BTreeMap<String, Cancellation>,
    /// The one that it went on with last.
    last: String,
}

impl LeftCancellations {
    /// Goes on with one that has stood for a while.
    pub async fn round(&mut self, ledger: &Ledger) -> Result<(), LedgerError> {
        let registered = ledger.registered().await?;
        let all: Vec<&Cancelling> = registered.registry.cancelling().collect();
        let stood = self.seen.look(all.iter().map(|what| (what.id(), what.since)));
        let left = all.into_iter().zip(stood).filter(|(_, stood)| *stood >= GRACE);
        let left: BTreeMap<String, &Cancelling> = left.map(|(what, _)| (what.id(), what)).collect();
        self.at_work.retain(|id, _| left.contains_key(id));
        // One after another, so that none waits for the end of a job of another.
        let behind = (Bound::Excluded(self.last.clone()), Bound::Unbounded);
        let Some((id, what)) = left.range(behind).next().or_else(|| left.iter().next()) else {
            return Ok(());
        };
        self.last.clone_from(id);
        let going_on = || Cancellation::going_on((*what).clone());
        let at_work = self.at_work.entry(id.clone()).or_insert_with(going_on);
        if at_work.go_on(ledger, Instant::now() + ROUND).await? {
            let done = at_work.done;
            tracing::info!(what = id, ?done, "what somebody has begun to cancel is cancelled");
            self.at_work.remove(id);
        }
        Ok(())
    }
}
