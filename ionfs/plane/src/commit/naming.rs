//! The paths that an event names: those in its `files`, and everything below a named directory.

use std::collections::{HashMap, HashSet};

use ion_model::event::clean_path;
use ion_model::limits::bytes_in_words;
use ion_model::text::quote;

use super::{Refusal, Staging};

/// The most empty directories of one event. The event's document lists them, and a store may limit
/// a document to 2 MiB.
const DIRECTORIES_MAX: usize = 1000;

/// The most bytes of their paths together, for the same reason.
const DIRECTORY_BYTES_MAX: usize = 64 << 10;

/// The content of a directory and of the directories below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectoryContent {
    /// The paths of everything that is not a directory.
    pub files: Vec<String>,
    /// The paths of the empty directories.
    pub empty: Vec<String>,
}

/// Returns the paths that an event names, each once. A name that ends in a slash stands for
/// everything below that directory.
pub(super) async fn named_paths(
    names: &[String],
    staging: &dyn Staging,
) -> Result<DirectoryContent, Refusal> {
    let mut named = DirectoryContent::default();
    let mut seen = HashSet::new();
    for name in names {
        let Some(path) = clean_path(name) else {
            return Err(Refusal::Invalid(format!("{} is not a path below out/data", quote(name))));
        };
        let below = if name.ends_with('/') { staging.list_directory(&path).await? } else { None };
        let DirectoryContent { files, empty } =
            below.unwrap_or_else(|| DirectoryContent { files: vec![path], empty: vec![] });
        named.files.extend(files.into_iter().filter(|path| seen.insert(path.clone())));
        named.empty.extend(empty.into_iter().filter(|path| seen.insert(path.clone())));
        if named.files.len() as u64 > staging.files_max() {
            return Err(Refusal::TooBig(format!(
                "an event may name {} files",
                staging.files_max()
            )));
        }
    }
    check_directories(&named.empty).map_err(|error| Refusal::TooBig(error.to_string()))?;
    Ok(named)
}

/// Why an event cannot name files or directories as it does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamingError {
    /// Two files have this name.
    #[error("two files are called {}; give one another name", quote(.0))]
    Twice(String),
    /// One name is a file, and a folder of another name.
    #[error(
        "{} would be a file and, for {}, a folder; give one another name",
        quote(.file),
        quote(.below)
    )]
    FileAndFolder {
        /// The name that would be both.
        file: String,
        /// The name that needs the folder.
        below: String,
    },
    /// There are too many empty directories, or their paths are too long together.
    #[error(
        "an event may name {DIRECTORIES_MAX} empty directories, whose paths take {}; put a file \
         into each, or name an archive of them",
        bytes_in_words(DIRECTORY_BYTES_MAX as u64)
    )]
    Directories,
}

/// Collects the names of an event's files and refuses names that clash, where the files are not in
/// a folder that would prevent clashes.
#[derive(Debug, Default)]
pub struct FileNames {
    files: HashSet<String>,
    /// The folders that the names imply, each with a name that needs it.
    folders: HashMap<String, String>,
}

impl FileNames {
    /// Adds a file, by its clean path.
    ///
    /// # Errors
    /// When another file has this name, or one name is a folder of the other, so that a module
    /// could reach only one of the two.
    pub fn add(&mut self, name: &str) -> Result<(), NamingError> {
        if let Some(below) = self.folders.get(name) {
            return Err(clash_error(name, below));
        }
        self.add_parent_folders(name)?;
        match self.files.insert(name.to_owned()) {
            true => Ok(()),
            false => Err(NamingError::Twice(name.to_owned())),
        }
    }

    /// Adds an empty folder, by its clean path.
    ///
    /// # Errors
    /// As [`FileNames::add`].
    pub fn add_folder(&mut self, name: &str) -> Result<(), NamingError> {
        self.add_parent_folders(&format!("{name}/"))
    }

    fn add_parent_folders(&mut self, name: &str) -> Result<(), NamingError> {
        let mut path = name;
        while let Some((folder, _)) = path.rsplit_once('/') {
            if self.files.contains(folder) {
                return Err(clash_error(folder, name));
            }
            // The folders above it are known too.
            if self.folders.contains_key(folder) {
                break;
            }
            self.folders.insert(folder.to_owned(), name.to_owned());
            path = folder;
        }
        Ok(())
    }
}

fn clash_error(file: &str, below: &str) -> NamingError {
    NamingError::FileAndFolder { file: file.to_owned(), below: below.to_owned() }
}

/// Checks that an event's document may name these empty directories.
///
/// # Errors
/// [`NamingError::Directories`], when they are too many, or their paths are too long together.
pub fn check_directories(empty: &[String]) -> Result<(), NamingError> {
    let bytes: usize = empty.iter().map(String::len).sum();
    let few = empty.len() <= DIRECTORIES_MAX && bytes <= DIRECTORY_BYTES_MAX;
    if few { Ok(()) } else { Err(NamingError::Directories) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_file_is_a_folder_of_another() {
        let mut names = FileNames::default();
        for name in ["a.txt", "b/c/d", "b/c/e", "b/x"] {
            names.add(name).unwrap();
        }
        names.add_folder("empty/deep").unwrap();
        names.add_folder("b/c").unwrap();
        assert!(names.add("b/x").unwrap_err().to_string().contains("two files are called \"b/x\""));
        for (name, other) in [
            ("b", "b/c/d"),
            ("b/c", "b/c/d"),
            ("empty", "empty/deep/"),
            ("empty/deep", "empty/deep/"),
        ] {
            let said = names.add(name).unwrap_err().to_string();
            assert!(
                said.contains(&format!("{name:?} would be a file and, for {other:?}, a folder")),
                "{said}"
            );
        }
        let said = names.add("a.txt/f").unwrap_err().to_string();
        assert!(said.contains("\"a.txt\" would be a file and, for \"a.txt/f\""), "{said}");
        assert!(names.add_folder("a.txt").is_err());
        names.add("a").unwrap();
    }
}
