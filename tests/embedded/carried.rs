//! Tests of what modules pass on to each other in files, as docs/files.md describes it: names,
//! times, modes, links, folders and SQLite databases. Further tests show what a job learns of a
//! read that failed, and which event files are refused.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::mount::{Blobs, Mount, Passthrough};
use crate::support::{CommandOutput, Home, wait_for};
use ionfs::fs::job::TreeUsers;
use serde_json::{Value, json};

/// The page of the manual that these tests follow.
const MANUAL: &str = include_str!("../../docs/files.md");

/// Runs a script in a plain folder, and returns its output.
#[track_caller]
fn plainly(folder: &Path, script: &str) -> String {
    let ran = CommandOutput::of(
        Command::new("bash").args(["-ec", script]).current_dir(folder).output().unwrap(),
    )
    .well();
    ran.stdout
}

/// Runs a script in `in/data` of a job whose event has these files, and returns its output.
#[track_caller]
fn in_a_job(home: &Home, files: &[&str], script: &str) -> String {
    let mut words = vec!["run"];
    for file in files {
        words.extend(["--file", file]);
    }
    let script = format!("cd /ion/in/data; {script}");
    words.extend(["--", "bash", "-ec", &script]);
    let said = home.run(words).well();
    let lines = said.stderr.lines().filter_map(|line| line.strip_prefix("ion: run | "));
    lines.map(|line| format!("{line}\n")).collect()
}

/// Returns all files below a folder.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(walk(&path)) } else { files.push(path) }
    }
    files
}

fn job_of<'j>(jobs: &'j [Value], event_type: &str) -> &'j Value {
    jobs.iter().find(|job| job["eventType"] == event_type).unwrap()
}

// ---- reads that fail ----

/// Makes a stored blob missing, damaged or unavailable, as stores and disks do.
fn spoil(blob: &Path, how: &str) {
    match how {
        "missing" => fs::remove_file(blob).unwrap(),
        "damaged" => {
            let mut content = fs::read(blob).unwrap();
            content[1] ^= 1;
            fs::write(blob, content).unwrap();
        }
        // The folder of the blob becomes a file, so the store fails and does not say that the blob
        // is missing.
        "store-unavailable" => {
            let folder = blob.parent().unwrap();
            fs::remove_dir_all(folder).unwrap();
            fs::write(folder, "").unwrap();
        }
        other => panic!("no blob can be made {other}"),
    }
}

#[test]
fn a_job_one_of_whose_reads_failed_fails_with_file_blob_and_cause_whatever_its_exit_status() {
    let home = Home::new();
    // The module ignores in each case that a read failed, and exits with 0.
    home.program(
        "module",
        "#!/bin/sh
cd /ion/in/data
case $(cat /ion/in/meta/how) in
  read) cat f | wc -c > /ion/out/data/n;;
  copy) cp f /ion/out/data/n; printf x | dd of=/ion/out/data/n conv=notrunc bs=1 seek=7; rm /ion/out/data/n; echo 1 > /ion/out/data/n;;
  unread) cp f /ion/out/data/copy; echo 1 > /ion/out/data/n;;
esac
cat /ion/events/failed-reads/* > $OUT/$(cat /ion/in/meta/name)
echo '{\"eventType\": \"counted\", \"files\": [\"n\"]}' > /ion/out/events/e
exit 0
",
    );
    let out = home.path().join("out");
    fs::create_dir(&out).unwrap();
    let cases = [
        ("missing", "read", "in/data/f"),
        ("damaged", "read", "in/data/f"),
        ("store-unavailable", "read", "in/data/f"),
        ("missing", "copy", "out/data/n"),
        ("missing", "unread", ""),
        ("missing", "link", "in/data/f"),
    ];
    let mut pipeline = "modules:\n".to_owned();
    for (cause, how, _) in cases.iter().filter(|(_, how, _)| *how != "link") {
        pipeline += &format!(
            "  m-{cause}-{how}: {{on: [{cause}-{how}], emits: [counted], retries: 0, run: [./module], env: {{OUT: {}}}}}\n",
            out.display()
        );
    }
    pipeline +=
        "  link: {on: [missing-link], emits: [linked], retries: 0, run: [cat], stdio: true}\n";
    let pipeline = home.write("pipeline.yaml", pipeline);
    home.write("f", vec![b'x'; 100_000]);
    // This registers the modules, so that events wait for them in their queues.
    assert_eq!(home.up(&pipeline).stop(), Some(0));
    for (cause, how, _) in cases {
        let (name, id) = (format!("{cause}-{how}"), format!("id-{cause}-{how}"));
        let (how, case) = (format!("how={how}"), format!("name={name}"));
        home.run([
            "event", "create", &name, "--id", &id, "--file", "f", "--data", &how, "--data", &case,
        ])
        .well();
        let blobs = walk(&home.state().join("blobs"));
        spoil(blobs.iter().find(|blob| blob.to_string_lossy().contains(&id)).unwrap(), cause);
    }
    let up = home.up(&pipeline);
    wait_for("all jobs to end", || {
        let jobs = home.jobs();
        jobs.len() == cases.len()
            && jobs
                .iter()
                .all(|job| ["dead", "succeeded"].contains(&job["state"].as_str().unwrap()))
    });
    let jobs = home.jobs();
    for (cause, how, path) in cases {
        let name = format!("{cause}-{how}");
        let job = job_of(&jobs, &name);
        let attempt = &job["attempts"][0];
        if how == "unread" {
            assert_eq!(
                (&job["state"], &attempt["failedReads"]),
                (&json!("succeeded"), &Value::Null),
                "{job}"
            );
            continue;
        }
        assert_eq!(job["state"], "dead", "{job}");
        let read = &attempt["failedReads"]["first"][0];
        assert_eq!((&read["path"], &read["cause"]), (&json!(path), &json!(cause)), "{job}");
        assert!(read["blob"].as_str().unwrap().ends_with("/0/f"), "{job}");
        let reason = attempt["reason"].as_str().unwrap();
        assert!(reason.contains(&format!("a read of {path:?} failed: ")), "{reason}");
        assert!(reason.contains(read["blob"].as_str().unwrap()), "{reason}");
        let trace = home.run(["trace", job["correlationId"].as_str().unwrap()]);
        // `ion trace` cuts a long reason.
        let beginning: String = reason.chars().take(200).collect();
        assert!(trace.stdout.contains(&beginning), "{trace:#?}");
        if how != "link" {
            assert_eq!(attempt["exitCode"], 0, "{job}");
            let seen: Value = serde_json::from_slice(&fs::read(out.join(&name)).unwrap()).unwrap();
            assert_eq!(seen, *read, "the module sees the failed read as the job's record has it");
        }
    }
    assert_eq!(up.stop(), Some(0));
}

/// A long list of files is a blob in the store. If a byte of it changes there, no file may get
/// another name or size.
#[test]
fn a_list_of_files_is_compared_with_its_checksum() {
    use ionfs::stores::StoreError;
    let mount = Mount::new(Passthrough::Allowed, Blobs::Files, &[("f", b"x")]);
    let mut event = mount.committed_input();
    let list = serde_json::to_vec(&event.files).unwrap();
    let entry = mount.runtime.block_on(ionfs::upload::store_bytes(
        &*mount.node.plane.blobs,
        "c/e/list".into(),
        "files.json".into(),
        list.clone().into(),
    ));
    event.file_list = Some(entry.unwrap());
    let files = || mount.runtime.block_on(mount.node.plane.files_of(&event));
    assert_eq!(files().unwrap(), event.files);
    let text = String::from_utf8(list).unwrap().replace("\"size\":1", "\"size\":2");
    fs::write(mount.home.state().join("blobs/c/e/list"), text).unwrap();
    assert!(matches!(files(), Err(StoreError::DamagedBlob(key)) if key == "c/e/list"));
    fs::remove_file(mount.home.state().join("blobs/c/e/list")).unwrap();
    assert!(matches!(files(), Err(StoreError::NoSuchBlob(_))));
}

// ---- event files ----

#[test]
fn a_near_miss_of_a_reserved_word_is_refused_in_both_forms() {
    let home = Home::new();
    for (event, meant) in [
        (r#"{"eventType": "x", "file": ["a"]}"#, "files"),
        (r#"{"eventType": "x", "Files": "a"}"#, "files"),
        (r#"{"eventType": "x", "file": "a"}"#, "files"),
        (r#"[{"key": "eventType", "value": "x"}, {"key": "FILES", "value": "a"}]"#, "files"),
        (r#"[{"key": "event_type", "value": "x"}, {"key": "files", "value": "a"}]"#, "eventType"),
    ] {
        let script = format!(
            "echo a > /ion/out/data/a; /bin/echo '{event}' > /ion/out/events/e && exit 9; exit 0"
        );
        let ran = home.script(&script).failed();
        assert!(
            ran.stderr.contains(&format!("EINVAL: did you mean \"{meant}\"?")),
            "{event}: {ran:#?}"
        );
    }
    for honest in [
        r#"{"eventType": "x", "file": "another"}"#,
        r#"{"eventType": "x", "file": "a", "files": ["a"]}"#,
        r#"{"eventType": "x", "Files": 12, "event_type": "click"}"#,
    ] {
        let ran = home
            .script(&format!("echo a > /ion/out/data/a; echo '{honest}' > /ion/out/events/e"))
            .well();
        assert_eq!(ran.types(), ["x"], "{honest}");
    }
    // Insights may have any keys.
    home.script(r#"echo '{"Files": ["a"]}' > /ion/out/insights.json"#).well();
}

/// Programs write a file under a temporary name and then rename it, so that others see all of it or
/// nothing. The names are those of Python's `tempfile`, and names that end in a process id.
#[test]
fn a_file_under_a_temporary_name_is_an_event_only_when_it_is_renamed() {
    let home = Home::new();
    let python = "
import json, os, tempfile
for n in range(20):
    with tempfile.NamedTemporaryFile('w', dir='/ion/out/events', delete=False) as f:
        json.dump({'eventType': 'made', 'n': n}, f)
        f.flush(); os.fsync(f.fileno())
    os.replace(f.name, f'/ion/out/events/{n}.json')
    name = f'/ion/out/events/by-pid-{n}.json'
    with open(f'{name}.{os.getpid()}', 'w') as f: json.dump({'eventType': 'made', 'n': n}, f)
    os.rename(f.name, name)
with tempfile.NamedTemporaryFile('w', dir='/ion/out', delete=False) as f: json.dump({'kept': '1'}, f)
os.replace(f.name, '/ion/out/insights.json')
with open('/ion/out/events/half.json.1', 'w') as f: f.write('{')
";
    let ran = home.run(["--json", "run", "--", "python3", "-c", python]).well();
    assert_eq!(ran.types(), vec!["made"; 40]);
    let mut names: Vec<Value> =
        ran.documents().iter().map(|event| event["fileName"].clone()).collect();
    names.sort_by_key(ToString::to_string);
    assert!(names.iter().all(|name| name.as_str().unwrap().ends_with(".json")), "{names:?}");
    // A whole event that is never renamed is refused, and not left out in silence.
    for name in ["tmpa1b2c3d4", "frame.0001"] {
        let ran = home
            .script(&format!("echo '{{\"eventType\": \"x\"}}' > /ion/out/events/{name}"))
            .failed();
        assert!(ran.stderr.contains("a whole event under the name of a draft"), "{ran:#?}");
    }
}

// ---- times, modes, links ----

#[test]
fn times_arrive_to_the_nanosecond_also_before_1970() {
    let home = Home::new();
    let make = "touch -d '1969-12-31 23:59:58.5' a; touch -d '1901-12-14 01:02:03.000000001' b
touch -d '1970-01-01 00:00:00' c; touch -d '1969-12-31 23:59:59.999999999' d
touch -d '2023-04-05 06:07:08.123456789' e; touch -d '1969-12-31 23:59:58' f";
    let show = "for n in a b c d e f; do TZ=UTC stat -c '%n %y' $n; done";
    let plain = home.path().join("plain");
    fs::create_dir(&plain).unwrap();
    let expected = plainly(&plain, &format!("export TZ=UTC; {make}; {show}"));
    assert!(expected.contains("a 1969-12-31 23:59:58.500000000"), "{expected}");
    home.program(
        "make",
        &format!(
            "#!/bin/bash -e
export TZ=UTC; cd /ion/out/data; {make}; {show} > $OUT/made
for n in a b c d e f; do [ $n = a ] || echo $n > $n.bytes; done
echo '{{\"eventType\": \"made\", \"files\": [\"a\", \"b\", \"c\", \"d\", \"e\", \"f\"]}}' > /ion/out/events/e
"
        ),
    );
    home.program(
        "see",
        &format!(
            "#!/bin/bash -e
cd /ion/in/data; {show} > $OUT/seen
cp -p * /ion/out/data/; cd /ion/out/data; {show} > $OUT/copied
mkdir l; ln /ion/in/data/* l/; cd l; {show} > $OUT/linked
"
        ),
    );
    let out = home.path().join("out");
    fs::create_dir(&out).unwrap();
    let env = format!("env: {{OUT: {}}}", out.display());
    let pipeline = format!(
        "modules:\n  make: {{on: [go], emits: [made], retries: 0, run: [./make], {env}}}\n  see: {{on: [made], retries: 0, run: [./see], {env}}}\n"
    );
    let up = home.up(&home.write("pipeline.yaml", pipeline));
    home.run(["event", "create", "go", "--wait"]).well();
    for name in ["made", "seen", "copied", "linked"] {
        assert_eq!(fs::read_to_string(out.join(name)).unwrap(), expected, "{name}");
    }
    let trace = home.run(["--json", "event", "get", made(&home).as_str()]).well();
    let event: Value = serde_json::from_str(&trace.stdout).unwrap();
    let of =
        |n: usize| (event["files"][n]["mtime"].clone(), event["files"][n]["mtimeNanos"].clone());
    assert_eq!(of(0), (json!(-1500), Value::Null), "older Ion reads this time, in milliseconds");
    assert_eq!(of(3), (json!(-1), json!(999_999)));
    assert_eq!(of(4), (json!(1_680_674_828_123_i64), json!(456_789)));
    assert_eq!(up.stop(), Some(0));
}

/// Returns the id of the event of type `made` in the latest correlation.
fn made(home: &Home) -> String {
    let ran = home.run(["--json", "trace"]).well();
    let trace = Value::from(ran.documents());
    fn find(value: &Value) -> Option<String> {
        match value {
            Value::Object(fields) if fields.get("type") == Some(&json!("made")) => {
                fields.get("id").and_then(|id| id.as_str()).map(str::to_owned)
            }
            Value::Object(fields) => fields.values().find_map(find),
            Value::Array(values) => values.iter().find_map(find),
            _ => None,
        }
    }
    find(&trace).unwrap_or_else(|| panic!("{trace}"))
}

#[test]
fn a_key_that_its_owner_alone_may_read_stays_one() {
    let home = Home::new();
    plainly(
        home.path(),
        "ssh-keygen -q -t ed25519 -N '' -f key; echo x > all; chmod 666 all; echo x > run; chmod 751 run",
    );
    let script =
        "stat -c '%n %a' all key run; ssh-keygen -y -f key; cp key /ion/out/data/c; ln key /ion/out/data/l
cd /ion/out/data; stat -c '%n %a' c l; ssh-keygen -y -f l";
    let said = in_a_job(&home, &["key", "all", "run"], script);
    let public = plainly(home.path(), "ssh-keygen -y -f key");
    assert_eq!(said, format!("all 666\nkey 600\nrun 751\n{public}c 600\nl 600\n{public}"));
}

/// Ion does not know which user a module runs as in a container or a pod. So everybody may read
/// such a tree.
#[test]
fn a_tree_for_any_user_lets_everybody_read() {
    if !crate::support::may_mount_or_runs_where_it_may("a_tree_for_any_user_lets_everybody_read") {
        return;
    }
    let home = Home::new();
    let path = home.write("key", "x");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let runtime = crate::support::mount::runtime();
    let urls = ionfs::stores::open::StoreUrls::embedded(&home.state());
    let plane = runtime.block_on(ionfs::stores::open::open(&urls)).unwrap();
    let entry = runtime.block_on(crate::support::mount::stored(&plane, "key", &path));
    let owner = Mount::over(runtime, home, plane, Passthrough::Allowed, vec![entry]);
    let anybody = owner.another_for(TreeUsers::AnyUser);
    let mode = |mount: &Mount| {
        fs::metadata(mount.at("in/data/key")).unwrap().permissions().mode() & 0o7777
    };
    assert_eq!((mode(&owner), mode(&anybody)), (0o600, 0o666));
}

#[test]
fn folders_have_as_many_links_as_on_a_plain_disk() {
    let home = Home::new();
    let tree = "mkdir -p t/a/b t/a/c t/d; echo x > t/a/b/f; echo x > t/a/c/f; echo x > t/d/f; echo x > t/g";
    plainly(home.path(), tree);
    let look = "find . -type d -links 2 | sort; stat -c '%n %h' . a a/b a/c d
perl -MFile::Find -e '$File::Find::dont_use_nlink = 0; find(sub { push @f, $File::Find::name if -f }, q(.)); print join(qq(\\n), sort @f), qq(\\n)'";
    let plain = plainly(&home.path().join("t"), look);
    assert!(plain.contains("a 4\n") && plain.contains("./a/c/f\n"), "{plain}");
    assert_eq!(in_a_job(&home, &["t"], look), plain);
    // A folder that is moved away does not count any more. Below `lineage`, a link count of one
    // says that the number of folders is unknown, and programs find all files there.
    let more = "mv a/c /ion/out/data/c; stat -c '%n %h' a
cd /ion/events/lineage/; stat -c %h .; cd *; stat -c %h .
perl -MFile::Find -e '$File::Find::dont_use_nlink = 0; find(sub { $n++ if -f }, q(.)); print qq($n\\n)'; find -type f | wc -l";
    assert_eq!(in_a_job(&home, &["t"], more), "a 3\n3\n1\n6\n6\n");
}

// ---- names and folders ----

#[test]
fn a_name_that_is_no_utf8_is_refused_by_name_and_any_other_may_be_given() {
    use std::ffi::{OsStr, OsString};
    let home = Home::new();
    let latin1 = OsStr::from_bytes(b"caf\xe9");
    let folder = home.path().join("z");
    fs::create_dir_all(folder.join("deep")).unwrap();
    fs::write(folder.join("deep").join(latin1), "x\n").unwrap();
    let words = |file: OsString| {
        let words = ["run", "--file"].map(OsString::from).into_iter().chain([file]);
        words
            .chain(["--", "sh", "-c", "ls /ion/in/data; cat /ion/in/data/*"].map(OsString::from))
            .collect::<Vec<_>>()
    };
    let joined = |parts: &[&OsStr]| parts.iter().copied().collect::<OsString>();
    let in_folder = joined(&[OsStr::new("z/deep/"), latin1]);
    for file in [OsString::from("z"), in_folder.clone(), joined(&[OsStr::new("z/deep="), latin1])] {
        let ran = home.run(words(file)).failed();
        assert!(ran.stderr.contains("\"caf\\xE9\" is not UTF-8"), "{ran:#?}");
    }
    let ran = home.run(words(joined(&[&in_folder, OsStr::new("=coffee")]))).well();
    assert!(ran.stderr.contains("run | coffee\nion: run | x\n"), "{ran:#?}");
    // In a job, such a name is refused below a folder that an event names.
    let ran = home.script("mkdir /ion/out/data/d; echo x > \"/ion/out/data/d/$(printf 'caf\\351')\"; echo '{\"eventType\": \"x\", \"files\": [\"d/\"]}' > /ion/out/events/e");
    assert!(ran.failed().stderr.contains("\"d/caf\\xE9\" is not UTF-8"));
}

#[test]
fn a_bare_git_repository_that_an_event_names_arrives_whole() {
    let home = Home::new();
    home.program(
        "make",
        "#!/bin/bash -e
export HOME=/tmp GIT_CONFIG_GLOBAL=/dev/null; cd /ion/out/data
git init -q --bare -b main repo.git
git init -q -b main /tmp/work; cd /tmp/work; echo hello > f; git add f
git -c user.name=n -c user.email=e commit -q -m first
git push -q /ion/out/data/repo.git main; rm -rf /tmp/work
cd /ion/out/data; mkdir -p repo.git/empty/inner; find repo.git | sort > $OUT/made
echo '{\"eventType\": \"made\", \"files\": [\"repo.git/\"]}' > /ion/out/events/e
",
    );
    home.program(
        "see",
        "#!/bin/bash -e
export HOME=/tmp GIT_CONFIG_GLOBAL=/dev/null; cd /ion/in/data; find repo.git | sort > $OUT/seen
git --git-dir=repo.git log --format=%s > $OUT/log
git clone -q repo.git /ion/out/data/clone; cat /ion/out/data/clone/f >> $OUT/log
cp -a repo.git /ion/out/data/again.git
echo '{\"eventType\": \"again\", \"files\": [\"again.git/\", \"clone/f\"]}' > /ion/out/events/e
",
    );
    home.program(
        "all",
        "#!/bin/bash -e
cd /ion/in/data/0; find again.git | sed s/again/repo/ | sort > $OUT/gathered
",
    );
    let out = home.path().join("out");
    fs::create_dir(&out).unwrap();
    let more = format!("retries: 0, env: {{OUT: {}}}", out.display());
    let pipeline = format!(
        "modules:\n  make: {{on: [go], emits: [made], run: [./make], {more}}}\n  see: {{on: [made], emits: [again], run: [./see], {more}}}\n  all: {{gather: again, per: go, run: [./all], {more}}}\n"
    );
    let up = home.up(&home.write("pipeline.yaml", pipeline));
    home.run(["event", "create", "go", "--wait"]).well();
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
    assert!(
        read("made").contains("repo.git/refs/tags\n")
            && read("made").contains("repo.git/empty/inner\n")
    );
    assert_eq!((read("seen"), read("gathered")), (read("made"), read("made")));
    assert_eq!(read("log"), "first\nhello\n");
    home.run(["check", "--deep"]).well();
    assert_eq!(up.stop(), Some(0));
    // `--file` takes a folder, too; the folder's own name is not part of the paths.
    plainly(home.path(), "git init -q --bare -b main plain.git; mkdir -p empty/inner");
    let expected = plainly(&home.path().join("plain.git"), "find . | sort");
    assert_eq!(
        in_a_job(&home, &["plain.git"], "find . | sort; git -c safe.directory='*' rev-list --all"),
        expected
    );
    assert_eq!(in_a_job(&home, &["empty=e"], "find . | sort"), ".\n./e\n./e/inner\n");
    // An event must name a folder with a slash at the end.
    let named = "mkdir /ion/out/data/d; echo x > /ion/out/data/d/f; echo '{\"eventType\": \"x\", \"files\": [\"d\"]}' > /ion/out/events/e";
    assert!(
        home.script(named).failed().stderr.contains("name its files, or \"d/\" for all of them")
    );
    let many = "mkdir /ion/out/data/d; cd /ion/out/data/d; mkdir $(seq 1001); echo '{\"eventType\": \"x\", \"files\": [\"d/\"]}' > /ion/out/events/e";
    assert!(
        home.script(many)
            .failed()
            .stderr
            .contains("E2BIG: an event may name 1000 empty directories")
    );
}

// ---- SQLite ----

#[test]
fn an_sqlite_database_is_handed_on_as_the_manual_says() {
    let home = Home::new();
    let open = "sqlite3.connect(\"file:/ion/in/data/x.db?immutable=1\", uri=True)";
    let shell = "sqlite3 'file:/ion/in/data/x.db?immutable=1' 'select count(*) from t'";
    let (checkpoint, delete) = ("PRAGMA wal_checkpoint(TRUNCATE);", "PRAGMA journal_mode=DELETE;");
    let copy = "cp /ion/in/data/x.db /ion/in/data/x.db-wal /ion/out/data/";
    for said in [open, shell, checkpoint, delete, copy] {
        assert!(MANUAL.contains(said), "the manual does not say {said}");
    }
    let make = |name: &str, end: &str| {
        let program = format!(
            "
import sqlite3, os
c = sqlite3.connect('{name}', isolation_level=None)
c.execute('PRAGMA journal_mode=WAL')
c.execute('PRAGMA wal_autocheckpoint=0')
c.execute('create table t (n)')
for n in range(100): c.execute('insert into t values (?)', (n,))
{end}
os._exit(0)
"
        );
        let ran = Command::new("python3")
            .args(["-c", &program])
            .current_dir(home.path())
            .output()
            .unwrap();
        CommandOutput::of(ran).well();
    };
    let count = |open: &str| {
        format!(
            "python3 -c 'import sqlite3; print(\"rows\", {open}.execute(\"select count(*) from t\").fetchone()[0])'"
        )
    };
    let plain = "sqlite3.connect(\"/ion/in/data/x.db\")";
    // All rows are in the one file. It is still in WAL mode, so it cannot be opened as usual.
    make("wal.db", "c.execute('PRAGMA wal_checkpoint(TRUNCATE)')");
    let refused = in_a_job(&home, &["wal.db=x.db"], &format!("{} 2>&1 || true", count(plain)));
    assert!(
        refused.contains("unable to open database file") || refused.contains("readonly"),
        "{refused}"
    );
    assert_eq!(in_a_job(&home, &["wal.db=x.db"], &count(open)), "rows 100\n");
    assert_eq!(in_a_job(&home, &["wal.db=x.db"], shell), "100\n");
    // This database is closed as the manual says.
    make("done.db", &format!("c.execute('{checkpoint}')\nc.execute('{delete}')"));
    assert_eq!(in_a_job(&home, &["done.db=x.db"], &count(plain)), "rows 100\n");
    // The journal of this database holds all rows.
    make("open.db", "");
    assert!(fs::metadata(home.path().join("open.db-wal")).unwrap().len() > 0);
    let files = ["open.db=x.db", "open.db-wal=x.db-wal"];
    let copied = format!("{copy}; {}", count("sqlite3.connect(\"/ion/out/data/x.db\")"));
    assert_eq!(in_a_job(&home, &files, &copied), "rows 100\n");
}
