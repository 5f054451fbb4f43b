//! The handles of one mount, and who moves the bytes of each: the daemon or the kernel.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use fuser::{BackingId, FileHandle, FopenFlags, Generation, INodeNo, ReplyEntry, ReplyOpen};

use super::kernel::MountState;
use super::reply::{file_attr, fuse_errno};
use crate::open::{KernelCaching, OpenFile};
use crate::output::CloseReport;
use crate::{Attr, Errno, Result};

#[derive(Debug)]
pub(super) struct OpenHandle {
    /// The inode's number as the kernel knows it.
    pub(super) ino: INodeNo,
    pub(super) open: OpenFile,
    /// None for a directory.
    mover: Option<ByteMover>,
}

/// Who moves an open file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ByteMover {
    /// The daemon, through the kernel's page cache.
    Cached,
    /// The kernel, from the backing file.
    Passed,
}

/// The open handles of one inode, as the kernel numbers it. While one handle uses passthrough, the
/// kernel fails an open without passthrough with EIO. So only a file that no process can write to
/// is ever passed through: a blob.
#[derive(Debug, Default)]
struct InodeOpens {
    cached: u32,
    passed: u32,
    backing: Option<Arc<BackingId>>,
}

#[derive(Debug, Default)]
pub(super) struct Handles {
    by_number: HashMap<u64, Arc<OpenHandle>>,
    of_inodes: HashMap<INodeNo, InodeOpens>,
}

impl MountState {
    fn handles(&self) -> MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns EMFILE if no further file may be open. Each open file takes a descriptor of the
    /// daemon, which all jobs share.
    pub(super) fn may_open(&self) -> Result<()> {
        let most = self.tree.open_files_max();
        if (self.handles().by_number.len() as u64) < most { Ok(()) } else { Err(Errno::MFILE) }
    }

    pub(super) fn handle(&self, number: FileHandle) -> Result<Arc<OpenHandle>> {
        self.handles().by_number.get(&number.0).cloned().ok_or(Errno::BADF)
    }

    pub(super) fn add(&self, ino: INodeNo, open: OpenFile, mover: Option<ByteMover>) -> FileHandle {
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.handles().by_number.insert(number, Arc::new(OpenHandle { ino, open, mover }));
        FileHandle(number)
    }

    /// Decides who moves the bytes of a file that is being opened, and counts the open.
    pub(super) fn choose_mover(
        &self,
        ino: INodeNo,
        open: &OpenFile,
        open_backing: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Result<(ByteMover, Option<Arc<BackingId>>)> {
        let daemon = self.tree.daemon();
        let whole = open.whole_blob();
        let mut handles = self.handles();
        let opens = handles.of_inodes.entry(ino).or_default();
        if let Some(id) = opens.backing.clone() {
            if !self.tree.may_share_blob(open)? {
                return Err(Errno::TXTBSY);
            }
            opens.passed += 1;
            daemon.metrics.opens_passthrough.add(1);
            return Ok((ByteMover::Passed, Some(id)));
        }
        if let Some(file) = whole.filter(|_| opens.cached == 0 && daemon.may_pass_through()) {
            match open_backing(file).map(Arc::new) {
                Ok(id) => {
                    opens.passed += 1;
                    opens.backing = Some(id.clone());
                    daemon.metrics.opens_passthrough.add(1);
                    return Ok((ByteMover::Passed, Some(id)));
                }
                Err(error) => daemon.passthrough_was_refused(&error),
            }
        }
        daemon.metrics.opens_served.add(1);
        opens.cached += 1;
        Ok((ByteMover::Cached, None))
    }

    /// Replies with a file that was opened.
    pub(super) fn reply_opened(&self, ino: INodeNo, open: OpenFile, reply: ReplyOpen) {
        let (mover, id) = match self.choose_mover(ino, &open, |file| reply.open_backing(file)) {
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
        let number = self.add(ino, open, Some(mover));
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
    pub(super) fn open_flags(&self, ino: INodeNo, open: &OpenFile) -> FopenFlags {
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
                reply.entry(&attr.ttl, &file_attr(&attr), Generation(0));
            }
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }

    pub(super) fn release(&self, number: FileHandle) {
        let mut handles = self.handles();
        let Some(handle) = handles.by_number.remove(&number.0) else { return };
        if let (Some(mover), Some(opens)) = (handle.mover, handles.of_inodes.get_mut(&handle.ino)) {
            match mover {
                ByteMover::Cached => opens.cached -= 1,
                ByteMover::Passed => opens.passed -= 1,
            }
            if opens.cached == 0 && opens.passed == 0 {
                handles.of_inodes.remove(&handle.ino);
            }
        }
        drop(handles);
        self.tree.release(&handle.open);
    }
}
