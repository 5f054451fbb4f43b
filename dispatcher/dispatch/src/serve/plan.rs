//! Decides what the task of one module does next.
//!
//! # How it works
//! [`ServePlan::decide`] takes one happening, the time, and whether a slot is free; it returns what
//! is to be done. It does no I/O and has no clock of its own; [`super`] waits for happenings and
//! performs the actions.

use std::time::{Duration, Instant};

use ion_stores::{Delivery, StoreError};

use crate::claims::ClaimedMessages;
use crate::slots::SlotState;

/// How often a module's task looks for jobs that wait in the ledger, unless it is notified of one.
pub(super) const LOOK: Duration = Duration::from_millis(500);

/// How long all slots may be taken before the messages that the bus has sent ahead are queued in
/// the ledger.
pub(super) const FULL: Duration = Duration::from_secs(1);

/// What the task of one module remembers from one happening to the next.
#[derive(Debug)]
pub(super) struct ServePlan {
    next_look: Instant,
    /// Whether the last look left jobs in the ledger, because no slot was free.
    behind: bool,
    /// Since when no slot has been free.
    full_since: Option<Instant>,
    queue_failed: bool,
}

/// What happens to the task of one module.
#[derive(Debug)]
pub(super) enum ServeHappening {
    /// The module is not served any more.
    Stopping,
    /// A claim has ended.
    Claimed(ClaimedMessages),
    /// Messages have arrived.
    Delivered(Vec<Delivery>),
    /// The queue cannot be read.
    QueueFailed(StoreError),
    /// A job of the module waits in the ledger.
    JobWaits,
    /// A look into the ledger has ended.
    Looked(DueLook),
    /// A slot may have become free, a job of the module has ended, or the time of the next look has
    /// come.
    Woken,
}

/// What a look into the ledger found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DueLook {
    /// There is no more job that could run now.
    Nothing,
    /// All slots are taken, and more jobs may wait.
    Behind,
    /// The module is not served any more.
    Stopping,
}

/// What the task of one module does next.
#[derive(Debug)]
pub(super) enum ServeAction {
    /// Claim the jobs of messages.
    Claim(Vec<Delivery>),
    /// Acknowledge messages whose jobs were claimed, and run the jobs.
    Finish(ClaimedMessages),
    /// Log that the queue cannot be read.
    WarnOfQueue(StoreError),
    /// Wait before the queue is read again.
    Rest,
    /// Start jobs that wait in the ledger while slots are free.
    Look,
    /// Queue the messages that the bus has sent ahead in the ledger, where any dispatcher with a
    /// free slot finds their jobs.
    Pause,
    /// End the task.
    End,
}

impl ServePlan {
    /// Begins at `now`; the first look into the ledger follows at once.
    pub(super) fn new(now: Instant) -> Self {
        Self { next_look: now, behind: false, full_since: None, queue_failed: false }
    }

    /// Returns the time of the next look into the ledger.
    pub(super) fn next_look(&self) -> Instant {
        self.next_look
    }

    /// Returns whether a free slot is needed for a job that waits in the ledger.
    pub(super) fn is_behind(&self) -> bool {
        self.behind
    }

    /// Returns what is to be done now, in this order.
    pub(super) fn decide(
        &mut self,
        happening: ServeHappening,
        now: Instant,
        slot: SlotState,
    ) -> Vec<ServeAction> {
        let mut actions = Vec::new();
        match happening {
            ServeHappening::Stopping | ServeHappening::Looked(DueLook::Stopping) => {
                return vec![ServeAction::End];
            }
            ServeHappening::Claimed(claimed) => actions.push(ServeAction::Finish(claimed)),
            ServeHappening::Delivered(deliveries) => {
                self.queue_failed = false;
                actions.push(ServeAction::Claim(deliveries));
            }
            ServeHappening::QueueFailed(error) => {
                // The warning is logged once for each time that the queue is unavailable.
                if !std::mem::replace(&mut self.queue_failed, true) {
                    actions.push(ServeAction::WarnOfQueue(error));
                }
                actions.push(ServeAction::Rest);
            }
            ServeHappening::JobWaits => self.next_look = now,
            ServeHappening::Looked(found) => self.behind = found == DueLook::Behind,
            ServeHappening::Woken => {}
        }
        actions.extend(self.look_or_pause(now, slot));
        actions
    }

    /// The ledger is not read for each message, but when a job may wait there that could run.
    fn look_or_pause(&mut self, now: Instant, slot: SlotState) -> Option<ServeAction> {
        if self.next_look <= now || (self.behind && slot == SlotState::Free) {
            self.next_look = now + LOOK;
            return Some(ServeAction::Look);
        }
        self.full_since = match slot {
            SlotState::Free => None,
            SlotState::Taken => self.full_since.or(Some(now)),
        };
        let is_full = self.full_since.is_some_and(|since| now - since >= FULL);
        is_full.then_some(ServeAction::Pause)
    }
}

#[cfg(test)]
mod tests {
    use ion_stores::Unreadable;

    use super::*;
    use crate::claims::ClaimEnd;

    fn deliveries() -> Vec<Delivery> {
        let unreadable = Unreadable { body: vec![], reason: "empty".into() };
        vec![Delivery { tag: 7, message: Err(unreadable) }]
    }

    fn queue_failure() -> StoreError {
        StoreError::Unavailable {
            store: "bus".into(),
            what: "it is closed".into(),
            source: "away".into(),
        }
    }

    /// A plan after its first look, which found this.
    fn plan_after_look(found: DueLook, begun: Instant, slot: SlotState) -> ServePlan {
        let mut plan = ServePlan::new(begun);
        let first = plan.decide(ServeHappening::Woken, begun, slot);
        assert!(matches!(first[..], [ServeAction::Look]), "{first:?}");
        let after = plan.decide(ServeHappening::Looked(found), begun, slot);
        assert!(after.is_empty(), "{after:?}");
        plan
    }

    #[test]
    fn the_ledger_is_looked_into_at_its_times_and_when_a_job_waits() {
        let begun = Instant::now();
        let mut plan = plan_after_look(DueLook::Nothing, begun, SlotState::Free);
        let early = plan.decide(ServeHappening::Woken, begun + LOOK / 2, SlotState::Free);
        assert!(early.is_empty(), "{early:?}");
        let rung = plan.decide(ServeHappening::JobWaits, begun + LOOK / 2, SlotState::Free);
        assert!(matches!(rung[..], [ServeAction::Look]), "{rung:?}");
        assert_eq!(plan.next_look(), begun + LOOK / 2 + LOOK);
        let late = plan.decide(ServeHappening::Woken, begun + LOOK * 2, SlotState::Taken);
        assert!(matches!(late[..], [ServeAction::Look]), "{late:?}");
    }

    #[test]
    fn a_free_slot_is_used_at_once_for_jobs_that_a_look_left_behind() {
        let begun = Instant::now();
        let mut plan = plan_after_look(DueLook::Behind, begun, SlotState::Taken);
        assert!(plan.is_behind());
        let still = plan.decide(ServeHappening::Woken, begun, SlotState::Taken);
        assert!(still.is_empty(), "{still:?}");
        let freed = plan.decide(ServeHappening::Woken, begun, SlotState::Free);
        assert!(matches!(freed[..], [ServeAction::Look]), "{freed:?}");
        plan.decide(ServeHappening::Looked(DueLook::Nothing), begun, SlotState::Free);
        assert!(!plan.is_behind());
        let freed = plan.decide(ServeHappening::Woken, begun, SlotState::Free);
        assert!(freed.is_empty(), "{freed:?}");
    }

    #[test]
    fn messages_are_not_kept_while_all_slots_are_taken_for_long() {
        let begun = Instant::now();
        let mut plan = plan_after_look(DueLook::Nothing, begun, SlotState::Taken);
        plan.next_look = begun + FULL * 10;
        let early = plan.decide(ServeHappening::Woken, begun + FULL / 2, SlotState::Taken);
        assert!(early.is_empty(), "{early:?}");
        let full = plan.decide(ServeHappening::Woken, begun + FULL, SlotState::Taken);
        assert!(matches!(full[..], [ServeAction::Pause]), "{full:?}");
        // A slot that was free for a moment begins the time anew.
        plan.decide(ServeHappening::Woken, begun + FULL, SlotState::Free);
        let again = plan.decide(ServeHappening::Woken, begun + FULL, SlotState::Taken);
        assert!(again.is_empty(), "{again:?}");
    }

    #[test]
    fn a_message_is_claimed_and_then_finished() {
        let begun = Instant::now();
        let mut plan = plan_after_look(DueLook::Nothing, begun, SlotState::Free);
        let claim = plan.decide(ServeHappening::Delivered(deliveries()), begun, SlotState::Free);
        assert!(matches!(&claim[..], [ServeAction::Claim(claimed)] if claimed[0].tag == 7));
        let claimed = ClaimedMessages { tags: vec![7], end: ClaimEnd::NothingToRun };
        let finish = plan.decide(ServeHappening::Claimed(claimed), begun, SlotState::Free);
        assert!(matches!(&finish[..], [ServeAction::Finish(claimed)] if claimed.tags == [7]));
    }

    #[test]
    fn a_queue_that_fails_is_warned_of_once_until_it_delivers_again() {
        let begun = Instant::now();
        let mut plan = plan_after_look(DueLook::Nothing, begun, SlotState::Free);
        let fail = |plan: &mut ServePlan| {
            plan.decide(ServeHappening::QueueFailed(queue_failure()), begun, SlotState::Free)
        };
        let first = fail(&mut plan);
        let warns = |actions: &[ServeAction]| {
            matches!(actions, [ServeAction::WarnOfQueue(_), ServeAction::Rest])
        };
        assert!(warns(&first), "{first:?}");
        let second = fail(&mut plan);
        assert!(matches!(second[..], [ServeAction::Rest]), "{second:?}");
        plan.decide(ServeHappening::Delivered(deliveries()), begun, SlotState::Free);
        let third = fail(&mut plan);
        assert!(warns(&third), "{third:?}");
    }

    #[test]
    fn a_task_ends_at_once_when_its_module_is_not_served_any_more() {
        let begun = Instant::now();
        for last in [ServeHappening::Stopping, ServeHappening::Looked(DueLook::Stopping)] {
            let mut plan = ServePlan::new(begun);
            let actions = plan.decide(last, begun + LOOK, SlotState::Free);
            assert!(matches!(actions[..], [ServeAction::End]), "{actions:?}");
        }
    }
}
