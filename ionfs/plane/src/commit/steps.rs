//! The commit as a state machine: what is done next, given what the stores answered. No I/O, no
//! clock.
//!
//! Whoever carries out a commit (a closer, a relay, the end of an on-success job) asks
//! [`Step::after`] what comes next, so what the model checker explores in `model.rs` is what runs.

use ion_model::event::Publication;
use ion_model::record::CommitMode;

/// What is to be done next. The numbers are the steps of DESIGN.md section 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// 1: every named file is made durable in the object store.
    StoreBlobs,
    /// 2: the document goes in, if the guard holds. This is the commit.
    Insert,
    /// 2, where the staged document of this earlier attempt is in the way: it is replaced, if the
    /// guard holds.
    Replace(Option<u32>),
    /// 2 of an on-success job that has succeeded: what it staged is made visible.
    Reveal,
    /// Before 3, by a relay: the document says who publishes it, so that one relay does and not
    /// all.
    Adopt,
    /// 3: the bus is told.
    Publish,
    /// 4: the document says that the bus was told.
    Mark,
    /// Nothing.
    End(End),
}

/// How a commit ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum End {
    /// The document is in. Unpublished: a relay goes on from there.
    Committed(Publication),
    /// A document of this id with other content is in.
    Differs,
    /// The attempt may not write any more.
    Fenced,
    /// Somebody else does it, or has done it.
    NotOurs,
}

/// What the stores answered to a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    /// It is done, durably.
    Done,
    /// There is a document of this id.
    Exists {
        /// Where it stands.
        publication: Publication,
        /// Whose it is.
        attempt: Option<u32>,
        /// Whether it says the same.
        same: bool,
    },
    /// The document is not as the write expected it; nothing was written.
    Changed,
    /// The attempt may not write any more; nothing was written.
    Fenced,
    /// Other modules are registered than the event says it is for; nothing was written.
    Outdated,
    /// No answer: it was done, or not, or will be.
    Unknown,
}

impl Step {
    /// The step's name, for people and their figures.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::StoreBlobs => "store-blobs",
            Self::Insert => "insert",
            Self::Replace(_) => "replace",
            Self::Reveal => "reveal",
            Self::Adopt => "adopt",
            Self::Publish => "publish",
            Self::Mark => "mark",
            Self::End(_) => "end",
        }
    }

    /// What comes after this step was answered so, for a commit of this attempt in this mode.
    pub(crate) fn after(self, answer: Answer, attempt: Option<u32>, mode: CommitMode) -> Self {
        use Answer::{Changed, Done, Exists, Fenced, Outdated, Unknown};
        match (self, answer) {
            (Self::StoreBlobs, Done) => Self::Insert,
            (Self::Insert | Self::Replace(_), Done) => match mode {
                CommitMode::OnClose => Self::Publish,
                CommitMode::OnSuccess => Self::End(End::Committed(Publication::Staged)),
            },
            // That attempt failed and nobody saw its event: this one's stands in its place.
            (Self::Insert, Exists { publication: Publication::Staged, attempt: earlier, .. })
                if earlier < attempt =>
            {
                Self::Replace(earlier)
            }
            (Self::Insert, Exists { same: false, .. }) => Self::End(End::Differs),
            (Self::Insert, Exists { publication: Publication::Unpublished, .. }) => Self::Publish,
            (Self::Insert, Exists { publication, .. }) => Self::End(End::Committed(publication)),
            // Begun again: each step finds what an earlier try has done.
            (Self::StoreBlobs | Self::Insert | Self::Replace(_), Unknown) => Self::StoreBlobs,
            (Self::Replace(_), Changed) => Self::Insert,
            // Begun again with the modules that are registered now.
            (Self::Insert | Self::Replace(_), Outdated) => Self::Insert,
            (Self::Reveal, Outdated) => Self::Reveal,
            (Self::Reveal | Self::Adopt, Done) => Self::Publish,
            (Self::Reveal, Unknown) => Self::Reveal,
            // The relay looks again, at what the document says by then.
            (Self::Adopt, Unknown) => Self::End(End::NotOurs),
            // Publish before the mark: a crash in between publishes again; reversed, it would
            // publish never.
            (Self::Publish, Done) => Self::Mark,
            (Self::Publish, Unknown) => Self::End(End::Committed(Publication::Unpublished)),
            // Unmarked it is published once more, which the ledger knows.
            (Self::Mark, _) => Self::End(End::Committed(Publication::Published)),
            (_, Fenced) => Self::End(End::Fenced),
            (_, _) => Self::End(End::NotOurs),
        }
    }
}
