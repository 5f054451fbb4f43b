//! The documents beside events: jobs, modules, insights and module logs, as they are stored.
//!
//! Plain data. What a job may become next is the dispatcher's to say; the data plane reads a job's
//! record to fence its commits and to show it in the browsing mount.

use serde::{Deserialize, Serialize};

use crate::clock::Millis;
use crate::event::{Context, Event, FileEntry, KeyValue};
use crate::id::{CorrelationId, EventId, JobId};

/// Where a job stands (DESIGN.md section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// A gathering job: the work below its event has not ended yet.
    Waiting,
    /// May start once `notBefore` has come and a slot is free.
    Queued,
    /// Claimed; its filesystem and process are being made.
    Starting,
    /// Its process runs.
    Running,
    /// Ended well; final.
    Succeeded,
    /// Ended badly with no retries left; final until `ion dead retry` revives it.
    Dead,
    /// Ended by `ion job cancel` or dropped from the dead; final.
    Cancelled,
}

impl JobState {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Waiting,
        Self::Queued,
        Self::Starting,
        Self::Running,
        Self::Succeeded,
        Self::Dead,
        Self::Cancelled,
    ];

    /// Whether no attempt will follow by itself.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Dead | Self::Cancelled)
    }

    /// Whether an attempt is under way.
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
    /// Another exit status, a signal, a rejected event, or it could not start this time.
    Failed,
    /// It cannot start, however often it is tried: its program is not there or is none. No other
    /// attempt follows.
    CannotRun,
    /// Over the module's timeout.
    TimedOut,
    /// Its dispatcher died or lost its lease. Counts against `LOST_MAX`, not against the module's
    /// retries.
    Lost,
    /// Its dispatcher was shut down. Does not count against the retries.
    Released,
    /// Cancelled by a person.
    Cancelled,
    /// Its machine had no room for it: a full disk, no descriptor left. Counts as
    /// [`AttemptEnd::Lost`] does, and is waited after as after a failure.
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
            Self::NoRoom => "no-room",
        }
    }
}

/// One attempt of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// 1 for the first.
    pub number: u32,
    /// When it was claimed.
    pub started: Millis,
    /// When it ended; none while it is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Millis>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<AttemptEnd>,
    /// The exit status, when the process exited by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Why, in words: `exit status 3`, `killed by signal 9`, `event "a.json" rejected: ...`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The blob that holds its output (stdout and stderr).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<FileEntry>,
    /// How many bytes shorter that is than what was written: of a log that is too long the middle
    /// is left out.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub log_left_out: u64,
    /// Its reads that Ion could not answer; with any of them it failed.
    #[serde(default, skip_serializing_if = "FailedReads::is_empty")]
    pub failed_reads: FailedReads,
}

fn is_nothing(bytes: &u64) -> bool {
    *bytes == 0
}

impl Attempt {
    /// One that begins.
    pub fn begun(number: u32, started: Millis) -> Self {
        Self {
            number,
            started,
            ended: None,
            end: None,
            exit_code: None,
            reason: None,
            log: None,
            log_left_out: 0,
            failed_reads: FailedReads::default(),
        }
    }
}

/// Why a read failed that Ion should have answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadFailureCause {
    /// The blob is not in the store.
    Missing,
    /// The bytes are not those that were written, or a document does not have its shape.
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

/// A read that Ion could not answer: the module got EIO. `events/failed-reads/<n>.json` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedRead {
    /// The file or folder, seen from `ION_DIR`: `in/data/a.png`.
    pub path: String,
    /// The key of the blob, if it is known which one it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<String>,
    /// The cause.
    pub cause: ReadFailureCause,
    /// The cause in words, with what the store said.
    pub reason: String,
    /// When it failed first.
    pub at: Millis,
}

/// The reads of an attempt that Ion could not answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedReads {
    /// The first of them, one for each file and cause.
    #[serde(default)]
    pub first: Vec<FailedRead>,
    /// Failed reads of other files, each counted.
    #[serde(default)]
    pub more: u64,
}

impl FailedReads {
    /// Whether every read was answered.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty() && self.more == 0
    }

    /// The same with no more than so many in the list.
    #[must_use]
    pub fn shortened(mut self, most: usize) -> Self {
        self.more += self.first.len().saturating_sub(most) as u64;
        self.first.truncate(most);
        self
    }

    /// The first in words, and how many more there are; none if every read was answered.
    pub fn in_words(&self) -> Option<String> {
        let first = self.first.first()?;
        let others = self.more + self.first.len() as u64 - 1;
        let more = if others > 0 { format!(" (and {others} more)") } else { String::new() };
        let (path, cause, reason) = (&first.path, first.cause.in_words(), &first.reason);
        Some(format!("a read of {path:?} failed: {cause}: {reason}{more}"))
    }
}

/// Jobs that a record names, where they may be many.
pub const NAMED_MAX: usize = 20;

/// Jobs that one line names.
const SAID_MAX: usize = 5;

/// What has to end before a gathering job starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitsFor {
    /// Jobs that have not ended, those that nobody has claimed yet among them.
    pub open: usize,
    /// Dead jobs: they hold it back until they are retried or dropped.
    pub dead: usize,
    /// The first [`NAMED_MAX`] of them, dead ones before others.
    pub named: Vec<OpenJob>,
}

/// A job that something waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenJob {
    /// The job.
    pub job: JobId,
    /// Its module.
    pub module: String,
    /// Where it stands; none: nobody has claimed it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<JobState>,
}

/// What a gathering job has run without: jobs below its event that were cancelled, or dead, when it
/// began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Without {
    /// The first [`NAMED_MAX`] of them.
    pub jobs: Vec<JobId>,
    /// How many others there were.
    pub more: usize,
}

impl WaitsFor {
    /// In words that name the first few, and the way out where there is one.
    pub fn in_words(&self) -> String {
        let name = |open: &OpenJob| {
            let state = open.state.map_or("not claimed yet", JobState::as_str);
            format!("{} {} ({state})", open.module, open.job.short())
        };
        let mut named: Vec<String> = self.named.iter().take(SAID_MAX).map(name).collect();
        if let Some(more @ 1..) = (self.open + self.dead).checked_sub(named.len()) {
            named.push(format!("{more} more"));
        }
        let named = named.join(", ");
        match self.open {
            0 => format!("waits until it is retried or dropped (`ion dead`): {named}"),
            _ => format!("waits for {named}"),
        }
    }
}

impl Without {
    /// Whether it had everything.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// How many there were.
    pub fn count(&self) -> usize {
        self.jobs.len() + self.more
    }

    /// One more.
    pub fn add(&mut self, job: &JobId) {
        if self.jobs.len() < NAMED_MAX {
            self.jobs.push(job.clone());
        } else {
            self.more += 1;
        }
    }
}

/// A job: one module on one event. The ledger's only truth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobRecord {
    /// `UUIDv5(event id, module)`.
    pub id: JobId,
    /// Raised by every write; each write names the version it read, so a stale one is refused.
    pub version: i64,
    /// The module's name.
    pub module: String,
    /// The event it works on.
    pub event_id: EventId,
    /// That event's type.
    pub event_type: String,
    /// The correlation of that event.
    pub correlation_id: CorrelationId,
    /// Where it stands.
    pub state: JobState,
    /// The number of the latest attempt; 0 before the first.
    pub attempt: u32,
    /// Every attempt, oldest first.
    #[serde(default)]
    pub attempts: Vec<Attempt>,
    /// Who runs the attempt: a dispatcher's id. None when nobody does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// When `term` is over, by the clock of who wrote it: what jobs are sorted by. Another host's
    /// clock may differ.
    pub due: Millis,
    /// How long this state stands unless it is written again: the lease of an active job, the wait
    /// of a queued one before it may start. 0: none.
    #[serde(default)]
    pub term: Millis,
    /// When it was claimed first.
    pub created: Millis,
    /// When it became final.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Millis>,
    /// A person asked for it to be stopped.
    #[serde(default)]
    pub cancel: bool,
    /// The bus has still to be told of its end: of the events it staged (`commit: on-success`), or
    /// that it is dead.
    #[serde(default)]
    pub outbox: bool,
    /// Attempts that ended in a way that counts against the module's retries.
    #[serde(default)]
    pub failures: u32,
    /// Attempts that were lost with their dispatcher.
    #[serde(default)]
    pub losses: u32,
    /// Of a gathering job that waits: what for, as it was seen last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<WaitsFor>,
    /// Of a gathering job that has begun: what it runs without.
    #[serde(default, skip_serializing_if = "Without::is_empty")]
    pub without: Without,
}

impl JobRecord {
    /// The job of a module on an event, before anything has happened to it.
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
            without: Without::default(),
        }
    }
}

/// When a job's events are committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CommitMode {
    /// Each at its close.
    #[default]
    OnClose,
    /// All together, by the write that marks the job succeeded.
    OnSuccess,
}

/// An insight document: values a module keeps for analysis.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InsightRecord {
    /// Deterministic: one for each job.
    pub id: String,
    /// `name` is the module that kept them; `eventId` the event it worked on.
    pub context: Context,
    /// The values.
    pub data: Vec<KeyValue>,
    /// When they were kept.
    pub created: Millis,
    /// The job that kept them.
    pub job_id: JobId,
    /// Its attempt.
    #[serde(default)]
    pub attempt: u32,
    /// See [`crate::event::Publication`]: `staged` until an on-success job has succeeded.
    #[serde(default)]
    pub staged: bool,
}

impl InsightRecord {
    /// The id of a job's insight document.
    pub fn id(job: &JobId) -> String {
        format!("insight:{job}")
    }
}

/// A `modulelogs` document: where one attempt's output is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogRecord {
    /// `module:M-event:E-attempt:N`, as in older Ion.
    pub id: String,
    /// The same text, as in older Ion.
    pub desc: String,
    /// `name` is the module; `eventId` the event it worked on.
    pub context: Context,
    /// The blob.
    pub logs: FileEntry,
    /// Whether the attempt succeeded.
    pub succeeded: bool,
    /// When it was stored.
    pub created: Millis,
}

impl LogRecord {
    /// The id of the document of one attempt's log.
    pub fn id(module: &str, event: &EventId, attempt: u32) -> String {
        format!("module:{module}-event:{event}-attempt:{attempt}")
    }
}
/// An attempt's output in the blob store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredLog {
    /// The blob.
    pub entry: FileEntry,
    /// How many bytes shorter it is than what was written: the middle of a log that is too long.
    pub left_out: u64,
}

/// The beginning of the keys of a correlation's logs: beside its files, so that these alone can be
/// browsed.
pub fn logs_below(correlation: &CorrelationId) -> String {
    format!("logs/{correlation}")
}
