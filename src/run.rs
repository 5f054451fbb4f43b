//! `ion run`: one module once.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args as ClapArgs;
use dispatcher::dispatch::single::{SingleRunEnd, run_once};
use dispatcher::executor::StopReason;
use dispatcher::executor::left::{CollectedOutput, OutputCollector};
use dispatcher::ledger::Ledger;
use dispatcher::pipeline::{ANY_TYPE, ExecutorKind, Module, Pipeline};
use dispatcher::secrets::{SecretFolders, read_given, secret_parameters};
use ionfs::event::{Event, KeyValue};
use ionfs::first::FirstEvent;
use ionfs::id::{CorrelationId, EventId};
use ionfs::node::Node;
use ionfs::record::AttemptEnd;
use ionfs::secret::is_secret_name;
use ionfs::stores::DataPlane;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::event::parse_pair;
use crate::files::{StoredFiles, is_new_or_empty, store_files};
use crate::output::live::{LiveStyle, LiveView};
use crate::service::wait_for_stop_signal;
use crate::settings::{ArgumentError, CommandSettings, search_path};
use crate::up::local_executor;
use crate::{CommandFailure, CommandResult, CommandVerdict, doctor, output};

/// At most this many of the files that no event names are listed.
const UNNAMED_SHOWN_MAX: usize = 5;

/// Run one module once, on the given files and values, and print the events it published
///
/// Its events are committed for real, and start other modules if a dispatcher serves them.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  ion run sample --pipeline examples/video/pipeline.yaml --file clip.mp4
  ion run --file README.md --out results -- sh -c 'wc -w /ion/in/data/* > /ion/out/data/n'
  ion run tell --secret SLACK_URL=./slack-url --data text=hello")]
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
    #[arg(short, long = "data", value_name = "KEY=VALUE", value_parser = parse_pair)]
    data: Vec<(String, String)>,
    /// The value of a secret of the module, from this file; a program instead of a module finds each
    /// in /run/secrets. May be repeated
    #[arg(long = "secret", value_name = "NAME=FILE", value_parser = parse_secret_file)]
    secret_files: Vec<(String, String)>,
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
    let plane = settings.open_plane().await?;
    let ledger = Ledger::new(plane.clone());
    let module = find_module(&ledger, &args).await?;
    let secrets = find_secrets(settings, &module, &args.secret_files)?;
    doctor::check_device()?;
    let node = Node::new(plane.clone(), settings.node_settings())?;
    let event = store_first_event(&plane, &module, args.data, &args.files).await?;
    let correlation = event.context.correlation_id.clone();
    let collector = Arc::new(OutputCollector::new(args.out.clone()));
    let name = module.name.clone();
    let result = run_and_show(settings, node, secrets, module, event, collector.clone()).await?;
    let published: Vec<Event> = ledger
        .correlation_events(correlation.as_str())
        .await?
        .into_iter()
        .filter(|event| event.job_id.is_some())
        .collect();
    print_published(settings, &published);
    let copied = print_unnamed_files(&collector.found(), args.out.as_deref(), &published);
    match result.outcome.reason.filter(|_| result.outcome.end != AttemptEnd::Succeeded) {
        Some(reason) => Err(CommandFailure(format!("{name}: {reason}"))),
        None => copied,
    }
}

/// Runs a module once on an event, on the plane of this node, and shows what it writes meanwhile.
pub(crate) async fn run_and_show(
    settings: &CommandSettings,
    node: Arc<Node>,
    secrets: SecretFolders,
    module: Module,
    event: Event,
    collector: Arc<OutputCollector>,
) -> Result<SingleRunEnd, CommandFailure> {
    let live = LiveView::start(LiveStyle {
        prefix: |output| format!("ion: {} | ", output::escape_foreign(&output.module)),
        stream: output::OutputStream::Stderr,
        shows_all: true,
    })?;
    let plane = node.plane.clone();
    let executor =
        local_executor(settings, node, secrets, Some(live.clone()), Some(collector)).await?;
    let (stop, _) = watch::channel(None);
    let stop_requested = CancellationToken::new();
    tokio::spawn({
        let (stop, requested) = (stop.clone(), stop_requested.clone());
        async move {
            wait_for_stop_signal().await;
            requested.cancel();
            stop.send_replace(Some(StopReason::Cancel));
        }
    });
    let result = run_once(plane, Arc::new(executor), module, event, &search_path(), &stop).await?;
    // All that the module wrote is shown before the events it published. A signal cuts this short.
    tokio::select! {
        _ = tokio::task::spawn_blocking(move || live.finish(None)) => {}
        () = async {
            stop_requested.cancelled().await;
            tokio::time::sleep(output::READER_WAIT).await;
        } => {}
    }
    Ok(result)
}

/// Stores the files, and returns the event that they belong to. It has a type that the module
/// subscribes to.
async fn store_first_event(
    plane: &DataPlane,
    module: &Module,
    data: Vec<(String, String)>,
    files: &[OsString],
) -> Result<Event, CommandFailure> {
    let (id, correlation_id) = (EventId::random(), CorrelationId::random());
    let prefix = format!("{correlation_id}/{id}");
    let StoredFiles { files, directories } = store_files(plane, &prefix, files).await?;
    let first = FirstEvent {
        id,
        correlation_id,
        name: "ion".into(),
        parent: String::new(),
        event_type: module.subscribed_types().into_iter().next().unwrap_or_else(|| "run".into()),
        files,
        directories,
        data: data.into_iter().map(|(key, value)| KeyValue { key, value }).collect(),
    };
    Ok(first.into_event(plane, &prefix).await?)
}

fn print_published(settings: &CommandSettings, published: &[Event]) {
    if settings.json {
        published.iter().for_each(output::print_json_line);
        return;
    }
    for event in published {
        let files: Vec<String> =
            event.files.iter().map(|file| output::escape_foreign(&file.name)).collect();
        output::print_line(format!("{}  {}  {}", event.event_type, event.id, files.join(" ")));
    }
}

/// Says how many files of `out/data` were copied.
pub(crate) fn print_copied_files(
    found: &CollectedOutput,
    out: &Path,
) -> Result<(), CommandFailure> {
    let out = out.display();
    if let Some(reason) = &found.failed {
        return Err(CommandFailure(format!("out/data could not be copied into {out}: {reason}")));
    }
    output::print_message(&format!(
        "{} files of out/data ({}) are in {out}",
        found.count,
        output::format_size(found.bytes)
    ));
    Ok(())
}

/// Says which files of `out/data` are kept nowhere, or where copies of them are.
fn print_unnamed_files(
    found: &CollectedOutput,
    out: Option<&Path>,
    published: &[Event],
) -> CommandResult {
    if let Some(out) = out {
        print_copied_files(found, out)?;
        return Ok(CommandVerdict::Well);
    }
    let named_files: HashSet<&str> = published
        .iter()
        .flat_map(|event| event.files.iter().map(|file| file.name.as_str()))
        .collect();
    // An event with very many files keeps their list in a blob, which is not read here: then
    // nothing is said about any file.
    let unnamed: Vec<_> =
        found.files.iter().filter(|(name, _)| !named_files.contains(name.as_str())).collect();
    if !unnamed.is_empty() && published.iter().all(|event| event.file_list.is_none()) {
        let shown: Vec<String> = unnamed
            .iter()
            .take(UNNAMED_SHOWN_MAX)
            .map(|(name, bytes)| {
                format!("{} ({})", output::escape_foreign(name), output::format_size(*bytes))
            })
            .collect();
        let more = match unnamed.len() + (found.count - found.files.len()) - shown.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        output::print_message(&format!(
            "no event names {}{more} in out/data, so nothing of it is kept; --out DIR brings it \
             out",
            shown.join(", ")
        ));
    }
    Ok(CommandVerdict::Well)
}

fn parse_secret_file(text: &str) -> Result<(String, String), ArgumentError> {
    match text.split_once('=') {
        Some((name, file)) if is_secret_name(name) && !file.is_empty() => {
            Ok((name.to_owned(), file.to_owned()))
        }
        _ => Err(ArgumentError::SecretFile),
    }
}

/// Returns where the module's secrets are: the given files before the folders. Checks that all are
/// there.
fn find_secrets(
    settings: &CommandSettings,
    module: &Module,
    given: &[(String, String)],
) -> Result<SecretFolders, CommandFailure> {
    let mut folders = settings.secret_folders()?;
    let known: Vec<&String> = module.secrets.iter().chain(secret_parameters(module)).collect();
    for (name, file) in given {
        if !known.contains(&name) {
            let words = known.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
            let words = if words.is_empty() { "none" } else { &words };
            let module = &module.name;
            return Err(CommandFailure(format!(
                "module {module:?} has no secret {name:?} (secrets: {words})"
            )));
        }
        folders.give(name, read_given(name, Path::new(file))?);
    }
    if module.executor != ExecutorKind::Kubernetes {
        folders.read_named(&module.secrets)?;
    }
    Ok(folders)
}

async fn find_module(ledger: &Ledger, args: &RunArgs) -> Result<Module, CommandFailure> {
    let Some(name) = &args.module else {
        let mut module = Module::new("run", args.argv.clone(), std::env::current_dir()?);
        module.emits = vec![ANY_TYPE.into()];
        module.privileged = args.privileged;
        module.secrets = args.secret_files.iter().map(|(name, _)| name.clone()).collect();
        module.check_programs(&search_path())?;
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
