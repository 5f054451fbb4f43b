//! Tests of secrets where modules run otherwise than as programs of this user with namespaces: in
//! containers, without namespaces, and for other users.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use crate::support::images::Image;
use crate::support::{CommandOutput, Home, ION, may_mount_or_runs_where_it_may};

const VALUE: &str = "hidden-of-the-container-4711";

/// Returns a home with one secret, `TOKEN`.
fn home() -> Home {
    let mut home = Home::new();
    let token = home.write("vault/TOKEN", format!("{VALUE}\n"));
    fs::set_permissions(token.parent().unwrap(), Permissions::from_mode(0o700)).unwrap();
    home.env.push(("ION_SECRETS".into(), home.path().join("vault").display().to_string()));
    home
}

fn contains(folder: &PathBuf) -> bool {
    let grep = Command::new("grep").args(["-rq", VALUE]).arg(folder).status().unwrap();
    grep.success()
}

/// Reads the secret as whoever the module runs as.
const READ: &str = "set -e; test \"$(sha256sum /run/secrets/TOKEN)\" = \"$(cat /ion/in/data/f)\"; \
    test \"$(stat -c %a:%u /run/secrets/TOKEN)\" = 400:$(id -u); ! touch /run/secrets/x 2>/dev/null; \
    test \"$ION_SECRETS_DIR\" = /run/secrets; echo said $(cat /run/secrets/TOKEN)";

#[test]
fn a_container_reads_its_secrets_at_the_same_path() {
    if !may_mount_or_runs_where_it_may("secrets::a_container_reads_its_secrets_at_the_same_path") {
        return;
    }
    let home = home();
    Image::of(READ).write(&home, "image");
    // The event's file tells the module what to expect.
    let sum = Command::new("sha256sum").arg(home.path().join("vault/TOKEN")).output().unwrap();
    home.write("f", format!("{}  /run/secrets/TOKEN", String::from_utf8_lossy(&sum.stdout[..64])));
    let own_user = if rustix::process::geteuid().is_root() { ", user: worker" } else { "" };
    home.write(
        "pipeline.yaml",
        format!(
            "modules:\n  own: {{on: [x], image: 'oci:image', secrets: [TOKEN]}}\n  \
             worker: {{on: [x], image: 'oci:image', secrets: [TOKEN]{own_user}}}\n  \
             base: {{on: [x], image: 'oci:image', secrets: [TOKEN], env: {{HANDLER_BASE_DIR: /tree}}, \
             run: [sh, -c, 'test -n \"$(cat /run/secrets/TOKEN)\"']}}\n  \
             none: {{on: [x], image: 'oci:image', run: [sh, -c, 'test -z \"$(ls /run/secrets)\"']}}\n  \
             link: {{on: [x], emits: [y], stdio: true, image: 'oci:image', secrets: [TOKEN], \
             run: [sh, -c, 'cat; cat /run/secrets/TOKEN >&2']}}\n"
        ),
    );
    for module in ["own", "worker", "base", "none", "link"] {
        let ran = home.run(["run", module, "--file", "f"]).well();
        assert!(!ran.stderr.contains(VALUE), "{ran:?}");
        if matches!(module, "own" | "worker") {
            assert!(ran.stderr.contains("said ***TOKEN***"), "{module}: {ran:?}");
        }
    }
    assert!(!contains(&home.state()));
}

#[test]
fn without_namespaces_the_secrets_are_in_a_folder_of_the_job_that_goes_with_it() {
    let home = home();
    let script = "set -e; test \"$(cat \"$ION_SECRETS_DIR\"/TOKEN)\" = hidden-of-the-container-4711; \
        test \"$(stat -c %a \"$ION_SECRETS_DIR\"/TOKEN)\" = 400; \
        test \"$(stat -c %a \"$ION_SECRETS_DIR\")\" = 700; echo \"$ION_SECRETS_DIR\" > place; \
        cat \"$ION_SECRETS_DIR\"/TOKEN";
    home.program("read", &format!("#!/bin/sh\n{script}\n"));
    home.write("pipeline.yaml", "modules:\n  m: {on: [x], run: [./read], secrets: [TOKEN]}\n");
    let ran = home.run(["--no-namespaces", "run", "m"]).well();
    assert!(ran.stderr.contains("***TOKEN***") && !ran.stderr.contains(VALUE), "{ran:?}");
    let place = fs::read_to_string(home.path().join("place")).unwrap();
    let place = PathBuf::from(place.trim());
    assert!(place.starts_with(home.state().join("jobs")) && !place.exists(), "{place:?}");
    assert!(!contains(&home.state()));
    // A link has no such folder.
    home.write(
        "pipeline.yaml",
        "modules:\n  m: {on: [x], emits: [y], stdio: true, run: [cat], secrets: [TOKEN]}\n",
    );
    let refused = home.run(["--no-namespaces", "run", "m"]).failed().stderr;
    assert!(refused.contains("namespaces of its own"), "{refused}");
}

#[test]
fn an_ordinary_users_module_reads_its_secrets_and_not_the_folder() {
    let home = home();
    let ion = home.path().join("ion");
    fs::copy(ION, &ion).unwrap();
    let script = "set -e; export HOME=$PWD ION_HOME=$PWD/state ION_SECRETS=$PWD/vault; \
        ./ion run --secret GIVEN=vault/TOKEN -- sh -ec 'test \"$(stat -c %a:%u /run/secrets/GIVEN)\" = 400:$(id -u); \
        test \"$(ls /run/secrets)\" = GIVEN; ls /run > /ion/out/data/run; test -z \"$(ls vault)\"; \
        ! umount /run/secrets 2>/dev/null; cat /run/secrets/GIVEN'; \
        ./ion run -- sh -ec 'test ! -e /run/secrets/GIVEN'";
    let mut shell = Command::new("sh");
    if rustix::process::geteuid().is_root() {
        let enter = "set -e; mount --rbind . /mnt; cd /mnt; test -e fuse || mknod fuse c 10 229; chmod 666 fuse; \
             mount --bind fuse /dev/fuse; chown -R 65534 .; \
             exec setpriv --reuid=65534 --regid=65534 --clear-groups sh -c \"$SCRIPT\"";
        shell = Command::new("unshare");
        shell.args(["-m", "sh", "-c", enter]);
    } else {
        shell.args(["-c", script]);
    }
    let output =
        shell.env("SCRIPT", script).env_remove("ION_LOG").current_dir(home.path()).output();
    let ran = CommandOutput::of(output.unwrap()).well();
    assert!(ran.stderr.contains("***GIVEN***") && !ran.stderr.contains(VALUE), "{ran:?}");
}
