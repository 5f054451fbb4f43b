//! The secrets of a job: files of a tmpfs that only its processes see.
//!
//! The daemon sends their names in the order and their values in memory without a name, so that no
//! value is on a disk, in a command line or in an environment. The tmpfs goes with the namespace.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::sync::Arc;

use rustix::mount::{self, MountFlags};
use serde::{Deserialize, Serialize};

use super::error::InitError;

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
