//! Files whose last writer is gone: event files are decided (committed, refused or left alone), and
//! data files are stored ahead of their event.
//!
//! A module may close hundreds of thousands of files faster than any store takes them. So a file
//! that waits is only an inode number in a queue, not a task. A few workers take the numbers, and
//! end when none is left.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::super::Ino;
use super::super::eventfile::DecisionTrigger;
use super::Output;

/// The most event files of one job that are decided at the same time because their last writer is
/// gone.
const DECIDERS_MAX: usize = 16;

/// The most files of one job that wait for an upload permit at the same time. All jobs together get
/// fewer permits than they ask for.
const STORERS_MAX: usize = 4;

/// How long a closed file rests before it is stored ahead of its event. A file that lives for less,
/// as most temporary files do, is never stored; a longer time would shorten the head start of the
/// other files.
const SETTLES: Duration = Duration::from_millis(100);

/// The queues of closed files, and the number of workers on each queue.
#[derive(Debug, Default)]
pub(super) struct ClosedFiles(Mutex<UploadQueues>);

#[derive(Debug, Default)]
struct UploadQueues {
    decide: VecDeque<Ino>,
    deciders: usize,
    /// Each file with the time from which it can be stored.
    store: VecDeque<(Instant, Ino)>,
    storers: usize,
}

/// One piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClosedWork {
    Decide(Ino),
    /// Store the file, but not before this time.
    Store(Instant, Ino),
}

/// The kind of work that a worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UploadWorker {
    Decider,
    Storer,
}

impl ClosedFiles {
    fn with<T>(&self, work: impl FnOnce(&mut UploadQueues) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Queues an event file, whose content is final.
    pub(super) fn to_decide(&self, ino: Ino) {
        self.with(|queues| queues.decide.push_back(ino));
    }

    /// Queues a data file, whose content can be stored.
    pub(super) fn to_store(&self, ino: Ino) {
        self.with(|queues| queues.store.push_back((Instant::now() + SETTLES, ino)));
    }

    /// Returns one more worker to start, if there is work for it and the number of workers is below
    /// its limit.
    fn hire(&self) -> Option<UploadWorker> {
        self.with(|queues| {
            if queues.decide.len() > queues.deciders && queues.deciders < DECIDERS_MAX {
                queues.deciders += 1;
                return Some(UploadWorker::Decider);
            }
            if queues.store.len() > queues.storers && queues.storers < STORERS_MAX {
                queues.storers += 1;
                return Some(UploadWorker::Storer);
            }
            None
        })
    }

    /// Returns a worker's next piece of work. None: nothing is left, and the worker ends.
    fn next(&self, worker: UploadWorker) -> Option<ClosedWork> {
        self.with(|queues| match worker {
            UploadWorker::Decider => {
                let next = queues.decide.pop_front().map(ClosedWork::Decide);
                queues.deciders -= usize::from(next.is_none());
                next
            }
            UploadWorker::Storer => {
                let next = queues.store.pop_front().map(|(at, ino)| ClosedWork::Store(at, ino));
                queues.storers -= usize::from(next.is_none());
                next
            }
        })
    }
}

impl Output {
    /// Starts workers for the work that closed files have left to do.
    pub(super) fn work_off_closed(self: &Arc<Self>) {
        while let Some(worker) = self.closed.hire() {
            let this = self.clone();
            self.tasks.spawn(async move {
                while let Some(work) = this.closed.next(worker) {
                    let done = async {
                        this.do_closed(work).await;
                        Ok(())
                    };
                    // If the job was ended by force, the rest is only taken from the queue.
                    let _ = this.tasks.unless_stopped(done).await;
                }
            });
        }
    }

    async fn do_closed(&self, work: ClosedWork) {
        match work {
            // No caller receives the errno; the rejection is recorded.
            ClosedWork::Decide(ino) => drop(self.decide(ino, DecisionTrigger::Final).await),
            ClosedWork::Store(at, ino) => {
                tokio::time::sleep_until(at).await;
                if let Err(refusal) = self.upload_in_background(ino).await {
                    tracing::debug!(%refusal, "a file was not stored ahead; its event will try \
                                               again");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_work_off_many_and_end_when_nothing_is_left() {
        let closed = ClosedFiles::default();
        for ino in 0..100_000 {
            closed.to_store(ino);
        }
        closed.to_decide(7);
        let hired: Vec<UploadWorker> = std::iter::from_fn(|| closed.hire()).collect();
        assert_eq!(
            hired.iter().filter(|worker| **worker == UploadWorker::Storer).count(),
            STORERS_MAX
        );
        assert_eq!(hired.iter().filter(|worker| **worker == UploadWorker::Decider).count(), 1);
        let mut done: Vec<ClosedWork> = Vec::new();
        for worker in hired {
            done.extend(std::iter::from_fn(|| closed.next(worker)));
        }
        assert_eq!(done.len(), 100_001);
        assert_eq!(closed.hire(), None);
        closed.to_decide(8);
        assert_eq!(closed.hire(), Some(UploadWorker::Decider), "a worker that ended is replaced");
    }
}
