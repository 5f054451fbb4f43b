//! Explores every interleaving of operators who register, change and remove modules, of queues and
//! messages that are lost, and of one commit, its publishing, the claims, and the walk that sends
//! unclaimed events again. The registry and its rules are the real ones. The stores and the bus are
//! modelled by their contract.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use ion_model::term::{TermSubject, Terms};

use super::{EventSelector, Registry};

const TYPE: &str = "t";
const MODULES: [&str; 2] = ["a", "b"];

/// The operation that an operator is in the middle of. A process that dies leaves the operation
/// half done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Operator {
    Idle,
    /// The queue is declared, but the registry does not have the module yet.
    Registers(&'static str),
    /// The registry no longer has the module, but the queue still exists.
    Removes(&'static str),
}

/// Receives the function that makes one step in a state. The function returns `None` if the step is
/// impossible there.
type RegistrySteps<'a> = dyn FnMut(&dyn Fn(&mut RegistryState) -> Option<()>) + 'a;

/// A module's name, and the registry version in which it was added.
type RegisteredSince = (String, u64);

/// The progress of the commit of the one event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum RegistryCommit {
    NotBegun,
    /// The commit has begun, while these modules were registered.
    Begun(BTreeSet<RegisteredSince>),
    /// The guard held when it was checked, just before the insert is sent.
    Checked(BTreeSet<RegisteredSince>, Registry),
    Inserted(InsertedEvent),
    Published(InsertedEvent),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct InsertedEvent {
    expected: Vec<String>,
    version: u64,
    /// The modules that were registered from the beginning of the commit to its end.
    owed: BTreeSet<RegisteredSince>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct RegistryState {
    registry: Registry,
    /// Each existing queue, and whether it holds a message of the event.
    queues: BTreeMap<&'static str, bool>,
    operator: Operator,
    /// The registry as the committing process last read it.
    known: Option<Registry>,
    commit: RegistryCommit,
    jobs: BTreeMap<&'static str, u8>,
    /// The numbers of changes of modules, and of losses of queues and messages, that may still
    /// happen.
    changes: u8,
    losses: u8,
    /// Whether guard and insert are one transaction (SQLite) or two calls (MongoDB).
    strict: bool,
}

/// A deliberate fault in the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RegistryFault {
    None,
    /// A commit writes what it knows, without a guard on the registry's version.
    NoGuard,
    /// No walk sends unclaimed events again.
    NoWalk,
    /// The walk treats a module without a queue as one that subscribes to nothing.
    QueuesDecide,
    /// A module runs for every message in its queue, even if the event is not for it.
    NoFilter,
    /// A module that was removed and registered again receives events that were for the removed
    /// module.
    NoSince,
    /// The registry has a module before its queue exists, and no walk sends events again.
    RegistryFirst,
}

impl RegistryState {
    fn new(strict: bool) -> Self {
        let registry = Registry {
            id: "registry".into(),
            version: 1,
            modules: BTreeMap::new(),
            cancelling: BTreeMap::new(),
        };
        Self {
            registry,
            queues: BTreeMap::new(),
            operator: Operator::Idle,
            known: None,
            commit: RegistryCommit::NotBegun,
            jobs: BTreeMap::new(),
            changes: 4,
            losses: 2,
            strict,
        }
    }

    fn registered_modules(&self) -> BTreeSet<RegisteredSince> {
        self.registry.modules.iter().map(|(name, module)| (name.clone(), module.since)).collect()
    }

    fn register(&mut self, module: &str) {
        let selector = EventSelector { on: vec![TYPE.to_owned()], terms: Terms::default() };
        if let Some(after) = self.registry.with_module(module, &selector, "") {
            self.registry = after;
        }
    }

    /// Returns whether the event is for a module, as every reader of the registry decides it.
    fn receives(&self, module: &str, event: &InsertedEvent, fault: RegistryFault) -> bool {
        let Some(registered) = self.registry.registration(module) else { return false };
        let version = if fault == RegistryFault::NoSince { u64::MAX } else { event.version };
        registered.is_listed(module, &event.expected, version)
    }

    /// Returns all states that one step leads to.
    fn next(&self, fault: RegistryFault) -> Vec<Self> {
        let mut all = Vec::new();
        let mut step = |change: &dyn Fn(&mut Self) -> Option<()>| {
            let mut after = self.clone();
            if change(&mut after).is_some() && after != *self {
                all.push(after);
            }
        };
        for module in MODULES {
            self.add_operator_steps(module, fault, &mut step);
            // Somebody deletes a queue, or a policy or a broker removes its messages.
            step(&|state| {
                state.losses = state.losses.checked_sub(1)?;
                state.queues.remove(module).map(drop)
            });
            step(&|state| {
                state.losses = state.losses.checked_sub(1)?;
                state.queues.get_mut(module).map(|message| *message = false)
            });
            if let RegistryCommit::Published(event) = &self.commit {
                step(&|state| {
                    let message = state.queues.get_mut(module).filter(|message| **message)?;
                    *message = false;
                    state.registry.registration(module)?;
                    if fault == RegistryFault::NoFilter || state.receives(module, event, fault) {
                        // A claim finds an existing job.
                        state.jobs.entry(module).or_insert(1);
                    }
                    Some(())
                });
                step(&|state| state.walk(module, event, fault));
            }
        }
        self.add_commit_steps(fault, &mut step);
        all
    }

    fn add_operator_steps(
        &self,
        module: &'static str,
        fault: RegistryFault,
        step: &mut RegistrySteps<'_>,
    ) {
        match &self.operator {
            Operator::Idle => {
                step(&|state| {
                    state.changes = state.changes.checked_sub(1)?;
                    match fault {
                        RegistryFault::RegistryFirst => state.register(module),
                        _ => drop(state.queues.entry(module).or_insert(false)),
                    }
                    state.operator = Operator::Registers(module);
                    Some(())
                });
                step(&|state| {
                    state.changes = state.changes.checked_sub(1)?;
                    state.registry = state.registry.without_module(module)?;
                    state.operator = Operator::Removes(module);
                    Some(())
                });
            }
            Operator::Registers(module) => step(&|state| {
                match fault {
                    RegistryFault::RegistryFirst => {
                        state.queues.entry(module).or_insert(false);
                    }
                    _ => state.register(module),
                }
                state.operator = Operator::Idle;
                Some(())
            }),
            Operator::Removes(module) => step(&|state| {
                state.queues.remove(module);
                state.operator = Operator::Idle;
                Some(())
            }),
        }
        if self.operator != Operator::Idle {
            // The operator's process dies in the middle of the operation.
            step(&|state| {
                state.operator = Operator::Idle;
                Some(())
            });
        }
    }

    fn insert_event(&mut self, owed: &BTreeSet<RegisteredSince>, known: &Registry) {
        let owed = owed.intersection(&self.registered_modules()).cloned().collect();
        let expected = known.subscribers(TYPE, &TermSubject::default());
        self.commit =
            RegistryCommit::Inserted(InsertedEvent { expected, version: known.version, owed });
    }

    /// Sends an unclaimed event again if the module's queue holds no message of it.
    fn walk(
        &mut self,
        module: &'static str,
        event: &InsertedEvent,
        fault: RegistryFault,
    ) -> Option<()> {
        let walks = !matches!(fault, RegistryFault::NoWalk | RegistryFault::RegistryFirst);
        let wanted =
            walks && self.receives(module, event, fault) && !self.jobs.contains_key(module);
        if fault == RegistryFault::QueuesDecide {
            self.queues.get(module)?;
        }
        if !wanted || self.queues.get(module) == Some(&true) {
            return None;
        }
        self.queues.insert(module, true);
        Some(())
    }

    fn add_commit_steps(&self, fault: RegistryFault, step: &mut RegistrySteps<'_>) {
        // The process may have committed other events before, so the registry that it knows may
        // have any age.
        step(&|state| state.known.is_none().then(|| state.known = Some(state.registry.clone())));
        match &self.commit {
            RegistryCommit::NotBegun => step(&|state| {
                state.commit = RegistryCommit::Begun(state.registered_modules());
                Some(())
            }),
            RegistryCommit::Begun(owed) => step(&|state| {
                let known = state.known.take()?;
                if known.version != state.registry.version && fault != RegistryFault::NoGuard {
                    // The guard does not hold, so the process reads the registry again.
                    return Some(());
                }
                state.known = Some(known.clone());
                match state.strict {
                    true => state.insert_event(owed, &known),
                    false => state.commit = RegistryCommit::Checked(owed.clone(), known),
                }
                Some(())
            }),
            RegistryCommit::Checked(owed, known) => step(&|state| {
                state.insert_event(owed, known);
                Some(())
            }),
            RegistryCommit::Inserted(event) => step(&|state| {
                state.queues.values_mut().for_each(|message| *message = true);
                state.commit = RegistryCommit::Published(event.clone());
                Some(())
            }),
            RegistryCommit::Published(_) => {}
        }
    }

    /// Returns what is wrong in a state in which nothing more happens by itself.
    fn complaint(&self) -> Option<String> {
        let RegistryCommit::Published(event) = &self.commit else { return None };
        for module in MODULES {
            let ran = self.jobs.contains_key(module);
            let registered = self.registry.registration(module);
            let owed = |since| event.owed.contains(&(module.to_owned(), since));
            if !ran && registered.is_some_and(|registered| owed(registered.since)) {
                return Some(format!("{module} was registered and has no job"));
            }
            if ran && !event.expected.iter().any(|expected| expected == module) {
                return Some(format!("{module} has a job of an event that is not for it"));
            }
        }
        None
    }

    /// Returns whether only an operator or a loss could still change anything.
    fn is_quiet(&self, fault: RegistryFault) -> bool {
        let without = Self { changes: 0, losses: 0, ..self.clone() };
        self.operator == Operator::Idle
            && matches!(self.commit, RegistryCommit::Published(_))
            && without
                .next(fault)
                .iter()
                .all(|next| next.jobs == self.jobs && next.queues == self.queues)
    }
}

/// Explores all reachable states. Returns the first complaint, and the number of states seen.
fn explore(fault: RegistryFault, strict: bool) -> (Option<String>, usize) {
    let mut seen = HashSet::from([RegistryState::new(strict)]);
    let mut todo = vec![RegistryState::new(strict)];
    while let Some(state) = todo.pop() {
        if state.is_quiet(fault)
            && let Some(complaint) = state.complaint()
        {
            return (Some(format!("{complaint}: {state:#?}")), seen.len());
        }
        for next in state.next(fault) {
            if let Some(complaint) = find_wrong_claim(&state, &next) {
                return (Some(format!("{complaint}: {next:#?}")), seen.len());
            }
            if seen.insert(next.clone()) {
                todo.push(next);
            }
        }
    }
    (None, seen.len())
}

/// Returns a complaint if a step has started a job for an event that is not for the module as it is
/// registered at that time.
fn find_wrong_claim(before: &RegistryState, after: &RegistryState) -> Option<String> {
    let RegistryCommit::Published(event) = &before.commit else { return None };
    let new = |module: &&str| after.jobs.contains_key(module) && !before.jobs.contains_key(module);
    let wrong = |module: &&str| !before.receives(module, event, RegistryFault::None);
    let found = MODULES.iter().find(|module| new(module) && wrong(module))?;
    Some(format!("{found} has claimed an event that is not for it"))
}

#[test]
fn every_event_reaches_every_module_that_was_registered_when_it_was_committed() {
    for strict in [true, false] {
        let (complaint, states) = explore(RegistryFault::None, strict);
        assert_eq!(complaint, None);
        assert!(states > 10_000, "{states} states");
    }
}

#[test]
fn each_seeded_fault_is_refuted() {
    use RegistryFault::{NoFilter, NoGuard, NoSince, NoWalk, QueuesDecide, RegistryFirst};
    for fault in [NoGuard, NoWalk, QueuesDecide, NoFilter, NoSince, RegistryFirst] {
        assert!(explore(fault, true).0.is_some(), "{fault:?} does no harm");
    }
}
