//! Shows what each token allows, which requests the gateway refuses, and that the gateway does what
//! its OpenAPI document says. The tests use the embedded stores; one test runs Schemathesis.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use super::webhooks;
use super::{SHOWS, address, files_below, gateway, text, up};
use crate::support::http::{Http, form, get, request};
use crate::support::{Home, wait_for};

#[test]
fn tokens_may_do_what_their_scopes_say() {
    const WRITES: &str = "0123456789abcdef-writes";
    const READS: &str = "0123456789abcdef-reads";
    const OPERATES: &str = "0123456789abcdef-operates";
    let mut home = Home::new();
    let open = home.run(["gateway", "--listen", "0.0.0.0:0"]).failed();
    assert!(open.stderr.contains("--gateway-tokens"), "{open:?}");
    let list = format!(
        "# who may\nci events:write,jobs:write {WRITES}\n\nview events:read,jobs:read {READS}\n"
    );
    let file = home.write("tokens", list);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let flags = ["--listen", "0.0.0.0:0", "--gateway-tokens", file.to_str().unwrap()];
    let seen = home.run([&["gateway"], &flags[..]].concat()).failed();
    assert!(
        seen.stderr.contains("chmod 600") && !seen.stderr.contains("0123456789abcdef"),
        "{seen:?}"
    );
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    home.env.push(("ION_GATEWAY_TOKENS".into(), "ops all hush-hush".into()));
    let short = home.run([&["gateway"], &flags[..]].concat()).failed();
    assert!(
        short.stderr.contains("ION_GATEWAY_TOKENS: line 1") && !short.stderr.contains("hush"),
        "{short:?}"
    );
    home.env[0].1 = format!("ops metrics:read {OPERATES}");
    let daemon = home.start("gateway", &[&flags[..], &["-vv"]].concat());
    let at = address(&daemon).replace("0.0.0.0", "127.0.0.1");

    let with = |method: &str, path: &str, token: &str, body: &[u8]| {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        request(&at, method, path, if token.is_empty() { &headers[1..] } else { &headers }, body)
    };
    let event = with("POST", "/events/start", WRITES, b"{}").says(202);
    let event = text(&event, "eventId");
    let routes = [
        ("POST", "/events/start".to_owned(), WRITES),
        ("POST", "/".to_owned(), WRITES),
        ("POST", format!("/events/{event}/cancel"), WRITES),
        ("POST", "/correlations/none/cancel".to_owned(), WRITES),
        ("GET", format!("/events/{event}"), READS),
        ("GET", "/correlations/none".to_owned(), READS),
        ("GET", format!("/events/{event}/data/none"), READS),
        ("HEAD", format!("/events/{event}"), READS),
        ("GET", "/jobs/none/log".to_owned(), READS),
        ("GET", "/metrics".to_owned(), OPERATES),
    ];
    for (method, path, right) in &routes {
        for token in ["", WRITES, READS, OPERATES, "0123456789abcdef-writeS", "0123456789abcdef"] {
            let answer = with(method, path, token, b"{\"url\": \"x\"}");
            let asked = answer.header("www-authenticate").map(str::to_owned);
            let what = format!("{method} {path} with {token:?}");
            if token == *right {
                assert!(answer.status != 401 && answer.status != 403, "{what}");
            } else if [WRITES, READS, OPERATES].contains(&token) {
                assert_eq!(answer.status, 403, "{what}");
                assert!(asked.unwrap().contains("insufficient_scope"));
            } else {
                assert_eq!(answer.status, 401, "{what}");
                assert!(asked.unwrap().starts_with("Bearer realm="));
            }
        }
    }
    let problem = with("POST", "/events/start", READS, b"{}").problem(403, "scope-needed");
    assert_eq!(text(&problem, "scope"), "events:write");
    for open in ["/healthz", "/readyz", "/openapi.json"] {
        assert_eq!(get(&at, open).status, 200, "{open} shows nothing that needs a token");
    }
    // With tokens the gateway answers under any host name, because no page in a browser knows a
    // token.
    assert_eq!(request(&at, "GET", "/healthz", &[("host", "ion.example")], b"").status, 200);
    let argv = std::fs::read(format!("/proc/{}/cmdline", daemon.pid())).unwrap();
    assert!(!String::from_utf8_lossy(&argv).contains("0123456789abcdef"));
    assert!(!daemon.log().contains("0123456789abcdef"), "{}", daemon.log());
    assert_eq!(daemon.stop(), Some(0));
}

/// The trace of an event is only for a token that may read events. A sender whose token may only
/// write receives the outcome without the trace.
#[test]
fn who_may_only_write_is_told_the_outcome_and_not_the_trace() {
    const WRITES: &str = "0123456789abcdef-writes";
    const BOTH: &str = "0123456789abcdef-both";
    let mut home = Home::new();
    let tokens = format!("ci events:write {WRITES}\nall events:write,events:read {BOTH}\n");
    home.env.push(("ION_GATEWAY_TOKENS".into(), tokens));
    home.program(
        "tell",
        "#!/bin/sh\necho '{\"eventType\":\"told\",\"secret\":\"hush\"}' > /ion/out/events/e\n",
    );
    let (daemon, at) = up(&home, "  tell: {on: [start], emits: [told], run: [./tell]}\n");
    let send = |path: &str, token: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        request(&at, "POST", path, &headers, b"{}").says(200)
    };
    let told = send("/events/start?wait=60s", WRITES);
    assert_eq!(text(&told, "outcome"), "succeeded");
    assert!(told.get("trace").is_none() && !told.to_string().contains("hush"), "{told}");
    let told = send("/events/start?wait=60s", BOTH);
    assert_eq!(text(&told, "outcome"), "succeeded");
    assert!(told["trace"].to_string().contains("hush"), "{told}");
    assert_eq!(daemon.stop(), Some(0));
}

/// A proxy and the gateway behind it must not take one request for requests to two hosts.
#[test]
fn a_request_that_does_not_name_one_host_is_refused() {
    let home = Home::new();
    let (daemon, at) = gateway(&home, &["--metrics", "127.0.0.1:0"]);
    let apart = daemon
        .log()
        .split("metrics are at http://")
        .nth(1)
        .unwrap()
        .split('/')
        .next()
        .unwrap()
        .to_owned();
    for at in [&at, &apart] {
        let send = |head: &str| {
            let mut http = Http::to(at);
            http.send(format!("{head}\r\n\r\n").as_bytes()).unwrap();
            http.answer("GET").unwrap()
        };
        assert_eq!(send(&format!("GET /healthz HTTP/1.1\r\nhost: {at}")).status, 200);
        assert_eq!(send(&format!("GET http://{at}/healthz HTTP/1.1\r\nhost: {at}")).status, 200);
        for twice in [at.as_str(), "evil.example"] {
            let head = format!("GET /healthz HTTP/1.1\r\nhost: {at}\r\nhost: {twice}");
            send(&head).problem(400, "malformed");
        }
        send("GET /healthz HTTP/1.1").problem(400, "malformed");
        send(&format!("GET /healthz HTTP/1.1\r\nhost: evil.example@{at}"))
            .problem(400, "malformed");
        let absolute = format!("GET http://evil.example/healthz HTTP/1.1\r\nhost: {at}");
        send(&absolute).problem(421, "foreign-host");
        let absolute = format!("GET http://evil.example@{at}/healthz HTTP/1.1\r\nhost: {at}");
        send(&absolute).problem(400, "malformed");
        let absolute = format!("GET http://{at}/healthz HTTP/1.1\r\nhost: evil.example");
        send(&absolute).problem(421, "foreign-host");
    }
    // The answer and the log quote words that a client has chosen, so both must shorten them.
    let long = "x".repeat(50_000);
    for path in [format!("/{long}"), format!("/events/{long}"), format!("/correlations/{long}")] {
        let answer = get(&at, &path);
        assert_eq!(answer.status, 404);
        assert!(answer.body.len() < 3000, "{path:.20}: {} bytes", answer.body.len());
    }
    assert!(daemon.log().len() < 64 << 10);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn pages_of_other_sites_reach_nothing_on_this_machine() {
    let home = Home::new();
    let (daemon, at) = gateway(&home, &["--gateway-host", "ion.example"]);
    let port = at.split(':').nth(1).unwrap();
    let send = |headers: &[(&str, &str)]| request(&at, "POST", "/", headers, b"{\"url\": \"x\"}");
    for host in [at.clone(), format!("localhost:{port}"), "ion.example".into()] {
        send(&[("host", &host)]).says(200);
        send(&[("host", &host), ("origin", &format!("http://{host}"))]).says(200);
    }
    // Another site has made its name lead to this machine.
    send(&[("host", &format!("evil.example:{port}"))]).problem(421, "foreign-host");
    // The request comes from a form or a script of another site.
    for origin in ["https://evil.example", "null", "http://localhost:1"] {
        send(&[("origin", origin), ("content-type", "text/plain")]).problem(403, "foreign-origin");
    }
    send(&[("sec-fetch-site", "cross-site")]).problem(403, "foreign-origin");
    let asks = request(&at, "OPTIONS", "/", &[("access-control-request-method", "POST")], b"");
    assert!(asks.header("access-control-allow-origin").is_none());
    asks.problem(405, "wrong-method");
    assert_eq!(home.run(["trace"]).code, Some(0));
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn what_is_wrong_is_said_in_a_problem_document() {
    let home = Home::new();
    let (daemon, at) = gateway(&home, &["--gateway-upload-max", "4MiB"]);
    let json = "application/json";
    let form_data = "application/x-www-form-urlencoded";
    let (kind, twice) = form(&[(Some("a"), "f", b"1"), (Some("./a"), "f", b"2")]);
    let (_, climbs) = form(&[(Some("../a"), "f", b"1")]);
    let (_, folder_too) = form(&[(Some("a"), "f", b"1"), (Some("a/b"), "g", b"2")]);
    let (_, not_text) = form(&[(None, "v", b"\xff")]);
    let long_value = format!("{{\"v\": \"{}\"}}", "x".repeat(1 << 20));
    let longer = vec![b'x'; (3 << 20) + (64 << 10) + 1];
    let head_without_end = [b"--XyZ\r\n".to_vec(), vec![b'x'; 2 << 20]].concat();
    /// The method, path, form and body of a request; the status and the problem's type of its
    /// answer.
    type Case<'c> = (&'c str, &'c str, &'c str, Vec<u8>, u16, &'c str);
    let cases: Vec<Case<'_>> = vec![
        ("GET", "/nothing", json, vec![], 404, "not-found"),
        ("GET", "/events/none", json, vec![], 404, "not-found"),
        ("GET", "/correlations/none", json, vec![], 404, "not-found"),
        ("GET", "/correlations/none?wait=soon", json, vec![], 400, "malformed"),
        ("GET", "/correlations/none?wiat=1s", json, vec![], 400, "malformed"),
        ("GET", "/events/%FF", json, vec![], 400, "malformed"),
        ("PUT", "/events/x", json, vec![], 405, "wrong-method"),
        ("POST", "/events/a%20b", json, b"{}".to_vec(), 400, "malformed"),
        ("POST", "/events/x", json, b"".to_vec(), 400, "malformed"),
        ("POST", "/events/x", json, b"{\"a\": ".to_vec(), 400, "malformed"),
        ("POST", "/events/x", json, b"[1]".to_vec(), 400, "malformed"),
        ("POST", "/events/x", json, b"{\"a\": \"\xff\"}".to_vec(), 400, "malformed"),
        ("POST", "/events/x", json, b"{\"files\": [\"a\"]}".to_vec(), 422, "refused"),
        ("POST", "/events/x", json, b"{\"files\": \"\"}".to_vec(), 422, "refused"),
        ("POST", "/events/x", json, b"{\"eventType\": \"y\"}".to_vec(), 422, "refused"),
        ("POST", "/events/x", json, long_value.into_bytes(), 413, "too-big"),
        ("POST", "/events/x", json, longer, 413, "too-big"),
        ("POST", "/events/x", "text/plain", b"{}".to_vec(), 415, "wrong-form"),
        ("POST", "/events/x", "application/cloudevents+avro", b"{}".to_vec(), 415, "wrong-form"),
        (
            "POST",
            "/events/x",
            "application/cloudevents-batch+json",
            b"{}".to_vec(),
            400,
            "malformed",
        ),
        ("POST", "/events/x", form_data, b"{\"a\": 1}".to_vec(), 415, "wrong-form"),
        ("POST", "/events/x", form_data, b"a=%E4".to_vec(), 422, "refused"),
        ("POST", "/events/x", form_data, b"=1".to_vec(), 400, "malformed"),
        ("POST", "/events/x", "application/cloudevents+json", b"{}".to_vec(), 400, "malformed"),
        ("POST", "/events/x", "multipart/form-data", vec![], 400, "malformed"),
        ("POST", "/events/x", kind, b"--XyZ\r\n".to_vec(), 400, "malformed"),
        ("POST", "/events/x", kind, twice, 422, "refused"),
        ("POST", "/events/x", kind, folder_too, 422, "refused"),
        ("POST", "/events/x", kind, climbs, 422, "refused"),
        ("POST", "/events/x", kind, not_text, 422, "refused"),
        ("POST", "/events/x", kind, head_without_end, 413, "too-big"),
        ("POST", "/events/x", kind, vec![b'x'; (4 << 20) + 1], 413, "too-big"),
    ];
    for (n, (method, path, form, body, status, name)) in cases.into_iter().enumerate() {
        let answer = request(&at, method, path, &[("content-type", form)], &body);
        assert_eq!(answer.status, status, "case {n}, {method} {path}: {}", answer.text());
        answer.problem(status, name);
    }
    assert_eq!(
        request(&at, "PUT", "/events/x", &[], b"").header("allow").map(str::len),
        Some("GET,HEAD,POST".len())
    );
    // The body does not say how long it is, and it is too long.
    let mut http = Http::to(&at);
    http.begin("POST", "/events/x", &[("content-type", kind), ("transfer-encoding", "chunked")]);
    let part = b"--XyZ\r\ncontent-disposition: form-data; name=\"f\"; filename=\"f\"\r\n\r\n";
    let _ = http.send(format!("{:x}\r\n", part.len()).as_bytes());
    let _ = http.send(&[&part[..], b"\r\n"].concat());
    let piece = [b"10000\r\n".to_vec(), vec![b'x'; 0x10000], b"\r\n".to_vec()].concat();
    while http.send(&piece).is_ok() {}
    // The gateway's answer may be lost with the connection. In any case no event must have been
    // committed.
    assert!(
        home.run(["trace"]).stderr.contains("no events"),
        "none of these requests has become an event"
    );
    wait_for("the blobs that no event names to be removed", || {
        files_below(&home.state().join("blobs")) == 0
    });
    assert_eq!(files_below(&home.state().join("gateway")), 0);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn schemathesis_finds_nothing_that_the_document_does_not_say() {
    const TOKEN: &str = "0123456789abcdef";
    let mut home = Home::new();
    home.env.push(("ION_GATEWAY_TOKENS".into(), format!("all all {TOKEN}")));
    home.program("show", SHOWS);
    home.env.push(("ION_GATEWAY_WEBHOOKS".into(), webhooks::list(&home)));
    home.env.push(("ION_OLDER_INGEST".into(), "ARTICLE=look".into()));
    let (daemon, at) = up(
        &home,
        "  look: {params: {}, commit: on-success, run: [\"true\"]}\n  show: {on: [new_text], emits: [shown], run: [./show]}\n  echo: {on: [echo], emits: [echoed], run: [cat], stdio: true}\n",
    );
    // Schemathesis needs an event, a file and a job that exist.
    let bearer = format!("Bearer {TOKEN}");
    let (kind, body) = form(&[(Some("a b.txt"), "f", b"hello")]);
    let headers = [("content-type", kind), ("authorization", bearer.as_str())];
    let event = request(&at, "POST", "/events/new_text?wait=60s", &headers, &body).says(200);
    let job = home.jobs()[0]["id"].as_str().unwrap().to_owned();
    // The answer to a request with a key depends on earlier requests, which no schema can express:
    // 422 is right then. For an array of too many events, 413 is right. Terms have a language that
    // no schema can express: 400 is right for what is not a term. Which values a source may have is
    // said by its module.
    let config = format!(
        "headers = {{ Authorization = \"{bearer}\" }}\n\
         [[operations]]\ninclude-operation-id = [\"newLink\", \"createEvent\"]\n\
         checks.positive_data_acceptance.expected-statuses = [\"2xx\", 409, 422]\n\
         checks.negative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 428, 429, \"5xx\"]\n\
         [[operations]]\ninclude-operation-id = \"takeWebhook\"\nparameters = {{ webhook = \"pushes\" }}\n\
         checks.positive_data_acceptance.expected-statuses = [\"2xx\", 403]\n\
         [[operations]]\ninclude-operation-id = \"file\"\n\
         checks.positive_data_acceptance.expected-statuses = [\"2xx\", \"3xx\", 412, 416]\nparameters = {{ event = \"{}\", path = \"a b.txt\" }}\n\
         [[operations]]\ninclude-operation-id = \"log\"\nparameters = {{ job = \"{job}\" }}\n\
         [[operations]]\ninclude-operation-id = [\"findInsights\", \"findEvents\"]\n\
         checks.positive_data_acceptance.expected-statuses = [\"2xx\", 400, 404]\n\
         [[operations]]\ninclude-operation-id = [\"putSource\", \"patchSource\", \"deleteSource\", \"addOlderJob\", \"deleteOlderJobs\"]\n\
         checks.positive_data_acceptance.expected-statuses = [\"2xx\", 400, 404, 409, 412, 422]\n\
         [[operations]]\ninclude-operation-id = \"listSourceRuns\"\n\
         checks.positive_data_acceptance.expected-statuses = [\"2xx\", 400, 404]\n\
         [[operations]]\ninclude-operation-id = \"runChain\"\nparameters = {{ chain = \"echo\" }}\n",
        text(&event, "eventId")
    );
    let config = home.write("schemathesis.toml", config);
    let cache = std::env::var("ION_TEST_CACHE")
        .unwrap_or_else(|_| format!("{}/.cache/ion-test", std::env::var("HOME").unwrap()));
    let program = format!("{cache}/schemathesis/bin/st");
    let ran = Command::new(&program)
        .args([
            "--config-file",
            config.to_str().unwrap(),
            "run",
            &format!("http://{at}/openapi.json"),
        ])
        .args([
            "--checks",
            "all",
            // Many events are waited for in one request, and the machine may be busy.
            "--max-response-time",
            "60",
            "--max-examples",
            "100",
            "--seed",
            "6",
            "--continue-on-failure",
            // The limit is longer than any `wait` of an example.
            "--request-timeout",
            "60",
            "--no-color",
        ])
        .current_dir(home.path())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; scripts/setup-tests.sh installs it"));
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    println!("{said}");
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    assert!(
        said.contains("27 selected / 27 total") && said.contains("Tested: 27"),
        "Schemathesis tries every route: {said}"
    );
    assert_eq!(get(&at, "/healthz").status, 200);
    assert_eq!(daemon.stop(), Some(0));
}
