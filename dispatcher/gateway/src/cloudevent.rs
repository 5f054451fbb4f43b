//! CloudEvents 1.0 over HTTP: attributes in `ce-` headers with any body (binary mode), or all in
//! one JSON document (structured mode).
//!
//! The attributes become values under their header names: `ce-id`, `ce-source`, `ce-type` and so
//! on. Data that is a JSON object becomes values too; any other data becomes the file `data`.

use std::collections::BTreeMap;

use axum::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ion_model::event::{KeyValue, ParsedEventFile, parse_within};
use ion_model::limits::Limits;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::problem::{Problem, ProblemKind};

/// The media type of structured mode.
pub(super) const STRUCTURED: &str = "application/cloudevents+json";

/// The media type of a batch in structured mode.
pub(super) const BATCH: &str = "application/cloudevents-batch+json";

/// The prefix of each attribute's header name.
const PREFIX: &str = "ce-";

/// The name of the file that holds data that is not a JSON object.
pub(super) const DATA: &str = "data";

/// The attributes that every CloudEvent has.
const NEEDED: [&str; 4] = ["specversion", "id", "source", "type"];

/// The attributes of a CloudEvent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    /// The source. CloudEvents with the same source and id are the same event, as the specification
    /// says.
    pub(super) source: String,
    /// See `source`.
    pub(super) id: String,
    /// All attributes as values.
    pub(super) values: Vec<KeyValue>,
}

/// Returns whether a request is a CloudEvent in binary mode.
pub(super) fn is_binary(headers: &HeaderMap) -> bool {
    headers.contains_key("ce-specversion")
}

impl Attributes {
    /// Reads the attributes from the headers of binary mode.
    pub(super) fn from_headers(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut values = Vec::new();
        for (name, value) in headers {
            if name.as_str().starts_with(PREFIX) {
                let unreadable =
                    || malformed(format!("header {name:?} is not percent-encoded UTF-8"));
                let text = value.to_str().map_err(|_| unreadable())?;
                let text = percent_decode_str(text).decode_utf8().map_err(|_| unreadable())?;
                values.push((name.as_str().to_owned(), text.into_owned()));
            }
        }
        if let Some(form) = headers.get("content-type").and_then(|form| form.to_str().ok()) {
            values.push(("ce-datacontenttype".into(), form.to_owned()));
        }
        Self::new(values)
    }

    fn new(values: Vec<(String, String)>) -> Result<Self, Problem> {
        let needed = |name: &str| {
            let found = values.iter().find(|(key, _)| key.strip_prefix(PREFIX) == Some(name));
            match found {
                Some((_, value)) if !value.is_empty() => Ok(value.clone()),
                _ => Err(malformed(format!(
                    "the CloudEvent has no {name:?}, which every CloudEvent needs"
                ))),
            }
        };
        let [version, id, source, event_type] = NEEDED.map(needed);
        let (version, id, source, _) = (version?, id?, source?, event_type?);
        if version != "1.0" {
            return Err(malformed(format!(
                "the CloudEvent has version {version:?}; send version 1.0"
            )));
        }
        let values = values.into_iter().map(|(key, value)| KeyValue { key, value }).collect();
        Ok(Self { source, id, values })
    }
}

/// The data of a CloudEvent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CloudEventData {
    /// Values: the data is a JSON object, or there is no data.
    Values(Vec<KeyValue>),
    /// Bytes for a file.
    File(Vec<u8>),
}

/// Reads a document of structured mode.
pub(super) fn read_structured(
    document: &[u8],
    limits: &Limits,
) -> Result<(Attributes, CloudEventData), Problem> {
    let wrong = |error: serde_json::Error| {
        malformed(format!("the body is not a CloudEvent in JSON: {error}"))
    };
    let members: BTreeMap<String, &RawValue> = serde_json::from_slice(document).map_err(wrong)?;
    let (mut values, mut data, mut data_base64) = (Vec::new(), None, None);
    for (name, value) in members {
        match (name.as_str(), value.get()) {
            (_, "null") => {}
            ("data", _) => data = Some(value.get()),
            ("data_base64", text) => {
                data_base64 = Some(serde_json::from_str::<String>(text).map_err(wrong)?)
            }
            (_, text) => values.push((
                format!("{PREFIX}{}", valid_attribute_name(&name)?),
                attribute_text(&name, text)?,
            )),
        }
    }
    let attributes = Attributes::new(values)?;
    let carried = match (data, data_base64) {
        (Some(_), Some(_)) => {
            return Err(malformed("the CloudEvent has both \"data\" and \"data_base64\"".into()));
        }
        (None, None) => CloudEventData::Values(vec![]),
        (None, Some(text)) => {
            let bytes = STANDARD.decode(text);
            CloudEventData::File(
                bytes.map_err(|error| {
                    malformed(format!("\"data_base64\" is not base64: {error}"))
                })?,
            )
        }
        (Some(data), None) if data.starts_with('{') => {
            CloudEventData::Values(parse_values(data.as_bytes(), limits)?)
        }
        (Some(data), None) => CloudEventData::File(data.as_bytes().to_vec()),
    };
    Ok((attributes, carried))
}

/// Returns the name if an attribute may have it.
fn valid_attribute_name(name: &str) -> Result<&str, Problem> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if name.is_empty() || !name.bytes().all(allowed) {
        return Err(malformed(format!(
            "{name:?} cannot be an attribute of a CloudEvent: lower-case letters and digits are \
             allowed"
        )));
    }
    Ok(name)
}

/// Returns an attribute's value as text.
fn attribute_text(name: &str, text: &str) -> Result<String, Problem> {
    match text.as_bytes().first() {
        Some(b'"') => serde_json::from_str(text).map_err(|error| malformed(error.to_string())),
        Some(b'{' | b'[') => Err(malformed(format!(
            "attribute {name:?} of the CloudEvent is an object or an array; send a plain value"
        ))),
        _ if NEEDED.contains(&name) => {
            Err(malformed(format!("attribute {name:?} of the CloudEvent is not a string")))
        }
        _ => Ok(text.to_owned()),
    }
}

/// The member `files` of an object, if it has one.
#[derive(Deserialize)]
struct Files {
    files: Option<IgnoredAny>,
}

/// Returns the members of a JSON object as values. A member that is not a string becomes its JSON
/// text.
pub(super) fn parse_values(object: &[u8], limits: &Limits) -> Result<Vec<KeyValue>, Problem> {
    let begins = object.trim_ascii_start().first();
    if begins.is_some_and(|&byte| byte != b'{') {
        return Err(malformed("a JSON object is needed; its members are the values".into()));
    }
    match parse_within(object, limits) {
        ParsedEventFile::Complete(file) => {
            // An empty `files` is refused too. An object with several members `files` does not
            // parse and is refused.
            let files = serde_json::from_slice::<Files>(object);
            let named = match (&file.event_type, files) {
                (Some(_), _) => Some("\"eventType\" is in the path"),
                (None, Ok(Files { files: None })) => None,
                (None, _) => Some("\"files\" are sent as multipart/form-data"),
            };
            match named {
                Some(why) => {
                    Err(Problem::new(ProblemKind::Refused, format!("{why}, and cannot be a value")))
                }
                None => Ok(file.data),
            }
        }
        ParsedEventFile::Empty => {
            Err(malformed("the body is empty; {} is an event without values".into()))
        }
        ParsedEventFile::Incomplete => Err(malformed("the JSON object is cut off".into())),
        ParsedEventFile::Invalid(reason) => Err(malformed(reason)),
        ParsedEventFile::TooBig(reason) => Err(Problem::new(ProblemKind::TooBig, reason)),
    }
}

fn malformed(detail: String) -> Problem {
    Problem::new(ProblemKind::Malformed, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn structured(document: &str) -> Result<(Attributes, CloudEventData), ProblemKind> {
        read_structured(document.as_bytes(), &Limits::default()).map_err(|problem| problem.kind())
    }

    #[test]
    fn both_modes_say_the_same() {
        let pairs = [
            ("ce-specversion", "1.0"),
            ("ce-id", "7"),
            ("ce-source", "/scanner%20%E2%82%AC"),
            ("ce-type", "scan.done"),
            ("host", "localhost"),
        ];
        let headers = pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        assert!(is_binary(&headers));
        let binary = Attributes::from_headers(&headers).unwrap();
        let (structured, carried) = structured(
            r#"{"specversion": "1.0", "id": "7", "source": "/scanner €", "type": "scan.done", "data": {"n": 1}, "dataschema": null}"#,
        )
        .unwrap();
        assert_eq!((&binary.source, &binary.id), (&structured.source, &structured.id));
        let sorted = |mut attributes: Attributes| {
            attributes.values.sort_by(|a, b| a.key.cmp(&b.key));
            attributes.values
        };
        assert_eq!(sorted(binary), sorted(structured));
        assert_eq!(
            carried,
            CloudEventData::Values(vec![KeyValue { key: "n".into(), value: "1".into() }])
        );
    }

    #[test]
    fn data_that_is_no_object_is_a_file() {
        let with = |data: &str| {
            structured(&format!(
                r#"{{"specversion": "1.0", "id": "7", "source": "s", "type": "t"{data}}}"#
            ))
            .map(|(_, carried)| carried)
        };
        assert_eq!(with(r#", "data": [1, 2]"#), Ok(CloudEventData::File(b"[1, 2]".to_vec())));
        assert_eq!(with(r#", "data_base64": "AP8=""#), Ok(CloudEventData::File(vec![0, 255])));
        assert_eq!(with(""), Ok(CloudEventData::Values(vec![])));
        for wrong in [
            r#", "data": 1, "data_base64": """#,
            r#", "data_base64": "?""#,
            r#", "Ext": 1"#,
            r#", "ext": []"#,
        ] {
            assert_eq!(with(wrong), Err(ProblemKind::Malformed), "{wrong}");
        }
        assert_eq!(
            structured(r#"{"specversion": "1.0", "id": "7", "source": "s"}"#).err(),
            Some(ProblemKind::Malformed)
        );
        assert_eq!(structured("[]").err(), Some(ProblemKind::Malformed));
    }
}
