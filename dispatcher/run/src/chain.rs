//! Chains: programs through which bytes pass from stdin to stdout, one program after the other.
//!
//! A chain is a module like any other: it has a name, subscribes to an event type and publishes
//! another. Instead of one program with a tree of files it runs *links*. Each link reads what the
//! link before it writes, and all run at the same time, as in a shell. The bytes are never all in
//! memory, however many there are.
//!
//! | room | what it holds |
//! | --- | --- |
//! | `pool` | processes started ahead, waiting on stdin |
//! | `flow` | bytes from link to link, within limits; how each link ended |
//! | `spool` | the same bytes on their way to the blob store |
//! | `record` | the trace: an event for what each link wrote, a job for each link |
//!
//! # What is promised
//! A run is on the disk before its caller receives its end: the first event, a job for each link
//! and an event for the whole output of each link, each the parent of the next. The work of all
//! links before the last is recorded while the last one still runs; the rest is recorded when the
//! last one has ended. If Ion's process is killed in the middle of a run, only those first records
//! remain, which are published to no module, and blobs that `ion gc` removes. The caller sees the
//! connection break and sends its request again.

mod flow;
mod outcome;
mod pool;
mod record;
mod spool;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use ion_jobs::metrics::ChainMetrics;
use ion_jobs::pipeline::{Link, Module};
use ion_jobs::version::ModuleVersions;
use ion_model::event::Event;
use ion_model::id::{EventId, JobId};
use ion_model::usage::AttemptUsage;
use ion_plane::node::Node;
use ion_stores::Guard;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::flow::Flow;
use self::outcome::{LinkEnd, total_usage};
use self::pool::{PoolLease, Pools};
use self::record::Recording;
pub use self::record::STDIN;
use crate::container::Containers;
use crate::sandbox::{Covers, ForkServer, SandboxMode};
use crate::secrets::SecretFolders;

/// The most concurrent runs whose caller waits for the answer, for each processor. More would
/// compete for the processors.
const PLACES_EACH: usize = 4;

/// The most runs that wait for a place. The callers of more receive [`ChainQueueFull`].
const WAITING_MAX: usize = 1024;

/// How long a run waits for a place.
const WAIT: Duration = Duration::from_secs(30);

/// The most pieces of the last link's output that wait for their reader.
const PIECES: usize = 4;

/// Returns the events that a run on this first event makes, and the jobs that make them, in the
/// order of the links.
pub fn derive_steps(module: &Module, first: &EventId) -> Vec<(EventId, JobId)> {
    record::derive_steps(module, first).map(|step| (step.event, step.job)).collect()
}

/// The bytes for the first link, as they come.
pub type Input = BoxStream<'static, io::Result<Bytes>>;

/// A request for one run.
pub struct ChainRequest {
    /// The chain.
    pub module: Arc<Module>,
    /// Its first event. An event that is not stored yet has no file: what the first link reads
    /// becomes its only file.
    pub event: Event,
    /// Whether the event is stored, and by which attempt.
    pub stored: InputState,
    /// The bytes that the first link reads.
    pub input: Input,
}

/// Whether a run's first event is stored already.
#[derive(Clone, Debug)]
pub enum InputState {
    /// The first event is not stored: a client waits for the run's answer, and the event is stored
    /// together with all that the run makes.
    Not,
    /// The first event is stored: the run is an attempt of the chain's job, and that attempt holds
    /// the lease.
    By {
        /// The attempt.
        attempt: u32,
        /// The guard that must hold for every write that records the run.
        guard: Guard,
    },
}

impl InputState {
    fn attempt(&self) -> u32 {
        match self {
            Self::Not => 1,
            Self::By { attempt, .. } => *attempt,
        }
    }
}

/// The end of a run, once it is recorded.
#[derive(Clone, Debug)]
pub enum ChainEnd {
    /// Every link ended well: with exit status 0, or after the next link had closed its stdin.
    Well {
        /// The event of what the last link wrote.
        event: EventId,
    },
    /// A link failed. The trace has what the other links wrote until then.
    Failed(LinkFailure),
    /// The run was asked to stop, or the reader of its answer was gone.
    Cancelled,
    /// The run waited too long for a place. Nothing was started.
    NoPlace,
    /// Ion itself failed; nothing of the run counts.
    Broken {
        /// The reason, in words.
        reason: String,
    },
}

impl ChainEnd {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Well { .. } => "succeeded",
            Self::Failed(failure) if failure.timed_out => "timed-out",
            Self::Failed(_) => "failed",
            Self::Cancelled => "cancelled",
            Self::NoPlace | Self::Broken { .. } => "broken",
        }
    }
}

/// The result of a run.
pub struct ChainResult {
    /// How it ended.
    pub end: ChainEnd,
    /// What is left of the run's processes.
    pub left: ChainRemains,
}

/// The remains of a run. Dropping them ends the processes that are left, and lets the pools replace
/// those that were used.
pub struct ChainRemains {
    links: Vec<LinkEnd>,
    _used: PoolLease,
}

impl ChainRemains {
    /// Returns what each link wrote to stderr, with the link's name.
    pub fn link_stderrs(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.links.iter().map(|end| (end.link.name.as_str(), &end.stderr))
    }

    /// Returns what the links used together.
    pub fn usage(&self) -> AttemptUsage {
        total_usage(&self.links)
    }
}

/// The failure of a run: which link failed, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkFailure {
    /// The link's name.
    pub link: String,
    /// The link's id.
    pub link_id: String,
    /// The link's job.
    pub job: JobId,
    /// The reason, in words.
    pub reason: String,
    /// Its exit status, if it exited by itself.
    pub exit_code: Option<i32>,
    /// Whether it exceeded its timeout.
    pub timed_out: bool,
    /// The last part of what it wrote to stderr.
    pub stderr: String,
}

/// A run in progress. Dropping it cancels the run.
#[derive(Debug)]
pub struct ChainRun {
    /// What the last link writes, as it comes.
    pub output: mpsc::Receiver<Bytes>,
    /// Receives the run's end.
    pub ended: oneshot::Receiver<ChainEnd>,
    _cancel: DropGuard,
}

/// The error of [`Chains::start`] when too many runs wait for a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all places of chain runs are taken, and {WAITING_MAX} requests wait for one")]
pub struct ChainQueueFull;

/// What is needed to start the processes of links.
#[derive(Clone, Debug)]
pub struct LinkRuntime {
    /// The server that forks them.
    pub server: Arc<ForkServer>,
    /// The mode that separates them from this machine.
    pub mode: SandboxMode,
    /// Makes the containers of links that have an image.
    pub containers: Arc<Containers>,
    /// The paths of this machine that links must not see.
    pub covers: Arc<Covers>,
    /// Where the values of links' secrets are.
    pub secrets: SecretFolders,
}

/// The runner of chains on this machine.
#[derive(Debug)]
pub struct Chains {
    node: Arc<Node>,
    pools: Pools,
    versions: ModuleVersions,
    /// One permit for each run of [`Self::start`] that may go on.
    places: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    runs: TaskTracker,
    stopping: CancellationToken,
    metrics: Arc<ChainMetrics>,
}

impl Chains {
    /// Returns a runner whose processes start with `places`. The environment of each process of
    /// this machine begins with `env`.
    pub fn new(node: Arc<Node>, places: LinkRuntime, env: Vec<(String, String)>) -> Arc<Self> {
        let path = env.iter().find(|(key, _)| key == "PATH").map_or("", |(_, path)| path);
        let versions = ModuleVersions::new(node.plane.clone(), path);
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let (processes, metrics) = (node.settings.limits.processes, Arc::<ChainMetrics>::default());
        Arc::new(Self {
            pools: Pools::new(places, env, processes, metrics.clone()),
            versions,
            node,
            places: Arc::new(Semaphore::new(PLACES_EACH * processors)),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
            runs: TaskTracker::new(),
            stopping: CancellationToken::new(),
            metrics,
        })
    }

    /// Begins to start a chain's processes ahead of its runs.
    pub fn start_ahead(&self, module: &Module) {
        for link in &module.links {
            self.pools.start_ahead(module, link);
        }
    }

    /// Returns the metrics of chains, which are updated while chains run.
    pub fn metrics(&self) -> Arc<ChainMetrics> {
        self.metrics.clone()
    }

    /// Begins a run, once there is a place for it, for a caller that waits for the answer.
    ///
    /// # Errors
    /// If too many runs wait for a place.
    pub fn start(self: &Arc<Self>, run: ChainRequest) -> Result<ChainRun, ChainQueueFull> {
        let turn = self.waiting.clone().try_acquire_owned().map_err(|_| ChainQueueFull)?;
        let (live, output) = mpsc::channel(PIECES);
        let (told, ended) = oneshot::channel();
        let stop = self.stopping.child_token();
        let cancel = stop.clone().drop_guard();
        let this = self.clone();
        self.runs.spawn(async move {
            let place = tokio::select! {
                biased;
                () = stop.cancelled() => return drop(told.send(ChainEnd::Cancelled)),
                place = tokio::time::timeout(WAIT, this.places.acquire()) => place,
            };
            drop(turn);
            let (end, _left) = match place {
                Ok(_place) => {
                    let ran = this.run(run, Some(live), stop).await;
                    (ran.end, Some(ran.left))
                }
                Err(_) => (ChainEnd::NoPlace, None),
            };
            // The caller may be gone.
            let _ = told.send(end);
            // The answer goes first: removing what is left, and starting replacements, takes
            // processor time too.
            tokio::task::yield_now().await;
        });
        Ok(ChainRun { output, ended, _cancel: cancel })
    }

    /// Runs a chain to its end and records it. The last link's output goes to `live` as it comes.
    pub async fn run(
        &self,
        run: ChainRequest,
        live: Option<mpsc::Sender<Bytes>>,
        stop: CancellationToken,
    ) -> ChainResult {
        let ChainRequest { module, event, stored, input } = run;
        let used = self.pools.begin_run(&module);
        // Whoever runs an attempt of the chain's job records its version.
        let version = match stored {
            InputState::Not => Some(self.versions.current(&module).await),
            InputState::By { .. } => None,
        };
        let recording = Recording::new(&self.node, module.clone(), event, stored, version);
        let flow = Flow { used: &used, module: &module, recording: &recording };
        let mut outcome = flow.run(input, live, stop).await;
        let end = recording.record_rest(&mut outcome).await;
        self.metrics.count_run(&module.name, end.as_str());
        ChainResult { end, left: ChainRemains { links: outcome.links, _used: used } }
    }

    /// Cancels all runs and ends all processes that were started ahead.
    pub async fn close(&self) {
        self.stopping.cancel();
        self.runs.close();
        self.runs.wait().await;
        self.pools.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_say_the_same_are_the_same() {
        let link = |name: &str, arguments: &[&str]| Link {
            name: name.into(),
            image: String::new(),
            command: "grep".into(),
            arguments: arguments.iter().map(|&one| one.to_owned()).collect(),
        };
        assert_eq!(link("a", &["-v", "x"]).id(), link("b", &["-v", "x"]).id());
        assert_ne!(link("a", &["-v", "x"]).id(), link("a", &["-vx"]).id());
        // The digest that `printf '\0grep\0-v\0x' | md5sum` prints.
        assert_eq!(link("a", &["-v", "x"]).id(), "58ee7196942af0f5d3084f94e7c2c94c");
    }
}
