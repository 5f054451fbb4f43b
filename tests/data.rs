//! The data path: what moves ahead of time, what moves not at all, and what many files cost.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use support::mount::{Blobs, Mount, Passthrough};
use support::{may_mount_or_runs_where_it_may, wait_for};

const MIB: usize = 1 << 20;

/// Bytes that no two places of a file have alike.
fn content(seed: u64, length: usize) -> Vec<u8> {
    let words = (0..length.div_ceil(8) as u64).map(|n| (n ^ seed << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).take(length).collect()
}

/// Every file below a folder, with its length.
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

/// Bytes of uploads that have not ended: the store on local files writes to `name#number`.
fn under_way(mount: &Mount) -> u64 {
    let unfinished = files(&mount.home.state().join("blobs"));
    let unfinished = unfinished.iter().filter(|(path, _)| path.to_str().unwrap().contains('#'));
    unfinished.map(|(_, length)| length).sum()
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
    file.write_all(&bytes[..40 * MIB]).unwrap();
    wait_for("the upload of what is there", || under_way(&mount) >= 24 * MIB as u64);
    // A file that is moved while it is written stays the same file.
    fs::rename(mount.at("out/data/long"), mount.at("out/data/moved")).unwrap();
    file.write_all(&bytes[40 * MIB..]).unwrap();
    drop(file);
    let event = mount.commit(&["moved"]);
    assert!(mount.content(&event.files[0]) == bytes, "the blob is the file");
    assert_eq!(event.files[0].name, "moved");
    assert_eq!(mount.metric("bytesUploaded"), bytes.len() as u64, "it was uploaded once");
    assert_eq!(under_way(&mount), 0);
}

/// Whatever a module does to a file whose upload has begun: the event has its last content, and no other blob is left.
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
        file.write_all(&bytes).unwrap();
        wait_for("its upload to begin", || under_way(&mount) > 0);
        change(&mut file, &mut bytes);
        drop(file);
        expected.push((name, bytes));
    }
    // Removed while its upload is under way; and one whose writer is still there when the job ends.
    let mut gone = File::create(mount.at("out/data/gone")).unwrap();
    gone.write_all(&content(4, 32 * MIB)).unwrap();
    fs::remove_file(mount.at("out/data/gone")).unwrap();
    drop(gone);
    let names: Vec<&str> = expected.iter().map(|(name, _)| *name).collect();
    let event = mount.commit(&names);
    for ((name, bytes), entry) in expected.iter().zip(&event.files) {
        assert_eq!(entry.name, *name);
        assert!(mount.content(entry) == *bytes, "{name}: {} bytes of {}", entry.size, bytes.len());
    }
    let blobs = mount.home.state().join("blobs");
    wait_for("what was given up to be gone", || files(&blobs).len() == expected.len());
}

/// What goes through a directory finds its files fetched already, each once; what opens one of them gets that one.
#[test]
fn the_files_of_a_directory_are_fetched_ahead_of_who_walks_it() {
    const FILES: usize = 300;
    const SIZE: usize = 5000;
    if !may_mount_or_runs_where_it_may("the_files_of_a_directory_are_fetched_ahead_of_who_walks_it") {
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
    assert_eq!(mount.metric("bytesFetched"), 3 * SIZE as u64, "only what was asked for");
    (0..40).for_each(read);
    wait_for("more than was read", || mount.metric("bytesFetched") >= 60 * SIZE as u64);
    (40..FILES).for_each(read);
    assert_eq!(mount.metric("bytesFetched"), (FILES * SIZE) as u64, "each once");
}
