//! What an event names: the paths in its `files`, and of a directory all that is below it.

use std::collections::HashSet;

use super::{Refusal, Staging};
use crate::event::clean_path;
use crate::limits::bytes_in_words;
use crate::text::quote;

/// Empty directories of one event. They stand in its document, which a store takes up to 2 MiB long.
const DIRECTORIES_MAX: usize = 1000;

/// Bytes of their paths together, for the same reason.
const DIRECTORY_BYTES_MAX: usize = 64 << 10;

/// What is in a directory and in those below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Below {
    /// The paths of what is no directory.
    pub files: Vec<String>,
    /// The paths of directories that are empty.
    pub empty: Vec<String>,
}

/// The paths that an event names, each once: of a name with a slash at its end, all that is below that directory.
pub(super) async fn named_paths(names: &[String], staging: &dyn Staging) -> Result<Below, Refusal> {
    let mut named = Below::default();
    let mut seen = HashSet::new();
    for name in names {
        let Some(path) = clean_path(name) else {
            return Err(Refusal::Invalid(format!("{} is not a path below out/data", quote(name))));
        };
        let below = if name.ends_with('/') { staging.below(&path).await? } else { None };
        let Below { files, empty } = below.unwrap_or_else(|| Below { files: vec![path], empty: vec![] });
        named.files.extend(files.into_iter().filter(|path| seen.insert(path.clone())));
        named.empty.extend(empty.into_iter().filter(|path| seen.insert(path.clone())));
        if named.files.len() as u64 > staging.files_max() {
            return Err(Refusal::TooBig(format!("an event may name {} files", staging.files_max())));
        }
    }
    check_directories(&named.empty).map_err(Refusal::TooBig)?;
    Ok(named)
}

/// Whether an event's document may name these empty directories.
///
/// # Errors
/// In words: they are too many.
pub fn check_directories(empty: &[String]) -> Result<(), String> {
    let bytes: usize = empty.iter().map(String::len).sum();
    if empty.len() <= DIRECTORIES_MAX && bytes <= DIRECTORY_BYTES_MAX {
        return Ok(());
    }
    let most = bytes_in_words(DIRECTORY_BYTES_MAX as u64);
    Err(format!(
        "an event may name {DIRECTORIES_MAX} empty directories, whose paths take {most}; put a file into each, or name \
         an archive of them"
    ))
}
