//! `ion dead`: jobs with no retries left, and messages that no job could be made from.

use clap::{Args, Subcommand};
use dispatcher::find::find_job;
use dispatcher::ledger::{JobFilter, Ledger, LedgerError};
use ionfs::errors::error_chain;
use ionfs::id::{EventId, JobId};
use ionfs::record::{JobRecord, JobState};
use ionfs::stores::DeadLetter;

use crate::settings::CommandSettings;
use crate::{CommandFailure, CommandResult, CommandVerdict, job, output};

/// How many dead letters are read at most. Of a longer queue the oldest are shown, and the others
/// once these are gone.
const LETTERS_MAX: usize = 1000;

/// List dead jobs and unreadable messages, and retry or drop them
#[derive(Debug, Subcommand)]
pub(crate) enum DeadCommand {
    /// List dead jobs and unreadable messages
    List,
    /// Let dead jobs run again, with all their retries
    Retry(WhichArgs),
    /// Give dead jobs up; gathering jobs that wait for them go on without them
    Drop(DropArgs),
}

/// Which dead jobs.
#[derive(Debug, Args)]
pub(crate) struct WhichArgs {
    /// The ids of jobs, or beginnings of ids
    #[arg(required_unless_present = "all")]
    ids: Vec<String>,
    /// All dead jobs
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// With --all: only jobs of this module
    #[arg(short, long, requires = "all")]
    module: Option<String>,
}

/// What to give up.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ion dead drop 3f2b91c0                      a job
  ion dead drop --all --module detect         all dead jobs of a module
  ion dead drop --unreadable                  all messages that no job could be made from")]
pub(crate) struct DropArgs {
    /// The ids of jobs, or beginnings of ids
    #[arg(required_unless_present_any = ["all", "unreadable"])]
    ids: Vec<String>,
    /// All dead jobs
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// All messages that no job could be made from
    #[arg(long, conflicts_with_all = ["ids", "all"])]
    unreadable: bool,
    /// With --all or --unreadable: only those of this module
    #[arg(short, long, conflicts_with = "ids")]
    module: Option<String>,
}

pub(crate) async fn run(settings: &CommandSettings, command: DeadCommand) -> CommandResult {
    let ledger = Ledger::new(settings.open_existing_plane().await?);
    match command {
        DeadCommand::List => list(settings, &ledger).await,
        DeadCommand::Retry(which) => {
            let mut tally = DeadJobTally::default();
            for job in chosen_jobs(&ledger, &which.ids, which.module).await? {
                match ledger.retry(&job.id).await {
                    Ok(job) => {
                        output::print_message(&format!(
                            "job {} of {} is queued again",
                            job.id, job.module
                        ));
                        job::print_gathers_without(&ledger, &job).await?;
                        tally.done += 1;
                    }
                    Err(error) => tally.report_failure(&job, "retried", &error),
                }
            }
            Ok(tally.verdict("queued again"))
        }
        DeadCommand::Drop(args) if args.unreadable => {
            drop_unreadable(&ledger, args.module.as_deref()).await
        }
        DeadCommand::Drop(args) => {
            let mut tally = DeadJobTally::default();
            for job in chosen_jobs(&ledger, &args.ids, args.module).await? {
                match ledger.cancel(&job.id).await {
                    Ok(_) => {
                        output::print_message(&format!(
                            "job {} of {} is dropped",
                            job.id, job.module
                        ));
                        tally.done += 1;
                    }
                    Err(error) => tally.report_failure(&job, "dropped", &error),
                }
            }
            Ok(tally.verdict("dropped"))
        }
    }
}

/// How many jobs of a list were changed, and how many could not be: a job that cannot be changed
/// does not keep the command from the others.
#[derive(Debug, Default)]
struct DeadJobTally {
    done: usize,
    failed: usize,
}

impl DeadJobTally {
    fn report_failure(&mut self, job: &JobRecord, what: &str, error: &LedgerError) {
        output::print_message(&format!(
            "job {} of {} cannot be {what}: {}",
            job.id,
            job.module,
            error_chain(error)
        ));
        self.failed += 1;
    }

    fn verdict(&self, what: &str) -> CommandVerdict {
        if self.failed == 0 {
            return CommandVerdict::Well;
        }
        output::print_message(&format!("{} jobs are {what}, {} are not", self.done, self.failed));
        CommandVerdict::Failed
    }
}

async fn drop_unreadable(ledger: &Ledger, module: Option<&str>) -> CommandResult {
    let mut dropped = 0;
    loop {
        let letters = unreadable_letters(ledger).await?.into_iter();
        let letters = letters.filter(|letter| module.is_none_or(|module| module == letter.module));
        let letters: Vec<_> = letters.map(|letter| (letter.module, letter.event_id)).collect();
        match ledger.plane().bus.remove_dead_letters(&letters).await? {
            0 => break,
            some => dropped += some,
        }
    }
    output::print_message(&format!("{dropped} unreadable messages are dropped"));
    Ok(CommandVerdict::Well)
}

async fn dead_jobs(
    ledger: &Ledger,
    module: Option<String>,
) -> Result<Vec<JobRecord>, CommandFailure> {
    let filter = JobFilter { module, state: Some(JobState::Dead), correlation: None };
    Ok(ledger.list(&filter, usize::MAX >> 1).await?)
}

/// Returns the dead jobs with these ids. Without ids it returns all dead jobs, or those of the
/// module.
///
/// # Errors
/// When an id names no job, several jobs, or a job that is not dead.
async fn chosen_jobs(
    ledger: &Ledger,
    ids: &[String],
    module: Option<String>,
) -> Result<Vec<JobRecord>, CommandFailure> {
    if ids.is_empty() {
        return dead_jobs(ledger, module).await;
    }
    let mut jobs = Vec::new();
    for id in ids {
        let found = find_job(ledger, id).await?;
        if found.state != JobState::Dead {
            return Err(CommandFailure(format!(
                "job {} is not dead but {}",
                found.id,
                found.state.as_str()
            )));
        }
        jobs.push(found);
    }
    Ok(jobs)
}

/// Returns the messages that no job could be made from: the dead letters without a job in the
/// ledger.
async fn unreadable_letters(ledger: &Ledger) -> Result<Vec<DeadLetter>, CommandFailure> {
    let mut unreadable = Vec::new();
    for letter in ledger.plane().bus.list_dead_letters(LETTERS_MAX).await? {
        let job = JobId::derive(&EventId::new(letter.event_id.clone()), &letter.module);
        match ledger.get(&job).await {
            Ok(_) => {}
            Err(LedgerError::NoSuchJob(_)) => unreadable.push(letter),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(unreadable)
}

async fn list(settings: &CommandSettings, ledger: &Ledger) -> CommandResult {
    job::print_jobs(settings, &dead_jobs(ledger, None).await?);
    let unreadable = unreadable_letters(ledger).await?;
    if !settings.json && !unreadable.is_empty() {
        output::print_line(
            "messages that no job could be made from (`ion dead drop --unreadable` removes them):",
        );
        for letter in unreadable {
            let (module, reason) =
                (output::escape_foreign(&letter.module), output::escape_foreign(&letter.reason));
            output::print_line(format!(
                "  {} for {module}: {reason}",
                output::format_time(letter.at)
            ));
        }
    }
    Ok(CommandVerdict::Well)
}
