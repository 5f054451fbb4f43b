//! The commit of an event (DESIGN.md section 3): blobs, document, publish, mark.
//!
//! Knows nothing of the kernel: [`Committer`] is given the content of an event file and a
//! [`Staging`] that answers for the files it names.

mod errno;
#[cfg(test)]
mod model;
mod naming;
mod refusal;
pub(crate) mod steps;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::try_join_all;
use ion_model::clock::{self, Millis};
use ion_model::errors::chain;
use ion_model::event::{
    Context, DocumentType, Event, EventFile, FileEntry, KeyValue, Publication, TYPE_BYTES_MAX,
    is_event_type,
};
use ion_model::id::{EventId, JobId};
use ion_model::record::{CommitMode, InsightRecord, JobState};
use ion_model::text::quote;
use ion_stores::{Collection, DataPlane, Guard, Inserted, Routed, StoreError, decode, encode};
use ion_system::failpoint;
use ion_system::patience::while_it_moves;
use ion_system::spans;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tracing::field::{Empty, display};
use tracing::{Instrument as _, Span, info_span};

use self::naming::named_paths;
pub use self::errno::RefusalErrno;
pub use self::naming::{Below, FileNames, check_directories};
pub use self::refusal::{Refusal, Rejection, TooDeep};
use self::steps::{Answer, End, Step};
use crate::upload::store_bytes;

/// Files that a document lists itself; a longer list becomes a blob. Documents are limited to 2 MiB
/// on Cosmos DB, and one entry takes about 300 bytes.
pub const LISTED_MAX: usize = 1000;

/// Bytes of that list, for the same reason.
const LIST_BYTES_MAX: usize = 256 << 10;

/// How long a commit whose document is in waits for the bus before it leaves the publishing to the
/// relay.
const PUBLISH_WAIT: Duration = Duration::from_secs(5);

/// The wait before stores that did not answer are asked again. Shorter hammers a store that is
/// starting.
const RETRY_WAIT: Duration = Duration::from_millis(500);

/// Times a commit begins anew because modules have been registered or removed meanwhile.
pub(crate) const OUTDATED_MAX: u32 = 100;

/// Tries of one commit: a store that takes most of a file and fails again and again is given up in
/// the end.
const TRIES_MAX: u32 = 200;

/// What a job leaves in `events/published/<name>.json`: the event is committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// The event file's name.
    pub name: String,
    /// The event.
    pub event_id: EventId,
    /// Its type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// How many files it names.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// When it was committed (or, for an on-success job, staged).
    pub at: Millis,
    /// Whether the bus has it; if not, the relay publishes it.
    pub published: bool,
}

/// What must hold of a job for an attempt of it to write anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fence {
    /// This one holds its lease. An attempt that has ended is held by nobody, so it can commit no
    /// more.
    HeldBy(Option<String>),
    /// The attempt runs, whoever holds its lease: a pod goes on when its dispatcher has died and
    /// another adopts it.
    Running,
}

/// Who commits: one attempt of one job.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    /// The job.
    pub job_id: JobId,
    /// Its attempt: the fence of every write.
    pub attempt: u32,
    /// What must hold besides.
    pub fence: Fence,
    /// The module's name.
    pub module: String,
    /// The event types it may publish; none: any.
    pub emits: Option<Vec<String>>,
    /// When its events become visible.
    pub commit: CommitMode,
    /// The context of the event it works on.
    pub parent: Context,
}

impl Origin {
    /// What must hold of the ledger at every write this attempt makes.
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

/// Answers for the files in `out/data`.
#[async_trait]
pub trait Staging: Send + Sync {
    /// The entry of the file at a clean path, durable in the object store when this returns.
    async fn durable(&self, path: &str) -> Result<FileEntry, Refusal>;

    /// Whether a path is that of a file.
    fn has(&self, path: &str) -> bool;

    /// What is below the directory at a clean path, sorted; none if no directory is there.
    async fn below(&self, path: &str) -> Result<Option<Below>, Refusal>;

    /// How many files an event may name.
    fn files_max(&self) -> u64;

    /// Bytes its uploads have moved so far: a commit waits while this grows.
    fn moved(&self) -> u64;

    /// A key for one more blob of this attempt, never given before.
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
    /// Events the bus is being told of, or was told of while the document does not say so yet.
    telling: TaskTracker,
}

impl Committer {
    /// For one attempt, in whose span this is called; its events stand at `depth`. `deadline`
    /// bounds each commit until its document is durable: the time in which no byte moved.
    pub fn new(
        plane: DataPlane,
        origin: Origin,
        depth: Result<u32, TooDeep>,
        deadline: Duration,
    ) -> Self {
        Self { plane, origin, depth, deadline, span: Span::current(), telling: TaskTracker::new() }
    }

    /// The attempt's span.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// Who commits.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Commits the event that the event file `name` describes.
    ///
    /// # Flow
    /// 1. Every named file is made durable in the object store.
    /// 2. The document goes in by one guarded insert: this is the commit.
    /// 3. The event is published.
    /// 4. It is marked published.
    ///
    /// On-success jobs stop after step 2, with a staged document.
    ///
    /// # Guarantees
    /// `Ok`: the event will be published exactly once in effect, whatever dies. `Err`: nothing was
    /// published. The id depends on parent, module and name alone, so a repeated commit finds its
    /// own document.
    ///
    /// # After a crash
    /// Before step 2 is done nothing happened but blobs that `gc` removes; after it the relay does
    /// 3 and 4.
    ///
    /// # Errors
    /// A [`Refusal`]. After a time-out inside step 2 the document may be in: the next attempt finds
    /// it there.
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
        let (step, event, mut receipt) = self.patiently(|| staging.moved(), durable).await?;
        self.plane.metrics.commits.add(1);
        receipt.published = step == Step::End(End::Committed(Publication::Published));
        if matches!(step, Step::End(_)) || !self.publish(step, event).await {
            seal(&self.plane).await?;
        } else {
            receipt.published = true;
        }
        Ok(receipt)
    }

    /// Steps 1 and 2; gives the step that follows.
    async fn make_durable(
        &self,
        name: &str,
        file: EventFile,
        staging: &dyn Staging,
    ) -> Result<(Step, Event, Receipt), Refusal> {
        if let Some(slip) = file.slip(|path| staging.has(path)) {
            return Err(Refusal::Invalid(slip));
        }
        let event_type = self.checked_type(file.event_type)?;
        let depth = self.depth?;
        let Below { files: paths, empty: directories } = named_paths(&file.files, staging).await?;
        // Step 1. All at once: the staging bounds what runs in parallel.
        let (files, (listed, file_list)) = timed(&self.plane, Step::StoreBlobs, async {
            let files = try_join_all(paths.iter().map(|path| staging.durable(path))).await?;
            let listed = self.shorten(&files, staging).await?;
            Ok::<_, Refusal>((files, listed))
        })
        .await?;
        let id = EventId::derive(&self.origin.parent.event_id, &self.origin.module, name);
        let event = Event {
            context: self.origin.context(id.clone(), DocumentType::EventMeta),
            id,
            event_type,
            files: listed,
            file_list,
            data: file.data,
            directories,
            created: clock::now(),
            publication: match self.origin.commit {
                CommitMode::OnClose => Publication::Unpublished,
                CommitMode::OnSuccess => Publication::Staged,
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
        };
        failpoint::reach("commit.blobs-stored");
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
        Ok((step, event, receipt))
    }

    fn checked_type(&self, event_type: Option<String>) -> Result<String, Refusal> {
        let Some(event_type) = event_type else {
            return Err(Refusal::Invalid("there is no \"eventType\"".into()));
        };
        if !is_event_type(&event_type) {
            return Err(Refusal::Invalid(format!(
                "{} cannot be an event type: letters, digits, '.', '_' and '-', at most {TYPE_BYTES_MAX}, are allowed",
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

    /// The list as the document holds it: itself, or the blob it became.
    async fn shorten(
        &self,
        files: &[FileEntry],
        staging: &dyn Staging,
    ) -> Result<(Vec<FileEntry>, Option<FileEntry>), Refusal> {
        let long = files.len() > LISTED_MAX;
        let json = if files.len() > 100 || long {
            serde_json::to_vec(files).unwrap_or_default()
        } else {
            Vec::new()
        };
        if !long && json.len() <= LIST_BYTES_MAX {
            return Ok((files.to_vec(), None));
        }
        let key = staging.fresh_key(".ion-files.json");
        let list =
            store_bytes(&*self.plane.blobs, key, "files.json".into(), Bytes::from(json)).await?;
        Ok((Vec::new(), Some(list)))
    }

    /// Steps 3 and 4; whether the bus was told. The mark is not waited for: without it the event is
    /// published once more, which the ledger knows.
    async fn publish(&self, step: Step, event: Event) -> bool {
        let id = event.id.clone();
        let (told, hears) = oneshot::channel();
        let plane = self.plane.clone();
        let work = async move { publish(&plane, event, step, Some(told)).await };
        let task = self.telling.spawn(work.in_current_span());
        let why = match tokio::time::timeout(PUBLISH_WAIT, hears).await {
            Ok(Ok(())) => return true,
            Ok(Err(_)) => match task.await {
                Ok(Ok(())) => return true,
                Ok(Err(error)) => chain(&error),
                Err(_) => "the runtime is ending".into(),
            },
            Err(_) => {
                task.abort();
                format!("no answer within {} s", PUBLISH_WAIT.as_secs())
            }
        };
        tracing::warn!(event = %id, reason = why, "the event is committed but not published yet; the relay will");
        false
    }

    /// The job has ended: waits until its documents say what became of them, as long as a publish
    /// may take.
    pub async fn settled(&self) {
        self.telling.close();
        // What is not marked by then is the relay's.
        let _ = tokio::time::timeout(PUBLISH_WAIT, self.telling.wait()).await;
    }

    /// Keeps the values of `insights.json`. The document's id is the job's, so closing the file
    /// again replaces it.
    pub async fn keep_insights(&self, data: Vec<KeyValue>) -> Result<(), Refusal> {
        let record = InsightRecord {
            id: InsightRecord::id(&self.origin.job_id),
            context: self
                .origin
                .context(self.origin.parent.event_id.clone(), DocumentType::Insight),
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
        self.patiently(|| 0, put).await
    }

    /// Repeats what the stores did not do, until they do it or nothing has moved for the deadline.
    /// Every step of a commit may be repeated: it finds what an earlier try has done.
    async fn patiently<T, F: Future<Output = Result<T, Refusal>>>(
        &self,
        moved: impl Fn() -> u64,
        work: impl Fn() -> F,
    ) -> Result<T, Refusal> {
        let last = Mutex::new(None);
        let trying = async {
            let mut tries = 0;
            loop {
                tries += 1;
                match work().await {
                    Err(Refusal::Stores(reason)) if tries < TRIES_MAX => {
                        tracing::debug!(reason, "the stores did not take it yet");
                        *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
                        tokio::time::sleep(RETRY_WAIT).await;
                    }
                    outcome => return outcome,
                }
            }
        };
        let tried = while_it_moves(self.deadline, moved, trying).await;
        tried.unwrap_or_else(|| {
            let last = last.into_inner().unwrap_or_else(PoisonError::into_inner);
            let reason = last.unwrap_or_else(|| "no answer".into());
            Err(Refusal::Stores(format!("{reason} (tried for {} s)", self.deadline.as_secs())))
        })
    }
}

/// All files of an event, also of one whose list is a blob.
pub async fn files_of(plane: &DataPlane, event: &Event) -> Result<Vec<FileEntry>, StoreError> {
    let Some(list) = &event.file_list else {
        return Ok(event.files.clone());
    };
    let bytes = plane.blobs.get_range(&list.key, 0..list.size).await?;
    if !list.holds(&bytes) {
        return Err(StoreError::DamagedBlob(list.key.clone()));
    }
    serde_json::from_slice(&bytes).map_err(|source| StoreError::Malformed {
        id: list.key.clone(),
        collection: "file lists",
        source,
    })
}

/// Creates a first event, or one on behalf of a person: inserts and publishes it.
///
/// # Errors
/// [`Refusal::Differs`] when an event of that id is there with other content; the same content is
/// `Ok`.
pub async fn create_event(plane: &DataPlane, event: Event) -> Result<(), Refusal> {
    if let Some(marking) = append(plane, event, None).await? {
        // A process that ends before it would leave the event to the relay, which would publish it
        // once more.
        let _ = marking.await;
    }
    Ok(())
}

/// Inserts an event that is [for nobody](Event::for_nobody), and tells the bus nothing.
///
/// # Errors
/// As [`create_event`].
pub async fn record_event(plane: &DataPlane, event: Event) -> Result<(), Refusal> {
    let event = event.for_nobody();
    let files = files_of(plane, &event).await?;
    match try_insert(plane, &event, &files, None, &mut event.clone()).await? {
        Answer::Exists { same: false, .. } => Err(Refusal::Differs(event.id)),
        _ => seal(plane).await,
    }
}

/// The same for an event that no event file describes, of a job for which `guard` must hold, after
/// documents, and blobs that they name and that were [put soon](ion_stores::Blobs::put_soon). All
/// is durable when this returns, and the bus was told if that could be done. Gives what became of
/// the documents.
///
/// # Errors
/// As [`create_event`]; [`Refusal::Fenced`] when the guard does not hold any more. Then documents
/// may be there, and no event.
pub async fn append_event(
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
    // One that was there may not be published.
    if event_inserted != Some(Inserted::New) {
        drop(append(plane, event, guard).await?);
    }
    Ok(inserted)
}

/// Inserts an event and publishes it. What this gives is done when its document says so too.
async fn append(
    plane: &DataPlane,
    event: Event,
    guard: Option<Guard>,
) -> Result<Option<JoinHandle<()>>, Refusal> {
    let files = files_of(plane, &event).await?;
    let (step, event) = insert(plane, event, &files, guard, CommitMode::OnClose).await?;
    if step != Step::Publish {
        seal(plane).await?;
        return Ok(None);
    }
    let (told, hears) = oneshot::channel();
    let (id, stores) = (event.id.clone(), plane.clone());
    let telling = async move {
        if let Err(error) = publish(&stores, event, step, Some(told)).await {
            tracing::warn!(event = %id, reason = chain(&error), "the event is stored but not published yet; a dispatcher will");
        }
    };
    let telling = tokio::spawn(telling.in_current_span());
    if hears.await.is_err() {
        seal(plane).await?;
    }
    Ok(Some(telling))
}

/// Nobody may be told of a commit whose document is not on the disk. Where documents and messages
/// have one log, a message of ours that is there has taken it along; else this does it.
async fn seal(plane: &DataPlane) -> Result<(), Refusal> {
    if plane.one_log { Ok(plane.documents.seal().await?) } else { Ok(()) }
}

/// Step 2: the document goes in, or the one that is there says the same. Gives that document and
/// the step that follows.
async fn insert(
    plane: &DataPlane,
    mut event: Event,
    files: &[FileEntry],
    guard: Option<Guard>,
    mode: CommitMode,
) -> Result<(Step, Event), Refusal> {
    let mut found = event.clone();
    let mut step = Step::Insert;
    let mut failed = None;
    let mut outdated = 0;
    loop {
        let tried = match step {
            Step::Insert | Step::Replace(_) if outdated > OUTDATED_MAX => {
                return Err(Refusal::Stores(
                    "modules are registered and removed again and again".into(),
                ));
            }
            Step::Insert => {
                let registered = plane.address(&mut event).await?;
                found.clone_from(&event);
                let guard =
                    Some(guard.iter().cloned().fold(registered, |all, guard| guard.and(all)));
                timed(plane, step, try_insert(plane, &event, files, guard, &mut found)).await
            }
            Step::Replace(attempt) => {
                found.clone_from(&event);
                let expect =
                    vec![("publication", json!(Publication::Staged)), ("attempt", json!(attempt))];
                let replaced = plane.documents.replace(
                    Collection::Events,
                    encode(&event),
                    expect,
                    guard.clone(),
                );
                timed(plane, step, replaced).await.map(changed)
            }
            Step::End(End::Differs) => return Err(Refusal::Differs(event.id)),
            Step::End(End::Fenced) => return Err(Refusal::Fenced),
            step => match failed {
                Some(error) => return Err(Refusal::from(error)),
                None => return Ok((step, found)),
            },
        };
        failpoint::reach("commit.inserted");
        let answer = answer(tried, &mut failed);
        if answer == Answer::Outdated {
            plane.forget_registry();
            outdated += 1;
        }
        step = step.after(answer, event.attempt, mode);
    }
}

/// Inserts the document; `found` becomes the one that was there before.
async fn try_insert(
    plane: &DataPlane,
    event: &Event,
    files: &[FileEntry],
    guard: Option<Guard>,
    found: &mut Event,
) -> Result<Answer, StoreError> {
    let inserted = match plane.one_log {
        true => plane.documents.insert_soon(Collection::Events, encode(event), guard).await?,
        false => plane.documents.insert(Collection::Events, encode(event), guard).await?,
    };
    match inserted {
        Inserted::New => Ok(Answer::Done),
        Inserted::Existing(existing) => {
            *found = decode(Collection::Events, existing)?;
            let same = event.same_content(files, found, &files_of(plane, found).await?);
            Ok(Answer::Exists { publication: found.publication, attempt: found.attempt, same })
        }
    }
}

/// Steps 3 and 4 of a commit, from the step that the one before has led to; any other is not ours
/// to publish. Publishing twice is harmless: the ledger knows the job.
pub(crate) async fn publish(
    plane: &DataPlane,
    mut event: Event,
    from: Step,
    mut told: Option<oneshot::Sender<()>>,
) -> Result<(), StoreError> {
    let mut step = from;
    let mut failed = None;
    loop {
        let tried = match step {
            Step::Publish => timed(plane, step, plane.bus.publish(&event.message())).await.map(|routed| {
                failpoint::reach("commit.published");
                if routed == Routed::Nowhere && !event.unrouted {
                    tracing::warn!(event = %event.id, "no queue has its message; what it is for will be told again");
                }
                if let Some(told) = told.take() {
                    let _ = told.send(());
                }
                Answer::Done
            }),
            Step::Mark => {
                event.publication = Publication::Published;
                let expect = vec![("publication", json!(Publication::Unpublished))];
                // Without the mark it is published once more.
                let marked = plane.documents.replace_soon(Collection::Events, encode(&event), expect);
                let marked = timed(plane, step, marked).await;
                failpoint::reach("commit.marked");
                marked.map(changed)
            }
            Step::End(End::Committed(Publication::Unpublished)) => return failed.map_or(Ok(()), Err),
            _ => return Ok(()),
        };
        step = step.after(answer(tried, &mut failed), event.attempt, CommitMode::OnClose);
    }
}

/// Carries out a step of a commit, timed, in a span of its own.
pub(crate) async fn timed<T>(plane: &DataPlane, step: Step, work: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let span = info_span!(target: spans::TARGET, "step", otel.name = step.name());
    let done = work.instrument(span).await;
    plane.metrics.step(step.name()).since(begun);
    done
}

/// What a conditional write says.
pub(crate) fn changed(written: bool) -> Answer {
    if written { Answer::Done } else { Answer::Changed }
}

/// A store's error as an answer; the error itself is kept for people.
fn answer(tried: Result<Answer, StoreError>, failed: &mut Option<StoreError>) -> Answer {
    tried.unwrap_or_else(|error| match error {
        StoreError::Fenced(Collection::Plane) => Answer::Outdated,
        StoreError::Fenced(_) => Answer::Fenced,
        error => {
            *failed = Some(error);
            Answer::Unknown
        }
    })
}
