//! Fetches whole files of events to local files.
//!
//! It fetches ranges of files in parallel, also several ranges of one large file, and checks each
//! block against its checksum before it writes the block. It holds one block in memory for each
//! range in progress.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use ion_model::errors::error_chain;
use ion_model::event::{FileEntry, clean_path};
use ion_stores::DataPlane;
use ion_system::patience::{FailedTry, Retry};
use ion_system::run_blocking;

/// The most ranges that are fetched at the same time, with one block of each in memory. With fewer,
/// a remote store is idle between small files.
const FETCHES_MAX: usize = 16;

/// Bytes of one range. Smaller ranges need more requests; with larger ones, few requests share the
/// work on a large file.
const RANGE: u64 = 32 << 20;

/// The most bytes of a block that a document may give. Each block is in memory as a whole, so a
/// larger number is treated as an error.
const BLOCK_MAX: u64 = 64 << 20;

/// Tries of one range: bytes that were damaged on the wire are right the second time, bytes that
/// are damaged in the store are not.
const TRIES: Retry = Retry::times(2);

/// Why a file was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The file's document or its bytes are not right, or the store failed.
    #[error("file {name:?}: {reason}")]
    Input {
        /// The file's name.
        name: String,
        /// What is wrong, in words.
        reason: String,
    },
    /// The local file cannot be written.
    #[error("file {name:?} cannot be written")]
    Write {
        /// The file's name.
        name: String,
        /// The cause.
        source: io::Error,
    },
}

/// Opens the local file of an event's file for writing. It is called once for each range.
pub type OpenTarget = dyn Fn(&FileEntry) -> io::Result<File> + Send + Sync;

/// Returns the files of an event that can be placed below one folder. Names come from documents of
/// other hosts. A directory wins over a file of the same name, as on the mount: otherwise the files
/// in the directory could not be reached.
///
/// # Errors
/// When a name leaves the folder, or a document is malformed.
pub fn placeable_files(files: &[FileEntry]) -> Result<Vec<FileEntry>, FetchError> {
    let mut directories = HashSet::new();
    for file in files {
        let wrong =
            |reason: &str| FetchError::Input { name: file.name.clone(), reason: reason.to_owned() };
        if clean_path(&file.name).as_deref() != Some(file.name.as_str()) {
            return Err(wrong("it is not a path below a folder"));
        }
        if file.checksums.block == 0 || file.checksums.block > BLOCK_MAX {
            return Err(wrong("its document is malformed: its blocks have an impossible length"));
        }
        directories.extend(Path::new(&file.name).ancestors().skip(1).map(Path::to_owned));
    }
    let reachable = files.iter().filter(|file| !directories.contains(Path::new(&file.name)));
    Ok(reachable.cloned().collect())
}

/// Fetches the contents of these files, which [`placeable_files`] has returned. Their local files
/// must exist.
///
/// # Errors
/// When a file does not arrive whole or cannot be written. Then some of the files have a part of
/// their content.
pub async fn fetch_files(
    plane: &DataPlane,
    files: &[FileEntry],
    open: Arc<OpenTarget>,
) -> Result<(), FetchError> {
    let files = files.iter().cloned().map(Arc::new);
    let ranges = files.flat_map(|file| ranges(&file).map(move |range| (file.clone(), range)));
    stream::iter(ranges)
        .map(|(file, range)| fetch_range(plane, file, range, open.clone()))
        .buffer_unordered(FETCHES_MAX)
        .try_collect::<()>()
        .await
}

/// Returns the ranges of a file, each of whole blocks.
fn ranges(entry: &FileEntry) -> impl Iterator<Item = Range<u64>> + use<> {
    let size = entry.size;
    let step = (RANGE / entry.checksums.block).max(1) * entry.checksums.block;
    (0..size.div_ceil(step)).map(move |n| n * step..((n + 1) * step).min(size))
}

async fn fetch_range(
    plane: &DataPlane,
    file: Arc<FileEntry>,
    range: Range<u64>,
    open: Arc<OpenTarget>,
) -> Result<(), FetchError> {
    let again = |failed: FailedTry<'_, FetchError>| {
        let FetchError::Input { name, reason } = failed.error else { return false };
        tracing::warn!(file = name, reason, "a range of the file is fetched once more");
        true
    };
    TRIES.run(async |_| try_to_fetch(plane, &file, range.clone(), &open).await, again).await
}

async fn try_to_fetch(
    plane: &DataPlane,
    file: &Arc<FileEntry>,
    range: Range<u64>,
    open: &Arc<OpenTarget>,
) -> Result<(), FetchError> {
    let wrong = |reason: String| FetchError::Input { name: file.name.clone(), reason };
    let unwritten = |source| FetchError::Write { name: file.name.clone(), source };
    let (target, open) = (file.clone(), open.clone());
    let opened = run_blocking(move || open(&target)).await;
    let opened = Arc::new(opened.map_err(unwritten)?);
    let body = plane.blobs.get_stream(&file.key, range.clone()).await;
    let mut body = body.map_err(|error| wrong(error_chain(&error)))?;
    let block = file.checksums.block;
    let mut gathered = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let whole = usize::try_from(block.min(range.end - at)).expect("a block fits memory");
        while gathered.len() < whole {
            let piece = body.try_next().await.map_err(|error| wrong(error_chain(&error)))?;
            let Some(piece) = piece else {
                return Err(wrong("the store holds fewer bytes than were written".into()));
            };
            gathered.extend_from_slice(&piece);
        }
        let rest = gathered.split_off(whole);
        if !file.checksums.block_matches(at / block, &gathered) {
            return Err(wrong(format!("block {} does not match its checksum", at / block)));
        }
        let opened = opened.clone();
        let written = run_blocking(move || opened.write_all_at(&gathered, at)).await;
        written.map_err(unwritten)?;
        gathered = rest;
        at += whole as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ion_model::checksum;

    use super::*;

    fn entry(name: &str, size: u64) -> FileEntry {
        FileEntry { size, ..crate::upload::empty_file_entry(name.into(), name.into()) }
    }

    #[test]
    fn ranges_cover_a_file_in_whole_blocks() {
        let all: Vec<_> = ranges(&entry("a", 2 * RANGE + 5)).collect();
        assert_eq!(all, [0..RANGE, RANGE..2 * RANGE, 2 * RANGE..2 * RANGE + 5]);
        assert!(all.iter().all(|range| range.start % checksum::BLOCK_BYTES == 0));
        assert_eq!(ranges(&entry("a", 0)).count(), 0);
    }

    #[test]
    fn a_name_that_leaves_the_folder_is_refused_and_a_directory_wins() {
        for name in ["../x", "/etc/passwd", "a/../../b", "a//b", ""] {
            assert!(placeable_files(&[entry(name, 1)]).is_err(), "{name:?}");
        }
        let placed = placeable_files(&[entry("a", 1), entry("a/b", 1), entry("c", 1)]).unwrap();
        let placed: Vec<&str> = placed.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(placed, ["a/b", "c"]);
    }
}
