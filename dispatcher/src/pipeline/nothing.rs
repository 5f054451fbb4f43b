//! Events that start nothing: most are slips of the pen.

use std::collections::BTreeSet;

use super::Module;

/// How alike a type has to be to be what was meant: one or two letters of a short name.
const ALIKE: f64 = 0.85;

/// Types that are named where none is alike.
const NAMED_MAX: usize = 10;

/// Why an event of this type starts nothing, with what may have been meant; none: it starts something.
pub fn starts_nothing(event_type: &str, modules: &[Module]) -> Option<String> {
    let types: BTreeSet<String> = modules.iter().flat_map(Module::subscribes).collect();
    if types.contains(event_type) {
        return None;
    }
    let nearest = types.iter().map(|known| (strsim::jaro_winkler(known, event_type), known));
    let nearest = nearest.filter(|(likeness, _)| *likeness >= ALIKE).max_by(|a, b| a.0.total_cmp(&b.0));
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
