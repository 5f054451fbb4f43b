//! The summary of a correlation, for people.

use std::collections::BTreeMap;

use dispatcher::summary::{CorrelationSummary, JobTimes, ModuleSummary};
use ionfs::record::JobState;

use crate::output;

/// At most this many types of events, and reasons of failures, have a line.
const LINES_MAX: usize = 20;

/// Returns the lines of the summary.
pub(super) fn summary_lines(summary: &CorrelationSummary) -> Vec<String> {
    let mut lines = vec![format!("events: {}", counts_in_words(&summary.events))];
    for module in &summary.modules {
        lines.push(module_line(module));
    }
    for (module, jobs) in &summary.unclaimed {
        lines.push(format!("{}: {jobs} not claimed yet", output::escape_foreign(module)));
    }
    for reason in summary.failures.iter().take(LINES_MAX) {
        lines.push(format!(
            "{} {} of {}: {}  (such as {})",
            reason.jobs,
            output::coloured_state(reason.state),
            output::escape_foreign(&reason.module),
            output::escape_foreign(&reason.reason),
            reason.example.short()
        ));
    }
    if let Some(more @ 1..) = summary.failures.len().checked_sub(LINES_MAX) {
        lines.push(format!("and {more} more reasons; `ion --json trace --summary` has them all"));
    }
    if summary.failures_not_read > 0 {
        let jobs = summary.failures_not_read;
        lines.push(format!("the reasons of {jobs} older failures were not read"));
    }
    lines
}

fn counts_in_words(counts: &BTreeMap<String, u64>) -> String {
    let mut counts: Vec<(&String, &u64)> = counts.iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let more = counts.len().saturating_sub(LINES_MAX);
    counts.truncate(LINES_MAX);
    let mut words: Vec<String> = counts
        .into_iter()
        .map(|(name, count)| format!("{count} {}", output::escape_foreign(name)))
        .collect();
    if more > 0 {
        words.push(format!("and {more} more types"));
    }
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

fn module_line(module: &ModuleSummary) -> String {
    let states = JobState::ALL.into_iter().filter(|state| module.count(*state) > 0);
    let states: Vec<String> = states
        .map(|state| format!("{} {}", module.count(state), output::coloured_state(state.as_str())))
        .collect();
    let times = module.times.map(times_in_words).unwrap_or_default();
    let left = module.left.map(|left| format!("; about {} left", output::format_duration(left)));
    let name = output::escape_foreign(&module.module);
    format!("{name}: {}{times}{}", states.join(", "), left.unwrap_or_default())
}

fn times_in_words(times: JobTimes) -> String {
    let of = match times.of {
        1 => "took".to_owned(),
        of => format!("the latest {of} took"),
    };
    let rate = times.per_second.map(|rate| match rate {
        0.1.. => format!(", {rate:.1} a second"),
        _ => format!(", {:.1} an hour", rate * 3600.0),
    });
    let (p50, p95) = (output::format_duration(times.p50), output::format_duration(times.p95));
    format!("; {of} {p50} (p50), {p95} (p95){}", rate.unwrap_or_default())
}
