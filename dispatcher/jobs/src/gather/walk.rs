//! Walks through the events of a correlation by a cursor, with a memory that does not grow with the
//! correlation.
//!
//! # How it works
//! The first walk reads a page of events after the other, and for each page the jobs on its events,
//! which one search of an index finds. It finds what is open, and takes a fingerprint of the events
//! that it has met below. The second walk reads the events alone, and takes the same fingerprint.
//!
//! # Why two walks with one fingerprint have met everything
//! Let both walks meet the same events, and let the first one find all their jobs ended. Whatever
//! those jobs have committed was there before the second walk began, and [`Pages`] returns each
//! document that is there during the whole reading: so the second walk has met it, and so has the
//! first. A set of events that holds whatever its own jobs have committed, and whose jobs have all
//! ended, grows no more. One walk alone does not tell: the time of a commit is by its writer's
//! clock, so what a job commits may come before the cursor, and the walk would miss it.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher as _, RandomState};

use ion_model::event::{DocumentType, Event, PublicationState};
use ion_model::id::{EventId, JobId};
use ion_model::record::{
    GatherObstacles, JobRecord, JobState, LISTED_JOBS_MAX, MissingJobs, OpenJob,
};
use ion_stores::{Collection, Pages, Query, StoreError, decode};
use serde::Deserialize;
use serde_json::json;

use super::below::LineageBelow;
use crate::ledger::{Ledger, RegisteredModules};
use crate::pipeline::{Module, OnDead, reachable_types};

/// The number of events of a page, whose jobs are read together. A page of whole events may have 300
/// kB for each of them.
pub(super) const PAGE_EVENTS: usize = 128;

/// The fields of an event that tell what it is for and where it stands.
const EVENT_FACTS: &[&str] =
    &["context", "type", "created", "publication", "jobId", "expectedBy", "registry", "unrouted"];

/// What a walk needs to know of a job.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct JobFacts {
    pub(super) id: JobId,
    pub(super) event_id: EventId,
    pub(super) module: String,
    pub(super) state: JobState,
    #[serde(default)]
    pub(super) outbox: bool,
}

/// The fields of [`JobFacts`].
const JOB_FACTS: &[&str] = &["eventId", "module", "state", "outbox"];

/// How much of the event documents a walk reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WalkDetail {
    /// Only what tells what an event is for and where it stands.
    Facts,
    /// Whole events.
    Events,
}

/// A walk through the events of a correlation that are below the event of a gathering job, in the
/// order of their commits and ids.
pub(super) struct EventWalk<'a> {
    ledger: &'a Ledger,
    pages: Pages,
    page_events: usize,
    below: LineageBelow<'a>,
}

impl<'a> EventWalk<'a> {
    pub(super) fn new(
        ledger: &'a Ledger,
        waiting: &'a JobRecord,
        detail: WalkDetail,
        page_events: usize,
    ) -> Self {
        let equals = vec![
            ("context.correlationId", json!(waiting.correlation_id)),
            ("context.documentType", json!(DocumentType::EventMeta)),
        ];
        let mut query = Query::equal(Collection::Events, equals);
        if detail == WalkDetail::Facts {
            query = query.only(EVENT_FACTS);
        }
        let below = LineageBelow::new(ledger, waiting);
        Self { ledger, pages: Pages::new(query, "created"), page_events, below }
    }

    /// Returns the events of the next page that are below, perhaps none of them; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Event>>, StoreError> {
        let documents = &*self.ledger.plane().documents;
        let Some(page) = self.pages.next_rows(documents, self.page_events).await? else {
            return Ok(None);
        };
        let mut found = Vec::new();
        for document in page {
            let event: Event = decode(Collection::Events, document)?;
            if event.publication != PublicationState::Staged
                && self.below.is_event_below(&event).await?
            {
                found.push(event);
            }
        }
        Ok(Some(found))
    }
}

/// Reads the jobs on these events.
pub(super) async fn read_jobs(
    ledger: &Ledger,
    events: &[Event],
) -> Result<HashMap<EventId, Vec<JobFacts>>, StoreError> {
    let ids = events.iter().map(|event| json!(event.id)).collect();
    let query = Query::one_of(Collection::Jobs, "eventId", ids).only(JOB_FACTS);
    let mut jobs: HashMap<EventId, Vec<JobFacts>> = HashMap::new();
    for job in ledger.plane().documents.find_as::<JobFacts>(query).await? {
        jobs.entry(job.event_id.clone()).or_default().push(job);
    }
    Ok(jobs)
}

/// The events that a walk has met, as a number and a sum: two walks that have met the same events
/// have the same fingerprint, in whatever order they met them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct EventsMet {
    count: u64,
    sum: u64,
}

impl EventsMet {
    /// Adds an event. All walks that are compared use the same `hasher`, whose keys nobody knows.
    pub(super) fn add(&mut self, hasher: &RandomState, event: &EventId) {
        self.count += 1;
        self.sum = self.sum.wrapping_add(hasher.hash_one(event));
    }
}

/// Judges the events below a gathering job's event, one after the other.
pub(super) struct GatherJudge<'a> {
    module: &'a Module,
    registered: &'a RegisteredModules,
    open: usize,
    dead: usize,
    first_open: Vec<OpenJob>,
    first_dead: Vec<OpenJob>,
    without: MissingJobs,
}

impl<'a> GatherJudge<'a> {
    pub(super) fn new(module: &'a Module, registered: &'a RegisteredModules) -> Self {
        let (first_open, first_dead) = (Vec::new(), Vec::new());
        let without = MissingJobs::default();
        Self { module, registered, open: 0, dead: 0, first_open, first_dead, without }
    }

    /// Judges one event by all jobs on it.
    pub(super) fn judge_event(&mut self, event: &Event, jobs: Vec<JobFacts>) {
        let registered = self.registered;
        let mut jobs: BTreeMap<String, JobFacts> =
            jobs.into_iter().map(|job| (job.module.clone(), job)).collect();
        for module in registered.modules_for(event) {
            let job = jobs.remove(&module.name);
            if !self.counts(module) {
                continue;
            }
            match job {
                Some(job) if job.state == JobState::Dead && self.module.on_dead == OnDead::Wait => {
                    self.add_dead(job);
                }
                Some(job) if job.state == JobState::Dead || job.state == JobState::Cancelled => {
                    self.without.add(&job.id);
                }
                Some(job) if job.state.is_final() && !job.outbox => {}
                Some(job) => self.add_open(job.id, &module.name, Some(job.state)),
                None => self.add_open(JobId::derive(&event.id, &module.name), &module.name, None),
            }
        }
        // The remaining jobs are of modules that the event is not for any more: these were removed,
        // or removed and registered again.
        for job in jobs.into_values() {
            let module = registered.module(&job.module);
            if may_still_commit(&job, module) && module.is_none_or(|module| self.counts(module)) {
                self.add_open(job.id, &job.module, Some(job.state));
            }
        }
    }

    /// Returns whether a module's jobs count as work below. Another gathering module counts only if
    /// its events can lead to events that are gathered here. Otherwise two gathering modules that
    /// cannot feed each other would wait for each other.
    fn counts(&self, other: &Module) -> bool {
        let gathered = self.module.gather.as_deref().unwrap_or_default();
        let feeds = || reachable_types(&self.registered.modules, &other.emits).contains(gathered);
        other.gather.is_none() || (other.name != self.module.name && feeds())
    }

    fn add_open(&mut self, job: JobId, module: &str, state: Option<JobState>) {
        self.open += 1;
        if self.first_open.len() < LISTED_JOBS_MAX {
            self.first_open.push(OpenJob { job, module: module.to_owned(), state });
        }
    }

    fn add_dead(&mut self, job: JobFacts) {
        self.dead += 1;
        if self.first_dead.len() < LISTED_JOBS_MAX {
            let JobFacts { id, module, state, .. } = job;
            self.first_dead.push(OpenJob { job: id, module, state: Some(state) });
        }
    }

    /// Returns what the gathering job waits for, or the jobs that it runs without if it waits for
    /// nothing.
    pub(super) fn conclude(self) -> Result<MissingJobs, GatherObstacles> {
        if self.open + self.dead == 0 {
            return Ok(self.without);
        }
        // One of the open jobs is named always: while it stands, the next look need not walk.
        let mut named = self.first_dead;
        named.truncate(LISTED_JOBS_MAX - usize::from(self.open > 0));
        named.extend(self.first_open);
        named.truncate(LISTED_JOBS_MAX);
        Err(GatherObstacles { open: self.open, dead: self.dead, named })
    }
}

/// Returns whether a job may still commit something: an active job goes on to its end without its
/// module, and a queued job is claimed if a module of that name is registered.
fn may_still_commit(job: &JobFacts, module: Option<&Module>) -> bool {
    let has_to_tell = job.state == JobState::Succeeded && job.outbox;
    job.state.is_active() || has_to_tell || (module.is_some() && !job.state.is_final())
}
