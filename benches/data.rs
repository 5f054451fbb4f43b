//! Compares the data path with what users would use instead, in one run, on one S3 server and with
//! the same bytes.
//!
//! `make bench` runs all rows, and `cargo bench --bench data -- cold link` only some (the names are
//! in [`ROWS`]). The server is a real one on this machine (Garage, as in the tests). It shares the
//! machine's cores with what is measured, so only the ratios are meaningful. Needs root, because it
//! mounts in this process's own namespace.
//!
//! Ion is compared with native files, with the bare client (`object_store`, with as many parallel
//! requests as Ion makes; the bytes are thrown away), with a copy to a local file by the bare
//! client, and with rclone and s3fs where they are installed.
//!
//! `ION_BENCH_MIB` (384) is the size of the large file of most rows, `ION_BENCH_LARGE_MIB` (4096)
//! that of the rows `first` and `memory`. `ION_BENCH_FILES` (10,000) is the number of small files,
//! and `ION_BENCH_STREAM_MIB` (10,240) the amount that is read while memory is measured.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a bench starts programs, prints its results, and panics when it cannot continue"
)]

mod common;
#[path = "data/jobs.rs"]
mod jobs;
#[path = "data/link.rs"]
mod link;
#[path = "../tests/support/mod.rs"]
mod support;

use std::cell::OnceCell;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{median, read, write};
use futures_util::{StreamExt as _, TryStreamExt as _};
use ionfs::checksum::BlockChecksummer;
use ionfs::event::{Event, FileEntry};
use ionfs::stores::open::{StoreUrls, open};
use ionfs::stores::{Collection, DataPlane, Durability};
use support::mount::{Mount, Passthrough, runtime, stored};
use support::{Home, wait_for};
use tokio::runtime::Runtime;

const MIB: u64 = 1 << 20;

/// The bytes of one request of the bare client, and its parallel requests: the same as Ion's.
const REQUEST: u64 = 8 * MIB;
const SIDE_BY_SIDE: usize = 4;

/// The number of reads of the random rows.
const RANDOM: u64 = 200;

type Group = fn(&Bench);

/// The groups of rows, by the name that selects them.
const ROWS: [(&str, Group); 9] = [
    ("first", Bench::first_bytes),
    ("cold", Bench::cold_reads),
    ("link", Bench::reads_over_a_link),
    ("random", Bench::random_reads),
    ("again", Bench::reads_again),
    ("write", Bench::writes_and_closes),
    ("copy", Bench::copies),
    ("files", Bench::small_files),
    ("memory", Bench::memory),
];

/// The file to read, for the run of this program that reads over a link.
const LINKED: &str = "ION_BENCH_LINKED";

fn main() {
    if let Ok(what) = std::env::var(jobs::MODULE) {
        return jobs::module(&what);
    }
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let known = |name: &String| ROWS.iter().any(|(row, _)| row == name);
    assert!(wanted.iter().all(known), "the rows are {:?}", ROWS.map(|(name, _)| name));
    let Ok(url) = std::env::var("ION_BENCH_URL") else {
        let s3 = support::servers::S3::start();
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(wanted).envs(s3.env.iter().cloned()).env("ION_BENCH_URL", &s3.url);
        assert!(child.status().unwrap().success(), "the bench failed");
        return;
    };
    if let Ok(entry) = std::env::var(LINKED) {
        return over_a_link(&Store::open(url), &serde_json::from_str(&entry).unwrap());
    }
    let bench = Bench::new(url, number("ION_BENCH_MIB", 384) as u64 * MIB);
    for (name, rows) in ROWS {
        if wanted.is_empty() || wanted.iter().any(|one| one == name) {
            rows(&bench);
        }
    }
}

/// Returns a setting of the bench.
fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// The store that all rows read from.
struct Store {
    runtime: Arc<Runtime>,
    url: String,
    home: Home,
    plane: DataPlane,
}

struct Bench {
    store: Store,
    big: FileEntry,
    small: FileEntry,
    large: OnceCell<FileEntry>,
    native: PathBuf,
    upload: Duration,
}

impl Store {
    fn open(url: String) -> Self {
        let (runtime, home) = (runtime(), Home::new());
        let plane = runtime.block_on(open(&urls(&url, &home))).unwrap();
        Self { runtime, url, home, plane }
    }

    /// Mounts a job on a node with an empty cache.
    fn cold(&self, files: &[&FileEntry]) -> Mount {
        let home = Home::new();
        let plane = self.runtime.block_on(open(&urls(&self.url, &home))).unwrap();
        let files = files.iter().map(|entry| (*entry).clone()).collect();
        Mount::over(self.runtime.clone(), home, plane, Passthrough::Allowed, files)
    }

    /// Stores random bytes as a blob; no other copy of them exists.
    fn random(&self, name: &str, size: u64) -> FileEntry {
        let (key, sums) = (format!("c/e/0/{name}"), Mutex::new(BlockChecksummer::default()));
        let pieces = futures_util::stream::try_unfold(
            File::open("/dev/urandom").unwrap().take(size),
            |mut random| async {
                let mut piece = Vec::with_capacity(MIB as usize);
                (&mut random).take(MIB).read_to_end(&mut piece)?;
                sums.lock().unwrap().update(&piece);
                Ok((!piece.is_empty()).then_some((Bytes::from(piece), random)))
            },
        );
        assert_eq!(
            self.runtime
                .block_on(self.plane.blobs.put(&key, pieces.boxed(), Durability::Now))
                .unwrap(),
            size
        );
        let checksums = sums.into_inner().unwrap().finish();
        FileEntry {
            name: name.to_owned(),
            key,
            size,
            mtime: 0,
            mtime_nanos: 0,
            mode: 0o644,
            checksums,
        }
    }

    /// Reads a blob with the bare client, and throws the bytes away or writes them to a file.
    /// Returns the time it took.
    fn bare(&self, entry: &FileEntry, into: Option<&Path>) -> Duration {
        let began = Instant::now();
        let file = into.map(|path| Arc::new(File::create(path).unwrap()));
        let requests = (0..entry.size.div_ceil(REQUEST)).map(|at| {
            let (blobs, key, file) = (self.plane.blobs.clone(), entry.key.clone(), file.clone());
            let range = at * REQUEST..((at + 1) * REQUEST).min(entry.size);
            async move {
                let mut at = range.start;
                let mut body = blobs.get_stream(&key, range).await.unwrap();
                while let Some(piece) = body.try_next().await.unwrap() {
                    if let Some(file) = &file {
                        file.write_all_at(&piece, at).unwrap();
                    }
                    at += piece.len() as u64;
                }
            }
        });
        self.runtime
            .block_on(futures_util::stream::iter(requests).buffer_unordered(SIDE_BY_SIDE).count());
        began.elapsed()
    }

    /// Mounts the bucket with another program; none where the program is not installed.
    fn peer(&self, name: &str, holds: &FileEntry) -> Option<Peer> {
        let at = self.home.path().join(name);
        fs::create_dir_all(&at).unwrap();
        let variable = |name: &str| std::env::var(name).unwrap();
        let endpoint = variable("AWS_ENDPOINT_URL");
        let mut command = Command::new(name);
        match name {
            "rclone" => command
                .args(["mount", ":s3:ion"])
                .arg(&at)
                .args(["--daemon", "--read-only", "--buffer-size", "32M", "--dir-cache-time", "1h"])
                .env("RCLONE_S3_PROVIDER", "Other")
                .env("RCLONE_S3_ENDPOINT", &endpoint)
                .env("RCLONE_S3_REGION", variable("AWS_REGION"))
                .env("RCLONE_S3_ENV_AUTH", "true"),
            _ => command
                .arg("ion")
                .arg(&at)
                .args(["-o", "use_path_request_style,multireq_max=8,parallel_count=8,ro"])
                .arg("-o")
                .arg(format!("url={endpoint},endpoint={}", variable("AWS_REGION")))
                .env("AWSACCESSKEYID", variable("AWS_ACCESS_KEY_ID"))
                .env("AWSSECRETACCESSKEY", variable("AWS_SECRET_ACCESS_KEY")),
        };
        // A certificate bundle of this machine does not apply to a server without TLS.
        command.env_remove("AWS_CA_BUNDLE");
        match command.stdout(Stdio::null()).stderr(Stdio::null()).status() {
            Ok(status) if status.success() => {}
            _ => {
                println!("({name} is not installed or does not mount here)");
                return None;
            }
        }
        wait_for(name, || at.join(&holds.key).exists());
        Some(Peer { at })
    }

    /// Measures how each peer reads the whole file.
    fn peers_read(&self, entry: &FileEntry, what: &str, ours: Duration, goal: &str) {
        for peer in PEERS {
            let Some(mounted) = self.peer(peer, entry) else { continue };
            let theirs = read(&mounted.at.join(&entry.key));
            row(&format!("{what} / {peer}"), ours, theirs, goal);
        }
    }
}

impl Bench {
    fn new(url: String, size: u64) -> Self {
        let store = Store::open(url);
        let native = store.home.path().join("native");
        let mut random = File::open("/dev/urandom").unwrap().take(size);
        std::io::copy(&mut random, &mut File::create(&native).unwrap()).unwrap();
        let small = store.home.write("small", vec![5; 4 << 20]);
        let began = Instant::now();
        let big = store.runtime.block_on(stored(&store.plane, "big", &native));
        let upload = began.elapsed();
        let small = store.runtime.block_on(stored(&store.plane, "small", &small));
        println!(
            "{} MiB on {}, put by the bare client in {upload:.2?}\n\n{:<58} {:>11} {:>11} {:>8}  \
             goal",
            size / MIB,
            store.url,
            "",
            "ion",
            "baseline",
            "ratio"
        );
        Self { store, big, small, large: OnceCell::new(), native, upload }
    }

    /// Returns a file that is too large to be copied around; it is stored when the first row asks
    /// for it.
    fn large(&self) -> &FileEntry {
        self.large.get_or_init(|| {
            self.store.random("large", number("ION_BENCH_LARGE_MIB", 4096) as u64 * MIB)
        })
    }

    fn cold(&self) -> Mount {
        self.store.cold(&[&self.big, &self.small])
    }

    fn cold_reads(&self) {
        let ours = median(3, || read(&self.cold().at("in/data/big")));
        let theirs = median(3, || self.store.bare(&self.big, None));
        row("cold read of it all / bare client", ours, theirs, "<= 1.11");
        self.store.peers_read(&self.big, "cold read of it all", ours, "<= 0.67 of the best");
    }

    /// Runs this program again to read over a link, because a client takes its endpoint from its
    /// environment.
    fn reads_over_a_link(&self) {
        let endpoint = std::env::var("AWS_ENDPOINT_URL").unwrap();
        let (_, port) = endpoint.rsplit_once(':').unwrap();
        let link = link::Link::to(port.parse().unwrap());
        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", link.port))
            .env(LINKED, serde_json::to_string(&self.big).unwrap());
        assert!(child.status().unwrap().success(), "the run over the link failed");
    }

    fn random_reads(&self) {
        let mount = self.cold();
        let ours = random(&mount.at("in/data/big"), self.big.size) / u32::try_from(RANDOM).unwrap();
        let fetched = mount.metric("bytesFetched") as f64 / MIB as f64 / RANDOM as f64;
        let bare = |range: fn(u64) -> std::ops::Range<u64>| {
            let began = Instant::now();
            for at in places(self.big.size) {
                let got = self.store.plane.blobs.get_range(&self.big.key, range(at));
                assert!(!self.store.runtime.block_on(got).unwrap().is_empty());
            }
            began.elapsed() / u32::try_from(RANDOM).unwrap()
        };
        let name = format!("random 4 KiB, cold ({fetched:.2} blocks fetched each) / bare");
        row(&name, ours, bare(|at| at..at + 4096), "<= 1 block");
        row(
            "random 4 KiB, cold / bare client fetching the block",
            ours,
            bare(|at| at / MIB * MIB..(at / MIB + 1) * MIB),
            "",
        );
        for peer in PEERS {
            let Some(mounted) = self.store.peer(peer, &self.big) else { continue };
            let theirs = random(&mounted.at.join(&self.big.key), self.big.size)
                / u32::try_from(RANDOM).unwrap();
            row(&format!("random 4 KiB, cold / {peer}"), ours, theirs, "<= 0.5 of the best");
        }
    }

    fn reads_again(&self) {
        let mount = self.cold();
        read(&mount.at("in/data/big"));
        let theirs = median(3, || read(&self.native));
        row(
            "read again, same job / native",
            median(3, || read(&mount.at("in/data/big"))),
            theirs,
            "<= 1.05",
        );
        let next = mount.another();
        row(
            "read again, next job / native",
            median(3, || read(&next.at("in/data/big"))),
            theirs,
            "<= 1.05",
        );
    }

    fn writes_and_closes(&self) {
        let mount = self.cold();
        let ours = median(3, || {
            let _ = fs::remove_file(mount.at("out/data/w"));
            write(&mount.at("out/data/w"), self.big.size / MIB)
        });
        let native = self.store.home.path().join("w");
        let theirs = median(3, || {
            let _ = fs::remove_file(&native);
            write(&native, self.big.size / MIB)
        });
        row("write it all to out/data / native", ours, theirs, "<= 1.43");
        let _ = fs::remove_file(mount.at("out/data/w"));
        write(&mount.at("out/data/w2"), self.big.size / MIB);
        let close = close(&mount, "w", &["w2"]);
        row(
            "close of the event after writing it at once / upload of it",
            close,
            self.upload,
            "<= 0.25",
        );
        write_over(&mount.at("out/data/w3"), self.big.size / MIB, 2 * self.upload);
        let close = self::close(&mount, "slow", &["w3"]);
        row("the same, written at half of the store's pace", close, self.upload, "<= 0.25");
        let found = self.plane_event(&mount);
        let message = found.message();
        let mut number = 0;
        let ours = median(31, || {
            number += 1;
            close_of(&mount, number)
        });
        let theirs = median(31, || {
            number += 1;
            let began = Instant::now();
            self.store.runtime.block_on(async {
                let document = serde_json::json!({"id": format!("bare-{number}")});
                mount
                    .node
                    .plane
                    .documents
                    .insert(Collection::Events, document, None, Durability::Now)
                    .await
                    .unwrap();
                mount.node.plane.bus.publish(&message).await.unwrap();
            });
            began.elapsed()
        });
        row("close of an event without files / bare insert and publish", ours, theirs, "<= 1.2");
    }

    fn plane_event(&self, mount: &Mount) -> Event {
        let found =
            self.store.runtime.block_on(mount.node.plane.documents.get_as(Collection::Events, "e"));
        found.unwrap().unwrap()
    }

    fn copies(&self) {
        let mount = self.cold();
        let (from, to) = (mount.at("in/data/big"), mount.at("out/data/copy"));
        let began = Instant::now();
        assert!(Command::new("cp").args([&from, &to]).status().unwrap().success());
        let ours = began.elapsed();
        let moved = mount.metric("bytesFetched") + mount.metric("bytesUploaded");
        let began = Instant::now();
        assert!(
            Command::new("cp")
                .args([&self.native, &self.store.home.path().join("copy")])
                .status()
                .unwrap()
                .success()
        );
        row(
            &format!("cp from in/ to out/ ({moved} bytes moved) / native cp"),
            ours,
            began.elapsed(),
            "< 5 ms",
        );
    }
}

const PEERS: [&str; 2] = ["rclone", "s3fs"];

struct Peer {
    at: PathBuf,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

/// Measures reads from a store behind a link of 1 Gbit/s with a round trip of 20 ms.
fn over_a_link(store: &Store, entry: &FileEntry) {
    let ours = median(3, || read(&store.cold(&[entry]).at("in/data/big")));
    let link = Duration::from_secs_f64(entry.size as f64 / link::RATE);
    row("cold read, 20 ms and 1 Gbit/s away / the link's own time", ours, link, "<= 1.11");
    let theirs = median(3, || store.bare(entry, None));
    row("cold read, 20 ms and 1 Gbit/s away / bare client", ours, theirs, "");
    store.peers_read(entry, "cold read, 20 ms and 1 Gbit/s away", ours, "<= 0.67 of the best");
}

fn urls(blobs: &str, home: &Home) -> StoreUrls {
    fs::create_dir_all(home.state()).unwrap();
    StoreUrls { blobs: blobs.to_owned(), ..StoreUrls::embedded(&home.state()) }
}

fn row(name: &str, ours: Duration, theirs: Duration, goal: &str) {
    let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
    row_of(name, &format!("{ours:.2?}"), &format!("{theirs:.2?}"), ratio, goal);
}

fn row_of(name: &str, ours: &str, theirs: &str, ratio: f64, goal: &str) {
    println!("{name:<58} {ours:>11} {theirs:>11} {ratio:>8.3}  {goal}");
}

/// Writes a file evenly over `time`, like a program that computes what it writes.
fn write_over(path: &Path, mib: u64, time: Duration) {
    let block: Vec<u8> = (0..MIB).map(|at| ((at * 37) >> 3).to_le_bytes()[0]).collect();
    let began = Instant::now();
    let mut file = File::create(path).unwrap();
    for n in 1..=mib {
        file.write_all(&block).unwrap();
        let due = time.mul_f64(n as f64 / mib as f64);
        std::thread::sleep(due.saturating_sub(began.elapsed()));
    }
}

/// Returns offsets spread over a file: the same in each run, and no two in one block of a large
/// file.
fn places(size: u64) -> impl Iterator<Item = u64> {
    let blocks = size / MIB;
    (0..RANDOM).map(move |n| (n * 7919 + 13) % blocks * MIB + n * 4096 % MIB)
}

fn random(path: &Path, size: u64) -> Duration {
    let file = File::open(path).unwrap();
    let mut buffer = [0; 4096];
    let began = Instant::now();
    for at in places(size) {
        file.read_exact_at(&mut buffer, at).unwrap();
    }
    began.elapsed()
}

/// Writes and closes an event of these files. Returns the time that the close took.
fn close(mount: &Mount, name: &str, files: &[&str]) -> Duration {
    let document = serde_json::json!({"eventType": "made", "files": files});
    let mut file = File::create(mount.at("out/events").join(name)).unwrap();
    file.write_all(document.to_string().as_bytes()).unwrap();
    let began = Instant::now();
    // The close commits. `File` does not return the outcome of a close, so the receipt is checked.
    drop(file);
    let took = began.elapsed();
    let receipt = mount.at("events/published").join(format!("{name}.json"));
    assert!(receipt.exists(), "{name} was not committed");
    took
}

fn close_of(mount: &Mount, number: u32) -> Duration {
    close(mount, &format!("event-{number}"), &[])
}
