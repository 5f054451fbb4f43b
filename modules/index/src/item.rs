//! What `ion-index` needs to know of an item: its id, its date and its version.
//!
//! An item is read once, and only the few fields that matter are kept of it: the document that the
//! server gets is the item's own text.

use std::str::FromStr;

use jiff::Timestamp;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use thiserror::Error;

use crate::date::parse_date;

/// Where a value stands in an item: the name of a field, or a JSON pointer such as
/// `/properties/id`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldPath {
    /// The field of the item itself.
    field: String,
    /// The JSON pointer below it; empty for the field's own value.
    below: String,
    text: String,
}

impl FromStr for FieldPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (field, below) = match text.strip_prefix('/') {
            None => (text.to_owned(), String::new()),
            Some(pointer) => {
                let (first, below) = pointer.split_at(pointer.find('/').unwrap_or(pointer.len()));
                (first.replace("~1", "/").replace("~0", "~"), below.to_owned())
            }
        };
        if field.is_empty() {
            return Err("the name of a field is empty".to_owned());
        }
        Ok(Self { field, below, text: text.to_owned() })
    }
}

/// Which fields of an item say what `ion-index` needs to know.
#[derive(Clone, Debug)]
pub(crate) struct ItemFields {
    paths: Vec<FieldPath>,
    dates: usize,
    versions: usize,
}

/// What `ion-index` needs to know of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ItemFacts {
    pub(crate) id: String,
    pub(crate) date: Option<Timestamp>,
    /// Its version, if items have versions.
    pub(crate) version: Option<u64>,
}

/// Why an item cannot become a document.
#[derive(Debug, Error)]
pub(crate) enum ItemFault {
    #[error("the item is not a JSON object: {0}")]
    NotAnObject(String),
    #[error(
        "the item has no text and no number in its field {0:?}, which --id names; without an id it \
         could be indexed twice"
    )]
    NoId(String),
    #[error(
        "the item has neither a date nor a whole number in {0}, which --updates-by names; without a \
         version an older state could replace a newer one"
    )]
    NoVersion(String),
}

impl ItemFields {
    /// The first of `dates` that has a date counts, and the first of `versions` that has a version.
    /// Without `versions` items have no version.
    pub(crate) fn new(id: FieldPath, dates: Vec<FieldPath>, versions: Vec<FieldPath>) -> Self {
        let (date_count, version_count) = (dates.len(), versions.len());
        let paths = std::iter::once(id).chain(dates).chain(versions).collect();
        Self { paths, dates: date_count, versions: version_count }
    }

    /// Reads an item's fields, and checks that the whole item is a JSON object.
    pub(crate) fn read(&self, item: &str) -> Result<ItemFacts, ItemFault> {
        let not_an_object = |error: serde_json::Error| ItemFault::NotAnObject(error.to_string());
        let mut reader = serde_json::Deserializer::from_str(item);
        let values = self.deserialize(&mut reader).map_err(not_an_object)?;
        reader.end().map_err(not_an_object)?;
        let (dates, versions) = values[1..].split_at(self.dates);
        let id = values[0].as_ref().and_then(id_text);
        let id = id.ok_or_else(|| ItemFault::NoId(self.paths[0].text.clone()))?;
        let date = dates.iter().flatten().find_map(parse_date);
        let version = versions.iter().flatten().find_map(version_number);
        if version.is_none() && self.versions > 0 {
            let names: Vec<_> =
                self.paths[1 + self.dates..].iter().map(|path| &path.text).collect();
            return Err(ItemFault::NoVersion(format!("{names:?}")));
        }
        Ok(ItemFacts { id, date, version })
    }
}

fn id_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Returns a version: a whole number as it is, any other date as milliseconds since 1970.
fn version_number(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64().filter(|version| i64::try_from(*version).is_ok()),
        _ => u64::try_from(parse_date(value)?.as_millisecond()).ok(),
    }
}

/// Reads the values of the fields, in their order. All else is checked and skipped.
impl<'de> DeserializeSeed<'de> for &ItemFields {
    type Value = Vec<Option<Value>>;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &ItemFields {
    type Value = Vec<Option<Value>>;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut values = vec![None; self.paths.len()];
        while let Some(is_needed) = map.next_key_seed(FieldKey(&self.paths))? {
            match is_needed {
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
                Some(field) => {
                    let raw: &RawValue = map.next_value()?;
                    for (path, value) in self.paths.iter().zip(&mut values) {
                        if path.field == field {
                            *value = value_below(raw, &path.below);
                        }
                    }
                }
            }
        }
        Ok(values)
    }
}

/// Returns the value at a pointer. A field that is nested too deeply to be read has no value.
fn value_below(raw: &RawValue, pointer: &str) -> Option<Value> {
    let mut value: Value = serde_json::from_str(raw.get()).ok()?;
    value.pointer_mut(pointer).map(Value::take)
}

/// Reads a key: the field's name if one of the paths begins with it.
struct FieldKey<'a>(&'a [FieldPath]);

impl<'a, 'de> DeserializeSeed<'de> for FieldKey<'a> {
    type Value = Option<&'a str>;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_str(self)
    }
}

impl<'a> Visitor<'_> for FieldKey<'a> {
    type Value = Option<&'a str>;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("the name of a field")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().map(|path| path.field.as_str()).find(|field| *field == key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(id: &str, dates: &[&str], versions: &[&str]) -> ItemFields {
        let paths = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        ItemFields::new(id.parse().unwrap(), paths(dates), paths(versions))
    }

    #[test]
    fn an_item_has_an_id_and_perhaps_a_date() {
        let fields = fields("id", &["published", "updated"], &[]);
        let facts = fields
            .read(r#"{"x": {"id": "no"}, "id": "a\u0062", "published": null, "updated": 0}"#)
            .unwrap();
        assert_eq!(facts.id, "ab");
        assert_eq!(facts.date, Some(Timestamp::UNIX_EPOCH));
        assert_eq!(facts.version, None);
        let facts = fields.read(r#"{"id": 17, "published": "never"}"#).unwrap();
        assert_eq!((facts.id.as_str(), facts.date), ("17", None));
    }

    #[test]
    fn a_pointer_leads_into_an_item() {
        let fields = fields("/properties/a~1b/0", &["/properties/sent"], &[]);
        let facts = fields
            .read(r#"{"properties": {"a/b": ["urn:1"], "sent": "1970-01-01T00:00:00Z"}}"#)
            .unwrap();
        assert_eq!((facts.id.as_str(), facts.date), ("urn:1", Some(Timestamp::UNIX_EPOCH)));
        assert!("".parse::<FieldPath>().is_err());
        assert!("/".parse::<FieldPath>().is_err());
        let odd: FieldPath = "/a~1b~0c".parse().unwrap();
        assert_eq!(odd.field, "a/b~c");
    }

    #[test]
    fn a_version_is_a_whole_number_or_a_date() {
        let fields = fields("id", &[], &["updated", "published"]);
        let version = |item: &str| fields.read(item).map(|facts| facts.version);
        assert_eq!(version(r#"{"id": 1, "updated": 7}"#).unwrap(), Some(7));
        let dated = r#"{"id": 1, "updated": null, "published": "1970-01-01T00:00:02Z"}"#;
        assert_eq!(version(dated).unwrap(), Some(2000));
        for wrong in [
            r#"{"id": 1}"#,
            r#"{"id": 1, "updated": -1}"#,
            r#"{"id": 1, "updated": 1.5}"#,
            r#"{"id": 1, "updated": 9223372036854775808}"#,
            r#"{"id": 1, "updated": "1950-01-01"}"#,
        ] {
            assert!(matches!(version(wrong), Err(ItemFault::NoVersion(_))), "{wrong}");
        }
    }

    #[test]
    fn what_cannot_be_a_document_is_refused() {
        let fields = fields("id", &[], &[]);
        for wrong in ["", "[1]", "17", "{\"id\": 1", "{\"id\": 1} {}", "{\"a\" 1}", "nul"] {
            assert!(matches!(fields.read(wrong), Err(ItemFault::NotAnObject(_))), "{wrong}");
        }
        for wrong in ["{}", r#"{"id": ""}"#, r#"{"id": null}"#, r#"{"id": ["a"]}"#] {
            assert!(matches!(fields.read(wrong), Err(ItemFault::NoId(_))), "{wrong}");
        }
    }

    #[test]
    fn a_deeply_nested_item_is_read() {
        let fields = fields("id", &["deep"], &[]);
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let facts = fields.read(&format!(r#"{{"other": {deep}, "deep": {deep}, "id": "a"}}"#));
        assert_eq!(facts.unwrap(), ItemFacts { id: "a".into(), date: None, version: None });
    }
}
