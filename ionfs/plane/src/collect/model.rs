//! Explores `gc` beside attempts that store blobs, commit and end. `gc` lists blobs, reads the
//! active jobs, reads the documents page by page in the order of their times, and removes the blobs
//! that no document names. These are separate steps, with anything in between. The hosts' clocks
//! differ and jump, so a commit's position may be before, in or behind the page that is being read.
//! A retried attempt replaces the document that the previous attempt staged. Documents are marked
//! as published meanwhile.
//!
//! The model shows that no document ever names a blob that `gc` has removed, and that `gc` finally
//! removes every blob that no document will name. Each [`Fault`] must be refuted.

use std::collections::HashSet;

/// The number of jobs, each of which commits one event, and the number of times that a clock may
/// show.
const JOBS: usize = 2;
const TIMES: u8 = 3;

/// The number of attempts of a job. Each attempt stores its own blob.
const ATTEMPTS: usize = 2;

/// The number of documents in a page.
const PAGE: usize = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    NotBegun,
    Active,
    /// The job is between two attempts, or after the last one, and commits nothing.
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Job {
    phase: Phase,
    attempt: usize,
}

/// An event's document: the time of its commit by its host's clock, and the attempt whose blob it
/// names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Document {
    created: u8,
    attempt: usize,
    marked: bool,
}

/// A set of blobs: one bit for each attempt of each job.
type Blobs = u8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Gc {
    NotBegun,
    /// The blobs have been listed.
    Listed(Blobs),
    Running(u8),
    /// Blobs and jobs have been read, and the documents up to a position. `blobs` are the listed
    /// blobs that none of these documents names.
    Pages {
        blobs: Blobs,
        running: u8,
        /// The position of the last document that was read, and the number of documents read.
        behind: Option<(u8, usize)>,
        read: usize,
    },
    /// All documents were read before the active jobs (only with a fault).
    DocumentsFirst(Blobs),
    /// The blobs that will be removed.
    Condemned(Blobs),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    jobs: [Job; JOBS],
    documents: [Option<Document>; JOBS],
    blobs: Blobs,
    gc: Gc,
    /// How often `gc` may still run.
    rounds: u8,
}

/// A deliberate fault in `gc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// `gc` reads the active jobs before it lists the blobs.
    JobsFirst,
    /// `gc` reads the documents before it reads the active jobs.
    DocumentsBeforeJobs,
    /// `gc` may remove the blobs of an active job.
    NobodyRuns,
    /// `gc` finds the next page by the number of documents that it has read.
    PagesByNumber,
    /// Marking a document as published changes its time.
    MarkedAnew,
}

fn blob(job: usize, attempt: usize) -> Blobs {
    1 << (job * ATTEMPTS + attempt)
}

impl State {
    fn first() -> Self {
        Self {
            jobs: [Job { phase: Phase::NotBegun, attempt: 0 }; JOBS],
            documents: [None; JOBS],
            blobs: 0,
            gc: Gc::NotBegun,
            rounds: 2,
        }
    }

    fn next(&self, fault: Fault) -> Vec<Self> {
        let mut all = Vec::new();
        let mut step = |change: &dyn Fn(&mut Self) -> Option<()>| {
            let mut after = *self;
            if change(&mut after).is_some() && after != *self {
                all.push(after);
            }
        };
        for job in 0..JOBS {
            step(&|state| {
                let one = &mut state.jobs[job];
                match one.phase {
                    Phase::NotBegun => one.phase = Phase::Active,
                    Phase::Ended if one.attempt + 1 < ATTEMPTS => {
                        *one = Job { phase: Phase::Active, attempt: one.attempt + 1 };
                    }
                    _ => return None,
                }
                Some(())
            });
            // An attempt may end at any point. After that the ledger refuses its writes.
            step(&|state| {
                let active = state.jobs[job].phase == Phase::Active;
                active.then(|| state.jobs[job].phase = Phase::Ended)
            });
            let active = self.jobs[job].phase == Phase::Active;
            let attempt = self.jobs[job].attempt;
            step(&|state| active.then(|| state.blobs |= blob(job, attempt)));
            for created in 0..TIMES {
                // The commit inserts a document, or replaces one that an earlier attempt has
                // staged.
                step(&|state| {
                    let stored = state.blobs & blob(job, attempt) != 0;
                    let free = state.documents[job]
                        .is_none_or(|there| there.attempt < attempt && !there.marked);
                    let document = Document { created, attempt, marked: false };
                    (active && stored && free).then(|| state.documents[job] = Some(document))
                });
                step(&|state| {
                    let there = state.documents[job].as_mut().filter(|there| !there.marked)?;
                    there.marked = true;
                    if fault == Fault::MarkedAnew {
                        there.created = created;
                    }
                    Some(())
                });
            }
        }
        step(&|state| state.collect(fault));
        all
    }

    fn active(&self) -> u8 {
        let active = |job: &usize| self.jobs[*job].phase == Phase::Active;
        (0..JOBS).filter(active).fold(0, |all, job| all | 1 << job)
    }

    /// Returns the documents in the order of their times.
    fn in_order(&self) -> Vec<((u8, usize), Blobs)> {
        let place = |(job, document): (usize, &Option<Document>)| {
            document.map(|document| ((document.created, job), blob(job, document.attempt)))
        };
        let mut all: Vec<_> = self.documents.iter().enumerate().filter_map(place).collect();
        all.sort_unstable();
        all
    }

    /// Does the next step of `gc`.
    fn collect(&mut self, fault: Fault) -> Option<()> {
        let begin = |blobs, running| Gc::Pages { blobs, running, behind: None, read: 0 };
        self.gc = match self.gc {
            Gc::NotBegun => {
                self.rounds = self.rounds.checked_sub(1)?;
                match fault {
                    Fault::JobsFirst => Gc::Running(self.active()),
                    _ => Gc::Listed(self.blobs),
                }
            }
            Gc::Running(running) => begin(self.blobs, running),
            Gc::Listed(blobs) if fault == Fault::DocumentsBeforeJobs => Gc::DocumentsFirst(
                self.in_order().iter().fold(blobs, |left, (_, named)| left & !named),
            ),
            Gc::DocumentsFirst(left) => Gc::Condemned(Self::without_running(left, self.active())),
            Gc::Listed(blobs) => {
                begin(blobs, if fault == Fault::NobodyRuns { 0 } else { self.active() })
            }
            Gc::Pages { mut blobs, running, mut behind, mut read } => {
                let all = self.in_order();
                let page: Vec<_> = match fault {
                    Fault::PagesByNumber => all.iter().skip(read).take(PAGE).collect(),
                    _ => all.iter().filter(|(place, _)| Some(*place) > behind).take(PAGE).collect(),
                };
                for (place, named) in &page {
                    (behind, blobs) = (Some(*place), blobs & !named);
                }
                read += page.len();
                match page.len() {
                    PAGE => Gc::Pages { blobs, running, behind, read },
                    _ => Gc::Condemned(Self::without_running(blobs, running)),
                }
            }
            Gc::Condemned(blobs) => {
                self.blobs &= !blobs;
                Gc::NotBegun
            }
        };
        Some(())
    }

    /// Returns `blobs` without those of active jobs.
    fn without_running(blobs: Blobs, running: u8) -> Blobs {
        let of = |job: usize| (0..ATTEMPTS).fold(0, |all, attempt| all | blob(job, attempt));
        (0..JOBS).filter(|job| running & (1 << job) != 0).fold(blobs, |left, job| left & !of(job))
    }

    fn complaint(&self) -> Option<&'static str> {
        let named = self.in_order().iter().fold(0, |all, (_, named)| all | named);
        (named & !self.blobs != 0).then_some("a document names a blob that is gone")
    }

    /// Returns whether `gc`, when it runs alone, removes every blob that no document names.
    fn is_cleaned(&self, fault: Fault) -> bool {
        let mut state = Self { rounds: 2, ..*self };
        while state.collect(fault).is_some() {}
        let named = state.in_order().iter().fold(0, |all, (_, named)| all | named);
        state.blobs & !named == 0
    }
}

/// Explores all reachable states. Returns the first complaint, the number of states seen, and the
/// number of states in which `gc` is about to remove something.
fn explore(fault: Fault) -> (Option<String>, usize, usize) {
    let mut seen = HashSet::from([State::first()]);
    let mut todo = vec![State::first()];
    let mut removing = 0;
    while let Some(state) = todo.pop() {
        let ended = state.jobs.iter().all(|job| job.phase == Phase::Ended);
        let unclean = (ended && !state.is_cleaned(fault)).then_some("what nobody names stays");
        if let Some(complaint) = state.complaint().or(unclean) {
            return (Some(format!("{complaint}: {state:#?}")), seen.len(), removing);
        }
        removing += usize::from(matches!(state.gc, Gc::Condemned(1..)));
        for next in state.next(fault) {
            if seen.insert(next) {
                todo.push(next);
            }
        }
    }
    (None, seen.len(), removing)
}

#[test]
fn gc_removes_what_nobody_names_and_nothing_that_a_document_names_whatever_the_clocks_say() {
    let (complaint, states, removing) = explore(Fault::None);
    println!("{states} states, something goes in {removing}");
    assert_eq!(complaint, None);
    assert!(states > 10_000 && removing > 1_000, "{states} states, something goes in {removing}");
}

#[test]
fn each_seeded_fault_is_refuted() {
    use Fault::{DocumentsBeforeJobs, JobsFirst, MarkedAnew, NobodyRuns, PagesByNumber};
    for fault in [JobsFirst, DocumentsBeforeJobs, NobodyRuns, PagesByNumber, MarkedAnew] {
        let (complaint, states, _) = explore(fault);
        let complaint =
            complaint.unwrap_or_else(|| panic!("{fault:?} does no harm in {states} states"));
        println!(
            "{fault:?} after {states} states: {}",
            complaint.split(':').next().unwrap_or_default()
        );
    }
}
