//! Replays the sessions of docs/debugging.md: ten things that go wrong, each explained by `ls`, `cat`
//! and `grep` in a mounted plane.

use std::path::Path;
use std::process::{Command, Stdio};

use regex::Regex;

use crate::support::{CommandOutput, Home, signal, wait_for};

/// A command line of the page, and the lines that it prints there.
struct Step {
    command: String,
    shown: Vec<String>,
}

/// Returns the sessions of the page: the steps below each heading that begins with a number.
fn sessions(page: &str) -> Vec<(String, Vec<Step>)> {
    let mut sessions: Vec<(String, Vec<Step>)> = Vec::new();
    for line in page.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            sessions.push((title.to_owned(), vec![]));
        }
        let Some((_, steps)) = sessions.last_mut() else { continue };
        match (line.strip_prefix("    $ "), line.strip_prefix("    ")) {
            (Some(command), _) => {
                steps.push(Step { command: command.to_owned(), shown: vec![] });
            }
            (None, Some(shown)) => steps.last_mut().unwrap().shown.push(shown.to_owned()),
            (None, None) => {}
        }
    }
    sessions
}

/// Replaces what differs from run to run.
struct Normalizer(Vec<(Regex, &'static str)>);

impl Normalizer {
    fn new() -> Self {
        let part = "[0-9]+(ms|us|ns|s|m|h)";
        let replaced = [
            ("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}".to_owned(), "TIME"),
            ("attempt ([0-9]+) by [^ ]+".to_owned(), "attempt $1 by HOLDER"),
            ("[0-9]{13}".to_owned(), "MILLISECONDS"),
            ("[0-9a-f]{8}-[0-9a-f-]{27}".to_owned(), "ID"),
            ("[0-9a-f]{8}".to_owned(), "ID"),
            (format!("(waited|prepared|ran) {part}( {part})*"), "$1 DURATION"),
        ];
        Self(replaced.into_iter().map(|(is, by)| (Regex::new(&is).unwrap(), by)).collect())
    }

    fn apply(&self, line: &str) -> String {
        self.0.iter().fold(line.to_owned(), |line, (is, by)| is.replace_all(&line, *by).into())
    }
}

/// Returns whether lines are as the page shows them; `...` there stands for any number of lines.
fn is_as_shown(lines: &[String], shown: &[String]) -> bool {
    match shown.split_first() {
        None => lines.is_empty(),
        Some((first, rest)) if first == "..." => {
            (0..=lines.len()).any(|skipped| is_as_shown(&lines[skipped..], rest))
        }
        Some((first, rest)) => lines.first() == Some(first) && is_as_shown(&lines[1..], rest),
    }
}

#[test]
fn a_session_is_compared_line_by_line() {
    let lines = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    assert!(is_as_shown(&lines("a b c d"), &lines("a ... d")));
    assert!(is_as_shown(&lines("a b"), &lines("... a b ...")));
    assert!(!is_as_shown(&lines("a b c"), &lines("a c")));
    assert!(!is_as_shown(&lines("a b"), &lines("a b c")));
    let same = Normalizer::new();
    let (one, other) =
        ("dead since 2026-05-01T08:30:00Z: ran 7ms", "dead since 2027-01-02T00:00:01Z: ran 1s 5ms");
    assert_eq!(same.apply(one), same.apply(other));
    assert_ne!(same.apply("exit status 3"), same.apply("exit status 4"));
}

/// Lets all ten things go wrong.
fn break_everything(home: &Home, pipeline: &Path) -> crate::support::RunningCommand {
    let up = home.up(pipeline);
    home.write("picture.jpg", "no png\n");
    home.write("table.csv", "a,b\n1,2\n");
    home.run(["event", "create", "holiday", "--file", "picture.jpg"]).well();
    for event_type in ["clip", "film", "address", "text", "hollidays"] {
        home.run(["event", "create", event_type]).well();
    }
    let state = |module: &str| {
        let job = home.jobs().into_iter().find(|job| job["module"] == module);
        job.map(|job| job["state"].as_str().unwrap_or_default().to_owned()).unwrap_or_default()
    };
    wait_for("five jobs to die", || {
        ["picture", "tag", "decode", "fetch", "parse"].iter().all(|module| state(module) == "dead")
    });
    assert_eq!(up.stop(), Some(0));
    // Nothing runs while blobs and the queue are harmed.
    for (id, correlation) in [("e1", "lost"), ("e2", "flipped")] {
        let names = ["--id", id, "--correlation", correlation];
        let event = ["event", "create", "table", "--file", "table.csv"];
        home.run(event.into_iter().chain(names)).well();
    }
    let harmed = Command::new("sh")
        .args(["-ec", "rm state/blobs/lost/e1/*/*/table.csv; f=$(echo state/blobs/flipped/e2/*/*/table.csv); chmod u+w $f; printf 'a,b\\n1,3\\n' > $f"])
        .current_dir(home.path())
        .status();
    assert!(harmed.unwrap().success());
    home.change_database(
        "c.execute(\"INSERT INTO messages (module, body) VALUES ('load', '{\\\"event\\\": 7}')\")",
    );
    for _ in 0..3 {
        home.run(["event", "create", "scene"]).well();
    }
    let up = home.up(pipeline);
    wait_for("the harmed blobs to be read and the scene to be rendered", || {
        let jobs = home.jobs();
        let count = |module: &str, state: &str| {
            jobs.iter().filter(|job| job["module"] == module && job["state"] == state).count()
        };
        count("load", "dead") == 2 && count("render", "running") == 1
    });
    wait_for("the gathering job to know what it waits for", || {
        let jobs = home.jobs();
        let report = jobs.iter().find(|job| job["module"] == "report");
        report.is_some_and(|job| job["waitsFor"]["dead"] == 1)
    });
    up
}

#[test]
fn ten_failures_are_explained_by_ls_cat_and_grep() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/debugging.md");
    let page = std::fs::read_to_string(path).unwrap();
    let pipeline = page.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let home = Home::new();
    let file = home.write("pipeline.yaml", pipeline);
    let up = break_everything(&home, &file);
    let at = home.path().join("plane");
    let mut mount = home.ion().arg("mount").arg(&at).spawn().unwrap();
    wait_for("the plane to be mounted", || at.join("recent").exists());
    let same = Normalizer::new();
    let mut wrong = Vec::new();
    let sessions = sessions(&page);
    assert_eq!(sessions.iter().filter(|(_, steps)| !steps.is_empty()).count(), 10);
    for (title, steps) in sessions {
        for step in steps {
            // `tail -f` in a job's own log is the only tool that the page names and does not run.
            let mut shell = Command::new("sh");
            shell.args(["-c", &step.command]).current_dir(&at).stdin(Stdio::null());
            let ran = CommandOutput::of(shell.output().unwrap());
            let lines: Vec<String> = ran.stdout.lines().map(|line| same.apply(line)).collect();
            let shown: Vec<String> = step.shown.iter().map(|line| same.apply(line)).collect();
            if !is_as_shown(&lines, &shown) || !ran.stderr.is_empty() {
                wrong.push(format!("{title}: {}\n{}{}", step.command, ran.stdout, ran.stderr));
            }
        }
    }
    signal(mount.id(), "TERM");
    mount.wait().unwrap();
    up.stop();
    assert!(wrong.is_empty(), "not as docs/debugging.md shows:\n{}", wrong.join("\n"));
}

/// What a running job writes is seen at once by `tail -f` in the mount, to its end.
#[test]
fn the_log_of_a_running_job_is_followed_in_the_mount() {
    let home = Home::new();
    let go = home.path().join("go").display().to_string();
    let run = "echo one; until test -e GO; do sleep 0.05; done; echo two; until test -e GO2; do sleep 0.05; done";
    let file = home.write(
        "pipeline.yaml",
        format!("modules:\n  slow: {{on: [x], run: [sh, -c, '{}']}}\n", run.replace("GO", &go)),
    );
    let up = home.up(&file);
    home.run(["event", "create", "x"]).well();
    wait_for("the job to run", || home.jobs().iter().any(|job| job["state"] == "running"));
    let at = home.path().join("plane");
    let mut mount = home.ion().arg("mount").arg(&at).spawn().unwrap();
    wait_for("the plane to be mounted", || at.join("recent").exists());
    let log = home.path().join("followed");
    let mut tail = Command::new("sh")
        .args(["-c", "exec tail -f running/*/log"])
        .current_dir(&at)
        .stdout(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let followed = || std::fs::read_to_string(&log).unwrap();
    wait_for("the first line", || followed() == "one\n");
    home.write("go", "");
    wait_for("the second line", || followed() == "one\ntwo\n");
    home.write("go2", "");
    tail.kill().unwrap();
    tail.wait().unwrap();
    signal(mount.id(), "TERM");
    mount.wait().unwrap();
    up.stop();
}
