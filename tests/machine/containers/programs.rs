//! Tests what an image says of its program: the user that runs it, the files that it finds, and the
//! signal that asks it to end. Also tests the errors of programs that cannot start.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::{pipeline, processes, run};
use crate::support::images::{Entry, Image};
use crate::support::{CommandOutput, Home, wait_for};

/// Runs the program that the image names. `more` has further settings of the module.
fn says(home: &Home, image: &Image, more: &str) -> CommandOutput {
    image.write(home, "image");
    pipeline(home, &format!("  m: {{on: [x], image: 'oci:image'{more}}}\n"));
    run(home, "m")
}

/// Returns the lines that the module wrote.
fn lines(ran: &CommandOutput) -> Vec<&str> {
    ran.stderr.lines().filter_map(|line| line.strip_prefix("ion: m | ")).collect()
}

/// Returns every path in the only unpacked image of a home, with the time of its last change.
fn unpacked(home: &Home) -> Vec<(PathBuf, std::time::SystemTime)> {
    let images =
        fs::read_dir(home.state().join("images")).unwrap().flatten().map(|entry| entry.path());
    let mut folders: Vec<PathBuf> = images.filter(|path| path.join("rootfs").is_dir()).collect();
    assert_eq!(folders.len(), 1, "{folders:?}");
    let mut all = vec![];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let metadata = entry.path().symlink_metadata().unwrap();
            if metadata.is_dir() {
                folders.push(entry.path());
            }
            all.push((entry.path(), metadata.modified().unwrap()));
        }
    }
    all.sort();
    all
}

/// Ion gives the container a list of hosts, whether the image's own is a file, a link, or missing.
#[test]
fn localhost_and_its_own_name_lead_to_a_container_itself_in_either_network() {
    let home = Home::new();
    // No program listens on port 1. The refusal shows the address to which the name leads.
    let image = Image::of(
        "hostname; cat /etc/hostname; telnet localhost 1 2>&1; telnet ion 1 2>&1; exit 0",
    );
    let refused = "telnet: can't connect to remote host (127.0.0.1): Connection refused";
    for (network, image) in [
        ("none", &image),
        ("host", &image),
        // The image's own list of hosts is not used, even where it is a link.
        (
            "none",
            &Image::of(
                "hostname; cat /etc/hostname; telnet localhost 1 2>&1; telnet ion 1 2>&1; exit 0",
            )
            .with(&[Entry::File("etc/hosts", b"1.2.3.4 localhost ion\n")]),
        ),
        (
            "host",
            &Image::of(
                "hostname; cat /etc/hostname; telnet localhost 1 2>&1; telnet ion 1 2>&1; exit 0",
            )
            .with(&[
                Entry::Link("etc/hosts", "/run/there/is/none"),
                Entry::Link("etc/resolv.conf", "../run/resolve/x"),
            ]),
        ),
    ] {
        let ran = says(&home, image, &format!(", network: {network}")).well();
        assert_eq!(lines(&ran), ["ion", "ion", refused, refused], "{network}: {ran:#?}");
    }
}

/// The image's lists of users and groups have bytes that are not UTF-8.
#[test]
fn a_user_of_an_image_has_its_groups_and_a_home() {
    let home = Home::new();
    let passwd =
        b"root:x:0:0::/root:/bin/sh\nm\xfcller:x:9:9::/:\nalice:x:1000:100:\xfc:/home/alice:\n";
    let group = b"audio:x:29:bob,alice\nvideo:x:44:alice\nb\xe4r:x:7:bob\n";
    let image = |user: &str| {
        Image::of("id -u; id -g; id -G; echo $HOME")
            .with(&[Entry::File("etc/passwd", passwd), Entry::File("etc/group", group)])
            .saying("User", json!(user))
    };
    let root = rustix::process::geteuid().is_root();
    for (user, is) in [
        ("alice", ["1000", "100", "100 29 44", "/home/alice"]),
        ("alice:video", ["1000", "44", "44", "/home/alice"]),
        ("4711", ["4711", "0", "0", "/"]),
        ("77:88", ["77", "88", "88", "/"]),
        ("100000:100001", ["100000", "100001", "100001", "/"]),
        ("", ["0", "0", "0", "/root"]),
    ] {
        let ran = says(&home, &image(user), "").well();
        let mut said = lines(&ran);
        if !root {
            // A container of an ordinary user's daemon keeps that user's groups.
            said[2] = is[2];
        }
        assert_eq!(said, is, "{user}: {ran:#?}");
    }
    let over = says(&home, &image("1000680000"), "").failed();
    assert!(
        over.stderr.contains("user \"1000680000\"") && over.stderr.contains("up to 16777215"),
        "{over:#?}"
    );
}

/// A tag may have colons and slashes, and an index may have images for several variants of a
/// processor.
#[test]
fn an_image_is_found_by_its_whole_name_and_by_what_this_processor_can_run() {
    let home = Home::new();
    let cmd = Image::of("exit 9")
        .saying("Entrypoint", json!([""]))
        .saying("Cmd", json!(["echo", "by its command"]));
    assert_eq!(lines(&says(&home, &cmd, "").well()), ["by its command"]);
    let layout = Image::of("echo plain").write(&home, "many");
    let index = layout.join("index.json");
    let read = || -> Value { serde_json::from_slice(&fs::read(&index).unwrap()).unwrap() };
    let plain = read()["manifests"][0].clone();
    Image::of("echo newer").write(&home, "many");
    let newer = read()["manifests"][0].clone();
    let lay = |all: &[(&Value, &str)]| {
        let manifests = all.iter().map(|(manifest, variant)| {
            let mut one = (*manifest).clone();
            let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
            one["platform"] = json!({"os": "linux", "architecture": arch});
            if !variant.is_empty() {
                one["platform"]["variant"] = json!(variant);
            }
            one["annotations"] = json!({"org.opencontainers.image.ref.name": "docker.io/x:v1"});
            one
        });
        let manifests: Vec<Value> = manifests.collect();
        fs::write(&index, json!({"schemaVersion": 2, "manifests": manifests}).to_string()).unwrap();
        pipeline(&home, "  m: {on: [x], image: 'oci:many:docker.io/x:v1'}\n");
        run(&home, "m")
    };
    assert_eq!(lines(&lay(&[(&newer, "v4"), (&plain, "")]).well()), ["plain"]);
    assert_eq!(
        lines(
            &lay(&[
                (&newer, "v99"),
                (&plain, if cfg!(target_arch = "aarch64") { "v8" } else { "v1" })
            ])
            .well()
        ),
        ["plain"]
    );
    let none = lay(&[(&newer, "v99")]).failed();
    assert!(
        none.stderr.contains("processor can run; it has: linux/") && none.stderr.contains("/v99"),
        "{none:#?}"
    );
}

/// The error says why in words, and does not show the JSON of the container runtime.
#[test]
fn a_program_that_cannot_start_is_refused_in_plain_words() {
    let home = Home::new();
    let mut foreign =
        fs::read("/bin/busybox").unwrap_or_else(|_| fs::read("/usr/bin/busybox").unwrap());
    foreign.truncate(4096);
    foreign[18] = if cfg!(target_arch = "aarch64") { 62 } else { 183 };
    let dynamic = fs::read("/bin/true").unwrap();
    let image = || {
        Image::of("exit 9").with(&[
            Entry::File("no-interpreter", b"#!/opt/none/python3 -u\n"),
            Entry::File("windows", b"#!/bin/sh\r\necho hi\r\n"),
            Entry::File("text", b"echo hi\n"),
            Entry::File("empty", b""),
            Entry::File("foreign", &foreign),
            Entry::File("dynamic", &dynamic),
            Entry::Folder("folder", 0o755),
            Entry::Link("to-nothing", "nothing"),
            Entry::File("by-script", b"#!/windows\n"),
        ])
    };
    for (program, words) in [
        ("/no-interpreter", &["/opt/none/python3", "not in the image"][..]),
        ("/windows", &["#!/bin/sh", "CR LF", "dos2unix"]),
        ("/text", &["neither a program nor a script", "#!/bin/sh"]),
        ("/empty", &["it is empty"]),
        ("/foreign", &["it is built for", "this machine is", "name an image for linux/"]),
        ("/dynamic", &["the loader of its libraries", "ld-linux", "not in the image"]),
        ("/folder", &["it is a folder"]),
        ("/to-nothing", &["it is not there"]),
        ("/by-script", &["its interpreter is /windows", "CR LF"]),
        ("no-such-program", &["in no folder of its PATH"]),
    ] {
        let ran = says(&home, &image().saying("Entrypoint", json!([program])), "").failed();
        assert!(
            ran.stderr.contains(&format!("program {program:?} of its image cannot be started: ")),
            "{ran:#?}"
        );
        assert!(words.iter().all(|word| ran.stderr.contains(word)), "{words:?} {ran:#?}");
        assert!(!ran.stderr.contains("\"msg\""), "{ran:#?}");
        assert_eq!(lines(&ran), [""; 0], "{ran:#?}");
    }
    let ends = home.jobs().into_iter().map(|job| job["attempts"][0]["end"].clone());
    assert!(ends.clone().count() > 9 && ends.into_iter().all(|end| end == "cannot-run"));
    let closed = Image::of("exit 9").saying("Entrypoint", json!(["/etc/passwd"]));
    fs::write(home.path().join("layer"), "").unwrap();
    let ran = says(&home, &closed.with_stored("", of_mode(0o644), &of_mode(0o644)), "").failed();
    assert!(ran.stderr.contains("user 0:0 may not execute it (its mode is 644)"), "{ran:#?}");
}

/// Returns an archive of `/etc/passwd` with this mode.
fn of_mode(mode: u32) -> Vec<u8> {
    let mut header = super::archives::head(tar::EntryType::Regular, "etc/passwd", 4);
    header.set_mode(mode);
    header.set_cksum();
    let mut tar = tar::Builder::new(vec![]);
    tar.append(&header, &b"root"[..]).unwrap();
    tar.into_inner().unwrap()
}

/// Jobs share an unpacked image, so what one job needs is not made in it.
#[test]
fn what_a_job_needs_is_there_and_its_image_never_changes() {
    let home = Home::new();
    let image = || {
        Image::of(
            "pwd; ls /iron/in 2>/dev/null; touch x 2>/dev/null || touch /bin/x 2>/dev/null || echo closed",
        )
        .saying("WorkingDir", json!("/srv/not/there"))
    };
    assert_eq!(lines(&says(&home, &image(), "").well()), ["/srv/not/there", "closed"]);
    let before = unpacked(&home);
    assert!(before.iter().any(|(path, _)| path.ends_with("rootfs/srv/not/there")));
    // An older module may want its tree at another path.
    let older = says(&home, &image(), ", env: {HANDLER_BASE_DIR: /iron}").well();
    assert!(lines(&older).contains(&"data") && lines(&older).contains(&"closed"), "{older:#?}");
    let through = Image::of("true").with(&[Entry::Link("tmp", "/mnt/tmp")]);
    says(&home, &image(), ", network: host").well();
    assert_eq!(unpacked(&home), before);
    let other = Home::new();
    says(
        &other,
        &through
            .saying("Cmd", json!(["-c", "echo of tmp > /tmp/x; cat /mnt/tmp/x"]))
            .saying("Entrypoint", json!(["sh"])),
        "",
    )
    .well();
}

/// Ion honours the image's `VOLUME`, its files in `/tmp`, and its `STOPSIGNAL`.
#[test]
fn volumes_and_tmp_begin_with_what_the_image_has_and_its_signal_asks_to_end() {
    let home = Home::new();
    let image = Image::of(
        "cat /tmp/of-image /data/of-image; echo more > /data/more && echo more > /tmp/more && echo more > /var/new/more \
         && stat -c %a /data; touch /data/kept/x; echo well; trap 'echo asked by INT; exit 3' INT; test -e /ion/in/data/f && exit 0; \
         echo begun > /ion/out/data/begun; sleep 987656 & wait",
    )
    .with(&[
        Entry::File("tmp/of-image", b"in tmp\n"),
        Entry::Folder("data", 0o750),
        Entry::File("data/of-image", b"in data\n"),
        Entry::Folder("data/kept", 0o755),
    ])
    .saying("Volumes", json!({"/data": {}, "/var/new/": {}}))
    .saying("StopSignal", json!("SIGINT"));
    let ran = says(&home, &image, "").well();
    assert_eq!(lines(&ran), ["in tmp", "in data", "750", "well"], "{ran:#?}");
    // Each job has volumes and a `/tmp` of its own.
    assert_eq!(lines(&says(&home, &image, "").well()), lines(&ran));
    let file = pipeline(&home, "  m: {on: [a], image: 'oci:image', retries: 0}\n");
    let up = home.up(&file);
    home.run(["event", "create", "a"]).well();
    wait_for("the job's program to run", || processes("987656").len() == 1);
    let job = home.jobs().iter().find(|job| job["state"] == "running").unwrap()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    home.run(["job", "cancel", &job]).well();
    wait_for("the job to end", || home.jobs().iter().any(|job| job["state"] == "cancelled"));
    let log = home.run(["job", "logs", &job]).well().stdout;
    assert!(log.contains("asked by INT"), "{log}");
    assert_eq!(up.stop(), Some(0));
    for (key, value, words) in [
        ("StopSignal", json!("SIGNONE"), "STOPSIGNAL \"SIGNONE\"; allowed: names such as SIGINT"),
        ("Volumes", json!({"/": {}}), "VOLUME /"),
    ] {
        let refused = says(&home, &Image::of("exit 9").saying(key, value), "").failed();
        assert!(refused.stderr.contains(words), "{refused:#?}");
    }
}
