//! Shows that whole pipelines run on real servers (a MongoDB-compatible store, RabbitMQ, S3 and
//! Azure Blob), with several dispatchers, and with servers that stop, stand still and come back.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::evenness::sources_are_run_evenly;
use crate::support::servers::{Azure, Env, Mongo, Rabbit, S3, plane};
use crate::support::{
    CommandOutput, DEADLINE, Home, RunningCommand, example_clip, faketime, wait_for, wait_up_to,
};
use serde_json::Value;

/// Writes a pipeline with fan-out and fan-in, whose modules need nothing but a shell.
fn pipeline(home: &Home) -> PathBuf {
    home.program("copy", "#!/bin/sh\nset -e\ncp /ion/in/data/f /ion/out/data/f\necho more >> /ion/out/data/f\nfor n in 1 2; do echo \"{\\\"eventType\\\":\\\"copied\\\",\\\"files\\\":[\\\"f\\\"],\\\"n\\\":$n}\" > /ion/out/events/c$n; done\n");
    home.program("end", "#!/bin/sh\nset -e\nsleep ${PAUSE:-0}\ngrep -q more /ion/in/data/f\necho '{\"eventType\":\"ended\"}' > /ion/out/events/e\n");
    home.program("all", "#!/bin/sh\ngrep -c '\"type\"' /ion/in/events.json\n");
    home.write(
        "pipeline.yaml",
        "modules:\n  copy: {on: [start], emits: [copied], run: [./copy]}\n  end: {on: [copied], emits: [ended], run: [./end], commit: on-success}\n  all: {gather: ended, per: start, run: [./all]}\n",
    )
}

fn home_on(env: &Env) -> Home {
    let mut home = Home::new();
    home.env = env.clone();
    home
}

fn unique(what: &str) -> String {
    format!("{what}_{}_{}", std::process::id(), ionfs::clock::now())
}

/// The servers of one test.
struct Servers {
    rabbit: Rabbit,
    mongo: Mongo,
    s3: S3,
    env: Env,
}

impl Servers {
    fn start() -> Self {
        let (rabbit, mongo, s3) = std::thread::scope(|scope| {
            let rabbit = scope.spawn(Rabbit::start);
            let mongo = scope.spawn(Mongo::start);
            let s3 = S3::start();
            (rabbit.join().unwrap(), mongo.join().unwrap(), s3)
        });
        let env = plane(&mongo.database("ion"), &rabbit.url, &format!("{}/test", s3.url), &s3.env);
        Self { rabbit, mongo, s3, env }
    }
}

/// Asserts that there are this many jobs, that all of them succeeded, and that `ion check` finds no
/// fault: each event was processed once in effect.
fn once_in_effect(home: &Home, jobs: usize) {
    let all = home.jobs();
    assert_eq!(all.len(), jobs, "there is one job for each event and module");
    let ids: BTreeSet<&str> = all.iter().map(|job| job["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), jobs);
    assert!(all.iter().all(|job| job["state"] == "succeeded"), "{all:#?}");
    home.run(["check", "--deep"]).well();
}

fn succeeded(home: &Home) -> usize {
    home.jobs().iter().filter(|job| job["state"] == "succeeded").count()
}

fn dispatch(home: &Home, file: &Path, flags: &[&str]) -> RunningCommand {
    home.start("dispatch", &[&[file.to_str().unwrap()], flags].concat())
}

#[test]
fn three_dispatchers_share_the_work_and_one_may_be_killed() {
    const EVENTS: usize = 12;
    let servers = Servers::start();
    let homes = [(); 3].map(|()| home_on(&servers.env));
    let file = pipeline(&homes[0]);
    homes[0].write("f", "content\n");
    let flags = ["--lease", "6s", "--jobs", "2"];
    let mut dispatchers: Vec<RunningCommand> =
        homes.iter().map(|home| dispatch(home, &file, &flags)).collect();
    for _ in 0..EVENTS {
        homes[0].run(["event", "create", "start", "--file", "f"]).well();
    }
    wait_for("some progress", || succeeded(&homes[0]) >= 4);
    dispatchers.remove(1).kill();
    wait_up_to(3 * DEADLINE, "all jobs to succeed", || succeeded(&homes[2]) == EVENTS * 4);
    once_in_effect(&homes[0], EVENTS * 4);
    // Every host shows the same documents and logs.
    let correlation = homes[2].jobs()[0]["correlationId"].as_str().unwrap().to_owned();
    let trace = homes[2].run(["--json", "trace", &correlation]).well();
    let documents = trace.documents();
    assert_eq!(
        documents.iter().filter(|document| document["type"].is_string()).count(),
        5,
        "{trace:#?}"
    );
    let ended: Vec<&Value> =
        documents.iter().filter(|document| document["type"] == "ended").collect();
    assert!(
        ended.iter().all(|event| event["unrouted"] == true),
        "no module subscribes to these events: {ended:#?}"
    );
    let fixed = |data| homes[1].run(["event", "create", "quiet", "--id", "fixed", "--data", data]);
    fixed("a=1").well();
    fixed("a=1").well();
    assert!(fixed("a=2").failed().stderr.contains("committed before with other content"));
    for job in homes[2].jobs().iter().filter(|job| job["module"] == "all") {
        let log = homes[1].run(["job", "logs", job["id"].as_str().unwrap()]).well();
        assert_eq!(log.stdout, "2\n");
    }
    let logs: Vec<String> = dispatchers.iter().map(RunningCommand::log).collect();
    assert!(
        logs.iter().all(|log| log.contains("succeeded")),
        "each dispatcher has run some of the jobs: {logs:#?}"
    );
    for dispatcher in dispatchers {
        assert_eq!(dispatcher.stop(), Some(0));
    }
}

/// The clocks of the hosts differ by minutes. Leases, retries, gatherings and the outbox depend on
/// what each host has observed itself.
#[test]
fn clocks_that_differ_by_minutes_do_no_harm() {
    const EVENTS: usize = 6;
    let servers = Servers::start();
    let homes = ["+5m", "-5m", "+0"].map(|offset| {
        let mut home = home_on(&servers.env);
        home.env.extend([
            ("LD_PRELOAD".into(), faketime()),
            ("FAKETIME".into(), offset.into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC".into(), "1".into()),
        ]);
        home
    });
    let clock = |home: &Home| -> i64 {
        let date = Command::new("date").arg("+%s").envs(home.env.iter().cloned()).output().unwrap();
        String::from_utf8(date.stdout).unwrap().trim().parse().unwrap()
    };
    assert!(
        (clock(&homes[0]) - clock(&homes[1]) - 600).abs() < 60,
        "the clocks differ by ten minutes"
    );
    let file = pipeline(&homes[0]);
    homes[0].write("f", "content\n");
    // Each job of `end` fails once, so its retry waits in the ledger by the clock of some host.
    homes[0].program("end", "#!/bin/sh\nset -e\ntest $ION_ATTEMPT != 1\ngrep -q more /ion/in/data/f\necho '{\"eventType\":\"ended\"}' > /ion/out/events/e\n");
    let flags = ["--lease", "6s", "--jobs", "2"];
    let mut dispatchers: Vec<RunningCommand> =
        homes.iter().map(|home| dispatch(home, &file, &flags)).collect();
    for n in 0..EVENTS {
        homes[n % 3]
            .run([
                "event",
                "create",
                "start",
                "--file",
                homes[0].path().join("f").to_str().unwrap(),
            ])
            .well();
    }
    wait_for("some progress", || succeeded(&homes[2]) >= 4);
    dispatchers.remove(0).kill();
    wait_up_to(3 * DEADLINE, "all jobs to succeed, long before the clocks agree", || {
        succeeded(&homes[2]) == EVENTS * 4
    });
    once_in_effect(&homes[1], EVENTS * 4);
    assert!(
        homes[1].jobs().iter().all(|job| job["losses"].as_u64() <= Some(1)),
        "no dispatcher that lived was taken for dead"
    );
    for dispatcher in dispatchers {
        assert_eq!(dispatcher.stop(), Some(0));
    }
}

/// A dispatcher stands still for longer than its lease, and another one takes its job. When the
/// first one goes on, its module's close is refused. It ends its attempt, and writes nothing about
/// it into the ledger.
#[test]
fn a_dispatcher_that_was_paused_does_not_finish_what_another_took_over() {
    let servers = Servers::start();
    let first = Home::new();
    for homes in [
        [first.on_another_host(), first.on_another_host()],
        [home_on(&servers.env), home_on(&servers.env)],
    ] {
        let [paused, other] = homes;
        paused.program("write", "#!/bin/sh\necho $ION_ATTEMPT > /ion/out/data/f\nif [ $ION_ATTEMPT = 1 ]; then touch $BEGUN; until [ -e $GO ]; do sleep 0.1; done; fi\necho \"{\\\"eventType\\\":\\\"done\\\",\\\"files\\\":[\\\"f\\\"],\\\"attempt\\\":$ION_ATTEMPT}\" > /ion/out/data/event\ncp /ion/out/data/event /ion/out/events/e && touch $GO.$ION_ATTEMPT\n");
        let (begun, go) = (paused.path().join("begun"), paused.path().join("go"));
        let file = paused.write(
            "pipeline.yaml",
            format!(
                "modules:\n  write: {{on: [paused], emits: [done], run: [./write], env: {{BEGUN: {}, GO: {}}}}}\n",
                begun.display(),
                go.display()
            ),
        );
        let flags = ["--lease", "3s"];
        let stopped = dispatch(&paused, &file, &flags);
        paused.run(["event", "create", "paused"]).well();
        wait_for("the job to begin", || begun.exists());
        // The dispatcher must not stop within the write that says so, because it would hold the
        // store there.
        wait_for("the ledger to say that the job runs", || {
            paused.jobs().iter().any(|job| job["state"] == "running")
        });
        crate::support::signal(stopped.pid(), "STOP");
        let taking = dispatch(&other, &file, &flags);
        wait_for("the other dispatcher to take the job over", || succeeded(&other) == 1);
        // The dispatcher goes on, and its module closes the event file.
        std::fs::write(&go, "").unwrap();
        crate::support::signal(stopped.pid(), "CONT");
        wait_for("the first dispatcher to find out that it lost the job", || {
            stopped.log().contains("not held any more")
        });
        assert!(
            !go.with_extension("1").exists(),
            "the close of the first dispatcher's module is refused"
        );
        let job = &other.jobs()[0];
        let ends: Vec<&str> = job["attempts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|attempt| attempt["end"].as_str().unwrap())
            .collect();
        assert_eq!(
            (job["state"].as_str(), &ends[..]),
            (Some("succeeded"), &["lost", "succeeded"][..]),
            "{job:#?}"
        );
        let done: Vec<Value> =
            other.trace().into_iter().filter(|event| event["type"] == "done").collect();
        assert_eq!(done.len(), 1, "{done:#?}");
        assert!(done[0]["data"].to_string().contains("\"2\""), "{done:#?}");
        for dispatcher in [stopped, taking] {
            assert_eq!(dispatcher.stop(), Some(0));
        }
        once_in_effect(&other, 1);
    }
}

/// The examples run as they are, with blobs on S3 and on Azure Blob.
#[test]
fn the_examples_run_unchanged() {
    let servers = Servers::start();
    let azure = Azure::start();
    azure.make_container("ion");
    let bus = servers.rabbit.virtual_host("azure");
    let on_azure = plane(&servers.mongo.database("azure"), &bus, "az://ion/test", &azure.env);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let clip = example_clip();
    for env in [&servers.env, &on_azure] {
        let homes = [(); 3].map(|()| home_on(env));
        let home = &homes[0];
        // Three dispatchers run, and one of them is killed half-way.
        let video = root.join("examples/video/pipeline.yaml");
        let mut dispatchers: Vec<RunningCommand> = homes
            .iter()
            .map(|home| dispatch(home, &video, &["--lease", "6s", "--quiet"]))
            .collect();
        let create = ["event", "create", "new_video", "--file", &clip, "--wait", "--timeout", "3m"];
        let mut waiting = home.ion().args(create).stdout(Stdio::null()).spawn().unwrap();
        wait_up_to(3 * DEADLINE, "half of the jobs to succeed", || succeeded(home) >= 20);
        dispatchers.remove(1).kill();
        assert!(waiting.wait().unwrap().success(), "the whole correlation succeeds");
        let trace = home.run(["trace"]).well();
        assert!(
            trace.stdout.contains("contact_sheet") && trace.stdout.contains("sheet.png"),
            "{trace:#?}"
        );
        for dispatcher in dispatchers {
            assert_eq!(dispatcher.stop(), Some(0));
        }
        once_in_effect(home, home.jobs().len());
        let words = home.up(&root.join("examples/words/pipeline.yaml"));
        let create =
            ["event", "create", "new_texts", "--file", "/usr/share/common-licenses", "--wait"];
        home.run(create).well();
        assert!(home.run(["trace"]).well().stdout.contains("ranking"));
        assert_eq!(words.stop(), Some(0));
        home.run(["check", "--deep"]).well();
    }
}

/// Closes succeed while the broker is unavailable. Everything goes on when the broker is back.
#[test]
fn a_broker_that_is_away_holds_up_no_close() {
    const EVENTS: usize = 3;
    let away = std::env::var("ION_TEST_AWAY").map_or(30, |seconds| seconds.parse().unwrap());
    let mut servers = Servers::start();
    let home = home_on(&servers.env);
    let file = pipeline(&home);
    home.write("f", "content\n");
    // This module begins at once, and writes only when the test tells it to.
    home.program("slow", "#!/bin/sh\nset -e\necho x > /ion/out/data/f\nuntil [ -e $GO ]; do sleep 0.1; done\nfor n in 1 2; do echo \"{\\\"eventType\\\":\\\"start\\\",\\\"files\\\":[\\\"f\\\"],\\\"n\\\":$n}\" > /ion/out/events/c$n || exit 1; done\n");
    let go = home.path().join("go");
    let text = std::fs::read_to_string(&file).unwrap();
    let slow = format!(
        "  slow: {{on: [first], emits: [start], run: [./slow], concurrency: 3, env: {{GO: {}}}}}\n",
        go.display()
    );
    std::fs::write(&file, text + &slow).unwrap();
    let up = home.up(&file);
    for _ in 0..EVENTS {
        home.run(["event", "create", "first"]).well();
    }
    wait_for("the jobs to begin", || {
        home.jobs().iter().filter(|job| job["state"] == "running").count() == EVENTS
    });
    servers.rabbit.server.stop();
    let stopped = Instant::now();
    std::fs::write(&go, "").unwrap();
    wait_for("the closes to succeed without a broker", || succeeded(&home) >= EVENTS);
    assert!(home.jobs().iter().all(|job| job["failures"] == 0), "no close fails");
    let created = home.run(["event", "create", "first"]).well();
    assert!(
        created.stderr.contains("not published yet"),
        "the event is committed with its document: {created:#?}"
    );
    // The broker stays away for this long.
    std::thread::sleep(Duration::from_secs(away).saturating_sub(stopped.elapsed()));
    servers.rabbit.server.start();
    servers.rabbit.wait_until_it_serves();
    let expected = (EVENTS + 1) * (1 + 2 * 4);
    wait_up_to(3 * DEADLINE, "all jobs to succeed after the broker is back", || {
        succeeded(&home) == expected
    });
    assert_eq!(up.stop(), Some(0));
    once_in_effect(&home, expected);
}

/// While the document store or the blob store stands still or is gone, a close waits. At its
/// deadline it is refused with EIO, and nothing is half done. While the broker stands still, the
/// close succeeds.
#[test]
fn a_store_that_is_away_fails_a_close_at_its_deadline() {
    let mut servers = Servers::start();
    for (which, gone) in [
        ("documents", false),
        ("documents", true),
        ("blobs", false),
        ("blobs", true),
        ("bus", false),
    ] {
        let home = home_on(&servers.env);
        let (begun, go) = (home.path().join("begun"), home.path().join("go"));
        home.program("write", "#!/bin/sh\necho x > /ion/out/data/f\ntouch $BEGUN\nuntil [ -e $GO ]; do sleep 0.1; done\necho y > /ion/out/data/f\necho '{\"eventType\":\"done\",\"files\":[\"f\"]}' > /ion/out/data/event\nfrom=$(date +%s)\ncp /ion/out/data/event /ion/out/events/e\necho \"status $? after $(($(date +%s) - from)) s\"\n");
        let module = unique("write");
        let file = home.write(
            "pipeline.yaml",
            format!(
                "modules:\n  {module}: {{on: [{module}], emits: [done], run: [./write], retries: 0, env: {{BEGUN: {}, GO: {}}}}}\n",
                begun.display(),
                go.display()
            ),
        );
        let up = home.up_with(&["--commit-deadline", "4s"], &file);
        home.run(["event", "create", &module]).well();
        wait_for("the job to begin", || begun.exists());
        let server = match which {
            "documents" => &mut servers.mongo.server,
            "blobs" => &mut servers.s3.server,
            _ => &mut servers.rabbit.server,
        };
        if gone {
            server.kill()
        } else {
            server.pause()
        }
        std::fs::write(&go, "").unwrap();
        wait_for(&format!("the close to return, {which} gone: {gone}"), || {
            up.log().contains("status ")
        });
        if gone {
            server.start()
        } else {
            server.resume()
        }
        let log = up.log();
        let line = log.lines().find(|line| line.contains("status ")).unwrap();
        let seconds: u32 = line.split(' ').rev().nth(1).unwrap().parse().unwrap();
        let mine = || home.jobs().into_iter().find(|job| job["module"] == module.as_str()).unwrap();
        if which == "bus" {
            assert!(line.contains("status 0") && seconds <= 12, "{line}");
            wait_for("the job to succeed", || mine()["state"] == "succeeded");
            assert_eq!(up.stop(), Some(0));
            continue;
        }
        assert!(!line.contains("status 0"), "{which}: {line}");
        assert!((3..=16).contains(&seconds), "{which}: the close waits, and not forever: {line}");
        wait_for("the job to be dead", || mine()["state"] == "dead");
        let reason = mine()["attempts"][0]["reason"].as_str().unwrap().to_owned();
        assert!(reason.contains("EIO"), "{which}: {reason}");
        let correlation = mine()["correlationId"].as_str().unwrap().to_owned();
        let trace = home.run(["--json", "trace", &correlation]).well();
        assert!(!trace.stdout.contains("\"done\""), "{which}: no event was published: {trace:#?}");
        // The job succeeds when the store is back.
        home.run(["dead", "retry", mine()["id"].as_str().unwrap()]).well();
        wait_for("the second attempt to succeed", || mine()["state"] == "succeeded");
        assert_eq!(up.stop(), Some(0));
    }
}

/// What is not a message of Ion's becomes a dead letter with its reason, and the queue moves on.
#[test]
fn what_is_no_message_is_dead_and_the_queue_moves_on() {
    let servers = Servers::start();
    let home = home_on(&servers.env);
    let file = pipeline(&home);
    home.write("f", "content\n");
    let up = home.up(&file);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let connection = lapin::Connection::connect(
            servers.rabbit.url.trim_end_matches('/'),
            lapin::ConnectionProperties::default(),
        );
        let channel = connection.await.unwrap().create_channel().await.unwrap();
        for body in [
            "this is no JSON",
            "{\"type\": \"start\"}",
            "{\"context\": {\"name\": \"n\", \"eventId\": \"never-was\", \"correlationId\": \"c\", \"parentEventId\": \"\", \"documentType\": \"eventMeta\"}, \"type\": \"start\"}",
        ] {
            let publish = channel.basic_publish(
                "ion.events".into(),
                "start".into(),
                lapin::options::BasicPublishOptions::default(),
                body.as_bytes(),
                lapin::BasicProperties::default(),
            );
            publish.await.unwrap().await.unwrap();
        }
    });
    home.run(["event", "create", "start", "--file", "f", "--wait"]).well();
    wait_for("the dead letters to be there", || {
        let list = home.run(["dead", "list"]).stdout;
        list.matches("it is no message of Ion's").count() >= 2
            && list.contains("never-was is not in the document store")
    });
    home.run(["dead", "drop", "--unreadable"]).well();
    let list = home.run(["dead", "list"]).well().stdout;
    assert!(!list.contains("no job could be made"), "{list}");
    assert_eq!(up.stop(), Some(0));
}

/// `ion doctor` names the servers and says in words what is wrong, without a password anywhere.
#[test]
fn doctor_says_what_is_wrong_and_no_command_shows_a_password() {
    let servers = Servers::start();
    let home = home_on(&servers.env);
    let doctor = home.run(["doctor"]).well();
    for line in
        ["put, read, list, delete", "insert, read, replace", "declare, publish, send, receive"]
    {
        assert!(doctor.stdout.contains(line), "{doctor:#?}");
    }
    let closed = "127.0.0.1:9";
    let port = servers.rabbit.url.rsplit(':').next().unwrap().trim_end_matches('/').to_owned();
    let cases: [(&str, String, &str); 7] = [
        ("ION_BUS", format!("amqp://guest:hunter2@127.0.0.1:{port}/"), "knows no such user or key"),
        ("ION_BUS", format!("amqp://guest:guest@127.0.0.1:{port}/none"), "the vhost is missing"),
        ("ION_BUS", format!("amqps://guest:hunter2@127.0.0.1:{port}/"), "TLS does not agree"),
        ("ION_BUS", format!("amqp://guest:hunter2@{closed}/"), "nothing listens there"),
        (
            "ION_DOCUMENTS",
            format!("mongodb://user:hunter2@{closed}/ion"),
            "no server can be reached",
        ),
        ("ION_BLOBS", "s3://missing-bucket".into(), "the bucket or container is missing"),
        ("AWS_SECRET_ACCESS_KEY", "hunter2".repeat(6), "knows no such user or key"),
    ];
    for (variable, value, words) in cases {
        let mut home = home_on(&servers.env);
        home.env.push((variable.into(), value));
        let doctor = home.run(["doctor"]).failed();
        assert!(doctor.stdout.contains(words), "{variable}: {doctor:#?}");
        // No daemon starts with what the doctor calls bad.
        let up = home.run(["up", pipeline(&home).to_str().unwrap()]).failed();
        assert!(!up.stderr.contains("ready"), "{variable}: {up:#?}");
        let said = format!("{doctor:?}{up:?}{:?}", home.run(["job", "list"]));
        assert!(!said.contains("hunter2"), "{said}");
    }
}

/// The pipeline file names the stores for every command in that home. A password comes from the
/// environment.
#[test]
fn a_plane_section_chooses_the_stores() {
    let rabbit = Rabbit::start();
    let mut home = Home::new();
    let password = rabbit.url.split("guest:").nth(1).unwrap().split('@').next().unwrap().to_owned();
    home.env.push(("BROKER_PASSWORD".into(), password));
    let host = rabbit.url.rsplit('@').next().unwrap();
    let file = pipeline(&home);
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(
        &file,
        format!("plane:\n  bus: amqp://guest:${{BROKER_PASSWORD}}@{host}\n{text}"),
    )
    .unwrap();
    home.write("f", "content\n");
    let up = home.up(&file);
    home.run(["event", "create", "start", "--file", "f", "--wait"]).well();
    let doctor = home.run(["doctor"]).well();
    assert!(doctor.stdout.contains(&format!("amqp://***@{host}")), "{doctor:#?}");
    // No command line shows the address of the broker.
    let shown = CommandOutput::of(Command::new("ps").args(["-eo", "args"]).output().unwrap());
    assert!(!shown.stdout.contains(host), "{shown:#?}");
    assert_eq!(up.stop(), Some(0));
    let kept = std::fs::read_to_string(home.state().join("plane.json")).unwrap();
    assert!(kept.contains("${BROKER_PASSWORD}"), "{kept}");
    home.env.clear();
    let refused = home.run(["job", "list"]).failed();
    assert!(refused.stderr.contains("BROKER_PASSWORD"), "{refused:#?}");
}

/// Sends many events through a pipeline. `ION_TEST_EVENTS=10000` makes a long run.
#[test]
fn many_events_are_processed_once_and_memory_stays_flat() {
    let events: usize =
        std::env::var("ION_TEST_EVENTS").map_or(150, |events| events.parse().unwrap());
    let servers = Servers::start();
    let home = home_on(&servers.env);
    home.program("make", "#!/bin/sh\ni=0\nwhile [ $i -lt $EVENTS ]; do echo '{\"eventType\":\"one\"}' > /ion/out/events/e$i || exit 1; i=$((i + 1)); done\n");
    home.program("pass", "#!/bin/sh\necho '{\"eventType\":\"two\"}' > /ion/out/events/e\n");
    home.program("end", "#!/bin/sh\n:\n");
    let file = home.write(
        "pipeline.yaml",
        format!(
            "modules:\n  make: {{on: [start], emits: [one], run: [./make], timeout: 1h, env: {{EVENTS: '{events}'}}}}\n  pass: {{on: [one], emits: [two], run: [./pass]}}\n  end: {{on: [two], run: [./end]}}\n"
        ),
    );
    let up = home.up_with(&["--quiet"], &file);
    let begun = Instant::now();
    home.run(["event", "create", "start"]).well();
    let expected = 1 + 2 * events;
    let mut memory = Vec::new();
    let mut done = 0;
    let mut since = Instant::now();
    while done < expected {
        std::thread::sleep(Duration::from_millis(500).max(begun.elapsed() / 20));
        let now = succeeded(&home);
        if now > done {
            since = Instant::now();
        }
        assert!(since.elapsed() < 2 * DEADLINE, "{now} of {expected} jobs have succeeded");
        done = now;
        memory.push((done, resident(up.pid())));
    }
    let took = begun.elapsed();
    println!(
        "{events} events through 3 modules: {took:.1?}, {:.0} jobs/s; (jobs, KiB resident): {memory:?}",
        expected as f64 / took.as_secs_f64()
    );
    let early = memory.iter().find(|(done, _)| *done >= expected / 4).unwrap().1;
    let late = memory.last().unwrap().1;
    assert!(late < early + early / 2 + 32_768, "memory grows: {memory:?}");
    assert_eq!(up.stop(), Some(0));
    once_in_effect(&home, expected);
}

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
#[ignore = "it keeps the machine busy for three minutes, in which other tests are too slow; `make torture` runs it"]
fn dispatchers_run_sources_evenly_on_servers() {
    let servers = Servers::start();
    sources_are_run_evenly([(); 4].map(|()| home_on(&servers.env)), Duration::from_secs(24), 0.2);
}
