//! Folders that belong to one process, and that another process removes if that one was killed.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use crate::beneath::Folder;
use crate::home::make_private_folder;

/// The ending of the names of lock files.
const LOCK_ENDING: &str = ".lock";

/// A folder that belongs to this process. The kernel releases its lock however the process ends.
#[derive(Debug)]
pub struct ScratchFolder {
    above: PathBuf,
    name: String,
    _lock: File,
}

impl ScratchFolder {
    /// Makes a folder in `above`, and removes those there whose processes are gone.
    ///
    /// # Errors
    /// When the folder cannot be made, or its lock not be taken.
    pub fn make_in(above: &Path) -> io::Result<Self> {
        make_private_folder(above)?;
        remove_left_folders(above);
        let name = Uuid::new_v4().simple().to_string()[..12].to_owned();
        let lock = File::create_new(above.join(format!("{name}{LOCK_ENDING}")))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        make_private_folder(&above.join(&name))?;
        Ok(Self { above: above.to_owned(), name, _lock: lock })
    }

    /// Returns its path.
    pub fn path(&self) -> PathBuf {
        self.above.join(&self.name)
    }

    /// Removes the folder with all that is in it.
    ///
    /// # Errors
    /// When something in it cannot be removed. The next process that makes such a folder tries
    /// again.
    pub fn remove(self) -> io::Result<()> {
        remove_folder(&self.above, &self.name)
    }
}

/// Removes the folders of processes that are gone.
fn remove_left_folders(above: &Path) {
    for entry in std::fs::read_dir(above).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().and_then(|name| name.strip_suffix(LOCK_ENDING)) else {
            continue;
        };
        let Ok(lock) = File::open(entry.path()) else { continue };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        if let Err(error) = remove_folder(above, name) {
            let folder = above.join(name);
            tracing::warn!(
                folder = %folder.display(),
                %error,
                "the folder of a process that is gone could not be removed"
            );
        }
    }
}

/// Removes a folder, and then its lock: in this order, a removal that is interrupted is repeated.
fn remove_folder(above: &Path, name: &str) -> io::Result<()> {
    Folder::open(above)?.remove_all(OsStr::new(name))?;
    std::fs::remove_file(above.join(format!("{name}{LOCK_ENDING}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_goes_with_its_process() {
        let home = tempfile::tempdir().unwrap();
        let above = home.path().join("inbox");
        let first = ScratchFolder::make_in(&above).unwrap();
        std::fs::create_dir(first.path().join("deep")).unwrap();
        std::fs::write(first.path().join("deep/file"), "x").unwrap();
        let second = ScratchFolder::make_in(&above).unwrap();
        assert!(first.path().exists(), "its process lives");
        let left = first.path();
        // The kernel releases the lock of a process that is killed.
        drop(first);
        let third = ScratchFolder::make_in(&above).unwrap();
        assert!(!left.exists() && second.path().exists());
        second.remove().unwrap();
        third.remove().unwrap();
        assert_eq!(std::fs::read_dir(&above).unwrap().count(), 0);
    }
}
