//! The paths by which an event names staged files.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use ion_plane::commit::{DirectoryContent, Refusal};

use crate::output::staging::StagingArea;
use crate::output::table::{DATA, NodeBody, OutputTable};
use crate::{Errno, Ino};

/// The most symbolic links followed in one path: the kernel's own limit.
const LINKS_MAX: usize = 40;

/// The folder below which an event names files.
#[derive(Clone, Copy, Debug)]
pub(super) struct NamedFolder {
    pub(super) ino: Ino,
    /// What people call it.
    pub(super) words: &'static str,
}

/// The folder below which a job's events name files.
pub(super) const OUT_DATA: NamedFolder = NamedFolder { ino: DATA, words: "out/data" };

/// Returns the inode of a file at a path below a folder. Follows symbolic links that stay inside.
pub(super) fn resolve_file(
    staging: &StagingArea,
    folder: NamedFolder,
    path: &str,
) -> Result<Ino, Refusal> {
    let table = staging.lock();
    let at = resolve(staging, &table, folder, path)?;
    match table.file(at) {
        Ok(_) => Ok(at),
        Err(Errno::ISDIR) => Err(Refusal::Invalid(format!(
            "{path:?} is a directory; name its files, or {:?} for all of them",
            format!("{path}/")
        ))),
        Err(_) => {
            Err(Refusal::Invalid(format!("{path:?} is a pipe or a socket; it has no content")))
        }
    }
}

/// Like [`resolve_file`], for an inode of any kind.
fn resolve(
    staging: &StagingArea,
    table: &OutputTable,
    folder: NamedFolder,
    path: &str,
) -> Result<Ino, Refusal> {
    let NamedFolder { ino: root, words } = folder;
    let missing = || Refusal::Missing(path.to_owned());
    let mut todo: Vec<OsString> = path.split('/').rev().map(OsString::from).collect();
    let mut at = root;
    let mut links = 0;
    while let Some(part) = todo.pop() {
        if part == "." || part.is_empty() {
            continue;
        }
        if part == ".." {
            if at == root {
                return Err(Refusal::Invalid(format!("{path:?} leads out of {words}")));
            }
            at = table.place(at).map_or(root, |(parent, _)| parent);
            continue;
        }
        let child = table.child(at, &part).ok().flatten().ok_or_else(missing)?;
        let Ok(node) = table.node(child) else { return Err(missing()) };
        if !matches!(node.body, NodeBody::Symlink) {
            at = child;
            continue;
        }
        links += 1;
        let target = staging.pin(table, child).and_then(|link| link.link_target());
        let target = target.map_err(|_| missing())?;
        if links > LINKS_MAX || target.starts_with(b"/") {
            return Err(Refusal::Invalid(format!("{path:?} leads out of {words}")));
        }
        let parts = target.split(|byte| *byte == b'/');
        todo.extend(parts.rev().map(|part| OsStr::from_bytes(part).to_owned()));
    }
    Ok(at)
}

/// Returns what is below a directory, sorted; none if `path` is not a directory.
pub(super) fn directory_content(
    staging: &StagingArea,
    folder: NamedFolder,
    path: &str,
) -> Result<Option<DirectoryContent>, Refusal> {
    let table = staging.lock();
    let top = resolve(staging, &table, folder, path)?;
    if table.directory(top).is_err() {
        return Ok(None);
    }
    let mut below = DirectoryContent::default();
    let mut todo = vec![(path.to_owned(), top)];
    while let Some((path, ino)) = todo.pop() {
        let Ok(directory) = table.directory(ino) else {
            below.files.push(path);
            if below.files.len() as u64 > staging.limits().job_limits().event_files {
                // The event will be refused: the rest of a large tree need not be walked.
                break;
            }
            continue;
        };
        let mut entries: Vec<_> = directory.iter().collect();
        if entries.is_empty() {
            if ino != folder.ino {
                check_name(staging, &path)?;
                below.empty.push(path);
            }
            continue;
        }
        // The first name goes last onto the stack, so that it is taken first. A retried job
        // names the same files in the same order.
        entries.sort_unstable_by(|a, b| b.0.cmp(a.0));
        for (name, child) in entries {
            let Some(name) = name.to_str() else {
                let shown = Path::new(&path).join(&**name);
                return Err(Refusal::Invalid(format!(
                    "{shown:?} is not UTF-8, and names in an event are; rename it"
                )));
            };
            let above = if path.is_empty() { String::new() } else { format!("{path}/") };
            todo.push((format!("{above}{name}"), child));
        }
    }
    Ok(Some(below))
}

/// Returns a refusal if an event may not name this path.
pub(super) fn check_name(staging: &StagingArea, path: &str) -> Result<(), Refusal> {
    staging
        .limits()
        .job_limits()
        .check_path(path)
        .map_err(|error| Refusal::TooLong(error.to_string()))
}
