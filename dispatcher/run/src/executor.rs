//! How a job runs: one small trait for every kind of machine, and its implementations.

mod attempt;
pub mod choice;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod left;
pub mod local;
mod log;
mod sidecar;

use std::fmt;

use async_trait::async_trait;
use ion_jobs::job::AttemptOutcome;
use ion_jobs::pipeline::Module;
use ion_model::event::Event;
use ion_model::id::JobId;
use ion_model::record::JobRecord;
use ion_model::text::quote;
use ion_plane::commit::Rejection;
use ion_plane::gathered::GatheredEvents;
use ion_system::spans;
use tokio::sync::{oneshot, watch};
use tracing::field::Empty;
use tracing::{Span, info_span};

pub use self::log::{LiveOutput, OutputWatcher};

/// The reason why a running job is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// A person cancelled the job.
    Cancel,
    /// The dispatcher shuts down; another attempt follows later.
    Shutdown,
    /// This dispatcher lost the job's lease; another dispatcher has the job.
    LostLease,
}

/// One attempt to run.
#[derive(Debug)]
pub struct AttemptStart {
    /// The job, which this dispatcher has claimed.
    pub job: JobRecord,
    /// Its module.
    pub module: Module,
    /// Its event.
    pub event: Event,
    /// The gathered events, for a job of a module with `gather`.
    pub gathered: Option<GatheredEvents>,
    /// The executor sends on this channel once the process runs.
    pub running: oneshot::Sender<()>,
}

/// Returns the span of an attempt of this job, which its event has started.
pub fn attempt_span(job: &JobRecord, event: &Event) -> Span {
    info_span!(
        target: spans::TARGET, parent: None, "job",
        ion.module = job.module, ion.job.id = job.id.as_str(),
        ion.attempt = job.attempt,
        ion.event.id = event.id.as_str(), "ion.event.type" = event.event_type,
        ion.correlation.id = event.context.correlation_id.as_str(),
        ion.parent.job.id = event.job_id.as_ref().map(JobId::as_str),
        ion.parent.attempt = event.attempt,
        ion.verdict = Empty, error = Empty
    )
}

/// The attempts that one process of a module runs together.
#[derive(Debug)]
pub struct BatchStart {
    /// The module of all jobs.
    pub module: Module,
    /// The attempts, in the order of their numbers in the batch; at least one.
    pub attempts: Vec<BatchAttempt>,
    /// The executor sends on this channel once the process runs.
    pub running: oneshot::Sender<()>,
}

/// One attempt in a batch.
#[derive(Debug)]
pub struct BatchAttempt {
    /// The job, which this dispatcher has claimed.
    pub job: JobRecord,
    /// Its event.
    pub event: Event,
    /// A value ends the attempt early. The process goes on for the others.
    pub stop: watch::Receiver<Option<StopReason>>,
}

/// Records the verdict of an attempt in its span.
pub fn record_verdict(outcome: &AttemptOutcome, span: &Span) {
    span.record("ion.verdict", outcome.end.as_str());
    if let Some(reason) = &outcome.reason {
        span.record(spans::ERROR, reason);
    }
}

/// What an executor returns for an attempt when its work on it is over.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one for each attempt, and most are of the large variant"
)]
pub enum RunResult {
    /// The attempt ended.
    Ended(AttemptOutcome),
    /// The attempt goes on without this dispatcher; the dispatcher that adopts it sees its end.
    Left,
}

/// An executor of jobs.
#[async_trait]
pub trait Executor: Send + Sync + fmt::Debug {
    /// Runs the attempt to its end. The executor enforces the module's timeout; `stop` ends the
    /// attempt early. When another dispatcher calls this again for the same attempt, the executor
    /// adopts what already runs, if this kind of executor can.
    async fn run(
        &self,
        start: AttemptStart,
        stop: watch::Receiver<Option<StopReason>>,
    ) -> RunResult;

    /// Runs the attempts of a batch to their ends by one process. Returns their outcomes in the same
    /// order. A process that does not end well fails only a batch of one: of a larger one, each
    /// attempt ends as [`AttemptEnd::BatchFailed`](ion_model::record::AttemptEnd::BatchFailed)
    /// unless something else is known of it.
    async fn run_batch(&self, batch: BatchStart) -> Vec<AttemptOutcome> {
        let words = "its executor runs no batches; leave \"batch\" out of the module";
        batch.attempts.iter().map(|_| AttemptOutcome::failed(words)).collect()
    }

    /// Called once the attempt's end is in the ledger: the executor may remove what it kept for a
    /// dispatcher that would adopt the attempt.
    async fn clean_up(&self, _module: &Module, _job: &JobRecord) {}
}

/// Returns the reason of an attempt whose first refused event file is `first`, of `count` refused
/// ones.
fn rejection_words(first: &Rejection, count: usize) -> String {
    let more = if count > 1 { format!(" (and {} more)", count - 1) } else { String::new() };
    format!(
        "event file {} was rejected: {}: {}{more}",
        quote(&first.name),
        first.errno,
        first.reason
    )
}
