//! An API as a declared file: which address to ask, and where in its answers the items are.
//!
//! [`ApiFile::read`] reads the file. [`ApiFile::page`] finds the items of an answer, and
//! [`ApiFile::next_page`] where the answer goes on; both are pure functions. The file is checked
//! whole before anything is asked.

mod template;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};
use serde_json_path::JsonPath;

pub use self::template::{Template, TemplateError, Values};
use crate::dates::parse_date;

/// An API.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ApiFile {
    /// The address. `{name}` stands for a parameter or a secret.
    pub url: Template,
    /// Headers, in which `{name}` stands for the same.
    #[serde(default)]
    pub headers: Vec<ApiHeader>,
    /// The names that are read from files of secrets, and never shown.
    #[serde(default)]
    pub secrets: Vec<String>,
    /// Values of parameters that may be left out.
    #[serde(default)]
    pub defaults: Map<String, Value>,
    /// Where the items are. Without it and without `zip`, the answer is a list of items.
    pub items: Option<JsonPath>,
    /// An object of lists that belong together: one item is made of the first values of all lists,
    /// one of the second values, and so on.
    pub zip: Option<JsonPath>,
    /// What an item is known by. Without it, an item is known by all that it says.
    pub id: Option<JsonPath>,
    /// The time of an item.
    pub time: Option<JsonPath>,
    /// What an item is called.
    pub title: Option<JsonPath>,
    /// The page of an item.
    pub link: Option<JsonPath>,
    /// Where there is more about an item: one more request for each that is published.
    pub detail: Option<Template>,
    /// What a proper answer is like.
    #[serde(default)]
    pub expect: Expectation,
    /// Where the next run goes on.
    pub since: Option<Since>,
    /// How the answers go on.
    pub pages: Option<Pages>,
    /// The header that says when the next request may come, if there is no `Retry-After`.
    pub reset_header: Option<String>,
}

/// A header of each request.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiHeader {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: Template,
}

/// What a proper answer is like. Many APIs answer errors with the status 200.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// A word of its content type.
    #[serde(rename = "type")]
    pub media_type: Option<String>,
    /// What it has.
    #[serde(default)]
    pub has: Vec<JsonPath>,
    /// What only an error has: where the error's message is.
    #[serde(default)]
    pub error: Vec<JsonPath>,
}

/// Where the next run goes on.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Since {
    /// The parameter of the address that says it.
    pub query: String,
    /// Where the answer says it. Without it, it is the time of the newest item.
    pub value: Option<JsonPath>,
    /// How a time is written.
    #[serde(default)]
    pub form: TimeForm,
    /// How much before the newest item the next run begins, because items appear late. What it
    /// sees twice is not published twice.
    #[serde(default, deserialize_with = "duration")]
    pub overlap: std::time::Duration,
}

/// How a time is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeForm {
    /// As in 2024-05-06T07:08:09Z.
    #[default]
    Rfc3339,
    /// Seconds since 1970.
    Seconds,
    /// As in 2024-05-06.
    Date,
    /// As in 20240506T0708.
    Minutes,
}

/// How the answers go on.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "lowercase", tag = "by", deny_unknown_fields)]
pub enum Pages {
    /// Each answer has a token for the next one.
    Cursor {
        /// Where the token is.
        cursor: JsonPath,
        /// The parameter of the address that takes it.
        query: String,
        /// How many answers one run reads.
        #[serde(default = "pages_most")]
        most: usize,
    },
    /// The pages are numbered.
    Page {
        /// The parameter of the address that takes the number.
        query: String,
        /// The first number.
        #[serde(default = "first_page")]
        first: usize,
        /// How many answers one run reads.
        #[serde(default = "pages_most")]
        most: usize,
    },
    /// Each answer begins so many items later.
    Offset {
        /// The parameter of the address that takes the number of items.
        query: String,
        /// How many answers one run reads.
        #[serde(default = "pages_most")]
        most: usize,
    },
    /// The header `Link` has the address of the next one.
    Link {
        /// How many answers one run reads.
        #[serde(default = "pages_most")]
        most: usize,
    },
}

fn pages_most() -> usize {
    10
}

fn first_page() -> usize {
    1
}

fn duration<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<std::time::Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(serde::de::Error::custom)
}

impl Pages {
    /// Returns how many answers one run reads.
    pub fn most(&self) -> usize {
        match self {
            Self::Cursor { most, .. }
            | Self::Page { most, .. }
            | Self::Offset { most, .. }
            | Self::Link { most } => *most,
        }
    }
}

/// Where the next page is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextPage {
    /// The same address with this parameter.
    Query {
        /// The parameter.
        name: String,
        /// Its value.
        value: String,
    },
    /// This address.
    Address(String),
}

/// Which page of a run's answers one is.
#[derive(Clone, Copy, Debug)]
pub struct PagePlace {
    /// Its number, counted from 1.
    pub number: usize,
    /// How many items it has.
    pub items: usize,
    /// How many items it has together with the pages before it.
    pub items_so_far: usize,
}

/// An item of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiItem {
    /// What the API calls it.
    pub key: String,
    /// Its time.
    pub time: Option<Timestamp>,
    /// What it is called.
    pub title: Option<String>,
    /// Its page.
    pub link: Option<String>,
    /// All of it.
    pub data: Value,
}

/// Why an answer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// It is no JSON.
    #[error("the answer is not JSON; it begins with {begin:?}")]
    NotJson {
        /// How it begins.
        begin: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// Its content type is another.
    #[error("the answer is {found:?} and not {expected:?}")]
    MediaType {
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// It is an error.
    #[error("the answer is an error: {0}")]
    Error(String),
    /// It lacks something.
    #[error("the answer has no {0}; has the API changed?")]
    Lacks(String),
    /// The items are no list.
    #[error("the answer is no list; \"items\" must lead to each item, as in $.data[*]")]
    NoItems,
    /// The lists differ in length.
    #[error("the lists that \"zip\" puts together differ in length")]
    Uneven,
    /// An item has no id.
    #[error("an item has no {0}; \"id\" must lead to a text or a number in each item")]
    NoId(String),
}

impl ApiFile {
    /// Reads a declared file.
    ///
    /// # Errors
    ///
    /// It is not as it must be; the text of the error names the line.
    pub fn read(text: &str) -> Result<Self, serde_saphyr::Error> {
        serde_saphyr::from_str(text)
    }

    /// Returns the names that need a value before anything is asked: all but the id of an item.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let of_headers = self.headers.iter().flat_map(|header| header.value.names());
        let of_detail = self.detail.iter().flat_map(Template::names).filter(|name| *name != "id");
        self.url.names().chain(of_headers).chain(of_detail)
    }

    /// Returns the value of a name that is not given.
    pub fn default_of(&self, name: &str) -> Option<String> {
        self.defaults.get(name).and_then(text)
    }

    /// Returns the document of an answer, if it is as expected.
    ///
    /// # Errors
    ///
    /// It is another one, or an error.
    pub fn document(&self, body: &[u8], media_type: Option<&str>) -> Result<Value, AnswerError> {
        let document = self.detail_document(body, media_type)?;
        match self.expect.has.iter().find(|path| path.query(&document).is_empty()) {
            Some(path) => Err(AnswerError::Lacks(path.to_string())),
            None => Ok(document),
        }
    }

    /// Returns the document of an answer about one item, which need not have what a list has.
    ///
    /// # Errors
    ///
    /// It is no JSON of the expected type, or an error.
    pub fn detail_document(
        &self,
        body: &[u8],
        media_type: Option<&str>,
    ) -> Result<Value, AnswerError> {
        if let Some(expected) = &self.expect.media_type {
            let found = media_type.unwrap_or("of no content type");
            if !found.to_ascii_lowercase().contains(&expected.to_ascii_lowercase()) {
                let (found, expected) = (found.to_owned(), expected.clone());
                return Err(AnswerError::MediaType { found, expected });
            }
        }
        let document: Value = serde_json::from_slice(body).map_err(|source| {
            let begin = String::from_utf8_lossy(&body[..body.len().min(100)]).into_owned();
            AnswerError::NotJson { begin, source }
        })?;
        match self.expect.error.iter().find_map(|path| path.query(&document).first()) {
            Some(message) => {
                Err(AnswerError::Error(text(message).unwrap_or_else(|| message.to_string())))
            }
            None => Ok(document),
        }
    }

    /// Returns the items of a document.
    ///
    /// # Errors
    ///
    /// The document has none where they should be.
    pub fn page(&self, document: &Value) -> Result<Vec<ApiItem>, AnswerError> {
        let items: Vec<Value> = match (&self.zip, &self.items) {
            (Some(zip), _) => {
                let object = zip.query(document).first().and_then(Value::as_object);
                zipped(object.ok_or_else(|| AnswerError::Lacks(zip.to_string()))?)?
            }
            (None, Some(path)) => path.query(document).all().into_iter().cloned().collect(),
            (None, None) => document.as_array().cloned().ok_or(AnswerError::NoItems)?,
        };
        items.into_iter().map(|data| self.item(data)).collect()
    }

    fn item(&self, data: Value) -> Result<ApiItem, AnswerError> {
        let key = match &self.id {
            Some(path) => {
                let found = path.query(&data).first().and_then(text);
                found.ok_or_else(|| AnswerError::NoId(path.to_string()))?
            }
            None => text(&data).unwrap_or_else(|| data.to_string()),
        };
        let mut item = ApiItem { key, time: None, title: None, link: None, data };
        self.describe(&mut item);
        Ok(item)
    }

    /// Reads time, title and page of an item from its data.
    pub fn describe(&self, item: &mut ApiItem) {
        let find = |path: &Option<JsonPath>| path.as_ref()?.query(&item.data).first();
        let time = find(&self.time).and_then(time_of);
        let title = find(&self.title).and_then(text);
        let link = find(&self.link).and_then(text);
        (item.time, item.title, item.link) = (time, title, link);
    }

    /// Returns where the answers go on behind this page, whose header `Link` is given.
    pub fn next_page(
        &self,
        document: &Value,
        link: Option<&str>,
        page: PagePlace,
    ) -> Option<NextPage> {
        let query = |name: &String, value| Some(NextPage::Query { name: name.clone(), value });
        match self.pages.as_ref()? {
            _ if page.number >= self.pages.as_ref()?.most() => None,
            Pages::Cursor { cursor, query: name, .. } => {
                let token = cursor.query(document).first().and_then(text)?;
                if token.is_empty() { None } else { query(name, token) }
            }
            Pages::Page { query: name, first, .. } if page.items > 0 => {
                query(name, (first + page.number).to_string())
            }
            Pages::Offset { query: name, .. } if page.items > 0 => {
                query(name, page.items_so_far.to_string())
            }
            Pages::Link { .. } => link_next(link?).map(NextPage::Address),
            Pages::Page { .. } | Pages::Offset { .. } => None,
        }
    }

    /// Returns what the next run begins with: what the document says, or the time of the newest
    /// item less the overlap.
    pub fn since_of(&self, document: &Value, items: &[ApiItem]) -> Option<String> {
        let since = self.since.as_ref()?;
        if let Some(path) = &since.value {
            return path.query(document).first().and_then(text);
        }
        let newest = items.iter().filter_map(|item| item.time).max()?;
        let begin = newest.checked_sub(jiff::SignedDuration::try_from(since.overlap).ok()?).ok()?;
        Some(match since.form {
            TimeForm::Rfc3339 => begin.to_string(),
            TimeForm::Seconds => begin.as_second().to_string(),
            TimeForm::Date => begin.to_string().chars().take(10).collect(),
            TimeForm::Minutes => begin.strftime("%Y%m%dT%H%M").to_string(),
        })
    }
}

/// Makes items of lists that belong together.
fn zipped(lists: &Map<String, Value>) -> Result<Vec<Value>, AnswerError> {
    let lists: Vec<(&String, &Vec<Value>)> =
        lists.iter().filter_map(|(name, list)| Some((name, list.as_array()?))).collect();
    let length = lists.first().map_or(0, |(_, list)| list.len());
    if lists.iter().any(|(_, list)| list.len() != length) {
        return Err(AnswerError::Uneven);
    }
    let item = |at: usize| {
        let pairs = lists.iter().map(|(name, list)| ((*name).clone(), list[at].clone()));
        Value::Object(pairs.collect())
    };
    Ok((0..length).map(item).collect())
}

/// Returns a text or a number as text.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Reads a time: text in any form that feeds have, or seconds or milliseconds since 1970.
fn time_of(value: &Value) -> Option<Timestamp> {
    /// From here on, a number counts milliseconds: as seconds it would be after the year 5000.
    const MILLISECONDS: i64 = 100_000_000_000;
    match value {
        Value::String(text) => parse_date(text),
        Value::Number(number) => match number.as_i64()? {
            number @ MILLISECONDS.. => Timestamp::from_millisecond(number).ok(),
            number => Timestamp::from_second(number).ok(),
        },
        _ => None,
    }
}

/// Returns the address of the header `Link` that is called `next`.
fn link_next(header: &str) -> Option<String> {
    header.split(",").find_map(|link| {
        let (address, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = parameters.split(';').any(|parameter| {
            let Some((name, value)) = parameter.trim().split_once('=') else { return false };
            name == "rel" && value.trim_matches('"').split(' ').any(|word| word == "next")
        });
        is_next.then(|| address.to_owned())
    })
}

#[cfg(test)]
mod tests;
