//! Processes started ahead: each waits on its stdin, is used for one run, and is replaced.
//!
//! What a run would wait for otherwise, namespaces, fork, exec and a program's own start, is over before it begins. A
//! program that does not wait (it ends before anybody used it) is started ahead less and less often, and when it is needed.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ionfs::errors::chain;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Link;
use crate::executor::sandbox::{self, Command, ForkServer, Mode, Piped, SandboxError};
use crate::metrics::ChainMetrics;
use crate::pipeline::Module;

/// Processes of each link that wait, unless its chain says otherwise.
pub const WARM: usize = 2;

/// How often those that wait are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// How long a link that nobody uses keeps its processes.
const IDLE: Duration = Duration::from_secs(300);

/// The wait after a process ended by itself before it was used; it doubles up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(200);

/// The longest of these waits.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// What makes two processes the same: the link, where it runs, and what its environment has beside the usual.
type Kind = (String, PathBuf, BTreeMap<String, String>);

/// All pools of a dispatcher.
#[derive(Debug)]
pub(super) struct Pools {
    server: Arc<ForkServer>,
    mode: Mode,
    env: Vec<(String, String)>,
    processes: u64,
    pools: Mutex<HashMap<Kind, Arc<Pool>>>,
    keepers: TaskTracker,
    stopping: CancellationToken,
    metrics: Arc<ChainMetrics>,
}

/// The processes of one link.
#[derive(Debug)]
struct Pool {
    name: String,
    command: Command,
    want: usize,
    held: Mutex<Held>,
    /// Ended by themselves before they were used, one after the other.
    failures: AtomicU32,
    wake: Notify,
}

#[derive(Debug)]
struct Held {
    ready: VecDeque<Piped>,
    used: Instant,
}

impl Pools {
    pub(super) fn new(
        server: Arc<ForkServer>,
        mode: Mode,
        env: Vec<(String, String)>,
        processes: u64,
        metrics: Arc<ChainMetrics>,
    ) -> Self {
        Self {
            server,
            mode,
            env,
            processes,
            pools: Mutex::default(),
            keepers: TaskTracker::new(),
            stopping: CancellationToken::new(),
            metrics,
        }
    }

    /// Begins to start the link's processes ahead.
    pub(super) fn keep(&self, module: &Module, link: &Link) {
        self.pool(module, link);
    }

    /// The link's pool, which begins to fill if it is new.
    fn pool(&self, module: &Module, link: &Link) -> Arc<Pool> {
        let kind = (link.id(), module.directory.clone(), module.env.clone());
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(&kind) {
            return pool.clone();
        }
        let env = self.env.iter().cloned().chain(module.env.clone());
        let command = Command {
            argv: module.argv_of(link),
            env: env.chain([("ION_MODULE".to_owned(), module.name.clone())]).collect(),
            cwd: module.directory.clone(),
            mount_at: None,
            mode: self.mode,
            processes: self.processes,
            open_files: ionfs::sys::open_files_before(),
        };
        let held = Mutex::new(Held { ready: VecDeque::new(), used: Instant::now() });
        // As often as one run needs it.
        let times = module.links.iter().filter(|other| other.id() == kind.0).count();
        let (name, want) = (link.name.clone(), module.link_settings.warm * times);
        let pool =
            Arc::new(Pool { name, command, want, held, failures: AtomicU32::new(0), wake: Notify::new() });
        let (server, stopping) = (self.server.clone(), self.stopping.clone());
        let kept = pool.clone();
        self.keepers.spawn(async move {
            stopping.run_until_cancelled(kept.keep_full(&server)).await;
            kept.held().ready.clear();
        });
        pools.insert(kind, pool.clone());
        pool
    }

    /// A process for one run.
    pub(super) async fn take(&self, module: &Module, link: &Link) -> Result<Piped, SandboxError> {
        let pool = self.pool(module, link);
        let taken = pool.take();
        self.metrics.process(taken.is_some());
        match taken {
            Some(piped) => Ok(piped),
            None => sandbox::spawn_piped(&self.server, pool.command.clone()).await,
        }
    }

    /// A run has ended: what it took is replaced. Not before, where one is left for the next run: starting processes would
    /// take the processors from those that run.
    pub(super) fn refill(&self, module: &Module) {
        for link in &module.links {
            self.pool(module, link).wake.notify_one();
        }
    }

    /// Ends them all.
    pub(super) async fn close(&self) {
        self.stopping.cancel();
        self.keepers.close();
        self.keepers.wait().await;
    }
}

impl Pool {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Piped> {
        let mut held = self.held();
        held.used = Instant::now();
        while let Some(piped) = held.ready.pop_front() {
            if !piped.sandbox.has_ended() {
                self.failures.store(0, Ordering::Relaxed);
                if held.ready.is_empty() {
                    self.wake.notify_one();
                }
                return Some(piped);
            }
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        self.wake.notify_one();
        None
    }

    /// Keeps as many waiting as are wanted, for ever.
    async fn keep_full(&self, server: &ForkServer) {
        loop {
            let missing = self.look();
            let mut failed = missing.is_none();
            for _ in 0..missing.unwrap_or(0) {
                match sandbox::spawn_piped(server, self.command.clone()).await {
                    Ok(piped) => self.held().ready.push_back(piped),
                    Err(error) => {
                        failed = true;
                        if self.failures.fetch_add(1, Ordering::Relaxed) == 0 {
                            tracing::warn!(
                                link = self.name,
                                error = chain(&error),
                                "a link cannot be started"
                            );
                        }
                        break;
                    }
                }
            }
            if failed {
                let doubled = 1 << self.failures.load(Ordering::Relaxed).min(16);
                tokio::time::sleep((BACKOFF * doubled).min(BACKOFF_MAX)).await;
            } else {
                let _ = tokio::time::timeout(LOOK, self.wake.notified()).await;
            }
        }
    }

    /// Lets go of those that have ended, and of all when nobody has used one for long. How many are missing; none if one
    /// ended by itself.
    fn look(&self) -> Option<usize> {
        let mut held = self.held();
        if held.used.elapsed() > IDLE {
            held.ready.clear();
            return Some(0);
        }
        let before = held.ready.len();
        held.ready.retain(|piped| !piped.sandbox.has_ended());
        if held.ready.len() < before {
            if self.failures.fetch_add(1, Ordering::Relaxed) == 0 {
                tracing::info!(
                    link = self.name,
                    "it does not wait for input; it is started when it is needed"
                );
            }
            return None;
        }
        Some(self.want.saturating_sub(held.ready.len()))
    }
}
