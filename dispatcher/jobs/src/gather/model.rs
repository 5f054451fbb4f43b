//! Explores every order of steps around one gathering: a root event that `fan` and the gathering
//! module `all` work on, the pieces that `fan` commits, and what `work`, `work2` and `look` make of
//! them. Modules are registered, removed and renamed at any point. Dispatcher A serves the current
//! registry, B an older one. Attempts are lost or fail; dead jobs are revived or dropped;
//! on-success jobs publish their staged events after their end.
//!
//! The judge of the gathering (a dispatcher) reads the registry, the events, the jobs on them, the
//! events again and the registry again, in separate steps, with any other steps in between. While
//! the job waits, the first reading of the events and their jobs is enough to queue it. The judgement, the steps of
//! a job, the modules that an event is for and every change of the registry are the real code.
//! Stores and claims behave as their contract says. Each [`GatherFault`] must be refuted.

mod rules;
mod scenarios;
mod verdicts;

use std::collections::HashMap;

use ion_model::record::{AttemptEnd, JobState};

use self::rules::GatherPlane;
use self::scenarios::{
    BACK, FAILING, GROWING, GatherFault, MIXED, OUTLIVING, RENAMED, SHRINKING, Scenario,
};
use self::verdicts::{begin_complaint, has_succeeded, is_done};
use crate::job::{AttemptOutcome, EndedAttempt, Transition, next_record};

/// All possible jobs: a module, and the number of the event it works on.
const SLOTS: [(&str, usize); 10] = [
    ("fan", 0),
    ("all", 0),
    ("work", 1),
    ("work", 2),
    ("work2", 1),
    ("work2", 2),
    ("look", 3),
    ("look", 4),
    ("look", 5),
    ("look", 6),
];
const FAN: usize = 0;
const ALL: usize = 1;

/// The types of all possible events: the root, two pieces, and what the jobs 2 to 5 make of the
/// pieces.
const TYPES: [&str; 7] = ["root", "piece", "piece", "done", "done", "done", "done"];

/// Returns the event that a job of `work` or `work2` commits. None: `fan` commits the pieces, and
/// the other jobs commit nothing.
fn event_made_by(slot: usize) -> Option<usize> {
    (2..=5).contains(&slot).then_some(slot + 1)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Committed {
    No,
    /// An on-success job has staged it.
    Staged,
    /// It is committed, for the modules that this version of the registry names.
    At(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct GatherJob {
    state: JobState,
    outbox: bool,
}

/// What a reading of the jobs shows: the state, and whether the outbox still has something to
/// publish.
type Shown = [Option<(JobState, bool)>; SLOTS.len()];

/// What the judge of the gathering has read until now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Reading {
    registry: Option<u8>,
    /// What the first walk has met: a bit for each event that is visible.
    first: Option<u8>,
    jobs: Option<Shown>,
    /// What the second walk has met.
    second: Option<u8>,
}

/// What the judge concludes.
enum Conclusion {
    Waits,
    /// The events that were met, a bit for each.
    Ready(u8),
}

/// Receives one step: whether it is fair (no operator and no failure causes it), and the change
/// that it makes to a state. A change that returns none is not possible in that state.
type GatherSteps<'a> = dyn FnMut(bool, &dyn Fn(&mut GatherState) -> Option<()>) + 'a;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct GatherState {
    /// The version of the current registry, and the version that dispatcher B has read last.
    registry: u8,
    known_to_b: u8,
    events: [Committed; TYPES.len()],
    jobs: [Option<GatherJob>; SLOTS.len()],
    reading: Reading,
    /// A dispatcher's housekeeping has found that the gathering is ready, and may write it late.
    found_ready: bool,
    /// What the running attempt of `all` has gathered: a bit for each event.
    gathered: Option<u8>,
    /// The number of that attempt, and whether another dispatcher than the first one has adopted
    /// it.
    attempt: u8,
    adopted: bool,
    /// The pod of an attempt: the attempt's number, and what it gathered. The pod may outlive its
    /// dispatcher.
    pod: Option<(u8, u8)>,
    successes: u8,
    /// Jobs, a bit for each, that began after the judge had read the jobs, and that no judge could
    /// have expected: an operator revived them, or B did not know that their module is not
    /// registered any more.
    unforeseen: u16,
    changes: u8,
    losses: u8,
    failures: u8,
    revivals: u8,
}

impl GatherPlane {
    fn initial_state(&self) -> GatherState {
        let Scenario { changes, losses, failures, revivals, .. } = self.scenario;
        let mut events = [Committed::No; TYPES.len()];
        events[0] = Committed::At(0);
        let mut jobs = [None; SLOTS.len()];
        jobs[FAN] = Some(GatherJob::new(JobState::Starting));
        jobs[ALL] = Some(GatherJob::new(JobState::Waiting));
        GatherState {
            registry: 0,
            known_to_b: 0,
            events,
            jobs,
            reading: Reading::default(),
            found_ready: false,
            gathered: None,
            attempt: 0,
            adopted: false,
            pod: None,
            successes: 0,
            unforeseen: 0,
            changes,
            losses,
            failures,
            revivals,
        }
    }

    /// Returns all states that one step leads to, and whether the step is fair: no operator and no
    /// failure causes it.
    fn next_states(&self, state: &GatherState) -> Vec<(GatherState, bool)> {
        let mut all = Vec::new();
        let mut step = |fair, change: &dyn Fn(&mut GatherState) -> Option<()>| {
            let mut after = *state;
            if change(&mut after).is_some() && after != *state {
                all.push((after, fair));
            }
        };
        step(true, &|state| {
            state.known_to_b = state.registry;
            Some(())
        });
        for name in self.scenario.changing {
            step(false, &|state| {
                state.changes = state.changes.checked_sub(1)?;
                let before = self.registry(state.registry);
                let on = self.modules.iter().find(|module| module.name == *name)?.selector();
                state.registry = self.version_number(
                    before.without_module(name).or_else(|| before.with_module(name, &on, ""))?,
                );
                Some(())
            });
        }
        for slot in 0..SLOTS.len() {
            self.claim_or_take(slot, &mut step);
            step(true, &|state| self.continue_job(state, slot));
            step(true, &|state| reveal(state, slot));
            // `fan` may end with any number of pieces.
            step(true, &|state| {
                (slot == FAN).then(|| end_attempt(state, slot, AttemptEnd::Succeeded))?
            });
            step(false, &|state| {
                state.losses = state.losses.checked_sub(1)?;
                (slot != FAN).then(|| end_attempt(state, slot, AttemptEnd::Lost))?
            });
            step(false, &|state| {
                state.failures = state.failures.checked_sub(1)?;
                (slot > ALL).then(|| end_attempt(state, slot, AttemptEnd::Failed))?
            });
            step(false, &|state| {
                state.revivals = state.revivals.checked_sub(1)?;
                let state = advance(state, slot, &Transition::Revived)?;
                state.unforeseen |= u16::from(state.reading.jobs.is_some()) << slot;
                Some(())
            });
            // An operator drops a dead job.
            step(false, &|state| {
                let dead = state.jobs[slot]?.state == JobState::Dead;
                dead.then(|| advance(state, slot, &Transition::CancelAsked))?.map(drop)
            });
        }
        self.add_gather_steps(&mut step);
        all
    }

    /// A dispatcher claims the job of a message, or a queued job. A knows the current registry, B a
    /// former one.
    fn claim_or_take(&self, slot: usize, step: &mut GatherSteps<'_>) {
        for by_b in [false, true] {
            step(true, &|state| {
                let knows = if by_b { state.known_to_b } else { state.registry };
                let served = match state.jobs[slot] {
                    None => self.is_for(state, knows, slot),
                    Some(job) => job.state == JobState::Queued && self.is_registered(knows, slot),
                };
                if !served {
                    return None;
                }
                let registered = match state.jobs[slot] {
                    None => self.is_for(state, state.registry, slot),
                    Some(_) => self.is_registered(state.registry, slot),
                };
                state.unforeseen |= u16::from(!registered && state.reading.jobs.is_some()) << slot;
                state.jobs[slot].get_or_insert(GatherJob::new(JobState::Queued));
                let claimed = Transition::Claimed { holder: "d".into(), lease: 9 };
                let state = advance(state, slot, &claimed)?;
                if slot == ALL {
                    state.adopted = false;
                    state.restart_reading();
                }
                Some(())
            });
        }
    }

    /// A job's process continues: it commits an event, or succeeds.
    fn continue_job(&self, state: &mut GatherState, slot: usize) -> Option<()> {
        if !state.jobs[slot]?.state.is_active() {
            return None;
        }
        match slot {
            FAN => {
                let piece =
                    (1..=self.scenario.pieces).find(|piece| state.events[*piece] == Committed::No);
                state.events[piece?] = Committed::At(state.registry);
                Some(())
            }
            ALL => {
                state.gathered?;
                state.successes += 1;
                end_attempt(state, slot, AttemptEnd::Succeeded)
            }
            _ => match event_made_by(slot).filter(|event| state.events[*event] == Committed::No) {
                Some(event) if self.scenario.on_success => {
                    state.events[event] = Committed::Staged;
                    Some(())
                }
                Some(event) => {
                    state.events[event] = Committed::At(state.registry);
                    Some(())
                }
                None => end_attempt(state, slot, AttemptEnd::Succeeded),
            },
        }
    }

    /// The gathering is judged: by a dispatcher's housekeeping while the job waits, and by the
    /// dispatcher that has claimed it.
    fn add_gather_steps(&self, step: &mut GatherSteps<'_>) {
        let judged = |state: &GatherState| {
            let all = state.jobs[ALL].map(|all| all.state)?;
            (all == JobState::Waiting || (all == JobState::Starting && state.gathered.is_none()))
                .then_some(all)
        };
        step(true, &|state| judged(state).and_then(|_| self.read_next(state)));
        step(true, &|state| {
            let all = judged(state)?;
            match (all, self.conclude(state, all)?) {
                (JobState::Waiting, Conclusion::Waits) => state.gathered = None,
                (JobState::Waiting, Conclusion::Ready(found)) => {
                    state.found_ready = true;
                    state.gathered = (self.fault == GatherFault::NotJudgedAgain).then_some(found);
                }
                (_, Conclusion::Ready(gathered)) => state.begin_attempt(gathered),
                // The adopted attempt is left again, and adopted later.
                (_, Conclusion::Waits)
                    if state.adopted && self.fault != GatherFault::AdoptedIsPutBack => {}
                (_, Conclusion::Waits) if self.fault == GatherFault::PutBackFails => {
                    end_attempt(state, ALL, AttemptEnd::Failed)?;
                }
                (_, Conclusion::Waits) => drop(advance(state, ALL, &Transition::WaitsAgain)?),
            }
            state.restart_reading();
            Some(())
        });
        // The dispatcher of the attempt goes, and another one adopts the attempt.
        step(false, &|state| {
            (self.scenario.outlives && state.is_running()).then_some(())?;
            state.losses = state.losses.checked_sub(1)?;
            advance(state, ALL, &Transition::Adopted { holder: "d".into(), lease: 9 })?;
            (state.gathered, state.adopted) = (None, true);
            state.restart_reading();
            Some(())
        });
        step(true, &|state| {
            state.found_ready.then_some(())?;
            if self.fault == GatherFault::ReadyIsForced && state.jobs[ALL]?.state.is_final() {
                state.jobs[ALL].as_mut()?.state = JobState::Waiting;
            }
            advance(state, ALL, &Transition::Gathered)?;
            state.restart_reading();
            Some(())
        });
    }

    /// Returns what follows from the readings, as soon as it is certain. `job` is the state of the
    /// gathering job: while it waits, one walk is enough.
    fn conclude(&self, state: &GatherState, job: JobState) -> Option<Conclusion> {
        let Reading { registry: Some(registry), first, jobs: Some(_), second } = state.reading
        else {
            return None;
        };
        let asks_again = !matches!(
            self.fault,
            GatherFault::RegistryOnce | GatherFault::RegistryLast | GatherFault::OwnFile
        );
        if asks_again && registry != state.registry {
            return Some(Conclusion::Waits);
        }
        let last = if self.fault == GatherFault::RegistryLast { state.registry } else { registry };
        let reading = Reading { registry: Some(last), second: None, ..state.reading };
        // The second walk cannot make the gathering ready.
        let may_judge = self.fault != GatherFault::RegistryLast || second.is_some();
        if may_judge && self.judge(state, reading).is_none() {
            return Some(Conclusion::Waits);
        }
        let one_walk = job == JobState::Waiting || self.fault == GatherFault::OneWalk;
        match (first?, second) {
            (first, None) if one_walk => Some(Conclusion::Ready(first)),
            (_, None) => None,
            (first, Some(second)) => Some(match self.are_same(first, second) {
                true => Conclusion::Ready(second),
                false => Conclusion::Waits,
            }),
        }
    }

    /// Makes the next reading.
    fn read_next(&self, state: &mut GatherState) -> Option<()> {
        let reading = &mut state.reading;
        if reading.registry.is_none() {
            let own = self.fault == GatherFault::OwnFile;
            reading.registry = Some(if own { state.known_to_b } else { state.registry });
        } else if reading.first.is_none() {
            state.reading.first = Some(state.visible_events());
        } else if reading.jobs.is_none() {
            reading.jobs = Some(state.jobs.map(|job| job.map(|job| (job.state, job.outbox))));
        } else if reading.second.is_none() {
            state.reading.second = Some(state.visible_events());
        } else {
            return None;
        }
        Some(())
    }
}

impl GatherState {
    fn restart_reading(&mut self) {
        self.reading = Reading::default();
        self.unforeseen = 0;
    }

    /// The attempt runs from now on, with what it gathers. If its pod exists already, the pod goes
    /// on with what it gathered before.
    fn begin_attempt(&mut self, gathered: u8) {
        let pod = self.pod.filter(|(attempt, _)| *attempt == self.attempt);
        let (_, gathered) = *self.pod.insert(pod.unwrap_or((self.attempt, gathered)));
        self.gathered = Some(gathered);
    }

    /// Returns the visible events, a bit for each.
    fn visible_events(&self) -> u8 {
        let seen = |event: &usize| matches!(self.events[*event], Committed::At(_));
        (0..TYPES.len()).filter(seen).fold(0, |all, event| all | 1 << event)
    }

    /// Returns whether the attempt of the gathering job has begun to run.
    fn is_running(&self) -> bool {
        self.gathered.is_some() && self.jobs[ALL].is_some_and(|all| all.state.is_active())
    }
}

/// Applies a happening to a job, by the real rule.
fn advance<'a>(
    state: &'a mut GatherState,
    slot: usize,
    happening: &Transition,
) -> Option<&'a mut GatherState> {
    let mut before = state.jobs[slot]?.record(slot);
    if slot == ALL {
        before.attempt = state.attempt.into();
    }
    let after = next_record(&before, happening, 0).ok()?;
    if slot == ALL {
        state.attempt = u8::try_from(after.attempt).ok()?;
    }
    state.jobs[slot] = Some(GatherJob { state: after.state, outbox: after.outbox });
    Some(state)
}

fn end_attempt(state: &mut GatherState, slot: usize, end: AttemptEnd) -> Option<()> {
    let staged = event_made_by(slot).is_some_and(|event| state.events[event] == Committed::Staged);
    let outcome = AttemptOutcome { staged, ..AttemptOutcome::from_end(end) };
    let ended = EndedAttempt { outcome, retries: 0, jitter: 0.0 };
    let state = advance(state, slot, &Transition::Ended(ended.into()))?;
    if slot == ALL {
        (state.gathered, state.pod) = (None, None);
        state.restart_reading();
    }
    Some(())
}

/// Publishes what an ended job has in its outbox: its staged event becomes visible, then its record
/// says that this was done.
fn reveal(state: &mut GatherState, slot: usize) -> Option<()> {
    let job = state.jobs[slot].filter(|job| job.outbox)?;
    let staged = event_made_by(slot).filter(|event| state.events[*event] == Committed::Staged);
    match staged.filter(|_| job.state == JobState::Succeeded) {
        Some(event) => state.events[event] = Committed::At(state.registry),
        None => state.jobs[slot] = Some(GatherJob { outbox: false, ..job }),
    }
    Some(())
}

/// Explores all states. Returns the first complaint, and the number of states.
fn explore(scenario: Scenario, fault: GatherFault) -> (Option<String>, usize) {
    let plane = GatherPlane::new(scenario, fault);
    let mut known = HashMap::from([(plane.initial_state(), 0)]);
    let mut states = vec![plane.initial_state()];
    // For each state, the states from which a fair step leads to it.
    let mut from: Vec<Vec<u32>> = vec![vec![]];
    let mut at = 0;
    while let Some(state) = states.get(at).copied() {
        at += 1;
        if has_succeeded(&state) && fault != GatherFault::ReadyIsForced {
            continue;
        }
        for (after, fair) in plane.next_states(&state) {
            let wrong = begin_complaint(&plane, &state, &after);
            if let Some(complaint) = wrong.or((after.successes > 1).then(|| "it ran twice".into()))
            {
                return (Some(format!("{complaint}: {state:#?} became {after:#?}")), states.len());
            }
            let number = *known.entry(after).or_insert_with(|| {
                states.push(after);
                from.push(vec![]);
                states.len() - 1
            });
            if fair {
                from[number].push(u32::try_from(at - 1).unwrap());
            }
        }
    }
    // Fair steps must lead from every state to an end.
    let mut ends: Vec<bool> = states.iter().map(|state| is_done(&plane, state)).collect();
    let mut todo: Vec<usize> = (0..states.len()).filter(|at| ends[*at]).collect();
    while let Some(at) = todo.pop() {
        for before in from[at].iter().map(|before| *before as usize) {
            if !std::mem::replace(&mut ends[before], true) {
                todo.push(before);
            }
        }
    }
    let stuck = states.iter().zip(ends).find(|(_, ends)| !ends);
    (stuck.map(|(state, _)| format!("it never ends: {state:#?}")), states.len())
}

#[test]
fn no_gathering_begins_early_misses_an_event_runs_twice_or_waits_for_ever() {
    for scenario in [RENAMED, BACK, GROWING, SHRINKING, FAILING, OUTLIVING, MIXED] {
        let (complaint, states) = explore(scenario, GatherFault::None);
        println!("{states} states of {scenario:?}");
        assert_eq!(complaint, None);
        assert!(states > 10_000, "{states} states");
    }
}

#[test]
fn each_seeded_fault_is_refuted() {
    use GatherFault::{
        AdoptedIsPutBack, ByType, DeadIsOver, FormerForgotten, NotJudgedAgain, OneWalk,
        OutboxIgnored, OwnFile, PutBackFails, ReadyIsForced, RegistryLast, RegistryOnce,
        UnclaimedIsOver,
    };
    let faults = [
        (OneWalk, RENAMED),
        (RegistryOnce, GROWING),
        (RegistryLast, SHRINKING),
        (OwnFile, RENAMED),
        (FormerForgotten, RENAMED),
        (OutboxIgnored, FAILING),
        (DeadIsOver, FAILING),
        (UnclaimedIsOver, RENAMED),
        (ByType, GROWING),
        (NotJudgedAgain, FAILING),
        (PutBackFails, FAILING),
        (AdoptedIsPutBack, OUTLIVING),
        (ReadyIsForced, FAILING),
    ];
    for (fault, scenario) in faults {
        let (complaint, states) = explore(scenario, fault);
        let complaint =
            complaint.unwrap_or_else(|| panic!("{fault:?} does no harm in {states} states"));
        println!(
            "{fault:?} after {states} states: {}",
            complaint.split(':').next().unwrap_or_default()
        );
    }
}
