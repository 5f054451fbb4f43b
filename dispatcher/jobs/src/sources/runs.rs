//! The runs of a source with their jobs, as every list of runs shows them.

use ion_model::clock::Millis;
use ion_model::id::{CorrelationId, EventId};
use ion_model::record::JobRecord;
use ion_model::source::runs_prefix;
use ion_plane::runs::{RunEvents, job_id};
use ion_stores::{Collection, DataPlane, StoreError};
use serde::Serialize;

/// One run of a source.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunReport {
    /// Its correlation.
    pub run: CorrelationId,
    /// Its scheduled time.
    pub scheduled: Millis,
    /// Its event.
    pub event: EventId,
    /// Its job; none before a dispatcher has claimed it.
    pub job: Option<JobRecord>,
}

impl RunReport {
    /// Returns the run's state, in one word.
    pub fn state(&self) -> &'static str {
        match &self.job {
            None => "waiting",
            // It began with an older state than the later run, so it is never retried.
            Some(job) if job.superseded => "failed",
            Some(job) => job.state.as_str(),
        }
    }
}

/// A text names no run of a source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{run:?} is no run of source {source_name:?}; a run looks like {source_name}@00000012-3f2b91c0"
)]
pub struct NoRunOfSource {
    run: String,
    source_name: String,
}

/// The runs of a source, the latest first, one after the other.
#[derive(Debug)]
pub struct SourceRuns(RunEvents);

impl SourceRuns {
    /// Returns the runs of the source of this name. With `before`, the correlation of a run, only
    /// those before that run.
    ///
    /// # Errors
    /// When `before` is no run of this source.
    pub fn latest_first(source: &str, before: Option<&str>) -> Result<Self, NoRunOfSource> {
        let events = RunEvents::newest_first(source);
        match before {
            None => Ok(Self(events)),
            Some(before) if before.starts_with(&runs_prefix(source)) => {
                Ok(Self(events.after(before)))
            }
            Some(before) => {
                Err(NoRunOfSource { run: before.to_owned(), source_name: source.to_owned() })
            }
        }
    }

    /// Returns the next run; none after the first one of the source.
    ///
    /// # Errors
    /// When the documents cannot be read.
    pub async fn next(&mut self, plane: &DataPlane) -> Result<Option<RunReport>, StoreError> {
        let Some(event) = self.0.next(plane).await? else { return Ok(None) };
        let job = match job_id(&event) {
            Some(id) => plane.documents.get_as(Collection::Jobs, id.as_str()).await?,
            None => None,
        };
        let scheduled = event.tick.as_ref().map_or(event.created, |tick| tick.scheduled);
        let run = event.context.correlation_id;
        Ok(Some(RunReport { run, scheduled, event: event.id, job }))
    }
}
