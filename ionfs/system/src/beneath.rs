//! Safe access to trees that others may change: each operation acts on one inode that a descriptor
//! holds.
//!
//! # How it works
//! A module, an archive or a user of a folder may replace a folder by a symbolic link between any
//! two system calls. A path that is looked up twice may then lead anywhere on the host. So no
//! operation here walks a path that an earlier call has walked: a [`Folder`] is held open, each of
//! its methods takes one name, and a [`Pinned`] holds one inode, whatever happens to its name.
//! Folders are opened by `openat2` with `RESOLVE_BENEATH` and without following links.
//!
//! # What it never does
//! It never follows a symbolic link that it finds below its root, and never leaves the root by
//! `..`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use rustix::fs::{
    self, AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, StatVfs, Timestamps,
    Uid, XattrFlags,
};
use rustix::io::{Errno, Result};
use uuid::Uuid;

use crate::failpoint;

/// How the kernel resolves a name: it never leaves the folder and never follows a link.
const RESOLVE_FLAGS: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// The flags that hold an inode without opening it: they need no right to read or write it.
const HOLD_FLAGS: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The most names that a removal lists at once: the names of a folder of millions need not fit into
/// memory.
const LISTED_NAMES_MAX: usize = 1024;

/// The most bytes of the value of an extended attribute, and of the names of all attributes of an
/// inode together: the kernel's own limit.
const XATTR_BYTES_MAX: usize = 65_536;

/// A folder that is held open.
#[derive(Debug)]
pub struct Folder(OwnedFd);

/// One inode that is held by a descriptor, whatever happens to its names.
#[derive(Debug)]
pub struct Pinned(OwnedFd);

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Checks that `name` is a single name: not a path, and neither `.` nor `..`. Each operation on a
/// folder begins with this check, after the folder was opened.
fn check_name(name: &OsStr) -> Result<&OsStr> {
    failpoint::delay("beneath");
    match name.as_bytes() {
        b"" => Err(Errno::NOENT),
        b"." | b".." => Err(Errno::INVAL),
        bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
        _ => Ok(name),
    }
}

impl Folder {
    /// Opens a folder of Ion's own, at a path that only Ion and its operator can change. The last
    /// component must not be a link.
    ///
    /// # Errors
    /// Returns the system's error: ENOENT, ENOTDIR for a link or a file, EACCES.
    pub fn open(path: &Path) -> Result<Self> {
        fs::open(path, HOLD_FLAGS | OFlags::DIRECTORY, Mode::empty()).map(Self)
    }

    /// Opens a folder like [`Folder::open`]. Makes it and those above it if they are missing.
    ///
    /// # Errors
    /// Returns the system's error.
    pub fn open_or_make(path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        Self::open(path)
    }

    /// Opens the folder at a path below this one. The kernel walks the path once and follows no
    /// link.
    ///
    /// # Errors
    /// Returns the system's error: ELOOP if a component is a link, EXDEV if the path leaves this
    /// folder.
    pub fn open_below(&self, path: &Path) -> Result<Self> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        fs::openat2(&self.0, path, HOLD_FLAGS | OFlags::DIRECTORY, Mode::empty(), RESOLVE_FLAGS)
            .map(Self)
    }

    /// Opens a folder in this one.
    ///
    /// # Errors
    /// Returns the system's error: ENOTDIR for a symbolic link or a file.
    pub fn open_folder(&self, name: &OsStr) -> Result<Self> {
        fs::openat2(
            &self.0,
            check_name(name)?,
            HOLD_FLAGS | OFlags::DIRECTORY,
            Mode::empty(),
            RESOLVE_FLAGS,
        )
        .map(Self)
    }

    /// Holds the inode under a name. Under the name of a symbolic link, this is the link itself.
    ///
    /// # Errors
    /// Returns the system's error.
    pub fn pin(&self, name: &OsStr) -> Result<Pinned> {
        fs::openat(&self.0, check_name(name)?, HOLD_FLAGS, Mode::empty()).map(Pinned)
    }

    /// Holds this folder's own inode.
    ///
    /// # Errors
    /// Returns an error when this process has no descriptor left.
    pub fn pin_self(&self) -> Result<Pinned> {
        self.0
            .try_clone()
            .map(Pinned)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::MFILE))
    }

    /// Returns the attributes of the inode under a name. For a symbolic link they are those of the
    /// link itself.
    ///
    /// # Errors
    /// Returns the system's error.
    pub fn stat(&self, name: &OsStr) -> Result<Stat> {
        fs::statat(&self.0, check_name(name)?, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Opens the file under a name, or makes it if `flags` say so. Refuses a symbolic link (ELOOP).
    /// A caller that may meet a pipe adds `NONBLOCK`.
    ///
    /// # Errors
    /// Returns the system's error.
    pub fn open_file(&self, name: &OsStr, flags: OFlags, mode: Mode) -> Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
        fs::openat2(&self.0, check_name(name)?, flags, mode, RESOLVE_FLAGS).map(File::from)
    }

    /// Makes a folder.
    ///
    /// # Errors
    /// Returns the system's error.
    pub fn make_folder(&self, name: &OsStr, mode: Mode) -> Result<()> {
        fs::mkdirat(&self.0, check_name(name)?, mode)
    }

    /// Makes a symbolic link. No operation of this module follows it.
    ///
    /// # Errors
    /// Returns the system's error.
    pub fn make_symlink(&self, name: &OsStr, target: &Path) -> Result<()> {
        fs::symlinkat(target, &self.0, check_name(name)?)
    }

    /// Makes a pipe or a socket.
    ///
    /// # Errors
    /// Returns the system's error.
    pub fn make_node(&self, name: &OsStr, kind: FileType, mode: Mode) -> Result<()> {
        fs::mknodat(&self.0, check_name(name)?, kind, mode, 0)
    }

    /// Removes the name of an inode that is not a folder.
    ///
    /// # Errors
    /// Returns the system's error.
    pub fn remove_file(&self, name: &OsStr) -> Result<()> {
        fs::unlinkat(&self.0, check_name(name)?, AtFlags::empty())
    }

    /// Removes an empty folder.
    ///
    /// # Errors
    /// Returns the system's error.
    pub fn remove_folder(&self, name: &OsStr) -> Result<()> {
        fs::unlinkat(&self.0, check_name(name)?, AtFlags::REMOVEDIR)
    }

    /// Removes a name and all below it, also where the modes of folders forbid it. It is no error
    /// if the name does not exist.
    ///
    /// It moves inner folders into this folder, under names that nobody can guess, and removes them
    /// one after the other: a tree may be deeper than the stack, and than the number of
    /// descriptors.
    ///
    /// # Errors
    /// Returns the system's error for the first name that it cannot remove.
    pub fn remove_all(&self, name: &OsStr) -> Result<()> {
        match self.remove_file(name) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // The name is a folder.
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(error) => return Err(error),
        }
        let mut remaining = vec![name.to_owned()];
        while let Some(name) = remaining.pop() {
            let removed = match self.remove_level(&name, &mut remaining) {
                // The modes that a module gave its own folders bind Ion when it runs as an ordinary
                // user.
                Err(Errno::ACCESS) => {
                    self.pin(&name)?.set_mode(Mode::RWXU)?;
                    self.remove_level(&name, &mut remaining)
                }
                removed => removed,
            };
            match removed {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Removes a folder in this one. Moves the folders in it that are not empty into this folder,
    /// and adds their new names to `remaining`.
    fn remove_level(&self, name: &OsStr, remaining: &mut Vec<OsString>) -> Result<()> {
        let folder = self.open_folder(name)?;
        loop {
            let names = folder.list_names(LISTED_NAMES_MAX)?;
            if names.is_empty() {
                return self.remove_folder(name);
            }
            for inner_name in names {
                match folder.remove_file(&inner_name) {
                    Ok(()) | Err(Errno::NOENT) => continue,
                    Err(Errno::ISDIR | Errno::PERM) => {}
                    Err(error) => return Err(error),
                }
                match folder.remove_folder(&inner_name) {
                    Ok(()) | Err(Errno::NOENT) => continue,
                    Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                    Err(error) => return Err(error),
                }
                let outer_name = OsString::from(format!(".removed-{}", Uuid::new_v4().simple()));
                match folder.rename(&inner_name, self, &outer_name) {
                    // Moving a folder writes to it, because its `..` changes.
                    Err(Errno::ACCESS) => {
                        folder.pin(&inner_name)?.set_mode(Mode::RWXU)?;
                        folder.rename(&inner_name, self, &outer_name)?;
                    }
                    moved => moved?,
                }
                remaining.push(outer_name);
            }
        }
    }

    /// Removes everything in this folder, but not the folder itself.
    ///
    /// # Errors
    /// Returns the system's error for the first name that it cannot remove.
    pub fn remove_content(&self) -> Result<()> {
        loop {
            let names = self.list_names(LISTED_NAMES_MAX)?;
            if names.is_empty() {
                return Ok(());
            }
            for name in names {
                self.remove_all(&name)?;
            }
        }
    }

    /// Returns the names in this folder, in no particular order.
    ///
    /// # Errors
    /// Returns the system's error.
    pub fn names(&self) -> Result<Vec<OsString>> {
        self.list_names(usize::MAX)
    }

    fn list_names(&self, max: usize) -> Result<Vec<OsString>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut names = Vec::new();
        let mut listing =
            Dir::new(fs::openat2(&self.0, ".", flags, Mode::empty(), RESOLVE_FLAGS)?)?;
        while let Some(entry) = listing.read() {
            let name = OsString::from_vec(entry?.file_name().to_bytes().to_vec());
            if name != "." && name != ".." {
                names.push(name);
                if names.len() == max {
                    break;
                }
            }
        }
        Ok(names)
    }

    /// Moves a name to another folder, and replaces what has the new name there.
    ///
    /// # Errors
    /// Returns the system's error.
    pub fn rename(&self, name: &OsStr, to: &Self, new_name: &OsStr) -> Result<()> {
        fs::renameat(&self.0, check_name(name)?, &to.0, check_name(new_name)?)
    }

    /// Returns how large and how full the filesystem is that the folder lies on.
    ///
    /// # Errors
    /// Returns the system's error.
    pub fn space(&self) -> Result<StatVfs> {
        fs::fstatvfs(&self.0)
    }
}

impl Pinned {
    /// Returns the attributes of the inode.
    ///
    /// # Errors
    /// Returns the system's error.
    pub fn stat(&self) -> Result<Stat> {
        fs::fstat(&self.0)
    }

    /// Returns a path that leads to this inode and nowhere else, for system calls that accept no
    /// descriptor of this kind. The kernel goes from this path straight to the inode, even if the
    /// inode is a symbolic link or has no name any more.
    fn proc_path(&self) -> String {
        failpoint::delay("beneath");
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }

    /// Opens the inode's content. Refuses a symbolic link (ELOOP).
    ///
    /// # Errors
    /// Returns the system's error.
    pub fn open(&self, flags: OFlags) -> Result<File> {
        let flags = (flags - OFlags::NOFOLLOW) | OFlags::CLOEXEC | OFlags::NOCTTY;
        fs::openat(CWD, self.proc_path(), flags, Mode::empty()).map(File::from)
    }

    /// Changes owner and group.
    ///
    /// # Errors
    /// Returns the system's error: EPERM for an ordinary user.
    pub fn set_owner(&self, uid: Option<Uid>, gid: Option<Gid>) -> Result<()> {
        fs::chownat(&self.0, "", uid, gid, AtFlags::EMPTY_PATH)
    }

    /// Changes the permission bits.
    ///
    /// # Errors
    /// Returns the system's error; EOPNOTSUPP for a symbolic link, which has no permission bits.
    pub fn set_mode(&self, mode: Mode) -> Result<()> {
        if FileType::from_raw_mode(self.stat()?.st_mode).is_symlink() {
            return Err(Errno::OPNOTSUPP);
        }
        fs::chmodat(CWD, self.proc_path(), mode, AtFlags::empty())
    }

    /// Changes the times of access and modification.
    ///
    /// # Errors
    /// Returns the system's error.
    pub fn set_times(&self, times: &Timestamps) -> Result<()> {
        fs::utimensat(CWD, self.proc_path(), times, AtFlags::empty())
    }

    /// Returns the target of a symbolic link.
    ///
    /// # Errors
    /// Returns EINVAL if the inode is not a symbolic link.
    pub fn link_target(&self) -> Result<Vec<u8>> {
        fs::readlinkat(&self.0, "", Vec::new()).map(std::ffi::CString::into_bytes)
    }

    /// Gives the inode one more name.
    ///
    /// # Errors
    /// Returns the system's error.
    pub fn hard_link(&self, folder: &Folder, name: &OsStr) -> Result<()> {
        fs::linkat(CWD, self.proc_path(), &folder.0, check_name(name)?, AtFlags::SYMLINK_FOLLOW)
    }

    /// Returns the value of an extended attribute.
    ///
    /// # Errors
    /// Returns the system's error: ENODATA if there is no such attribute.
    pub fn xattr(&self, name: &OsStr) -> Result<Vec<u8>> {
        let mut value = vec![0; XATTR_BYTES_MAX];
        let length = fs::getxattr(self.proc_path(), name, &mut value)?;
        value.truncate(length);
        Ok(value)
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// Returns the system's error.
    pub fn set_xattr(&self, name: &OsStr, value: &[u8], flags: XattrFlags) -> Result<()> {
        fs::setxattr(self.proc_path(), name, value, flags)
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// Returns the system's error: ENODATA if there is no such attribute.
    pub fn remove_xattr(&self, name: &OsStr) -> Result<()> {
        fs::removexattr(self.proc_path(), name)
    }

    /// Returns the names of the extended attributes, each ended by a zero byte.
    ///
    /// # Errors
    /// Returns the system's error.
    pub fn xattrs(&self) -> Result<Vec<u8>> {
        let mut names = vec![0; XATTR_BYTES_MAX];
        let length = fs::listxattr(self.proc_path(), &mut names)?;
        names.truncate(length);
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn test_folder() -> (tempfile::TempDir, Folder) {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(place.path().join("root/a/b")).unwrap();
        std::fs::write(place.path().join("theirs"), "theirs").unwrap();
        let root = Folder::open(&place.path().join("root")).unwrap();
        (place, root)
    }

    #[test]
    fn no_name_leads_out_of_its_folder() {
        let (place, root) = test_folder();
        symlink(place.path(), place.path().join("root/out")).unwrap();
        symlink("../../theirs", place.path().join("root/a/f")).unwrap();
        for name in ["..", ".", "a/b", "/", "/etc/passwd", "a/../../theirs"] {
            let name = OsStr::new(name);
            assert_eq!(root.stat(name).unwrap_err(), Errno::INVAL, "{name:?}");
            assert_eq!(root.remove_all(name).unwrap_err(), Errno::INVAL, "{name:?}");
            assert_eq!(
                root.rename(name, &root, OsStr::new("x")).unwrap_err(),
                Errno::INVAL,
                "{name:?}"
            );
        }
        assert_eq!(root.open_folder(OsStr::new("out")).unwrap_err(), Errno::NOTDIR);
        assert_eq!(root.open_below(Path::new("out/root")).unwrap_err(), Errno::LOOP);
        assert_eq!(root.open_below(Path::new("a/../..")).unwrap_err(), Errno::XDEV);
        let a = root.open_below(Path::new("a")).unwrap();
        let opened = a.open_file(OsStr::new("f"), OFlags::RDONLY, Mode::empty());
        assert_eq!(opened.unwrap_err(), Errno::LOOP);
        let link = a.pin(OsStr::new("f")).unwrap();
        assert_eq!(link.link_target().unwrap(), b"../../theirs");
        assert_eq!(link.set_mode(Mode::RWXU).unwrap_err(), Errno::OPNOTSUPP);
        assert_eq!(link.open(OFlags::RDONLY).unwrap_err(), Errno::LOOP);
    }

    #[test]
    fn a_folder_that_was_swapped_for_a_link_stays_the_folder_that_was_opened() {
        let (place, root) = test_folder();
        let a = root.open_folder(OsStr::new("a")).unwrap();
        std::fs::write(place.path().join("root/a/f"), "ours").unwrap();
        let f = a.pin(OsStr::new("f")).unwrap();
        std::fs::rename(place.path().join("root/a"), place.path().join("root/c")).unwrap();
        symlink(place.path(), place.path().join("root/a")).unwrap();
        std::fs::rename(place.path().join("theirs"), place.path().join("f")).unwrap();
        f.set_mode(Mode::RWXU).unwrap();
        f.set_xattr(OsStr::new("user.x"), b"1", XattrFlags::empty()).unwrap();
        a.remove_file(OsStr::new("f")).unwrap();
        let theirs = place.path().join("f");
        assert_eq!(std::fs::read_to_string(&theirs).unwrap(), "theirs");
        assert!(fs::getxattr(&theirs, "user.x", &mut [0; 8]).is_err());
        assert!(!place.path().join("root/c/f").exists());
    }

    #[test]
    fn a_tree_that_is_deeper_than_any_stack_is_removed() {
        let (place, root) = test_folder();
        let mut at = root.open_folder(OsStr::new("a")).unwrap();
        for n in 0..5_000 {
            let name = OsString::from(format!("d{}", n % 3));
            at.make_folder(&name, Mode::RWXU).unwrap();
            let flags = OFlags::WRONLY | OFlags::CREATE;
            at.open_file(OsStr::new("f"), flags, Mode::RUSR).unwrap();
            at = at.open_folder(&name).unwrap();
        }
        drop(at);
        root.remove_all(OsStr::new("a")).unwrap();
        assert!(root.names().unwrap().is_empty());
        drop(place);
    }

    #[test]
    fn a_tree_is_removed_whatever_its_modes_and_what_its_links_point_at_stays() {
        let (place, root) = test_folder();
        let locked = place.path().join("root/a/b");
        for n in 0..1500 {
            std::fs::write(locked.join(format!("f{n}")), "").unwrap();
        }
        symlink(place.path(), place.path().join("root/a/link")).unwrap();
        std::fs::set_permissions(&locked, std::os::unix::fs::PermissionsExt::from_mode(0o0))
            .unwrap();
        root.remove_all(OsStr::new("a")).unwrap();
        root.remove_all(OsStr::new("a")).unwrap();
        assert!(root.names().unwrap().is_empty());
        assert_eq!(std::fs::read_to_string(place.path().join("theirs")).unwrap(), "theirs");
    }
}
