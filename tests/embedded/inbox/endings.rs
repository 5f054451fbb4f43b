//! What happens when a writer, the mount or the machine does not go on.

use std::os::unix::process::CommandExt as _;
use std::path::Path;

use super::*;

/// Starts a script in the inbox, in a group of processes of its own.
fn start(inbox: &Inbox, script: &str) -> Child {
    inbox.shell(script).process_group(0).spawn().unwrap()
}

/// Waits until a file in the mount has this many bytes.
fn wait_for_bytes(path: &Path, bytes: u64) {
    wait_for("the writer to come half way", || {
        std::fs::metadata(path).is_ok_and(|file| file.len() >= bytes)
    });
}

fn kill_group(child: &Child, name: &str) {
    signal_group(child.id(), name);
}

fn signal_group(pid: u32, name: &str) {
    Command::new("kill")
        .args([format!("-{name}"), "--".into(), format!("-{pid}")])
        .status()
        .unwrap();
}

#[test]
fn a_writer_that_is_killed_half_way_publishes_nothing() {
    let inbox = Inbox::new();
    let half = "head -c 100000 /dev/urandom; sleep 60";
    for (name, script, killed, said) in [
        // The program that was started by the shell has its output opened by it.
        ("cat", format!("({half}) | cat > scan/cat"), "KILL", "signal 9"),
        ("dd", format!("({half}) | dd of=scan/dd status=none bs=1000"), "KILL", "signal 9"),
        ("exec", "exec > scan/exec; head -c 100000 /dev/urandom; exec sleep 60".into(), "KILL", "signal 9"),
        ("term", "exec > scan/term; head -c 100000 /dev/urandom; exec sleep 60".into(), "TERM", "signal 15"),
        (
            "python",
            "exec python3 -c \"import time; f = open('scan/python', 'wb', 0); f.write(b'x' * 100000); time.sleep(60)\"".into(),
            "KILL",
            "signal 9",
        ),
        (
            "threads",
            "exec python3 -c \"
import threading, time
f = open('scan/threads', 'wb', 0)
threading.Thread(target=f.write, args=(b'x' * 100000,)).start()
time.sleep(60)\"".into(),
            "KILL",
            "signal 9",
        ),
    ] {
        let mut writer = start(&inbox, &script);
        wait_for_bytes(&inbox.at("inbox/scan").join(name), 100_000);
        kill_group(&writer, killed);
        writer.wait().unwrap();
        let (errno, reason) = inbox.rejection(&format!("scan/{name}"));
        assert!(errno == "EIO" && reason.contains(said), "{name}: {reason}");
        assert!(inbox.events("scan").is_empty(), "{name}");
    }
    // A program that gives up and says so, with the file open.
    inbox.fails("exec python3 -c \"import os; f = os.open('scan/gives-up', os.O_WRONLY | os.O_CREAT); os.write(f, b'x'); os._exit(3)\"");
    assert!(inbox.rejection("scan/gives-up").1.contains("exit status 3"));
    // One of several programs that write into one file is killed; the shell goes on and closes it.
    let parts =
        "{ head -c 100000 /dev/urandom; sh -c 'echo x; kill -9 $$'; echo end; } > scan/part";
    inbox.shell(parts).stderr(Stdio::null()).status().unwrap();
    assert!(inbox.rejection("scan/part").1.contains("signal 9"));
    assert!(inbox.events("scan").is_empty());

    // What is half stays, to be looked at, copied again, renamed or removed.
    let left = inbox.listed("inbox/scan");
    assert_eq!(left.len(), 8, "{left:?}");
    inbox.sh("echo whole > scan/cat; mv scan/dd scan/dd-renamed; rm scan/exec scan/term scan/python scan/threads scan/gives-up scan/part");
    assert_eq!(inbox.names("scan"), [["cat"], ["dd-renamed"]]);
    assert!(!inbox.listed("rejected/scan").contains(&"cat.json".to_owned()));
    inbox.end();
}

/// A copy of many files that is killed has published those that it had closed, each whole.
#[test]
fn a_copy_of_many_files_that_is_killed_has_published_whole_files_only() {
    let inbox = Inbox::new();
    for n in 0..60 {
        inbox.home.write(&format!("many/{n}"), format!("{n}\n").repeat(30_000));
    }
    let mut copy = start(&inbox, "exec cp $HOME_FOLDER/many/* scan/");
    wait_for("some events", || inbox.events("scan").len() >= 3);
    kill_group(&copy, "KILL");
    copy.wait().unwrap();
    wait_for("the inbox to rest", || {
        // The writer may have been killed before it wrote anything: such a file is no delivery.
        let is_empty = |name: &String| {
            inbox.at(&format!("inbox/scan/{name}")).metadata().is_ok_and(|file| file.len() == 0)
        };
        let is_refused = |name| inbox.at(&format!("rejected/scan/{name}.json")).exists();
        let left = inbox.listed("inbox/scan");
        left.iter().all(|name| is_empty(name) || is_refused(name))
    });
    let events = inbox.events("scan");
    for event in &events {
        let name = names_of(event).remove(0);
        let size = event["files"][0]["size"].as_u64().unwrap() as usize;
        assert_eq!(size, format!("{name}\n").len() * 30_000, "{name} is whole");
    }
    let names: std::collections::BTreeSet<String> = events.iter().flat_map(names_of).collect();
    assert_eq!(names.len(), events.len(), "each once");
    inbox.sh("rm -f scan/*");
    inbox.end();
}

#[test]
fn many_writers_put_files_into_the_inbox_at_a_time() {
    let inbox = Inbox::new();
    inbox.sh(
        "for w in $(seq 16); do
           ( for n in $(seq 12); do seq $n $((n + 2000)) > scan/$w-$n; done ) &
           ( for n in $(seq 4); do mkdir scan/.$w-$n; seq $w 3000 > scan/.$w-$n/f; mv scan/.$w-$n new_video/$w-$n; done ) &
         done
         wait",
    );
    wait_for("all events", || {
        inbox.events("scan").len() == 192 && inbox.events("new_video").len() == 64
    });
    for event in inbox.events("scan").iter().step_by(17) {
        let name = names_of(event).remove(0);
        let n: usize = name.split_once('-').unwrap().1.parse().unwrap();
        let expected: String = (n..=n + 2000).map(|n| format!("{n}\n")).collect();
        assert_eq!(inbox.content(event, &name), expected.as_bytes(), "{name}");
    }
    let names: std::collections::BTreeSet<String> =
        inbox.events("scan").iter().flat_map(names_of).collect();
    assert_eq!(names.len(), 192, "each once");
    wait_for("all jobs", || {
        let jobs = inbox.home.jobs();
        jobs.iter().filter(|job| job["state"] == "succeeded").count() == 192 + 64 + 64
    });
    inbox.end();
}

/// The inbox has a budget. What has left it takes no room.
#[test]
fn more_than_the_inbox_may_hold_is_refused_until_something_leaves() {
    let inbox =
        Inbox::with_flags(&["--job-limit", "staged-bytes=1MiB", "--job-limit", "event-files=3"]);
    for n in 0..4 {
        inbox.sh(&format!("head -c 700000 /dev/urandom > scan/{n}"));
    }
    assert_eq!(inbox.events("scan").len(), 4, "each has left before the next");
    inbox.sh("head -c 700000 /dev/urandom > scan/.draft");
    let said = inbox.fails("head -c 700000 /dev/urandom > scan/more");
    assert!(said.contains("Disk quota exceeded"), "{said}");
    assert_eq!(inbox.events("scan").len(), 4);
    inbox.sh("rm scan/.draft; cp /dev/null scan/more; head -c 700000 /dev/urandom > scan/more");
    assert_eq!(inbox.events("scan").len(), 5);
    inbox.sh("mkdir scan/.f; touch scan/.f/{1,2,3,4}");
    let said = inbox.fails("mv scan/.f scan/f");
    assert!(said.contains("Argument list too long"), "{said}");
    assert!(inbox.rejection("scan/f").1.contains("an event may name 3 files"));
    inbox.sh("rm scan/.f/4; mv scan/.f scan/f");
    assert_eq!(inbox.events("scan").len(), 6);
    inbox.end();
}

/// A file of many parts follows its writer into the store.
#[test]
fn a_large_file_is_published_whole() {
    let inbox = Inbox::new();
    inbox.sh(
        "head -c 80000000 /dev/urandom > $HOME_FOLDER/large; cp $HOME_FOLDER/large new_video/large",
    );
    wait_for("the module's result", || !inbox.events("seen").is_empty());
    let sum = inbox.sh("cd $HOME_FOLDER; sha256sum ./large | sha256sum | cut -c -16");
    let seen = inbox.events("seen").remove(0);
    assert!(values_of(&seen).contains(&("sum".to_owned(), sum.trim().to_owned())), "{seen}");
    // A slow writer, whose upload begins before the end.
    inbox.sh("for n in 1 2 3 4; do head -c 12000000 /dev/zero; sleep 0.5; done > new_video/slow");
    let slow = inbox.events("new_video").pop().unwrap();
    assert_eq!(slow["files"][0]["size"], 48_000_000);
    inbox.end();
}

/// SIGTERM unmounts: what was closed is published, and what is still written is not.
#[test]
fn an_unmount_publishes_what_was_closed_and_nothing_half() {
    let mut inbox = Inbox::new();
    let mut writer = start(&inbox, "exec > scan/open; echo half; exec sleep 60");
    wait_for_bytes(&inbox.at("inbox/scan/open"), 5);
    inbox.sh("echo draft > scan/.draft");
    // Copies are under way while the signal comes.
    for n in 0..40 {
        inbox.home.write(&format!("many/{n}"), format!("{n}\n").repeat(20_000));
    }
    let mut copy = start(
        &inbox,
        "for n in $(seq 0 39); do cp $HOME_FOLDER/many/$n scan/$n || exit; echo $n >> $HOME_FOLDER/copied; done 2> /dev/null",
    );
    wait_for("some copies", || {
        std::fs::read_to_string(inbox.home.path().join("copied"))
            .is_ok_and(|copied| copied.lines().count() >= 5)
    });
    signal(inbox.mount.id(), "TERM");
    assert!(inbox.mount.wait().unwrap().success(), "{}", inbox.log());
    copy.wait().unwrap();
    let copied = std::fs::read_to_string(inbox.home.path().join("copied")).unwrap();
    let copied: Vec<&str> = copied.lines().collect();
    let events = inbox.events("scan");
    let names: Vec<String> = events.iter().flat_map(names_of).collect();
    for name in &copied {
        assert_eq!(names.iter().filter(|one| one == name).count(), 1, "cp of {name} returned 0");
    }
    for event in &events {
        let name = names_of(event).remove(0);
        let size = event["files"][0]["size"].as_u64().unwrap() as usize;
        assert_eq!(size, format!("{name}\n").len() * 20_000, "{name} is whole");
    }
    assert!(!names.contains(&"open".to_owned()));
    let log = inbox.log();
    assert!(log.contains("scan/.draft") && log.contains("scan/open"), "{log}");
    kill_group(&writer, "KILL");
    writer.wait().unwrap();

    // A mount that is killed leaves its folder to the next one.
    inbox.mount = Inbox::mount(&inbox.home, &[]);
    inbox.sh("echo lost > scan/.lost; echo kept > scan/kept");
    signal(inbox.mount.id(), "KILL");
    inbox.mount.wait().unwrap();
    let staged = inbox.home.state().join("inbox");
    assert!(std::fs::read_dir(&staged).unwrap().count() > 0);
    inbox.mount = Inbox::mount(&inbox.home, &[]);
    assert_eq!(std::fs::read_dir(&staged).unwrap().count(), 2, "its own folder and its lock");
    let last = inbox.events("scan").pop().unwrap();
    assert_eq!(names_of(&last), ["kept"]);
    // The unmount may have cut off the copy that was under way.
    inbox.end_with_orphans(1);
}

/// A store that does not answer fails the close at its deadline, and publishes nothing. The file
/// stays, and a rename tries again.
#[test]
fn a_store_that_is_away_fails_the_close_and_a_rename_tries_again() {
    let inbox = Inbox::with_flags(&["--commit-deadline", "2s"]);
    let (blobs, away) = (inbox.home.state().join("blobs"), inbox.home.state().join("blobs.away"));
    inbox.sh("echo first > scan/first");
    wait_for("its job to end", || inbox.home.jobs().iter().any(|job| job["state"] == "succeeded"));
    std::fs::rename(&blobs, &away).unwrap();
    std::fs::write(&blobs, "no folder").unwrap();
    let said = inbox.fails("cp $HOME_FOLDER/pipeline.yaml scan/a");
    assert!(said.contains("Input/output error"), "{said}");
    let (errno, reason) = inbox.rejection("scan/a");
    assert!(errno == "EIO" && reason.contains("nothing was published"), "{reason}");
    assert_eq!(inbox.listed("inbox/scan"), ["a"]);
    std::fs::remove_file(&blobs).unwrap();
    std::fs::rename(&away, &blobs).unwrap();
    inbox.sh("mv scan/a scan/b");
    assert_eq!(inbox.names("scan"), [["first"], ["b"]]);
    inbox.end();
}
