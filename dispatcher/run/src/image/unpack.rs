//! Unpacking layers, one over the other, into a folder.
//!
//! The kernel decides where a path leads: every folder is opened with `openat2` and
//! `RESOLVE_IN_ROOT`, so that the folder is the root for `..` and for symbolic links, as it is
//! later for the programs that run there. Real images need links that begin with a slash
//! (`/var/run -> /run`) to be followed in this way. A name that itself contains `..` is a mistake
//! or an attack.

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

use super::archive::{ArchiveEntries, ArchiveEntry, ArchiveRefusal, EntryKind, quote_path};
use super::layout::{BlobDescriptor, ImageLayout};
use super::{ImageConfig, ImageError, ImageOwners};

/// The most bytes of an unpacked image. Real ones have up to 30 GB; a small archive of zeros can
/// have any number.
const BYTES_MAX: u64 = 64 << 30;

/// The most bytes of the archives themselves, uncompressed: they also have the headers of entries,
/// which BYTES_MAX does not count.
const ARCHIVED_MAX: u64 = 2 * BYTES_MAX;

/// The most files and folders of an image, and other entries of its archives.
const FILES_MAX: u64 = 5_000_000;

/// The largest window of a zstd frame, as a power of two, which has to be kept in memory: 128 MiB,
/// as much as `zstd -d` allows.
const WINDOW_LOG_MAX: u32 = 27;

/// The prefix of a name that marks that name as removed. The second name marks a folder as opaque:
/// all that lower layers have in it is removed.
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// The number of users and of groups of a container: enough for the ids of directory services,
/// which begin at 65,536 and go into the millions. The owner of a file with a higher id becomes the
/// last one.
pub(crate) const USERS: u32 = 1 << 24;

/// The folders where every container has something mounted.
const MOUNTS: [&str; 7] = ["dev", "etc", "ion", "proc", "run/secrets", "sys", "tmp"];

/// The files of `/etc` that every container has of its own.
pub(crate) const HOST_FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// The most links in a row that are followed: as many as the kernel follows.
const LINKS_MAX: u32 = 40;

/// How a path with several folders is resolved.
const RESOLVE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// The root of an image that is being unpacked.
pub(super) struct ImageRoot {
    folder: OwnedFd,
    path: PathBuf,
    owners: ImageOwners,
    bytes: u64,
    files: u64,
    archived: u64,
    /// Whether extended attributes were left out, because the disk does not keep them.
    without_attributes: bool,
}

/// The paths that one layer has written, each as a hash: a layer may have millions of long paths.
#[derive(Default)]
struct OwnPaths {
    hasher: RandomState,
    paths: HashSet<u64>,
}

impl OwnPaths {
    /// Adds this path and the folders above it.
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

impl ImageRoot {
    pub(super) fn new(path: &Path, owners: ImageOwners) -> Result<Self, ImageError> {
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
        root.set_owner(root.folder.as_fd(), OsStr::new("."), 0, 0)
            .map_err(ImageError::file(path))?;
        // This holds unless the image sets another mode: every user who runs from the image walks
        // through this folder.
        fs::fchmod(&root.folder, Mode::from_raw_mode(0o755))
            .map_err(|error| ImageError::file(path)(error.into()))?;
        Ok(root)
    }

    /// Unpacks one layer over the layers before it.
    pub(super) fn add_layer(
        &mut self,
        layout: &ImageLayout,
        layer: &BlobDescriptor,
    ) -> Result<(), ImageError> {
        let mut blob = layout.open_blob(layer)?;
        let laid = self.unpack_archive(&mut blob);
        let checked = blob.check(layout);
        match (laid, checked) {
            // The bytes do not match the layer's digest: any other error may follow from that.
            (_, Err(damaged)) => Err(damaged),
            (Err(ArchiveRefusal::Because(reason)), Ok(())) => {
                Err(layout.wrong_image(format!("its layer {}: {reason}", quote(&layer.digest))))
            }
            (Err(ArchiveRefusal::System(source)), Ok(())) => {
                Err(ImageError::file(&self.path)(source))
            }
            (Ok(()), Ok(())) => Ok(()),
        }
    }

    /// Makes the places for a container's own mounts, and the folder it starts in: jobs share the
    /// image, so they cannot add to it later.
    pub(super) fn finish(&mut self, config: &ImageConfig) -> Result<(), ImageError> {
        let folders = MOUNTS.iter().map(PathBuf::from).chain([config.working_folder()]);
        for folder in
            folders.chain(config.volumes.iter().flat_map(BTreeMap::keys).map(PathBuf::from))
        {
            let made = relative_path(&folder)
                .and_then(|path| Ok(self.make_through_links(&path, LINKS_MAX)?));
            made.map_err(|refused| match refused {
                ArchiveRefusal::Because(reason) => ImageError::Wrong(reason),
                ArchiveRefusal::System(error) => ImageError::file(&self.path.join(folder))(error),
            })?;
        }
        for name in HOST_FILES {
            self.make_file_in_etc(OsStr::new(name))
                .map_err(ImageError::file(&self.path.join("etc").join(name)))?;
        }
        if self.without_attributes {
            let image = self.path.display();
            tracing::warn!(
                %image,
                "the disk does not keep all extended attributes of this image's files; some are \
                 left out"
            );
        }
        Ok(())
    }

    /// Unpacks an archive, compressed or not. Its first bytes tell: the declared type is often
    /// wrong.
    fn unpack_archive(&mut self, bytes: impl Read) -> Result<(), ArchiveRefusal> {
        let mut bytes = BufReader::new(bytes);
        match bytes.fill_buf()? {
            [0x1f, 0x8b, ..] => self.unpack_tar(flate2::bufread::MultiGzDecoder::new(bytes)),
            // A zstd frame, or a skippable frame before it.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                let mut decoder = zstd::stream::Decoder::with_buffer(bytes)?;
                decoder.window_log_max(WINDOW_LOG_MAX)?;
                self.unpack_tar(decoder)
            }
            [b'B', b'Z', b'h', ..] => Err(unknown_compression("bzip2")),
            [0xfd, b'7', b'z', b'X', b'Z', ..] => Err(unknown_compression("xz")),
            _ => self.unpack_tar(bytes),
        }
    }

    fn unpack_tar(&mut self, bytes: impl Read) -> Result<(), ArchiveRefusal> {
        // The paths of this layer: an opaque folder hides those of lower layers only.
        let mut own = OwnPaths::default();
        let mut entries = ArchiveEntries::new(bytes, ARCHIVED_MAX - self.archived);
        while let Some(entry) = entries.next()? {
            let path = relative_path(&entry.path)?;
            self.files += 1;
            if self.files > FILES_MAX {
                return Err(ArchiveRefusal::Because(format!(
                    "the image has more than {FILES_MAX} files"
                )));
            }
            self.add_entry(&mut entries, &entry, &path, &mut own).map_err(
                |refused| match refused {
                    ArchiveRefusal::System(error) => {
                        let name = quote_path(&entry.path);
                        ArchiveRefusal::System(io::Error::new(
                            error.kind(),
                            format!("{name}: {error}"),
                        ))
                    }
                    because @ ArchiveRefusal::Because(_) => because,
                },
            )?;
        }
        self.archived += entries.bytes_read();
        Ok(())
    }

    fn add_entry<R: Read>(
        &mut self,
        entries: &mut ArchiveEntries<R>,
        entry: &ArchiveEntry,
        path: &Path,
        own: &mut OwnPaths,
    ) -> Result<(), ArchiveRefusal> {
        let Some(name) = path.file_name() else {
            if entry.kind == EntryKind::Folder {
                self.set_metadata(self.folder.as_fd(), OsStr::new("."), entry)?;
            }
            return Ok(());
        };
        let above = path.parent().unwrap_or(Path::new(""));
        let parent = self.open_or_make_folder(above)?;
        if name.as_bytes() == OPAQUE {
            return remove_lower(parent.as_fd(), above, own).map_err(ArchiveRefusal::from);
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            return match hidden {
                b"" | b"." | b".." => Err(ArchiveRefusal::Because(format!(
                    "its whiteout {} names nothing",
                    quote_path(path)
                ))),
                hidden => remove_all(parent.as_fd(), OsStr::from_bytes(hidden))
                    .map_err(ArchiveRefusal::from),
            };
        }
        own.add(path);
        match entry.kind {
            EntryKind::Folder => {
                if !is_folder(parent.as_fd(), name)? {
                    remove_all(parent.as_fd(), name)?;
                    fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700))?;
                }
                if !entry.attributes.is_empty() {
                    let flags =
                        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    self.set_user_attributes(
                        fs::openat(&parent, name, flags, Mode::empty())?.as_fd(),
                        entry,
                    )?;
                }
            }
            EntryKind::File => {
                remove_all(parent.as_fd(), name)?;
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let file = fs::openat(&parent, name, flags, Mode::from_raw_mode(0o600))?;
                self.set_user_attributes(file.as_fd(), entry)?;
                self.copy_content(entries, entry, &mut File::from(file))?;
            }
            EntryKind::Symlink => {
                remove_all(parent.as_fd(), name)?;
                fs::symlinkat(link_target(entry, path)?, &parent, name)?;
                return self
                    .set_entry_owner(parent.as_fd(), name, entry)
                    .map_err(ArchiveRefusal::from);
            }
            EntryKind::Link => {
                let from = relative_path(Path::new(link_target(entry, path)?))?;
                let (Some(from_name), from_above) =
                    (from.file_name(), from.parent().unwrap_or(Path::new("")))
                else {
                    return Err(ArchiveRefusal::Because(format!(
                        "its link {} leads to no file",
                        quote_path(path)
                    )));
                };
                let from = self.open_or_make_folder(from_above)?;
                remove_all(parent.as_fd(), name)?;
                fs::linkat(&from, from_name, &parent, name, AtFlags::empty())?;
                // Owner and mode are those of the file that it names.
                return Ok(());
            }
            EntryKind::Fifo => {
                remove_all(parent.as_fd(), name)?;
                fs::mknodat(&parent, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
            }
            // A container has the devices of its own /dev.
            EntryKind::Device => return Ok(()),
        }
        self.set_metadata(parent.as_fd(), name, entry).map_err(ArchiveRefusal::from)
    }

    /// Writes the pieces of a file's content; between them are holes.
    fn copy_content<R: Read>(
        &mut self,
        entries: &mut ArchiveEntries<R>,
        entry: &ArchiveEntry,
        file: &mut File,
    ) -> Result<(), ArchiveRefusal> {
        if entry.size > BYTES_MAX - self.bytes {
            return Err(ArchiveRefusal::Because(format!(
                "unpacked it has more than {BYTES_MAX} bytes"
            )));
        }
        self.bytes += entry.size;
        for &(offset, length) in &entry.pieces {
            file.seek(SeekFrom::Start(offset))?;
            let mut left = length;
            while left > 0 {
                let piece = entries.next_piece(left)?;
                file.write_all(piece)?;
                left -= piece.len() as u64;
            }
        }
        if entry.pieces != [(0, entry.size)] {
            // The file may end with a hole, too.
            file.set_len(entry.size)?;
        }
        Ok(())
    }

    /// Sets the extended attributes of users on a file or folder.
    fn set_user_attributes(
        &mut self,
        file: BorrowedFd<'_>,
        entry: &ArchiveEntry,
    ) -> io::Result<()> {
        for (name, value) in &entry.attributes {
            match fs::fsetxattr(file, &**name, value, XattrFlags::empty()) {
                Ok(()) => {}
                // Some filesystems keep none, or no long ones.
                Err(Errno::NOTSUP | Errno::TOOBIG | Errno::NOSPC | Errno::RANGE) => {
                    self.without_attributes = true
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Opens a path below the root.
    fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        fs::openat2(&self.folder, path, flags | OFlags::CLOEXEC, Mode::empty(), RESOLVE)
    }

    /// Opens a folder below the root. Makes the folders that are missing.
    fn open_or_make_folder(&mut self, path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        match self.open(path, flags) {
            Err(Errno::NOENT) => {}
            opened => return opened.map_err(io::Error::from),
        }
        let (above, name) =
            (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
        let parent = self.open_or_make_folder(above)?;
        match fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                fs::chmodat(&parent, name, Mode::from_raw_mode(0o755), AtFlags::empty())?;
                self.set_owner(parent.as_fd(), name, 0, 0)?;
                self.files += 1;
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        // A link in its place that leads to nothing is an error: no folder is made there.
        self.open(path, flags).map_err(io::Error::from)
    }

    /// Does the same where links on the way may lead to missing folders: these are made where the
    /// links lead.
    fn make_through_links(&mut self, path: &Path, links: u32) -> io::Result<OwnedFd> {
        let mut through = PathBuf::new();
        for name in path.iter() {
            let above = self.open_or_make_folder(&through)?;
            match fs::readlinkat(&above, name, vec![]) {
                Ok(target) if links > 0 => {
                    let target = through.join(OsStr::from_bytes(target.as_bytes()));
                    let rest = path.strip_prefix(through.join(name)).unwrap_or(Path::new(""));
                    return self.make_through_links(&resolve_dots(&target.join(rest)), links - 1);
                }
                Ok(_) => return Err(Errno::LOOP.into()),
                Err(_) => through.push(name),
            }
        }
        self.open_or_make_folder(&through)
    }

    /// Makes a file of `/etc` that another one can be mounted on. A link that leads to no file is
    /// replaced.
    fn make_file_in_etc(&mut self, name: &OsStr) -> io::Result<()> {
        let etc = self.open_or_make_folder(Path::new("etc"))?;
        let there = self.open(&Path::new("etc").join(name), OFlags::PATH);
        if there.is_ok() {
            return Ok(());
        }
        remove_all(etc.as_fd(), name)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        fs::fchmod(fs::openat(&etc, name, flags, Mode::empty())?, Mode::from_raw_mode(0o644))?;
        self.set_owner(etc.as_fd(), name, 0, 0)
    }

    /// Sets the owner, mode and time of a file that is not a symbolic link.
    fn set_metadata(
        &self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        entry: &ArchiveEntry,
    ) -> io::Result<()> {
        self.set_entry_owner(parent, name, entry)?;
        let folder = entry.kind == EntryKind::Folder;
        // The user who unpacks it must be able to walk through it and to remove it; set-user-ID and
        // set-group-ID bits are dropped, so that nobody gets the rights of a file's owner.
        let least = if folder { 0o700 } else { 0o400 };
        let mode = entry.mode & 0o1777 | least;
        fs::chmodat(parent, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
        if !folder {
            // Python compares compiled files with the time of their source.
            let times = Timestamps { last_access: entry.mtime, last_modification: entry.mtime };
            fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    fn set_entry_owner(
        &self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        entry: &ArchiveEntry,
    ) -> io::Result<()> {
        self.set_owner(parent, name, entry.uid, entry.gid)
    }

    fn set_owner(
        &self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        uid: u64,
        gid: u64,
    ) -> io::Result<()> {
        let ImageOwners::From(first) = self.owners else { return Ok(()) };
        let shifted =
            |id: u64| first + u32::try_from(id).ok().filter(|id| *id < USERS).unwrap_or(USERS - 1);
        let (uid, gid) = (Uid::from_raw(shifted(uid)), Gid::from_raw(shifted(gid)));
        fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(io::Error::from)
    }
}

/// Returns a path of an archive, relative to its root.
fn relative_path(path: &Path) -> Result<PathBuf, ArchiveRefusal> {
    let mut relative = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => relative.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(ArchiveRefusal::Because(format!(
                    "its path {} leads out of the image",
                    quote_path(path)
                )));
            }
        }
    }
    Ok(relative)
}

/// Resolves the `..` of a path, which cannot lead above the root.
fn resolve_dots(path: &Path) -> PathBuf {
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

fn link_target<'e>(entry: &'e ArchiveEntry, path: &Path) -> Result<&'e OsStr, ArchiveRefusal> {
    if entry.target.is_empty() {
        return Err(ArchiveRefusal::Because(format!(
            "its link {} leads nowhere",
            quote_path(path)
        )));
    }
    Ok(&entry.target)
}

fn unknown_compression(name: &str) -> ArchiveRefusal {
    ArchiveRefusal::Because(format!(
        "it is compressed by {name}, which is not read here; copy the image with `skopeo copy \
         --dest-compress-format gzip`"
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

/// Removes a name and all below it; a missing name is no error.
fn remove_all(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = fs::openat(parent, name, flags, Mode::empty())?;
    loop {
        for_each_name(folder.as_fd(), |inside| remove_all(folder.as_fd(), inside))?;
        match fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            // A listing may skip names while others are removed.
            Err(Errno::NOTEMPTY) => {}
            removed => return removed.map_err(io::Error::from),
        }
    }
}

/// Calls `take` for each name in a folder, without a list of them: a layer may have put millions
/// there. `take` may remove the name.
fn for_each_name(
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

/// Removes what lower layers have in a folder: all paths that are not in `own`.
fn remove_lower(folder: BorrowedFd<'_>, path: &Path, own: &OwnPaths) -> io::Result<()> {
    for_each_name(folder, |name| {
        let inside = path.join(name);
        if !own.contains(&inside) {
            return remove_all(folder, name);
        }
        if is_folder(folder, name)? {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            remove_lower(fs::openat(folder, name, flags, Mode::empty())?.as_fd(), &inside, own)?;
        }
        Ok(())
    })
}

/// Untars an image layout: its documents and blobs, and nothing else. Blobs are checked when they
/// are read.
pub(super) fn layout_archive(file: &Path, to: &Path) -> Result<(), ImageError> {
    let uid = rustix::process::geteuid().as_raw();
    let mut root = ImageRoot::new(to, ImageOwners::Itself(uid))?;
    let bytes = File::open(file).map_err(ImageError::file(file))?;
    root.unpack_archive(bytes).map_err(|refused| match refused {
        ArchiveRefusal::Because(reason) => {
            ImageError::Wrong(format!("archive {}: {reason}", file.display()))
        }
        ArchiveRefusal::System(source) => ImageError::file(file)(source),
    })
}
