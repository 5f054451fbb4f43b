//! How long a source waits before its next visit.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// How often in a row a server may refuse a visit before the run fails, so that somebody hears of
/// it.
pub const REFUSALS_MAX: u32 = 10;

/// The wait after the first refusal that names none. It doubles with each refusal.
const REFUSAL_WAIT: Duration = Duration::from_secs(15 * 60);

/// The longest wait that an answer can ask for by its freshness. A header that says "a year" is
/// meant for pictures.
const FRESH_MAX: Duration = Duration::from_secs(24 * 3600);

/// The longest wait that a refusal can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Returns the wait after a refusal, of which there were `before` in a row already.
pub fn after_refusal(asked: Option<Duration>, before: u32) -> Duration {
    let doubled = REFUSAL_WAIT.saturating_mul(1 << before.min(10));
    asked.unwrap_or(doubled.min(FRESH_MAX)).min(RETRY_AFTER_MAX)
}

/// Returns the wait while an answer is fresh.
pub fn while_fresh(asked: Option<Duration>) -> Option<Duration> {
    asked.map(|wait| wait.min(FRESH_MAX))
}

/// Returns the instant so long after `now`.
pub fn later(now: Timestamp, wait: Duration) -> Option<Timestamp> {
    now.checked_add(SignedDuration::try_from(wait).ok()?).ok()
}
