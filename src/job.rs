//! `ion job`: list, get, logs, cancel, retry.

use std::time::Duration;

use clap::{Args, Subcommand};
use dispatcher::find::find_job;
use dispatcher::ledger::{JobFilter, Ledger};
use dispatcher::logs::{LogRead, LogReader};
use ionfs::clock;
use ionfs::record::{JobRecord, JobState};

use crate::settings::{ArgumentError, CommandSettings};
use crate::{CommandFailure, CommandResult, CommandVerdict, output};

/// The time between two reads of a log that is followed.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Look at jobs, and steer them
#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    List(ListArgs),
    /// Print a job's document
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
    /// How many jobs to list at most; the latest ones are listed
    #[arg(long, default_value_t = 1000)]
    limit: usize,
}

/// Print what a job wrote to stdout and stderr
#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// The job's id, or the beginning of one
    id: String,
    /// The number of the attempt [default: the latest]
    #[arg(long)]
    attempt: Option<u32>,
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
            let filter =
                JobFilter { module: args.module, state: args.state, correlation: args.correlation };
            let mut jobs = ledger.list(&filter, args.limit.saturating_add(1)).await?;
            if jobs.len() > args.limit {
                jobs.remove(0);
                output::print_message(&format!(
                    "the latest {} jobs; --limit shows more",
                    args.limit
                ));
            }
            print_jobs(settings, &jobs);
        }
        JobCommand::Get(args) => output::print_json(&find_job(&ledger, &args.id).await?),
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

/// Prints jobs as a table or as documents.
pub(crate) fn print_jobs(settings: &CommandSettings, jobs: &[JobRecord]) {
    if settings.json {
        return output::print_json(&jobs);
    }
    let row = |job: &JobRecord| {
        let last = job.attempts.last();
        let took = last.map(|a| {
            output::format_duration((a.ended.unwrap_or_else(clock::now) - a.started).max(0))
        });
        let reason =
            last.and_then(|a| a.reason.clone()).filter(|_| job.state != JobState::Succeeded);
        vec![
            job.id.short().to_owned(),
            job.module.clone(),
            job.state.as_str().to_owned(),
            job.attempt.to_string(),
            took.unwrap_or_default(),
            output::format_age(job.created),
            format!("{} {}", job.event_type, job.event_id.short()),
            reason.unwrap_or_default(),
        ]
    };
    output::print_table(
        &["JOB", "MODULE", "STATE", "ATTEMPT", "TOOK", "CREATED", "EVENT", "REASON"],
        &jobs.iter().map(row).collect::<Vec<_>>(),
    );
}

async fn print_log(settings: &CommandSettings, ledger: &Ledger, args: LogArgs) -> CommandResult {
    let mut job = find_job(ledger, &args.id).await?;
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
    let mut log = LogReader::new(ledger.clone(), &settings.home, &job.id, number, 0);
    loop {
        match log.next().await? {
            LogRead::More(piece) => output::print_raw(&piece),
            // The command only prints, and nobody reads it any more.
            LogRead::NothingYet if output::has_no_reader() => return Ok(CommandVerdict::Well),
            LogRead::NothingYet if args.follow => tokio::time::sleep(POLL_INTERVAL).await,
            LogRead::NothingYet | LogRead::Nothing => return Ok(CommandVerdict::Well),
        }
    }
}
