//! What a source's document becomes when something happens: pure functions of the document, its
//! scheduled times and the present.

use ion_model::clock::Millis;
use ion_model::source::{
    Backfill, LeftState, RunEnd, SourceDefinition, SourceRecord, SourceRun, StateFiles,
};

use crate::schedule::ScheduledTimes;

/// How long after a run was decided somebody looks whether its event is there: whoever decided it
/// may have died in between.
const LOOK_FOR_EVENT: Millis = 5_000;

/// How often somebody looks at a run that goes on: the dispatcher that ended its job may have died
/// before it noted the end here.
const LOOK_AT_RUN: Millis = 30_000;

/// The longest interval of a source whose runs fail.
const FAILING_INTERVAL_MAX: Millis = 24 * 3_600_000;

/// The latest time, from now, that a run may ask the next one to wait for.
const WAIT_MAX: Millis = 7 * 24 * 3_600_000;

/// No look is due.
const NEVER: Millis = Millis::MAX;

/// How a run ended, with what follows from it.
#[derive(Clone, Debug)]
pub enum EndedRun {
    /// It succeeded, and left this.
    Succeeded(LeftState),
    /// It failed, for this reason.
    Failed(String),
    /// It was cancelled.
    Cancelled,
}

impl EndedRun {
    fn end(&self) -> RunEnd {
        match self {
            Self::Succeeded(_) => RunEnd::Succeeded,
            Self::Failed(_) => RunEnd::Failed,
            Self::Cancelled => RunEnd::Cancelled,
        }
    }
}

/// Returns the document of a new source.
pub(super) fn new_source(
    name: &str,
    definition: SourceDefinition,
    times: &ScheduledTimes,
    now: Millis,
) -> SourceRecord {
    let mut source = SourceRecord {
        id: name.to_owned(),
        version: 1,
        definition,
        added: now,
        due: NEVER,
        last: now,
        next: now,
        not_before: 0,
        paused: false,
        gone: None,
        asked: false,
        backfill: None,
        runs: 0,
        run: None,
        succeeded: None,
        failures: 0,
        reason: None,
        state: StateFiles::default(),
        dispatcher: None,
        missed: 0,
        older: None,
    };
    schedule_next(&mut source, times, now);
    source
}

/// Returns the document after its definition has changed. A run that goes on keeps what it began
/// with.
pub(super) fn redefine(
    source: &SourceRecord,
    definition: SourceDefinition,
    times: &ScheduledTimes,
    now: Millis,
) -> SourceRecord {
    let has_new_times = source.definition.schedule != definition.schedule;
    let mut source = SourceRecord { definition, ..source.clone() };
    if has_new_times {
        // Times of the new schedule that have passed were never promised.
        source.last = now;
        schedule_next(&mut source, times, now);
    }
    // The new values may help a source that failed or was gone.
    source.gone = None;
    source.not_before = 0;
    set_due(&mut source, times, now);
    source
}

/// Returns the document with the run that is to begin now, or without one: then no run is due, and
/// the document says when to look again. The latest run must have ended.
pub(super) fn begin_run(
    source: &SourceRecord,
    times: &ScheduledTimes,
    now: Millis,
) -> SourceRecord {
    let mut source = source.clone();
    let scheduled = take_due_time(&mut source, times, now);
    if let Some(scheduled) = scheduled {
        source.runs += 1;
        source.run = Some(SourceRun::new(&source, source.runs, scheduled, now));
        source.due = now + LOOK_FOR_EVENT;
    } else {
        set_due(&mut source, times, now);
    }
    source
}

/// Takes the time of the run that is to begin now: one that a person asked for, one of the past,
/// or a scheduled one.
fn take_due_time(source: &mut SourceRecord, times: &ScheduledTimes, now: Millis) -> Option<Millis> {
    if std::mem::take(&mut source.asked) {
        return Some(now);
    }
    if let Some(Backfill { after, until }) = source.backfill.take()
        && let Some(time) = times.next_after(after).filter(|time| *time <= until.min(now))
    {
        source.backfill = Some(Backfill { after: time, until });
        return Some(time);
    }
    if source.paused || source.gone.is_some() || now < source.not_before {
        return None;
    }
    let due = times.due(source.last, now);
    (source.last, source.next) = (due.last, due.next);
    source.missed += due.missed;
    due.run
}

/// Returns the document after somebody looked at a run that goes on.
pub(super) fn look_later(source: &SourceRecord, now: Millis) -> SourceRecord {
    SourceRecord { due: now + LOOK_AT_RUN, ..source.clone() }
}

/// Returns the document in which the latest run, whose job was retried, goes on again.
pub(super) fn reopen_run(source: &SourceRecord, now: Millis) -> SourceRecord {
    let mut source = look_later(source, now);
    if let Some(run) = &mut source.run {
        run.end = None;
    }
    source
}

/// Returns the document after its latest run has ended. None if that end is noted already.
pub(super) fn end_run(
    source: &SourceRecord,
    ended: &EndedRun,
    times: &ScheduledTimes,
    now: Millis,
) -> Option<SourceRecord> {
    let mut source = source.clone();
    let run = source.run.as_mut().filter(|run| run.end != Some(ended.end()))?;
    run.end = Some(ended.end());
    let run = run.clone();
    match ended {
        EndedRun::Succeeded(left) => {
            source.state.clone_from(&left.state);
            source.gone.clone_from(&left.gone);
            source.not_before = left.not_before.unwrap_or(0).min(now.saturating_add(WAIT_MAX));
            source.failures = 0;
            source.reason = None;
            source.succeeded = Some(run);
        }
        EndedRun::Failed(reason) => {
            source.failures = source.failures.saturating_add(1);
            source.reason = Some(reason.clone());
            // Until it succeeds, its interval doubles with each failure.
            let gap = times.gap_after(run.scheduled);
            let doubled = gap.saturating_mul(1 << source.failures.min(30));
            let interval = doubled.min(FAILING_INTERVAL_MAX).max(gap);
            source.not_before = run.scheduled.saturating_add(interval);
        }
        EndedRun::Cancelled => {}
    }
    skip_until_not_before(&mut source, times);
    set_due(&mut source, times, now);
    Some(source)
}

/// Leaves out the scheduled times before the source may run again: they are not missed.
fn skip_until_not_before(source: &mut SourceRecord, times: &ScheduledTimes) {
    if source.not_before > source.next {
        source.last = source.not_before - 1;
        source.next = times.next_after(source.last).unwrap_or(NEVER);
    }
}

/// Returns the document after a person has asked for a run now.
pub(super) fn ask_for_run(
    source: &SourceRecord,
    times: &ScheduledTimes,
    now: Millis,
) -> SourceRecord {
    let mut source = SourceRecord { asked: true, ..source.clone() };
    set_due(&mut source, times, now);
    source
}

/// Returns the document after a person has asked for the runs of past times.
pub(super) fn ask_for_backfill(
    source: &SourceRecord,
    backfill: Backfill,
    times: &ScheduledTimes,
    now: Millis,
) -> SourceRecord {
    let mut source = SourceRecord { backfill: Some(backfill), ..source.clone() };
    set_due(&mut source, times, now);
    source
}

/// Returns the document after a person has paused the source. A run that goes on is not stopped.
pub(super) fn pause(source: &SourceRecord, times: &ScheduledTimes, now: Millis) -> SourceRecord {
    let mut source = SourceRecord { paused: true, ..source.clone() };
    set_due(&mut source, times, now);
    source
}

/// Returns the document after a person has resumed the source, also one that was gone. Times that
/// passed meanwhile are not missed.
pub(super) fn resume(source: &SourceRecord, times: &ScheduledTimes, now: Millis) -> SourceRecord {
    let mut source = SourceRecord { paused: false, gone: None, not_before: 0, ..source.clone() };
    source.last = source.last.max(now);
    schedule_next(&mut source, times, now);
    source
}

/// Returns the document whose next run begins with this state.
pub(super) fn put_state(
    source: &SourceRecord,
    state: StateFiles,
    times: &ScheduledTimes,
    now: Millis,
) -> SourceRecord {
    let mut source = SourceRecord { state, gone: None, not_before: 0, ..source.clone() };
    set_due(&mut source, times, now);
    source
}

fn schedule_next(source: &mut SourceRecord, times: &ScheduledTimes, now: Millis) {
    source.next = times.next_after(source.last).unwrap_or(NEVER);
    set_due(source, times, now);
}

/// Sets when a dispatcher has to look at the source next.
fn set_due(source: &mut SourceRecord, times: &ScheduledTimes, now: Millis) {
    source.due = if source.current_run().is_some() {
        // What is due waits for the end of the run.
        source.due.min(now + LOOK_AT_RUN)
    } else if source.asked || source.backfill.is_some() {
        now
    } else if source.paused || source.gone.is_some() || source.next == NEVER {
        NEVER
    } else {
        times.begins(source.next).max(source.not_before)
    };
}

#[cfg(test)]
mod tests;
