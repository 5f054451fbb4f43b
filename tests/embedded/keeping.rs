//! Tests of `ion check` and `ion gc`. `ion check` finds and repairs what dead processes leave
//! behind. `ion gc` removes what nothing needs any more, and only that.

use crate::support::csi::CsiRig;
use crate::support::{Home, wait_for};
use ionfs::stores::open::{StoreUrls, open};
use ionfs::stores::{Collection, Durability};
use ionfs::ticket::Ticket;
use serde_json::Value;

/// Returns the state of the first job of a module, or "none".
fn state_of(home: &Home, module: &str) -> String {
    let jobs = home.jobs();
    let job = jobs.iter().find(|job| job["module"] == module);
    job.map_or("none", |job| job["state"].as_str().unwrap()).to_owned()
}

/// Runs `ion check` with these flags and returns its findings. Asserts that it exits with 0 if all
/// of them are repaired, and with 1 otherwise.
fn findings(home: &Home, flags: &[&str]) -> Vec<Value> {
    let ran = home.run([&["--json", "check"], flags].concat());
    let report: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{ran:#?}"));
    let findings = report["findings"].as_array().unwrap().clone();
    let well = findings.iter().all(|finding| finding["repaired"].is_string());
    assert_eq!(ran.code, Some(i32::from(!well)), "{ran:#?}");
    findings
}

/// Returns the known phrase that each finding contains, sorted.
fn kinds(findings: &[Value]) -> Vec<&'static str> {
    let known = [
        "is not published",
        "is held by nobody",
        "its outbox was not published",
        "is missing",
        "instead of",
        "checksum",
    ];
    let kind = |finding: &Value| {
        let what = finding["what"].as_str().unwrap();
        *known
            .iter()
            .find(|known| what.contains(**known))
            .unwrap_or_else(|| panic!("the finding is of no known kind: {what}"))
    };
    let mut kinds: Vec<&str> = findings.iter().map(kind).collect();
    kinds.sort_unstable();
    kinds
}

/// Three processes die: one that reveals an event, one that holds a job, and one that commits an
/// event. `ion check` names all that they leave undone, and `--repair` completes it.
#[test]
fn what_the_dead_left_is_found_and_repaired() {
    let home = Home::new();
    home.program("quick", "#!/bin/sh\necho '{\"eventType\":\"made\"}' > /ion/out/events/e\n");
    home.program("slow", "#!/bin/sh\ntest -e $GO || { touch $BEGUN; sleep 600; }\n");
    let (go, begun) = (home.path().join("go"), home.path().join("begun"));
    let file = home.write(
        "pipeline.yaml",
        format!(
            "modules:\n  quick: {{on: [one], emits: [made], run: [./quick], commit: on-success}}\n  late: {{on: [made, alone], run: [\"true\"]}}\n  slow: {{on: [two], run: [./slow], env: {{GO: {}, BEGUN: {}}}}}\n",
            go.display(),
            begun.display()
        ),
    );
    // This daemon dies when it has revealed the event of a job that succeeded, and has not
    // announced the event yet.
    let mut host = home.on_another_host();
    host.env.push(("ION_FAILPOINTS".into(), "promote.revealed=1".into()));
    let up = host.up(&file);
    home.run(["event", "create", "one"]).well();
    assert_eq!(up.wait(), None);
    // Another daemon dies while it runs a job.
    let host = home.on_another_host();
    let up = host.up_with(&["--lease", "3s"], &file);
    home.run(["event", "create", "two"]).well();
    wait_for("the slow job to begin", || begun.exists());
    up.kill();
    // A command dies between the insert and the publish of its event.
    let mut create = home.ion();
    create.args(["event", "create", "alone"]).env("ION_FAILPOINTS", "commit.inserted=1");
    assert_eq!(create.status().unwrap().code(), None);
    let wrong = [
        "is held by nobody",
        "is not published",
        "is not published",
        "its outbox was not published",
    ];
    wait_for("each leftover to be old enough for a finding", || {
        kinds(&findings(&home, &[])) == wrong
    });
    let repaired = findings(&home, &["--repair"]);
    assert_eq!(kinds(&repaired), wrong);
    assert!(repaired.iter().all(|finding| finding["repaired"].is_string()), "{repaired:#?}");
    assert!(findings(&home, &[]).is_empty());
    std::fs::write(&go, "").unwrap();
    let up = home.up(&file);
    for module in ["quick", "slow", "late"] {
        wait_for(module, || state_of(&home, module) == "succeeded");
    }
    wait_for("all four jobs to succeed", || {
        home.jobs().iter().filter(|job| job["state"] == "succeeded").count() == 4
    });
    assert_eq!(up.stop(), Some(0));
    assert!(findings(&home, &["--deep"]).is_empty());
}

/// `ion check` reports blobs that are missing, short or wrong, and never repairs them.
#[test]
fn blobs_that_are_missing_short_or_wrong_are_told() {
    let home = Home::new();
    for (name, content) in [("gone", "gone"), ("short", "short"), ("wrong", "wrong")] {
        home.write(name, content);
        home.run(["event", "create", "t", "--file", name]).well();
    }
    assert!(findings(&home, &["--deep"]).is_empty());
    let blob = |name: &str| {
        let found = walk(&home.state().join("blobs"));
        found.into_iter().find(|path| path.file_name().unwrap() == name).unwrap()
    };
    std::fs::remove_file(blob("gone")).unwrap();
    std::fs::write(blob("short"), "shor").unwrap();
    std::fs::write(blob("wrong"), "WRONG").unwrap();
    assert_eq!(kinds(&findings(&home, &["--repair"])), ["instead of", "is missing"]);
    assert_eq!(kinds(&findings(&home, &["--deep"])), ["checksum", "instead of", "is missing"]);
}

/// Returns all files below a folder.
fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(walk(&path)) } else { files.push(path) }
    }
    files
}

/// `ion gc` keeps a blob that a running job has stored, because the job may name it in an event
/// hours later. The blob stays however short `--grace` is.
#[test]
fn gc_leaves_what_a_running_job_is_about_to_commit() {
    let home = Home::new();
    home.program("write", "#!/bin/sh\nset -e\necho kept > /ion/out/data/kept\necho lost > /ion/out/data/lost\nuntil [ -e $GO ]; do sleep 0.05; done\necho '{\"eventType\":\"made\",\"files\":[\"kept\"]}' > /ion/out/events/e\n");
    let go = home.path().join("go");
    let file = home.write(
        "pipeline.yaml",
        format!(
            "modules:\n  write: {{on: [one], emits: [made], run: [./write], env: {{GO: {}}}}}\n",
            go.display()
        ),
    );
    home.write("orphan", "stored by nobody");
    let up = home.up(&file);
    home.run(["event", "create", "one"]).well();
    let blobs = home.state().join("blobs");
    // The names are compared, because a blob that is still being written has another name.
    let stored = || {
        let mut names: Vec<_> =
            walk(&blobs).iter().map(|blob| blob.file_name().unwrap().to_owned()).collect();
        names.sort();
        names == ["kept", "lost"]
    };
    wait_for("both files to be stored", || blobs.exists() && stored());
    // This blob belongs to a correlation and a job that never existed.
    let orphan = blobs.join("0/0/1.0/orphan");
    std::fs::create_dir_all(orphan.parent().unwrap()).unwrap();
    std::fs::write(&orphan, "orphan").unwrap();
    let collected = gc(&home, &["--grace", "0s"]);
    assert_eq!(
        (collected["blobs"].as_u64(), collected["young"].as_u64()),
        (Some(1), Some(2)),
        "{collected}"
    );
    assert!(!orphan.exists());
    std::fs::write(&go, "").unwrap();
    wait_for("the job to succeed", || state_of(&home, "write") == "succeeded");
    assert_eq!(up.stop(), Some(0));
    assert!(findings(&home, &["--deep"]).is_empty());
    home.run(["gc", "--grace", "0s"]).well();
    assert!(findings(&home, &["--deep"]).is_empty());
    let left: Vec<String> = walk(&blobs)
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert!(left.contains(&"kept".to_owned()) && !left.contains(&"lost".to_owned()), "{left:?}");
}

/// `ion gc --older-than` removes all of an old correlation that has ended. A correlation stays if
/// it is young, if one of its messages waits, or if one of its events is not published.
#[test]
fn what_is_old_and_has_ended_goes_whole() {
    let home = Home::new();
    home.program("copy", "#!/bin/sh\nset -e\ncp /ion/in/data/f /ion/out/data/g\necho x >> /ion/out/data/g\necho '{\"eventType\":\"made\",\"files\":[\"g\"]}' > /ion/out/events/e\n");
    home.write("f", "content");
    let file = home.write(
        "pipeline.yaml",
        "modules:\n  copy: {on: [one], emits: [made], run: [./copy]}\n  end: {on: [made], run: [\"true\"]}\n  fail: {on: [bad], run: [\"false\"], retries: 0}\n",
    );
    let up = home.up(&file);
    home.run(["event", "create", "one", "--file", "f", "--wait"]).well();
    home.run(["event", "create", "bad", "--wait"]).failed();
    assert_eq!(up.stop(), Some(0));
    let counts = |home: &Home| (home.jobs().len(), walk(&home.state().join("blobs")).len());
    assert_eq!(
        gc(&home, &["--older-than", "1h"])["correlations"],
        0,
        "the correlations are too young"
    );
    // Two correlations have not ended: the message of one waits in its queue, and the event of the
    // other is not published.
    home.run(["event", "create", "one", "--id", "waits", "--file", "f"]).well();
    let mut create = home.ion();
    create
        .args(["event", "create", "alone", "--id", "unpublished"])
        .env("ION_FAILPOINTS", "commit.inserted=1");
    assert_eq!(create.status().unwrap().code(), None);
    let before = counts(&home);
    let would = gc(&home, &["--older-than", "0s", "--dry-run"]);
    assert_eq!((would["correlations"].as_u64(), counts(&home)), (Some(2), before));
    let did = gc(&home, &["--older-than", "0s"]);
    assert_eq!(
        (&did["correlations"], &did["documents"]),
        (&would["correlations"], &would["documents"])
    );
    assert_eq!(counts(&home), (0, 1), "only the file of the event that waits is left");
    assert!(
        !home.run(["dead", "list"]).well().stdout.contains("fail"),
        "the dead letter is removed with its job"
    );
    for id in ["waits", "unpublished"] {
        home.run(["event", "get", id]).well();
    }
    let up = home.up(&file);
    wait_for("the waiting event to be processed", || state_of(&home, "end") == "succeeded");
    assert_eq!(up.stop(), Some(0));
    assert!(
        findings(&home, &["--deep", "--repair"])
            .iter()
            .all(|finding| finding["repaired"].is_string())
    );
}

/// `ion gc --older-than` is killed after it has removed a job. The job's event does not look like
/// one whose message was lost, even if no dispatcher had yet noted that its module has a job of it:
/// so nothing runs again, and the next `ion gc` goes on.
#[test]
fn an_interrupted_removal_of_an_old_correlation_runs_nothing_again() {
    let home = Home::new();
    let file =
        home.write("pipeline.yaml", "modules:\n  end: {on: [go], run: [\"true\"], retries: 0}\n");
    let up = home.up(&file);
    home.run(["event", "create", "go", "--id", "old", "--wait"]).well();
    assert_eq!(up.stop(), Some(0));
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let plane = open(&StoreUrls::embedded(&home.state())).await.unwrap();
        let mut event = plane.documents.get(Collection::Events, "old").await.unwrap().unwrap();
        event["unclaimed"] = Value::Bool(true);
        let at = Durability::Now;
        assert!(
            plane.documents.replace(Collection::Events, event, vec![], None, at).await.unwrap()
        );
    });
    let mut gc_killed = home.ion();
    gc_killed.args(["gc", "--older-than", "0s"]).env("ION_FAILPOINTS", "gc.job-dropped=1");
    assert_eq!(gc_killed.status().unwrap().code(), None);
    assert_eq!(home.jobs().len(), 0);
    assert_eq!(findings(&home, &[]), [] as [Value; 0]);
    assert_eq!(gc(&home, &["--older-than", "0s"])["correlations"], 1);
    home.run(["event", "get", "old"]).failed();
}

/// `ion gc --older-than` is killed between two correlations. The next run says where it goes on, and
/// drops the rest. What was looked at before is left to a later run, even if it has ended since.
#[test]
fn an_interrupted_gc_goes_on_after_the_correlation_that_it_has_looked_at() {
    let home = Home::new();
    let file = home.write(
        "pipeline.yaml",
        "modules:\n  end: {on: [go], run: [\"true\"], retries: 0}\n  later: {on: [wait], run: [\"true\"]}\n",
    );
    let up = home.up(&file);
    for id in ["b", "c", "d"] {
        home.run(["event", "create", "go", "--id", id, "--correlation", id, "--wait"]).well();
    }
    assert_eq!(up.stop(), Some(0));
    home.run(["event", "create", "wait", "--id", "a", "--correlation", "a"]).well();
    let killed = |flags: &[&str]| {
        let mut gc = home.ion();
        gc.args([&["gc", "--older-than", "0s"], flags].concat());
        gc.env("ION_FAILPOINTS", "gc.correlation-passed=2");
        assert_eq!(gc.status().unwrap().code(), None);
    };
    let dropped = |flags: &[&str]| {
        let ran = home.run([&["--json", "gc", "--older-than", "0s"], flags].concat()).well();
        let report: Value = serde_json::from_str(&ran.stdout).unwrap();
        (
            report["correlations"].as_u64().unwrap(),
            ran.stderr.contains("going on after correlation"),
        )
    };
    // The note names `a`, and `b` was dropped after it.
    killed(&[]);
    home.run(["event", "get", "b"]).failed();
    let up = home.up(&file);
    wait_for("`a` to end", || state_of(&home, "later") == "succeeded");
    assert_eq!(up.stop(), Some(0));
    assert_eq!(dropped(&["--dry-run"]), (3, false), "other options begin anew");
    assert_eq!(dropped(&[]), (2, true));
    home.run(["event", "get", "a"]).well();
    for id in ["c", "d"] {
        home.run(["event", "get", id]).failed();
    }
    assert_eq!(dropped(&[]), (1, false), "the note is gone with the run that came to its end");
    // A run may begin anew although another one was interrupted.
    let up = home.up(&file);
    for id in ["e", "f"] {
        home.run(["event", "create", "go", "--id", id, "--correlation", id, "--wait"]).well();
    }
    assert_eq!(up.stop(), Some(0));
    killed(&[]);
    assert_eq!(dropped(&["--restart"]), (0, false));
}

/// `ion check` is killed between two pages of events. The next run goes on after the first page, and
/// reports what was found there with the rest.
#[test]
fn an_interrupted_check_goes_on_with_what_it_has_found() {
    let home = Home::new();
    home.write("f", "content");
    home.run(["event", "create", "go", "--id", "first", "--file", "f"]).well();
    for blob in walk(&home.state().join("blobs")) {
        std::fs::remove_file(blob).unwrap();
    }
    let now = home.run(["--json", "event", "get", "first"]).well().stdout;
    let mut event: Value = serde_json::from_str(&now).unwrap();
    event["files"] = Value::Array(vec![]);
    let created = event["created"].as_i64().unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let plane = open(&StoreUrls::embedded(&home.state())).await.unwrap();
        let documents = (0..299).map(|n| {
            let mut event = event.clone();
            event["id"] = format!("further-{n}").into();
            event["context"]["eventId"] = event["id"].clone();
            event["created"] = (created + 1 + n).into();
            (Collection::Events, event)
        });
        plane.documents.insert_all(documents.collect(), None, Durability::Now).await.unwrap();
    });
    let mut check = home.ion();
    check.arg("check").env("ION_FAILPOINTS", "check.page=2");
    assert_eq!(check.status().unwrap().code(), None);
    let ran = home.run(["--json", "check"]);
    assert!(ran.stderr.contains("going on after 128 events"), "{ran:?}");
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((ran.code, &report["events"]), (Some(1), &300.into()), "{report}");
    assert_eq!(report["findings"].as_array().unwrap().len(), 1, "{report}");
    let ran = home.run(["--json", "check"]);
    assert!(!ran.stderr.contains("going on"), "{ran:?}");
}

/// A dispatcher that dies between the end of an attempt and the removal of its ticket leaves the
/// ticket behind, and `ion gc` removes it. The ticket of a running attempt stays however short
/// `--grace` is.
#[test]
fn gc_removes_the_tickets_of_attempts_that_have_ended() {
    let rig = CsiRig::new(&[]);
    let jobs = [
        ("runs", Some(("running", 1))),
        ("starts", Some(("starting", 1))),
        ("well", Some(("succeeded", 1))),
        ("failed", Some(("queued", 1))),
        ("later", Some(("running", 2))),
        ("dropped", None),
    ];
    let documents = &rig.plane.documents;
    let mut tickets = vec![];
    for (name, now) in jobs {
        let attempt = rig.attempt(name);
        tickets.push(attempt.ticket());
        rig.runtime.block_on(async {
            documents.delete(Collection::Jobs, name, vec![]).await.unwrap();
            if let Some((state, number)) = now {
                let record = rig.record(name, &attempt.module, state, number);
                documents.insert(Collection::Jobs, record, None, Durability::Now).await.unwrap();
            }
        });
    }
    let left = || {
        let there =
            |id: &&String| rig.runtime.block_on(Ticket::find(&rig.plane, id)).unwrap().is_some();
        tickets.iter().filter(there).count()
    };
    let removed = |flags: &[&str]| gc(&rig.home, flags)["tickets"].as_u64();
    assert_eq!((removed(&[]), left()), (Some(0), 6), "the tickets are too young");
    assert_eq!((removed(&["--grace", "0s", "--dry-run"]), left()), (Some(4), 6));
    assert_eq!((removed(&["--grace", "0s"]), left()), (Some(4), 2));
    assert_eq!(removed(&["--grace", "0s"]), Some(0), "the tickets of running attempts stay");
}

/// Runs `ion gc` with these flags, and returns its report.
fn gc(home: &Home, flags: &[&str]) -> Value {
    let ran = home.run([&["--json", "gc"], flags].concat()).well();
    serde_json::from_str(&ran.stdout).unwrap()
}
