//! Tests of modules that do harm, on purpose or by mistake. They make hostile names, trees and
//! documents, refuse to end, take more than they may, or mount something over their own tree. Each
//! job ends together with every process that it started, its verdict is right, and jobs beside it
//! are not affected.

mod limits;
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

/// The beginning of each Python program. `refused` asserts that a call fails with this errno, or
/// with one of several. `event` writes an event file.
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

/// A running pipeline of hostile modules and of an ordinary module, the neighbour, which works
/// beside them.
struct Town {
    up: Option<RunningCommand>,
    home: Home,
}

impl Town {
    /// Starts `ion up` with the neighbour and these hostile modules, each with its name, its
    /// program and further fields.
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

    /// Lets the neighbour work on one event, and asserts that it succeeds.
    fn works(&self) {
        self.home.run(["event", "create", "work", "--file", "content", "--wait"]).well();
    }

    /// Starts a job of the hostile module and lets the neighbour work beside it and after it.
    /// Returns the hostile job once its state is final.
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

    /// Stops the daemon. Asserts that no process, mount or folder of a job is left, and that
    /// `ion check` finds nothing.
    fn ends_well(mut self) {
        let up = self.up.take().unwrap();
        // The jobs' mounts are in the namespaces of the jobs' processes, and nowhere else. A child
        // of the daemon forks those processes, so they are the daemon's grandchildren.
        let of_jobs = || {
            children(up.pid()).iter().flat_map(|server| children(server.parse().unwrap())).count()
        };
        wait_for("all processes of jobs to be gone", || of_jobs() == 0);
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

/// Returns the pids of the children of all threads of a process.
fn children(pid: u32) -> Vec<String> {
    let mut all = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let list = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        all.extend(list.split_whitespace().map(str::to_owned));
    }
    all
}

/// Returns whether any process on this machine has `mark` in its command line.
fn lives(mark: &str) -> bool {
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        std::fs::read(entry.path().join("cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(mark))
    })
}

/// Returns the state of a job, and the reason of its last attempt.
fn reason(job: &Value) -> (&str, &str) {
    let attempt = job["attempts"].as_array().unwrap().last().unwrap();
    (job["state"].as_str().unwrap(), attempt["reason"].as_str().unwrap_or_default())
}

// ---- names and trees ----

/// The next module sees each file under the same name, whatever characters the name has. A file
/// whose name is not UTF-8 stays behind, because no JSON document can name it.
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
# Such names are not UTF-8: two of them could become the same name, and one event would hide the
# other.
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
# A tree that is moved to the bottom of another one would be twice as deep.
refused(errno.ENAMETOOLONG, os.rename, "a", "c", dst_dir_fd=other)
# `deep` can be opened, but an event may not name it, because no store has to hold such a name.
# `named` has 100 names, the most that is allowed.
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
        "the staging folder is removed"
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
# A link may point anywhere, because the kernel follows it with the module's own rights. An event
# must not follow it out of out/data.
for i, target in enumerate(["/etc/passwd", "../events/e", "../../in/data/f", "a/../../x", "/", "..", "/proc/self/root"]):
    os.symlink(target, f"s{{i}}")
    assert os.readlink(f"s{{i}}") == target
    refused((errno.EINVAL, errno.ENOENT), event, "out", {{"eventType": "x", "files": [f"s{{i}}"]}})
    refused((errno.EINVAL, errno.ENOENT), event, "out", {{"eventType": "x", "files": [f"s{{i}}/passwd"]}})
# The link points into out/data from where it is made, and out of it from where it is moved to. The
# event does not follow it.
os.makedirs("d/e")
os.symlink("../../x", "d/e/s"); open("x", "w").write("x")
os.rename("d/e/s", "d/s")
refused((errno.EINVAL,), event, "moved", {{"eventType": "x", "files": ["d/s"]}})
os.symlink("loop2", "loop1"); os.symlink("loop1", "loop2")
refused(errno.EINVAL, event, "loop", {{"eventType": "x", "files": ["loop1"]}})
for bad in ["../events/x", "/etc/passwd", "d/../../x", "..", "", "d", "a\0b", "x/y"]:
    refused((errno.EINVAL, errno.ENOENT), event, "bad", {{"eventType": "x", "files": [bad]}})
# A hard link to an input becomes a file of its own as soon as it is written.
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
        "a rejection stays after its event file is removed: {ran:#?}"
    );
    let key = ran.documents()[0]["files"][0]["key"].as_str().unwrap().to_owned();
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
    let data = &ran.documents()[0]["data"];
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
    assert!(!lives(&mark), "no process that the module started is left");
    let (state, reason) = reason(&job);
    // The documents of the open event files are cut off: their writers have ended.
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
    // Only privileged modules may mount anything.
    let more = ", privileged: true";
    let town =
        Town::with(home, &[("cover", cover, more), ("away", away, more), ("bind", bind, more)]);
    assert_eq!(reason(&town.meets("cover")), ("succeeded", ""));
    assert_eq!(reason(&town.meets("away")), ("dead", "exit status 3"));
    assert_eq!(reason(&town.meets("bind")), ("succeeded", ""));
    assert_eq!(seen(), before, "the host sees no mount of the modules");
    town.ends_well();
}

/// A process cannot end while the daemon works on one of its requests. So the daemon gives up that
/// work when the job ends.
#[test]
fn a_timeout_ends_a_job_whose_commit_would_take_for_ever() {
    let program = r#"
with open("huge", "wb") as f: f.truncate(200 << 30)
event("x", {"eventType": "x", "files": ["huge"]})
"#;
    let town = Town::with(Home::new(), &[("huge", program, ", timeout: 2s")]);
    let job = town.meets("huge");
    assert_eq!(reason(&job), ("dead", "over its timeout of 2s"));
    // Storing the whole file would take minutes.
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
    assert!(!lives(&mark), "no child of the module is left");
    town.ends_well();
}

/// When a module ends, the content of each event file that it has open is final: a whole event is
/// committed, and one that is cut off is refused.
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
    assert!(trace.stdout.contains("\"x\""), "the whole event is committed: {trace:#?}");
    town.ends_well();
}

// ---- jobs that take too much ----
