//! `ion check`: do documents and blobs agree, and is every event published?

use std::time::Duration;

use ion_model::errors::chain;
use ion_model::event::{DocumentType, Event, FileEntry, Publication};
use ion_model::record::{JobRecord, JobState, LogRecord};
use ion_stores::{Collection, DataPlane, Pages, Query, StoreError, decode};
use serde_json::json;

use crate::commit::files_of;
use crate::relay::{self, Relay};

/// What a walk over the plane found.
#[derive(Debug, Default)]
pub struct Report {
    /// Events seen.
    pub events: usize,
    /// Blobs looked at.
    pub blobs: usize,
    /// Bytes read and compared with their checksums; 0 unless asked for.
    pub bytes_read: u64,
    /// What does not agree.
    pub findings: Vec<Finding>,
}

/// One thing that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong, in words.
    pub what: String,
    /// What was done about it; none: nothing, as it was not asked for or is not safe.
    pub repaired: Option<String>,
}

impl Report {
    /// Adds a finding nothing is done about.
    pub fn found(&mut self, what: String) {
        self.findings.push(Finding { what, repaired: None });
    }

    /// Adds a finding and what a repair did about it.
    pub fn repaired(&mut self, what: String, repaired: Option<String>) {
        self.findings.push(Finding { what, repaired });
    }

    /// Whether all that was found is repaired.
    pub fn is_well(&self) -> bool {
        self.findings.iter().all(|finding| finding.repaired.is_some())
    }
}

/// How closely to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Whether each blob is there with its length.
    Lengths,
    /// Every byte against its checksum.
    Checksums,
}

/// Whether what can safely be put right is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// It is only reported.
    No,
    /// It is: what anybody may do at any time, as a relay or a dispatcher would.
    Safe,
}

/// How long a suspect is watched before it is a finding: whoever should move it has had more than
/// his time. What was written by a clock that differs is seen to move.
const WATCHED: Duration = relay::GRACE.saturating_add(Duration::from_secs(5));

/// Suspects that are watched together.
const SUSPECTS: usize = 1_000;

/// Compares documents with blobs and with each other, a page of documents at a time.
///
/// # Errors
/// When a store cannot be read at all; what is merely wrong is a finding.
pub async fn check(plane: &DataPlane, depth: Depth, repair: Repair) -> Result<Report, StoreError> {
    let mut report = Report::default();
    let mut suspects = Vec::new();
    let mut pages = of_type(DocumentType::EventMeta);
    while let Some(page) = pages.next(&*plane.documents).await? {
        for document in page {
            let event: Event = match decode(Collection::Events, document) {
                Ok(event) => event,
                Err(error) => {
                    report.found(chain(&error));
                    continue;
                }
            };
            check_event(plane, &event, depth, &mut report).await?;
            if event.publication == Publication::Unpublished {
                suspects.push(event);
            }
        }
        if suspects.len() >= SUSPECTS {
            watch_out(plane, std::mem::take(&mut suspects), repair, &mut report).await?;
        }
    }
    let mut pages = of_type(DocumentType::ModuleLogs);
    while let Some(page) = pages.next(&*plane.documents).await? {
        for document in page {
            match decode::<LogRecord>(Collection::Events, document) {
                // An empty one has no blob.
                Ok(log) if log.logs.size > 0 => {
                    examine(plane, &format!("log {}", log.id), &log.logs, depth, &mut report)
                        .await?;
                }
                Ok(_) => {}
                Err(error) => report.found(chain(&error)),
            }
        }
    }
    watch_out(plane, suspects, repair, &mut report).await?;
    Ok(report)
}

/// One event and the blobs that it names.
async fn check_event(
    plane: &DataPlane,
    event: &Event,
    depth: Depth,
    report: &mut Report,
) -> Result<(), StoreError> {
    report.events += 1;
    let what = format!("event {} ({})", event.id, event.event_type);
    match files_of(plane, event).await {
        Ok(files) => {
            for file in files.iter().chain(&event.file_list) {
                examine(plane, &what, file, depth, report).await?;
            }
        }
        Err(error) => {
            report.found(format!("{what}: its list of files cannot be read: {}", chain(&error)))
        }
    }
    if event.publication == Publication::Staged && is_lost(plane, event).await? {
        report.found(format!("{what} was staged by an attempt that succeeded, and is not visible"));
    }
    Ok(())
}

/// Whether a staged event is of an attempt whose job succeeded and has nothing left to tell: nobody
/// would reveal it.
async fn is_lost(plane: &DataPlane, event: &Event) -> Result<bool, StoreError> {
    let Some(job_id) = &event.job_id else { return Ok(true) };
    let job = plane.documents.get_as::<JobRecord>(Collection::Jobs, job_id.as_str()).await?;
    let over = job.is_some_and(|job| {
        job.state == JobState::Succeeded && !job.outbox && Some(job.attempt) == event.attempt
    });
    // It may have been revealed between the two readings.
    let again = plane.documents.get_as::<Event>(Collection::Events, event.id.as_str()).await?;
    Ok(over && again.is_some_and(|event| event.publication == Publication::Staged))
}

/// Looks a second time, after a while, at events that were not published.
async fn watch_out(
    plane: &DataPlane,
    suspects: Vec<Event>,
    repair: Repair,
    report: &mut Report,
) -> Result<(), StoreError> {
    if suspects.is_empty() {
        return Ok(());
    }
    tokio::time::sleep(WATCHED).await;
    let relay = Relay::new(plane.clone(), Duration::ZERO);
    for before in suspects {
        let now = plane.documents.get_as::<Event>(Collection::Events, before.id.as_str()).await?;
        let Some(event) = now.filter(|now| {
            now.publication == Publication::Unpublished && now.publisher == before.publisher
        }) else {
            continue;
        };
        let what = format!(
            "event {} ({}) was committed and is not published: is a dispatcher running?",
            event.id, event.event_type
        );
        let repaired = match repair {
            Repair::Safe => relay.publish(event).await?.then(|| "published".to_owned()),
            Repair::No => None,
        };
        report.repaired(what, repaired);
    }
    Ok(())
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
            report.found(format!("{what}: file {:?}: blob {:?} is missing", file.name, file.key));
            return Ok(());
        }
        Some(size) if size != file.size => {
            report.found(format!(
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
        let bytes = plane
            .blobs
            .get_range(&file.key, index * block..((index + 1) * block).min(file.size))
            .await?;
        report.bytes_read += bytes.len() as u64;
        if !file.checksums.agrees(index, &bytes) {
            report.found(format!(
                "{what}: file {:?}: blob {:?}: block {index} does not match its checksum",
                file.name, file.key
            ));
        }
    }
    Ok(())
}

fn of_type(document_type: DocumentType) -> Pages {
    let equals = vec![("context.documentType", json!(document_type))];
    Pages::new(Query::equal(Collection::Events, equals), "created")
}
