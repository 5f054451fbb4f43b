//! Modules that do what nobody expects: the job ends with all its processes, its mount goes, and the verdict is right.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use serde_json::Value;
use support::{Home, Up, wait_for};

/// A pipeline of one module that runs this script, beside a neighbour that only copies.
fn up(home: &Home, script: &str, more: &str) -> Up {
    home.program("odd", script);
    home.program("copy", "#!/bin/sh\nset -e\ncp /ion/in/data/f /ion/out/data/f\necho '{\"eventType\":\"copied\",\"files\":[\"f\"]}' > /ion/out/events/e\n");
    let file = home.write(
        "pipeline.yaml",
        format!(
            "modules:\n  odd: {{on: [odd], emits: [made], run: [./odd], retries: 0, env: {{AT: {}}}{more}}}\n  copy: {{on: [plain], emits: [copied], run: [./copy]}}\n",
            home.path().display()
        ),
    );
    home.write("f", "content\n");
    home.up(&file)
}

/// The odd module's job when it has ended, and that a neighbour works before, beside and after it.
fn ended(home: &Home, up: Up) -> Value {
    let plain = || home.run(["event", "create", "plain", "--file", "f"]).well();
    plain();
    home.run(["event", "create", "odd", "--file", "f"]).well();
    plain();
    let odd = || home.jobs().into_iter().find(|job| job["module"] == "odd");
    wait_for("the odd job's end", || odd().is_some_and(|job| job["ended"].is_i64()));
    plain();
    wait_for("its neighbours", || {
        home.jobs().iter().filter(|job| job["module"] == "copy" && job["state"] == "succeeded").count() == 3
    });
    let folder = home.state().display().to_string();
    assert!(!std::fs::read_to_string("/proc/self/mounts").unwrap().contains(&folder), "a mount was left");
    assert_eq!(up.stop(), Some(0));
    home.run(["check", "--deep"]).well();
    odd().unwrap()
}

fn processes_with(word: &str) -> usize {
    let listed = std::fs::read_dir("/proc").unwrap().flatten();
    listed
        .filter(|entry| {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(word)
        })
        .count()
}

#[test]
fn children_that_would_outlive_their_module_end_with_it() {
    let home = Home::new();
    let script = "#!/bin/bash\n(trap '' HUP TERM INT; setsid nohup sleep 31415.9 >/dev/null 2>&1 &)\nsetsid sh -c 'trap \"\" TERM; sleep 31415.9' >/dev/null 2>&1 &\necho '{\"eventType\":\"made\"}' > /ion/out/events/e\nexit 0\n";
    let up = up(&home, script, "");
    let job = ended(&home, up);
    assert_eq!(job["state"], "succeeded", "{job:#?}");
    wait_for("its children to be gone", || processes_with("31415.9") == 0);
}

#[test]
fn what_ignores_its_end_is_killed_at_its_timeout() {
    let home = Home::new();
    let script = "#!/bin/bash\ntrap '' TERM INT HUP\nfor n in 1 2 3; do (trap '' TERM; while :; do sleep 27182.8; done) & done\nwhile :; do wait; sleep 1; done\n";
    let up = up(&home, script, ", timeout: 1s");
    let job = ended(&home, up);
    let attempt = &job["attempts"][0];
    assert_eq!(
        (job["state"].as_str(), attempt["end"].as_str()),
        (Some("dead"), Some("timed-out")),
        "{job:#?}"
    );
    wait_for("its children to be gone", || processes_with("27182.8") == 0);
}

/// What is still open when the module ends is final then: whole events are committed, cut-off ones refused.
#[test]
fn files_open_at_the_end_are_final() {
    let home = Home::new();
    let script = "#!/bin/bash\necho data > /ion/out/data/d\nexec 3>/ion/out/events/whole 4>/ion/out/events/cut 5>/ion/out/data/open\nprintf '{\"eventType\":\"made\",\"files\":[\"d\"]}' >&3\nprintf '{\"eventType\":\"ma' >&4\nprintf more >&5\nkill -9 $$\n";
    let up = up(&home, script, "");
    let job = ended(&home, up);
    let reason = job["attempts"][0]["reason"].as_str().unwrap();
    assert!(job["state"] == "dead" && reason.contains("killed by signal 9"), "{job:#?}");
    let correlation = job["correlationId"].as_str().unwrap();
    let trace = home.run(["--json", "trace", correlation]).well().stdout;
    assert!(trace.contains("\"made\""), "the event that was whole is there: {trace}");
}

/// Inside its own namespace a module may be root; what it mounts there is nobody else's, and goes with it.
#[test]
fn a_mount_over_the_tree_is_the_modules_own() {
    let home = Home::new();
    let script = "#!/bin/bash\necho data > /ion/out/data/d\nexec 3>/ion/out/events/before\nprintf '{\"eventType\":\"made\",\"files\":[\"d\"]}' >&3\nexec 3>&-\nif mount -t tmpfs none /ion 2>/dev/null; then mkdir -p /ion/out/events; echo '{\"eventType\":\"made\"}' > /ion/out/events/over; fi\numount -l /ion 2>/dev/null\numount -l /ion 2>/dev/null\nexit 0\n";
    let up = up(&home, script, "");
    let job = ended(&home, up);
    assert_eq!(job["state"], "succeeded", "{job:#?}");
    let trace = home.run(["--json", "trace", job["correlationId"].as_str().unwrap()]).well().stdout;
    assert_eq!(
        trace.matches("\"type\":\"made\"").count() + trace.matches("\"type\": \"made\"").count(),
        1,
        "{trace}"
    );
}

/// Names of any bytes, as long as names may be, and trees as deep as paths may be.
#[test]
fn names_of_any_bytes_and_deep_trees() {
    let home = Home::new();
    let script = r#"#!/usr/bin/env python3
import json, os
out = b"/ion/out/data/"
long, lines, raw = b"n" * 255, b"two\nlines", b"\xff\xfe\x80"
deep = b"/".join([b"d"] * 300) + b"/f"
os.makedirs(out + os.path.dirname(deep))
for name in (long, lines, raw, deep, "ünï ".encode()):
    with open(out + name, "wb") as file:
        file.write(name)
names = [long.decode(), lines.decode(), deep.decode(), "ünï "]
with open("/ion/out/events/e", "w") as file:
    json.dump({"eventType": "made", "files": names}, file)
assert sorted(os.listdir(out)) == sorted([long, lines, raw, b"d", "ünï ".encode()])
try:
    open(out + b"n" * 256, "w")
    raise SystemExit("a name of 256 bytes")
except OSError as error:
    assert error.errno == 36, error
"#;
    let up = up(&home, script, "");
    let job = ended(&home, up);
    assert_eq!(job["state"], "succeeded", "{job:#?}");
    let trace: Value = serde_json::from_str(
        &home.run(["--json", "trace", job["correlationId"].as_str().unwrap()]).well().stdout,
    )
    .unwrap();
    let made = trace.as_array().unwrap().iter().find(|event| event["type"] == "made").unwrap();
    let names: Vec<&str> =
        made["files"].as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"two\nlines") && names.contains(&"ünï ") && names.len() == 4, "{names:?}");
}

/// Links and nodes lead nobody out of the tree.
#[test]
fn links_and_nodes_lead_nowhere_else() {
    let home = Home::new();
    home.write("secret", "secret\n");
    let script = "#!/bin/bash\ncd /ion/out/data\nln -s $AT/secret link 2>/dev/null || echo x > link\nln -s ../../../../../../../../etc up 2>/dev/null\nmknod node c 1 3 2>/dev/null && exit 11\nmknod disk b 8 0 2>/dev/null && exit 12\nln /ion/in/data/f hard || exit 13\necho changed >> hard || exit 14\ngrep -q changed /ion/in/data/f && exit 15\nln /etc/passwd passwd 2>/dev/null && exit 16\nrefused() { printf \"{\\\"eventType\\\":\\\"made\\\",\\\"files\\\":[\\\"$1\\\"]}\" > /ion/out/data/.draft; cp /ion/out/data/.draft \"/ion/out/events/$2\" 2>/dev/null && exit 17; }\nrefused up/passwd up\nrefused ../../in/data/f dots\nrefused /etc/passwd root\nrefused node node\nexit 0\n";
    let up = up(&home, script, "");
    let job = ended(&home, up);
    assert_eq!(
        (job["attempts"][0]["exitCode"].as_i64(), job["state"].as_str()),
        (Some(0), Some("dead")),
        "{job:#?}"
    );
    let trace = home.run(["--json", "trace", job["correlationId"].as_str().unwrap()]).well().stdout;
    assert!(!trace.contains("\"made\""), "{trace}");
}

/// JSON that is meant to hurt is refused, or is an event like any other; the daemon does not notice.
#[test]
fn json_bombs_are_refused() {
    let home = Home::new();
    let script = r#"#!/usr/bin/env python3
import errno
def close(name, text):
    try:
        with open("/ion/out/events/" + name, "w") as file:
            file.write(text)
        return 0
    except OSError as error:
        return error.errno
assert close("deep", "[" * 5000000) in (0, errno.EINVAL, errno.E2BIG)
assert close("deepvalue", '{"eventType":"made","x":' + "[" * 100000 + "]" * 100000 + "}") in (0, errno.EINVAL)
assert close("huge", '{"eventType":"made","x":"' + "y" * (17 << 20) + '"}') in (errno.E2BIG, errno.EFBIG)
assert close("number", '{"eventType":"made","n":1' + "0" * 100000 + "}") in (0, errno.EINVAL)
assert close("keys", "{" + ",".join('"k%d":%d' % (n, n) for n in range(200000)) + ',"eventType":"made"}') in (0, errno.E2BIG)
assert close("files", '{"eventType":"made","files":[' + ",".join('"f%d"' % n for n in range(100000)) + "]}") == errno.ENOENT
assert close("twice", '{"eventType":"made","eventType":"other"}') == errno.EACCES
assert close("nul", '{"eventType":"made","files":["a\\u0000b"]}') in (errno.EINVAL, errno.ENOENT)
"#;
    let up = up(&home, script, "");
    let job = ended(&home, up);
    let log = home.run(["job", "logs", job["id"].as_str().unwrap()]).well().stdout;
    assert_eq!(job["attempts"][0]["exitCode"].as_i64(), Some(0), "{log}");
    assert_eq!(job["state"], "dead", "events were refused: {job:#?}");
}
