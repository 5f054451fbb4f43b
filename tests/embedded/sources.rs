//! Tests of sources: what starts modules by a clock, and the state that passes from run to run.

mod http;
mod older;
mod trial;

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use crate::support::browse::BrowsedPlane;
use crate::support::evenness::sources_are_run_evenly;
use crate::support::{DEADLINE, Home, wait_for, wait_up_to};

/// Counts: each run publishes the number after the last one that its state remembers. The first
/// attempt of every third run fails after it has written everything.
const COUNT: &str = r#"#!/bin/sh
set -e
cd "$ION_DIR"
n=$(($(cat in/state/n 2>/dev/null || echo 0) + 1))
test "$(cat out/state/n 2>/dev/null || echo 0)" = $((n - 1))
echo $n > out/state/n
mkdir -p out/state/last
echo "$n" > "out/state/last/$(cat in/meta/source)"
echo "item $n" > out/data/text
echo "{\"eventType\": \"item\", \"n\": \"$n\", \"files\": \"text\"}" > "out/events/$n.json"
test "$((n % 3)) $ION_ATTEMPT" != "0 1"
"#;

fn pipeline(home: &Home, sources: &str) -> std::path::PathBuf {
    home.program("count", COUNT);
    let modules = "modules:
  count: {params: {}, emits: [item], commit: on-success, run: [./count]}
  keep: {on: [item], run: [\"true\"]}
";
    home.write("pipeline.yaml", format!("{modules}{sources}"))
}

/// Returns the numbers of the published items, in the order of their publication.
fn items(home: &Home) -> Vec<u64> {
    let events = home.run(["--json", "event", "list", "-t", "item"]).well().documents();
    let number = |event: &Value| {
        let value = event["data"].as_array()?.iter().find(|pair| pair["key"] == "n")?;
        value["value"].as_str()?.parse().ok()
    };
    events.iter().map(|event| number(event).unwrap_or_else(|| panic!("{event}"))).collect()
}

fn source(home: &Home, name: &str) -> Value {
    serde_json::from_str(&home.run(["source", "get", name]).well().stdout).unwrap()
}

/// Checks that the items are 1, 2, 3 and so on, each once, up to what the state remembers.
fn assert_each_once(home: &Home) {
    let items = items(home);
    let all: BTreeSet<u64> = items.iter().copied().collect();
    let expected: BTreeSet<u64> = (1..=items.len() as u64).collect();
    assert_eq!((all.len(), &all), (items.len(), &expected), "{items:?}");
}

#[test]
fn each_item_is_published_once_wherever_the_dispatcher_dies() {
    let home = Home::new();
    let file = pipeline(&home, "sources:\n  tick: {module: count, every: 1s}\n");
    let points = [
        "source.written=1",
        "source.run-decided=1",
        "source.run-event=2",
        "claim.inserted=1",
        "ledger.written=2",
        "ledger.written=3",
        "source.run-ended=1",
        "source.written=2",
        "commit.blobs-stored=1",
    ];
    let up = home.up(&file);
    wait_for("a first item", || !items(&home).is_empty());
    up.kill();
    for point in points {
        let before = items(&home).len();
        let mut dying = home.ion();
        dying.arg("up").arg(&file).env("ION_FAILPOINTS", point);
        let mut dying = dying.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for(point, || dying.try_wait().unwrap().is_some());
        let up = home.up(&file);
        wait_up_to(3 * DEADLINE, point, || items(&home).len() > before);
        up.kill();
        // An item that was committed at the moment of death is published by a relay, after a while.
        let items = items(&home);
        let all: BTreeSet<u64> = items.iter().copied().collect();
        assert_eq!(all.len(), items.len(), "{point}: an item is published twice: {items:?}");
    }
    let up = home.up(&file);
    let before = items(&home).len();
    wait_for("a last item", || items(&home).len() > before);
    home.run(["source", "pause", "tick"]).well();
    wait_for("the last run to end", || source(&home, "tick")["run"]["end"].is_string());
    wait_for("the end of all work", || {
        home.jobs().iter().all(|job| job["state"] == "succeeded" && job["outbox"] == false)
    });
    home.run(["check", "--deep"]).well();
    assert_eq!(up.stop(), Some(0));
    assert_each_once(&home);
    let tick = source(&home, "tick");
    assert_eq!((&tick["failures"], &tick["succeeded"]), (&Value::from(0), &tick["run"]));
}

/// Fails as long as there is a file `broken`, and publishes the number of the run otherwise.
const FRAGILE: &str = r#"#!/bin/sh
set -e
cd "$ION_DIR"
test ! -e "$BROKEN" || { echo it is broken; exit 3; }
date +%s > out/state/at
echo "{\"eventType\": \"item\", \"n\": \"1\"}" > out/events/e.json
"#;

#[test]
fn a_source_that_fails_says_so_once_and_recovers() {
    let home = Home::new();
    let broken = home.write("broken", "");
    home.program("fragile", FRAGILE);
    home.program("tell", "#!/bin/sh\ncat /ion/in/meta/source /ion/in/meta/reason 2>/dev/null\n");
    let file = home.write(
        "pipeline.yaml",
        format!(
            "modules:
  fragile: {{params: {{}}, emits: [item], commit: on-success, retries: 0, run: [./fragile], env: {{BROKEN: {}}}}}
  tell: {{on: [ion.source.failing, ion.source.recovered], run: [./tell]}}
sources:
  s: {{module: fragile, every: 1s}}
",
            broken.display()
        ),
    );
    let up = home.up(&file);
    wait_for("two failures", || source(&home, "s")["failures"].as_u64() >= Some(2));
    let failing = source(&home, "s");
    assert_eq!(failing["reason"], "exit status 3", "{failing:#}");
    let dead = home.run(["--json", "dead", "list"]).well().documents();
    assert!(dead.len() <= 1, "a later run gives the earlier one up: {dead:#?}");
    let superseded: Vec<Value> =
        home.jobs().into_iter().filter(|job| job["superseded"] == true).collect();
    let id = superseded[0]["id"].as_str().unwrap();
    let refused = home.run(["job", "retry", id]).failed();
    assert!(refused.stderr.contains("ion source run s"), "{}", refused.stderr);
    std::fs::remove_file(&broken).unwrap();
    home.run(["source", "run", "s", "--wait"]).well();
    wait_for("the end to be noted", || source(&home, "s")["failures"] == 0);
    let told: Vec<String> = home
        .jobs()
        .iter()
        .filter(|job| job["module"] == "tell")
        .map(|job| job["eventType"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(told, ["ion.source.failing", "ion.source.recovered"]);
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn a_source_is_paused_run_reset_and_rewound_by_command() {
    let home = Home::new();
    let file = pipeline(&home, "");
    let up = home.up(&file);
    let ion = |words: &[&str]| home.run(words.iter().copied());
    ion(&["source", "add", "s", "--module", "count", "--every", "1day"]).well();
    let again = ion(&["source", "add", "s", "--module", "count", "--every", "1day"]).failed();
    assert!(again.stderr.contains("there is a source \"s\" already"), "{}", again.stderr);
    for _ in 0..3 {
        ion(&["source", "run", "s", "--wait"]).well();
    }
    assert_eq!(items(&home), [1, 2, 3]);
    ion(&["source", "pause", "s"]).well();
    let listed = ion(&["source", "list"]).well().stdout;
    assert!(listed.contains("paused") && listed.contains("count"), "{listed}");
    let runs = ion(&["--json", "source", "runs", "s"]).well().documents();
    let numbers: Vec<&str> = runs.iter().map(|run| &run["run"].as_str().unwrap()[..10]).collect();
    assert_eq!(numbers, ["s@00000003", "s@00000002", "s@00000001"]);
    let cut = ion(&["source", "runs", "s", "--limit", "1"]).well();
    assert!(cut.stderr.contains("--before s@00000003"), "{}", cut.stderr);
    let state = ion(&["source", "state", "s"]).well().stdout;
    assert!(state.contains("last/s") && state.contains('n'), "{state}");
    ion(&["source", "rewind", "s", "--run", "1"]).well();
    ion(&["source", "run", "s", "--wait"]).well();
    assert_eq!(items(&home), [1, 2, 3, 2]);
    let missing = ion(&["source", "rewind", "s", "--run", "99"]).failed();
    assert!(missing.stderr.contains("run 99 of source \"s\""), "{}", missing.stderr);
    ion(&["source", "reset", "s"]).well();
    ion(&["source", "run", "s", "--wait"]).well();
    assert_eq!(items(&home), [1, 2, 3, 2, 1]);
    // What old runs left goes with them, and what the next run begins with stays.
    std::thread::sleep(Duration::from_millis(1100));
    ion(&["gc", "--older-than", "1s", "--grace", "0s"]).well();
    assert_eq!(ion(&["--json", "source", "runs", "s"]).well().documents().len(), 1);
    ion(&["check", "--deep"]).well();
    ion(&["source", "run", "s", "--wait"]).well();
    assert_eq!(items(&home).last(), Some(&2));
    ion(&["source", "delete", "s"]).well();
    let gone = ion(&["source", "get", "s"]).failed();
    assert!(gone.stderr.contains("there is no source \"s\""), "{}", gone.stderr);
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn the_file_says_which_sources_there_are() {
    let home = Home::new();
    let two =
        "sources:\n  a: {module: count, every: 1h}\n  b: {module: count, at: \"0 6 * * *\"}\n";
    let up = home.up(&pipeline(&home, two));
    let names = |home: &Home| -> Vec<String> {
        let listed = home.run(["--json", "source", "list"]).well().documents();
        listed.iter().map(|source| source["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&home), ["a", "b"]);
    let refused = home.run(["source", "delete", "a"]).failed();
    assert!(refused.stderr.contains("pipeline.yaml; change it there"), "{}", refused.stderr);
    home.run(["source", "add", "own", "--module", "count", "--every", "1h"]).well();
    assert_eq!(up.stop(), Some(0));
    let up = home.up(&pipeline(&home, "sources:\n  b: {module: count, every: 2h}\n"));
    assert_eq!(names(&home), ["b", "own"]);
    assert_eq!(source(&home, "b")["schedule"]["rule"]["every"], 7_200_000);
    assert_eq!(up.stop(), Some(0));
    for (wrong, words) in [
        ("{module: count}", "one of \"every\" and \"at\""),
        ("{module: keep, every: 1h}", "has no \"params\""),
        ("{module: count, every: 1h, with: {url: x}}", "is no parameter"),
        ("{module: count, at: \"0 0 30 2 *\"}", "never comes"),
        ("{module: count, every: 1h, zone: UTC}", "\"zone\" belongs to \"at\""),
    ] {
        let file = pipeline(&home, &format!("sources:\n  s: {wrong}\n"));
        let refused = home.run(["up", file.to_str().unwrap()]).failed();
        assert!(refused.stderr.contains(words), "{wrong}: {}", refused.stderr);
    }
}

#[test]
fn dispatchers_run_sources_evenly_without_anybody_assigning_them() {
    let home = Home::new();
    let others = [(); 3].map(|()| home.on_another_host());
    let [one, two, three] = others;
    sources_are_run_evenly([home, one, two, three], Duration::from_secs(12), 0.4);
}

/// The mount shows each source: its document, the files that its next run begins with, its runs.
#[test]
fn sources_are_browsed_with_their_state_and_their_runs() {
    let home = Home::new();
    let file = pipeline(&home, "");
    let up = home.up(&file);
    home.run(["source", "add", "s", "--module", "count", "--every", "1day"]).well();
    home.run(["source", "add", "s-2", "--module", "count", "--every", "1day"]).well();
    let plane = BrowsedPlane::new(&home);
    assert_eq!(
        plane.sh("ls sources; ls sources/s; ls sources/s/runs sources/s/state/"),
        "s\ns-2\nruns\nsource.json\nstate\nsources/s/runs:\n\nsources/s/state/:\n"
    );
    for n in 1..=4 {
        home.run(["source", "run", "s", "--wait"]).well();
        // The state is that of the last run, whatever the kernel remembers of an earlier one.
        let state = || plane.sh("cat sources/s/state/n sources/s/state/last/s 2>/dev/null || true");
        wait_for("the state to be shown", || state() == format!("{n}\n{n}\n"));
    }
    let document: Value = serde_json::from_str(&plane.sh("cat sources/s/source.json")).unwrap();
    assert_eq!((&document["id"], &document["runs"]), (&"s".into(), &4.into()));
    let runs = plane.sh("ls -U sources/s/runs | cut -c -10");
    assert_eq!(runs, "s@00000004\ns@00000003\ns@00000002\ns@00000001\n", "newest first");
    let listed = home.run(["--json", "source", "runs", "s"]).well().documents();
    for run in &listed {
        let name = run["run"].as_str().unwrap();
        let shown = plane.sh(&format!("cat sources/s/runs/{name}/0-*/jobs/count/state"));
        assert!(shown.contains("succeeded at"), "{shown}");
    }
    // A run is found by its number, too, and no other name leads anywhere.
    let second = plane.sh("readlink sources/s/runs/2");
    assert!(second.starts_with("../../../correlations/s@00000002-"), "{second}");
    for missing in
        ["sources/x", "sources/s/runs/9", "sources/s/runs/s-2@00000001-x", "sources/s/.state-x"]
    {
        plane.sh(&format!("! test -e {missing}"));
    }
    plane.sh("! touch sources/s/state/n 2> /dev/null; ! mkdir sources/x 2> /dev/null");
    home.run(["source", "reset", "s"]).well();
    wait_for("the state to be gone", || plane.sh("ls sources/s/state/ 2>&1 || true").is_empty());
    home.run(["source", "delete", "s"]).well();
    wait_for("the source to be gone", || plane.sh("ls sources") == "s-2\n");
    drop(plane);
    assert_eq!(up.stop(), Some(0));
}

/// Sources and runs of any number are listed as they are read, and found by their names.
#[test]
fn a_hundred_thousand_sources_are_browsed_in_parts() {
    let home = Home::new();
    let up = home.up(&pipeline(&home, ""));
    home.run(["source", "add", "s", "--module", "count", "--every", "1day"]).well();
    home.run(["source", "run", "s", "--wait"]).well();
    assert_eq!(up.stop(), Some(0));
    let many = "
c.execute(\"\"\"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
    INSERT INTO sources (id, document) SELECT printf('n%06d', i),
    json_set(document, '$.id', printf('n%06d', i)) FROM n, (SELECT document FROM sources WHERE id = 's')\"\"\")
c.execute(\"\"\"WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
    INSERT INTO events (id, document) SELECT 'e' || i,
    json_set(document, '$.id', 'e' || i, '$.context.eventId', 'e' || i,
        '$.context.correlationId', printf('s@%08d-x', i))
    FROM n, (SELECT document FROM events WHERE json_extract(document, '$.tick.source') = 's')\"\"\")
";
    home.change_database(many);
    let plane = BrowsedPlane::new(&home);
    let memory = || -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", plane.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let begun = std::time::Instant::now();
    assert_eq!(plane.sh("ls -U sources | head -n 2"), "n000001\nn000002\n");
    assert!(begun.elapsed() < Duration::from_secs(10), "the first names come at once");
    let before = memory();
    assert_eq!(plane.sh("ls -U sources | wc -l").trim(), "100001");
    assert_eq!(plane.sh("ls -U sources | sort -u | wc -l").trim(), "100001");
    assert!(memory() < before + 64 * 1024, "{} KiB, {before} before", memory());
    assert_eq!(
        plane.sh("grep -h '\"id\"' sources/n077777/source.json").trim(),
        "\"id\": \"n077777\","
    );
    assert_eq!(plane.sh("ls -U sources/s/runs | wc -l").trim(), "3000");
    assert_eq!(plane.sh("ls -U sources/s/runs | head -n 1"), "s@00003000-x\n");
    assert!(plane.sh("readlink sources/s/runs/1234").contains("s@00001234-x"));
    assert_eq!(plane.sh("ls sources/n000001/runs"), "");
}
