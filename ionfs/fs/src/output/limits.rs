//! What a job may use of the node.

use std::path::Path;
use std::sync::OnceLock;

use ion_model::errors::is_no_room;
use ion_model::limits::{Limits, bytes_in_words};

use super::super::{Errno, Ino, Result};
use super::table::OutputTable;

/// The longest name, in bytes. The kernel passes on longer names, but the staging disk holds none.
pub(super) const NAME_MAX: usize = 255;

/// The system's longest path in bytes, including the zero byte at its end.
const PATH_MAX: usize = libc::PATH_MAX as usize;

/// A staging limit that a job exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StagingLimit {
    Bytes,
    Files,
}

/// The limits of one job or of one inbox, and what it could not have.
#[derive(Debug)]
pub(super) struct StagingLimits {
    /// The id of the job, or the word for the inbox.
    owner: String,
    most: Limits,
    /// The first staging limit that the job exceeded.
    exceeded: OnceLock<StagingLimit>,
    /// The errno of the first operation for which the disk had no room.
    no_room: OnceLock<Errno>,
}

impl StagingLimits {
    pub(super) fn new(owner: String, most: Limits) -> Self {
        Self { owner, most, exceeded: OnceLock::new(), no_room: OnceLock::new() }
    }

    /// Returns the most that the job may use.
    pub(super) fn job_limits(&self) -> &Limits {
        &self.most
    }

    /// Returns the staging limit that the job exceeded, in words. Exceeding it fails the job.
    pub(super) fn exceeded(&self) -> Option<String> {
        self.exceeded.get().map(|exceeded| {
            let (most, name) = match exceeded {
                StagingLimit::Bytes => (bytes_in_words(self.most.staged_bytes), "staged-bytes"),
                StagingLimit::Files => {
                    (format!("{} files", self.most.staged_files), "staged-files")
                }
            };
            format!(
                "over its limit of {most} in out/ (EDQUOT); {name:?} under \"limits\" allows more"
            )
        })
    }

    /// Returns what the machine had no room for, in words.
    pub(super) fn no_room(&self) -> Option<String> {
        let error = std::io::Error::from(*self.no_room.get()?);
        Some(format!("this machine has no room for what it writes: {error}"))
    }

    /// Passes on the result of an operation on the staging disk, and remembers it if the disk had
    /// no room.
    pub(super) fn remember_no_room<T>(&self, outcome: Result<T>) -> Result<T> {
        outcome.inspect_err(|errno| {
            if is_no_room(&(*errno).into()) {
                let _ = self.no_room.set(*errno);
            }
        })
    }

    fn note_exceeded(&self, exceeded: StagingLimit) -> Errno {
        if self.exceeded.set(exceeded).is_ok() {
            tracing::info!(job = self.owner, "a staging limit was exceeded");
        }
        Errno::DQUOT
    }

    /// Sets the bytes that a file's content counts against the job's limit.
    pub(super) fn charge(&self, table: &mut OutputTable, ino: Ino, bytes: u64) -> Result<()> {
        self.check_bytes(table, |table, most| table.charge(ino, bytes, most))
    }

    /// Sets the bytes that an inode counts in addition to its content.
    pub(super) fn charge_extra(&self, table: &mut OutputTable, ino: Ino, bytes: u64) -> Result<()> {
        self.check_bytes(table, |table, most| table.charge_extra(ino, bytes, most))
    }

    /// Returns EDQUOT if the job may not stage `bytes` more.
    pub(super) fn check_room_for(&self, table: &mut OutputTable, bytes: u64) -> Result<()> {
        self.check_bytes(table, |table, most| table.has_room_for(bytes, most))
    }

    /// Returns EDQUOT if the job may not make one more inode.
    pub(super) fn check_new_inode(&self, table: &OutputTable) -> Result<()> {
        if table.counted_inodes() < self.most.staged_files {
            Ok(())
        } else {
            Err(self.note_exceeded(StagingLimit::Files))
        }
    }

    /// Returns EDQUOT unless the job stays within its limit of bytes, which `fits` checks. If it
    /// does not fit at first, drops the content that is still held of removed files and checks
    /// again.
    fn check_bytes(
        &self,
        table: &mut OutputTable,
        fits: impl Fn(&mut OutputTable, u64) -> bool,
    ) -> Result<()> {
        let most = self.most.staged_bytes;
        if fits(table, most) || (table.drop_held() && fits(table, most)) {
            return Ok(());
        }
        Err(self.note_exceeded(StagingLimit::Bytes))
    }

    /// Like [`StagingLimits::charge`], for a file that now reaches `end`. The charge never becomes
    /// lower.
    pub(super) fn raise_charge(&self, table: &mut OutputTable, ino: Ino, end: u64) -> Result<()> {
        let now = table.file(ino)?.charged;
        if end > now { self.charge(table, ino, end) } else { Ok(()) }
    }
}

/// Returns ENAMETOOLONG unless `path`, and the longest path `below` it, stay within the system's
/// own longest path. An inode that is deeper, made step by step, could be neither opened nor
/// removed.
pub(super) fn check_length(path: &Path, below: impl FnOnce() -> usize) -> Result<()> {
    let name = path.file_name().unwrap_or_default();
    let fits = name.len() <= NAME_MAX && path.as_os_str().len() + below() < PATH_MAX;
    if fits { Ok(()) } else { Err(Errno::NAMETOOLONG) }
}
