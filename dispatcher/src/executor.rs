//! How a job runs: one small trait for every kind of machine.

pub mod local;
pub mod sandbox;

use async_trait::async_trait;
use ionfs::event::{Event, FileEntry};
use ionfs::id::CorrelationId;
use ionfs::record::{AttemptEnd, JobRecord};
use tokio::sync::{mpsc, oneshot, watch};

use crate::pipeline::Module;

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
    pub log: Option<FileEntry>,
    /// Events are staged and wait for the job's success to be written.
    pub staged: bool,
}

impl Ended {
    /// It failed before it could run.
    pub fn failed(reason: impl Into<String>) -> Self {
        Self {
            end: AttemptEnd::Failed,
            exit_code: None,
            reason: Some(reason.into()),
            log: None,
            staged: false,
        }
    }
}

/// A line of a job's output, for whoever watches.
#[derive(Clone, Debug)]
pub struct OutputLine {
    /// The module.
    pub module: String,
    /// The job's first eight characters.
    pub job: String,
    /// The text, without its newline.
    pub text: String,
}

/// Where output lines go. Full: lines are left out, as the log keeps them all.
pub type OutputSink = mpsc::Sender<OutputLine>;

/// The beginning of the keys of a correlation's logs: beside its files, so that these alone can be browsed.
pub fn logs_below(correlation: &CorrelationId) -> String {
    format!("logs/{correlation}")
}

/// Runs jobs.
#[async_trait]
pub trait Executor: Send + Sync {
    /// Runs the attempt to its end. The module's timeout is the executor's to enforce; `stop` ends it early.
    async fn run(&self, start: Start, stop: watch::Receiver<Option<Stop>>) -> Ended;
}
