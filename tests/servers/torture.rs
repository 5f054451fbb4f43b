//! Kills processes again and again, at every step of the protocol and at random moments, and shows
//! that no event is lost, doubled or torn. The tests use the embedded stores, and RabbitMQ, a
//! MongoDB-compatible store and S3.
//!
//! Three dispatchers on hosts of their own share a plane. Each of them dies at a failpoint that its
//! seed draws, or when its time is over, and is started again. The same happens to the commands
//! that create events, to `ion gc`, and to the commands of an operator, who registers one more
//! module, changes what it subscribes to, and removes it. The operator also deletes queues of
//! modules with the messages in them. `make torture` kills thousands of processes;
//! `ION_TORTURE_SEED` repeats the draws of a run that failed.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "tests start programs; a long run says how it goes"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::support::Home;
use crate::support::books::PlaneDocuments;
use crate::support::servers::{Env, Mongo, Rabbit, S3, plane};
use ionfs::clock::{self, Millis};
use ionfs::event::PublicationState;
use ionfs::record::{AttemptEnd, JobRecord, JobState};
use ionfs::stores::open::StoreUrls;

/// The number of kills in the short form, on each plane.
const KILLS: u64 = 40;

/// The number of first events in a batch of the short form. Each of them leads to four jobs of the
/// modules that stay, and to five more events.
const EVENTS: u64 = 20;

/// The number of jobs that each first event leads to, by module. The module `extra`, which comes,
/// changes and goes, is not among them.
const JOBS: [(&str, usize); 3] = [("copy", 1), ("end", 2), ("all", 1)];
const JOBS_EACH: usize = 4;

/// How long a batch may take, while its processes are killed all the time.
const BATCH_MAX: Duration = Duration::from_secs(300);

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// The generator SplitMix64.
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

    /// Returns a rule by which a process dies at one of the next places, on average after `places`
    /// of them.
    fn failpoints(&mut self, places: u64) -> String {
        format!("*=1/{places}:{}", self.next() >> 1)
    }
}

/// How often each thing happened: a kill at a place, or an act of the operator.
type Tally = BTreeMap<String, u64>;

/// A process that is started again whenever it dies.
struct Victim {
    home: Home,
    words: Vec<String>,
    log: PathBuf,
    read: usize,
    child: Child,
    until: Instant,
    has_died: bool,
    /// What the command complains of if it is run again after it had done everything and was
    /// killed.
    all_done: Option<&'static str>,
}

impl Victim {
    fn new(env: &Env, words: &[&str], draws: &mut Draws) -> Self {
        let mut home = Home::new();
        home.env.clone_from(env);
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let log = home.path().join("log");
        let child = begin(&home, &words, &log, draws);
        let until = Instant::now() + lifetime(draws);
        Self { home, words, log, read: 0, child, until, has_died: false, all_done: None }
    }

    /// If the process has died or its time is over, counts its death and starts it again. Returns
    /// true if the process has done its work instead.
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
        if self.has_died && self.all_done.is_some_and(|complaint| last.contains(complaint)) {
            return true;
        }
        (self.read, self.has_died) = (log.len(), true);
        assert!(ended.code().is_none(), "{:?} failed by itself: {last}", self.words);
        let place = last
            .rsplit_once("killed at ")
            .map_or("any moment", |(_, rest)| rest.lines().next().unwrap_or(rest));
        *tally.entry(place.to_owned()).or_default() += 1;
        self.child = begin(&self.home, &self.words, &self.log, draws);
        self.until = Instant::now() + lifetime(draws);
        false
    }

    /// Kills the process for good. Returns the warnings and errors of its log.
    fn end(mut self) -> String {
        let _ = self.child.kill();
        self.child.wait().unwrap();
        let log = std::fs::read_to_string(&self.log).unwrap();
        let complaint = |line: &&str| {
            line.contains("ERROR") || line.contains("WARN") || line.contains("panicked")
        };
        log.lines().filter(complaint).map(|line| format!("{line}\n")).collect()
    }
}

/// Draws how long a process lives, which is mostly short. Some processes live for longer than a
/// relay waits: otherwise nothing would ever publish what a dead process has left.
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
    home.program("end", "#!/bin/sh\nset -e\nfor n in /ion/*; do grep -q more $n/in/data/f; echo mine > $n/out/data/mine; echo '{\"eventType\":\"ended\",\"files\":[\"mine\"]}' > $n/out/events/e; done\n");
    home.program("all", "#!/bin/sh\nset -e\ncat /ion/in/data/*/mine | grep -c mine\necho '{\"eventType\":\"whole\"}' > /ion/out/events/w\n");
    home.program("extra", "#!/bin/sh\ngrep -q content /ion/in/data/f\n");
    home.write(
        "three.yaml",
        "modules:\n  copy: {on: [start], emits: [copied], run: [./copy]}\n  end: {on: [copied], emits: [ended], run: [./end], commit: on-success, batch: 4}\n  all: {gather: ended, per: start, emits: [whole], run: [./all]}\n",
    )
}

/// What the operator has made of the module `extra`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extra {
    Removed,
    OnStart,
    OnStartAndCopied,
}

impl Extra {
    const ALL: [Self; 3] = [Self::Removed, Self::OnStart, Self::OnStartAndCopied];

    /// Returns the arguments of the command that makes this of `extra`.
    fn command(self, home: &Home) -> Vec<String> {
        let on = match self {
            Self::Removed => return ["module", "delete", "extra"].map(str::to_owned).into(),
            Self::OnStart => "start",
            Self::OnStartAndCopied => "start, copied",
        };
        let definition = format!("modules:\n  extra: {{on: [{on}], run: [./extra]}}\n");
        let file = home.write(&format!("{self:?}.yaml"), definition);
        vec!["module".into(), "create".into(), "--pipeline".into(), file.display().to_string()]
    }
}

/// An operator, who changes the plane's modules and deletes queues while everything else goes on.
struct Operator<'a> {
    /// The home in which the pipeline's files are.
    home: &'a Home,
    books: &'a PlaneDocuments,
    extra: Extra,
    /// The command under way, and what it makes of `extra`. Nobody knows how far the command is.
    command: Option<(Extra, Victim)>,
    /// The number of commands that were begun.
    begun: usize,
    next_command: Instant,
    next_deletion: Instant,
    acts: Tally,
    /// The time by which `extra` was registered for the last time.
    finished: Option<Millis>,
    /// What `extra` was when an event was created, by the event's id, for the events that were
    /// created while this was certain.
    known: BTreeMap<String, Extra>,
}

impl<'a> Operator<'a> {
    fn new(home: &'a Home, books: &'a PlaneDocuments) -> Self {
        Self {
            home,
            books,
            extra: Extra::Removed,
            command: None,
            begun: 0,
            next_command: Instant::now(),
            next_deletion: Instant::now(),
            acts: Tally::new(),
            finished: None,
            known: BTreeMap::new(),
        }
    }

    /// Goes on with the operator's command, or begins another one.
    fn change(&mut self, draws: &mut Draws, tally: &mut Tally) {
        if let Some((becomes, command)) = &mut self.command {
            if command.look(draws, tally) {
                *self.acts.entry(format!("{:?} -> {becomes:?}", self.extra)).or_default() += 1;
                (self.extra, self.command) = (*becomes, None);
                // The next command begins sometimes before a dispatcher has noticed this one, and
                // sometimes after a dispatcher has run jobs of `extra`.
                let most = [200, 600, 3_000][draws.between(0, 3) as usize];
                self.next_command = Instant::now() + Duration::from_millis(draws.between(50, most));
            }
        } else if Instant::now() >= self.next_command {
            let others: Vec<Extra> =
                Extra::ALL.into_iter().filter(|becomes| *becomes != self.extra).collect();
            self.begin(others[draws.between(0, 2) as usize], draws);
        }
    }

    fn begin(&mut self, becomes: Extra, draws: &mut Draws) {
        let words = becomes.command(self.home);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut victim = Victim::new(&self.home.env, &words, draws);
        victim.all_done = (becomes == Extra::Removed).then_some("there is no module");
        self.command = Some((becomes, victim));
        self.begun += 1;
    }

    /// Ends the operator's command and registers `extra` for the last time.
    fn finish(&mut self, draws: &mut Draws, tally: &mut Tally) {
        match self.command {
            None if self.extra != Extra::OnStartAndCopied => {
                self.begin(Extra::OnStartAndCopied, draws)
            }
            None => self.finished = Some(clock::now()),
            Some(_) => self.change(draws, tally),
        }
    }

    /// Deletes a module's queue when it is time.
    fn delete_a_queue(&mut self, draws: &mut Draws) {
        if Instant::now() < self.next_deletion {
            return;
        }
        self.next_deletion = Instant::now() + Duration::from_millis(draws.between(200, 2_000));
        let module = ["copy", "end", "all", "extra"][draws.between(0, 4) as usize];
        self.books.runtime.block_on(self.books.bus.remove_queue(module)).unwrap();
        *self.acts.entry(format!("the queue of {module} was deleted")).or_default() += 1;
    }

    /// Returns the number of commands that were begun, if no command is under way.
    fn at_rest(&self) -> Option<usize> {
        self.command.is_none().then_some(self.begun)
    }
}

/// Runs one batch on a plane of its own until all its work is done. Returns what was killed and
/// what the operator did.
fn batch(env: &Env, books: &PlaneDocuments, seed: u64) -> (Tally, Tally) {
    let events = setting("ION_TORTURE_EVENTS", EVENTS) as usize;
    // The other events are created after the operator's last change.
    let early = events - events.div_ceil(4);
    let mut draws = Draws(seed);
    let mut tally = Tally::new();
    let mut home = Home::new();
    home.env.clone_from(env);
    let file = pipeline(&home);
    home.write("f", "content\n");
    let flags = ["--lease", "3s", "--jobs", "2", "--quiet"];
    // The modules must be registered before the first event is committed, because otherwise the
    // event would not be for them.
    assert_eq!(
        home.start("dispatch", &[&[file.to_str().unwrap()], &flags[..]].concat()).stop(),
        Some(0)
    );
    // One dispatcher registers the file's modules again and again, and serves them. The others
    // serve what is registered.
    let files = [Some(file.to_str().unwrap()), None, None];
    let mut hosts = files.map(|file| {
        let words = ["dispatch"].into_iter().chain(file).chain(flags).collect::<Vec<&str>>();
        Victim::new(env, &words, &mut draws)
    });
    let begun = Instant::now();
    let f = home.path().join("f");
    let mut operator = Operator::new(&home, books);
    let mut created = 0;
    let mut creating: Option<(Victim, Option<usize>)> = None;
    let mut collecting: Option<Victim> = None;
    let mut looked = Instant::now();
    let mut late = None;
    loop {
        for host in &mut hosts {
            assert!(!host.look(&mut draws, &mut tally), "a dispatcher ended by itself");
        }
        match created < early {
            true => operator.change(&mut draws, &mut tally),
            false if operator.finished.is_none() => operator.finish(&mut draws, &mut tally),
            false => {}
        }
        if created < early || (created < events && operator.finished.is_some()) {
            operator.delete_a_queue(&mut draws);
            let id = format!("event-{created}");
            let (creator, at_rest) = creating.get_or_insert_with(|| {
                let words =
                    ["event", "create", "start", "--id", &id, "--file", f.to_str().unwrap()];
                (Victim::new(env, &words, &mut draws), operator.at_rest())
            });
            if creator.look(&mut draws, &mut tally) {
                if at_rest.is_some() && operator.at_rest() == *at_rest {
                    operator.known.insert(id, operator.extra);
                }
                (created, creating) = (created + 1, None);
            }
        } else if created == events {
            // `ion gc` runs without a grace, so it must not run while an event is created: no job
            // protects the event's blobs, and only the grace would.
            let collector = collecting
                .get_or_insert_with(|| Victim::new(env, &["gc", "--grace", "0s"], &mut draws));
            if collector.look(&mut draws, &mut tally) {
                collecting = None;
            }
        }
        if looked.elapsed() > Duration::from_millis(300) {
            looked = Instant::now();
            let jobs = books.jobs();
            let succeeded =
                |job: &&JobRecord| job.module != "extra" && job.state == JobState::Succeeded;
            let succeeded = jobs.iter().filter(succeeded).count();
            if succeeded == events * JOBS_EACH && books.open().is_empty() {
                break;
            }
            // A job that was lost with its host again and again is given up. A person retries it.
            if jobs.iter().any(|job| job.state == JobState::Dead) {
                let _ = home.run(["dead", "retry", "--all"]);
            }
            if begun.elapsed() > BATCH_MAX {
                late = Some(format!(
                    "seed {seed}: {succeeded} of {} jobs have succeeded after {tally:?} and {:?}; open: {:#?}",
                    events * JOBS_EACH,
                    operator.acts,
                    books.open()
                ));
                break;
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let complaints = hosts.into_iter().chain(collecting).map(Victim::end);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("torture");
    std::fs::create_dir_all(&folder).unwrap();
    // A person needs this log to look into a failed seed.
    std::fs::write(folder.join(format!("{seed}.log")), complaints.collect::<String>()).unwrap();
    assert!(late.is_none(), "{}", late.unwrap_or_default());
    verify(&home, books, events, seed);
    verify_extra(&operator, events - early, seed);
    (tally, operator.acts)
}

/// Checks what the plane holds in the end, after one dispatcher that nobody kills has published the
/// rest.
fn verify(home: &Home, books: &PlaneDocuments, number: usize, seed: u64) {
    let up = home.start("dispatch", &["--quiet"]);
    crate::support::wait_for(&format!("the outbox to be empty (seed {seed})"), || {
        books.events().iter().all(|event| event.publication == PublicationState::Published)
            && books.jobs().iter().all(|job| !job.outbox)
    });
    assert_eq!(up.stop(), Some(0));
    let jobs = books.jobs();
    for job in &jobs {
        let well = job
            .attempts
            .iter()
            .filter(|attempt| attempt.end == Some(AttemptEnd::Succeeded))
            .count();
        assert_eq!((job.state, well), (JobState::Succeeded, 1), "seed {seed}: {job:#?}");
        assert_eq!(
            job.failures, 0,
            "seed {seed}: a kill does not count as a failure of a module: {job:#?}"
        );
    }
    for (module, each) in JOBS {
        let of_module = || jobs.iter().filter(|job| job.module == module);
        let events: BTreeSet<&str> = of_module().map(|job| job.event_id.as_str()).collect();
        assert_eq!(
            (of_module().count(), events.len()),
            (number * each, number * each),
            "seed {seed}: {module} has one job for each event"
        );
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
        assert_eq!(
            made.len(),
            expected,
            "seed {seed}: no two {kind} events have the same parent and file name"
        );
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

/// Checks that the module that came, changed and went received what was committed while it was
/// registered, and nothing else. At least `late` first events must have been created after its last
/// change.
fn verify_extra(operator: &Operator, late: usize, seed: u64) {
    let books = operator.books;
    let registry = books.registry();
    let registration = registry.registration("extra").unwrap();
    let all = books.jobs();
    let jobs: BTreeMap<&str, &JobRecord> = all
        .iter()
        .filter(|job| job.module == "extra")
        .map(|job| (job.event_id.as_str(), job))
        .collect();
    assert_eq!(
        jobs.len(),
        all.iter().filter(|job| job.module == "extra").count(),
        "seed {seed}: extra has at most one job for an event"
    );
    let finished = operator.finished.unwrap();
    let mut came_late = 0;
    for event in books.events() {
        let id = event.id.as_str();
        let expects = event.expected_by.as_ref().unwrap().iter().any(|module| module == "extra");
        let context = || {
            format!(
                "seed {seed}: extra is known to have been {:?} at this event: {event:#?}",
                operator.known.get(id)
            )
        };
        match (event.event_type.as_str(), operator.known.get(id)) {
            ("start", Some(known)) => {
                assert_eq!(expects, *known != Extra::Removed, "{}", context())
            }
            ("start" | "copied", None) => {}
            _ => assert!(!expects, "{}", context()),
        }
        let is_late =
            event.created > finished && ["start", "copied"].contains(&event.event_type.as_str());
        let is_present = expects && registration.receives("extra", &event);
        if is_late {
            came_late += usize::from(event.event_type == "start");
            assert!(
                is_present,
                "the event was committed after the last registration, so it is for extra: {}",
                context()
            );
        }
        match jobs.get(id) {
            Some(job) => assert!(expects, "{}: {job:#?}", context()),
            None => assert!(
                !is_present,
                "the event is for the present registration, so extra has a job of it: {}",
                context()
            ),
        }
        // An event that is for the present registration was for it from its commit on, so the
        // gathering job above the event must have waited for its job.
        let gathering = |job: &&JobRecord| {
            job.module == "all" && job.correlation_id == event.context.correlation_id
        };
        if let (true, Some(job)) = (is_present, jobs.get(id)) {
            let gathering = all.iter().find(gathering).unwrap();
            assert!(
                job.ended.unwrap() <= gathering.attempts[0].started,
                "{}: {job:#?} ends before {gathering:#?} begins",
                context()
            );
        }
    }
    assert!(
        came_late >= late,
        "seed {seed}: {came_late} of {late} first events came after the last change"
    );
}

/// Runs batches until enough processes have been killed.
fn torture(name: &str, mut plane: impl FnMut(u64) -> (Env, PlaneDocuments)) {
    let kills = setting("ION_TORTURE_KILLS", KILLS);
    let seed = setting("ION_TORTURE_SEED", 1);
    let events = setting("ION_TORTURE_EVENTS", EVENTS);
    let begun = Instant::now();
    let (mut total, mut acts) = (Tally::new(), Tally::new());
    let mut batches = 0;
    while total.values().sum::<u64>() < kills {
        let (env, books) = plane(batches);
        let (tally, done) = batch(&env, &books, seed.wrapping_add(batches));
        batches += 1;
        for (whole, part) in [(&mut total, tally), (&mut acts, done)] {
            for (what, times) in part {
                *whole.entry(what).or_default() += times;
            }
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
    for (act, times) in acts {
        println!("{times:8} times: {act}");
    }
}

#[test]
fn on_the_embedded_stores() {
    let mut kept = Vec::new();
    torture("embedded", |_| {
        let host = Home::new();
        let env = host.on_another_host().env.clone();
        std::fs::create_dir_all(host.state()).unwrap();
        let urls = StoreUrls::embedded(&host.state());
        let books = PlaneDocuments::of(&urls.documents, &urls.bus);
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
        (env, PlaneDocuments::of(&database, &bus))
    });
}

/// The tally names places, so no two places may have one name.
#[test]
fn every_failpoint_has_a_name_of_its_own() {
    let names = |folder: &str| {
        let found = Command::new("grep")
            .args(["-rhoE", "--include=*.rs", "failpoint::hit\\(\"[a-z.-]+\"", folder])
            .output()
            .unwrap();
        String::from_utf8(found.stdout).unwrap().lines().map(str::to_owned).collect::<Vec<String>>()
    };
    let all: Vec<String> = ["ionfs", "dispatcher"].into_iter().flat_map(names).collect();
    assert!(all.len() > 10, "{all:?}");
    let unique: BTreeSet<&String> = all.iter().collect();
    assert_eq!(unique.len(), all.len(), "each place has a name of its own");
}
