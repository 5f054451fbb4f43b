//! Chains: programs through which bytes go from stdin to stdout, one after the other.
//!
//! A chain is a module like any other: it has a name, starts on an event type and publishes
//! another. What it runs is not one program with a tree of files but *links*, each reading what the
//! one before writes, all at the same time as in a shell. Nothing of the bytes stays in memory,
//! however many there are.
//!
//! | room | what it holds |
//! | --- | --- |
//! | `pool` | processes started ahead, waiting on stdin |
//! | `flow` | bytes from link to link, within limits; how each link ended |
//! | `spool` | the same bytes on their way to the blob store |
//! | `record` | the trace: an event for what each link wrote, a job for each link |
//!
//! # What is promised
//! A run is on the disk before its caller is told of its end: the first event, a job for each link
//! and an event for all that a link wrote, each the parent of the next. What the links before the
//! last did is recorded while that one is still at work, the rest when it has ended. A process that
//! is killed in the middle of a run leaves no more than that, told to nobody, and blobs that `ion
//! gc` removes; its caller sees the connection break and asks again.

mod flow;
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
use ion_model::event::Event;
use ion_model::id::{EventId, JobId};
use ion_plane::node::Node;
use ion_stores::Guard;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::flow::{Flow, LinkEnd};
use self::pool::{Pools, Used};
use self::record::Recording;
pub use self::record::STDIN;
use crate::executor::container::Containers;
use crate::executor::sandbox::{Covers, ForkServer, Mode};

/// Runs whose answer somebody waits for, at a time, for each processor. More take the processors
/// from each other.
const PLACES_EACH: usize = 4;

/// Runs that wait for a place. More are told to come again.
const WAITING_MAX: usize = 1024;

/// How long a run waits for a place.
const WAIT: Duration = Duration::from_secs(30);

/// Pieces of the last link's output that wait for whoever reads it.
const PIECES: usize = 4;

/// The events that a run on this first event makes, and the jobs that make them, in the order of
/// the links.
pub fn steps(module: &Module, first: &EventId) -> Vec<(EventId, JobId)> {
    record::steps(module, first).map(|step| (step.event, step.job)).collect()
}

/// Bytes for the first link, as they come.
pub type Input = BoxStream<'static, io::Result<Bytes>>;

/// One run to be.
pub struct Run {
    /// The chain.
    pub module: Arc<Module>,
    /// Its first event. Where it is not stored yet, it has no file: what the first link reads
    /// becomes its only one.
    pub event: Event,
    /// Whether it is.
    pub stored: Stored,
    /// The bytes.
    pub input: Input,
}

/// Who asked for a run.
#[derive(Clone, Debug)]
pub enum Stored {
    /// Somebody who waits for its answer: the event is stored with all that came of it.
    Not,
    /// The ledger: the event is stored, and this attempt of the chain's job holds the lease.
    By {
        /// The attempt.
        attempt: u32,
        /// What must hold whenever something is recorded.
        guard: Guard,
    },
}

impl Stored {
    fn attempt(&self) -> u32 {
        match self {
            Self::Not => 1,
            Self::By { attempt, .. } => *attempt,
        }
    }
}

/// How a run ended, once it is recorded.
#[derive(Clone, Debug)]
pub enum End {
    /// Every link ended well.
    Well {
        /// The event of what the last one wrote.
        event: EventId,
    },
    /// A link did not. What the others wrote until then is in the trace.
    Failed(Failure),
    /// It was asked to stop, or nobody was left to read its answer.
    Cancelled,
    /// It has waited for a place for too long. Nothing was begun.
    NoPlace,
    /// Ion could not do its part; nothing of the run counts.
    Broken {
        /// Why, in words.
        reason: String,
    },
}

impl End {
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

/// What a run has come to.
pub struct Ran {
    /// How it ended.
    pub end: End,
    /// What is left of it.
    pub left: Left,
}

/// The remains of a run. Dropped, they are taken away, and what was used is replaced.
pub struct Left {
    links: Vec<LinkEnd>,
    _used: Used,
}

impl Left {
    /// What each link wrote to stderr, by its name.
    pub fn words(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.links.iter().map(|end| (end.link.name.as_str(), &end.stderr))
    }
}

/// Which link failed, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What people call it.
    pub link: String,
    /// Its id.
    pub link_id: String,
    /// Its job.
    pub job: JobId,
    /// Why, in words.
    pub reason: String,
    /// Its exit status, if it exited by itself.
    pub exit_code: Option<i32>,
    /// It ran out of time.
    pub timed_out: bool,
    /// The end of what it wrote to stderr.
    pub stderr: String,
}

/// A run under way. Dropped, it is cancelled.
#[derive(Debug)]
pub struct Running {
    /// What the last link writes, as it comes.
    pub output: mpsc::Receiver<Bytes>,
    /// How it ended.
    pub ended: oneshot::Receiver<End>,
    _cancel: DropGuard,
}

/// There is no place for another run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all places of chain runs are taken, and {WAITING_MAX} requests wait for one")]
pub struct Full;

/// Where processes of links are started.
#[derive(Clone, Debug)]
pub struct Places {
    /// What forks them.
    pub server: Arc<ForkServer>,
    /// What separates them.
    pub mode: Mode,
    /// What those of images run in.
    pub containers: Arc<Containers>,
    /// What of this machine they do not see.
    pub covers: Arc<Covers>,
}

/// Runs chains on this machine.
#[derive(Debug)]
pub struct Chains {
    node: Arc<Node>,
    pools: Pools,
    /// Runs at a time.
    places: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    runs: TaskTracker,
    stopping: CancellationToken,
    metrics: Arc<ChainMetrics>,
}

impl Chains {
    /// Their processes start in these places, and each of this machine's begins with `env`.
    pub fn new(node: Arc<Node>, places: Places, env: Vec<(String, String)>) -> Arc<Self> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let (processes, metrics) = (node.settings.limits.processes, Arc::<ChainMetrics>::default());
        Arc::new(Self {
            pools: Pools::new(places, env, processes, metrics.clone()),
            node,
            places: Arc::new(Semaphore::new(PLACES_EACH * processors)),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
            runs: TaskTracker::new(),
            stopping: CancellationToken::new(),
            metrics,
        })
    }

    /// Starts a chain's processes ahead.
    pub fn warm(&self, module: &Module) {
        for link in &module.links {
            self.pools.keep(module, link);
        }
    }

    /// What it counts, also while it runs.
    pub fn metrics(&self) -> Arc<ChainMetrics> {
        self.metrics.clone()
    }

    /// Begins a run whose answer somebody waits for, once there is a place for it.
    ///
    /// # Errors
    /// When too many wait.
    pub fn start(self: &Arc<Self>, run: Run) -> Result<Running, Full> {
        let turn = self.waiting.clone().try_acquire_owned().map_err(|_| Full)?;
        let (live, output) = mpsc::channel(PIECES);
        let (told, ended) = oneshot::channel();
        let stop = self.stopping.child_token();
        let cancel = stop.clone().drop_guard();
        let this = self.clone();
        self.runs.spawn(async move {
            let place = tokio::select! {
                biased;
                () = stop.cancelled() => return drop(told.send(End::Cancelled)),
                place = tokio::time::timeout(WAIT, this.places.acquire()) => place,
            };
            drop(turn);
            let (end, _left) = match place {
                Ok(_place) => {
                    let ran = this.run(run, Some(live), stop).await;
                    (ran.end, Some(ran.left))
                }
                Err(_) => (End::NoPlace, None),
            };
            // Whoever asked may have gone.
            let _ = told.send(end);
            // The answer first: taking away what is left, and starting other processes, takes the
            // processors too.
            tokio::task::yield_now().await;
        });
        Ok(Running { output, ended, _cancel: cancel })
    }

    /// Runs a chain to its end and records it. The last link's output goes to `live` as it comes.
    pub async fn run(
        &self,
        run: Run,
        live: Option<mpsc::Sender<Bytes>>,
        stop: CancellationToken,
    ) -> Ran {
        let Run { module, event, stored, input } = run;
        let used = self.pools.begin(&module);
        let recording = Recording::new(&self.node, module.clone(), event, stored);
        let flow = Flow { used: &used, module: &module, recording: &recording };
        let mut outcome = flow.run(input, live, stop).await;
        let end = recording.keep(&mut outcome).await;
        self.metrics.ran(&module.name, end.as_str());
        Ran { end, left: Left { links: outcome.links, _used: used } }
    }

    /// Ends what runs and all that was started ahead.
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
        // As `printf '\0grep\0-v\0x' | md5sum` says.
        assert_eq!(link("a", &["-v", "x"]).id(), "58ee7196942af0f5d3084f94e7c2c94c");
    }
}
