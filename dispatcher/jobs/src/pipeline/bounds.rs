//! Numbers that people set, and their bounds.

use std::fmt;
use std::time::Duration;

use humantime::format_duration;

/// The longest time that people may set: a year. More is a mistake, and would overflow a clock.
pub const TIME_MAX: Duration = Duration::from_secs(31_557_600);

/// The most jobs, or processes, that may run at the same time. More is a mistake: each takes
/// processes, descriptors and memory of one machine.
pub const AT_A_TIME_MAX: usize = 10_000;

/// Why a text is not a number that may be set.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BoundError {
    /// The text is not a time.
    #[error("{text:?}: {source}; write it as 30s, 10m or 2h; {between}")]
    NoTime {
        /// The text.
        text: String,
        /// The times that are allowed.
        between: TimeBounds,
        /// What is wrong with the text.
        #[source]
        source: humantime::DurationError,
    },
    /// The time is too short or too long.
    #[error("{text:?}: {between}")]
    Time {
        /// The text.
        text: String,
        /// The times that are allowed.
        between: TimeBounds,
    },
    /// The text is not a number of jobs or processes that may run at the same time.
    #[error("{0:?}: 1 to {AT_A_TIME_MAX} are allowed")]
    AtATime(String),
}

/// The shortest and the longest time that are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeBounds {
    least: Duration,
    most: Duration,
}

impl fmt::Display for TimeBounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (least, most) = (format_duration(self.least), format_duration(self.most));
        write!(f, "{least} to {most} are allowed")
    }
}

/// Reads a time as people write it, from `least` to `most`.
///
/// # Errors
/// What is wrong with the text, and what is allowed.
pub fn parse_time_within(
    text: &str,
    least: Duration,
    most: Duration,
) -> Result<Duration, BoundError> {
    let (owned_text, between) = (|| text.to_owned(), TimeBounds { least, most });
    match humantime::parse_duration(text) {
        Ok(time) if (least..=most).contains(&time) => Ok(time),
        Ok(_) => Err(BoundError::Time { text: owned_text(), between }),
        Err(source) => Err(BoundError::NoTime { text: owned_text(), between, source }),
    }
}

/// Reads how many jobs or processes may run at the same time: from 1 to [`AT_A_TIME_MAX`].
///
/// # Errors
/// [`BoundError::AtATime`], which says what is allowed.
pub fn parse_at_a_time(text: &str) -> Result<usize, BoundError> {
    match text.parse() {
        Ok(number) if (1..=AT_A_TIME_MAX).contains(&number) => Ok(number),
        _ => Err(BoundError::AtATime(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_bounds_is_told_what_is_allowed() {
        let time = |text| parse_time_within(text, Duration::from_secs(1), TIME_MAX);
        assert_eq!(time("90s"), Ok(Duration::from_secs(90)));
        for wrong in ["0s", "999ms", "2years", "99999999999999999999s", "soon", ""] {
            assert!(time(wrong).unwrap_err().to_string().contains("1s to "), "{wrong}");
        }
        assert_eq!((parse_at_a_time("1"), parse_at_a_time("10000")), (Ok(1), Ok(10_000)));
        for wrong in ["0", "-1", "10001", "9223372036854775807", "many"] {
            assert!(
                parse_at_a_time(wrong).unwrap_err().to_string().contains("1 to 10000 are allowed"),
                "{wrong}"
            );
        }
    }
}
