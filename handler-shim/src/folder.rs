//! The folder a module works in: `in/` and `out/` below `HANDLER_BASE_DIR`.
//!
//! What a module leaves there is not trusted: its commit runs elsewhere, with the stores'
//! credentials and other files at hand. So nothing is read through a link that leads out of
//! `out/data`, and nothing is removed through a link at all.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ion_model::event::is_draft;
use ion_model::id::{EventId, JobId};
use ion_plane::commit::Below;
use ion_system::beneath;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::HandlerError;

/// Where `prepare` notes for `commit` which attempt this is: neither in `in/` nor in `out/`, which
/// are the module's.
const NOTE: &str = ".ion-handler.json";

/// Bytes of that note. Ours have some hundred; what a module puts there may have any number.
const NOTE_BYTES_MAX: u64 = 64 << 10;

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
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// The folder itself, opened, however often others rename what is in it.
    fn opened(&self) -> io::Result<beneath::Folder> {
        // Its own path is the operator's, links in it too.
        Ok(beneath::Folder::open(&self.root.canonicalize()?)?)
    }

    /// Makes it as a module expects it: `in/data`, `out/data` and `out/events` empty, no values, no
    /// insights.
    ///
    /// # Errors
    /// When something cannot be made or removed, or a link stands in the way.
    pub fn reset(&self) -> Result<(), HandlerError> {
        self.parts()?.empty(self)
    }

    /// Opens `in` and `out`, making them if they are not there.
    fn parts(&self) -> Result<Parts, HandlerError> {
        let open = |name: &str| -> io::Result<beneath::Folder> {
            std::fs::create_dir_all(&self.root)?;
            // What is behind a link might be anybody's.
            open_or_make(&self.opened()?, OsStr::new(name))
        };
        let open =
            |name: &str| open(name).map_err(HandlerError::folder(self.at(name), "cannot be made"));
        Ok(Parts { input: open("in")?, output: open("out")? })
    }

    /// Writes a small file that is not there yet, in `in` or `out`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &str, content: &[u8]) -> Result<(), HandlerError> {
        let write = || self.new_file(Path::new(path))?.write_all(content);
        write().map_err(HandlerError::folder(self.at(path), "cannot be written"))
    }

    /// A file that must be new, at a clean path; the folders above it are made. No link is
    /// followed, wherever it stands.
    pub(crate) fn new_file(&self, path: &Path) -> io::Result<File> {
        let (above, name) = split(path)?;
        let mut folder = self.opened()?;
        for part in above.iter() {
            folder = open_or_make(&folder, part)?;
        }
        new_file(&folder, name)
    }

    /// Folders at a clean path, made where they are not there.
    pub(crate) fn make_folders(&self, path: &Path) -> io::Result<()> {
        let mut folder = self.opened()?;
        for part in path.iter() {
            folder = open_or_make(&folder, part)?;
        }
        Ok(())
    }

    /// A file that [`Folder::new_file`] made, to be written to.
    pub(crate) fn made_file(&self, path: &Path) -> io::Result<File> {
        let (above, name) = split(path)?;
        let file = self.opened()?.below(above)?.open_file(
            name,
            OFlags::WRONLY | OFlags::NONBLOCK,
            Mode::empty(),
        )?;
        let metadata = file.metadata()?;
        // A file with another name may be anybody's.
        match metadata.is_file() && metadata.nlink() == 1 {
            true => Ok(file),
            false => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "something else stands in its place",
            )),
        }
    }

    /// What is at a path of `in`, opened: never through a link.
    ///
    /// # Errors
    /// When the system fails.
    pub(crate) fn input(&self, path: &str) -> io::Result<Left> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        open(self.opened()?.as_fd(), &Path::new("in").join(path), resolve)
    }

    /// Notes which attempt the folder is for. Durable before the ledger is told: whoever finds the
    /// attempt in the ledger after a crash finds it here too.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note(&self, note: &Note) -> Result<(), HandlerError> {
        let (name, draft) = (OsStr::new(NOTE), format!("{NOTE}.tmp"));
        let write = || -> io::Result<()> {
            std::fs::create_dir_all(&self.root)?;
            let folder = self.opened()?;
            folder.remove_all(OsStr::new(&draft))?;
            let mut file = new_file(&folder, OsStr::new(&draft))?;
            file.write_all(&serde_json::to_vec(note)?)?;
            file.sync_all()?;
            Ok(folder.rename(OsStr::new(&draft), &folder, name)?)
        };
        write().map_err(HandlerError::folder(self.at(NOTE), "cannot be written"))
    }

    /// The attempt that was noted; none if there is no note, or none that can be read. The module
    /// may have put anything in its place.
    pub fn noted(&self) -> Option<Note> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let Ok(Left::File(file)) = open(self.opened().ok()?.as_fd(), Path::new(NOTE), resolve)
        else {
            return None;
        };
        serde_json::from_slice(&read_within(&file, NOTE_BYTES_MAX).ok()??).ok()
    }

    /// What the module left in `out/`, opened.
    ///
    /// # Errors
    /// When a folder of it cannot be opened, or is a link.
    pub fn output(&self) -> Result<Output, HandlerError> {
        let open = |path: &str| -> io::Result<_> { Ok(self.opened()?.below(Path::new(path))?) };
        let open = |path: &str| {
            open(path).map_err(HandlerError::folder(self.at(path), "cannot be opened"))
        };
        Ok(Output { out: open("out")?, data: open("out/data")?, events: open("out/events")? })
    }
}

/// `in` and `out`, held open: what is done in them is done in these two folders, whatever stands in
/// their places by then.
struct Parts {
    input: beneath::Folder,
    output: beneath::Folder,
}

impl Parts {
    fn empty(&self, folder: &Folder) -> Result<(), HandlerError> {
        for (part, name, path) in [
            (&self.input, "data", "in/data"),
            (&self.output, "data", "out/data"),
            (&self.output, "events", "out/events"),
        ] {
            empty(part, OsStr::new(name))
                .map_err(HandlerError::folder(folder.at(path), "cannot be emptied"))?;
        }
        for (part, name, path) in [
            (&self.input, "eventmeta.json", "in/eventmeta.json"),
            (&self.input, "event.json", "in/event.json"),
            (&self.output, "insights.json", "out/insights.json"),
        ] {
            let removed = part.remove_all(OsStr::new(name)).map_err(io::Error::from);
            removed.map_err(HandlerError::folder(folder.at(path), "cannot be removed"))?;
        }
        // Older modules open it without creating it.
        let made = new_file(&self.output, OsStr::new("insights.json")).map(drop);
        made.map_err(HandlerError::folder(folder.at("out/insights.json"), "cannot be written"))
    }
}

/// The three folders of `out/`, held open.
#[derive(Debug)]
pub struct Output {
    out: beneath::Folder,
    data: beneath::Folder,
    events: beneath::Folder,
}

impl Output {
    /// The file at a clean path below `out/data`, through links that stay inside.
    ///
    /// # Errors
    /// When the system fails.
    pub fn data(&self, path: &str) -> io::Result<Left> {
        open(self.data.as_fd(), Path::new(path), ResolveFlags::BENEATH)
    }

    /// What is below a directory of `out/data`, sorted, but not much more than so many files; none
    /// if no directory is there.
    ///
    /// # Errors
    /// When the system fails, or a name is not UTF-8.
    pub fn below(&self, path: &str, files_max: u64) -> io::Result<Option<Below>> {
        match self.data.below(Path::new(path)) {
            Ok(_) => {}
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let mut below = Below::default();
        let mut todo = vec![path.to_owned()];
        while let Some(path) = todo.pop() {
            let folder = self.data.below(Path::new(&path))?;
            let names = folder.names()?;
            if names.is_empty() {
                below.empty.push(path.clone());
            }
            for name in names {
                let inside = format!("{path}/{}", utf8(&name)?);
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

    /// A file of `out/events`.
    ///
    /// # Errors
    /// When the system fails.
    pub fn event(&self, name: &str) -> io::Result<Left> {
        open(
            self.events.as_fd(),
            Path::new(name),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        )
    }

    /// `out/insights.json`.
    ///
    /// # Errors
    /// When the system fails.
    pub fn insights(&self) -> io::Result<Left> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        open(self.out.as_fd(), Path::new("insights.json"), resolve)
    }

    /// The names of event files, sorted. Drafts are none, as on the mount, but for those that may
    /// be meant as events.
    ///
    /// # Errors
    /// When the folder cannot be read, or a name in it is not UTF-8.
    pub fn event_names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for name in self.events.names()? {
            // An event is told from others by its name, in documents that hold UTF-8 only.
            let name = utf8(&name)?;
            if !is_draft(name) {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

/// The name as an event can hold it.
pub(crate) fn utf8(name: &OsStr) -> io::Result<&str> {
    name.to_str().ok_or_else(|| {
        let reason =
            format!("the name {name:?} is not UTF-8, and names in an event are; rename it");
        io::Error::new(io::ErrorKind::InvalidData, reason)
    })
}

/// Opens a regular file, and nothing else: a pipe would never end.
fn open(folder: BorrowedFd<'_>, path: &Path, resolve: ResolveFlags) -> io::Result<Left> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = match openat2(folder, path, flags, Mode::empty(), resolve) {
        Ok(opened) => File::from(opened),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Left::Missing),
        Err(Errno::XDEV) => return Ok(Left::Other("a link that leads out of its folder".into())),
        Err(Errno::LOOP) => return Ok(Left::Other("a symbolic link".into())),
        // A socket.
        Err(Errno::NXIO) => return Ok(Left::Other("no regular file".into())),
        Err(Errno::NOSYS) => {
            let reason =
                "this kernel cannot open files without following links out (openat2, Linux 5.6)";
            return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
        }
        Err(error) => return Err(error.into()),
    };
    let kind = opened.metadata()?.file_type();
    Ok(match (kind.is_file(), kind.is_dir()) {
        (true, _) => Left::File(opened),
        (_, true) => Left::Other(
            "a directory; name its files, or it with a slash at its end for all of them".into(),
        ),
        _ => Left::Other("no regular file".into()),
    })
}

/// All bytes of a small file; none if there are more than `most`.
pub(crate) fn read_within(file: &File, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut content = Vec::new();
    file.take(most + 1).read_to_end(&mut content)?;
    Ok((content.len() as u64 <= most).then_some(content))
}

/// The folder and the name of a clean path.
fn split(path: &Path) -> io::Result<(&Path, &OsStr)> {
    let wrong = || io::Error::from(io::ErrorKind::InvalidInput);
    Ok((path.parent().ok_or_else(wrong)?, path.file_name().ok_or_else(wrong)?))
}

/// A file that must be new: no link that stands in its place is followed.
fn new_file(folder: &beneath::Folder, name: &OsStr) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    Ok(folder.open_file(name, flags, Mode::from_raw_mode(0o644))?)
}

/// A folder in another one, made if it is not there. A link in its place is refused.
fn open_or_make(above: &beneath::Folder, name: &OsStr) -> io::Result<beneath::Folder> {
    match above.make_folder(name, Mode::from_raw_mode(0o777)) {
        Ok(()) | Err(Errno::EXIST) => Ok(above.folder(name)?),
        Err(error) => Err(error.into()),
    }
}

/// Makes an empty folder of whatever has this name. A folder that is there stays: it may be a
/// mount.
fn empty(above: &beneath::Folder, name: &OsStr) -> io::Result<()> {
    match above.folder(name) {
        Ok(folder) => return Ok(folder.remove_content()?),
        Err(Errno::NOENT) => {}
        // A file, or a link.
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
    fn a_folder_that_is_swapped_for_a_link_before_it_is_emptied_harms_nobody() {
        let (place, folder) = folder();
        let theirs = place.path().join("theirs");
        std::fs::create_dir_all(theirs.join("data")).unwrap();
        for name in ["data/f", "insights.json", "eventmeta.json"] {
            std::fs::write(theirs.join(name), "kept").unwrap();
        }
        std::fs::write(folder.at("out/data/f"), "removed").unwrap();
        let parts = folder.parts().unwrap();
        // Between the look and the act.
        for part in ["in", "out"] {
            std::fs::rename(folder.at(part), folder.at(format!("{part}-before"))).unwrap();
            symlink(&theirs, folder.at(part)).unwrap();
        }
        parts.empty(&folder).unwrap();
        for name in ["data/f", "insights.json", "eventmeta.json"] {
            assert_eq!(std::fs::read_to_string(theirs.join(name)).unwrap(), "kept", "{name}");
        }
        assert!(!theirs.join("events").exists());
        assert_eq!(std::fs::read_dir(folder.at("out-before/data")).unwrap().count(), 0);
        // What is done later finds the links, and refuses.
        assert!(folder.reset().is_err() && folder.write("in/event.json", b"{}").is_err());
        assert!(folder.new_file(Path::new("in/data/g")).is_err());
        assert!(!theirs.join("event.json").exists() && !theirs.join("data/g").exists());
    }

    /// The same while another process swaps a folder and a link as fast as it can.
    #[test]
    fn no_moment_is_right_for_a_swap() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let (place, folder) = folder();
        let theirs = place.path().join("theirs");
        std::fs::create_dir_all(theirs.join("deep")).unwrap();
        std::fs::write(theirs.join("deep/f"), "kept").unwrap();
        symlink(&theirs, folder.at("link")).unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let (one, other) = (folder.at("out/data"), folder.at("link"));
                    let how = rustix::fs::RenameFlags::EXCHANGE;
                    // Either may be gone for a moment.
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
        let note =
            Note { event_id: EventId::new("e"), job_id: JobId::new("j"), holder: "h".into() };
        folder.note(&note).unwrap();
        assert_eq!(folder.noted().as_ref(), Some(&note));
        let replace = |with: &dyn Fn(&Path)| {
            std::fs::remove_file(folder.at(NOTE)).unwrap();
            with(&folder.at(NOTE));
            assert_eq!(folder.noted(), None);
        };
        let elsewhere = place.path().join("note");
        std::fs::write(&elsewhere, serde_json::to_vec(&note).unwrap()).unwrap();
        replace(&|path| symlink(&elsewhere, path).unwrap());
        replace(&|path| symlink("/dev/zero", path).unwrap());
        replace(&|path| {
            let fifo = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, path, fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        });
        // Larger than any note, and no disk has to hold it.
        replace(&|path| File::create(path).unwrap().set_len(1 << 40).unwrap());
        // What stands there is replaced, not followed.
        folder.note(&note).unwrap();
        assert_eq!(folder.noted(), Some(note));
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

    #[test]
    fn what_is_below_a_directory_is_found_and_links_are_left_as_names() {
        let (_place, folder) = folder();
        for empty in ["d/a/b", "d/c"] {
            std::fs::create_dir_all(folder.at("out/data").join(empty)).unwrap();
        }
        std::fs::write(folder.at("out/data/d/a/f"), "").unwrap();
        symlink("/etc", folder.at("out/data/d/l")).unwrap();
        let output = folder.output().unwrap();
        let below = output.below("d", 10).unwrap().unwrap();
        assert_eq!(
            (below.files, below.empty),
            (vec!["d/a/f".into(), "d/l".into()], vec!["d/a/b".into(), "d/c".into()])
        );
        assert!(
            output.below("d/a/f", 10).unwrap().is_none()
                && output.below("x", 10).unwrap().is_none()
        );
        assert!(output.below("d/l", 10).unwrap().is_none(), "a link is no folder");
        std::fs::write(folder.at("out/data/d").join(OsStr::from_bytes(b"\xff")), "").unwrap();
        assert!(output.below("d", 10).unwrap_err().to_string().contains("\\xFF"));
    }
}
