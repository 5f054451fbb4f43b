//! What the records of gathering jobs say: what they wait for, and what they run without.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ion_jobs::job::Transition;
use ion_model::errors::chain;
use ion_model::id::JobId;
use ion_model::record::{GatherObstacles, JobRecord, MissingJobs};

use super::DispatchState;

/// How often it is written down what a job waits for: what it gathers may end by the hundred a
/// second.
const NOTE: Duration = Duration::from_secs(5);

/// When it was written down last what a job waits for.
pub(super) type GatherNote = HashMap<JobId, Instant>;

impl DispatchState {
    /// Writes down what a gathering job waits for, if that has changed and it is time.
    pub(super) async fn note_waiting(
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
        // Somebody else may have written it, or moved the job on.
        if let Err(error) = self.ledger.advance(job, &Transition::WaitsFor(now)).await {
            tracing::debug!(job = %job.id, error = chain(&error), "what it waits for was not written");
        }
    }

    /// Writes down what a gathering job that begins now runs without; gives its record.
    pub(super) async fn note_without(&self, job: JobRecord, without: MissingJobs) -> JobRecord {
        if job.without == without {
            return job;
        }
        match self.ledger.advance(&job, &Transition::Gathers(without)).await {
            Ok(job) => job,
            Err(error) => {
                tracing::warn!(job = %job.id, error = chain(&error), "what it runs without was not written");
                job
            }
        }
    }
}
