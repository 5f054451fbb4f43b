//! Explores what may happen around one lease. Its holder renews it, dies, or gives it up by its own
//! clock. The store answers late or not at all, or performs a write that it did not answer. A
//! dispatcher watches the lease, and may be restarted. If several dispatchers watch, each does so
//! independently, so one stands for all. The wall clocks may step at any time: at each look they
//! may say that the lease is over, or that it is not. [`is_expired`] decides who may take the job.
//!
//! Time advances in twelfths of the lease. The model shows that no dispatcher takes the job of a
//! holder that works on it, and that the job of a holder that has stopped working is taken within a
//! lease and a sixth. Each [`LedgerFault`] must be refuted.

use std::collections::HashSet;

use ion_model::clock::Millis;

use super::is_expired;

/// A dispatcher's default lease, and a twelfth of it.
const LEASE: Millis = 60_000;
const TICK: Millis = LEASE / 12;

/// In ticks since the last renewal: when the holder renews the lease, after how long it gives the
/// lease up if a renewal fails, and until when, at most, it waits for an answer.
const RENEWED_AT: u8 = 4;
const GIVEN_UP_AFTER: u8 = 8;
const ANSWERED_BY: u8 = 9;

/// In ticks: how long a store may take to answer that it failed, and the time between two looks of
/// the dispatcher that watches.
const ANSWER: u8 = 3;
const LOOK: u8 = 2;

/// Ages beyond this, in ticks, are not distinguished.
const OLD: u8 = 15;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Holder {
    /// It works. The number is how long ago it renewed the lease, in ticks of its own monotonic
    /// clock.
    Works(u8),
    Dead,
    GaveUp,
}

/// A renewal that was sent and is not answered yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Renewal {
    /// How long ago it was sent, in ticks.
    age: u8,
    written: bool,
}

/// The dispatcher that watches the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct LeaseWatcher {
    /// How long it has seen the lease as it is now, in ticks; none: it has not seen the lease in
    /// this state.
    stood: Option<u8>,
    /// How long ago it looked last, in ticks.
    looked: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct LedgerState {
    holder: Holder,
    renewal: Option<Renewal>,
    /// Whether there is a renewal that the holder no longer waits for and that the store may still
    /// write.
    late: bool,
    /// How long the record has been unchanged, in ticks.
    stands: u8,
    watcher: LeaseWatcher,
    taken: bool,
    /// How often the watching dispatcher may still be restarted.
    starts: u8,
}

/// A rule with one seeded fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LedgerFault {
    None,
    /// The job is taken as soon as the wall clock says that the lease is over.
    WallClockAlone,
    /// The job is taken only if the wall clock also says that the lease is over.
    WallClockToo,
    /// The watcher does not begin to watch again after a renewal.
    RenewalUnseen,
    /// The holder counts from the answer, and not from when it sent the renewal.
    CountsFromAnswer,
    /// The holder waits for the store's answer, however long that takes.
    WaitsForAnswer,
    /// The holder never gives the lease up.
    NeverGivesUp,
}

impl LedgerState {
    fn initial() -> Self {
        let watcher = LeaseWatcher { stood: None, looked: 0 };
        Self {
            holder: Holder::Works(0),
            renewal: None,
            late: false,
            stands: 0,
            watcher,
            taken: false,
            starts: 1,
        }
    }

    /// A renewal is written: the watcher sees a changed lease from now on.
    fn write_renewal(&mut self, fault: LedgerFault) {
        self.stands = 0;
        if fault != LedgerFault::RenewalUnseen {
            self.watcher.stood = None;
        }
    }

    fn next_states(&self, fault: LedgerFault) -> Vec<Self> {
        let mut all = Vec::new();
        let mut step = |change: &dyn Fn(&mut Self) -> Option<()>| {
            let mut after = *self;
            if change(&mut after).is_some() && after != *self {
                all.push(after);
            }
        };
        if self.taken {
            return all;
        }
        step(&|state| state.tick(fault));
        step(&|state| {
            let Holder::Works(renewed) = state.holder else { return None };
            let sends = renewed >= RENEWED_AT && state.renewal.is_none();
            let renewal = Renewal { age: 0, written: false };
            sends.then(|| state.renewal = Some(renewal))
        });
        step(&|state| {
            let renewal = state.renewal.filter(|renewal| !renewal.written)?;
            state.renewal = Some(Renewal { written: true, ..renewal });
            state.write_renewal(fault);
            Some(())
        });
        step(&|state| {
            let renewal = state.renewal.take_if(|renewal| renewal.written)?;
            let Holder::Works(renewed) = &mut state.holder else { return None };
            *renewed = if fault == LedgerFault::CountsFromAnswer { 0 } else { renewal.age };
            Some(())
        });
        // The store answers that it failed; it may still write the renewal later.
        step(&|state| state.fail_renewal(fault));
        step(&|state| {
            std::mem::take(&mut state.late).then_some(())?;
            state.write_renewal(fault);
            Some(())
        });
        step(&|state| {
            state.holder = Holder::Dead;
            state.late |= state.renewal.take().is_some_and(|renewal| !renewal.written);
            Some(())
        });
        for over in [false, true] {
            step(&|state| state.check_lease(over, fault));
        }
        step(&|state| {
            state.starts = state.starts.checked_sub(1)?;
            state.watcher.stood = None;
            Some(())
        });
        all
    }

    /// Advances the time by one tick; none if the holder, the store or the watcher has to act
    /// first.
    fn tick(&mut self, fault: LedgerFault) -> Option<()> {
        if let Holder::Works(renewed) = &mut self.holder {
            let waits = self.renewal.is_some();
            let must_send = !waits && *renewed >= RENEWED_AT;
            let must_answer = self.renewal.is_some_and(|renewal| renewal.age >= ANSWER);
            let patient = matches!(fault, LedgerFault::WaitsForAnswer | LedgerFault::NeverGivesUp);
            let must_give_up = waits && *renewed >= ANSWERED_BY && !patient;
            if must_send || must_answer || must_give_up {
                return None;
            }
            *renewed = OLD.min(*renewed + 1);
        }
        if let Some(renewal) = &mut self.renewal {
            renewal.age += 1;
        }
        self.stands = OLD.min(self.stands + 1);
        let watcher = &mut self.watcher;
        watcher.looked += 1;
        watcher.stood = watcher.stood.map(|stood| OLD.min(stood + 1));
        (watcher.looked <= LOOK).then_some(())
    }

    /// The holder receives no answer, or the answer that the store failed. It gives the lease up if
    /// it is time.
    fn fail_renewal(&mut self, fault: LedgerFault) -> Option<()> {
        let Holder::Works(renewed) = self.holder else { return None };
        let renewal = self.renewal.take()?;
        if renewed > GIVEN_UP_AFTER && fault != LedgerFault::NeverGivesUp {
            self.holder = Holder::GaveUp;
        }
        self.late |= !renewal.written;
        Some(())
    }

    /// The dispatcher looks at the lease, and takes the job if the rule allows it.
    fn check_lease(&mut self, over: bool, fault: LedgerFault) -> Option<()> {
        let stood = *self.watcher.stood.get_or_insert(0);
        self.watcher.looked = 0;
        let expired = is_expired(LEASE, TICK * i64::from(stood), over);
        self.taken = match fault {
            LedgerFault::WallClockAlone => over,
            LedgerFault::WallClockToo => expired && over,
            _ => expired,
        };
        Some(())
    }

    fn complaint(&self) -> Option<&'static str> {
        let works = matches!(self.holder, Holder::Works(_));
        // The lease is first seen after the time between two looks, is watched for five sixths, and
        // the job is taken at the next look. A dispatcher that is restarted begins to watch then.
        let late = i64::from(self.stands) > LEASE / TICK + i64::from(LOOK) && self.starts > 0;
        match self.taken {
            true if works => Some("the job of a holder that works is taken"),
            false if late && !works => Some("nobody takes the job of a holder that works no more"),
            _ => None,
        }
    }
}

/// Explores all states. Returns the first complaint, the number of states, and whether the job was
/// taken in one of them.
fn explore(fault: LedgerFault) -> (Option<String>, usize, bool) {
    let mut seen = HashSet::from([LedgerState::initial()]);
    let mut todo = vec![LedgerState::initial()];
    let mut taken = false;
    while let Some(state) = todo.pop() {
        if let Some(complaint) = state.complaint() {
            return (Some(format!("{complaint}: {state:#?}")), seen.len(), taken);
        }
        taken |= state.taken;
        for next in state.next_states(fault) {
            if seen.insert(next) {
                todo.push(next);
            }
        }
    }
    (None, seen.len(), taken)
}

#[test]
fn a_lease_is_taken_from_nobody_who_works_and_from_everybody_who_does_not() {
    let (complaint, states, taken) = explore(LedgerFault::None);
    println!("{states} states");
    assert_eq!(complaint, None);
    assert!(states > 5_000 && taken, "{states} states");
}

#[test]
fn each_seeded_fault_is_refuted() {
    use LedgerFault::{
        CountsFromAnswer, NeverGivesUp, RenewalUnseen, WaitsForAnswer, WallClockAlone, WallClockToo,
    };
    for fault in [
        WallClockAlone,
        WallClockToo,
        RenewalUnseen,
        CountsFromAnswer,
        WaitsForAnswer,
        NeverGivesUp,
    ] {
        let (complaint, states, _) = explore(fault);
        let complaint =
            complaint.unwrap_or_else(|| panic!("{fault:?} does no harm in {states} states"));
        println!(
            "{fault:?} after {states} states: {}",
            complaint.split(':').next().unwrap_or_default()
        );
    }
}

#[test]
fn the_clock_says_nothing_of_a_lease_that_is_watched_to_its_end() {
    for lease in [1, 60_000, 720_000] {
        for stood in [0, 1, 49_999, 50_000, 599_999, 600_000] {
            assert_eq!(
                is_expired(lease, stood, true),
                is_expired(lease, stood, false),
                "{lease} {stood}"
            );
        }
    }
    let day = 86_400_000;
    assert_eq!([false, true].map(|over| is_expired(day, 599_999, over)), [false, false]);
    assert_eq!([false, true].map(|over| is_expired(day, 600_000, over)), [false, true]);
}
