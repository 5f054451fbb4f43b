//! Extended attributes of staged inodes: only those whose names begin with `user.`, and counted
//! like content.
//!
//! `security.` and `trusted.` attributes have a meaning to the host's kernel, which would obey what
//! a module wrote there. An access list (`system.posix_acl_*`) would be stored and have no effect,
//! because the kernel does not ask a FUSE filesystem for one: it is refused, so that no module
//! relies on it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use ion_system::beneath::Pinned;
use rustix::fs::XattrFlags;

use super::StagedContent;
use crate::{Errno, Ino, Result};

/// Returns whether a module may have an attribute of this name.
fn belongs_to_users(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b"user.")
}

/// Returns the errno for a read of an attribute that does not exist. EOPNOTSUPP says that this
/// filesystem has no attributes of that kind: `ls -l`, which asks each file for `security.selinux`,
/// then stops asking.
pub(crate) fn no_attribute(name: &OsStr) -> Errno {
    if belongs_to_users(name) { Errno::NODATA } else { Errno::OPNOTSUPP }
}

impl StagedContent {
    fn pin(&self, ino: Ino) -> Result<Arc<Pinned>> {
        self.staging.pin(&self.staging.lock(), ino)
    }

    /// Returns an extended attribute's value. A name that a module may not set has none.
    pub(crate) fn getxattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        if !belongs_to_users(name) {
            return Err(no_attribute(name));
        }
        self.pin(ino)?.xattr(name)
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// EOPNOTSUPP for a name that does not begin with `user.`, EDQUOT over the job's limit of
    /// bytes.
    pub(crate) fn setxattr(&self, ino: Ino, name: &OsStr, value: &[u8], flags: i32) -> Result<()> {
        if !belongs_to_users(name) {
            return Err(Errno::OPNOTSUPP);
        }
        let mut table = self.staging.lock();
        let pinned = self.staging.pin(&table, ino)?;
        let counts = |value: usize| (name.len() + value) as u64;
        let before = pinned.xattr(name).map_or(0, |value| counts(value.len()));
        let attached = table.extra_bytes(ino).saturating_sub(before) + counts(value.len());
        self.staging.limits().charge_extra(&mut table, ino, attached)?;
        let set =
            pinned.set_xattr(name, value, XattrFlags::from_bits_retain(flags.cast_unsigned()));
        match set {
            Ok(()) => table.note_change(ino),
            Err(_) => {
                let attached = attached - counts(value.len()) + before;
                table.charge_extra(ino, attached, u64::MAX);
            }
        }
        set
    }

    /// Returns the names of the extended attributes, each with a zero byte at its end.
    pub(crate) fn listxattr(&self, ino: Ino) -> Result<Vec<u8>> {
        let names = self.pin(ino)?.xattrs()?;
        let users =
            names.split_inclusive(|byte| *byte == 0).filter(|name| name.starts_with(b"user."));
        Ok(users.flatten().copied().collect())
    }

    /// Removes an extended attribute.
    pub(crate) fn removexattr(&self, ino: Ino, name: &OsStr) -> Result<()> {
        if !belongs_to_users(name) {
            return Err(no_attribute(name));
        }
        let mut table = self.staging.lock();
        let pinned = self.staging.pin(&table, ino)?;
        let counted = pinned.xattr(name).map_or(0, |value| name.len() + value.len());
        pinned.remove_xattr(name)?;
        let attached = table.extra_bytes(ino).saturating_sub(counted as u64);
        table.charge_extra(ino, attached, u64::MAX);
        table.note_change(ino);
        Ok(())
    }
}
