//! The clock: begins the runs of sources that are due, and notes their ends.
//!
//! Every dispatcher has one, and each looks at all sources. A source's document decides between
//! them: the first write wins, and the others find that nothing is left to do.
//!
//! # After a crash
//! Nothing is in memory only: see [`ion_jobs::sources`].

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use ion_jobs::sources::{LookedAt, SourceError};
use ion_model::clock::{self, Millis};
use ion_model::errors::error_chain;
use ion_model::record::JobRecord;
use ion_model::source::SourceRecord;

use super::{DispatchState, STORE_WAIT};

/// How often the clock looks, at least: another process may have added a source that is due sooner
/// than all others. Each look costs one query of an index.
const LOOK: Duration = Duration::from_millis(500);

/// The most sources that are read at once.
const SOURCES_AT_ONCE: usize = 256;

/// How many sources are looked at side by side. Each waits for a few writes of the stores, which
/// sync once for all that wait.
const SIDE_BY_SIDE: usize = 32;

impl DispatchState {
    /// Looks at sources as they become due, until the dispatcher stops.
    pub(super) async fn run_clock(self: Arc<Self>) {
        let mut is_failing = false;
        while !self.stopping.is_cancelled() {
            let wait = match self.look_at_due_sources().await {
                Ok(wait) => {
                    is_failing = false;
                    wait
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        let error = error_chain(&error);
                        tracing::warn!(error, "the sources cannot be read; trying again");
                    }
                    STORE_WAIT
                }
            };
            tokio::select! {
                () = self.stopping.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Looks at the sources that are due. Returns how long to wait before the next look.
    async fn look_at_due_sources(self: &Arc<Self>) -> Result<Duration, SourceError> {
        let (mut due, next) = self.sources.due(clock::now(), SOURCES_AT_ONCE).await?;
        if due.is_empty() {
            let wait = next.map_or(LOOK, |next| wait_until(next).min(LOOK));
            return Ok(wait);
        }
        // Other dispatchers have read the same sources: each begins elsewhere.
        let number: usize = self.id.bytes().map(usize::from).sum();
        let begin = number % due.len();
        due.rotate_left(begin);
        let looks = due.into_iter().map(|source| self.clone().look_at_source(source));
        let mut looks = futures_util::stream::iter(looks).buffer_unordered(SIDE_BY_SIDE);
        while looks.next().await.is_some() {}
        Ok(Duration::ZERO)
    }

    async fn look_at_source(self: Arc<Self>, source: SourceRecord) {
        match self.sources.look(&source).await {
            Ok(LookedAt::RunBegan(run)) => {
                let late = clock::now() - source.due;
                self.metrics.observe_lateness(Duration::from_millis(late.max(0).unsigned_abs()));
                tracing::debug!(source = source.id, run = %run.correlation, "a run begins");
            }
            Ok(LookedAt::RunEnded(_) | LookedAt::Nothing) => {}
            Err(error) => {
                let error = error_chain(&error);
                tracing::warn!(source = source.id, error, "a source cannot be looked after");
            }
        }
    }

    /// Notes the end of a job in the source whose run it is.
    pub(super) async fn note_run_end(&self, job: &JobRecord) {
        let Some(source) = job.source.as_ref().filter(|_| job.state.is_final()) else { return };
        if let Err(error) = self.sources.note_job_end(job, &self.id).await {
            let error = error_chain(&error);
            tracing::warn!(source, error, "the end of a run is not noted yet");
        }
        self.metrics.count_run(&job.module, job.state);
    }
}

fn wait_until(due: Millis) -> Duration {
    Duration::from_millis(u64::try_from(due - clock::now()).unwrap_or(0))
}
