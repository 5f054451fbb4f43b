//! Files whose last writer is gone, and the workers that store them or decide them.
//!
//! A module may close hundreds of thousands of files faster than any store takes them. So a file
//! that waits is only an entry in a queue, not a task. A few workers take the entries, and end when
//! none is left.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::tasks::JobTasks;

/// A queue of closed files, and the number of its workers.
#[derive(Debug)]
pub(super) struct ClosedFiles<T> {
    workers_max: usize,
    state: Mutex<QueueState<T>>,
}

#[derive(Debug)]
struct QueueState<T> {
    waiting: VecDeque<T>,
    workers: usize,
}

impl<T> ClosedFiles<T> {
    /// Makes an empty queue that at most `workers_max` workers empty.
    pub(super) fn new(workers_max: usize) -> Arc<Self> {
        let state = Mutex::new(QueueState { waiting: VecDeque::new(), workers: 0 });
        Arc::new(Self { workers_max, state })
    }

    fn with_state<R>(&self, work: impl FnOnce(&mut QueueState<T>) -> R) -> R {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds a file.
    pub(super) fn add(&self, file: T) {
        self.with_state(|state| state.waiting.push_back(file));
    }

    /// Counts as many more workers as there is work for, within the limit, and returns their
    /// number. The caller must start them.
    fn hire_workers(&self) -> usize {
        self.with_state(|state| {
            let wanted = state.waiting.len().min(self.workers_max);
            let hired = wanted.saturating_sub(state.workers);
            state.workers += hired;
            hired
        })
    }

    /// Returns a worker's next file. None: nothing is left, and the worker ends.
    fn next(&self) -> Option<T> {
        self.with_state(|state| {
            let next = state.waiting.pop_front();
            state.workers -= usize::from(next.is_none());
            next
        })
    }
}

impl<T: Send + 'static> ClosedFiles<T> {
    /// Starts workers, each of which does `work` for one file after the other. If the job was ended
    /// by force, the workers only empty the queue.
    pub(super) fn start_workers<W>(
        self: &Arc<Self>,
        tasks: &JobTasks,
        work: impl Fn(T) -> W + Clone + Send + 'static,
    ) where
        W: Future<Output = ()> + Send,
    {
        for _ in 0..self.hire_workers() {
            let (files, of_job, work) = (self.clone(), tasks.clone(), work.clone());
            tasks.spawn(async move {
                while let Some(file) = files.next() {
                    let done = work(file);
                    let done = async move {
                        done.await;
                        Ok(())
                    };
                    let _ = of_job.unless_stopped(done).await;
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_work_off_many_and_end_when_nothing_is_left() {
        let (store, decide) = (ClosedFiles::new(4), ClosedFiles::new(16));
        for ino in 0..100_000 {
            store.add(ino);
        }
        decide.add(7);
        let hired = (store.hire_workers(), decide.hire_workers());
        assert_eq!(hired.0, 4);
        assert_eq!(hired.1, 1);
        let mut done: Vec<u64> = Vec::new();
        for _ in 0..hired.0 {
            done.extend(std::iter::from_fn(|| store.next()));
        }
        done.extend(std::iter::from_fn(|| decide.next()));
        assert_eq!(done.len(), 100_001);
        assert_eq!((store.hire_workers(), decide.hire_workers()), (0, 0));
        decide.add(8);
        assert_eq!(decide.hire_workers(), 1, "a worker that ended is replaced");
    }
}
