//! JSON Feed 1.0 and 1.1.

use serde_json::{Map, Value};
use url::Url;

use super::{Author, Enclosure, Feed, ITEMS_MAX, Item};
use crate::dates::parse_date;
use crate::html::{escape_text, resolve};

/// Reads a JSON Feed. Returns nothing if the document is JSON of another kind.
pub(super) fn read(text: &str, address: Option<&Url>) -> Option<Feed> {
    let document: Map<String, Value> = serde_json::from_str(text).ok()?;
    let is_feed = string(&document, "version")
        .is_some_and(|version| version.contains("jsonfeed.org"))
        || (document.contains_key("title") && document.contains_key("items"));
    let items = document.get("items")?.as_array().filter(|_| is_feed)?;
    let items = items.iter().filter_map(Value::as_object).take(ITEMS_MAX);
    Some(Feed {
        title: string(&document, "title"),
        link: link(&document, "home_page_url", address),
        language: string(&document, "language"),
        authors: authors(&document),
        updated: None,
        ttl_minutes: None,
        items: items.map(|item| read_item(item, address)).collect(),
    })
}

fn read_item(item: &Map<String, Value>, address: Option<&Url>) -> Item {
    let date = |key| string(item, key).and_then(|date| parse_date(&date));
    let plain = |key| string(item, key).map(|text| escape_text(&text).into_owned());
    let attachments = item.get("attachments").and_then(Value::as_array).map_or(&[][..], |all| all);
    Item {
        guid: string(item, "id"),
        link: link(item, "url", address).or_else(|| link(item, "external_url", address)),
        title: string(item, "title"),
        authors: authors(item),
        published: date("date_published"),
        updated: date("date_modified"),
        summary: plain("summary"),
        content: string(item, "content_html").or_else(|| plain("content_text")),
        categories: strings(item, "tags"),
        enclosures: attachments
            .iter()
            .filter_map(Value::as_object)
            .filter_map(|attachment| {
                Some(Enclosure {
                    url: link(attachment, "url", address)?,
                    media_type: string(attachment, "mime_type"),
                    length: attachment.get("size_in_bytes").and_then(Value::as_u64),
                })
            })
            .collect(),
        image: link(item, "image", address).or_else(|| link(item, "banner_image", address)),
    }
}

/// Returns a text. Numbers count as texts: some feeds number their items.
fn string(object: &Map<String, Value>, key: &str) -> Option<String> {
    match object.get(key)? {
        Value::String(text) if !text.trim().is_empty() => Some(text.trim().to_owned()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn strings(object: &Map<String, Value>, key: &str) -> Vec<String> {
    let all = object.get(key).and_then(Value::as_array).map_or(&[][..], |all| all);
    all.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn link(object: &Map<String, Value>, key: &str, address: Option<&Url>) -> Option<String> {
    let given = string(object, key)?;
    Some(resolve(address, &given).map_or(given, String::from))
}

/// Returns the authors: a list since version 1.1, one before.
fn authors(object: &Map<String, Value>) -> Vec<Author> {
    let one = |author: &Value| {
        let author = author.as_object()?;
        let (name, url) = (string(author, "name"), string(author, "url"));
        (name.is_some() || url.is_some()).then_some(Author { name, email: None, url })
    };
    match object.get("authors").and_then(Value::as_array) {
        Some(all) => all.iter().filter_map(one).collect(),
        None => object.get("author").and_then(one).into_iter().collect(),
    }
}
