//! Why a run fails.

use std::path::PathBuf;

use thiserror::Error;

use crate::answer::ServerError;

/// Why a run, or the look at a server, failed. Each names the thing and the way out.
#[derive(Debug, Error)]
pub enum IndexError {
    /// A file or folder of the job cannot be used.
    #[error("{} cannot be {what}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What was tried: "read", "written" and so on.
        what: &'static str,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The event has no items.
    #[error(
        "there is neither an item.json nor an items.ndjson below {}; name the files of the event \
         so, with one JSON object in item.json, or one a line in items.ndjson", .0.display()
    )]
    NoItems(PathBuf),
    /// Nothing says which source the items are of.
    #[error(
        "nothing names the source of the items, which is a part of their ids; add --source NAME, \
         or give the event a value \"source\""
    )]
    NoSource,
    /// A setting is wrong.
    #[error("{0}")]
    Setting(String),
    /// A secret is missing or cannot be used. Its name may itself be a secret that somebody has
    /// given by mistake, so it is not repeated.
    #[error("{option} names no readable file in {}: {reason}", folder.display())]
    Secret {
        /// The option that names it.
        option: &'static str,
        /// The folder of the secrets.
        folder: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The client of the server could not be made.
    #[error("no connection to {url} can be made")]
    Client {
        /// The server.
        url: String,
        /// What is wrong.
        #[source]
        source: reqwest::Error,
    },
    /// The server refused what was asked, and would do so again.
    #[error("{server} refused to {act}: {answer}{advice}")]
    Refused {
        /// The server's address.
        server: String,
        /// What it was asked to do.
        act: String,
        /// What it answered.
        answer: ServerError,
        /// What can be done about it.
        advice: &'static str,
    },
    /// The server did not do what was asked in the time that it had.
    #[error(
        "{server} did not {act}, after {tries} tries in a row: {reason}; the documents that it has \
         taken stay, and running the job again sends the others"
    )]
    GaveUp {
        /// The server's address.
        server: String,
        /// What it was asked to do.
        act: String,
        /// How many times in a row it was asked.
        tries: u32,
        /// What came of the last time.
        reason: String,
    },
    /// The pattern of indices names too many.
    #[error(
        "the items of this job belong to more than {0} indices; use a pattern with longer periods, \
         such as %Y instead of %Y.%m.%d"
    )]
    TooManyIndices(usize),
    /// The job was asked to stop.
    #[error("stopped by a signal; running the job again goes on")]
    Stopped,
    /// A part of the program panicked.
    #[error("a task of this program failed")]
    Task(#[source] tokio::task::JoinError),
}

impl IndexError {
    /// Returns a function that makes an error of a file out of what the operating system said.
    pub(crate) fn file(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, what, source }
    }
}

/// Returns an error and its causes as one text.
#[must_use]
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Some libraries repeat the cause in their own text.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
