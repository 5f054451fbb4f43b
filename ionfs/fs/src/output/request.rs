//! What is asked of a job's output (`out/`), as plain data: the settings that it is made with, and
//! the arguments of the operations that FUSE passes on.

use std::time::SystemTime;

use rustix::fs::{self, OFlags, Timespec};
use serde::{Deserialize, Serialize};

/// The kernel's flag of an open by execve(), which it passes on to FUSE. No header of user space
/// defines it.
const FMODE_EXEC: i32 = 0x20;

/// The names of the files that hold a module's values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ValueFileNames {
    /// `in/eventmeta.json` and `out/insights.json`.
    #[default]
    Current,
    /// The current names, and also `in/meta.json` and `out/meta.json`.
    WithMetaJson,
}

/// Which users a job's tree is for: who may read `in/`, and write to `out/`, `out/data`,
/// `out/events` and the files of insights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TreeUsers {
    /// The user that the daemon and its modules run as.
    #[default]
    Owner,
    /// Any user: in a container or a pod the module may run as another user than the daemon.
    AnyUser,
}

/// The user and group that a new file or folder belongs to: those of the process that makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NewOwner {
    /// The user's ID.
    pub(crate) uid: u32,
    /// The group's ID.
    pub(crate) gid: u32,
}

impl NewOwner {
    /// Returns the daemon's own user and group.
    pub(crate) fn daemon() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }
}

/// A change of attributes. An attribute that is `None` stays as it is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AttrChange {
    /// Permission bits.
    pub(crate) mode: Option<u32>,
    /// Owner.
    pub(crate) uid: Option<u32>,
    /// Group.
    pub(crate) gid: Option<u32>,
    /// Length.
    pub(crate) size: Option<u64>,
    /// Time of the last read.
    pub(crate) atime: TimeChange,
    /// Time of the last write.
    pub(crate) mtime: TimeChange,
}

/// A change of one time of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum TimeChange {
    /// The time stays as it is.
    #[default]
    Keep,
    /// The time becomes the moment of the change.
    Now,
    /// The time becomes this one.
    To(SystemTime),
}

impl TimeChange {
    /// Returns the change in the form that the system takes.
    pub(super) fn timespec(self) -> Timespec {
        let time = match self {
            Self::Keep => return Timespec { tv_sec: 0, tv_nsec: fs::UTIME_OMIT },
            Self::Now => return Timespec { tv_sec: 0, tv_nsec: fs::UTIME_NOW },
            Self::To(time) => time,
        };
        match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => Timespec {
                tv_sec: since.as_secs().cast_signed(),
                tv_nsec: since.subsec_nanos().into(),
            },
            Err(before) => {
                // Before 1970: `tv_nsec` is never negative, so a fraction borrows one second.
                let before = before.duration();
                let borrow = i64::from(before.subsec_nanos() > 0);
                let nanos = if borrow == 1 { 1_000_000_000 - before.subsec_nanos() } else { 0 };
                let seconds =
                    0_i64.saturating_sub_unsigned(before.as_secs()).saturating_sub(borrow);
                Timespec { tv_sec: seconds, tv_nsec: nanos.into() }
            }
        }
    }
}

/// What a rename may replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RenameOver {
    /// Nothing: the new name must be free (`RENAME_NOREPLACE`).
    Nothing,
    /// Everything that POSIX lets it replace, except the file of a committed event.
    AllButEvents,
    /// Also the file of a committed event, because the renamed file was just found to describe the
    /// same event.
    AlsoSameEvent,
}

/// What a change of content does to the file's set-user-ID and set-group-ID bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SetIdBits {
    /// They stay: the user may keep them (`CAP_FSETID`), or the kernel did not ask to clear them.
    Keep,
    /// They are cleared, or the new content would run with the rights of the file's owner.
    Clear,
}

/// How a file is to be opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenRequest {
    /// The open flags as the kernel gave them.
    pub(crate) flags: i32,
    /// What becomes of the set-user-ID and set-group-ID bits if the open truncates the file.
    pub(crate) set_id_bits: SetIdBits,
    /// The number of the thread that opens it; 0 if it is not visible from here.
    pub(crate) thread: u32,
}

impl OpenRequest {
    /// Returns whether the open allows writing.
    pub(super) fn writes(self) -> bool {
        self.access() != libc::O_RDONLY
    }

    /// Returns whether the open empties the file.
    pub(super) fn truncates(self) -> bool {
        self.flags & libc::O_TRUNC != 0
    }

    /// Returns whether all that is written goes to the end of the file.
    pub(super) fn appends(self) -> bool {
        self.flags & libc::O_APPEND != 0
    }

    /// Returns whether the open may change anything.
    pub(crate) fn may_change(self) -> bool {
        self.writes() || self.truncates()
    }

    /// Returns whether the file is opened to run it as a program. The handle then stays open for as
    /// long as the program runs.
    pub(super) fn executes(self) -> bool {
        self.flags & FMODE_EXEC != 0
    }

    /// Returns whether the open fails if the file exists.
    pub(super) fn needs_new_file(self) -> bool {
        self.flags & libc::O_EXCL != 0
    }

    /// Returns whether a process may map the file for writing through this open.
    pub(super) fn may_map_for_writing(self) -> bool {
        self.access() == libc::O_RDWR
    }

    /// Returns the same request for a file that was just made, which needs no truncation.
    pub(super) fn without_truncation(self) -> Self {
        Self { flags: self.flags & !libc::O_TRUNC, ..self }
    }

    /// Returns the flags for opening the staging file. The daemon itself decides about creation,
    /// append and links.
    pub(super) fn staging_flags(self) -> OFlags {
        let kept = libc::O_ACCMODE | libc::O_TRUNC | libc::O_SYNC | libc::O_DSYNC;
        OFlags::from_bits_retain((self.flags & kept).cast_unsigned())
    }

    fn access(self) -> i32 {
        self.flags & libc::O_ACCMODE
    }
}
