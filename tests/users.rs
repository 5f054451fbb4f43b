//! Who may run jobs: root, an ordinary user in a user namespace, and anybody where no namespace is allowed.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that cannot go on panics; it starts programs"
)]

mod support;

use std::process::Command;

use support::{Home, Ran, wait_for};

const MODULE: &str = "set -e; test $(id -u) = $(stat -c %u $ION_DIR/out/data); cat $ION_DIR/in/data/f; \
    cp $ION_DIR/in/data/f $ION_DIR/out/data/c; echo more > $ION_DIR/out/data/d; \
    echo '{\"eventType\":\"x\",\"files\":[\"c\",\"d\"]}' > $ION_DIR/out/events/a; test -e $ION_DIR/events/published/a.json";

/// Root tries it as `nobody`, with a `/dev/fuse` that users may open, as distributions have it: bound over the machine's
/// own in a mount namespace of this test.
#[test]
fn an_ordinary_user_gets_a_user_namespace_with_the_tree_at_ion() {
    let home = Home::new();
    home.write("f", "content\n");
    let ion = home.path().join("ion");
    std::fs::copy(support::ION, &ion).unwrap();
    let job = r#"env HOME=$PWD ION_HOME=$PWD/state ./ion --json run --file f -- sh -c 'test $ION_DIR = /ion; '"$MODULE""#;
    let script = if rustix::process::geteuid().is_root() {
        // Below the target folder of root an ordinary user may not walk: the folder is bound where they may.
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
    let output = shell.args(["-c", &script]).env("MODULE", MODULE).current_dir(home.path()).output().unwrap();
    let ran = Ran::of(output).well();
    assert_eq!(ran.types(), ["x"], "{ran:#?}");
    assert!(ran.stderr.contains("| content"), "{ran:#?}");
}

#[test]
fn without_namespaces_ion_dir_says_where_the_tree_is_and_nothing_stays() {
    let home = Home::new();
    home.write("f", "content\n");
    let outlives = format!("test $ION_DIR != /ion; setsid sleep 600 & {MODULE}");
    let ran =
        home.run(["--json", "--no-namespaces", "run", "--file", "f", "--", "sh", "-c", &outlives]).well();
    assert_eq!(ran.types(), ["x"], "{ran:#?}");
    assert!(!mounts().contains(home.state().to_str().unwrap()), "its mount is gone");
    let failed = home.run(["--json", "--no-namespaces", "run", "--", "sh", "-c", "kill -9 $$"]).failed();
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
    assert!(mounts().contains(home.state().to_str().unwrap()), "without a namespace the mount is left");
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
    // An ordinary user may not even look at the first process.
    let script = "cat /proc/1/environ /proc/self/environ | tr '\\0' '\\n'; ls -l /proc/1/fd || true";
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
        let ran = Ran::of(output.unwrap()).well();
        assert!(ran.stderr.contains("ION_EVENT_ID=") && !ran.stderr.contains("hunter2"), "{ran:#?}");
        assert!(!ran.stderr.contains("/dev/fuse"), "only the daemon holds the device: {ran:#?}");
    }
}
