//! The real rules, applied to the model's states: which versions of the registry exist, which
//! modules an event is for, and what a judge concludes from its readings. Results are cached.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::RandomState;

use ion_model::event::{Event, PublicationState};
use ion_model::id::{CorrelationId, EventId, JobId};
use ion_model::record::{JobRecord, JobState, MissingJobs};
use ion_model::term::TermSubject;
use ion_stores::registry::Registry;
use serde_json::json;

use super::scenarios::{GatherFault, Scenario};
use super::{Committed, GatherJob, GatherState, Reading, SLOTS, TYPES};
use crate::gather::walk::{EventsMet, GatherJudge, JobFacts};
use crate::ledger::RegisteredModules;
use crate::pipeline::{Module, OnDead};

/// The cached judgements. The key is what was read, and how the visible events were committed. The
/// value is the events that were met, a bit for each; none: the gathering waits.
type Judged = HashMap<(Reading, [Committed; TYPES.len()]), Option<u8>>;

/// What all states of a scenario share: every version of the registry, and the results of the real
/// rules for them.
pub(super) struct GatherPlane {
    pub(super) scenario: Scenario,
    pub(super) fault: GatherFault,
    registries: RefCell<Vec<Registry>>,
    pub(super) modules: Vec<Module>,
    is_for: RefCell<HashMap<(u8, usize, u8), bool>>,
    judged: RefCell<Judged>,
    hasher: RandomState,
}

fn module(name: &str, on: &str, emits: &str) -> Module {
    let (on, emits) = (vec![on.to_owned()], vec![emits.to_owned()]);
    Module { on, emits, ..Module::new(name, vec![], "/".into()) }
}

impl GatherPlane {
    pub(super) fn new(scenario: Scenario, fault: GatherFault) -> Self {
        let all = Module {
            on: vec![],
            gather: Some("done".into()),
            per: Some("root".into()),
            on_dead: if fault == GatherFault::DeadIsOver { OnDead::Go } else { OnDead::Wait },
            ..module("all", "", "report")
        };
        let modules = vec![
            module("fan", "root", "piece"),
            all,
            module("work", "piece", "done"),
            module("work2", "piece", "done"),
            module("look", "done", "seen"),
        ];
        let empty = json!({"id": "registry", "version": 1, "modules": {}});
        let mut registry: Registry = serde_json::from_value(empty).unwrap();
        for name in scenario.registered {
            let module = modules.iter().find(|module| module.name == *name).unwrap();
            registry = registry.with_module(name, &module.selector(), "").unwrap();
        }
        Self {
            scenario,
            fault,
            registries: RefCell::new(vec![registry]),
            modules,
            is_for: RefCell::default(),
            judged: RefCell::default(),
            hasher: RandomState::new(),
        }
    }

    pub(super) fn registry(&self, version: u8) -> Registry {
        self.registries.borrow()[usize::from(version)].clone()
    }

    /// Returns the number of a registry in the states.
    pub(super) fn version_number(&self, registry: Registry) -> u8 {
        let mut all = self.registries.borrow_mut();
        let at = all.iter().position(|known| *known == registry).unwrap_or_else(|| {
            all.push(registry);
            all.len() - 1
        });
        u8::try_from(at).unwrap()
    }

    pub(super) fn is_registered(&self, version: u8, slot: usize) -> bool {
        self.registries.borrow()[usize::from(version)].registration(SLOTS[slot].0).is_some()
    }

    /// Returns event number `event` as its commit has written it.
    fn event(&self, event: usize, version: u8) -> Event {
        let parent = match event {
            0 => String::new(),
            1 | 2 => "e0".to_owned(),
            _ => format!("e{}", SLOTS[event - 1].1),
        };
        let context = json!({
            "name": "t", "eventId": format!("e{event}"), "correlationId": "c", "parentEventId": parent,
        });
        let registry = self.registry(version);
        let document = json!({
            "id": format!("e{event}"), "context": context, "type": TYPES[event], "created": event,
            "publication": PublicationState::Published, "expectedBy": registry.subscribers(TYPES[event], &TermSubject::default()),
            "registry": registry.version(),
        });
        serde_json::from_value(document).unwrap()
    }

    /// Returns whether the event of a slot is for its module, by a version of the registry.
    pub(super) fn is_for(&self, state: &GatherState, version: u8, slot: usize) -> bool {
        let (name, event) = SLOTS[slot];
        let Committed::At(committed) = state.events[event] else { return false };
        *self.is_for.borrow_mut().entry((version, slot, committed)).or_insert_with(|| {
            let registry = self.registry(version);
            registry
                .registration(name)
                .is_some_and(|of| of.receives(name, &self.event(event, committed)))
        })
    }

    /// Returns what follows from the first walk: the events that it has met, a bit for each, if all
    /// jobs on them have ended; none: the gathering waits.
    pub(super) fn judge(&self, state: &GatherState, reading: Reading) -> Option<u8> {
        let mut known = [Committed::No; TYPES.len()];
        let seen = reading.first.unwrap();
        for event in (0..TYPES.len()).filter(|event| seen & (1 << event) != 0) {
            known[event] = state.events[event];
        }
        *self
            .judged
            .borrow_mut()
            .entry((reading, known))
            .or_insert_with(|| self.judge_uncached(reading, &known))
    }

    fn judge_uncached(&self, reading: Reading, known: &[Committed]) -> Option<u8> {
        let registry = self.registry(reading.registry.unwrap());
        let modules =
            self.modules.iter().filter(|module| registry.registration(&module.name).is_some());
        let mut registered = RegisteredModules { modules: modules.cloned().collect(), registry };
        let mut events: Vec<Event> = (0..known.len())
            .filter_map(|event| match known[event] {
                Committed::At(version) => Some(self.event(event, version)),
                _ => None,
            })
            .collect();
        if self.fault == GatherFault::ByType {
            for event in &mut events {
                event.expected_by = Some(
                    registered.registry.subscribers(&event.event_type, &TermSubject::default()),
                );
                event.registry = registered.registry.version();
            }
        }
        let shown = reading.jobs.unwrap();
        registered.modules.sort_by(|a, b| a.name.cmp(&b.name));
        let module = registered.modules.iter().find(|module| module.name == "all").unwrap();
        let mut judge = GatherJudge::new(module, &registered);
        for event in &events {
            let jobs = (0..SLOTS.len()).filter_map(|slot| {
                let job = self.shown_job(shown[slot], slot, &registered, event)?;
                Some(job.facts(slot))
            });
            judge.judge_event(event, jobs.collect());
        }
        let number = |event: &Event| event.id.as_str()[1..].parse::<usize>().unwrap();
        judge.conclude().ok().map(|_| events.iter().fold(0, |all, event| all | 1 << number(event)))
    }

    /// Returns what the judge takes for the job of a slot; none if it takes it for missing.
    fn shown_job(
        &self,
        shown: Option<(JobState, bool)>,
        slot: usize,
        registered: &RegisteredModules,
        event: &Event,
    ) -> Option<GatherJob> {
        let (name, of) = SLOTS[slot];
        if event.id.as_str() != format!("e{of}") {
            return None;
        }
        let expected = registered.registry.modules_for(event).any(|expected| expected == name);
        match shown {
            Some(_) if self.fault == GatherFault::FormerForgotten && !expected => None,
            Some((state, outbox)) => Some(GatherJob {
                outbox: outbox && self.fault != GatherFault::OutboxIgnored,
                ..GatherJob::new(state)
            }),
            None => (self.fault == GatherFault::UnclaimedIsOver)
                .then(|| GatherJob::new(JobState::Succeeded)),
        }
    }

    /// Returns whether two walks have met the same events.
    pub(super) fn are_same(&self, first: u8, second: u8) -> bool {
        let met = |events: u8| {
            let mut met = EventsMet::default();
            for event in (0..TYPES.len()).filter(|event| events & (1 << event) != 0) {
                met.add(&self.hasher, &EventId::new(format!("e{event}")));
            }
            met
        };
        met(first) == met(second)
    }
}

impl GatherJob {
    pub(super) fn new(state: JobState) -> Self {
        Self { state, outbox: false }
    }

    /// Returns what a walk reads of the job.
    fn facts(self, slot: usize) -> JobFacts {
        let JobRecord { id, event_id, module, state, outbox, .. } = self.record(slot);
        JobFacts { id, event_id, module, state, outbox }
    }

    /// Returns the ledger's record of the job.
    pub(super) fn record(self, slot: usize) -> JobRecord {
        let (module, event) = SLOTS[slot];
        let event_id = EventId::new(format!("e{event}"));
        JobRecord {
            id: JobId::derive(&event_id, module),
            version: 1,
            module: module.into(),
            event_id,
            event_type: TYPES[event].into(),
            correlation_id: CorrelationId::new("c"),
            state: self.state,
            attempt: 1,
            attempts: vec![],
            holder: None,
            due: 0,
            term: 0,
            created: 0,
            ended: None,
            cancel: false,
            outbox: self.outbox,
            failures: 0,
            losses: 0,
            waits_for: None,
            without: MissingJobs::default(),
            source: None,
            left: None,
            superseded: false,
        }
    }
}
