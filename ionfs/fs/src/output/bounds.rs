//! What a job may use of the node, and the end of its waits when it is ended by force.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use ion_model::errors::is_no_room;
use ion_model::limits::{Limits, bytes_in_words};
use ion_plane::commit::Refusal;
use ion_system::beneath::Folder;

use super::super::{Errno, Ino, Result};
use super::table::OutputTable;
use super::{NAME_MAX, Output};

/// The system's longest path in bytes, including the zero byte at its end.
const PATH_MAX: usize = libc::PATH_MAX as usize;

/// A staging limit that a job exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StagingLimit {
    Bytes,
    Files,
}

impl Output {
    /// Returns the limits on what the job may use.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Ends the waits of a job that is ended by force: requests that wait for a store are answered
    /// now, and nothing is committed any more. A process whose request is not answered cannot die.
    pub(crate) fn stop(&self) {
        self.stopped.cancel();
    }

    /// Awaits `work`. Returns EIO when the job is ended by force.
    pub(crate) async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        tokio::select! {
            // Check for the end first: `work` that is polled even once may hand its document to the
            // store, if what it waits for is quick.
            biased;
            () = self.stopped.cancelled() => Err(Errno::IO),
            outcome = work => outcome,
        }
    }

    /// Returns the staging limit that the job exceeded, in words. Exceeding it fails the job.
    pub(crate) fn exceeded(&self) -> Option<String> {
        self.exceeded.get().map(|exceeded| {
            let (most, name) = match exceeded {
                StagingLimit::Bytes => (bytes_in_words(self.limits.staged_bytes), "staged-bytes"),
                StagingLimit::Files => {
                    (format!("{} files", self.limits.staged_files), "staged-files")
                }
            };
            format!(
                "over its limit of {most} in out/ (EDQUOT); {name:?} under \"limits\" allows more"
            )
        })
    }

    /// Returns what the machine had no room for, in words.
    pub(crate) fn no_room(&self) -> Option<String> {
        let error = std::io::Error::from(*self.no_room.get()?);
        Some(format!("this machine has no room for what it writes: {error}"))
    }

    /// Passes on the result of an operation on the staging disk, and remembers it if the disk had
    /// no room.
    pub(super) fn of_disk<T>(&self, given: Result<T>) -> Result<T> {
        given.inspect_err(|errno| {
            if is_no_room(&(*errno).into()) {
                let _ = self.no_room.set(*errno);
            }
        })
    }

    fn went_over(&self, exceeded: StagingLimit) -> Errno {
        if self.exceeded.set(exceeded).is_ok() {
            tracing::info!(job = %self.committer.origin().job_id, "the job exceeded a staging \
                                                                   limit");
        }
        Errno::DQUOT
    }

    /// Sets the bytes that a file's content counts against the job's limit.
    pub(super) fn charge(&self, table: &mut OutputTable, ino: Ino, bytes: u64) -> Result<()> {
        self.within_bytes(table, |table, most| table.charge(ino, bytes, most))
    }

    /// Sets the bytes that an inode counts in addition to its content.
    pub(super) fn attach(&self, table: &mut OutputTable, ino: Ino, bytes: u64) -> Result<()> {
        self.within_bytes(table, |table, most| table.attach(ino, bytes, most))
    }

    /// Returns EDQUOT if the job may not stage `bytes` more.
    pub(super) fn may_take(&self, table: &mut OutputTable, bytes: u64) -> Result<()> {
        self.within_bytes(table, |table, most| table.has_room_for(bytes, most))
    }

    /// Returns EDQUOT unless the job stays within its limit of bytes, which `fits` checks. If it
    /// does not fit at first, drops the content that is still held of removed files and checks
    /// again.
    fn within_bytes(
        &self,
        table: &mut OutputTable,
        fits: impl Fn(&mut OutputTable, u64) -> bool,
    ) -> Result<()> {
        let most = self.limits.staged_bytes;
        if fits(table, most) || (table.let_go_of_held() && fits(table, most)) {
            return Ok(());
        }
        Err(self.went_over(StagingLimit::Bytes))
    }

    /// Like [`Output::charge`], for a file that now reaches `end`. The charge never becomes lower.
    pub(super) fn charge_to(&self, table: &mut OutputTable, ino: Ino, end: u64) -> Result<()> {
        let now = table.file(ino)?.charged;
        if end > now { self.charge(table, ino, end) } else { Ok(()) }
    }

    /// Returns the folder for a new name, if the name is free and the job may make one more inode.
    pub(super) fn folder_for(
        &self,
        table: &OutputTable,
        parent: Ino,
        name: &OsStr,
    ) -> Result<Arc<Folder>> {
        if table.child(parent, name)?.is_some() {
            return Err(Errno::EXIST);
        }
        self.may_reach(&table.path_in(parent, name)?, || 0)?;
        if table.made() >= self.limits.staged_files {
            return Err(self.went_over(StagingLimit::Files));
        }
        self.folder(table, parent)
    }

    /// Returns ENAMETOOLONG unless `path`, and the longest path `below` it, stay within the
    /// system's own longest path. An inode that is deeper, made step by step, could be neither
    /// opened nor removed.
    pub(super) fn may_reach(&self, path: &Path, below: impl FnOnce() -> usize) -> Result<()> {
        let name = path.file_name().unwrap_or_default();
        let fits = name.len() <= NAME_MAX && path.as_os_str().len() + below() < PATH_MAX;
        if fits { Ok(()) } else { Err(Errno::NAMETOOLONG) }
    }

    /// Returns a refusal if an event may not name this path.
    pub(super) fn may_name(&self, path: &str) -> std::result::Result<(), Refusal> {
        self.limits.may_name(path).map_err(|error| Refusal::TooLong(error.to_string()))
    }
}
