//! The places of this machine that no job sees: Ion's own state, and embedded stores that lie
//! elsewhere.
//!
//! A module works with its tree. A job that could open the database or another job's staged files
//! could change what others have made, whatever the permissions: all jobs of one daemon have the
//! same user. So an empty place is mounted over these paths in each job's namespaces. The parts of
//! a covered folder that the module's own program needs are shown again.

mod aliases;

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ion_system::home::is_state_name;
use rustix::fs::{Mode as Permissions, OFlags};
use rustix::mount::{self, MountFlags};
use serde::{Deserialize, Serialize};

use self::aliases::find_aliases;
use super::error::InitError;
use super::root::{EMPTY_FILE, EMPTY_FOLDER, make_folder, mount_tmpfs, path_under};

/// Where a cover that shows something is prepared.
const PREPARED: &str = "/cover";

/// The suffixes of a database's files: SQLite keeps two files beside the database.
const BESIDE_DATABASE: [&str; 3] = ["", "-wal", "-shm"];

/// A path that is empty for a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cover {
    /// Its path, without symbolic links.
    path: PathBuf,
    /// Its device and inode, if it is a folder. A user who may rename a folder above it could put
    /// another one in its place.
    folder: Option<(u64, u64)>,
    /// The paths below it that stay visible.
    shown: Vec<PathBuf>,
}

/// All covers for the jobs of one daemon.
#[derive(Clone, Debug, Default)]
pub struct Covers {
    home: PathBuf,
    places: Vec<Cover>,
}

impl Covers {
    /// Covers the home, which must exist, and the `stores` elsewhere (folders of blobs and files of
    /// databases), each at every place where its disk is mounted now.
    ///
    /// # Errors
    /// If one of them cannot be inspected.
    pub fn new(home: &Path, stores: &[PathBuf]) -> io::Result<Self> {
        let found = |path: &Path| {
            let named = |error: io::Error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            };
            path.canonicalize().map_err(named)
        };
        let home = found(home)?;
        let mut places = vec![Cover::for_folder(home.clone())?];
        for store in stores {
            let store = found(store)?;
            if store.starts_with(&home) {
                continue;
            }
            if store.is_dir() {
                // If the home lies in this store, the store's cover covers the home, too.
                places.retain(|place| !place.path.starts_with(&store));
                places.push(Cover::for_folder(store)?);
                continue;
            }
            places.extend(BESIDE_DATABASE.map(|suffix| {
                let mut path = store.clone().into_os_string();
                path.push(suffix);
                Cover { path: path.into(), folder: None, shown: vec![] }
            }));
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let also: Vec<_> = places.iter().flat_map(|place| place.at_other_mounts(&mounts)).collect();
        places.extend(also);
        let mut seen = HashSet::new();
        let folders: Vec<_> = places
            .iter()
            .filter(|place| place.folder.is_some())
            .map(|place| place.path.clone())
            .collect();
        let within =
            |path: &Path| folders.iter().any(|folder| path != folder && path.starts_with(folder));
        places.retain(|place| !within(&place.path) && seen.insert(place.path.clone()));
        Ok(Self { home, places })
    }

    /// Returns the covers for a program that runs in `directory`: that folder and the program's own
    /// stay visible with all that lies in them, also below the home.
    pub fn for_program(&self, directory: &Path, program: Option<&str>) -> Vec<Cover> {
        let mut places = self.places.clone();
        let folder = |program: &str| Path::new(program).parent().map(Path::to_owned);
        let own = program.filter(|program| program.starts_with('/')).and_then(folder);
        for needed in [Some(directory.to_owned()), own].into_iter().flatten() {
            let Ok(needed) = needed.canonicalize() else { continue };
            for place in &mut places {
                if let Ok(inside) = needed.strip_prefix(&place.path) {
                    place.shown.extend(self.visible_paths(&place.path, inside));
                    place.shown.sort();
                    place.shown.dedup();
                }
            }
        }
        places
    }

    /// Returns the paths of a covered folder that stay visible to a program in its subfolder
    /// `inside`.
    fn visible_paths(&self, covered: &Path, inside: &Path) -> Vec<PathBuf> {
        match inside.components().next() {
            Some(first) if covered == self.home && is_state_name(first.as_os_str()) => vec![],
            Some(_) => vec![covered.join(inside)],
            // Blobs may have any name, so other files cannot be told from them.
            None if covered != self.home => vec![],
            // In the home itself: everything but Ion's state.
            None => {
                let entries = std::fs::read_dir(covered).into_iter().flatten().flatten();
                let others = entries.filter(|entry| !is_state_name(&entry.file_name()));
                others.map(|entry| entry.path()).collect()
            }
        }
    }
}

impl Cover {
    fn for_folder(folder: PathBuf) -> io::Result<Self> {
        let metadata = folder.metadata()?;
        Ok(Self { path: folder, folder: Some((metadata.dev(), metadata.ino())), shown: vec![] })
    }

    /// Returns covers for the same place as seen through other mounts, and for parts of it that are
    /// mounted elsewhere.
    fn at_other_mounts(&self, mounts: &str) -> Vec<Self> {
        let seen = find_aliases(&self.path, mounts).into_iter().filter(|path| path.exists());
        match self.folder {
            Some(_) => seen
                .filter_map(|path| Self::for_folder(path).ok())
                .filter(|place| self.is_on_same_device(place))
                .collect(),
            None => seen.map(|path| Self { path, folder: None, shown: vec![] }).collect(),
        }
    }

    /// Returns whether this place and another one are folders on the same device. A place where
    /// something of another device is mounted over the folder is not one.
    fn is_on_same_device(&self, other: &Self) -> bool {
        let (Some((own, _)), Some((others, _))) = (self.folder, other.folder) else { return false };
        own == others
    }

    /// Mounts the cover in the new root. The host's whole root is still at `/host`.
    pub(super) fn mount(&self) -> Result<(), InitError> {
        let Some(place) = self.open()? else { return Ok(()) };
        // The mount uses the descriptor: a path could lead elsewhere by now.
        let at = format!("/new/proc/self/fd/{}", place.as_raw_fd());
        let failed = || InitError::mount("an empty place cannot be laid over", &self.path);
        match (self.folder, self.shown.is_empty()) {
            (None, _) => mount::mount_bind(EMPTY_FILE, at).map_err(failed()),
            (Some(_), true) => mount::mount_bind(EMPTY_FOLDER, at).map_err(failed()),
            (Some(_), false) => {
                self.prepare()?;
                mount::mount_move(PREPARED, at).map_err(failed())
            }
        }
    }

    fn open(&self) -> Result<Option<OwnedFd>, InitError> {
        let at = path_under("/new", &self.path);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::open(at, flags, Permissions::empty());
        let Some((device, inode)) = self.folder else {
            // The database may have no such file at this moment.
            return Ok(opened.ok());
        };
        let place = opened
            .map_err(InitError::mount("a folder that no job may see is not there:", &self.path))?;
        let found =
            rustix::fs::fstat(&place).map_err(InitError::mount("cannot look at", &self.path))?;
        if (found.st_dev, found.st_ino) != (device, inode) {
            return Err(InitError::Replaced(self.path.clone()));
        }
        Ok(Some(place))
    }

    /// Prepares a read-only folder that shows only the `shown` paths.
    fn prepare(&self) -> Result<(), InitError> {
        let prepared = Path::new(PREPARED);
        if !prepared.is_dir() {
            make_folder(prepared)?;
        }
        mount_tmpfs(prepared)?;
        for shown in &self.shown {
            let inside = shown.strip_prefix(&self.path).unwrap_or(shown);
            let (from, to) = (path_under("/host", shown), prepared.join(inside));
            let failed = InitError::path(shown, "cannot be shown");
            if from.is_dir() {
                std::fs::create_dir_all(&to).map_err(&failed)?;
            } else {
                std::fs::write(&to, b"").map_err(&failed)?;
            }
            mount::mount_bind_recursive(&from, &to).map_err(|error| failed(error.into()))?;
        }
        let read_only =
            MountFlags::RDONLY | MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV;
        mount::mount_remount(prepared, read_only, c"")
            .map_err(InitError::mount("cannot be made read-only:", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown_to(covers: &Covers, directory: &Path, program: Option<&str>) -> Vec<PathBuf> {
        covers.for_program(directory, program).swap_remove(0).shown
    }

    #[test]
    fn a_program_sees_its_own_folder_and_no_state() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let home = root.join(".ion");
        for part in ["jobs", "blobs", "mine/deep"] {
            std::fs::create_dir_all(home.join(part)).unwrap();
        }
        for file in ["ion.db", "ion.db-wal", "pipeline.yaml"] {
            std::fs::write(home.join(file), "").unwrap();
        }
        let covers = Covers::new(&home, &[home.join("blobs"), home.join("ion.db")]).unwrap();
        assert_eq!(covers.places.len(), 1, "the stores are below the home");
        // A program in a folder above the home needs nothing of the home.
        assert!(shown_to(&covers, &root, Some("/bin/sh")).is_empty());
        assert_eq!(shown_to(&covers, &home.join("mine/deep"), None), [home.join("mine/deep")]);
        assert_eq!(shown_to(&covers, &home, None), [home.join("mine"), home.join("pipeline.yaml")]);
        assert!(
            shown_to(&covers, &home.join("jobs"), None).is_empty(),
            "another job's folder is no program's"
        );
        let program = home.join("mine/tool").display().to_string();
        assert_eq!(shown_to(&covers, &root, Some(&program)), [home.join("mine")]);
    }

    #[test]
    fn a_database_elsewhere_is_covered_with_what_lies_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let (home, database, blobs) = (root.join("home"), root.join("x.db"), root.join("b"));
        std::fs::create_dir_all(&home).unwrap();
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(&database, "").unwrap();
        let covers = Covers::new(&home, &[blobs.clone(), database.clone(), database]).unwrap();
        let paths: Vec<_> = covers.places.iter().map(|place| place.path.clone()).collect();
        let expected = ["home", "b", "x.db", "x.db-wal", "x.db-shm"].map(|name| root.join(name));
        assert_eq!(paths, expected);
    }
}
