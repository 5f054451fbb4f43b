//! Finds out by a few rows of an index whether work below an event is open, so that a gathering job
//! that waits costs little, however large its correlation is.
//!
//! What is found here is open: a job that is queued or runs and whose event is below the gathering
//! job's event. What is not found here may be open all the same: an event that no dispatcher has
//! claimed, or a gathering job of another module. Only the whole correlation tells that.

use std::collections::HashMap;

use ion_model::event::is_event;
use ion_model::id::EventId;
use ion_model::record::{GatherObstacles, JobRecord, JobState, LISTED_JOBS_MAX, OpenJob};
use ion_stores::{Collection, Query, StoreError};
use serde_json::{Value, json};

use crate::ledger::{Ledger, RegisteredModules};
use crate::pipeline::{Module, OnDead};

/// How far jobs are counted. Beyond, the number that people see is a lower bound.
const COUNTED_MAX: usize = 10_000;

/// How many jobs of a state are looked at to find some that are below the event. Those of other
/// events of the correlation may come first.
const LOOKED_AT_MAX: usize = 100;

/// How far up a lineage is followed.
const GENERATIONS_MAX: usize = 1000;

/// Returns what the gathering job `waiting` waits for, if a job below its event is open.
///
/// # Errors
/// When a store cannot be read.
pub(super) async fn find_open_work(
    ledger: &Ledger,
    waiting: &JobRecord,
    module: &Module,
    registered: &RegisteredModules,
) -> Result<Option<GatherObstacles>, StoreError> {
    let mut lineage = LineageBelow { ledger, waiting, known: HashMap::new() };
    let mut open = Vec::new();
    let mut count = 0;
    // A job of another gathering module may not count, and one of a removed module may never go on:
    // the whole correlation tells.
    let is_plain = |job: &JobRecord| {
        registered.module(&job.module).is_some_and(|module| module.gather.is_none())
    };
    for state in [JobState::Running, JobState::Starting, JobState::Queued] {
        let jobs = lineage.jobs_below(state, is_plain).await?;
        if !jobs.is_empty() {
            let query = in_state(waiting, state).limit(COUNTED_MAX);
            count += ledger.plane().documents.count(query).await?;
        }
        open.extend(jobs);
    }
    if open.is_empty() {
        return Ok(None);
    }
    let dead = match module.on_dead {
        OnDead::Wait => lineage.jobs_below(JobState::Dead, is_plain).await?,
        OnDead::Go => vec![],
    };
    let dead_count = dead.len();
    let named = dead.into_iter().chain(open).take(LISTED_JOBS_MAX).collect();
    Ok(Some(GatherObstacles { open: count, dead: dead_count, named }))
}

fn in_state(waiting: &JobRecord, state: JobState) -> Query {
    let equals = vec![("correlationId", json!(waiting.correlation_id)), ("state", json!(state))];
    Query::equal(Collection::Jobs, equals)
}

/// Answers whether events are below the event of a gathering job.
struct LineageBelow<'a> {
    ledger: &'a Ledger,
    waiting: &'a JobRecord,
    /// The answers so far.
    known: HashMap<EventId, bool>,
}

impl LineageBelow<'_> {
    /// Returns some jobs in this state whose events are below.
    async fn jobs_below(
        &mut self,
        state: JobState,
        is_wanted: impl Fn(&JobRecord) -> bool,
    ) -> Result<Vec<OpenJob>, StoreError> {
        let query = in_state(self.waiting, state).order_by("created").limit(LOOKED_AT_MAX);
        let jobs: Vec<JobRecord> = self.ledger.plane().documents.find_as(query).await?;
        let mut found = Vec::new();
        for job in jobs.into_iter().filter(is_wanted) {
            if found.len() < LISTED_JOBS_MAX && self.is_below(&job.event_id).await? {
                found.push(OpenJob { job: job.id, module: job.module, state: Some(state) });
            }
        }
        Ok(found)
    }

    /// Returns whether an event is the gathering job's event or below it. What an earlier attempt
    /// of the gathering job itself has published does not count.
    async fn is_below(&mut self, event: &EventId) -> Result<bool, StoreError> {
        let mut way = vec![];
        let mut id = event.clone();
        let mut is_below = false;
        for _ in 0..GENERATIONS_MAX {
            if let Some(known) = self.known.get(&id) {
                is_below = *known;
                break;
            }
            way.push(id.clone());
            if id == self.waiting.event_id {
                is_below = true;
                break;
            }
            // A parent's id is whatever a user has chosen: perhaps that of another document.
            let found = self.ledger.plane().documents.get(Collection::Events, id.as_str()).await?;
            let own = json!(self.waiting.id);
            let is_of_lineage = |document: &Value| is_event(document) && document["jobId"] != own;
            let Some(document) = found.filter(is_of_lineage) else { break };
            let parent = document["context"]["parentEventId"].as_str().unwrap_or_default();
            id = EventId::new(parent);
        }
        self.known.extend(way.into_iter().map(|id| (id, is_below)));
        Ok(is_below)
    }
}
