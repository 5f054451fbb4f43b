//! Tests of how many requests the kernel sends to the daemon for what programs do. They count
//! requests and measure no time, so that a busy machine does not change the outcome.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on panics; it shows what it counted"
)]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;

use crate::support::mount::{Blobs, Mount, Passthrough, run};

const KINDS: [&str; 17] = [
    "lookup",
    "getattr",
    "setattr",
    "mknod",
    "mkdir",
    "open",
    "create",
    "read",
    "write",
    "flush",
    "release",
    "opendir",
    "readdir",
    "readdirplus",
    "releasedir",
    "getxattr",
    "link",
];

/// Returns how many requests of each kind the kernel makes during `work`, without the kinds that do
/// not occur.
fn requests(mount: &Mount, what: &str, work: impl FnOnce()) -> BTreeMap<&'static str, u64> {
    let counted = || KINDS.map(|kind| (kind, mount.node.metrics.request_counter(kind).get()));
    let before: BTreeMap<_, _> = counted().into();
    work();
    let mut made: BTreeMap<_, _> =
        counted().map(|(kind, after)| (kind, after - before[kind])).into();
    // No program waits for these two kinds, so they may belong to something that was done before.
    made.retain(|kind, count| *count > 0 && !["release", "releasedir"].contains(kind));
    println!("{what}: {made:?}");
    made
}

/// Returns how many requests of a kind were made.
fn of(made: &BTreeMap<&'static str, u64>, kind: &str) -> u64 {
    made.get(kind).copied().unwrap_or(0)
}

#[test]
fn what_was_read_and_not_changed_is_read_again_from_the_page_cache() {
    let mount = Mount::new(Passthrough::Off, Blobs::Memory, &[("in", &[7; 100_000])]);
    let at = mount.data().join("f");
    fs::write(&at, vec![3; 8 << 20]).unwrap();
    let read = || assert_eq!(fs::read(&at).unwrap().len(), 8 << 20);
    read();
    let again = requests(&mount, "8 MiB of out/data read again", read);
    assert_eq!(of(&again, "read"), 0, "{again:?}");
    assert_eq!(of(&again, "flush"), 0, "{again:?}");
    // A reader sees a change through another handle, and a change that goes past the page cache.
    OpenOptions::new().append(true).open(&at).unwrap().write_all(b"more").unwrap();
    assert!(fs::read(&at).unwrap().ends_with(b"more"));
    fs::copy(mount.at("in/data/in"), &at).unwrap();
    assert_eq!(fs::read(&at).unwrap(), vec![7; 100_000]);
    File::create(&at).unwrap();
    assert!(fs::read(&at).unwrap().is_empty());
}

#[test]
fn a_small_file_is_written_with_few_requests() {
    const FILES: u64 = 200;
    let mount = Mount::new(Passthrough::Allowed, Blobs::Files, &[]);
    let folder = mount.data().join("d");
    fs::create_dir(&folder).unwrap();
    let made = requests(&mount, "200 files of 100 bytes written", || {
        for n in 0..FILES {
            fs::write(folder.join(n.to_string()), [1; 100]).unwrap();
        }
    });
    assert_eq!(of(&made, "flush"), 0, "{made:?}");
    // For each file, the program waits for LOOKUP, GETATTR of the folder, CREATE, GETXATTR and
    // WRITE, and for nothing else.
    assert!(made.values().sum::<u64>() <= 5 * FILES + 4, "{made:?}");
    let writes = requests(&mount, "1,000 writes of 512 bytes", || {
        let mut file = File::create(folder.join("log")).unwrap();
        for _ in 0..1000 {
            file.write_all(&[2; 512]).unwrap();
        }
    });
    assert_eq!(of(&writes, "write"), 1000);
    // From Linux 5.12 on, the kernel asks for an extended attribute before the first write only,
    // because Ion requests that.
    assert!(of(&writes, "getxattr") <= 1, "{writes:?}");
}

#[test]
fn names_and_sizes_are_listed_again_by_few_requests() {
    const FILES: usize = 2000;
    let mount = Mount::new(Passthrough::Allowed, Blobs::Files, &[]);
    let folder = mount.data().join("d");
    fs::create_dir(&folder).unwrap();
    for n in 0..FILES {
        fs::write(folder.join(format!("f{n}")), "x").unwrap();
    }
    let list = || {
        let sizes =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().size());
        sizes.collect::<Vec<u64>>()
    };
    assert_eq!(list().len(), FILES);
    let again =
        requests(&mount, "2,000 names and sizes again", || assert_eq!(list(), vec![1; FILES]));
    // One request lists hundreds of names, and no request is about a single name.
    assert!(again.values().sum::<u64>() <= FILES as u64 / 100, "{again:?}");
    fs::remove_file(folder.join("f7")).unwrap();
    fs::write(folder.join("new"), "yy").unwrap();
    OpenOptions::new().append(true).open(folder.join("f9")).unwrap().write_all(b"zz").unwrap();
    let mut sizes = list();
    sizes.sort_unstable();
    assert_eq!(sizes, [vec![1; FILES - 2], vec![2, 3]].concat());
}

/// When `find -size` looks at the inputs again, and a program reads one of them again, the kernel
/// lists and reads nothing anew.
#[test]
fn an_input_is_looked_at_and_read_again_without_a_request() {
    let inputs: Vec<(String, Vec<u8>)> =
        (0..300).map(|n| (format!("d/f{n}"), vec![5; 2000])).collect();
    let inputs: Vec<(&str, &[u8])> =
        inputs.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let mount = Mount::new(Passthrough::Off, Blobs::Memory, &inputs);
    let folder = mount.at("in/data/d");
    let look = || run("find", &[folder.to_str().unwrap(), "-size", "+0"]);
    let read = || {
        let mut content = Vec::new();
        File::open(folder.join("f7")).unwrap().read_to_end(&mut content).unwrap();
        assert_eq!(content.len(), 2000);
    };
    look();
    read();
    let again = requests(&mount, "300 inputs looked at, one read, again", || {
        look();
        read();
    });
    assert!(
        of(&again, "readdirplus")
            + of(&again, "readdir")
            + of(&again, "read")
            + of(&again, "flush")
            == 0,
        "{again:?}"
    );
    assert!(again.values().sum::<u64>() <= 8, "{again:?}");
}
