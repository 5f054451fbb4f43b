//! Brings the documents of a plane that an older Ion made up to date, once, when they are opened.
//!
//! # How it works
//! One document of the plane has the number of the layout that its documents have. A process that
//! opens a plane of an older layout changes the documents one after the other, and then writes the
//! new number. It changes a document only if no other process has changed it meanwhile.
//!
//! # After a crash
//! The next process to open the plane begins again, and leaves out the documents that are changed
//! already.

use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use ion_model::event::DocumentType;
use ion_model::record::InsightRecord;
use ion_model::term::index_texts;
use ion_system::failpoint;
use serde_json::{Value, json};

use super::{Collection, Documents, Durability, Pages, Query, StoreError, decode, encode};

/// The id of the document that says which layout the plane's documents have.
const LAYOUT: &str = "layout";

/// The layout of the documents: 1 since insights have the texts of an index.
const LAYOUT_VERSION: i64 = 1;

/// How many documents are changed at the same time.
const CHANGES_AT_ONCE: usize = 32;

/// How often progress is logged.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// Brings a plane's documents up to date. A plane that is up to date costs one read.
///
/// # Errors
/// When the documents cannot be read or written.
pub(super) async fn bring_up_to_date(
    documents: &(dyn Documents + 'static),
) -> Result<(), StoreError> {
    let layout = documents.get(Collection::Plane, LAYOUT).await?;
    let version = layout.and_then(|layout| layout["version"].as_i64()).unwrap_or_default();
    if version >= LAYOUT_VERSION {
        return Ok(());
    }
    let insights = vec![("context.documentType", json!(DocumentType::Insight))];
    let mut pages = Pages::new(Query::equal(Collection::Events, insights), "created");
    let (mut count, mut reported) = (0, Instant::now());
    while let Some(page) = pages.next(documents).await? {
        let changes = page.into_iter().filter(|document| document["terms"].is_null());
        let changed: usize = stream::iter(changes)
            .map(|document| add_index_texts(documents, document))
            .buffer_unordered(CHANGES_AT_ONCE)
            .try_fold(0, |sum, changed| async move { Ok(sum + usize::from(changed)) })
            .await?;
        failpoint::hit("layout.insights");
        count += changed;
        if reported.elapsed() >= REPORT_INTERVAL {
            reported = Instant::now();
            tracing::info!(insights = count, "bringing the plane's insights up to date");
        }
    }
    documents.sync().await?;
    if count > 0 {
        tracing::info!(insights = count, "the plane's insights are up to date");
    }
    let layout = json!({"id": LAYOUT, "version": LAYOUT_VERSION});
    documents.put(Collection::Plane, layout, None).await
}

/// Adds the texts of the index to an insight, unless somebody has written it meanwhile. An insight
/// that cannot be read stays as it is: no search could show it.
async fn add_index_texts(documents: &dyn Documents, document: Value) -> Result<bool, StoreError> {
    // A field that a document lacks is expected to be missing.
    let expect = ["terms", "created", "attempt", "staged"]
        .map(|field| (field, document[field].clone()))
        .to_vec();
    let mut insight: InsightRecord = match decode(Collection::Events, document) {
        Ok(insight) => insight,
        Err(error) => {
            let error = ion_model::errors::error_chain(&error);
            tracing::warn!(error, "an insight cannot be read, so it will not be found");
            return Ok(false);
        }
    };
    insight.terms = index_texts(&insight.context.name, &insight.data);
    let document = encode(&insight);
    documents.replace(Collection::Events, document, expect, None, Durability::WithNextSync).await
}

#[cfg(test)]
mod tests {
    use ion_model::term::IndexRange;

    use super::*;
    use crate::DataPlane;

    #[tokio::test]
    async fn insights_of_an_older_plane_are_indexed_once() {
        let plane = DataPlane::in_memory().unwrap();
        let documents = &*plane.documents;
        let insight = |n: usize| {
            let document = json!({
                "id": format!("insight:{n}"), "created": n, "jobId": n.to_string(), "data": [{"key": "n", "value": n.to_string()}],
                "context": {
                    "name": "m", "eventId": "e", "correlationId": "c", "parentEventId": "",
                    "documentType": "insight",
                },
            });
            (Collection::Events, document)
        };
        let malformed = json!({"id": "x", "context": {"documentType": "insight"}, "created": 0});
        let all = (0..300).map(insight).chain([(Collection::Events, malformed)]).collect();
        documents.insert_all(all, None, Durability::Now).await.unwrap();
        let found = async || {
            let all = Query::all(Collection::Events);
            documents.count(all.with_term(IndexRange::prefix("m".into()))).await.unwrap()
        };
        assert_eq!(found().await, 0);
        bring_up_to_date(documents).await.unwrap();
        assert_eq!(found().await, 300);
        let kept = documents.get(Collection::Events, "insight:7").await.unwrap().unwrap();
        assert_eq!(kept["data"], json!([{"key": "n", "value": "7"}]));
        // What is indexed already costs a second call one read.
        documents.delete(Collection::Events, "insight:7", vec![]).await.unwrap();
        documents.insert_all(vec![insight(7)], None, Durability::Now).await.unwrap();
        bring_up_to_date(documents).await.unwrap();
        assert_eq!(found().await, 299);
    }
}
