//! The reasons for which an event file is refused: each has a text, and one errno that the file's
//! writer receives.

use ion_model::clock::{self, Millis};
use ion_model::errors::error_chain;
use ion_model::id::EventId;
use ion_model::text::{REASON_MAX, cut_owned, quote};
use ion_stores::{Collection, StoreError};
use serde::{Deserialize, Serialize};

use super::errno::RefusalErrno;
use crate::upload::UploadError;

/// An event is too deep in its lineage. Most likely modules feed each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "more than {most} events would stand between this one and the first of its correlation: do \
     modules feed each other? If that is intended, raise the limit \"lineage-depth\""
)]
pub struct TooDeep {
    /// The limit.
    most: u64,
}

impl TooDeep {
    /// Returns the depth, if an event may have it.
    ///
    /// # Errors
    /// When the depth is over the limit `most`.
    pub fn check(depth: u32, most: u64) -> Result<u32, Self> {
        if u64::from(depth) > most { Err(Self { most }) } else { Ok(depth) }
    }
}

/// The reason why an event file was refused. Each has one errno (the table of DESIGN.md section 3).
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The content is not a document of either form, has no `eventType`, or names a path that
    /// leaves `out/data`.
    #[error("{0}")]
    Invalid(String),
    /// The event type is not in the module's `emits`.
    #[error(
        "module {module:?} may not publish {}; its pipeline allows: {allowed}",
        quote(.event_type)
    )]
    NotEmitted {
        /// The module's name.
        module: String,
        /// The event type in the file.
        event_type: String,
        /// The event types that the module may publish.
        allowed: String,
    },
    /// A named file is not in `out/data`.
    #[error("file {} is not in out/data", quote(.0))]
    Missing(String),
    /// A named file is still open for writing.
    #[error("file {} is still open for writing; close it before the event", quote(.0))]
    StillOpen(String),
    /// The event is over a limit.
    #[error("{0}")]
    TooBig(String),
    /// The event names a path that is longer than every store must support.
    #[error("{0}")]
    TooLong(String),
    /// A write to a named file failed, or its bytes were lost or changed on the disk, and that
    /// place was not written again.
    #[error("a write to file {} failed: {source}; the file is incomplete", quote(.path))]
    NotWhole {
        /// The file's path.
        path: String,
        /// The error that the write returned.
        #[source]
        source: std::io::Error,
    },
    /// The event is too far below the first event of its correlation.
    #[error(transparent)]
    TooDeep(#[from] TooDeep),
    /// The event was committed before with other content.
    #[error("this event was committed before with other content (event {0})")]
    Differs(EventId),
    /// A named file cannot be read from the staging folder.
    #[error("file {} cannot be read: {source}", quote(.path))]
    Unreadable {
        /// The file's path.
        path: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The stores could not make the event durable. Nothing was published.
    #[error("the stores could not make the event durable: {0}; nothing was published")]
    Stores(String),
    /// A later attempt of the job has begun.
    #[error("a later attempt of this job has begun; nothing was published")]
    Fenced,
}

impl Refusal {
    /// Returns the error that close(), fsync() or rename() returns.
    pub fn errno(&self) -> RefusalErrno {
        match self {
            Self::Invalid(_) => RefusalErrno::Invalid,
            Self::NotEmitted { .. } => RefusalErrno::Access,
            Self::Missing(_) => RefusalErrno::NoEntry,
            Self::StillOpen(_) => RefusalErrno::Busy,
            Self::TooBig(_) => RefusalErrno::TooBig,
            Self::TooLong(_) => RefusalErrno::NameTooLong,
            Self::TooDeep(_) => RefusalErrno::Loop,
            Self::Differs(_) => RefusalErrno::Exists,
            Self::Unreadable { source, .. } | Self::NotWhole { source, .. } => {
                RefusalErrno::from_io_error(source)
            }
            Self::Stores(_) | Self::Fenced => RefusalErrno::Io,
        }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Fenced(Collection::Jobs) => Self::Fenced,
            error => Self::Stores(error_chain(&error)),
        }
    }
}

impl From<UploadError> for Refusal {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::Read { path, source } => Self::Unreadable { path, source },
            UploadError::Store { source, .. } | UploadError::Documents(source) => source.into(),
        }
    }
}

/// The record of a refused event file, in `events/rejected/<name>.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// The event file's name.
    pub name: String,
    /// The error that the close returned.
    pub errno: RefusalErrno,
    /// The reason, as a text.
    pub reason: String,
    /// The time of the refusal.
    pub at: Millis,
}

impl Rejection {
    /// Makes the record of a refusal.
    pub fn new(name: &str, refusal: &Refusal) -> Self {
        Self {
            name: name.to_owned(),
            errno: refusal.errno(),
            reason: cut_owned(refusal.to_string(), REASON_MAX),
            at: clock::now(),
        }
    }
}
