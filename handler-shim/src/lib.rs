//! Modules of older Ion where nothing can be mounted: `prepare` copies an event's files into a
//! plain folder, the module runs on it, `commit` takes what it left.
//!
//! What a module sees is older Ion's; what happens to its output is not: it goes through the commit
//! protocol of `ionfs`, so that all its events are committed or none, and committing again makes
//! nothing new.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`folder`] | the folder: emptied, filled, and read without following a link out of it |
//! | [`attempt`] | the ledger's side: an attempt begins, succeeds or fails, and fences the one before |
//! | [`prepare`] | files and values of an event into the folder, checked against their checksums |
//! | [`commit`] | event files, the files they name and insights out of the folder, all of them or none |
//! | [`development`] | the same with no store but a folder, dumped in older Ion's shape |
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
use ion_stores::StoreError;

/// Why the handler did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// A store did not answer, or what it holds is malformed.
    #[error("a store failed")]
    Store(#[from] StoreError),
    /// Something in the folder cannot be made, read or removed.
    #[error("{path:?} {what}")]
    Folder {
        /// Its path.
        path: std::path::PathBuf,
        /// What cannot be done.
        what: &'static str,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A file of the event did not arrive as it was written.
    #[error("file {name:?} of the event cannot be fetched: {reason}")]
    Input {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// An event file, or `insights.json`, was refused. Nothing was committed.
    #[error("event file {name:?} was rejected: {}: {refusal}; nothing was committed", refusal.errno())]
    Rejected {
        /// Its name.
        name: String,
        /// Why.
        refusal: Refusal,
    },
    /// A dispatcher works on the job.
    #[error(
        "job {job} of module {module:?} is run by dispatcher {holder}; cancel it there (`ion job cancel {job}`) or let it work"
    )]
    Held {
        /// The job.
        job: JobId,
        /// Its module.
        module: String,
        /// The dispatcher.
        holder: String,
    },
    /// Another `prepare` or `commit` has begun a later attempt.
    #[error(
        "a later attempt of job {0} has begun somewhere else; run prepare again to begin one here"
    )]
    Later(JobId),
    /// The job cannot be worked on as it stands.
    #[error("job {job} is {state}; {way_out}")]
    Ended {
        /// The job.
        job: JobId,
        /// Where it stands.
        state: &'static str,
        /// What to do about it.
        way_out: String,
    },
    /// Others kept writing first.
    #[error("job {0} was written by others again and again; try once more")]
    Contended(JobId),
}

impl HandlerError {
    /// Names what in the folder could not be done.
    pub(crate) fn folder(
        path: impl Into<std::path::PathBuf>,
        what: &'static str,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Folder { path, what, source }
    }
}

/// What is to be done: one module on one event.
#[derive(Clone, Debug)]
pub struct Work {
    /// The module's name.
    pub module: String,
    /// The event it works on.
    pub event: Event,
    /// The event types it may publish.
    pub emits: Vec<String>,
    /// What its events may take.
    pub limits: Limits,
    /// How long a commit goes on while no store moves anything.
    pub deadline: std::time::Duration,
}

impl Work {
    /// The job of this module on this event.
    pub fn job(&self) -> JobId {
        JobId::derive(&self.event.id, &self.module)
    }
}
