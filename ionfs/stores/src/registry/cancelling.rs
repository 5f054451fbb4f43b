//! What is being cancelled: from the moment that somebody asks for it until nothing of it runs any
//! more.

use std::sync::Arc;

use ion_model::clock::{self, Millis};
use ion_model::event::Event;
use ion_model::id::{CorrelationId, EventId};
use serde::{Deserialize, Serialize};

use super::Registry;
use crate::{Collection, Documents, StoreError};

/// What may be cancelled at a time: the registry is read with every change of it.
const CANCELLING_MAX: usize = 1_000;

/// Events that are looked at on the way from one to the first of its correlation. Those of jobs
/// stand less deep; whoever names ids and parents by hand may make a circle of them.
const ANCESTORS_MAX: usize = 100_000;

/// A correlation, or an event and all that came of it, of which nothing is to go on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cancelling {
    /// The correlation.
    pub correlation: CorrelationId,
    /// Of it only this event and what came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<EventId>,
    /// Since when, by the clock of whoever asked for it.
    pub since: Millis,
}

impl Cancelling {
    /// All of a correlation.
    pub fn correlation(correlation: CorrelationId) -> Self {
        Self { correlation, event: None, since: clock::now() }
    }

    /// An event and all that came of it.
    pub fn event(event: &Event) -> Self {
        let correlation = event.context.correlation_id.clone();
        Self { correlation, event: Some(event.id.clone()), since: clock::now() }
    }

    /// What it is known by: the same for the same.
    pub fn id(&self) -> String {
        match &self.event {
            Some(event) => format!("event:{event}"),
            None => format!("correlation:{}", self.correlation),
        }
    }
}

impl Registry {
    /// From now on an event that is committed below it is for no module. False: too much is being
    /// cancelled already.
    ///
    /// # Errors
    /// When the documents cannot be written.
    pub async fn begin_cancelling(
        documents: &Arc<dyn Documents>,
        what: &Cancelling,
    ) -> Result<bool, StoreError> {
        Self::change(documents, |before| before.with_cancelling(what)).await?;
        Ok(Self::read(documents).await?.cancelling.contains_key(&what.id()))
    }

    /// Nothing of it runs any more: what is committed from now on is for the modules again.
    ///
    /// # Errors
    /// When the documents cannot be written.
    pub async fn end_cancelling(
        documents: &Arc<dyn Documents>,
        what: &Cancelling,
    ) -> Result<(), StoreError> {
        Self::change(documents, |before| before.without_cancelling(what)).await
    }

    pub(super) fn with_cancelling(&self, what: &Cancelling) -> Option<Self> {
        if self.cancelling.len() >= CANCELLING_MAX || self.cancelling.contains_key(&what.id()) {
            return None;
        }
        let mut after = Self { version: self.version + 1, ..self.clone() };
        after.cancelling.insert(what.id(), what.clone());
        Some(after)
    }

    pub(super) fn without_cancelling(&self, what: &Cancelling) -> Option<Self> {
        let mut after = Self { version: self.version + 1, ..self.clone() };
        after.cancelling.remove(&what.id()).map(|_| after)
    }

    /// Whether an event that is about to be committed comes of what is being cancelled.
    pub(super) async fn cancels(
        &self,
        documents: &Arc<dyn Documents>,
        event: &Event,
    ) -> Result<bool, StoreError> {
        let correlation = &event.context.correlation_id;
        let of_it: Vec<&Cancelling> =
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
