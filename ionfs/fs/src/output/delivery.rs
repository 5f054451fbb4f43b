//! A delivery: a file or folder that lies directly in the folder of a type in an inbox. It becomes
//! one event, and then leaves the inbox.
//!
//! This is its state, without any I/O. A single file becomes an event when its last descriptor is
//! closed, and a file or folder when it gets a name that is no draft's.

use std::sync::Arc;

use ion_model::id::{CorrelationId, EventId};

use super::super::{Errno, Result};

/// The name of the program that creates the events of an inbox, and the part of their blobs' keys
/// that stands where the job stands in others.
pub(super) const INBOX: &str = "inbox";

/// The state of a delivery.
#[derive(Debug)]
pub(super) struct Delivery {
    /// The correlation that its event begins. The keys of its blobs begin with it.
    correlation: CorrelationId,
    /// How many events of it may exist with other content than it has now, because a store did not
    /// answer.
    differing: u32,
    phase: DeliveryPhase,
    /// The generation of a file's content that was decided last.
    decided: Option<u64>,
    /// The errno that this generation was refused with.
    refused: Option<Errno>,
    /// Allows one decision at a time: two closes must not both publish it.
    pub(super) deciding: Arc<tokio::sync::Mutex<()>>,
}

/// What is being done with a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeliveryPhase {
    /// Programs write it.
    Written,
    /// It is becoming an event, and nothing of it may change.
    Publishing,
    /// It is an event, and has left the inbox. For a while its name can still be looked up, for
    /// programs that set times and permissions after they have closed a file.
    Published,
}

/// What the close of a single file means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CloseDecision {
    /// Answer this: there is nothing new to decide.
    Answer(Result<()>),
    /// Publish the file. It may not change until the outcome is noted.
    Publish,
}

impl Delivery {
    pub(super) fn new() -> Self {
        Self {
            correlation: CorrelationId::random(),
            differing: 0,
            phase: DeliveryPhase::Written,
            decided: None,
            refused: None,
            deciding: Arc::default(),
        }
    }

    /// Returns the correlation that its event begins.
    pub(super) fn correlation(&self) -> &CorrelationId {
        &self.correlation
    }

    /// Returns the id of its event. A repeated try to create the event finds the event of the first
    /// one.
    pub(super) fn event_id(&self) -> EventId {
        let correlation = EventId::new(self.correlation.as_str());
        EventId::derive(&correlation, INBOX, &self.differing.to_string())
    }

    /// Returns what the keys of its blobs begin with.
    pub(super) fn blob_prefix(&self) -> String {
        format!("{}/{INBOX}", self.correlation)
    }

    /// Notes that an event with its id exists and has other content: a store did not answer to an
    /// earlier try, and the content has changed since.
    pub(super) fn note_differing_event(&mut self) {
        self.differing += 1;
    }

    /// Decides what the close of a single file of this generation and size means. A file without
    /// content is a place that its writer has reserved, and no event.
    pub(super) fn decide_close(&mut self, generation: u64, size: u64) -> CloseDecision {
        let is_decided = self.decided == Some(generation);
        if self.phase != DeliveryPhase::Written || is_decided {
            return CloseDecision::Answer(self.refused.map_or(Ok(()), Err));
        }
        if size == 0 {
            return CloseDecision::Answer(Ok(()));
        }
        self.decided = Some(generation);
        self.refused = None;
        self.phase = DeliveryPhase::Publishing;
        CloseDecision::Publish
    }

    /// Notes that it is being published under a name that it gets by a rename.
    ///
    /// # Errors
    /// EBUSY if it is being published already, EROFS if it is an event.
    pub(super) fn begin_publishing(&mut self) -> Result<()> {
        self.check_change()?;
        self.phase = DeliveryPhase::Publishing;
        Ok(())
    }

    /// Notes that it was not published. A file of this generation is not tried again at a close.
    pub(super) fn note_refusal(&mut self, generation: Option<u64>, errno: Errno) {
        self.phase = DeliveryPhase::Written;
        if let Some(generation) = generation {
            self.decided = Some(generation);
            self.refused = Some(errno);
        }
    }

    /// Notes that it may be written again, without an outcome.
    pub(super) fn end_publishing(&mut self) {
        self.phase = DeliveryPhase::Written;
    }

    /// Notes that it is an event.
    pub(super) fn note_published(&mut self) {
        self.phase = DeliveryPhase::Published;
        self.refused = None;
    }

    /// Returns whether it is an event.
    pub(super) fn is_published(&self) -> bool {
        self.phase == DeliveryPhase::Published
    }

    /// Returns EBUSY while it is being published.
    pub(super) fn check_removal(&self) -> Result<()> {
        match self.phase {
            DeliveryPhase::Publishing => Err(Errno::BUSY),
            DeliveryPhase::Written | DeliveryPhase::Published => Ok(()),
        }
    }

    /// Returns EBUSY while it is being published, and EROFS once it is an event.
    pub(super) fn check_change(&self) -> Result<()> {
        match self.phase {
            DeliveryPhase::Written => Ok(()),
            DeliveryPhase::Publishing => Err(Errno::BUSY),
            DeliveryPhase::Published => Err(Errno::ROFS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_published_at_the_close_after_it_was_written_and_once() {
        let mut delivery = Delivery::new();
        assert_eq!(
            delivery.decide_close(0, 0),
            CloseDecision::Answer(Ok(())),
            "a shell's early one"
        );
        assert_eq!(delivery.decide_close(4, 2), CloseDecision::Publish);
        assert_eq!(delivery.check_change(), Err(Errno::BUSY));
        assert_eq!(delivery.check_removal(), Err(Errno::BUSY));
        delivery.note_published();
        assert_eq!(delivery.decide_close(4, 2), CloseDecision::Answer(Ok(())));
        assert_eq!((delivery.check_change(), delivery.check_removal()), (Err(Errno::ROFS), Ok(())));
        assert_eq!(delivery.begin_publishing(), Err(Errno::ROFS));
    }

    #[test]
    fn what_was_refused_is_refused_again_until_it_is_written_or_renamed() {
        let mut delivery = Delivery::new();
        assert_eq!(delivery.decide_close(2, 1), CloseDecision::Publish);
        delivery.note_refusal(Some(2), Errno::IO);
        assert_eq!(delivery.check_change(), Ok(()));
        assert_eq!(delivery.decide_close(2, 1), CloseDecision::Answer(Err(Errno::IO)));
        assert_eq!(delivery.decide_close(4, 1), CloseDecision::Publish);
        delivery.note_refusal(Some(4), Errno::ACCESS);
        assert_eq!(delivery.begin_publishing(), Ok(()));
        assert_eq!(delivery.begin_publishing(), Err(Errno::BUSY));
    }

    #[test]
    fn a_repeated_try_makes_the_same_event_unless_another_is_there() {
        let (mut one, other) = (Delivery::new(), Delivery::new());
        assert_eq!(one.event_id(), one.event_id());
        assert_ne!(one.event_id(), other.event_id());
        let first = one.event_id();
        one.note_differing_event();
        assert_ne!(one.event_id(), first);
        assert!(one.blob_prefix().starts_with(one.correlation().as_str()));
    }
}
