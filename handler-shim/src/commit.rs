//! `commit`: turns what a module left in `out/` into events, all of them or none.
//!
//! # Flow
//! 1. Reads and checks every event file and `insights.json`. If one of them is wrong, it refuses
//!    all before a byte is stored.
//! 2. Takes each event through the commit protocol of `ionfs` as an event of an on-success job: its
//!    files become blobs, and its document is staged, where no module and no person sees it.
//! 3. Writes that the job succeeded. This one write commits all events.
//! 4. Makes the events visible and publishes them. If that fails, a relay does it later.
//!
//! # After a crash
//! If the process dies before step 3, nothing is committed: run `commit` again. If it dies after
//! step 3, everything is committed: a repeated `commit` continues with step 4 and returns the same
//! events. An event's id is derived from the parent, the module and the file's name, so no event
//! ever exists twice.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use ion_model::checksum::{BLOCK_BYTES, BlockChecksummer};
use ion_model::errors::error_chain;
use ion_model::event::{
    DOUBTFUL_DRAFT_REASON, Event, EventFile, FileEntry, KeyValue, ParsedEventFile,
    PublicationState, clean_path, is_doubtful_draft, parse_within,
};
use ion_model::id::EventId;
use ion_model::limits::bytes_in_words;
use ion_model::record::{CommitMode, InsightRecord, JobRecord};
use ion_model::text::quote;
use ion_plane::commit::{Committer, DirectoryContent, Fence, Origin, Refusal, Staging, TooDeep};
use ion_plane::relay;
use ion_plane::upload::store_open_file;
use ion_stores::{Collection, DataPlane, Query};
use ion_system::run_blocking;
use serde_json::json;
use tokio::sync::{OnceCell, Semaphore};
use uuid::Uuid;

use crate::attempt::{AttemptBegin, HandlerAttempt};
use crate::folder::{ModuleFolder, OpenedPath, OutputFolders, read_within};
use crate::{HandlerError, HandlerWork};

/// The most events that are committed at the same time. With fewer, the events wait for the stores
/// one by one; with more, they only wait for each other's files.
const EVENTS_AT_A_TIME: usize = 16;

/// Bytes of one part of an upload, for which an upload needs one of [`TURNS`] permits.
const TURN: u64 = 8 << 20;

/// Upload permits of all files together, one for each part in progress: they bound the memory that
/// uploads take. They are enough for 16 small files or three large ones.
const TURNS: u32 = 16;

/// The most parts of one file that an upload has in progress, including the part that it reads.
const TURNS_OF_A_FILE: u64 = 5;

/// The most files that are open at the same time: each takes a descriptor, and an event may name
/// 200,000.
const OPEN_MAX: usize = 64;

/// The events and insights that a job has committed.
#[derive(Debug)]
pub struct HandlerCommit {
    /// The events, sorted by the names of their event files.
    pub events: Vec<Event>,
    /// The values kept for analysis.
    pub insights: Option<InsightRecord>,
}

/// Commits what the module left in the folder.
///
/// # Guarantees
/// After `Ok`, all events will be published, whatever dies. After `Err`, no event becomes visible,
/// now or later, unless a repeated call returns `Ok`. After [`HandlerError::Store`] the events may
/// be committed all the same; a repeated call finds that.
///
/// # Errors
/// Returns [`HandlerError::Rejected`] with the first event file, in the order of names, that cannot
/// be an event, and why; the errors of [`HandlerAttempt::resume`]; and the error of a store or of
/// the folder.
pub async fn commit(
    plane: &DataPlane,
    folder: &ModuleFolder,
    work: &HandlerWork,
) -> Result<HandlerCommit, HandlerError> {
    let begun = HandlerAttempt::resume(plane, work, folder).await?;
    let output = folder.open_output()?;
    match begun {
        AttemptBegin::Held(attempt) => match stage(plane, work, &attempt, output).await {
            Ok(()) => reveal(plane, work, attempt.succeed(plane).await?).await,
            Err(error) => Err(give_up(plane, attempt, error).await),
        },
        AttemptBegin::Succeeded(job) => {
            check_same_events(plane, work, output).await?;
            reveal(plane, work, job).await
        }
    }
}

/// Ends the attempt after an error, and returns the error for the caller. An error of the module
/// fails the attempt. An error of a store leaves the attempt open, so that a repeated `commit`
/// resumes it.
async fn give_up(plane: &DataPlane, attempt: HandlerAttempt, error: HandlerError) -> HandlerError {
    match &error {
        HandlerError::Rejected { refusal: Refusal::Fenced, .. } => {
            HandlerError::Later(attempt.record().id.clone())
        }
        HandlerError::Rejected { refusal, .. } if !matches!(refusal, Refusal::Stores(_)) => {
            if let Err(failed) = attempt.fail(plane, &error.to_string()).await {
                tracing::warn!(
                    error = error_chain(&failed),
                    "the ledger cannot record that the attempt failed"
                );
            }
            error
        }
        _ => error,
    }
}

/// The event files and insights that a module wrote, parsed.
struct Written {
    events: Vec<(String, EventFile)>,
    insights: Option<Vec<KeyValue>>,
}

/// Reads and checks what the module wrote: step 1.
fn read_output(output: &OutputFolders, work: &HandlerWork) -> Result<Written, HandlerError> {
    let names = output.list_event_names();
    let names = names.map_err(HandlerError::folder("out/events", "cannot be read"))?;
    let mut events = Vec::with_capacity(names.len());
    for name in names {
        if is_doubtful_draft(&name) {
            refuse_whole_draft(output, work, &name)?;
            continue;
        }
        match parse_left_file(output.open_event(&name), work, &name)? {
            Some(file) => events.push((name, file)),
            // As on the mount, a file that was made and never written to is no event.
            None => tracing::warn!(event = name, "the event file is empty, so it makes no event"),
        }
    }
    let insights = parse_left_file(output.open_insights(), work, "insights.json")?;
    Ok(Written { events, insights: insights.map(EventFile::into_values) })
}

/// Refuses a file that has only the name of a draft and holds a complete event: it was not meant as
/// a draft.
fn refuse_whole_draft(
    output: &OutputFolders,
    work: &HandlerWork,
    name: &str,
) -> Result<(), HandlerError> {
    match parse_left_file(output.open_event(name), work, name) {
        Ok(Some(file)) if file.event_type.is_some() => {
            let refusal = Refusal::Invalid(DOUBTFUL_DRAFT_REASON.into());
            Err(HandlerError::Rejected { name: name.to_owned(), refusal })
        }
        // A draft may hold any content.
        _ => Ok(()),
    }
}

/// Parses a JSON file that the module left; `None` if the file is empty or missing.
fn parse_left_file(
    left: io::Result<OpenedPath>,
    work: &HandlerWork,
    name: &str,
) -> Result<Option<EventFile>, HandlerError> {
    let rejected = |refusal| HandlerError::Rejected { name: name.to_owned(), refusal };
    let unreadable = |source| rejected(Refusal::Unreadable { path: name.to_owned(), source });
    let file = match left.map_err(unreadable)? {
        OpenedPath::File(file) => file,
        OpenedPath::Missing => return Ok(None),
        OpenedPath::Other(what) => return Err(rejected(Refusal::Invalid(format!("it is {what}")))),
    };
    let most = work.limits.event_bytes;
    let Some(content) = read_within(&file, most).map_err(unreadable)? else {
        return Err(rejected(Refusal::TooBig(format!(
            "an event file may have {}",
            bytes_in_words(most)
        ))));
    };
    match parse_within(&content, &work.limits) {
        ParsedEventFile::Complete(file) => Ok(Some(file)),
        ParsedEventFile::Empty => Ok(None),
        ParsedEventFile::Incomplete => {
            Err(rejected(Refusal::Invalid("the JSON document is cut off".into())))
        }
        ParsedEventFile::Invalid(reason) => Err(rejected(Refusal::Invalid(reason))),
        ParsedEventFile::TooBig(reason) => Err(rejected(Refusal::TooBig(reason))),
    }
}

/// Reads, checks and stages what the module wrote: steps 1 and 2.
async fn stage(
    plane: &DataPlane,
    work: &HandlerWork,
    attempt: &HandlerAttempt,
    output: OutputFolders,
) -> Result<(), HandlerError> {
    let written = read_output(&output, work)?;
    let record = attempt.record();
    let origin = Origin {
        job_id: record.id.clone(),
        attempt: record.attempt,
        fence: Fence::HeldBy(record.holder.clone()),
        module: work.module.clone(),
        emits: Some(work.emits.clone()),
        commit: CommitMode::OnSuccess,
        parent: work.event.context.clone(),
    };
    let depth = TooDeep::check(work.event.child_depth(), work.limits.lineage_depth);
    let committer = Committer::new(plane.clone(), origin, depth, work.deadline);
    let staged = Staged::new(plane, work, record, output);
    let commits = written.events.into_iter().map(|(name, file)| {
        let (committer, staged) = (&committer, &staged);
        async move {
            let committed = committer.commit(&name, file, staged).await;
            committed.map_err(|refusal| HandlerError::Rejected { name, refusal })
        }
    });
    let commits: Vec<_> = commits.collect();
    stream::iter(commits).buffered(EVENTS_AT_A_TIME).try_for_each(|_| async { Ok(()) }).await?;
    if let Some(insights) = written.insights {
        let kept = committer.store_insights(insights).await;
        kept.map_err(|refusal| HandlerError::Rejected { name: "insights.json".into(), refusal })?;
    }
    Ok(())
}

/// Makes the events of a job that succeeded visible and publishes them (step 4), and returns them.
async fn reveal(
    plane: &DataPlane,
    work: &HandlerWork,
    job: JobRecord,
) -> Result<HandlerCommit, HandlerError> {
    if let Err(error) = relay::empty_outbox(plane, &job.id).await {
        tracing::warn!(
            error = error_chain(&error),
            "the events are committed but not all published yet; a relay publishes them later"
        );
    }
    let mut events: Vec<Event> = Vec::new();
    for publication in [PublicationState::Published, PublicationState::Unpublished] {
        let of_job = vec![
            ("context.parentEventId", json!(work.event.id)),
            ("jobId", json!(job.id)),
            ("publication", json!(publication)),
        ];
        events.extend(
            plane.documents.find_as::<Event>(Query::equal(Collection::Events, of_job)).await?,
        );
    }
    events.sort_by(|a, b| a.file_name.cmp(&b.file_name));
    let id = InsightRecord::id(&job.id);
    let insights = plane.documents.get_as::<InsightRecord>(Collection::Events, &id).await?;
    let insights = insights.filter(|insights| insights.attempt == job.attempt);
    Ok(HandlerCommit { events, insights })
}

/// Checks that the event files in the folder have the same content as the job's events: a job that
/// has succeeded makes no other events.
async fn check_same_events(
    plane: &DataPlane,
    work: &HandlerWork,
    output: OutputFolders,
) -> Result<(), HandlerError> {
    let written = read_output(&output, work)?;
    let output = Arc::new(output);
    for (name, file) in written.events {
        let id = EventId::derive(&work.event.id, &work.module, &name);
        let rejected = |refusal| HandlerError::Rejected { name: name.clone(), refusal };
        let found = plane.documents.get_as::<Event>(Collection::Events, id.as_str()).await?;
        let Some(found) = found else {
            let reason =
                "the job has succeeded without it; a new event starts a new job".to_owned();
            return Err(rejected(Refusal::Invalid(reason)));
        };
        let mut files = Vec::with_capacity(file.files.len());
        let mut seen = std::collections::HashSet::new();
        let unreadable = |source| Refusal::Unreadable { path: "out/data".into(), source };
        let DirectoryContent { files: paths, empty: directories } =
            list_named_files(&output, &file.files, work.limits.event_files)
                .map_err(unreadable)
                .map_err(rejected)?;
        for path in paths {
            if seen.insert(path.clone()) {
                let (output, path) = (output.clone(), path);
                let described = run_blocking(move || describe_file(&output, path)).await;
                files.push(described.map_err(rejected)?);
            }
        }
        let again = Event {
            event_type: file.event_type.unwrap_or_default(),
            data: file.data,
            directories,
            ..found.clone()
        };
        if !again.has_same_content(&files, &found, &plane.files_of(&found).await?) {
            return Err(rejected(Refusal::Differs(id)));
        }
    }
    Ok(())
}

/// Returns the files and empty directories that an event file names.
fn list_named_files(
    output: &OutputFolders,
    names: &[String],
    files_max: u64,
) -> io::Result<DirectoryContent> {
    let mut all = DirectoryContent::default();
    for name in names {
        let path = clean_path(name).unwrap_or_else(|| name.clone());
        match if name.ends_with('/') { output.list_below(&path, files_max)? } else { None } {
            Some(below) => {
                all.files.extend(below.files);
                all.empty.extend(below.empty);
            }
            None => all.files.push(path),
        }
    }
    Ok(all)
}

/// Describes a file in `out/data` as an event's document would, without storing the file.
fn describe_file(output: &OutputFolders, path: String) -> Result<FileEntry, Refusal> {
    let mut file = require_regular(output.open_data(&path), &path)?;
    let unreadable = |source| Refusal::Unreadable { path: path.clone(), source };
    let mut summer = BlockChecksummer::default();
    let mut piece = vec![0; usize::try_from(BLOCK_BYTES).expect("a block fits memory")];
    loop {
        match file.read(&mut piece).map_err(unreadable)? {
            0 => break,
            length => summer.update(&piece[..length]),
        }
    }
    let (size, checksums) = (summer.total(), summer.finish());
    Ok(FileEntry {
        name: path.clone(),
        key: String::new(),
        size,
        mtime: 0,
        mtime_nanos: 0,
        mode: 0,
        checksums,
    })
}

fn require_regular(left: io::Result<OpenedPath>, path: &str) -> Result<File, Refusal> {
    match left.map_err(|source| Refusal::Unreadable { path: path.to_owned(), source })? {
        OpenedPath::File(file) => Ok(file),
        OpenedPath::Missing => Err(Refusal::Missing(path.to_owned())),
        OpenedPath::Other(what) => Err(Refusal::Invalid(format!("{} is {what}", quote(path)))),
    }
}

/// The entry of a file that is stored once, even if several events name it.
type Stored = Arc<OnceCell<FileEntry>>;

/// The files of `out/data` as the commit protocol reads them.
struct Staged<'w> {
    plane: &'w DataPlane,
    work: &'w HandlerWork,
    output: OutputFolders,
    /// The beginning of every blob key, before the number and the path.
    below: String,
    made: AtomicU64,
    moved: AtomicU64,
    open: Semaphore,
    turns: Semaphore,
    stored: Mutex<HashMap<String, Stored>>,
}

impl<'w> Staged<'w> {
    fn new(
        plane: &'w DataPlane,
        work: &'w HandlerWork,
        record: &JobRecord,
        output: OutputFolders,
    ) -> Self {
        // A key is written once, but a commit that crashed may have stored other bytes in this same
        // attempt. So every run has its own keys.
        let run = Uuid::new_v4().simple().to_string();
        let correlation = &work.event.context.correlation_id;
        Self {
            plane,
            work,
            output,
            below: format!("{correlation}/{}/{}.{}", record.id, record.attempt, &run[..8]),
            made: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            open: Semaphore::new(OPEN_MAX),
            turns: Semaphore::new(TURNS as usize),
            stored: Mutex::default(),
        }
    }

    async fn store(&self, path: &str) -> Result<FileEntry, Refusal> {
        let _open = self.open.acquire().await.expect("the semaphore is never closed");
        let file = require_regular(self.output.open_data(path), path)?;
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        let turns = u32::try_from(length.div_ceil(TURN).clamp(1, TURNS_OF_A_FILE)).expect("a few");
        let _turn = self.turns.acquire_many(turns).await.expect("the semaphore is never closed");
        let (blobs, key) = (&*self.plane.blobs, self.fresh_key(path));
        Ok(store_open_file(blobs, key, path.to_owned(), file, &self.moved).await?)
    }
}

#[async_trait]
impl Staging for Staged<'_> {
    async fn make_durable(&self, path: &str) -> Result<FileEntry, Refusal> {
        let fits = self.work.limits.check_path(path);
        fits.map_err(|error| Refusal::TooLong(error.to_string()))?;
        let cell = {
            let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
            stored.entry(path.to_owned()).or_default().clone()
        };
        cell.get_or_try_init(|| self.store(path)).await.cloned()
    }

    fn has_file(&self, path: &str) -> bool {
        let opened = clean_path(path).map(|path| self.output.open_data(&path));
        matches!(opened, Some(Ok(OpenedPath::File(_))))
    }

    async fn list_directory(&self, path: &str) -> Result<Option<DirectoryContent>, Refusal> {
        let below = self.output.list_below(path, self.work.limits.event_files);
        below.map_err(|source| Refusal::Unreadable { path: path.to_owned(), source })
    }

    fn files_max(&self) -> u64 {
        self.work.limits.event_files
    }

    fn uploaded_bytes(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    fn fresh_key(&self, path: &str) -> String {
        format!("{}.{}/{path}", self.below, self.made.fetch_add(1, Ordering::Relaxed))
    }
}
