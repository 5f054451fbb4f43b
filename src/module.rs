//! `ion module`: list, get, create, delete.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use dispatcher::ledger::Ledger;
use dispatcher::pipeline::{Module, Pipeline};
use ionfs::event::is_event_type;

use crate::settings::{Settings, search_path};
use crate::{Failure, Outcome, Verdict, output};

/// Register modules, and look at them
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the registered modules
    List,
    /// Print a module's document
    Get(NameArgs),
    Create(CreateArgs),
    /// Remove a module and what waits in its queue; its jobs stay in the ledger
    Delete(NameArgs),
}

/// A module's name.
#[derive(Debug, Args)]
pub(crate) struct NameArgs {
    /// The module
    #[arg(value_name = "NAME")]
    name: String,
}

/// Register a module, or all modules of a pipeline file
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ion module create --pipeline examples/words/pipeline.yaml
  ion module create -n shout -i text -o loud -- tr a-z A-Z")]
pub(crate) struct CreateArgs {
    /// The pipeline file whose modules to register
    #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "on", "emits", "argv"])]
    pipeline: Option<PathBuf>,
    /// The module's name
    #[arg(short, long, required_unless_present = "pipeline")]
    name: Option<String>,
    /// An event type it starts on
    #[arg(short = 'i', long, value_name = "TYPE")]
    on: Vec<String>,
    /// An event type it may publish
    #[arg(short = 'o', long, value_name = "TYPE")]
    emits: Vec<String>,
    /// The program and its arguments
    #[arg(last = true, value_name = "ARGV")]
    argv: Vec<String>,
}

pub(crate) async fn run(settings: &Settings, command: Command) -> Outcome {
    let ledger = Ledger::new(settings.plane().await?);
    match command {
        Command::List => list(settings, &ledger).await,
        Command::Get(args) => match ledger.module(&args.name).await? {
            Some(module) => {
                output::json(&module);
                Ok(Verdict::Well)
            }
            None => Err(unknown(&args.name)),
        },
        Command::Create(args) => create(&ledger, args).await,
        Command::Delete(args) => {
            if !ledger.delete_module(&args.name).await? {
                return Err(unknown(&args.name));
            }
            output::say(&format!("module {:?} is removed", args.name));
            Ok(Verdict::Well)
        }
    }
}

fn unknown(name: &str) -> Failure {
    Failure(format!("there is no module {name:?}; `ion module list` shows what there is"))
}

async fn list(settings: &Settings, ledger: &Ledger) -> Outcome {
    let modules = ledger.modules().await?;
    if settings.json {
        output::json(&modules);
        return Ok(Verdict::Well);
    }
    let row = |m: &Module| {
        let on = match (&m.gather, &m.per) {
            (Some(gather), Some(per)) => format!("all {gather} per {per}"),
            _ => m.on.join(", "),
        };
        vec![m.name.clone(), on, m.emits.join(", "), m.run.join(" ")]
    };
    output::table(&["MODULE", "ON", "EMITS", "RUNS"], &modules.iter().map(row).collect::<Vec<_>>());
    Ok(Verdict::Well)
}

async fn create(ledger: &Ledger, args: CreateArgs) -> Outcome {
    let modules = match (args.pipeline, args.name) {
        (Some(file), _) => Pipeline::load(&file, &search_path())?.modules,
        (None, name) => {
            let name = name.unwrap_or_default();
            let mut module = Module::new(&name, args.argv, std::env::current_dir()?);
            module.on = args.on;
            module.emits = args.emits;
            for text in module.on.iter().chain(&module.emits).chain([&module.name]) {
                if !is_event_type(text) {
                    return Err(Failure(format!(
                        "{text:?} cannot be a name: letters, digits, '.', '_' and '-' are allowed"
                    )));
                }
            }
            if module.on.is_empty() {
                return Err(Failure("no event type given with --on: nothing would ever start it".into()));
            }
            module.check_programs(&search_path()).map_err(Failure)?;
            vec![module]
        }
    };
    for module in &modules {
        ledger.put_module(module).await?;
        output::say(&format!("module {:?} is registered", module.name));
    }
    Ok(Verdict::Well)
}
