//! Events: their documents, the messages that announce them, and the event files that modules
//! write.
//!
//! [`parse`] reads what a module wrote to `out/events/<name>.json` or `out/insights.json`. It never
//! panics, whatever the bytes are. It distinguishes three cases that the commit rule (DESIGN.md
//! section 3) depends on: content that may still become a document, a complete document, and
//! content that can never become one.

mod file;
mod names;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

pub use self::file::{EventFile, NearMiss, ParsedEventFile, parse, parse_within};
pub use self::names::{
    DOUBTFUL_DRAFT_REASON, TYPE_BYTES_MAX, clean_path, is_doubtful_draft, is_draft, is_event_draft,
    is_event_type, is_inbox_draft,
};
use crate::clock::Millis;
pub use crate::file::FileEntry;
use crate::file::is_zero;
use crate::id::{CorrelationId, EventId, JobId};
use crate::state::SourceTick;

/// The place of an event in its lineage: older Ion's `context`, unchanged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Context {
    /// The module that produced the document; for a first event, the program that created it.
    pub name: String,
    /// The id of the event.
    pub event_id: EventId,
    /// The correlation: one first event and all events that descend from it.
    pub correlation_id: CorrelationId,
    /// The id of the event whose job produced this one; for a first event, empty or a program's
    /// name.
    #[serde(default)]
    pub parent_event_id: String,
    /// The kind of document: `eventMeta`, `insight` or `modulelogs`.
    #[serde(default)]
    pub document_type: DocumentType,
}

/// The kind of a document in the events collection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DocumentType {
    /// An event.
    #[default]
    #[serde(rename = "eventMeta")]
    EventMeta,
    /// Values that a module keeps for analysis.
    #[serde(rename = "insight")]
    Insight,
    /// A reference to the blob that holds a job's output.
    #[serde(rename = "modulelogs")]
    ModuleLogs,
}

impl DocumentType {
    /// Returns the word stored in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EventMeta => "eventMeta",
            Self::Insight => "insight",
            Self::ModuleLogs => "modulelogs",
        }
    }
}

/// One value of an event. An event has a list of values and not a map, because older Ion's form
/// keeps their order and repeated keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// The value; a value that is not a string in the event file is kept as its JSON text.
    pub value: String,
}

/// The state of an event between its commit and its publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PublicationState {
    /// Written by an on-success job that has not succeeded yet. No module and no person may see it.
    Staged,
    /// Committed; the relay publishes it if the process that committed it does not.
    Unpublished,
    /// Committed and published.
    Published,
}

/// An event document. Inserting it is the commit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// The event's id, as in `context`: the key of the document.
    pub id: EventId,
    /// Its place in its lineage.
    pub context: Context,
    /// The event type, which modules subscribe to.
    #[serde(rename = "type")]
    pub event_type: String,
    /// Its files; empty when `file_list` names the blob that lists them.
    #[serde(default)]
    pub files: Vec<FileEntry>,
    /// The blob that holds the list of files as JSON, if the list is too long for a document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_list: Option<FileEntry>,
    /// Its values, in the order written.
    #[serde(default)]
    pub data: Vec<KeyValue>,
    /// The empty directories that it names: those that the paths of its files do not imply. Older
    /// Ion neither writes nor reads them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub directories: Vec<String>,
    /// When it was committed; while it is staged, when it was staged.
    pub created: Millis,
    /// Whether it is staged, unpublished or published.
    pub publication: PublicationState,
    /// How many generations it is below the first event of its correlation, whose depth is 0. An
    /// event that an older Ion committed has depth 0 too.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub depth: u32,
    /// The name of the event file it came from; `None` for an event that `ion event create` made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_name: Option<String>,
    /// The job that committed it; `None` for a first event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<JobId>,
    /// The attempt of that job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// The relay that has taken over its publication; `None` while the process that committed it is
    /// to publish it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publisher: Option<String>,
    /// True when it is for no module: none was registered for its type, or the event did not meet
    /// the terms of any.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unrouted: bool,
    /// True when its correlation, or an event that it descends from, was being cancelled as it was
    /// committed: no module receives it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancelled: bool,
    /// The modules that receive it: those that were registered for its type, and whose terms it
    /// met, when it was committed (`ion_stores::registry`). `None` if an older Ion committed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_by: Option<Vec<String>>,
    /// The version of the registry that `expected_by` was taken from.
    #[serde(default)]
    pub registry: u64,
    /// True until a dispatcher has seen that each module of `expected_by` that is still registered
    /// has a job for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unclaimed: bool,
    /// What it says of the run of a source that it starts; none for all other events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tick: Option<Box<SourceTick>>,
}

impl Event {
    /// Whether `other` has the same content, given the files of both. A repeated commit is compared
    /// by this. Blob keys, times and attempts may differ between attempts; the type, the values,
    /// the directories, and the names and bytes of files may not.
    pub fn has_same_content(
        &self,
        files: &[FileEntry],
        other: &Event,
        other_files: &[FileEntry],
    ) -> bool {
        let is_same_file = |(a, b): (&FileEntry, &FileEntry)| {
            a.name == b.name && a.size == b.size && a.checksums == b.checksums
        };
        self.event_type == other.event_type
            && self.data == other.data
            && self.directories == other.directories
            && files.len() == other_files.len()
            && files.iter().zip(other_files).all(is_same_file)
    }

    /// Returns the depth of the events that its jobs publish.
    pub fn child_depth(&self) -> u32 {
        self.depth.saturating_add(1)
    }

    /// Returns the event addressed to no module: people can look at it, and it starts no job.
    #[must_use]
    pub fn for_nobody(self) -> Self {
        let (publication, expected_by) = (PublicationState::Published, Some(vec![]));
        Self { publication, expected_by, unrouted: true, unclaimed: false, ..self }
    }

    /// Returns the message that announces it.
    pub fn message(&self) -> Message {
        Message { context: self.context.clone(), event_type: self.event_type.clone() }
    }
}

/// Returns whether a document of the events' collection is an event: not an insight or a log.
pub fn is_event(document: &Value) -> bool {
    document["context"]["documentType"] == DocumentType::EventMeta.as_str()
}

/// Returns whether a document is an event that is only staged, which nobody may see.
pub fn is_staged(document: &Value) -> bool {
    document["publication"] == json!(PublicationState::Staged)
}

/// A message on the bus, in older Ion's form. It says only "look at this event".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The event's context.
    pub context: Context,
    /// The event's type: the routing key.
    #[serde(rename = "type")]
    pub event_type: String,
}

/// Returns the content of `in/event.json`: the event as a module sees it. It has no blob keys,
/// because a module cannot use them.
pub fn event_json(event: &Event, files: &[FileEntry]) -> Value {
    let files: Vec<Value> =
        files.iter().map(|f| json!({"name": f.name, "size": f.size, "mtime": f.mtime})).collect();
    let mut data = Map::new();
    for pair in &event.data {
        data.insert(pair.key.clone(), Value::String(pair.value.clone()));
    }
    let mut whole =
        json!({"context": event.context, "type": event.event_type, "files": files, "data": data});
    if !event.directories.is_empty() {
        whole["directories"] = json!(event.directories);
    }
    whole
}

#[cfg(test)]
mod tests;
