//! Tests of the output that people see. No job and no daemon suffers if nobody reads the output, if
//! its reader goes away, or if the disk below it is full. Further tests show what of a long output
//! is shown and kept.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use crate::support::{CommandOutput, DEADLINE, Home, signal, wait_for};

/// A running command whose output streams the test chooses.
struct Started(Child);

impl Started {
    fn of(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    /// Waits until the command ends, and returns its exit status.
    fn ends(&mut self) -> ExitStatus {
        let mut status = None;
        wait_for("the command to end", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    fn stop(&mut self) -> ExitStatus {
        signal(self.0.id(), "TERM");
        self.ends()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the reading and the writing end of a pipe. Nobody reads from the pipe while the test
/// only holds the reading end.
fn pipe() -> (OwnedFd, OwnedFd) {
    let (from, to) = std::io::pipe().unwrap();
    (from.into(), to.into())
}

/// Returns the command `ion up` for two modules: `big` writes 2 MB, and `small` writes one line.
fn talkative(home: &Home) -> Command {
    home.write(
        "pipeline.yaml",
        "modules:\n  big: {on: [big], run: [sh, -c, \"seq 1 300000; echo the end\"]}\n  \
         small: {on: [small], run: [echo, hello]}\n",
    );
    let mut ion = home.ion();
    ion.args(["up", "pipeline.yaml", "--gateway", "127.0.0.1:0"]);
    ion
}

fn said(file: &PathBuf) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}

/// Asserts that jobs of both modules succeed, and that the gateway answers.
fn all_goes_on(home: &Home, stderr: &PathBuf) {
    wait_for("`ion up` to be ready", || said(stderr).contains("ready"));
    home.run(["event", "create", "big", "--wait"]).well();
    for _ in 0..5 {
        home.run(["event", "create", "small", "--wait"]).well();
    }
    let said = said(stderr);
    let address =
        said.split("the gateway is at http://").nth(1).unwrap().split_whitespace().next().unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(client, "GET /healthz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn a_reader_who_stops_holds_up_nothing() {
    let home = Home::new();
    let stderr = home.path().join("stderr");
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut ion = talkative(&home);
    ion.stdout(writer).stderr(File::create(&stderr).unwrap());
    let mut up = Started::of(&mut ion);
    drop(ion);
    all_goes_on(&home, &stderr);
    // A reader that begins to read now sees how each job ended, and the last line that it wrote.
    home.run(["event", "create", "big", "--wait"]).well();
    let read = Arc::new(Mutex::new(Vec::new()));
    let reading = std::thread::spawn({
        let read = read.clone();
        move || {
            let mut piece = vec![0; 64 << 10];
            while let length @ 1.. = reader.read(&mut piece).unwrap() {
                read.lock().unwrap().extend_from_slice(&piece[..length]);
            }
        }
    });
    let text = || String::from_utf8(read.lock().unwrap().clone()).unwrap_or_default();
    wait_for("the ends of all seven jobs to be shown", || {
        text().matches(" succeeded (").count() == 7
    });
    assert_eq!(up.stop().code(), Some(0));
    reading.join().unwrap();
    let text = text();
    assert_eq!(text.matches("| the end\n").count(), 2, "{}", text.len());
    assert_eq!(text.matches("| hello\n").count(), 5);
    assert_eq!(text.matches(" succeeded (").count(), 7);
}

#[test]
fn a_reader_who_never_reads_holds_up_no_end() {
    let home = Home::new();
    let stderr = home.path().join("stderr");
    let (_reader, writer) = pipe();
    let mut ion = talkative(&home);
    ion.stdout(writer).stderr(File::create(&stderr).unwrap());
    let mut up = Started::of(&mut ion);
    all_goes_on(&home, &stderr);
    assert_eq!(up.stop().code(), Some(0));
    // Now nobody reads either of the two outputs.
    let (_reader, writer) = pipe();
    let mut ion = talkative(&home);
    ion.arg("-vv").stdout(writer.try_clone().unwrap()).stderr(writer);
    let mut up = Started::of(&mut ion);
    home.run(["event", "create", "big", "--wait"]).well();
    assert_eq!(up.stop().code(), Some(0));
}

#[test]
fn a_reader_who_went_away_ends_no_daemon() {
    let home = Home::new();
    let stderr = home.path().join("stderr");
    let mut ion = talkative(&home);
    ion.stdout(Stdio::piped()).stderr(File::create(&stderr).unwrap());
    let mut up = Started::of(&mut ion);
    wait_for("`ion up` to be ready", || said(&stderr).contains("ready"));
    home.run(["event", "create", "small", "--wait"]).well();
    let mut first = String::new();
    BufReader::new(up.0.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.contains("hello"), "{first}");
    all_goes_on(&home, &stderr);
    wait_for("`ion up` to report that its reader has gone", || {
        said(&stderr).contains("cannot be shown: its reader has gone")
    });
    assert_eq!(up.stop().code(), Some(0));
}

#[test]
fn a_full_disk_below_the_output_ends_no_daemon() {
    let home = Home::new();
    let stderr = home.path().join("stderr");
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let mut ion = talkative(&home);
    ion.stdout(full()).stderr(File::create(&stderr).unwrap());
    let mut up = Started::of(&mut ion);
    all_goes_on(&home, &stderr);
    wait_for("`ion up` to report the full disk", || {
        said(&stderr).contains("cannot be shown: No space left on device")
    });
    assert_eq!(up.stop().code(), Some(0));
}

/// SIGTERM ends a daemon with exit status 0, even if the reader of its stderr has gone or the disk
/// below its stderr is full.
#[test]
fn whatever_became_of_stderr_a_signal_ends_it() {
    let home = Home::new();
    for gone in [true, false] {
        let stdout = home.path().join("stdout");
        let mut ion = talkative(&home);
        ion.stdout(File::create(&stdout).unwrap());
        let mut up = if gone {
            let mut up = Started::of(ion.stderr(Stdio::piped()));
            let mut lines = BufReader::new(up.0.stderr.take().unwrap()).lines();
            assert!(lines.any(|line| line.unwrap().contains("ready")));
            up
        } else {
            Started::of(ion.stderr(File::options().write(true).open("/dev/full").unwrap()))
        };
        home.run(["event", "create", "small", "--wait"]).well();
        wait_for("the line of `small` to be shown", || said(&stdout).contains("hello"));
        assert_eq!(up.stop().code(), Some(0));
    }
}

#[test]
fn all_that_a_program_wrote_is_shown_and_its_end_above_all() {
    let home = Home::new();
    let script = "seq 1 300000; echo Traceback >&2; printf 'no newline'; exit 1";
    let ran = home.run(["run", "--", "sh", "-c", script]).failed();
    let lines: Vec<&str> =
        ran.stderr.lines().filter_map(|line| line.strip_prefix("ion: run | ")).collect();
    assert_eq!(lines.len(), 300_002);
    assert!((0..300_000).all(|n| lines[n] == (n + 1).to_string()));
    assert_eq!(&lines[300_000..], ["Traceback", "no newline"]);
    let log = home.run(["job", "logs", home.jobs()[0]["id"].as_str().unwrap()]).well().stdout;
    assert!(log.ends_with("\nTraceback\nno newline\nion: exit status 1\n"));
    assert!(
        home.run(["run", "--", "printf", "hello"]).well().stderr.contains("ion: run | hello\n")
    );
    // A program overwrites one line several times, as progress bars do: the last text is shown.
    let ran = home.run(["run", "--", "printf", "1%%\\r2%%\\r3%%\\rdone\\n"]).well();
    assert!(ran.stderr.ends_with("ion: run | done\n"), "{}", ran.stderr);

    // If a module writes faster than the daemon shows its output, the daemon shows the last lines,
    // and says how much it leaves out before them.
    home.write(
        "pipeline.yaml",
        "modules:\n  much: {on: [go], run: [sh, -c, \"seq 1 4000000; echo Traceback; printf 'no newline'; exit 1\"], retries: 0}\n",
    );
    let up = home.up(&home.path().join("pipeline.yaml"));
    home.run(["event", "create", "go", "--wait"]).failed();
    wait_for("the end of the job to be shown", || up.log().contains("dead: exit status 1"));
    let log = up.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("much ")).collect();
    let [.., traceback, last, end] = &lines[..] else { panic!("{log}") };
    assert!(
        traceback.ends_with("| Traceback")
            && last.ends_with("| no newline")
            && end.contains("dead: exit status 1")
    );
    let all = lines.iter().filter(|line| line.contains(" | ")).count() == 4_000_002;
    assert!(
        all || log.contains("ion leaves out"),
        "the daemon shows all lines, or says that it leaves some out"
    );
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn a_job_ends_whether_or_not_what_it_wrote_is_read() {
    let home = Home::new();
    let (_reader, writer) = pipe();
    let mut ion = home.ion();
    ion.args(["run", "--", "sh", "-c", "seq 1 300000"]).stdout(Stdio::null()).stderr(writer);
    let mut run = Started::of(&mut ion);
    wait_for("the job to succeed", || home.jobs().iter().any(|job| job["state"] == "succeeded"));
    run.stop();
}

#[test]
fn a_result_that_cannot_be_written_is_no_success() {
    let home = Home::new();
    home.write("pipeline.yaml", "modules:\n  hello: {on: [go], run: [\"false\"], retries: 0}\n");
    let full = || File::options().write(true).open("/dev/full").unwrap();
    home.run(["event", "create", "go"]).well();
    let ran = CommandOutput::of(home.ion().arg("trace").stdout(full()).output().unwrap()).failed();
    assert!(
        ran.stderr.contains("the result could not be written: No space left on device"),
        "{}",
        ran.stderr
    );
    // A reader that closes the pipe early does not change the exit status of a command.
    let up = home.up(&home.path().join("pipeline.yaml"));
    home.run(["event", "create", "go"]).well();
    wait_for("a job to be dead", || home.jobs().iter().any(|job| job["state"] == "dead"));
    let without_reader = |words: &[&str]| {
        let (reader, writer) = pipe();
        drop(reader);
        home.ion().args(words).stdout(writer).output().unwrap()
    };
    assert_eq!(without_reader(&["trace"]).status.code(), Some(0));
    assert_eq!(without_reader(&["event", "create", "go", "--wait"]).status.code(), Some(1));
    assert_eq!(without_reader(&["run", "--", "false"]).status.code(), Some(1));
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn of_a_log_over_its_limit_the_beginning_and_the_end_are_kept() {
    let home = Home::new();
    let go = home.path().join("go");
    // The module writes 439 MB. Ion keeps 256 MiB of them.
    let script = format!(
        "seq 1 50000000; echo waits; until test -e {}; do sleep 0.05; done; echo the end",
        go.display()
    );
    home.write(
        "pipeline.yaml",
        format!("modules:\n  much: {{on: [go], run: [sh, -c, \"{script}\"], timeout: 10m}}\n"),
    );
    let up = home.up_with(&["--quiet"], &home.path().join("pipeline.yaml"));
    home.run(["event", "create", "go"]).well();
    wait_for("the job to exist", || !home.jobs().is_empty());
    let id = home.jobs()[0]["id"].as_str().unwrap().to_owned();
    let log = || home.run(["job", "logs", &id]).well().stdout;
    // While the job runs, and after its log is stored, the log has the same parts: the beginning,
    // how many bytes are missing, and the end.
    wait_for("the module to write all but its last line", || log().ends_with("\nwaits\n"));
    // The log is read only now: while the module writes, a reader may get bytes that Ion does not
    // keep in the end.
    let live = log();
    std::fs::write(&go, "").unwrap();
    wait_for("the job to succeed", || home.jobs()[0]["state"] == "succeeded");
    let stored = log();
    assert!(
        stored.ends_with("\n49999999\n50000000\nwaits\nthe end\n"),
        "{}",
        &stored[stored.len() - 100..]
    );
    for log in [&live, &stored] {
        assert!(log.starts_with("1\n2\n3\n"));
        assert!(!log.contains('\0'));
        assert!(log.len() < 300 << 20, "{}", log.len());
        assert_eq!(log.matches("bytes are left out here").count(), 1);
    }
    let missing: usize = {
        let at = stored.find(" bytes are left out here").unwrap();
        stored[..at].rsplit(' ').next().unwrap().parse().unwrap()
    };
    let words = stored.lines().find(|line| line.contains("left out here")).unwrap().len() + 2;
    let written: usize =
        home.jobs()[0]["attempts"][0]["logLeftOut"].as_u64().unwrap() as usize + stored.len();
    assert_eq!(written, stored.len() - words + missing);
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn a_job_that_has_not_begun_has_no_log_and_says_why() {
    let home = Home::new();
    home.program(
        "part",
        "#!/bin/sh\necho '{\"eventType\": \"part\"}' > /ion/out/events/part.json\nuntil test -e $GO; do sleep 0.05; done\n",
    );
    let go = home.path().join("go");
    let file = home.write(
        "pipeline.yaml",
        format!(
            "modules:\n  part: {{on: [go], emits: [part], run: [./part], env: {{GO: {}}}}}\n  \
             all: {{gather: part, per: go, run: [echo, all]}}\n",
            go.display()
        ),
    );
    let up = home.up(&file);
    home.run(["event", "create", "go"]).well();
    let all = || home.jobs().into_iter().find(|job| job["module"] == "all");
    wait_for("the gathering job to exist", || all().is_some());
    let id = all().unwrap()["id"].as_str().unwrap().to_owned();
    let ran = home.run(["job", "logs", &id]).well();
    assert!(
        ran.stdout.is_empty() && ran.stderr.contains("has not begun: it is waiting"),
        "{ran:#?}"
    );
    // `ion job logs -f` waits until the job begins, and then shows its log.
    let mut ion = home.ion();
    ion.args(["job", "logs", "-f", &id]).stdout(Stdio::piped());
    let mut follows = Started::of(&mut ion);
    std::fs::write(&go, "").unwrap();
    assert!(follows.ends().success());
    let mut said = String::new();
    follows.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "all\n");
    assert_eq!(up.stop(), Some(0));
}
