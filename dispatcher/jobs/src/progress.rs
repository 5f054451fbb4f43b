//! How far a correlation has come: what `--wait` and the gateway show.

mod documents;
mod obstacles;

use std::collections::BTreeMap;

use ion_model::event::PublicationState;
use ion_model::id::JobId;
use ion_model::record::{JobRecord, JobState};
use ion_stores::{Collection, Documents, Pages, Query, StoreError, decode};
use serde::{Deserialize, Serialize};
use serde_json::json;

pub use self::documents::{CursorError, DocumentCursor, DocumentPages};
pub use self::obstacles::{Obstacle, OpenWork};
use crate::counts::{JobCounts, count_events_in, count_jobs, has_outbox, unclaimed_jobs};
use crate::gather::{GatherWatch, Readiness};
use crate::ledger::{Ledger, RegisteredModules};

/// How many dead jobs a status names, at most.
const NAMED_DEAD_MAX: usize = 1000;

/// How many jobs [`CorrelationStatus::under_way`] names, at most. One is enough most of the time;
/// more of them save readings of the whole status while jobs end one by one.
const UNDER_WAY: usize = 8;

/// The state of a correlation at one moment, in a few numbers.
#[derive(Clone, Debug)]
pub struct CorrelationStatus {
    /// Whether it has an event.
    pub exists: bool,
    /// How many jobs of each module are in each state.
    pub jobs: JobCounts,
    /// The jobs that its events should start and that no dispatcher has claimed yet, by module; of
    /// very many only the first ones.
    pub unclaimed: BTreeMap<String, u64>,
    /// The number of its events that are not published yet.
    pub unpublished: u64,
    /// How many gathering jobs wait for dead jobs only.
    pub held_back: usize,
    /// Whether it has ended: nothing more will happen by itself.
    pub ended: bool,
    /// Some of the jobs that have to end before the correlation has ended: see [`is_under_way`].
    pub under_way: Vec<JobId>,
    /// Its first dead jobs, with their modules.
    pub dead: Vec<(JobId, String)>,
}

impl CorrelationStatus {
    /// Returns the number of jobs in a state, of all modules.
    pub fn count(&self, state: JobState) -> u64 {
        self.jobs.values().filter_map(|states| states.get(state.as_str())).sum()
    }

    /// Returns the number of jobs.
    pub fn job_count(&self) -> u64 {
        self.jobs.values().flat_map(BTreeMap::values).sum()
    }

    /// Returns the number of jobs that have ended.
    pub fn ended_count(&self) -> u64 {
        let ended = JobState::ALL.into_iter().filter(|state| state.is_final());
        ended.map(|state| self.count(state)).sum()
    }

    /// Returns whether something has failed for good: a job is dead or cancelled, or a gathering
    /// job waits for dead jobs only.
    pub fn has_failed(&self) -> bool {
        self.held_back > 0 || self.count(JobState::Dead) + self.count(JobState::Cancelled) > 0
    }

    /// Returns the verdict of this state.
    pub fn verdict(&self) -> Verdict {
        match (self.ended, self.has_failed()) {
            (false, _) => Verdict::Running,
            (true, false) => Verdict::Succeeded,
            (true, true) => Verdict::Failed,
        }
    }
}

/// The state of a correlation in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Something may still happen.
    Running,
    /// It has ended, and everything succeeded.
    Succeeded,
    /// It has ended, and something has failed for good.
    Failed,
}

impl Verdict {
    /// Returns the word shown to people and programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }
}

/// Follows a correlation by numbers that the store counts from indexes, so neither its memory nor
/// its reads grow with the documents of the correlation.
#[derive(Debug)]
pub struct CorrelationWatch {
    correlation: String,
    gathers: GatherWatch,
}

impl CorrelationWatch {
    /// Begins to follow a correlation.
    pub fn new(correlation: &str) -> Self {
        Self { correlation: correlation.to_owned(), gathers: GatherWatch::default() }
    }

    /// Reads the state of the correlation. The caller must have read `registered` before this call.
    ///
    /// # Guarantees
    /// A correlation that is said to have ended has ended. The jobs are counted twice, and the
    /// counts must be the same: then no job was inserted between, since jobs are only added. All
    /// jobs had ended at the first count, so what they have committed was there before the other
    /// readings, which find an event that is not published, or that a job is missing for. An event
    /// is looked for where it comes from before where it goes to: in the outbox of its job, then
    /// among those that are not published, then among those that are not claimed.
    ///
    /// # Errors
    /// When a store cannot be read.
    pub async fn read(
        &mut self,
        ledger: &Ledger,
        registered: &RegisteredModules,
    ) -> Result<CorrelationStatus, StoreError> {
        let documents = &*ledger.plane().documents;
        let correlation = self.correlation.as_str();
        let jobs = count_jobs(documents, correlation).await?;
        let has_outbox = has_outbox(documents, correlation).await?;
        let unpublished = count_events_in(documents, correlation, PublicationState::Unpublished);
        let unpublished = unpublished.await?.values().sum();
        let unclaimed = unclaimed_jobs(ledger, correlation, registered).await?;
        let mut status = CorrelationStatus {
            exists: has_event(documents, correlation).await?,
            jobs,
            unclaimed,
            unpublished,
            held_back: 0,
            ended: false,
            under_way: vec![],
            dead: vec![],
        };
        let gathers_go_on = self.judge_gathers(ledger, registered, &mut status).await?;
        let is_open = |state: &JobState| !state.is_final() && *state != JobState::Waiting;
        let open: u64 =
            JobState::ALL.into_iter().filter(is_open).map(|state| status.count(state)).sum();
        let correlation = self.correlation.as_str();
        status.under_way = active_jobs(documents, correlation, UNDER_WAY).await?;
        if status.count(JobState::Dead) > 0 {
            let dead = in_state(correlation, JobState::Dead).limit(NAMED_DEAD_MAX);
            let dead: Vec<NamedJob> = documents.find_as(dead.only(&["module", "created"])).await?;
            status.dead = dead.into_iter().map(|job| (job.id, job.module)).collect();
        }
        status.ended = status.exists
            && open == 0
            && !has_outbox
            && !gathers_go_on
            && status.unclaimed.is_empty()
            && status.unpublished == 0
            && count_jobs(documents, correlation).await? == status.jobs
            && ledger.is_registry_unchanged(registered).await?;
        Ok(status)
    }

    /// Judges the waiting gathering jobs. Returns whether one of them waits for more than dead jobs.
    async fn judge_gathers(
        &mut self,
        ledger: &Ledger,
        registered: &RegisteredModules,
        status: &mut CorrelationStatus,
    ) -> Result<bool, StoreError> {
        let mut goes_on = false;
        if status.count(JobState::Waiting) == 0 {
            return Ok(goes_on);
        }
        let mut pages = Pages::new(in_state(&self.correlation, JobState::Waiting), "created");
        while let Some(page) = pages.next(&*ledger.plane().documents).await? {
            for document in page {
                let job: JobRecord = decode(Collection::Jobs, document)?;
                let Some(module) = registered.module(&job.module) else {
                    goes_on = true;
                    continue;
                };
                match self.gathers.look(ledger, &job, module, registered).await? {
                    Readiness::Waiting(what) if what.open == 0 => status.held_back += 1,
                    Readiness::Waiting(_) | Readiness::Ready | Readiness::Unsettled => {
                        goes_on = true;
                    }
                }
            }
        }
        Ok(goes_on)
    }
}

/// The part of a job that names it.
#[derive(Debug, Deserialize)]
struct NamedJob {
    id: JobId,
    module: String,
}

fn in_state(correlation: &str, state: JobState) -> Query {
    let equals = vec![("correlationId", json!(correlation)), ("state", json!(state))];
    Query::equal(Collection::Jobs, equals).order_by("created")
}

async fn has_event(documents: &dyn Documents, correlation: &str) -> Result<bool, StoreError> {
    let equals = vec![
        ("context.correlationId", json!(correlation)),
        ("context.documentType", json!("eventMeta")),
    ];
    let mut pages = Pages::new(Query::equal(Collection::Events, equals), "created");
    while let Some(page) = pages.next_rows(documents, 1).await? {
        if !page.iter().any(ion_model::event::is_staged) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns some queued or active jobs of a correlation.
async fn active_jobs(
    documents: &dyn Documents,
    correlation: &str,
    limit: usize,
) -> Result<Vec<JobId>, StoreError> {
    let mut found = Vec::new();
    for state in [JobState::Running, JobState::Starting, JobState::Queued] {
        let query = in_state(correlation, state).only(&["module", "created"]);
        for job in documents.find(query.limit(limit - found.len())).await? {
            found.push(decode::<NamedJob>(Collection::Jobs, job)?.id);
        }
        if found.len() >= limit {
            break;
        }
    }
    Ok(found)
}

/// Returns whether one of `jobs` is still under way. `jobs` is the
/// [`CorrelationStatus::under_way`] of an earlier reading. While one of them is under way, the
/// correlation has not ended, and the caller need not read its status. Once none is, the
/// correlation may have ended.
///
/// # Errors
/// When a store cannot be read.
pub async fn is_under_way(ledger: &Ledger, jobs: &[JobId]) -> Result<bool, StoreError> {
    for id in jobs {
        let job =
            ledger.plane().documents.get_as::<JobRecord>(Collection::Jobs, id.as_str()).await?;
        if job.is_some_and(|job| !job.state.is_final() && job.state != JobState::Waiting) {
            return Ok(true);
        }
    }
    Ok(false)
}
