//! `ion source try`: what it shows, and that it leaves no trace.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{items, pipeline};
use crate::support::Home;

/// Returns all documents and messages of the plane, and the names of its blobs.
fn everything(home: &Home) -> (String, Vec<PathBuf>) {
    let program = "import sqlite3\n\
                   c = sqlite3.connect('state/ion.db')\n\
                   tables = [t for t, in c.execute(\"SELECT name FROM sqlite_master WHERE type='table'\")]\n\
                   for t in sorted(tables):\n\
                   \x20   if t != 'dispatchers' and not t.startswith('sqlite_'):\n\
                   \x20       print(t, sorted(map(repr, c.execute('SELECT * FROM %s' % t))))\n";
    let mut python = Command::new("python3");
    let ran = python.args(["-c", program]).current_dir(home.path()).output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    fn walk(folder: &Path, into: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.path() {
                path if path.is_dir() => walk(&path, into),
                path => into.push(path),
            }
        }
    }
    let mut blobs = Vec::new();
    walk(&home.state().join("blobs"), &mut blobs);
    blobs.sort();
    (String::from_utf8(ran.stdout).unwrap(), blobs)
}

/// Returns what is left of trials in the folder of jobs.
fn leftovers(home: &Home) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(home.state().join("jobs")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

#[test]
fn a_trial_shows_what_a_run_would_publish_and_leaves_no_trace() {
    let home = Home::new();
    let file = pipeline(&home, "");
    let up = home.up(&file);
    home.run(["source", "add", "s", "--module", "count", "--every", "1day"]).well();
    for _ in 0..4 {
        home.run(["source", "run", "s", "--wait"]).well();
    }
    assert_eq!(up.stop(), Some(0));
    let before = everything(&home);
    for _ in 0..2 {
        let tried = home.run(["source", "try", "s", "--out", "left"]).well();
        std::fs::remove_dir_all(home.path().join("left")).unwrap();
        let expected = "would publish item (out/events/5.json)\n    n = 5\n    file text (7 B)\n\
                        the state would be:\n    last/s (2 B), changed\n    n (2 B), changed\n";
        assert_eq!(tried.stdout, expected, "{tried:#?}");
        assert!(tried.stderr.contains("1 files of out/data (7 B) are in left"), "{tried:#?}");
    }
    let tried = home.run(["--json", "source", "try", "s", "--without-state"]).well().documents();
    assert_eq!(
        (&tried[0]["publishes"], &tried[0]["eventFile"]),
        (&"item".into(), &"1.json".into())
    );
    assert_eq!(tried[0]["data"][0]["value"], "1");
    assert_eq!(tried[0]["files"][0]["size"], 7);
    assert_eq!(tried[1]["state"][1]["change"], "new", "{tried:#?}");
    assert_eq!(everything(&home), before, "a trial writes nothing");
    assert_eq!(leftovers(&home), Vec::<PathBuf>::new());
    // The real run publishes what the trial has shown.
    let up = home.up(&file);
    home.run(["source", "run", "s", "--wait"]).well();
    assert_eq!(items(&home), [1, 2, 3, 4, 5]);
    assert_eq!(up.stop(), Some(0));
}

/// Publishes an item and then fails, if its value says so.
const FAILS: &str = r#"#!/bin/sh
set -e
cd "$ION_DIR"
echo x > out/state/x
echo "{\"eventType\": \"item\", \"url\": \"$(cat in/meta/url)\"}" > out/events/e.json
echo 2026-11-27T19:00:00Z > out/state/not-before
echo moved away > out/state/gone
echo looking at $(cat in/meta/url)
test "$(cat in/meta/url)" != https://bad.example
"#;

#[test]
fn a_source_is_tried_before_it_exists() {
    let home = Home::new();
    home.program("look", FAILS);
    let file = home.write(
        "p.yaml",
        "modules:
  look: {params: {url: {type: url, required: true}}, emits: [item], commit: on-success, run: [./look]}
sources:
  declared: {module: look, every: 1h, with: {url: https://a.example}}
",
    );
    // Nothing has been run, and nothing is registered.
    let tried = home.run(["source", "try", "declared", "--pipeline", "p.yaml"]).well();
    let words = "would publish item (out/events/e.json)\n    url = https://a.example\n";
    assert!(tried.stdout.starts_with(words), "{tried:#?}");
    assert!(tried.stdout.contains("x (2 B), new\n"), "{tried:#?}");
    assert!(tried.stdout.contains("would be gone: moved away"), "{tried:#?}");
    assert!(tried.stdout.contains("no scheduled run would begin before"), "{tried:#?}");
    assert!(tried.stderr.contains("look | looking at https://a.example"), "{tried:#?}");
    assert!(!home.state().join("ion.db").exists(), "no store was made");
    let other = ["source", "try", "declared", "-p", "p.yaml", "--with", "url=https://b.example"];
    assert!(home.run(other).well().stdout.contains("url = https://b.example"));

    let up = home.up(&file);
    let try_new = |url: &str| {
        let url = format!("url={url}");
        home.run(["source", "try", "new", "--module", "look", "--with", &url])
    };
    assert!(try_new("https://c.example").well().stdout.contains("url = https://c.example"));
    let failed = try_new("https://bad.example").failed();
    assert!(failed.stderr.contains("look: exit status 1; a run that fails publishes nothing"));
    assert!(!failed.stdout.contains("would publish"), "{failed:#?}");
    let wrong = try_new("ftp://c.example").failed();
    assert!(wrong.stderr.contains("\"url\" is \"ftp://c.example\""), "{wrong:#?}");
    let missing = home.run(["source", "try", "new"]).failed();
    assert!(missing.stderr.contains("there is no source \"new\"; --module"), "{missing:#?}");
    let none = home.run(["source", "get", "new"]).failed();
    assert!(none.stderr.contains("there is no source"), "a trial adds no source");
    assert_eq!(home.jobs().len(), 0);
    assert_eq!(up.stop(), Some(0));
}
