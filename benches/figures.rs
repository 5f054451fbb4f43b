//! First figures: the filesystem against native files and against the bare stores, in one run, as ratios.
//!
//! `make bench`. Each row is the median of some rounds; both sides of a row take turns, so that a busy machine slows
//! both. Needs root (it mounts in this process's namespace).
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a bench prints, and one that cannot go on panics"
)]

mod common;
#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{middle, read, write};
use ionfs::event::FileEntry;
use ionfs::stores::Collection;
use ionfs::stores::open::{StoreUrls, open};
use ionfs::upload::store_path;
use support::Home;
use support::mount::{Mount, Passthrough, runtime, stored};
use tokio::runtime::Runtime;

const BIG: usize = 512 << 20;
const SMALL: usize = 300;
const ROUNDS: usize = 3;

fn main() {
    let runtime = runtime();
    let home = tempfile::Builder::new().prefix("ion-bench-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let native = home.path().join("native");
    fs::create_dir(&native).unwrap();
    let big = native.join("big");
    fs::write(&big, vec![7; BIG]).unwrap();
    println!("{:<44} {:>12} {:>12} {:>7}", "", "ion", "baseline", "ratio");
    for (passthrough, how) in [(Passthrough::Allowed, "passthrough"), (Passthrough::Off, "daemon answers")] {
        let job = job(&runtime, passthrough, &big);
        let input = job.at("in/data/big");
        row(&format!("first read of 512 MiB / native ({how})"), 1, || read(&input), || read(&big));
        row(&format!("read again / native ({how})"), ROUNDS, || read(&input), || read(&big));
        let (ours, theirs) = (job.at("out/data/w"), native.join("w"));
        row(&format!("write 512 MiB / native ({how})"), ROUNDS, || written(&ours), || written(&theirs));
        let (ours, theirs) = (job.at("out/data"), native.clone());
        row(&format!("{SMALL} files of 100 B / native ({how})"), ROUNDS, || small(&ours), || small(&theirs));
    }
    let job = job(&runtime, Passthrough::Allowed, &big);
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
                plane.documents.insert(Collection::Events, document, None).await.unwrap();
            });
            began.elapsed()
        },
    );
    drop(job);
    names(&runtime, &native);
    dispatch(home.path());
}

/// An event of many files: mounted and listed, and one of them opened.
fn names(runtime: &Arc<Runtime>, native: &Path) {
    const NAMES: usize = 100_000;
    let folder = native.join("names");
    fs::create_dir(&folder).unwrap();
    (0..NAMES).for_each(|n| drop(fs::File::create(folder.join(format!("file-{n}"))).unwrap()));
    let one = runtime.block_on(async {
        let plane = open(&StoreUrls::embedded(&Home::new().state())).await.unwrap();
        stored(&plane, "one", &native.join("four")).await
    });
    let entry = |n: usize| FileEntry { name: format!("file-{n}"), ..one.clone() };
    let files: Vec<FileEntry> = (0..NAMES).map(entry).collect();
    let home = Home::new();
    let plane = runtime.block_on(open(&StoreUrls::embedded(&home.state()))).unwrap();
    let began = Instant::now();
    let job = Mount::over(runtime.clone(), home, plane, Passthrough::Allowed, files);
    let ours = listed(&job.at("in/data"), NAMES);
    println!("(an event of {NAMES} files: inserted, mounted and listed in {:.2?})", began.elapsed());
    let theirs = listed(&folder, NAMES);
    let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
    println!(
        "{:<44} {ours:>10.2?} {theirs:>10.2?} {ratio:>7.2}",
        format!("list {NAMES} names and their sizes / native")
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

/// Every name of a directory and its size.
fn listed(at: &Path, names: usize) -> Duration {
    let began = Instant::now();
    let sizes = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
    assert_eq!(sizes.count(), names);
    began.elapsed()
}

/// Both sides in turn; their medians and the ratio.
fn row(name: &str, rounds: usize, mut ours: impl FnMut() -> Duration, mut theirs: impl FnMut() -> Duration) {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        a.push(ours());
        b.push(theirs());
    }
    let (a, b) = (middle(a), middle(b));
    println!("{name:<44} {:>10.2?} {:>10.2?} {:>7.2}", a, b, a.as_secs_f64() / b.as_secs_f64());
}

/// Writes, and removes it again.
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

/// A job over embedded stores of its own.
fn job(runtime: &Arc<Runtime>, passthrough: Passthrough, big: &Path) -> Mount {
    let home = Home::new();
    let plane = runtime.block_on(open(&StoreUrls::embedded(&home.state()))).unwrap();
    let files = vec![runtime.block_on(stored(&plane, "big", big))];
    Mount::over(runtime.clone(), home, plane, passthrough, files)
}

/// Jobs of `true` from queue to end, against starting the same program bare.
fn dispatch(home: &Path) {
    const JOBS: u32 = 100;
    let ion = env!("CARGO_BIN_EXE_ion");
    let state = home.join("dispatch");
    let pipeline = home.join("pipeline.yaml");
    fs::write(&pipeline, "modules:\n  nothing: {on: [go], run: [\"true\"]}\n").unwrap();
    #[allow(clippy::disallowed_methods, reason = "a bench starts programs")]
    let command = |words: &[&str]| {
        let mut command = std::process::Command::new(ion);
        command
            .env("ION_HOME", &state)
            .args(words)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        command
    };
    assert!(
        command(&["module", "create", "--pipeline", pipeline.to_str().unwrap()]).status().unwrap().success()
    );
    for _ in 0..JOBS {
        assert!(command(&["event", "create", "go"]).status().unwrap().success());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let plane = runtime.block_on(open(&StoreUrls::embedded(&state))).unwrap();
    let ledger = dispatcher::ledger::Ledger::new(plane);
    let began = Instant::now();
    let mut up = command(&["up", pipeline.to_str().unwrap()]).spawn().unwrap();
    let succeeded = dispatcher::ledger::JobFilter {
        state: Some(ionfs::record::JobState::Succeeded),
        ..Default::default()
    };
    while runtime.block_on(ledger.list(&succeeded, 1000)).unwrap().len() < JOBS as usize {
        std::thread::yield_now();
    }
    let ours = began.elapsed() / JOBS;
    rustix::process::kill_process(rustix::process::Pid::from_child(&up), rustix::process::Signal::TERM)
        .unwrap();
    up.wait().unwrap();
    let began = Instant::now();
    for _ in 0..JOBS {
        #[allow(clippy::disallowed_methods, reason = "a bench starts programs")]
        std::process::Command::new("true").status().unwrap();
    }
    let theirs = began.elapsed() / JOBS;
    println!(
        "{:<44} {ours:>10.2?} {theirs:>10.2?} {:>7.2}",
        "a job of `true`, from its queue / fork and exec",
        ours.as_secs_f64() / theirs.as_secs_f64()
    );
}
