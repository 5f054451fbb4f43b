//! What all executors share about an attempt: who commits, in which environment it runs, and what
//! its end means.

use std::path::Path;
use std::time::Duration;

use ion_fs::job::{OlderConventions, TreeOutcome, ValueFileNames};
use ion_jobs::job::AttemptOutcome;
use ion_jobs::pipeline::{ANY_TYPE, Module, ModuleApi};
use ion_model::event::Event;
use ion_model::record::{AttemptEnd, CommitMode, JobRecord, RefusedFile, RefusedFiles};
use ion_model::secret::SECRETS_VARIABLE;
use ion_plane::commit::{Fence, Origin, Rejection};
use tokio::sync::watch;

use super::sidecar::CompletionReport;
use super::{StopReason, rejection_words};
use crate::sandbox::{self, ProcessExit};
use crate::secrets::SecretMask;

/// The most failed reads, and the most refused event files, in the record of one attempt. A job's
/// document holds all its attempts, and a store takes 2 MiB at most; the job's own tree lists more.
const RECORDED_MAX: usize = 20;

/// Returns who commits: this job's attempt, as long as `fence` holds.
pub(super) fn origin(job: &JobRecord, module: &Module, event: &Event, fence: Fence) -> Origin {
    Origin {
        job_id: job.id.clone(),
        attempt: job.attempt,
        fence,
        module: module.name.clone(),
        emits: (!module.emits.iter().any(|one| one == ANY_TYPE)).then(|| module.emits.clone()),
        commit: module.commit,
        parent: event.context.clone(),
    }
}

/// Returns which conventions of older Ion a module asks for.
pub(super) fn older_conventions(module: &Module) -> OlderConventions {
    let names = match module.api {
        ModuleApi::None => ValueFileNames::Current,
        ModuleApi::Sidecar => ValueFileNames::WithMetaJson,
    };
    OlderConventions { names, urls: module.urls }
}

/// Returns the variables that tell a module which attempt it runs.
pub(super) fn attempt_variables(job: &JobRecord, event: &Event) -> Vec<(String, String)> {
    [
        ("ION_EVENT_ID", event.id.to_string()),
        ("ION_CORRELATION_ID", event.context.correlation_id.to_string()),
        ("ION_ATTEMPT", job.attempt.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// Returns a module's whole environment (DESIGN.md section 2). `own` are the variables that tell it
/// what it runs, and `secrets` is the folder of its secrets, if it has any.
pub(super) fn environment(
    base: &[(String, String)],
    module: &Module,
    own: Vec<(String, String)>,
    ion_dir: &Path,
    secrets: Option<&Path>,
) -> Vec<(String, String)> {
    let ion_dir = ion_dir.display().to_string();
    let of_tree = [
        ("ION_DIR", ion_dir.clone()),
        ("ION_MODULE", module.name.clone()),
        ("HANDLER_BASE_DIR", ion_dir),
    ];
    let secrets = secrets.map(|folder| (SECRETS_VARIABLE, folder.display().to_string()));
    let of_tree = of_tree.into_iter().chain(secrets);
    let of_tree = of_tree.map(|(name, value)| (name.to_owned(), value));
    base.iter().cloned().chain(module.env.clone()).chain(of_tree).chain(own).collect()
}

/// How the process part of an attempt ended.
#[derive(Clone, Debug)]
pub(super) enum ProcessEnd {
    Exited(ProcessExit),
    /// The module had reported its work done before the process ended, however that ended; the exit
    /// status, if it exited by itself.
    Done(Option<i32>),
    /// It exited with status 0 and had not reported its work done.
    Undone,
    TimedOut(Duration),
    Stopped(StopReason),
    NotStarted(String),
    /// It could not be started, and no retry can start it.
    CannotRun(String),
    /// This machine has no room for one more process.
    NoRoom(String),
    Vanished(String),
}

impl ProcessEnd {
    /// Combines the process's end with the completion that the module had reported before. Work
    /// that was reported done stays done: older Ion had committed by then.
    pub(super) fn with_completion(self, word: CompletionReport) -> Self {
        match (word, self) {
            (CompletionReport::Done, Self::Exited(ProcessExit::Code(code))) => {
                Self::Done(Some(code))
            }
            (
                CompletionReport::Done,
                Self::Exited(_) | Self::TimedOut(_) | Self::Stopped(StopReason::Shutdown),
            ) => Self::Done(None),
            (CompletionReport::NotDone, Self::Exited(ProcessExit::Code(0))) => Self::Undone,
            (_, ran) => ran,
        }
    }
}

/// Waits until the attempt is asked to stop.
pub(super) async fn wait_for_stop(stop: &mut watch::Receiver<Option<StopReason>>) -> StopReason {
    loop {
        if let Some(stop) = *stop.borrow_and_update() {
            return stop;
        }
        if stop.changed().await.is_err() {
            // Every sender is dropped, so no request can come: only the job's own end counts.
            return std::future::pending().await;
        }
    }
}

/// Returns the attempt's end. It succeeds if the exit status is 0, no event was refused, every read
/// was answered, and no limit was exceeded.
pub(super) fn decide_outcome(
    ran: ProcessEnd,
    outcome: &TreeOutcome,
    commit: CommitMode,
) -> AttemptOutcome {
    let exited = matches!(ran, ProcessEnd::Exited(_) | ProcessEnd::Undone);
    let first_refused =
        outcome.rejections.first().map(|first| rejection_words(first, outcome.rejections.len()));
    let (end, exit_code, reason) = match ran {
        ProcessEnd::Exited(ProcessExit::Code(0)) if first_refused.is_none() => {
            (AttemptEnd::Succeeded, Some(0), None)
        }
        ProcessEnd::Exited(ProcessExit::Code(0)) => (AttemptEnd::Failed, Some(0), first_refused),
        // The log has the events that were refused after the work was reported done.
        ProcessEnd::Done(code) => (AttemptEnd::Succeeded, code, None),
        ProcessEnd::Undone => {
            let undone = "it ended and GET /done had not been answered with 200; \"api: sidecar\" \
                          waits for that";
            (AttemptEnd::Failed, Some(0), Some(first_refused.unwrap_or_else(|| undone.into())))
        }
        ProcessEnd::Exited(ProcessExit::Code(code)) => {
            let refused = first_refused.map(|refused| format!("; {refused}")).unwrap_or_default();
            (AttemptEnd::Failed, Some(code), Some(format!("exit status {code}{refused}")))
        }
        ProcessEnd::Exited(ProcessExit::Signal(signal)) => {
            (AttemptEnd::Failed, None, Some(format!("killed by signal {signal}")))
        }
        ProcessEnd::Exited(ProcessExit::OutOfMemory(bytes)) => {
            (AttemptEnd::Failed, None, Some(sandbox::out_of_memory_words(bytes)))
        }
        ProcessEnd::TimedOut(timeout) => (
            AttemptEnd::TimedOut,
            None,
            Some(format!("over its timeout of {}", humantime::format_duration(timeout))),
        ),
        ProcessEnd::Stopped(why) => {
            let AttemptOutcome { end, reason, .. } = stopped_outcome(why);
            (end, None, reason)
        }
        ProcessEnd::NotStarted(reason) => (AttemptEnd::Failed, None, Some(reason)),
        ProcessEnd::CannotRun(reason) => (AttemptEnd::CannotRun, None, Some(reason)),
        ProcessEnd::NoRoom(reason) => (AttemptEnd::NoRoom, None, Some(reason)),
        ProcessEnd::Vanished(reason) => (AttemptEnd::Failed, None, Some(reason)),
    };
    // An exceeded limit stands first in the reason: the other reasons follow from it.
    let (end, reason) = match (&outcome.exceeded, reason) {
        (Some(exceeded), None) if exited => (AttemptEnd::Failed, Some(exceeded.clone())),
        (Some(exceeded), Some(reason)) if exited => (end, Some(format!("{exceeded}; {reason}"))),
        (_, reason) => (end, reason),
    };
    // Work that was reported done before a read failed stays done; all other work may rest on an
    // input that was cut off.
    let (end, reason) = match (outcome.failed_reads.in_words(), reason) {
        (Some(failed), None) if exited => (AttemptEnd::Failed, Some(failed)),
        (Some(failed), Some(reason)) => (end, Some(format!("{failed}; {reason}"))),
        (_, reason) => (end, reason),
    };
    let (end, reason) = match (&outcome.state_problem, reason) {
        (Some(problem), None) => (AttemptEnd::Failed, Some(problem.clone())),
        (_, reason) => (end, reason),
    };
    // What the module itself says of the job stands before how its process ended.
    let (end, reason) = match (&outcome.failed, reason) {
        (Some(failed), None) => (AttemptEnd::Failed, Some(failed.clone())),
        (Some(failed), Some(reason)) => (end, Some(format!("{failed}; {reason}"))),
        (None, reason) => (end, reason),
    };
    // A module that exits well without what it could not write has still succeeded.
    let (end, reason) = match (&outcome.no_room, reason) {
        (Some(no_room), Some(reason))
            if end == AttemptEnd::Failed && outcome.exceeded.is_none() =>
        {
            (AttemptEnd::NoRoom, Some(format!("{no_room}; {reason}")))
        }
        (_, reason) => (end, reason),
    };
    let staged = end == AttemptEnd::Succeeded && commit == CommitMode::OnSuccess;
    let failed_reads = outcome.failed_reads.clone().shortened(RECORDED_MAX);
    let rejected = recorded_refusals(&outcome.rejections);
    AttemptOutcome {
        exit_code,
        reason,
        staged,
        failed_reads,
        rejected,
        usage: outcome.usage,
        left: outcome.left.clone(),
        ..AttemptOutcome::from_end(end)
    }
}

/// Returns the refused event files as the attempt's record keeps them.
fn recorded_refusals(rejections: &[Rejection]) -> RefusedFiles {
    let first = rejections.iter().take(RECORDED_MAX).map(|rejection| RefusedFile {
        name: rejection.name.clone(),
        errno: rejection.errno.to_string(),
        reason: rejection.reason.clone(),
        at: rejection.at,
    });
    let more = rejections.len().saturating_sub(RECORDED_MAX) as u64;
    RefusedFiles { first: first.collect(), more }
}

/// Replaces the values of secrets in what the record keeps of an attempt's end.
pub(super) fn mask_outcome(outcome: &mut AttemptOutcome, mask: &SecretMask) {
    let refused = outcome.rejected.first.iter_mut();
    let texts = refused.flat_map(|file| [&mut file.name, &mut file.reason]);
    for text in texts.chain(&mut outcome.reason) {
        *text = mask.apply(text);
    }
}

/// Returns the end of an attempt that was asked to stop.
pub(super) fn stopped_outcome(why: StopReason) -> AttemptOutcome {
    let (end, reason) = match why {
        StopReason::Cancel => (AttemptEnd::Cancelled, "cancelled"),
        StopReason::Shutdown => (AttemptEnd::Released, "its dispatcher was shut down"),
        StopReason::LostLease => (AttemptEnd::Lost, "another dispatcher took it over"),
    };
    AttemptOutcome { end, ..AttemptOutcome::failed(reason) }
}

#[cfg(test)]
mod tests {
    use ion_model::record::{FailedRead, FailedReads, ReadFailureCause};

    use super::*;

    #[test]
    fn a_failed_read_fails_what_had_not_been_done_before() {
        let read = FailedRead {
            path: "in/data/f".into(),
            blob: Some("k".into()),
            cause: ReadFailureCause::Damaged,
            reason: "block 3 does not match its checksum".into(),
            at: 0,
        };
        let failed_reads = FailedReads { first: vec![read; RECORDED_MAX + 1], more: 5 };
        let outcome = TreeOutcome { failed_reads, ..TreeOutcome::default() };
        let words = "a read of \"in/data/f\" failed: damaged: block 3 does not match its checksum \
                     (and 25 more)";
        let well = decide_outcome(
            ProcessEnd::Exited(ProcessExit::Code(0)),
            &outcome,
            CommitMode::OnSuccess,
        );
        assert_eq!((well.end, well.exit_code, well.staged), (AttemptEnd::Failed, Some(0), false));
        assert_eq!(well.reason.as_deref(), Some(words));
        assert_eq!((well.failed_reads.first.len(), well.failed_reads.more), (RECORDED_MAX, 6));
        let badly =
            decide_outcome(ProcessEnd::Exited(ProcessExit::Code(3)), &outcome, CommitMode::OnClose);
        assert_eq!(badly.reason, Some(format!("{words}; exit status 3")));
        let late = decide_outcome(
            ProcessEnd::TimedOut(Duration::from_secs(1)),
            &outcome,
            CommitMode::OnClose,
        );
        assert_eq!(
            (late.end, late.reason),
            (AttemptEnd::TimedOut, Some(format!("{words}; over its timeout of 1s")))
        );
        let done = decide_outcome(ProcessEnd::Done(Some(0)), &outcome, CommitMode::OnClose);
        assert_eq!((done.end, done.reason), (AttemptEnd::Succeeded, None));
    }
}
