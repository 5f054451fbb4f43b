//! The removal of images that no job has used for long, and of what dead processes have left.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ion_plane::collect::GcMode;

use super::{
    FETCH, ImageError, LOCK, PART, REFS, images_folder, lock_if_unused, run_blocking, with_suffix,
};

/// The bytes of a block of `st_blocks`.
const BLOCK: u64 = 512;

/// The amount that was removed, or would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Unpacked images.
    pub images: usize,
    /// Bytes on the disk, of the images and of half-done work.
    pub bytes: u64,
}

/// Removes the unpacked images of a home that no job has used for `unused_for`, if that is given,
/// and the half-done work of processes that died. Where nothing else tells, work older than `grace`
/// counts as abandoned.
///
/// # Errors
/// If the folder cannot be read, or something in it cannot be removed.
pub async fn collect(
    home: &Path,
    unused_for: Option<Duration>,
    grace: Duration,
    how: GcMode,
) -> Result<Collected, ImageError> {
    let folder = images_folder(home);
    run_blocking(move || collect_in(&folder, unused_for, grace, how)).await
}

fn collect_in(
    folder: &Path,
    unused_for: Option<Duration>,
    grace: Duration,
    how: GcMode,
) -> Result<Collected, ImageError> {
    let mut collected = Collected::default();
    for name in names_in(folder)? {
        if name == REFS || name.ends_with(&format!(".{LOCK}")) {
            continue;
        }
        let path = folder.join(&name);
        if name.starts_with(FETCH) {
            if is_older_than(&path, grace) {
                collected.bytes += remove_folder(&path, how)?;
            }
            continue;
        }
        let part = name.strip_suffix(&format!(".{PART}"));
        let place = folder.join(part.unwrap_or(&name));
        let _held = match lock_if_unused(&place) {
            Ok(Some(held)) => held,
            // A process that unpacks it, or runs something from it, holds the lock.
            Ok(None) => continue,
            Err(ImageError::File { path, source })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                tracing::warn!(
                    path = %path.display(),
                    "an image of another user is left to that user's `ion gc`"
                );
                continue;
            }
            Err(error) => return Err(error),
        };
        let lock = with_suffix(&place, LOCK);
        // Another process may have finished or removed it since it was listed.
        if path.exists() {
            if part.is_none() {
                if unused_for.is_none_or(|age| !is_older_than(&lock, age)) {
                    continue;
                }
                collected.images += 1;
            }
            let mut to_remove = path;
            if how == GcMode::Remove && part.is_none() {
                // It is renamed first, so that no process can find half of it.
                to_remove = with_suffix(&place, PART);
                std::fs::rename(&place, &to_remove).map_err(ImageError::file(&place))?;
            }
            collected.bytes += remove_folder(&to_remove, how)?;
        }
        if how == GcMode::Remove && !place.exists() {
            std::fs::remove_file(&lock).map_err(ImageError::file(&lock))?;
        }
    }
    if how == GcMode::Remove {
        remove_stale_notes(folder)?;
    }
    Ok(collected)
}

/// Returns the names in a folder; none if the folder is missing.
fn names_in(folder: &Path) -> Result<Vec<String>, ImageError> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        entries => entries.map_err(ImageError::file(folder))?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect::<io::Result<_>>().map_err(ImageError::file(folder))
}

/// Removes the notes of images that do not exist any more.
fn remove_stale_notes(folder: &Path) -> Result<(), ImageError> {
    let refs = folder.join(REFS);
    // The notes are listed first: a note is written after its image.
    let notes = names_in(&refs)?;
    let there = names_in(folder)?;
    // Notes that are being written have other names.
    let locks = format!(".{LOCK}");
    for name in notes.iter().filter(|name| !name.starts_with('.') && !name.ends_with(&locks)) {
        let note = refs.join(name);
        let digest = std::fs::read_to_string(&note).unwrap_or_default();
        let digest = digest.strip_prefix("sha256:").unwrap_or(&digest);
        if digest.is_empty() || !there.iter().any(|name| name.starts_with(digest)) {
            ignore_missing(std::fs::remove_file(&note)).map_err(ImageError::file(&note))?;
        }
    }
    for name in notes.iter().filter_map(|name| name.strip_suffix(&locks)) {
        let note = refs.join(name);
        // A process that fetches this image, or waits for it, holds the lock.
        if let Ok(Some(_held)) = lock_if_unused(&note)
            && !note.exists()
        {
            let lock = with_suffix(&note, LOCK);
            ignore_missing(std::fs::remove_file(&lock)).map_err(ImageError::file(&lock))?;
        }
    }
    Ok(())
}

/// Ignores the error of a file that is missing already.
fn ignore_missing(removed: io::Result<()>) -> io::Result<()> {
    removed
        .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Returns whether a file was last changed at least `age` ago.
fn is_older_than(path: &Path, age: Duration) -> bool {
    let changed = std::fs::metadata(path).and_then(|metadata| metadata.modified());
    changed.is_ok_and(|changed| {
        SystemTime::now().duration_since(changed).is_ok_and(|since| since >= age)
    })
}

/// Removes a folder; returns the bytes that it takes on the disk.
fn remove_folder(folder: &Path, how: GcMode) -> Result<u64, ImageError> {
    let bytes = disk_bytes(folder)?;
    if how == GcMode::Remove {
        ignore_missing(std::fs::remove_dir_all(folder)).map_err(ImageError::file(folder))?;
    }
    Ok(bytes)
}

/// Returns the bytes that all files in a folder take on the disk. Files that others remove
/// meanwhile do not count.
pub(super) fn disk_bytes(folder: &Path) -> Result<u64, ImageError> {
    let mut bytes = 0;
    let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for name in names_in(&next)? {
            let path = next.join(name);
            let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
            if metadata.is_dir() {
                bytes += metadata.blocks() * BLOCK;
                folders.push(path);
            } else {
                // A file with several names counts once, divided among its names.
                bytes += metadata.blocks() * BLOCK / metadata.nlink().max(1);
            }
        }
    }
    Ok(bytes)
}
