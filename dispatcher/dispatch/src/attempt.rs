//! Runs one attempt of a claimed job and writes its end. A dispatcher runs all its jobs by this,
//! and `ion run` its only one.
//!
//! # How it works
//! [`AttemptRunner::run`] gives the attempt to the executor and holds the job meanwhile: it writes
//! that the process runs, renews the lease, and stops the attempt when a person cancels the job or
//! the lease is lost. [`LeasePlan`] decides, and this file performs. Afterwards
//! [`AttemptRunner::write_end`] writes how the attempt ended.
//!
//! # After a crash
//! The lease expires, and another attempt follows. It finds the commits of this one.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ion_jobs::job::{AttemptOutcome, EndedAttempt, Transition};
use ion_jobs::ledger::{Ledger, LedgerError};
use ion_jobs::pipeline::Module;
use ion_jobs::version::ModuleVersions;
use ion_model::errors::error_chain;
use ion_model::event::Event;
use ion_model::record::{JobRecord, JobState};
use ion_model::version::ModuleVersion;
use ion_plane::gathered::GatheredEvents;
use ion_run::executor::{AttemptStart, Executor, RunResult, StopReason, record_verdict};
use ion_system::failpoint;
use ion_system::patience::{FailedTry, Retry};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span};

use super::lease::{LeaseAction, LeaseHappening, LeasePlan};
use super::{DispatchNotice, NoticeSender, STORE_WAIT};

/// How often the record of a running job is read, at least. A cancellation takes effect that much
/// later; each running job costs one read of the ledger in that time.
const LOOK: Duration = Duration::from_secs(1);

/// The tries to write a job's end. They outlast a store's restart. After that the lease expires,
/// and another attempt finds the commits of this one.
const WRITE_END: Retry = Retry::times(60).waiting(STORE_WAIT);

/// A claimed job with all that its attempt begins with.
#[derive(Debug)]
pub struct ClaimedJob {
    /// The job, which this process has claimed or adopted.
    pub job: JobRecord,
    /// Its module.
    pub module: Arc<Module>,
    /// Its event.
    pub event: Event,
    /// The gathered events, for a job of a module with `gather`.
    pub gathered: Option<GatheredEvents>,
}

/// A job whose lease this process maintains.
#[derive(Clone, Copy)]
struct HeldJob<'a> {
    job: &'a JobRecord,
    /// What the attempt runs; unset until it is known, which is before its process runs.
    version: &'a OnceLock<ModuleVersion>,
}

/// Runs attempts of claimed jobs, and writes their ends.
#[derive(Clone, Debug)]
pub struct AttemptRunner {
    ledger: Ledger,
    executor: Arc<dyn Executor>,
    versions: Arc<ModuleVersions>,
    /// How long a job stays with this process without a renewal.
    lease: Duration,
    notices: NoticeSender,
    /// Cancelled when this process ends: then an end that cannot be written is not tried again.
    stopping: CancellationToken,
}

impl AttemptRunner {
    /// Creates a runner of jobs that were claimed with this lease. Programs without a slash are
    /// looked up in `search_path`, to tell their versions apart.
    pub fn new(
        ledger: Ledger,
        executor: Arc<dyn Executor>,
        search_path: &str,
        lease: Duration,
    ) -> Self {
        let versions = Arc::new(ModuleVersions::new(ledger.plane().clone(), search_path));
        let (notices, stopping) = (NoticeSender::default(), CancellationToken::new());
        Self { ledger, executor, versions, lease, notices, stopping }
    }

    /// Makes the runner send a notice of each attempt that starts, and give up the write of an end
    /// once `stopping` is cancelled.
    pub(super) fn for_dispatcher(self, notices: NoticeSender, stopping: CancellationToken) -> Self {
        Self { notices, stopping, ..self }
    }

    /// Runs the attempt to its end. A value in `stop` ends it early; the runner itself puts one
    /// there when a person cancels the job or the lease is lost. Returns also the attempt's span.
    pub async fn run(
        &self,
        claimed: ClaimedJob,
        stop: &watch::Sender<Option<StopReason>>,
    ) -> (RunResult, Span) {
        let ClaimedJob { job, module, event, gathered } = claimed;
        let (running, runs) = oneshot::channel();
        let start =
            AttemptStart { job: job.clone(), module: (*module).clone(), event, gathered, running };
        let span = start.span();
        let version = OnceLock::new();
        let work = async {
            // The process of an adopted job runs already, and its record says what.
            if job.state != JobState::Running {
                let _ = version.set(self.versions.current(&module).await);
            }
            self.executor.run(start, stop.subscribe()).await
        };
        let held = HeldJob { job: &job, version: &version };
        let mut result = tokio::select! {
            result = work.instrument(span.clone()) => result,
            never = self.maintain_lease(held, runs, stop) => match never {},
        };
        if let RunResult::Ended(outcome) = &mut result {
            outcome.version = version.get().cloned();
        }
        if let RunResult::Ended(outcome) = &result {
            record_verdict(outcome, &span);
        }
        (result, span)
    }

    /// Keeps the record of a running job up to date. Never returns.
    async fn maintain_lease(
        &self,
        held: HeldJob<'_>,
        mut runs: oneshot::Receiver<()>,
        stop: &watch::Sender<Option<StopReason>>,
    ) -> Infallible {
        let now = Instant::now();
        let mut plan = match held.job.state {
            JobState::Running => LeasePlan::for_adopted_job(self.lease, now),
            _ => LeasePlan::for_claimed_job(self.lease, now),
        };
        let mut ticks = tokio::time::interval(LOOK.min(self.lease / 3));
        loop {
            let happening = tokio::select! {
                biased;
                started = &mut runs, if plan.awaits_process() => match started {
                    Ok(()) => LeaseHappening::ProcessRuns,
                    Err(_) => LeaseHappening::ProcessNeverRan,
                },
                _ = ticks.tick() => LeaseHappening::Tick,
            };
            let mut actions = VecDeque::from(plan.decide(happening, Instant::now()));
            while let Some(action) = actions.pop_front() {
                if let Some(happening) = self.perform(held, action, stop).await {
                    actions.extend(plan.decide(happening, Instant::now()));
                }
            }
        }
    }

    /// Performs one action. Returns the happening that follows from it, if one does.
    async fn perform(
        &self,
        held: HeldJob<'_>,
        action: LeaseAction,
        stop: &watch::Sender<Option<StopReason>>,
    ) -> Option<LeaseHappening> {
        let job = held.job;
        match action {
            LeaseAction::WriteRunning => self.write_running(held).await,
            LeaseAction::Read(patience) => {
                let read = tokio::time::timeout(patience, self.ledger.get(&job.id)).await;
                let Ok(record) = read else { return Some(report_silent_store(job)) };
                Some(self.to_lease_happening(job, record, |cancelled| LeaseHappening::Read {
                    cancelled,
                }))
            }
            LeaseAction::Renew(patience) => {
                let asked = Instant::now();
                let renewal = self.ledger.advance(job, &Transition::Renewed);
                let renewed = tokio::time::timeout(patience, renewal).await;
                let Ok(record) = renewed else { return Some(report_silent_store(job)) };
                Some(self.to_lease_happening(job, record, |cancelled| {
                    failpoint::hit("lease.renewed");
                    LeaseHappening::Renewed { asked, cancelled }
                }))
            }
            LeaseAction::Stop(reason) => {
                stop.send_replace(Some(reason));
                None
            }
        }
    }

    /// Writes that the attempt runs; commits of a pod count only after that.
    async fn write_running(&self, held: HeldJob<'_>) -> Option<LeaseHappening> {
        let HeldJob { job, version } = held;
        let runs = Transition::Running { version: version.get().cloned() };
        match self.ledger.advance(job, &runs).await {
            Ok(record) => self.notices.send(DispatchNotice::Started(record)),
            Err(LedgerError::Store(error)) => {
                let error = error_chain(&error);
                tracing::warn!(job = %job.id, error, "cannot write yet that the job runs");
                return None;
            }
            // The job has ended or is another holder's. The next look at the record finds that out.
            Err(_) => {}
        }
        Some(LeaseHappening::RunningWritten)
    }

    /// Returns what the record says about the lease. `held` makes the happening if this process
    /// still holds the job.
    fn to_lease_happening(
        &self,
        job: &JobRecord,
        record: Result<JobRecord, LedgerError>,
        held: impl FnOnce(bool) -> LeaseHappening,
    ) -> LeaseHappening {
        match record {
            Ok(record) if record.attempt == job.attempt && record.holder == job.holder => {
                held(record.cancel)
            }
            Err(LedgerError::Store(error)) => {
                let error = error_chain(&error);
                tracing::warn!(job = %job.id, error, "the lease could not be renewed");
                LeaseHappening::StoreFailed
            }
            Ok(_) | Err(_) => LeaseHappening::Taken,
        }
    }

    /// Writes how an attempt ended, and tries again while the store is unavailable.
    ///
    /// # Errors
    /// When the store stays unavailable, or another holder has the job.
    pub async fn write_end(
        &self,
        job: &JobRecord,
        module: &Module,
        outcome: AttemptOutcome,
    ) -> Result<JobRecord, LedgerError> {
        let (retries, jitter) = (module.retries, jitter(job));
        let ended = Transition::Ended(Box::new(EndedAttempt { outcome, retries, jitter }));
        let is_unavailable = |failed: FailedTry<'_, LedgerError>| {
            let LedgerError::Store(error) = failed.error else { return false };
            let error = error_chain(error);
            tracing::warn!(job = %job.id, error, "a job's end could not be written yet");
            true
        };
        let write = |_| self.ledger.advance(job, &ended);
        WRITE_END.run_until(self.stopping.cancelled(), write, is_unavailable).await
    }
}

fn report_silent_store(job: &JobRecord) -> LeaseHappening {
    tracing::warn!(job = %job.id, "the lease could not be renewed: the store does not answer");
    LeaseHappening::StoreSilent
}

/// Spreads retries by the job's id. It is not random, so a test sees the same wait each time.
fn jitter(job: &JobRecord) -> f64 {
    let sum: u32 = job.id.as_str().bytes().map(u32::from).sum();
    f64::from(sum % 256) / 256.0
}
