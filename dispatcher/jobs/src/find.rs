//! Finds events, jobs and correlations by their ids or the beginnings of ids.
//!
//! Each search reads a range of an index, so its cost does not grow with the plane.

use ion_model::event::{DocumentType, Event, is_event};
use ion_model::id::{EventId, JobId};
use ion_model::record::JobRecord;
use ion_stores::{Collection, FieldRange, Pages, Query, StoreError, decode};
use serde_json::{Value, json};

use crate::ledger::{Ledger, LedgerError};

/// The reasons why nothing, or no single thing, is found.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The document store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nothing has this id, or an id that begins with it.
    #[error("there is no {kind} {id:?}{hint}")]
    Nothing {
        /// What was looked for: event, job or correlation.
        kind: &'static str,
        /// The id, as it was given.
        id: String,
        /// What shows the ids that there are.
        hint: &'static str,
    },
    /// Several ids begin with it.
    #[error("several {kind}s begin with {id:?}, such as {one} and {other}; give more of the id")]
    Several {
        /// What was looked for: event, job or correlation.
        kind: &'static str,
        /// The id, as it was given.
        id: String,
        /// One of the ids.
        one: String,
        /// Another one.
        other: String,
    },
    /// The plane has no event yet.
    #[error("there are no events yet; create one with `ion event create`")]
    NoEvents,
}

/// Returns the event with this id, or the only event whose id begins with it.
///
/// # Errors
/// When there is no such event, or more than one.
pub async fn find_event(ledger: &Ledger, id: &str) -> Result<Event, FindError> {
    if let Some(event) = ledger.event(&EventId::new(id)).await? {
        return Ok(event);
    }
    let only = find_only(ledger, Collection::Events, "event", id, is_event).await?;
    ledger.event(&EventId::new(only)).await?.ok_or_else(|| nothing_found("event", id))
}

/// Returns the job with this id, or the only job whose id begins with it.
///
/// # Errors
/// When there is no such job, or more than one.
pub async fn find_job(ledger: &Ledger, id: &str) -> Result<JobRecord, FindError> {
    match ledger.get(&JobId::new(id)).await {
        Ok(job) => return Ok(job),
        Err(LedgerError::Store(error)) => return Err(error.into()),
        Err(_) => {}
    }
    let only = find_only(ledger, Collection::Jobs, "job", id, |_| true).await?;
    let job = ledger.plane().documents.get(Collection::Jobs, &only).await?;
    Ok(decode(Collection::Jobs, job.ok_or_else(|| nothing_found("job", id))?)?)
}

fn nothing_found(kind: &'static str, id: &str) -> FindError {
    let hint = if kind == "job" { "; `ion job list` shows all jobs" } else { "" };
    FindError::Nothing { kind, id: id.to_owned(), hint }
}

/// Returns the only id of this collection that begins with `beginning` and for whose document
/// `counts` returns true. `counts` receives only the id and the document type.
async fn find_only(
    ledger: &Ledger,
    collection: Collection,
    kind: &'static str,
    beginning: &str,
    counts: impl Fn(&Value) -> bool,
) -> Result<String, FindError> {
    let query = Query::all(collection)
        .within(FieldRange::prefix("id", beginning))
        .only(&["context.documentType"]);
    let mut pages = Pages::by_id(query);
    let mut found: Option<String> = None;
    while let Some(page) = pages.next(&*ledger.plane().documents).await? {
        for document in page.iter().filter(|document| counts(document)) {
            let id = document["id"].as_str().unwrap_or_default().to_owned();
            if let Some(one) = found.replace(id.clone()) {
                let id = beginning.to_owned();
                return Err(FindError::Several { kind, id, one, other: found.unwrap_or_default() });
            }
        }
    }
    found.ok_or_else(|| nothing_found(kind, beginning))
}

/// Returns the correlation with this id, or the only correlation whose id begins with it, or the
/// correlation of an event that is found by the id.
///
/// # Errors
/// When there is no such correlation and no such event, or more than one.
pub async fn find_correlation(ledger: &Ledger, id: &str) -> Result<String, FindError> {
    match ledger.plane().documents.correlations_beginning_with(id).await? {
        Some((one, other)) if one == other || one == id => Ok(one),
        Some((one, other)) => {
            Err(FindError::Several { kind: "correlation", id: id.to_owned(), one, other })
        }
        None => match find_event(ledger, id).await {
            Ok(event) => Ok(event.context.correlation_id.to_string()),
            Err(FindError::Nothing { .. }) => Err(nothing_found("correlation and no event", id)),
            Err(error) => Err(error),
        },
    }
}

/// Returns the correlation that began last.
///
/// # Errors
/// When the plane has no events, or the documents cannot be read.
pub async fn latest_correlation(ledger: &Ledger) -> Result<String, FindError> {
    // Events of older Ion have no depth, like first events. So an event without a depth may have
    // been committed by a job.
    let first =
        vec![("context.documentType", json!(DocumentType::EventMeta)), ("depth", Value::Null)];
    let query = Query::equal(Collection::Events, first).descending();
    let query = query.only(&["context.correlationId", "jobId", "created"]);
    let mut pages = Pages::new(query, "created");
    while let Some(page) = pages.next(&*ledger.plane().documents).await? {
        let first = page.iter().find(|event| event["jobId"].is_null());
        if let Some(id) = first.and_then(|event| event["context"]["correlationId"].as_str()) {
            return Ok(id.to_owned());
        }
    }
    Err(FindError::NoEvents)
}
