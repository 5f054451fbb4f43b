//! Handles of staged files: what is open, and whether a process may still write through it.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ion_model::event::FileEntry;
use ion_plane::cache::BlobReader;

use super::super::Ino;
use super::super::reads::ReadFailure;
use super::request::OpenRequest;
use super::users::HandleUsers;

/// A handle that may write. The table holds it for as long as it is open.
#[derive(Debug)]
pub(super) struct ContentWriter {
    /// Whether a FLUSH came after the last write: a process closed a descriptor, and the RELEASE
    /// should follow.
    flushed: AtomicBool,
    closing: CloseReport,
}

/// How the kernel reports a close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseReport {
    /// By a FLUSH for each descriptor, which close() waits for, and a RELEASE after the last one.
    Flushes,
    /// By the RELEASE only.
    Releases,
}

impl ContentWriter {
    pub(super) fn new(closing: CloseReport) -> Arc<Self> {
        Arc::new(Self { flushed: AtomicBool::new(false), closing })
    }

    /// Returns whether the handle is certainly open. Returns false also for a handle whose RELEASE
    /// may be on its way.
    pub(super) fn is_surely_open(&self) -> bool {
        self.closing == CloseReport::Flushes && !self.flushed.load(Ordering::Acquire)
    }

    /// Returns whether a process may go on to write through the handle, as far as the daemon can
    /// know.
    pub(super) fn may_write_more(&self) -> bool {
        self.closing == CloseReport::Releases || self.is_surely_open()
    }

    /// Notes a write through the handle.
    pub(super) fn note_write(&self) {
        self.flushed.store(false, Ordering::Release);
    }

    /// Notes a FLUSH of the handle.
    pub(super) fn note_flush(&self) {
        self.flushed.store(true, Ordering::Release);
    }
}

/// An open staged file.
#[derive(Debug)]
pub(crate) struct StagedHandle {
    ino: Ino,
    file: File,
    writable: bool,
    executes: bool,
    writer: Arc<ContentWriter>,
    /// The processes that write through it. Present in an inbox, for handles that may write.
    users: Option<HandleUsers>,
    /// The reader of the blob that the file refers to, if it refers to one.
    reader: Mutex<Option<Arc<BlobReader>>>,
}

impl StagedHandle {
    pub(super) fn new(
        ino: Ino,
        file: File,
        how: OpenRequest,
        closing: CloseReport,
        users: Option<HandleUsers>,
    ) -> Arc<Self> {
        Arc::new(Self {
            ino,
            file,
            writable: how.writes(),
            executes: how.executes(),
            writer: ContentWriter::new(closing),
            users,
            reader: Mutex::default(),
        })
    }

    /// Returns its inode.
    pub(crate) fn ino(&self) -> Ino {
        self.ino
    }

    /// Returns whether the handle may write.
    pub(super) fn writes(&self) -> bool {
        self.writable
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Returns whether a program runs from the file as long as the handle is open.
    pub(super) fn executes(&self) -> bool {
        self.executes
    }

    pub(super) fn writer(&self) -> &Arc<ContentWriter> {
        &self.writer
    }

    /// Returns the processes that write through it, if they matter.
    pub(super) fn users(&self) -> Option<&HandleUsers> {
        self.users.as_ref()
    }

    /// Notes that a thread writes through the handle, if that matters.
    pub(crate) fn note_writer(&self, thread: u32) {
        if let Some(users) = &self.users {
            users.note_writer(thread);
        }
    }

    /// Returns how the kernel is to report closes of this handle.
    pub(crate) fn close_report(&self) -> CloseReport {
        self.writer.closing
    }

    /// Returns this handle's reader of a blob. Opens one if the handle has none of this blob.
    pub(super) fn reader(
        &self,
        entry: &FileEntry,
        open: impl FnOnce() -> std::result::Result<Arc<BlobReader>, ReadFailure>,
    ) -> std::result::Result<Arc<BlobReader>, ReadFailure> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        match reader.as_ref().filter(|reader| reader.blob().matches_entry(entry)) {
            Some(reader) => Ok(reader.clone()),
            None => Ok(reader.insert(open()?).clone()),
        }
    }
}
