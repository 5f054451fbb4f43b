//! `ion source import`: sources from the list of jobs of the older ingest service.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::PathBuf;

use clap::Args;
use dispatcher::ledger::Ledger;
use dispatcher::pipeline::{SourceFields, ValueText};
use dispatcher::sources::Sources;
use dispatcher::sources::older::{
    OlderImport, OlderJob, OlderJobError, OlderOutcome, OlderType, PERIOD, read_list,
};
use ionfs::errors::error_chain;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::settings::CommandSettings;
use crate::{CommandFailure, CommandResult, CommandVerdict, output};

/// How many jobs are read before they are imported.
const READ_AHEAD: usize = 64;

/// Add a source for each job of the older ingest service
///
/// The service kept its jobs under the key "list_job" in etcd, as one JSON array. A job that was
/// imported before is left as it is. What cannot be imported is named, the rest is imported, and the
/// exit code is 1. Credentials among the parameters, such as "consumerSecret", are left out and
/// named.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  etcdctl get --print-value-only e3w_test/list_job > list_job.json
  ion source import list_job.json --module ARTICLE=feed --module TWITTER=tweets --dry-run
  ion source import list_job.json --module ARTICLE=feed --every 15m --first new")]
pub(crate) struct SourceImportArgs {
    /// The file with the list; - is the standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The module that the jobs of a type start, such as ARTICLE=feed; may be repeated
    #[arg(short = 'm', long = "module", value_name = "TYPE=MODULE", required = true)]
    types: Vec<OlderType>,
    /// The period of each source; the older service had five seconds, which few servers put up with
    #[arg(long, default_value = PERIOD, value_name = "TIME")]
    every: String,
    /// How much of what is there the first run of each source publishes: new, all, or a number
    #[arg(long, value_name = "HOW-MUCH")]
    first: Option<String>,
    /// Add nothing, and say what would be added
    #[arg(long)]
    dry_run: bool,
}

/// How many jobs became what.
#[derive(Debug, Default)]
struct ImportCounts {
    added: usize,
    known: usize,
    refused: usize,
}

pub(super) async fn import(
    settings: &CommandSettings,
    ledger: &Ledger,
    args: SourceImportArgs,
) -> CommandResult {
    let sources = Sources::new(ledger.clone());
    let modules = sources.modules().await?;
    let types = args.types.into_iter().collect();
    let fields = SourceFields {
        every: Some(args.every),
        first: args.first.map(ValueText),
        ..SourceFields::default()
    };
    let import = if args.dry_run { OlderImport::Try } else { OlderImport::Store };
    let list: Box<dyn Read + Send> = match args.file.to_str() {
        Some("-") => Box::new(std::io::stdin()),
        _ => Box::new(File::open(&args.file).map_err(|error| {
            CommandFailure(format!("{} cannot be read: {error}", args.file.display()))
        })?),
    };
    let (entries, mut read) = mpsc::channel::<Value>(READ_AHEAD);
    let reading = tokio::task::spawn_blocking(move || {
        read_list(BufReader::new(list), |entry| entries.blocking_send(entry).is_ok())
    });
    let mut counts = ImportCounts::default();
    let mut number = 0_usize;
    while let Some(entry) = read.recv().await {
        number += 1;
        let name = entry["name"].as_str().map_or_else(
            || format!("job {number} of the list"),
            |name| format!("job {}", ionfs::text::quote(name)),
        );
        let imported = async {
            let job = OlderJob::from_json(&entry)?;
            sources.add_older(&job, &types, &modules, &fields, import).await
        };
        report(settings, &name, import, &imported.await, &mut counts)?;
    }
    let ImportCounts { added, known, refused } = counts;
    let verb = if args.dry_run { "would be added" } else { "are added" };
    output::print_message(&format!(
        "{added} sources {verb}, {known} are there already, {refused} jobs cannot be imported"
    ));
    reading.await?.map_err(|error| {
        CommandFailure(format!(
            "{} is no list of jobs: {error}; what stands before that is dealt with",
            args.file.display()
        ))
    })?;
    Ok(if refused == 0 { CommandVerdict::Well } else { CommandVerdict::Failed })
}

/// Says what became of a job.
fn report(
    settings: &CommandSettings,
    name: &str,
    import: OlderImport,
    outcome: &Result<OlderOutcome, OlderJobError>,
    counts: &mut ImportCounts,
) -> Result<(), CommandFailure> {
    let outcome = match outcome {
        Ok(outcome) => outcome,
        // The stores failed, and would fail for every other job too.
        Err(OlderJobError::Source(error)) => return Err(CommandFailure(error_chain(error))),
        Err(error) => {
            counts.refused += 1;
            output::print_message(&format!("{name} is not imported: {}", error_chain(error)));
            return Ok(());
        }
    };
    *(if outcome.added { &mut counts.added } else { &mut counts.known }) += 1;
    if settings.json {
        output::print_json_line(&json!({
            "source": outcome.source, "added": outcome.added, "leftOut": outcome.left_out,
        }));
    } else {
        let what = match (outcome.added, import) {
            (true, OlderImport::Store) => "added",
            (true, OlderImport::Try) => "would be added",
            (false, _) => "there already",
        };
        output::print_line(format!("{}  {what}", outcome.source));
    }
    if !outcome.left_out.is_empty() && outcome.added {
        output::print_message(&format!(
            "{name}: a source keeps no credentials, so {} is left out; its module must have them \
             from elsewhere",
            outcome.left_out.join(", ")
        ));
    }
    Ok(())
}
