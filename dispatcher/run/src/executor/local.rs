//! The executor for jobs on this machine: each has a filesystem and a process tree in namespaces of
//! its own.

mod batch;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use ion_fs::failed_read_of_blob;
use ion_fs::job::{JobSpec, JobTree, OpenError, TreeUsers};
use ion_fs::mount::{MountRoot, ServedMount, Visitors, mount_at, serve};
use ion_jobs::job::AttemptOutcome;
use ion_jobs::pipeline::{Module, ModuleApi};
use ion_model::checksum::BLOCK_BYTES;
use ion_model::errors::{error_chain, is_no_room};
use ion_model::event::{Context, Event, FileEntry};
use ion_model::id::JobId;
use ion_model::record::{AttemptEnd, FailedReads, JobRecord};
use ion_model::secret::SECRETS_FOLDER;
use ion_model::usage::AttemptUsage;
use ion_plane::cache::{BlobReader, CacheError, FetchCount};
use ion_plane::commit::Fence;
use ion_plane::node::{Node, job_dir, live_log_path};
use ion_stores::StoreError;
use ion_system::patience::Retry;
use ion_system::{run_blocking, spans};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span, info_span};

use super::attempt::{
    ProcessEnd, attempt_variables, decide_outcome, environment, mask_outcome, older_conventions,
    origin, stopped_outcome, wait_for_stop,
};
use super::left::OutputCollector;
use super::log::{JobLog, OutputNotifier, keep_output, no_log_outcome};
use super::sidecar::{CompletionReport, Sidecar};
use super::{AttemptStart, Executor, OutputWatcher, RunResult, StopReason};
use crate::chain::{ChainEnd, ChainRequest, Chains, Input, InputState, LinkRuntime};
use crate::container::{ContainerRequest, Containers};
use crate::sandbox::{
    self, Covers, ForkServer, ProcessExit, ProcessUsage, Rights, Sandbox, SandboxCommand,
    SandboxContainer, SandboxError, SandboxMode, SandboxSecrets,
};
use crate::secrets::{SecretError, SecretFolders, Secrets};

/// The wait between SIGTERM and SIGKILL. A shorter wait cuts off modules that tidy up; a longer
/// wait delays every timeout and shutdown.
const GRACE: Duration = Duration::from_secs(5);

/// The tries to open a job's tree while a store is unavailable. The stores' own deadlines come on
/// top.
const OPEN: Retry = Retry::times(20).waiting(Duration::from_secs(1));

/// How long a killed job, and its mount, may take to be gone.
const GONE_WAIT: Duration = Duration::from_secs(10);

/// The folder of a job's secrets in its own folder, where it has no mount namespace.
const PLAIN_SECRETS: &str = "secrets";

/// The secrets of a process that is about to start.
#[derive(Default)]
struct PlacedSecrets {
    /// Where the module finds them.
    folder: PathBuf,
    /// What its sandbox gets.
    sandbox: SandboxSecrets,
}

/// The settings of the local executor.
#[derive(Clone, Debug)]
pub struct LocalSettings {
    /// The program that runs as `job-init`: `ion` itself.
    pub program: PathBuf,
    /// The variables that every module's environment begins with: `PATH`, `HOME` and the like. No
    /// credential.
    pub env: Vec<(String, String)>,
    /// The variables that the registry client has in addition to `env`.
    pub registries: Vec<(String, String)>,
    /// Whether to give jobs namespaces of their own where the kernel allows it.
    pub namespaces: Namespaces,
    /// The paths of stores that are files of this machine. No job sees them, nor the home.
    pub stores: Vec<PathBuf>,
    /// Where the values of modules' secrets are. No job sees these folders.
    pub secrets: SecretFolders,
    /// Collects what jobs leave in `out/data`, if anyone wants it.
    pub left: Option<Arc<OutputCollector>>,
}

/// Whether jobs get namespaces of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespaces {
    /// They do where the kernel allows it.
    WherePossible,
    /// They never do: `ION_DIR` says where a job's tree is.
    Never,
}

/// The executor that runs jobs as processes of this machine.
#[derive(Debug)]
pub struct LocalExecutor {
    node: Arc<Node>,
    settings: LocalSettings,
    server: Arc<ForkServer>,
    mode: SandboxMode,
    containers: Arc<Containers>,
    covers: Arc<Covers>,
    chains: Arc<Chains>,
    output: Option<Arc<dyn OutputWatcher>>,
}

/// What the process of an attempt, or of a batch, is started with.
struct ProcessRequest<'a> {
    module: &'a Module,
    /// The job, and the number of its attempt, whose log its output is.
    job: (&'a JobId, u32),
    /// The variables that tell it what it runs.
    variables: Vec<(String, String)>,
    /// The most processes and threads.
    processes: u64,
    /// What it finds at the module's path.
    root: MountRoot,
    /// The secrets that it reads.
    secrets: &'a Secrets,
    /// Told once it runs.
    running: oneshot::Sender<()>,
}

/// The process of an attempt that has ended.
struct RanProcess {
    end: ProcessEnd,
    /// What its processes used, if that is known.
    usage: Option<ProcessUsage>,
    /// The span that began when the process ended.
    exit: Span,
}

impl RanProcess {
    fn not_started(end: ProcessEnd) -> Self {
        Self { end, usage: None, exit: exit_span() }
    }
}

impl LocalExecutor {
    /// Finds out how far jobs can be separated here, and logs why not further.
    ///
    /// # Errors
    /// If the home, a store or a folder of secrets, which no job may see, cannot be inspected.
    pub async fn new(
        node: Arc<Node>,
        settings: LocalSettings,
        output: Option<Arc<dyn OutputWatcher>>,
    ) -> io::Result<Self> {
        let server = Arc::new(ForkServer::new(&settings.program));
        let (mode, refused) = match settings.namespaces {
            Namespaces::WherePossible => sandbox::find_best_mode(&server).await,
            Namespaces::Never => (SandboxMode::Plain, vec![]),
        };
        for (mode, reason) in refused {
            tracing::warn!(
                ?mode,
                reason = error_chain(&reason),
                "jobs run without namespaces of their own: ION_DIR says where their tree is"
            );
        }
        let containers = Arc::new(Containers::new(
            &node.settings.home,
            mode,
            &settings.env,
            &settings.registries,
        ));
        let covered = [&*settings.stores, &settings.secrets.existing()].concat();
        let covers = Arc::new(Covers::new(&node.settings.home, &covered)?);
        let places = LinkRuntime {
            server: server.clone(),
            mode,
            containers: containers.clone(),
            covers: covers.clone(),
            secrets: settings.secrets.clone(),
        };
        let chains = Chains::new(node.clone(), places, settings.env.clone());
        Ok(Self { node, settings, server, mode, containers, covers, chains, output })
    }

    /// Returns the runner of chains on this machine.
    pub fn chains(&self) -> &Arc<Chains> {
        &self.chains
    }

    /// Returns where the values of modules' secrets are.
    pub fn secrets(&self) -> &SecretFolders {
        &self.settings.secrets
    }

    /// Returns the mode by which jobs are separated from this machine.
    pub fn mode(&self) -> SandboxMode {
        self.mode
    }

    /// Reads the module's secrets and runs the attempt.
    async fn run_with_secrets(
        &self,
        start: AttemptStart,
        stop: watch::Receiver<Option<StopReason>>,
        log: &JobLog,
    ) -> AttemptOutcome {
        let secrets = match self.read_secrets(&start.module, &start.event).await {
            Ok(secrets) => secrets,
            Err(error) => return AttemptOutcome::failed(error_chain(&error)),
        };
        let mut outcome = self.run_attempt(start, stop, log, &secrets).await;
        if let Some(mask) = secrets.mask() {
            mask_outcome(&mut outcome, &mask);
        }
        outcome
    }

    /// Reads the secrets of a module, and of the source whose run the event starts, for one attempt:
    /// a value that was replaced counts at once.
    async fn read_secrets(&self, module: &Module, event: &Event) -> Result<Secrets, SecretError> {
        if !self.settings.secrets.are_needed(module, event) {
            return Ok(Secrets::default());
        }
        let folders = self.settings.secrets.clone();
        let (module, event) = (module.clone(), event.clone());
        run_blocking(move || folders.read(&module, &event)).await
    }

    async fn run_attempt(
        &self,
        start: AttemptStart,
        stop: watch::Receiver<Option<StopReason>>,
        log: &JobLog,
        secrets: &Secrets,
    ) -> AttemptOutcome {
        let spec = JobSpec {
            origin: origin(&start.job, &start.module, &start.event, fence_of_holder(&start.job)),
            event: start.event.clone(),
            gathered: start.gathered.clone(),
            older: older_conventions(&start.module),
            users: tree_users(&start.module),
        };
        let limits = start.module.limits.apply_to(self.node.settings.limits);
        let mut stops = stop.clone();
        let opened = OPEN.run_until(
            async move {
                wait_for_stop(&mut stops).await;
            },
            async |_| JobTree::open(&self.node, spec.clone(), limits).await,
            |failed| is_unavailable(failed.error),
        );
        let tree = match opened.await {
            Ok(tree) => Arc::new(tree),
            Err(error) => return unopened_outcome(&error),
        };
        let folder = job_dir(&self.node.settings.home, &start.job.id, start.job.attempt);
        let commit = start.module.commit;
        let api = match start.module.api {
            ModuleApi::None => None,
            ModuleApi::Sidecar => match Sidecar::start(tree.clone()).await {
                Ok(api) => Some(api),
                Err(error) => {
                    tree.finish().await;
                    return AttemptOutcome::failed(format!(
                        "the localhost API (\"api: sidecar\") cannot be served: {error}"
                    ));
                }
            },
        };
        let mut variables = attempt_variables(&start.job, &start.event);
        variables.extend(api.iter().flat_map(Sidecar::environment));
        let request = ProcessRequest {
            module: &start.module,
            job: (&start.job.id, start.job.attempt),
            variables,
            processes: tree.limits().processes,
            root: tree.tree().into(),
            secrets,
            running: start.running,
        };
        let RanProcess { end: ran, usage, exit } = self.run_process(request, stop, log).await;
        let word = match api {
            Some(api) => api.close().await,
            None => CompletionReport::NotAsked,
        };
        if let Some(left) = &self.settings.left {
            left.collect(&tree, &folder.join("left")).await;
        }
        let mut outcome = tree.finish().instrument(exit).await;
        if let Some(used) = usage {
            outcome.usage = outcome.usage.plus_concurrent(used.to_attempt_usage());
        }
        decide_outcome(ran.with_completion(word), &outcome, commit)
    }

    /// Runs a chain's links on the contents of the event's files, one file after the other.
    async fn run_chain(
        &self,
        start: AttemptStart,
        mut stop: watch::Receiver<Option<StopReason>>,
        log: &JobLog,
    ) -> AttemptOutcome {
        let files = match self.node.plane.files_of(&start.event).await {
            Ok(files) => files,
            Err(error @ StoreError::Unavailable { .. }) => {
                return AttemptOutcome {
                    end: AttemptEnd::Released,
                    ..AttemptOutcome::failed(error_chain(&error))
                };
            }
            Err(error) => {
                let error = OpenError::from(error);
                return AttemptOutcome {
                    failed_reads: error.failed_reads(),
                    ..AttemptOutcome::failed(error_chain(&error))
                };
            }
        };
        let stored = InputState::By {
            attempt: start.job.attempt,
            guard: origin(&start.job, &start.module, &start.event, fence_of_holder(&start.job))
                .guard(),
        };
        let AttemptStart { module, event, running, .. } = start;
        let unread = Arc::new(OnceLock::new());
        let fetched = FetchCount::default();
        let input = stream_files(self.node.clone(), files, unread.clone(), fetched.clone());
        let run = ChainRequest { module: Arc::new(module), event, stored, input };
        let _ = running.send(());
        let cancel = CancellationToken::new();
        let running = self.chains.run(run, None, cancel.clone());
        tokio::pin!(running);
        let (stopped, ran) = tokio::select! {
            ended = &mut running => (None, ended),
            why = wait_for_stop(&mut stop) => {
                cancel.cancel();
                (Some(why), running.await)
            }
        };
        for (link, words) in ran.left.link_stderrs().filter(|(_, words)| !words.is_empty()) {
            log.note(&format!("link {link} said:"));
            log.append(words);
        }
        let fetched =
            AttemptUsage { fetched_bytes: Some(fetched.bytes()), ..AttemptUsage::default() };
        let usage = ran.left.usage().plus_concurrent(fetched);
        let outcome = match (ran.end, stopped) {
            (ChainEnd::Well { .. }, _) => AttemptOutcome {
                exit_code: Some(0),
                ..AttemptOutcome::from_end(AttemptEnd::Succeeded)
            },
            (_, Some(why)) => stopped_outcome(why),
            (ChainEnd::Failed(failure), None) => AttemptOutcome {
                end: if failure.timed_out { AttemptEnd::TimedOut } else { AttemptEnd::Failed },
                exit_code: failure.exit_code,
                ..AttemptOutcome::failed(format!("link {}: {}", failure.link, failure.reason))
            },
            (ChainEnd::Cancelled, None) => AttemptOutcome::failed("cancelled"),
            (ChainEnd::NoPlace, None) => AttemptOutcome::failed("no place was free"),
            (ChainEnd::Broken { reason }, None) => {
                let failed_reads = unread.get().cloned().unwrap_or_default();
                AttemptOutcome { failed_reads, ..AttemptOutcome::failed(reason) }
            }
        };
        AttemptOutcome { usage, ..outcome }
    }

    /// Runs the process; its mount is gone when this returns.
    async fn run_process(
        &self,
        request: ProcessRequest<'_>,
        mut stop: watch::Receiver<Option<StopReason>>,
        log: &JobLog,
    ) -> RanProcess {
        let ProcessRequest {
            module,
            job: (job, attempt),
            variables,
            processes,
            root,
            secrets,
            running,
        } = request;
        let plain = self.node.settings.home.join("mnt").join(format!("{job}-{attempt}"));
        let mount_at = module.base_dir();
        let ion_dir =
            if self.mode == SandboxMode::Plain { plain.clone() } else { mount_at.clone() };
        let placed = match self.place_secrets(secrets, job, attempt).await {
            Ok(placed) => placed,
            Err(error) if is_no_room(&error) => {
                return RanProcess::not_started(ProcessEnd::NoRoom(secrets_reason(&error)));
            }
            Err(error) => {
                return RanProcess::not_started(ProcessEnd::NotStarted(secrets_reason(&error)));
            }
        };
        let secrets_at = (!secrets.is_empty()).then_some(&*placed.folder);
        let env = |base| environment(base, module, variables.clone(), &ion_dir, secrets_at);
        let argv = module.argv();
        let container = match &module.container {
            None => None,
            Some(wanted) => {
                let say = |words: &str| log.note(words);
                let request = ContainerRequest {
                    container: wanted,
                    argv: argv.clone(),
                    env: env(&[]),
                    tree: Some(&mount_at),
                    has_secrets: !secrets.is_empty(),
                    processes,
                    say: &say,
                };
                match self.make_container(request, &mut stop).await {
                    Ok(container) => Some(Box::new(container)),
                    Err(end) => return RanProcess::not_started(end),
                }
            }
        };
        // A container's runtime makes a root of its own, so nothing has to be covered.
        let covers = match container {
            None => self.covers.for_program(&module.directory, argv.first().map(String::as_str)),
            Some(_) => vec![],
        };
        let command = SandboxCommand {
            argv,
            env: env(&self.settings.env),
            cwd: module.directory.clone(),
            mount_at: Some(mount_at),
            mode: self.mode,
            rights: if module.privileged { Rights::All } else { Rights::Few },
            covers,
            processes,
            open_files: ion_system::sys::original_descriptor_limit(),
            secrets: placed.sandbox,
            container,
        };
        let begun = Instant::now();
        let mounting = info_span!(target: spans::TARGET, "mount");
        let (mut sandbox, output, mounted) =
            match self.spawn_and_mount(command, &root, &plain).instrument(mounting).await {
                Ok(mounted) => mounted,
                Err(end) => return RanProcess::not_started(end),
            };
        self.node.metrics.mounts.observe_since(begun);
        let live = live_log_path(&self.node.settings.home, job, attempt);
        let news =
            self.output.clone().map(|watcher| OutputNotifier::new(watcher, &module.name, job));
        let reading = tokio::spawn(keep_output(output, live, news, secrets.mask()));
        let ran = match sandbox.start_module().await {
            Ok(()) => {
                let _ = running.send(());
                supervise(&mut sandbox, &root, module.timeout, &mut stop).await
            }
            Err(SandboxError::CannotRun(reason)) => ProcessEnd::CannotRun(reason),
            Err(error) => ProcessEnd::NotStarted(error_chain(&error)),
        };
        let (exit, usage) = (exit_span(), sandbox.usage());
        // Dropping it kills every process that is left, and the mount goes with them.
        drop(sandbox);
        self.unmount(mounted, &plain).await;
        if self.mode == SandboxMode::Plain && !secrets.is_empty() {
            // They go at once, and not when the log is stored.
            let _ = tokio::fs::remove_dir_all(&placed.folder).await;
        }
        // Every writer is gone, so the pipe has ended; the timeout is for a stuck disk, which must
        // not hold the job for ever.
        if tokio::time::timeout(GONE_WAIT, reading).await.is_err() {
            tracing::warn!(%job, "the job's output did not end with it");
        }
        RanProcess { end: ran, usage, exit }
    }

    /// Makes the secrets ready for the process: in its namespaces, or without any in the attempt's
    /// folder, which goes with the attempt.
    async fn place_secrets(
        &self,
        secrets: &Secrets,
        job: &JobId,
        attempt: u32,
    ) -> io::Result<PlacedSecrets> {
        let placed = PlacedSecrets { folder: SECRETS_FOLDER.into(), ..PlacedSecrets::default() };
        if secrets.is_empty() {
            return Ok(placed);
        }
        if self.mode != SandboxMode::Plain {
            return Ok(PlacedSecrets { sandbox: secrets.for_sandbox()?, ..placed });
        }
        let home = &self.node.settings.home;
        let folder = job_dir(home, job, attempt).join(PLAIN_SECRETS);
        let (written, secrets) = (folder.clone(), secrets.clone());
        run_blocking(move || secrets.write_to(&written)).await?;
        Ok(PlacedSecrets { folder, ..placed })
    }

    /// Makes a container. This may take long: an image may have to be fetched first. The error is
    /// how the attempt ends without the container.
    async fn make_container(
        &self,
        request: ContainerRequest<'_>,
        stop: &mut watch::Receiver<Option<StopReason>>,
    ) -> Result<SandboxContainer, ProcessEnd> {
        let made = tokio::select! {
            made = self.containers.make(request) => made,
            stop = wait_for_stop(stop) => return Err(ProcessEnd::Stopped(stop)),
        };
        made.map_err(|error| match error.is_lasting() {
            true => ProcessEnd::CannotRun(error_chain(&error)),
            false => ProcessEnd::NotStarted(error_chain(&error)),
        })
    }

    /// Starts the process, which waits until its tree is served, and serves the tree.
    async fn spawn_and_mount(
        &self,
        command: SandboxCommand,
        root: &MountRoot,
        plain: &Path,
    ) -> Result<(Sandbox, Receiver, ServedMount), ProcessEnd> {
        let spawned =
            sandbox::spawn(&self.server, command).await.map_err(|error| match &error {
                SandboxError::Spawn(source) if is_no_room(source) => {
                    ProcessEnd::NoRoom(error_chain(&error))
                }
                _ => ProcessEnd::NotStarted(error_chain(&error)),
            })?;
        let mounted = match spawned.device {
            Some(device) => serve(device, root.clone()).await,
            None => match tokio::fs::create_dir_all(plain).await {
                Ok(()) => mount_at(plain, root.clone(), Visitors::Owner).await,
                Err(error) => Err(error),
            },
        };
        let mounted = mounted.map_err(|error| {
            let reason = format!("the filesystem cannot be mounted: {error}");
            if is_no_room(&error) {
                ProcessEnd::NoRoom(reason)
            } else {
                ProcessEnd::NotStarted(reason)
            }
        })?;
        Ok((spawned.sandbox, spawned.output, mounted))
    }

    async fn unmount(&self, mut mounted: ServedMount, plain: &Path) {
        let gone = if self.mode == SandboxMode::Plain {
            let unmount = tokio::time::timeout(GONE_WAIT, mounted.unmount()).await;
            let _ = tokio::fs::remove_dir(plain).await;
            unmount.map(|unmounted| unmounted.map(drop))
        } else {
            tokio::time::timeout(GONE_WAIT, mounted.wait_for_end()).await
        };
        match gone {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a job's filesystem ended badly"),
            Err(_) => tracing::warn!("a job's filesystem is still mounted after its end"),
        }
    }
}

#[async_trait]
impl Executor for LocalExecutor {
    async fn run(
        &self,
        start: AttemptStart,
        stop: watch::Receiver<Option<StopReason>>,
    ) -> RunResult {
        RunResult::Ended(self.run_to_end(start, stop).await)
    }
}

impl LocalExecutor {
    /// Runs the attempt to its end. A local attempt is never left for another dispatcher.
    pub async fn run_to_end(
        &self,
        start: AttemptStart,
        stop: watch::Receiver<Option<StopReason>>,
    ) -> AttemptOutcome {
        let home = &self.node.settings.home;
        let (job, attempt) = (start.job.id.clone(), start.job.attempt);
        let context = Context { name: start.module.name.clone(), ..start.event.context.clone() };
        let log = match JobLog::begin(home, &job, attempt) {
            Ok(log) => log,
            Err(error) => return no_log_outcome(&error),
        };
        let mut ended = match start.module.links.is_empty() {
            true => self.run_with_secrets(start, stop, &log).await,
            false => self.run_chain(start, stop, &log).await,
        };
        if let Some(reason) = &ended.reason {
            log.note(reason);
        }
        ended.log = log.store(&self.node.plane, &context, ended.end == AttemptEnd::Succeeded).await;
        let folder = job_dir(home, &job, attempt);
        if let Err(error) = tokio::fs::remove_dir_all(&folder).await {
            tracing::warn!(
                folder = %folder.display(),
                %error,
                "a job's folder could not be removed"
            );
        }
        ended
    }
}

/// Returns which users the tree of a job of this module is for.
fn tree_users(module: &Module) -> TreeUsers {
    match module.container {
        None => TreeUsers::Owner,
        // A container's user differs from the daemon's.
        Some(_) => TreeUsers::AnyUser,
    }
}

/// Returns the end of an attempt whose tree could not be made.
fn unopened_outcome(error: &OpenError) -> AttemptOutcome {
    let failed = AttemptOutcome::failed(error_chain(error));
    // An unavailable store is not a failure of the module: the dispatcher has waited for the store,
    // and leaves the job to another attempt.
    if is_unavailable(error) {
        AttemptOutcome { end: AttemptEnd::Released, ..failed }
    } else if error.is_no_room() {
        AttemptOutcome { end: AttemptEnd::NoRoom, ..failed }
    } else {
        AttemptOutcome { failed_reads: error.failed_reads(), ..failed }
    }
}

/// Returns the reason of an attempt whose secrets cannot be made ready.
fn secrets_reason(error: &io::Error) -> String {
    format!("the secrets cannot be made ready: {error}")
}

/// Returns whether a store was unavailable, which is not a failure of the module.
fn is_unavailable(error: &OpenError) -> bool {
    matches!(error, OpenError::Store(StoreError::Unavailable { .. }))
}

/// Returns the fence of a local attempt: its process ends with the dispatcher that holds its lease.
fn fence_of_holder(job: &JobRecord) -> Fence {
    Fence::HeldBy(job.holder.clone())
}

/// Returns the span from the end of a module's process until Ion has decided on its tree.
fn exit_span() -> Span {
    info_span!(target: spans::TARGET, "exit")
}

/// Waits for the module's end, and ends it at its timeout or when it is asked to stop.
async fn supervise(
    sandbox: &mut Sandbox,
    root: &MountRoot,
    timeout: Duration,
    stop: &mut watch::Receiver<Option<StopReason>>,
) -> ProcessEnd {
    let why = tokio::select! {
        exit = sandbox.wait_until_unmounted() => return to_process_end(exit),
        () = tokio::time::sleep(timeout) => ProcessEnd::TimedOut(timeout),
        stop = wait_for_stop(stop) => ProcessEnd::Stopped(stop),
    };
    sandbox.terminate().await;
    if tokio::time::timeout(GRACE, sandbox.wait_until_unmounted()).await.is_err() {
        sandbox.kill().await;
        // A process that waits for an answer of its filesystem dies once it gets one.
        root.stop();
        if tokio::time::timeout(GONE_WAIT, sandbox.wait_until_unmounted()).await.is_err() {
            tracing::warn!("a killed job is not gone yet");
        }
    }
    why
}

fn to_process_end(exit: Result<ProcessExit, SandboxError>) -> ProcessEnd {
    match exit {
        Ok(exit) => ProcessEnd::Exited(exit),
        Err(error) => ProcessEnd::Vanished(error_chain(&error)),
    }
}

/// Returns the bytes of an event's files, one file after the other. A read that fails ends them,
/// and is stored in `unread`. What is fetched for them counts in `fetched`.
fn stream_files(
    node: Arc<Node>,
    files: Vec<FileEntry>,
    unread: Arc<OnceLock<FailedReads>>,
    fetched: FetchCount,
) -> Input {
    let pieces = move |file: FileEntry| {
        let (unread, name) = (unread.clone(), file.name.clone());
        let failed = move |error: &CacheError| {
            let failed = unread.get_or_init(|| failed_read_of_blob(&name, error));
            io::Error::other(failed.in_words().unwrap_or_default())
        };
        let open = node.cache.open(&file).map(|blob| BlobReader::counted(blob, &fetched));
        let open = open.map_err(|error| failed(&error));
        let begin = open.map(|reader| (reader, 0, failed));
        stream::iter([begin])
            .and_then(|begin| async { Ok(stream::try_unfold(begin, next_piece)) })
            .try_flatten()
    };
    stream::iter(files).map(pieces).flatten().boxed()
}

/// Returns the next bytes of one file, and the position after them.
async fn next_piece<F: Fn(&CacheError) -> io::Error>(
    (reader, at, failed): (BlobReader, u64, F),
) -> io::Result<Option<(Bytes, (BlobReader, u64, F))>> {
    let bytes = reader.read(at, BLOCK_BYTES).await.map_err(|error| failed(&error))?;
    let end = at + bytes.len() as u64;
    Ok((!bytes.is_empty()).then_some((bytes, (reader, end, failed))))
}
