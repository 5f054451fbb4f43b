//! The plain folder that the program works in: `in/` with parameters and state, `out/` with what it
//! leaves.
//!
//! Files appear in `out/` under their names only when they are whole: they are written beside and
//! renamed. Events and state are the last to be written, because they name the others.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{CWD, RenameFlags};
use serde_json::{Map, Value};

/// How many bytes of a parameter are read. More is no parameter.
const VALUE_BYTES_MAX: u64 = 1024 * 1024;

/// A plain folder.
#[derive(Clone, Debug)]
pub struct Folder {
    root: PathBuf,
}

/// Why a file of the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Its path.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The folder has no `in`.
    #[error("{} has no folder \"in\"; make it, or give another folder by --dir", .0.display())]
    NoInput(PathBuf),
}

impl Folder {
    /// Opens a folder: makes `out/` where it is missing, with the state that `in/` has.
    ///
    /// # Errors
    ///
    /// The folder has no `in/`, or cannot be written to.
    pub fn open(root: &Path) -> Result<Self, FolderError> {
        if !root.join("in").is_dir() {
            return Err(FolderError::NoInput(root.to_owned()));
        }
        let folder = Self { root: root.to_owned() };
        for name in ["out/data", "out/events"] {
            folder.make(&folder.root.join(name))?;
        }
        // Ion's own tree has it already, as a reference to the state in `in/`.
        let state = folder.root.join("out/state");
        if !state.is_dir() {
            copy_folder(&folder.root.join("in/state"), &state)
                .map_err(|source| FolderError::Write { path: state, source })?;
        }
        Ok(folder)
    }

    /// Returns the folders of a batch: `DIR/0`, `DIR/1` and so on, or nothing if `DIR` is one
    /// folder itself.
    pub fn batch(root: &Path) -> Vec<PathBuf> {
        let numbered = (0..).map(|number: u32| root.join(number.to_string()));
        numbered.take_while(|folder| folder.join("in").is_dir()).collect()
    }

    /// Returns a parameter: the text of `in/meta/NAME` without white space around it. An empty one
    /// counts as missing.
    ///
    /// # Errors
    ///
    /// The file is there and cannot be read.
    pub fn parameter(&self, name: &str) -> Result<Option<String>, FolderError> {
        let path = self.root.join("in/meta").join(name);
        let Some(bytes) = read_if_there(&path, VALUE_BYTES_MAX)? else { return Ok(None) };
        let text = String::from_utf8_lossy(&bytes).trim().to_owned();
        Ok((!text.is_empty()).then_some(text))
    }

    /// Returns the instant that this run is for: `in/meta/scheduled`.
    ///
    /// # Errors
    ///
    /// The file is there and cannot be read.
    pub fn scheduled(&self) -> Result<Option<Timestamp>, FolderError> {
        Ok(self.parameter("scheduled")?.and_then(|text| text.parse().ok()))
    }

    /// Returns a file of the state that the last succeeded run left.
    ///
    /// # Errors
    ///
    /// The file is there and cannot be read.
    pub fn state(&self, name: &str) -> Result<Option<Vec<u8>>, FolderError> {
        read_if_there(&self.root.join("in/state").join(name), u64::MAX)
    }

    /// Writes a file of the new state, or removes it. A file that stays the same is not touched.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn set_state(&self, name: &str, content: Option<&[u8]>) -> Result<(), FolderError> {
        let path = self.root.join("out/state").join(name);
        let now = read_if_there(&path, u64::MAX)?;
        match content {
            content if content == now.as_deref() => Ok(()),
            Some(content) => self.write(&path, content),
            None => fs::remove_file(&path).map_err(|source| FolderError::Write { path, source }),
        }
    }

    /// Writes a file below `out/data`.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn write_data(&self, name: &str, content: &[u8]) -> Result<(), FolderError> {
        self.write(&self.root.join("out/data").join(name), content)
    }

    /// Returns the path of a file below `out/data`, in a folder that is there.
    ///
    /// # Errors
    ///
    /// Its folder cannot be made.
    pub fn data_path(&self, name: &str) -> Result<PathBuf, FolderError> {
        let path = self.root.join("out/data").join(name);
        if let Some(parent) = path.parent() {
            self.make(parent)?;
        }
        Ok(path)
    }

    /// Writes an event: its type, the files below `out/data` that it names, and its values. The
    /// rename commits it, and fails if it is refused.
    ///
    /// # Errors
    ///
    /// The event is refused, or its file cannot be written.
    pub fn write_event(&self, name: &str, event: &Event) -> Result<(), FolderError> {
        let mut document = Map::new();
        document.insert("eventType".to_owned(), event.event_type.into());
        document.insert("files".to_owned(), event.files.clone().into());
        for (key, value) in &event.values {
            document.insert((*key).to_owned(), value.clone().into());
        }
        let content = Value::Object(document).to_string() + "\n";
        self.write(&self.root.join("out/events").join(format!("{name}.json")), content.as_bytes())
    }

    /// Says why this folder of a batch failed, without failing the others.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn write_failure(root: &Path, reason: &str) -> Result<(), FolderError> {
        let path = root.join("out/failed");
        fs::create_dir_all(root.join("out"))
            .and_then(|()| fs::write(&path, format!("{reason}\n")))
            .map_err(|source| FolderError::Write { path, source })
    }

    /// Makes the new state the one that the next run finds, for a folder that nobody else takes
    /// care of. It takes the place of the old state in one step.
    ///
    /// # Errors
    ///
    /// The state cannot be copied.
    pub fn keep_state(&self) -> Result<(), FolderError> {
        let (old, new) = (self.root.join("in/state"), self.root.join("in/.state.new"));
        let replace = || {
            if new.exists() {
                fs::remove_dir_all(&new)?;
            }
            copy_folder(&self.root.join("out/state"), &new)?;
            fs::create_dir_all(&old)?;
            rustix::fs::renameat_with(CWD, &new, CWD, &old, RenameFlags::EXCHANGE)?;
            fs::remove_dir_all(&new)
        };
        replace().map_err(|source: io::Error| FolderError::Write { path: old.clone(), source })
    }

    fn make(&self, path: &Path) -> Result<(), FolderError> {
        fs::create_dir_all(path)
            .map_err(|source| FolderError::Write { path: path.to_owned(), source })
    }

    /// Writes a file beside its place and renames it. A name that begins with a dot is a draft.
    fn write(&self, path: &Path, content: &[u8]) -> Result<(), FolderError> {
        let write_error = |source| FolderError::Write { path: path.to_owned(), source };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let draft = path.with_file_name(format!(".{name}"));
        if let Some(parent) = path.parent() {
            self.make(parent)?;
        }
        fs::write(&draft, content).map_err(write_error)?;
        fs::rename(&draft, path).map_err(write_error)
    }
}

/// An event to publish.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its type.
    pub event_type: &'static str,
    /// The files below `out/data` that belong to it.
    pub files: Vec<String>,
    /// Its values.
    pub values: Vec<(&'static str, String)>,
}

/// Returns the content of a file of at most so many bytes, if there is one.
fn read_if_there(path: &Path, most: u64) -> Result<Option<Vec<u8>>, FolderError> {
    use std::io::Read as _;
    let read = || -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        fs::File::open(path)?.take(most).read_to_end(&mut content)?;
        Ok(content)
    };
    match read() {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FolderError::Read { path: path.to_owned(), source }),
    }
}

/// Copies the files of a folder, which may be missing, into a new one.
fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    let entries = match fs::read_dir(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{Event, Folder, FolderError};

    fn folder() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("in/state")).unwrap();
        fs::create_dir_all(dir.path().join("in/meta")).unwrap();
        fs::write(dir.path().join("in/state/seen"), "old").unwrap();
        fs::write(dir.path().join("in/meta/url"), " https://example.org/\n").unwrap();
        let opened = Folder::open(dir.path()).unwrap();
        (dir, opened)
    }

    #[test]
    fn the_new_state_begins_as_the_old_one_and_is_kept_in_one_step() {
        let (dir, folder) = folder();
        let at = |path: &str| fs::read_to_string(dir.path().join(path)).ok();
        assert_eq!(at("out/state/seen").as_deref(), Some("old"));
        folder.set_state("seen", Some(b"new")).unwrap();
        folder.set_state("not-before", Some(b"later")).unwrap();
        folder.set_state("not-before", None).unwrap();
        folder.set_state("not-before", None).unwrap();
        assert_eq!(folder.state("seen").unwrap().as_deref(), Some(&b"old"[..]));
        folder.keep_state().unwrap();
        assert_eq!(folder.state("seen").unwrap().as_deref(), Some(&b"new"[..]));
        assert_eq!(folder.state("not-before").unwrap(), None);
        assert_eq!(fs::read_dir(dir.path().join("in")).unwrap().count(), 2);
    }

    #[test]
    fn an_event_is_one_document_with_its_type_files_and_values() {
        let (dir, folder) = folder();
        let event = Event {
            event_type: "article",
            files: vec!["a/item.json".to_owned()],
            values: vec![("title", "A \"title\"".to_owned())],
        };
        folder.write_event("a", &event).unwrap();
        let text = fs::read_to_string(dir.path().join("out/events/a.json")).unwrap();
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expected = serde_json::json!(
            {"eventType": "article", "files": ["a/item.json"], "title": "A \"title\""}
        );
        assert_eq!(document, expected);
        assert_eq!(fs::read_dir(dir.path().join("out/events")).unwrap().count(), 1);
    }

    #[test]
    fn parameters_are_the_texts_of_files() {
        let (_dir, folder) = folder();
        assert_eq!(folder.parameter("url").unwrap().as_deref(), Some("https://example.org/"));
        assert_eq!(folder.parameter("first").unwrap(), None);
    }

    #[test]
    fn a_folder_without_input_is_an_error_that_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let error = Folder::open(dir.path()).unwrap_err();
        assert!(matches!(&error, FolderError::NoInput(_)) && error.to_string().contains("--dir"));
    }

    #[test]
    fn the_folders_of_a_batch_have_numbers() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["0/in", "1/in", "3/in"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        assert_eq!(Folder::batch(dir.path()), [dir.path().join("0"), dir.path().join("1")]);
        assert!(Folder::batch(&dir.path().join("0")).is_empty());
    }
}
