//! The processes that use one handle of a file in an inbox, and what the close of a descriptor
//! means.
//!
//! The kernel reports each close of each duplicate of a descriptor, and a killed writer looks like
//! any other. So this looks at the process that closes the file, and at what it still has open.

use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};

use ion_system::process::{self, BadEnd, ProcessCourse};

use crate::Ino;

/// The most processes that are remembered of one handle. Of further ones it is not known that they
/// have written.
const WRITERS_MAX: usize = 64;

/// The processes that use one handle.
#[derive(Debug)]
pub(super) struct HandleUsers {
    /// The process that opened the file, if it is visible.
    opener: Option<u32>,
    writers: Mutex<SeenWriters>,
    /// Why the content is not whole, if a process that wrote it has not ended well.
    failure: OnceLock<WriterFailure>,
}

#[derive(Debug, Default)]
struct SeenWriters {
    /// The thread that wrote last.
    last: u32,
    processes: Vec<u32>,
}

/// Why what is written through a handle may not be whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriterFailure {
    /// A process that wrote it, or had opened it, ended like this without closing it.
    Ended(BadEnd),
    /// Nobody can see from here whether the process that closed it was killed.
    Unseen,
}

impl fmt::Display for WriterFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(end) => write!(
                f,
                "the program that wrote it {end} while the file was open, so nothing was \
                 published; copy it again, or rename it if it is whole"
            ),
            Self::Unseen => f.write_str(
                "the program that wrote it cannot be seen from here, so nobody knows whether it \
                 was killed, and nothing was published; rename the file once it is whole",
            ),
        }
    }
}

/// What the close of a descriptor means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DescriptorClose {
    /// Others may still write: the close of their descriptors decides, and at the latest the end
    /// of the handle.
    OneOfSeveral,
    /// It was the last one: the content is final.
    Last,
    /// The content may not be whole.
    Failed(WriterFailure),
}

impl HandleUsers {
    /// Makes the users of a handle that a thread opens.
    pub(super) fn new(thread: u32) -> Self {
        let opener = process::process_of_thread(thread);
        Self { opener, writers: Mutex::default(), failure: OnceLock::new() }
    }

    /// Notes that a thread writes through the handle.
    pub(super) fn note_writer(&self, thread: u32) {
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        // The kernel itself writes what a process has changed in a mapping.
        if thread == 0 || writers.last == thread {
            return;
        }
        writers.last = thread;
        let Some(process) = process::process_of_thread(thread) else { return };
        if writers.processes.len() < WRITERS_MAX && !writers.processes.contains(&process) {
            writers.processes.push(process);
        }
    }

    /// Returns why what was written through the handle may not be whole, if so.
    pub(super) fn failure(&self) -> Option<WriterFailure> {
        self.failure.get().copied()
    }

    /// Judges a close of a descriptor of the file by a thread.
    pub(super) fn judge_close(&self, thread: u32, ino: Ino) -> DescriptorClose {
        if let Some(failure) = self.failure() {
            return DescriptorClose::Failed(failure);
        }
        // The closer waits for the answer, so it is there if it is visible at all.
        let Some(closer) = process::look_at_thread(thread) else {
            return self.fail(WriterFailure::Unseen);
        };
        let is_opener = self.opener == Some(closer.process);
        if let ProcessCourse::EndingBadly(end) = closer.course {
            let writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
            let has_written = writers.processes.contains(&closer.process);
            drop(writers);
            // A child that has only inherited the descriptor says nothing about the content.
            return match is_opener || has_written {
                true => self.fail(WriterFailure::Ended(end)),
                false => DescriptorClose::OneOfSeveral,
            };
        }
        match is_opener && !process::has_open(closer.process, ino) {
            true => DescriptorClose::Last,
            false => DescriptorClose::OneOfSeveral,
        }
    }

    fn fail(&self, failure: WriterFailure) -> DescriptorClose {
        DescriptorClose::Failed(*self.failure.get_or_init(|| failure))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn the_last_close_of_the_opener_is_told_from_those_before() {
        let file = tempfile::tempfile().unwrap();
        let ino = file.metadata().unwrap().ino();
        let own = std::process::id();
        let users = HandleUsers::new(own);
        users.note_writer(own);
        let second = file.try_clone().unwrap();
        drop(file);
        assert_eq!(users.judge_close(own, ino), DescriptorClose::OneOfSeveral);
        drop(second);
        assert_eq!(users.judge_close(own, ino), DescriptorClose::Last);
        // Process 1 has not opened it.
        assert_eq!(users.judge_close(1, ino), DescriptorClose::OneOfSeveral);
        let unseen = DescriptorClose::Failed(WriterFailure::Unseen);
        assert_eq!(users.judge_close(0, ino), unseen);
        assert_eq!(users.judge_close(own, ino), unseen, "what is unknown stays unknown");
    }
}
