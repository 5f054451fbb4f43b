//! The view and the output of one mount, under one root.
//!
//! The tree decides which of the two answers for an inode; [`Tree::part`] is the only place that
//! does. It takes and returns inodes by the numbers by which the kernel knows them.

mod files;
mod listing;
mod moves;

use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use ion_plane::node::Node as Daemon;
use ion_system::failpoint::delay;
use rustix::fs::StatVfs;
use tokio_util::task::TaskTracker;

pub(crate) use self::files::CopyEnd;
pub(crate) use self::listing::{ListedDirectory, ListedEntry, ListingDetail};
use super::answer::Answer;
use super::item::ViewItem;
use super::output::{NewOwner, OUT, Output, no_attribute};
use super::reads::{ReadFailure, ReadLog};
use super::view::View;
use super::walk::DirectoryWalks;
use super::{Attr, Errno, FOREVER, FileKind, Ino, LookupOutcome, ROOT, Result, is_staged};

/// One mounted tree: the view that is read and, for a job, the output that it writes.
#[derive(Debug)]
pub struct Tree {
    daemon: Arc<Daemon>,
    view: View,
    output: Option<Arc<Output>>,
    walks: Mutex<DirectoryWalks>,
    reads: ReadLog,
    /// The answers that are being made in tasks and that may change something.
    answers: TaskTracker,
}

/// The part of a tree that answers for an inode, and the inode's number there.
#[derive(Clone, Copy, Debug)]
enum TreePart<'tree> {
    Staged(&'tree Arc<Output>, Ino),
    View(Ino),
}

impl Tree {
    /// Makes a tree of a view and, for a job, of its output.
    pub(super) fn new(
        daemon: Arc<Daemon>,
        view: View,
        output: Option<Arc<Output>>,
        reads: ReadLog,
    ) -> Arc<Self> {
        let (walks, answers) = (Mutex::default(), TaskTracker::new());
        Arc::new(Self { daemon, view, output, walks, reads, answers })
    }

    /// Returns what counts the answers that are being made in tasks and that may change something.
    pub(crate) fn answers(&self) -> &TaskTracker {
        &self.answers
    }

    /// Waits until the kernel has all answers that may have changed something. Called when the
    /// mount is gone: a process must not get an error for what was done.
    pub(crate) async fn wait_for_answers(&self) {
        self.answers.close();
        self.answers.wait().await;
    }

    /// Returns the daemon that serves the tree.
    pub(crate) fn daemon(&self) -> &Arc<Daemon> {
        &self.daemon
    }

    /// Returns whether the tree is a module's, which writes its output there.
    pub(crate) fn is_of_job(&self) -> bool {
        self.output.as_ref().is_some_and(|output| !output.is_inbox())
    }

    /// Returns the span of the job's attempt; none if the tree is not a job's.
    pub(crate) fn job_span(&self) -> Option<&tracing::Span> {
        self.output.as_ref().and_then(|output| output.span())
    }

    /// Returns the most files that may be open at the same time.
    pub(crate) fn open_files_max(&self) -> u64 {
        self.output.as_ref().map_or(u64::MAX, |output| output.limits().open_files)
    }

    /// Returns the bytes that uploads have moved.
    pub(crate) fn bytes_moved(&self) -> u64 {
        self.output.as_ref().map_or(0, |output| output.bytes_moved())
    }

    /// Ends the waits of a job that is ended by force.
    pub(crate) fn stop(&self) {
        if let Some(output) = &self.output {
            output.stop();
        }
    }

    /// Awaits `work`. Returns EIO when the job is ended by force.
    pub(crate) async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        match &self.output {
            Some(output) => output.unless_stopped(work).await,
            None => work.await,
        }
    }

    // ---- routing ----

    /// Returns the part that answers for an inode. Returns EROFS for an inode below `out/` of a
    /// tree without an output.
    fn part(&self, ino: Ino) -> Result<TreePart<'_>> {
        let ino = self.current_inode(ino);
        if is_staged(ino) {
            Ok(TreePart::Staged(self.output()?, ino))
        } else {
            Ok(TreePart::View(ino))
        }
    }

    /// Returns the output for an operation that changes something at an inode, and the inode's
    /// number there. Returns EROFS outside `out/`.
    fn output_at(&self, ino: Ino) -> Result<(&Arc<Output>, Ino)> {
        match self.part(ino)? {
            TreePart::Staged(output, ino) => Ok((output, ino)),
            TreePart::View(_) => Err(Errno::ROFS),
        }
    }

    /// Returns the output, or EROFS if the tree has none.
    fn output(&self) -> Result<&Arc<Output>> {
        self.output.as_ref().ok_or(Errno::ROFS)
    }

    /// Returns the inode that the kernel means by this number now.
    fn current_inode(&self, ino: Ino) -> Ino {
        if is_staged(ino) { ino } else { self.view.current_inode(ino) }
    }

    /// Returns the attributes of a staged inode under the number by which the kernel knows it.
    fn with_kernel_number(&self, attr: Attr) -> Attr {
        match self.view.kernel_number_of(attr.ino) {
            Some(ino) if attr.shown_ino == attr.ino => Attr { ino, shown_ino: ino, ..attr },
            Some(ino) => Attr { ino, ..attr },
            None => attr,
        }
    }

    // ---- failed reads ----

    /// Records that a read of an inode failed. Returns the errno that the module receives.
    fn read_failed(&self, ino: Ino, failure: &ReadFailure) -> Errno {
        let path = match self.part(ino) {
            Ok(TreePart::Staged(output, ino)) => output.shown_path(ino),
            Ok(TreePart::View(_)) | Err(_) => self.view.path(ino),
        };
        self.reads.note(&path, failure)
    }

    /// Records that a read of an inode was not answered within its deadline. Returns EIO.
    pub(crate) fn read_unanswered(&self, ino: Ino) -> Errno {
        self.read_failed(ino, &ReadFailure::unanswered(None))
    }

    // ---- names ----

    /// Looks up a name.
    pub(crate) fn lookup(self: &Arc<Self>, parent: Ino, name: &OsStr) -> Answer<LookupOutcome> {
        let parent = match self.part(parent) {
            Ok(TreePart::Staged(output, parent)) if output.is_inbox_root(parent) => {
                let (output, name) = (output.clone(), name.to_owned());
                return Answer::later(async move { lookup_type(&output, &name).await });
            }
            Ok(TreePart::Staged(output, parent)) => {
                return Answer::Now(self.lookup_staged(output, parent, name));
            }
            Ok(TreePart::View(parent)) => parent,
            Err(error) => return Answer::Now(Err(error)),
        };
        let (tree, name) = (self.clone(), name.to_owned());
        Answer::later(async move { tree.lookup_in_view(parent, &name).await })
    }

    fn lookup_staged(&self, output: &Output, parent: Ino, name: &OsStr) -> Result<LookupOutcome> {
        Ok(match output.names.lookup(parent, name)? {
            Some(attr) => LookupOutcome::Found(self.with_kernel_number(attr)),
            // Zero: the kernel must not remember that the name does not exist.
            None => LookupOutcome::Missing(Duration::ZERO),
        })
    }

    async fn lookup_in_view(&self, parent: Ino, name: &OsStr) -> Result<LookupOutcome> {
        if let (ROOT, Some(output)) = (parent, &self.output)
            && name == output.root_name()
        {
            return output.content.getattr(OUT).map(LookupOutcome::Found);
        }
        match name.to_str() {
            Some(name) => self.view.lookup(parent, name).await,
            None => Ok(LookupOutcome::Missing(FOREVER)),
        }
    }

    /// Counts that the kernel receives these inodes in a listing. It knows each until it forgets
    /// it.
    pub(crate) fn remember_listed(&self, inodes: &[Ino]) {
        for ino in inodes {
            match &self.output {
                Some(output) if is_staged(*ino) => output.names.remember(*ino),
                _ => self.view.remember(*ino),
            }
        }
    }

    /// Counts that the kernel receives an inode as the answer to a request of its own. For the
    /// inodes of the view, the lookup has counted that already.
    pub(crate) fn remember_entry(&self, ino: Ino) {
        match &self.output {
            Some(output) if is_staged(ino) => output.names.remember(ino),
            // It was moved to `out/`, and the kernel knows it by its old number.
            Some(_) if is_staged(self.view.current_inode(ino)) => self.view.remember(ino),
            _ => {}
        }
    }

    /// Lowers the kernel's lookup count of an inode by `times`.
    pub(crate) fn forget(&self, ino: Ino, times: u64) {
        delay("forget");
        match &self.output {
            Some(output) if is_staged(ino) => output.forget(ino, times),
            output => {
                for staged in self.view.forget(ino, times) {
                    output.as_ref().inspect(|output| output.forget(staged, 1));
                }
            }
        }
    }

    /// Returns the target of a symbolic link.
    pub(crate) fn readlink(&self, ino: Ino) -> Result<Bytes> {
        match self.part(ino)? {
            TreePart::Staged(output, ino) => output.names.readlink(ino).map(Bytes::from),
            TreePart::View(ino) => match self.view.item(ino)? {
                ViewItem::Link(target, _) => Ok(Bytes::from(target)),
                _ => Err(Errno::INVAL),
            },
        }
    }

    /// Makes a regular file without opening it, a pipe or a socket.
    pub(crate) fn mknod(
        &self,
        parent: Ino,
        name: &OsStr,
        mode: u32,
        maker: NewOwner,
    ) -> Result<Attr> {
        let (output, parent) = self.output_at(parent)?;
        let made = output.names.mknod(parent, name, mode, maker);
        made.inspect_err(|errno| output.explain(*errno, parent, name, FileKind::File))
    }

    /// Makes a directory.
    pub(crate) fn mkdir(
        &self,
        parent: Ino,
        name: &OsStr,
        mode: u32,
        maker: NewOwner,
    ) -> Result<Attr> {
        let (output, parent) = self.output_at(parent)?;
        output.mkdir(parent, name, mode, maker)
    }

    /// Makes a symbolic link.
    pub(crate) fn symlink(
        &self,
        parent: Ino,
        name: &OsStr,
        target: &Path,
        maker: NewOwner,
    ) -> Result<Attr> {
        let (output, parent) = self.output_at(parent)?;
        let made = output.names.symlink(parent, name, target, maker);
        made.inspect_err(|errno| output.explain(*errno, parent, name, FileKind::Symlink))
    }

    /// Removes a name of a file or link.
    pub(crate) fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let (output, parent) = self.output_at(parent)?;
        output.unlink(parent, name)
    }

    /// Removes an empty directory.
    pub(crate) fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let (output, parent) = self.output_at(parent)?;
        output.names.rmdir(parent, name)
    }

    // ---- attributes ----

    /// Returns an inode's attributes.
    pub(crate) fn getattr(&self, ino: Ino) -> Result<Attr> {
        match self.part(ino)? {
            TreePart::Staged(output, ino) => {
                output.content.getattr(ino).map(|attr| self.with_kernel_number(attr))
            }
            TreePart::View(ino) => {
                let mut attr = self.view.getattr(ino)?;
                // The view's own link count does not include `out/`.
                attr.nlink += u32::from(ino == ROOT && self.output.is_some());
                Ok(attr)
            }
        }
    }

    /// Returns the value of an extended attribute.
    pub(crate) fn getxattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        match self.part(ino)? {
            TreePart::Staged(output, ino) => output.content.getxattr(ino, name),
            TreePart::View(_) => Err(no_attribute(name)),
        }
    }

    /// Sets an extended attribute.
    pub(crate) fn setxattr(&self, ino: Ino, name: &OsStr, value: &[u8], flags: i32) -> Result<()> {
        let (output, ino) = self.output_at(ino)?;
        output.content.setxattr(ino, name, value, flags)
    }

    /// Returns the names of the extended attributes, each with a zero byte at its end.
    pub(crate) fn listxattr(&self, ino: Ino) -> Result<Vec<u8>> {
        match self.part(ino)? {
            TreePart::Staged(output, ino) => output.content.listxattr(ino),
            TreePart::View(_) => Ok(Vec::new()),
        }
    }

    /// Removes an extended attribute.
    pub(crate) fn removexattr(&self, ino: Ino, name: &OsStr) -> Result<()> {
        let (output, ino) = self.output_at(ino)?;
        output.content.removexattr(ino, name)
    }

    /// Returns the space of the disk that files are written to; none if the tree is only read.
    pub(crate) fn statfs(&self) -> Result<Option<StatVfs>> {
        self.output.as_ref().map(|output| output.statfs()).transpose()
    }
}

/// Looks up the folder of a type in an inbox.
async fn lookup_type(output: &Output, name: &OsStr) -> Result<LookupOutcome> {
    Ok(match output.find_type_folder(name).await? {
        Some(attr) => LookupOutcome::Found(attr),
        // Zero: a module that takes events of this type may be registered at any time.
        None => LookupOutcome::Missing(Duration::ZERO),
    })
}
