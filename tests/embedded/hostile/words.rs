//! Tests of texts that come from modules: types, names, values and output. Ion quotes only a part
//! of a long text. It shows control characters in escaped form, so that a terminal does not obey
//! them.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::{PRELUDE, reason};
use crate::support::{CommandOutput, Home, ION};

/// Starts `ion up` with a module of this program, and lets it work on one event. Returns the job,
/// and the output of `ion up`.
fn runs(home: &Home, program: &str) -> (Value, String) {
    home.program("say", &format!("#!/usr/bin/env python3\n{PRELUDE}{program}"));
    let file = home.write(
        "pipeline.yaml",
        "modules:\n  say: {on: [start], emits: [t], run: [./say], retries: 0}\n",
    );
    let up = home.up(&file);
    home.run(["event", "create", "start", "--wait"]);
    let job = home.jobs().remove(0);
    let log = up.log();
    assert_eq!(up.stop(), Some(0));
    (job, log)
}

#[test]
fn what_a_module_says_is_quoted_in_part() {
    let home = Home::new();
    let (job, log) = runs(
        &home,
        r#"
huge = "t" * 15_000_000
refused(errno.EINVAL, event, "type", {"eventType": huge})
refused(errno.EINVAL, event, "pair", json.dumps([{"key": huge}]))
refused(errno.EINVAL, event, "word", '{"eventType": ' + huge + '}')
refused(errno.ENAMETOOLONG, event, "path", {"eventType": "t", "files": [huge]})
refused(errno.EINVAL, event, "climbs", {"eventType": "t", "files": ["../" + huge]})
for name in ["type", "pair", "word", "path", "climbs"]:
    text = open("/ion/events/rejected/" + name + ".json").read()
    assert len(text) < 4096, (name, len(text))
    assert "more bytes)" in text or name == "word", text
"#,
    );
    let (state, why) = reason(&job);
    assert_eq!(state, "dead");
    assert!(
        why.contains("ttt")
            && why.contains("more bytes) is not a path below out/data (and 4 more)"),
        "{why}"
    );
    assert!(why.len() < 2500, "{} bytes", why.len());
    assert!(log.len() < 64 << 10, "{} bytes", log.len());
    for words in [&["job", "list"][..], &["trace"], &["dead", "list"]] {
        let said = home.run(words).stdout;
        assert!(said.lines().all(|line| line.len() < 1500), "{words:?}: {said:.2000}");
    }
    assert!(home.run(["--json", "trace"]).stdout.len() < 16 << 10);
}

/// Runs `ion` on a terminal of its own.
fn at_a_terminal(home: &Home, words: &[&str]) -> CommandOutput {
    let program =
        "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
    let output = Command::new("python3")
        .args(["-c", program, ION])
        .args(words)
        .env("ION_HOME", home.state())
        .env("TERM", "xterm")
        .current_dir(home.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    CommandOutput::of(output)
}

/// Returns the text without the colour codes that `ion` itself prints.
fn without_colours(text: &str) -> String {
    let colours = ["\x1b[0m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[34m", "\x1b[90m"];
    colours.iter().fold(text.to_owned(), |text, colour| text.replace(colour, ""))
}

#[test]
fn what_a_module_says_is_shown_and_not_obeyed() {
    let home = Home::new();
    let (job, log) = runs(
        &home,
        r#"
forged = "a\n└─ succeeded forged\r\x1b[2J\x1b]0;title\x07\u009b2J\u202e"
open(forged.replace("/", ""), "w").write("x")
event("fine", {"eventType": "t", "files": [forged]})
with open("/ion/out/insights.json", "w") as f: json.dump({"k\x1b[2J\nforged": forged}, f)
sys.stdout.write("hello \x1b[2J\x1b]0;title\x07 end\r\nforged | line\n"); sys.stdout.flush()
try: event("bad\nforged \x1b[2J", {"eventType": forged})
except OSError: pass
"#,
    );
    assert_eq!(reason(&job).0, "dead");
    let shown = |what: &str, text: &str| {
        let text = without_colours(text);
        let obeyed = text
            .chars()
            .find(|c| c.is_control() && !['\n', '\r', '\t'].contains(c) || *c == '\u{202e}');
        assert_eq!(obeyed, None, "{what}: {text:?}");
        let forged = text.lines().find(|line| {
            line.trim_start().trim_start_matches("└─ ").starts_with("succeeded forged")
        });
        assert_eq!(forged, None, "{what}: {text}");
    };
    // People read the log of a daemon on a terminal later, so it must be harmless there, too.
    shown("ion up", &log);
    for words in [&["trace"][..], &["job", "list"], &["dead", "list"], &["trace", "--dot"]] {
        shown(&format!("{words:?} into a pipe"), &home.run(words).stdout);
        let seen = at_a_terminal(&home, words).stdout;
        shown(&format!("{words:?} at a terminal"), &seen);
        assert!(words != ["trace"] || seen.contains(r"\u{1b}[2J"), "{seen}");
    }
    let seen = at_a_terminal(&home, &["--json", "trace"]);
    shown("--json", &seen.stdout);
    let trace = seen.documents();
    let named = trace.iter().find_map(|document| document["files"][0]["name"].as_str()).unwrap();
    assert!(
        named.contains("\n└─ succeeded forged\r\x1b[2J") && named.contains("\u{9b}2J\u{202e}"),
        "{named:?}"
    );
    let id = job["id"].as_str().unwrap();
    let said = home.run(["job", "logs", id]).stdout;
    assert!(
        said.contains("hello \x1b[2J\x1b]0;title\x07 end\r\nforged | line\n"),
        "a pipe gets all bytes: {said:?}"
    );
    let seen = at_a_terminal(&home, &["job", "logs", id]).stdout;
    shown("logs", &seen);
    assert!(seen.contains(r"hello \u{1b}[2J\u{1b}]0;title\u{7} end"), "{seen:?}");
}
