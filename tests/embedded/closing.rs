//! Tests of the ways in which programs write and close event files: what each close commits,
//! refuses and returns. DESIGN.md section 3 has the rules, and says what the kernel sends for a
//! close.

use crate::support::Home;

const OK: &str = r#"{"eventType": "a", "n": 1}"#;

/// Runs a script as a job in two shells. Asserts that the job succeeds, and that it commits events
/// of these types.
#[track_caller]
fn commits(script: &str, types: &[&str]) {
    for shell in ["bash", "dash"] {
        let ran = Home::new().script_in(shell, script).well();
        assert_eq!(ran.types(), types, "{shell}: {script}\n{ran:#?}");
    }
}

/// Runs a script as a job in two shells. Asserts that the job fails because of a rejected event,
/// that the error contains the reason, and that the job commits only events of these types.
#[track_caller]
fn rejects(script: &str, types: &[&str], reason: &str) {
    for shell in ["bash", "dash"] {
        let ran = Home::new().script_in(shell, script).failed();
        assert_eq!(ran.types(), types, "{shell}: {script}\n{ran:#?}");
        assert!(ran.stderr.contains(reason), "{shell}: {script}\n{ran:#?}");
    }
}

#[test]
fn a_builtin_commits() {
    commits(&format!("echo '{OK}' > /ion/out/events/a.json"), &["a"]);
}

#[test]
fn a_command_commits_also_through_the_shells_early_close() {
    commits(
        &format!(
            "/bin/echo '{OK}' > /ion/out/events/a.json && printf '{OK}' | cat > /ion/out/events/b.json"
        ),
        &["a", "a"],
    );
}

#[test]
fn a_descriptor_held_open_commits_once_the_document_is_complete() {
    commits(
        "exec 3> /ion/out/events/a.json; echo '{\"eventType\":' >&3; test ! -e /ion/events/published/a.json; \
         echo '\"a\"}' >&3; exec 3>&-; test -e /ion/events/published/a.json",
        &["a"],
    );
}

#[test]
fn an_older_ions_list_of_pairs_commits() {
    commits(
        r#"echo '[{"key":"eventType","value":"a"},{"key":"n","value":"1"}]' > /ion/out/events/a.json"#,
        &["a"],
    );
}

#[test]
fn an_empty_file_and_a_draft_are_no_events() {
    commits(
        &format!(
            "touch /ion/out/events/a.json; : > /ion/out/events/b.json; echo '{OK}' > /ion/out/events/.c.json; echo '{OK}' > /ion/out/events/d.json.tmp"
        ),
        &[],
    );
}

#[test]
fn a_draft_commits_when_it_is_renamed() {
    commits(
        &format!(
            "cd /ion/out/events; echo '{OK}' > a.json.tmp; test -z \"$(ls /ion/events/published)\"; mv a.json.tmp a.json; test -e /ion/events/published/a.json"
        ),
        &["a"],
    );
}

#[test]
fn a_file_of_out_data_becomes_an_event_by_a_rename_or_a_link() {
    commits(
        &format!(
            "cd /ion/out; echo '{OK}' > data/a; mv data/a events/a.json; echo '{OK}' > data/b; ln data/b events/b.json"
        ),
        &["a", "a"],
    );
}

#[test]
fn a_file_too_large_for_an_event_is_refused_on_record_and_stays_a_file() {
    let home = Home::new();
    let ran = home
        .script("head -c 17000000 /dev/zero > /ion/out/data/big; mv /ion/out/data/big /ion/out/events/a.json && exit 9; echo more >> /ion/out/data/big || exit 8; test -e /ion/events/rejected/a.json")
        .failed();
    assert!(ran.stderr.contains("\"a.json\" was rejected: E2BIG"), "{ran:#?}");
}

#[test]
fn sed_in_place_on_a_draft_commits_nothing_until_the_rename() {
    commits(
        "cd /ion/out/events; echo '{\"eventType\": \"x\"}' > a.tmp; sed -i s/x/a/ a.tmp; test -z \"$(ls /ion/events/published)\"; mv a.tmp a.json",
        &["a"],
    );
}

#[test]
fn tee_cp_and_dd_commit() {
    commits(
        &format!(
            "echo '{OK}' | tee /ion/out/events/a.json; echo '{OK}' > /tmp/e$$; cp /tmp/e$$ /ion/out/events/b.json; dd if=/tmp/e$$ of=/ion/out/events/c.json conv=fsync 2>/dev/null; rm /tmp/e$$"
        ),
        &["a", "a", "a"],
    );
}

#[test]
fn python_commits_and_its_children_do_not_disturb() {
    let script = r#"python3 - <<'E'
import json, os
f = open("/ion/out/events/a.json", "w")
f.write('{"eventType": ')
f.flush()
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
assert not os.path.exists("/ion/events/published/a.json")
f.write('"a"}')
f.close()
assert os.path.exists("/ion/events/published/a.json")
json.dump({"eventType": "b"}, open("/ion/out/events/b.json", "w"))
E"#;
    commits(script, &["a", "b"]);
}

#[test]
fn python_sees_the_errno_of_a_refused_close() {
    let script = r#"python3 - <<'E'
import errno
f = open("/ion/out/events/a.json", "w")
f.write('{"eventType": "a", "files": ["missing"]}')
try:
    f.close()
    raise SystemExit("close() succeeded")
except OSError as e:
    assert e.errno == errno.ENOENT, e
E"#;
    rejects(script, &[], "ENOENT: file \"missing\" is not in out/data");
}

/// A forked child causes the first FLUSH of the whole content, and ignores the errno. The parent
/// gets the same errno from its fsync and from each close.
#[test]
fn a_child_that_closes_first_does_not_take_the_refusal_away() {
    let script = r#"python3 - <<'E'
import errno, os
f = open("/ion/out/events/a.json", "w")
f.write('{"eventType": "a", "files": ["missing"]}')
f.flush()
child = os.fork()
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
for close in [lambda: os.fsync(f.fileno()), lambda: os.close(os.dup(f.fileno())), f.close]:
    try:
        close()
        raise SystemExit("it succeeded")
    except OSError as e:
        assert e.errno == errno.ENOENT, e
E"#;
    rejects(script, &[], "ENOENT: file \"missing\" is not in out/data");
}

#[test]
fn node_and_perl_commit_where_they_are() {
    let node = "command -v node >/dev/null || exec true; node -e 'require(\"fs\").writeFileSync(\"/ion/out/events/a.json\", JSON.stringify({eventType: \"a\"}))'; test -e /ion/events/published/a.json";
    Home::new().script(node).well();
    commits(
        r#"perl -e 'open(F, ">", "/ion/out/events/a.json") or die; print F "{\"eventType\": \"a\"}"; close(F) or die $!'"#,
        &["a"],
    );
}

#[test]
fn a_killed_writer_commits_what_is_complete_and_is_rejected_for_what_is_cut() {
    let writer = |text: &str| {
        format!(
            "python3 -c 'import os,signal; f=open(\"/ion/out/events/a.json\",\"w\"); f.write({text:?}); f.flush(); os.kill(os.getpid(), signal.SIGKILL)'; true"
        )
    };
    commits(&writer(r#"{"eventType": "a"}"#), &["a"]);
    rejects(&writer(r#"{"eventType": "a", "#), &[], "EINVAL: the JSON document is cut off");
}

#[test]
fn what_is_no_document_is_refused_with_einval() {
    let cases = [
        ("not json", "not JSON"),
        ("{\"n\": 1}", "there is no \"eventType\""),
        ("{\"eventType\": \"a b\"}", "cannot be an event type"),
        (
            "{\"eventType\": \"a\", \"files\": [\"../../etc/passwd\"]}",
            "is not a path below out/data",
        ),
        ("{\"eventType\": \"a\", \"files\": [\"/etc/passwd\"]}", "is not a path below out/data"),
        ("42", "the file was"),
    ];
    for (content, reason) in cases {
        let reason = if content == "42" { "a JSON array" } else { reason };
        rejects(
            &format!(
                "/bin/echo '{content}' > /ion/out/events/a.json && exit 9; cat /ion/events/rejected/a.json >&2; true"
            ),
            &[],
            reason,
        );
    }
}

#[test]
fn a_rejected_event_fails_the_job_though_its_other_events_stand() {
    rejects(
        &format!(
            "echo '{OK}' > /ion/out/events/good.json; echo '{{\"eventType\"' > /ion/out/events/bad.json"
        ),
        &["a"],
        "bad.json",
    );
}

#[test]
fn a_rejection_is_taken_back_by_a_good_second_try() {
    commits(
        &format!(
            "cd /ion/out/events; echo '[]' > a.json; test -e /ion/events/rejected/a.json; echo '{OK}' > a.json; test ! -e /ion/events/rejected/a.json"
        ),
        &["a"],
    );
}

#[test]
fn a_named_file_that_is_open_is_refused_with_ebusy() {
    rejects(
        "exec 4> /ion/out/data/f; echo x >&4; python3 -c '\nimport errno\nf=open(\"/ion/out/events/a.json\",\"w\"); f.write(\"{\\\"eventType\\\":\\\"a\\\",\\\"files\\\":[\\\"f\\\"]}\")\ntry:\n  f.close(); raise SystemExit(9)\nexcept OSError as e:\n  assert e.errno == errno.EBUSY, e\n'",
        &[],
        "EBUSY: file \"f\" is still open for writing",
    );
}

#[test]
fn a_file_closed_just_before_its_event_is_not_busy() {
    commits(
        "cd /ion/out; for i in 1 2 3 4 5 6 7 8 9; do echo $i > data/$i; echo \"{\\\"eventType\\\":\\\"a\\\",\\\"files\\\":[\\\"$i\\\"]}\" > events/$i.json; done",
        &["a"; 9],
    );
}

#[test]
fn a_committed_event_cannot_be_changed() {
    let script = format!(
        "cd /ion/out/events; echo '{OK}' > a.json; \
         for try in 'echo x > a.json' 'echo x >> a.json' 'rm -f a.json' 'mv a.json b.json' 'truncate -s 0 a.json' 'ln a.json c.json'; do \
           (eval \"$try\") 2>/tmp/why$$ && {{ echo \"$try worked\"; exit 9; }}; grep -q 'Read-only file system' /tmp/why$$ || {{ cat /tmp/why$$; exit 8; }}; \
         done; rm /tmp/why$$; grep -q eventType a.json"
    );
    commits(&script, &["a"]);
}

#[test]
fn renaming_over_a_committed_event_is_the_same_event_or_eexist() {
    let script = format!(
        "cd /ion/out/events; echo '{OK}' > a.json; echo '{OK}' > same.tmp; mv same.tmp a.json 2>/dev/null; \
         echo '{{\"eventType\": \"other\"}}' > other.tmp; mv other.tmp a.json && exit 9; true"
    );
    rejects(&script, &["a"], "EEXIST: this event was committed before with other content");
}

#[test]
fn fsync_commits_and_returns_the_outcome() {
    let script = r#"python3 - <<'E'
import errno, os
fd = os.open("/ion/out/events/a.json", os.O_CREAT | os.O_WRONLY)
os.write(fd, b'{"eventType": "a"}')
os.fsync(fd)
assert os.path.exists("/ion/events/published/a.json")
try:
    os.write(fd, b" ")
    raise SystemExit("a committed event was written")
except OSError as e:
    assert e.errno == errno.EROFS, e
os.close(fd)
E"#;
    commits(script, &["a"]);
}

#[test]
fn insights_are_kept_and_not_passed_on() {
    let home = Home::new();
    home.script("echo '{\"count\": 3}' > /ion/out/insights.json; echo '[{\"key\":\"count\",\"value\":\"4\"}]' > /ion/out/insights.json").well();
    let insight =
        home.trace().into_iter().find(|d| d["context"]["documentType"] == "insight").unwrap();
    assert_eq!(insight["data"], serde_json::json!([{"key": "count", "value": "4"}]));
    let broken = home.script("echo '{\"count\":' > /ion/out/insights.json").failed();
    assert!(broken.stderr.contains("insights.json"), "{broken:#?}");
}

#[test]
fn a_mistake_beside_the_three_places_of_out_is_refused() {
    Home::new().script("echo x > /ion/out/result.txt && exit 9; mkdir /ion/out/events/d && exit 9; echo x > /ion/in/data/f && exit 9; true").well();
}
