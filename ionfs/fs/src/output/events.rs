//! Files in `out/events` become events, and `insights.json` is kept, by the rule of
//! [`super::super::eventfile`].

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use ion_model::event::{
    self, ParsedEventFile, WHOLE_DRAFT, is_doubtful_draft, is_draft, is_event_draft,
};
use ion_model::limits::bytes_in_words;
use ion_plane::commit::{Receipt, Refusal, Rejection};
use rustix::fs::OFlags;
use tokio::sync::SemaphorePermit;

use super::super::eventfile::{DecisionTrigger, EventDecision};
use super::super::{Attr, Errno, Ino, Result, errno};
use super::{EVENTS, OUT, Output, READING_UNIT, READING_UNITS, RenameOver};

/// How long a rename to an event's name waits for the RELEASE of a file whose document is not
/// complete. The kernel sends the RELEASE within a millisecond of the close. A file that is still
/// open may be written further, and is decided at its close.
const CLOSE_WAIT: Duration = Duration::from_millis(200);

/// Whether a file that receives an event's name is the same event as the one that already has this
/// name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EventBefore {
    Same,
    None,
}

impl Output {
    /// Renames a file. If the new name is an event's, commits first and then renames (rule 5). If
    /// the new name is `insights.json`, renames first and then keeps the content.
    pub(crate) async fn rename(
        &self,
        parent: Ino,
        name: &OsStr,
        newparent: Ino,
        newname: &OsStr,
        over: RenameOver,
    ) -> Result<()> {
        if let Some(event_name) = self.event_name(newparent, newname)? {
            let ino = self.staging.lock().child(parent, name)?.ok_or(Errno::NOENT)?;
            return self
                .adopt_as_event(ino, &event_name, |same| {
                    let over = if same == EventBefore::Same && over == RenameOver::Anything {
                        RenameOver::SameEvent
                    } else {
                        over
                    };
                    self.rename_plain(parent, name, newparent, newname, over)
                })
                .await;
        }
        self.rename_plain(parent, name, newparent, newname, over)?;
        let insights = {
            let table = self.staging.lock();
            if table.is_insights(newparent, newname) {
                table.child(newparent, newname)?
            } else {
                None
            }
        };
        match insights {
            Some(ino) => self.decide(ino, DecisionTrigger::Final).await,
            None => Ok(()),
        }
    }

    /// Makes a hard link. If the new name is an event's, commits first (rule 6).
    pub(crate) async fn link_or_commit(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Attr> {
        if let Some(event_name) = self.event_name(parent, name)? {
            self.adopt_as_event(ino, &event_name, |_| self.link(ino, parent, name).map(drop))
                .await?;
            return self.staging.getattr(ino);
        }
        self.link(ino, parent, name)
    }

    /// Returns the event's name if a file of this name is an event; none for drafts and other
    /// directories. Returns EILSEQ if the name is not UTF-8: converted to UTF-8, two names could
    /// become one.
    fn event_name(&self, parent: Ino, name: &OsStr) -> Result<Option<String>> {
        if parent != EVENTS {
            return Ok(None);
        }
        let name = name.to_str().ok_or(Errno::ILSEQ)?;
        Ok((!is_event_draft(name)).then(|| name.to_owned()))
    }

    /// Commits the content of `ino` under an event's name, then calls `moved` to put the file
    /// there.
    async fn adopt_as_event(
        &self,
        ino: Ino,
        name: &str,
        moved: impl Fn(EventBefore) -> Result<()>,
    ) -> Result<()> {
        let begun = Instant::now();
        let (deciding, was_event) = {
            let mut table = self.staging.lock();
            let file = table.file_mut(ino)?;
            let was_event = file.event.is_some();
            (file.event.get_or_insert_default().deciding.clone(), was_event)
        };
        let adopted = {
            let _one_decision = deciding.lock().await;
            self.adopt_alone(ino, name, moved).await
        };
        self.daemon.metrics.closes.since(begun);
        if let Ok(file) = self.staging.lock().file_mut(ino)
            && let Some(state) = &mut file.event
            && state.committed.is_none()
        {
            state.committing = false;
            // If the commit was refused, a file of `out/data` is a data file as before.
            if adopted.is_err() && !was_event {
                file.event = None;
            }
        }
        adopted
    }

    async fn adopt_alone(
        &self,
        ino: Ino,
        name: &str,
        moved: impl Fn(EventBefore) -> Result<()>,
    ) -> Result<()> {
        let (writing, version) = {
            let table = self.staging.lock();
            let file = table.file(ino)?;
            let writing = file.writers.iter().any(|writer| writer.may_write_more());
            let Some(state) = &file.event else { return Err(Errno::IO) };
            if state.committed.is_some() {
                return Err(Errno::ROFS);
            }
            (writing, state.version())
        };
        let _room = self.room_to_read(ino).await?;
        let content = match self.event_content(ino).await {
            Ok(content) => content,
            Err(error) => return Err(self.reject(name, &self.unreadable(name, error))),
        };
        let decision = match event::parse_within(&content, self.staging.limits().most()) {
            ParsedEventFile::Complete(file) => EventDecision::Commit(file),
            ParsedEventFile::Invalid(reason) => EventDecision::Refuse(reason),
            ParsedEventFile::TooBig(reason) => EventDecision::TooBig(reason),
            // The file is empty, or a process is still writing it: that process's own close
            // decides.
            ParsedEventFile::Empty => EventDecision::Nothing,
            ParsedEventFile::Incomplete if writing && self.is_written_on(ino).await => {
                EventDecision::Nothing
            }
            ParsedEventFile::Incomplete => {
                EventDecision::Refuse("the JSON document is cut off".into())
            }
        };
        let over_committed = self.committed_under(name);
        match decision {
            EventDecision::Nothing if over_committed.is_some() => Err(Errno::ROFS),
            EventDecision::Nothing => moved(EventBefore::None),
            EventDecision::Refuse(reason) => Err(self.reject(name, &Refusal::Invalid(reason))),
            EventDecision::TooBig(reason) => Err(self.reject(name, &Refusal::TooBig(reason))),
            EventDecision::Commit(file) => {
                if let Some(state) = &mut self.staging.lock().file_mut(ino)?.event {
                    if state.version() != version {
                        return Err(self.reject(name, &Refusal::StillOpen(name.to_owned())));
                    }
                    state.committing = true;
                }
                let receipt = match self.committer.commit(name, file, self).await {
                    Ok(receipt) => receipt,
                    Err(refusal) => return Err(self.reject(name, &refusal)),
                };
                // A file that is the same event again replaces the file that was committed first.
                moved(if over_committed.is_some() {
                    EventBefore::Same
                } else {
                    EventBefore::None
                })?;
                self.accept(ino, receipt);
                Ok(())
            }
        }
    }

    /// Returns whether a process still has the file open for writing. Waits first if a close that
    /// only the RELEASE reports may be on its way.
    async fn is_written_on(&self, ino: Ino) -> bool {
        let deadline = tokio::time::Instant::now() + CLOSE_WAIT;
        loop {
            let released = self.released.notified();
            {
                let table = self.staging.lock();
                let Ok(file) = table.file(ino) else { return false };
                if file.writers.is_empty()
                    || file.writers.iter().any(|writer| writer.is_surely_open())
                {
                    return !file.writers.is_empty();
                }
            }
            if tokio::time::timeout_at(deadline, released).await.is_err() {
                return true;
            }
        }
    }

    fn committed_under(&self, name: &str) -> Option<Receipt> {
        let table = self.staging.lock();
        let ino = table.child(EVENTS, OsStr::new(name)).ok()??;
        table.file(ino).ok()?.event.as_ref()?.committed.clone()
    }

    /// Decides whether an event file or `insights.json` is committed, refused or left alone, by the
    /// rule of DESIGN.md section 3. Does nothing for other files.
    pub(super) async fn decide(&self, ino: Ino, trigger: DecisionTrigger) -> Result<()> {
        let begun = Instant::now();
        let Some((name, insights)) = self.decided_name(ino) else { return Ok(()) };
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
        let version = {
            let table = self.staging.lock();
            let file = table.file(ino)?;
            let Some(state) = &file.event else { return Ok(()) };
            // The file was opened for writing again: that writer's close decides.
            if trigger == DecisionTrigger::Final && !file.writers.is_empty() {
                return Ok(());
            }
            if !state.needs_decision(trigger) {
                return state.previous_answer();
            }
            state.version()
        };
        let _room = self.room_to_read(ino).await?;
        let parsed = self
            .event_content(ino)
            .await
            .map(|content| event::parse_within(&content, self.staging.limits().most()));
        let decision = {
            let mut table = self.staging.lock();
            let Some(state) = &mut table.file_mut(ino)?.event else { return Ok(()) };
            match parsed {
                Ok(parsed) => {
                    let decision = state.decide(trigger, version, parsed);
                    // Insights may be written again, even while they are being kept: the latest
                    // decision counts.
                    state.committing &= !insights;
                    Ok(decision)
                }
                Err(error) => Err(error),
            }
        };
        let decision = match decision {
            Ok(decision) => decision,
            Err(error) => return Err(self.reject(&name, &self.unreadable(&name, error))),
        };
        let refused = match decision {
            EventDecision::Nothing => return Ok(()),
            EventDecision::Refuse(reason) => Refusal::Invalid(reason),
            EventDecision::TooBig(reason) => Refusal::TooBig(reason),
            EventDecision::Commit(file) if insights => {
                let kept = self.committer.keep_insights(file.into_values()).await;
                match kept {
                    Ok(()) => {
                        self.rejections
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .remove(&name);
                        return Ok(());
                    }
                    Err(refusal) => refusal,
                }
            }
            EventDecision::Commit(file) => match self.committer.commit(&name, file, self).await {
                Ok(receipt) => {
                    self.accept(ino, receipt);
                    self.daemon.metrics.closes.since(begun);
                    return Ok(());
                }
                Err(refusal) => refusal,
            },
        };
        let errno = self.reject(&name, &refused);
        self.daemon.metrics.closes.since(begun);
        if let Ok(file) = self.staging.lock().file_mut(ino)
            && let Some(state) = &mut file.event
        {
            state.was_refused(version, errno);
        }
        Err(errno)
    }

    /// Returns the name under which a file is decided, and whether it is kept as insights; none for
    /// drafts and data files.
    fn decided_name(&self, ino: Ino) -> Option<(String, bool)> {
        let table = self.staging.lock();
        let links = &table.node(ino).ok()?.links;
        if let Some((_, name)) =
            links.iter().find(|(parent, name)| table.is_insights(*parent, name))
        {
            return Some((name.to_string_lossy().into_owned(), true));
        }
        let (_, name) = links
            .iter()
            .find(|(parent, name)| matches!(self.event_name(*parent, name), Ok(Some(_))))?;
        Some((name.to_string_lossy().into_owned(), false))
    }

    async fn event_content(&self, ino: Ino) -> Result<Vec<u8>> {
        self.fill_content(ino).await?;
        let file = self.staging.open_file(&self.staging.lock(), ino, OFlags::RDONLY)?;
        let most = self.staging.limits().most().event_bytes;
        ion_system::run_blocking(move || {
            let mut content = Vec::new();
            io::Read::read_to_end(&mut io::Read::take(&file, most + 1), &mut content)
                .map_err(|error| errno(&error))?;
            if content.len() as u64 > most { Err(Errno::TOOBIG) } else { Ok(content) }
        })
        .await
    }

    /// Waits for memory to read an event file. The caller holds it until the file is decided.
    async fn room_to_read(&self, ino: Ino) -> Result<SemaphorePermit<'_>> {
        let units = self
            .staging
            .getattr(ino)?
            .size
            .min(self.staging.limits().most().event_bytes)
            .div_ceil(READING_UNIT)
            .max(1);
        let units = u32::try_from(units).unwrap_or(u32::MAX).min(READING_UNITS as u32);
        Ok(self.reading.acquire_many(units).await.expect("the semaphore is never closed"))
    }

    /// Returns the refusal of an event file whose own content cannot be read.
    fn unreadable(&self, name: &str, error: Errno) -> Refusal {
        if error == Errno::TOOBIG {
            let most = bytes_in_words(self.staging.limits().most().event_bytes);
            return Refusal::TooBig(format!("an event file may have at most {most}"));
        }
        Refusal::Unreadable { path: name.to_owned(), source: error.into() }
    }

    fn accept(&self, ino: Ino, receipt: Receipt) {
        if let Ok(file) = self.staging.lock().file_mut(ino) {
            file.event.get_or_insert_default().committed = Some(receipt.clone());
        }
        self.rejections.lock().unwrap_or_else(PoisonError::into_inner).remove(&receipt.name);
        self.receipts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(receipt.name.clone(), receipt);
    }

    fn reject(&self, name: &str, refusal: &Refusal) -> Errno {
        self.daemon.metrics.refusals.add(1);
        let rejection = Rejection::new(name, refusal);
        tracing::warn!(
            job = %self.committer.origin().job_id, event = name, errno = rejection.errno.name(), reason = rejection.reason,
            "an event was rejected"
        );
        self.rejections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name.to_owned(), rejection);
        refusal.errno().number()
    }

    /// Returns the events committed so far, by file name.
    pub(crate) fn receipts(&self) -> BTreeMap<String, Receipt> {
        self.receipts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the event files that were refused and not committed since, by name.
    pub(crate) fn rejections(&self) -> BTreeMap<String, Rejection> {
        self.rejections.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Decides every event file, and the insights, as if the module had ended. Returns a rejection
    /// for each file that cannot be decided because a process may still write to it.
    pub(crate) async fn settle(&self) -> Vec<Rejection> {
        let mut open = Vec::new();
        for ino in self.undecided() {
            let Some((name, _)) = self.decided_name(ino) else { continue };
            match self.closed(ino, &name).await {
                // A refusal is recorded by `decide` itself.
                Ok(()) => drop(self.decide(ino, DecisionTrigger::Final).await),
                Err(refusal) => open.push(Rejection {
                    reason: "it is still open for writing; close it first".into(),
                    ..Rejection::new(&name, &refusal)
                }),
            }
        }
        self.refuse_whole_drafts().await;
        open
    }

    /// Returns the files of `out/events`, and those kept for analysis, that are not committed as
    /// events.
    fn undecided(&self) -> Vec<Ino> {
        let table = self.staging.lock();
        let events = table.files_in(EVENTS).into_iter();
        let insights =
            table.files_in(OUT).into_iter().filter(|(name, _)| table.is_insights(OUT, name));
        let undecided = |ino: &Ino| {
            table
                .file(*ino)
                .is_ok_and(|file| file.event.as_ref().is_none_or(|state| state.committed.is_none()))
        };
        events.chain(insights).map(|(_, ino)| ino).filter(undecided).collect()
    }

    /// Rejects each file that is a draft only by the form of its name and holds a whole event at
    /// the end. It was not meant as a draft, and its module must not look as if it had published
    /// the event.
    async fn refuse_whole_drafts(&self) {
        for ino in self.undecided() {
            let Some(name) = self.doubtful_draft(ino) else { continue };
            let Ok(content) = self.event_content(ino).await else { continue };
            let parsed = event::parse_within(&content, self.staging.limits().most());
            if matches!(parsed, ParsedEventFile::Complete(file) if file.event_type.is_some()) {
                self.reject(&name, &Refusal::Invalid(WHOLE_DRAFT.into()));
            }
        }
    }

    fn doubtful_draft(&self, ino: Ino) -> Option<String> {
        let table = self.staging.lock();
        let (_, name) = table.node(ino).ok()?.links.iter().find(|(parent, _)| *parent == EVENTS)?;
        let name = name.to_str()?;
        (is_doubtful_draft(name) && !is_draft(name)).then(|| name.to_owned())
    }

    /// Finishes the output after the module has ended: decides what is left, because its content is
    /// final now, and removes the blobs that no event names.
    pub(crate) async fn finish(self: &Arc<Self>) {
        for ino in self.undecided() {
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
        // Ends the uploads that no event waits for.
        self.tasks.stop();
        self.own_blobs.discard_unnamed().await;
        let this = self.clone();
        ion_system::run_blocking(move || this.hand_down()).await;
    }
}
