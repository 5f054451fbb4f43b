//! Answers the kernel's FUSE requests from a [`Tree`](crate::Tree).
//!
//! A FUSE thread answers at once what memory or the local disk can answer. It moves everything else
//! (the stores, a commit) into a task that carries the reply, so that no request waits for another
//! request's network. Every such task has a deadline; when it passes, the kernel's caller gets EIO.

mod first;
mod handles;
mod kernel;
mod reply;
mod requests;

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{
    CopyFileRangeFlags, FileHandle, Filesystem, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use self::handles::OpenFile;
pub(crate) use self::kernel::Kernel;
use self::kernel::{MARGIN, MountState};
use self::reply::{
    file_attr, file_type, fuse_errno, maker, nothing, reply_attr, reply_data, reply_empty,
    reply_written, reply_xattr, time_change, writer_of,
};
use self::requests::RequestKind;
use crate::output::{
    AttrChange, ContentChanger, DOT_DOT, OpenRequest, RenameOver, StagedHandle, no_attribute,
};
use crate::view::ViewItem;
use crate::{Errno, ListingDetail, LookupOutcome, Result, Seek, is_staged, seek_dense};

/// The most bytes of one write request. The kernel's default of 128 KiB costs eight times the round
/// trips; more than 1 MiB gains nothing measurable.
const WRITE_MAX: u32 = 1 << 20;

/// The most background requests (read-ahead, releases) that the kernel may have under way. With its
/// default of 16, a few slow reads block all others.
const BACKGROUND_MAX: u16 = 256;

impl Filesystem for Kernel {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each capability is requested separately: an older kernel that lacks one still mounts.
        for wanted in [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_PARALLEL_DIROPS,
            // Always list with attributes: without this, the kernel asks separately for the
            // attributes of each name that `find` looks at.
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            // Without this, the kernel asks for an extended attribute before each write; with it,
            // only before a file's first write.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ] {
            let _ = config.add_capabilities(wanted);
        }
        if self.shared.tree.daemon.may_pass_through()
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
        {
            let _ = config.set_max_stack_depth(1);
        }
        let _ = config.set_max_write(WRITE_MAX);
        let _ = config.set_max_readahead(WRITE_MAX).or_else(|most| config.set_max_readahead(most));
        let _ = config.set_max_background(BACKGROUND_MAX);
        self.shared.first_read.mounted();
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.shared.requests.count(RequestKind::Lookup);
        let parent = self.shared.tree.current(parent.0);
        let name = name.to_owned();
        let shared = self.shared.clone();
        let answer = move |reply: ReplyEntry, outcome: Result<LookupOutcome>| match outcome {
            Ok(LookupOutcome::Found(attr)) => shared.reply_entry(reply, Ok(attr)),
            // An entry with inode 0 lets the kernel remember that the name does not exist.
            Ok(LookupOutcome::Missing(ttl)) if !ttl.is_zero() => {
                reply.entry(&ttl, &file_attr(&nothing()), Generation(0))
            }
            Ok(LookupOutcome::Missing(_)) => reply.error(fuser::Errno::ENOENT),
            Err(errno) => reply.error(fuse_errno(errno)),
        };
        if is_staged(parent) {
            let found =
                self.shared.tree.output().and_then(|output| output.names.lookup(parent, &name));
            let missing = LookupOutcome::Missing(Duration::ZERO);
            return answer(reply, found.map(|attr| attr.map_or(missing, LookupOutcome::Found)));
        }
        let work = |shared: Arc<MountState>| async move { shared.tree.lookup(parent, &name).await };
        self.later(parent, self.read_deadline(), work, move |outcome| answer(reply, outcome));
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.shared.requests.count(RequestKind::Forget);
        self.shared.tree.forget(ino.0, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.shared.requests.count(RequestKind::Getattr);
        reply_attr(reply, self.shared.tree.getattr(self.shared.tree.current(ino.0)));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.shared.requests.count(RequestKind::Setattr);
        let ino = self.shared.tree.current(ino.0);
        let (atime, mtime) = (time_change(atime), time_change(mtime));
        let change = AttrChange { mode, uid, gid, size, atime, mtime };
        if !is_staged(ino) {
            return reply.error(fuser::Errno::EROFS);
        }
        let output = match self.shared.tree.output() {
            Ok(output) => output.clone(),
            Err(errno) => return reply.error(fuse_errno(errno)),
        };
        let through = fh.and_then(|fh| self.shared.staged(fh).ok());
        let changed = output.content.setattr(ino, change, through.as_deref(), writer_of(req));
        reply_attr(reply, changed.map(|attr| self.shared.tree.as_known(attr)));
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.shared.requests.count(RequestKind::Readlink);
        let ino = self.shared.tree.current(ino.0);
        let target = if is_staged(ino) {
            self.shared.tree.output().and_then(|output| output.names.readlink(ino)).map(Bytes::from)
        } else {
            self.shared.tree.view.item(ino).and_then(|item| match item {
                ViewItem::Link(target) => Ok(Bytes::from(target)),
                _ => Err(Errno::INVAL),
            })
        };
        reply_data(reply, target);
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        self.shared.requests.count(RequestKind::Mknod);
        let parent = self.shared.tree.current(parent.0);
        self.shared.reply_entry(
            reply,
            self.output_at(parent)
                .and_then(|output| output.names.mknod(parent, name, mode, maker(req))),
        );
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        self.shared.requests.count(RequestKind::Mkdir);
        let parent = self.shared.tree.current(parent.0);
        self.shared.reply_entry(
            reply,
            self.output_at(parent)
                .and_then(|output| output.names.mkdir(parent, name, mode, maker(req))),
        );
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.shared.requests.count(RequestKind::Unlink);
        let parent = self.shared.tree.current(parent.0);
        reply_empty(reply, self.output_at(parent).and_then(|output| output.unlink(parent, name)));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.shared.requests.count(RequestKind::Rmdir);
        let parent = self.shared.tree.current(parent.0);
        reply_empty(
            reply,
            self.output_at(parent).and_then(|output| output.names.rmdir(parent, name)),
        );
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        self.shared.requests.count(RequestKind::Symlink);
        let parent = self.shared.tree.current(parent.0);
        self.shared.reply_entry(
            reply,
            self.output_at(parent)
                .and_then(|output| output.names.symlink(parent, link_name, target, maker(req))),
        );
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.shared.requests.count(RequestKind::Rename);
        if !(flags & !RenameFlags::RENAME_NOREPLACE).is_empty() {
            return reply.error(fuser::Errno::EINVAL);
        }
        let over = if flags.contains(RenameFlags::RENAME_NOREPLACE) {
            RenameOver::Nothing
        } else {
            RenameOver::Anything
        };
        let (parent, newparent) =
            (self.shared.tree.current(parent.0), self.shared.tree.current(newparent.0));
        let (name, newname) = (name.to_owned(), newname.to_owned());
        if !is_staged(newparent) {
            return reply.error(fuser::Errno::EROFS);
        }
        let maker = maker(req);
        let work = move |shared: Arc<MountState>| async move {
            let output = shared.tree.output()?;
            if is_staged(parent) {
                return output.rename(parent, &name, newparent, &newname, over).await;
            }
            if over == RenameOver::Nothing && output.names.lookup(newparent, &newname)?.is_some() {
                return Err(Errno::EXIST);
            }
            shared.tree.move_in(parent, &name, newparent, &newname, maker).await
        };
        self.patiently(work, move |outcome| reply_empty(reply, outcome));
    }

    fn link(
        &self,
        req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        self.shared.requests.count(RequestKind::Link);
        let (ino, newparent) =
            (self.shared.tree.current(ino.0), self.shared.tree.current(newparent.0));
        if !is_staged(newparent) {
            return reply.error(fuser::Errno::EROFS);
        }
        if !is_staged(ino) {
            return self
                .shared
                .reply_entry(reply, self.shared.tree.link_in(ino, newparent, newname, maker(req)));
        }
        let newname = newname.to_owned();
        let work = move |shared: Arc<MountState>| async move {
            shared.tree.output()?.link(ino, newparent, &newname).await
        };
        let shared = self.shared.clone();
        self.patiently(work, move |outcome| shared.reply_entry(reply, outcome));
    }

    fn open(&self, req: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.shared.requests.count(RequestKind::Open);
        let ino = self.shared.tree.current(node.0);
        let how = OpenRequest { flags: flags.0, by: writer_of(req) };
        if let Err(errno) = self.shared.may_open() {
            return reply.error(fuse_errno(errno));
        }
        if !is_staged(ino) {
            if how.changes() {
                return reply.error(fuser::Errno::EROFS);
            }
            let work = |shared: Arc<MountState>| async move {
                shared.open_view(ino).await.map(|open| (shared.clone(), open))
            };
            return self.later(ino, self.read_deadline(), work, move |outcome| match outcome {
                Ok((shared, open)) => shared.finish_open(node, open, reply),
                Err(errno) => reply.error(fuse_errno(errno)),
            });
        }
        let output = match self.shared.tree.output() {
            Ok(output) => output.clone(),
            Err(errno) => return reply.error(fuse_errno(errno)),
        };
        let finish = move |shared: &MountState,
                           reply: ReplyOpen,
                           opened: Result<Arc<StagedHandle>>| match opened {
            Ok(staged) => shared.finish_open(node, OpenFile::Staged(staged), reply),
            Err(errno) => reply.error(fuse_errno(errno)),
        };
        finish(&self.shared, reply, output.content.open(ino, how));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.shared.requests.count(RequestKind::Create);
        let parent = self.shared.tree.current(parent.0);
        let how = OpenRequest { flags, by: writer_of(req) };
        let created = self
            .shared
            .may_open()
            .and_then(|()| self.output_at(parent)?.create(parent, name, mode, maker(req), how));
        match created {
            Ok((attr, staged)) => {
                let attr = self.shared.tree.as_known(attr);
                let (ino, open) = (INodeNo(attr.ino), OpenFile::Staged(staged));
                let never = |_: &File| Err(io::ErrorKind::Unsupported.into());
                match self.shared.choose(ino, &open, never) {
                    Ok((mode, _)) => {
                        let flags = self.shared.flags(ino, &open);
                        let number = self.shared.add(ino, open, Some(mode));
                        self.shared.tree.remember_staged(attr.ino);
                        reply.created(&attr.ttl, &file_attr(&attr), Generation(0), number, flags);
                    }
                    Err(errno) => {
                        self.shared.closed(&open);
                        reply.error(fuse_errno(errno));
                    }
                }
            }
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.shared.requests.count(RequestKind::Read);
        let handle = match self.shared.handle(fh) {
            Ok(handle) => handle,
            Err(errno) => return reply.error(fuse_errno(errno)),
        };
        match &handle.open {
            OpenFile::Text(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                reply.data(&bytes[start..start.saturating_add(size as usize).min(bytes.len())]);
                self.shared.first_read.answered();
            }
            OpenFile::Live(file) => {
                let mut buffer = vec![0; size as usize];
                match std::os::unix::fs::FileExt::read_at(&**file, &mut buffer, offset) {
                    Ok(length) => reply.data(&buffer[..length]),
                    Err(error) => reply.error(fuse_errno(crate::errno(&error))),
                }
            }
            OpenFile::Staged(staged)
                if self
                    .shared
                    .tree
                    .output()
                    .is_ok_and(|output| !output.content.is_reference(staged.ino())) =>
            {
                reply_data(reply, self.shared.read_staged(staged, offset, size));
            }
            OpenFile::Directory(_) => reply.error(fuser::Errno::EISDIR),
            OpenFile::Staged(_) | OpenFile::Blob(_) => {
                let ino = self.shared.tree.current(ino.0);
                let work = move |shared: Arc<MountState>| async move {
                    shared.read(&handle, offset, size).await
                };
                let shared = self.shared.clone();
                self.later(ino, self.read_deadline() + MARGIN, work, move |outcome| {
                    reply_data(reply, outcome);
                    shared.first_read.answered();
                });
            }
        }
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.shared.requests.count(RequestKind::Write);
        let (output, staged) = match self
            .shared
            .tree
            .output()
            .and_then(|output| Ok((output.clone(), self.shared.staged(fh)?)))
        {
            Ok(found) => found,
            Err(errno) => return reply.error(fuse_errno(errno)),
        };
        let length = data.len() as u64;
        let kills = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let by = if kills { ContentChanger::AnotherUser } else { ContentChanger::Privileged };
        if output.content.is_reference(staged.ino()) {
            let data = Bytes::copy_from_slice(data);
            let work = move |_| async move {
                output.content.fill_range(&staged, offset..offset.saturating_add(length)).await?;
                output.write(&staged, offset, &data, by)
            };
            return self
                .patiently(work, move |outcome| reply_written(reply, outcome.map(|()| length)));
        }
        reply_written(reply, output.write(&staged, offset, data, by).map(|()| length));
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.shared.requests.count(RequestKind::Flush);
        let Ok(staged) = self.shared.staged(fh) else { return reply.ok() };
        let work = move |shared: Arc<MountState>| async move {
            shared.tree.output()?.flush(&staged).await
        };
        self.patiently(work, move |outcome| reply_empty(reply, outcome));
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.shared.requests.count(RequestKind::Release);
        self.shared.release(fh);
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.shared.requests.count(RequestKind::Fsync);
        let Ok(staged) = self.shared.staged(fh) else { return reply.ok() };
        let work = move |shared: Arc<MountState>| async move {
            shared.tree.output()?.fsync(&staged).await
        };
        self.patiently(work, move |outcome| reply_empty(reply, outcome));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.shared.requests.count(RequestKind::Opendir);
        if let Err(errno) = self.shared.may_open() {
            return reply.error(fuse_errno(errno));
        }
        // The directory is not listed before it is read.
        let open = OpenFile::Directory(Arc::default());
        let flags = self.shared.flags(ino, &open);
        reply.opened(self.shared.add(ino, open, None), flags);
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.shared.requests.count(RequestKind::Readdir);
        let ino = self.shared.tree.current(ino.0);
        self.list(ino, fh, offset, move |tree, listing| {
            let read = listing.and_then(|listing| {
                tree.list_behind(
                    ino,
                    offset,
                    listing.as_ref(),
                    ListingDetail::Names,
                    |place, name, listed| {
                        reply.add(INodeNo(listed.ino), place, file_type(listed.kind), name)
                    },
                )
            });
            match read {
                Ok(()) => reply.ok(),
                Err(errno) => reply.error(fuse_errno(errno)),
            }
        });
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.shared.requests.count(RequestKind::Readdirplus);
        let ino = self.shared.tree.current(ino.0);
        self.list(ino, fh, offset, move |tree, listing| {
            let mut given = Vec::new();
            let read = listing.and_then(|listing| {
                tree.list_behind(
                    ino,
                    offset,
                    listing.as_ref(),
                    ListingDetail::Attributes,
                    |place, name, listed| {
                        let Some(attr) = listed.attr else { return true };
                        let ino = INodeNo(attr.ino);
                        let full = reply.add(
                            ino,
                            place,
                            name,
                            &attr.ttl,
                            &file_attr(&attr),
                            Generation(0),
                        );
                        // A listing does not count as a lookup of `.` and `..`.
                        if !full && place > DOT_DOT {
                            given.push(attr.ino);
                        }
                        full
                    },
                )
            });
            // Count them before the kernel receives them: it might forget them at once.
            tree.remember(&given);
            match read {
                Ok(()) => reply.ok(),
                Err(errno) => reply.error(fuse_errno(errno)),
            }
        });
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.shared.requests.count(RequestKind::Releasedir);
        self.shared.release(fh);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.shared.requests.count(RequestKind::Fsyncdir);
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.shared.requests.count(RequestKind::Statfs);
        let Some(output) = &self.shared.tree.output else {
            return reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
        };
        match output.statfs() {
            Ok(stat) => {
                let size = |bytes: u64| u32::try_from(bytes).unwrap_or(4096);
                reply.statfs(
                    stat.f_blocks,
                    stat.f_bfree,
                    stat.f_bavail,
                    stat.f_files,
                    stat.f_ffree,
                    size(stat.f_bsize),
                    255,
                    size(stat.f_frsize),
                );
            }
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.shared.requests.count(RequestKind::Setxattr);
        let ino = self.shared.tree.current(ino.0);
        reply_empty(
            reply,
            self.output_at(ino).and_then(|output| output.content.setxattr(ino, name, value, flags)),
        );
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.shared.requests.count(RequestKind::Getxattr);
        let ino = self.shared.tree.current(ino.0);
        // ENOSYS would switch extended attributes off for the whole mount.
        let value = if is_staged(ino) {
            self.output_at(ino).and_then(|output| output.content.getxattr(ino, name))
        } else {
            Err(no_attribute(name))
        };
        reply_xattr(reply, size, value);
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.shared.requests.count(RequestKind::Listxattr);
        let ino = self.shared.tree.current(ino.0);
        let names = if is_staged(ino) {
            self.output_at(ino).and_then(|output| output.content.listxattr(ino))
        } else {
            Ok(Vec::new())
        };
        reply_xattr(reply, size, names);
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.shared.requests.count(RequestKind::Removexattr);
        let ino = self.shared.tree.current(ino.0);
        reply_empty(
            reply,
            self.output_at(ino).and_then(|output| output.content.removexattr(ino, name)),
        );
    }

    fn fallocate(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.shared.requests.count(RequestKind::Fallocate);
        let (output, staged) = match self
            .shared
            .tree
            .output()
            .and_then(|output| Ok((output.clone(), self.shared.staged(fh)?)))
        {
            Ok(found) => found,
            Err(errno) => return reply.error(fuse_errno(errno)),
        };
        let by = writer_of(req);
        let work = move |_| async move {
            output.content.fill_content(staged.ino()).await?;
            output.content.allocate(&staged, offset, length, mode, by)
        };
        self.patiently(work, move |outcome| reply_empty(reply, outcome));
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.shared.requests.count(RequestKind::Lseek);
        let whence = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(fuser::Errno::ENXIO) };
        let found = match self.shared.staged(fh) {
            Ok(staged) => self
                .shared
                .tree
                .output()
                .and_then(|output| output.content.seek(&staged, offset, whence)),
            Err(_) => self
                .shared
                .tree
                .getattr(self.shared.tree.current(ino.0))
                .and_then(|attr| seek_dense(attr.size, offset, whence)),
        };
        match found {
            Ok(offset) => reply.offset(offset.cast_signed()),
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.shared.requests.count(RequestKind::CopyFileRange);
        let tree = &self.shared.tree;
        let ino_in = tree.current(ino_in.0);
        let copied = (|| {
            let output = tree.output()?;
            let to = self.shared.staged(fh_out)?;
            if let Some((entry, length)) = tree.blob_of(ino_in)? {
                // Copy only the bytes that the file has: a copy of a cut reference is cut too.
                let len = len.min(length.saturating_sub(offset_in));
                return if len == 0 {
                    Ok(0)
                } else {
                    output.content.extend_reference(&to, &entry, offset_in, offset_out, len)
                };
            }
            // On EOPNOTSUPP the kernel reads and writes instead.
            let from = self.shared.staged(fh_in).map_err(|_| Errno::OPNOTSUPP)?;
            output.content.copy_range(&from, offset_in, &to, offset_out, len, writer_of(req))
        })();
        reply_written(reply, copied);
    }
}
