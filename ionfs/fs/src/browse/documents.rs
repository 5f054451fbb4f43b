//! Folders of documents: how documents are read for a listing, and how the document of a name is
//! found.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use ion_model::clock::Millis;
use ion_model::event::{DocumentType, is_event, is_staged};
use ion_plane::node::Node as Daemon;
use ion_stores::{Collection, FieldRange, Pages, Query, StoreError};
use serde_json::{Value, json};

use super::names::text_of;
use super::time::{TimeSpan, day_name, second_of_name, time_name};
use crate::CURRENT;
use crate::item::{FindResult, ListResult, NamePages, NamesResult, ViewItem};

/// The most names of a folder that is listed as a whole.
pub(super) const LISTED_MAX: usize = 10_000;

/// How many documents are read at once for the names of a folder.
pub(super) const PART_ROWS: usize = 512;

/// How many dashes an id may have that is found by its part of a name.
const ID_DASHES_MAX: usize = 8;

/// The file that says that a folder does not list all.
const MORE: &str = "MORE";

pub(super) type DirectoryItems = Vec<(String, ViewItem)>;
pub(super) type BrowseResult<T> = std::result::Result<T, StoreError>;
pub(super) type ListFuture = std::pin::Pin<Box<dyn Future<Output = ListResult> + Send>>;

/// Makes a folder that is listed on access.
pub(super) fn directory(
    daemon: Arc<Daemon>,
    mtime: Millis,
    list: impl Fn(Arc<Daemon>) -> ListFuture + Send + Sync + 'static,
) -> ViewItem {
    ViewItem::lazy_at(CURRENT, mtime, move || list(daemon.clone()))
}

/// Adds the file that says that there are more names, and how to see them.
pub(super) fn add_more(items: &mut DirectoryItems, shown: &str, how: &str) {
    let text = format!("This folder lists {shown} only. {how}\n");
    items.push((MORE.to_owned(), ViewItem::Text(text.into(), 0)));
}

/// Documents of a listing, and whether there are more.
pub(super) struct ShownDocuments<T> {
    pub(super) documents: Vec<T>,
    pub(super) is_cut: bool,
}

/// Reads the first documents of these pages, at most `limit`.
pub(super) async fn read<T>(
    daemon: &Daemon,
    mut pages: Pages,
    limit: usize,
    read: impl Fn(Value) -> BrowseResult<Option<T>>,
) -> BrowseResult<ShownDocuments<T>> {
    let mut documents = Vec::new();
    while let Some(page) = pages.next(&*daemon.plane.documents).await? {
        for document in page {
            let Some(found) = read(document)? else { continue };
            if documents.len() == limit {
                return Ok(ShownDocuments { documents, is_cut: true });
            }
            documents.push(found);
        }
    }
    Ok(ShownDocuments { documents, is_cut: false })
}

/// The fields of an event that a listing needs.
pub(super) const EVENT_FIELDS: &[&str] =
    &["context.correlationId", "context.documentType", "created", "jobId", "publication", "type"];

/// Makes a query for events, of which only [`EVENT_FIELDS`] are read.
pub(super) fn events_query(mut equals: Vec<(&'static str, Value)>) -> Query {
    equals.push(("context.documentType", json!(DocumentType::EventMeta)));
    Query::equal(Collection::Events, equals).only(EVENT_FIELDS)
}

fn with_equal(mut query: Query, field: &'static str, value: &str) -> Query {
    query.equals.push((field, json!(value)));
    query
}

/// Returns the time of a document that has it in `created`.
pub(super) fn created_of(document: &Value) -> Millis {
    document["created"].as_i64().unwrap_or_default()
}

/// Returns whether people may see a document as an event.
pub(super) fn is_shown_event(document: &Value) -> bool {
    is_event(document) && !is_staged(document)
}

/// Returns a text field of a document, or nothing if it has none.
pub(super) fn text<'d>(document: &'d Value, field: &str) -> &'d str {
    document[field].as_str().unwrap_or_default()
}

/// Returns the id of the correlation of an event.
pub(super) fn correlation_of(event: &Value) -> &str {
    text(&event["context"], "correlationId")
}

/// Says under which name a document is listed, and what the name stands for; none for a document
/// that is not shown. In a [`TimedFolder`] the name is what follows the time.
pub(super) type Namer = dyn Fn(&Value) -> Option<(String, ViewItem)> + Send + Sync;

/// A folder of the documents that a query finds, newest first, of any number. Each name begins with
/// the time of its document, by which the document of a name is found.
#[derive(Clone)]
pub(super) struct TimedFolder {
    pub(super) daemon: Arc<Daemon>,
    pub(super) query: Query,
    /// The field that has the time.
    pub(super) field: &'static str,
    /// The day of the folder, if it has documents of one day only.
    pub(super) day: Option<TimeSpan>,
    pub(super) namer: Arc<Namer>,
    /// Which of the documents are listed.
    pub(super) listed: ListedDocuments,
}

/// Which of the documents that a query finds a folder lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ListedDocuments {
    /// All that are shown.
    All,
    /// Only the first event of each correlation: a correlation may have several without a parent.
    FirstOfCorrelation,
}

impl TimedFolder {
    /// Makes the folder.
    pub(super) fn item(self) -> ViewItem {
        let mtime = self.day.map_or(0, |day| day.from.max(0));
        let listed = self.clone();
        ViewItem::paged(
            CURRENT,
            mtime,
            move || listed.names(),
            move |name| {
                let folder = self.clone();
                async move { folder.find(&name).await }
            },
        )
    }

    /// Begins to read the names.
    pub(super) fn names(&self) -> Box<dyn NamePages> {
        Box::new(TimedNames { pages: self.pages(), folder: self.clone() })
    }

    /// Makes the folder with a folder for each day.
    pub(super) fn by_days(self) -> ViewItem {
        let listed = self.clone();
        let find = move |name: String| {
            let folder = self.clone();
            async move { folder.find_day(&name).await }
        };
        ViewItem::searchable(CURRENT, 0, move || listed.clone().list_days(), find)
    }

    /// Lists the days, the newest ones if there are too many.
    pub(super) async fn list_days(self) -> ListResult {
        let mut items = DirectoryItems::new();
        let mut all = TimeSpan { from: Millis::MIN, below: Millis::MAX };
        while all.from < all.below
            && let Some(newest) = self.newest_time(all).await?
        {
            let day = TimeSpan::day_of(newest);
            if items.len() == LISTED_MAX {
                add_more(&mut items, "the newest days", "Each other day is here by its name.");
                break;
            }
            items.push((day_name(day), self.of_day(day)));
            all.below = day.from;
        }
        Ok(items)
    }

    /// Returns the folder of a day by its name, if there is something of that day.
    pub(super) async fn find_day(&self, name: &str) -> FindResult {
        let Some(day) = super::time::day_of_name(name) else { return Ok(None) };
        Ok(self.newest_time(day).await?.map(|_| self.of_day(day)))
    }

    fn of_day(&self, day: TimeSpan) -> ViewItem {
        Self { day: Some(day), ..self.clone() }.item()
    }

    /// Returns the newest time in a span of a document that is shown.
    async fn newest_time(&self, span: TimeSpan) -> BrowseResult<Option<Millis>> {
        let mut pages = Pages::new(self.within(span).descending(), self.field);
        let mut rows = 1;
        while let Some(page) = pages.next_rows(&*self.daemon.plane.documents, rows).await? {
            if let Some(shown) = page.iter().find(|document| (self.namer)(document).is_some()) {
                return Ok(Some(self.time_of(shown)));
            }
            rows = PART_ROWS;
        }
        Ok(None)
    }

    fn within(&self, span: TimeSpan) -> Query {
        let range = FieldRange::at_least(self.field, json!(span.from)).below(json!(span.below));
        self.query.clone().within(range)
    }

    fn pages(&self) -> Pages {
        let query = match self.day {
            Some(day) => self.within(day),
            None => self.query.clone(),
        };
        Pages::new(query.descending(), self.field)
    }

    fn time_of(&self, document: &Value) -> Millis {
        document[self.field].as_i64().unwrap_or_default()
    }

    /// Returns the whole name of a document, and what it stands for.
    fn named(&self, document: &Value) -> Option<(String, ViewItem)> {
        let (rest, item) = (self.namer)(document)?;
        let time = time_name(self.time_of(document));
        let time = if self.day.is_some() { &time["2026-05-01T".len()..] } else { &time };
        Some((format!("{time}-{rest}"), item))
    }

    /// Returns the documents of a page that are listed.
    async fn listed(&self, mut page: Vec<Value>) -> BrowseResult<Vec<Value>> {
        if self.listed == ListedDocuments::FirstOfCorrelation {
            let mut first: HashMap<String, String> = HashMap::new();
            for event in &page {
                let correlation = correlation_of(event);
                if !first.contains_key(correlation) {
                    let query = self.query.clone().order_by("created").limit(PART_ROWS);
                    let query = with_equal(query, "context.correlationId", correlation);
                    let found = self.daemon.plane.documents.find(query).await?;
                    let shown = found.iter().find(|event| (self.namer)(event).is_some());
                    let id = shown.map(|event| text(event, "id").to_owned()).unwrap_or_default();
                    first.insert(correlation.to_owned(), id);
                }
            }
            page.retain(|event| {
                first.get(correlation_of(event)).is_some_and(|id| id == text(event, "id"))
            });
        }
        Ok(page)
    }

    /// Returns the document of a name by the part of its id in the name; none if that does not tell.
    async fn find_by_id(&self, name: &str) -> FindResult {
        let documents = &self.daemon.plane.documents;
        let is_it = |document: &Value| {
            let has = |(field, value): &(&str, Value)| {
                field.split('.').try_fold(document, |at, part| at.get(part)) == Some(value)
            };
            let at = self.time_of(document);
            let is_of_day = self.day.is_none_or(|day| day.from <= at && at < day.below);
            is_of_day && self.query.equals.iter().all(has)
        };
        for (at, _) in name.rmatch_indices('-').take(ID_DASHES_MAX) {
            let part = &name[at + 1..];
            let exact = documents.get(self.query.collection, &text_of(part)).await?;
            let begin_so = match part.len() == 8 && at == name.rfind('-').unwrap_or_default() {
                true => {
                    let range = FieldRange::prefix("id", part);
                    let query = Query::all(self.query.collection).within(range).limit(PART_ROWS);
                    documents.find(Query { fields: self.query.fields, ..query }).await?
                }
                false => vec![],
            };
            let named = exact.iter().chain(&begin_so).filter(|document| is_it(document));
            let mut named = named.filter_map(|document| self.named(document));
            if let Some((_, item)) = named.find(|(found, _)| found == name) {
                return Ok(Some(item));
            }
        }
        Ok(None)
    }

    /// Returns what a name stands for: by the id in it, or else by a look through the documents of
    /// its second.
    pub(super) async fn find(&self, name: &str) -> FindResult {
        let Some(second) = second_of_name(self.day, name) else { return Ok(None) };
        if self.listed == ListedDocuments::All
            && let Some(found) = self.find_by_id(name).await?
        {
            return Ok(Some(found));
        }
        let mut pages = Pages::new(self.within(second), self.field);
        while let Some(page) = pages.next_rows(&*self.daemon.plane.documents, PART_ROWS).await? {
            let page = self.listed(page).await?;
            let mut named = page.iter().filter_map(|document| self.named(document));
            if let Some((_, item)) = named.find(|(found, _)| found == name) {
                return Ok(Some(item));
            }
        }
        Ok(None)
    }
}

/// Reads the names of a [`TimedFolder`].
struct TimedNames {
    folder: TimedFolder,
    pages: Pages,
}

#[async_trait]
impl NamePages for TimedNames {
    async fn next(&mut self) -> NamesResult {
        let documents = &*self.folder.daemon.plane.documents;
        let Some(page) = self.pages.next_rows(documents, PART_ROWS).await? else {
            return Ok(None);
        };
        let page = self.folder.listed(page).await?;
        Ok(Some(page.iter().filter_map(|document| self.folder.named(document)).collect()))
    }
}
