//! Numbers that people set, and their bounds.

use std::time::Duration;

/// The longest time that people may set: a year. More is a mistake, and would overflow a clock.
pub const TIME_MAX: Duration = Duration::from_secs(31_557_600);

/// The most jobs, or processes, that may run at the same time. More is a mistake: each takes
/// processes, descriptors and memory of one machine.
pub const AT_A_TIME_MAX: usize = 10_000;

/// Reads a time as people write it, from `least` to `most`.
///
/// # Errors
/// A text that says what is allowed.
pub fn time_within(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let between = || {
        format!(
            "{} to {} are allowed",
            humantime::format_duration(least),
            humantime::format_duration(most)
        )
    };
    match humantime::parse_duration(text) {
        Ok(time) if (least..=most).contains(&time) => Ok(time),
        Ok(_) => Err(format!("{text:?}: {}", between())),
        Err(error) => Err(format!("{text:?}: {error}; write it as 30s, 10m or 2h; {}", between())),
    }
}

/// Reads how many jobs or processes may run at the same time: from 1 to [`AT_A_TIME_MAX`].
///
/// # Errors
/// A text that says what is allowed.
pub fn at_a_time(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if (1..=AT_A_TIME_MAX).contains(&number) => Ok(number),
        _ => Err(format!("{text:?}: 1 to {AT_A_TIME_MAX} are allowed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_bounds_is_told_what_is_allowed() {
        let time = |text| time_within(text, Duration::from_secs(1), TIME_MAX);
        assert_eq!(time("90s"), Ok(Duration::from_secs(90)));
        for wrong in ["0s", "999ms", "2years", "99999999999999999999s", "soon", ""] {
            assert!(time(wrong).unwrap_err().contains("1s to "), "{wrong}");
        }
        assert_eq!((at_a_time("1"), at_a_time("10000")), (Ok(1), Ok(10_000)));
        for wrong in ["0", "-1", "10001", "9223372036854775807", "many"] {
            assert!(at_a_time(wrong).unwrap_err().contains("1 to 10000 are allowed"), "{wrong}");
        }
    }
}
