//! The filesystem in Ion's own types: no FUSE type, no store's name.
//!
//! Two kinds of inodes live side by side under one root. [`view`] holds what is only read: `in/`,
//! `events/` and the browsing mount, each directory listed when it is first looked at. [`output`]
//! holds what a module writes: `out/`, staged on a real local directory. [`Tree`] is both together;
//! [`job`] and [`browse`] make one.

pub mod browse;
mod eventfile;
mod fuse;
pub mod job;
mod lineage;
pub mod mount;
pub mod output;
mod reads;
mod tree;
pub mod view;
mod walk;

use std::time::{Duration, SystemTime};

pub use rustix::io::Errno;

pub use self::reads::failed_read_of_blob;
pub(crate) use self::tree::ListingDetail;
pub use self::tree::{Found, Tree};
pub(crate) use self::walk::SMALL;

/// What an operation gives, or the errno it fails with.
pub type Result<T> = std::result::Result<T, Errno>;

/// An inode's number. 1 is the root.
pub type Ino = u64;

/// The root directory.
pub const ROOT: Ino = 1;

/// Inode numbers from here on are staged (below `out/`); smaller ones are views.
pub const STAGED: Ino = 1 << 48;

/// Whether the inode is below `out/`.
pub fn is_staged(ino: Ino) -> bool {
    ino >= STAGED
}

/// How long the kernel may keep what cannot change behind its back. Nothing is gained beyond an
/// hour.
pub const FOREVER: Duration = Duration::from_secs(3600);

/// How long a listing of what changes is kept. Longer shows people the past; shorter asks the store
/// for each `ls`.
const CURRENT: Duration = Duration::from_secs(1);

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Pipe,
    /// A socket.
    Socket,
}

/// An inode's attributes.
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    /// Its number.
    pub ino: Ino,
    /// The number that stat() shows: of a hard link to a file of `in/`, that file's. Else its own.
    pub shown_ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// Bytes.
    pub size: u64,
    /// Blocks of 512 bytes. Dense for what is fetched lazily, or `cp` takes it for a hole.
    pub blocks: u64,
    /// Last read.
    pub atime: SystemTime,
    /// Last write.
    pub mtime: SystemTime,
    /// Last change.
    pub ctime: SystemTime,
    /// Permission bits.
    pub perm: u16,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// How long this stays true.
    pub ttl: Duration,
}

/// One name in a directory.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// The name.
    pub name: std::ffi::OsString,
    /// What is there.
    pub attr: Attr,
}

/// Bytes that a seek to data or to a hole finds in a file without holes.
pub(crate) fn seek_dense(size: u64, offset: u64, whence: Seek) -> Result<u64> {
    if offset >= size {
        return Err(Errno::NXIO);
    }
    Ok(match whence {
        Seek::Data => offset,
        Seek::Hole => size,
    })
}

/// What a seek looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// The next byte that is there.
    Data,
    /// The next hole.
    Hole,
}

/// The errno of a system error, EIO when it has none.
pub(crate) fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
