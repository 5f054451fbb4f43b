//! `out/state`: what a run of a source leaves for the next one.
//!
//! It begins as what the last succeeded run left, by reference and without a byte moved. When the
//! module has ended, its files become blobs, and the write that marks the job succeeded names them.

use std::ffi::OsStr;
use std::sync::Arc;

use bytes::Bytes;
use ion_model::event::FileEntry;
use ion_model::source::{LeftState, StateFiles};
use ion_plane::commit::{LISTED_MAX, Refusal};
use ion_plane::upload::store_bytes;

use super::table::{NodeBody, STATE};
use super::{NewOwner, Output, TreeUsers};
use crate::{Ino, Result};

/// The most bytes that a run may leave. Every run reads them, and most write them anew.
const STATE_BYTES_MAX: u64 = 16 << 20;

/// The most files that a run may leave.
const STATE_FILES_MAX: usize = 10_000;

/// The file that says before which time no scheduled run is to begin. It is not kept.
const NOT_BEFORE: &str = "not-before";

/// The file that says that what the source reads is gone, and why. It is not kept.
const GONE: &str = "gone";

/// The files of a state, with their lists read.
#[derive(Clone, Debug, Default)]
pub(crate) struct OpenState {
    pub(crate) files: Vec<FileEntry>,
    pub(crate) directories: Vec<String>,
}

/// What was found below `out/state`.
#[derive(Debug, Default)]
struct StateContent {
    files: Vec<(String, Ino)>,
    empty: Vec<String>,
    bytes: u64,
}

impl Output {
    /// Makes `out/state` as a run begins with it.
    pub(super) fn make_state(&self, state: &OpenState, users: TreeUsers) -> Result<()> {
        let (folder_mode, added) = match users {
            TreeUsers::Owner => (0o755, 0o600),
            TreeUsers::AnyUser => (0o777, 0o666),
        };
        for directory in &state.directories {
            self.make_folders(directory, folder_mode)?;
        }
        for file in &state.files {
            let (parent, name) = match file.name.rsplit_once('/') {
                Some((folder, name)) => (self.make_folders(folder, folder_mode)?, name),
                None => (STATE, &*file.name),
            };
            // A run may change what the last one has written.
            let mode = file.mode | added;
            let entry = Arc::new(file.clone());
            let maker = NewOwner::daemon();
            self.names.add_reference(parent, OsStr::new(name), &entry, mode, maker)?;
        }
        Ok(())
    }

    /// Makes the folders of a path below `out/state` that are not there yet. Returns the last one.
    fn make_folders(&self, path: &str, mode: u32) -> Result<Ino> {
        let mut at = STATE;
        for name in path.split('/').map(OsStr::new) {
            at = match self.names.child(at, name)? {
                Some(folder) => folder,
                None => self.names.mkdir(at, name, mode, NewOwner::daemon())?.ino,
            };
        }
        Ok(at)
    }

    /// Stores what the module left in `out/state`, after it has ended.
    ///
    /// # Errors
    /// What cannot be kept, and why.
    pub(super) async fn seal_state(&self) -> std::result::Result<LeftState, String> {
        let mut content = self.state_content()?;
        let not_before = self.take_words(&mut content, NOT_BEFORE)?;
        let not_before = not_before.as_deref().map(parse_time).transpose()?;
        let gone = self.take_words(&mut content, GONE)?;
        let mut files = Vec::with_capacity(content.files.len());
        for (path, ino) in &content.files {
            let stored = self.uploads.store_state_file(*ino, path).await;
            files.push(stored.map_err(|refusal| in_words(path, &refusal))?);
        }
        let file_list = match files.len() > LISTED_MAX {
            true => Some(self.store_list(&files).await?),
            false => None,
        };
        if file_list.is_some() {
            files.clear();
        }
        let state = StateFiles { files, file_list, directories: content.empty };
        Ok(LeftState { state, not_before, gone })
    }

    async fn store_list(&self, files: &[FileEntry]) -> std::result::Result<FileEntry, String> {
        let list = serde_json::to_vec(files).expect("entries have string keys only");
        let key = self.uploads.state_key(".ion-files.json");
        let blobs = &*self.uploads.plane().blobs;
        let stored = store_bytes(blobs, key, "files.json".into(), Bytes::from(list)).await;
        stored.map_err(|error| format!("the list of the files of out/state: {error}"))
    }

    /// Finds the files and the empty directories of `out/state`.
    fn state_content(&self) -> std::result::Result<StateContent, String> {
        let table = self.staging.lock();
        let mut content = StateContent::default();
        let mut left = vec![(String::new(), STATE)];
        while let Some((path, ino)) = left.pop() {
            let Ok(node) = table.node(ino) else { continue };
            match &node.body {
                NodeBody::Directory(names) => {
                    let mut entries: Vec<_> = names.iter().collect();
                    if entries.is_empty() && ino != STATE {
                        content.empty.push(path);
                        continue;
                    }
                    entries.sort_unstable_by(|one, other| other.0.cmp(one.0));
                    for (name, child) in entries {
                        let Some(name) = name.to_str() else {
                            return Err(format!("out/state/{path} has a name that is not UTF-8"));
                        };
                        let below = if path.is_empty() { "" } else { "/" };
                        left.push((format!("{path}{below}{name}"), child));
                    }
                }
                NodeBody::File(_) => {
                    content.bytes += self.staging.attr(&table, ino).map_or(0, |attr| attr.size);
                    content.files.push((path, ino));
                }
                NodeBody::Symlink | NodeBody::Special(_) => {
                    return Err(format!(
                        "out/state/{path} is neither a file nor a folder, and only those are kept"
                    ));
                }
            }
            if content.files.len() > STATE_FILES_MAX || content.bytes > STATE_BYTES_MAX {
                return Err(format!(
                    "out/state has more than {STATE_FILES_MAX} files or {} MiB (EDQUOT)",
                    STATE_BYTES_MAX >> 20
                ));
            }
        }
        Ok(content)
    }

    /// Takes a file that says something to the clock out of the state. Returns its text, without
    /// white space around it.
    fn take_words(
        &self,
        content: &mut StateContent,
        name: &str,
    ) -> std::result::Result<Option<String>, String> {
        let Some(at) = content.files.iter().position(|(path, _)| path == name) else {
            return Ok(None);
        };
        let (_, ino) = content.files.remove(at);
        let words = self.staging.read_words(ino);
        words.map(Some).map_err(|error| {
            format!("out/state/{name} cannot be read: {}", std::io::Error::from(error))
        })
    }
}

fn in_words(path: &str, refusal: &Refusal) -> String {
    format!("out/state/{path} cannot be kept: {}", ion_model::errors::error_chain(refusal))
}

/// Reads the time in `out/state/not-before`.
fn parse_time(text: &str) -> std::result::Result<i64, String> {
    let time: std::result::Result<jiff::Timestamp, _> = text.parse();
    time.map(|time| time.as_millisecond()).map_err(|_| {
        format!(
            "out/state/{NOT_BEFORE} holds {text:?}, which is no time; write it as \
             2026-11-27T19:00:00Z"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_zone() {
        let expected = Ok(1_795_806_000_000);
        for text in
            ["2026-11-27T19:00:00Z", "2026-11-27T20:00:00+01:00", "2026-11-27 19:00:00.000Z"]
        {
            assert_eq!(parse_time(text), expected, "{text}");
        }
        for text in ["", "soon", "2026-11-27", "2026-11-27T19:00:00"] {
            assert!(parse_time(text).unwrap_err().contains("no time"), "{text}");
        }
    }
}
