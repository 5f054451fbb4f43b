//! Processes killed again and again, at every step of the protocol and at random moments, on the embedded stores and on
//! real servers: no event is lost, doubled or torn.
//!
//! Three dispatchers on hosts of their own share a plane. Each dies at a failpoint drawn by its seed, or when its time is
//! over, and is started again; so do the commands that create events, and `ion gc`. `make torture` kills thousands;
//! `ION_TORTURE_SEED` repeats the draws of a run that failed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "tests start programs; a long run says how it goes"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ionfs::event::{Event, Publication};
use ionfs::record::{AttemptEnd, JobRecord, JobState};
use ionfs::stores::open::{StoreUrls, open_documents};
use ionfs::stores::{Collection, Documents, Query};
use serde_json::json;
use support::Home;
use support::servers::{Env, Mongo, Rabbit, S3, plane};

/// Kills in the short form, on each plane.
const KILLS: u64 = 40;

/// Events that a batch of the short form begins with; each becomes four jobs and six more events.
const EVENTS: u64 = 20;

const HOSTS: usize = 3;

/// How long a batch may take. It is killed all the time.
const BATCH_MAX: Duration = Duration::from_secs(300);

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// SplitMix64.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.next() % (most - least)
    }

    /// Dies at one of the next places, on average so many on.
    fn failpoints(&mut self, places: u64) -> String {
        format!("*=1/{places}:{}", self.next() >> 1)
    }
}

/// What was killed, and where.
type Tally = BTreeMap<String, u64>;

/// A process that is started again whenever it dies.
struct Victim {
    home: Home,
    words: Vec<String>,
    log: PathBuf,
    read: usize,
    child: Child,
    until: Instant,
}

impl Victim {
    fn new(env: &Env, words: &[&str], draws: &mut Draws) -> Self {
        let mut home = Home::new();
        home.env.clone_from(env);
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let log = home.path().join("log");
        let child = begin(&home, &words, &log, draws);
        Self { home, words, log, read: 0, child, until: Instant::now() + lifetime(draws) }
    }

    /// Counts its death and starts it again; true when it had ended well instead.
    fn look(&mut self, draws: &mut Draws, tally: &mut Tally) -> bool {
        let ended = match self.child.try_wait().unwrap() {
            Some(ended) => ended,
            None if Instant::now() < self.until => return false,
            None => {
                self.child.kill().unwrap();
                self.child.wait().unwrap()
            }
        };
        if ended.success() {
            return true;
        }
        let log = std::fs::read_to_string(&self.log).unwrap();
        let last = &log[self.read..];
        self.read = log.len();
        assert!(ended.code().is_none(), "{:?} failed by itself: {last}", self.words);
        let place = last
            .rsplit_once("killed at ")
            .map_or("any moment", |(_, rest)| rest.lines().next().unwrap_or(rest));
        *tally.entry(place.to_owned()).or_default() += 1;
        self.child = begin(&self.home, &self.words, &self.log, draws);
        self.until = Instant::now() + lifetime(draws);
        false
    }

    /// Its last end; gives what it has complained of.
    fn end(mut self) -> String {
        let _ = self.child.kill();
        self.child.wait().unwrap();
        let log = std::fs::read_to_string(&self.log).unwrap();
        let complaint =
            |line: &&str| line.contains("ERROR") || line.contains("WARN") || line.contains("panicked");
        log.lines().filter(complaint).map(|line| format!("{line}\n")).collect()
    }
}

/// Mostly short. Some live for longer than a relay waits, or nothing a dead one left would ever be published.
fn lifetime(draws: &mut Draws) -> Duration {
    let most = [1_000, 2_000, 4_000, 30_000][draws.between(0, 4) as usize];
    Duration::from_millis(draws.between(100, most))
}

fn begin(home: &Home, words: &[String], log: &Path, draws: &mut Draws) -> Child {
    let log = OpenOptions::new().create(true).append(true).open(log).unwrap();
    let mut command = home.ion();
    command.args(words).env("ION_FAILPOINTS", draws.failpoints(40));
    command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

fn pipeline(home: &Home) -> PathBuf {
    home.program("copy", "#!/bin/sh\nset -e\ncp /ion/in/data/f /ion/out/data/f\necho more >> /ion/out/data/f\nfor n in 1 2; do echo \"{\\\"eventType\\\":\\\"copied\\\",\\\"files\\\":[\\\"f\\\"],\\\"n\\\":$n}\" > /ion/out/events/c$n; done\n");
    home.program("end", "#!/bin/sh\nset -e\ngrep -q more /ion/in/data/f\necho mine > /ion/out/data/mine\necho '{\"eventType\":\"ended\",\"files\":[\"mine\"]}' > /ion/out/events/e\n");
    home.program("all", "#!/bin/sh\nset -e\ncat /ion/in/data/*/mine | grep -c mine\necho '{\"eventType\":\"whole\"}' > /ion/out/events/w\n");
    home.write(
        "pipeline.yaml",
        "modules:\n  copy: {on: [start], emits: [copied], run: [./copy]}\n  end: {on: [copied], emits: [ended], run: [./end], commit: on-success}\n  all: {gather: ended, per: start, emits: [whole], run: [./all]}\n",
    )
}

/// What a plane's documents say.
struct Books {
    runtime: tokio::runtime::Runtime,
    documents: Arc<dyn Documents>,
}

impl Books {
    fn of(url: &str) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let documents = runtime.block_on(open_documents(url)).unwrap();
        Self { runtime, documents }
    }

    fn jobs(&self) -> Vec<JobRecord> {
        self.runtime.block_on(self.documents.find_as(Query::equal(Collection::Jobs, vec![]))).unwrap()
    }

    /// What has not come to its end: for people.
    fn open(&self) -> Vec<String> {
        let (jobs, events) = (self.jobs(), self.events());
        let unfinished = jobs.iter().filter(|job| job.state != JobState::Succeeded);
        let unfinished = unfinished.map(|job| format!("{job:?}"));
        let unclaimed = events.iter().filter(|event| jobs.iter().all(|job| job.event_id != event.id));
        unfinished.chain(unclaimed.map(|event| format!("{event:?}"))).collect()
    }

    fn events(&self) -> Vec<Event> {
        let events = Query::equal(Collection::Events, vec![("context.documentType", json!("eventMeta"))]);
        self.runtime.block_on(self.documents.find_as(events.order_by("created"))).unwrap()
    }
}

/// One batch on a plane of its own, until all its work is done and at least `kills` have happened.
fn batch(env: &Env, books: &Books, seed: u64, kills: u64) -> Tally {
    let events = setting("ION_TORTURE_EVENTS", EVENTS) as usize;
    let mut draws = Draws(seed);
    let mut tally = Tally::new();
    let mut home = Home::new();
    home.env.clone_from(env);
    let file = pipeline(&home);
    home.write("f", "content\n");
    let words = ["dispatch", file.to_str().unwrap(), "--lease", "3s", "--jobs", "2", "--quiet"];
    // The queues are there before the first event: what is published before anybody subscribes reaches nobody.
    assert_eq!(home.start("dispatch", &words[1..]).stop(), Some(0));
    let mut hosts: Vec<Victim> = (0..HOSTS).map(|_| Victim::new(env, &words, &mut draws)).collect();
    let begun = Instant::now();
    let f = home.path().join("f");
    let mut created = 0;
    let mut creating: Option<Victim> = None;
    let mut collecting: Option<Victim> = None;
    let mut looked = Instant::now();
    loop {
        for host in &mut hosts {
            assert!(!host.look(&mut draws, &mut tally), "a dispatcher ended by itself");
        }
        if created < events {
            let creator = creating.get_or_insert_with(|| {
                let id = format!("event-{created}");
                let words = ["event", "create", "start", "--id", &id, "--file", f.to_str().unwrap()];
                Victim::new(env, &words, &mut draws)
            });
            if creator.look(&mut draws, &mut tally) {
                (created, creating) = (created + 1, None);
            }
        } else {
            // Blobs of an event that is being created have no job that protects them: there the grace does.
            let collector =
                collecting.get_or_insert_with(|| Victim::new(env, &["gc", "--grace", "0s"], &mut draws));
            if collector.look(&mut draws, &mut tally) {
                collecting = None;
            }
        }
        if looked.elapsed() > Duration::from_millis(300) {
            looked = Instant::now();
            let jobs = books.jobs();
            let succeeded = jobs.iter().filter(|job| job.state == JobState::Succeeded).count();
            let killed: u64 = tally.values().sum();
            if succeeded == events * 4 && (killed >= kills || succeeded == jobs.len()) {
                break;
            }
            // A job that was lost with its host again and again is given up; a person revives it.
            if jobs.iter().any(|job| job.state == JobState::Dead) {
                let _ = home.run(["dead", "retry", "--all"]);
            }
            assert!(
                begun.elapsed() < BATCH_MAX,
                "seed {seed}: {succeeded} of {} after {tally:?}; open: {:#?}",
                events * 4,
                books.open()
            );
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let complaints = hosts.into_iter().chain(creating).chain(collecting).map(Victim::end);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("torture");
    std::fs::create_dir_all(&folder).unwrap();
    // What a failed seed is looked into with.
    std::fs::write(folder.join(format!("{seed}.log")), complaints.collect::<String>()).unwrap();
    verify(&home, &file, books, events, seed);
    tally
}

/// What the plane holds in the end, after one dispatcher that nobody kills has told the bus of the rest.
fn verify(home: &Home, file: &Path, books: &Books, number: usize, seed: u64) {
    let up = home.start("dispatch", &[file.to_str().unwrap(), "--quiet"]);
    support::wait_for(&format!("the outbox to be empty (seed {seed})"), || {
        books.events().iter().all(|event| event.publication == Publication::Published)
            && books.jobs().iter().all(|job| !job.outbox)
    });
    assert_eq!(up.stop(), Some(0));
    let jobs = books.jobs();
    assert_eq!(jobs.len(), number * 4, "seed {seed}: one job for each event and module");
    for job in &jobs {
        let well = job.attempts.iter().filter(|attempt| attempt.end == Some(AttemptEnd::Succeeded)).count();
        assert_eq!((job.state, well), (JobState::Succeeded, 1), "seed {seed}: {job:#?}");
        assert_eq!(job.failures, 0, "seed {seed}: a kill is no failure of a module: {job:#?}");
    }
    let events = books.events();
    for (kind, expected) in
        [("start", number), ("copied", 2 * number), ("ended", 2 * number), ("whole", number)]
    {
        let of_kind = || events.iter().filter(|event| event.event_type == kind);
        assert_eq!(of_kind().count(), expected, "seed {seed}: {kind}");
        let made: BTreeSet<(&str, &str)> = of_kind()
            .map(|event| {
                (
                    event.context.parent_event_id.as_str(),
                    event.file_name.as_deref().unwrap_or(event.id.as_str()),
                )
            })
            .collect();
        assert_eq!(made.len(), expected, "seed {seed}: each {kind} is of its own making");
    }
    for job in jobs.iter().filter(|job| job.module == "all") {
        assert_eq!(home.run(["job", "logs", job.id.as_str()]).well().stdout, "2\n", "seed {seed}");
    }
    let checked = home.run(["check", "--deep"]);
    assert_eq!(checked.code, Some(0), "seed {seed}: {checked:#?}");
    home.run(["gc", "--grace", "0s"]).well();
    let checked = home.run(["check", "--deep"]);
    assert_eq!(checked.code, Some(0), "seed {seed}, after gc: {checked:#?}");
}

/// Batches until enough was killed.
fn torture(name: &str, mut plane: impl FnMut(u64) -> (Env, Books)) {
    let kills = setting("ION_TORTURE_KILLS", KILLS);
    let seed = setting("ION_TORTURE_SEED", 1);
    let events = setting("ION_TORTURE_EVENTS", EVENTS);
    let begun = Instant::now();
    let mut total = Tally::new();
    let mut batches = 0;
    while total.values().sum::<u64>() < kills {
        let (env, books) = plane(batches);
        let tally = batch(&env, &books, seed.wrapping_add(batches), kills);
        batches += 1;
        for (place, times) in tally {
            *total.entry(place).or_default() += times;
        }
        println!(
            "{name}: {} kills in {batches} batches of {events} events, seeds {seed} to {}, {} s: none lost, doubled or torn",
            total.values().sum::<u64>(),
            seed.wrapping_add(batches - 1),
            begun.elapsed().as_secs()
        );
    }
    for (place, times) in total {
        println!("{times:8} at {place}");
    }
}

#[test]
fn on_the_embedded_stores() {
    let mut kept = Vec::new();
    torture("embedded", |_| {
        let host = Home::new();
        let env = host.on_another_host().env.clone();
        std::fs::create_dir_all(host.state()).unwrap();
        let books = Books::of(&StoreUrls::embedded(&host.state()).documents);
        kept = vec![host];
        (env, books)
    });
}

#[test]
fn on_real_servers() {
    let (rabbit, mongo, s3) = (Rabbit::start(), Mongo::start(), S3::start());
    torture("servers", |batch| {
        let database = mongo.database(&format!("torture{batch}"));
        let bus = rabbit.virtual_host(&format!("torture{batch}"));
        let env = plane(&database, &bus, &format!("{}/torture{batch}", s3.url), &s3.env);
        (env, Books::of(&database))
    });
}

/// The tally names places: each is one.
#[test]
fn every_failpoint_has_a_name_of_its_own() {
    let names = |folder: &str| {
        let found =
            Command::new("grep").args(["-rhoE", "failpoint::reach\\(\"[a-z.-]+\"", folder]).output().unwrap();
        String::from_utf8(found.stdout).unwrap().lines().map(str::to_owned).collect::<Vec<String>>()
    };
    let all: Vec<String> = ["ionfs/src", "dispatcher/src"].into_iter().flat_map(names).collect();
    assert!(all.len() > 10, "{all:?}");
    let unique: BTreeSet<&String> = all.iter().collect();
    assert_eq!(unique.len(), all.len(), "each place has a name of its own");
}
