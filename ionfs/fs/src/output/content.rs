//! The staged content: what open files hold, and the attributes of every inode.
//!
//! The table notes each change before and after it is made. So an upload that ran at the same time
//! counts as the blob of neither the old content nor the new. What a close means for an upload or
//! an event is not decided here: [`StagedContent::release`] reports it to the caller.

mod attributes;
mod filling;
mod xattr;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ion_plane::node::Node as Daemon;
use rustix::fs;
use tokio::sync::Notify;

use self::attributes::clear_set_id_bits;
pub(crate) use self::xattr::no_attribute;
use super::super::eventfile::ContentChange;
use super::super::reads::{ReadFailure, ReadLog};
use super::super::{Attr, Errno, Ino, Result, Seek, errno, seek_dense};
use super::handle::{CloseReport, StagedHandle};
use super::in_order::InOrder;
use super::request::{OpenRequest, SetIdBits};
use super::staging::StagingArea;
use super::table::{FailedWrite, Orphans, OutputTable};
use super::users::HandleUsers;

/// The staged content of one attempt.
#[derive(Debug)]
pub(crate) struct StagedContent {
    staging: Arc<StagingArea>,
    daemon: Arc<Daemon>,
    reads: ReadLog,
    /// Notified whenever a handle is released.
    released: Notify,
}

/// What a write means for the upload of its file.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteEffect {
    /// Nothing.
    None,
    /// The file is long and written in order: its upload should begin now.
    BeginUpload,
}

/// What the release of a handle leaves to be done.
#[must_use]
#[derive(Debug)]
pub(super) struct ReleaseEffect {
    pub(super) next: AfterRelease,
    /// The files that are gone because of the release.
    pub(super) orphans: Orphans,
}

/// What is to be done with a file of which a handle was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AfterRelease {
    /// Nothing: another handle can still write, or the file waits for its upload already.
    Nothing,
    /// The file is an event file or a delivery, and its content is final: it is to be decided.
    Decide,
    /// The file is a data file, and is to be stored.
    Store,
}

/// Whether any handle can still write to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WritersLeft {
    /// No handle can.
    None,
    /// A handle can, as far as the daemon knows.
    Some,
    /// The file is gone.
    NoFile,
}

impl StagedContent {
    pub(super) fn new(staging: Arc<StagingArea>, daemon: Arc<Daemon>, reads: ReadLog) -> Self {
        Self { staging, daemon, reads, released: Notify::new() }
    }

    /// Returns an inode's attributes.
    pub(crate) fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.staging.getattr(ino)
    }

    /// Opens a file.
    pub(crate) fn open(&self, ino: Ino, how: OpenRequest) -> Result<Arc<StagedHandle>> {
        let mut table = self.staging.lock();
        if how.truncates() || (how.writes() && !table.has_left(ino)) {
            table.check_change(ino)?;
        }
        let file = table.file(ino)?;
        // For an open for writing, the kernel itself checks for running programs. For an open that
        // only truncates, it asks the daemon first and checks only after the program's content is
        // gone.
        if how.truncates() && !how.writes() && file.programs > 0 {
            return Err(Errno::TXTBSY);
        }
        let opened = self.staging.open_file(&table, ino, how.staging_flags());
        let backing = self.staging.limits().remember_no_room(opened)?;
        if how.truncates() {
            clear_set_id_bits(&backing, how.set_id_bits)?;
        }
        self.add_handle(&mut table, ino, backing, how)
    }

    /// Makes the handle of a file that was just opened on the disk.
    pub(super) fn add_handle(
        &self,
        table: &mut OutputTable,
        ino: Ino,
        backing: File,
        how: OpenRequest,
    ) -> Result<Arc<StagedHandle>> {
        let is_in_inbox = table.is_inbox();
        let file = table.file_mut(ino)?;
        let decides = (file.event.is_some() || is_in_inbox) && how.writes();
        let users = (is_in_inbox && how.writes()).then(|| HandleUsers::new(how.thread));
        let staged = StagedHandle::new(ino, backing, how, close_report(how, decides), users);
        file.opens += 1;
        file.programs += u32::from(how.executes());
        if how.writes() {
            file.writers.push(staged.writer().clone());
        }
        if how.truncates() {
            file.reference = None;
            file.failed = None;
            file.note_change(ContentChange::Resized);
            file.in_order = Some(InOrder::default());
            table.charge(ino, 0, u64::MAX);
        }
        table.update_unnamed(ino);
        Ok(staged)
    }

    /// Reads staged content. Returns fewer than `size` bytes only at the end of the file.
    pub(crate) fn read(&self, staged: &StagedHandle, offset: u64, size: usize) -> Result<Bytes> {
        let mut buffer = vec![0; size];
        let mut filled = 0;
        while filled < size {
            match staged.file().read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(errno(&error)),
            }
        }
        buffer.truncate(filled);
        Ok(buffer.into())
    }

    /// Writes `data` at `offset`. A reference needs [`StagedContent::fill_range`] first.
    pub(super) fn write(
        &self,
        staged: &StagedHandle,
        offset: u64,
        data: &[u8],
        set_id_bits: SetIdBits,
    ) -> Result<WriteEffect> {
        clear_set_id_bits(staged.file(), set_id_bits)?;
        let end = offset.saturating_add(data.len() as u64);
        let (allowed, in_order) = {
            let mut table = self.staging.lock();
            table.check_change(staged.ino())?;
            let file = table.file_mut(staged.ino())?;
            if file.event.is_some() && end > self.staging.limits().job_limits().event_bytes {
                return Err(Errno::FBIG);
            }
            let in_order = file.in_order.take().filter(|in_order| in_order.total() == offset);
            file.note_change(ContentChange::Written);
            if let Some(reference) = &mut file.reference {
                reference.note_write();
            }
            let in_order = in_order.map(|in_order| (file.generation, in_order));
            (self.staging.limits().raise_charge(&mut table, staged.ino(), end), in_order)
        };
        staged.writer().note_write();
        let in_order = in_order.map(|(generation, mut in_order)| {
            in_order.update(data);
            (generation, in_order)
        });
        let written = allowed.and_then(|()| {
            let written = staged.file().write_all_at(data, offset);
            self.staging.limits().remember_no_room(written.map_err(|error| errno(&error)))
        });
        let effect = self.note_written(staged.ino(), offset..end, in_order, &written);
        written.map(|()| effect)
    }

    /// Notes that the announced write was made, or a part of it: an upload that began in between
    /// may hold either content. If the write failed, no event may name the file until that part is
    /// written again.
    fn note_written<T>(
        &self,
        ino: Ino,
        range: Range<u64>,
        in_order: Option<(u64, InOrder)>,
        outcome: &Result<T>,
    ) -> WriteEffect {
        let mut table = self.staging.lock();
        let Ok(file) = table.file_mut(ino) else { return WriteEffect::None };
        // Keep `in_order` only if there was no other write in between.
        let alone =
            in_order.filter(|(generation, _)| *generation == file.generation && outcome.is_ok());
        file.in_order = alone.map(|(_, in_order)| in_order);
        let mut effect = WriteEffect::None;
        if let Some(in_order) = &file.in_order {
            in_order.note_written();
            if file.event.is_none() && in_order.should_begin_upload() {
                effect = WriteEffect::BeginUpload;
            }
        }
        file.generation += 1;
        match outcome {
            // The caller copies by other means.
            Err(Errno::OPNOTSUPP) => {}
            Err(errno) => file.failed = Some(FailedWrite { at: range.start, errno: *errno }),
            Ok(_) if file.failed.is_some_and(|write| range.contains(&write.at)) => {
                file.failed = None
            }
            Ok(_) => {}
        }
        effect
    }

    /// Allocates or frees space (fallocate).
    pub(crate) fn allocate(
        &self,
        staged: &StagedHandle,
        offset: u64,
        length: u64,
        mode: i32,
        set_id_bits: SetIdBits,
    ) -> Result<()> {
        clear_set_id_bits(staged.file(), set_id_bits)?;
        let mut table = self.staging.lock();
        table.check_change(staged.ino())?;
        let file = table.file_mut(staged.ino())?;
        file.note_change(ContentChange::Written);
        let flags = fs::FallocateFlags::from_bits_retain(mode.cast_unsigned());
        if !flags.intersects(fs::FallocateFlags::PUNCH_HOLE | fs::FallocateFlags::COLLAPSE_RANGE) {
            let end = offset.saturating_add(length);
            self.staging.limits().raise_charge(&mut table, staged.ino(), end)?;
        }
        self.staging.limits().remember_no_room(fs::fallocate(staged.file(), flags, offset, length))
    }

    /// Returns the offset of the next data or hole of a staged file.
    pub(crate) fn seek(&self, staged: &StagedHandle, offset: u64, whence: Seek) -> Result<u64> {
        if self.is_reference(staged.ino()) {
            let length = staged.file().metadata().map_err(|error| errno(&error))?.len();
            return seek_dense(length, offset, whence);
        }
        fs::seek(
            staged.file(),
            match whence {
                Seek::Data => fs::SeekFrom::Data(offset),
                Seek::Hole => fs::SeekFrom::Hole(offset),
            },
        )
    }

    /// Makes the file durable on the local disk.
    pub(crate) fn sync(&self, staged: &StagedHandle) -> Result<()> {
        staged.file().sync_all().map_err(|error| {
            let errno = errno(&error);
            self.note_failure(staged.ino(), 0, errno);
            errno
        })
    }

    /// Notes that the file may lack what was written from `at` on.
    pub(super) fn note_failure(&self, ino: Ino, at: u64, errno: Errno) {
        if let Ok(file) = self.staging.lock().file_mut(ino) {
            file.failed = Some(FailedWrite { at, errno });
        }
    }

    /// Copies a range between two staged files inside the kernel.
    pub(crate) fn copy_range(
        &self,
        from: &StagedHandle,
        from_offset: u64,
        to: &StagedHandle,
        to_offset: u64,
        length: u64,
        set_id_bits: SetIdBits,
    ) -> Result<u64> {
        clear_set_id_bits(to.file(), set_id_bits)?;
        let size = from.file().metadata().map_err(|error| errno(&error))?.len();
        let length = length.min(size.saturating_sub(from_offset));
        {
            let mut table = self.staging.lock();
            let from_refers = table.file(from.ino())?.reference.is_some();
            table.check_change(to.ino())?;
            let file = table.file_mut(to.ino())?;
            if from_refers || file.reference.is_some() || file.event.is_some() {
                return Err(Errno::OPNOTSUPP);
            }
            file.note_change(ContentChange::Written);
            let end = to_offset.saturating_add(length);
            self.staging.limits().raise_charge(&mut table, to.ino(), end)?;
        }
        to.writer().note_write();
        let length = usize::try_from(length.min(1 << 30)).unwrap_or(1 << 30);
        let (mut from_at, mut to_at) = (from_offset, to_offset);
        let (from_at, to_at) = (Some(&mut from_at), Some(&mut to_at));
        let copied = fs::copy_file_range(from.file(), from_at, to.file(), to_at, length);
        let copied = self.staging.limits().remember_no_room(copied);
        let range = to_offset..to_offset.saturating_add(length as u64);
        // A file that is copied into is not written in order, so no upload of it begins.
        let _ = self.note_written(to.ino(), range, None, &copied);
        copied.map(|copied| copied as u64)
    }

    /// Handles RELEASE: the handle is gone. If it was the last writer of an event file, the content
    /// is final; if it was the last writer of a data file, the file can be stored.
    pub(super) fn release(&self, staged: &StagedHandle) -> ReleaseEffect {
        let ino = staged.ino();
        let effect = {
            let mut table = self.staging.lock();
            let is_delivery = table.delivery(ino).is_some();
            let Ok(file) = table.file_mut(ino) else {
                return ReleaseEffect { next: AfterRelease::Nothing, orphans: Orphans::default() };
            };
            file.opens -= 1;
            file.programs -= u32::from(staged.executes());
            file.writers.retain(|writer| !Arc::ptr_eq(writer, staged.writer()));
            let next = if !staged.writes() || !file.writers.is_empty() {
                AfterRelease::Nothing
            } else if file.event.is_some() || is_delivery {
                AfterRelease::Decide
            } else if std::mem::replace(&mut file.upload_waits, true) {
                // The upload that still waits for its turn will take this content too.
                AfterRelease::Nothing
            } else {
                AfterRelease::Store
            };
            table.update_unnamed(ino);
            ReleaseEffect { next, orphans: table.take_orphans() }
        };
        self.released.notify_waiters();
        effect
    }

    /// Waits until no handle can write to the file any more. Waits for at most `wait`, and only for
    /// a RELEASE that may be on its way: a handle that is certainly open is reported at once.
    pub(super) async fn wait_for_writers(&self, ino: Ino, wait: Duration) -> WritersLeft {
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            let released = self.released.notified();
            {
                let table = self.staging.lock();
                let Ok(file) = table.file(ino) else { return WritersLeft::NoFile };
                if file.writers.is_empty() {
                    return WritersLeft::None;
                }
                if file.writers.iter().any(|writer| writer.is_surely_open()) {
                    return WritersLeft::Some;
                }
            }
            if tokio::time::timeout_at(deadline, released).await.is_err() {
                return WritersLeft::Some;
            }
        }
    }

    /// Records a failed read of bytes that a file refers to. Returns the errno that the module
    /// receives.
    fn read_failed(&self, ino: Ino, failure: &ReadFailure) -> Errno {
        self.reads.note(&self.staging.shown_path(ino), failure)
    }
}

/// Returns how the kernel is to report closes of a handle. A close of a data file decides nothing,
/// so it need not wait for the daemon. But the kernel writes out what a mapping changed only by a
/// FLUSH, and only a file that is open for both reading and writing can be mapped for writing.
fn close_report(how: OpenRequest, decides: bool) -> CloseReport {
    if how.may_map_for_writing() || decides { CloseReport::Flushes } else { CloseReport::Releases }
}
