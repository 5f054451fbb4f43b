//! Rows that run through a dispatcher: from publishing an event until the modules of a pipeline are
//! done with it.
//!
//! The modules are this program itself, which its environment tells what to do, so that both sides
//! of a row run the same code. Each module writes the time at which it is done to a folder outside
//! its tree. The times are of this machine's clock.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt as _;
use ionfs::event::FileEntry;
use ionfs::stores::open::open;
use ionfs::stores::{Collection, Durability, encode};

use super::common::{middle, read, read_at_most};
use super::support::mount::first_event;
use super::support::{Home, RunningCommand};
use super::{Bench, MIB, Store, number, row, row_of, urls};

/// A module's environment variables: the task, and the folder of its notes.
pub(crate) const MODULE: &str = "ION_BENCH_MODULE";
const NOTES: &str = "ION_BENCH_NOTES";

/// The rounds of the rows that start a new dispatcher per round.
const ROUNDS: usize = 7;

/// Bytes of a small file.
const SMALL: usize = 4096;

/// How many small files the bare client stores or fetches in parallel: as many as a daemon of Ion
/// uploads.
const SIDE_BY_SIDE: usize = 8;

/// How long a row that moves gigabytes may take.
const DEADLINE: Duration = Duration::from_secs(900);

/// Runs the task of a module.
pub(crate) fn module(what: &str) {
    let notes = PathBuf::from(std::env::var_os(NOTES).unwrap());
    let tree = PathBuf::from(std::env::var_os("ION_DIR").unwrap());
    let (input, output) = (tree.join("in/data"), tree.join("out/data"));
    match what {
        "first" => {
            read_at_most(&only_file(&input), MIB);
            note(&notes, "first", &now().to_string());
        }
        "stream" => {
            read(&only_file(&input));
            note(&notes, &std::env::var("ION_EVENT_ID").unwrap(), "");
        }
        "write" => {
            let began = now();
            let names = write_small(&output);
            note(&notes, "written", &(now() - began).to_string());
            let document = serde_json::json!({"eventType": "made", "files": names});
            fs::write(tree.join("out/events/made.json"), document.to_string()).unwrap();
            note(&notes, "committed", &now().to_string());
        }
        "read" => {
            let began = now();
            assert_eq!(read_small(&input), files(), "files arrived");
            note(&notes, "reading", &(now() - began).to_string());
            note(&notes, "read", &now().to_string());
        }
        _ => panic!("no module does {what:?}"),
    }
}

/// Returns the nanoseconds of this machine's clock, which all its processes share.
fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()
}

/// Writes a note, which appears as a whole.
fn note(notes: &Path, name: &str, text: &str) {
    let draft = notes.join(format!(".{name}"));
    fs::write(&draft, text).unwrap();
    fs::rename(draft, notes.join(name)).unwrap();
}

fn only_file(folder: &Path) -> PathBuf {
    fs::read_dir(folder).unwrap().next().unwrap().unwrap().path()
}

fn files() -> usize {
    number("ION_BENCH_FILES", 10_000)
}

fn write_small(folder: &Path) -> Vec<String> {
    let content = [7; SMALL];
    let names: Vec<String> = (0..files()).map(|n| format!("{n:06}")).collect();
    for name in &names {
        File::create(folder.join(name)).unwrap().write_all(&content).unwrap();
    }
    names
}

/// Reads every file of a folder. Returns how many there are.
fn read_small(folder: &Path) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        assert_eq!(fs::read(entry.unwrap().path()).unwrap().len(), SMALL);
        count += 1;
    }
    count
}

/// A dispatcher with an empty home of its own, over the store of all rows.
struct BenchPlane<'a> {
    store: &'a Store,
    home: Home,
    notes: PathBuf,
    up: Option<RunningCommand>,
}

impl<'a> BenchPlane<'a> {
    /// Starts the dispatcher. `modules` gives each module's task, the event type that starts it and
    /// the type it publishes.
    fn up(store: &'a Store, modules: &[(&str, &str, &str)], flags: &[&str]) -> Self {
        let mut home = Home::new();
        home.env.push(("ION_BLOBS".into(), store.url.clone()));
        let notes = home.path().join("notes");
        fs::create_dir(&notes).unwrap();
        let program = std::env::current_exe().unwrap();
        let modules: serde_json::Map<_, _> = modules
            .iter()
            .map(|(does, on, emits)| {
                let env = serde_json::json!({
                    MODULE: does, NOTES: notes, "ION_BENCH_FILES": files().to_string()
                });
                let emits: &[&str] = if emits.is_empty() { &[] } else { &[emits] };
                let module =
                    serde_json::json!({"on": [on], "emits": emits, "run": [program], "env": env});
                ((*does).to_owned(), module)
            })
            .collect();
        // JSON is YAML.
        let pipeline =
            home.write("pipeline.yaml", serde_json::json!({"modules": modules}).to_string());
        let up = home.up_with(flags, &pipeline);
        Self { store, home, notes, up: Some(up) }
    }

    /// Publishes an event as a program beside the dispatcher does. Returns the time at which that
    /// began.
    fn publish(&self, id: &str, files: Vec<FileEntry>) -> u128 {
        let event = first_event(id, "go", files);
        self.store.runtime.block_on(async {
            let plane = open(&urls(&self.store.url, &self.home)).await.unwrap();
            let began = now();
            plane
                .documents
                .insert(Collection::Events, encode(&event), None, Durability::Now)
                .await
                .unwrap();
            plane.bus.publish(&event.message()).await.unwrap();
            began
        })
    }

    /// Waits for a module's note, and returns its number.
    fn noted(&self, name: &str) -> u128 {
        self.wait(name, || self.notes.join(name).exists());
        fs::read_to_string(self.notes.join(name)).unwrap().parse().unwrap()
    }

    #[allow(
        clippy::disallowed_methods,
        reason = "a bench that polls without a pause slows down what it measures"
    )]
    fn wait(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let began = std::time::Instant::now();
        while !condition() {
            assert!(began.elapsed() < DEADLINE, "waited for {what} in vain: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn log(&self) -> String {
        self.up.as_ref().unwrap().log()
    }

    /// Returns the peak memory of the dispatcher, in bytes.
    fn memory_max(&self) -> u64 {
        memory(self.up.as_ref().unwrap().pid(), "VmHWM:")
    }
}

impl Drop for BenchPlane<'_> {
    fn drop(&mut self) {
        let up = self.up.take().unwrap();
        if !std::thread::panicking() {
            up.stop();
        }
    }
}

/// Returns the bytes that this line of a process's status states.
pub(crate) fn memory(pid: u32, line: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let found = status.lines().find_map(|one| one.strip_prefix(line)).unwrap();
    found.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
}

fn nanos(time: u128) -> Duration {
    Duration::from_nanos(u64::try_from(time).unwrap())
}

impl Bench {
    /// Measures from publishing an event to the module's first megabyte, for a large and a small
    /// file.
    pub(crate) fn first_bytes(&self) {
        let (large, small) = (self.large(), &self.small);
        let ours = |entry: &FileEntry| {
            let plane = BenchPlane::up(&self.store, &[("first", "go", "")], &[]);
            let began = plane.publish("e", vec![entry.clone()]);
            nanos(plane.noted("first") - began)
        };
        let (mut of_large, mut of_small) = (Vec::new(), Vec::new());
        // The two files alternate, so that a busy machine slows both.
        for _ in 0..ROUNDS {
            of_large.push(ours(large));
            of_small.push(ours(small));
        }
        let (of_large, of_small) = (middle(of_large), middle(of_small));
        let copied = self.store.home.path().join("copied");
        for (entry, ours, goal) in [(large, of_large, "<= 0.01"), (small, of_small, "")] {
            let began = std::time::Instant::now();
            self.store.bare(entry, Some(&copied));
            read_at_most(&copied, MIB);
            let name = format!("publish -> 1 MiB of {} MiB read / copy-in alone", entry.size / MIB);
            row(&name, ours, began.elapsed(), goal);
        }
        fs::remove_file(copied).unwrap();
        let name = format!("the same of {} MiB / of {} MiB", large.size / MIB, small.size / MIB);
        row(&name, of_large, of_small, "0.8 to 1.2");
    }

    /// Measures many small files on their way from one job to the next.
    pub(crate) fn small_files(&self) {
        let (count, store) = (files(), &self.store);
        let plane = BenchPlane::up(store, &[("write", "go", "made"), ("read", "made", "")], &[]);
        let began = plane.publish("e", vec![]);
        let ours = nanos(plane.noted("read") - began);
        let written = nanos(plane.noted("written"));
        let committed = nanos(plane.noted("committed") - began);
        let reading = nanos(plane.noted("reading"));
        drop(plane);
        let (made, brought) = (store.home.path().join("made"), store.home.path().join("brought"));
        fs::create_dir(&made).unwrap();
        fs::create_dir(&brought).unwrap();
        let start = std::time::Instant::now();
        let names = write_small(&made);
        let native = start.elapsed();
        let key = |name: &str| format!("copied/{name}");
        let (at, to) = (|name: &str| made.join(name), |name: &str| brought.join(name));
        store.runtime.block_on(async {
            let puts = names.iter().map(async |name| {
                let bytes = fs::read(at(name)).unwrap().into();
                let body = futures_util::stream::once(async { Ok(bytes) }).boxed();
                store.plane.blobs.put(&key(name), body, Durability::Now).await.unwrap();
            });
            futures_util::stream::iter(puts).buffer_unordered(SIDE_BY_SIDE).count().await;
            let document = serde_json::json!({"id": "copied", "files": names});
            store
                .plane
                .documents
                .insert(Collection::Events, document, None, Durability::Now)
                .await
                .unwrap();
        });
        let out = start.elapsed();
        store.runtime.block_on(async {
            let gets = names.iter().map(async |name| {
                let bytes = store.plane.blobs.get_range(&key(name), 0..SMALL as u64).await.unwrap();
                fs::write(to(name), bytes).unwrap();
            });
            futures_util::stream::iter(gets).buffer_unordered(SIDE_BY_SIDE).count().await;
        });
        let begun = std::time::Instant::now();
        assert_eq!(read_small(&brought), count);
        let read_natively = begun.elapsed();
        let theirs = start.elapsed();
        row(
            &format!("{count} files of 4 KiB, job to job / copy-out, copy-in"),
            ours,
            theirs,
            "<= 0.2",
        );
        row("  of it: until committed / until copied out", committed, out, "");
        row("  of it: writing alone / native", written, native, "<= 4");
        row("  of it: reading alone / native, copied in", reading, read_natively, "");
    }

    /// Measures the daemon's memory while gigabytes pass through it: with its default cache, and
    /// with a limited one.
    pub(crate) fn memory(&self) {
        let large = self.large();
        let bytes = number("ION_BENCH_STREAM_MIB", 10 << 10) as u64 * MIB;
        let jobs = bytes.div_ceil(large.size);
        let mut idle = 0;
        for (how, said) in [
            ("its default cache", [].as_slice()),
            ("64 MiB of cache", &["--cache-memory", "64MiB"]),
        ] {
            // Without a cache on disk no job finds what another one has fetched, and the kernel
            // reads no file without the daemon.
            let flags = [&["--jobs", "2", "--cache-size", "0"], said].concat();
            let plane = BenchPlane::up(&self.store, &[("stream", "go", "")], &flags);
            idle = plane.memory_max();
            for n in 0..jobs {
                plane.publish(&format!("e{n}"), vec![large.clone()]);
            }
            plane.wait("the last job", || {
                fs::read_dir(&plane.notes).unwrap().count() as u64 >= jobs
            });
            let ours = plane.memory_max();
            let name = format!("memory, {jobs} jobs read {} MiB, {how}", jobs * large.size / MIB);
            row_of(&name, &mebibytes(ours), "128.0MiB", ours as f64 / (128 * MIB) as f64, "<= 1");
        }
        println!("  ({} before the first job)", mebibytes(idle));
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1}MiB", bytes as f64 / MIB as f64)
}
