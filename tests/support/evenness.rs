//! Shows that the dispatchers of a plane run its sources evenly, without anybody assigning them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Home, RunningCommand, wait_up_to};

const SOURCES: usize = 300;

/// Notes which dispatcher runs it: each has a `HOME` of its own.
const TICK: &str = r#"#!/bin/sh
set -e
echo "$HOME $(cat /ion/in/meta/source) $(cat /ion/in/meta/scheduled)" >> "$MARKS"
echo '{"eventType": "ticked"}' > /ion/out/events/e.json
sleep 0.1
"#;

/// One run of a source.
struct Run {
    dispatcher: String,
    source: String,
    scheduled: String,
}

/// Three dispatchers share 300 sources; one of them is killed, and a fourth one joins. The homes
/// are those of the four on one plane. Each source runs once in a period, which must be long enough
/// for all their work on this machine. Each dispatcher has its share, less or more by at most the part
/// `within`: on a machine that does other work, chance and load make a difference.
pub fn sources_are_run_evenly(mut homes: [Home; 4], period: Duration, within: f64) {
    let marks = homes[0].path().join("marks");
    homes[0].program("tick", TICK);
    let sources: String = (0..SOURCES)
        .map(|n| format!("  s{n:03}: {{module: tick, every: {}s}}\n", period.as_secs()))
        .collect();
    let modules = format!(
        "modules:\n  tick: {{params: {{}}, emits: [ticked], commit: on-success, run: [./tick], concurrency: 8, env: {{MARKS: {}}}}}\n",
        marks.display()
    );
    let file = homes[0].write("pipeline.yaml", format!("{modules}sources:\n{sources}"));
    for home in &mut homes {
        let own = home.path().display().to_string();
        home.env.push(("HOME".into(), own));
    }
    let mut dispatchers: Vec<RunningCommand> =
        homes[..3].iter().map(|home| dispatch(home, &file)).collect();
    wait_up_to(4 * period, "each source to have run", || {
        sources_of(&runs_from(&marks, 0)) == SOURCES
    });
    let shares = shares_in_periods(&marks, 2, period, within);
    assert_even(&shares, 3, within);
    dispatchers.remove(2).kill();
    let killed = homes[2].path().display().to_string();
    std::thread::sleep(period);
    let shares = shares_in_periods(&marks, 2, period, within);
    assert!(!shares.contains_key(&killed), "{shares:?}");
    assert_even(&shares, 2, within);
    dispatchers.push(dispatch(&homes[3], &file));
    std::thread::sleep(period);
    assert_even(&shares_in_periods(&marks, 2, period, within), 3, within);
    for dispatcher in dispatchers {
        assert_eq!(dispatcher.stop(), Some(0));
    }
    assert_no_tick_is_lost_or_doubled(&homes[0], &marks, period);
}

fn dispatch(home: &Home, file: &Path) -> RunningCommand {
    home.start("dispatch", &[file.to_str().unwrap(), "--lease", "6s", "--jobs", "8"])
}

fn runs_from(marks: &PathBuf, at: usize) -> Vec<Run> {
    let text = std::fs::read_to_string(marks).unwrap_or_default();
    let run = |line: &str| {
        let mut words = line.split(' ').map(str::to_owned);
        Some(Run { dispatcher: words.next()?, source: words.next()?, scheduled: words.next()? })
    };
    text.lines().skip(at).filter_map(run).collect()
}

fn sources_of(runs: &[Run]) -> usize {
    runs.iter().map(|run| &run.source).collect::<BTreeSet<_>>().len()
}

/// Returns how many runs each dispatcher begins in so many periods.
fn shares_in_periods(
    marks: &PathBuf,
    periods: u32,
    period: Duration,
    within: f64,
) -> BTreeMap<String, usize> {
    let (at, began) = (runs_from(marks, 0).len(), Instant::now());
    std::thread::sleep(periods * period);
    let runs = runs_from(marks, at);
    let whole = began.elapsed().as_secs_f64() / period.as_secs_f64() * SOURCES as f64;
    assert!(
        (runs.len() as f64 / whole - 1.0).abs() <= within,
        "{} runs where {whole:.0} were due",
        runs.len()
    );
    assert_eq!(sources_of(&runs), SOURCES, "each source has run");
    let mut shares = BTreeMap::new();
    for run in runs {
        *shares.entry(run.dispatcher).or_default() += 1;
    }
    shares
}

/// Checks that each of so many dispatchers has its share.
fn assert_even(shares: &BTreeMap<String, usize>, dispatchers: usize, within: f64) {
    let share = shares.values().sum::<usize>() as f64 / dispatchers as f64;
    let is_even = |runs: &usize| (*runs as f64 / share - 1.0).abs() <= within;
    assert!(
        shares.len() == dispatchers && shares.values().all(is_even),
        "{dispatchers} dispatchers, each of which has {share:.0} runs in the mean: {shares:?}"
    );
}

fn assert_no_tick_is_lost_or_doubled(home: &Home, marks: &PathBuf, period: Duration) {
    let mut times: BTreeMap<String, BTreeSet<i64>> = BTreeMap::new();
    for run in runs_from(marks, 0) {
        let at: jiff::Timestamp = run.scheduled.parse().unwrap();
        times.entry(run.source).or_default().insert(at.as_millisecond());
    }
    let ticks: usize = times.values().map(BTreeSet::len).sum();
    for (source, times) in &times {
        let times: Vec<i64> = times.iter().copied().collect();
        let widest = times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
        // A run that was lost with its dispatcher takes the time of the next one.
        let most = 2 * i64::try_from(period.as_millis()).unwrap();
        assert!(widest <= most, "{source} has not run for {widest} ms: {times:?}");
    }
    // Each run that has ended has published once.
    let jobs = home.run(["--json", "job", "list", "--limit", "100000"]).well().documents();
    let open = jobs.iter().filter(|job| job["state"] != "succeeded").count();
    let events = home
        .run(["--json", "event", "list", "-t", "ticked", "--limit", "100000"])
        .well()
        .documents();
    let parents: BTreeSet<String> =
        events.iter().map(|event| event["context"]["parentEventId"].to_string()).collect();
    assert_eq!(parents.len(), events.len(), "a tick published twice");
    assert_eq!(events.len() + open, jobs.len(), "a run that succeeded has published nothing");
    assert!(ticks <= jobs.len(), "{ticks} ticks have run, and there are {} jobs", jobs.len());
}
