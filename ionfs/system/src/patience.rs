//! Time by this process's own monotonic clock. Deadlines by progress: work may take as long as it
//! moves, and no longer than a limit once it stands. And how long what others write has stood
//! still: whatever their clocks say.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// How often to look whether something moved. Deadlines are late by at most this.
const LOOK: Duration = Duration::from_millis(500);

/// Awaits `work`; none when `moved`, a number that grows with every step, stood still for `limit`.
pub async fn while_it_moves<T>(
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

/// How long things have been as they are, as this process has seen them.
///
/// What another host has left undone is judged by this and not by the times it wrote: their clocks
/// may differ by minutes. What is seen for the first time has its whole time still before it.
#[derive(Debug)]
pub struct Standing<S>(HashMap<String, (S, Instant)>);

impl<S> Default for Standing<S> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<S: PartialEq> Standing<S> {
    /// Looks at everything there is now, by name and state; gives how long each has been in that
    /// state, in the same order. What is not there any more is forgotten.
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
        assert_eq!(while_it_moves(limit, || steps.get(), moving).await, Some(()));
        assert_eq!(while_it_moves(limit, || 0, std::future::pending::<()>()).await, None);
    }

    #[test]
    fn what_changes_or_goes_begins_anew() {
        let begun = Instant::now();
        let second = Duration::from_secs(1);
        let mut standing = Standing::default();
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
