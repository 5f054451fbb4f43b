//! What answers the kernel: the state of one mount, answers that take their time, and the replies
//! that open a file or hand out an inode.

use std::sync::Arc;
use std::time::Duration;

use fuser::{FileHandle, FopenFlags, Generation, INodeNo, ReplyEntry, ReplyOpen};
use ion_system::patience::with_progress_deadline;
use tokio::runtime::Handle as Runtime;

use super::first::FirstRead;
use super::handles::{ByteMover, Handles};
use super::reply::{InodeNumbers, fuse_errno};
use super::requests::Requests;
use crate::answer::Answer;
use crate::open::{KernelCaching, OpenInode};
use crate::output::CloseReport;
use crate::tree::ListedDirectory;
use crate::{Attr, Errno, Ino, Result, Tree};

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
    pub(super) handles: Handles,
    pub(super) first_read: FirstRead,
    pub(super) requests: Requests,
    pub(super) numbers: InodeNumbers,
}

impl Kernel {
    pub(crate) fn new(tree: Arc<Tree>, runtime: Runtime) -> Self {
        Self::with_numbers(tree, runtime, InodeNumbers::default())
    }

    /// Answers for a tree whose inodes have these numbers.
    pub(super) fn with_numbers(tree: Arc<Tree>, runtime: Runtime, numbers: InodeNumbers) -> Self {
        let first_read = FirstRead::new(&tree);
        let handles = Handles::new(tree.clone());
        let requests = Requests::new(&tree.daemon().metrics);
        let mount = MountState { tree, runtime, handles, first_read, requests, numbers };
        Self { mount: Arc::new(mount) }
    }

    /// Passes an answer that may wait for a read of `ino` to `reply`: at once, or from a task.
    /// After `deadline` the outcome is EIO, and the read is recorded as failed.
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
        let answering = tree.answers().token();
        self.mount.runtime.spawn(async move {
            let moved = || tree.bytes_moved();
            let work = async {
                with_progress_deadline(limit, moved, work).await.unwrap_or(Err(Errno::IO))
            };
            reply(tree.unless_stopped(work).await);
            drop(answering);
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
        let answer = match self.mount.handles.get(fh) {
            Ok(handle) => tree.list(ino.0, &handle.open, offset),
            Err(errno) => Answer::Now(Err(errno)),
        };
        self.answer_read(ino.0, self.read_deadline(), answer, move |listed| reply(&tree, listed));
    }

    pub(super) fn read_deadline(&self) -> Duration {
        self.mount.tree.daemon().settings.read_deadline
    }
}

impl MountState {
    /// Replies with a file that was opened.
    pub(super) fn reply_opened(&self, ino: INodeNo, open: OpenInode, reply: ReplyOpen) {
        let (mover, id) =
            match self.handles.choose_mover(ino, &open, |file| reply.open_backing(file)) {
                Ok(chosen) => chosen,
                Err(errno) => {
                    self.tree.release(&open);
                    return reply.error(fuse_errno(errno));
                }
            };
        let flags = self.open_flags(ino, &open);
        // The daemon will see no read of the file.
        if mover == ByteMover::Passed {
            self.tree.begin_read(ino.0, &open);
        }
        let number = self.handles.add(ino, open, Some(mover));
        match id {
            Some(id) => {
                reply.opened_passthrough(number, FopenFlags::empty(), &id);
                // The kernel answers the reads that follow.
                self.first_read.note_answer();
            }
            None => reply.opened(number, flags),
        }
    }

    /// Returns what the kernel may cache of a file, and whether it is to report each close.
    pub(super) fn open_flags(&self, ino: INodeNo, open: &OpenInode) -> FopenFlags {
        let caching = match self.tree.kernel_caching(ino.0, open) {
            KernelCaching::Pages => FopenFlags::FOPEN_KEEP_CACHE,
            KernelCaching::NoPages => FopenFlags::FOPEN_DIRECT_IO,
            KernelCaching::Names => FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR,
            KernelCaching::NoNames => FopenFlags::empty(),
        };
        match open.close_report() {
            CloseReport::Flushes => caching,
            CloseReport::Releases => caching | FopenFlags::FOPEN_NOFLUSH,
        }
    }

    /// Replies with an inode. The kernel knows the inode from now on until it forgets it.
    pub(super) fn reply_entry(&self, reply: ReplyEntry, outcome: Result<Attr>) {
        match outcome {
            Ok(attr) => {
                self.tree.remember_entry(attr.ino);
                reply.entry(&attr.ttl, &self.numbers.file_attr(&attr), Generation(0));
            }
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }
}
