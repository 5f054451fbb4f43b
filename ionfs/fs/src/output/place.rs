//! Access to staged inodes on the disk, through folders that are held open, so that no path of
//! several names is walked.
//!
//! The table records the directory and the name of each inode. This module opens the directory's
//! folder, step by step from the nearest folder that is open already. Each operation then names one
//! entry of that folder ([`ion_system::beneath`]).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ion_system::beneath::{Folder, Pinned};
use rustix::fs::{Mode, OFlags, Stat};

use super::super::{Errno, Ino, Result};
use super::table::{OutputTable, UnnamedRemains};
use super::{OUT, Output};

/// The most folders of one job that are held open. With fewer, a job that works in many folders
/// opens one again for each file; more take descriptors, which all jobs of the daemon share.
const FOLDERS_MAX: usize = 256;

/// The open folders of one job's staging area.
#[derive(Debug)]
pub(super) struct OpenFolders {
    root: Arc<Folder>,
    below: Mutex<FoldersBelow>,
}

/// The open folders below the root.
#[derive(Debug, Default)]
struct FoldersBelow {
    /// Raised by each use: the folder that was used last has the highest number.
    uses: u64,
    folders: HashMap<Ino, OpenFolder>,
}

#[derive(Debug)]
struct OpenFolder {
    used: u64,
    folder: Arc<Folder>,
}

impl OpenFolders {
    pub(super) fn new(root: Folder) -> Self {
        Self { root: Arc::new(root), below: Mutex::default() }
    }

    pub(super) fn root(&self) -> &Folder {
        &self.root
    }

    fn below(&self) -> MutexGuard<'_, FoldersBelow> {
        self.below.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, ino: Ino) -> Option<Arc<Folder>> {
        if ino == OUT {
            return Some(self.root.clone());
        }
        let mut below = self.below();
        below.uses += 1;
        let used = below.uses;
        let kept = below.folders.get_mut(&ino)?;
        kept.used = used;
        Some(kept.folder.clone())
    }

    fn keep(&self, ino: Ino, folder: Arc<Folder>) {
        let mut below = self.below();
        if below.folders.len() >= FOLDERS_MAX {
            let oldest =
                below.folders.iter().min_by_key(|(_, kept)| kept.used).map(|(ino, _)| *ino);
            oldest.map(|oldest| below.folders.remove(&oldest));
        }
        let used = below.uses;
        below.folders.insert(ino, OpenFolder { used, folder });
    }

    /// Drops the folder of a removed directory.
    pub(super) fn forget(&self, ino: Ino) {
        self.below().folders.remove(&ino);
    }
}

impl Output {
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
            folder = Arc::new(folder.folder(name)?);
            // Keep the requested folder and the one above it: the next request is for an entry of
            // one of them.
            if steps.len() < 2 {
                self.folders.keep(ino, folder.clone());
            }
        }
        Ok(folder)
    }

    /// Returns the folder and the name of an inode. Returns ESTALE if the inode has no name:
    /// another file may have taken its place since the kernel looked up the name, and on ESTALE the
    /// kernel looks it up again by itself.
    fn named<'table>(
        &self,
        table: &'table OutputTable,
        ino: Ino,
    ) -> Result<(Arc<Folder>, &'table Arc<OsStr>)> {
        let (parent, name) = table.place(ino).ok_or(Errno::STALE)?;
        Ok((self.folder(table, parent)?, name))
    }

    /// Returns the content that is kept of a file without a name, if any is.
    fn unnamed(table: &OutputTable, ino: Ino) -> Result<Option<Arc<Pinned>>> {
        let node = table.node(ino)?;
        Ok(match &node.remains {
            Some(UnnamedRemains::Open(file) | UnnamedRemains::Known(file))
                if node.links.is_empty() =>
            {
                Some(file.clone())
            }
            _ => None,
        })
    }

    /// Returns the staged inode, held by a descriptor.
    pub(super) fn pin(&self, table: &OutputTable, ino: Ino) -> Result<Arc<Pinned>> {
        if ino == OUT {
            return self.folders.root().itself().map(Arc::new);
        }
        match Self::unnamed(table, ino)? {
            Some(pinned) => Ok(pinned),
            None => {
                let (folder, name) = self.named(table, ino)?;
                folder.pin(name).map(Arc::new)
            }
        }
    }

    /// Opens the staged file.
    pub(super) fn open_staged(&self, table: &OutputTable, ino: Ino, flags: OFlags) -> Result<File> {
        match Self::unnamed(table, ino)? {
            Some(pinned) => pinned.open(flags),
            None => {
                let (folder, name) = self.named(table, ino)?;
                folder.open_file(name, flags, Mode::empty())
            }
        }
    }

    /// Returns the attributes of a staged inode as the disk has them, or the last ones of an inode
    /// that is gone from the disk.
    pub(super) fn stat(&self, table: &OutputTable, ino: Ino) -> Result<Stat> {
        if ino == OUT {
            return self.folders.root().itself()?.stat();
        }
        if let Some(pinned) = Self::unnamed(table, ino)? {
            return pinned.stat();
        }
        match &table.node(ino)?.remains {
            Some(UnnamedRemains::Seen(stat)) if table.place(ino).is_none() => Ok(**stat),
            _ => {
                let (folder, name) = self.named(table, ino)?;
                folder.stat(name)
            }
        }
    }
}
