//! The staging area of one attempt: the table of names behind its one lock, and the folder on the
//! disk that holds the content and the attributes.
//!
//! The table records the directory and the name of each inode. To reach an inode on the disk, the
//! staging area opens the directory's folder, step by step from the nearest folder that is open
//! already. Each operation then names one entry of that folder ([`ion_system::beneath`]).

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use ion_system::beneath::{Folder, Pinned};
use rustix::fs::{Mode, OFlags, Stat, StatVfs};

use super::super::{Attr, Errno, FOREVER, Ino, Result, errno};
use super::folders::OpenFolders;
use super::limits::{StagingLimits, check_length};
use super::table::{NodeBody, OUT, OutputNode, OutputTable, UnnamedRemains};

/// The most bytes that are read of a file by which a module says something to Ion.
const WORDS_MAX: u64 = 1024;

/// The staging area of one attempt.
#[derive(Debug)]
pub(super) struct StagingArea {
    table: Mutex<OutputTable>,
    folders: OpenFolders,
    limits: StagingLimits,
}

impl StagingArea {
    /// Makes the staging area in the folder `root`, which `table` describes.
    pub(super) fn new(table: OutputTable, root: Folder, limits: StagingLimits) -> Arc<Self> {
        Arc::new(Self { table: Mutex::new(table), folders: OpenFolders::new(root), limits })
    }

    /// Locks the table.
    pub(super) fn lock(&self) -> MutexGuard<'_, OutputTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the limits on what the job may use.
    pub(super) fn limits(&self) -> &StagingLimits {
        &self.limits
    }

    /// Returns the path of an inode as seen from `ION_DIR`.
    pub(super) fn shown_path(&self, ino: Ino) -> String {
        let table = self.lock();
        let root = if table.is_inbox() { "inbox" } else { "out" };
        match table.path(ino) {
            Some(path) => format!("{root}/{}", path.display()),
            None => format!("a removed file of {root}/"),
        }
    }

    /// Returns an inode's attributes.
    pub(super) fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.attr(&self.lock(), ino)
    }

    /// Like [`StagingArea::getattr`], for a caller that holds the table.
    pub(super) fn attr(&self, table: &OutputTable, ino: Ino) -> Result<Attr> {
        let stat = self.stat(table, ino)?;
        let mut attr = attr_of(ino, table.node(ino)?, &stat);
        // A delivery leaves once it is published, and nothing notifies the kernel.
        if table.delivery(ino).is_some() {
            attr.ttl = Duration::ZERO;
        }
        Ok(attr)
    }

    /// Returns the space of the staging disk.
    pub(super) fn space(&self) -> Result<StatVfs> {
        self.folders.root().space()
    }

    /// Returns the folder of a directory.
    pub(super) fn folder(&self, table: &OutputTable, ino: Ino) -> Result<Arc<Folder>> {
        let mut steps: Vec<(Ino, &Arc<OsStr>)> = Vec::new();
        let mut at = ino;
        let mut folder = loop {
            if let Some(folder) = self.folders.get(at) {
                break folder;
            }
            let (parent, name) = table.place(at).ok_or(Errno::NOENT)?;
            steps.push((at, name));
            at = parent;
        };
        while let Some((ino, name)) = steps.pop() {
            folder = Arc::new(folder.open_folder(name)?);
            // Keep the requested folder and the one above it: the next request is for an entry of
            // one of them.
            if steps.len() < 2 {
                self.folders.keep(ino, folder.clone());
            }
        }
        Ok(folder)
    }

    /// Returns the folder for a new name, if the name is free and the job may make one more inode.
    pub(super) fn folder_for_new(
        &self,
        table: &OutputTable,
        parent: Ino,
        name: &OsStr,
    ) -> Result<Arc<Folder>> {
        if table.child(parent, name)?.is_some() {
            return Err(Errno::EXIST);
        }
        check_length(&table.path_in(parent, name)?, || 0)?;
        self.limits.check_new_inode(table)?;
        self.folder(table, parent)
    }

    /// Closes the folder of a directory that is gone.
    pub(super) fn close_folder(&self, ino: Ino) {
        self.folders.forget(ino);
    }

    /// Returns the staged inode, held by a descriptor.
    pub(super) fn pin(&self, table: &OutputTable, ino: Ino) -> Result<Arc<Pinned>> {
        if ino == OUT {
            return self.folders.root().pin_self().map(Arc::new);
        }
        match kept_content(table, ino)? {
            Some(pinned) => Ok(pinned),
            None => {
                let (folder, name) = self.entry(table, ino)?;
                folder.pin(name).map(Arc::new)
            }
        }
    }

    /// Opens the staged file.
    pub(super) fn open_file(&self, table: &OutputTable, ino: Ino, flags: OFlags) -> Result<File> {
        match kept_content(table, ino)? {
            Some(pinned) => pinned.open(flags),
            None => {
                let (folder, name) = self.entry(table, ino)?;
                folder.open_file(name, flags, Mode::empty())
            }
        }
    }

    /// Returns the text of a file by which a module says something to Ion, without white space around
    /// it. Of a longer text than [`WORDS_MAX`] it is the beginning.
    pub(super) fn read_words(&self, ino: Ino) -> Result<String> {
        let file = self.open_file(&self.lock(), ino, OFlags::RDONLY)?;
        let mut bytes = Vec::new();
        file.take(WORDS_MAX).read_to_end(&mut bytes).map_err(|error| errno(&error))?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// Returns the attributes of a staged inode as the disk has them, or the last ones of an inode
    /// that is gone from the disk.
    pub(super) fn stat(&self, table: &OutputTable, ino: Ino) -> Result<Stat> {
        if ino == OUT {
            return self.folders.root().pin_self()?.stat();
        }
        if let Some(pinned) = kept_content(table, ino)? {
            return pinned.stat();
        }
        match &table.node(ino)?.remains {
            Some(UnnamedRemains::Seen(stat)) if table.place(ino).is_none() => Ok(**stat),
            _ => {
                let (folder, name) = self.entry(table, ino)?;
                folder.stat(name)
            }
        }
    }

    /// Returns the folder and the name of an inode. Returns ESTALE if the inode has no name:
    /// another file may have taken its place since the kernel looked up the name, and on ESTALE the
    /// kernel looks it up again by itself.
    fn entry<'table>(
        &self,
        table: &'table OutputTable,
        ino: Ino,
    ) -> Result<(Arc<Folder>, &'table Arc<OsStr>)> {
        let (parent, name) = table.place(ino).ok_or(Errno::STALE)?;
        Ok((self.folder(table, parent)?, name))
    }
}

/// Returns the content that is kept of a file without a name, if any is.
fn kept_content(table: &OutputTable, ino: Ino) -> Result<Option<Arc<Pinned>>> {
    let node = table.node(ino)?;
    Ok(match &node.remains {
        Some(UnnamedRemains::Open(file) | UnnamedRemains::Known(file)) if node.links.is_empty() => {
            Some(file.clone())
        }
        _ => None,
    })
}

fn attr_of(ino: Ino, node: &OutputNode, stat: &Stat) -> Attr {
    let time = |seconds: i64, nanos: u64| {
        let nanos = Duration::from_nanos(nanos);
        match u64::try_from(seconds) {
            Ok(seconds) => SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + nanos,
            Err(_) => SystemTime::UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs()) + nanos,
        }
    };
    let size = stat.st_size.cast_unsigned();
    let file = if let NodeBody::File(file) = &node.body { Some(file) } else { None };
    let refers = file.is_some_and(|file| file.reference.is_some());
    let times = file.and_then(|file| file.shown.as_deref()).unwrap_or(stat);
    let linked_to = file.and_then(|file| file.shares_number_with());
    Attr {
        ino,
        shown_ino: linked_to.unwrap_or(ino),
        kind: node.body.kind(),
        size,
        // A reference is a hole on the disk and full of data to read: `cp` must not skip it.
        blocks: if refers { size.div_ceil(512) } else { stat.st_blocks.cast_unsigned() },
        atime: time(times.st_atime, times.st_atime_nsec),
        mtime: time(times.st_mtime, times.st_mtime_nsec),
        ctime: time(times.st_ctime, times.st_ctime_nsec),
        perm: u16::try_from(stat.st_mode & 0o7777).unwrap_or(0),
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        // The file stops showing that number at its first change, and nothing notifies the kernel.
        ttl: if linked_to.is_some() { Duration::ZERO } else { FOREVER },
    }
}
