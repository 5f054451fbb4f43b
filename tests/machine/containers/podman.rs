//! Runs the same images with podman and with Ion: their programs must see the same.
//!
//! The test compares the user, its groups and home, the working folder, the environment, the
//! addresses of `localhost` and of the container's own name, and below `/data` every file with its
//! content, owner, mode and time, every folder and every link. It does not compare what differs on
//! purpose: what may be written to, setuid bits, devices, and the times of folders.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::archives::head;
use super::{pipeline, run};
use crate::support::Home;
use crate::support::images::{Entry, Image, gzip};

/// A script that prints what it sees.
const OBSERVE: &str = r#"echo "groups $(id -G)"; echo "user $(id -u):$(id -g)"; echo "folder $(pwd)"
env | grep -v -e '^ION_' -e '^HANDLER_' -e '^HOSTNAME=' -e '^TERM=' -e '^container=' -e '^SHLVL=' -e '^PWD=' -e '^OLDPWD=' | sort
for name in localhost ion; do telnet $name 1 2>&1; done
test ! -e /tmp/of-image || cat /tmp/of-image
cd /data 2>/dev/null || exit 0
find . -type d | sort | while read -r f; do stat -c '%n %F %a %u:%g' "$f"; done
find . -type l | sort | while read -r f; do echo "$f -> $(readlink "$f")"; done
find . -type f | sort | while read -r f; do stat -c '%n %s %a %u:%g %y' "$f"; sha256sum < "$f"; done
"#;

/// Returns a layer that GNU tar makes from a folder, after a script has filled the folder.
fn made_by_tar(home: &Home, script: &str, flags: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir_in(home.path()).unwrap();
    let made =
        Command::new("sh").args(["-euc", script]).current_dir(folder.path()).status().unwrap();
    assert!(made.success());
    let tar = Command::new("tar")
        .args(flags)
        .args(["-cf", "-", "data"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(tar.status.success(), "{tar:?}");
    tar.stdout
}

/// Returns a layer with one file of this mode and owner.
fn file(name: &str, mode: u32, uid: u64, content: &[u8]) -> Vec<u8> {
    let mut header: Header = head(EntryType::Regular, name, content.len() as u64);
    header.set_mode(mode);
    header.set_uid(uid);
    header.set_gid(uid + 1);
    header.set_mtime(1_234_567_890);
    header.set_cksum();
    let mut tar = Builder::new(vec![]);
    tar.append(&header, content).unwrap();
    tar.into_inner().unwrap()
}

/// Returns the images to compare, by name.
fn images(home: &Home) -> BTreeMap<&'static str, Image> {
    let image = || Image::of(OBSERVE);
    let users = || {
        image().with(&[
            Entry::File(
                "etc/passwd",
                b"root:x:0:0::/root:/bin/sh\nm\xfcller:x:9:9::/:\nalice:x:1000:100::/home/alice:\n",
            ),
            Entry::File("etc/group", b"audio:x:29:bob,alice\nb\xe4r:x:7:bob\nvideo:x:44:alice\n"),
        ])
    };
    let sparse = "mkdir data; truncate -s 3M data/all-hole; truncate -s 8M data/holes; \
        printf first | dd of=data/holes bs=1M seek=2 conv=notrunc status=none; \
        printf last | dd of=data/holes bs=1 seek=8388604 conv=notrunc status=none; touch -d @1000000000.25 data/*";
    let links = "mkdir -p data/d; echo one > data/one; ln data/one data/d/two; ln -s ../one data/d/link; ln -s /etc data/etc; \
        touch -d @1000000000 data/one";
    let mut all = BTreeMap::from([
        ("entrypoint", image()),
        (
            "command alone",
            image().saying("Entrypoint", json!(null)).saying("Cmd", json!(["/module"])),
        ),
        (
            "empty entrypoint",
            image().saying("Entrypoint", json!([""])).saying("Cmd", json!(["sh", "/module"])),
        ),
        (
            "entrypoint and command",
            image().saying("Entrypoint", json!(["sh", "-c"])).saying("Cmd", json!([OBSERVE])),
        ),
        ("folder", image().saying("WorkingDir", json!("/srv/is/missing"))),
        ("no folder", image().saying("WorkingDir", json!(""))),
        (
            "environment",
            image().saying(
                "Env",
                json!(["HOME=/elsewhere", "PATH=/bin:/else", "EMPTY=", "TWO=a=b", "LINES=a\nb"]),
            ),
        ),
        ("hosts", image().with(&[Entry::File("etc/hosts", b"1.2.3.4 localhost ion\n")])),
        (
            "whiteouts",
            image()
                .with(&[
                    Entry::Folder("data", 0o755),
                    Entry::File("data/low", b"low"),
                    Entry::File("data/goes", b"x"),
                    Entry::Folder("data/opaque", 0o755),
                    Entry::File("data/opaque/low", b"low"),
                    Entry::File("data/folder-then-file", b"x"),
                ])
                .with(&[
                    Entry::File("data/.wh.goes", b""),
                    Entry::File("data/opaque/.wh..wh..opq", b""),
                    Entry::File("data/opaque/high", b"high"),
                    Entry::File("data/.wh.folder-then-file", b""),
                    Entry::File("data/new", b"new"),
                ]),
        ),
        (
            "link to a folder",
            image()
                .with(&[Entry::Folder("real", 0o755), Entry::Link("data", "/real")])
                .with(&[Entry::File("data/through", b"x")]),
        ),
        ("tmp", image().with(&[Entry::File("tmp/of-image", b"of the image\n")])),
        (
            // Files of a volume get the time of the container's start, so times are not compared.
            "volume",
            Image::of(&OBSERVE.replace(" %y", ""))
                .with(&[
                    Entry::Folder("data", 0o750),
                    Entry::File("data/kept", b"kept"),
                    Entry::Folder("data/in/it", 0o711),
                ])
                .with_stored(
                    "",
                    file("data/of-others", 0o644, 1234, b"x"),
                    &file("data/of-others", 0o644, 1234, b"x"),
                )
                .saying("Volumes", json!({"/data": {}})),
        ),
        // In the machine's network, podman's containers do not know their own name.
        ("hosts of the machine", Image::of(&OBSERVE.replace("localhost ion", "localhost"))),
        ("links", image()),
    ]);
    for (name, user) in [
        ("user of groups", "alice"),
        ("user and group", "alice:video"),
        ("user by number", "1000"),
        ("unknown number", "4711"),
        ("number and group", "77:audio"),
        ("numbers", "77:88"),
        ("large number", "100000"),
    ] {
        // The home of a user that the image does not list is the working folder under podman, and
        // `/` under Ion. So the working folder is `/` here.
        all.insert(name, users().saying("User", json!(user)).saying("WorkingDir", json!("/")));
    }
    let mut store = |name: &'static str, layers: &[(&str, Vec<u8>, Vec<u8>)]| {
        let image = layers.iter().fold(image(), |image, (form, stored, archive)| {
            image.with_stored(form, stored.clone(), archive)
        });
        all.insert(name, image);
    };
    for (name, flags) in [
        ("holes 0.0", "--sparse-version=0.0"),
        ("holes 0.1", "--sparse-version=0.1"),
        ("holes 1.0", "--sparse-version=1.0"),
    ] {
        let tar = made_by_tar(home, sparse, &["-S", "--format=posix", flags]);
        store(name, &[("+gzip", gzip(&tar), tar)]);
    }
    let tar = made_by_tar(home, links, &["--format=posix"]);
    store("links", &[("+gzip", gzip(&tar), tar)]);
    let owned =
        [file("data/of-others", 0o644, 1234, b"x"), file("data/of-many", 0o604, 100_000, b"y")];
    store("owners", &owned.clone().map(|tar| ("+gzip", gzip(&tar), tar)));
    let [first, second] = owned;
    store(
        "forms",
        &[
            ("+zstd", gzip(&first), first),
            ("+gzip", zstd::encode_all(&second[..], 1).unwrap(), second),
        ],
    );
    all
}

/// Runs an image with podman. Returns the lines that its program printed. The script hides version
/// 2 of control groups, because podman's runtime refuses a machine that has both versions.
fn by_podman(home: &Home, short: &Path, folder: &str, network: &str) -> Vec<String> {
    let short = short.display();
    let script = format!(
        "umount /sys/fs/cgroup/unified 2>/dev/null; \
         podman() {{ command podman --root $PWD/store --runroot {short} --storage-driver vfs --cgroup-manager cgroupfs --events-backend none \"$@\"; }}; \
         image=$(podman pull -q oci:{folder}) && podman run --rm --network {network} --cgroups disabled --cap-drop all \
         --uts private --hostname ion --security-opt no-new-privileges --ulimit nofile=1024:1024 --ulimit nproc=4096:4096 $image; \
         code=$?; podman rmi -f $image >/dev/null; exit $code"
    );
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .current_dir(home.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{folder}: {output:?}");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// Runs an image with Ion. Returns the lines that its program printed.
fn by_ion(home: &Home, folder: &str, network: &str) -> Vec<String> {
    pipeline(home, &format!("  m: {{on: [x], image: 'oci:{folder}', network: {network}}}\n"));
    let ran = run(home, "m").well();
    ran.stderr
        .lines()
        .filter_map(|line| line.strip_prefix("ion: m | "))
        .map(str::to_owned)
        .collect()
}

/// The images differ in entrypoints, working folders, environments, hosts, volumes, users, and
/// forms of layers.
#[test]
fn programs_of_an_image_see_what_they_see_under_podman() {
    if !rustix::process::geteuid().is_root() {
        // The podman of an ordinary user needs a range of user ids that only root can assign.
        println!("not tried: only root can compare what programs see under podman and under Ion");
        return;
    }
    let installed = Path::new("/usr/bin/podman").exists();
    assert!(installed, "podman is missing; scripts/setup-tests.sh installs it");
    let home = Home::new();
    // podman refuses a long path for its runtime folder.
    let short = tempfile::tempdir_in("/tmp").unwrap();
    let mut different = vec![];
    for (name, image) in images(&home) {
        let folder = name.replace(' ', "-");
        image.write(&home, &folder);
        let network = if name == "hosts of the machine" { "host" } else { "none" };
        let (podman, ion) =
            (by_podman(&home, short.path(), &folder, network), by_ion(&home, &folder, network));
        assert!(podman.len() >= 6, "{name}: {podman:#?}");
        if podman != ion {
            let only = |one: &[String], other: &[String]| -> Vec<String> {
                one.iter().filter(|line| !other.contains(line)).cloned().collect()
            };
            different.push(json!({
                "image": name,
                "podman alone": only(&podman, &ion),
                "ion alone": only(&ion, &podman),
            }));
        }
    }
    assert!(different.is_empty(), "{:#}", Value::Array(different));
}
