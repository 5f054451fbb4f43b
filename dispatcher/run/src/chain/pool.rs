//! Pools of processes started ahead: each process waits on its stdin, serves one run, and is
//! replaced.
//!
//! A run then need not wait for namespaces, fork, exec and the program's own start. A program that
//! does not wait for input (it ends before a run uses it) is started ahead less and less often; a
//! run that finds none starts its own.
//!
//! A pool grows with its use: it keeps at least as many processes waiting as the most concurrent
//! runs of late. A chain that asks for no processes ahead gets none.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use ion_jobs::metrics::ChainMetrics;
use ion_jobs::pipeline::{Container, ImageReferenceError, Module};
use ion_model::errors::error_chain;
use ion_model::secret::{SECRETS_FOLDER, SECRETS_VARIABLE};
use ion_system::run_blocking;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Link, LinkRuntime};
use crate::container::{ContainerError, ContainerRequest};
use crate::sandbox::{
    self, PipedStreams, Rights, SandboxCommand, SandboxError, SandboxMode, SandboxSecrets,
};
use crate::secrets::{SecretError, Secrets};

/// How often the waiting processes are checked.
const LOOK: Duration = Duration::from_secs(2);

/// The backoff after a process ended by itself before it was used; it doubles up to
/// [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(200);

/// The longest backoff.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// The key of a pool, which two links share only if their processes are the same: the link's id,
/// the folder it runs in, its own environment variables, its secrets, and its container.
type PoolKey = (String, PathBuf, BTreeMap<String, String>, Vec<String>, Option<Container>);

/// All the pools of a dispatcher.
#[derive(Debug)]
pub(super) struct Pools {
    places: LinkRuntime,
    env: Vec<(String, String)>,
    processes: u64,
    pools: Mutex<HashMap<PoolKey, Arc<Pool>>>,
    keepers: TaskTracker,
    stopping: CancellationToken,
    metrics: Arc<ChainMetrics>,
}

/// The reason why a link's process cannot be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkStartError {
    /// The link names no valid image.
    #[error(transparent)]
    Image(#[from] ImageReferenceError),
    /// The link's container cannot be made.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The link's sandbox cannot be made.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The link's secrets cannot be had.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The link's secrets cannot be passed to its sandbox.
    #[error("the secrets cannot be made ready")]
    SecretMemory(#[source] io::Error),
}

/// A link's process that waits for a run, or serves one.
#[derive(Debug)]
pub(super) struct LinkProcess {
    pub(super) piped: PipedStreams,
    /// The secrets that it was started with.
    pub(super) secrets: Secrets,
}

/// The pool of one link's processes.
#[derive(Debug)]
struct Pool {
    name: String,
    command: SandboxCommand,
    places: LinkRuntime,
    /// The container that it runs in, with its settings; none: this machine.
    container: Result<Option<Container>, ImageReferenceError>,
    env: Vec<(String, String)>,
    /// The names of its secrets.
    secrets: Vec<String>,
    want: usize,
    idle: Duration,
    held: Mutex<PoolState>,
    /// How many processes in a row ended by themselves before they were used.
    failures: AtomicU32,
    wake: Notify,
}

#[derive(Debug)]
struct PoolState {
    ready: VecDeque<LinkProcess>,
    used: Instant,
    /// The runs in progress that use this pool.
    runs: usize,
    /// The most concurrent runs of late.
    most: usize,
    looked: Instant,
    /// Since when no process has been ready; none if one is.
    empty: Option<Instant>,
}

impl Pools {
    pub(super) fn new(
        places: LinkRuntime,
        env: Vec<(String, String)>,
        processes: u64,
        metrics: Arc<ChainMetrics>,
    ) -> Self {
        Self {
            places,
            env,
            processes,
            pools: Mutex::default(),
            keepers: TaskTracker::new(),
            stopping: CancellationToken::new(),
            metrics,
        }
    }

    /// Creates the link's pool, which begins to start processes ahead.
    pub(super) fn start_ahead(&self, module: &Module, link: &Link) {
        self.find_or_create(module, link);
    }

    /// Returns the link's pool. A new one begins to fill.
    fn find_or_create(&self, module: &Module, link: &Link) -> Arc<Pool> {
        let container = module.link_container(link);
        let kind = (
            link.id(),
            module.directory.clone(),
            module.env.clone(),
            module.secrets.clone(),
            container.as_ref().ok().cloned().flatten(),
        );
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(&kind) {
            return pool.clone();
        }
        let secrets_at = [(SECRETS_VARIABLE.to_owned(), SECRETS_FOLDER.to_owned())];
        let env: Vec<_> = module
            .env
            .clone()
            .into_iter()
            .chain([("ION_MODULE".to_owned(), module.name.clone())])
            .chain(secrets_at.into_iter().filter(|_| !module.secrets.is_empty()))
            .collect();
        let argv = module.link_argv(link);
        let covers =
            self.places.covers.for_program(&module.directory, argv.first().map(String::as_str));
        let command = SandboxCommand {
            argv,
            env: self.env.iter().chain(&env).cloned().collect(),
            cwd: module.directory.clone(),
            mount_at: None,
            mode: self.places.mode,
            rights: Rights::Few,
            covers,
            processes: self.processes,
            open_files: ion_system::sys::original_descriptor_limit(),
            secrets: SandboxSecrets::default(),
            container: None,
        };
        let now = Instant::now();
        let held = Mutex::new(PoolState {
            ready: VecDeque::new(),
            used: now,
            runs: 0,
            most: 0,
            looked: now,
            empty: None,
        });
        // How many processes of this link one run needs.
        let times = module.links.iter().filter(|other| other.id() == kind.0).count();
        let (name, want, idle) =
            (link.name.clone(), module.link_settings.warm * times, module.link_settings.idle);
        let (failures, wake) = (AtomicU32::new(0), Notify::new());
        let places = self.places.clone();
        let pool = Arc::new(Pool {
            name,
            command,
            places,
            container,
            env,
            secrets: module.secrets.clone(),
            want,
            idle,
            held,
            failures,
            wake,
        });
        let (stopping, metrics) = (self.stopping.clone(), self.metrics.clone());
        let kept = pool.clone();
        self.keepers.spawn(async move {
            stopping.run_until_cancelled(kept.keep_full(&metrics)).await;
            kept.lock_state().ready.clear();
        });
        pools.insert(kind, pool.clone());
        pool
    }

    /// Marks a run of the chain as in progress until the returned value is dropped. Only then are
    /// the processes that it took replaced, or earlier if none is left for the next run: starting
    /// processes would take processor time from those that run.
    pub(super) fn begin_run(&self, module: &Module) -> PoolLease {
        let pools: Vec<_> =
            module.links.iter().map(|link| self.find_or_create(module, link)).collect();
        for pool in &pools {
            let mut held = pool.lock_state();
            held.runs += 1;
            held.most = held.most.max(held.runs);
        }
        PoolLease { pools, metrics: self.metrics.clone() }
    }

    /// Ends all waiting processes and the tasks that start them.
    pub(super) async fn close(&self) {
        self.stopping.cancel();
        self.keepers.close();
        self.keepers.wait().await;
    }
}

/// The pools that a run takes its processes from, by link.
pub(super) struct PoolLease {
    pools: Vec<Arc<Pool>>,
    metrics: Arc<ChainMetrics>,
}

impl PoolLease {
    /// Takes or starts a process for each link.
    pub(super) async fn take_processes(&self) -> Vec<Result<LinkProcess, LinkStartError>> {
        join_all(self.pools.iter().map(async |pool| {
            let secrets = pool.read_secrets().await?;
            let taken = pool.take_ready(&secrets);
            self.metrics.count_process(taken.is_some());
            match taken {
                Some(process) => Ok(process),
                None => pool.start_process(secrets).await,
            }
        }))
        .await
    }
}

impl Drop for PoolLease {
    fn drop(&mut self) {
        for pool in &self.pools {
            let mut held = pool.lock_state();
            held.runs -= 1;
            // A long run counts as a use until its end.
            held.used = Instant::now();
            drop(held);
            pool.wake.notify_one();
        }
    }
}

impl Pool {
    fn lock_state(&self) -> MutexGuard<'_, PoolState> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the link's secrets as they are now.
    async fn read_secrets(&self) -> Result<Secrets, LinkStartError> {
        if self.secrets.is_empty() {
            return Ok(Secrets::default());
        }
        if self.places.mode == SandboxMode::Plain {
            return Err(SecretError::NoNamespaces.into());
        }
        let (folders, names) = (self.places.secrets.clone(), self.secrets.clone());
        Ok(run_blocking(move || folders.read_named(&names)).await?)
    }

    /// Starts another process with these secrets.
    async fn start_process(&self, secrets: Secrets) -> Result<LinkProcess, LinkStartError> {
        let mut command = self.command.clone();
        command.secrets = secrets.for_sandbox().map_err(LinkStartError::SecretMemory)?;
        if let Some(container) = self.container.as_ref().map_err(Clone::clone)? {
            // Without a command, the image's own command runs.
            let argv = if command.argv[0].is_empty() { vec![] } else { command.argv.clone() };
            let ask = ContainerRequest {
                container,
                argv,
                env: self.env.clone(),
                tree: None,
                has_secrets: !secrets.is_empty(),
                processes: command.processes,
                say: &|words| tracing::info!(link = %self.name, "{words}"),
            };
            command.container = Some(Box::new(self.places.containers.make(ask).await?));
        }
        let piped = sandbox::spawn_piped(&self.places.server, command).await?;
        Ok(LinkProcess { piped, secrets })
    }

    /// Takes a process that waits. One that was started with other secrets than these is dropped: a
    /// value was replaced meanwhile.
    fn take_ready(&self, secrets: &Secrets) -> Option<LinkProcess> {
        let mut held = self.lock_state();
        held.used = Instant::now();
        while let Some(process) = held.ready.pop_front() {
            if process.secrets != *secrets {
                continue;
            }
            if !process.piped.sandbox.has_ended() {
                self.failures.store(0, Ordering::Relaxed);
                if held.ready.is_empty() {
                    held.empty = Some(Instant::now());
                    self.wake.notify_one();
                }
                return Some(process);
            }
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        self.wake.notify_one();
        None
    }

    /// Keeps as many processes waiting as are wanted, for ever.
    async fn keep_full(&self, metrics: &ChainMetrics) {
        loop {
            let missing = self.count_missing();
            let mut failed = missing.is_none();
            for _ in 0..missing.unwrap_or(0) {
                match self.start_ahead().await {
                    Ok(process) => {
                        let mut held = self.lock_state();
                        held.ready.push_back(process);
                        if let Some(since) = held.empty.take() {
                            metrics.pool_empty.observe_since(since);
                        }
                    }
                    Err(error) => {
                        failed = true;
                        if self.failures.fetch_add(1, Ordering::Relaxed) == 0 {
                            tracing::warn!(
                                link = self.name,
                                error = error_chain(&error),
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

    async fn start_ahead(&self) -> Result<LinkProcess, LinkStartError> {
        self.start_process(self.read_secrets().await?).await
    }

    /// Drops the processes that have ended, and all of them when no run has used the pool for long.
    /// Returns how many are missing; none if a process ended by itself.
    fn count_missing(&self) -> Option<usize> {
        let mut held = self.lock_state();
        if held.used.elapsed() > self.idle {
            held.ready.clear();
            held.empty = None;
            return Some(0);
        }
        if held.looked.elapsed() > LOOK {
            held.looked = Instant::now();
            held.most = held.runs.max(held.most.saturating_sub(1));
        }
        let before = held.ready.len();
        held.ready.retain(|process| !process.piped.sandbox.has_ended());
        if held.ready.len() < before {
            if self.failures.fetch_add(1, Ordering::Relaxed) == 0 {
                tracing::info!(
                    link = self.name,
                    "the link's program does not wait for input, so it is started when a run needs \
                     it"
                );
            }
            return None;
        }
        // A chain that asks for no processes ahead gets none, however many runs it has.
        let want = if self.want == 0 { 0 } else { self.want.max(held.most) };
        held.ready.truncate(want);
        Some(want - held.ready.len())
    }
}
