//! `--wait`: follows a correlation to its end.
//!
//! # How it works
//! The command counts the correlation's jobs again and again, and says what the correlation waits for
//! when that changes. It reads the jobs themselves only to print a line for each that has ended, and
//! not beyond [`LINES_MAX`] jobs. It also waits for an unavailable document store: the created event is processed
//! without this command, and a replica set takes some ten seconds to elect a new primary.
//!
//! # What it never does
//! Wait without an end: [`STORE_OUTAGE_MAX`] bounds the time that the store may be unavailable, and
//! the caller's time-out bounds the whole wait.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dispatcher::counts::{JobCounts, count_events};
use dispatcher::dispatch::ServedWatch;
use dispatcher::ledger::Ledger;
use dispatcher::list::{JobFilter, ListPart};
use dispatcher::progress::{CorrelationStatus, CorrelationWatch, Obstacle, OpenWork};
use dispatcher::summary::outdated_gathers;
use humantime::format_duration;
use indicatif::{MultiProgress, ProgressBar};
use ionfs::errors::error_chain;
use ionfs::id::JobId;
use ionfs::record::{JobRecord, JobState};
use ionfs::stores::{Collection, StoreError, decode};
use tokio::time::Instant;

use crate::settings::CommandSettings;
use crate::trace::{job_line, outdated_line, print_job_documents};
use crate::{CommandFailure, CommandResult, CommandVerdict, output};

/// The shortest time between two reads of the correlation.
const POLL_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// The longest time between two reads, for a correlation that takes long to read.
const POLL_INTERVAL_MAX: Duration = Duration::from_secs(5);

/// How long a document store may be unavailable without a break. Restarts and elections take
/// seconds, upgrades a few minutes.
const STORE_OUTAGE_MAX: Duration = Duration::from_secs(300);

/// How long nothing may move before the command says what the correlation waits for. While jobs
/// end, their own lines say enough.
const QUIET_WAIT: Duration = Duration::from_secs(5);

/// The shortest time between two lines that say what the correlation waits for.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// How many jobs a correlation may have for each of them to get a line when it has ended. The command
/// remembers which ones have a line, and reads them anew when further ones have ended.
const LINES_MAX: u64 = 10_000;

/// One line names at most this many obstacles.
const NAMED_OBSTACLES_MAX: usize = 5;

/// Follows a correlation to its end. A terminal shows a line for each module, a pipe gets a line
/// for each job that has ended.
///
/// # Errors
/// When the correlation does not exist or has not ended by the time-out, or when the document store
/// fails or is unavailable for longer than [`STORE_OUTAGE_MAX`].
pub(crate) async fn wait_for_correlation(
    settings: &CommandSettings,
    ledger: &Ledger,
    correlation: &str,
    timeout: Duration,
) -> CommandResult {
    let deadline = Instant::now() + timeout;
    let mut shown = ShownJobs::new(settings);
    let mut reporter = ObstacleReporter::new();
    let mut reader = StatusReader {
        ledger,
        watch: CorrelationWatch::new(correlation),
        served: ServedWatch::default(),
    };
    let mut unavailable_since = None;
    loop {
        let started = Instant::now();
        match reader.read(&mut shown, correlation).await {
            Ok((now, waited_for)) => {
                if unavailable_since.take().is_some() {
                    output::print_message("the document store is back");
                }
                if !now.exists {
                    return Err(CommandFailure(format!("there is no correlation {correlation}")));
                }
                if now.ended {
                    return shown.show_end(ledger, correlation, &now, &waited_for).await;
                }
                reporter.report(&now, waited_for);
            }
            Err(error @ StoreError::Unavailable { .. }) => {
                let since = *unavailable_since.get_or_insert_with(|| {
                    let limit = STORE_OUTAGE_MAX.min(deadline.saturating_duration_since(started));
                    let limit = format_duration(Duration::from_secs(limit.as_secs()));
                    output::print_message(&format!(
                        "waiting for the document store, for {limit} at most: {}",
                        error_chain(&error)
                    ));
                    started
                });
                if since.elapsed() > STORE_OUTAGE_MAX {
                    let limit = format_duration(STORE_OUTAGE_MAX);
                    return Err(CommandFailure(format!(
                        "the document store was unavailable for {limit}: {}; `ion trace \
                         {correlation}` shows the rest",
                        error_chain(&error)
                    )));
                }
            }
            Err(error) => return Err(error.into()),
        }
        if Instant::now() > deadline {
            return Err(CommandFailure(format!(
                "the correlation has not ended after {}; `ion trace {correlation}` shows how far \
                 it is",
                format_duration(timeout)
            )));
        }
        // At most a fifth of the time goes into reading a large correlation, until that takes so
        // long that POLL_INTERVAL_MAX bounds the pause.
        tokio::time::sleep(POLL_INTERVAL_MIN.max((started.elapsed() * 4).min(POLL_INTERVAL_MAX)))
            .await;
    }
}

/// Reads how far the correlation has come.
struct StatusReader<'a> {
    ledger: &'a Ledger,
    watch: CorrelationWatch,
    served: ServedWatch,
}

impl StatusReader<'_> {
    /// Reads the status, shows it, and returns it with what the correlation waits for.
    async fn read(
        &mut self,
        shown: &mut ShownJobs,
        correlation: &str,
    ) -> Result<(CorrelationStatus, Vec<Obstacle>), StoreError> {
        let registered = self.ledger.registered_modules().await?;
        let now = self.watch.read(self.ledger, &registered).await?;
        shown.update(self.ledger, correlation, &now).await?;
        let served = self.served.read_served_modules(self.ledger).await?;
        let waited_for = OpenWork::of(&now).obstacles(&served);
        Ok((now, waited_for))
    }
}

/// What the command has said about the obstacles that a correlation waits for.
struct ObstacleReporter {
    /// The jobs, counted at the last look at which the counts changed.
    progress: JobCounts,
    /// When it changed.
    moved_at: Instant,
    /// The obstacles that were named and are still there.
    reported: Vec<Obstacle>,
    reported_at: Option<Instant>,
}

impl ObstacleReporter {
    fn new() -> Self {
        let (progress, moved_at) = (JobCounts::new(), Instant::now());
        Self { progress, moved_at, reported: Vec::new(), reported_at: None }
    }

    /// Names the obstacles if one of them is new. Those that people have to remove are named at
    /// once, all others only when nothing has moved for a while.
    fn report(&mut self, now: &CorrelationStatus, mut obstacles: Vec<Obstacle>) {
        if self.progress != now.jobs {
            (self.progress, self.moved_at) = (now.jobs.clone(), Instant::now());
        }
        self.reported
            .retain(|reported| obstacles.iter().any(|obstacle| obstacle.is_same_kind(reported)));
        if self.moved_at.elapsed() < QUIET_WAIT {
            obstacles.retain(Obstacle::needs_people);
        }
        let is_new = |obstacle: &Obstacle| {
            !self.reported.iter().any(|reported| reported.is_same_kind(obstacle))
        };
        let reported_lately = self.reported_at.is_some_and(|at| at.elapsed() < REPORT_INTERVAL);
        if reported_lately || !obstacles.iter().any(is_new) {
            return;
        }
        output::print_message(&format!("waiting for {}", list_obstacles(&obstacles)));
        (self.reported, self.reported_at) = (obstacles, Some(Instant::now()));
    }
}

fn list_obstacles(obstacles: &[Obstacle]) -> String {
    let mut names: Vec<String> = obstacles
        .iter()
        .take(NAMED_OBSTACLES_MAX)
        .map(|obstacle| output::escape_foreign(&obstacle.to_string()))
        .collect();
    if let Some(more @ 1..) = obstacles.len().checked_sub(NAMED_OBSTACLES_MAX) {
        names.push(format!("and {more} more"));
    }
    names.join("; ")
}

/// What the user has been shown of a correlation's jobs.
struct ShownJobs {
    /// The jobs that have a line, at most [`LINES_MAX`].
    jobs: BTreeSet<JobId>,
    /// Whether the correlation has more jobs than get a line each. The user has been told so.
    is_large: bool,
    bars: MultiProgress,
    by_module: BTreeMap<String, ProgressBar>,
    terminal: bool,
    json: bool,
}

impl ShownJobs {
    fn new(settings: &CommandSettings) -> Self {
        Self {
            jobs: BTreeSet::new(),
            is_large: false,
            bars: MultiProgress::with_draw_target(output::bar_target()),
            by_module: BTreeMap::new(),
            terminal: output::is_terminal(),
            json: settings.json,
        }
    }

    async fn update(
        &mut self,
        ledger: &Ledger,
        correlation: &str,
        now: &CorrelationStatus,
    ) -> Result<(), StoreError> {
        if self.terminal {
            self.update_bars(now);
        } else if !self.json && now.job_count() > LINES_MAX {
            if !std::mem::replace(&mut self.is_large, true) {
                output::print_message(&format!(
                    "there are more than {LINES_MAX} jobs, so not each of them gets a line: `ion \
                     trace {correlation}` shows how far they are"
                ));
            }
        } else if !self.json && now.ended_count() != self.jobs.len() as u64 {
            self.print_ended_jobs(ledger, correlation).await?;
        }
        Ok(())
    }

    /// Prints a line for each job that has ended and has none yet.
    async fn print_ended_jobs(
        &mut self,
        ledger: &Ledger,
        correlation: &str,
    ) -> Result<(), StoreError> {
        let documents = &*ledger.plane().documents;
        for state in JobState::ALL.into_iter().filter(|state| state.is_final()) {
            let filter = JobFilter {
                correlation: Some(correlation.to_owned()),
                state: Some(state),
                ..JobFilter::default()
            };
            let most = usize::try_from(LINES_MAX).unwrap_or(usize::MAX);
            let mut rows = filter.list().rows(documents, ListPart::Latest, most).await?;
            while let Some(page) = rows.next(documents).await? {
                for document in page {
                    let job: JobRecord = decode(Collection::Jobs, document)?;
                    if self.jobs.insert(job.id.clone()) {
                        output::print_line(job_line(&job));
                    }
                }
            }
        }
        Ok(())
    }

    fn update_bars(&mut self, now: &CorrelationStatus) {
        for (module, counts) in &now.jobs {
            let bars = &self.bars;
            let bar = self
                .by_module
                .entry(module.to_owned())
                .or_insert_with(|| bars.add(ProgressBar::new_spinner()));
            let counts: Vec<String> = counts
                .iter()
                .map(|(state, n)| format!("{n} {}", output::coloured_state(state)))
                .collect();
            bar.set_message(format!("{}: {}", output::escape_foreign(module), counts.join(", ")));
            bar.tick();
        }
    }

    /// Shows how the correlation ended.
    async fn show_end(
        &self,
        ledger: &Ledger,
        correlation: &str,
        now: &CorrelationStatus,
        waited_for: &[Obstacle],
    ) -> CommandResult {
        self.by_module.values().for_each(ProgressBar::abandon);
        if self.json {
            print_job_documents(ledger, correlation).await?;
        } else {
            output::print_line(format!(
                "{} events, {} jobs: {}",
                count_events(&*ledger.plane().documents, correlation).await?,
                now.job_count(),
                output::coloured_state(now.verdict().as_str())
            ));
        }
        let registered = ledger.registered_modules().await?;
        for outdated in outdated_gathers(ledger, correlation, &registered).await? {
            output::print_message(&outdated_line(&outdated));
        }
        if now.held_back > 0 {
            output::print_message(&format!(
                "the correlation goes on only after {}",
                list_obstacles(waited_for)
            ));
        }
        Ok(if now.has_failed() { CommandVerdict::Failed } else { CommandVerdict::Well })
    }
}
