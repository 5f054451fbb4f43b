//! Shows what does a gateway no harm: slow clients, many connections, large files, a stop, a kill
//! and a full disk. The tests use the embedded stores.

use std::io::Read as _;
use std::time::{Duration, Instant};

use dispatcher::job::{AttemptOutcome, EndedAttempt, Transition};
use dispatcher::ledger::{ClaimOutcome, Ledger};
use dispatcher::pipeline::Module;
use ionfs::event::Event;
use ionfs::record::AttemptEnd;
use ionfs::stores::open::{StoreUrls, open};
use ionfs::stores::{Collection, Durability};
use serde_json::{Value, json};

use super::{files_below, gateway, noise, post, text, up};
use crate::support::http::{Answer, Http, form, get, request};
use crate::support::{Home, may_mount_or_runs_where_it_may, signal, wait_for};

#[test]
fn slow_clients_and_idle_connections_do_no_harm() {
    const IDLE: usize = 1000;
    let descriptors = rustix::process::Resource::Nofile;
    let most = rustix::process::getrlimit(descriptors).maximum;
    rustix::process::setrlimit(
        descriptors,
        rustix::process::Rlimit { current: most, maximum: most },
    )
    .unwrap();
    let home = Home::new();
    let (daemon, at) = gateway(&home, &["--gateway-stall", "10s"]);
    let (kind, large) = form(&[(Some("f"), "f", &vec![0; 32 << 20])]);
    let large = post(&at, "/events/large", kind, &large).says(202);
    let large = format!("/events/{}/data/f", text(&large, "eventId"));
    let idle: Vec<Http> = (0..IDLE).map(|_| Http::to(&at)).collect();
    // Each of these clients asks for a file that is larger than all buffers on its way, and reads
    // nothing of it.
    let deaf: Vec<Http> = (0..10)
        .map(|_| {
            let mut http = Http::to(&at);
            http.begin("GET", &large, &[]);
            http
        })
        .collect();
    let used: Vec<Http> = (0..20)
        .map(|_| {
            let mut http = Http::to(&at);
            http.begin("GET", "/healthz", &[]);
            assert_eq!(http.answer("GET").unwrap().status, 200);
            http
        })
        .collect();
    let mut heads: Vec<Http> = (0..50).map(|_| Http::to(&at)).collect();
    let json = [("content-type", "application/json"), ("content-length", "100000")];
    let mut bodies: Vec<Http> = (0..50)
        .map(|_| {
            let mut http = Http::to(&at);
            http.begin("POST", "/events/x", &json);
            http
        })
        .collect();
    let (kind, _) = form(&[]);
    let mut uploads: Vec<Http> = (0..50)
        .map(|_| {
            let mut http = Http::to(&at);
            http.begin(
                "POST",
                "/events/x",
                &[("content-type", kind), ("content-length", "1000000")],
            );
            http.send(
                b"--XyZ\r\ncontent-disposition: form-data; name=\"f\"; filename=\"f\"\r\n\r\n",
            )
            .unwrap();
            http
        })
        .collect();
    assert!(
        connections(&at) >= (IDLE + 180) as f64,
        "all connections are open: {}",
        connections(&at)
    );
    // Each slow client sends a byte now and then, for longer than a client may stand still.
    // Meanwhile the gateway serves other clients.
    let begun = Instant::now();
    let (mut served, mut slowest) = (0, Duration::ZERO);
    while begun.elapsed() < Duration::from_secs(11) {
        for http in heads.iter_mut().chain(&mut bodies).chain(&mut uploads) {
            let _ = http.send(b"x");
        }
        let asked = Instant::now();
        assert_eq!(get(&at, "/readyz").status, 200);
        post(&at, "/events/good", "application/json", b"{}").says(202);
        slowest = slowest.max(asked.elapsed());
        served += 1;
    }
    println!("{served} pairs of requests were served meanwhile, the slowest pair in {slowest:?}");
    assert!(served >= 2 && slowest < Duration::from_secs(8), "{served}, {slowest:?}");
    for http in bodies.iter_mut().chain(&mut uploads) {
        match http.answer("POST") {
            Ok(answer) => {
                answer.problem(408, "too-slow");
            }
            // The client was still writing when the gateway closed the connection.
            Err(_) => assert!(http.is_closed()),
        }
    }
    for mut http in heads.into_iter().chain(idle).chain(used) {
        assert!(http.is_closed());
    }
    wait_for("all connections to be closed, even those of clients that read nothing", || {
        connections(&at) <= 2.0
    });
    drop(deaf);
    assert_eq!(daemon.stop(), Some(0));
}

/// Returns the number of open connections in the gateway's metrics.
pub(crate) fn connections(at: &str) -> f64 {
    let numbers = get(at, "/metrics").text();
    let line = numbers.lines().find(|line| line.starts_with("ion_gateway_connections ")).unwrap();
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn more_connections_than_may_be_wait_and_are_served() {
    let home = Home::new();
    let (daemon, at) = gateway(&home, &["--gateway-connections", "4", "--gateway-stall", "2s"]);
    let idle: Vec<Http> = (0..12).map(|_| Http::to(&at)).collect();
    let begun = Instant::now();
    assert_eq!(
        get(&at, "/healthz").status,
        200,
        "the gateway answers once it has closed idle connections"
    );
    assert!(
        begun.elapsed() > Duration::from_secs(1),
        "the request waits for the idle connections: {:?}",
        begun.elapsed()
    );
    drop(idle);
    assert_eq!(daemon.stop(), Some(0));
}

/// Returns the most memory that a process has had so far, in KiB.
fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_large_file_comes_and_goes_in_little_memory() {
    let mebibytes: u64 =
        std::env::var("ION_TEST_UPLOAD_MIB").map_or(256, |said| said.parse().unwrap());
    let mut home = Home::new();
    home.env.push(("ION_CACHE_MEMORY".into(), "64MiB".into()));
    let (daemon, at) = gateway(&home, &[]);
    // A first upload makes the gateway allocate the memory that any work needs.
    let (kind, small) = form(&[(Some("f"), "f", &noise(0))]);
    post(&at, "/events/small", kind, &small).says(202);
    let before = peak_memory(daemon.pid());
    let head = b"--XyZ\r\ncontent-disposition: form-data; name=\"f\"; filename=\"large\"\r\n\r\n";
    let tail = b"\r\n--XyZ--\r\n";
    let length = (head.len() + tail.len()) as u64 + (mebibytes << 20);
    let mut http = Http::to(&at);
    http.begin(
        "POST",
        "/events/large",
        &[("content-type", kind), ("content-length", &length.to_string())],
    );
    http.send(head).unwrap();
    let begun = Instant::now();
    for block in 0..mebibytes {
        http.send(&noise(block)).unwrap();
    }
    http.send(tail).unwrap();
    // The gateway answers when the store has the file. This may take longer than a client waits for
    // a small answer.
    let event = answer_within(&mut http, Duration::from_secs(60 + mebibytes / 4)).says(202);
    let took = begun.elapsed();
    let after_upload = peak_memory(daemon.pid());
    let id = text(&event, "eventId");
    let mut http = Http::to(&at);
    http.begin("GET", &format!("/events/{id}/data/large"), &[]);
    let head = http.head().unwrap();
    assert_eq!(head.header("content-length"), Some((mebibytes << 20).to_string().as_str()));
    let mut piece = vec![0; 1 << 20];
    for block in 0..mebibytes {
        http.reader().read_exact(&mut piece).unwrap();
        assert!(piece == noise(block), "block {block}");
    }
    let after = peak_memory(daemon.pid());
    println!(
        "{mebibytes} MiB came in {took:?}; memory at most: {before} KiB before, {after_upload} KiB after it came, {after} KiB after it went"
    );
    // The gateway may hold five parts of 8 MiB on their way to the store, the cache's 64 MiB, and
    // what the allocator keeps.
    assert!(after_upload < before + (96 << 10), "{after_upload} KiB");
    assert!(after < before + (192 << 10), "{after} KiB");
    assert_eq!(daemon.stop(), Some(0));
}

fn answer_within(http: &mut Http, longest: Duration) -> Answer {
    let deadline = Instant::now() + longest;
    loop {
        match http.answer("POST") {
            Ok(answer) => return answer,
            Err(error) => assert!(
                Instant::now() < deadline && error.kind() == std::io::ErrorKind::WouldBlock,
                "{error}"
            ),
        }
    }
}

#[test]
fn a_gateway_that_is_told_to_stop_finishes_what_is_under_way() {
    let home = Home::new();
    let (daemon, at) = gateway(&home, &[]);
    let (kind, body) = form(&[(Some("f"), "f", &[7; 300_000])]);
    let mut upload = Http::to(&at);
    upload.begin(
        "POST",
        "/events/kept",
        &[("content-type", kind), ("content-length", &body.len().to_string())],
    );
    upload.send(&body[..200_000]).unwrap();
    let mut idle = Http::to(&at);
    idle.begin("GET", "/readyz", &[]);
    assert_eq!(idle.answer("GET").unwrap().status, 200);
    signal(daemon.pid(), "TERM");
    assert!(idle.is_closed(), "an idle connection is closed at once");
    wait_for("the gateway to accept no more connections", || {
        std::net::TcpStream::connect(&at).is_err()
    });
    upload.send(&body[200_000..]).unwrap();
    let event = upload.answer("POST").unwrap().says(202);
    assert_eq!(daemon.wait(), Some(0));
    let (daemon, at) = gateway(&home, &["--gateway-grace", "1s"]);
    assert_eq!(get(&at, &format!("/events/{}/data/f", text(&event, "eventId"))).body, [7; 300_000]);
    // An upload that does not go on gets its grace and no more time, and leaves nothing.
    let mut upload = Http::to(&at);
    upload.begin(
        "POST",
        "/events/lost",
        &[("content-type", kind), ("content-length", &body.len().to_string())],
    );
    upload.send(&body[..200_000]).unwrap();
    let begun = Instant::now();
    assert_eq!(daemon.stop(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    assert!(upload.is_closed());
    assert!(!home.run(["--json", "trace"]).stdout.contains("lost"));
    assert_eq!(files_below(&home.state().join("gateway")), 0);
}

#[test]
fn a_gateway_that_is_killed_leaves_nothing_half_visible() {
    let mut home = Home::new();
    home.program("count", "#!/bin/sh\ncat /ion/in/data/f | wc -c\n");
    let file = home.write("pipeline.yaml", "modules:\n  count: {on: [start], run: [./count]}\n");
    let dispatcher = home.up(&file);
    let (kind, body) = form(&[(Some("f"), "f", &[7; 300_000])]);
    let mut ids = Vec::new();
    for (place, visible) in [
        ("gateway.stored", false),
        ("commit.inserted", true),
        ("commit.published", true),
        ("commit.marked", true),
    ] {
        home.env = vec![("ION_FAILPOINTS".into(), format!("{place}=1"))];
        let (daemon, at) = gateway(&home, &[]);
        let headers = [("content-type", kind), ("idempotency-key", place)];
        let mut http = Http::to(&at);
        http.begin(
            "POST",
            "/events/start",
            &[&headers[..], &[("content-length", &body.len().to_string())]].concat(),
        );
        http.send(&body).unwrap();
        assert!(
            http.answer("POST").is_err(),
            "{place}: the gateway is killed before it can answer"
        );
        assert_eq!(daemon.wait(), None, "{place}");
        home.env = vec![];
        let seen = latest(&home);
        let before = ids.last().map(|id: &String| (id.clone(), vec![300_000]));
        assert_eq!(seen != before, visible, "{place}: {seen:?}");
        assert!(
            seen.is_none_or(|(_, sizes)| sizes == [300_000]),
            "{place}: there is a whole event or none"
        );
        // The client has had no answer and sends the request again. The event is the same, and its
        // job runs once.
        let (daemon, at) = gateway(&home, &[]);
        let said = request(&at, "POST", "/events/start?wait=60s", &headers, &body).says(200);
        assert_eq!(text(&said, "outcome"), "succeeded", "{place}: {said:#}");
        ids.push(text(&said, "eventId").to_owned());
        assert_eq!(get(&at, &format!("/events/{}/data/f", ids.last().unwrap())).body, [7; 300_000]);
        assert_eq!(daemon.stop(), Some(0));
        assert_eq!(latest(&home).map(|(id, _)| id), ids.last().cloned(), "{place}");
        assert_eq!(home.jobs().len(), ids.len(), "{place}");
    }
    // The gateway is killed in the middle of an upload.
    let (daemon, at) = gateway(&home, &[]);
    let mut upload = Http::to(&at);
    upload.begin("POST", "/events/start", &[("content-type", kind), ("content-length", "1000000")]);
    upload.send(&body[..200_000]).unwrap();
    daemon.kill();
    assert_eq!(latest(&home).map(|(id, _)| id), ids.last().cloned());
    assert_eq!(files_below(&home.state().join("gateway")), 0, "the staged upload has no name");
    home.run(["check", "--deep"]).well();
    assert_eq!(dispatcher.stop(), Some(0));
}

/// Returns the latest first event, with the sizes of its files.
fn latest(home: &Home) -> Option<(String, Vec<u64>)> {
    let event = home.run(["--json", "trace"]).documents().into_iter().next()?;
    let sizes =
        event["files"].as_array()?.iter().map(|file| file["size"].as_u64().unwrap()).collect();
    Some((text(&event, "id").to_owned(), sizes))
}

/// Many clients wait for one large correlation. The gateway reads it once for all of them, and
/// holds its documents in memory once.
#[test]
fn many_who_wait_for_one_large_correlation_are_one_look() {
    const EVENTS: usize = 1000;
    const WAITERS: usize = 200;
    let home = Home::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let plane = runtime.block_on(open(&StoreUrls::embedded(&home.state()))).unwrap();
    let ledger = Ledger::new(plane.clone());
    let module = Module {
        on: vec!["first".into()],
        ..Module::new("work", vec!["true".into()], home.path().into())
    };
    let events: Vec<Value> = (0..EVENTS)
        .map(|n| {
            let (id, kind) = if n == 0 { ("first".into(), "first") } else { (format!("e{n}"), "more") };
            json!({
                "id": id, "type": kind, "files": [], "created": n, "publication": "published",
                "data": [{"key": "padding", "value": "p".repeat(2000)}],
                "context": {"name": "test", "eventId": id, "correlationId": "c", "parentEventId": "", "documentType": "eventMeta"},
            })
        })
        .collect();
    let first: Event = serde_json::from_value(events[0].clone()).unwrap();
    let job = runtime.block_on(async {
        ledger.put_module(&module).await.unwrap();
        let documents = events.into_iter().map(|event| (Collection::Events, event)).collect();
        let durability = Durability::WithNextSync;
        plane.documents.insert_all(documents, None, durability).await.unwrap();
        match ledger.claim(&module, &first, Some(("test", 600_000))).await.unwrap() {
            ClaimOutcome::Won(job) => job,
            known => panic!("{known:?}"),
        }
    });
    let (daemon, at) = gateway(&home, &[]);
    let one = get(&at, "/correlations/c");
    assert_eq!(
        (one.header("ion-outcome"), one.body.len() > 2000 * EVENTS),
        (Some("running"), true)
    );
    let before = peak_memory(daemon.pid());
    let mut waiters: Vec<Http> = (0..WAITERS)
        .map(|_| {
            let mut http = Http::to(&at);
            http.begin("GET", "/correlations/c?wait=5m", &[]);
            http
        })
        .collect();
    let mut slowest = Duration::ZERO;
    for _ in 0..5 {
        let asked = Instant::now();
        assert_eq!(get(&at, "/correlations/c").status, 200);
        slowest = slowest.max(asked.elapsed());
    }
    let outcome =
        AttemptOutcome { exit_code: Some(0), ..AttemptOutcome::from_end(AttemptEnd::Succeeded) };
    let ended = Transition::Ended(Box::new(EndedAttempt { outcome, retries: 0, jitter: 0.0 }));
    runtime.block_on(ledger.advance(&job, &ended)).unwrap();
    for http in &mut waiters {
        let answer = http.answer("GET").unwrap();
        assert_eq!((answer.status, answer.header("ion-outcome")), (200, Some("succeeded")));
        assert_eq!(answer.json().as_array().unwrap().len(), EVENTS + 1);
    }
    let after = peak_memory(daemon.pid());
    println!(
        "{WAITERS} waiters: {before} KiB before, {after} KiB after; others waited {slowest:?} at most"
    );
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    // Each of the clients' answers has 2 MiB.
    assert!(after < before + (100 << 10), "{before} KiB before, {after} KiB after");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_gateway_whose_disk_is_full_is_not_ready() {
    if !may_mount_or_runs_where_it_may("a_gateway_whose_disk_is_full_is_not_ready") {
        return;
    }
    let home = Home::new();
    let staging = home.state().join("gateway");
    std::fs::create_dir_all(&staging).unwrap();
    rustix::mount::mount(
        "small",
        &staging,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        Some(c"size=20m"),
    )
    .unwrap();
    let (daemon, at) = up(&home, "  good: {on: [good], run: [\"true\"]}\n");
    let ready = || get(&at, "/readyz");
    let before = ready().status;
    std::fs::write(staging.join("fills"), vec![1; 8 << 20]).unwrap();
    let full = ready();
    std::fs::remove_file(staging.join("fills")).unwrap();
    let after = ready().status;
    assert_eq!(daemon.stop(), Some(0));
    rustix::mount::unmount(&staging, rustix::mount::UnmountFlags::DETACH).unwrap();
    full.problem(507, "disk-full");
    assert_eq!((before, after), (200, 200));
}
