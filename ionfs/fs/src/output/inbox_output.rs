//! The operations on an inbox that concern several parts of the output.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use ion_model::limits::Limits;
use ion_plane::commit::Rejection;
use ion_plane::node::Node as Daemon;
use ion_system::beneath::Folder;
use rustix::fs::Mode;

use super::content::StagedContent;
use super::delivery::INBOX;
use super::inbox::{DeliveryReceipt, InboxDeliveries, MountUsers, NewestRecords};
use super::limits::StagingLimits;
use super::names::StagedNames;
use super::request::{NewOwner, RenameOver};
use super::staging::StagingArea;
use super::table::{OUT, OutputTable};
use super::tasks::JobTasks;
use super::uploads::{StagedUploads, UploadKeys};
use super::{Output, OutputPurpose};
use crate::reads::ReadLog;
use crate::{Attr, Errno, FileKind, Ino, Result};

impl Output {
    /// Makes an empty inbox, staged in a folder. Must be called inside a Tokio runtime.
    pub(crate) fn of_inbox(
        daemon: Arc<Daemon>,
        limits: Limits,
        directory: &Path,
        reads: ReadLog,
    ) -> io::Result<Arc<Self>> {
        let root = Folder::open_or_make(directory)?;
        root.pin_self()?.set_mode(Mode::from_raw_mode(0o755))?;
        let limits = StagingLimits::new(INBOX.to_owned(), limits);
        let staging = StagingArea::new(OutputTable::of_inbox(), root, limits);
        let tasks = JobTasks::new();
        let content = Arc::new(StagedContent::new(staging.clone(), daemon.clone(), reads));
        let uploads = StagedUploads::new(
            staging.clone(),
            content.clone(),
            daemon.clone(),
            tasks.clone(),
            UploadKeys::Inbox,
        );
        let inbox = InboxDeliveries::new(
            staging.clone(),
            content.clone(),
            uploads.clone(),
            daemon,
            tasks.clone(),
        );
        Ok(Arc::new(Self {
            names: StagedNames::new(staging.clone()),
            content,
            uploads,
            purpose: OutputPurpose::Inbox(inbox),
            staging,
            tasks,
            left: OnceLock::new(),
            has_state: false,
            failed: OnceLock::new(),
        }))
    }

    fn inbox(&self) -> Option<&Arc<InboxDeliveries>> {
        match &self.purpose {
            OutputPurpose::Inbox(inbox) => Some(inbox),
            OutputPurpose::Job(_) => None,
        }
    }

    /// Returns whether this is an inbox, and not the output of a job.
    pub(crate) fn is_inbox(&self) -> bool {
        self.inbox().is_some()
    }

    /// Returns the name of `out/` in the root of the mount.
    pub(crate) fn root_name(&self) -> &'static str {
        if self.is_inbox() { INBOX } else { "out" }
    }

    /// Returns whether an inode is the inbox itself, whose folders are those of the types that
    /// modules take.
    pub(crate) fn is_inbox_root(&self, ino: Ino) -> bool {
        ino == OUT && self.is_inbox()
    }

    /// Returns the folder of a type in an inbox; none if no module takes events of it.
    pub(crate) async fn find_type_folder(&self, name: &OsStr) -> Result<Option<Attr>> {
        match self.inbox() {
            Some(inbox) => inbox.find_type_folder(name).await,
            None => Ok(None),
        }
    }

    /// Makes the folders of all types that modules take, in an inbox.
    pub(crate) async fn make_type_folders(&self) -> Result<()> {
        match self.inbox() {
            Some(inbox) => inbox.make_type_folders().await,
            None => Ok(()),
        }
    }

    /// Makes a directory.
    pub(crate) fn mkdir(
        &self,
        parent: Ino,
        name: &OsStr,
        mode: u32,
        maker: NewOwner,
    ) -> Result<Attr> {
        let made = self.names.mkdir(parent, name, mode, maker);
        made.inspect_err(|errno| self.explain(*errno, parent, name, FileKind::Directory))
    }

    /// Records why something may not be made in an inbox.
    pub(crate) fn explain(&self, errno: Errno, parent: Ino, name: &OsStr, kind: FileKind) {
        if errno != Errno::ACCESS {
            return;
        }
        let Some(inbox) = self.inbox().cloned() else { return };
        let name = name.to_owned();
        self.tasks.spawn(async move { inbox.note_misplaced(parent, &name, kind).await });
    }

    /// Renames a file or folder of an inbox, which may publish it.
    pub(super) async fn rename_in_inbox(
        &self,
        inbox: &Arc<InboxDeliveries>,
        (parent, name): (Ino, &OsStr),
        (newparent, newname): (Ino, &OsStr),
        over: RenameOver,
    ) -> Result<()> {
        let ino = self.names.child(parent, name)?.ok_or(Errno::NOENT)?;
        let kind = {
            let table = self.staging.lock();
            table.check_change(ino)?;
            if table.is_fixed_folder(ino) {
                return Err(Errno::PERM);
            }
            table.node(ino)?.body.kind()
        };
        inbox.free_name(newparent, newname)?;
        let target = self.names.child(newparent, newname)?;
        if over == RenameOver::Nothing && target.is_some() {
            return Err(Errno::EXIST);
        }
        let rename = || {
            let orphans = self.names.rename(parent, name, newparent, newname, over)?;
            self.uploads.discard(orphans);
            Ok(())
        };
        let can_be_event = matches!(kind, FileKind::File | FileKind::Directory);
        if can_be_event && target != Some(ino) && inbox.publishes(newparent, newname) {
            return inbox.publish_as(ino, newparent, newname, rename).await;
        }
        rename().inspect_err(|errno| self.explain(*errno, newparent, newname, kind))
    }

    /// Makes a hard link in an inbox. One in the folder of a type is refused: nobody could tell
    /// when the file is whole.
    pub(super) async fn link_in_inbox(
        &self,
        inbox: &InboxDeliveries,
        ino: Ino,
        parent: Ino,
        name: &OsStr,
    ) -> Result<Attr> {
        let is_type_folder = self.staging.lock().is_type_folder(parent);
        if is_type_folder || parent == OUT {
            inbox.note_misplaced(parent, name, FileKind::Symlink).await;
            return Err(Errno::ACCESS);
        }
        self.names.link(ino, parent, name)
    }

    /// Calls `read` with the receipts of an inbox.
    pub(crate) fn with_delivery_receipts<T: Default>(
        &self,
        read: impl FnOnce(&NewestRecords<DeliveryReceipt>) -> T,
    ) -> T {
        self.inbox().map(|inbox| inbox.with_receipts(read)).unwrap_or_default()
    }

    /// Calls `read` with the rejections of an inbox.
    pub(crate) fn with_delivery_rejections<T: Default>(
        &self,
        read: impl FnOnce(&NewestRecords<Rejection>) -> T,
    ) -> T {
        self.inbox().map(|inbox| inbox.with_rejections(read)).unwrap_or_default()
    }

    /// Ends an inbox after its mount is gone: what was closed is published. Returns the paths
    /// of what is left, and is lost.
    pub(crate) async fn finish_inbox(&self, users: MountUsers) -> Vec<String> {
        let left = match self.inbox() {
            Some(inbox) => inbox.finish(users).await,
            None => vec![],
        };
        self.tasks.stop();
        self.uploads.finish().await;
        left
    }
}
