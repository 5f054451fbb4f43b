//! Work that blocks its thread.

/// Runs work that blocks, such as file I/O, on a thread where it may block, and returns its result.
///
/// # Panics
/// When the work panics.
pub async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("blocking work neither panics nor is cancelled")
}
