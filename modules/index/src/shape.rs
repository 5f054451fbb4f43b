//! The shape of the documents: the items as they are, or that of the ingest service before Ion.

use std::str::FromStr;

use jiff::Timestamp;
use md5::{Digest as _, Md5};
use serde_json::{Value, json};

use crate::document_id::to_hex;

/// What a document looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The item, byte for byte.
    AsItIs,
    /// The fields that the older ingest service wrote: `Publisher`, `Title`, `Content` and so on.
    OlderIngest,
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "as-it-is" => Ok(Self::AsItIs),
            "older-ingest" => Ok(Self::OlderIngest),
            _ => Err("use as-it-is or older-ingest".to_owned()),
        }
    }
}

/// Returns an article in the shape of the older ingest service. `now` is when it is indexed.
///
/// The service kept the page's picture in a store of its own, and named it in `S3ID`. Ion keeps it
/// as a file of the event, so that field is left out.
pub(crate) fn older_ingest(
    item: &Value,
    source: &str,
    date: Option<Timestamp>,
    now: Timestamp,
) -> Value {
    let first = |keys: &[&str]| keys.iter().find_map(|key| item.get(key).and_then(Value::as_str));
    let text = |keys: &[&str]| first(keys).unwrap_or_default();
    let picture = first(&["image"]).or_else(|| {
        let is_picture = |enclosure: &&Value| {
            let kind = enclosure.get("type").and_then(Value::as_str);
            kind.is_some_and(|kind| kind.starts_with("image/"))
        };
        let enclosures = item.get("enclosures")?.as_array()?;
        enclosures.iter().find(is_picture)?.get("url")?.as_str()
    });
    let keywords: Vec<_> = item
        .get("categories")
        .and_then(Value::as_array)
        .map(|all| all.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let mut document = json!({
        "Publisher": first(&["publisher"]).unwrap_or(source),
        "Title": text(&["title"]),
        "Content": text(&["content", "summary"]),
        "Description": text(&["summary"]),
        "Keywords": keywords.join(","),
        "Url": text(&["link", "url"]),
        "InjectTime": now.to_string(),
    });
    if let Some(picture) = picture {
        document["TopImage"] = json!(picture);
        document["TopImageID"] = json!(to_hex(&Md5::digest(picture)));
    }
    if let Some(date) = date {
        document["PublishDate"] = json!(date.to_string());
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn an_article_has_the_fields_of_the_older_service() {
        let item = json!({
            "id": "1", "title": "T", "link": "https://a.example/1", "summary": "S", "content": "C",
            "categories": ["a", "b"],
            "enclosures": [
                {"type": "audio/mpeg", "url": "https://a.example/1.mp3"},
                {"type": "image/png", "url": "https://a.example/1.png"}
            ]
        });
        let date = "2026-11-02T03:04:05Z".parse().unwrap();
        assert_eq!(
            older_ingest(&item, "bbc-top", Some(date), NOW),
            json!({
                "Publisher": "bbc-top", "Title": "T", "Content": "C", "Description": "S",
                "Keywords": "a,b", "Url": "https://a.example/1",
                "TopImage": "https://a.example/1.png",
                "TopImageID": "f21432515499dbcd67da55da396d1398",
                "PublishDate": "2026-11-02T03:04:05Z", "InjectTime": "1970-01-01T00:00:00Z"
            })
        );
    }

    #[test]
    fn what_an_item_lacks_is_empty_or_left_out() {
        let item =
            json!({"id": "1", "publisher": "P", "image": "i", "summary": "S", "categories": 1});
        let document = older_ingest(&item, "s", None, NOW);
        assert_eq!((&document["Publisher"], &document["Content"]), (&json!("P"), &json!("S")));
        assert_eq!((&document["TopImage"], &document["Keywords"]), (&json!("i"), &json!("")));
        assert_eq!(document.get("PublishDate"), None);
        assert_eq!(older_ingest(&json!({}), "s", None, NOW).get("TopImageID"), None);
    }
}
