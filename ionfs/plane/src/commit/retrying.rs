//! Tries of a commit that the stores do not complete.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ion_system::patience::{FailedTry, Retry, with_progress_deadline};

use super::refusal::Refusal;

/// The tries of one commit that the stores do not complete. The limit ends a commit whose store
/// takes most of a file and fails every time. A shorter wait overloads a store that is starting.
const TRIES: Retry = Retry::times(200).waiting(Duration::from_millis(500));

/// Repeats a part of a commit while the stores fail, until it succeeds or no byte has moved for
/// `deadline`. `moved` returns how many bytes have moved so far. `work` must find what an earlier
/// try has done.
///
/// # Errors
/// A refusal for which the stores are not the reason, or the last failure of the stores.
pub async fn retry_while_stores_fail<T, F: Future<Output = Result<T, Refusal>>>(
    deadline: Duration,
    moved: impl Fn() -> u64,
    work: impl Fn() -> F,
) -> Result<T, Refusal> {
    let last = Mutex::new(None);
    let again = |failed: FailedTry<'_, Refusal>| {
        let Refusal::Stores(reason) = failed.error else { return false };
        tracing::debug!(reason, "the stores failed; the commit is tried again");
        *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.clone());
        true
    };
    let trying = TRIES.run(async |_| work().await, again);
    let tried = with_progress_deadline(deadline, moved, trying).await;
    tried.unwrap_or_else(|| {
        let last = last.into_inner().unwrap_or_else(PoisonError::into_inner);
        let reason = last.unwrap_or_else(|| "no answer".into());
        Err(Refusal::Stores(format!("{reason} (tried for {} s)", deadline.as_secs())))
    })
}
