//! Creation of what a module makes below `out/`: files, directories, links, pipes and sockets.
//!
//! Each is made in the staging folder first and then entered into the table. It belongs to the user
//! who asked for it, so that a module that runs as an ordinary user may use what it made.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use ion_model::event::FileEntry;
use ion_system::beneath::{Folder, Pinned};
use rustix::fs::{FileType, Gid, Mode, OFlags, Timestamps, Uid};

use super::StagedNames;
use crate::eventfile::ContentChange;
use crate::output::in_order::InOrder;
use crate::output::reference::Reference;
use crate::output::request::{NewOwner, TimeChange};
use crate::output::table::{
    DATA, DirectoryNames, EVENTS, FAILED_NAME, FileNode, InputLink, NodeBody, OUT, OutputTable,
    STATE,
};
use crate::{Attr, Errno, FileKind, Ino, Result, errno};

impl StagedNames {
    /// Makes a directory.
    pub(crate) fn mkdir(
        &self,
        parent: Ino,
        name: &OsStr,
        mode: u32,
        maker: NewOwner,
    ) -> Result<Attr> {
        let mut table = self.staging.lock();
        table.check_place(parent, name, FileKind::Directory)?;
        let folder = self.staging.folder_for_new(&table, parent, name)?;
        self.staging.limits().remember_no_room(folder.make_folder(name, permissions(mode)))?;
        set_owner_and_mode(&folder, name, mode, maker)?;
        let ino = table.add(parent, name, NodeBody::Directory(DirectoryNames::default()))?;
        self.staging.attr(&table, ino)
    }

    /// Makes a symbolic link. It may point anywhere: the kernel follows it for the module, with the
    /// module's rights. An event that names a path through it stays inside `out/data` or is
    /// refused.
    pub(crate) fn symlink(
        &self,
        parent: Ino,
        name: &OsStr,
        target: &Path,
        maker: NewOwner,
    ) -> Result<Attr> {
        let mut table = self.staging.lock();
        table.check_place(parent, name, FileKind::Symlink)?;
        let folder = self.staging.folder_for_new(&table, parent, name)?;
        self.staging.limits().check_room_for(&mut table, target.as_os_str().len() as u64)?;
        self.staging.limits().remember_no_room(folder.make_symlink(name, target))?;
        set_owner_and_mode(&folder, name, 0, maker)?;
        let ino = table.add(parent, name, NodeBody::Symlink)?;
        self.staging.limits().charge_extra(&mut table, ino, target.as_os_str().len() as u64)?;
        self.staging.attr(&table, ino)
    }

    /// Makes a regular file without opening it, a pipe or a socket. Refuses a device (EPERM): a
    /// module has the devices of its executor.
    pub(crate) fn mknod(
        &self,
        parent: Ino,
        name: &OsStr,
        mode: u32,
        maker: NewOwner,
    ) -> Result<Attr> {
        let file_type = FileType::from_raw_mode(mode);
        let kind = match file_type {
            FileType::RegularFile => {
                let ino = self.make_file(parent, name, mode, maker)?;
                return self.staging.getattr(ino);
            }
            FileType::Fifo => FileKind::Pipe,
            FileType::Socket => FileKind::Socket,
            _ => return Err(Errno::PERM),
        };
        let mut table = self.staging.lock();
        table.check_place(parent, name, kind)?;
        let folder = self.staging.folder_for_new(&table, parent, name)?;
        self.staging.limits().remember_no_room(folder.make_node(
            name,
            file_type,
            permissions(mode),
        ))?;
        set_owner_and_mode(&folder, name, mode, maker)?;
        let ino = table.add(parent, name, NodeBody::Special(kind))?;
        self.staging.attr(&table, ino)
    }

    /// Makes an empty file.
    pub(in crate::output) fn make_file(
        &self,
        parent: Ino,
        name: &OsStr,
        mode: u32,
        maker: NewOwner,
    ) -> Result<Ino> {
        let table = &mut self.staging.lock();
        self.make_open_file(table, parent, name, mode, maker, OFlags::WRONLY).map(|(ino, _)| ino)
    }

    /// Makes an empty file and opens it on the disk.
    pub(in crate::output) fn make_open_file(
        &self,
        table: &mut OutputTable,
        parent: Ino,
        name: &OsStr,
        mode: u32,
        maker: NewOwner,
        flags: OFlags,
    ) -> Result<(Ino, File)> {
        table.check_place(parent, name, FileKind::File)?;
        let folder = self.staging.folder_for_new(table, parent, name)?;
        let flags = flags | OFlags::CREATE | OFlags::EXCL;
        let opened = folder.open_file(name, flags, permissions(mode));
        let opened = self.staging.limits().remember_no_room(opened)?;
        set_owner_and_mode(&folder, name, mode, maker)?;
        let decides_an_event = parent == EVENTS || (parent == OUT && name != FAILED_NAME);
        let file = FileNode {
            event: decides_an_event.then(Box::default),
            in_order: Some(InOrder::default()),
            ..FileNode::default()
        };
        let ino = table.add(parent, name, NodeBody::File(Box::new(file)))?;
        Ok((ino, opened))
    }

    /// Makes a new file in `out/data` or `out/state` that refers to a blob (`ln` and `mv` from
    /// `in/`).
    pub(crate) fn add_reference(
        &self,
        parent: Ino,
        name: &OsStr,
        entry: &Arc<FileEntry>,
        mode: u32,
        maker: NewOwner,
    ) -> Result<Attr> {
        {
            let table = self.staging.lock();
            if !table.is_below(parent, DATA) && !table.is_below(parent, STATE) {
                return Err(Errno::XDEV);
            }
        }
        let ino = self.make_file(parent, name, mode | libc::S_IFREG, maker)?;
        let mut table = self.staging.lock();
        let pinned = self.staging.pin(&table, ino)?;
        // Make it writable first, or an ordinary user could not open a read-only file.
        pinned.set_mode(permissions(mode | 0o200))?;
        let file = pinned.open(OFlags::WRONLY)?;
        file.set_len(entry.size).map_err(|error| errno(&error))?;
        let at = TimeChange::To(entry.modified()).timespec();
        pinned.set_times(&Timestamps { last_access: at, last_modification: at })?;
        pinned.set_mode(permissions(mode))?;
        if entry.size > 0 {
            let file = table.file_mut(ino)?;
            file.note_change(ContentChange::Resized);
            file.reference = Some(Reference::new(entry.clone(), entry.size));
        }
        self.staging.attr(&table, ino)
    }

    /// Like [`StagedNames::add_reference`], for `ln`: the new file shows the inode number of
    /// `linked_to` for as long as both have the same content.
    pub(crate) fn add_link(
        &self,
        parent: Ino,
        name: &OsStr,
        entry: &Arc<FileEntry>,
        mode: u32,
        maker: NewOwner,
        linked_to: Ino,
    ) -> Result<Attr> {
        let attr = self.add_reference(parent, name, entry, mode, maker)?;
        let mut table = self.staging.lock();
        let file = table.file_mut(attr.ino)?;
        file.linked_to = Some(InputLink { ino: linked_to, generation: file.generation });
        self.staging.attr(&table, attr.ino)
    }
}

/// Gives a new inode its owner and its exact mode, or removes it again. The kernel has applied the
/// module's umask already; the daemon's own umask must not take more away.
fn set_owner_and_mode(folder: &Folder, name: &OsStr, mode: u32, maker: NewOwner) -> Result<()> {
    let pinned = folder.pin(name)?;
    apply_owner_and_mode(folder, &pinned, mode, maker).inspect_err(|_| {
        // If the removal fails too, the inode is not in the table and goes with the staging folder.
        let _ = folder.remove_all(name);
    })
}

fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

fn apply_owner_and_mode(folder: &Folder, made: &Pinned, mode: u32, maker: NewOwner) -> Result<()> {
    let above = folder.pin_self()?.stat()?;
    let now = made.stat()?;
    let kind = FileType::from_raw_mode(now.st_mode);
    // A directory with the set-group-ID bit gives its group to what is made in it, and the bit to
    // new directories.
    let inherits = above.st_mode & libc::S_ISGID != 0;
    let owner = NewOwner { gid: if inherits { above.st_gid } else { maker.gid }, ..maker };
    if owner != (NewOwner { uid: now.st_uid, gid: now.st_gid }) {
        match made.set_owner(Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid))) {
            // A daemon that runs as an ordinary user cannot change owners. It serves only that
            // user, to whom the new inode belongs already.
            Ok(()) | Err(Errno::PERM) => {}
            Err(error) => return Err(error),
        }
    }
    let mode = if inherits && kind.is_dir() { mode | libc::S_ISGID } else { mode };
    // Set the mode after the owner: a change of owner clears the set-user-ID and set-group-ID bits.
    let stays = now.st_mode & 0o7777 == mode & 0o7777 && mode & 0o7000 == 0;
    if stays || kind.is_symlink() { Ok(()) } else { made.set_mode(permissions(mode)) }
}
