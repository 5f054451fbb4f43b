//! Tries on Ion what users of pipeline engines and job runners reported from December 2024 to
//! September 2026. `docs/reports.md` names the report of each test. The tests use the embedded
//! stores; one test uses a MongoDB-compatible store.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::servers::Mongo;
use crate::support::{CommandOutput, Home, ION, RunningCommand, wait_for};
use serde_json::{Value, json};

fn pipeline(home: &Home, modules: &str) -> PathBuf {
    home.write("pipeline.yaml", format!("modules:\n{modules}"))
}

fn in_state(home: &Home, module: &str, state: &str) -> usize {
    home.jobs().iter().filter(|job| job["module"] == module && job["state"] == state).count()
}

fn create(home: &Home, event_type: &str) -> String {
    let made = home.run(["--json", "event", "create", event_type]).well();
    let event: Value = serde_json::from_str(&made.stdout).unwrap();
    event["context"]["correlationId"].as_str().unwrap().to_owned()
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).unwrap_or_default().lines().count()
}

fn log(home: &Home, job: &Value, attempt: &str) -> String {
    home.run(["job", "logs", job["id"].as_str().unwrap(), "--attempt", attempt]).well().stdout
}

/// The log has everything that the program wrote before it was killed. No event that it had staged
/// becomes visible.
#[test]
fn a_program_that_is_killed_is_no_success_and_its_last_words_are_kept() {
    let home = Home::new();
    home.program(
        "eat",
        "#!/bin/sh\necho attempt $ION_ATTEMPT; printf 'and no end of line'\n\
         echo '{\"eventType\":\"done\"}' > /ion/out/events/e\nkill -9 $$\n",
    );
    let file = pipeline(
        &home,
        "  eat: {on: [go], emits: [done], run: [./eat], commit: on-success, retries: 1}\n  \
         next: {on: [done], run: [\"true\"]}\n",
    );
    let up = home.up(&file);
    let ran = home.run(["event", "create", "go", "--wait"]).failed();
    assert!(ran.stdout.contains("1 events, 1 jobs: failed"), "{ran:#?}");
    let job = &home.jobs()[0];
    assert_eq!((&job["state"], &job["attempt"]), (&json!("dead"), &json!(2)));
    for attempt in ["1", "2"] {
        let said = log(&home, job, attempt);
        assert!(said.starts_with(&format!("attempt {attempt}\nand no end of line")), "{said}");
        assert!(said.contains("signal 9"), "{said}");
    }
    assert_eq!(up.stop(), Some(0));
}

/// A program of four chains of processes. Each process starts the next one in a session of its own,
/// and ends, so a list of processes is outdated before anybody can read it.
const CHAIN: &str = r#"
import os, time
def chain():
    while True:
        if os.fork():
            os._exit(0)
        os.setsid()
        for path in os.environ["MARK"], "/ion/out/data/x":
            with open(path, "a") as file:
                file.write("first\n")
for _ in range(4):
    if os.fork() == 0:
        chain()
time.sleep(1000)
"#;

/// The processes of the first attempt write only into the folder of that attempt. When the second
/// attempt has begun, they write nothing any more.
#[test]
fn processes_that_are_made_while_a_job_is_killed_end_with_it() {
    let home = Home::new();
    home.write("chain.py", CHAIN);
    home.program(
        "work",
        "#!/bin/sh\ntest $ION_ATTEMPT = 2 || exec python3 ./chain.py\nset -e\n\
         before=$(wc -c < $MARK); test $before -gt 0; test -z \"$(ls -A /ion/out/data)\"\n\
         echo second > /ion/out/data/x\n\
         for n in $(seq 200); do test $(wc -c < $MARK) = $before; done\n\
         test $(cat /ion/out/data/x) = second\n\
         echo '{\"eventType\":\"done\",\"files\":[\"x\"]}' > /ion/out/events/e\n",
    );
    let file = pipeline(
        &home,
        &format!(
            "  work: {{on: [go], emits: [done], run: [./work], retries: 1, timeout: 3s, \
             env: {{MARK: {}}}}}\n",
            home.path().join("mark").display()
        ),
    );
    let up = home.up(&file);
    let ran = home.run(["event", "create", "go", "--wait"]).well();
    assert!(ran.stdout.contains("2 events, 1 jobs: succeeded"), "{ran:#?}");
    assert_eq!(home.jobs()[0]["attempt"], 2);
    assert_eq!(up.stop(), Some(0));
}

/// When `ion cancel` returns, no process of the job runs any more, not even a child of its
/// children.
#[test]
fn what_a_cancelled_program_started_has_ended_when_the_cancel_has() {
    let home = Home::new();
    home.write("chain.py", CHAIN);
    home.program(
        "flow",
        "#!/bin/sh\ntrap '' TERM INT HUP\nsetsid python3 ./chain.py &\n(sh -c 'sleep 9999; :' &)\nwait\n",
    );
    let mark = home.path().join("mark");
    let file = pipeline(
        &home,
        &format!("  flow: {{on: [go], run: [./flow], env: {{MARK: {}}}}}\n", mark.display()),
    );
    let up = home.up(&file);
    let correlation = create(&home, "go");
    wait_for("the program's children to write", || lines(&mark) > 8);
    home.run(["cancel", &correlation]).well();
    let written = lines(&mark);
    assert_eq!(in_state(&home, "flow", "cancelled"), 1);
    assert_eq!(lines(&mark), written);
    let left: Vec<_> = crate::support::below(up.pid())
        .into_iter()
        .filter(|(_, name)| name == "sleep" || name == "python3")
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(up.stop(), Some(0));
}

/// After a cancellation, the job that waited for its next attempt and the gathering job that had
/// not begun have both ended.
#[test]
fn what_is_cancelled_between_two_attempts_comes_to_an_end() {
    let home = Home::new();
    let tries = home.path().join("tries");
    home.program("flaky", "#!/bin/sh\necho try >> $TRIES\nexit 3\n");
    let file = pipeline(
        &home,
        &format!(
            "  flaky: {{on: [go], emits: [piece], run: [./flaky], retries: 100, env: {{TRIES: {}}}}}\n  \
             failed: {{gather: piece, per: go, run: [\"true\"]}}\n  \
             other: {{on: [later], run: [\"true\"]}}\n",
            tries.display()
        ),
    );
    let up = home.up(&file);
    let correlation = create(&home, "go");
    wait_for("the second attempt to begin", || lines(&tries) >= 2);
    home.run(["cancel", &correlation]).well();
    let done = lines(&tries);
    let jobs = home.jobs();
    assert!(
        jobs.iter().all(|job| job["state"] == "cancelled" && job["ended"].is_u64()),
        "{jobs:#?}"
    );
    let traced = home.run(["trace", &correlation]);
    assert!(
        !traced.stdout.contains("running") && !traced.stdout.contains("waiting"),
        "{traced:#?}"
    );
    assert_eq!(up.stop(), Some(0));
    // The next dispatcher does not go on with the job, either.
    let up = home.up(&file);
    home.run(["event", "create", "later", "--wait"]).well();
    assert_eq!(lines(&tries), done);
    assert_eq!(up.stop(), Some(0));
    home.run(["check"]).well();
}

/// Returns an `ion` command that is started by a program which ignores all signals that can be
/// ignored.
fn deaf(home: &Home, words: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    let ignore = "import os, signal, sys\nfor n in range(1, 32):\n  if n not in (9, 19): \
                  signal.signal(n, signal.SIG_IGN)\nos.execv(sys.argv[1], sys.argv[1:])";
    command.args(["-k", "1", "60", "python3", "-c", ignore, ION]).args(words);
    command
        .env("ION_HOME", home.state())
        .env_remove("ION_LOG")
        .current_dir(home.path())
        .stdin(Stdio::null());
    command
}

/// If programs inherited ignored signals, `yes | head` would never end, no program would learn that
/// it is to end, and nobody would see that a program has ended.
#[test]
fn programs_hear_all_signals_whatever_ion_was_started_with() {
    let home = Home::new();
    home.program(
        "hears",
        "#!/bin/bash\nset -e\nread -r _ ignored < <(grep SigIgn /proc/self/status)\n\
         read -r _ blocked < <(grep SigBlk /proc/self/status)\necho $ignored $blocked\n\
         (( (0x$ignored & 0x7fffffff) == 0 && 0x$blocked == 0 ))\n\
         yes | head -n 1\ntest ${PIPESTATUS[0]} = 141\n",
    );
    for more in [vec![], vec!["--no-namespaces"]] {
        let words = [vec!["run"], more, vec!["--", "bash", "./hears"]].concat();
        let ran = CommandOutput::of(deaf(&home, &words).output().unwrap()).well();
        assert!(ran.stderr.contains("| y\n"), "{ran:#?}");
    }
    let doctor = CommandOutput::of(deaf(&home, &["doctor"]).output().unwrap());
    assert!(doctor.stdout.contains("fuse"), "{doctor:#?}");
    assert!(!doctor.stdout.contains("No child processes"), "{doctor:#?}");
    let failed =
        CommandOutput::of(deaf(&home, &["run", "--", "sh", "-c", "exit 7"]).output().unwrap())
            .failed();
    assert!(failed.stderr.contains("exit status 7"), "{failed:#?}");
}

/// An attempt that was cut off leaves the next attempt nothing: no half of a file, no event and no
/// other trace.
#[test]
fn an_attempt_begins_with_nothing_of_the_one_whose_dispatcher_was_killed() {
    let home = Home::new();
    let (half, next) = (home.path().join("half"), home.path().join("next.log"));
    home.program(
        "make",
        "#!/bin/sh\nset -e\nls -A /ion/out/data /ion/out/events\ntest -z \"$(ls -A /ion/out/data)\"\n\
         echo '{\"eventType\":\"made\",\"files\":[\"result\"]}' > /ion/out/data/note\n\
         if [ $ION_ATTEMPT = 1 ]; then echo half > /ion/out/data/result; touch $HALF; sleep 9999; fi\n\
         echo whole > /ion/out/data/result; cp /ion/out/data/note /ion/out/events/made.json\n",
    );
    home.program("next", "#!/bin/sh\ncat /ion/in/data/result >> $NEXT\n");
    let file = pipeline(
        &home,
        &format!(
            "  make: {{on: [go], emits: [made], run: [./make], env: {{HALF: {}}}}}\n  \
             next: {{on: [made], run: [./next], env: {{NEXT: {}}}}}\n",
            half.display(),
            next.display()
        ),
    );
    let up = home.up(&file);
    create(&home, "go");
    wait_for("half of the file to be written", || half.exists());
    up.kill();
    let up = home.up(&file);
    wait_for("the next module's job to succeed", || in_state(&home, "next", "succeeded") == 1);
    assert_eq!(std::fs::read_to_string(&next).unwrap(), "whole\n");
    let made = home.jobs().into_iter().find(|job| job["module"] == "make").unwrap();
    assert_eq!((&made["state"], &made["attempt"]), (&json!("succeeded"), &json!(2)));
    assert_eq!(up.stop(), Some(0));
    home.run(["check", "--deep"]).well();
}

/// If a later attempt names the file without writing it again, its event is refused.
#[test]
fn the_file_of_an_attempt_that_failed_is_never_taken_for_a_result() {
    let home = Home::new();
    home.program(
        "make",
        "#!/bin/sh\nif [ $ION_ATTEMPT = 1 ]; then echo writing > /ion/out/data/result; exit 1; fi\n\
         echo '{\"eventType\":\"made\",\"files\":[\"result\"]}' > /ion/out/events/made.json\n",
    );
    let file = pipeline(
        &home,
        "  make: {on: [go], emits: [made], run: [./make], retries: 0}\n  \
         next: {on: [made], run: [\"true\"]}\n",
    );
    let up = home.up(&file);
    home.run(["event", "create", "go", "--wait"]).failed();
    home.run(["dead", "retry", "--all"]).well();
    wait_for("the second attempt to end", || {
        let job = &home.jobs()[0];
        job["attempt"] == 2 && job["state"] == "dead"
    });
    let reason = home.jobs()[0]["attempts"][1]["reason"].to_string();
    assert!(reason.contains("ENOENT") && reason.contains("result"), "{reason}");
    assert_eq!(home.jobs().len(), 1);
    assert_eq!(up.stop(), Some(0));
}

/// The module runs once, however often it names the type, and however many files and dispatchers
/// name the module.
#[test]
fn a_module_that_subscribes_twice_to_a_type_runs_once_for_an_event() {
    let home = Home::new();
    let runs = home.path().join("runs");
    let flow_a = "#!/bin/sh\necho '{\"eventType\":\"success\"}' > /ion/out/events/e\n";
    home.program("flow_a", flow_a);
    let modules = format!(
        "  flow_a: {{on: [go], emits: [success, failure], run: [./flow_a]}}\n  \
         flow_b: {{on: [success, failure, success], run: [sh, -c, \"echo run >> {}\"]}}\n",
        runs.display()
    );
    let file = pipeline(&home, &modules);
    let other = home.on_another_host();
    other.program("flow_a", flow_a);
    let (one, two) = (home.up(&file), other.up(&pipeline(&other, &modules)));
    for _ in 0..5 {
        home.run(["event", "create", "go", "--wait"]).well();
    }
    assert_eq!(lines(&runs), 5);
    assert_eq!(home.jobs().len(), 10);
    assert_eq!((one.stop(), two.stop()), (Some(0), Some(0)));
}

/// Dispatchers die one after another. Their successors do not run again what has succeeded.
#[test]
fn what_has_ended_is_not_run_again_when_dispatchers_die() {
    let home = Home::new();
    let (ran, held, go) =
        (home.path().join("ran"), home.path().join("held"), home.path().join("go"));
    let file = pipeline(
        &home,
        &format!(
            "  short: {{on: [short], run: [sh, -c, \"echo run >> {}\"]}}\n  \
             long: {{on: [long], run: [sh, -c, \"echo run >> {}; until [ -e {} ]; do sleep 0.05; done\"]}}\n",
            ran.display(),
            held.display(),
            go.display()
        ),
    );
    let mut up: RunningCommand = home.up(&file);
    for _ in 0..6 {
        home.run(["event", "create", "short", "--wait"]).well();
    }
    create(&home, "long");
    for deaths in 1..=3 {
        wait_for("the long job to run", || lines(&held) == deaths);
        up.kill();
        up = home.up(&file);
    }
    wait_for("the long job to run", || lines(&held) == 4);
    std::fs::write(&go, "").unwrap();
    wait_for("the long job to succeed", || in_state(&home, "long", "succeeded") == 1);
    assert_eq!(lines(&ran), 6);
    assert!(home.jobs().iter().all(|job| job["module"] == "long" || job["attempt"] == 1));
    assert_eq!(up.stop(), Some(0));
    home.run(["check"]).well();
}

/// Zero bytes, numbers beyond all bounds, operators of the store and empty names arrive as they
/// were sent. Text that is not JSON, or not an object, is refused and its job fails: no job runs
/// forever.
fn odd_values_arrive(home: &Home) {
    home.write(
        "odd.py",
        r#"
import json
odd = {"eventType": "odd", "a\u0000b": "v", "v": "x\u0000y", "": "no name", "a.b": "1"}
odd.update({"$set": "2", "_id": "3", "a/b": "4", "..": "5"})
with open("/ion/out/events/odd.json", "w") as file:
    file.write(json.dumps(odd)[:-1] + ', "big": 1e999, "list": [null, []]}')
with open("/ion/out/insights.json", "w") as file:
    json.dump({"a\u0000b": "v\u0000", "": 1, "$x.y": 2}, file)
"#,
    );
    home.write(
        "bad.py",
        r#"
refused = []
bad = ['[1]', 'null', '"x"']
bad += ['{"eventType":"odd",%s}' % value for value in ['"k":"\\ud83d"', '"k":NaN']]
bad.append('{"eventType":"odd\\u0000"}')
for n, text in enumerate(bad):
    try:
        with open(f"/ion/out/events/{n}.json", "w") as file:
            file.write(text)
    except OSError as error:
        refused.append(n)
print(refused)
"#,
    );
    let file = pipeline(
        home,
        "  odd: {on: [go], emits: [odd], run: [python3, ./odd.py], retries: 0}\n  \
         next: {on: [odd], run: [cat, /ion/in/eventmeta.json], retries: 0}\n  \
         bad: {on: [bad], emits: [odd], run: [python3, ./bad.py], retries: 0}\n",
    );
    let up = home.up(&file);
    home.run(["event", "create", "go", "--wait"]).well();
    let next = home.jobs().into_iter().find(|job| job["module"] == "next").unwrap();
    let values: Vec<Value> = serde_json::from_str(&log(home, &next, "1")).unwrap();
    let values: Vec<_> = values
        .iter()
        .map(|one| (one["key"].as_str().unwrap(), one["value"].as_str().unwrap()))
        .collect();
    assert_eq!(
        values,
        [
            ("a\0b", "v"),
            ("v", "x\0y"),
            ("", "no name"),
            ("a.b", "1"),
            ("$set", "2"),
            ("_id", "3"),
            ("a/b", "4"),
            ("..", "5"),
            ("big", "1e999"),
            ("list", "[null, []]")
        ]
    );
    let insight =
        home.trace().into_iter().find(|one| one["context"]["documentType"] == "insight").unwrap();
    assert_eq!(insight["data"][0], json!({"key": "a\0b", "value": "v\0"}));
    home.run(["event", "create", "bad", "--wait"]).failed();
    let bad = home.jobs().into_iter().find(|job| job["module"] == "bad").unwrap();
    assert_eq!(bad["state"], "dead");
    assert!(log(home, &bad, "1").starts_with("[0, 1, 2, 3, 4, 5]\n"));
    assert_eq!(home.jobs().len(), 3);
    assert_eq!(up.stop(), Some(0));
    home.run(["check", "--deep"]).well();
}

#[test]
fn values_that_no_database_likes_arrive_or_are_refused() {
    odd_values_arrive(&Home::new());
}

#[test]
fn values_that_no_database_likes_arrive_or_are_refused_on_mongodb() {
    let mongo = Mongo::start();
    let mut home = Home::new();
    home.env.push(("ION_DOCUMENTS".into(), mongo.database("ion")));
    odd_values_arrive(&home);
}
