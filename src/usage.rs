//! `ion usage`: what jobs used, by module, type or correlation.

use clap::{Args, ValueEnum};
use dispatcher::find::find_correlation;
use dispatcher::ledger::Ledger;

use dispatcher::usage::{UsageFilter, UsageGrouping, UsageSum, read_usage};
use ionfs::clock::Millis;
use ionfs::stores::{TimeRange, encode};
use ionfs::usage::AttemptUsage;
use serde_json::json;

use crate::list::ListTime;
use crate::settings::CommandSettings;
use crate::{CommandResult, CommandVerdict, output};

/// How many rows are shown unless the user says otherwise.
const LIMIT: usize = 1000;

/// What takes the place of a value that is not known.
const UNKNOWN: &str = "-";

/// Sum up what jobs used: processor time, memory, bytes and time, the costliest first
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ion usage                                  all jobs, by module
  ion usage --since 1d --by correlation      which correlations of the last day cost most
  ion usage --correlation 3f2b91c0           one correlation, by module
  ion --json usage --by type                 one document a line")]
pub(crate) struct UsageArgs {
    /// By what jobs are summed
    #[arg(long, value_enum, default_value_t = Grouping::Module)]
    by: Grouping,
    /// Only jobs of this correlation, given by its id or the beginning of its id
    #[arg(short, long, value_name = "ID")]
    correlation: Option<String>,
    /// Only jobs created at this time or later: 10m (ten minutes ago), 2026-05-01 or
    /// 2026-05-01T08:30:00Z, in UTC
    #[arg(long, value_name = "TIME")]
    since: Option<ListTime>,
    /// Only jobs created before this time
    #[arg(long, value_name = "TIME")]
    until: Option<ListTime>,
    /// How many rows to show at most
    #[arg(long, default_value_t = LIMIT, value_name = "N")]
    limit: usize,
}

/// By what jobs are summed, as a user says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Grouping {
    /// Their modules
    Module,
    /// The types of their events
    Type,
    /// Their correlations
    Correlation,
}

impl From<Grouping> for UsageGrouping {
    fn from(grouping: Grouping) -> Self {
        match grouping {
            Grouping::Module => Self::Module,
            Grouping::Type => Self::Type,
            Grouping::Correlation => Self::Correlation,
        }
    }
}

pub(crate) async fn run(settings: &CommandSettings, args: UsageArgs) -> CommandResult {
    let ledger = Ledger::new(settings.open_existing_plane().await?);
    let correlation = match &args.correlation {
        Some(id) => Some(find_correlation(&ledger, id).await?),
        None => None,
    };
    let time = TimeRange {
        since: args.since.map(ListTime::millis),
        until: args.until.map(ListTime::millis),
    };
    let grouping = UsageGrouping::from(args.by);
    let filter = UsageFilter { correlation, time };
    let usage = read_usage(&*ledger.plane().documents, filter, grouping).await?;
    let shown = usage.rows.iter().take(args.limit);
    if settings.json {
        for (group, sum) in shown {
            let mut document = json!({grouping.as_str(): group});
            merge(&mut document, encode(sum));
            output::print_json_line(&document);
        }
    } else {
        let group = grouping.as_str().to_uppercase();
        let heading = [&*group, "JOBS", "ATTEMPTS", "CPU", "PEAK", "FETCHED", "STORED", "WALL"];
        let mut table = output::Table::new(&heading);
        table.print_rows(shown.map(|(group, sum)| usage_row(group, sum)).collect());
        table.print_heading();
    }
    if let Some(more @ 1..) = usage.rows.len().checked_sub(args.limit) {
        let all = usage.rows.len();
        output::print_message(&format!("{more} cheaper rows are not shown: --limit {all} does"));
    }
    if let Some(rest) = &usage.rest {
        output::print_message(&format!(
            "there are too many {}s: the cheaper ones are not shown, and together their {} jobs \
             used {}; --since and --until choose fewer",
            grouping.as_str(),
            rest.jobs,
            usage_in_words(rest.usage)
        ));
    }
    let not_measured: u64 = usage.rows.iter().map(|(_, sum)| sum.not_measured).sum();
    if not_measured > 0 {
        output::print_message(&format!(
            "the processor time of {not_measured} attempts is not known: of pods, of links (their \
             chain has it), of attempts that were lost or never ran"
        ));
    }
    Ok(CommandVerdict::Well)
}

/// Adds the fields of an object to another one.
fn merge(document: &mut serde_json::Value, fields: serde_json::Value) {
    if let (Some(document), serde_json::Value::Object(fields)) = (document.as_object_mut(), fields)
    {
        document.extend(fields);
    }
}

fn usage_row(group: &str, sum: &UsageSum) -> Vec<String> {
    let AttemptUsage { cpu_ms, peak_bytes, fetched_bytes, stored_bytes } = sum.usage;
    let bytes = |bytes: Option<u64>| bytes.map_or_else(|| UNKNOWN.to_owned(), output::format_size);
    vec![
        group.to_owned(),
        sum.jobs.to_string(),
        sum.attempts.to_string(),
        cpu_ms.map_or_else(|| UNKNOWN.to_owned(), format_millis),
        bytes(peak_bytes),
        bytes(fetched_bytes),
        bytes(stored_bytes),
        format_millis(sum.wall_ms),
    ]
}

/// Describes what an attempt used, as far as that is known.
pub(crate) fn usage_in_words(usage: AttemptUsage) -> String {
    let AttemptUsage { cpu_ms, peak_bytes, fetched_bytes, stored_bytes } = usage;
    let bytes = |bytes: Option<u64>, what: &str| {
        bytes.map(|bytes| format!("{} {what}", output::format_size(bytes)))
    };
    let known = [
        cpu_ms.map(|cpu| format!("{} of processor time", format_millis(cpu))),
        bytes(peak_bytes, "of memory at most"),
        bytes(fetched_bytes, "fetched"),
        bytes(stored_bytes, "stored"),
    ];
    let known: Vec<String> = known.into_iter().flatten().collect();
    if known.is_empty() { "an unknown amount".to_owned() } else { known.join(", ") }
}

fn format_millis(millis: u64) -> String {
    output::format_duration(Millis::try_from(millis).unwrap_or(Millis::MAX))
}
