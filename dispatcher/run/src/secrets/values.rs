//! The values of secrets, while an attempt needs them.

use std::fmt;
use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{
    DirBuilderExt as _, FileExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::MemfdFlags;

use super::SecretMask;
use crate::sandbox::{SandboxSecrets, SecretFile};

/// The value of a secret. Its `Debug` form does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretValue(Arc<[u8]>);

impl SecretValue {
    /// Returns the value of these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The secrets of one job: each is a file that its module reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Secrets(Vec<(String, SecretValue)>);

impl Secrets {
    pub(super) fn new(values: Vec<(String, SecretValue)>) -> Self {
        Self(values)
    }

    /// Returns each name and value.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = &(String, SecretValue)> {
        self.0.iter()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns what replaces the values in a text; none if there is nothing to replace.
    pub fn mask(&self) -> Option<SecretMask> {
        SecretMask::new(self.0.iter().map(|(name, value)| (name.as_str(), value.bytes())))
    }

    /// Returns them for a sandbox. The values pass through memory that has no name.
    ///
    /// # Errors
    /// When the machine has no memory or no descriptor for them.
    pub(crate) fn for_sandbox(&self) -> io::Result<SandboxSecrets> {
        if self.is_empty() {
            return Ok(SandboxSecrets::default());
        }
        let content = fs::File::from(rustix::fs::memfd_create("ion", MemfdFlags::CLOEXEC)?);
        let mut at = 0;
        for (_, value) in &self.0 {
            content.write_all_at(value.bytes(), at)?;
            at += value.bytes().len() as u64;
        }
        let file = |(name, value): &(String, SecretValue)| SecretFile {
            name: name.clone(),
            length: value.bytes().len(),
        };
        let files = self.0.iter().map(file).collect();
        Ok(SandboxSecrets { files, content: Some(Arc::new(OwnedFd::from(content))) })
    }

    /// Writes them into a new folder that only this user may enter. What an earlier process left
    /// there is removed. It is for jobs without a mount
    /// namespace: there is no place that they alone see.
    ///
    /// # Errors
    /// When the disk takes no more.
    pub(crate) fn write_to(&self, folder: &Path) -> io::Result<()> {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::DirBuilder::new().mode(0o700).create(folder)?,
        }
        for (name, value) in &self.0 {
            let mut options = fs::OpenOptions::new();
            let path = folder.join(name);
            let mut file = options.write(true).create_new(true).mode(0o400).open(path)?;
            file.write_all(value.bytes())?;
            // The umask of this process must not change the mode.
            file.set_permissions(Permissions::from_mode(0o400))?;
        }
        Ok(())
    }
}
