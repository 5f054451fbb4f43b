//! The folder that a module works in: `in/` and `out/` below `HANDLER_BASE_DIR`.
//!
//! The content that a module leaves there is not trusted: `commit` runs elsewhere, where it has the
//! stores' credentials and can read other files. So it reads nothing through a link that leads out
//! of `out/data`, and nothing is ever removed through a link.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ion_model::event::is_draft;
use ion_model::id::{EventId, JobId};
use ion_plane::commit::DirectoryContent;
use ion_system::beneath;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::HandlerError;

/// The name of the note in which `prepare` tells `commit` which attempt the folder is for. It is
/// neither in `in/` nor in `out/`, which belong to the module.
const NOTE: &str = ".ion-handler.json";

/// The most bytes of that note. The handler's own note has a few hundred bytes; a module may put a
/// file of any length in its place.
const NOTE_BYTES_MAX: u64 = 64 << 10;

/// The folder that a module works in.
#[derive(Clone, Debug)]
pub struct ModuleFolder {
    root: PathBuf,
}

/// The note in the folder: for which attempt the folder was filled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttemptNote {
    /// The event that the job works on.
    pub event_id: EventId,
    /// The job.
    pub job_id: JobId,
    /// The id under which the attempt is held: by one `prepare` and the `commit`s that follow it.
    pub holder: String,
}

/// The result of opening a path in the folder.
#[derive(Debug)]
pub enum OpenedPath {
    /// A regular file, opened for reading.
    File(File),
    /// Nothing has this name.
    Missing,
    /// Something other than a regular file; what it is, in words.
    Other(String),
}

impl ModuleFolder {
    /// Returns the folder at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Returns the full path of a path in the folder.
    pub fn full_path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// Opens the folder itself. It stays open while others rename what is in it.
    fn open_root(&self) -> io::Result<beneath::Folder> {
        // The operator chooses the path, so links in it are followed.
        Ok(beneath::Folder::open(&self.root.canonicalize()?)?)
    }

    /// Empties the folder as a module expects it: `in/data`, `out/data` and `out/events` are empty,
    /// and there are no values and no insights.
    ///
    /// # Errors
    /// Returns an error when a file or folder cannot be made or removed, or when a link is in its
    /// place.
    pub fn reset(&self) -> Result<(), HandlerError> {
        self.open_parts()?.empty(self)
    }

    /// Opens `in` and `out`, and makes them if they do not exist.
    fn open_parts(&self) -> Result<InOutFolders, HandlerError> {
        let open = |name: &str| -> io::Result<beneath::Folder> {
            std::fs::create_dir_all(&self.root)?;
            // A link is refused, because it might lead to files of others.
            open_or_make(&self.open_root()?, OsStr::new(name))
        };
        let open = |name: &str| {
            open(name).map_err(HandlerError::folder(self.full_path(name), "cannot be made"))
        };
        Ok(InOutFolders { input: open("in")?, output: open("out")? })
    }

    /// Writes a new small file in `in` or `out`.
    ///
    /// # Errors
    /// Returns an error when the file exists already or cannot be written.
    pub fn write(&self, path: &str, content: &[u8]) -> Result<(), HandlerError> {
        let write = || self.new_file(Path::new(path))?.write_all(content);
        write().map_err(HandlerError::folder(self.full_path(path), "cannot be written"))
    }

    /// Makes a new file at a clean path, and the folders above it. Follows no link anywhere in the
    /// path.
    pub(crate) fn new_file(&self, path: &Path) -> io::Result<File> {
        let (above, name) = split_path(path)?;
        let mut folder = self.open_root()?;
        for part in above.iter() {
            folder = open_or_make(&folder, part)?;
        }
        new_file(&folder, name)
    }

    /// Makes all folders of a clean path that do not exist.
    pub(crate) fn make_folders(&self, path: &Path) -> io::Result<()> {
        let mut folder = self.open_root()?;
        for part in path.iter() {
            folder = open_or_make(&folder, part)?;
        }
        Ok(())
    }

    /// Opens a file that [`ModuleFolder::new_file`] made, for writing.
    pub(crate) fn reopen_file(&self, path: &Path) -> io::Result<File> {
        let (above, name) = split_path(path)?;
        let file = self.open_root()?.open_below(above)?.open_file(
            name,
            OFlags::WRONLY | OFlags::NONBLOCK,
            Mode::empty(),
        )?;
        let metadata = file.metadata()?;
        // A file with a second name may belong to others.
        match metadata.is_file() && metadata.nlink() == 1 {
            true => Ok(file),
            false => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, "another file is in its place"))
            }
        }
    }

    /// Opens what is at a path in `in`. Never follows a link.
    ///
    /// # Errors
    /// Returns the system's error.
    pub(crate) fn open_input(&self, path: &str) -> io::Result<OpenedPath> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        open_regular(self.open_root()?.as_fd(), &Path::new("in").join(path), resolve)
    }

    /// Writes the note that says which attempt the folder is for. The note is durable before the
    /// ledger is written, so that an attempt that the ledger has after a crash is noted here too.
    ///
    /// # Errors
    /// Returns an error when the note cannot be written.
    pub fn write_note(&self, note: &AttemptNote) -> Result<(), HandlerError> {
        let (name, draft) = (OsStr::new(NOTE), format!("{NOTE}.tmp"));
        let write = || -> io::Result<()> {
            std::fs::create_dir_all(&self.root)?;
            let folder = self.open_root()?;
            folder.remove_all(OsStr::new(&draft))?;
            let mut file = new_file(&folder, OsStr::new(&draft))?;
            file.write_all(&serde_json::to_vec(note)?)?;
            file.sync_all()?;
            Ok(folder.rename(OsStr::new(&draft), &folder, name)?)
        };
        write().map_err(HandlerError::folder(self.full_path(NOTE), "cannot be written"))
    }

    /// Reads the note; `None` if there is no valid note. The module may have put anything in its
    /// place.
    pub fn read_note(&self) -> Option<AttemptNote> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let Ok(OpenedPath::File(file)) =
            open_regular(self.open_root().ok()?.as_fd(), Path::new(NOTE), resolve)
        else {
            return None;
        };
        serde_json::from_slice(&read_within(&file, NOTE_BYTES_MAX).ok()??).ok()
    }

    /// Opens the folders of `out/` in which the module left its output.
    ///
    /// # Errors
    /// Returns an error when one of the folders cannot be opened, or is a link.
    pub fn open_output(&self) -> Result<OutputFolders, HandlerError> {
        let open =
            |path: &str| -> io::Result<_> { Ok(self.open_root()?.open_below(Path::new(path))?) };
        let open = |path: &str| {
            open(path).map_err(HandlerError::folder(self.full_path(path), "cannot be opened"))
        };
        Ok(OutputFolders {
            out: open("out")?,
            data: open("out/data")?,
            events: open("out/events")?,
        })
    }
}

/// The folders `in` and `out`, held open: operations act on these two folders, even if others
/// replace their names meanwhile.
struct InOutFolders {
    input: beneath::Folder,
    output: beneath::Folder,
}

impl InOutFolders {
    fn empty(&self, folder: &ModuleFolder) -> Result<(), HandlerError> {
        for (part, name, path) in [
            (&self.input, "data", "in/data"),
            (&self.output, "data", "out/data"),
            (&self.output, "events", "out/events"),
        ] {
            empty_folder(part, OsStr::new(name))
                .map_err(HandlerError::folder(folder.full_path(path), "cannot be emptied"))?;
        }
        for (part, name, path) in [
            (&self.input, "eventmeta.json", "in/eventmeta.json"),
            (&self.input, "event.json", "in/event.json"),
            (&self.output, "insights.json", "out/insights.json"),
        ] {
            let removed = part.remove_all(OsStr::new(name)).map_err(io::Error::from);
            removed.map_err(HandlerError::folder(folder.full_path(path), "cannot be removed"))?;
        }
        // Older modules open `insights.json` without creating it.
        let made = new_file(&self.output, OsStr::new("insights.json")).map(drop);
        made.map_err(HandlerError::folder(
            folder.full_path("out/insights.json"),
            "cannot be written",
        ))
    }
}

/// The folders `out`, `out/data` and `out/events`, held open.
#[derive(Debug)]
pub struct OutputFolders {
    out: beneath::Folder,
    data: beneath::Folder,
    events: beneath::Folder,
}

impl OutputFolders {
    /// Opens the file at a clean path below `out/data`. Follows links that stay inside `out/data`.
    ///
    /// # Errors
    /// Returns the system's error.
    pub fn open_data(&self, path: &str) -> io::Result<OpenedPath> {
        open_regular(self.data.as_fd(), Path::new(path), ResolveFlags::BENEATH)
    }

    /// Lists what is below a directory of `out/data`, sorted; `None` if there is no such directory.
    /// Stops after the directory in which it has found more than `files_max` files in all.
    ///
    /// # Errors
    /// Returns the system's error, or an error when a name is not UTF-8.
    pub fn list_below(&self, path: &str, files_max: u64) -> io::Result<Option<DirectoryContent>> {
        match self.data.open_below(Path::new(path)) {
            Ok(_) => {}
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let mut below = DirectoryContent::default();
        let mut todo = vec![path.to_owned()];
        while let Some(path) = todo.pop() {
            let folder = self.data.open_below(Path::new(&path))?;
            let names = folder.names()?;
            if names.is_empty() {
                below.empty.push(path.clone());
            }
            for name in names {
                let inside = format!("{path}/{}", utf8_name(&name)?);
                let kind = FileType::from_raw_mode(folder.stat(&name)?.st_mode);
                if kind == FileType::Directory {
                    todo.push(inside)
                } else {
                    below.files.push(inside)
                }
            }
            if below.files.len() as u64 > files_max {
                break;
            }
        }
        below.files.sort_unstable();
        below.empty.sort_unstable();
        Ok(Some(below))
    }

    /// Opens a file of `out/events`. Follows no link.
    ///
    /// # Errors
    /// Returns the system's error.
    pub fn open_event(&self, name: &str) -> io::Result<OpenedPath> {
        open_regular(
            self.events.as_fd(),
            Path::new(name),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        )
    }

    /// Opens `out/insights.json`. Follows no link.
    ///
    /// # Errors
    /// Returns the system's error.
    pub fn open_insights(&self) -> io::Result<OpenedPath> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        open_regular(self.out.as_fd(), Path::new("insights.json"), resolve)
    }

    /// Returns the names of event files, sorted. Leaves out drafts, as the mount does, but not the
    /// [doubtful drafts](ion_model::event::is_doubtful_draft), which may be meant as events.
    ///
    /// # Errors
    /// Returns an error when the folder cannot be read, or a name in it is not UTF-8.
    pub fn list_event_names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for name in self.events.names()? {
            // The file's name identifies the event, in documents that hold only UTF-8.
            let name = utf8_name(&name)?;
            if !is_draft(name) {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

/// Returns a name as text, as an event can hold it.
///
/// # Errors
/// Returns an error when the name is not UTF-8.
pub(crate) fn utf8_name(name: &OsStr) -> io::Result<&str> {
    name.to_str().ok_or_else(|| {
        let reason =
            format!("the name {name:?} is not UTF-8, and names in an event are; rename it");
        io::Error::new(io::ErrorKind::InvalidData, reason)
    })
}

/// Opens a regular file for reading, and nothing else: a read of a pipe might never end.
fn open_regular(
    folder: BorrowedFd<'_>,
    path: &Path,
    resolve: ResolveFlags,
) -> io::Result<OpenedPath> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = match openat2(folder, path, flags, Mode::empty(), resolve) {
        Ok(opened) => File::from(opened),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(OpenedPath::Missing),
        Err(Errno::XDEV) => {
            return Ok(OpenedPath::Other("a link that leads out of its folder".into()));
        }
        Err(Errno::LOOP) => return Ok(OpenedPath::Other("a symbolic link".into())),
        // The path is a socket.
        Err(Errno::NXIO) => return Ok(OpenedPath::Other("no regular file".into())),
        Err(Errno::NOSYS) => {
            let reason =
                "this kernel is too old to read the folder safely: openat2 needs Linux 5.6";
            return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
        }
        Err(error) => return Err(error.into()),
    };
    let kind = opened.metadata()?.file_type();
    Ok(match (kind.is_file(), kind.is_dir()) {
        (true, _) => OpenedPath::File(opened),
        (_, true) => OpenedPath::Other(
            "a directory; name its files, or add a slash to its name for all of them".into(),
        ),
        _ => OpenedPath::Other("no regular file".into()),
    })
}

/// Reads all bytes of a small file; `None` if there are more than `most`.
pub(crate) fn read_within(file: &File, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut content = Vec::new();
    file.take(most + 1).read_to_end(&mut content)?;
    Ok((content.len() as u64 <= most).then_some(content))
}

/// Splits a clean path into its folder and its last name.
fn split_path(path: &Path) -> io::Result<(&Path, &OsStr)> {
    let wrong = || io::Error::from(io::ErrorKind::InvalidInput);
    Ok((path.parent().ok_or_else(wrong)?, path.file_name().ok_or_else(wrong)?))
}

/// Makes a new file. Follows no link that is in its place.
fn new_file(folder: &beneath::Folder, name: &OsStr) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    Ok(folder.open_file(name, flags, Mode::from_raw_mode(0o644))?)
}

/// Opens a folder in another one, and makes it if it does not exist. Refuses a link in its place.
fn open_or_make(above: &beneath::Folder, name: &OsStr) -> io::Result<beneath::Folder> {
    match above.make_folder(name, Mode::from_raw_mode(0o777)) {
        Ok(()) | Err(Errno::EXIST) => Ok(above.open_folder(name)?),
        Err(error) => Err(error.into()),
    }
}

/// Leaves an empty folder under this name. An existing folder is emptied and kept, because it may
/// be a mount; anything else is replaced.
fn empty_folder(above: &beneath::Folder, name: &OsStr) -> io::Result<()> {
    match above.open_folder(name) {
        Ok(folder) => return Ok(folder.remove_content()?),
        Err(Errno::NOENT) => {}
        // The name is a file or a link.
        Err(Errno::NOTDIR | Errno::LOOP) => above.remove_all(name)?,
        Err(error) => return Err(error.into()),
    }
    Ok(above.make_folder(name, Mode::from_raw_mode(0o777))?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::symlink;

    use super::*;

    fn folder() -> (tempfile::TempDir, ModuleFolder) {
        let place = tempfile::tempdir().unwrap();
        let folder = ModuleFolder::new(place.path().join("ion"));
        folder.reset().unwrap();
        (place, folder)
    }

    #[test]
    fn what_a_module_left_is_gone_and_what_its_links_point_at_is_not() {
        let (place, folder) = folder();
        let theirs = place.path().join("theirs");
        std::fs::create_dir(&theirs).unwrap();
        std::fs::write(theirs.join("f"), "kept").unwrap();
        symlink(&theirs, folder.full_path("out/data/link")).unwrap();
        std::fs::remove_dir(folder.full_path("out/events")).unwrap();
        symlink(&theirs, folder.full_path("out/events")).unwrap();
        std::fs::create_dir_all(folder.full_path("in/data/deep/er")).unwrap();
        std::fs::write(folder.full_path("out/insights.json"), "[]").unwrap();
        folder.reset().unwrap();
        assert_eq!(std::fs::read_to_string(theirs.join("f")).unwrap(), "kept");
        assert_eq!(std::fs::read_dir(folder.full_path("in/data")).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(folder.full_path("out/data")).unwrap().count(), 0);
        assert!(std::fs::symlink_metadata(folder.full_path("out/events")).unwrap().is_dir());
        assert_eq!(std::fs::read(folder.full_path("out/insights.json")).unwrap(), b"");
        std::fs::remove_dir_all(folder.full_path("out")).unwrap();
        symlink(&theirs, folder.full_path("out")).unwrap();
        assert!(folder.reset().is_err() && folder.open_output().is_err());
    }

    #[test]
    fn a_folder_that_is_swapped_for_a_link_before_it_is_emptied_harms_nobody() {
        let (place, folder) = folder();
        let theirs = place.path().join("theirs");
        std::fs::create_dir_all(theirs.join("data")).unwrap();
        for name in ["data/f", "insights.json", "eventmeta.json"] {
            std::fs::write(theirs.join(name), "kept").unwrap();
        }
        std::fs::write(folder.full_path("out/data/f"), "removed").unwrap();
        let parts = folder.open_parts().unwrap();
        // The swap comes between the check and the action.
        for part in ["in", "out"] {
            std::fs::rename(folder.full_path(part), folder.full_path(format!("{part}-before")))
                .unwrap();
            symlink(&theirs, folder.full_path(part)).unwrap();
        }
        parts.empty(&folder).unwrap();
        for name in ["data/f", "insights.json", "eventmeta.json"] {
            assert_eq!(std::fs::read_to_string(theirs.join(name)).unwrap(), "kept", "{name}");
        }
        assert!(!theirs.join("events").exists());
        assert_eq!(std::fs::read_dir(folder.full_path("out-before/data")).unwrap().count(), 0);
        // Later operations find the links and refuse them.
        assert!(folder.reset().is_err() && folder.write("in/event.json", b"{}").is_err());
        assert!(folder.new_file(Path::new("in/data/g")).is_err());
        assert!(!theirs.join("event.json").exists() && !theirs.join("data/g").exists());
    }

    /// Resets and fills the folder while a thread swaps a folder and a link as fast as it can.
    #[test]
    fn no_moment_is_right_for_a_swap() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let (place, folder) = folder();
        let theirs = place.path().join("theirs");
        std::fs::create_dir_all(theirs.join("deep")).unwrap();
        std::fs::write(theirs.join("deep/f"), "kept").unwrap();
        symlink(&theirs, folder.full_path("link")).unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let (one, other) = (folder.full_path("out/data"), folder.full_path("link"));
                    let how = rustix::fs::RenameFlags::EXCHANGE;
                    // One of the two may be missing for a moment.
                    let _ = rustix::fs::renameat_with(
                        rustix::fs::CWD,
                        &one,
                        rustix::fs::CWD,
                        &other,
                        how,
                    );
                    if !other.is_symlink() {
                        let _ = std::fs::remove_dir_all(&other);
                        let _ = symlink(&theirs, &other);
                    }
                }
            });
            for n in 0..200 {
                let _ = folder.reset();
                let _ = folder.new_file(Path::new(&format!("out/data/deep/{n}")));
            }
            over.store(true, Ordering::Relaxed);
        });
        let names: Vec<_> = std::fs::read_dir(theirs.join("deep"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, ["f"]);
        assert_eq!(std::fs::read_to_string(theirs.join("deep/f")).unwrap(), "kept");
    }

    #[test]
    fn a_note_is_a_small_file_or_none() {
        let (place, folder) = folder();
        let note = AttemptNote {
            event_id: EventId::new("e"),
            job_id: JobId::new("j"),
            holder: "h".into(),
        };
        folder.write_note(&note).unwrap();
        assert_eq!(folder.read_note().as_ref(), Some(&note));
        let replace = |with: &dyn Fn(&Path)| {
            std::fs::remove_file(folder.full_path(NOTE)).unwrap();
            with(&folder.full_path(NOTE));
            assert_eq!(folder.read_note(), None);
        };
        let elsewhere = place.path().join("note");
        std::fs::write(&elsewhere, serde_json::to_vec(&note).unwrap()).unwrap();
        replace(&|path| symlink(&elsewhere, path).unwrap());
        replace(&|path| symlink("/dev/zero", path).unwrap());
        replace(&|path| {
            let fifo = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, path, fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        });
        // This sparse file is larger than any note, and takes no room on the disk.
        replace(&|path| File::create(path).unwrap().set_len(1 << 40).unwrap());
        // The file in the note's place is replaced and not followed.
        folder.write_note(&note).unwrap();
        assert_eq!(folder.read_note(), Some(note));
    }

    #[test]
    fn a_link_out_a_pipe_and_a_directory_are_no_files() {
        let (_place, folder) = folder();
        std::fs::write(folder.full_path("out/data/f"), "f").unwrap();
        symlink("f", folder.full_path("out/data/inside")).unwrap();
        symlink("/etc/passwd", folder.full_path("out/data/absolute")).unwrap();
        symlink("../insights.json", folder.full_path("out/data/up")).unwrap();
        std::fs::create_dir(folder.full_path("out/data/folder")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            folder.full_path("out/data/pipe"),
            rustix::fs::FileType::Fifo,
            Mode::RUSR,
            0,
        )
        .unwrap();
        symlink("../data/f", folder.full_path("out/events/e.json")).unwrap();
        let output = folder.open_output().unwrap();
        assert!(matches!(output.open_data("f"), Ok(OpenedPath::File(_))));
        assert!(matches!(output.open_data("inside"), Ok(OpenedPath::File(_))));
        assert!(matches!(output.open_data("nothing"), Ok(OpenedPath::Missing)));
        for name in ["absolute", "up", "folder", "pipe"] {
            assert!(matches!(output.open_data(name), Ok(OpenedPath::Other(_))), "{name}");
        }
        assert!(matches!(output.open_event("e.json"), Ok(OpenedPath::Other(_))));
        std::fs::write(folder.full_path("out/events/b"), "").unwrap();
        std::fs::write(folder.full_path("out/events/.draft"), "").unwrap();
        assert_eq!(output.list_event_names().unwrap(), ["b", "e.json"]);
    }

    #[test]
    fn what_is_below_a_directory_is_found_and_links_are_left_as_names() {
        let (_place, folder) = folder();
        for empty in ["d/a/b", "d/c"] {
            std::fs::create_dir_all(folder.full_path("out/data").join(empty)).unwrap();
        }
        std::fs::write(folder.full_path("out/data/d/a/f"), "").unwrap();
        symlink("/etc", folder.full_path("out/data/d/l")).unwrap();
        let output = folder.open_output().unwrap();
        let below = output.list_below("d", 10).unwrap().unwrap();
        assert_eq!(
            (below.files, below.empty),
            (vec!["d/a/f".into(), "d/l".into()], vec!["d/a/b".into(), "d/c".into()])
        );
        assert!(
            output.list_below("d/a/f", 10).unwrap().is_none()
                && output.list_below("x", 10).unwrap().is_none()
        );
        assert!(output.list_below("d/l", 10).unwrap().is_none(), "a link is no folder");
        std::fs::write(folder.full_path("out/data/d").join(OsStr::from_bytes(b"\xff")), "")
            .unwrap();
        assert!(output.list_below("d", 10).unwrap_err().to_string().contains("\\xFF"));
    }
}
