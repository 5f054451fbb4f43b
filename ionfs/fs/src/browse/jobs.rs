//! Folders of links to jobs: of all modules by state, and of each module.

use std::sync::Arc;

use ion_model::id::short_id;
use ion_model::record::{JobState, shown_module};
use ion_model::version::VersionRecord;
use ion_plane::node::Node as Daemon;
use ion_stores::{Collection, FieldRange, Pages, Query, decode};
use serde_json::{Value, json};

use super::documents::{
    DirectoryItems, LISTED_MAX, ListedDocuments, TimedFolder, add_more, created_of, directory,
    read, text,
};
use super::names::{correlation_name, name_of, shell_word};
use super::time::time_name;
use super::unclaimed::QueuedFolder;
use crate::item::{ListResult, ViewItem};

/// A state by which jobs are shown to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ShownState {
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

/// The fields of a job that a listing needs.
const JOB_FIELDS: &[&str] =
    &["correlationId", "created", "due", "eventId", "eventType", "failures", "module", "state"];

impl ShownState {
    pub(super) const ALL: [Self; 7] = [
        Self::Waiting,
        Self::Queued,
        Self::Failed,
        Self::Running,
        Self::Succeeded,
        Self::Dead,
        Self::Cancelled,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Queued => "queued",
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

    fn shows(self, job: &Value) -> bool {
        let failures = job["failures"].as_u64().unwrap_or_default();
        match self {
            Self::Queued => failures == 0,
            Self::Failed => failures > 0,
            _ => true,
        }
    }
}

/// A folder of links to jobs in a state: of one module, or of all.
#[derive(Clone)]
pub(super) struct JobsFolder {
    pub(super) module: Option<String>,
    pub(super) state: ShownState,
}

impl JobsFolder {
    /// Makes the folder. The jobs that entered the state last come first; in `failed/`, those that
    /// are tried again last.
    pub(super) fn item(self, daemon: &Arc<Daemon>) -> ViewItem {
        match self.state {
            // The time by which running jobs are sorted changes with each renewal of their leases,
            // so no name could have it; but there are only as many as there are places.
            ShownState::Running => directory(daemon.clone(), 0, move |daemon| {
                Box::pin(self.clone().list_running(daemon))
            }),
            _ if self.is_by_day() => self.timed(daemon).by_days(),
            ShownState::Queued => {
                let module = self.module.clone();
                QueuedFolder { jobs: self.timed(daemon), module }.item()
            }
            _ => self.timed(daemon).item(),
        }
    }

    /// Returns whether the folder has a folder for each day: those of a module's jobs that may be
    /// very many, all but those that somebody has to look after.
    fn is_by_day(&self) -> bool {
        let is_by_day = matches!(
            self.state,
            ShownState::Failed | ShownState::Succeeded | ShownState::Cancelled
        );
        is_by_day && self.module.is_some()
    }

    fn timed(self, daemon: &Arc<Daemon>) -> TimedFolder {
        let query = self.query(self.state.job_states()[0]);
        let state = self.state.job_states()[0].as_str();
        let mut command = format!("ion job list --state {state}");
        if let Some(module) = &self.module {
            command.push_str(&format!(" --module {}", shell_word(module)));
        }
        let namer = move |job: &Value| self.state.shows(job).then(|| self.link(job));
        TimedFolder {
            daemon: daemon.clone(),
            query,
            field: "due",
            day: None,
            namer: Arc::new(namer),
            listed: ListedDocuments::All,
            command,
        }
    }

    fn query(&self, state: JobState) -> Query {
        let mut equals = vec![("state", json!(state))];
        equals.extend(self.module.as_ref().map(|module| ("module", json!(module))));
        Query::equal(Collection::Jobs, equals).only(JOB_FIELDS)
    }

    async fn list_running(self, daemon: Arc<Daemon>) -> ListResult {
        let mut items = DirectoryItems::new();
        let mut is_cut = false;
        for state in self.state.job_states() {
            let pages = Pages::new(self.query(*state).descending(), "due");
            let left = LISTED_MAX.saturating_sub(items.len());
            let jobs = read(&daemon, pages, left, |job| Ok(Some(job))).await?;
            items.extend(jobs.documents.iter().map(|job| {
                let (rest, link) = self.link(job);
                (format!("{}-{rest}", time_name(created_of(job))), link)
            }));
            is_cut |= jobs.is_cut;
        }
        if is_cut {
            let how = "`ion job list --state running` lists all.";
            add_more(&mut items, "the first jobs", how);
        }
        Ok(items)
    }

    /// Returns the name of a job without its time, and the link to it.
    fn link(&self, job: &Value) -> (String, ViewItem) {
        let (module, id) = (text(job, "module"), short_id(text(job, "id")));
        let (correlation, event) = (text(job, "correlationId"), text(job, "eventId"));
        let (name, up) = match self.module {
            Some(_) if self.is_by_day() => (text(job, "eventType"), "../../../.."),
            Some(_) => (text(job, "eventType"), "../../.."),
            None => (module, ".."),
        };
        let target = format!(
            "{up}/correlations/{}/{}/jobs/{module}",
            correlation_name(correlation),
            name_of(event)
        );
        let entered = job["due"].as_i64().unwrap_or_default();
        (format!("{}-{id}", name_of(name)), ViewItem::Link(target, entered))
    }
}

/// Lists the registered modules, each with the item that `item_of` makes of its document.
pub(super) async fn list_modules(
    daemon: Arc<Daemon>,
    item_of: impl Fn(&Arc<Daemon>, &Value) -> ViewItem,
) -> ListResult {
    let mut pages = Pages::by_id(Query::all(Collection::Modules));
    let mut items = DirectoryItems::new();
    while let Some(page) = pages.next(&*daemon.plane.documents).await? {
        let named = page.iter().filter_map(|module| Some((module["id"].as_str()?, module)));
        items.extend(named.map(|(name, module)| (name.to_owned(), item_of(&daemon, module))));
    }
    Ok(items)
}

/// Lists the versions that attempts of a module have run.
async fn list_versions(daemon: &Daemon, module: &str) -> ListResult {
    let prefix = FieldRange::prefix("id", &VersionRecord::id_prefix(module));
    let pages = Pages::by_id(Query::all(Collection::Plane).within(prefix));
    let versions = read(daemon, pages, LISTED_MAX, |document| {
        decode::<VersionRecord>(Collection::Plane, document).map(Some)
    });
    let versions = versions.await?;
    let item = |version: &VersionRecord| {
        (format!("{}.json", version.version), ViewItem::json(version, version.first_seen))
    };
    let mut items: DirectoryItems = versions.documents.iter().map(item).collect();
    if versions.is_cut {
        let how = format!("`ion module get {module} --versions` prints all.");
        add_more(&mut items, "the first versions", &how);
    }
    Ok(items)
}

/// Makes `modules/<name>/`. The module may be registered anew at any time.
pub(super) fn module_item(daemon: &Arc<Daemon>, module: &Value) -> ViewItem {
    let module = module.clone();
    directory(daemon.clone(), 0, move |daemon| {
        Box::pin(std::future::ready(Ok(module_items(&daemon, &module))))
    })
}

fn module_items(daemon: &Arc<Daemon>, module: &Value) -> DirectoryItems {
    let shown = ViewItem::json(&shown_module(module.clone()), 0);
    let mut items = vec![("module.json".to_owned(), shown)];
    for state in ShownState::ALL {
        let folder = JobsFolder { module: Some(text(module, "id").to_owned()), state };
        items.push((state.as_str().to_owned(), folder.item(daemon)));
    }
    let name = text(module, "id").to_owned();
    let versions = directory(daemon.clone(), 0, move |daemon| {
        let name = name.clone();
        Box::pin(async move { list_versions(&daemon, &name).await })
    });
    items.push(("versions".to_owned(), versions));
    items
}
