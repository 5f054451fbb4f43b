//! Other paths of the same folder: a disk may be mounted in several places, or a part of it bound
//! to another one.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// One mount of this process's namespace.
struct Mount {
    /// The filesystem's device.
    device: String,
    /// The folder of the filesystem that is mounted.
    part: PathBuf,
    /// Where it is mounted.
    at: PathBuf,
}

/// Returns the other paths where the folder, or a folder below it, can be seen, as
/// `/proc/self/mountinfo` says. The caller checks that each is what it seems: another mount may
/// cover it.
pub(super) fn find_aliases(folder: &Path, mountinfo: &str) -> Vec<PathBuf> {
    let mounts: Vec<Mount> = mountinfo.lines().filter_map(parse_mount).collect();
    // Of two mounts at one place the later one is visible.
    let own = mounts
        .iter()
        .filter(|mount| folder.starts_with(&mount.at))
        .max_by_key(|mount| mount.at.components().count());
    let Some(own) = own else { return vec![] };
    let Ok(rest) = folder.strip_prefix(&own.at) else { return vec![] };
    let inside = own.part.join(rest);
    let others = mounts.iter().filter(|mount| mount.device == own.device);
    let seen_at = others.filter_map(|mount| match inside.strip_prefix(&mount.part) {
        Ok(rest) => Some(mount.at.join(rest)),
        // Only a part of the folder is mounted there.
        Err(_) => mount.part.starts_with(&inside).then(|| mount.at.clone()),
    });
    let below = |path: &PathBuf| path.starts_with(folder);
    seen_at.filter(|path| !below(path)).collect()
}

/// Parses a line of `/proc/self/mountinfo`: number, parent, device, part, place, ...
fn parse_mount(line: &str) -> Option<Mount> {
    let mut fields = line.split(' ').skip(2);
    let device = fields.next()?.to_owned();
    Some(Mount { device, part: unescape(fields.next()?), at: unescape(fields.next()?) })
}

/// Decodes a path: the kernel writes a space as `\040`, and a newline, a tab and a backslash
/// likewise.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits
            .and_then(|digits| u8::from_str_radix(digits, 8).ok())
            .filter(|_| first == b'\\')
        {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_found_wherever_its_disk_is_mounted() {
        let mounts = "22 1 0:21 / /proc rw - proc proc rw\n\
            27 1 8:1 / / rw - ext4 /dev/vda rw\n\
            28 27 8:2 / /data rw - ext4 /dev/vdb rw\n\
            29 27 8:2 /ion /srv/a\\040b rw - ext4 /dev/vdb rw\n\
            30 27 8:2 /ion/home/blobs /blobs rw - ext4 /dev/vdb rw\n\
            31 27 8:2 /else /else rw - ext4 /dev/vdb rw\n";
        let found = find_aliases(Path::new("/data/ion/home"), mounts);
        assert_eq!(found, [Path::new("/srv/a b/home"), Path::new("/blobs")]);
        assert_eq!(
            find_aliases(Path::new("/srv/a b/home"), mounts)[0],
            Path::new("/data/ion/home")
        );
        assert!(find_aliases(Path::new("/var/lib/ion"), mounts).is_empty());
    }
}
