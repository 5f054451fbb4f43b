//! `ion cancel`: stops all work that an event has started.

use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use dispatcher::cancel::{CancelProgress, Cancellation};
use dispatcher::find::{find_correlation, find_event};
use dispatcher::ledger::Ledger;
use humantime::format_duration;
use ionfs::id::{CorrelationId, EventId};
use ionfs::registry::CancelOrder;
use ionfs::stores::{Collection, Query};
use serde_json::json;

use crate::settings::{CommandSettings, parse_wait_limit};
use crate::{CommandFailure, CommandResult, CommandVerdict, output};

/// The time between two checks whether the running jobs have stopped.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The time between two lines that say how far a long cancellation is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Stop all work that an event has started: queued jobs, running jobs, and jobs still to come
///
/// If ID is a correlation, all of it is cancelled. If ID is an event, everything below it is
/// cancelled: its jobs, the events that these have committed, and so on. Running jobs get SIGTERM,
/// and SIGKILL after a while. Events that they commit until they have stopped start nothing. Jobs
/// that have ended stay as they are, dead jobs too. If this command is killed, the dispatchers
/// finish the cancellation. `ion job retry` lets a cancelled job run again.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  ion cancel 3f2b91c0                 cancel a correlation, or an event and all below it
  ion cancel 3f2b91c0 --timeout 10s   wait at most 10 s for running jobs to stop")]
pub(crate) struct CancelArgs {
    /// The id of a correlation or of an event, or the beginning of an id
    id: String,
    /// How long to wait at most for running jobs to stop
    #[arg(long, default_value = "1m", value_parser = parse_wait_limit)]
    timeout: Duration,
}

pub(crate) async fn run(settings: &CommandSettings, args: CancelArgs) -> CommandResult {
    let ledger = Ledger::new(settings.open_existing_plane().await?);
    let order = find_order(&ledger, &args.id).await?;
    let started = Instant::now();
    let mut reported_at = started;
    let mut cancellation = Cancellation::begin(&ledger, order.clone()).await?;
    let ended = loop {
        if cancellation.work_until(&ledger, Instant::now() + POLL_INTERVAL).await? {
            break true;
        }
        let progress = cancellation.progress();
        // The time-out bounds only the wait for running jobs: a long list of jobs is always gone
        // through to its end.
        if progress.running > 0 {
            if started.elapsed() > args.timeout {
                break false;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        if reported_at.elapsed() >= PROGRESS_INTERVAL {
            reported_at = Instant::now();
            output::print_message(&describe_progress(&progress));
        }
    };
    let progress = cancellation.progress();
    if settings.json {
        output::print_json(&json!({"what": order, "ended": ended, "done": progress}));
    } else {
        let subject = match &order.event {
            Some(event) => format!("event {event} and what came of it"),
            None => format!("correlation {}", order.correlation),
        };
        output::print_line(format!("{subject}: {}", describe_progress(&progress)));
    }
    if progress.dead > 0 {
        output::print_message(&format!(
            "{} stay as they are: `ion dead list` shows them, `ion dead drop` gives them up",
            format_count(progress.dead, "dead job")
        ));
    }
    if ended {
        return Ok(CommandVerdict::Well);
    }
    Err(CommandFailure(format!(
        "after {} {} still running; their dispatchers will stop them, and nothing new is started",
        format_duration(args.timeout),
        if progress.running == 1 {
            "1 job is".to_owned()
        } else {
            format!("{} jobs are", progress.running)
        }
    )))
}

/// Finds what an id names: an event or a correlation with this id, else the only event or
/// correlation whose id begins with it.
async fn find_order(ledger: &Ledger, id: &str) -> Result<CancelOrder, CommandFailure> {
    if let Some(event) = ledger.visible_event(&EventId::new(id)).await? {
        return Ok(CancelOrder::for_event(&event));
    }
    let query = Query::equal(Collection::Events, vec![("context.correlationId", json!(id))]);
    let found = ledger.plane().documents.find(query.order_by("created").limit(1)).await?;
    if !found.is_empty() {
        return Ok(CancelOrder::for_correlation(CorrelationId::new(id)));
    }
    match find_event(ledger, id).await {
        Ok(event) => Ok(CancelOrder::for_event(&event)),
        Err(_) => Ok(CancelOrder::for_correlation(CorrelationId::new(
            find_correlation(ledger, id).await?,
        ))),
    }
}

fn describe_progress(progress: &CancelProgress) -> String {
    let mut words = vec![
        format!("{} stopped", format_count(progress.stopped, "running job")),
        format!("{} cancelled", format_count(progress.queued, "waiting job")),
        format!("{} that would still have been started", format_count(progress.prevented, "job")),
    ];
    if progress.running > 0 {
        words.push(format!("{} not stopped yet", format_count(progress.running, "job")));
    }
    words.join(", ")
}

fn format_count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
