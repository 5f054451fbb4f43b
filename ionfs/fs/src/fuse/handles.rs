//! The handles of one mount, and who moves the bytes of each: the daemon or the kernel.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use fuser::{BackingId, FileHandle, FopenFlags, Generation, INodeNo, ReplyEntry, ReplyOpen};
use ion_plane::cache::BlobReader;

use super::kernel::MountState;
use super::reply::{file_attr, fuse_errno};
use crate::blob::read_blob;
use crate::output::{CloseReport, StagedHandle};
use crate::view::{Listing, ViewItem};
use crate::{Attr, Errno, Ino, Result, SMALL, is_staged};

/// An open file or directory.
#[derive(Debug, Clone)]
pub(super) enum OpenFile {
    Staged(Arc<StagedHandle>),
    Blob(Arc<BlobReader>),
    Text(Bytes),
    Live(Arc<File>),
    /// A directory. Holds what a view directory listed when it was last read from the start; none
    /// before that, and for a directory below `out/`.
    Directory(Arc<Mutex<Option<Listing>>>),
}

#[derive(Debug)]
pub(super) struct OpenHandle {
    /// The inode's number as the kernel knows it.
    ino: INodeNo,
    pub(super) open: OpenFile,
    /// None for a directory.
    mode: Option<ByteMover>,
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
    modes: HashMap<INodeNo, InodeOpens>,
}

impl MountState {
    fn handles(&self) -> MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns EMFILE if no further file may be open. Each open file takes a descriptor of the
    /// daemon, which all jobs share.
    pub(super) fn may_open(&self) -> Result<()> {
        let most = self.tree.output.as_ref().map_or(u64::MAX, |output| output.limits().open_files);
        if (self.handles().by_number.len() as u64) < most { Ok(()) } else { Err(Errno::MFILE) }
    }

    pub(super) fn handle(&self, number: FileHandle) -> Result<Arc<OpenHandle>> {
        self.handles().by_number.get(&number.0).cloned().ok_or(Errno::BADF)
    }

    pub(super) fn staged(&self, number: FileHandle) -> Result<Arc<StagedHandle>> {
        match &self.handle(number)?.open {
            OpenFile::Staged(staged) => Ok(staged.clone()),
            OpenFile::Directory(_) => Err(Errno::ISDIR),
            _ => Err(Errno::ROFS),
        }
    }

    pub(super) fn add(&self, ino: INodeNo, open: OpenFile, mode: Option<ByteMover>) -> FileHandle {
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.handles().by_number.insert(number, Arc::new(OpenHandle { ino, open, mode }));
        FileHandle(number)
    }

    /// Decides who moves the bytes of a file that is being opened, and counts the open.
    pub(super) fn choose(
        &self,
        ino: INodeNo,
        open: &OpenFile,
        open_backing: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Result<(ByteMover, Option<Arc<BackingId>>)> {
        let daemon = &self.tree.daemon;
        let whole = match open {
            OpenFile::Blob(reader) => reader.blob().whole(),
            _ => None,
        };
        let mut handles = self.handles();
        let modes = handles.modes.entry(ino).or_default();
        if let Some(id) = modes.backing.clone() {
            // The file was moved here from `in/data`, and is still being read there.
            if let OpenFile::Staged(staged) = open
                && !self.tree.output()?.content.reads_whole_blob(staged)
            {
                return Err(Errno::TXTBSY);
            }
            modes.passed += 1;
            daemon.metrics.opens_passthrough.add(1);
            return Ok((ByteMover::Passed, Some(id)));
        }
        if let Some(file) = whole.filter(|_| modes.cached == 0 && daemon.may_pass_through()) {
            match open_backing(file).map(Arc::new) {
                Ok(id) => {
                    modes.passed += 1;
                    modes.backing = Some(id.clone());
                    daemon.metrics.opens_passthrough.add(1);
                    return Ok((ByteMover::Passed, Some(id)));
                }
                Err(error) => daemon.passthrough_was_refused(&error),
            }
        }
        daemon.metrics.opens_served.add(1);
        modes.cached += 1;
        Ok((ByteMover::Cached, None))
    }

    /// Opens a file of the view.
    pub(super) async fn open_view(&self, ino: Ino) -> Result<OpenFile> {
        Ok(match self.tree.view.item(ino)? {
            ViewItem::Directory(_) => return Err(Errno::ISDIR),
            ViewItem::Link(_) => return Err(Errno::LOOP),
            ViewItem::Text(bytes, _) => OpenFile::Text(bytes),
            ViewItem::Live(path) => {
                OpenFile::Live(Arc::new(File::open(path).map_err(|error| crate::errno(&error))?))
            }
            ViewItem::Blob(entry) => {
                // Nothing is fetched yet: many files are opened only to be copied, which moves no
                // bytes.
                OpenFile::Blob(Arc::new(BlobReader::new(self.tree.open_blob(ino, &entry)?)))
            }
        })
    }

    pub(super) fn finish_open(&self, ino: INodeNo, open: OpenFile, reply: ReplyOpen) {
        let (mode, id) = match self.choose(ino, &open, |file| reply.open_backing(file)) {
            Ok(chosen) => chosen,
            Err(errno) => {
                self.closed(&open);
                return reply.error(fuse_errno(errno));
            }
        };
        let flags = self.flags(ino, &open);
        // The daemon will see no read of the file.
        if let (ByteMover::Passed, OpenFile::Blob(reader)) = (mode, &open) {
            self.begins(ino, reader);
        }
        let number = self.add(ino, open, Some(mode));
        match id {
            Some(id) => {
                reply.opened_passthrough(number, FopenFlags::empty(), &id);
                // The kernel answers the reads that follow.
                self.first_read.answered();
            }
            None => reply.opened(number, flags),
        }
    }

    /// Returns what the kernel may cache of a file, and whether it is to report each close.
    pub(super) fn flags(&self, ino: INodeNo, open: &OpenFile) -> FopenFlags {
        let (keep, quiet) = (FopenFlags::FOPEN_KEEP_CACHE, FopenFlags::FOPEN_NOFLUSH);
        match open {
            // Its length may have changed by the time it is read.
            OpenFile::Live(_) => FopenFlags::FOPEN_DIRECT_IO | quiet,
            OpenFile::Text(_) if !self.tree.view.stays(ino.0) => {
                FopenFlags::FOPEN_DIRECT_IO | quiet
            }
            // The file never changes: what the kernel caches of it stays correct.
            OpenFile::Blob(_) | OpenFile::Text(_) => keep | quiet,
            // Each change comes through the kernel, which keeps its pages correct.
            OpenFile::Staged(staged) if staged.closing() == CloseReport::Releases => keep | quiet,
            OpenFile::Staged(_) => keep,
            OpenFile::Directory(_) if self.tree.is_fixed(self.tree.current(ino.0)) => {
                keep | FopenFlags::FOPEN_CACHE_DIR
            }
            OpenFile::Directory(_) => FopenFlags::empty(),
        }
    }

    /// Replies with an inode. The kernel knows the inode from now on until it forgets it.
    pub(super) fn reply_entry(&self, reply: ReplyEntry, outcome: Result<Attr>) {
        match outcome {
            Ok(attr) => {
                let attr = self.tree.as_known(attr);
                self.tree.remember_staged(attr.ino);
                reply.entry(&attr.ttl, &file_attr(&attr), Generation(0));
            }
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }

    pub(super) fn release(&self, number: FileHandle) {
        let mut handles = self.handles();
        let Some(handle) = handles.by_number.remove(&number.0) else { return };
        if let (Some(mode), Some(modes)) = (handle.mode, handles.modes.get_mut(&handle.ino)) {
            match mode {
                ByteMover::Cached => modes.cached -= 1,
                ByteMover::Passed => modes.passed -= 1,
            }
            if modes.cached == 0 && modes.passed == 0 {
                handles.modes.remove(&handle.ino);
            }
        }
        drop(handles);
        self.closed(&handle.open);
    }

    /// Releases an open file that the kernel no longer uses.
    pub(super) fn closed(&self, open: &OpenFile) {
        if let (OpenFile::Staged(staged), Some(output)) = (open, &self.tree.output) {
            output.release(staged);
        }
    }

    /// Notes that a file is being read. On the handle's first read, fetches a small file whole, and
    /// also the next files if a program walks the file's directory.
    fn begins(&self, ino: INodeNo, reader: &Arc<BlobReader>) {
        if reader.begins() && reader.blob().entry().size <= SMALL {
            self.tree.walked_to(self.tree.current(ino.0));
            reader.blob().fetch_ahead();
        }
    }

    pub(super) async fn read(&self, handle: &OpenHandle, offset: u64, size: u32) -> Result<Bytes> {
        match &handle.open {
            OpenFile::Blob(reader) => {
                self.begins(handle.ino, reader);
                let read = read_blob(&self.tree.daemon, reader, offset, size.into()).await;
                read.map_err(|failure| {
                    self.tree.read_failed(self.tree.current(handle.ino.0), &failure)
                })
            }
            OpenFile::Staged(staged) => {
                self.tree.output()?.content.read_through(staged, offset, size).await
            }
            _ => Err(Errno::BADF),
        }
    }

    pub(super) fn read_staged(
        &self,
        staged: &StagedHandle,
        offset: u64,
        size: u32,
    ) -> Result<Bytes> {
        self.tree.output()?.content.read(staged, offset, size as usize)
    }

    /// Returns what a view directory listed when it was last read from the start; none for a
    /// directory below `out/`. A read from the start lists the directory again, because the kernel
    /// does not report rewinddir().
    pub(super) async fn listing(&self, number: FileHandle, offset: u64) -> Result<Option<Listing>> {
        let handle = self.handle(number)?;
        let OpenFile::Directory(kept) = &handle.open else { return Err(Errno::NOTDIR) };
        let ino = self.tree.current(handle.ino.0);
        if is_staged(ino) {
            return Ok(None);
        }
        let held = || kept.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(listing) = held().filter(|_| offset != 0) {
            return Ok(Some(listing));
        }
        let listing = self.tree.list(ino).await?;
        *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(listing.clone());
        Ok(Some(listing))
    }
}
