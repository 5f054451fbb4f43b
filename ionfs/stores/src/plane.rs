//! The three stores of a plane.

use std::sync::Arc;

use bytes::Bytes;
use ion_model::event::Event;
use ion_system::metrics::Metrics;
use serde_json::Value;

use crate::blobs::Blobs;
use crate::bus::Bus;
use crate::collection::Collection;
use crate::documents::{Documents, Guard, Inserted};
use crate::error::StoreError;
use crate::held::Held;
use crate::registry::KnownRegistry;

/// The three stores together.
#[derive(Clone, Debug)]
pub struct DataPlane {
    /// Files' bytes.
    pub blobs: Arc<dyn Blobs>,
    /// Events, jobs, modules.
    pub documents: Arc<dyn Documents>,
    /// Who is told of events.
    pub bus: Arc<dyn Bus>,
    /// Both write to one log: once a message is on the disk, so is every document that was written
    /// before it.
    pub one_log: bool,
    /// Small blobs whose bytes that log holds until their files are durable.
    pub(crate) held: Option<Arc<Held>>,
    /// Which modules an event is for, as it was read last.
    pub(crate) registry: Arc<KnownRegistry>,
    /// What is done with them, counted and timed.
    pub metrics: Arc<Metrics>,
}

impl DataPlane {
    /// Inserts documents, and makes the blobs durable that they name and that were [put
    /// soon](Blobs::put_soon), these bytes under these keys: before the documents are, or with
    /// them. The documents are as [`Documents::insert_all_soon`] has them.
    ///
    /// # Errors
    /// When a store fails, or the guard does not hold.
    pub async fn insert_with_blobs(
        &self,
        blobs: Vec<(String, Bytes)>,
        documents: Vec<(Collection, Value)>,
        guard: Option<Guard>,
    ) -> Result<Vec<Inserted>, StoreError> {
        if let Some(held) = self.held.as_ref().filter(|held| held.takes(&blobs)) {
            return held.add(blobs, documents, None, guard).await;
        }
        self.blobs.settle(&blobs.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>()).await?;
        self.documents.insert_all_soon(documents, guard).await
    }

    /// Writes into an event which modules it is for, and gives what must hold for that when the
    /// event is written.
    ///
    /// # Errors
    /// When the registry cannot be read.
    pub async fn address(&self, event: &mut Event) -> Result<Guard, StoreError> {
        self.registry.address(&self.documents, event).await
    }

    /// The registry has changed since it was read: it is read again when it is needed.
    pub fn forget_registry(&self) {
        self.registry.forget();
    }

    /// The same, and an event after them which is published, all in one transaction and durable
    /// when this returns; the event is the last of what was inserted, and not published if it was
    /// there. None, and nothing done, where that cannot be.
    pub async fn insert_and_publish(
        &self,
        blobs: &[(String, Bytes)],
        documents: &[(Collection, Value)],
        event: &Event,
        guard: Option<&Guard>,
    ) -> Result<Option<Vec<Inserted>>, StoreError> {
        let Some(held) = self.held.as_ref().filter(|held| held.takes(blobs)) else {
            return Ok(None);
        };
        let mut event = event.clone();
        let registered = self.address(&mut event).await?;
        let guard = guard.cloned().into_iter().fold(registered, |all, guard| guard.and(all));
        match held.add(blobs.to_vec(), documents.to_vec(), Some(event), Some(guard)).await {
            // In parts, which begin anew with the modules that are registered now.
            Err(StoreError::Fenced(Collection::Plane)) => {
                self.forget_registry();
                Ok(None)
            }
            added => added.map(Some),
        }
    }
}
