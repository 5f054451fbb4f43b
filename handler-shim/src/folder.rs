//! The folder a module works in: `in/` and `out/` below `HANDLER_BASE_DIR`.
//!
//! What a module leaves there is not trusted: its commit runs elsewhere, with the stores' credentials and other files at
//! hand. So nothing is read through a link that leads out of `out/data`, and nothing is removed through a link at all.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use ionfs::event::is_draft;
use ionfs::id::{EventId, JobId};
use rustix::fs::{Dir, Mode, OFlags, ResolveFlags, openat2};
use serde::{Deserialize, Serialize};

use crate::HandlerError;

/// Where `prepare` notes for `commit` which attempt this is: neither in `in/` nor in `out/`, which are the module's.
const NOTE: &str = ".ion-handler.json";

/// The folder.
#[derive(Clone, Debug)]
pub struct Folder {
    root: PathBuf,
}

/// Which attempt the folder was filled for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Note {
    /// The event.
    pub event_id: EventId,
    /// The job.
    pub job_id: JobId,
    /// Who holds it: one `prepare`, and the `commit`s that follow it.
    pub holder: String,
}

/// A file that a module left, and what there is to say about it before it is opened.
#[derive(Debug)]
pub enum Left {
    /// A file that can be read.
    File(File),
    /// Nothing of this name.
    Missing,
    /// Something else; what, in words.
    Other(String),
}

impl Folder {
    /// The folder at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// A path in it.
    pub fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Makes it as a module expects it: `in/data`, `out/data` and `out/events` empty, no values, no insights.
    ///
    /// # Errors
    /// When something cannot be made or removed, or a link stands in the way.
    pub fn reset(&self) -> Result<(), HandlerError> {
        for part in ["in", "out"] {
            let path = self.at(part);
            let made = match std::fs::symlink_metadata(&path) {
                // What is behind it might be anybody's.
                Ok(metadata) if !metadata.is_dir() => Err(io::ErrorKind::NotADirectory.into()),
                Ok(_) => Ok(()),
                Err(_) => std::fs::create_dir_all(&path),
            };
            made.map_err(HandlerError::folder(path, "cannot be made"))?;
        }
        for part in ["in/data", "out/data", "out/events"] {
            let path = self.at(part);
            empty(&path).map_err(HandlerError::folder(path, "cannot be emptied"))?;
        }
        for part in ["in/eventmeta.json", "in/event.json", "out/insights.json"] {
            let path = self.at(part);
            remove(&path).map_err(HandlerError::folder(path, "cannot be removed"))?;
        }
        // Older modules open it without creating it.
        self.write("out/insights.json", b"")
    }

    /// Writes a small file that is not there yet.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &str, content: &[u8]) -> Result<(), HandlerError> {
        let path = self.at(path);
        let written = new_file(&path).and_then(|mut file| file.write_all(content));
        written.map_err(HandlerError::folder(path, "cannot be written"))
    }

    /// Notes which attempt the folder is for. Durable before the ledger is told: whoever finds the attempt in the ledger
    /// after a crash finds it here too.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note(&self, note: &Note) -> Result<(), HandlerError> {
        let (path, draft) = (self.at(NOTE), self.at(&format!("{NOTE}.tmp")));
        let write = || -> io::Result<()> {
            std::fs::create_dir_all(&self.root)?;
            remove(&draft)?;
            let mut file = new_file(&draft)?;
            file.write_all(&serde_json::to_vec(note)?)?;
            file.sync_all()?;
            std::fs::rename(&draft, &path)
        };
        write().map_err(HandlerError::folder(&path, "cannot be written"))
    }

    /// The attempt that was noted; none if there is no note, or none that can be read.
    pub fn noted(&self) -> Option<Note> {
        serde_json::from_slice(&std::fs::read(self.at(NOTE)).ok()?).ok()
    }

    /// What the module left in `out/`, opened.
    ///
    /// # Errors
    /// When a folder of it cannot be opened, or is a link.
    pub fn output(&self) -> Result<Output, HandlerError> {
        let open = |path: &str| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = File::open(&self.root)?;
            Ok(openat2(&root, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)?)
        };
        let open = |path: &str| open(path).map_err(HandlerError::folder(self.at(path), "cannot be opened"));
        Ok(Output { out: open("out")?, data: open("out/data")?, events: open("out/events")? })
    }
}

/// The three folders of `out/`, held open.
#[derive(Debug)]
pub struct Output {
    out: OwnedFd,
    data: OwnedFd,
    events: OwnedFd,
}

impl Output {
    /// The file at a clean path below `out/data`, through links that stay inside.
    ///
    /// # Errors
    /// When the system fails.
    pub fn data(&self, path: &str) -> io::Result<Left> {
        open(self.data.as_fd(), OsStr::new(path), ResolveFlags::BENEATH)
    }

    /// A file of `out/events`.
    ///
    /// # Errors
    /// When the system fails.
    pub fn event(&self, name: &str) -> io::Result<Left> {
        open(self.events.as_fd(), OsStr::new(name), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
    }

    /// `out/insights.json`.
    ///
    /// # Errors
    /// When the system fails.
    pub fn insights(&self) -> io::Result<Left> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        open(self.out.as_fd(), OsStr::new("insights.json"), resolve)
    }

    /// The names of event files, sorted. Drafts are none, as on the mount.
    ///
    /// # Errors
    /// When the folder cannot be read, or a name in it is not UTF-8.
    pub fn event_names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.events)? {
            let entry = entry?;
            let name = entry.file_name();
            // An event is told from others by its name, in documents that hold UTF-8 only.
            let name = name.to_str().map_err(|_| {
                let shown = OsStr::from_bytes(name.to_bytes()).display();
                io::Error::new(io::ErrorKind::InvalidData, format!("the name {shown} is not UTF-8"))
            })?;
            if !is_draft(name) {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

/// Opens a regular file, and nothing else: a pipe would never end.
fn open(folder: BorrowedFd<'_>, path: &OsStr, resolve: ResolveFlags) -> io::Result<Left> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    use rustix::io::Errno;
    let opened = match openat2(folder, path, flags, Mode::empty(), resolve) {
        Ok(opened) => File::from(opened),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Left::Missing),
        Err(Errno::XDEV) => return Ok(Left::Other("a link that leads out of its folder".into())),
        Err(Errno::LOOP) => return Ok(Left::Other("a symbolic link".into())),
        // A socket.
        Err(Errno::NXIO) => return Ok(Left::Other("no regular file".into())),
        Err(Errno::NOSYS) => {
            let reason = "this kernel cannot open files without following links out (openat2, Linux 5.6)";
            return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
        }
        Err(error) => return Err(error.into()),
    };
    let kind = opened.metadata()?.file_type();
    Ok(match (kind.is_file(), kind.is_dir()) {
        (true, _) => Left::File(opened),
        (_, true) => Left::Other("a directory; name its files".into()),
        _ => Left::Other("no regular file".into()),
    })
}

/// All bytes of a small file; none if there are more than `most`.
pub(crate) fn read_within(file: &File, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut content = Vec::new();
    file.take(most + 1).read_to_end(&mut content)?;
    Ok((content.len() as u64 <= most).then_some(content))
}

/// A file that must be new: no link that stands in its place is followed.
pub(crate) fn new_file(path: &Path) -> io::Result<File> {
    File::options().write(true).create_new(true).mode(0o644).open(path)
}

/// Removes a file or link, if there is one.
fn remove(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(_) => Ok(()),
    }
}

/// Makes an empty folder of whatever is at `path`. A folder that is there stays: it may be a mount.
fn empty(path: &Path) -> io::Result<()> {
    if std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir()) {
        for entry in std::fs::read_dir(path)? {
            remove(&entry?.path())?;
        }
        return Ok(());
    }
    remove(path)?;
    std::fs::create_dir(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::new(place.path().join("ion"));
        folder.reset().unwrap();
        (place, folder)
    }

    #[test]
    fn what_a_module_left_is_gone_and_what_its_links_point_at_is_not() {
        let (place, folder) = folder();
        let theirs = place.path().join("theirs");
        std::fs::create_dir(&theirs).unwrap();
        std::fs::write(theirs.join("f"), "kept").unwrap();
        symlink(&theirs, folder.at("out/data/link")).unwrap();
        std::fs::remove_dir(folder.at("out/events")).unwrap();
        symlink(&theirs, folder.at("out/events")).unwrap();
        std::fs::create_dir_all(folder.at("in/data/deep/er")).unwrap();
        std::fs::write(folder.at("out/insights.json"), "[]").unwrap();
        folder.reset().unwrap();
        assert_eq!(std::fs::read_to_string(theirs.join("f")).unwrap(), "kept");
        assert_eq!(std::fs::read_dir(folder.at("in/data")).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(folder.at("out/data")).unwrap().count(), 0);
        assert!(std::fs::symlink_metadata(folder.at("out/events")).unwrap().is_dir());
        assert_eq!(std::fs::read(folder.at("out/insights.json")).unwrap(), b"");
        std::fs::remove_dir_all(folder.at("out")).unwrap();
        symlink(&theirs, folder.at("out")).unwrap();
        assert!(folder.reset().is_err() && folder.output().is_err());
    }

    #[test]
    fn a_link_out_a_pipe_and_a_directory_are_no_files() {
        let (_place, folder) = folder();
        std::fs::write(folder.at("out/data/f"), "f").unwrap();
        symlink("f", folder.at("out/data/inside")).unwrap();
        symlink("/etc/passwd", folder.at("out/data/absolute")).unwrap();
        symlink("../insights.json", folder.at("out/data/up")).unwrap();
        std::fs::create_dir(folder.at("out/data/folder")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            folder.at("out/data/pipe"),
            rustix::fs::FileType::Fifo,
            Mode::RUSR,
            0,
        )
        .unwrap();
        symlink("../data/f", folder.at("out/events/e.json")).unwrap();
        let output = folder.output().unwrap();
        assert!(matches!(output.data("f"), Ok(Left::File(_))));
        assert!(matches!(output.data("inside"), Ok(Left::File(_))));
        assert!(matches!(output.data("nothing"), Ok(Left::Missing)));
        for name in ["absolute", "up", "folder", "pipe"] {
            assert!(matches!(output.data(name), Ok(Left::Other(_))), "{name}");
        }
        assert!(matches!(output.event("e.json"), Ok(Left::Other(_))));
        std::fs::write(folder.at("out/events/b"), "").unwrap();
        std::fs::write(folder.at("out/events/.draft"), "").unwrap();
        assert_eq!(output.event_names().unwrap(), ["b", "e.json"]);
    }
}
