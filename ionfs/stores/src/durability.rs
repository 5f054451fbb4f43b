//! When a write becomes durable.

/// When a write must be durable: a crash of the machine can no longer undo it. Everybody sees the
/// write as soon as its call returns, whenever it becomes durable. A store may make a write durable
/// earlier than it must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The write is durable when its call returns.
    Now,
    /// No later change of the plane's bus outlives the write: when a message is durable that was
    /// published, sent or acknowledged after the write returned, the write is durable too. If no
    /// such message follows, [`Documents::sync`](crate::Documents::sync) makes the write durable.
    ///
    /// For a write that others learn of by a message only: an event that is about to be published,
    /// or a claim whose message is about to be acknowledged. A store that shares nothing with the
    /// bus makes the write durable at once.
    BeforeNextMessage,
    /// The write is durable once [`Documents::sync`](crate::Documents::sync) or
    /// [`Blobs::sync`](crate::Blobs::sync) has returned. A crash before that may undo it.
    ///
    /// For a write whose loss only means that work is done again, and for one of several writes
    /// that the caller syncs together before it tells anybody of them.
    WithNextSync,
}

impl Durability {
    /// Returns the stronger of two: a write that has it satisfies both.
    #[must_use]
    pub fn stronger(self, other: Self) -> Self {
        match (self, other) {
            (Self::Now, _) | (_, Self::Now) => Self::Now,
            (Self::BeforeNextMessage, _) | (_, Self::BeforeNextMessage) => Self::BeforeNextMessage,
            (Self::WithNextSync, Self::WithNextSync) => Self::WithNextSync,
        }
    }
}
