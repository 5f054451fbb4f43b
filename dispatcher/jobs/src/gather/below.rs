//! Answers whether events are below the event of a gathering job.

use std::collections::{HashMap, HashSet};

use ion_model::event::{Event, is_event, is_staged};
use ion_model::id::EventId;
use ion_model::record::JobRecord;
use ion_stores::{Collection, StoreError};
use serde_json::{Value, json};

use crate::ledger::Ledger;

/// How many answers are remembered. Events come in the order of their commits, so a parent was
/// nearly always met a short while before its children. More answers save reads of parents where
/// tens of thousands of events lie between them, and take 100 bytes each.
const ANSWERS_MAX: usize = 50_000;

/// Answers whether events are below the event of a gathering job.
pub(super) struct LineageBelow<'a> {
    ledger: &'a Ledger,
    waiting: &'a JobRecord,
    /// Answers so far, at most [`ANSWERS_MAX`].
    known: HashMap<EventId, bool>,
}

impl<'a> LineageBelow<'a> {
    pub(super) fn new(ledger: &'a Ledger, waiting: &'a JobRecord) -> Self {
        Self { ledger, waiting, known: HashMap::new() }
    }

    /// Returns whether an event that the caller has read is the gathering job's event or below it.
    pub(super) async fn is_event_below(&mut self, event: &Event) -> Result<bool, StoreError> {
        let is_below = match event {
            _ if event.id == self.waiting.event_id => true,
            _ if event.job_id.as_ref() == Some(&self.waiting.id) => false,
            _ => self.is_below(&EventId::new(&event.context.parent_event_id)).await?,
        };
        self.remember(event.id.clone(), is_below);
        Ok(is_below)
    }

    /// Returns whether an event is the gathering job's event or below it. What an earlier attempt
    /// of the gathering job itself has published does not count.
    pub(super) async fn is_below(&mut self, event: &EventId) -> Result<bool, StoreError> {
        // Users can make a circle of parents by their own ids.
        let mut way = HashSet::new();
        let mut id = event.clone();
        let mut is_below = false;
        loop {
            if let Some(known) = self.known.get(&id) {
                is_below = *known;
                break;
            }
            if id == self.waiting.event_id {
                is_below = true;
            }
            let is_new = way.insert(id.clone());
            if is_below || !is_new {
                break;
            }
            let Some(parent) = self.parent_of(&id).await? else { break };
            id = parent;
        }
        for id in way {
            self.remember(id, is_below);
        }
        Ok(is_below)
    }

    /// Returns the parent of an event; none if the event is not one of the lineage.
    async fn parent_of(&self, id: &EventId) -> Result<Option<EventId>, StoreError> {
        // A parent's id is whatever a user has chosen: perhaps that of another document.
        if id.as_str().is_empty() {
            return Ok(None);
        }
        let found = self.ledger.plane().documents.get(Collection::Events, id.as_str()).await?;
        let own = json!(self.waiting.id);
        let correlation = json!(self.waiting.correlation_id);
        let is_of_lineage = |document: &Value| {
            is_event(document)
                && !is_staged(document)
                && document["context"]["correlationId"] == correlation
                && document["jobId"] != own
        };
        Ok(found.filter(is_of_lineage).map(|document| {
            EventId::new(document["context"]["parentEventId"].as_str().unwrap_or_default())
        }))
    }

    fn remember(&mut self, id: EventId, is_below: bool) {
        if self.known.len() >= ANSWERS_MAX {
            self.known.clear();
        }
        self.known.insert(id, is_below);
    }
}
