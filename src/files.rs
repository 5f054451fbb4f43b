//! Files and folders named on the command line become files of an event.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use ionfs::commit::check_directories;
use ionfs::event::FileEntry;
use ionfs::stores::DataPlane;
use ionfs::upload::{in_tries, store_path, try_suffix};

use crate::{Failure, output};

/// What was stored.
#[derive(Debug, Default)]
pub(crate) struct StoredFiles {
    /// The files.
    pub(crate) files: Vec<FileEntry>,
    /// The names of empty folders.
    pub(crate) directories: Vec<String>,
}

/// What was found of the files and folders that were named.
#[derive(Debug, Default)]
struct FoundFiles {
    files: Vec<(PathBuf, String)>,
    empty: Vec<String>,
}

/// Stores what `PATH` or `PATH=NAME` name: a file, or all that is below a folder.
pub(crate) async fn store_files(
    plane: &DataPlane,
    prefix: &str,
    named: &[OsString],
) -> Result<StoredFiles, Failure> {
    let mut found = FoundFiles::default();
    for text in named {
        let (path, name) = path_and_name(text)?;
        if path.is_dir() {
            found.walk(&path, name.as_deref().unwrap_or_default())?;
        } else {
            let name = match name {
                Some(name) => name,
                None => match path.file_name() {
                    Some(own) => utf8(own, &path)?.to_owned(),
                    None => return Err(Failure(format!("{} has no file name", path.display()))),
                },
            };
            found.files.push((path, name));
        }
    }
    check_directories(&found.empty).map_err(Failure)?;
    let bar = progress(found.files.len());
    let mut files = Vec::with_capacity(found.files.len());
    for (n, (path, name)) in found.files.iter().enumerate() {
        bar.set_message(output::of_others(name));
        let store = |number| {
            // A number keeps apart two files that were given one name.
            let key = format!("{prefix}/{n}{}/{name}", try_suffix(number));
            store_path(&*plane.blobs, key, name.clone(), path)
        };
        files.push(in_tries(store).await?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let mut names = HashSet::new();
    match files.iter().find(|entry| !names.insert(entry.name.as_str())) {
        Some(twice) => {
            Err(Failure(format!("two files would be {:?}; give one another name with PATH=NAME", twice.name)))
        }
        None => Ok(StoredFiles { files, directories: found.empty }),
    }
}

/// A path of any bytes, and the name it is to have. A path that is there is taken whole, though it may hold a `=`.
fn path_and_name(text: &OsStr) -> Result<(PathBuf, Option<String>), Failure> {
    let bytes = text.as_bytes();
    match bytes.iter().position(|byte| *byte == b'=') {
        Some(at) if !Path::new(text).exists() => {
            let name = OsStr::from_bytes(&bytes[at + 1..]);
            let path = PathBuf::from(OsStr::from_bytes(&bytes[..at]));
            let Some(name) = name.to_str() else {
                return Err(Failure(format!(
                    "{text:?}: the name {name:?} is not UTF-8, and names in an event are; give {path:?} another one"
                )));
            };
            Ok((path, Some(name.to_owned())))
        }
        _ => Ok((PathBuf::from(text), None)),
    }
}

/// A name as an event can hold it.
fn utf8<'n>(name: &'n OsStr, path: &Path) -> Result<&'n str, Failure> {
    name.to_str().ok_or_else(|| {
        Failure(format!(
            "{path:?}: the name {name:?} is not UTF-8, and names in an event are; rename it, or name it with PATH=NAME"
        ))
    })
}

impl FoundFiles {
    fn walk(&mut self, folder: &Path, prefix: &str) -> Result<(), Failure> {
        let mut entries: Vec<_> = std::fs::read_dir(folder)?.collect::<Result<_, _>>()?;
        if entries.is_empty() && !prefix.is_empty() {
            self.empty.push(prefix.to_owned());
        }
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let (own, path) = (entry.file_name(), entry.path());
            let own = utf8(&own, &path)?;
            let name = if prefix.is_empty() { own.to_owned() } else { format!("{prefix}/{own}") };
            if path.is_dir() {
                self.walk(&path, &name)?;
            } else {
                self.files.push((path, name));
            }
        }
        Ok(())
    }
}

/// A bar for long work on a terminal; nothing in a pipe.
fn progress(total: usize) -> indicatif::ProgressBar {
    let style = indicatif::ProgressStyle::with_template("{spinner} storing {pos}/{len} {msg}");
    let bar = indicatif::ProgressBar::new(total as u64);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
