//! Runs a batch: one process for several jobs of a module, each with a tree of its own
//! (DESIGN.md section 10).
//!
//! # How it works
//! The process finds the tree of each job in a directory of the job's number. Everything else of a
//! job stays its own: its record, its commits, its outcome. Its output is not: what the process
//! writes to stdout and stderr is the log of the batch's first job, and the other attempts name it.
//!
//! # What a bad end means
//! When the process ends badly, nobody knows which job is at fault, and which of them the module had
//! finished. So each is tried again alone, which finds the culprit; what they have committed is not
//! committed twice.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use ion_fs::batch::{BatchJobEnd, BatchTree};
use ion_fs::job::{JobSpec, TreeOutcome};
use ion_jobs::job::AttemptOutcome;
use ion_jobs::pipeline::Module;
use ion_model::clock::{self, Millis};
use ion_model::errors::error_chain;
use ion_model::event::Context;
use ion_model::record::{AttemptEnd, CommitMode};
use ion_model::usage::AttemptUsage;
use ion_plane::node::job_dir;
use tokio::sync::{oneshot, watch};
use tracing::Instrument as _;

use super::super::attempt::{
    ProcessEnd, decide_outcome, mask_outcome, older_conventions, origin, wait_for_stop,
};
use super::super::log::{JobLog, no_log_outcome};
use super::super::{BatchAttempt, BatchStart, StopReason};
use super::{
    LocalExecutor, ProcessRequest, RanProcess, fence_of_holder, tree_users, unopened_outcome,
};
use crate::sandbox::{ProcessExit, ProcessUsage};

/// The variable that tells a module how many jobs its batch has.
const BATCH_VARIABLE: &str = "ION_BATCH";

/// The most jobs of a batch whose reasons its log names.
const NOTED_MAX: usize = 20;

/// The stops of a batch.
struct BatchStops {
    /// Why each job was stopped, once it was.
    reasons: Vec<OnceLock<StopReason>>,
    /// Ends the process.
    process: watch::Sender<Option<StopReason>>,
}

/// The ends of the attempts of a batch.
struct EndedBatch {
    /// The outcomes, in the order of the jobs.
    outcomes: Vec<AttemptOutcome>,
    /// Whether there was a tree of each job.
    had_tree: Vec<bool>,
}

impl LocalExecutor {
    /// Runs the attempts of a batch to their ends. Returns their outcomes in the same order.
    pub async fn run_batch_to_end(&self, batch: BatchStart) -> Vec<AttemptOutcome> {
        let BatchStart { module, attempts, running } = batch;
        let Some(first) = attempts.first() else { return vec![] };
        let (home, plane) = (&self.node.settings.home, &self.node.plane);
        let log = match JobLog::begin(home, &first.job.id, first.job.attempt) {
            Ok(log) => log,
            Err(error) => return attempts.iter().map(|_| no_log_outcome(&error)).collect(),
        };
        let started = Arc::new(OnceLock::new());
        let running = note_start(running, started.clone());
        let EndedBatch { mut outcomes, had_tree } =
            self.run_batch_process(&module, &attempts, running, &log).await;
        note_reasons(&log, &attempts, &outcomes);
        let context = Context { name: module.name.clone(), ..first.event.context.clone() };
        let succeeded = outcomes.iter().all(|outcome| outcome.end == AttemptEnd::Succeeded);
        let stored = log.store_unless_empty(plane, &context, succeeded).await;
        for outcome in &mut outcomes {
            outcome.log.clone_from(&stored);
            outcome.process_started = started.get().copied();
        }
        for (number, (BatchAttempt { job, .. }, had_tree)) in
            attempts.iter().zip(had_tree).enumerate()
        {
            // The first job's folder holds the log.
            if !had_tree && number > 0 {
                continue;
            }
            let folder = job_dir(home, &job.id, job.attempt);
            if let Err(error) = tokio::fs::remove_dir_all(&folder).await {
                let folder = folder.display();
                tracing::warn!(%folder, %error, "a job's folder could not be removed");
            }
        }
        outcomes
    }

    /// Runs the process of a batch to its end, and decides what that means for each job.
    async fn run_batch_process(
        &self,
        module: &Module,
        attempts: &[BatchAttempt],
        running: oneshot::Sender<()>,
        log: &JobLog,
    ) -> EndedBatch {
        let spec = |BatchAttempt { job, event, .. }: &BatchAttempt| JobSpec {
            origin: origin(job, module, event, fence_of_holder(job)),
            event: event.clone(),
            gathered: None,
            older: older_conventions(module),
            users: tree_users(module),
        };
        let limits = module.limits.apply_to(self.node.settings.limits);
        let specs = attempts.iter().map(spec).collect();
        let tree = Arc::new(BatchTree::new(self.node.clone(), specs, limits));
        let stops = BatchStops {
            reasons: attempts.iter().map(|_| OnceLock::new()).collect(),
            process: watch::Sender::new(None),
        };
        let BatchAttempt { job: first, event, .. } = &attempts[0];
        // No source has secrets of its own here: a module that takes batches has no secret
        // parameter.
        let secrets = match self.read_secrets(module, event).await {
            Ok(secrets) => secrets,
            Err(error) => {
                let failed = || AttemptOutcome::failed(error_chain(&error));
                let outcomes = attempts.iter().map(|_| failed()).collect();
                return EndedBatch { outcomes, had_tree: vec![false; attempts.len()] };
            }
        };
        let request = ProcessRequest {
            module,
            job: (&first.id, first.attempt),
            variables: vec![(BATCH_VARIABLE.to_owned(), attempts.len().to_string())],
            processes: limits.processes,
            root: tree.clone().into(),
            secrets: &secrets,
            running,
        };
        let RanProcess { end: ran, usage, exit } = tokio::select! {
            ran = self.run_process(request, stops.process.subscribe(), log) => ran,
            never = stops.follow(attempts, &tree) => match never {},
        };
        let ends = tree.finish().instrument(exit).await;
        let had_tree = ends.iter().map(|end| !matches!(end, BatchJobEnd::Untouched)).collect();
        let (jobs, mask) = (ends.len(), secrets.mask());
        let decide = |(number, end): (usize, BatchJobEnd)| {
            let stopped = stops.reasons[number].get().copied();
            let mut outcome = decide_batch_outcome(&ran, stopped, end, jobs, module.commit);
            if let Some(used) = usage {
                let share = share_of(used, number, jobs);
                outcome.usage = outcome.usage.plus_concurrent(share);
            }
            if let Some(mask) = &mask {
                mask_outcome(&mut outcome, mask);
            }
            outcome
        };
        EndedBatch { outcomes: ends.into_iter().enumerate().map(decide).collect(), had_tree }
    }
}

impl BatchStops {
    /// Stops each job that is asked to stop, and the process once no other job is left in it, or
    /// when the dispatcher ends. Never returns.
    async fn follow(&self, attempts: &[BatchAttempt], tree: &BatchTree) -> Infallible {
        let wait = async |(number, attempt): (usize, &BatchAttempt)| {
            (number, wait_for_stop(&mut attempt.stop.clone()).await)
        };
        let mut waits: FuturesUnordered<_> = attempts.iter().enumerate().map(wait).collect();
        while let Some((number, why)) = waits.next().await {
            let _ = self.reasons[number].set(why);
            let is_last = self.reasons.iter().all(|reason| reason.get().is_some());
            if is_last || why == StopReason::Shutdown {
                self.process.send_replace(Some(why));
            } else {
                tree.stop_job(number);
            }
        }
        std::future::pending().await
    }
}

/// Returns a sender for the executor, which notes in `started` when the process began and passes the
/// word on.
fn note_start(running: oneshot::Sender<()>, started: Arc<OnceLock<Millis>>) -> oneshot::Sender<()> {
    let (sender, receiver) = oneshot::channel();
    tokio::spawn(async move {
        if receiver.await.is_ok() {
            let _ = started.set(clock::now());
            let _ = running.send(());
        }
    });
    sender
}

/// Returns how one job of a batch ended: by the end of the process, by why the job itself was
/// stopped, if it was, and by what happened in its tree.
fn decide_batch_outcome(
    ran: &ProcessEnd,
    stopped: Option<StopReason>,
    end: BatchJobEnd,
    jobs: usize,
    commit: CommitMode,
) -> AttemptOutcome {
    let tree = match end {
        BatchJobEnd::Ended(tree) => tree,
        BatchJobEnd::Unopened(error) if stopped.is_none() => {
            let unopened = unopened_outcome(&error);
            return match unopened.end {
                // Alone, the job's attempt waits for the store before it begins.
                AttemptEnd::Released => AttemptOutcome { end: AttemptEnd::BatchFailed, ..unopened },
                _ => unopened,
            };
        }
        BatchJobEnd::Untouched | BatchJobEnd::Unopened(_) => TreeOutcome::default(),
    };
    if let Some(why) = stopped {
        return decide_outcome(ProcessEnd::Stopped(why), &tree, commit);
    }
    let alone = decide_outcome(ran.clone(), &tree, commit);
    let is_known = tree.failed.is_some() || alone.end == AttemptEnd::NoRoom;
    let may_be_anothers = match ran {
        ProcessEnd::Exited(ProcessExit::Code(0))
        | ProcessEnd::Done(_)
        | ProcessEnd::CannotRun(_)
        | ProcessEnd::NoRoom(_) => false,
        ProcessEnd::Exited(_)
        | ProcessEnd::Undone
        | ProcessEnd::TimedOut(_)
        | ProcessEnd::Stopped(_)
        | ProcessEnd::NotStarted(_)
        | ProcessEnd::Vanished(_) => true,
    };
    if jobs == 1 || is_known || !may_be_anothers {
        return alone;
    }
    let reason = alone.reason.as_deref().unwrap_or_default();
    let reason = format!("{reason}; its process ran {jobs} jobs, so this one runs alone next");
    AttemptOutcome { end: AttemptEnd::BatchFailed, reason: Some(reason), ..alone }
}

/// Returns the part of what a process used that counts as one job's: an equal share of its processor
/// time, so that the shares add up, and all of its memory.
fn share_of(used: ProcessUsage, number: usize, jobs: usize) -> AttemptUsage {
    let whole = used.to_attempt_usage();
    let share_up_to = |all: u64, number: usize| all * number as u64 / jobs as u64;
    let share = |all| share_up_to(all, number + 1) - share_up_to(all, number);
    AttemptUsage { cpu_ms: whole.cpu_ms.map(share), ..whole }
}

/// Adds to the log why jobs of the batch did not succeed: people look into the log first.
fn note_reasons(log: &JobLog, attempts: &[BatchAttempt], outcomes: &[AttemptOutcome]) {
    let reasons = attempts.iter().zip(outcomes).enumerate();
    let reasons = reasons.filter_map(|(number, (attempt, outcome))| {
        Some((number, &attempt.job.id, outcome.reason.as_deref()?))
    });
    let reasons: Vec<_> = reasons.collect();
    for (number, job, reason) in reasons.iter().take(NOTED_MAX) {
        match outcomes.len() {
            1 => log.note(reason),
            _ => log.note(&format!("{number}: job {job}: {reason}")),
        }
    }
    if let more @ 1.. = reasons.len().saturating_sub(NOTED_MAX) {
        log.note(&format!("and {more} more jobs; `ion job get ID` says why of each"));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn decided(ran: &ProcessEnd, tree: TreeOutcome, jobs: usize) -> AttemptOutcome {
        decide_batch_outcome(ran, None, BatchJobEnd::Ended(tree), jobs, CommitMode::OnClose)
    }

    #[test]
    fn a_bad_end_of_a_batch_is_nobodys_failure_until_each_ran_alone() {
        let exited = ProcessEnd::Exited(ProcessExit::Code(3));
        let bad = [
            exited.clone(),
            ProcessEnd::Exited(ProcessExit::Signal(11)),
            ProcessEnd::TimedOut(Duration::from_secs(9)),
            ProcessEnd::Vanished("gone".into()),
        ];
        for ran in &bad {
            let outcome = decided(ran, TreeOutcome::default(), 100);
            assert_eq!(outcome.end, AttemptEnd::BatchFailed, "{ran:?}");
            assert!(outcome.reason.unwrap().contains("ran 100 jobs"), "{ran:?}");
            let alone = decided(ran, TreeOutcome::default(), 1);
            assert_ne!(alone.end, AttemptEnd::BatchFailed, "{ran:?}");
        }
        let said = TreeOutcome { failed: Some("no face".into()), ..TreeOutcome::default() };
        let failed = decided(&exited, said.clone(), 100);
        assert_eq!(failed.end, AttemptEnd::Failed);
        assert_eq!(failed.reason.as_deref(), Some("no face; exit status 3"));
        let well = ProcessEnd::Exited(ProcessExit::Code(0));
        let failed = decided(&well, said, 100);
        assert_eq!((failed.end, failed.reason.as_deref()), (AttemptEnd::Failed, Some("no face")));
        assert_eq!(decided(&well, TreeOutcome::default(), 100).end, AttemptEnd::Succeeded);
        let cannot = ProcessEnd::CannotRun("no program".into());
        assert_eq!(decided(&cannot, TreeOutcome::default(), 100).end, AttemptEnd::CannotRun);
    }

    #[test]
    fn a_stopped_job_ends_as_it_was_stopped_whatever_its_process_did() {
        for ran in [ProcessEnd::Exited(ProcessExit::Code(0)), ProcessEnd::Vanished("gone".into())] {
            let end = |why| {
                let end = BatchJobEnd::Ended(TreeOutcome::default());
                decide_batch_outcome(&ran, Some(why), end, 9, CommitMode::OnSuccess).end
            };
            assert_eq!(end(StopReason::Cancel), AttemptEnd::Cancelled);
            assert_eq!(end(StopReason::Shutdown), AttemptEnd::Released);
            assert_eq!(end(StopReason::LostLease), AttemptEnd::Lost);
        }
    }

    #[test]
    fn the_shares_of_a_process_add_up() {
        let used = ProcessUsage { cpu_micros: 1_234_000, peak_bytes: 5 };
        let shares: Vec<_> = (0..100).map(|number| share_of(used, number, 100)).collect();
        assert_eq!(shares.iter().filter_map(|share| share.cpu_ms).sum::<u64>(), 1234);
        assert!(shares.iter().all(|share| share.peak_bytes == Some(5)));
    }
}
