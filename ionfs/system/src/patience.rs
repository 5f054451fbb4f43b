//! Waiting by this process's own monotonic clock.
//!
//! [`Retry`] tries an operation again that may fail for a while. [`with_progress_deadline`] is a
//! deadline by progress: work may take as long as it makes progress, and ends when it has made none
//! for a limit. [`StateAges`] measures how long the state that another host wrote has not changed,
//! whatever that host's clock says.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// How often [`with_progress_deadline`] checks for progress. Its deadlines are late by at most this
/// time.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Awaits `work`. Returns `None` when `progress`, a number that grows with every step of the work,
/// has not changed for `limit`.
pub async fn with_progress_deadline<T>(
    limit: Duration,
    progress: impl Fn() -> u64,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut work = std::pin::pin!(work);
    let (mut last_seen, mut since) = (progress(), Instant::now());
    loop {
        let left = limit.saturating_sub(since.elapsed());
        match tokio::time::timeout(POLL_INTERVAL.min(left), &mut work).await {
            Ok(outcome) => return Some(outcome),
            Err(_) if progress() != last_seen => (last_seen, since) = (progress(), Instant::now()),
            Err(_) if since.elapsed() >= limit => return None,
            Err(_) => {}
        }
    }
}

/// How often and how long an operation is tried, and the waits between its tries.
///
/// ```
/// # use std::time::Duration;
/// # use ion_system::patience::Retry;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// const FETCH: Retry = Retry::times(3).waiting(Duration::from_millis(1));
/// let fetched = FETCH.run(
///     async |number| if number < 2 { Err("busy") } else { Ok(number) },
///     |failed| *failed.error == "busy",
/// );
/// assert_eq!(fetched.await, Ok(2));
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    tries_max: u32,
    time_max: Duration,
    wait: Duration,
    wait_max: Duration,
}

/// A try that failed, and that may be followed by another.
#[derive(Debug)]
pub struct FailedTry<'a, E> {
    /// Why the try failed.
    pub error: &'a E,
    /// The number of the try, from 0.
    pub number: u32,
}

impl Retry {
    /// Tries an operation at most `tries` times, and at least once. The next try follows at once.
    pub const fn times(tries: u32) -> Self {
        Self {
            tries_max: tries,
            time_max: Duration::MAX,
            wait: Duration::ZERO,
            wait_max: Duration::ZERO,
        }
    }

    /// Tries an operation for as long as `time`, and at least once: no wait for another try begins
    /// later.
    pub const fn during(time: Duration) -> Self {
        Self { time_max: time, ..Self::times(u32::MAX) }
    }

    /// Waits for `wait` after each try that failed.
    #[must_use]
    pub const fn waiting(self, wait: Duration) -> Self {
        Self { wait, wait_max: wait, ..self }
    }

    /// Waits for `first` after the first try that failed. Each further failure doubles the wait, up
    /// to `longest`.
    #[must_use]
    pub const fn doubling(self, first: Duration, longest: Duration) -> Self {
        Self { wait: first, wait_max: longest, ..self }
    }

    /// Runs `operation`, with the number of the try from 0, until it succeeds. After a try that
    /// failed, asks `again` whether the error is worth another try. `again` is called only if
    /// another try is allowed, so it may log that one follows.
    ///
    /// # Errors
    /// The error of the last try: when `again` returns false, or the limit is used up.
    pub async fn run<T, E, F: Future<Output = Result<T, E>>>(
        self,
        operation: impl FnMut(u32) -> F,
        again: impl FnMut(FailedTry<'_, E>) -> bool,
    ) -> Result<T, E> {
        self.run_until(std::future::pending(), operation, again).await
    }

    /// Runs `operation` like [`Retry::run`]. Once `stop` is ready, a wait ends, and the try that
    /// runs or follows it is the last one.
    ///
    /// # Errors
    /// As [`Retry::run`], and when `stop` is ready.
    pub async fn run_until<T, E, F: Future<Output = Result<T, E>>>(
        self,
        stop: impl Future<Output = ()>,
        mut operation: impl FnMut(u32) -> F,
        mut again: impl FnMut(FailedTry<'_, E>) -> bool,
    ) -> Result<T, E> {
        let begun = Instant::now();
        let mut stop = std::pin::pin!(stop);
        let mut stopped = false;
        let mut number = 0;
        loop {
            let error = match operation(number).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            stopped = stopped || is_ready(stop.as_mut()).await;
            let allowed = !stopped && self.allows_another(number, begun.elapsed());
            if !allowed || !again(FailedTry { error: &error, number }) {
                return Err(error);
            }
            let wait = self.wait_after(number);
            if !wait.is_zero() {
                // A future that was ready must not be polled again; `stopped` sees to that.
                stopped = tokio::time::timeout(wait, stop.as_mut()).await.is_ok();
            }
            number += 1;
        }
    }

    /// Runs `operation` like [`Retry::run`], and blocks the thread while it waits.
    ///
    /// # Errors
    /// As [`Retry::run`].
    pub fn run_blocking<T, E>(
        self,
        mut operation: impl FnMut(u32) -> Result<T, E>,
        mut again: impl FnMut(FailedTry<'_, E>) -> bool,
    ) -> Result<T, E> {
        let begun = std::time::Instant::now();
        let mut number = 0;
        loop {
            let error = match operation(number) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let allowed = self.allows_another(number, begun.elapsed());
            if !allowed || !again(FailedTry { error: &error, number }) {
                return Err(error);
            }
            #[expect(
                clippy::disallowed_methods,
                reason = "this is for threads that may block, and for waits without an event"
            )]
            std::thread::sleep(self.wait_after(number));
            number += 1;
        }
    }

    /// Returns whether another try may follow the try `number`, which failed after `elapsed`.
    fn allows_another(self, number: u32, elapsed: Duration) -> bool {
        number.saturating_add(1) < self.tries_max && elapsed < self.time_max
    }

    /// Returns the wait after the try `number`.
    fn wait_after(self, number: u32) -> Duration {
        self.wait.saturating_mul(1_u32.checked_shl(number).unwrap_or(u32::MAX)).min(self.wait_max)
    }
}

/// Polls a future once. Returns whether it is ready; then it must not be polled again.
async fn is_ready(mut future: std::pin::Pin<&mut impl Future<Output = ()>>) -> bool {
    std::future::poll_fn(|context| std::task::Poll::Ready(future.as_mut().poll(context).is_ready()))
        .await
}

/// How long named things have been in their present state, as this process has seen them.
///
/// This process judges by these times whether another host has abandoned its work, and not by the
/// times which that host wrote: clocks of hosts may differ by minutes. The time of a thing begins
/// when this process sees it for the first time.
#[derive(Debug)]
pub struct StateAges<S>(HashMap<String, (S, Instant)>);

impl<S> Default for StateAges<S> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<S: PartialEq> StateAges<S> {
    /// Takes the name and the present state of every thing, and returns how long each has been in
    /// that state, in the same order. Forgets a thing that is not in `all`.
    pub fn update(&mut self, all: impl IntoIterator<Item = (String, S)>) -> Vec<Duration> {
        self.update_at(Instant::now(), all)
    }

    fn update_at(
        &mut self,
        now: Instant,
        all: impl IntoIterator<Item = (String, S)>,
    ) -> Vec<Duration> {
        let mut before = std::mem::take(&mut self.0);
        let mut ages = Vec::new();
        for (name, state) in all {
            let since = before
                .remove(&name)
                .filter(|(seen, _)| *seen == state)
                .map_or(now, |(_, since)| since);
            ages.push(now - since);
            self.0.insert(name, (state, since));
        }
        ages
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn what_moves_may_take_longer_than_the_limit_and_what_stands_may_not() {
        let limit = SECOND;
        let steps = Cell::new(0);
        let moving = async {
            for _ in 0..12 {
                tokio::time::sleep(limit / 10).await;
                steps.set(steps.get() + 1);
            }
        };
        assert_eq!(with_progress_deadline(limit, || steps.get(), moving).await, Some(()));
        assert_eq!(with_progress_deadline(limit, || 0, std::future::pending::<()>()).await, None);
    }

    /// Runs an operation that always fails. Returns the last error, which is the number of the last
    /// try, and the time that all tries took.
    async fn in_vain(retry: Retry, stop: impl Future<Output = ()>) -> (u32, Duration) {
        let begun = Instant::now();
        let failed = retry.run_until(stop, async |number| Err::<(), _>(number), |_| true).await;
        (failed.unwrap_err(), begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn an_operation_is_tried_as_often_as_the_limit_says() {
        let never = std::future::pending;
        assert_eq!(in_vain(Retry::times(4).waiting(SECOND), never()).await, (3, SECOND * 3));
        assert_eq!(in_vain(Retry::times(0), never()).await, (0, Duration::ZERO));
        let doubling = Retry::times(6).doubling(SECOND, SECOND * 5);
        assert_eq!(in_vain(doubling, never()).await, (5, SECOND * (1 + 2 + 4 + 5 + 5)));
        let long = Retry::times(80).doubling(SECOND, SECOND * 2);
        assert_eq!(in_vain(long, never()).await, (79, SECOND * (1 + 78 * 2)));
        let timed = Retry::during(SECOND * 5 / 2).waiting(SECOND);
        assert_eq!(in_vain(timed, never()).await, (3, SECOND * 3));
    }

    #[tokio::test(start_paused = true)]
    async fn tries_end_with_a_success_or_with_an_error_that_is_final() {
        let retry = Retry::times(9).waiting(SECOND);
        let late = async |number| if number == 2 { Ok(number) } else { Err(number) };
        assert_eq!(retry.run(late, |_| true).await, Ok(2));
        let mut seen = Vec::new();
        let again = |failed: FailedTry<'_, u32>| {
            seen.push((*failed.error, failed.number));
            failed.number < 1
        };
        assert_eq!(retry.run(async |number| Err::<(), _>(number + 10), again).await, Err(11));
        assert_eq!(seen, [(10, 0), (11, 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn once_it_is_stopped_one_last_try_follows_a_wait_and_none_a_try() {
        let retry = Retry::times(9).waiting(SECOND);
        assert_eq!(in_vain(retry, std::future::ready(())).await, (0, Duration::ZERO));
        let in_a_wait = SECOND * 5 / 2;
        assert_eq!(in_vain(retry, tokio::time::sleep(in_a_wait)).await, (3, in_a_wait));
        let begun = Instant::now();
        let slow = async |number| {
            tokio::time::sleep(SECOND).await;
            Err::<(), u32>(number)
        };
        let stop = tokio::time::sleep(in_a_wait);
        assert_eq!(retry.run_until(stop, slow, |_| true).await, Err(1));
        assert_eq!(begun.elapsed(), SECOND * 3);
    }

    #[test]
    fn a_thread_waits_between_tries_too() {
        let wait = Duration::from_millis(5);
        let begun = std::time::Instant::now();
        let late = |number| if number == 2 { Ok(number) } else { Err(number) };
        assert_eq!(Retry::times(3).waiting(wait).run_blocking(late, |_| true), Ok(2));
        assert!(begun.elapsed() >= wait * 2);
        assert_eq!(Retry::times(2).run_blocking(late, |_| true), Err(1));
        assert_eq!(Retry::times(3).run_blocking(late, |_| false), Err(0));
    }

    #[test]
    fn what_changes_or_goes_begins_anew() {
        let begun = Instant::now();
        let mut standing = StateAges::default();
        let mut look = |at: u32, all: &[(&str, u32)]| {
            let all = all.iter().map(|(name, state)| ((*name).to_owned(), *state));
            standing.update_at(begun + SECOND * at, all)
        };
        assert_eq!(look(0, &[("a", 1), ("b", 1)]), [Duration::ZERO; 2]);
        assert_eq!(look(1, &[("b", 1), ("a", 2)]), [SECOND, Duration::ZERO]);
        assert_eq!(look(2, &[("a", 2)]), [SECOND]);
        assert_eq!(look(3, &[("a", 2), ("b", 1)]), [SECOND * 2, Duration::ZERO]);
    }
}
