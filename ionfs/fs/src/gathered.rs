//! What a gathering job finds in `in/` of the events that it gathers.
//!
//! # How it works
//! A few events are read when the tree is made. Of a long list, `events.json` is the list's own blob,
//! and the directories of an event, `data/<n>/` and `events/<n>/`, are made when they are accessed:
//! the list says where the text of event number n stands, the text has the event's id, and the
//! event's document has its files and values. So the tree of a hundred thousand events opens at once,
//! and holds only what was looked at.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use ion_model::clock::Millis;
use ion_model::event::{Event, FileEntry, KeyValue, event_json};
use ion_model::id::EventId;
use ion_plane::address::{FileUrls, addresses};
use ion_plane::cache::{BlobReader, CacheError};
use ion_plane::gathered::{EventPlace, GatheredList};
use ion_plane::node::Node as Daemon;
use ion_stores::{Collection, StoreError};
use serde_json::Value;

use super::FOREVER;
use super::item::{FindResult, ListResult, NamePages, NamesResult, ViewItem, files_tree};
use super::lineage::values_item;

/// How many names of a directory of events are read at once. Each takes some hundred bytes; fewer
/// make no listing slower that a person would see.
const PART_NAMES: u64 = 512;

/// The entries of `in/` that show files, and the gathered events if there are any.
pub(super) struct FilesInput {
    pub(super) items: Vec<(String, ViewItem)>,
    /// The addresses of all files, if the module asks for them.
    pub(super) addresses: Vec<KeyValue>,
}

/// Makes the entries for a few events.
pub(super) async fn few_events(
    daemon: &Daemon,
    few: &[Event],
    urls: FileUrls,
    created: Millis,
) -> Result<FilesInput, StoreError> {
    let plane = &daemon.plane;
    let (mut files, mut directories) = (Vec::new(), Vec::new());
    let (mut list, mut values) = (Vec::new(), BTreeMap::new());
    let mut all_addresses = Vec::new();
    for (n, event) in few.iter().enumerate() {
        let of_event = plane.files_of(event).await?;
        list.push(event_json(event, &of_event));
        values.insert(n.to_string(), values_directory(event.clone()));
        // Each event has its folder, even one without files.
        directories.push(n.to_string());
        let below = format!("{n}/");
        all_addresses.extend(addresses(plane, urls, &event.id, &of_event, &below).await?);
        directories.extend(event.directories.iter().map(|name| format!("{n}/{name}")));
        let numbered = |file: FileEntry| FileEntry { name: format!("{n}/{}", file.name), ..file };
        files.extend(of_event.into_iter().map(numbered));
    }
    let items = vec![
        ("data".to_owned(), files_tree(&files, &directories)),
        ("events.json".to_owned(), ViewItem::json(&list, created)),
        ("events".to_owned(), ViewItem::fixed(values)),
    ];
    Ok(FilesInput { items, addresses: all_addresses })
}

/// Makes the entries for a long list of events. Only for a module that asks for the addresses of its
/// files does this read the events, because all addresses stand in one file.
pub(super) async fn listed_events(
    daemon: &Arc<Daemon>,
    list: &GatheredList,
    urls: FileUrls,
) -> Result<FilesInput, StoreError> {
    let shown = Arc::new(ShownList { daemon: daemon.clone(), list: list.clone() });
    let mut all_addresses = Vec::new();
    if urls != FileUrls::None {
        for n in 0..list.count {
            let event = shown.event(n).await?;
            let files = daemon.plane.files_of(&event).await?;
            let below = format!("{n}/");
            all_addresses.extend(addresses(&daemon.plane, urls, &event.id, &files, &below).await?);
        }
    }
    let items = vec![
        ("data".to_owned(), numbered_directory(&shown, EventAspect::Files)),
        ("events.json".to_owned(), ViewItem::Blob(Arc::new(list.events.clone()))),
        ("events".to_owned(), numbered_directory(&shown, EventAspect::Values)),
    ];
    Ok(FilesInput { items, addresses: all_addresses })
}

/// Which directory of a gathered event it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EventAspect {
    /// `data/<n>`.
    Files,
    /// `events/<n>`.
    Values,
}

/// Makes a directory that has a directory for each event of a list. A name is found without a
/// listing of all others, and a listing holds a part of the names.
fn numbered_directory(shown: &Arc<ShownList>, aspect: EventAspect) -> ViewItem {
    let (listed, found) = (shown.clone(), shown.clone());
    let begin = move || {
        let names = NumberedNames { shown: listed.clone(), aspect, next: 0 };
        Box::new(names) as Box<dyn NamePages>
    };
    let find = move |name: String| {
        let number = name.parse().ok().filter(|n: &u64| n.to_string() == name);
        let number = number.filter(|n| *n < found.list.count);
        let item: FindResult = Ok(number.map(|n| event_directory(&found, n, aspect)));
        std::future::ready(item)
    };
    ViewItem::paged(FOREVER, 0, begin, find)
}

/// Reads the names of a [`numbered_directory`] in their order.
#[derive(Clone)]
struct NumberedNames {
    shown: Arc<ShownList>,
    aspect: EventAspect,
    next: u64,
}

#[async_trait]
impl NamePages for NumberedNames {
    async fn next(&mut self) -> NamesResult {
        let end = self.shown.list.count.min(self.next + PART_NAMES);
        let part = self.next..end;
        self.next = end;
        let entry = |n: u64| (n.to_string(), event_directory(&self.shown, n, self.aspect));
        Ok((!part.is_empty()).then(|| part.map(entry).collect()))
    }

    fn bookmark(&self) -> Box<dyn NamePages> {
        Box::new(self.clone())
    }

    /// No caller ends the reading, because each part has names.
    fn rest(&self) -> (String, ViewItem) {
        let text = format!("The events from {} on are not listed.\n", self.next);
        ("MORE".to_owned(), ViewItem::Text(text.into(), 0))
    }
}

/// Makes a directory of an event of a list. Its entries are made when it is accessed.
fn event_directory(shown: &Arc<ShownList>, n: u64, aspect: EventAspect) -> ViewItem {
    let shown = shown.clone();
    ViewItem::lazy(FOREVER, move || {
        let shown = shown.clone();
        async move {
            let event = shown.event(n).await?;
            match aspect {
                EventAspect::Values => Ok(value_items(&event)),
                EventAspect::Files => shown.file_items(&event).await,
            }
        }
    })
}

/// Makes the directory of an event's values. Its entries are made when it is accessed.
fn values_directory(event: Event) -> ViewItem {
    ViewItem::lazy(FOREVER, move || std::future::ready(Ok(value_items(&event))))
}

fn value_items(event: &Event) -> Vec<(String, ViewItem)> {
    vec![
        ("eventmeta.json".to_owned(), ViewItem::json(&event.data, event.created)),
        ("meta".to_owned(), values_item(&event.data, event.created)),
    ]
}

/// A long list of gathered events, and the daemon that reads its blobs.
struct ShownList {
    daemon: Arc<Daemon>,
    list: GatheredList,
}

impl ShownList {
    /// Reads event number `n`.
    async fn event(&self, n: u64) -> Result<Event, StoreError> {
        let damaged = |entry: &FileEntry| StoreError::DamagedBlob(entry.key.clone());
        let (from, length) = GatheredList::place_range(n);
        let place = self.read(&self.list.places, from, length).await?;
        let place = EventPlace::from_bytes(&place).ok_or_else(|| damaged(&self.list.places))?;
        let text = self.read(&self.list.events, place.offset, place.length).await?;
        let shown: Value = serde_json::from_slice(&text).map_err(|_| damaged(&self.list.events))?;
        let id = EventId::new(shown["context"]["eventId"].as_str().unwrap_or_default());
        let found = self.daemon.plane.documents.get_as(Collection::Events, id.as_str()).await?;
        found.ok_or_else(|| StoreError::Unavailable {
            store: Collection::Events.as_str().into(),
            what: format!("reading gathered event {id}"),
            source: "the event is not there any more".into(),
        })
    }

    /// Returns the entries of an event's files.
    async fn file_items(&self, event: &Event) -> ListResult {
        let files = self.daemon.plane.files_of(event).await?;
        let ViewItem::Directory(tree) = files_tree(&files, &event.directories) else {
            return Ok(vec![]);
        };
        let listing = tree.list().await?;
        Ok(listing.iter().map(|(name, item)| (name.to_owned(), item.clone())).collect())
    }

    /// Reads a part of a blob, and compares it with its checksums.
    async fn read(&self, entry: &FileEntry, from: u64, length: u64) -> Result<Bytes, StoreError> {
        let blob = self.daemon.cache.open(entry).map_err(|error| list_error(error.into()))?;
        BlobReader::new(blob).read(from, length).await.map_err(list_error)
    }
}

/// Returns why a list of gathered events cannot be read.
fn list_error(error: Arc<CacheError>) -> StoreError {
    match &*error {
        CacheError::Store { source: StoreError::NoSuchBlob(key), .. } => {
            StoreError::NoSuchBlob(key.clone())
        }
        CacheError::Store { source: StoreError::DamagedBlob(key), .. }
        | CacheError::Corrupt { key, .. } => StoreError::DamagedBlob(key.clone()),
        CacheError::Store { .. } | CacheError::Block { .. } | CacheError::Local { .. } => {
            StoreError::Unavailable {
                store: "blobs".into(),
                what: "reading the list of gathered events".into(),
                source: error.into(),
            }
        }
    }
}
