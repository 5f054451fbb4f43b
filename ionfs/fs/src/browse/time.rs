//! Days and times as parts of names. All times are UTC, so that each name means the same everywhere.

use std::time::SystemTime;

use ion_model::clock::{self, Millis};

/// The length of a day.
const DAY: Millis = 86_400_000;

/// The length of a second.
const SECOND: Millis = 1000;

/// The first time that has no name: the beginning of the year 10,000.
const END: Millis = 253_402_300_800_000;

/// The times from one on, to another that is not among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TimeSpan {
    pub(super) from: Millis,
    pub(super) below: Millis,
}

impl TimeSpan {
    /// Makes a span of this length that begins at `from`. The first and the last span of all have
    /// all earlier and all later times: a document may have any time, and must be in one of them.
    fn new(from: Millis, length: Millis) -> Self {
        let below = if from + length >= END { Millis::MAX } else { from + length };
        Self { from: if from <= 0 { Millis::MIN } else { from }, below }
    }

    /// Returns whether a time is in the span.
    pub(super) fn contains(self, at: Millis) -> bool {
        self.from <= at && at < self.below
    }

    /// Returns the day of a time.
    pub(super) fn day_of(at: Millis) -> Self {
        let at = at.clamp(0, END - 1);
        Self::new(at - at.rem_euclid(DAY), DAY)
    }
}

/// Returns a time as a name with its day: `2026-05-01T08:30:00`. Names sort by it.
pub(super) fn time_name(at: Millis) -> String {
    let time = clock::system_time(at.clamp(0, END - 1));
    let time = humantime::format_rfc3339_seconds(time).to_string();
    time.trim_end_matches('Z').to_owned()
}

/// Returns a time as commands read it: `2026-05-01T08:30:00.000Z`.
pub(super) fn moment(at: Millis) -> String {
    humantime::format_rfc3339_millis(clock::system_time(at.clamp(0, END - 1))).to_string()
}

/// Returns the name of the day that this span is: `2026-05-01`.
pub(super) fn day_name(day: TimeSpan) -> String {
    let mut name = time_name(day.from);
    name.truncate("2026-05-01".len());
    name
}

/// Returns the day of a name, if it is the name of one.
pub(super) fn day_of_name(name: &str) -> Option<TimeSpan> {
    let at = parse(&format!("{name}T00:00:00Z"))?;
    let day = TimeSpan::day_of(at);
    (day_name(day) == name).then_some(day)
}

/// Returns the second with which a name begins. `day` is the day of the folder; in a folder of no
/// day, a name begins with its day.
pub(super) fn second_of_name(day: Option<TimeSpan>, name: &str) -> Option<TimeSpan> {
    let length = if day.is_some() { "08:30:00".len() } else { "2026-05-01T08:30:00".len() };
    let time = name.get(..length)?;
    let whole = match day {
        Some(day) => format!("{}T{time}Z", day_name(day)),
        None => format!("{time}Z"),
    };
    parse(&whole).map(|at| TimeSpan::new(at, SECOND))
}

fn parse(time: &str) -> Option<Millis> {
    let time = humantime::parse_rfc3339(time).ok()?;
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Millis::try_from(since.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_in_the_day_and_the_second_of_its_name() {
        for at in [Millis::MIN, -1, 0, 1, 999, DAY - 1, DAY, 1_777_000_000_123, END - 1, END] {
            let day = TimeSpan::day_of(at);
            assert!(day.contains(at), "{at}: {day:?}");
            let name = day_name(day);
            assert_eq!(day_of_name(&name), Some(day), "{name}");
            let whole = time_name(at);
            let second = second_of_name(None, &format!("{whole}-type-id")).unwrap();
            assert!(second.contains(at), "{whole}: {second:?}");
            let within = second_of_name(Some(day), &format!("{}-id", &whole[11..]));
            assert_eq!(within, Some(second), "{whole}");
        }
    }

    #[test]
    fn what_is_no_time_has_no_span() {
        for name in
            ["", "2026", "2026-5-1", "2026-02-30", "2026-05-01x", "c-2026-05-01", "ä026-05-01"]
        {
            assert_eq!(day_of_name(name), None, "{name}");
        }
        let day = Some(TimeSpan::day_of(0));
        for name in ["", "8:30", "24:00:00-x", "ab:cd:ef-x", "08:30:0ä"] {
            assert_eq!(second_of_name(day, name), None, "{name}");
        }
    }
}
