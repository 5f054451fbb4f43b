//! Tests storms: a storm is a job that uses as much as it can of one resource. Its daemon runs in a
//! memory cgroup of 1 GiB and must survive. A neighbour's jobs run all the time and must end in
//! time, and the storm's job must end with the right state and reason. Storms run through the local
//! executor and through CSI.
//!
//! `ION_TEST_STORMS=full` gives the storms their full size (`make torture-files`).
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test that cannot go on panics; it starts programs and says how much memory a storm took"
)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::support::cgroup::{MemoryGroup, peak_mib};
use crate::support::csi::CsiRig;
use crate::support::images::{Image, gzip};
use crate::support::{CommandOutput, Home, RunningCommand, wait_up_to};
use ionfs::stores::open::StoreUrls;
use serde_json::Value;
use tar::{EntryType, Header};
use tonic::Code;

/// The memory that a daemon and its jobs may use, in bytes.
const MEMORY: u64 = 1 << 30;

/// How long a neighbour's job may take, from its event to its end. The job needs only a moment, but
/// much longer on a busy machine of two cores.
const NEIGHBOUR: Duration = Duration::from_secs(30);

/// How long a storm of the full size may take.
const STORM: Duration = Duration::from_secs(1_800);

/// The limit of a reason's length, in bytes: a reason quotes only a part of what a module wrote.
const REASON_MAX: usize = 4_096;

/// The maximum number of rejections that a pod's ticket records.
const TICKET_REJECTIONS: usize = 50;

/// Lets one storm run at a time, because the neighbours' deadlines are for a machine that does
/// nothing else.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the size of a storm: the moderate one, or the full one if `ION_TEST_STORMS` says so.
fn size(moderate: u32, full: u32) -> u32 {
    if std::env::var("ION_TEST_STORMS").is_ok_and(|size| size == "full") { full } else { moderate }
}

/// Returns a memory cgroup. Where none can be made, prints why and returns none.
fn group() -> Option<MemoryGroup> {
    MemoryGroup::new(MEMORY).inspect_err(|why| println!("not tried: {why}")).ok()
}

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/machine/storms/storm.py");

// ---- the neighbour ----

/// How many jobs a neighbour ran, and how long the longest one took.
#[derive(Default)]
struct Noticed {
    times: u32,
    longest: Duration,
}

/// Runs `works` again and again until `end` is set, and once more after that.
fn neighbour(end: &AtomicBool, works: impl Fn(u32)) -> Noticed {
    let mut noticed = Noticed::default();
    loop {
        let last = end.load(Ordering::Relaxed);
        let begun = Instant::now();
        works(noticed.times);
        let took = begun.elapsed();
        assert!(took < NEIGHBOUR, "a neighbour's job took {took:?}");
        noticed = Noticed { times: noticed.times + 1, longest: noticed.longest.max(took) };
        if last {
            return noticed;
        }
    }
}

/// Sets its flag on drop, also after a panic, so that no neighbour works for ever.
struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `storm` while a neighbour works.
fn beside<T>(works: impl Fn(u32) + Sync, storm: impl FnOnce() -> T) -> (T, Noticed) {
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let neighbour = scope.spawn(|| neighbour(&end, &works));
        let came = {
            let _end = AtEnd(&end);
            storm()
        };
        (came, neighbour.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn tell(name: &str, peak: u64, began: Instant, noticed: &Noticed) {
    println!(
        "{name}: {:?}, the daemon took {peak} MiB at most, a neighbour worked {} times, {:?} at most",
        began.elapsed(),
        noticed.times,
        noticed.longest
    );
}

// ---- through the local executor ----

/// A daemon in a memory cgroup, with the modules of the neighbour and of the storm.
struct Town {
    // The fields are dropped in this order: the daemon, its group, its folder.
    up: RunningCommand,
    group: MemoryGroup,
    home: Home,
}

impl Town {
    fn with(home: Home, module: &str) -> Option<Self> {
        let group = group()?;
        let mut home = home;
        home.cgroup = Some(group.processes());
        home.program(
            "neighbour",
            "#!/bin/sh\nset -e\ncp /ion/in/data/content /ion/out/data/copy; cmp /ion/in/data/content /ion/out/data/copy\n\
             echo '{\"eventType\":\"fine\",\"files\":[\"copy\"]}' > /ion/out/events/fine.json\n",
        );
        home.write("content", vec![b'x'; 100_000]);
        let file = home.write(
            "pipeline.yaml",
            format!(
                "modules:\n  neighbour: {{on: [work], emits: [fine], run: [./neighbour], retries: 0}}\n  \
                 storm: {{on: [start-storm], emits: [x], retries: 0, timeout: 30m, {module}}}\n"
            ),
        );
        let up = home.up_with(&["--jobs", "4", "--gateway", "127.0.0.1:0"], &file);
        Some(Self { home, up, group })
    }

    fn works(&self, _: u32) {
        self.home.run(["event", "create", "work", "--file", "content", "--wait"]).well();
    }

    /// Starts the storm, waits for its end, and returns its job.
    fn storms(&self) -> Value {
        self.home.run(["event", "create", "start-storm", "--file", "content"]).well();
        self.ended()
    }

    /// Waits until the storm's job is final, and returns it.
    fn ended(&self) -> Value {
        let mut found = Value::Null;
        wait_up_to(STORM, "the storm's job to end", || {
            let is_final = |job: &Value| {
                ["succeeded", "dead", "cancelled"].contains(&job["state"].as_str().unwrap())
            };
            let job =
                self.home.jobs().into_iter().find(|job| job["module"] == "storm" && is_final(job));
            found = job.unwrap_or_default();
            found != Value::Null
        });
        found
    }

    /// Asserts that the daemon survived the storm, that it ends well, and that it leaves no job's
    /// folder.
    fn ends_well(self, name: &str, began: Instant, noticed: &Noticed) {
        let Self { home, up, group } = self;
        assert_eq!(group.killed(), 0, "the group's memory was full: {}", up.log());
        tell(name, peak_mib(up.pid()), began, noticed);
        home.run(["check"]).well();
        assert_eq!(up.stop(), Some(0));
        let left: Vec<PathBuf> = fs::read_dir(home.state().join("jobs"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Returns a job's state, the reason of its last attempt, and the exit code of its program.
fn end_of(job: &Value) -> (&str, &str, i64) {
    let attempt = job["attempts"].as_array().unwrap().last().unwrap();
    let code = attempt["exitCode"].as_i64().unwrap_or(-1);
    (job["state"].as_str().unwrap(), attempt["reason"].as_str().unwrap_or_default(), code)
}

/// Runs a storm of storm.py as a local job. Its program must exit with 0, and `right` judges the
/// job's state and reason.
fn storms_locally(kind: &str, size: u32, right: impl Fn(&str, &str) -> bool) {
    let _turn = turn();
    let module = format!("run: [python3, {SCRIPT}, {kind}, \"{size}\", /ion]");
    let Some(town) = Town::with(Home::new(), &module) else { return };
    let began = Instant::now();
    let (job, noticed) = beside(|n| town.works(n), || town.storms());
    let (state, reason, code) = end_of(&job);
    assert_eq!(code, 0, "{state}: {reason}");
    assert!(right(state, reason), "{state}: {reason}");
    assert!(reason.len() < REASON_MAX, "a reason of {} bytes", reason.len());
    town.ends_well(&format!("{size} {kind}"), began, &noticed);
}

/// Returns whether the job succeeded, or ended because it was over a limit.
fn allowed_or_limited(state: &str, reason: &str) -> bool {
    (state == "succeeded" && reason.is_empty())
        || (state == "dead" && reason.contains("over its limit"))
}

#[test]
fn a_storm_of_files_is_not_noticed() {
    storms_locally("files", size(8_000, 400_000), allowed_or_limited);
}

#[test]
fn a_storm_of_directory_handles_is_not_noticed() {
    storms_locally("handles", size(400, 4_000), allowed_or_limited);
}

#[test]
fn a_storm_of_event_files_is_not_noticed() {
    storms_locally("events", size(60, 500), |state, reason| {
        state == "dead" && reason.contains("event")
    });
}

#[test]
fn a_storm_of_extended_attributes_is_not_noticed() {
    storms_locally("xattrs", size(800, 40_000), allowed_or_limited);
}

#[test]
fn a_storm_of_symbolic_links_is_not_noticed() {
    storms_locally("links", size(3_000, 200_000), allowed_or_limited);
}

#[test]
fn a_storm_of_inodes_is_not_noticed() {
    storms_locally("inodes", size(4_000, 400_000), allowed_or_limited);
}

#[test]
fn a_storm_of_long_names_and_types_is_not_noticed() {
    storms_locally("names", size(1_000, 50_000), |state, reason| {
        state == "dead" && !reason.is_empty()
    });
}

#[test]
fn a_storm_of_output_without_a_line_is_not_noticed() {
    storms_locally("logs", size(64, 4_096), |state, reason| {
        state == "succeeded" && reason.is_empty()
    });
}

/// The image has a small layer that unpacks to gigabytes, which are the name of one file.
#[test]
fn an_image_with_a_bomb_is_refused_and_not_noticed() {
    let _turn = turn();
    let home = Home::new();
    let mebibytes = size(1_536, 6_144);
    let mut header = Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..13].copy_from_slice(b"././@LongLink");
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(u64::from(mebibytes) << 20);
    header.set_cksum();
    // Pieces that are compressed one by one form one gzip file together.
    let mut layer = gzip(header.as_bytes());
    layer.extend(gzip(&vec![b'n'; 1 << 20]).repeat(mebibytes as usize));
    Image::of("true").with_compressed(layer).write(&home, "image");
    let Some(town) = Town::with(home, "image: 'oci:image'") else { return };
    let began = Instant::now();
    let (job, noticed) = beside(|n| town.works(n), || town.storms());
    let (state, reason, _) = end_of(&job);
    assert!(
        state == "dead" && reason.contains("layer") && reason.len() < REASON_MAX,
        "{state}: {reason}"
    );
    town.ends_well(&format!("an image with a name of {mebibytes} MiB"), began, &noticed);
}

/// Many HTTP clients wait for the end of one correlation, which has many events.
#[test]
fn a_storm_of_waiters_is_not_noticed() {
    let _turn = turn();
    let (waiters, events) = (size(100, 800), size(300, 5_000));
    let home = Home::new();
    let go = home.path().join("go");
    let module = format!(
        "run: [sh, -c, 'for n in $(seq {events}); do echo \"{{\\\"eventType\\\":\\\"x\\\"}}\" > /ion/out/events/e$n; done; \
         while [ ! -e {} ]; do sleep 0.1; done']",
        go.display()
    );
    let Some(town) = Town::with(home, &module) else { return };
    let began = Instant::now();
    let made = town
        .home
        .run(["--json", "event", "create", "start-storm", "--file", "content"])
        .well()
        .stdout;
    let made: Value = serde_json::from_str(&made).unwrap();
    let correlation = made["context"]["correlationId"].as_str().unwrap().to_owned();
    let address = town
        .up
        .log()
        .rsplit("the gateway is at http://")
        .next()
        .unwrap()
        .lines()
        .next()
        .unwrap()
        .to_owned();
    let ((), noticed) = beside(
        |n| town.works(n),
        || {
            let ask = format!(
                "GET /correlations/{correlation}?wait=5m HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
            );
            let asked = |_| {
                let mut stream = TcpStream::connect(&address).unwrap();
                stream.set_read_timeout(Some(STORM)).unwrap();
                stream.write_all(ask.as_bytes()).unwrap();
                stream
            };
            let waiting: Vec<TcpStream> = (0..waiters).map(asked).collect();
            wait_up_to(STORM, "all events to exist", || {
                let trace = town.home.run(["--json", "trace", &correlation]).well().stdout;
                trace.matches("\"eventId\"").count() >= events as usize
            });
            fs::write(&go, "").unwrap();
            for mut stream in waiting {
                // The body is read and not kept, because the bodies of all answers are too much for
                // this process.
                let (mut head, mut buffer) = ([0; 12], vec![0; 1 << 16]);
                stream.read_exact(&mut head).unwrap();
                assert!(
                    [b"HTTP/1.1 200".as_slice(), b"HTTP/1.1 503"].contains(&head.as_slice()),
                    "{head:?}"
                );
                while stream.read(&mut buffer).unwrap() > 0 {}
            }
        },
    );
    assert_eq!(end_of(&town.ended()).0, "succeeded");
    town.ends_well(&format!("{waiters} waiters on {events} events"), began, &noticed);
}

// ---- through CSI ----

/// Runs a storm of storm.py in a pod's volume. The driver must survive, and other pods must get
/// their volumes as usual.
fn storms_in_a_pod(kind: &str, size: u32, rejections: usize) {
    let _turn = turn();
    let Some(group) = group() else { return };
    let mut home = Home::new();
    home.cgroup = Some(group.processes());
    let urls = StoreUrls::embedded(&home.state());
    let rig = CsiRig::over(home, &urls, &[("content", &vec![b'x'; 100_000])]);
    let began = Instant::now();
    let works = |n: u32| {
        let name = format!("neighbour-{n}");
        let (attempt, target) = rig.pod(&name);
        let content = fs::read(target.join("in/data/content")).unwrap();
        fs::write(target.join("out/data/copy"), &content).unwrap();
        assert!(
            fs::read(target.join("out/data/copy")).unwrap() == content && content.len() == 100_000
        );
        fs::write(target.join("out/events/fine.json"), r#"{"eventType":"fine","files":["copy"]}"#)
            .unwrap();
        rig.unpublish(&name, &target).unwrap();
        assert_eq!(rig.outcome(&attempt).receipts.len(), 1);
    };
    let (outcome, noticed) = beside(works, || {
        let (attempt, target) = rig.pod("storm");
        let mut command = Command::new("python3");
        command.args([SCRIPT, kind, &size.to_string()]).arg(&target).stdin(Stdio::null());
        let ran = CommandOutput::of(command.output().unwrap());
        assert_eq!(ran.code, Some(0), "{ran:#?}");
        // Removing so many files takes long, so the driver may miss the deadline of the call. Then
        // the test repeats the call, as the kubelet does.
        wait_up_to(STORM, "the volume to be gone", || match rig.unpublish("storm", &target) {
            Err(status) if status.code() == Code::DeadlineExceeded => false,
            gone => gone.is_ok(),
        });
        rig.outcome(&attempt)
    });
    assert_eq!(outcome.rejections.len(), rejections.min(TICKET_REJECTIONS), "{outcome:?}");
    assert!(outcome.rejections.iter().all(|rejection| rejection.reason.len() < REASON_MAX));
    let driver = rig.driver.as_ref().unwrap();
    assert_eq!(group.killed(), 0, "the group's memory was full: {}", driver.log());
    tell(&format!("{size} {kind} in a pod"), peak_mib(driver.pid()), began, &noticed);
    assert!(rig.kept().is_empty(), "{:?}", rig.kept());
    // The driver must end before its group is removed.
    drop(rig);
    drop(group);
}

#[test]
fn a_storm_of_files_in_a_pod_is_not_noticed() {
    storms_in_a_pod("files", size(8_000, 400_000), 0);
}

#[test]
fn a_storm_of_directory_handles_in_a_pod_is_not_noticed() {
    storms_in_a_pod("handles", size(400, 4_000), 0);
}

#[test]
fn a_storm_of_event_files_in_a_pod_is_not_noticed() {
    let events = size(60, 500);
    storms_in_a_pod("events", events, events as usize);
}

#[test]
fn a_storm_of_metadata_in_a_pod_is_not_noticed() {
    storms_in_a_pod("xattrs", size(800, 40_000), 0);
    storms_in_a_pod("links", size(3_000, 200_000), 0);
    storms_in_a_pod("inodes", size(4_000, 400_000), 0);
}

#[test]
fn a_storm_of_long_names_and_types_in_a_pod_is_not_noticed() {
    storms_in_a_pod("names", size(1_000, 50_000), 3);
}
