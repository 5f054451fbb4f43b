//! Explores every order in which two dispatchers repeatedly register one module with two
//! definitions. Each dispatcher reads the stored definition, writes its own, registers it, and
//! looks whether another definition is stored by then. The changes of the registry and the decision
//! after that look are the real code. In the end the registry must agree with the stored
//! definition.

use std::collections::HashSet;

use ion_model::term::TermSubject;
use ion_stores::registry::Registry;
use serde_json::json;

use super::other_definition;
use crate::pipeline::Module;

const MODULE: &str = "m";
const TYPES: [&str; 2] = ["a", "b"];

/// What a dispatcher does next. Each dispatcher's own definition has the dispatcher's number. The
/// number in a variant is the definition that the step is about, which may be the other
/// dispatcher's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Next {
    Read,
    Define,
    Register(usize),
    Look(usize),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct DefinitionState {
    defined: Option<usize>,
    registry: Registry,
    next: [Next; 2],
    /// How often each dispatcher will still register the module.
    rounds: [u8; 2],
}

fn module(definition: usize) -> Module {
    Module { on: vec![TYPES[definition].into()], ..Module::new(MODULE, vec![], "/".into()) }
}

/// Returns the state after one step of a dispatcher. `looks`: after it has registered its
/// definition, it looks whether another one is stored.
fn step(state: &DefinitionState, dispatcher: usize, looks: bool) -> Option<DefinitionState> {
    let mut after = state.clone();
    after.next[dispatcher] = match state.next[dispatcher] {
        Next::Read => {
            after.rounds[dispatcher] = state.rounds[dispatcher].checked_sub(1)?;
            if state.defined == Some(dispatcher) {
                Next::Register(dispatcher)
            } else {
                Next::Define
            }
        }
        Next::Define => {
            after.defined = Some(dispatcher);
            Next::Register(dispatcher)
        }
        Next::Register(definition) => {
            let module = module(definition);
            if let Some(registry) =
                state.registry.with_module(MODULE, &module.selector(), &module.fingerprint())
            {
                after.registry = registry;
            }
            if looks { Next::Look(definition) } else { Next::Read }
        }
        Next::Look(definition) => {
            match other_definition(&module(definition), state.defined.map(module)) {
                Some(other) => Next::Register(TYPES.iter().position(|on| other.on == [*on])?),
                None => Next::Read,
            }
        }
    };
    Some(after)
}

/// Explores all states. Returns a state in which both dispatchers are done and the registry does
/// not agree with the stored definition, and the number of states.
fn explore(looks: bool) -> (Option<DefinitionState>, usize) {
    let empty = json!({"id": "registry", "version": 1, "modules": {}});
    let registry = serde_json::from_value(empty).unwrap();
    let first = DefinitionState { defined: None, registry, next: [Next::Read; 2], rounds: [3; 2] };
    let mut seen = HashSet::from([first.clone()]);
    let mut todo = vec![first];
    while let Some(state) = todo.pop() {
        let says = |defined: usize| {
            state.registry.subscribers(TYPES[defined], &TermSubject::default()) == [MODULE]
        };
        let begun = state.rounds != [3; 2];
        if begun && state.next == [Next::Read; 2] && !state.defined.is_some_and(says) {
            return (Some(state), seen.len());
        }
        for next in (0..2).filter_map(|dispatcher| step(&state, dispatcher, looks)) {
            if seen.insert(next.clone()) {
                todo.push(next);
            }
        }
    }
    (None, seen.len())
}

#[test]
fn of_two_definitions_at_once_the_registry_says_what_the_last_one_says() {
    let (wrong, states) = explore(true);
    println!("{states} states");
    assert_eq!(wrong, None);
    assert!(states > 500, "{states} states");
}

#[test]
fn without_the_last_look_the_registry_may_say_something_else() {
    assert!(explore(false).0.is_some());
}
