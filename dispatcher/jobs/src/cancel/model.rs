//! Explores every order of the steps of a cancellation, of a job that runs, commits an event and
//! ends, and of a dispatcher that claims the job of that event. When the cancellation is over, none
//! of the jobs may run or start any more. While it is under way, no event may be committed for a
//! module: otherwise modules that start each other in a cycle would stay ahead of the cancellation
//! for ever.

use std::collections::HashSet;

use super::CancelRounds;

/// The registry, as far as a commit reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct CancelRegistry {
    version: u8,
    cancelling: bool,
}

/// The progress of the running job's commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum CancelledCommit {
    NotBegun,
    /// It has read the registry.
    Read(CancelRegistry),
    /// The guard held when it was checked, just before the insert is sent (MongoDB).
    Checked(CancelRegistry),
    /// The event is inserted, and is for a module or not.
    Inserted {
        for_a_module: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum CancelledJob {
    Unclaimed,
    Runs { asked: bool },
    Ended,
    Cancelled,
}

/// The progress of the cancellation. `At` says which of the two events it has visited in this
/// round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Sweep {
    NotBegun,
    At { parent: bool, child: bool },
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct CancelState {
    registry: CancelRegistry,
    /// The job of the event that is cancelled.
    parent: CancelledJob,
    commit: CancelledCommit,
    /// The job of the event that `parent` commits.
    child: CancelledJob,
    sweep: Sweep,
    rounds: CancelRounds,
    /// Whether guard and insert are one transaction.
    strict: bool,
}

/// A protocol with one seeded fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CancelFault {
    None,
    /// The cancellation is not written to the registry, so commits do not see it.
    NotInTheRegistry,
    /// A commit writes what it has read from the registry, without checking that it is still so.
    NoGuard,
    /// The cancellation is over after the first round that finds nothing.
    OneRound,
    /// Running jobs are asked to stop, and the cancellation does not wait for their end.
    NotWaitedFor,
    /// A job that no dispatcher has claimed is left as it is.
    UnclaimedPassedBy,
}

impl CancelState {
    fn new(strict: bool) -> Self {
        Self {
            registry: CancelRegistry { version: 0, cancelling: false },
            parent: CancelledJob::Runs { asked: false },
            commit: CancelledCommit::NotBegun,
            child: CancelledJob::Unclaimed,
            sweep: Sweep::NotBegun,
            rounds: CancelRounds::default(),
            strict,
        }
    }

    fn set_cancelling(&mut self, cancelling: bool, fault: CancelFault) {
        if fault != CancelFault::NotInTheRegistry {
            self.registry = CancelRegistry { version: self.registry.version + 1, cancelling };
        }
    }

    /// Returns all states that one step leads to.
    fn next_states(self, fault: CancelFault) -> Vec<Self> {
        let mut all = Vec::new();
        let mut step = |change: &dyn Fn(&mut Self)| {
            let mut after = self;
            change(&mut after);
            all.push(after);
        };
        if matches!(self.parent, CancelledJob::Runs { .. }) {
            match self.commit {
                CancelledCommit::NotBegun => {
                    step(&|state| state.commit = CancelledCommit::Read(state.registry))
                }
                CancelledCommit::Read(read) => step(&|state| {
                    state.commit = match fault == CancelFault::NoGuard
                        || read.version == state.registry.version
                    {
                        true if state.strict => {
                            CancelledCommit::Inserted { for_a_module: !read.cancelling }
                        }
                        true => CancelledCommit::Checked(read),
                        // The registry has changed: the commit reads it again.
                        false => CancelledCommit::NotBegun,
                    };
                }),
                CancelledCommit::Checked(read) => {
                    step(&|state| {
                        state.commit = CancelledCommit::Inserted { for_a_module: !read.cancelling }
                    });
                }
                CancelledCommit::Inserted { .. } => {}
            }
            // An attempt ends only after its commits have ended.
            if matches!(self.commit, CancelledCommit::NotBegun | CancelledCommit::Inserted { .. }) {
                step(&|state| state.parent = CancelledJob::Ended);
            }
        }
        if self.commit == (CancelledCommit::Inserted { for_a_module: true })
            && self.child == CancelledJob::Unclaimed
        {
            step(&|state| state.child = CancelledJob::Runs { asked: false });
        }
        if matches!(self.child, CancelledJob::Runs { .. }) {
            step(&|state| state.child = CancelledJob::Ended);
        }
        match self.sweep {
            Sweep::NotBegun => step(&|state| {
                state.set_cancelling(true, fault);
                state.sweep = Sweep::At { parent: false, child: false };
            }),
            Sweep::At { parent: true, child: true } => step(&|state| {
                let enough = state.rounds.end()
                    || (fault == CancelFault::OneRound && state.rounds.clean_in_a_row > 0);
                state.sweep = Sweep::At { parent: false, child: false };
                if enough {
                    state.set_cancelling(false, fault);
                    state.sweep = Sweep::Over;
                }
            }),
            // The events are visited in either order: a page may have been read before the child
            // event was committed.
            Sweep::At { parent, child } => {
                if !parent {
                    step(&|state| {
                        state.parent = state.visit_job(state.parent, fault);
                        state.sweep = Sweep::At { parent: true, child };
                    });
                }
                if !child {
                    step(&|state| {
                        if state.commit == (CancelledCommit::Inserted { for_a_module: true }) {
                            state.child = state.visit_job(state.child, fault);
                        }
                        state.sweep = Sweep::At { parent, child: true };
                    });
                }
            }
            Sweep::Over => {}
        }
        all
    }

    /// Returns whether the step to `next` commits an event for a module while the cancellation is
    /// under way.
    fn commits_for_module(&self, next: &Self) -> bool {
        let for_a_module = CancelledCommit::Inserted { for_a_module: true };
        matches!(self.sweep, Sweep::At { .. })
            && self.commit != for_a_module
            && next.commit == for_a_module
    }

    fn visit_job(&mut self, job: CancelledJob, fault: CancelFault) -> CancelledJob {
        match job {
            CancelledJob::Unclaimed if fault == CancelFault::UnclaimedPassedBy => {
                CancelledJob::Unclaimed
            }
            CancelledJob::Unclaimed => {
                self.rounds.not_ended += 1;
                CancelledJob::Cancelled
            }
            CancelledJob::Runs { .. } => {
                self.rounds.not_ended += usize::from(fault != CancelFault::NotWaitedFor);
                CancelledJob::Runs { asked: true }
            }
            CancelledJob::Ended | CancelledJob::Cancelled => job,
        }
    }
}

/// Explores all states. Returns the first state that is not allowed, and the number of states.
fn explore(fault: CancelFault, strict: bool) -> (Option<CancelState>, usize) {
    let mut seen = HashSet::from([CancelState::new(strict)]);
    let mut todo = vec![CancelState::new(strict)];
    let mut over = false;
    while let Some(state) = todo.pop() {
        over |= state.sweep == Sweep::Over;
        let runs = |job| matches!(job, CancelledJob::Runs { .. });
        if state.sweep == Sweep::Over && (runs(state.parent) || runs(state.child)) {
            return (Some(state), seen.len());
        }
        for next in state.next_states(fault) {
            if strict && state.commits_for_module(&next) {
                return (Some(next), seen.len());
            }
            if seen.insert(next) {
                todo.push(next);
            }
        }
    }
    assert!(over, "it never ends");
    (None, seen.len())
}

#[test]
fn nothing_of_it_runs_once_it_is_cancelled() {
    for strict in [true, false] {
        let (wrong, states) = explore(CancelFault::None, strict);
        assert_eq!(wrong, None);
        assert!(states > 100, "{states} states");
    }
}

#[test]
fn each_seeded_fault_is_refuted() {
    use CancelFault::{NoGuard, NotInTheRegistry, NotWaitedFor, OneRound, UnclaimedPassedBy};
    for fault in [NotInTheRegistry, NoGuard, OneRound, NotWaitedFor, UnclaimedPassedBy] {
        let harm = |strict| explore(fault, strict).0.is_some();
        assert!(harm(true) || harm(false), "{fault:?} does no harm");
    }
}
