//! How far a correlation has come: what `--wait`, `trace` and the gateway show.

use std::collections::BTreeMap;

use ionfs::event::{Event, Publication};
use ionfs::record::{InsightRecord, JobRecord, JobState};
use ionfs::stores::{Collection, Query, StoreError, encode};
use serde_json::{Value, json};

use crate::gather::{Readiness, readiness};
use crate::ledger::{JobFilter, Ledger};
use crate::pipeline::Module;

/// A correlation at one moment.
#[derive(Clone, Debug)]
pub struct Status {
    /// Its events, oldest first.
    pub events: Vec<Event>,
    /// Its jobs, oldest first.
    pub jobs: Vec<JobRecord>,
    /// Jobs that events still wait for: nobody has claimed them yet.
    pub unclaimed: usize,
    /// Gathering jobs that dead jobs hold back.
    pub held_back: usize,
    /// Nothing more will happen by itself.
    pub ended: bool,
}

impl Status {
    /// Whether something went wrong for good.
    pub fn failed(&self) -> bool {
        self.held_back > 0
            || self.jobs.iter().any(|job| matches!(job.state, JobState::Dead | JobState::Cancelled))
    }

    /// The same in a word.
    pub fn verdict(&self) -> Verdict {
        match (self.ended, self.failed()) {
            (false, _) => Verdict::Running,
            (true, false) => Verdict::Succeeded,
            (true, true) => Verdict::Failed,
        }
    }

    /// How many jobs of each module are in each state.
    pub fn by_module(&self) -> BTreeMap<&str, BTreeMap<&'static str, usize>> {
        let mut counts: BTreeMap<&str, BTreeMap<&'static str, usize>> = BTreeMap::new();
        for job in &self.jobs {
            *counts.entry(&job.module).or_default().entry(job.state.as_str()).or_default() += 1;
        }
        counts
    }
}

/// How a correlation stands, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Something may still happen.
    Running,
    /// All of it ended well.
    Succeeded,
    /// All that can has ended, and something went wrong for good.
    Failed,
}

impl Verdict {
    /// The word shown to people and programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }
}

/// All that is known of a correlation.
#[derive(Clone, Debug)]
pub struct Trace {
    /// Its events and jobs.
    pub status: Status,
    /// What its jobs keep for analysis, by job.
    pub insights: BTreeMap<String, InsightRecord>,
}

impl Trace {
    /// Reads it.
    ///
    /// # Errors
    /// When a store cannot be read.
    pub async fn read(ledger: &Ledger, correlation: &str) -> Result<Self, StoreError> {
        let modules = ledger.modules().await?;
        let status = status(ledger, correlation, &modules).await?;
        let equals =
            vec![("context.correlationId", json!(correlation)), ("context.documentType", json!("insight"))];
        let insights: Vec<InsightRecord> =
            ledger.plane().documents.find_as(Query::equal(Collection::Events, equals)).await?;
        let visible = insights.into_iter().filter(|insight| !insight.staged);
        let insights = visible.map(|insight| (insight.job_id.to_string(), insight)).collect();
        Ok(Self { status, insights })
    }

    /// Its documents: events, insights, jobs.
    pub fn documents(&self) -> Vec<Value> {
        let events = self.status.events.iter().map(encode);
        events.chain(self.insights.values().map(encode)).chain(self.status.jobs.iter().map(encode)).collect()
    }
}

/// Reads a correlation. Jobs before events, for the reason that [`readiness`] gives.
pub async fn status(ledger: &Ledger, correlation: &str, modules: &[Module]) -> Result<Status, StoreError> {
    let filter = JobFilter { correlation: Some(correlation.to_owned()), ..JobFilter::default() };
    let jobs = ledger.list(&filter, usize::MAX >> 1).await?;
    let events = ledger.events_of(correlation).await?;
    let claimed: std::collections::BTreeSet<(&str, &str)> =
        jobs.iter().map(|job| (job.event_id.as_str(), job.module.as_str())).collect();
    let unclaimed = events
        .iter()
        .flat_map(|event| modules.iter().map(move |module| (event, module)))
        .filter(|(event, module)| module.expects(event))
        .filter(|(event, module)| !claimed.contains(&(event.id.as_str(), module.name.as_str())))
        .count();
    let mut held_back = 0;
    let mut open = 0;
    for job in &jobs {
        let module = modules.iter().find(|module| module.name == job.module);
        match (job.state, module) {
            (JobState::Waiting, Some(module)) => match readiness(ledger, job, module, modules).await? {
                Readiness::Waiting { open: 0, .. } => held_back += 1,
                _ => open += 1,
            },
            (JobState::Succeeded, _) if job.outbox => open += 1,
            (state, _) if !state.is_final() => open += 1,
            _ => {}
        }
    }
    let unpublished = events.iter().any(|event| event.publication == Publication::Unpublished);
    let ended = unclaimed == 0 && open == 0 && !unpublished && !events.is_empty();
    Ok(Status { events, jobs, unclaimed, held_back, ended })
}
