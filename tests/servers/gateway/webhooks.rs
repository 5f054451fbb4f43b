//! Shows that the gateway accepts webhooks of other systems only if they are signed, and makes one
//! event of each delivery. The tests use the embedded stores.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use hmac::digest::KeyInit as _;
use hmac::{Hmac, Mac as _};
use ionfs::checksum::hex;
use serde_json::{Value, json};
use sha2::Sha256;

use super::{files_below, gateway, text};
use crate::support::http::{Answer, Http, get, request};
use crate::support::{Home, wait_for};

const GITHUB: &str = "0123456789abcdef-github";
const GITHUB_OLD: &str = "0123456789abcdef-github-of-old";
const STRIPE: &str = "whsec_0123456789abcdef";

/// Writes a file that only its owner may read.
fn secret(home: &Home, name: &str, text: &str) -> PathBuf {
    let file = home.write(name, format!("{text}\n"));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    file
}

/// Writes a list of two webhooks, and their secrets beside it. Returns the list's path.
pub(crate) fn list(home: &Home) -> String {
    secret(home, "github.secret", GITHUB);
    secret(home, "github-old.secret", GITHUB_OLD);
    secret(home, "stripe.secret", STRIPE);
    let list = "# name   scheme  type         secrets\n\
                pushes   github  code.pushed  github.secret  github-old.secret\n\
                payments stripe  payment      stripe.secret\n";
    home.write("webhooks", list).to_str().unwrap().to_owned()
}

fn signature(secret: &str, signed: &[&[u8]]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    signed.iter().for_each(|piece| mac.update(piece));
    hex(&mac.finalize().into_bytes())
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Sends a delivery as GitHub does.
fn github(
    at: &str,
    delivery: &str,
    event: &str,
    signed_with: &str,
    form: &str,
    body: &[u8],
) -> Answer {
    let signature = format!("sha256={}", signature(signed_with, &[body]));
    let headers = [
        ("user-agent", "GitHub-Hookshot/044aadd"),
        ("content-type", form),
        ("x-github-event", event),
        ("x-github-delivery", delivery),
        ("x-hub-signature-256", &signature),
    ];
    request(at, "POST", "/webhooks/pushes", &headers, body)
}

/// Sends a delivery as Stripe does.
fn stripe(at: &str, time: u64, signed_with: &[&str], body: &[u8]) -> Answer {
    let mut said = format!("t={time}");
    for secret in signed_with {
        said.push_str(&format!(
            ",v1={}",
            signature(secret, &[time.to_string().as_bytes(), b".", body])
        ));
    }
    let headers =
        [("content-type", "application/json; charset=utf-8"), ("stripe-signature", &said)];
    request(at, "POST", "/webhooks/payments", &headers, body)
}

fn value<'e>(event: &'e Value, key: &str) -> &'e str {
    let pairs = event["data"].as_array().unwrap();
    text(pairs.iter().find(|pair| pair["key"] == key).unwrap(), "value")
}

#[test]
fn a_signed_delivery_is_one_event_however_often_it_is_sent() {
    let home = Home::new();
    let list = list(&home);
    let (daemon, at) = gateway(&home, &["--gateway-webhooks", &list, "-vv"]);
    let json = "application/json";
    let push = json!({"ref": "refs/heads/main", "text": "für 😀"}).to_string();
    let first = github(&at, "72d3162e-cc78", "push", GITHUB, json, push.as_bytes());
    assert!(first.header("location").unwrap().starts_with("/correlations/"));
    let first = first.says(202);
    assert_eq!(text(&first, "type"), "code.pushed");
    let path = format!("/events/{}", text(&first, "eventId"));
    let event = get(&at, &path).says(200);
    assert_eq!(
        get(&at, &format!("{path}/data/body.json")).text(),
        push,
        "the event keeps the body byte for byte"
    );
    let said = ["webhook", "webhook-id", "webhook-event"].map(|key| value(&event, key));
    assert_eq!(said, ["pushes", "72d3162e-cc78", "push"]);
    // Sends the first delivery again. The test does so while the secret is being replaced, and at
    // another gateway after a restart.
    let again = |at: &str, secret: &str| {
        github(at, "72d3162e-cc78", "push", secret, json, push.as_bytes()).says(202)
    };
    assert_eq!(again(&at, GITHUB), first);
    assert_eq!(again(&at, GITHUB_OLD), first);
    // GitHub sends a form unless it was configured to send JSON.
    let form = format!(
        "payload={}",
        push.replace('{', "%7B").replace('"', "%22").replace(' ', "+").replace('}', "%7D")
    );
    let of_form = github(
        &at,
        "72d3162e-cc79",
        "push",
        GITHUB,
        "application/x-www-form-urlencoded",
        form.as_bytes(),
    );
    let of_form = of_form.says(202);
    let stored = get(&at, &format!("/events/{}/data/body.json", text(&of_form, "eventId"))).text();
    assert_eq!(
        serde_json::from_str::<Value>(&stored).unwrap(),
        serde_json::from_str::<Value>(&push).unwrap()
    );
    github(&at, "72d3162e-cc80", "ping", GITHUB, json, b"{\"zen\": \"x\"}").says(200);
    // A delivery's id is not signed, so a delivery with a known id and another body is refused.
    github(&at, "72d3162e-cc78", "push", GITHUB, json, b"{}").problem(409, "differs");

    let paid = json!({"id": "evt_1", "type": "invoice.paid", "pending_webhooks": 2}).to_string();
    let first_payment = stripe(&at, seconds(), &[STRIPE], paid.as_bytes()).says(202);
    let event = get(&at, &format!("/events/{}", text(&first_payment, "eventId"))).says(200);
    let said = ["webhook", "webhook-id", "webhook-event"].map(|key| value(&event, key));
    assert_eq!(said, ["payments", "evt_1", "invoice.paid"]);
    // Stripe counts something in its event, so the event has changed when Stripe sends it again.
    let later = paid.replace(":2", ":1");
    let signed_with = ["whsec_of another endpoint", STRIPE];
    assert_eq!(
        stripe(&at, seconds() - 60, &signed_with, later.as_bytes()).says(202),
        first_payment
    );
    assert_eq!(daemon.stop(), Some(0));

    let other = home.on_another_host();
    let (daemon, at) = gateway(&other, &["--gateway-webhooks", &list]);
    assert_eq!(again(&at, GITHUB), first);
    assert_eq!(stripe(&at, seconds(), &[STRIPE], paid.as_bytes()).says(202), first_payment);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn what_is_not_signed_is_neither_stored_nor_published_and_secrets_are_told_nobody() {
    let home = Home::new();
    let list = list(&home);
    let (daemon, at) = gateway(&home, &["--gateway-webhooks", &list, "-vv"]);
    let json = "application/json";
    let now = seconds();
    let refused = [
        github(&at, "1", "push", "0123456789abcdef-other", json, b"{}"),
        request(&at, "POST", "/webhooks/pushes", &[("x-github-delivery", "1")], b"{}"),
        request(&at, "POST", "/webhooks/pushes", &[("x-hub-signature-256", "sha256=00")], b"{}"),
        stripe(&at, now, &["whsec_of another endpoint"], b"{\"id\": \"evt_1\"}"),
        stripe(&at, now - 400, &[STRIPE], b"{\"id\": \"evt_1\"}"),
        stripe(&at, now + 400, &[STRIPE], b"{\"id\": \"evt_1\"}"),
        stripe(&at, now, &[], b"{\"id\": \"evt_1\"}"),
    ];
    for answer in refused {
        answer.problem(403, "unsigned");
    }
    // The request was signed, and a byte of its body was changed on its way.
    let signature = format!("sha256={}", signature(GITHUB, &[b"{\"a\": 1}"]));
    let headers = [("x-github-delivery", "1"), ("x-hub-signature-256", signature.as_str())];
    request(&at, "POST", "/webhooks/pushes", &headers, b"{\"a\": 2}").problem(403, "unsigned");
    let encoded = [&headers[..], &[("content-encoding", "gzip")]].concat();
    request(&at, "POST", "/webhooks/pushes", &encoded, b"{\"a\": 1}")
        .problem(415, "unknown-encoding");
    // A signed delivery that is malformed becomes no event.
    github(&at, "", "push", GITHUB, json, b"{}").problem(400, "malformed");
    stripe(&at, now, &[STRIPE], b"{}").problem(400, "malformed");
    stripe(&at, now, &[STRIPE], b"not json").problem(400, "malformed");
    github(&at, "1", "push", GITHUB, "application/x-www-form-urlencoded", b"a=1")
        .problem(400, "malformed");
    request(&at, "POST", "/webhooks/none", &headers, b"{}").problem(404, "not-found");
    // A sender without a secret takes no memory of other requests. Here many senders send long
    // bodies that do not end.
    let long = (24 << 20).to_string();
    let piece = vec![b'x'; 9 << 20];
    let mut held: Vec<Http> = (0..8)
        .map(|_| {
            let mut http = Http::to(&at);
            let headers = [&headers[..], &[("content-length", long.as_str())]].concat();
            http.begin("POST", "/webhooks/pushes", &headers);
            let _ = http.send(&piece);
            http
        })
        .collect();
    // Bodies that arrive at the same time may be refused because of each other. The gateway holds
    // at least five of them.
    wait_for("the memory for webhooks to be used up", || {
        github(&at, "2", "ping", GITHUB, json, &vec![b'x'; 20 << 20]).status == 503
    });
    request(&at, "POST", "/events/other", &[("content-type", json)], b"{}").says(202);
    held.clear();
    wait_for("the memory for webhooks to be free again", || {
        github(&at, "2", "ping", GITHUB, json, &vec![b'x'; 2 << 20]).status == 200
    });
    let mut http = Http::to(&at);
    http.begin(
        "POST",
        "/webhooks/pushes",
        &[&headers[..], &[("content-length", "30000000")]].concat(),
    );
    let _ = http.send(&vec![b'x'; 26 << 20]);
    if let Ok(answer) = http.answer("POST") {
        answer.problem(413, "too-big");
    }
    let events = home.run(["--json", "trace"]).well().documents();
    assert_eq!(
        events[0]["type"], "other",
        "only the other request has become an event: {events:?}"
    );
    assert_eq!(files_below(&home.state().join("blobs")), 0);
    let argv = std::fs::read(format!("/proc/{}/cmdline", daemon.pid())).unwrap();
    for secret in [GITHUB, GITHUB_OLD, STRIPE] {
        assert!(!daemon.log().contains(secret) && !String::from_utf8_lossy(&argv).contains(secret));
    }
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_list_of_webhooks_that_cannot_be_used_is_refused_at_the_start() {
    let home = Home::new();
    let list = list(&home);
    let refused = || {
        home.run(["gateway", "--listen", "127.0.0.1:0", "--gateway-webhooks", &list])
            .failed()
            .stderr
    };
    let file = home.path().join("github.secret");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let said = refused();
    assert!(said.contains("chmod 600") && said.contains("line 2"), "{said}");
    std::fs::remove_file(&file).unwrap();
    assert!(refused().contains("github.secret cannot be read"), "{}", refused());
    secret(&home, "github.secret", "hush-hush");
    let said = refused();
    assert!(said.contains("openssl rand") && !said.contains("hush"), "{said}");
    std::fs::remove_file(&list).unwrap();
    assert!(refused().contains("list of webhooks"), "{}", refused());
}
