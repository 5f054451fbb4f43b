//! Answers the kernel's requests for the mount of a batch: a root with a directory for each job, and
//! in each the job's own tree, which a [`Kernel`] of its own answers for.
//!
//! A job's tree is made when its directory is first looked up. Listing the root makes none.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use fuser::{
    CopyFileRangeFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle as Runtime;

use super::kernel::Kernel;
use super::reply::{InodeNumbers, file_attr, fuse_errno};
use super::{MountKind, configure};
use crate::batch::BatchTree;
use crate::output::{DOT, DOT_DOT};
use crate::{FOREVER, ROOT, Result};

/// Answers the kernel's requests for the mount of a batch.
#[derive(Debug)]
pub(crate) struct BatchKernel {
    jobs: Arc<Jobs>,
    runtime: Runtime,
}

#[derive(Debug)]
struct Jobs {
    batch: Arc<BatchTree>,
    /// What answers for each job, once its directory was looked up.
    kernels: Vec<OnceLock<Kernel>>,
}

impl Jobs {
    /// Looks up the directory of a job. The kernel knows its root from now on.
    async fn look_up(&self, number: usize, runtime: Runtime) -> Result<(Duration, FileAttr)> {
        let tree = self.batch.open(number).await?;
        let numbers = InodeNumbers::of_job(number);
        self.kernels[number].get_or_init(|| Kernel::with_numbers(tree.clone(), runtime, numbers));
        let attr = tree.getattr(ROOT)?;
        Ok((attr.ttl, numbers.file_attr(&attr)))
    }
}

impl BatchKernel {
    pub(crate) fn new(batch: Arc<BatchTree>, runtime: Runtime) -> Self {
        let kernels = (0..batch.len()).map(|_| OnceLock::new()).collect();
        Self { jobs: Arc::new(Jobs { batch, kernels }), runtime }
    }

    /// Returns what answers for an inode of a job, and the inode's number there; none for the root.
    fn job_of(&self, ino: INodeNo) -> Option<(&Kernel, INodeNo)> {
        let (job, ino) = InodeNumbers::split(ino)?;
        // The kernel has its number from a lookup, which has made what answers for it.
        Some((self.jobs.kernels.get(job)?.get()?, ino))
    }

    /// Returns what answers for two inodes, and their numbers there, if both are of one job.
    fn job_of_both(&self, one: INodeNo, other: INodeNo) -> Option<(&Kernel, INodeNo, INodeNo)> {
        let ((job, _), (same, _)) = (InodeNumbers::split(one)?, InodeNumbers::split(other)?);
        let (kernel, one) = self.job_of(one)?;
        let (_, other) = self.job_of(other)?;
        (job == same).then_some((kernel, one, other))
    }

    /// Returns the number of the job whose directory has this name.
    fn number_of(&self, name: &OsStr) -> Option<usize> {
        let name = name.to_str()?;
        let number: usize = name.parse().ok()?;
        // Neither `007` nor `+7` is a name of the seventh.
        (number < self.jobs.batch.len() && number.to_string() == name).then_some(number)
    }

    fn root_attr(&self) -> FileAttr {
        file_attr(&self.jobs.batch.root_attr())
    }

    /// Passes the entries of the root behind position `place` to `add`, until it returns true.
    fn list_root(&self, place: u64, mut add: impl FnMut(u64, &str) -> bool) {
        for at in place..DOT_DOT + self.jobs.batch.len() as u64 {
            let full = match at + 1 {
                DOT => add(DOT, "."),
                DOT_DOT => add(DOT_DOT, ".."),
                after => add(after, &(at - DOT_DOT).to_string()),
            };
            if full {
                break;
            }
        }
    }
}

/// Makes methods that pass a request on to the job that its inode is of. In the root nothing can be
/// changed.
macro_rules! pass_on {
    ($($method:ident($($argument:ident: $kind:ty),*) -> $reply:ty;)*) => {
        $(
            fn $method(&self, req: &Request, ino: INodeNo, $($argument: $kind,)* reply: $reply) {
                match self.job_of(ino) {
                    Some((kernel, ino)) => kernel.$method(req, ino, $($argument,)* reply),
                    None => reply.error(fuser::Errno::EROFS),
                }
            }
        )*
    };
}

impl Filesystem for BatchKernel {
    pass_on! {
        setattr(
            mode: Option<u32>, uid: Option<u32>, gid: Option<u32>, size: Option<u64>,
            atime: Option<TimeOrNow>, mtime: Option<TimeOrNow>, ctime: Option<SystemTime>,
            fh: Option<FileHandle>, crtime: Option<SystemTime>, chgtime: Option<SystemTime>,
            bkuptime: Option<SystemTime>, flags: Option<fuser::BsdFileFlags>
        ) -> ReplyAttr;
        readlink() -> ReplyData;
        mknod(name: &OsStr, mode: u32, umask: u32, rdev: u32) -> ReplyEntry;
        mkdir(name: &OsStr, mode: u32, umask: u32) -> ReplyEntry;
        unlink(name: &OsStr) -> ReplyEmpty;
        rmdir(name: &OsStr) -> ReplyEmpty;
        symlink(name: &OsStr, target: &Path) -> ReplyEntry;
        open(flags: OpenFlags) -> ReplyOpen;
        create(name: &OsStr, mode: u32, umask: u32, flags: i32) -> ReplyCreate;
        read(
            fh: FileHandle, offset: u64, size: u32, flags: OpenFlags, lock: Option<LockOwner>
        ) -> ReplyData;
        write(
            fh: FileHandle, offset: u64, data: &[u8], how: WriteFlags, flags: OpenFlags,
            lock: Option<LockOwner>
        ) -> ReplyWrite;
        flush(fh: FileHandle, lock: LockOwner) -> ReplyEmpty;
        release(fh: FileHandle, flags: OpenFlags, lock: Option<LockOwner>, flush: bool) -> ReplyEmpty;
        fsync(fh: FileHandle, datasync: bool) -> ReplyEmpty;
        setxattr(name: &OsStr, value: &[u8], flags: i32, position: u32) -> ReplyEmpty;
        removexattr(name: &OsStr) -> ReplyEmpty;
        fallocate(fh: FileHandle, offset: u64, length: u64, mode: i32) -> ReplyEmpty;
        lseek(fh: FileHandle, offset: i64, whence: i32) -> ReplyLseek;
    }

    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        configure(config, self.jobs.batch.daemon(), MountKind::Job);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if let Some((kernel, parent)) = self.job_of(parent) {
            return kernel.lookup(req, parent, name, reply);
        }
        let Some(number) = self.number_of(name) else {
            return reply.error(fuser::Errno::ENOENT);
        };
        let (jobs, runtime) = (self.jobs.clone(), self.runtime.clone());
        self.runtime.spawn(async move {
            match jobs.look_up(number, runtime).await {
                Ok((ttl, attr)) => reply.entry(&ttl, &attr, Generation(0)),
                Err(errno) => reply.error(fuse_errno(errno)),
            }
        });
    }

    fn forget(&self, req: &Request, ino: INodeNo, nlookup: u64) {
        if let Some((kernel, ino)) = self.job_of(ino) {
            kernel.forget(req, ino, nlookup);
        }
    }

    fn getattr(&self, req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.job_of(ino) {
            Some((kernel, ino)) => kernel.getattr(req, ino, fh, reply),
            None => reply.attr(&FOREVER, &self.root_attr()),
        }
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
        match self.job_of_both(parent, newparent) {
            Some((kernel, parent, newparent)) => {
                kernel.rename(req, parent, name, newparent, newname, flags, reply)
            }
            None => reply.error(fuser::Errno::EXDEV),
        }
    }

    fn link(
        &self,
        req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        match self.job_of_both(ino, newparent) {
            Some((kernel, ino, newparent)) => kernel.link(req, ino, newparent, newname, reply),
            None => reply.error(fuser::Errno::EXDEV),
        }
    }

    fn opendir(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.job_of(ino) {
            Some((kernel, ino)) => kernel.opendir(req, ino, flags, reply),
            None => reply.opened(FileHandle(0), FopenFlags::empty()),
        }
    }

    fn readdir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if let Some((kernel, ino)) = self.job_of(ino) {
            return kernel.readdir(req, ino, fh, offset, reply);
        }
        self.list_root(offset, |place, name| {
            let ino = InodeNumbers::of_entry(place);
            reply.add(ino, place, FileType::Directory, name)
        });
        reply.ok();
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        if let Some((kernel, ino)) = self.job_of(ino) {
            return kernel.readdirplus(req, ino, fh, offset, reply);
        }
        let attr = self.root_attr();
        self.list_root(offset, |place, name| {
            let attr = FileAttr { ino: InodeNumbers::of_entry(place), ..attr };
            // For no time: the kernel looks the name up when somebody uses it, and only then the
            // job's tree is made.
            reply.add(attr.ino, place, name, &Duration::ZERO, &attr, Generation(0))
        });
        reply.ok();
    }

    fn releasedir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        match self.job_of(ino) {
            Some((kernel, ino)) => kernel.releasedir(req, ino, fh, flags, reply),
            None => reply.ok(),
        }
    }

    fn fsyncdir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        match self.job_of(ino) {
            Some((kernel, ino)) => kernel.fsyncdir(req, ino, fh, datasync, reply),
            None => reply.ok(),
        }
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        match self.job_of(ino) {
            Some((kernel, ino)) => kernel.statfs(req, ino, reply),
            None => reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096),
        }
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.job_of(ino) {
            Some((kernel, ino)) => kernel.getxattr(req, ino, name, size, reply),
            None => reply.error(fuse_errno(crate::output::no_attribute(name))),
        }
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        match self.job_of(ino) {
            Some((kernel, ino)) => kernel.listxattr(req, ino, size, reply),
            None if size == 0 => reply.size(0),
            None => reply.data(&[]),
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
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        match self.job_of_both(ino_in, ino_out) {
            Some((kernel, ino_in, ino_out)) => kernel.copy_file_range(
                req, ino_in, fh_in, offset_in, ino_out, fh_out, offset_out, len, flags, reply,
            ),
            // The kernel then copies by reads and writes.
            None => reply.error(fuser::Errno::EXDEV),
        }
    }
}
