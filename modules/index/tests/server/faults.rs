//! What becomes of items while servers and networks fail.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};

use crate::job::{Ended, Job};
use crate::proxy::{Fault, Proxy, Seen};
use crate::search::Names;

/// The items of the tests with random faults.
const MANY: u64 = 4000;

/// The seed of the random faults; `ION_TEST_SEED` chooses another one.
fn seed() -> u64 {
    std::env::var("ION_TEST_SEED").map_or(20_261_127, |seed| seed.parse().unwrap())
}

/// A server that fails in every second request, in every way that there is, and whose requests may
/// have 20 kB. The document with the text `poison` is one that it cannot even read.
fn random_fault(random: &mut Rng, seen: &Seen) -> Fault {
    if seen.body.len() > 20_000 {
        return if random.u32(0..10) > 0 { Fault::status(413) } else { Fault::CutBefore };
    }
    let is_poison = seen.documents().iter().any(|(_, document)| document.contains("poison"));
    match random.u32(0..26) {
        _ if is_poison => Fault::Answer(400, vec![], json!({"error": "malformed request"})),
        0 => Fault::Answer(429, vec![("retry-after", "0".into())], Value::Null),
        1 => Fault::status(503),
        2 => Fault::status(502),
        3 => Fault::CutBefore,
        4 | 5 => Fault::CutAfter,
        6 => Fault::CutAnswer,
        7..=12 => {
            let all = 0..seen.documents().len();
            let refused = all.filter(|_| random.u32(0..3) == 0).collect();
            let status = if random.bool() { 429 } else { 503 };
            Fault::Partial { refused, status }
        }
        13 => Fault::Slow(Duration::from_millis(random.u64(1..50))),
        _ => Fault::None,
    }
}

#[test]
fn every_item_is_in_the_index_exactly_once_or_among_the_rejected() {
    let names = Names::new();
    let mut random = Rng::with_seed(seed());
    // One item in ten cannot be indexed, for one of four reasons.
    let mut lines = vec![];
    let (mut good, mut bad) = (BTreeMap::new(), BTreeSet::new());
    for n in 0..MANY {
        let month = 1 + n % 12;
        let mut item =
            json!({"id": format!("i{n}"), "n": n, "published": format!("2026-{month:02}-03")});
        item["text"] = json!("x".repeat(random.usize(0..300)));
        match random.u32(0..40) {
            0 => item["n"] = json!("no number"),
            1 => item["id"] = json!(null),
            2 => item["text"] = json!("poison"),
            3 => {
                bad.insert(n + 1);
                lines.push("no JSON".to_owned());
                continue;
            }
            _ => {
                good.insert(n, (format!("{}-2026.{month:02}", names.prefix), item.clone()));
                lines.push(item.to_string());
                continue;
            }
        }
        bad.insert(n + 1);
        lines.push(item.to_string());
    }
    let proxy = Proxy::for_bulks(move |_, seen| random_fault(&mut random, seen));
    let job = Job::with_lines(&lines);
    let (template, pattern) = (job.template(&names), format!("{}-%Y.%m", names.prefix));
    let arguments = [
        ["--index", &pattern],
        ["--template", &template],
        ["--batch-items", "150"],
        ["--in-flight", "32"],
        ["--tries", "40"],
    ];
    let insights = job.run_well(&proxy.url, arguments.as_flattened());

    let found: BTreeMap<_, _> = names
        .documents()
        .into_iter()
        .map(|document| (document.source["n"].as_u64().unwrap(), (document.index, document.source)))
        .collect();
    assert_eq!(found, good);
    let rejected: Vec<_> =
        job.rejected().iter().map(|item| item["line"].as_u64().unwrap()).collect();
    assert_eq!(rejected.len(), bad.len(), "an item is rejected twice");
    assert_eq!(BTreeSet::from_iter(rejected), bad);
    let count = |key: &str| insights[key].as_u64().unwrap();
    assert_eq!(count("items"), MANY);
    assert_eq!(count("created") + count("alreadyThere"), good.len() as u64);
    assert_eq!(count("rejected"), bad.len() as u64);
    // The faults have happened: documents were sent again, and answers got lost.
    assert!(count("sentAgain") > MANY / 10 && count("alreadyThere") > 0, "{insights}");
    assert_eq!(count("requests"), proxy.bulks().len() as u64);
}

#[test]
fn the_newest_state_of_each_item_stays_whatever_fails() {
    let names = Names::new();
    let mut random = Rng::with_seed(seed() + 1);
    // Twenty states of each item, in any order.
    let mut states: Vec<_> = (0..MANY).map(|n| (n % (MANY / 20), n / (MANY / 20))).collect();
    random.shuffle(&mut states);
    let lines = states.iter().map(|(id, state)| json!({"id": id, "n": id, "state": state}));
    let job = Job::with_lines(lines);
    let proxy = Proxy::for_bulks(move |_, seen| random_fault(&mut random, seen));
    let arguments = [
        ["--index", &names.prefix],
        ["--updates-by", "state"],
        ["--batch-items", "100"],
        ["--in-flight", "32"],
        ["--tries", "40"],
    ];
    let insights = job.run_well(&proxy.url, arguments.as_flattened());
    let documents = names.documents();
    assert_eq!(documents.len() as u64, MANY / 20);
    for document in documents {
        assert_eq!((&document.source["state"], document.version), (&json!(19), 19));
    }
    assert_eq!(insights["rejected"], 0);
}

/// Indexes three items at once.
fn run_three(names: &Names, proxy: &Proxy, arguments: &[&str]) -> (Job, Ended) {
    let job = Job::with_lines((0..3).map(|n| json!({"id": n, "n": n})));
    let ended = job.run(&proxy.url, &[&["--index", &names.prefix], arguments].concat());
    (job, ended)
}

#[test]
fn only_the_documents_that_had_no_room_are_sent_again() {
    let names = Names::new();
    let proxy = Proxy::for_bulks(|n, _| match n {
        0 => Fault::Partial { refused: vec![1], status: 429 },
        _ => Fault::None,
    });
    let (job, ended) = run_three(&names, &proxy, &[]);
    assert_eq!(ended.status, Some(0), "{ended:?}");
    let bulks = proxy.bulks();
    assert_eq!(bulks.len(), 2);
    assert_eq!(bulks[1].documents(), [bulks[0].documents()[1]]);
    assert_eq!(job.json("out/insights.json")["sentAgain"], 1);
    assert_eq!(names.documents().len(), 3);
}

#[test]
fn an_answer_that_got_lost_makes_no_document_twice() {
    for fault in [Fault::CutAfter, Fault::CutAnswer] {
        let names = Names::new();
        let first = fault.clone();
        let proxy = Proxy::for_bulks(move |n, _| if n == 0 { first.clone() } else { Fault::None });
        let (job, ended) = run_three(&names, &proxy, &[]);
        assert_eq!(ended.status, Some(0), "{ended:?}");
        assert_eq!(job.json("out/insights.json")["alreadyThere"], 3, "{fault:?}");
        assert_eq!(names.documents().len(), 3);
    }
}

#[test]
fn a_request_that_takes_too_long_is_sent_again() {
    let names = Names::new();
    let proxy = Proxy::for_bulks(|n, _| match n {
        0 => Fault::Slow(Duration::from_secs(3)),
        _ => Fault::None,
    });
    let (_, ended) = run_three(&names, &proxy, &["--timeout", "500ms"]);
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("3 documents have to be sent again"), "{}", ended.stderr);
    assert_eq!(proxy.bulks().len(), 2);
    assert_eq!(names.documents().len(), 3);
}

#[test]
fn the_server_is_left_alone_for_as_long_as_it_asks() {
    let names = Names::new();
    let proxy = Proxy::for_bulks(|n, _| match n {
        0 => Fault::Answer(429, vec![("retry-after", "2".into())], Value::Null),
        _ => Fault::None,
    });
    let (_, ended) = run_three(&names, &proxy, &[]);
    assert_eq!(ended.status, Some(0), "{ended:?}");
    let bulks = proxy.bulks();
    let waited = bulks[1].at.duration_since(bulks[0].at);
    assert!(waited >= Duration::from_secs(2), "{waited:?}");
}

#[test]
fn a_server_that_asks_for_more_time_than_there_is_fails_the_run_at_once() {
    let names = Names::new();
    let answer = Fault::Answer(503, vec![("retry-after", "3600".into())], json!({"error": "down"}));
    let proxy = Proxy::for_bulks(move |_, _| answer.clone());
    let (job, ended) = run_three(&names, &proxy, &[]);
    assert_eq!((ended.status, proxy.bulks().len()), (Some(1), 1), "{ended:?}");
    assert!(ended.stderr.contains("did not index documents"), "{}", ended.stderr);
    assert!(ended.stderr.contains("status 503, down"), "{}", ended.stderr);
    assert_eq!(job.outputs(), Vec::<String>::new());
}

#[test]
fn tries_that_bring_nothing_are_bounded() {
    for (fault, words) in [
        (Fault::status(503), "status 503"),
        (Fault::CutBefore, "did not index documents, after 2 tries in a row"),
        (Fault::Partial { refused: vec![0, 1, 2], status: 429 }, "the queue is full"),
        (Fault::Answer(200, vec![], json!({"items": []})), "about 0 documents"),
    ] {
        let names = Names::new();
        let plan = fault.clone();
        let proxy = Proxy::for_bulks(move |_, _| plan.clone());
        let (job, ended) = run_three(&names, &proxy, &["--tries", "2"]);
        assert_eq!((ended.status, proxy.bulks().len()), (Some(1), 2), "{fault:?}: {ended:?}");
        assert!(ended.stderr.contains(words), "{fault:?}: {}", ended.stderr);
        assert_eq!(job.outputs(), Vec::<String>::new());
    }
}

#[test]
fn the_time_of_a_batch_is_bounded() {
    let names = Names::new();
    let proxy = Proxy::for_bulks(|_, _| Fault::status(429));
    let begun = std::time::Instant::now();
    let (_, ended) = run_three(&names, &proxy, &["--deadline", "1s", "--tries", "100"]);
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert!(proxy.bulks().len() > 1);
}

#[test]
fn a_refusal_fails_the_run_at_once_and_in_words() {
    let document = |status: u16| {
        let error = json!({"type": "security_exception", "reason": "not yours"});
        Fault::Answer(
            200,
            vec![],
            json!({"items": vec![json!({"create": {"status": status, "error": error}}); 3]}),
        )
    };
    for (fault, words) in [
        (Fault::status(401), "--password-from"),
        (Fault::Answer(403, vec![], json!({"error": "not yours"})), "not yours; this user may not"),
        (document(403), "security_exception: not yours; this user may not"),
        (document(404), "there is no such index"),
        (Fault::status(404), "check --url"),
        (Fault::status(301), "give --url its real address"),
    ] {
        let names = Names::new();
        let plan = fault.clone();
        let proxy = Proxy::for_bulks(move |_, _| plan.clone());
        let (job, ended) = run_three(&names, &proxy, &[]);
        assert_eq!((ended.status, proxy.bulks().len()), (Some(1), 1), "{fault:?}: {ended:?}");
        assert!(ended.stderr.contains("refused to index documents"), "{}", ended.stderr);
        assert!(ended.stderr.contains(words), "{fault:?}: {}", ended.stderr);
        assert_eq!(job.outputs(), Vec::<String>::new());
    }
}

#[test]
fn a_request_that_is_too_large_is_halved_and_a_single_document_rejected() {
    for too_large in [Fault::status(413), Fault::CutBefore] {
        let names = Names::new();
        let plan = too_large.clone();
        let proxy =
            Proxy::for_bulks(
                move |_, seen| {
                    if seen.body.len() > 2000 { plan.clone() } else { Fault::None }
                },
            );
        let mut lines: Vec<_> =
            (0..40).map(|n| json!({"id": n, "n": n, "text": "x".repeat(100)})).collect();
        if too_large != Fault::CutBefore {
            lines.push(json!({"id": 40, "n": 40, "text": "x".repeat(3000)}));
        }
        let job = Job::with_lines(&lines);
        let arguments = ["--index", &names.prefix, "--tries", "20"];
        let insights = job.run_well(&proxy.url, &arguments);
        assert_eq!(names.documents().len(), 40);
        if too_large == Fault::CutBefore {
            assert_eq!(insights["rejected"], 0);
            continue;
        }
        let rejected = job.rejected();
        assert_eq!((rejected.len(), &rejected[0]["item"]), (1, &lines[40]));
        assert_eq!((&rejected[0]["status"], &rejected[0]["line"]), (&json!(413), &json!(41)));
        assert_eq!(job.json("out/events/rejected.json")["rejected"], 1);
    }
}

#[test]
fn templates_and_aliases_outlast_a_server_that_is_busy() {
    let names = Names::new();
    let mut seen_before = BTreeSet::new();
    // The first request of each kind fails.
    let proxy = Proxy::start(move |seen| {
        match seen_before.insert((seen.method.clone(), seen.path.clone())) {
            true if seen.method == "GET" => Fault::CutAfter,
            true => Fault::status(503),
            false => Fault::None,
        }
    });
    let job = Job::with_lines([json!({"id": "a", "n": 1})]);
    let (template, alias) = (job.template(&names), format!("{}-all", names.prefix));
    let arguments = ["--index", &names.prefix, "--template", &template, "--alias", &alias];
    job.run_well(&proxy.url, &arguments);
    assert_eq!(names.documents().len(), 1);
    let (status, _) = crate::search::ask("GET", &format!("_alias/{alias}"), &Value::Null);
    assert_eq!(status, 200);
}

#[test]
fn a_server_that_cannot_be_reached_is_named() {
    let job = Job::with_lines([json!({"id": "a", "n": 1})]);
    let ended = job.run("http://127.0.0.1:1", &["--index", "a", "--tries", "2"]);
    assert_eq!(ended.status, Some(1));
    let expected = "ion-index: http://127.0.0.1:1 did not index documents, after 2 tries in a row";
    assert!(ended.stderr.contains(expected), "{}", ended.stderr);
    assert!(ended.stderr.contains("Connection refused"), "{}", ended.stderr);
}
