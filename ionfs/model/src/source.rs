//! Sources: what starts a module by itself, by a clock, and the state that one run leaves for the
//! next.
//!
//! A source has one document. It says when the next run begins and which run is the latest; the
//! event and the job of a run are ordinary ones. What a document becomes when something happens is
//! decided in `ion_jobs::sources`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::clock::Millis;
use crate::event::is_event_type;
use crate::id::{CorrelationId, EventId, JobId};
use crate::secret::SecretOrigin;
pub use crate::state::{LeftState, STATE_KEYS, SourceTick, StateFiles, state_prefix};

/// What separates a source's name from the rest of the id of a run's correlation. No source has it
/// in its name.
const RUN_SEPARATOR: char = '@';

/// The beginning of the types of the events that start the modules of sources.
const TICK_TYPE: &str = "ion.tick.";

/// The most bytes of a source's name.
pub const SOURCE_NAME_MAX: usize = 100;

/// Returns the type of the events that start a module for its sources.
pub fn tick_type(module: &str) -> String {
    format!("{TICK_TYPE}{module}")
}

/// Returns the module that events of this type start for a source; none for other types.
pub fn module_of_tick(event_type: &str) -> Option<&str> {
    event_type.strip_prefix(TICK_TYPE)
}

/// Returns whether a text can be a source's name.
pub fn is_source_name(text: &str) -> bool {
    is_event_type(text) && text.len() <= SOURCE_NAME_MAX
}

/// Returns what the ids of the correlations of a source's runs begin with.
pub fn runs_prefix(source: &str) -> String {
    format!("{source}{RUN_SEPARATOR}")
}

/// Returns what the id of the correlation of a source's run begins with, given the run's number.
pub fn numbered_run_prefix(source: &str, number: u64) -> String {
    format!("{}{number:08}-", runs_prefix(source))
}

/// Returns the source whose run a correlation is; none if it is no run.
pub fn source_of_run(correlation: &str) -> Option<&str> {
    correlation.split_once(RUN_SEPARATOR).map(|(source, _)| source)
}

/// When a source's runs begin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleRule {
    /// Again and again after so many milliseconds. The source's name decides at which part of the
    /// period, so that many sources do not begin at once.
    Every(Millis),
    /// At the times of a cron expression.
    At {
        /// The expression: minute, hour, day of the month, month, day of the week.
        cron: String,
        /// The time zone's name, such as `Europe/London`.
        zone: String,
    },
}

/// What happens about scheduled times at which no dispatcher was there to begin a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MissedRuns {
    /// One run makes up for them.
    #[default]
    Last,
    /// Nothing: the next run begins at the next scheduled time.
    Skip,
    /// Each has its run, at most those of the last 24 hours.
    All,
}

/// When a source runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceSchedule {
    /// Its scheduled times.
    pub rule: ScheduleRule,
    /// A run begins up to so many milliseconds after its scheduled time.
    #[serde(default)]
    pub jitter: Millis,
    /// What happens about times that were missed.
    #[serde(default)]
    pub missed: MissedRuns,
}

/// What a person declares of a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceDefinition {
    /// The module that it starts.
    pub module: String,
    /// When it starts it.
    pub schedule: SourceSchedule,
    /// The values that the module receives, checked against its parameters.
    #[serde(default)]
    pub with: BTreeMap<String, String>,
    /// Where the values of the module's secret parameters are, by parameter.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, SecretOrigin>,
    /// The pipeline file that declares it, as a path; none for a source that was added while
    /// dispatchers ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<String>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunEnd {
    /// Its job succeeded: its events are published and its state is kept.
    Succeeded,
    /// Its job is dead. Nothing of it is published or kept.
    Failed,
    /// A person cancelled its job, or its event was removed.
    Cancelled,
}

/// One run of a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceRun {
    /// Its number; 1 for the source's first.
    pub number: u64,
    /// Its scheduled time; for a run that a person asked for, the time of asking.
    pub scheduled: Millis,
    /// Its event.
    pub event: EventId,
    /// Its job.
    pub job: JobId,
    /// Its correlation.
    pub correlation: CorrelationId,
    /// When it was decided to begin it.
    pub began: Millis,
    /// How it ended; none while it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<RunEnd>,
}

impl SourceRun {
    /// Returns the run with this number of a source that was added at `added`. Its ids differ from
    /// those of every other run, also of a source that had the same name before.
    pub fn new(source: &SourceRecord, number: u64, scheduled: Millis, now: Millis) -> Self {
        let name = format!("{}\0{}\0{number}\0{scheduled}", source.id, source.added);
        let event = EventId::new(Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()).to_string());
        let job = JobId::derive(&event, &source.definition.module);
        // The first characters keep a source apart from one that had the same name before.
        let correlation = format!("{}{}", numbered_run_prefix(&source.id, number), event.short());
        let correlation = CorrelationId::new(correlation);
        Self { number, scheduled, event, job, correlation, began: now, end: None }
    }
}

/// Scheduled times in the past, each of which has a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Backfill {
    /// Times after this one are left.
    pub after: Millis,
    /// Up to this one.
    pub until: Millis,
}

/// What a source is doing, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceState {
    /// It waits for its next time.
    Idle,
    /// A run goes on.
    Running,
    /// Its latest run failed; it waits longer than usual.
    Failing,
    /// A person has paused it.
    Paused,
    /// Its module reported that what it reads is gone.
    Gone,
}

impl SourceState {
    /// All states.
    pub const ALL: [Self; 5] = [Self::Idle, Self::Running, Self::Failing, Self::Paused, Self::Gone];

    /// The word that people see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Running => "running",
            Self::Failing => "failing",
            Self::Paused => "paused",
            Self::Gone => "gone",
        }
    }
}

/// The job of the older ingest service that a source was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OlderJobName {
    /// The job's name. Several jobs may have the same.
    pub name: String,
    /// The job's type, such as `ARTICLE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Tells the job from others of its name.
    pub fingerprint: String,
}

/// A source's document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceRecord {
    /// Its name.
    pub id: String,
    /// The version, which every write raises.
    pub version: i64,
    /// What a person declared.
    #[serde(flatten)]
    pub definition: SourceDefinition,
    /// When it was added.
    pub added: Millis,
    /// When a dispatcher has to look at it next. The far future while it is paused or gone.
    pub due: Millis,
    /// The last scheduled time that was dealt with.
    pub last: Millis,
    /// The next scheduled time.
    pub next: Millis,
    /// No scheduled run begins earlier: its last run asked for that, or has failed.
    #[serde(default)]
    pub not_before: Millis,
    /// Whether a person has paused it.
    #[serde(default)]
    pub paused: bool,
    /// Why what it reads is gone, in its module's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<String>,
    /// Whether a person has asked for a run that has not begun.
    #[serde(default)]
    pub asked: bool,
    /// Past times whose runs a person has asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backfill: Option<Backfill>,
    /// The number of runs so far.
    #[serde(default)]
    pub runs: u64,
    /// The latest run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<SourceRun>,
    /// The last run that succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub succeeded: Option<SourceRun>,
    /// How many runs have failed since one succeeded.
    #[serde(default)]
    pub failures: u32,
    /// Why the latest run failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What its next run begins with.
    #[serde(default, skip_serializing_if = "StateFiles::is_empty")]
    pub state: StateFiles,
    /// The dispatcher that ran its latest run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dispatcher: Option<String>,
    /// How many scheduled times were missed.
    #[serde(default)]
    pub missed: u64,
    /// The job of the older ingest service that it was made from; none for all other sources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub older: Option<OlderJobName>,
}

impl SourceRecord {
    /// Returns the run that goes on, if one does.
    pub fn current_run(&self) -> Option<&SourceRun> {
        self.run.as_ref().filter(|run| run.end.is_none())
    }

    /// Returns what it is doing, in one word.
    pub fn state(&self) -> SourceState {
        if self.gone.is_some() {
            SourceState::Gone
        } else if self.paused {
            SourceState::Paused
        } else if self.current_run().is_some() {
            SourceState::Running
        } else if self.failures > 0 {
            SourceState::Failing
        } else {
            SourceState::Idle
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_tells_its_source_and_no_name_looks_like_a_run() {
        let correlation = format!("{}00000001-abc", runs_prefix("a.b-c_d"));
        assert_eq!(source_of_run(&correlation), Some("a.b-c_d"));
        assert_eq!(source_of_run("a.b"), None);
        assert!(is_source_name("bbc-top") && !is_source_name("a@b") && !is_source_name(""));
        assert!(!is_source_name(&"n".repeat(SOURCE_NAME_MAX + 1)));
    }
}
