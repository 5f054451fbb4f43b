//! The summary of a correlation of any size: what there is of it, how fast it goes on, and what has
//! failed.
//!
//! # How it works
//! Jobs and events are counted by the store, from indexes. Times are taken of the succeeded jobs that
//! were created last, at most [`SAMPLED_JOBS`] of each module, and reasons of the dead and of the
//! cancelled jobs that were created last, at most [`REASONS_READ_MAX`] of each. So the memory does
//! not grow with the correlation.

use std::collections::BTreeMap;

use ion_model::clock::Millis;
use ion_model::event::PublicationState;
use ion_model::id::JobId;
use ion_model::record::{Attempt, JobRecord, JobState};
use ion_stores::{Collection, Documents, Pages, Query, StoreError, decode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::counts::{
    count_events_in, count_jobs, count_types, events_of, has_outbox, unclaimed_jobs,
};
use crate::ledger::{Ledger, RegisteredModules};
use crate::list::{JobFilter, ListPart};
use crate::progress::{OpenWork, Verdict};

/// How many succeeded jobs of a module its times are taken of, at most: the latest ones. More make
/// the percentiles more exact, and the summary slower.
const SAMPLED_JOBS: usize = 1000;

/// How many dead jobs, and how many cancelled jobs, are read for their reasons, at most: the latest
/// ones.
const REASONS_READ_MAX: usize = 10_000;

/// How many different reasons are kept. All further ones count as one.
const REASONS_MAX: usize = 100;

/// What a correlation consists of, and how far it has come.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CorrelationSummary {
    /// The correlation.
    pub correlation_id: String,
    /// Its state.
    pub verdict: Verdict,
    /// When its first event was committed; none if it has no events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<Millis>,
    /// When its latest event was committed, or its latest job claimed or ended, as far as jobs were
    /// read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<Millis>,
    /// The number of its events of each type. Those that are only staged do not count.
    pub events: BTreeMap<String, u64>,
    /// Its modules, in the order of their names.
    pub modules: Vec<ModuleSummary>,
    /// Jobs that no dispatcher has claimed yet, by module.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unclaimed: BTreeMap<String, u64>,
    /// The number of its events that are not published yet.
    #[serde(skip_serializing_if = "is_zero")]
    pub unpublished: u64,
    /// The reasons of failed jobs, the most frequent first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<FailureReason>,
    /// How many failed jobs were not read for their reasons.
    #[serde(skip_serializing_if = "is_zero")]
    pub failures_not_read: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl CorrelationSummary {
    /// Returns the number of events.
    pub fn event_count(&self) -> u64 {
        self.events.values().sum()
    }

    /// Returns the number of jobs.
    pub fn job_count(&self) -> u64 {
        self.modules.iter().map(ModuleSummary::job_count).sum()
    }

    /// Returns the work that has not ended. It names one dead job for each reason.
    pub fn open_work(&self) -> OpenWork {
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let mut work = OpenWork { unpublished: count(self.unpublished), ..OpenWork::default() };
        for (module, jobs) in &self.unclaimed {
            *work.queued.entry(module.clone()).or_default() += count(*jobs);
        }
        for summary in &self.modules {
            let name = &summary.module;
            let queued = summary.count(JobState::Queued);
            if queued > 0 {
                *work.queued.entry(name.clone()).or_default() += count(queued);
            }
            let running = summary.running_count();
            if running > 0 {
                work.running.insert(name.clone(), count(running));
            }
            if summary.count(JobState::Waiting) > 0 {
                work.gathering.insert(name.clone());
            }
        }
        let dead = self.failures.iter().filter(|reason| reason.state == JobState::Dead.as_str());
        work.dead = dead.map(|reason| (reason.example.clone(), reason.module.clone())).collect();
        work
    }
}

/// The jobs of one module in a correlation.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ModuleSummary {
    /// The module.
    pub module: String,
    /// How many of its jobs are in each state. States without a job are missing.
    pub states: BTreeMap<&'static str, u64>,
    /// How long its succeeded jobs took; none if no job has succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<JobTimes>,
    /// How long its queued and running jobs will take at the rate of those that ended last, in
    /// milliseconds; none if nothing is left or no rate is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left: Option<Millis>,
}

impl ModuleSummary {
    /// Returns the number of jobs in a state.
    pub fn count(&self, state: JobState) -> u64 {
        self.states.get(state.as_str()).copied().unwrap_or_default()
    }

    /// Returns the number of jobs of which an attempt is in progress.
    pub fn running_count(&self) -> u64 {
        self.count(JobState::Starting) + self.count(JobState::Running)
    }

    /// Returns the number of all jobs.
    pub fn job_count(&self) -> u64 {
        self.states.values().sum()
    }
}

/// How long the latest succeeded jobs of a module took: each from the claim of its last attempt to
/// its end.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobTimes {
    /// Half of them took at most this long, in milliseconds.
    pub p50: Millis,
    /// 95 % of them took at most this long.
    pub p95: Millis,
    /// How many of them ended in a second; none for a single job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_second: Option<f64>,
    /// The number of jobs that these values were taken of.
    pub of: usize,
    /// When the last of these jobs ended.
    pub last: Millis,
}

/// Jobs of one module that failed for the same reason.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FailureReason {
    /// The module.
    pub module: String,
    /// The state of the jobs: dead or cancelled.
    pub state: &'static str,
    /// The reason of their last attempt, in words.
    pub reason: String,
    /// How many jobs.
    pub jobs: u64,
    /// The latest of them.
    pub example: JobId,
}

/// The part of a job that the times are taken of.
#[derive(Debug, Deserialize)]
struct SampledJob {
    #[serde(default)]
    attempts: Vec<Attempt>,
}

/// Reads the summary of a correlation.
///
/// # Errors
/// When a store cannot be read.
pub async fn read_summary(
    ledger: &Ledger,
    correlation: &str,
    registered: &RegisteredModules,
) -> Result<CorrelationSummary, StoreError> {
    let documents = &*ledger.plane().documents;
    // Jobs are counted before events: whatever a job in the first reading has committed is in the
    // second.
    let of = |equals: Vec<(&'static str, Value)>| {
        let mut all = vec![("correlationId", json!(correlation))];
        all.extend(equals);
        Query::equal(Collection::Jobs, all)
    };
    let by_module = count_jobs(documents, correlation).await?;
    let events = events_of(correlation);
    let mut types = count_types(documents, correlation).await?;
    let unpublished = count_events_in(documents, correlation, PublicationState::Unpublished);
    let unpublished: u64 = unpublished.await?.values().sum();
    // An event that is published meanwhile is among the unclaimed ones then.
    let unclaimed = unclaimed_jobs(ledger, correlation, registered).await?;
    types.retain(|_, count| *count > 0);
    let mut modules = Vec::new();
    for (module, states) in by_module {
        let query = of(vec![("state", json!(JobState::Succeeded)), ("module", json!(module))]);
        let times = match states.get(JobState::Succeeded.as_str()) {
            Some(_) => times(documents, query).await?,
            None => None,
        };
        let mut summary = ModuleSummary { module, states, times, left: None };
        let unclaimed = unclaimed.get(&summary.module).copied().unwrap_or_default();
        let open = summary.count(JobState::Queued) + summary.running_count() + unclaimed;
        summary.left = times.and_then(|times| time_left(open, times.per_second?));
        modules.push(summary);
    }
    let last_ended = modules.iter().filter_map(|module| Some(module.times?.last)).max();
    let first = first_created(documents, events.clone()).await?;
    let last_event = first_created(documents, events.descending()).await?;
    let last_job = first_created(documents, of(vec![]).descending()).await?;
    let failures = FailureReasons::read(documents, correlation).await?;
    let total = |state: JobState| modules.iter().map(|module| module.count(state)).sum::<u64>();
    let failed = total(JobState::Dead) + total(JobState::Cancelled);
    let running: u64 = modules.iter().map(ModuleSummary::running_count).sum();
    let goes_on = total(JobState::Queued) + running > 0
        || has_outbox(documents, correlation).await?
        || !unclaimed.is_empty()
        || unpublished > 0
        || (total(JobState::Waiting) > 0 && gathering_goes_on(documents, correlation).await?);
    let verdict = match (goes_on || types.is_empty(), failed > 0 || total(JobState::Waiting) > 0) {
        (true, _) => Verdict::Running,
        (false, true) => Verdict::Failed,
        (false, false) => Verdict::Succeeded,
    };
    Ok(CorrelationSummary {
        correlation_id: correlation.to_owned(),
        verdict,
        first,
        last: [last_event, last_job, last_ended, failures.last].into_iter().max().flatten(),
        events: types,
        modules,
        unclaimed,
        unpublished,
        failures_not_read: failed.saturating_sub(failures.read),
        failures: failures.sorted(),
    })
}

/// Returns how long `open` jobs take at this rate.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "an estimate; a float that is too large becomes the largest number"
)]
fn time_left(open: u64, per_second: f64) -> Option<Millis> {
    (open > 0 && per_second > 0.0).then(|| (open as f64 / per_second * 1000.0) as Millis)
}

/// Returns when the first document that a query finds was created, in the query's direction.
async fn first_created(
    documents: &dyn Documents,
    query: Query,
) -> Result<Option<Millis>, StoreError> {
    let query = query.order_by("created").only(&["created"]).limit(1);
    let found = documents.find(query).await?;
    Ok(found.first().and_then(|document| document["created"].as_i64()))
}

/// Takes the times of the latest jobs that this query finds.
async fn times(documents: &dyn Documents, query: Query) -> Result<Option<JobTimes>, StoreError> {
    let query = query.order_by("created").descending().only(&["attempts"]).limit(SAMPLED_JOBS);
    let mut attempts = Vec::new();
    for document in documents.find(query).await? {
        let job: SampledJob = decode(Collection::Jobs, document)?;
        let last = job.attempts.last();
        attempts.extend(last.and_then(|last| Some((last.started, last.ended?))));
    }
    Ok(times_of(&attempts))
}

/// Returns the times of attempts, each given by its start and its end.
#[expect(clippy::cast_precision_loss, reason = "a rate has a few digits")]
fn times_of(attempts: &[(Millis, Millis)]) -> Option<JobTimes> {
    let mut took: Vec<Millis> =
        attempts.iter().map(|(started, ended)| (ended - started).max(0)).collect();
    took.sort_unstable();
    let percentile = |part: usize| took.get((took.len() * part).div_ceil(100).max(1) - 1).copied();
    let first = attempts.iter().map(|(_, ended)| *ended).min()?;
    let last = attempts.iter().map(|(_, ended)| *ended).max()?;
    // The first end begins the time in which the others ended.
    let others = attempts.len() - 1;
    let per_second = (others > 0).then(|| others as f64 * 1000.0 / (last - first).max(1) as f64);
    Some(JobTimes { p50: percentile(50)?, p95: percentile(95)?, per_second, of: took.len(), last })
}

/// Returns whether a waiting gathering job waits for something else than dead jobs, as a dispatcher
/// saw it last.
async fn gathering_goes_on(
    documents: &dyn Documents,
    correlation: &str,
) -> Result<bool, StoreError> {
    let equals = vec![("correlationId", json!(correlation)), ("state", json!(JobState::Waiting))];
    let mut pages = Pages::new(Query::equal(Collection::Jobs, equals), "created");
    while let Some(page) = pages.next(documents).await? {
        for document in page {
            let job: JobRecord = decode(Collection::Jobs, document)?;
            if job.waits_for.is_none_or(|waits_for| waits_for.open > 0 || waits_for.dead == 0) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// A gathering job that ran before a job below it was run again, and so lacks the new results.
#[derive(Clone, Debug)]
pub struct OutdatedGather {
    /// The gathering job.
    pub gatherer: JobRecord,
    /// The job that was run again.
    pub again: JobRecord,
}

/// Returns the gathering jobs of a correlation that have run without a job which was run again
/// since, each with one such job.
///
/// # Errors
/// When the documents cannot be read.
pub async fn outdated_gathers(
    ledger: &Ledger,
    correlation: &str,
    registered: &RegisteredModules,
) -> Result<Vec<OutdatedGather>, StoreError> {
    let documents = &*ledger.plane().documents;
    let mut found = Vec::new();
    // Jobs that wait have not run without anything yet.
    let states = JobState::ALL.into_iter().filter(|state| *state != JobState::Waiting);
    let modules = registered.modules.iter().filter(|module| module.gather.is_some());
    for (module, state) in modules.flat_map(|module| states.clone().map(move |one| (module, one))) {
        let equals = vec![
            ("correlationId", json!(correlation)),
            ("state", json!(state)),
            ("module", json!(module.name)),
        ];
        let mut pages = Pages::new(Query::equal(Collection::Jobs, equals), "created");
        while let Some(page) = pages.next(documents).await? {
            for document in page {
                let gatherer: JobRecord = decode(Collection::Jobs, document)?;
                for id in &gatherer.without.jobs {
                    let job: Option<JobRecord> =
                        documents.get_as(Collection::Jobs, id.as_str()).await?;
                    let is_again = |job: &JobRecord| {
                        !matches!(job.state, JobState::Cancelled | JobState::Dead)
                    };
                    if let Some(again) = job.filter(is_again) {
                        found.push(OutdatedGather { gatherer, again });
                        break;
                    }
                }
            }
        }
    }
    Ok(found)
}

/// The reasons of failed jobs, and how many jobs were read.
#[derive(Debug, Default)]
struct FailureReasons {
    found: BTreeMap<(String, &'static str, String), (u64, JobId)>,
    read: u64,
    /// When the last of these jobs ended.
    last: Option<Millis>,
}

impl FailureReasons {
    async fn read(documents: &dyn Documents, correlation: &str) -> Result<Self, StoreError> {
        let mut reasons = Self::default();
        for state in [JobState::Dead, JobState::Cancelled] {
            let filter = JobFilter {
                correlation: Some(correlation.to_owned()),
                state: Some(state),
                ..JobFilter::default()
            };
            let mut rows =
                filter.list().rows(documents, ListPart::Latest, REASONS_READ_MAX).await?;
            while let Some(page) = rows.next(documents).await? {
                for document in page {
                    reasons.add(decode(Collection::Jobs, document)?);
                }
            }
        }
        Ok(reasons)
    }

    fn add(&mut self, job: JobRecord) {
        self.read += 1;
        self.last = self.last.max(job.ended);
        let reason = job.attempts.last().and_then(|attempt| attempt.reason.clone());
        let reason = reason.unwrap_or_else(|| match job.attempts.is_empty() {
            true => "it had not begun".to_owned(),
            false => "no reason was recorded".to_owned(),
        });
        let mut key = (job.module, job.state.as_str(), reason);
        if self.found.len() >= REASONS_MAX && !self.found.contains_key(&key) {
            key.2 = "another reason".to_owned();
        }
        // The jobs come in the order of their creation, so the last one stays.
        let (jobs, example) = self.found.entry(key).or_insert_with(|| (0, job.id.clone()));
        (*jobs, *example) = (*jobs + 1, job.id);
    }

    fn sorted(self) -> Vec<FailureReason> {
        let reason = |((module, state, reason), (jobs, example))| FailureReason {
            module,
            state,
            reason,
            jobs,
            example,
        };
        let mut sorted: Vec<FailureReason> = self.found.into_iter().map(reason).collect();
        sorted.sort_by_key(|reason| std::cmp::Reverse(reason.jobs));
        sorted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_and_the_rate_are_those_of_the_attempts() {
        assert_eq!(times_of(&[]), None);
        let one = times_of(&[(10, 15)]).unwrap();
        assert_eq!(one, JobTimes { p50: 5, p95: 5, per_second: None, of: 1, last: 15 });
        // A hundred attempts, which took 1 to 100 ms, one ended each 10 ms.
        let many: Vec<(Millis, Millis)> = (1..=100).map(|n| (n * 10 - n, n * 10)).collect();
        let times = times_of(&many).unwrap();
        assert_eq!((times.p50, times.p95, times.of), (50, 95, 100));
        assert!((times.per_second.unwrap() - 100.0).abs() < 0.001, "{times:?}");
        assert_eq!(time_left(50, times.per_second.unwrap()), Some(500));
        assert_eq!((time_left(0, 1.0), time_left(1, 0.0)), (None, None));
    }
}
