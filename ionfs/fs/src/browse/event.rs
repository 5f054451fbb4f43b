//! One event as a folder: its files and values, and its jobs with their attempts.

use std::sync::Arc;

use ion_model::clock::Millis;
use ion_model::errors::error_chain;
use ion_model::event::Event;
use ion_model::id::JobId;
use ion_model::record::{Attempt, JobRecord, RefusedFile};
use ion_model::version::VersionRecord;
use ion_plane::node::Node as Daemon;
use ion_stores::{Collection, Pages, Query, decode};
use serde_json::{Value, json};

use super::documents::{
    BrowseResult, DirectoryItems, LISTED_MAX, add_more, created_of, directory, is_shown_event,
    read, text,
};
use super::names::name_of;
use super::state::{attempt_steps, attempts_of, describe_job, waits_for};
use crate::item::{ListResult, ViewItem};
use crate::lineage::{event_items, insights_item, log_item};

/// The file that says that no module was to get an event.
const NOBODY: &str = "NOBODY";

/// The file that says what a job waits for, or which modules have not taken an event yet.
const WAITING: &str = "waiting.json";

/// Makes the folder of an event. The event is read when the folder is accessed.
pub(super) fn event_item(daemon: &Arc<Daemon>, id: &str, created: Millis) -> ViewItem {
    let id = id.to_owned();
    directory(daemon.clone(), created, move |daemon| {
        let id = id.clone();
        Box::pin(async move {
            let found = daemon.plane.documents.get(Collection::Events, &id).await?;
            match found.filter(is_shown_event) {
                Some(document) => {
                    let event: Event = decode(Collection::Events, document)?;
                    list_event(daemon, event).await
                }
                // Its correlation was dropped after the name was found.
                None => Ok(vec![]),
            }
        })
    })
}

async fn list_event(daemon: Arc<Daemon>, event: Event) -> ListResult {
    let mut items = match event_items(&daemon, &event).await {
        Ok(items) => items,
        // What the jobs did is shown all the same: that may be what somebody looks for.
        Err(error) => {
            let text = format!("The event's files cannot be listed: {}\n", error_chain(&error));
            vec![
                ("UNREADABLE".to_owned(), ViewItem::Text(text.into(), event.created)),
                ("meta.json".to_owned(), ViewItem::json(&event.data, event.created)),
            ]
        }
    };
    // The log of the job that committed the event is shown with that job, under the job's own
    // event.
    items.retain(|(name, _)| name != "log");
    if event.unclaimed
        && let Some(waiting) = unclaimed_item(&daemon, &event).await?
    {
        items.push((WAITING.to_owned(), waiting));
    }
    let (created, event) = (event.created, Arc::new(event));
    let jobs = directory(daemon, created, move |daemon| {
        let event = event.clone();
        Box::pin(async move { list_jobs(daemon, &event).await })
    });
    items.push(("jobs".to_owned(), jobs));
    Ok(items)
}

/// Returns a file that names the modules that are to get the event and have no job on it yet.
async fn unclaimed_item(daemon: &Daemon, event: &Event) -> BrowseResult<Option<ViewItem>> {
    let expected = || event.expected_by.iter().flatten();
    let job_of = |module: &str| JobId::derive(&event.id, module).to_string();
    let jobs = expected().map(|module| job_of(module)).collect();
    let claimed = daemon.plane.documents.find_existing_ids(Collection::Jobs, jobs).await?;
    let missing: Vec<&String> =
        expected().filter(|module| !claimed.contains(&job_of(module))).collect();
    if missing.is_empty() {
        return Ok(None);
    }
    let waiting = json!({
        "waitsFor": "a dispatcher with a free place that serves these modules",
        "modules": missing,
        "since": event.created,
    });
    Ok(Some(ViewItem::json(&waiting, event.created)))
}

async fn list_jobs(daemon: Arc<Daemon>, event: &Event) -> ListResult {
    let query = Query::equal(Collection::Jobs, vec![("eventId", json!(event.id))]);
    let jobs =
        read(&daemon, Pages::new(query, "created"), LISTED_MAX, |document| Ok(Some(document)));
    let jobs = jobs.await?;
    let is_for_nobody = event.expected_by.as_ref().is_some_and(Vec::is_empty);
    let mut items: DirectoryItems = jobs
        .documents
        .into_iter()
        .map(|job| (name_of(text(&job, "module")).into_owned(), job_item(daemon.clone(), job)))
        .collect();
    if items.is_empty() && is_for_nobody {
        let text = format!(
            "No module subscribed to events of type {:?} when this one was committed, or their \
             `where` did not hold.\n`ion module list` shows what each module subscribes to.\n",
            event.event_type
        );
        items.push((NOBODY.to_owned(), ViewItem::Text(text.into(), event.created)));
    }
    if jobs.is_cut {
        let how =
            format!("`ion job list --correlation {}` lists all.", event.context.correlation_id);
        add_more(&mut items, "the first jobs", &how);
    }
    Ok(items)
}

/// Makes the folder of a job. Of a record that cannot be read it has the record alone.
fn job_item(daemon: Arc<Daemon>, document: Value) -> ViewItem {
    let created = created_of(&document);
    let job = match decode::<JobRecord>(Collection::Jobs, document.clone()) {
        Ok(job) => Arc::new(job),
        Err(error) => {
            let text = format!("job.json cannot be read: {}\n", error_chain(&error));
            return ViewItem::fixed([
                ("job.json".to_owned(), ViewItem::json(&document, created)),
                ("state".to_owned(), ViewItem::Text(text.into(), created)),
            ]);
        }
    };
    directory(daemon, created, move |daemon| {
        let job = job.clone();
        Box::pin(async move { list_job(daemon, job).await })
    })
}

async fn list_job(daemon: Arc<Daemon>, job: Arc<JobRecord>) -> ListResult {
    let state = ViewItem::Text(describe_job(&job).into(), job.ended.unwrap_or(job.created));
    let mut items = vec![
        ("job.json".to_owned(), ViewItem::json(&*job, job.created)),
        ("state".to_owned(), state),
    ];
    items.extend(insights_item(&daemon, &job.id).await?);
    // A link, so that `grep -r` meets each log once.
    if log_item(&daemon, &job.id, &job.module, &job.event_id, job.attempt).await?.is_some() {
        let target = format!("attempts/{}/log", job.attempt);
        items.push(("log".to_owned(), ViewItem::Link(target, job.created)));
    }
    items.extend(waiting_item(&job));
    if !job.attempts.is_empty() {
        let created = job.created;
        let attempts = directory(daemon, created, move |daemon| {
            let items = attempts_of(&job).map(|(attempt, waits_since)| {
                (attempt.number.to_string(), attempt_folder(&daemon, &job, attempt, waits_since))
            });
            Box::pin(std::future::ready(Ok(items.collect())))
        });
        items.push(("attempts".to_owned(), attempts));
    }
    Ok(items)
}

/// Returns a file that says what a job that has not begun waits for.
fn waiting_item(job: &JobRecord) -> Option<(String, ViewItem)> {
    let since = job.due.saturating_sub(job.term);
    let mut waiting = json!({"waitsFor": waits_for(job)?, "since": since});
    if job.term > 0 {
        waiting["until"] = json!(job.due);
    }
    if let Some(obstacles) = &job.waits_for {
        waiting["open"] = json!(obstacles.open);
        waiting["dead"] = json!(obstacles.dead);
        waiting["jobs"] = json!(obstacles.named);
    }
    Some((WAITING.to_owned(), ViewItem::json(&waiting, since)))
}

/// Makes the folder of an attempt.
fn attempt_folder(
    daemon: &Arc<Daemon>,
    job: &Arc<JobRecord>,
    attempt: &Attempt,
    waits_since: Option<Millis>,
) -> ViewItem {
    let (job, attempt) = (job.clone(), Arc::new(attempt.clone()));
    directory(daemon.clone(), attempt.started, move |daemon| {
        let (job, attempt) = (job.clone(), attempt.clone());
        Box::pin(async move { list_attempt(&daemon, &job, &attempt, waits_since).await })
    })
}

/// Lists the folder of an attempt: what is known of it, its output, and what Ion refused and could
/// not read.
async fn list_attempt(
    daemon: &Daemon,
    job: &JobRecord,
    attempt: &Attempt,
    waits_since: Option<Millis>,
) -> ListResult {
    let changed = attempt.ended.unwrap_or(attempt.started);
    let ran = match &attempt.version {
        Some(version) => {
            let id = VersionRecord::id_of(&job.module, version);
            daemon.plane.documents.get_as::<VersionRecord>(Collection::Plane, &id).await?
        }
        None => None,
    };
    let shown = attempt_document(attempt, waits_since, ran.as_ref());
    let mut items = vec![("attempt.json".to_owned(), ViewItem::json(&shown, changed))];
    items.extend(ran.map(|ran| ("version.json".to_owned(), ViewItem::json(&ran, ran.first_seen))));
    items.extend(log_item(daemon, &job.id, &job.module, &job.event_id, attempt.number).await?);
    let refused = &attempt.rejected;
    if !refused.is_empty() {
        let files = refused
            .first
            .iter()
            .map(|file| (record_name(&file.name, &refused.first), ViewItem::json(file, file.at)));
        let mut files: DirectoryItems = files.collect();
        if refused.more > 0 {
            let more = format!("{} more were refused.", refused.more);
            add_more(&mut files, "the first refused files", &more);
        }
        items.push(("rejected".to_owned(), ViewItem::fixed(files)));
    }
    let unread = &attempt.failed_reads;
    if !unread.is_empty() {
        let reads = unread
            .first
            .iter()
            .enumerate()
            .map(|(n, read)| (format!("{n}.json"), ViewItem::json(read, read.at)));
        let mut reads: DirectoryItems = reads.collect();
        if unread.more > 0 {
            let more = format!("{} more reads failed.", unread.more);
            add_more(&mut reads, "the first failed reads", &more);
        }
        items.push(("failed-reads".to_owned(), ViewItem::fixed(reads)));
    }
    Ok(items)
}

/// Returns the name of the record of a refused file, as `events/rejected` of the job had it.
fn record_name(file: &str, refused: &[RefusedFile]) -> String {
    let name = name_of(file);
    let longer = format!("{file}.json");
    match file.ends_with(".json") || refused.iter().any(|other| other.name == longer) {
        true => name.into_owned(),
        false => format!("{name}.json"),
    }
}

/// Returns the document of an attempt, with what it ran and how long each of its steps took, in
/// milliseconds.
fn attempt_document(
    attempt: &Attempt,
    waits_since: Option<Millis>,
    ran: Option<&VersionRecord>,
) -> Value {
    let steps = attempt_steps(attempt, waits_since).into_iter();
    let known = steps.filter_map(|(step, took)| Some((step.to_owned(), json!(took?))));
    let mut shown = json!(attempt);
    if let Some(ran) = ran {
        shown["command"] = json!(ran.command_line());
    }
    shown["stepsMs"] = Value::Object(known.collect());
    shown
}
