//! Compares chains over HTTP with the same programs in a shell, in one run, as ratios.
//!
//! `cargo bench --bench chains` runs it. All sides alternate, so that a busy machine slows all of
//! them. A shell starts its programs for each payload. The programs of a chain are started ahead,
//! and the chain records durably what went through each link before the answer ends. A third side
//! starts the programs ahead by hand, without HTTP and without any record: it shows the least time
//! that a chain can take on this machine.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a bench starts programs, prints its results, and panics when it cannot continue"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::Home;
use support::chains::{LINES, address, load, payload, pools};
use support::http::Http;
use support::servers::{Mongo, Rabbit, S3, plane};

/// The same chain as a shell pipeline.
const SHELL: &str = "cat | grep data | xargs -n 1";

/// The payloads that are sent one after the other.
const PAYLOADS: usize = 300;

/// The payloads that are sent in parallel, and how many at once.
const MANY: usize = 1000;
const AT_A_TIME: usize = 50;

fn main() {
    println!("{:<58} {:>11} {:>11} {:>8}  goal", "", "ion", "baseline", "ratio");
    let home = Home::new();
    let file = home.write("chain.yaml", LINES);
    let daemon = home.up_with(&["--gateway", "127.0.0.1:0"], &file);
    let at = [address(&daemon)];
    let (mut ours, mut theirs, mut alone) = (vec![], vec![], vec![]);
    // The first payloads load programs and stores into memory.
    load(&at, 20, 1);
    let mut client = Http::to(&at[0]);
    for n in 0..PAYLOADS {
        let waiting = Waiting::start();
        ours.push(payload(&mut client, n));
        theirs.push(shell(SHELL, b"data 0\nother\n"));
        alone.push(waiting.run(b"data 0\nother\n"));
    }
    for times in [&mut ours, &mut theirs, &mut alone] {
        times.sort_unstable();
    }
    line(
        "a payload through three warm links, p50 / shell",
        middle(&ours),
        middle(&theirs),
        "<= 5 ms, <= 3",
    );
    line("the same, p99", late(&ours), late(&theirs), "<= 20 ms");
    line("the same, p50 / the programs alone, started ahead", middle(&ours), middle(&alone), "");
    let begun = Instant::now();
    let ours = load(&at, MANY, AT_A_TIME);
    let each = begun.elapsed() / u32::try_from(MANY).unwrap();
    let said = pools(&at[0]);
    let begun = Instant::now();
    let mut theirs = shells();
    let shell_each = begun.elapsed() / u32::try_from(MANY).unwrap();
    theirs.sort_unstable();
    line(&format!("{MANY} payloads, {AT_A_TIME} at a time, each / shells"), each, shell_each, "");
    line("the same, p50 of what a client waits / shells", middle(&ours), middle(&theirs), "");
    println!("  {said}");
    daemon.stop();
    streamed();
    servers();
}

fn middle(sorted: &[Duration]) -> Duration {
    sorted[sorted.len() / 2]
}

fn late(sorted: &[Duration]) -> Duration {
    sorted[sorted.len() * 99 / 100]
}

fn line(what: &str, ours: Duration, theirs: Duration, goal: &str) {
    let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
    println!(
        "{what:<58} {:>11} {:>11} {ratio:>8.3}  {goal}",
        format!("{ours:.2?}"),
        format!("{theirs:.2?}")
    );
}

/// Sends a payload through a shell pipeline. Returns the time it took.
fn shell(script: &str, payload: &[u8]) -> Duration {
    let begun = Instant::now();
    let mut child = Command::new("sh")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut read = vec![];
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(payload).unwrap());
        child.stdout.take().unwrap().read_to_end(&mut read).unwrap();
    });
    assert!(child.wait().unwrap().success() && !read.is_empty());
    begun.elapsed()
}

/// The three programs, waiting for their input.
struct Waiting(Vec<Child>);

impl Waiting {
    fn start() -> Self {
        let mut children: Vec<Child> = vec![];
        for argv in [&["cat"][..], &["grep", "data"], &["xargs", "-n", "1"]] {
            let stdin = match children.last_mut().map(|before| before.stdout.take().unwrap()) {
                Some(before) => before.into(),
                None => Stdio::piped(),
            };
            let mut command = Command::new(argv[0]);
            command.args(&argv[1..]).stdin(stdin).stdout(Stdio::piped());
            children.push(command.spawn().unwrap());
        }
        Self(children)
    }

    /// Sends a payload through the programs, and waits until all have ended. Returns the time it
    /// took.
    fn run(mut self, payload: &[u8]) -> Duration {
        let (mut stdin, mut read) = (self.0[0].stdin.take().unwrap(), vec![]);
        let mut stdout = self.0[2].stdout.take().unwrap();
        let begun = Instant::now();
        stdin.write_all(payload).unwrap();
        drop(stdin);
        stdout.read_to_end(&mut read).unwrap();
        assert!(self.0.iter_mut().all(|child| child.wait().unwrap().success()) && !read.is_empty());
        begun.elapsed()
    }
}

fn shells() -> Vec<Duration> {
    std::thread::scope(|scope| {
        let one =
            || (0..MANY / AT_A_TIME).map(|_| shell(SHELL, b"data 0\nother\n")).collect::<Vec<_>>();
        let all: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(one)).collect();
        all.into_iter().flat_map(|one| one.join().unwrap()).collect()
    })
}

/// Measures a payload of a hundred megabytes. Unlike the shell, the chain also stores each link's
/// output.
fn streamed() {
    let home = Home::new();
    let file = home.write(
        "chain.yaml",
        "name: cats\nChain: [{Command: cat}, {Command: cat}, {Command: cat}]\n",
    );
    let daemon = home.up_with(&["--gateway", "127.0.0.1:0"], &file);
    let payload = vec![7; 100_000_000];
    let mut client = Http::to(&address(&daemon));
    let begun = Instant::now();
    client.begin("POST", "/chains/cats", &[("content-length", "100000000")]);
    let mut sender = client.another_end();
    std::thread::scope(|scope| {
        scope.spawn(|| sender.write_all(&payload).unwrap());
        let answer = client.answer("POST").unwrap();
        assert_eq!((answer.status, answer.body.len()), (200, payload.len()));
    });
    let ours = begun.elapsed();
    line(
        "100 MB through three links, each kept / shell",
        ours,
        shell("cat | cat | cat", &payload),
        "",
    );
    daemon.stop();
}

/// Measures payloads that go through the stores like any event: there are two dispatchers, and a
/// gateway that runs no chain.
fn servers() {
    let (mongo, rabbit, s3) = (Mongo::start(), Rabbit::start(), S3::start());
    let mut home = Home::new();
    home.env = plane(&mongo.url, &rabbit.url, &s3.url, &s3.env);
    let mut other = Home::new();
    other.env.clone_from(&home.env);
    let file = home.write("chain.yaml", LINES);
    let daemons = [
        home.start("dispatch", &[file.to_str().unwrap()]),
        other.start("dispatch", &[file.to_str().unwrap()]),
        other.start("gateway", &["--listen", "127.0.0.1:0"]),
    ];
    let at = [address(&daemons[2])];
    load(&at, 20, 1);
    let ours = load(&at, 200, 1);
    let theirs = shell(SHELL, b"data 0\nother\n");
    line("through MongoDB protocol, RabbitMQ and S3, p50 / shell", middle(&ours), theirs, "");
    line("the same, p99", late(&ours), theirs, "");
    for daemon in daemons {
        daemon.stop();
    }
}
