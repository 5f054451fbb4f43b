//! Shows that chains pass payloads through programs that read stdin and write stdout, and what
//! happens when a program, a client or a dispatcher ends early. The tests use the embedded stores;
//! one test uses RabbitMQ, a MongoDB-compatible store and S3, and one has nginx in front of the
//! gateway.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on panics, and shows its figures"
)]

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::chains::{LINES, address, load, pools};
use crate::support::http::{Answer, Http, get, request};
use crate::support::servers::{Mongo, Rabbit, S3, plane};
use crate::support::{CommandOutput, Home, RunningCommand, below, wait_for};
use serde_json::{Value, json};

/// Starts a dispatcher of a chain file with this text, and its gateway. Returns the process and the
/// gateway's address.
fn up(home: &Home, chain: &str) -> (RunningCommand, String) {
    let file = home.write("chain.yaml", chain);
    let up = home.up_with(&["--gateway", "127.0.0.1:0"], &file);
    let address = address(&up);
    (up, address)
}

fn post(address: &str, chain: &str, body: &[u8]) -> Answer {
    request(address, "POST", &format!("/chains/{chain}"), &[], body)
}

/// Returns the documents of a trace in which `member` has this value.
fn with<'t>(trace: &'t [Value], member: &str, value: &str) -> Vec<&'t Value> {
    trace.iter().filter(|document| document[member] == value).collect()
}

/// Returns the trace of the correlation that an answer names.
fn trace_of(home: &Home, correlation: &str) -> Vec<Value> {
    home.run(["--json", "trace", correlation]).well().documents()
}

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn a_payload_goes_through_all_links_and_leaves_a_trace() {
    let home = Home::new();
    let (daemon, at) = up(&home, LINES);
    let answer = post(&at, "lines", b"this is raw data\nnothing\n");
    let correlation = answer.header("ion-correlation-id").unwrap().to_owned();
    assert_eq!((answer.status, answer.text().as_str()), (200, "this\nis\nraw\ndata\n"));
    let trace = trace_of(&home, &correlation);
    let mut parent = String::new();
    let steps = [
        ("chain.lines", "stdin", "this is raw data\nnothing\n"),
        ("chain.lines.1", "stdout", "this is raw data\nnothing\n"),
        ("chain.lines.2", "stdout", "this is raw data\n"),
        ("chain.lines.done", "stdout", "this\nis\nraw\ndata\n"),
    ];
    for (event_type, file, content) in steps {
        let event = with(&trace, "type", event_type)[0];
        assert_eq!(event["context"]["parentEventId"], parent.as_str(), "{event_type}");
        parent = event["id"].as_str().unwrap().to_owned();
        let read = get(&at, &format!("/events/{parent}/data/{file}"));
        assert_eq!((read.status, read.text().as_str()), (200, content), "{event_type}");
    }
    for module in ["cat", "grep", "one", "lines"] {
        let job = with(&trace, "module", module)[0];
        assert_eq!(
            (&job["state"], &job["attempts"][0]["end"]),
            (&json!("succeeded"), &json!("succeeded"))
        );
    }
    let ended = get(&at, &format!("/correlations/{correlation}"));
    assert_eq!(ended.header("ion-outcome"), Some("succeeded"));
    // An empty payload is a payload, and its answer is empty.
    let file = home.write("cats.yaml", "name: cats\nChain: [{Command: cat}, {Command: cat}]\n");
    assert_eq!(post(&at, "cats", b"").says(404)["type"], "urn:ion:problem:not-found");
    assert_eq!(daemon.stop(), Some(0));
    let daemon = home.up_with(&["--gateway", "127.0.0.1:0"], &file);
    let empty = post(&address(&daemon), "cats", b"");
    assert_eq!((empty.status, empty.body.len()), (200, 0));
    assert_eq!(daemon.stop(), Some(0));
    home.run(["check", "--deep"]).well();
    home.run(["gc"]).well();
    home.run(["check", "--deep"]).well();
}

#[test]
fn a_link_that_fails_is_named_with_its_words() {
    let home = Home::new();
    home.program("fails", "#!/bin/sh\ncat >/dev/null\necho 'no such thing' >&2\nexit 3\n");
    home.program("dies", "#!/bin/sh\ncat >/dev/null\nkill -9 $$\n");
    home.program("hangs", "#!/bin/sh\ncat >/dev/null\nsleep 1000\n");
    let chain = |name: &str, program: &str, more: &str| {
        format!(
            "name: {name}\n{more}Chain: [{{Command: cat}}, {{Command: {program}, Name: bad}}, {{Command: cat, Name: last}}]\n"
        )
    };
    let cases = [
        ("fails", "./fails", "", 502, "link-failed", json!(3), "exit status 3"),
        ("dies", "./dies", "", 502, "link-failed", Value::Null, "killed by signal 9"),
        (
            "hangs",
            "./hangs",
            "timeout: 5s\n",
            504,
            "link-timed-out",
            Value::Null,
            "over its timeout of 5s",
        ),
    ];
    for (name, program, more, status, kind, code, reason) in cases {
        let (daemon, at) = up(&home, &chain(name, program, more));
        let problem = post(&at, name, b"payload\n");
        let problem = problem.says(status);
        assert_eq!(problem["type"], format!("urn:ion:problem:{kind}"), "{problem}");
        assert_eq!((&problem["link"], &problem["exitCode"]), (&json!("bad"), &code), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(reason), "{problem}");
        assert_eq!(problem["linkId"].as_str().unwrap().len(), 32);
        if name == "fails" {
            assert_eq!(problem["stderr"], "no such thing\n");
        }
        let job = home.run(["job", "get", problem["job"].as_str().unwrap()]).well();
        let job: Value = serde_json::from_str(&job.stdout).unwrap();
        assert_eq!((&job["state"], &job["module"]), (&json!("dead"), &json!("bad")));
        assert!(job["attempts"][0]["reason"].as_str().unwrap().contains(reason), "{job}");
        if name == "fails" {
            let said = home.run(["job", "logs", problem["job"].as_str().unwrap()]).well();
            assert_eq!(said.stdout, "no such thing\n");
            // The events before the failed link are kept, for people to look at.
            let trace = trace_of(&home, problem["correlation"].as_str().unwrap());
            assert_eq!(with(&trace, "type", "chain.fails.1").len(), 1);
            let again = home.run(["job", "retry", problem["job"].as_str().unwrap()]).failed();
            assert!(again.stderr.contains("no module"), "{again:?}");
        }
        let pid = daemon.pid();
        wait_for("the link's processes to be gone", || {
            !below(pid).iter().any(|(_, name)| name == "sleep")
        });
        assert_eq!(daemon.stop(), Some(0));
    }
    home.run(["check", "--deep"]).well();
}

#[test]
fn a_link_that_writes_without_end_is_ended() {
    let home = Home::new();
    let (daemon, at) =
        up(&home, "name: writes\noutput: 1MiB\nChain: [{Command: cat}, {Command: yes}]\n");
    // The answer has begun when the link is ended. It breaks off, so no client can take it for
    // complete.
    let mut client = Http::to(&at);
    client.begin("POST", "/chains/writes", &[("content-length", "0")]);
    assert_eq!(client.head().unwrap().status, 200);
    let mut answer = vec![];
    let _ = client.into_stream().read_to_end(&mut answer);
    assert!(!answer.ends_with(b"0\r\n\r\n") && answer.len() < 2 << 20, "{}", answer.len());
    let dead =
        || home.jobs().into_iter().find(|job| job["state"] == "dead" && job["module"] == "yes");
    wait_for("the run to be recorded", || dead().is_some());
    let reason = dead().unwrap()["attempts"][0]["reason"].to_string();
    assert!(reason.contains("more than 1048576 bytes"), "{reason}");
    assert_eq!(daemon.stop(), Some(0));
    home.run(["check", "--deep"]).well();
}

#[test]
fn an_answer_begins_before_its_request_has_ended() {
    let home = Home::new();
    let (daemon, at) = up(&home, "name: cats\nChain: [{Command: cat}, {Command: cat}]\n");
    let mut client = Http::to(&at);
    client.begin("POST", "/chains/cats", &[("transfer-encoding", "chunked")]);
    client.send(b"5\r\nfirst\r\n").unwrap();
    let head = client.head().unwrap();
    assert_eq!((head.status, client.chunk().as_deref()), (200, Some(&b"first"[..])));
    client.send(b"6\r\nsecond\r\n").unwrap();
    assert_eq!(client.chunk().as_deref(), Some(&b"second"[..]));
    client.send(b"0\r\n\r\n").unwrap();
    assert_eq!(client.chunk(), None);
    let trace = trace_of(&home, head.header("ion-correlation-id").unwrap());
    assert_eq!(with(&trace, "type", "chain.cats.done")[0]["files"][0]["size"], 11);
    // If a link fails after the answer has begun, the answer breaks off.
    assert_eq!(daemon.stop(), Some(0));
    home.program("late", "#!/bin/sh\nhead -c 5\ncat >/dev/null\nexit 1\n");
    let (daemon, at) = up(&home, "name: late\nChain: [{Command: ./late}]\n");
    let mut client = Http::to(&at);
    client.begin("POST", "/chains/late", &[("transfer-encoding", "chunked")]);
    client.send(b"5\r\nfirst\r\n").unwrap();
    assert_eq!(
        (client.head().unwrap().status, client.chunk().as_deref()),
        (200, Some(&b"first"[..]))
    );
    client.send(b"0\r\n\r\n").unwrap();
    let rest =
        BufReader::new(client.into_stream()).lines().map_while(Result::ok).collect::<String>();
    assert!(!rest.starts_with('0'), "the answer has no last chunk: {rest:?}");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_hundred_megabytes_stream_through_in_flat_memory() {
    let home = Home::new();
    let (daemon, at) =
        up(&home, "name: cats\nChain: [{Command: cat}, {Command: cat}, {Command: cat}]\n");
    post(&at, "cats", b"warm");
    let before = resident(daemon.pid());
    let piece: Vec<u8> =
        (0..1_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut client = Http::to(&at);
    client.begin("POST", "/chains/cats", &[("content-length", "100000000")]);
    let mut sender = client.another_end();
    let sent = piece.clone();
    let sending = std::thread::spawn(move || {
        (0..100).for_each(|_| std::io::Write::write_all(&mut sender, &sent).unwrap());
    });
    assert_eq!(client.head().unwrap().status, 200);
    let (mut read, mut most) = (0, 0);
    while let Some(bytes) = client.chunk() {
        for (n, byte) in bytes.iter().enumerate() {
            assert_eq!(*byte, piece[(read + n) % piece.len()], "at {}", read + n);
        }
        read += bytes.len();
        most = most.max(resident(daemon.pid()));
    }
    sending.join().unwrap();
    assert_eq!(read, 100_000_000);
    eprintln!("resident: {} MiB before, at most {} MiB", before >> 20, most >> 20);
    assert!(most < before + (160 << 20), "{before} {most}");
    assert_eq!(daemon.stop(), Some(0));
    home.run(["check", "--deep"]).well();
}

#[test]
fn a_client_that_goes_away_cancels() {
    let home = Home::new();
    home.program("slow", "#!/bin/sh\ncat >/dev/null\nexec sleep 1000\n");
    let (daemon, at) = up(&home, "name: slow\nChain: [{Command: cat}, {Command: ./slow}]\n");
    let pid = daemon.pid();
    let mut client = Http::to(&at);
    client.begin("POST", "/chains/slow", &[("content-length", "4")]);
    client.send(b"data").unwrap();
    let sleeps = || below(pid).iter().any(|(_, name)| name == "sleep");
    wait_for("the link to run", sleeps);
    drop(client);
    wait_for("the link to be ended", || !sleeps());
    wait_for("the run to be recorded", || {
        home.jobs().iter().any(|job| job["state"] == "cancelled")
    });
    assert_eq!(daemon.stop(), Some(0));
    // A dispatcher that is killed leaves no process behind, either.
    let (daemon, _) = up(&home, LINES);
    let mut links = vec![];
    wait_for("the links' processes to wait", || {
        links = below(daemon.pid());
        links.iter().filter(|(_, name)| name == "grep" || name == "xargs").count() == 4
    });
    daemon.kill();
    wait_for("the links' processes to be gone", || {
        links.iter().all(|(pid, _)| !std::path::Path::new(&format!("/proc/{pid}")).exists())
    });
}

#[test]
fn processes_wait_and_one_that_does_not_is_started_less_and_less() {
    let home = Home::new();
    let said = home.path().join("said");
    let script = format!("#!/bin/sh\necho x >> {}\necho answer\n", said.display());
    home.program("never-waits", &script);
    let (daemon, at) = up(&home, "name: eager\nChain: [{Command: ./never-waits}]\n");
    let starts = || std::fs::read_to_string(&said).unwrap_or_default().len() / 2;
    wait_for("the program to be started ahead", || starts() >= 3);
    let begun = Instant::now();
    let before = starts();
    assert_eq!(post(&at, "eager", b"x").text(), "answer\n");
    wait_for("four seconds to pass", || begun.elapsed() > Duration::from_secs(4));
    let more = starts() - before;
    assert!(more <= 12, "{more} starts in four seconds");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_link_that_nobody_uses_keeps_no_processes() {
    let home = Home::new();
    let (daemon, at) = up(&home, "name: cats\nidle: 4s\nChain: [{Command: cat}]\n");
    let cats = || below(daemon.pid()).iter().filter(|(_, name)| name == "cat").count();
    wait_for("two processes to wait", || cats() == 2);
    wait_for("no process to be left", || cats() == 0);
    assert_eq!(post(&at, "cats", b"miaow").text(), "miaow");
    wait_for("two processes to wait again", || cats() == 2);
    assert_eq!(daemon.stop(), Some(0));
}

fn say(what: &str, times: &[Duration]) {
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    eprintln!("{what}: p50 {:?}, p99 {:?}, longest {:?}", at(0.5), at(0.99), at(1.0));
}

#[test]
fn of_a_thousand_requests_at_fifty_at_a_time_none_is_lost() {
    let home = Home::new();
    let (daemon, at) = up(&home, LINES);
    let times = load(std::slice::from_ref(&at), 1000, 50);
    assert_eq!(times.len(), 1000);
    say("1,000 requests, 50 at a time", &times);
    eprintln!("{}", pools(&at));
    assert_eq!(daemon.stop(), Some(0));
    let events = home.run(["--json", "check", "--deep"]).well();
    assert_eq!(serde_json::from_str::<Value>(&events.stdout).unwrap()["events"], 4000);
}

/// A gateway does not know which dispatcher runs a chain.
#[test]
fn any_dispatcher_of_the_plane_runs_what_any_gateway_is_sent() {
    let (mongo, rabbit, s3) = (Mongo::start(), Rabbit::start(), S3::start());
    let env = plane(&mongo.url, &rabbit.url, &s3.url, &s3.env);
    let home = || {
        let mut home = Home::new();
        home.env.clone_from(&env);
        home
    };
    let homes = [home(), home(), home()];
    let dispatchers: Vec<RunningCommand> = homes[..2]
        .iter()
        .map(|home| home.start("dispatch", &[home.write("chain.yaml", LINES).to_str().unwrap()]))
        .collect();
    let gateways: Vec<RunningCommand> =
        homes[1..].iter().map(|home| home.start("gateway", &["--listen", "127.0.0.1:0"])).collect();
    let addresses: Vec<String> = gateways.iter().map(address).collect();
    let times = load(&addresses, 100, 8);
    say("100 requests through MongoDB, RabbitMQ and S3, 8 at a time", &times);
    // The answer about a failed link is the same wherever the link ran.
    let problem = post(&addresses[0], "lines", b"nothing of that\n").says(502);
    assert_eq!((&problem["link"], &problem["exitCode"]), (&json!("grep"), &json!(1)), "{problem}");
    let jobs = homes[0].jobs();
    let of_chain: Vec<&Value> = jobs.iter().filter(|job| job["module"] == "lines").collect();
    assert_eq!(of_chain.len(), 101);
    for up in dispatchers.into_iter().chain(gateways) {
        assert_eq!(up.stop(), Some(0));
    }
    homes[0].run(["check", "--deep"]).well();
}

#[test]
fn a_module_may_be_one_link_of_a_pipeline() {
    let home = Home::new();
    home.program(
        "count",
        "#!/bin/sh\nwc -l < /ion/in/data/stdout > /ion/out/data/n\n\
        echo '{\"eventType\":\"counted\",\"files\":[\"n\"]}' > /ion/out/events/n.json\n",
    );
    let file = home.write(
        "pipeline.yaml",
        "modules:\n\
         \x20 sorted: {on: [text], emits: [words], run: [sort, -u], stdio: true, env: {LC_ALL: C}}\n\
         \x20 count: {on: [words], emits: [counted], run: [./count]}\n\
         \x20 twice: {on: [text], run: [\"true\"]}\n",
    );
    let daemon = home.up_with(&["--gateway", "127.0.0.1:0"], &file);
    let text = home.write("a.txt", "b\na\nb\n");
    let more = home.write("b.txt", "c\na\n");
    home.run([
        "event",
        "create",
        "text",
        "--wait",
        "--file",
        text.to_str().unwrap(),
        "--file",
        more.to_str().unwrap(),
    ])
    .well();
    let trace = home.trace();
    assert_eq!(with(&trace, "type", "words")[0]["files"][0]["size"], 6);
    assert_eq!(with(&trace, "module", "sorted").len(), 1);
    assert_eq!(with(&trace, "type", "counted").len(), 1);
    // Over HTTP the module is a chain of one link. The event with its answer may start other
    // modules; its first event starts none.
    let at = address(&daemon);
    let answer = post(&at, "sorted", b"y\nx\ny\n");
    assert_eq!((answer.status, answer.text().as_str()), (200, "x\ny\n"));
    let correlation = answer.header("ion-correlation-id").unwrap();
    let ended = get(&at, &format!("/correlations/{correlation}?wait=60s"));
    assert_eq!(ended.header("ion-outcome"), Some("succeeded"), "{}", ended.text());
    let trace = trace_of(&home, correlation);
    assert_eq!(
        (with(&trace, "type", "counted").len(), with(&trace, "module", "twice").len()),
        (1, 0)
    );
    let keyed = request(&at, "POST", "/chains/sorted", &[("idempotency-key", "a")], b"x");
    assert_eq!(keyed.says(400)["type"], "urn:ion:problem:malformed");
    assert_eq!(daemon.stop(), Some(0));
    let wrong = home.write("wrong.yaml", "modules:\n  a: {on: [x], run: [cat], stdio: true}\n");
    let refused = home.run(["up", wrong.to_str().unwrap()]).failed();
    assert!(refused.stderr.contains("one type in \"emits\""), "{refused:?}");
    home.run(["check", "--deep"]).well();
}

/// As with `yes | head -n 3` in a shell: a link that has read enough ends the links before it.
#[test]
fn an_early_close_ends_the_links_before_it() {
    let home = Home::new();
    let (daemon, at) = up(
        &home,
        "name: few\nChain: [{Command: \"yes\"}, {Command: cat}, {Command: head, Arguments: [-n, '3']}]\n",
    );
    let answer = post(&at, "few", b"");
    assert_eq!((answer.status, answer.text().as_str()), (200, "y\ny\ny\n"));
    let jobs = home.jobs();
    assert!(jobs.iter().all(|job| job["state"] == "succeeded"), "{jobs:#?}");
    let yes = jobs.iter().find(|job| job["module"] == "yes").unwrap();
    assert_eq!(yes["attempts"][0]["reason"], "ended early: the next link had closed its stdin");
    assert_eq!(daemon.stop(), Some(0));
    // This link ignores SIGPIPE. In a shell it would run forever.
    home.program("deaf", "#!/bin/sh\ntrap '' PIPE\nwhile :; do echo y 2>/dev/null; done\n");
    let (daemon, at) = up(
        &home,
        "name: deaf\nwarm: 0\nChain: [{Command: ./deaf}, {Command: head, Arguments: [-n, '3']}]\n",
    );
    let answer = post(&at, "deaf", b"");
    assert_eq!((answer.status, answer.text().as_str()), (200, "y\ny\ny\n"));
    let pid = daemon.pid();
    wait_for("the link's process to be gone", || {
        !below(pid).iter().any(|(_, name)| name == "deaf")
    });
    assert_eq!(daemon.stop(), Some(0));
    // A link that fails for a reason of its own fails the run, whatever the next link does.
    home.program("fails", "#!/bin/sh\necho some\nexit 3\n");
    let (daemon, at) = up(
        &home,
        "name: fails\nChain: [{Command: ./fails}, {Command: head, Arguments: [-n, '1']}]\n",
    );
    let problem = post(&at, "fails", b"").problem(502, "link-failed");
    assert_eq!((&problem["link"], &problem["exitCode"]), (&json!("fails"), &json!(3)));
    assert_eq!(daemon.stop(), Some(0));
    home.run(["check", "--deep"]).well();
}

/// A program may read a file before its stdin. A program that was started ahead has read the file
/// before its payload came; `warm: 0` starts each program with its payload.
#[test]
fn a_chain_that_wants_none_ahead_starts_each_with_its_payload() {
    let home = Home::new();
    let now = home.path().join("now");
    home.program("reads", &format!("#!/bin/sh\ncat {0}\ncat > /dev/null\n", now.display()));
    for (warm, expected) in [("warm: 0\n", "second"), ("", "first")] {
        std::fs::write(&now, "first").unwrap();
        let (daemon, at) =
            up(&home, &format!("name: reads\n{warm}Chain: [{{Command: ./reads}}]\n"));
        // Some runs come first, because a run lets the pool of processes grow.
        (0..4).for_each(|_| assert_eq!(post(&at, "reads", b"x").text(), "first"));
        if warm.is_empty() {
            wait_for("a process to be started ahead", || {
                below(daemon.pid()).iter().any(|(_, name)| name == "cat")
            });
        }
        std::fs::write(&now, "second").unwrap();
        assert_eq!(post(&at, "reads", b"x").text(), expected, "{warm}");
        assert_eq!(daemon.stop(), Some(0));
    }
}

/// HTTP/1.0 has no chunks, so its clients would take an answer that breaks off for complete. They
/// receive an error instead.
#[test]
fn a_failed_answer_is_taken_for_whole_by_nobody() {
    let home = Home::new();
    home.program("late", "#!/bin/sh\necho begun\nsleep 0.3\nexit 1\n");
    home.program("well", "#!/bin/sh\necho begun\nsleep 0.3\necho done\n");
    let (late, late_at) = up(&home, "name: late\nChain: [{Command: ./late}]\n");
    let (well, well_at) = up(&home, "name: well\nChain: [{Command: ./well}]\n");
    let old = |at: &str, name: &str| {
        let mut client = Http::to(at);
        let head =
            format!("POST /chains/{name} HTTP/1.0\r\nhost: {at}\r\ncontent-length: 1\r\n\r\nx");
        client.send(head.as_bytes()).unwrap();
        client.answer("POST").unwrap()
    };
    old(&late_at, "late").problem(502, "link-failed");
    let answer = old(&well_at, "well");
    assert_eq!((answer.status, answer.header("content-length")), (200, Some("11")));
    assert_eq!(answer.text(), "begun\ndone\n");

    let nginx = Nginx::start(&home, &[("late", &late_at), ("well", &well_at)]);
    for version in ["1.0", "1.1"] {
        let curl = |name: &str| {
            let url = format!("http://{}/{version}/chains/{name}", nginx.address);
            let ran = Command::new("curl")
                .args(["-sS", "-w", "%{stderr}%{http_code}", "-d", "x", &url])
                .output();
            CommandOutput::of(ran.unwrap())
        };
        let answer = curl("well").well();
        assert_eq!((answer.stdout.as_str(), answer.stderr.as_str()), ("begun\ndone\n", "200"));
        let failed = curl("late");
        match version {
            // nginx uses HTTP/1.0 unless it is configured otherwise. Then the gateway reports a
            // failure before it answers anything.
            "1.0" => assert!(failed.code == Some(0) && failed.stderr == "502", "{failed:?}"),
            _ => assert!(failed.code != Some(0) || failed.stderr == "502", "{failed:?}"),
        }
    }
    drop(nginx);
    assert_eq!((late.stop(), well.stop()), (Some(0), Some(0)));
}

/// An nginx, which people put in front of a gateway.
struct Nginx {
    child: std::process::Child,
    address: String,
}

impl Nginx {
    /// Starts an nginx that passes `/1.0/chains/NAME` and `/1.1/chains/NAME` on, each with that
    /// version of HTTP.
    fn start(home: &Home, chains: &[(&str, &str)]) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        let folder = home.path().join("nginx");
        std::fs::create_dir(&folder).unwrap();
        let pass = |(name, at): &(&str, &str)| {
            let pass = format!("proxy_pass http://{at}/chains/{name};");
            format!(
                "location /1.0/chains/{name} {{ {pass} }} location /1.1/chains/{name} {{ {pass} proxy_http_version 1.1; }}"
            )
        };
        let locations: String = chains.iter().map(pass).collect();
        let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|name| format!("{name}_temp_path {}/{name}; ", folder.display()))
            .collect();
        let user = if rustix::process::getuid().is_root() { "user root;" } else { "" };
        let settings = home.write(
            "nginx.conf",
            format!(
                "daemon off; {user} pid {0}/pid; error_log stderr; events {{ }}\nhttp {{ access_log off; {paths} server {{ listen {address}; {locations} }} }}\n",
                folder.display()
            ),
        );
        let child = Command::new("/usr/sbin/nginx")
            .arg("-e")
            .arg("stderr")
            .arg("-c")
            .arg(settings)
            .spawn()
            .unwrap();
        wait_for("nginx to answer", || TcpStream::connect(&address).is_ok());
        Self { child, address }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        crate::support::signal(self.child.id(), "TERM");
        let _ = self.child.wait();
    }
}
