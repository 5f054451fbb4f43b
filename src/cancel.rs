//! `ion cancel`: an end to all that comes of an event.

use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use dispatcher::cancel::{Cancellation, Cancelled};
use dispatcher::ledger::Ledger;
use humantime::format_duration;
use ionfs::id::{CorrelationId, EventId};
use ionfs::registry::Cancelling;
use ionfs::stores::{Collection, Query};
use serde_json::json;

use crate::settings::{Settings, any_time};
use crate::{Failure, Outcome, Verdict, output, trace};

/// How often it is looked whether what ran has stopped.
const LOOK: Duration = Duration::from_millis(200);

/// How often a long one says how far it is.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// Stop all that comes of an event: what is queued, what runs, and what would still be started
///
/// ID is a correlation, of which all is cancelled, or an event, of which all below it is: its jobs,
/// the events these have committed, and so on. Jobs that run get SIGTERM, and SIGKILL after a
/// while. What is committed until they have stopped starts nothing. What has ended stays as it is,
/// dead jobs too. Should this command be ended, the dispatchers finish what it has begun. `ion job
/// retry` lets a cancelled job run again.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  ion cancel 3f2b91c0                 a correlation, or an event and all below it
  ion cancel 3f2b91c0 --timeout 10s   do not wait longer for jobs that run")]
pub(crate) struct Args {
    /// A correlation's or an event's id, or the beginning of one
    id: String,
    /// How long to wait until jobs that run have stopped
    #[arg(long, default_value = "1m", value_parser = any_time)]
    timeout: Duration,
}

pub(crate) async fn run(settings: &Settings, args: Args) -> Outcome {
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
        // A long list is gone through to its end; only jobs that run are not waited for.
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
        return Ok(Verdict::Well);
    }
    Err(Failure(format!(
        "after {} {} still running; whoever holds them will stop them, and nothing new is started",
        format_duration(args.timeout),
        if done.running == 1 {
            "1 job is".to_owned()
        } else {
            format!("{} jobs are", done.running)
        }
    )))
}

/// What an id names: an event, or a correlation; else the only one of either that begins so.
async fn find(ledger: &Ledger, id: &str) -> Result<Cancelling, Failure> {
    if let Some(event) = ledger.visible_event(&EventId::new(id)).await? {
        return Ok(Cancelling::event(&event));
    }
    let of_it = Query::equal(Collection::Events, vec![("context.correlationId", json!(id))]);
    let found = ledger.plane().documents.find(of_it.order_by("created").limit(1)).await?;
    if !found.is_empty() {
        return Ok(Cancelling::correlation(CorrelationId::new(id)));
    }
    match trace::find_event(ledger, id).await {
        Ok(event) => Ok(Cancelling::event(&event)),
        Err(_) => Ok(Cancelling::correlation(CorrelationId::new(
            trace::find_correlation(ledger, id).await?,
        ))),
    }
}

fn in_words(done: &Cancelled) -> String {
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
