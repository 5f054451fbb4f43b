//! Wall-clock time as every document stores it: milliseconds since the Unix epoch, UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch.
pub type Millis = i64;

/// How far the clocks of hosts may differ: no decision rests on a time that another host wrote, unless it is further away
/// than this.
pub const SKEW_MAX: Duration = Duration::from_secs(600);

/// Whether a moment has passed, on whatever host's clock.
pub fn has_passed_everywhere(moment: Millis) -> bool {
    moment.saturating_add(millis(SKEW_MAX)) < now()
}

/// Now. Zero on a machine whose clock stands before 1970.
pub fn now() -> Millis {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}

/// A duration in whole milliseconds, saturating.
pub fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}

/// The moment `at` as the system's own type; moments before 1970 become 1970.
pub fn system_time(at: Millis) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(at).unwrap_or(0))
}
