//! Decides what the holder of a running job, or of the jobs of a batch, does about the lease. All
//! leases of a batch were taken by one write, and are renewed by one.
//!
//! # How it works
//! [`LeasePlan::decide`] takes one happening and the time, and returns what is to be done. It does
//! no I/O and has no clock of its own; [`super::attempt`] performs its actions.
//!
//! # Guarantees
//! The holder gives a job up before others may take it: two thirds of the lease after the last
//! renewal when the store fails, three quarters when the store does not answer. The holder's own
//! monotonic clock decides, and a renewal counts from before its write, because others may see the
//! write before its answer arrives.

use std::time::{Duration, Instant};

use ion_run::executor::StopReason;

/// What the holder of a running job knows about its lease and its process.
#[derive(Debug)]
pub(super) struct LeasePlan {
    lease: Duration,
    /// The time before the write of the last renewal.
    renewed: Instant,
    process: ProcessNote,
}

/// Whether the record says that the process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProcessNote {
    /// The executor has not started the process yet.
    NotStarted,
    /// The attempt was adopted: the record says already that its process runs.
    Adopted,
    /// The process runs, and the record does not say so yet.
    Unwritten,
    /// There is nothing more to write.
    Complete,
}

/// What happens to a held job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeaseHappening {
    /// The executor has started the process.
    ProcessRuns,
    /// The executor ended without starting the process.
    ProcessNeverRan,
    /// The record says from now on that the process runs.
    RunningWritten,
    /// It is time to look at the record.
    Tick,
    /// The records were read.
    Read,
    /// The leases were renewed.
    Renewed {
        /// The time before the write.
        asked: Instant,
    },
    /// The store answered with a failure.
    StoreFailed,
    /// The store did not answer in time.
    StoreSilent,
}

/// What the holder does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeaseAction {
    /// Write that the process runs.
    WriteRunning,
    /// Read the record, and wait at most this long for the answer.
    Read(Duration),
    /// Renew the lease, and wait at most this long for the answer.
    Renew(Duration),
    /// End the attempt.
    Stop(StopReason),
}

impl LeasePlan {
    /// Begins with a lease that was taken at `now`, of an attempt that is started.
    pub(super) fn for_claimed_job(lease: Duration, now: Instant) -> Self {
        Self { lease, renewed: now, process: ProcessNote::NotStarted }
    }

    /// Begins with a lease that was taken at `now`, of an attempt that runs already.
    pub(super) fn for_adopted_job(lease: Duration, now: Instant) -> Self {
        Self { process: ProcessNote::Adopted, ..Self::for_claimed_job(lease, now) }
    }

    /// Returns whether the executor has not yet said that the process runs or never ran.
    pub(super) fn awaits_process(&self) -> bool {
        matches!(self.process, ProcessNote::NotStarted | ProcessNote::Adopted)
    }

    /// Returns what is to be done now.
    pub(super) fn decide(&mut self, happening: LeaseHappening, now: Instant) -> Vec<LeaseAction> {
        let lost = LeaseAction::Stop(StopReason::LostLease);
        match happening {
            LeaseHappening::ProcessRuns if self.process == ProcessNote::NotStarted => {
                self.process = ProcessNote::Unwritten;
                vec![LeaseAction::WriteRunning]
            }
            LeaseHappening::ProcessRuns
            | LeaseHappening::ProcessNeverRan
            | LeaseHappening::RunningWritten => {
                self.process = ProcessNote::Complete;
                vec![]
            }
            LeaseHappening::Tick => {
                let unwritten = self.process == ProcessNote::Unwritten;
                let write = unwritten.then_some(LeaseAction::WriteRunning);
                write.into_iter().chain([self.read_or_renew(now)]).collect()
            }
            LeaseHappening::Read => vec![],
            LeaseHappening::Renewed { asked } => {
                self.renewed = asked;
                vec![]
            }
            LeaseHappening::StoreFailed if now - self.renewed <= self.lease * 2 / 3 => vec![],
            LeaseHappening::StoreFailed | LeaseHappening::StoreSilent => vec![lost],
        }
    }

    /// Returns the next look at the record: a renewal after a third of the lease. The store may
    /// take until three quarters of the lease, which is before others may take the job. It has a
    /// short time in any case, since perhaps nobody has taken the job.
    fn read_or_renew(&self, now: Instant) -> LeaseAction {
        let held = now - self.renewed;
        let patience = (self.lease * 3 / 4).saturating_sub(held).max(self.lease / 12);
        match held >= self.lease / 3 {
            true => LeaseAction::Renew(patience),
            false => LeaseAction::Read(patience),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(60);
    const LOST: LeaseAction = LeaseAction::Stop(StopReason::LostLease);

    fn seconds_after(begun: Instant, seconds: u64) -> Instant {
        begun + Duration::from_secs(seconds)
    }

    #[test]
    fn that_a_process_runs_is_written_until_it_is_written() {
        let begun = Instant::now();
        let mut plan = LeasePlan::for_claimed_job(LEASE, begun);
        assert!(plan.awaits_process());
        let running = plan.decide(LeaseHappening::ProcessRuns, begun);
        assert_eq!(running, [LeaseAction::WriteRunning]);
        assert!(!plan.awaits_process());
        // The write failed, so the next look tries it again.
        let tick = plan.decide(LeaseHappening::Tick, seconds_after(begun, 1));
        assert_eq!(tick.first(), Some(&LeaseAction::WriteRunning));
        assert_eq!(plan.decide(LeaseHappening::RunningWritten, seconds_after(begun, 1)), []);
        let tick = plan.decide(LeaseHappening::Tick, seconds_after(begun, 2));
        assert_eq!(tick, [LeaseAction::Read(Duration::from_secs(43))]);
    }

    #[test]
    fn nothing_is_written_of_an_adopted_or_a_never_started_process() {
        let begun = Instant::now();
        let mut adopted = LeasePlan::for_adopted_job(LEASE, begun);
        assert_eq!(adopted.decide(LeaseHappening::ProcessRuns, begun), []);
        assert!(!adopted.awaits_process());
        let mut never = LeasePlan::for_claimed_job(LEASE, begun);
        assert_eq!(never.decide(LeaseHappening::ProcessNeverRan, begun), []);
        for plan in [&mut adopted, &mut never] {
            let tick = plan.decide(LeaseHappening::Tick, begun);
            assert_eq!(tick, [LeaseAction::Read(Duration::from_secs(45))]);
        }
    }

    #[test]
    fn a_lease_is_renewed_after_a_third_of_it_and_counts_from_before_the_write() {
        let begun = Instant::now();
        let mut plan = LeasePlan::for_adopted_job(LEASE, begun);
        let tick = plan.decide(LeaseHappening::Tick, seconds_after(begun, 20));
        assert_eq!(tick, [LeaseAction::Renew(Duration::from_secs(25))]);
        let renewed = LeaseHappening::Renewed { asked: seconds_after(begun, 20) };
        assert_eq!(plan.decide(renewed, seconds_after(begun, 30)), []);
        let tick = plan.decide(LeaseHappening::Tick, seconds_after(begun, 39));
        assert_eq!(tick, [LeaseAction::Read(Duration::from_secs(26))]);
        let tick = plan.decide(LeaseHappening::Tick, seconds_after(begun, 40));
        assert_eq!(tick, [LeaseAction::Renew(Duration::from_secs(25))]);
    }

    #[test]
    fn a_failing_store_ends_an_attempt_only_after_two_thirds_of_the_lease() {
        let begun = Instant::now();
        let mut plan = LeasePlan::for_adopted_job(LEASE, begun);
        assert_eq!(plan.decide(LeaseHappening::StoreFailed, seconds_after(begun, 40)), []);
        assert_eq!(plan.decide(LeaseHappening::StoreFailed, seconds_after(begun, 41)), [LOST]);
    }

    #[test]
    fn a_silent_store_has_a_short_time_even_when_the_lease_is_nearly_over() {
        let begun = Instant::now();
        let mut plan = LeasePlan::for_adopted_job(LEASE, begun);
        let tick = plan.decide(LeaseHappening::Tick, seconds_after(begun, 59));
        assert_eq!(tick, [LeaseAction::Renew(Duration::from_secs(5))]);
        assert_eq!(plan.decide(LeaseHappening::StoreSilent, seconds_after(begun, 64)), [LOST]);
    }
}
