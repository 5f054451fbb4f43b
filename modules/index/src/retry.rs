//! How long and how often a request is sent again.

use std::time::{Duration, Instant, SystemTime};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use jiff::fmt::rfc2822;
use tokio_util::sync::CancellationToken;

use crate::error::IndexError;

/// The first wait before a request is sent again. Each wait is up to twice as long by chance, so
/// that the batches in flight do not return all at once. 200 ms: shorter waits would meet the same
/// full queue.
const WAIT_MIN: Duration = Duration::from_millis(200);

/// The longest wait, without its jitter, that the server did not ask for. Longer would leave a
/// server idle that is back.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// How often and how long a request is sent again.
#[derive(Clone, Copy, Debug)]
pub struct RetrySettings {
    /// The tries in a row that bring nothing. More outlast a longer outage; fewer fail earlier.
    pub tries: u32,
    /// The time that a batch has as a whole.
    pub deadline: Duration,
}

/// What is left of the tries and of the time of one batch.
#[derive(Debug)]
pub(crate) struct Patience {
    waits: ExponentialBackoff,
    tried: u32,
    settings: RetrySettings,
    ends: Instant,
}

impl Patience {
    pub(crate) fn new(settings: RetrySettings, now: Instant) -> Self {
        Self { waits: backoff(), tried: 0, settings, ends: now + settings.deadline }
    }

    /// A request has brought something: the tries begin anew, and the time goes on.
    pub(crate) fn progressed(&mut self) {
        (self.waits, self.tried) = (backoff(), 0);
    }

    /// A smaller request takes the place of one that brought nothing: the waits begin anew, and
    /// tries and time go on.
    pub(crate) fn shrunk(&mut self) {
        self.waits = backoff();
    }

    /// The tries in a row that brought nothing.
    pub(crate) fn tried(&self) -> u32 {
        self.tried
    }

    /// A request has brought nothing. Returns how long to wait before the next one, which is at
    /// least as long as the server `asked` for, or `None` when tries or time are used up.
    pub(crate) fn next_wait(&mut self, now: Instant, asked: Option<Duration>) -> Option<Duration> {
        self.tried += 1;
        if self.tried >= self.settings.tries {
            return None;
        }
        let wait = self.waits.next().unwrap_or(WAIT_MAX).max(asked.unwrap_or_default());
        (wait < self.ends.saturating_duration_since(now)).then_some(wait)
    }
}

fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(WAIT_MIN)
        .with_max_delay(WAIT_MAX)
        .with_jitter()
        .without_max_times()
        .build()
}

/// Waits, unless the job is asked to stop.
pub(crate) async fn wait(wait: Duration, stop: &CancellationToken) -> Result<(), IndexError> {
    tokio::select! {
        () = stop.cancelled() => Err(IndexError::Stopped),
        () = tokio::time::sleep(wait) => Ok(()),
    }
}

/// Reads the header `Retry-After`: seconds, or the date at which to come back.
pub(crate) fn read_retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    let at = Duration::from_millis(u64::try_from(at.as_millisecond()).ok()?);
    Some((SystemTime::UNIX_EPOCH + at).duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: RetrySettings = RetrySettings { tries: 5, deadline: Duration::from_secs(60) };

    #[test]
    fn waits_double_with_jitter_until_the_tries_are_used_up() {
        let now = Instant::now();
        let mut patience = Patience::new(SETTINGS, now);
        for n in 0..4 {
            let wait = patience.next_wait(now, None).unwrap();
            let least = WAIT_MIN * 2_u32.pow(n);
            assert!(least <= wait && wait <= least * 2, "wait {n} is {wait:?}");
        }
        assert_eq!((patience.next_wait(now, None), patience.tried()), (None, 5));
    }

    #[test]
    fn progress_renews_the_tries_and_not_the_time() {
        let now = Instant::now();
        let mut patience = Patience::new(SETTINGS, now);
        for _ in 0..20 {
            assert!(patience.next_wait(now, None).is_some());
            patience.progressed();
        }
        assert_eq!(patience.next_wait(now + SETTINGS.deadline, None), None);
    }

    #[test]
    fn a_smaller_request_waits_less_and_has_no_more_tries() {
        let now = Instant::now();
        let mut patience = Patience::new(SETTINGS, now);
        for _ in 0..4 {
            assert!(patience.next_wait(now, None).unwrap() <= WAIT_MIN * 2);
            patience.shrunk();
        }
        assert_eq!(patience.next_wait(now, None), None);
    }

    #[test]
    fn the_server_s_own_wait_counts_if_there_is_time_for_it() {
        let now = Instant::now();
        let mut patience = Patience::new(SETTINGS, now);
        let asked = Duration::from_secs(30);
        assert_eq!(patience.next_wait(now, Some(asked)), Some(asked));
        assert_eq!(patience.next_wait(now, Some(Duration::from_secs(60))), None);
    }

    #[test]
    fn a_wait_is_bounded() {
        let mut waits = backoff();
        assert!(waits.nth(50).unwrap() <= WAIT_MAX * 2);
    }

    #[test]
    fn retry_after_has_two_forms() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let read = |text| read_retry_after(text, now);
        assert_eq!(read(" 120 "), Some(Duration::from_secs(120)));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:47 GMT"), Some(Duration::from_secs(10)));
        assert_eq!(read("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!((read("soon"), read("-1"), read("")), (None, None, None));
    }
}
