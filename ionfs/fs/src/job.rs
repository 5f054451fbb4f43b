//! The tree a module sees: `in/`, `out/` and `events/` of one attempt (DESIGN.md section 2).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ion_model::errors::is_no_room;
use ion_model::event::{Event, event_json};
use ion_model::id::JobId;
use ion_model::limits::Limits;
use ion_model::record::{FailedRead, FailedReads};
use ion_model::source::{LeftState, StateFiles};
use ion_model::usage::AttemptUsage;
use ion_plane::address::{FileUrls, addresses};
use ion_plane::commit::{Committer, Origin, Receipt, Rejection, TooDeep};
use ion_plane::gathered::GatheredEvents;
use ion_plane::node::{Node as Daemon, job_dir};
use ion_stores::StoreError;
use ion_system::beneath::Folder;
use rustix::fs::Mode;
use serde::{Deserialize, Serialize};

use super::gathered::{FilesInput, few_events, listed_events};
use super::item::{ViewItem, files_tree};
use super::output::{OpenState, Output, OutputSpec, STATE_NAME};
pub use super::output::{TreeUsers, ValueFileNames};
use super::reads::{ReadLog, failed_listing};
use super::records::records_item;
use super::view::View;
use super::{FOREVER, Tree, lineage};

/// Why a job's tree could not be made.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A document or a list of files could not be read.
    #[error("the event's files cannot be read")]
    Store(#[from] StoreError),
    /// The staging folder could not be made.
    #[error("the staging folder {path:?} cannot be made")]
    Staging {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    /// Returns whether this machine had no room for one more tree.
    pub fn is_no_room(&self) -> bool {
        matches!(self, Self::Staging { source, .. } if is_no_room(source))
    }

    /// Returns the error as a failed read of the job, if the job's input could not be listed.
    pub fn failed_reads(&self) -> FailedReads {
        match self {
            Self::Store(error) => failed_listing(error),
            Self::Staging { .. } => FailedReads::default(),
        }
    }
}

/// What a job's tree is made from.
#[derive(Clone, Debug)]
pub struct JobSpec {
    /// The attempt that commits.
    pub origin: Origin,
    /// The event that the job works on.
    pub event: Event,
    /// The gathered events of a gathering job, in order; none for other jobs.
    pub gathered: Option<GatheredEvents>,
    /// Which conventions of older Ion its tree follows.
    pub older: OlderConventions,
    /// Which users the tree is for.
    pub users: TreeUsers,
}

/// Which conventions of older Ion a job's tree follows: none unless its module asks for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OlderConventions {
    /// The names of the files that hold values: modules of older Ion's second generation also use
    /// `meta.json`.
    pub names: ValueFileNames,
    /// Which addresses of its files are added to the event's values: none, `ion://` names or signed
    /// URLs.
    pub urls: FileUrls,
}

/// The outcome of what a job did in its tree.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TreeOutcome {
    /// The events that were committed (or staged, for on-success).
    pub receipts: Vec<Receipt>,
    /// The event files that were refused and not committed since. A job with any of them fails.
    pub rejections: Vec<Rejection>,
    /// The staging limit that the job exceeded, in words. A job that exceeds one fails.
    pub exceeded: Option<String>,
    /// Why the job has failed, as its module wrote it into `out/failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// What this machine had no room for, in words. If the job failed, this was not its module's
    /// fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_room: Option<String>,
    /// The job's reads that Ion could not answer. A job with any of them fails.
    #[serde(default, skip_serializing_if = "FailedReads::is_empty")]
    pub failed_reads: FailedReads,
    /// What a run of a source left in `out/state`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<Box<LeftState>>,
    /// Why what it left cannot be kept, in words. A run fails by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_problem: Option<String>,
    /// The bytes that were fetched and stored for the job. A tree knows nothing of processes.
    #[serde(default, skip_serializing_if = "AttemptUsage::is_empty")]
    pub usage: AttemptUsage,
}

impl TreeOutcome {
    /// Shortens each list to at most `most` entries, for a document: a store limits a document's
    /// length, and a job may publish without end. Whether anything was committed or refused stays
    /// the same if `most` is not 0.
    #[must_use]
    pub fn shortened(mut self, most: usize) -> Self {
        self.receipts.truncate(most);
        self.rejections.truncate(most);
        self.failed_reads = self.failed_reads.shortened(most);
        self
    }
}

/// One attempt's tree and its staging folder.
#[derive(Debug)]
pub struct JobTree {
    tree: Arc<Tree>,
    output: Arc<Output>,
    directory: PathBuf,
    reads: ReadLog,
}

impl JobTree {
    /// Makes the tree of an attempt. Reads the event's list of files but none of their bytes.
    pub async fn open(
        daemon: &Arc<Daemon>,
        spec: JobSpec,
        limits: Limits,
    ) -> Result<Self, OpenError> {
        let home = &daemon.settings.home;
        let directory = job_dir(home, &spec.origin.job_id, spec.origin.attempt).join("stage");
        let staging = |source| OpenError::Staging { path: directory.clone(), source };
        // An earlier try of this attempt, or a daemon that died during it, may have left the
        // folder. What was committed from it is in the stores; the new tree begins empty.
        match remove_folder(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(staging(error)),
            _ => {}
        }
        if spec.users == TreeUsers::AnyUser {
            make_private(&job_dir(home, &spec.origin.job_id, spec.origin.attempt))
                .map_err(staging)?;
        }
        let deadline = daemon.settings.commit_deadline;
        let depth = TooDeep::check(spec.event.child_depth(), limits.lineage_depth);
        let committer = Committer::new(daemon.plane.clone(), spec.origin.clone(), depth, deadline);
        let reads = ReadLog::default();
        let (names, users) = (spec.older.names, spec.users);
        let state = open_state(daemon, &spec.event).await?;
        let mut input = input_items(daemon, &spec).await?;
        if let Some(OpenState { files, directories }) = &state {
            input.push((STATE_NAME.to_owned(), files_tree(files, directories)));
        }
        let output = OutputSpec { committer, limits, names, users, state, directory: &directory };
        let output = Output::new(daemon.clone(), output, reads.clone()).map_err(staging)?;
        let events =
            events_item(daemon.clone(), output.clone(), reads.clone(), Arc::new(spec.event));
        let root = ViewItem::fixed([
            ("in".to_owned(), ViewItem::fixed(input)),
            ("events".to_owned(), events),
        ]);
        let view = match spec.users {
            TreeUsers::Owner => View::new(root, reads.clone()),
            TreeUsers::AnyUser => View::for_any_user(root, reads.clone()),
        };
        let tree = Tree::new(daemon.clone(), view, Some(output.clone()), reads.clone());
        Ok(Self { tree, output, directory, reads })
    }

    /// Returns the filesystem to mount.
    pub fn tree(&self) -> Arc<Tree> {
        self.tree.clone()
    }

    /// Returns the folder where what the module writes is staged.
    pub fn staging(&self) -> &Path {
        &self.directory
    }

    /// Returns the limits on what the job may use.
    pub fn limits(&self) -> Limits {
        *self.output.limits()
    }

    /// Ends the waits of a job that is ended by force: a process whose request is not answered
    /// cannot die. Requests that wait for a store are answered with EIO, and nothing is committed
    /// any more.
    pub fn stop(&self) {
        self.output.stop();
    }

    /// Decides every event file as it is now, and returns the outcome so far. Called when the
    /// module reports that it has done its work and goes on running. A file that a process still
    /// has open for writing is among the rejections, because its final content is not known.
    pub async fn decide_event_files(&self) -> TreeOutcome {
        let still_open = self.output.decide_event_files().await;
        let mut outcome = self.outcome();
        outcome.rejections.extend(still_open);
        outcome
    }

    /// Decides what is left, removes the staging folder and returns the outcome. Called when the
    /// module has ended and its mount is gone, or is not waited for any longer; also when the
    /// module could not be started.
    pub async fn finish(&self) -> TreeOutcome {
        self.output.finish().await;
        let directory = self.directory.clone();
        let removed = ion_system::run_blocking(move || remove_folder(&directory)).await;
        if let Err(error) = removed {
            tracing::warn!(
                folder = %self.directory.display(),
                %error,
                "a staging folder could not be removed"
            );
        }
        self.outcome()
    }

    fn outcome(&self) -> TreeOutcome {
        let (left, state_problem) = match self.output.left() {
            Some(Ok(left)) => (Some(Box::new(left.clone())), None),
            Some(Err(problem)) => (None, Some(problem.clone())),
            None => (None, None),
        };
        TreeOutcome {
            left,
            state_problem,
            receipts: self.output.receipts().into_values().collect(),
            rejections: self.output.rejections().into_values().collect(),
            exceeded: self.output.exceeded(),
            failed: self.output.failed_reason(),
            no_room: self.output.no_room(),
            failed_reads: self.reads.failed_reads(),
            usage: AttemptUsage {
                fetched_bytes: Some(self.reads.fetched().bytes()),
                stored_bytes: Some(self.output.bytes_stored()),
                ..AttemptUsage::default()
            },
        }
    }
}

/// Removes what an attempt left on this machine: its staged files and its log. Called for the
/// attempts of a dead daemon, and for a pod's attempt also when it has ended.
pub async fn remove_attempt(home: &Path, job: &JobId, attempt: u32) {
    let folder = job_dir(home, job, attempt);
    ion_system::run_blocking(move || match remove_folder(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(
                folder = %folder.display(),
                %error,
                "the files of an attempt could not be removed"
            );
        }
        _ => {}
    })
    .await;
}

/// Makes the attempt's folder, which holds the staging folder, if it is missing, and lets only the
/// daemon's user enter it: the modes inside let any user write. Jobs reach the staging folder
/// through their mount.
fn make_private(attempt_folder: &Path) -> io::Result<()> {
    Ok(Folder::open_or_make(attempt_folder)?.pin_self()?.set_mode(Mode::RWXU)?)
}

/// Removes a folder with everything that a module left in it, even where the module took away the
/// right to remove it.
fn remove_folder(directory: &Path) -> io::Result<()> {
    let (Some(above), Some(name)) = (directory.parent(), directory.file_name()) else {
        return Ok(());
    };
    Ok(Folder::open(above)?.remove_all(name)?)
}

/// Returns what a run of a source begins with; none for all other jobs.
async fn open_state(daemon: &Daemon, event: &Event) -> Result<Option<OpenState>, StoreError> {
    let Some(tick) = &event.tick else { return Ok(None) };
    let StateFiles { files, file_list, directories } = &tick.state;
    let files = daemon.plane.listed_files(files, file_list.as_ref()).await?;
    Ok(Some(OpenState { files, directories: directories.clone() }))
}

/// Makes the entries of `in/`. An event's values (`Event::data`) are shown in `eventmeta.json` and
/// `meta/`, its files in `data/`. File addresses are only in `eventmeta.json` (and `meta.json`), as
/// in older Ion.
async fn input_items(
    daemon: &Arc<Daemon>,
    spec: &JobSpec,
) -> Result<Vec<(String, ViewItem)>, StoreError> {
    let (event, created) = (&spec.event, spec.event.created);
    let own_files = daemon.plane.files_of(event).await?;
    let urls = spec.older.urls;
    let FilesInput { mut items, addresses } = match &spec.gathered {
        None => FilesInput {
            items: vec![("data".to_owned(), files_tree(&own_files, &event.directories))],
            addresses: addresses(&daemon.plane, urls, &event.id, &own_files, "").await?,
        },
        Some(GatheredEvents::Few(few)) => few_events(daemon, few, urls, created).await?,
        Some(GatheredEvents::List(list)) => listed_events(daemon, list, urls).await?,
    };
    let values = [event.data.clone(), addresses].concat();
    if spec.older.names == ValueFileNames::WithMetaJson {
        items.push(("meta.json".to_owned(), ViewItem::json(&values, created)));
    }
    items.extend([
        ("eventmeta.json".to_owned(), ViewItem::json(&values, created)),
        ("event.json".to_owned(), ViewItem::json(&event_json(event, &own_files), created)),
        ("meta".to_owned(), lineage::values_item(&event.data, created)),
    ]);
    Ok(items)
}

/// Makes `events/`. The lineage is read when the directory is first accessed; receipts, rejections
/// and failed reads are always current.
fn events_item(
    daemon: Arc<Daemon>,
    output: Arc<Output>,
    reads: ReadLog,
    event: Arc<Event>,
) -> ViewItem {
    ViewItem::lazy(FOREVER, move || {
        let (daemon, output, event) = (daemon.clone(), output.clone(), event.clone());
        let reads = reads.clone();
        async move {
            let mut items = lineage::lineage_items(&daemon, &event).await?;
            let receipts = output.clone();
            items.push((
                "published".into(),
                records_item(move || receipts.receipts(), |receipt: &Receipt| receipt.at),
            ));
            items.push((
                "rejected".into(),
                records_item(move || output.rejections(), |rejection: &Rejection| rejection.at),
            ));
            let numbered = move || {
                let failed = reads.failed_reads().first.into_iter().enumerate();
                failed.map(|(n, read)| (n.to_string(), read)).collect()
            };
            items
                .push(("failed-reads".into(), records_item(numbered, |read: &FailedRead| read.at)));
            Ok(items)
        }
    })
}
