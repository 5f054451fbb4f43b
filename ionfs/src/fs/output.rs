//! What a module writes: `out/`, staged on a real local directory.
//!
//! # How it works
//! The table of names ([`table`]) is the truth; the staging folder holds content and attributes. Writes come to
//! the daemon, so that each change is seen and a file's blob is known to be of its last content. A file copied,
//! linked or moved from `in/data` is a *reference*: a hole in the staging folder and the name of a blob, until
//! somebody writes to it. Files upload in the background when their last writer closes them; a commit waits
//! only for what is not stored yet.
//!
//! # What it never does
//! Follow a symbolic link out of `out/data` (one may point anywhere: only the module's own processes go there); hold its lock across a wait; let an event file change after its commit.

mod bounds;
mod events;
mod making;
mod storing;
mod table;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::{self, AtFlags, CWD, Mode, OFlags, Stat, Timespec, Timestamps};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use self::making::Maker;
use self::making::may_hold_more;
use self::table::{Body, FileNode, Node, Reference, Remains, Table, Uploaded};
pub(crate) use self::table::{DATA, EVENTS, OUT};
use super::eventfile::Asked;
use super::{Attr, DirEntry, Errno, FOREVER, Ino, Kind, ROOT, Result, Seek, errno, seek_dense};
use crate::cache::CacheError;
use crate::checksum::Summer;
use crate::commit::{Committer, Receipt, Rejection};
use crate::event::FileEntry;
use crate::limits::Limits;
use crate::node::Node as Daemon;

/// Bytes copied at a time when a reference becomes a file.
const COPY_PIECE: u64 = 4 << 20;

/// Bytes of a name. The kernel asks for longer ones, the staging disk has none.
const NAME_MAX: usize = 255;

/// The kernel's own flag of an open by execve(), which no header names.
const FMODE_EXEC: i32 = 0x20;

/// An open staged file.
#[derive(Debug)]
pub struct Staged {
    ino: Ino,
    file: File,
    writable: bool,
    executes: bool,
    /// A FLUSH came after the last write: some closer is done, RELEASE should follow. The table holds it too,
    /// for as long as the handle may write.
    flushed: Arc<AtomicBool>,
}

impl Staged {
    /// Its inode.
    pub fn ino(&self) -> Ino {
        self.ino
    }
}

/// How a file is to be opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenHow {
    /// The open flags as the kernel gave them.
    pub flags: i32,
}

impl OpenHow {
    fn writes(self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_RDONLY
    }

    /// Whether anything may change by it.
    pub(crate) fn changes(self) -> bool {
        self.writes() || self.truncates()
    }

    /// Whether the bytes that are there must be in the staging folder: they are written over, not cut away.
    pub(crate) fn needs_own_content(self) -> bool {
        self.writes() && !self.truncates()
    }

    /// Whether a program is started from it. The handle then stays for as long as the program runs.
    fn executes(self) -> bool {
        self.flags & FMODE_EXEC != 0
    }

    fn truncates(self) -> bool {
        self.flags & libc::O_TRUNC != 0
    }

    /// What the staging file is opened with: creation, append and links are ours to decide.
    fn backing(self) -> OFlags {
        let access = self.flags & (libc::O_ACCMODE | libc::O_TRUNC | libc::O_SYNC | libc::O_DSYNC);
        OFlags::from_bits_retain(access.cast_unsigned()) | OFlags::CLOEXEC | OFlags::NOFOLLOW
    }
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
    moved: AtomicU64,
    receipts: Mutex<BTreeMap<String, Receipt>>,
    rejections: Mutex<BTreeMap<String, Rejection>>,
    /// Keys uploaded, and what became of them.
    /// Files as events named them, for whoever reads them next on this node.
    named: Mutex<Vec<(Ino, FileEntry)>>,
    uploaded: Mutex<BTreeMap<String, Uploaded>>,
    runtime: tokio::runtime::Handle,
}

/// Where content lies.
enum Content {
    Staged,
    Blob(Reference),
}

impl Output {
    /// Bytes that uploads have moved.
    pub(crate) fn bytes_moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// An empty tree staged at `directory`, which must not exist yet. Must be called inside a Tokio runtime.
    pub(super) fn new(
        daemon: Arc<Daemon>,
        committer: Committer,
        limits: Limits,
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
            table: Mutex::new(Table::new()),
            released: Notify::new(),
            blobs_made: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            receipts: Mutex::default(),
            rejections: Mutex::default(),
            named: Mutex::default(),
            uploaded: Mutex::default(),
            runtime: tokio::runtime::Handle::current(),
        };
        // Older modules open insights.json without creating it.
        output.make_file(OUT, OsStr::new("insights.json"), 0o644, Maker::daemon())?;
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

    /// Changes attributes. A change of length of a reference needs [`Output::own_content`] first.
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
        // A reference is only cut here.
        let refers = table.file(ino)?.reference.is_some();
        self.charge(table, ino, if refers { 0 } else { size })?;
        let file = table.file_mut(ino)?;
        backing.set_len(size).map_err(|error| errno(&error))?;
        if file.failed.is_some_and(|(at, _)| at >= size) {
            file.failed = None;
        }
        if let Some(reference) = &mut file.reference {
            reference.length = reference.length.min(size);
            if size == 0 {
                file.reference = None;
            }
        }
        content_changed(file, false);
        file.sums = (size == 0).then(Summer::default);
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

    // ---- open files ----

    /// Opens a file. A reference that is to be written (and not truncated) needs [`Output::own_content`] first.
    pub fn open(&self, ino: Ino, how: OpenHow) -> Result<Arc<Staged>> {
        let mut table = self.lock();
        let file = table.file(ino)?;
        if how.writes() || how.truncates() {
            forbid_change(file)?;
        }
        // Opened for writing, the kernel looks itself; cut without, it asks us first and looks when the program is gone.
        if how.truncates() && !how.writes() && file.programs > 0 {
            return Err(Errno::TXTBSY);
        }
        let flags = how.backing();
        // A file without a name is reached through /proc, where the last component is a link.
        let backing = self.at(&table, ino, |folder, path| {
            let flags = if path.is_absolute() { flags - OFlags::NOFOLLOW } else { flags };
            fs::openat(folder, path, flags, Mode::empty())
        })?;
        self.handle(&mut table, ino, backing, how)
    }

    fn handle(&self, table: &mut Table, ino: Ino, backing: OwnedFd, how: OpenHow) -> Result<Arc<Staged>> {
        let file = table.file_mut(ino)?;
        let flushed = Arc::new(AtomicBool::new(false));
        file.opens += 1;
        file.programs += u32::from(how.executes());
        if how.writes() {
            file.writers.push(flushed.clone());
        }
        if how.truncates() {
            file.reference = None;
            file.failed = None;
            content_changed(file, false);
            file.sums = Some(Summer::default());
            table.charge(ino, 0, u64::MAX);
        }
        let (writable, executes) = (how.writes(), how.executes());
        Ok(Arc::new(Staged { ino, file: backing.into(), writable, executes, flushed }))
    }

    /// Whether a handle only reads, and what it reads is a blob from the first byte to the last.
    pub fn is_untouched(&self, staged: &Staged) -> bool {
        let table = self.lock();
        let reference = table.file(staged.ino).ok().and_then(|file| file.reference.as_ref());
        !staged.writable && reference.is_some_and(|reference| reference.length == reference.entry.size)
    }

    fn content(&self, ino: Ino) -> Result<Content> {
        let table = self.lock();
        Ok(match &table.file(ino)?.reference {
            Some(reference) => Content::Blob(reference.clone()),
            None => Content::Staged,
        })
    }

    /// The blob to read instead of the staged file, and how much of it.
    pub fn referenced(&self, ino: Ino) -> Result<Option<(FileEntry, u64)>> {
        Ok(match self.content(ino)? {
            Content::Blob(reference) => Some((reference.entry, reference.length)),
            Content::Staged => None,
        })
    }

    /// Reads staged content.
    pub fn read(&self, staged: &Staged, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match staged.file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(errno(&error)),
            }
        }
        Ok(filled)
    }

    /// Writes. A reference needs [`Output::own_content`] first.
    pub fn write(&self, staged: &Staged, offset: u64, data: &[u8]) -> Result<()> {
        let end = offset.saturating_add(data.len() as u64);
        let (allowed, sums) = {
            let mut table = self.lock();
            let file = table.file_mut(staged.ino)?;
            forbid_change(file)?;
            if file.event.is_some() && end > self.limits.event_bytes {
                return Err(Errno::FBIG);
            }
            let sums = file.sums.take().filter(|sums| sums.total() == offset);
            content_changed(file, true);
            let sums = sums.map(|sums| (file.generation, sums));
            (self.charge_to(&mut table, staged.ino, end), sums)
        };
        staged.flushed.store(false, Ordering::Release);
        let sums = sums.map(|(generation, mut sums)| {
            sums.update(data);
            (generation, sums)
        });
        let written =
            allowed.and_then(|()| staged.file.write_all_at(data, offset).map_err(|error| errno(&error)));
        self.written(staged.ino, offset..end, sums, written)
    }

    /// The write that was announced has been made, or a part of it: an upload that began in between may hold either. And
    /// no event may name a file that lacks a part, until somebody has written there again.
    fn written<T>(
        &self,
        ino: Ino,
        range: std::ops::Range<u64>,
        sums: Option<(u64, Summer)>,
        outcome: Result<T>,
    ) -> Result<T> {
        if let Ok(file) = self.lock().file_mut(ino) {
            // Nobody else wrote in between.
            let alone = sums.filter(|(generation, _)| *generation == file.generation && outcome.is_ok());
            file.sums = alone.map(|(_, sums)| sums);
            file.generation += 1;
            match &outcome {
                // Whoever asked copies by other means.
                Err(Errno::OPNOTSUPP) => {}
                Err(errno) => file.failed = Some((range.start, *errno)),
                Ok(_) if file.failed.is_some_and(|(at, _)| range.contains(&at)) => file.failed = None,
                Ok(_) => {}
            }
        }
        outcome
    }

    /// Gives or takes space (fallocate).
    pub fn allocate(&self, staged: &Staged, offset: u64, length: u64, mode: i32) -> Result<()> {
        let mut table = self.lock();
        let file = table.file_mut(staged.ino)?;
        forbid_change(file)?;
        content_changed(file, true);
        let flags = fs::FallocateFlags::from_bits_retain(mode.cast_unsigned());
        if !flags.intersects(fs::FallocateFlags::PUNCH_HOLE | fs::FallocateFlags::COLLAPSE_RANGE) {
            self.charge_to(&mut table, staged.ino, offset.saturating_add(length))?;
        }
        fs::fallocate(&staged.file, flags, offset, length)
    }

    /// The next data or hole of a staged file.
    pub fn seek(&self, staged: &Staged, offset: u64, whence: Seek) -> Result<u64> {
        if let Some((_, length)) = self.referenced(staged.ino)? {
            return seek_dense(length, offset, whence);
        }
        fs::seek(
            &staged.file,
            match whence {
                Seek::Data => fs::SeekFrom::Data(offset),
                Seek::Hole => fs::SeekFrom::Hole(offset),
            },
        )
    }

    /// Makes the file durable on the local disk.
    pub fn sync(&self, staged: &Staged) -> Result<()> {
        staged.file.sync_all().map_err(|error| {
            let errno = errno(&error);
            self.not_whole(staged.ino, 0, errno);
            errno
        })
    }

    /// From `at` on, the file may lack what was written.
    fn not_whole(&self, ino: Ino, at: u64, errno: Errno) {
        if let Ok(file) = self.lock().file_mut(ino) {
            file.failed = Some((at, errno));
        }
    }

    /// Copies between two staged files by the kernel.
    pub fn copy_range(
        &self,
        from: &Staged,
        from_offset: u64,
        to: &Staged,
        to_offset: u64,
        length: u64,
    ) -> Result<u64> {
        let size = from.file.metadata().map_err(|error| errno(&error))?.len();
        let length = length.min(size.saturating_sub(from_offset));
        {
            let mut table = self.lock();
            let file = table.file_mut(to.ino)?;
            forbid_change(file)?;
            if file.reference.is_some() || file.event.is_some() {
                return Err(Errno::OPNOTSUPP);
            }
            content_changed(file, true);
            self.charge_to(&mut table, to.ino, to_offset.saturating_add(length))?;
        }
        to.flushed.store(false, Ordering::Release);
        let (mut from_at, mut to_at) = (from_offset, to_offset);
        let length = usize::try_from(length.min(1 << 30)).unwrap_or(1 << 30);
        let copied = fs::copy_file_range(&from.file, Some(&mut from_at), &to.file, Some(&mut to_at), length);
        self.written(to.ino, to_offset..to_offset.saturating_add(length as u64), None, copied)
            .map(|copied| copied as u64)
    }

    /// Makes the next bytes of `to` a reference to the blob `entry`, without moving any; gives how many. Only for
    /// an empty file, or one that is the same blob up to just there; else `EOPNOTSUPP`, and the bytes are copied.
    pub fn refer(
        &self,
        to: &Staged,
        entry: &FileEntry,
        from_offset: u64,
        to_offset: u64,
        length: u64,
    ) -> Result<u64> {
        let mut table = self.lock();
        let file = table.file_mut(to.ino)?;
        forbid_change(file)?;
        let held = match &file.reference {
            Some(reference) if reference.entry.key == entry.key => reference.length,
            None if to.file.metadata().is_ok_and(|metadata| metadata.len() == 0) => 0,
            _ => return Err(Errno::OPNOTSUPP),
        };
        // Another reader may have the hole open by passthrough, and an event file's content must be here.
        if from_offset != held || to_offset != held || file.opens != 1 || file.event.is_some() {
            return Err(Errno::OPNOTSUPP);
        }
        let end = held.saturating_add(length).min(entry.size);
        // The kernel takes at most 4 GiB less a page as an answer.
        let end = end.min(held + (u64::from(u32::MAX) & !0xfff));
        to.file.set_len(end).map_err(|error| errno(&error))?;
        content_changed(file, true);
        file.reference = Some(Reference { entry: entry.clone(), length: end });
        to.flushed.store(false, Ordering::Release);
        Ok(end - held)
    }

    /// Copies a reference's bytes into the staging folder, so that it can be written. Nothing to do for others.
    pub async fn own_content(&self, ino: Ino) -> Result<()> {
        let Content::Blob(reference) = self.content(ino)? else { return Ok(()) };
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = self.at(&self.lock(), ino, |folder, path| {
            Ok(File::from(fs::openat(folder, path, flags, Mode::empty())?))
        })?;
        self.charge_to(&mut self.lock(), ino, reference.length)?;
        let blob = self.daemon.cache.open(&reference.entry).map_err(|_| Errno::IO)?;
        let mut offset = 0;
        while offset < reference.length {
            let length = COPY_PIECE.min(reference.length - offset);
            let piece = read_within(&self.daemon, blob.read(offset, length)).await?;
            // Looked at again with each piece: another copier may have been faster and its writer may have written, or
            // the file was truncated. What they left must not be overwritten.
            let table = self.lock();
            let length = match &table.file(ino)?.reference {
                Some(now) if now.entry.key == reference.entry.key => now.length,
                _ => return Ok(()),
            };
            if offset >= length {
                break;
            }
            let kept = usize::try_from(length - offset).unwrap_or(usize::MAX).min(piece.len());
            file.write_all_at(&piece[..kept], offset).map_err(|error| errno(&error))?;
            offset += kept as u64;
        }
        let mut table = self.lock();
        let node = table.file_mut(ino)?;
        if node
            .reference
            .as_ref()
            .is_some_and(|now| now.entry.key == reference.entry.key && now.length <= offset)
        {
            node.reference = None;
        }
        Ok(())
    }

    /// FLUSH: a descriptor of the file was closed. Gives what close() is to return.
    pub async fn flush(&self, staged: &Staged) -> Result<()> {
        staged.flushed.store(true, Ordering::Release);
        if !staged.writable {
            return Ok(());
        }
        self.decide(staged.ino, Asked::Flush).await
    }

    /// fsync: durable locally; an event file commits as at FLUSH.
    pub async fn fsync(&self, staged: &Staged) -> Result<()> {
        self.sync(staged)?;
        self.decide(staged.ino, Asked::Flush).await
    }

    /// RELEASE: the handle is gone. The last writer of an event file makes its content final; of a data file,
    /// begins its upload.
    pub fn release(self: &Arc<Self>, staged: &Staged) {
        let ino = staged.ino;
        let last_writer = {
            let mut table = self.lock();
            let Ok(file) = table.file_mut(ino) else { return };
            file.opens -= 1;
            file.programs -= u32::from(staged.executes);
            file.writers.retain(|writer| !Arc::ptr_eq(writer, &staged.flushed));
            let last = staged.writable && file.writers.is_empty();
            // An upload that still waits for its turn will take this content too.
            let begin = last && (file.event.is_some() || !std::mem::replace(&mut file.upload_waits, true));
            table.drop_if_gone(ino);
            begin
        };
        self.released.notify_waiters();
        if !last_writer {
            return;
        }
        let this = self.clone();
        self.runtime.spawn(async move {
            let work = async {
                if this.is_event_file(ino) {
                    // Its errno reaches nobody; the rejection is on record.
                    let _ = this.decide(ino, Asked::Final).await;
                } else if let Err(refusal) = this.upload_in_background(ino).await {
                    tracing::debug!(%refusal, "a file was not stored ahead; its event will try again");
                }
                Ok(())
            };
            let _ = this.unless_stopped(work).await;
        });
    }

    fn is_event_file(&self, ino: Ino) -> bool {
        self.lock().file(ino).is_ok_and(|file| file.event.is_some())
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

/// A read of a blob, within the daemon's deadline.
pub(crate) async fn read_within(
    daemon: &Daemon,
    read: impl Future<Output = std::result::Result<bytes::Bytes, Arc<CacheError>>>,
) -> Result<bytes::Bytes> {
    match tokio::time::timeout(daemon.settings.read_deadline, read).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => Err(Errno::IO),
        Err(_) => {
            tracing::error!("a read of a blob was not answered in time");
            Err(Errno::IO)
        }
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

fn content_changed(file: &mut FileNode, by_writing: bool) {
    file.generation += 1;
    file.sums = None;
    if let Some(event) = &mut file.event {
        event.changed(by_writing);
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
