//! The secrets of a job: files of a tmpfs that only its processes see.
//!
//! The daemon sends their names in the order and their values in memory without a name, so that no
//! value is on a disk, in a command line or in an environment. The tmpfs goes with the namespace.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ion_model::secret::SECRETS_FOLDER;
use rustix::mount::{self, MountFlags};
use serde::{Deserialize, Serialize};

use super::error::InitError;
use super::root::{carry_over, make_folder, mount_tmpfs, path_under};

/// Where a container's secrets lie, beside its bundle: the runtime binds them into its root.
pub(crate) const CONTAINER_SECRETS: &str = "/.container/secrets";

/// The flags of the mount: it holds plain files only.
const PLAIN: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// The unit in which a tmpfs counts.
const PAGE: usize = 4096;

/// The secrets of a sandbox.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SandboxSecrets {
    /// Their files, in the order of their values.
    pub(crate) files: Vec<SecretFile>,
    /// All values, one after the other, in memory that has no name.
    #[serde(skip)]
    pub(crate) content: Option<Arc<OwnedFd>>,
}

/// One secret: its name, and how many bytes its value has.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SecretFile {
    pub(crate) name: String,
    pub(crate) length: usize,
}

impl SandboxSecrets {
    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Mounts the secrets at `at`, for the module's user: `owner`, or the user of this process.
    pub(super) fn mount(&self, at: &Path, owner: Option<(u32, u32)>) -> Result<(), InitError> {
        let failed = InitError::path(at, "cannot hold the secrets");
        let pages: usize = self.files.iter().map(|file| file.length / PAGE + 2).sum();
        let options = format!("mode=0500,size={}", (pages + 2) * PAGE);
        let options = std::ffi::CString::new(options).expect("words and numbers have no zero byte");
        mount::mount("ion", at, "tmpfs", PLAIN, Some(options.as_c_str()))
            .map_err(InitError::mount("the secrets cannot be mounted at", at))?;
        self.write_to(at, owner).map_err(failed)?;
        mount::mount_remount(at, PLAIN | MountFlags::RDONLY | MountFlags::BIND, c"")
            .map_err(InitError::mount("cannot be made read-only:", at))
    }

    fn write_to(&self, folder: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
        let content = self.content.as_ref().ok_or(io::ErrorKind::UnexpectedEof)?;
        let content = File::from(content.as_fd().try_clone_to_owned()?);
        let give = |path: &Path| match owner {
            Some((uid, gid)) => chown(path, Some(uid), Some(gid)),
            None => Ok(()),
        };
        let mut at = 0;
        for SecretFile { name, length } in &self.files {
            let mut value = vec![0; *length];
            content.read_exact_at(&mut value, at)?;
            at += *length as u64;
            let path = folder.join(name);
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o400).open(&path)?;
            file.write_all(&value)?;
            // The umask of this process must not change the mode.
            file.set_permissions(fs::Permissions::from_mode(0o400))?;
            give(&path)?;
        }
        give(folder)
    }
}

/// Returns whether the machine has no folder where a job's secrets can be mounted.
pub(super) fn needs_own_run() -> bool {
    !is_folder(&path_under("/host", Path::new(SECRETS_FOLDER)))
}

fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

/// Makes a `/run` of the job's own at `to`: it shows what the machine's has, and a folder for the
/// secrets. Nothing is made on the machine itself.
pub(super) fn make_own_run(to: &Path) -> Result<(), InitError> {
    make_folder(to)?;
    mount_tmpfs(to)?;
    let secrets = Path::new(SECRETS_FOLDER).file_name();
    let from: PathBuf = path_under("/host", Path::new(SECRETS_FOLDER).parent().unwrap_or(to));
    let unreadable = InitError::path(&from, "cannot be read");
    if is_folder(&from) {
        for entry in fs::read_dir(&from).map_err(&unreadable)? {
            let entry = entry.map_err(&unreadable)?;
            if Some(&*entry.file_name()) == secrets {
                continue;
            }
            let carried = carry_over(&entry.path(), &to.join(entry.file_name()));
            // Services make and remove entries there at any time.
            if fs::symlink_metadata(entry.path()).is_ok() {
                carried?;
            }
        }
    }
    make_folder(&path_under("/new", Path::new(SECRETS_FOLDER)))
}
