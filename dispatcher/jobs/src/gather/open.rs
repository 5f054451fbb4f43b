//! Finds out by a few rows of an index whether work below an event is open, so that a gathering job
//! that waits costs little, however large its correlation is.
//!
//! What is found here is open: a job that is queued or runs and whose event is below the gathering
//! job's event. What is not found here may be open all the same: an event that no dispatcher has
//! claimed, or a gathering job of another module. Only the whole correlation tells that.

use ion_model::record::{GatherObstacles, JobRecord, JobState, LISTED_JOBS_MAX, OpenJob};
use ion_stores::{Collection, Query, StoreError};
use serde_json::json;

use super::below::LineageBelow;
use crate::ledger::{Ledger, RegisteredModules};
use crate::pipeline::{Module, OnDead};

/// How far jobs are counted. Beyond, the number that people see is a lower bound.
const COUNTED_MAX: usize = 10_000;

/// How many jobs of a state are looked at to find some that are below the event. Those of other
/// events of the correlation may come first.
const LOOKED_AT_MAX: usize = 100;

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
    let mut lineage = LineageBelow::new(ledger, waiting);
    let of = (ledger, waiting);
    let mut open = Vec::new();
    let mut count = 0;
    // A job of another gathering module may not count, and one of a removed module may never go on:
    // the whole correlation tells.
    let is_plain = |job: &JobRecord| {
        registered.module(&job.module).is_some_and(|module| module.gather.is_none())
    };
    for state in [JobState::Running, JobState::Starting, JobState::Queued] {
        let jobs = jobs_below(&mut lineage, of, state, is_plain).await?;
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
        OnDead::Wait => jobs_below(&mut lineage, of, JobState::Dead, is_plain).await?,
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

/// Returns some jobs in this state whose events are below.
async fn jobs_below(
    lineage: &mut LineageBelow<'_>,
    (ledger, waiting): (&Ledger, &JobRecord),
    state: JobState,
    is_wanted: impl Fn(&JobRecord) -> bool,
) -> Result<Vec<OpenJob>, StoreError> {
    let query = in_state(waiting, state).order_by("created").limit(LOOKED_AT_MAX);
    let jobs: Vec<JobRecord> = ledger.plane().documents.find_as(query).await?;
    let mut found = Vec::new();
    for job in jobs.into_iter().filter(is_wanted) {
        if found.len() < LISTED_JOBS_MAX && lineage.is_below(&job.event_id).await? {
            found.push(OpenJob { job: job.id, module: job.module, state: Some(state) });
        }
    }
    Ok(found)
}
