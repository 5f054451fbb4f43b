//! Shows that modules of older Ion run as they were written: between the handler's `prepare` and
//! `commit`, with the localhost API, and on the mount. The tests use the embedded stores; one test
//! uses RabbitMQ, a MongoDB-compatible store and S3.

mod api;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::servers::{Azure, Mongo, Rabbit, S3, plane};
use crate::support::{CommandOutput, Home, wait_for};
use serde_json::{Value, json};

const HANDLER: &str = env!("CARGO_BIN_EXE_ion-handler");

/// A module of older Ion's third generation. It also reports its progress to the localhost API of
/// the second generation, where there is one.
const PYTHON: &str = r#"#!/usr/bin/env python3
import json, os, urllib.request

base = os.environ.get("HANDLER_BASE_DIR", "/ion")

def tell(word):
    if "SIDECAR_PORT" in os.environ:
        url = "http://127.0.0.1:%s/%s" % (os.environ["SIDECAR_PORT"], word)
        request = urllib.request.Request(url, headers={"secret": os.environ["SHARED_SECRET"]})
        assert urllib.request.urlopen(request).status == 200

def write(path, value):
    with open(os.path.join(base, path), "w") as out:
        out.write(value if isinstance(value, str) else json.dumps(value))

tell("ready")
with open(base + "/in/eventmeta.json") as f:
    meta = {pair["key"]: pair["value"] for pair in json.load(f)}
text = open(base + "/in/data/in.txt").read() + open(base + "/in/data/deep/er.txt").read()
os.makedirs(base + "/out/data/sub", exist_ok=True)
write("out/data/sub/upper.txt", text.upper())
write("out/data/count.txt", "%d\n" % len(text))
write("out/events/event0.json", [
    {"key": "eventType", "value": "counted"}, {"key": "files", "value": "sub/upper.txt,,count.txt"},
    {"key": "note", "value": meta["note"]}, {"key": "from", "value": meta["deep/er.txt"]}])
write("out/events/event1.json", [{"key": "eventType", "value": "noted"}, {"key": "files", "value": ""}])
write("out/insights.json", [{"key": "length", "value": str(len(text))}])
tell("done")
"#;

/// The same module in shell.
const SHELL: &str = r#"#!/bin/bash
set -e
base=${HANDLER_BASE_DIR:-/ion}
tell() {
    test -n "$HANDLER_PORT" || return 0
    exec 3<>/dev/tcp/127.0.0.1/$HANDLER_PORT
    printf 'GET /%s HTTP/1.1\r\nHost: localhost\r\nsecret: %s\r\nConnection: close\r\n\r\n' $1 $SHARED_SECRET >&3
    grep -q '^HTTP/1.1 200' <&3
}
value() { python3 -c 'import json, sys; print(dict((p["key"], p["value"]) for p in json.load(open(sys.argv[1])))[sys.argv[2]])' $base/in/eventmeta.json "$1"; }
tell ready
mkdir -p $base/out/data/sub
cat $base/in/data/in.txt $base/in/data/deep/er.txt | tr a-z A-Z > $base/out/data/sub/upper.txt
stat -c %s $base/out/data/sub/upper.txt > $base/out/data/count.txt
cat > $base/out/events/event0.json <<END
[{"key": "eventType", "value": "counted"}, {"key": "files", "value": "sub/upper.txt,,count.txt"},
 {"key": "note", "value": "$(value note)"}, {"key": "from", "value": "$(value deep/er.txt)"}]
END
echo '[{"key": "eventType", "value": "noted"}, {"key": "files", "value": ""}]' > $base/out/events/event1.json
echo '[{"key": "length", "value": "'$(cat $base/out/data/count.txt)'"}]' > $base/out/insights.json
tell done
"#;

/// A home with the folder `ion/`, which the handler fills.
struct Older {
    home: Home,
}

impl Older {
    /// Creates a home with one event `start` of two files and a value.
    fn new() -> Self {
        let older = Self { home: Home::new() };
        older.home.write("in.txt", "one\n");
        older.home.write("er.txt", "two words\n");
        older.start();
        older
    }

    fn start(&self) {
        let words = "event create start --id e --correlation c --data note=kept --file in.txt --file er.txt=deep/er.txt";
        self.home.run(words.split(' ')).well();
    }

    fn base(&self) -> PathBuf {
        self.home.path().join("ion")
    }

    fn handler(&self) -> Command {
        let mut command = Command::new(HANDLER);
        command.env("ION_HOME", self.home.state()).env("HANDLER_BASE_DIR", self.base());
        command
            .envs(self.home.env.iter().cloned())
            .current_dir(self.home.path())
            .stdin(Stdio::null());
        command
    }

    fn act(&self, action: &str) -> CommandOutput {
        let mut command = self.handler();
        command.args([
            "start",
            &format!("--action={action}"),
            "--context.name=m",
            "--context.eventid=e",
        ]);
        command.args(["--context.correlationid=c", "--valideventtypes=counted,noted"]);
        CommandOutput::of(command.output().unwrap())
    }

    /// Runs a program as the older dispatcher's container did: on the folder, with the same
    /// environment variables.
    fn module(&self, program: &Path) {
        let mut command = Command::new(program);
        command
            .env_remove("SIDECAR_PORT")
            .env_remove("HANDLER_PORT")
            .env("HANDLER_BASE_DIR", self.base());
        CommandOutput::of(command.output().unwrap()).well();
    }

    fn script(&self, script: &str) {
        let ran =
            Command::new("sh").args(["-c", script]).current_dir(self.base()).output().unwrap();
        CommandOutput::of(ran).well();
    }

    fn script_in_home(&self, script: &str) {
        let ran =
            Command::new("sh").args(["-c", script]).current_dir(self.home.path()).output().unwrap();
        CommandOutput::of(ran).well();
    }

    /// Returns what the jobs of the correlation made: events and insights, without the fields that
    /// differ from run to run.
    fn made(&self) -> Vec<Value> {
        made(&self.home, "c")
    }
}

fn made(home: &Home, correlation: &str) -> Vec<Value> {
    let documents = home.run(["--json", "trace", correlation]).documents();
    let kind = |document: &Value| document["context"]["documentType"].as_str().map(str::to_owned);
    let of_job = |document: &Value| {
        matches!(kind(document).as_deref(), Some("eventMeta" | "insight"))
            && document["jobId"].is_string()
    };
    let mut made: Vec<Value> = documents.into_iter().filter(of_job).collect();
    for document in &mut made {
        // `registry` is the version of the registry. It differs, because a plane may have
        // registered its modules before or after its first event.
        document
            .as_object_mut()
            .unwrap()
            .retain(|field, _| !["created", "registry"].contains(&field.as_str()));
        for file in document.get_mut("files").and_then(Value::as_array_mut).into_iter().flatten() {
            file.as_object_mut()
                .unwrap()
                .retain(|field, _| !["key", "mtime", "mtimeNanos"].contains(&field.as_str()));
        }
    }
    made.sort_by_key(|document| document["id"].as_str().unwrap().to_owned());
    made
}

fn insight(home: &Home) -> Value {
    made(home, "c")
        .into_iter()
        .find(|document| document["context"]["documentType"] == "insight")
        .unwrap()
}

/// Runs a module on the event with `ion up`. Returns what it made.
fn on_up(program: &str, keys: &str) -> Vec<Value> {
    let older = Older { home: Home::new() };
    older.home.write("in.txt", "one\n");
    older.home.write("er.txt", "two words\n");
    older.home.program("module", program);
    let file = older.home.write(
        "pipeline.yaml",
        format!(
            "modules:\n  m: {{on: [start], emits: [counted, noted], run: [./module], retries: 0, {keys}}}\n"
        ),
    );
    let up = older.home.up(&file);
    older.start();
    wait_for("the job to end", || ended(&older.home));
    assert_eq!(up.stop(), Some(0));
    older.made()
}

fn ended(home: &Home) -> bool {
    let jobs = home.jobs();
    assert!(jobs.iter().all(|job| job["state"] != "dead"), "{jobs:#?}");
    !jobs.is_empty() && jobs.iter().all(|job| job["state"] == "succeeded" && job["outbox"] == false)
}

#[test]
fn an_older_module_makes_the_same_documents_by_commit_by_the_localhost_api_and_on_the_mount() {
    let mut of_both = Vec::new();
    for program in [PYTHON, SHELL] {
        let older = Older::new();
        older.act("prepare").well();
        older.module(&older.home.program("module", program));
        let committed = older.act("commit").well();
        assert_eq!(committed.stdout.lines().count(), 2, "{committed:#?}");
        older.home.run(["check", "--deep"]).well();
        let by_commit = older.made();
        assert_eq!(
            by_commit.len(),
            3,
            "the module makes two events and an insight: {by_commit:#?}"
        );
        assert_eq!(
            on_up(program, "urls: ion"),
            by_commit,
            "the module makes the same on the mount"
        );
        assert_eq!(
            on_up(program, "urls: ion, commit: on-success"),
            by_commit,
            "the module makes the same on the mount with on-success"
        );
        assert_eq!(
            on_up(program, "api: sidecar"),
            by_commit,
            "the module makes the same with the localhost API"
        );
        assert_eq!(
            on_up(program, "api: sidecar, commit: on-close"),
            by_commit,
            "the module makes the same with the localhost API and on-close"
        );
        of_both.push(by_commit);
    }
    assert_eq!(of_both[0], of_both[1], "the modules in Python and in shell make the same");
    let event = of_both[0].iter().find(|document| document["type"] == "counted").unwrap();
    assert_eq!(event["context"]["parentEventId"], "e");
    assert_eq!(event["context"]["correlationId"], "c");
    assert_eq!(event["context"]["name"], "m");
    assert_eq!(event["files"][0]["name"], "sub/upper.txt");
    assert_eq!(event["data"][1], json!({"key": "from", "value": "ion://e/deep/er.txt"}));
}

#[test]
fn a_commit_that_is_repeated_makes_nothing_new() {
    let older = Older::new();
    let module = older.home.program("module", PYTHON);
    older.act("prepare").well();
    older.module(&module);
    let first = older.act("commit").well();
    let made = older.made();
    assert_eq!(older.act("commit").well().stdout, first.stdout);
    // All three containers run once more, as in a cluster that has lost the first answer.
    older.act("prepare").well();
    older.module(&module);
    assert_eq!(older.act("commit").well().stdout, first.stdout);
    assert_eq!(older.made(), made);
    let jobs = older.home.jobs();
    assert_eq!(
        (jobs.len(), &jobs[0]["state"], &jobs[0]["attempt"]),
        (1, &json!("succeeded"), &json!(1))
    );
    older.script("echo other > out/data/count.txt");
    let differs = older.act("commit").failed();
    assert!(differs.stderr.contains("\"event0.json\" was rejected: EEXIST"), "{differs:#?}");
    older.module(&module);
    older.script("cp out/events/event1.json out/events/event2.json");
    let more = older.act("commit").failed();
    assert!(
        more.stderr
            .contains("\"event2.json\" was rejected: EINVAL: the job has succeeded without it"),
        "{more:#?}"
    );
    assert_eq!(older.made(), made);
}

#[test]
fn on_mongodb_rabbitmq_and_s3_the_documents_are_the_same() {
    let module = |older: &Older| {
        older.act("prepare").well();
        older.module(&older.home.program("module", PYTHON));
        let first = older.act("commit").well();
        assert_eq!(older.act("commit").well().stdout, first.stdout);
        older.home.run(["check", "--deep"]).well();
        older.made()
    };
    let (rabbit, mongo, s3) = (Rabbit::start(), Mongo::start(), S3::start());
    let mut servers = Older { home: Home::new() };
    servers.home.env =
        plane(&mongo.database("older"), &rabbit.url, &format!("{}/older", s3.url), &s3.env);
    servers.home.write("in.txt", "one\n");
    servers.home.write("er.txt", "two words\n");
    servers.start();
    assert_eq!(module(&servers), module(&Older::new()));
}

#[test]
fn a_handler_that_is_killed_anywhere_is_gone_on_with_and_has_committed_all_or_nothing() {
    let older = Older::new();
    let act = |event: &str, action: &str, failpoint: Option<&str>, base: &str| {
        let mut command = older.handler();
        command.env("HANDLER_BASE_DIR", older.home.path().join(base));
        command.args([
            "start",
            &format!("--action={action}"),
            "--context.name=m",
            "--valideventtypes=noted",
        ]);
        command.arg(format!("--context.eventid={event}"));
        command.envs(failpoint.map(|point| ("ION_FAILPOINTS", point)));
        CommandOutput::of(command.output().unwrap())
    };
    let points = [
        ("handler.begun=1", false),
        ("commit.blobs-stored=1", false),
        ("commit.inserted=1", false),
        ("commit.inserted=2", false),
        // From here on all events are committed, whichever process reveals them.
        ("handler.ended=1", true),
        ("promote.revealed=1", true),
        ("promote.revealed=2", true),
        ("commit.published=1", true),
        ("commit.marked=2", true),
        ("promote.told=1", true),
    ];
    let mut killed = Vec::new();
    for (n, (point, committed)) in points.into_iter().enumerate() {
        let (event, correlation) = (format!("e{n}"), format!("c{n}"));
        let words =
            format!("event create start --id {event} --correlation {correlation} --file in.txt");
        older.home.run(words.split(' ')).well();
        let in_prepare = point.starts_with("handler.begun");
        if in_prepare {
            assert_eq!(act(&event, "prepare", Some(point), &event).code, None, "{point}");
        }
        act(&event, "prepare", None, &event).well();
        older.script_in_home(&format!(
            "cd {event}; cp in/data/in.txt out/data/f; echo '{{\"kept\":1}}' > out/insights.json; for n in 1 2; do echo '{{\"eventType\":\"noted\",\"files\":[\"f\"],\"n\":'$n'}}' > out/events/$n; done"
        ));
        if !in_prepare {
            let ran = act(&event, "commit", Some(point), &event);
            assert_eq!(ran.code, None, "{point} was not reached: {ran:#?}");
        }
        let seen = made(&older.home, &correlation).len();
        assert!(committed || seen == 0, "{point}: {seen} documents are visible");
        killed.push((point, event, correlation, committed));
    }
    // A relay reveals and publishes what was committed. The command need not run again.
    let relay = older.home.start("relay", &[]);
    let published = |documents: &[Value]| {
        documents.iter().filter(|document| document["publication"] == "published").count()
    };
    for (point, _, correlation, _) in killed.iter().filter(|(.., committed)| *committed) {
        wait_for(&format!("all events to be published after {point}"), || {
            let all = made(&older.home, correlation);
            (all.len(), published(&all)) == (3, 2)
        });
    }
    assert_eq!(relay.stop(), Some(0));
    for (point, event, correlation, committed) in killed {
        let before = made(&older.home, &correlation);
        assert_eq!(before.len(), if committed { 3 } else { 0 }, "{point}: {before:#?}");
        act(&event, "commit", None, &event).well();
        let all = made(&older.home, &correlation);
        assert_eq!((all.len(), published(&all)), (3, 2), "{point}: {all:#?}");
        assert!(!committed || all == before, "{point}: {before:#?} {all:#?}");
    }
    older.home.run(["check", "--deep"]).well();
}

#[test]
fn one_bad_event_file_commits_none_and_says_which_and_why() {
    let older = Older::new();
    older.act("prepare").well();
    older.script(
        "echo a > out/data/a; echo '{\"eventType\":\"counted\",\"files\":[\"a\"]}' > out/events/a.json",
    );
    older.script("ln -s /etc/passwd out/data/l; mkdir out/data/d; mkfifo out/data/p");
    let named = |file: &str| format!("{{\"eventType\":\"noted\",\"files\":[\"{file}\"]}}");
    let cases = [
        (named("missing"), "ENOENT: file \"missing\" is not in out/data"),
        (named("../insights.json"), "EINVAL: \"../insights.json\" is not a path below out/data"),
        (named("l"), "EINVAL: \"l\" is a link that leads out of its folder"),
        (named("d"), "EINVAL: \"d\" is a directory; name its files"),
        (named("p"), "EINVAL: \"p\" is no regular file"),
        ("{\"eventType\":\"secret\"}".into(), "EACCES: module \"m\" may not publish \"secret\""),
        ("{\"eventType\":".into(), "EINVAL: the JSON document is cut off"),
        ("[{\"key\":\"x\"}]".into(), "EINVAL: element 0 (\"x\") has no \"value\""),
        ("[]".into(), "EINVAL: there is no \"eventType\""),
    ];
    for (content, reason) in cases {
        std::fs::write(older.base().join("out/events/b.json"), content).unwrap();
        let failed = older.act("commit").failed();
        let expected = format!("event file \"b.json\" was rejected: {reason}");
        assert!(
            failed.stderr.contains(&expected) && failed.stdout.is_empty(),
            "{reason}: {failed:#?}"
        );
        assert_eq!(older.made(), Vec::<Value>::new(), "{reason}");
    }
    let job = &older.home.jobs()[0];
    assert!(job["attempts"][0]["reason"].as_str().unwrap().contains("b.json"), "{job:#?}");
    std::fs::write(older.base().join("out/events/b.json"), "{\"eventType\":\"noted\"}").unwrap();
    older.act("commit").well();
    let types: Vec<Value> = older.made().iter().map(|event| event["type"].clone()).collect();
    assert!(types.contains(&json!("counted")) && types.contains(&json!("noted")), "{types:?}");
    assert_eq!(older.home.jobs()[0]["state"], "succeeded");
    older.home.run(["check", "--deep"]).well();
}

#[test]
fn a_later_prepare_takes_the_commit_of_an_earlier_one_away() {
    let older = Older::new();
    older.act("prepare").well();
    older.script("echo '{\"eventType\":\"noted\"}' > out/events/n.json");
    // Another host prepares the same job in a folder of its own.
    let elsewhere = older.home.path().join("elsewhere");
    let mut other = older.handler();
    other.env("HANDLER_BASE_DIR", &elsewhere).args(["--action", "prepare", "--context.name", "m"]);
    CommandOutput::of(other.args(["--context.eventid", "e"]).output().unwrap()).well();
    let fenced = older.act("commit").failed();
    assert!(fenced.stderr.contains("a later attempt of job"), "{fenced:#?}");
    assert_eq!(older.made(), Vec::<Value>::new());
    older.act("prepare").well();
    older.script(
        "test ! -e out/events/n.json; echo '{\"eventType\":\"noted\"}' > out/events/n.json",
    );
    older.act("commit").well();
    assert_eq!(older.home.jobs()[0]["attempt"], 3);
}

#[test]
fn a_job_that_a_dispatcher_runs_is_left_to_it_and_one_that_a_person_ended_stays_ended() {
    let older = Older { home: Home::new() };
    older.home.program("m", "#!/bin/sh\nwhile test ! -e $GO; do sleep 0.02; done\n");
    let go = older.home.path().join("go");
    let file = older.home.write(
        "pipeline.yaml",
        format!("modules:\n  m: {{on: [start], run: [./m], env: {{GO: {}}}}}\n", go.display()),
    );
    let up = older.home.up(&file);
    older.home.run("event create start --id e --correlation c".split(' ')).well();
    wait_for("the job to run", || {
        older.home.jobs().first().is_some_and(|job| job["state"] == "running")
    });
    for action in ["prepare", "commit"] {
        let held = older.act(action).failed();
        assert!(held.stderr.contains("is run by dispatcher"), "{held:#?}");
    }
    let job = older.home.jobs()[0]["id"].as_str().unwrap().to_owned();
    older.home.run(["job", "cancel", &job]).well();
    wait_for("the job to be cancelled", || older.home.jobs()[0]["state"] == "cancelled");
    assert_eq!(up.stop(), Some(0));
    let ended = older.act("prepare").failed();
    assert!(
        ended.stderr.contains(&format!("is cancelled; `ion job retry {job}` allows it again")),
        "{ended:#?}"
    );
    older.home.run(["job", "retry", &job]).well();
    older.act("prepare").well();
    // No process of the handler runs that could notice the cancellation. The next command notices
    // it.
    older.home.run(["job", "cancel", &job]).well();
    assert!(older.act("commit").failed().stderr.contains("is cancelled"));
    assert_eq!(older.home.jobs()[0]["state"], "cancelled");
    older.home.run(["job", "retry", &job]).well();
    older.act("prepare").well();
    older.act("commit").well();
    assert_eq!(older.home.jobs()[0]["state"], "succeeded");
}

#[test]
fn prepare_fills_the_folder_anew_and_takes_no_damaged_file() {
    let older = Older::new();
    older.script_in_home("mkdir -p ion/in/data ion/out/data; touch ion/in/data/old ion/out/data/old; ln -s in.txt ion/out/events");
    older.act("prepare").well();
    older.script(
        "test ! -e in/data/old; test ! -e out/data/old; test -d out/events; test ! -s out/insights.json",
    );
    older.script(
        "test \"$(cat in/data/deep/er.txt)\" = 'two words'; grep -q '\"type\": \"start\"' in/event.json",
    );
    // A file of 70 MiB arrives in several ranges, and is the file that was stored.
    older.script_in_home("head -c 73400321 /dev/urandom > large");
    let words = "event create start --id large --correlation c --file large";
    older.home.run(words.split(' ')).well();
    let prepare = |event: &str| {
        let mut command = older.handler();
        command.args([
            "--action=prepare",
            "--context.name=m",
            &format!("--context.eventid={event}"),
        ]);
        CommandOutput::of(command.output().unwrap())
    };
    prepare("large").well();
    older.script("cmp in/data/large ../large; test ! -e in/data/in.txt");
    let event = older.home.run(["event", "get", "large"]).well();
    let event: Value = serde_json::from_str(&event.stdout).unwrap();
    let blob = older.home.state().join("blobs").join(event["files"][0]["key"].as_str().unwrap());
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[50 << 20] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    let damaged = prepare("large").failed();
    assert!(
        damaged.stderr.contains("file \"large\" of the event cannot be fetched: block 50"),
        "{damaged:#?}"
    );
    let unknown = prepare("nothing").failed();
    assert!(unknown.stderr.contains("there is no event nothing in sqlite://"), "{unknown:#?}");
}

#[test]
fn no_secret_is_printed_or_logged_and_one_in_the_command_line_is_warned_of() {
    let older = Older::new();
    let secrets = ["hunter1", "hunter2", "hunter3"];
    let log = older.home.path().join("handler.log");
    let words = |secret: [&str; 3]| {
        [
            "--printconfig".to_owned(),
            "--loglevel=debug".into(),
            format!("--logfile={}", log.display()),
            "--azureblobprovider=true".into(),
            "--azureblobprovider.blobaccountname=account".into(),
            "--azureblobprovider.containername=container".into(),
            "--mongodbdocprovider=true".into(),
            // Nothing listens at this address, so the error names the store.
            "--mongodbdocprovider.name=localhost-of-nobody".into(),
            "--action=prepare".into(),
            "--context.name=m".into(),
            "--context.eventid=e".into(),
            format!("--sharedsecret={}", secret[0]),
            format!("--azureblobprovider.blobaccountkey={}", secret[1]),
            format!("--mongodbdocprovider.password={}", secret[2]),
        ]
    };
    let mut by_argv = older.handler();
    by_argv.args(words(secrets));
    let mut by_environment = older.handler();
    by_environment.args(&words([""; 3])[..11]).envs([
        ("SHARED_SECRET", secrets[0]),
        ("AZUREBLOBPROVIDER_BLOBACCOUNTKEY", secrets[1]),
        ("MONGODBDOCPROVIDER_PASSWORD", secrets[2]),
    ]);
    for (mut command, warns) in [(by_argv, true), (by_environment, false)] {
        // The older stores cannot be reached from here. The handler fails, and its output has no
        // secret.
        let ran = CommandOutput::of(command.output().unwrap()).failed();
        let config: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(config["sharedSecret"], "***");
        assert_eq!(config["azureBlobProvider"]["blobAccountKey"], "***");
        assert_eq!(config["mongoDBDocProvider"]["password"], "***");
        let all = format!("{}{}{}", ran.stdout, ran.stderr, std::fs::read_to_string(&log).unwrap());
        assert!(!all.contains("hunter"), "{all}");
        for name in
            ["sharedsecret", "azureblobprovider.blobaccountkey", "mongodbdocprovider.password"]
        {
            let warned = ran.stderr.contains(&format!("--{name} in the command line can be read"));
            assert_eq!(warned, warns, "{ran:#?}");
        }
    }
    let mut bus = older.handler();
    bus.args([
        "--action=commit",
        "--servicebuseventprovider=true",
        "--servicebuseventprovider.key=hunter4",
    ]);
    let refused = CommandOutput::of(bus.output().unwrap()).failed();
    assert!(
        refused.stderr.contains("ION_BUS=amqp://") && !refused.stderr.contains("hunter4"),
        "{refused:#?}"
    );
    // A variable `ION_*` takes the place of a group of older flags.
    let mut moved = older.handler();
    moved.args([
        "--action=prepare",
        "--context.name=m",
        "--context.eventid=e",
        "--servicebuseventprovider=true",
    ]);
    let bus = format!("sqlite://{}", older.home.state().join("ion.db").display());
    CommandOutput::of(moved.env("ION_BUS", bus).output().unwrap()).well();
}

#[test]
fn development_mode_needs_no_store_and_what_it_shows_starts_the_next_module_by_hand() {
    let home = Home::new();
    let base = |module: &str| home.path().join(format!("base-{module}"));
    let act = |module: &str, action: &str, words: &[&str]| {
        let mut command = Command::new(HANDLER);
        command.args([
            "--development",
            &format!("--action={action}"),
            &format!("--context.name={module}"),
        ]);
        command.args(words).env("HANDLER_BASE_DIR", base(module)).current_dir(home.path());
        CommandOutput::of(command.stdin(Stdio::null()).output().unwrap())
    };
    let script = |module: &str, script: &str| {
        let ran =
            Command::new("sh").args(["-c", script]).current_dir(base(module)).output().unwrap();
        CommandOutput::of(ran).well()
    };
    let shown = |path: &str| -> Value {
        serde_json::from_slice(&std::fs::read(home.path().join(".dev").join(path)).unwrap())
            .unwrap()
    };
    // What lies in the first module's folder is its event.
    home.write("base-one/in/data/deep/f", "content\n");
    home.write("base-one/in/eventmeta.json", "[{\"key\": \"note\", \"value\": \"kept\"}]");
    let small = act("one", "prepare", &["--job-limit=event-bytes=20"]).failed();
    assert!(small.stderr.contains("larger than an event may be"), "{small:#?}");
    act("one", "prepare", &["--context.eventid=111", "--context.correlationid=cc"]).well();
    assert_eq!(shown("one/prepared"), json!({}));
    assert_eq!(shown("one/context.json")["eventId"], "111");
    assert!(!home.path().join(".dev/one/committed").exists());
    let values = script("one", "cat in/eventmeta.json").stdout;
    assert!(values.contains("kept") && values.contains("ion://111/deep/f"), "{values}");
    script(
        "one",
        "cp in/data/deep/f out/data/g; echo '[{\"key\":\"length\",\"value\":\"8\"}]' > out/insights.json",
    );
    script(
        "one",
        "echo '[{\"key\":\"eventType\",\"value\":\"made\"},{\"key\":\"files\",\"value\":\"g\"},{\"key\":\"n\",\"value\":\"1\"}]' > out/events/event0.json",
    );
    let refused =
        act("one", "commit", &["--context.eventid=111", "--valideventtypes=other"]).failed();
    assert!(refused.stderr.contains("EACCES") && !home.path().join(".dev/one/committed").exists());
    act("one", "commit", &["--context.eventid=111", "--valideventtypes=made"]).well();
    assert_eq!(shown("one/committed"), json!({}));
    let meta = shown("one/contexts/event0.json");
    assert_eq!(
        (&meta["name"], &meta["parentEventId"], &meta["correlationId"]),
        (&json!("one"), &json!("111"), &json!("cc"))
    );
    assert_eq!(
        (&meta["files"], &meta["data"]),
        (&json!(["g"]), &json!([{"key": "n", "value": "1"}]))
    );
    let insights = shown("one/insights/insights.json");
    assert_eq!(
        (&insights["eventId"], &insights["documentType"]),
        (&json!("111"), &json!("insight"))
    );
    assert_eq!(insights["data"], json!([{"key": "length", "value": "8"}]));
    // A person passes the event on to the next module.
    let event = shown("one/events/event0.json");
    assert_eq!(event["type"], "made");
    let id = format!("--context.eventid={}", event["context"]["eventId"].as_str().unwrap());
    act("two", "prepare", &[&id]).well();
    assert_eq!(script("two", "cat in/data/g").stdout, "content\n");
    script("two", "echo '{\"eventType\":\"end\"}' > out/events/e.json");
    let shallow = ["--valideventtypes=end", "--job-limit=lineage-depth=1"];
    let deep = act("two", "commit", &[&[id.as_str()], &shallow[..]].concat()).failed();
    assert!(deep.stderr.contains("ELOOP"), "{deep:#?}");
    act("two", "commit", &[&id, "--valideventtypes=end"]).well();
    let last = shown("two/contexts/e.json");
    assert_eq!(
        (&last["correlationId"], &last["parentEventId"]),
        (&json!("cc"), &event["context"]["eventId"])
    );
    assert!(!home.path().join(".ion").exists(), "development mode makes nothing but .dev");
}
