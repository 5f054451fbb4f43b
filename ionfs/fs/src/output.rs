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

mod bounds;
mod closed;
mod content;
mod early;
mod events;
mod filling;
mod handle;
mod in_order;
mod making;
mod own_blobs;
mod place;
mod reference;
mod request;
mod storing;
mod table;
mod xattr;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use ion_model::event::FileEntry;
use ion_model::limits::Limits;
use ion_plane::commit::{Committer, Receipt, Rejection};
use ion_plane::node::Node as Daemon;
use ion_system::beneath::Folder;
use rustix::fs::{self, Mode, OFlags, Stat, StatVfs, Timestamps};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use self::bounds::StagingLimit;
use self::closed::ClosedFiles;
use self::content::give_up_rights;
pub(crate) use self::content::{open_blob, read_within};
pub(crate) use self::handle::{CloseReport, StagedHandle};
use self::in_order::InOrder;
use self::making::may_hold_more;
use self::own_blobs::JobBlobs;
use self::place::OpenFolders;
pub(crate) use self::request::{
    AttrChange, ContentChanger, Maker, OpenRequest, RenameOver, TimeChange,
};
pub use self::request::{ValueFileNames, Writers};
pub(crate) use self::table::{DATA, DOT, DOT_DOT, EVENTS, OUT};
use self::table::{NodeBody, OrphanedFile, OutputNode, OutputTable, UnnamedRemains};
pub(crate) use self::xattr::no_attribute;
use super::eventfile::ContentChange;
use super::reads::{ReadFailure, ReadLog};
use super::{Attr, Errno, FOREVER, FileKind, Ino, ROOT, Result, errno};

/// The longest name, in bytes. The kernel passes on longer names, but the staging disk holds none.
const NAME_MAX: usize = 255;

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
    limits: Limits,
    /// Cancelled when the job ends: everything that waits for a store or an upload then stops
    /// waiting.
    stopped: CancellationToken,
    /// The first staging limit that the job exceeded.
    exceeded: OnceLock<StagingLimit>,
    /// The errno of the first operation for which the disk had no room.
    no_room: OnceLock<Errno>,
    folders: OpenFolders,
    table: Mutex<OutputTable>,
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
    runtime: tokio::runtime::Handle,
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
        let own_blobs =
            JobBlobs::new(daemon.plane.blobs.clone(), tokio::runtime::Handle::current());
        let output = Self {
            daemon,
            committer,
            limits,
            stopped: CancellationToken::new(),
            exceeded: OnceLock::new(),
            no_room: OnceLock::new(),
            folders: OpenFolders::new(root),
            table: Mutex::new(OutputTable::new(names)),
            released: Notify::new(),
            closed: ClosedFiles::default(),
            blobs_made: AtomicU64::new(0),
            moved: Arc::default(),
            receipts: Mutex::default(),
            rejections: Mutex::default(),
            named: Mutex::default(),
            reading: Semaphore::new(READING_UNITS),
            own_blobs,
            runtime: tokio::runtime::Handle::current(),
            reads,
        };
        let insights_mode = match writers {
            Writers::Owner => 0o644,
            Writers::AnyUser => {
                for ino in [OUT, DATA, EVENTS] {
                    output.pin(&output.lock(), ino)?.set_mode(Mode::from_raw_mode(0o777))?;
                }
                0o666
            }
        };
        // Older modules open insights.json without creating it.
        let insights = output.lock().insights();
        for name in insights {
            output.make_file(OUT, OsStr::new(name), insights_mode, Maker::daemon())?;
        }
        Ok(Arc::new(output))
    }

    fn lock(&self) -> MutexGuard<'_, OutputTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- names and attributes ----

    /// Looks up a name. Returns none if it does not exist.
    pub(crate) fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Option<Attr>> {
        if name.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let table = self.lock();
        table.child(parent, name)?.map(|ino| self.attr(&table, ino)).transpose()
    }

    /// Returns an inode's attributes.
    pub(crate) fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.attr(&self.lock(), ino)
    }

    /// Passes the names of a directory behind position `place` of its listing to `take`, each with
    /// its own position, inode and kind, until `take` returns true.
    pub(crate) fn names_behind(
        &self,
        ino: Ino,
        place: u64,
        mut take: impl FnMut(u64, &OsStr, Ino, FileKind) -> bool,
    ) -> Result<()> {
        let table = self.lock();
        let directory = table.directory(ino)?;
        for (at, name, child) in directory.behind(place) {
            let Ok(node) = table.node(child) else { continue };
            if take(at, name, child, kind_of(&node.body)) {
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
        let table = self.lock();
        for (at, name, child) in table.directory(ino)?.behind(place) {
            match self.attr(&table, child) {
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
        self.lock().place(ino).map_or(OUT, |(parent, _)| parent)
    }

    /// Records a failed read of bytes that a file refers to. Returns the errno that the module
    /// receives.
    fn read_failed(&self, ino: Ino, failure: &ReadFailure) -> Errno {
        self.reads.note(&self.shown_path(ino), failure)
    }

    /// Returns the path of an inode as seen from `ION_DIR`.
    pub(super) fn shown_path(&self, ino: Ino) -> String {
        match self.lock().path(ino) {
            Some(path) => format!("out/{}", path.display()),
            None => "a removed file of out/".to_owned(),
        }
    }

    fn attr(&self, table: &OutputTable, ino: Ino) -> Result<Attr> {
        let stat = self.stat(table, ino)?;
        Ok(attr_of(ino, table.node(ino)?, &stat))
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
        let mut table = self.lock();
        if let Some(size) = change.size {
            self.resize(&mut table, ino, size, through, by)?;
        }
        let pinned = self.pin(&table, ino)?;
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
        self.attr(&table, ino)
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
                opened = self.open_staged(table, ino, OFlags::WRONLY)?;
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
        self.charge(table, ino, if takes { size } else { 0 })?;
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
        self.pin(&self.lock(), ino)?.link_target()
    }

    /// Makes a hard link inside `out/data`.
    pub(crate) fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Attr> {
        let mut table = self.lock();
        let kind = match &table.node(ino)?.body {
            NodeBody::File(file) => {
                file.check_move()?;
                FileKind::File
            }
            NodeBody::Symlink => FileKind::Symlink,
            NodeBody::Special(kind) => *kind,
            NodeBody::Directory(_) => return Err(Errno::PERM),
        };
        may_hold_more(&table, parent, name, kind)?;
        let folder = self.folder_for(&table, parent, name)?;
        self.pin(&table, ino)?.link(&folder, name)?;
        table.link(ino, parent, name)?;
        self.attr(&table, ino)
    }

    /// Removes a name of a file or link.
    pub(crate) fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let mut table = self.lock();
        let ino = table.child(parent, name)?.ok_or(Errno::NOENT)?;
        if let NodeBody::File(file) = &table.node(ino)?.body {
            file.check_change()?;
        }
        let remains = self.remains(&table, ino)?;
        self.folder(&table, parent)?.remove_file(name)?;
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
                Some(UnnamedRemains::Open(self.pin(table, ino)?))
            }
            NodeBody::File(_) if node.known > 0 && table.may_hold_unnamed() => {
                Some(UnnamedRemains::Known(self.pin(table, ino)?))
            }
            _ if node.known > 0 => {
                let mut stat = self.stat(table, ino)?;
                stat.st_nlink = 0;
                Some(UnnamedRemains::Seen(Box::new(stat)))
            }
            _ => None,
        })
    }

    /// Increments the kernel's lookup count of this inode.
    pub(super) fn remember(&self, ino: Ino) {
        if let Ok(node) = self.lock().node_mut(ino) {
            node.known += 1;
        }
    }

    /// Lowers the kernel's lookup count of this inode by `times`.
    pub(super) fn forget(&self, ino: Ino, times: u64) {
        let mut table = self.lock();
        if let Ok(node) = table.node_mut(ino) {
            node.known = node.known.saturating_sub(times);
        }
        table.look_after_unnamed(ino);
        self.discard_orphans(&mut table);
    }

    /// Removes an empty directory.
    pub(crate) fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let mut table = self.lock();
        let ino = table.child(parent, name)?.ok_or(Errno::NOENT)?;
        if ino == DATA || ino == EVENTS {
            return Err(Errno::PERM);
        }
        let remains = self.remains(&table, ino)?;
        self.folder(&table, parent)?.remove_folder(name)?;
        self.folders.forget(ino);
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
        let mut table = self.lock();
        let ino = table.child(parent, name)?.ok_or(Errno::NOENT)?;
        if ino == DATA || ino == EVENTS {
            return Err(Errno::PERM);
        }
        let kind = kind_of(&table.node(ino)?.body);
        if let NodeBody::File(file) = &table.node(ino)?.body {
            file.check_move()?;
        }
        may_hold_more(&table, newparent, newname, kind)?;
        if kind == FileKind::Directory && table.is_below(newparent, ino) {
            return Err(Errno::INVAL);
        }
        // What lies below a directory moves with it and must fit the longest path too.
        self.may_reach(&table.path_in(newparent, newname)?, || table.reach(ino))?;
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
        let (from, to) = (self.folder(&table, parent)?, self.folder(&table, newparent)?);
        from.rename(name, &to, newname)?;
        if let Some(target) = target {
            self.folders.forget(target);
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
        self.folders.root().space()
    }
}

fn kind_of(body: &NodeBody) -> FileKind {
    match body {
        NodeBody::Directory(_) => FileKind::Directory,
        NodeBody::File(_) => FileKind::File,
        NodeBody::Symlink => FileKind::Symlink,
        NodeBody::Special(kind) => *kind,
    }
}

fn attr_of(ino: Ino, node: &OutputNode, stat: &Stat) -> Attr {
    let time = |seconds: i64, nanos: u64| {
        let nanos = Duration::from_nanos(nanos);
        match u64::try_from(seconds) {
            Ok(seconds) => SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + nanos,
            Err(_) => SystemTime::UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs()) + nanos,
        }
    };
    let size = stat.st_size.cast_unsigned();
    let file = if let NodeBody::File(file) = &node.body { Some(file) } else { None };
    let refers = file.is_some_and(|file| file.reference.is_some());
    let times = file.and_then(|file| file.shown.as_deref()).unwrap_or(stat);
    let linked_to = file.and_then(|file| file.shares_number_with());
    Attr {
        ino,
        shown_ino: linked_to.unwrap_or(ino),
        kind: kind_of(&node.body),
        size,
        // A reference is a hole on the disk and full of data to read: `cp` must not skip it.
        blocks: if refers { size.div_ceil(512) } else { stat.st_blocks.cast_unsigned() },
        atime: time(times.st_atime, times.st_atime_nsec),
        mtime: time(times.st_mtime, times.st_mtime_nsec),
        ctime: time(times.st_ctime, times.st_ctime_nsec),
        perm: u16::try_from(stat.st_mode & 0o7777).unwrap_or(0),
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        // The file stops showing that number at its first change, and nothing notifies the kernel.
        ttl: if linked_to.is_some() { Duration::ZERO } else { FOREVER },
    }
}
