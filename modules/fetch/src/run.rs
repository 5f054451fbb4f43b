//! What the runs of all kinds of sources have in common: which events they publish, how they end,
//! and the two wishes that they leave in the state.

use jiff::Timestamp;

use crate::folder::{Folder, FolderError};

/// Which events are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emit {
    /// One event for each item: `article` of a feed, `item` of an API.
    Each,
    /// One event for all items of a run: `articles` or `items`.
    Together,
}

impl std::str::FromStr for Emit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "article" | "item" => Ok(Self::Each),
            "articles" | "items" => Ok(Self::Together),
            _ => Err("it is no type of event that this program publishes".to_owned()),
        }
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunEnd {
    /// No request was made, because the server asked to be left alone until then.
    Waiting(Timestamp),
    /// The source has not changed.
    NotModified,
    /// So many items were published.
    Published(usize),
    /// The server refused the visit.
    Refused {
        /// The status of its answer.
        status: u16,
        /// When the next visit may come.
        until: Option<Timestamp>,
    },
    /// The source will never come back.
    Gone(String),
}

/// Returns until when the last answer asked this source to be left alone.
///
/// # Errors
///
/// The file is there and cannot be read.
pub fn asked_to_wait_until(folder: &Folder) -> Result<Option<Timestamp>, FolderError> {
    let text = folder.state("not-before")?;
    Ok(text.and_then(|text| String::from_utf8_lossy(&text).trim().parse().ok()))
}

/// Writes the two wishes for whoever starts the next run: when it may come, and that there is
/// nothing left to visit.
///
/// # Errors
///
/// The files cannot be written.
pub fn write_wishes(
    folder: &Folder,
    not_before: Option<Timestamp>,
    gone: Option<&str>,
) -> Result<(), FolderError> {
    let not_before = not_before.map(|until| format!("{until}\n"));
    let gone = gone.map(|reason| format!("{reason}\n"));
    folder.set_state("not-before", not_before.as_deref().map(str::as_bytes))?;
    folder.set_state("gone", gone.as_deref().map(str::as_bytes))
}

/// Returns an error with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
