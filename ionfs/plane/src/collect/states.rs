//! Which blobs the states of sources name.

use std::collections::{BTreeSet, HashMap};

use ion_model::event::Event;
use ion_model::record::JobRecord;
use ion_model::source::{STATE_KEYS, SourceRecord, StateFiles, source_of_run};
use ion_stores::{BlobInfo, Collection, DataPlane, StoreError};

use crate::runs::RunEvents;

/// Removes from `part` the blobs that the state of a source names: the state with which a run began
/// that is still there, the one that it left, or the one with which the next run begins.
pub(super) async fn retain_unnamed(
    plane: &DataPlane,
    part: &mut HashMap<String, BlobInfo>,
) -> Result<(), StoreError> {
    let of_states = part.keys().filter_map(|key| key.strip_prefix(STATE_KEYS));
    let runs = of_states.filter_map(|key| key.split('/').next());
    let sources: BTreeSet<String> = runs.filter_map(source_of_run).map(str::to_owned).collect();
    for source in sources {
        let mut runs = RunEvents::of_source(&source);
        while let Some(event) = runs.next(plane).await? {
            if let Some(tick) = &event.tick {
                retain_unnamed_by(plane, part, &tick.state).await?;
            }
            if let Some(left) = job_of_run(plane, &event).await?.and_then(|job| job.left) {
                retain_unnamed_by(plane, part, &left.state).await?;
            }
        }
        let record = plane.documents.get_as::<SourceRecord>(Collection::Sources, &source).await?;
        if let Some(record) = record {
            retain_unnamed_by(plane, part, &record.state).await?;
        }
    }
    Ok(())
}

/// Returns the job of a run, if it was claimed.
async fn job_of_run(plane: &DataPlane, event: &Event) -> Result<Option<JobRecord>, StoreError> {
    let Some(job) = crate::runs::job_id(event) else { return Ok(None) };
    plane.documents.get_as(Collection::Jobs, job.as_str()).await
}

async fn retain_unnamed_by(
    plane: &DataPlane,
    part: &mut HashMap<String, BlobInfo>,
    state: &StateFiles,
) -> Result<(), StoreError> {
    let listed = plane.listed_files(&state.files, state.file_list.as_ref()).await?;
    for file in listed.iter().chain(&state.file_list) {
        part.remove(&plane.blobs.canonical_key(&file.key));
    }
    Ok(())
}
