//! `prepare`: copies an event's files and values into the folder.
//!
//! It fetches ranges of files in parallel, also several ranges of one large file, and checks each
//! block against its checksum before it writes the block. It holds one block in memory for each
//! range in progress.

use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use ion_model::errors::error_chain;
use ion_model::event::{FileEntry, clean_path, event_json};
use ion_plane::address::{FileUrls, addresses};
use ion_stores::DataPlane;
use ion_system::patience::{FailedTry, Retry};
use ion_system::run_blocking;
use serde::Serialize;

use crate::attempt::{AttemptBegin, HandlerAttempt};
use crate::folder::ModuleFolder;
use crate::{HandlerError, HandlerWork};

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

/// The result of `prepare`.
#[derive(Debug)]
pub struct Prepared {
    /// The number of files in the event.
    pub files: usize,
    /// Whether the job had succeeded before. In that case `commit` only compares what the module
    /// makes now with what it made then.
    pub succeeded_before: bool,
}

/// Begins an attempt and fills the folder for it.
///
/// # Errors
/// Returns an error when the attempt cannot begin, or when a file does not arrive whole. The folder
/// may be half filled then; the next `prepare` empties it.
pub async fn prepare(
    plane: &DataPlane,
    folder: &ModuleFolder,
    work: &HandlerWork,
    urls: FileUrls,
) -> Result<Prepared, HandlerError> {
    let standing = HandlerAttempt::begin(plane, work, folder).await?;
    let succeeded_before = matches!(standing, AttemptBegin::Succeeded(_));
    if succeeded_before {
        tracing::warn!(
            job = %work.job_id(),
            "the job has succeeded before; a commit adds no events to it"
        );
    }
    folder.reset()?;
    let event = &work.event;
    let files = plane.files_of(event).await?;
    fetch_all(plane, folder, &files).await?;
    make_directories(folder, &event.directories)?;
    let mut values = event.data.clone();
    values.extend(addresses(plane, urls, &event.id, &files, "").await?);
    // Older modules read the absence of this file as "no values".
    if !values.is_empty() {
        folder.write("in/eventmeta.json", &to_pretty_json(&values))?;
    }
    folder.write("in/event.json", &to_pretty_json(&event_json(event, &files)))?;
    Ok(Prepared { files: files.len(), succeeded_before })
}

fn to_pretty_json(value: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).expect("values of strings have a JSON form");
    text.push(b'\n');
    text
}

/// A file that is being fetched into the folder.
#[derive(Clone, Debug)]
struct IncomingFile {
    entry: Arc<FileEntry>,
    folder: ModuleFolder,
    /// The path below the folder.
    path: PathBuf,
}

impl IncomingFile {
    fn full_path(&self) -> PathBuf {
        self.folder.full_path(&self.path)
    }
}

async fn fetch_all(
    plane: &DataPlane,
    folder: &ModuleFolder,
    files: &[FileEntry],
) -> Result<(), HandlerError> {
    let coming = place_files(folder, files)?;
    let made = coming.clone();
    run_blocking(move || made.iter().try_for_each(make_file)).await?;
    let ranges =
        coming.iter().flat_map(|file| ranges(&file.entry).map(|range| (file.clone(), range)));
    let ranges: Vec<(IncomingFile, Range<u64>)> = ranges.collect();
    stream::iter(ranges)
        .map(|(file, range)| fetch_range(plane, file, range))
        .buffer_unordered(FETCHES_MAX)
        .try_collect::<()>()
        .await?;
    run_blocking(move || coming.iter().try_for_each(set_attributes)).await
}

/// Returns where each file goes. Names come from documents of other hosts, so a name that leaves
/// `in/data` is refused.
fn place_files(
    folder: &ModuleFolder,
    files: &[FileEntry],
) -> Result<Vec<IncomingFile>, HandlerError> {
    let mut directories = HashSet::new();
    for file in files {
        let wrong = |reason: &str| HandlerError::Input {
            name: file.name.clone(),
            reason: reason.to_owned(),
        };
        if clean_path(&file.name).as_deref() != Some(file.name.as_str()) {
            return Err(wrong("it is not a path below in/data"));
        }
        if file.checksums.block == 0 || file.checksums.block > BLOCK_MAX {
            return Err(wrong("its document is malformed: its blocks have an impossible length"));
        }
        directories.extend(Path::new(&file.name).ancestors().skip(1).map(Path::to_owned));
    }
    let coming = |file: &FileEntry| IncomingFile {
        entry: Arc::new(file.clone()),
        folder: folder.clone(),
        path: Path::new("in/data").join(&file.name),
    };
    // A directory wins over a file of the same name, as on the mount: otherwise the files in the
    // directory could not be reached.
    let reachable = files.iter().filter(|file| !directories.contains(Path::new(&file.name)));
    Ok(reachable.map(coming).collect())
}

/// Makes the event's empty directories.
fn make_directories(folder: &ModuleFolder, names: &[String]) -> Result<(), HandlerError> {
    for name in names {
        if clean_path(name).as_deref() != Some(name.as_str()) {
            let reason = "it is not a path below in/data".to_owned();
            return Err(HandlerError::Input { name: name.clone(), reason });
        }
        let path = Path::new("in/data").join(name);
        folder
            .make_folders(&path)
            .map_err(HandlerError::folder(folder.full_path(&path), "cannot be made"))?;
    }
    Ok(())
}

fn make_file(file: &IncomingFile) -> Result<(), HandlerError> {
    let made = || file.folder.new_file(&file.path)?.set_len(file.entry.size);
    made().map_err(HandlerError::folder(file.full_path(), "cannot be made"))
}

/// Sets a file's attributes, once all its bytes are written.
fn set_attributes(file: &IncomingFile) -> Result<(), HandlerError> {
    let finished = || -> io::Result<()> {
        let opened = file.folder.reopen_file(&file.path)?;
        opened.set_modified(file.entry.modified())?;
        // Every user may read the file, because the module may run as any user.
        opened.set_permissions(std::fs::Permissions::from_mode(0o444 | (file.entry.mode & 0o777)))
    };
    finished().map_err(HandlerError::folder(file.full_path(), "cannot be given its attributes"))
}

/// Returns the ranges of a file, each of whole blocks.
fn ranges(entry: &FileEntry) -> impl Iterator<Item = Range<u64>> + use<> {
    let size = entry.size;
    let step = (RANGE / entry.checksums.block).max(1) * entry.checksums.block;
    (0..size.div_ceil(step)).map(move |n| n * step..((n + 1) * step).min(size))
}

async fn fetch_range(
    plane: &DataPlane,
    file: IncomingFile,
    range: Range<u64>,
) -> Result<(), HandlerError> {
    let again = |failed: FailedTry<'_, HandlerError>| {
        let HandlerError::Input { name, reason } = failed.error else { return false };
        tracing::warn!(file = name, reason, "a range of the file is fetched once more");
        true
    };
    TRIES.run(async |_| try_to_fetch(plane, &file, range.clone()).await, again).await
}

async fn try_to_fetch(
    plane: &DataPlane,
    file: &IncomingFile,
    range: Range<u64>,
) -> Result<(), HandlerError> {
    let wrong = |reason: String| HandlerError::Input { name: file.entry.name.clone(), reason };
    let made = file.clone();
    let opened = run_blocking(move || made.folder.reopen_file(&made.path)).await;
    let opened =
        Arc::new(opened.map_err(HandlerError::folder(file.full_path(), "cannot be written"))?);
    let body = plane.blobs.get_stream(&file.entry.key, range.clone()).await;
    let mut body = body.map_err(|error| wrong(error_chain(&error)))?;
    let block = file.entry.checksums.block;
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
        if !file.entry.checksums.block_matches(at / block, &gathered) {
            return Err(wrong(format!("block {} does not match its checksum", at / block)));
        }
        let opened = opened.clone();
        let written = run_blocking(move || opened.write_all_at(&gathered, at)).await;
        written.map_err(HandlerError::folder(file.full_path(), "cannot be written"))?;
        gathered = rest;
        at += whole as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ion_model::checksum;

    use super::*;

    fn entry(name: &str, size: u64) -> FileEntry {
        FileEntry { size, ..ion_plane::upload::empty_file_entry(name.into(), name.into()) }
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
        let folder = ModuleFolder::new("/nowhere");
        for name in ["../x", "/etc/passwd", "a/../../b", "a//b", ""] {
            assert!(place_files(&folder, &[entry(name, 1)]).is_err(), "{name:?}");
        }
        let placed =
            place_files(&folder, &[entry("a", 1), entry("a/b", 1), entry("c", 1)]).unwrap();
        let placed: BTreeMap<&str, &Path> =
            placed.iter().map(|file| (file.entry.name.as_str(), file.path.as_path())).collect();
        assert_eq!(placed.keys().copied().collect::<Vec<_>>(), ["a/b", "c"]);
        assert_eq!(placed["a/b"], Path::new("in/data/a/b"));
    }
}
