//! `ion dead`: jobs with no retries left, and messages that no job could be made from.

use std::collections::VecDeque;

use clap::{Args, Subcommand};
use dispatcher::find::find_job;
use dispatcher::ledger::{Ledger, LedgerError};
use dispatcher::list::JobFilter;
use ionfs::clock;
use ionfs::errors::error_chain;
use ionfs::id::{EventId, JobId};
use ionfs::record::{JobRecord, JobState};
use ionfs::stores::{Collection, DeadLetter, Pages, TimeRange, decode};

use crate::list::ListPartArgs;
use crate::settings::CommandSettings;
use crate::{CommandFailure, CommandResult, CommandVerdict, job, output};

/// How many dead letters are read at most. Of a longer queue the oldest are shown, and the others
/// once these are gone.
const LETTERS_MAX: usize = 1000;

/// List dead jobs and unreadable messages, and retry or drop them
#[derive(Debug, Subcommand)]
pub(crate) enum DeadCommand {
    List(DeadListArgs),
    /// Let dead jobs run again, with all their retries
    Retry(WhichArgs),
    /// Give dead jobs up; gathering jobs that wait for them go on without them
    Drop(DropArgs),
}

/// List dead jobs, those that died last at the end, and unreadable messages
#[derive(Debug, Args)]
pub(crate) struct DeadListArgs {
    /// Only jobs and messages of this module
    #[arg(short, long)]
    module: Option<String>,
    #[command(flatten)]
    part: ListPartArgs,
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
        DeadCommand::List(args) => list(settings, &ledger, args).await,
        DeadCommand::Retry(which) => {
            let mut tally = DeadJobTally::default();
            let mut chosen = ChosenJobs::new(&ledger, &which.ids, which.module).await?;
            while let Some(job) = chosen.next(&ledger).await? {
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
            let mut chosen = ChosenJobs::new(&ledger, &args.ids, args.module).await?;
            while let Some(job) = chosen.next(&ledger).await? {
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

fn dead_filter(module: Option<String>) -> JobFilter {
    JobFilter { module, state: Some(JobState::Dead), ..JobFilter::default() }
}

/// The dead jobs that a command is for, read one page at a time.
#[derive(Debug)]
struct ChosenJobs {
    /// The jobs that were read.
    jobs: VecDeque<JobRecord>,
    /// The rest of the list of dead jobs; none if jobs were named.
    pages: Option<Pages>,
}

impl ChosenJobs {
    /// Chooses the dead jobs with these ids. Without ids it chooses all jobs that are dead now, or
    /// those of the module.
    ///
    /// # Errors
    /// When an id names no job, several jobs, or a job that is not dead.
    async fn new(
        ledger: &Ledger,
        ids: &[String],
        module: Option<String>,
    ) -> Result<Self, CommandFailure> {
        let mut jobs = VecDeque::new();
        for id in ids {
            let found = find_job(ledger, id).await?;
            if found.state != JobState::Dead {
                return Err(CommandFailure(format!(
                    "job {} is not dead but {}",
                    found.id,
                    found.state.as_str()
                )));
            }
            jobs.push_back(found);
        }
        if !ids.is_empty() {
            return Ok(Self { jobs, pages: None });
        }
        // A job that dies again after it was retried is not met twice.
        let time = TimeRange { until: Some(clock::now()), ..TimeRange::default() };
        let list = JobFilter { time, ..dead_filter(module) }.list();
        Ok(Self { jobs, pages: Some(list.pages()) })
    }

    async fn next(&mut self, ledger: &Ledger) -> Result<Option<JobRecord>, CommandFailure> {
        if self.jobs.is_empty()
            && let Some(pages) = &mut self.pages
        {
            for document in pages.next(&*ledger.plane().documents).await?.unwrap_or_default() {
                self.jobs.push_back(decode(Collection::Jobs, document)?);
            }
        }
        Ok(self.jobs.pop_front())
    }
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

async fn list(settings: &CommandSettings, ledger: &Ledger, args: DeadListArgs) -> CommandResult {
    let mut unreadable = unreadable_letters(ledger).await?;
    unreadable.retain(|letter| args.module.as_ref().is_none_or(|name| *name == letter.module));
    let filter = JobFilter { time: args.part.time(), ..dead_filter(args.module) };
    job::print_jobs(settings, ledger, filter, &args.part).await?;
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
