//! How a job runs: one small trait for every kind of machine.

mod attempt;
pub mod choice;
pub mod container;
pub mod image;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod left;
pub mod local;
mod log;
pub mod sandbox;
mod sidecar;

use std::fmt;

use async_trait::async_trait;
use ion_jobs::pipeline::Module;
use ion_model::event::Event;
use ion_model::id::JobId;
use ion_model::record::{AttemptEnd, FailedReads, JobRecord, StoredLog};
use ion_system::spans;
use tokio::sync::{oneshot, watch};
use tracing::field::Empty;
use tracing::{Span, info_span};

pub use self::log::{LiveOutput, OutputWatcher};

/// Why a running job is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A person asked for it.
    Cancel,
    /// The dispatcher is shut down; another attempt goes on later.
    Shutdown,
    /// Another dispatcher has the job.
    LostLease,
}

/// What is to run.
#[derive(Debug)]
pub struct Start {
    /// The job, claimed.
    pub job: JobRecord,
    /// Its module.
    pub module: Module,
    /// Its event.
    pub event: Event,
    /// What a gathering job gathered.
    pub gathered: Option<Vec<Event>>,
    /// Told when the process runs.
    pub running: oneshot::Sender<()>,
}

impl Start {
    /// The attempt's span: whoever has it run runs it in there, and adds the verdict with
    /// [`Ended::tell`].
    pub fn span(&self) -> Span {
        info_span!(
            target: spans::TARGET, parent: None, "job",
            ion.module = self.module.name, ion.job.id = self.job.id.as_str(), ion.attempt = self.job.attempt,
            ion.event.id = self.event.id.as_str(), "ion.event.type" = self.event.event_type,
            ion.correlation.id = self.event.context.correlation_id.as_str(),
            ion.parent.job.id = self.event.job_id.as_ref().map(JobId::as_str),
            ion.parent.attempt = self.event.attempt,
            ion.verdict = Empty, error = Empty
        )
    }
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub end: AttemptEnd,
    /// The exit status, if it exited by itself.
    pub exit_code: Option<i32>,
    /// Why, in words; none for success.
    pub reason: Option<String>,
    /// Its output.
    pub log: Option<StoredLog>,
    /// Events are staged and wait for the job's success to be written.
    pub staged: bool,
    /// Its reads that Ion could not answer.
    pub failed_reads: FailedReads,
}

impl Ended {
    /// Adds the verdict to the attempt's span.
    pub fn tell(&self, span: &Span) {
        span.record("ion.verdict", self.end.as_str());
        if let Some(reason) = &self.reason {
            span.record(spans::ERROR, reason);
        }
    }

    /// It failed before it could run.
    pub fn failed(reason: impl Into<String>) -> Self {
        Self {
            end: AttemptEnd::Failed,
            exit_code: None,
            reason: Some(reason.into()),
            log: None,
            staged: false,
            failed_reads: FailedReads::default(),
        }
    }
}

/// What an executor has to say of an attempt when it is done with it.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one for each attempt, and most are of the large kind"
)]
pub enum Fate {
    /// It ended.
    Ended(Ended),
    /// It goes on without this dispatcher: whoever adopts it sees its end.
    Left,
}

/// Runs jobs.
#[async_trait]
pub trait Executor: Send + Sync + fmt::Debug {
    /// Runs the attempt to its end. The module's timeout is the executor's to enforce; `stop` ends
    /// it early. Asked again for the same attempt, by another dispatcher, it goes on with what runs
    /// already, if this kind of executor can.
    async fn run(&self, start: Start, stop: watch::Receiver<Option<Stop>>) -> Fate;

    /// The attempt's end is in the ledger: what was kept for a dispatcher to come may go.
    async fn settled(&self, _module: &Module, _job: &JobRecord) {}
}
