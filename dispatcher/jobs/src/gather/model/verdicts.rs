//! What must hold when the gathering begins, and when everything is done.

use ion_model::record::JobState;

use super::rules::GatherPlane;
use super::{ALL, GatherState, SLOTS, event_made_by};

/// Returns what is wrong with a gathering that begins to run in this step; none if nothing is
/// wrong, or if it does not begin.
pub(super) fn begin_complaint(
    plane: &GatherPlane,
    before: &GatherState,
    after: &GatherState,
) -> Option<String> {
    // An adopted attempt began earlier.
    if before.is_running() || !after.is_running() || before.adopted {
        return None;
    }
    let unforeseen = |slot: usize| before.unforeseen & (1 << slot) != 0;
    // A job on an event that such a job made is excused, too.
    let excused =
        |slot: usize| unforeseen(slot) || (SLOTS[slot].1 > 2 && unforeseen(SLOTS[slot].1 - 1));
    for slot in (0..SLOTS.len()).filter(|slot| *slot != ALL && !excused(*slot)) {
        let job = after.jobs[slot];
        let tells = job.is_some_and(|job| job.state == JobState::Succeeded && job.outbox);
        let ended = job.is_some_and(|job| job.state.is_final()) && !tells;
        let dead = job.is_some_and(|job| job.state == JobState::Dead);
        let begins = tells
            || job.is_some_and(|job| job.state.is_active())
            || (job.is_some() && plane.is_registered(after.registry, slot));
        let expected = plane.is_for(after, after.registry, slot);
        if (expected && (dead || !ended)) || (begins && !ended) {
            return Some(format!("it begins, and {:?} has not ended", SLOTS[slot]));
        }
        let made = event_made_by(slot).map_or(0, |event| after.visible_events() & (1 << event));
        if made & !after.gathered.unwrap_or_default() != 0 {
            return Some(format!("it begins without what {:?} has made", SLOTS[slot]));
        }
    }
    None
}

/// Returns whether everything is done that will be done without an operator.
pub(super) fn is_done(plane: &GatherPlane, state: &GatherState) -> bool {
    if has_succeeded(state) {
        return true;
    }
    let mut dead = false;
    for slot in (0..SLOTS.len()).filter(|slot| *slot != ALL) {
        let expected = plane.is_for(state, state.registry, slot);
        let Some(job) = state.jobs[slot] else {
            if expected {
                return false;
            }
            continue;
        };
        let orphaned = job.state == JobState::Queued && !plane.is_registered(state.registry, slot);
        if job.outbox || !(job.state.is_final() || orphaned) {
            return false;
        }
        dead |= expected && job.state == JobState::Dead;
    }
    dead
}

/// Returns whether the gathering has succeeded: later steps do not matter to it.
pub(super) fn has_succeeded(state: &GatherState) -> bool {
    state.jobs[ALL].is_some_and(|all| all.state == JobState::Succeeded)
}
