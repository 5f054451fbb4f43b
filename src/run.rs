//! `ion run`: one module once.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args as ClapArgs;
use dispatcher::executor::left::{CollectedOutput, OutputCollector};
use dispatcher::executor::{AttemptStart, tell};
use dispatcher::job::{EndedAttempt, Transition};
use dispatcher::ledger::{ClaimOutcome, Ledger};
use dispatcher::pipeline::{ANY_TYPE, Module, Pipeline};
use ionfs::clock::millis;
use ionfs::commit::record_event;
use ionfs::event::{Event, KeyValue};
use ionfs::first::FirstEvent;
use ionfs::id::{CorrelationId, EventId};
use ionfs::node::Node;
use ionfs::record::AttemptEnd;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::event::pair;
use crate::files::{StoredFiles, store_files};
use crate::output::live::{LiveStyle, LiveView};
use crate::service::until_asked_to_stop;
use crate::settings::{CommandSettings, search_path};
use crate::up::local_executor;
use crate::{CommandFailure, CommandResult, CommandVerdict, doctor, output};

/// At most this many of the files that no event names are listed.
const LEFT_SHOWN: usize = 5;

/// Run one module once, on the given files and values, and print the events it published
///
/// Its events are committed for real, and start other modules if a dispatcher serves them.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
                        Examples:
  ion run sample --pipeline examples/video/pipeline.yaml --file clip.mp4
  ion run --file README.md --out results -- sh -c 'wc -w /ion/in/data/* > /ion/out/data/n'")]
pub(crate) struct RunArgs {
    /// The module
    #[arg(required_unless_present = "argv")]
    module: Option<String>,
    /// The pipeline file that has the module [default: ./pipeline.yaml, else the registered
    /// modules]
    #[arg(short, long, value_name = "FILE")]
    pipeline: Option<PathBuf>,
    /// A file or folder for in/data; PATH=NAME gives it another name there
    #[arg(short, long = "file", value_name = "PATH[=NAME]")]
    files: Vec<OsString>,
    /// A value for in/meta
    #[arg(short, long = "data", value_name = "KEY=VALUE", value_parser = pair)]
    data: Vec<(String, String)>,
    /// Copy all of out/data into this folder, whether or not an event names it
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Let the program keep this command's capabilities, and see the machine's devices and
    /// settings; docs/security.md says what that means
    #[arg(long, conflicts_with = "module")]
    privileged: bool,
    /// Instead of a module, a program and its arguments; it may publish events of any type
    #[arg(last = true, conflicts_with = "module")]
    argv: Vec<String>,
}

pub(crate) async fn run(settings: &CommandSettings, args: RunArgs) -> CommandResult {
    if let Some(out) = args.out.as_deref().filter(|out| !is_new_or_empty(out)) {
        return Err(CommandFailure(format!(
            "{} is not an empty folder: copies of out/data need a new or an empty one",
            out.display()
        )));
    }
    let plane = settings.plane().await?;
    let ledger = Ledger::new(plane.clone());
    let module = module(&ledger, &args).await?;
    doctor::check_device()?;
    let node = Node::new(plane.clone(), settings.node())?;
    let (id, correlation) = (EventId::random(), CorrelationId::random());
    let prefix = format!("{correlation}/{id}");
    // The event has a type that the module subscribes to, but names no module of the plane: it
    // starts this module, in this process, and no other.
    let event_type = module.subscribes().into_iter().next().unwrap_or_else(|| "run".into());
    let StoredFiles { files, directories } = store_files(&plane, &prefix, &args.files).await?;
    let first = FirstEvent {
        id,
        correlation_id: correlation.clone(),
        name: "ion".into(),
        parent: String::new(),
        event_type,
        files,
        directories,
        data: args.data.into_iter().map(|(key, value)| KeyValue { key, value }).collect(),
    };
    let event = first.document(&plane, &prefix).await?.for_nobody();
    record_event(&plane, event.clone()).await?;
    let lease = millis(module.timeout + Duration::from_secs(60));
    let single = Module { gather: None, per: None, ..module.clone() };
    let ClaimOutcome::Won(job) = ledger.claim(&single, &event, Some(("ion run", lease))).await?
    else {
        return Err(CommandFailure("a job of the new event exists already".into()));
    };
    let live = LiveView::start(LiveStyle {
        prefix: |output| format!("ion: {} | ", output::of_others(&output.module)),
        stream: output::OutputStream::Stderr,
        whole: true,
    })?;
    let left = Arc::new(OutputCollector::new(args.out.clone()));
    let executor = local_executor(settings, node, Some(live.clone()), Some(left.clone())).await?;
    let (stop, stopped) = watch::channel(None);
    let asked_to_stop = CancellationToken::new();
    let asked = asked_to_stop.clone();
    tokio::spawn(async move {
        until_asked_to_stop().await;
        asked.cancel();
        stop.send_replace(Some(dispatcher::executor::StopReason::Cancel));
        // The sender stays alive: dropping it would tell the executor that nobody can stop the job.
        std::future::pending::<()>().await;
    });
    let gathered = module.gather.is_some().then(Vec::new);
    let (running, _runs) = oneshot::channel();
    let start = AttemptStart { job: job.clone(), module: module.clone(), event, gathered, running };
    let span = start.span();
    let ended = executor.run_here(start, stopped).instrument(span.clone()).await;
    tell(&ended, &span);
    drop(executor);
    let well = ended.end == AttemptEnd::Succeeded;
    let reason = ended.reason.clone();
    let happening = Transition::Ended(EndedAttempt { outcome: ended, retries: 0, jitter: 0.0 });
    let job = ledger.advance(&job, &happening).await?;
    if job.outbox {
        ionfs::relay::promote(&plane, &job.id).instrument(span.clone()).await?;
    }
    drop(span);
    // All that the module wrote is shown before the events it published. A signal cuts this short.
    tokio::select! {
        _ = tokio::task::spawn_blocking(move || live.finish(None)) => {}
        () = async {
            asked_to_stop.cancelled().await;
            tokio::time::sleep(output::READER_WAIT).await;
        } => {}
    }
    let published: Vec<Event> = ledger
        .events_of(correlation.as_str())
        .await?
        .into_iter()
        .filter(|event| event.job_id.is_some())
        .collect();
    if settings.json {
        output::json(&published);
    } else {
        for event in &published {
            let files: Vec<String> =
                event.files.iter().map(|file| output::of_others(&file.name)).collect();
            output::line(format!("{}  {}  {}", event.event_type, event.id, files.join(" ")));
        }
    }
    let copied = say_what_is_left(&left.found(), args.out.as_deref(), &published);
    match reason.filter(|_| !well) {
        Some(reason) => Err(CommandFailure(format!("{}: {reason}", module.name))),
        None => copied,
    }
}

fn is_new_or_empty(folder: &Path) -> bool {
    match std::fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// Says which files of `out/data` are kept nowhere, or where copies of them are.
fn say_what_is_left(
    found: &CollectedOutput,
    out: Option<&Path>,
    published: &[Event],
) -> CommandResult {
    if let Some(out) = out {
        let out = out.display();
        if let Some(reason) = &found.failed {
            return Err(CommandFailure(format!(
                "out/data could not be copied into {out}: {reason}"
            )));
        }
        output::say(&format!(
            "{} files of out/data ({}) are in {out}",
            found.count,
            output::size(found.bytes)
        ));
        return Ok(CommandVerdict::Well);
    }
    let named: HashSet<&str> = published
        .iter()
        .flat_map(|event| event.files.iter().map(|file| file.name.as_str()))
        .collect();
    // An event with very many files keeps their list in a blob, which is not read here: then
    // nothing is said about any file.
    let unnamed: Vec<_> =
        found.files.iter().filter(|(name, _)| !named.contains(name.as_str())).collect();
    if !unnamed.is_empty() && published.iter().all(|event| event.file_list.is_none()) {
        let shown: Vec<String> = unnamed
            .iter()
            .take(LEFT_SHOWN)
            .map(|(name, bytes)| format!("{} ({})", output::of_others(name), output::size(*bytes)))
            .collect();
        let more = match unnamed.len() + (found.count - found.files.len()) - shown.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        output::say(&format!(
            "no event names {}{more} in out/data, so nothing of it is kept; --out DIR brings it \
             out",
            shown.join(", ")
        ));
    }
    Ok(CommandVerdict::Well)
}

async fn module(ledger: &Ledger, args: &RunArgs) -> Result<Module, CommandFailure> {
    let Some(name) = &args.module else {
        let mut module = Module::new("run", args.argv.clone(), std::env::current_dir()?);
        module.emits = vec![ANY_TYPE.into()];
        module.privileged = args.privileged;
        module.check_programs(&search_path()).map_err(CommandFailure)?;
        return Ok(module);
    };
    let file = args
        .pipeline
        .clone()
        .or_else(|| Some(PathBuf::from("pipeline.yaml")).filter(|file| file.exists()));
    let found = match &file {
        Some(file) => Pipeline::load(file, &search_path())?
            .modules
            .into_iter()
            .find(|module| module.name == *name),
        None => ledger.module(name).await?,
    };
    found.ok_or_else(|| match file {
        Some(file) => CommandFailure(format!("{} has no module {name:?}", file.display())),
        None => CommandFailure(format!(
            "there is no module {name:?}; name its pipeline file with --pipeline"
        )),
    })
}
