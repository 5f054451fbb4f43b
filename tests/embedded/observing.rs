//! Tests of what operators see: metrics, which Prometheus's own parser reads here, and spans, which
//! a collector in this file receives.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::{DEADLINE, Home, RunningCommand, may_mount_or_runs_where_it_may, wait_for};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValue;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message as _;
use serde_json::Value;

/// The length in bytes of the text that goes through the pipeline.
const TEXT: usize = 5000;

/// Writes a text and the pipeline that it goes through: `first` passes it on in capitals, and the
/// program `second` reads those. Returns the path of the pipeline file.
fn pipeline(home: &Home, second: &str) -> std::path::PathBuf {
    home.write("text.txt", "a".repeat(TEXT));
    home.program(
        "first",
        "#!/bin/sh\nset -e\ndd if=/ion/in/data/text.txt of=/dev/null bs=4096 count=2 iflag=direct status=none\ntr a-z A-Z < /ion/in/data/text.txt > /ion/out/data/big.txt\necho '{\"eventType\":\"big\",\"files\":[\"big.txt\"]}' > /ion/out/events/big.json\n",
    );
    home.program("second", second);
    home.write(
        "pipeline.yaml",
        "name: test\nmodules:\n  first: {on: [text], emits: [big], run: [./first]}\n  second: {on: [big], emits: [], run: [./second], retries: 0}\n",
    )
}

/// Sends a GET request, with this bearer token if there is one. Returns the status and the body of
/// the answer.
fn get(address: &str, path: &str, token: Option<&str>) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n{token}Connection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    if path == "/metrics" && head.contains(" 200 ") {
        assert!(head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
    }
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Returns the address where the daemon says that its metrics are.
fn address(up: &RunningCommand) -> String {
    address_in(&up.log())
}

fn address_in(log: &str) -> String {
    let rest = log.split("metrics are at http://").nth(1).unwrap();
    rest.split("/metrics").next().unwrap().to_owned()
}

/// Returns the value of each sample, as the reference implementation of the OpenMetrics format
/// reads it.
fn samples(address: &str) -> BTreeMap<String, f64> {
    const PARSER: &str = "
import json, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
samples = {}
for family in text_string_to_metric_families(sys.stdin.read()):
    assert family.documentation and family.type != 'unknown', family
    for sample in family.samples:
        labels = ','.join(f'{key}={value}' for key, value in sorted(sample.labels.items()))
        samples[sample.name + '{' + labels + '}' if labels else sample.name] = sample.value
print(json.dumps(samples))";
    let (status, text) = get(address, "/metrics", None);
    assert_eq!(status, 200, "{text}");
    // The parser is a Debian package, which only Debian's own Python finds.
    let mut parser = Command::new("/usr/bin/python3")
        .args(["-c", PARSER])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    parser.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let parsed = parser.wait_with_output().unwrap();
    assert!(parsed.status.success(), "{text}");
    serde_json::from_slice(&parsed.stdout).unwrap()
}

#[test]
fn metrics_say_what_ran() {
    let home = Home::new();
    // `second` may not publish events of the type `other`. Its event is refused, so its job fails.
    let second = "#!/bin/sh\ncat /ion/in/data/big.txt | wc -c\necho '{\"eventType\":\"other\"}' > /ion/out/events/other.json\n";
    let file = pipeline(&home, second);
    let up = home.up_with(&["--metrics", "127.0.0.1:0", "--no-passthrough"], &file);
    let address = address(&up);
    assert_eq!(get(&address, "/ready", None), (200, "ready\n".into()));
    let before = samples(&address);
    assert_eq!((before["ion_commits_total"], before["ion_job_mount_seconds_count"]), (0.0, 0.0));

    home.run(["event", "create", "text", "--file", "text.txt", "--wait"]);
    let after = samples(&address);
    let text = TEXT as f64;
    for (name, expected) in [
        ("ion_jobs_started_total{module=first}", 1.0),
        ("ion_jobs_started_total{module=second}", 1.0),
        ("ion_jobs_ended_total{module=first,verdict=succeeded}", 1.0),
        ("ion_jobs_ended_total{module=second,verdict=failed}", 1.0),
        ("ion_jobs_running{module=first}", 0.0),
        ("ion_claims_total{outcome=started}", 2.0),
        ("ion_read_bytes_total{origin=store}", 2.0 * text),
        ("ion_read_bytes_total{origin=disk}", 0.0),
        ("ion_cache_misses_total", 2.0),
        ("ion_opens_total{mode=passthrough}", 0.0),
        ("ion_uploaded_bytes_total", text),
        ("ion_commits_total", 1.0),
        ("ion_refusals_total", 1.0),
        ("ion_event_close_seconds_count", 2.0),
        ("ion_job_mount_seconds_count", 2.0),
        ("ion_job_first_read_seconds_count", 2.0),
        ("ion_commit_step_seconds_count{step=store-blobs}", 1.0),
        ("ion_commit_step_seconds_count{step=insert}", 1.0),
        ("ion_commit_step_seconds_count{step=publish}", 1.0),
        ("ion_commit_step_seconds_count{step=mark}", 1.0),
        ("ion_relayed_events_total", 0.0),
        ("ion_outbox_events", 0.0),
    ] {
        assert_eq!(after.get(name), Some(&expected), "{name}: {after:#?}");
    }
    // `dd` reads past the kernel's own cache. So the daemon's memory serves the second piece that
    // `dd` reads, and all that the kernel asks of the text after that.
    assert!(after["ion_read_bytes_total{origin=memory}"] >= text - 4096.0, "{after:#?}");
    assert!(after["ion_cache_hits_total"] >= 1.0);
    assert!(after["ion_opens_total{mode=served}"] >= 3.0);
    assert!(after["ion_cache_memory_bytes"] >= 0.0);
    let mounts = after["ion_job_mount_seconds_sum"];
    assert!(mounts > 0.0 && mounts < DEADLINE.as_secs_f64(), "{mounts} s");
    documented(&after);

    let kept_open = TcpStream::connect(&address).unwrap();
    assert_eq!(up.stop(), Some(0), "an open connection does not delay the end of the daemon");
    drop(kept_open);
    assert!(TcpStream::connect(&address).is_err());
}

/// Asserts that docs/metrics.md has a row for each sample.
fn documented(samples: &BTreeMap<String, f64>) {
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    for name in samples.keys() {
        let name = name.split('{').next().unwrap();
        let family = ["_count", "_sum", "_bucket"]
            .iter()
            .find_map(|end| name.strip_suffix(end))
            .unwrap_or(name);
        assert!(page.contains(&format!("| `{family}` |")), "{family}");
    }
}

#[test]
fn a_relay_and_a_mount_have_metrics_too() {
    let home = Home::new();
    let relay = home.start("relay", &["--metrics", "127.0.0.1:0"]);
    assert_eq!(get(&address(&relay), "/ready", None).0, 200);
    assert_eq!(samples(&address(&relay))["ion_relayed_events_total"], 0.0);
    assert_eq!(relay.stop(), Some(0));

    if !may_mount_or_runs_where_it_may("a_relay_and_a_mount_have_metrics_too") {
        return;
    }
    let plane = home.path().join("ready");
    let mount = home.start("mount", &["--metrics", "127.0.0.1:0", plane.to_str().unwrap()]);
    assert!(samples(&address(&mount)).contains_key("ion_cache_memory_bytes"));
    assert_eq!(mount.stop(), Some(0));
}

#[test]
fn a_daemon_is_not_ready_before_its_stores_are() {
    // This server takes connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let home = Home::new();
    let log = home.write("log", "");
    let mut relay = home
        .ion()
        .args(["relay", "--metrics", "127.0.0.1:0"])
        .env("ION_DOCUMENTS", format!("mongodb://{}/ion", silent.local_addr().unwrap()))
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let log = || std::fs::read_to_string(&log).unwrap();
    wait_for("the address of the metrics to be shown", || log().contains("/metrics"));
    let ready = get(&address_in(&log()), "/ready", None);
    relay.kill().unwrap();
    relay.wait().unwrap();
    assert_eq!(ready, (503, "not ready\n".into()), "{}", log());
}

#[test]
fn metrics_are_refused_where_they_cannot_be_served_or_would_be_open_to_all() {
    let mut home = Home::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let refused = home.run(["relay", "--metrics", &taken]);
    assert_eq!(refused.code, Some(1));
    // Metrics that other machines can reach need a token.
    let open = home.run(["relay", "--metrics", "0.0.0.0:0"]).failed();
    assert!(open.stderr.contains("ION_METRICS_TOKEN"), "{open:?}");

    home.env.push(("ION_METRICS_TOKEN".into(), "open-sesame".into()));
    let relay = home.start("relay", &["--metrics", "0.0.0.0:0"]);
    let address = address(&relay).replace("0.0.0.0", "127.0.0.1");
    assert_eq!(get(&address, "/metrics", None).0, 401);
    assert_eq!(get(&address, "/metrics", Some("open-sesamE")).0, 401);
    assert_eq!(get(&address, "/metrics", Some("open-sesame")).0, 200);
    for open in ["/ready", "/healthz"] {
        assert_eq!(get(&address, open, None).0, 200, "{open} needs no token");
    }
    assert!(!relay.log().contains("sesame"));
    assert_eq!(relay.stop(), Some(0));
}

/// What a collector has received: the heads of the requests, the names of the services, and the
/// spans.
#[derive(Default)]
struct Received {
    heads: Vec<String>,
    services: Vec<Option<AnyValue>>,
    spans: Vec<Span>,
}

/// Starts a collector, which receives spans by OTLP over HTTP. Returns its URL and what it
/// receives.
fn collector() -> (String, Arc<Mutex<Received>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let received = Arc::<Mutex<Received>>::default();
    let into = received.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            let body_at = loop {
                let length = stream.read(&mut buffer).unwrap();
                assert_ne!(length, 0, "the connection brings the whole head of a request");
                request.extend_from_slice(&buffer[..length]);
                if let Some(at) = request.windows(4).position(|four| four == b"\r\n\r\n") {
                    break at + 4;
                }
            };
            let head = String::from_utf8(request[..body_at].to_vec()).unwrap().to_lowercase();
            let length =
                head.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap();
            let length: usize = length.parse().unwrap();
            let mut body = request.split_off(body_at);
            let read = body.len();
            body.resize(length, 0);
            stream.read_exact(&mut body[read..]).unwrap();
            let message = ExportTraceServiceRequest::decode(&body[..]).unwrap();
            let mut into = into.lock().unwrap();
            into.heads.push(head);
            for of_resource in message.resource_spans {
                let attributes = of_resource.resource.unwrap().attributes;
                let service =
                    attributes.into_iter().find(|attribute| attribute.key == "service.name");
                into.services.push(service.and_then(|service| service.value.unwrap().value));
                into.spans
                    .extend(of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                .unwrap();
        }
    });
    (url, received)
}

fn attribute(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.clone()?.value) {
        Some(AnyValue::StringValue(text)) => text,
        Some(AnyValue::IntValue(number)) => number.to_string(),
        other => panic!("the attribute {key} is {other:?} in {span:#?}"),
    }
}

#[test]
fn the_spans_of_a_pipeline_are_one_trace() {
    let (url, received) = collector();
    let mut home = Home::new();
    home.env.push(("OTEL_EXPORTER_OTLP_ENDPOINT".into(), url));
    home.env
        .push(("OTEL_EXPORTER_OTLP_HEADERS".into(), "authorization=Bearer%20open-sesame".into()));
    let file = pipeline(&home, "#!/bin/sh\ncat /ion/in/data/big.txt | wc -c\nenv\nexit 3\n");
    let up = home.up_with(&["-vv"], &file);
    home.run(["event", "create", "text", "--file", "text.txt", "--wait"]);
    let jobs = home.jobs();
    let log = up.log();
    assert!(log.contains("ION_EVENT_ID="), "the log shows the environment of the module: {log}");
    assert!(!log.contains("sesame") && !log.contains("OTEL_"), "the log shows no secret: {log}");
    assert_eq!(up.stop(), Some(0));

    let received = received.lock().unwrap();
    assert!(received.heads.iter().all(|head| {
        head.starts_with("post /v1/traces ")
            && head.contains("authorization: bearer open-sesame")
            && head.contains("content-type: application/x-protobuf")
    }));
    assert!(
        received.services.iter().all(|name| *name == Some(AnyValue::StringValue("ion".into())))
    );

    let of = |module: &str| jobs.iter().find(|job| job["module"] == module).unwrap();
    let spans = &received.spans;
    let job = |module: &str| {
        let mut all = spans
            .iter()
            .filter(|span| span.name == "job" && attribute(span, "ion.module") == module);
        let one = all.next().unwrap();
        assert!(all.next().is_none());
        let record: &Value = of(module);
        assert_eq!(attribute(one, "ion.job.id"), record["id"].as_str().unwrap());
        assert_eq!(attribute(one, "ion.event.id"), record["eventId"].as_str().unwrap());
        assert_eq!(attribute(one, "ion.attempt"), "1");
        assert!(one.end_time_unix_nano > one.start_time_unix_nano);
        one
    };
    let (first, second) = (job("first"), job("second"));
    let correlation = attribute(first, "ion.correlation.id");
    let trace: String = first.trace_id.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        trace,
        correlation.replace('-', ""),
        "the trace has the id of the correlation, so that people find one by the other"
    );
    assert_eq!(attribute(second, "ion.correlation.id"), correlation);
    assert!(spans.iter().all(|span| span.trace_id == first.trace_id), "{spans:#?}");
    assert_eq!(first.parent_span_id, [0; 0], "the span of the first job has no parent");
    assert_eq!(
        second.parent_span_id, first.span_id,
        "the parent of the second job is the job whose event it works on"
    );
    assert_eq!(attribute(first, "ion.verdict"), "succeeded");
    assert_eq!(attribute(second, "ion.verdict"), "failed");
    let status = second.status.clone().unwrap();
    assert_eq!((status.code(), status.message.as_str()), (StatusCode::Error, "exit status 3"));

    let below = |parent: &Span| {
        let mut names: Vec<&str> = spans
            .iter()
            .filter(|span| span.parent_span_id == parent.span_id && span.name != "job")
            .map(|span| {
                assert!(span.start_time_unix_nano >= parent.start_time_unix_nano, "{span:#?}");
                span.name.as_str()
            })
            .collect();
        names.sort_unstable();
        names
    };
    assert_eq!(below(first), ["commit", "exit", "first read", "mount"]);
    assert_eq!(below(second), ["exit", "first read", "mount"]);
    let commit = spans.iter().find(|span| span.name == "commit").unwrap();
    assert_eq!(attribute(commit, "ion.event.file"), "big.json");
    assert_eq!(attribute(commit, "ion.event.id"), attribute(second, "ion.event.id"));
    assert_eq!(below(commit), ["insert", "mark", "publish", "store-blobs"]);
}

/// The collector takes connections and never answers. The pipeline runs all the same, and the
/// daemon ends in less than 45 seconds.
#[test]
fn a_collector_that_does_not_answer_holds_nothing_up() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut home = Home::new();
    home.env.push((
        "OTEL_EXPORTER_OTLP_ENDPOINT".into(),
        format!("http://{}", silent.local_addr().unwrap()),
    ));
    let file = pipeline(&home, "#!/bin/sh\ncat /ion/in/data/big.txt | wc -c\n");
    let up = home.up(&file);
    home.run(["event", "create", "text", "--file", "text.txt", "--wait"]).well();
    let begun = Instant::now();
    assert_eq!(up.stop(), Some(0));
    assert!(
        begun.elapsed() < Duration::from_secs(45),
        "the daemon took {:?} to end",
        begun.elapsed()
    );
}

/// A process inserts an event and dies before it publishes the event. A relay publishes it, and the
/// relay's span is in the trace of the event.
#[test]
fn a_relay_publishes_in_the_trace_of_the_event() {
    let (url, received) = collector();
    let mut home = Home::new();
    let file = pipeline(&home, "#!/bin/sh\ntrue\n");
    home.env = vec![("ION_FAILPOINTS".into(), "commit.inserted=1".into())];
    let pipeline = ["--pipeline", file.to_str().unwrap(), "--file", "text.txt"];
    assert_eq!(
        home.run([&["run", "first"], &pipeline[..]].concat()).code,
        None,
        "the failpoint kills the command"
    );
    home.env = vec![("OTEL_EXPORTER_OTLP_ENDPOINT".into(), url)];
    let relay = home.start("relay", &["--metrics", "127.0.0.1:0"]);
    let at = address(&relay);
    wait_for("the event to be in the outbox", || samples(&at)["ion_outbox_events"] == 1.0);
    wait_for("the relay to publish the event", || samples(&at)["ion_relayed_events_total"] == 1.0);
    assert_eq!(relay.stop(), Some(0));

    let received = received.lock().unwrap();
    let relay = received.spans.iter().find(|span| span.name == "relay").unwrap();
    let trace: String = relay.trace_id.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(trace, attribute(relay, "ion.correlation.id").replace('-', ""));
    assert_eq!(
        relay.parent_span_id.len(),
        8,
        "the span has a parent: the attempt that committed the event"
    );
    let steps = received.spans.iter().filter(|span| span.parent_span_id == relay.span_id);
    let steps: Vec<&str> = steps.map(|span| span.name.as_str()).collect();
    assert_eq!(steps, ["adopt", "publish", "mark"]);
}
