//! The scheduled times of a source: pure functions of a rule and a time.
//!
//! # Daylight saving
//! Cron expressions follow Vixie's rules. A fixed time that a change of the clock leaves out runs
//! right after the change, and a time that comes twice runs once. An expression with a wildcard in
//! its minutes or hours keeps its real intervals. The crate `croner` does this for single times;
//! lists and ranges of times are taken apart here, because it takes them for wildcards.

use croner::parser::{CronParser, Seconds, Year};
use croner::{Cron, errors::CronError};
use ion_model::clock::Millis;
use ion_model::source::{MissedRuns, ScheduleRule, SourceSchedule};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use uuid::Uuid;

/// How far behind its last scheduled time a clock may be for that time to count as past. It is
/// more than what clocks of hosts differ by. A clock that is further behind was ahead before: the
/// schedule then begins anew, or a source would stand still until the clock has caught up.
const CLOCK_BEHIND_MAX: Millis = 600_000;

/// How far back missed times are made up for.
const MADE_UP_MAX: Millis = 24 * 3_600_000;

/// The most by which a run may begin late and is not yet missed.
const LATE_MAX: Millis = 300_000;

/// The most missed times that are counted at once.
const COUNTED_MAX: u64 = 10_000;

/// The shortest period.
const PERIOD_MIN: Millis = 1_000;

/// Why a schedule cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// The cron expression is wrong.
    #[error(
        "{expression:?} is no cron expression: {reason}; five fields are needed: minute, hour, day \
         of the month, month, day of the week, as in \"30 6 * * mon-fri\""
    )]
    Cron {
        /// The expression.
        expression: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The expression names no time that ever comes.
    #[error("{0:?} names a time that never comes")]
    Never(String),
    /// There is no such time zone.
    #[error("{0:?} is no time zone; write it as Europe/London, or UTC")]
    Zone(String),
    /// The period is too short.
    #[error("a source can run once a second at most")]
    TooOften,
    /// A run would begin after the time of the next one.
    #[error("\"jitter\" must be shorter than \"every\"")]
    Jitter,
}

/// The scheduled times of one source.
#[derive(Clone, Debug)]
pub struct ScheduledTimes {
    /// Tells this source from others: its time within a period, and its jitter.
    seed: u64,
    rule: TimeRule,
    jitter: Millis,
    missed: MissedRuns,
}

#[derive(Clone, Debug)]
enum TimeRule {
    Every {
        period: Millis,
        phase: Millis,
    },
    At {
        /// The expression; several where it lists fixed times.
        crons: Vec<Cron>,
        zone: TimeZone,
    },
}

/// What a schedule says at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueRun {
    /// The scheduled time of the run that is to begin now; none if no run is due.
    pub run: Option<Millis>,
    /// The scheduled time that was dealt with last.
    pub last: Millis,
    /// The next scheduled time.
    pub next: Millis,
    /// How many scheduled times have no run of their own.
    pub missed: u64,
}

impl ScheduledTimes {
    /// Makes the times of the source of this name.
    ///
    /// # Errors
    /// What is wrong with the schedule.
    pub fn new(source: &str, schedule: &SourceSchedule) -> Result<Self, ScheduleError> {
        let seed = Uuid::new_v5(&Uuid::NAMESPACE_OID, source.as_bytes()).as_u64_pair().1;
        let (jitter, missed) = (schedule.jitter.max(0), schedule.missed);
        let rule = match &schedule.rule {
            ScheduleRule::Every(period) if *period < PERIOD_MIN => {
                return Err(ScheduleError::TooOften);
            }
            ScheduleRule::Every(period) if jitter >= *period => return Err(ScheduleError::Jitter),
            ScheduleRule::Every(period) => {
                TimeRule::Every { period: *period, phase: part_of(seed, *period) }
            }
            ScheduleRule::At { cron, zone } => {
                let known = TimeZone::get(zone).map_err(|_| ScheduleError::Zone(zone.clone()))?;
                TimeRule::At { crons: parse_cron(cron)?, zone: known }
            }
        };
        let times = Self { seed, rule, jitter, missed };
        match (&schedule.rule, times.next_after(0)) {
            (ScheduleRule::At { cron, .. }, None) => Err(ScheduleError::Never(cron.clone())),
            _ => Ok(times),
        }
    }

    /// Returns the first scheduled time after a moment; none if there is none.
    pub fn next_after(&self, at: Millis) -> Option<Millis> {
        match &self.rule {
            TimeRule::Every { period, phase } => {
                let periods = (at - phase).div_euclid(*period) + 1;
                periods.checked_mul(*period)?.checked_add(*phase)
            }
            TimeRule::At { crons, zone } => {
                let from = zoned(at, zone)?;
                let next = |cron: &Cron| cron.find_next_occurrence(&from, false).ok();
                let times = crons.iter().filter_map(next).map(|time| to_millis(&time));
                times.filter(|time| *time > at).min()
            }
        }
    }

    /// Returns the last scheduled time at or before a moment.
    fn last_until(&self, at: Millis) -> Option<Millis> {
        match &self.rule {
            TimeRule::Every { period, phase } => {
                Some((at - phase).div_euclid(*period) * period + phase)
            }
            TimeRule::At { crons, zone } => {
                let from = zoned(at, zone)?;
                let last = |cron: &Cron| cron.find_previous_occurrence(&from, true).ok();
                let times = crons.iter().filter_map(last).map(|time| to_millis(&time));
                times.filter(|time| *time <= at).max()
            }
        }
    }

    /// Returns when the run of a scheduled time begins: up to the jitter later, and never after the
    /// next scheduled time.
    pub fn begins(&self, scheduled: Millis) -> Millis {
        if self.jitter == 0 {
            return scheduled;
        }
        let gap = self.gap_after(scheduled);
        let mixed = self.seed ^ scheduled.unsigned_abs().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        scheduled + part_of(mixed.rotate_left(29), self.jitter.min(gap).max(1))
    }

    /// Returns the time between a scheduled time and the next one.
    pub fn gap_after(&self, scheduled: Millis) -> Millis {
        self.next_after(scheduled).map_or(MADE_UP_MAX, |next| next - scheduled)
    }

    /// Returns the last scheduled time whose run may have begun by now.
    fn last_begun(&self, now: Millis) -> Option<Millis> {
        let last = self.last_until(now)?;
        if self.begins(last) <= now { Some(last) } else { self.last_until(last - 1) }
    }

    /// Decides what is due: `last` is the scheduled time that was dealt with last.
    pub fn due(&self, last: Millis, now: Millis) -> DueRun {
        let last = if last > now + CLOCK_BEHIND_MAX { now } else { last };
        let after = |time: Millis| self.next_after(time).unwrap_or(Millis::MAX);
        let Some(latest) = self.last_begun(now).filter(|latest| *latest > last) else {
            return DueRun { run: None, last, next: after(last), missed: 0 };
        };
        let run = match self.missed {
            MissedRuns::Last => Some(latest),
            MissedRuns::Skip => {
                let late = now - self.begins(latest);
                (late <= LATE_MAX.min(self.gap_after(latest) / 2)).then_some(latest)
            }
            MissedRuns::All => Some(after(last.max(now - MADE_UP_MAX)).min(latest)),
        };
        let dealt = run.unwrap_or(latest);
        let passed = self.count_between(last, dealt);
        let missed = if run.is_some() { passed } else { passed + 1 };
        DueRun { run, last: dealt, next: after(dealt), missed }
    }

    /// Counts the scheduled times between two moments, up to [`COUNTED_MAX`].
    fn count_between(&self, after: Millis, before: Millis) -> u64 {
        if let TimeRule::Every { period, .. } = self.rule {
            let first = self.next_after(after).unwrap_or(before);
            let times = (before - first + period - 1).max(0) / period;
            return u64::try_from(times).unwrap_or(0).min(COUNTED_MAX);
        }
        let times = std::iter::successors(self.next_after(after), |time| self.next_after(*time));
        times.take_while(|time| *time < before).zip(0..COUNTED_MAX).count() as u64
    }
}

/// Returns a number below `whole` that stays the same for a seed.
fn part_of(seed: u64, whole: Millis) -> Millis {
    let whole = u64::try_from(whole).unwrap_or(1).max(1);
    Millis::try_from(seed % whole).unwrap_or(0)
}

fn zoned(at: Millis, zone: &TimeZone) -> Option<Zoned> {
    Some(Timestamp::from_millisecond(at).ok()?.to_zoned(zone.clone()))
}

fn to_millis(time: &Zoned) -> Millis {
    time.timestamp().as_millisecond()
}

/// Reads a cron expression. One that lists fixed times becomes one expression for each time.
fn parse_cron(expression: &str) -> Result<Vec<Cron>, ScheduleError> {
    let wrong = |reason: String| ScheduleError::Cron { expression: expression.to_owned(), reason };
    let parse = |text: &str| {
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed);
        parser.build().parse(text).map_err(|error| wrong(in_words(&error)))
    };
    let whole = parse(expression)?;
    let fields: Vec<&str> = expression.split_whitespace().collect();
    let [minutes, hours, days @ ..] = fields.as_slice() else { return Ok(vec![whole]) };
    let has_wildcard = |field: &str| field.contains(['*', '?']);
    if has_wildcard(minutes) || has_wildcard(hours) {
        return Ok(vec![whole]);
    }
    let (minutes, days) = (whole.pattern.minutes.values(), days.join(" "));
    let mut crons = Vec::new();
    for hour in whole.pattern.hours.values() {
        for minute in &minutes {
            crons.push(parse(&format!("{minute} {hour} {days}"))?);
        }
    }
    Ok(crons)
}

fn in_words(error: &CronError) -> String {
    match error {
        CronError::InvalidPattern(words)
        | CronError::IllegalCharacters(words)
        | CronError::ComponentError(words) => words.trim_end_matches('.').to_owned(),
        CronError::EmptyPattern => "it is empty".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
