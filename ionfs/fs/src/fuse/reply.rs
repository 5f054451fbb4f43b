//! Conversions between Ion's types and FUSE types, for replies and requests.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{
    FileAttr, FileType, INodeNo, ReplyAttr, ReplyData, ReplyEmpty, ReplyWrite, ReplyXattr, Request,
    TimeOrNow,
};

use crate::output::{DOT_DOT, NewOwner, OpenRequest, SetIdBits, TimeChange};
use crate::{Attr, Errno, FileKind, Ino, ROOT, Result};

/// The numbers of one tree's inodes as the kernel knows them: in a batch, those of each job begin
/// elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct InodeNumbers {
    /// What is added to a number of the tree.
    base: Ino,
}

/// How many bits of a number belong to a tree in a batch. No tree makes so many inodes.
const TREE_BITS: u32 = 52;

impl InodeNumbers {
    /// Returns the numbers of the job with this number in a batch.
    pub(super) fn of_job(number: usize) -> Self {
        Self { base: (number as Ino + 1) << TREE_BITS }
    }

    /// Returns the number that a listing of a batch's root shows at this position.
    pub(super) fn of_entry(place: u64) -> INodeNo {
        match place.checked_sub(DOT_DOT + 1) {
            Some(job) => INodeNo((job + 1) << TREE_BITS | ROOT),
            None => INodeNo(ROOT),
        }
    }

    /// Takes a number of the kernel's apart. Returns the job's number in the batch and the inode's
    /// number in the job's tree; none for the batch's own root.
    pub(super) fn split(ino: INodeNo) -> Option<(usize, INodeNo)> {
        let job = (ino.0 >> TREE_BITS).checked_sub(1)?;
        Some((usize::try_from(job).ok()?, INodeNo(ino.0 & ((1 << TREE_BITS) - 1))))
    }

    /// Returns the kernel's number of an inode of the tree. 0, for no inode, stays.
    pub(super) fn to_kernel(self, ino: Ino) -> INodeNo {
        INodeNo(if ino == 0 { 0 } else { self.base | ino })
    }

    /// Returns attributes for the kernel.
    pub(super) fn file_attr(self, attr: &Attr) -> FileAttr {
        FileAttr { ino: self.to_kernel(attr.ino), ..file_attr(attr) }
    }

    pub(super) fn reply_attr(self, reply: ReplyAttr, outcome: Result<Attr>) {
        match outcome {
            // Only in this reply may the number differ from the one by which the kernel knows the
            // inode.
            Ok(attr) => {
                let ino = self.to_kernel(attr.shown_ino);
                reply.attr(&attr.ttl, &FileAttr { ino, ..file_attr(&attr) })
            }
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }
}

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        crtime: attr.mtime,
        kind: file_type(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Directory => FileType::Directory,
        FileKind::File => FileType::RegularFile,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Pipe => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
    }
}

pub(super) fn fuse_errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

pub(super) fn reply_empty(reply: ReplyEmpty, outcome: Result<()>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(fuse_errno(errno)),
    }
}

pub(super) fn reply_data(reply: ReplyData, outcome: Result<Bytes>) {
    match outcome {
        Ok(bytes) => reply.data(&bytes),
        Err(errno) => reply.error(fuse_errno(errno)),
    }
}

pub(super) fn reply_written(reply: ReplyWrite, outcome: Result<u64>) {
    match outcome {
        Ok(length) => reply.written(u32::try_from(length).unwrap_or(u32::MAX)),
        Err(errno) => reply.error(fuse_errno(errno)),
    }
}

pub(super) fn reply_xattr(reply: ReplyXattr, size: u32, outcome: Result<Vec<u8>>) {
    match outcome {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(fuser::Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(errno) => reply.error(fuse_errno(errno)),
    }
}

pub(super) fn owner_of_request(request: &Request) -> NewOwner {
    NewOwner { uid: request.uid(), gid: request.gid() }
}

/// Returns how a request opens a file with these flags.
pub(super) fn open_request(request: &Request, flags: i32) -> OpenRequest {
    OpenRequest { flags, set_id_bits: set_id_bits_for(request), thread: request.pid() }
}

/// Returns what a change of content does to the set-user-ID and set-group-ID bits, for requests
/// that do not state it.
pub(super) fn set_id_bits_for(request: &Request) -> SetIdBits {
    if request.uid() == 0 { SetIdBits::Keep } else { SetIdBits::Clear }
}

pub(super) fn time_change(requested: Option<TimeOrNow>) -> TimeChange {
    match requested {
        None => TimeChange::Keep,
        Some(TimeOrNow::Now) => TimeChange::Now,
        Some(TimeOrNow::SpecificTime(time)) => TimeChange::To(corrected_time(time)),
    }
}

/// Corrects a time that fuser made of the kernel's seconds and nanoseconds. Nanoseconds count
/// upwards from a second even before 1970; fuser 0.18 counts them downwards there.
fn corrected_time(time: SystemTime) -> SystemTime {
    match SystemTime::UNIX_EPOCH.duration_since(time) {
        Ok(before) => time + Duration::from_nanos(2 * u64::from(before.subsec_nanos())),
        Err(_) => time,
    }
}

/// Returns the attributes of a name that does not exist: inode 0.
pub(super) fn missing_attr() -> Attr {
    let epoch = SystemTime::UNIX_EPOCH;
    Attr {
        ino: 0,
        shown_ino: 0,
        kind: FileKind::File,
        size: 0,
        blocks: 0,
        atime: epoch,
        mtime: epoch,
        ctime: epoch,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        ttl: Duration::ZERO,
    }
}
