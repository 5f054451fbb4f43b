//! Tests of whole pipelines, driven by the `ion` command alone. They show dispatch, retries,
//! timeouts, limits of concurrency and gathering. They also show which mistakes of users are
//! refused, and what people see of a running pipeline.

use std::path::PathBuf;
use std::process::Command;

use crate::support::{CommandOutput, Home, may_mount_or_runs_where_it_may, signal, wait_for};
use serde_json::Value;

/// Writes a pipeline file with these modules beside their programs, and returns its path.
fn pipeline(home: &Home, modules: &str) -> PathBuf {
    home.write("pipeline.yaml", format!("name: test\nmodules:\n{modules}"))
}

/// Returns the state of the first job of a module, or an empty text if the module has no job.
fn state_of(jobs: &[Value], module: &str) -> String {
    jobs.iter()
        .find(|job| job["module"] == module)
        .map_or(String::new(), |job| job["state"].as_str().unwrap().to_owned())
}

#[test]
fn fan_out_and_fan_in_run_each_event_once_and_gather_all_in_order() {
    let home = Home::new();
    home.program("split", "#!/bin/sh\nset -e\nfor i in 0 1 2 3 4 5 6 7; do echo $i > /ion/out/data/p; echo '{\"eventType\":\"piece\",\"files\":[\"p\"],\"i\":'$i'}' > /ion/out/events/$i; done\n");
    home.program("double", "#!/bin/sh\nset -e\necho $(( $(cat /ion/in/data/p) * 2 )) > /ion/out/data/d; echo '{\"eventType\":\"doubled\",\"files\":[\"d\"]}' > /ion/out/events/d\n");
    home.program("sum", "#!/bin/sh\nset -e\ncat /ion/in/data/*/d | sort -n | tr '\\n' ' ' > /ion/out/data/all; grep -c '\"type\"' /ion/in/events.json >> /ion/out/data/all\necho '{\"eventType\":\"sum\",\"files\":[\"all\"]}' > /ion/out/events/sum\n");
    let file = pipeline(
        &home,
        "  split: {on: [start], emits: [piece], run: [./split]}\n  double: {on: [piece], emits: [doubled], run: [./double], concurrency: 3}\n  sum: {gather: doubled, per: start, emits: [sum], run: [./sum], commit: on-success}\n",
    );
    let up = home.up(&file);
    home.run(["event", "create", "start", "--wait"]).well();
    let trace = home.trace();
    let count = |name: &str| trace.iter().filter(|d| d["type"] == name).count();
    assert_eq!((count("piece"), count("doubled"), count("sum")), (8, 8, 1));
    assert_eq!(home.jobs().len(), 10);
    let sum = trace.iter().find(|d| d["type"] == "sum").unwrap();
    let blob = home.state().join("blobs").join(sum["files"][0]["key"].as_str().unwrap());
    assert_eq!(std::fs::read_to_string(blob).unwrap(), "0 2 4 6 8 10 12 14 8\n");
    home.run(["check", "--deep"]).well();
    assert_eq!(up.stop(), Some(0));
}

/// A gathering job publishes an event and fails. Its second attempt waits neither for that event
/// nor for the job that the event has started.
#[test]
fn a_gathering_job_that_published_and_failed_is_retried() {
    let home = Home::new();
    home.program("one", "#!/bin/sh\necho '{\"eventType\":\"piece\"}' > /ion/out/events/p\n");
    home.program(
        "sheet",
        "#!/bin/sh\necho '{\"eventType\":\"done\"}' > /ion/out/events/d\ntest $ION_ATTEMPT = 2\n",
    );
    home.program("notify", "#!/bin/sh\nuntil [ -e $GO ]; do sleep 0.05; done\n");
    let go = home.path().join("go");
    let file = pipeline(
        &home,
        &format!(
            "  one: {{on: [start], emits: [piece], run: [./one]}}\n  sheet: {{gather: piece, per: start, emits: [done], run: [./sheet], retries: 1}}\n  notify: {{on: [done], run: [./notify], env: {{GO: {}}}}}\n",
            go.display()
        ),
    );
    let up = home.up(&file);
    home.run(["event", "create", "start"]).well();
    wait_for("the second attempt of `sheet` to succeed", || {
        state_of(&home.jobs(), "sheet") == "succeeded"
    });
    // The job of `notify` runs until `go` exists, so the gathering job has not waited for it.
    wait_for("the job of `notify` to run", || state_of(&home.jobs(), "notify") == "running");
    std::fs::write(&go, "").unwrap();
    wait_for("the job of `notify` to succeed", || state_of(&home.jobs(), "notify") == "succeeded");
    assert_eq!(home.jobs().len(), 3);
    assert_eq!(up.stop(), Some(0));
}

/// A module that is registered while a gathering job waits gets no event that was committed before.
/// The gathering job does not wait for the new module's job on such an event, because no such job
/// ever starts.
#[test]
fn what_was_committed_before_a_module_came_is_not_for_it_and_no_gathering_waits_for_that() {
    let home = Home::new();
    home.program("one", "#!/bin/sh\necho '{\"eventType\":\"piece\"}' > /ion/out/events/p\n");
    home.program("slow", "#!/bin/sh\nuntil [ -e $GO ]; do sleep 0.05; done\n");
    let go = home.path().join("go");
    let modules = format!(
        "  one: {{on: [start], emits: [piece], run: [./one]}}\n  slow: {{on: [piece], run: [./slow], env: {{GO: {}}}}}\n  sheet: {{gather: piece, per: start, run: [\"true\"]}}\n",
        go.display()
    );
    let up = home.up(&pipeline(&home, &modules));
    home.run(["event", "create", "start"]).well();
    wait_for("the job of `slow` to run", || state_of(&home.jobs(), "slow") == "running");
    assert_eq!(up.stop(), Some(0));
    let later = format!("{modules}  later: {{on: [piece], run: [\"true\"]}}\n");
    let up = home.up_with(&["--lease", "2s"], &pipeline(&home, &later));
    std::fs::write(&go, "").unwrap();
    wait_for("the job of `sheet` to succeed", || state_of(&home.jobs(), "sheet") == "succeeded");
    assert_eq!(
        home.jobs().len(),
        3,
        "`later` has no job for the piece, which was committed before `later` was registered"
    );
    home.run(["event", "create", "start", "--wait"]).well();
    assert_eq!(state_of(&home.jobs(), "later"), "succeeded");
    assert_eq!(home.jobs().len(), 3 + 4);
    assert_eq!(up.stop(), Some(0));
}

/// A module closes one file 500 times, and each close may start an upload. In the end the store has
/// only the blob that the event names, so `ion gc` finds nothing to remove.
#[test]
fn many_closes_of_one_file_leave_one_blob() {
    let home = Home::new();
    home.run(["run", "--", "sh", "-c", "for i in $(seq 500); do echo $i >> /ion/out/data/log; done; echo '{\"eventType\":\"x\",\"files\":[\"log\"]}' > /ion/out/events/x"]).well();
    let blobs = home.run(["--json", "gc", "--dry-run", "--grace", "0s"]).well();
    let counted: Value = serde_json::from_str(&blobs.stdout).unwrap();
    assert_eq!(
        (counted["blobs"].as_u64(), counted["unfinished"].as_u64()),
        (Some(0), Some(0)),
        "{counted}"
    );
    home.run(["check", "--deep"]).well();
}

#[test]
fn a_failing_module_is_retried_then_dead_and_can_be_revived() {
    let home = Home::new();
    home.program("flaky", "#!/bin/sh\necho attempt $ION_ATTEMPT\ntest -e \"$MARK\" || exit 7\necho '{\"eventType\":\"done\"}' > /ion/out/events/done\n");
    let mark = home.path().join("mark");
    let file = pipeline(
        &home,
        &format!(
            "  flaky: {{on: [start], emits: [done], run: [./flaky], retries: 1, env: {{MARK: {}}}}}\n",
            mark.display()
        ),
    );
    let up = home.up(&file);
    let failed = home.run(["event", "create", "start", "--wait"]).failed();
    assert!(failed.stdout.contains("exit status 7"), "{failed:#?}");
    let dead = home.run(["dead", "list"]).well();
    assert!(dead.stdout.contains("flaky") && dead.stdout.contains("exit status 7"), "{dead:#?}");
    let job = &home.jobs()[0];
    assert_eq!((job["attempt"].as_u64(), job["failures"].as_u64()), (Some(2), Some(2)));
    let id = job["id"].as_str().unwrap();
    let log = home.run(["job", "logs", &id[..8], "--attempt", "1"]).well();
    assert_eq!(log.stdout, "attempt 1\nion: exit status 7\n");
    std::fs::write(&mark, "").unwrap();
    home.run(["dead", "retry", "--all"]).well();
    wait_for("the revived job to succeed", || state_of(&home.jobs(), "flaky") == "succeeded");
    assert_eq!(home.run(["--json", "dead", "list"]).well().stdout, "");
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn a_retried_job_publishes_its_events_once() {
    let home = Home::new();
    home.program("twice", "#!/bin/sh\nset -e\necho x > /ion/out/data/x; echo '{\"eventType\":\"done\",\"files\":[\"x\"]}' > /ion/out/events/done\ntest $ION_ATTEMPT -gt 1\n");
    home.program("next", "#!/bin/sh\necho ran\n");
    let file = pipeline(
        &home,
        "  twice: {on: [start], emits: [done], run: [./twice], retries: 2}\n  next: {on: [done], run: [./next]}\n",
    );
    let up = home.up(&file);
    home.run(["event", "create", "start", "--wait"]).well();
    let jobs = home.jobs();
    assert_eq!(
        jobs.iter()
            .map(|j| (j["module"].as_str().unwrap(), j["attempt"].as_u64().unwrap()))
            .collect::<Vec<_>>(),
        [("twice", 2), ("next", 1)]
    );
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn on_success_shows_nothing_of_a_failed_attempt_and_all_of_a_good_one() {
    let home = Home::new();
    home.program("all", "#!/bin/sh\nset -e\necho $ION_ATTEMPT > /ion/out/data/x\nfor i in 1 2 3; do echo '{\"eventType\":\"done\",\"files\":[\"x\"],\"i\":'$i'}' > /ion/out/events/$i; done\necho '{\"tries\":'$ION_ATTEMPT'}' > /ion/out/insights.json\ntest $ION_ATTEMPT -gt 1\n");
    home.program("next", "#!/bin/sh\ncat /ion/in/data/x\n");
    let file = pipeline(
        &home,
        "  all: {on: [start], emits: [done], run: [./all], retries: 1, commit: on-success}\n  next: {on: [done], run: [./next]}\n",
    );
    let up = home.up(&file);
    home.run(["event", "create", "start", "--wait"]).well();
    let jobs = home.jobs();
    let nexts: Vec<_> = jobs.iter().filter(|j| j["module"] == "next").collect();
    assert_eq!(nexts.len(), 3);
    for next in nexts {
        // Each job of `next` read the file of the second attempt, which succeeded.
        assert_eq!(home.run(["job", "logs", next["id"].as_str().unwrap()]).well().stdout, "2\n");
    }
    let insight =
        home.trace().into_iter().find(|d| d["context"]["documentType"] == "insight").unwrap();
    assert_eq!(insight["data"][0]["value"], "2");
    home.run(["check", "--deep"]).well();
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn a_timeout_ends_the_whole_process_tree() {
    let home = Home::new();
    let pids = home.path().join("alive");
    // The module starts one child that leaves its session and one that ignores SIGTERM. Each writes
    // to a file of its own as long as it lives.
    home.program("slow", &format!("#!/bin/sh\ntrap '' TERM\nsetsid sh -c 'while :; do date +%N > {0}.1; done' &\nsh -c 'trap \"\" TERM; while :; do date +%N > {0}.2; done' &\nwait\nwait\n", pids.display()));
    let file = pipeline(&home, "  slow: {on: [start], run: [./slow], timeout: 5s, retries: 0}\n");
    let up = home.up(&file);
    let ran = home.run(["event", "create", "start", "--wait"]).failed();
    assert!(ran.stdout.contains("over its timeout of 5s"), "{ran:#?}");
    for n in [1, 2] {
        let mark = format!("{}.{n}", pids.display());
        let before = std::fs::metadata(&mark).unwrap().modified().unwrap();
        // The children ended before the job's end was recorded, so the file stays unchanged.
        for _ in 0..20 {
            home.run(["job", "list"]).well();
        }
        assert_eq!(
            std::fs::metadata(&mark).unwrap().modified().unwrap(),
            before,
            "child {n} does not write any more"
        );
    }
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn concurrency_is_held_and_a_running_job_can_be_cancelled() {
    let home = Home::new();
    let marks = home.path().join("marks");
    std::fs::create_dir(&marks).unwrap();
    home.program("hold", "#!/bin/sh\ntouch $MARKS/$ION_EVENT_ID\nls $MARKS | wc -l\nwhile test ! -e $MARKS/../go; do sleep 0.02; done\nrm $MARKS/$ION_EVENT_ID\n");
    let file = pipeline(
        &home,
        &format!(
            "  hold: {{on: [start], run: [./hold], concurrency: 2, env: {{MARKS: {}}}}}\n",
            marks.display()
        ),
    );
    let up = home.up(&file);
    for _ in 0..5 {
        home.run(["event", "create", "start"]).well();
    }
    let running = || std::fs::read_dir(&marks).unwrap().count();
    wait_for("two jobs to run", || running() == 2);
    let job = home.jobs().into_iter().find(|job| job["state"] == "running").unwrap();
    home.run(["job", "cancel", job["id"].as_str().unwrap()]).well();
    wait_for("the job to be cancelled", || {
        home.jobs().iter().any(|j| j["id"] == job["id"] && j["state"] == "cancelled")
    });
    assert!(running() <= 3, "two jobs run, and the cancelled job has left one mark");
    home.write("go", "");
    wait_for("the other four jobs to succeed", || {
        home.jobs().iter().filter(|j| j["state"] == "succeeded").count() == 4
    });
    for job in home.jobs().iter().filter(|j| j["state"] == "succeeded") {
        let log = home.run(["job", "logs", job["id"].as_str().unwrap()]).well();
        // A job counts the marks of at most two running jobs, and the mark that the cancelled job
        // has left.
        assert!(log.stdout.trim().parse::<u32>().unwrap() <= 3, "{log:#?}");
    }
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn a_dead_job_holds_a_gathering_module_back_until_it_is_dropped() {
    let home = Home::new();
    home.program("split", "#!/bin/sh\nfor i in 1 2 3; do echo '{\"eventType\":\"piece\",\"i\":'$i'}' > /ion/out/events/$i; done\n");
    home.program("work", "#!/bin/sh\ntest $(cat /ion/in/meta/i) != 2 && echo '{\"eventType\":\"worked\"}' > /ion/out/events/w\n");
    home.program("sum", "#!/bin/sh\ngrep -c '\"type\"' /ion/in/events.json\n");
    let file = pipeline(
        &home,
        "  split: {on: [start], emits: [piece], run: [./split]}\n  work: {on: [piece], emits: [worked], run: [./work], retries: 0}\n  sum: {gather: worked, per: start, run: [./sum]}\n",
    );
    let up = home.up(&file);
    home.run(["event", "create", "start", "--wait"]).failed();
    assert_eq!(state_of(&home.jobs(), "sum"), "waiting");
    home.run(["dead", "drop", "--all"]).well();
    wait_for("the gathering job to succeed", || state_of(&home.jobs(), "sum") == "succeeded");
    let sum = home.jobs().into_iter().find(|j| j["module"] == "sum").unwrap();
    assert_eq!(home.run(["job", "logs", sum["id"].as_str().unwrap()]).well().stdout, "2\n");
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn two_jobs_at_once_each_have_their_own_tree_and_the_host_has_none() {
    let home = Home::new();
    home.program("meet", "#!/bin/sh\nset -e\ntouch $MARKS.$ION_EVENT_ID\necho $ION_EVENT_ID > /ion/out/data/own\nwhile test $(ls $MARKS.* | wc -l) -lt 2; do sleep 0.02; done\ntest \"$(ls /ion/out/data)\" = own; test \"$(cat /ion/out/data/own)\" = $ION_EVENT_ID\ntest $(ps ax | wc -l) -lt 8\n");
    let file = pipeline(
        &home,
        &format!(
            "  meet: {{on: [start], run: [./meet], retries: 0, concurrency: 2, timeout: 30s, env: {{MARKS: {}}}}}\n",
            home.path().join("mark").display()
        ),
    );
    let had_ion = std::path::Path::new("/ion").exists();
    let up = home.up(&file);
    home.run(["event", "create", "start"]).well();
    home.run(["event", "create", "start", "--wait"]).well();
    wait_for("both jobs to succeed", || {
        home.jobs().iter().filter(|j| j["state"] == "succeeded").count() == 2
    });
    assert_eq!(
        std::path::Path::new("/ion").exists(),
        had_ion,
        "Ion creates no `/ion` in the host's root"
    );
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn an_event_outside_emits_and_a_missing_file_fail_with_their_reasons() {
    let home = Home::new();
    home.program(
        "bad",
        "#!/bin/sh\necho '{\"eventType\":\"secret\"}' > /ion/out/events/a; cat /ion/events/rejected/a.json\n",
    );
    let file = pipeline(&home, "  bad: {on: [start], emits: [done], run: [./bad], retries: 0}\n");
    let up = home.up(&file);
    let ran = home.run(["event", "create", "start", "--wait"]).failed();
    assert!(
        ran.stdout.contains(
            "EACCES: module \"bad\" may not publish \"secret\"; its pipeline allows: done"
        ),
        "{ran:#?}"
    );
    let log = home.run(["job", "logs", home.jobs()[0]["id"].as_str().unwrap()]).well();
    assert!(log.stdout.contains("\"errno\": \"EACCES\""), "{log:#?}");
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn a_full_staging_disk_fails_the_job_with_enospc_and_harms_no_other() {
    if !may_mount_or_runs_where_it_may(
        "a_full_staging_disk_fails_the_job_with_enospc_and_harms_no_other",
    ) {
        return;
    }
    let home = Home::new();
    let jobs = home.state().join("jobs");
    std::fs::create_dir_all(&jobs).unwrap();
    rustix::mount::mount(
        "small",
        &jobs,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        Some(c"size=2m"),
    )
    .unwrap();
    home.program("fill", "#!/bin/sh\ndd if=/dev/zero of=/ion/out/data/big bs=64k count=100 && exit 9\nrm /ion/out/data/big\necho ok > /ion/out/data/small\necho '{\"eventType\":\"done\",\"files\":[\"small\"]}' > /ion/out/events/e\n");
    let file = pipeline(&home, "  fill: {on: [start], emits: [done], run: [./fill], retries: 0}\n");
    let up = home.up(&file);
    let ran = home.run(["event", "create", "start", "--wait"]);
    let log = home.run(["job", "logs", home.jobs()[0]["id"].as_str().unwrap()]);
    let code = up.stop();
    rustix::mount::unmount(&jobs, rustix::mount::UnmountFlags::DETACH).unwrap();
    ran.well();
    assert!(log.stdout.contains("No space left on device"), "{log:#?}");
    assert_eq!(code, Some(0));
}

#[test]
fn a_wrong_pipeline_file_is_refused_before_anything_starts() {
    let home = Home::new();
    let file = pipeline(&home, "  a:\n    on: [x]\n    run: [cat]\n    retrys: 3\n");
    let ran = home.run(["up", file.to_str().unwrap()]).failed();
    assert!(
        ran.stderr.contains("pipeline.yaml:6:") && ran.stderr.contains("did you mean \"retries\"?"),
        "{ran:#?}"
    );
    home.write("tool", "#!/bin/sh\n");
    let file = pipeline(&home, "  a:\n    on: [x]\n    run: [./tool]\n");
    let ran = home.run(["up", file.to_str().unwrap()]).failed();
    assert!(ran.stderr.contains("is not executable; allow it with `chmod +x"), "{ran:#?}");
    assert!(!home.state().exists(), "a refused pipeline file leaves no state behind");
    assert_eq!(home.run(["up", "--nonsense"]).code, Some(2));
    // A valid file that hardly says what its author means gets a warning.
    let file = pipeline(
        &home,
        "  a: {on: [x], emits: [frames], run: [cat]}\n  b: {on: [frame], run: [cat]}\n",
    );
    let ran = home.run(["module", "create", "--pipeline", file.to_str().unwrap()]).well();
    assert!(ran.stderr.contains("\"b\" waits for \"frame\", which no module emits"), "{ran:#?}");
}

#[test]
fn a_program_that_stops_being_executable_is_named_in_the_job() {
    let home = Home::new();
    let tool = home.program("tool", "#!/bin/sh\n");
    let file = pipeline(&home, "  a: {on: [x], run: [./tool]}\n");
    let up = home.up(&file);
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o644)).unwrap();
    let ran = home.run(["event", "create", "x", "--wait"]).failed();
    assert!(ran.stdout.contains("is not executable; allow it with `chmod +x"), "{ran:#?}");
    // Next, the file is not a program, and then it is missing. Each of these failures would happen
    // again, so each job has only one attempt.
    for gone in [false, true] {
        std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
        if gone {
            std::fs::remove_file(&tool).unwrap()
        } else {
            std::fs::write(&tool, "\x7fELF").unwrap()
        }
        home.run(["event", "create", "x", "--wait"]).failed();
    }
    for job in home.jobs() {
        let attempts = job["attempts"].as_array().unwrap();
        assert_eq!(
            (attempts.len(), &attempts[0]["end"], &job["state"]),
            (1, &"cannot-run".into(), &"dead".into()),
            "{job}"
        );
    }
    assert_eq!(up.stop(), Some(0));
}

/// Where `ion doctor` finds that jobs cannot have their files, `ion up` and `ion run` fail at once
/// and name the same cause.
#[test]
fn where_jobs_cannot_have_their_files_nothing_starts() {
    let home = Home::new();
    let file = pipeline(&home, "  a: {on: [x], run: [cat]}\n");
    let chain = home.write("chain.yaml", "name: c\nChain: [{Command: cat}]\n");
    let without_fuse = |words: &[&str]| {
        let mut unshare = Command::new("unshare");
        unshare.args([
            "-rm",
            "sh",
            "-c",
            "mount -t tmpfs none /dev && : > /dev/null && exec timeout 5 \"$@\"",
            "sh",
            crate::support::ION,
        ]);
        CommandOutput::of(unshare.args(words).env("ION_HOME", home.state()).output().unwrap())
    };
    let doctor = without_fuse(&["doctor"]).failed();
    assert!(doctor.stdout.contains("/dev/fuse is not there"), "{doctor:#?}");
    for words in [&["up", file.to_str().unwrap()][..], &["run", "--", "true"]] {
        let ran = without_fuse(words).failed();
        assert!(
            ran.stderr
                .contains("jobs cannot have their files here: /dev/fuse is not there; load it"),
            "{ran:#?}"
        );
    }
    // The links of a chain need no files, so the chain starts.
    let ran = without_fuse(&["up", chain.to_str().unwrap()]);
    assert!(ran.stderr.contains("ready: c"), "{ran:#?}");
}

#[test]
fn the_mount_shows_a_running_pipeline() {
    let home = Home::new();
    home.program("tell", "#!/bin/sh\necho needle of $ION_MODULE\ncp /ion/in/data/f /ion/out/data/f\necho '{\"eventType\":\"'$SAY'\",\"files\":[\"f\"]}' > /ion/out/events/t\ncat /ion/events/trigger/data/f /ion/events/lineage/0-*/data/f\nwhile test ! -e $GO; do sleep 0.02; done\n");
    let go = home.path().join("go");
    let module = |name: &str, on: &str, emits: &str| {
        format!(
            "  {name}: {{on: [{on}], emits: [{emits}], run: [./tell], retries: 0, env: {{GO: {}, SAY: {emits}}}}}\n",
            go.display()
        )
    };
    let file = pipeline(&home, &(module("one", "start", "told") + &module("two", "told", "end")));
    let up = home.up(&file);
    home.write("f", "content of f\n");
    home.run(["event", "create", "start", "--file", "f"]).well();
    wait_for("both jobs to run", || {
        home.jobs().iter().filter(|j| j["state"] == "running").count() == 2
    });
    let at = home.path().join("plane");
    #[allow(clippy::disallowed_methods, reason = "tests start programs")]
    let mut mount = home.ion().arg("mount").arg(&at).spawn().unwrap();
    wait_for("the plane to be mounted", || at.join("correlations").exists());
    let sh = |script: &str| {
        #[allow(clippy::disallowed_methods, reason = "tests start programs")]
        let output = std::process::Command::new("sh")
            .args(["-c", script])
            .current_dir(&at)
            .output()
            .unwrap();
        crate::support::CommandOutput::of(output)
    };
    let listing = sh("ls -lR .").well();
    assert!(
        listing.stdout.contains("0-start-") && listing.stdout.contains("1-told-"),
        "{listing:#?}"
    );
    assert_eq!(
        sh("cat correlations/*/*/0-*/data/f correlations/*/*/1-*/data/f").well().stdout,
        "content of f\ncontent of f\n"
    );
    let found = sh("grep -rl needle correlations | sort").well();
    assert_eq!(found.stdout.lines().count(), 2, "{found:#?}");
    assert!(
        found.stdout.contains("/jobs/one/attempts/1/log")
            && found.stdout.contains("/jobs/two/attempts/1/log"),
        "{found:#?}"
    );
    assert_eq!(
        sh("cat modules/one/running/*/job.json | grep -c '\"state\": \"running\"'").well().stdout,
        "1\n"
    );
    assert_eq!(sh("cat types/told/*/*/data/f").well().stdout, "content of f\n");
    home.write("go", "");
    wait_for("both jobs to succeed", || {
        home.jobs().iter().filter(|j| j["state"] == "succeeded").count() == 2
    });
    wait_for("the mount to show the new state of the job of `one`", || {
        sh("ls modules/one/succeeded/*").stdout.lines().count() == 1
    });
    signal(mount.id(), "TERM");
    assert!(mount.wait().unwrap().success());
    assert!(!at.join("correlations").exists(), "SIGTERM makes `ion mount` unmount the plane");
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn what_people_ask_for_wrongly_is_answered_with_the_way_out() {
    let home = Home::new();
    let cases: [(&[&str], i32, &str); 13] = [
        (&["event", "create", "no type"], 1, "cannot be an event type"),
        (&["event", "create", "t", "--data", "novalue"], 2, "KEY=VALUE"),
        (&["event", "create", "t", "--file", "missing"], 1, "\"missing\" cannot be read"),
        (&["job", "get", "nope"], 1, "`ion job list`"),
        (&["module", "get", "nope"], 1, "`ion module list`"),
        (&["trace"], 1, "`ion event create`"),
        (&["--blobs", "s3://key:secret@bucket/x", "job", "list"], 1, "s3://bucket/prefix"),
        (&["bogus"], 2, "unrecognized subcommand"),
        (&["up", "--lease", "0s"], 2, "\"0s\": 1s to 1day are allowed"),
        (&["up", "--jobs", "0"], 2, "\"0\": 1 to 10000 are allowed"),
        (&["dispatch", "--jobs", "9223372036854775807"], 2, "1 to 10000 are allowed"),
        (&["--commit-deadline", "1ms", "job", "list"], 2, "1s to 1day are allowed"),
        (&["event", "create", "t", "--wait", "--timeout", "99999999999999999s"], 2, "are allowed"),
    ];
    for (words, code, text) in cases {
        let ran = home.run(words);
        assert_eq!(ran.code, Some(code), "{ran:#?}");
        assert!(ran.stderr.contains(text) && !ran.stderr.contains("secret"), "{ran:#?}");
    }
    let created = home.run(["event", "create", "t", "--id", "fixed", "--data", "a=1"]).well();
    assert!(created.stderr.contains("no module subscribes"), "{created:#?}");
    home.run(["event", "create", "t", "--id", "fixed", "--data", "a=1"]).well();
    let differs = home.run(["event", "create", "t", "--id", "fixed", "--data", "a=2"]).failed();
    assert!(differs.stderr.contains("committed before with other content"), "{differs:#?}");
    let got: Value =
        serde_json::from_str(&home.run(["event", "get", "fix"]).well().stdout).unwrap();
    assert_eq!(got["data"][0]["value"], "1");
    home.run(["module", "create", "-n", "m", "-i", "t", "-o", "u", "--", "cat"]).well();
    let waiting = home.run(["event", "create", "t", "--wait", "--timeout", "1s"]).failed();
    assert!(waiting.stderr.contains("start one with `ion up`"), "{waiting:#?}");
    assert!(home.run(["event", "peek", "m"]).well().stdout.contains(" t "));
    assert!(home.run(["trace", "--dot"]).well().stdout.starts_with("digraph"));
    assert!(home.run(["completions", "bash"]).well().stdout.contains("_ion"));
    home.run(["module", "delete", "m"]).well();
    home.run(["gc", "--grace", "0s"]).well();
}

/// `ion module create` registers the same module from flags as from a pipeline file. If a flag is
/// wrong, the error names no place in a file.
#[test]
fn a_module_of_flags_is_as_of_a_file() {
    let home = Home::new();
    let file = home.write(
        "pipeline.yaml",
        "modules:\n  crops:\n    on: [frame, photo]\n    emits: [crop]\n    image: registry.example/crops:1\n    run: [/app/crops, --fast, 'a \"b\\c']\n    \
         executor: kubernetes\n    network: host\n    user: '1000:1000'\n    resources: {cpu: 500m, memory: 256Mi, gpu: 1}\n    \
         env: {TOP: '10', EMPTY: ''}\n    commit: on-success\n    timeout: 1h\n    retries: 0\n    concurrency: 7\n",
    );
    // `ion module get` does not print the values of `env`.
    let registered = || home.document("modules", "crops");
    home.run(["module", "create", "--pipeline", file.to_str().unwrap()]).well();
    let expected = registered();
    home.run(["module", "delete", "crops"]).well();
    let name = ["module", "create", "-n", "crops"];
    let flags = [
        "-i",
        "frame",
        "-i",
        "photo",
        "-o",
        "crop",
        "--image",
        "registry.example/crops:1",
        "--executor",
        "kubernetes",
        "--network",
        "host",
        "--user",
        "1000:1000",
        "--resource",
        "cpu=500m",
        "--resource",
        "memory=256Mi",
        "--resource",
        "gpu=1",
        "--env",
        "TOP=10",
        "--env",
        "EMPTY=",
        "--commit",
        "on-success",
        "--timeout",
        "1h",
        "--retries",
        "0",
        "--concurrency",
        "7",
        "--",
        "/app/crops",
        "--fast",
        "a \"b\\c",
    ];
    home.run([&name[..], &flags].concat()).well();
    let mut module = registered();
    module["pipeline"] = expected["pipeline"].clone();
    assert_eq!(module, expected);
    // A module with an image may leave out its program, because the image has one, and its
    // executor, which is `container` then.
    home.run([&name[..], &["-i", "frame", "--image", "crops:1"]].concat()).well();
    assert_eq!(registered()["executor"], "container");
    let cases: [(&[&str], i32, &str); 13] = [
        (&["--", "cat"], 2, "--on <TYPE>"),
        (&["-i", "t"], 2, "<ARGV>..."),
        (&["-i", "t", "--pipeline", "p.yaml"], 2, "cannot be used with"),
        (&["-i", "t", "--env", "TOP", "--", "cat"], 2, "KEY=VALUE"),
        (&["-i", "a b", "--", "cat"], 1, "\"a b\" cannot be an event type"),
        (&["-i", "t", "--", "nosuch"], 1, "is in no folder of PATH"),
        (
            &["-i", "t", "--executor", "moon", "--", "cat"],
            1,
            "allowed: local, container, kubernetes",
        ),
        (&["-i", "t", "--executor", "kubernetes", "--", "cat"], 1, "needs an \"image\""),
        (&["-i", "t", "--image", "a b"], 1, "allowed: name:tag"),
        (&["-i", "t", "--user", "1000", "--", "cat"], 1, "\"user\" belongs to \"image\""),
        (&["-i", "t", "--image", "i", "--resource", "memory=64"], 1, "as in 256Mi or 2G"),
        (&["-i", "t", "--commit", "never", "--", "cat"], 1, "on-success"),
        (&["-i", "t", "--timeout", "soon", "--", "cat"], 1, "write it as 30s"),
    ];
    for (flags, code, words) in cases {
        let ran = home.run([&["module", "create", "-n", "wrong"], flags].concat());
        assert_eq!(ran.code, Some(code), "{ran:#?}");
        assert!(ran.stderr.contains(words) && !ran.stderr.contains("yaml:"), "{ran:#?}");
    }
    home.run(["module", "get", "wrong"]).failed();
}

/// A running dispatcher serves a module that is registered, follows a change of it, and stops
/// serving it when it is deleted.
#[test]
fn modules_come_change_and_go_while_a_dispatcher_runs() {
    let home = Home::new();
    let dispatcher = home.start("dispatch", &[]);
    let create = |says: &str| {
        let script = format!("echo '{{\"eventType\":\"{says}\"}}' > /ion/out/events/e.json");
        let words = [
            "module", "create", "-n", "speaker", "-i", "ask", "-o", says, "--", "sh", "-c", &script,
        ];
        home.run(words).well();
    };
    let ask = || home.run(["event", "create", "ask", "--wait"]);
    let answer = || {
        ask();
        let trace = home.trace();
        let answers = trace
            .iter()
            .filter(|one| one["context"]["name"] == "speaker" && one["type"].is_string());
        answers.map(|event| event["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    create("hello");
    assert_eq!(answer(), ["hello"]);
    create("goodbye");
    wait_for("the dispatcher to follow the change", || answer() == ["goodbye"]);
    home.run(["module", "delete", "speaker"]).well();
    wait_for("the dispatcher to stop serving the module", || {
        home.log_of("dispatch").contains("not registered any more")
    });
    assert!(ask().failed().stderr.contains("nothing will start"));
    assert_eq!(answer(), Vec::<String>::new());
    create("back");
    wait_for("the dispatcher to serve the module again", || answer() == ["back"]);
    assert_eq!(dispatcher.stop(), Some(0));
    home.run(["check"]).well();
}

/// The log of an ancestor's job grows while that job runs, and is stored when that job ends. A job
/// that reads the log again and again sees its first line and, later, its last one.
#[test]
fn a_job_sees_the_log_of_a_running_ancestor_grow_and_end() {
    let home = Home::new();
    let gate = home.path().join("gate");
    home.program(
        "parent",
        &format!(
            "#!/bin/sh\necho begun\necho '{{\"eventType\":\"born\"}}' > /ion/out/events/e\n\
             until [ -e {} ]; do sleep 0.05; done\necho over\n",
            gate.display()
        ),
    );
    home.program(
        "child",
        &format!(
            "#!/bin/sh\nlog=/ion/events/trigger/log\n\
             for i in $(seq 200); do grep -q begun $log && break; sleep 0.1; done\ntouch {}\n\
             for i in $(seq 200); do grep -q over $log && exit 0; sleep 0.1; done\nexit 1\n",
            gate.display()
        ),
    );
    let file = home.write(
        "pipeline.yaml",
        "modules:\n  parent: {on: [start], emits: [born], run: [./parent], retries: 0}\n  \
         child: {on: [born], run: [./child], retries: 0}\n",
    );
    let up = home.up(&file);
    home.run(["event", "create", "start", "--wait"]).well();
    assert_eq!(home.jobs().iter().filter(|job| job["state"] == "succeeded").count(), 2);
    assert_eq!(up.stop(), Some(0));
}

/// A module with many messages does not take the slots of other modules. With two slots, each of 60
/// other modules has its job done before half of the flood is done.
#[test]
fn a_flood_on_one_module_holds_up_no_other() {
    /// The number of modules that get one event each.
    const OTHERS: usize = 60;
    /// The number of events that one further module gets.
    const FLOOD: usize = 100;
    let home = Home::new();
    let others: String =
        (0..OTHERS).map(|n| format!("  m{n}: {{on: [t{n}], run: [\"true\"]}}\n")).collect();
    let file = home.write(
        "pipeline.yaml",
        format!("modules:\n  flood: {{on: [flood], run: [sleep, \"0.2\"]}}\n{others}"),
    );
    home.run(["module", "create", "--pipeline", "pipeline.yaml"]).well();
    // All events are committed before a job can run, those of the flood first.
    (0..FLOOD).for_each(|_| drop(home.run(["event", "create", "flood"]).well()));
    (0..OTHERS).for_each(|n| drop(home.run(["event", "create", &format!("t{n}")]).well()));
    let up = home.up_with(&["--jobs", "2"], &file);
    let succeeded = |flood: bool| {
        let of = |job: &&Value| (job["module"] == "flood") == flood && job["state"] == "succeeded";
        home.jobs().iter().filter(of).count()
    };
    wait_for("the job of each other module to succeed", || succeeded(false) == OTHERS);
    let flooded = succeeded(true);
    assert!(
        flooded < FLOOD / 2,
        "{flooded} of {FLOOD} jobs of the flood ended before the last job of the others"
    );
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn one_dead_job_that_cannot_be_helped_holds_up_no_other() {
    let home = Home::new();
    let file = pipeline(
        &home,
        "  a: {on: [x], run: [\"false\"], retries: 0}\n  z: {on: [x], run: [\"false\"], retries: 0}\n",
    );
    let up = home.up(&file);
    (0..2).for_each(|_| drop(home.run(["event", "create", "x", "--wait"]).failed()));
    assert_eq!(up.stop(), Some(0));
    home.run(["module", "delete", "a"]).well();
    let ran = home.run(["dead", "retry", "--all"]).failed();
    assert_eq!(ran.stderr.matches("of z is queued again").count(), 2, "{ran:#?}");
    assert_eq!(ran.stderr.matches("of a cannot be retried: ").count(), 2, "{ran:#?}");
    assert!(ran.stderr.contains("2 jobs are queued again, 2 are not"), "{ran:#?}");
}

#[test]
fn a_gathering_module_finds_the_values_and_a_folder_of_each_event() {
    let home = Home::new();
    home.program(
        "split",
        "#!/bin/sh\nset -e\necho x > /ion/out/data/f\n\
         echo '{\"eventType\": \"part\", \"n\": \"one\", \"files\": [\"f\"]}' > /ion/out/events/1.json\n\
         echo '{\"eventType\": \"part\", \"n\": \"two\"}' > /ion/out/events/2.json\n",
    );
    home.program(
        "sum",
        "#!/bin/sh\nset -e\ncd /ion/in\nfor n in $(ls data); do echo $n $(cat events/$n/meta/n) $(ls data/$n | wc -l); done | sort -k 2\n\
         grep -q two events/*/eventmeta.json\n",
    );
    let file = pipeline(
        &home,
        "  split: {on: [x], emits: [part], run: [./split]}\n  sum: {gather: part, per: x, run: [./sum], retries: 0}\n",
    );
    let up = home.up(&file);
    home.run(["event", "create", "x", "--wait"]).well();
    let sum = home.jobs().into_iter().find(|job| job["module"] == "sum").unwrap();
    let said = home.run(["job", "logs", sum["id"].as_str().unwrap()]).well().stdout;
    let rows: Vec<&str> = said.lines().map(|line| &line[2..]).collect();
    assert_eq!(rows, ["one 1", "two 0"], "{said}");
    assert_eq!(up.stop(), Some(0));
}
