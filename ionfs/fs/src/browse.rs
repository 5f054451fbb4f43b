//! The browsing mount: the whole plane as a read-only tree. Each directory is listed when it is
//! accessed.
//!
//! # How it works
//! A listing has the newest documents, at most [`SHOWN_MAX`]. Where there are more, a file
//! [`MORE`] says how to see the rest. Correlations and events are also found by their ids and the
//! beginnings of ids, listed or not, and links lead to events by their ids. So no listing reads
//! more than it shows.

use std::collections::HashSet;
use std::sync::Arc;

use ion_model::clock::{self, Millis};
use ion_model::event::{DocumentType, Event, is_event, is_staged};
use ion_model::record::{JobRecord, JobState};
use ion_plane::node::Node as Daemon;
use ion_stores::{Collection, FieldRange, Pages, Query, StoreError, decode};
use serde_json::{Value, json};

use super::lineage::{directory_name, event_items, insights_item, log_item};
use super::reads::ReadLog;
use super::view::{FindResult, ListResult, View, ViewItem};
use super::{CURRENT, Tree};

/// The most names of one listing. People cannot look at more, and each name takes memory.
const SHOWN_MAX: usize = 10_000;

/// The most names of `recent/`.
const RECENT_MAX: usize = 1000;

/// The fewest characters of the beginning of an id that stands for an event. Shorter ones would make
/// each mistyped name a search through many ids.
const ID_BEGINNING_MIN: usize = 4;

/// The file that says that a folder does not list all.
const MORE: &str = "MORE";

/// Makes the tree of a whole plane.
pub fn tree(daemon: Arc<Daemon>) -> Arc<Tree> {
    let part = |list: Lister| {
        let daemon = daemon.clone();
        directory(daemon, list)
    };
    let jobs_of = |state: ShownState| {
        let place = JobsPlace { module: None, state };
        directory(daemon.clone(), move |daemon| Box::pin(place.clone().list(daemon)))
    };
    let (listed, found) = (daemon.clone(), daemon.clone());
    let correlations = ViewItem::searchable(
        CURRENT,
        0,
        move || correlations(listed.clone()),
        move |name| find_correlation(found.clone(), name),
    );
    let root = ViewItem::fixed([
        ("correlations".to_owned(), correlations),
        ("dead".to_owned(), jobs_of(ShownState::Dead)),
        ("failed".to_owned(), jobs_of(ShownState::Failed)),
        ("modules".to_owned(), part(|daemon| Box::pin(modules(daemon)))),
        ("queued".to_owned(), jobs_of(ShownState::Queued)),
        ("recent".to_owned(), part(|daemon| Box::pin(recent(daemon)))),
        ("running".to_owned(), jobs_of(ShownState::Running)),
        ("types".to_owned(), part(|daemon| Box::pin(types(daemon)))),
    ]);
    Tree::new(daemon, View::new(root, ReadLog::default()), None, ReadLog::default())
}

type DirectoryItems = Vec<(String, ViewItem)>;
type BrowseResult<T> = std::result::Result<T, StoreError>;
type ListFuture = std::pin::Pin<Box<dyn Future<Output = ListResult> + Send>>;
type Lister = fn(Arc<Daemon>) -> ListFuture;

fn directory(
    daemon: Arc<Daemon>,
    list: impl Fn(Arc<Daemon>) -> ListFuture + Send + Sync + 'static,
) -> ViewItem {
    ViewItem::lazy(CURRENT, move || list(daemon.clone()))
}

/// Adds the file that says that there are more names, and how to see them.
fn add_more(items: &mut DirectoryItems, shown: &str, how: &str) {
    let text = format!("This folder has {shown} only. See all of it with\n    {how}\n");
    items.push((MORE.to_owned(), ViewItem::Text(text.into(), 0)));
}

/// Documents of a listing, and whether there are more.
struct ShownDocuments<T> {
    documents: Vec<T>,
    is_cut: bool,
}

/// Reads the first documents that a query finds in the order of a field, at most `limit`.
async fn read<T>(
    daemon: &Daemon,
    query: Query,
    by: &'static str,
    limit: usize,
    read: impl Fn(Value) -> BrowseResult<Option<T>>,
) -> BrowseResult<ShownDocuments<T>> {
    let mut pages = Pages::new(query, by);
    let mut documents = Vec::new();
    while let Some(page) = pages.next(&*daemon.plane.documents).await? {
        for document in page {
            let Some(found) = read(document)? else { continue };
            if documents.len() == limit {
                return Ok(ShownDocuments { documents, is_cut: true });
            }
            documents.push(found);
        }
    }
    Ok(ShownDocuments { documents, is_cut: false })
}

/// Reads an event; none if people may not see it, or if the document is no event.
fn read_event(document: Value) -> BrowseResult<Option<Event>> {
    let is_visible = is_event(&document) && !is_staged(&document);
    is_visible.then(|| decode(Collection::Events, document)).transpose()
}

fn read_job(document: Value) -> BrowseResult<Option<JobRecord>> {
    decode(Collection::Jobs, document).map(Some)
}

fn events_query(mut equals: Vec<(&'static str, Value)>) -> Query {
    equals.push(("context.documentType", json!(DocumentType::EventMeta)));
    Query::equal(Collection::Events, equals)
}

/// Returns a time as a part of a name: `2026-05-01T08:30:00`. Names sort by it.
fn time_name(at: Millis) -> String {
    let time = humantime::format_rfc3339_seconds(clock::system_time(at)).to_string();
    time.trim_end_matches('Z').to_owned()
}

/// A correlation, as a listing shows it: its id, and the type and the time of its first event.
struct ListedCorrelation {
    correlation: String,
    event_type: String,
    created: Millis,
}

/// Returns the first events of the newest correlations.
async fn first_events(
    daemon: &Daemon,
    limit: usize,
) -> BrowseResult<ShownDocuments<ListedCorrelation>> {
    // An event of an older Ion has no depth, like a first event, but the job that committed it.
    let query = events_query(vec![("depth", Value::Null)]).descending();
    let query = query.only(&[
        "context.correlationId",
        "context.documentType",
        "created",
        "jobId",
        "publication",
        "type",
    ]);
    let seen = std::sync::Mutex::new(HashSet::new());
    read(daemon, query, "created", limit, |document| {
        let is_shown = document["jobId"].is_null() && !is_staged(&document);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let correlation = text(&document["context"]["correlationId"]);
        let mut seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_new = is_shown && seen.insert(correlation.clone());
        Ok(is_new.then(|| ListedCorrelation {
            correlation,
            event_type: text(&document["type"]),
            created: document["created"].as_i64().unwrap_or_default(),
        }))
    })
    .await
}

/// Lists `correlations/`: the newest ones.
async fn correlations(daemon: Arc<Daemon>) -> ListResult {
    let first = first_events(&daemon, SHOWN_MAX).await?;
    let item = |first: ListedCorrelation| {
        let item = correlation_item(&daemon, &first.correlation, first.created);
        (first.correlation, item)
    };
    let mut items: DirectoryItems = first.documents.into_iter().map(item).collect();
    if first.is_cut {
        let shown = format!("the newest {SHOWN_MAX} correlations");
        add_more(&mut items, &shown, "ion event list --type TYPE, or open an id by its name");
    }
    Ok(items)
}

/// Lists `recent/`: links to the newest correlations.
async fn recent(daemon: Arc<Daemon>) -> ListResult {
    let first = first_events(&daemon, RECENT_MAX).await?;
    let link = |first: ListedCorrelation| {
        let short = first.correlation.get(..8).unwrap_or(&first.correlation);
        let name = format!("{}-{}-{short}", time_name(first.created), first.event_type);
        (name, ViewItem::Link(format!("../correlations/{}", first.correlation)))
    };
    Ok(first.documents.into_iter().map(link).collect())
}

/// Returns the correlation whose id this is, or the only one whose id begins so.
async fn find_correlation(daemon: Arc<Daemon>, name: String) -> FindResult {
    let documents = &daemon.plane.documents;
    let Some((first, last)) = documents.correlations_beginning_with(&name).await? else {
        return Ok(None);
    };
    if first != name && first != last {
        return Ok(None);
    }
    let earliest = events_query(vec![("context.correlationId", json!(first))]).order_by("created");
    let earliest = earliest.only(&["created"]).limit(1);
    let found = documents.find(earliest).await?;
    let created = found.first().and_then(|event| event["created"].as_i64()).unwrap_or_default();
    Ok(Some(correlation_item(&daemon, &first, created)))
}

fn correlation_item(daemon: &Arc<Daemon>, id: &str, created: Millis) -> ViewItem {
    let (listed, found) = (daemon.clone(), daemon.clone());
    let (listed_id, found_id) = (id.to_owned(), id.to_owned());
    ViewItem::searchable(
        CURRENT,
        created,
        move || correlation(listed.clone(), listed_id.clone()),
        move |name| find_event(found.clone(), found_id.clone(), name),
    )
}

/// Lists `correlations/<id>/`: its first events.
async fn correlation(daemon: Arc<Daemon>, id: String) -> ListResult {
    let query = events_query(vec![("context.correlationId", json!(id))]);
    let events = read(&daemon, query, "created", SHOWN_MAX, read_event).await?;
    let item = |(n, event): (usize, Event)| (directory_name(n, &event), event_item(&daemon, event));
    let mut items: DirectoryItems = events.documents.into_iter().enumerate().map(item).collect();
    if events.is_cut {
        let shown = format!("the first {SHOWN_MAX} events of the correlation");
        let how = format!("ion event list --correlation {id}, or open an event's id by its name");
        add_more(&mut items, &shown, &how);
    }
    Ok(items)
}

/// Returns the event of a correlation whose id this is, or the only one whose id begins so.
async fn find_event(daemon: Arc<Daemon>, correlation: String, name: String) -> FindResult {
    if name.len() < ID_BEGINNING_MIN {
        return Ok(None);
    }
    let query = Query::all(Collection::Events)
        .within(FieldRange::prefix("id", &name))
        .only(&["context.documentType", "context.correlationId"]);
    let mut pages = Pages::by_id(query);
    let mut found: Option<String> = None;
    while let Some(page) = pages.next(&*daemon.plane.documents).await? {
        let of_correlation = page.iter().filter(|document| {
            document["context"]["correlationId"] == correlation.as_str() && is_event(document)
        });
        for id in of_correlation.filter_map(|document| document["id"].as_str()) {
            if found.is_some() && found.as_deref() != Some(name.as_str()) {
                return Ok(None);
            }
            found.get_or_insert_with(|| id.to_owned());
        }
        if found.as_deref() == Some(name.as_str()) {
            break;
        }
    }
    let Some(id) = found else { return Ok(None) };
    let event = daemon.plane.documents.get(Collection::Events, &id).await?;
    let event = event.map(read_event).transpose()?.flatten();
    Ok(event.map(|event| event_item(&daemon, event)))
}

/// Makes `correlations/<id>/<n>-<type>-<id8>/`.
fn event_item(daemon: &Arc<Daemon>, event: Event) -> ViewItem {
    let event = Arc::new(event);
    directory(daemon.clone(), move |daemon| Box::pin(event_directory(daemon, event.clone())))
}

/// Lists `correlations/<id>/<n>-<type>-<id8>/`.
async fn event_directory(daemon: Arc<Daemon>, event: Arc<Event>) -> ListResult {
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
                let query = Query::equal(Collection::Jobs, vec![("eventId", json!(id))]);
                let jobs = read(&daemon, query, "created", SHOWN_MAX, read_job).await?;
                let item =
                    |job: JobRecord| (job.module.clone(), job_directory(daemon.clone(), job));
                Ok(jobs.documents.into_iter().map(item).collect())
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
async fn modules(daemon: Arc<Daemon>) -> ListResult {
    let modules = daemon.plane.documents.find(Query::all(Collection::Modules)).await?;
    let item = |module: Value| {
        let name = module.get("id")?.as_str()?.to_owned();
        let mut items = vec![("module.json".to_owned(), ViewItem::json(&module, 0))];
        for state in ShownState::ALL {
            let place = JobsPlace { module: Some(name.clone()), state };
            let item =
                directory(daemon.clone(), move |daemon| Box::pin(place.clone().list(daemon)));
            items.push((state.as_str().to_owned(), item));
        }
        Some((name, ViewItem::fixed(items)))
    };
    Ok(modules.into_iter().filter_map(item).collect())
}

/// A state by which jobs are shown to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ShownState {
    Waiting,
    /// Queued, and no attempt has failed yet.
    Queued,
    /// Queued again after a failed attempt.
    Failed,
    /// To a person who looks, a job that starts is running.
    Running,
    Succeeded,
    Dead,
    Cancelled,
}

impl ShownState {
    const ALL: [Self; 7] = [
        Self::Waiting,
        Self::Queued,
        Self::Failed,
        Self::Running,
        Self::Succeeded,
        Self::Dead,
        Self::Cancelled,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            state => state.job_states()[0].as_str(),
        }
    }

    fn job_states(self) -> &'static [JobState] {
        match self {
            Self::Waiting => &[JobState::Waiting],
            Self::Queued | Self::Failed => &[JobState::Queued],
            Self::Running => &[JobState::Running, JobState::Starting],
            Self::Succeeded => &[JobState::Succeeded],
            Self::Dead => &[JobState::Dead],
            Self::Cancelled => &[JobState::Cancelled],
        }
    }

    fn shows(self, job: &JobRecord) -> bool {
        match self {
            Self::Queued => job.failures == 0,
            Self::Failed => job.failures > 0,
            _ => true,
        }
    }
}

/// A folder of links to jobs: of one module, or of all.
#[derive(Clone, Debug)]
struct JobsPlace {
    module: Option<String>,
    state: ShownState,
}

impl JobsPlace {
    /// Lists the links, those of the jobs that entered the state last.
    async fn list(self, daemon: Arc<Daemon>) -> ListResult {
        let mut items = DirectoryItems::new();
        let mut is_cut = false;
        for state in self.state.job_states() {
            let mut equals = vec![("state", json!(state))];
            equals.extend(self.module.as_ref().map(|module| ("module", json!(module))));
            let query = Query::equal(Collection::Jobs, equals).descending();
            let shown = self.state;
            let jobs = read(&daemon, query, "due", SHOWN_MAX - items.len(), |document| {
                Ok(read_job(document)?.filter(|job| shown.shows(job)))
            });
            let jobs = jobs.await?;
            is_cut |= jobs.is_cut;
            items.extend(jobs.documents.iter().map(|job| self.link(job)));
        }
        if is_cut {
            let shown = format!("the newest {SHOWN_MAX} jobs");
            let module = self.module.iter().map(|module| format!(" --module {module}"));
            let state = self.state.job_states()[0].as_str();
            let how = format!("ion job list --state {state}{}", module.collect::<String>());
            add_more(&mut items, &shown, &how);
        }
        Ok(items)
    }

    fn link(&self, job: &JobRecord) -> (String, ViewItem) {
        let (correlation, event, module) = (&job.correlation_id, &job.event_id, &job.module);
        let (name, up) = match self.module {
            Some(_) => (format!("{}-{}", job.event_type, job.id.short()), "../../.."),
            None => (format!("{}-{module}-{}", time_name(job.created), job.id.short()), ".."),
        };
        (name, ViewItem::Link(format!("{up}/correlations/{correlation}/{event}/jobs/{module}")))
    }
}

/// Lists `types/`.
async fn types(daemon: Arc<Daemon>) -> ListResult {
    let mut items = DirectoryItems::new();
    let mut last = String::new();
    // Each type is the first one in the index after the type before it.
    while items.len() < SHOWN_MAX {
        let after = FieldRange::at_least("type", json!(format!("{last}\0")));
        let query = Query::all(Collection::Events).within(after).order_by("type");
        let found = daemon.plane.documents.find(query.only(&["type"]).limit(1)).await?;
        let Some(name) = found.first().and_then(|event| event["type"].as_str()) else { break };
        last = name.to_owned();
        let item = directory(daemon.clone(), {
            let name = last.clone();
            move |daemon| Box::pin(events_of_type(daemon, name.clone()))
        });
        items.push((last.clone(), item));
    }
    Ok(items)
}

/// Lists `types/<type>/`: links to the newest events.
async fn events_of_type(daemon: Arc<Daemon>, event_type: String) -> ListResult {
    let query = events_query(vec![("type", json!(event_type))]).descending();
    let events = read(&daemon, query, "created", SHOWN_MAX, read_event).await?;
    let link = |event: &Event| {
        let correlation = &event.context.correlation_id;
        (
            format!("{}-{event_type}-{}", correlation.short(), event.id.short()),
            ViewItem::Link(format!("../../correlations/{correlation}/{}", event.id)),
        )
    };
    let mut items: DirectoryItems = events.documents.iter().map(link).collect();
    if events.is_cut {
        let shown = format!("the newest {SHOWN_MAX} events of the type");
        add_more(&mut items, &shown, &format!("ion event list --type {event_type}"));
    }
    Ok(items)
}
