//! `prepare`: copies an event's files and values into the folder.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ion_model::event::{FileEntry, clean_path, event_json};
use ion_plane::address::{FileUrls, addresses};
use ion_plane::fetch::{fetch_files, placeable_files};
use ion_stores::DataPlane;
use ion_system::run_blocking;
use serde::Serialize;

use crate::attempt::{AttemptBegin, HandlerAttempt};
use crate::folder::ModuleFolder;
use crate::{HandlerError, HandlerWork};

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
    let begun = HandlerAttempt::begin(plane, work, folder).await?;
    let succeeded_before = matches!(begun, AttemptBegin::Succeeded(_));
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

async fn fetch_all(
    plane: &DataPlane,
    folder: &ModuleFolder,
    files: &[FileEntry],
) -> Result<(), HandlerError> {
    let files = placeable_files(files)?;
    let (made, made_in) = (files.clone(), folder.clone());
    run_blocking(move || made.iter().try_for_each(|file| make_file(&made_in, file))).await?;
    let opened_in = folder.clone();
    let open = move |file: &FileEntry| opened_in.reopen_file(&path_of(file));
    fetch_files(plane, &files, Arc::new(open)).await?;
    let folder = folder.clone();
    run_blocking(move || files.iter().try_for_each(|file| set_attributes(&folder, file))).await
}

/// Returns the path of an event's file below the folder.
fn path_of(file: &FileEntry) -> PathBuf {
    Path::new("in/data").join(&file.name)
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

fn make_file(folder: &ModuleFolder, file: &FileEntry) -> Result<(), HandlerError> {
    let path = path_of(file);
    let made = || folder.new_file(&path)?.set_len(file.size);
    made().map_err(HandlerError::folder(folder.full_path(&path), "cannot be made"))
}

/// Sets a file's attributes, once all its bytes are written.
fn set_attributes(folder: &ModuleFolder, file: &FileEntry) -> Result<(), HandlerError> {
    let path = path_of(file);
    let finished = || -> io::Result<()> {
        let opened = folder.reopen_file(&path)?;
        opened.set_modified(file.modified())?;
        // Every user may read the file, because the module may run as any user.
        opened.set_permissions(std::fs::Permissions::from_mode(0o444 | (file.mode & 0o777)))
    };
    let failed = HandlerError::folder(folder.full_path(&path), "cannot be given its attributes");
    finished().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_event_is_below_in_data() {
        let file = ion_plane::upload::empty_file_entry("key".into(), "a/b".into());
        assert_eq!(path_of(&file), Path::new("in/data/a/b"));
    }
}
