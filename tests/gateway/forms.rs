//! In which forms an event may come, and what becomes of each.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use serde_json::{Value, json};

use crate::support::Home;
use crate::support::http::{Answer, form, get, request};
use crate::support::wait_for;
use crate::{files_below, gateway, noise, post, text, up};

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

/// The document of the event that an answer names.
fn event(at: &str, answer: Answer) -> Value {
    let made = answer.says(202);
    get(at, &format!("/events/{}", text(&made, "eventId"))).says(200)
}

/// Chains read what was meant as well.
#[test]
fn an_encoded_payload_goes_through_a_chain_decoded() {
    let home = Home::new();
    let (daemon, at) = up(&home, "  echo: {on: [echo], emits: [echoed], run: [cat], stdio: true}\n");
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
        let headers: Vec<(&str, &str)> = [("content-type", form)].into_iter().chain(lines).collect();
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
        ("nothing", &["identity"], plain.to_vec()),
        ("one after the other", &["gzip, identity, zstd"], zstd(&gzip(plain))),
        ("in two lines", &["gzip", "deflate"], zlib(&gzip(plain))),
    ] {
        let event = event(&at, send("application/json", encoding, &body));
        assert_eq!(event["data"], expected, "{what}");
    }
    // Files too, also where they are larger than what is held in memory.
    let content: Vec<u8> = (0..5).flat_map(noise).collect();
    let (kind, body) = form(&[(Some("f"), "f", &content), (None, "n", b"1")]);
    for (encoding, body) in [("gzip", gzip(&body)), ("zstd", zstd(&body))] {
        let made = send(kind, &[encoding], &body).says(202);
        let file = get(&at, &format!("/events/{}/data/f", text(&made, "eventId")));
        assert!(file.body == content, "{encoding}");
    }
    // The front API of older Ion, too.
    let link = request(&at, "POST", "/", &[("content-encoding", "gzip")], &gzip(b"{\"url\": \"x\"}"));
    assert_eq!(text(&link.says(200), "type"), "frontapi.new_link");
    let events = files_below(&home.state().join("blobs"));

    // What is cut off, or is not what it says, is no event.
    let whole = gzip(plain);
    let mut damaged = whole.clone();
    let at_sum = damaged.len() - 6;
    damaged[at_sum] ^= 1;
    for (what, encoding, body) in [
        ("cut off", "gzip", whole[..whole.len() - 3].to_vec()),
        ("cut off before its second member ends", "gzip", [&whole[..], &whole[..whole.len() / 2]].concat()),
        ("zstd cut off", "zstd", half_of(zstd(plain))),
        ("deflate cut off", "deflate", half_of(zlib(plain))),
        ("a wrong sum", "gzip", damaged),
        ("plain text", "gzip", plain.to_vec()),
        ("another encoding", "zstd", whole.clone()),
        ("cut off in a file", "gzip", half_of(gzip(&body))),
    ] {
        let form = if what.ends_with("file") { kind } else { "application/json" };
        let answer = send(form, &[encoding], &body);
        assert_eq!(answer.status, 400, "{what}: {}", answer.text());
        answer.problem(400, "malformed");
    }
    // A few bytes that stand for many are no way round a limit.
    let bomb = |bytes: usize| [b"{\"a\": \"".to_vec(), vec![b'a'; bytes], b"\"}".to_vec()].concat();
    for body in [gzip(&bomb(200 << 20)), gzip(&gzip(&bomb(200 << 20)))] {
        let encodings = if body.len() > 10_000 { &["gzip"][..] } else { &["gzip, gzip"] };
        send("application/json", encodings, &body).problem(413, "too-big");
        send("multipart/form-data; boundary=XyZ", encodings, &body).problem(413, "too-big");
    }
    let (_, files) = form(&[(Some("f"), "f", &vec![0; 9 << 20])]);
    send(kind, &["zstd"], &zstd(&files)).problem(413, "too-big");
    // So is the memory that a stream asks for.
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
    wait_for("what no event names to be removed", || files_below(&home.state().join("blobs")) == events + 1);
    assert_eq!(daemon.stop(), Some(0));
}
