//! A correlation of more events and jobs than Ion keeps of one anywhere: it is gathered, waited for,
//! and read over HTTP part by part.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::support::cgroup::peak_mib;
use crate::support::chains::address;
use crate::support::http::get;
use crate::support::{Home, wait_for};
use ionfs::id::{EventId, JobId};
use ionfs::registry::Registry;
use ionfs::stores::open::{StoreUrls, open};
use ionfs::stores::{Collection, Durability};
use serde_json::{Value, json};

/// The number of events that are gathered: more than an answer of the gateway has documents, and
/// than `--wait` prints lines.
const PARTS: usize = 10_500;

/// The correlation, and its first event.
const LARGE: &str = "large";

const INSERTED_AT_ONCE: usize = 1000;

fn event(id: &str, event_type: &str, parent: &str, n: usize) -> Value {
    let context = json!({
        "name": "t", "eventId": id, "correlationId": LARGE, "parentEventId": parent,
        "documentType": "eventMeta",
    });
    json!({
        "id": id, "context": context, "type": event_type, "files": [], "created": 1000 + n,
        "data": [{"key": "n", "value": n.to_string()}], "publication": "published",
        "depth": usize::from(!parent.is_empty()),
    })
}

fn job(event: &Value, module: &str, state: &str) -> Value {
    let id = EventId::new(event["id"].as_str().unwrap());
    json!({
        "id": JobId::derive(&id, module), "version": 1, "module": module, "eventId": id,
        "eventType": event["type"], "correlationId": LARGE, "state": state, "attempt": 0,
        "attempts": [], "due": 0, "term": 0, "created": event["created"],
    })
}

/// Fills the plane of a home with the events below one event, and with the jobs of `work` on them,
/// all of which have succeeded.
fn fill(home: &Home) {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let plane = open(&StoreUrls::embedded(&home.state())).await.unwrap();
        let version = Registry::read(&plane.documents).await.unwrap().version();
        let expected = |mut event: Value, module: &str| {
            event["expectedBy"] = json!([module]);
            event["registry"] = json!(version);
            event
        };
        let root = expected(event(LARGE, "start", "", 0), "sum");
        let mut documents =
            vec![(Collection::Jobs, job(&root, "sum", "waiting")), (Collection::Events, root)];
        for n in 0..PARTS {
            let part = expected(event(&format!("part-{n:07}"), "part", LARGE, n), "work");
            documents.push((Collection::Jobs, job(&part, "work", "succeeded")));
            documents.push((Collection::Events, part));
            if documents.len() >= INSERTED_AT_ONCE || n + 1 == PARTS {
                let all = std::mem::take(&mut documents);
                plane.documents.insert_all(all, None, Durability::Now).await.unwrap();
            }
        }
    });
}

fn pipeline(home: &Home) -> PathBuf {
    home.program(
        "sum",
        "#!/bin/sh\nset -e\ncp /ion/in/events.json /ion/out/data/list\ncat /ion/in/events/*499/meta/n > /ion/out/data/some\necho '{\"eventType\":\"sum\",\"files\":[\"list\",\"some\"]}' > /ion/out/events/sum\n",
    );
    home.write(
        "pipeline.yaml",
        "modules:\n  make: {on: [never], emits: [part], run: [\"true\"]}\n  work: {on: [part], run: [\"true\"]}\n  sum: {gather: part, per: start, emits: [sum], run: [./sum], retries: 0}\n  more: {on: [more], run: [\"true\"]}\n",
    )
}

#[test]
fn a_large_correlation_is_gathered_waited_for_and_read_part_by_part() {
    let home = Home::new();
    let file = pipeline(&home);
    assert_eq!(home.up(&file).stop(), Some(0));
    fill(&home);
    let up = home.up_with(&["--gateway", "127.0.0.1:0"], &file);
    let gathering = JobId::derive(&EventId::new(LARGE), "sum");
    let record = || -> Value {
        let shown = home.run(["--json", "job", "get", gathering.as_str()]).well().stdout;
        serde_json::from_str(&shown).unwrap()
    };
    wait_for("the gathering job to end", || {
        ["succeeded", "dead"].contains(&record()["state"].as_str().unwrap())
    });
    let record = record();
    let peak = peak_mib(up.pid());
    println!("peak memory of the dispatcher: {peak} MiB");
    // The documents alone would take more than this as records.
    assert!(peak < 150, "{peak} MiB");
    assert_eq!(record["state"], "succeeded", "{record:#}");
    let said = home.run(["event", "create", "more", "--correlation", LARGE, "--wait"]).well();
    assert!(said.stderr.contains("there are more than 10000 jobs"), "{said:?}");
    assert!(said.stdout.contains(&format!("{} events, {} jobs", PARTS + 3, PARTS + 2)), "{said:?}");
    // Each answer but the last one says by which path a client goes on.
    let address = address(&up);
    let mut path = format!("/correlations/{LARGE}");
    let mut documents = Vec::new();
    loop {
        let answer = get(&address, &path);
        assert_eq!(answer.header("ion-outcome"), Some("succeeded"));
        let link = answer.header("link").map(str::to_owned);
        documents.extend(answer.json().as_array().unwrap().clone());
        let Some(link) = link else { break };
        assert_eq!(documents.len() % 10_000, 0);
        path = link.strip_prefix('<').unwrap().split('>').next().unwrap().to_owned();
    }
    let ids: BTreeSet<&str> =
        documents.iter().map(|document| document["id"].as_str().unwrap()).collect();
    assert_eq!((ids.len(), documents.len()), (2 * PARTS + 5, 2 * PARTS + 5));
    assert_eq!(
        get(&address, "/correlations/large?after=nowhere").problem(400, "malformed")["status"],
        400
    );
    let sum = documents.iter().find(|document| document["type"] == "sum").unwrap();
    let blob = |n: usize| {
        let key = sum["files"][n]["key"].as_str().unwrap();
        std::fs::read_to_string(home.state().join("blobs").join(key)).unwrap()
    };
    let listed: Vec<Value> = serde_json::from_str(&blob(0)).unwrap();
    let expected = (0..PARTS).map(|n| format!("part-{n:07}"));
    let is_listed = |(event, id): (&Value, String)| event["context"]["eventId"] == id;
    assert!(listed.len() == PARTS && listed.iter().zip(expected).all(is_listed));
    let some = (0..PARTS).filter(|n| n % 1000 == 499);
    let mut texts: Vec<String> = some.map(|n| n.to_string()).collect();
    texts.sort();
    assert_eq!(blob(1), texts.concat());
    assert_eq!(up.stop(), Some(0));
}
