//! Tests of lists and of large correlations: any part of a list is reached, a list that is cut says
//! how to go on, and a correlation of any size has a summary.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use serde_json::Value;

use crate::support::browse::BrowsedPlane;
use crate::support::{CommandOutput, Home, signal, wait_for};

fn ids(ran: &CommandOutput) -> Vec<String> {
    ran.documents().iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

/// The rows of a list are reached in both directions, a part at a time, and no row is missing.
#[test]
fn a_list_that_is_cut_says_how_to_go_on() {
    let home = Home::new();
    for n in 0..7 {
        home.run(["event", "create", "thing", "--id", &format!("e{n}")]).well();
    }
    home.run(["event", "create", "other", "--id", "f", "-d", "kind=car"]).well();
    let list = |words: &[&str]| home.run([&["--json", "event", "list"], words].concat()).well();
    assert_eq!(ids(&list(&["--type", "thing"])), ["e0", "e1", "e2", "e3", "e4", "e5", "e6"]);
    let last = list(&["--type", "thing", "--limit", "3"]);
    assert_eq!(ids(&last), ["e4", "e5", "e6"]);
    assert!(last.stderr.contains("there are more rows: --before e4 shows them"), "{last:#?}");
    let before = list(&["--type", "thing", "--limit", "3", "--before", "e4"]);
    assert_eq!(ids(&before), ["e1", "e2", "e3"]);
    let first = list(&["--type", "thing", "--before", "e1"]);
    assert_eq!((ids(&first), first.stderr.as_str()), (vec!["e0".to_owned()], ""));
    let after = list(&["--limit", "2", "--after", "e3"]);
    assert_eq!(ids(&after), ["e4", "e5"]);
    assert!(after.stderr.contains("--after e5 shows them"), "{after:#?}");
    let rest = list(&["--after", "e5"]);
    assert_eq!((ids(&rest), rest.stderr.as_str()), (vec!["e6".to_owned(), "f".to_owned()], ""));
    let none = list(&["--limit", "0"]);
    assert!(none.stdout.is_empty() && none.stderr.contains("--limit N shows them"), "{none:#?}");

    let times: Vec<i64> =
        list(&[]).documents().iter().map(|event| event["created"].as_i64().unwrap()).collect();
    let time = |millis: i64| {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(millis as u64);
        humantime::format_rfc3339_millis(time).to_string()
    };
    let found = list(&["--since", &time(times[2]), "--until", &time(times[5])]);
    assert_eq!(ids(&found), ["e2", "e3", "e4"]);
    assert_eq!(ids(&list(&["--since", "1h", "--type", "other"])), ["f"]);
    assert!(list(&["--until", "2020-01-01"]).stdout.is_empty());
    let wrong = home.run(["event", "list", "--since", "yesterday"]);
    assert_eq!(wrong.code, Some(2));
    assert!(wrong.stderr.contains("a time is 10m or 2h (ago), 2026-05-01"), "{wrong:#?}");

    let table = home.run(["event", "list", "--type", "other"]).well().stdout;
    assert!(table.starts_with("EVENT") && table.contains("kind=car"), "{table}");
    let empty = home.run(["job", "list"]).well().stdout;
    assert!(empty.starts_with("JOB"), "an empty table has its heading: {empty}");
}

/// `--watch` prints a job each time its state changes, and events as they come.
#[test]
fn a_watched_list_prints_what_changes() {
    let home = Home::new();
    let file = home.write("pipeline.yaml", "modules:\n  m: {on: [go], run: [\"true\"]}\n");
    let up = home.up(&file);
    home.run(["event", "create", "go", "--wait"]).well();
    let watch = |what: &str| {
        let mut command = home.ion();
        command.args(["--json", what, "list", "--watch"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        (child, lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap()))
    };
    let (mut jobs, mut job_rows) = watch("job");
    let (mut events, mut event_rows) = watch("event");
    let old = job_rows.next().unwrap();
    assert_eq!(old["state"], "succeeded");
    let first = event_rows.next().unwrap();
    home.run(["event", "create", "go", "--id", "new", "--wait"]).well();
    let new = event_rows.next().unwrap();
    assert_eq!((new["id"].as_str(), first["id"] == new["id"]), (Some("new"), false));
    let ended = job_rows.find(|row| row["state"] == "succeeded").unwrap();
    assert_eq!(ended["eventId"], "new", "the job that was listed is not printed again");
    for child in [&mut jobs, &mut events] {
        signal(child.id(), "INT");
        child.wait().unwrap();
    }
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn the_log_of_the_job_that_failed_last_needs_no_id() {
    let home = Home::new();
    let file = home.write(
        "pipeline.yaml",
        "modules:\n  m: {on: [go], run: [sh, -c, 'seq 5; cat /ion/in/data/f; exit 3'], retries: 0}\n",
    );
    let none = home.run(["job", "logs"]);
    assert_eq!(none.code, Some(1), "{none:#?}");
    let up = home.up(&file);
    let none = home.run(["job", "logs"]).failed();
    assert!(none.stderr.contains("no job is dead; name a job"), "{none:#?}");
    for text in ["one\n", "two\n"] {
        home.write("f", text);
        home.run(["event", "create", "go", "--file", "f", "--wait"]).failed();
    }
    let log = home.run(["job", "logs"]).well();
    assert!(log.stdout.starts_with("1\n2\n3\n4\n5\ntwo\n"), "{log:#?}");
    assert!(log.stderr.contains("which failed last: exit status 3"), "{log:#?}");
    let tail = home.run(["job", "logs", "--tail", "2"]).well();
    assert_eq!(tail.stdout, "two\nion: exit status 3\n");
    let since = home.run(["job", "list", "--state", "dead", "--since", "1h"]).well();
    assert_eq!(since.stdout.lines().count(), 3, "{since:#?}");
    home.run(["dead", "drop", "--all"]).well();
    assert_eq!(home.run(["--json", "dead", "list"]).well().stdout, "");
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn the_files_of_an_event_are_listed_and_copied_out() {
    let home = Home::new();
    std::fs::create_dir_all(home.path().join("d/empty")).unwrap();
    home.program("d/sub.sh", "#!/bin/sh\n");
    home.write("big", "x".repeat(3 << 20));
    home.run(["event", "create", "t", "--id", "e", "-f", "d/", "-f", "big=deep/big"]).well();
    let listed = home.run(["event", "files", "e"]).well().stdout;
    assert!(listed.contains("3.0 MiB") && listed.contains("deep/big"), "{listed}");
    home.run(["event", "files", "e", "--to", "out"]).well();
    let out = home.path().join("out");
    assert_eq!(std::fs::read(out.join("deep/big")).unwrap().len(), 3 << 20);
    assert!(out.join("empty").is_dir());
    let mode = |path: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        let metadata = std::fs::metadata(home.path().join(path)).unwrap();
        (metadata.permissions().mode() & 0o777, metadata.modified().unwrap())
    };
    assert_eq!(mode("out/sub.sh"), mode("d/sub.sh"));
    let again = home.run(["event", "files", "e", "--to", "out"]).failed();
    assert!(again.stderr.contains("out is not empty"), "{again:#?}");
    // A blob that is damaged in the store is not copied as if it were right.
    let event: Value =
        serde_json::from_str(&home.run(["event", "get", "e"]).well().stdout).unwrap();
    let files = event["files"].as_array().unwrap();
    let big = files.iter().find(|file| file["name"] == "deep/big").unwrap();
    let blob = home.state().join("blobs").join(big["key"].as_str().unwrap());
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[2 << 20] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    let damaged = home.run(["event", "files", "e", "--to", "again"]).failed();
    assert!(damaged.stderr.contains("does not match its checksum"), "{damaged:#?}");
}

/// The pipeline of the summary's test: one job publishes events, and their jobs fail in two ways.
const FAN_OUT: &str = "\
modules:
  make: {on: [start], emits: [crop], run: [./make]}
  work: {on: [crop], emits: [done], run: [./work], retries: 0}
";

#[test]
fn a_correlation_has_a_summary_and_its_tree_is_read_in_parts() {
    let home = Home::new();
    home.program(
        "make",
        "#!/bin/sh\nfor n in $(seq 12); do echo \"{\\\"eventType\\\":\\\"crop\\\",\\\"n\\\":$n}\" > /ion/out/events/$n.json; done\n",
    );
    home.program(
        "work",
        "#!/bin/sh\nn=$(cat /ion/in/meta/n)\n[ $n -le 3 ] && exit 7\n[ $n = 4 ] && kill -9 $$\n\
         echo '{\"eventType\":\"done\"}' > /ion/out/events/d.json; echo '{\"n\":\"v\"}' > /ion/out/insights.json\n",
    );
    let file = home.write("pipeline.yaml", FAN_OUT);
    let up = home.up(&file);
    home.run(["event", "create", "start", "--wait"]).failed();
    let shown = home.run(["trace", "--summary"]).well().stdout;
    for part in [
        "events: 12 crop, 8 done, 1 start\n",
        "make: 1 succeeded; took ",
        "work: 8 succeeded, 4 dead; the latest 8 took ",
        " a second",
        "3 dead of work: exit status 7  (such as ",
        "1 dead of work: killed by signal 9  (such as ",
        "21 events, 13 jobs: failed in ",
    ] {
        assert!(shown.contains(part), "{part:?}\n{shown}");
    }
    let summary = home.run(["--json", "trace", "--summary"]).well().stdout;
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["verdict"], "failed");
    assert_eq!(summary["modules"][1]["states"]["succeeded"], 8);
    assert_eq!(summary["failures"][0]["jobs"], 3);
    let tree = home.run(["trace"]).well().stdout;
    assert_eq!(tree.matches("└─").count() + tree.matches("├─").count(), 34, "{tree}");
    assert_eq!(tree.matches("· n=v").count(), 8, "{tree}");
    assert_eq!(home.run(["trace", "--all"]).well().stdout, tree);
    let two = home.run(["trace", "--depth", "1"]).well().stdout;
    assert_eq!(two.matches("└─").count(), 2, "{two}");
    assert!(two.contains("· more below: a larger --depth shows it"), "{two}");
    let failed = home.run(["--json", "trace", "--failed"]).well().documents();
    assert!(failed.len() == 4 && failed.iter().all(|job| job["state"] == "dead"), "{failed:#?}");
    let of_module = home.run(["--json", "trace", "--module", "make"]).well().documents();
    assert_eq!(of_module.len(), 1);
    let documents = home.run(["--json", "trace"]).well().documents();
    let kind =
        |kind: &str| documents.iter().filter(|one| one["context"]["documentType"] == kind).count();
    assert_eq!((kind("eventMeta"), kind("insight"), documents.len()), (21, 8, 21 + 8 + 13));
    let both = home.run(["trace", "--all", "--failed"]);
    assert_eq!(both.code, Some(2), "{both:#?}");
    assert_eq!(up.stop(), Some(0));
}

/// A correlation of more than a thousand events and jobs is shown as a summary, in which an open
/// module says so.
#[test]
fn a_large_correlation_is_shown_as_a_summary() {
    let home = Home::new();
    home.program(
        "make",
        "#!/usr/bin/env python3\nfor n in range(1200):\n    \
         with open(f'/ion/out/events/{n}.json', 'w') as f: f.write('{\"eventType\":\"crop\"}')\n",
    );
    let file = home
        .write("pipeline.yaml", "modules:\n  make: {on: [start], emits: [crop], run: [./make]}\n");
    let up = home.up(&file);
    home.run(["event", "create", "start", "--wait"]).well();
    let shown = home.run(["trace"]).well();
    assert!(shown.stdout.contains("events: 1200 crop, 1 start\n"), "{shown:#?}");
    assert!(shown.stdout.contains("1201 events, 1 jobs: succeeded in "), "{shown:#?}");
    assert!(shown.stderr.contains("the tree is long: --all prints it, --depth N"), "{shown:#?}");
    let all = home.run(["trace", "--all"]).well().stdout;
    assert_eq!(all.matches("└─").count() + all.matches("├─").count(), 1202);
    // Work that no dispatcher has claimed is a part of the summary, and keeps it open.
    assert_eq!(up.stop(), Some(0));
    home.run(["module", "create", "-n", "idle", "-i", "late", "--", "true"]).well();
    let correlation = home.jobs()[0]["correlationId"].as_str().unwrap().to_owned();
    home.run(["event", "create", "late", "--correlation", &correlation]).well();
    let open = home.run(["trace", "--summary"]).well().stdout;
    assert!(open.contains("idle: 1 not claimed yet") && open.contains(": running"), "{open}");
    assert!(open.contains("waits for a dispatcher that serves module \"idle\""), "{open}");
}

/// The mount leads to what is recent, running, queued and dead, and finds events by their ids.
#[test]
fn the_mount_leads_to_jobs_by_state_and_to_events_by_id() {
    let home = Home::new();
    let go = home.path().join("go").display().to_string();
    let file = home.write(
        "pipeline.yaml",
        "modules:\n  fails: {on: [bad], run: [sh, -c, 'echo Traceback; exit 3'], retries: 0}\n  \
         waits: {on: [long], run: [sh, -c, 'echo begun; until test -e GO; do sleep 0.1; done']}\n  \
         later: {on: [soon], run: [sh, -c, 'exit 3'], retries: 5}\n"
            .replace("GO", &go),
    );
    let mut up = home.ion();
    up.args(["up", file.to_str().unwrap()]);
    up.stdout(Stdio::null()).stderr(Stdio::null());
    let mut up = up.spawn().unwrap();
    wait_for("the modules to be registered", || {
        home.run(["module", "list"]).stdout.lines().count() == 4
    });
    home.run(["event", "create", "bad", "--id", "bad-event-1", "--wait"]).failed();
    home.run(["event", "create", "long", "--id", "long-event"]).well();
    home.run(["event", "create", "soon"]).well();
    let state = |module: &str| {
        let jobs = home.jobs();
        let job = jobs.iter().find(|job| job["module"] == module).cloned().unwrap_or_default();
        (job["state"].as_str().unwrap_or_default().to_owned(), job["failures"].as_u64())
    };
    wait_for("the jobs to be in their states", || {
        state("waits").0 == "running" && state("later").1 > Some(0)
    });
    let plane = BrowsedPlane::new(&home);
    assert_eq!(plane.sh("grep -r Traceback dead/*/log | wc -l").trim(), "1");
    assert!(plane.sh("ls dead").contains("-fails-"));
    assert_eq!(plane.sh("cat dead/*/log"), "Traceback\nion: exit status 3\n");
    assert_eq!(plane.sh("cat running/*-waits-*/log"), "begun\n");
    // The kernel does not keep to which attempt the log led before.
    let fails = home.jobs().into_iter().find(|job| job["module"] == "fails").unwrap();
    assert_eq!(plane.sh("readlink dead/*-fails-*/log"), "attempts/1/log\n");
    home.run(["dead", "retry", fails["id"].as_str().unwrap()]).well();
    wait_for("the second attempt to fail", || {
        let jobs = home.jobs();
        jobs.iter()
            .any(|job| job["module"] == "fails" && job["attempt"] == 2 && job["state"] == "dead")
    });
    wait_for("the log to be the second attempt's", || {
        plane.sh("readlink dead/*-fails-*/log || true") == "attempts/2/log\n"
    });
    wait_for("the job to be queued again", || plane.sh("ls failed; ls queued").contains("-later-"));
    assert_eq!(plane.sh("ls recent | wc -l").trim(), "3");
    assert!(plane.sh("cat recent/*-bad-*/0-*/event.json").contains("\"bad\""));
    // An id stands for an event in its correlation, and so does its beginning.
    let jobs = home.jobs();
    let bad = jobs.iter().find(|job| job["module"] == "fails").unwrap();
    let correlation = bad["correlationId"].as_str().unwrap();
    let short = &correlation[..8];
    for name in ["bad-event-1", "bad-eve"] {
        let shown = plane.sh(&format!("cat correlations/{short}/{name}/jobs/fails/job.json"));
        assert!(shown.contains("exit status 3"), "{shown}");
    }
    let missing = plane.sh(&format!("ls correlations/{short}/long-event 2>&1 || true"));
    assert!(missing.contains("No such file"), "an event of another correlation: {missing}");
    let created: i64 =
        plane.sh(&format!("stat -c %Y correlations/{short}")).trim().parse().unwrap();
    let events = home.run(["--json", "event", "list", "--correlation", correlation]).documents();
    assert_eq!(created, events[0]["created"].as_i64().unwrap() / 1000);
    home.write("go", "");
    drop(plane);
    signal(up.id(), "TERM");
    up.wait().unwrap();
}

/// Of a module's jobs that are tried again there may be very many: they have a folder for each day of
/// their next attempts.
#[test]
fn the_failed_jobs_of_a_module_have_a_folder_for_each_day() {
    let home = Home::new();
    let file = home.write(
        "pipeline.yaml",
        "modules:\n  m: {on: [go], run: [sh, -c, 'echo Traceback; exit 3'], retries: 0}\n",
    );
    let up = home.up(&file);
    for n in 0..4 {
        home.run(["event", "create", "go", "--id", &format!("e{n}"), "--wait"]).failed();
    }
    assert_eq!(up.stop(), Some(0));
    // Two are tried again on the first day and one on the second; one has not failed yet.
    home.change_database(
        "
for n, (due, failures) in enumerate([(0, 1), (1000, 2), (86400000, 1), (2 * 86400000, 0)]):
    c.execute(f\"UPDATE jobs SET document = json_set(document, '$.state', 'queued', '$.due', {due}, '$.failures', {failures}) WHERE json_extract(document, '$.eventId') = 'e{n}'\")
",
    );
    let plane = BrowsedPlane::new(&home);
    assert_eq!(plane.sh("ls modules/m/failed"), "1970-01-01\n1970-01-02\n");
    assert_eq!(
        plane.sh("ls modules/m/failed/1970-01-01 | cut -c -11"),
        "00:00:00-go\n00:00:01-go\n"
    );
    assert_eq!(plane.sh("cat modules/m/failed/*/*/log | grep -c Traceback").trim(), "3");
    assert_eq!(plane.sh("ls failed | cut -c -21 | sort").lines().count(), 3);
    plane.sh("! test -e modules/m/failed/1970-01-03");
    assert_eq!(plane.sh("ls queued | wc -l").trim(), "1");
}

/// The values of a module's environment may be passwords.
#[test]
fn no_value_of_a_modules_environment_is_shown() {
    let home = Home::new();
    let words = ["module", "create", "-n", "m", "-i", "go", "-e", "TOKEN=not-for-you", "-e", "A=1"];
    home.run(words.into_iter().chain(["--", "true"])).well();
    let plane = BrowsedPlane::new(&home);
    let shown = [
        home.run(["module", "get", "m"]).well().stdout,
        home.run(["--json", "module", "list"]).well().stdout,
        plane.sh("cat modules/m/module.json"),
    ];
    for text in shown {
        let module: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(module["env"], serde_json::json!(["A", "TOKEN"]), "{text}");
        assert!(!text.contains("not-for-you"), "{text}");
    }
}

/// A folder of any size is listed as it is read, every name of it is found again, and no listing
/// takes memory for the rest.
#[test]
fn a_folder_of_many_names_is_read_in_parts() {
    let home = Home::new();
    home.run(["event", "create", "thing", "--id", "first", "--correlation", "c"]).well();
    // Each second has several events, two of which also have ids that begin with the same letters.
    let many = "
c.execute(\"\"\"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30500)
    INSERT INTO events (id, document) SELECT 'e' || i,
    json_set(document, '$.id', 'e' || i, '$.context.eventId', 'e' || i, '$.created', i * 100)
    FROM n, (SELECT document FROM events WHERE id = 'first')\"\"\")
";
    home.change_database(many);
    let plane = BrowsedPlane::new(&home);
    let day = "types/thing/1970-01-01";
    for (folder, count) in [("correlations/c", 30_501), (day, 30_500)] {
        assert_eq!(plane.sh(&format!("ls -U {folder} | wc -l")).trim(), count.to_string());
        // Names are distinct, and a listing of some has the first ones.
        assert_eq!(plane.sh(&format!("ls {folder} | uniq | wc -l")).trim(), count.to_string());
    }
    assert_eq!(plane.sh("ls types/thing | wc -l").trim(), "2", "the days");
    assert_eq!(plane.sh(&format!("ls -U {day} | head -n 1")).trim(), "00:50:50-e30500");
    assert_eq!(plane.sh("ls -U correlations/c | sed -n 10402p").trim(), "10401-thing-e10402");
    // A name is found by its own, by its id and by what it is listed as.
    for name in ["10401-thing-e10402", "e10402"] {
        let shown = plane.sh(&format!("cat correlations/c/{name}/event.json"));
        assert!(shown.contains("\"e10402\""), "{shown}");
    }
    let through = plane.sh(&format!("cat {day}/00:50:50-e30500/event.json"));
    assert!(through.contains("\"e30500\""), "{through}");
    for missing in ["correlations/c/10401-other-e10402", &format!("{day}/00:50:51-e30500")] {
        plane.sh(&format!("! test -e {missing}"));
    }
    // telldir() and seekdir(): a program goes back to a name that it has read before.
    plane.sh(
        "python3 - <<'E'
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.opendir.restype = ctypes.c_void_p
libc.readdir.restype = ctypes.c_void_p
libc.telldir.restype = ctypes.c_long
for name, args in (('readdir', [ctypes.c_void_p]), ('telldir', [ctypes.c_void_p]), ('rewinddir', [ctypes.c_void_p]), ('seekdir', [ctypes.c_void_p, ctypes.c_long])):
    getattr(libc, name).argtypes = args
folder = libc.opendir(b'correlations/c')
def name():
    entry = libc.readdir(folder)
    return ctypes.string_at(entry + 19).decode() if entry else None
names, places = [], []
while True:
    places.append(libc.telldir(folder))
    names.append(name())
    if names[-1] is None: break
assert len(names) == 30504, len(names)
for at in (29000, 700, 15000, 2, 30502):
    libc.seekdir(folder, places[at])
    assert name() == names[at], at
libc.rewinddir(folder)
assert name() == names[0]
E",
    );
}

/// Ids and types that people choose are names in the mount, and lead to their events.
#[test]
fn any_id_is_a_name_in_the_mount() {
    let home = Home::new();
    let ids = ["a/b", "..", "clip-1", "clip-2", "100%", "a%2Fb", "2026-01-01", "\u{e9}t\u{e9}"];
    for id in ids {
        let correlation = format!("c/{id}");
        home.run(["event", "create", "a-b", "--id", id, "--correlation", &correlation]).well();
    }
    home.run(["event", "create", "a-b", "--id", "clip-10", "--correlation", "c/clip-1"]).well();
    let dated = "2026-01-02";
    home.run(["event", "create", "dated", "--id", "of-a-day", "--correlation", dated]).well();
    // UUIDs of version 7 and long ids begin alike.
    let alike = |n: usize| {
        [format!("019a2b3c-4d5e-7222-8333-{n:012}"), format!("{}/clip-{n}", "long".repeat(20))]
    };
    for id in (0..3).flat_map(alike) {
        home.run(["event", "create", "alike", "--id", &id, "--correlation", "alike"]).well();
    }
    // What no command writes must not hide the rest.
    home.change_database(
        "
for n, change in enumerate([\"'$.type', 'x/y'\", \"'$.created', 9223372036854775807\", \"'$.created', '2026'\", \"'$.created', -5\"]):
    c.execute(f\"INSERT INTO events (id, document) SELECT 'odd{n}', json_set(document, '$.id', 'odd{n}', '$.context.correlationId', 'odd{n}', {change}) FROM events WHERE id = 'of-a-day'\")
",
    );
    let plane = BrowsedPlane::new(&home);
    assert_eq!(plane.sh("ls types/alike/* | wc -l").trim(), "6");
    assert_eq!(plane.sh("ls types/alike/* | sort | uniq | wc -l").trim(), "6");
    let shown = plane.sh("cat types/alike/*/*/event.json correlations/alike/*/event.json");
    for id in (0..3).flat_map(alike) {
        assert_eq!(shown.matches(&format!("\"eventId\": \"{id}\"")).count(), 2, "{id}: {shown}");
    }
    // A correlation with six first events stands once among those of its day.
    assert_eq!(plane.sh("ls correlations/*/ | grep -c -- '-alike$'").trim(), "1");
    assert_eq!(plane.sh("ls -d correlations/*/*-alike/5-alike-*").lines().count(), 1);
    assert!(plane.sh("cat types/dated/*/*-of-a-day/event.json").contains("\"of-a-day\""));
    plane
        .sh("cat recent/*-dated-*/*/event.json > /dev/null; ls -lR correlations types > /dev/null");
    assert!(plane.sh("ls types; ls recent").contains("x%2Fy"));
    let listed = plane.sh("cat correlations/*/*/*/event.json | grep '\"eventId\"'");
    for id in ids {
        assert!(listed.contains(&format!("\"{id}\"")), "{id}: {listed}");
    }
    assert_eq!(plane.sh("cat recent/*-a-b-*/*/event.json | grep -c '\"eventId\"'").trim(), "9");
    assert_eq!(plane.sh("cat types/a-b/*/*/event.json | grep -c '\"eventId\"'").trim(), "9");
    let one = plane.sh("cat correlations/c%2Fclip-1/0-a-b-clip-1/event.json");
    assert!(one.contains("\"clip-1\""), "{one}");
    assert!(plane.sh("cat correlations/c%2F../%2E%2E/event.json").contains("\"..\""));
}

/// Insights and events are found by folders that are terms, listed or not.
#[test]
fn insights_are_found_by_paths_of_terms() {
    let home = Home::new();
    let keep = "n=$(cat /ion/in/meta/n); echo '[{\"key\":\"kind\",\"value\":\"'$(cat \
                /ion/in/meta/kind)'\"},{\"key\":\"n\",\"value\":\"'$n'\"},{\"key\":\"odd|=*\",\"value\":\"a/b|c\"}]' \
                > /ion/out/insights.json";
    home.program("keep", &format!("#!/bin/sh\nset -e\n{keep}\n"));
    let file = home.write("pipeline.yaml", "modules:\n  look: {on: [seen], run: [./keep]}\n");
    let mut up = home.ion();
    up.args(["up", file.to_str().unwrap()]);
    let mut up = up.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("the module to be registered", || {
        home.run(["module", "list"]).stdout.lines().count() == 2
    });
    home.run(["event", "create", "root", "--id", "top", "--correlation", "c"]).well();
    for n in 0..60 {
        let (n, kind) = (format!("n={n}"), if n % 20 == 0 { "kind=car" } else { "kind=bus" });
        let parent = ["--parent", "top", "--correlation", "c"];
        let values = ["event", "create", "seen", "--data", &n, "--data", kind];
        home.run(values.into_iter().chain(parent)).well();
    }
    wait_for("all jobs to succeed", || {
        home.jobs().iter().filter(|job| job["state"] == "succeeded").count() == 60
    });
    let plane = BrowsedPlane::new(&home);
    assert_eq!(
        plane.sh("ls find/insights find/events").replace('\n', " ").trim(),
        "find/events: root seen  find/insights: look"
    );
    // Keys of few values are listed as terms; each name below is a link to the job.
    let terms = plane.sh("ls find/insights/look | grep -v ^20");
    assert_eq!(terms, "kind=bus\nkind=car\nodd\\|\\=\\*=a%2Fb\\|c\n");
    let count = |folder: &str| plane.sh(&format!("ls '{folder}' | wc -l")).trim().to_owned();
    assert_eq!(count("find/insights/look"), "63");
    for (folder, found) in [
        ("find/insights/look/kind=car", "3"),
        ("find/insights/look/kind=car/n>=20", "2"),
        ("find/insights/look/kind=car|bus/@root/n<3", "3"),
        ("find/insights/look/kind=none", "0"),
        ("find/events/seen/kind=car", "3"),
        ("insights/look/kind/car", "3"),
        ("insights/look/odd|=*/a%2Fb|c", "60"),
        ("insights/look/n", "60"),
    ] {
        assert_eq!(count(folder), found, "{folder}");
    }
    let kept = plane.sh("cat find/insights/look/kind=car/n'>'=40/*/insights.json");
    assert!(kept.contains("\"40\""), "{kept}");
    let above = plane.sh("cat find/insights/look/n=40/@root/*/event.json");
    assert!(above.contains("\"top\""), "{above}");
    assert_eq!(plane.sh("cat insights/look/kind/car/*/insights.json | grep -c car").trim(), "3");
    for wrong in ["find/insights/none", "find/events/none", "find/insights/look/n>=x"] {
        plane.sh(&format!("! ls '{wrong}' 2>/dev/null"));
    }
    drop(plane);
    signal(up.id(), "TERM");
    up.wait().unwrap();
}
