//! What answers the kernel: the state of one mount, and work that takes its time.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fuser::FileHandle;
use ion_system::patience::with_progress_deadline;
use tokio::runtime::Handle as Runtime;

use super::first::FirstRead;
use super::handles::Handles;
use super::requests::Requests;
use crate::view::Listing;
use crate::{Errno, Ino, Result, Tree, is_staged};

/// How long a request may take beyond the deadline of the commit or the read that it waits for.
pub(super) const MARGIN: Duration = Duration::from_secs(10);

/// Answers the kernel's requests for one mount.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(super) shared: Arc<MountState>,
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
        let requests = Requests::of(&tree.daemon.metrics);
        let shared = MountState { tree, runtime, handles, next_handle, first_read, requests };
        Self { shared: Arc::new(shared) }
    }

    /// Runs `work`, which reads from `ino`, in a task and passes its outcome to `reply`. After
    /// `deadline` the outcome is EIO, and the read is recorded as failed.
    pub(super) fn later<T, F, L>(
        &self,
        ino: Ino,
        deadline: Duration,
        work: F,
        reply: impl FnOnce(Result<T>) + Send + 'static,
    ) where
        T: Send + 'static,
        F: FnOnce(Arc<MountState>) -> L,
        L: Future<Output = Result<T>> + Send + 'static,
    {
        let (shared, work) = (self.shared.clone(), work(self.shared.clone()));
        self.shared.runtime.spawn(async move {
            let in_time = async {
                let outcome = tokio::time::timeout(deadline, work).await;
                outcome.unwrap_or_else(|_| Err(shared.tree.read_unanswered(ino)))
            };
            reply(shared.unless_stopped(in_time).await);
        });
    }

    /// Like [`Kernel::later`], for work that may commit an event or wait for an upload: the
    /// deadline begins again while bytes move. The commit has a deadline of its own; this one only
    /// catches work that hangs.
    pub(super) fn patiently<T, F, L>(&self, work: F, reply: impl FnOnce(Result<T>) + Send + 'static)
    where
        T: Send + 'static,
        F: FnOnce(Arc<MountState>) -> L,
        L: Future<Output = Result<T>> + Send + 'static,
    {
        let (shared, work) = (self.shared.clone(), work(self.shared.clone()));
        let limit = shared.tree.daemon.settings.commit_deadline + MARGIN;
        self.shared.runtime.spawn(async move {
            let moved = || shared.tree.output.as_ref().map_or(0, |output| output.bytes_moved());
            let work = async {
                with_progress_deadline(limit, moved, work).await.unwrap_or(Err(Errno::IO))
            };
            reply(shared.unless_stopped(work).await);
        });
    }

    pub(super) fn read_deadline(&self) -> Duration {
        self.shared.tree.daemon.settings.read_deadline
    }

    /// Answers a request for a directory's names: below `out/` at once; elsewhere in a task, once
    /// the directory is listed.
    pub(super) fn list(
        &self,
        ino: Ino,
        fh: FileHandle,
        offset: u64,
        answer: impl FnOnce(&Tree, Result<Option<Listing>>) + Send + 'static,
    ) {
        if is_staged(ino) {
            return answer(&self.shared.tree, Ok(None));
        }
        let tree = self.shared.tree.clone();
        let work = move |shared: Arc<MountState>| async move { shared.listing(fh, offset).await };
        self.later(ino, self.read_deadline(), work, move |listing| answer(&tree, listing));
    }

    /// Returns the output for an operation that changes something at `ino`, or EROFS outside
    /// `out/`.
    pub(super) fn output_at(&self, ino: Ino) -> Result<&Arc<crate::output::Output>> {
        if is_staged(ino) { self.shared.tree.output() } else { Err(Errno::ROFS) }
    }
}

impl MountState {
    /// Awaits `work`. Returns EIO when the job is ended by force.
    pub(super) async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        match &self.tree.output {
            Some(output) => output.unless_stopped(work).await,
            None => work.await,
        }
    }
}
