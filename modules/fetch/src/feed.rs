//! Reading a feed: from the bytes of an answer to its items. It is a pure function.
//!
//! [`read_feed`] reads RSS 0.9x, 1.0 and 2.0, Atom 0.3 and 1.0, CDF and JSON Feed. It asks the
//! document only for what it has, and not for the version it claims: feeds mix the elements of all
//! versions. What is broken is read as far as it goes. Only a document without any feed in it is an
//! error.

mod elements;
mod identity;
mod json;
mod texts;
mod tree;

use jiff::Timestamp;
use serde::Serialize;
use url::Url;

use crate::charset::text_of_document;

pub use self::identity::{ItemId, fingerprint};

/// How many items of one feed are read. The first ones are the newest in almost every feed.
pub const ITEMS_MAX: usize = 10_000;

/// A feed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Feed {
    /// Its title, as plain text.
    pub title: Option<String>,
    /// The page that it belongs to.
    pub link: Option<String>,
    /// Its language, as it names it.
    pub language: Option<String>,
    /// Who writes it.
    pub authors: Vec<Author>,
    /// When it was last changed, as it says.
    pub updated: Option<Timestamp>,
    /// How many minutes it asks readers to wait between two visits.
    pub ttl_minutes: Option<u64>,
    /// Its items, in its own order.
    pub items: Vec<Item>,
}

/// An item of a feed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Item {
    /// The identifier that the feed gives it.
    pub guid: Option<String>,
    /// Its page.
    pub link: Option<String>,
    /// Its title, as plain text.
    pub title: Option<String>,
    /// Who wrote it.
    pub authors: Vec<Author>,
    /// When it was published.
    pub published: Option<Timestamp>,
    /// When it was last changed.
    pub updated: Option<Timestamp>,
    /// Its summary, as HTML.
    pub summary: Option<String>,
    /// Its content, as HTML.
    pub content: Option<String>,
    /// Its categories.
    pub categories: Vec<String>,
    /// Its attached files.
    pub enclosures: Vec<Enclosure>,
    /// The address of its picture.
    pub image: Option<String>,
}

/// A person or an organization.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Author {
    /// The name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The address of mail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// The page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// A file that belongs to an item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Enclosure {
    /// Where it is.
    pub url: String,
    /// Its content type.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// How many bytes it has, as the feed says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
}

/// Why a document could not be read as a feed.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The document is a web page.
    #[error(
        "the answer is a web page and not a feed{}; give the address of the feed itself",
        offer(feeds)
    )]
    WebPage {
        /// The feeds that the page names.
        feeds: Vec<String>,
    },
    /// The document is empty.
    #[error("the answer is empty; look at the address in a browser")]
    Empty,
    /// The document is something else.
    #[error(
        "the answer is no feed: it has no <rss>, <rdf:RDF>, <feed> or <channel>, and is no JSON Feed"
    )]
    NoFeed,
}

fn offer(feeds: &[String]) -> String {
    match feeds {
        [] => String::new(),
        feeds => format!(", which names these feeds: {}", feeds.join(" ")),
    }
}

/// Reads the feed in the body of an answer that came from `address` with this `Content-Type`.
///
/// # Errors
///
/// The document holds no feed.
pub fn read_feed(
    bytes: &[u8],
    content_type: Option<&str>,
    address: Option<&Url>,
) -> Result<Feed, FeedError> {
    let text = text_of_document(bytes, content_type);
    let start = text.trim_start();
    if start.is_empty() {
        return Err(FeedError::Empty);
    }
    if start.starts_with('{') {
        return json::read(start, address).ok_or(FeedError::NoFeed);
    }
    let nodes = tree::parse(&text, address.cloned());
    if let Some(feed) = elements::read(&nodes) {
        return Ok(feed);
    }
    let is_page = content_type.is_some_and(|given| given.to_ascii_lowercase().contains("html"))
        || elements::is_web_page(&nodes);
    if is_page {
        return Err(FeedError::WebPage { feeds: elements::feeds_of_page(&nodes, address) });
    }
    Err(FeedError::NoFeed)
}

#[cfg(test)]
mod tests;
