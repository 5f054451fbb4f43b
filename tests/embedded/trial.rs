//! Tests of `ion run`, which runs one module once, without a dispatcher.

use std::process::Stdio;

use crate::support::{CommandOutput, Home, wait_for};

#[test]
fn what_a_trial_run_leaves_is_named_and_can_be_brought_out() {
    let home = Home::new();
    let script = "cd /ion/out/data; mkdir -p a/b; echo one > n; echo two > a/b/two; ln -s n link; mkfifo pipe; chmod 750 n";
    let ran = home.run(["run", "--", "sh", "-c", script]).well();
    assert!(
        ran.stderr.contains("no event names a/b/two (4 B), n (4 B) in out/data, so nothing of it is kept; --out DIR brings it out"),
        "{ran:#?}"
    );
    let out = home.path().join("results");
    let ran = home
        .run(["run", "--out", "results", "--", "sh", "-c", &format!("{script}; exit 1")])
        .failed();
    assert!(ran.stderr.contains("2 files of out/data (8 B) are in results"), "{ran:#?}");
    assert_eq!(std::fs::read_to_string(out.join("a/b/two")).unwrap(), "two\n");
    assert_eq!(std::fs::read_link(out.join("link")).unwrap().to_str(), Some("n"));
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(out.join("n").metadata().unwrap().permissions().mode() & 0o777, 0o750);
    let ran = home.run(["run", "--out", "results", "--", "true"]).failed();
    assert!(ran.stderr.contains("results is not an empty folder"), "{ran:#?}");
    // `ion run` does not mention a file that an event names, because that file is kept.
    let script = "echo x > /ion/out/data/n; echo '{\"eventType\":\"y\",\"files\":[\"n\"]}' > /ion/out/events/y.json";
    let ran = home.run(["run", "--", "sh", "-c", script]).well();
    assert!(!ran.stderr.contains("no event names"), "{ran:#?}");
    assert!(
        !std::fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .contains(home.state().to_str().unwrap())
    );
}

/// The job of `ion run` is a job like any other: its record says that it runs, and a person may
/// cancel it.
#[test]
fn a_trial_run_can_be_seen_and_cancelled() {
    let home = Home::new();
    let mut ion = home.ion();
    ion.args(["run", "--", "sleep", "1000"]).stdout(Stdio::null()).stderr(Stdio::piped());
    let run = ion.spawn().unwrap();
    wait_for("the job to run", || home.jobs().iter().any(|job| job["state"] == "running"));
    let job = home.jobs().remove(0);
    home.run(["job", "cancel", job["id"].as_str().unwrap()]).well();
    let ended = CommandOutput::of(run.wait_with_output().unwrap());
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert!(ended.stderr.contains("run: cancelled"), "{ended:#?}");
    assert_eq!(home.jobs()[0]["state"], "cancelled");
}
