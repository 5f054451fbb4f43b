//! Shows what Ion does when operators meddle with stores, and when servers refuse a request or do
//! not answer it. Ion says what is wrong and what to do, and loses nothing. The tests use the
//! embedded stores, RabbitMQ, S3 and a MongoDB-compatible store.

mod broker;
mod proxy;

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::support::servers::{Mongo, S3};
use crate::support::{CommandOutput, Home, wait_for};
use proxy::{Completion, Proxy};

/// Returns a home that has its documents in a file of its own, and its bus at this URL.
fn home_on_bus(url: &str) -> Home {
    let mut home = Home::new();
    home.env.push(("ION_BUS".into(), url.to_owned()));
    home
}

/// A command whose standard error can be read while it runs.
struct Background {
    child: Child,
    errors: std::path::PathBuf,
}

impl Background {
    fn start(home: &Home, words: &[&str]) -> Self {
        let errors = home.path().join("background.log");
        let file = std::fs::File::create(&errors).unwrap();
        let child = home.ion().args(words).stdout(Stdio::piped()).stderr(file).spawn().unwrap();
        Self { child, errors }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap()
    }

    fn end(self) -> CommandOutput {
        let mut ran = CommandOutput::of(self.child.wait_with_output().unwrap());
        ran.stderr = std::fs::read_to_string(self.errors).unwrap();
        ran
    }
}

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
    // The files have other content under the same names. Neither the event nor its blob changes.
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
    // The upload has several parts.
    home.write("big", vec![7; 20 << 20]);
    for (next, key) in [(Completion::AnswerLost, "/0/big"), (Completion::Refused, "/0.1/big")] {
        proxy.next(next);
        let created = home.run(["--json", "event", "create", "big", "--file", "big"]).well();
        assert!(proxy.met(), "the completion has reached the proxy");
        assert!(created.stdout.contains(key), "{next:?}: {created:#?}");
        home.run(["check", "--deep"]).well();
    }
}

#[test]
fn an_event_that_starts_nothing_is_told_as_such() {
    let home = Home::new();
    let empty = home.run(["event", "create", "new_video", "--wait"]);
    assert_eq!(empty.code, Some(1), "{empty:#?}");
    assert!(empty.stderr.contains("no module is registered; `ion up PIPELINE`"), "{empty:#?}");
    let file = home.write("pipeline.yaml", "modules:\n  one: {on: [new_video], run: [\"true\"]}\n");
    home.run(["module", "create", "--pipeline", file.to_str().unwrap()]).well();
    let slip = home.run(["event", "create", "new_vidoe", "--wait"]);
    assert_eq!(slip.code, Some(1), "{slip:#?}");
    assert!(slip.stderr.contains("nothing will start: did you mean \"new_video\"?"), "{slip:#?}");
    // A person who does not wait may have reasons of their own for such an event.
    home.run(["event", "create", "new_vidoe"]).well();
}

#[test]
fn a_wait_says_what_it_waits_for() {
    let home = Home::new();
    let go = home.path().join("go");
    home.program(
        "slow",
        &format!("#!/bin/sh\nuntil [ -e {} ]; do sleep 0.1; done\n", go.display()),
    );
    home.program("fail", "#!/bin/sh\nexit 1\n");
    home.program("all", "#!/bin/sh\n:\n");
    let file = home.write(
        "pipeline.yaml",
        "modules:\n  slow: {on: [go], run: [./slow]}\n  fail: {on: [go], emits: [done], run: [./fail], retries: 0}\n  \
         all: {gather: done, per: go, run: [./all]}\n",
    );
    let waiting = ["event", "create", "go", "--wait"];
    let up = home.up(&file);
    let wait = Background::start(&home, &waiting);
    wait_for("the command to name the dead job", || {
        wait.said().contains("of module \"fail\", for which all may wait")
    });
    wait_for("the command to name the running job", || {
        wait.said().contains("module \"slow\" (1 running)")
    });
    assert!(wait.said().lines().count() < 10, "{}", wait.said());
    std::fs::write(&go, "").unwrap();
    assert_eq!(wait.end().failed().code, Some(1));
    assert_eq!(up.stop(), Some(0));
    let alone = Background::start(&home, &waiting);
    wait_for("the command to say that a dispatcher is missing", || {
        alone.said().contains("a dispatcher that serves module \"slow\": start one with `ion up`")
    });
    let up = home.up(&file);
    alone.end().failed();
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn a_wait_goes_on_when_the_document_store_is_back() {
    const AWAY: Duration = Duration::from_secs(13);
    let mut mongo = Mongo::start();
    let mut home = Home::new();
    home.env.push(("ION_DOCUMENTS".into(), mongo.database("ion")));
    let (begun, go) = (home.path().join("begun"), home.path().join("go"));
    home.program(
        "slow",
        &format!(
            "#!/bin/sh\ntouch {}\nuntil [ -e {} ]; do sleep 0.1; done\n",
            begun.display(),
            go.display()
        ),
    );
    let file = home.write("pipeline.yaml", "modules:\n  slow: {on: [go], run: [./slow]}\n");
    let up = home.up(&file);
    let wait = Background::start(&home, &["event", "create", "go", "--wait", "--timeout", "3m"]);
    wait_for("the job to begin", || begun.exists());
    mongo.server.kill();
    let stopped = Instant::now();
    wait_for("the command to say that the store is unavailable", || {
        wait.said().contains("waiting for the document store, for ")
    });
    wait_for("the store to have been unavailable for long", || stopped.elapsed() > AWAY);
    mongo.server.start();
    wait_for("the command to say that the store is back", || {
        wait.said().contains("the document store is back")
    });
    std::fs::write(&go, "").unwrap();
    let ended = wait.end().well();
    assert_eq!(ended.stderr.matches("waiting for the document store").count(), 1, "{ended:#?}");
    assert_eq!(up.stop(), Some(0));
}
