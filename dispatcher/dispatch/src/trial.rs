//! Tries a source: `ion source try` runs its module once, and commits nothing.
//!
//! # How it works
//! The run has a plane of its own: documents and a bus in a folder that is removed afterwards, and
//! blobs that lie over those of the real plane ([`OverlayBlobs`]). [`run_once`] runs the module on
//! that plane, by the same code as every run: what the module publishes, and the state that it
//! leaves, are committed there, where anybody can look at them, and are gone with the folder.
//!
//! # Guarantees
//! The real plane is only asked for the files of the source's state. No document and no blob of it
//! is written, and no dispatcher learns of the run.
//!
//! [`run_once`]: crate::single::run_once

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ion_model::event::FileEntry;
use ion_model::source::StateFiles;
use ion_stores::open::{StoreUrls, open_blobs, open_with_blobs};
use ion_stores::{Blobs, DataPlane, OverlayBlobs, StoreError};
use serde::Serialize;

/// Opens the plane of a trial in an empty folder. It reads the blobs of `real`, if there is such a
/// plane.
///
/// # Errors
/// When the stores in the folder cannot be made.
pub async fn open_trial_plane(
    folder: &Path,
    real: Option<&DataPlane>,
) -> Result<DataPlane, StoreError> {
    let urls = StoreUrls::embedded(folder);
    let own = open_blobs(&urls.blobs).await?;
    let blobs: Arc<dyn Blobs> = match real {
        Some(real) => Arc::new(OverlayBlobs::new(own, real.blobs.clone())),
        None => own,
    };
    open_with_blobs(blobs, &urls).await
}

/// What a run does to a file of its source's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StateChange {
    /// The file is new.
    New,
    /// The file has other bytes.
    Changed,
    /// The file stays.
    Unchanged,
    /// The file is gone.
    Removed,
}

impl StateChange {
    /// The word that people see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::Removed => "removed",
        }
    }
}

/// A file of a source's state, before or after a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StateFile {
    /// Its path below `out/state`.
    pub name: String,
    /// Its length in bytes; for a removed file, the length that it had.
    pub size: u64,
    /// What the run does to it.
    pub change: StateChange,
}

/// Compares the state that a run began with and the one that it leaves, by the files' names.
///
/// # Errors
/// When a list of files cannot be read.
pub async fn compare_states(
    plane: &DataPlane,
    before: &StateFiles,
    after: &StateFiles,
) -> Result<Vec<StateFile>, StoreError> {
    let before = plane.listed_files(&before.files, before.file_list.as_ref()).await?;
    let after = plane.listed_files(&after.files, after.file_list.as_ref()).await?;
    Ok(compare_files(before, after))
}

fn compare_files(before: Vec<FileEntry>, after: Vec<FileEntry>) -> Vec<StateFile> {
    let mut before: BTreeMap<String, FileEntry> =
        before.into_iter().map(|file| (file.name.clone(), file)).collect();
    let mut files: Vec<StateFile> = Vec::new();
    for FileEntry { name, size, checksums, .. } in after {
        let change = match before.remove(&name) {
            None => StateChange::New,
            Some(was) if (was.size, &was.checksums) == (size, &checksums) => StateChange::Unchanged,
            Some(_) => StateChange::Changed,
        };
        files.push(StateFile { name, size, change });
    }
    let removed = before.into_values().map(|FileEntry { name, size, .. }| StateFile {
        name,
        size,
        change: StateChange::Removed,
    });
    files.extend(removed);
    files.sort_by(|one, other| one.name.cmp(&other.name));
    files
}

#[cfg(test)]
mod tests {
    use ion_stores::Durability;

    use super::*;

    #[tokio::test]
    async fn a_trial_writes_nothing_to_the_real_plane() {
        let real = DataPlane::in_memory().unwrap();
        real.blobs.put_bytes("state/x", "kept".into(), Durability::Now).await.unwrap();
        let folder = std::env::temp_dir().join(format!("ion-trial-{}", uuid::Uuid::new_v4()));
        let plane = open_trial_plane(&folder, Some(&real)).await.unwrap();
        assert_eq!(plane.blobs.get_range("state/x", 0..9).await.unwrap(), "kept");
        plane.blobs.put_bytes("tried", "new".into(), Durability::Now).await.unwrap();
        assert_eq!(real.blobs.size("tried").await.unwrap(), None);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_files_of_two_states_are_compared_by_their_bytes() {
        let file = |name: &str, bytes: &[u8]| FileEntry {
            name: name.into(),
            key: format!("{name}-{}", bytes.len()),
            size: bytes.len() as u64,
            mtime: 0,
            mtime_nanos: 0,
            mode: 0o644,
            checksums: ion_model::checksum::of(bytes),
        };
        let before = vec![file("gone", b"1"), file("same", b"2"), file("other", b"3")];
        let after = vec![file("same", b"2"), file("other", b"4"), file("new", b"5")];
        let found: Vec<_> = compare_files(before, after)
            .into_iter()
            .map(|file| (file.name, file.change.as_str()))
            .collect();
        let expected =
            [("gone", "removed"), ("new", "new"), ("other", "changed"), ("same", "unchanged")];
        assert_eq!(found, expected.map(|(name, change)| (name.to_owned(), change)));
    }
}
