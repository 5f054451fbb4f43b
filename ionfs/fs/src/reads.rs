//! Reads that Ion itself could not answer: a job with any of them fails, whatever its exit status.
//!
//! A module that ignores EIO would go on with an input that was cut off, and its result would look
//! like any other. So each read that got EIO because a blob was missing or damaged, or a store did
//! not answer, is recorded here with its file, its blob and its cause. The job's outcome includes
//! the list.
//!
//! A read that the kernel retried with success stays recorded: what the module did with the first
//! answer is not known.

use std::sync::{Arc, Mutex, PoisonError};

use ion_model::clock;
use ion_model::errors::error_chain;
use ion_model::record::{FailedRead, FailedReads, ReadFailureCause};
use ion_plane::cache::{CacheError, FetchCount};
use ion_stores::StoreError;

use super::Errno;

/// The most failed reads that are recorded one by one; further ones are only counted. More would
/// fill the job's document without telling more; fewer would hide that several causes came
/// together.
const RECORDED_MAX: usize = 100;

/// The most bytes of a path or of a reason that are recorded.
const TEXT_MAX: usize = 1000;

/// Why a read could not be answered. The caller knows which file it was of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReadFailure {
    blob: Option<String>,
    cause: ReadFailureCause,
    reason: String,
}

impl ReadFailure {
    /// Makes the failure of a read of a blob.
    pub(crate) fn from_cache_error(error: &CacheError) -> Self {
        let (key, cause) = match error {
            CacheError::Store { key, source } => (key, cause_of(source)),
            CacheError::Corrupt { key, .. } | CacheError::Block { key, .. } => {
                (key, ReadFailureCause::Damaged)
            }
            // The store's own file, or the node's copy, is shorter than its document says.
            CacheError::Local { key, source }
                if source.kind() == std::io::ErrorKind::UnexpectedEof =>
            {
                (key, ReadFailureCause::Damaged)
            }
            CacheError::Local { key, .. } => (key, ReadFailureCause::LocalDisk),
        };
        Self { blob: Some(key.clone()), cause, reason: error_chain(error) }
    }

    /// Makes the failure of a read of a document or of a list of files.
    pub(crate) fn from_store_error(error: &StoreError) -> Self {
        let blob = match error {
            StoreError::NoSuchBlob(key) | StoreError::DamagedBlob(key) => Some(key.clone()),
            _ => None,
        };
        Self { blob, cause: cause_of(error), reason: error_chain(error) }
    }

    /// Makes the failure of a read that was not answered within the daemon's deadline.
    pub(crate) fn unanswered(blob: Option<&str>) -> Self {
        let reason = "the store did not answer in time".to_owned();
        Self { blob: blob.map(str::to_owned), cause: ReadFailureCause::StoreUnavailable, reason }
    }
}

impl std::fmt::Display for ReadFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for ReadFailure {}

fn cause_of(error: &StoreError) -> ReadFailureCause {
    match error {
        StoreError::NoSuchBlob(_) => ReadFailureCause::Missing,
        StoreError::DamagedBlob(_) | StoreError::Malformed { .. } => ReadFailureCause::Damaged,
        StoreError::Fenced(_)
        | StoreError::TooMany { .. }
        | StoreError::Unavailable { .. }
        | StoreError::Url { .. } => ReadFailureCause::StoreUnavailable,
    }
}

/// Returns one failed read: of a file of an event, because of its blob.
pub fn failed_read_of_blob(name: &str, error: &CacheError) -> FailedReads {
    failed_read(&format!("in/data/{name}"), &ReadFailure::from_cache_error(error))
}

/// Returns one failed read: the event's files could not be listed.
pub(crate) fn failed_listing(error: &StoreError) -> FailedReads {
    failed_read("in/data", &ReadFailure::from_store_error(error))
}

fn failed_read(path: &str, failure: &ReadFailure) -> FailedReads {
    let log = ReadLog::default();
    log.note(path, failure);
    log.failed_reads()
}

/// What is known of the reads of one tree, shared by everything that reads for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct ReadLog {
    failed: Arc<Mutex<FailedReads>>,
    fetched: FetchCount,
}

impl ReadLog {
    /// Records a failed read of the file or folder at `path`, as seen from `ION_DIR`. Returns the
    /// errno that the module receives.
    pub(crate) fn note(&self, path: &str, failure: &ReadFailure) -> Errno {
        let (path, reason) = (shorten(path), shorten(&failure.reason));
        let mut log = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |one: &FailedRead| {
            one.path == path && one.blob == failure.blob && one.cause == failure.cause
        };
        if log.first.iter().any(same) {
            return Errno::IO;
        }
        tracing::error!(
            path,
            blob = failure.blob,
            cause = failure.cause.as_str(),
            reason,
            "a job's read failed"
        );
        if log.first.len() < RECORDED_MAX {
            let (blob, cause) = (failure.blob.clone(), failure.cause);
            log.first.push(FailedRead { path, blob, cause, reason, at: clock::now() });
        } else {
            log.more += 1;
        }
        Errno::IO
    }

    /// Returns the reads that have failed so far.
    pub(crate) fn failed_reads(&self) -> FailedReads {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the count of the bytes that were fetched for these reads.
    pub(crate) fn fetched(&self) -> &FetchCount {
        &self.fetched
    }
}

fn shorten(text: &str) -> String {
    if text.len() <= TEXT_MAX {
        return text.to_owned();
    }
    let end = (0..=TEXT_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}...", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_recorded_once_for_each_cause_and_what_goes_beyond_the_bound_is_counted() {
        let log = ReadLog::default();
        let missing = ReadFailure::from_store_error(&StoreError::NoSuchBlob("k".into()));
        for n in 0..RECORDED_MAX + 3 {
            assert_eq!(log.note(&format!("in/data/{n}"), &missing), Errno::IO);
            log.note("in/data/0", &missing);
        }
        let failed = log.failed_reads();
        assert_eq!((failed.first.len(), failed.more), (RECORDED_MAX, 3));
        assert_eq!(failed.first[0].cause, ReadFailureCause::Missing);
        assert_eq!(
            failed.in_words().unwrap(),
            "a read of \"in/data/0\" failed: blob missing: there is no blob \"k\" (and 102 more)"
        );
    }

    #[test]
    fn long_paths_are_cut_between_characters() {
        let log = ReadLog::default();
        log.note(&"ä".repeat(TEXT_MAX), &ReadFailure::unanswered(None));
        assert_eq!(log.failed_reads().first[0].path.len(), TEXT_MAX + 3);
    }
}
