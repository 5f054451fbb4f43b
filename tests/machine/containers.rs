//! Tests modules that run from images: what they see, which resources they may use, and that they
//! leave nothing behind.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a test that cannot go on panics; it starts programs and prints figures"
)]

mod archives;
mod fetching;
mod layers;
mod podman;
mod programs;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::support::chains::address;
use crate::support::http::{Answer, request};
use crate::support::images::{Entry, Image, largest_blob};
use crate::support::servers::Registry;
use crate::support::{CommandOutput, Home, below, may_mount_or_runs_where_it_may, wait_for};
use serde_json::{Value, json};

/// A script that reads its input, writes files and commits an event.
const MODULE: &str = "set -e; cat /ion/in/data/f > /ion/out/data/copy; mkdir -p /ion/out/data/d; echo more > /ion/out/data/d/more; \
    echo '{\"n\": \"1\"}' > /ion/out/insights.json; \
    echo '{\"eventType\":\"made\",\"files\":[\"copy\",\"d/more\"],\"n\":\"7\"}' > /ion/out/events/made.json; \
    test -e /ion/events/published/made.json";

fn pipeline(home: &Home, modules: &str) -> PathBuf {
    home.write("pipeline.yaml", format!("name: test\nmodules:\n{modules}"))
}

/// Runs a module of the pipeline once, on a file `f` that this function writes.
fn run(home: &Home, module: &str) -> CommandOutput {
    home.write("f", "content\n");
    run_with(home, module)
}

/// Runs a module of the pipeline once, on the file `f` that exists already.
fn run_with(home: &Home, module: &str) -> CommandOutput {
    home.run(["--json", "run", module, "--file", "f", "--pipeline", "pipeline.yaml"])
}

/// Runs a script in an image, as the only module `m` of a pipeline. `more` has further settings of
/// the module.
fn script(home: &Home, script: &str, more: &str) -> CommandOutput {
    Image::of("exit 9").write(home, "image");
    let script = json!(script);
    pipeline(
        home,
        &format!(
            "  m: {{on: [x], emits: [made], image: 'oci:image', run: [sh, -c, {script}]{more}}}\n"
        ),
    );
    run(home, "m")
}

/// Returns the machine's processes that have this word in their command line.
fn processes(word: &str) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|one| one == word.as_bytes())
    })
    .collect()
}

/// Returns the control groups of jobs that a process is in.
fn groups_of(pid: u32) -> Vec<PathBuf> {
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let groups = own.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controller, path) = (fields.next()?, fields.next()?);
        path.contains("/ion/")
            .then(|| Path::new("/sys/fs/cgroup").join(controller).join(&path[1..]))
    });
    groups.collect()
}

/// Returns whether all these control groups have been removed.
fn gone(groups: &[PathBuf]) -> bool {
    groups.iter().all(|group| !group.exists())
}

#[test]
fn a_module_of_an_image_publishes_what_it_would_on_this_machine() {
    if !may_mount_or_runs_where_it_may(
        "a_module_of_an_image_publishes_what_it_would_on_this_machine",
    ) {
        return;
    }
    let home = Home::new();
    Image::of(MODULE).write(&home, "image");
    home.program("module", &format!("#!/bin/sh\n{MODULE}\n"));
    pipeline(
        &home,
        "  here: {on: [x], emits: [made], run: [./module]}\n  image: {on: [x], emits: [made], image: 'oci:image:v1'}\n  told: {on: [x], emits: [made], image: 'oci:image', run: [/module, word]}\n",
    );
    let events: Vec<_> = ["here", "image", "told"]
        .map(|module| run(&home, module).well().documents().remove(0))
        .to_vec();
    for event in &events[1..] {
        assert_eq!((&event["type"], &event["data"]), (&events[0]["type"], &events[0]["data"]));
        for n in 0..2 {
            for field in ["name", "size", "checksums"] {
                assert_eq!(event["files"][n][field], events[0]["files"][n][field], "{field}");
            }
        }
    }
    home.run(["check", "--deep"]).well();
}

#[test]
fn a_container_has_a_root_that_nobody_writes_no_network_and_no_rights() {
    let home = Home::new();
    let ran = script(
        &home,
        "set -e; ! touch /x 2>/dev/null; ! touch /bin/x 2>/dev/null; touch /tmp/x /dev/shm/x; \
         test \"$(ip -o addr | grep -vc ' lo ')\" = 0; ! ls /home 2>/dev/null; \
         grep -q 'CapBnd:.0000000000000000' /proc/self/status; grep -q 'NoNewPrivs:.1' /proc/self/status; grep -q 'Seccomp:.2' /proc/self/status; \
         ! mount -t tmpfs x /tmp 2>/dev/null; ! mkdir /ion/in/data/x 2>/dev/null; \
         test $(id -u) = 0; test $(hostname) = ion; test \"$OF_IMAGE\" = yes; test \"$OWN\" = 1; test \"$(pwd)\" = /etc; \
         test \"$(ps | wc -l)\" -lt 8; echo said >/dev/stderr; echo also >/dev/stdout; echo '{\"eventType\":\"made\"}' > /ion/out/events/e",
        ", env: {OWN: '1'}",
    )
    .well();
    assert_eq!(ran.types(), ["made"]);
    assert!(ran.stderr.contains("| said") && ran.stderr.contains("| also"), "{ran:#?}");
    script(
        &home,
        "test \"$(id -u):$(id -g)\" = 1234:1235 && touch /ion/out/data/x",
        ", user: worker",
    )
    .well();
    script(&home, "test \"$(id -u):$(id -g)\" = 77:88", ", user: '77:88'").well();
    script(
        &home,
        "ip -o link | grep -v ' lo:' || test ! -e /sys/class/net/eth0; test -s /etc/hosts",
        ", network: host",
    )
    .well();
    let unknown = script(&home, "true", ", user: nobody-known").failed();
    assert!(unknown.stderr.contains("the image knows no user \"nobody-known\""), "{unknown:#?}");
    pipeline(&home, "  m: {on: [x], image: 'oci:image', run: [no-such-program]}\n");
    let missing = run(&home, "m").failed();
    assert!(
        missing.stderr.contains("cannot be started") && missing.stderr.contains("no-such-program"),
        "{missing:#?}"
    );
}

#[test]
fn a_container_that_needs_more_memory_than_its_limit_is_told_apart() {
    let home = Home::new();
    let ran = script(
        &home,
        "head -c 300000000 /dev/zero | grep -c x",
        ", resources: {memory: 64Mi, cpu: 500m}",
    )
    .failed();
    assert!(ran.stderr.contains("out of memory: its limit is 64 MiB"), "{ran:#?}");
    // The control group knows what all processes of the container had together.
    let used = home.jobs()[0]["attempts"][0]["usage"].clone();
    let peak = used["peakBytes"].as_u64().unwrap();
    assert!((60 << 20..=64 << 20).contains(&peak) && used["cpuMs"].is_u64(), "{used}");
    script(&home, "head -c 3000000 /dev/zero | grep -c x; true", ", resources: {memory: 64Mi}")
        .well();
    let ran = script(&home, "kill -9 $$; exit 3", ", resources: {memory: 64Mi}").failed();
    assert!(!ran.stderr.contains("out of memory"), "{ran:#?}");
}

#[test]
fn a_container_hears_of_its_end_and_nothing_of_it_stays() {
    let home = Home::new();
    Image::of(
        "trap 'echo told; exit 5' TERM; echo begun > /ion/out/data/begun; sleep 987654 & wait",
    )
    .write(&home, "image");
    Image::of("trap '' TERM; while :; do sleep 987655; done").write(&home, "deaf");
    // Only a daemon of root can limit the resources of a container here.
    let own = rustix::process::geteuid();
    let bound = if own.is_root() { ", resources: {cpu: 500m, memory: 64Mi}" } else { "" };
    let file = pipeline(
        &home,
        &"  polite: {on: [a], image: 'oci:image', retries: 0BOUND}\n  slow: {on: [b], image: 'oci:deaf', retries: 0, timeout: 1s}\n  killed: {on: [c], image: 'oci:image'}\n"
            .replace("BOUND", bound),
    );
    let up = home.up(&file);
    let create = |event: &str| home.run(["event", "create", event]).well();
    let state = |module: &str| {
        let jobs = home.jobs();
        let job = jobs.iter().find(|job| job["module"] == module);
        job.map_or(String::new(), |job| job["state"].as_str().unwrap().to_owned())
    };
    create("a");
    wait_for("the job's program to run", || processes("987654").len() == 1);
    let groups = groups_of(processes("987654")[0]);
    let says = |file: &str, text: &str| {
        groups
            .iter()
            .any(|group| fs::read_to_string(group.join(file)).is_ok_and(|said| said.trim() == text))
    };
    if own.is_root() {
        assert!(says("cpu.max", "50000 100000") || says("cpu.cfs_quota_us", "50000"), "{groups:?}");
        assert!(
            says("memory.max", "67108864") || says("memory.limit_in_bytes", "67108864"),
            "{groups:?}"
        );
        assert!(says("pids.max", "4096"), "{groups:?}");
    }
    // Outside the container, the process's user has a number that no user of this machine has. With
    // an ordinary user's daemon, it is that user.
    let status = fs::read_to_string(format!("/proc/{}/status", processes("987654")[0])).unwrap();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    let uids: Vec<u32> = uid.split_whitespace().map(|uid| uid.parse().unwrap()).collect();
    assert!(
        uids.iter().all(|uid| if own.is_root() {
            *uid > 1_000_000_000
        } else {
            *uid == own.as_raw()
        }),
        "{status}"
    );
    let job = home.jobs()[0]["id"].as_str().unwrap().to_owned();
    home.run(["job", "cancel", &job]).well();
    wait_for("the job to end", || state("polite") == "cancelled");
    assert_eq!(home.run(["job", "logs", &job]).well().stdout, "told\nion: cancelled\n");
    create("b");
    wait_for("the job's time to be up", || state("slow") == "dead");
    assert!(processes("987655").is_empty() && processes("987654").is_empty());
    assert!(gone(&groups), "{groups:?}");
    // A daemon that is killed by SIGKILL leaves nothing behind either.
    create("c");
    wait_for("the job's program to run", || processes("987654").len() == 1);
    let groups = groups_of(processes("987654")[0]);
    assert_eq!(groups.is_empty(), !own.is_root(), "only root may make control groups");
    up.kill();
    wait_for("the job's processes to be gone", || processes("987654").is_empty());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(
        !mounts.contains(home.state().to_str().unwrap()) && !mounts.contains(".container"),
        "{mounts}"
    );
    wait_for("the job's control groups to be removed", || gone(&groups));
    let up = home.up_with(&["--lease", "2s"], &file);
    wait_for("the next attempt", || processes("987654").len() == 1);
    assert_eq!(up.stop(), Some(0));
    assert!(processes("987654").is_empty());
}

#[test]
fn an_image_that_is_missing_damaged_or_leads_out_is_refused() {
    let home = Home::new();
    let refused = |image: &str, words: &[&str]| {
        pipeline(&home, &format!("  m: {{on: [x], image: '{image}', run: [\"true\"]}}\n"));
        let ran = run(&home, "m");
        assert_ne!(ran.code, Some(0), "{ran:#?}");
        assert!(words.iter().all(|word| ran.stderr.contains(word)), "{words:?} {ran:#?}");
        let images = home.state().join("images");
        let left: Vec<_> = fs::read_dir(images)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        assert!(left.iter().all(|name| !name.to_str().unwrap().ends_with(".part")), "{left:?}");
    };
    refused("oci:nowhere", &["nowhere", "has no file oci-layout"]);
    let image = || Image::of("exit 0");
    image().write(&home, "tags");
    refused("oci:tags:v2", &["it has no tag \"v2\"; it has: v1"]);
    let damaged = image().write(&home, "damaged");
    let blob = largest_blob(&damaged);
    let mut bytes = fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&blob, &bytes).unwrap();
    refused("oci:damaged", &["its blob sha256:", "is damaged"]);
    fs::write(&blob, &bytes[..middle]).unwrap();
    refused("oci:damaged", &["is damaged"]);
    fs::remove_file(&blob).unwrap();
    refused("oci:damaged", &["cannot be used", "No such file"]);
    image().with(&[Entry::File("../../../../../../tmp/ion-escaped", b"x")]).write(&home, "dots");
    refused("oci:dots", &["leads out of the image"]);
    refused("docker-archive:nothing.tar", &["nothing.tar"]);
    refused("oci-archive:nothing.tar", &["nothing.tar"]);
    // Real images have files below links with an absolute target. The target is a path of the
    // image, whatever is at that path on this machine.
    let (outside, also) =
        (tempfile::tempdir_in("/var/tmp").unwrap(), tempfile::tempdir_in("/var/tmp").unwrap());
    let absolute = outside.path().to_str().unwrap();
    let dots = format!("../../../../../..{}", also.path().display());
    for to in [absolute, &dots] {
        let there = &to.trim_start_matches("../../../../../..")[1..];
        let entries = [
            Entry::Link("through", to),
            Entry::Folder(there, 0o755),
            Entry::File("through/escaped", b"kept\n"),
        ];
        let name = format!("links-{}", to.len());
        image().with(&entries[..1]).with(&entries[1..]).write(&home, &name);
        pipeline(
            &home,
            &format!("  m: {{on: [x], image: 'oci:{name}', run: [cat, /{there}/escaped]}}\n"),
        );
        let ran = run(&home, "m").well();
        assert!(ran.stderr.contains("| kept"), "{ran:#?}");
    }
    for folder in [outside, also] {
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
    // The layer has a file below a link whose target is not in the image.
    image()
        .with(&[Entry::Link("through", "/not-there"), Entry::File("through/escaped", b"x")])
        .write(&home, "nowhere-link");
    refused("oci:nowhere-link", &["through/escaped"]);
    assert!(!Path::new("/tmp/ion-escaped").exists());
}

/// If root runs this test, the modules run as `nobody`, as in tests/machine/users.rs.
#[test]
fn an_ordinary_user_runs_containers_as_itself_and_is_told_what_cannot_be_bound() {
    let home = Home::new();
    Image::of(&format!("set -e; test $(id -u) = 0; {MODULE}")).write(&home, "image");
    let file = pipeline(
        &home,
        "  m: {on: [x], emits: [made], image: 'oci:image'}\n  as: {on: [x], image: 'oci:image', run: [sh, -c, 'test $(id -u) = 1234'], user: worker}\n  bound: {on: [x], image: 'oci:image', resources: {memory: 64Mi}}\n",
    );
    assert!(file.exists());
    home.write("f", "content\n");
    fs::copy(crate::support::ION, home.path().join("ion")).unwrap();
    let as_user = |module: &str| {
        let job = format!(
            "env HOME=$PWD ION_HOME=$PWD/state ./ion --json run {module} --file f --pipeline pipeline.yaml"
        );
        let script = format!(
            "set -e; mount --bind . /mnt; cd /mnt; test -e fuse || mknod fuse c 10 229; chmod 666 fuse; mount --bind fuse /dev/fuse; \
             chown -R 65534 .; exec setpriv --reuid=65534 --regid=65534 --clear-groups {job}"
        );
        let mut shell =
            Command::new(if rustix::process::geteuid().is_root() { "unshare" } else { "sh" });
        if rustix::process::geteuid().is_root() {
            shell.args(["-m", "sh", "-c", &script]);
        } else {
            shell.args(["-c", &job]);
        }
        CommandOutput::of(shell.current_dir(home.path()).output().unwrap())
    };
    let ran = as_user("m").well();
    assert_eq!(ran.types(), ["made"]);
    assert!(ran.stderr.contains("control groups"), "{ran:#?}");
    as_user("as").well();
    let bound = as_user("bound").failed();
    assert!(bound.stderr.contains("\"resources\" cannot be bound here"), "{bound:#?}");
}

#[test]
fn layers_hide_what_is_below_and_archives_are_unpacked_once() {
    let home = Home::new();
    let layout = Image::of("exit 0")
        .with(&[
            Entry::Folder("a", 0o755),
            Entry::File("a/one", b"1"),
            Entry::File("a/two", b"2"),
            Entry::File("b", b"b"),
            Entry::Folder("c", 0o700),
            Entry::File("c/low", b""),
        ])
        .with(&[
            Entry::File("a/.wh.one", b""),
            Entry::File(".wh.b", b""),
            Entry::File("c/.wh..wh..opq", b""),
            Entry::File("c/high", b""),
        ])
        .saying("Entrypoint", json!(["/bin/sh", "-c"]))
        .saying(
            "Cmd",
            json!([
                "test ! -e /a/one && test -e /a/two && test ! -e /b && test \"$(ls /c)\" = high"
            ]),
        )
        .write(&home, "image");
    pipeline(&home, "  m: {on: [x], image: 'oci:image'}\n");
    home.write("f", "content\n");
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..3).map(|_| scope.spawn(|| run_with(&home, "m").well())).collect();
        runs.into_iter().for_each(|run| drop(run.join().unwrap()));
    });
    let tar = Command::new("tar")
        .args(["-cf", "image.tar", "-C", "image", "."])
        .current_dir(home.path())
        .status();
    assert!(tar.unwrap().success());
    fs::remove_dir_all(layout).unwrap();
    pipeline(&home, "  m: {on: [x], image: 'oci-archive:image.tar'}\n");
    run(&home, "m").well();
    run(&home, "m").well();
    let images = fs::read_dir(home.state().join("images")).unwrap().flatten();
    let names: Vec<_> = images.map(|entry| entry.file_name().into_string().unwrap()).collect();
    assert_eq!(
        names.iter().filter(|name| name.len() >= 64 && !name.contains('.')).count(),
        1,
        "{names:?}"
    );
    assert!(!names.iter().any(|name| name.starts_with("fetch-")), "{names:?}");
}

#[test]
fn an_image_comes_from_a_registry_whose_user_is_logged_in() {
    let mut home = Home::new();
    let mut registry = Registry::start();
    Image::of(MODULE).write(&home, "image");
    let (user, password) = Registry::USER;
    let login = format!("{user}:{password}");
    let copy = |from: &str, to: &str| {
        let copied = Command::new("skopeo")
            .args(["copy", "--quiet", "--dest-tls-verify=false", "--dest-creds", &login, from, to])
            .current_dir(home.path())
            .output()
            .unwrap();
        assert!(copied.status.success(), "{copied:?}");
    };
    let image = format!("{}/tools/module", registry.name);
    copy("oci:image", &format!("docker://{image}:1"));
    copy("oci:image", "docker-archive:saved.tar:tools/module:1");
    // The user's own settings say that this registry has no TLS.
    let user = home.path().join("user");
    fs::create_dir_all(user.join(".config/containers")).unwrap();
    let insecure = format!("[[registry]]\nlocation = \"{}\"\ninsecure = true\n", registry.name);
    fs::write(user.join(".config/containers/registries.conf"), insecure).unwrap();
    home.env.push(("HOME".into(), user.display().to_string()));
    let of = |image: &str| {
        pipeline(&home, &format!("  m: {{on: [x], emits: [made], image: '{image}'}}\n"))
    };
    of(&format!("{image}:1"));
    let refused = run(&home, "m").failed();
    assert!(
        refused.stderr.contains("cannot be fetched: skopeo: ")
            && refused.stderr.contains("unauthorized"),
        "{refused:#?}"
    );
    // `skopeo login` writes such a file.
    let auths = json!({"auths": {&registry.name: {"auth": base64(&login)}}});
    fs::create_dir_all(user.join(".docker")).unwrap();
    fs::write(user.join(".docker/config.json"), auths.to_string()).unwrap();
    assert_eq!(run(&home, "m").well().types(), ["made"]);
    of(&format!("{image}:2"));
    let missing = run(&home, "m").failed();
    assert!(
        missing.stderr.contains(&format!("{image}:2"))
            && missing.stderr.contains("manifest unknown"),
        "{missing:#?}"
    );
    assert!(
        !missing.stderr.contains(password) && !missing.stderr.contains(&base64(&login)),
        "{missing:#?}"
    );
    registry.server.stop();
    // The image is already unpacked, so no registry is asked.
    of(&format!("{image}:1"));
    assert_eq!(run(&home, "m").well().types(), ["made"]);
    of("docker-archive:saved.tar");
    assert_eq!(run(&home, "m").well().types(), ["made"]);
}

/// Encodes a text with the program `base64`.
fn base64(text: &str) -> String {
    let mut child = Command::new("base64")
        .arg("-w0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

#[test]
fn a_chain_runs_from_its_images_by_processes_that_wait() {
    let home = Home::new();
    Image::of("exit 0").write(&home, "image");
    let time = |name: &str, links: &str| {
        let file = home.write(
            &format!("{name}.yaml"),
            format!("name: {name}\nidle: 300s\nChain: [{links}]\n"),
        );
        let up = home.up_with(&["--gateway", "127.0.0.1:0"], &file);
        let at = address(&up);
        let mut times = vec![];
        let post =
            |body: &[u8]| -> Answer { request(&at, "POST", &format!("/chains/{name}"), &[], body) };
        let waiting = |link: &str| below(up.pid()).iter().filter(|(_, name)| name == link).count();
        for n in 0..30 {
            // After each payload, the daemon replaces the processes that the payload used.
            wait_for("processes to wait", || waiting("cat") == 2 && waiting("grep") == 2);
            let begun = Instant::now();
            let answer = post(format!("data {n}\nother\n").as_bytes());
            times.push(begun.elapsed());
            assert_eq!((answer.status, answer.text()), (200, format!("data {n}\n")));
        }
        times.sort_unstable();
        eprintln!("{name}: p50 {:?}, p90 {:?}", times[15], times[27]);
        assert_eq!(up.stop(), Some(0));
    };
    time(
        "images",
        "{Command: cat, Image: 'oci:image'}, {Command: grep, Image: 'oci:image', Arguments: [data]}",
    );
    time("machine", "{Command: cat}, {Command: grep, Arguments: [data]}");
}

/// A job that needs an image waits until the image is unpacked, not until other jobs of the image
/// have ended.
#[test]
fn of_jobs_that_need_an_image_at_once_none_waits_for_another() {
    let home = Home::new();
    let large: Vec<u8> = (0..8_u32 << 20).map(|at| (at / 3) as u8).collect();
    Image::of("exit 0").with(&[Entry::File("large", &large)]).write(&home, "image");
    let module = |name: &str, run: &str| {
        format!("  {name}: {{on: [x], image: 'oci:image', run: [{run}]}}\n")
    };
    let all =
        [module("long", "sleep, '600'"), module("a", "'true'"), module("b", "'true'")].concat();
    let up = home.up(&pipeline(&home, &all));
    home.run(["event", "create", "x"]).well();
    let states = || -> BTreeMap<String, String> {
        let of = |job: &Value, key: &str| job[key].as_str().unwrap_or_default().to_owned();
        home.jobs().iter().map(|job| (of(job, "module"), of(job, "state"))).collect()
    };
    wait_for("the short jobs to succeed", || {
        let states = states();
        states.get("a").is_some_and(|state| state == "succeeded")
            && states.get("b").is_some_and(|state| state == "succeeded")
    });
    wait_for("the long job to run", || states()["long"] == "running");
    up.kill();
}

#[test]
fn gc_leaves_images_that_run() {
    let home = Home::new();
    Image::of("exit 0").write(&home, "old");
    Image::of("exit 0").with(&[Entry::File("more", b"1")]).write(&home, "waits");
    let tar = Command::new("tar")
        .args(["-cf", "old.tar", "-C", "old", "."])
        .current_dir(home.path())
        .status();
    assert!(tar.unwrap().success());
    pipeline(&home, "  m: {on: [x], image: 'oci-archive:old.tar'}\n");
    run(&home, "m").well();
    let file = home.write("chain.yaml", "name: c\nChain: [{Command: cat, Image: 'oci:waits'}]\n");
    let up = home.up_with(&["--gateway", "127.0.0.1:0"], &file);
    wait_for("processes to wait", || {
        below(up.pid()).iter().filter(|(_, name)| name == "cat").count() == 2
    });
    // A process that dies while it unpacks an image leaves such a folder.
    let images = home.state().join("images");
    fs::create_dir_all(images.join("0123.part/rootfs/d")).unwrap();
    let names = || -> Vec<String> {
        let entries = fs::read_dir(&images).unwrap().flatten();
        entries
            .map(|entry| entry.file_name().into_string().unwrap())
            .filter(|name| name != "refs")
            .collect()
    };
    let gc = |more: &[&str]| -> Value {
        serde_json::from_str(
            &home.run([&["--json", "gc", "--older-than"], more].concat()).well().stdout,
        )
        .unwrap()
    };
    assert_eq!(gc(&["1h"])["images"], 0, "both images were used just now");
    assert!(!names().contains(&"0123.part".to_owned()));
    let all = names();
    let would = gc(&["0s", "--dry-run"]);
    assert_eq!((&would["images"], names()), (&json!(1), all));
    let done = gc(&["0s"]);
    assert_eq!(done["images"], 1, "gc keeps the image whose processes wait");
    assert_eq!(done["imageBytes"], would["imageBytes"]);
    assert!(done["imageBytes"].as_u64() > Some(0));
    let left = names();
    assert_eq!(left.len(), 2, "one image and its lock are left: {left:?}");
    assert_eq!(fs::read_dir(images.join("refs")).unwrap().count(), 0);
    let answer = request(&address(&up), "POST", "/chains/c", &[], b"goes through\n");
    assert_eq!((answer.status, answer.text()), (200, "goes through\n".to_owned()));
    run(&home, "m").well();
    assert_eq!(up.stop(), Some(0));
    assert_eq!(gc(&["0s"])["images"], 2);
    assert_eq!(names(), [""; 0]);
}
