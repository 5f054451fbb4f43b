//! `ion up`, `ion dispatch` and `ion relay`: the daemons that run jobs and publish events.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args as ClapArgs;
use dispatcher::dispatch::{
    DeclaredSources, DispatchNotice, DispatchSettings, Dispatcher, ModuleSelection,
};
use dispatcher::executor::choice::{ClusterSettings, Executors};
use dispatcher::executor::left::OutputCollector;
use dispatcher::executor::local::{LocalExecutor, LocalSettings};
use dispatcher::executor::{LiveOutput, OutputWatcher};
use dispatcher::gateway::{Portal, Vitals};
use dispatcher::ledger::Ledger;
use dispatcher::pipeline::{
    ExecutorKind, Module, Pipeline, find_cycles, find_misspelled_types, parse_at_a_time,
};
use dispatcher::secrets::{SecretError, SecretFolders};
use futures_util::FutureExt as _;
use ionfs::errors::error_chain;
use ionfs::id::JobId;
use ionfs::node::Node;
use ionfs::record::{AttemptEnd, JobRecord, JobState};
use ionfs::relay::{GRACE, Relay};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::gateway::GatewayFlags;
use crate::metrics::MetricsArgs;
use crate::output::live::{LiveStyle, LiveView};
use crate::output::{self, Colour};
use crate::service::wait_for_stop_signal;
use crate::settings::{
    CommandSettings, module_environment, parse_deadline, registry_environment, search_path,
    ticket_key,
};
use crate::{CommandFailure, CommandResult, CommandVerdict, doctor};

/// At most this many waiting events are counted.
const WAITING_COUNTED_MAX: usize = 1_000_000;

/// The capacity of the queue of notices to the task that shows them, which never waits.
const NOTICE_QUEUE_MAX: usize = 4096;

/// Run a pipeline's modules on this machine, until Ctrl-C
///
/// Without PIPELINE it runs the modules of ./pipeline.yaml if that file exists, else all registered
/// ones. Jobs that a killed run left are taken up again. Ctrl-C stops running jobs, queues them
/// again and leaves nothing mounted; a second Ctrl-C ends the command at once.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:\n  ion up examples/video/pipeline.yaml")]
pub(crate) struct UpArgs {
    /// The pipeline file
    pipeline: Option<PathBuf>,
    /// How many jobs of all modules run at the same time at most [default: twice the number of
    /// processors]
    #[arg(long, value_parser = parse_at_a_time)]
    jobs: Option<usize>,
    /// How long jobs stay with a dispatcher that gives no sign of life; choose more than your
    /// document store may be unavailable
    #[arg(long, env = "ION_LEASE", default_value = "60s", value_parser = parse_deadline, value_name = "TIME")]
    lease: std::time::Duration,
    /// Where pods of modules with `executor: kubernetes` run [default: the namespace of the
    /// kubeconfig, or this pod's own]
    #[arg(long, env = "ION_KUBERNETES_NAMESPACE", value_name = "NAME")]
    kubernetes_namespace: Option<String>,
    /// Remove modules that an earlier version of the file registered and this version no longer
    /// has, together with the events in their queues
    #[arg(long)]
    drop_missing: bool,
    /// Do not show the output of modules
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    metrics: MetricsArgs,
    /// Also serve HTTP at this address, for instance 127.0.0.1:8080: see `ion help gateway`
    /// [default: off]
    #[arg(long, env = "ION_GATEWAY", value_name = "ADDRESS")]
    gateway: Option<std::net::SocketAddr>,
    #[command(flatten)]
    gateway_flags: GatewayFlags,
}

/// Run the jobs of a pipeline's modules, beside other dispatchers on the same stores
///
/// Like `ion up`, for a deployment: any number of dispatchers, on any number of hosts, share each
/// module's queue. Every host has an ION_HOME of its own, the same stores (ION_BLOBS,
/// ION_DOCUMENTS, ION_BUS or the file's plane section), and the modules' programs at the same
/// paths. Without PIPELINE and without ./pipeline.yaml it serves the registered modules, and
/// follows the changes that `ion module create` and `ion module delete` make while it runs.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:\n  ion dispatch pipeline.yaml --module detect --jobs 8")]
pub(crate) struct DispatchArgs {
    #[command(flatten)]
    up: UpArgs,
    /// Serve only this module; may be repeated
    #[arg(short, long = "module", value_name = "NAME")]
    modules: Vec<String>,
}

pub(crate) async fn dispatch(settings: CommandSettings, args: DispatchArgs) -> CommandResult {
    serve(settings, args.up, &args.modules, WithoutModules::Waits).await
}

pub(crate) async fn run(settings: CommandSettings, args: UpArgs) -> CommandResult {
    serve(settings, args, &[], WithoutModules::Fails).await
}

/// Publish events that were committed while the broker was unavailable, until Ctrl-C
///
/// Every dispatcher does so too; this command does nothing else.
#[derive(Debug, ClapArgs)]
pub(crate) struct RelayArgs {
    #[command(flatten)]
    metrics: MetricsArgs,
}

pub(crate) async fn relay(settings: &CommandSettings, args: RelayArgs) -> CommandResult {
    let endpoint = args.metrics.open().await?;
    let plane = settings.open_plane().await?;
    endpoint.vitals.describe(|registry| plane.metrics.describe(registry));
    let mut relay = Relay::new(plane, GRACE);
    endpoint.vitals.mark_ready();
    crate::service::notify_ready();
    output::print_message(&format!(
        "ready: publishes events that are still unpublished after {} s",
        GRACE.as_secs()
    ));
    let stop = wait_for_stop_signal();
    tokio::pin!(stop);
    loop {
        match relay.run_round().await {
            Ok(0) => {}
            Ok(published) => output::print_message(&format!("published {published} events")),
            Err(error) => {
                tracing::warn!(error = error_chain(&error), "not published yet")
            }
        }
        tokio::select! {
            () = &mut stop => {
                endpoint.vitals.mark_not_ready();
                crate::service::notify_stopping();
                break;
            }
            () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
        }
    }
    endpoint.close().await;
    Ok(CommandVerdict::Well)
}

/// Warns of mistakes in these modules and the registered ones: modules that feed each other without
/// an end, and event types that differ by a letter, so that a module misses the other's events.
pub(crate) async fn print_misspelled_types(
    ledger: &Ledger,
    modules: &[Module],
) -> Result<(), CommandFailure> {
    let is_named = |other: &Module| modules.iter().any(|module| module.name == other.name);
    let mut all = ledger.modules().await?;
    all.retain(|other| !is_named(other));
    all.extend_from_slice(modules);
    for cycle in find_cycles(&all) {
        output::print_message(&format!(
            "these modules feed each other: {cycle}; they stop at the limit \"lineage-depth\", or \
             with `ion cancel`"
        ));
    }
    find_misspelled_types(&all).iter().for_each(|slip| output::print_message(slip));
    Ok(())
}

/// What a command does when no module is there to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WithoutModules {
    /// It ends, with the way out.
    Fails,
    /// It waits until one is registered, unless a pipeline file was to give them.
    Waits,
}

/// Serves the modules of a pipeline file, or the registered ones, until it is asked to stop. If
/// `only` names modules, it serves no others.
async fn serve(
    mut settings: CommandSettings,
    args: UpArgs,
    only: &[String],
    without: WithoutModules,
) -> CommandResult {
    // The file is read first, so that a mistake in it is found before anything starts.
    let file =
        args.pipeline.or_else(|| Some(PathBuf::from("pipeline.yaml")).filter(|file| file.exists()));
    let pipeline = file.as_deref().map(|file| Pipeline::load(file, &search_path())).transpose()?;
    if let Some(pipeline) = &pipeline {
        settings.use_stores(&pipeline.plane)?;
    }
    let settings = &settings;
    let endpoint = args.metrics.open().await?;
    let vitals = &endpoint.vitals;
    let plane = settings.open_plane().await?;
    let node = Node::new(plane.clone(), settings.node_settings())?;
    vitals.describe(|registry| node.describe(registry));
    let ledger = Ledger::new(plane.clone());
    let follows_registry = pipeline.is_none();
    let sources = match (&file, &pipeline) {
        (Some(file), Some(pipeline)) => DeclaredSources {
            pipeline: Some(std::path::absolute(file)?.display().to_string()),
            sources: pipeline.sources.clone(),
        },
        _ => DeclaredSources::default(),
    };
    let modules = match pipeline {
        Some(pipeline) => modules_of_file(&ledger, pipeline, only, args.drop_missing).await?,
        None => registered_modules(&ledger, only, without).await?,
    };
    let secrets = settings.secret_folders()?;
    check_secrets(&secrets, &modules, &sources)?;
    check_machine(settings, &modules).await?;
    remove_stale_mounts(&settings.home);
    let live = LiveView::start(LiveStyle {
        prefix: line_prefix,
        stream: output::OutputStream::Stdout,
        shows_all: false,
    })?;
    let watcher = (!args.quiet).then(|| live.clone() as Arc<dyn OutputWatcher>);
    let cluster = ClusterSettings { key: ticket_key(), namespace: args.kubernetes_namespace };
    let local =
        Arc::new(local_executor(settings, node.clone(), secrets, watcher.clone(), None).await?);
    let chains = local.chains().clone();
    let executor = Arc::new(Executors::new(node.clone(), local, cluster, watcher));
    if modules.iter().any(|module| module.executor == ExecutorKind::Kubernetes) {
        executor.cluster().await?;
    }
    vitals.describe(|registry| chains.metrics().describe(registry));
    for module in &modules {
        chains.start_ahead(module);
    }
    let gateway = match args.gateway {
        Some(address) => {
            args.gateway_flags.check_modules(&modules)?;
            let portal = Portal::new(chains.clone(), &modules);
            Some(args.gateway_flags.open(address, node, vitals.clone(), Some(portal)).await?)
        }
        None => None,
    };
    let mut dispatch = DispatchSettings::new(&settings.home, search_path());
    dispatch.slots = args.jobs.unwrap_or(dispatch.slots);
    dispatch.lease = args.lease;
    let names: Vec<String> = modules.iter().map(|module| module.name.clone()).collect();
    let selection = match follows_registry {
        true => ModuleSelection::Registered { only: only.to_vec() },
        false => ModuleSelection::These { modules, sources },
    };
    let (notices, shown_notices) = mpsc::channel(NOTICE_QUEUE_MAX);
    let dispatcher = Dispatcher::new(plane, executor, selection, dispatch, Some(notices));
    vitals.describe(|registry| dispatcher.metrics().describe(registry));
    let shutdown = CancellationToken::new();
    let (ready, is_ready) = oneshot::channel();
    let showing = tokio::spawn(show_notices(live.clone(), shown_notices));
    tokio::spawn(stop_on_signal(vitals.clone(), shutdown.clone()));
    tokio::spawn(announce_ready(vitals.clone(), is_ready, names));
    // The gateway and the dispatcher end together, so that a request which waits for a job receives
    // the answer that the job is queued again.
    let ending = async {
        shutdown.cancelled().await;
        if let Some(gateway) = gateway {
            gateway.close().await;
        }
    };
    let (result, ()) = tokio::join!(
        dispatcher.run(shutdown.clone(), ready).inspect(|_| shutdown.cancel()),
        ending
    );
    chains.close().await;
    result?;
    showing.await?;
    endpoint.close().await;
    tokio::task::spawn_blocking(move || live.finish(Some(output::READER_WAIT))).await?;
    Ok(CommandVerdict::Well)
}

/// Returns the modules of a pipeline file, or those that `only` names. Warns of mistakes in them,
/// and of modules that the file no longer has.
async fn modules_of_file(
    ledger: &Ledger,
    pipeline: Pipeline,
    only: &[String],
    drop_missing: bool,
) -> Result<Vec<Module>, CommandFailure> {
    let mut modules = pipeline.modules;
    check_names(&modules, only)?;
    print_misspelled_types(ledger, &modules).await?;
    handle_missing_modules(ledger, &modules, drop_missing).await?;
    modules.retain(|module| only.is_empty() || only.contains(&module.name));
    match modules.is_empty() {
        true => Err(no_modules_failure()),
        false => Ok(modules),
    }
}

/// Returns the registered modules, or those that `only` names.
async fn registered_modules(
    ledger: &Ledger,
    only: &[String],
    without: WithoutModules,
) -> Result<Vec<Module>, CommandFailure> {
    let mut modules = ledger.modules().await?;
    check_names(&modules, only)?;
    modules.retain(|module| only.is_empty() || only.contains(&module.name));
    match modules.is_empty() && without == WithoutModules::Fails {
        true => Err(no_modules_failure()),
        false => Ok(modules),
    }
}

fn check_names(modules: &[Module], only: &[String]) -> Result<(), CommandFailure> {
    let is_unknown = |name: &&String| modules.iter().all(|module| module.name != **name);
    match only.iter().find(is_unknown) {
        Some(unknown) => Err(CommandFailure(format!(
            "there is no module {unknown:?}; `ion module list` shows those there are"
        ))),
        None => Ok(()),
    }
}

fn no_modules_failure() -> CommandFailure {
    CommandFailure(
        "there are no modules to run; name a pipeline file, or register one with `ion module \
         create`"
            .into(),
    )
}

/// Checks that this machine has the secrets of the modules whose jobs run here. Of a pipeline file
/// that was named, each has to be there. A module that somebody has registered must not keep the
/// dispatcher from the others: its attempts fail.
fn check_secrets(
    secrets: &SecretFolders,
    modules: &[Module],
    declared: &DeclaredSources,
) -> Result<(), CommandFailure> {
    for module in modules.iter().filter(|module| module.executor != ExecutorKind::Kubernetes) {
        let own = secrets.read_named(&module.secrets).map(drop);
        let own = own.map_err(|error| in_module(&module.name, &error));
        let sources = declared.sources.iter().filter(|(_, one)| one.module == module.name);
        let mut of_sources = sources.map(|(name, source)| {
            secrets.check_source(source).map_err(|error| in_source(name, &error))
        });
        match own.and_then(|()| of_sources.try_for_each(|checked| checked)) {
            Ok(()) => {}
            Err(failure) if declared.pipeline.is_some() => return Err(failure),
            Err(CommandFailure(reason)) => {
                output::print_message(&format!("{reason}; until then its jobs fail here"));
            }
        }
    }
    Ok(())
}

fn in_module(name: &str, error: &SecretError) -> CommandFailure {
    CommandFailure(format!("module {name:?}: {}", error_chain(error)))
}

fn in_source(name: &str, error: &SecretError) -> CommandFailure {
    CommandFailure(format!("source {name:?}: {}", error_chain(error)))
}

/// Checks what the jobs of these modules need of this machine and of the blob store.
async fn check_machine(
    settings: &CommandSettings,
    modules: &[Module],
) -> Result<(), CommandFailure> {
    let mounts_here =
        |module: &Module| module.executor != ExecutorKind::Kubernetes && module.links.is_empty();
    if modules.iter().any(mounts_here) {
        doctor::check_device()?;
    }
    let blobs = ionfs::probe::blobs(settings.urls()).await;
    blobs.outcome.map(|_| ()).map_err(|reason| {
        CommandFailure(format!("the blob store {} cannot be used: {reason}", blobs.url))
    })
}

/// Cancels `shutdown` when a person or the system asks this process to stop. The second time it
/// ends the process at once.
async fn stop_on_signal(vitals: Arc<Vitals>, shutdown: CancellationToken) {
    wait_for_stop_signal().await;
    vitals.mark_not_ready();
    crate::service::notify_stopping();
    output::print_message("stopping: running jobs are ended and queued again");
    shutdown.cancel();
    wait_for_stop_signal().await;
    std::process::exit(130);
}

/// Says which modules are served, once every queue is.
async fn announce_ready(vitals: Arc<Vitals>, ready: oneshot::Receiver<()>, names: Vec<String>) {
    if ready.await.is_err() {
        return;
    }
    vitals.mark_ready();
    crate::service::notify_ready();
    let to_come = if names.is_empty() { "modules that `ion module create` registers" } else { "" };
    output::print_message(&format!("ready: {}{to_come}", names.join(", ")));
}

/// Warns of modules that an earlier version of the pipeline file registered and this version no
/// longer has: new events still name them, and gathering jobs wait for them. With `drop` it removes
/// them.
async fn handle_missing_modules(
    ledger: &Ledger,
    modules: &[Module],
    drop: bool,
) -> Result<(), CommandFailure> {
    let Some(first) = modules.first() else { return Ok(()) };
    let is_of_same_file = |other: &Module| {
        other.pipeline.is_some()
            && other.pipeline == first.pipeline
            && other.directory == first.directory
    };
    let is_gone = |other: &Module| {
        is_of_same_file(other) && modules.iter().all(|module| module.name != other.name)
    };
    for module in ledger.modules().await?.into_iter().filter(is_gone) {
        let name = &module.name;
        let depth =
            ledger.plane().bus.count_messages(name, WAITING_COUNTED_MAX).await?.unwrap_or(0);
        let waiting = match depth {
            0 => "nothing waits for it".to_owned(),
            1 => "1 event waits for it".to_owned(),
            WAITING_COUNTED_MAX => format!("{WAITING_COUNTED_MAX} events or more wait for it"),
            depth => format!("{depth} events wait for it"),
        };
        if drop {
            ledger.delete_module(name).await?;
            output::print_message(&format!(
                "module {name:?} is not in the file any more and is removed ({waiting})"
            ));
        } else {
            output::print_message(&format!(
                "module {name:?} is registered and not in the file any more ({waiting}): new events still go to it, and \
                 gathering jobs wait until its jobs have ended. `ion module delete {name}`, or `--drop-missing` at the next start, \
                 removes it"
            ));
        }
    }
    Ok(())
}

/// Makes the executor for this machine. It starts this program again as `job-init` in each job.
pub(crate) async fn local_executor(
    settings: &CommandSettings,
    node: Arc<Node>,
    secrets: SecretFolders,
    watcher: Option<Arc<dyn OutputWatcher>>,
    collector: Option<Arc<OutputCollector>>,
) -> Result<LocalExecutor, CommandFailure> {
    // A trial of a pipeline file may run before there is any store.
    let stores = settings.urls().local_paths().into_iter().filter(|store| store.exists());
    let local = LocalSettings {
        program: std::env::current_exe()?,
        env: module_environment(),
        registries: registry_environment(),
        namespaces: settings.namespaces,
        stores: stores.collect(),
        secrets,
        left: collector,
    };
    Ok(LocalExecutor::new(node, local, watcher).await?)
}

/// Unmounts and removes what a killed run left below `mnt` of the home. Only runs without
/// namespaces leave anything there.
fn remove_stale_mounts(home: &Path) {
    for entry in std::fs::read_dir(home.join("mnt")).into_iter().flatten().flatten() {
        match ionfs::mount::unmount_stale(&entry.path()) {
            Ok(()) => output::print_message(&format!(
                "{} was left mounted; it is unmounted",
                entry.path().display()
            )),
            Err(error) => tracing::debug!(%error, "not a stale mount"),
        }
        let _ = std::fs::remove_dir(entry.path());
    }
}

/// Returns the prefix of each line of a job's output.
fn line_prefix(output: &LiveOutput) -> String {
    format!("{} | ", coloured_name(&output.module, &output.job))
}

fn coloured_name(module: &str, job: &JobId) -> String {
    output::coloured(&format!("{module} {}", job.short()), module_colour(module))
}

/// Shows how jobs end and modules change, until the sender of notices is dropped.
async fn show_notices(live: Arc<LiveView>, mut notices: mpsc::Receiver<DispatchNotice>) {
    while let Some(notice) = notices.recv().await {
        match notice {
            DispatchNotice::Started(job) => {
                tracing::info!(job = %job.id, module = job.module, attempt = job.attempt, "started");
            }
            DispatchNotice::Ended(job) => show_ended_job(&live, &job),
            DispatchNotice::Module { name, now } => {
                output::print_message(&format!("module {name:?} {now}"))
            }
        }
    }
}

fn show_ended_job(live: &LiveView, job: &JobRecord) {
    let Some(attempt) = job.attempts.last() else { return };
    let took = output::format_duration(
        (attempt.ended.unwrap_or(attempt.started) - attempt.started).max(0),
    );
    let reason = attempt.reason.as_deref().unwrap_or_default();
    let what = match (job.state, attempt.end) {
        (JobState::Queued, Some(AttemptEnd::Released)) => return,
        (JobState::Queued, _) => {
            format!("failed, will be tried again: {}", output::escape_foreign(reason))
        }
        (JobState::Succeeded, _) => output::coloured_state("succeeded"),
        (state, _) => {
            format!(
                "{}: {}",
                output::coloured_state(state.as_str()),
                output::escape_foreign(reason)
            )
        }
    };
    live.show_message(&job.id, &format!("{} {what} ({took})", coloured_name(&job.module, &job.id)));
}

/// Returns a module's colour, which is the same each time.
fn module_colour(module: &str) -> Colour {
    let sum: usize = module.bytes().map(usize::from).sum();
    [Colour::Blue, Colour::Green, Colour::Yellow, Colour::Grey][sum % 4]
}
