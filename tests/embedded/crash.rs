//! Tests of a daemon that is killed with SIGKILL in the middle of jobs, or stopped, and then
//! started again: every event is processed once in effect.

use std::collections::BTreeSet;

use crate::support::{DEADLINE, Home, wait_for, wait_up_to};
use serde_json::Value;

const EVENTS: usize = 12;

fn pipeline(home: &Home) -> std::path::PathBuf {
    home.program("copy", "#!/bin/sh\nset -e\nsleep 0.15\ncp /ion/in/data/f /ion/out/data/f\necho more >> /ion/out/data/f\necho '{\"eventType\":\"copied\",\"files\":[\"f\"]}' > /ion/out/events/c\nsleep 0.1\n");
    home.program(
        "end",
        "#!/bin/sh\nset -e\nsleep 0.05\necho '{\"eventType\":\"ended\"}' > /ion/out/events/e\n",
    );
    home.program("all", "#!/bin/sh\ngrep -c '\"type\"' /ion/in/events.json\n");
    home.write(
        "pipeline.yaml",
        "modules:\n  copy: {on: [start], emits: [copied], run: [./copy]}\n  end: {on: [copied], emits: [ended], run: [./end], commit: on-success}\n  all: {gather: ended, per: start, run: [./all]}\n",
    )
}

fn finished(home: &Home) -> usize {
    home.jobs().iter().filter(|job| job["state"] == "succeeded").count()
}

#[test]
fn a_killed_daemon_started_again_processes_every_event_once_in_effect() {
    let home = Home::new();
    let file = pipeline(&home);
    home.write("f", "content\n");
    let mut up = home.up(&file);
    for _ in 0..EVENTS {
        home.run(["event", "create", "start", "--file", "f"]).well();
    }
    // The daemon is killed four times, each time while jobs run.
    for round in 1..=4 {
        wait_for("further jobs to succeed", || finished(&home) >= round * 2);
        let processes = descendants(up.pid());
        up.kill();
        // The processes that the daemon started die with it, and no mount is left in the host's
        // namespace.
        wait_for("the jobs' processes to be gone", || processes.iter().all(|pid| !alive(*pid)));
        assert!(
            !std::fs::read_to_string("/proc/self/mounts")
                .unwrap()
                .contains(home.state().to_str().unwrap())
        );
        up = home.up(&file);
    }
    wait_up_to(3 * DEADLINE, "all jobs to succeed", || finished(&home) == 3 * EVENTS);
    assert_eq!(up.stop(), Some(0));
    let jobs = home.jobs();
    assert_eq!(jobs.len(), 3 * EVENTS, "there is one job for each event and module");
    assert!(
        jobs.iter().any(|job| job["losses"].as_u64() > Some(0)),
        "at least one attempt was running when the daemon was killed"
    );
    assert!(jobs.iter().all(|job| job["failures"] == 0), "{jobs:#?}");
    for kind in ["copied", "ended"] {
        let published = published(&home, kind);
        assert_eq!(published.len(), EVENTS, "{kind}");
        let parents: BTreeSet<&str> =
            published.iter().map(|e| e["context"]["parentEventId"].as_str().unwrap()).collect();
        assert_eq!(parents.len(), EVENTS, "each {kind} has a parent of its own");
    }
    for all in jobs.iter().filter(|job| job["module"] == "all") {
        assert_eq!(home.run(["job", "logs", all["id"].as_str().unwrap()]).well().stdout, "1\n");
    }
    home.run(["check", "--deep"]).well();
}

/// Returns the published events of a type, of all correlations.
fn published(home: &Home, kind: &str) -> Vec<Value> {
    let correlations: BTreeSet<String> =
        home.jobs().iter().map(|job| job["correlationId"].as_str().unwrap().to_owned()).collect();
    let mut all = Vec::new();
    for correlation in correlations {
        let trace = home.run(["--json", "trace", &correlation]).well().documents();
        all.extend(
            trace.into_iter().filter(|document| {
                document["type"] == kind && document["publication"] == "published"
            }),
        );
    }
    all
}

#[test]
fn a_stopped_daemon_leaves_its_jobs_queued_and_a_new_one_goes_on() {
    let home = Home::new();
    home.program("long", "#!/bin/sh\ntest -e $GO || { touch $BEGUN; sleep 600; }\n");
    let (go, begun) = (home.path().join("go"), home.path().join("begun"));
    let file = home.write(
        "pipeline.yaml",
        format!(
            "modules:\n  long: {{on: [start], run: [./long], retries: 0, env: {{GO: {}, BEGUN: {}}}}}\n",
            go.display(),
            begun.display()
        ),
    );
    let up = home.up(&file);
    home.run(["event", "create", "start"]).well();
    wait_for("the job to begin", || begun.exists());
    assert_eq!(up.stop(), Some(0));
    let job = &home.jobs()[0];
    assert_eq!(
        (job["state"].as_str(), job["failures"].as_u64()),
        (Some("queued"), Some(0)),
        "{job:#?}"
    );
    std::fs::write(&go, "").unwrap();
    let up = home.up(&file);
    wait_for("the job to end", || finished(&home) == 1);
    assert_eq!(up.stop(), Some(0));
}

/// Returns all descendants of the process `pid`.
fn descendants(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(pid) = all.get(at).copied() {
        at += 1;
        for thread in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten()
        {
            let children =
                std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            all.extend(
                children.split_ascii_whitespace().filter_map(|child| child.parse::<u32>().ok()),
            );
        }
    }
    all.remove(0);
    all
}

fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie is dead, although its new parent has not waited for it yet.
    !stat.is_empty() && !stat.contains(") Z ")
}
