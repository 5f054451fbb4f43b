//! Keeps the records of gathering jobs: what they wait for, and what they run without.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ion_jobs::job::Transition;
use ion_model::errors::error_chain;
use ion_model::id::JobId;
use ion_model::record::{GatherObstacles, JobRecord, MissingJobs};

use super::DispatchState;

/// How often a record is updated with what its job waits for. Hundreds of jobs that it gathers may
/// end in a second.
const NOTE: Duration = Duration::from_secs(5);

/// The last time at which each record was updated.
pub(super) type GatherNote = HashMap<JobId, Instant>;

impl DispatchState {
    /// Updates the record with what its gathering job waits for, if that has changed and the last
    /// update is old enough.
    pub(super) async fn write_obstacles(
        &self,
        noted: &mut GatherNote,
        job: &JobRecord,
        now: GatherObstacles,
    ) {
        let is_held_back = |what: &GatherObstacles| what.open == 0;
        let is_first = match &job.waits_for {
            Some(before) if *before == now => return,
            Some(before) => is_held_back(before) != is_held_back(&now),
            None => true,
        };
        let lately = noted.get(&job.id).is_some_and(|at| at.elapsed() < NOTE);
        if lately && !is_first {
            return;
        }
        noted.insert(job.id.clone(), Instant::now());
        // Another dispatcher may have updated the record, or advanced the job.
        if let Err(error) = self.ledger.advance(job, &Transition::WaitsFor(now)).await {
            tracing::debug!(
                job = %job.id,
                error = error_chain(&error),
                "cannot write what the gathering job waits for"
            );
        }
    }

    /// Writes into the record what a gathering job that begins now runs without. Returns the
    /// record.
    pub(super) async fn write_missing_jobs(
        &self,
        job: JobRecord,
        without: MissingJobs,
    ) -> JobRecord {
        if job.without == without {
            return job;
        }
        match self.ledger.advance(&job, &Transition::Gathers(without)).await {
            Ok(job) => job,
            Err(error) => {
                tracing::warn!(
                    job = %job.id,
                    error = error_chain(&error),
                    "cannot write what the gathering job runs without"
                );
                job
            }
        }
    }
}
