//! The folders of one staging area that are held open, so that no path of several names is walked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ion_system::beneath::Folder;

use super::super::Ino;
use super::table::OUT;

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
    /// Makes the open folders of a staging area, of which only the root is open.
    pub(super) fn new(root: Folder) -> Self {
        Self { root: Arc::new(root), below: Mutex::default() }
    }

    /// Returns the folder of `out/` itself.
    pub(super) fn root(&self) -> &Folder {
        &self.root
    }

    fn lock_below(&self) -> MutexGuard<'_, FoldersBelow> {
        self.below.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the folder of a directory, if it is open.
    pub(super) fn get(&self, ino: Ino) -> Option<Arc<Folder>> {
        if ino == OUT {
            return Some(self.root.clone());
        }
        let mut below = self.lock_below();
        below.uses += 1;
        let used = below.uses;
        let kept = below.folders.get_mut(&ino)?;
        kept.used = used;
        Some(kept.folder.clone())
    }

    /// Keeps the folder of a directory open.
    pub(super) fn keep(&self, ino: Ino, folder: Arc<Folder>) {
        let mut below = self.lock_below();
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
        self.lock_below().folders.remove(&ino);
    }
}
