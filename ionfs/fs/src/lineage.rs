//! How one event looks as a directory, and the chain of events that led to a job.

use std::sync::Arc;

use ion_model::clock::Millis;
use ion_model::event::{Event, KeyValue, event_json};
use ion_model::id::{EventId, JobId};
use ion_model::record::{Attempt, InsightRecord, JobRecord, LogRecord};
use ion_plane::node::{Node as Daemon, live_log_path};
use ion_stores::{Collection, StoreError};
use serde_json::json;

use super::item::{ListResult, ViewItem, files_tree};
use super::{CURRENT, FOREVER};

/// The most events of a lineage that are shown. A longer chain is a loop of modules that feed each
/// other.
const DEPTH_MAX: usize = 1000;

/// Returns the name of an event's directory: `<n>-<type>-<id8>`.
pub(super) fn directory_name(n: usize, event: &Event) -> String {
    format!("{n}-{}-{}", event.event_type, event.id.short())
}

/// Returns the entries of an event's directory: `event.json`, `meta.json`, `data/`, and, from the
/// job that committed the event, `insights.json` and `log`.
pub(super) async fn event_items(daemon: &Arc<Daemon>, event: &Event) -> ListResult {
    let files = daemon.plane.files_of(event).await?;
    let mut items = vec![
        ("event.json".to_owned(), ViewItem::json(&event_json(event, &files), event.created)),
        ("meta.json".to_owned(), ViewItem::json(&event.data, event.created)),
        ("data".to_owned(), files_tree(&files, &event.directories)),
    ];
    if let Some(job) = &event.job_id {
        let parent = EventId::new(event.context.parent_event_id.clone());
        items.extend(insights_item(daemon, job).await?);
        items.extend(
            log_item(daemon, job, &event.context.name, &parent, event.attempt.unwrap_or(1)).await?,
        );
    }
    Ok(items)
}

/// Makes a directory with a file for each value. A value whose key cannot be a name is only in
/// `eventmeta.json`.
pub(super) fn values_item(values: &[KeyValue], at: Millis) -> ViewItem {
    let can_be_name = |key: &str| {
        !key.is_empty()
            && key.len() <= 255
            && key != "."
            && key != ".."
            && !key.contains(['/', '\0'])
    };
    let values = values.iter().filter(|pair| can_be_name(&pair.key));
    ViewItem::fixed(
        values.map(|pair| (pair.key.clone(), ViewItem::Text(pair.value.clone().into(), at))),
    )
}

/// Returns a job's `insights.json`, if the job kept any insights.
pub(super) async fn insights_item(
    daemon: &Daemon,
    job: &JobId,
) -> Result<Option<(String, ViewItem)>, StoreError> {
    let documents = &daemon.plane.documents;
    let insight =
        documents.get_as::<InsightRecord>(Collection::Events, &InsightRecord::id(job)).await;
    let insight = insight?.filter(|insight| !insight.staged);
    Ok(insight.map(|insight| {
        ("insights.json".into(), ViewItem::json(&json!(insight.data), insight.created))
    }))
}

/// Returns the `log` of one attempt: the stored blob, or the live file of an attempt that runs on
/// this machine.
pub(super) async fn log_item(
    daemon: &Daemon,
    job: &JobId,
    module: &str,
    event: &EventId,
    attempt: u32,
) -> Result<Option<(String, ViewItem)>, StoreError> {
    let id = LogRecord::id(module, event, attempt);
    let log = daemon.plane.documents.get_as::<LogRecord>(Collection::Events, &id).await;
    if let Some(log) = log? {
        return Ok(Some(("log".into(), ViewItem::Blob(Arc::new(log.logs)))));
    }
    let job_record: Option<JobRecord> =
        daemon.plane.documents.get_as(Collection::Jobs, job.as_str()).await?;
    let run = job_record.and_then(|job| job.attempts.into_iter().find(|one| one.number == attempt));
    // The output of a batch is the log of its first job.
    let home = &daemon.settings.home;
    let live = match run {
        Some(Attempt { log: Some(log), .. }) => {
            return Ok(Some(("log".into(), ViewItem::Blob(Arc::new(log)))));
        }
        Some(Attempt { batch: Some(batch), .. }) => {
            live_log_path(home, &batch.first, batch.first_attempt)
        }
        Some(_) | None => live_log_path(home, job, attempt),
    };
    Ok(live.exists().then(|| ("log".into(), ViewItem::Live(live))))
}

/// Returns the event and its ancestors, oldest first.
async fn ancestors(daemon: &Daemon, event: &Event) -> Result<Vec<Event>, StoreError> {
    let mut events = vec![event.clone()];
    while let Some(last) = events.last().filter(|_| events.len() < DEPTH_MAX) {
        let parent = &last.context.parent_event_id;
        let found = daemon.plane.documents.get_as::<Event>(Collection::Events, parent).await;
        match found? {
            Some(parent) => events.push(parent),
            None => break,
        }
    }
    events.reverse();
    Ok(events)
}

/// Returns `trigger` and `lineage/`.
pub(super) async fn lineage_items(daemon: &Arc<Daemon>, event: &Event) -> ListResult {
    let events = ancestors(daemon, event).await?;
    let names: Vec<String> =
        events.iter().enumerate().map(|(n, event)| directory_name(n, event)).collect();
    let trigger = names.last().map(|name| {
        ("trigger".to_owned(), ViewItem::Link(format!("lineage/{name}"), event.created))
    });
    let directories: Vec<(String, ViewItem)> = names
        .into_iter()
        .zip(events)
        .map(|(name, event)| {
            let event_of_a_job = event.job_id.is_some();
            let (daemon, event) = (daemon.clone(), Arc::new(event));
            let list = move || {
                let (daemon, event) = (daemon.clone(), event.clone());
                async move { event_items(&daemon, &event).await }
            };
            // The job may still run: its log grows, and its insights may still come.
            let ttl = if event_of_a_job { CURRENT } else { FOREVER };
            (name, ViewItem::lazy(ttl, list))
        })
        .collect();
    Ok(trigger.into_iter().chain([("lineage".to_owned(), ViewItem::fixed(directories))]).collect())
}
