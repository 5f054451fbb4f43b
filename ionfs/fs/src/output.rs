//! What a module writes: `out/`, staged on a real local directory.
//!
//! # How it works
//! The table of names ([`table`]) is the truth; the staging folder holds content and attributes.
//! All writes go through the daemon, so that it sees each change and knows whether a blob holds a
//! file's latest content. A file that is copied, linked or moved from `in/data` is a [`reference`]:
//! a hole in the staging folder and the name of a blob, until the module writes to it. Files upload
//! in the background when their last writer closes them, and long ones while they are written
//! ([`early`]); a commit waits only for what is not stored yet.
//!
//! # What it never does
//! Follow a symbolic link out of `out/data` (a link may point anywhere: only the module's own
//! processes go there); hold its lock across a wait; let an event file change after its commit.

mod closed;
mod content;
mod early;
mod events;
mod filling;
mod folders;
mod handle;
mod in_order;
mod limits;
mod making;
mod own_blobs;
mod reference;
mod request;
mod staging;
mod storing;
mod table;
mod tasks;
mod xattr;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ion_model::event::FileEntry;
use ion_model::limits::Limits;
use ion_plane::commit::{Committer, Receipt, Rejection};
use ion_plane::node::Node as Daemon;
use ion_system::beneath::Folder;
use rustix::fs::{self, Mode, OFlags, StatVfs, Timestamps};
use tokio::sync::{Notify, Semaphore};

use self::closed::ClosedFiles;
use self::content::give_up_rights;
pub(crate) use self::content::{open_blob, read_within};
pub(crate) use self::handle::{CloseReport, StagedHandle};
use self::in_order::InOrder;
use self::limits::{NAME_MAX, StagingLimits, check_length};
use self::own_blobs::JobBlobs;
pub(crate) use self::request::{
    AttrChange, ContentChanger, Maker, OpenRequest, RenameOver, TimeChange,
};
pub use self::request::{ValueFileNames, Writers};
use self::staging::StagingArea;
pub(crate) use self::table::{DATA, DOT, DOT_DOT, EVENTS, OUT};
use self::table::{NodeBody, OrphanedFile, OutputTable, UnnamedRemains};
use self::tasks::JobTasks;
pub(crate) use self::xattr::no_attribute;
use super::eventfile::ContentChange;
use super::reads::{ReadFailure, ReadLog};
use super::{Attr, Errno, FileKind, Ino, ROOT, Result, errno};

/// The memory that one job may use for event files that are read and decided at the same time, in
/// units of [`READING_UNIT`] bytes: enough for four event files of the largest size that is allowed
/// by default. Parsed documents take more; without a bound, a job of many threads takes all memory
/// of the daemon.
const READING_UNITS: usize = 16 << 10;
const READING_UNIT: u64 = 4096;

/// The output tree of one attempt.
#[derive(Debug)]
pub(crate) struct Output {
    daemon: Arc<Daemon>,
    committer: Committer,
    staging: Arc<StagingArea>,
    tasks: JobTasks,
    /// Notified whenever a handle is released.
    released: Notify,
    /// Files whose last writer is gone, and the work that is left to do for them.
    closed: ClosedFiles,
    blobs_made: AtomicU64,
    /// Bytes that uploads have moved. A request that waits for uploads may wait while this grows.
    moved: Arc<AtomicU64>,
    receipts: Mutex<BTreeMap<String, Receipt>>,
    rejections: Mutex<BTreeMap<String, Rejection>>,
    /// Files as events named them, for their next reader on this node.
    named: Mutex<Vec<(Ino, FileEntry)>>,
    own_blobs: Arc<JobBlobs>,
    /// Permits for the memory that event files are read into ([`READING_UNITS`]).
    reading: Semaphore,
    reads: ReadLog,
}

impl Output {
    /// Returns the attempt's span.
    pub(crate) fn span(&self) -> &tracing::Span {
        self.committer.span()
    }

    /// Returns the bytes that uploads have moved.
    pub(crate) fn bytes_moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Makes an empty tree that is staged at `directory`, which must not exist yet. Must be called
    /// inside a Tokio runtime.
    pub(super) fn new(
        daemon: Arc<Daemon>,
        committer: Committer,
        limits: Limits,
        names: ValueFileNames,
        writers: Writers,
        directory: &Path,
        reads: ReadLog,
    ) -> io::Result<Arc<Self>> {
        let root = Folder::made(directory)?;
        for part in ["data", "events"] {
            root.make_folder(OsStr::new(part), Mode::from_raw_mode(0o755))?;
        }
        let tasks = JobTasks::new();
        let own_blobs = JobBlobs::new(daemon.plane.blobs.clone(), tasks.runtime().clone());
        let limits = StagingLimits::new(committer.origin().job_id.clone(), limits);
        let output = Self {
            daemon,
            committer,
            staging: StagingArea::new(OutputTable::new(names), root, limits),
            tasks,
            released: Notify::new(),
            closed: ClosedFiles::default(),
            blobs_made: AtomicU64::new(0),
            moved: Arc::default(),
            receipts: Mutex::default(),
            rejections: Mutex::default(),
            named: Mutex::default(),
            reading: Semaphore::new(READING_UNITS),
            own_blobs,
            reads,
        };
        let insights_mode = match writers {
            Writers::Owner => 0o644,
            Writers::AnyUser => {
                for ino in [OUT, DATA, EVENTS] {
                    output
                        .staging
                        .pin(&output.staging.lock(), ino)?
                        .set_mode(Mode::from_raw_mode(0o777))?;
                }
                0o666
            }
        };
        // Older modules open insights.json without creating it.
        let insights = output.staging.lock().insights();
        for name in insights {
            output.make_file(OUT, OsStr::new(name), insights_mode, Maker::daemon())?;
        }
        Ok(Arc::new(output))
    }

    /// Returns the limits on what the job may use.
    pub(crate) fn limits(&self) -> &Limits {
        self.staging.limits().most()
    }

    /// Returns the staging limit that the job exceeded, in words. Exceeding it fails the job.
    pub(crate) fn exceeded(&self) -> Option<String> {
        self.staging.limits().exceeded()
    }

    /// Returns what the machine had no room for, in words.
    pub(crate) fn no_room(&self) -> Option<String> {
        self.staging.limits().no_room()
    }

    /// Returns the path of an inode as seen from `ION_DIR`.
    pub(crate) fn shown_path(&self, ino: Ino) -> String {
        self.staging.shown_path(ino)
    }

    /// Ends the waits of a job that is ended by force: requests that wait for a store are answered
    /// now, and nothing is committed any more.
    pub(crate) fn stop(&self) {
        self.tasks.stop();
    }

    /// Awaits `work`. Returns EIO when the job is ended by force.
    pub(crate) async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.tasks.unless_stopped(work).await
    }

    // ---- names and attributes ----

    /// Looks up a name. Returns none if it does not exist.
    pub(crate) fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Option<Attr>> {
        if name.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let table = self.staging.lock();
        table.child(parent, name)?.map(|ino| self.staging.attr(&table, ino)).transpose()
    }

    /// Returns an inode's attributes.
    pub(crate) fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.staging.attr(&self.staging.lock(), ino)
    }

    /// Passes the names of a directory behind position `place` of its listing to `take`, each with
    /// its own position, inode and kind, until `take` returns true.
    pub(crate) fn names_behind(
        &self,
        ino: Ino,
        place: u64,
        mut take: impl FnMut(u64, &OsStr, Ino, FileKind) -> bool,
    ) -> Result<()> {
        let table = self.staging.lock();
        let directory = table.directory(ino)?;
        for (at, name, child) in directory.behind(place) {
            let Ok(node) = table.node(child) else { continue };
            if take(at, name, child, node.body.kind()) {
                break;
            }
        }
        Ok(())
    }

    /// Like [`Output::names_behind`], but passes the current attributes. Leaves out a name whose
    /// inode is gone.
    pub(crate) fn entries_behind(
        &self,
        ino: Ino,
        place: u64,
        mut take: impl FnMut(u64, &OsStr, &Attr) -> bool,
    ) -> Result<()> {
        let table = self.staging.lock();
        for (at, name, child) in table.directory(ino)?.behind(place) {
            match self.staging.attr(&table, child) {
                Ok(attr) if take(at, name, &attr) => break,
                Ok(_) | Err(Errno::NOENT | Errno::STALE) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Returns the parent of a directory.
    pub(crate) fn parent(&self, ino: Ino) -> Ino {
        if ino == OUT {
            return ROOT;
        }
        self.staging.lock().place(ino).map_or(OUT, |(parent, _)| parent)
    }

    /// Records a failed read of bytes that a file refers to. Returns the errno that the module
    /// receives.
    fn read_failed(&self, ino: Ino, failure: &ReadFailure) -> Errno {
        self.reads.note(&self.staging.shown_path(ino), failure)
    }

    /// Changes attributes. A new length is set through `through`, the handle that the request
    /// names, if it names one.
    pub(crate) fn setattr(
        &self,
        ino: Ino,
        change: AttrChange,
        through: Option<&StagedHandle>,
        by: ContentChanger,
    ) -> Result<Attr> {
        let mut table = self.staging.lock();
        if let Some(size) = change.size {
            self.resize(&mut table, ino, size, through, by)?;
        }
        let pinned = self.staging.pin(&table, ino)?;
        if change.uid.is_some() || change.gid.is_some() {
            pinned
                .set_owner(change.uid.map(fs::Uid::from_raw), change.gid.map(fs::Gid::from_raw))?;
        }
        if let Some(mode) = change.mode {
            pinned.set_mode(Mode::from_raw_mode(mode & 0o7777))?;
        }
        if change.atime != TimeChange::Keep || change.mtime != TimeChange::Keep {
            pinned.set_times(&Timestamps {
                last_access: change.atime.timespec(),
                last_modification: change.mtime.timespec(),
            })?;
        }
        table.is_changed(ino);
        self.staging.attr(&table, ino)
    }

    fn resize(
        &self,
        table: &mut OutputTable,
        ino: Ino,
        size: u64,
        through: Option<&StagedHandle>,
        by: ContentChanger,
    ) -> Result<()> {
        table.file(ino)?.check_change()?;
        let opened;
        let backing = match through.filter(|staged| staged.ino() == ino && staged.writes()) {
            Some(staged) => staged.file(),
            None => {
                opened = self.staging.open_file(table, ino, OFlags::WRONLY)?;
                &opened
            }
        };
        give_up_rights(backing, by)?;
        // Bytes that are a blob's take no room on the staging disk.
        let takes = table
            .file(ino)?
            .reference
            .as_ref()
            .is_none_or(|reference| reference.takes_room_at(size));
        self.staging.limits().charge(table, ino, if takes { size } else { 0 })?;
        let file = table.file_mut(ino)?;
        backing.set_len(size).map_err(|error| errno(&error))?;
        if file.failed.is_some_and(|(at, _)| at >= size) {
            file.failed = None;
        }
        match &mut file.reference {
            Some(reference) if size > 0 => reference.resize(size),
            reference => *reference = None,
        }
        file.changes(ContentChange::Resized);
        file.in_order = (size == 0).then(InOrder::default);
        Ok(())
    }

    /// Returns the target of a symbolic link.
    pub(crate) fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        self.staging.pin(&self.staging.lock(), ino)?.link_target()
    }

    /// Makes a hard link inside `out/data`.
    pub(crate) fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Attr> {
        let mut table = self.staging.lock();
        let kind = match &table.node(ino)?.body {
            NodeBody::File(file) => {
                file.check_move()?;
                FileKind::File
            }
            NodeBody::Symlink => FileKind::Symlink,
            NodeBody::Special(kind) => *kind,
            NodeBody::Directory(_) => return Err(Errno::PERM),
        };
        table.check_place(parent, name, kind)?;
        let folder = self.staging.folder_for_new(&table, parent, name)?;
        self.staging.pin(&table, ino)?.link(&folder, name)?;
        table.link(ino, parent, name)?;
        self.staging.attr(&table, ino)
    }

    /// Removes a name of a file or link.
    pub(crate) fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let mut table = self.staging.lock();
        let ino = table.child(parent, name)?.ok_or(Errno::NOENT)?;
        if let NodeBody::File(file) = &table.node(ino)?.body {
            file.check_change()?;
        }
        let remains = self.remains(&table, ino)?;
        self.staging.folder(&table, parent)?.remove_file(name)?;
        table.unlink(parent, name, remains)?;
        self.discard_orphans(&mut table);
        Ok(())
    }

    /// Removes the blobs of files that are gone. An upload that is still running removes its own
    /// blob when it ends. The file's local space is freed now, because a module that removed a file
    /// counts on that space; what the upload reads after that is named by no event.
    fn discard_orphans(&self, table: &mut OutputTable) {
        for OrphanedFile { stored, known } in table.take_orphans() {
            match (stored.get(), known) {
                (Some(entry), _) => self.own_blobs.discard(&entry.key),
                // If the truncation is refused, the space is freed when the upload ends.
                (None, Some(content)) => drop(content.open(OFlags::WRONLY | OFlags::TRUNC)),
                (None, None) => {}
            }
        }
    }

    /// Returns what must be kept of an inode whose last name is about to be removed: the content of
    /// an open file; for another inode that the kernel knows, its content (a file, while there is
    /// room) or its attributes.
    fn remains(&self, table: &OutputTable, ino: Ino) -> Result<Option<UnnamedRemains>> {
        let node = table.node(ino)?;
        if node.links.len() > 1 {
            return Ok(None);
        }
        Ok(match &node.body {
            NodeBody::File(file) if file.opens > 0 => {
                Some(UnnamedRemains::Open(self.staging.pin(table, ino)?))
            }
            NodeBody::File(_) if node.known > 0 && table.may_hold_unnamed() => {
                Some(UnnamedRemains::Known(self.staging.pin(table, ino)?))
            }
            _ if node.known > 0 => {
                let mut stat = self.staging.stat(table, ino)?;
                stat.st_nlink = 0;
                Some(UnnamedRemains::Seen(Box::new(stat)))
            }
            _ => None,
        })
    }

    /// Increments the kernel's lookup count of this inode.
    pub(super) fn remember(&self, ino: Ino) {
        if let Ok(node) = self.staging.lock().node_mut(ino) {
            node.known += 1;
        }
    }

    /// Lowers the kernel's lookup count of this inode by `times`.
    pub(super) fn forget(&self, ino: Ino, times: u64) {
        let mut table = self.staging.lock();
        if let Ok(node) = table.node_mut(ino) {
            node.known = node.known.saturating_sub(times);
        }
        table.look_after_unnamed(ino);
        self.discard_orphans(&mut table);
    }

    /// Removes an empty directory.
    pub(crate) fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let mut table = self.staging.lock();
        let ino = table.child(parent, name)?.ok_or(Errno::NOENT)?;
        if ino == DATA || ino == EVENTS {
            return Err(Errno::PERM);
        }
        let remains = self.remains(&table, ino)?;
        self.staging.folder(&table, parent)?.remove_folder(name)?;
        self.staging.close_folder(ino);
        table.unlink(parent, name, remains)
    }

    /// Renames inside `out/` without committing anything.
    fn rename_plain(
        &self,
        parent: Ino,
        name: &OsStr,
        newparent: Ino,
        newname: &OsStr,
        over: RenameOver,
    ) -> Result<()> {
        let mut table = self.staging.lock();
        let ino = table.child(parent, name)?.ok_or(Errno::NOENT)?;
        if ino == DATA || ino == EVENTS {
            return Err(Errno::PERM);
        }
        let kind = table.node(ino)?.body.kind();
        if let NodeBody::File(file) = &table.node(ino)?.body {
            file.check_move()?;
        }
        table.check_place(newparent, newname, kind)?;
        if kind == FileKind::Directory && table.is_below(newparent, ino) {
            return Err(Errno::INVAL);
        }
        // What lies below a directory moves with it and must fit the longest path too.
        check_length(&table.path_in(newparent, newname)?, || table.reach(ino))?;
        let target = table.child(newparent, newname)?;
        if target.is_some() && over == RenameOver::Nothing {
            return Err(Errno::EXIST);
        }
        if target == Some(ino) {
            // Two names of one file: rename does nothing, as POSIX says.
            return Ok(());
        }
        if let Some(target) = target
            && let NodeBody::File(file) = &table.node(target)?.body
            && over != RenameOver::SameEvent
        {
            file.check_move()?;
        }
        let remains = target.map(|target| self.remains(&table, target)).transpose()?.flatten();
        let (from, to) =
            (self.staging.folder(&table, parent)?, self.staging.folder(&table, newparent)?);
        from.rename(name, &to, newname)?;
        if let Some(target) = target {
            self.staging.close_folder(target);
            table.unlink(newparent, newname, remains)?;
            self.discard_orphans(&mut table);
        }
        // Link before unlinking: the table would drop a file that has neither a name nor a handle.
        table.link(ino, newparent, newname)?;
        table.unlink(parent, name, None)?;
        if (newparent == EVENTS || table.is_insights(newparent, newname))
            && let Ok(file) = table.file_mut(ino)
        {
            file.event.get_or_insert_default();
        }
        Ok(())
    }

    /// Returns the space of the staging disk.
    pub(crate) fn statfs(&self) -> Result<StatVfs> {
        self.staging.space()
    }
}
