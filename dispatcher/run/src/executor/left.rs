//! What a job has in `out/data` when it has ended: for people who try a module, and want to see
//! what it made.
//!
//! The job's tree is mounted once more, for this process alone, and gone through as any folder.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ion_fs::job::JobTree;
use ion_fs::mount::{Visitors, mount_at};

/// Names that are kept to be shown.
const NAMES_MAX: usize = 10_000;

/// What is looked for, and what was found.
#[derive(Debug, Default)]
pub struct LeftFiles {
    /// Where copies go; none: they are only listed.
    to: Option<PathBuf>,
    found: Mutex<Found>,
}

/// The files of `out/data`.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Their names and sizes in bytes, in the order of names; of very many the first.
    pub files: Vec<(String, u64)>,
    /// How many there are.
    pub count: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Why they could not be looked at or copied.
    pub failed: Option<String>,
}

impl LeftFiles {
    /// Copies go below `to`, a folder that is empty or not there.
    pub fn new(to: Option<PathBuf>) -> Self {
        Self { to, found: Mutex::default() }
    }

    /// What was found.
    pub fn found(&self) -> Found {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks at a job's tree, whose programs have ended; `at` is where it may be mounted meanwhile.
    pub(super) async fn look(&self, tree: &JobTree, at: &Path) {
        let mut found = Found::default();
        let looked = async {
            tokio::fs::create_dir_all(at).await?;
            let mounted = mount_at(at, tree.tree(), Visitors::Owner).await?;
            let (data, to) = (at.join("out/data"), self.to.clone());
            let walked = tokio::task::spawn_blocking(move || {
                let mut found = Found::default();
                let walked = walk(&data, to.as_deref(), &mut found);
                (found, walked)
            });
            let walked = walked.await.map_err(io::Error::other);
            mounted.unmount().await?;
            tokio::fs::remove_dir(at).await?;
            let (walked, outcome) = walked?;
            found = walked;
            outcome
        };
        if let Err(error) = looked.await {
            found.failed = Some(error.to_string());
        }
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = found;
    }
}

fn walk(data: &Path, to: Option<&Path>, found: &mut Found) -> io::Result<()> {
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        if let Some(to) = to {
            std::fs::create_dir_all(to.join(&folder))?;
        }
        let mut names: Vec<_> = std::fs::read_dir(data.join(&folder))?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<_>>()?;
        names.sort_unstable();
        // The last one is taken first.
        for name in names.into_iter().rev() {
            let name = folder.join(name);
            let from = data.join(&name);
            let metadata = from.symlink_metadata()?;
            if metadata.is_dir() {
                folders.push(name);
                continue;
            }
            if let Some(to) = to {
                copy(&from, &to.join(&name), &metadata)?;
            }
            if metadata.is_file() {
                found.count += 1;
                found.bytes += metadata.len();
                if found.files.len() < NAMES_MAX {
                    found.files.push((name.to_string_lossy().into_owned(), metadata.len()));
                }
            }
        }
    }
    found.files.sort_unstable();
    Ok(())
}

/// What is neither a file nor a link (a pipe, a socket) has nothing that could be copied.
fn copy(from: &Path, to: &Path, metadata: &std::fs::Metadata) -> io::Result<()> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", to.display()));
    if metadata.is_symlink() {
        return symlink(std::fs::read_link(from)?, to).map_err(named);
    }
    if metadata.is_file() {
        let mut copy = OpenOptions::new().write(true).create_new(true).open(to).map_err(named)?;
        io::copy(&mut File::open(from)?, &mut copy).map_err(named)?;
        copy.set_permissions(metadata.permissions()).map_err(named)?;
    }
    Ok(())
}
