//! The commit as a state machine: it decides the next step from the stores' answer. It has no I/O
//! and no clock.
//!
//! Every party that carries out a commit (a closer, a relay, the end of an on-success job) calls
//! [`CommitStep::next_step`] for the next step. So the code that runs is the code that the model
//! checker explores in `model.rs`.

use ion_model::event::PublicationState;
use ion_model::record::CommitMode;

/// The next step of a commit. The numbers are the steps of DESIGN.md section 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CommitStep {
    /// Step 1: make every named file durable in the object store.
    StoreBlobs,
    /// Step 2: insert the document, if the guard holds. This is the commit.
    Insert,
    /// Step 2 where a staged document of this earlier attempt exists: replace that document, if the
    /// guard holds.
    Replace(Option<u32>),
    /// Step 2 of an on-success job that has succeeded: make its staged event visible.
    Reveal,
    /// A relay's step before step 3: write the relay's id into the document, so that only one relay
    /// publishes the event.
    Adopt,
    /// Step 3: publish the event on the bus.
    Publish,
    /// Step 4: mark the document as published.
    Mark,
    /// Nothing is left to do.
    End(CommitEnd),
}

/// The outcome of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CommitEnd {
    /// The document has been inserted. If it is unpublished, a relay publishes it.
    Committed(PublicationState),
    /// A document with this id and other content exists.
    Differs,
    /// The attempt may not write any more.
    Fenced,
    /// Another process does it, or has done it.
    NotOurs,
}

/// The stores' answer to a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum StoreAnswer {
    /// The step is done. An insert is durable once the event is published or the documents are
    /// synced; a mark need not be durable.
    Done,
    /// A document with this id exists.
    Exists {
        /// Whether that document is staged, unpublished or published.
        publication: PublicationState,
        /// The attempt that wrote that document.
        attempt: Option<u32>,
        /// Whether that document has the same content.
        same: bool,
    },
    /// The document is not as the write expected it; nothing was written.
    Changed,
    /// The attempt may not write any more; nothing was written.
    Fenced,
    /// The registry of modules has changed since the event was addressed to them; nothing was
    /// written.
    Outdated,
    /// There was no answer: the step was done, was not done, or will be done later.
    Unknown,
}

impl CommitStep {
    /// Returns the step's name, for spans and metrics.
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

    /// Returns the step that follows this answer, for a commit of this attempt in this mode.
    pub(crate) fn next_step(
        self,
        answer: StoreAnswer,
        attempt: Option<u32>,
        mode: CommitMode,
    ) -> Self {
        use StoreAnswer::{Changed, Done, Exists, Fenced, Outdated, Unknown};
        match (self, answer) {
            (Self::StoreBlobs, Done) => Self::Insert,
            (Self::Insert | Self::Replace(_), Done) => match mode {
                CommitMode::OnClose => Self::Publish,
                CommitMode::OnSuccess => Self::End(CommitEnd::Committed(PublicationState::Staged)),
            },
            // The earlier attempt failed and nobody saw its event, so this attempt replaces it.
            (
                Self::Insert,
                Exists { publication: PublicationState::Staged, attempt: earlier, .. },
            ) if earlier < attempt => Self::Replace(earlier),
            (Self::Insert, Exists { same: false, .. }) => Self::End(CommitEnd::Differs),
            (Self::Insert, Exists { publication: PublicationState::Unpublished, .. }) => {
                Self::Publish
            }
            (Self::Insert, Exists { publication, .. }) => {
                Self::End(CommitEnd::Committed(publication))
            }
            // The commit begins again: each step finds what an earlier try has done.
            (Self::StoreBlobs | Self::Insert | Self::Replace(_), Unknown) => Self::StoreBlobs,
            (Self::Replace(_), Changed) => Self::Insert,
            // The insert begins again with the modules that are registered now.
            (Self::Insert | Self::Replace(_), Outdated) => Self::Insert,
            (Self::Reveal, Outdated) => Self::Reveal,
            (Self::Reveal | Self::Adopt, Done) => Self::Publish,
            (Self::Reveal, Unknown) => Self::Reveal,
            // In its next round the relay reads the document again.
            (Self::Adopt, Unknown) => Self::End(CommitEnd::NotOurs),
            // Publishing comes before the mark: after a crash in between, the event is published
            // again. In the reverse order it would never be published.
            (Self::Publish, Done) => Self::Mark,
            (Self::Publish, Unknown) => {
                Self::End(CommitEnd::Committed(PublicationState::Unpublished))
            }
            // An unmarked event is published once more, which is harmless because the job exists in
            // the ledger.
            (Self::Mark, _) => Self::End(CommitEnd::Committed(PublicationState::Published)),
            (_, Fenced) => Self::End(CommitEnd::Fenced),
            (_, _) => Self::End(CommitEnd::NotOurs),
        }
    }
}
