//! The filesystem, in Ion's own types: its public interface names no FUSE type and no particular
//! store.
//!
//! Two kinds of inodes live under one root. `view` holds the read-only ones: `in/`, `events/` and
//! the browsing mount, where each directory is listed when it is first accessed. `output` holds
//! what a module writes: `out/`, staged on a real local directory. A [`Tree`] combines both, and
//! decides which of them answers for an inode; [`job`] and [`browse`] make one. `fuse` translates
//! between the kernel's requests and the tree. [`inbox`] makes a browsing tree in which files become
//! events.

mod answer;
pub mod batch;
mod blob;
pub mod browse;
mod eventfile;
mod fuse;
mod gathered;
pub mod inbox;
mod item;
pub mod job;
mod lineage;
pub mod mount;
mod open;
mod output;
mod part;
mod reads;
mod records;
mod search_time;
mod tree;
pub mod view;
mod walk;

use std::time::{Duration, SystemTime};

pub use rustix::io::Errno;

pub use self::reads::failed_read_of_blob;
pub use self::tree::Tree;

/// The result of a filesystem operation, or the errno that it fails with.
pub type Result<T> = std::result::Result<T, Errno>;

/// An inode's number. 1 is the root.
pub type Ino = u64;

/// The root directory.
pub const ROOT: Ino = 1;

/// The first staged inode number. Inodes with this or a higher number are `out/` and what lies
/// below it; lower numbers belong to the view.
pub const STAGED: Ino = 1 << 48;

/// Returns whether the inode is `out/` or lies below it.
pub fn is_staged(ino: Ino) -> bool {
    ino >= STAGED
}

/// How long the kernel may cache what changes only through the kernel itself, or never. A time
/// longer than one hour gains nothing.
pub const FOREVER: Duration = Duration::from_secs(3600);

/// How long the listing of a changing directory is cached. A longer time shows people stale
/// entries; a shorter one asks the store for each `ls`.
const CURRENT: Duration = Duration::from_secs(1);

/// The kind of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
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
    /// The number that stat() shows: for a hard link to a file of `in/`, the number of that file;
    /// otherwise the inode's own number.
    pub shown_ino: Ino,
    /// Its kind.
    pub kind: FileKind,
    /// Size in bytes.
    pub size: u64,
    /// Blocks of 512 bytes. A lazily fetched file counts as dense, or `cp` would take it for a
    /// hole.
    pub blocks: u64,
    /// Time of the last read.
    pub atime: SystemTime,
    /// Time of the last write.
    pub mtime: SystemTime,
    /// Time of the last change.
    pub ctime: SystemTime,
    /// Permission bits.
    pub perm: u16,
    /// Number of hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// How long these attributes stay valid.
    pub ttl: Duration,
}

/// The outcome of a lookup of a name.
#[derive(Clone, Copy, Debug)]
pub enum LookupOutcome {
    /// The name exists, and its inode has these attributes.
    Found(Attr),
    /// The name does not exist. The kernel may remember that for so long.
    Missing(Duration),
}

impl LookupOutcome {
    /// Returns the attributes of the inode, if the name exists.
    pub fn found(self) -> Option<Attr> {
        match self {
            Self::Found(attr) => Some(attr),
            Self::Missing(_) => None,
        }
    }
}

/// One name in a directory.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// The name.
    pub name: std::ffi::OsString,
    /// The attributes of the inode.
    pub attr: Attr,
}

/// Returns the offset that a seek for data or for a hole finds in a file of `size` bytes without
/// holes. Returns ENXIO at or beyond the end of the file.
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
    /// The next data.
    Data,
    /// The next hole.
    Hole,
}

/// Returns the errno of a system error, or EIO if it has none.
pub(crate) fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
