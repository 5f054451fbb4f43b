//! Tests of problems that users of other filesystems of this kind reported from November 2024 to
//! September 2026. The comment of each test names the report and describes the problem. The name of
//! the test says what Ion does. docs/reports.md lists all these reports.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::mount::{Blobs, Mount, Passthrough, run, runtime};
use crate::support::{CommandOutput, Home};
use ionfs::event::FileEntry;
use ionfs::stores::open::{StoreUrls, open};

/// The beginning of each Python program. `together` runs each of its functions in a process of its
/// own, which must exit with 0.
const PRELUDE: &str = r#"
import mmap, os, random, sys, threading, time
def together(*works):
    pids = []
    for work in works:
        pid = os.fork()
        if pid == 0:
            try:
                work()
                os._exit(0)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
        pids.append(pid)
    assert not any(os.waitpid(pid, 0)[1] for pid in pids)
"#;

/// Runs a Python program in a folder. It must exit with 0 within two minutes.
fn python(folder: &Path, program: &str) {
    let mut command = Command::new("timeout");
    command
        .args(["-k", "5", "120", "python3", "-c", &format!("{PRELUDE}{program}")])
        .current_dir(folder);
    let ran = CommandOutput::of(command.stdin(Stdio::null()).output().unwrap());
    assert_eq!(ran.code, Some(0), "in {}: {ran:#?}", folder.display());
}

/// Returns two mounts with these inputs: one with passthrough, and one without.
fn mounts(inputs: &[(&str, &[u8])]) -> [Mount; 2] {
    [Passthrough::Allowed, Passthrough::Off]
        .map(|passthrough| Mount::new(passthrough, Blobs::Files, inputs))
}

/// Asserts that the program exits with 0 in a plain folder, so that it expects nothing that a disk
/// does not do, and then in `out/data` of both mounts. Returns the mounts.
fn ends_well(program: &str) -> [Mount; 2] {
    let mounts = mounts(&[]);
    let plain = mounts[0].home.path().join("plain");
    fs::create_dir(&plain).unwrap();
    python(&plain, program);
    for mount in &mounts {
        python(&mount.data(), program);
    }
    mounts
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from(at % 249).unwrap()).collect()
}

/// trapexit/mergerfs#1487: with passthrough, files that several processes read fail with EIO now
/// and then, because the kernel refuses to mix opens with passthrough and opens without it.
#[test]
fn files_that_become_local_while_many_read_them_never_fail() {
    let content = pattern(700_000);
    let inputs: Vec<(String, &[u8])> =
        (0..24).map(|n| (format!("f{n}"), content.as_slice())).collect();
    let inputs: Vec<(&str, &[u8])> =
        inputs.iter().map(|(name, content)| (name.as_str(), *content)).collect();
    for blobs in [Blobs::Memory, Blobs::Files] {
        let mount = Mount::new(Passthrough::Allowed, blobs, &inputs);
        std::thread::scope(|scope| {
            for reader in 0..6_usize {
                let (mount, content) = (&mount, &content);
                scope.spawn(move || {
                    let mut held: Vec<File> = vec![];
                    for n in 0..120 {
                        let file = File::open(
                            mount.at(&format!("in/data/f{}", (n * 7 + reader * 5) % 24)),
                        )
                        .unwrap();
                        let at = (n * 90_001 + reader * 13) % 690_000;
                        let mut piece = vec![0; 5_000];
                        file.read_exact_at(&mut piece, at as u64).unwrap();
                        assert!(piece == content[at..at + 5_000], "{n}");
                        held.push(file);
                        if held.len() > n % 9 {
                            let mut whole = vec![];
                            held.remove(0).read_to_end(&mut whole).unwrap();
                            assert!(whole == *content, "{n}");
                        }
                    }
                });
            }
        });
    }
}

/// seaweedfs/seaweedfs#9999: after several listings at the same time, some of them through shared
/// descriptors, every readdir blocks for ever.
#[test]
fn a_folder_listed_through_shared_descriptors_while_it_changes_never_hangs() {
    ends_well(
        r#"
os.mkdir("d")
for n in range(500): open(f"d/kept{n}", "w").close()
shared = os.open("d", os.O_RDONLY)
def lists(fd, times):
    for n in range(times):
        names = os.listdir("d" if fd is None else fd)
        if fd is None: assert sum(name.startswith("kept") for name in names) == 500, len(names)
def threads():
    all = [threading.Thread(target=lists, args=(fd, 30)) for fd in (shared, shared, os.dup(shared), None, None)]
    for thread in all: thread.start()
    for thread in all: thread.join()
def changes():
    for n in range(600):
        open(f"d/new{n}", "w").close()
        if n > 5: os.rename(f"d/new{n - 5}", f"d/moved{n - 5}")
        if n > 9: os.unlink(f"d/moved{n - 9}")
together(threads, threads, lambda: lists(None, 40), changes)
lists(None, 1)
"#,
    );
}

/// CurvineIO/curvine#850: pread() does not return what was written through a shared map.
#[test]
fn what_a_shared_map_changes_is_read_at_once() {
    ends_well(
        r#"
SIZE = 1 << 20
open("m", "wb").write(bytes(SIZE))
fd = os.open("m", os.O_RDWR)
view = mmap.mmap(fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
def works(part):
    chance = random.Random(part)
    other = os.open("m", os.O_RDWR)
    for n in range(400):
        at = part * (SIZE // 4) + chance.randrange(SIZE // 4 - 64)
        bytes_ = bytes([n % 251 + 1]) * 64
        if n % 3: view[at:at + 64] = bytes_
        else: os.pwrite(other, bytes_, at)
        assert os.pread(fd, 64, at) == bytes_ == os.pread(other, 64, at) == view[at:at + 64], n
together(*(lambda part=part: works(part) for part in range(4)))
view.flush()
assert open("m", "rb").read() == view[:]
"#,
    );
}

/// Azure/azure-storage-fuse#2348: blobs have their full size, but zeroes from the middle on.
#[test]
fn a_blob_of_a_file_that_was_copied_in_any_way_has_no_hole() {
    let content = pattern(20_000_003);
    for mount in mounts(&[]) {
        let source = mount.home.write("source", &content);
        let (source, to) =
            (source.to_str().unwrap(), |name: &str| mount.data().join(name).display().to_string());
        run("cp", &[source, &to("cp")]);
        run("cp", &["--sparse=always", source, &to("sparse")]);
        run(
            "dd",
            &[&format!("if={source}"), &format!("of={}", to("dd")), "bs=65521", "status=none"],
        );
        run(
            "python3",
            &["-c", "import shutil, sys; shutil.copyfile(*sys.argv[1:])", source, &to("shutil")],
        );
        run("cp", &[&to("dd"), &to("inside")]);
        let file = File::create(to("pieces")).unwrap();
        file.set_len(content.len() as u64).unwrap();
        // Four threads write the pieces at the same time, each from its last piece to its first.
        std::thread::scope(|scope| {
            for part in 0..4 {
                let (file, content) = (&file, &content);
                scope.spawn(move || {
                    let pieces: Vec<_> = content.chunks(100_003).enumerate().collect();
                    for (n, piece) in pieces.into_iter().rev().filter(|(n, _)| n % 4 == part) {
                        file.write_all_at(piece, n as u64 * 100_003).unwrap();
                    }
                });
            }
        });
        drop(file);
        let event = mount.commit(&["cp", "sparse", "dd", "shutil", "inside", "pieces"]);
        for file in &event.files {
            assert!(mount.content(file) == content, "{}", file.name);
        }
    }
}

/// littlefs-project/littlefs-fuse#78: bytes that are written to an open file after its rename are
/// lost.
#[test]
fn what_is_written_after_a_rename_is_in_the_event() {
    for mount in mounts(&[]) {
        let mut file = File::create(mount.data().join("1")).unwrap();
        fs::rename(mount.data().join("1"), mount.data().join("2")).unwrap();
        file.write_all(b"0123456789").unwrap();
        drop(file);
        // The second file is closed with content before its rename, so it may already be stored.
        fs::write(mount.data().join("3"), b"before").unwrap();
        let mut file = OpenOptions::new().append(true).open(mount.data().join("3")).unwrap();
        fs::create_dir(mount.data().join("d")).unwrap();
        fs::rename(mount.data().join("3"), mount.data().join("d/4")).unwrap();
        fs::rename(mount.data().join("d"), mount.data().join("e")).unwrap();
        file.write_all(b" and after").unwrap();
        drop(file);
        let event = mount.commit(&["2", "e/4"]);
        let contents: Vec<_> = event.files.iter().map(|file| mount.content(file)).collect();
        assert_eq!(contents, [b"0123456789".as_slice(), b"before and after"]);
    }
}

/// ydb-platform/nbs#7151: a reader gets ENOENT for a file that is replaced again and again.
#[test]
fn a_file_that_is_replaced_is_always_there_and_whole() {
    ends_well(
        r#"
def replaces():
    for n in range(1500):
        with open("value.tmp", "w") as f: f.write(f"{n} " * (n % 700 + 1))
        os.replace("value.tmp", "value")
def reads():
    last = -1
    while last < 1499:
        with open("value") as f:
            size = os.fstat(f.fileno()).st_size
            words = f.read().split()
        assert words and len(set(words)) == 1 and len(words) == int(words[0]) % 700 + 1, words[:3]
        assert size == len(words) * (len(words[0]) + 1), (size, len(words))
        assert int(words[0]) >= last, (words[0], last)
        last = int(words[0])
        os.stat("value")
def lists():
    while open("value").read(5) != "1499 ": assert "value" in [e.name for e in os.scandir(".") if e.name == "value" and e.stat()]
with open("value", "w") as f: f.write("0 ")
together(replaces, reads, reads, lists)
"#,
    );
}

/// GoogleCloudPlatform/gcsfuse#4204: a renamed file is not found as long as the kernel remembers
/// its old name.
#[test]
fn what_was_renamed_is_found_without_another_lookup() {
    let inputs: &[(&str, &[u8])] = &[("d/deep/f", b"content"), ("g", b"content of g")];
    for mount in mounts(inputs) {
        let program = r#"
def look(path, content):
    assert open(path).read() == content and os.stat(path).st_size == len(content), path
os.makedirs("d/deep")
open("d/deep/f", "w").write("content")
open("g", "w").write("content of g")
for root in (".", "../../in/data"):
    look(root + "/d/deep/f", "content"); look(root + "/g", "content of g")
    deep = os.open(root + "/d/deep", os.O_RDONLY)
    held = os.open(root + "/g", os.O_RDONLY)
    name = "x" if root == "." else "y"
    os.rename(root + "/g", name + "g"); os.rename(root + "/d", name + "d")
    look(name + "g", "content of g"); look(name + "d/deep/f", "content")
    assert os.stat("f", dir_fd=deep).st_size == 7 and os.listdir(deep) == ["f"]
    assert os.pread(held, 99, 0) == b"content of g"
    os.close(held)
    os.rename(name + "g", name + "d/deep/g")
    look(name + "d/deep/g", "content of g")
    assert sorted(os.listdir(deep)) == ["f", "g"]
    with open(name + "d/deep/f", "a") as f: f.write(" and more")
    look(name + "d/deep/f", "content and more")
    assert not os.path.exists(root + "/g") and not os.path.exists(root + "/d")
"#;
        python(&mount.data(), program);
    }
}

/// juicedata/juicefs#7502: a rename onto a hard link that was removed and created again fails with
/// EIO. Barre/ZeroFS#278: link counts are wrong after a link is renamed onto another link of the
/// same file.
#[test]
fn renames_onto_hard_links_keep_the_counts_of_links() {
    ends_well(
        r#"
def links(name): return os.stat(name).st_nlink
open("file1", "w").write("1")
os.link("file1", "link"); os.unlink("link")
open("file2", "w").write("22")
os.link("file1", "link")
assert links("file1") == 2
os.rename("file2", "link")
assert (links("file1"), links("link"), open("link").read()) == (1, 1, "22") and not os.path.exists("file2")
for n in range(300): os.link("file1", f"l{n}")
assert links("l7") == 301
# Both names belong to the same file, so rename() does nothing.
os.rename("l1", "l2")
assert links("l1") == links("l2") == 301 and len(os.listdir(".")) == 302
for n in range(300): os.unlink(f"l{n}")
assert links("file1") == 1 and open("file1").read() == "1"
"#,
    );
}

/// s3fs-fuse/s3fs-fuse#2931: truncate() of a closed file changes nothing.
#[test]
fn truncate_by_name_of_a_closed_file_is_in_the_event() {
    for mount in mounts(&[("f", &pattern(50_000))]) {
        let program = r#"
for name in ("shrunk", "grown"):
    open(name, "wb").write(bytes(i % 249 for i in range(50_000)))
    os.truncate(name, 100 if name == "shrunk" else 60_000)
os.link("../../in/data/f", "shrunk input"); os.truncate("shrunk input", 100)
os.link("../../in/data/f", "grown input"); os.truncate("grown input", 60_000)
for name, size in (("shrunk", 100), ("grown", 60_000), ("shrunk input", 100), ("grown input", 60_000)):
    assert os.stat(name).st_size == size == len(open(name, "rb").read()), name
"#;
        python(&mount.data(), program);
        let event = mount.commit(&["shrunk", "grown", "shrunk input", "grown input"]);
        for (n, file) in event.files.iter().enumerate() {
            let mut wanted = pattern(50_000);
            wanted.resize(if n % 2 == 0 { 100 } else { 60_000 }, 0);
            assert!(mount.content(file) == wanted, "{}", file.name);
        }
    }
}

/// juicedata/juicefs#5038: a reader of a growing file sees zeroes in place of the new data.
#[test]
fn a_reader_of_a_file_that_grows_never_sees_zeroes() {
    ends_well(
        r#"
END = 6_000_000
open("log", "w").close()
def writes():
    fd, at, n = os.open("log", os.O_WRONLY | os.O_APPEND), 0, 0
    while at < END:
        n += 1
        piece = bytes((at + i) % 249 + 1 for i in range(n * 37 % 9_000))
        assert os.write(fd, piece) == len(piece)
        at += len(piece)
def tails(whole):
    at, deadline = 0, time.monotonic() + 100
    pattern = bytes(i % 249 + 1 for i in range(249)) * 300
    fd = os.open("log", os.O_RDONLY)
    while at < END:
        assert time.monotonic() < deadline
        if whole:
            piece = os.pread(os.open("log", os.O_RDONLY), 60_000, at); os.closerange(fd + 1, fd + 2)
        # lseek() finds the size here: on any FUSE, fstat() shows a new size a moment before the
        # kernel's maps have it, and a read of a map beyond the size that they have is a SIGBUS.
        # For the same reason the map's length is given: mmap() would ask fstat() for it.
        elif (size := os.lseek(fd, 0, os.SEEK_END)) > at: piece = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)[at:at + 60_000]
        else: piece = b""
        assert piece == pattern[at % 249:at % 249 + len(piece)], at
        at += len(piece)
together(writes, lambda: tails(True), lambda: tails(False))
"#,
    );
}

/// seaweedfs/seaweedfs#7225: a folder that is renamed loses all entries beyond the first 1,024.
#[test]
fn a_renamed_folder_keeps_its_thousands_of_entries() {
    let names: Vec<String> = (0..1_500).map(|n| format!("many/f{n}")).collect();
    let inputs: Vec<(&str, &[u8])> =
        names.iter().map(|name| (name.as_str(), b"x".as_slice())).collect();
    for passthrough in [Passthrough::Allowed, Passthrough::Off] {
        let mount = Mount::new(passthrough, Blobs::Memory, &inputs);
        let program = r#"
os.mkdir("made")
for n in range(3000): open(f"made/f{n}", "w").write("x")
fd = os.open("made", os.O_RDONLY)
os.rename("made", "other")
os.rename("../../in/data/many", "moved")
for folder, count in (("other", 3000), (fd, 3000), ("moved", 1500)): assert len(os.listdir(folder)) == count
for folder, count in (("other", 3000), ("moved", 1500)):
    os.rename(folder, folder + "2")
    for n in range(count): assert open(f"{folder}2/f{n}").read() == "x", n
assert os.listdir("../../in/data") == []
"#;
        python(&mount.data(), program);
    }
}

/// sifiveinc/wake#1817: a file time that a program has set is lost at the close or at the next
/// open.
#[test]
fn a_time_that_was_set_outlives_closes_and_opens() {
    for mount in mounts(&[("f", &pattern(3_000_000))]) {
        let program = r#"
SET = 1_234_567_890_123_456_789
def keeps(name):
    assert os.stat(name).st_mtime_ns == SET, (name, os.stat(name).st_mtime_ns)
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND):
        fd = os.open(name, flags)
        assert os.fstat(fd).st_mtime_ns == SET, name
        os.fsync(fd)
        os.close(fd)
        assert os.stat(name).st_mtime_ns == SET, name
    os.rename(name, name + ".moved"); os.chmod(name + ".moved", 0o640)
    assert os.stat(name + ".moved").st_mtime_ns == SET, name
open("made", "w").write("x")
os.link("../../in/data/f", "reference")
os.link("../../in/data/f", "patched")
with open("patched", "r+b") as f: f.write(b"new"); f.flush(); os.utime(f.fileno(), ns=(SET, SET))
fd = os.open("open", os.O_RDWR | os.O_CREAT, 0o600)
os.write(fd, b"x" * 300_000)
os.utime(fd, ns=(SET, SET))
os.close(fd)
for name in ("made", "reference"): os.utime(name, ns=(SET, SET))
for name in ("made", "reference", "patched", "open"): keeps(name)
"#;
        python(&mount.data(), program);
        // The commit fetches the bytes that a reference still lacks. This changes no time either.
        let event = mount.commit(&["made.moved", "reference.moved", "patched.moved", "open.moved"]);
        for file in &event.files {
            let metadata = fs::metadata(mount.data().join(&file.name)).unwrap();
            let time = (metadata.mtime(), metadata.mtime_nsec());
            assert_eq!(time, (1_234_567_890, 123_456_789), "{}", file.name);
        }
    }
}

/// juicedata/juicefs#5711: folders that are moved into each other at the same time make a loop that
/// no path reaches.
#[test]
fn folders_that_are_moved_into_each_other_at_once_make_no_loop() {
    ends_well(
        r#"
os.makedirs("a/b"); os.makedirs("c/d")
def moves(seed):
    chance = random.Random(seed)
    for n in range(400):
        places = [path for path, _, _ in os.walk(".")]
        one, other = chance.choice(places), chance.choice(places)
        try: os.rename(one, other + "/" + os.path.basename(one))
        except OSError: pass
together(*(lambda seed=seed: moves(seed) for seed in range(4)))
found = sorted(name for _, folders, _ in os.walk(".") for name in folders)
assert found == ["a", "b", "c", "d"], found
"#,
    );
}

/// mem9-ai/drive9#890: if a rename has replaced a journal, truncating a descriptor of the old file
/// also truncates the new one.
#[test]
fn what_an_old_descriptor_is_cut_to_does_not_touch_what_replaced_it() {
    ends_well(
        r#"
open("db-wal", "w").write("old" * 1000)
old = os.open("db-wal", os.O_RDWR)
reader = os.open("db-wal", os.O_RDONLY)
open("new", "w").write("new content")
os.rename("new", "db-wal")
os.ftruncate(old, 0)
assert open("db-wal").read() == "new content" and os.stat("db-wal").st_size == 11
assert os.pread(reader, 9, 0) == b"" and os.fstat(reader).st_nlink == 0
os.pwrite(old, b"more", 5)
assert os.pread(reader, 99, 0) == bytes(5) + b"more" and open("db-wal").read() == "new content"
import sqlite3
for mode in ("wal", "delete", "truncate"):
    base = sqlite3.connect(mode)
    assert base.execute(f"pragma journal_mode={mode}").fetchone()[0] == mode
    base.execute("create table t(n)")
    other = sqlite3.connect(mode)
    for n in range(60):
        with base: base.execute("insert into t values (?)", (n,))
        assert other.execute("select count(*) from t").fetchone()[0] == n + 1
    assert base.execute("pragma integrity_check").fetchone()[0] == "ok"
"#,
    );
}

/// libfuse/libfuse#1331: the length of a copy of more than 4 GiB is cut to 32 bits.
#[test]
fn a_copy_of_more_than_four_gigabytes_is_whole() {
    const SIZE: u64 = (5 << 30) + 12_345;
    let (runtime, home) = (runtime(), Home::new());
    let plane = runtime.block_on(open(&StoreUrls::embedded(&home.state()))).unwrap();
    let (key, marks) = ("c/e/0/huge", [0, (4 << 30) - 3, (4 << 30) + 5, SIZE - 4]);
    let blob = home.state().join("blobs").join(key);
    fs::create_dir_all(blob.parent().unwrap()).unwrap();
    let file = File::create(blob).unwrap();
    file.set_len(SIZE).unwrap();
    let entry = FileEntry {
        name: "huge".into(),
        key: key.into(),
        size: SIZE,
        mtime: 0,
        mtime_nanos: 0,
        mode: 0o644,
        checksums: sums_of(SIZE, &marks),
    };
    for mark in marks {
        file.write_all_at(b"mark", mark).unwrap();
    }
    let mount = Mount::over(runtime, home, plane, Passthrough::Allowed, vec![entry]);
    let copy = mount.data().join("copy");
    run("cp", &[mount.at("in/data/huge").to_str().unwrap(), copy.to_str().unwrap()]);
    run("cp", &[copy.to_str().unwrap(), mount.data().join("again").to_str().unwrap()]);
    for name in ["copy", "again"] {
        let file = File::open(mount.data().join(name)).unwrap();
        assert_eq!(file.metadata().unwrap().len(), SIZE, "{name}");
        for mark in marks {
            let mut piece = [0; 4];
            file.read_exact_at(&mut piece, mark).unwrap();
            assert_eq!(&piece, b"mark", "{name} at {mark}");
        }
    }
    let event = mount.commit(&["copy"]);
    assert_eq!((event.files[0].size, event.files[0].key.as_str()), (SIZE, key));
}

/// Returns the checksums of `size` zeroes in which the text `mark` stands at each of these offsets.
fn sums_of(size: u64, marks: &[u64]) -> ionfs::checksum::Checksums {
    const PIECE: u64 = 64 << 20;
    let mut summer = ionfs::checksum::BlockChecksummer::default();
    let mut piece = vec![0_u8; usize::try_from(PIECE).unwrap()];
    for begin in (0..size).step_by(usize::try_from(PIECE).unwrap()) {
        let end = size.min(begin + PIECE);
        let inside = |mark: u64| {
            (begin..end).contains(&mark).then(|| usize::try_from(mark - begin).unwrap())
        };
        let marked: Vec<(usize, u8)> = marks
            .iter()
            .flat_map(|mark| b"mark".iter().zip(*mark..))
            .filter_map(|(byte, at)| Some((inside(at)?, *byte)))
            .collect();
        for (at, byte) in &marked {
            piece[*at] = *byte;
        }
        summer.update(&piece[..usize::try_from(end - begin).unwrap()]);
        for (at, _) in marked {
            piece[at] = 0;
        }
    }
    summer.finish()
}

/// GoogleCloudPlatform/gcsfuse#4409 and CurvineIO/curvine#655: appends through many descriptors
/// that are opened and closed all the time overwrite each other or fail.
#[test]
fn appends_by_many_who_open_and_close_lose_nothing() {
    ends_well(
        r#"
def appends(who):
    for n in range(300):
        with open("log", "a") as f: f.write(f"{who} {n} " + "x" * (n % 50) + "\n")
def looks():
    size, deadline = 0, time.monotonic() + 100
    while not os.path.exists("end"):
        assert time.monotonic() < deadline
        for entry in os.scandir("."): entry.stat()
        now = os.stat("log").st_size
        assert now >= size, (now, size)
        # The kernel shows a new length as soon as the daemon has the write, but reads up to it only
        # when the writer has its answer, too.
        while len(content := open("log").read(size)) < size: assert time.monotonic() < deadline, (now, size)
        assert "\0" not in content
        size = now
open("log", "w").close()
def all():
    together(*(lambda who=who: appends(who) for who in range(4)))
    open("end", "w").close()
together(all, looks)
lines = open("log").read().splitlines()
assert sorted(lines) == sorted(f"{who} {n} " + "x" * (n % 50) for who in range(4) for n in range(300)), len(lines)
"#,
    );
}
