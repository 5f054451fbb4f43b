//! The files that a job leaves in `out/data`, for people who try a module and want to see what it
//! made.
//!
//! The job's tree is mounted once more, for this process alone, and walked like any folder.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ion_fs::job::JobTree;
use ion_fs::mount::{Visitors, mount_at};

/// The most names that are kept to be shown.
const NAMES_MAX: usize = 10_000;

/// Collects the files that one job leaves, and copies them if asked.
#[derive(Debug, Default)]
pub struct OutputCollector {
    /// The folder for copies; none: the files are only listed.
    to: Option<PathBuf>,
    found: Mutex<CollectedOutput>,
}

/// The files found in `out/data`.
#[derive(Clone, Debug, Default)]
pub struct CollectedOutput {
    /// Their names and sizes in bytes, ordered by name; at most 10,000 of them.
    pub files: Vec<(String, u64)>,
    /// How many files there are.
    pub count: usize,
    /// The bytes of all files.
    pub bytes: u64,
    /// Why the files could not be listed or copied.
    pub failed: Option<String>,
}

impl OutputCollector {
    /// Returns a collector that copies below `to`, a folder that is empty or missing.
    pub fn new(to: Option<PathBuf>) -> Self {
        Self { to, found: Mutex::default() }
    }

    /// Returns what was found.
    pub fn found(&self) -> CollectedOutput {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lists (and copies) what a job left in its tree. The job's programs must have ended. The tree
    /// is mounted at `at` meanwhile.
    pub(super) async fn collect(&self, tree: &JobTree, at: &Path) {
        let mut found = CollectedOutput::default();
        let looked = async {
            tokio::fs::create_dir_all(at).await?;
            let mounted = mount_at(at, tree.tree(), Visitors::Owner).await?;
            let (data, to) = (at.join("out/data"), self.to.clone());
            let walked = tokio::task::spawn_blocking(move || {
                let mut found = CollectedOutput::default();
                let walked = collect_files(&data, to.as_deref(), &mut found);
                (found, walked)
            });
            let walked = walked.await.map_err(io::Error::other);
            // What was found is not lost if the mount stays.
            let removed = async {
                mounted.unmount().await?;
                tokio::fs::remove_dir(at).await
            };
            if let Err(error) = removed.await {
                tracing::warn!(at = %at.display(), %error, "a job's tree is still mounted");
            }
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

fn collect_files(data: &Path, to: Option<&Path>, found: &mut CollectedOutput) -> io::Result<()> {
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        if let Some(to) = to {
            std::fs::create_dir_all(to.join(&folder))?;
        }
        let mut names: Vec<_> = std::fs::read_dir(data.join(&folder))?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<_>>()?;
        names.sort_unstable();
        // `folders` is a stack: the last folder pushed is the next one walked.
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

/// Copies a file or a symbolic link. Other kinds (a pipe, a socket) have no content to copy.
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
