//! Shows what happens to events while a pipeline is updated on one dispatcher after another: every
//! event reaches the modules that were registered when it was committed, and no event waits for
//! longer than a lease. The tests use the embedded stores, and RabbitMQ with a MongoDB-compatible
//! store.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "tests start programs, and say how long it took"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::books::PlaneDocuments;
use crate::support::servers::{Mongo, Rabbit, plane};
use crate::support::{Home, RunningCommand, wait_for};
use ionfs::clock::{self, Millis};
use ionfs::commit::create_event;
use ionfs::event::Event;
use ionfs::first::FirstEvent;
use ionfs::id::{CorrelationId, EventId};
use ionfs::record::{AttemptEnd, JobRecord, JobState};
use ionfs::stores::open::{StoreUrls, open};

/// The lease as `--lease` has it, and in milliseconds. No event may wait for longer.
const LEASE: (&str, Millis) = ("10s", 10_000);

/// The time between two events, whose types are `a` and `b` by turns.
const PACE: Duration = Duration::from_millis(100);

/// The pipeline before the update. Jobs of `keep` take a while, so a dispatcher that stops
/// interrupts some of them.
const BEFORE: &str = "modules:
  keep: {on: [a], run: [sleep, \"0.2\"]}
  wide: {on: [a], run: [\"true\"]}
  moved: {on: [a], run: [\"true\"]}
  old: {on: [a], run: [\"true\"]}
";

/// The pipeline after the update: `old` is named `new`, `wide` gets `b` too, `moved` gets `b`
/// instead of `a`, and `added` is added.
const AFTER: &str = "modules:
  keep: {on: [a], run: [sleep, \"0.2\"]}
  wide: {on: [a, b], run: [\"true\"]}
  moved: {on: [b], run: [\"true\"]}
  new: {on: [a], run: [\"true\"]}
  added: {on: [a, b], run: [\"true\"]}
";

/// Returns the modules that an event of a type is for before the update.
fn expected_before(event_type: &str) -> &'static [&'static str] {
    match event_type {
        "a" => &["keep", "moved", "old", "wide"],
        _ => &[],
    }
}

/// Returns the modules that an event of a type is for after the update.
fn expected_after(event_type: &str) -> &'static [&'static str] {
    match event_type {
        "a" => &["added", "keep", "new", "wide"],
        _ => &["added", "moved", "wide"],
    }
}

/// A thread that creates one event after another.
struct Load {
    /// The ids of the committed events.
    made: Arc<Mutex<Vec<String>>>,
    /// Ends the thread when it is dropped.
    goes_on: mpsc::Sender<()>,
    creating: JoinHandle<()>,
}

impl Load {
    fn begin(urls: &StoreUrls) -> Self {
        let made = Arc::<Mutex<Vec<String>>>::default();
        let (goes_on, ended) = mpsc::channel::<()>();
        let (urls, all) = (urls.clone(), made.clone());
        let creating = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let plane = runtime.block_on(open(&urls)).unwrap();
            for event_type in ["a", "b"].into_iter().cycle() {
                let id = runtime.block_on(async {
                    let event = first(event_type).into_event(&plane, "none").await.unwrap();
                    create_event(&plane, event.clone()).await.unwrap();
                    event.id.to_string()
                });
                all.lock().unwrap().push(id);
                if ended.recv_timeout(PACE) != Err(mpsc::RecvTimeoutError::Timeout) {
                    break;
                }
            }
        });
        Self { made, goes_on, creating }
    }

    fn made(&self) -> BTreeSet<String> {
        self.made.lock().unwrap().iter().cloned().collect()
    }

    /// Waits until `number` more events are committed.
    fn wait_for_more(&self, number: usize) {
        let before = self.made().len();
        wait_for("more events to be committed", || self.made().len() >= before + number);
    }

    fn end(self) -> BTreeSet<String> {
        drop(self.goes_on);
        self.creating.join().unwrap();
        self.made.lock().unwrap().iter().cloned().collect()
    }
}

fn first(event_type: &str) -> FirstEvent {
    FirstEvent {
        id: EventId::random(),
        correlation_id: CorrelationId::random(),
        name: "load".into(),
        parent: String::new(),
        event_type: event_type.into(),
        files: vec![],
        directories: vec![],
        data: vec![],
    }
}

/// Returns the jobs of a plane by event and module, and asserts that there is one at most for each.
fn jobs_of(books: &PlaneDocuments) -> BTreeMap<(String, String), JobRecord> {
    let jobs = books.jobs();
    let number = jobs.len();
    let by_event: BTreeMap<_, _> =
        jobs.into_iter().map(|job| ((job.event_id.to_string(), job.module.clone()), job)).collect();
    assert_eq!(by_event.len(), number, "no event has two jobs of one module");
    by_event
}

/// Returns the modules that an event is for, as its document says.
fn expected(event: &Event) -> Vec<&str> {
    event.expected_by.as_ref().unwrap().iter().map(String::as_str).collect()
}

fn a_rolling_update_stalls_and_loses_no_event(urls: &StoreUrls) {
    let books = PlaneDocuments::of(&urls.documents, &urls.bus);
    let homes = [(); 3].map(|()| {
        let mut home = Home::new();
        home.env = plane(&urls.documents, &urls.bus, &urls.blobs, &vec![]);
        home
    });
    let file = homes[0].write("p.yaml", BEFORE);
    let start = |home: &Home, flags: &[&str]| {
        home.start("dispatch", &[&[file.to_str().unwrap(), "--lease", LEASE.0], flags].concat())
    };
    let mut dispatchers: Vec<RunningCommand> = homes.iter().map(|home| start(home, &[])).collect();
    let load = Load::begin(urls);
    load.wait_for_more(20);
    let before = load.made();
    homes[0].write("p.yaml", AFTER);
    for (home, flags) in homes.iter().zip([&[][..], &[], &["--drop-missing"]]) {
        assert_eq!(dispatchers.remove(0).stop(), Some(0));
        load.wait_for_more(5);
        dispatchers.push(start(home, flags));
        load.wait_for_more(20);
    }
    let updated = clock::now();
    load.wait_for_more(20);
    let made = load.end();
    let told = dispatchers[2].log();
    assert!(told.contains("module \"old\" is not in the file any more and is removed"), "{told}");

    let (registry, events) = (books.registry(), books.events());
    assert_eq!(events.iter().map(|event| event.id.to_string()).collect::<BTreeSet<_>>(), made);
    let wanted: Vec<(&Event, &str)> = events
        .iter()
        .flat_map(|event| expected(event).into_iter().map(move |name| (event, name)))
        .collect();
    let still: Vec<(&Event, &str)> =
        wanted.iter().copied().filter(|(_, name)| *name != "old").collect();
    wait_for("all jobs of the modules that stay to end", || {
        let jobs = jobs_of(&books);
        let job = |event: &Event, name: &str| jobs.get(&(event.id.to_string(), name.to_owned()));
        still.iter().all(|(event, name)| job(event, name).is_some_and(|job| job.state.is_final()))
    });
    for dispatcher in dispatchers {
        assert_eq!(dispatcher.stop(), Some(0));
    }

    let mut jobs = jobs_of(&books);
    let mut longest = 0;
    for (event, name) in &wanted {
        let job = jobs.remove(&(event.id.to_string(), (*name).to_owned()));
        let succeeded = |job: &JobRecord| {
            job.attempts.iter().filter(|attempt| attempt.end == Some(AttemptEnd::Succeeded)).count()
        };
        if *name == "old" {
            // A job that `old` had not begun when it was removed never starts.
            assert!(registry.registration(name).is_none());
            assert!(job.as_ref().is_none_or(|job| succeeded(job) <= 1), "{job:#?}");
            continue;
        }
        assert!(
            registry.registration(name).unwrap().receives(name, event),
            "the event is for {name}, which was never removed: {event:#?}"
        );
        let job = job.unwrap();
        assert_eq!(
            (job.state, succeeded(&job), job.failures),
            (JobState::Succeeded, 1, 0),
            "{job:#?}"
        );
        let waited = job.attempts.last().unwrap().started - event.created;
        assert!(waited <= LEASE.1, "{name} began {waited} ms after the event: {event:#?} {job:#?}");
        longest = longest.max(waited);
    }
    assert!(jobs.is_empty(), "no module has a job of an event that is not for it: {jobs:#?}");
    let mut changes = BTreeSet::new();
    for event in &events {
        let expected = expected(event);
        if before.contains(event.id.as_str()) {
            assert_eq!(
                expected,
                expected_before(&event.event_type),
                "the event was created before the update: {event:#?}"
            );
        } else if event.created > updated {
            assert_eq!(
                expected,
                expected_after(&event.event_type),
                "the event was created after the update: {event:#?}"
            );
        }
        assert_eq!(expected.contains(&"keep"), event.event_type == "a", "{event:#?}");
        changes.insert((&event.event_type, expected));
    }
    homes[0].run(["check", "--deep"]).well();
    let released = books.jobs().iter().filter(|job| job.attempts.len() > 1).count();
    println!(
        "{} events, {} jobs, {released} of them begun again; for {} sets of modules; the longest wait was {longest} ms",
        events.len(),
        wanted.len(),
        changes.len()
    );
}

#[test]
fn a_rolling_update_stalls_and_loses_no_event_of_the_embedded_plane() {
    let home = Home::new();
    std::fs::create_dir_all(home.state()).unwrap();
    a_rolling_update_stalls_and_loses_no_event(&StoreUrls::embedded(&home.state()));
}

#[test]
fn a_rolling_update_stalls_and_loses_no_event_on_real_servers() {
    let (rabbit, mongo, home) = (Rabbit::start(), Mongo::start(), Home::new());
    a_rolling_update_stalls_and_loses_no_event(&StoreUrls {
        documents: mongo.database("ion"),
        bus: rabbit.url.clone(),
        ..StoreUrls::embedded(&home.state())
    });
}
