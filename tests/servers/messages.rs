//! Shows what Ion does with messages that any client of the broker may send: a message that names
//! nothing a job could work on becomes a dead letter at once. The tests use SQLite and RabbitMQ as
//! the bus.

use std::time::{Duration, Instant};

use ionfs::event::{Event, PublicationState};
use ionfs::id::EventId;
use ionfs::stores::open::{StoreUrls, open};
use ionfs::stores::testing::message;
use ionfs::stores::{Collection, DataPlane, Durability, encode};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::support::servers::Rabbit;
use crate::support::{Home, wait_for};

/// Returns a document of the collection of events.
fn document(id: &str, publication: &str) -> Value {
    json!({
        "id": id, "type": "start", "files": [], "data": [], "created": 1, "publication": publication,
        "context": {"name": "test", "eventId": id, "correlationId": "c", "parentEventId": "", "documentType": "eventMeta"},
    })
}

/// Shows on this bus that messages which name no event become dead letters at once, with their
/// reasons, and hold up no other message.
fn buries_what_names_no_event(home: &Home, runtime: &Runtime, plane: &DataPlane) {
    home.program("work", "#!/bin/sh\necho works\n");
    let file = home.write(
        "pipeline.yaml",
        "modules:\n  work: {on: [start], run: [./work], retries: 0, concurrency: 1}\n",
    );
    let up = home.up_with(&["--jobs", "1"], &file);
    let mut insight = document("an-insight", "published");
    insight["context"]["documentType"] = json!("insight");
    let mut endless = document("endless-correlation", "published");
    endless["context"]["correlationId"] = json!("c".repeat(100_000));
    let malformed = json!({"id": "malformed", "context": {"documentType": "eventMeta"}, "files": "x".repeat(100_000)});
    let begun = Instant::now();
    runtime.block_on(async {
        for document in [insight, endless, malformed] {
            plane
                .documents
                .insert(Collection::Events, document, None, Durability::Now)
                .await
                .unwrap();
        }
        let long = "i".repeat(100_000);
        for id in ["an-insight", "endless-correlation", "malformed", "nobody", long.as_str()] {
            plane.bus.send("work", &message("start", id)).await.unwrap();
        }
    });
    home.run(["event", "create", "start", "--wait"]).well();
    // The module runs one job at a time, so a message that the dispatcher tried for long would hold
    // up the event.
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert_eq!(home.jobs().len(), 1, "only the event has started a job");
    let mut letters = String::new();
    wait_for("the dead letters to be there", || {
        letters = home.run(["dead", "list"]).stdout;
        letters.lines().filter(|line| line.contains(" for work: ")).count() == 5
    });
    for why in [
        "insight",
        "is malformed",
        "not in the document store",
        "too long for an id",
        "more bytes) is too long",
    ] {
        assert!(letters.contains(why), "{why}: {letters}");
    }
    assert!(letters.len() < 8 << 10 && up.log().len() < 64 << 10, "{letters:.3000}");
    assert_eq!(up.stop(), Some(0));
}

/// Shows on this bus that a message which names a staged event starts nothing. The event starts its
/// job once it is visible.
fn waits_for_what_is_staged(home: &Home, runtime: &Runtime, plane: &DataPlane) {
    home.program(
        "make",
        &format!(
            "#!/bin/sh\necho '{{\"eventType\":\"made\"}}' > /ion/out/events/e.json\n\
             while [ ! -e {} ]; do sleep 0.05; done\n",
            home.path().join("go").display()
        ),
    );
    home.program("take", "#!/bin/sh\necho took\n");
    let file = home.write(
        "pipeline.yaml",
        "modules:\n  make: {on: [begin], emits: [made], run: [./make], commit: on-success}\n  take: {on: [made], run: [./take]}\n",
    );
    let up = home.up(&file);
    home.run(["event", "create", "begin", "--id", "first"]).well();
    let id = EventId::derive(&EventId::new("first"), "make", "e.json");
    let staged = || -> Option<Event> {
        let found = runtime.block_on(plane.documents.get(Collection::Events, id.as_str())).unwrap();
        found.map(|document| serde_json::from_value(document).unwrap())
    };
    wait_for("the event to be staged", || staged().is_some());
    let event = staged().unwrap();
    assert_eq!(event.publication, PublicationState::Staged);
    runtime.block_on(plane.bus.send("take", &event.message())).unwrap();
    wait_for("the message to be refused", || up.log().contains("only staged"));
    assert!(home.jobs().iter().all(|job| job["module"] == "make"), "{:#?}", home.jobs());
    home.write("go", "");
    wait_for("the event to start its job", || {
        home.jobs().iter().any(|job| job["module"] == "take" && job["state"] == "succeeded")
    });
    assert_eq!(home.jobs().len(), 2);
    assert_eq!(encode(&staged().unwrap())["publication"], "published");
    home.run(["check", "--deep"]).well();
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn a_message_that_names_no_event_is_dead_at_once_and_a_staged_one_has_to_wait() {
    let runtime = Runtime::new().unwrap();
    for body in [buries_what_names_no_event, waits_for_what_is_staged] {
        let home = Home::new();
        let plane = runtime.block_on(open(&StoreUrls::embedded(&home.state()))).unwrap();
        body(&home, &runtime, &plane);
    }
}

#[test]
fn on_rabbitmq_a_message_that_names_no_event_is_dead_at_once_and_a_staged_one_has_to_wait() {
    let rabbit = Rabbit::start();
    let runtime = Runtime::new().unwrap();
    type Body = fn(&Home, &Runtime, &DataPlane);
    let bodies: [(&str, Body); 2] =
        [("buries", buries_what_names_no_event), ("waits", waits_for_what_is_staged)];
    for (name, body) in bodies {
        let bus = rabbit.virtual_host(name);
        let mut home = Home::new();
        home.env.push(("ION_BUS".into(), bus.clone()));
        let urls = StoreUrls { bus, ..StoreUrls::embedded(&home.state()) };
        let plane = runtime.block_on(open(&urls)).unwrap();
        body(&home, &runtime, &plane);
    }
}
