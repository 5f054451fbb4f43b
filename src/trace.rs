//! `ion trace`: the events and jobs of a correlation, as a tree.

use std::collections::{BTreeMap, HashMap, HashSet};

use clap::Args as ClapArgs;
use dispatcher::dispatch::served_modules;
use dispatcher::find::{find_correlation, latest_correlation};
use dispatcher::ledger::{Ledger, RegisteredModules};
use dispatcher::pipeline::Module;
use dispatcher::progress::{CorrelationStatus, Trace, Verdict, find_obstacles};
use ionfs::clock;
use ionfs::event::{Event, KeyValue};
use ionfs::id::JobId;
use ionfs::record::{InsightRecord, JobRecord};

use crate::settings::CommandSettings;
use crate::{CommandResult, CommandVerdict, output};

/// The tree shows at most this many values of a job's insights.
const VALUES_MAX: usize = 100;

/// At most this many obstacles are named below the tree.
const OBSTACLES_MAX: usize = 20;

/// Show all events and jobs that came of one first event, with times, sizes and states
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  ion trace                  show the latest correlation
  ion trace 3f2b91c0         show the one whose id, or one of whose events' ids, begins like this
  ion trace --dot | dot -Tsvg > trace.svg")]
pub(crate) struct TraceArgs {
    /// The id of a correlation or of one of its events, or the beginning of an id [default: the
    /// latest correlation]
    id: Option<String>,
    /// Print the correlation as a graph for Graphviz
    #[arg(long, conflicts_with = "json")]
    dot: bool,
}

pub(crate) async fn run(settings: &CommandSettings, args: TraceArgs) -> CommandResult {
    let ledger = Ledger::new(settings.open_existing_plane().await?);
    let correlation = match &args.id {
        Some(id) => find_correlation(&ledger, id).await?,
        None => latest_correlation(&ledger).await?,
    };
    let trace = Trace::read(&ledger, &correlation).await?;
    if settings.json {
        output::print_json(&trace.documents());
    } else if args.dot {
        dot_lines(&trace.status).iter().for_each(output::print_line);
    } else {
        let registered = ledger.registered_modules().await?;
        for text in tree_lines(&correlation, &trace.status, &trace.insights, &registered) {
            output::print_line(text);
        }
        outdated_lines(&trace.status).iter().for_each(output::print_line);
        // A correlation that has ended waits for dead jobs only, and the tree shows those.
        if trace.status.verdict() == Verdict::Running || trace.status.held_back > 0 {
            let served = served_modules(&ledger).await?;
            let obstacles = find_obstacles(&trace.status, &registered, &served);
            for obstacle in obstacles.iter().take(OBSTACLES_MAX) {
                output::print_line(format!(
                    "waits for {}",
                    output::escape_foreign(&obstacle.to_string())
                ));
            }
            if let Some(more @ 1..) = obstacles.len().checked_sub(OBSTACLES_MAX) {
                output::print_line(format!("and for {more} more"));
            }
        }
    }
    Ok(CommandVerdict::Well)
}

/// Returns a line for each gathering job that ran before a job below it was run again, and so lacks
/// the new results.
pub(crate) fn outdated_lines(status: &CorrelationStatus) -> Vec<String> {
    let line = |(gatherer, again): (&JobRecord, &JobRecord)| {
        format!(
            "{} {} ran without {} {}, which was run again since: its results lack the new ones",
            gatherer.module,
            gatherer.id.short(),
            again.module,
            again.id.short()
        )
    };
    status.outdated_gathers().into_iter().map(line).collect()
}

/// Returns the lines of a correlation's tree, with a summary in the last one.
fn tree_lines(
    correlation: &str,
    status: &CorrelationStatus,
    insights: &BTreeMap<String, InsightRecord>,
    registered: &RegisteredModules,
) -> Vec<String> {
    let mut lines = vec![format!("correlation {correlation}")];
    TraceTree::new(status, insights, registered).add_lines(&mut lines);
    let seconds =
        match (status.events.first(), status.jobs.iter().filter_map(|job| job.ended).max()) {
            (Some(first), Some(last)) => {
                format!(" in {}", output::format_duration((last - first.created).max(0)))
            }
            _ => String::new(),
        };
    let verdict = output::coloured_state(status.verdict().as_str());
    lines.push(format!(
        "{} events, {} jobs: {verdict}{seconds}",
        status.events.len(),
        status.jobs.len()
    ));
    lines
}

/// A node of the tree: an event or a job.
#[derive(Clone, Copy)]
enum TraceNode<'a> {
    Event(&'a Event),
    Job(&'a JobRecord),
}

/// At most this many levels are indented. Deeper ones have the indentation of the last of these,
/// and the number of their level.
const INDENT_LEVELS_MAX: usize = 40;

/// The events and jobs of a correlation, by their parents.
struct TraceTree<'a> {
    events: &'a [Event],
    insights: &'a BTreeMap<String, InsightRecord>,
    registered: &'a RegisteredModules,
    status: &'a CorrelationStatus,
    jobs: HashMap<&'a str, Vec<&'a JobRecord>>,
    /// The events that a job has committed, by the job's id.
    committed: HashMap<&'a str, Vec<&'a Event>>,
    /// The child events that none of the parent event's jobs has committed, by the parent's id.
    others: HashMap<&'a str, Vec<&'a Event>>,
}

impl<'a> TraceTree<'a> {
    fn new(
        status: &'a CorrelationStatus,
        insights: &'a BTreeMap<String, InsightRecord>,
        registered: &'a RegisteredModules,
    ) -> Self {
        let (mut jobs, mut committed, mut others) =
            (HashMap::<_, Vec<_>>::new(), HashMap::<_, Vec<_>>::new(), HashMap::<_, Vec<_>>::new());
        let mut event_of: HashMap<&str, &str> = HashMap::new();
        for job in &status.jobs {
            jobs.entry(job.event_id.as_str()).or_default().push(job);
            event_of.insert(job.id.as_str(), job.event_id.as_str());
        }
        for event in &status.events {
            let parent = event.context.parent_event_id.as_str();
            match event.job_id.as_ref().map(JobId::as_str) {
                Some(job) if event_of.get(job) == Some(&parent) => {
                    committed.entry(job).or_default().push(event)
                }
                _ => others.entry(parent).or_default().push(event),
            }
        }
        Self { events: &status.events, insights, registered, status, jobs, committed, others }
    }

    fn add_lines(&self, lines: &mut Vec<String>) {
        let event_ids: HashSet<&str> = self.events.iter().map(|event| event.id.as_str()).collect();
        let mut shown: HashSet<&str> = HashSet::new();
        let is_root = |event: &&Event| !event_ids.contains(event.context.parent_event_id.as_str());
        let roots: Vec<&Event> = self.events.iter().filter(is_root).collect();
        self.add_below(&roots, &mut shown, lines);
        // Users may choose ids and parents that form a circle, which has no root.
        for event in self.events {
            if !shown.contains(event.id.as_str()) {
                self.add_below(&[event], &mut shown, lines);
            }
        }
    }

    /// Adds the lines of these events and of everything below them. It does not recurse, because a
    /// lineage may have any depth.
    fn add_below(
        &self,
        roots: &[&'a Event],
        shown: &mut HashSet<&'a str>,
        lines: &mut Vec<String>,
    ) {
        let roots: Vec<TraceNode<'a>> = roots.iter().map(|event| TraceNode::Event(event)).collect();
        let mut open = vec![(roots.into_iter(), String::new())];
        while let Some((nodes, indent)) = open.last_mut() {
            let Some(node) = nodes.next() else {
                open.pop();
                continue;
            };
            let last = nodes.len() == 0;
            let (fork, below) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            let (line, children) = match node {
                TraceNode::Event(event) if !shown.insert(event.id.as_str()) => continue,
                TraceNode::Event(event) => (event_line(event), self.children_of_event(event)),
                TraceNode::Job(job) => (job_line(job), self.children_of_job(job)),
            };
            let deeper = format!("{indent}{below}");
            let indent = std::mem::take(indent);
            let level = open.len();
            let (deeper, number) = match level > INDENT_LEVELS_MAX {
                true => (indent.clone(), format!("[{level}] ")),
                false => (deeper, String::new()),
            };
            lines.push(format!("{indent}{fork}{number}{line}"));
            let remarks = match node {
                TraceNode::Event(event) => self.event_remarks(event),
                TraceNode::Job(job) => self.job_remarks(job),
            };
            lines.extend(remarks.into_iter().map(|remark| format!("{deeper}· {remark}")));
            if let Some((_, kept)) = open.last_mut() {
                *kept = indent;
            }
            open.push((children.into_iter(), deeper));
        }
    }

    fn children_of_event(&self, event: &Event) -> Vec<TraceNode<'a>> {
        let id = event.id.as_str();
        let jobs = self.jobs.get(id).into_iter().flatten().map(|job| TraceNode::Job(job));
        let others = self.others.get(id).into_iter().flatten().map(|event| TraceNode::Event(event));
        jobs.chain(others).collect()
    }

    fn children_of_job(&self, job: &JobRecord) -> Vec<TraceNode<'a>> {
        self.committed
            .get(job.id.as_str())
            .into_iter()
            .flatten()
            .map(|event| TraceNode::Event(event))
            .collect()
    }

    /// Returns the remarks that stand below an event's line: which modules their `where` kept it
    /// from.
    fn event_remarks(&self, event: &Event) -> Vec<String> {
        let remark = |(module, unmet): (&Module, String)| {
            format!("not for {}: {}", module.name, output::escape_foreign(&unmet))
        };
        self.registered.modules_with_unmet_terms(event).map(remark).collect()
    }

    /// Returns the remarks that stand below a job's line.
    fn job_remarks(&self, job: &JobRecord) -> Vec<String> {
        let mut remarks = Vec::new();
        remarks.extend(
            self.status.waits_for.get(&job.id).map(|what| output::escape_foreign(&what.in_words())),
        );
        if !job.without.is_empty() {
            let without = job.without.count();
            let jobs = if without == 1 { "1 job".to_owned() } else { format!("{without} jobs") };
            remarks.push(format!("began without what {jobs} would have made: cancelled, or dead"));
        }
        if let Some(insight) = self.insights.get(job.id.as_str()) {
            let format_value = |pair: &KeyValue| {
                format!(
                    "{}={}",
                    output::escape_foreign(&pair.key),
                    output::escape_foreign(&pair.value)
                )
            };
            let mut values: Vec<String> =
                insight.data.iter().take(VALUES_MAX).map(format_value).collect();
            if let Some(more @ 1..) = insight.data.len().checked_sub(VALUES_MAX) {
                values.push(format!("and {more} more"));
            }
            remarks.push(output::coloured(&values.join(" "), output::Colour::Grey).to_string());
        }
        remarks
    }
}

fn event_line(event: &Event) -> String {
    let bytes: u64 = event.files.iter().map(|file| file.size).sum();
    let files = match (&event.file_list, event.files.len()) {
        (Some(_), _) => "many files".to_owned(),
        (None, 0) => String::new(),
        (None, 1) => {
            format!(
                "{} ({})",
                output::escape_foreign(&event.files[0].name),
                output::format_size(bytes)
            )
        }
        (None, n) => format!("{n} files ({})", output::format_size(bytes)),
    };
    let event_type =
        output::coloured(&output::escape_foreign(&event.event_type), output::Colour::Yellow);
    let note =
        if event.cancelled { "  committed during a cancellation: it starts nothing" } else { "" };
    let line = format!("{event_type}  {}  {files}", output::escape_foreign(event.id.short()));
    format!("{}{note}", line.trim_end())
}

pub(crate) fn job_line(job: &JobRecord) -> String {
    let attempt = job.attempts.last();
    let took = attempt
        .map(|a| output::format_duration((a.ended.unwrap_or_else(clock::now) - a.started).max(0)));
    let tries = if job.attempt > 1 { format!("  attempt {}", job.attempt) } else { String::new() };
    let reason = attempt
        .and_then(|a| a.reason.clone())
        .filter(|_| job.state != ionfs::record::JobState::Succeeded);
    let reason =
        reason.map(|reason| format!("  {}", output::escape_foreign(&reason))).unwrap_or_default();
    format!(
        "{} {}  {}  {}{tries}{reason}",
        output::coloured_state(job.state.as_str()),
        job.module,
        job.id.short(),
        took.unwrap_or_default()
    )
}

/// Returns the lines of the graph in Graphviz's language.
fn dot_lines(status: &CorrelationStatus) -> Vec<String> {
    // Names are put in quotes, so quotes, backslashes and line breaks in them are escaped.
    let escape =
        |text: &str| output::escape_foreign(text).replace('\\', "\\\\").replace('"', "\\\"");
    let mut lines = vec!["digraph correlation {".to_owned(), "  rankdir=LR;".to_owned()];
    for event in &status.events {
        let (id, event_type) = (escape(event.id.as_str()), escape(&event.event_type));
        let short = escape(event.id.short());
        lines.push(format!("  \"{id}\" [shape=box, label=\"{event_type}\\n{short}\"];"));
        let from = event
            .job_id
            .as_ref()
            .map_or(event.context.parent_event_id.clone(), ToString::to_string);
        if !from.is_empty() {
            lines.push(format!("  \"{}\" -> \"{id}\";", escape(&from)));
        }
    }
    for job in &status.jobs {
        let (id, module) = (escape(job.id.as_str()), escape(&job.module));
        lines.push(format!("  \"{id}\" [label=\"{module}\\n{}\"];", job.state.as_str()));
        lines.push(format!("  \"{}\" -> \"{id}\";", escape(job.event_id.as_str())));
    }
    lines.push("}".to_owned());
    lines
}
