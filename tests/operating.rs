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
