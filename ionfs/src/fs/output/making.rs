//! What a module makes below `out/`: files, directories, links, pipes and sockets.
//!
//! Each is made in the staging folder first and then entered into the table. It belongs to whoever asked for it, so that
//! a module that runs as an ordinary user may use what it made.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Timestamps};

use super::super::{Attr, Errno, Ino, Kind, Result, errno};
use super::content::content_changed;
use super::early::InOrder;
use super::reference::Reference;
use super::table::{Body, FileNode, Table};
use super::{DATA, EVENTS, OUT, OpenHow, Output, Staged, timespec};
use crate::event::{FileEntry, is_draft};

/// Who makes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Maker {
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

impl Maker {
    /// The daemon itself.
    pub fn daemon() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }
}

impl Output {
    /// Makes a directory.
    pub fn mkdir(&self, parent: Ino, name: &OsStr, mode: u32, maker: Maker) -> Result<Attr> {
        let mut table = self.lock();
        may_hold_more(&table, parent, name, Kind::Directory)?;
        let path = self.new_path(&table, parent, name)?;
        fs::mkdirat(&self.root, &path, Mode::from_raw_mode(mode & 0o7777))?;
        self.hand_over(&path, mode, Kind::Directory, maker)?;
        let ino = table.add(parent, name, Body::Directory(BTreeMap::new()))?;
        self.attr(&table, ino)
    }

    /// Makes a symbolic link. It may point anywhere: the kernel follows it for the module, with the module's rights; an
    /// event that names a path through it stays inside `out/data` or is refused.
    pub fn symlink(&self, parent: Ino, name: &OsStr, target: &Path, maker: Maker) -> Result<Attr> {
        let mut table = self.lock();
        may_hold_more(&table, parent, name, Kind::Symlink)?;
        let path = self.new_path(&table, parent, name)?;
        fs::symlinkat(target, &self.root, &path)?;
        self.hand_over(&path, 0, Kind::Symlink, maker)?;
        let ino = table.add(parent, name, Body::Symlink)?;
        self.attr(&table, ino)
    }

    /// Makes a regular file without opening it, a pipe or a socket. No device: a module has those of its executor.
    pub fn mknod(&self, parent: Ino, name: &OsStr, mode: u32, maker: Maker) -> Result<Attr> {
        let file_type = FileType::from_raw_mode(mode);
        let kind = match file_type {
            FileType::RegularFile => {
                let ino = self.make_file(parent, name, mode, maker)?;
                return self.getattr(ino);
            }
            FileType::Fifo => Kind::Pipe,
            FileType::Socket => Kind::Socket,
            _ => return Err(Errno::PERM),
        };
        let mut table = self.lock();
        may_hold_more(&table, parent, name, kind)?;
        let path = self.new_path(&table, parent, name)?;
        fs::mknodat(&self.root, &path, file_type, Mode::from_raw_mode(mode & 0o7777), 0)?;
        self.hand_over(&path, mode, kind, maker)?;
        let ino = table.add(parent, name, Body::Special(kind))?;
        self.attr(&table, ino)
    }

    pub(super) fn make_file(&self, parent: Ino, name: &OsStr, mode: u32, maker: Maker) -> Result<Ino> {
        let mut table = self.lock();
        may_hold_more(&table, parent, name, Kind::File)?;
        let path = self.new_path(&table, parent, name)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        drop(fs::openat(&self.root, &path, flags, Mode::from_raw_mode(mode & 0o7777))?);
        self.hand_over(&path, mode, Kind::File, maker)?;
        add_file(&mut table, parent, name)
    }

    /// Makes a file, or opens the one that is there, in one step.
    pub fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        mode: u32,
        maker: Maker,
        how: OpenHow,
    ) -> Result<(Attr, Arc<Staged>)> {
        let existing = self.lock().child(parent, name)?;
        if let Some(ino) = existing {
            if how.flags & libc::O_EXCL != 0 {
                return Err(Errno::EXIST);
            }
            let staged = self.open(ino, how)?;
            return Ok((self.getattr(ino)?, staged));
        }
        let mut table = self.lock();
        may_hold_more(&table, parent, name, Kind::File)?;
        let path = self.new_path(&table, parent, name)?;
        let flags = how.backing() | OFlags::CREATE | OFlags::EXCL;
        let backing = fs::openat(&self.root, &path, flags, Mode::from_raw_mode(mode & 0o7777))?;
        self.hand_over(&path, mode, Kind::File, maker)?;
        let ino = add_file(&mut table, parent, name)?;
        let staged = self.handle(&mut table, ino, backing, OpenHow { flags: how.flags & !libc::O_TRUNC })?;
        Ok((self.attr(&table, ino)?, staged))
    }

    /// A new file in `out/data` that refers to a blob (`ln` and `mv` from `in/data`).
    pub fn add_reference(
        &self,
        parent: Ino,
        name: &OsStr,
        entry: &Arc<FileEntry>,
        mode: u32,
        maker: Maker,
    ) -> Result<Attr> {
        if !self.lock().is_below(parent, DATA) {
            return Err(Errno::XDEV);
        }
        let ino = self.make_file(parent, name, mode | libc::S_IFREG, maker)?;
        let mut table = self.lock();
        self.at(&table, ino, |folder, path| {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            // chmod first would lock an ordinary user out of a read-only file.
            fs::chmodat(folder, path, Mode::from_raw_mode(mode & 0o7777 | 0o200), AtFlags::empty())?;
            let file = File::from(fs::openat(folder, path, flags, Mode::empty())?);
            file.set_len(entry.size).map_err(|error| errno(&error))?;
            let at = crate::clock::system_time(entry.mtime);
            let times = Timestamps {
                last_access: timespec(Some(Some(at))),
                last_modification: timespec(Some(Some(at))),
            };
            fs::futimens(&file, &times)?;
            fs::chmodat(folder, path, Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())
        })?;
        if entry.size > 0 {
            let file = table.file_mut(ino)?;
            content_changed(file, false);
            file.reference = Some(Reference::to(entry.clone(), entry.size));
        }
        self.attr(&table, ino)
    }

    /// Gives what was just made its owner and its exact mode, or removes it again. The kernel has applied the module's
    /// umask already; the daemon's own must not take more away.
    fn hand_over(&self, path: &Path, mode: u32, kind: Kind, maker: Maker) -> Result<()> {
        self.try_hand_over(path, mode, kind, maker).inspect_err(|_| {
            let flags = if kind == Kind::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            // What stays is not in the table, and goes with the staging folder.
            let _ = fs::unlinkat(&self.root, path, flags);
        })
    }

    fn try_hand_over(&self, path: &Path, mode: u32, kind: Kind, maker: Maker) -> Result<()> {
        let above = fs::statat(&self.root, path.parent().ok_or(Errno::NOENT)?, AtFlags::SYMLINK_NOFOLLOW)?;
        // A directory with this bit gives its group to what is made in it, and the bit to directories.
        let inherits = above.st_mode & libc::S_ISGID != 0;
        let owner = Maker { gid: if inherits { above.st_gid } else { maker.gid }, ..maker };
        if owner != Maker::daemon() {
            let (uid, gid) = (fs::Uid::from_raw(owner.uid), fs::Gid::from_raw(owner.gid));
            match fs::chownat(&self.root, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW) {
                // An ordinary user's daemon may give nothing away. It serves that user alone, whose own it stays.
                Ok(()) | Err(Errno::PERM) => {}
                Err(error) => return Err(error),
            }
        }
        let mode = if inherits && kind == Kind::Directory { mode | libc::S_ISGID } else { mode };
        // After the owner: a change of owner takes the bits of set-user-id and set-group-id away.
        if mode & 0o7022 != 0 && kind != Kind::Symlink {
            fs::chmodat(&self.root, path, Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())?;
        }
        Ok(())
    }
}

/// Whether a directory of the fixed part of the tree may hold this.
pub(super) fn may_hold_more(table: &Table, parent: Ino, name: &OsStr, kind: Kind) -> Result<()> {
    match parent {
        // An event is told from others by its name, in documents that hold UTF-8 only.
        EVENTS if name.to_str().is_none() => Err(Errno::ILSEQ),
        EVENTS if kind != Kind::File => Err(Errno::PERM),
        // Editors and `sed -i` put a draft beside insights.json; anything else there is a mistake worth an error.
        OUT if kind != Kind::File => Err(Errno::PERM),
        OUT if !table.is_insights(parent, name) && !is_draft(&name.to_string_lossy()) => Err(Errno::PERM),
        _ => Ok(()),
    }
}

fn add_file(table: &mut Table, parent: Ino, name: &OsStr) -> Result<Ino> {
    let decided = parent == EVENTS || parent == OUT;
    let file = FileNode {
        event: decided.then(Box::default),
        in_order: Some(InOrder::default()),
        ..FileNode::default()
    };
    table.add(parent, name, Body::File(Box::new(file)))
}
