//! The event files: files in `out/events` become events, and `insights.json` is kept, by the rule
//! of [`crate::eventfile`].
//!
//! A file is decided when the kernel reports a close of it, when its last writer is gone, when it
//! gets an event's name ([`renamed`]), and at the end of the job. One decision at a time is made
//! for each file.

mod records;
mod renamed;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use ion_model::event::{
    self, DOUBTFUL_DRAFT_REASON, EventFile, ParsedEventFile, is_doubtful_draft, is_draft,
    is_event_draft,
};
use ion_model::limits::bytes_in_words;
use ion_plane::commit::{Committer, Receipt, Refusal, Rejection};
use ion_system::metrics::PlaneMetrics;
use rustix::fs::OFlags;
use tokio::sync::{Semaphore, SemaphorePermit};

use self::records::EventRecords;
pub(super) use self::renamed::EventBefore;
use super::super::eventfile::{DecisionTrigger, EventDecision};
use super::super::{Errno, Ino, Result, errno};
use super::closed::ClosedFiles;
use super::content::StagedContent;
use super::staging::StagingArea;
use super::table::{EVENTS, OUT};
use super::tasks::JobTasks;
use super::uploads::StagedUploads;

/// The memory that one job may use for event files that are read and decided at the same time, in
/// units of [`READING_UNIT`] bytes: enough for four event files of the largest size that is allowed
/// by default. Parsed documents take more; without a bound, a job of many threads takes all memory
/// of the daemon.
const READING_UNITS: usize = 16 << 10;
const READING_UNIT: u64 = 4096;

/// The most event files of one job that are decided at the same time because their last writer is
/// gone.
const DECIDERS_MAX: usize = 16;

/// The event files of one attempt.
#[derive(Debug)]
pub(super) struct EventFiles {
    staging: Arc<StagingArea>,
    content: Arc<StagedContent>,
    uploads: Arc<StagedUploads>,
    committer: Committer,
    metrics: Arc<PlaneMetrics>,
    tasks: JobTasks,
    /// Event files whose last writer is gone.
    closed: Arc<ClosedFiles<Ino>>,
    records: EventRecords,
    /// Permits for the memory that event files are read into ([`READING_UNITS`]).
    reading: Semaphore,
}

/// A file that can be decided.
#[derive(Clone, Debug)]
struct DecidedFile {
    ino: Ino,
    name: String,
    purpose: FilePurpose,
}

/// What the content of a decided file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FilePurpose {
    /// It says what event is to be committed.
    Event,
    /// It is kept for analysis.
    Insights,
}

impl EventFiles {
    pub(super) fn new(
        staging: Arc<StagingArea>,
        content: Arc<StagedContent>,
        uploads: Arc<StagedUploads>,
        committer: Committer,
        metrics: Arc<PlaneMetrics>,
        tasks: JobTasks,
    ) -> Arc<Self> {
        Arc::new(Self {
            staging,
            content,
            uploads,
            committer,
            metrics,
            tasks,
            closed: ClosedFiles::new(DECIDERS_MAX),
            records: EventRecords::default(),
            reading: Semaphore::new(READING_UNITS),
        })
    }

    /// Returns the attempt's span.
    pub(super) fn span(&self) -> &tracing::Span {
        self.committer.span()
    }

    /// Returns the events committed so far, by file name.
    pub(super) fn receipts(&self) -> BTreeMap<String, Receipt> {
        self.records.receipts()
    }

    /// Returns the event files that were refused and not committed since, by name.
    pub(super) fn rejections(&self) -> BTreeMap<String, Rejection> {
        self.records.rejections()
    }

    /// Decides a file in the background, because its content is final.
    pub(super) fn decide_in_background(self: &Arc<Self>, ino: Ino) {
        self.closed.add(ino);
        let this = self.clone();
        self.closed.start_workers(&self.tasks, move |ino| {
            let this = this.clone();
            async move {
                // No caller receives the errno; the rejection is recorded.
                let _ = this.decide(ino, DecisionTrigger::Final).await;
            }
        });
    }

    /// Decides the file that got this name by a rename, if its content is to be kept as insights.
    pub(super) async fn decide_renamed_insights(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let insights = {
            let table = self.staging.lock();
            if table.is_insights(parent, name) { table.child(parent, name)? } else { None }
        };
        match insights {
            Some(ino) => self.decide(ino, DecisionTrigger::Final).await,
            None => Ok(()),
        }
    }

    /// Decides whether an event file or `insights.json` is committed, refused or left alone, by the
    /// rule of DESIGN.md section 3. Does nothing for other files.
    pub(super) async fn decide(&self, ino: Ino, trigger: DecisionTrigger) -> Result<()> {
        let begun = Instant::now();
        let Some(file) = self.decided_file(ino) else { return Ok(()) };
        let deciding = {
            let table = self.staging.lock();
            let Some(state) = &table.file(ino)?.event else { return Ok(()) };
            // While another close is being decided, the answer to this one is not known yet.
            if !state.needs_decision(trigger) && state.deciding.try_lock().is_ok() {
                return state.previous_answer();
            }
            state.deciding.clone()
        };
        let _one_decision = deciding.lock().await;
        let Some(version) = self.version_to_decide(ino, trigger)? else { return Ok(()) };
        let _room = self.wait_for_memory(ino).await?;
        let content = self.event_content(ino).await;
        let parsed = content
            .map(|content| event::parse_within(&content, self.staging.limits().job_limits()));
        let decision = {
            let mut table = self.staging.lock();
            let Some(state) = &mut table.file_mut(ino)?.event else { return Ok(()) };
            parsed.map(|parsed| {
                let decision = state.decide(trigger, version, parsed);
                // Insights may be written again, even while they are being kept: the latest
                // decision counts.
                state.committing &= file.purpose == FilePurpose::Event;
                decision
            })
        };
        let decision = decision
            .map_err(|error| self.reject(&file.name, &self.unreadable(&file.name, error)))?;
        let Err(refusal) = self.carry_out(&file, decision, begun).await else { return Ok(()) };
        let errno = self.reject(&file.name, &refusal);
        self.metrics.closes.observe_since(begun);
        if let Ok(file) = self.staging.lock().file_mut(ino)
            && let Some(state) = &mut file.event
        {
            state.note_refusal(version, errno);
        }
        Err(errno)
    }

    /// Returns the version of the content that is to be decided now. Returns none if there is
    /// nothing to decide, or the errno of the previous decision.
    fn version_to_decide(&self, ino: Ino, trigger: DecisionTrigger) -> Result<Option<u64>> {
        let table = self.staging.lock();
        let file = table.file(ino)?;
        let Some(state) = &file.event else { return Ok(None) };
        // The file was opened for writing again: that writer's close decides.
        if trigger == DecisionTrigger::Final && !file.writers.is_empty() {
            return Ok(None);
        }
        if !state.needs_decision(trigger) {
            return state.previous_answer().map(|()| None);
        }
        Ok(Some(state.version()))
    }

    /// Does what was decided about a file. `begun` is when the decision began.
    async fn carry_out(
        &self,
        file: &DecidedFile,
        decision: EventDecision,
        begun: Instant,
    ) -> std::result::Result<(), Refusal> {
        match decision {
            EventDecision::Nothing => {}
            EventDecision::Refuse(reason) => return Err(Refusal::Invalid(reason)),
            EventDecision::TooBig(reason) => return Err(Refusal::TooBig(reason)),
            EventDecision::Commit(event) if file.purpose == FilePurpose::Insights => {
                self.committer.store_insights(event.into_values()).await?;
                self.records.remove_rejection(&file.name);
            }
            EventDecision::Commit(event) => {
                let receipt = self.commit(&file.name, event).await?;
                self.accept(file.ino, receipt);
                self.metrics.closes.observe_since(begun);
            }
        }
        Ok(())
    }

    async fn commit(&self, name: &str, event: EventFile) -> std::result::Result<Receipt, Refusal> {
        self.committer.commit(name, event, &*self.uploads).await
    }

    /// Returns a file with the name under which it is decided; none for drafts and data files.
    fn decided_file(&self, ino: Ino) -> Option<DecidedFile> {
        let table = self.staging.lock();
        let links = &table.node(ino).ok()?.links;
        let insights = links.iter().find(|(parent, name)| table.is_insights(*parent, name));
        let (name, purpose) = match insights {
            Some((_, name)) => (name, FilePurpose::Insights),
            None => {
                let is_event = |parent, name| matches!(event_name(parent, name), Ok(Some(_)));
                let (_, name) = links.iter().find(|(parent, name)| is_event(*parent, name))?;
                (name, FilePurpose::Event)
            }
        };
        Some(DecidedFile { ino, name: name.to_string_lossy().into_owned(), purpose })
    }

    async fn event_content(&self, ino: Ino) -> Result<Vec<u8>> {
        self.content.fill_content(ino).await?;
        let file = self.staging.open_file(&self.staging.lock(), ino, OFlags::RDONLY)?;
        let most = self.staging.limits().job_limits().event_bytes;
        ion_system::run_blocking(move || {
            let mut content = Vec::new();
            io::Read::read_to_end(&mut io::Read::take(&file, most + 1), &mut content)
                .map_err(|error| errno(&error))?;
            if content.len() as u64 > most { Err(Errno::TOOBIG) } else { Ok(content) }
        })
        .await
    }

    /// Waits for memory to read an event file. The caller holds it until the file is decided.
    async fn wait_for_memory(&self, ino: Ino) -> Result<SemaphorePermit<'_>> {
        let size = self.staging.getattr(ino)?.size;
        let read = size.min(self.staging.limits().job_limits().event_bytes);
        let units = u32::try_from(read.div_ceil(READING_UNIT).max(1)).unwrap_or(u32::MAX);
        let units = units.min(READING_UNITS as u32);
        Ok(self.reading.acquire_many(units).await.expect("the semaphore is never closed"))
    }

    /// Returns the refusal of an event file whose own content cannot be read.
    fn unreadable(&self, name: &str, error: Errno) -> Refusal {
        if error == Errno::TOOBIG {
            let most = bytes_in_words(self.staging.limits().job_limits().event_bytes);
            return Refusal::TooBig(format!("an event file may have at most {most}"));
        }
        Refusal::Unreadable { path: name.to_owned(), source: error.into() }
    }

    /// Records that a file was committed. It cannot change from now on.
    fn accept(&self, ino: Ino, receipt: Receipt) {
        if let Ok(file) = self.staging.lock().file_mut(ino) {
            file.event.get_or_insert_default().is_committed = true;
            // Nothing of it is uploaded. A job may publish very many events.
            file.in_order = None;
        }
        self.records.add_receipt(receipt);
    }

    /// Records that a file was refused. Returns the errno that the module receives.
    fn reject(&self, name: &str, refusal: &Refusal) -> Errno {
        self.metrics.refusals.add(1);
        let rejection = Rejection::new(name, refusal);
        tracing::warn!(
            job = %self.committer.origin().job_id,
            event = name,
            errno = rejection.errno.name(),
            reason = rejection.reason,
            "an event was rejected"
        );
        self.records.add_rejection(name, rejection);
        refusal.errno().number()
    }

    /// Decides every event file, and the insights, as if the module had ended. Returns a rejection
    /// for each file that cannot be decided because a process may still write to it.
    pub(super) async fn decide_all(&self) -> Vec<Rejection> {
        let mut open = Vec::new();
        for ino in self.undecided_files() {
            let Some(file) = self.decided_file(ino) else { continue };
            match self.uploads.wait_until_closed(ino, &file.name).await {
                // A refusal is recorded by `decide` itself.
                Ok(()) => drop(self.decide(ino, DecisionTrigger::Final).await),
                Err(refusal) => open.push(Rejection {
                    reason: "it is still open for writing; close it first".into(),
                    ..Rejection::new(&file.name, &refusal)
                }),
            }
        }
        self.refuse_whole_drafts().await;
        open
    }

    /// Decides what is left after the module has ended, because its content is final now. Waits
    /// until the commits have ended.
    pub(super) async fn finish(&self) {
        for ino in self.undecided_files() {
            // The processes that had it open are gone.
            if let Ok(file) = self.staging.lock().file_mut(ino) {
                file.writers.clear();
            }
            // A job that was ended by force decides nothing more: a commit now would hold up its
            // end again.
            if !self.tasks.are_stopped() {
                let _ = self.decide(ino, DecisionTrigger::Final).await;
            }
        }
        if !self.tasks.are_stopped() {
            self.refuse_whole_drafts().await;
        }
        self.committer.wait_for_marks().await;
    }

    /// Returns the files of `out/events`, and those kept for analysis, that are not committed as
    /// events.
    fn undecided_files(&self) -> Vec<Ino> {
        let table = self.staging.lock();
        let events = table.files_in(EVENTS).into_iter();
        let insights =
            table.files_in(OUT).into_iter().filter(|(name, _)| table.is_insights(OUT, name));
        let undecided = |ino: &Ino| {
            table
                .file(*ino)
                .is_ok_and(|file| file.event.as_ref().is_none_or(|state| !state.is_committed))
        };
        events.chain(insights).map(|(_, ino)| ino).filter(undecided).collect()
    }

    /// Rejects each file that is a draft only by the form of its name and holds a whole event at
    /// the end. It was not meant as a draft, and its module must not look as if it had published
    /// the event.
    async fn refuse_whole_drafts(&self) {
        for ino in self.undecided_files() {
            let Some(name) = self.doubtful_draft(ino) else { continue };
            let Ok(content) = self.event_content(ino).await else { continue };
            let parsed = event::parse_within(&content, self.staging.limits().job_limits());
            if matches!(parsed, ParsedEventFile::Complete(file) if file.event_type.is_some()) {
                self.reject(&name, &Refusal::Invalid(DOUBTFUL_DRAFT_REASON.into()));
            }
        }
    }

    /// Returns the name of a file that is a draft only by the form of its name.
    fn doubtful_draft(&self, ino: Ino) -> Option<String> {
        let table = self.staging.lock();
        let (_, name) = table.node(ino).ok()?.links.iter().find(|(parent, _)| *parent == EVENTS)?;
        let name = name.to_str()?;
        (is_doubtful_draft(name) && !is_draft(name)).then(|| name.to_owned())
    }
}

/// Returns the event's name if a file of this name is an event; none for drafts and other
/// directories. Returns EILSEQ if the name is not UTF-8: converted to UTF-8, two names could become
/// one.
pub(super) fn event_name(parent: Ino, name: &OsStr) -> Result<Option<String>> {
    if parent != EVENTS {
        return Ok(None);
    }
    let name = name.to_str().ok_or(Errno::ILSEQ)?;
    Ok((!is_event_draft(name)).then(|| name.to_owned()))
}
