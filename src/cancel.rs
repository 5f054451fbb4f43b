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

use crate::settings::{CommandSettings, any_time};
use crate::{CommandFailure, CommandResult, CommandVerdict, output};

/// The time between two looks at whether the running jobs have stopped.
const LOOK: Duration = Duration::from_millis(200);

/// The time between two lines that say how far a long cancellation is.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// Stop all work that an event has started: queued jobs, running jobs, and jobs still to come
///
/// If ID is a correlation, all of it is cancelled. If ID is an event, everything below it is
/// cancelled: its jobs, the events that these have committed, and so on. Running jobs get SIGTERM,
/// and SIGKILL after a while. Events that they commit until they have stopped start nothing. Jobs
/// that have ended stay as they are, dead jobs too. If this command is killed, the dispatchers
/// finish the cancellation. `ion job retry` lets a cancelled job run again.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  ion cancel 3f2b91c0                 cancel a correlation, or an event and all below it
  ion cancel 3f2b91c0 --timeout 10s   wait at most 10 s for running jobs to stop")]
pub(crate) struct CancelArgs {
    /// The id of a correlation or of an event, or the beginning of an id
    id: String,
    /// How long to wait at most for running jobs to stop
    #[arg(long, default_value = "1m", value_parser = any_time)]
    timeout: Duration,
}

pub(crate) async fn run(settings: &CommandSettings, args: CancelArgs) -> CommandResult {
    let ledger = Ledger::new(settings.existing_plane().await?);
    let what = find(&ledger, &args.id).await?;
    let begun = Instant::now();
    let mut said = begun;
    let mut cancellation = Cancellation::begin(&ledger, what.clone()).await?;
    let ended = loop {
        if cancellation.go_on(&ledger, Instant::now() + LOOK).await? {
            break true;
        }
        let done = cancellation.done();
        // The time-out bounds only the wait for running jobs: a long list of jobs is always gone
        // through to its end.
        if done.running > 0 {
            if begun.elapsed() > args.timeout {
                break false;
            }
            tokio::time::sleep(LOOK).await;
        }
        if said.elapsed() >= SAY_EVERY {
            said = Instant::now();
            output::say(&in_words(&done));
        }
    };
    let done = cancellation.done();
    if settings.json {
        output::json(&json!({"what": what, "ended": ended, "done": done}));
    } else {
        let named = match &what.event {
            Some(event) => format!("event {event} and what came of it"),
            None => format!("correlation {}", what.correlation),
        };
        output::line(format!("{named}: {}", in_words(&done)));
    }
    if done.dead > 0 {
        output::say(&format!(
            "{} stay as they are: `ion dead list` shows them, `ion dead drop` gives them up",
            count(done.dead, "dead job")
        ));
    }
    if ended {
        return Ok(CommandVerdict::Well);
    }
    Err(CommandFailure(format!(
        "after {} {} still running; their dispatchers will stop them, and nothing new is started",
        format_duration(args.timeout),
        if done.running == 1 {
            "1 job is".to_owned()
        } else {
            format!("{} jobs are", done.running)
        }
    )))
}

/// Finds what an id names: an event or a correlation with this id, else the only event or
/// correlation whose id begins with it.
async fn find(ledger: &Ledger, id: &str) -> Result<CancelOrder, CommandFailure> {
    if let Some(event) = ledger.visible_event(&EventId::new(id)).await? {
        return Ok(CancelOrder::event(&event));
    }
    let of_it = Query::equal(Collection::Events, vec![("context.correlationId", json!(id))]);
    let found = ledger.plane().documents.find(of_it.order_by("created").limit(1)).await?;
    if !found.is_empty() {
        return Ok(CancelOrder::correlation(CorrelationId::new(id)));
    }
    match find_event(ledger, id).await {
        Ok(event) => Ok(CancelOrder::event(&event)),
        Err(_) => {
            Ok(CancelOrder::correlation(CorrelationId::new(find_correlation(ledger, id).await?)))
        }
    }
}

fn in_words(done: &CancelProgress) -> String {
    let mut words = vec![
        format!("{} stopped", count(done.stopped, "running job")),
        format!("{} cancelled", count(done.queued, "waiting job")),
        format!("{} that would still have been started", count(done.prevented, "job")),
    ];
    if done.running > 0 {
        words.push(format!("{} not stopped yet", count(done.running, "job")));
    }
    words.join(", ")
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
