//! Wall-clock time as every document stores it: milliseconds since the Unix epoch, UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch.
pub type Millis = i64;

const NANOS_PER_MILLI: i128 = 1_000_000;

/// The most by which the clocks of hosts may differ. No decision rests on a time that another host
/// wrote, unless that time is further away than this.
pub const SKEW_MAX: Duration = Duration::from_secs(600);

/// Whether a moment has passed by the clock of every host, as clocks differ by at most
/// [`SKEW_MAX`].
pub fn has_passed_everywhere(moment: Millis) -> bool {
    moment.saturating_add(millis(SKEW_MAX)) < now()
}

/// Returns the current time; 0 on a machine whose clock is set before 1970.
pub fn now() -> Millis {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}

/// Returns a duration in whole milliseconds; `Millis::MAX` if it is longer.
pub fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}

/// Returns the moment `at` as a [`SystemTime`].
pub fn system_time(at: Millis) -> SystemTime {
    system_time_nanos(at, 0)
}

/// Returns the moment `nanos` nanoseconds after `at` as a [`SystemTime`]; the Unix epoch if a
/// [`SystemTime`] cannot represent it.
pub fn system_time_nanos(at: Millis, nanos: u32) -> SystemTime {
    let whole = Duration::from_millis(at.unsigned_abs());
    let moment = if at < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    let moment = moment.and_then(|moment| moment.checked_add(Duration::from_nanos(nanos.into())));
    moment.unwrap_or(UNIX_EPOCH)
}

/// Returns a moment as documents store it: the last whole millisecond, and the nanoseconds since
/// then.
pub fn millis_and_nanos(moment: SystemTime) -> (Millis, u32) {
    let nanos = match moment.duration_since(UNIX_EPOCH) {
        Ok(since) => i128::try_from(since.as_nanos()).unwrap_or(i128::MAX),
        Err(before) => -i128::try_from(before.duration().as_nanos()).unwrap_or(i128::MAX),
    };
    let whole = nanos.div_euclid(NANOS_PER_MILLI);
    let rest = u32::try_from(nanos.rem_euclid(NANOS_PER_MILLI)).unwrap_or(0);
    (Millis::try_from(whole).unwrap_or(if whole < 0 { Millis::MIN } else { Millis::MAX }), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_before_and_after_1970_keep_their_nanoseconds() {
        for (seconds, nanos) in [(0, 0), (0, 1), (1, 999_999_999), (1_700_000_000, 123_456_789)] {
            let distance = Duration::new(seconds, nanos);
            for moment in [UNIX_EPOCH + distance, UNIX_EPOCH - distance] {
                let (at, rest) = millis_and_nanos(moment);
                assert!(rest < 1_000_000);
                assert_eq!(system_time_nanos(at, rest), moment);
            }
        }
        assert_eq!(millis_and_nanos(UNIX_EPOCH - Duration::from_nanos(1)), (-1, 999_999));
    }

    #[test]
    fn moments_of_a_document_that_are_out_of_range_are_no_panic() {
        for at in [Millis::MIN, Millis::MAX] {
            let _ = millis_and_nanos(system_time_nanos(at, u32::MAX));
        }
    }
}
