//! The bus: it announces events to modules.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use ion_model::clock::Millis;
use ion_model::event::Message;
use ion_model::text::{REASON_MAX, cut_owned};
use uuid::Uuid;

use crate::error::StoreError;

/// What became of a published message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routed {
    /// The message is in this many queues (1 for a broker that does not report the number).
    To(usize),
    /// No module subscribes to the message's event type.
    Nowhere,
}

/// A message that a subscriber received and must acknowledge or give back.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The subscription's number for this delivery.
    pub tag: u64,
    /// The message. If it is not one of Ion's messages, its bytes and what is wrong with them.
    pub message: Result<Message, Unreadable>,
}

/// A message that is not one of Ion's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The message's body.
    pub body: Vec<u8>,
    /// Why the body is no message of Ion's.
    pub reason: String,
}

impl Unreadable {
    /// Returns a name for the message. The same bytes give the same name.
    pub fn id(&self) -> String {
        format!("unreadable-{}", Uuid::new_v5(&Uuid::NAMESPACE_OID, &self.body).simple())
    }
}

/// The most bytes of a message's body that its dead letter keeps. Ion's own messages have fewer
/// than 1 KiB; a broker accepts 128 MiB.
const LETTER_BYTES_MAX: usize = 64 << 10;

/// The most bytes of an event's id. Ion's own ids have 36; a longer text is not accepted as an id.
pub const ID_BYTES_MAX: usize = 255;

/// A dead letter: a message for which the module could not be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The module whose queue it came from.
    pub module: String,
    /// The event's id; for an unreadable message [`Unreadable::id`].
    pub event_id: String,
    /// The message's body.
    pub body: String,
    /// Why the message is dead.
    pub reason: String,
    /// The time at which it became a dead letter.
    pub at: Millis,
}

impl DeadLetter {
    /// Makes a letter that any broker can hold. Body and reason are cut at their limits, and an
    /// event id that is too long is replaced by a hash of it.
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
            body: cut_owned(body, LETTER_BYTES_MAX),
            reason: cut_owned(reason, REASON_MAX),
            at,
        }
    }
}

/// The result of [`Bus::inspect`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BusReport {
    /// The queues that are correctly declared.
    pub queues: Vec<QueueLength>,
    /// The problems that were found, in words that name the way out.
    pub complaints: Vec<String>,
}

/// The length of a module's queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueLength {
    /// The module.
    pub module: String,
    /// The number of messages in the queue that no subscriber holds.
    pub messages: u32,
}

/// Announces events to modules. Delivery is at least once: a message is delivered again unless it
/// is acknowledged.
#[async_trait]
pub trait Bus: Send + Sync + fmt::Debug {
    /// Makes the module's queue, binds it to `event_types`, and unbinds it from the types of
    /// `former` that are not among them. Idempotent. Messages in the queue stay.
    async fn declare(
        &self,
        module: &str,
        event_types: &[String],
        former: &[String],
    ) -> Result<(), StoreError>;

    /// Removes the module's queue and the messages in it.
    async fn remove_queue(&self, module: &str) -> Result<(), StoreError>;

    /// Puts the message into every queue bound to its event type. The message is durable when this
    /// returns.
    async fn publish(&self, message: &Message) -> Result<Routed, StoreError>;

    /// Puts the message into one module's queue.
    async fn send(&self, module: &str, message: &Message) -> Result<(), StoreError>;

    /// Begins to receive from the module's queue, with at most `prefetch` unacknowledged messages.
    async fn subscribe(
        self: Arc<Self>,
        module: &str,
        prefetch: usize,
    ) -> Result<Box<dyn Subscription>, StoreError>;

    /// Returns at most `limit` messages from the front of the module's queue, without receiving
    /// them.
    async fn peek(&self, module: &str, limit: usize) -> Result<Vec<Message>, StoreError>;

    /// Returns the number of waiting messages in the module's queue, counted up to `most`, or
    /// `None` if the module has no queue.
    async fn count_messages(&self, module: &str, most: usize) -> Result<Option<usize>, StoreError>;

    /// Stores a dead letter for people to look at. Idempotent by module and event.
    async fn add_dead_letter(&self, letter: DeadLetter) -> Result<(), StoreError>;

    /// Returns at most `limit` dead letters, oldest first.
    async fn list_dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter>, StoreError>;

    /// Removes the dead letters with these modules and event ids. Returns how many were found.
    async fn remove_dead_letters(&self, letters: &[(String, String)]) -> Result<usize, StoreError>;

    /// Checks these modules' queues and the rights to use them. A bus whose queues nobody else can
    /// change returns an empty report.
    async fn inspect(&self, _modules: &[String]) -> Result<BusReport, StoreError> {
        Ok(BusReport::default())
    }
}

/// One subscriber's end of a queue. When it is dropped, its unacknowledged messages go to the next
/// subscriber.
#[async_trait]
pub trait Subscription: Send {
    /// Waits for the next message. Returns it and the messages behind it that are there already, at
    /// most `most` in all. If the call is dropped while it waits, no message is lost.
    async fn next(&mut self, most: usize) -> Result<Vec<Delivery>, StoreError>;

    /// Acknowledges messages: they leave the queue.
    async fn acknowledge(&mut self, tags: &[u64]) -> Result<(), StoreError>;

    /// Returns a message to its queue, to be delivered again.
    async fn give_back(&mut self, tag: u64) -> Result<(), StoreError>;

    /// Stops receiving until [`Subscription::next`] is called again. Returns the messages that the
    /// broker had already sent, to be acknowledged or given back like any others.
    async fn pause(&mut self) -> Result<Vec<Delivery>, StoreError>;
}
