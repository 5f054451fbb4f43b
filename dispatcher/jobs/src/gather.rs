//! Fan-in without an API: a gathering job starts when everything below its event has ended.
//!
//! A gathering module's queue is bound to its `per` type. A claim inserts the job as *waiting* into
//! the ledger, so nothing is lost with a dispatcher. A dispatcher that sees that everything has
//! ended moves the job to *queued* by one conditional write. The dispatcher that then starts the job
//! checks once more that everything has ended, and writes the list of gathered events on the way.
//!
//! # What a look costs
//! While a job below is queued or runs, a few rows of an index. While something else stands that an
//! earlier look has found (a dead job, an event that nobody has claimed), a few documents. Only when
//! neither is so, a walk through the correlation, which takes little memory however large that is.

mod below;
#[cfg(test)]
mod model;
mod open;
mod walk;

use std::collections::{HashMap, HashSet};
use std::hash::RandomState;

use ion_model::id::JobId;
use ion_model::record::{GatherObstacles, JobRecord, JobState, MissingJobs};
use ion_plane::gathered::{GatheredEvents, GatheredWriter};
use ion_stores::{Collection, StoreError};

use self::open::find_open_work;
use self::walk::{EventWalk, EventsMet, GatherJudge, PAGE_EVENTS, WalkDetail, read_jobs};
use crate::ledger::{Ledger, RegisteredModules};
use crate::pipeline::Module;

/// Whether a gathering job may start, as far as one look tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Readiness {
    /// Nothing below is open, as far as a walk tells that others change meanwhile. [`gather`] makes
    /// sure of it.
    Ready,
    /// Not yet: what it waits for.
    Waiting(GatherObstacles),
    /// Modules were registered, changed or removed during the readings: it has to be judged again.
    Unsettled,
}

/// What a gathering job begins with.
#[derive(Clone, Debug)]
pub struct GatheredWork {
    /// The gathered events, in order.
    pub events: GatheredEvents,
    /// The jobs without whose events it begins: those that were cancelled or are dead.
    pub without: MissingJobs,
}

/// A gathering job that is judged, and what is known of modules.
#[derive(Clone, Copy, Debug)]
struct GatherScope<'a> {
    ledger: &'a Ledger,
    waiting: &'a JobRecord,
    module: &'a Module,
    registered: &'a RegisteredModules,
    page_events: usize,
}

/// What a caller has found out about waiting gathering jobs at earlier looks, so that it need not
/// walk while that still stands.
#[derive(Debug, Default)]
pub struct GatherWatch {
    found: HashMap<JobId, FoundObstacles>,
}

/// What a walk has found.
#[derive(Debug)]
struct FoundObstacles {
    /// The version of the registry that the walk judged by.
    registry: u64,
    obstacles: GatherObstacles,
}

impl GatherWatch {
    /// Forgets all gathering jobs but these.
    pub fn retain(&mut self, waiting: &HashSet<&JobId>) {
        self.found.retain(|id, _| waiting.contains(id));
    }

    /// Returns whether the gathering job `waiting` of `module` may start. The caller must have read
    /// `registered` before this call.
    ///
    /// # Errors
    /// When a store cannot be read.
    pub async fn look(
        &mut self,
        ledger: &Ledger,
        waiting: &JobRecord,
        module: &Module,
        registered: &RegisteredModules,
    ) -> Result<Readiness, StoreError> {
        if let Some(open) = find_open_work(ledger, waiting, module, registered).await? {
            return Ok(Readiness::Waiting(open));
        }
        let registry = registered.registry.version();
        if let Some(found) = self.found.get(&waiting.id)
            && found.registry == registry
            && is_still_held(ledger, &found.obstacles).await?
        {
            return Ok(Readiness::Waiting(found.obstacles.clone()));
        }
        let scope = GatherScope { ledger, waiting, module, registered, page_events: PAGE_EVENTS };
        let readiness = match scope.walk_through_work(&RandomState::new()).await?.judgement {
            Err(obstacles) => Readiness::Waiting(obstacles),
            Ok(_) if ledger.is_registry_unchanged(registered).await? => Readiness::Ready,
            Ok(_) => Readiness::Unsettled,
        };
        match &readiness {
            Readiness::Waiting(obstacles) => {
                let obstacles = obstacles.clone();
                self.found.insert(waiting.id.clone(), FoundObstacles { registry, obstacles });
            }
            Readiness::Ready | Readiness::Unsettled => drop(self.found.remove(&waiting.id)),
        }
        Ok(readiness)
    }
}

/// Returns whether the gathering job waits still, by the jobs that an earlier walk has named: one
/// of those that were open is open still, or, if only dead jobs held it back, they all are dead
/// still.
async fn is_still_held(ledger: &Ledger, found: &GatherObstacles) -> Result<bool, StoreError> {
    let documents = &ledger.plane().documents;
    for named in &found.named {
        let was_dead = named.state == Some(JobState::Dead);
        if was_dead && found.open > 0 {
            continue;
        }
        let job = documents.get_as::<JobRecord>(Collection::Jobs, named.job.as_str()).await?;
        let stands = match job {
            None => named.state.is_none(),
            Some(job) if was_dead => job.state == JobState::Dead,
            Some(job) => !job.state.is_final() || job.outbox,
        };
        match (was_dead, stands) {
            (true, false) => return Ok(false),
            (false, true) => return Ok(true),
            (true, true) | (false, false) => {}
        }
    }
    Ok(found.open == 0)
}

/// Returns what the gathering job `job` of `module` begins with; none if it has to wait again. The
/// caller must hold the job, and must have read `registered` before this call.
///
/// # Guarantees
/// A job begins with the events of all jobs below, each of which had ended. Two walks in a row must
/// have met the same events, and the first one must have found all jobs on them ended: the head of
/// `gather/walk.rs` says why that is enough. The registry is read again after both, and nothing is
/// concluded if it has changed: an event that was committed between the readings may be for a module
/// that `registered` does not know, and a module that the registry does not name any more may have
/// begun to work on an event. `gather/model.rs` explores every order of these readings and of all
/// that may happen between them.
///
/// # After a crash
/// The blobs that the list was written to are named by nothing, and `gc` removes them.
///
/// # Errors
/// When a store fails.
pub async fn gather(
    ledger: &Ledger,
    job: &JobRecord,
    module: &Module,
    registered: &RegisteredModules,
) -> Result<Option<GatheredWork>, StoreError> {
    if find_open_work(ledger, job, module, registered).await?.is_some() {
        return Ok(None);
    }
    let scope = GatherScope { ledger, waiting: job, module, registered, page_events: PAGE_EVENTS };
    scope.gather().await
}

/// What the first walk has found.
struct WalkedWork {
    met: EventsMet,
    judgement: Result<MissingJobs, GatherObstacles>,
}

impl GatherScope<'_> {
    /// Walks through the events below and the jobs on them.
    async fn walk_through_work(&self, hasher: &RandomState) -> Result<WalkedWork, StoreError> {
        let mut walk = self.walk(WalkDetail::Facts);
        let mut met = EventsMet::default();
        let mut judge = GatherJudge::new(self.module, self.registered);
        while let Some(events) = walk.next().await? {
            // The jobs are read after the events, so each is at least as far as when its event was.
            let mut jobs = read_jobs(self.ledger, &events).await?;
            for event in events {
                met.add(hasher, &event.id);
                judge.judge_event(&event, jobs.remove(&event.id).unwrap_or_default());
            }
        }
        Ok(WalkedWork { met, judgement: judge.conclude() })
    }

    /// Makes both walks, and the list of gathered events on the way.
    async fn gather(&self) -> Result<Option<GatheredWork>, StoreError> {
        let hasher = RandomState::new();
        let WalkedWork { met, judgement: Ok(without) } = self.walk_through_work(&hasher).await?
        else {
            return Ok(None);
        };
        let gathered = self.module.gather.as_deref().unwrap_or_default();
        let mut list = GatheredWriter::new(self.ledger.plane().clone(), self.waiting);
        let mut met_again = EventsMet::default();
        let mut walk = self.walk(WalkDetail::Events);
        while let Some(events) = walk.next().await? {
            for event in events {
                met_again.add(&hasher, &event.id);
                if event.event_type == gathered {
                    list.add(event).await?;
                }
            }
        }
        if met != met_again || !self.ledger.is_registry_unchanged(self.registered).await? {
            return Ok(None);
        }
        Ok(Some(GatheredWork { events: list.finish().await?, without }))
    }

    fn walk(&self, detail: WalkDetail) -> EventWalk<'_> {
        EventWalk::new(self.ledger, self.waiting, detail, self.page_events)
    }
}

#[cfg(test)]
mod tests;
