//! The inbox of `ion mount --writable`: real programs put files into it, and each becomes an event,
//! whole and once, or none.

mod endings;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::{CommandOutput, Home, RunningCommand, signal, wait_for};

/// Two modules: one reads what was put into the inbox and publishes what it found.
const PIPELINE: &str = "\
modules:
  look: {on: [new_video], emits: [seen], run: [./look]}
  keep: {on: [scan, seen], run: [\"true\"]}
";

/// Publishes the names and the checksum of the files of its event.
const LOOK: &str = r#"#!/bin/sh
set -e
cd /ion/in/data
sum=$(find . -type f | LC_ALL=C sort | xargs -d '\n' sha256sum | sha256sum | cut -c -16)
echo "{\"eventType\": \"seen\", \"sum\": \"$sum\", \"names\": \"$(ls | tr '\n' ' ')\"}" > /ion/out/events/s.json
"#;

/// A plane with a pipeline and a mounted inbox.
struct Inbox {
    home: Home,
    up: Option<RunningCommand>,
    mount: Child,
}

impl Inbox {
    fn new() -> Self {
        Self::with_flags(&[])
    }

    fn with_flags(flags: &[&str]) -> Self {
        let home = Home::new();
        home.program("look", LOOK);
        let file = home.write("pipeline.yaml", PIPELINE);
        let up = home.up(&file);
        let mount = Self::mount(&home, flags);
        Self { home, up: Some(up), mount }
    }

    fn mount(home: &Home, flags: &[&str]) -> Child {
        let at = home.path().join("plane");
        let log = std::fs::File::create(home.path().join("mount.log")).unwrap();
        let mut mount = home.ion();
        mount.args(["mount", "--writable"]).args(flags).arg(&at).stderr(log);
        let mount = mount.spawn().unwrap();
        // The kernel may still show what it has kept of a mount that was killed.
        let told = home.path().join("mount.log");
        wait_for("the plane to be mounted", || {
            std::fs::read_to_string(&told).is_ok_and(|told| told.contains("mounted at"))
        });
        mount
    }

    /// Returns a path in the mount.
    fn at(&self, path: &str) -> PathBuf {
        self.home.path().join("plane").join(path)
    }

    fn shell(&self, script: &str) -> Command {
        let mut shell = Command::new("bash");
        shell.args(["-c", script]).current_dir(self.at("inbox")).stdin(Stdio::null());
        shell.env("HOME_FOLDER", self.home.path());
        shell
    }

    /// Runs a script in the inbox, which must exit with 0.
    #[track_caller]
    fn sh(&self, script: &str) -> String {
        let ran = CommandOutput::of(self.shell(&format!("set -e\n{script}")).output().unwrap());
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{script}: {}", ran.stdout);
        ran.stdout
    }

    /// Runs a script in the inbox, which must fail. Returns what it says.
    #[track_caller]
    fn fails(&self, script: &str) -> String {
        let ran = CommandOutput::of(self.shell(script).output().unwrap());
        assert!(ran.code.is_some_and(|code| code != 0), "{script}: {ran:#?}");
        ran.stderr
    }

    fn events(&self, event_type: &str) -> Vec<Value> {
        self.home.run(["--json", "event", "list", "-t", event_type]).well().documents()
    }

    /// Returns the names of the files of each event of a type, in the order of their commits.
    fn names(&self, event_type: &str) -> Vec<Vec<String>> {
        self.events(event_type).iter().map(names_of).collect()
    }

    fn record(&self, path: &str) -> Option<Value> {
        let text = std::fs::read_to_string(self.at(path)).ok()?;
        Some(serde_json::from_str(&text).unwrap())
    }

    /// Waits for the record of a refusal, and returns its errno and its reason.
    #[track_caller]
    fn rejection(&self, path: &str) -> (String, String) {
        let path = format!("rejected/{path}.json");
        wait_for(&path, || self.record(&path).is_some());
        let record = self.record(&path).unwrap();
        let text = |field: &str| record[field].as_str().unwrap().to_owned();
        (text("errno"), text("reason"))
    }

    /// Copies the files of an event out, and returns the content of one of them.
    fn content(&self, event: &Value, name: &str) -> Vec<u8> {
        let to = tempfile::tempdir_in(self.home.path()).unwrap();
        let words = ["event", "files", event["id"].as_str().unwrap(), "--to"];
        self.home.run(words.iter().copied().chain([to.path().to_str().unwrap()])).well();
        std::fs::read(to.path().join(name)).unwrap()
    }

    fn listed(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.at(folder)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.home.path().join("mount.log")).unwrap()
    }

    /// Unmounts, and checks that the plane is whole: each event's blobs are there, and no other
    /// blobs.
    fn end(self) {
        self.end_with_orphans(0);
    }

    /// Like [`Inbox::end`], where uploads were cut off: at most so many blobs are for `ion gc`.
    fn end_with_orphans(mut self, most: u64) {
        signal(self.mount.id(), "TERM");
        let ended = self.mount.wait().unwrap();
        assert!(ended.success(), "{}", self.log());
        let staged = self.home.state().join("inbox");
        assert_eq!(std::fs::read_dir(staged).unwrap().count(), 0, "nothing is left of the staging");
        if let Some(up) = self.up.take() {
            assert_eq!(up.stop(), Some(0));
        }
        self.home.run(["check", "--deep"]).well();
        let removed = self.home.run(["--json", "gc", "--grace", "0s"]).well();
        let removed: Value = serde_json::from_str(&removed.stdout).unwrap();
        let orphans = removed["blobs"].as_u64().unwrap();
        assert!(orphans <= most, "blobs are left that no event names: {removed}");
    }
}

impl Drop for Inbox {
    #[expect(clippy::print_stderr, reason = "a test that fails says what the mount said")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- ion mount\n{}", self.log());
        }
        signal(self.mount.id(), "TERM");
        let _ = self.mount.wait();
    }
}

fn names_of(event: &Value) -> Vec<String> {
    let files = event["files"].as_array().unwrap().iter();
    let mut names: Vec<String> =
        files.map(|file| file["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

fn values_of(event: &Value) -> Vec<(String, String)> {
    let pairs = event["data"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    pairs.map(|pair| (text(&pair["key"]), text(&pair["value"]))).collect()
}

#[test]
fn a_file_that_is_copied_into_the_inbox_starts_its_module_and_leaves() {
    let inbox = Inbox::new();
    inbox.home.write("clip.mp4", "pixels".repeat(50_000));
    assert_eq!(inbox.listed("inbox"), ["new_video", "scan", "seen"]);
    inbox.sh("cp $HOME_FOLDER/clip.mp4 new_video/");
    assert_eq!(inbox.listed("inbox/new_video"), [] as [&str; 0], "it has left");
    wait_for("the module's result", || !inbox.events("seen").is_empty());
    let event = inbox.events("new_video").remove(0);
    assert_eq!((names_of(&event), values_of(&event)), (vec!["clip.mp4".to_owned()], vec![]));
    assert_eq!(inbox.content(&event, "clip.mp4"), "pixels".repeat(50_000).as_bytes());
    assert_eq!(event["context"]["name"], "inbox");
    assert_eq!((&event["depth"], &event["jobId"]), (&Value::Null, &Value::Null), "a first event");
    let seen = inbox.events("seen").remove(0);
    assert_eq!(seen["context"]["correlationId"], event["context"]["correlationId"]);
    assert!(values_of(&seen).contains(&("names".to_owned(), "clip.mp4 ".to_owned())), "{seen}");

    // The receipt says which event it is, and the event is in the same mount.
    let receipt = inbox.record("published/new_video/clip.mp4.json").unwrap();
    assert_eq!((&receipt["eventId"], &receipt["bytes"]), (&event["id"], &Value::from(300_000)));
    let correlation = receipt["correlationId"].as_str().unwrap();
    let path = format!("correlations/{correlation}/{}", event["id"].as_str().unwrap());
    let bytes = std::fs::read(inbox.at(&path).join("data/clip.mp4")).unwrap();
    assert_eq!(bytes.len(), 300_000);

    // The same file once more is another event, in another correlation.
    inbox.sh("cp $HOME_FOLDER/clip.mp4 new_video/");
    let two = inbox.events("new_video");
    assert_eq!(two.len(), 2);
    assert_ne!(two[0]["context"]["correlationId"], two[1]["context"]["correlationId"]);
    assert_eq!(inbox.listed("published/new_video"), ["clip.mp4.json"]);
    inbox.end();
}

/// Each program writes, closes and renames in its own way.
#[test]
fn programs_put_files_into_the_inbox_each_in_its_own_way() {
    let inbox = Inbox::new();
    inbox.home.write("a", "content of a\n");
    inbox.home.write("secret", "mode\n");
    let mut expected = Vec::new();
    for (name, script) in [
        ("cp", "cp $HOME_FOLDER/a scan/cp"),
        ("cp-p", "cp -p $HOME_FOLDER/a scan/cp-p"),
        ("mv", "cp $HOME_FOLDER/a $HOME_FOLDER/b; mv $HOME_FOLDER/b scan/mv"),
        ("install", "install -m 0640 $HOME_FOLDER/a scan/install"),
        ("dd", "dd if=$HOME_FOLDER/a of=scan/dd bs=3 conv=fsync status=none"),
        ("tee", "tee scan/tee < $HOME_FOLDER/a > /dev/null"),
        ("cat", "cat $HOME_FOLDER/a > scan/cat"),
        ("echo", "echo content of a > scan/echo"),
        ("rsync", "rsync -a $HOME_FOLDER/a scan/rsync"),
        ("rsync-inplace", "rsync -a --inplace $HOME_FOLDER/a scan/rsync-inplace"),
        (
            "copy2",
            "python3 -c \"import os, shutil; shutil.copy2(os.environ['HOME_FOLDER'] + '/a', 'scan/copy2')\"",
        ),
        (
            "copy",
            "python3 -c \"import os, shutil; shutil.copy(os.environ['HOME_FOLDER'] + '/a', 'scan/copy')\"",
        ),
        ("python", "python3 -c \"open('scan/python', 'w').write('content of a\\n')\""),
        (
            "touched",
            "cp $HOME_FOLDER/a scan/touched; touch -d 2020-01-01 scan/touched; chmod 600 scan/touched; test $(stat -c %s scan/touched) = 13; test \"$(cat scan/touched)\" = 'content of a'",
        ),
    ] {
        inbox.sh(script);
        expected.push(vec![name.to_owned()]);
        wait_for(name, || inbox.events("scan").len() >= expected.len());
        let events = inbox.events("scan");
        let last = events.last().unwrap();
        assert_eq!(inbox.content(last, name), b"content of a\n", "{name}");
    }
    assert_eq!(inbox.names("scan"), expected, "each is one event");
    assert_eq!(inbox.listed("inbox/scan"), [] as [&str; 0]);
    assert!(!inbox.at("rejected/scan").exists());
    let modes = |name: &str| {
        let events = inbox.events("scan");
        let event = events.iter().find(|event| names_of(event) == [name]).unwrap();
        event["files"][0]["mode"].as_u64().unwrap()
    };
    assert_eq!(modes("cp-p"), 0o644);
    // What is appended to a file that has left is a new file, and overwriting it is one, too.
    inbox.sh("echo one >> scan/log; echo two >> scan/log; echo three > scan/log");
    let events = inbox.events("scan");
    let logs: Vec<_> = events[expected.len()..].iter().map(|e| inbox.content(e, "log")).collect();
    assert_eq!(logs, [b"one\n".to_vec(), b"two\n".to_vec(), b"three\n".to_vec()]);
    // Nothing else changes what was published.
    inbox.fails("echo two 1<> scan/log >&1");
    assert_eq!(inbox.sh("cat scan/log; rm scan/log; test ! -e scan/log"), "three\n");
    inbox.end();
}

/// A descriptor may have duplicates in one process or in several. The file is an event after the
/// last of them is closed, with all that was written.
#[test]
fn a_file_is_an_event_when_its_last_descriptor_is_closed() {
    let inbox = Inbox::new();
    let wanted: &[(&str, &str, &str)] = &[
        ("exec", "exec 3> scan/exec; echo a >&3; sleep 0.2; echo b >&3; exec 3>&-", "a\nb\n"),
        ("group", "{ echo a; /bin/echo b; sleep 0.2; /bin/echo c; } > scan/group", "a\nb\nc\n"),
        ("subshell", "( /bin/echo a; sleep 0.2; /bin/echo b ) > scan/subshell", "a\nb\n"),
        ("background", "{ echo a; ( sleep 0.5; echo b ) & } > scan/background; wait", "a\nb\n"),
        (
            "children",
            "python3 - <<'E'
import os, subprocess, sys
with open('scan/children', 'w') as file:
    file.write('a\\n'); file.flush()
    # Children that inherit the descriptor and end.
    for _ in range(3):
        if os.fork() == 0: os._exit(0)
        os.wait()
    file.write('b\\n'); file.flush()
    # A child that only has the descriptor, and is killed, says nothing about the content.
    child = subprocess.Popen(['sleep', '60'], pass_fds=[file.fileno()])
    child.kill(); child.wait()
    file.write('c\\n')
E",
            "a\nb\nc\n",
        ),
        (
            "threads",
            "python3 - <<'E'
import threading
file = open('scan/threads', 'wb', 0)
def part(n):
    for _ in range(100): file.write(b'%d\\n' % n)
threads = [threading.Thread(target=part, args=(n,)) for n in range(4)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
threading.Thread(target=file.close).start()
E",
            "",
        ),
        (
            "mapped",
            "python3 - <<'E'
import mmap
with open('scan/mapped', 'w+b') as file:
    file.truncate(6)
    with mmap.mmap(file.fileno(), 6) as view: view[:] = b'mapped'
E",
            "mapped",
        ),
        // A program that has its output opened by another one, which closes it at once.
        (
            "popen",
            "python3 - <<'E'
import subprocess
with open('scan/popen', 'w') as file:
    child = subprocess.Popen(['sh', '-c', 'echo a; sleep 0.5; echo b'], stdout=file)
child.wait()
E",
            "a\nb\n",
        ),
    ];
    for (n, (name, script, content)) in wanted.iter().enumerate() {
        inbox.sh(script);
        wait_for(name, || inbox.events("scan").len() > n);
        let event = inbox.events("scan").pop().unwrap();
        assert_eq!(names_of(&event), [*name]);
        let found = inbox.content(&event, name);
        match *name {
            "threads" => assert_eq!(found.len(), 800),
            _ => assert_eq!(String::from_utf8_lossy(&found), *content, "{name}"),
        }
    }
    assert_eq!(inbox.events("scan").len(), wanted.len());
    // An empty file is a place that somebody has reserved.
    inbox.sh("touch scan/placeholder; : > scan/placeholder");
    assert_eq!(inbox.listed("inbox/scan"), ["placeholder"]);
    inbox.sh("echo now > scan/placeholder; cp /dev/null scan/.empty; mv scan/.empty scan/empty");
    let events = inbox.names("scan");
    assert_eq!(events[wanted.len()..], [["placeholder"], ["empty"]]);
    assert_eq!(inbox.listed("inbox/scan"), [] as [&str; 0]);
    inbox.end();
}

#[test]
fn a_folder_is_one_event_when_it_gets_its_name() {
    let inbox = Inbox::new();
    let scans = inbox.home.path().join("scans");
    std::fs::create_dir_all(scans.join("empty")).unwrap();
    inbox.home.write("scans/a.png", "a");
    inbox.home.write("scans/sub/b.png", "b".repeat(70_000));
    inbox.sh("cp -r $HOME_FOLDER/scans scan/.x; sleep 0.3");
    assert!(inbox.events("scan").is_empty(), "a draft is no event");
    inbox.sh("mv scan/.x scan/july");
    let event = inbox.events("scan").remove(0);
    assert_eq!(names_of(&event), ["a.png", "sub/b.png"]);
    assert_eq!(event["directories"], serde_json::json!(["empty"]));
    assert_eq!(inbox.content(&event, "sub/b.png"), "b".repeat(70_000).as_bytes());
    assert_eq!(inbox.listed("inbox/scan"), [] as [&str; 0]);
    let receipt = inbox.record("published/scan/july.json").unwrap();
    assert_eq!((&receipt["files"], &receipt["bytes"]), (&Value::from(2), &Value::from(70_001)));

    // `values.json` gives the values, and is none of the files.
    inbox.sh(
        "rsync -a $HOME_FOLDER/scans/ scan/.y/; echo '{\"month\": \"may\", \"n\": 5}' > scan/.y/values.json
         ln -s a.png scan/.y/link.png; mv scan/.y scan/may",
    );
    let event = inbox.events("scan").pop().unwrap();
    assert_eq!(names_of(&event), ["a.png", "link.png", "sub/b.png"]);
    assert_eq!(values_of(&event), [("month".into(), "may".into()), ("n".into(), "5".into())]);
    inbox.sh(
        "mkdir scan/.z; echo '{\"only\": \"values\"}' > scan/.z/values.json; mv scan/.z scan/z",
    );
    let event = inbox.events("scan").pop().unwrap();
    assert_eq!((names_of(&event).len(), values_of(&event).len()), (0, 1));

    // A folder or file from within a draft, and one whose draft is of another type.
    inbox.sh("cp -r $HOME_FOLDER/scans new_video/.w; mv new_video/.w/sub scan/sub; mv new_video/.w/a.png scan/");
    let events = inbox.names("scan");
    assert_eq!(events[3..], [["b.png"], ["a.png"]]);
    inbox.sh("mv new_video/.w scan/w");
    assert_eq!(inbox.events("scan").len(), 6);

    // What is not allowed says why, changes nothing, and goes once it is put right.
    let said = inbox.fails("cp -r $HOME_FOLDER/scans scan/");
    assert!(said.contains("Permission denied"), "{said}");
    assert!(inbox.rejection("scan/scans").1.contains("mv .x july"));
    inbox.sh("mkdir scan/.v; echo '{\"eventType\": \"t\"}' > scan/.v/values.json");
    // `mv` has words of its own for this errno.
    inbox.fails("mv scan/.v scan/v");
    let (errno, reason) = inbox.rejection("scan/v");
    assert!(
        errno == "EINVAL" && reason.contains("values.json: it has an \"eventType\""),
        "{reason}"
    );
    assert_eq!(inbox.listed("inbox/scan"), [".v"]);
    inbox.sh("echo '{\"a\": 1' > scan/.v/values.json; ! mv scan/.v scan/v 2> /dev/null");
    assert!(inbox.rejection("scan/v").1.contains("cut off"));
    let said = inbox.fails("rm scan/.v/values.json; exec 3> scan/.v/open; mv scan/.v scan/v");
    assert!(said.contains("Device or resource busy"), "{said}");
    assert!(inbox.rejection("scan/v").1.contains("\"open\" is still open"));
    inbox.sh("mv scan/.v scan/v");
    assert!(!inbox.at("rejected/scan/v.json").exists(), "the rejection is taken back");
    for script in ["ln -s a scan/link", "mkfifo scan/pipe", "touch scan/.l; ln scan/.l scan/l"] {
        inbox.fails(script);
    }
    assert!(inbox.rejection("scan/link").1.contains("only files and folders"));
    inbox.sh("rm -rf scan/.l scan/.v");
    assert_eq!(inbox.events("scan").len(), 7);
    inbox.end();
}

#[test]
fn what_a_browser_has_not_finished_is_no_event() {
    let inbox = Inbox::new();
    let pieces = "echo one >> \"$f\"; sleep 0.1; echo two >> \"$f\"";
    for (script, name) in [
        // Chrome, Edge.
        (
            format!(
                "f='scan/Unconfirmed 47.crdownload'; {pieces}; mv \"$f\" scan/b.zip.crdownload; mv scan/b.zip.crdownload scan/b.zip"
            ),
            "b.zip",
        ),
        // Firefox reserves the name first.
        (format!("touch scan/c.zip; f=scan/c.Xa3b.zip.part; {pieces}; mv $f scan/c.zip"), "c.zip"),
        // Safari makes a folder.
        (
            format!(
                "mkdir scan/d.zip.download; echo plist > scan/d.zip.download/Info.plist; f=scan/d.zip.download/d.zip; {pieces}; mv $f scan/d.zip; rm -r scan/d.zip.download"
            ),
            "d.zip",
        ),
        // rclone, WinSCP, qBittorrent.
        (format!("f=scan/e.zip.1f2e3d4c.partial; {pieces}; mv $f scan/e.zip"), "e.zip"),
        (format!("f=scan/f.zip.filepart; {pieces}; mv $f scan/f.zip"), "f.zip"),
        (format!("f='scan/g.zip.!qB'; {pieces}; mv \"$f\" scan/g.zip"), "g.zip"),
    ] {
        let before = inbox.events("scan").len();
        inbox.sh(&script);
        let events = inbox.events("scan");
        assert_eq!(events.len(), before + 1, "{script}");
        let event = events.last().unwrap();
        assert_eq!(names_of(event), [name]);
        assert_eq!(inbox.content(event, name), b"one\ntwo\n");
        assert_eq!(inbox.listed("inbox/scan"), [] as [&str; 0]);
    }
    inbox.sh("echo half > scan/h.zip.crdownload");
    assert_eq!(inbox.listed("inbox/scan"), ["h.zip.crdownload"]);
    inbox.sh("rm scan/h.zip.crdownload");
    assert_eq!(inbox.events("scan").len(), 6);
    inbox.end();
}

#[test]
fn only_types_that_modules_take_have_a_folder() {
    let inbox = Inbox::new();
    inbox.home.write("a", "a");
    inbox.fails("cp $HOME_FOLDER/a new_vidoe/");
    let (errno, reason) = inbox.rejection("new_vidoe");
    assert_eq!(errno, "ENOENT");
    assert_eq!(
        reason,
        "no module starts on events of type \"new_vidoe\": modules start on new_video, scan, seen"
    );
    for own in ["ion.tick.look", "ion.source.failing"] {
        inbox.fails(&format!("cp $HOME_FOLDER/a {own}/a"));
        assert!(inbox.rejection(own).1.contains("are Ion's own"));
    }
    for script in ["cp $HOME_FOLDER/a new", "mkdir new", "mv scan new", "rmdir scan", "rm -r scan"]
    {
        inbox.fails(script);
    }
    let (errno, reason) = inbox.rejection("new");
    assert!(reason.contains("modules start on new_video, scan, seen"), "{errno} {reason}");
    for outside in
        ["touch ../x", "touch ../correlations/x", "rm -r ../published", "mkdir ../types/x"]
    {
        assert!(inbox.fails(outside).contains("Read-only file system"), "{outside}");
    }
    // A module that comes later has a folder at once; one that goes leaves a folder that refuses.
    inbox.home.run(["module", "create", "-n", "m", "-i", "new_vidoe", "--", "true"]).well();
    assert_eq!(inbox.listed("inbox"), ["new_video", "new_vidoe", "scan", "seen"]);
    inbox.sh("cp $HOME_FOLDER/a new_vidoe/");
    assert_eq!(inbox.events("new_vidoe").len(), 1);
    inbox.home.run(["module", "delete", "m"]).well();
    let said = inbox.fails("cp $HOME_FOLDER/a new_vidoe/b");
    assert!(said.contains("Permission denied"), "{said}");
    assert!(inbox.rejection("new_vidoe/b").1.contains("no module starts on"));
    assert_eq!(inbox.events("new_vidoe").len(), 1);
    // The refused file stays, and can be removed or sent under another type.
    inbox.sh("mv new_vidoe/b scan/b");
    assert_eq!(inbox.names("scan"), [["b"]]);
    inbox.end();
}

/// A file from an event in the same mount is copied, not referred to: the blob of the other
/// correlation may be removed.
#[test]
fn a_file_of_an_event_can_be_put_into_the_inbox() {
    let inbox = Inbox::new();
    inbox.sh("echo again > scan/a; cp ../types/scan/*/*/data/a new_video/b; cp ../types/scan/*/*/data/a scan/.c; mv scan/.c scan/c");
    let video = inbox.events("new_video").remove(0);
    let key = video["files"][0]["key"].as_str().unwrap();
    assert!(key.starts_with(video["context"]["correlationId"].as_str().unwrap()), "{video}");
    assert_eq!(inbox.content(&video, "b"), b"again\n");
    // A published file, which is still found by its name, is one too.
    inbox.sh("cp scan/c new_video/d");
    let video = inbox.events("new_video").pop().unwrap();
    let key = video["files"][0]["key"].as_str().unwrap();
    assert!(key.starts_with(video["context"]["correlationId"].as_str().unwrap()), "{video}");
    inbox.end();
}
