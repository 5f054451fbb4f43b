//! Tests of the data path: which bytes are uploaded and fetched ahead of time, which copies move no
//! bytes at all, and when blobs leave the store.

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::support::mount::{Blobs, Mount, Passthrough, run};
use crate::support::{may_mount_or_runs_where_it_may, wait_for};

const MIB: usize = 1 << 20;

/// Returns a content of this length in which no two places are alike.
fn content(seed: u64, length: usize) -> Vec<u8> {
    let words = (0..length.div_ceil(8) as u64)
        .map(|n| (n ^ seed << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).take(length).collect()
}

/// Returns every file below a folder with its length.
fn files(at: &Path) -> Vec<(PathBuf, u64)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(at).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => all.extend(files(&entry.path())),
            Ok(metadata) => all.push((entry.path(), metadata.len())),
            Err(_) => {}
        }
    }
    all
}

/// Returns how many bytes of a file are stored by an upload that has not ended. The store on local
/// files writes such an upload to `name#number`.
fn under_way(mount: &Mount, name: &str) -> u64 {
    let all = files(&mount.home.state().join("blobs"));
    let its_own =
        |path: &Path| path.file_name().unwrap().to_str().unwrap().starts_with(&format!("{name}#"));
    all.iter().filter(|(path, _)| its_own(path)).map(|(_, length)| length).sum()
}

/// Writes 20 MiB, and then a little at a time until the upload of the file has begun. Returns how
/// many bytes are written.
fn write_until_its_upload_begins(
    mount: &Mount,
    name: &str,
    file: &mut File,
    bytes: &[u8],
) -> usize {
    let mut at = 20 * MIB;
    file.write_all(&bytes[..at]).unwrap();
    wait_for("the upload to begin", || {
        file.write_all(&bytes[at..at + 1000]).unwrap();
        at += 1000;
        under_way(mount, name) > 0
    });
    at
}

#[test]
fn a_long_file_follows_its_writer_into_the_store() {
    let name = "a_long_file_follows_its_writer_into_the_store";
    if !may_mount_or_runs_where_it_may(name) {
        return;
    }
    let mount = Mount::new(Passthrough::Allowed, Blobs::Files, &[]);
    let bytes = content(1, 60 * MIB + 17);
    let mut file = File::create(mount.at("out/data/long")).unwrap();
    let at = write_until_its_upload_begins(&mount, "long", &mut file, &bytes);
    file.write_all(&bytes[at..40 * MIB]).unwrap();
    wait_for("the upload of the bytes that are written", || {
        under_way(&mount, "long") >= 24 * MIB as u64
    });
    // A file that is moved while it is written stays the same file.
    fs::rename(mount.at("out/data/long"), mount.at("out/data/moved")).unwrap();
    file.write_all(&bytes[40 * MIB..]).unwrap();
    drop(file);
    let event = mount.commit(&["moved"]);
    assert!(mount.content(&event.files[0]) == bytes, "the blob has the content of the file");
    assert_eq!(event.files[0].name, "moved");
    assert_eq!(mount.metric("bytesUploaded"), bytes.len() as u64, "each byte is uploaded once");
    assert_eq!(under_way(&mount, "long"), 0);
}

/// A module may do anything to a file whose upload has begun. The event has the last content of the
/// file, and no other blob is left.
#[test]
fn what_is_written_again_is_stored_anew() {
    if !may_mount_or_runs_where_it_may("what_is_written_again_is_stored_anew") {
        return;
    }
    type Change = fn(&mut File, &mut Vec<u8>);
    let changes: [(&str, Change); 6] = [
        ("header", |file, bytes| {
            bytes[..4].copy_from_slice(b"HEAD");
            file.write_all_at(b"HEAD", 0).unwrap();
        }),
        ("cut", |file, bytes| {
            bytes.truncate(20 * MIB + 5);
            file.set_len(bytes.len() as u64).unwrap();
        }),
        ("again", |file, bytes| {
            *bytes = content(7, 33 * MIB);
            file.set_len(0).unwrap();
            file.seek(SeekFrom::Start(0)).unwrap();
            file.write_all(bytes).unwrap();
        }),
        ("hole", |file, bytes| {
            bytes.resize(bytes.len() + 3 * MIB, 0);
            bytes.extend_from_slice(b"end");
            file.write_all_at(b"end", bytes.len() as u64 - 3).unwrap();
        }),
        ("longer", |file, bytes| {
            bytes.resize(bytes.len() + MIB, 0);
            file.set_len(bytes.len() as u64).unwrap();
        }),
        ("append", |file, bytes| {
            bytes.extend_from_slice(&content(9, 18 * MIB));
            file.write_all(&bytes[32 * MIB..]).unwrap();
        }),
    ];
    let mount = Mount::new(Passthrough::Allowed, Blobs::Files, &[]);
    let mut expected = Vec::new();
    for (name, change) in changes {
        let mut bytes = content(3, 32 * MIB);
        let mut file = File::create_new(mount.at("out/data").join(name)).unwrap();
        let at = write_until_its_upload_begins(&mount, name, &mut file, &bytes);
        file.write_all(&bytes[at..]).unwrap();
        change(&mut file, &mut bytes);
        drop(file);
        expected.push((name, bytes));
    }
    // This file is removed while its upload is under way.
    let mut gone = File::create(mount.at("out/data/gone")).unwrap();
    write_until_its_upload_begins(&mount, "gone", &mut gone, &content(4, 32 * MIB));
    fs::remove_file(mount.at("out/data/gone")).unwrap();
    drop(gone);
    let names: Vec<&str> = expected.iter().map(|(name, _)| *name).collect();
    let event = mount.commit(&names);
    for ((name, bytes), entry) in expected.iter().zip(&event.files) {
        assert_eq!(entry.name, *name);
        assert!(mount.content(entry) == *bytes, "{name}: {} bytes of {}", entry.size, bytes.len());
    }
    let blobs = mount.home.state().join("blobs");
    wait_for("the uploads that were given up to leave the store", || {
        files(&blobs).len() == expected.len()
    });
}

/// When a module removes or replaces a file, the file's blob leaves the store at once, while the
/// job goes on. A blob that an event names stays.
#[test]
fn what_no_event_can_name_any_more_leaves_the_store_at_once() {
    if !may_mount_or_runs_where_it_may("what_no_event_can_name_any_more_leaves_the_store_at_once") {
        return;
    }
    let mount = Mount::new(Passthrough::Allowed, Blobs::Files, &[]);
    let stored = || {
        let blobs = files(&mount.home.state().join("blobs"));
        blobs.iter().filter(|(path, _)| !path.to_str().unwrap().contains('#')).count()
    };
    let at = |name: &str| mount.at("out/data").join(name);
    let removed: Vec<String> = (0..1200).map(|n| format!("f{n}")).collect();
    removed.iter().for_each(|name| fs::write(at(name), "x").unwrap());
    for name in ["named", "replaced", "open"] {
        fs::write(at(name), name).unwrap();
    }
    wait_for("all files to be stored", || stored() == removed.len() + 3);
    let event = mount.commit(&["named"]);
    let open = File::open(at("open")).unwrap();
    fs::remove_file(at("open")).unwrap();
    fs::write(at("new"), "new").unwrap();
    fs::rename(at("new"), at("replaced")).unwrap();
    fs::remove_file(at("named")).unwrap();
    removed.iter().for_each(|name| fs::remove_file(at(name)).unwrap());
    // Three blobs are left: the one that the event names, the new content of the file that was
    // replaced, and the file that is removed but still open.
    wait_for("the removed files to leave the store", || stored() == 3);
    drop(open);
    wait_for("the file that was open to leave the store", || stored() == 2);
    assert_eq!(mount.content(&event.files[0]), b"named");
    drop(mount);
}

/// A program that goes through a directory finds its files fetched already, each of them once. A
/// program that opens single files fetches only those.
#[test]
fn the_files_of_a_directory_are_fetched_ahead_of_who_walks_it() {
    const FILES: usize = 300;
    const SIZE: usize = 5000;
    if !may_mount_or_runs_where_it_may("the_files_of_a_directory_are_fetched_ahead_of_who_walks_it")
    {
        return;
    }
    let files: Vec<(String, Vec<u8>)> =
        (0..FILES).map(|n| (format!("d/{n:04}"), content(n as u64, SIZE))).collect();
    let inputs: Vec<(&str, &[u8])> =
        files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let mount = Mount::new(Passthrough::Allowed, Blobs::Memory, &inputs);
    let data = mount.at("in/data");
    let read = |n: usize| assert!(fs::read(data.join(&files[n].0)).unwrap() == files[n].1, "{n}");
    for n in [200, 100, 250] {
        read(n);
    }
    assert_eq!(
        mount.metric("bytesFetched"),
        3 * SIZE as u64,
        "only the files that are read are fetched"
    );
    (0..40).for_each(read);
    wait_for("more files to be fetched than are read", || {
        mount.metric("bytesFetched") >= 60 * SIZE as u64
    });
    (40..FILES).for_each(read);
    assert_eq!(mount.metric("bytesFetched"), (FILES * SIZE) as u64, "each file is fetched once");
}

/// A small write to a copy of a large input fetches only the blocks that it touches. The rest is
/// fetched when the copy is closed.
#[test]
fn a_write_to_a_copy_brings_only_the_blocks_it_touches() {
    if !may_mount_or_runs_where_it_may("a_write_to_a_copy_brings_only_the_blocks_it_touches") {
        return;
    }
    let mut bytes = content(5, 20 * MIB + 100);
    let mount = Mount::new(Passthrough::Allowed, Blobs::Memory, &[("in", &bytes)]);
    fs::copy(mount.at("in/data/in"), mount.at("out/data/f")).unwrap();
    assert_eq!(mount.metric("bytesFetched"), 0, "a copy moves nothing");
    let file = File::options().read(true).write(true).open(mount.at("out/data/f")).unwrap();
    assert_eq!(mount.metric("bytesFetched"), 0, "opening a copy moves nothing");
    file.write_all_at(b"HEAD", 5 * MIB as u64 - 2).unwrap();
    bytes[5 * MIB - 2..5 * MIB + 2].copy_from_slice(b"HEAD");
    assert!(mount.metric("bytesFetched") <= 3 * MIB as u64, "{}", mount.metric("bytesFetched"));
    let mut seen = vec![0; 3 * MIB];
    file.read_exact_at(&mut seen, 3 * MIB as u64).unwrap();
    assert!(seen == bytes[3 * MIB..6 * MIB]);
    drop(file);
    let event = mount.commit(&["f"]);
    assert!(mount.content(&event.files[0]) == bytes);
}

/// A copy of an input behaves like any other file, whatever is done to it and in whatever order.
#[test]
fn copies_are_files_like_any_others() {
    const LENGTH: usize = 6 * MIB + 1234;
    const STEPS: u64 = 60;
    if !may_mount_or_runs_where_it_may("copies_are_files_like_any_others") {
        return;
    }
    let input = content(6, LENGTH);
    for (seed, blobs) in
        [(1, Blobs::Memory), (2, Blobs::Files), (3, Blobs::Memory), (4, Blobs::Memory)]
    {
        let mount = Mount::new(Passthrough::Allowed, blobs, &[("in", &input)]);
        let path = mount.at("out/data/f");
        fs::copy(mount.at("in/data/in"), &path).unwrap();
        let mut bytes = input.clone();
        let mut state = seed;
        let mut below = |most: usize| {
            state = (state ^ 0x5851_f42d_4c95_7f2d_u64)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(29);
            (state >> 33) as usize % most.max(1)
        };
        let mut file = File::options().read(true).write(true).open(&path).unwrap();
        for step in 0..STEPS {
            let at = below(bytes.len() + MIB);
            match below(8) {
                0..=2 => {
                    let most = (3 * MIB) >> below(12);
                    let written = content(step, below(most));
                    file.write_all_at(&written, at as u64).unwrap();
                    if !written.is_empty() {
                        bytes.resize(bytes.len().max(at + written.len()), 0);
                        bytes[at..at + written.len()].copy_from_slice(&written);
                    }
                }
                3 => {
                    let length = below(bytes.len() * 2).clamp(MIB / 2, LENGTH * 2);
                    file.set_len(length as u64).unwrap();
                    bytes.resize(length, 0);
                }
                4 => {
                    // The close begins the upload of the file. For that, the bytes that only the
                    // input's blob has are fetched.
                    drop(file);
                    file = File::options().read(true).write(true).open(&path).unwrap();
                }
                5 => {
                    let copy = mount.at(&format!("out/data/copy-{step}"));
                    fs::copy(&path, &copy).unwrap();
                    assert!(
                        fs::read(&copy).unwrap() == bytes,
                        "seed {seed}, step {step}: a copy has the same content"
                    );
                    fs::remove_file(copy).unwrap();
                }
                _ => {
                    let mut seen = vec![0; below(2 * MIB)];
                    let length = file.read_at(&mut seen, at as u64).unwrap();
                    let end = bytes.len().min(at + length);
                    assert!(
                        seen[..length] == bytes[at.min(end)..end],
                        "seed {seed}, step {step} at {at}"
                    );
                }
            }
            assert_eq!(
                file.metadata().unwrap().len(),
                bytes.len() as u64,
                "seed {seed}, step {step}"
            );
        }
        assert!(fs::read(&path).unwrap() == bytes, "seed {seed}");
        drop(file);
        let event = mount.commit(&["f"]);
        assert!(
            mount.content(&event.files[0]) == bytes,
            "seed {seed}: the blob has the same content"
        );
    }
}

/// The programs with which people copy move no byte of an input, where the kernel lets Ion see that
/// they copy.
#[test]
fn the_usual_programs_copy_for_free() {
    if !may_mount_or_runs_where_it_may("the_usual_programs_copy_for_free") {
        return;
    }
    let (big, small) = (content(8, 9 * MIB), content(9, 70_000));
    let inputs: [(&str, &[u8]); 3] = [("big", &big), ("d/one", &small), ("d/e/two", &small)];
    let mount = Mount::new(Passthrough::Allowed, Blobs::Memory, &inputs);
    let (from, to) =
        (|path: &str| mount.at("in/data").join(path), |path: &str| mount.at("out/data").join(path));
    let words = |paths: [PathBuf; 2]| paths.map(|path| path.to_str().unwrap().to_owned());
    for (n, program) in
        ["cp", "cp -r", "cp -a", "ln", "install -m 600", "mv"].into_iter().enumerate()
    {
        let folder = to(&n.to_string());
        fs::create_dir(&folder).unwrap();
        let (program, flags) = program.split_once(' ').unwrap_or((program, ""));
        let flags: Vec<&str> = flags.split(' ').filter(|flag| !flag.is_empty()).collect();
        let whole = flags.iter().any(|flag| ["-r", "-a"].contains(flag)) || program == "mv";
        let copy = |what: &str| {
            let paths = words([from(what), folder.clone()]);
            run(program, &[flags.clone(), paths.iter().map(String::as_str).collect()].concat());
        };
        if whole {
            copy("d");
            assert!(
                fs::metadata(folder.join("d/e/two")).unwrap().len() == small.len() as u64,
                "{program}"
            );
        }
        copy("big");
        assert_eq!(fs::metadata(folder.join("big")).unwrap().len(), big.len() as u64, "{program}");
    }
    let moved = (mount.metric("bytesFetched"), mount.metric("bytesUploaded"));
    assert_eq!(moved, (0, 0), "copies move nothing");
    let files: Vec<String> =
        (0..6).map(|n| format!("{n}/big")).chain(["5/d/e/two".to_owned()]).collect();
    let event = mount.commit(&files.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(
        event.files[..6].iter().all(|file| mount.content(file) == big),
        "each blob has the content of the input"
    );
    assert!(mount.content(&event.files[6]) == small);
    assert_eq!(mount.metric("bytesUploaded"), 0, "an event that names the copies uploads nothing");
}
