//! `ion gc --older-than`: drops whole correlations that have ended.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use ion_model::clock::{self, Millis, millis};
use ion_model::event::{DocumentType, Event};
use ion_model::id::CorrelationId;
use ion_model::record::JobState;
use ion_model::record::logs_prefix;
use ion_plane::collect::{GcMode, GcReport, remove_by_prefix};
use ion_stores::{Collection, Durability, Query, StoreError};
use ion_system::failpoint;
use serde_json::{Value, json};

use crate::ledger::{Ledger, RegisteredModules, dead_letter_key};
use crate::progress::correlation_status;

/// What was dropped, or would be dropped in a dry run.
#[derive(Debug, Default)]
pub struct DroppedCorrelations {
    /// Correlations dropped whole.
    pub correlations: usize,
    /// Their documents: jobs, events, insights and logs.
    pub documents: usize,
    /// Their blobs.
    pub blobs: GcReport,
}

/// Drops correlations that have ended and in which nothing has happened for `age`: their jobs with
/// their dead letters, then their other documents, then their blobs. A correlation with an event
/// that waits in a queue has not ended.
///
/// # After a crash
/// What remains still counts as a correlation that has ended, or is blobs that no document names.
/// The next run continues.
///
/// # Errors
/// When a store fails. What was dropped before stays dropped.
pub async fn drop_old_correlations(
    ledger: &Ledger,
    age: Duration,
    how: GcMode,
) -> Result<DroppedCorrelations, StoreError> {
    let before = clock::now() - millis(age);
    let registered = ledger.registered_modules().await?;
    let of_events = vec![("context.documentType", json!(DocumentType::EventMeta))];
    let events = Query::equal(Collection::Events, of_events).order_by("created");
    let mut latest: BTreeMap<CorrelationId, Millis> = BTreeMap::new();
    for event in ledger.plane().documents.find_as::<Event>(events).await? {
        let latest = latest.entry(event.context.correlation_id).or_insert(event.created);
        *latest = event.created.max(*latest);
    }
    let mut dropped = DroppedCorrelations::default();
    for (correlation, _) in latest.into_iter().filter(|(_, latest)| *latest < before) {
        drop_correlation(ledger, &registered, &correlation, before, how, &mut dropped).await?;
    }
    Ok(dropped)
}

/// Drops one correlation, if it ended before `before`.
async fn drop_correlation(
    ledger: &Ledger,
    registered: &RegisteredModules,
    correlation: &CorrelationId,
    before: Millis,
    how: GcMode,
    dropped: &mut DroppedCorrelations,
) -> Result<(), StoreError> {
    let plane = ledger.plane();
    let status = correlation_status(ledger, correlation.as_str(), registered).await?;
    let old = status.jobs.iter().all(|job| job.ended.unwrap_or(job.created) < before);
    if !status.ended || !old {
        return Ok(());
    }
    let rest =
        Query::equal(Collection::Events, vec![("context.correlationId", json!(correlation))]);
    let rest = sort_children_first(plane.documents.find(rest).await?);
    if how == GcMode::Remove {
        let dead = status.jobs.iter().filter(|job| job.state == JobState::Dead);
        // The letters are removed first: a letter without its job would be taken for a message that
        // could not be read.
        plane.bus.remove_dead_letters(&dead.map(dead_letter_key).collect::<Vec<_>>()).await?;
        clear_expected_modules(ledger, &rest).await?;
        for job in &status.jobs {
            // A person may have retried the job meanwhile: then its correlation has not ended.
            let same = vec![("version", json!(job.version))];
            if !plane.documents.delete(Collection::Jobs, job.id.as_str(), same).await? {
                tracing::info!(
                    job = %job.id,
                    "a job changed while its correlation was being dropped; the rest stays"
                );
                return Ok(());
            }
            failpoint::hit("gc.job-dropped");
        }
        for document in &rest {
            let id = document["id"].as_str().unwrap_or_default();
            plane.documents.delete(Collection::Events, id, vec![]).await?;
            failpoint::hit("gc.document-dropped");
        }
    }
    dropped.correlations += 1;
    dropped.documents += status.jobs.len() + rest.len();
    // The keys of its blobs begin with the correlation's id, and only events of the correlation
    // refer to them.
    remove_by_prefix(plane, correlation.as_str(), how, &mut dropped.blobs).await?;
    remove_by_prefix(plane, &logs_prefix(correlation), how, &mut dropped.blobs).await
}

/// Notes in the events of an ended correlation that they are for no module any more, durably.
/// Without their jobs they would look like events that start modules, and if the deletion is
/// interrupted, a dispatcher would send them again.
async fn clear_expected_modules(ledger: &Ledger, documents: &[Value]) -> Result<(), StoreError> {
    let starts = |document: &&Value| {
        let by = document["expectedBy"].as_array();
        document["unclaimed"] == json!(true) || by.is_some_and(|names| !names.is_empty())
    };
    let idle = documents.iter().filter(starts).map(|document| {
        let mut document = document.clone();
        document["expectedBy"] = json!([]);
        document["unclaimed"] = json!(false);
        document
    });
    let store = &ledger.plane().documents;
    store.replace_all(Collection::Events, idle.collect(), vec![], Durability::WithNextSync).await?;
    store.sync().await
}

/// Sorts a correlation's documents: children before their parents. If the deletion is interrupted,
/// what remains of a lineage still has its beginning.
fn sort_children_first(mut documents: Vec<Value>) -> Vec<Value> {
    let is_event = |document: &Value| document["id"] == document["context"]["eventId"];
    let of = |document: &Value, key: &str| {
        document["context"][key].as_str().unwrap_or_default().to_owned()
    };
    let events = documents.iter().filter(|document| is_event(document));
    let parents: HashMap<String, String> =
        events.map(|event| (of(event, "eventId"), of(event, "parentEventId"))).collect();
    let depth = |document: &Value| {
        // A document about an event, such as a log, is sorted before the event.
        let mut depth = usize::from(!is_event(document));
        let mut at = of(document, "eventId");
        // No event is its own ancestor, unless a document was written by hand: hence the bound.
        while depth <= parents.len()
            && let Some(parent) = parents.get(&at)
        {
            depth += 1;
            at.clone_from(parent);
        }
        depth
    };
    documents.sort_by_cached_key(|document| Reverse(depth(document)));
    documents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_go_before_their_parents_whenever_they_were_made() {
        let document = |id: &str, of: &str, parent: &str| json!({"id": id, "context": {"eventId": of, "parentEventId": parent}});
        let all = vec![
            document("b", "b", "a"),
            document("log", "c", "b"),
            document("a", "a", ""),
            document("c", "c", "b"),
            document("own", "own", "own"),
        ];
        let ordered = sort_children_first(all);
        let at = |id: &str| ordered.iter().position(|document| document["id"] == id).unwrap();
        assert_eq!(ordered.len(), 5);
        assert!(at("log") < at("c") && at("c") < at("b") && at("b") < at("a"), "{ordered:?}");
    }
}
