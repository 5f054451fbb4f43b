//! The folder of a job: where its files are, and the few values of the event that matter here.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::IndexError;

/// The tree that a job finds at `/ion`. Any folder with `in/data` is one.
#[derive(Clone, Debug)]
pub(crate) struct JobFolder(PathBuf);

impl JobFolder {
    pub(crate) fn new(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    pub(crate) fn input(&self) -> PathBuf {
        self.0.join("in/data")
    }

    /// Returns the path of a file that an event may name.
    pub(crate) fn output(&self, name: &str) -> PathBuf {
        self.0.join("out/data").join(name)
    }

    /// Makes the folders of the output where they are missing: below a plain folder.
    pub(crate) fn make_output(&self) -> Result<(), IndexError> {
        for name in ["out/data", "out/events"] {
            let path = self.0.join(name);
            std::fs::create_dir_all(&path).map_err(IndexError::file("made", &path))?;
        }
        Ok(())
    }

    /// Returns the source of the event's items: its value `source`, else the module that published
    /// it.
    pub(crate) fn source(&self) -> Result<String, IndexError> {
        let value = self.0.join("in/meta/source");
        match std::fs::read_to_string(&value) {
            Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(IndexError::file("read", value)(error)),
        }
        let path = self.0.join("in/event.json");
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(IndexError::NoSource),
            Err(error) => return Err(IndexError::file("read", path)(error)),
        };
        let event: EventDocument = serde_json::from_reader(BufReader::new(file))
            .map_err(|error| IndexError::file("read", path)(error.into()))?;
        match event.context.name {
            name if name.is_empty() => Err(IndexError::NoSource),
            name => Ok(name),
        }
    }

    /// Writes a file of the output in one step, under its final name. In `out/events` this commits
    /// the event, and an error says that it was not committed.
    pub(crate) fn write_whole(
        &self,
        folder: &str,
        name: &str,
        text: &str,
    ) -> Result<(), IndexError> {
        let folder = self.0.join("out").join(folder);
        // A name with a dot in front is a draft, which is no event yet.
        let (draft, path) = (folder.join(format!(".{name}")), folder.join(name));
        File::create(&draft)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .and_then(|()| std::fs::rename(&draft, &path))
            .map_err(IndexError::file("written", path))
    }
}

/// What is needed of `in/event.json`, whose list of files may be long.
#[derive(Deserialize)]
struct EventDocument {
    #[serde(default)]
    context: EventContext,
}

#[derive(Default, Deserialize)]
struct EventContext {
    /// The module that published the event.
    #[serde(default)]
    name: String,
}

/// Returns a path as it is shown to people, relative to a folder.
pub(crate) fn relative_name(path: &Path, folder: &Path) -> String {
    path.strip_prefix(folder).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_is_the_event_s_value_or_the_module_that_published_it() {
        let root = tempfile::tempdir().unwrap();
        let folder = JobFolder::new(root.path());
        assert!(matches!(folder.source(), Err(IndexError::NoSource)));
        std::fs::create_dir_all(root.path().join("in/meta")).unwrap();
        let event = root.path().join("in/event.json");
        std::fs::write(&event, r#"{"type": "article", "files": []}"#).unwrap();
        assert!(matches!(folder.source(), Err(IndexError::NoSource)));
        std::fs::write(&event, r#"{"context": {"name": "feed"}, "files": []}"#).unwrap();
        assert_eq!(folder.source().unwrap(), "feed");
        std::fs::write(root.path().join("in/meta/source"), "bbc-top\n").unwrap();
        assert_eq!(folder.source().unwrap(), "bbc-top");
        std::fs::write(root.path().join("in/meta/source"), " \n").unwrap();
        assert_eq!(folder.source().unwrap(), "feed");
        std::fs::write(&event, "{").unwrap();
        assert!(matches!(folder.source(), Err(IndexError::File { .. })));
    }
}
