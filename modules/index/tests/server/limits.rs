//! What the program takes: batches, requests at a time, memory; and how a signal ends it.

use std::fs;
use std::io::{BufWriter, Write as _};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::job::{Ended, Job};
use crate::proxy::{Fault, Proxy, Seen};
use crate::search::{self, Names};

#[test]
fn a_batch_has_a_bounded_number_of_documents_and_bytes() {
    let proxy = Proxy::for_bulks(|_, _| Fault::Pretend);
    let job = Job::with_lines((0..1000).map(|n| json!({"id": n, "text": "x".repeat(n % 200)})));
    let arguments = ["--index", "a", "--batch-items", "64", "--batch-bytes", "10KiB"];
    let insights = job.run_well(&proxy.url, &arguments);
    assert_eq!(insights["created"], 1000);
    let bulks = proxy.bulks();
    let largest = bulks.iter().map(|bulk| bulk.body.len()).max().unwrap();
    assert!((8 << 10..=10 << 10).contains(&largest), "{largest}");
    let most = bulks.iter().map(|bulk| bulk.documents().len()).max().unwrap();
    assert!((32..=64).contains(&most), "{most}");
}

#[test]
fn at_most_so_many_requests_are_under_way() {
    for in_flight in [1, 3] {
        let names = Names::new();
        let job = Job::with_lines((0..40).map(|n| json!({"id": n})));
        // Each request is answered after 200 ms or more. So those that come within 200 ms of each
        // other are under way at the same time.
        let time = Duration::from_millis(200);
        let proxy = Proxy::for_bulks(move |_, _| Fault::Slow(time));
        let arguments = [
            ["--index", &names.prefix],
            ["--batch-items", "4"],
            ["--in-flight", &in_flight.to_string()],
        ];
        job.run_well(&proxy.url, arguments.as_flattened());
        let bulks = proxy.bulks();
        assert_eq!(bulks.len(), 10);
        let together = |bulk: &Seen| {
            bulks.iter().filter(|other| bulk.at <= other.at && other.at < bulk.at + time).count()
        };
        assert_eq!(bulks.iter().map(together).max(), Some(in_flight));
    }
}

/// Returns the peak of a process's memory in MiB, while it runs.
fn peak_memory(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib >> 10)
}

#[test]
fn memory_does_not_grow_with_the_items_good_or_bad() {
    let proxy = Proxy::for_bulks(|_, _| Fault::Pretend);
    let peak_with = |megabytes: usize| {
        let job = Job::new();
        let path = job.write("in/data/items.ndjson", "");
        let mut file = BufWriter::new(fs::File::create(path).unwrap());
        let text = "x".repeat(900);
        for n in 0..megabytes << 10 {
            // Every third item has no id.
            let id = if n % 3 == 0 { "no" } else { "id" };
            writeln!(file, r#"{{"{id}": {n}, "text": "{text}"}}"#).unwrap();
        }
        file.into_inner().unwrap();
        let arguments = ["--index", "a", "--batch-bytes", "1MiB", "--in-flight", "2"];
        let mut child = job.command(&proxy.url, &arguments).spawn().unwrap();
        let mut peak = 0;
        while child.try_wait().unwrap().is_none() {
            peak = peak.max(peak_memory(child.id()).unwrap_or(0));
            std::thread::sleep(Duration::from_millis(2));
        }
        let ended: Ended = child.wait_with_output().unwrap().into();
        assert_eq!(ended.status, Some(0), "{ended:?}");
        proxy.seen().clear();
        peak
    };
    let (small, large) = (peak_with(8), peak_with(160));
    assert!(large < small + 16, "8 MB of items took {small} MiB, and 160 MB {large} MiB");
}

#[test]
fn a_line_of_any_length_takes_a_bounded_memory() {
    let names = Names::new();
    let job = Job::new();
    let path = job.write("in/data/items.ndjson", "");
    let mut file = BufWriter::new(fs::File::create(path).unwrap());
    write!(file, "{{\"id\": \"long\", \"text\": \"").unwrap();
    let piece = "x".repeat(1 << 20);
    for _ in 0..200 {
        file.write_all(piece.as_bytes()).unwrap();
    }
    file.write_all(b"\"}\n{\"id\": \"short\", \"n\": 1}\n").unwrap();
    file.into_inner().unwrap();
    let arguments = ["--index", &names.prefix, "--item-bytes", "1MiB"];
    let mut child = job.spawn(search::url(), &arguments);
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        peak = peak.max(peak_memory(child.id()).unwrap_or(0));
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(child.wait().unwrap().success());
    assert!((1..64).contains(&peak), "{peak} MiB");
    assert_eq!((job.rejected().len(), names.documents().len()), (1, 1));
    assert!(job.rejected()[0]["bytes"].as_u64().unwrap() > 200 << 20);
}

#[test]
fn a_signal_ends_a_run_cleanly_and_the_next_one_goes_on() {
    let names = Names::new();
    // The third batch hangs, so that the run is in its midst.
    let proxy = Proxy::for_bulks(|n, _| match n {
        2 => Fault::Slow(Duration::from_secs(60)),
        _ => Fault::None,
    });
    let mut lines: Vec<_> = (0..50).map(|n| json!({"id": n, "n": n}).to_string()).collect();
    lines[0] = "no JSON".into();
    let job = Job::with_lines(&lines);
    let arguments = ["--index", &names.prefix, "--batch-items", "10", "--in-flight", "1"];
    let child = job.spawn(&proxy.url, &arguments);
    let deadline = Instant::now() + Duration::from_secs(30);
    while proxy.bulks().len() < 3 {
        assert!(Instant::now() < deadline, "the third batch does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    let asked = Instant::now();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended: Ended = child.wait_with_output().unwrap().into();
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    assert_eq!(ended.status, Some(143), "{ended:?}");
    assert!(ended.stderr.contains("stopped by a signal"), "{}", ended.stderr);
    assert_eq!(job.outputs(), Vec::<String>::new());
    let insights = job.run_well(search::url(), &arguments);
    assert_eq!((&insights["alreadyThere"], &insights["rejected"]), (&json!(20), &json!(1)));
    assert_eq!(names.documents().len(), 49);
}

#[test]
fn wrong_settings_and_missing_items_are_told_before_anything_is_sent() {
    let proxy = Proxy::start(|_| Fault::None);
    let job = Job::new();
    let run = |arguments: &[&str]| job.run(&proxy.url, arguments);
    let nothing = run(&["--index", "a"]);
    assert_eq!(nothing.status, Some(1));
    assert!(nothing.stderr.contains("neither an item.json nor an items.ndjson"), "{nothing:?}");
    job.write("in/data/item.json", "{}");
    for (arguments, words) in [
        (vec!["--index", "A"], "may not stand in the name of an index"),
        (vec!["--index", "a", "--in-flight", "0"], "use a number from 1"),
        (vec!["--index", "a", "--deadline", "0s"], "use a time such as"),
        (vec!["--index", "a", "--shape", "round"], "use as-it-is or older-ingest"),
        (vec!["--index", "a", "--ca", "/dev/null"], "no certificate in the form PEM"),
    ] {
        let ended = run(&arguments);
        assert_eq!(ended.status, Some(2), "{ended:?}");
        assert!(ended.stderr.contains(words), "{}", ended.stderr);
    }
    assert_eq!(proxy.seen().len(), 0);
}
