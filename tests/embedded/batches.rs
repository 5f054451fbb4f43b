//! Tests of batches: several events of a module in one process, each with a job, a tree and an
//! outcome of its own.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Home, signal, wait_for};

/// Doubles the number of each event of its batch. Notes in `$MARKS` how many it got.
const DOUBLE: &str = r#"#!/bin/sh
set -e
cd "$ION_DIR"
echo "$ION_BATCH" >> "$MARKS"
test "$(ls | wc -l)" = "$ION_BATCH"
for n in *; do
  number=$(cat $n/in/meta/n)
  echo "$((number * 2))" > $n/out/data/double
  echo "{\"eventType\": \"doubled\", \"n\": \"$number\", \"files\": \"double\"}" > $n/out/events/e.json
done
"#;

/// Writes a pipeline in which `work` takes batches, with these further fields.
fn pipeline(home: &Home, program: &str, fields: &str) -> PathBuf {
    home.program("work", program);
    home.write(
        "pipeline.yaml",
        format!(
            "modules:\n  work: {{on: [start], emits: [doubled], run: [./work], concurrency: 1, env: {{MARKS: {}}}, {fields}}}\n",
            marks(home).display()
        ),
    )
}

fn marks(home: &Home) -> PathBuf {
    home.path().join("marks")
}

/// Returns the numbers that the process of each batch has noted.
fn noted(home: &Home) -> Vec<usize> {
    let text = std::fs::read_to_string(marks(home)).unwrap_or_default();
    text.lines().map(|line| line.trim().parse().unwrap()).collect()
}

/// Creates as many events, numbered from 0, while no dispatcher runs.
fn create(home: &Home, file: &Path, events: usize) {
    // The first start registers the module, so that the events are for it.
    assert_eq!(home.up(file).stop(), Some(0));
    for n in 0..events {
        home.run(["event", "create", "start", "-d", &format!("n={n}"), "--id", &format!("e{n}")])
            .well();
    }
}

fn wait_for_ends(home: &Home, jobs: usize) {
    wait_for("the end of all jobs", || {
        let all = home.jobs();
        let has_ended = |job: &Value| {
            ["succeeded", "dead", "cancelled"].contains(&job["state"].as_str().unwrap())
        };
        all.len() == jobs && all.iter().all(has_ended)
    });
}

/// Returns the numbers of the events that were published, sorted.
fn doubled(home: &Home) -> Vec<usize> {
    let events = home.run(["--json", "event", "list", "-t", "doubled"]).well().documents();
    let number = |event: &Value| {
        let data = event["data"].as_array().unwrap();
        let value = data.iter().find(|pair| pair["key"] == "n").unwrap();
        value["value"].as_str().unwrap().parse().unwrap()
    };
    let mut numbers: Vec<usize> = events.iter().map(number).collect();
    numbers.sort_unstable();
    numbers
}

fn job<'a>(jobs: &'a [Value], event: &str) -> &'a Value {
    jobs.iter().find(|job| job["eventId"] == event).unwrap()
}

#[test]
fn waiting_events_share_a_process_and_keep_their_own_jobs() {
    let home = Home::new();
    let file = pipeline(&home, DOUBLE, "batch: 8");
    create(&home, &file, 20);
    let up = home.up(&file);
    wait_for_ends(&home, 20);
    let noted = noted(&home);
    assert_eq!(noted.iter().sum::<usize>(), 20, "{noted:?}");
    assert!(noted.len() <= 5 && noted.iter().all(|jobs| *jobs <= 8), "{noted:?}");
    assert_eq!(doubled(&home), (0..20).collect::<Vec<_>>());
    let jobs = home.jobs();
    let mut places = BTreeSet::new();
    for job in &jobs {
        let attempt = &job["attempts"][0];
        assert_eq!((&job["state"], &job["attempt"]), (&"succeeded".into(), &1.into()), "{job}");
        let batch = &attempt["batch"];
        places.insert((batch["first"].to_string(), batch["number"].as_u64().unwrap()));
        assert!(attempt["processStarted"].is_i64() && attempt["version"].is_string(), "{job}");
    }
    assert_eq!(places.len(), 20, "each job has a place of its own");
    // An event that comes alone is a batch of one.
    home.run(["event", "create", "start", "-d", "n=20", "--wait"]).well();
    assert_eq!(doubled(&home).len(), 21);
    home.run(["check", "--deep"]).well();
    let left: Vec<_> = std::fs::read_dir(home.state().join("jobs")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(up.stop(), Some(0));
}

/// Says that every event whose number is divisible by three has failed, and publishes all others.
const PICKY: &str = r#"#!/bin/sh
cd "$ION_DIR"
for n in *; do
  number=$(cat $n/in/meta/n)
  if [ $((number % 3)) = 0 ]; then
    echo "$number has no face" > $n/out/failed
  else
    echo "{\"eventType\": \"doubled\", \"n\": \"$number\"}" > $n/out/events/e.json
  fi
done
echo "a word for all"
"#;

#[test]
fn a_job_fails_alone_by_the_reason_that_its_module_wrote() {
    for commit in ["on-close", "on-success"] {
        let home = Home::new();
        let file = pipeline(&home, PICKY, &format!("batch: 10, retries: 0, commit: {commit}"));
        create(&home, &file, 10);
        let up = home.up(&file);
        wait_for_ends(&home, 10);
        assert_eq!(doubled(&home), [1, 2, 4, 5, 7, 8]);
        let jobs = home.jobs();
        for n in 0..10 {
            let job = job(&jobs, &format!("e{n}"));
            let reason = &job["attempts"][0]["reason"];
            match n % 3 {
                0 => {
                    assert_eq!(job["state"], "dead", "{job}");
                    assert_eq!(reason.as_str(), Some(&*format!("{n} has no face")));
                }
                _ => assert_eq!(job["state"], "succeeded", "{job}"),
            }
        }
        // The output is one, and each job of the batch shows it.
        for event in ["e1", "e3"] {
            let id = job(&jobs, event)["id"].as_str().unwrap();
            let log = home.run(["job", "logs", id]).well().stdout;
            assert!(log.contains("a word for all"), "{log}");
        }
        assert_eq!(up.stop(), Some(0));
    }
}

/// Ends in the middle of its batch at number 5, each time.
const POISONED: &str = r#"#!/bin/sh
set -e
cd "$ION_DIR"
echo "$ION_BATCH" >> "$MARKS"
for n in *; do
  number=$(cat $n/in/meta/n)
  test $number != 5 || exit 3
  echo "{\"eventType\": \"doubled\", \"n\": \"$number\", \"half\": \"1\"}" > $n/out/events/1.json
  echo "{\"eventType\": \"doubled\", \"n\": \"$number\", \"half\": \"2\"}" > $n/out/events/2.json
done
"#;

/// A bad end fails nobody but the job that fails alone, too, and nothing is lost or doubled.
#[test]
fn a_poisoned_event_is_found_by_running_each_alone() {
    for commit in ["on-close", "on-success"] {
        let home = Home::new();
        let file = pipeline(&home, POISONED, &format!("batch: 10, retries: 0, commit: {commit}"));
        create(&home, &file, 10);
        let up = home.up(&file);
        wait_for_ends(&home, 10);
        let expected: Vec<usize> = (0..10).filter(|n| *n != 5).flat_map(|n| [n, n]).collect();
        assert_eq!(doubled(&home), expected);
        let jobs = home.jobs();
        for n in 0..10 {
            let job = job(&jobs, &format!("e{n}"));
            let state = if n == 5 { "dead" } else { "succeeded" };
            assert_eq!(job["state"], state, "{job}");
            assert_eq!(job["attempts"][0]["end"], "batch-failed", "{job}");
            assert_eq!(job["failures"], u32::from(n == 5), "{job}");
        }
        let noted = noted(&home);
        assert_eq!((noted[0], noted[1..].iter().all(|jobs| *jobs == 1)), (10, true), "{noted:?}");
        home.run(["check", "--deep"]).well();
        assert_eq!(up.stop(), Some(0));
    }
}

/// The dispatcher dies at each step of a batch. Every event is processed in the end, and published
/// once.
#[test]
fn a_batch_survives_its_dispatcher_wherever_that_dies() {
    for (point, commit) in [
        ("claim.inserted=1", "on-close"),
        ("claim.settled=1", "on-success"),
        ("commit.blobs-stored=3", "on-close"),
        ("commit.blobs-stored=3", "on-success"),
        ("commit.inserted=4", "on-close"),
        ("commit.inserted=4", "on-success"),
        ("ledger.written=1", "on-close"),
        ("ledger.written=1", "on-success"),
    ] {
        let home = Home::new();
        let file = pipeline(&home, DOUBLE, &format!("batch: 8, commit: {commit}"));
        create(&home, &file, 8);
        let mut dying = home.ion();
        dying.arg("up").arg(&file).env("ION_FAILPOINTS", point);
        let mut dying = dying.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for(point, || dying.try_wait().unwrap().is_some());
        let up = home.up(&file);
        wait_for_ends(&home, 8);
        wait_for("all to be published", || doubled(&home).len() >= 8);
        assert_eq!(doubled(&home), (0..8).collect::<Vec<_>>(), "{point}");
        home.run(["check", "--deep"]).well();
        assert_eq!(up.stop(), Some(0), "{point}");
    }
}

/// Waits for a file at number 0, and works then.
const WAITING: &str = r#"#!/bin/sh
set -e
cd "$ION_DIR"
echo "$ION_BATCH" >> "$MARKS"
for n in *; do
  number=$(cat $n/in/meta/n)
  if [ $number = 0 ]; then until [ -e "$MARKS.go" ]; do sleep 0.05; done; fi
  echo "{\"eventType\": \"doubled\", \"n\": \"$number\"}" > $n/out/events/e.json || true
done
"#;

#[test]
fn a_job_of_a_batch_is_cancelled_and_the_others_go_on() {
    let home = Home::new();
    let file = pipeline(&home, WAITING, "batch: 8");
    create(&home, &file, 4);
    let up = home.up(&file);
    let state = |event: &str| job(&home.jobs(), event)["state"].as_str().unwrap().to_owned();
    wait_for("the jobs to run", || home.jobs().len() == 4 && state("e2") == "running");
    let log = home.run(["job", "get", job(&home.jobs(), "e2")["id"].as_str().unwrap()]).well();
    assert!(log.stdout.contains("batch"), "{}", log.stdout);
    let id = job(&home.jobs(), "e2")["id"].as_str().unwrap().to_owned();
    home.run(["job", "cancel", &id]).well();
    wait_for("the cancellation to be seen", || {
        job(&home.jobs(), "e2")["cancel"] == Value::Bool(true)
    });
    std::thread::sleep(std::time::Duration::from_secs(2));
    home.write("marks.go", "");
    wait_for_ends(&home, 4);
    assert_eq!(state("e2"), "cancelled");
    assert_eq!(doubled(&home), [0, 1, 3]);
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn a_stopped_dispatcher_puts_its_batch_back_and_the_next_one_runs_it_together() {
    let home = Home::new();
    let file = pipeline(&home, WAITING, "batch: 8, commit: on-success");
    create(&home, &file, 4);
    let up = home.up(&file);
    wait_for("the jobs to run", || home.jobs().iter().any(|job| job["state"] == "running"));
    signal(up.pid(), "TERM");
    assert_eq!(up.wait(), Some(0));
    assert!(home.jobs().iter().all(|job| job["state"] == "queued"), "{:?}", home.jobs());
    home.write("marks.go", "");
    let up = home.up(&file);
    wait_for_ends(&home, 4);
    assert_eq!(noted(&home), [4, 4], "what was put back is a batch again");
    assert_eq!(doubled(&home), [0, 1, 2, 3]);
    assert_eq!(up.stop(), Some(0));
}

/// Tries what cannot work across the trees of two jobs, and what the root refuses.
const ACROSS: &str = r#"#!/bin/sh
cd "$ION_DIR"
echo one > 0/out/data/f
mkdir sub 2>/dev/null && echo "a folder in the root"
touch file 2>/dev/null && echo "a file in the root"
ln 0/out/data/f 1/out/data/g 2>/dev/null && echo "a link across"
mv 0/out/data/f 1/out/data/g || echo "no move"
cat 1/out/data/g
cp 1/out/data/g 0/out/data/h && cat 0/out/data/h
ls -la . | wc -l
stat -c %F 0 1
ls 2 007 +0 2>/dev/null && echo "a name too many"
find . -name meta | wc -l
exit 0
"#;

#[test]
fn the_trees_of_a_batch_are_apart() {
    let home = Home::new();
    let file = pipeline(&home, ACROSS, "batch: 2");
    create(&home, &file, 2);
    let up = home.up(&file);
    wait_for_ends(&home, 2);
    let jobs = home.jobs();
    let log = home.run(["job", "logs", jobs[0]["id"].as_str().unwrap()]).well().stdout;
    assert_eq!(log, "one\none\n5\ndirectory\ndirectory\n2\n", "{log}");
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn fields_that_do_not_go_with_batches_are_refused() {
    let home = Home::new();
    home.program("work", "#!/bin/sh\n");
    for (fields, words) in [
        ("on: [a], batch: 0", "1 to 1000"),
        ("on: [a], batch: 1001", "1 to 1000"),
        ("on: [a], batch: many", "as in batch: 100"),
        ("gather: b, per: a, batch: 5", "\"gather\""),
        ("on: [a], emits: [b], stdio: true, batch: 5", "stdio"),
        ("on: [a], api: sidecar, batch: 5", "sidecar"),
    ] {
        let other = "  other: {on: [a], emits: [b], run: [./work]}\n";
        let text = format!("modules:\n  work: {{{fields}, run: [./work]}}\n{other}");
        let file = home.write("pipeline.yaml", text);
        let refused = home.run(["up", file.to_str().unwrap()]).failed();
        assert!(refused.stderr.contains(words), "{fields}: {}", refused.stderr);
    }
}
