//! `ion check`: checks that documents and blobs agree, and that every event is published.

use std::time::Duration;

use ion_model::errors::error_chain;
use ion_model::event::{DocumentType, Event, FileEntry, PublicationState};
use ion_model::record::{JobRecord, JobState, LogRecord};
use ion_stores::{Collection, DataPlane, Pages, Query, StoreError, decode};
use serde_json::json;

use crate::relay::{self, Relay};

/// The result of a check of the plane.
#[derive(Debug, Default)]
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
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// Compares documents with blobs and with each other, a page of documents at a time.
///
/// # Errors
/// When a store cannot be read. A fault in its content is a finding, not an error.
pub async fn check(
    plane: &DataPlane,
    depth: CheckDepth,
    repair: CheckRepair,
) -> Result<CheckReport, StoreError> {
    let mut report = CheckReport::default();
    let mut suspects = Vec::new();
    let mut pages = pages_of_type(DocumentType::EventMeta);
    while let Some(page) = pages.next(&*plane.documents).await? {
        for document in page {
            let event: Event = match decode(Collection::Events, document) {
                Ok(event) => event,
                Err(error) => {
                    report.add_finding(error_chain(&error));
                    continue;
                }
            };
            check_event(plane, &event, depth, &mut report).await?;
            if event.publication == PublicationState::Unpublished {
                suspects.push(event);
            }
        }
        if suspects.len() >= SUSPECTS {
            watch_unpublished(plane, std::mem::take(&mut suspects), repair, &mut report).await?;
        }
    }
    let mut pages = pages_of_type(DocumentType::ModuleLogs);
    while let Some(page) = pages.next(&*plane.documents).await? {
        for document in page {
            match decode::<LogRecord>(Collection::Events, document) {
                // An empty log has no blob.
                Ok(log) if log.logs.size > 0 => {
                    check_blob(plane, &format!("log {}", log.id), &log.logs, depth, &mut report)
                        .await?;
                }
                Ok(_) => {}
                Err(error) => report.add_finding(error_chain(&error)),
            }
        }
    }
    watch_unpublished(plane, suspects, repair, &mut report).await?;
    Ok(report)
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

/// Waits for [`WATCHED`], then reads the unpublished events again and reports those that have not
/// changed.
async fn watch_unpublished(
    plane: &DataPlane,
    suspects: Vec<Event>,
    repair: CheckRepair,
    report: &mut CheckReport,
) -> Result<(), StoreError> {
    if suspects.is_empty() {
        return Ok(());
    }
    tokio::time::sleep(WATCHED).await;
    let relay = Relay::new(plane.clone(), Duration::ZERO);
    for before in suspects {
        let now = plane.documents.get_as::<Event>(Collection::Events, before.id.as_str()).await?;
        let Some(event) = now.filter(|now| {
            now.publication == PublicationState::Unpublished && now.publisher == before.publisher
        }) else {
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
