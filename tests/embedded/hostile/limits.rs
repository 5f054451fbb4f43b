//! Tests of jobs that take more bytes, names, links, attributes or processes than their limits
//! allow, and of jobs on a disk that is full or broken.

use super::*;

#[test]
fn over_its_quota_a_job_fails_and_its_neighbours_do_not_notice() {
    let program = r#"
with open("f", "wb") as f: f.write(b"x" * 3000000)
event("x", {"eventType": "x", "files": ["f"]})
refused(errno.EDQUOT, os.truncate, "f", 1 << 40)
g = os.open("g", os.O_CREAT | os.O_RDWR)
refused(errno.EDQUOT, os.posix_fallocate, g, 0, 2 << 20)
refused(errno.EDQUOT, os.pwrite, g, b"1", 1 << 40)
os.pwrite(g, b"x", 999999)
def write(at, n):
    while n > 0:
        done = os.pwrite(g, b"x" * min(n, 100000), at)
        at, n = at + done, n - done
refused(errno.EDQUOT, write, 1000000, 1000000)
os.close(g)
# No event may name `g`, because a write to it was refused. The space of a removed file is free for
# others.
refused(errno.EDQUOT, event, "g", {"eventType": "x", "files": ["g"]})
os.unlink("f")
g = os.open("g", os.O_RDWR)
write(1000000, 1000000)
os.close(g)
event("g", {"eventType": "x", "files": ["g"]})
os.unlink("g")
os.link("/ion/in/data/content", "reference")
event("reference", {"eventType": "x", "files": ["reference"]})
"#;
    let town = Town::with(Home::new(), &[("greedy", program, ", limits: {staged-bytes: 4MiB}")]);
    let job = town.meets("greedy");
    let (state, why) = reason(&job);
    assert_eq!(state, "dead", "{job:#?}");
    assert!(why.starts_with("over its limit of 4 MiB in out/ (EDQUOT); \"staged-bytes\""), "{why}");
    assert_eq!(
        job["attempts"][0]["exitCode"], 0,
        "the program meets every refusal that it expects: {job:#?}"
    );
    town.ends_well();
}

/// Names, links and attributes take space on the disk and in the daemon's memory, as content does.
#[test]
fn links_attributes_and_names_count_against_a_jobs_limits() {
    let links = r#"
taken = 0
try:
    for n in range(1000):
        os.symlink("x" * 4000, f"s{n}"); taken += 1
except OSError as e: assert e.errno == errno.EDQUOT, e
assert 250 < taken < 263, taken
for n in range(taken): os.unlink(f"s{n}")
os.symlink("x" * 4000, "again")
"#;
    let attributes = r#"
set_ = []
try:
    for n in range(2000):
        open(f"f{n}", "w").close()
        os.setxattr(f"f{n}", "user.k", b"x" * 2000); set_.append(n)
except OSError as e: assert e.errno == errno.EDQUOT, e
assert 500 < len(set_) < 525, len(set_)
for n in set_: os.removexattr(f"f{n}", "user.k")
os.setxattr("f0", "user.k", b"x" * 2000)
os.setxattr("f0", "user.k", b"y" * 2500, os.XATTR_REPLACE)
# The kernel refuses these names to a process that lacks a capability. Otherwise the filesystem
# refuses them.
for name in ["security.k", "trusted.k"]:
    refused((errno.EPERM, errno.EOPNOTSUPP), os.setxattr, "f0", name, b"x")
acl = bytes.fromhex("02000000" "01000600ffffffff" "02000700feff0000" "04000400ffffffff" "10000700ffffffff" "20000400ffffffff")
refused(errno.EOPNOTSUPP, os.setxattr, "f0", "system.posix_acl_access", acl)
assert os.listxattr("f0") == ["user.k"]
"#;
    let names = r#"
for n in range(49): os.mkdir(f"d{n}")
os.link("d0/f", "l") if os.path.exists("d0/f") else open("d0/f", "w").close()
refused(errno.EDQUOT, open, "f", "w")
refused(errno.EDQUOT, os.mkdir, "d")
refused(errno.EDQUOT, os.symlink, "x", "s")
refused(errno.EDQUOT, os.mkfifo, "p")
refused(errno.EDQUOT, os.link, "/ion/in/data/content", "r")
os.rmdir("d1")
open("f", "w").close()
"#;
    let town = Town::with(
        Home::new(),
        &[
            ("links", links, ", limits: {staged-bytes: 1MiB}"),
            ("attributes", attributes, ", limits: {staged-bytes: 1MiB}"),
            // `insights.json` counts as one of the 51 files.
            ("names", names, ", limits: {staged-files: 51}"),
        ],
    );
    for (module, why) in [("links", "1 MiB"), ("attributes", "1 MiB"), ("names", "51 files")] {
        let job = town.meets(module);
        assert!(
            reason(&job).1.starts_with(&format!("over its limit of {why} in out/ (EDQUOT)")),
            "{job:#?}"
        );
        assert_eq!(
            job["attempts"][0]["exitCode"], 0,
            "the program meets every refusal that it expects: {job:#?}"
        );
    }
    town.ends_well();
}

/// The kernel tells the daemon only some time after a removal that it has forgotten the removed
/// file. The space of the file is free before that.
#[test]
fn what_was_removed_gives_its_room_back_at_once() {
    let program = r#"
for n in range(8): os.mkdir(f"d{n}")
refused(errno.EDQUOT, os.mkdir, "d")
for n in range(4):
    os.rmdir("d0"); os.mkdir("d0")
    os.rmdir("d0"); os.symlink("x", "d0")
    os.unlink("d0"); os.mknod("d0")
    os.unlink("d0"); os.mkdir("d0")
os.rmdir("d0")
for n in range(4):
    with open("f", "wb") as f: f.write(b"x" * 700_000)
    os.setxattr("f", "user.k", b"x" * 3000)
    with open("f", "rb") as f:
        os.unlink("f")
        assert len(f.read()) == 700_000
open("f", "w").close()
for n in range(4): os.setxattr("f", f"user.{n}", b"x" * 900)
f = open("f", "rb+"); os.unlink("f"); refused(errno.EDQUOT, os.pwrite, f.fileno(), b"x", 1 << 20)
"#;
    let home = Home::new();
    home.program("removes", &format!("#!/usr/bin/env python3\n{PRELUDE}{program}"));
    let file = "modules:\n  removes: {on: [start], run: [./removes], limits: {staged-bytes: 1MiB, staged-files: 9}}\n";
    let file = home.write("pipeline.yaml", file);
    let ran = home.run_with(
        &[("ION_DELAYPOINTS", "forget=300000")],
        ["--json", "run", "removes", "--pipeline", file.to_str().unwrap()],
    );
    let refused = "\"staged-files\" under \"limits\" allows more\n";
    assert!(
        ran.stderr.ends_with(refused),
        "the program exits with 0, and the job fails only because of its limit: {ran:#?}"
    );
}

/// A disk without a free inode is not the fault of the module. Its job waits for room, and loses
/// none of its retries.
#[test]
fn a_full_disk_costs_a_job_no_retry() {
    if !rustix::process::geteuid().is_root() {
        // An ordinary user cannot mount a small disk.
        return;
    }
    let home = Home::new();
    home.program(
        "write",
        "#!/bin/sh\nset -e\ncd /ion/out/data\nfor n in 1 2 3 4 5 6 7 8 9; do echo $n > f$n; done\n\
         echo '{\"eventType\":\"written\",\"files\":[\"f9\"]}' > /ion/out/events/e\n",
    );
    let file = home.write(
        "pipeline.yaml",
        "modules:\n  write: {on: [start], emits: [written], run: [./write], retries: 0}\n",
    );
    let jobs = home.state().join("jobs");
    std::fs::create_dir_all(&jobs).unwrap();
    crate::support::mount::run(
        "mount",
        &["-t", "tmpfs", "-o", "nr_inodes=40,mode=0700", "ion-test", jobs.to_str().unwrap()],
    );
    let full: Vec<PathBuf> = (0..28).map(|n| jobs.join(format!("full{n}"))).collect();
    full.iter().for_each(|file| std::fs::write(file, "").unwrap());
    let up = home.up(&file);
    home.run(["event", "create", "start"]).well();
    let mut attempts = Vec::new();
    wait_for("an attempt to end for lack of room", || {
        attempts =
            home.jobs().first().map_or(vec![], |job| job["attempts"].as_array().unwrap().clone());
        attempts.iter().any(|attempt| attempt["end"] == "no-room")
    });
    full.iter().for_each(|file| std::fs::remove_file(file).unwrap());
    wait_for("the job to succeed", || home.jobs()[0]["state"] == "succeeded");
    let job = home.jobs().remove(0);
    let attempts = job["attempts"].as_array().unwrap();
    assert!(attempts.len() > 1 && job["failures"].as_u64().unwrap_or(0) == 0, "{job:#?}");
    let why = attempts[0]["reason"].as_str().unwrap();
    assert!(why.contains("No space left on device"), "{why}");
    assert_eq!(up.stop(), Some(0));
    crate::support::mount::run("umount", &[jobs.to_str().unwrap()]);
}

#[test]
fn each_limit_has_its_errno_and_its_setting() {
    let home = Home::new();
    home.write(
        "module.py",
        format!(
            r#"{PRELUDE}
# One event is too large to be written, and the others are refused at their close.
refused(errno.EFBIG, event, "bytes", '{{"eventType": "x", "v": "' + "v" * 3000 + '"}}')
refused(errno.E2BIG, event, "values", {{"eventType": "x", **{{f"k{{i}}": "" for i in range(6)}}}})
refused(errno.E2BIG, event, "value-bytes", {{"eventType": "x", "k": "v" * 500}})
refused(errno.E2BIG, event, "files", {{"eventType": "x", "files": ["f"] * 4}})
for name in ["bytes", "values", "value-bytes", "files"]: os.unlink("/ion/out/events/" + name)
os.makedirs("a/b/c")
for path in ["p" * 101, "a/b/c/f"]:
    open(path, "w")
    refused(errno.ENAMETOOLONG, event, "path", {{"eventType": "x", "files": [path]}})
os.unlink("/ion/out/events/path")
held = []
try:
    while True: held.append(os.open("a", os.O_RDONLY))
except OSError as e:
    assert e.errno == errno.EMFILE, e
assert 10 < len(held) <= 40, len(held)
for h in held: os.close(h)
children = []
try:
    for n in range(1000):
        pid = os.fork()
        if pid == 0: time.sleep(600)
        children.append(pid)
except OSError as e:
    assert e.errno == errno.EAGAIN, e
assert 10 < len(children) <= 400, len(children)
"#
        ),
    );
    let module = home.path().join("module.py");
    let limits = "event-bytes=2KiB,event-values=5,event-value-bytes=400,event-files=3,\
                  path-bytes=100,path-depth=3,open-files=40,processes=100";
    let ran = home
        .run(["--json", "--job-limit", limits, "run", "--", "python3", module.to_str().unwrap()])
        .failed();
    let wanted = [
        "an event may have 5 values",
        "may take 400 bytes",
        "may name 3 files",
        "100 bytes",
        "3 names deep",
        "(and 3 more)",
    ];
    assert!(wanted.iter().all(|words| ran.stderr.contains(words)), "{ran:#?}");
    assert!(ran.stderr.contains("rejected") && !ran.stderr.contains("exit status"), "{ran:#?}");
    let wrong = home.run(["--job-limit", "staged=1", "doctor"]).failed();
    assert!(
        wrong.stderr.contains("there is no limit \"staged\"; allowed: event-bytes"),
        "{wrong:#?}"
    );
}

/// A fork bomb in one job is bounded and ends at the job's timeout. Jobs beside it start processes
/// as usual.
#[test]
fn a_job_that_eats_all_processes_eats_its_own() {
    let program = r#"
while True:
    try: os.fork()
    except OSError: time.sleep(0.05)
"#;
    let town =
        Town::with(Home::new(), &[("bomb", program, ", timeout: 3s, limits: {processes: 300}")]);
    assert_eq!(reason(&town.meets("bomb")), ("dead", "over its timeout of 3s"));
    town.ends_well();
}

/// The staging disk breaks while a module writes. The module gets an errno, no event is committed,
/// and the daemon goes on.
#[test]
fn a_broken_staging_disk_fails_jobs_with_eio_and_commits_nothing() {
    if !rustix::process::geteuid().is_root() || !std::path::Path::new("/dev/loop-control").exists()
    {
        // Only root may use loop devices.
        return;
    }
    let home = Home::new();
    let jobs = home.state().join("jobs");
    let disk = home.path().join("disk");
    std::fs::create_dir_all(&jobs).unwrap();
    std::fs::create_dir_all(&disk).unwrap();
    let shell = |script: &str| {
        let out = std::process::Command::new("sh").args(["-ec", script]).output().unwrap();
        assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    };
    let (jobs, disk) = (jobs.display(), disk.display());
    // The disk image lies on a disk that is smaller than the image says, so writes fail once that
    // disk is full.
    shell(&format!(
        "mount -t tmpfs -o size=12m ion-test {disk}; truncate -s 64m {disk}/image; \
         mkfs.ext4 -q -O ^has_journal {disk}/image; mount -o loop {disk}/image {jobs}"
    ));
    let program = r#"
broken = (errno.EIO, errno.EROFS, errno.ENOSPC)
def fill(name, synced):
    with open(name, "wb") as f:
        for n in range(20):
            f.write(os.urandom(1 << 20))
            if synced: f.flush(); os.fsync(f.fileno())
        f.flush(); os.sync()
# This writer calls no fsync(), so the kernel does not tell it that its pages are lost. The event is
# refused all the same.
fill("silent", False)
refused(broken, event, "silent", {"eventType": "x", "files": ["silent"]})
refused(broken, fill, "synced", True)
refused(broken, event, "synced", {"eventType": "x", "files": ["synced"]})
refused(broken, event, "again", {"eventType": "x", "files": ["silent"]})
sys.exit(7)
"#;
    home.program("writer", &format!("#!/usr/bin/env python3\n{PRELUDE}{program}"));
    // Unmounts both disks on drop, also when the test fails.
    struct Unmount(String);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = std::process::Command::new("sh").args(["-c", &self.0]).status();
        }
    }
    let unmount = Unmount(format!("umount -l {jobs}; umount -l {disk}"));
    let file = home.write(
        "pipeline.yaml",
        "modules:\n  writer: {on: [start], emits: [x], run: [./writer], retries: 0}\n",
    );
    let up = home.up(&file);
    let ran = home.run(["event", "create", "start", "--wait", "--timeout", "60s"]);
    let found = home.jobs();
    let log = home.run(["job", "logs", found[0]["id"].as_str().unwrap()]);
    let code = up.stop();
    drop(unmount);
    ran.failed();
    assert_eq!(code, Some(0));
    assert_eq!(found[0]["attempts"][0]["exitCode"], 7, "{}", log.stdout);
    let trace = home.run(["--json", "trace", found[0]["correlationId"].as_str().unwrap()]).well();
    assert!(!trace.stdout.contains("\"x\""), "{trace:#?}");
}
