//! Modules that mean harm or know no better: hostile names, trees and documents, and jobs that do
//! not want to end, eat all there is, or cover up where they stand. Each job ends with all it
//! started, its verdict is right, and its neighbours do not notice.

mod words;

use std::path::PathBuf;

use crate::support::{Home, RunningCommand, may_mount_or_runs_where_it_may, wait_for};
use serde_json::Value;

/// Runs a Python program as a job.
fn python(home: &Home, program: &str) -> crate::support::CommandOutput {
    home.write("module.py", program);
    let module = home.path().join("module.py");
    home.run(["--json", "run", "--", "python3", module.to_str().unwrap()])
}

/// What Python programs begin with: a call that must fail with one errno.
const PRELUDE: &str = r#"
import errno, os, stat, sys, time, json
def refused(wanted, call, *args, **more):
    try:
        call(*args, **more)
    except OSError as e:
        assert e.errno in (wanted if isinstance(wanted, tuple) else (wanted,)), (call, args, e)
    else:
        raise SystemExit(f"{call} {args} was not refused")
def event(name, document):
    with open("/ion/out/events/" + name, "w") as f:
        f.write(document if isinstance(document, str) else json.dumps(document))
os.chdir("/ion/out/data")
"#;

/// A pipeline of hostile modules and of a good neighbour, which works all the time.
struct Town {
    up: Option<RunningCommand>,
    home: Home,
}

impl Town {
    /// Starts `ion up` with these modules (name, program, more fields) and the neighbour.
    fn with(home: Home, modules: &[(&str, &str, &str)]) -> Self {
        home.program(
            "neighbour",
            "#!/bin/sh\nset -e\nfor i in 1 2 3 4 5; do cp /ion/in/data/* /ion/out/data/$i; (cmp /ion/in/data/* /ion/out/data/$i); done\n\
             echo '{\"eventType\":\"fine\",\"files\":[\"1\",\"5\"]}' > /ion/out/events/fine\n",
        );
        let mut file = String::from(
            "name: town\nmodules:\n  neighbour: {on: [work], emits: [fine], run: [./neighbour], retries: 0, timeout: 30s}\n",
        );
        for (name, program, more) in modules {
            home.program(name, &format!("#!/usr/bin/env python3\n{PRELUDE}{program}"));
            file += &format!(
                "  {name}: {{on: [start-{name}], emits: [x], run: [./{name}], retries: 0{more}}}\n"
            );
        }
        let file = home.write("pipeline.yaml", file);
        home.write("content", vec![b'x'; 100_000]);
        let up = home.up_with(&["--jobs", "4"], &file);
        Self { up: Some(up), home }
    }

    fn works(&self) {
        self.home.run(["event", "create", "work", "--file", "content", "--wait"]).well();
    }

    /// Starts the hostile module, lets the neighbour work beside it, and gives the hostile job once
    /// it is final.
    fn meets(&self, module: &str) -> Value {
        self.home.run(["event", "create", &format!("start-{module}"), "--file", "content"]).well();
        self.works();
        let mut found = Value::Null;
        wait_for(&format!("the job of {module} to end"), || {
            let jobs = self.home.jobs();
            let job =
                jobs.into_iter().find(|job| job["module"] == module && job["ended"] != Value::Null);
            let job = job.or_else(|| {
                let jobs = self.home.jobs();
                jobs.into_iter().find(|job| {
                    job["module"] == module
                        && ["succeeded", "dead", "cancelled"]
                            .contains(&job["state"].as_str().unwrap())
                })
            });
            found = job.unwrap_or_default();
            found != Value::Null
        });
        self.works();
        found
    }

    /// Nothing is left running or mounted, and the daemon is well.
    fn ends_well(mut self) {
        let up = self.up.take().unwrap();
        // The mounts are in the namespaces of these processes, and nowhere else.
        // They are forked by a process of its own.
        let of_jobs = || {
            children(up.pid()).iter().flat_map(|server| children(server.parse().unwrap())).count()
        };
        wait_for("all jobs' processes to be gone", || of_jobs() == 0);
        assert!(!up.log().contains("still mounted"), "{}", up.log());
        self.home.run(["check", "--deep"]).well();
        assert_eq!(up.stop(), Some(0));
        let left: Vec<PathBuf> = std::fs::read_dir(self.home.state().join("jobs"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// The children of a process, of all its threads.
fn children(pid: u32) -> Vec<String> {
    let mut all = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let list = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        all.extend(list.split_whitespace().map(str::to_owned));
    }
    all
}

/// Whether any process of this machine has `mark` in its command line.
fn lives(mark: &str) -> bool {
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        std::fs::read(entry.path().join("cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(mark))
    })
}

/// Why a job ended as it did.
fn reason(job: &Value) -> (&str, &str) {
    let attempt = job["attempts"].as_array().unwrap().last().unwrap();
    (job["state"].as_str().unwrap(), attempt["reason"].as_str().unwrap_or_default())
}

// ---- names and trees ----

/// Whatever bytes a name has: the next module sees the same file under the same name. What no JSON
/// can name stays behind.
#[test]
fn names_of_any_characters_travel_and_names_that_are_not_utf8_stay_behind() {
    let home = Home::new();
    let names = "['a\\nb', ' lead', 'tab\\t', '-rf', '*', '%41', 'A', 'a\\\\b', '~', '#1', '\"', '\\x01\\x7f', 'x' * 255, '\u{e9}' * 127, '\u{202e}txt', 'e\\u0301', '...', 'k' * 200 + '%25', 'a,b']";
    home.program("make", &format!("#!/usr/bin/env python3\n{PRELUDE}
names = {names}
os.mkdir('d\\n')
for n in names:
    open(n, 'w').write(n)
    open('d\\n/' + n, 'w').write('d' + n)
open(b'\\xff\\xfe', 'w').write('bytes')
assert b'\\xff\\xfe' in os.listdir(b'.')
event('x', {{'eventType': 'made', 'files': names + ['d\\n/' + n for n in names], 'k\\ney': 'v\\n', '../k': '/', '': 'e'}})
"));
    home.program(
        "see",
        &format!(
            "#!/usr/bin/env python3\n{PRELUDE}
names = {names}
os.chdir('/ion/in/data')
assert sorted(os.listdir('.')) == sorted(names + ['d\\n']), os.listdir('.')
for n in names:
    assert open(n).read() == n, n
    assert open('d\\n/' + n).read() == 'd' + n, n
assert os.listdir('/ion/in/meta') == ['k\\ney'], os.listdir('/ion/in/meta')
for n in names:
    os.link(n, '/ion/out/data/' + n)
event('y', {{'eventType': 'seen', 'files': names}})
"
        ),
    );
    let file = home.write("pipeline.yaml", "modules:\n  make: {on: [start], emits: [made], run: [./make], retries: 0}\n  see: {on: [made], emits: [seen], run: [./see], retries: 0}\n");
    let up = home.up(&file);
    home.run(["event", "create", "start", "--wait"]).well();
    assert_eq!(home.jobs().iter().filter(|job| job["state"] == "succeeded").count(), 2);
    home.run(["check", "--deep"]).well();
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn event_files_have_any_utf8_name_and_their_receipts_do_not_hide_each_other() {
    let ran = python(
        &Home::new(),
        &format!(
            r#"{PRELUDE}
names = ["a", "a.json", "n\nl", "x" * 255, "\u00e9" * 127]
for n in names:
    event(n, {{"eventType": "t"}})
receipts = os.listdir("/ion/events/published")
assert len(receipts) == len(names), receipts
found = {{json.load(open("/ion/events/published/" + r))["name"] for r in receipts}}
assert found == set(names), found
# Two such names could become one, and one event hide the other.
for n in [b"\xff", b"\xfe", b"ev\xffent.json"]:
    refused(errno.EILSEQ, os.open, b"/ion/out/events/" + n, os.O_CREAT | os.O_WRONLY)
open(b"\xff", "w").write('{{"eventType": "t"}}')
refused(errno.EILSEQ, os.rename, b"\xff", b"/ion/out/events/\xff")
refused(errno.EILSEQ, os.link, b"\xff", b"/ion/out/events/\xff")
refused(errno.ENAMETOOLONG, open, "y" * 256, "w")
"#
        ),
    )
    .well();
    assert_eq!(ran.types(), ["t"; 5]);
}

#[test]
fn a_tree_is_as_deep_as_its_paths_may_be_long_however_it_is_built() {
    let home = Home::new();
    let ran = python(
        &home,
        &format!(
            r#"{PRELUDE}
def dig(name):
    depth = 0
    os.mkdir(name); at = os.open(name, os.O_RDONLY)
    while True:
        try:
            os.mkdir("d", dir_fd=at)
        except OSError as e:
            assert e.errno == errno.ENAMETOOLONG, e
            return depth, at
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at); at = below; depth += 1
depth, bottom = dig("a")
assert 1900 < depth < 2048, depth
_, other = dig("b")
# One below the other would be twice as deep.
refused(errno.ENAMETOOLONG, os.rename, "a", "c", dst_dir_fd=other)
# As deep as can be opened, but no store need hold such a name.
deep, named = ("a" + "/d" * n + "/f" for n in (depth - 1, 98))
for path in (deep, named): open(path, "w").write("deep")
refused(errno.ENAMETOOLONG, event, "x", {{"eventType": "x", "files": [deep]}})
refused(errno.ENAMETOOLONG, event, "x", {{"eventType": "x", "files": ["a/d" + named[1:]]}})
event("x", {{"eventType": "x", "files": [named]}})
"#
        ),
    )
    .well();
    assert_eq!(ran.types(), ["x"]);
    home.run(["check", "--deep"]).well();
    assert!(
        std::fs::read_dir(home.state().join("jobs")).unwrap().next().is_none(),
        "the staging is gone"
    );
}

#[test]
fn links_lead_nowhere_but_into_out_data() {
    let home = Home::new();
    home.write("f", "input");
    home.write(
        "module.py",
        format!(
            r#"{PRELUDE}
# A link may point anywhere: the kernel follows it, with the module's own rights. An event that names it may not.
for i, target in enumerate(["/etc/passwd", "../events/e", "../../in/data/f", "a/../../x", "/", "..", "/proc/self/root"]):
    os.symlink(target, f"s{{i}}")
    assert os.readlink(f"s{{i}}") == target
    refused((errno.EINVAL, errno.ENOENT), event, "out", {{"eventType": "x", "files": [f"s{{i}}"]}})
    refused((errno.EINVAL, errno.ENOENT), event, "out", {{"eventType": "x", "files": [f"s{{i}}/passwd"]}})
# Inside where it was made, and outside where it is moved to: it is not followed.
os.makedirs("d/e")
os.symlink("../../x", "d/e/s"); open("x", "w").write("x")
os.rename("d/e/s", "d/s")
refused((errno.EINVAL,), event, "moved", {{"eventType": "x", "files": ["d/s"]}})
os.symlink("loop2", "loop1"); os.symlink("loop1", "loop2")
refused(errno.EINVAL, event, "loop", {{"eventType": "x", "files": ["loop1"]}})
for bad in ["../events/x", "/etc/passwd", "d/../../x", "..", "", "d", "a\0b", "x/y"]:
    refused((errno.EINVAL, errno.ENOENT), event, "bad", {{"eventType": "x", "files": [bad]}})
# A hard link to the input is a file of its own once it is written.
os.link("/ion/in/data/f", "hard")
open("hard", "a").write("more")
assert open("/ion/in/data/f").read() == "input" and open("hard").read() == "inputmore"
refused((errno.EXDEV, errno.EPERM, errno.EROFS), os.link, "hard", "/ion/in/data/g")
refused(errno.EROFS, os.rename, "hard", "/ion/in/data/g")
refused(errno.EXDEV, os.link, "/ion/in/event.json", "e")
refused(errno.EXDEV, os.link, "/ion/in/data/f", "/ion/out/events/e.json")
refused(errno.EPERM, os.link, "/ion/out/data/d", "/ion/out/data/dir")
refused(errno.EINVAL, os.rename, "d", "d/e/d")
event("x", {{"eventType": "x", "files": ["hard"]}})
for name in ["out", "moved", "loop", "bad"]:
    os.unlink("/ion/out/events/" + name)
"#
        ),
    );
    let module = home.path().join("module.py");
    let ran = home
        .run(["--json", "run", "--file", "f", "--", "python3", module.to_str().unwrap()])
        .failed();
    assert_eq!(ran.types(), ["x"], "{ran:#?}");
    assert!(
        ran.stderr.contains("(and 3 more)"),
        "a rejection stands though its file is gone: {ran:#?}"
    );
    let key = ran.events()[0]["files"][0]["key"].as_str().unwrap().to_owned();
    assert_eq!(std::fs::read_to_string(home.state().join("blobs").join(key)).unwrap(), "inputmore");
}

#[test]
fn no_device_can_be_made_and_no_event_names_a_pipe() {
    let home = Home::new();
    let ran = python(
        &home,
        &format!(
            r#"{PRELUDE}
for kind in [stat.S_IFCHR, stat.S_IFBLK]:
    refused(errno.EPERM, os.mknod, "n", kind | 0o666, os.makedev(1, 5))
for kind in [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK]:
    refused(errno.EPERM, os.mknod, "/ion/out/events/n", kind | 0o666, os.makedev(1, 5))
os.mkfifo("pipe")
refused(errno.EINVAL, event, "pipe", {{"eventType": "x", "files": ["pipe"]}})
open("set", "w"); os.chmod("set", 0o6755)
assert os.statvfs(".").f_flag & os.ST_NOSUID and os.statvfs(".").f_flag & os.ST_NODEV
assert sorted(os.listdir(".")) == ["pipe", "set"]
"#
        ),
    )
    .failed();
    assert!(ran.types().is_empty(), "{ran:#?}");
}

// ---- documents ----

#[test]
fn json_bombs_are_judged_at_once_and_values_kept_to_the_letter() {
    let home = Home::new();
    let ran = python(&home, &format!(r#"{PRELUDE}
def took(name, document, wanted=None):
    began = time.monotonic()
    if wanted: refused(wanted, event, name, document)
    else: event(name, document)
    assert time.monotonic() - began < 30, (name, time.monotonic() - began)
head = '{{"eventType": "x", "v": '
took("deep1", "[" * 1000000 + "]" * 1000000, errno.EINVAL)
took("deep2", head + "[" * 200000 + "]" * 200000 + "}}", errno.EINVAL)
took("deep3", head + '{{"a":' * 200000 + "1" + "}}" * 200000 + "}}", errno.EINVAL)
took("many", "[" + "0," * 7000000 + "0]", errno.EINVAL)
took("empties", head + "[" + "[]," * 5000000 + "[]]}}", errno.E2BIG)
took("keys", "{{" + ",".join(f'"k{{i}}":0' for i in range(1000000)) + ', "eventType": "x"}}', errno.E2BIG)
took("same", "{{" + '"k":0,' * 2000000 + '"eventType": "x"}}', errno.E2BIG)
took("surrogate", head + '"\\ud800"}}', errno.EINVAL)
took("control", head + '"\x01"}}', errno.EINVAL)
took("open", head + '"' + "x" * 3000000)
raw = os.open("/ion/out/events/latin", os.O_CREAT | os.O_WRONLY)
os.write(raw, head.encode() + b'"\xff"}}')
refused(errno.EINVAL, os.close, raw)
took("numbers", '{{"eventType": "x", "big": 123456789012345678901234567890, "exp": 1e999999, "zero": -0.0, "nested": [1.10, {{"b":1,"a":2}}], "t": true, "n": null}}')
"#)).failed();
    assert!(ran.stderr.contains("rejected"), "{ran:#?}");
    let data = &ran.events()[0]["data"];
    let value = |key: &str| {
        data.as_array().unwrap().iter().find(|pair| pair["key"] == key).unwrap()["value"].clone()
    };
    assert_eq!(value("big"), "123456789012345678901234567890");
    assert_eq!(value("exp"), "1e999999");
    assert_eq!(value("zero"), "-0.0");
    assert_eq!(value("nested"), "[1.10, {\"b\":1,\"a\":2}]");
    assert_eq!((value("t"), value("n")), ("true".into(), "null".into()));
}

// ---- jobs that do not want to end ----

#[test]
fn all_that_a_module_started_ends_with_it_whatever_it_holds_open() {
    let mark = format!("ion-hostile-{}", std::process::id());
    let program = format!(
        r#"
open("f", "w").write("data")
for n in range(20):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            import signal
            for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT): signal.signal(s, signal.SIG_IGN)
            held = [open(f"/ion/out/data/open{{n}}-{{i}}", "w") for i in range(20)]
            held.append(open(f"/ion/out/events/late{{n}}.json", "w"))
            held[-1].write('{{"eventType": "x"'); held[-1].flush()
            os.unlink(f"/ion/out/data/open{{n}}-0")
            os.execvp("python3", ["python3", "-c", "import time\nwhile True: time.sleep(60)", "{mark}"])
        os._exit(0)
event("x", {{"eventType": "x", "files": ["f"]}})
while len([n for n in os.listdir("/ion/out/events") if n.startswith("late") and os.path.getsize("/ion/out/events/" + n)]) < 20: time.sleep(0.01)
"#
    );
    let town = Town::with(Home::new(), &[("leaver", &program, "")]);
    let job = town.meets("leaver");
    assert!(!lives(&mark), "what it left runs on");
    let (state, reason) = reason(&job);
    // Cut off: those that wrote will write no more.
    assert_eq!(state, "dead");
    assert!(reason.contains("the JSON document is cut off (and 19 more)"), "{reason}");
    town.ends_well();
}

#[test]
fn a_module_that_covers_or_takes_away_its_tree_harms_itself_alone() {
    let name = "a_module_that_covers_or_takes_away_its_tree_harms_itself_alone";
    if !may_mount_or_runs_where_it_may(name) {
        return;
    }
    let cover = r#"
import subprocess
def run(*words): subprocess.run(words, check=True)
event("x", {"eventType": "x"})
run("mount", "-t", "tmpfs", "none", "/ion/out/data")
open("/ion/out/data/f", "w").write("elsewhere")
run("mount", "-t", "tmpfs", "none", "/ion")
os.makedirs("/ion/out/events")
open("/ion/out/events/no.json", "w").write("not seen")
"#;
    let away = r#"
import subprocess
os.chdir("/")
subprocess.run(["umount", "-l", "/ion"], check=True)
assert not os.path.exists("/ion/out")
raise SystemExit(3)
"#;
    let bind = r#"
import subprocess
os.chdir("/")
for at in ["/mnt", "/media"]:
    subprocess.run(["mount", "--bind", "/ion", at], check=True)
    subprocess.run(["mount", "--make-shared", at], check=True)
"#;
    let home = Home::new();
    let seen = || {
        let all = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let theirs = |line: &&str| {
            [" /ion ", " /ion/", " /mnt ", " /media "].iter().any(|at| line.contains(at))
        };
        all.lines().filter(theirs).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = seen();
    // Others may not mount anything.
    let more = ", privileged: true";
    let town =
        Town::with(home, &[("cover", cover, more), ("away", away, more), ("bind", bind, more)]);
    assert_eq!(reason(&town.meets("cover")), ("succeeded", ""));
    assert_eq!(reason(&town.meets("away")), ("dead", "exit status 3"));
    assert_eq!(reason(&town.meets("bind")), ("succeeded", ""));
    assert_eq!(seen(), before, "the host sees none of it");
    town.ends_well();
}

/// A request that the daemon works on keeps its process alive, so the work must end with the job.
#[test]
fn a_timeout_ends_a_job_whose_commit_would_take_for_ever() {
    let program = r#"
with open("huge", "wb") as f: f.truncate(200 << 30)
event("x", {"eventType": "x", "files": ["huge"]})
"#;
    let town = Town::with(Home::new(), &[("huge", program, ", timeout: 2s")]);
    let job = town.meets("huge");
    assert_eq!(reason(&job), ("dead", "over its timeout of 2s"));
    // Storing all of it would take minutes.
    let took = job["ended"].as_i64().unwrap() - job["created"].as_i64().unwrap();
    assert!(took < 30_000, "{took} ms");
    town.ends_well();
}

#[test]
fn what_ignores_its_end_is_killed_with_all_its_children() {
    let mark = format!("ion-stubborn-{}", std::process::id());
    let program = format!(
        r#"
import signal
for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT): signal.signal(s, signal.SIG_IGN)
for n in range(3): os.fork()
os.execvp("python3", ["python3", "-c", "import time\nwhile True: time.sleep(60)", "{mark}"])
"#
    );
    let town = Town::with(Home::new(), &[("stubborn", &program, ", timeout: 1s")]);
    assert_eq!(reason(&town.meets("stubborn")), ("dead", "over its timeout of 1s"));
    assert!(!lives(&mark), "a child runs on");
    town.ends_well();
}

/// What is still open when the module ends is final then: whole events are committed, cut-off ones
/// refused.
#[test]
fn files_open_at_the_end_are_final() {
    let program = r#"
open("d", "w").write("data")
whole, cut = open("/ion/out/events/whole", "w"), open("/ion/out/events/cut", "w")
whole.write('{"eventType":"x","files":["d"]}'); whole.flush()
cut.write('{"eventType":"x'); cut.flush()
os.kill(os.getpid(), 9)
"#;
    let town = Town::with(Home::new(), &[("dies", program, "")]);
    let job = town.meets("dies");
    let (state, why) = reason(&job);
    assert!(state == "dead" && why.contains("killed by signal 9"), "{job:#?}");
    let trace = town.home.run(["--json", "trace", job["correlationId"].as_str().unwrap()]).well();
    assert!(trace.stdout.contains("\"x\""), "the event that was whole is there: {trace:#?}");
    town.ends_well();
}

// ---- jobs that take too much ----

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
# What was refused is not whole; space that is given back is there for others.
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
    assert_eq!(job["attempts"][0]["exitCode"], 0, "all was refused as expected: {job:#?}");
    town.ends_well();
}

/// Names, links and attributes take of the disk and of the daemon's memory as content does.
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
# By the kernel, which wants a right for it, or else by the filesystem.
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
            // `insights.json` is one.
            ("names", names, ", limits: {staged-files: 51}"),
        ],
    );
    for (module, why) in [("links", "1 MiB"), ("attributes", "1 MiB"), ("names", "51 files")] {
        let job = town.meets(module);
        assert!(
            reason(&job).1.starts_with(&format!("over its limit of {why} in out/ (EDQUOT)")),
            "{job:#?}"
        );
        assert_eq!(job["attempts"][0]["exitCode"], 0, "all was refused as expected: {job:#?}");
    }
    town.ends_well();
}

/// The kernel tells some time after a removal that it has forgotten what was removed. The space is
/// free before that.
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
        "it ended by itself, and well but for its limit: {ran:#?}"
    );
}

/// A disk without an inode left is no fault of a module's: its job waits for room, and loses none
/// of its retries.
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
    wait_for("an attempt without room", || {
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
# One event too large to write, and some that are refused at their close.
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
    let limits = "event-bytes=2KiB,event-values=5,event-value-bytes=400,event-files=3,path-bytes=100,path-depth=3,open-files=40,processes=100";
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

/// A fork bomb in one job: it is bounded, ends at its timeout, and jobs beside it start processes
/// as ever.
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

/// The staging disk breaks while modules write: they are told, nothing is committed, and the daemon
/// lives.
#[test]
fn a_broken_staging_disk_fails_jobs_with_eio_and_commits_nothing() {
    if !rustix::process::geteuid().is_root() || !std::path::Path::new("/dev/loop-control").exists()
    {
        // Loop devices are root's.
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
    // A disk image on a disk that has less room than the image says: what is written in the end
    // fails.
    shell(&format!(
        "mount -t tmpfs -o size=12m ion-test {disk}; truncate -s 64m {disk}/image; mkfs.ext4 -q -O ^has_journal {disk}/image; mount -o loop {disk}/image {jobs}"
    ));
    let program = r#"
broken = (errno.EIO, errno.EROFS, errno.ENOSPC)
def fill(name, synced):
    with open(name, "wb") as f:
        for n in range(20):
            f.write(os.urandom(1 << 20))
            if synced: f.flush(); os.fsync(f.fileno())
        f.flush(); os.sync()
# Who does not ask is not told by the kernel that its pages are lost; the event is refused all the same.
fill("silent", False)
refused(broken, event, "silent", {"eventType": "x", "files": ["silent"]})
refused(broken, fill, "synced", True)
refused(broken, event, "synced", {"eventType": "x", "files": ["synced"]})
refused(broken, event, "again", {"eventType": "x", "files": ["silent"]})
sys.exit(7)
"#;
    home.program("writer", &format!("#!/usr/bin/env python3\n{PRELUDE}{program}"));
    // Also when the test fails.
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
