//! `ion dead`: jobs with no retries left, and messages no job could be made of.

use clap::{Args, Subcommand};
use dispatcher::ledger::{JobFilter, Ledger};
use ionfs::record::{JobRecord, JobState};

use crate::settings::Settings;
use crate::{Failure, Outcome, Verdict, job, output};

/// Look at what is dead: retry it or drop it
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List dead jobs and unreadable messages
    List,
    /// Let dead jobs run again, with all their retries
    Retry(WhichArgs),
    /// Give dead jobs up: what waits for them goes on without them
    Drop(WhichArgs),
}

/// Which dead jobs.
#[derive(Debug, Args)]
pub(crate) struct WhichArgs {
    /// Jobs' ids, or the beginnings of them
    #[arg(required_unless_present = "all")]
    ids: Vec<String>,
    /// All of them
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// With --all: only of this module
    #[arg(short, long, requires = "all")]
    module: Option<String>,
}

pub(crate) async fn run(settings: &Settings, command: Command) -> Outcome {
    let ledger = Ledger::new(settings.existing_plane().await?);
    match command {
        Command::List => list(settings, &ledger).await,
        Command::Retry(which) => {
            for job in chosen(&ledger, which).await? {
                let job = ledger.retry(&job.id).await?;
                output::say(&format!("job {} of {} is queued again", job.id, job.module));
                job::say_who_ran_without(&ledger, &job).await?;
            }
            Ok(Verdict::Well)
        }
        Command::Drop(which) => {
            for job in chosen(&ledger, which).await? {
                ledger.cancel(&job.id).await?;
                output::say(&format!("job {} of {} is dropped", job.id, job.module));
            }
            Ok(Verdict::Well)
        }
    }
}

async fn dead(ledger: &Ledger, module: Option<String>) -> Result<Vec<JobRecord>, Failure> {
    let filter = JobFilter { module, state: Some(JobState::Dead), correlation: None };
    Ok(ledger.list(&filter, usize::MAX >> 1).await?)
}

async fn chosen(ledger: &Ledger, which: WhichArgs) -> Result<Vec<JobRecord>, Failure> {
    if which.all {
        return dead(ledger, which.module).await;
    }
    let mut jobs = Vec::new();
    for id in &which.ids {
        let found = job::find(ledger, id).await?;
        if found.state != JobState::Dead {
            return Err(Failure(format!("job {} is not dead but {}", found.id, found.state.as_str())));
        }
        jobs.push(found);
    }
    Ok(jobs)
}

async fn list(settings: &Settings, ledger: &Ledger) -> Outcome {
    job::show(settings, &dead(ledger, None).await?);
    // Jobs are in the ledger; what is left are messages that no job could be made of.
    let letters = ledger.plane().bus.dead_letters(1000).await?;
    let mut unread = Vec::new();
    for letter in letters {
        let job = ionfs::id::JobId::derive(&ionfs::id::EventId::new(letter.event_id.clone()), &letter.module);
        if ledger.get(&job).await.is_err() {
            unread.push(letter);
        }
    }
    if !settings.json && !unread.is_empty() {
        output::line("messages no job could be made of:");
        for letter in unread {
            let (module, reason) = (output::of_others(&letter.module), output::of_others(&letter.reason));
            output::line(format!("  {} for {module}: {reason}", output::moment(letter.at)));
        }
    }
    Ok(Verdict::Well)
}
