//! First events: events that a person or a program creates, and not a job.

use bytes::Bytes;
use ion_model::clock;
use ion_model::event::{Context, DocumentType, Event, FileEntry, KeyValue, PublicationState};
use ion_model::id::{CorrelationId, EventId};
use ion_stores::{Collection, DataPlane, decode};

use crate::commit::LISTED_MAX;
use crate::upload::{UploadError, retry_suffix, store_bytes, store_with_retries};

/// The content of a first event. Its files are already durable.
#[derive(Clone, Debug)]
pub struct FirstEvent {
    /// The event's id; the same id with the same content is the same event.
    pub id: EventId,
    /// The correlation it begins, or belongs to.
    pub correlation_id: CorrelationId,
    /// The name of the program that creates it.
    pub name: String,
    /// The id of its parent event; empty, or a program's name, if it has no parent.
    pub parent: String,
    /// The event type.
    pub event_type: String,
    /// Its files.
    pub files: Vec<FileEntry>,
    /// Its empty directories.
    pub directories: Vec<String>,
    /// Its values.
    pub data: Vec<KeyValue>,
}

/// Returns the depth of an event whose parent has this id: 0 if no event has it.
async fn child_depth(plane: &DataPlane, parent: &str) -> Result<u32, UploadError> {
    if parent.is_empty() {
        return Ok(0);
    }
    let found = plane.documents.get(Collection::Events, parent).await?;
    let parent = found.and_then(|found| decode::<Event>(Collection::Events, found).ok());
    Ok(parent.map_or(0, |parent| parent.child_depth()))
}

impl FirstEvent {
    /// Returns its document. A list of files that is too long for a document becomes a blob below
    /// `prefix`. No other caller may use that prefix: a second event with the same id must not
    /// overwrite the blob that the first one names.
    ///
    /// # Errors
    /// When that blob cannot be stored, or the parent event cannot be read.
    pub async fn into_event(self, plane: &DataPlane, prefix: &str) -> Result<Event, UploadError> {
        let (files, file_list) = if self.files.len() > LISTED_MAX {
            let list = serde_json::to_vec(&self.files).expect("entries have string keys only");
            let list = Bytes::from(list);
            let store = |number| {
                let key = format!("{prefix}/.ion-files{}.json", retry_suffix(number));
                store_bytes(&*plane.blobs, key, "files.json".into(), list.clone())
            };
            (vec![], Some(store_with_retries(store).await?))
        } else {
            (self.files, None)
        };
        let depth = child_depth(plane, &self.parent).await?;
        let context = Context {
            name: self.name,
            event_id: self.id.clone(),
            correlation_id: self.correlation_id,
            parent_event_id: self.parent,
            document_type: DocumentType::EventMeta,
        };
        Ok(Event {
            id: self.id,
            context,
            event_type: self.event_type,
            files,
            file_list,
            data: self.data,
            directories: self.directories,
            created: clock::now(),
            publication: PublicationState::Unpublished,
            depth,
            file_name: None,
            job_id: None,
            attempt: None,
            publisher: None,
            unrouted: false,
            cancelled: false,
            expected_by: None,
            registry: 0,
            unclaimed: false,
            tick: None,
        })
    }
}
