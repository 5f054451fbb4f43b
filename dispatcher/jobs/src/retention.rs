//! `ion gc --older-than`: drops whole correlations that have ended.
//!
//! # How it works
//! The correlations come in the order of their ids, each found by one row of an index. The documents
//! of one that is dropped are read and removed page by page.
//!
//! # How it goes on after an interruption
//! The note of `ion gc` names the last correlation that was looked at, and the next run begins after
//! it. That is safe, because each correlation is judged by what the stores say when its turn comes:
//! what was noted only decides that the earlier ones wait for a later run.

use std::time::Duration;

use ion_model::clock::{self, Millis, millis};
use ion_model::event::{DocumentType, is_event};
use ion_model::id::CorrelationId;
use ion_model::record::{JobRecord, JobState, logs_prefix};
use ion_model::source::{SourceRecord, source_of_run};
use ion_plane::collect::{GcMode, GcReport, remove_by_prefix};
use ion_plane::resume::PositionNote;
use ion_stores::{Collection, Documents, Durability, FieldRange, Pages, Query, StoreError, decode};
use ion_system::failpoint;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::ledger::{Ledger, RegisteredModules, dead_letter_key};
use crate::progress::CorrelationWatch;

/// The field that names the correlation of an event.
const CORRELATION: &str = "context.correlationId";

/// What was dropped, or would be dropped in a dry run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DroppedCorrelations {
    /// Correlations dropped whole.
    pub correlations: usize,
    /// Their documents: jobs, events, insights and logs.
    pub documents: usize,
    /// Their blobs.
    pub blobs: GcReport,
}

/// How far `ion gc` is with old correlations.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RetentionPosition {
    /// Correlations whose ids come before this one were looked at.
    from: String,
    /// What was dropped so far.
    dropped: DroppedCorrelations,
}

impl RetentionPosition {
    /// Returns the last correlation that was looked at.
    pub fn last(&self) -> &str {
        self.from.trim_end_matches('\0')
    }
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
    note: &mut PositionNote,
    from: Option<RetentionPosition>,
) -> Result<DroppedCorrelations, StoreError> {
    let before = clock::now() - millis(age);
    let registered = ledger.registered_modules().await?;
    let documents = &*ledger.plane().documents;
    let mut at = from.unwrap_or_default();
    while let Some(correlation) = next_correlation(documents, &at.from).await? {
        if is_quiet_since(documents, &correlation, before).await? {
            let drop = CorrelationDrop { ledger, registered: &registered, before, how };
            drop.run(&correlation, &mut at.dropped).await?;
        }
        at.from = id_after(&correlation);
        note.write(&at).await?;
        failpoint::hit("gc.correlation-passed");
    }
    Ok(at.dropped)
}

/// Returns the text that comes right after an id in the order of ids.
fn id_after(id: &str) -> String {
    format!("{id}\0")
}

/// Returns the first correlation whose id is at least `from`, by the order of ids.
async fn next_correlation(
    documents: &dyn Documents,
    from: &str,
) -> Result<Option<String>, StoreError> {
    let query = Query::all(Collection::Events)
        .within(FieldRange::at_least(CORRELATION, from.into()))
        .order_by(CORRELATION)
        .only(&[CORRELATION])
        .limit(1);
    let found = documents.find(query).await?;
    Ok(found.first().and_then(|row| row["context"]["correlationId"].as_str()).map(str::to_owned))
}

fn documents_of(correlation: &str) -> Query {
    Query::equal(Collection::Events, vec![(CORRELATION, json!(correlation))])
}

/// Returns whether the latest event of a correlation was committed before a time.
async fn is_quiet_since(
    documents: &dyn Documents,
    correlation: &str,
    before: Millis,
) -> Result<bool, StoreError> {
    let equals = vec![
        (CORRELATION, json!(correlation)),
        ("context.documentType", json!(DocumentType::EventMeta)),
    ];
    let query = Query::equal(Collection::Events, equals).order_by("created").descending();
    let latest = documents.find(query.only(&["created"]).limit(1)).await?;
    Ok(latest.first().and_then(|row| row["created"].as_i64()).is_some_and(|at| at < before))
}

/// How the correlations of one run are dropped.
struct CorrelationDrop<'a> {
    ledger: &'a Ledger,
    registered: &'a RegisteredModules,
    before: Millis,
    how: GcMode,
}

impl CorrelationDrop<'_> {
    /// Drops one correlation, if it has ended before the time.
    async fn run(
        &self,
        correlation: &str,
        dropped: &mut DroppedCorrelations,
    ) -> Result<(), StoreError> {
        let plane = self.ledger.plane();
        let status = CorrelationWatch::new(correlation).read(self.ledger, self.registered).await?;
        if !status.ended
            || !self.are_jobs_old(correlation).await?
            || self.is_latest_run(correlation).await?
        {
            return Ok(());
        }
        let documents = match self.how {
            GcMode::DryRun => {
                let events = plane.documents.count(documents_of(correlation)).await?;
                Some(events + usize::try_from(status.job_count()).unwrap_or(usize::MAX))
            }
            GcMode::Remove => self.remove_documents(correlation).await?,
        };
        let Some(documents) = documents else { return Ok(()) };
        dropped.correlations += 1;
        dropped.documents += documents;
        // The keys of its blobs begin with the correlation's id, and only events of the correlation
        // refer to them.
        remove_by_prefix(plane, correlation, self.how, &mut dropped.blobs).await?;
        let logs = logs_prefix(&CorrelationId::new(correlation));
        remove_by_prefix(plane, &logs, self.how, &mut dropped.blobs).await
    }

    /// Returns whether a correlation is the latest run of its source. Its state may be in the record
    /// of its job only.
    async fn is_latest_run(&self, correlation: &str) -> Result<bool, StoreError> {
        let Some(source) = source_of_run(correlation) else { return Ok(false) };
        let documents = &self.ledger.plane().documents;
        let found = documents.get_as::<SourceRecord>(Collection::Sources, source).await?;
        let latest = found.and_then(|source| source.run);
        Ok(latest.is_some_and(|run| run.correlation.as_str() == correlation))
    }

    /// Returns whether a job has ended before the time.
    fn is_old(&self, job: &JobRecord) -> bool {
        let is_open = !job.state.is_final() && job.state != JobState::Waiting;
        !is_open && job.ended.unwrap_or(job.created) < self.before
    }

    async fn are_jobs_old(&self, correlation: &str) -> Result<bool, StoreError> {
        let mut pages = jobs_of(correlation);
        while let Some(page) = pages.next(&*self.ledger.plane().documents).await? {
            for document in page {
                if !self.is_old(&decode(Collection::Jobs, document)?) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Removes the jobs of a correlation, then its events and what they have. Returns the number of
    /// documents; none if the correlation is at work again, so that the rest stays.
    async fn remove_documents(&self, correlation: &str) -> Result<Option<usize>, StoreError> {
        let documents = &*self.ledger.plane().documents;
        // The letters are removed first: a letter without its job would be taken for a message that
        // could not be read.
        let dead = vec![("correlationId", json!(correlation)), ("state", json!(JobState::Dead))];
        let mut pages = Pages::new(Query::equal(Collection::Jobs, dead), "created");
        while let Some(page) = pages.next(documents).await? {
            let jobs: Vec<JobRecord> = page
                .into_iter()
                .map(|document| decode(Collection::Jobs, document))
                .collect::<Result<_, _>>()?;
            let letters: Vec<_> = jobs.iter().map(dead_letter_key).collect();
            self.ledger.plane().bus.remove_dead_letters(&letters).await?;
        }
        clear_expected_modules(documents, correlation).await?;
        let mut count = 0;
        let mut pages = jobs_of(correlation);
        while let Some(page) = pages.next(documents).await? {
            for document in page {
                let job: JobRecord = decode(Collection::Jobs, document)?;
                // A person may have retried the job meanwhile: then its correlation has not ended.
                let same = vec![("version", json!(job.version))];
                if !self.is_old(&job)
                    || !documents.delete(Collection::Jobs, job.id.as_str(), same).await?
                {
                    tracing::info!(
                        job = %job.id,
                        "a job changed while its correlation was being dropped; the rest stays"
                    );
                    return Ok(None);
                }
                count += 1;
                failpoint::hit("gc.job-dropped");
            }
        }
        Ok(Some(count + remove_events(documents, correlation).await?))
    }
}

fn jobs_of(correlation: &str) -> Pages {
    let equals = vec![("correlationId", json!(correlation))];
    Pages::new(Query::equal(Collection::Jobs, equals), "created")
}

/// Notes in the events of an ended correlation that they are for no module any more, durably.
/// Without their jobs they would look like events that start modules, and if the deletion is
/// interrupted, a dispatcher would send them again.
async fn clear_expected_modules(
    documents: &dyn Documents,
    correlation: &str,
) -> Result<(), StoreError> {
    let starts = |document: &Value| {
        let by = document["expectedBy"].as_array();
        document["unclaimed"] == json!(true) || by.is_some_and(|names| !names.is_empty())
    };
    let mut pages = Pages::new(documents_of(correlation), "created");
    while let Some(page) = pages.next(documents).await? {
        let idle = page.into_iter().filter(starts).map(|mut document| {
            document["expectedBy"] = json!([]);
            document["unclaimed"] = json!(false);
            (document, vec![])
        });
        let (idle, durability) = (idle.collect(), Durability::WithNextSync);
        documents.replace_all(Collection::Events, idle, durability).await?;
    }
    documents.sync().await
}

/// Removes the documents of a correlation: first what events have, such as logs, then the events,
/// children before their parents, so that an interrupted deletion leaves the beginning of each
/// lineage. Each pass through what is left removes the events of one depth. Returns the number of
/// documents.
async fn remove_events(documents: &dyn Documents, correlation: &str) -> Result<usize, StoreError> {
    let mut count = 0;
    // Whatever is no event is deeper than any event.
    let mut depth = u64::MAX;
    loop {
        let mut deepest_left = None;
        let rows = documents_of(correlation).only(&["context.documentType", "depth", "created"]);
        let mut pages = Pages::new(rows, "created");
        while let Some(page) = pages.next(documents).await? {
            for row in page {
                let own = match is_event(&row) {
                    true => row["depth"].as_u64().unwrap_or_default(),
                    false => u64::MAX,
                };
                if own < depth {
                    deepest_left = deepest_left.max(Some(own));
                    continue;
                }
                let id = row["id"].as_str().unwrap_or_default();
                documents.delete(Collection::Events, id, vec![]).await?;
                count += 1;
                failpoint::hit("gc.document-dropped");
            }
        }
        match deepest_left {
            Some(left) => depth = left,
            None => return Ok(count),
        }
    }
}

#[cfg(test)]
mod tests {
    use ion_stores::open::{StoreUrls, open};

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn correlations_come_in_order_and_children_go_before_their_parents() {
        let folder = tempfile::tempdir().unwrap();
        let documents = open(&StoreUrls::embedded(folder.path())).await.unwrap().documents.clone();
        let correlations = ["", "a", "a b", "a-1", "b"];
        for (n, correlation) in correlations.iter().enumerate() {
            for (id, kind, depth) in
                [("log", "modulelogs", 0), ("c", "eventMeta", 2), ("p", "eventMeta", 0)]
            {
                let document = json!({
                    "id": format!("{n}-{id}"), "depth": depth, "created": 7 - depth,
                    "context": {"correlationId": correlation, "documentType": kind},
                });
                documents
                    .insert(Collection::Events, document, None, Durability::Now)
                    .await
                    .unwrap();
            }
        }
        let mut found = Vec::new();
        let mut from = String::new();
        while let Some(correlation) = next_correlation(&*documents, &from).await.unwrap() {
            from = id_after(&correlation);
            found.push(correlation);
        }
        assert_eq!(found, correlations);
        assert_eq!(remove_events(&*documents, "a").await.unwrap(), 3);
        let left = documents.count(Query::equal(Collection::Events, vec![])).await.unwrap();
        assert_eq!(left, 12);
    }
}
