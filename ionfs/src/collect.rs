//! `ion gc`: what nothing names goes.
//!
//! # Why it can never remove a blob that a running job is about to commit
//! Blobs are listed first, then the jobs that are active are read, then the documents. Take a listed blob that no
//! document names in the end.
//! - Its job is active when the jobs are read: the key holds the id of the job or of its event, so the blob stays.
//! - The attempt that stored it has ended before: an ended attempt commits nothing, as every insert is guarded by the
//!   ledger, so whatever names the blob was in before the documents were read, and was seen.
//! - A reference to an ancestor's blob: the ancestor's own document names it.
//!
//! What has no job (the files of `ion event create`, before its one insert), and a write that a store carries out long
//! after it stopped answering, is younger than the grace period. `commit/model.rs` explores `gc` beside all else.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use serde_json::json;

use crate::audit::{events, logs};
use crate::clock::{self, millis};
use crate::commit::files_of;
use crate::failpoint;
use crate::record::{JobRecord, JobState};
use crate::stores::{Abandon, BlobInfo, Collection, DataPlane, Query, StoreError};

/// What `gc` did, or would do.
#[derive(Debug, Default)]
pub struct Collected {
    /// Blobs removed.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Blobs that nothing names yet and that are too young to go, or of a job that runs.
    pub young: usize,
    /// Uploads that were begun and never finished.
    pub unfinished: usize,
}

/// Whether `gc` removes what it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collect {
    /// It only counts.
    DryRun,
    /// It removes.
    Remove,
}

/// Removes blobs that no document names, that are older than `grace`, and whose job does not run.
///
/// # Errors
/// When a store cannot be read; nothing is removed then.
pub async fn collect(plane: &DataPlane, grace: Duration, how: Collect) -> Result<Collected, StoreError> {
    let listed: Vec<BlobInfo> = plane.blobs.list("").await?.try_collect().await?;
    failpoint::reach("gc.listed");
    let mut running = HashSet::new();
    for state in [JobState::Starting, JobState::Running] {
        let active = Query::equal(Collection::Jobs, vec![("state", json!(state))]).order_by("due");
        let active = plane.documents.find_as::<JobRecord>(active).await?;
        running.extend(active.into_iter().flat_map(|job| [job.id.to_string(), job.event_id.to_string()]));
    }
    let mut named = HashSet::new();
    for event in events(plane).await? {
        for file in files_of(plane, &event).await?.iter().chain(&event.file_list) {
            named.insert(plane.blobs.canonical(&file.key));
        }
    }
    named.extend(logs(plane).await?.iter().map(|log| plane.blobs.canonical(&log.logs.key)));
    let before = clock::now() - millis(grace);
    let abandon = if how == Collect::Remove { Abandon::End } else { Abandon::Count };
    let unfinished = plane.blobs.abandon_uploads(before, abandon).await?;
    let mut collected = Collected { unfinished, ..Collected::default() };
    for blob in listed.iter().filter(|blob| !named.contains(&blob.key)) {
        // A file's key holds the job's id, a log's the event's.
        let of_running = blob.key.split('/').any(|part| running.contains(part));
        if of_running || blob.modified > before {
            collected.young += 1;
            continue;
        }
        remove(plane, blob, how, &mut collected).await?;
    }
    Ok(collected)
}

async fn remove(
    plane: &DataPlane,
    blob: &BlobInfo,
    how: Collect,
    collected: &mut Collected,
) -> Result<(), StoreError> {
    if how == Collect::Remove {
        plane.blobs.delete_listed(blob).await?;
        failpoint::reach("gc.removed");
    }
    collected.blobs += 1;
    collected.bytes += blob.size;
    Ok(())
}

/// Removes every blob below a key's beginning: for a correlation no document names any more.
///
/// # Errors
/// When the store fails; what was removed until then is gone.
pub async fn remove_below(
    plane: &DataPlane,
    prefix: &str,
    how: Collect,
    collected: &mut Collected,
) -> Result<(), StoreError> {
    let blobs: Vec<BlobInfo> = plane.blobs.list(prefix).await?.try_collect().await?;
    for blob in &blobs {
        remove(plane, blob, how, collected).await?;
    }
    Ok(())
}
