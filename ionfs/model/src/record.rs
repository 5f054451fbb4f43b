//! The documents other than events, as they are stored: jobs, insights and module logs.
//!
//! They are plain data. The dispatcher decides which state a job enters next; the data plane reads
//! a job's record to fence its commits and to show it in the browsing mount.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clock::Millis;
use crate::event::{Context, Event, FileEntry, KeyValue};
use crate::id::{CorrelationId, EventId, JobId};
use crate::state::LeftState;
use crate::usage::AttemptUsage;
use crate::version::ModuleVersion;

/// The state of a job (DESIGN.md section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// A gathering job: the work below its event has not ended yet.
    Waiting,
    /// May start once its `term` is over and a slot is free.
    Queued,
    /// Claimed; the dispatcher prepares its filesystem and its process.
    Starting,
    /// Its process runs.
    Running,
    /// Its last attempt succeeded; final.
    Succeeded,
    /// Its last attempt failed and no retries are left; final until `ion dead retry` revives it.
    Dead,
    /// Ended by `ion job cancel`, or dropped from the dead jobs; final.
    Cancelled,
}

impl JobState {
    /// All states.
    pub const ALL: [Self; 7] = [
        Self::Waiting,
        Self::Queued,
        Self::Starting,
        Self::Running,
        Self::Succeeded,
        Self::Dead,
        Self::Cancelled,
    ];

    /// Whether no further attempt starts unless a person asks for it.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Dead | Self::Cancelled)
    }

    /// Whether an attempt is in progress.
    pub fn is_active(self) -> bool {
        matches!(self, Self::Starting | Self::Running)
    }

    /// The word stored in documents and shown to people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Queued => "queued",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
        }
    }
}

/// How one attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttemptEnd {
    /// Exit status 0 and no rejected event.
    Succeeded,
    /// Another exit status, a signal, a rejected event, or an attempt that could not start this
    /// time.
    Failed,
    /// The attempt can never start: its program is missing or is not a program. No other attempt
    /// follows.
    CannotRun,
    /// The attempt ran longer than the module's timeout.
    TimedOut,
    /// The dispatcher died or lost its lease. Counts against `LOST_MAX`, not against the module's
    /// retries.
    Lost,
    /// The dispatcher was shut down. Does not count against the retries.
    Released,
    /// A person cancelled the job.
    Cancelled,
    /// The process that ran it together with other jobs did not end well, and the fault may be
    /// another job's. Counts against nothing: the next attempt runs alone.
    BatchFailed,
    /// The machine had no room for the attempt: its disk is full or no descriptor is left. Counts
    /// against `LOST_MAX` as [`AttemptEnd::Lost`] does, but the next attempt starts after a backoff
    /// as after a failure.
    NoRoom,
}

impl AttemptEnd {
    /// The word stored in documents and shown to people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::CannotRun => "cannot-run",
            Self::TimedOut => "timed-out",
            Self::Lost => "lost",
            Self::Released => "released",
            Self::Cancelled => "cancelled",
            Self::BatchFailed => "batch-failed",
            Self::NoRoom => "no-room",
        }
    }
}

/// The place of an attempt in the batch that ran it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchPlace {
    /// The batch's first job: the output of the whole batch is its log.
    pub first: JobId,
    /// The number of the first job's attempt.
    pub first_attempt: u32,
    /// The number of this job's directory in the batch's tree.
    pub number: u32,
    /// How many jobs the batch had.
    pub of: u32,
}

/// One attempt of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// The number of the attempt; 1 for the first.
    pub number: u32,
    /// When it was claimed.
    pub started: Millis,
    /// When its process began; `None` if it has not, or if an older Ion ran it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process_started: Option<Millis>,
    /// What it ran: [`VersionRecord`](crate::version::VersionRecord) says more. None until its
    /// process runs, and where no dispatcher runs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<ModuleVersion>,
    /// Its place in the batch that ran it; none for an attempt that had a process of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<BatchPlace>,
    /// When it ended; `None` while it is in progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Millis>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<AttemptEnd>,
    /// The exit status, when the process exited by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Why it ended so, in words: `exit status 3`, `killed by signal 9`,
    /// `event "a.json" rejected: ...`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The blob that holds its output (stdout and stderr).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<FileEntry>,
    /// How many bytes of the output the blob does not hold: the middle of a log that is too long is
    /// left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub log_left_out: u64,
    /// The reads that Ion could not answer. An attempt with such a read has failed.
    #[serde(default, skip_serializing_if = "FailedReads::is_empty")]
    pub failed_reads: FailedReads,
    /// The event files that were refused and not committed afterwards.
    #[serde(default, skip_serializing_if = "RefusedFiles::is_empty")]
    pub rejected: RefusedFiles,
    /// What it used, as far as that is known.
    #[serde(default, skip_serializing_if = "AttemptUsage::is_empty")]
    pub usage: AttemptUsage,
}

fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

impl Attempt {
    /// Returns an attempt that begins at `started`.
    pub fn new(number: u32, started: Millis) -> Self {
        Self {
            number,
            started,
            process_started: None,
            version: None,
            batch: None,
            ended: None,
            end: None,
            exit_code: None,
            reason: None,
            log: None,
            log_left_out: 0,
            failed_reads: FailedReads::default(),
            rejected: RefusedFiles::default(),
            usage: AttemptUsage::default(),
        }
    }
}

/// An event file that was refused, as `events/rejected/<name>.json` shows it while the job runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedFile {
    /// The file's name in `out/events`.
    pub name: String,
    /// The name in errno(3) of the error that its close returned, such as `EINVAL`.
    pub errno: String,
    /// Why it was refused, in words.
    pub reason: String,
    /// When it was refused.
    pub at: Millis,
}

/// The event files of an attempt that were refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedFiles {
    /// The first refused files, one for each name.
    #[serde(default)]
    pub first: Vec<RefusedFile>,
    /// The number of further refused files.
    #[serde(default)]
    pub more: u64,
}

impl RefusedFiles {
    /// Whether no file was refused.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty() && self.more == 0
    }
}

/// Why Ion could not answer a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadFailureCause {
    /// The blob is not in the store.
    Missing,
    /// The bytes are not those that were written, or a document does not have the expected shape.
    Damaged,
    /// The store could not be reached, failed, or did not answer in time.
    StoreUnavailable,
    /// The disk of the node failed, or was full.
    LocalDisk,
}

impl ReadFailureCause {
    /// The word stored in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Damaged => "damaged",
            Self::StoreUnavailable => "store-unavailable",
            Self::LocalDisk => "local-disk",
        }
    }

    fn in_words(self) -> &'static str {
        match self {
            Self::Missing => "blob missing",
            Self::Damaged => "damaged",
            Self::StoreUnavailable => "store unavailable",
            Self::LocalDisk => "the node's disk failed",
        }
    }
}

/// A read that Ion could not answer: the module received EIO. `events/failed-reads/<n>.json` shows
/// it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedRead {
    /// The path of the file or directory, relative to `ION_DIR`: `in/data/a.png`.
    pub path: String,
    /// The key of the blob, if the blob is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<String>,
    /// The cause.
    pub cause: ReadFailureCause,
    /// The cause in words, with the store's own error.
    pub reason: String,
    /// When the read failed first.
    pub at: Millis,
}

/// The reads of an attempt that Ion could not answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedReads {
    /// The first failed reads, one for each file and cause.
    #[serde(default)]
    pub first: Vec<FailedRead>,
    /// The number of failed reads of other files.
    #[serde(default)]
    pub more: u64,
}

impl FailedReads {
    /// Whether every read was answered.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty() && self.more == 0
    }

    /// Returns these failed reads with at most `max` of them in the list; the others are counted.
    #[must_use]
    pub fn shortened(mut self, max: usize) -> Self {
        self.more += self.first.len().saturating_sub(max) as u64;
        self.first.truncate(max);
        self
    }

    /// Describes the first failed read in words, and says how many more there are; `None` if every
    /// read was answered.
    pub fn in_words(&self) -> Option<String> {
        let first = self.first.first()?;
        let others = self.more + self.first.len() as u64 - 1;
        let more = if others > 0 { format!(" (and {others} more)") } else { String::new() };
        let (path, cause, reason) = (&first.path, first.cause.in_words(), &first.reason);
        Some(format!("a read of {path:?} failed: {cause}: {reason}{more}"))
    }
}

/// The most jobs that a record names in a list that may be long.
pub const LISTED_JOBS_MAX: usize = 20;

/// The most jobs that one line of text names.
const LINE_JOBS_MAX: usize = 5;

/// The jobs that have to end before a gathering job starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatherObstacles {
    /// The number of jobs that have not ended, including those that no dispatcher has claimed yet.
    /// While jobs are queued or run, it is the number of those in the correlation, up to 10,000 of
    /// each state.
    pub open: usize,
    /// The number of dead jobs: they hold the gathering job back until they are retried or dropped.
    /// While jobs are queued or run, only the first ones are counted.
    pub dead: usize,
    /// The first [`LISTED_JOBS_MAX`] of these jobs, dead jobs first.
    pub named: Vec<OpenJob>,
}

/// A job that a gathering job waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenJob {
    /// The job.
    pub job: JobId,
    /// Its module.
    pub module: String,
    /// Its state; `None` if no dispatcher has claimed it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<JobState>,
}

/// The jobs without whose output a gathering job runs: jobs below its event that were cancelled or
/// dead when it began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingJobs {
    /// The first [`LISTED_JOBS_MAX`] of these jobs.
    pub jobs: Vec<JobId>,
    /// The number of further jobs.
    pub more: usize,
}

impl GatherObstacles {
    /// Describes in words what the job waits for: names the first few jobs, and what to do if only
    /// dead jobs are left.
    pub fn in_words(&self) -> String {
        let name = |open: &OpenJob| {
            let state = open.state.map_or("not claimed yet", JobState::as_str);
            format!("{} {} ({state})", open.module, open.job.short())
        };
        let mut names: Vec<String> = self.named.iter().take(LINE_JOBS_MAX).map(name).collect();
        if let Some(more @ 1..) = (self.open + self.dead).checked_sub(names.len()) {
            names.push(format!("{more} more"));
        }
        let names = names.join(", ");
        match self.open {
            0 => format!("waits until it is retried or dropped (`ion dead`): {names}"),
            _ => format!("waits for {names}"),
        }
    }
}

impl MissingJobs {
    /// Whether no job's output is missing.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Returns the number of all these jobs.
    pub fn count(&self) -> usize {
        self.jobs.len() + self.more
    }

    /// Adds a job.
    pub fn add(&mut self, job: &JobId) {
        if self.jobs.len() < LISTED_JOBS_MAX {
            self.jobs.push(job.clone());
        } else {
            self.more += 1;
        }
    }
}

/// A job: one module on one event. This record is the ledger's only source of truth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobRecord {
    /// `UUIDv5(event id, module)`.
    pub id: JobId,
    /// The version, which every write raises. Each write names the version that its writer read, so
    /// that a stale write is refused.
    pub version: i64,
    /// The module's name.
    pub module: String,
    /// The event it works on.
    pub event_id: EventId,
    /// That event's type.
    pub event_type: String,
    /// The correlation of that event.
    pub correlation_id: CorrelationId,
    /// Its state.
    pub state: JobState,
    /// The number of the latest attempt; 0 before the first.
    pub attempt: u32,
    /// Every attempt, oldest first.
    #[serde(default)]
    pub attempts: Vec<Attempt>,
    /// The id of the dispatcher that runs the attempt; `None` if no dispatcher does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// When `term` is over, by the clock of the host that wrote it; jobs are sorted by this time.
    /// Another host's clock may differ.
    pub due: Millis,
    /// How long this state lasts unless the record is written again: the lease of an active job, or
    /// the wait before a queued job may start. 0 if there is neither.
    #[serde(default)]
    pub term: Millis,
    /// When it was claimed first.
    pub created: Millis,
    /// When it became final.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Millis>,
    /// Whether a person has asked to stop the job.
    #[serde(default)]
    pub cancel: bool,
    /// Whether something about its end still has to be published on the bus: the events it staged
    /// (`commit: on-success`), or the dead letter.
    #[serde(default)]
    pub outbox: bool,
    /// The number of attempts that ended in a way that counts against the module's retries.
    #[serde(default)]
    pub failures: u32,
    /// The number of attempts that were lost with their dispatcher, or ended because their machine
    /// had no room ([`AttemptEnd::NoRoom`]).
    #[serde(default)]
    pub losses: u32,
    /// What a waiting gathering job waits for, as a dispatcher saw it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<GatherObstacles>,
    /// The jobs without whose output a gathering job that has begun runs.
    #[serde(default, skip_serializing_if = "MissingJobs::is_empty")]
    pub without: MissingJobs,
    /// The source whose run it is; none for all other jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// What it leaves for the next run of its source, once it has succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<Box<LeftState>>,
    /// Whether a later run of its source has begun: then it cannot be retried, because it would
    /// publish again what the later run has published.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub superseded: bool,
}

impl JobRecord {
    /// Returns a new job of a module on an event, with no attempt yet.
    pub fn new(id: JobId, module: &str, event: &Event, state: JobState, now: Millis) -> Self {
        Self {
            id,
            version: 1,
            module: module.to_owned(),
            event_id: event.id.clone(),
            event_type: event.event_type.clone(),
            correlation_id: event.context.correlation_id.clone(),
            state,
            attempt: 0,
            attempts: vec![],
            holder: None,
            due: now,
            term: 0,
            created: now,
            ended: None,
            cancel: false,
            outbox: false,
            failures: 0,
            losses: 0,
            waits_for: None,
            without: MissingJobs::default(),
            source: event.tick.as_ref().map(|tick| tick.source.clone()),
            left: None,
            superseded: false,
        }
    }
}

/// When a job's events are committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CommitMode {
    /// Each event commits when its file is closed.
    #[default]
    OnClose,
    /// The write that marks the job succeeded commits all its events together.
    OnSuccess,
}

/// An insight document: values a module keeps for analysis.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InsightRecord {
    /// The document's id, derived from the job's: there is one document for each job.
    pub id: String,
    /// `name` is the module that kept the values; `eventId` is the event that it worked on.
    pub context: Context,
    /// The values.
    pub data: Vec<KeyValue>,
    /// When the values were kept.
    pub created: Millis,
    /// The job that kept them.
    pub job_id: JobId,
    /// The attempt that kept them.
    #[serde(default)]
    pub attempt: u32,
    /// True until an on-success job has succeeded: see [`crate::event::PublicationState::Staged`].
    #[serde(default)]
    pub staged: bool,
    /// The texts by which an index finds the document ([`crate::term::index_texts`]). Older Ion
    /// neither writes nor reads them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub terms: Vec<String>,
}

impl InsightRecord {
    /// Returns the document as people see it: without the texts of the index.
    pub fn shown_document(&self) -> Value {
        let shown = Self { terms: vec![], ..self.clone() };
        serde_json::to_value(shown).expect("a record has string keys only, so it has a JSON form")
    }

    /// Returns the id of a job's insight document.
    pub fn id(job: &JobId) -> String {
        format!("insight:{job}")
    }
}

/// Returns the document of a module as people see it: of its environment, only the names of the
/// variables. Their values may be passwords, and a mounted plane may be open to all users of a
/// machine.
pub fn shown_module(mut document: Value) -> Value {
    if let Some(Value::Object(env)) = document.get_mut("env") {
        document["env"] = env.keys().cloned().collect();
    }
    document
}

/// A `modulelogs` document: where one attempt's output is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogRecord {
    /// `module:M-event:E-attempt:N`, as in older Ion.
    pub id: String,
    /// The same text, as in older Ion.
    pub desc: String,
    /// `name` is the module; `eventId` is the event that it worked on.
    pub context: Context,
    /// The blob that holds the output.
    pub logs: FileEntry,
    /// Whether the attempt succeeded.
    pub succeeded: bool,
    /// When the output was stored.
    pub created: Millis,
}

impl LogRecord {
    /// Returns the id of the document of one attempt's log.
    pub fn id(module: &str, event: &EventId, attempt: u32) -> String {
        format!("module:{module}-event:{event}-attempt:{attempt}")
    }
}
/// An attempt's output in the blob store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredLog {
    /// The blob.
    pub entry: FileEntry,
    /// How many bytes of the output the blob does not hold: the middle of a log that is too long is
    /// left out.
    pub left_out: u64,
}

/// Returns the prefix of the keys of a correlation's logs. It differs from the prefix of the
/// correlation's files, so that a store's own tools can browse the files alone.
pub fn logs_prefix(correlation: &CorrelationId) -> String {
    format!("logs/{correlation}")
}
