//! The inbox of a writable mount: what is put into the folder of a type becomes an event of this
//! type, and leaves the inbox.
//!
//! # How it works
//! What lies directly in the folder of a type is a [delivery](super::delivery). A file is published
//! when its last descriptor is closed, or when it is renamed from a draft's name; a folder is
//! published by the rename. The names and the content are those of a job's output, and so are the
//! uploads. The event is a first event, made and committed as `ion event create` does.
//!
//! A published file is listed no more, and its bytes are given back. For [`LOOKED_UP_FOR`] its name
//! still leads to it, as a reference to the blob: many programs set times and permissions by the
//! name after they have closed a file.
//!
//! # What it never does
//! Publish what a writer has not closed itself: the content of a writer that was killed, or that
//! nobody can see from here, waits for a rename.

mod publishing;
mod records;
mod refusal;

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use ion_model::errors::error_chain;
use ion_model::event::is_event_type;
use ion_plane::commit::{RefusalErrno, Rejection};
use ion_plane::node::Node as Daemon;
use ion_stores::StoreError;
use ion_stores::registry::Registry;
use rustix::fs::Mode;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use self::records::DeliveryRecords;
pub(crate) use self::records::{DeliveryReceipt, NewestRecords};
use self::refusal::DeliveryRefusal;
use super::super::{Attr, Errno, FileKind, Ino, Result};
use super::closed::ClosedFiles;
use super::content::{StagedContent, WritersLeft};
use super::delivery::CloseDecision;
use super::handle::StagedHandle;
use super::names::StagedNames;
use super::staging::StagingArea;
use super::table::{DeliveryPlace, DirectoryNames, NodeBody, OUT};
use super::tasks::JobTasks;
use super::uploads::StagedUploads;
use super::users::DescriptorClose;

/// How long the name of a published file leads to it. Programs that set times and permissions do so
/// within seconds; a longer time keeps an inode of the staging disk for each file.
const LOOKED_UP_FOR: Duration = Duration::from_secs(60);

/// The most published files whose names still lead to them. The oldest go first.
const LOOKED_UP_MAX: usize = 1000;

/// The most files that are decided at the same time because their last descriptor is gone.
const DECIDERS_MAX: usize = 16;

/// The beginning of the types of events that Ion itself creates.
const OWN_TYPES: &str = "ion.";

/// The deliveries of one inbox.
#[derive(Debug)]
pub(super) struct InboxDeliveries {
    staging: Arc<StagingArea>,
    names: StagedNames,
    content: Arc<StagedContent>,
    uploads: Arc<StagedUploads>,
    daemon: Arc<Daemon>,
    tasks: JobTasks,
    records: DeliveryRecords,
    /// Files of which the last descriptor is gone.
    closed: Arc<ClosedFiles<ClosedDelivery>>,
    /// The decisions that are being made or waited for.
    deciding: TaskTracker,
    published: Mutex<PublishedFiles>,
    myself: Weak<Self>,
}

/// Whether processes have something of a mount open after its unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountUsers {
    /// None has.
    Gone,
    /// Some may have.
    Left,
}

/// A file of which the last descriptor is gone.
#[derive(Debug)]
struct ClosedDelivery {
    ino: Ino,
    _deciding: TaskTrackerToken,
}

/// Published files whose names still lead to them, the oldest first.
#[derive(Debug, Default)]
struct PublishedFiles {
    files: VecDeque<(Instant, Ino)>,
    /// Whether a task removes them in time.
    has_sweeper: bool,
}

impl InboxDeliveries {
    pub(super) fn new(
        staging: Arc<StagingArea>,
        content: Arc<StagedContent>,
        uploads: Arc<StagedUploads>,
        daemon: Arc<Daemon>,
        tasks: JobTasks,
    ) -> Arc<Self> {
        let names = StagedNames::new(staging.clone());
        Arc::new_cyclic(|myself| Self {
            staging,
            names,
            content,
            uploads,
            daemon,
            tasks,
            records: DeliveryRecords::default(),
            closed: ClosedFiles::new(DECIDERS_MAX),
            deciding: TaskTracker::new(),
            published: Mutex::default(),
            myself: myself.clone(),
        })
    }

    /// Calls `read` with the receipts.
    pub(super) fn with_receipts<T>(
        &self,
        read: impl FnOnce(&NewestRecords<DeliveryReceipt>) -> T,
    ) -> T {
        read(&self.records.receipts())
    }

    /// Calls `read` with the rejections.
    pub(super) fn with_rejections<T>(
        &self,
        read: impl FnOnce(&NewestRecords<Rejection>) -> T,
    ) -> T {
        read(&self.records.rejections())
    }

    // ---- types ----

    /// Returns the types that modules take, but Ion's own.
    async fn taken_types(&self) -> std::result::Result<Vec<String>, StoreError> {
        let registry = Registry::read(&self.daemon.plane.documents).await?;
        let types = registry.event_types().into_iter();
        Ok(types.filter(|name| !name.starts_with(OWN_TYPES)).map(str::to_owned).collect())
    }

    /// Makes the folders of all types that modules take.
    pub(super) async fn make_type_folders(&self) -> Result<()> {
        let taken = self.taken_types().await.map_err(|error| unlisted_types(&error))?;
        for event_type in taken.iter().filter(|name| is_event_type(name)) {
            self.make_type_folder(event_type)?;
        }
        Ok(())
    }

    /// Returns the folder of a type; none if no module takes events of it. A type that nobody takes
    /// is recorded as refused.
    pub(super) async fn find_type_folder(&self, name: &OsStr) -> Result<Option<Attr>> {
        if let Some(attr) = self.names.lookup(OUT, name)? {
            return Ok(Some(attr));
        }
        let Some(event_type) = name.to_str().filter(|name| is_event_type(name)) else {
            return Ok(None);
        };
        let taken = self.taken_types().await.map_err(|error| unlisted_types(&error))?;
        match check_type(event_type, taken) {
            Ok(()) => self.make_type_folder(event_type).map(Some),
            Err(refusal) => {
                let rejection =
                    Rejection { errno: RefusalErrno::NoEntry, ..refusal.record(event_type) };
                self.records.add_rejection("", rejection);
                Ok(None)
            }
        }
    }

    fn make_type_folder(&self, event_type: &str) -> Result<Attr> {
        let name = OsStr::new(event_type);
        let mut table = self.staging.lock();
        if let Some(ino) = table.child(OUT, name)? {
            return self.staging.attr(&table, ino);
        }
        let folder = self.staging.folder_for_new(&table, OUT, name)?;
        let mode = Mode::from_raw_mode(0o755);
        self.staging.limits().remember_no_room(folder.make_folder(name, mode))?;
        folder.pin(name)?.set_mode(mode)?;
        let ino = table.add(OUT, name, NodeBody::Directory(DirectoryNames::default()))?;
        self.staging.attr(&table, ino)
    }

    /// Notes that something may not be made under a name, so that the reason can be read.
    pub(super) async fn note_misplaced(&self, parent: Ino, name: &OsStr, kind: FileKind) {
        let event_type = self.staging.lock().type_of_folder(parent);
        let refusal = match (&event_type, kind) {
            (Some(_), FileKind::Directory) => DeliveryRefusal::Folder,
            (Some(_), _) => DeliveryRefusal::Kind,
            (None, _) if parent == OUT => {
                let taken = self.taken_types().await.unwrap_or_default();
                DeliveryRefusal::NoType { taken }
            }
            // Deeper, the plain errno says all.
            (None, _) => return,
        };
        self.note_refusal(event_type.as_deref().unwrap_or_default(), name, &refusal);
    }

    /// Records a refusal. Returns the errno for the caller.
    fn note_refusal(&self, event_type: &str, name: &OsStr, refusal: &DeliveryRefusal) -> Errno {
        self.daemon.metrics.refusals.add(1);
        let rejection = refusal.record(&name.to_string_lossy());
        let (errno, reason) = (rejection.errno.name(), &rejection.reason);
        tracing::warn!(
            event_type,
            name = rejection.name,
            errno,
            reason,
            "something in the inbox was refused"
        );
        self.records.add_rejection(event_type, rejection);
        refusal.errno().number()
    }

    // ---- closes ----

    /// Handles FLUSH: a thread closed a descriptor of a file. Returns what close() is to return.
    pub(super) async fn close(&self, staged: &StagedHandle, thread: u32) -> Result<()> {
        let _deciding = self.deciding.token();
        let (ino, Some(users)) = (staged.ino(), staged.users()) else { return Ok(()) };
        if !self.has_content_to_decide(ino) {
            return self.decide(ino, None).await;
        }
        match users.judge_close(thread, ino) {
            DescriptorClose::OneOfSeveral => Ok(()),
            DescriptorClose::Last => self.decide(ino, None).await,
            DescriptorClose::Failed(failure) => {
                self.decide(ino, Some(DeliveryRefusal::Writer(failure))).await
            }
        }
    }

    /// Returns whether a file is a delivery, is no draft, and has content. Only then it matters who
    /// closes it.
    fn has_content_to_decide(&self, ino: Ino) -> bool {
        let table = self.staging.lock();
        let is_event = |place: DeliveryPlace| place.event_name().is_some();
        table.delivery_place(ino).is_some_and(is_event)
            && self.staging.attr(&table, ino).is_ok_and(|attr| attr.size > 0)
    }

    /// Decides a file in the background, because the last descriptor of a handle is gone.
    pub(super) fn decide_in_background(self: &Arc<Self>, staged: &StagedHandle) {
        // Without a close that was judged, nobody knows how the writers ended.
        if staged.users().is_none_or(|users| users.failure().is_some()) {
            return;
        }
        self.closed.add(ClosedDelivery { ino: staged.ino(), _deciding: self.deciding.token() });
        let this = self.clone();
        self.closed.start_workers(&self.tasks, move |file: ClosedDelivery| {
            let this = this.clone();
            async move {
                // No caller receives the errno; the rejection is recorded.
                let _ = this.decide_released(file.ino).await;
            }
        });
    }

    /// Decides a file that nobody has open for writing.
    async fn decide_released(&self, ino: Ino) -> Result<()> {
        match self.content.wait_for_writers(ino, Duration::ZERO).await {
            WritersLeft::None => self.decide(ino, None).await,
            // The close of that writer decides.
            WritersLeft::Some | WritersLeft::NoFile => Ok(()),
        }
    }

    /// Publishes a file, or refuses it for this reason, unless nothing is new since the last time.
    async fn decide(&self, ino: Ino, refused: Option<DeliveryRefusal>) -> Result<()> {
        let Some(deciding) = self.staging.lock().delivery(ino).map(|one| one.deciding.clone())
        else {
            return Ok(());
        };
        let _one_decision = deciding.lock().await;
        let (place, generation) = {
            let mut table = self.staging.lock();
            let Some(place) = table.delivery_place(ino) else { return Ok(()) };
            if place.event_name().is_none() {
                return Ok(());
            }
            let generation = table.file(ino)?.generation;
            let size = self.staging.attr(&table, ino)?.size;
            let Some(delivery) = table.delivery_mut(ino) else { return Ok(()) };
            match delivery.decide_close(generation, size) {
                CloseDecision::Answer(answer) => return answer,
                CloseDecision::Publish => (place, generation),
            }
        };
        let name = place.event_name().unwrap_or_default();
        let published = match refused {
            Some(refusal) => Err(refusal),
            None => self.publish(ino, &place.event_type, name).await,
        };
        match published {
            Ok(files) => {
                self.leave(ino, files.first());
                Ok(())
            }
            Err(refusal) => {
                let errno = self.note_refusal(&place.event_type, &place.name, &refusal);
                if let Some(delivery) = self.staging.lock().delivery_mut(ino) {
                    delivery.note_refusal(Some(generation), errno);
                }
                Err(errno)
            }
        }
    }

    /// Ends the inbox, after the mount is gone. Waits for the decisions that are being made. If no
    /// process has anything open any more, decides what the kernel did not report as closed before
    /// the mount went. Returns the paths of what is left and is lost now.
    pub(super) async fn finish(&self, users: MountUsers) -> Vec<String> {
        self.deciding.close();
        self.deciding.wait().await;
        if users == MountUsers::Gone {
            let deliveries = self.staging.lock().delivery_inodes();
            for ino in deliveries {
                if let Ok(file) = self.staging.lock().file_mut(ino) {
                    file.writers.clear();
                }
                // A refusal is recorded by `decide` itself.
                let _ = self.decide_released(ino).await;
            }
        }
        let table = self.staging.lock();
        let deliveries = table.delivery_inodes().into_iter();
        let left = deliveries.filter(|ino| !table.has_left(*ino));
        let mut left: Vec<String> =
            left.filter_map(|ino| Some(table.path(ino)?.display().to_string())).collect();
        left.sort_unstable();
        left
    }
}

/// Checks that a type is among those that modules take.
fn check_type(event_type: &str, taken: Vec<String>) -> std::result::Result<(), DeliveryRefusal> {
    if event_type.starts_with(OWN_TYPES) {
        return Err(DeliveryRefusal::OwnType);
    }
    match taken.iter().any(|one| one == event_type) {
        true => Ok(()),
        false => Err(DeliveryRefusal::NotTaken { event_type: event_type.to_owned(), taken }),
    }
}

/// Returns the errno of a store that did not answer which types modules take.
fn unlisted_types(error: &StoreError) -> Errno {
    tracing::error!(error = error_chain(error), "the types of the inbox cannot be listed");
    Errno::IO
}
