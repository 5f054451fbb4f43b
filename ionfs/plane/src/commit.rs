//! The commit of an event (DESIGN.md section 3): blobs, document, publish, mark.
//!
//! This module knows nothing of the kernel: [`Committer`] receives the content of an event file,
//! and a [`Staging`] that knows the files in `out/data`.

mod errno;
#[cfg(test)]
mod model;
mod naming;
mod refusal;
mod retrying;
pub(crate) mod steps;

use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::try_join_all;
use ion_model::clock::{self, Millis};
use ion_model::errors::error_chain;
use ion_model::event::{
    Context, DocumentType, Event, EventFile, FileEntry, KeyValue, PublicationState, TYPE_BYTES_MAX,
    is_event_type,
};
use ion_model::id::{EventId, JobId};
use ion_model::record::{CommitMode, InsightRecord, JobState};
use ion_model::term::index_texts;
use ion_model::text::quote;
use ion_stores::{
    Collection, DataPlane, Durability, Guard, Inserted, Routed, StoreError, decode, encode,
};
use ion_system::failpoint;
use ion_system::spans;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tracing::field::{Empty, display};
use tracing::{Instrument as _, Span, info_span};

pub use self::errno::RefusalErrno;
use self::naming::named_paths;
pub use self::naming::{DirectoryContent, FileNames, NamingError, check_directories};
pub use self::refusal::{Refusal, Rejection, TooDeep};
pub use self::retrying::retry_while_stores_fail;
use self::steps::{CommitEnd, CommitStep, StoreAnswer};
use crate::upload::store_bytes;

/// The most files that an event document lists itself. A longer list becomes a blob, because
/// documents are limited to 2 MiB on Cosmos DB, and one entry takes about 300 bytes.
pub const LISTED_MAX: usize = 1000;

/// The most bytes of that list, for the same reason.
const LIST_BYTES_MAX: usize = 256 << 10;

/// How long a commit whose document has been inserted waits for the bus before it leaves the
/// publishing to the relay.
const PUBLISH_WAIT: Duration = Duration::from_secs(5);

/// How often a commit begins again because modules were registered or removed meanwhile.
pub(crate) const OUTDATED_MAX: u32 = 100;

/// The receipt of a committed event, in `events/published/<name>.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// The event file's name.
    pub name: String,
    /// The event's id.
    pub event_id: EventId,
    /// The event's type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The number of files that the event names.
    pub files: usize,
    /// The bytes of these files.
    pub bytes: u64,
    /// The time at which the event was committed, or, for an on-success job, staged.
    pub at: Millis,
    /// Whether the bus has received the event. If not, the relay publishes it.
    pub published: bool,
}

/// What must hold of a job's record for an attempt to write anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fence {
    /// The process with this id holds the job's lease. Nobody holds the lease of an attempt that
    /// has ended, so such an attempt can commit nothing more.
    HeldBy(Option<String>),
    /// The attempt is running, whoever holds its lease: a pod continues when its dispatcher dies
    /// and another one adopts the job.
    Running,
}

/// The committing party: one attempt of one job.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    /// The job's id.
    pub job_id: JobId,
    /// The number of the attempt, which fences every write.
    pub attempt: u32,
    /// What else must hold of the job's record.
    pub fence: Fence,
    /// The module's name.
    pub module: String,
    /// The event types that the module may publish, or `None` for any type.
    pub emits: Option<Vec<String>>,
    /// When the job's events become visible.
    pub commit: CommitMode,
    /// The context of the event that the job works on.
    pub parent: Context,
}

impl Origin {
    /// Returns the guard on the ledger for every write of this attempt.
    pub fn guard(&self) -> Guard {
        let holds = match &self.fence {
            Fence::HeldBy(holder) => ("holder", json!(holder)),
            Fence::Running => ("state", json!(JobState::Running)),
        };
        let equals = vec![("attempt", json!(self.attempt)), holds];
        Guard::new(Collection::Jobs, self.job_id.as_str(), equals)
    }

    fn context(&self, event_id: EventId, document_type: DocumentType) -> Context {
        Context {
            name: self.module.clone(),
            event_id,
            correlation_id: self.parent.correlation_id.clone(),
            parent_event_id: self.parent.event_id.to_string(),
            document_type,
        }
    }
}

/// Provides the files in `out/data`.
#[async_trait]
pub trait Staging: Send + Sync {
    /// Makes the file at a clean path durable in the object store, and returns its entry.
    async fn make_durable(&self, path: &str) -> Result<FileEntry, Refusal>;

    /// Returns whether there is a file at a path.
    fn has_file(&self, path: &str) -> bool;

    /// Returns what is below the directory at a clean path, sorted, or `None` if there is no
    /// directory.
    async fn list_directory(&self, path: &str) -> Result<Option<DirectoryContent>, Refusal>;

    /// Returns how many files an event may name.
    fn files_max(&self) -> u64;

    /// Returns the number of bytes that uploads have moved so far. A commit waits while this grows.
    fn uploaded_bytes(&self) -> u64;

    /// Returns a new key for a blob of this attempt.
    fn fresh_key(&self, path: &str) -> String;
}

/// Commits one attempt's events.
#[derive(Debug)]
pub struct Committer {
    plane: DataPlane,
    origin: Origin,
    depth: Result<u32, TooDeep>,
    deadline: Duration,
    /// The attempt's span.
    span: Span,
    /// The tasks that are publishing an event, or have published it and are still marking its
    /// document.
    publishing: TaskTracker,
}

impl Committer {
    /// Makes a committer for one attempt. The caller must be in the attempt's span. The attempt's
    /// events have the lineage depth `depth`. `deadline` bounds each commit until its document is
    /// durable: it is the longest time without progress.
    pub fn new(
        plane: DataPlane,
        origin: Origin,
        depth: Result<u32, TooDeep>,
        deadline: Duration,
    ) -> Self {
        Self {
            plane,
            origin,
            depth,
            deadline,
            span: Span::current(),
            publishing: TaskTracker::new(),
        }
    }

    /// Returns the attempt's span.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// Returns the attempt that commits.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Commits the event that the event file `name` describes.
    ///
    /// # Flow
    /// 1. Every named file is made durable in the object store.
    /// 2. The document is inserted by one guarded write: this is the commit.
    /// 3. The event is published.
    /// 4. The event is marked published.
    ///
    /// On-success jobs stop after step 2, with a staged document.
    ///
    /// # Guarantees
    /// `Ok` means that the event will be published, in effect exactly once, whatever dies. `Err`
    /// means that nothing was published. The id depends only on parent, module and name, so a
    /// repeated commit finds its own document.
    ///
    /// # After a crash
    /// A crash before the end of step 2 leaves only blobs, which `gc` removes. After step 2 the
    /// relay does steps 3 and 4.
    ///
    /// # Errors
    /// A [`Refusal`]. After a time-out in step 2 the document may exist; the next attempt then
    /// finds it.
    pub async fn commit(
        &self,
        name: &str,
        file: EventFile,
        staging: &dyn Staging,
    ) -> Result<Receipt, Refusal> {
        let span = info_span!(
            target: spans::TARGET, parent: &self.span, "commit",
            ion.event.file = name, ion.event.id = Empty, "ion.event.type" = Empty, error = Empty
        );
        let committed = self.commit_in_span(name, file, staging).instrument(span.clone()).await;
        match &committed {
            Ok(receipt) => {
                span.record("ion.event.id", receipt.event_id.as_str());
                span.record("ion.event.type", &receipt.event_type);
            }
            Err(refusal) => {
                span.record(spans::ERROR, display(refusal));
            }
        }
        committed
    }

    async fn commit_in_span(
        &self,
        name: &str,
        file: EventFile,
        staging: &dyn Staging,
    ) -> Result<Receipt, Refusal> {
        let durable = || self.make_durable(name, file.clone(), staging);
        let DurableEvent { step, event, mut receipt } =
            retry_while_stores_fail(self.deadline, || staging.uploaded_bytes(), durable).await?;
        self.plane.metrics.commits.add(1);
        receipt.published =
            step == CommitStep::End(CommitEnd::Committed(PublicationState::Published));
        if matches!(step, CommitStep::End(_)) || !self.publish(step, event).await {
            self.plane.documents.sync().await?;
        } else {
            receipt.published = true;
        }
        Ok(receipt)
    }

    /// Does steps 1 and 2.
    async fn make_durable(
        &self,
        name: &str,
        file: EventFile,
        staging: &dyn Staging,
    ) -> Result<DurableEvent, Refusal> {
        if let Some(slip) = file.find_slip(|path| staging.has_file(path)) {
            return Err(Refusal::Invalid(slip));
        }
        let event_type = self.check_event_type(file.event_type)?;
        let depth = self.depth?;
        let DirectoryContent { files: paths, empty: directories } =
            named_paths(&file.files, staging).await?;
        // Step 1, for all files at once: the staging bounds what runs in parallel.
        let (files, listed) = run_step(&self.plane, CommitStep::StoreBlobs, async {
            let files = try_join_all(paths.iter().map(|path| staging.make_durable(path))).await?;
            let listed = self.make_file_list(&files, staging).await?;
            Ok::<_, Refusal>((files, listed))
        })
        .await?;
        let id = EventId::derive(&self.origin.parent.event_id, &self.origin.module, name);
        let event = Event {
            context: self.origin.context(id.clone(), DocumentType::EventMeta),
            id,
            event_type,
            files: listed.files,
            file_list: listed.file_list,
            data: file.data,
            directories,
            created: clock::now(),
            publication: match self.origin.commit {
                CommitMode::OnClose => PublicationState::Unpublished,
                CommitMode::OnSuccess => PublicationState::Staged,
            },
            depth,
            file_name: Some(name.to_owned()),
            job_id: Some(self.origin.job_id.clone()),
            attempt: Some(self.origin.attempt),
            publisher: None,
            unrouted: false,
            cancelled: false,
            expected_by: None,
            registry: 0,
            unclaimed: false,
            tick: None,
        };
        failpoint::hit("commit.blobs-stored");
        // Step 2.
        let guard = Some(self.origin.guard());
        let (step, event) = insert(&self.plane, event, &files, guard, self.origin.commit).await?;
        let receipt = Receipt {
            name: name.to_owned(),
            event_id: event.id.clone(),
            event_type: event.event_type.clone(),
            files: files.len(),
            bytes: files.iter().map(|file| file.size).sum(),
            at: event.created,
            published: false,
        };
        Ok(DurableEvent { step, event, receipt })
    }

    /// Returns the event type of an event file, if it is valid and the module may publish it.
    fn check_event_type(&self, event_type: Option<String>) -> Result<String, Refusal> {
        let Some(event_type) = event_type else {
            return Err(Refusal::Invalid("there is no \"eventType\"".into()));
        };
        if !is_event_type(&event_type) {
            return Err(Refusal::Invalid(format!(
                "{} cannot be an event type: letters, digits, '.', '_' and '-', at most \
                 {TYPE_BYTES_MAX}, are allowed",
                quote(&event_type)
            )));
        }
        match &self.origin.emits {
            Some(allowed) if !allowed.contains(&event_type) => Err(Refusal::NotEmitted {
                module: self.origin.module.clone(),
                event_type,
                allowed: if allowed.is_empty() { "nothing".into() } else { allowed.join(", ") },
            }),
            _ => Ok(event_type),
        }
    }

    /// Returns the file list as the document holds it: the list itself, or the entry of the blob
    /// that holds it.
    async fn make_file_list(
        &self,
        files: &[FileEntry],
        staging: &dyn Staging,
    ) -> Result<ListedFiles, Refusal> {
        let long = files.len() > LISTED_MAX;
        let json = if files.len() > 100 || long {
            serde_json::to_vec(files).unwrap_or_default()
        } else {
            Vec::new()
        };
        if !long && json.len() <= LIST_BYTES_MAX {
            return Ok(ListedFiles { files: files.to_vec(), file_list: None });
        }
        let key = staging.fresh_key(".ion-files.json");
        let list =
            store_bytes(&*self.plane.blobs, key, "files.json".into(), Bytes::from(json)).await?;
        Ok(ListedFiles { files: Vec::new(), file_list: Some(list) })
    }

    /// Does steps 3 and 4. Returns whether the bus has received the event. Does not wait for the
    /// mark: without it the event is published once more, and the ledger ignores that because the
    /// job exists.
    async fn publish(&self, step: CommitStep, event: Event) -> bool {
        let id = event.id.clone();
        let published = self.try_to_publish(step, event).await;
        if let Err(failure) = &published {
            let reason = error_chain(failure);
            tracing::warn!(
                event = %id,
                reason,
                "the event is committed but not published yet; the relay will publish it"
            );
        }
        published.is_ok()
    }

    /// Begins steps 3 and 4, and waits until the bus has received the event.
    async fn try_to_publish(&self, step: CommitStep, event: Event) -> Result<(), PublishFailure> {
        let (on_published, published) = oneshot::channel();
        let plane = self.plane.clone();
        let work = async move { publish_and_mark(&plane, event, step, Some(on_published)).await };
        let task = self.publishing.spawn(work.in_current_span());
        let Ok(confirmed) = tokio::time::timeout(PUBLISH_WAIT, published).await else {
            task.abort();
            return Err(PublishFailure::NoAnswer);
        };
        if confirmed.is_ok() {
            return Ok(());
        }
        // The task has ended without a confirm, and its result says why.
        Ok(task.await.map_err(|_| PublishFailure::Runtime)??)
    }

    /// Waits, after the end of the job, until its published events are marked. Waits no longer than
    /// a publish may take.
    pub async fn wait_for_marks(&self) {
        self.publishing.close();
        // Events that are not marked by then are left to the relay.
        let _ = tokio::time::timeout(PUBLISH_WAIT, self.publishing.wait()).await;
    }

    /// Stores the values of `insights.json`. The document's id depends only on the job, so closing
    /// the file again replaces the document.
    pub async fn store_insights(&self, data: Vec<KeyValue>) -> Result<(), Refusal> {
        let record = InsightRecord {
            id: InsightRecord::id(&self.origin.job_id),
            context: self
                .origin
                .context(self.origin.parent.event_id.clone(), DocumentType::Insight),
            terms: index_texts(&self.origin.module, &data),
            data,
            created: clock::now(),
            job_id: self.origin.job_id.clone(),
            attempt: self.origin.attempt,
            staged: self.origin.commit == CommitMode::OnSuccess,
        };
        let put = || async {
            let documents = &self.plane.documents;
            Ok(documents
                .put(Collection::Events, encode(&record), Some(self.origin.guard()))
                .await?)
        };
        retry_while_stores_fail(self.deadline, || 0, put).await
    }
}

/// An event after step 2 of its commit.
struct DurableEvent {
    /// The step that follows.
    step: CommitStep,
    event: Event,
    receipt: Receipt,
}

/// The files of an event as its document has them: the files, or a blob that lists them.
struct ListedFiles {
    files: Vec<FileEntry>,
    file_list: Option<FileEntry>,
}

/// Why a committed event is not published yet.
#[derive(Debug, thiserror::Error)]
enum PublishFailure {
    /// The bus did not take the message.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The bus did not confirm the message in time.
    #[error("no answer within {} s", PUBLISH_WAIT.as_secs())]
    NoAnswer,
    /// The task that publishes was ended.
    #[error("the runtime is ending")]
    Runtime,
}

/// Creates a first event, or one on behalf of a person: inserts and publishes it.
///
/// # Errors
/// [`Refusal::Differs`] when an event with this id and other content exists. An event with the same
/// content is `Ok`.
pub async fn create_event(plane: &DataPlane, event: Event) -> Result<(), Refusal> {
    if let Some(marking) = insert_then_publish(plane, event, None).await? {
        // If the process ended before the mark, the relay would publish the event once more.
        let _ = marking.await;
    }
    Ok(())
}

/// Inserts an event that is [for nobody](Event::for_nobody), and does not publish it.
///
/// # Errors
/// As [`create_event`].
pub async fn insert_for_nobody(plane: &DataPlane, event: Event) -> Result<(), Refusal> {
    let event = event.for_nobody();
    let files = plane.files_of(&event).await?;
    match try_insert(plane, &event, &files, None, &mut event.clone()).await? {
        StoreAnswer::Exists { same: false, .. } => Err(Refusal::Differs(event.id)),
        _ => Ok(plane.documents.sync().await?),
    }
}

/// Inserts documents, then inserts and publishes an event that no event file describes. `guard`
/// must hold for the job that the event is of. `blobs` are the blobs that the documents name and
/// that were put with [`Durability::WithNextSync`]. All is durable when this returns, and the event
/// is published if the bus is available. Returns the outcome of each document's insert.
///
/// # Errors
/// As [`create_event`], and [`Refusal::Fenced`] when the guard no longer holds. Then documents may
/// have been inserted, but the event was not.
pub async fn create_with_documents(
    plane: &DataPlane,
    blobs: Vec<(String, Bytes)>,
    documents: Vec<(Collection, Value)>,
    event: Event,
    guard: Option<Guard>,
) -> Result<Vec<Inserted>, Refusal> {
    let together = plane.insert_and_publish(&blobs, &documents, &event, guard.as_ref()).await?;
    let (inserted, event_inserted) = match together {
        Some(mut inserted) => {
            let last = inserted.pop();
            (inserted, last)
        }
        None => (plane.insert_with_blobs(blobs, documents, guard.clone()).await?, None),
    };
    // An event that existed before may still be unpublished.
    if event_inserted != Some(Inserted::New) {
        drop(insert_then_publish(plane, event, guard).await?);
    }
    Ok(inserted)
}

/// Inserts an event and publishes it. The returned task ends when the event is also marked
/// published.
async fn insert_then_publish(
    plane: &DataPlane,
    event: Event,
    guard: Option<Guard>,
) -> Result<Option<JoinHandle<()>>, Refusal> {
    let files = plane.files_of(&event).await?;
    let (step, event) = insert(plane, event, &files, guard, CommitMode::OnClose).await?;
    if step != CommitStep::Publish {
        plane.documents.sync().await?;
        return Ok(None);
    }
    let (on_published, published) = oneshot::channel();
    let (id, stores) = (event.id.clone(), plane.clone());
    let publishing = async move {
        if let Err(error) = publish_and_mark(&stores, event, step, Some(on_published)).await {
            tracing::warn!(
                event = %id,
                reason = error_chain(&error),
                "the event is stored but not published yet; a dispatcher will publish it"
            );
        }
    };
    let publishing = tokio::spawn(publishing.in_current_span());
    if published.await.is_err() {
        plane.documents.sync().await?;
    }
    Ok(Some(publishing))
}

/// Does step 2: inserts the document, or finds one with the same content. Returns that document and
/// the step that follows.
async fn insert(
    plane: &DataPlane,
    mut event: Event,
    files: &[FileEntry],
    guard: Option<Guard>,
    mode: CommitMode,
) -> Result<(CommitStep, Event), Refusal> {
    let mut found = event.clone();
    let mut step = CommitStep::Insert;
    let mut failed = None;
    let mut outdated = 0;
    loop {
        let tried = match step {
            CommitStep::Insert | CommitStep::Replace(_) if outdated > OUTDATED_MAX => {
                return Err(Refusal::Stores(
                    "modules are registered and removed again and again".into(),
                ));
            }
            CommitStep::Insert => {
                let registered = plane.address_event(&mut event).await?;
                found.clone_from(&event);
                let guard =
                    Some(guard.iter().cloned().fold(registered, |all, guard| guard.and(all)));
                run_step(plane, step, try_insert(plane, &event, files, guard, &mut found)).await
            }
            CommitStep::Replace(attempt) => {
                found.clone_from(&event);
                let expect = vec![
                    ("publication", json!(PublicationState::Staged)),
                    ("attempt", json!(attempt)),
                ];
                let replaced = plane.documents.replace(
                    Collection::Events,
                    encode(&event),
                    expect,
                    guard.clone(),
                    Durability::Now,
                );
                run_step(plane, step, replaced).await.map(answer_from_written)
            }
            CommitStep::End(CommitEnd::Differs) => return Err(Refusal::Differs(event.id)),
            CommitStep::End(CommitEnd::Fenced) => return Err(Refusal::Fenced),
            step => match failed {
                Some(error) => return Err(Refusal::from(error)),
                None => return Ok((step, found)),
            },
        };
        failpoint::hit("commit.inserted");
        let answer = answer_from_result(tried, &mut failed);
        if answer == StoreAnswer::Outdated {
            plane.forget_registry();
            outdated += 1;
        }
        step = step.next_step(answer, event.attempt, mode);
    }
}

/// Inserts the document. If one with its id exists, `found` becomes that document. Before anybody
/// learns of the commit, the caller publishes the event or calls [`Documents::sync`]: both make the
/// document durable.
///
/// [`Documents::sync`]: ion_stores::Documents::sync
async fn try_insert(
    plane: &DataPlane,
    event: &Event,
    files: &[FileEntry],
    guard: Option<Guard>,
    found: &mut Event,
) -> Result<StoreAnswer, StoreError> {
    let (at, durability) = (Collection::Events, Durability::BeforeNextMessage);
    match plane.documents.insert(at, encode(event), guard, durability).await? {
        Inserted::New => Ok(StoreAnswer::Done),
        Inserted::Existing(existing) => {
            *found = decode(Collection::Events, existing)?;
            let same = event.has_same_content(files, found, &plane.files_of(found).await?);
            Ok(StoreAnswer::Exists { publication: found.publication, attempt: found.attempt, same })
        }
    }
}

/// Does steps 3 and 4 of a commit, beginning with `from`. Does nothing if `from` is neither of
/// them, because then another process publishes. Publishing twice is harmless, because the job
/// exists in the ledger. Sends on `on_published` once the bus has received the event.
pub(crate) async fn publish_and_mark(
    plane: &DataPlane,
    mut event: Event,
    from: CommitStep,
    mut on_published: Option<oneshot::Sender<()>>,
) -> Result<(), StoreError> {
    let mut step = from;
    let mut failed = None;
    loop {
        let tried = match step {
            CommitStep::Publish => {
                run_step(plane, step, plane.bus.publish(&event.message())).await.map(|routed| {
                    failpoint::hit("commit.published");
                    if routed == Routed::Nowhere && !event.unrouted {
                        tracing::warn!(
                            event = %event.id,
                            "no queue took the message; it will be sent again to the \
                             modules that the event is for"
                        );
                    }
                    if let Some(on_published) = on_published.take() {
                        let _ = on_published.send(());
                    }
                    StoreAnswer::Done
                })
            }
            CommitStep::Mark => {
                event.publication = PublicationState::Published;
                let expect = vec![("publication", json!(PublicationState::Unpublished))];
                // If the mark is lost, the event is published once more.
                let (at, durability) = (Collection::Events, Durability::WithNextSync);
                let marked = plane.documents.replace(at, encode(&event), expect, None, durability);
                let marked = run_step(plane, step, marked).await;
                failpoint::hit("commit.marked");
                marked.map(answer_from_written)
            }
            CommitStep::End(CommitEnd::Committed(PublicationState::Unpublished)) => {
                return failed.map_or(Ok(()), Err);
            }
            _ => return Ok(()),
        };
        step = step.next_step(
            answer_from_result(tried, &mut failed),
            event.attempt,
            CommitMode::OnClose,
        );
    }
}

/// Carries out a step of a commit in a span of its own, and measures its time.
pub(crate) async fn run_step<T>(
    plane: &DataPlane,
    step: CommitStep,
    work: impl Future<Output = T>,
) -> T {
    let begun = Instant::now();
    let span = info_span!(target: spans::TARGET, "step", otel.name = step.name());
    let done = work.instrument(span).await;
    plane.metrics.step_latency(step.name()).observe_since(begun);
    done
}

/// Converts the outcome of a conditional write to an answer.
pub(crate) fn answer_from_written(written: bool) -> StoreAnswer {
    if written { StoreAnswer::Done } else { StoreAnswer::Changed }
}

/// Converts a store's result to an answer. Keeps an error in `failed`, for reports to people.
fn answer_from_result(
    tried: Result<StoreAnswer, StoreError>,
    failed: &mut Option<StoreError>,
) -> StoreAnswer {
    tried.unwrap_or_else(|error| match error {
        StoreError::Fenced(Collection::Plane) => StoreAnswer::Outdated,
        StoreError::Fenced(_) => StoreAnswer::Fenced,
        error => {
            *failed = Some(error);
            StoreAnswer::Unknown
        }
    })
}
