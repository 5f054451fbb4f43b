//! Files that get an event's name by `mv` or `ln`: the content is committed first, and only then
//! the file gets the name.

use std::ffi::OsStr;
use std::time::{Duration, Instant};

use ion_model::event::{self, ParsedEventFile};
use ion_plane::commit::Refusal;

use super::EventFiles;
use crate::eventfile::EventDecision;
use crate::output::content::WritersLeft;
use crate::output::table::EVENTS;
use crate::{Errno, Ino, Result};

/// How long a rename to an event's name waits for the RELEASE of a file whose document is not
/// complete. The kernel sends the RELEASE within a millisecond of the close. A file that is still
/// open may be written further, and is decided at its close.
const CLOSE_WAIT: Duration = Duration::from_millis(200);

/// Whether a file that receives an event's name is the same event as the one that already has this
/// name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::output) enum EventBefore {
    Same,
    None,
}

/// A file that is to get an event's name, as it was before its content was read.
#[derive(Clone, Copy, Debug)]
struct RenamedFile<'name> {
    ino: Ino,
    name: &'name str,
    /// The version of the content.
    version: u64,
    /// Whether a process may go on to write to it, as far as the daemon can know.
    may_be_written: bool,
}

impl EventFiles {
    /// Commits the content of `ino` under an event's name, then calls `put_there` to give the file
    /// that name.
    pub(in crate::output) async fn commit_as(
        &self,
        ino: Ino,
        name: &str,
        put_there: impl Fn(EventBefore) -> Result<()>,
    ) -> Result<()> {
        let begun = Instant::now();
        let (deciding, was_event) = {
            let mut table = self.staging.lock();
            let file = table.file_mut(ino)?;
            let was_event = file.event.is_some();
            (file.event.get_or_insert_default().deciding.clone(), was_event)
        };
        let committed = {
            let _one_decision = deciding.lock().await;
            self.commit_alone(ino, name, put_there).await
        };
        self.metrics.closes.observe_since(begun);
        if let Ok(file) = self.staging.lock().file_mut(ino)
            && let Some(state) = &mut file.event
            && !state.is_committed
        {
            state.committing = false;
            // If the commit was refused, a file of `out/data` is a data file as before.
            if committed.is_err() && !was_event {
                file.event = None;
            }
        }
        committed
    }

    /// Does the work of [`EventFiles::commit_as`]. The caller must hold the file's `deciding`.
    async fn commit_alone(
        &self,
        ino: Ino,
        name: &str,
        put_there: impl Fn(EventBefore) -> Result<()>,
    ) -> Result<()> {
        let file = self.renamed_file(ino, name)?;
        let _room = self.wait_for_memory(ino).await?;
        let decision = self.decide_renamed(&file).await?;
        let over_committed = self.is_committed(name);
        match decision {
            EventDecision::Nothing if over_committed => Err(Errno::ROFS),
            EventDecision::Nothing => put_there(EventBefore::None),
            EventDecision::Refuse(reason) => Err(self.reject(name, &Refusal::Invalid(reason))),
            EventDecision::TooBig(reason) => Err(self.reject(name, &Refusal::TooBig(reason))),
            EventDecision::Commit(event) => {
                self.begin_commit(&file)?;
                let receipt = self.commit(name, event).await;
                let receipt = receipt.map_err(|refusal| self.reject(name, &refusal))?;
                // A file that is the same event again replaces the file that was committed first.
                put_there(if over_committed { EventBefore::Same } else { EventBefore::None })?;
                self.accept(ino, receipt);
                Ok(())
            }
        }
    }

    fn renamed_file<'name>(&self, ino: Ino, name: &'name str) -> Result<RenamedFile<'name>> {
        let table = self.staging.lock();
        let file = table.file(ino)?;
        let may_be_written = file.writers.iter().any(|writer| writer.may_write_more());
        let Some(state) = &file.event else { return Err(Errno::IO) };
        if state.is_committed {
            return Err(Errno::ROFS);
        }
        Ok(RenamedFile { ino, name, version: state.version(), may_be_written })
    }

    /// Decides what the content means. An error is recorded as the rejection of the event.
    async fn decide_renamed(&self, file: &RenamedFile<'_>) -> Result<EventDecision> {
        let content = match self.event_content(file.ino).await {
            Ok(content) => content,
            Err(error) => return Err(self.reject(file.name, &self.unreadable(file.name, error))),
        };
        Ok(match event::parse_within(&content, self.staging.limits().job_limits()) {
            ParsedEventFile::Complete(event) => EventDecision::Commit(event),
            ParsedEventFile::Invalid(reason) => EventDecision::Refuse(reason),
            ParsedEventFile::TooBig(reason) => EventDecision::TooBig(reason),
            // The file is empty, or a process is still writing it: that process's own close
            // decides.
            ParsedEventFile::Empty => EventDecision::Nothing,
            ParsedEventFile::Incomplete
                if file.may_be_written
                    && self.content.wait_for_writers(file.ino, CLOSE_WAIT).await
                        == WritersLeft::Some =>
            {
                EventDecision::Nothing
            }
            ParsedEventFile::Incomplete => {
                EventDecision::Refuse("the JSON document is cut off".into())
            }
        })
    }

    /// Notes that the content is being committed, so that it can no longer change. Rejects a file
    /// that was written to since its content was read.
    fn begin_commit(&self, file: &RenamedFile<'_>) -> Result<()> {
        if let Some(state) = &mut self.staging.lock().file_mut(file.ino)?.event {
            if state.version() != file.version {
                return Err(self.reject(file.name, &Refusal::StillOpen(file.name.to_owned())));
            }
            state.committing = true;
        }
        Ok(())
    }

    /// Returns whether a file of this name is an event.
    fn is_committed(&self, name: &str) -> bool {
        let table = self.staging.lock();
        let ino = table.child(EVENTS, OsStr::new(name)).ok().flatten();
        ino.and_then(|ino| table.file(ino).ok()?.event.as_ref())
            .is_some_and(|state| state.is_committed)
    }
}
