//! Measures what looks at a large plane: whole commands on a plane of a million events and as many
//! jobs, compared with the same commands on a plane of a thousand. One correlation has a tenth of
//! them.
//!
//! `cargo bench --bench scale` runs it on the embedded stores, `-- mongodb` on a server of
//! MongoDB's protocol too. `ION_BENCH_SCALE` (1,000,000) is the number of events. The planes are
//! filled by bulk inserts of documents that have the shape of those that a pipeline makes.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a bench starts programs, prints its results, and panics when it cannot continue"
)]

mod common;
#[path = "../tests/support/mod.rs"]
mod support;

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{median, middle};
use ionfs::clock::{self, Millis};
use ionfs::event::{Context, DocumentType, Event, KeyValue, PublicationState};
use ionfs::id::{CorrelationId, EventId, JobId};
use ionfs::record::{Attempt, AttemptEnd, InsightRecord, JobRecord, JobState};
use ionfs::stores::open::{StoreUrls, open};
use ionfs::stores::{Collection, DataPlane, Durability, encode};
use ionfs::term::index_texts;
use serde_json::Value;
use support::Home;
use support::servers::Mongo;

/// The number of events of the plane that is compared with.
const SMALL: usize = 1000;

/// The number of events and jobs of an ordinary correlation.
const EACH: usize = 10;

/// How many documents are inserted at once. Each insert writes the pages of all indexes that it
/// changes, so fewer of them fill a plane of ten million events in a fraction of the time.
const INSERTED_AT_ONCE: usize = 30_000;

/// How often a command is measured.
const ROUNDS: usize = 5;

/// Each of so many jobs keeps insights, and each of so many is dead.
const INSIGHT_EVERY: usize = 5;
const DEAD_EVERY: usize = 100;

/// The correlation that has a tenth of all events.
const LARGE: &str = "large-correlation";

fn main() {
    let events = std::env::var("ION_BENCH_SCALE").map_or(1_000_000, |text| text.parse().unwrap());
    let wants_mongo = std::env::args().any(|word| word == "mongodb");
    let runtime = support::mount::runtime();
    let (small, large) = (Home::new(), Home::new());
    for (home, events) in [(&small, SMALL), (&large, events)] {
        let plane = runtime.block_on(open(&StoreUrls::embedded(&home.state()))).unwrap();
        fill(&runtime, &plane, events);
    }
    let database = std::fs::metadata(large.state().join("ion.db")).unwrap().len() >> 20;
    println!("embedded stores, {events} events and jobs, a database of {database} MiB");
    compare(&large, &small, events);
    browse(&large, &small);
    idle(&large, &small);
    let plane = runtime.block_on(open(&StoreUrls::embedded(&large.state()))).unwrap();
    keeping(&runtime, &plane);
    if wants_mongo {
        let servers = [Mongo::start(), Mongo::start()];
        let homes = servers.each_ref().map(|server| {
            let mut home = Home::new();
            home.env = vec![("ION_DOCUMENTS".to_owned(), server.url.clone())];
            home
        });
        for (server, events) in servers.iter().zip([SMALL, events]) {
            let home = Home::new();
            let urls =
                StoreUrls { documents: server.url.clone(), ..StoreUrls::embedded(&home.state()) };
            let plane = runtime.block_on(open(&urls)).unwrap();
            fill(&runtime, &plane, events);
        }
        println!("MongoDB's protocol, {events} events and jobs");
        compare(&homes[1], &homes[0], events);
        browse(&homes[1], &homes[0]);
    }
}

/// Fills a plane: a tenth of the events in one correlation, all others in correlations of ten.
fn fill(runtime: &tokio::runtime::Runtime, plane: &DataPlane, events: usize) {
    let began = Instant::now();
    let first = clock::now() - Millis::try_from(events).unwrap() - 1000;
    let mut documents: Vec<(Collection, Value)> = Vec::new();
    let insert = |documents: &mut Vec<(Collection, Value)>| {
        let all = std::mem::take(documents);
        let inserted = plane.documents.insert_all(all, None, Durability::WithNextSync);
        runtime.block_on(inserted).unwrap();
    };
    let large = events / 10;
    let mut root: Option<(Event, JobId)> = None;
    for n in 0..events {
        let (of, is_root) = match n < large {
            true => (LARGE.to_owned(), n == 0),
            false => {
                let group = (n - large) / EACH;
                (correlation(group), (n - large).is_multiple_of(EACH))
            }
        };
        let created = first + Millis::try_from(n).unwrap();
        let parent = if is_root { None } else { root.as_ref() };
        let event = event(n, &of, parent, created);
        let job = job(n, &event, created);
        if n.is_multiple_of(INSIGHT_EVERY) {
            documents.push((Collection::Events, encode(&insight(n, &event, &job))));
        }
        documents.push((Collection::Events, encode(&event)));
        documents.push((Collection::Jobs, encode(&job)));
        if is_root {
            root = Some((event, job.id));
        }
        if documents.len() >= INSERTED_AT_ONCE {
            insert(&mut documents);
        }
    }
    insert(&mut documents);
    runtime.block_on(plane.documents.sync()).unwrap();
    println!("filled a plane of {events} events in {:.1?}", began.elapsed());
}

/// Returns the id of the correlation of this number.
fn correlation(number: usize) -> String {
    JobId::derive(&EventId::new("correlation"), &number.to_string()).to_string()
}

fn event(n: usize, correlation: &str, parent: Option<&(Event, JobId)>, created: Millis) -> Event {
    let id = EventId::new(JobId::derive(&EventId::new("event"), &n.to_string()).to_string());
    Event {
        context: Context {
            name: if parent.is_some() { "make" } else { "ion" }.into(),
            event_id: id.clone(),
            correlation_id: CorrelationId::new(correlation),
            parent_event_id: parent.map(|(event, _)| event.id.to_string()).unwrap_or_default(),
            document_type: DocumentType::EventMeta,
        },
        id,
        event_type: if parent.is_some() { "crop" } else { "video" }.into(),
        files: vec![],
        file_list: None,
        data: vec![KeyValue { key: "n".into(), value: n.to_string() }],
        directories: vec![],
        created,
        publication: PublicationState::Published,
        depth: u32::from(parent.is_some()),
        file_name: parent.map(|_| format!("{n}.json")),
        job_id: parent.map(|(_, job)| job.clone()),
        attempt: parent.map(|_| 1),
        publisher: None,
        unrouted: false,
        cancelled: false,
        expected_by: Some(vec!["work".into()]),
        registry: 1,
        unclaimed: false,
        tick: None,
    }
}

fn job(n: usize, event: &Event, created: Millis) -> JobRecord {
    let module = if event.depth == 0 { "make" } else { "work" };
    let id = JobId::derive(&event.id, module);
    let is_dead = n % DEAD_EVERY == 1;
    let state = if is_dead { JobState::Dead } else { JobState::Succeeded };
    let end = if is_dead { AttemptEnd::Failed } else { AttemptEnd::Succeeded };
    let ended = created + 20 + Millis::try_from(n % 30).unwrap();
    let attempt = Attempt {
        ended: Some(ended),
        end: Some(end),
        exit_code: Some(i32::from(is_dead) * 3),
        reason: is_dead.then(|| "exit status 3".to_owned()),
        ..Attempt::new(1, created + 5)
    };
    JobRecord {
        attempt: 1,
        attempts: vec![attempt],
        due: ended,
        ended: Some(ended),
        ..JobRecord::new(id, module, event, state, created)
    }
}

fn insight(n: usize, event: &Event, job: &JobRecord) -> InsightRecord {
    let pair = |key: &str, value: String| KeyValue { key: key.into(), value };
    let colours = ["red", "green", "blue", "white", "black", "grey", "silver"];
    let data = vec![
        pair("kind", if n.is_multiple_of(3) { "car" } else { "bus" }.into()),
        pair("colour", colours[n / INSIGHT_EVERY % colours.len()].into()),
        pair("score", format!("{:.4}", (n % 10_007) as f64 / 10_007.0)),
        pair("plate", format!("P-{n}")),
        pair("note", "an ordinary sentence of some length".into()),
    ];
    InsightRecord {
        id: InsightRecord::id(&job.id),
        context: Context {
            name: "work".into(),
            document_type: DocumentType::Insight,
            ..event.context.clone()
        },
        terms: index_texts("work", &data),
        data,
        created: job.created + 10,
        job_id: job.id.clone(),
        attempt: 1,
        staged: false,
    }
}

/// Compares the commands on the large plane, which has so many events, with those on the small one.
fn compare(large: &Home, small: &Home, events: usize) {
    println!("{:<58} {:>11} {:>11} {:>8}  goal", "", "large", "small", "ratio");
    let latest = JobId::derive(&EventId::new("event"), "7").to_string();
    let job = JobId::derive(&EventId::new(latest.as_str()), "work").to_string();
    let prefix = &job[..13];
    let rows: [(&str, &[&str], &str); 14] = [
        ("ion trace: the latest correlation", &["trace"], "<= 50 ms"),
        ("ion job get, by the beginning of an id", &["job", "get", prefix], "<= 50 ms"),
        ("ion job list --limit 100", &["job", "list", "--limit", "100"], "<= 50 ms"),
        ("ion event list --limit 100", &["event", "list", "--limit", "100"], "<= 50 ms"),
        ("ion dead list --limit 100", &["dead", "list", "--limit", "100"], "<= 50 ms"),
        (
            "ion job list of a module and a state",
            &["job", "list", "-m", "work", "-s", "dead", "--limit", "100"],
            "<= 50 ms",
        ),
        (
            "ion event list of a type since an hour",
            &["event", "list", "-t", "video", "--since", "1h", "--limit", "100"],
            "<= 50 ms",
        ),
        ("ion trace LARGE, the summary", &["trace", LARGE, "--summary"], "<= 1 s"),
        ("ion trace LARGE --failed", &["trace", LARGE, "--failed", "--limit", "100"], ""),
        ("ion trace LARGE --depth 1", &["trace", LARGE, "--depth", "1"], ""),
        (
            "ion find insights, two terms, the first 100",
            &["find", "insights", "work", "kind=car", "colour=red", "--limit", "100"],
            "",
        ),
        (
            "ion find insights, a narrow range",
            &["find", "insights", "work", "score>=0.9999", "--limit", "100"],
            "",
        ),
        (
            "ion find insights, one plate, @video",
            &["find", "insights", "work", "plate=P-25", "@video"],
            "",
        ),
        (
            "ion find insights, a wide range and a wide term",
            &["find", "insights", "work", "score>=0.2", "kind=bus", "--limit", "100"],
            "",
        ),
    ];
    for (what, words, goal) in rows {
        let mut peak = 0;
        let ours = median(ROUNDS, || {
            let (took, _, memory) = timed(large, words);
            peak = memory.max(peak);
            took
        });
        let theirs = median(ROUNDS, || timed(small, words).0);
        line(what, ours, theirs, &format!("{goal}  ({} MiB)", peak >> 20));
    }
    let (took, bytes, memory) = timed(large, &["trace", LARGE, "--all"]);
    let (small_took, small_bytes, _) = timed(small, &["trace", LARGE, "--all"]);
    let each = |took: Duration, bytes: u64| took.div_f64(bytes as f64 / 100_000.0);
    let old = &["gc", "--older-than", "1s", "--dry-run"][..];
    for (what, words) in [("ion check", &["check"][..]), ("ion gc --older-than, dry run", old)] {
        let thousand = |home: &Home, events: usize| {
            let (took, _, memory) = timed(home, words);
            (took, took.div_f64(events as f64 / 1000.0), memory)
        };
        let (took, ours, memory) = thousand(large, events);
        let (_, theirs, _) = thousand(small, SMALL);
        let note = format!("linear  ({took:.1?}, {} MiB)", memory >> 20);
        line(&format!("{what}, each 1,000 events and jobs"), ours, theirs, &note);
    }
    line(
        "ion trace LARGE --all, each 100 kB printed",
        each(took, bytes),
        each(small_took, small_bytes),
        &format!("linear  ({:.1?}, {} MiB)", took, memory >> 20),
    );
}

/// Compares shell commands in the mounted large plane with those in the small one.
fn browse(large: &Home, small: &Home) {
    let mounts = [BrowsedPlane::new(large), BrowsedPlane::new(small)];
    let event = JobId::derive(&EventId::new("event"), "7").to_string();
    let read = format!("cat correlations/{}/{event}/event.json", &LARGE[..6]);
    let rows: [(&str, &str, &str); 6] = [
        (
            "ls -U of the large correlation | head",
            "ls -U correlations/LARGE | head -n 100",
            "<= 50 ms",
        ),
        (
            "ls -U of the newest day of a type | head",
            "ls -U types/crop/* | head -n 100",
            "<= 50 ms",
        ),
        ("ls recent", "ls recent", ""),
        ("an event by the beginnings of ids", &read, "<= 50 ms"),
        ("the state of the first dead job", "cat dead/$(ls -U dead | head -n 1)/state", "<= 50 ms"),
        (
            "find by paths, the first 100",
            "ls -U find/insights/work/kind=car/colour=red | head -n 100",
            "<= 50 ms",
        ),
    ];
    for (what, script, goal) in rows {
        let script = script.replace("LARGE", LARGE);
        let [ours, theirs] = mounts.each_ref().map(|mount| {
            // The kernel caches names for a second.
            median(ROUNDS, || {
                std::thread::sleep(Duration::from_millis(1100));
                mount.timed(&script).0
            })
        });
        line(what, ours, theirs, goal);
    }
    let count = format!("ls -U correlations/{LARGE} | wc -l");
    let [ours, theirs] = mounts.each_ref().map(|mount| {
        let (took, out) = mount.timed(&count);
        took.div_f64(out.trim().parse::<f64>().unwrap() / 1000.0)
    });
    let memory = mounts[0].peak_memory() >> 20;
    line(
        "ls -U of the large correlation, each 1,000 names",
        ours,
        theirs,
        &format!("linear  ({memory} MiB)"),
    );
}

/// Compares an event of the large plane, on which nothing else happens, with one of the small plane.
fn idle(large: &Home, small: &Home) {
    let [ours, theirs] = [large, small].map(|home| {
        let file = home.write("pipeline.yaml", "modules:\n  noop: {on: [ping], run: [\"true\"]}\n");
        let up = home.up(&file);
        let once = || timed(home, &["event", "create", "ping", "--wait"]).0;
        once();
        let took = median(20, once);
        up.stop();
        took
    });
    line("an event of an idle plane, --wait", ours, theirs, "<= 1.2");
}

/// A mounted plane, which is unmounted on drop.
struct BrowsedPlane {
    folder: std::path::PathBuf,
    mount: std::process::Child,
}

impl BrowsedPlane {
    fn new(home: &Home) -> Self {
        let folder = home.path().join("plane");
        let mount = home.ion().arg("mount").arg(&folder).stderr(Stdio::null()).spawn().unwrap();
        support::wait_for("the plane to be mounted", || folder.join("recent").exists());
        Self { folder, mount }
    }

    /// Runs a script in the mount. Returns the time it took and what it printed.
    fn timed(&self, script: &str) -> (Duration, String) {
        let began = Instant::now();
        let mut shell = Command::new("sh");
        let ran = shell.args(["-ec", script]).current_dir(&self.folder).output().unwrap();
        assert!(ran.status.success() && !ran.stdout.is_empty(), "{script}: {ran:?}");
        (began.elapsed(), String::from_utf8_lossy(&ran.stdout).into_owned())
    }

    fn peak_memory(&self) -> u64 {
        peak_memory(self.mount.id()).unwrap_or_default()
    }
}

impl Drop for BrowsedPlane {
    fn drop(&mut self) {
        support::signal(self.mount.id(), "TERM");
        let _ = self.mount.wait();
    }
}

/// Returns the most memory, in bytes, that a process had; none if it has ended.
fn peak_memory(process: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib << 10)
}

/// Runs a command. Returns the time it took, the bytes it printed, and its peak memory.
fn timed(home: &Home, words: &[&str]) -> (Duration, u64, u64) {
    let began = Instant::now();
    let mut command: Command = home.ion();
    let mut child =
        command.args(words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let process = child.id();
    let (done, ended) = std::sync::mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        let mut peak = 0;
        while ended.recv_timeout(Duration::from_millis(2)).is_err() {
            let Some(now) = peak_memory(process) else { break };
            peak = now.max(peak);
        }
        peak
    });
    let mut out = child.stdout.take().unwrap();
    let (mut bytes, mut buffer) = (0, vec![0; 1 << 16]);
    loop {
        match out.read(&mut buffer).unwrap() {
            0 => break,
            length => bytes += length as u64,
        }
    }
    assert!(child.wait().unwrap().code().is_some_and(|code| code < 2), "{words:?}");
    let took = began.elapsed();
    drop(done);
    (took, bytes, watch.join().unwrap())
}

/// Compares keeping an insight with the texts of the index, and without.
fn keeping(runtime: &tokio::runtime::Runtime, plane: &DataPlane) {
    let keep = |n: usize, is_indexed: bool| {
        let event = event(n, "kept", None, clock::now());
        let job = job(n, &event, clock::now());
        let mut record = insight(n, &event, &job);
        if !is_indexed {
            record.terms.clear();
        }
        let began = Instant::now();
        let put = plane.documents.put(Collection::Events, encode(&record), None);
        runtime.block_on(put).unwrap();
        began.elapsed()
    };
    let (mut with, mut without) = (vec![], vec![]);
    for n in 0..300 {
        with.push(keep(100_000_000 + 2 * n, true));
        without.push(keep(100_000_001 + 2 * n, false));
    }
    line("keeping an insight / without the index", middle(with), middle(without), "<= 1.15");
}

fn line(what: &str, ours: Duration, theirs: Duration, goal: &str) {
    let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
    println!("{what:<58} {ours:>11.2?} {theirs:>11.2?} {ratio:>8.3}  {goal}");
}
