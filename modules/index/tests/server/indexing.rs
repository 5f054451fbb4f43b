//! What becomes of items when nothing fails.

use serde_json::{Value, json};

use crate::job::Job;
use crate::proxy::{Fault, Proxy};
use crate::search::{self, Names, ask};

fn item(n: u64, published: &str) -> Value {
    json!({"id": format!("urn:{n}"), "n": n, "title": format!("é\n{n}"), "published": published})
}

#[test]
fn items_of_every_file_are_in_the_index_of_their_own_date() {
    let names = Names::new();
    let p = &names.prefix;
    let job = Job::new();
    let items = [
        item(1, "2026-10-31T23:59:59Z"),
        item(2, "2026-11-01T01:00:00+02:00"),
        item(3, "Sun, 01 Nov 2026 00:00:00 GMT"),
        item(4, "one day"),
    ];
    job.write("in/data/0/items.ndjson", format!("{}\r\n\n{}", items[0], items[1]));
    job.write("in/data/1/item.json", serde_json::to_string_pretty(&items[2]).unwrap());
    job.write("in/data/2/item.json", items[3].to_string());
    job.write("in/data/2/page.html", "<html>");
    let (template, pattern) = (job.template(&names), format!("{p}-%Y.%m"));
    let alias = format!("{p}-all");
    let arguments = ["--index", &pattern, "--alias", &alias, "--template", &template];
    let ended = job.run(search::url(), &arguments);
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(ended.stdout.starts_with("4 items of \"test\": 4 created, 0 updated"), "{ended:?}");

    let documents = names.documents();
    let found: Vec<_> = documents.iter().map(|document| document.index.as_str()).collect();
    let index = |date: &str| format!("{p}-{date}");
    assert_eq!(found, [index("2026.10"), index("2026.10"), index("2026.11"), index("undated")]);
    for (document, item) in documents.iter().zip(&items) {
        assert_eq!(&document.source, item);
    }
    let (_, all) = ask("GET", &format!("{alias}/_count"), &Value::Null);
    assert_eq!(all["count"], 4);
    let (_, mapping) = ask("GET", &format!("{p}-2026.10/_mapping"), &Value::Null);
    let kind = mapping.pointer(&format!("/{p}-2026.10/mappings/properties/id/type"));
    assert_eq!(kind, Some(&json!("keyword")));
    let insights = job.json("out/insights.json");
    for (key, expected) in [("items", 4), ("created", 4), ("rejected", 0), ("indices", 3)] {
        assert_eq!(insights[key], expected, "{key} of {insights}");
    }
    assert_eq!(job.outputs(), ["insights.json"]);

    // Another run finds everything there, and changes nothing.
    let insights = job.run_well(search::url(), &arguments);
    assert_eq!((&insights["created"], &insights["alreadyThere"]), (&json!(0), &json!(4)));
    assert_eq!(names.documents(), documents);
}

#[test]
fn the_first_state_of_an_item_stays_unless_items_change() {
    let names = Names::new();
    let first = Job::with_lines([json!({"id": "a", "n": 1})]);
    first.run_well(search::url(), &["--index", &names.prefix]);
    let second = Job::with_lines([json!({"id": "a", "n": 2})]);
    let insights = second.run_well(search::url(), &["--index", &names.prefix]);
    assert_eq!((&insights["created"], &insights["alreadyThere"]), (&json!(0), &json!(1)));
    let documents = names.documents();
    assert_eq!((documents.len(), &documents[0].source["n"]), (1, &json!(1)));
}

#[test]
fn a_newer_state_replaces_an_older_one_and_never_the_other_way() {
    let names = Names::new();
    let state = |changed: &str, n: u64| json!({"id": "a", "n": n, "changed": changed});
    let put = |changed: &str, n: u64| {
        let job = Job::with_lines([state(changed, n)]);
        job.run_well(search::url(), &["--index", &names.prefix, "--updates-by", "changed"])
    };
    assert_eq!(put("2026-11-02T00:00:00Z", 1)["created"], 1);
    assert_eq!(put("2026-11-03T00:00:00Z", 2)["updated"], 1);
    assert_eq!(put("2026-11-01T00:00:00Z", 3)["alreadyThere"], 1);
    assert_eq!(put("2026-11-03T00:00:00Z", 2)["updated"], 1);
    let documents = names.documents();
    assert_eq!(documents.len(), 1);
    assert_eq!(documents[0].source, state("2026-11-03T00:00:00Z", 2));
    let expected: jiff::Timestamp = "2026-11-03T00:00:00Z".parse().unwrap();
    assert_eq!(documents[0].version, u64::try_from(expected.as_millisecond()).unwrap());
}

#[test]
fn the_same_id_of_two_sources_is_two_documents() {
    let names = Names::new();
    let job = Job::with_lines([json!({"id": "a", "n": 1})]);
    job.run_well(search::url(), &["--index", &names.prefix]);
    let other = Job::with_lines([json!({"id": "a", "n": 2})]);
    other.write("in/meta/source", "another");
    let mut command = crate::job::program();
    command.arg("--dir").arg(other.path("")).args([
        "--url",
        search::url(),
        "--index",
        &names.prefix,
    ]);
    let ended = command.output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(other.json("out/insights.json")["source"], "another");
    assert_eq!(names.documents().len(), 2);
}

#[test]
fn what_cannot_be_indexed_is_in_rejected_ndjson_with_an_event() {
    let names = Names::new();
    let job = Job::new();
    let lines = [
        r#"{"id": "good", "n": 1}"#.as_bytes(),
        br#"{"id": "bad", "n": "one"}"#,
        b"{\"n\": 2}",
        b"no JSON",
        b"[\"\xFF\"]",
        &[b"{\"id\": \"", "x".repeat(5000).as_bytes(), b"\"}"].concat(),
        br#"{"id": "last", "n": 2}"#,
    ];
    job.write("in/data/items.ndjson", lines.join(&b'\n'));
    let template = job.template(&names);
    let arguments = [
        ["--index", &names.prefix],
        ["--template", &template],
        ["--item-bytes", "4KiB"],
        ["--rejected-event", "bad_items"],
    ];
    let insights = job.run_well(search::url(), arguments.as_flattened());
    assert_eq!((&insights["created"], &insights["rejected"]), (&json!(2), &json!(5)));
    let event = job.json("out/events/rejected.json");
    let expected = json!({"eventType": "bad_items", "files": ["rejected.ndjson"], "source": "test", "rejected": 5});
    assert_eq!(event, expected);

    let mut rejected = job.rejected();
    rejected.sort_by_key(|item| item["line"].as_u64());
    let line = |n: u64| rejected.iter().find(|item| item["line"] == n).unwrap();
    assert_eq!(rejected.len(), 5);
    assert!(rejected.iter().all(|item| item["file"] == "items.ndjson"), "{rejected:?}");
    assert_eq!((&line(2)["item"]["id"], &line(2)["status"]), (&json!("bad"), &json!(400)));
    let reason = line(2)["error"]["reason"].as_str().unwrap();
    assert!(reason.contains("[n]"), "{reason}");
    assert_eq!(line(2)["action"]["create"]["_index"], names.prefix.as_str());
    for (n, words) in [(3, "\"id\""), (4, "not a JSON object"), (5, "not UTF-8"), (6, "4096 bytes")]
    {
        let error = line(n)["error"].as_str().unwrap();
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(line(6)["bytes"], 5010);
    assert_eq!(names.documents().len(), 2);
}

#[test]
fn a_template_is_put_once_and_again_when_its_file_changes() {
    let names = Names::new();
    let proxy = Proxy::start(|_| Fault::None);
    let job = Job::with_lines([json!({"id": "a", "n": 1})]);
    let template = job.template(&names);
    let arguments = ["--index", &names.prefix, "--template", &template];
    let puts = || proxy.seen().iter().filter(|seen| seen.method == "PUT").count();
    job.run_well(&proxy.url, &arguments);
    assert_eq!(puts(), 1);
    job.run_well(&proxy.url, &arguments);
    assert_eq!(puts(), 1);
    let mut changed = names.template();
    changed["priority"] = json!(5);
    job.write(&format!("{}.json", names.prefix), changed.to_string());
    job.run_well(&proxy.url, &arguments);
    assert_eq!(puts(), 2);
}

#[test]
fn a_template_that_the_server_refuses_fails_the_run_before_any_item() {
    let names = Names::new();
    let proxy = Proxy::start(|_| Fault::None);
    let job = Job::with_lines([json!({"id": "a", "n": 1})]);
    let body = json!({"index_patterns": [format!("{}*", names.prefix)], "no_such_key": 1});
    job.write(&format!("{}.json", names.prefix), body.to_string());
    let template = job.path(&format!("{}.json", names.prefix));
    let ended =
        job.run(&proxy.url, &["--index", &names.prefix, "--template", template.to_str().unwrap()]);
    assert_eq!(ended.status, Some(1));
    assert!(ended.stderr.contains("refused to put the index template"), "{}", ended.stderr);
    assert!(ended.stderr.contains("no_such_key"), "{}", ended.stderr);
    assert_eq!((proxy.bulks().len(), job.outputs()), (0, vec![]));
}

#[test]
fn the_alias_is_given_only_to_indices_that_lack_it() {
    let names = Names::new();
    let proxy = Proxy::start(|_| Fault::None);
    let alias = format!("{}-all", names.prefix);
    let pattern = format!("{}-%Y", names.prefix);
    let run = |year: u64| {
        let published = format!("{year}-05-01");
        let job = Job::with_lines([item(year, &published)]);
        job.run_well(&proxy.url, &["--index", &pattern, "--alias", &alias]);
        proxy.seen().iter().filter(|seen| seen.path == "/_aliases").count()
    };
    assert_eq!((run(2025), run(2025), run(2026), run(2025)), (1, 1, 2, 2));
    let (_, all) = ask("GET", &format!("_alias/{alias}"), &Value::Null);
    assert_eq!(all.as_object().unwrap().len(), 2);
}

#[test]
fn documents_have_the_older_shape_if_that_is_asked_for() {
    let names = Names::new();
    let job = Job::with_lines([json!({
        "id": "a", "title": "T", "link": "https://a.example/a", "summary": "S",
        "published": "2026-11-02T03:04:05Z"
    })]);
    job.run_well(search::url(), &["--index", &names.prefix, "--shape", "older-ingest"]);
    let (_, _) = ask("POST", &format!("{}/_refresh", names.prefix), &Value::Null);
    let (_, found) = ask("POST", &format!("{}/_search", names.prefix), &json!({}));
    let document = &found["hits"]["hits"][0]["_source"];
    for (key, expected) in [
        ("Publisher", "test"),
        ("Title", "T"),
        ("Content", "S"),
        ("Url", "https://a.example/a"),
        ("PublishDate", "2026-11-02T03:04:05Z"),
    ] {
        assert_eq!(document[key], expected, "{document}");
    }
    let injected: jiff::Timestamp = document["InjectTime"].as_str().unwrap().parse().unwrap();
    assert!(injected.duration_until(jiff::Timestamp::now()).as_secs() < 600, "{injected}");
}

#[test]
fn bodies_are_compressed_if_that_is_asked_for() {
    let names = Names::new();
    let proxy = Proxy::start(|_| Fault::None);
    let job = Job::with_lines((0..500).map(|n| item(n, "2026-11-02")));
    job.run_well(&proxy.url, &["--index", &names.prefix, "--gzip"]);
    let bulks = proxy.bulks();
    assert_eq!(bulks[0].header("content-encoding"), Some("gzip"));
    assert!(bulks[0].wire_bytes * 3 < bulks[0].body.len(), "{}", bulks[0].wire_bytes);
    assert_eq!(names.documents().len(), 500);
}
