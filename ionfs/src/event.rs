//! Events: their documents, the messages that announce them, and the files modules write.
//!
//! [`parse`] reads what a module left in `out/events/<name>.json` or `out/insights.json`. It survives
//! any bytes and tells three things apart that the commit rule (DESIGN.md section 3) depends on: content that
//! may still become a document, a complete document, and content that never can be one.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::checksum::Checksums;
use crate::clock::Millis;
use crate::id::{CorrelationId, EventId, JobId};

/// Where an event stands: older Ion's `context`, unchanged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Context {
    /// The module that produced the document; for a first event, the program that created it.
    pub name: String,
    /// The event.
    pub event_id: EventId,
    /// All that came of one first event.
    pub correlation_id: CorrelationId,
    /// The event whose job produced this one; empty or a program's name for a first event.
    #[serde(default)]
    pub parent_event_id: String,
    /// `eventMeta`, `insight` or `modulelogs`.
    #[serde(default)]
    pub document_type: DocumentType,
}

/// What a document of the events collection is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DocumentType {
    /// An event.
    #[default]
    #[serde(rename = "eventMeta")]
    EventMeta,
    /// Values kept for analysis.
    #[serde(rename = "insight")]
    Insight,
    /// Where a job's output is kept.
    #[serde(rename = "modulelogs")]
    ModuleLogs,
}

impl DocumentType {
    /// The word stored in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EventMeta => "eventMeta",
            Self::Insight => "insight",
            Self::ModuleLogs => "modulelogs",
        }
    }
}

/// One value of an event. A list of them, not a map: older Ion's form keeps order and repeats.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// The value; what was not a string in the event file is kept as its JSON text.
    pub value: String,
}

/// One file of an event, as the event document lists it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileEntry {
    /// The path below `in/data`: relative, `/` between components, none of them `.` or `..`.
    pub name: String,
    /// The blob's key.
    pub key: String,
    /// Length in bytes.
    pub size: u64,
    /// Modification time.
    pub mtime: Millis,
    /// Permission bits (`0o7777`).
    pub mode: u32,
    /// What the bytes are checked against on every read.
    pub checksums: Checksums,
}

/// Where an event stands on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Publication {
    /// Of an on-success job that has not succeeded yet: nobody may see it.
    Staged,
    /// Committed; the relay publishes it if its writer does not.
    Unpublished,
    /// Committed and published.
    Published,
}

/// An event document. Inserting it is the commit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// The event's id, again: the key of the document.
    pub id: EventId,
    /// Where it stands.
    pub context: Context,
    /// The event type: what modules subscribe to.
    #[serde(rename = "type")]
    pub event_type: String,
    /// Its files; empty when `file_list` names the blob that lists them.
    #[serde(default)]
    pub files: Vec<FileEntry>,
    /// The blob that holds the list of files, as JSON, when it is too long for a document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_list: Option<FileEntry>,
    /// Its values, in the order written.
    #[serde(default)]
    pub data: Vec<KeyValue>,
    /// When it was committed (for a staged one: staged).
    pub created: Millis,
    /// Where it stands on its way out.
    pub publication: Publication,
    /// The name of the event file it came from; none for an event created by `ion event create`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_name: Option<String>,
    /// The job that committed it; none for a first event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<JobId>,
    /// That job's attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// The relay that publishes it, where its writer did not; none: its writer does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publisher: Option<String>,
    /// True when the bus had no queue for its type.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unrouted: bool,
}

impl Event {
    /// Whether `other` says the same, given the files of both: what a repeated commit is compared by. Blob keys,
    /// times and attempts may differ between attempts; type, values, and files' names and bytes may not.
    pub fn same_content(&self, files: &[FileEntry], other: &Event, other_files: &[FileEntry]) -> bool {
        let same_file = |(a, b): (&FileEntry, &FileEntry)| {
            a.name == b.name && a.size == b.size && a.checksums == b.checksums
        };
        self.event_type == other.event_type
            && self.data == other.data
            && files.len() == other_files.len()
            && files.iter().zip(other_files).all(same_file)
    }

    /// The message that announces it.
    pub fn message(&self) -> Message {
        Message { context: self.context.clone(), event_type: self.event_type.clone() }
    }
}

/// What travels on the bus: "look at this event", in older Ion's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The event's context.
    pub context: Context,
    /// The event's type: the routing key.
    #[serde(rename = "type")]
    pub event_type: String,
}

/// `in/event.json`: the event as a module sees it (no blob keys: a module cannot use them).
pub fn event_json(event: &Event, files: &[FileEntry]) -> Value {
    let files: Vec<Value> =
        files.iter().map(|f| json!({"name": f.name, "size": f.size, "mtime": f.mtime})).collect();
    let mut data = Map::new();
    for pair in &event.data {
        data.insert(pair.key.clone(), Value::String(pair.value.clone()));
    }
    json!({"context": event.context, "type": event.event_type, "files": files, "data": data})
}

/// The document a module wrote into an event file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFile {
    /// The event type, when there was one.
    pub event_type: Option<String>,
    /// Paths below `out/data`, as written.
    pub files: Vec<String>,
    /// All else.
    pub data: Vec<KeyValue>,
}

/// What some content of an event file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Nothing but white space.
    Empty,
    /// May become a document when more is written.
    Incomplete,
    /// One complete document of either form.
    Complete(EventFile),
    /// Never can be one; the reason, in words.
    Invalid(String),
}

/// Reads the content of an event file or of `insights.json`.
///
/// A complete array or object cannot be the prefix of a longer one, so [`Parsed::Complete`] is never
/// early; a number can (`4` of `42`), but no scalar is a document.
pub fn parse(content: &[u8]) -> Parsed {
    if content.iter().all(|byte| byte.is_ascii_whitespace()) {
        return Parsed::Empty;
    }
    match serde_json::from_slice::<Value>(content) {
        Ok(Value::Array(pairs)) => from_pairs(pairs).map_or_else(Parsed::Invalid, Parsed::Complete),
        Ok(Value::Object(fields)) => from_object(fields).map_or_else(Parsed::Invalid, Parsed::Complete),
        Ok(_) => Parsed::Invalid("a JSON array of key-value pairs or a JSON object is needed".into()),
        Err(error) if error.is_eof() => Parsed::Incomplete,
        Err(error) => Parsed::Invalid(format!("not JSON: {error}")),
    }
}

/// `[{"key": "eventType", "value": "frame"}, ...]`
fn from_pairs(pairs: Vec<Value>) -> Result<EventFile, String> {
    let mut file = EventFile::default();
    for (index, pair) in pairs.into_iter().enumerate() {
        let Value::Object(mut pair) = pair else {
            return Err(format!("element {index} is not an object with \"key\" and \"value\""));
        };
        let Some(Value::String(key)) = pair.remove("key") else {
            return Err(format!("element {index} has no \"key\" that is a string"));
        };
        let Some(value) = pair.remove("value") else {
            return Err(format!("element {index} (\"{key}\") has no \"value\""));
        };
        file.take(key, value)?;
    }
    Ok(file)
}

/// `{"eventType": "frame", ...}`
fn from_object(fields: Map<String, Value>) -> Result<EventFile, String> {
    let mut file = EventFile::default();
    for (key, value) in fields {
        file.take(key, value)?;
    }
    Ok(file)
}

impl EventFile {
    fn take(&mut self, key: String, value: Value) -> Result<(), String> {
        match (key.as_str(), value) {
            ("eventType", Value::String(text)) => self.event_type = Some(text),
            ("eventType", _) => return Err("\"eventType\" is not a string".into()),
            // Older Ion's form: comma separated, empty parts skipped.
            ("files", Value::String(text)) => {
                self.files
                    .extend(text.split(',').map(str::trim).filter(|p| !p.is_empty()).map(str::to_owned));
            }
            ("files", Value::Array(names)) => {
                for name in names {
                    let Value::String(name) = name else {
                        return Err("\"files\" holds something that is not a string".into());
                    };
                    self.files.push(name);
                }
            }
            ("files", _) => return Err("\"files\" is neither a string nor an array of strings".into()),
            (_, Value::String(value)) => self.data.push(KeyValue { key, value }),
            (_, value) => self.data.push(KeyValue { key, value: value.to_string() }),
        }
        Ok(())
    }
}

/// A path below `out/data` as an event file may name it, cleaned of `./` and doubled slashes; none if it
/// is absolute, empty, climbs with `..` or holds a zero byte.
pub fn clean_path(path: &str) -> Option<String> {
    if path.starts_with('/') || path.contains('\0') {
        return None;
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    (!parts.is_empty() && !parts.contains(&"..")).then(|| parts.join("/"))
}

/// Whether a name in `out/events` is a draft: no event until it is renamed. `sed -i` writes its result to a
/// `sedXXXXXX` beside the file and renames it, so such a name is a draft too.
pub fn is_draft(name: &str) -> bool {
    let seds_own =
        name.len() == 9 && name.starts_with("sed") && name.bytes().all(|b| b.is_ascii_alphanumeric());
    seds_own || name.starts_with('.') || [".tmp", ".part", ".swp", "~"].iter().any(|end| name.ends_with(end))
}

/// Whether a text can be an event type: it is a routing key, part of names and paths. At most 200 bytes of
/// letters, digits, `.`, `_` and `-`, beginning with a letter or digit.
pub fn is_event_type(text: &str) -> bool {
    text.len() <= 200
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_forms_say_the_same() {
        let pairs = br#"[{"key": "eventType", "value": "frame"}, {"key": "files", "value": "a.png,,b.png"}, {"key": "n", "value": "7"}]"#;
        let object = br#"{"eventType": "frame", "files": ["a.png", "b.png"], "n": 7}"#;
        assert_eq!(parse(pairs), parse(object));
        let Parsed::Complete(file) = parse(object) else { panic!("not complete") };
        assert_eq!(file.event_type.as_deref(), Some("frame"));
        assert_eq!(file.files, ["a.png", "b.png"]);
        assert_eq!(file.data, [KeyValue { key: "n".into(), value: "7".into() }]);
    }

    #[test]
    fn every_proper_prefix_of_a_document_is_incomplete() {
        let document = br#"  {"eventType": "frame", "files": ["a\u00e9.png"], "n": [1, {"x": null}]}"#;
        for end in 0..document.len() {
            assert!(
                matches!(parse(&document[..end]), Parsed::Empty | Parsed::Incomplete),
                "prefix of {end} bytes"
            );
        }
        assert!(matches!(parse(document), Parsed::Complete(_)));
    }

    #[test]
    fn paths_that_leave_the_root_are_refused() {
        for path in ["/etc/passwd", "../x", "a/../../x", "a/..", "", ".", "a\0b"] {
            assert_eq!(clean_path(path), None, "{path:?}");
        }
        assert_eq!(clean_path("./a//b").as_deref(), Some("a/b"));
    }

    #[test]
    fn a_deeply_nested_document_is_refused_and_not_a_stack_overflow() {
        let bomb = "[".repeat(200_000);
        assert!(matches!(parse(bomb.as_bytes()), Parsed::Invalid(_)));
    }

    proptest! {
        #[test]
        fn parsing_survives_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn parsing_survives_almost_json(text in "[\\[\\]{}\":,a-z0-9\\\\ ]{0,64}") {
            let _ = parse(text.as_bytes());
        }

        #[test]
        fn what_was_written_is_read(event_type in "[a-z][a-z0-9._-]{0,20}", files in proptest::collection::vec("[a-z/ ]{1,12}", 0..5), n in any::<i64>()) {
            let document = json!({"eventType": event_type, "files": files, "n": n});
            let Parsed::Complete(file) = parse(document.to_string().as_bytes()) else { panic!("not complete") };
            prop_assert_eq!(file.event_type, Some(event_type));
            prop_assert_eq!(file.files, files);
            prop_assert_eq!(file.data[0].value.clone(), n.to_string());
        }

        #[test]
        fn a_clean_path_never_climbs(path in "[a./]{0,16}") {
            if let Some(clean) = clean_path(&path) {
                prop_assert!(clean.split('/').all(|part| !part.is_empty() && part != "." && part != ".."));
            }
        }
    }
}
