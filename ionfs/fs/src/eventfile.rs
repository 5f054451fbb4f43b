//! When a file in `out/events` becomes an event: the rule of DESIGN.md section 3, as a pure state
//! machine.
//!
//! The kernel sends FLUSH for every close of every duplicate of a descriptor. So the rule looks at
//! the content, not at which process closes the file: a complete document commits, an incomplete
//! one waits, and the content at the release of the last handle is final.

use ion_model::event::{EventFile, ParsedEventFile};

use super::{Errno, Result};

/// The state of one event file, or of `insights.json`.
#[derive(Debug, Default)]
pub(crate) struct EventState {
    /// Raised by each write and truncation.
    version: u64,
    /// The version that the last decision looked at.
    seen: u64,
    /// Whether anything was ever written to it.
    pub(crate) wrote: bool,
    /// The errno that it was refused with, if the content has not changed since.
    refused: Option<Errno>,
    /// Whether a commit of its content is under way.
    pub(crate) committing: bool,
    /// Whether it is an event: it is immutable from then on.
    pub(crate) is_committed: bool,
    /// Allows one decision at a time for the file: two closes must not both commit.
    pub(crate) deciding: std::sync::Arc<tokio::sync::Mutex<()>>,
}

/// How the content of a file changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContentChange {
    /// Bytes are written.
    Written,
    /// Only the length is set.
    Resized,
}

/// What triggers a decision about a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DecisionTrigger {
    /// FLUSH or fsync: a descriptor was closed, and other processes may still write.
    Flush,
    /// The last handle that could write is gone, the file was renamed to `insights.json`, or the
    /// module has ended: the content is final.
    Final,
}

/// What to do about a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum EventDecision {
    /// Answer OK.
    Nothing,
    /// Commit this event.
    Commit(EventFile),
    /// Refuse, with this reason: EINVAL.
    Refuse(String),
    /// Refuse, as over this limit: E2BIG.
    TooBig(String),
}

impl EventState {
    /// Notes that the content changed.
    pub(crate) fn note_change(&mut self, change: ContentChange) {
        self.version += 1;
        self.wrote |= change == ContentChange::Written;
        self.refused = None;
    }

    /// Returns whether there is anything new to decide (rule 1).
    pub(crate) fn needs_decision(&self, trigger: DecisionTrigger) -> bool {
        !self.is_committed && (trigger == DecisionTrigger::Final || self.version != self.seen)
    }

    /// Returns whether the content may not change, because it is an event or is being committed as
    /// one.
    pub(crate) fn is_fixed(&self) -> bool {
        self.committing || self.is_committed
    }

    /// Returns the version of the content. The caller must take it before it reads the content,
    /// because a write may come during the read.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Notes that the content of a version was refused, so that it is not tried again.
    pub(crate) fn note_refusal(&mut self, version: u64, errno: Errno) {
        self.committing = false;
        self.refused = (self.version == version).then_some(errno);
    }

    /// Returns the answer to a FLUSH without new content: the same refusal again, if there was one.
    /// The first answer may have gone to a child that was forked with the file open, and the
    /// process that wrote the file must not take its own close for a commit.
    pub(crate) fn previous_answer(&self) -> Result<()> {
        self.refused.map_or(Ok(()), Err)
    }

    /// Decides what the content of a version means (rules 1 to 4). Once it is to be committed, it
    /// may not be changed.
    pub(crate) fn decide(
        &mut self,
        trigger: DecisionTrigger,
        version: u64,
        parsed: ParsedEventFile,
    ) -> EventDecision {
        if !self.needs_decision(trigger) {
            return EventDecision::Nothing;
        }
        self.seen = version;
        if self.version != version {
            // The file was written to while it was read: the writer's own close decides.
            return EventDecision::Nothing;
        }
        let decision = self.decide_content(trigger, parsed);
        self.committing = matches!(decision, EventDecision::Commit(_));
        decision
    }

    fn decide_content(&self, trigger: DecisionTrigger, parsed: ParsedEventFile) -> EventDecision {
        match (parsed, trigger) {
            // Content that was refused at a close stays refused; the release of the last handle
            // adds nothing.
            _ if self.refused.is_some() => EventDecision::Nothing,
            (ParsedEventFile::Complete(file), _) => EventDecision::Commit(file),
            (ParsedEventFile::Invalid(reason), _) => EventDecision::Refuse(reason),
            (ParsedEventFile::TooBig(reason), _) => EventDecision::TooBig(reason),
            (ParsedEventFile::Empty | ParsedEventFile::Incomplete, DecisionTrigger::Flush) => {
                EventDecision::Nothing
            }
            (ParsedEventFile::Empty, DecisionTrigger::Final) if !self.wrote => {
                EventDecision::Nothing
            }
            (ParsedEventFile::Empty, DecisionTrigger::Final) => {
                EventDecision::Refuse("the file was written and is empty".into())
            }
            (ParsedEventFile::Incomplete, DecisionTrigger::Final) => {
                EventDecision::Refuse("the JSON document is cut off".into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ion_model::event::parse;

    fn decide(state: &mut EventState, trigger: DecisionTrigger, content: &str) -> EventDecision {
        state.decide(trigger, state.version(), parse(content.as_bytes()))
    }

    #[test]
    fn a_shells_early_close_and_a_builtins_pieces_commit_once_complete() {
        let mut state = EventState::default();
        assert_eq!(decide(&mut state, DecisionTrigger::Flush, ""), EventDecision::Nothing);
        state.note_change(ContentChange::Written);
        assert_eq!(
            decide(&mut state, DecisionTrigger::Flush, "{\"eventType\":"),
            EventDecision::Nothing
        );
        state.note_change(ContentChange::Written);
        assert!(matches!(
            decide(&mut state, DecisionTrigger::Flush, "{\"eventType\":\"a\"}"),
            EventDecision::Commit(_)
        ));
    }

    #[test]
    fn a_second_flush_without_news_does_nothing_and_answers_as_the_first() {
        let mut state = EventState::default();
        state.note_change(ContentChange::Written);
        assert!(matches!(
            decide(&mut state, DecisionTrigger::Flush, "{\"eventType\":\"a\"}"),
            EventDecision::Commit(_)
        ));
        assert_eq!(state.previous_answer(), Ok(()));
        state.note_refusal(state.version(), Errno::NOENT);
        assert_eq!(state.previous_answer(), Err(Errno::NOENT));
        assert_eq!(
            decide(&mut state, DecisionTrigger::Flush, "{\"eventType\":\"a\"}"),
            EventDecision::Nothing
        );
        assert_eq!(
            decide(&mut state, DecisionTrigger::Final, "{\"eventType\":\"a\"}"),
            EventDecision::Nothing
        );
        state.note_change(ContentChange::Written);
        assert_eq!(state.previous_answer(), Ok(()));
        assert!(matches!(
            decide(&mut state, DecisionTrigger::Flush, "{\"eventType\":\"b\"}"),
            EventDecision::Commit(_)
        ));
    }

    #[test]
    fn what_is_left_at_the_end_is_final() {
        let mut state = EventState::default();
        assert_eq!(decide(&mut state, DecisionTrigger::Final, ""), EventDecision::Nothing);
        state.note_change(ContentChange::Written);
        assert!(matches!(
            decide(&mut state, DecisionTrigger::Final, "{\"eventType\""),
            EventDecision::Refuse(_)
        ));
        let mut emptied = EventState::default();
        emptied.note_change(ContentChange::Written);
        assert!(matches!(
            decide(&mut emptied, DecisionTrigger::Final, ""),
            EventDecision::Refuse(_)
        ));
    }

    #[test]
    fn what_can_never_be_a_document_is_refused_at_once() {
        let mut state = EventState::default();
        state.note_change(ContentChange::Written);
        assert!(matches!(
            decide(&mut state, DecisionTrigger::Flush, "hello"),
            EventDecision::Refuse(_)
        ));
    }
}
