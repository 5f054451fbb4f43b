//! What a module writes: `out/`, staged on a real local directory.
//!
//! # How it works
//! Four parts work on one staging area ([`staging`]): its table of names ([`table`]) is the truth,
//! and its folder holds content and attributes.
//!
//! - [`names`]: what the module makes, lists, renames and removes.
//! - [`content`]: what open files hold. A file that is copied, linked or moved from `in/data` is a
//!   [`mod@reference`]: a hole in the staging folder and the name of a blob, until the module writes to
//!   it.
//! - [`uploads`]: closed files become blobs in the background, and long ones while they are
//!   written. A commit waits only for what is not stored yet.
//! - [`events`]: files in `out/events` become events when they are closed. In the [`inbox`] of a
//!   writable mount, which is staged in the same way, all that is put there does.
//!
//! Names and content know neither each other nor the others. Uploads read content; events and the
//! inbox read content and commit what the uploads make durable, and the inbox removes what it has
//! published. An operation that concerns several parts is a method of [`Output`], which passes on
//! what one part reports to the next.
//!
//! # What it never does
//! Follow a symbolic link out of `out/data` (a link may point anywhere: only the module's own
//! processes go there); hold its lock across a wait; let an event file change after its commit.

mod closed;
mod content;
mod delivery;
mod events;
mod folders;
mod handle;
mod in_order;
mod inbox;
mod inbox_output;
mod limits;
mod names;
mod reference;
mod request;
mod staging;
mod state;
mod table;
mod tasks;
mod uploads;
mod users;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use ion_model::limits::Limits;
use ion_model::source::LeftState;
use ion_plane::commit::{Committer, Receipt, Rejection};
use ion_plane::node::Node as Daemon;
use ion_system::beneath::Folder;
use rustix::fs::{Mode, StatVfs};

use self::content::{AfterRelease, WriteEffect};
pub(crate) use self::content::{StagedContent, no_attribute};
use self::events::{EventBefore, EventFiles, event_name};
pub(crate) use self::handle::{CloseReport, StagedHandle};
use self::inbox::InboxDeliveries;
pub use self::inbox::MountUsers;
pub(crate) use self::inbox::{DeliveryReceipt, NewestRecords};
use self::limits::StagingLimits;
pub(crate) use self::names::StagedNames;
pub(crate) use self::request::{
    AttrChange, NewOwner, OpenRequest, RenameOver, SetIdBits, TimeChange,
};
pub use self::request::{TreeUsers, ValueFileNames};
use self::staging::StagingArea;
pub(crate) use self::state::OpenState;
use self::table::{DATA, EVENTS, FAILED_NAME, OutputTable, STATE};
pub(crate) use self::table::{DOT, DOT_DOT, OUT};
use self::tasks::JobTasks;
use self::uploads::{StagedUploads, UploadKeys};
use super::eventfile::DecisionTrigger;
use super::reads::ReadLog;
use super::{Attr, Errno, Ino, Result};

/// The name of the folder of a source's state, in `in/` and in `out/`.
pub(crate) const STATE_NAME: &str = "state";

/// What the files of an output are for.
#[derive(Debug)]
enum OutputPurpose {
    /// Those in `out/events` say what events an attempt publishes.
    Job(Arc<EventFiles>),
    /// All become events of the type in whose folder they lie.
    Inbox(Arc<InboxDeliveries>),
}

/// The output tree of one attempt, or the inbox of a writable mount.
#[derive(Debug)]
pub(crate) struct Output {
    /// What concerns names only.
    pub(crate) names: StagedNames,
    /// What concerns content and attributes only.
    pub(crate) content: Arc<StagedContent>,
    uploads: Arc<StagedUploads>,
    purpose: OutputPurpose,
    staging: Arc<StagingArea>,
    tasks: JobTasks,
    /// What the module left in `out/state`, once that was stored; unset for a job that has none.
    left: OnceLock<std::result::Result<LeftState, String>>,
    has_state: bool,
    /// Why the job has failed, as its module wrote it into `out/failed`; set at the end.
    failed: OnceLock<String>,
}

/// What an output is made from.
#[derive(Debug)]
pub(crate) struct OutputSpec<'path> {
    /// What commits the attempt's events.
    pub(crate) committer: Committer,
    /// The most that the job may use.
    pub(crate) limits: Limits,
    /// The names of the files that hold values.
    pub(crate) names: ValueFileNames,
    /// Which users the tree is for.
    pub(crate) users: TreeUsers,
    /// What `out/state` begins with; none for a job that has no state.
    pub(crate) state: Option<OpenState>,
    /// The staging folder, which must not exist yet.
    pub(crate) directory: &'path Path,
}

impl Output {
    /// Makes an empty tree. Failed reads are recorded in `reads`. Must be called inside a Tokio
    /// runtime.
    pub(super) fn new(
        daemon: Arc<Daemon>,
        spec: OutputSpec<'_>,
        reads: ReadLog,
    ) -> io::Result<Arc<Self>> {
        let OutputSpec { committer, limits, names, users, state, directory } = spec;
        let root = Folder::open_or_make(directory)?;
        let mut table = OutputTable::new(names);
        if state.is_some() {
            table.add_fixed_folder(STATE_NAME, STATE);
        }
        for part in ["data", "events"].into_iter().chain(state.as_ref().map(|_| STATE_NAME)) {
            root.make_folder(OsStr::new(part), Mode::from_raw_mode(0o755))?;
        }
        let origin = committer.origin().clone();
        let limits = StagingLimits::new(origin.job_id.to_string(), limits);
        let staging = StagingArea::new(table, root, limits);
        let tasks = JobTasks::new();
        let metrics = daemon.metrics.clone();
        let content = Arc::new(StagedContent::new(staging.clone(), daemon.clone(), reads));
        let keys = UploadKeys::of_attempt(&origin);
        let uploads =
            StagedUploads::new(staging.clone(), content.clone(), daemon, tasks.clone(), keys);
        let events = EventFiles::new(
            staging.clone(),
            content.clone(),
            uploads.clone(),
            committer,
            metrics,
            tasks.clone(),
        );
        let names = StagedNames::new(staging.clone());
        let (left, has_state, failed) = (OnceLock::new(), state.is_some(), OnceLock::new());
        let purpose = OutputPurpose::Job(events);
        let output =
            Self { names, content, uploads, purpose, staging, tasks, left, has_state, failed };
        output.make_first_files(users)?;
        if let Some(state) = state {
            output.make_state(&state, users)?;
        }
        Ok(Arc::new(output))
    }

    /// Makes what the module finds in `out/`.
    fn make_first_files(&self, users: TreeUsers) -> Result<()> {
        let insights_mode = match users {
            TreeUsers::Owner => 0o644,
            TreeUsers::AnyUser => {
                let table = self.staging.lock();
                let state = self.has_state.then_some(STATE);
                for ino in [OUT, DATA, EVENTS].into_iter().chain(state) {
                    self.staging.pin(&table, ino)?.set_mode(Mode::from_raw_mode(0o777))?;
                }
                0o666
            }
        };
        // Older modules open insights.json without creating it.
        let insights = self.staging.lock().insights();
        for name in insights {
            self.names.make_file(OUT, OsStr::new(name), insights_mode, NewOwner::daemon())?;
        }
        Ok(())
    }

    /// Returns what makes events of files in `out/events`; none in an inbox.
    fn events(&self) -> Option<&Arc<EventFiles>> {
        match &self.purpose {
            OutputPurpose::Job(events) => Some(events),
            OutputPurpose::Inbox(_) => None,
        }
    }

    /// Returns the attempt's span; none in an inbox.
    pub(crate) fn span(&self) -> Option<&tracing::Span> {
        self.events().map(|events| events.span())
    }

    /// Returns the limits on what the job may use.
    pub(crate) fn limits(&self) -> &Limits {
        self.staging.limits().job_limits()
    }

    /// Returns the staging limit that the job exceeded, in words. Exceeding it fails the job.
    pub(crate) fn exceeded(&self) -> Option<String> {
        self.staging.limits().exceeded()
    }

    /// Returns what the machine had no room for, in words.
    pub(crate) fn no_room(&self) -> Option<String> {
        self.staging.limits().no_room()
    }

    /// Returns the space of the staging disk.
    pub(crate) fn statfs(&self) -> Result<StatVfs> {
        self.staging.space()
    }

    /// Returns the path of an inode as seen from `ION_DIR`.
    pub(crate) fn shown_path(&self, ino: Ino) -> String {
        self.staging.shown_path(ino)
    }

    /// Returns the bytes of the files that were stored as blobs.
    pub(crate) fn bytes_stored(&self) -> u64 {
        self.uploads.bytes_stored()
    }

    /// Returns the bytes that uploads have moved.
    pub(crate) fn bytes_moved(&self) -> u64 {
        self.uploads.bytes_moved()
    }

    /// Returns the events committed so far, by file name.
    pub(crate) fn receipts(&self) -> BTreeMap<String, Receipt> {
        self.events().map(|events| events.receipts()).unwrap_or_default()
    }

    /// Returns the event files that were refused and not committed since, by name.
    pub(crate) fn rejections(&self) -> BTreeMap<String, Rejection> {
        self.events().map(|events| events.rejections()).unwrap_or_default()
    }

    /// Returns what the module left in `out/state`, or why that cannot be kept; none before the end,
    /// and for a job that has no state.
    pub(crate) fn left(&self) -> Option<&std::result::Result<LeftState, String>> {
        self.left.get()
    }

    /// Returns why the job has failed, as its module wrote it into `out/failed`; none before the end,
    /// and if there is no such file.
    pub(crate) fn failed_reason(&self) -> Option<String> {
        self.failed.get().cloned()
    }

    fn read_failed_reason(&self) -> Option<String> {
        let ino = self.names.child(OUT, OsStr::new(FAILED_NAME)).ok()??;
        Some(match self.staging.read_words(ino) {
            Ok(words) if words.is_empty() => "its module wrote no reason into out/failed".into(),
            Ok(words) => words,
            Err(error) => {
                format!("out/failed cannot be read: {}", std::io::Error::from(error))
            }
        })
    }

    /// Opens a file.
    pub(crate) fn open(&self, ino: Ino, how: OpenRequest) -> Result<Arc<StagedHandle>> {
        if let OutputPurpose::Inbox(inbox) = &self.purpose
            && how.may_change()
        {
            inbox.prepare_open(ino, how)?;
        }
        self.content.open(ino, how)
    }

    /// Makes a file, or opens the existing one, in one step.
    pub(crate) fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        mode: u32,
        maker: NewOwner,
        how: OpenRequest,
    ) -> Result<(Attr, Arc<StagedHandle>)> {
        if let OutputPurpose::Inbox(inbox) = &self.purpose {
            inbox.free_name(parent, name)?;
        }
        if let Some(ino) = self.names.child(parent, name)? {
            if how.needs_new_file() {
                return Err(Errno::EXIST);
            }
            let staged = self.content.open(ino, how)?;
            return Ok((self.content.getattr(ino)?, staged));
        }
        let mut table = self.staging.lock();
        let (ino, opened) = self.names.make_open_file(
            &mut table,
            parent,
            name,
            mode,
            maker,
            how.staging_flags(),
        )?;
        let staged = self.content.add_handle(&mut table, ino, opened, how.without_truncation())?;
        Ok((self.staging.attr(&table, ino)?, staged))
    }

    /// Removes a name of a file or link.
    pub(crate) fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let orphans = self.names.unlink(parent, name)?;
        self.uploads.discard(orphans);
        Ok(())
    }

    /// Lowers the kernel's lookup count of this inode by `times`.
    pub(crate) fn forget(&self, ino: Ino, times: u64) {
        let orphans = self.names.forget(ino, times);
        self.uploads.discard(orphans);
    }

    /// Renames a file. If the new name is an event's, commits first and then renames (rule 5). If
    /// the new name is `insights.json`, renames first and then keeps the content.
    pub(crate) async fn rename(
        &self,
        parent: Ino,
        name: &OsStr,
        newparent: Ino,
        newname: &OsStr,
        over: RenameOver,
    ) -> Result<()> {
        if let OutputPurpose::Inbox(inbox) = &self.purpose {
            return self.rename_in_inbox(inbox, (parent, name), (newparent, newname), over).await;
        }
        let rename = |over| {
            let orphans = self.names.rename(parent, name, newparent, newname, over)?;
            self.uploads.discard(orphans);
            Ok(())
        };
        if let Some(event_name) = event_name(newparent, newname)? {
            let ino = self.names.child(parent, name)?.ok_or(Errno::NOENT)?;
            let put_there = |before| match (before, over) {
                (EventBefore::Same, RenameOver::AllButEvents) => rename(RenameOver::AlsoSameEvent),
                _ => rename(over),
            };
            let Some(events) = self.events() else { return put_there(EventBefore::None) };
            return events.commit_as(ino, &event_name, put_there).await;
        }
        rename(over)?;
        match self.events() {
            Some(events) => events.decide_renamed_insights(newparent, newname).await,
            None => Ok(()),
        }
    }

    /// Makes a hard link. If the new name is an event's, commits first (rule 6).
    pub(crate) async fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Attr> {
        let event_name = event_name(parent, name)?;
        match (&self.purpose, event_name) {
            (OutputPurpose::Job(events), Some(event_name)) => {
                let put_there = |_| self.names.link(ino, parent, name).map(drop);
                events.commit_as(ino, &event_name, put_there).await?;
                self.content.getattr(ino)
            }
            (OutputPurpose::Inbox(inbox), _) => self.link_in_inbox(inbox, ino, parent, name).await,
            (OutputPurpose::Job(_), None) => self.names.link(ino, parent, name),
        }
    }

    /// Returns an error if a file may not be written, so that none of its blob's bytes need be
    /// fetched for it.
    pub(crate) fn check_write(&self, ino: Ino) -> Result<()> {
        self.staging.lock().check_change(ino)
    }

    /// Writes `data` at `offset`. A reference needs [`StagedContent::fill_range`] first.
    pub(crate) fn write(
        &self,
        staged: &StagedHandle,
        offset: u64,
        data: &[u8],
        set_id_bits: SetIdBits,
    ) -> Result<()> {
        match self.content.write(staged, offset, data, set_id_bits)? {
            WriteEffect::None => {}
            WriteEffect::BeginUpload => self.uploads.begin_early_upload(staged.ino()),
        }
        Ok(())
    }

    /// Handles FLUSH: a thread closed a descriptor of the file. Returns what close() is to return.
    pub(crate) async fn flush(&self, staged: &StagedHandle, thread: u32) -> Result<()> {
        staged.writer().note_flush();
        if !staged.writes() {
            return Ok(());
        }
        match &self.purpose {
            OutputPurpose::Job(events) => events.decide(staged.ino(), DecisionTrigger::Flush).await,
            OutputPurpose::Inbox(inbox) => inbox.close(staged, thread).await,
        }
    }

    /// Handles fsync: makes the file durable on the local disk. An event file commits as at FLUSH.
    /// A file in an inbox does not: its writer may go on.
    pub(crate) async fn fsync(&self, staged: &StagedHandle) -> Result<()> {
        self.content.sync(staged)?;
        match &self.purpose {
            OutputPurpose::Job(events) => events.decide(staged.ino(), DecisionTrigger::Flush).await,
            OutputPurpose::Inbox(_) => Ok(()),
        }
    }

    /// Handles RELEASE: the handle is gone. An event file whose content is final is decided, and a
    /// data file whose last writer is gone is stored, both in the background.
    pub(crate) fn release(&self, staged: &StagedHandle) {
        let effect = self.content.release(staged);
        self.uploads.discard(effect.orphans);
        match effect.next {
            AfterRelease::Nothing => {}
            AfterRelease::Decide => match &self.purpose {
                OutputPurpose::Job(events) => events.decide_in_background(staged.ino()),
                OutputPurpose::Inbox(inbox) => inbox.decide_in_background(staged),
            },
            AfterRelease::Store => self.uploads.store_in_background(staged.ino()),
        }
    }

    /// Decides every event file, and the insights, as if the module had ended. Returns a rejection
    /// for each file that cannot be decided because a process may still write to it.
    pub(crate) async fn decide_event_files(&self) -> Vec<Rejection> {
        match self.events() {
            Some(events) => events.decide_all().await,
            None => vec![],
        }
    }

    /// Ends the waits of a job that is ended by force: requests that wait for a store are answered
    /// now, and nothing is committed any more. A process whose request is not answered cannot die.
    pub(crate) fn stop(&self) {
        self.tasks.stop();
    }

    /// Awaits `work`. Returns EIO when the job is ended by force.
    pub(crate) async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.tasks.unless_stopped(work).await
    }

    /// Finishes the output after the module has ended: decides what is left, because its content is
    /// final now, and removes the blobs that no event names.
    pub(crate) async fn finish(&self) {
        if let Some(events) = self.events() {
            events.finish().await;
            if let Some(reason) = self.read_failed_reason() {
                let _ = self.failed.set(reason);
            }
        }
        if self.has_state && !self.tasks.are_stopped() {
            let left = self.seal_state().await;
            let _ = self.left.set(left);
        }
        // Ends the uploads that no event waits for.
        self.tasks.stop();
        self.uploads.finish().await;
    }
}
