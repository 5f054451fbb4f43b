//! Modules that start each other in a cycle, without an end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Module;

/// Returns the shortest cycle through each module that is part of one, each cycle once. The text
/// has the modules and the types between them: `ping -> b -> pong -> a -> ping`.
pub fn find_cycles(modules: &[Module]) -> Vec<String> {
    let mut subscribers: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (index, module) in modules.iter().enumerate() {
        for event_type in module.subscribed_types() {
            subscribers.entry(event_type).or_default().push(index);
        }
    }
    let mut found: BTreeMap<BTreeSet<usize>, String> = BTreeMap::new();
    for start in 0..modules.len() {
        if let Some(steps) = shortest_cycle(modules, &subscribers, start) {
            let names = steps
                .iter()
                .map(|(module, event_type)| format!("{} -> {event_type}", modules[*module].name));
            let words = names.chain([modules[start].name.clone()]).collect::<Vec<_>>().join(" -> ");
            found.entry(steps.iter().map(|(module, _)| *module).collect()).or_insert(words);
        }
    }
    found.into_values().collect()
}

/// Returns the shortest path from a module back to itself: the modules, each with the type that it
/// emits for the next one.
fn shortest_cycle<'a>(
    modules: &'a [Module],
    subscribers: &BTreeMap<String, Vec<usize>>,
    start: usize,
) -> Option<Vec<(usize, &'a str)>> {
    // For each module: the module before it on the path, and the type that leads from that one to
    // it.
    let mut before: BTreeMap<usize, (usize, &str)> = BTreeMap::new();
    let mut open = VecDeque::from([start]);
    while let Some(module) = open.pop_front() {
        for event_type in &modules[module].emits {
            for &next in subscribers.get(event_type).into_iter().flatten() {
                if before.contains_key(&next) {
                    continue;
                }
                before.insert(next, (module, event_type));
                if next == start {
                    let mut steps = vec![before[&start]];
                    while steps.last().is_some_and(|(module, _)| *module != start) {
                        steps.push(before[&steps[steps.len() - 1].0]);
                    }
                    steps.reverse();
                    return Some(steps);
                }
                open.push_back(next);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str, on: &[&str], emits: &[&str]) -> Module {
        let strings = |all: &[&str]| all.iter().map(|&one| one.to_owned()).collect();
        Module { on: strings(on), emits: strings(emits), ..Module::new(name, vec![], "/".into()) }
    }

    #[test]
    fn each_cycle_is_found_once_and_a_line_is_none() {
        let line = [
            module("a", &["1"], &["2"]),
            module("b", &["2", "1"], &["3"]),
            module("c", &["3"], &[]),
        ];
        assert_eq!(find_cycles(&line), [""; 0]);
        let own = [module("again", &["x"], &["y", "x"])];
        assert_eq!(find_cycles(&own), ["again -> x -> again"]);
        let three = [
            module("ping", &["a"], &["b", "out"]),
            module("pong", &["b"], &["a"]),
            module("aside", &["out"], &["end"]),
        ];
        assert_eq!(find_cycles(&three), ["ping -> b -> pong -> a -> ping"]);
    }
}
