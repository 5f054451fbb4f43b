//! The sources of a plane: their documents, and the events and jobs of their runs.
//!
//! # How it works
//! A source is due when a dispatcher has to look at it: at its next scheduled time, or while a run
//! goes on from time to time. Every dispatcher looks at every due source; whoever changes its
//! document first decides. A run is decided by that one write, which names its event. Then the
//! event is created, and is an ordinary event from there on: some dispatcher with a free slot
//! claims its job. So no dispatcher owns a source, and nothing is handed over when one comes or
//! goes.
//!
//! # Exactly once
//! What a run leaves, its state, is in the same write of the job's record that commits its events.
//! The next run is decided only once the job is final, and begins with the state of the last run
//! that succeeded. A run that failed cannot be retried once a later one was decided
//! (`Transition::Superseded`): it would begin with an old state, and publish again what the later
//! one has published.
//!
//! # After a crash
//! Between the write that decides a run and the creation of its event: whoever looks next creates
//! the event, whose id and content are those of the document. After a job's end, and before the
//! source's document says so: whoever looks next notes the end.

mod edit;
#[cfg(test)]
mod model;
pub mod older;
mod runs;
mod steps;

use std::collections::BTreeSet;

use ion_model::clock::{self, Millis};
use ion_model::event::{Event, KeyValue};
use ion_model::id::{CorrelationId, EventId};
use ion_model::record::{JobRecord, JobState};
use ion_model::source::{
    Backfill, RunEnd, SourceDefinition, SourceRecord, SourceRun, SourceTick, StateFiles, tick_type,
};
use ion_plane::commit::{Refusal, create_event, create_with_documents};
use ion_plane::first::FirstEvent;
use ion_plane::upload::UploadError;
use ion_stores::{
    Collection, DataPlane, Durability, FieldRange, Guard, Inserted, Pages, Query, StoreError,
    decode, encode,
};
use ion_system::failpoint;
use serde_json::json;
use uuid::Uuid;

pub use self::edit::{EditOutcome, ExpectedSource, SourceTag, WantedSource};
pub use self::runs::{NoRunOfSource, RunReport, SourceRuns};
pub use self::steps::EndedRun;
use crate::ledger::{Ledger, LedgerError};
use crate::pipeline::Module;
use crate::schedule::{ScheduleError, ScheduledTimes};

/// How often a write is tried when other writes come first.
const RACES_MAX: usize = 16;

/// The type of the event that says that a source fails.
pub const FAILING_TYPE: &str = "ion.source.failing";

/// The type of the event that says that a source runs well again.
pub const RECOVERED_TYPE: &str = "ion.source.recovered";

/// Why an operation on a source failed.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The stores failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The ledger failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// An event could not be made.
    #[error(transparent)]
    Upload(#[from] UploadError),
    /// An event could not be created.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// There is no such source.
    #[error("there is no source {0:?}")]
    NoSuchSource(String),
    /// There is such a source already.
    #[error("there is a source {0:?} already")]
    Exists(String),
    /// The source is declared in a pipeline file.
    #[error("source {name:?} is declared in {pipeline}; change it there")]
    OfPipeline {
        /// The source.
        name: String,
        /// The file.
        pipeline: String,
    },
    /// The document has another version than the one that the caller has read.
    #[error("source {0:?} was changed meanwhile; read it again")]
    Changed(String),
    /// The source's schedule cannot be used.
    #[error("source {name:?}: {source}")]
    Schedule {
        /// The source.
        name: String,
        /// What is wrong.
        #[source]
        source: ScheduleError,
    },
    /// Other writes came first too often.
    #[error("source {0:?} was written by others again and again; try once more")]
    Contended(String),
}

/// Who changes a definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefinedBy<'a> {
    /// The pipeline file at this path.
    Pipeline(&'a str),
    /// A person, while dispatchers run.
    Person,
}

/// What became of a source that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookedAt {
    /// A run was decided, and its event is there.
    RunBegan(SourceRun),
    /// The end of a run was noted.
    RunEnded(SourceRun),
    /// Nothing is to be done now, or another dispatcher does it.
    Nothing,
}

/// The sources of a plane.
#[derive(Clone, Debug)]
pub struct Sources {
    ledger: Ledger,
}

impl Sources {
    /// Returns the sources of the ledger's plane.
    pub fn new(ledger: Ledger) -> Self {
        Self { ledger }
    }

    fn plane(&self) -> &DataPlane {
        self.ledger.plane()
    }

    /// Returns a source.
    ///
    /// # Errors
    /// When there is no source of this name, or the store fails.
    pub async fn get(&self, name: &str) -> Result<SourceRecord, SourceError> {
        let found = self.plane().documents.get_as(Collection::Sources, name).await?;
        found.ok_or_else(|| SourceError::NoSuchSource(name.to_owned()))
    }

    /// Returns the sources that a dispatcher has to look at by now, those that are due longest
    /// first, and when the next one is due. At most `limit` are returned.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn due(
        &self,
        now: Millis,
        limit: usize,
    ) -> Result<(Vec<SourceRecord>, Option<Millis>), StoreError> {
        let range = FieldRange::at_least("due", Millis::MIN.into()).below(Millis::MAX.into());
        let query = Query::all(Collection::Sources).within(range).order_by("due").limit(limit + 1);
        let found: Vec<SourceRecord> = self.plane().documents.find_as(query).await?;
        let next = found.iter().map(|source| source.due).find(|due| *due > now);
        let due = found.into_iter().filter(|source| source.due <= now).take(limit).collect();
        Ok((due, next))
    }

    // ---- what people change ----

    /// Adds a source, or changes its definition. Returns the document.
    ///
    /// # Errors
    /// When the schedule cannot be used, or the source is declared elsewhere: by a person or by a
    /// pipeline file.
    pub async fn define(
        &self,
        name: &str,
        definition: SourceDefinition,
        by: DefinedBy<'_>,
    ) -> Result<SourceRecord, SourceError> {
        let times = times_of(name, &definition)?;
        for _ in 0..RACES_MAX {
            let now = clock::now();
            let found = self.plane().documents.get_as(Collection::Sources, name).await?;
            let Some(found): Option<SourceRecord> = found else {
                let added = steps::new_source(name, definition.clone(), &times, now);
                if self.insert(&added).await? {
                    return Ok(added);
                }
                continue;
            };
            check_owner(&found, by)?;
            if found.definition == definition {
                return Ok(found);
            }
            let after = steps::redefine(&found, definition.clone(), &times, now);
            if let Some(after) = self.write(&found, after).await? {
                return Ok(after);
            }
        }
        Err(SourceError::Contended(name.to_owned()))
    }

    /// Adds a source.
    ///
    /// # Errors
    /// When there is one of this name already, or as [`Sources::define`].
    pub async fn add(
        &self,
        name: &str,
        definition: SourceDefinition,
    ) -> Result<SourceRecord, SourceError> {
        let times = times_of(name, &definition)?;
        let added = steps::new_source(name, definition, &times, clock::now());
        match self.insert(&added).await? {
            true => Ok(added),
            false => Err(SourceError::Exists(name.to_owned())),
        }
    }

    /// Removes a source that a pipeline file declared. Its runs and their events stay. Returns
    /// whether it existed.
    async fn remove_declared(&self, name: &str, by: DefinedBy<'_>) -> Result<bool, SourceError> {
        let found = self.plane().documents.get_as(Collection::Sources, name).await?;
        let Some(found): Option<SourceRecord> = found else { return Ok(false) };
        check_owner(&found, by)?;
        Ok(self.plane().documents.delete(Collection::Sources, name, vec![]).await?)
    }

    /// Makes the sources of a pipeline file those that it declares: adds and changes them, and
    /// removes those that it declared before. Returns the names of those that were removed.
    ///
    /// # Errors
    /// As [`Sources::define`].
    pub async fn declare<'a>(
        &self,
        pipeline: &str,
        declared: impl IntoIterator<Item = (&'a String, &'a SourceDefinition)>,
    ) -> Result<Vec<String>, SourceError> {
        let by = DefinedBy::Pipeline(pipeline);
        let mut names = BTreeSet::new();
        for (name, definition) in declared {
            self.define(name, definition.clone(), by).await?;
            names.insert(name.clone());
        }
        let mut removed = Vec::new();
        let mut pages = Pages::by_id(Query::all(Collection::Sources));
        while let Some(page) = pages.next(&*self.plane().documents).await? {
            for document in page {
                let source: SourceRecord = decode(Collection::Sources, document)?;
                let is_former = source.definition.pipeline.as_deref() == Some(pipeline)
                    && !names.contains(&source.id);
                if is_former && self.remove_declared(&source.id, by).await? {
                    removed.push(source.id);
                }
            }
        }
        Ok(removed)
    }

    /// Asks for a run now, also of a source that is paused. It begins when the run that goes on has
    /// ended.
    ///
    /// # Errors
    /// As [`Sources::get`].
    pub async fn ask_for_run(&self, name: &str) -> Result<SourceRecord, SourceError> {
        self.change(name, steps::ask_for_run).await
    }

    /// Asks for a run of each scheduled time in a range that has passed.
    ///
    /// # Errors
    /// As [`Sources::get`].
    pub async fn ask_for_backfill(
        &self,
        name: &str,
        backfill: Backfill,
    ) -> Result<SourceRecord, SourceError> {
        let ask = |source: &SourceRecord, times: &ScheduledTimes, now| {
            steps::ask_for_backfill(source, backfill.clone(), times, now)
        };
        self.change(name, ask).await
    }

    /// Pauses a source: no scheduled run begins.
    ///
    /// # Errors
    /// As [`Sources::get`].
    pub async fn pause(&self, name: &str) -> Result<SourceRecord, SourceError> {
        self.change(name, steps::pause).await
    }

    /// Resumes a source that was paused, or whose module reported that it is gone.
    ///
    /// # Errors
    /// As [`Sources::get`].
    pub async fn resume(&self, name: &str) -> Result<SourceRecord, SourceError> {
        self.change(name, steps::resume).await
    }

    /// Lets the next run begin with this state: with nothing, to reset the source, or with what an
    /// earlier run left, to rewind it.
    ///
    /// # Errors
    /// As [`Sources::get`].
    pub async fn put_state(
        &self,
        name: &str,
        state: StateFiles,
    ) -> Result<SourceRecord, SourceError> {
        let put = |source: &SourceRecord, times: &ScheduledTimes, now| {
            steps::put_state(source, state.clone(), times, now)
        };
        self.change(name, put).await
    }

    async fn change(
        &self,
        name: &str,
        step: impl Fn(&SourceRecord, &ScheduledTimes, Millis) -> SourceRecord,
    ) -> Result<SourceRecord, SourceError> {
        for _ in 0..RACES_MAX {
            let source = self.get(name).await?;
            let times = times_of(name, &source.definition)?;
            let after = step(&source, &times, clock::now());
            if let Some(after) = self.write(&source, after).await? {
                return Ok(after);
            }
        }
        Err(SourceError::Contended(name.to_owned()))
    }

    async fn insert(&self, source: &SourceRecord) -> Result<bool, StoreError> {
        let documents = &self.plane().documents;
        let inserted =
            documents.insert(Collection::Sources, encode(source), None, Durability::Now).await?;
        Ok(inserted == Inserted::New)
    }

    /// Replaces a source's document, unless another write came first. Returns what was written.
    async fn write(
        &self,
        before: &SourceRecord,
        mut after: SourceRecord,
    ) -> Result<Option<SourceRecord>, StoreError> {
        after.version = before.version + 1;
        let expect = vec![("version", json!(before.version)), ("added", json!(before.added))];
        let documents = &self.plane().documents;
        let document = encode(&after);
        let is_written =
            documents.replace(Collection::Sources, document, expect, None, Durability::Now).await?;
        failpoint::hit("source.written");
        Ok(is_written.then_some(after))
    }

    // ---- what the clock changes ----

    /// Looks at a source that is due: notes the end of its run, or decides the next one.
    ///
    /// # Errors
    /// When a store fails, or the schedule cannot be used.
    pub async fn look(&self, source: &SourceRecord) -> Result<LookedAt, SourceError> {
        let times = times_of(&source.id, &source.definition)?;
        let now = clock::now();
        if let Some(run) = source.current_run() {
            return match self.end_of(source, run).await? {
                Some(ended) => self.note_end(source, &ended, None, &times).await,
                None => {
                    self.write(source, steps::look_later(source, now)).await?;
                    Ok(LookedAt::Nothing)
                }
            };
        }
        match self.close_last_run(source).await? {
            LastRun::Closed => {}
            LastRun::GoesOn => {
                self.write(source, steps::reopen_run(source, now)).await?;
                return Ok(LookedAt::Nothing);
            }
            LastRun::SucceededSince(ended) => {
                return self.note_end(source, &ended, None, &times).await;
            }
        }
        let after = steps::begin_run(source, &times, now);
        let Some(after) = self.write(source, after).await? else { return Ok(LookedAt::Nothing) };
        failpoint::hit("source.run-decided");
        match after.current_run() {
            Some(run) => {
                self.create_run_event(&after, run).await?;
                Ok(LookedAt::RunBegan(run.clone()))
            }
            None => Ok(LookedAt::Nothing),
        }
    }

    /// Notes in its source that a job has ended on this dispatcher, if it is the source's latest
    /// run.
    ///
    /// # Errors
    /// When a store fails.
    pub async fn note_job_end(
        &self,
        job: &JobRecord,
        dispatcher: &str,
    ) -> Result<LookedAt, SourceError> {
        let (Some(name), Some(ended)) = (&job.source, ended_run(job)) else {
            return Ok(LookedAt::Nothing);
        };
        let found = self.plane().documents.get_as(Collection::Sources, name).await?;
        let Some(source): Option<SourceRecord> = found else { return Ok(LookedAt::Nothing) };
        if source.run.as_ref().is_none_or(|run| run.job != job.id) {
            return Ok(LookedAt::Nothing);
        }
        let times = times_of(name, &source.definition)?;
        self.note_end(&source, &ended, Some(dispatcher), &times).await
    }

    async fn note_end(
        &self,
        source: &SourceRecord,
        ended: &EndedRun,
        dispatcher: Option<&str>,
        times: &ScheduledTimes,
    ) -> Result<LookedAt, SourceError> {
        let Some(after) = steps::end_run(source, ended, times, clock::now()) else {
            return Ok(LookedAt::Nothing);
        };
        // Announced first: whoever repeats this announces the same event.
        self.announce(source, &after).await?;
        failpoint::hit("source.run-ended");
        let after = SourceRecord { dispatcher: dispatcher.map(str::to_owned), ..after };
        let written = self.write(source, after).await?;
        let run = written.and_then(|after| after.run);
        Ok(run.map_or(LookedAt::Nothing, LookedAt::RunEnded))
    }

    /// Returns how a run has ended; none if it goes on. Creates its event if that is not there yet.
    async fn end_of(
        &self,
        source: &SourceRecord,
        run: &SourceRun,
    ) -> Result<Option<EndedRun>, SourceError> {
        match self.ledger.get(&run.job).await {
            Ok(job) => return Ok(ended_run(&job)),
            Err(LedgerError::NoSuchJob(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let Some(event) = self.ledger.event(&run.event).await? else {
            self.create_run_event(source, run).await?;
            return Ok(None);
        };
        // Nobody will ever make a job of such an event.
        let module = &source.definition.module;
        let is_for_module = event.expected_by.as_ref().is_none_or(|names| names.contains(module));
        Ok(match is_for_module {
            true if !event.cancelled => None,
            _ if event.cancelled => Some(EndedRun::Cancelled),
            _ => {
                let reason = format!("module {module:?} was not registered when the run began");
                Some(EndedRun::Failed(reason))
            }
        })
    }

    /// Makes sure that the latest run, if it ended badly, is never retried. It may have been retried
    /// since its end was noted.
    async fn close_last_run(&self, source: &SourceRecord) -> Result<LastRun, SourceError> {
        let Some(run) = &source.run else { return Ok(LastRun::Closed) };
        if run.end == Some(RunEnd::Succeeded) {
            return Ok(LastRun::Closed);
        }
        for _ in 0..RACES_MAX {
            let job = match self.ledger.get(&run.job).await {
                Ok(job) => job,
                Err(LedgerError::NoSuchJob(_)) => return Ok(LastRun::Closed),
                Err(error) => return Err(error.into()),
            };
            match ended_run(&job) {
                None => return Ok(LastRun::GoesOn),
                Some(ended @ EndedRun::Succeeded(_)) => {
                    return Ok(LastRun::SucceededSince(Box::new(ended)));
                }
                Some(_) if job.superseded => return Ok(LastRun::Closed),
                Some(_) => {}
            }
            if self.ledger.supersede(&job).await? {
                failpoint::hit("source.superseded");
                return Ok(LastRun::Closed);
            }
        }
        Err(LedgerError::Contended(run.job.clone()).into())
    }

    /// Creates the event of a run, unless it is there.
    async fn create_run_event(
        &self,
        source: &SourceRecord,
        run: &SourceRun,
    ) -> Result<(), SourceError> {
        let event = self.run_event(source, run).await?;
        // Only for the latest run: an old one may have ended and been removed meanwhile.
        let guard = Guard::new(Collection::Sources, &source.id, vec![("runs", json!(run.number))]);
        match create_with_documents(self.plane(), vec![], vec![], event, Some(guard)).await {
            // Another dispatcher created it before the source's definition was changed.
            Ok(_) | Err(Refusal::Differs(_) | Refusal::Fenced) => {}
            Err(refusal) => return Err(refusal.into()),
        }
        failpoint::hit("source.run-event");
        Ok(())
    }

    /// Returns the event of a run, which is stored nowhere yet.
    async fn run_event(
        &self,
        source: &SourceRecord,
        run: &SourceRun,
    ) -> Result<Event, SourceError> {
        let mut data: Vec<KeyValue> = source
            .definition
            .with
            .iter()
            .map(|(key, value)| KeyValue { key: key.clone(), value: value.clone() })
            .collect();
        let scheduled = humantime::format_rfc3339_millis(clock::system_time(run.scheduled));
        data.push(KeyValue { key: "scheduled".to_owned(), value: scheduled.to_string() });
        data.push(KeyValue { key: "source".to_owned(), value: source.id.clone() });
        let tick = SourceTick {
            source: source.id.clone(),
            scheduled: run.scheduled,
            state: source.state.clone(),
            secrets: source.definition.secrets.clone(),
        };
        let event_type = tick_type(&source.definition.module);
        let event = self.first_event(&source.id, &run.event, &run.correlation, event_type, data);
        Ok(Event { tick: Some(Box::new(tick)), ..event.await? })
    }

    /// Returns the event that a run of a source would have now, if the source had this definition
    /// and began with this state. The source need not exist. Nothing is stored.
    ///
    /// # Errors
    /// When the schedule cannot be used.
    pub async fn trial_event(
        &self,
        name: &str,
        definition: SourceDefinition,
        state: StateFiles,
    ) -> Result<Event, SourceError> {
        let times = times_of(name, &definition)?;
        let now = clock::now();
        let source = SourceRecord { state, ..steps::new_source(name, definition, &times, now) };
        let run = SourceRun::new(&source, 1, now, now);
        self.run_event(&source, &run).await
    }

    /// Returns an event of a source without files.
    async fn first_event(
        &self,
        source: &str,
        id: &EventId,
        correlation: &CorrelationId,
        event_type: String,
        data: Vec<KeyValue>,
    ) -> Result<Event, SourceError> {
        let first = FirstEvent {
            id: id.clone(),
            correlation_id: correlation.clone(),
            name: source.to_owned(),
            parent: String::new(),
            event_type,
            files: vec![],
            directories: vec![],
            data,
        };
        Ok(first.into_event(self.plane(), correlation.as_str()).await?)
    }

    /// Creates the event that says that a source begins to fail, or runs well again, if a module
    /// subscribes to it.
    async fn announce(
        &self,
        before: &SourceRecord,
        after: &SourceRecord,
    ) -> Result<(), SourceError> {
        let event_type = match (before.failures, after.failures) {
            (0, 1..) => FAILING_TYPE,
            (1.., 0) => RECOVERED_TYPE,
            _ => return Ok(()),
        };
        let registered = self.ledger.registered_modules().await?;
        let is_wanted = |module: &Module| module.on.iter().any(|wanted| wanted == event_type);
        let Some(run) = after.run.as_ref().filter(|_| registered.modules.iter().any(is_wanted))
        else {
            return Ok(());
        };
        let name = format!("{}\0{event_type}\0{}", run.event, after.failures);
        let id = EventId::new(Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()).to_string());
        let pair = |key: &str, value: &str| KeyValue { key: key.into(), value: value.into() };
        let mut data = vec![
            pair("source", &after.id),
            pair("module", &after.definition.module),
            pair("run", run.correlation.as_str()),
            pair("job", run.job.as_str()),
        ];
        data.extend(after.reason.as_deref().map(|reason| pair("reason", reason)));
        let correlation = CorrelationId::new(id.as_str());
        let event = self.first_event(&after.id, &id, &correlation, event_type.to_owned(), data);
        Ok(create_event(self.plane(), event.await?).await?)
    }
}

/// What became of the latest run since its end was noted.
enum LastRun {
    /// It has ended for good, or there was none.
    Closed,
    /// It was retried, and goes on.
    GoesOn,
    /// It was retried, and has succeeded in this way.
    SucceededSince(Box<EndedRun>),
}

/// Returns how the run has ended whose job this is; none if it goes on.
fn ended_run(job: &JobRecord) -> Option<EndedRun> {
    Some(match job.state {
        JobState::Succeeded => {
            EndedRun::Succeeded(job.left.as_deref().cloned().unwrap_or_default())
        }
        JobState::Dead => {
            let reason = job.attempts.last().and_then(|attempt| attempt.reason.clone());
            EndedRun::Failed(reason.unwrap_or_else(|| "its job is dead".to_owned()))
        }
        JobState::Cancelled => EndedRun::Cancelled,
        JobState::Waiting | JobState::Queued | JobState::Starting | JobState::Running => {
            return None;
        }
    })
}

fn times_of(name: &str, definition: &SourceDefinition) -> Result<ScheduledTimes, SourceError> {
    ScheduledTimes::new(name, &definition.schedule)
        .map_err(|source| SourceError::Schedule { name: name.to_owned(), source })
}

/// Returns an error if a person may not change the source because a pipeline file declares it, or
/// the other way round.
fn check_owner(source: &SourceRecord, by: DefinedBy<'_>) -> Result<(), SourceError> {
    match (&source.definition.pipeline, by) {
        // The same file may stand elsewhere on another host. As with modules, the last one counts.
        (Some(_), DefinedBy::Pipeline(_)) => Ok(()),
        (Some(pipeline), DefinedBy::Person) => {
            Err(SourceError::OfPipeline { name: source.id.clone(), pipeline: pipeline.clone() })
        }
        (None, DefinedBy::Person) => Ok(()),
        (None, DefinedBy::Pipeline(_)) => Err(SourceError::Exists(source.id.clone())),
    }
}
