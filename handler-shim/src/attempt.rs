//! The handler's part of the job ledger: which attempt of which job the folder belongs to.
//!
//! # How it works
//! No process runs between `prepare` and `commit`, so no process can renew a lease. The lease of
//! the handler's attempt therefore lasts a day. The attempt ends earlier when a later one begins:
//! each `prepare` begins an attempt, and the fence of the commit protocol refuses a commit of an
//! earlier one. `commit` continues the attempt that the note in the folder names.
//!
//! # What it never does
//! It never takes a job from a dispatcher that works on it, and never runs a job again that has
//! succeeded.

use std::time::Duration;

use ion_model::clock::{self, Millis, millis};
use ion_model::record::{self, AttemptEnd, JobRecord, JobState};
use ion_stores::{Collection, DataPlane, Durability, Inserted, encode};
use ion_system::failpoint;
use serde_json::json;
use uuid::Uuid;

use crate::folder::{AttemptNote, ModuleFolder};
use crate::{HandlerError, HandlerWork};

/// The lease of the handler's attempt: longer than any module runs while a person waits for it.
/// After the lease has expired, a dispatcher of the plane queues the job.
const LEASE: Duration = Duration::from_secs(24 * 60 * 60);

/// The beginning of the holder ids of the handler's attempts.
const HOLDER: &str = "ion-handler:";

/// How often a write is tried when other writes keep coming first.
const RACES_MAX: usize = 8;

/// The result of beginning or resuming an attempt of a job.
#[derive(Clone, Debug)]
pub enum AttemptBegin {
    /// The handler holds this attempt of the job.
    Held(HandlerAttempt),
    /// The job has succeeded before.
    Succeeded(JobRecord),
}

/// An attempt that the handler holds.
#[derive(Clone, Debug)]
pub struct HandlerAttempt {
    record: JobRecord,
}

impl HandlerAttempt {
    /// Begins the next attempt of the job, and notes it in the folder. An earlier attempt of the
    /// handler can no longer commit.
    ///
    /// # Errors
    /// Returns [`HandlerError::Held`] when a dispatcher holds the job, [`HandlerError::Ended`] when
    /// the job is waiting, dead or cancelled, [`HandlerError::Contended`] when other processes keep
    /// writing its record first, and the error of a store or of the folder.
    pub async fn begin(
        plane: &DataPlane,
        work: &HandlerWork,
        folder: &ModuleFolder,
    ) -> Result<AttemptBegin, HandlerError> {
        let holder = format!("{HOLDER}{}", Uuid::new_v4().simple());
        let id = work.job_id();
        for _ in 0..RACES_MAX {
            let found = plane.documents.get_as::<JobRecord>(Collection::Jobs, id.as_str()).await?;
            if let Some(job) = &found
                && job.state == JobState::Succeeded
            {
                return Ok(AttemptBegin::Succeeded(job.clone()));
            }
            if let Some(job) = &found {
                if is_held_by_handler(job) && job.cancel {
                    // A person asked to cancel the job, and no other process would notice that.
                    write(plane, job, &cancel_attempt(job.clone(), clock::now())).await?;
                    continue;
                }
                check_may_begin(job)?;
            }
            // The note comes before the ledger, so that an attempt in the ledger always has a note.
            let event_id = work.event.id.clone();
            folder.write_note(&AttemptNote {
                event_id,
                job_id: id.clone(),
                holder: holder.clone(),
            })?;
            let record = begin_attempt(
                found.clone().unwrap_or_else(|| new_record(work)),
                holder.clone(),
                clock::now(),
            );
            let written = match &found {
                Some(job) => write(plane, job, &record).await?,
                None => {
                    let inserted = plane
                        .documents
                        .insert(Collection::Jobs, encode(&record), None, Durability::Now)
                        .await?;
                    inserted == Inserted::New
                }
            };
            if written {
                failpoint::hit("handler.begun");
                return Ok(AttemptBegin::Held(Self { record }));
            }
        }
        Err(HandlerError::Contended(id))
    }

    /// Resumes the attempt that the note in the folder names. Begins an attempt if there is no
    /// note, or if the noted attempt has ended and the job has not succeeded.
    ///
    /// # Errors
    /// Returns [`HandlerError::Later`] when another attempt has begun since, and the errors of
    /// [`HandlerAttempt::begin`].
    pub async fn resume(
        plane: &DataPlane,
        work: &HandlerWork,
        folder: &ModuleFolder,
    ) -> Result<AttemptBegin, HandlerError> {
        let id = work.job_id();
        let note = folder.read_note().filter(|note| note.job_id == id);
        let found = plane.documents.get_as::<JobRecord>(Collection::Jobs, id.as_str()).await?;
        match (found, note) {
            (Some(record), _) if record.state == JobState::Succeeded => {
                Ok(AttemptBegin::Succeeded(record))
            }
            (Some(record), Some(note)) if record.state.is_active() && !record.cancel => {
                check_may_begin(&record)?;
                if record.holder.as_ref() == Some(&note.holder) {
                    return Ok(AttemptBegin::Held(Self { record }));
                }
                Err(HandlerError::Later(id))
            }
            _ => Self::begin(plane, work, folder).await,
        }
    }

    /// Returns the job's record as it was when this attempt was begun or resumed.
    pub fn record(&self) -> &JobRecord {
        &self.record
    }

    /// Writes that the attempt succeeded. This one write commits everything that the attempt
    /// staged.
    ///
    /// # Errors
    /// Returns [`HandlerError::Later`] when a later attempt has begun: then nothing is committed.
    pub async fn succeed(self, plane: &DataPlane) -> Result<JobRecord, HandlerError> {
        self.end(plane, succeed_attempt).await
    }

    /// Writes that the attempt failed, and why. The next attempt may begin at once.
    ///
    /// # Errors
    /// Returns the same errors as [`HandlerAttempt::succeed`].
    pub async fn fail(self, plane: &DataPlane, reason: &str) -> Result<JobRecord, HandlerError> {
        self.end(plane, |record, now| fail_attempt(record, reason, now)).await
    }

    async fn end(
        self,
        plane: &DataPlane,
        after: impl Fn(JobRecord, Millis) -> JobRecord,
    ) -> Result<JobRecord, HandlerError> {
        let mut current = self.record.clone();
        for _ in 0..RACES_MAX {
            let ended = after(current.clone(), clock::now());
            if write(plane, &current, &ended).await? {
                failpoint::hit("handler.ended");
                return Ok(ended);
            }
            // A person may have asked to cancel the job meanwhile: this changes the version of the
            // record, but not its holder.
            let id = &self.record.id;
            let found = plane.documents.get_as::<JobRecord>(Collection::Jobs, id.as_str()).await?;
            current = match found {
                Some(found) if found.state == JobState::Succeeded => return Ok(found),
                Some(found) if found.holder == self.record.holder => found,
                _ => return Err(HandlerError::Later(id.clone())),
            };
        }
        Err(HandlerError::Contended(self.record.id))
    }
}

async fn write(
    plane: &DataPlane,
    before: &JobRecord,
    after: &JobRecord,
) -> Result<bool, HandlerError> {
    let expect = vec![("version", json!(before.version))];
    Ok(plane
        .documents
        .replace(Collection::Jobs, encode(after), expect, None, Durability::Now)
        .await?)
}

/// Returns whether the handler holds the job's present attempt. An attempt without a holder counts
/// as the handler's.
fn is_held_by_handler(job: &JobRecord) -> bool {
    job.state.is_active() && job.holder.as_ref().is_none_or(|holder| holder.starts_with(HOLDER))
}

/// Checks that the handler may begin an attempt of the job.
fn check_may_begin(job: &JobRecord) -> Result<(), HandlerError> {
    let ended = |way_out: String| HandlerError::Ended {
        job: job.id.clone(),
        state: job.state.as_str(),
        way_out,
    };
    match (job.state, &job.holder) {
        (JobState::Queued, _) => Ok(()),
        (JobState::Starting | JobState::Running, _) if is_held_by_handler(job) => Ok(()),
        (JobState::Starting | JobState::Running, holder) => Err(HandlerError::Held {
            job: job.id.clone(),
            module: job.module.clone(),
            holder: holder.clone().unwrap_or_default(),
        }),
        (JobState::Waiting, _) => {
            Err(ended("it gathers events, which only a dispatcher does (`ion dispatch`)".into()))
        }
        _ => Err(ended(format!("`ion job retry {}` allows it again", job.id))),
    }
}

/// Returns the record of a job that no process has claimed yet.
fn new_record(work: &HandlerWork) -> JobRecord {
    let new =
        JobRecord::new(work.job_id(), &work.module, &work.event, JobState::Queued, clock::now());
    JobRecord { version: 0, due: 0, ..new }
}

fn begin_attempt(mut job: JobRecord, holder: String, now: Millis) -> JobRecord {
    let superseded = "another attempt was prepared";
    close_attempt(&mut job, AttemptEnd::Lost, Some(superseded), now);
    job.version += 1;
    job.state = JobState::Running;
    job.attempt += 1;
    job.holder = Some(holder);
    set_term(&mut job, now, millis(LEASE));
    job.attempts.push(record::Attempt::new(job.attempt, now));
    job
}

fn succeed_attempt(mut job: JobRecord, now: Millis) -> JobRecord {
    close_attempt(&mut job, AttemptEnd::Succeeded, None, now);
    job.version += 1;
    job.state = JobState::Succeeded;
    job.holder = None;
    set_term(&mut job, now, 0);
    job.ended = Some(now);
    // The staged events are committed, and still have to be made visible and published.
    job.outbox = true;
    job
}

fn cancel_attempt(mut job: JobRecord, now: Millis) -> JobRecord {
    close_attempt(&mut job, AttemptEnd::Cancelled, Some("cancelled"), now);
    job.version += 1;
    job.state = JobState::Cancelled;
    job.holder = None;
    set_term(&mut job, now, 0);
    job.ended = Some(now);
    job
}

fn fail_attempt(mut job: JobRecord, reason: &str, now: Millis) -> JobRecord {
    close_attempt(&mut job, AttemptEnd::Failed, Some(reason), now);
    job.version += 1;
    job.failures += 1;
    job.state = JobState::Queued;
    job.holder = None;
    set_term(&mut job, now, 0);
    job
}

/// Ends the attempt that is in progress, if there is one.
fn close_attempt(job: &mut JobRecord, end: AttemptEnd, reason: Option<&str>, now: Millis) {
    if let Some(attempt) = job.attempts.last_mut().filter(|attempt| attempt.end.is_none()) {
        attempt.ended = Some(now);
        attempt.end = Some(end);
        attempt.reason = reason.map(str::to_owned);
    }
}

fn set_term(job: &mut JobRecord, now: Millis, term: Millis) {
    job.term = term;
    job.due = now + term;
}

#[cfg(test)]
mod tests {
    use ion_model::clock;
    use ion_model::id::{CorrelationId, EventId};

    use super::*;

    fn job(state: JobState, holder: Option<&str>) -> JobRecord {
        let job: JobRecord = serde_json::from_value(json!({
            "id": "j", "version": 7, "module": "m", "eventId": EventId::new("e"), "eventType": "t",
            "correlationId": CorrelationId::new("c"), "state": state, "attempt": 0, "due": 0, "created": 0,
        }))
        .unwrap();
        JobRecord { holder: holder.map(str::to_owned), ..job }
    }

    #[test]
    fn a_job_is_taken_from_a_handler_and_from_nobody_else() {
        use JobState::{Cancelled, Dead, Queued, Running, Starting, Succeeded, Waiting};
        let handler = Some("ion-handler:1");
        assert!(check_may_begin(&job(Queued, None)).is_ok());
        for state in [Starting, Running] {
            assert!(check_may_begin(&job(state, handler)).is_ok());
            assert!(matches!(
                check_may_begin(&job(state, Some("d"))),
                Err(HandlerError::Held { .. })
            ));
        }
        for state in [Waiting, Dead, Cancelled, Succeeded] {
            assert!(
                matches!(check_may_begin(&job(state, None)), Err(HandlerError::Ended { .. })),
                "{state:?}"
            );
        }
    }

    #[test]
    fn an_attempt_ends_once_and_the_next_one_has_another_number() {
        let now = clock::now();
        let first = begin_attempt(job(JobState::Queued, None), "ion-handler:1".into(), now);
        assert_eq!((first.state, first.attempt, first.version), (JobState::Running, 1, 8));
        assert_eq!(first.due, now + millis(LEASE));
        let second = begin_attempt(first.clone(), "ion-handler:2".into(), now);
        assert_eq!((second.attempt, second.attempts[0].end), (2, Some(AttemptEnd::Lost)));
        let failed = fail_attempt(second, "why", now);
        assert_eq!(
            (failed.state, failed.holder.as_ref(), failed.failures),
            (JobState::Queued, None, 1)
        );
        assert_eq!(failed.attempts[1].reason.as_deref(), Some("why"));
        let third = begin_attempt(failed, "ion-handler:3".into(), now);
        assert_eq!(third.attempts[1].end, Some(AttemptEnd::Failed), "it had ended by itself");
        let done = succeed_attempt(third, now);
        assert_eq!((done.state, done.outbox, done.holder), (JobState::Succeeded, true, None));
        assert_eq!((done.attempts.len(), done.attempts[2].end), (3, Some(AttemptEnd::Succeeded)));
    }
}
