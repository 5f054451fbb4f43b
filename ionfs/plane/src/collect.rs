//! `ion gc`: removes blobs that no document names.
//!
//! # How it works
//! `gc` lists the blobs and examines them in parts of [`PART`]. For each part it reads the active
//! jobs, and then, page by page, the documents of each correlation that the part's keys begin with.
//! A blob that a document names stays. `gc` reads all of this before it removes anything of the
//! part, so it removes nothing of a part if a document cannot be read.
//!
//! # Why it can never remove a blob that a running job is about to commit
//! The blobs of a part are listed first, then the active jobs are read, then the documents.
//! Consider a listed blob that no document names at the end of this. There are three cases.
//! - The blob's job is active when the jobs are read. The key holds the id of the job or of its
//!   event, so the blob stays.
//! - The attempt that stored the blob had ended before the jobs were read. An ended attempt commits
//!   nothing, because the ledger guards every insert. So a document that names the blob was
//!   inserted before the documents were read. [`Pages`] returns every document that exists during
//!   the whole reading and keeps its position in the order, which is the time of its commit.
//!   Nothing changes that time in the documents of an ended attempt.
//! - The blob holds the state of a source. The first run that named it has stored it, so one of the
//!   first two cases holds for that run. Afterwards the record of the run names it, and the
//!   source's document once the run's end is noted there. Runs are read before the source, because
//!   a state passes from a run to the source, and only then may the run be dropped
//!   (`collect/states.rs`).
//! - An event refers to an ancestor's blob. The ancestor's own document names that blob, in the
//!   same correlation. A list of gathered events is named by no document but of the job that it was
//!   written for, so it is like a blob that the job has stored.
//!
//! # Why it examines the blobs anew after an interruption
//! What a part is judged by, the active jobs and the documents, must be read after the part was
//! listed: nothing that an earlier run has read may decide. A run could still leave out what an
//! earlier one has examined, if it knew where that is; but stores list their blobs in no order that
//! all of them keep, so there is no such place. Nothing is removed twice, and what was removed is not
//! listed again.
//!
//! The grace period protects blobs that have no job (the files of `ion event create`, before its
//! one insert), and blobs that a store writes long after it stopped answering: both are younger
//! than the grace period. `commit/model.rs` explores `gc` beside everything else, and
//! `collect/model.rs` explores its pages beside commits whose clocks differ.

#[cfg(test)]
mod model;
mod states;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use ion_model::clock::{self, millis};
use ion_model::event::{DocumentType, Event};
use ion_model::record::{JobRecord, JobState, LogRecord};
use ion_stores::{
    BlobInfo, Collection, DataPlane, Pages, Query, StoreError, UnfinishedUploads, decode,
};
use ion_system::failpoint;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What `gc` removed, or would remove.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GcReport {
    /// The number of removed blobs.
    pub blobs: usize,
    /// The bytes of the removed blobs.
    pub bytes: u64,
    /// The number of blobs that nothing names and that stay, because they are younger than the
    /// grace period or their job is active.
    pub young: usize,
    /// The number of uploads that were begun and never finished.
    pub unfinished: usize,
}

/// Whether `gc` removes what it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GcMode {
    /// It only counts it.
    DryRun,
    /// It removes it.
    Remove,
}

/// The number of blobs that are examined together. This many are held in memory, at about 200 bytes
/// each.
const PART: usize = 100_000;

/// Removes blobs that no document names, that are older than `grace`, and whose job is not active.
/// Ends unfinished uploads that are older than `grace`.
///
/// # Errors
/// When a store cannot be read. Nothing of the part that was being examined is removed then.
pub async fn collect(
    plane: &DataPlane,
    grace: Duration,
    how: GcMode,
) -> Result<GcReport, StoreError> {
    let before = clock::now() - millis(grace);
    let mut collected = GcReport::default();
    let mut listing = plane.blobs.list("").await?.fuse();
    loop {
        let mut part = HashMap::new();
        while part.len() < PART
            && let Some(blob) = listing.try_next().await?
        {
            part.insert(blob.key.clone(), blob);
        }
        if part.is_empty() {
            break;
        }
        failpoint::hit("gc.listed");
        let running = find_active_ids(plane).await?;
        retain_unnamed(plane, &mut part).await?;
        for blob in part.values() {
            // The key of a file holds the job's id, and the key of a log the event's id.
            if blob.modified > before || blob.key.split('/').any(|part| running.contains(part)) {
                collected.young += 1;
            } else {
                remove_or_count(plane, blob, how, &mut collected).await?;
            }
        }
    }
    let abandon =
        if how == GcMode::Remove { UnfinishedUploads::End } else { UnfinishedUploads::Count };
    collected.unfinished = plane.blobs.end_unfinished_uploads(before, abandon).await?;
    Ok(collected)
}

/// Returns the ids of the active jobs and of their events.
async fn find_active_ids(plane: &DataPlane) -> Result<HashSet<String>, StoreError> {
    let mut running = HashSet::new();
    for state in [JobState::Starting, JobState::Running] {
        let active = Query::equal(Collection::Jobs, vec![("state", json!(state))]).order_by("due");
        let active = plane.documents.find_as::<JobRecord>(active).await?;
        running.extend(
            active.into_iter().flat_map(|job| [job.id.to_string(), job.event_id.to_string()]),
        );
    }
    Ok(running)
}

/// Removes from `part` the blobs that a document names.
async fn retain_unnamed(
    plane: &DataPlane,
    part: &mut HashMap<String, BlobInfo>,
) -> Result<(), StoreError> {
    let correlations: Option<Vec<Vec<&str>>> =
        part.keys().map(|key| correlations_of(key)).collect();
    let questions: Vec<Query> = match correlations {
        Some(correlations) => {
            let of =
                |id| Query::equal(Collection::Events, vec![("context.correlationId", json!(id))]);
            correlations
                .concat()
                .into_iter()
                .collect::<HashSet<&str>>()
                .into_iter()
                .map(of)
                .collect()
        }
        None => {
            let of = |kind| {
                Query::equal(Collection::Events, vec![("context.documentType", json!(kind))])
            };
            [DocumentType::EventMeta, DocumentType::ModuleLogs].map(of).into()
        }
    };
    states::retain_unnamed(plane, part).await?;
    for question in questions {
        let mut pages = Pages::new(question, "created");
        while let Some(page) = pages.next(&*plane.documents).await? {
            for document in page {
                for key in named_keys(plane, document).await? {
                    part.remove(&plane.blobs.canonical_key(&key));
                }
            }
        }
    }
    Ok(())
}

/// Returns the correlations that a listed key may belong to, or `None` if the store may have
/// escaped or shortened a correlation's name in the key.
fn correlations_of(key: &str) -> Option<Vec<&str>> {
    let parts: Vec<&str> = key.splitn(3, '/').collect();
    let candidates = match parts.as_slice() {
        // The key of a log in a correlation, or a key in a correlation named `logs`.
        [logs @ "logs", correlation, ..] => vec![*logs, *correlation],
        [correlation, ..] => vec![*correlation],
        [] => vec![],
    };
    // A store keeps these characters as they are. A name that it has escaped or shortened contains
    // another character.
    let is_kept = |c: char| c.is_ascii_alphanumeric() || "-_@.".contains(c);
    let plain = |name: &&str| name.chars().all(is_kept) && !matches!(*name, "." | "..");
    candidates.iter().all(plain).then_some(candidates)
}

/// Returns the keys that a document names.
async fn named_keys(plane: &DataPlane, document: Value) -> Result<Vec<String>, StoreError> {
    let kind = document["context"]["documentType"].as_str().unwrap_or_default().to_owned();
    if kind == DocumentType::ModuleLogs.as_str() {
        return Ok(vec![decode::<LogRecord>(Collection::Events, document)?.logs.key]);
    }
    if kind != DocumentType::EventMeta.as_str() {
        return Ok(vec![]);
    }
    let event: Event = decode(Collection::Events, document)?;
    let files = plane.files_of(&event).await?;
    Ok(files.into_iter().chain(event.file_list).map(|file| file.key).collect())
}

async fn remove_or_count(
    plane: &DataPlane,
    blob: &BlobInfo,
    how: GcMode,
    collected: &mut GcReport,
) -> Result<(), StoreError> {
    if how == GcMode::Remove {
        plane.blobs.delete_listed(blob).await?;
        failpoint::hit("gc.removed");
    }
    collected.blobs += 1;
    collected.bytes += blob.size;
    Ok(())
}

/// Removes every blob whose key begins with `prefix`, for a correlation that no document names any
/// more.
///
/// # Errors
/// When the store fails. Blobs that were removed before stay removed.
pub async fn remove_by_prefix(
    plane: &DataPlane,
    prefix: &str,
    how: GcMode,
    collected: &mut GcReport,
) -> Result<(), StoreError> {
    let mut blobs = plane.blobs.list(prefix).await?;
    while let Some(blob) = blobs.try_next().await? {
        remove_or_count(plane, &blob, how, collected).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::commit::create_event;
    use crate::upload::store_bytes;
    use ion_stores::Durability;
    use ion_stores::open::{StoreUrls, open};

    async fn store(plane: &DataPlane, key: String) -> ion_model::event::FileEntry {
        store_bytes(&*plane.blobs, key, "f".into(), Bytes::from_static(b"x")).await.unwrap()
    }

    /// The test has more documents than a page holds, and correlations with unusual names.
    #[tokio::test(flavor = "multi_thread")]
    async fn only_what_nothing_names_goes_however_many_documents_there_are() {
        const EVENTS: usize = 300;
        let folder = tempfile::tempdir().unwrap();
        let log = format!("sqlite://{}", folder.path().join("ion.db").display());
        let blobs = format!("file://{}", folder.path().join("blobs").display());
        let plane = open(&StoreUrls { blobs, documents: log.clone(), bus: log }).await.unwrap();
        let correlations = ["c-1", "logs", "\u{e4} b", "%41"];
        for n in 0..EVENTS {
            let (id, correlation) = (format!("e{n}"), correlations[n % correlations.len()]);
            let file = store(&plane, format!("{correlation}/{id}/0/f")).await;
            let context = json!({"name": "t", "eventId": id, "correlationId": correlation});
            let event = json!({
                "id": id, "context": context, "type": "a", "files": [file],
                "created": n / 200, "publication": "unpublished",
            });
            create_event(&plane, serde_json::from_value(event).unwrap()).await.unwrap();
        }
        let orphans = ["c-1/e0/1/f", "logs/x/l", "none/e/0/f", "\u{e4} b/e2/1/f"];
        for orphan in orphans {
            store(&plane, orphan.into()).await;
        }
        let young = collect(&plane, Duration::from_secs(3_600), GcMode::Remove).await.unwrap();
        assert_eq!((young.blobs, young.young), (0, orphans.len()));
        let counted = collect(&plane, Duration::ZERO, GcMode::DryRun).await.unwrap();
        assert_eq!((counted.blobs, counted.bytes), (orphans.len(), orphans.len() as u64));
        let collected = collect(&plane, Duration::ZERO, GcMode::Remove).await.unwrap();
        assert_eq!(collected.blobs, orphans.len());
        let left: Vec<BlobInfo> = plane.blobs.list("").await.unwrap().try_collect().await.unwrap();
        assert_eq!(left.len(), EVENTS);
        // A document that cannot be read may name any blob, so nothing is removed.
        store(&plane, "c-1/e0/1/f".into()).await;
        let context = json!({"correlationId": "c-1", "documentType": "eventMeta"});
        let odd = json!({"id": "odd", "created": 1, "context": context});
        plane.documents.insert(Collection::Events, odd, None, Durability::Now).await.unwrap();
        collect(&plane, Duration::ZERO, GcMode::Remove).await.unwrap_err();
        let left: Vec<BlobInfo> = plane.blobs.list("").await.unwrap().try_collect().await.unwrap();
        assert_eq!(left.len(), EVENTS + 1);
    }

    #[test]
    fn a_key_tells_its_correlation_unless_that_may_be_written_otherwise() {
        assert_eq!(correlations_of("c-1/j/1.0/f.txt"), Some(vec!["c-1"]));
        assert_eq!(correlations_of("logs/c/e/m-attempt-1.log"), Some(vec!["logs", "c"]));
        assert_eq!(correlations_of("s.1@00000001-a/j/f"), Some(vec!["s.1@00000001-a"]));
        for escaped in ["a%20b/j/f", "logs/a~0/e/l", "\u{e4}/j"] {
            assert_eq!(correlations_of(escaped), None, "{escaped}");
        }
    }
}
