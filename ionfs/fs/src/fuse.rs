//! Answers the kernel's FUSE requests from a [`Tree`](crate::Tree).
//!
//! This room only translates: the kernel's requests and flags into calls of the tree, and outcomes
//! into replies. A FUSE thread passes on at once what the tree answers from memory or the local
//! disk. It moves everything else (the stores, a commit) into a task that carries the reply, so
//! that no request waits for another request's network. Every such task has a deadline; when it
//! passes, the kernel's caller gets EIO.

mod batch;
mod first;
mod handles;
mod kernel;
mod reply;
mod requests;

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use fuser::{
    CopyFileRangeFlags, FileHandle, Filesystem, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};

pub(crate) use self::batch::BatchKernel;
pub(crate) use self::kernel::Kernel;
use ion_plane::node::Node as Daemon;

use self::kernel::MARGIN;
use self::reply::{
    file_attr, file_type, fuse_errno, missing_attr, open_request, owner_of_request, reply_data,
    reply_empty, reply_written, reply_xattr, set_id_bits_for, time_change,
};
use self::requests::RequestKind;
use crate::answer::Answer;
use crate::open::OpenInode;
use crate::output::{AttrChange, DOT_DOT, RenameOver, SetIdBits};
use crate::tree::{CopyEnd, ListedEntry, ListingDetail};
use crate::{LookupOutcome, Seek};

/// The most bytes of one write request. The kernel's default of 128 KiB costs eight times the round
/// trips; more than 1 MiB gains nothing measurable.
const WRITE_MAX: u32 = 1 << 20;

/// The most background requests (read-ahead, releases) that the kernel may have under way. With its
/// default of 16, a few slow reads block all others.
const BACKGROUND_MAX: u16 = 256;

/// What a mount is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MountKind {
    /// One job, or the jobs of a batch.
    Job,
    /// People who browse a plane.
    Plane,
}

/// Asks the kernel for what mounts of this kind use.
fn configure(config: &mut KernelConfig, daemon: &Daemon, kind: MountKind) {
    // Each capability is requested separately: an older kernel that lacks one still mounts.
    for wanted in [
        InitFlags::FUSE_ATOMIC_O_TRUNC,
        InitFlags::FUSE_PARALLEL_DIROPS,
        // Always list with attributes: without this, the kernel asks separately for the attributes
        // of each name that `find` looks at.
        InitFlags::FUSE_DO_READDIRPLUS,
        InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        // Without this, the kernel asks for an extended attribute before each write; with it, only
        // before a file's first write.
        InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    ] {
        let _ = config.add_capabilities(wanted);
    }
    let _ = config.add_capabilities(match kind {
        MountKind::Job => InitFlags::FUSE_CACHE_SYMLINKS,
        // In a folder of a million names, the kernel then asks for the attributes of those that
        // somebody looks at. Targets of links are not cached: `log` leads to the latest attempt.
        MountKind::Plane => InitFlags::FUSE_READDIRPLUS_AUTO,
    });
    if daemon.may_pass_through() && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok() {
        let _ = config.set_max_stack_depth(1);
    }
    let _ = config.set_max_write(WRITE_MAX);
    let _ = config.set_max_readahead(WRITE_MAX).or_else(|most| config.set_max_readahead(most));
    let _ = config.set_max_background(BACKGROUND_MAX);
}

impl Filesystem for Kernel {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let tree = &self.mount.tree;
        let kind = if tree.is_of_job() { MountKind::Job } else { MountKind::Plane };
        configure(config, tree.daemon(), kind);
        self.mount.first_read.note_mount();
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.mount.requests.count(RequestKind::Lookup);
        let found = self.mount.tree.lookup(parent.0, name);
        let mount = self.mount.clone();
        self.answer_read(parent.0, self.read_deadline(), found, move |outcome| match outcome {
            Ok(LookupOutcome::Found(attr)) => mount.reply_entry(reply, Ok(attr)),
            // An entry with inode 0 lets the kernel remember that the name does not exist.
            Ok(LookupOutcome::Missing(ttl)) if !ttl.is_zero() => {
                reply.entry(&ttl, &file_attr(&missing_attr()), Generation(0))
            }
            Ok(LookupOutcome::Missing(_)) => reply.error(fuser::Errno::ENOENT),
            Err(errno) => reply.error(fuse_errno(errno)),
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.mount.requests.count(RequestKind::Forget);
        self.mount.tree.forget(ino.0, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.mount.requests.count(RequestKind::Getattr);
        self.mount.numbers.reply_attr(reply, self.mount.tree.getattr(ino.0));
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
        self.mount.requests.count(RequestKind::Setattr);
        let (atime, mtime) = (time_change(atime), time_change(mtime));
        let change = AttrChange { mode, uid, gid, size, atime, mtime };
        let through = fh.and_then(|fh| self.mount.handles.get(fh).ok());
        let through = through.as_ref().map(|handle| &handle.open);
        let changed = self.mount.tree.setattr(ino.0, change, through, set_id_bits_for(req));
        self.mount.numbers.reply_attr(reply, changed);
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.mount.requests.count(RequestKind::Readlink);
        reply_data(reply, self.mount.tree.readlink(ino.0));
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
        self.mount.requests.count(RequestKind::Mknod);
        let made = self.mount.tree.mknod(parent.0, name, mode, owner_of_request(req));
        self.mount.reply_entry(reply, made);
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
        self.mount.requests.count(RequestKind::Mkdir);
        let made = self.mount.tree.mkdir(parent.0, name, mode, owner_of_request(req));
        self.mount.reply_entry(reply, made);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.mount.requests.count(RequestKind::Unlink);
        reply_empty(reply, self.mount.tree.unlink(parent.0, name));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.mount.requests.count(RequestKind::Rmdir);
        reply_empty(reply, self.mount.tree.rmdir(parent.0, name));
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        self.mount.requests.count(RequestKind::Symlink);
        let made = self.mount.tree.symlink(parent.0, link_name, target, owner_of_request(req));
        self.mount.reply_entry(reply, made);
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
        self.mount.requests.count(RequestKind::Rename);
        if !(flags & !RenameFlags::RENAME_NOREPLACE).is_empty() {
            return reply.error(fuser::Errno::EINVAL);
        }
        let over = if flags.contains(RenameFlags::RENAME_NOREPLACE) {
            RenameOver::Nothing
        } else {
            RenameOver::AllButEvents
        };
        let tree = &self.mount.tree;
        let renamed =
            tree.rename(parent.0, name, newparent.0, newname, over, owner_of_request(req));
        self.answer_commit(renamed, move |outcome| reply_empty(reply, outcome));
    }

    fn link(
        &self,
        req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        self.mount.requests.count(RequestKind::Link);
        let linked = self.mount.tree.link(ino.0, newparent.0, newname, owner_of_request(req));
        let mount = self.mount.clone();
        self.answer_commit(linked, move |outcome| mount.reply_entry(reply, outcome));
    }

    fn open(&self, req: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.mount.requests.count(RequestKind::Open);
        let how = open_request(req, flags.0);
        if let Err(errno) = self.mount.handles.check_may_open() {
            return reply.error(fuse_errno(errno));
        }
        let opened = self.mount.tree.open(node.0, how);
        let mount = self.mount.clone();
        self.answer_read(node.0, self.read_deadline(), opened, move |outcome| match outcome {
            Ok(open) => mount.reply_opened(node, open, reply),
            Err(errno) => reply.error(fuse_errno(errno)),
        });
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
        self.mount.requests.count(RequestKind::Create);
        let how = open_request(req, flags);
        let (mount, tree) = (&self.mount, &self.mount.tree);
        let created = mount
            .handles
            .check_may_open()
            .and_then(|()| tree.create(parent.0, name, mode, owner_of_request(req), how));
        let (attr, open) = match created {
            Ok(created) => created,
            Err(errno) => return reply.error(fuse_errno(errno)),
        };
        let ino = INodeNo(attr.ino);
        // A new file has no blob that the kernel could read by itself.
        let never = |_: &File| Err(io::ErrorKind::Unsupported.into());
        match mount.handles.choose_mover(ino, &open, never) {
            Ok((mover, _)) => {
                let flags = mount.open_flags(ino, &open);
                let number = mount.handles.add(ino, open, Some(mover));
                tree.remember_entry(attr.ino);
                let entry = mount.numbers.file_attr(&attr);
                reply.created(&attr.ttl, &entry, Generation(0), number, flags);
            }
            Err(errno) => {
                tree.release(&open);
                reply.error(fuse_errno(errno));
            }
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
        self.mount.requests.count(RequestKind::Read);
        let handle = match self.mount.handles.get(fh) {
            Ok(handle) => handle,
            Err(errno) => return reply.error(fuse_errno(errno)),
        };
        let answer = self.mount.tree.read(ino.0, &handle.open, offset, size);
        // Other reads that are answered at once are of what the job or a running job writes.
        let is_of_input =
            matches!(answer, Answer::Later(_)) || matches!(handle.open, OpenInode::InMemory(_));
        let mount = self.mount.clone();
        self.answer_read(ino.0, self.read_deadline() + MARGIN, answer, move |outcome| {
            reply_data(reply, outcome);
            if is_of_input {
                mount.first_read.note_answer();
            }
        });
    }

    fn write(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.mount.requests.count(RequestKind::Write);
        let handle = match self.mount.handles.get(fh) {
            Ok(handle) => handle,
            Err(errno) => return reply.error(fuse_errno(errno)),
        };
        let kills = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let set_id_bits = if kills { SetIdBits::Clear } else { SetIdBits::Keep };
        let written = self.mount.tree.write(&handle.open, offset, data, set_id_bits, req.pid());
        self.answer_commit(written, move |outcome| reply_written(reply, outcome));
    }

    fn flush(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.mount.requests.count(RequestKind::Flush);
        let Ok(handle) = self.mount.handles.get(fh) else { return reply.ok() };
        let flushed = self.mount.tree.flush(&handle.open, req.pid());
        self.answer_commit(flushed, move |outcome| reply_empty(reply, outcome));
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
        self.mount.requests.count(RequestKind::Release);
        self.mount.handles.release(fh);
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
        self.mount.requests.count(RequestKind::Fsync);
        let Ok(handle) = self.mount.handles.get(fh) else { return reply.ok() };
        let synced = self.mount.tree.fsync(&handle.open);
        self.answer_commit(synced, move |outcome| reply_empty(reply, outcome));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.mount.requests.count(RequestKind::Opendir);
        if let Err(errno) = self.mount.handles.check_may_open() {
            return reply.error(fuse_errno(errno));
        }
        let open = self.mount.tree.open_directory();
        let flags = self.mount.open_flags(ino, &open);
        reply.opened(self.mount.handles.add(ino, open, None), flags);
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.mount.requests.count(RequestKind::Readdir);
        let numbers = self.mount.numbers;
        self.list(ino, fh, offset, move |tree, directory| {
            let read = directory.and_then(|directory| {
                tree.list_after(&directory, offset, ListingDetail::Names, |place, name, listed| {
                    let ino = numbers.to_kernel(listed.ino);
                    reply.add(ino, place, file_type(listed.kind), name)
                })
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
        self.mount.requests.count(RequestKind::Readdirplus);
        let numbers = self.mount.numbers;
        self.list(ino, fh, offset, move |tree, directory| {
            let mut given = Vec::new();
            let mut add = |place, name: &OsStr, listed: ListedEntry| {
                let Some(attr) = listed.attr else { return true };
                let entry = numbers.file_attr(&attr);
                let full = reply.add(entry.ino, place, name, &attr.ttl, &entry, Generation(0));
                // A listing does not count as a lookup of `.` and `..`.
                if !full && place > DOT_DOT {
                    given.push(attr.ino);
                }
                full
            };
            let read = directory.and_then(|directory| {
                tree.list_after(&directory, offset, ListingDetail::Attributes, &mut add)
            });
            // Count them before the kernel receives them: it might forget them at once.
            tree.remember_listed(&given);
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
        self.mount.requests.count(RequestKind::Releasedir);
        self.mount.handles.release(fh);
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
        self.mount.requests.count(RequestKind::Fsyncdir);
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.mount.requests.count(RequestKind::Statfs);
        match self.mount.tree.statfs() {
            Ok(None) => reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096),
            Ok(Some(stat)) => {
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
        self.mount.requests.count(RequestKind::Setxattr);
        reply_empty(reply, self.mount.tree.setxattr(ino.0, name, value, flags));
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.mount.requests.count(RequestKind::Getxattr);
        // The tree never answers ENOSYS, which would switch extended attributes off for the whole
        // mount.
        reply_xattr(reply, size, self.mount.tree.getxattr(ino.0, name));
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.mount.requests.count(RequestKind::Listxattr);
        reply_xattr(reply, size, self.mount.tree.listxattr(ino.0));
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.mount.requests.count(RequestKind::Removexattr);
        reply_empty(reply, self.mount.tree.removexattr(ino.0, name));
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
        self.mount.requests.count(RequestKind::Fallocate);
        let handle = match self.mount.handles.get(fh) {
            Ok(handle) => handle,
            Err(errno) => return reply.error(fuse_errno(errno)),
        };
        let allocated =
            self.mount.tree.allocate(&handle.open, offset, length, mode, set_id_bits_for(req));
        self.answer_commit(allocated, move |outcome| reply_empty(reply, outcome));
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
        self.mount.requests.count(RequestKind::Lseek);
        let whence = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(fuser::Errno::ENXIO) };
        let handle = self.mount.handles.get(fh);
        let found =
            handle.and_then(|handle| self.mount.tree.seek(ino.0, &handle.open, offset, whence));
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
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.mount.requests.count(RequestKind::CopyFileRange);
        let copied = self.mount.handles.get(fh_in).and_then(|from| {
            let to = self.mount.handles.get(fh_out)?;
            let from = CopyEnd { ino: ino_in.0, open: &from.open, offset: offset_in };
            let to = CopyEnd { ino: ino_out.0, open: &to.open, offset: offset_out };
            self.mount.tree.copy_range(from, to, len, set_id_bits_for(req), req.pid())
        });
        reply_written(reply, copied);
    }
}
