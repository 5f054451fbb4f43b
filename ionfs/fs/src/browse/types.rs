//! `types/`: the events of each type, by day.

use std::sync::Arc;

use ion_plane::node::Node as Daemon;
use ion_stores::{Collection, FieldRange, Query};
use serde_json::{Value, json};

use super::documents::{
    BrowseResult, DirectoryItems, LISTED_MAX, ListedDocuments, TimedFolder, add_more,
    correlation_of, created_of, events_query, is_shown_event, text,
};
use super::names::{correlation_name, id_part, name_of, shell_word, text_of};
use crate::CURRENT;
use crate::item::{FindResult, ListResult, ViewItem};
use crate::search_time::SearchTime;

/// Makes `types/`.
pub(super) fn types(daemon: &Arc<Daemon>) -> ViewItem {
    let (listed, found) = (daemon.clone(), daemon.clone());
    ViewItem::searchable(
        CURRENT,
        0,
        move || list_types(listed.clone(), type_item),
        move |name| find_type(found.clone(), text_of(&name).into_owned()),
    )
}

/// Lists the types of all events, each with the item that `item_of` makes of it.
pub(super) async fn list_types(
    daemon: Arc<Daemon>,
    item_of: impl Fn(&Arc<Daemon>, &str) -> ViewItem,
) -> ListResult {
    let mut items = DirectoryItems::new();
    let mut last = String::new();
    let time = SearchTime::begin(&daemon);
    // Each type is the first one in the index after the type before it.
    while let Some(event_type) = first_type(&daemon, &format!("{last}\0")).await? {
        if items.len() == LISTED_MAX || time.is_over() {
            add_more(&mut items, "the first types", "Each other type is here by its name.");
            break;
        }
        items.push((name_of(&event_type).into_owned(), item_of(&daemon, &event_type)));
        last = event_type;
    }
    Ok(items)
}

/// Returns the first type that is not before this text.
async fn first_type(daemon: &Daemon, from: &str) -> BrowseResult<Option<String>> {
    let query = Query::all(Collection::Events)
        .within(FieldRange::at_least("type", json!(from)))
        .order_by("type")
        .only(&["type"]);
    let found = daemon.plane.documents.find(query.limit(1)).await?;
    Ok(found.first().and_then(|event| event["type"].as_str()).map(str::to_owned))
}

async fn find_type(daemon: Arc<Daemon>, name: String) -> FindResult {
    Ok(is_type(&daemon, &name).await?.then(|| type_item(&daemon, &name)))
}

/// Returns whether an event has this type.
pub(super) async fn is_type(daemon: &Daemon, name: &str) -> BrowseResult<bool> {
    Ok(first_type(daemon, name).await?.is_some_and(|first| first == name))
}

/// Makes `types/<type>/`: a folder for each day, with links to the events.
fn type_item(daemon: &Arc<Daemon>, event_type: &str) -> ViewItem {
    let namer = |event: &Value| {
        let id = text(event, "id");
        let (correlation, created) = (correlation_name(correlation_of(event)), created_of(event));
        let target = format!("../../../correlations/{correlation}/{}", name_of(id));
        let link = ViewItem::Link(target, created);
        is_shown_event(event).then(|| (id_part(id).into_owned(), link))
    };
    let folder = TimedFolder {
        daemon: daemon.clone(),
        query: events_query(vec![("type", json!(event_type))]),
        field: "created",
        day: None,
        namer: Arc::new(namer),
        listed: ListedDocuments::All,
        command: format!("ion event list --type {}", shell_word(event_type)),
    };
    folder.by_days()
}
