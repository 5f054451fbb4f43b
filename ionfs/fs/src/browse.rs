//! The browsing mount: the whole plane as a read-only tree. Each directory is listed when it is
//! accessed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ion_model::event::{DocumentType, Event, PublicationState};
use ion_model::record::{JobRecord, JobState};
use ion_plane::node::Node as Daemon;
use ion_stores::{Collection, Query, StoreError};
use serde_json::{Value, json};

use super::lineage::{directory_name, event_items, insights_item, log_item};
use super::reads::ReadLog;
use super::view::{View, ViewItem};
use super::{CURRENT, Tree};

/// The most events, jobs or modules that one listing reads; the listings of correlations and types
/// come from those events. People cannot look at more.
const SHOWN_MAX: usize = 10_000;

/// Makes the tree of a whole plane.
pub fn tree(daemon: Arc<Daemon>) -> Arc<Tree> {
    let part = |list: Lister| {
        let daemon = daemon.clone();
        directory(daemon, list)
    };
    let root = ViewItem::fixed([
        ("correlations".to_owned(), part(|daemon| Box::pin(correlations(daemon)))),
        ("modules".to_owned(), part(|daemon| Box::pin(modules(daemon)))),
        ("types".to_owned(), part(|daemon| Box::pin(types(daemon)))),
    ]);
    Tree::new(daemon, View::new(root, ReadLog::default()), None, ReadLog::default())
}

type DirectoryItems = Vec<(String, ViewItem)>;
type BrowseResult<T> = std::result::Result<T, StoreError>;
type ListFuture = std::pin::Pin<Box<dyn Future<Output = BrowseResult<DirectoryItems>> + Send>>;
type Lister = fn(Arc<Daemon>) -> ListFuture;

fn directory(
    daemon: Arc<Daemon>,
    list: impl Fn(Arc<Daemon>) -> ListFuture + Send + Sync + 'static,
) -> ViewItem {
    ViewItem::lazy(CURRENT, move || list(daemon.clone()))
}

/// Returns the visible events that match, oldest first.
async fn events(
    daemon: &Daemon,
    mut equals: Vec<(&'static str, Value)>,
) -> BrowseResult<Vec<Event>> {
    equals.push(("context.documentType", json!(DocumentType::EventMeta)));
    let query = Query::equal(Collection::Events, equals).order_by("created").limit(SHOWN_MAX);
    let mut events: Vec<Event> = daemon.plane.documents.find_as(query).await?;
    events.retain(|event| event.publication != PublicationState::Staged);
    Ok(events)
}

async fn jobs(daemon: &Daemon, equals: Vec<(&'static str, Value)>) -> BrowseResult<Vec<JobRecord>> {
    let query = Query::equal(Collection::Jobs, equals).order_by("created").limit(SHOWN_MAX);
    daemon.plane.documents.find_as(query).await
}

/// Lists `correlations/`.
async fn correlations(daemon: Arc<Daemon>) -> BrowseResult<DirectoryItems> {
    let mut ids: Vec<String> = events(&daemon, vec![])
        .await?
        .iter()
        .map(|event| event.context.correlation_id.to_string())
        .collect();
    ids.sort_unstable();
    ids.dedup();
    Ok(ids
        .into_iter()
        .map(|id| {
            let item = directory(daemon.clone(), {
                let id = id.clone();
                move |daemon| Box::pin(correlation(daemon, id.clone()))
            });
            (id, item)
        })
        .collect())
}

/// Lists `correlations/<id>/`.
async fn correlation(daemon: Arc<Daemon>, id: String) -> BrowseResult<DirectoryItems> {
    let events = events(&daemon, vec![("context.correlationId", json!(id))]).await?;
    Ok(events
        .into_iter()
        .enumerate()
        .map(|(n, event)| {
            let name = directory_name(n, &event);
            let event = Arc::new(event);
            (
                name,
                directory(daemon.clone(), move |daemon| {
                    Box::pin(event_directory(daemon, event.clone()))
                }),
            )
        })
        .collect())
}

/// Lists `correlations/<id>/<n>-<type>-<id8>/`.
async fn event_directory(daemon: Arc<Daemon>, event: Arc<Event>) -> BrowseResult<DirectoryItems> {
    let mut items = event_items(&daemon, &event).await?;
    // The log of the job that committed the event is shown with that job, under the job's own
    // event.
    items.retain(|(name, _)| name != "log");
    let id = event.id.clone();
    items.push((
        "jobs".into(),
        directory(daemon, move |daemon| {
            let id = id.clone();
            Box::pin(async move {
                let jobs = jobs(&daemon, vec![("eventId", json!(id))]).await?;
                Ok(jobs
                    .into_iter()
                    .map(|job| (job.module.clone(), job_directory(daemon.clone(), job)))
                    .collect())
            })
        }),
    ));
    Ok(items)
}

/// Makes `jobs/<module>/`.
fn job_directory(daemon: Arc<Daemon>, job: JobRecord) -> ViewItem {
    let job = Arc::new(job);
    directory(daemon, move |daemon| {
        let job = job.clone();
        Box::pin(async move {
            let mut items = vec![("job.json".to_owned(), ViewItem::json(&*job, job.created))];
            items.extend(insights_item(&daemon, &job.id).await?);
            items
                .extend(log_item(&daemon, &job.id, &job.module, &job.event_id, job.attempt).await?);
            Ok(items)
        })
    })
}

/// Lists `modules/`.
async fn modules(daemon: Arc<Daemon>) -> BrowseResult<DirectoryItems> {
    let query = Query::equal(Collection::Modules, vec![]).limit(SHOWN_MAX);
    let modules = daemon.plane.documents.find(query).await?;
    Ok(modules
        .into_iter()
        .filter_map(|module| {
            let name = module.get("id")?.as_str()?.to_owned();
            let mut items = vec![("module.json".to_owned(), ViewItem::json(&module, 0))];
            for state in [
                JobState::Waiting,
                JobState::Queued,
                JobState::Running,
                JobState::Succeeded,
                JobState::Dead,
                JobState::Cancelled,
            ] {
                let name = name.clone();
                items.push((
                    state.as_str().to_owned(),
                    directory(daemon.clone(), move |daemon| {
                        Box::pin(jobs_in_state(daemon, name.clone(), state))
                    }),
                ));
            }
            // Jobs that failed and are to be retried.
            items.push((
                "failed".to_owned(),
                directory(daemon.clone(), {
                    let name = name.clone();
                    move |daemon| Box::pin(failed_jobs(daemon, name.clone()))
                }),
            ));
            Some((name, ViewItem::fixed(items)))
        })
        .collect())
}

async fn jobs_in_state(
    daemon: Arc<Daemon>,
    module: String,
    state: JobState,
) -> BrowseResult<DirectoryItems> {
    let mut found = jobs(&daemon, vec![("module", json!(module)), ("state", json!(state))]).await?;
    if state == JobState::Running {
        // To a person who looks, a job that starts is running.
        found.extend(
            jobs(&daemon, vec![("module", json!(module)), ("state", json!(JobState::Starting))])
                .await?,
        );
    }
    if state == JobState::Queued {
        found.retain(|job| job.failures == 0);
    }
    links_to_jobs(&daemon, found).await
}

async fn failed_jobs(daemon: Arc<Daemon>, module: String) -> BrowseResult<DirectoryItems> {
    let mut found =
        jobs(&daemon, vec![("module", json!(module)), ("state", json!(JobState::Queued))]).await?;
    found.retain(|job| job.failures > 0);
    links_to_jobs(&daemon, found).await
}

/// The directory names of each correlation's events, read once for each correlation.
#[derive(Default)]
struct EventDirectoryNames(HashMap<String, HashMap<String, String>>);

impl EventDirectoryNames {
    async fn find_name(
        &mut self,
        daemon: &Daemon,
        correlation: &str,
        event: &str,
    ) -> BrowseResult<Option<String>> {
        if !self.0.contains_key(correlation) {
            let events =
                events(daemon, vec![("context.correlationId", json!(correlation))]).await?;
            let names = events
                .iter()
                .enumerate()
                .map(|(n, event)| (event.id.to_string(), directory_name(n, event)));
            self.0.insert(correlation.to_owned(), names.collect());
        }
        Ok(self.0[correlation].get(event).cloned())
    }
}

async fn links_to_jobs(daemon: &Daemon, jobs: Vec<JobRecord>) -> BrowseResult<DirectoryItems> {
    let mut names = EventDirectoryNames::default();
    let mut items = Vec::new();
    for job in jobs {
        let correlation = job.correlation_id.as_str();
        if let Some(event) = names.find_name(daemon, correlation, job.event_id.as_str()).await? {
            let target = format!("../../../correlations/{correlation}/{event}/jobs/{}", job.module);
            items.push((format!("{}-{}", job.event_type, job.id.short()), ViewItem::Link(target)));
        }
    }
    Ok(items)
}

/// Lists `types/`.
async fn types(daemon: Arc<Daemon>) -> BrowseResult<DirectoryItems> {
    let mut by_type: BTreeMap<String, ()> = BTreeMap::new();
    for event in events(&daemon, vec![]).await? {
        by_type.insert(event.event_type, ());
    }
    Ok(by_type
        .into_keys()
        .map(|name| {
            let item = directory(daemon.clone(), {
                let name = name.clone();
                move |daemon| Box::pin(events_of_type(daemon, name.clone()))
            });
            (name, item)
        })
        .collect())
}

async fn events_of_type(daemon: Arc<Daemon>, event_type: String) -> BrowseResult<DirectoryItems> {
    let mut names = EventDirectoryNames::default();
    let mut items = Vec::new();
    for event in events(&daemon, vec![("type", json!(event_type))]).await? {
        let correlation = event.context.correlation_id.as_str();
        if let Some(name) = names.find_name(&daemon, correlation, event.id.as_str()).await? {
            items.push((
                format!("{}-{name}", event.context.correlation_id.short()),
                ViewItem::Link(format!("../../correlations/{correlation}/{name}")),
            ));
        }
    }
    Ok(items)
}
