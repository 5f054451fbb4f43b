//! How a delivery becomes an event, and what is left of it.

use std::ffi::OsStr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use ion_model::event::{Event, FileEntry, is_inbox_draft};
use ion_model::id::EventId;
use ion_plane::commit::{Receipt, Refusal, create_event, retry_while_stores_fail};
use ion_plane::first::FirstEvent;
use rustix::fs::{Mode, OFlags, Timestamps};
use tokio::time::Instant;

use super::records::DeliveryReceipt;
use super::refusal::DeliveryRefusal;
use super::{InboxDeliveries, LOOKED_UP_FOR, LOOKED_UP_MAX, check_type};
use crate::output::content::WritersLeft;
use crate::output::delivery::INBOX;
use crate::output::reference::Reference;
use crate::output::request::{OpenRequest, TimeChange};
use crate::output::uploads::DeliveredContent;
use crate::{Errno, FileKind, Ino, Result, errno};

/// How long a rename waits for the RELEASE of a file that is closed: the kernel sends it within a
/// millisecond of the close.
const CLOSE_WAIT: Duration = Duration::from_millis(200);

/// How many events with one delivery's ids may exist with other content, before its publication is
/// refused. Each is one whose answer was lost, after which the content was changed.
const DIFFERING_MAX: usize = 16;

/// An event that was published, and its files.
struct PublishedEvent {
    event: Event,
    files: Vec<FileEntry>,
}

impl InboxDeliveries {
    /// Returns whether a name that something in the inbox gets publishes it.
    pub(in crate::output) fn publishes(&self, newparent: Ino, newname: &OsStr) -> bool {
        let is_draft = newname.to_str().is_none_or(is_inbox_draft);
        !is_draft && self.staging.lock().is_type_folder(newparent)
    }

    /// Publishes what gets this name by a rename, then calls `put_there` to give a file the name. A
    /// file that a process has open for writing only gets the name: its close decides.
    pub(in crate::output) async fn publish_as(
        &self,
        ino: Ino,
        newparent: Ino,
        newname: &OsStr,
        put_there: impl Fn() -> Result<()>,
    ) -> Result<()> {
        let _deciding = self.deciding.token();
        let kind = self.staging.lock().node(ino)?.body.kind();
        let is_written = kind == FileKind::File
            && self.content.wait_for_writers(ino, CLOSE_WAIT).await == WritersLeft::Some;
        if is_written {
            return put_there();
        }
        let (deciding, event_type) = {
            let mut table = self.staging.lock();
            let event_type = table.type_of_folder(newparent).ok_or(Errno::STALE)?;
            (table.adopt_delivery(ino).deciding.clone(), event_type)
        };
        let _one_decision = deciding.lock().await;
        let published = self.publish_renamed(ino, &event_type, newname, put_there).await;
        // What was not published is as it was.
        self.staging.lock().update_delivery(ino);
        published
    }

    async fn publish_renamed(
        &self,
        ino: Ino,
        event_type: &str,
        newname: &OsStr,
        put_there: impl Fn() -> Result<()>,
    ) -> Result<()> {
        self.staging.lock().delivery_mut(ino).ok_or(Errno::NOENT)?.begin_publishing()?;
        let name = newname.to_str().unwrap_or_default();
        let published = self.publish(ino, event_type, name).await;
        let is_file = self.staging.lock().file(ino).is_ok();
        match published {
            Ok(files) if is_file => {
                if let Err(errno) = put_there() {
                    // It is an event all the same, and leaves from where it is.
                    let errno = errno.raw_os_error();
                    tracing::warn!(errno, name, "a published file did not get its name");
                }
                self.leave(ino, files.first());
                Ok(())
            }
            Ok(_) => {
                self.remove_folder(ino);
                Ok(())
            }
            Err(refusal) => {
                if let Some(delivery) = self.staging.lock().delivery_mut(ino) {
                    delivery.end_publishing();
                }
                Err(self.note_refusal(event_type, newname, &refusal))
            }
        }
    }

    /// Publishes a delivery in which nobody may change anything. Returns the files of its event.
    ///
    /// # Flow
    /// 1. The type is checked: a module must take it.
    /// 2. The files are made durable in the object store.
    /// 3. The event's document is inserted, and the event is published.
    ///
    /// # Guarantees
    /// As those of the commit of an event file: `Ok` means that the event will be published, `Err`
    /// that this call has published nothing. A repeated call finds the event of an earlier one
    /// whose answer was lost.
    pub(super) async fn publish(
        &self,
        ino: Ino,
        event_type: &str,
        name: &str,
    ) -> std::result::Result<Vec<FileEntry>, DeliveryRefusal> {
        let deadline = self.daemon.settings.commit_deadline;
        let types = || async { Ok(self.taken_types().await?) };
        let taken = retry_while_stores_fail(deadline, || 0, types).await?;
        check_type(event_type, taken)?;
        let work = || self.create(ino, event_type, name);
        let made = retry_while_stores_fail(deadline, || self.uploads.bytes_moved(), work).await;
        let PublishedEvent { event, files } = made?;
        self.daemon.metrics.commits.add(1);
        self.uploads.forget_named(&files);
        let receipt = Receipt {
            name: name.to_owned(),
            event_id: event.id.clone(),
            event_type: event_type.to_owned(),
            files: files.len(),
            bytes: files.iter().map(|file| file.size).sum(),
            at: event.created,
            published: true,
        };
        let correlation_id = event.context.correlation_id;
        tracing::info!(event = %event.id, event_type, name, "a delivery was published");
        self.records.add_receipt(event_type, DeliveryReceipt { receipt, correlation_id });
        Ok(files)
    }

    async fn create(
        &self,
        ino: Ino,
        event_type: &str,
        name: &str,
    ) -> std::result::Result<PublishedEvent, Refusal> {
        let missing = || Refusal::Missing(name.to_owned());
        let (prefix, correlation_id, is_file) = {
            let table = self.staging.lock();
            let delivery = table.delivery(ino).ok_or_else(missing)?;
            let prefix: Arc<str> = delivery.blob_prefix().into();
            (prefix, delivery.correlation().clone(), table.file(ino).is_ok())
        };
        let content = match is_file {
            true => self.uploads.store_delivered_file(ino, name, &prefix).await?,
            false => self.uploads.store_delivered_folder(ino, &prefix).await?,
        };
        let DeliveredContent { files, directories, values } = content;
        for _ in 0..DIFFERING_MAX {
            let first = FirstEvent {
                id: self.event_id(ino).ok_or_else(missing)?,
                correlation_id: correlation_id.clone(),
                name: INBOX.to_owned(),
                parent: String::new(),
                event_type: event_type.to_owned(),
                files: files.clone(),
                directories: directories.clone(),
                data: values.clone(),
            };
            let plane = &self.daemon.plane;
            let event = first.into_event(plane, &self.uploads.list_prefix(&prefix)).await?;
            match create_event(plane, event.clone()).await {
                Ok(()) => return Ok(PublishedEvent { event, files }),
                Err(Refusal::Differs(_)) => {
                    if let Some(delivery) = self.staging.lock().delivery_mut(ino) {
                        delivery.note_differing_event();
                    }
                }
                Err(refusal) => return Err(refusal),
            }
        }
        Err(Refusal::Stores("the event was created with other content again and again".into()))
    }

    fn event_id(&self, ino: Ino) -> Option<EventId> {
        self.staging.lock().delivery(ino).map(|delivery| delivery.event_id())
    }

    // ---- what is left ----

    /// Lets a published file leave the inbox: it becomes a reference to its blob, and is listed no
    /// more.
    pub(super) fn leave(&self, ino: Ino, entry: Option<&FileEntry>) {
        if let Some(entry) = entry
            && let Err(errno) = self.refer_to_blob(ino, entry)
        {
            // The file takes its room until it goes.
            tracing::warn!(errno = errno.raw_os_error(), "a published file keeps its bytes");
        }
        if let Some(delivery) = self.staging.lock().delivery_mut(ino) {
            delivery.note_published();
        }
        let now = Instant::now();
        let (gone, begins) = {
            let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
            published.files.push_back((now, ino));
            let excess = published.files.len().saturating_sub(LOOKED_UP_MAX);
            let gone: Vec<Ino> = published.files.drain(..excess).map(|(_, ino)| ino).collect();
            (gone, !std::mem::replace(&mut published.has_sweeper, true))
        };
        gone.into_iter().for_each(|ino| self.remove_published(ino));
        if begins {
            self.begin_sweeping();
        }
    }

    /// Gives the bytes of a published file back to the staging disk. The file has the same content
    /// and attributes as before.
    fn refer_to_blob(&self, ino: Ino, entry: &FileEntry) -> Result<()> {
        let mut table = self.staging.lock();
        let pinned = self.staging.pin(&table, ino)?;
        let stat = pinned.stat()?;
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        // An ordinary user cannot open a read-only file for writing.
        pinned.set_mode(mode | Mode::WUSR)?;
        let file = pinned.open(OFlags::WRONLY)?;
        let cut = file.set_len(0).and_then(|()| file.set_len(entry.size));
        cut.map_err(|error| errno(&error))?;
        let at = TimeChange::To(entry.modified()).timespec();
        pinned.set_times(&Timestamps { last_access: at, last_modification: at })?;
        pinned.set_mode(mode)?;
        let node = table.file_mut(ino)?;
        node.in_order = None;
        node.reference =
            (entry.size > 0).then(|| Reference::new(Arc::new(entry.clone()), entry.size));
        table.charge(ino, 0, u64::MAX);
        Ok(())
    }

    /// Removes published files once their time is over, in a task that ends when none is left.
    fn begin_sweeping(&self) {
        let (this, tasks) = (self.myself.clone(), self.tasks.clone());
        self.tasks.spawn(async move {
            let swept = async {
                while let Some(next) = this.upgrade().and_then(|this| this.sweep()) {
                    tokio::time::sleep_until(next).await;
                }
                Ok(())
            };
            let _ = tasks.unless_stopped(swept).await;
        });
    }

    /// Removes the published files whose time is over. Returns when the next one's is; none if none
    /// is left.
    fn sweep(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut gone = Vec::new();
        let next = {
            let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
            while let Some((since, ino)) = published.files.front().copied() {
                if since + LOOKED_UP_FOR > now {
                    break;
                }
                gone.push(ino);
                published.files.pop_front();
            }
            let next = published.files.front().map(|(since, _)| *since + LOOKED_UP_FOR);
            published.has_sweeper = next.is_some();
            next
        };
        gone.into_iter().for_each(|ino| self.remove_published(ino));
        next
    }

    /// Removes the name of a published file, if it still leads to what was published.
    pub(super) fn remove_published(&self, ino: Ino) {
        let place = {
            let table = self.staging.lock();
            if !table.has_left(ino) {
                return;
            }
            table.place(ino).map(|(parent, name)| (parent, name.clone()))
        };
        if let Some((parent, name)) = place
            && let Ok(orphans) = self.names.unlink(parent, &name)
        {
            self.uploads.discard(orphans);
        }
    }

    /// Removes a published folder with all that is in it.
    fn remove_folder(&self, ino: Ino) {
        let (below, place) = {
            let mut table = self.staging.lock();
            if let Some(delivery) = table.delivery_mut(ino) {
                delivery.note_published();
            }
            let place = table.place(ino).map(|(parent, name)| (parent, name.clone()));
            (table.below(ino), place)
        };
        let folder = place.map(|(parent, name)| (parent, ino, name));
        for (parent, child, name) in below.into_iter().rev().chain(folder) {
            let is_folder = self.staging.lock().directory(child).is_ok();
            let removed = match is_folder {
                true => self.names.rmdir(parent, &name),
                false => self.names.unlink(parent, &name).map(|gone| self.uploads.discard(gone)),
            };
            if let Err(errno) = removed {
                let errno = errno.raw_os_error();
                tracing::warn!(errno, "a part of a published folder keeps its room");
            }
        }
    }

    /// Prepares a file for being opened. The name of a published file is free for another one: if
    /// the open empties the file, it is a new delivery from now on. If the open neither empties it
    /// nor appends, as that of `touch` does, it is let through, and only writes are refused.
    ///
    /// # Errors
    /// ESTALE if the file was published and is to be appended to. The kernel then looks the name up
    /// again, and finds that it is free.
    pub(in crate::output) fn prepare_open(&self, ino: Ino, how: OpenRequest) -> Result<()> {
        {
            let mut table = self.staging.lock();
            if !table.has_left(ino) {
                return Ok(());
            }
            if how.truncates() {
                table.renew_delivery(ino);
            }
            if !how.appends() || how.truncates() {
                return Ok(());
            }
        }
        self.remove_published(ino);
        Err(Errno::STALE)
    }

    /// Frees the name of a published file, because another inode is to get it.
    pub(in crate::output) fn free_name(&self, parent: Ino, name: &OsStr) -> Result<()> {
        if let Some(ino) = self.names.child(parent, name)? {
            self.remove_published(ino);
        }
        Ok(())
    }
}
