use proptest::prelude::*;

use super::*;

fn at(text: &str) -> Millis {
    text.parse::<Timestamp>().unwrap().as_millisecond()
}

fn cron_times(cron: &str, zone: &str) -> ScheduledTimes {
    let rule = ScheduleRule::At { cron: cron.into(), zone: zone.into() };
    let schedule = SourceSchedule { rule, jitter: 0, missed: MissedRuns::Last };
    ScheduledTimes::new("s", &schedule).unwrap()
}

fn every(period: Millis, jitter: Millis, missed: MissedRuns) -> ScheduledTimes {
    let schedule = SourceSchedule { rule: ScheduleRule::Every(period), jitter, missed };
    ScheduledTimes::new("s", &schedule).unwrap()
}

/// Each row has a zone, an expression, a moment, and the scheduled times that follow it.
const CHANGES_OF_THE_CLOCK: [(&str, &str, &str, &[&str]); 17] = [
    // London: 01:00 becomes 02:00 on 29 March, and 02:00 becomes 01:00 on 25 October.
    (
        "Europe/London",
        "30 1 * * *",
        "2026-03-28T00:00:00Z",
        &["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"],
    ),
    (
        "Europe/London",
        "30 1 * * *",
        "2026-10-24T00:00:00Z",
        &["2026-10-24T00:30:00Z", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"],
    ),
    (
        "Europe/London",
        "0 * * * *",
        "2026-03-29T00:00:00Z",
        &["2026-03-29T01:00:00Z", "2026-03-29T02:00:00Z"],
    ),
    (
        "Europe/London",
        "0 * * * *",
        "2026-10-24T23:30:00Z",
        &["2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z"],
    ),
    (
        "Europe/London",
        "*/30 1 * * *",
        "2026-03-28T12:00:00Z",
        &["2026-03-30T00:00:00Z", "2026-03-30T00:30:00Z"],
    ),
    (
        "Europe/London",
        "*/30 1 * * *",
        "2026-10-24T12:00:00Z",
        &[
            "2026-10-25T00:00:00Z",
            "2026-10-25T00:30:00Z",
            "2026-10-25T01:00:00Z",
            "2026-10-25T01:30:00Z",
            "2026-10-26T01:00:00Z",
        ],
    ),
    // A list of fixed times is as many fixed times.
    (
        "Europe/London",
        "0,30 1,14 * * *",
        "2026-03-29T00:00:00Z",
        &["2026-03-29T01:00:00Z", "2026-03-29T13:00:00Z", "2026-03-29T13:30:00Z"],
    ),
    (
        "Europe/London",
        "30 1-2 * * *",
        "2026-10-25T00:00:00Z",
        &["2026-10-25T00:30:00Z", "2026-10-25T02:30:00Z", "2026-10-26T01:30:00Z"],
    ),
    // New York: 02:00 becomes 03:00 on 8 March, and 02:00 becomes 01:00 on 1 November.
    (
        "America/New_York",
        "30 2 * * *",
        "2026-03-07T12:00:00Z",
        &["2026-03-08T07:00:00Z", "2026-03-09T06:30:00Z"],
    ),
    (
        "America/New_York",
        "30 1 * * *",
        "2026-10-31T12:00:00Z",
        &["2026-11-01T05:30:00Z", "2026-11-02T06:30:00Z"],
    ),
    (
        "America/New_York",
        "30 6 * * mon-fri",
        "2026-03-06T12:00:00Z",
        &["2026-03-09T10:30:00Z", "2026-03-10T10:30:00Z"],
    ),
    // Lord Howe changes by half an hour: 02:00 becomes 02:30 on 4 October, and 02:00 becomes 01:30
    // on 5 April.
    (
        "Australia/Lord_Howe",
        "15 2 * * *",
        "2026-10-03T00:00:00Z",
        &["2026-10-03T15:30:00Z", "2026-10-04T15:15:00Z"],
    ),
    (
        "Australia/Lord_Howe",
        "45 1 * * *",
        "2026-04-04T00:00:00Z",
        &["2026-04-04T14:45:00Z", "2026-04-05T15:15:00Z"],
    ),
    // Santiago has no midnight on 6 September, and 23:00 twice on 4 April.
    (
        "America/Santiago",
        "0 0 * * *",
        "2026-09-05T12:00:00Z",
        &["2026-09-06T04:00:00Z", "2026-09-07T03:00:00Z"],
    ),
    (
        "America/Santiago",
        "30 0 * * *",
        "2026-09-05T12:00:00Z",
        &["2026-09-06T04:00:00Z", "2026-09-07T03:30:00Z"],
    ),
    (
        "America/Santiago",
        "30 23 * * *",
        "2026-04-04T12:00:00Z",
        &["2026-04-05T02:30:00Z", "2026-04-06T03:30:00Z"],
    ),
    ("UTC", "0 0 29 2 *", "2026-01-01T00:00:00Z", &["2028-02-29T00:00:00Z"]),
];

#[test]
fn fixed_times_survive_changes_of_the_clock_and_wildcards_keep_their_intervals() {
    for (zone, cron, from, expected) in CHANGES_OF_THE_CLOCK {
        let times = cron_times(cron, zone);
        let found =
            std::iter::successors(times.next_after(at(from)), |time| times.next_after(*time));
        let found: Vec<Millis> = found.take(expected.len()).collect();
        let expected: Vec<Millis> = expected.iter().map(|time| at(time)).collect();
        let shown: Vec<_> = found.iter().map(|time| Timestamp::from_millisecond(*time)).collect();
        assert_eq!(found, expected, "{cron} in {zone} after {from}: {shown:?}");
        for time in expected {
            assert_eq!(times.last_until(time), Some(time), "{cron} in {zone}");
            assert_eq!(times.last_until(time + 999), Some(time), "{cron} in {zone}");
        }
    }
}

#[test]
fn a_wrong_schedule_is_refused_in_words() {
    let refused = |cron: &str, zone: &str| {
        let rule = ScheduleRule::At { cron: cron.into(), zone: zone.into() };
        let schedule = SourceSchedule { rule, jitter: 0, missed: MissedRuns::Last };
        ScheduledTimes::new("s", &schedule).unwrap_err().to_string()
    };
    for wrong in ["", "* * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "0 0 * * * *", "x * * * *"]
    {
        assert!(refused(wrong, "UTC").contains("five fields are needed"), "{wrong}");
    }
    assert_eq!(refused("0 0 30 2 *", "UTC"), "\"0 0 30 2 *\" names a time that never comes");
    assert!(refused("0 0 * * *", "Europe/Atlantis").contains("is no time zone"));
    let schedule = |period, jitter| {
        let rule = ScheduleRule::Every(period);
        ScheduledTimes::new("s", &SourceSchedule { rule, jitter, missed: MissedRuns::Last })
    };
    assert_eq!(schedule(999, 0).unwrap_err(), ScheduleError::TooOften);
    assert_eq!(schedule(60_000, 60_000).unwrap_err(), ScheduleError::Jitter);
}

#[test]
fn missed_times_have_one_run_or_none_or_each_its_own() {
    let hour = 3_600_000;
    let first = every(hour, 0, MissedRuns::Last).next_after(at("2026-11-27T00:00:00Z")).unwrap();
    let late = first + 3 * hour + hour / 2 + 1;
    let last = every(hour, 0, MissedRuns::Last).due(first - 1, late);
    let expected = DueRun {
        run: Some(first + 3 * hour),
        last: first + 3 * hour,
        next: first + 4 * hour,
        missed: 3,
    };
    assert_eq!(last, expected);
    let skip = every(hour, 0, MissedRuns::Skip);
    let skipped = DueRun { run: None, missed: 4, ..expected };
    assert_eq!(skip.due(first - 1, late), skipped);
    assert_eq!(skip.due(first + 2 * hour, first + 3 * hour + 2_000).run, Some(first + 3 * hour));
    let all = every(hour, 0, MissedRuns::All);
    let mut at = first - 1;
    for n in 0..4 {
        let due = all.due(at, late);
        assert_eq!((due.run, due.missed), (Some(first + n * hour), 0));
        at = due.last;
    }
    assert_eq!(all.due(at, late).run, None);
    // Not more than a day back.
    let due = all.due(first - 1, first + 100 * hour);
    assert_eq!((due.run, due.missed), (Some(first + 77 * hour), 77));
}

#[test]
fn a_clock_that_steps_causes_no_second_run_and_no_standstill() {
    let times = every(60_000, 0, MissedRuns::Last);
    let first = times.next_after(at("2026-11-27T12:00:00Z")).unwrap();
    let ran = times.due(first - 1, first);
    assert_eq!(ran.run, Some(first));
    // A small step back: the same time comes again, and has no second run.
    for now in [first - 50, first, first - 500_000, first + 59_999] {
        let due = times.due(ran.last, now);
        assert_eq!((due.run, due.next), (None, first + 60_000));
    }
    // A clock that was a day ahead: the schedule goes on from the present.
    let day = 24 * 3_600_000;
    let due = times.due(first, first - day + 1);
    assert_eq!((due.run, due.next), (None, first - day + 60_000));
    // A step of a day forward: one run makes up for it.
    let due = times.due(first, first + day);
    assert_eq!((due.run, due.missed), (Some(first + day), 1439));
}

#[test]
fn many_sources_do_not_begin_at_once() {
    let period = 900_000;
    let mut minutes = [0_u32; 15];
    for n in 0..3_000 {
        let rule = ScheduleRule::Every(period);
        let schedule = SourceSchedule { rule, jitter: 0, missed: MissedRuns::Last };
        let times = ScheduledTimes::new(&format!("feed-{n}"), &schedule).unwrap();
        let next = times.next_after(0).unwrap();
        minutes[usize::try_from(next % period / 60_000).unwrap()] += 1;
    }
    assert!(minutes.iter().all(|minute| (140..260).contains(minute)), "{minutes:?}");
}

proptest! {
    #[test]
    fn times_ascend_and_each_is_run_once_however_one_looks(
        period in 1_000_i64..100_000_000,
        part in 0_u32..100,
        steps in proptest::collection::vec(0_i64..200_000_000, 1..30),
        cron in proptest::sample::select(vec!["*/7 * * * *", "30 1 * * *", "15 2,3 * * sun"]),
        by_cron in any::<bool>(),
    ) {
        let zone = "Europe/London";
        let jitter = period * i64::from(part) / 100;
        let times = match by_cron {
            true => ScheduledTimes { jitter: 60_000, ..cron_times(cron, zone) },
            false => every(period, jitter, MissedRuns::Last),
        };
        let mut now = at("2026-10-20T00:00:00Z");
        let mut last = now;
        for step in steps {
            now += step;
            let due = times.due(last, now);
            prop_assert!(due.last >= last && due.next > due.last);
            if let Some(run) = due.run {
                prop_assert!(run > last && run <= now && times.begins(run) <= now);
                prop_assert_eq!(times.last_until(run), Some(run));
                prop_assert!(times.begins(run) < due.next);
                // Looking again at the same moment finds nothing.
                prop_assert_eq!(times.due(due.last, now).run, None);
            } else {
                prop_assert!(times.begins(due.next) > now);
            }
            last = due.last;
        }
    }
}
