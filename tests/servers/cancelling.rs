//! Shows that loops of modules come to an end, that `ion cancel` ends everything that comes of an
//! event, and that a gathering job says what it waits for and what it ran without. The tests use
//! the embedded stores; one test uses RabbitMQ and a MongoDB-compatible store.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::chains::address;
use crate::support::http::{get, request};
use crate::support::servers::{Mongo, Rabbit};
use crate::support::{Home, signal, wait_for};
use ionfs::record::JobState;
use ionfs::registry::Registry;
use ionfs::stores::open::{StoreUrls, open_documents};
use ionfs::stores::{Collection, Durability};
use serde_json::{Value, json};

/// Writes a pipeline of two modules that feed each other.
fn circle(home: &Home) -> PathBuf {
    let emit = |name: &str, event_type: &str| {
        home.program(
            name,
            &format!(
                "#!/bin/sh\nset -e\necho '{{\"eventType\":\"{event_type}\"}}' > /ion/out/events/e\n"
            ),
        );
    };
    emit("ping", "b");
    emit("pong", "a");
    home.write(
        "pipeline.yaml",
        "modules:\n  ping: {on: [a], emits: [b], run: [./ping], retries: 0}\n  pong: {on: [b], emits: [a], run: [./pong], retries: 0}\n",
    )
}

fn of(jobs: &[Value], module: &str, state: &str) -> usize {
    jobs.iter().filter(|job| job["module"] == module && job["state"] == state).count()
}

fn in_state(home: &Home, state: &str) -> usize {
    home.jobs().iter().filter(|job| job["state"] == state).count()
}

/// Creates an event. Returns its id and the id of its correlation.
fn create(home: &Home, words: &[&str]) -> (String, String) {
    let created = home.run([&["--json", "event", "create"], words].concat()).well();
    let event: Value = serde_json::from_str(&created.stdout).unwrap();
    let id = |value: &Value| value.as_str().unwrap().to_owned();
    (id(&event["id"]), id(&event["context"]["correlationId"]))
}

#[test]
fn modules_that_feed_each_other_are_told_of_and_come_to_an_end() {
    let mut home = Home::new();
    let file = circle(&home);
    home.env.push(("ION_JOB_LIMITS".into(), "lineage-depth=5".into()));
    let up = home.up(&file);
    assert!(
        up.log().contains("these modules feed each other: ping -> b -> pong -> a -> ping"),
        "{}",
        up.log()
    );
    let ran = home.run(["event", "create", "a", "--wait"]).failed();
    assert!(ran.stdout.contains("6 events, 6 jobs: failed"), "{ran:#?}");
    let traced = home.run(["trace"]).well().stdout;
    assert!(
        traced.contains(
            "ELOOP: more than 5 events would stand between this one and the first of its correlation"
        ),
        "{traced}"
    );
    let depths: Vec<u64> =
        home.trace().iter().map(|one| one["depth"].as_u64().unwrap_or(0)).take(6).collect();
    assert_eq!(depths, [0, 1, 2, 3, 4, 5]);
    assert_eq!(up.stop(), Some(0));
}

/// `ion cancel` ends a loop that two dispatchers run. Events that are created later start jobs as
/// usual.
fn a_circle_is_cancelled(home: &Home, other: &Home) {
    let file = circle(home);
    let up = home.up(&file);
    circle(other);
    let second = other.up(&other.path().join("pipeline.yaml"));
    let (_, circle) = create(home, &["a"]);
    wait_for("some rounds of the loop", || in_state(home, "succeeded") >= 6);
    let cancelled = home.run(["--json", "cancel", &circle]).well();
    let cancelled: Value = serde_json::from_str(&cancelled.stdout).unwrap();
    assert_eq!(cancelled["ended"], true, "{cancelled}");
    let done = &cancelled["done"];
    // When the cancellation comes, a message, a job or an event of the loop is on its way.
    // Whichever it is, every job has ended now.
    let ended = home.jobs();
    let jobs = ended.len();
    assert!(
        ended
            .iter()
            .all(|job| ["succeeded", "cancelled"].contains(&job["state"].as_str().unwrap())),
        "{ended:#?}"
    );
    let counted = ["queued", "prevented", "stopped"].map(|what| done[what].as_u64().unwrap());
    let in_books = in_state(home, "cancelled");
    assert!(counted.iter().sum::<u64>() as usize >= in_books, "{done} and {in_books}");
    // The messages that were published before the cancellation arrive later, and start nothing.
    let (_, later) = create(home, &["c"]);
    let (_, again) = create(home, &["a"]);
    assert_ne!(later, again);
    wait_for("another loop to go on", || in_state(home, "succeeded") >= 6 + 6);
    home.run(["cancel", &again]).well();
    let of_first = home.jobs().iter().filter(|job| job["correlationId"] == circle.as_str()).count();
    assert_eq!(of_first, jobs, "no job of the cancelled loop has started again");
    assert_eq!((up.stop(), second.stop()), (Some(0), Some(0)));
    home.run(["check"]).well();
}

#[test]
fn a_circle_is_cancelled_on_the_embedded_plane() {
    let home = Home::new();
    let other = home.on_another_host();
    a_circle_is_cancelled(&home, &other);
}

#[test]
fn a_circle_is_cancelled_on_servers() {
    let (rabbit, mongo) = (Rabbit::start(), Mongo::start());
    let mut home = Home::new();
    let blobs = format!("file://{}", home.state().join("blobs").display());
    home.env = vec![
        ("ION_BUS".into(), rabbit.url.clone()),
        ("ION_DOCUMENTS".into(), mongo.url.clone()),
        ("ION_BLOBS".into(), blobs),
    ];
    let mut other = Home::new();
    other.env.clone_from(&home.env);
    a_circle_is_cancelled(&home, &other);
}

/// An event is cancelled before any dispatcher has claimed its jobs, and no dispatcher ever runs
/// them.
#[test]
fn what_would_still_be_started_is_written_down_as_cancelled() {
    let home = Home::new();
    let file = home.write(
        "pipeline.yaml",
        "modules:\n  one: {on: [go], emits: [done], run: [\"true\"]}\n  two: {on: [go], run: [\"true\"]}\n  \
         all: {gather: done, per: go, run: [\"true\"]}\n",
    );
    home.run(["module", "create", "--pipeline", file.to_str().unwrap()]).well();
    let (event, _) = create(&home, &["go"]);
    let (_, other) = create(&home, &["go"]);
    let said = home.run(["cancel", &event[..12]]).well();
    assert!(said.stdout.contains("3 jobs that would still have been started"), "{said:#?}");
    let up = home.up(&file);
    wait_for("the other event's jobs to succeed", || in_state(&home, "succeeded") == 3);
    assert_eq!(in_state(&home, "cancelled"), 3);
    assert!(
        home.jobs()
            .iter()
            .all(|job| (job["state"] == "succeeded") == (job["correlationId"] == other.as_str()))
    );
    // A person wants one of the cancelled jobs after all.
    let job = home
        .jobs()
        .into_iter()
        .find(|job| job["module"] == "two" && job["state"] == "cancelled")
        .unwrap();
    home.run(["job", "retry", job["id"].as_str().unwrap()]).well();
    wait_for("the job that was retried to succeed", || in_state(&home, "succeeded") == 4);
    assert_eq!(up.stop(), Some(0));
    home.run(["check"]).well();
    let unknown = home.run(["cancel", "none"]).failed();
    assert!(
        unknown.stderr.contains("there is no correlation and no event \"none\""),
        "{unknown:#?}"
    );
}

/// Writes a pipeline of two branches and a module that gathers both.
fn branches(home: &Home, go: &Path) -> PathBuf {
    home.program(
        "fan",
        "#!/bin/sh\nset -e\nfor n in 1 2; do echo \"{\\\"eventType\\\":\\\"piece\\\",\\\"n\\\":$n}\" > /ion/out/events/$n; done\n",
    );
    home.program(
        "work",
        &format!(
            "#!/bin/sh\nset -e\nuntil [ -e {}.$(cat /ion/in/meta/n) ]; do sleep 0.05; done\n\
             echo '{{\"eventType\":\"done\"}}' > /ion/out/events/e\n",
            go.display()
        ),
    );
    home.program("sum", "#!/bin/sh\ngrep -o '\"done\"' /ion/in/events.json | wc -l\n");
    home.write(
        "pipeline.yaml",
        "modules:\n  fan: {on: [go], emits: [piece], run: [./fan]}\n  work: {on: [piece], emits: [done], run: [./work]}\n  \
         sum: {gather: done, per: go, run: [./sum]}\n",
    )
}

#[test]
fn a_branch_is_cancelled_and_what_gathers_says_so() {
    let home = Home::new();
    let go = home.path().join("go");
    let file = branches(&home, &go);
    let up = home.up(&file);
    create(&home, &["go"]);
    wait_for("both branches to run", || of(&home.jobs(), "work", "running") == 2);
    let sum = || home.jobs().into_iter().find(|job| job["module"] == "sum").unwrap();
    wait_for("the record to say what the gathering job waits for", || {
        sum()["waitsFor"]["open"] == 2
    });
    let waits_for = &sum()["waitsFor"];
    assert_eq!(waits_for["named"][0]["module"], "work", "{waits_for}");
    let traced = home.run(["trace"]).well().stdout;
    assert!(traced.contains("· waits for work ") && traced.contains("(running)"), "{traced}");
    assert!(traced.contains("waits for module \"work\" (2 running)"), "{traced}");
    let pieces: Vec<Value> =
        home.trace().into_iter().filter(|one| one["type"] == "piece").collect();
    let branch = pieces.iter().find(|piece| piece["data"][0]["value"] == "1").unwrap()["id"]
        .as_str()
        .unwrap();
    let said = home.run(["cancel", branch]).well();
    assert!(said.stdout.contains("1 running job stopped"), "{said:#?}");
    assert_eq!(
        (of(&home.jobs(), "work", "cancelled"), of(&home.jobs(), "work", "running")),
        (1, 1)
    );
    std::fs::write(format!("{}.2", go.display()), "").unwrap();
    wait_for("the gathering job to succeed", || sum()["state"] == "succeeded");
    assert_eq!(home.run(["job", "logs", sum()["id"].as_str().unwrap()]).well().stdout, "1\n");
    assert_eq!(sum()["waitsFor"], Value::Null);
    assert_eq!(sum()["without"]["jobs"].as_array().unwrap().len(), 1, "{:#}", sum());
    let traced = home.run(["trace"]).well().stdout;
    assert!(traced.contains("began without what 1 job would have made"), "{traced}");
    assert!(!traced.contains("which was run again since"), "{traced}");
    // A person wants the branch after all. The gathering job has begun without it, and Ion says so.
    std::fs::write(format!("{}.1", go.display()), "").unwrap();
    let job = home.jobs().into_iter().find(|job| job["state"] == "cancelled").unwrap();
    let retried = home.run(["job", "retry", job["id"].as_str().unwrap()]).well();
    assert!(retried.stderr.contains("of sum has begun without it"), "{retried:#?}");
    wait_for("the branch to succeed", || of(&home.jobs(), "work", "succeeded") == 2);
    let traced = home.run(["trace"]).well().stdout;
    assert!(
        traced.contains("which was run again since: its results lack the new ones"),
        "{traced}"
    );
    assert_eq!(up.stop(), Some(0));
}

/// A dead job holds a gathering job back. The gathering job's record says so, and the trace says
/// how to go on.
#[test]
fn a_gathering_that_is_held_back_names_the_dead_job() {
    let home = Home::new();
    let file = home.write(
        "pipeline.yaml",
        "modules:\n  bad: {on: [go], emits: [done], run: [\"false\"], retries: 0}\n  all: {gather: done, per: go, run: [\"true\"]}\n",
    );
    let up = home.up(&file);
    home.run(["event", "create", "go", "--wait"]).failed();
    let all = || home.jobs().into_iter().find(|job| job["module"] == "all").unwrap();
    wait_for("the record to name the dead job", || {
        all()["waitsFor"]["dead"] == 1 && all()["waitsFor"]["open"] == 0
    });
    let traced = home.run(["trace"]).well().stdout;
    assert!(
        traced.contains("· waits until it is retried or dropped (`ion dead`): bad "),
        "{traced}"
    );
    // A mount shows the record.
    let tree = home.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    let mut mount = home.ion().arg("mount").arg(&tree).spawn().unwrap();
    let seen = || {
        let mut shown = Command::new("sh");
        shown.args(["-c", "cat correlations/*/*/*/jobs/all/job.json"]).current_dir(&tree);
        shown.output().unwrap().stdout
    };
    wait_for("the mount to show the record", || !seen().is_empty());
    let record: Value = serde_json::from_slice(&seen()).unwrap();
    assert_eq!(record["waitsFor"]["named"][0]["state"], json!(JobState::Dead), "{record:#}");
    signal(mount.id(), "TERM");
    assert!(mount.wait().unwrap().success());
    assert_eq!(up.stop(), Some(0));
}

/// The command dies when it has only just begun to cancel. A dispatcher finishes the cancellation.
#[test]
fn what_a_killed_command_has_begun_to_cancel_is_cancelled_by_a_dispatcher() {
    let home = Home::new();
    let file = circle(&home);
    home.run(["module", "create", "--pipeline", file.to_str().unwrap()]).well();
    let (_, correlation) = create(&home, &["a"]);
    let killed = home.run_with(&[("ION_FAILPOINTS", "cancel.begun=1")], ["cancel", &correlation]);
    assert_eq!(killed.code, None, "{killed:#?}");
    assert_eq!(home.jobs().len(), 0);
    let up = home.up(&file);
    // The event `a` was for `ping` before the cancellation, so `ping` runs once. The event that
    // `ping` commits starts nothing.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let url = StoreUrls::embedded(&home.state()).documents;
    let registry = || {
        let read = async { Registry::read(&open_documents(&url).await.unwrap()).await.unwrap() };
        runtime.block_on(read)
    };
    assert_eq!(registry().cancel_orders().count(), 1);
    wait_for("the cancellation to end", || registry().cancel_orders().count() == 0);
    let events = home.trace();
    assert!(in_state(&home, "running") + in_state(&home, "queued") == 0, "{events:#?}");
    assert!(events.iter().any(|event| event["cancelled"] == true), "{events:#?}");
    assert!(
        home.run(["trace"])
            .well()
            .stdout
            .contains("committed during a cancellation: it starts nothing")
    );
    // Events that are created after the cancellation start jobs again.
    create(&home, &["b", "--correlation", &correlation]);
    wait_for("the later event's jobs to succeed", || in_state(&home, "succeeded") > 4);
    home.run(["cancel", &correlation]).well();
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn a_correlation_and_an_event_are_cancelled_over_http() {
    let home = Home::new();
    home.program("hold", "#!/bin/sh\nexec sleep 600\n");
    let file = home.write("pipeline.yaml", "modules:\n  hold: {on: [go], run: [./hold]}\n");
    let up = home.up_with(&["--gateway", "127.0.0.1:0"], &file);
    let address = address(&up);
    for of_event in [false, true] {
        let (event, correlation) = create(&home, &["go"]);
        wait_for("the job to run", || in_state(&home, "running") == 1);
        let path = match of_event {
            true => format!("/events/{event}/cancel?wait=30s"),
            false => format!("/correlations/{correlation}/cancel?wait=30s"),
        };
        let said = request(&address, "POST", &path, &[], b"").says(200);
        assert_eq!((&said["ended"], &said["done"]["stopped"]), (&json!(true), &json!(1)), "{said}");
        assert_eq!(in_state(&home, "running"), 0);
    }
    assert_eq!(request(&address, "POST", "/correlations/none/cancel", &[], b"").status, 404);
    assert_eq!(request(&address, "POST", "/events/none/cancel", &[], b"").status, 404);
    assert_eq!(get(&address, "/events/none/cancel").status, 405);
    assert_eq!(up.stop(), Some(0));
}

/// The lineage is as deep as older Ion could make it, and has 15,000 jobs. `ion trace` neither
/// recurses nor takes time that grows with the square of the depth.
#[test]
fn a_trace_of_a_deep_lineage_is_shown_to_its_end() {
    const DEEP: usize = 15_000;
    let home = Home::new();
    std::fs::create_dir(home.state()).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let documents = open_documents(&StoreUrls::embedded(&home.state()).documents).await.unwrap();
        let event = |n: usize| {
            let parent = if n == 0 { String::new() } else { format!("e{}", n - 1) };
            let context = json!({"name": "m", "eventId": format!("e{n}"), "correlationId": "c", "parentEventId": parent, "documentType": "eventMeta"});
            let job = if n == 0 { Value::Null } else { json!(format!("j{}", n - 1)) };
            json!({"id": format!("e{n}"), "context": context, "type": "a", "created": n, "publication": "published", "expectedBy": ["m"], "jobId": job})
        };
        let job = |n: usize| {
            json!({
                "id": format!("j{n}"), "version": 1, "module": "m", "eventId": format!("e{n}"), "eventType": "a",
                "correlationId": "c", "state": "succeeded", "attempt": 1, "due": 0, "created": n,
            })
        };
        for some in (0..DEEP).collect::<Vec<_>>().chunks(500) {
            let all = some.iter().flat_map(|&n| [(Collection::Events, event(n)), (Collection::Jobs, job(n))]);
            documents.insert_all(all.collect(), None, Durability::WithNextSync).await.unwrap();
        }
        documents.sync().await.unwrap();
    });
    let traced = home.run(["trace", "c", "--all"]).well().stdout;
    assert_eq!(traced.lines().count(), 2 * DEEP + 2);
    assert!(traced.contains(&format!("└─ [{}] ", 2 * DEEP)), "{}", &traced[traced.len() - 300..]);
    assert!(
        traced.contains("15000 events, 15000 jobs: succeeded in "),
        "{}",
        &traced[traced.len() - 300..]
    );
}
