//! The bus: it announces events to modules.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use ion_model::clock::Millis;
use ion_model::event::Message;
use ion_model::text::{REASON_MAX, cut_off};
use uuid::Uuid;

use crate::error::StoreError;

/// What became of a published message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routed {
    /// It stands in this many queues (a broker that cannot count says 1).
    To(usize),
    /// Nobody subscribes to its type.
    Nowhere,
}

/// A message given to a subscriber, to be acknowledged or rejected.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// What the subscription knows it by.
    pub tag: u64,
    /// The message; or, if it is none of ours, its bytes and what is wrong with them.
    pub message: Result<Message, Unreadable>,
}

/// A message that is not one of Ion's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Its body.
    pub body: Vec<u8>,
    /// What is wrong.
    pub reason: String,
}

impl Unreadable {
    /// A name for it, the same for the same bytes.
    pub fn id(&self) -> String {
        format!("unreadable-{}", Uuid::new_v5(&Uuid::NAMESPACE_OID, &self.body).simple())
    }
}

/// Bytes of a message that its dead letter keeps. Ion's own have fewer than 1 KiB; a broker takes
/// 128 MiB.
const LETTER_BYTES_MAX: usize = 64 << 10;

/// Bytes of an event's id. Ion's own have 36; more is no id of anybody's.
pub const ID_BYTES_MAX: usize = 255;

/// A dead letter: a message no module could be run for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The module whose queue it came from.
    pub module: String,
    /// The event's id; for an unreadable message [`Unreadable::id`].
    pub event_id: String,
    /// The message's body.
    pub body: String,
    /// Why it is dead.
    pub reason: String,
    /// Since when.
    pub at: Millis,
}

impl DeadLetter {
    /// A letter that any broker can hold: what is longer than a message of Ion's is cut, and an id
    /// that is too long to be one becomes a name for it.
    pub fn new(module: &str, event_id: &str, body: String, reason: String, at: Millis) -> Self {
        let event_id = match event_id.len() > ID_BYTES_MAX {
            true => {
                format!("long-{}", Uuid::new_v5(&Uuid::NAMESPACE_OID, event_id.as_bytes()).simple())
            }
            false => event_id.to_owned(),
        };
        Self {
            module: module.to_owned(),
            event_id,
            body: cut_off(body, LETTER_BYTES_MAX),
            reason: cut_off(reason, REASON_MAX),
            at,
        }
    }
}

/// What a look at the bus found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BusReport {
    /// The queues that are as they must be.
    pub queues: Vec<QueueLength>,
    /// What is not, in words that name the way out.
    pub complaints: Vec<String>,
}

/// How long a module's queue is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueLength {
    /// The module.
    pub module: String,
    /// Messages in it that nobody holds.
    pub messages: u32,
}

/// Announces events to modules. At least once: a message is given again unless it was acknowledged.
#[async_trait]
pub trait Bus: Send + Sync + fmt::Debug {
    /// Makes the module's queue, bound to these event types and no longer to those of `former`.
    /// Idempotent; messages in it stay.
    async fn declare(
        &self,
        module: &str,
        event_types: &[String],
        former: &[String],
    ) -> Result<(), StoreError>;

    /// Removes the module's queue and what is in it.
    async fn retire(&self, module: &str) -> Result<(), StoreError>;

    /// Puts the message into every queue bound to its type; durable when this returns.
    async fn publish(&self, message: &Message) -> Result<Routed, StoreError>;

    /// Puts the message into one module's queue.
    async fn send(&self, module: &str, message: &Message) -> Result<(), StoreError>;

    /// Begins to receive from the module's queue, at most `prefetch` messages unacknowledged.
    async fn subscribe(
        self: Arc<Self>,
        module: &str,
        prefetch: usize,
    ) -> Result<Box<dyn Subscription>, StoreError>;

    /// The first messages of the module's queue, without receiving them.
    async fn peek(&self, module: &str, limit: usize) -> Result<Vec<Message>, StoreError>;

    /// How many messages the module's queue holds that nobody is at work on, counted up to `most`;
    /// none: it has no queue.
    async fn depth(&self, module: &str, most: usize) -> Result<Option<usize>, StoreError>;

    /// Puts a dead letter aside for people to look at. Idempotent by module and event.
    async fn bury(&self, letter: DeadLetter) -> Result<(), StoreError>;

    /// The dead letters, oldest first.
    async fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter>, StoreError>;

    /// Removes these dead letters, by module and event; how many there were.
    async fn exhume(&self, letters: &[(String, String)]) -> Result<usize, StoreError>;

    /// Looks at these modules' queues and at the rights to use them. Where nobody else can change
    /// them there is nothing to say.
    async fn inspect(&self, _modules: &[String]) -> Result<BusReport, StoreError> {
        Ok(BusReport::default())
    }
}

/// One subscriber's end of a queue. Dropped: what it has not acknowledged goes to the next one.
#[async_trait]
pub trait Subscription: Send {
    /// The next message; waits until there is one. Dropped while it waits, it has taken none.
    async fn next(&mut self) -> Result<Delivery, StoreError>;

    /// The message is dealt with and leaves the queue.
    async fn acknowledge(&mut self, tag: u64) -> Result<(), StoreError>;

    /// The message goes back to its queue, to be given again.
    async fn give_back(&mut self, tag: u64) -> Result<(), StoreError>;

    /// Receives no more until [`Subscription::next`] is called again; gives what the broker had
    /// sent ahead, to be settled like any other.
    async fn pause(&mut self) -> Result<Vec<Delivery>, StoreError>;
}
