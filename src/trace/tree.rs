//! The tree of a correlation, which is printed while it is read.

use dispatcher::ledger::{Ledger, RegisteredModules};
use dispatcher::lineage::{LineageNode, LineageStep, LineageWalk};
use dispatcher::summary::CorrelationSummary;
use ionfs::event::{Event, KeyValue};
use ionfs::record::{InsightRecord, JobRecord};

use super::{event_remarks, job_line};
use crate::{CommandFailure, output};

/// The tree shows at most this many values of a job's insights.
const VALUES_MAX: usize = 100;

/// At most this many levels are indented. Deeper ones have the indentation of the last of these,
/// and the number of their level.
const INDENT_LEVELS_MAX: usize = 40;

/// Prints the tree of a correlation, down to `depth` generations of events if it is given.
pub(super) async fn print_tree(
    ledger: &Ledger,
    correlation: &str,
    registered: &RegisteredModules,
    summary: &CorrelationSummary,
    depth: Option<usize>,
) -> Result<(), CommandFailure> {
    let levels = depth.map_or(usize::MAX, |depth| depth.saturating_mul(2));
    let mut walk = LineageWalk::new(ledger.clone(), correlation, levels);
    let mut printer = TreePrinter::default();
    let mut shown: u64 = 0;
    while let Some(step) = walk.next().await? {
        if output::has_no_reader() {
            return Ok(());
        }
        shown += 1;
        printer.print(&step, registered);
    }
    let all = summary.event_count() + summary.job_count();
    if depth.is_none() && shown < all {
        output::print_line(format!(
            "{} events and jobs are below no first event: the parents of their events form a \
             circle, their job is not recorded, or they came while the tree was read",
            all - shown
        ));
    }
    Ok(())
}

/// What is above the present node, as far as the indentation shows it.
#[derive(Debug, Default)]
struct TreePrinter {
    /// For each level, whether its present node is the last one.
    are_last: Vec<bool>,
}

impl TreePrinter {
    fn print(&mut self, step: &LineageStep, registered: &RegisteredModules) {
        self.are_last.truncate(step.level.min(INDENT_LEVELS_MAX));
        let indent: String =
            self.are_last.iter().map(|is_last| if *is_last { "   " } else { "│  " }).collect();
        let (fork, below) = if step.is_last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        let is_deep = step.level >= INDENT_LEVELS_MAX;
        let number = if is_deep { format!("[{}] ", step.level + 1) } else { String::new() };
        let (line, mut remarks) = match &step.node {
            LineageNode::Event(event) => (event_line(event), event_remarks(registered, event)),
            LineageNode::Job(job, insight) => (job_line(job), job_remarks(job, insight.as_deref())),
        };
        if step.is_cut {
            remarks.push("more below: a larger --depth shows it".to_owned());
        }
        output::print_line(format!("{indent}{fork}{number}{line}"));
        let below = if is_deep { "" } else { below };
        for remark in remarks {
            output::print_line(format!("{indent}{below}· {remark}"));
        }
        self.are_last.push(step.is_last);
    }
}

/// Returns the remarks that stand below a job's line.
fn job_remarks(job: &JobRecord, insight: Option<&InsightRecord>) -> Vec<String> {
    let mut remarks = Vec::new();
    let waits_for = job.waits_for.as_ref();
    remarks.extend(waits_for.map(|what| output::escape_foreign(&what.in_words())));
    if !job.without.is_empty() {
        let without = job.without.count();
        let jobs = if without == 1 { "1 job".to_owned() } else { format!("{without} jobs") };
        remarks.push(format!("began without what {jobs} would have made: cancelled, or dead"));
    }
    if let Some(insight) = insight {
        let format_value = |pair: &KeyValue| {
            let (key, value) =
                (output::escape_foreign(&pair.key), output::escape_foreign(&pair.value));
            format!("{key}={value}")
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

fn event_line(event: &Event) -> String {
    let bytes: u64 = event.files.iter().map(|file| file.size).sum();
    let files = match (&event.file_list, event.files.len()) {
        (Some(_), _) => "many files".to_owned(),
        (None, 0) => String::new(),
        (None, 1) => {
            let name = output::escape_foreign(&event.files[0].name);
            format!("{name} ({})", output::format_size(bytes))
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
