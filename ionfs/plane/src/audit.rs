//! `ion check`: checks that documents and blobs agree, and that every event is published.
//!
//! # How it goes on after an interruption
//! Each event and each log is checked by itself, so a check that was interrupted begins after the
//! document that its note names ([`crate::resume`]), and takes over what had been counted and found.
//! Only unpublished events are watched for longer: the note names those that were still to be
//! watched.

use std::time::Duration;

use ion_model::errors::error_chain;
use ion_model::event::{DocumentType, Event, FileEntry, PublicationState};
use ion_model::id::EventId;
use ion_model::record::{JobRecord, JobState, LogRecord};
use ion_stores::{Collection, DataPlane, Pages, Query, StoreError, decode};
use ion_system::failpoint;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::relay::{self, Relay};
use crate::resume::PositionNote;

/// The result of a check of the plane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// The number of events that were checked.
    pub events: usize,
    /// The number of blobs that were checked.
    pub blobs: usize,
    /// The number of bytes that were read and compared with their checksums; 0 with
    /// [`CheckDepth::Lengths`].
    pub bytes_read: u64,
    /// The faults that were found.
    pub findings: Vec<AuditFinding>,
}

/// A fault in the plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditFinding {
    /// What is wrong, as a text.
    pub what: String,
    /// What was done to repair it, or `None` if nothing was done, because no repair was requested
    /// or none is safe.
    pub repaired: Option<String>,
}

impl CheckReport {
    /// Adds a finding that is not repaired.
    pub fn add_finding(&mut self, what: String) {
        self.findings.push(AuditFinding { what, repaired: None });
    }

    /// Adds a finding, and what a repair did about it.
    pub fn add_finding_with_repair(&mut self, what: String, repaired: Option<String>) {
        self.findings.push(AuditFinding { what, repaired });
    }

    /// Returns whether every finding has been repaired.
    pub fn is_well(&self) -> bool {
        self.findings.iter().all(|finding| finding.repaired.is_some())
    }
}

/// How thoroughly blobs are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckDepth {
    /// Checks that each blob exists with its length.
    Lengths,
    /// Also compares every byte with its checksum.
    Checksums,
}

/// Whether to repair faults that can be repaired safely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckRepair {
    /// Faults are only reported.
    No,
    /// Faults are repaired by steps that any process may take at any time, as a relay or a
    /// dispatcher does.
    Safe,
}

/// How long an unpublished event is watched before it is a finding: longer than the relay that must
/// publish it needs. Watching for a change does not depend on the time in the document, which may
/// be from a clock that differs.
const WATCHED: Duration = relay::GRACE.saturating_add(Duration::from_secs(5));

/// The number of unpublished events that are watched together.
const SUSPECTS: usize = 1_000;

/// The most findings that a note takes over: it is one document, and a store limits its length. A
/// check with more findings goes on from its last note.
const NOTED_FINDINGS_MAX: usize = 1_000;

/// How far a check is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckPosition {
    /// The kind of documents that is being checked: events, then logs.
    kind: DocumentType,
    /// The last document that was checked, by its time and id; none before the first one.
    last: Option<Value>,
    /// The unpublished events that are still to be watched.
    suspects: Vec<EventId>,
    /// What was found so far.
    report: CheckReport,
}

impl CheckPosition {
    fn beginning() -> Self {
        let report = CheckReport::default();
        Self { kind: DocumentType::EventMeta, last: None, suspects: vec![], report }
    }

    /// Returns the number of events that had been checked.
    pub fn events(&self) -> usize {
        self.report.events
    }
}

/// Compares documents with blobs and with each other, a page of documents at a time. Begins where
/// `from` says, and notes how far it is.
///
/// # Errors
/// When a store cannot be read, or the note cannot be written. A fault in a store's content is a
/// finding, not an error.
pub async fn check(
    plane: &DataPlane,
    depth: CheckDepth,
    repair: CheckRepair,
    note: &mut PositionNote,
    from: Option<CheckPosition>,
) -> Result<CheckReport, StoreError> {
    let mut at = from.unwrap_or_else(CheckPosition::beginning);
    loop {
        let mut pages = pages_of_type(at.kind);
        if let Some(last) = &at.last {
            pages = pages.after(last);
        }
        while let Some(page) = pages.next(&*plane.documents).await? {
            let last =
                page.last().map(|last| json!({"created": last["created"], "id": last["id"]}));
            for document in page {
                check_document(plane, document, depth, &mut at).await?;
            }
            at.last = last;
            if at.suspects.len() >= SUSPECTS {
                let suspects = std::mem::take(&mut at.suspects);
                watch_unpublished(plane, suspects, repair, &mut at.report).await?;
            }
            if at.report.findings.len() <= NOTED_FINDINGS_MAX {
                note.write(&at).await?;
            }
            failpoint::hit("check.page");
        }
        if at.kind == DocumentType::ModuleLogs {
            break;
        }
        (at.kind, at.last) = (DocumentType::ModuleLogs, None);
    }
    watch_unpublished(plane, at.suspects, repair, &mut at.report).await?;
    Ok(at.report)
}

/// Checks one event or one log.
async fn check_document(
    plane: &DataPlane,
    document: Value,
    depth: CheckDepth,
    at: &mut CheckPosition,
) -> Result<(), StoreError> {
    if at.kind == DocumentType::ModuleLogs {
        return match decode::<LogRecord>(Collection::Events, document) {
            // An empty log has no blob.
            Ok(log) if log.logs.size > 0 => {
                let what = format!("log {}", log.id);
                check_blob(plane, &what, &log.logs, depth, &mut at.report).await
            }
            Ok(_) => Ok(()),
            Err(error) => {
                at.report.add_finding(error_chain(&error));
                Ok(())
            }
        };
    }
    match decode::<Event>(Collection::Events, document) {
        Ok(event) => {
            check_event(plane, &event, depth, &mut at.report).await?;
            if event.publication == PublicationState::Unpublished {
                at.suspects.push(event.id);
            }
        }
        Err(error) => at.report.add_finding(error_chain(&error)),
    }
    Ok(())
}

/// Checks one event and the blobs that it names.
async fn check_event(
    plane: &DataPlane,
    event: &Event,
    depth: CheckDepth,
    report: &mut CheckReport,
) -> Result<(), StoreError> {
    report.events += 1;
    let what = format!("event {} ({})", event.id, event.event_type);
    match plane.files_of(event).await {
        Ok(files) => {
            for file in files.iter().chain(&event.file_list) {
                check_blob(plane, &what, file, depth, report).await?;
            }
        }
        Err(error) => report.add_finding(format!(
            "{what}: its list of files cannot be read: {}",
            error_chain(&error)
        )),
    }
    if event.publication == PublicationState::Staged && is_never_revealed(plane, event).await? {
        report.add_finding(format!(
            "{what} was staged by an attempt that succeeded, and is not visible"
        ));
    }
    Ok(())
}

/// Returns whether nobody will reveal a staged event: its attempt's job succeeded and has an empty
/// outbox, so no relay would make the event visible.
async fn is_never_revealed(plane: &DataPlane, event: &Event) -> Result<bool, StoreError> {
    let Some(job_id) = &event.job_id else { return Ok(true) };
    let job = plane.documents.get_as::<JobRecord>(Collection::Jobs, job_id.as_str()).await?;
    let over = job.is_some_and(|job| {
        job.state == JobState::Succeeded && !job.outbox && Some(job.attempt) == event.attempt
    });
    // A relay may have made the event visible between the two reads.
    let again = plane.documents.get_as::<Event>(Collection::Events, event.id.as_str()).await?;
    Ok(over && again.is_some_and(|event| event.publication == PublicationState::Staged))
}

/// Watches these events for [`WATCHED`], and reports those that were not published all the time and
/// that no relay has taken over meanwhile.
async fn watch_unpublished(
    plane: &DataPlane,
    suspects: Vec<EventId>,
    repair: CheckRepair,
    report: &mut CheckReport,
) -> Result<(), StoreError> {
    let mut before = Vec::new();
    for id in suspects {
        before.extend(read_unpublished(plane, &id).await?);
    }
    if before.is_empty() {
        return Ok(());
    }
    tokio::time::sleep(WATCHED).await;
    let relay = Relay::new(plane.clone(), Duration::ZERO);
    for before in before {
        let now = read_unpublished(plane, &before.id).await?;
        let Some(event) = now.filter(|now| now.publisher == before.publisher) else {
            continue;
        };
        let what = format!(
            "event {} ({}) was committed and is not published; start a dispatcher or `ion relay`",
            event.id, event.event_type
        );
        let repaired = match repair {
            CheckRepair::Safe => relay.publish(event).await?.then(|| "published".to_owned()),
            CheckRepair::No => None,
        };
        report.add_finding_with_repair(what, repaired);
    }
    Ok(())
}

/// Returns an event if it is not published.
async fn read_unpublished(plane: &DataPlane, id: &EventId) -> Result<Option<Event>, StoreError> {
    let found = plane.documents.get_as::<Event>(Collection::Events, id.as_str()).await?;
    Ok(found.filter(|event| event.publication == PublicationState::Unpublished))
}

/// Compares a file's blob with its entry as far as `depth` says, and reports what differs.
async fn check_blob(
    plane: &DataPlane,
    what: &str,
    file: &FileEntry,
    depth: CheckDepth,
    report: &mut CheckReport,
) -> Result<(), StoreError> {
    report.blobs += 1;
    match plane.blobs.size(&file.key).await? {
        None => {
            report.add_finding(format!(
                "{what}: file {:?}: blob {:?} is missing",
                file.name, file.key
            ));
            return Ok(());
        }
        Some(size) if size != file.size => {
            report.add_finding(format!(
                "{what}: file {:?}: blob {:?} has {size} bytes instead of {}",
                file.name, file.key, file.size
            ));
            return Ok(());
        }
        Some(_) => {}
    }
    if depth == CheckDepth::Lengths {
        return Ok(());
    }
    let block = file.checksums.block.max(1);
    for index in 0..file.size.div_ceil(block) {
        let bytes = plane
            .blobs
            .get_range(&file.key, index * block..((index + 1) * block).min(file.size))
            .await?;
        report.bytes_read += bytes.len() as u64;
        if !file.checksums.block_matches(index, &bytes) {
            report.add_finding(format!(
                "{what}: file {:?}: blob {:?}: block {index} does not match its checksum",
                file.name, file.key
            ));
        }
    }
    Ok(())
}

fn pages_of_type(document_type: DocumentType) -> Pages {
    let equals = vec![("context.documentType", json!(document_type))];
    Pages::new(Query::equal(Collection::Events, equals), "created")
}
