//! Describes everything below a folder, so that two folders can be compared.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Returns every path below `root` with its kind, mode, link count, length and content.
pub fn picture(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    walk(root, root, &mut all);
    all
}

fn walk(root: &Path, at: &Path, into: &mut BTreeMap<PathBuf, String>) {
    let entries = match fs::read_dir(at) {
        Ok(entries) => entries,
        // The mode denies access to an ordinary user.
        Err(error) => {
            into.insert(at.strip_prefix(root).unwrap().join("?"), format!("{:?}", error.kind()));
            return;
        }
    };
    for entry in entries {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root).unwrap().to_owned();
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) => {
                into.insert(name, format!("{:?}", error.kind()));
                continue;
            }
        };
        into.insert(name, what(&path, &metadata));
        if metadata.is_dir() {
            walk(root, &path, into);
        }
    }
}

fn what(path: &Path, metadata: &fs::Metadata) -> String {
    if metadata.is_dir() {
        return format!("d {:o}", metadata.mode());
    }
    if metadata.is_symlink() {
        return format!("l {}", fs::read_link(path).unwrap().display());
    }
    let content = match File::open(path) {
        Ok(mut file) => {
            let mut content = Vec::new();
            file.read_to_end(&mut content).unwrap();
            assert_eq!(content.len() as u64, metadata.len(), "{}", path.display());
            format!("{:x}", sum(&content))
        }
        // The mode denies access to an ordinary user.
        Err(error) => format!("{:?}", error.kind()),
    };
    format!("f {:o} {} {} {content}", metadata.mode(), metadata.nlink(), metadata.len())
}

/// Returns the FNV-1a hash of a content, to compare two contents.
pub fn sum(content: &[u8]) -> u64 {
    content.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
