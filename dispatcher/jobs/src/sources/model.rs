//! Explores what may happen around the runs of one source. Two dispatchers look at it: each reads
//! its document, and then does one write after the other, as [`super::Sources::look`] does. Between
//! any two of them it may die, or the other one may do as much as it likes. Jobs are claimed, fail,
//! are lost and succeed; a person retries dead ones; `ion gc` removes old runs.
//!
//! A run that begins with the state `n` publishes the item `n + 1`, and leaves `n + 1`. The model
//! shows that runs never overlap, that no item is published twice, and that the state remembers all
//! that was published once everything has ended. Each [`SourceFault`] must be refuted.

use std::collections::HashSet;

/// The most runs of the source, and how often a person retries a job.
const RUNS_MAX: usize = 3;
const RETRIES: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Job {
    /// Nobody has claimed it.
    None,
    Queued,
    Working,
    Dead,
    /// Dead, and a later run was decided.
    Superseded,
    Succeeded,
}

impl Job {
    fn is_final(self) -> bool {
        matches!(self, Self::Dead | Self::Superseded | Self::Succeeded)
    }
}

/// One run: its event and its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Run {
    /// The state that its event names, if the event is there.
    event: Option<u8>,
    job: Job,
    /// Whether `ion gc` has removed it.
    removed: bool,
}

/// The source's document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Record {
    version: u8,
    /// How many runs were decided.
    runs: usize,
    /// Whether the end of the latest run is noted, and whether that end was a success.
    is_ended: bool,
    is_noted_success: bool,
    state: u8,
}

/// A dispatcher that looks at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Looker {
    Idle,
    /// It has read this document.
    Read(Record),
    /// It has found that the latest run of this document can go on no more.
    MayDecide(Record),
    /// It has decided the latest run of this document, and creates its event next.
    Decided(Record),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct SourceModel {
    record: Record,
    runs: [Run; RUNS_MAX],
    lookers: [Looker; 2],
    /// Published items, as bits.
    published: u8,
    is_doubled: bool,
    retries: u8,
}

/// A rule with one seeded fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SourceFault {
    None,
    /// A write does not compare the version of the document.
    WritesBlindly,
    /// A run is decided while the latest one goes on.
    DoesNotWait,
    /// A dead run is not superseded before the next one is decided.
    DoesNotSupersede,
    /// The end of a run is noted without its state.
    ForgetsState,
    /// An event is created whatever the source's document says by then.
    CreatesLate,
    /// Nobody looks whether the event of a decided run is there.
    TrustsTheDecider,
    /// `ion gc` removes the latest run, too.
    RemovesLatest,
    /// A dead run that was retried may succeed before anybody looks, and is not looked at again.
    OverlooksLateSuccess,
}

impl SourceModel {
    fn initial() -> Self {
        let run = Run { event: None, job: Job::None, removed: false };
        Self {
            record: Record {
                version: 0,
                runs: 0,
                is_ended: true,
                is_noted_success: false,
                state: 0,
            },
            runs: [run; RUNS_MAX],
            lookers: [Looker::Idle; 2],
            published: 0,
            is_doubled: false,
            retries: RETRIES,
        }
    }

    fn write(&mut self, before: Record, after: Record, fault: SourceFault) -> bool {
        if self.record.version != before.version && fault != SourceFault::WritesBlindly {
            return false;
        }
        self.record = Record { version: before.version + 1, ..after };
        true
    }

    /// Creates the event of the latest run of a document, unless it is there.
    fn create_event(&mut self, of: Record, fault: SourceFault) {
        let run = &mut self.runs[of.runs - 1];
        let is_latest = self.record.runs == of.runs || fault == SourceFault::CreatesLate;
        if run.event.is_none() && is_latest {
            // What was removed is there once more, as new.
            *run = Run { event: Some(of.state), job: Job::None, removed: false };
        }
    }

    /// Does the next step of a dispatcher.
    fn look(&mut self, number: usize, fault: SourceFault) {
        let next = match self.lookers[number] {
            Looker::Idle => Looker::Read(self.record),
            Looker::Read(read) if !read.is_ended => self.look_at_run(read, fault),
            Looker::Read(read) if read.runs == 0 => Looker::MayDecide(read),
            Looker::Read(read) => self.look_at_ended_run(read, fault),
            Looker::MayDecide(read) => {
                let after = Record {
                    runs: read.runs + 1,
                    is_ended: false,
                    is_noted_success: false,
                    ..read
                };
                if read.runs < RUNS_MAX && self.write(read, after, fault) {
                    Looker::Decided(self.record)
                } else {
                    Looker::Idle
                }
            }
            Looker::Decided(decided) => {
                self.create_event(decided, fault);
                Looker::Idle
            }
        };
        self.lookers[number] = next;
    }

    fn look_at_run(&mut self, read: Record, fault: SourceFault) -> Looker {
        let Run { event, job, .. } = self.runs[read.runs - 1];
        if fault == SourceFault::DoesNotWait {
            return Looker::MayDecide(read);
        }
        if job.is_final() {
            let left = match (job, event) {
                (Job::Succeeded, Some(given)) if fault != SourceFault::ForgetsState => given + 1,
                _ => read.state,
            };
            let is_noted_success = job == Job::Succeeded;
            let after = Record { is_ended: true, is_noted_success, state: left, ..read };
            self.write(read, after, fault);
        } else if event.is_none() && fault != SourceFault::TrustsTheDecider {
            self.create_event(read, fault);
        }
        Looker::Idle
    }

    fn look_at_ended_run(&mut self, read: Record, fault: SourceFault) -> Looker {
        let run = &mut self.runs[read.runs - 1];
        match run.job {
            Job::Dead if fault != SourceFault::DoesNotSupersede => run.job = Job::Superseded,
            // It was retried, and goes on.
            Job::Queued | Job::Working if fault != SourceFault::DoesNotSupersede => {
                self.write(read, Record { is_ended: false, ..read }, fault);
                return Looker::Idle;
            }
            // It was retried, and has succeeded before anybody saw that it goes on.
            Job::Succeeded
                if !read.is_noted_success && fault != SourceFault::OverlooksLateSuccess =>
            {
                let left = run.event.map_or(read.state, |given| given + 1);
                let after = Record { is_noted_success: true, state: left, ..read };
                self.write(read, after, fault);
                return Looker::Idle;
            }
            _ => {}
        }
        Looker::MayDecide(read)
    }

    fn next_states(&self, fault: SourceFault) -> Vec<Self> {
        let mut all = Vec::new();
        let mut step = |change: &dyn Fn(&mut Self) -> Option<()>| {
            let mut after = *self;
            if change(&mut after).is_some() && after != *self {
                all.push(after);
            }
        };
        for number in 0..self.lookers.len() {
            step(&|model| {
                model.look(number, fault);
                Some(())
            });
            // It dies, and another dispatcher takes its place.
            step(&|model| {
                model.lookers[number] = Looker::Idle;
                Some(())
            });
        }
        for number in 0..RUNS_MAX {
            let mut becomes = |from: Job, to: Job| {
                step(&|model| {
                    let run = &mut model.runs[number];
                    (run.job == from && run.event.is_some()).then(|| run.job = to)
                });
            };
            becomes(Job::None, Job::Queued);
            becomes(Job::Queued, Job::Working);
            becomes(Job::Working, Job::Queued);
            becomes(Job::Working, Job::Dead);
            step(&|model| {
                let run = &mut model.runs[number];
                let given = run.event.filter(|_| run.job == Job::Working)?;
                run.job = Job::Succeeded;
                model.is_doubled |= model.published & (1 << given) != 0;
                model.published |= 1 << given;
                Some(())
            });
            step(&|model| {
                let run = &mut model.runs[number];
                (run.job == Job::Dead).then_some(())?;
                model.retries = model.retries.checked_sub(1)?;
                run.job = Job::Queued;
                Some(())
            });
            step(&|model| {
                let is_latest = model.record.runs == number + 1;
                let run = &mut model.runs[number];
                let goes =
                    run.job.is_final() && (!is_latest || fault == SourceFault::RemovesLatest);
                goes.then(|| *run = Run { event: None, job: Job::None, removed: true })
            });
        }
        all
    }

    fn complaint(&self) -> Option<&'static str> {
        let works = self.runs.iter().filter(|run| run.job == Job::Working).count();
        let is_quiet = self.lookers == [Looker::Idle; 2]
            && self.is_settled()
            && self.runs.iter().all(|run| run.job.is_final() || run.removed || run.event.is_none());
        let remembered = (1_u16 << self.record.state) - 1;
        if works > 1 {
            Some("two runs go on at the same time")
        } else if self.is_doubled {
            Some("an item is published twice")
        } else if is_quiet && u16::from(self.published) != remembered {
            Some("the state does not remember what was published")
        } else {
            None
        }
    }

    /// Returns whether the source's document says how its latest run has ended.
    fn is_settled(&self) -> bool {
        let late = self.record.runs > 0
            && self.runs[self.record.runs - 1].job == Job::Succeeded
            && !self.record.is_noted_success;
        self.record.is_ended && !late
    }

    /// Returns whether every run has ended, and all were decided.
    fn is_done(&self) -> bool {
        self.record.runs == RUNS_MAX && self.record.is_ended
    }
}

/// Explores all states. Returns the first complaint and the number of states. A state from which
/// the source can never go on to its last run is a complaint, too.
fn explore(fault: SourceFault) -> (Option<String>, usize) {
    let mut numbers = std::collections::HashMap::from([(SourceModel::initial(), 0_usize)]);
    let mut states = vec![SourceModel::initial()];
    let mut before: Vec<Vec<usize>> = vec![vec![]];
    let mut at = 0;
    while at < states.len() {
        let state = states[at];
        if let Some(complaint) = state.complaint() {
            return (Some(format!("{complaint}: {state:#?}")), states.len());
        }
        for next in state.next_states(fault) {
            let number = *numbers.entry(next).or_insert_with(|| {
                states.push(next);
                before.push(vec![]);
                states.len() - 1
            });
            before[number].push(at);
        }
        at += 1;
    }
    let mut reach: HashSet<usize> = HashSet::new();
    let mut todo: Vec<usize> =
        (0..states.len()).filter(|number| states[*number].is_done()).collect();
    while let Some(number) = todo.pop() {
        if reach.insert(number) {
            todo.extend(&before[number]);
        }
    }
    let stuck = (0..states.len()).find(|number| !reach.contains(number));
    (stuck.map(|number| format!("the source is stuck: {:#?}", states[number])), states.len())
}

#[test]
fn runs_never_overlap_and_each_item_is_published_once() {
    let (complaint, states) = explore(SourceFault::None);
    println!("{states} states");
    assert_eq!(complaint, None);
    assert!(states > 1_000, "{states} states");
}

#[test]
fn each_seeded_fault_is_refuted() {
    use SourceFault::{
        CreatesLate, DoesNotSupersede, DoesNotWait, ForgetsState, OverlooksLateSuccess,
        RemovesLatest, TrustsTheDecider, WritesBlindly,
    };
    for fault in [
        WritesBlindly,
        DoesNotWait,
        DoesNotSupersede,
        ForgetsState,
        CreatesLate,
        TrustsTheDecider,
        RemovesLatest,
        OverlooksLateSuccess,
    ] {
        let (complaint, states) = explore(fault);
        let complaint =
            complaint.unwrap_or_else(|| panic!("{fault:?} does no harm in {states} states"));
        println!("{fault:?} after {states} states: {}", complaint.split(':').next().unwrap());
    }
}
