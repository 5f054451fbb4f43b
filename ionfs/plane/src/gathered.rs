//! What a gathering job is given: the events that it gathers, or a list of them in blobs.
//!
//! # How it works
//! A few events are handed over as they are. A longer list is written into two blobs while the
//! events come: the text of `in/events.json`, and the place of each event in that text. So neither
//! the process that writes the list nor the one that reads it holds more than pieces of it.
//!
//! # What it never does
//! Remove a blob. A module may have copied `in/events.json` to its output, which moves a reference, so
//! its event names the blob. The keys hold the job's id, so `gc` keeps the blobs while the job is
//! active; afterwards it removes those that no event names.

use std::fmt;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use ion_model::event::{Event, FileEntry, event_json};
use ion_model::record::JobRecord;
use ion_stores::{DataPlane, StoreError, encode};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::upload::{UploadError, store_stream};

/// The most events that are handed over as they are. More take memory in the dispatcher and in the
/// mount, fewer make small gatherings wait for blobs.
const FEW_EVENTS_MAX: usize = 1000;

/// The most bytes of the documents of events that are handed over as they are.
const FEW_BYTES_MAX: usize = 1 << 20;

/// How many pieces of a blob may wait for the store. A piece is the text of one event.
const WAITING_PIECES_MAX: usize = 64;

/// The bytes of an event's place: where its text begins, and how long it is.
const PLACE_BYTES: u64 = 16;

/// The events that a gathering job gathers, in order.
#[derive(Clone, Debug)]
pub enum GatheredEvents {
    /// The events themselves.
    Few(Vec<Event>),
    /// A list in blobs.
    List(Box<GatheredList>),
}

/// A list of gathered events in two blobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatheredList {
    /// The number of events.
    pub count: u64,
    /// The blob with the text of `in/events.json`.
    pub events: FileEntry,
    /// The blob with the place of each event in that text.
    pub places: FileEntry,
}

/// The place of an event in the text of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventPlace {
    /// Where its text begins.
    pub offset: u64,
    /// The bytes of its text.
    pub length: u64,
}

impl GatheredList {
    /// Returns where the place of event number `n` begins in the blob of places, and its length.
    pub fn place_range(n: u64) -> (u64, u64) {
        (n * PLACE_BYTES, PLACE_BYTES)
    }

    /// Returns the keys of the blobs.
    pub fn keys(&self) -> [String; 2] {
        [self.events.key.clone(), self.places.key.clone()]
    }
}

impl EventPlace {
    /// Reads a place; none if the bytes are not those of one place.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (offset, length) = bytes.split_at_checked(8)?;
        let number = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_le_bytes);
        Some(Self { offset: number(offset)?, length: number(length)? })
    }

    fn to_bytes(self) -> Bytes {
        [self.offset.to_le_bytes(), self.length.to_le_bytes()].concat().into()
    }
}

/// Writes down the events that a job gathers, as they come.
pub struct GatheredWriter {
    plane: DataPlane,
    /// What the keys of the blobs begin with.
    prefix: String,
    few: Vec<Event>,
    few_bytes: usize,
    long: Option<ListWriter>,
}

impl fmt::Debug for GatheredWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatheredWriter").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl GatheredWriter {
    /// Begins the list of an attempt.
    pub fn new(plane: DataPlane, job: &JobRecord) -> Self {
        // An attempt that was put back begins again under its number, and blobs are written once.
        let part = Uuid::new_v4().simple();
        let prefix = format!("{}/{}/{}.gathered-{part}", job.correlation_id, job.id, job.attempt);
        Self { plane, prefix, few: Vec::new(), few_bytes: 0, long: None }
    }

    /// Adds the next event.
    ///
    /// # Errors
    /// When a store fails.
    pub async fn add(&mut self, event: Event) -> Result<(), StoreError> {
        if let Some(long) = &mut self.long {
            return long.add(&self.plane, &event).await;
        }
        self.few_bytes += encode(&event).to_string().len();
        self.few.push(event);
        if self.few.len() > FEW_EVENTS_MAX || self.few_bytes > FEW_BYTES_MAX {
            let mut long = ListWriter::begin(&self.plane, &self.prefix);
            for event in std::mem::take(&mut self.few) {
                long.add(&self.plane, &event).await?;
            }
            self.long = Some(long);
        }
        Ok(())
    }

    /// Ends the list, and returns it. The blobs are durable then. A writer that is dropped instead
    /// leaves no list.
    ///
    /// # Errors
    /// When a store fails.
    pub async fn finish(self) -> Result<GatheredEvents, StoreError> {
        Ok(match self.long {
            None => GatheredEvents::Few(self.few),
            Some(long) => GatheredEvents::List(Box::new(long.finish().await?)),
        })
    }
}

/// Which of a list's blobs it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListPart {
    Events,
    Places,
}

/// Writes the blobs of a list. Dropping it gives up the tasks first, so that none of them takes the
/// end of its channel for the end of the list.
struct ListWriter {
    stores: JoinSet<(ListPart, Result<FileEntry, UploadError>)>,
    events: mpsc::Sender<Bytes>,
    places: mpsc::Sender<Bytes>,
    count: u64,
    offset: u64,
}

impl ListWriter {
    fn begin(plane: &DataPlane, prefix: &str) -> Self {
        let mut stores = JoinSet::new();
        let mut store = |part: ListPart, name: &str| {
            let (sender, pieces) = mpsc::channel(WAITING_PIECES_MAX);
            let (blobs, name, key) =
                (plane.blobs.clone(), name.to_owned(), format!("{prefix}/{name}"));
            stores.spawn(async move {
                let pieces = stream::unfold(pieces, |mut pieces: mpsc::Receiver<Bytes>| async {
                    pieces.recv().await.map(|piece| (Ok(piece), pieces))
                });
                (part, store_stream(&*blobs, key, name, pieces.boxed()).await)
            });
            sender
        };
        let events = store(ListPart::Events, "events.json");
        let places = store(ListPart::Places, "places");
        Self { stores, events, places, count: 0, offset: 0 }
    }

    async fn add(&mut self, plane: &DataPlane, event: &Event) -> Result<(), StoreError> {
        let files = plane.files_of(event).await?;
        let text = event_text(event, &files);
        let before = if self.count == 0 { "[\n" } else { ",\n" };
        let offset = self.offset + before.len() as u64;
        let place = EventPlace { offset, length: text.len() as u64 };
        self.offset = offset + place.length;
        self.count += 1;
        let sent = self.events.send(Bytes::from(format!("{before}{text}"))).await.is_ok()
            && self.places.send(place.to_bytes()).await.is_ok();
        match sent {
            true => Ok(()),
            false => Err(self.failure().await),
        }
    }

    /// Returns why a task has ended before the end of the list.
    async fn failure(&mut self) -> StoreError {
        while let Some(joined) = self.stores.join_next().await {
            match joined {
                Ok((_, Ok(_))) => {}
                Ok((_, Err(error))) => return store_error(error),
                Err(error) => return unavailable(error),
            }
        }
        unavailable("the blob ended early")
    }

    async fn finish(mut self) -> Result<GatheredList, StoreError> {
        if self.events.send(Bytes::from_static(b"\n]\n")).await.is_err() {
            return Err(self.failure().await);
        }
        let Self { mut stores, events, places, count, .. } = self;
        drop((events, places));
        let (mut events, mut places) = (None, None);
        while let Some(joined) = stores.join_next().await {
            let (part, stored) = joined.map_err(unavailable)?;
            let stored = stored.map_err(store_error)?;
            match part {
                ListPart::Events => events = Some(stored),
                ListPart::Places => places = Some(stored),
            }
        }
        let both = "each of the two tasks has stored its blob";
        Ok(GatheredList { count, events: events.expect(both), places: places.expect(both) })
    }
}

/// Returns the text of an event in `in/events.json`, without what stands between two of them.
fn event_text(event: &Event, files: &[FileEntry]) -> String {
    let alone = serde_json::to_string_pretty(&[event_json(event, files)]).unwrap_or_default();
    let inner = alone.strip_prefix("[\n").and_then(|text| text.strip_suffix("\n]"));
    inner.unwrap_or(&alone).to_owned()
}

fn store_error(error: UploadError) -> StoreError {
    match error {
        UploadError::Store { source, .. } | UploadError::Documents(source) => source,
        error @ UploadError::Read { .. } => unavailable(error),
    }
}

fn unavailable(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
    let what = "writing the list of gathered events".to_owned();
    StoreError::Unavailable { store: "blobs".into(), what, source: source.into() }
}

#[cfg(test)]
mod tests {
    use ion_model::id::{CorrelationId, EventId, JobId};
    use ion_model::record::JobState;
    use ion_stores::open::{StoreUrls, open};
    use serde_json::{Value, json};

    use super::*;

    fn event(n: usize) -> Event {
        let context = json!({"name": "t", "eventId": format!("e{n}"), "correlationId": "c"});
        let data = json!([{"key": "n", "value": n.to_string()}]);
        serde_json::from_value(json!({
            "id": format!("e{n}"), "context": context, "type": "part", "data": data,
            "created": n, "publication": "published",
        }))
        .unwrap()
    }

    async fn written(count: usize) -> (tempfile::TempDir, DataPlane, GatheredEvents) {
        let folder = tempfile::tempdir().unwrap();
        let documents = format!("sqlite://{}", folder.path().join("ion.db").display());
        let blobs = format!("file://{}", folder.path().join("blobs").display());
        let bus = documents.clone();
        let plane = open(&StoreUrls { blobs, documents, bus }).await.unwrap();
        let root = event(0);
        let job = JobRecord::new(
            JobId::derive(&EventId::new("e0"), "all"),
            "all",
            &root,
            JobState::Starting,
            0,
        );
        assert_eq!(job.correlation_id, CorrelationId::new("c"));
        let mut writer = GatheredWriter::new(plane.clone(), &job);
        for n in 0..count {
            writer.add(event(n)).await.unwrap();
        }
        let gathered = writer.finish().await.unwrap();
        (folder, plane, gathered)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_few_events_are_handed_over_as_they_are() {
        for count in [0, 1, FEW_EVENTS_MAX] {
            let (_folder, _plane, gathered) = written(count).await;
            let GatheredEvents::Few(few) = gathered else { panic!("{count} events are few") };
            assert_eq!(few, (0..count).map(event).collect::<Vec<_>>());
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_long_list_is_the_same_json_and_each_event_is_found_in_it() {
        let count = FEW_EVENTS_MAX + 1;
        let (_folder, plane, gathered) = written(count).await;
        let GatheredEvents::List(list) = gathered else { panic!("{count} events are many") };
        assert_eq!(list.count, count as u64);
        let read = async |entry: &FileEntry| {
            let bytes = plane.blobs.get_range(&entry.key, 0..entry.size).await.unwrap();
            assert!(entry.has_content(&bytes));
            bytes
        };
        let text = read(&list.events).await;
        let shown: Vec<Value> = (0..count).map(|n| event_json(&event(n), &[])).collect();
        let mut expected = serde_json::to_string_pretty(&shown).unwrap();
        expected.push('\n');
        assert_eq!(text, expected.as_bytes());
        let places = read(&list.places).await;
        for n in [0, 1, count - 1] {
            let (from, length) = GatheredList::place_range(n as u64);
            let (from, length) = (usize::try_from(from).unwrap(), usize::try_from(length).unwrap());
            let place = EventPlace::from_bytes(&places[from..from + length]).unwrap();
            let from = usize::try_from(place.offset).unwrap();
            let one = &text[from..from + usize::try_from(place.length).unwrap()];
            assert_eq!(serde_json::from_slice::<Value>(one).unwrap(), shown[n]);
        }
        assert_eq!(EventPlace::from_bytes(&places[..15]), None);
    }
}
