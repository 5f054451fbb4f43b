use std::collections::BTreeMap;

use ion_model::source::{MissedRuns, ScheduleRule, SourceSchedule, SourceState};

use super::*;

const MINUTE: Millis = 60_000;
const NOW: Millis = 1_795_806_000_000;

fn new(every: Millis) -> (SourceRecord, ScheduledTimes) {
    let rule = ScheduleRule::Every(every);
    let schedule = SourceSchedule { rule, jitter: 0, missed: MissedRuns::Last };
    let times = ScheduledTimes::new("s", &schedule).unwrap();
    let definition = SourceDefinition {
        module: "feed".into(),
        schedule,
        with: BTreeMap::new(),
        secrets: BTreeMap::new(),
        pipeline: None,
    };
    (new_source("s", definition, &times, NOW), times)
}

/// Begins the next scheduled run, and returns the source and the time.
fn begun(source: &SourceRecord, times: &ScheduledTimes) -> (SourceRecord, Millis) {
    let now = source.due;
    let source = begin_run(source, times, now);
    assert_eq!(source.state(), SourceState::Running);
    (source, now)
}

fn failed() -> EndedRun {
    EndedRun::Failed("exit status 1".into())
}

#[test]
fn a_run_begins_at_its_time_and_the_next_one_after_its_end() {
    let (source, times) = new(MINUTE);
    assert_eq!(begin_run(&source, &times, source.due - 1).run, None);
    let (running, now) = begun(&source, &times);
    let run = running.run.clone().unwrap();
    assert_eq!((run.number, run.scheduled, run.began), (1, now, now));
    assert_eq!(running.due, now + LOOK_FOR_EVENT);
    // Times that come due while it goes on are one run.
    let late = now + 5 * MINUTE + 1;
    let left = LeftState { not_before: None, ..LeftState::default() };
    let ended = end_run(&running, &EndedRun::Succeeded(left), &times, late).unwrap();
    assert_eq!((ended.state(), ended.due), (SourceState::Idle, now + MINUTE));
    assert!(end_run(&ended, &EndedRun::Succeeded(LeftState::default()), &times, late).is_none());
    let second = begin_run(&ended, &times, late);
    let run = second.run.clone().unwrap();
    assert_eq!((run.number, run.scheduled, second.missed), (2, now + 5 * MINUTE, 4));
    assert_eq!(second.next, now + 6 * MINUTE);
    assert_ne!(running.run.unwrap().event, run.event);
}

#[test]
fn a_source_that_fails_runs_less_and_less_often_and_is_never_stopped() {
    let (mut source, times) = new(MINUTE);
    let mut waits = Vec::new();
    for failures in 1..=14 {
        let (running, now) = begun(&source, &times);
        source = end_run(&running, &failed(), &times, now + 10).unwrap();
        assert_eq!((source.state(), source.failures), (SourceState::Failing, failures));
        waits.push((source.due - now) / MINUTE);
    }
    assert_eq!(waits[..6], [2, 4, 8, 16, 32, 64]);
    assert_eq!(waits[13], 24 * 60);
    assert_eq!(source.missed, 0, "times that are left out on purpose are not missed");
    let (running, now) = begun(&source, &times);
    let well = EndedRun::Succeeded(LeftState::default());
    let source = end_run(&running, &well, &times, now + 10).unwrap();
    assert_eq!((source.failures, source.due, source.reason), (0, now + MINUTE, None));
}

#[test]
fn what_a_run_leaves_is_kept_only_if_it_succeeds() {
    let (source, times) = new(MINUTE);
    let (running, now) = begun(&source, &times);
    let directories = vec!["seen".to_owned()];
    let state = StateFiles { directories, ..StateFiles::default() };
    let wait = now + 30 * MINUTE;
    let left = LeftState { state: state.clone(), not_before: Some(wait), gone: None };
    let source = end_run(&running, &EndedRun::Succeeded(left), &times, now).unwrap();
    assert_eq!((&source.state, source.due), (&state, wait));
    let (running, now) = begun(&source, &times);
    let source = end_run(&running, &failed(), &times, now).unwrap();
    assert_eq!(source.state, state);
    let (running, now) = begun(&source, &times);
    let gone = LeftState { gone: Some("410".into()), ..LeftState::default() };
    let source = end_run(&running, &EndedRun::Succeeded(gone), &times, now).unwrap();
    assert_eq!((source.state(), source.due), (SourceState::Gone, NEVER));
    let source = resume(&source, &times, now + 100);
    assert_eq!((source.state(), source.due), (SourceState::Idle, now + MINUTE));
    // Nobody waits for years because of a feed's mistake.
    let (running, now) = begun(&source, &times);
    let far = LeftState { not_before: Some(Millis::MAX), ..LeftState::default() };
    let source = end_run(&running, &EndedRun::Succeeded(far), &times, now).unwrap();
    assert!(source.due <= now + WAIT_MAX + MINUTE);
}

#[test]
fn a_paused_source_runs_only_when_it_is_asked_to() {
    let (source, times) = new(MINUTE);
    let paused = pause(&source, &times, NOW);
    assert_eq!((paused.due, begin_run(&paused, &times, NOW + 10 * MINUTE).run), (NEVER, None));
    let asked = ask_for_run(&paused, &times, NOW + 7);
    assert_eq!(asked.due, NOW + 7);
    let running = begin_run(&asked, &times, NOW + 8);
    assert_eq!(running.run.as_ref().map(|run| run.scheduled), Some(NOW + 8));
    assert!(!running.asked && running.paused);
    let ended = end_run(&running, &EndedRun::Cancelled, &times, NOW + 9).unwrap();
    assert_eq!((ended.due, ended.failures), (NEVER, 0));
    // While a run goes on, asking waits for its end.
    let again = ask_for_run(&running, &times, NOW + 9);
    assert!(again.asked && again.due > NOW + 9);
    let ended = end_run(&again, &EndedRun::Cancelled, &times, NOW + 10).unwrap();
    assert_eq!(ended.due, NOW + 10);
}

#[test]
fn a_backfill_runs_each_past_time_once() {
    let (source, times) = new(MINUTE);
    let first = times.next_after(NOW - 10 * MINUTE).unwrap();
    let range = Backfill { after: first - 1, until: first + 2 * MINUTE };
    let mut source = ask_for_backfill(&source, range, &times, NOW);
    for n in 0..3 {
        assert_eq!(source.due, NOW);
        let running = begin_run(&source, &times, NOW);
        assert_eq!(running.run.as_ref().map(|run| run.scheduled), Some(first + n * MINUTE));
        source = end_run(&running, &EndedRun::Cancelled, &times, NOW).unwrap();
    }
    let after = begin_run(&source, &times, NOW);
    assert_eq!((after.current_run(), &after.backfill), (None, &None));
    assert_eq!(after.due, source.next);
}

#[test]
fn a_new_schedule_counts_from_now_and_new_values_help_a_source_that_is_gone() {
    let (source, times) = new(MINUTE);
    let gone = SourceRecord { gone: Some("410".into()), due: NEVER, ..source.clone() };
    let mut definition = source.definition.clone();
    definition.with.insert("url".into(), "https://b.example".into());
    let changed = redefine(&gone, definition.clone(), &times, NOW + 5 * MINUTE);
    assert_eq!((changed.state(), changed.due), (SourceState::Idle, source.next));
    definition.schedule.rule = ScheduleRule::Every(10 * MINUTE);
    let times = ScheduledTimes::new("s", &definition.schedule).unwrap();
    let changed = redefine(&gone, definition, &times, NOW + 60 * MINUTE);
    assert_eq!(changed.due, times.next_after(NOW + 60 * MINUTE).unwrap());
}
