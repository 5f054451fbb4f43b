//! Cancellations in progress: from the request until no job below the cancelled correlation or
//! event runs any more.

use std::sync::Arc;

use ion_model::clock::{self, Millis};
use ion_model::event::Event;
use ion_model::id::{CorrelationId, EventId};
use serde::{Deserialize, Serialize};

use super::Registry;
use crate::{Collection, Documents, StoreError};

/// The number of cancellations in progress at most. Each one makes the registry's document larger,
/// and that document is read again after every change.
const CANCELLING_MAX: usize = 1_000;

/// The number of ancestors of an event that are read at most. Lineages that jobs make are shorter
/// than this, but a person who chooses ids and parents by hand may make a cycle.
const ANCESTORS_MAX: usize = 100_000;

/// A cancellation in progress: of a whole correlation, or of one event and its descendants.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CancelOrder {
    /// The correlation.
    pub correlation: CorrelationId,
    /// If set, only this event and its descendants are cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<EventId>,
    /// The time of the request, by the clock of the process that made it.
    pub since: Millis,
}

impl CancelOrder {
    /// Cancels a whole correlation.
    pub fn for_correlation(correlation: CorrelationId) -> Self {
        Self { correlation, event: None, since: clock::now() }
    }

    /// Cancels an event and all its descendants.
    pub fn for_event(event: &Event) -> Self {
        let correlation = event.context.correlation_id.clone();
        Self { correlation, event: Some(event.id.clone()), since: clock::now() }
    }

    /// Returns the cancellation's id. Cancellations of the same correlation or event have the same
    /// id.
    pub fn id(&self) -> String {
        match &self.event {
            Some(event) => format!("event:{event}"),
            None => format!("correlation:{}", self.correlation),
        }
    }
}

impl Registry {
    /// Begins a cancellation: from now on an event that is committed below it is for no module.
    /// Returns false, and begins nothing, if too many cancellations are in progress.
    ///
    /// # Errors
    /// When the documents cannot be written.
    pub async fn begin_cancelling(
        documents: &Arc<dyn Documents>,
        what: &CancelOrder,
    ) -> Result<bool, StoreError> {
        Self::change(documents, |before| before.with_cancelling(what)).await?;
        Ok(Self::read(documents).await?.cancelling.contains_key(&what.id()))
    }

    /// Ends a cancellation, when no job of it runs any more. Events that are committed from now on
    /// are for modules again.
    ///
    /// # Errors
    /// When the documents cannot be written.
    pub async fn end_cancelling(
        documents: &Arc<dyn Documents>,
        what: &CancelOrder,
    ) -> Result<(), StoreError> {
        Self::change(documents, |before| before.without_cancelling(what)).await
    }

    pub(super) fn with_cancelling(&self, what: &CancelOrder) -> Option<Self> {
        if self.cancelling.len() >= CANCELLING_MAX || self.cancelling.contains_key(&what.id()) {
            return None;
        }
        let mut after = Self { version: self.version + 1, ..self.clone() };
        after.cancelling.insert(what.id(), what.clone());
        Some(after)
    }

    pub(super) fn without_cancelling(&self, what: &CancelOrder) -> Option<Self> {
        let mut after = Self { version: self.version + 1, ..self.clone() };
        after.cancelling.remove(&what.id()).map(|_| after)
    }

    /// Returns whether an event that is about to be committed is below anything that is being
    /// cancelled.
    pub(super) async fn cancels(
        &self,
        documents: &Arc<dyn Documents>,
        event: &Event,
    ) -> Result<bool, StoreError> {
        let correlation = &event.context.correlation_id;
        let of_it: Vec<&CancelOrder> =
            self.cancelling.values().filter(|what| what.correlation == *correlation).collect();
        if of_it.iter().any(|what| what.event.is_none()) {
            return Ok(true);
        }
        if of_it.is_empty() {
            return Ok(false);
        }
        let mut parent = event.context.parent_event_id.clone();
        for _ in 0..ANCESTORS_MAX {
            if parent.is_empty() {
                break;
            }
            if of_it
                .iter()
                .any(|what| what.event.as_ref().is_some_and(|event| event.as_str() == parent))
            {
                return Ok(true);
            }
            let Some(document) = documents.get(Collection::Events, &parent).await? else { break };
            parent = document["context"]["parentEventId"].as_str().unwrap_or_default().to_owned();
        }
        Ok(false)
    }
}
