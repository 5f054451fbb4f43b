//! Correlations of more events and jobs than Ion keeps of one anywhere: they are gathered, waited for,
//! and read over HTTP part by part.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

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

/// So many events that the gathering job is given a list in a blob: it has each of them once, in
/// the order of their commits and ids, although the dispatcher stops before everything has ended.
#[test]
fn a_gathering_of_two_thousand_events_has_all_of_them_in_order_after_a_restart() {
    const EVENTS: usize = 2000;
    let home = Home::new();
    home.program(
        "split",
        "#!/bin/sh\nset -e\ni=0; while [ $i -lt 2000 ]; do f=; [ $((i % 500)) = 7 ] && { mkdir /ion/out/data/$i; echo $i > /ion/out/data/$i/p; f=$i/p; }\necho '{\"eventType\":\"piece\",\"files\":\"'$f'\",\"i\":'$i'}' > /ion/out/events/$i; i=$((i + 1)); done\n",
    );
    home.program("slow", "#!/bin/sh\nuntil [ -e $GO ]; do sleep 0.05; done\n");
    // What it sees of each event agrees, whichever way it looks.
    home.program(
        "sum",
        "#!/bin/sh\nset -e\ncd /ion/in\ncp events.json /ion/out/data/list\nls data | wc -l > /ion/out/data/seen; ls events | wc -l >> /ion/out/data/seen\ncat events/1999/meta/i events/0/meta/i > /ion/out/data/ends\n(cd data; grep -r . .) > /ion/out/data/files\n[ ! -e data/2000 ]; [ ! -e data/007 ]\necho '{\"eventType\":\"sum\",\"files\":[\"list\",\"seen\",\"ends\",\"files\"]}' > /ion/out/events/sum\n",
    );
    let go = home.path().join("go");
    let file = home.write(
        "pipeline.yaml",
        format!(
            "modules:\n  split: {{on: [start], emits: [piece], run: [./split]}}\n  slow: {{on: [start], run: [./slow], env: {{GO: {}}}}}\n  sum: {{gather: piece, per: start, emits: [sum], run: [./sum], retries: 0}}\n",
            go.display()
        ),
    );
    let up = home.up(&file);
    home.run(["event", "create", "start"]).well();
    let state_of = |module: &str| -> String {
        let jobs = home.jobs();
        let job = jobs.iter().find(|job| job["module"] == module);
        job.map_or("none", |job| job["state"].as_str().unwrap()).to_owned()
    };
    wait_for("all pieces to be committed", || state_of("split") == "succeeded");
    assert_eq!(up.stop(), Some(0));
    let up = home.up(&file);
    wait_for("`slow` to run again", || state_of("slow") == "running");
    assert_eq!(state_of("sum"), "waiting");
    std::fs::write(&go, "").unwrap();
    wait_for("`sum` to end", || ["succeeded", "dead"].contains(&&*state_of("sum")));
    assert_eq!(state_of("sum"), "succeeded", "{:?}", home.jobs());
    let trace = home.trace();
    let sum = trace.iter().find(|document| document["type"] == "sum").unwrap();
    let blob = |n: usize| {
        let key = sum["files"][n]["key"].as_str().unwrap();
        std::fs::read_to_string(home.state().join("blobs").join(key)).unwrap()
    };
    let mut pieces: Vec<&Value> =
        trace.iter().filter(|document| document["type"] == "piece").collect();
    pieces.sort_by_key(|piece| (piece["created"].as_i64(), piece["id"].as_str()));
    let listed: Vec<Value> = serde_json::from_str(&blob(0)).unwrap();
    let ids: Vec<&Value> = listed.iter().map(|event| &event["context"]["eventId"]).collect();
    assert_eq!(ids, pieces.iter().map(|piece| &piece["id"]).collect::<Vec<_>>());
    assert_eq!(listed.len(), EVENTS);
    assert_eq!(blob(1), "2000\n2000\n");
    let value = |n: usize| pieces[n]["data"][0]["value"].as_str().unwrap();
    assert_eq!(blob(2), format!("{}{}", value(EVENTS - 1), value(0)));
    let mut files: Vec<String> = blob(3).lines().map(str::to_owned).collect();
    let place = |i: &str| (0..EVENTS).find(|n| value(*n) == i).unwrap();
    let mut expected: Vec<String> =
        ["7", "507", "1007", "1507"].iter().map(|i| format!("./{}/{i}/p:{i}", place(i))).collect();
    files.sort();
    expected.sort();
    assert_eq!(files, expected);
    assert_eq!(up.stop(), Some(0));
    // Of the list's two blobs the one stays that the event names, because `cp` has moved a reference.
    let lists = || {
        let found = Command::new("find").arg(home.state().join("blobs")).output().unwrap();
        let found = String::from_utf8(found.stdout).unwrap();
        found.lines().filter(|line| line.contains(".gathered-")).map(str::to_owned).collect()
    };
    let before: Vec<String> = lists();
    assert!(before.iter().any(|path| path.ends_with("places")), "{before:?}");
    home.run(["gc", "--grace", "0s"]).well();
    let after: Vec<String> = lists();
    assert!(after.iter().any(|path| path.ends_with("events.json")), "{after:?}");
    assert!(!after.iter().any(|path| path.ends_with("places")), "{after:?}");
    assert_eq!(serde_json::from_str::<Vec<Value>>(&blob(0)).unwrap().len(), EVENTS);
}
