//! What a caller asks of the output, as plain data.

use std::time::SystemTime;

use rustix::fs::{self, OFlags, Timespec};
use serde::{Deserialize, Serialize};

/// The kernel's flag of an open by execve(). No header defines it.
const FMODE_EXEC: i32 = 0x20;

/// The names of the files that hold a module's values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ValueFileNames {
    /// `in/eventmeta.json` and `out/insights.json`.
    #[default]
    Current,
    /// The current names, and also `in/meta.json` and `out/meta.json`.
    AndSecondGeneration,
}

/// Which users may write to the folders that a tree begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Writers {
    /// The user that the daemon and its modules run as.
    #[default]
    Owner,
    /// Any user among the job's processes: in a container or a pod the module runs as a user that
    /// the daemon does not know.
    AnyUser,
}

/// The user and group that make something, and own it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Maker {
    /// The user's ID.
    pub(crate) uid: u32,
    /// The group's ID.
    pub(crate) gid: u32,
}

impl Maker {
    /// Returns the daemon's own user and group.
    pub(crate) fn daemon() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }
}

/// A change of attributes. An attribute that is none stays as it is.
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
    /// Everything that POSIX lets it replace, except an event.
    Anything,
    /// Also an event, because the renamed file was just found to be the same event.
    SameEvent,
}

/// Which kind of user changes a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContentChanger {
    /// A user who may keep the set-user-ID and set-group-ID bits (`CAP_FSETID`).
    Privileged,
    /// Any other user: the bits are cleared, or the new content would run with the rights of the
    /// file's owner.
    AnotherUser,
}

/// How a file is to be opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenRequest {
    /// The open flags as the kernel gave them.
    pub(crate) flags: i32,
    /// Who opens it.
    pub(crate) by: ContentChanger,
}

impl OpenRequest {
    pub(super) fn writes(self) -> bool {
        self.access() != libc::O_RDONLY
    }

    pub(super) fn truncates(self) -> bool {
        self.flags & libc::O_TRUNC != 0
    }

    /// Returns whether the open may change anything.
    pub(crate) fn changes(self) -> bool {
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
    pub(super) fn backing(self) -> OFlags {
        let kept = libc::O_ACCMODE | libc::O_TRUNC | libc::O_SYNC | libc::O_DSYNC;
        OFlags::from_bits_retain((self.flags & kept).cast_unsigned())
    }

    fn access(self) -> i32 {
        self.flags & libc::O_ACCMODE
    }
}
