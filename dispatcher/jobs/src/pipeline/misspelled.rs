//! Event types that start nothing: most are misspelled.

use std::collections::BTreeSet;

use super::Module;

/// The similarity (Jaro-Winkler) from which two types may be meant to be the same: one or two
/// letters of a short name differ.
const ALIKE: f64 = 0.85;

/// How many types are listed where none is similar.
const NAMED_MAX: usize = 10;

/// Returns why an event of this type starts nothing, with the type that may have been meant; none
/// if a module subscribes to it.
pub fn why_nothing_starts(event_type: &str, modules: &[Module]) -> Option<String> {
    let types: BTreeSet<String> = modules.iter().flat_map(Module::subscribed_types).collect();
    if types.contains(event_type) {
        return None;
    }
    let nearest = types.iter().map(|known| (strsim::jaro_winkler(known, event_type), known));
    let nearest =
        nearest.filter(|(likeness, _)| *likeness >= ALIKE).max_by(|a, b| a.0.total_cmp(&b.0));
    let way_out = match (nearest, types.len()) {
        (Some((_, known)), _) => format!("did you mean {known:?}?"),
        (None, 0) => "no module is registered; `ion up PIPELINE` registers those of a file".into(),
        (None, _) => {
            let mut named: Vec<String> = types.iter().take(NAMED_MAX).cloned().collect();
            if types.len() > NAMED_MAX {
                named.push("...".into());
            }
            format!("modules start on {}", named.join(", "))
        }
    };
    Some(format!("no module subscribes to {event_type:?}, so nothing will start: {way_out}"))
}

/// Returns a warning for each pair of types that are probably meant to be the same: a module emits
/// the first type and no module waits for it; another module waits for the second type and no
/// module emits it.
pub fn find_misspelled_types(modules: &[Module]) -> Vec<String> {
    let emitted: BTreeSet<&String> = modules.iter().flat_map(|module| &module.emits).collect();
    let wanted: BTreeSet<&String> = modules
        .iter()
        .flat_map(|module| module.on.iter().chain(&module.per).chain(&module.gather))
        .collect();
    let unwanted: Vec<&String> = emitted.difference(&wanted).copied().collect();
    let mut slips = Vec::new();
    for never in wanted.difference(&emitted) {
        let alike = |other: &&&String| strsim::jaro_winkler(other, never) >= ALIKE;
        let Some(other) = unwanted.iter().find(alike) else { continue };
        let who = |says: &dyn Fn(&Module) -> bool| {
            modules.iter().find(|module| says(module)).map_or("", |module| module.name.as_str())
        };
        let starts = who(&|module| {
            module.on.iter().chain(&module.per).chain(&module.gather).any(|one| one == *never)
        });
        let emits = who(&|module| module.emits.contains(other));
        slips.push(format!(
            "{starts:?} waits for {never:?}, which no module emits, and {emits:?} emits {other:?}, which no module waits \
             for: are they meant to be the same type?"
        ));
    }
    slips
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_types_that_were_meant_to_be_one_are_named() {
        let module = |name: &str, on: &str, emits: &[&str]| Module {
            on: vec![on.to_owned()],
            emits: emits.iter().map(|&one| one.to_owned()).collect(),
            ..Module::new(name, vec!["cat".into()], "/".into())
        };
        let sample = module("sample", "new_video", &["frames", "sound"]);
        let slip = find_misspelled_types(&[sample.clone(), module("detect", "frame", &[])]);
        assert_eq!(slip.len(), 1);
        assert!(
            slip[0].contains("\"detect\" waits for \"frame\"")
                && slip[0].contains("\"sample\" emits \"frames\"")
        );
        // A type that comes from outside, or that no module waits for, is not a misspelling.
        assert!(
            find_misspelled_types(&[sample.clone(), module("detect", "frames", &["faces"])])
                .is_empty()
        );
        assert!(
            find_misspelled_types(&[
                sample,
                module("detect", "frames", &[]),
                module("frame", "frame", &[])
            ])
            .is_empty()
        );
    }
}
