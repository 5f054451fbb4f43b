//! Shows what the gateway does when a client closes its side of the connection: a client that reads
//! on receives its answer, and the gateway notices a client that has gone. The tests use the
//! embedded stores.

use std::net::Shutdown;

use rustix::net::sockopt::set_socket_linger;

use super::harm::connections;
use super::{files_below, text, up};
use crate::support::http::{Http, form};
use crate::support::{Home, wait_for};

/// Writes a module's program that runs until the file `go` exists.
fn waits_for(home: &Home, go: &std::path::Path) {
    home.program(
        "long",
        &format!("#!/bin/sh\nuntil test -e {}; do sleep 0.05; done\n", go.display()),
    );
}

const LONG: &str = "  long: {on: [start], run: [./long]}\n";

/// Sends a request and closes the connection's side for writing.
fn send_and_close(at: &str, path: &str, form: &str, body: &[u8]) -> Http {
    let mut http = Http::to(at);
    let length = body.len().to_string();
    http.begin("POST", path, &[("content-type", form), ("content-length", &length)]);
    http.send(body).unwrap();
    http.another_end().shutdown(Shutdown::Write).unwrap();
    http
}

#[test]
fn a_client_that_closes_its_side_and_reads_on_is_answered() {
    let home = Home::new();
    let go = home.path().join("go");
    waits_for(&home, &go);
    let (daemon, at) = up(
        &home,
        &format!("{LONG}  echo: {{on: [echo], emits: [echoed], run: [cat], stdio: true}}\n"),
    );
    let json = "application/json";
    let mut http = send_and_close(&at, "/events/other", json, b"{}");
    http.answer("POST").unwrap().says(202);
    assert!(
        http.is_closed(),
        "the gateway closes the connection, because no other request can come"
    );
    let (kind, body) = form(&[(Some("f"), "f", &vec![7; 3 << 20])]);
    send_and_close(&at, "/events/other", kind, &body).answer("POST").unwrap().says(202);
    let echoed = send_and_close(&at, "/chains/echo", json, b"payload").answer("POST").unwrap();
    assert_eq!((echoed.status, echoed.text().as_str()), (200, "payload"));
    let mut http = Http::to(&at);
    http.begin("GET", "/healthz", &[]);
    http.another_end().shutdown(Shutdown::Write).unwrap();
    assert_eq!(http.answer("GET").unwrap().status, 200);
    // While the client waits, the gateway probes it with an answer that every client ignores.
    let mut http = send_and_close(&at, "/events/start?wait=60s", json, b"{}");
    assert_eq!(http.head().unwrap().status, 100);
    let mut old = Http::to(&at);
    old.send(
        b"POST /events/start?wait=60s HTTP/1.0\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
    )
    .unwrap();
    old.another_end().shutdown(Shutdown::Write).unwrap();
    wait_for("a job to run", || home.jobs().iter().any(|job| job["state"] == "running"));
    // The gateway has probed the first connection by now. It cannot probe the second one, whose
    // client speaks HTTP/1.0. The probe of the third one shows that the time for this has passed.
    let mut third = send_and_close(&at, "/events/start?wait=60s", json, b"{}");
    assert_eq!(third.head().unwrap().status, 100);
    std::fs::write(&go, "").unwrap();
    for http in [&mut http, &mut third] {
        assert_eq!(text(&http.answer("POST").unwrap().says(200), "outcome"), "succeeded");
    }
    let answer = old.head().unwrap();
    assert_eq!(answer.status, 200, "an HTTP/1.0 client receives nothing but its answer");
    // A request that is cut off makes no event, and is answered as malformed.
    let mut http = Http::to(&at);
    http.begin("POST", "/events/other", &[("content-type", kind), ("content-length", "1000000")]);
    http.send(&body[..1000]).unwrap();
    http.another_end().shutdown(Shutdown::Write).unwrap();
    http.answer("POST").unwrap().problem(400, "malformed");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_client_that_has_gone_is_noticed_and_what_was_held_for_it_is_free() {
    let home = Home::new();
    let go = home.path().join("go");
    waits_for(&home, &go);
    let (daemon, at) = up(&home, LONG);
    let closed = send_and_close(&at, "/events/start?wait=5m", "application/json", b"{}");
    let mut dropped = Http::to(&at);
    dropped.begin("GET", "/correlations/none?wait=5m", &[]);
    dropped.answer("GET").unwrap().problem(404, "not-found");
    let begin = || {
        let mut http = Http::to(&at);
        let headers = [("content-type", "application/json"), ("content-length", "2")];
        http.begin("POST", "/events/start?wait=5m", &headers);
        http.send(b"{}").unwrap();
        http
    };
    let (plain, reset) = (begin(), begin());
    wait_for("a job to run", || home.jobs().iter().any(|job| job["state"] == "running"));
    wait_for("all connections to be open", || connections(&at) >= 5.0);
    let stream = reset.into_stream();
    set_socket_linger(&stream, Some(std::time::Duration::ZERO)).unwrap();
    drop((stream, plain, closed, dropped));
    wait_for("only this connection to be open", || connections(&at) == 1.0);
    // An upload leaves nothing if its client closes or resets the connection before the end.
    let (kind, body) = form(&[(Some("f"), "f", &vec![7; 3 << 20])]);
    for resets in [false, true] {
        let mut http = Http::to(&at);
        http.begin(
            "POST",
            "/events/other",
            &[("content-type", kind), ("content-length", "10000000")],
        );
        http.send(&body).unwrap();
        let stream = http.into_stream();
        if resets {
            set_socket_linger(&stream, Some(std::time::Duration::ZERO)).unwrap();
        }
        drop(stream);
        wait_for("only this connection to be open", || connections(&at) == 1.0);
    }
    wait_for("the files that no event names to be removed", || {
        files_below(&home.state().join("gateway")) + files_below(&home.state().join("blobs")) == 0
    });
    std::fs::write(&go, "").unwrap();
    wait_for("the jobs of the clients that have gone to succeed", || {
        home.jobs().iter().filter(|job| job["state"] == "succeeded").count() == 3
    });
    assert_eq!(daemon.stop(), Some(0));
}

/// HTTP/1.0 has no chunks. If an answer without a length ended with a FIN, its client would take it
/// for complete, so an answer that breaks off ends with a reset.
#[test]
fn an_answer_that_breaks_off_ends_in_a_reset() {
    let home = Home::new();
    home.program("talk", "#!/bin/sh\nhead -c 5000000 /dev/zero | tr '\\0' x\n");
    let (daemon, at) = up(&home, "  talk: {on: [start], run: [./talk]}\n");
    home.run(["event", "create", "start", "--wait"]).well();
    let job = home.jobs().remove(0);
    let log = |version: &str| {
        let mut http = Http::to(&at);
        let path = format!("/jobs/{}/log", text(&job, "id"));
        http.send(
            format!("GET {path} HTTP/{version}\r\nhost: {at}\r\nconnection: close\r\n\r\n")
                .as_bytes(),
        )
        .unwrap();
        assert_eq!(http.head().unwrap().status, 200);
        let mut answer = vec![];
        let read = std::io::Read::read_to_end(&mut http.into_stream(), &mut answer);
        read.map(|_| answer.len())
    };
    assert!(log("1.0").is_ok());
    let blob = home.state().join("blobs").join(text(&job["attempts"][0]["log"], "key"));
    std::fs::OpenOptions::new().write(true).open(blob).unwrap().set_len(2_000_000).unwrap();
    for version in ["1.0", "1.1"] {
        let error = log(version).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{version}: {error}");
    }
    assert_eq!(daemon.stop(), Some(0));
}
