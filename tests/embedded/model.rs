//! Tests that compare the filesystem with a plain directory: the same operations have the same
//! outcomes and leave the same bytes. Further tests show which bytes are fetched and uploaded, what
//! an event names, and what happens when bits flip.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on panics; the long ones say how long they took"
)]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::Home;
use crate::support::mount::{Blobs, Mount, Passthrough, built, run, runtime};
use crate::support::trees::{picture, sum};
use ionfs::event::FileEntry;
use ionfs::stores::open::{StoreUrls, open};
use proptest::prelude::*;

// ---- generated operations ----

#[derive(Clone, Debug)]
enum Op {
    Create(u8),
    CreateNew(u8),
    Write(u8, u32, u16),
    Append(u8, u16),
    Truncate(u8, u32),
    Read(u8),
    Remove(u8),
    Rename(u8, u8),
    Link(u8, u8),
    Symlink(u8, u8),
    Mkdir(u8),
    Rmdir(u8),
    Chmod(u8, u16),
    Touch(u8, i64),
    List(u8),
    Allocate(u8, u32, u16),
    WriteUnlinked(u8, u16),
    Rewrite(u8, u16),
}

fn op() -> impl Strategy<Value = Op> {
    let n = 0..24u8;
    prop_oneof![
        3 => n.clone().prop_map(Op::Create),
        1 => n.clone().prop_map(Op::CreateNew),
        4 => (n.clone(), 0..300_000u32, any::<u16>()).prop_map(|(a, b, c)| Op::Write(a, b, c)),
        2 => (n.clone(), any::<u16>()).prop_map(|(a, b)| Op::Append(a, b)),
        2 => (n.clone(), 0..400_000u32).prop_map(|(a, b)| Op::Truncate(a, b)),
        3 => n.clone().prop_map(Op::Read),
        2 => n.clone().prop_map(Op::Remove),
        3 => (n.clone(), n.clone()).prop_map(|(a, b)| Op::Rename(a, b)),
        2 => (n.clone(), n.clone()).prop_map(|(a, b)| Op::Link(a, b)),
        1 => (n.clone(), n.clone()).prop_map(|(a, b)| Op::Symlink(a, b)),
        2 => n.clone().prop_map(Op::Mkdir),
        1 => n.clone().prop_map(Op::Rmdir),
        1 => (n.clone(), 0..0o1000u16).prop_map(|(a, b)| Op::Chmod(a, b)),
        // The times lie between 1901 and 2106, to the nanosecond.
        1 => (n.clone(), i64::from(i32::MIN) * 1_000_000_000..i64::from(u32::MAX) * 1_000_000_000).prop_map(|(a, b)| Op::Touch(a, b)),
        1 => n.clone().prop_map(Op::List),
        1 => (n.clone(), 0..200_000u32, any::<u16>()).prop_map(|(a, b, c)| Op::Allocate(a, b, c)),
        1 => (n.clone(), any::<u16>()).prop_map(|(a, b)| Op::WriteUnlinked(a, b)),
        2 => (n, any::<u16>()).prop_map(|(a, b)| Op::Rewrite(a, b)),
    ]
}

/// Returns the name that a number stands for on both sides, up to three levels deep.
fn name(n: u8) -> String {
    match n {
        0..8 => format!("n{n}"),
        8..16 => format!("n{}/m{n}", n % 4),
        _ => format!("n{}/m{}/l{n}", n % 4, 8 + n % 4),
    }
}

fn bytes(seed: u16) -> Vec<u8> {
    (0..usize::from(seed) * 3 + 1)
        .map(|i| u8::try_from((i * 7 + usize::from(seed)) % 251).unwrap())
        .collect()
}

/// Does one operation below `root`. Returns what it read, or the errno of its failure.
fn apply(root: &Path, op: &Op) -> Result<String, Option<i32>> {
    let at = |n: &u8| root.join(name(*n));
    let done = |()| String::new();
    let outcome: io::Result<String> = match op {
        Op::Create(n) => File::create(at(n)).map(|_| ()).map(done),
        Op::CreateNew(n) => File::create_new(at(n)).map(|_| ()).map(done),
        Op::Write(n, offset, seed) => OpenOptions::new()
            .write(true)
            .open(at(n))
            .and_then(|f| f.write_all_at(&bytes(*seed), u64::from(*offset)))
            .map(done),
        Op::Append(n, seed) => OpenOptions::new()
            .append(true)
            .open(at(n))
            .and_then(|mut f| f.write_all(&bytes(*seed)))
            .map(done),
        Op::Truncate(n, length) => OpenOptions::new()
            .write(true)
            .open(at(n))
            .and_then(|f| f.set_len(u64::from(*length)))
            .map(done),
        Op::Read(n) => {
            fs::read(at(n)).map(|content| format!("{} {:x}", content.len(), sum(&content)))
        }
        Op::Remove(n) => fs::remove_file(at(n)).map(done),
        Op::Rename(a, b) => fs::rename(at(a), at(b)).map(done),
        Op::Link(a, b) => fs::hard_link(at(a), at(b)).map(done),
        Op::Symlink(a, b) => std::os::unix::fs::symlink(format!("n{}", a % 8), at(b)).map(done),
        Op::Mkdir(n) => fs::create_dir(at(n)).map(done),
        Op::Rmdir(n) => fs::remove_dir(at(n)).map(done),
        Op::Chmod(n, mode) => {
            fs::set_permissions(at(n), fs::Permissions::from_mode(u32::from(*mode))).map(done)
        }
        Op::Touch(n, nanos) => {
            let distance = Duration::from_nanos(nanos.unsigned_abs());
            let epoch = std::time::UNIX_EPOCH;
            let moment = if *nanos < 0 { epoch - distance } else { epoch + distance };
            let touched = File::open(at(n)).and_then(|f| f.set_modified(moment).map(|()| f));
            touched.and_then(|f| f.metadata()?.modified()).map(|modified| format!("{modified:?}"))
        }
        Op::List(n) => fs::read_dir(at(n)).map(|entries| {
            let mut names: Vec<_> =
                entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names.join(",")
        }),
        Op::Allocate(n, offset, length) => OpenOptions::new()
            .write(true)
            .open(at(n))
            .and_then(|f| {
                Ok(rustix::fs::fallocate(
                    &f,
                    rustix::fs::FallocateFlags::empty(),
                    u64::from(*offset),
                    u64::from(*length) + 1,
                )?)
            })
            .map(done),
        Op::WriteUnlinked(n, seed) => {
            OpenOptions::new().read(true).write(true).open(at(n)).and_then(|f| {
                fs::remove_file(at(n))?;
                f.write_all_at(&bytes(*seed), 11)?;
                Ok(format!("{} {}", f.metadata()?.len(), f.metadata()?.nlink()))
            })
        }
        Op::Rewrite(n, seed) => {
            let new = root.join("rewrite.tmp");
            fs::write(&new, bytes(*seed))
                .and_then(|()| {
                    fs::rename(&new, at(n)).inspect_err(|_| fs::remove_file(&new).unwrap())
                })
                .map(done)
        }
    };
    outcome.map_err(|error| error.raw_os_error())
}

/// Does generated operations in a mount and in a plain directory. Asserts that each has the same
/// outcome on both sides, and that both sides are the same in the end.
fn agree(mount: &Mount, cases: u32) {
    let reference = Home::new();
    let round = std::cell::Cell::new(0);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&proptest::collection::vec(op(), 1..60), |ops| {
        round.set(round.get() + 1);
        let round = round.get();
        let (ours, theirs) =
            (mount.data().join(round.to_string()), reference.path().join(round.to_string()));
        fs::create_dir(&ours).unwrap();
        fs::create_dir(&theirs).unwrap();
        for op in &ops {
            prop_assert_eq!(apply(&ours, op), apply(&theirs, op), "{:?} of {:?}", op, ops);
        }
        prop_assert_eq!(picture(&ours), picture(&theirs), "{:?}", ops);
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_staged_tree_behaves_as_a_plain_directory() {
    agree(&Mount::new(Passthrough::Allowed, Blobs::Files, &[]), 150);
}

#[test]
fn a_staged_tree_behaves_as_a_plain_directory_without_passthrough() {
    agree(&Mount::new(Passthrough::Off, Blobs::Memory, &[]), 150);
}

// ---- reading ----

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| u8::try_from(i % 249).unwrap()).collect()
}

#[test]
fn inputs_read_the_same_whoever_moves_the_bytes() {
    let big = pattern(9_000_001);
    let files: &[(&str, &[u8])] = &[("empty", b""), ("small.txt", b"hello"), ("deep/er/big", &big)];
    for (passthrough, blobs) in [
        (Passthrough::Allowed, Blobs::Files),
        (Passthrough::Allowed, Blobs::Memory),
        (Passthrough::Off, Blobs::Files),
        (Passthrough::Off, Blobs::Memory),
    ] {
        let mount = Mount::new(passthrough, blobs, files);
        for _ in 0..3 {
            for (name, content) in files {
                assert_eq!(
                    fs::read(mount.at(&format!("in/data/{name}"))).unwrap(),
                    *content,
                    "{name} {passthrough:?} {blobs:?}"
                );
            }
        }
        // Each byte is fetched once, although it is read three times.
        assert_eq!(mount.metric("bytesFetched"), big.len() as u64 + 5, "{passthrough:?} {blobs:?}");
        // Where passthrough is possible, the kernel reads a file by itself once the file is whole
        // on this machine.
        assert_eq!(
            mount.metric("opensPassthrough") > 0,
            passthrough == Passthrough::Allowed && rustix::process::geteuid().is_root(),
            "{passthrough:?} {blobs:?}"
        );
        assert_eq!(
            fs::write(mount.at("in/data/small.txt"), "x").unwrap_err().raw_os_error(),
            Some(libc::EROFS)
        );
        assert_eq!(
            fs::remove_file(mount.at("in/data/small.txt")).unwrap_err().raw_os_error(),
            Some(libc::EROFS)
        );
    }
}

#[test]
fn a_megabyte_of_ten_gigabytes_fetches_about_a_megabyte() {
    let (runtime, home) = (runtime(), Home::new());
    let path = home.path().join("huge");
    // The file is sparse: ten gigabytes can be read from it, and it takes no room on the disk.
    File::create(&path).unwrap().set_len(10 << 30).unwrap();
    let plane = runtime.block_on(open(&StoreUrls::embedded(&home.state()))).unwrap();
    // The file is moved to the place of its blob, because an upload would read all of it.
    let key = "c/e/0/huge";
    let target = home.state().join("blobs").join(key);
    fs::create_dir_all(target.parent().unwrap()).unwrap();
    fs::rename(&path, &target).unwrap();
    let mut summer = ionfs::checksum::BlockChecksummer::default();
    let zeroes = vec![0; 64 << 20];
    for _ in 0..160 {
        summer.update(&zeroes);
    }
    let entry = FileEntry {
        name: "huge".into(),
        key: key.into(),
        size: 10 << 30,
        mtime: 0,
        mtime_nanos: 0,
        mode: 0o644,
        checksums: summer.finish(),
    };
    let mount = Mount::over(runtime, home, plane, Passthrough::Allowed, vec![entry]);
    let file = File::open(mount.at("in/data/huge")).unwrap();
    let mut buffer = vec![1; 1 << 20];
    file.read_exact_at(&mut buffer, 7 << 30).unwrap();
    assert!(buffer.iter().all(|byte| *byte == 0));
    let fetched = mount.metric("bytesFetched");
    assert!(fetched <= 3 << 20, "{fetched} bytes were fetched for one megabyte");
}

#[test]
fn a_flipped_bit_in_the_store_is_eio_and_never_wrong_bytes() {
    let content = pattern(3_000_000);
    let mount = Mount::new(Passthrough::Allowed, Blobs::Files, &[("f", &content)]);
    let blob = mount.home.state().join("blobs/c/e/0/f");
    let file = OpenOptions::new().write(true).open(blob).unwrap();
    file.write_all_at(&[content[1_500_000] ^ 1], 1_500_000).unwrap();
    let file = File::open(mount.at("in/data/f")).unwrap();
    let mut buffer = vec![0; 4096];
    file.read_exact_at(&mut buffer, 0).unwrap();
    assert_eq!(buffer, content[..4096]);
    assert_eq!(
        file.read_exact_at(&mut buffer, 1_500_000 - 100).unwrap_err().raw_os_error(),
        Some(libc::EIO)
    );
}

#[test]
fn a_bit_that_flips_on_the_staging_disk_is_in_no_event() {
    let mount = Mount::new(Passthrough::Allowed, Blobs::Files, &[]);
    let content = pattern(3_000_000);
    let mut file = File::create(mount.at("out/data/f")).unwrap();
    for piece in content.chunks(50_001) {
        file.write_all(piece).unwrap();
    }
    let staged = OpenOptions::new().write(true).open(mount.staged("data/f")).unwrap();
    staged.write_all_at(&[content[1_500_000] ^ 1], 1_500_000).unwrap();
    drop(file);
    let mut event = File::create(mount.at("out/events/e")).unwrap();
    event.write_all(br#"{"eventType":"x","files":["f"]}"#).unwrap();
    // `fsync` returns the outcome. A `File` that is dropped does not return the errno of its close.
    assert_eq!(event.sync_all().unwrap_err().raw_os_error(), Some(libc::EIO));
    drop(event);
    // When the file is written again, its content is right and an event can name it.
    fs::write(mount.at("out/data/f"), &content).unwrap();
    fs::remove_file(mount.at("out/events/e")).unwrap();
    assert_eq!(mount.content(&mount.commit(&["f"]).files[0]), content);
}

/// A forked child may close an event file before its parent does. The parent's close must not
/// return before the outcome of the event is known.
#[test]
fn a_close_waits_for_what_another_close_has_begun() {
    let mount = Mount::new(Passthrough::Allowed, Blobs::Files, &[]);
    let content = pattern(3_000_000);
    for n in 0..40_u64 {
        let name = format!("f{n}");
        let mut file = File::create(mount.at(&format!("out/data/{name}"))).unwrap();
        file.write_all(&content).unwrap();
        let staged =
            OpenOptions::new().write(true).open(mount.staged(&format!("data/{name}"))).unwrap();
        staged.write_all_at(&[content[1_500_000] ^ 1], 1_500_000).unwrap();
        // The file is closed just before the event names it, so its upload has hardly begun.
        drop(file);
        let mut event = File::create(mount.at(&format!("out/events/e{n}"))).unwrap();
        event.write_all(format!(r#"{{"eventType":"x","files":["{name}"]}}"#).as_bytes()).unwrap();
        let childs = event.try_clone().unwrap();
        let closer = std::thread::spawn(move || drop(childs));
        let (begun, later) = (Instant::now(), Duration::from_micros(n * 100));
        while begun.elapsed() < later {
            std::hint::spin_loop();
        }
        assert_eq!(event.sync_all().unwrap_err().raw_os_error(), Some(libc::EIO), "{name}");
        closer.join().unwrap();
    }
}

#[test]
fn a_job_that_was_ended_by_force_commits_nothing_more() {
    let mount = Mount::new(Passthrough::Allowed, Blobs::Files, &[]);
    let open = |n: usize| {
        let mut file = File::create(mount.at(&format!("out/events/e{n}"))).unwrap();
        file.write_all(br#"{"eventType": "#).unwrap();
        file
    };
    let halves: Vec<File> = (0..32).map(open).collect();
    mount.stop();
    for (n, mut half) in halves.into_iter().enumerate() {
        half.write_all(br#""x"}"#).unwrap();
        assert_eq!(half.sync_all().unwrap_err().raw_os_error(), Some(libc::EIO));
        drop(half);
        assert!(mount.committed(&format!("e{n}")).is_none(), "`e{n}` is not committed");
    }
}

// ---- references ----

#[test]
fn cp_ln_and_mv_from_the_input_move_no_bytes() {
    let big = pattern(5_000_000);
    let mount = Mount::new(
        Passthrough::Allowed,
        Blobs::Files,
        &[("big", &big), ("d/one", b"1"), ("d/two", b"2")],
    );
    let (from, to) = (mount.at("in/data/big"), mount.data());
    let from = from.to_str().unwrap();
    run("cp", &[from, to.join("copied").to_str().unwrap()]);
    run("ln", &[from, to.join("linked").to_str().unwrap()]);
    run("mv", &[from, to.join("moved").to_str().unwrap()]);
    run("mv", &[mount.at("in/data/d").to_str().unwrap(), to.join("d").to_str().unwrap()]);
    assert_eq!((mount.metric("bytesFetched"), mount.metric("bytesUploaded")), (0, 0));
    assert!(!mount.at("in/data/big").exists());
    let event = mount.commit(&["copied", "linked", "moved", "d/one", "d/two"]);
    assert_eq!((mount.metric("bytesFetched"), mount.metric("bytesUploaded")), (0, 0));
    for (file, key) in event.files.iter().zip(["big", "big", "big", "d/one", "d/two"]) {
        assert_eq!(file.key, format!("c/e/0/{key}"));
    }
    for name in ["copied", "linked", "moved"] {
        assert_eq!(fs::read(to.join(name)).unwrap(), big, "{name}");
        // The file must not look like a hole, because `cp` would then copy zeroes.
        assert_eq!(fs::metadata(to.join(name)).unwrap().blocks(), (big.len() as u64).div_ceil(512));
    }
    run(
        "cp",
        &[
            "--sparse=always",
            to.join("linked").to_str().unwrap(),
            mount.home.path().join("outside").to_str().unwrap(),
        ],
    );
    assert_eq!(fs::read(mount.home.path().join("outside")).unwrap(), big);
}

#[test]
fn a_reference_that_is_written_becomes_a_file_of_its_own() {
    let content = pattern(2_500_000);
    let mount = Mount::new(Passthrough::Allowed, Blobs::Memory, &[("f", &content)]);
    let path = |name: &str| mount.data().join(name);
    for name in ["patched", "appended", "cut", "grown", "mapped"] {
        fs::hard_link(mount.at("in/data/f"), path(name)).unwrap();
        fs::set_permissions(path(name), fs::Permissions::from_mode(0o644)).unwrap();
    }
    let edit = |name: &str| OpenOptions::new().read(true).write(true).open(path(name)).unwrap();
    edit("patched").write_all_at(b"XYZ", 1_234_567).unwrap();
    OpenOptions::new().append(true).open(path("appended")).unwrap().write_all(b"tail").unwrap();
    edit("cut").set_len(1_000_000).unwrap();
    fs::File::options().write(true).open(path("grown")).unwrap().set_len(2_500_010).unwrap();
    run(
        "python3",
        &[
            "-c",
            &format!(
                "import mmap\nf=open({:?},'r+b')\nm=mmap.mmap(f.fileno(),0)\nm[5:8]=b'ABC'\nm.flush()\nm.close()\nf.close()",
                path("mapped")
            ),
        ],
    );
    let mut expected = BTreeMap::new();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut copy = content.clone();
        change(&mut copy);
        copy
    };
    expected.insert("patched", with(&|c| c[1_234_567..1_234_570].copy_from_slice(b"XYZ")));
    expected.insert("appended", with(&|c| c.extend_from_slice(b"tail")));
    expected.insert("cut", with(&|c| c.truncate(1_000_000)));
    expected.insert("grown", with(&|c| c.resize(2_500_010, 0)));
    expected.insert("mapped", with(&|c| c[5..8].copy_from_slice(b"ABC")));
    let event = mount.commit(&["patched", "appended", "cut", "grown", "mapped"]);
    for file in &event.files {
        assert_eq!(
            fs::read(path(&file.name)).unwrap(),
            expected[file.name.as_str()],
            "{}",
            file.name
        );
        assert_eq!(mount.content(file), expected[file.name.as_str()], "{}", file.name);
    }
    assert_eq!(fs::read(mount.at("in/data/f")).unwrap(), content);
}

// ---- what is committed ----

#[test]
fn a_commit_names_each_files_last_content() {
    let mount = Mount::new(Passthrough::Allowed, Blobs::Files, &[]);
    let path = mount.data().join("f");
    for round in 0..20u8 {
        fs::write(&path, vec![round; 1000 + usize::from(round)]).unwrap();
    }
    run("setfattr", &["-n", "user.colour", "-v", "blue", path.to_str().unwrap()]);
    fs::create_dir(mount.data().join("sub")).unwrap();
    std::os::unix::fs::symlink("../f", mount.data().join("sub/link")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).unwrap();
    let event = mount.commit(&["f", "sub/link"]);
    for file in &event.files {
        assert_eq!(mount.content(file), vec![19; 1019]);
        assert_eq!(file.mode, 0o750);
    }
}

#[test]
fn a_link_may_point_anywhere_and_an_event_follows_it_nowhere_outside() {
    let mount = Mount::new(Passthrough::Allowed, Blobs::Files, &[]);
    let link = mount.data().join("escape");
    let (draft, event) = (mount.at("out/events/e.tmp"), mount.at("out/events/e.json"));
    for target in ["/etc/hostname", "../../../../../../../../../../../../etc/hostname"] {
        std::os::unix::fs::symlink(target, &link).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new(target));
        fs::write(&draft, r#"{"eventType":"made","files":["escape"]}"#).unwrap();
        let refused = fs::rename(&draft, &event).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL), "{target}");
        fs::remove_file(&link).unwrap();
    }
}

#[test]
fn space_is_told_as_the_staging_disk_has_it() {
    let mount = Mount::new(Passthrough::Allowed, Blobs::Files, &[]);
    let (ours, disk) = (
        rustix::fs::statvfs(mount.data()).unwrap(),
        rustix::fs::statvfs(mount.home.path()).unwrap(),
    );
    assert_eq!(
        (ours.f_blocks, ours.f_frsize, ours.f_files),
        (disk.f_blocks, disk.f_frsize, disk.f_files)
    );
}

#[test]
fn many_names_are_listed_and_found() {
    let mount = Mount::new(Passthrough::Allowed, Blobs::Files, &[]);
    for n in 0..3000 {
        File::create(mount.data().join(format!("f{n}"))).unwrap();
    }
    assert_eq!(fs::read_dir(mount.data()).unwrap().count(), 3000);
    let names: Vec<String> = (0..3000).map(|n| format!("f{n}")).collect();
    let event = mount.commit(&names.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(
        event.files.is_empty() && event.file_list.is_some(),
        "a long list of files is a blob of its own"
    );
    let files = mount.runtime.block_on(mount.node.plane.files_of(&event)).unwrap();
    assert_eq!(files.len(), 3000);
}

/// The configuration of `fsx`. Its five default operations read, write and truncate, and read and
/// write through maps. The operations in this list are less frequent. After each `close_open`, the
/// kernel has to learn the file anew.
const FSX: &str = "flen = 65536
[opsize]
min = 1
[weights]
close_open = 1
invalidate = 1
fsync = 1
fdatasync = 1
posix_fallocate = 2
punch_hole = 2
sendfile = 2
posix_fadvise = 1
copy_file_range = 2
";

/// Runs `fsx`, which does random operations on one file, through maps and without, and compares
/// every byte. It does sixty thousand operations, or as many as `ION_TEST_FSX_OPS` says, as in
/// `make torture-files`. `fsx` never unmaps what it maps for a read, so on any filesystem its time
/// grows with the square of its operations. So there are many short runs, each with a seed of its
/// own.
fn fsx(passthrough: Passthrough) {
    const OPS: u64 = 1000;
    let asked = std::env::var("ION_TEST_FSX_OPS").map_or(60_000, |ops| ops.parse::<u64>().unwrap());
    let fsx = built("fsx");
    let mount = Mount::new(passthrough, Blobs::Files, &[]);
    let config = mount.home.write("fsx.toml", FSX);
    let file = mount.data().join("fsx");
    let began = std::time::Instant::now();
    for seed in 1..=asked.div_ceil(OPS) {
        let (ops, seed) = (OPS.to_string(), seed.to_string());
        let words =
            ["-q", "-N", &ops, "-S", &seed, "-f", config.to_str().unwrap(), file.to_str().unwrap()];
        run(fsx.to_str().unwrap(), &words);
        // A reader of the mount gets the same bytes as the staging folder has, also where the
        // kernel reads them by itself.
        assert_eq!(
            fs::read(&file).unwrap(),
            fs::read(mount.staged("data/fsx")).unwrap(),
            "seed {seed}"
        );
        fs::remove_file(&file).unwrap();
    }
    println!("{asked} operations of fsx, {passthrough:?}, seeds from 1: {:?}", began.elapsed());
}

#[test]
fn fsx_finds_no_mismatch() {
    fsx(Passthrough::Allowed);
}

#[test]
fn fsx_finds_no_mismatch_without_passthrough() {
    fsx(Passthrough::Off);
}
