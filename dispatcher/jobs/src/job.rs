//! The state machine of a job: a pure function that makes the next record from a job's record and
//! what happened. No I/O, no clock.

use std::time::Duration;

use ion_model::clock::{Millis, millis};
use ion_model::record::{
    Attempt, AttemptEnd, BatchPlace, FailedReads, GatherObstacles, JobRecord, JobState,
    MissingJobs, RefusedFiles, StoredLog,
};
use ion_model::source::LeftState;
use ion_model::text::{REASON_MAX, cut};
use ion_model::usage::AttemptUsage;
use ion_model::version::ModuleVersion;

/// How many attempts may be lost with their dispatchers before a job is dead. A job that takes its
/// host down must not be retried for ever, and the ordinary restarts of a cluster must not end a
/// job.
pub const LOST_MAX: u32 = 5;

/// The wait before the first retry; it doubles up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_secs(1);

/// The longest wait between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// What happened to a job.
#[derive(Clone, Debug)]
#[cfg_attr(
    test,
    derive(strum::EnumDiscriminants),
    strum_discriminants(name(HappeningKind), derive(strum::EnumIter))
)]
pub enum Transition {
    /// For a gathering job that is waiting: everything below its event has ended.
    Gathered,
    /// For a gathering job that is waiting: what it waits for.
    WaitsFor(GatherObstacles),
    /// For a gathering job that was claimed: something below its event works again, so the job
    /// waits again. The claim does not count as an attempt.
    WaitsAgain,
    /// A gathering job begins without what these jobs would have made.
    Gathers(MissingJobs),
    /// A dispatcher claims the job.
    Claimed {
        /// The dispatcher's id.
        holder: String,
        /// How long it holds the job without a renewal.
        lease: Millis,
    },
    /// Its process runs.
    Running {
        /// What it runs, if that is known.
        version: Option<ModuleVersion>,
        /// Its place in the batch that runs it, if one does.
        batch: Option<BatchPlace>,
    },
    /// Its holder renews the lease, which begins again.
    Renewed,
    /// Its holder ends while the attempt goes on: another dispatcher may adopt the job now.
    Left,
    /// Another dispatcher holds the job from now on; the attempt goes on.
    Adopted {
        /// The dispatcher's id.
        holder: String,
        /// How long it holds the job without a renewal.
        lease: Millis,
    },
    /// The attempt ended.
    Ended(Box<EndedAttempt>),
    /// A person cancels the job, or drops a dead one.
    CancelAsked,
    /// A person retries a dead or cancelled job.
    Revived,
    /// For a dead or cancelled run of a source: a later run begins. A dead job counts as dropped.
    Superseded,
}

/// The end of an attempt.
#[derive(Clone, Debug)]
pub struct AttemptOutcome {
    /// How the attempt ended.
    pub end: AttemptEnd,
    /// The exit status, if the process exited by itself.
    pub exit_code: Option<i32>,
    /// The reason, in words; none for success.
    pub reason: Option<String>,
    /// Its stored output.
    pub log: Option<StoredLog>,
    /// Whether events are staged; they are committed by the write that marks the job succeeded.
    pub staged: bool,
    /// The attempt's reads that Ion could not answer.
    pub failed_reads: FailedReads,
    /// The attempt's event files that were refused.
    pub rejected: RefusedFiles,
    /// What the attempt used.
    pub usage: AttemptUsage,
    /// What the attempt ran, if that is known.
    pub version: Option<ModuleVersion>,
    /// Its place in the batch that ran it, if one did.
    pub batch: Option<BatchPlace>,
    /// When its process began, if the record may not say it yet.
    pub process_started: Option<Millis>,
    /// What a run of a source leaves for the next one.
    pub left: Option<Box<LeftState>>,
}

impl AttemptOutcome {
    /// Returns the outcome of an attempt of which only the kind of its end is known.
    pub fn from_end(end: AttemptEnd) -> Self {
        Self {
            end,
            exit_code: None,
            reason: None,
            log: None,
            staged: false,
            failed_reads: FailedReads::default(),
            rejected: RefusedFiles::default(),
            usage: AttemptUsage::default(),
            version: None,
            batch: None,
            process_started: None,
            left: None,
        }
    }

    /// Returns the end of an attempt that failed before its process ran.
    pub fn failed(reason: impl Into<String>) -> Self {
        Self { reason: Some(reason.into()), ..Self::from_end(AttemptEnd::Failed) }
    }
}

/// How an attempt ended, and what the module allows next.
#[derive(Clone, Debug)]
pub struct EndedAttempt {
    /// How it ended.
    pub outcome: AttemptOutcome,
    /// How many retries the module allows in all.
    pub retries: u32,
    /// Between 0 and 1: spreads retries of jobs that failed together.
    pub jitter: f64,
}

/// A happening that is not allowed in the state of the job.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a job that is {} cannot be {happening}", state.as_str())]
pub struct IllegalStep {
    /// The state of the job.
    pub state: JobState,
    /// The word for the happening.
    pub happening: &'static str,
}

impl Transition {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Gathered => "gathered for",
            Self::WaitsFor(_) => "waiting",
            Self::WaitsAgain => "put back",
            Self::Gathers(_) => "gathering",
            Self::Claimed { .. } => "claimed",
            Self::Running { .. } => "running",
            Self::Renewed => "renewed",
            Self::Left => "left",
            Self::Adopted { .. } => "adopted",
            Self::Ended(_) => "ended",
            Self::CancelAsked => "cancelled",
            Self::Revived => "revived",
            Self::Superseded => "superseded",
        }
    }
}

/// Returns the record after `happening`. The ledger raises its version.
///
/// # Errors
/// [`IllegalStep`] when `happening` is not allowed in the state of the job.
pub fn next_record(
    job: &JobRecord,
    happening: &Transition,
    now: Millis,
) -> Result<JobRecord, IllegalStep> {
    let mut job = job.clone();
    match (job.state, happening) {
        (JobState::Waiting, Transition::WaitsFor(what)) => job.waits_for = Some(what.clone()),
        (JobState::Waiting, Transition::Gathered) => queue(&mut job, now, 0),
        (JobState::Starting, Transition::Gathers(without)) => job.without.clone_from(without),
        (JobState::Queued, Transition::Claimed { holder, lease }) => {
            job.state = JobState::Starting;
            job.attempt += 1;
            job.holder = Some(holder.clone());
            set_term(&mut job, now, *lease);
            job.attempts.push(Attempt::new(job.attempt, now));
        }
        (JobState::Starting, Transition::WaitsAgain) => {
            job.state = JobState::Waiting;
            job.holder = None;
            job.attempt = job.attempt.saturating_sub(1);
            job.attempts.pop();
            set_term(&mut job, now, 0);
        }
        (JobState::Starting, Transition::Running { version, batch }) => {
            job.state = JobState::Running;
            if let Some(attempt) = job.attempts.last_mut() {
                attempt.process_started = Some(now);
            }
            note_run(&mut job, version.as_ref(), batch.as_ref());
        }
        (JobState::Starting | JobState::Running, Transition::Renewed) => {
            let lease = job.term;
            set_term(&mut job, now, lease);
        }
        (JobState::Starting | JobState::Running, Transition::Left) => set_term(&mut job, now, 0),
        (JobState::Starting | JobState::Running, Transition::Adopted { holder, lease }) => {
            job.holder = Some(holder.clone());
            set_term(&mut job, now, *lease);
        }
        (JobState::Starting | JobState::Running, Transition::Ended(ended)) => {
            end_attempt(&mut job, ended, now)
        }
        (JobState::Starting | JobState::Running, Transition::CancelAsked) => job.cancel = true,
        (JobState::Waiting | JobState::Queued | JobState::Dead, Transition::CancelAsked) => {
            finish(&mut job, JobState::Cancelled, now)
        }
        (JobState::Dead | JobState::Cancelled, Transition::Superseded) if !job.superseded => {
            let ended = job.ended;
            finish(&mut job, JobState::Cancelled, now);
            job.ended = ended;
            job.superseded = true;
        }
        (JobState::Dead | JobState::Cancelled, Transition::Revived) if !job.superseded => {
            job.failures = 0;
            job.losses = 0;
            job.cancel = false;
            job.ended = None;
            queue(&mut job, now, 0);
        }
        (state, happening) => return Err(IllegalStep { state, happening: happening.as_str() }),
    }
    Ok(job)
}

fn queue(job: &mut JobRecord, now: Millis, wait: Millis) {
    job.state = JobState::Queued;
    job.waits_for = None;
    job.outbox = false;
    job.holder = None;
    set_term(job, now, wait);
}

/// Notes which version the latest attempt runs, and in which batch, if that is known.
fn note_run(job: &mut JobRecord, version: Option<&ModuleVersion>, batch: Option<&BatchPlace>) {
    let Some(attempt) = job.attempts.last_mut() else { return };
    if let Some(version) = version {
        attempt.version = Some(version.clone());
    }
    if let Some(batch) = batch {
        attempt.batch = Some(batch.clone());
    }
}

fn set_term(job: &mut JobRecord, now: Millis, term: Millis) {
    job.term = term;
    job.due = now + term;
}

fn finish(job: &mut JobRecord, state: JobState, now: Millis) {
    job.state = state;
    job.waits_for = None;
    job.holder = None;
    set_term(job, now, 0);
    job.ended = Some(now);
    // The dead letter is sent to the bus later: the record is written first, so that an unavailable
    // broker delays nothing.
    job.outbox = state == JobState::Dead;
}

fn end_attempt(job: &mut JobRecord, ended: &EndedAttempt, now: Millis) {
    let outcome = &ended.outcome;
    note_run(job, outcome.version.as_ref(), outcome.batch.as_ref());
    if let Some(attempt) = job.attempts.last_mut() {
        attempt.process_started = attempt.process_started.or(outcome.process_started);
        attempt.ended = Some(now);
        attempt.end = Some(outcome.end);
        attempt.exit_code = outcome.exit_code;
        // A module chooses a part of the text, so its length is limited.
        let reason = outcome.reason.as_deref();
        attempt.reason = reason.map(|reason| cut(reason, REASON_MAX).into_owned());
        attempt.log = outcome.log.as_ref().map(|log| log.entry.clone());
        attempt.log_left_out = outcome.log.as_ref().map_or(0, |log| log.left_out);
        attempt.failed_reads.clone_from(&outcome.failed_reads);
        attempt.rejected.clone_from(&outcome.rejected);
        attempt.usage = outcome.usage;
    }
    match outcome.end {
        AttemptEnd::Succeeded => {
            finish(job, JobState::Succeeded, now);
            job.outbox = outcome.staged;
            job.left.clone_from(&outcome.left);
        }
        AttemptEnd::Cancelled => finish(job, JobState::Cancelled, now),
        // A person cancelled the job while the attempt was ending by itself: no other attempt
        // follows.
        _ if job.cancel => finish(job, JobState::Cancelled, now),
        AttemptEnd::Released | AttemptEnd::BatchFailed => queue(job, now, 0),
        AttemptEnd::Lost => {
            job.losses += 1;
            if job.losses > LOST_MAX {
                finish(job, JobState::Dead, now)
            } else {
                queue(job, now, 0)
            }
        }
        AttemptEnd::NoRoom => {
            job.losses += 1;
            if job.losses > LOST_MAX {
                finish(job, JobState::Dead, now);
            } else {
                queue(job, now, millis(backoff(job.losses, ended.jitter)));
            }
        }
        AttemptEnd::CannotRun => {
            job.failures += 1;
            finish(job, JobState::Dead, now);
        }
        AttemptEnd::Failed | AttemptEnd::TimedOut => {
            job.failures += 1;
            if job.failures > ended.retries {
                finish(job, JobState::Dead, now);
            } else {
                queue(job, now, millis(backoff(job.failures, ended.jitter)));
            }
        }
    }
}

/// Returns whether a module that takes batches runs the next attempt of this job alone: an earlier
/// one ended badly, and the fault may be this job's. Running it alone finds that out, and spares the
/// others.
pub fn runs_alone(job: &JobRecord) -> bool {
    let ended_badly = |attempt: &Attempt| {
        !matches!(
            attempt.end,
            None | Some(AttemptEnd::Succeeded | AttemptEnd::Released | AttemptEnd::Cancelled)
        )
    };
    job.attempts.iter().any(ended_badly)
}

/// Returns the wait after this many failures. It doubles with each failure up to [`BACKOFF_MAX`];
/// `jitter` shortens it by up to a quarter.
fn backoff(failures: u32, jitter: f64) -> Duration {
    let doubled = BACKOFF.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(BACKOFF_MAX);
    doubled.mul_f64(1.0 - 0.25 * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use ion_model::id::{CorrelationId, EventId, JobId};
    use strum::IntoEnumIterator as _;

    use super::*;

    fn job(state: JobState) -> JobRecord {
        JobRecord {
            id: JobId::new("j"),
            version: 1,
            module: "m".into(),
            event_id: EventId::new("e"),
            event_type: "t".into(),
            correlation_id: CorrelationId::new("c"),
            state,
            attempt: 0,
            attempts: vec![],
            holder: None,
            due: 0,
            term: 0,
            created: 0,
            ended: None,
            cancel: false,
            outbox: false,
            failures: 0,
            losses: 0,
            waits_for: None,
            without: MissingJobs::default(),
            source: None,
            left: None,
            superseded: false,
        }
    }

    fn ended(end: AttemptEnd) -> Transition {
        let outcome = AttemptOutcome::from_end(end);
        Transition::Ended(Box::new(EndedAttempt { outcome, retries: 1, jitter: 0.0 }))
    }

    /// Returns a happening of this kind.
    fn happening_of_kind(kind: HappeningKind) -> Transition {
        let (holder, lease) = ("h".into(), 9);
        match kind {
            HappeningKind::Gathered => Transition::Gathered,
            HappeningKind::WaitsFor => Transition::WaitsFor(GatherObstacles::default()),
            HappeningKind::WaitsAgain => Transition::WaitsAgain,
            HappeningKind::Gathers => Transition::Gathers(MissingJobs::default()),
            HappeningKind::Claimed => Transition::Claimed { holder, lease },
            HappeningKind::Running => Transition::Running { version: None, batch: None },
            HappeningKind::Renewed => Transition::Renewed,
            HappeningKind::Left => Transition::Left,
            HappeningKind::Adopted => Transition::Adopted { holder, lease },
            HappeningKind::Ended => ended(AttemptEnd::Failed),
            HappeningKind::CancelAsked => Transition::CancelAsked,
            HappeningKind::Revived => Transition::Revived,
            HappeningKind::Superseded => Transition::Superseded,
        }
    }

    #[test]
    fn every_state_meets_every_happening() {
        use JobState::{Cancelled, Dead, Queued, Running, Starting, Succeeded, Waiting};
        let one = happening_of_kind;
        let (waits, gathers) = (HappeningKind::WaitsFor, HappeningKind::Gathers);
        let (claimed, renewed) = (HappeningKind::Claimed, HappeningKind::Renewed);
        let (left, adopted) = (HappeningKind::Left, HappeningKind::Adopted);
        let table = [
            (
                Waiting,
                vec![
                    (one(waits), Waiting),
                    (Transition::Gathered, Queued),
                    (Transition::CancelAsked, Cancelled),
                ],
            ),
            (Queued, vec![(one(claimed), Starting), (Transition::CancelAsked, Cancelled)]),
            (
                Starting,
                vec![
                    (one(gathers), Starting),
                    (one(HappeningKind::Running), Running),
                    (Transition::WaitsAgain, Waiting),
                    (one(renewed), Starting),
                    (one(left), Starting),
                    (one(adopted), Starting),
                    (ended(AttemptEnd::Succeeded), Succeeded),
                    (Transition::CancelAsked, Starting),
                ],
            ),
            (
                Running,
                vec![
                    (one(renewed), Running),
                    (one(left), Running),
                    (one(adopted), Running),
                    (ended(AttemptEnd::Failed), Queued),
                    (ended(AttemptEnd::Lost), Queued),
                    (ended(AttemptEnd::Released), Queued),
                    (ended(AttemptEnd::Cancelled), Cancelled),
                    (Transition::CancelAsked, Running),
                ],
            ),
            (Succeeded, vec![]),
            (
                Dead,
                vec![
                    (Transition::Revived, Queued),
                    (Transition::CancelAsked, Cancelled),
                    (Transition::Superseded, Cancelled),
                ],
            ),
            (Cancelled, vec![(Transition::Revived, Queued), (Transition::Superseded, Cancelled)]),
        ];
        assert_eq!(table.len(), JobState::ALL.len());
        for (state, allowed) in table {
            for (happening, becomes) in &allowed {
                assert_eq!(
                    next_record(&job(state), happening, 5).unwrap().state,
                    *becomes,
                    "{state:?} {happening:?}"
                );
            }
            for kind in HappeningKind::iter() {
                let happening = happening_of_kind(kind);
                let legal = allowed.iter().any(|(one, _)| HappeningKind::from(one) == kind);
                let step = next_record(&job(state), &happening, 5);
                assert_eq!(step.is_ok(), legal, "{state:?} {happening:?}");
            }
        }
    }

    #[test]
    fn retries_run_out_and_losses_have_a_bound_of_their_own() {
        let claimed = Transition::Claimed { holder: "h".into(), lease: 9 };
        let again = |record: &JobRecord, end| {
            next_record(&next_record(record, &claimed, 5).unwrap(), &ended(end), 6).unwrap()
        };
        let once = again(&job(JobState::Queued), AttemptEnd::Failed);
        assert_eq!(
            (once.state, once.due, once.term, once.attempt),
            (JobState::Queued, 1006, 1000, 1)
        );
        let twice = again(&once, AttemptEnd::TimedOut);
        assert_eq!((twice.state, twice.attempts.len()), (JobState::Dead, 2));
        let mut lost = job(JobState::Queued);
        for _ in 0..LOST_MAX {
            lost = again(&lost, AttemptEnd::Lost);
            assert_eq!((lost.state, lost.failures), (JobState::Queued, 0));
        }
        assert_eq!(again(&lost, AttemptEnd::Lost).state, JobState::Dead);
        assert_eq!(next_record(&twice, &Transition::Revived, 7).unwrap().failures, 0);
    }

    #[test]
    fn after_a_batch_that_failed_a_job_runs_alone_with_all_its_retries() {
        let claimed = Transition::Claimed { holder: "h".into(), lease: 9 };
        let after = |record: &JobRecord, end| {
            next_record(&next_record(record, &claimed, 5).unwrap(), &ended(end), 6).unwrap()
        };
        let released = after(&job(JobState::Queued), AttemptEnd::Released);
        assert!(!runs_alone(&released));
        let failed = after(&released, AttemptEnd::BatchFailed);
        assert_eq!(
            (failed.state, failed.term, failed.failures, failed.losses),
            (JobState::Queued, 0, 0, 0)
        );
        assert!(runs_alone(&failed));
        for end in [AttemptEnd::Failed, AttemptEnd::Lost, AttemptEnd::NoRoom] {
            assert!(runs_alone(&after(&job(JobState::Queued), end)), "{end:?}");
        }
    }

    #[test]
    fn the_wait_doubles_to_a_bound() {
        assert_eq!(backoff(1, 0.0), Duration::from_secs(1));
        assert_eq!(backoff(3, 0.0), Duration::from_secs(4));
        assert_eq!(backoff(40, 0.0), BACKOFF_MAX);
        assert_eq!(backoff(1, 1.0), Duration::from_millis(750));
    }

    #[test]
    fn a_run_of_a_source_is_not_revived_once_a_later_one_has_begun() {
        let ended = JobRecord { ended: Some(3), ..job(JobState::Dead) };
        let superseded = next_record(&ended, &Transition::Superseded, 5).unwrap();
        assert!(superseded.superseded && superseded.ended == Some(3) && !superseded.outbox);
        for happening in [Transition::Revived, Transition::Superseded] {
            next_record(&superseded, &happening, 6).unwrap_err();
        }
    }

    #[test]
    fn a_cancelled_job_is_not_tried_again() {
        let mut running = job(JobState::Running);
        running.cancel = true;
        assert_eq!(
            next_record(&running, &ended(AttemptEnd::Failed), 5).unwrap().state,
            JobState::Cancelled
        );
    }
}
