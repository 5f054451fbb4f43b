//! `ion module`: list, get, create, delete.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use dispatcher::ledger::Ledger;
use dispatcher::pipeline::{Module, Pipeline};
use dispatcher::version::version_pages;
use ionfs::record::shown_module;
use ionfs::stores::{Collection, decode, encode};
use ionfs::version::VersionRecord;
use serde_json::{Map, Value, json};

use crate::event::parse_pair;
use crate::settings::{CommandSettings, search_path};
use crate::up::print_misspelled_types;
use crate::{CommandFailure, CommandResult, CommandVerdict, output};

/// Register, list and remove modules
#[derive(Debug, Subcommand)]
pub(crate) enum ModuleCommand {
    /// List the registered modules
    List,
    Get(ModuleGetArgs),
    Create(Box<ModuleCreateArgs>),
    /// Remove a module and the messages in its queue; its jobs stay in the ledger
    Delete(NameArgs),
}

/// The name of a module.
#[derive(Debug, Args)]
pub(crate) struct NameArgs {
    /// The module's name
    #[arg(value_name = "NAME")]
    name: String,
}

/// Print a module's document, or the versions of it that attempts have run
///
/// Of the module's environment it has the names of the variables, and no values.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ion module get sample
  ion module get sample --versions         what its jobs have run since when; the latest last
  ion --json module get sample --versions  with the digests of its files, one document a line")]
pub(crate) struct ModuleGetArgs {
    /// The module's name
    #[arg(value_name = "NAME")]
    name: String,
    /// List its versions instead; those of a module that was removed are kept, too
    #[arg(long)]
    versions: bool,
}

/// Register a module, or all modules of a pipeline file
///
/// Running dispatchers without a pipeline file of their own serve it at once. It replaces a
/// registered module of the same name. The flags mean the same as the fields of a pipeline file,
/// and are checked in the same way.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ion module create --pipeline examples/words/pipeline.yaml
  ion module create -n shout -i text -o loud -- tr a-z A-Z
  ion module create -n thumb -i photo -o thumb --image registry.example/thumb:1
  ion module create -n crops -i frame -o crop --image crops:1 --executor kubernetes --timeout 1h")]
pub(crate) struct ModuleCreateArgs {
    /// The pipeline file whose modules to register
    #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "ModuleFlags"])]
    pipeline: Option<PathBuf>,
    /// The module's name
    #[arg(short, long, required_unless_present = "pipeline")]
    name: Option<String>,
    #[command(flatten)]
    flags: ModuleFlags,
}

/// A module's fields in a pipeline file, as flags.
#[derive(Debug, Args)]
struct ModuleFlags {
    /// An event type that the module starts on; may be repeated
    #[arg(short = 'i', long, value_name = "TYPE", required_unless_present = "pipeline")]
    on: Vec<String>,
    /// A term that an event must meet to start the module, for instance kind=car|bus, score>=0.8 or
    /// files=*.png; may be repeated
    #[arg(long = "where", value_name = "TERM")]
    terms: Vec<String>,
    /// An event type that the module may publish; may be repeated
    #[arg(short = 'o', long, value_name = "TYPE")]
    emits: Vec<String>,
    /// The image that its jobs run from: name:tag, name@sha256:..., oci:FOLDER[:TAG],
    /// oci-archive:FILE or docker-archive:FILE
    #[arg(long)]
    image: Option<String>,
    /// The executor of its jobs: local, container (from an image, on this machine) or kubernetes
    /// (pods) [default: container with an image, local without]
    #[arg(long)]
    executor: Option<String>,
    /// The network of a container: none or host [default: none]
    #[arg(long)]
    network: Option<String>,
    /// The user that a container runs as, for instance 1000:1000 [default: as the image says]
    #[arg(long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// A resource of a container or pod: cpu=500m, memory=256Mi, gpu=1 (kubernetes only)
    #[arg(long = "resource", value_name = "NAME=QUANTITY", value_parser = parse_pair)]
    resources: Vec<(String, String)>,
    /// Let its program keep the daemon's capabilities, and see the machine's devices and settings;
    /// docs/security.md says what that means
    #[arg(long)]
    privileged: bool,
    /// An environment variable for its jobs; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    env: Vec<(String, String)>,
    /// The name of a secret that its jobs read as the file /run/secrets/NAME; may be repeated
    #[arg(long = "secret", value_name = "NAME")]
    secret_names: Vec<String>,
    /// When its events are committed: on-close (each when its file is closed) or on-success (all
    /// when the job has succeeded) [default: on-close]
    #[arg(long, value_name = "WHEN")]
    commit: Option<String>,
    /// How long one attempt may take, for instance 30s or 2h [default: 10m]
    #[arg(long)]
    timeout: Option<String>,
    /// How often a failed job is retried [default: 3]
    #[arg(long, value_name = "N")]
    retries: Option<u32>,
    /// How many of its jobs one dispatcher runs at the same time at most [default: one for each
    /// processor]
    #[arg(long, value_name = "N")]
    concurrency: Option<usize>,
    /// How many waiting events one process takes at most [default: a process for each event]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// The program and its arguments; with an image, paths are paths in the image [default: as the
    /// image says]
    #[arg(last = true, value_name = "ARGV", required_unless_present_any = ["pipeline", "image"])]
    run: Vec<String>,
}

impl ModuleFlags {
    /// Returns the fields that were given, as a pipeline file would have them.
    fn into_fields(self) -> Map<String, Value> {
        let Self {
            on,
            terms,
            emits,
            image,
            executor,
            network,
            user,
            resources,
            privileged,
            env,
            secret_names,
            commit,
            timeout,
            retries,
            concurrency,
            batch,
            run,
        } = self;
        let map = |pairs: Vec<(String, String)>| {
            (!pairs.is_empty()).then(|| pairs.into_iter().collect::<Value>())
        };
        let fields = [
            ("on", Some(json!(on))),
            ("where", (!terms.is_empty()).then(|| json!(terms))),
            ("emits", Some(json!(emits))),
            ("image", image.map(Value::from)),
            ("executor", executor.map(Value::from)),
            ("network", network.map(Value::from)),
            ("user", user.map(Value::from)),
            ("resources", map(resources)),
            ("privileged", privileged.then(|| Value::from(true))),
            ("env", map(env)),
            ("secrets", (!secret_names.is_empty()).then(|| json!(secret_names))),
            ("commit", commit.map(Value::from)),
            ("timeout", timeout.map(Value::from)),
            ("retries", retries.map(Value::from)),
            ("concurrency", concurrency.map(Value::from)),
            ("batch", batch.map(Value::from)),
            ("run", (!run.is_empty()).then(|| json!(run))),
        ];
        fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

pub(crate) async fn run(settings: &CommandSettings, command: ModuleCommand) -> CommandResult {
    let plane = match command {
        ModuleCommand::Create(_) => settings.open_plane().await?,
        _ => settings.open_existing_plane().await?,
    };
    let ledger = Ledger::new(plane);
    match command {
        ModuleCommand::List => list(settings, &ledger).await,
        ModuleCommand::Get(args) if args.versions => {
            list_versions(settings, &ledger, &args.name).await
        }
        ModuleCommand::Get(args) => match ledger.module(&args.name).await? {
            Some(module) => {
                output::print_json(&shown_module(encode(&module)));
                Ok(CommandVerdict::Well)
            }
            None => Err(unknown_module(&args.name)),
        },
        ModuleCommand::Create(args) => create(&ledger, *args).await,
        ModuleCommand::Delete(args) => {
            if !ledger.delete_module(&args.name).await? {
                return Err(unknown_module(&args.name));
            }
            output::print_message(&format!("module {:?} is removed", args.name));
            Ok(CommandVerdict::Well)
        }
    }
}

fn unknown_module(name: &str) -> CommandFailure {
    CommandFailure(format!("there is no module {name:?}; `ion module list` shows all modules"))
}

async fn list(settings: &CommandSettings, ledger: &Ledger) -> CommandResult {
    let modules = ledger.modules().await?;
    if settings.json {
        let shown = modules.iter().map(|module| shown_module(encode(module)));
        shown.for_each(|module| output::print_json_line(&module));
        return Ok(CommandVerdict::Well);
    }
    let row = |m: &Module| {
        let on = match (&m.gather, &m.per) {
            (Some(gather), Some(per)) => format!("all {gather} per {per}"),
            _ => m.on.join(", "),
        };
        let on = match m.terms.is_empty() {
            true => on,
            false => format!("{on} where {}", m.terms),
        };
        let image = m.container.as_ref().map(|container| container.image.to_string());
        let runs = image.into_iter().chain(m.run.iter().cloned()).collect::<Vec<_>>().join(" ");
        vec![m.name.clone(), on, m.emits.join(", "), runs]
    };
    let mut table = output::Table::new(&["MODULE", "ON", "EMITS", "RUNS"]);
    table.print_rows(modules.iter().map(row).collect());
    table.print_heading();
    Ok(CommandVerdict::Well)
}

/// Lists the versions of a module in the order in which attempts ran them first.
async fn list_versions(settings: &CommandSettings, ledger: &Ledger, name: &str) -> CommandResult {
    let documents = &*ledger.plane().documents;
    let (mut pages, mut versions) = (version_pages(name), Vec::new());
    while let Some(page) = pages.next(documents).await? {
        for document in page {
            versions.push(decode::<VersionRecord>(Collection::Plane, document)?);
        }
    }
    if versions.is_empty() && ledger.module(name).await?.is_none() {
        return Err(unknown_module(name));
    }
    versions.sort_by_key(|version| version.first_seen);
    if settings.json {
        versions.iter().for_each(output::print_json_line);
        return Ok(CommandVerdict::Well);
    }
    let row = |version: &VersionRecord| {
        vec![
            version.version.to_string(),
            output::format_age(version.first_seen),
            version.command_line(),
        ]
    };
    let mut table = output::Table::new(&["VERSION", "FIRST RUN", "RUNS"]);
    table.print_rows(versions.iter().map(row).collect());
    table.print_heading();
    Ok(CommandVerdict::Well)
}

async fn create(ledger: &Ledger, args: ModuleCreateArgs) -> CommandResult {
    let modules = match (args.pipeline, args.name) {
        (Some(file), _) => Pipeline::load(&file, &search_path())?.modules,
        (None, name) => {
            let (name, directory) = (name.unwrap_or_default(), std::env::current_dir()?);
            let module = Module::from_fields(&name, &args.flags.into_fields(), &directory)?;
            module.check_programs(&search_path())?;
            vec![module]
        }
    };
    print_misspelled_types(ledger, &modules).await?;
    for module in &modules {
        ledger.put_module(module).await?;
        output::print_message(&format!("module {:?} is registered", module.name));
    }
    Ok(CommandVerdict::Well)
}
