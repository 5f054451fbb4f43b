//! Deadlines by progress: work may take as long as it moves, and no longer than a limit once it stands.

use std::time::Duration;

use tokio::time::Instant;

/// How often to look whether something moved. Deadlines are late by at most this.
const LOOK: Duration = Duration::from_millis(500);

/// Awaits `work`; none when `moved`, a number that grows with every step, stood still for `limit`.
pub(crate) async fn while_it_moves<T>(
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
}
