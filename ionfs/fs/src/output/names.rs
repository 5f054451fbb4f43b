//! The staged names: what a module makes, lists, renames and removes below `out/`.
//!
//! Each operation is done on the disk first and then entered into the table, both under the table's
//! lock. So the kernel never gets an answer that is older than an earlier one. What becomes of the
//! content, and which names are events, is not decided here.

mod making;

use std::ffi::OsStr;
use std::sync::Arc;

use super::super::{Attr, Errno, FileKind, Ino, ROOT, Result};
use super::limits::{NAME_MAX, check_length};
use super::request::RenameOver;
use super::staging::StagingArea;
use super::table::{EVENTS, NodeBody, OUT, Orphans, OutputTable, UnnamedRemains};

/// The staged names of one attempt.
#[derive(Debug)]
pub(crate) struct StagedNames {
    staging: Arc<StagingArea>,
}

impl StagedNames {
    pub(super) fn new(staging: Arc<StagingArea>) -> Self {
        Self { staging }
    }

    /// Looks up a name. Returns none if it does not exist.
    pub(crate) fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Option<Attr>> {
        if name.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let table = self.staging.lock();
        table.child(parent, name)?.map(|ino| self.staging.attr(&table, ino)).transpose()
    }

    /// Returns the inode of a name, if the name exists.
    pub(super) fn child(&self, parent: Ino, name: &OsStr) -> Result<Option<Ino>> {
        self.staging.lock().child(parent, name)
    }

    /// Passes the names of a directory behind position `place` of its listing to `take`, each with
    /// its own position, inode and kind, until `take` returns true.
    pub(crate) fn names_after(
        &self,
        ino: Ino,
        place: u64,
        mut take: impl FnMut(u64, &OsStr, Ino, FileKind) -> bool,
    ) -> Result<()> {
        let table = self.staging.lock();
        let directory = table.directory(ino)?;
        for (at, name, child) in directory.entries_after(place) {
            let Ok(node) = table.node(child) else { continue };
            if table.has_left(child) {
                continue;
            }
            if take(at, name, child, node.body.kind()) {
                break;
            }
        }
        Ok(())
    }

    /// Like [`StagedNames::names_after`], but passes the current attributes. Leaves out a name
    /// whose inode is gone.
    pub(crate) fn entries_after(
        &self,
        ino: Ino,
        place: u64,
        mut take: impl FnMut(u64, &OsStr, &Attr) -> bool,
    ) -> Result<()> {
        let table = self.staging.lock();
        for (at, name, child) in table.directory(ino)?.entries_after(place) {
            if table.has_left(child) {
                continue;
            }
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

    /// Returns the target of a symbolic link.
    pub(crate) fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        self.staging.pin(&self.staging.lock(), ino)?.link_target()
    }

    /// Makes a hard link, which must not be an event.
    pub(super) fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Attr> {
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
        self.staging.pin(&table, ino)?.hard_link(&folder, name)?;
        table.link(ino, parent, name)?;
        self.staging.attr(&table, ino)
    }

    /// Removes a name of a file or link.
    pub(super) fn unlink(&self, parent: Ino, name: &OsStr) -> Result<Orphans> {
        let mut table = self.staging.lock();
        let ino = table.child(parent, name)?.ok_or(Errno::NOENT)?;
        if let NodeBody::File(file) = &table.node(ino)?.body {
            file.check_change()?;
        }
        table.check_removal(ino)?;
        let remains = self.remains_to_keep(&table, ino)?;
        self.staging.folder(&table, parent)?.remove_file(name)?;
        table.unlink(parent, name, remains)?;
        Ok(table.take_orphans())
    }

    /// Removes an empty directory.
    pub(crate) fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let mut table = self.staging.lock();
        let ino = table.child(parent, name)?.ok_or(Errno::NOENT)?;
        if table.is_fixed_folder(ino) {
            return Err(Errno::PERM);
        }
        table.check_removal(ino)?;
        let remains = self.remains_to_keep(&table, ino)?;
        self.staging.folder(&table, parent)?.remove_folder(name)?;
        self.staging.close_folder(ino);
        table.unlink(parent, name, remains)
    }

    /// Renames a file or directory, whose new name must not be an event's unless the file was just
    /// committed under that name.
    pub(super) fn rename(
        &self,
        parent: Ino,
        name: &OsStr,
        newparent: Ino,
        newname: &OsStr,
        over: RenameOver,
    ) -> Result<Orphans> {
        let mut table = self.staging.lock();
        let ino = table.child(parent, name)?.ok_or(Errno::NOENT)?;
        self.check_rename(&table, ino, newparent, newname)?;
        let target = table.child(newparent, newname)?;
        if target.is_some() && over == RenameOver::Nothing {
            return Err(Errno::EXIST);
        }
        if target == Some(ino) {
            // Two names of one file: rename does nothing, as POSIX says.
            return Ok(table.take_orphans());
        }
        if let Some(target) = target
            && let NodeBody::File(file) = &table.node(target)?.body
            && over != RenameOver::AlsoSameEvent
        {
            file.check_move()?;
        }
        target.map_or(Ok(()), |target| table.check_removal(target))?;
        let remains =
            target.map(|target| self.remains_to_keep(&table, target)).transpose()?.flatten();
        let from = self.staging.folder(&table, parent)?;
        let to = self.staging.folder(&table, newparent)?;
        from.rename(name, &to, newname)?;
        if let Some(target) = target {
            self.staging.close_folder(target);
            table.unlink(newparent, newname, remains)?;
        }
        // Link before unlinking: the table would drop a file that has neither a name nor a handle.
        table.link(ino, newparent, newname)?;
        table.unlink(parent, name, None)?;
        if (newparent == EVENTS || table.is_insights(newparent, newname))
            && let Ok(file) = table.file_mut(ino)
        {
            file.event.get_or_insert_default();
        }
        Ok(table.take_orphans())
    }

    /// Returns an error if an inode may not get this name, whatever has the name now.
    fn check_rename(
        &self,
        table: &OutputTable,
        ino: Ino,
        newparent: Ino,
        newname: &OsStr,
    ) -> Result<()> {
        if table.is_fixed_folder(ino) {
            return Err(Errno::PERM);
        }
        let body = &table.node(ino)?.body;
        if let NodeBody::File(file) = body {
            file.check_move()?;
        }
        table.check_place(newparent, newname, body.kind())?;
        if body.kind() == FileKind::Directory && table.is_below(newparent, ino) {
            return Err(Errno::INVAL);
        }
        // What lies below a directory moves with it and must fit the longest path too.
        check_length(&table.path_in(newparent, newname)?, || table.longest_path_below(ino))
    }

    /// Returns what must be kept of an inode whose last name is about to be removed: the content of
    /// an open file; for another inode that the kernel knows, its content (a file, while there is
    /// room) or its attributes.
    fn remains_to_keep(&self, table: &OutputTable, ino: Ino) -> Result<Option<UnnamedRemains>> {
        let node = table.node(ino)?;
        if node.links.len() > 1 {
            return Ok(None);
        }
        Ok(match &node.body {
            NodeBody::File(file) if file.opens > 0 => {
                Some(UnnamedRemains::Open(self.staging.pin(table, ino)?))
            }
            NodeBody::File(_) if node.known > 0 && table.has_room_for_unnamed() => {
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
    pub(crate) fn remember(&self, ino: Ino) {
        if let Ok(node) = self.staging.lock().node_mut(ino) {
            node.known += 1;
        }
    }

    /// Lowers the kernel's lookup count of this inode by `times`.
    pub(super) fn forget(&self, ino: Ino, times: u64) -> Orphans {
        let mut table = self.staging.lock();
        if let Ok(node) = table.node_mut(ino) {
            node.known = node.known.saturating_sub(times);
        }
        table.update_unnamed(ino);
        table.take_orphans()
    }
}
