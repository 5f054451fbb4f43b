//! Measures the basic figures: compares the filesystem with native files and with the bare stores,
//! and jobs with bare processes, in one run, as ratios.
//!
//! `make bench` runs all rows, and `cargo bench --bench figures -- dispatch` only some (the names
//! are in [`ROWS`]). Each row is the median of several rounds; the two sides of a row alternate, so
//! that a busy machine slows both. Needs root, because it mounts in this process's own namespace.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a bench prints its results, and panics when it cannot continue"
)]

mod common;
#[path = "figures/programs.rs"]
mod programs;
#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{middle, read, write};
use ionfs::commit::create_event;
use ionfs::event::FileEntry;
use ionfs::first::FirstEvent;
use ionfs::id::{CorrelationId, EventId, JobId};
use ionfs::stores::open::{StoreUrls, open};
use ionfs::stores::{Collection, Durability, Query, encode};
use ionfs::upload::store_path;
use support::Home;
use support::mount::{Mount, Passthrough, first_event, runtime, stored};
use tokio::runtime::Runtime;

/// The bytes of the large file, the number of small files, and the rounds of a row.
const BIG: usize = 512 << 20;
const SMALL: usize = 300;
const ROUNDS: usize = 3;

/// The groups of rows, by the name that selects them.
const ROWS: [(&str, fn()); 7] = [
    ("files", files),
    ("programs", programs::programs),
    ("close", closes),
    ("names", names),
    ("dispatch", dispatch),
    ("idle", idle),
    ("mounts", mounts),
];

/// The number of queued jobs, and the maximum that run at once.
const JOBS: usize = 500;
const AT_A_TIME: usize = 4;

/// The events that an idle plane receives, one by one. Each waits for a poll that comes every 50
/// ms, so the median needs many events.
const IDLE_EVENTS: usize = 301;

/// The number of modules that an idle plane serves: few, and many.
const FEW: usize = 3;
const MANY_MODULES: [usize; 2] = [300, 1000];

/// The number of trees that are mounted at once, and the variable that makes a run of this program
/// mount them.
const MOUNTS: usize = 500;
const MANY: &str = "ION_BENCH_MOUNTS";

fn main() {
    if std::env::var_os(MANY).is_some() {
        return many_mounts(&runtime());
    }
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let known = |name: &String| ROWS.iter().any(|(row, _)| row == name);
    assert!(wanted.iter().all(known), "the rows are {:?}", ROWS.map(|(name, _)| name));
    println!("{:<58} {:>11} {:>11} {:>8}  goal", "", "ion", "baseline", "ratio");
    for (name, rows) in ROWS {
        if wanted.is_empty() || wanted.iter().any(|one| one == name) {
            rows();
        }
    }
}

fn files() {
    let (runtime, home) = (runtime(), Home::new());
    let native = home.path().join("native");
    fs::create_dir(&native).unwrap();
    let big = native.join("big");
    fs::write(&big, vec![7; BIG]).unwrap();
    for (passthrough, how) in
        [(Passthrough::Allowed, "passthrough"), (Passthrough::Off, "daemon answers")]
    {
        let job = job(&runtime, passthrough, &big);
        let input = job.at("in/data/big");
        row(&format!("first read of 512 MiB / native ({how})"), 1, || read(&input), || read(&big));
        row(&format!("read again / native ({how})"), ROUNDS, || read(&input), || read(&big));
        let (ours, theirs) = (job.at("out/data/w"), native.join("w"));
        row(
            &format!("write 512 MiB / native ({how})"),
            ROUNDS,
            || written(&ours),
            || written(&theirs),
        );
        let (ours, theirs) = (job.at("out/data"), native.clone());
        row(
            &format!("{SMALL} files of 100 B / native ({how})"),
            ROUNDS,
            || small(&ours),
            || small(&theirs),
        );
    }
}

fn closes() {
    let (runtime, home) = (runtime(), Home::new());
    let native = home.path().to_owned();
    let small = home.write("small", [1; 4096]);
    let job = job(&runtime, Passthrough::Allowed, &small);
    let plane = job.node.plane.clone();
    let mut n = 0;
    let mut m = 0;
    row(
        "close of an event of one 4 KiB file / bare stores",
        20,
        || {
            n += 1;
            fs::write(job.at(&format!("out/data/{n}")), [1; 4096]).unwrap();
            let document = format!("{{\"eventType\":\"made\",\"files\":[\"{n}\"]}}");
            let mut file = fs::File::create(job.at(&format!("out/events/{n}.json"))).unwrap();
            let began = Instant::now();
            file.write_all(document.as_bytes()).unwrap();
            drop(file);
            began.elapsed()
        },
        || {
            m += 1;
            let file = native.join("four");
            fs::write(&file, [1; 4096]).unwrap();
            let began = Instant::now();
            runtime.block_on(async {
                store_path(&*plane.blobs, format!("bare/{m}"), "f".into(), &file).await.unwrap();
                let document = serde_json::json!({"id": format!("bare-{m}")});
                plane
                    .documents
                    .insert(Collection::Events, document, None, Durability::Now)
                    .await
                    .unwrap();
            });
            began.elapsed()
        },
    );
}

/// Measures an event of many files: it is mounted and listed, and one of its files is opened.
fn names() {
    const NAMES: usize = 100_000;
    let (runtime, native) = (runtime(), Home::new());
    let folder = native.path().join("names");
    fs::create_dir(&folder).unwrap();
    (0..NAMES).for_each(|n| drop(fs::File::create(folder.join(format!("file-{n}"))).unwrap()));
    let one = runtime.block_on(async {
        let plane = open(&StoreUrls::embedded(&Home::new().state())).await.unwrap();
        stored(&plane, "one", &native.write("one", [1; 4096])).await
    });
    let entry = |n: usize| FileEntry { name: format!("file-{n}"), ..one.clone() };
    let files: Vec<FileEntry> = (0..NAMES).map(entry).collect();
    let home = Home::new();
    let plane = runtime.block_on(open(&StoreUrls::embedded(&home.state()))).unwrap();
    let began = Instant::now();
    let job = Mount::over(runtime.clone(), home, plane, Passthrough::Allowed, files);
    let ours = listed(&job.at("in/data"), NAMES);
    println!(
        "(an event of {NAMES} files: inserted, mounted and listed in {:.2?})",
        began.elapsed()
    );
    let theirs = listed(&folder, NAMES);
    line(
        &format!("list {NAMES} names and their sizes / native"),
        &format!("{ours:.2?}"),
        &format!("{theirs:.2?}"),
        ours.as_secs_f64() / theirs.as_secs_f64(),
        "< 1 s",
    );
    let again = Mount::another(&job);
    let (ours, theirs) = (again.at("in/data"), folder);
    let found = |folder: &Path, n: usize| {
        let path = folder.join(format!("file-{}", n * 7919 % NAMES));
        let began = Instant::now();
        let _ = fs::metadata(path).unwrap().len();
        began.elapsed()
    };
    let (mut n, mut m) = (0..NAMES, 0..NAMES);
    row(
        "find one of them, not listed before / native",
        101,
        || found(&ours, n.next().unwrap()),
        || found(&theirs, m.next().unwrap()),
    );
}

/// Lists every name of a directory with its size. Returns the time it took.
fn listed(at: &Path, names: usize) -> Duration {
    let began = Instant::now();
    let sizes = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
    assert_eq!(sizes.count(), names);
    began.elapsed()
}

/// Runs both sides alternately, and prints their medians and the ratio.
fn row(
    name: &str,
    rounds: usize,
    mut ours: impl FnMut() -> Duration,
    mut theirs: impl FnMut() -> Duration,
) {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        a.push(ours());
        b.push(theirs());
    }
    let (a, b) = (middle(a), middle(b));
    line(name, &format!("{a:.2?}"), &format!("{b:.2?}"), a.as_secs_f64() / b.as_secs_f64(), "");
}

fn line(name: &str, ours: &str, theirs: &str, ratio: f64, goal: &str) {
    println!("{name:<58} {ours:>11} {theirs:>11} {ratio:>8.3}  {goal}");
}

/// Writes a file and removes it again. Returns the time of the write.
fn written(path: &Path) -> Duration {
    let took = write(path, BIG as u64 >> 20);
    fs::remove_file(path).unwrap();
    took
}

fn small(folder: &Path) -> Duration {
    let folder = folder.join("small");
    fs::create_dir(&folder).unwrap();
    let began = Instant::now();
    for n in 0..SMALL {
        fs::write(folder.join(n.to_string()), [5; 100]).unwrap();
    }
    let took = began.elapsed();
    fs::remove_dir_all(&folder).unwrap();
    took
}

/// Mounts a job over new embedded stores.
fn job(runtime: &Arc<Runtime>, passthrough: Passthrough, big: &Path) -> Mount {
    let home = Home::new();
    let plane = runtime.block_on(open(&StoreUrls::embedded(&home.state()))).unwrap();
    let files = vec![runtime.block_on(stored(&plane, "big", big))];
    Mount::over(runtime.clone(), home, plane, passthrough, files)
}

/// Measures jobs of `true` from their queue to their end, compared with a loop that starts as many
/// of the same program at once.
fn dispatch() {
    let program = "/bin/true";
    let home = Home::new();
    let pipeline = serde_json::json!({"modules": {"nothing": {"on": ["go"], "run": [program]}}});
    // JSON is YAML.
    let pipeline = home.write("pipeline.yaml", pipeline.to_string());
    home.run(["module", "create", "--pipeline", pipeline.to_str().unwrap()]).well();
    let runtime = runtime();
    let plane = runtime.block_on(open(&StoreUrls::embedded(&home.state()))).unwrap();
    for n in 0..JOBS {
        let event = first_event(&format!("e{n}"), "go", vec![]);
        runtime.block_on(async {
            plane
                .documents
                .insert(Collection::Events, encode(&event), None, Durability::Now)
                .await
                .unwrap();
            plane.bus.publish(&event.message()).await.unwrap();
        });
    }
    let succeeded = vec![("state", serde_json::json!("succeeded"))];
    let succeeded = Query::equal(Collection::Jobs, succeeded).limit(JOBS);
    let ended = || runtime.block_on(plane.documents.count(succeeded.clone())).unwrap();
    let up = home.up_with(&["--jobs", &AT_A_TIME.to_string()], &pipeline);
    let (before, began) = (ended(), Instant::now());
    // The queue is polled first, because that costs the dispatcher nothing noticeable.
    wait(20, || runtime.block_on(plane.bus.peek("nothing", 1)).unwrap().is_empty());
    wait(5, || ended() == JOBS);
    let ours = began.elapsed() / u32::try_from(JOBS - before).unwrap();
    up.stop();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                for _ in 0..JOBS / AT_A_TIME {
                    #[allow(clippy::disallowed_methods, reason = "a bench starts programs")]
                    let status = std::process::Command::new(program).status();
                    assert!(status.unwrap().success());
                }
            });
        }
    });
    let theirs = began.elapsed() / u32::try_from(JOBS).unwrap();
    line(
        &format!("a job of `true`, {JOBS} queued, {AT_A_TIME} at a time / fork and exec"),
        &format!("{ours:.2?}"),
        &format!("{theirs:.2?}"),
        ours.as_secs_f64() / theirs.as_secs_f64(),
        "<= 2",
    );
}

/// Measures one event of an otherwise idle plane, from its publishing to the end of its job: on a
/// plane that serves many modules, and on one that serves few.
fn idle() {
    let runtime = runtime();
    let serve = |modules: usize| {
        let home = Home::new();
        let module = |n: usize| {
            (format!("m{n}"), serde_json::json!({"on": [format!("t{n}")], "run": ["/bin/true"]}))
        };
        let modules: serde_json::Map<_, _> = (0..modules).map(module).collect();
        let pipeline =
            home.write("pipeline.yaml", serde_json::json!({"modules": modules}).to_string());
        let up = home.up_with(&["--quiet"], &pipeline);
        let plane = runtime.block_on(open(&StoreUrls::embedded(&home.state()))).unwrap();
        (home, up, dispatcher::ledger::Ledger::new(plane))
    };
    let few = serve(FEW);
    let mut n = 0;
    let mut event = |ledger: &dispatcher::ledger::Ledger, modules: usize| {
        // Each event goes to another module, so that none of them has just been at work.
        n += 7;
        let first = FirstEvent {
            id: EventId::new(format!("e{n}")),
            correlation_id: CorrelationId::random(),
            name: "bench".into(),
            parent: String::new(),
            event_type: format!("t{}", n % modules),
            files: vec![],
            directories: vec![],
            data: vec![],
        };
        let job = JobId::derive(&first.id, &format!("m{}", n % modules));
        // The event comes at any moment between two polls, not always right after the last job
        // ended.
        pause(n * 7919 % 50);
        let began = Instant::now();
        runtime.block_on(async {
            let event = first.into_event(ledger.plane(), "").await.unwrap();
            create_event(ledger.plane(), event).await.unwrap();
        });
        wait(1, || runtime.block_on(ledger.get(&job)).is_ok_and(|job| job.state.is_final()));
        began.elapsed()
    };
    for modules in MANY_MODULES {
        let many = serve(modules);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..IDLE_EVENTS {
            ours.push(event(&many.2, modules));
            theirs.push(event(&few.2, FEW));
        }
        let (ours, theirs) = (middle(ours), middle(theirs));
        line(
            &format!("one event of an idle plane, {modules} modules / {FEW}"),
            &format!("{ours:.2?}"),
            &format!("{theirs:.2?}"),
            ours.as_secs_f64() / theirs.as_secs_f64(),
            "<= 1.2",
        );
        assert_eq!(many.1.stop(), Some(0));
    }
    assert_eq!(few.1.stop(), Some(0));
}

#[allow(clippy::disallowed_methods, reason = "a bench sets its own pace")]
fn pause(milliseconds: usize) {
    std::thread::sleep(Duration::from_millis(milliseconds as u64));
}

#[allow(
    clippy::disallowed_methods,
    reason = "a bench that polls without a pause slows down what it measures"
)]
fn wait(milliseconds: u64, mut condition: impl FnMut() -> bool) {
    while !condition() {
        std::thread::sleep(Duration::from_millis(milliseconds));
    }
}

/// Measures the memory that each of many mounted trees costs its daemon, in a new process of this
/// program, in which no memory was freed before.
fn mounts() {
    #[allow(clippy::disallowed_methods, reason = "a bench starts programs")]
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    assert!(again.env(MANY, MOUNTS.to_string()).status().unwrap().success());
}

fn many_mounts(runtime: &Arc<Runtime>) {
    ionfs::sys::raise_descriptor_limit();
    ionfs::sys::map_large_buffers();
    let home = Home::new();
    let small = home.write("small", [1; 4096]);
    let first = job(runtime, Passthrough::Allowed, &small);
    let used = |mount: &Mount| {
        assert_eq!(fs::read(mount.at("in/data/big")).unwrap().len(), 4096);
        fs::write(mount.at("out/data/small"), [2; 4096]).unwrap();
    };
    used(&first);
    let (memory, threads) = (status("VmRSS:"), status("Threads:"));
    let mut mounts = vec![first.another()];
    while mounts.len() < MOUNTS {
        mounts.push(mounts[mounts.len() - 1].another());
    }
    let idle = (status("VmRSS:") - memory) as f64 / MOUNTS as f64;
    mounts.iter().for_each(used);
    let (memory, threads) = (status("VmRSS:") - memory, status("Threads:") - threads);
    let each = memory as f64 / MOUNTS as f64;
    line(
        &format!(
            "memory of each of {MOUNTS} mounts in use ({:.2} threads)",
            threads as f64 / MOUNTS as f64
        ),
        &format!("{each:.0}KiB"),
        "1024KiB",
        each / 1024.0,
        "<= 1",
    );
    println!("  (mounted and not used yet: {idle:.0}KiB)");
}

/// Returns a number from the kernel's status of this process: KiB, or a count.
fn status(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
