//! Shows in which forms a client may send an event, and what the gateway makes of each. The tests
//! use the embedded stores.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use serde_json::{Value, json};

use super::{files_below, gateway, noise, post, text, up};
use crate::support::Home;
use crate::support::http::{Answer, Http, form, get, request};
use crate::support::wait_for;

pub(crate) fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn zlib(content: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn zstd(content: &[u8]) -> Vec<u8> {
    zstd::encode_all(content, 3).unwrap()
}

fn half_of(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.len() / 2);
    bytes
}

/// Returns the document of the event that an answer names.
fn event(at: &str, answer: Answer) -> Value {
    let made = answer.says(202);
    get(at, &format!("/events/{}", text(&made, "eventId"))).says(200)
}

/// The gateway decodes the payloads of chains, too.
#[test]
fn an_encoded_payload_goes_through_a_chain_decoded() {
    let home = Home::new();
    let (daemon, at) =
        up(&home, "  echo: {on: [echo], emits: [echoed], run: [cat], stdio: true}\n");
    let send = |encoding: &str, body: &[u8]| {
        request(&at, "POST", "/chains/echo", &[("content-encoding", encoding)], body)
    };
    let payload = noise(1);
    assert!(send("gzip", &gzip(&payload)).body == payload);
    assert!(send("zstd", &zstd(&payload)).body == payload);
    send("gzip", &half_of(gzip(b"a payload"))).problem(400, "malformed");
    send("br", &payload).problem(415, "unknown-encoding");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn encoded_bodies_are_decoded_within_the_limits_of_plain_ones() {
    let home = Home::new();
    let (daemon, at) = gateway(&home, &["--gateway-upload-max", "8MiB"]);
    let send = |form: &str, encoding: &[&str], body: &[u8]| {
        let lines = encoding.iter().map(|encoding| ("content-encoding", *encoding));
        let headers: Vec<(&str, &str)> =
            [("content-type", form)].into_iter().chain(lines).collect();
        request(&at, "POST", "/events/t", &headers, body)
    };
    let plain = json!({"text": "für alle ".repeat(1000)}).to_string();
    let plain = plain.as_bytes();
    let expected = event(&at, send("application/json", &[], plain))["data"].clone();
    let (half, rest) = plain.split_at(plain.len() / 2);
    for (what, encoding, body) in [
        ("gzip", &["gzip"][..], gzip(plain)),
        ("an older name, in capitals", &["X-GZIP"], gzip(plain)),
        ("gzip of two members", &["gzip"], [gzip(half), gzip(rest)].concat()),
        ("deflate", &["deflate"], zlib(plain)),
        ("zstd", &["zstd"], zstd(plain)),
        ("zstd of two frames", &["zstd"], [zstd(half), zstd(rest)].concat()),
        ("no encoding", &["identity"], plain.to_vec()),
        ("several encodings in one header", &["gzip, identity, zstd"], zstd(&gzip(plain))),
        ("two encodings in two headers", &["gzip", "deflate"], zlib(&gzip(plain))),
    ] {
        let event = event(&at, send("application/json", encoding, &body));
        assert_eq!(event["data"], expected, "{what}");
    }
    // The gateway also decodes files, even if they are larger than what it holds in memory.
    let content: Vec<u8> = (0..5).flat_map(noise).collect();
    let (kind, body) = form(&[(Some("f"), "f", &content), (None, "n", b"1")]);
    for (encoding, body) in [("gzip", gzip(&body)), ("zstd", zstd(&body))] {
        let made = send(kind, &[encoding], &body).says(202);
        let file = get(&at, &format!("/events/{}/data/f", text(&made, "eventId")));
        assert!(file.body == content, "{encoding}");
    }
    // The gateway also decodes requests to the front API of older Ion.
    let link =
        request(&at, "POST", "/", &[("content-encoding", "gzip")], &gzip(b"{\"url\": \"x\"}"));
    assert_eq!(text(&link.says(200), "type"), "frontapi.new_link");
    let events = files_below(&home.state().join("blobs"));

    // A body that is cut off, or that is not what its headers say, becomes no event.
    let whole = gzip(plain);
    let mut damaged = whole.clone();
    let at_sum = damaged.len() - 6;
    damaged[at_sum] ^= 1;
    for (what, encoding, body) in [
        ("cut off", "gzip", whole[..whole.len() - 3].to_vec()),
        (
            "cut off before its second member ends",
            "gzip",
            [&whole[..], &whole[..whole.len() / 2]].concat(),
        ),
        ("zstd cut off", "zstd", half_of(zstd(plain))),
        ("deflate cut off", "deflate", half_of(zlib(plain))),
        ("a wrong checksum", "gzip", damaged),
        ("plain text", "gzip", plain.to_vec()),
        ("another encoding", "zstd", whole.clone()),
        ("cut off in a file", "gzip", half_of(gzip(&body))),
    ] {
        let form = if what.ends_with("file") { kind } else { "application/json" };
        let answer = send(form, &[encoding], &body);
        assert_eq!(answer.status, 400, "{what}: {}", answer.text());
        answer.problem(400, "malformed");
    }
    // The limits hold for the decoded body: a few bytes that decode to many are refused.
    let bomb = |bytes: usize| [b"{\"a\": \"".to_vec(), vec![b'a'; bytes], b"\"}".to_vec()].concat();
    for body in [gzip(&bomb(200 << 20)), gzip(&gzip(&bomb(200 << 20)))] {
        let encodings = if body.len() > 10_000 { &["gzip"][..] } else { &["gzip, gzip"] };
        send("application/json", encodings, &body).problem(413, "too-big");
        send("multipart/form-data; boundary=XyZ", encodings, &body).problem(413, "too-big");
    }
    let (_, files) = form(&[(Some("f"), "f", &vec![0; 9 << 20])]);
    send(kind, &["zstd"], &zstd(&files)).problem(413, "too-big");
    // The gateway also limits the memory that a stream may ask for.
    let mut wide = zstd::Encoder::new(Vec::new(), 3).unwrap();
    wide.window_log(27).unwrap();
    wide.write_all(plain).unwrap();
    send("application/json", &["zstd"], &wide.finish().unwrap()).problem(400, "malformed");

    for unknown in ["br", "gzip, compress", "gzip, gzip, gzip, gzip", "none"] {
        let answer = send("application/json", &[unknown], plain);
        assert_eq!(answer.header("accept-encoding"), Some("gzip, deflate, zstd"), "{unknown}");
        answer.problem(415, "unknown-encoding");
    }
    for (header, value, taken) in [
        ("content-encoding", "gzip", false),
        ("content-transfer-encoding", "base64", false),
        ("content-transfer-encoding", "binary", true),
    ] {
        let part = format!(
            "--XyZ\r\ncontent-disposition: form-data; name=\"f\"; filename=\"f\"\r\n{header}: {value}\r\n\r\nx\r\n--XyZ--\r\n"
        );
        let answer = post(&at, "/events/t", kind, part.as_bytes());
        if taken {
            answer.says(202);
        } else {
            answer.problem(415, "unknown-encoding");
        }
    }
    wait_for("the blobs that no event names to be removed", || {
        files_below(&home.state().join("blobs")) == events + 1
    });
    assert_eq!(daemon.stop(), Some(0));
}

/// The gateway accepts the values that a browser's form sends, `curl --data-urlencode`, and
/// programs that have a JSON type of their own.
#[test]
fn values_come_as_forms_and_in_every_kind_of_json() {
    let home = Home::new();
    let (daemon, at) = gateway(&home, &[]);
    let values = |form: &str, body: &[u8]| {
        let event = event(&at, post(&at, "/events/t", form, body));
        let pairs = event["data"].as_array().unwrap().clone();
        let pair = |pair: &Value| (text(pair, "key").to_owned(), text(pair, "value").to_owned());
        pairs.iter().map(pair).collect::<Vec<_>>()
    };
    let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let form = "application/x-www-form-urlencoded";
    let body = b"a=1&a=2&two+words=%C3%A4+%F0%9F%98%80&empty=&alone&x=a%3Db%26c";
    let expected =
        [("a", "1"), ("a", "2"), ("two words", "\u{e4} \u{1f600}"), ("empty", ""), ("alone", "")];
    let expected = pairs(&[&expected[..], &[("x", "a=b&c")]].concat());
    assert_eq!(values(form, body), expected);
    assert_eq!(
        values(&format!("{form}; charset=ISO-8859-1"), b"%E4=%F6"),
        pairs(&[("\u{e4}", "\u{f6}")])
    );
    assert_eq!(values(form, b""), pairs(&[]), "an empty form has no values");
    // The value is about as long as an event allows, and each of its bytes takes three bytes in the
    // request.
    let most = "\u{e4}".repeat((1 << 19) - 10);
    let escaped = format!("v={}", "%C3%A4".repeat((1 << 19) - 10));
    assert_eq!(values(form, escaped.as_bytes()), pairs(&[("v", &most)]));
    let escaped = format!("{{\"v\": \"{}\"}}", "\\u00e4".repeat((1 << 19) - 10));
    assert_eq!(values("application/json", escaped.as_bytes()), pairs(&[("v", &most)]));
    post(&at, "/events/t", form, format!("v={}", "a".repeat(1 << 20)).as_bytes())
        .problem(413, "too-big");
    post(&at, "/events/t", form, "a&".repeat(10_001).as_bytes()).problem(413, "too-big");

    let with_mark = b"\xef\xbb\xbf{\"a\": 1}";
    for json in
        ["application/json", "text/json", "application/vnd.x.y+json; v=2", "application/ld+json"]
    {
        assert_eq!(values(json, b"{\"a\": 1}"), pairs(&[("a", "1")]), "{json}");
        assert_eq!(values(json, with_mark), pairs(&[("a", "1")]), "{json} with a byte order mark");
    }
    let utf_16: Vec<u8> = "\u{feff}{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let problem = post(&at, "/events/t", "application/json", &utf_16).problem(400, "malformed");
    assert!(text(&problem, "detail").contains("UTF-16"), "{problem}");
    request(&at, "POST", "/", &[], b"\xef\xbb\xbf{\"url\": \"x\"}").says(200);
    let cloudevent =
        json!({"specversion": "1.0", "id": "7", "source": "s", "type": "t", "data": {"n": 1}});
    let marked = [b"\xef\xbb\xbf", cloudevent.to_string().as_bytes()].concat();
    assert!(values("application/cloudevents+json", &marked).contains(&("n".into(), "1".into())));
    // If the body is a whole CloudEvent, the attributes in the headers do not count.
    let headers = [
        ("content-type", "application/cloudevents+json"),
        ("ce-specversion", "1.0"),
        ("ce-id", "8"),
        ("ce-source", "s"),
        ("ce-type", "t"),
    ];
    let same = request(&at, "POST", "/events/t", &headers, &marked).says(202);
    let again = post(&at, "/events/t", headers[0].1, &marked).says(202);
    assert_eq!(same["eventId"], again["eventId"]);
    let binary = [&[("content-type", "application/vnd.x+json")], &headers[1..]].concat();
    let event = event(&at, request(&at, "POST", "/events/t", &binary, with_mark));
    assert!(
        event["data"].as_array().unwrap().contains(&json!({"key": "a", "value": "1"})),
        "{event}"
    );
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn an_array_is_an_event_for_each_and_all_or_none_of_them() {
    let home = Home::new();
    home.program("note", "#!/bin/sh\ntest \"$(cat /ion/in/meta/n)\" != 2\n");
    let (daemon, at) = up(&home, "  note: {on: [t], run: [./note], retries: 0}\n");
    let send = |path: &str, key: &str, body: &Value| {
        let mut headers = vec![("content-type", "application/json")];
        if !key.is_empty() {
            headers.push(("idempotency-key", key));
        }
        request(&at, "POST", path, &headers, body.to_string().as_bytes())
    };
    let three = json!([{"n": 1}, {"n": 2, "x": "y"}, {"n": 3}]);
    let told = send("/events/t?wait=60s", "", &three).says(200);
    let events = told["events"].as_array().unwrap().clone();
    let outcomes: Vec<&str> = events.iter().map(|event| text(event, "outcome")).collect();
    assert_eq!(outcomes, ["succeeded", "failed", "succeeded"], "{told}");
    let second = get(&at, &format!("/events/{}", text(&events[1], "eventId"))).says(200);
    assert_eq!(second["data"], json!([{"key": "n", "value": "2"}, {"key": "x", "value": "y"}]));
    let correlations: std::collections::HashSet<&str> =
        events.iter().map(|event| text(event, "correlationId")).collect();
    assert_eq!(correlations.len(), 3, "each event is the first of its own correlation");
    assert_eq!(send("/events/t", "", &json!([])).says(202), json!({"events": []}));
    // With an idempotency key, a client may send the array again.
    let first = send("/events/t", "k", &three).says(202);
    assert_eq!(send("/events/t", "k", &three).says(202), first);
    // An event that differs from the first array's is refused. The gateway accepts the other
    // events.
    let other = json!([{"n": 1}, {"n": 5}, {"n": 3}, {"n": 4}]);
    let problem = send("/events/t", "k", &other).problem(422, "key-reused");
    assert_eq!(problem["index"], 1, "{problem}");
    assert_eq!(problem["events"][0]["eventId"], first["events"][0]["eventId"]);
    assert_eq!(text(&problem["events"][1]["problem"], "type"), "urn:ion:problem:key-reused");
    assert!(problem["events"][3]["eventId"].is_string(), "{problem}");
    wait_for("all jobs to be in the ledger", || home.jobs().len() == 7);
    // If one element cannot be an event, none of the elements becomes one.
    for (wrong, status, kind) in [
        (json!([{"n": 1}, 2]), 400, "malformed"),
        (json!([{"n": 1}, {"files": ["x"]}]), 422, "refused"),
        (json!([{"n": 1}, {"v": "x".repeat((1 << 20) + 1)}]), 413, "too-big"),
        (json!([{"n": 1}, [{"key": "n", "value": "1"}]]), 400, "malformed"),
    ] {
        let problem = send("/events/t", "", &wrong).problem(status, kind);
        assert_eq!(problem["index"], 1, "{problem}");
    }
    send("/events/t", "", &json!(vec![json!({}); 201])).problem(413, "too-big");
    // An array of keys and values is refused, because nobody can know whether its sender meant a
    // batch or Ion's own list of values.
    send("/events/t", "", &json!([{"key": "a", "value": "b"}])).problem(400, "malformed");
    post(&at, "/events/t", "application/json", b"[{\"n\": 1},").problem(400, "malformed");
    assert_eq!(
        send("/events/other", "", &json!(vec![json!({}); 200])).says(202)["events"][199]["type"],
        "other"
    );
    assert_eq!(home.jobs().len(), 7, "no refused event has started a job");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_batch_of_cloudevents_is_an_event_for_each_and_may_be_sent_again() {
    let home = Home::new();
    let (daemon, at) = gateway(&home, &[]);
    let one = |id: &str, data: Value| json!({"specversion": "1.0", "id": id, "source": "/s", "type": "t", "data": data});
    let send = |batch: &Value| {
        post(&at, "/events/t", "application/cloudevents-batch+json", batch.to_string().as_bytes())
    };
    let batch =
        json!([one("1", json!({"n": 1})), one("2", json!([1, 2])), one("1", json!({"n": 1}))]);
    let made = send(&batch).says(202);
    let ids: Vec<&str> =
        made["events"].as_array().unwrap().iter().map(|event| text(event, "eventId")).collect();
    assert_eq!(
        (ids.len(), ids[0]),
        (3, ids[2]),
        "a CloudEvent that is in the batch twice is one event: {made}"
    );
    assert_eq!(get(&at, &format!("/events/{}/data/data", ids[1])).text(), "[1,2]");
    assert_eq!(send(&batch).says(202), made);
    // An event of a batch is the same event as if it had been sent alone.
    let alone = post(
        &at,
        "/events/t",
        "application/cloudevents+json",
        one("1", json!({"n": 1})).to_string().as_bytes(),
    );
    assert_eq!(text(&alone.says(202), "eventId"), ids[0]);
    let before = home.run(["--json", "trace"]).stdout;
    for (wrong, status, kind) in [
        (json!([one("3", json!({})), {"specversion": "1.0"}]), 400, "malformed"),
        (json!([one("3", json!({})), one("3", json!({"n": 1}))]), 409, "differs"),
        (json!([one("3", json!({})), one("4", json!({"eventType": "x"}))]), 422, "refused"),
    ] {
        let problem = send(&wrong).problem(status, kind);
        assert_eq!(problem["index"], 1, "{problem}");
    }
    assert_eq!(
        home.run(["--json", "trace"]).stdout,
        before,
        "nothing of a refused batch is an event"
    );
    let problem =
        send(&json!([one("5", json!({})), one("1", json!({"n": 2}))])).problem(409, "differs");
    assert!(problem["events"][0]["eventId"].is_string(), "{problem}");
    assert_eq!(text(&problem["events"][1]["problem"], "eventId"), ids[0], "{problem}");
    send(&json!({})).problem(400, "malformed");
    assert_eq!(send(&json!([])).says(202), json!({"events": []}));
    assert_eq!(daemon.stop(), Some(0));
}

/// If a store or a kill ends a batch in the middle, the client sends it again whole, and each of
/// its events is there once.
#[test]
fn a_batch_that_was_broken_off_is_sent_again_and_doubles_nothing() {
    const EVENTS: usize = 30;
    let mut home = Home::new();
    let batch: Vec<Value> = (0..EVENTS)
        .map(|n| json!({"specversion": "1.0", "id": n.to_string(), "source": "/s", "type": "t", "data": [n]}))
        .collect();
    let batch = json!(batch).to_string();
    let kind = "application/cloudevents-batch+json";
    home.env = vec![("ION_FAILPOINTS".into(), "commit.inserted=5".into())];
    let (daemon, at) = gateway(&home, &[]);
    let mut http = Http::to(&at);
    http.begin(
        "POST",
        "/events/t",
        &[("content-type", kind), ("content-length", &batch.len().to_string())],
    );
    http.send(batch.as_bytes()).unwrap();
    assert!(http.answer("POST").is_err(), "the gateway is killed in the middle of the batch");
    assert_eq!(daemon.wait(), None);
    home.env = vec![];
    // The blob store accepts nothing. After the first failures the gateway tries no more events.
    let (blobs, away) = (home.state().join("blobs"), home.state().join("away"));
    let (daemon, at) = gateway(&home, &[]);
    std::fs::rename(&blobs, &away).unwrap();
    std::fs::write(&blobs, "").unwrap();
    let answer = post(&at, "/events/t", kind, batch.as_bytes());
    assert!(answer.status >= 500, "{}", answer.text());
    let said = answer.json();
    let events = said["events"].as_array().unwrap();
    assert_eq!((events.len(), &said["index"]), (EVENTS, &json!(0)), "{said}");
    let tried = events.iter().filter(|event| event["problem"].is_object()).count();
    assert!((1..EVENTS).contains(&tried), "{said}");
    assert!(events[tried..].iter().all(|event| event["problem"].is_null()), "{said}");
    std::fs::remove_file(&blobs).unwrap();
    std::fs::rename(&away, &blobs).unwrap();
    let made = post(&at, "/events/t", kind, batch.as_bytes()).says(202);
    assert_eq!(post(&at, "/events/t", kind, batch.as_bytes()).says(202), made);
    for (n, event) in made["events"].as_array().unwrap().iter().enumerate() {
        let file = get(&at, &format!("/events/{}/data/data", text(event, "eventId")));
        assert_eq!(file.text(), format!("[{n}]"));
    }
    assert_eq!(daemon.stop(), Some(0));
    home.run(["check", "--deep"]).well();
}

#[test]
fn an_event_that_starts_nothing_is_answered_so() {
    let home = Home::new();
    let (daemon, at) = up(&home, "  good: {on: [new_video], run: [\"true\"]}\n");
    let said = post(&at, "/events/new_vidoe?wait=30s", "application/json", b"{}").says(200);
    let words = said["startsNothing"].as_str().unwrap();
    assert!(
        words.contains("no module subscribes to \"new_vidoe\"")
            && words.contains("did you mean \"new_video\"?")
    );
    let said = post(&at, "/events/new_video?wait=30s", "application/json", b"{}").says(200);
    assert_eq!((&said["outcome"], said.get("startsNothing")), (&json!("succeeded"), None));
    assert_eq!(daemon.stop(), Some(0));
}
