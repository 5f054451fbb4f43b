//! What a job may take of the node, and the end of its waiting when it is ended by force.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use ion_model::errors::is_no_room;
use ion_model::limits::{Limits, bytes_in_words};
use ion_plane::commit::Refusal;
use ion_system::beneath::Folder;

use super::super::{Errno, Ino, Result};
use super::table::Table;
use super::{NAME_MAX, Output};

/// Bytes of the system's longest path, its end included.
const PATH_MAX: usize = libc::PATH_MAX as usize;

/// A limit of what a job may stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exceeded {
    Bytes,
    Files,
}

impl Output {
    /// What the job may take.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The job is ended by force: requests that wait for a store are answered now, and nothing is
    /// committed any more. A process whose request is not answered cannot die.
    pub(crate) fn stop(&self) {
        self.stopped.cancel();
    }

    /// Awaits `work` until the job is ended by force; EIO then.
    pub(crate) async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        tokio::select! {
            // First: work that is polled once may have handed its document to the store, if what it
            // waits for is quick.
            biased;
            () = self.stopped.cancelled() => Err(Errno::IO),
            outcome = work => outcome,
        }
    }

    /// The limit that the job went over, in words, if one that fails it.
    pub(crate) fn exceeded(&self) -> Option<String> {
        self.exceeded.get().map(|exceeded| {
            let (most, name) = match exceeded {
                Exceeded::Bytes => (bytes_in_words(self.limits.staged_bytes), "staged-bytes"),
                Exceeded::Files => (format!("{} files", self.limits.staged_files), "staged-files"),
            };
            format!(
                "over its limit of {most} in out/ (EDQUOT); {name:?} under \"limits\" allows more"
            )
        })
    }

    /// What the machine had no room for, in words.
    pub(crate) fn no_room(&self) -> Option<String> {
        let error = std::io::Error::from(*self.no_room.get()?);
        Some(format!("this machine has no room for what it writes: {error}"))
    }

    /// What an act on the staging disk gave. If the disk had no room, that is remembered.
    pub(super) fn of_disk<T>(&self, given: Result<T>) -> Result<T> {
        given.inspect_err(|errno| {
            if is_no_room(&(*errno).into()) {
                let _ = self.no_room.set(*errno);
            }
        })
    }

    fn went_over(&self, exceeded: Exceeded) -> Errno {
        if self.exceeded.set(exceeded).is_ok() {
            tracing::info!(job = %self.committer.origin().job_id, "it has staged all it may");
        }
        Errno::DQUOT
    }

    /// Lets a file count `bytes` against the job's limit.
    pub(super) fn charge(&self, table: &mut Table, ino: Ino, bytes: u64) -> Result<()> {
        self.within_bytes(table, |table, most| table.charge(ino, bytes, most))
    }

    /// Lets an inode count `bytes` beside its content.
    pub(super) fn attach(&self, table: &mut Table, ino: Ino, bytes: u64) -> Result<()> {
        self.within_bytes(table, |table, most| table.attach(ino, bytes, most))
    }

    /// Whether the job may stage so many bytes more.
    pub(super) fn may_take(&self, table: &mut Table, bytes: u64) -> Result<()> {
        self.within_bytes(table, |table, most| table.has_room_for(bytes, most))
    }

    /// EDQUOT unless what the job stages `fits` into its bytes, if need be without what is still
    /// held of removed files.
    fn within_bytes(
        &self,
        table: &mut Table,
        fits: impl Fn(&mut Table, u64) -> bool,
    ) -> Result<()> {
        let most = self.limits.staged_bytes;
        if fits(table, most) || (table.let_go_of_held() && fits(table, most)) {
            return Ok(());
        }
        Err(self.went_over(Exceeded::Bytes))
    }

    /// The same for a file that reaches `end` now, and keeps what it counts already.
    pub(super) fn charge_to(&self, table: &mut Table, ino: Ino, end: u64) -> Result<()> {
        let now = table.file(ino)?.charged;
        if end > now { self.charge(table, ino, end) } else { Ok(()) }
    }

    /// The folder for a name that is not there yet, if the job may make one more.
    pub(super) fn folder_for(
        &self,
        table: &Table,
        parent: Ino,
        name: &OsStr,
    ) -> Result<Arc<Folder>> {
        if table.child(parent, name)?.is_some() {
            return Err(Errno::EXIST);
        }
        self.may_reach(&table.path_in(parent, name)?, || 0)?;
        if table.made() >= self.limits.staged_files {
            return Err(self.went_over(Exceeded::Files));
        }
        self.folder(table, parent)
    }

    /// Whether something may stand at `path`, with what is `below` it: as long as the system's own
    /// longest path. What is deeper, made step by step, could be opened and removed by nobody.
    pub(super) fn may_reach(&self, path: &Path, below: impl FnOnce() -> usize) -> Result<()> {
        let name = path.file_name().unwrap_or_default();
        let fits = name.len() <= NAME_MAX && path.as_os_str().len() + below() < PATH_MAX;
        if fits { Ok(()) } else { Err(Errno::NAMETOOLONG) }
    }

    /// Whether an event may name this path.
    pub(super) fn may_name(&self, path: &str) -> std::result::Result<(), Refusal> {
        self.limits.may_name(path).map_err(Refusal::TooLong)
    }
}
