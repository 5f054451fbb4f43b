//! What operators do to stores, and what servers answer or fail to answer: Ion says what it is and what to do, and loses
//! nothing of it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

#[path = "operating/proxy.rs"]
mod proxy;

use proxy::{Completion, Proxy};
use support::Home;
use support::servers::S3;

#[test]
fn the_same_event_again_waits_for_the_correlation_that_is_there() {
    let home = Home::new();
    home.program("work", "#!/bin/sh\n:\n");
    let file = home.write("pipeline.yaml", "modules:\n  work: {on: [go], run: [./work]}\n");
    let up = home.up(&file);
    home.write("f", "one\n");
    let create = |more: &[&str]| {
        let words = ["event", "create", "go", "--id", "n", "--wait", "--timeout", "50s"];
        home.run([&words[..], more].concat())
    };
    let first = create(&["--file", "f", "--correlation", "c"]).well();
    let again = create(&["--file", "f"]).well();
    assert_eq!(first.stdout.lines().next(), again.stdout.lines().next());
    assert!(first.stdout.starts_with("event n correlation c\n"), "{first:#?}");
    let elsewhere = create(&["--file", "f", "--correlation", "d"]).failed();
    assert!(elsewhere.stderr.contains("in correlation c and not in d"), "{elsewhere:#?}");
    // Other content under the same names: neither the event nor its blob is any other.
    home.write("f", "two\n");
    let other = create(&["--file", "f", "--correlation", "c"]).failed();
    assert!(other.stderr.contains("committed before with other content"), "{other:#?}");
    home.run(["check", "--deep"]).well();
    for (flag, wrong) in
        [("--id", String::new()), ("--id", "n".repeat(256)), ("--correlation", String::new())]
    {
        let refused = home.run(["event", "create", "go", flag, &wrong]);
        assert_eq!(refused.code, Some(2), "{refused:#?}");
        assert!(refused.stderr.contains("1 to 255 bytes"), "{refused:#?}");
    }
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn an_upload_whose_completion_is_not_answered_is_looked_for_or_made_anew() {
    let s3 = S3::start();
    let proxy = Proxy::start(&s3.env);
    let mut home = Home::new();
    home.env = s3.env.clone();
    home.env.push(("ION_BLOBS".into(), s3.url.clone()));
    home.env.push(("AWS_ENDPOINT_URL".into(), proxy.url.clone()));
    // Several parts.
    home.write("big", vec![7; 20 << 20]);
    for (next, key) in [(Completion::AnswerLost, "/0/big"), (Completion::Refused, "/0.1/big")] {
        proxy.next(next);
        let created = home.run(["--json", "event", "create", "big", "--file", "big"]).well();
        assert!(proxy.met(), "the completion came by");
        assert!(created.stdout.contains(key), "{next:?}: {created:#?}");
        home.run(["check", "--deep"]).well();
    }
}
