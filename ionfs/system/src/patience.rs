//! Waiting by this process's own monotonic clock.
//!
//! [`with_progress_deadline`] is a deadline by progress: work may take as long as it makes progress, and
//! ends when it has made none for a limit. [`StateAges`] measures how long the state that another
//! host wrote has not changed, whatever that host's clock says.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// How often [`with_progress_deadline`] checks for progress. Its deadlines are late by at most this time.
const LOOK: Duration = Duration::from_millis(500);

/// Awaits `work`. Returns `None` when `moved`, a number that grows with every step of the work, has
/// not changed for `limit`.
pub async fn with_progress_deadline<T>(
    limit: Duration,
    moved: impl Fn() -> u64,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut work = std::pin::pin!(work);
    let (mut seen, mut since) = (moved(), Instant::now());
    loop {
        let left = limit.saturating_sub(since.elapsed());
        match tokio::time::timeout(LOOK.min(left), &mut work).await {
            Ok(outcome) => return Some(outcome),
            Err(_) if moved() != seen => (seen, since) = (moved(), Instant::now()),
            Err(_) if since.elapsed() >= limit => return None,
            Err(_) => {}
        }
    }
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
    pub fn look(&mut self, all: impl IntoIterator<Item = (String, S)>) -> Vec<Duration> {
        self.look_at(Instant::now(), all)
    }

    fn look_at(
        &mut self,
        now: Instant,
        all: impl IntoIterator<Item = (String, S)>,
    ) -> Vec<Duration> {
        let mut before = std::mem::take(&mut self.0);
        let mut stood = Vec::new();
        for (name, state) in all {
            let since = before
                .remove(&name)
                .filter(|(seen, _)| *seen == state)
                .map_or(now, |(_, since)| since);
            stood.push(now - since);
            self.0.insert(name, (state, since));
        }
        stood
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn what_moves_may_take_longer_than_the_limit_and_what_stands_may_not() {
        let limit = Duration::from_secs(1);
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

    #[test]
    fn what_changes_or_goes_begins_anew() {
        let begun = Instant::now();
        let second = Duration::from_secs(1);
        let mut standing = StateAges::default();
        let mut look = |at: u32, all: &[(&str, u32)]| {
            let all = all.iter().map(|(name, state)| ((*name).to_owned(), *state));
            standing.look_at(begun + second * at, all)
        };
        assert_eq!(look(0, &[("a", 1), ("b", 1)]), [Duration::ZERO; 2]);
        assert_eq!(look(1, &[("b", 1), ("a", 2)]), [second, Duration::ZERO]);
        assert_eq!(look(2, &[("a", 2)]), [second]);
        assert_eq!(look(3, &[("a", 2), ("b", 1)]), [second * 2, Duration::ZERO]);
    }
}
