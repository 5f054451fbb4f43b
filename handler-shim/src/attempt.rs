//! The ledger's side of the handler: which attempt of which job the folder belongs to.
//!
//! # How it works
//! Nothing runs between `prepare` and `commit`, so nobody could renew a lease: an attempt of the
//! handler's stands for a day. It ends earlier when a later one begins: each `prepare` begins one,
//! and what an earlier one still commits is refused by the guard that every commit has. `commit`
//! goes on with the attempt that the folder notes.
//!
//! # What it never does
//! Take a job from a dispatcher that works on it; run a job again that has succeeded.

use std::time::Duration;

use ion_model::clock::{self, Millis, millis};
use ion_model::record::{self, AttemptEnd, JobRecord, JobState};
use ion_stores::{Collection, DataPlane, Inserted, encode};
use ion_system::failpoint;
use serde_json::json;
use uuid::Uuid;

use crate::folder::{Folder, Note};
use crate::{HandlerError, Work};

/// How long an attempt stands without a sign of life: longer than any module that somebody waits
/// for. Once it is over, a dispatcher of the plane queues the job.
const TERM: Duration = Duration::from_secs(24 * 60 * 60);

/// What the holders of the handler's attempts begin with.
const HOLDER: &str = "ion-handler:";

/// Times a write is tried again when another one came first.
const RACES_MAX: usize = 8;

/// Where the job of the work stands.
#[derive(Clone, Debug)]
pub enum Standing {
    /// This attempt of it is ours.
    Ours(Attempt),
    /// It has succeeded before.
    Succeeded(JobRecord),
}

/// An attempt that the handler holds.
#[derive(Clone, Debug)]
pub struct Attempt {
    record: JobRecord,
}

impl Attempt {
    /// Begins the next attempt of the job, and notes it in the folder. An earlier one of the
    /// handler's can commit no more.
    ///
    /// # Errors
    /// When a dispatcher holds the job, or it is dead or cancelled.
    pub async fn begin(
        plane: &DataPlane,
        work: &Work,
        folder: &Folder,
    ) -> Result<Standing, HandlerError> {
        let holder = format!("{HOLDER}{}", Uuid::new_v4().simple());
        let id = work.job();
        for _ in 0..RACES_MAX {
            let found = plane.documents.get_as::<JobRecord>(Collection::Jobs, id.as_str()).await?;
            if let Some(job) = &found
                && job.state == JobState::Succeeded
            {
                return Ok(Standing::Succeeded(job.clone()));
            }
            if let Some(job) = &found {
                if is_handlers(job) && job.cancel {
                    // Nobody else would see what a person asked for.
                    write(plane, job, &cancelled(job.clone(), clock::now())).await?;
                    continue;
                }
                free(job)?;
            }
            // Before the ledger: found there, the attempt is found here too.
            let event_id = work.event.id.clone();
            folder.note(&Note { event_id, job_id: id.clone(), holder: holder.clone() })?;
            let record = begun(
                found.clone().unwrap_or_else(|| unclaimed(work)),
                holder.clone(),
                clock::now(),
            );
            let written = match &found {
                Some(job) => write(plane, job, &record).await?,
                None => {
                    let inserted =
                        plane.documents.insert(Collection::Jobs, encode(&record), None).await?;
                    inserted == Inserted::New
                }
            };
            if written {
                failpoint::reach("handler.begun");
                return Ok(Standing::Ours(Self { record }));
            }
        }
        Err(HandlerError::Contended(id))
    }

    /// Goes on with the attempt that the folder notes; begins one where it notes none, or where
    /// that one has failed.
    ///
    /// # Errors
    /// [`HandlerError::Later`] when another one has begun since; as [`Attempt::begin`].
    pub async fn resume(
        plane: &DataPlane,
        work: &Work,
        folder: &Folder,
    ) -> Result<Standing, HandlerError> {
        let id = work.job();
        let note = folder.noted().filter(|note| note.job_id == id);
        let found = plane.documents.get_as::<JobRecord>(Collection::Jobs, id.as_str()).await?;
        match (found, note) {
            (Some(record), _) if record.state == JobState::Succeeded => {
                Ok(Standing::Succeeded(record))
            }
            (Some(record), Some(note)) if record.state.is_active() && !record.cancel => {
                free(&record)?;
                if record.holder.as_ref() == Some(&note.holder) {
                    return Ok(Standing::Ours(Self { record }));
                }
                Err(HandlerError::Later(id))
            }
            _ => Self::begin(plane, work, folder).await,
        }
    }

    /// The record, as it was last written.
    pub fn record(&self) -> &JobRecord {
        &self.record
    }

    /// Writes that the attempt succeeded: what it staged is committed by this one write.
    ///
    /// # Errors
    /// [`HandlerError::Later`] when a later one has begun; nothing is committed then.
    pub async fn succeed(self, plane: &DataPlane) -> Result<JobRecord, HandlerError> {
        self.end(plane, succeeded).await
    }

    /// Writes that the attempt failed, and why. The next one may begin at once.
    ///
    /// # Errors
    /// As [`Attempt::succeed`].
    pub async fn fail(self, plane: &DataPlane, reason: &str) -> Result<JobRecord, HandlerError> {
        self.end(plane, |record, now| failed(record, reason, now)).await
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
                failpoint::reach("handler.ended");
                return Ok(ended);
            }
            // A person may have asked for its end meanwhile; that changes the version, not the
            // holder.
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
    Ok(plane.documents.replace(Collection::Jobs, encode(after), expect, None).await?)
}

/// Whether an attempt of the handler's is under way.
fn is_handlers(job: &JobRecord) -> bool {
    job.state.is_active() && job.holder.as_ref().is_none_or(|holder| holder.starts_with(HOLDER))
}

/// Whether the handler may begin an attempt of the job.
fn free(job: &JobRecord) -> Result<(), HandlerError> {
    let ended = |way_out: String| HandlerError::Ended {
        job: job.id.clone(),
        state: job.state.as_str(),
        way_out,
    };
    match (job.state, &job.holder) {
        (JobState::Queued, _) => Ok(()),
        (JobState::Starting | JobState::Running, _) if is_handlers(job) => Ok(()),
        (JobState::Starting | JobState::Running, holder) => Err(HandlerError::Held {
            job: job.id.clone(),
            module: job.module.clone(),
            holder: holder.clone().unwrap_or_default(),
        }),
        (JobState::Waiting, _) => {
            Err(ended("it gathers events, which a dispatcher does (`ion dispatch`)".into()))
        }
        _ => Err(ended(format!("`ion job retry {}` allows it again", job.id))),
    }
}

/// The record of a job that nobody has claimed.
fn unclaimed(work: &Work) -> JobRecord {
    let new = JobRecord::new(work.job(), &work.module, &work.event, JobState::Queued, clock::now());
    JobRecord { version: 0, due: 0, ..new }
}

fn begun(mut job: JobRecord, holder: String, now: Millis) -> JobRecord {
    let superseded = "another one was prepared";
    close_attempt(&mut job, AttemptEnd::Lost, Some(superseded), now);
    job.version += 1;
    job.state = JobState::Running;
    job.attempt += 1;
    job.holder = Some(holder);
    stand(&mut job, now, millis(TERM));
    job.attempts.push(record::Attempt::begun(job.attempt, now));
    job
}

fn succeeded(mut job: JobRecord, now: Millis) -> JobRecord {
    close_attempt(&mut job, AttemptEnd::Succeeded, None, now);
    job.version += 1;
    job.state = JobState::Succeeded;
    job.holder = None;
    stand(&mut job, now, 0);
    job.ended = Some(now);
    // What was staged is committed, and has still to be shown.
    job.outbox = true;
    job
}

fn cancelled(mut job: JobRecord, now: Millis) -> JobRecord {
    close_attempt(&mut job, AttemptEnd::Cancelled, Some("cancelled"), now);
    job.version += 1;
    job.state = JobState::Cancelled;
    job.holder = None;
    stand(&mut job, now, 0);
    job.ended = Some(now);
    job
}

fn failed(mut job: JobRecord, reason: &str, now: Millis) -> JobRecord {
    close_attempt(&mut job, AttemptEnd::Failed, Some(reason), now);
    job.version += 1;
    job.failures += 1;
    job.state = JobState::Queued;
    job.holder = None;
    stand(&mut job, now, 0);
    job
}

/// Ends the attempt that is under way, if one is.
fn close_attempt(job: &mut JobRecord, end: AttemptEnd, reason: Option<&str>, now: Millis) {
    if let Some(attempt) = job.attempts.last_mut().filter(|attempt| attempt.end.is_none()) {
        attempt.ended = Some(now);
        attempt.end = Some(end);
        attempt.reason = reason.map(str::to_owned);
    }
}

fn stand(job: &mut JobRecord, now: Millis, term: Millis) {
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
        let ours = Some("ion-handler:1");
        assert!(free(&job(Queued, None)).is_ok());
        for state in [Starting, Running] {
            assert!(free(&job(state, ours)).is_ok());
            assert!(matches!(free(&job(state, Some("d"))), Err(HandlerError::Held { .. })));
        }
        for state in [Waiting, Dead, Cancelled, Succeeded] {
            assert!(
                matches!(free(&job(state, None)), Err(HandlerError::Ended { .. })),
                "{state:?}"
            );
        }
    }

    #[test]
    fn an_attempt_ends_once_and_the_next_one_has_another_number() {
        let now = clock::now();
        let first = begun(job(JobState::Queued, None), "ion-handler:1".into(), now);
        assert_eq!((first.state, first.attempt, first.version), (JobState::Running, 1, 8));
        assert_eq!(first.due, now + millis(TERM));
        let second = begun(first.clone(), "ion-handler:2".into(), now);
        assert_eq!((second.attempt, second.attempts[0].end), (2, Some(AttemptEnd::Lost)));
        let failed = failed(second, "why", now);
        assert_eq!(
            (failed.state, failed.holder.as_ref(), failed.failures),
            (JobState::Queued, None, 1)
        );
        assert_eq!(failed.attempts[1].reason.as_deref(), Some("why"));
        let third = begun(failed, "ion-handler:3".into(), now);
        assert_eq!(third.attempts[1].end, Some(AttemptEnd::Failed), "it had ended by itself");
        let done = succeeded(third, now);
        assert_eq!((done.state, done.outbox, done.holder), (JobState::Succeeded, true, None));
        assert_eq!((done.attempts.len(), done.attempts[2].end), (3, Some(AttemptEnd::Succeeded)));
    }
}
