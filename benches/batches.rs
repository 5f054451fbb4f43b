//! Measures batches: many small events of one module, by a process for each event and by a process
//! for many.
//!
//! `cargo bench --bench batches` prints events in a second. `ION_BENCH_BATCHES` is the number of
//! events that are taken in batches (100,000); by single jobs it is a fiftieth of that.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a bench prints its results, and panics when it cannot continue"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use ionfs::event::KeyValue;
use ionfs::stores::open::{StoreUrls, open};
use ionfs::stores::{Collection, DataPlane, Durability, Pages, Query, encode};
use serde_json::{Value, json};
use support::Home;
use support::mount::{first_event, runtime};
use tokio::runtime::Runtime;

/// By how many fewer events single jobs are measured.
const FEWER: usize = 50;

/// How many events are inserted, and sent, together.
const TOGETHER: usize = 5000;

/// Reads a value of each event and publishes an event, by nothing but the shell itself.
const SMALL: &str = r#"#!/bin/sh
cd "$ION_DIR"
test -n "$ION_BATCH" || set -- .
test $# = 1 || set -- *
for n in "$@"; do
  read -r value < "$n/in/meta/n"
  echo "{\"eventType\": \"small\", \"n\": \"$value\"}" > "$n/out/events/e.json"
done
"#;

/// What a dispatcher did with the events.
struct Measured {
    /// Events in a second.
    rate: f64,
    /// The rate of the last tenth of the jobs, by the rate of the first.
    last_by_first: f64,
    /// The most memory of the dispatcher, in MiB.
    memory: u64,
}

fn main() {
    let events = std::env::var("ION_BENCH_BATCHES").map_or(100_000, |text| text.parse().unwrap());
    let runtime = runtime();
    println!(
        "{:<44} {:>9} {:>10} {:>8} {:>12} {:>8}  goal",
        "", "events", "events/s", "ratio", "last/first", "MiB"
    );
    for (what, program, emits) in [
        ("a module that does nothing", "#!/bin/sh\n:\n", ""),
        ("reads a value, publishes", SMALL, "small"),
    ] {
        let program = if emits.is_empty() { None } else { Some(program) };
        let single = measure(&runtime, program, emits, None, events / FEWER);
        line(&format!("{what}: single jobs"), events / FEWER, &single, &single, "");
        for batch in [100, 1000] {
            let goal = if emits.is_empty() { ">= 20" } else { "" };
            let measured = measure(&runtime, program, emits, Some(batch), events);
            line(&format!("{what}: batch: {batch}"), events, &measured, &single, goal);
        }
    }
}

fn line(what: &str, events: usize, measured: &Measured, single: &Measured, goal: &str) {
    let Measured { rate, last_by_first, memory } = measured;
    let ratio = rate / single.rate;
    println!(
        "{what:<44} {events:>9} {rate:>10.0} {ratio:>8.1} {last_by_first:>12.2} {memory:>8}  {goal}"
    );
}

/// Lets a dispatcher work off so many waiting events.
fn measure(
    runtime: &Runtime,
    program: Option<&str>,
    emits: &str,
    batch: Option<usize>,
    events: usize,
) -> Measured {
    let home = Home::new();
    let run = match program {
        Some(script) => home.program("work", script).display().to_string(),
        None => "/bin/true".to_owned(),
    };
    let mut module = json!({"on": ["go"], "run": [run]});
    if !emits.is_empty() {
        module["emits"] = json!([emits]);
    }
    if let Some(batch) = batch {
        module["batch"] = batch.into();
    }
    // JSON is YAML.
    let file = home.write("pipeline.yaml", json!({"modules": {"work": module}}).to_string());
    home.run(["module", "create", "--pipeline", file.to_str().unwrap()]).well();
    let plane = runtime.block_on(open(&StoreUrls::embedded(&home.state()))).unwrap();
    runtime.block_on(fill(&plane, events));
    let began = Instant::now();
    let up = home.up_with(&["--quiet"], &file);
    runtime.block_on(wait_for_ends(&plane));
    let took = began.elapsed();
    let memory = support::cgroup::peak_mib(up.pid());
    assert_eq!(up.stop(), Some(0));
    let last_by_first = runtime.block_on(last_by_first(&plane, events));
    Measured { rate: events as f64 / took.as_secs_f64(), last_by_first, memory }
}

/// Inserts the events, and sends a message of each.
async fn fill(plane: &DataPlane, events: usize) {
    for from in (0..events).step_by(TOGETHER) {
        let event = |n: usize| {
            let mut event = first_event(&format!("e{n}"), "go", vec![]);
            event.data = vec![KeyValue { key: "n".into(), value: n.to_string() }];
            event
        };
        let chunk: Vec<_> = (from..events.min(from + TOGETHER)).map(event).collect();
        let documents = chunk.iter().map(|event| (Collection::Events, encode(event))).collect();
        plane.documents.insert_all(documents, None, Durability::Now).await.unwrap();
        let messages: Vec<_> = chunk.iter().map(ionfs::event::Event::message).collect();
        let sent = messages.iter().map(|message| plane.bus.send("work", message));
        futures_util::future::try_join_all(sent).await.unwrap();
    }
}

/// Waits until no message waits and no job is left.
async fn wait_for_ends(plane: &DataPlane) {
    let is_open = async || {
        if plane.bus.count_messages("work", 1).await.unwrap() != Some(0) {
            return true;
        }
        for state in ["queued", "starting", "running"] {
            let query = Query::equal(Collection::Jobs, vec![("state", json!(state))]).limit(1);
            if plane.documents.count(query).await.unwrap() > 0 {
                return true;
            }
        }
        false
    };
    while is_open().await {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Returns the rate at which the last tenth of the jobs ended, by the rate of the first tenth.
async fn last_by_first(plane: &DataPlane, events: usize) -> f64 {
    let succeeded = vec![("state", json!("succeeded"))];
    let mut pages = Pages::new(
        Query::equal(Collection::Jobs, succeeded).only(&["ended", "created", "due"]),
        "due",
    );
    let mut ends: Vec<i64> = Vec::new();
    while let Some(page) = pages.next(&*plane.documents).await.unwrap() {
        ends.extend(page.iter().filter_map(|job: &Value| job["ended"].as_i64()));
    }
    assert_eq!(ends.len(), events, "each event has a job that succeeded");
    ends.sort_unstable();
    let tenth = events / 10;
    // The first jobs of all end a moment after the start.
    let time = |from: usize, to: usize| (ends[to] - ends[from]).max(1) as f64;
    time(tenth / 2, tenth + tenth / 2) / time(events - 1 - tenth, events - 1)
}
