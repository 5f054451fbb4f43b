//! Fan-in without an API: a gathering job starts when everything below its event has ended.
//!
//! A gathering module's queue is bound to its `per` type. A claim inserts the job as *waiting* into
//! the ledger, so nothing is lost with a dispatcher. A dispatcher that sees that everything has
//! ended moves the job to *queued* by one conditional write, so it fires once.

#[cfg(test)]
mod model;
mod open;

use std::collections::{BTreeMap, BTreeSet};

use ion_model::event::Event;
use ion_model::id::JobId;
use ion_model::record::{
    GatherObstacles, JobRecord, JobState, LISTED_JOBS_MAX, MissingJobs, OpenJob,
};
use ion_stores::StoreError;

use self::open::find_open_work;
use crate::ledger::{Ledger, RegisteredModules};
use crate::pipeline::{Module, OnDead, reachable_types};

/// Whether a gathering job may start.
#[derive(Clone, Debug, PartialEq)]
pub enum Readiness {
    /// Everything below has ended: the gathered events, in order, and the jobs that were cancelled
    /// or are dead.
    Ready(Vec<Event>, MissingJobs),
    /// Not yet: what it waits for.
    Waiting(GatherObstacles),
    /// Modules were registered, changed or removed during the readings: it has to be judged again.
    Unsettled,
}

/// Returns whether the gathering job `waiting` of `module` may start. While a job below its event is
/// queued or runs, this costs a few rows of an index; otherwise it reads the whole correlation. The
/// caller must have read `registered` before this call.
///
/// # Guarantees
/// The answer is never `Ready` too early. Jobs are read before events: a job that is final in the
/// first reading has all its events in the second, and a job that is not final keeps the answer at
/// [`Readiness::Waiting`]. In the other order, an event would be missed if a job committed it and
/// ended between the readings. The registry is read again after both, and nothing is concluded if
/// it has changed: an event that was committed between the readings may be for a module that
/// `registered` does not know, and a module that the registry does not name any more may have begun
/// to work on an event. `gather/model.rs` explores every order of these readings and of all that
/// may happen between them.
pub async fn readiness(
    ledger: &Ledger,
    waiting: &JobRecord,
    module: &Module,
    registered: &RegisteredModules,
) -> Result<Readiness, StoreError> {
    if let Some(what) = find_open_work(ledger, waiting, module, registered).await? {
        return Ok(Readiness::Waiting(what));
    }
    let correlation = waiting.correlation_id.to_string();
    let jobs = ledger.jobs_of(&correlation).await?;
    let events = ledger.correlation_events(&correlation).await?;
    let readiness = judge(waiting, module, registered, &jobs, &events);
    if matches!(readiness, Readiness::Ready(..))
        && !ledger.is_registry_unchanged(registered).await?
    {
        return Ok(Readiness::Unsettled);
    }
    Ok(readiness)
}

/// The pure part of [`readiness`].
fn judge(
    waiting: &JobRecord,
    module: &Module,
    registered: &RegisteredModules,
    jobs: &[JobRecord],
    events: &[Event],
) -> Readiness {
    let below = events_below(waiting, events);
    let gathered = module.gather.as_deref().unwrap_or_default();
    // Another gathering module counts as work below only if its events can lead to events that are
    // gathered here. Otherwise two gathering modules that cannot feed each other would wait for
    // each other.
    let counts = |other: &Module| {
        let feeds = || reachable_types(&registered.modules, &other.emits).contains(gathered);
        other.gather.is_none() || (other.name != module.name && feeds())
    };
    let mut jobs_of: BTreeMap<&str, BTreeMap<&str, &JobRecord>> = BTreeMap::new();
    for job in jobs {
        jobs_of.entry(job.event_id.as_str()).or_default().insert(&job.module, job);
    }
    let (mut open, mut dead, mut without) = (Vec::new(), Vec::new(), MissingJobs::default());
    for event in &below {
        let mut jobs = jobs_of.remove(event.id.as_str()).unwrap_or_default();
        for other in registered.modules_for(event) {
            let job = jobs.remove(other.name.as_str());
            if !counts(other) {
                continue;
            }
            let open_job = || OpenJob {
                job: job
                    .map_or_else(|| JobId::derive(&event.id, &other.name), |job| job.id.clone()),
                module: other.name.clone(),
                state: job.map(|job| job.state),
            };
            match job {
                Some(job) if job.state == JobState::Dead && module.on_dead == OnDead::Wait => {
                    dead.push(open_job());
                }
                Some(job) if job.state == JobState::Dead || job.state == JobState::Cancelled => {
                    without.add(&job.id);
                }
                Some(job) if job.state.is_final() && !job.outbox => {}
                Some(_) | None => open.push(open_job()),
            }
        }
        // The remaining jobs are of modules that the event is not for any more: these were removed,
        // or removed and registered again.
        let former =
            jobs.into_values().filter(|job| may_still_commit(job, registered.module(&job.module)));
        let former = former.filter(|job| registered.module(&job.module).is_none_or(counts));
        open.extend(former.map(|job| OpenJob {
            job: job.id.clone(),
            module: job.module.clone(),
            state: Some(job.state),
        }));
    }
    if open.len() + dead.len() > 0 {
        let (open_jobs, dead_jobs) = (open.len(), dead.len());
        let named = dead.into_iter().chain(open).take(LISTED_JOBS_MAX).collect();
        return Readiness::Waiting(GatherObstacles { open: open_jobs, dead: dead_jobs, named });
    }
    let gathered = below.into_iter().filter(|event| event.event_type == gathered);
    Readiness::Ready(gathered.cloned().collect(), without)
}

/// Returns whether a job may still commit something: an active job goes on to its end without its
/// module, and a queued job is claimed if a module of that name is registered.
fn may_still_commit(job: &JobRecord, module: Option<&Module>) -> bool {
    let has_to_tell = job.state == JobState::Succeeded && job.outbox;
    job.state.is_active() || has_to_tell || (module.is_some() && !job.state.is_final())
}

/// Returns the job's event and everything below it, sorted by time and id. What an earlier attempt
/// of the job itself has published is left out: the job does not wait for it.
fn events_below<'a>(waiting: &JobRecord, events: &'a [Event]) -> Vec<&'a Event> {
    let root = waiting.event_id.as_str();
    let mut children: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
    for event in events.iter().filter(|event| event.job_id.as_ref() != Some(&waiting.id)) {
        children.entry(&event.context.parent_event_id).or_default().push(event);
    }
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let mut found: Vec<&Event> = events.iter().filter(|event| event.id.as_str() == root).collect();
    let mut at = 0;
    while let Some(event) = found.get(at) {
        at += 1;
        if seen.insert(event.id.as_str()) {
            found.extend(children.get(event.id.as_str()).into_iter().flatten());
        }
    }
    found.sort_by(|a, b| (a.created, a.id.as_str()).cmp(&(b.created, b.id.as_str())));
    found.dedup_by(|a, b| a.id == b.id);
    found
}
