//! Measures a node's CSI driver with many pods: compares the time and memory of a volume with the
//! bare mount of an empty tmpfs.
//!
//! `cargo bench --bench csi` runs it. The two sides of a row alternate. Publishing takes the pod's
//! ticket and unpublishing writes the outcome of its work, each a durable write. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a bench prints its results, and panics when it cannot continue"
)]

mod common;
#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::middle;
use futures_util::future::join_all;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use support::csi::{CsiRig, PodAttempt, unpublish};

/// The pods of the node. A kubelet allows 110 by default.
const PODS: usize = 200;

/// How often all pods are published and unpublished at once. Memory that keeps growing shows only
/// after several rounds.
const ROUNDS: usize = 4;

fn main() {
    println!("{:<58} {:>11} {:>11} {:>8}", "", "ion", "baseline", "ratio");
    let rig = CsiRig::new(&[("f", b"content")]);
    let pid = rig.driver.as_ref().unwrap().pid();
    // The first volume loads code and data that do not belong to any volume.
    let (_, first) = rig.pod("first");
    look(&first);
    rig.unpublish("first", &first).unwrap();
    let pods = pods(&rig, "pod");
    let (memory, threads) = (status(pid, "VmRSS:"), status(pid, "Threads:"));
    let bare = rig.home.path().join("bare");
    fs::create_dir(&bare).unwrap();
    let (mut ours, mut theirs, mut ours_gone, mut theirs_gone, mut looked) =
        (vec![], vec![], vec![], vec![], vec![]);
    for (name, attempt, target) in &pods {
        ours.push(timed(|| rig.publish(name, target, attempt).unwrap()));
        let (made, gone) = tmpfs(&bare);
        theirs.push(made);
        theirs_gone.push(gone);
    }
    let idle = status(pid, "VmRSS:") - memory;
    for (_, _, target) in &pods {
        looked.push(timed(|| look(target)));
    }
    let (used, threads) = (status(pid, "VmRSS:") - memory, status(pid, "Threads:") - threads);
    for (name, _, target) in &pods {
        ours_gone.push(timed(|| rig.unpublish(name, target).unwrap()));
    }
    line(
        "a volume is published, p50 / mount of a tmpfs",
        middle(ours.clone()),
        middle(theirs.clone()),
    );
    line("the same, p99", late(ours), late(theirs));
    line(
        "a volume is unpublished, p50 / unmount of a tmpfs",
        middle(ours_gone.clone()),
        middle(theirs_gone.clone()),
    );
    line("the same, p99", late(ours_gone), late(theirs_gone));
    let each = u32::try_from(PODS).unwrap();
    let mut left = vec![status(pid, "VmRSS:") - memory];
    for round in 0..ROUNDS {
        let again = self::pods(&rig, &format!("again-{round}"));
        let node = rig.node();
        let published = again.iter().map(|(name, attempt, target)| {
            let (mut node, request) = (node.clone(), rig.request(name, target, &attempt.token));
            async move { node.node_publish_volume(request).await.unwrap() }
        });
        let at_once = timed(|| drop(rig.runtime.block_on(join_all(published))));
        let gone = again.iter().map(|(name, _, target)| {
            let (mut node, request) = (node.clone(), unpublish(name, target));
            async move { node.node_unpublish_volume(request).await.unwrap() }
        });
        let gone_at_once = timed(|| drop(rig.runtime.block_on(join_all(gone))));
        println!(
            "  {PODS} published at once: {:.2?} each; unpublished at once: {:.2?} each",
            at_once / each,
            gone_at_once / each
        );
        left.push(status(pid, "VmRSS:") - memory);
    }
    println!("  the first look into a tree, p50: {:.2?}", middle(looked));
    let kib = |kib: i64| kib / i64::try_from(PODS).unwrap();
    println!(
        "  memory of a volume: {} KiB published, {} KiB looked into; threads of each: {}",
        kib(idle),
        kib(used),
        kib(threads)
    );
    println!("  memory that is left when all are gone, round by round: {left:?} KiB");
}

fn pods(rig: &CsiRig, name: &str) -> Vec<(String, PodAttempt, PathBuf)> {
    let names = (0..PODS).map(|number| format!("{name}-{number}"));
    names.map(|name| (name.clone(), rig.attempt(&name), rig.target(&name))).collect()
}

/// Does what a module does first.
fn look(target: &Path) {
    assert_eq!(fs::read(target.join("in/data/f")).unwrap(), b"content");
    fs::read_dir(target.join("out/data")).unwrap();
}

fn tmpfs(at: &Path) -> (Duration, Duration) {
    let made = timed(|| mount("tmpfs", at, "tmpfs", MountFlags::empty(), None).unwrap());
    (made, timed(|| unmount(at, UnmountFlags::empty()).unwrap()))
}

fn timed(run: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    run();
    begun.elapsed()
}

fn late(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

/// Returns a number from the status of the driver's process.
fn status(pid: u32, key: &str) -> i64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn line(what: &str, ours: Duration, theirs: Duration) {
    let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
    println!(
        "{what:<58} {:>11} {:>11} {ratio:>8.1}",
        format!("{ours:.2?}"),
        format!("{theirs:.2?}")
    );
}
