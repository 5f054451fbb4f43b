//! Counts what a correlation consists of, by its state, from indexes. No count holds more than a page
//! of documents.

use std::collections::BTreeMap;

use ion_model::event::{DocumentType, Event, PublicationState, is_event};
use ion_model::id::JobId;
use ion_model::record::JobState;
use ion_stores::{Collection, Documents, Pages, Query, StoreError, decode};
use serde_json::{Value, json};

use crate::ledger::{Ledger, RegisteredModules};

/// How many events are looked at to count the jobs that no dispatcher has claimed yet.
const UNCLAIMED_LOOKED_AT: usize = 10_000;

/// Returns the query for the events of a correlation.
pub(crate) fn events_of(correlation: &str) -> Query {
    let equals = vec![
        ("context.correlationId", json!(correlation)),
        ("context.documentType", json!(DocumentType::EventMeta)),
    ];
    Query::equal(Collection::Events, equals)
}

/// Counts the visible events of a correlation by their types.
pub(crate) async fn count_types(
    documents: &dyn Documents,
    correlation: &str,
) -> Result<BTreeMap<String, u64>, StoreError> {
    let mut types = BTreeMap::new();
    for row in documents.tally(events_of(correlation), &["type"]).await? {
        types.insert(row.values[0].as_str().unwrap_or_default().to_owned(), row.count);
    }
    for (name, staged) in count_events_in(documents, correlation, PublicationState::Staged).await? {
        if let Some(count) = types.get_mut(&name) {
            *count = u64::saturating_sub(*count, staged);
        }
    }
    Ok(types)
}

/// Counts the visible events of a correlation, from an index.
///
/// # Errors
/// When the documents cannot be read.
pub async fn count_events(documents: &dyn Documents, correlation: &str) -> Result<u64, StoreError> {
    Ok(count_types(documents, correlation).await?.values().sum())
}

/// How many jobs of each module are in each state.
pub type JobCounts = BTreeMap<String, BTreeMap<&'static str, u64>>;

/// Counts the jobs of a correlation, from one index.
pub(crate) async fn count_jobs(
    documents: &dyn Documents,
    correlation: &str,
) -> Result<JobCounts, StoreError> {
    let query = Query::equal(Collection::Jobs, vec![("correlationId", json!(correlation))]);
    let mut counts = JobCounts::new();
    for row in documents.tally(query, &["state", "module"]).await? {
        let [state, module] = &row.values[..] else { continue };
        let state = JobState::ALL.into_iter().find(|known| json!(known) == *state);
        let (Some(state), Some(module)) = (state, module.as_str()) else { continue };
        counts.entry(module.to_owned()).or_default().insert(state.as_str(), row.count);
    }
    Ok(counts)
}

/// Counts the jobs of a correlation that no dispatcher has claimed yet, by module. Beyond
/// [`UNCLAIMED_LOOKED_AT`] events it counts no more: each of these is one event behind.
pub(crate) async fn unclaimed_jobs(
    ledger: &Ledger,
    correlation: &str,
    registered: &RegisteredModules,
) -> Result<BTreeMap<String, u64>, StoreError> {
    let documents = &*ledger.plane().documents;
    let mut equals = Ledger::unclaimed_conditions();
    equals.push(("context.correlationId", json!(correlation)));
    let mut pages = Pages::new(Query::equal(Collection::Events, equals), "created");
    let (mut unclaimed, mut looked_at) = (BTreeMap::new(), 0);
    while let Some(page) = pages.next(documents).await? {
        looked_at += page.len();
        let mut expected: Vec<(String, String)> = Vec::new();
        for document in page {
            let event: Event = decode(Collection::Events, document)?;
            expected.extend(registered.modules_for(&event).map(|module| {
                (JobId::derive(&event.id, &module.name).to_string(), module.name.clone())
            }));
        }
        let ids = expected.iter().map(|(id, _)| id.clone()).collect();
        let present = documents.find_existing_ids(Collection::Jobs, ids).await?;
        for (_, module) in expected.into_iter().filter(|(id, _)| !present.contains(id)) {
            *unclaimed.entry(module).or_default() += 1;
        }
        if looked_at >= UNCLAIMED_LOOKED_AT {
            break;
        }
    }
    Ok(unclaimed)
}

/// Counts the events of this correlation that are in this state, by type.
pub(crate) async fn count_events_in(
    documents: &dyn Documents,
    correlation: &str,
    state: PublicationState,
) -> Result<BTreeMap<String, u64>, StoreError> {
    // Events that are not published are few, so those of all correlations are read.
    let query = Query::equal(Collection::Events, vec![("publication", json!(state))]);
    let query = query.only(&["context.correlationId", "context.documentType", "created", "type"]);
    let mut pages = Pages::new(query, "created");
    let mut counts = BTreeMap::new();
    while let Some(page) = pages.next(documents).await? {
        for event in page {
            if event["context"]["correlationId"] == correlation && is_event(&event) {
                let event_type = event["type"].as_str().unwrap_or_default();
                *counts.entry(event_type.to_owned()).or_default() += 1;
            }
        }
    }
    Ok(counts)
}

/// Returns whether a job of this correlation has succeeded and its staged events are not published
/// yet.
pub(crate) async fn has_outbox(
    documents: &dyn Documents,
    correlation: &str,
) -> Result<bool, StoreError> {
    // Such jobs are few, so those of all correlations are read.
    let query = Query::equal(Collection::Jobs, vec![("outbox", json!(true))]);
    let mut pages = Pages::by_id(query.only(&["correlationId", "state"]));
    while let Some(page) = pages.next(documents).await? {
        let is_open = |job: &Value| {
            job["correlationId"] == correlation && job["state"] == json!(JobState::Succeeded)
        };
        if page.iter().any(is_open) {
            return Ok(true);
        }
    }
    Ok(false)
}
