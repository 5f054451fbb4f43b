//! One run over one folder that files appear in.
//!
//! Flow: list the folder, wait until what has just changed stands still, choose the files that are
//! new, copy them, write their events and last the state. A file that an earlier run has published
//! is moved away or deleted now, if that is wanted: its publication is committed by now, so a run
//! that fails loses no file.
//!
//! A file is known by its path, size and modification time. Drafts, links and what is neither a
//! file nor a folder are left alone. No file is read into memory.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;

use crate::feed::ItemId;
use crate::folder::{Event, Folder, FolderError};
use crate::run::{Emit, RunEnd};
use crate::seen::{Choice, SeenItems, Shown};

/// How many files a folder may have. More exceed the size that a state may have (16 MiB).
const FILES_MAX: usize = 200_000;

/// How deep folders may lie in each other.
const DEPTH_MAX: usize = 32;

/// What is wanted of a folder.
#[derive(Clone, Debug)]
pub struct WatchSettings {
    /// The folder that files appear in.
    pub path: PathBuf,
    /// Whether the folders in it are watched too.
    pub recursive: bool,
    /// How long a file must have stood still.
    pub settle: Duration,
    /// What becomes of a file after it was published.
    pub after: After,
    /// Which files are published.
    pub choice: Choice,
    /// Which events are published.
    pub emit: Emit,
}

/// What becomes of a file after it was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum After {
    /// It stays.
    Keep,
    /// It moves into this folder.
    Move(PathBuf),
    /// It is deleted.
    Delete,
}

impl std::str::FromStr for After {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "keep" => Ok(Self::Keep),
            None if text == "delete" => Ok(Self::Delete),
            Some(("move", to)) if !to.is_empty() => Ok(Self::Move(to.into())),
            _ => Err("it is none of keep, delete and move=DIR".to_owned()),
        }
    }
}

/// Why a run failed. Nothing of it counts then.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The folder with parameters and state cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The watched folder, or a file in it, cannot be used.
    #[error("cannot {act} {}", path.display())]
    Watched {
        /// What failed.
        act: &'static str,
        /// The folder or file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// There are too many files.
    #[error("{} has more than {FILES_MAX} files; move published ones away with --after move=DIR", .0.display())]
    TooMany(PathBuf),
}

/// What a file was like when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Look {
    size: u64,
    modified: Timestamp,
    /// The last change of its name, its content or its mode.
    changed: Timestamp,
}

impl Look {
    fn at(metadata: &Metadata) -> Self {
        let instant = |seconds, nanoseconds: i64| {
            let nanoseconds = i32::try_from(nanoseconds).unwrap_or_default();
            Timestamp::new(seconds, nanoseconds).unwrap_or(Timestamp::UNIX_EPOCH)
        };
        Self {
            size: metadata.len(),
            modified: instant(metadata.mtime(), metadata.mtime_nsec()),
            changed: instant(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether the file has not changed for so long. A time in the future is not yet over.
    fn has_settled(&self, settle: Duration, now: Timestamp) -> bool {
        let last = self.modified.max(self.changed);
        Duration::try_from(now.duration_since(last)).is_ok_and(|still| still >= settle)
    }
}

/// A file that may be published.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    /// Its path below the watched folder.
    name: String,
    look: Look,
}

impl Found {
    fn id(&self) -> ItemId {
        let (size, modified) = (self.look.size.to_string(), self.look.modified.to_string());
        ItemId::hashed(&["file", &self.name, &size, &modified])
    }

    /// Returns its place below `out/data`.
    fn data_name(&self) -> String {
        let last = self.name.rsplit('/').next().unwrap_or(&self.name);
        format!("{}/{last}", self.id())
    }

    fn values(&self) -> Vec<(&'static str, String)> {
        vec![
            ("path", self.name.clone()),
            ("size", self.look.size.to_string()),
            ("modified", self.look.modified.to_string()),
        ]
    }
}

/// Looks at a folder once.
///
/// # Errors
///
/// The run failed and is to be repeated: nothing that it wrote counts.
pub async fn run(folder: &Folder, settings: &WatchSettings) -> Result<RunEnd, WatchError> {
    let seen = folder.state("seen")?;
    let has_been_read = seen.is_some();
    let mut seen = SeenItems::read(&String::from_utf8_lossy(&seen.unwrap_or_default()));
    let found = settled(settings).await?;
    let before = folder.state("published")?.unwrap_or_default();
    let before = String::from_utf8_lossy(&before).into_owned();
    let before: HashSet<&str> = before.lines().collect();
    // Only what was published may go: the first run remembers files that it does not publish.
    let mut is_published = String::new();
    let mut left = Vec::new();
    for file in found {
        let id = file.id();
        if before.contains(id.as_str()) {
            if put_away(settings, &file)? {
                continue;
            }
            let _ = writeln!(is_published, "{id}");
        }
        left.push(file);
    }
    let shown: Vec<Shown> = left
        .iter()
        .map(|file| Shown {
            id: file.id(),
            fingerprint: "-".to_owned(),
            date: Some(file.look.modified),
        })
        .collect();
    let chosen = seen.choose(&shown, &settings.choice, !has_been_read);
    let mut published = Vec::new();
    for publication in &chosen.publish {
        let file = &left[publication.index];
        if copy(folder, settings, file)? {
            let _ = writeln!(is_published, "{}", file.id());
            published.push(file);
        } else {
            // It was changed while it was copied, so it is another file by now.
            seen.forget(&file.id());
        }
    }
    write_events(folder, settings.emit, &published)?;
    folder.set_state("published", Some(is_published.as_bytes()))?;
    folder.set_state("seen", Some(seen.lines().as_bytes()))?;
    Ok(RunEnd::Published(published.len()))
}

/// Returns the files that stand still. Those that have just changed get the time to.
async fn settled(settings: &WatchSettings) -> Result<Vec<Found>, WatchError> {
    let first = list(settings)?;
    let now = Timestamp::now();
    if first.iter().all(|file| file.look.has_settled(settings.settle, now)) {
        return Ok(first);
    }
    tokio::time::sleep(settings.settle).await;
    let before: HashMap<String, Look> =
        first.into_iter().map(|file| (file.name, file.look)).collect();
    let mut found = list(settings)?;
    found.retain(|file| before.get(&file.name) == Some(&file.look));
    Ok(found)
}

/// Returns all files of the folder that are no drafts, by their names.
fn list(settings: &WatchSettings) -> Result<Vec<Found>, WatchError> {
    let mut found = Vec::new();
    let mut open = vec![(settings.path.clone(), String::new(), 0)];
    while let Some((path, prefix, depth)) = open.pop() {
        let failed = |source| WatchError::Watched { act: "list", path: path.clone(), source };
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if is_draft(&name) {
                continue;
            }
            // A file may vanish between its listing and this look.
            let Ok(metadata) = entry.path().symlink_metadata() else { continue };
            let name = format!("{prefix}{name}");
            if metadata.is_file() {
                found.push(Found { name, look: Look::at(&metadata) });
            } else if metadata.is_dir()
                && settings.recursive
                && depth < DEPTH_MAX
                && !is_target(settings, &entry.path())
            {
                open.push((entry.path(), format!("{name}/"), depth + 1));
            }
            if found.len() > FILES_MAX {
                return Err(WatchError::TooMany(settings.path.clone()));
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Whether published files are moved into this folder.
fn is_target(settings: &WatchSettings, path: &Path) -> bool {
    matches!(&settings.after, After::Move(to) if to == path)
}

/// Whether a name says that its file is not finished: those of editors and of programs that
/// download.
fn is_draft(name: &str) -> bool {
    let endings = ["~", ".tmp", ".part", ".partial", ".swp", ".crdownload", ".filepart"];
    name.starts_with('.') || endings.iter().any(|ending| name.ends_with(ending))
}

/// Moves or deletes a file that was published. Returns false if it stays.
fn put_away(settings: &WatchSettings, file: &Found) -> Result<bool, WatchError> {
    let path = settings.path.join(&file.name);
    let failed = |act| move |source| WatchError::Watched { act, path: path.clone(), source };
    match &settings.after {
        After::Keep => return Ok(false),
        After::Delete => {
            fs::remove_file(settings.path.join(&file.name)).map_err(failed("delete"))?;
        }
        After::Move(to) => {
            let to = to.join(&file.name);
            let moved = to
                .parent()
                .map_or(Ok(()), fs::create_dir_all)
                .and_then(|()| fs::rename(settings.path.join(&file.name), &to));
            moved.map_err(failed("move"))?;
        }
    }
    Ok(true)
}

/// Copies a file to `out/data`, by reference where the filesystem can. Returns false if it was
/// changed meanwhile.
fn copy(folder: &Folder, settings: &WatchSettings, file: &Found) -> Result<bool, WatchError> {
    let from = settings.path.join(&file.name);
    let to = folder.data_path(&file.data_name())?;
    match fs::copy(&from, &to) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(WatchError::Watched { act: "copy", path: from, source }),
    }
    let is_same = |metadata: Metadata| Look::at(&metadata) == file.look;
    Ok(from.symlink_metadata().is_ok_and(is_same))
}

fn write_events(folder: &Folder, emit: Emit, files: &[&Found]) -> Result<(), FolderError> {
    match emit {
        Emit::Each => files.iter().try_for_each(|file| {
            let (files, values) = (vec![file.data_name()], file.values());
            folder.write_event(file.id().as_str(), &Event { event_type: "file", files, values })
        }),
        Emit::Together if files.is_empty() => Ok(()),
        Emit::Together => {
            let line = |file: &&Found| {
                let values =
                    file.values().into_iter().map(|(key, value)| (key.to_owned(), json!(value)));
                let mut document: serde_json::Map<_, _> = values.collect();
                document.insert("file".to_owned(), json!(file.data_name()));
                serde_json::Value::Object(document).to_string() + "\n"
            };
            let lines: String = files.iter().map(line).collect();
            folder.write_data("items.ndjson", lines.as_bytes())?;
            let mut names = vec!["items.ndjson".to_owned()];
            names.extend(files.iter().map(|file| file.data_name()));
            let values = vec![("count", files.len().to_string())];
            folder.write_event("files", &Event { event_type: "files", files: names, values })
        }
    }
}

/// Returns the folder that a parameter names, if it lies below the one that is allowed.
///
/// # Errors
///
/// It does not, or one of them is not there.
pub fn path_below(path: &Path, below: &Path) -> Result<PathBuf, String> {
    let real = |path: &Path| {
        path.canonicalize().map_err(|error| format!("{} cannot be opened: {error}", path.display()))
    };
    let (found, allowed) = (real(&below.join(path))?, real(below)?);
    if found.starts_with(&allowed) {
        Ok(found)
    } else {
        Err(format!("{} is not below {}", found.display(), allowed.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::Duration;

    use super::{Look, is_draft, path_below};

    #[test]
    fn a_file_has_settled_when_nothing_of_it_changed_for_a_while() {
        let look = |modified: &str, changed: &str| Look {
            size: 1,
            modified: modified.parse().unwrap(),
            changed: changed.parse().unwrap(),
        };
        let now = "2024-05-06T07:00:10Z".parse().unwrap();
        let settled = |look: Look| look.has_settled(Duration::from_secs(2), now);
        assert!(settled(look("2024-05-06T07:00:08Z", "2024-05-06T07:00:08Z")));
        assert!(!settled(look("2024-05-06T07:00:09Z", "2024-05-06T07:00:00Z")));
        // It was renamed or given an old time just now.
        assert!(!settled(look("2001-05-06T07:00:00Z", "2024-05-06T07:00:09Z")));
        assert!(!settled(look("2099-05-06T07:00:00Z", "2024-05-06T07:00:00Z")));
    }

    #[test]
    fn drafts_are_known_by_their_names() {
        for name in [".x", "a~", "a.tmp", "a.pdf.part", "a.swp", "film.crdownload"] {
            assert!(is_draft(name), "{name}");
        }
        assert!(!is_draft("part.pdf"));
    }

    #[test]
    fn a_folder_that_a_stranger_names_lies_below_the_allowed_one() {
        let dir = tempfile::tempdir().unwrap();
        let allowed = dir.path().join("allowed");
        fs::create_dir_all(allowed.join("in")).unwrap();
        std::os::unix::fs::symlink("/", allowed.join("link")).unwrap();
        assert!(path_below(Path::new("in"), &allowed).unwrap().ends_with("allowed/in"));
        for wrong in ["..", "/", "link/etc", "in/../..", "missing"] {
            assert!(path_below(Path::new(wrong), &allowed).is_err(), "{wrong}");
        }
    }
}
