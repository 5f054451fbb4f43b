//! Sends HTTP requests to a gateway. The tests show which requests start a pipeline, what the
//! gateway shows of the pipeline, and that clients and failures do the gateway no harm. They use
//! the embedded stores; one test uses RabbitMQ, a MongoDB-compatible store and S3.

mod clients;
mod closing;
mod finding;
mod forms;
mod harm;
mod trust;
mod webhooks;

use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::chains::address;
use crate::support::http::{Answer, Http, form, get, request};
use crate::support::servers::{Mongo, Rabbit, S3, plane};
use crate::support::{Home, RunningCommand, signal, wait_for};
use serde_json::{Value, json};

/// Starts a process that is only a gateway. Returns the process and the gateway's address.
fn gateway(home: &Home, flags: &[&str]) -> (RunningCommand, String) {
    let up = home.start("gateway", &[&["--listen", "127.0.0.1:0"], flags].concat());
    let address = address(&up);
    (up, address)
}

/// Starts a process that runs these modules and has a gateway. Returns the process and the
/// gateway's address.
fn up(home: &Home, modules: &str) -> (RunningCommand, String) {
    let file = home.write("pipeline.yaml", format!("modules:\n{modules}"));
    let up = home.up_with(&["--gateway", "127.0.0.1:0"], &file);
    let address = address(&up);
    (up, address)
}

fn post(address: &str, path: &str, form: &str, body: &[u8]) -> Answer {
    request(address, "POST", path, &[("content-type", form)], body)
}

fn text<'v>(value: &'v Value, member: &str) -> &'v str {
    value[member].as_str().unwrap_or_else(|| panic!("{member}: {value}"))
}

/// Returns the first event of this type in a trace.
fn of_type<'t>(trace: &'t Value, event_type: &str) -> &'t Value {
    let events = trace.as_array().unwrap();
    events
        .iter()
        .find(|event| event["type"] == event_type)
        .unwrap_or_else(|| panic!("{event_type}: {trace:#}"))
}

/// Returns the number of files below a folder.
fn files_below(folder: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { files_below(&entry.path()) } else { 1 }).sum()
}

/// A module's program that writes down its input files, with their checksums, and its event's
/// values.
const SHOWS: &str = "#!/bin/sh\nset -e\n(cd /ion/in/data 2>/dev/null && find . -type f | sort | xargs -r md5sum) > /ion/out/data/files\n\
    cat /ion/in/eventmeta.json > /ion/out/data/values 2>/dev/null || echo none > /ion/out/data/values\n\
    echo '{\"eventType\":\"shown\",\"files\":[\"files\",\"values\"]}' > /ion/out/events/shown.json\n";

/// The gateway reads the names of a form's parts as the client means them, whatever client it is.
/// The tests in `dispatcher/gateway/src/disposition.rs` try all kinds of names.
#[test]
fn names_in_forms_are_those_that_clients_mean() {
    let home = Home::new();
    let (daemon, at) = gateway(&home, &[]);
    let parts: [&[u8]; 5] = [
        b"name=\"f\"; filename=\"=?utf-8?B?w6QudHh0?=\"; filename*=utf-8''%C3%A4.txt",
        b"name=\"g\"; filename=\"C:\\dir\\x.txt\"",
        b"name=\"h\"; filename=\"\xe9.txt\"",
        b"name=\"a; filename=b\"",
        b"name=\"end\\\"",
    ];
    let mut body = Vec::new();
    for part in parts {
        body.extend(
            [b"--XyZ\r\ncontent-disposition: form-data; ", part, b"\r\n\r\n1\r\n"].concat(),
        );
    }
    body.extend(b"--XyZ--\r\n");
    let form = [("content-type", "multipart/form-data; boundary=XyZ")];
    let made = request(&at, "POST", "/events/t", &form, &body).says(202);
    let event = get(&at, &format!("/events/{}", text(&made, "eventId"))).says(200);
    let all = |list: &str, key: &str| -> Vec<String> {
        event[list]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one[key].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(all("files", "name"), ["\u{e4}.txt", "x.txt", "\u{e9}.txt"]);
    assert_eq!(all("data", "key"), ["a; filename=b", "end\\"]);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn older_ions_front_api_is_answered_as_before() {
    let home = Home::new();
    home.program("show", SHOWS);
    let (daemon, at) =
        up(&home, "  show: {on: [frontapi.new_link], emits: [shown], run: [./show]}\n");
    let link = "https://example.com/a?b=c";
    let body = json!({"url": link}).to_string();
    // Some clients of the front API send no content type, and some send a wrong one.
    for headers in [
        &[][..],
        &[("content-type", "application/json")],
        &[("content-type", "application/x-www-form-urlencoded")],
    ] {
        let answer = request(&at, "POST", "/", headers, body.as_bytes());
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let event = answer.says(200);
        let members =
            |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(members(&event), ["context", "type"]);
        let context = &event["context"];
        assert_eq!(
            members(context),
            ["name", "eventId", "correlationId", "parentEventId", "documentType"]
        );
        assert_eq!(
            (text(&event, "type"), text(context, "name")),
            ("frontapi.new_link", "frontapi")
        );
        assert_eq!(
            (text(context, "parentEventId"), text(context, "documentType")),
            ("frontapi", "eventMeta")
        );
        let document = get(&at, &format!("/events/{}", text(context, "eventId"))).says(200);
        assert_eq!(document["data"], json!([{"key": "url", "value": link}]));
        assert_eq!(document["context"], *context);
        let trace = get(&at, &format!("/correlations/{}?wait=60s", text(context, "correlationId")));
        assert_eq!(trace.header("ion-outcome"), Some("succeeded"), "{}", trace.text());
        let shown = trace.json();
        let shown = text(of_type(&shown, "shown"), "id");
        let values = get(&at, &format!("/events/{shown}/data/values"));
        let values: Value = serde_json::from_slice(&values.body).unwrap();
        assert_eq!(values, json!([{"key": "url", "value": link}]));
    }
    for wrong in ["", "{}", "{\"url\": 1}", "{\"url\": \"\"}", "not json"] {
        request(&at, "POST", "/", &[], wrong.as_bytes()).problem(400, "malformed");
    }
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn values_files_and_cloudevents_start_a_pipeline_that_can_be_waited_for() {
    let home = Home::new();
    home.program("show", SHOWS);
    home.program("fail", "#!/bin/sh\nexit 3\n");
    let (daemon, at) = up(
        &home,
        "  show: {on: [start], emits: [shown], run: [./show]}\n  fail: {on: [bad], run: [./fail], retries: 0}\n",
    );
    // Returns what the module saw of an event: its values, and its files with their checksums.
    let shown = |answer: Answer| {
        let said = answer.says(200);
        assert_eq!(
            (text(&said, "outcome"), text(&said, "type")),
            ("succeeded", "start"),
            "{said:#}"
        );
        let shown = text(of_type(&said["trace"], "shown"), "id").to_owned();
        let file = |name: &str| get(&at, &format!("/events/{shown}/data/{name}")).text();
        let pairs: Value = serde_json::from_str(&file("values")).unwrap_or_default();
        let pair = |pair: &Value| (text(pair, "key").to_owned(), text(pair, "value").to_owned());
        let mut values: Vec<(String, String)> =
            pairs.as_array().into_iter().flatten().map(pair).collect();
        values.sort();
        (values, file("files"))
    };
    let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        let mut pairs: Vec<_> =
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        pairs.sort();
        pairs
    };

    let values = br#"{"text": "hello", "n": 1.50, "deep": {"a": [1, 2]}, "yes": true}"#;
    let answer = post(&at, "/events/start?wait=60s", "application/json", values);
    let location = answer.header("location").unwrap().to_owned();
    let expected =
        pairs(&[("text", "hello"), ("n", "1.50"), ("deep", r#"{"a": [1, 2]}"#), ("yes", "true")]);
    assert_eq!(shown(answer), (expected, String::new()));
    assert_eq!(
        get(&at, &location).says(200).as_array().unwrap().len(),
        3,
        "the trace has two events and a job"
    );

    let big = vec![b'x'; 3 << 20];
    let parts: &[(Option<&str>, &str, &[u8])] = &[
        (None, "note", "für".as_bytes()),
        (Some("a/b.txt"), "file", b"hello\n"),
        (Some(""), "none", b""),
        (Some("big"), "f", &big),
        (Some("empty"), "f", b""),
    ];
    let (kind, body) = form(parts);
    let (values, files) = shown(post(&at, "/events/start?wait=60s", kind, &body));
    assert_eq!(values, pairs(&[("note", "für")]));
    let sums = [
        "b1946ac92492d2347c6235b4d2611184  ./a/b.txt\n",
        &format!("{}  ./big\n", md5(&home, &big)),
        "d41d8cd98f00b204e9800998ecf8427e  ./empty\n",
    ];
    assert_eq!(files, sums.concat());

    let binary = |form: &str, body: &[u8], id: &str| {
        let headers = [
            ("ce-specversion", "1.0"),
            ("ce-id", id),
            ("ce-source", "/cam%C3%A9ra"),
            ("ce-type", "any.type"),
            ("content-type", form),
        ];
        request(&at, "POST", "/events/start?wait=60s", &headers, body)
    };
    let attributes = |id: &str, form: &str| {
        vec![
            ("ce-specversion".to_owned(), "1.0".to_owned()),
            ("ce-id".into(), id.to_owned()),
            ("ce-source".into(), "/caméra".into()),
            ("ce-type".into(), "any.type".into()),
            ("ce-datacontenttype".into(), form.to_owned()),
        ]
    };
    let (values, files) = shown(binary("image/png", b"hello\n", "1"));
    let mut expected = attributes("1", "image/png");
    expected.sort();
    assert_eq!((values, files.as_str()), (expected, "b1946ac92492d2347c6235b4d2611184  ./data\n"));
    let (values, files) = shown(binary("application/json", b"{\"n\": 1}", "2"));
    let mut expected = attributes("2", "application/json");
    expected.push(("n".into(), "1".into()));
    expected.sort();
    assert_eq!((values, files.as_str()), (expected, ""));
    let structured = json!({
        "specversion": "1.0", "id": "3", "source": "/caméra", "type": "any.type", "datacontenttype": "image/png", "data_base64": "aGVsbG8K",
    });
    let structured = || {
        post(
            &at,
            "/events/start?wait=60s",
            "application/cloudevents+json",
            structured.to_string().as_bytes(),
        )
    };
    let mut expected = attributes("3", "image/png");
    expected.sort();
    assert_eq!(
        shown(structured()),
        (expected, "b1946ac92492d2347c6235b4d2611184  ./data\n".into())
    );
    // CloudEvents with equal source and id are the same event, as their specification says.
    let again = structured().says(200);
    assert_eq!(again["eventId"], structured().says(200)["eventId"]);
    assert_eq!(home.jobs().len(), 5, "each event has one job");

    let failed = post(&at, "/events/bad?wait=60s", "application/json", b"{}").says(200);
    assert_eq!(text(&failed, "outcome"), "failed");
    assert_eq!(daemon.stop(), Some(0));
}

fn md5(home: &Home, content: &[u8]) -> String {
    let output = Command::new("md5sum").arg(home.write("summed", content)).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

#[test]
fn a_wait_has_an_end_and_what_goes_on_is_said() {
    let home = Home::new();
    let go = home.path().join("go");
    home.program(
        "long",
        &format!("#!/bin/sh\nuntil test -e {}; do sleep 0.05; done\n", go.display()),
    );
    let (daemon, at) = up(&home, "  long: {on: [start], run: [./long]}\n");
    let begun = Instant::now();
    let answer = post(&at, "/events/start?wait=300ms", "application/json", b"{}");
    assert!(begun.elapsed() >= Duration::from_millis(300));
    let said = answer.says(202);
    assert_eq!(text(&said, "outcome"), "running");
    let path = format!("/correlations/{}", text(&said, "correlationId"));
    assert_eq!(get(&at, &path).header("ion-outcome"), Some("running"));
    let mut waiting = Http::to(&at);
    waiting.begin("GET", &format!("{path}?wait=60s"), &[]);
    std::fs::write(&go, "").unwrap();
    assert_eq!(waiting.answer("GET").unwrap().header("ion-outcome"), Some("succeeded"));
    // Without `wait` the gateway answers at once.
    let said = post(&at, "/events/start", "application/json", b"{}").says(202);
    assert!(said.get("outcome").is_none() && said.get("trace").is_none(), "{said}");
    // A client that still waits when the daemon stops receives the state of its event.
    std::fs::remove_file(&go).unwrap();
    let mut waiting = Http::to(&at);
    waiting.begin(
        "POST",
        "/events/start?wait=60s",
        &[("content-type", "application/json"), ("content-length", "2")],
    );
    waiting.send(b"{}").unwrap();
    wait_for("the event's job to run", || home.jobs().iter().any(|job| job["state"] == "running"));
    signal(daemon.pid(), "TERM");
    assert_eq!(text(&waiting.answer("POST").unwrap().says(202), "outcome"), "running");
    assert_eq!(daemon.wait(), Some(0));
}

#[test]
fn files_are_given_whole_and_in_ranges_and_never_damaged() {
    let home = Home::new();
    let (daemon, at) = gateway(&home, &[]);
    let content: Vec<u8> =
        (0..(2_u32 << 20) + 17).map(|n| u8::try_from(n * 7 % 251).unwrap()).collect();
    let (kind, body) = form(&[(Some("sub/ä b.bin"), "f", &content), (Some("empty"), "f", b"")]);
    let id = post(&at, "/events/kept", kind, &body).says(202);
    let id = text(&id, "eventId");
    let path = format!("/events/{id}/data/sub/%C3%A4%20b.bin");
    let whole = get(&at, &path);
    assert_eq!((whole.status, &whole.body), (200, &content));
    assert_eq!(get(&at, &path.replace("sub/", "sub%2F")).body, content);
    assert_eq!(get(&at, &path.replace("sub/", ".//sub/")).body, content);
    let tag = whole.header("etag").unwrap().to_owned();
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    assert_eq!(whole.header("content-type"), Some("application/octet-stream"));
    assert_eq!(whole.header("x-content-type-options"), Some("nosniff"));
    let head = request(&at, "HEAD", &path, &[("range", "bytes=0-0")], b"");
    assert_eq!((head.status, head.header("content-length")), (200, Some("2097169")));
    assert_eq!(head.header("etag"), Some(tag.as_str()));
    let with = |headers: &[(&str, &str)]| request(&at, "GET", &path, headers, b"");
    let size = content.len();
    for (range, expected) in [
        ("bytes=0-0", 0..1),
        ("bytes=1048570-1048580", 1_048_570..1_048_581),
        ("bytes=2097160-", 2_097_160..size),
        ("bytes=-5", size - 5..size),
        ("bytes=0-99999999999", 0..size),
    ] {
        let part = with(&[("range", range)]);
        assert_eq!(
            (part.status, part.body.as_slice()),
            (206, &content[expected.clone()]),
            "{range}"
        );
        let which = format!("bytes {}-{}/{size}", expected.start, expected.end - 1);
        assert_eq!(part.header("content-range"), Some(which.as_str()));
    }
    assert_eq!(
        with(&[("range", "bytes=0-1,4-5")]).status,
        200,
        "several ranges are answered with the whole file"
    );
    let beyond = with(&[("range", "bytes=2097169-")]);
    assert_eq!(beyond.header("content-range"), Some("bytes */2097169"));
    beyond.problem(416, "no-such-range");
    assert_eq!(with(&[("if-none-match", &format!("\"x\", W/{tag}"))]).status, 304);
    assert_eq!(with(&[("if-match", &tag)]).status, 200);
    with(&[("if-match", "\"x\"")]).problem(412, "changed");
    assert_eq!(with(&[("range", "bytes=0-0"), ("if-range", &tag)]).status, 206);
    assert_eq!(with(&[("range", "bytes=0-0"), ("if-range", "\"x\"")]).status, 200);
    let empty = get(&at, &format!("/events/{id}/data/empty"));
    assert_eq!((empty.status, empty.header("content-length")), (200, Some("0")));
    for missing in ["nothing", "..%2F..%2Fion.db", "sub", "%00"] {
        get(&at, &format!("/events/{id}/data/{missing}")).problem(404, "not-found");
    }
    get(&at, "/events/none/data/x").problem(404, "not-found");

    // A bit flips on the disk of the blob store, in the file's second block. Another daemon serves
    // the file, because this one has the right block in memory.
    let document = get(&at, &format!("/events/{id}")).says(200);
    let blob = home
        .state()
        .join("blobs")
        .join(text(&document["files"][0], "key").replace("ä b", "%C3%A4 b"));
    let blob = if blob.exists() { blob } else { largest_below(&home.state().join("blobs")) };
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[(1 << 20) + 5] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    assert_eq!(daemon.stop(), Some(0));
    let (daemon, at) = gateway(&home, &[]);
    let good = request(&at, "GET", &path, &[("range", "bytes=0-1048575")], b"");
    assert_eq!((good.status, good.body.as_slice()), (206, &content[..1 << 20]));
    request(&at, "GET", &path, &[("range", "bytes=1048576-")], b"").problem(500, "damaged");
    // An answer that has begun breaks off: it is shorter than its length says.
    let mut broken = Http::to(&at);
    broken.begin("GET", &path, &[]);
    assert!(broken.answer("GET").is_err());
    assert_eq!(daemon.stop(), Some(0));
}

fn largest_below(folder: &std::path::Path) -> std::path::PathBuf {
    let mut all = Vec::new();
    fn walk(folder: &std::path::Path, all: &mut Vec<(u64, std::path::PathBuf)>) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            match entry.path() {
                path if path.is_dir() => walk(&path, all),
                path => all.push((entry.metadata().unwrap().len(), path)),
            }
        }
    }
    walk(folder, &mut all);
    all.into_iter().max().unwrap().1
}

/// Reads the next event of a stream: its id, its type and its lines of data. Comments are skipped.
fn sse(http: &mut Http, rest: &mut String) -> Option<(String, String, Vec<String>)> {
    loop {
        while let Some((event, after)) = rest.split_once("\n\n") {
            let event = event.to_owned();
            *rest = after.to_owned();
            let field = |name: &str| -> Vec<String> {
                event
                    .lines()
                    .filter_map(|line| {
                        Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned())
                    })
                    .collect()
            };
            if !event.starts_with(':') {
                return Some((field("id").concat(), field("event").concat(), field("data")));
            }
        }
        rest.push_str(&String::from_utf8(http.chunk()?).unwrap());
    }
}

#[test]
fn a_log_is_followed_until_the_job_ends() {
    let home = Home::new();
    let go = home.path().join("go");
    home.program(
        "talk",
        &format!(
            "#!/bin/sh\necho attempt $ION_ATTEMPT\nprintf 'one\\rtwo\\n'\ntest $ION_ATTEMPT = 2 || exit 1\nprintf '50%%\\r'\nuntil test -e {}; do sleep 0.05; done\nprintf '\\nlate\\nno end'\n",
            go.display()
        ),
    );
    let (daemon, at) = up(&home, "  talk: {on: [start], run: [./talk], retries: 1}\n");
    post(&at, "/events/start", "application/json", b"{}").says(202);
    let mut job = String::new();
    wait_for("the job to be in the ledger", || {
        job = home.jobs().first().map(|job| text(job, "id").to_owned()).unwrap_or_default();
        !job.is_empty()
    });
    let path = format!("/jobs/{job}/log");
    let follow = |more: &[(&str, &str)]| {
        let mut http = Http::to(&at);
        http.begin("GET", &path, &[&[("accept", "text/event-stream")], more].concat());
        let head = http.head().unwrap();
        assert_eq!(head.status, 200);
        assert_eq!(head.header("content-type"), Some("text/event-stream"));
        http
    };
    // The client reads from the first attempt on, however far the job is by now.
    let mut all = follow(&[("last-event-id", "1:0")]);
    let (mut rest, mut lines) = (String::new(), Vec::new());
    let mut ids = Vec::new();
    // The progress `50%` arrives at once, although no newline follows it.
    while lines.len() < 8 {
        let (id, kind, some) = sse(&mut all, &mut rest).unwrap();
        assert_eq!(kind, "");
        ids.push(id);
        lines.extend(some);
    }
    assert_eq!(
        lines,
        ["attempt 1", "one", "two", "ion: exit status 1", "attempt 2", "one", "two", "50%"]
    );
    assert_eq!(ids.last().map(String::as_str), Some("2:22"));
    let now = get(&at, &path);
    assert_eq!((now.status, now.text().as_str()), (200, "attempt 2\none\rtwo\n50%\r"));
    assert_eq!(
        get(&at, &format!("{path}?attempt=1")).text(),
        "attempt 1\none\rtwo\nion: exit status 1\n"
    );
    // Another client comes later, and continues after a byte that it has seen.
    let mut later = follow(&[("last-event-id", "2:10")]);
    std::fs::write(&go, "").unwrap();
    let mut to_its_end = |http: &mut Http| {
        let mut lines = Vec::new();
        loop {
            let (id, kind, some) = sse(http, &mut rest).unwrap();
            if kind == "end" {
                assert_eq!(id, "end");
                let end: Value = serde_json::from_str(&some.concat()).unwrap();
                assert_eq!(
                    (text(&end, "state"), end["attempt"].as_u64()),
                    ("succeeded", Some(2)),
                    "{end}"
                );
                assert!(sse(http, &mut rest).is_none(), "no event follows the end");
                return lines;
            }
            lines.extend(some);
        }
    };
    assert_eq!(to_its_end(&mut all), ["late", "no end"]);
    assert_eq!(to_its_end(&mut later), ["one", "two", "50%", "late", "no end"]);
    assert_eq!(to_its_end(&mut follow(&[])), ["attempt 2", "one", "two", "50%", "late", "no end"]);
    let over = request(
        &at,
        "GET",
        &path,
        &[("accept", "text/event-stream"), ("last-event-id", "end")],
        b"",
    );
    assert_eq!(over.status, 204, "a browser that connects again is told to stop");
    assert_eq!(get(&at, &path).text(), "attempt 2\none\rtwo\n50%\r\nlate\nno end");
    get(&at, &format!("{path}?attempt=3")).problem(404, "not-found");
    get(&at, &format!("{path}?attempt=x")).problem(400, "malformed");
    get(&at, "/jobs/none/log").problem(404, "not-found");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn the_same_key_and_body_is_the_same_event_across_gateways_and_restarts() {
    let home = Home::new();
    home.program("count", "#!/bin/sh\ntrue\n");
    let (daemon, at) = up(&home, "  count: {on: [start], run: [./count]}\n");
    let other = home.on_another_host();
    let (second, second_at) = gateway(&other, &[]);
    let (kind, body) = form(&[(Some("f"), "f", &[7; 100_000]), (None, "n", b"1")]);
    let send = |at: &str, key: &str, body: &[u8]| {
        request(
            at,
            "POST",
            "/events/start",
            &[("content-type", kind), ("idempotency-key", key)],
            body,
        )
    };
    // Eight clients send the request at the same time, four to each gateway.
    let ids: Vec<String> = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..8)
            .map(|n| {
                let (at, body, send) = (if n % 2 == 0 { &at } else { &second_at }, &body, &send);
                scope.spawn(move || {
                    text(&send(at, "\"order-7\"", body).says(202), "eventId").to_owned()
                })
            })
            .collect();
        senders.into_iter().map(|sender| sender.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    // The copies of the file that the other requests brought are removed. The copy that the event
    // names stays.
    wait_for("the other copies to be removed", || {
        files_below(&home.state().join("blobs")) == 1 + logs(&home)
    });
    assert_eq!(get(&second_at, &format!("/events/{}/data/f", ids[0])).body, [7; 100_000]);
    let (_, changed) = form(&[(Some("f"), "f", &[8; 100_000]), (None, "n", b"1")]);
    let problem = send(&second_at, "order-7", &changed).problem(422, "key-reused");
    assert_eq!(text(&problem, "eventId"), ids[0]);
    assert_eq!(
        get(&second_at, &format!("/events/{}/data/f", ids[0])).body,
        [7; 100_000],
        "the event's file stays as it was"
    );
    let elsewhere =
        request(&at, "POST", "/", &[("idempotency-key", "order-7")], b"{\"url\": \"x\"}");
    elsewhere.problem(422, "key-reused");
    assert_ne!(text(&send(&at, "order-8", &changed).says(202), "eventId"), ids[0]);
    wait_for("both jobs to succeed", || {
        home.jobs().iter().filter(|job| job["state"] == "succeeded").count() == 2
    });
    assert_eq!(second.stop(), Some(0));
    assert_eq!(daemon.stop(), Some(0));
    let (third, third_at) = gateway(&other, &[]);
    assert_eq!(text(&send(&third_at, "order-7", &body).says(202), "eventId"), ids[0]);
    send(&third_at, "order-7", &changed).problem(422, "key-reused");
    assert_eq!(third.stop(), Some(0));
    assert_eq!(home.jobs().len(), 2, "no event has started two jobs");
    home.run(["check", "--deep"]).well();
}

/// Returns the number of blobs that are logs.
fn logs(home: &Home) -> usize {
    home.jobs()
        .iter()
        .flat_map(|job| job["attempts"].as_array().unwrap().clone())
        .filter(|attempt| attempt["log"]["size"].as_u64() > Some(0))
        .count()
}

/// Returns a MiB of pseudo-random bytes, different ones for each `block`. They cannot be
/// compressed, and nothing produces them by chance.
fn noise(block: u64) -> Vec<u8> {
    let mut state = block.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = vec![0; 1 << 20];
    for eight in bytes.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        eight.copy_from_slice(&state.to_le_bytes());
    }
    bytes
}

#[test]
fn on_servers_a_key_is_one_event_too_and_a_store_that_is_away_is_said() {
    let (mut rabbit, mongo, s3) = std::thread::scope(|scope| {
        let rabbit = scope.spawn(Rabbit::start);
        let mongo = scope.spawn(Mongo::start);
        let s3 = S3::start();
        (rabbit.join().unwrap(), mongo.join().unwrap(), s3)
    });
    let env = plane(&mongo.database("ion"), &rabbit.url, &format!("{}/test", s3.url), &s3.env);
    let (mut home, mut other) = (Home::new(), Home::new());
    home.env = env.clone();
    other.env = [env, vec![("ION_COMMIT_DEADLINE".into(), "10s".into())]].concat();
    home.program("count", "#!/bin/sh\nwc -c < /ion/in/data/f\n");
    let (daemon, at) = up(&home, "  count: {on: [start], run: [./count]}\n");
    let (second, second_at) = gateway(&other, &[]);
    // The file takes more than one part of an upload.
    let content: Vec<u8> = (0..9).flat_map(noise).collect();
    let (kind, body) = form(&[(Some("f"), "f", &content)]);
    let send = |at: &str, key: &str, body: &[u8]| {
        request(
            at,
            "POST",
            "/events/start?wait=60s",
            &[("content-type", kind), ("idempotency-key", key)],
            body,
        )
    };
    let ids: Vec<String> = std::thread::scope(|scope| {
        let senders: Vec<_> = [&at, &second_at, &at, &second_at]
            .map(|at| {
                let (body, send) = (&body, &send);
                scope.spawn(move || text(&send(at, "one", body).says(200), "eventId").to_owned())
            })
            .into();
        senders.into_iter().map(|sender| sender.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(home.jobs().len(), 1);
    let path = format!("/events/{}/data/f", ids[0]);
    let part = request(&second_at, "GET", &path, &[("range", "bytes=1048000-3000000")], b"");
    assert_eq!((part.status, part.body.as_slice()), (206, &content[1_048_000..=3_000_000]));
    let (_, changed) = form(&[(Some("f"), "f", &content[1..])]);
    send(&second_at, "one", &changed).problem(422, "key-reused");

    // The broker is unavailable. The event is committed all the same, and a relay publishes it.
    rabbit.server.stop();
    let headers = [("content-type", "application/json"), ("idempotency-key", "two")];
    let told = Instant::now();
    let committed = request(&second_at, "POST", "/events/other", &headers, b"{}").says(202);
    assert!(told.elapsed() < Duration::from_secs(30), "{:?}", told.elapsed());
    rabbit.server.start();
    rabbit.wait_until_it_serves();
    let trace = format!("/correlations/{}?wait=60s", text(&committed, "correlationId"));
    assert_eq!(get(&second_at, &trace).header("ion-outcome"), Some("succeeded"));

    // The document store stands still. Clients receive an error that says so, and receive it in
    // time.
    mongo.server.pause();
    let asked = Instant::now();
    assert_eq!(get(&second_at, "/healthz").status, 200);
    // The store's process may still answer for a moment after it was told to stand still.
    let mut away = get(&second_at, "/healthz");
    wait_for("the document store to stand still", || {
        away = get(&second_at, "/readyz");
        away.status != 200
    });
    assert_eq!(away.header("retry-after"), Some("5"));
    away.problem(503, "stores-away");
    let headers = [("content-type", "application/json"), ("idempotency-key", "three")];
    request(&second_at, "POST", "/events/other", &headers, b"{}").problem(503, "stores-away");
    assert!(asked.elapsed() < Duration::from_secs(45), "{:?}", asked.elapsed());
    mongo.server.resume();
    wait_for("the stores to answer", || get(&second_at, "/readyz").status == 200);
    let event = request(&second_at, "POST", "/events/other", &headers, b"{}").says(202);
    assert_eq!(
        event["eventId"],
        request(&at, "POST", "/events/other", &headers, b"{}").says(202)["eventId"]
    );
    assert_eq!(second.stop(), Some(0));
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn health_readiness_and_numbers_are_shown() {
    let home = Home::new();
    let (daemon, at) = gateway(&home, &["--metrics", "127.0.0.1:0"]);
    assert_eq!(get(&at, "/healthz").says(200), json!({"status": "alive"}));
    assert_eq!(get(&at, "/readyz").says(200), json!({"status": "ready"}));
    post(&at, "/events/start", "application/json", b"{}").says(202);
    post(&at, "/events/start", "text/plain", b"{}").problem(415, "wrong-form");
    let numbers = get(&at, "/metrics");
    assert_eq!(
        numbers.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    let numbers = numbers.text();
    for line in [
        "ion_gateway_requests_total{route=\"/events/{event}\",status=\"202\"} 1",
        "ion_gateway_requests_total{route=\"/events/{event}\",status=\"415\"} 1",
        "ion_gateway_requests_total{route=\"/healthz\",status=\"200\"} 1",
        "ion_commit_step_seconds_count{step=\"insert\"} 1",
    ] {
        assert!(numbers.lines().any(|one| one == line), "{line}: {numbers}");
    }
    wait_for("only this connection to be open", || harm::connections(&at) == 1.0);
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    for name in ["ion_gateway_requests_total", "ion_gateway_connections"] {
        assert!(page.contains(&format!("| `{name}` |")), "{name}");
    }
    let log = daemon.log();
    let apart = log.split("metrics are at http://").nth(1).unwrap().split('/').next().unwrap();
    assert!(
        get(apart, "/metrics").text().contains("ion_gateway_connections"),
        "both addresses show the same metrics"
    );
    let document = get(&at, "/openapi.json").says(200);
    assert_eq!(text(&document, "openapi"), "3.1.0");
    assert_eq!(daemon.stop(), Some(0));
}
