//! `correlations/` and `recent/`: all that came of one first event, found by the day, the id or the
//! beginning of the id.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use ion_model::clock::Millis;
use ion_plane::node::Node as Daemon;
use ion_stores::{Collection, FieldRange, Pages, Query};
use serde_json::{Value, json};

use super::documents::{
    BrowseResult, DirectoryItems, EVENT_FIELDS, ListedDocuments, PART_ROWS, TimedFolder, add_more,
    correlation_of, created_of, events_query, is_shown_event, search_ended, stopped_item, text,
};
use super::event::event_item;
use super::names::{CUT, correlation_name, id_part, name_of, shell_word, text_of};
use super::time::{moment, time_name};
use crate::CURRENT;
use crate::item::{FindResult, ListResult, NamePages, NamesResult, ViewItem};
use crate::search_time::SearchTime;

/// The most names of `recent/`.
const RECENT_MAX: usize = 1000;

/// The fewest characters of the beginning of an id that stands for an event. Shorter ones would make
/// each mistyped name a search through many ids.
const ID_BEGINNING_MIN: usize = 4;

/// How many ids that begin alike are looked through for those of a correlation.
const ALIKE_MAX: usize = 10_000;

/// Makes the query for the first events of correlations, newest first. An event of an older Ion has
/// no depth, like a first event, but the job that committed it.
fn first_events() -> Query {
    events_query(vec![("depth", Value::Null)])
}

fn is_first_event(document: &Value) -> bool {
    document["jobId"].is_null() && is_shown_event(document)
}

/// Makes `correlations/`.
pub(super) fn correlations(daemon: &Arc<Daemon>) -> ViewItem {
    let named = daemon.clone();
    let namer = move |first: &Value| {
        let id = correlation_of(first);
        let created = created_of(first);
        let item = || correlation_item(&named, id, created);
        is_first_event(first)
            .then(|| (format!("{}-{}", name_of(text(first, "type")), id_part(id)), item()))
    };
    let days = TimedFolder {
        daemon: daemon.clone(),
        query: first_events(),
        field: "created",
        day: None,
        namer: Arc::new(namer),
        listed: ListedDocuments::FirstOfCorrelation,
        command: "ion event list".to_owned(),
    };
    let (listed, daemon) = (days.clone(), daemon.clone());
    let find = move |name: String| {
        let (days, daemon) = (days.clone(), daemon.clone());
        async move {
            match days.find_day(&name).await? {
                Some(day) => Ok(Some(day)),
                None => find_correlation(daemon, &text_of(&name)).await,
            }
        }
    };
    ViewItem::searchable(CURRENT, 0, move || listed.clone().list_days(), find)
}

/// Lists `recent/`: links to the newest correlations, each once though it may have several first
/// events.
pub(super) async fn recent(daemon: Arc<Daemon>) -> ListResult {
    let mut pages = Pages::new(first_events().descending(), "created");
    let mut seen = HashSet::new();
    let mut items = DirectoryItems::new();
    let time = SearchTime::begin(&daemon);
    while let Some(page) = pages.next_rows(&*daemon.plane.documents, PART_ROWS).await? {
        for first in page.iter().filter(|document| is_first_event(document)) {
            if items.len() == RECENT_MAX {
                return Ok(items);
            }
            let id = correlation_of(first);
            if seen.insert(id.to_owned()) {
                let created = created_of(first);
                let (time, event_type) = (time_name(created), text(first, "type"));
                let target = format!("../correlations/{}", correlation_name(id));
                let name = format!("{time}-{}-{}", name_of(event_type), id_part(id));
                items.push((name, ViewItem::Link(target, created)));
            }
        }
        if time.is_over() {
            let reached = moment(page.last().map(created_of).unwrap_or_default());
            let shown = format!("the correlations that have begun since {reached}");
            add_more(&mut items, &shown, "`correlations/` has all, by their days.");
            break;
        }
    }
    Ok(items)
}

/// Returns the correlation whose id this is, or the only one whose id begins so.
async fn find_correlation(daemon: Arc<Daemon>, name: &str) -> FindResult {
    let documents = &daemon.plane.documents;
    let Some((first, last)) = documents.correlations_beginning_with(name).await? else {
        return Ok(None);
    };
    if first != name && first != last {
        return Ok(None);
    }
    let found = documents.find(events_of(&first).order_by("created").limit(1)).await?;
    let created = found.first().and_then(|event| event["created"].as_i64()).unwrap_or_default();
    Ok(Some(correlation_item(&daemon, &first, created)))
}

/// Makes the folder of a correlation: all its events, oldest first.
fn correlation_item(daemon: &Arc<Daemon>, id: &str, created: Millis) -> ViewItem {
    let (listed, found) = (daemon.clone(), daemon.clone());
    let (listed_id, found_id) = (id.to_owned(), id.to_owned());
    ViewItem::paged(
        CURRENT,
        created,
        move || {
            let pages = Pages::new(events_of(&listed_id), "created");
            let (daemon, id) = (listed.clone(), listed_id.clone());
            Box::new(EventNames { daemon, id, pages, count: 0, reached: None })
        },
        move |name| find_event(found.clone(), found_id.clone(), name),
    )
}

/// Reads the names of a correlation's events: `<n>-<type>-<id8>`.
#[derive(Clone)]
struct EventNames {
    daemon: Arc<Daemon>,
    /// The correlation.
    id: String,
    pages: Pages,
    /// How many events were named.
    count: usize,
    /// The time of the event that was read last.
    reached: Option<Millis>,
}

#[async_trait]
impl NamePages for EventNames {
    async fn next(&mut self) -> NamesResult {
        let page = self.pages.next_rows(&*self.daemon.plane.documents, PART_ROWS).await?;
        let Some(page) = page else { return Ok(None) };
        self.reached = page.last().map(created_of);
        let mut names = DirectoryItems::new();
        for event in page.iter().filter(|document| is_shown_event(document)) {
            names.push((event_name(self.count, event), item_of(&self.daemon, event)));
            self.count += 1;
        }
        Ok(Some(names))
    }

    fn bookmark(&self) -> Box<dyn NamePages> {
        Box::new(self.clone())
    }

    fn rest(&self) -> (String, ViewItem) {
        let reached = self.reached.unwrap_or_default();
        let (id, since) = (shell_word(&self.id), moment(reached));
        stopped_item(reached, &[&format!("ion event list --correlation {id} --since {since}")])
    }
}

/// Returns the name of the event that has so many before it in its correlation.
fn event_name(number: usize, event: &Value) -> String {
    format!("{number}-{}-{}", name_of(text(event, "type")), id_part(text(event, "id")))
}

/// Returns the event of a correlation that this name stands for: its id, the name under which it is
/// listed, or the beginning of its id.
async fn find_event(daemon: Arc<Daemon>, correlation: String, name: String) -> FindResult {
    let id = text_of(&name);
    let found = match event_with_id(&daemon, &correlation, &id).await? {
        Some(event) => Some(event),
        None => match find_listed_event(&daemon, &correlation, &name).await? {
            Some(event) => Some(event),
            None => match events_beginning_with(&daemon, &correlation, &id).await? {
                EventsFound::One(event) => Some(event),
                EventsFound::None | EventsFound::Several => None,
            },
        },
    };
    Ok(found.map(|event| item_of(&daemon, &event)))
}

/// Returns the event that is listed under this name. The number in the name is only looked at where
/// the rest of the name does not tell.
async fn find_listed_event(
    daemon: &Daemon,
    correlation: &str,
    name: &str,
) -> BrowseResult<Option<Value>> {
    let Some((number, rest)) = name.split_once('-') else { return Ok(None) };
    let Ok(number) = number.parse::<usize>() else { return Ok(None) };
    // Both a type and an id may contain dashes.
    for (at, _) in rest.match_indices('-') {
        let part = &rest[at + 1..];
        let found = match event_with_id(daemon, correlation, &text_of(part)).await? {
            Some(event) => EventsFound::One(event),
            None if part.contains(CUT) => EventsFound::Several,
            None => events_beginning_with(daemon, correlation, &text_of(part)).await?,
        };
        match found {
            EventsFound::One(event) if event_name(number, &event) == name => {
                return Ok(Some(event));
            }
            EventsFound::Several => {
                let event = event_at(daemon, correlation, number).await?;
                return Ok(event.filter(|event| event_name(number, event) == name));
            }
            EventsFound::One(_) | EventsFound::None => {}
        }
    }
    Ok(None)
}

fn item_of(daemon: &Arc<Daemon>, event: &Value) -> ViewItem {
    event_item(daemon, text(event, "id"), created_of(event))
}

/// The events of a correlation whose ids begin with a text.
enum EventsFound {
    None,
    One(Value),
    Several,
}

/// Returns the event of a correlation whose id this is.
async fn event_with_id(
    daemon: &Daemon,
    correlation: &str,
    id: &str,
) -> BrowseResult<Option<Value>> {
    let found = daemon.plane.documents.get(Collection::Events, id).await?;
    Ok(found.filter(|event| correlation_of(event) == correlation && is_shown_event(event)))
}

/// Looks for the events of a correlation whose ids begin so. Several also stands for too many that
/// begin so in other correlations.
async fn events_beginning_with(
    daemon: &Daemon,
    correlation: &str,
    beginning: &str,
) -> BrowseResult<EventsFound> {
    let is_shown =
        |document: &Value| correlation_of(document) == correlation && is_shown_event(document);
    if beginning.len() < ID_BEGINNING_MIN {
        return Ok(EventsFound::None);
    }
    let query = Query::all(Collection::Events)
        .within(FieldRange::prefix("id", beginning))
        .only(EVENT_FIELDS);
    let mut pages = Pages::by_id(query);
    let mut found = EventsFound::None;
    let mut looked_at = 0;
    while let Some(page) = pages.next_rows(&*daemon.plane.documents, PART_ROWS).await? {
        looked_at += page.len();
        if looked_at > ALIKE_MAX {
            return Ok(EventsFound::Several);
        }
        for document in page.into_iter().filter(is_shown) {
            found = match found {
                EventsFound::None => EventsFound::One(document),
                _ => return Ok(EventsFound::Several),
            };
        }
    }
    Ok(found)
}

/// Returns the event that has so many before it in its correlation.
async fn event_at(
    daemon: &Daemon,
    correlation: &str,
    number: usize,
) -> BrowseResult<Option<Value>> {
    let mut pages = Pages::new(events_of(correlation), "created");
    let mut before = 0;
    let time = SearchTime::begin(daemon);
    while let Some(page) = pages.next_rows(&*daemon.plane.documents, PART_ROWS).await? {
        for event in page.into_iter().filter(is_shown_event) {
            if before == number {
                return Ok(Some(event));
            }
            before += 1;
        }
        if time.is_over() {
            return Err(search_ended(Collection::Events, &number.to_string()));
        }
    }
    Ok(None)
}

fn events_of(correlation: &str) -> Query {
    events_query(vec![("context.correlationId", json!(correlation))])
}
