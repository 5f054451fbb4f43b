//! The trace of a run: the same records that a pipeline of as many modules would have left.
//!
//! E0 -> job of link 1 -> E1 -> job of link 2 -> E2 ...: each link works on the event of what the
//! link before it wrote. The chain's own job, on E0, is recorded as well. If a link did not end
//! well, the ones before it may have been cut off. So an output becomes an event only if its link
//! and all links before it ended well, and the jobs of the other links have the last of these
//! events as their parent.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use ion_jobs::pipeline::Module;
use ion_model::clock;
use ion_model::errors::error_chain;
use ion_model::event::{Context, DocumentType, Event, FileEntry, KeyValue, PublicationState};
use ion_model::id::{EventId, JobId};
use ion_model::record::logs_prefix;
use ion_model::record::{Attempt, AttemptEnd, JobRecord, JobState, LogRecord};
use ion_model::text::format_tail;
use ion_model::usage::AttemptUsage;
use ion_model::version::ModuleVersion;
use ion_plane::commit::{Refusal, TooDeep, create_with_documents};
use ion_plane::node::Node;
use ion_plane::upload::store_bytes_unsynced;
use ion_stores::{Collection, DataPlane, Guard, Inserted, encode};
use serde_json::Value;

use super::outcome::{LinkEnd, LinkExit, total_usage};
use super::spool::{Spool, SpooledBlob};
use super::{ChainEnd, InputState, Link, LinkFailure};
use crate::sandbox::ProcessExit;

/// The name of a link's output, as a file of its event.
pub(super) const STDOUT: &str = "stdout";

/// The name of the first link's input, as a file of the first event.
pub const STDIN: &str = "stdin";

/// The most bytes of stderr in a [`LinkFailure`].
const STDERR_BYTES_MAX: usize = 8 << 10;

/// The recorder of one run.
pub(super) struct Recording {
    plane: Arc<DataPlane>,
    module: Arc<Module>,
    first: Event,
    stored: InputState,
    /// The chain's version; none where another process records it.
    version: Option<ModuleVersion>,
    /// The largest allowed depth of its last event below the first one of its correlation.
    depth_max: u64,
    /// The most time that the stores may take for one recording.
    deadline: Duration,
    /// The ids of the events and jobs that the run will have, by link: each event follows from the
    /// one before.
    steps: Vec<Step>,
}

/// How the links of a run ended, and what is recorded of them.
#[derive(Debug)]
pub(super) struct FlowOutcome {
    /// Each link, in order.
    pub(super) links: Vec<LinkEnd>,
    /// The stored input of the first link; none where the input is an event's file already.
    pub(super) input: Option<SpooledBlob>,
    /// Whether a part of the input was not read.
    pub(super) cut_off: bool,
    /// Whether the run was asked to stop.
    pub(super) stopped: bool,
    /// The part of the trace that is recorded already.
    pub(super) begun: Option<ChainTrace>,
    /// Why Ion itself failed, in words; none if it did not.
    pub(super) broken: Option<String>,
}

/// The part of a run's trace that exists so far.
#[derive(Debug)]
pub(super) struct ChainTrace {
    /// The event that the next link worked on.
    on: Event,
    /// The same event, kept back until it is known whether a link follows; none if it is written
    /// already.
    last: Option<Event>,
    /// How many links are in the trace.
    links: usize,
    /// Blobs and documents that are not written yet.
    blobs: Vec<SpooledBlob>,
    documents: Vec<(Collection, Value)>,
}

/// The reason why a run is not recorded.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    /// An event or its documents were refused.
    #[error("it could not be recorded")]
    Refused(#[source] Refusal),
    /// The stores did not answer for this time.
    #[error("it could not be recorded: the stores gave no answer for {} s", .0.as_secs())]
    NoAnswer(Duration),
}

/// The ids of a link's job and of the event that it makes.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) job: JobId,
    pub(super) event: EventId,
}

impl Recording {
    pub(super) fn new(
        node: &Node,
        module: Arc<Module>,
        first: Event,
        stored: InputState,
        version: Option<ModuleVersion>,
    ) -> Self {
        let steps = derive_steps(&module, &first.id).collect();
        let plane = Arc::new(node.plane.clone());
        let deadline = node.settings.commit_deadline;
        let depth_max = module.limits.apply_to(node.settings.limits).lineage_depth;
        Self { plane, module, first, stored, version, depth_max, deadline, steps }
    }

    /// Returns the spool for the input; none where the input is an event's file already.
    pub(super) fn input_spool(&self) -> Option<Spool> {
        self.stores_first_event().then(|| self.new_spool(STDIN, STDIN))
    }

    /// Returns the spool for a link's output.
    pub(super) fn output_spool(&self, index: usize) -> Spool {
        self.new_spool(&format!("{}-{STDOUT}", index + 1), STDOUT)
    }

    /// Returns a spool for a blob of this run. All blobs of a run lie in one folder, so that a
    /// store that makes folders durable has only one to sync.
    fn new_spool(&self, path: &str, name: &'static str) -> Spool {
        let correlation = &self.first.context.correlation_id;
        let key =
            format!("{correlation}/{}/{}.0/{path}", self.chain_job_id(), self.stored.attempt());
        Spool::new(self.plane.clone(), key, name)
    }

    /// Removes a blob that no event will name.
    pub(super) async fn delete_blob(&self, key: &str) {
        if let Err(error) = self.plane.blobs.delete(key).await {
            tracing::debug!(
                key,
                error = error_chain(&error),
                "a blob that nothing names stays until the next `ion gc`"
            );
        }
    }

    /// Records what all links but the last one did. These links have ended well.
    ///
    /// # Errors
    /// Why it cannot be recorded.
    pub(super) async fn record_first_links(
        &self,
        input: Option<&SpooledBlob>,
        cut_off: bool,
        links: &[LinkEnd],
    ) -> Result<ChainTrace, RecordError> {
        self.with_deadline(async {
            let mut trace = self.begin_trace(input, cut_off);
            self.add_links(&mut trace, links, links.len()).await?;
            let last =
                trace.last.take().map(|event| (Collection::Events, encode(&event.for_nobody())));
            trace.documents.extend(last);
            self.write_pending(&mut trace, None).await?;
            Ok(trace)
        })
        .await
    }

    /// Writes the whole trace, which is durable when this returns.
    pub(super) async fn record_rest(&self, outcome: &mut FlowOutcome) -> ChainEnd {
        match self.with_deadline(self.write_rest(outcome)).await {
            Ok(end) => end,
            Err(error) => ChainEnd::Broken { reason: error_chain(&error) },
        }
    }

    async fn with_deadline<T>(
        &self,
        work: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, RecordError> {
        let done = tokio::time::timeout(self.deadline, work).await;
        done.map_err(|_| RecordError::NoAnswer(self.deadline))?.map_err(RecordError::Refused)
    }

    async fn write_rest(&self, outcome: &mut FlowOutcome) -> Result<ChainEnd, Refusal> {
        if let Some(reason) = outcome.broken.take() {
            return Ok(ChainEnd::Broken { reason });
        }
        let begun = outcome.begun.take();
        let links = &outcome.links;
        let well = links.iter().take_while(|end| end.how.ended_well()).count();
        let failed =
            links.iter().position(|end| !end.how.ended_well() && end.how != LinkExit::GivenUp);
        let end = match failed {
            _ if well == links.len() => {
                ChainEnd::Well { event: self.steps[well - 1].event.clone() }
            }
            Some(index) if !outcome.stopped => ChainEnd::Failed(self.failure(index, &links[index])),
            _ => ChainEnd::Cancelled,
        };
        let mut trace =
            begun.unwrap_or_else(|| self.begin_trace(outcome.input.as_ref(), outcome.cut_off));
        if self.stores_first_event() && !self.is_single_link() {
            trace.documents.push((Collection::Jobs, encode(&self.chain_record(&end, links))));
        }
        self.add_links(&mut trace, links, well).await?;
        let published = match (trace.last.take(), &end) {
            (last, ChainEnd::Well { .. }) => last,
            (last, _) => {
                let last = last.map(|event| (Collection::Events, encode(&event.for_nobody())));
                trace.documents.extend(last);
                None
            }
        };
        if let Some(event) = &published {
            TooDeep::check(event.depth, self.depth_max)?;
        }
        let synced = published.is_some();
        self.write_pending(&mut trace, published).await?;
        if !synced {
            self.plane.documents.sync().await?;
        }
        Ok(end)
    }

    /// Begins a trace with the first event.
    fn begin_trace(&self, input: Option<&SpooledBlob>, cut_off: bool) -> ChainTrace {
        let first = self.first_event(input, cut_off);
        let mut documents = Vec::new();
        if self.stores_first_event() {
            documents.push((Collection::Events, encode(&first)));
        }
        ChainTrace {
            on: first,
            last: None,
            links: 0,
            blobs: input.cloned().into_iter().collect(),
            documents,
        }
    }

    /// Adds the links that the trace does not have yet. Only the output of the first `well` links
    /// becomes events.
    async fn add_links(
        &self,
        trace: &mut ChainTrace,
        links: &[LinkEnd],
        well: usize,
    ) -> Result<(), Refusal> {
        let new = &links[trace.links..];
        let numbers = trace.links + 1..;
        let logs =
            try_join_all(new.iter().zip(numbers).map(|(end, number)| self.store_log(end, number)))
                .await?;
        for (link, log) in new.iter().zip(logs) {
            let index = trace.links;
            trace.links += 1;
            trace.blobs.extend(link.output.clone());
            trace.blobs.extend(log.clone());
            let log = log.map(|blob| blob.entry);
            if let Some(log) = &log {
                trace
                    .documents
                    .push((Collection::Events, encode(&self.log_record(link, &trace.on, log))));
            }
            if !self.is_single_link() || self.stores_first_event() {
                trace.documents.push((
                    Collection::Jobs,
                    encode(&self.link_record(index, link, &trace.on, log)),
                ));
            }
            if let Some(output) = link.output.as_ref().filter(|_| index < well) {
                let event = self.link_event(index, link, &trace.on, output.entry.clone());
                trace.on = event.clone();
                // All events but the last are published to no module: the next link has read them.
                if let Some(event) = trace.last.replace(event) {
                    trace.documents.push((Collection::Events, encode(&event.for_nobody())));
                }
            }
        }
        Ok(())
    }

    /// Writes the trace's pending blobs and documents, and the `published` event last. All of it is
    /// durable when this returns if there is such an event; else only after a sync.
    async fn write_pending(
        &self,
        trace: &mut ChainTrace,
        published: Option<Event>,
    ) -> Result<(), Refusal> {
        let soon = |blob: SpooledBlob| blob.not_durable.map(|bytes| (blob.entry.key, bytes));
        let blobs: Vec<_> = trace.blobs.drain(..).filter_map(soon).collect();
        let documents = std::mem::take(&mut trace.documents);
        let written = match published {
            Some(event) => {
                create_with_documents(&self.plane, blobs, documents.clone(), event, self.guard())
                    .await?
            }
            None => self.plane.insert_with_blobs(blobs, documents.clone(), self.guard()).await?,
        };
        for ((collection, document), inserted) in documents.into_iter().zip(written) {
            // An earlier attempt wrote this job; its record describes that attempt, so it is
            // replaced.
            if collection == Collection::Jobs && matches!(inserted, Inserted::Existing(_)) {
                self.plane.documents.put(collection, document, self.guard()).await?;
            }
        }
        Ok(())
    }

    /// Returns whether the chain is one link, whose job is the chain's own.
    fn is_single_link(&self) -> bool {
        self.steps.len() == 1
    }

    /// Returns whether the first event is to be recorded too.
    fn stores_first_event(&self) -> bool {
        matches!(self.stored, InputState::Not)
    }

    fn guard(&self) -> Option<Guard> {
        match &self.stored {
            InputState::Not => None,
            InputState::By { guard, .. } => Some(guard.clone()),
        }
    }

    fn first_event(&self, input: Option<&SpooledBlob>, cut_off: bool) -> Event {
        let mut first = self.first.clone();
        if let Some(input) = input {
            first.files = vec![input.entry.clone()];
        }
        if cut_off && self.stores_first_event() {
            first.data.push(KeyValue { key: "cutOff".into(), value: "true".into() });
        }
        if self.stores_first_event() { first.for_nobody() } else { first }
    }

    /// Returns the id of the chain's own job, on the first event.
    fn chain_job_id(&self) -> JobId {
        JobId::derive(&self.first.id, &self.module.name)
    }

    fn chain_record(&self, end: &ChainEnd, links: &[LinkEnd]) -> JobRecord {
        let (state, attempt_end, reason) = match end {
            ChainEnd::Failed(failure) => {
                let reason = format!("link {}: {}", failure.link, failure.reason);
                let end = if failure.timed_out { AttemptEnd::TimedOut } else { AttemptEnd::Failed };
                (JobState::Dead, end, Some(reason))
            }
            ChainEnd::Well { .. } => (JobState::Succeeded, AttemptEnd::Succeeded, None),
            _ => (JobState::Cancelled, AttemptEnd::Cancelled, Some("cancelled".into())),
        };
        let started = links.iter().map(|end| end.started).min().unwrap_or_else(clock::now);
        let ended = links.iter().map(|end| end.ended).max().unwrap_or(started);
        let attempt = Attempt {
            ended: Some(ended),
            end: Some(attempt_end),
            reason,
            usage: total_usage(links),
            version: self.version.clone(),
            ..Attempt::new(1, started)
        };
        self.job_record(self.chain_job_id(), &self.module.name, &self.first, state, attempt)
    }

    fn link_record(
        &self,
        index: usize,
        end: &LinkEnd,
        on: &Event,
        log: Option<FileEntry>,
    ) -> JobRecord {
        let (state, attempt_end) = match &end.how {
            how if how.ended_well() => (JobState::Succeeded, AttemptEnd::Succeeded),
            LinkExit::TimedOut(_) => (JobState::Dead, AttemptEnd::TimedOut),
            LinkExit::GivenUp => (JobState::Cancelled, AttemptEnd::Cancelled),
            _ => (JobState::Dead, AttemptEnd::Failed),
        };
        // The chain's own job has both, for all links: sums over jobs would count them twice.
        let (usage, version) = match self.is_single_link() {
            true => (end.usage(), self.version.clone()),
            false => (AttemptUsage::default(), None),
        };
        let attempt = Attempt {
            ended: Some(end.ended),
            end: Some(attempt_end),
            exit_code: end.how.exit_code(),
            reason: (end.how != LinkExit::Exited(ProcessExit::Code(0))).then(|| end.how.in_words()),
            log,
            usage,
            version,
            ..Attempt::new(self.stored.attempt(), end.started)
        };
        self.job_record(
            self.steps[index].job.clone(),
            self.step_name(&end.link),
            on,
            state,
            attempt,
        )
    }

    fn job_record(
        &self,
        id: JobId,
        module: &str,
        on: &Event,
        state: JobState,
        attempt: Attempt,
    ) -> JobRecord {
        let started = attempt.started;
        JobRecord {
            attempt: attempt.number,
            ended: attempt.ended,
            failures: u32::from(state == JobState::Dead),
            attempts: vec![attempt],
            due: 0,
            ..JobRecord::new(id, module, on, state, started)
        }
    }

    /// Returns the name of a link's event and job: the link's, or the module's if the chain has
    /// only this link.
    fn step_name<'a>(&'a self, link: &'a Link) -> &'a str {
        if self.is_single_link() { &self.module.name } else { &link.name }
    }

    fn link_event(&self, index: usize, end: &LinkEnd, on: &Event, output: FileEntry) -> Event {
        let last = index + 1 == self.steps.len();
        let event_type = match self.module.emits.first() {
            Some(event_type) if last => event_type.clone(),
            _ => format!("{}.{}", self.first.event_type, index + 1),
        };
        let id = self.steps[index].event.clone();
        Event {
            context: Context {
                name: self.step_name(&end.link).to_owned(),
                event_id: id.clone(),
                correlation_id: self.first.context.correlation_id.clone(),
                parent_event_id: on.id.to_string(),
                document_type: DocumentType::EventMeta,
            },
            id,
            event_type,
            files: vec![output],
            file_list: None,
            data: vec![],
            created: end.ended,
            publication: PublicationState::Unpublished,
            depth: on.child_depth(),
            file_name: Some(STDOUT.into()),
            job_id: Some(self.steps[index].job.clone()),
            attempt: Some(self.stored.attempt()),
            publisher: None,
            directories: vec![],
            unrouted: false,
            cancelled: false,
            expected_by: None,
            registry: 0,
            unclaimed: false,
            tick: None,
        }
    }

    /// Stores a link's stderr as the log of its job; none if it wrote nothing.
    async fn store_log(
        &self,
        end: &LinkEnd,
        number: usize,
    ) -> Result<Option<SpooledBlob>, Refusal> {
        // The log of the chain's own job has the stderr of all its links.
        if end.stderr.is_empty() || (self.is_single_link() && !self.stores_first_event()) {
            return Ok(None);
        }
        // The key has the link's number too: a chain may have the same link twice.
        let key = format!(
            "{}/{}/{number}-{}-attempt-{}.log",
            logs_prefix(&self.first.context.correlation_id),
            self.first.id,
            end.link.id(),
            self.stored.attempt()
        );
        let bytes = end.stderr.clone();
        let entry =
            store_bytes_unsynced(&*self.plane.blobs, key, "log".into(), bytes.clone()).await?;
        Ok(Some(SpooledBlob { entry, not_durable: Some(bytes) }))
    }

    fn log_record(&self, end: &LinkEnd, on: &Event, log: &FileEntry) -> LogRecord {
        let name = self.step_name(&end.link);
        let id = LogRecord::id(name, &on.id, self.stored.attempt());
        let context = Context {
            name: name.to_owned(),
            document_type: DocumentType::ModuleLogs,
            ..on.context.clone()
        };
        LogRecord {
            desc: id.clone(),
            id,
            context,
            logs: log.clone(),
            succeeded: end.how.ended_well(),
            created: end.ended,
        }
    }

    fn failure(&self, index: usize, end: &LinkEnd) -> LinkFailure {
        let from = end.stderr.len().saturating_sub(STDERR_BYTES_MAX);
        LinkFailure {
            link: end.link.name.clone(),
            link_id: end.link.id(),
            job: self.steps[index].job.clone(),
            reason: end.how.in_words(),
            exit_code: end.how.exit_code(),
            timed_out: matches!(end.how, LinkExit::TimedOut(_)),
            stderr: format_tail(end.stderr.len() as u64, &end.stderr[from..]),
        }
    }
}

/// Returns the ids of each link's job and of the event that it makes, for a run on this first
/// event. A chain of one link is that link: its job is the module's.
pub(super) fn derive_steps<'a>(
    module: &'a Module,
    first: &EventId,
) -> impl Iterator<Item = Step> + use<'a> {
    let mut on = first.clone();
    module.links.iter().map(move |link| {
        let name = if module.links.len() == 1 { module.name.clone() } else { link.id() };
        let event = EventId::derive(&on, &name, STDOUT);
        let job = JobId::derive(&std::mem::replace(&mut on, event.clone()), &name);
        Step { job, event }
    })
}
