//! Layers, one over the other, in a folder.
//!
//! Where a path leads is decided by the kernel: every folder is opened with `openat2` and `RESOLVE_IN_ROOT`, by which the
//! folder is the root for `..` and for symbolic links, as it is later for the programs that run there. Real images need links
//! that begin with a slash (`/var/run -> /run`) to be followed so. A name that says `..` itself is a mistake or an attack.

use std::cell::Cell;
use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::BuildHasher as _;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use ionfs::text::quote;
use rustix::fs::{self, AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use super::layout::{Descriptor, Layout};
use super::{ImageError, Owners};

/// Bytes of an unpacked image. Real ones have up to 30 GB; a small archive of zeros can have any number.
const BYTES_MAX: u64 = 64 << 30;

/// Bytes of the archives themselves, unpacked: what BYTES_MAX does not count are heads of entries.
const ARCHIVED_MAX: u64 = 2 * BYTES_MAX;

/// Files and folders of an image, and other entries of its archives.
const FILES_MAX: u64 = 5_000_000;

/// Bytes of one entry's long name, long link, PAX records and map of holes, which are read whole. Names have 4 KiB at
/// most, and extended attributes, the largest records there are, 64 KiB each.
const METADATA_MAX: u64 = 1 << 20;

/// A zstd frame may ask for a window of two to this power to be kept: 128 MiB, as much as `zstd -d` gives.
const WINDOW_LOG_MAX: u32 = 27;

/// Before a name: it is removed. Twice, with `.opq`: all that lower layers have in this folder is.
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Users and groups of a container; what an image gives to others is given to the last.
pub(in super::super) const USERS: u32 = 1 << 16;

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
}

/// Counts the bytes of an archive, and ends it where an entry's metadata does not end. Who reads the archive keeps
/// metadata in memory, and passes over all else piece by piece.
#[derive(Default)]
struct Meter {
    read: Cell<u64>,
    /// Where the next entry's content has to have begun.
    end: Cell<Option<u64>>,
    over: Cell<bool>,
}

impl Meter {
    /// An entry's content of this length begins here.
    fn entry(&self, length: u64) {
        let padded = length.checked_next_multiple_of(512).unwrap_or(u64::MAX);
        self.end.set(Some(self.read.get().saturating_add(padded)));
    }
}

struct Metered<'m, R> {
    bytes: R,
    meter: &'m Meter,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Meter { read, end, over } = self.meter;
        if read.get() > end.get().unwrap_or(0).saturating_add(METADATA_MAX) {
            over.set(true);
            return Err(io::ErrorKind::InvalidData.into());
        }
        let length = self.bytes.read(buffer)?;
        read.set(read.get() + length as u64);
        Ok(length)
    }
}

/// Bytes of an entry's content in the archive; holes have none.
fn on_disk<R: Read>(entry: &Entry<'_, R>) -> u64 {
    match entry.header().entry_type() {
        EntryType::GNUSparse => entry.header().entry_size().unwrap_or(0),
        _ => entry.size(),
    }
}

/// Whether PAX records tell where a file has its holes; its content is shorter than the file then, or begins with a map.
fn has_sparse_records<R: Read>(entry: &mut Entry<'_, R>) -> io::Result<bool> {
    // Of these entries they would be read from the content, whatever its length.
    if !entry.header().entry_type().is_file() {
        return Ok(false);
    }
    let records = entry.pax_extensions()?;
    Ok(records.is_some_and(|mut records| {
        records.any(|record| record.is_ok_and(|record| record.key_bytes().starts_with(b"GNU.sparse.")))
    }))
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

/// A path of an archive, quoted.
fn shown(path: &Path) -> String {
    quote(&*path.to_string_lossy()).to_string()
}

/// What is refused of an entry, before it is known where it stands.
enum Refused {
    Because(String),
    System(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

impl From<Errno> for Refused {
    fn from(error: Errno) -> Self {
        Self::System(error.into())
    }
}

impl Root {
    pub(super) fn new(path: &Path, owners: Owners) -> Result<Self, ImageError> {
        let folder = open_folder(path).map_err(ImageError::file(path))?;
        let root = Self { folder, path: path.to_owned(), owners, bytes: 0, files: 0, archived: 0 };
        root.own(root.folder.as_fd(), OsStr::new("."), 0, 0).map_err(ImageError::file(path))?;
        // As long as the image does not say otherwise: whoever runs from it walks through.
        fs::fchmod(&root.folder, Mode::from_raw_mode(0o755))
            .map_err(|error| ImageError::file(path)(error.into()))?;
        Ok(root)
    }

    /// Lays one layer over those before.
    pub(super) fn add_layer(&mut self, layout: &Layout, layer: &Descriptor) -> Result<(), ImageError> {
        let mut blob = layout.blob(layer)?;
        let kind = layer.media_type.rsplit(['.', '+']).next().unwrap_or_default();
        let laid = match kind {
            "gzip" => self.lay(flate2::read::MultiGzDecoder::new(&mut blob)),
            "zstd" => zstd::stream::Decoder::new(&mut blob)
                .and_then(|mut decoder| decoder.window_log_max(WINDOW_LOG_MAX).map(|()| decoder))
                .map_err(Refused::System)
                .and_then(|decoder| self.lay(decoder)),
            "tar" => self.lay(&mut blob),
            _ => {
                Err(Refused::Because(format!("layers of the type {} are unknown", quote(&layer.media_type))))
            }
        };
        let checked = blob.check(layout);
        match (laid, checked) {
            (Err(Refused::Because(reason)), _) => {
                Err(layout.wrong(format!("its layer {}: {reason}", quote(&layer.digest))))
            }
            // Bytes that are not those of the layer: that they could not be read is what comes of it.
            (_, Err(damaged)) => Err(damaged),
            (Err(Refused::System(source)), Ok(())) => Err(ImageError::file(&self.path)(source)),
            (Ok(()), Ok(())) => Ok(()),
        }
    }

    /// Makes the folders where a container's own mounts stand: the root is read-only for it.
    pub(super) fn finish(&mut self) -> Result<(), ImageError> {
        for name in ["dev", "etc", "ion", "proc", "sys", "tmp"] {
            self.folder_at(Path::new(name)).map_err(ImageError::file(&self.path.join(name)))?;
        }
        Ok(())
    }

    fn lay(&mut self, bytes: impl Read) -> Result<(), Refused> {
        // Of this layer: an opaque folder hides what is below and not what is beside.
        let mut own = OwnPaths::default();
        let meter = Meter::default();
        let mut archive = Archive::new(Metered { bytes, meter: &meter });
        let mut entries = archive.entries()?;
        let mut last = String::from("the first one");
        loop {
            let next = entries.next().transpose();
            if meter.over.get() {
                return Err(Refused::Because(format!(
                    "one entry's name, link and attributes have more than {METADATA_MAX} bytes; it follows {last}"
                )));
            }
            let Some(mut entry) = next? else { break };
            meter.entry(on_disk(&entry));
            let said = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()));
            last = shown(&said);
            let path = below(&said)?;
            self.files += 1;
            self.within_bounds(&meter)?;
            self.add(&mut entry, &path, &mut own).map_err(|refused| match refused {
                Refused::System(error) => {
                    Refused::System(io::Error::new(error.kind(), format!("{last}: {error}")))
                }
                because @ Refused::Because(_) => because,
            })?;
        }
        self.archived += meter.read.get();
        Ok(())
    }

    fn within_bounds(&self, meter: &Meter) -> Result<(), Refused> {
        if self.files > FILES_MAX {
            return Err(Refused::Because(format!("the image has more than {FILES_MAX} files")));
        }
        if self.archived + meter.read.get() > ARCHIVED_MAX {
            return Err(Refused::Because(format!(
                "the image's archives have more than {ARCHIVED_MAX} bytes"
            )));
        }
        Ok(())
    }

    fn add<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        path: &Path,
        own: &mut OwnPaths,
    ) -> Result<(), Refused> {
        let kind = entry.header().entry_type();
        if has_sparse_records(entry)? {
            return Err(Refused::Because(format!(
                "its file {} has holes that are kept in PAX records, which are not read here; pack it with \
                 `tar --format=gnu`, or without `--sparse`",
                shown(path)
            )));
        }
        let Some(name) = path.file_name() else {
            if kind.is_dir() {
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
        match kind {
            EntryType::Directory => {
                if !is_folder(parent.as_fd(), name)? {
                    remove(parent.as_fd(), name)?;
                    fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700))?;
                }
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                remove(parent.as_fd(), name)?;
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = fs::openat(&parent, name, flags, Mode::from_raw_mode(0o600))?;
                self.copy(entry, &mut File::from(file))?;
            }
            EntryType::Symlink => {
                remove(parent.as_fd(), name)?;
                let target = link_target(entry, path)?;
                fs::symlinkat(&*target, &parent, name)?;
                return self.own_as(parent.as_fd(), name, entry).map_err(Refused::from);
            }
            EntryType::Link => {
                let target = link_target(entry, path)?;
                let from = below(Path::new(&target))?;
                let (Some(from_name), from_above) =
                    (from.file_name(), from.parent().unwrap_or(Path::new("")))
                else {
                    return Err(Refused::Because(format!("its link {} leads to no file", shown(path))));
                };
                let from = self.folder_at(from_above)?;
                remove(parent.as_fd(), name)?;
                fs::linkat(&from, from_name, &parent, name, AtFlags::empty())?;
                // Owner and mode are those of what it names.
                return Ok(());
            }
            EntryType::Fifo => {
                remove(parent.as_fd(), name)?;
                fs::mknodat(&parent, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
            }
            // Devices: a container has those of its own /dev. The rest is about the archive.
            _ => return Ok(()),
        }
        self.attributes(parent.as_fd(), name, entry).map_err(Refused::from)
    }

    fn copy<R: Read>(&mut self, entry: &mut Entry<'_, R>, file: &mut File) -> Result<(), Refused> {
        let left = BYTES_MAX - self.bytes;
        let copied = io::copy(&mut entry.take(left + 1), file)?;
        if copied > left {
            return Err(Refused::Because(format!("unpacked it has more than {BYTES_MAX} bytes")));
        }
        self.bytes += copied;
        file.flush().map_err(Refused::from)
    }

    /// Opens a folder below the root, making what is not there.
    fn folder_at(&mut self, path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |root: &Self, path: &Path| {
            let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
            fs::openat2(&root.folder, path, flags, Mode::empty(), RESOLVE)
        };
        match open(self, path) {
            Err(Errno::NOENT) => {}
            opened => return opened.map_err(io::Error::from),
        }
        let (above, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
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
        open(self, path).map_err(io::Error::from)
    }

    /// Gives a file that is no symbolic link its owner, mode and time.
    fn attributes<R: Read>(
        &self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        entry: &Entry<'_, R>,
    ) -> io::Result<()> {
        self.own_as(parent, name, entry)?;
        let folder = entry.header().entry_type().is_dir();
        // Whoever unpacked it must be able to go through it and to remove it; nobody gets rights of a file's owner by it.
        let least = if folder { 0o700 } else { 0o400 };
        let mode = entry.header().mode()? & 0o1777 | least;
        fs::chmodat(parent, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
        if !folder {
            // Compiled Python is compared with the time of its source.
            let time = Timespec { tv_sec: entry.header().mtime()?.cast_signed(), tv_nsec: 0 };
            let times = Timestamps { last_access: time, last_modification: time };
            fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    fn own_as<R: Read>(&self, parent: BorrowedFd<'_>, name: &OsStr, entry: &Entry<'_, R>) -> io::Result<()> {
        self.own(parent, name, entry.header().uid()?, entry.header().gid()?)
    }

    fn own(&self, parent: BorrowedFd<'_>, name: &OsStr, uid: u64, gid: u64) -> io::Result<()> {
        let Owners::From(first) = self.owners else { return Ok(()) };
        let shifted = |id: u64| first + u32::try_from(id).ok().filter(|id| *id < USERS).unwrap_or(USERS - 1);
        let (uid, gid) = (Uid::from_raw(shifted(uid)), Gid::from_raw(shifted(gid)));
        fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(io::Error::from)
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
                return Err(Refused::Because(format!("its path {} leads out of the image", shown(said))));
            }
        }
    }
    Ok(path)
}

fn link_target<R: Read>(entry: &Entry<'_, R>, path: &Path) -> Result<OsString, Refused> {
    let target = entry.link_name_bytes().filter(|target| !target.is_empty());
    let target = target.ok_or_else(|| Refused::Because(format!("its link {} leads nowhere", shown(path))))?;
    Ok(OsStr::from_bytes(&target).to_owned())
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

/// Gives each name in a folder, one at a time: a layer may have put millions there. It may be removed meanwhile.
fn each_name(folder: BorrowedFd<'_>, mut take: impl FnMut(&OsStr) -> io::Result<()>) -> io::Result<()> {
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

/// Untars an image layout: its documents and blobs, and nothing else. Blobs are checked when they are read.
pub(super) fn archive(file: &Path, to: &Path) -> Result<(), ImageError> {
    let uid = rustix::process::geteuid().as_raw();
    let mut root = Root::new(to, Owners::Itself(uid))?;
    let bytes = File::open(file).map_err(ImageError::file(file))?;
    root.lay(io::BufReader::new(bytes)).map_err(|refused| match refused {
        Refused::Because(reason) => ImageError::Wrong(format!("archive {}: {reason}", file.display())),
        Refused::System(source) => ImageError::file(file)(source),
    })
}
