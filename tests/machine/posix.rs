//! Tests that `out/data` behaves as POSIX says, with programs of other projects: pjdfstest (every
//! system call and every errno) and fio (writes, reads back and compares). scripts/setup-tests.sh
//! installs both.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test that cannot go on panics; it starts programs and says what it skips"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use crate::support::CommandOutput;
use crate::support::mount::{Blobs, Mount, Passthrough, built, run};
use ionfs::fs::job::TreeUsers;

// ---- pjdfstest ----

/// How one case of pjdfstest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Passed,
    Failed,
    Skipped,
}

/// Returns the first two users of this machine that are not root and whose group has a name, in the
/// form of the suite's settings. The suite acts as these users.
fn two_users() -> String {
    let fields = |path: &str| -> Vec<Vec<String>> {
        let text = fs::read_to_string(path).unwrap();
        text.lines().map(|line| line.split(':').map(str::to_owned).collect()).collect()
    };
    let groups: BTreeMap<String, String> = fields("/etc/group")
        .into_iter()
        .map(|group| (group[2].clone(), group[0].clone()))
        .collect();
    let users = fields("/etc/passwd").into_iter().filter(|user| user[2] != "0");
    let entries: Vec<String> = users
        .filter_map(|user| Some(format!("[{:?}, {:?}]", user[0], groups.get(&user[3])?)))
        .take(2)
        .collect();
    entries.join(", ")
}

/// Runs the suite in `out/data`. The cases that remount it read-only run separately: other cases
/// leave files open for writing, and then the kernel refuses to remount.
fn pjdfstest(mount: &Mount) -> BTreeMap<String, Ended> {
    let home = &mount.home;
    // This `mount` does not use FUSE's helper program, which can only make new mounts. It tries
    // again while the kernel says that the mount is busy, because the kernel counts a removed file
    // until the daemon has answered its release.
    home.program(
        "bin/mount",
        "#!/bin/sh\nPATH=${PATH#*:}\nfor try in $(seq 100); do mount -i \"$@\" && exit; sleep 0.05; done; exit 1\n",
    );
    fs::create_dir(home.path().join("other")).unwrap();
    let mut cases = pjdfstest_of(mount, false, "");
    cases.extend(pjdfstest_of(mount, true, "erofs"));
    assert!(cases.len() > 300, "{} cases", cases.len());
    cases
}

/// Runs the cases that have this word in their name, in a mount namespace of their own, at a path
/// that every user may enter.
fn pjdfstest_of(mount: &Mount, remount: bool, cases: &str) -> BTreeMap<String, Ended> {
    let home = &mount.home;
    let config = format!(
        "[features]\nposix_fallocate = {{}}\nrename_ctime = {{}}\nutime_now = {{}}\nutimensat = {{}}\n\
         [settings]\nnaptime = 0.01\nallow_remount = {remount}\n[dummy_auth]\nentries = [{}]\n",
        two_users()
    );
    home.write("pjdfstest.toml", config);
    let script = "set -e; mount -t tmpfs none other; mount --bind ion/out/data /mnt; PATH=$PWD/bin:$PATH \
                  \"$PJDFSTEST\" -c pjdfstest.toml -p /mnt -s other \"$@\" || test $? = 1";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh", cases])
        .env("PJDFSTEST", built("pjdfstest"))
        .current_dir(home.path())
        .output()
        .unwrap();
    let ran = CommandOutput::of(output).well();
    let ended = |line: &str| {
        let (name, how) = line.split_once(' ')?;
        let how = match how.trim() {
            "ok" => Ended::Passed,
            "FAILED" => Ended::Failed,
            "skipped" => Ended::Skipped,
            _ => return None,
        };
        Some((name.to_owned(), how))
    };
    let cases: BTreeMap<String, Ended> = plain(&ran.stdout).lines().filter_map(ended).collect();
    assert!(
        plain(&ran.stdout).contains(&format!("{} total", cases.len())),
        "every case is read: {ran:#?}"
    );
    cases
}

/// Returns a text without its colours.
fn plain(text: &str) -> String {
    let mut parts = text.split('\x1b');
    let mut plain = parts.next().unwrap().to_owned();
    for part in parts {
        plain.push_str(part.split_once('m').map_or("", |(_, rest)| rest));
    }
    plain
}

/// Returns the table that docs/posix.md must have.
fn table(cases: &BTreeMap<String, Ended>) -> String {
    let mut groups: BTreeMap<&str, [u32; 3]> = BTreeMap::new();
    for (name, ended) in cases {
        let group = name.split("::").next().unwrap();
        groups.entry(group).or_default()[*ended as usize] += 1;
    }
    let mut total = [0; 3];
    let mut text =
        "| system call | passed | failed | skipped |\n| --- | --- | --- | --- |\n".to_owned();
    for (group, counts) in &groups {
        writeln!(text, "| {group} | {} | {} | {} |", counts[0], counts[1], counts[2]).unwrap();
        total = std::array::from_fn(|at| total[at] + counts[at]);
    }
    writeln!(text, "| **all** | {} | {} | {} |", total[0], total[1], total[2]).unwrap();
    text
}

#[test]
fn out_data_passes_pjdfstest_but_for_the_deviations_on_record() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: pjdfstest acts as several users and mounts, which needs root");
        return;
    }
    let listed = include_str!("posix/deviations.txt");
    let expected: BTreeSet<&str> =
        listed.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    for passthrough in [Passthrough::Allowed, Passthrough::Off] {
        let cases = pjdfstest(&Mount::new(passthrough, Blobs::Files, &[]));
        let failed: BTreeSet<&str> = cases
            .iter()
            .filter(|(_, ended)| **ended == Ended::Failed)
            .map(|(name, _)| name.as_str())
            .collect();
        let unexpected: Vec<_> = failed.difference(&expected).collect();
        let passed_after_all: Vec<_> = expected.difference(&failed).collect();
        assert!(
            unexpected.is_empty() && passed_after_all.is_empty(),
            "{passthrough:?}: fail, but are not in tests/machine/posix/deviations.txt: {unexpected:#?}\n\
             are in it, but do not fail: {passed_after_all:#?}"
        );
        let table = table(&cases);
        println!("{table}");
        assert!(
            include_str!("../../docs/posix.md").contains(&table),
            "docs/posix.md must have this table:\n{table}"
        );
    }
}

// ---- fio ----

/// fio writes blocks of mixed sizes at random places, each with a checksum in it, and reads them
/// back and compares them. It uses system calls and mapped memory, and writes alone and among
/// reads. Then another process reads the files that were written alone, and the test compares all
/// files with their blobs.
#[test]
fn fio_reads_back_what_it_wrote() {
    const CALLS: &str = "--ioengine=psync";
    const MAPPED: &str = "--ioengine=mmap";
    const BLOCKS: &str = "--bssplit=512/10:4k/40:12k/20:64k/20:256k/10";
    const PAGES: &str = "--bssplit=4k/50:12k/20:64k/20:256k/10";
    // The size of each file. `make torture-files` makes it larger.
    let mib = std::env::var("ION_TEST_FIO_MIB").map_or(16, |mib| mib.parse::<u32>().unwrap());
    for passthrough in [Passthrough::Allowed, Passthrough::Off] {
        let mount = Mount::new(passthrough, Blobs::Files, &[]);
        let folder = format!("--directory={}", mount.data().display());
        let size = format!("--size={mib}m");
        for (name, how) in [
            ("psync", [CALLS, BLOCKS, "--rw=randwrite", "--fsync=64"]),
            ("psync-mixed", [CALLS, BLOCKS, "--rw=randrw", "--verify_backlog=256"]),
            ("psync-direct", [CALLS, BLOCKS, "--rw=randwrite", "--direct=1"]),
            ("mmap", [MAPPED, PAGES, "--rw=randwrite", "--fsync=64"]),
            ("mmap-mixed", [MAPPED, PAGES, "--rw=randrw", "--verify_backlog=256"]),
        ] {
            let began = std::time::Instant::now();
            let name_word = format!("--name={name}");
            let mut words = vec![
                "--thread",
                name_word.as_str(),
                &folder,
                &size,
                "--filename_format=$jobname",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--randseed=1",
                "--verify_state_save=0",
                "--minimal",
            ];
            words.extend(how);
            run("fio", &words);
            if !name.ends_with("mixed") {
                words.push("--verify_only");
                run("fio", &words);
            }
            println!("fio {name}, {mib} MiB, {passthrough:?}: {:?}", began.elapsed());
        }
        let event = mount.commit(&["psync", "psync-mixed", "psync-direct", "mmap", "mmap-mixed"]);
        for file in &event.files {
            assert!(
                mount.content(file) == fs::read(mount.data().join(&file.name)).unwrap(),
                "{}",
                file.name
            );
        }
    }
}

// ---- what these programs found, and what neither of them tests ----

/// Files that are read while they are written, open files without a name, and directories that
/// change while they are listed behave the same below `out/data` as on a local disk.
#[test]
fn corners_are_as_on_a_local_disk() {
    let said = |folder: &Path| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/machine/posix/corners.py");
        let output = Command::new("python3").arg(script).arg(folder).output().unwrap();
        CommandOutput::of(output).well().stdout
    };
    for passthrough in [Passthrough::Allowed, Passthrough::Off] {
        let mount = Mount::new(passthrough, Blobs::Files, &[]);
        let disk = mount.home.path().join("disk");
        fs::create_dir(&disk).unwrap();
        let (ours, theirs) = (said(&mount.data()), said(&disk));
        assert!(theirs.lines().count() > 35);
        assert_eq!(ours, theirs, "{passthrough:?}");
    }
}

/// When the kernel has forgotten a removed file, the daemon closes its own descriptor of the file.
#[test]
fn removed_files_leave_nothing_open() {
    let mount = Mount::new(Passthrough::Allowed, Blobs::Files, &[]);
    let staged = mount.staged("data");
    let ours = || {
        let links = fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
        links.filter(|target| target.starts_with(&staged) && *target != staged).count()
    };
    for n in 0..500 {
        let file = File::create(mount.data().join(n.to_string())).unwrap();
        fs::remove_file(mount.data().join(n.to_string())).unwrap();
        drop(file);
    }
    crate::support::wait_for("every descriptor of a staged file to be closed", || ours() == 0);
}

/// A reader has an input open by passthrough while the input is moved to the output. The reader can
/// go on, and opening the file for writing fails with ETXTBSY until the reader closes it.
#[test]
fn an_input_that_is_being_read_can_be_moved_and_is_busy_until_it_is_closed() {
    let content = vec![7; 100_000];
    let mount = Mount::new(Passthrough::Allowed, Blobs::Files, &[("f", &content)]);
    let (from, to) = (mount.at("in/data/f"), mount.data().join("f"));
    let reader = File::open(&from).unwrap();
    let mut piece = [0; 10];
    reader.read_exact_at(&mut piece, 0).unwrap();
    fs::rename(&from, &to).unwrap();
    assert_eq!(fs::read(&to).unwrap(), content);
    fs::set_permissions(&to, fs::Permissions::from_mode(0o644)).unwrap();
    let write =
        || OpenOptions::new().append(true).open(&to).and_then(|mut file| file.write_all(b"more"));
    if let Err(refused) = write() {
        assert_eq!(refused.raw_os_error(), Some(libc::ETXTBSY));
        drop(reader);
        crate::support::wait_for("the reader's handle to be gone", || write().is_ok());
    }
    assert_eq!(fs::read(&to).unwrap(), [content.as_slice(), b"more"].concat());
}

#[test]
fn pipes_and_sockets_work_and_are_no_files_of_an_event() {
    let mount = Mount::new(Passthrough::Allowed, Blobs::Files, &[]);
    let (pipe, socket) = (mount.data().join("pipe"), mount.data().join("socket"));
    run("mkfifo", &["-m", "640", pipe.to_str().unwrap()]);
    let metadata = fs::metadata(&pipe).unwrap();
    assert!(metadata.file_type().is_fifo() && metadata.mode() & 0o7777 == 0o640);
    let (to, sent) = (pipe.clone(), b"through the pipe".repeat(10_000));
    let expected = sent.clone();
    let writer = std::thread::spawn(move || fs::write(to, sent).unwrap());
    assert!(fs::read(&pipe).unwrap() == expected);
    writer.join().unwrap();

    // The address of a socket has 108 bytes at most, so it goes through a link with a short path.
    let short = tempfile::tempdir().unwrap();
    let address = short.path().join("data/socket");
    std::os::unix::fs::symlink(mount.data(), short.path().join("data")).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(&address).unwrap();
    assert!(fs::symlink_metadata(&socket).unwrap().file_type().is_socket());
    let mut client = std::os::unix::net::UnixStream::connect(&address).unwrap();
    client.write_all(b"hello").unwrap();
    drop(client);
    let mut heard = String::new();
    listener.accept().unwrap().0.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "hello");

    let (draft, event) = (mount.at("out/events/e.tmp"), mount.at("out/events/e.json"));
    for name in ["pipe", "socket"] {
        fs::write(&draft, format!(r#"{{"eventType":"made","files":["{name}"]}}"#)).unwrap();
        assert_eq!(
            fs::rename(&draft, &event).unwrap_err().raw_os_error(),
            Some(libc::EINVAL),
            "{name}"
        );
        fs::hard_link(mount.data().join(name), mount.data().join("other name")).unwrap();
        fs::rename(mount.data().join("other name"), mount.data().join("third name")).unwrap();
        fs::remove_file(mount.data().join("third name")).unwrap();
        fs::remove_file(mount.data().join(name)).unwrap();
    }
    assert_eq!(fs::read_dir(mount.data()).unwrap().count(), 0);
    for folder in ["out", "out/events"] {
        let made = Command::new("mkfifo").arg(mount.at(folder).join("pipe.tmp")).output().unwrap();
        assert!(!made.status.success(), "{folder}");
    }
}

// ---- users ----

/// In a container or a pod, the module runs as a user that the daemon does not know.
#[test]
fn a_tree_for_any_user_is_written_by_one_and_its_staging_folder_is_shut() {
    if !rustix::process::geteuid().is_root() {
        println!("not tried: only root can become another user");
        return;
    }
    let owners = Mount::new(Passthrough::Off, Blobs::Files, &[("f", b"content")]);
    let any = owners.another_for(TreeUsers::AnyUser);
    let script = "set -e; cat in/data/f > out/data/copy; ln in/data/f out/data/linked; mv in/data/f out/data/moved; mkdir out/data/d; echo x > out/data/d/x; chmod 600 out/data/copy; \
        echo '{\"n\": \"1\"}' > out/insights.json; echo '{\"eventType\":\"made\",\"files\":[\"copy\",\"d/x\"]}' > out/events/made.json; \
        ! touch in/data/more; ! touch out/more";
    // The tree is bound to a path that the user may enter, because only root may enter the test's
    // own folders.
    let run = |mount: &Mount| {
        let at = mount.at("");
        let script = format!(
            "mount --bind {} /mnt && cd /mnt && exec setpriv --reuid=54321 --regid=54321 --clear-groups sh -c '{}'",
            at.display(),
            script.replace('\'', "'\\''")
        );
        CommandOutput::of(
            Command::new("unshare").args(["-m", "sh", "-c", &script]).output().unwrap(),
        )
    };
    let refused = run(&owners);
    assert!(refused.stderr.contains("Permission denied"), "{refused:#?}");
    run(&any).well();
    assert_eq!(fs::metadata(any.at("out/data/d/x")).unwrap().uid(), 54321);
    let above = any.staged("").parent().unwrap().metadata().unwrap();
    assert_eq!(above.mode() & 0o777, 0o700);
}
