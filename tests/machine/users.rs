//! Tests which users can run jobs: root, an ordinary user in a user namespace, and any user where
//! namespaces are not allowed. Also tests that no mount is left, and which commands make a home.

use std::path::Path;
use std::process::Command;

use crate::support::{CommandOutput, Home, signal, wait_for};

const MODULE: &str = "set -e; test $(id -u) = $(stat -c %u $ION_DIR/out/data); cat $ION_DIR/in/data/f; \
    cp $ION_DIR/in/data/f $ION_DIR/out/data/c; echo more > $ION_DIR/out/data/d; \
    echo '{\"eventType\":\"x\",\"files\":[\"c\",\"d\"]}' > $ION_DIR/out/events/a; test -e $ION_DIR/events/published/a.json";

/// If root runs this test, the job runs as `nobody`, in a mount namespace in which every user may
/// open `/dev/fuse`, as on ordinary distributions.
#[test]
fn an_ordinary_user_gets_a_user_namespace_with_the_tree_at_ion() {
    let home = Home::new();
    home.write("f", "content\n");
    let ion = home.path().join("ion");
    std::fs::copy(crate::support::ION, &ion).unwrap();
    let job = r#"env HOME=$PWD ION_HOME=$PWD/state ./ion --json run --file f -- sh -c 'test $ION_DIR = /ion; '"$MODULE""#;
    let script = if rustix::process::geteuid().is_root() {
        // An ordinary user may not enter root's target folder, so the test's folder is bound to a
        // path that the user may enter.
        format!(
            "set -e; mount --bind . /mnt; cd /mnt; mknod fuse c 10 229; chmod 666 fuse; mount --bind fuse /dev/fuse; \
             chown -R 65534 .; exec setpriv --reuid=65534 --regid=65534 --clear-groups {job}"
        )
    } else {
        job.to_owned()
    };
    let mut shell = Command::new("sh");
    if rustix::process::geteuid().is_root() {
        shell = Command::new("unshare");
        shell.args(["-m", "sh"]);
    }
    let output = shell
        .args(["-c", &script])
        .env("MODULE", MODULE)
        .current_dir(home.path())
        .output()
        .unwrap();
    let ran = CommandOutput::of(output).well();
    assert_eq!(ran.types(), ["x"], "{ran:#?}");
    assert!(ran.stderr.contains("| content"), "{ran:#?}");
}

#[test]
fn without_namespaces_ion_dir_says_where_the_tree_is_and_nothing_stays() {
    let home = Home::new();
    home.write("f", "content\n");
    let outlives = format!("test $ION_DIR != /ion; setsid sleep 600 & {MODULE}");
    let ran = home
        .run(["--json", "--no-namespaces", "run", "--file", "f", "--", "sh", "-c", &outlives])
        .well();
    assert_eq!(ran.types(), ["x"], "{ran:#?}");
    assert!(!mounts().contains(home.state().to_str().unwrap()), "the job's mount is gone");
    let failed =
        home.run(["--json", "--no-namespaces", "run", "--", "sh", "-c", "kill -9 $$"]).failed();
    assert!(failed.stderr.contains("killed by signal 9"), "{failed:#?}");
}

#[test]
fn a_mount_that_a_killed_run_left_is_swept_at_the_next_start() {
    let home = Home::new();
    home.program("long", "#!/bin/sh\ntest -e $GO || { touch $BEGUN; sleep 600; }\n");
    let (go, begun) = (home.path().join("go"), home.path().join("begun"));
    let file = home.write(
        "pipeline.yaml",
        format!(
            "modules:\n  long: {{on: [start], run: [./long], env: {{GO: {}, BEGUN: {}}}}}\n",
            go.display(),
            begun.display()
        ),
    );
    let up = home.up_with(&["--no-namespaces"], &file);
    home.run(["event", "create", "start"]).well();
    wait_for("the job to begin", || begun.exists());
    up.kill();
    assert!(
        mounts().contains(home.state().to_str().unwrap()),
        "without a namespace the mount is left"
    );
    std::fs::write(&go, "").unwrap();
    let up = home.up_with(&["--no-namespaces"], &file);
    wait_for("the job to end", || home.jobs()[0]["state"] == "succeeded");
    assert_eq!(up.stop(), Some(0));
    assert!(!mounts().contains(home.state().to_str().unwrap()), "nothing is left mounted");
}

fn mounts() -> String {
    std::fs::read_to_string("/proc/self/mounts").unwrap()
}

#[test]
fn a_module_sees_nothing_of_the_daemons_environment() {
    let home = Home::new();
    // An ordinary user may not even list the descriptors of the first process.
    let script =
        "cat /proc/1/environ /proc/self/environ | tr '\\0' '\\n'; ls -l /proc/1/fd || true";
    for flags in [&[][..], &["--no-namespaces"][..]] {
        let script = if flags.is_empty() {
            script
        } else {
            "cat /proc/$PPID/environ /proc/self/environ | tr '\\0' '\\n'"
        };
        let output = home
            .ion()
            .env("ION_TEST_PASSWORD", "hunter2")
            .args(flags)
            .args(["run", "--", "sh", "-c", script])
            .output();
        let ran = CommandOutput::of(output.unwrap()).well();
        assert!(
            ran.stderr.contains("ION_EVENT_ID=") && !ran.stderr.contains("hunter2"),
            "{ran:#?}"
        );
        assert!(!ran.stderr.contains("/dev/fuse"), "only the daemon holds the device: {ran:#?}");
    }
}

#[test]
fn a_mount_that_somebody_stands_in_is_taken_away_and_made_again() {
    let home = Home::new();
    home.run(["event", "create", "start"]).well();
    let (at, log) = (home.path().join("plane"), home.path().join("said"));
    let at = at.to_str().unwrap();
    let (mut stands, mut times) = (None, 0);
    for signal_of in ["INT", "KILL", "TERM"] {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut mount = home.ion().args(["mount", at]).stderr(file).spawn().unwrap();
        times += 1;
        let said = || std::fs::read_to_string(&log).unwrap();
        wait_for("the plane to be mounted", || said().matches("mounted at ").count() == times);
        assert!(std::fs::read_dir(format!("{at}/correlations")).unwrap().count() > 0);
        // A program that keeps the mount as its working folder.
        let mut shell = std::process::Command::new("sleep");
        let old: Option<std::process::Child> =
            stands.replace(shell.arg("600").current_dir(at).spawn().unwrap());
        old.into_iter().for_each(end);
        signal(mount.id(), signal_of);
        let code = mount.wait().unwrap().code();
        let said = said();
        assert_eq!(code, (signal_of != "KILL").then_some(0), "{said}");
        if code.is_some() {
            assert!(!mounts().contains(at), "nothing is left mounted");
            assert!(said.contains("is unmounted while programs use it"), "{said}");
        }
    }
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.contains("was left mounted by a run that was killed; it is unmounted"), "{said}");
    stands.into_iter().for_each(end);
}

fn end(mut child: std::process::Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Commands that only read, or that act on what exists.
const LOOKS: [&[&str]; 17] = [
    &["trace"],
    &["job", "list"],
    &["job", "get", "x"],
    &["job", "logs", "x"],
    &["job", "cancel", "x"],
    &["job", "retry", "x"],
    &["event", "get", "x"],
    &["event", "peek", "x"],
    &["module", "list"],
    &["module", "get", "x"],
    &["module", "delete", "x"],
    &["cancel", "x"],
    &["dead", "list"],
    &["dead", "retry", "--all"],
    &["check"],
    &["gc"],
    &["mount", "there"],
];

#[test]
fn a_command_that_only_looks_makes_nothing_and_finds_the_home_above() {
    let home = Home::new();
    // The folder is not below this repository, because people may run Ion from there, and then a
    // command would find their home.
    let apart = tempfile::tempdir().unwrap();
    let folder = apart.path().join("project");
    let deep = folder.join("a/b");
    std::fs::create_dir_all(&deep).unwrap();
    let ion = |at: &Path, words: &[&str]| {
        let mut ion = home.ion();
        CommandOutput::of(ion.env_remove("ION_HOME").current_dir(at).args(words).output().unwrap())
    };
    let empty = || std::fs::read_dir(&deep).unwrap().next().is_none();
    for words in LOOKS {
        let ran = ion(&deep, words).failed();
        assert!(
            ran.stderr.contains(".ion/ion.db is not there: nothing has been run from this folder"),
            "{words:?}: {ran:#?}"
        );
        assert!(empty(), "{words:?}");
    }
    let doctor = ion(&deep, &["doctor"]).well();
    assert!(doctor.stdout.contains(".ion, which is not there yet"), "{doctor:#?}");
    assert!(empty());
    // A command finds the home of a folder above its own.
    ion(&folder, &["event", "create", "start", "--id", "one"]).well();
    assert!(folder.join(".ion/ion.db").exists());
    for words in [
        &["trace"][..],
        &["event", "get", "one"],
        &["job", "list"],
        &["event", "create", "more"],
        &["doctor"],
    ] {
        ion(&deep, words).well();
        assert!(empty(), "{words:?}");
    }
    assert!(ion(&deep, &["trace", "one"]).well().stdout.contains("start"));
    // A home that belongs to another user is refused.
    if rustix::process::getuid().is_root() {
        std::os::unix::fs::chown(folder.join(".ion"), Some(65534), Some(65534)).unwrap();
        for words in [&["trace"][..], &["up"], &["event", "create", "x"]] {
            let ran = ion(&deep, words).failed();
            assert!(
                ran.stderr
                    .contains(".ion belongs to user 65534: run ion as that user, or name a home"),
                "{ran:#?}"
            );
        }
    }
}
