//! What stands below a folder, as one picture that can be compared with another.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Every name below `root` with what is there: kind, mode, links, length, content.
pub fn picture(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    walk(root, root, &mut all);
    all
}

fn walk(root: &Path, at: &Path, into: &mut BTreeMap<PathBuf, String>) {
    let entries = match fs::read_dir(at) {
        Ok(entries) => entries,
        // A mode that an ordinary user is bound by.
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
        // A mode that an ordinary user is bound by.
        Err(error) => format!("{:?}", error.kind()),
    };
    format!("f {:o} {} {} {content}", metadata.mode(), metadata.nlink(), metadata.len())
}

/// FNV-1a: what tells two contents apart.
pub fn sum(content: &[u8]) -> u64 {
    content.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
