//! Tests of searches over HTTP, on the embedded stores and on a store of MongoDB's protocol.

use serde_json::Value;

use super::{gateway, text};
use crate::support::http::{get, request};
use crate::support::servers::Mongo;
use crate::support::{Home, RunningCommand};

/// Keeps what two pictures of a video show, and answers searches for it.
fn found_by_its_values(home: &Home) {
    home.program(
        "split",
        "#!/bin/sh\nfor n in 1 2; do echo \"{\\\"eventType\\\":\\\"frame\\\",\\\"n\\\":$n}\" > /ion/out/events/$n.json; done\n",
    );
    home.program(
        "detect",
        "#!/bin/sh\nn=$(cat /ion/in/meta/n)\n\
         echo \"{\\\"kind\\\":\\\"car\\\",\\\"score\\\":0.$n,\\\"n\\\":$n}\" > /ion/out/insights.json\n",
    );
    let file = home.write(
        "pipeline.yaml",
        "modules:\n  split: {on: [video], emits: [frame], run: [./split]}\n  detect: {on: [frame], run: [./detect]}\n",
    );
    let up: RunningCommand = home.up(&file);
    home.run(["event", "create", "video", "--id", "v", "--wait"]).well();
    let (daemon, at) = gateway(home, &[]);
    let find = |path: &str| -> Vec<Value> {
        let answer = get(&at, path);
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, Some("application/x-ndjson"))
        );
        answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let hits = find("/find/insights/detect?where=kind%3Dcar&where=score%3E%3D0.2&up=video");
    assert_eq!(hits.len(), 1, "{hits:#?}");
    assert_eq!((text(&hits[0]["above"], "id"), text(&hits[0]["data"][2], "value")), ("v", "2"));
    let both = find("/find/insights/detect?where=kind%3Dcar");
    assert_eq!(both.len(), 2);
    assert_eq!(find("/find/insights/detect?where=kind%3Dcar&limit=1")[..], both[..1]);
    let after = text(&both[0], "jobId");
    assert_eq!(
        find(&format!("/find/insights/detect?where=kind%3Dcar&after={after}"))[..],
        both[1..]
    );
    assert_eq!(find("/find/insights/detect?where=score%3C0.2").len(), 1);
    assert_eq!(find("/find/insights/nobody").len(), 0);
    assert_eq!(find("/find/events/frame?where=n%3D2").len(), 1);
    assert_eq!(find("/find/events/frame?until=5").len(), 0);
    for wrong in ["where=score%3E%3Dx", "wher=x", "limit=many", "limit=1&limit=2"] {
        request(&at, "GET", &format!("/find/insights/detect?{wrong}"), &[], b"")
            .problem(400, "malformed");
    }
    request(&at, "GET", "/find/insights/detect?after=x", &[], b"").problem(404, "not-found");
    assert_eq!((daemon.stop(), up.stop()), (Some(0), Some(0)));
}

#[test]
fn insights_and_events_are_found_by_their_values() {
    found_by_its_values(&Home::new());
}

#[test]
fn on_mongodb_insights_and_events_are_found_by_their_values_too() {
    let mongo = Mongo::start();
    let mut home = Home::new();
    home.env = vec![("ION_DOCUMENTS".to_owned(), mongo.url.clone())];
    found_by_its_values(&home);
    let listed = home.run(["job", "list", "--limit", "2"]).well();
    assert!(listed.stderr.contains("there are more rows: --before"), "{listed:#?}");
    let shown = home.run(["trace", "--summary"]).well().stdout;
    assert!(shown.contains("detect: 2 succeeded; the latest 2 took "), "{shown}");
    let tree = home.run(["trace"]).well().stdout;
    assert_eq!(tree.matches("└─").count() + tree.matches("├─").count(), 6, "{tree}");
}
