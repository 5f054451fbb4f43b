//! `--wait`: follows a correlation to its end.
//!
//! # How it works
//! The command reads the correlation again and again, and says what the correlation waits for when
//! that changes. It also waits for an unavailable document store: the created event is processed
//! without this command, and a replica set takes some ten seconds to elect a new primary.
//!
//! # What it never does
//! Wait without an end: [`STORE_AWAY_MAX`] bounds the time that the store may be unavailable, and
//! the caller's time-out bounds the whole wait.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dispatcher::dispatch::ServedWatch;
use dispatcher::ledger::Ledger;
use dispatcher::progress::{CorrelationStatus, Obstacle, obstacles, status};
use humantime::format_duration;
use indicatif::{MultiProgress, ProgressBar};
use ionfs::errors::error_chain;
use ionfs::id::JobId;
use ionfs::stores::StoreError;
use tokio::time::Instant;

use crate::settings::CommandSettings;
use crate::trace::{job_line, outdated};
use crate::{CommandFailure, CommandResult, CommandVerdict, output};

/// The shortest time between two looks at the correlation.
const LOOK: Duration = Duration::from_millis(100);

/// The longest time between two looks, for a correlation that takes long to read.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// How long a document store may be unavailable without a break. Restarts and elections take
/// seconds, upgrades a few minutes.
const STORE_AWAY_MAX: Duration = Duration::from_secs(300);

/// How long nothing may move before the command says what the correlation waits for. While jobs
/// end, their own lines say enough.
const QUIET: Duration = Duration::from_secs(5);

/// The shortest time between two lines that say what the correlation waits for.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// One line names at most this many obstacles.
const NAMED_MAX: usize = 5;

/// Follows a correlation to its end. A terminal shows a line for each module, a pipe gets a line
/// for each job that has ended.
///
/// # Errors
/// When the correlation does not exist or has not ended by the time-out, or when the document store
/// fails or is unavailable for longer than [`STORE_AWAY_MAX`].
pub(crate) async fn wait(
    settings: &CommandSettings,
    ledger: &Ledger,
    correlation: &str,
    timeout: Duration,
) -> CommandResult {
    let deadline = Instant::now() + timeout;
    let mut shown = ShownJobs::new(settings);
    let mut waits = ObstacleReporter::new();
    let mut served = ServedWatch::default();
    let mut away = None;
    loop {
        let begun = Instant::now();
        match look(ledger, &mut served, correlation).await {
            Ok((now, waited_for)) => {
                if away.take().is_some() {
                    output::say("the document store is back");
                }
                if now.events.is_empty() {
                    return Err(CommandFailure(format!("there is no correlation {correlation}")));
                }
                shown.update(&now);
                if now.ended {
                    return Ok(shown.end(&now, &waited_for));
                }
                waits.say(&now, waited_for);
            }
            Err(error @ StoreError::Unavailable { .. }) => {
                let since = *away.get_or_insert_with(|| {
                    let most = STORE_AWAY_MAX.min(deadline.saturating_duration_since(begun));
                    let most = format_duration(Duration::from_secs(most.as_secs()));
                    output::say(&format!(
                        "waiting for the document store, for {most} at most: {}",
                        error_chain(&error)
                    ));
                    begun
                });
                if since.elapsed() > STORE_AWAY_MAX {
                    let most = format_duration(STORE_AWAY_MAX);
                    return Err(CommandFailure(format!(
                        "the document store was unavailable for {most}: {}; `ion trace \
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
        // long that LOOK_MAX bounds the pause.
        tokio::time::sleep(LOOK.max((begun.elapsed() * 4).min(LOOK_MAX))).await;
    }
}

async fn look(
    ledger: &Ledger,
    served: &mut ServedWatch,
    correlation: &str,
) -> Result<(CorrelationStatus, Vec<Obstacle>), StoreError> {
    let registered = ledger.registered().await?;
    let now = status(ledger, correlation, &registered).await?;
    let waited_for = obstacles(&now, &registered, &served.look(ledger).await?);
    Ok((now, waited_for))
}

/// What the command has said about the obstacles that a correlation waits for.
struct ObstacleReporter {
    /// The number of events and ended jobs at the last look at which it changed.
    progress: usize,
    /// When it changed.
    moved: Instant,
    /// The obstacles that were named and are still there.
    said: Vec<Obstacle>,
    spoke: Option<Instant>,
}

impl ObstacleReporter {
    fn new() -> Self {
        Self { progress: 0, moved: Instant::now(), said: Vec::new(), spoke: None }
    }

    /// Names the obstacles if one of them is new. Those that people have to remove are named at
    /// once, all others only when nothing has moved for a while.
    fn say(&mut self, now: &CorrelationStatus, mut obstacles: Vec<Obstacle>) {
        let ended = now.jobs.iter().filter(|job| job.state.is_final()).count();
        if self.progress != now.events.len() + ended {
            (self.progress, self.moved) = (now.events.len() + ended, Instant::now());
        }
        self.said.retain(|said| obstacles.iter().any(|obstacle| obstacle.is_same_kind(said)));
        if self.moved.elapsed() < QUIET {
            obstacles.retain(Obstacle::needs_people);
        }
        let is_new =
            |obstacle: &Obstacle| !self.said.iter().any(|said| said.is_same_kind(obstacle));
        let spoke_lately = self.spoke.is_some_and(|at| at.elapsed() < SAY_EVERY);
        if spoke_lately || !obstacles.iter().any(is_new) {
            return;
        }
        output::say(&format!("waiting for {}", named(&obstacles)));
        (self.said, self.spoke) = (obstacles, Some(Instant::now()));
    }
}

fn named(obstacles: &[Obstacle]) -> String {
    let mut named: Vec<String> = obstacles
        .iter()
        .take(NAMED_MAX)
        .map(|obstacle| output::of_others(&obstacle.to_string()))
        .collect();
    if let Some(more @ 1..) = obstacles.len().checked_sub(NAMED_MAX) {
        named.push(format!("and {more} more"));
    }
    named.join("; ")
}

/// What the user has been shown of a correlation's jobs.
struct ShownJobs {
    jobs: BTreeSet<JobId>,
    bars: MultiProgress,
    by_module: BTreeMap<String, ProgressBar>,
    terminal: bool,
    json: bool,
}

impl ShownJobs {
    fn new(settings: &CommandSettings) -> Self {
        Self {
            jobs: BTreeSet::new(),
            bars: MultiProgress::with_draw_target(output::bar_target()),
            by_module: BTreeMap::new(),
            terminal: output::is_terminal(),
            json: settings.json,
        }
    }

    fn update(&mut self, now: &CorrelationStatus) {
        for job in now.jobs.iter().filter(|job| job.state.is_final()) {
            if self.jobs.insert(job.id.clone()) && !self.terminal && !self.json {
                output::line(job_line(job));
            }
        }
        if !self.terminal {
            return;
        }
        for (module, counts) in now.by_module() {
            let bars = &self.bars;
            let bar = self
                .by_module
                .entry(module.to_owned())
                .or_insert_with(|| bars.add(ProgressBar::new_spinner()));
            let counts: Vec<String> =
                counts.iter().map(|(state, n)| format!("{n} {}", output::state(state))).collect();
            bar.set_message(format!("{}: {}", output::of_others(module), counts.join(", ")));
            bar.tick();
        }
    }

    /// Shows how the correlation ended.
    fn end(&self, now: &CorrelationStatus, waited_for: &[Obstacle]) -> CommandVerdict {
        self.by_module.values().for_each(ProgressBar::abandon);
        if self.json {
            output::json(&now.jobs);
        } else {
            output::line(format!(
                "{} events, {} jobs: {}",
                now.events.len(),
                now.jobs.len(),
                output::state(now.verdict().as_str())
            ));
        }
        outdated(now).iter().for_each(|line| output::say(line));
        if now.held_back > 0 {
            output::say(&format!("the correlation goes on only after {}", named(waited_for)));
        }
        if now.failed() { CommandVerdict::Failed } else { CommandVerdict::Well }
    }
}
