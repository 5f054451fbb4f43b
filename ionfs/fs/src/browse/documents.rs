//! Folders of documents: how documents are read for a listing, and how the document of a name is
//! found.
//!
//! No request goes through more documents than it has time for: see [`SearchTime`].

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use ion_model::clock::Millis;
use ion_model::event::{DocumentType, is_event, is_staged};
use ion_plane::node::Node as Daemon;
use ion_stores::{Collection, FieldRange, Pages, Query, StoreError};
use serde_json::{Value, json};

use super::names::{CUT, SHORT_PART, name_suffixes, text_of};
use super::time::{TimeSpan, day_name, moment, second_of_name, time_name};
use crate::CURRENT;
use crate::item::{FindResult, ListResult, NamePages, NamesResult, ViewItem};
use crate::search_time::SearchTime;

/// The most names of a folder that is listed as a whole.
pub(super) const LISTED_MAX: usize = 10_000;

/// How many documents are read at once for the names of a folder.
pub(super) const PART_ROWS: usize = 512;

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
    items.push(more_item(shown, how));
}

fn more_item(shown: &str, how: &str) -> (String, ViewItem) {
    let text = format!("This folder lists {shown} only. {how}\n");
    (MORE.to_owned(), ViewItem::Text(text.into(), 0))
}

/// Makes the file that says that the search for a folder's names was ended at this time of the
/// documents, and which commands list the rest.
pub(super) fn stopped_item(reached: Millis, commands: &[&str]) -> (String, ViewItem) {
    let shown = format!("what a search found until it came to {}", moment(reached));
    let commands: Vec<String> = commands.iter().map(|command| format!("`{command}`")).collect();
    let go_on = if commands.len() == 1 { "goes on" } else { "go on" };
    more_item(&shown, &format!("{} {go_on} there.", commands.join(" and ")))
}

/// Returns the command that goes on with a search for which `command` stands and which has come from
/// the newest documents to those of this time.
pub(super) fn command_until(command: &str, reached: Millis) -> String {
    format!("{command} --until {}", moment(reached.saturating_add(1)))
}

/// Returns the error of a search for the document of a name that was ended.
pub(super) fn search_ended(collection: Collection, name: &str) -> StoreError {
    StoreError::Unavailable {
        store: collection.as_str().into(),
        what: format!("looking for what {name:?} stands for"),
        source: "too many documents of its time have ids like this one; give the whole id".into(),
    }
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
    /// The command that lists the documents.
    pub(super) command: String,
}

/// Which of the documents that a query finds a folder lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ListedDocuments {
    /// All that are shown.
    All,
    /// Only the first event of each correlation: a correlation may have several without a parent.
    FirstOfCorrelation,
}

/// The newest time of a document that is shown.
enum NewestTime {
    Known(Millis),
    /// No document is shown.
    None,
    /// None was found in the time that a search may take.
    NotFound,
}

/// What a search by the id in a name has found.
enum FoundById {
    Item(ViewItem),
    /// There is nothing of this name.
    Nothing,
    /// The ids of several documents are like the one in the name.
    Unclear,
}

impl TimedFolder {
    /// Makes the folder.
    pub(super) fn item(self) -> ViewItem {
        let mtime = self.day.map_or(0, |day| day.from.max(0));
        let listed = self.clone();
        ViewItem::paged(
            CURRENT,
            mtime,
            move || Box::new(listed.names()),
            move |name| {
                let folder = self.clone();
                async move { folder.find(&name).await }
            },
        )
    }

    /// Begins to read the names.
    pub(super) fn names(&self) -> TimedNames {
        TimedNames { pages: self.pages(), folder: self.clone(), reached: None }
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
        let time = SearchTime::begin(&self.daemon);
        while all.from < all.below {
            let newest = match self.newest_time(all, time).await? {
                NewestTime::Known(newest) if items.len() < LISTED_MAX => newest,
                NewestTime::None => break,
                NewestTime::Known(_) | NewestTime::NotFound => {
                    add_more(&mut items, "the newest days", "Each other day is here by its name.");
                    break;
                }
            };
            let day = TimeSpan::day_of(newest);
            items.push((day_name(day), self.of_day(day)));
            all.below = day.from;
        }
        Ok(items)
    }

    /// Returns the folder of a day by its name, if there may be something of that day. What the
    /// folder lists says if the search for it was ended.
    pub(super) async fn find_day(&self, name: &str) -> FindResult {
        let Some(day) = super::time::day_of_name(name) else { return Ok(None) };
        match self.newest_time(day, SearchTime::begin(&self.daemon)).await? {
            NewestTime::None => Ok(None),
            NewestTime::Known(_) | NewestTime::NotFound => Ok(Some(self.of_day(day))),
        }
    }

    fn of_day(&self, day: TimeSpan) -> ViewItem {
        Self { day: Some(day), ..self.clone() }.item()
    }

    /// Returns the newest time in a span of a document that is shown.
    async fn newest_time(&self, span: TimeSpan, time: SearchTime) -> BrowseResult<NewestTime> {
        let mut pages = Pages::new(self.within(span).descending(), self.field);
        let mut rows = 1;
        while let Some(page) = pages.next_rows(&*self.daemon.plane.documents, rows).await? {
            if let Some(shown) = page.iter().find(|document| (self.namer)(document).is_some()) {
                return Ok(NewestTime::Known(self.time_of(shown)));
            }
            if time.is_over() {
                return Ok(NewestTime::NotFound);
            }
            rows = PART_ROWS;
        }
        Ok(NewestTime::None)
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
                    let event = self.first_of_correlation(correlation).await?;
                    let id = event.map(|event| text(&event, "id").to_owned()).unwrap_or_default();
                    first.insert(correlation.to_owned(), id);
                }
            }
            page.retain(|event| {
                first.get(correlation_of(event)).is_some_and(|id| id == text(event, "id"))
            });
        }
        Ok(page)
    }

    /// Returns the event that stands for a correlation among those that the query finds.
    async fn first_of_correlation(&self, correlation: &str) -> BrowseResult<Option<Value>> {
        let query = self.query.clone().order_by("created").limit(PART_ROWS);
        let query = with_equal(query, "context.correlationId", correlation);
        let found = self.daemon.plane.documents.find(query).await?;
        Ok(found.into_iter().find(|event| (self.namer)(event).is_some()))
    }

    /// Looks for the document of a name by the id in the name, or the id of its correlation.
    async fn find_by_id(&self, second: TimeSpan, name: &str) -> BrowseResult<FoundById> {
        let found = match self.listed {
            ListedDocuments::All => {
                documents_of_name(&self.daemon, self.query.collection, self.query.fields, name)
                    .await?
            }
            ListedDocuments::FirstOfCorrelation => self.correlations_of_name(name).await?,
        };
        let is_of_folder = |document: &&Value| {
            let has = |(field, value): &(&str, Value)| {
                let found = field.split('.').try_fold(*document, |at, part| at.get(part));
                found.unwrap_or_default() == value
            };
            second.contains(self.time_of(document)) && self.query.equals.iter().all(has)
        };
        let named = found.documents.iter().filter(is_of_folder);
        let mut named = named.filter_map(|document| self.named(document));
        Ok(match named.find(|(found, _)| found == name) {
            Some((_, item)) => FoundById::Item(item),
            None if found.are_all => FoundById::Nothing,
            None => FoundById::Unclear,
        })
    }

    /// Finds the first events of the correlations whose ids a name may have.
    async fn correlations_of_name(&self, name: &str) -> BrowseResult<NamedDocuments> {
        let mut found = NamedDocuments { documents: vec![], are_all: !name.contains(CUT) };
        for part in name_suffixes(name) {
            found.documents.extend(self.first_of_correlation(&text_of(part)).await?);
            if part.len() == SHORT_PART {
                let documents = &self.daemon.plane.documents;
                match documents.correlations_beginning_with(part).await? {
                    Some((first, last)) if first == last => {
                        found.documents.extend(self.first_of_correlation(&first).await?);
                    }
                    Some(_) => found.are_all = false,
                    None => {}
                }
            }
        }
        Ok(found)
    }

    /// Returns what a name stands for: by the id in it or, where several ids are like it, by a look
    /// through the documents of its second.
    pub(super) async fn find(&self, name: &str) -> FindResult {
        let Some(second) = second_of_name(self.day, name) else { return Ok(None) };
        match self.find_by_id(second, name).await? {
            FoundById::Item(item) => return Ok(Some(item)),
            FoundById::Nothing => return Ok(None),
            FoundById::Unclear => {}
        }
        let time = SearchTime::begin(&self.daemon);
        let mut pages = Pages::new(self.within(second), self.field);
        while let Some(page) = pages.next_rows(&*self.daemon.plane.documents, PART_ROWS).await? {
            let page = self.listed(page).await?;
            let mut named = page.iter().filter_map(|document| self.named(document));
            if let Some((_, item)) = named.find(|(found, _)| found == name) {
                return Ok(Some(item));
            }
            if time.is_over() {
                return Err(search_ended(self.query.collection, name));
            }
        }
        Ok(None)
    }

    /// Returns the command that lists the documents from the newest of this time on.
    fn command_until(&self, reached: Millis) -> String {
        match self.day.filter(|_| self.field == "created") {
            Some(day) => {
                let command = format!("{} --since {}", self.command, moment(day.from));
                command_until(&command, reached)
            }
            // A job that has its state since this day may be older.
            None => command_until(&self.command, reached),
        }
    }
}

/// The documents that a name may stand for by the id in it.
pub(super) struct NamedDocuments {
    pub(super) documents: Vec<Value>,
    /// Whether no others may be meant.
    pub(super) are_all: bool,
}

/// Finds the documents whose ids stand at the end of a name, whole or by their first characters.
pub(super) async fn documents_of_name(
    daemon: &Daemon,
    collection: Collection,
    fields: Option<&'static [&'static str]>,
    name: &str,
) -> BrowseResult<NamedDocuments> {
    let documents = &daemon.plane.documents;
    let ids = name_suffixes(name).map(|part| text_of(part).into_owned()).collect();
    let mut found = NamedDocuments { documents: vec![], are_all: !name.contains(CUT) };
    for id in documents.find_existing_ids(collection, ids).await? {
        found.documents.extend(documents.get(collection, &id).await?);
    }
    if let Some(part) = name_suffixes(name).find(|part| part.len() == SHORT_PART) {
        let query = Query::all(collection).within(FieldRange::prefix("id", part));
        let alike = documents.find(Query { fields, ..query.limit(PART_ROWS) }).await?;
        found.are_all &= alike.len() < PART_ROWS;
        found.documents.extend(alike);
    }
    Ok(found)
}

/// Reads the names of a [`TimedFolder`].
#[derive(Clone)]
pub(super) struct TimedNames {
    folder: TimedFolder,
    pages: Pages,
    /// The time of the document that was read last.
    reached: Option<Millis>,
}

#[async_trait]
impl NamePages for TimedNames {
    async fn next(&mut self) -> NamesResult {
        let documents = &*self.folder.daemon.plane.documents;
        let Some(page) = self.pages.next_rows(documents, PART_ROWS).await? else {
            return Ok(None);
        };
        self.reached = page.last().map(|document| self.folder.time_of(document));
        let page = self.folder.listed(page).await?;
        Ok(Some(page.iter().filter_map(|document| self.folder.named(document)).collect()))
    }

    fn bookmark(&self) -> Box<dyn NamePages> {
        Box::new(self.clone())
    }

    fn rest(&self) -> (String, ViewItem) {
        self.rest_with(&[])
    }
}

impl TimedNames {
    /// Returns the file that is listed if the reading ends here. `others` are commands that list
    /// what else the folder would have.
    pub(super) fn rest_with(&self, others: &[&str]) -> (String, ViewItem) {
        let reached = self.reached.unwrap_or(Millis::MAX);
        let command = self.folder.command_until(reached);
        stopped_item(reached, &[&[command.as_str()], others].concat())
    }
}
