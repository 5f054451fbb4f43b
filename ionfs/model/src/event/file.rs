//! Event files: what modules write to `out/events/<name>.json` and `out/insights.json`.

use std::fmt;

use serde::de::{self, Deserializer as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::KeyValue;
use crate::limits::{Limits, bytes_in_words};
use crate::text::{QUOTE_MAX, cut, quote};

/// How deep brackets may be nested in one value of an event: as deep as common JSON readers accept.
const NESTING_MAX: usize = 128;

/// The most bytes of a key that may be a near miss: enough for a reserved word with every `_` and
/// `-` that somebody might put into it.
const NEAR_MISS_BYTES_MAX: usize = 20;

/// The most near misses of reserved words that one event file keeps. With more, an event of many
/// odd keys would take its memory twice.
const NEAR_MISSES_MAX: usize = 16;

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
    pub has_files_key: bool,
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
    needed_files: Option<Vec<String>>,
}

impl NearMiss {
    /// Returns a near miss if the key differs from a reserved word only by capitals, `_`, `-` and
    /// spaces, or is its singular. `text` is the value, if the value is a string.
    fn detect(key: &str, value: &str, text: Option<&str>) -> Option<Self> {
        if key.len() > NEAR_MISS_BYTES_MAX {
            return None;
        }
        let plain: String = key.chars().filter(|c| !matches!(c, '_' | '-' | ' ')).collect();
        let near = |word, needed_files| Some(Self { key: key.to_owned(), word, needed_files });
        match (plain.to_lowercase().as_str(), text) {
            ("eventtype", Some(_)) => near("eventType", None),
            ("files", Some(_)) => near("files", None),
            ("files" | "file", None) if value.starts_with('[') => near("files", None),
            // A string under `file` may be an ordinary value, so it counts only if it names a file.
            ("file", Some(text)) => {
                near("files", Some(split_file_names(text).map(str::to_owned).collect()))
            }
            _ => None,
        }
    }
}

/// Splits older Ion's list of files: the parts are separated by commas, and empty parts are
/// skipped.
fn split_file_names(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

impl EventFile {
    /// Describes a probable slip in words, if a reserved word is missing and another key is almost
    /// that word. `is_file` returns whether a path is a file of the job.
    pub fn find_slip(&self, is_file: impl Fn(&str) -> bool) -> Option<String> {
        let is_missing = |word| match word {
            "eventType" => self.event_type.is_none(),
            _ => !self.has_files_key,
        };
        let is_slip = |miss: &&NearMiss| {
            is_missing(miss.word)
                && miss
                    .needed_files
                    .as_ref()
                    .is_none_or(|paths| paths.iter().any(|path| is_file(path)))
        };
        let NearMiss { key, word, .. } = self.near_misses.iter().find(is_slip)?;
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
/// A complete array or object cannot be the prefix of a longer one, so
/// [`ParsedEventFile::Complete`] is never early. A number can be such a prefix (`4` of `42`), but
/// no scalar is a document.
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
        Err(error) => return ParsedEventFile::Invalid(json_error_text(&error)),
    }
    let Ok(text) = std::str::from_utf8(content).map(str::trim_ascii) else {
        return ParsedEventFile::Invalid("not JSON: not UTF-8".into());
    };
    let mut reader = EventFileReader { file: EventFile::default(), limits, value_bytes: 0 };
    match reader.read_document(text) {
        Ok(()) => ParsedEventFile::Complete(reader.file),
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
    fn read_document(&mut self, text: &str) -> Result<(), EventFileError> {
        match text.as_bytes().first() {
            // `[{"key": "eventType", "value": "frame"}, ...]`
            Some(b'[') => {
                let mut index = 0;
                for_each_member(text, |_, element| {
                    let (key, value) = parse_pair(index, element)?;
                    index += 1;
                    self.add_member(key, value)
                })
            }
            // `{"eventType": "frame", ...}`
            Some(b'{') => for_each_member(text, |key, value| self.add_member(key, value)),
            _ => Err(EventFileError::Form(
                "a JSON array of key-value pairs or a JSON object is needed".into(),
            )),
        }
    }

    fn add_member(&mut self, key: String, value: &str) -> Result<(), EventFileError> {
        let text = if value.starts_with('"') { Some(parse_string(value)?) } else { None };
        self.file.has_files_key |= key == "files";
        // Only the first near misses are kept: they are enough to find one that counts as a slip.
        if self.file.near_misses.len() < NEAR_MISSES_MAX {
            self.file.near_misses.extend(NearMiss::detect(&key, value, text.as_deref()));
        }
        match (key.as_str(), text) {
            ("eventType", Some(text)) => self.file.event_type = Some(text),
            ("eventType", None) => {
                return Err(EventFileError::Form("\"eventType\" is not a string".into()));
            }
            ("files", Some(text)) => {
                for name in split_file_names(&text) {
                    self.add_file(name.to_owned())?;
                }
            }
            ("files", None) if value.starts_with('[') => for_each_member(value, |_, name| {
                if !name.starts_with('"') {
                    return Err(EventFileError::Form(
                        "\"files\" holds something that is not a string".into(),
                    ));
                }
                self.add_file(parse_string(name)?)
            })?,
            ("files", None) => {
                return Err(EventFileError::Form(
                    "\"files\" is neither a string nor an array of strings".into(),
                ));
            }
            (_, Some(value)) => self.add_value(key, value)?,
            (_, None) => {
                check_nesting(value)?;
                self.add_value(key, value.to_owned())?;
            }
        }
        Ok(())
    }

    fn add_file(&mut self, name: String) -> Result<(), EventFileError> {
        if self.file.files.len() as u64 >= self.limits.event_files {
            return Err(EventFileError::Size(format!(
                "an event may name {} files",
                self.limits.event_files
            )));
        }
        self.file.files.push(name);
        Ok(())
    }

    fn add_value(&mut self, key: String, value: String) -> Result<(), EventFileError> {
        if self.file.data.len() as u64 >= self.limits.event_values {
            return Err(EventFileError::Size(format!(
                "an event may have {} values",
                self.limits.event_values
            )));
        }
        self.value_bytes += (key.len() + value.len()) as u64;
        if self.value_bytes > self.limits.event_value_bytes {
            let max = bytes_in_words(self.limits.event_value_bytes);
            return Err(EventFileError::Size(format!(
                "the values of an event may take {max}; put more into a file and name it"
            )));
        }
        self.file.data.push(KeyValue { key, value });
        Ok(())
    }
}

/// Reads one of older Ion's pairs: returns its key, and the JSON text of its value.
fn parse_pair(index: usize, element: &str) -> Result<(String, &str), EventFileError> {
    if !element.starts_with('{') {
        return Err(EventFileError::Form(format!(
            "element {index} is not an object with \"key\" and \"value\""
        )));
    }
    let (mut key, mut value) = (None, None);
    for_each_member(element, |name, text| {
        match &*name {
            "key" => key = Some(text),
            "value" => value = Some(text),
            _ => {}
        }
        Ok(())
    })?;
    let key = key.filter(|text| text.starts_with('"'));
    let key = parse_string(key.ok_or_else(|| {
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
fn for_each_member<'t>(
    text: &'t str,
    mut take: impl FnMut(String, &'t str) -> Result<(), EventFileError>,
) -> Result<(), EventFileError> {
    let mut failure = None;
    let take = |name, value: &'t RawValue| {
        take(name, value.get()).map_err(|why| failure = Some(why)).is_ok()
    };
    let read = serde_json::Deserializer::from_str(text).deserialize_any(Each(take));
    match (failure, read) {
        (Some(failure), _) => Err(failure),
        (None, Err(error)) => Err(EventFileError::Form(json_error_text(&error))),
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
fn json_error_text(error: &serde_json::Error) -> String {
    format!("not JSON: {}", cut(&error.to_string(), QUOTE_MAX))
}

fn parse_string(text: &str) -> Result<String, EventFileError> {
    serde_json::from_str(text).map_err(|error| EventFileError::Form(json_error_text(&error)))
}

/// Refuses a value that is nested so deeply that programs which read it run out of stack.
fn check_nesting(value: &str) -> Result<(), EventFileError> {
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
        if depth > NESTING_MAX {
            return Err(EventFileError::Form(format!(
                "a value is nested more than {NESTING_MAX} deep"
            )));
        }
    }
    Ok(())
}
