//! When a file in `out/events` becomes an event: the rule of DESIGN.md section 3, as a pure state.
//!
//! The kernel sends FLUSH for every close of every duplicate of a descriptor, so the rule looks at
//! content, not at closers: a complete document commits, an incomplete one waits, and what is there
//! when the last handle goes is final.

use ion_model::event::{EventFile, Parsed};
use ion_plane::commit::Receipt;

use super::{Errno, Result};

/// What is known of one event file, or of `insights.json`.
#[derive(Debug, Default)]
pub(crate) struct EventState {
    /// Raised by each write and truncation.
    version: u64,
    /// The version that the last FLUSH looked at.
    seen: u64,
    /// Something was written to it once.
    pub(crate) wrote: bool,
    /// What it was refused with, if nothing was written since.
    refused: Option<Errno>,
    /// A commit of its content is under way.
    pub(crate) committing: bool,
    /// It is an event; immutable from now on.
    pub(crate) committed: Option<Receipt>,
    /// One decision at a time for each file: two closers must not both commit.
    pub(crate) deciding: std::sync::Arc<tokio::sync::Mutex<()>>,
}

/// What a close or the end asks of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// FLUSH or fsync: some descriptor was closed, others may still write.
    Flush,
    /// The last handle that could write is gone, or the file is given an event's name: the content
    /// is final.
    Final,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Answer OK.
    Nothing,
    /// Commit this.
    Commit(EventFile),
    /// Refuse, with this reason: EINVAL.
    Refuse(String),
    /// Refuse, as over this limit: E2BIG.
    TooBig(String),
}

impl EventState {
    /// The content changed.
    pub(crate) fn changed(&mut self, by_writing: bool) {
        self.version += 1;
        self.wrote |= by_writing;
        self.refused = None;
    }

    /// Whether a FLUSH has anything to look at (rule 1).
    pub(crate) fn is_news(&self, asked: Asked) -> bool {
        self.committed.is_none() && (asked == Asked::Final || self.version != self.seen)
    }

    /// Whether it may not be changed: it is an event, or about to be one.
    pub(crate) fn is_fixed(&self) -> bool {
        self.committing || self.committed.is_some()
    }

    /// Which content this is: to be asked before it is read, as a write may come while it is.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The outcome of a decision was a refusal: the content of that version is not tried again.
    pub(crate) fn was_refused(&mut self, version: u64, errno: Errno) {
        self.committing = false;
        self.refused = (self.version == version).then_some(errno);
    }

    /// What a FLUSH without news answers: a refusal once more. The first may have gone to a child
    /// that was forked with the file open; whoever wrote it must not take its own close for a
    /// commit.
    pub(crate) fn without_news(&self) -> Result<()> {
        self.refused.map_or(Ok(()), Err)
    }

    /// What the content of a version means (rules 1 to 4). Once it is to be committed, nobody may
    /// change it.
    pub(crate) fn decide(&mut self, asked: Asked, version: u64, parsed: Parsed) -> Decision {
        if !self.is_news(asked) {
            return Decision::Nothing;
        }
        self.seen = version;
        if self.version != version {
            // Written to while it was read: the writer's own close decides.
            return Decision::Nothing;
        }
        let decision = self.meaning(asked, parsed);
        self.committing = matches!(decision, Decision::Commit(_));
        decision
    }

    fn meaning(&self, asked: Asked, parsed: Parsed) -> Decision {
        match (parsed, asked) {
            // What was refused at its close stays refused; its last handle going adds nothing.
            _ if self.refused.is_some() => Decision::Nothing,
            (Parsed::Complete(file), _) => Decision::Commit(file),
            (Parsed::Invalid(reason), _) => Decision::Refuse(reason),
            (Parsed::TooBig(reason), _) => Decision::TooBig(reason),
            (Parsed::Empty | Parsed::Incomplete, Asked::Flush) => Decision::Nothing,
            (Parsed::Empty, Asked::Final) if !self.wrote => Decision::Nothing,
            (Parsed::Empty, Asked::Final) => {
                Decision::Refuse("the file was written and is empty".into())
            }
            (Parsed::Incomplete, Asked::Final) => {
                Decision::Refuse("the JSON document is cut off".into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ion_model::event::parse;

    fn decide(state: &mut EventState, asked: Asked, content: &str) -> Decision {
        state.decide(asked, state.version(), parse(content.as_bytes()))
    }

    #[test]
    fn a_shells_early_close_and_a_builtins_pieces_commit_once_complete() {
        let mut state = EventState::default();
        assert_eq!(decide(&mut state, Asked::Flush, ""), Decision::Nothing);
        state.changed(true);
        assert_eq!(decide(&mut state, Asked::Flush, "{\"eventType\":"), Decision::Nothing);
        state.changed(true);
        assert!(matches!(
            decide(&mut state, Asked::Flush, "{\"eventType\":\"a\"}"),
            Decision::Commit(_)
        ));
    }

    #[test]
    fn a_second_flush_without_news_does_nothing_and_answers_as_the_first() {
        let mut state = EventState::default();
        state.changed(true);
        assert!(matches!(
            decide(&mut state, Asked::Flush, "{\"eventType\":\"a\"}"),
            Decision::Commit(_)
        ));
        assert_eq!(state.without_news(), Ok(()));
        state.was_refused(state.version(), Errno::NOENT);
        assert_eq!(state.without_news(), Err(Errno::NOENT));
        assert_eq!(decide(&mut state, Asked::Flush, "{\"eventType\":\"a\"}"), Decision::Nothing);
        assert_eq!(decide(&mut state, Asked::Final, "{\"eventType\":\"a\"}"), Decision::Nothing);
        state.changed(true);
        assert_eq!(state.without_news(), Ok(()));
        assert!(matches!(
            decide(&mut state, Asked::Flush, "{\"eventType\":\"b\"}"),
            Decision::Commit(_)
        ));
    }

    #[test]
    fn what_is_left_at_the_end_is_final() {
        let mut state = EventState::default();
        assert_eq!(decide(&mut state, Asked::Final, ""), Decision::Nothing);
        state.changed(true);
        assert!(matches!(decide(&mut state, Asked::Final, "{\"eventType\""), Decision::Refuse(_)));
        let mut emptied = EventState::default();
        emptied.changed(true);
        assert!(matches!(decide(&mut emptied, Asked::Final, ""), Decision::Refuse(_)));
    }

    #[test]
    fn what_can_never_be_a_document_is_refused_at_once() {
        let mut state = EventState::default();
        state.changed(true);
        assert!(matches!(decide(&mut state, Asked::Flush, "hello"), Decision::Refuse(_)));
    }
}
