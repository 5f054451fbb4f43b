//! What a module writes: `out/`, staged on a real local directory.
//!
//! # How it works
//! The table of names ([`table`]) is the truth; the staging folder holds content and attributes. Writes come to
//! the daemon, so that each change is seen and a file's blob is known to be of its last content. A file copied,
//! linked or moved from `in/data` is a [`reference`]: a hole in the staging folder and the name of a blob, until
//! somebody writes to it. Files upload in the background when their last writer closes them, and long ones
//! while they are written ([`early`]); a commit waits only for what is not stored yet.
//!
//! # What it never does
//! Follow a symbolic link out of `out/data` (one may point anywhere: only the module's own processes go there); hold its lock across a wait; let an event file change after its commit.

mod bounds;
mod content;
mod early;
mod events;
mod making;
mod reference;
mod storing;
mod table;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::{self, AtFlags, CWD, Mode, OFlags, Stat, Timespec, Timestamps};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::content::content_changed;
pub use self::content::{OpenHow, Staged};
pub(crate) use self::content::{open_blob, read_within};
use self::early::InOrder;
pub use self::making::Maker;
use self::making::may_hold_more;
use self::table::{Body, FileNode, Node, Remains, Table, Uploaded};
pub(crate) use self::table::{DATA, EVENTS, OUT};
use super::{Attr, DirEntry, Errno, FOREVER, Ino, Kind, ROOT, Result, errno};
use crate::commit::{Committer, Receipt, Rejection};
use crate::event::FileEntry;
use crate::limits::Limits;
use crate::node::Node as Daemon;

/// Bytes of a name. The kernel asks for longer ones, the staging disk has none.
const NAME_MAX: usize = 255;

/// By which names a module knows its values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Names {
    /// `in/eventmeta.json` and `out/insights.json`.
    #[default]
    Current,
    /// These, and `in/meta.json` and `out/meta.json` beside them.
    AndSecondGeneration,
}

/// Who may write to the folders that a tree begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Writers {
    /// The daemon's own user, as whom its modules run.
    #[default]
    Owner,
    /// Any user among the job's processes: in a container or a pod the module has a user of its own, unknown here.
    AnyUser,
}

/// A change of attributes; what is none stays.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length.
    pub size: Option<u64>,
    /// Last read; none inside: now.
    pub atime: Option<Option<SystemTime>>,
    /// Last write; none inside: now.
    pub mtime: Option<Option<SystemTime>>,
}

/// The output tree of one attempt.
#[derive(Debug)]
pub struct Output {
    daemon: Arc<Daemon>,
    committer: Committer,
    limits: Limits,
    /// Ended: what waits for a store or an upload waits no longer.
    stopped: CancellationToken,
    /// Some write was refused because the job had staged all it may.
    over_quota: AtomicBool,
    root: OwnedFd,
    root_path: PathBuf,
    table: Mutex<Table>,
    /// Rung whenever a writer's handle is gone.
    released: Notify,
    blobs_made: AtomicU64,
    /// Bytes that uploads have moved: what waits for them may wait while it grows.
    moved: Arc<AtomicU64>,
    receipts: Mutex<BTreeMap<String, Receipt>>,
    rejections: Mutex<BTreeMap<String, Rejection>>,
    /// Files as events named them, for whoever reads them next on this node.
    named: Mutex<Vec<(Ino, FileEntry)>>,
    /// Keys uploaded, and what became of them.
    uploaded: Mutex<BTreeMap<String, Uploaded>>,
    runtime: tokio::runtime::Handle,
}

impl Output {
    /// The attempt's span.
    pub(crate) fn span(&self) -> &tracing::Span {
        self.committer.span()
    }

    /// Bytes that uploads have moved.
    pub(crate) fn bytes_moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// An empty tree staged at `directory`, which must not exist yet. Must be called inside a Tokio runtime.
    pub(super) fn new(
        daemon: Arc<Daemon>,
        committer: Committer,
        limits: Limits,
        names: Names,
        writers: Writers,
        directory: &Path,
    ) -> io::Result<Arc<Self>> {
        for part in ["data", "events"] {
            std::fs::create_dir_all(directory.join(part))?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = fs::open(directory, flags, Mode::empty())?;
        let output = Self {
            daemon,
            committer,
            limits,
            stopped: CancellationToken::new(),
            over_quota: AtomicBool::new(false),
            root,
            root_path: directory.to_owned(),
            table: Mutex::new(Table::new(names)),
            released: Notify::new(),
            blobs_made: AtomicU64::new(0),
            moved: Arc::default(),
            receipts: Mutex::default(),
            rejections: Mutex::default(),
            named: Mutex::default(),
            uploaded: Mutex::default(),
            runtime: tokio::runtime::Handle::current(),
        };
        let insights_mode = match writers {
            Writers::Owner => 0o644,
            Writers::AnyUser => {
                for part in [".", "data", "events"] {
                    fs::chmodat(&output.root, part, Mode::from_raw_mode(0o777), AtFlags::empty())?;
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

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- names and attributes ----

    /// What stands under a name; none: nothing.
    pub fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Option<Attr>> {
        if name.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let table = self.lock();
        table.child(parent, name)?.map(|ino| self.attr(&table, ino)).transpose()
    }

    /// An inode's attributes.
    pub fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.attr(&self.lock(), ino)
    }

    /// The names of a directory.
    pub fn list(&self, ino: Ino) -> Result<Vec<DirEntry>> {
        let table = self.lock();
        let children = table.children(ino)?.iter();
        children
            .map(|(name, ino)| Ok(DirEntry { name: name.clone(), attr: self.attr(&table, *ino)? }))
            .collect()
    }

    /// The parent of a directory.
    pub fn parent(&self, ino: Ino) -> Ino {
        if ino == OUT {
            return ROOT;
        }
        self.lock()
            .node(ino)
            .ok()
            .and_then(|node| node.links.first().map(|(parent, _)| *parent))
            .unwrap_or(OUT)
    }

    fn attr(&self, table: &Table, ino: Ino) -> Result<Attr> {
        let node = table.node(ino)?;
        let stat = match (table.path(ino), &node.remains) {
            (Some(path), _) => fs::statat(&self.root, path, AtFlags::SYMLINK_NOFOLLOW)?,
            (None, Some(Remains::Open(file))) => fs::fstat(file)?,
            (None, Some(Remains::Seen(stat))) => **stat,
            (None, None) => return Err(Errno::NOENT),
        };
        Ok(attr_of(ino, node, &stat))
    }

    /// Calls `work` with a folder and a path that name the inode.
    fn at<T>(
        &self,
        table: &Table,
        ino: Ino,
        work: impl FnOnce(BorrowedFd<'_>, &Path) -> Result<T>,
    ) -> Result<T> {
        match table.path(ino) {
            Some(path) => work(self.root.as_fd(), &path),
            None => match table.node(ino)?.remains.clone() {
                Some(Remains::Open(file)) => {
                    work(CWD, Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())))
                }
                _ => Err(Errno::NOENT),
            },
        }
    }

    /// Changes attributes.
    pub fn setattr(&self, ino: Ino, change: SetAttr) -> Result<Attr> {
        let mut table = self.lock();
        // The staging folder's own system call would follow the link.
        if change.mode.is_some() && matches!(table.node(ino)?.body, Body::Symlink) {
            return Err(Errno::OPNOTSUPP);
        }
        if let Some(size) = change.size {
            self.resize(&mut table, ino, size)?;
        }
        self.at(&table, ino, |folder, path| {
            if change.uid.is_some() || change.gid.is_some() {
                let uid = change.uid.map(fs::Uid::from_raw);
                let gid = change.gid.map(fs::Gid::from_raw);
                fs::chownat(folder, path, uid, gid, no_follow(path))?;
            }
            if let Some(mode) = change.mode {
                fs::chmodat(folder, path, Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())?;
            }
            if change.atime.is_some() || change.mtime.is_some() {
                let times = Timestamps {
                    last_access: timespec(change.atime),
                    last_modification: timespec(change.mtime),
                };
                fs::utimensat(folder, path, &times, no_follow(path))?;
            }
            Ok(())
        })?;
        self.attr(&table, ino)
    }

    fn resize(&self, table: &mut Table, ino: Ino, size: u64) -> Result<()> {
        forbid_change(table.file(ino)?)?;
        let backing = self.at(table, ino, |folder, path| {
            Ok(File::from(fs::openat(folder, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?))
        })?;
        // A blob takes no room here.
        let takes = table.file(ino)?.reference.as_ref().is_none_or(|reference| reference.takes_room_at(size));
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
        content_changed(file, false);
        file.in_order = (size == 0).then(InOrder::default);
        Ok(())
    }

    /// Where a symbolic link points.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let table = self.lock();
        self.at(&table, ino, |folder, path| Ok(fs::readlinkat(folder, path, Vec::new())?.into_bytes()))
    }

    /// A hard link inside `out/data`.
    pub fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Attr> {
        let mut table = self.lock();
        let kind = match &table.node(ino)?.body {
            Body::File(file) => {
                forbid_move(file)?;
                Kind::File
            }
            Body::Symlink => Kind::Symlink,
            Body::Special(kind) => *kind,
            Body::Directory(_) => return Err(Errno::PERM),
        };
        may_hold_more(&table, parent, name, kind)?;
        let path = self.new_path(&table, parent, name)?;
        self.at(&table, ino, |folder, from| {
            // A file without a name is reached through a link in /proc; a symbolic link is linked itself.
            let follow = if from.is_absolute() { AtFlags::SYMLINK_FOLLOW } else { AtFlags::empty() };
            fs::linkat(folder, from, &self.root, &path, follow)
        })?;
        table.link(ino, parent, name)?;
        self.attr(&table, ino)
    }

    /// Removes a name of a file or link.
    pub fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let mut table = self.lock();
        let ino = table.child(parent, name)?.ok_or(Errno::NOENT)?;
        if let Body::File(file) = &table.node(ino)?.body {
            forbid_change(file)?;
        }
        let remains = self.remains(&table, ino)?;
        self.free(&table, ino);
        fs::unlinkat(&self.root, table.path_in(parent, name)?, AtFlags::empty())?;
        table.unlink(parent, name, remains)
    }

    /// Frees the space of a file whose last name is about to go: an upload under way keeps it open, and a module that
    /// removed a file counts on its space at once. What the upload reads then is named by no event.
    fn free(&self, table: &Table, ino: Ino) {
        let Ok(node) = table.node(ino) else { return };
        let Body::File(file) = &node.body else { return };
        if file.opens == 0
            && node.links.len() == 1
            && file.stored.is_some()
            && let Some(path) = table.path(ino)
        {
            let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            // Refused, the space comes back with the end of the upload.
            let _ = fs::openat(&self.root, path, flags, Mode::empty());
        }
    }

    /// What will be left of an inode whose last name is about to go: of an open file its content, of others that the
    /// kernel knows their attributes.
    fn remains(&self, table: &Table, ino: Ino) -> Result<Option<Remains>> {
        let node = table.node(ino)?;
        if node.links.len() > 1 {
            return Ok(None);
        }
        let path = table.path(ino).ok_or(Errno::NOENT)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(match &node.body {
            Body::File(file) if file.opens > 0 => {
                Some(Remains::Open(Arc::new(fs::openat(&self.root, path, flags, Mode::empty())?)))
            }
            _ if node.known > 0 => {
                let mut stat = fs::statat(&self.root, path, AtFlags::SYMLINK_NOFOLLOW)?;
                stat.st_nlink = 0;
                Some(Remains::Seen(Box::new(stat)))
            }
            _ => None,
        })
    }

    /// The kernel was given this inode once more.
    pub(super) fn remember(&self, ino: Ino) {
        if let Ok(node) = self.lock().node_mut(ino) {
            node.known += 1;
        }
    }

    /// The kernel forgets so many times that it was given this inode.
    pub(super) fn forget(&self, ino: Ino, times: u64) {
        let mut table = self.lock();
        if let Ok(node) = table.node_mut(ino) {
            node.known = node.known.saturating_sub(times);
        }
        table.drop_if_gone(ino);
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let mut table = self.lock();
        let ino = table.child(parent, name)?.ok_or(Errno::NOENT)?;
        if ino == DATA || ino == EVENTS {
            return Err(Errno::PERM);
        }
        let remains = self.remains(&table, ino)?;
        fs::unlinkat(&self.root, table.path_in(parent, name)?, AtFlags::REMOVEDIR)?;
        table.unlink(parent, name, remains)
    }

    /// Renames inside `out/`, with nothing to commit. `keep_target`: fail if the new name is taken.
    fn rename_plain(
        &self,
        parent: Ino,
        name: &OsStr,
        newparent: Ino,
        newname: &OsStr,
        keep_target: bool,
    ) -> Result<()> {
        let mut table = self.lock();
        let ino = table.child(parent, name)?.ok_or(Errno::NOENT)?;
        if ino == DATA || ino == EVENTS {
            return Err(Errno::PERM);
        }
        let kind = kind_of(&table.node(ino)?.body);
        if let Body::File(file) = &table.node(ino)?.body {
            forbid_move(file)?;
        }
        may_hold_more(&table, newparent, newname, kind)?;
        if kind == Kind::Directory && table.is_below(newparent, ino) {
            return Err(Errno::INVAL);
        }
        // What lies below it goes with it.
        self.may_reach(&table.path_in(newparent, newname)?, || table.reach(ino))?;
        let target = table.child(newparent, newname)?;
        if target.is_some() && keep_target {
            return Err(Errno::EXIST);
        }
        if target == Some(ino) {
            // Two names of one file: rename does nothing, as POSIX says.
            return Ok(());
        }
        if let Some(target) = target
            && let Body::File(file) = &table.node(target)?.body
        {
            forbid_move(file)?;
        }
        let remains = target.map(|target| self.remains(&table, target)).transpose()?.flatten();
        let (from, to) = (table.path_in(parent, name)?, table.path_in(newparent, newname)?);
        fs::renameat(&self.root, from, &self.root, to)?;
        if target.is_some() {
            table.unlink(newparent, newname, remains)?;
        }
        // Linked before unlinked: a file without a name and without a handle would be forgotten.
        table.link(ino, newparent, newname)?;
        table.unlink(parent, name, None)?;
        if (newparent == EVENTS || table.is_insights(newparent, newname))
            && let Ok(file) = table.file_mut(ino)
        {
            file.event.get_or_insert_default();
        }
        Ok(())
    }

    // ---- extended attributes and space ----

    /// The absolute path of an inode, for calls that take no folder.
    fn absolute(&self, ino: Ino) -> Result<PathBuf> {
        let table = self.lock();
        self.at(&table, ino, |_, path| {
            Ok(if path.is_absolute() { path.to_owned() } else { self.root_path.join(path) })
        })
    }

    /// An extended attribute's value, as far as the backing file system allows any.
    pub fn getxattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        let path = self.absolute(ino)?;
        let mut value = vec![0; 65_536];
        let length = fs::lgetxattr(path, name, &mut value)?;
        value.truncate(length);
        Ok(value)
    }

    /// Sets an extended attribute.
    pub fn setxattr(&self, ino: Ino, name: &OsStr, value: &[u8], flags: i32) -> Result<()> {
        let flags = fs::XattrFlags::from_bits_retain(flags.cast_unsigned());
        fs::lsetxattr(self.absolute(ino)?, name, value, flags)
    }

    /// The names of the extended attributes, each ended by a zero byte.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<u8>> {
        let path = self.absolute(ino)?;
        let mut names = vec![0; 65_536];
        let length = fs::llistxattr(path, &mut names)?;
        names.truncate(length);
        Ok(names)
    }

    /// Removes an extended attribute.
    pub fn removexattr(&self, ino: Ino, name: &OsStr) -> Result<()> {
        fs::lremovexattr(self.absolute(ino)?, name)
    }

    /// The space of the staging disk.
    pub fn statfs(&self) -> Result<fs::StatVfs> {
        fs::fstatvfs(&self.root)
    }
}

/// No change of a content that is an event, or about to be one.
fn forbid_change(file: &FileNode) -> Result<()> {
    match &file.event {
        Some(event) if event.is_fixed() => Err(Errno::ROFS),
        _ => Ok(()),
    }
}

/// No other name for an event. One that is about to be one is given its name by its own commit.
fn forbid_move(file: &FileNode) -> Result<()> {
    match &file.event {
        Some(event) if event.committed.is_some() => Err(Errno::ROFS),
        _ => Ok(()),
    }
}

fn kind_of(body: &Body) -> Kind {
    match body {
        Body::Directory(_) => Kind::Directory,
        Body::File(_) => Kind::File,
        Body::Symlink => Kind::Symlink,
        Body::Special(kind) => *kind,
    }
}

fn attr_of(ino: Ino, node: &Node, stat: &Stat) -> Attr {
    let time = |seconds: i64, nanos: u64| {
        let nanos = Duration::from_nanos(nanos);
        match u64::try_from(seconds) {
            Ok(seconds) => SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + nanos,
            Err(_) => SystemTime::UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs()) + nanos,
        }
    };
    let size = stat.st_size.cast_unsigned();
    let refers = matches!(&node.body, Body::File(file) if file.reference.is_some());
    Attr {
        ino,
        kind: kind_of(&node.body),
        size,
        // A reference is a hole on the disk and full of data to read: `cp` must not skip it.
        blocks: if refers { size.div_ceil(512) } else { stat.st_blocks.cast_unsigned() },
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        perm: u16::try_from(stat.st_mode & 0o7777).unwrap_or(0),
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        ttl: FOREVER,
    }
}

fn timespec(time: Option<Option<SystemTime>>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: fs::UTIME_OMIT },
        Some(None) => Timespec { tv_sec: 0, tv_nsec: fs::UTIME_NOW },
        Some(Some(time)) => match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => {
                Timespec { tv_sec: since.as_secs().cast_signed(), tv_nsec: since.subsec_nanos().into() }
            }
            Err(before) => {
                let before = before.duration();
                let borrow = i64::from(before.subsec_nanos() > 0);
                let nanos = if borrow == 1 { 1_000_000_000 - before.subsec_nanos() } else { 0 };
                Timespec { tv_sec: -before.as_secs().cast_signed() - borrow, tv_nsec: nanos.into() }
            }
        },
    }
}

/// Symbolic links are changed themselves; a file without a name is reached through one.
fn no_follow(path: &Path) -> AtFlags {
    if path.is_absolute() { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW }
}
