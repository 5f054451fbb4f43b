//! Open files: reads, writes and truncation, and what happens when a descriptor or the last handle
//! is closed.
//!
//! The table notes each change before and after it is made. So an upload that ran at the same time
//! counts as the blob of neither the old content nor the new.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use ion_model::event::FileEntry;
use ion_plane::cache::{BlobReader, CachedBlob};
use ion_plane::node::Node as Daemon;
use rustix::fs::{self, Mode};

use super::super::eventfile::{ContentChange, DecisionTrigger};
use super::super::reads::ReadFailure;
use super::super::{Errno, Ino, Result, Seek, errno, seek_dense};
use super::Output;
use super::handle::{CloseReport, StagedHandle};
use super::in_order::InOrder;
use super::request::{ContentChanger, OpenRequest};
use super::table::{FileNode, OutputTable};

/// Returns how the kernel is to report closes of a handle. A close of a data file decides nothing,
/// so it need not wait for the daemon. But the kernel writes out what a mapping changed only by a
/// FLUSH, and only a file that is open for both reading and writing can be mapped for writing.
fn close_report(how: OpenRequest, file: &FileNode) -> CloseReport {
    let decides = file.event.is_some() && how.writes();
    if how.may_map_for_writing() || decides { CloseReport::Flushes } else { CloseReport::Releases }
}

impl Output {
    /// Opens a file.
    pub(crate) fn open(&self, ino: Ino, how: OpenRequest) -> Result<Arc<StagedHandle>> {
        let mut table = self.staging.lock();
        let file = table.file(ino)?;
        if how.writes() || how.truncates() {
            file.check_change()?;
        }
        // For an open for writing, the kernel itself checks for running programs. For an open that
        // only truncates, it asks the daemon first and checks only after the program's content is
        // gone.
        if how.truncates() && !how.writes() && file.programs > 0 {
            return Err(Errno::TXTBSY);
        }
        let backing = self.staging.limits().remember_no_room(self.staging.open_file(
            &table,
            ino,
            how.backing(),
        ))?;
        if how.truncates() {
            give_up_rights(&backing, how.by)?;
        }
        self.handle(&mut table, ino, backing, how)
    }

    pub(super) fn handle(
        &self,
        table: &mut OutputTable,
        ino: Ino,
        backing: File,
        how: OpenRequest,
    ) -> Result<Arc<StagedHandle>> {
        let file = table.file_mut(ino)?;
        let staged = StagedHandle::new(ino, backing, how, close_report(how, file));
        file.opens += 1;
        file.programs += u32::from(how.executes());
        if how.writes() {
            file.writers.push(staged.writer().clone());
        }
        if how.truncates() {
            file.reference = None;
            file.failed = None;
            file.changes(ContentChange::Resized);
            file.in_order = Some(InOrder::default());
            table.charge(ino, 0, u64::MAX);
        }
        table.look_after_unnamed(ino);
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

    /// Writes `data` at `offset`. A reference needs [`Output::fill_range`] first.
    pub(crate) fn write(
        &self,
        staged: &StagedHandle,
        offset: u64,
        data: &[u8],
        by: ContentChanger,
    ) -> Result<()> {
        give_up_rights(staged.file(), by)?;
        let end = offset.saturating_add(data.len() as u64);
        let (allowed, in_order) = {
            let mut table = self.staging.lock();
            let file = table.file_mut(staged.ino())?;
            file.check_change()?;
            if file.event.is_some() && end > self.staging.limits().most().event_bytes {
                return Err(Errno::FBIG);
            }
            let in_order = file.in_order.take().filter(|in_order| in_order.total() == offset);
            file.changes(ContentChange::Written);
            if let Some(reference) = &mut file.reference {
                reference.note_write();
            }
            let in_order = in_order.map(|in_order| (file.generation, in_order));
            (self.staging.limits().charge_to(&mut table, staged.ino(), end), in_order)
        };
        staged.writer().note_write();
        let in_order = in_order.map(|(generation, mut in_order)| {
            in_order.update(data);
            (generation, in_order)
        });
        let written = allowed.and_then(|()| {
            self.staging.limits().remember_no_room(
                staged.file().write_all_at(data, offset).map_err(|error| errno(&error)),
            )
        });
        self.written(staged.ino(), offset..end, in_order, written)
    }

    /// Notes that the announced write was made, or a part of it: an upload that began in between
    /// may hold either content. If the write failed, no event may name the file until that part is
    /// written again.
    fn written<T>(
        &self,
        ino: Ino,
        range: Range<u64>,
        in_order: Option<(u64, InOrder)>,
        outcome: Result<T>,
    ) -> Result<T> {
        let mut is_long = false;
        if let Ok(file) = self.staging.lock().file_mut(ino) {
            // Keep `in_order` only if there was no other write in between.
            let alone = in_order
                .filter(|(generation, _)| *generation == file.generation && outcome.is_ok());
            file.in_order = alone.map(|(_, in_order)| in_order);
            if let Some(in_order) = &file.in_order {
                in_order.note_written();
                is_long = file.event.is_none() && in_order.should_begin_upload();
            }
            file.generation += 1;
            match &outcome {
                // The caller copies by other means.
                Err(Errno::OPNOTSUPP) => {}
                Err(errno) => file.failed = Some((range.start, *errno)),
                Ok(_) if file.failed.is_some_and(|(at, _)| range.contains(&at)) => {
                    file.failed = None
                }
                Ok(_) => {}
            }
        }
        if is_long {
            self.upload_early(ino);
        }
        outcome
    }

    /// Allocates or frees space (fallocate).
    pub(crate) fn allocate(
        &self,
        staged: &StagedHandle,
        offset: u64,
        length: u64,
        mode: i32,
        by: ContentChanger,
    ) -> Result<()> {
        give_up_rights(staged.file(), by)?;
        let mut table = self.staging.lock();
        let file = table.file_mut(staged.ino())?;
        file.check_change()?;
        file.changes(ContentChange::Written);
        let flags = fs::FallocateFlags::from_bits_retain(mode.cast_unsigned());
        if !flags.intersects(fs::FallocateFlags::PUNCH_HOLE | fs::FallocateFlags::COLLAPSE_RANGE) {
            self.staging.limits().charge_to(
                &mut table,
                staged.ino(),
                offset.saturating_add(length),
            )?;
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
            self.not_whole(staged.ino(), 0, errno);
            errno
        })
    }

    /// Notes that the file may lack what was written from `at` on.
    pub(super) fn not_whole(&self, ino: Ino, at: u64, errno: Errno) {
        if let Ok(file) = self.staging.lock().file_mut(ino) {
            file.failed = Some((at, errno));
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
        by: ContentChanger,
    ) -> Result<u64> {
        give_up_rights(to.file(), by)?;
        let size = from.file().metadata().map_err(|error| errno(&error))?.len();
        let length = length.min(size.saturating_sub(from_offset));
        {
            let mut table = self.staging.lock();
            let from_refers = table.file(from.ino())?.reference.is_some();
            let file = table.file_mut(to.ino())?;
            file.check_change()?;
            if from_refers || file.reference.is_some() || file.event.is_some() {
                return Err(Errno::OPNOTSUPP);
            }
            file.changes(ContentChange::Written);
            self.staging.limits().charge_to(
                &mut table,
                to.ino(),
                to_offset.saturating_add(length),
            )?;
        }
        to.writer().note_write();
        let (mut from_at, mut to_at) = (from_offset, to_offset);
        let length = usize::try_from(length.min(1 << 30)).unwrap_or(1 << 30);
        let copied = fs::copy_file_range(
            from.file(),
            Some(&mut from_at),
            to.file(),
            Some(&mut to_at),
            length,
        );
        let copied = self.staging.limits().remember_no_room(copied);
        self.written(to.ino(), to_offset..to_offset.saturating_add(length as u64), None, copied)
            .map(|copied| copied as u64)
    }

    /// Handles FLUSH: a descriptor of the file was closed. Returns what close() is to return.
    pub(crate) async fn flush(&self, staged: &StagedHandle) -> Result<()> {
        staged.writer().note_flush();
        if !staged.writes() {
            return Ok(());
        }
        self.decide(staged.ino(), DecisionTrigger::Flush).await
    }

    /// Handles fsync: makes the file durable on the local disk. An event file commits as at FLUSH.
    pub(crate) async fn fsync(&self, staged: &StagedHandle) -> Result<()> {
        self.sync(staged)?;
        self.decide(staged.ino(), DecisionTrigger::Flush).await
    }

    /// Handles RELEASE: the handle is gone. If it was the last writer of an event file, the content
    /// is final; if it was the last writer of a data file, its upload is queued.
    pub(crate) fn release(self: &Arc<Self>, staged: &StagedHandle) {
        let ino = staged.ino();
        {
            let mut table = self.staging.lock();
            let Ok(file) = table.file_mut(ino) else { return };
            file.opens -= 1;
            file.programs -= u32::from(staged.executes());
            file.writers.retain(|writer| !Arc::ptr_eq(writer, staged.writer()));
            let last = staged.writes() && file.writers.is_empty();
            let decides = file.event.is_some();
            // An upload that still waits for its turn will take this content too.
            let stores = last && !decides && !std::mem::replace(&mut file.upload_waits, true);
            if last && decides {
                self.closed.to_decide(ino);
            } else if stores {
                self.closed.to_store(ino);
            }
            table.look_after_unnamed(ino);
            self.discard_orphans(&mut table);
        }
        self.released.notify_waiters();
        self.work_off_closed();
    }
}

/// Opens the blob of an entry.
pub(crate) fn open_blob(
    daemon: &Daemon,
    entry: &FileEntry,
) -> std::result::Result<Arc<CachedBlob>, ReadFailure> {
    daemon.cache.open(entry).map_err(|error| ReadFailure::of_blob(&error))
}

/// Reads a blob within the daemon's deadline.
pub(crate) async fn read_within(
    daemon: &Daemon,
    reader: &BlobReader,
    offset: u64,
    length: u64,
) -> std::result::Result<Bytes, ReadFailure> {
    let read = reader.read(offset, length);
    let answered = tokio::time::timeout(daemon.settings.read_deadline, read).await;
    let unanswered = |_| ReadFailure::unanswered(Some(&reader.blob().entry().key));
    answered.map_err(unanswered)?.map_err(|error| ReadFailure::of_blob(&error))
}

/// Clears the set-user-ID and set-group-ID bits of a file, unless the user who changes it may keep
/// them.
pub(super) fn give_up_rights(file: &File, by: ContentChanger) -> Result<()> {
    if by == ContentChanger::Privileged {
        return Ok(());
    }
    let mode = fs::fstat(file)?.st_mode & 0o7777;
    // Without the group's right to execute, the set-group-ID bit means a mandatory lock and stays.
    let group = if mode & libc::S_IXGRP == 0 { 0 } else { libc::S_ISGID };
    let kept = mode & !(libc::S_ISUID | group);
    if kept == mode { Ok(()) } else { fs::fchmod(file, Mode::from_raw_mode(kept)) }
}
