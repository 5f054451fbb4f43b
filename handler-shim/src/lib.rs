//! The handler for modules of older Ion on machines where nothing can be mounted: `prepare` copies
//! an event's files into a plain folder, the module works in that folder, and `commit` commits what
//! the module left there.
//!
//! A module sees the folder that older Ion gave it. Its output, however, goes through the commit
//! protocol of `ionfs`: either all its events are committed or none, and a repeated commit is
//! idempotent.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`folder`] | the folder: emptied, filled, and read without following a link out of it |
//! | [`attempt`] | the job ledger: an attempt begins, succeeds or fails, and fences earlier ones |
//! | [`prepare`] | copies an event's files and values into the folder, checked by their checksums |
//! | [`commit`] | commits event files, the files they name and insights: all of them or none |
//! | [`development`] | the same with embedded stores alone, and a dump in older Ion's shape |
//! | [`cli`] | the command `ion-handler` |

pub mod attempt;
pub mod cli;
pub mod commit;
pub mod development;
pub mod folder;
pub mod prepare;

use ion_model::event::Event;
use ion_model::id::JobId;
use ion_model::limits::Limits;
use ion_plane::commit::Refusal;
use ion_plane::fetch::FetchError;
use ion_stores::StoreError;

/// Why the handler failed.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// A store did not answer, or what it holds is malformed.
    #[error("a store failed")]
    Store(#[from] StoreError),
    /// A file or folder in the module's folder cannot be made, read or removed.
    #[error("{path:?} {what}")]
    Folder {
        /// The path of that file or folder.
        path: std::path::PathBuf,
        /// What cannot be done, such as `cannot be read`.
        what: &'static str,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A file of the event did not arrive as it was written.
    #[error("file {name:?} of the event cannot be fetched: {reason}")]
    Input {
        /// The file's name in the event.
        name: String,
        /// The reason, in words.
        reason: String,
    },
    /// An event file, or `insights.json`, was refused. Nothing was committed.
    #[error("event file {name:?} was rejected: {}: {refusal}; nothing was committed", refusal.errno())]
    Rejected {
        /// The event file's name.
        name: String,
        /// Why it was refused.
        refusal: Refusal,
    },
    /// A dispatcher runs the job.
    #[error(
        "job {job} of module {module:?} is run by dispatcher {holder}; cancel it there (`ion job \
         cancel {job}`) or let it work"
    )]
    Held {
        /// The job.
        job: JobId,
        /// The job's module.
        module: String,
        /// The dispatcher's id.
        holder: String,
    },
    /// Another `prepare` or `commit` has begun a later attempt.
    #[error(
        "a later attempt of job {0} has begun somewhere else; run prepare again to begin one here"
    )]
    Later(JobId),
    /// The handler cannot begin an attempt of the job in the job's present state.
    #[error("job {job} is {state}; {way_out}")]
    Ended {
        /// The job.
        job: JobId,
        /// The job's state, as [`JobState::as_str`](ion_model::record::JobState::as_str) names it.
        state: &'static str,
        /// What the user can do about it.
        way_out: String,
    },
    /// Other processes kept writing the job's record first.
    #[error("other processes kept writing job {0} first; run the command again")]
    Contended(JobId),
}

impl HandlerError {
    /// Returns a function that makes [`HandlerError::Folder`] of the system's error: `path` is the
    /// file or folder, and `what` says what cannot be done.
    pub(crate) fn folder(
        path: impl Into<std::path::PathBuf>,
        what: &'static str,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Folder { path, what, source }
    }
}

impl From<FetchError> for HandlerError {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Input { name, reason } => Self::Input { name, reason },
            FetchError::Write { name, source } => Self::Folder {
                path: format!("in/data/{name}").into(),
                what: "cannot be written",
                source,
            },
        }
    }
}

/// The work of one `prepare` or `commit`: one module on one event.
#[derive(Clone, Debug)]
pub struct HandlerWork {
    /// The module's name.
    pub module: String,
    /// The event it works on.
    pub event: Event,
    /// The event types it may publish.
    pub emits: Vec<String>,
    /// The limits of its events.
    pub limits: Limits,
    /// How long a commit continues while no store makes progress.
    pub deadline: std::time::Duration,
}

impl HandlerWork {
    /// Returns the id of the job of this module on this event.
    pub fn job_id(&self) -> JobId {
        JobId::derive(&self.event.id, &self.module)
    }
}
