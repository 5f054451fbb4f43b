//! How far a correlation has come: what `--wait`, `trace` and the gateway show.

mod obstacles;

use std::collections::BTreeMap;

use ion_model::event::{Event, PublicationState};
use ion_model::id::JobId;
use ion_model::record::{GatherObstacles, InsightRecord, JobRecord, JobState};
use ion_stores::{Collection, Query, StoreError, encode};
use serde::Serialize;
use serde_json::{Value, json};

pub use self::obstacles::{Obstacle, OpenWork};
use crate::gather::{GatherWatch, Readiness};
use crate::ledger::{Ledger, RegisteredModules};

/// The state of a correlation at one moment.
#[derive(Clone, Debug)]
pub struct CorrelationStatus {
    /// Its events, oldest first.
    pub events: Vec<Event>,
    /// Its jobs, oldest first.
    pub jobs: Vec<JobRecord>,
    /// How many jobs its events should start that no dispatcher has claimed yet.
    pub unclaimed: usize,
    /// What each gathering job waits for.
    pub waits_for: BTreeMap<JobId, GatherObstacles>,
    /// How many gathering jobs wait for dead jobs only.
    pub held_back: usize,
    /// Whether it has ended: nothing more will happen by itself.
    pub ended: bool,
    /// Some of the jobs that have to end before the correlation has ended: see [`is_under_way`].
    pub under_way: Vec<JobId>,
}

/// How many jobs [`CorrelationStatus::under_way`] names, at most. One is enough most of the time;
/// more of them save readings of the whole correlation while jobs end one by one.
const UNDER_WAY: usize = 8;

impl CorrelationStatus {
    /// Returns whether something has failed for good: a job is dead or cancelled, or a gathering
    /// job waits for dead jobs only.
    pub fn has_failed(&self) -> bool {
        self.held_back > 0
            || self.jobs.iter().any(|job| matches!(job.state, JobState::Dead | JobState::Cancelled))
    }

    /// Returns each gathering job that has run without a job which was run again since, with one
    /// such job.
    pub fn outdated_gathers(&self) -> Vec<(&JobRecord, &JobRecord)> {
        let gatherers = self.jobs.iter().filter(|job| !job.without.is_empty());
        let by_id: BTreeMap<&JobId, &JobRecord> = match gatherers.clone().next() {
            Some(_) => self.jobs.iter().map(|job| (&job.id, job)).collect(),
            None => BTreeMap::new(),
        };
        let again = |id: &JobId| {
            let job = by_id.get(id).copied()?;
            (!matches!(job.state, JobState::Cancelled | JobState::Dead)).then_some(job)
        };
        gatherers.filter_map(|job| Some((job, job.without.jobs.iter().find_map(again)?))).collect()
    }

    /// Returns the verdict of this state.
    pub fn verdict(&self) -> Verdict {
        match (self.ended, self.has_failed()) {
            (false, _) => Verdict::Running,
            (true, false) => Verdict::Succeeded,
            (true, true) => Verdict::Failed,
        }
    }

    /// Returns how many jobs of each module are in each state.
    pub fn count_jobs_by_module(&self) -> BTreeMap<&str, BTreeMap<&'static str, usize>> {
        let mut counts: BTreeMap<&str, BTreeMap<&'static str, usize>> = BTreeMap::new();
        for job in &self.jobs {
            *counts.entry(&job.module).or_default().entry(job.state.as_str()).or_default() += 1;
        }
        counts
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

/// Everything that is known about a correlation.
#[derive(Clone, Debug)]
pub struct Trace {
    /// Its events and jobs.
    pub status: CorrelationStatus,
    /// The insights that its jobs keep for analysis, by job.
    pub insights: BTreeMap<String, InsightRecord>,
}

impl Trace {
    /// Reads a correlation.
    ///
    /// # Errors
    /// When a store cannot be read.
    pub async fn read(ledger: &Ledger, correlation: &str) -> Result<Self, StoreError> {
        let registered = ledger.registered_modules().await?;
        let status = correlation_status(ledger, correlation, &registered).await?;
        let equals = vec![
            ("context.correlationId", json!(correlation)),
            ("context.documentType", json!("insight")),
        ];
        let insights: Vec<InsightRecord> =
            ledger.plane().documents.find_as(Query::equal(Collection::Events, equals)).await?;
        let visible = insights.into_iter().filter(|insight| !insight.staged);
        let insights = visible.map(|insight| (insight.job_id.to_string(), insight)).collect();
        Ok(Self { status, insights })
    }

    /// Calls `take` with one document after another, events, insights and jobs: all of them together
    /// would take many times the memory of their text.
    ///
    /// # Errors
    /// The first error that `take` returns.
    pub fn for_each_document<E>(
        &self,
        mut take: impl FnMut(&Value) -> Result<(), E>,
    ) -> Result<(), E> {
        self.status.events.iter().try_for_each(|event| take(&encode(event)))?;
        self.insights.values().try_for_each(|insight| take(&insight.shown_document()))?;
        self.status.jobs.iter().try_for_each(|job| take(&encode(job)))
    }
}

/// Reads the state of a correlation. The jobs are read before the events, and the registry before
/// and after both, for the reason that [`crate::gather::gather`] gives.
pub async fn correlation_status(
    ledger: &Ledger,
    correlation: &str,
    registered: &RegisteredModules,
) -> Result<CorrelationStatus, StoreError> {
    let jobs = ledger.jobs_of(correlation).await?;
    let events = ledger.correlation_events(correlation).await?;
    let claimed: std::collections::BTreeSet<(&str, &str)> =
        jobs.iter().map(|job| (job.event_id.as_str(), job.module.as_str())).collect();
    let unclaimed: Vec<JobId> = events
        .iter()
        .flat_map(|event| registered.modules_for(event).map(move |module| (event, module)))
        .filter(|(event, module)| !claimed.contains(&(event.id.as_str(), module.name.as_str())))
        .map(|(event, module)| JobId::derive(&event.id, &module.name))
        .collect();
    let mut under_way: Vec<JobId> = jobs
        .iter()
        .filter(|job| job.state != JobState::Waiting && is_open(job))
        .map(|job| job.id.clone())
        .take(UNDER_WAY)
        .collect();
    let mut gathers = GatherWatch::default();
    let mut waits_for = BTreeMap::new();
    let mut held_back = 0;
    let mut open = 0;
    for job in &jobs {
        match (job.state, registered.module(&job.module)) {
            (JobState::Waiting, Some(module)) => {
                match gathers.look(ledger, job, module, registered).await? {
                    Readiness::Waiting(what) => {
                        let is_held_back = what.open == 0;
                        held_back += usize::from(is_held_back);
                        open += usize::from(!is_held_back);
                        waits_for.insert(job.id.clone(), what);
                    }
                    Readiness::Ready | Readiness::Unsettled => open += 1,
                }
            }
            _ if is_open(job) => open += 1,
            _ => {}
        }
    }
    let unpublished = events.iter().any(|event| event.publication == PublicationState::Unpublished);
    let ended = unclaimed.is_empty() && open == 0 && !unpublished && !events.is_empty();
    let ended = ended && ledger.is_registry_unchanged(registered).await?;
    let room = UNDER_WAY - under_way.len();
    under_way.extend(unclaimed.iter().take(room).cloned());
    Ok(CorrelationStatus {
        events,
        jobs,
        unclaimed: unclaimed.len(),
        waits_for,
        held_back,
        ended,
        under_way,
    })
}

/// Returns whether a job has not ended, or has succeeded and its staged events are not published
/// yet.
fn is_open(job: &JobRecord) -> bool {
    !job.state.is_final() || (job.state == JobState::Succeeded && job.outbox)
}

/// Returns whether one of `jobs` is still under way. `jobs` is the
/// [`CorrelationStatus::under_way`] of an earlier reading. While one of them is under way, the
/// correlation has not ended, and the caller need not read all of it. Once none is, the correlation
/// may have ended.
///
/// # Errors
/// When a store cannot be read.
pub async fn is_under_way(ledger: &Ledger, jobs: &[JobId]) -> Result<bool, StoreError> {
    for id in jobs {
        let job =
            ledger.plane().documents.get_as::<JobRecord>(Collection::Jobs, id.as_str()).await?;
        if job.is_none_or(|job| job.state != JobState::Waiting && is_open(&job)) {
            return Ok(true);
        }
    }
    Ok(false)
}
