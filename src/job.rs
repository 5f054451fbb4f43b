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

/// The time between two looks at a log that is followed.
const LOOK: Duration = Duration::from_millis(100);

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
    #[arg(short, long, value_parser = state)]
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

fn state(text: &str) -> Result<JobState, ArgumentError> {
    serde_json::from_value(text.into()).map_err(|_| ArgumentError::JobState)
}

pub(crate) async fn run(settings: &CommandSettings, command: JobCommand) -> CommandResult {
    let ledger = Ledger::new(settings.existing_plane().await?);
    match command {
        JobCommand::List(args) => {
            let filter =
                JobFilter { module: args.module, state: args.state, correlation: args.correlation };
            let mut jobs = ledger.list(&filter, args.limit.saturating_add(1)).await?;
            if jobs.len() > args.limit {
                jobs.remove(0);
                output::say(&format!("the latest {} jobs; --limit shows more", args.limit));
            }
            show(settings, &jobs);
        }
        JobCommand::Get(args) => output::json(&find_job(&ledger, &args.id).await?),
        JobCommand::Logs(args) => return logs(settings, &ledger, args).await,
        JobCommand::Cancel(args) => {
            let job = ledger.cancel(&find_job(&ledger, &args.id).await?.id).await?;
            let what =
                if job.state == JobState::Cancelled { "is cancelled" } else { "is asked to stop" };
            output::say(&format!("job {} {what}", job.id));
        }
        JobCommand::Retry(args) => {
            let job = ledger.retry(&find_job(&ledger, &args.id).await?.id).await?;
            output::say(&format!("job {} is queued again", job.id));
            say_who_ran_without(&ledger, &job).await?;
        }
    }
    Ok(CommandVerdict::Well)
}

/// Names the gathering jobs that have begun without the job `again`, which is run once more.
pub(crate) async fn say_who_ran_without(
    ledger: &Ledger,
    again: &JobRecord,
) -> Result<(), CommandFailure> {
    for gatherer in ledger.ran_without(again).await? {
        output::say(&format!(
            "job {} of {} has begun without it: its results lack what this job will make",
            gatherer.id, gatherer.module
        ));
    }
    Ok(())
}

/// Prints jobs as a table or as documents.
pub(crate) fn show(settings: &CommandSettings, jobs: &[JobRecord]) {
    if settings.json {
        return output::json(&jobs);
    }
    let row = |job: &JobRecord| {
        let last = job.attempts.last();
        let took =
            last.map(|a| output::duration((a.ended.unwrap_or_else(clock::now) - a.started).max(0)));
        let reason =
            last.and_then(|a| a.reason.clone()).filter(|_| job.state != JobState::Succeeded);
        vec![
            job.id.short().to_owned(),
            job.module.clone(),
            job.state.as_str().to_owned(),
            job.attempt.to_string(),
            took.unwrap_or_default(),
            output::ago(job.created),
            format!("{} {}", job.event_type, job.event_id.short()),
            reason.unwrap_or_default(),
        ]
    };
    output::table(
        &["JOB", "MODULE", "STATE", "ATTEMPT", "TOOK", "CREATED", "EVENT", "REASON"],
        &jobs.iter().map(row).collect::<Vec<_>>(),
    );
}

async fn logs(settings: &CommandSettings, ledger: &Ledger, args: LogArgs) -> CommandResult {
    let mut job = find_job(ledger, &args.id).await?;
    while args.attempt.is_none() && job.attempt == 0 {
        if !args.follow || job.state.is_final() {
            output::say(&format!("job {} has not begun: it is {}", job.id, job.state.as_str()));
            return Ok(CommandVerdict::Well);
        }
        tokio::time::sleep(LOOK).await;
        job = ledger.get(&job.id).await?;
    }
    let number = args.attempt.unwrap_or(job.attempt);
    let mut log = LogReader::new(ledger.clone(), &settings.home, &job.id, number, 0);
    loop {
        match log.next().await? {
            LogRead::More(piece) => output::raw(&piece),
            // The command only prints, and nobody reads it any more.
            LogRead::NothingYet if output::is_read_by_nobody() => return Ok(CommandVerdict::Well),
            LogRead::NothingYet if args.follow => tokio::time::sleep(LOOK).await,
            LogRead::NothingYet | LogRead::Nothing => return Ok(CommandVerdict::Well),
        }
    }
}
