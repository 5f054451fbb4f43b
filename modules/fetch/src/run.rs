//! What the runs of all kinds of sources have in common: which events they publish, how they end,
//! and the two wishes that they leave in the state.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::folder::{Folder, FolderError};

/// How long one run reads pages or details of items. The items that were not read by then are left
/// to the next run. Longer may exceed the time that a job has (10 minutes unless its pipeline says
/// otherwise).
pub const READING_TIME: Duration = Duration::from_secs(5 * 60);

/// How many characters of a title become a value of an event. `item.json` has all of it.
const TITLE_CHARS: usize = 500;

/// Which events are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emit {
    /// One event for each item: `article` of a feed, `item` of an API, `file` of a folder.
    Each,
    /// One event for all items of a run: `articles`, `items` or `files`.
    Together,
}

impl std::str::FromStr for Emit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "article" | "item" | "file" => Ok(Self::Each),
            "articles" | "items" | "files" => Ok(Self::Together),
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

/// Whether an answer says that the visit comes too soon. `forbidden_waits` says that 403 means that
/// too.
pub fn is_refusal(status: u16, wait: Option<Duration>, forbidden_waits: bool) -> bool {
    match status {
        429 => true,
        403 => forbidden_waits,
        503 => wait.is_some(),
        _ => false,
    }
}

/// Returns what to do about a status.
pub fn status_advice(status: u16) -> &'static str {
    match status {
        401 | 407 => "; it wants a password",
        403 => {
            "; if it means that visits come too often, --forbidden-waits makes the next one wait"
        }
        404 => "; open the address in a browser to see whether the feed has moved",
        500.. => "; the fault is there, and a later run may succeed",
        _ => "",
    }
}

/// Returns a title as a value of an event.
pub fn short_title(title: &str) -> String {
    title.chars().take(TITLE_CHARS).collect()
}

/// Returns a document as the text of a file.
pub fn pretty(document: &Value) -> String {
    format!("{document:#}\n")
}
