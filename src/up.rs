//! `ion up`: everything on this machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args as ClapArgs;
use dispatcher::dispatch::{DispatchSettings, Dispatcher, Notice};
use dispatcher::executor::OutputLine;
use dispatcher::executor::local::{LocalExecutor, LocalSettings};
use dispatcher::ledger::Ledger;
use dispatcher::pipeline::Pipeline;
use ionfs::node::Node;
use ionfs::record::{AttemptEnd, JobRecord, JobState};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::output::{self, Colour};
use crate::settings::{Settings, module_environment, search_path};
use crate::{Failure, Outcome, Verdict};

/// Lines and notices that may wait to be shown; more are left out, the logs keep them.
const SHOWN: usize = 4096;

/// Run a pipeline's modules on this machine, until Ctrl-C
///
/// Without PIPELINE: the modules of ./pipeline.yaml if it is there, else all registered ones. Jobs that a killed run
/// left are taken up again. Ctrl-C stops running jobs, queues them again and leaves nothing mounted; a second one
/// ends at once.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:\n  ion up examples/video/pipeline.yaml")]
pub(crate) struct Args {
    /// The pipeline file
    pipeline: Option<PathBuf>,
    /// Jobs at a time of all modules together [default: twice the processors]
    #[arg(long)]
    jobs: Option<usize>,
    /// Do not show what modules print
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) async fn run(settings: &Settings, args: Args) -> Outcome {
    // Read first: a mistake in the file is found before anything starts.
    let file = args.pipeline.or_else(|| Some(PathBuf::from("pipeline.yaml")).filter(|file| file.exists()));
    let pipeline = file.as_deref().map(|file| Pipeline::load(file, &search_path())).transpose()?;
    let plane = settings.plane().await?;
    let node = Node::new(plane.clone(), settings.node())?;
    let modules = match pipeline {
        Some(pipeline) => pipeline.modules,
        None => Ledger::new(plane.clone()).modules().await?,
    };
    if modules.is_empty() {
        return Err(Failure(
            "there are no modules to run; name a pipeline file, or register one with `ion module create`"
                .into(),
        ));
    }
    sweep(&settings.home);
    let (lines, shown_lines) = mpsc::channel(SHOWN);
    let (notices, shown_notices) = mpsc::channel(SHOWN);
    let executor = Arc::new(local_executor(settings, node, Some(lines)).await?);
    let mut dispatch = DispatchSettings::new(&settings.home);
    dispatch.slots = args.jobs.unwrap_or(dispatch.slots);
    let names: Vec<String> = modules.iter().map(|module| module.name.clone()).collect();
    let dispatcher = Dispatcher::new(plane, executor, modules, dispatch, Some(notices));
    let shutdown = CancellationToken::new();
    let (ready, is_ready) = oneshot::channel();
    let showing = tokio::spawn(show(shown_lines, shown_notices, args.quiet));
    tokio::spawn({
        let shutdown = shutdown.clone();
        async move {
            until_asked_to_stop().await;
            output::say("stopping: running jobs are ended and queued again");
            shutdown.cancel();
            until_asked_to_stop().await;
            std::process::exit(130);
        }
    });
    tokio::spawn(async move {
        if is_ready.await.is_ok() {
            output::say(&format!("ready: {}", names.join(", ")));
        }
    });
    dispatcher.run(shutdown, ready).await?;
    showing.await?;
    Ok(Verdict::Well)
}

/// The executor of this machine; this program is its `job-init`.
pub(crate) async fn local_executor(
    settings: &Settings,
    node: Arc<Node>,
    lines: Option<mpsc::Sender<OutputLine>>,
) -> Result<LocalExecutor, Failure> {
    let local = LocalSettings {
        program: std::env::current_exe()?,
        env: module_environment(),
        namespaces: settings.namespaces,
    };
    Ok(LocalExecutor::new(node, local, lines).await)
}

/// Unmounts and removes what a killed run left below `mnt`: only runs without namespaces leave anything there.
fn sweep(home: &Path) {
    for entry in std::fs::read_dir(home.join("mnt")).into_iter().flatten().flatten() {
        match ionfs::mount::unmount_stale(&entry.path()) {
            Ok(()) => output::say(&format!("{} was left mounted; it is unmounted", entry.path().display())),
            Err(error) => tracing::debug!(%error, "not a stale mount"),
        }
        let _ = std::fs::remove_dir(entry.path());
    }
}

/// SIGINT or SIGTERM.
pub(crate) async fn until_asked_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
        _ => std::future::pending().await,
    }
}

/// Shows what modules print and how jobs end.
async fn show(mut lines: mpsc::Receiver<OutputLine>, mut notices: mpsc::Receiver<Notice>, quiet: bool) {
    loop {
        tokio::select! {
            biased;
            Some(line) = lines.recv() => if !quiet {
                let name = format!("{} {}", line.module, line.job);
                output::line(format!("{} | {}", output::coloured(&name, colour(&line.module)), line.text));
            },
            Some(notice) = notices.recv() => match notice {
                Notice::Started(job) => tracing::info!(job = %job.id, module = job.module, attempt = job.attempt, "started"),
                Notice::Ended(job) => ended(&job),
            },
            else => return,
        }
    }
}

fn ended(job: &JobRecord) {
    let Some(attempt) = job.attempts.last() else { return };
    let took = output::duration((attempt.ended.unwrap_or(attempt.started) - attempt.started).max(0));
    let what = match (job.state, attempt.end) {
        (JobState::Queued, Some(AttemptEnd::Released)) => return,
        (JobState::Queued, _) => {
            format!("failed, will be tried again: {}", attempt.reason.as_deref().unwrap_or_default())
        }
        (JobState::Succeeded, _) => output::state("succeeded"),
        (state, _) => {
            format!("{}: {}", output::state(state.as_str()), attempt.reason.as_deref().unwrap_or_default())
        }
    };
    let name = format!("{} {}", job.module, job.id.short());
    output::line(format!("{} {what} ({took})", output::coloured(&name, colour(&job.module))));
}

/// Always the same colour for the same module.
fn colour(module: &str) -> Colour {
    let sum: usize = module.bytes().map(usize::from).sum();
    [Colour::Blue, Colour::Green, Colour::Yellow, Colour::Grey][sum % 4]
}
