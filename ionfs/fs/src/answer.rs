//! Answers that a tree gives at once, or after work that may wait.

use std::pin::Pin;

use super::Result;

/// What a tree answers to a request.
#[must_use]
pub(crate) enum Answer<T> {
    /// The outcome, which memory or the local disk gave at once.
    Now(Result<T>),
    /// Work that may wait for a store, an upload or a commit, and gives the outcome. The caller
    /// must set a deadline.
    Later(Pin<Box<dyn Future<Output = Result<T>> + Send>>),
}

impl<T> Answer<T> {
    /// Makes the answer that `work` gives.
    pub(crate) fn later(work: impl Future<Output = Result<T>> + Send + 'static) -> Self {
        Self::Later(Box::pin(work))
    }
}
