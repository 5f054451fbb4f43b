//! Shows that every event reaches each module that was registered when the event was committed,
//! whatever clocks, operators and brokers do. The tests use the embedded stores, and RabbitMQ with
//! a MongoDB-compatible store.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::chains::address;
use crate::support::http::request;
use crate::support::servers::{Env, Mongo, Rabbit};
use crate::support::{Home, faketime, wait_for, wait_up_to};
use ionfs::event::{Context, DocumentType, Message};
use ionfs::id::{CorrelationId, EventId};
use ionfs::stores::open::StoreUrls;
use ionfs::stores::{DataPlane, Routed};
use serde_json::Value;

/// The flags for a short lease. When an event has been unclaimed for a lease, a dispatcher sends
/// its message again.
const FAST: [&str; 2] = ["--lease", "2s"];

fn pipeline(home: &Home, name: &str, modules: &str) -> PathBuf {
    home.write(name, format!("modules:\n{modules}"))
}

/// Returns how many jobs of a module have succeeded.
fn succeeded(home: &Home, module: &str) -> usize {
    let of = |job: &&Value| job["module"] == module && job["state"] == "succeeded";
    home.jobs().iter().filter(of).count()
}

fn create(home: &Home, event_type: &str) {
    home.run(["event", "create", event_type]).well();
}

fn findings(home: &Home, flags: &[&str]) -> Vec<String> {
    let ran = home.run([&["--json", "check"], flags].concat());
    let report: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{ran:#?}"));
    report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| finding["what"].to_string())
        .collect()
}

fn in_plane<T>(home: &Home, act: impl AsyncFnOnce(DataPlane) -> T) -> T {
    let url = |name: &str| home.env.iter().find(|(key, _)| key == name).map(|(_, url)| url.clone());
    let embedded = format!("sqlite://{}", home.state().join("ion.db").display());
    let urls = StoreUrls {
        blobs: format!("file://{}", home.state().join("blobs").display()),
        documents: url("ION_DOCUMENTS").unwrap_or_else(|| embedded.clone()),
        bus: url("ION_BUS").unwrap_or(embedded),
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async { act(ionfs::stores::open::open(&urls).await.unwrap()).await })
}

/// Deletes a module's queue, as an operator does.
fn delete_queue(home: &Home, module: &str) {
    in_plane(home, async |plane| plane.bus.remove_queue(module).await.unwrap());
}

/// An operator deletes a module's queue with messages in it, and another event is created while
/// there is no queue.
fn a_deleted_queue_loses_no_event(home: &Home) {
    let file = pipeline(home, "p.yaml", "  work: {on: [go], run: [\"true\"]}\n");
    home.run(["module", "create", "--pipeline", file.to_str().unwrap()]).well();
    (0..3).for_each(|_| create(home, "go"));
    assert_eq!(findings(home, &[]), [""; 0], "the events wait in the queue");
    delete_queue(home, "work");
    create(home, "go");
    let found = findings(home, &[]);
    assert_eq!(found.len(), 4, "{found:?}");
    assert!(
        found[0].contains("is for module \\\"work\\\", which has no job of it and no message"),
        "{found:?}"
    );
    let up = home.up_with(&FAST, &file);
    wait_for("the events of the deleted queue and the later event", || {
        succeeded(home, "work") == 4
    });
    // The operator deletes the queue while a dispatcher serves it.
    delete_queue(home, "work");
    (0..3).for_each(|_| create(home, "go"));
    wait_for("the events that were created without a queue", || succeeded(home, "work") == 7);
    assert_eq!(up.stop(), Some(0));
    assert_eq!(home.jobs().len(), 7, "each event has one job");
    assert_eq!(findings(home, &[]), [""; 0]);
}

#[test]
fn a_deleted_queue_loses_no_event_of_the_embedded_plane() {
    a_deleted_queue_loses_no_event(&Home::new());
}

#[test]
fn a_deleted_queue_of_a_broker_loses_no_event() {
    let (rabbit, mongo) = (Rabbit::start(), Mongo::start());
    let mut home = Home::new();
    let env: Env =
        vec![("ION_BUS".into(), rabbit.url.clone()), ("ION_DOCUMENTS".into(), mongo.url.clone())];
    home.env.extend(env);
    a_deleted_queue_loses_no_event(&home);
}

/// An operator deletes the queue between its first and its last binding.
#[test]
fn a_queue_may_be_deleted_while_it_is_declared() {
    let (rabbit, mongo) = (Rabbit::start(), Mongo::start());
    let mut home = Home::new();
    let env: Env =
        vec![("ION_BUS".into(), rabbit.url.clone()), ("ION_DOCUMENTS".into(), mongo.url.clone())];
    home.env.extend(env);
    let file = pipeline(&home, "p.yaml", "  work: {on: [go, come], run: [\"true\"]}\n");
    let words = ["module", "create", "--pipeline", file.to_str().unwrap()];
    std::thread::scope(|scope| {
        // The command waits for some seconds between the two bindings.
        let creating = scope
            .spawn(|| home.run_with(&[("ION_DELAYPOINTS", "queue.binding=6000000")], words).well());
        in_plane(&home, async |plane| {
            let message = Message {
                event_type: "go".into(),
                context: Context {
                    name: "test".into(),
                    event_id: EventId::random(),
                    correlation_id: CorrelationId::random(),
                    parent_event_id: String::new(),
                    document_type: DocumentType::EventMeta,
                },
            };
            while plane.bus.publish(&message).await.ok() != Some(Routed::To(1)) {
                assert!(!creating.is_finished(), "the queue is bound before the command has ended");
            }
            plane.bus.remove_queue("work").await.unwrap();
        });
        assert!(!creating.is_finished(), "the queue is deleted while the command still runs");
        creating.join().unwrap();
    });
    let up = home.up(&file);
    create(&home, "go");
    wait_for("the event's job to succeed", || succeeded(&home, "work") == 1);
    assert_eq!(up.stop(), Some(0));
}

/// However many messages a deleted queue held, a dispatcher sends them again together, and not one
/// by one.
#[test]
fn all_that_a_deleted_queue_held_is_sent_again_together() {
    const EVENTS: usize = 40;
    let home = Home::new();
    let file = pipeline(&home, "p.yaml", "  work: {on: [go], run: [\"true\"]}\n");
    home.run(["module", "create", "--pipeline", file.to_str().unwrap()]).well();
    (0..EVENTS).for_each(|_| create(&home, "go"));
    delete_queue(&home, "work");
    let up = home.up_with(&FAST, &file);
    wait_for("the first job to succeed", || succeeded(&home, "work") > 0);
    // The dispatcher looks for unclaimed events each second.
    wait_up_to(Duration::from_secs(20), "all other jobs to succeed", || {
        succeeded(&home, "work") == EVENTS
    });
    assert_eq!(up.stop(), Some(0));
    assert_eq!(home.jobs().len(), EVENTS, "each event has one job");
}

/// A command that changes what a module subscribes to is killed, at any step. Until the change is
/// registered, events of the earlier type are for the module, and their messages reach it.
fn a_change_that_was_cut_short_takes_no_message_away(home: &Home) {
    let before = pipeline(home, "before.yaml", "  work: {on: [go], run: [\"true\"]}\n");
    let after = pipeline(home, "after.yaml", "  work: {on: [come], run: [\"true\"]}\n");
    home.run(["module", "create", "--pipeline", before.to_str().unwrap()]).well();
    let served = home.start("dispatch", &[]);
    for at in ["module.declared", "module.defined"] {
        let words = ["module", "create", "--pipeline", after.to_str().unwrap()];
        let killed = home.run_with(&[("ION_FAILPOINTS", &format!("{at}=1"))], words);
        assert_eq!(killed.code, None, "{killed:#?}");
        let before = succeeded(home, "work");
        create(home, "go");
        // The message arrives long before the lease has passed, after which a dispatcher would send
        // it again.
        let came = || succeeded(home, "work") == before + 1;
        wait_up_to(
            Duration::from_secs(20),
            &format!("the job of an event that was created after a kill at {at}"),
            came,
        );
    }
    home.run(["module", "create", "--pipeline", after.to_str().unwrap()]).well();
    let before = succeeded(home, "work");
    create(home, "go");
    create(home, "come");
    wait_for("the job of the new type's event", || succeeded(home, "work") == before + 1);
    assert_eq!(served.stop(), Some(0));
    assert_eq!(home.jobs().len(), before + 1);
}

/// A person registers a module again while another person removes it. Afterwards the module is
/// registered, and its definition is there.
#[test]
fn a_module_that_is_registered_while_it_is_removed_is_whole() {
    let home = Home::new();
    let file = pipeline(&home, "p.yaml", "  work: {on: [go], run: [\"true\"]}\n");
    let register = ["module", "create", "--pipeline", file.to_str().unwrap()];
    home.run(register).well();
    let slowly = [("ION_DELAYPOINTS", "module.deleting=6000000")];
    std::thread::scope(|scope| {
        let removing = scope.spawn(|| home.run_with(&slowly, ["module", "delete", "work"]).well());
        wait_for("the module to be gone from the list", || {
            !home.run(["module", "list"]).well().stdout.contains("work")
        });
        home.run(register).well();
        assert!(
            !removing.is_finished(),
            "the module is registered before the other command has removed its definition"
        );
    });
    home.run(["module", "get", "work"]).well();
    let up = home.start("dispatch", &[]);
    home.run(["event", "create", "go", "--wait"]).well();
    assert_eq!((succeeded(&home, "work"), up.stop()), (1, Some(0)));
}

/// A dispatcher declares a queue again that somebody has deleted. Even so, no queue of a removed
/// module is left.
#[test]
fn a_module_that_is_deleted_while_it_is_served_leaves_no_queue() {
    let (rabbit, mongo) = (Rabbit::start(), Mongo::start());
    let mut home = Home::new();
    home.env =
        vec![("ION_BUS".into(), rabbit.url.clone()), ("ION_DOCUMENTS".into(), mongo.url.clone())];
    let file = pipeline(
        &home,
        "p.yaml",
        "  work: {on: [go], run: [\"true\"]}\n  other: {on: [go], run: [\"true\"]}\n",
    );
    home.run(["module", "create", "--pipeline", file.to_str().unwrap()]).well();
    let served = home.start("dispatch", &[]);
    home.run(["module", "delete", "work"]).well();
    wait_for("the dispatcher to notice that the module is removed", || {
        served.log().contains("is not registered any more")
    });
    let queues = || rabbit.ctl(&["list_queues", "--silent", "name"]);
    wait_for("the module's queue to be gone", || !queues().contains("ion.module.work"));
    create(&home, "go");
    wait_for("the other module's job to succeed", || succeeded(&home, "other") == 1);
    assert!(
        queues().contains("ion.module.other") && !queues().contains("ion.module.work"),
        "{}",
        queues()
    );
    assert_eq!(served.stop(), Some(0));
}

#[test]
fn a_change_that_was_cut_short_takes_no_message_of_the_embedded_plane_away() {
    a_change_that_was_cut_short_takes_no_message_away(&Home::new());
}

#[test]
fn a_change_that_was_cut_short_takes_no_message_of_a_broker_away() {
    let (rabbit, mongo) = (Rabbit::start(), Mongo::start());
    let mut home = Home::new();
    let env: Env =
        vec![("ION_BUS".into(), rabbit.url.clone()), ("ION_DOCUMENTS".into(), mongo.url.clone())];
    home.env.extend(env);
    a_change_that_was_cut_short_takes_no_message_away(&home);
}

#[test]
fn check_sends_what_a_queue_has_lost_again() {
    let home = Home::new();
    let file = pipeline(&home, "p.yaml", "  work: {on: [go], run: [\"true\"]}\n");
    home.run(["module", "create", "--pipeline", file.to_str().unwrap()]).well();
    create(&home, "go");
    delete_queue(&home, "work");
    assert_eq!(findings(&home, &["--repair"]).len(), 1);
    assert_eq!(findings(&home, &[]), [""; 0], "the event waits in the queue again");
    let up = home.up(&file);
    wait_for("the job to succeed", || succeeded(&home, "work") == 1);
    assert_eq!(up.stop(), Some(0));
}

/// Two dispatchers are started with two definitions of one module. Both use the registered
/// definition.
#[test]
fn two_definitions_of_one_name_lose_no_event() {
    let home = Home::new();
    let a = pipeline(
        &home,
        "a.yaml",
        "  report: {on: [a], run: [sh, -c, 'test $WHICH = 2'], env: {WHICH: \"1\"}}\n",
    );
    let b = pipeline(
        &home,
        "b.yaml",
        "  report: {on: [a, b], run: [sh, -c, 'test $WHICH = 2'], env: {WHICH: \"2\"}}\n",
    );
    let first = home.up(&a);
    let second = home.on_another_host();
    second.write("b.yaml", std::fs::read(&b).unwrap());
    let other = second.up(&b);
    wait_for("the first dispatcher to learn of the other definition", || {
        first.log().contains("module \"report\" has changed")
    });
    for _ in 0..5 {
        create(&home, "a");
        create(&home, "b");
    }
    wait_for("the jobs of all events", || succeeded(&home, "report") == 10);
    assert_eq!(home.jobs().len(), 10);
    wait_for("the dispatcher to say that the module had another definition", || {
        other.log().contains("was registered with another definition")
    });
    assert_eq!(first.stop(), Some(0));
    assert_eq!(other.stop(), Some(0));
}

/// An event that was for a module stays for it when the module subscribes to another type, and
/// starts nothing when the module is removed.
#[test]
fn modules_may_change_and_go_while_events_wait_for_them() {
    let home = Home::new();
    let before = "  work: {on: [go], emits: [done], run: [\"true\"]}\n  old: {on: [go], run: [\"true\"]}\n  all: {gather: done, per: go, run: [\"true\"]}\n";
    let file = pipeline(&home, "p.yaml", before);
    home.run(["module", "create", "--pipeline", file.to_str().unwrap()]).well();
    create(&home, "go");
    // From now on `old` has another name, and `work` subscribes to another type.
    let after = "  work: {on: [come], emits: [done], run: [\"true\"]}\n  new: {on: [go], run: [\"true\"]}\n  all: {gather: done, per: go, run: [\"true\"]}\n";
    let file = pipeline(&home, "p.yaml", after);
    let up = home.up_with(&FAST, &file);
    wait_for("the job of the earlier event", || succeeded(&home, "work") == 1);
    let told = up.log();
    assert!(
        told.contains(
            "module \"old\" is registered and not in the file any more (1 event waits for it)"
        ),
        "{told}"
    );
    wait_for("the gathering job to wait", || {
        home.jobs().iter().any(|job| job["module"] == "all" && job["state"] == "waiting")
    });
    let cure = "serves module \"old\": start one with `ion up`, or give the module up with `ion module delete old`";
    let mut traced = String::new();
    // The record says for some seconds that the job waits for `work`, if that was the first look.
    wait_for("the gathering job to say what it waits for", || {
        traced = home.run(["trace"]).well().stdout;
        traced.contains("· waits for old ") && traced.contains("(not claimed yet)")
    });
    assert!(traced.contains(cure), "{traced}");
    let checked = home.run(["check"]).well().stderr;
    assert!(
        checked.contains("1 event waits for module \"old\", which no dispatcher serves"),
        "{checked}"
    );
    assert_eq!(up.stop(), Some(0));
    let up = home.up_with(&[&FAST[..], &["--drop-missing"]].concat(), &file);
    wait_for("the gathering job to succeed", || succeeded(&home, "all") == 1);
    assert!(
        up.log().contains("module \"old\" is not in the file any more and is removed"),
        "{}",
        up.log()
    );
    create(&home, "come");
    create(&home, "go");
    wait_for("the jobs of the modules that the events are for now", || {
        succeeded(&home, "new") == 1 && succeeded(&home, "work") == 2
    });
    wait_for("the second gathering job to succeed", || succeeded(&home, "all") == 2);
    assert_eq!(up.stop(), Some(0));
    assert_eq!(home.jobs().len(), 5);
    // `old` is registered again, and receives the events that are created from now on.
    let file = pipeline(&home, "p.yaml", before);
    let up = home.up_with(&[&FAST[..], &["--drop-missing"]].concat(), &file);
    create(&home, "go");
    wait_for("the job of the module that was registered again", || succeeded(&home, "old") == 1);
    wait_for("the other modules' jobs", || {
        succeeded(&home, "all") == 3 && succeeded(&home, "work") == 3
    });
    assert_eq!(up.stop(), Some(0));
    assert_eq!(
        succeeded(&home, "old"),
        1,
        "the module does not receive the event that was for its earlier registration"
    );
}

/// A process is killed in the middle of a registration. Until the module is registered, no event is
/// for it, and the gathering job does not wait for it.
#[test]
fn a_registration_that_was_cut_short_is_none() {
    let home = Home::new();
    home.program("fan", "#!/bin/sh\necho '{\"eventType\":\"piece\"}' > /ion/out/events/p\n");
    let modules = "  fan: {on: [go], emits: [piece], run: [./fan]}\n  all: {gather: piece, per: go, run: [\"true\"]}\n";
    let file = pipeline(&home, "p.yaml", modules);
    let only = |module| [&[file.to_str().unwrap(), "--module", module], &FAST[..]].concat();
    let up = home.start("dispatch", &only("all"));
    for at in ["module.declared=1", "module.defined=1"] {
        let words = [&["dispatch"], &only("fan")[..]].concat();
        let killed = home.run_with(&[("ION_FAILPOINTS", at)], words);
        assert_eq!(killed.code, None, "{killed:#?}");
        let before = home.jobs().len();
        home.run(["event", "create", "go", "--wait"]).well();
        assert_eq!(home.jobs().len(), before + 1, "only the gathering job runs");
    }
    let other = home.on_another_host();
    let other = other.start("dispatch", &only("fan"));
    home.run(["event", "create", "go", "--wait"]).well();
    assert_eq!((succeeded(&home, "fan"), succeeded(&home, "all")), (1, 3));
    assert_eq!(home.jobs().len(), 4, "no earlier event starts a job later");
    assert_eq!(up.stop(), Some(0));
    assert_eq!(other.stop(), Some(0));
}

#[test]
fn what_is_run_by_hand_starts_that_module_and_no_other() {
    let home = Home::new();
    let file = pipeline(
        &home,
        "p.yaml",
        "  a: {on: [go], run: [\"true\"]}\n  b: {on: [go], run: [\"true\"]}\n",
    );
    let up = home.up_with(&FAST, &file);
    home.run(["run", "a", "--pipeline", file.to_str().unwrap()]).well();
    // If `ion run` had sent a message of its event, that message would stand in the queue before
    // the one of this event.
    home.run(["event", "create", "go", "--wait"]).well();
    assert_eq!(up.stop(), Some(0));
    assert_eq!((succeeded(&home, "a"), succeeded(&home, "b")), (2, 1));
}

/// Returns the environment of a command whose clock is off by `offset`.
fn clock_at(offset: &str) -> [(String, String); 3] {
    [
        ("LD_PRELOAD".into(), faketime()),
        ("FAKETIME".into(), offset.into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC".into(), "1".into()),
    ]
}

/// The clock was ahead or behind when the modules were registered. Even so, a gathering job misses
/// nothing below its event.
#[test]
fn a_clock_that_was_wrong_once_lets_no_gathering_run_early() {
    let fan = "echo '{\"eventType\":\"piece\"}' > /ion/out/events/1; echo '{\"eventType\":\"piece\"}' > /ion/out/events/2";
    for wrong in ["+1d", "+400d", "-400d"] {
        let mut home = Home::new();
        home.program("fan", &format!("#!/bin/sh\n{fan}\n"));
        home.program(
            "slow",
            "#!/bin/sh\nsleep 1\necho '{\"eventType\":\"done\"}' > /ion/out/events/e\n",
        );
        home.program("all", "#!/bin/sh\ntest $(ls /ion/in/data | wc -l) = 2\ngrep -o '\"done\"' /ion/in/events.json | wc -l | grep -qx 2\n");
        let modules = "  fan: {on: [go], emits: [piece], run: [./fan]}\n  slow: {on: [piece], emits: [done], run: [./slow]}\n  all: {gather: done, per: go, run: [./all], retries: 0}\n";
        let file = pipeline(&home, "p.yaml", modules);
        let right = home.env.clone();
        home.env.extend(clock_at(wrong));
        assert_eq!(home.up(&file).stop(), Some(0));
        home.env = right;
        let up = home.up_with(&FAST, &file);
        home.run(["event", "create", "go", "--wait"]).well();
        assert_eq!((succeeded(&home, "slow"), succeeded(&home, "all")), (2, 1), "{wrong}");
        assert_eq!(up.stop(), Some(0));
    }
}

/// A gateway whose clock is minutes off knows all the same which dispatcher serves a chain.
#[test]
fn a_gateway_whose_clock_is_off_finds_who_serves_a_chain() {
    let home = Home::new();
    home.program("link", "#!/bin/sh\ntr a-z A-Z\n");
    let file = pipeline(
        &home,
        "p.yaml",
        "  link: {on: [go], emits: [done], run: [./link], stdio: true}\n",
    );
    for off in ["+5m", "-5m"] {
        let up = home.up(&file);
        let mut other = home.on_another_host();
        other.env.extend(clock_at(off));
        let gateway = other.start("gateway", &["--listen", "127.0.0.1:0"]);
        let answer = request(&address(&gateway), "POST", "/chains/link", &[], b"loud");
        assert_eq!((answer.status, answer.text()), (200, "LOUD".to_owned()), "{off}");
        assert_eq!((gateway.stop(), up.stop()), (Some(0), Some(0)));
    }
}

/// The clock steps under a dispatcher that runs a job. The dispatcher keeps the job.
#[test]
fn a_clock_that_steps_takes_no_job_from_who_runs_it() {
    let mut home = Home::new();
    let go = home.path().join("go");
    home.program(
        "hold",
        &format!("#!/bin/sh\nuntil [ -e {}.$ION_EVENT_ID ]; do sleep 0.05; done\n", go.display()),
    );
    let file = pipeline(&home, "p.yaml", "  hold: {on: [go], run: [./hold], retries: 0}\n");
    let clock = home.write("clock", "+0");
    home.env.extend([
        ("LD_PRELOAD".into(), faketime()),
        ("FAKETIME_TIMESTAMP_FILE".into(), clock.display().to_string()),
        ("FAKETIME_NO_CACHE".into(), "1".into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC".into(), "1".into()),
    ]);
    let up = home.up_with(&FAST, &file);
    for step in ["+1h", "+400d", "-1d", "-400d", "+0"] {
        create(&home, "go");
        let running = |job: &Value| job["state"] == "running";
        wait_for("the job to run", || home.jobs().iter().any(running));
        home.write("clock", step);
        let job = home.jobs().into_iter().find(running).unwrap();
        let now = || home.jobs().into_iter().find(|now| now["id"] == job["id"]).unwrap();
        // The test waits for longer than the lease, and for longer than the time between two looks
        // at leases.
        for _ in 0..6 {
            let before = now()["version"].clone();
            wait_for("the lease to be renewed", || now()["version"] != before);
        }
        let now = now();
        assert_eq!(
            (&now["state"], &now["attempt"]),
            (&Value::from("running"), &Value::from(1)),
            "{step}: {now:#?}"
        );
        let event = job["eventId"].as_str().unwrap();
        std::fs::write(Path::new(&format!("{}.{event}", go.display())), "").unwrap();
        wait_for("the job to succeed", || {
            home.jobs().iter().any(|now| now["id"] == job["id"] && now["state"] == "succeeded")
        });
    }
    assert_eq!(up.stop(), Some(0));
}
