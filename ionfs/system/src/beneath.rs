//! What others may change, touched safely: each act names one inode that is held by a descriptor.
//!
//! # How it works
//! A module, an archive or a folder's user may put a symbolic link in the place of a folder between
//! any two system calls. A path that is looked up twice may then lead anywhere on the host. So
//! nothing here takes a path that the kernel walks again: a [`Folder`] is held open, each of its
//! methods takes one name, and a [`Pinned`] holds one inode, whatever becomes of its name. Folders
//! are opened by `openat2` with `RESOLVE_BENEATH` and without following links.
//!
//! # What it never does
//! Follow a symbolic link that it finds below its root, or leave the root by `..`.

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

use crate::failpoint::linger;

/// How the kernel resolves a name: never out of the folder, never through a link.
const RESOLVE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// An inode held without being opened: no right to its content is asked for.
const HELD: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Names that are listed at a time to be removed: a folder of millions need not fit into memory.
const NAMES_AT_A_TIME: usize = 1024;

/// Bytes of the longest value of an extended attribute, and of all names together: the kernel's own
/// limit.
const XATTR_MAX: usize = 65_536;

/// A folder that is held open.
#[derive(Debug)]
pub struct Folder(OwnedFd);

/// One inode, whatever becomes of its names.
#[derive(Debug)]
pub struct Pinned(OwnedFd);

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The name, if it is one: no path, and neither `.` nor `..`. Each act on a folder begins here,
/// after the folder was opened.
fn one_name(name: &OsStr) -> Result<&OsStr> {
    linger("beneath");
    match name.as_bytes() {
        b"" => Err(Errno::NOENT),
        b"." | b".." => Err(Errno::INVAL),
        bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
        _ => Ok(name),
    }
}

impl Folder {
    /// A folder of Ion's own at a path that only Ion and its operator can change. The last name
    /// must not be a link.
    ///
    /// # Errors
    /// What the system says: ENOENT, ENOTDIR for a link or a file, EACCES.
    pub fn open(path: &Path) -> Result<Self> {
        fs::open(path, HELD | OFlags::DIRECTORY, Mode::empty()).map(Self)
    }

    /// The same, made with those above it if it is missing.
    ///
    /// # Errors
    /// What the system says.
    pub fn made(path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        Self::open(path)
    }

    /// The folder at a path below this one, by one walk of the kernel that follows no link.
    ///
    /// # Errors
    /// What the system says: ELOOP where a link is in the way, EXDEV where the path leaves this
    /// folder.
    pub fn below(&self, path: &Path) -> Result<Self> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        fs::openat2(&self.0, path, HELD | OFlags::DIRECTORY, Mode::empty(), RESOLVE).map(Self)
    }

    /// A folder in this one.
    ///
    /// # Errors
    /// What the system says: ENOTDIR for a symbolic link or a file.
    pub fn folder(&self, name: &OsStr) -> Result<Self> {
        fs::openat2(&self.0, one_name(name)?, HELD | OFlags::DIRECTORY, Mode::empty(), RESOLVE)
            .map(Self)
    }

    /// The inode under a name; of a symbolic link the link itself.
    ///
    /// # Errors
    /// What the system says.
    pub fn pin(&self, name: &OsStr) -> Result<Pinned> {
        fs::openat(&self.0, one_name(name)?, HELD, Mode::empty()).map(Pinned)
    }

    /// This folder's own inode.
    ///
    /// # Errors
    /// When this process has no descriptor left.
    pub fn itself(&self) -> Result<Pinned> {
        self.0
            .try_clone()
            .map(Pinned)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::MFILE))
    }

    /// The attributes of what is under a name; of a symbolic link its own.
    ///
    /// # Errors
    /// What the system says.
    pub fn stat(&self, name: &OsStr) -> Result<Stat> {
        fs::statat(&self.0, one_name(name)?, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Opens what is under a name, or makes it if `flags` say so. A symbolic link is refused
    /// (ELOOP). Whoever opens what may be a pipe adds `NONBLOCK`.
    ///
    /// # Errors
    /// What the system says.
    pub fn open_file(&self, name: &OsStr, flags: OFlags, mode: Mode) -> Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
        fs::openat2(&self.0, one_name(name)?, flags, mode, RESOLVE).map(File::from)
    }

    /// Makes a folder.
    ///
    /// # Errors
    /// What the system says.
    pub fn make_folder(&self, name: &OsStr, mode: Mode) -> Result<()> {
        fs::mkdirat(&self.0, one_name(name)?, mode)
    }

    /// Makes a symbolic link, which nothing here will follow.
    ///
    /// # Errors
    /// What the system says.
    pub fn make_symlink(&self, name: &OsStr, target: &Path) -> Result<()> {
        fs::symlinkat(target, &self.0, one_name(name)?)
    }

    /// Makes a pipe or a socket.
    ///
    /// # Errors
    /// What the system says.
    pub fn make_node(&self, name: &OsStr, kind: FileType, mode: Mode) -> Result<()> {
        fs::mknodat(&self.0, one_name(name)?, kind, mode, 0)
    }

    /// Removes a name of anything but a folder.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove_file(&self, name: &OsStr) -> Result<()> {
        fs::unlinkat(&self.0, one_name(name)?, AtFlags::empty())
    }

    /// Removes an empty folder.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove_folder(&self, name: &OsStr) -> Result<()> {
        fs::unlinkat(&self.0, one_name(name)?, AtFlags::REMOVEDIR)
    }

    /// Removes a name and all below it, also where the rights to were taken away; nothing there is
    /// well.
    ///
    /// Folders inside come to stand in this folder, under names that nobody can guess, and go one
    /// after the other: a tree may be deeper than a stack is, and than there are descriptors.
    ///
    /// # Errors
    /// What the system says of the first name that stays.
    pub fn remove_all(&self, name: &OsStr) -> Result<()> {
        match self.remove_file(name) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // A folder.
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(error) => return Err(error),
        }
        let mut left = vec![name.to_owned()];
        while let Some(name) = left.pop() {
            let removed = match self.remove_flat(&name, &mut left) {
                // An ordinary user is bound by the modes that a module gave its own folders.
                Err(Errno::ACCESS) => {
                    self.pin(&name)?.set_mode(Mode::RWXU)?;
                    self.remove_flat(&name, &mut left)
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

    /// Removes a folder in this one; the folders in it that are not empty are moved here, and added
    /// to `left`.
    fn remove_flat(&self, name: &OsStr, left: &mut Vec<OsString>) -> Result<()> {
        let folder = self.folder(name)?;
        loop {
            let names = folder.names_within(NAMES_AT_A_TIME)?;
            if names.is_empty() {
                return self.remove_folder(name);
            }
            for inside in names {
                match folder.remove_file(&inside) {
                    Ok(()) | Err(Errno::NOENT) => continue,
                    Err(Errno::ISDIR | Errno::PERM) => {}
                    Err(error) => return Err(error),
                }
                match folder.remove_folder(&inside) {
                    Ok(()) | Err(Errno::NOENT) => continue,
                    Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                    Err(error) => return Err(error),
                }
                let beside = OsString::from(format!(".removed-{}", Uuid::new_v4().simple()));
                match folder.rename(&inside, self, &beside) {
                    // To move a folder is to write to it.
                    Err(Errno::ACCESS) => {
                        folder.pin(&inside)?.set_mode(Mode::RWXU)?;
                        folder.rename(&inside, self, &beside)?;
                    }
                    moved => moved?,
                }
                left.push(beside);
            }
        }
    }

    /// Removes all that is in this folder, and leaves the folder.
    ///
    /// # Errors
    /// What the system says of the first name that stays.
    pub fn remove_content(&self) -> Result<()> {
        loop {
            let names = self.names_within(NAMES_AT_A_TIME)?;
            if names.is_empty() {
                return Ok(());
            }
            for name in names {
                self.remove_all(&name)?;
            }
        }
    }

    /// The names in this folder, in no order.
    ///
    /// # Errors
    /// What the system says.
    pub fn names(&self) -> Result<Vec<OsString>> {
        self.names_within(usize::MAX)
    }

    fn names_within(&self, most: usize) -> Result<Vec<OsString>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut names = Vec::new();
        let mut listing = Dir::new(fs::openat2(&self.0, ".", flags, Mode::empty(), RESOLVE)?)?;
        while let Some(entry) = listing.read() {
            let name = OsString::from_vec(entry?.file_name().to_bytes().to_vec());
            if name != "." && name != ".." {
                names.push(name);
                if names.len() == most {
                    break;
                }
            }
        }
        Ok(names)
    }

    /// Moves a name to another folder, over what is there.
    ///
    /// # Errors
    /// What the system says.
    pub fn rename(&self, name: &OsStr, to: &Self, new_name: &OsStr) -> Result<()> {
        fs::renameat(&self.0, one_name(name)?, &to.0, one_name(new_name)?)
    }

    /// The space of the disk that it lies on.
    ///
    /// # Errors
    /// What the system says.
    pub fn space(&self) -> Result<StatVfs> {
        fs::fstatvfs(&self.0)
    }
}

impl Pinned {
    /// Its attributes.
    ///
    /// # Errors
    /// What the system says.
    pub fn stat(&self) -> Result<Stat> {
        fs::fstat(&self.0)
    }

    /// A path that leads to this inode and nowhere else, for calls that take no descriptor of this
    /// kind. The kernel does not walk it: it is the inode, also if that is a symbolic link or has
    /// no name any more.
    fn in_proc(&self) -> String {
        linger("beneath");
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }

    /// Opens its content. A symbolic link is refused (ELOOP).
    ///
    /// # Errors
    /// What the system says.
    pub fn open(&self, flags: OFlags) -> Result<File> {
        let flags = (flags - OFlags::NOFOLLOW) | OFlags::CLOEXEC | OFlags::NOCTTY;
        fs::openat(CWD, self.in_proc(), flags, Mode::empty()).map(File::from)
    }

    /// Changes owner and group.
    ///
    /// # Errors
    /// What the system says: EPERM for an ordinary user.
    pub fn set_owner(&self, uid: Option<Uid>, gid: Option<Gid>) -> Result<()> {
        fs::chownat(&self.0, "", uid, gid, AtFlags::EMPTY_PATH)
    }

    /// Changes the permission bits. A symbolic link has none (EOPNOTSUPP).
    ///
    /// # Errors
    /// What the system says.
    pub fn set_mode(&self, mode: Mode) -> Result<()> {
        if FileType::from_raw_mode(self.stat()?.st_mode).is_symlink() {
            return Err(Errno::OPNOTSUPP);
        }
        fs::chmodat(CWD, self.in_proc(), mode, AtFlags::empty())
    }

    /// Changes the times of access and modification.
    ///
    /// # Errors
    /// What the system says.
    pub fn set_times(&self, times: &Timestamps) -> Result<()> {
        fs::utimensat(CWD, self.in_proc(), times, AtFlags::empty())
    }

    /// Where a symbolic link points.
    ///
    /// # Errors
    /// EINVAL if it is none.
    pub fn link_target(&self) -> Result<Vec<u8>> {
        fs::readlinkat(&self.0, "", Vec::new()).map(std::ffi::CString::into_bytes)
    }

    /// Gives it one more name.
    ///
    /// # Errors
    /// What the system says.
    pub fn link(&self, folder: &Folder, name: &OsStr) -> Result<()> {
        fs::linkat(CWD, self.in_proc(), &folder.0, one_name(name)?, AtFlags::SYMLINK_FOLLOW)
    }

    /// An extended attribute's value.
    ///
    /// # Errors
    /// What the system says: ENODATA if there is none.
    pub fn xattr(&self, name: &OsStr) -> Result<Vec<u8>> {
        let mut value = vec![0; XATTR_MAX];
        let length = fs::getxattr(self.in_proc(), name, &mut value)?;
        value.truncate(length);
        Ok(value)
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// What the system says.
    pub fn set_xattr(&self, name: &OsStr, value: &[u8], flags: XattrFlags) -> Result<()> {
        fs::setxattr(self.in_proc(), name, value, flags)
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// What the system says: ENODATA if there is none.
    pub fn remove_xattr(&self, name: &OsStr) -> Result<()> {
        fs::removexattr(self.in_proc(), name)
    }

    /// The names of the extended attributes, each ended by a zero byte.
    ///
    /// # Errors
    /// What the system says.
    pub fn xattrs(&self) -> Result<Vec<u8>> {
        let mut names = vec![0; XATTR_MAX];
        let length = fs::listxattr(self.in_proc(), &mut names)?;
        names.truncate(length);
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn place() -> (tempfile::TempDir, Folder) {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(place.path().join("root/a/b")).unwrap();
        std::fs::write(place.path().join("theirs"), "theirs").unwrap();
        let root = Folder::open(&place.path().join("root")).unwrap();
        (place, root)
    }

    #[test]
    fn no_name_leads_out_of_its_folder() {
        let (place, root) = place();
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
        assert_eq!(root.folder(OsStr::new("out")).unwrap_err(), Errno::NOTDIR);
        assert_eq!(root.below(Path::new("out/root")).unwrap_err(), Errno::LOOP);
        assert_eq!(root.below(Path::new("a/../..")).unwrap_err(), Errno::XDEV);
        let a = root.below(Path::new("a")).unwrap();
        let opened = a.open_file(OsStr::new("f"), OFlags::RDONLY, Mode::empty());
        assert_eq!(opened.unwrap_err(), Errno::LOOP);
        let link = a.pin(OsStr::new("f")).unwrap();
        assert_eq!(link.link_target().unwrap(), b"../../theirs");
        assert_eq!(link.set_mode(Mode::RWXU).unwrap_err(), Errno::OPNOTSUPP);
        assert_eq!(link.open(OFlags::RDONLY).unwrap_err(), Errno::LOOP);
    }

    #[test]
    fn a_folder_that_was_swapped_for_a_link_stays_the_folder_that_was_opened() {
        let (place, root) = place();
        let a = root.folder(OsStr::new("a")).unwrap();
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
        let (place, root) = place();
        let mut at = root.folder(OsStr::new("a")).unwrap();
        for n in 0..5_000 {
            let name = OsString::from(format!("d{}", n % 3));
            at.make_folder(&name, Mode::RWXU).unwrap();
            let flags = OFlags::WRONLY | OFlags::CREATE;
            at.open_file(OsStr::new("f"), flags, Mode::RUSR).unwrap();
            at = at.folder(&name).unwrap();
        }
        drop(at);
        root.remove_all(OsStr::new("a")).unwrap();
        assert!(root.names().unwrap().is_empty());
        drop(place);
    }

    #[test]
    fn a_tree_is_removed_whatever_its_modes_and_what_its_links_point_at_stays() {
        let (place, root) = place();
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
