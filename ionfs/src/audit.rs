//! `ion check` and `ion gc`: do documents and blobs agree, and what does nothing name?

use std::collections::HashSet;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use serde_json::json;

use crate::clock::{self, millis};
use crate::commit::files_of;
use crate::errors::chain;
use crate::event::{DocumentType, Event, FileEntry, Publication};
use crate::record::{JobRecord, LogRecord};
use crate::relay;
use crate::stores::{Abandon, BlobInfo, Collection, DataPlane, Query, StoreError};

/// What a walk over the plane found.
#[derive(Debug, Default)]
pub struct Report {
    /// Events seen.
    pub events: usize,
    /// Blobs looked at.
    pub blobs: usize,
    /// Bytes read and compared with their checksums; 0 unless asked for.
    pub bytes_read: u64,
    /// What does not agree, in words.
    pub findings: Vec<String>,
}

/// How closely to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Whether each blob is there with its length.
    Lengths,
    /// Every byte against its checksum.
    Checksums,
}

/// Compares documents with blobs and with each other.
///
/// # Errors
/// When a store cannot be read at all; what is merely wrong is a finding.
pub async fn check(plane: &DataPlane, depth: Depth) -> Result<Report, StoreError> {
    let mut report = Report::default();
    let mut known = HashSet::new();
    for event in events(plane).await? {
        report.events += 1;
        known.insert(event.id.to_string());
        let what = format!("event {} ({})", event.id, event.event_type);
        let late = event.publication == Publication::Unpublished
            && clock::now() - event.created > millis(relay::GRACE) * 3;
        if late {
            report
                .findings
                .push(format!("{what} was committed and is not published: is a dispatcher running?"));
        }
        match files_of(plane, &event).await {
            Ok(files) => {
                for file in files.iter().chain(&event.file_list) {
                    examine(plane, &what, file, depth, &mut report).await?;
                }
            }
            Err(error) => {
                report.findings.push(format!("{what}: its list of files cannot be read: {}", chain(&error)))
            }
        }
    }
    for log in logs(plane).await? {
        examine(plane, &format!("log {}", log.id), &log.logs, depth, &mut report).await?;
    }
    for job in plane.documents.find_as::<JobRecord>(Query::equal(Collection::Jobs, vec![])).await? {
        if !known.contains(job.event_id.as_str()) {
            report.findings.push(format!(
                "job {} of {} works on event {}, which is not there",
                job.id, job.module, job.event_id
            ));
        }
        if job.state.is_active() && clock::now() - job.due > 60_000 {
            report.findings.push(format!(
                "job {} of {} is held by nobody: its lease ended long ago",
                job.id, job.module
            ));
        }
    }
    Ok(report)
}

async fn examine(
    plane: &DataPlane,
    what: &str,
    file: &FileEntry,
    depth: Depth,
    report: &mut Report,
) -> Result<(), StoreError> {
    report.blobs += 1;
    match plane.blobs.size(&file.key).await? {
        None => {
            report.findings.push(format!("{what}: file {:?}: blob {:?} is missing", file.name, file.key));
            return Ok(());
        }
        Some(size) if size != file.size => {
            report.findings.push(format!(
                "{what}: file {:?}: blob {:?} has {size} bytes instead of {}",
                file.name, file.key, file.size
            ));
            return Ok(());
        }
        Some(_) => {}
    }
    if depth == Depth::Lengths {
        return Ok(());
    }
    let block = file.checksums.block.max(1);
    for index in 0..file.size.div_ceil(block) {
        let bytes =
            plane.blobs.get_range(&file.key, index * block..((index + 1) * block).min(file.size)).await?;
        report.bytes_read += bytes.len() as u64;
        if !file.checksums.agrees(index, &bytes) {
            report.findings.push(format!(
                "{what}: file {:?}: blob {:?}: block {index} does not match its checksum",
                file.name, file.key
            ));
        }
    }
    Ok(())
}

/// What `gc` did, or would do.
#[derive(Debug, Default)]
pub struct Collected {
    /// Blobs that nothing names.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Blobs that nothing names yet and that are too young to go.
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

/// Removes blobs that no document names and that are older than `grace`.
///
/// # Guarantees
/// A blob that a running job is about to commit is younger than its job; with a grace period longer than any job's
/// timeout it stays. Blobs are listed before documents are read: one that is committed in between is named by then.
///
/// # Errors
/// When a store cannot be read; nothing is removed then.
pub async fn collect(plane: &DataPlane, grace: Duration, how: Collect) -> Result<Collected, StoreError> {
    let listed: Vec<BlobInfo> = plane.blobs.list("").await?.try_collect().await?;
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
        if blob.modified > before {
            collected.young += 1;
            continue;
        }
        if how == Collect::Remove {
            plane.blobs.delete_listed(blob).await?;
        }
        collected.blobs += 1;
        collected.bytes += blob.size;
    }
    Ok(collected)
}

async fn events(plane: &DataPlane) -> Result<Vec<Event>, StoreError> {
    plane.documents.find_as(of_type(DocumentType::EventMeta)).await
}

async fn logs(plane: &DataPlane) -> Result<Vec<LogRecord>, StoreError> {
    plane.documents.find_as(of_type(DocumentType::ModuleLogs)).await
}

fn of_type(document_type: DocumentType) -> Query {
    Query::equal(Collection::Events, vec![("context.documentType", json!(document_type))]).order_by("created")
}
