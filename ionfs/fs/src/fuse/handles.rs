//! The handles of one mount, and who moves the bytes of each: the daemon or the kernel.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuser::{BackingId, FileHandle, INodeNo};

use crate::open::OpenInode;
use crate::{Errno, Result, Tree};

/// An open file or directory, by the kernel's numbers.
#[derive(Debug)]
pub(super) struct OpenHandle {
    /// The inode's number as the kernel knows it.
    ino: INodeNo,
    pub(super) open: OpenInode,
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

/// The handles of one mount.
#[derive(Debug)]
pub(super) struct Handles {
    tree: Arc<Tree>,
    table: Mutex<HandleTable>,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct HandleTable {
    by_number: HashMap<u64, Arc<OpenHandle>>,
    of_inodes: HashMap<INodeNo, InodeOpens>,
}

impl Handles {
    pub(super) fn new(tree: Arc<Tree>) -> Self {
        Self { tree, table: Mutex::default(), next: AtomicU64::new(1) }
    }

    fn lock(&self) -> MutexGuard<'_, HandleTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns EMFILE if no further file may be open. Each open file takes a descriptor of the
    /// daemon, which all jobs share.
    pub(super) fn check_may_open(&self) -> Result<()> {
        let most = self.tree.open_files_max();
        if (self.lock().by_number.len() as u64) < most { Ok(()) } else { Err(Errno::MFILE) }
    }

    /// Returns an open handle.
    pub(super) fn get(&self, number: FileHandle) -> Result<Arc<OpenHandle>> {
        self.lock().by_number.get(&number.0).cloned().ok_or(Errno::BADF)
    }

    /// Adds a handle, and returns its number.
    pub(super) fn add(
        &self,
        ino: INodeNo,
        open: OpenInode,
        mover: Option<ByteMover>,
    ) -> FileHandle {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().by_number.insert(number, Arc::new(OpenHandle { ino, open, mover }));
        FileHandle(number)
    }

    /// Decides who moves the bytes of a file that is being opened, and counts the open.
    pub(super) fn choose_mover(
        &self,
        ino: INodeNo,
        open: &OpenInode,
        open_backing: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Result<(ByteMover, Option<Arc<BackingId>>)> {
        let daemon = self.tree.daemon();
        let whole = open.passthrough_file();
        let mut table = self.lock();
        let opens = table.of_inodes.entry(ino).or_default();
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
                Err(error) => daemon.disable_passthrough(&error),
            }
        }
        daemon.metrics.opens_served.add(1);
        opens.cached += 1;
        Ok((ByteMover::Cached, None))
    }

    /// Releases a handle that the kernel no longer uses.
    pub(super) fn release(&self, number: FileHandle) {
        let mut table = self.lock();
        let Some(handle) = table.by_number.remove(&number.0) else { return };
        if let (Some(mover), Some(opens)) = (handle.mover, table.of_inodes.get_mut(&handle.ino)) {
            match mover {
                ByteMover::Cached => opens.cached -= 1,
                ByteMover::Passed => opens.passed -= 1,
            }
            if opens.cached == 0 && opens.passed == 0 {
                table.of_inodes.remove(&handle.ino);
            }
        }
        drop(table);
        self.tree.release(&handle.open);
    }
}
