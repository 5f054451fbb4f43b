//! Compares `ion-index` with a bare client of bulk requests, in one run, on one server and with the
//! same batches.
//!
//! `cargo bench -p ion-index --bench index` runs it. The bare client has all its requests in memory
//! before the clock starts, keeps as many of them under way as `ion-index` does, and reads no more
//! of an answer than its status. `ion-index` is the whole program: it starts, reads the file, makes
//! the documents and judges every answer. Both write into new indices, by turns, so that a busy
//! machine slows both.
//!
//! The server is the tests' emulator, or `ION_TEST_OPENSEARCH`. It shares the machine's cores with
//! what is measured, so only the ratios are meaningful.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a bench starts programs, prints its results, and panics when it cannot continue"
)]

#[path = "../../../benches/common/mod.rs"]
mod common;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/server/search.rs"]
mod search;

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::middle;
use search::Names;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// The documents of a batch, and the batches under way: the defaults of `ion-index`.
const BATCH: usize = 1000;
const IN_FLIGHT: usize = 4;

/// The numbers of items, with the rounds of which the median counts.
const SIZES: [(usize, usize); 2] = [(10_000, 5), (100_000, 3)];

fn main() {
    println!("{:<58} {:>11} {:>11} {:>8}  goal", "", "ion", "baseline", "ratio");
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("in/data")).unwrap();
    let mut is_warm = false;
    for (items, rounds) in SIZES {
        let mut file =
            BufWriter::new(File::create(folder.path().join("in/data/items.ndjson")).unwrap());
        (0..items).for_each(|n| writeln!(file, "{}", item(n)).unwrap());
        file.into_inner().unwrap();
        let (mut ours, mut theirs, mut used) = (vec![], vec![], vec![]);
        if !is_warm {
            // The first round loads program and server into memory.
            ion_index(folder.path(), items);
            bare(&runtime, items);
            is_warm = true;
        }
        for _ in 0..rounds {
            let used_before = children_used();
            ours.push(ion_index(folder.path(), items));
            used.push(children_used() - used_before);
            theirs.push(bare(&runtime, items));
        }
        let rate = |times| items as f64 / middle(times).as_secs_f64();
        let (ours, theirs) = (rate(ours), rate(theirs));
        println!(
            "{:<58} {:>9.0}/s {:>9.0}/s {:>8.3}  >= 0.8",
            format!("{items} items into OpenSearch / a bare bulk client"),
            ours,
            theirs,
            ours / theirs
        );
        let used = middle(used).as_secs_f64() * 1e6 / items as f64;
        println!("  ion-index uses {used:.1} µs of a processor for an item");
    }
}

/// Returns the processor time of all programs that have ended.
fn children_used() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // The name of the program may have spaces; fields 16 and 17 are counted from behind it.
    let fields = stat.rsplit(") ").next().unwrap().split(' ');
    let ticks: u64 = fields.skip(13).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    // The kernel counts in hundredths of a second here.
    Duration::from_millis(ticks * 10)
}

/// Returns an article of 1.2 kB, as a feed has it.
fn item(n: usize) -> String {
    let content = "The quick brown fox jumps over the lazy dog, and goes on. ".repeat(16);
    let day = 1 + n % 28;
    format!(
        r#"{{"id":"https://news.example/{n}","n":{n},"title":"Article {n}","link":"https://news.example/{n}","authors":["A","B"],"published":"2026-11-{day:02}T08:00:00Z","summary":"What article {n} says","content":"{content}"}}"#
    )
}

/// Runs the program on the items, and returns how long that took.
fn ion_index(folder: &Path, items: usize) -> Duration {
    let names = Names::new();
    let begun = Instant::now();
    let ended = Command::new(env!("CARGO_BIN_EXE_ion-index"))
        .arg("--dir")
        .arg(folder)
        .args(["--url", search::url(), "--source", "bench", "--index", &names.prefix])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let took = begun.elapsed();
    assert!(ended.status.success(), "{ended:?}");
    assert_complete(&names, items);
    took
}

/// Sends the same documents by a bare client, and returns how long that took.
fn bare(runtime: &Runtime, items: usize) -> Duration {
    let names = Names::new();
    let mut bodies = vec![];
    for first in (0..items).step_by(BATCH) {
        let mut body = String::new();
        for n in first..items.min(first + BATCH) {
            // An id of the same length as those of `ion-index`.
            let action = format!(r#"{{"create":{{"_index":"{}","_id":"{n:040}"}}}}"#, names.prefix);
            body.push_str(&format!("{action}\n{}\n", item(n)));
        }
        bodies.push(body);
    }
    let client = reqwest::Client::builder().no_proxy().tcp_user_timeout(None).build().unwrap();
    let begun = Instant::now();
    runtime.block_on(async {
        let mut sending = JoinSet::new();
        for body in bodies {
            if sending.len() == IN_FLIGHT {
                sending.join_next().await.unwrap().unwrap();
            }
            let request = client
                .post(format!("{}/_bulk", search::url()))
                .header("content-type", "application/x-ndjson")
                .body(body);
            sending.spawn(async move {
                let answer = request.send().await.unwrap();
                assert_eq!(answer.status(), 200);
                answer.bytes().await.unwrap();
            });
        }
        while let Some(sent) = sending.join_next().await {
            sent.unwrap();
        }
    });
    let took = begun.elapsed();
    assert_complete(&names, items);
    took
}

/// A side that loses documents has no speed.
fn assert_complete(names: &Names, items: usize) {
    search::ask("POST", &format!("{}/_refresh", names.prefix), &serde_json::Value::Null);
    let (_, counted) =
        search::ask("GET", &format!("{}/_count", names.prefix), &serde_json::Value::Null);
    assert_eq!(counted["count"], items);
}
