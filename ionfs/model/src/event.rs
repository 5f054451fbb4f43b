//! Events: their documents, the messages that announce them, and the event files that modules
//! write.
//!
//! [`parse`] reads what a module wrote to `out/events/<name>.json` or `out/insights.json`. It never
//! panics, whatever the bytes are. It distinguishes three cases that the commit rule (DESIGN.md
//! section 3) depends on: content that may still become a document, a complete document, and
//! content that can never become one.

use std::fmt;
use std::time::SystemTime;

use serde::de::{self, Deserializer as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::checksum::Checksums;
use crate::clock::{self, Millis};
use crate::id::{CorrelationId, EventId, JobId};
use crate::limits::{Limits, bytes_in_words};
use crate::text::{QUOTE_MAX, cut, quote};

/// How deep brackets may be nested in one value of an event: as deep as common JSON readers accept.
const DEPTH_MAX: usize = 128;

/// The most bytes of a key that may be a near miss: enough for a reserved word with every `_` and
/// `-` that somebody might put into it.
const NEAR_MISS_BYTES: usize = 20;

/// The most near misses of reserved words that one event file keeps. With more, an event of many
/// odd keys would take its memory twice.
const NEAR_MISSES_MAX: usize = 16;

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
    /// Nanoseconds after `mtime`, fewer than a million. Older Ion neither writes nor reads them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mtime_nanos: u32,
    /// Permission bits (`0o7777`).
    pub mode: u32,
    /// The checksums that every read is checked against.
    pub checksums: Checksums,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl FileEntry {
    /// Returns the modification time, to the nanosecond.
    pub fn modified(&self) -> SystemTime {
        clock::system_time_nanos(self.mtime, self.mtime_nanos)
    }

    /// Whether `bytes` are the file's whole content as it was written: the length agrees, and each
    /// block matches its checksum.
    pub fn holds(&self, bytes: &[u8]) -> bool {
        let Some(block) = usize::try_from(self.checksums.block).ok().filter(|block| *block > 0)
        else {
            return false;
        };
        bytes.len() as u64 == self.size
            && (0..)
                .zip(bytes.chunks(block))
                .all(|(index, bytes)| self.checksums.agrees(index, bytes))
    }
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
    /// True when no module was registered for its type.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unrouted: bool,
    /// True when its correlation, or an event that it descends from, was being cancelled as it was
    /// committed: no module receives it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancelled: bool,
    /// The modules that receive it: those that were registered for its type when it was committed
    /// (`ion_stores::registry`). `None` if an older Ion committed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_by: Option<Vec<String>>,
    /// The version of the registry that `expected_by` was taken from.
    #[serde(default)]
    pub registry: u64,
    /// True until a dispatcher has seen that each module of `expected_by` that is still registered
    /// has a job for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unclaimed: bool,
}

impl Event {
    /// Whether `other` has the same content, given the files of both. A repeated commit is compared
    /// by this. Blob keys, times and attempts may differ between attempts; the type, the values,
    /// the directories, and the names and bytes of files may not.
    pub fn same_content(
        &self,
        files: &[FileEntry],
        other: &Event,
        other_files: &[FileEntry],
    ) -> bool {
        let same_file = |(a, b): (&FileEntry, &FileEntry)| {
            a.name == b.name && a.size == b.size && a.checksums == b.checksums
        };
        self.event_type == other.event_type
            && self.data == other.data
            && self.directories == other.directories
            && files.len() == other_files.len()
            && files.iter().zip(other_files).all(same_file)
    }

    /// Returns the depth of the events that its jobs publish.
    pub fn depth_below(&self) -> u32 {
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

/// The document that a module wrote into an event file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFile {
    /// The event type, if the document has one.
    pub event_type: Option<String>,
    /// Paths below `out/data`, as written. A path that ends in a slash names a directory with all
    /// its content.
    pub files: Vec<String>,
    /// All other values.
    pub data: Vec<KeyValue>,
    /// Whether the document has the key `files`, even if its list is empty.
    pub says_files: bool,
    /// Keys that are almost a reserved word.
    pub near_misses: Vec<NearMiss>,
}

/// A key that is almost a reserved word, and whose value could be the value of that word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearMiss {
    /// The key as it was written.
    key: String,
    /// The reserved word.
    word: &'static str,
    /// The files of which one must exist for the key to count as a slip; `None` if it always
    /// counts.
    if_there: Option<Vec<String>>,
}

impl NearMiss {
    /// Returns a near miss if the key differs from a reserved word only by capitals, `_`, `-` and
    /// spaces, or is its singular. `text` is the value, if the value is a string.
    fn of(key: &str, value: &str, text: Option<&str>) -> Option<Self> {
        if key.len() > NEAR_MISS_BYTES {
            return None;
        }
        let plain: String = key.chars().filter(|c| !matches!(c, '_' | '-' | ' ')).collect();
        let near = |word, if_there| Some(Self { key: key.to_owned(), word, if_there });
        match (plain.to_lowercase().as_str(), text) {
            ("eventtype", Some(_)) => near("eventType", None),
            ("files", Some(_)) => near("files", None),
            ("files" | "file", None) if value.starts_with('[') => near("files", None),
            // A string under `file` may be an ordinary value, so it counts only if it names a file.
            ("file", Some(text)) => {
                near("files", Some(file_names(text).map(str::to_owned).collect()))
            }
            _ => None,
        }
    }
}

/// Splits older Ion's list of files: the parts are separated by commas, and empty parts are
/// skipped.
fn file_names(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

impl EventFile {
    /// Describes a probable slip in words, if a reserved word is missing and another key is almost
    /// that word. `is_there` returns whether a path is a file of the job.
    pub fn slip(&self, is_there: impl Fn(&str) -> bool) -> Option<String> {
        let missing = |word| match word {
            "eventType" => self.event_type.is_none(),
            _ => !self.says_files,
        };
        let meant = |miss: &&NearMiss| {
            missing(miss.word)
                && miss
                    .if_there
                    .as_ref()
                    .is_none_or(|paths| paths.iter().any(|path| is_there(path)))
        };
        let NearMiss { key, word, .. } = self.near_misses.iter().find(meant)?;
        Some(format!("did you mean {word:?}? There is a value {key:?} and no {word:?}"))
    }

    /// Returns the whole document as values, the reserved words included. `insights.json` is read
    /// so.
    pub fn into_values(self) -> Vec<KeyValue> {
        let pair = |key: &str, value| KeyValue { key: key.to_owned(), value };
        let event_type = self.event_type.map(|value| pair("eventType", value));
        let files = (!self.files.is_empty()).then(|| pair("files", self.files.join(",")));
        event_type.into_iter().chain(files).chain(self.data).collect()
    }
}

/// The result of reading an event file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParsedEventFile {
    /// The content is nothing but white space.
    Empty,
    /// The content may become a document when more is written.
    Incomplete,
    /// The content is one complete document of either form.
    Complete(EventFile),
    /// The content can never become a document; the reason, in words.
    Invalid(String),
    /// The content is a document that exceeds a limit; which limit, in words.
    TooBig(String),
}

/// Reads the content of an event file or of `insights.json`, within the default limits of jobs.
pub fn parse(content: &[u8]) -> ParsedEventFile {
    parse_within(content, &Limits::default())
}

/// Reads the content of an event file or of `insights.json`.
///
/// A complete array or object cannot be the prefix of a longer one, so [`ParsedEventFile::Complete`] is
/// never early. A number can be such a prefix (`4` of `42`), but no scalar is a document.
///
/// It never builds a tree of the whole document: a file of 16 MiB can hold millions of values,
/// which would take a gigabyte. It keeps the text of a value that is not a string unchanged, so
/// that no digit of a number is lost.
pub fn parse_within(content: &[u8], limits: &Limits) -> ParsedEventFile {
    // Windows programs put a byte order mark before UTF-8.
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
    if content.iter().all(|byte| byte.is_ascii_whitespace()) {
        return ParsedEventFile::Empty;
    }
    // Checks the syntax of the whole without keeping it, and without recursion at any depth.
    match serde_json::from_slice::<IgnoredAny>(content) {
        Ok(_) => {}
        Err(error) if error.is_eof() => return ParsedEventFile::Incomplete,
        Err(error) => return ParsedEventFile::Invalid(not_json(&error)),
    }
    let Ok(text) = std::str::from_utf8(content).map(str::trim_ascii) else {
        return ParsedEventFile::Invalid("not JSON: not UTF-8".into());
    };
    let mut reading = EventFileReader { file: EventFile::default(), limits, value_bytes: 0 };
    match reading.document(text) {
        Ok(()) => ParsedEventFile::Complete(reading.file),
        Err(EventFileError::Form(reason)) => ParsedEventFile::Invalid(reason),
        Err(EventFileError::Size(reason)) => ParsedEventFile::TooBig(reason),
    }
}

/// Why a JSON document is not a valid event file.
enum EventFileError {
    Form(String),
    Size(String),
}

/// The state of reading an event file from valid JSON.
struct EventFileReader<'l> {
    file: EventFile,
    limits: &'l Limits,
    value_bytes: u64,
}

impl EventFileReader<'_> {
    fn document(&mut self, text: &str) -> Result<(), EventFileError> {
        match text.as_bytes().first() {
            // `[{"key": "eventType", "value": "frame"}, ...]`
            Some(b'[') => {
                let mut index = 0;
                each(text, |_, element| {
                    let (key, value) = pair(index, element)?;
                    index += 1;
                    self.take(key, value)
                })
            }
            // `{"eventType": "frame", ...}`
            Some(b'{') => each(text, |key, value| self.take(key, value)),
            _ => Err(EventFileError::Form(
                "a JSON array of key-value pairs or a JSON object is needed".into(),
            )),
        }
    }

    fn take(&mut self, key: String, value: &str) -> Result<(), EventFileError> {
        let text = if value.starts_with('"') { Some(string(value)?) } else { None };
        self.file.says_files |= key == "files";
        // Only the first near misses are kept: they are enough to find one that counts as a slip.
        if self.file.near_misses.len() < NEAR_MISSES_MAX {
            self.file.near_misses.extend(NearMiss::of(&key, value, text.as_deref()));
        }
        match (key.as_str(), text) {
            ("eventType", Some(text)) => self.file.event_type = Some(text),
            ("eventType", None) => {
                return Err(EventFileError::Form("\"eventType\" is not a string".into()));
            }
            ("files", Some(text)) => {
                for name in file_names(&text) {
                    self.name(name.to_owned())?;
                }
            }
            ("files", None) if value.starts_with('[') => each(value, |_, name| {
                if !name.starts_with('"') {
                    return Err(EventFileError::Form(
                        "\"files\" holds something that is not a string".into(),
                    ));
                }
                self.name(string(name)?)
            })?,
            ("files", None) => {
                return Err(EventFileError::Form(
                    "\"files\" is neither a string nor an array of strings".into(),
                ));
            }
            (_, Some(value)) => self.value(key, value)?,
            (_, None) => {
                nested_sensibly(value)?;
                self.value(key, value.to_owned())?;
            }
        }
        Ok(())
    }

    fn name(&mut self, name: String) -> Result<(), EventFileError> {
        if self.file.files.len() as u64 >= self.limits.event_files {
            return Err(EventFileError::Size(format!(
                "an event may name {} files",
                self.limits.event_files
            )));
        }
        self.file.files.push(name);
        Ok(())
    }

    fn value(&mut self, key: String, value: String) -> Result<(), EventFileError> {
        if self.file.data.len() as u64 >= self.limits.event_values {
            return Err(EventFileError::Size(format!(
                "an event may have {} values",
                self.limits.event_values
            )));
        }
        self.value_bytes += (key.len() + value.len()) as u64;
        if self.value_bytes > self.limits.event_value_bytes {
            let most = bytes_in_words(self.limits.event_value_bytes);
            return Err(EventFileError::Size(format!(
                "the values of an event may take {most}; put more into a file and name it"
            )));
        }
        self.file.data.push(KeyValue { key, value });
        Ok(())
    }
}

/// Reads one of older Ion's pairs: returns its key, and the JSON text of its value.
fn pair(index: usize, element: &str) -> Result<(String, &str), EventFileError> {
    if !element.starts_with('{') {
        return Err(EventFileError::Form(format!(
            "element {index} is not an object with \"key\" and \"value\""
        )));
    }
    let (mut key, mut value) = (None, None);
    each(element, |name, text| {
        match &*name {
            "key" => key = Some(text),
            "value" => value = Some(text),
            _ => {}
        }
        Ok(())
    })?;
    let key = key.filter(|text| text.starts_with('"'));
    let key = string(key.ok_or_else(|| {
        EventFileError::Form(format!("element {index} has no \"key\" that is a string"))
    })?)?;
    match value {
        Some(value) => Ok((key, value)),
        None => {
            Err(EventFileError::Form(format!("element {index} ({}) has no \"value\"", quote(&key))))
        }
    }
}

/// Calls `take` for each member of an object with its name, or for each element of an array with an
/// empty name. Each value is given as its JSON text.
fn each<'t>(
    text: &'t str,
    mut take: impl FnMut(String, &'t str) -> Result<(), EventFileError>,
) -> Result<(), EventFileError> {
    let mut wrong = None;
    let take = |name, value: &'t RawValue| {
        take(name, value.get()).map_err(|why| wrong = Some(why)).is_ok()
    };
    let read = serde_json::Deserializer::from_str(text).deserialize_any(Each(take));
    match (wrong, read) {
        (Some(wrong), _) => Err(wrong),
        (None, Err(error)) => Err(EventFileError::Form(not_json(&error))),
        (None, Ok(())) => Ok(()),
    }
}

/// Visits the parts of one value until the callback returns false.
struct Each<F>(F);

impl<'de, F: FnMut(String, &'de RawValue) -> bool> Visitor<'de> for Each<F> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an array or an object")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut parts: A) -> Result<(), A::Error> {
        while let Some(value) = parts.next_element()? {
            if !(self.0)(String::new(), value) {
                return Err(de::Error::custom("not taken"));
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut parts: A) -> Result<(), A::Error> {
        while let Some((name, value)) = parts.next_entry()? {
            if !(self.0)(name, value) {
                return Err(de::Error::custom("not taken"));
            }
        }
        Ok(())
    }
}

/// Describes a parser error in words, cut because the parser may quote the offending text.
fn not_json(error: &serde_json::Error) -> String {
    format!("not JSON: {}", cut(&error.to_string(), QUOTE_MAX))
}

fn string(text: &str) -> Result<String, EventFileError> {
    serde_json::from_str(text).map_err(|error| EventFileError::Form(not_json(&error)))
}

/// Refuses a value that is nested so deeply that programs which read it run out of stack.
fn nested_sensibly(value: &str) -> Result<(), EventFileError> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in value.bytes() {
        match byte {
            _ if in_string => {
                in_string = escaped || byte != b'"';
                escaped = byte == b'\\' && !escaped;
            }
            b'"' => in_string = true,
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_MAX {
            return Err(EventFileError::Form(format!(
                "a value is nested more than {DEPTH_MAX} deep"
            )));
        }
    }
    Ok(())
}

/// Returns a path below `out/data` from an event file without `./` and doubled slashes; `None` if
/// the path is absolute or empty, or has a `..` component or a zero byte.
pub fn clean_path(path: &str) -> Option<String> {
    if path.starts_with('/') || path.contains('\0') {
        return None;
    }
    let parts: Vec<&str> =
        path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    (!parts.is_empty() && !parts.contains(&"..")).then(|| parts.join("/"))
}

/// Whether a name in `out/events` is a draft: the file is no event until it is renamed.
pub fn is_event_draft(name: &str) -> bool {
    is_draft(name) || is_doubtful_draft(name)
}

/// Whether a name in `out/events` has the form of a draft's name, but could also be meant as an
/// event's name. If such a file holds a complete event when its job ends, it was not meant as a
/// draft.
///
/// Python's `tempfile` makes names of `tmp` and eight lowercase letters, digits or `_`. Many
/// programs append a number to the name that they will rename the file to: `made.json.4711`.
pub fn is_doubtful_draft(name: &str) -> bool {
    let pythons_own = |rest: &str| {
        rest.len() == 8
            && rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    let numbered = |(stem, number): (&str, &str)| {
        !stem.is_empty() && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
    };
    name.strip_prefix("tmp").is_some_and(pythons_own) || name.rsplit_once('.').is_some_and(numbered)
}

/// Why a [doubtful draft](is_doubtful_draft) that holds a complete event at the job's end is
/// refused.
pub const WHOLE_DRAFT: &str = "it is a whole event under the name of a draft (`tmp` and 8 letters, or a number at its end), so \
                               nothing was published; rename the file once it is complete, or write it under another name";

/// Whether a name is that of a file which will be renamed. `sed -i` writes its result to a new file
/// beside the old one, named `sed` and six letters or digits, and renames it, so such a name is a
/// draft too.
pub fn is_draft(name: &str) -> bool {
    let seds_own = name.len() == 9
        && name.starts_with("sed")
        && name.bytes().all(|b| b.is_ascii_alphanumeric());
    seds_own
        || name.starts_with('.')
        || [".tmp", ".part", ".swp", "~"].iter().any(|end| name.ends_with(end))
}

/// The most bytes of an event type. AMQP's routing keys and file names have at most 255 bytes; the
/// difference is left for the text that stands beside the type in them.
pub const TYPE_BYTES_MAX: usize = 200;

/// Whether a text can be an event type: at most [`TYPE_BYTES_MAX`] bytes of ASCII letters, digits,
/// `.`, `_` and `-`, beginning with a letter or a digit. An event type is a routing key and part of
/// names and paths.
pub fn is_event_type(text: &str) -> bool {
    text.len() <= TYPE_BYTES_MAX
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_byte_order_mark_says_nothing() {
        assert_eq!(parse(b"\xef\xbb\xbf{\"eventType\": \"a\"}"), parse(b"{\"eventType\": \"a\"}"));
        assert_eq!(parse(b"\xef\xbb\xbf"), ParsedEventFile::Empty);
        assert!(matches!(parse(b"{\xef\xbb\xbf}"), ParsedEventFile::Invalid(_)));
    }

    #[test]
    fn both_forms_say_the_same() {
        let pairs = br#"[{"key": "eventType", "value": "frame"}, {"key": "files", "value": "a.png,,b.png"}, {"key": "n", "value": "7"}]"#;
        let object = br#"{"eventType": "frame", "files": ["a.png", "b.png"], "n": 7}"#;
        assert_eq!(parse(pairs), parse(object));
        let ParsedEventFile::Complete(file) = parse(object) else { panic!("not complete") };
        assert_eq!(file.event_type.as_deref(), Some("frame"));
        assert_eq!(file.files, ["a.png", "b.png"]);
        assert_eq!(file.data, [KeyValue { key: "n".into(), value: "7".into() }]);
    }

    #[test]
    fn a_near_miss_of_a_reserved_word_is_a_slip_and_an_honest_value_is_none() {
        let slip = |text: &str| {
            let ParsedEventFile::Complete(file) = parse(text.as_bytes()) else {
                panic!("not complete: {text}")
            };
            file.slip(|path| path == "a.png")
        };
        for key in ["Files", "FILES", "file_s", "fi-les", "File", "file"] {
            let said = format!("did you mean \"files\"? There is a value {key:?} and no \"files\"");
            assert_eq!(
                slip(&format!(r#"{{"eventType": "t", "{key}": ["x"]}}"#)),
                Some(said.clone())
            );
            let pairs = format!(
                r#"[{{"key":"eventType","value":"t"}},{{"key":"{key}","value":"b.png, a.png"}}]"#
            );
            assert_eq!(slip(&pairs), Some(said));
        }
        for key in ["EventType", "event_type", "eventtype", "event-type"] {
            let said = format!(
                "did you mean \"eventType\"? There is a value {key:?} and no \"eventType\""
            );
            assert_eq!(slip(&format!(r#"{{"{key}": "t"}}"#)), Some(said));
        }
        for honest in [
            r#"{"eventType": "t", "file": "x.png"}"#,
            r#"{"eventType": "t", "Files": 12, "file": {"name": "a.png"}}"#,
            r#"{"eventType": "t", "files": [], "file": "a.png", "Files": ["x"]}"#,
            r#"{"eventType": "t", "event_type": "click", "type": "x"}"#,
            r#"{"eventType": "t", "profiles": ["x"], "filename": "a.png", "filesystem": ["x"]}"#,
        ] {
            assert_eq!(slip(honest), None, "{honest}");
        }
    }

    #[test]
    fn names_that_programs_rename_later_are_drafts() {
        for draft in ["tmpa1_b2c3d", ".x", "x~", "x.tmp", "sedAb12Cd", "made.json.4711", "made.1"] {
            assert!(is_event_draft(draft), "{draft}");
        }
        for event in [
            "tmp",
            "tmpa1_b2c3",
            "tmpA1_b2c3d",
            "tmpa1_b2c3d.json",
            "made.json",
            "made.v1",
            "made1",
            "4711",
        ] {
            assert!(!is_event_draft(event), "{event}");
        }
        assert!(!is_draft("frame.0001"), "the files of out/data are uploaded as before");
    }

    #[test]
    fn every_proper_prefix_of_a_document_is_incomplete() {
        let document =
            br#"  {"eventType": "frame", "files": ["a\u00e9.png"], "n": [1, {"x": null}]}"#;
        for end in 0..document.len() {
            assert!(
                matches!(
                    parse(&document[..end]),
                    ParsedEventFile::Empty | ParsedEventFile::Incomplete
                ),
                "prefix of {end} bytes"
            );
        }
        assert!(matches!(parse(document), ParsedEventFile::Complete(_)));
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
        for bomb in [
            "[".repeat(200_000) + &"]".repeat(200_000),
            format!("{{\"a\":{}{}}}", "[".repeat(200_000), "]".repeat(200_000)),
        ] {
            assert!(matches!(parse(bomb.as_bytes()), ParsedEventFile::Invalid(_)));
        }
    }

    #[test]
    fn what_is_no_string_is_kept_to_the_letter() {
        let ParsedEventFile::Complete(file) = parse(br#" { "eventType":"a" , "n" : 1234567890123456789012.50, "l":[ 1,{"]":"\"}"} ], "s" : "\u00e9,:" } "#) else {
            panic!("not complete")
        };
        let values: Vec<_> = file.data.iter().map(|pair| (&*pair.key, &*pair.value)).collect();
        assert_eq!(
            values,
            [("n", "1234567890123456789012.50"), ("l", r#"[ 1,{"]":"\"}"} ]"#), ("s", "\u{e9},:")]
        );
    }

    #[test]
    fn each_limit_of_an_event_is_told_apart_from_a_mistake() {
        let limits =
            Limits { event_values: 2, event_value_bytes: 10, event_files: 1, ..Limits::default() };
        let over = |text: &str| match parse_within(text.as_bytes(), &limits) {
            ParsedEventFile::TooBig(reason) => reason,
            other => panic!("{other:?}"),
        };
        assert!(matches!(
            parse_within(br#"{"a":1,"b":2,"files":"x"}"#, &limits),
            ParsedEventFile::Complete(_)
        ));
        assert_eq!(over(r#"{"a":1,"b":2,"c":3}"#), "an event may have 2 values");
        assert_eq!(over(r#"[{"key":"files","value":"x,y"}]"#), "an event may name 1 files");
        assert!(over(r#"{"abc":"12345678"}"#).contains("may take 10 bytes"));
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
            let ParsedEventFile::Complete(file) = parse(document.to_string().as_bytes()) else { panic!("not complete") };
            prop_assert_eq!(file.event_type, Some(event_type));
            prop_assert_eq!(file.files, files);
            prop_assert_eq!(file.data[0].value.clone(), n.to_string());
        }

        /// The members that this parser finds are those that serde_json's own tree has.
        #[test]
        fn members_are_those_of_a_whole_reader(text in "\\{(\"[a-c\\\\\\]\\[{}:,]{0,4}\" ?: ?(1.50|null|\"[a,:{}\\[\\]]{0,5}\"|\\[1, ?\"\\]\"\\]|\\{\"x\": ?\\{\\}\\}),? ?){0,4}\\}") {
            let Ok(Value::Object(fields)) = serde_json::from_str::<Value>(&text) else { return Ok(()) };
            let ParsedEventFile::Complete(file) = parse(text.as_bytes()) else { panic!("not complete: {text}") };
            for pair in &file.data {
                prop_assert!(fields.contains_key(&pair.key), "{}", text);
            }
            for (key, value) in &fields {
                let last = file.data.iter().rfind(|pair| pair.key == *key).unwrap();
                let read = serde_json::from_str(&last.value).unwrap_or(Value::Null);
                prop_assert!(value.as_str() == Some(&last.value) || *value == read, "{}", text);
            }
        }

        #[test]
        fn a_clean_path_never_climbs(path in "[a./]{0,16}") {
            if let Some(clean) = clean_path(&path) {
                prop_assert!(clean.split('/').all(|part| !part.is_empty() && part != "." && part != ".."));
            }
        }
    }
}
