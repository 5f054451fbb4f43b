//! Runs one attempt of a claimed job, or of each job of a batch, and writes its end. A dispatcher runs all its jobs by this,
//! and `ion run` its only one.
//!
//! # How it works
//! [`AttemptRunner::run`] gives the attempt to the executor and holds the job meanwhile: it writes
//! that the process runs, renews the lease, and stops the attempt when a person cancels the job or
//! the lease is lost. [`LeasePlan`] decides, and this file performs. Afterwards
//! [`AttemptRunner::write_ends`] writes how the attempt ended. The jobs of a batch go through this
//! together: each step is one call of the store for all of them.
//!
//! # After a crash
//! The lease expires, and another attempt follows. It finds the commits of this one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ion_jobs::job::{AttemptOutcome, EndedAttempt, Transition};
use ion_jobs::ledger::{Ledger, LedgerError};
use ion_jobs::pipeline::Module;
use ion_jobs::version::ModuleVersions;
use ion_model::errors::error_chain;
use ion_model::event::Event;
use ion_model::id::JobId;
use ion_model::record::{BatchPlace, JobRecord, JobState};
use ion_model::version::ModuleVersion;
use ion_plane::gathered::GatheredEvents;
use ion_run::executor::{
    AttemptStart, BatchAttempt, BatchStart, Executor, RunResult, StopReason, attempt_span,
    record_verdict,
};
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

/// How long a batch must have run before the records of its jobs say that they run. Most batches end
/// sooner, and need no such write; their end says when their process began.
const SHORT_BATCH: Duration = Duration::from_millis(100);

/// The tries to write a job's end. They outlast a store's restart. After that the lease expires,
/// and another attempt finds the commits of this one.
const WRITE_END: Retry = Retry::times(60).waiting(STORE_WAIT);

/// A claimed job with all that its attempt begins with.
#[derive(Debug)]
pub struct ClaimedJob {
    /// The job, which this process has claimed or adopted.
    pub job: JobRecord,
    /// Its event.
    pub event: Event,
    /// The gathered events, for a job of a module with `gather`.
    pub gathered: Option<GatheredEvents>,
}

/// The claimed jobs that one process is to run: a batch, if the module takes batches, else one job.
#[derive(Debug)]
pub struct ClaimedJobs {
    /// Their module.
    pub module: Arc<Module>,
    /// The jobs, in the order of their numbers in the batch; at least one.
    pub jobs: Vec<ClaimedJob>,
}

/// An attempt that has ended, or was left running.
#[derive(Debug)]
pub struct RanAttempt {
    /// The job's record as this process has last seen it.
    pub job: JobRecord,
    /// How the attempt ended.
    pub result: RunResult,
    /// The attempt's span.
    pub span: Span,
}

/// The value that ends an attempt early.
pub type StopSender = watch::Sender<Option<StopReason>>;

/// The jobs whose leases this process maintains.
struct HeldJobs<'a> {
    /// Their records as they were last read or written; none for a job that this process does not
    /// hold any more. Writing a record that is up to date needs no read.
    records: Mutex<Vec<Option<JobRecord>>>,
    stops: &'a [StopSender],
    /// What the attempts run; unset until it is known, which is before their process runs.
    version: OnceLock<ModuleVersion>,
    /// Their places in their batch; none for a job of a module that takes no batches.
    places: Vec<Option<BatchPlace>>,
}

impl HeldJobs<'_> {
    fn lock_records(&self) -> MutexGuard<'_, Vec<Option<JobRecord>>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the jobs that this process holds, with their numbers.
    fn held(&self) -> Vec<(usize, JobRecord)> {
        let records = self.lock_records();
        let held = records.iter().enumerate();
        held.filter_map(|(number, job)| Some((number, job.clone()?))).collect()
    }

    /// Notes what the record of a job says now, and stops its attempt if this process does not hold
    /// the job any more, or a person has cancelled it.
    fn heed_record(&self, number: usize, record: Option<JobRecord>) {
        let mut records = self.lock_records();
        let Some(known) = &mut records[number] else { return };
        let is_held =
            |record: &JobRecord| record.attempt == known.attempt && record.holder == known.holder;
        let reason = match record.filter(is_held) {
            Some(record) => {
                let cancelled = record.cancel;
                *known = record;
                cancelled.then_some(StopReason::Cancel)
            }
            None => {
                records[number] = None;
                Some(StopReason::LostLease)
            }
        };
        if let Some(reason) = reason {
            self.stops[number].send_replace(Some(reason));
        }
    }
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

    /// Runs the attempts to their ends. A value in one of `stops` ends the attempt of the same place
    /// early; the runner itself puts one there when a person cancels the job or its lease is lost.
    /// Returns the ends in the order of the jobs.
    pub async fn run(&self, claimed: ClaimedJobs, stops: &[StopSender]) -> Vec<RanAttempt> {
        let ClaimedJobs { module, jobs } = claimed;
        let spans: Vec<Span> =
            jobs.iter().map(|claimed| attempt_span(&claimed.job, &claimed.event)).collect();
        let claimed_as: Vec<JobRecord> = jobs.iter().map(|claimed| claimed.job.clone()).collect();
        let held = HeldJobs {
            records: Mutex::new(claimed_as.iter().cloned().map(Some).collect()),
            stops,
            version: OnceLock::new(),
            places: places_of(&module, &claimed_as),
        };
        let (running, runs) = oneshot::channel();
        let ended = CancellationToken::new();
        let work = async {
            // The process of an adopted job runs already, and its record says what.
            if claimed_as.iter().all(|job| job.state != JobState::Running) {
                let _ = held.version.set(self.versions.current(&module).await);
            }
            let results = self.execute(&module, jobs, running, stops).await;
            ended.cancel();
            results
        };
        let work = work.instrument(spans.first().cloned().unwrap_or_else(Span::none));
        // A write of the records that has begun is waited for, so that the ends are written over
        // records that are known.
        let (results, ()) = tokio::join!(work, self.maintain_leases(&held, runs, &ended));
        let records = std::mem::take(&mut *held.lock_records());
        let ran = results.into_iter().zip(spans).zip(claimed_as).zip(records).zip(held.places);
        ran.map(|((((mut result, span), claimed), latest), place)| {
            if let RunResult::Ended(outcome) = &mut result {
                outcome.version = held.version.get().cloned();
                outcome.batch = place;
                record_verdict(outcome, &span);
            }
            RanAttempt { job: latest.unwrap_or(claimed), result, span }
        })
        .collect()
    }

    /// Gives the attempts to the executor.
    async fn execute(
        &self,
        module: &Module,
        jobs: Vec<ClaimedJob>,
        running: oneshot::Sender<()>,
        stops: &[StopSender],
    ) -> Vec<RunResult> {
        let stops = stops.iter().map(watch::Sender::subscribe);
        let module = module.clone();
        if module.batch.is_some() {
            let attempt = |(ClaimedJob { job, event, .. }, stop)| BatchAttempt { job, event, stop };
            let attempts = jobs.into_iter().zip(stops).map(attempt).collect();
            let batch = BatchStart { module, attempts, running };
            return self
                .executor
                .run_batch(batch)
                .await
                .into_iter()
                .map(RunResult::Ended)
                .collect();
        }
        match jobs.into_iter().zip(stops).next() {
            Some((ClaimedJob { job, event, gathered }, stop)) => {
                let start = AttemptStart { job, module, event, gathered, running };
                vec![self.executor.run(start, stop).await]
            }
            None => vec![],
        }
    }

    /// Keeps the records of running jobs up to date until the attempts have ended.
    async fn maintain_leases(
        &self,
        held: &HeldJobs<'_>,
        runs: oneshot::Receiver<()>,
        ended: &CancellationToken,
    ) {
        let now = Instant::now();
        let is_adopted = held.held().iter().any(|(_, job)| job.state == JobState::Running);
        let mut plan = match is_adopted {
            true => LeasePlan::for_adopted_job(self.lease, now),
            false => LeasePlan::for_claimed_job(self.lease, now),
        };
        let runs = async {
            let started = runs.await;
            if held.places.iter().any(Option::is_some) {
                tokio::time::sleep(SHORT_BATCH).await;
            }
            started
        };
        let mut runs = std::pin::pin!(runs);
        let mut ticks = tokio::time::interval(LOOK.min(self.lease / 3));
        // The records were written just now.
        ticks.reset();
        loop {
            let happening = tokio::select! {
                biased;
                () = ended.cancelled() => return,
                started = &mut runs, if plan.awaits_process() => match started {
                    Ok(()) => LeaseHappening::ProcessRuns,
                    Err(_) => LeaseHappening::ProcessNeverRan,
                },
                _ = ticks.tick() => LeaseHappening::Tick,
            };
            let mut actions = VecDeque::from(plan.decide(happening, Instant::now()));
            while let Some(action) = actions.pop_front() {
                if let Some(happening) = self.perform(held, action).await {
                    actions.extend(plan.decide(happening, Instant::now()));
                }
            }
        }
    }

    /// Performs one action. Returns the happening that follows from it, if one does.
    async fn perform(&self, held: &HeldJobs<'_>, action: LeaseAction) -> Option<LeaseHappening> {
        match action {
            LeaseAction::WriteRunning => self.write_running(held).await,
            LeaseAction::Read(patience) => {
                let jobs = held.held();
                let ids: Vec<JobId> = jobs.iter().map(|(_, job)| job.id.clone()).collect();
                let read = tokio::time::timeout(patience, self.ledger.get_all(&ids)).await;
                let Ok(read) = read else { return Some(report_silent_store(&jobs)) };
                let mut records = match read {
                    Ok(records) => records,
                    Err(error) => return Some(report_failed_store(&jobs, &error)),
                };
                for (number, job) in jobs {
                    held.heed_record(number, records.remove(&job.id));
                }
                Some(LeaseHappening::Read)
            }
            LeaseAction::Renew(patience) => {
                let (jobs, asked) = (held.held(), Instant::now());
                let renewed: Vec<_> =
                    jobs.iter().map(|(_, job)| (job.clone(), Transition::Renewed)).collect();
                let renewal = self.ledger.advance_all(&renewed);
                let renewed = tokio::time::timeout(patience, renewal).await;
                let Ok(renewed) = renewed else { return Some(report_silent_store(&jobs)) };
                let records = match renewed {
                    Ok(records) => records,
                    Err(error) => return Some(report_failed_store(&jobs, &error)),
                };
                failpoint::hit("lease.renewed");
                for ((number, _), record) in jobs.into_iter().zip(records) {
                    held.heed_record(number, record.ok());
                }
                Some(LeaseHappening::Renewed { asked })
            }
            LeaseAction::Stop(reason) => {
                for stop in held.stops {
                    stop.send_replace(Some(reason));
                }
                None
            }
        }
    }

    /// Writes that the attempts run; commits of a pod count only after that.
    async fn write_running(&self, held: &HeldJobs<'_>) -> Option<LeaseHappening> {
        let jobs = held.held();
        let version = held.version.get();
        let running = |(number, job): &(usize, JobRecord)| {
            let batch = held.places[*number].clone();
            (job.clone(), Transition::Running { version: version.cloned(), batch })
        };
        let running: Vec<_> = jobs.iter().map(running).collect();
        let records = match self.ledger.advance_all(&running).await {
            Ok(records) => records,
            Err(error) => {
                let error = error_chain(&error);
                let job = jobs.first().map(|(_, job)| job.id.as_str());
                tracing::warn!(job, error, "cannot write yet that the job runs");
                return None;
            }
        };
        for ((number, _), record) in jobs.into_iter().zip(records) {
            // A job that has ended or is another holder's is found by the next look.
            if let Ok(record) = record {
                self.notices.send(DispatchNotice::Started(record.clone()));
                held.heed_record(number, Some(record));
            }
        }
        Some(LeaseHappening::RunningWritten)
    }

    /// Writes how attempts ended, and tries again while the store is unavailable. Returns the
    /// records, or why an end was not written, in the same order.
    ///
    /// # Errors
    /// When the store stays unavailable.
    pub async fn write_ends(
        &self,
        module: &Module,
        ended: Vec<(JobRecord, AttemptOutcome)>,
    ) -> Result<Vec<Result<JobRecord, LedgerError>>, LedgerError> {
        let transition = |(job, outcome): (JobRecord, AttemptOutcome)| {
            let (retries, jitter) = (module.retries, jitter(&job));
            (job, Transition::Ended(Box::new(EndedAttempt { outcome, retries, jitter })))
        };
        let ended: Vec<_> = ended.into_iter().map(transition).collect();
        let is_unavailable = |failed: FailedTry<'_, LedgerError>| {
            let LedgerError::Store(error) = failed.error else { return false };
            let (error, job) = (error_chain(error), ended.first().map(|(job, _)| job.id.as_str()));
            tracing::warn!(job, error, "a job's end could not be written yet");
            true
        };
        let write = |_| self.ledger.advance_all(&ended);
        WRITE_END.run_until(self.stopping.cancelled(), write, is_unavailable).await
    }
}

/// Returns the places of these jobs of a module in their batch, if the module takes batches.
fn places_of(module: &Module, jobs: &[JobRecord]) -> Vec<Option<BatchPlace>> {
    let count = |jobs: usize| u32::try_from(jobs).unwrap_or(u32::MAX);
    let place = |number: usize| {
        let first = jobs.first().filter(|_| module.batch.is_some())?;
        Some(BatchPlace {
            first: first.id.clone(),
            first_attempt: first.attempt,
            number: count(number),
            of: count(jobs.len()),
        })
    };
    (0..jobs.len()).map(place).collect()
}

fn report_silent_store(jobs: &[(usize, JobRecord)]) -> LeaseHappening {
    let job = jobs.first().map(|(_, job)| job.id.as_str());
    tracing::warn!(job, "the lease could not be renewed: the store does not answer");
    LeaseHappening::StoreSilent
}

fn report_failed_store(
    jobs: &[(usize, JobRecord)],
    error: &dyn std::error::Error,
) -> LeaseHappening {
    let job = jobs.first().map(|(_, job)| job.id.as_str());
    tracing::warn!(job, error = error_chain(error), "the lease could not be renewed");
    LeaseHappening::StoreFailed
}

/// Spreads retries by the job's id. It is not random, so a test sees the same wait each time.
fn jitter(job: &JobRecord) -> f64 {
    let sum: u32 = job.id.as_str().bytes().map(u32::from).sum();
    f64::from(sum % 256) / 256.0
}
