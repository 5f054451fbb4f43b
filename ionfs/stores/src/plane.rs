//! The three stores of a plane.

use std::sync::Arc;

use bytes::Bytes;
use ion_model::event::{Event, FileEntry};
use ion_system::metrics::PlaneMetrics;
use serde_json::Value;

use crate::blobs::Blobs;
use crate::bus::Bus;
use crate::collection::Collection;
use crate::documents::{Documents, Guard, Inserted};
use crate::durability::Durability;
use crate::error::StoreError;
use crate::held::BlobLog;
use crate::object::ObjectBlobs;
use crate::registry::KnownRegistry;
use crate::sqlite::Sqlite;

/// The three stores of one plane, together.
#[derive(Clone, Debug)]
pub struct DataPlane {
    /// The blob store: the bytes of files.
    pub blobs: Arc<dyn Blobs>,
    /// The document store: events, jobs, modules.
    pub documents: Arc<dyn Documents>,
    /// The bus, which announces events to modules.
    pub bus: Arc<dyn Bus>,
    /// The small blobs whose bytes the documents' log holds until their files are durable.
    pub(crate) held: Option<Arc<BlobLog>>,
    /// The registry of modules as it was last read: it says which modules an event is for.
    pub(crate) registry: Arc<KnownRegistry>,
    /// Counts and times the operations on the stores.
    pub metrics: Arc<PlaneMetrics>,
}

impl DataPlane {
    /// Makes a plane of three stores that are open.
    pub fn new(blobs: Arc<dyn Blobs>, documents: Arc<dyn Documents>, bus: Arc<dyn Bus>) -> Self {
        Self {
            blobs,
            documents,
            bus,
            held: None,
            registry: Arc::default(),
            metrics: Arc::default(),
        }
    }

    /// Makes a plane in memory, for tests and examples. It is lost when it is dropped.
    ///
    /// # Errors
    /// When the database cannot be opened.
    pub fn in_memory() -> Result<Self, StoreError> {
        let database = Arc::new(Sqlite::in_memory()?);
        Ok(Self::new(Arc::new(ObjectBlobs::in_memory()), database.clone(), database))
    }

    /// Inserts documents with [`Durability::WithNextSync`], and makes the blobs durable that they
    /// name. `blobs` are the keys and bytes of those that were put with
    /// [`Durability::WithNextSync`]. They become durable before the documents or together with
    /// them.
    ///
    /// # Errors
    /// When a store fails, or when the guard does not hold ([`StoreError::Fenced`]).
    pub async fn insert_with_blobs(
        &self,
        blobs: Vec<(String, Bytes)>,
        documents: Vec<(Collection, Value)>,
        guard: Option<Guard>,
    ) -> Result<Vec<Inserted>, StoreError> {
        if let Some(held) = self.held.as_ref().filter(|held| held.has_room_for(&blobs)) {
            return held.add(blobs, documents, None, guard).await;
        }
        self.blobs.sync(&blobs.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>()).await?;
        self.documents.insert_all(documents, guard, Durability::WithNextSync).await
    }

    /// Writes into an event which modules it is for. Returns the guard that must hold for this when
    /// the event is inserted.
    ///
    /// # Errors
    /// When the registry cannot be read.
    pub async fn address_event(&self, event: &mut Event) -> Result<Guard, StoreError> {
        let registry = self.registry.get(&self.documents).await?;
        let listed = match registry.needs_file_list(event) {
            true => self.files_of(event).await?,
            false => vec![],
        };
        registry.address_event(&self.documents, event, &listed).await
    }

    /// Returns the files of an event, also where the document names them in a list.
    ///
    /// # Errors
    /// When the list cannot be read, or is damaged.
    pub async fn files_of(&self, event: &Event) -> Result<Vec<FileEntry>, StoreError> {
        self.listed_files(&event.files, event.file_list.as_ref()).await
    }

    /// Returns the files that a document names: `files`, or those in the blob `list`.
    ///
    /// # Errors
    /// When the list cannot be read, or is damaged.
    pub async fn listed_files(
        &self,
        files: &[FileEntry],
        list: Option<&FileEntry>,
    ) -> Result<Vec<FileEntry>, StoreError> {
        let Some(list) = list else { return Ok(files.to_vec()) };
        let bytes = self.blobs.get_range(&list.key, 0..list.size).await?;
        if !list.has_content(&bytes) {
            return Err(StoreError::DamagedBlob(list.key.clone()));
        }
        serde_json::from_slice(&bytes).map_err(|source| StoreError::Malformed {
            id: list.key.clone(),
            collection: "file lists",
            source,
        })
    }

    /// Drops the registry that was read, because it has changed. It is read again when it is
    /// needed.
    pub fn forget_registry(&self) {
        self.registry.forget();
    }

    /// Inserts documents and makes their blobs durable as [`DataPlane::insert_with_blobs`] does,
    /// then inserts and publishes an event, all in one transaction that is durable when this
    /// returns. The event is the last entry of the result. It is not published if it existed
    /// before. Returns `None`, and does nothing, where the stores cannot do this in one
    /// transaction.
    ///
    /// # Errors
    /// When a store fails, or when the guard does not hold ([`StoreError::Fenced`]).
    pub async fn insert_and_publish(
        &self,
        blobs: &[(String, Bytes)],
        documents: &[(Collection, Value)],
        event: &Event,
        guard: Option<&Guard>,
    ) -> Result<Option<Vec<Inserted>>, StoreError> {
        let Some(held) = self.held.as_ref().filter(|held| held.has_room_for(blobs)) else {
            return Ok(None);
        };
        let mut event = event.clone();
        let registered = self.address_event(&mut event).await?;
        let guard = guard.cloned().into_iter().fold(registered, |all, guard| guard.and(all));
        match held.add(blobs.to_vec(), documents.to_vec(), Some(event), Some(guard)).await {
            // The registry has changed. The caller then commits in separate steps, with the modules
            // that are registered now.
            Err(StoreError::Fenced(Collection::Plane)) => {
                self.forget_registry();
                Ok(None)
            }
            added => added.map(Some),
        }
    }
}
