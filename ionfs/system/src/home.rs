//! The home: the folder that holds all of Ion's state on a machine. Only its owner may enter it.
//!
//! It holds the embedded stores, staged files with the permissions that their modules gave them,
//! and the output of jobs. So no other user may enter it, and no job sees it.

use std::ffi::OsStr;
use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

/// Names in the home that are Ion's own. Anything else in the home belongs to the user who put it
/// there.
const STATE_NAMES: [&str; 10] = [
    "blobs",
    "cache",
    "dispatchers",
    "gateway",
    "images",
    "inbox",
    "jobs",
    "mnt",
    "plane.json",
    "volumes",
];

/// The beginning of the names of an embedded database and of the files beside it.
const DATABASE_PREFIX: &str = "ion.db";

/// Whether an entry of the home is Ion's own state.
pub fn is_state_name(name: &OsStr) -> bool {
    name.to_str()
        .is_some_and(|name| STATE_NAMES.contains(&name) || name.starts_with(DATABASE_PREFIX))
}

/// Makes a folder, and the missing folders above it, that only this user may enter.
///
/// # Errors
/// Returns an error when the folder cannot be made.
pub fn make_private_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Makes the home, so that only this user may enter it. If the home exists and other users may
/// enter it, takes their access away.
///
/// # Errors
/// Returns an error when the home cannot be made.
pub fn make_home(home: &Path) -> io::Result<()> {
    make_private_folder(home)?;
    let mode = std::fs::metadata(home)?.mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    match std::fs::set_permissions(home, Permissions::from_mode(mode & 0o700)) {
        Ok(()) => tracing::warn!(
            home = %home.display(),
            "other users of this machine could enter the home, which holds all data; they no \
             longer can"
        ),
        // The home belongs to another user, who lets this one use it.
        Err(error) => {
            tracing::debug!(
                %error,
                home = %home.display(),
                "other users may enter the home; this user cannot change that"
            )
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_that_others_could_enter_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("new/home");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        make_home(&home).unwrap();
        assert_eq!(mode(&home), 0o700);
        std::fs::set_permissions(&home, Permissions::from_mode(0o755)).unwrap();
        make_home(&home).unwrap();
        assert_eq!(mode(&home), 0o700);
    }
}
