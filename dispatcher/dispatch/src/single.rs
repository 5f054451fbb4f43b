//! Runs one module once, on an event that starts no other module: `ion run`.
//!
//! # How it works
//! The event is recorded for nobody, its job is claimed by this process, and the attempt runs as
//! each attempt of a dispatcher does. There is no queue and no retry.
//!
//! # After a crash
//! The job's lease expires. A dispatcher that serves a module of this name then runs the job.

use std::sync::Arc;
use std::time::Duration;

use ion_jobs::job::AttemptOutcome;
use ion_jobs::ledger::{ClaimOutcome, Ledger, LedgerError};
use ion_jobs::pipeline::Module;
use ion_model::clock::millis;
use ion_model::event::Event;
use ion_model::id::JobId;
use ion_model::record::JobRecord;
use ion_plane::commit::{Refusal, insert_for_nobody};
use ion_plane::gathered::GatheredEvents;
use ion_plane::relay;
use ion_run::executor::{Executor, RunResult, StopReason};
use ion_stores::{DataPlane, StoreError};
use tokio::sync::watch;
use tracing::Instrument as _;

use super::attempt::{AttemptRunner, ClaimedJob, ClaimedJobs, RanAttempt};

/// The holder of the job, as its record names it.
const HOLDER: &str = "ion run";

/// How much longer than the module's timeout the job stays with this process without a renewal. It
/// covers the time that ending the module takes.
const LEASE_BEYOND_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a module could not be run once, or its end not be written.
#[derive(Debug, thiserror::Error)]
pub enum SingleRunError {
    /// The event was refused.
    #[error(transparent)]
    Event(#[from] Refusal),
    /// The ledger refused the claim or the end.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The job ended, and what it committed could not be published.
    #[error("the events of job {job} are committed and not published yet; a dispatcher will")]
    Publish {
        /// The job.
        job: JobId,
        /// Why.
        source: StoreError,
    },
    /// The event has a job of this module already.
    #[error("a job of the new event exists already: {0}")]
    Known(JobId),
    /// The executor does not wait for the module's end.
    #[error("job {0} goes on without this command; `ion job get` shows its end")]
    Left(JobId),
}

/// How the only attempt ended.
#[derive(Debug)]
pub struct SingleRunEnd {
    /// The job's record after the attempt.
    pub job: JobRecord,
    /// The attempt's outcome, with the whole reason if it failed.
    pub outcome: AttemptOutcome,
}

/// Runs `module` once on `event`. A value in `stop` ends it early. Programs without a slash are
/// found in `search_path`.
///
/// # Errors
/// When the event or its job cannot be recorded. A module that fails is no error.
pub async fn run_once(
    plane: DataPlane,
    executor: Arc<dyn Executor>,
    module: Module,
    event: Event,
    search_path: &str,
    stop: &watch::Sender<Option<StopReason>>,
) -> Result<SingleRunEnd, SingleRunError> {
    let event = event.for_nobody();
    insert_for_nobody(&plane, event.clone()).await?;
    let ledger = Ledger::new(plane.clone());
    let lease = module.timeout + LEASE_BEYOND_TIMEOUT;
    // A gathering module does not wait here: nothing else is below its event.
    let gathered = module.gather.is_some().then(|| GatheredEvents::Few(vec![]));
    let at_once = Module { gather: None, per: None, retries: 0, ..module.clone() };
    let job = match ledger.claim(&at_once, &event, Some((HOLDER, millis(lease)))).await? {
        ClaimOutcome::Won(job) => job,
        ClaimOutcome::Known(job) => return Err(SingleRunError::Known(job.id)),
    };
    let runner = AttemptRunner::new(ledger, executor, search_path, lease);
    let jobs = vec![ClaimedJob { job: job.clone(), event, gathered }];
    let claimed = ClaimedJobs { module: Arc::new(module), jobs };
    let ran = runner.run(claimed, std::slice::from_ref(stop)).await.pop();
    let Some(RanAttempt { job: held, result: RunResult::Ended(outcome), span }) = ran else {
        return Err(SingleRunError::Left(job.id));
    };
    let written = runner.write_ends(&at_once, vec![(held, outcome.clone())]).await?.pop();
    let job = written.unwrap_or(Err(LedgerError::Lost(job.id)))?;
    if job.outbox {
        let published = relay::empty_outbox(&plane, &job.id).instrument(span).await;
        published.map_err(|source| SingleRunError::Publish { job: job.id.clone(), source })?;
    }
    Ok(SingleRunEnd { job, outcome })
}
