//! `ion source try`: the module of a source once, without a trace.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use dispatcher::dispatch::trial::{compare_states, open_trial_plane};
use dispatcher::executor::left::OutputCollector;
use dispatcher::ledger::Ledger;
use dispatcher::pipeline::{Module, Pipeline, SourceFields, define_tried_source};
use dispatcher::sources::Sources;
use ionfs::event::{Event, is_staged};
use ionfs::home::{make_home, make_private_folder};
use ionfs::node::Node;
use ionfs::record::AttemptEnd;
use ionfs::source::{LeftState, SourceDefinition, StateFiles};
use ionfs::stores::{Collection, DataPlane, Pages, Query, decode};
use serde_json::{Map, Value, json};

use super::ScheduleFlags;
use crate::files::is_new_or_empty;
use crate::run::{print_copied_files, run_and_show};
use crate::settings::{CommandSettings, search_path};
use crate::{CommandFailure, CommandResult, CommandVerdict, doctor, output};

/// The period of a source that is only tried.
const ANY_PERIOD: &str = "1h";

/// Run the module of a source once on this machine, and publish and remember nothing
///
/// It begins with the source's state and values, and prints which events it would publish and what
/// the state would become. A source that does not exist yet is described by the flags of `ion source
/// add`; of one that exists, they change what they name for this run.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ion source try bbc-top
  ion source try bbc-top --with url=https://feeds.example/world.xml --without-state
  ion source try new --module feed --with url=https://feeds.example/news.xml
  ion source try bbc-top --pipeline pipeline.yaml      before `ion up` has registered it")]
pub(crate) struct SourceTryArgs {
    /// The source's name
    #[arg(value_name = "NAME")]
    name: String,
    /// The module that it starts, for a source that does not exist yet
    #[arg(short, long)]
    module: Option<String>,
    /// Take the module from this pipeline file, and the source, too, if the file has it
    #[arg(short, long, value_name = "FILE")]
    pipeline: Option<PathBuf>,
    /// Begin as the first run does, without what the last run has left
    #[arg(long)]
    without_state: bool,
    /// Copy all of out/data into this folder
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    schedule: ScheduleFlags,
}

/// What is to be run.
struct Tried {
    definition: SourceDefinition,
    module: Module,
    state: StateFiles,
}

pub(super) async fn try_source(settings: &CommandSettings, args: SourceTryArgs) -> CommandResult {
    if let Some(out) = args.out.as_deref().filter(|out| !is_new_or_empty(out)) {
        return Err(CommandFailure(format!(
            "{} is not an empty folder: copies of out/data need a new or an empty one",
            out.display()
        )));
    }
    // A pipeline file can be tried before anything has been run.
    let nothing_yet = args.pipeline.is_some() && settings.urls().missing_database().is_some();
    let real = if nothing_yet { None } else { Some(settings.open_existing_plane().await?) };
    let (name, out) = (args.name.clone(), args.out.clone());
    let Tried { definition, module, state } = find_tried(real.as_ref(), args).await?;
    let secrets = settings.secret_folders()?;
    doctor::check_device()?;
    make_home(&settings.home)?;
    let jobs = settings.home.join("jobs");
    make_private_folder(&jobs)?;
    // It goes with everything in it when this command ends.
    let folder = tempfile::Builder::new().prefix("trial-").tempdir_in(&jobs)?;
    let plane = open_trial_plane(folder.path(), real.as_ref()).await?;
    let sources = Sources::new(Ledger::new(plane.clone()));
    let event = sources.trial_event(&name, definition, state.clone()).await?;
    let correlation = event.context.correlation_id.clone();
    let node = Node::new(plane.clone(), settings.node_settings())?;
    let collector = Arc::new(OutputCollector::new(out.clone()));
    let module_name = module.name.clone();
    let ended = run_and_show(settings, node, secrets, module, event, collector.clone()).await?;
    if let Some(out) = &out {
        print_copied_files(&collector.found(), out)?;
    }
    if ended.outcome.end != AttemptEnd::Succeeded {
        let reason = ended.outcome.reason.unwrap_or_default();
        return Err(CommandFailure(format!(
            "{module_name}: {reason}; a run that fails publishes nothing, and its state stays as it \
             was"
        )));
    }
    print_events(settings, &plane, correlation.as_str()).await?;
    let left = ended.job.left.as_deref().cloned().unwrap_or_default();
    print_state(settings, &plane, &state, &left).await?;
    Ok(CommandVerdict::Well)
}

/// Finds the module, and what its run begins with.
async fn find_tried(
    real: Option<&DataPlane>,
    args: SourceTryArgs,
) -> Result<Tried, CommandFailure> {
    let file = args.pipeline.as_deref();
    let pipeline = file.map(|file| Pipeline::load(file, &search_path())).transpose()?;
    let sources = real.map(|real| Sources::new(Ledger::new(real.clone())));
    let (found, registered) = match &sources {
        Some(sources) => (sources.find(&args.name).await?, sources.modules().await?),
        None => (None, vec![]),
    };
    let (declared, modules) = match pipeline {
        Some(pipeline) => (pipeline.sources.get(&args.name).cloned(), pipeline.modules),
        None => (None, registered),
    };
    let base = declared.or_else(|| found.as_ref().map(|found| found.definition.clone()));
    let mut fields = args.schedule.into_patch();
    if let Some(module) = args.module {
        fields.insert("module".to_owned(), json!(module));
    }
    let fields: Map<String, Value> = match &base {
        Some(base) => SourceFields::patched(base, &fields),
        None if fields.contains_key("module") => {
            if !fields.contains_key("every") && !fields.contains_key("at") {
                fields.insert("every".to_owned(), json!(ANY_PERIOD));
            }
            fields
        }
        None => {
            return Err(CommandFailure(format!(
                "there is no source {:?}; --module and --with describe one that does not exist yet",
                args.name
            )));
        }
    };
    let module = |name: &str| modules.iter().find(|module| module.name == name);
    let definition = define_tried_source(&args.name, fields, module)?;
    let state = found.filter(|_| !args.without_state).map(|found| found.state).unwrap_or_default();
    let module = module(&definition.module).cloned();
    let module = module.expect("a definition names a module that exists");
    Ok(Tried { definition, module, state })
}

/// Prints what the run would publish.
async fn print_events(
    settings: &CommandSettings,
    plane: &DataPlane,
    correlation: &str,
) -> Result<(), CommandFailure> {
    let of_run = vec![
        ("context.correlationId", json!(correlation)),
        ("context.documentType", json!("eventMeta")),
    ];
    let mut pages = Pages::new(Query::equal(Collection::Events, of_run), "created");
    let mut count = 0_usize;
    while let Some(page) = pages.next(&*plane.documents).await? {
        for document in page.into_iter().filter(|document| !is_staged(document)) {
            let event: Event = decode(Collection::Events, document)?;
            if event.job_id.is_none() {
                continue;
            }
            count += 1;
            print_event(settings, plane, &event).await?;
        }
    }
    if !settings.json && count == 0 {
        output::print_line("it would publish nothing");
    }
    Ok(())
}

async fn print_event(
    settings: &CommandSettings,
    plane: &DataPlane,
    event: &Event,
) -> Result<(), CommandFailure> {
    let files = plane.files_of(event).await?;
    let name = event.file_name.as_deref().unwrap_or_default();
    if settings.json {
        let files: Vec<Value> =
            files.iter().map(|file| json!({"name": file.name, "size": file.size})).collect();
        output::print_json_line(&json!({
            "publishes": event.event_type, "eventFile": name, "data": event.data, "files": files,
        }));
        return Ok(());
    }
    let name = output::escape_foreign(name);
    output::print_line(format!("would publish {} (out/events/{name})", event.event_type));
    for pair in &event.data {
        let value = output::escape_foreign(&pair.value);
        output::print_line(format!("    {} = {value}", output::escape_foreign(&pair.key)));
    }
    for file in &files {
        let (name, size) = (output::escape_foreign(&file.name), output::format_size(file.size));
        output::print_line(format!("    file {name} ({size})"));
    }
    Ok(())
}

/// Prints what the state would become.
async fn print_state(
    settings: &CommandSettings,
    plane: &DataPlane,
    before: &StateFiles,
    left: &LeftState,
) -> Result<(), CommandFailure> {
    let files = compare_states(plane, before, &left.state).await?;
    if settings.json {
        output::print_json_line(&json!({
            "state": files, "notBefore": left.not_before, "gone": left.gone,
        }));
        return Ok(());
    }
    output::print_line("the state would be:");
    for file in &files {
        let (name, size) = (output::escape_foreign(&file.name), output::format_size(file.size));
        output::print_line(format!("    {name} ({size}), {}", file.change.as_str()));
    }
    if files.is_empty() {
        output::print_line("    no files");
    }
    if let Some(time) = left.not_before {
        let time = output::format_time(time);
        output::print_line(format!("no scheduled run would begin before {time}"));
    }
    if let Some(reason) = &left.gone {
        let reason = output::escape_foreign(reason);
        output::print_line(format!("the source would be gone: {reason}"));
    }
    Ok(())
}
