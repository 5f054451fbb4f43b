//! Explores `gc` beside attempts that store blobs, commit and end. `gc` lists blobs, reads the
//! active jobs, reads the documents page by page in the order of their times, and removes the blobs
//! that no document names. These are separate steps, with anything in between. The hosts' clocks
//! differ and jump, so a commit's position may be before, in or behind the page that is being read.
//! A retried attempt replaces the document that the previous attempt staged. Documents are marked
//! as published meanwhile.
//!
//! The model shows that no document ever names a blob that `gc` has removed, and that `gc` finally
//! removes every blob that no document will name. Each [`GcFault`] must be refuted.

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
enum GcPhase {
    NotBegun,
    Active,
    /// The job is between two attempts, or after the last one, and commits nothing.
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ModelJob {
    phase: GcPhase,
    attempt: usize,
}

/// An event's document: the time of its commit by its host's clock, and the attempt whose blob it
/// names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ModelDocument {
    created: u8,
    attempt: usize,
    marked: bool,
}

/// A set of blobs: one bit for each attempt of each job.
type ModelBlobs = u8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum GcStep {
    NotBegun,
    /// The blobs have been listed.
    Listed(ModelBlobs),
    Running(u8),
    /// Blobs and jobs have been read, and the documents up to a position. `blobs` are the listed
    /// blobs that none of these documents names.
    Pages {
        blobs: ModelBlobs,
        running: u8,
        /// The position of the last document that was read, and the number of documents read.
        behind: Option<(u8, usize)>,
        read: usize,
    },
    /// All documents were read before the active jobs (only with a fault).
    DocumentsFirst(ModelBlobs),
    /// The blobs that will be removed.
    Condemned(ModelBlobs),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct GcState {
    jobs: [ModelJob; JOBS],
    documents: [Option<ModelDocument>; JOBS],
    blobs: ModelBlobs,
    gc: GcStep,
    /// How often `gc` may still run.
    rounds: u8,
}

/// A deliberate fault in `gc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GcFault {
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

fn blob_bit(job: usize, attempt: usize) -> ModelBlobs {
    1 << (job * ATTEMPTS + attempt)
}

impl GcState {
    fn initial() -> Self {
        Self {
            jobs: [ModelJob { phase: GcPhase::NotBegun, attempt: 0 }; JOBS],
            documents: [None; JOBS],
            blobs: 0,
            gc: GcStep::NotBegun,
            rounds: 2,
        }
    }

    fn next(&self, fault: GcFault) -> Vec<Self> {
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
                    GcPhase::NotBegun => one.phase = GcPhase::Active,
                    GcPhase::Ended if one.attempt + 1 < ATTEMPTS => {
                        *one = ModelJob { phase: GcPhase::Active, attempt: one.attempt + 1 };
                    }
                    _ => return None,
                }
                Some(())
            });
            // An attempt may end at any point. After that the ledger refuses its writes.
            step(&|state| {
                let active = state.jobs[job].phase == GcPhase::Active;
                active.then(|| state.jobs[job].phase = GcPhase::Ended)
            });
            let active = self.jobs[job].phase == GcPhase::Active;
            let attempt = self.jobs[job].attempt;
            step(&|state| active.then(|| state.blobs |= blob_bit(job, attempt)));
            for created in 0..TIMES {
                // The commit inserts a document, or replaces one that an earlier attempt has
                // staged.
                step(&|state| {
                    let stored = state.blobs & blob_bit(job, attempt) != 0;
                    let free = state.documents[job]
                        .is_none_or(|there| there.attempt < attempt && !there.marked);
                    let document = ModelDocument { created, attempt, marked: false };
                    (active && stored && free).then(|| state.documents[job] = Some(document))
                });
                step(&|state| {
                    let there = state.documents[job].as_mut().filter(|there| !there.marked)?;
                    there.marked = true;
                    if fault == GcFault::MarkedAnew {
                        there.created = created;
                    }
                    Some(())
                });
            }
        }
        step(&|state| state.advance_gc(fault));
        all
    }

    fn active_jobs(&self) -> u8 {
        let active = |job: &usize| self.jobs[*job].phase == GcPhase::Active;
        (0..JOBS).filter(active).fold(0, |all, job| all | 1 << job)
    }

    /// Returns the documents in the order of their times.
    fn sorted_documents(&self) -> Vec<((u8, usize), ModelBlobs)> {
        let place = |(job, document): (usize, &Option<ModelDocument>)| {
            document.map(|document| ((document.created, job), blob_bit(job, document.attempt)))
        };
        let mut all: Vec<_> = self.documents.iter().enumerate().filter_map(place).collect();
        all.sort_unstable();
        all
    }

    /// Does the next step of `gc`.
    fn advance_gc(&mut self, fault: GcFault) -> Option<()> {
        let begin = |blobs, running| GcStep::Pages { blobs, running, behind: None, read: 0 };
        self.gc = match self.gc {
            GcStep::NotBegun => {
                self.rounds = self.rounds.checked_sub(1)?;
                match fault {
                    GcFault::JobsFirst => GcStep::Running(self.active_jobs()),
                    _ => GcStep::Listed(self.blobs),
                }
            }
            GcStep::Running(running) => begin(self.blobs, running),
            GcStep::Listed(blobs) if fault == GcFault::DocumentsBeforeJobs => {
                GcStep::DocumentsFirst(
                    self.sorted_documents().iter().fold(blobs, |left, (_, named)| left & !named),
                )
            }
            GcStep::DocumentsFirst(left) => {
                GcStep::Condemned(Self::without_running(left, self.active_jobs()))
            }
            GcStep::Listed(blobs) => {
                begin(blobs, if fault == GcFault::NobodyRuns { 0 } else { self.active_jobs() })
            }
            GcStep::Pages { mut blobs, running, mut behind, mut read } => {
                let all = self.sorted_documents();
                let page: Vec<_> = match fault {
                    GcFault::PagesByNumber => all.iter().skip(read).take(PAGE).collect(),
                    _ => all.iter().filter(|(place, _)| Some(*place) > behind).take(PAGE).collect(),
                };
                for (place, named) in &page {
                    (behind, blobs) = (Some(*place), blobs & !named);
                }
                read += page.len();
                match page.len() {
                    PAGE => GcStep::Pages { blobs, running, behind, read },
                    _ => GcStep::Condemned(Self::without_running(blobs, running)),
                }
            }
            GcStep::Condemned(blobs) => {
                self.blobs &= !blobs;
                GcStep::NotBegun
            }
        };
        Some(())
    }

    /// Returns `blobs` without those of active jobs.
    fn without_running(blobs: ModelBlobs, running: u8) -> ModelBlobs {
        let of = |job: usize| (0..ATTEMPTS).fold(0, |all, attempt| all | blob_bit(job, attempt));
        (0..JOBS).filter(|job| running & (1 << job) != 0).fold(blobs, |left, job| left & !of(job))
    }

    fn complaint(&self) -> Option<&'static str> {
        let named = self.sorted_documents().iter().fold(0, |all, (_, named)| all | named);
        (named & !self.blobs != 0).then_some("a document names a blob that is gone")
    }

    /// Returns whether `gc`, when it runs alone, removes every blob that no document names.
    fn would_be_cleaned(&self, fault: GcFault) -> bool {
        let mut state = Self { rounds: 2, ..*self };
        while state.advance_gc(fault).is_some() {}
        let named = state.sorted_documents().iter().fold(0, |all, (_, named)| all | named);
        state.blobs & !named == 0
    }
}

/// Explores all reachable states. Returns the first complaint, the number of states seen, and the
/// number of states in which `gc` is about to remove something.
fn explore(fault: GcFault) -> (Option<String>, usize, usize) {
    let mut seen = HashSet::from([GcState::initial()]);
    let mut todo = vec![GcState::initial()];
    let mut removing = 0;
    while let Some(state) = todo.pop() {
        let ended = state.jobs.iter().all(|job| job.phase == GcPhase::Ended);
        let unclean =
            (ended && !state.would_be_cleaned(fault)).then_some("what nobody names stays");
        if let Some(complaint) = state.complaint().or(unclean) {
            return (Some(format!("{complaint}: {state:#?}")), seen.len(), removing);
        }
        removing += usize::from(matches!(state.gc, GcStep::Condemned(1..)));
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
    let (complaint, states, removing) = explore(GcFault::None);
    println!("{states} states, something goes in {removing}");
    assert_eq!(complaint, None);
    assert!(states > 10_000 && removing > 1_000, "{states} states, something goes in {removing}");
}

#[test]
fn each_seeded_fault_is_refuted() {
    use GcFault::{DocumentsBeforeJobs, JobsFirst, MarkedAnew, NobodyRuns, PagesByNumber};
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
