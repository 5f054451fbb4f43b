//! `ion job`: list, get, logs, cancel, retry.

use std::collections::VecDeque;
use std::time::Duration;

use clap::{Args, Subcommand};
use dispatcher::find::{find_correlation, find_job};
use dispatcher::ledger::Ledger;
use dispatcher::list::{JobFilter, ListPart, ListWatch};
use dispatcher::logs::{LogRead, LogReader};
use dispatcher::version::find_version;
use ionfs::clock;
use ionfs::record::{JobRecord, JobState};
use ionfs::stores::{Collection, decode, encode};
use ionfs::version::ModuleVersion;

use crate::list::{ListFormat, ListPartArgs, ShownList, print_list};
use crate::settings::{ArgumentError, CommandSettings};
use crate::usage::usage_in_words;
use crate::{CommandFailure, CommandResult, CommandVerdict, output};

/// The time between two reads of a log that is followed.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Look at jobs, and steer them
#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    List(ListArgs),
    /// Print a job's document; and, as messages, what its attempts ran and used
    Get(IdArgs),
    Logs(LogArgs),
    /// Stop a job; a running one gets SIGTERM, and SIGKILL after a while
    Cancel(IdArgs),
    /// Let a dead or cancelled job run again
    Retry(IdArgs),
}

/// A job's id.
#[derive(Debug, Args)]
pub(crate) struct IdArgs {
    /// The job's id, or the beginning of one
    id: String,
}

/// List jobs, the latest last
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ion job list                               the latest jobs
  ion job list --state dead --since 1h       jobs that died in the last hour, with their reasons
  ion job list --module detect --watch       go on, and print each change of state
  ion --json job list --after 3f2b91c0       one document a line, from this job on")]
pub(crate) struct ListArgs {
    /// Only jobs of this module
    #[arg(short, long)]
    module: Option<String>,
    /// Only jobs in this state: waiting, queued, starting, running, succeeded, dead or cancelled
    #[arg(short, long, value_parser = parse_state)]
    state: Option<JobState>,
    /// Only jobs of this correlation
    #[arg(short, long)]
    correlation: Option<String>,
    #[command(flatten)]
    part: ListPartArgs,
}

/// Print what a job wrote to stdout and stderr
#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// The job's id, or the beginning of one [default: the job that failed last]
    id: Option<String>,
    /// The number of the attempt [default: the latest]
    #[arg(long)]
    attempt: Option<u32>,
    /// Print only the last lines
    #[arg(long, value_name = "N", conflicts_with = "follow")]
    tail: Option<usize>,
    /// Go on printing until the attempt ends
    #[arg(short, long)]
    follow: bool,
}

fn parse_state(text: &str) -> Result<JobState, ArgumentError> {
    serde_json::from_value(text.into()).map_err(|_| ArgumentError::JobState)
}

pub(crate) async fn run(settings: &CommandSettings, command: JobCommand) -> CommandResult {
    let ledger = Ledger::new(settings.open_existing_plane().await?);
    match command {
        JobCommand::List(args) => {
            let correlation = match &args.correlation {
                Some(id) => Some(find_correlation(&ledger, id).await?),
                None => None,
            };
            let (module, state, time) = (args.module, args.state, args.part.time());
            let filter = JobFilter { module, state, correlation, time };
            return print_jobs(settings, &ledger, filter, &args.part).await;
        }
        JobCommand::Get(args) => {
            let job = find_job(&ledger, &args.id).await?;
            output::print_json(&job);
            if !settings.json {
                print_attempts(&ledger, &job).await?;
            }
        }
        JobCommand::Logs(args) => return print_log(settings, &ledger, args).await,
        JobCommand::Cancel(args) => {
            let job = ledger.cancel(&find_job(&ledger, &args.id).await?.id).await?;
            let what =
                if job.state == JobState::Cancelled { "is cancelled" } else { "is asked to stop" };
            output::print_message(&format!("job {} {what}", job.id));
        }
        JobCommand::Retry(args) => {
            let job = ledger.retry(&find_job(&ledger, &args.id).await?.id).await?;
            output::print_message(&format!("job {} is queued again", job.id));
            print_gathers_without(&ledger, &job).await?;
        }
    }
    Ok(CommandVerdict::Well)
}

/// Says what each attempt of a job ran, and what it used.
async fn print_attempts(ledger: &Ledger, job: &JobRecord) -> Result<(), CommandFailure> {
    let documents = &*ledger.plane().documents;
    let mut shown: Option<&ModuleVersion> = None;
    for attempt in &job.attempts {
        if let Some(version) = attempt.version.as_ref().filter(|version| shown != Some(*version)) {
            shown = Some(version);
            let found = find_version(documents, &job.module, version).await?;
            let ran = found.map(|record| format!(": {}", record.command_line()));
            output::print_message(&format!("version {version}{}", ran.unwrap_or_default()));
        }
        if !attempt.usage.is_empty() {
            let (number, used) = (attempt.number, usage_in_words(attempt.usage));
            output::print_message(&format!("attempt {number} used {used}"));
        }
    }
    Ok(())
}

/// Names the gathering jobs that have begun without the job `again`, which is run once more.
pub(crate) async fn print_gathers_without(
    ledger: &Ledger,
    again: &JobRecord,
) -> Result<(), CommandFailure> {
    for gatherer in ledger.gathers_without(again).await? {
        output::print_message(&format!(
            "job {} of {} has begun without it: its results lack what this job will make",
            gatherer.id, gatherer.module
        ));
    }
    Ok(())
}

/// Prints a part of a list of jobs as a table or as documents.
pub(crate) async fn print_jobs(
    settings: &CommandSettings,
    ledger: &Ledger,
    filter: JobFilter,
    part: &ListPartArgs,
) -> CommandResult {
    let place = match part.place_id() {
        Some(id) => Some(encode(&find_job(ledger, id).await?)),
        None => None,
    };
    let list = ShownList { query: filter.list(), place, watch: ListWatch::jobs(filter) };
    let heading = &["JOB", "MODULE", "STATE", "ATTEMPT", "TOOK", "CREATED", "EVENT", "REASON"];
    let format =
        ListFormat { heading, row: &|document| Ok(job_row(&decode(Collection::Jobs, document)?)) };
    print_list(settings, &*ledger.plane().documents, list, part, &format).await
}

fn job_row(job: &JobRecord) -> Vec<String> {
    vec![
        job.id.short().to_owned(),
        job.module.clone(),
        job.state.as_str().to_owned(),
        job.attempt.to_string(),
        time_taken(job),
        output::format_age(job.created),
        format!("{} {}", job.event_type, job.event_id.short()),
        failure_reason(job).unwrap_or_default().to_owned(),
    ]
}

/// Returns how long the last attempt of a job took, or has taken so far.
pub(crate) fn time_taken(job: &JobRecord) -> String {
    let Some(last) = job.attempts.last() else { return String::new() };
    output::format_duration((last.ended.unwrap_or_else(clock::now) - last.started).max(0))
}

/// Returns why the last attempt of a job ended as it did, unless the job has succeeded.
pub(crate) fn failure_reason(job: &JobRecord) -> Option<&str> {
    let last = job.attempts.last().filter(|_| job.state != JobState::Succeeded)?;
    last.reason.as_deref()
}

/// Returns the job that failed last.
///
/// # Errors
/// When no job is dead, or the documents cannot be read.
async fn latest_failed_job(ledger: &Ledger) -> Result<JobRecord, CommandFailure> {
    let documents = &*ledger.plane().documents;
    let filter = JobFilter { state: Some(JobState::Dead), ..JobFilter::default() };
    let mut rows = filter.list().rows(documents, ListPart::Latest, 1).await?;
    let last = rows.next(documents).await?.and_then(|mut page| page.pop());
    let Some(last) = last else {
        return Err(CommandFailure(
            "no job is dead; name a job (`ion job list` shows all jobs)".to_owned(),
        ));
    };
    let job: JobRecord = decode(Collection::Jobs, last)?;
    output::print_message(&format!(
        "job {} of {}, which failed last{}",
        job.id,
        job.module,
        failure_reason(&job).map(|reason| format!(": {reason}")).unwrap_or_default()
    ));
    Ok(job)
}

async fn print_log(settings: &CommandSettings, ledger: &Ledger, args: LogArgs) -> CommandResult {
    let mut job = match &args.id {
        Some(id) => find_job(ledger, id).await?,
        None => latest_failed_job(ledger).await?,
    };
    while args.attempt.is_none() && job.attempt == 0 {
        if !args.follow || job.state.is_final() {
            output::print_message(&format!(
                "job {} has not begun: it is {}",
                job.id,
                job.state.as_str()
            ));
            return Ok(CommandVerdict::Well);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
        job = ledger.get(&job.id).await?;
    }
    let number = args.attempt.unwrap_or(job.attempt);
    let mut tail = args.tail.map(LogTail::new);
    let mut log = LogReader::new(ledger.clone(), &settings.home, &job.id, number, 0);
    loop {
        match log.next().await? {
            LogRead::More(piece) => match &mut tail {
                Some(tail) => tail.add(&piece),
                None => output::print_raw(&piece),
            },
            // The command only prints, and nobody reads it any more.
            LogRead::NothingYet if output::has_no_reader() => return Ok(CommandVerdict::Well),
            LogRead::NothingYet if args.follow => tokio::time::sleep(POLL_INTERVAL).await,
            LogRead::NothingYet | LogRead::Nothing => {
                tail.iter_mut().for_each(|tail| output::print_raw(tail.bytes.make_contiguous()));
                return Ok(CommandVerdict::Well);
            }
        }
    }
}

/// The last lines of a log.
#[derive(Debug)]
struct LogTail {
    lines_max: usize,
    bytes: VecDeque<u8>,
    /// How many lines end in `bytes`.
    line_ends: usize,
}

/// The most bytes that a tail keeps, however long its lines are.
const TAIL_BYTES_MAX: usize = 16 << 20;

impl LogTail {
    fn new(lines_max: usize) -> Self {
        Self { lines_max, bytes: VecDeque::new(), line_ends: 0 }
    }

    /// Adds the next bytes of the log, and forgets the lines that are not among the last ones.
    fn add(&mut self, piece: &[u8]) {
        for byte in piece {
            // A line end begins another line only when something follows.
            if self.bytes.back() == Some(&b'\n') {
                self.line_ends += 1;
            }
            self.bytes.push_back(*byte);
            while self.line_ends >= self.lines_max.max(1) || self.bytes.len() > TAIL_BYTES_MAX {
                match self.bytes.pop_front() {
                    Some(b'\n') => self.line_ends = self.line_ends.saturating_sub(1),
                    Some(_) => {}
                    None => break,
                }
            }
        }
        if self.lines_max == 0 {
            self.bytes.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail_of(lines_max: usize, pieces: &[&str]) -> String {
        let mut tail = LogTail::new(lines_max);
        pieces.iter().for_each(|piece| tail.add(piece.as_bytes()));
        String::from_utf8(tail.bytes.into_iter().collect()).unwrap()
    }

    #[test]
    fn the_tail_of_a_log_is_its_last_lines() {
        assert_eq!(tail_of(2, &["a\nb\nc\n"]), "b\nc\n");
        assert_eq!(tail_of(2, &["a\nb", "b\nc"]), "bb\nc");
        assert_eq!(tail_of(5, &["a\n", "b\n"]), "a\nb\n");
        assert_eq!(tail_of(1, &["a\n\n"]), "\n");
        assert_eq!(tail_of(0, &["a\nb"]), "");
    }
}
