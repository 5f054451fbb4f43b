//! Layers, one over the other, in a folder.
//!
//! Where a path leads is decided by the kernel: every folder is opened with `openat2` and
//! `RESOLVE_IN_ROOT`, by which the folder is the root for `..` and for symbolic links, as it is
//! later for the programs that run there. Real images need links that begin with a slash (`/var/run
//! -> /run`) to be followed so. A name that says `..` itself is a mistake or an attack.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::hash::BuildHasher as _;
use std::io::{self, BufRead as _, BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use ion_model::text::quote;
use rustix::fs::{
    self, AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::archive::{Entries, Entry, Kind, Refused, shown};
use super::layout::{Descriptor, Layout};
use super::{ImageConfig, ImageError, Owners};

/// Bytes of an unpacked image. Real ones have up to 30 GB; a small archive of zeros can have any
/// number.
const BYTES_MAX: u64 = 64 << 30;

/// Bytes of the archives themselves, unpacked: what BYTES_MAX does not count are heads of entries.
const ARCHIVED_MAX: u64 = 2 * BYTES_MAX;

/// Files and folders of an image, and other entries of its archives.
const FILES_MAX: u64 = 5_000_000;

/// A zstd frame may ask for a window of two to this power to be kept: 128 MiB, as much as `zstd -d`
/// gives.
const WINDOW_LOG_MAX: u32 = 27;

/// Before a name: it is removed. Twice, with `.opq`: all that lower layers have in this folder is.
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Users and groups of a container: as many as leave room for those of directories, which begin at
/// 65,536 and go into the millions. What an image gives to others is given to the last.
pub(in super::super) const USERS: u32 = 1 << 24;

/// Where every container has something mounted.
const MOUNTS: [&str; 6] = ["dev", "etc", "ion", "proc", "sys", "tmp"];

/// Files of `/etc` that every container has of its own.
pub(in super::super) const HOST_FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// Links that lead on to others: as many as the kernel follows.
const LINKS_MAX: u32 = 40;

/// What crosses many folders at once.
const RESOLVE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// A root being made.
pub(super) struct Root {
    folder: OwnedFd,
    path: PathBuf,
    owners: Owners,
    bytes: u64,
    files: u64,
    archived: u64,
    /// Whether extended attributes were left out, as the disk keeps none.
    without_attributes: bool,
}

/// The paths that a layer has laid, each as a number: a layer may have millions of long ones.
#[derive(Default)]
struct OwnPaths {
    hasher: RandomState,
    paths: HashSet<u64>,
}

impl OwnPaths {
    /// This path and the folders above it.
    fn add(&mut self, path: &Path) {
        for path in path.ancestors() {
            if !self.paths.insert(self.hasher.hash_one(path)) {
                break;
            }
        }
    }

    fn contains(&self, path: &Path) -> bool {
        self.paths.contains(&self.hasher.hash_one(path))
    }
}

impl Root {
    pub(super) fn new(path: &Path, owners: Owners) -> Result<Self, ImageError> {
        let folder = open_folder(path).map_err(ImageError::file(path))?;
        let root = Self {
            folder,
            path: path.to_owned(),
            owners,
            bytes: 0,
            files: 0,
            archived: 0,
            without_attributes: false,
        };
        root.own(root.folder.as_fd(), OsStr::new("."), 0, 0).map_err(ImageError::file(path))?;
        // As long as the image does not say otherwise: whoever runs from it walks through.
        fs::fchmod(&root.folder, Mode::from_raw_mode(0o755))
            .map_err(|error| ImageError::file(path)(error.into()))?;
        Ok(root)
    }

    /// Lays one layer over those before.
    pub(super) fn add_layer(
        &mut self,
        layout: &Layout,
        layer: &Descriptor,
    ) -> Result<(), ImageError> {
        let mut blob = layout.blob(layer)?;
        let laid = self.lay(&mut blob);
        let checked = blob.check(layout);
        match (laid, checked) {
            // Bytes that are not those of the layer: whatever else is wrong is what comes of it.
            (_, Err(damaged)) => Err(damaged),
            (Err(Refused::Because(reason)), Ok(())) => {
                Err(layout.wrong(format!("its layer {}: {reason}", quote(&layer.digest))))
            }
            (Err(Refused::System(source)), Ok(())) => Err(ImageError::file(&self.path)(source)),
            (Ok(()), Ok(())) => Ok(()),
        }
    }

    /// Makes what a container's own mounts stand on, and the folder it starts in: jobs share the
    /// image, and change nothing of it.
    pub(super) fn finish(&mut self, config: &ImageConfig) -> Result<(), ImageError> {
        let folders = MOUNTS.iter().map(PathBuf::from).chain([config.folder()]);
        for folder in
            folders.chain(config.volumes.iter().flat_map(BTreeMap::keys).map(PathBuf::from))
        {
            let made =
                below(&folder).and_then(|path| Ok(self.folder_through_links(&path, LINKS_MAX)?));
            made.map_err(|refused| match refused {
                Refused::Because(reason) => ImageError::Wrong(reason),
                Refused::System(error) => ImageError::file(&self.path.join(folder))(error),
            })?;
        }
        for name in HOST_FILES {
            self.file_in_etc(OsStr::new(name))
                .map_err(ImageError::file(&self.path.join("etc").join(name)))?;
        }
        if self.without_attributes {
            let image = self.path.display();
            tracing::warn!(%image, "the disk does not keep all extended attributes of this image's files; some are left out");
        }
        Ok(())
    }

    /// Lays what an archive holds, compressed or not. That is seen by its first bytes: what is said
    /// of it beside is often wrong.
    fn lay(&mut self, bytes: impl Read) -> Result<(), Refused> {
        let mut bytes = BufReader::new(bytes);
        match bytes.fill_buf()? {
            [0x1f, 0x8b, ..] => self.lay_tar(flate2::bufread::MultiGzDecoder::new(bytes)),
            // A frame, or one before it that is to be passed over.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                let mut decoder = zstd::stream::Decoder::with_buffer(bytes)?;
                decoder.window_log_max(WINDOW_LOG_MAX)?;
                self.lay_tar(decoder)
            }
            [b'B', b'Z', b'h', ..] => Err(other_compression("bzip2")),
            [0xfd, b'7', b'z', b'X', b'Z', ..] => Err(other_compression("xz")),
            _ => self.lay_tar(bytes),
        }
    }

    fn lay_tar(&mut self, bytes: impl Read) -> Result<(), Refused> {
        // Of this layer: an opaque folder hides what is below and not what is beside.
        let mut own = OwnPaths::default();
        let mut entries = Entries::new(bytes, ARCHIVED_MAX - self.archived);
        while let Some(entry) = entries.next()? {
            let path = below(&entry.path)?;
            self.files += 1;
            if self.files > FILES_MAX {
                return Err(Refused::Because(format!("the image has more than {FILES_MAX} files")));
            }
            self.add(&mut entries, &entry, &path, &mut own).map_err(|refused| match refused {
                Refused::System(error) => {
                    let name = shown(&entry.path);
                    Refused::System(io::Error::new(error.kind(), format!("{name}: {error}")))
                }
                because @ Refused::Because(_) => because,
            })?;
        }
        self.archived += entries.read();
        Ok(())
    }

    fn add<R: Read>(
        &mut self,
        entries: &mut Entries<R>,
        entry: &Entry,
        path: &Path,
        own: &mut OwnPaths,
    ) -> Result<(), Refused> {
        let Some(name) = path.file_name() else {
            if entry.kind == Kind::Folder {
                self.attributes(self.folder.as_fd(), OsStr::new("."), entry)?;
            }
            return Ok(());
        };
        let above = path.parent().unwrap_or(Path::new(""));
        let parent = self.folder_at(above)?;
        if name.as_bytes() == OPAQUE {
            return hide_lower(parent.as_fd(), above, own).map_err(Refused::from);
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            return match hidden {
                b"" | b"." | b".." => {
                    Err(Refused::Because(format!("its whiteout {} names nothing", shown(path))))
                }
                hidden => remove(parent.as_fd(), OsStr::from_bytes(hidden)).map_err(Refused::from),
            };
        }
        own.add(path);
        match entry.kind {
            Kind::Folder => {
                if !is_folder(parent.as_fd(), name)? {
                    remove(parent.as_fd(), name)?;
                    fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700))?;
                }
                if !entry.attributes.is_empty() {
                    let flags =
                        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    self.of_users(fs::openat(&parent, name, flags, Mode::empty())?.as_fd(), entry)?;
                }
            }
            Kind::File => {
                remove(parent.as_fd(), name)?;
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let file = fs::openat(&parent, name, flags, Mode::from_raw_mode(0o600))?;
                self.of_users(file.as_fd(), entry)?;
                self.copy(entries, entry, &mut File::from(file))?;
            }
            Kind::Symlink => {
                remove(parent.as_fd(), name)?;
                fs::symlinkat(link_target(entry, path)?, &parent, name)?;
                return self.own_as(parent.as_fd(), name, entry).map_err(Refused::from);
            }
            Kind::Link => {
                let from = below(Path::new(link_target(entry, path)?))?;
                let (Some(from_name), from_above) =
                    (from.file_name(), from.parent().unwrap_or(Path::new("")))
                else {
                    return Err(Refused::Because(format!(
                        "its link {} leads to no file",
                        shown(path)
                    )));
                };
                let from = self.folder_at(from_above)?;
                remove(parent.as_fd(), name)?;
                fs::linkat(&from, from_name, &parent, name, AtFlags::empty())?;
                // Owner and mode are those of what it names.
                return Ok(());
            }
            Kind::Fifo => {
                remove(parent.as_fd(), name)?;
                fs::mknodat(&parent, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
            }
            // A container has those of its own /dev.
            Kind::Device => return Ok(()),
        }
        self.attributes(parent.as_fd(), name, entry).map_err(Refused::from)
    }

    /// Writes a file's content where it belongs; between its pieces are holes.
    fn copy<R: Read>(
        &mut self,
        entries: &mut Entries<R>,
        entry: &Entry,
        file: &mut File,
    ) -> Result<(), Refused> {
        if entry.size > BYTES_MAX - self.bytes {
            return Err(Refused::Because(format!("unpacked it has more than {BYTES_MAX} bytes")));
        }
        self.bytes += entry.size;
        for &(offset, length) in &entry.pieces {
            file.seek(SeekFrom::Start(offset))?;
            let mut left = length;
            while left > 0 {
                let piece = entries.piece(left)?;
                file.write_all(piece)?;
                left -= piece.len() as u64;
            }
        }
        if entry.pieces != [(0, entry.size)] {
            // A hole at its end, too.
            file.set_len(entry.size)?;
        }
        Ok(())
    }

    /// Gives a file or folder the extended attributes of users.
    fn of_users(&mut self, file: BorrowedFd<'_>, entry: &Entry) -> io::Result<()> {
        for (name, value) in &entry.attributes {
            match fs::fsetxattr(file, &**name, value, XattrFlags::empty()) {
                Ok(()) => {}
                // Some disks keep none, or no long ones.
                Err(Errno::NOTSUP | Errno::TOOBIG | Errno::NOSPC | Errno::RANGE) => {
                    self.without_attributes = true
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Opens what is below the root.
    fn opened(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        fs::openat2(&self.folder, path, flags | OFlags::CLOEXEC, Mode::empty(), RESOLVE)
    }

    /// Opens a folder below the root, making what is not there.
    fn folder_at(&mut self, path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        match self.opened(path, flags) {
            Err(Errno::NOENT) => {}
            opened => return opened.map_err(io::Error::from),
        }
        let (above, name) =
            (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
        let parent = self.folder_at(above)?;
        match fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                fs::chmodat(&parent, name, Mode::from_raw_mode(0o755), AtFlags::empty())?;
                self.own(parent.as_fd(), name, 0, 0)?;
                self.files += 1;
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        // A link there that leads to nothing is an error, not a folder.
        self.opened(path, flags).map_err(io::Error::from)
    }

    /// The same, where links on the way may lead to what is not there yet: it is made where they
    /// lead.
    fn folder_through_links(&mut self, path: &Path, links: u32) -> io::Result<OwnedFd> {
        let mut through = PathBuf::new();
        for name in path.iter() {
            let above = self.folder_at(&through)?;
            match fs::readlinkat(&above, name, vec![]) {
                Ok(target) if links > 0 => {
                    let target = through.join(OsStr::from_bytes(target.as_bytes()));
                    let rest = path.strip_prefix(through.join(name)).unwrap_or(Path::new(""));
                    return self.folder_through_links(&plain(&target.join(rest)), links - 1);
                }
                Ok(_) => return Err(Errno::LOOP.into()),
                Err(_) => through.push(name),
            }
        }
        self.folder_at(&through)
    }

    /// Makes a file of `/etc` for another one to be mounted on. A link that leads to no file is
    /// replaced.
    fn file_in_etc(&mut self, name: &OsStr) -> io::Result<()> {
        let etc = self.folder_at(Path::new("etc"))?;
        let there = self.opened(&Path::new("etc").join(name), OFlags::PATH);
        if there.is_ok() {
            return Ok(());
        }
        remove(etc.as_fd(), name)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        fs::fchmod(fs::openat(&etc, name, flags, Mode::empty())?, Mode::from_raw_mode(0o644))?;
        self.own(etc.as_fd(), name, 0, 0)
    }

    /// Gives a file that is no symbolic link its owner, mode and time.
    fn attributes(&self, parent: BorrowedFd<'_>, name: &OsStr, entry: &Entry) -> io::Result<()> {
        self.own_as(parent, name, entry)?;
        let folder = entry.kind == Kind::Folder;
        // Whoever unpacked it must be able to go through it and to remove it; nobody gets rights of
        // a file's owner by it.
        let least = if folder { 0o700 } else { 0o400 };
        let mode = entry.mode & 0o1777 | least;
        fs::chmodat(parent, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
        if !folder {
            // Compiled Python is compared with the time of its source.
            let times = Timestamps { last_access: entry.mtime, last_modification: entry.mtime };
            fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    fn own_as(&self, parent: BorrowedFd<'_>, name: &OsStr, entry: &Entry) -> io::Result<()> {
        self.own(parent, name, entry.uid, entry.gid)
    }

    fn own(&self, parent: BorrowedFd<'_>, name: &OsStr, uid: u64, gid: u64) -> io::Result<()> {
        let Owners::From(first) = self.owners else { return Ok(()) };
        let shifted =
            |id: u64| first + u32::try_from(id).ok().filter(|id| *id < USERS).unwrap_or(USERS - 1);
        let (uid, gid) = (Uid::from_raw(shifted(uid)), Gid::from_raw(shifted(gid)));
        fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(io::Error::from)
    }
}

/// A path of an archive, below its root.
fn below(said: &Path) -> Result<PathBuf, Refused> {
    let mut path = PathBuf::new();
    for part in said.components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Refused::Because(format!(
                    "its path {} leads out of the image",
                    shown(said)
                )));
            }
        }
    }
    Ok(path)
}

/// A path below its root without `..`, which leads nowhere above it.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => drop(plain.pop()),
            _ => {}
        }
    }
    plain
}

fn link_target<'e>(entry: &'e Entry, path: &Path) -> Result<&'e OsStr, Refused> {
    if entry.target.is_empty() {
        return Err(Refused::Because(format!("its link {} leads nowhere", shown(path))));
    }
    Ok(&entry.target)
}

fn other_compression(name: &str) -> Refused {
    Refused::Because(format!(
        "it is compressed by {name}, which is not read here; copy the image with `skopeo copy --dest-compress-format gzip`"
    ))
}

fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::open(path, flags, Mode::empty()).map_err(io::Error::from)
}

fn is_folder(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<bool> {
    match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode).is_dir()),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Removes a name and all below it; nothing there is well.
fn remove(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = fs::openat(parent, name, flags, Mode::empty())?;
    loop {
        each_name(folder.as_fd(), |inside| remove(folder.as_fd(), inside))?;
        match fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            // A listing from which names are removed may pass over others.
            Err(Errno::NOTEMPTY) => {}
            removed => return removed.map_err(io::Error::from),
        }
    }
}

/// Gives each name in a folder, one at a time: a layer may have put millions there. It may be
/// removed meanwhile.
fn each_name(
    folder: BorrowedFd<'_>,
    mut take: impl FnMut(&OsStr) -> io::Result<()>,
) -> io::Result<()> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            take(OsStr::from_bytes(name))?;
        }
    }
    Ok(())
}

/// Removes what lower layers have in a folder.
fn hide_lower(folder: BorrowedFd<'_>, path: &Path, own: &OwnPaths) -> io::Result<()> {
    each_name(folder, |name| {
        let inside = path.join(name);
        if !own.contains(&inside) {
            return remove(folder, name);
        }
        if is_folder(folder, name)? {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            hide_lower(fs::openat(folder, name, flags, Mode::empty())?.as_fd(), &inside, own)?;
        }
        Ok(())
    })
}

/// Untars an image layout: its documents and blobs, and nothing else. Blobs are checked when they
/// are read.
pub(super) fn archive(file: &Path, to: &Path) -> Result<(), ImageError> {
    let uid = rustix::process::geteuid().as_raw();
    let mut root = Root::new(to, Owners::Itself(uid))?;
    let bytes = File::open(file).map_err(ImageError::file(file))?;
    root.lay(bytes).map_err(|refused| match refused {
        Refused::Because(reason) => {
            ImageError::Wrong(format!("archive {}: {reason}", file.display()))
        }
        Refused::System(source) => ImageError::file(file)(source),
    })
}
