//! The older system's example chain, and clients that send payloads through it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::RunningCommand;
use super::http::{Http, get};

/// The older system's example chain.
pub const LINES: &str = "name: lines\nChain:\n\
    - {Command: cat}\n\
    - {Command: grep, Arguments: [data]}\n\
    - {Command: xargs, Name: one, Arguments: [-n, '1']}\n";

/// Returns the address that a gateway printed.
pub fn address(up: &RunningCommand) -> String {
    let log = up.log();
    let rest = log.rsplit("the gateway is at http://").next().unwrap();
    rest.lines().next().unwrap().to_owned()
}

/// Returns how many processes were started ahead, and how long pools were empty, from the metrics.
pub fn pools(address: &str) -> String {
    let text = get(address, "/metrics").text();
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |number| number.parse::<f64>().unwrap())
    };
    let (ahead, late) = (
        of("ion_link_processes_total{start=\"ahead\"}"),
        of("ion_link_processes_total{start=\"late\"}"),
    );
    let empty = |what: &str| of(&format!("ion_link_pool_empty_seconds_{what}"));
    let (times, seconds) = (empty("count"), empty("sum"));
    let bounds = text.lines().filter_map(|line| {
        let rest = line.strip_prefix("ion_link_pool_empty_seconds_bucket{le=\"")?;
        let (bound, count) = rest.split_once("\"} ")?;
        (count.parse::<f64>().unwrap() >= times).then(|| bound.to_owned())
    });
    let longest = bounds.into_iter().next().unwrap_or_default();
    format!(
        "processes started ahead {ahead}, late {late}; pools empty {times} times, {seconds:.2} s in all, none longer than {longest} s"
    )
}

/// Sends one payload through the chain `lines`. Returns the time it took.
pub fn payload(client: &mut Http, n: usize) -> Duration {
    let body = format!("data {n}\nother\n");
    let begun = Instant::now();
    client.begin("POST", "/chains/lines", &[("content-length", &body.len().to_string())]);
    client.send(body.as_bytes()).unwrap();
    let answer = client.answer("POST").unwrap();
    assert_eq!((answer.status, answer.text()), (200, format!("data\n{n}\n")));
    begun.elapsed()
}

/// Sends `requests` payloads through the chain `lines`, `at_a_time` of them in parallel. Returns
/// their times, sorted.
pub fn load(addresses: &[String], requests: usize, at_a_time: usize) -> Vec<Duration> {
    let next = AtomicUsize::new(0);
    let client = |n: usize| {
        let mut client = Http::to(&addresses[n % addresses.len()]);
        let mut times = vec![];
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= requests {
                return times;
            }
            times.push(payload(&mut client, n));
        }
    };
    let mut times: Vec<Duration> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..at_a_time).map(|n| scope.spawn(move || client(n))).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    times.sort_unstable();
    times
}
