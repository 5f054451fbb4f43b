//! `ion trace`: what came of an event, as a tree.

use std::collections::BTreeMap;

use clap::Args as ClapArgs;
use dispatcher::ledger::Ledger;
use dispatcher::progress::{Status, Trace};
use ionfs::clock;
use ionfs::event::{Event, KeyValue};
use ionfs::id::EventId;
use ionfs::record::{InsightRecord, JobRecord};
use ionfs::stores::{Collection, Query};
use serde_json::json;

use crate::settings::Settings;
use crate::{Failure, Outcome, Verdict, output};

/// Values of a job's insights that a tree shows.
const VALUES_MAX: usize = 100;

/// Show all that came of one first event, with times, sizes and states
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  ion trace                  the latest correlation
  ion trace 3f2b91c0         one whose id, or one of whose events' ids, begins like this
  ion trace --dot | dot -Tsvg > trace.svg")]
pub(crate) struct Args {
    /// A correlation's or an event's id, or the beginning of one [default: the latest]
    id: Option<String>,
    /// Print it as a graph for Graphviz
    #[arg(long, conflicts_with = "json")]
    dot: bool,
}

pub(crate) async fn run(settings: &Settings, args: Args) -> Outcome {
    let ledger = Ledger::new(settings.plane().await?);
    let correlation = match &args.id {
        Some(id) => find_correlation(&ledger, id).await?,
        None => latest(&ledger).await?.context.correlation_id.to_string(),
    };
    let trace = Trace::read(&ledger, &correlation).await?;
    if settings.json {
        output::json(&trace.documents());
    } else if args.dot {
        dot(&trace.status).iter().for_each(output::line);
    } else {
        for text in tree(&correlation, &trace.status, &trace.insights) {
            output::line(text);
        }
    }
    Ok(Verdict::Well)
}

/// The events, oldest first.
async fn events(ledger: &Ledger) -> Result<Vec<Event>, Failure> {
    let query = Query::equal(Collection::Events, vec![("context.documentType", json!("eventMeta"))])
        .order_by("created");
    Ok(ledger.plane().documents.find_as(query).await?)
}

async fn latest(ledger: &Ledger) -> Result<Event, Failure> {
    let first = events(ledger).await?.into_iter().rfind(|event| event.job_id.is_none());
    first.ok_or_else(|| Failure("there are no events yet; create one with `ion event create`".into()))
}

/// The event of an id, or of the only id that begins so.
pub(crate) async fn find_event(ledger: &Ledger, id: &str) -> Result<Event, Failure> {
    if let Some(event) = ledger.event(&EventId::new(id)).await? {
        return Ok(event);
    }
    let mut found: Vec<Event> =
        events(ledger).await?.into_iter().filter(|event| event.id.as_str().starts_with(id)).collect();
    match (found.pop(), found.len()) {
        (Some(event), 0) => Ok(event),
        (Some(_), more) => {
            Err(Failure(format!("{} events begin with {id:?}; give more of the id", more + 1)))
        }
        (None, _) => Err(Failure(format!("there is no event {id:?}"))),
    }
}

async fn find_correlation(ledger: &Ledger, id: &str) -> Result<String, Failure> {
    let mut found: Vec<String> = events(ledger)
        .await?
        .iter()
        .map(|e| e.context.correlation_id.to_string())
        .filter(|c| c.starts_with(id))
        .collect();
    found.sort_unstable();
    found.dedup();
    match (found.pop(), found.len()) {
        (Some(one), 0) => Ok(one),
        (Some(_), more) => {
            Err(Failure(format!("{} correlations begin with {id:?}; give more of the id", more + 1)))
        }
        (None, _) => {
            let event = find_event(ledger, id).await;
            Ok(event
                .map_err(|_| Failure(format!("there is no correlation and no event {id:?}")))?
                .context
                .correlation_id
                .to_string())
        }
    }
}

/// The tree as lines.
fn tree(correlation: &str, status: &Status, insights: &BTreeMap<String, InsightRecord>) -> Vec<String> {
    let mut lines = vec![format!("correlation {correlation}")];
    let known: std::collections::BTreeSet<&str> =
        status.events.iter().map(|event| event.id.as_str()).collect();
    let roots: Vec<&Event> =
        status.events.iter().filter(|e| !known.contains(e.context.parent_event_id.as_str())).collect();
    for (n, event) in roots.iter().enumerate() {
        branch(event, status, insights, "", n + 1 == roots.len(), &mut lines);
    }
    let seconds = match (status.events.first(), status.jobs.iter().filter_map(|job| job.ended).max()) {
        (Some(first), Some(last)) => format!(" in {}", output::duration((last - first.created).max(0))),
        _ => String::new(),
    };
    let verdict = output::state(status.verdict().as_str());
    lines.push(format!("{} events, {} jobs: {verdict}{seconds}", status.events.len(), status.jobs.len()));
    lines
}

fn branch(
    event: &Event,
    status: &Status,
    insights: &BTreeMap<String, InsightRecord>,
    indent: &str,
    last: bool,
    lines: &mut Vec<String>,
) {
    let (fork, below) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
    lines.push(format!("{indent}{fork}{}", event_line(event)));
    let indent = format!("{indent}{below}");
    let jobs: Vec<&JobRecord> = status.jobs.iter().filter(|job| job.event_id == event.id).collect();
    let children: Vec<&Event> =
        status.events.iter().filter(|child| child.context.parent_event_id == event.id.as_str()).collect();
    let orphans: Vec<&&Event> = children
        .iter()
        .filter(|child| !jobs.iter().any(|job| child.job_id.as_ref() == Some(&job.id)))
        .collect();
    let total = jobs.len() + orphans.len();
    for (n, job) in jobs.iter().enumerate() {
        let last = n + 1 == total;
        let (fork, below) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        lines.push(format!("{indent}{fork}{}", job_line(job)));
        let deeper = format!("{indent}{below}");
        if let Some(insight) = insights.get(job.id.as_str()) {
            let shown = |pair: &KeyValue| {
                format!("{}={}", output::of_others(&pair.key), output::of_others(&pair.value))
            };
            let mut values: Vec<String> = insight.data.iter().take(VALUES_MAX).map(shown).collect();
            if let Some(more @ 1..) = insight.data.len().checked_sub(VALUES_MAX) {
                values.push(format!("and {more} more"));
            }
            lines.push(format!("{deeper}· {}", output::coloured(&values.join(" "), output::Colour::Grey)));
        }
        let made: Vec<&&Event> =
            children.iter().filter(|child| child.job_id.as_ref() == Some(&job.id)).collect();
        for (n, child) in made.iter().enumerate() {
            branch(child, status, insights, &deeper, n + 1 == made.len(), lines);
        }
    }
    for (n, child) in orphans.iter().enumerate() {
        branch(child, status, insights, &indent, jobs.len() + n + 1 == total, lines);
    }
}

fn event_line(event: &Event) -> String {
    let bytes: u64 = event.files.iter().map(|file| file.size).sum();
    let files = match (&event.file_list, event.files.len()) {
        (Some(_), _) => "many files".to_owned(),
        (None, 0) => String::new(),
        (None, 1) => format!("{} ({})", output::of_others(&event.files[0].name), output::size(bytes)),
        (None, n) => format!("{n} files ({})", output::size(bytes)),
    };
    let event_type = output::coloured(&output::of_others(&event.event_type), output::Colour::Yellow);
    format!("{event_type}  {}  {files}", output::of_others(event.id.short())).trim_end().to_owned()
}

pub(crate) fn job_line(job: &JobRecord) -> String {
    let attempt = job.attempts.last();
    let took = attempt.map(|a| output::duration((a.ended.unwrap_or_else(clock::now) - a.started).max(0)));
    let tries = if job.attempt > 1 { format!("  attempt {}", job.attempt) } else { String::new() };
    let reason =
        attempt.and_then(|a| a.reason.clone()).filter(|_| job.state != ionfs::record::JobState::Succeeded);
    let reason = reason.map(|reason| format!("  {}", output::of_others(&reason))).unwrap_or_default();
    format!(
        "{} {}  {}  {}{tries}{reason}",
        output::state(job.state.as_str()),
        job.module,
        job.id.short(),
        took.unwrap_or_default()
    )
}

/// The graph in Graphviz's language, as lines.
fn dot(status: &Status) -> Vec<String> {
    // In quotes; what would end them, or the line, is escaped.
    let named = |text: &str| output::of_others(text).replace('\\', "\\\\").replace('"', "\\\"");
    let mut lines = vec!["digraph correlation {".to_owned(), "  rankdir=LR;".to_owned()];
    for event in &status.events {
        let (id, event_type) = (named(event.id.as_str()), named(&event.event_type));
        let short = named(event.id.short());
        lines.push(format!("  \"{id}\" [shape=box, label=\"{event_type}\\n{short}\"];"));
        let from = event.job_id.as_ref().map_or(event.context.parent_event_id.clone(), ToString::to_string);
        if !from.is_empty() {
            lines.push(format!("  \"{}\" -> \"{id}\";", named(&from)));
        }
    }
    for job in &status.jobs {
        let (id, module) = (named(job.id.as_str()), named(&job.module));
        lines.push(format!("  \"{id}\" [label=\"{module}\\n{}\"];", job.state.as_str()));
        lines.push(format!("  \"{}\" -> \"{id}\";", named(job.event_id.as_str())));
    }
    lines.push("}".to_owned());
    lines
}
