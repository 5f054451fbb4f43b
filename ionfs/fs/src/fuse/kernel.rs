//! What answers the kernel: the state of one mount, and work that takes its time.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fuser::{FileHandle, INodeNo};
use ion_system::patience::with_progress_deadline;
use tokio::runtime::Handle as Runtime;

use super::first::FirstRead;
use super::handles::Handles;
use super::requests::Requests;
use crate::answer::Answer;
use crate::tree::ListedDirectory;
use crate::{Errno, Ino, Result, Tree};

/// How long a request may take beyond the deadline of the commit or the read that it waits for.
pub(super) const MARGIN: Duration = Duration::from_secs(10);

/// Answers the kernel's requests for one mount.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(super) mount: Arc<MountState>,
}

/// The state of one mount.
#[derive(Debug)]
pub(super) struct MountState {
    pub(super) tree: Arc<Tree>,
    pub(super) runtime: Runtime,
    pub(super) handles: Mutex<Handles>,
    pub(super) next_handle: AtomicU64,
    pub(super) first_read: FirstRead,
    pub(super) requests: Requests,
}

impl Kernel {
    pub(crate) fn new(tree: Arc<Tree>, runtime: Runtime) -> Self {
        let first_read = FirstRead::of(&tree);
        let (handles, next_handle) = (Mutex::default(), AtomicU64::new(1));
        let requests = Requests::of(&tree.daemon().metrics);
        let mount = MountState { tree, runtime, handles, next_handle, first_read, requests };
        Self { mount: Arc::new(mount) }
    }

    /// Passes an answer that may wait for a read of `ino` to `reply`: at once, or from a task. After
    /// `deadline` the outcome is EIO, and the read is recorded as failed.
    pub(super) fn answer_read<T: Send + 'static>(
        &self,
        ino: Ino,
        deadline: Duration,
        answer: Answer<T>,
        reply: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        let work = match answer {
            Answer::Now(outcome) => return reply(outcome),
            Answer::Later(work) => work,
        };
        let tree = self.mount.tree.clone();
        self.mount.runtime.spawn(async move {
            let in_time = async {
                let outcome = tokio::time::timeout(deadline, work).await;
                outcome.unwrap_or_else(|_| Err(tree.read_unanswered(ino)))
            };
            reply(tree.unless_stopped(in_time).await);
        });
    }

    /// Like [`Kernel::answer_read`], for an answer that may commit an event or wait for an upload:
    /// the deadline begins again while bytes move. The commit has a deadline of its own; this one
    /// only catches work that hangs.
    pub(super) fn answer_commit<T: Send + 'static>(
        &self,
        answer: Answer<T>,
        reply: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        let work = match answer {
            Answer::Now(outcome) => return reply(outcome),
            Answer::Later(work) => work,
        };
        let tree = self.mount.tree.clone();
        let limit = tree.daemon().settings.commit_deadline + MARGIN;
        self.mount.runtime.spawn(async move {
            let moved = || tree.bytes_moved();
            let work = async { with_progress_deadline(limit, moved, work).await.unwrap_or(Err(Errno::IO)) };
            reply(tree.unless_stopped(work).await);
        });
    }

    /// Answers a request for a directory's names.
    pub(super) fn list(
        &self,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: impl FnOnce(&Tree, Result<ListedDirectory>) + Send + 'static,
    ) {
        let tree = self.mount.tree.clone();
        let answer = match self.mount.handle(fh) {
            Ok(handle) => tree.list(ino.0, &handle.open, offset),
            Err(errno) => Answer::Now(Err(errno)),
        };
        self.answer_read(ino.0, self.read_deadline(), answer, move |listed| reply(&tree, listed));
    }

    pub(super) fn read_deadline(&self) -> Duration {
        self.mount.tree.daemon().settings.read_deadline
    }
}
