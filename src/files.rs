//! Stores the files and folders that the command line names as the files of an event, and copies
//! the files of an event into a folder.
//!
//! All files to store are found and checked before the first one is stored. A file that cannot be
//! stored is refused by its name, before anything has been stored.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use indicatif::{ProgressBar, ProgressStyle};
use ionfs::commit::{FileNames, check_directories};
use ionfs::event::{Event, FileEntry, clean_path};
use ionfs::fetch::{fetch_files, placeable_files};
use ionfs::limits::Limits;
use ionfs::stores::DataPlane;
use ionfs::upload::{UploadError, open_regular, retry_suffix, store_open_file, store_with_retries};

use crate::{CommandFailure, output};

/// How many files are stored at the same time at most. Each waits for its own answer from the
/// store, and takes some megabytes of memory.
const UPLOADS_MAX: usize = 16;

/// How often progress is written to a pipe or a log. A terminal has a bar.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// How often the bar moves.
const BAR_INTERVAL: Duration = Duration::from_millis(200);

/// The files and empty folders that were stored for an event.
#[derive(Debug, Default)]
pub(crate) struct StoredFiles {
    /// The files.
    pub(crate) files: Vec<FileEntry>,
    /// The names of empty folders.
    pub(crate) directories: Vec<String>,
}

/// The files and empty folders that were found for the words of the command line.
#[derive(Debug, Default)]
struct FoundFiles {
    files: Vec<FoundFile>,
    empty_folders: Vec<String>,
    names: FileNames,
    bytes: u64,
}

#[derive(Debug)]
struct FoundFile {
    path: PathBuf,
    name: String,
}

/// Stores what the words `PATH` or `PATH=NAME` name: a file, or everything below a folder. Blob
/// keys begin with `prefix`.
///
/// # Errors
/// When a file cannot be read or stored, or an event cannot have it.
pub(crate) async fn store_files(
    plane: &DataPlane,
    prefix: &str,
    named: &[OsString],
) -> Result<StoredFiles, CommandFailure> {
    let mut found = FoundFiles::default();
    for text in named {
        found.add_argument(text)?;
    }
    check_directories(&found.empty_folders)?;
    let FoundFiles { files, empty_folders, bytes, .. } = found;
    let progress = Arc::new(StoringProgress::new(files.len(), bytes));
    let display = tokio::spawn(progress.clone().show());
    let store = |(n, file): (usize, FoundFile)| {
        store_one(plane.clone(), format!("{prefix}/{n}"), n, file, progress.clone())
    };
    let stored = stream::iter(files.into_iter().enumerate()).map(store).buffered(UPLOADS_MAX);
    let stored = stored.try_collect().await;
    display.abort();
    progress.bar.finish_and_clear();
    Ok(StoredFiles { files: stored?, directories: empty_folders })
}

async fn store_one(
    plane: DataPlane,
    key: String,
    n: usize,
    file: FoundFile,
    progress: Arc<StoringProgress>,
) -> Result<FileEntry, UploadError> {
    let FoundFile { path, name } = file;
    let bytes_moved = progress.begin_file(n);
    let store = |number| {
        // The number in the key keeps apart two files with the same name.
        let key = format!("{key}{}/{name}", retry_suffix(number));
        let (blobs, name, path, bytes_moved) = (&*plane.blobs, name.clone(), &path, &*bytes_moved);
        async move {
            let file = open_regular(path)?;
            bytes_moved.store(0, Ordering::Relaxed);
            store_open_file(blobs, key, name, file, bytes_moved).await
        }
    };
    let stored = store_with_retries(store).await;
    progress.end_file(n, stored.as_ref().map_or(0, |entry| entry.size));
    stored
}

/// Splits `PATH=NAME` into a path, which may have any bytes, and the name that the file gets. If
/// the whole word is the path of an existing file, it is taken as a path, even with a `=` in it.
fn path_and_name(text: &OsStr) -> Result<(PathBuf, Option<String>), CommandFailure> {
    let bytes = text.as_bytes();
    match bytes.iter().position(|byte| *byte == b'=') {
        Some(at) if !Path::new(text).exists() => {
            let name = OsStr::from_bytes(&bytes[at + 1..]);
            let path = PathBuf::from(OsStr::from_bytes(&bytes[..at]));
            let Some(name) = name.to_str() else {
                return Err(CommandFailure(format!(
                    "{text:?}: the name {name:?} is not UTF-8, and names in an event are; give \
                     {path:?} another one"
                )));
            };
            Ok((path, Some(name.to_owned())))
        }
        _ => Ok((PathBuf::from(text), None)),
    }
}

/// Returns a name as UTF-8, which names in an event must be.
fn utf8_name<'n>(name: &'n OsStr, path: &Path) -> Result<&'n str, CommandFailure> {
    name.to_str().ok_or_else(|| {
        CommandFailure(format!(
            "{path:?}: the name {name:?} is not UTF-8, and names in an event are; rename it, or \
             name it with PATH=NAME"
        ))
    })
}

fn read_metadata(path: &Path) -> Result<Metadata, CommandFailure> {
    path.metadata().map_err(|error| CommandFailure(format!("{path:?} cannot be read: {error}")))
}

impl FoundFiles {
    /// Adds the file or folder that one word of the command line names.
    fn add_argument(&mut self, text: &OsStr) -> Result<(), CommandFailure> {
        let (path, name) = path_and_name(text)?;
        let metadata = read_metadata(&path)?;
        if metadata.is_dir() {
            let prefix = match name.as_deref() {
                // The content of the folder, without the folder itself.
                None => String::new(),
                Some(name)
                    if name.split('/').all(|part| part == "." || part.is_empty())
                        && !name.starts_with('/') =>
                {
                    String::new()
                }
                Some(name) => clean_name(name, &path)?,
            };
            return self.add_tree(path, prefix);
        }
        let file_name = || match path.file_name() {
            Some(file_name) => utf8_name(file_name, &path),
            None => Err(CommandFailure(format!(
                "{path:?} has no file name; give it one with PATH=NAME"
            ))),
        };
        let name = match name {
            // A name that ends in a slash is a folder to put the file in, as with `cp`.
            Some(folder) if folder.ends_with('/') => format!("{folder}{}", file_name()?),
            Some(name) => name,
            None => file_name()?.to_owned(),
        };
        let name = clean_name(&name, &path)?;
        self.add_file(path, &metadata, name)
    }

    fn add_file(
        &mut self,
        path: PathBuf,
        metadata: &Metadata,
        name: String,
    ) -> Result<(), CommandFailure> {
        let kind = metadata.file_type();
        if !kind.is_file() {
            let what = match kind {
                kind if kind.is_fifo() => "a pipe",
                kind if kind.is_socket() => "a socket",
                kind if kind.is_char_device() || kind.is_block_device() => "a device",
                _ => "no file",
            };
            return Err(CommandFailure(format!(
                "{path:?} is {what}, and an event has regular files only: leave it out, or write \
                 what it gives to a file"
            )));
        }
        Limits::default().check_path(&name)?;
        self.names.add(&name)?;
        self.bytes += metadata.len();
        self.files.push(FoundFile { path, name });
        Ok(())
    }

    /// Adds everything below a folder. Symbolic links are followed. A link that leads back to a
    /// folder that it is in is refused.
    fn add_tree(&mut self, folder: PathBuf, prefix: String) -> Result<(), CommandFailure> {
        let mut open = vec![WalkedFolder::read(folder, prefix)?];
        while let Some(level) = open.last_mut() {
            let Some(file_name) = level.names.pop() else {
                open.pop();
                continue;
            };
            let path = level.folder.join(&file_name);
            let file_name = utf8_name(&file_name, &path)?;
            let name = if level.prefix.is_empty() {
                file_name.to_owned()
            } else {
                format!("{}/{file_name}", level.prefix)
            };
            let metadata = read_metadata(&path)?;
            if !metadata.is_dir() {
                self.add_file(path, &metadata, name)?;
                continue;
            }
            let deeper = WalkedFolder::read(path, name)?;
            if let Some(around) = open.iter().find(|level| level.id == deeper.id) {
                return Err(CommandFailure(format!(
                    "{:?} leads back to {:?}, which it is in: remove the link, or name files one \
                     by one",
                    deeper.folder, around.folder
                )));
            }
            if deeper.names.is_empty() {
                self.names.add_folder(&deeper.prefix)?;
                self.empty_folders.push(deeper.prefix.clone());
            }
            open.push(deeper);
        }
        Ok(())
    }
}

/// A folder whose content is being added.
struct WalkedFolder {
    folder: PathBuf,
    /// The beginning of the names of its files in the event.
    prefix: String,
    /// Its device and inode.
    id: (u64, u64),
    /// The names in it that are still to be looked at, in reverse order.
    names: Vec<OsString>,
}

impl WalkedFolder {
    fn read(folder: PathBuf, prefix: String) -> Result<Self, CommandFailure> {
        let list = || {
            let metadata = folder.metadata()?;
            let names =
                std::fs::read_dir(&folder)?.map(|entry| entry.map(|entry| entry.file_name()));
            Ok::<_, io::Error>((
                (metadata.dev(), metadata.ino()),
                names.collect::<Result<Vec<_>, _>>()?,
            ))
        };
        let (id, mut names) = list()
            .map_err(|error| CommandFailure(format!("{folder:?} cannot be read: {error}")))?;
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(Self { folder, prefix, id, names })
    }
}

/// Returns a name that the user has chosen as a path below `in/data`.
fn clean_name(name: &str, path: &Path) -> Result<String, CommandFailure> {
    clean_path(name).ok_or_else(|| {
        CommandFailure(format!(
            "{path:?} cannot be called {name:?}: a path below in/data is needed, as in `a.txt` or \
             `scans/a.txt`"
        ))
    })
}

/// How much has been stored so far.
#[derive(Debug)]
struct StoringProgress {
    files: usize,
    bytes: u64,
    stored: Mutex<StoredSoFar>,
    bar: ProgressBar,
}

#[derive(Debug, Default)]
struct StoredSoFar {
    files: usize,
    bytes: u64,
    /// How many bytes of each file that is being stored have been stored, by the file's number.
    active: BTreeMap<usize, Arc<AtomicU64>>,
}

impl StoringProgress {
    /// Begins to count, for a total of `files` files and `bytes` bytes.
    fn new(files: usize, bytes: u64) -> Self {
        let template = "storing {msg}  {bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left";
        let bar = ProgressBar::with_draw_target(Some(bytes), output::bar_target());
        let bar = match ProgressStyle::with_template(template) {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        };
        Self { files, bytes, stored: Mutex::default(), bar }
    }

    fn lock_stored(&self) -> std::sync::MutexGuard<'_, StoredSoFar> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin_file(&self, n: usize) -> Arc<AtomicU64> {
        self.lock_stored().active.entry(n).or_default().clone()
    }

    fn end_file(&self, n: usize, bytes: u64) {
        let mut stored = self.lock_stored();
        stored.active.remove(&n);
        stored.files += 1;
        stored.bytes += bytes;
    }

    /// Shows the progress until the task is aborted: a bar on a terminal, elsewhere a line every
    /// [`LINE_INTERVAL`].
    async fn show(self: Arc<Self>) {
        let started = Instant::now();
        let mut printed_at = started;
        loop {
            tokio::time::sleep(BAR_INTERVAL).await;
            let (files, bytes) = {
                let stored = self.lock_stored();
                let active: u64 = stored
                    .active
                    .values()
                    .map(|bytes_moved| bytes_moved.load(Ordering::Relaxed))
                    .sum();
                (stored.files, (stored.bytes + active).min(self.bytes))
            };
            self.bar.set_message(format!("{files}/{} files", self.files));
            self.bar.set_position(bytes);
            if !output::is_terminal() && printed_at.elapsed() >= LINE_INTERVAL {
                printed_at = Instant::now();
                output::print_message(&describe_progress(
                    (files, self.files),
                    (bytes, self.bytes),
                    started.elapsed(),
                ));
            }
        }
    }
}

fn describe_progress(files: (usize, usize), bytes: (u64, u64), took: Duration) -> String {
    let rate = bytes.0 as f64 / took.as_secs_f64().max(0.001);
    let left = match rate {
        rate if rate >= 1.0 => {
            let left = Duration::from_secs(((bytes.1 - bytes.0) as f64 / rate) as u64);
            format!(", about {} left", humantime::format_duration(left))
        }
        _ => String::new(),
    };
    format!(
        "stored {} of {} files, {} of {} at {}/s{left}",
        files.0,
        files.1,
        output::format_size(bytes.0),
        output::format_size(bytes.1),
        output::format_size(rate as u64)
    )
}

/// Copies the files and empty folders of an event into a folder, which is made or must be empty.
/// Returns how many files there are, and how many bytes they have.
///
/// # Errors
/// When the folder is not empty, or a file does not arrive as it was written or cannot be written.
pub(crate) async fn copy_files(
    plane: &DataPlane,
    files: &[FileEntry],
    event: &Event,
    folder: &Path,
) -> Result<(usize, u64), CommandFailure> {
    if !is_new_or_empty(folder) {
        return Err(CommandFailure(format!(
            "{} is not empty; --to needs a new folder or an empty one",
            folder.display()
        )));
    }
    let files = placeable_files(files)?;
    let directories = event.directories.iter().filter_map(|name| clean_path(name));
    for path in std::iter::once(folder.to_owned()).chain(directories.map(|name| folder.join(name)))
    {
        std::fs::create_dir_all(&path).map_err(|error| cannot(&path, "made", &error))?;
    }
    for file in &files {
        let path = folder.join(&file.name);
        let made = || {
            std::fs::create_dir_all(path.parent().unwrap_or(folder))?;
            File::create_new(&path)?.set_len(file.size)
        };
        made().map_err(|error| cannot(&path, "made", &error))?;
    }
    let target = folder.to_owned();
    let open = move |file: &FileEntry| OpenOptions::new().write(true).open(target.join(&file.name));
    fetch_files(plane, &files, Arc::new(open)).await?;
    for file in &files {
        let path = folder.join(&file.name);
        let finished = || {
            let opened = OpenOptions::new().write(true).open(&path)?;
            opened.set_modified(file.modified())?;
            opened.set_permissions(Permissions::from_mode(file.mode & 0o777))
        };
        finished().map_err(|error| cannot(&path, "given its attributes", &error))?;
    }
    Ok((files.len(), files.iter().map(|file| file.size).sum()))
}

fn cannot(path: &Path, what: &str, error: &io::Error) -> CommandFailure {
    CommandFailure(format!("{} cannot be {what}: {error}", path.display()))
}

/// Returns whether nothing is at this path, or an empty folder.
pub(crate) fn is_new_or_empty(folder: &Path) -> bool {
    match std::fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}
