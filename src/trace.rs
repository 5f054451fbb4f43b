//! `ion trace`: the events and jobs of a correlation, as a tree or as a summary.

mod summary;
mod tree;

use clap::Args as ClapArgs;
use dispatcher::dispatch::served_modules;
use dispatcher::find::{find_correlation, latest_correlation};
use dispatcher::ledger::{Ledger, RegisteredModules};
use dispatcher::list::JobFilter;
use dispatcher::progress::Verdict;
use dispatcher::summary::{CorrelationSummary, OutdatedGather, outdated_gathers, read_summary};
use ionfs::event::{DocumentType, Event, is_staged};
use ionfs::record::{InsightRecord, JobRecord, JobState};
use ionfs::stores::{Collection, Pages, Query, decode};
use serde_json::{Value, json};

use self::summary::summary_lines;
use self::tree::print_tree;
use crate::job::{failure_reason, print_jobs, time_taken};
use crate::list::ListPartArgs;
use crate::settings::CommandSettings;
use crate::{CommandFailure, CommandResult, CommandVerdict, output};

/// A correlation of more events and jobs is shown as a summary unless the user asks for the tree.
const TREE_ROWS_MAX: u64 = 1000;

/// At most this many obstacles are named below the tree or the summary.
const OBSTACLES_MAX: usize = 20;

/// Show all events and jobs that came of one first event: as a tree, or as a summary if there are
/// more than 1000
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  ion trace                  show the latest correlation
  ion trace 3f2b91c0         show the one whose id, or one of whose events' ids, begins like this
  ion trace --summary        counts, times, rates and reasons of failures, by module
  ion trace --depth 2        the first events, their jobs, what these committed, and its jobs
  ion trace --failed         only its dead jobs, with their reasons
  ion --json trace           its events, insights and jobs, one document a line
  ion trace --dot | dot -Tsvg > trace.svg")]
pub(crate) struct TraceArgs {
    /// The id of a correlation or of one of its events, or the beginning of an id [default: the
    /// latest correlation]
    id: Option<String>,
    /// Show the summary, however small the correlation is
    #[arg(long, group = "form")]
    summary: bool,
    /// Show the whole tree, however large it is
    #[arg(long, group = "form")]
    all: bool,
    /// Show the tree down to this many generations of events
    #[arg(long, value_name = "N", group = "form")]
    depth: Option<usize>,
    /// List the dead jobs; with --module those of the module. The options of a list, such as --limit
    /// and --watch, are for --failed and --module
    #[arg(long, conflicts_with = "form")]
    failed: bool,
    /// List the jobs of this module
    #[arg(short, long, conflicts_with = "form")]
    module: Option<String>,
    /// Print the correlation as a graph for Graphviz
    #[arg(long, group = "form", conflicts_with = "json")]
    dot: bool,
    #[command(flatten)]
    part: ListPartArgs,
}

pub(crate) async fn run(settings: &CommandSettings, args: TraceArgs) -> CommandResult {
    let ledger = Ledger::new(settings.open_existing_plane().await?);
    let correlation = match &args.id {
        Some(id) => find_correlation(&ledger, id).await?,
        None => latest_correlation(&ledger).await?,
    };
    if !(args.failed || args.module.is_some()) && args.part != ListPartArgs::default() {
        return Err(CommandFailure(
            "--limit, --before, --after, --since, --until and --watch need --failed or --module: \
             a tree and a summary have no rows"
                .to_owned(),
        ));
    }
    if args.failed || args.module.is_some() {
        return list_jobs(settings, &ledger, &correlation, &args).await;
    }
    if args.dot {
        return print_dot(&ledger, &correlation).await;
    }
    if settings.json && !args.summary {
        return print_documents(&ledger, &correlation).await;
    }
    let registered = ledger.registered_modules().await?;
    let summary = read_summary(&ledger, &correlation, &registered).await?;
    if settings.json {
        output::print_json(&summary);
        return Ok(CommandVerdict::Well);
    }
    let is_large = summary.event_count() + summary.job_count() > TREE_ROWS_MAX;
    let wants_tree = args.all || args.depth.is_some();
    output::print_line(format!("correlation {}", output::escape_foreign(&correlation)));
    if args.summary || (is_large && !wants_tree) {
        summary_lines(&summary).iter().for_each(output::print_line);
    } else {
        print_tree(&ledger, &correlation, &registered, &summary, args.depth).await?;
    }
    output::print_line(verdict_line(&summary));
    let outdated = outdated_gathers(&ledger, &correlation, &registered).await?;
    outdated.iter().map(outdated_line).for_each(output::print_line);
    print_obstacles(&ledger, &summary).await?;
    if is_large && !wants_tree && !args.summary {
        output::print_message(
            "the tree is long: --all prints it, --depth N its first generations, --failed and \
             --module M only these jobs",
        );
    }
    Ok(CommandVerdict::Well)
}

async fn list_jobs(
    settings: &CommandSettings,
    ledger: &Ledger,
    correlation: &str,
    args: &TraceArgs,
) -> CommandResult {
    let filter = |state: Option<JobState>| JobFilter {
        module: args.module.clone(),
        state,
        correlation: Some(correlation.to_owned()),
        time: args.part.time(),
    };
    print_jobs(settings, ledger, filter(args.failed.then_some(JobState::Dead)), &args.part).await
}

/// Prints what keeps the correlation from ending.
async fn print_obstacles(
    ledger: &Ledger,
    summary: &CorrelationSummary,
) -> Result<(), CommandFailure> {
    // A correlation that has ended waits for dead jobs only, and the tree shows those.
    let waits = summary.modules.iter().any(|module| module.count(JobState::Waiting) > 0);
    if summary.verdict != Verdict::Running && !waits {
        return Ok(());
    }
    let obstacles = summary.open_work().obstacles(&served_modules(ledger).await?);
    for obstacle in obstacles.iter().take(OBSTACLES_MAX) {
        output::print_line(format!("waits for {}", output::escape_foreign(&obstacle.to_string())));
    }
    if let Some(more @ 1..) = obstacles.len().checked_sub(OBSTACLES_MAX) {
        output::print_line(format!("and for {more} more"));
    }
    Ok(())
}

fn verdict_line(summary: &CorrelationSummary) -> String {
    let took = match (summary.first, summary.last) {
        (Some(first), Some(last)) => {
            format!(" in {}", output::format_duration((last - first).max(0)))
        }
        _ => String::new(),
    };
    let (events, jobs) = (summary.event_count(), summary.job_count());
    let verdict = output::coloured_state(summary.verdict.as_str());
    format!("{events} events, {jobs} jobs: {verdict}{took}")
}

/// Returns the line of a gathering job that ran before a job below it was run again, and so lacks
/// the new results.
pub(crate) fn outdated_line(outdated: &OutdatedGather) -> String {
    let OutdatedGather { gatherer, again } = outdated;
    format!(
        "{} {} ran without {} {}, which was run again since: its results lack the new ones",
        gatherer.module,
        gatherer.id.short(),
        again.module,
        again.id.short()
    )
}

pub(crate) fn job_line(job: &JobRecord) -> String {
    let tries = if job.attempt > 1 { format!("  attempt {}", job.attempt) } else { String::new() };
    let reason = failure_reason(job).map(|reason| format!("  {}", output::escape_foreign(reason)));
    format!(
        "{} {}  {}  {}{tries}{}",
        output::coloured_state(job.state.as_str()),
        job.module,
        job.id.short(),
        time_taken(job),
        reason.unwrap_or_default()
    )
}

/// Returns the pages of a correlation's documents of this kind, oldest first.
fn documents_of(correlation: &str, kind: DocumentType) -> Pages {
    let equals =
        vec![("context.correlationId", json!(correlation)), ("context.documentType", json!(kind))];
    Pages::new(Query::equal(Collection::Events, equals), "created")
}

/// Returns the pages of a correlation's jobs, oldest first.
fn jobs_of(correlation: &str) -> Pages {
    Pages::new(
        Query::equal(Collection::Jobs, vec![("correlationId", json!(correlation))]),
        "created",
    )
}

/// Calls `take` with one document after another, until nobody reads what it prints.
async fn for_each_document(
    ledger: &Ledger,
    mut pages: Pages,
    mut take: impl FnMut(Value) -> Result<(), CommandFailure>,
) -> Result<(), CommandFailure> {
    while let Some(page) = pages.next(&*ledger.plane().documents).await? {
        page.into_iter().try_for_each(&mut take)?;
        if output::has_no_reader() {
            break;
        }
    }
    Ok(())
}

/// Prints the correlation's documents: events, insights, jobs.
async fn print_documents(ledger: &Ledger, correlation: &str) -> CommandResult {
    let events = documents_of(correlation, DocumentType::EventMeta);
    for_each_document(ledger, events, |document| {
        if !is_staged(&document) {
            output::print_json_line(&document);
        }
        Ok(())
    })
    .await?;
    let insights = documents_of(correlation, DocumentType::Insight);
    for_each_document(ledger, insights, |document| {
        let insight: InsightRecord = decode(Collection::Events, document)?;
        if !insight.staged {
            output::print_json_line(&insight.shown_document());
        }
        Ok(())
    })
    .await?;
    print_job_documents(ledger, correlation).await?;
    Ok(CommandVerdict::Well)
}

/// Prints the documents of a correlation's jobs, oldest first.
pub(crate) async fn print_job_documents(
    ledger: &Ledger,
    correlation: &str,
) -> Result<(), CommandFailure> {
    for_each_document(ledger, jobs_of(correlation), |document| {
        output::print_json_line(&document);
        Ok(())
    })
    .await
}

/// Prints the graph in Graphviz's language.
async fn print_dot(ledger: &Ledger, correlation: &str) -> CommandResult {
    // Names are put in quotes, so quotes, backslashes and line breaks in them are escaped.
    let escape =
        |text: &str| output::escape_foreign(text).replace('\\', "\\\\").replace('"', "\\\"");
    output::print_line("digraph correlation {");
    output::print_line("  rankdir=LR;");
    for_each_document(ledger, documents_of(correlation, DocumentType::EventMeta), |document| {
        if is_staged(&document) {
            return Ok(());
        }
        let event: Event = decode(Collection::Events, document)?;
        let (id, event_type) = (escape(event.id.as_str()), escape(&event.event_type));
        let short = escape(event.id.short());
        output::print_line(format!("  \"{id}\" [shape=box, label=\"{event_type}\\n{short}\"];"));
        let parent = &event.context.parent_event_id;
        let from = event.job_id.as_ref().map_or(parent.clone(), ToString::to_string);
        if !from.is_empty() {
            output::print_line(format!("  \"{}\" -> \"{id}\";", escape(&from)));
        }
        Ok(())
    })
    .await?;
    for_each_document(ledger, jobs_of(correlation), |document| {
        let job: JobRecord = decode(Collection::Jobs, document)?;
        let (id, module) = (escape(job.id.as_str()), escape(&job.module));
        output::print_line(format!("  \"{id}\" [label=\"{module}\\n{}\"];", job.state.as_str()));
        output::print_line(format!("  \"{}\" -> \"{id}\";", escape(job.event_id.as_str())));
        Ok(())
    })
    .await?;
    output::print_line("}");
    Ok(CommandVerdict::Well)
}

/// Returns the remarks that stand below an event's line: which modules their `where` kept it from.
fn event_remarks(registered: &RegisteredModules, event: &Event) -> Vec<String> {
    let kept_from = registered.modules_with_unmet_terms(event);
    kept_from
        .map(|(module, unmet)| {
            format!("not for {}: {}", module.name, output::escape_foreign(&unmet))
        })
        .collect()
}
