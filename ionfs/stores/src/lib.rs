//! The stores: blobs, documents and the bus, each behind a small trait, each chosen by one URL.
//!
//! Nothing of a backend leaks through: no SQL, no path, no broker's frame. What every backend promises is
//! written at the traits and checked by one contract (`tests/stores.rs`) that each backend runs, on real servers.

pub mod amqp;
mod held;
mod identity;
pub mod mongo;
pub mod object;
pub mod open;
pub mod registry;
pub mod sqlite;

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use ion_model::clock::Millis;
use ion_model::event::{Event, Message};
use ion_model::text::{REASON_MAX, cut_off, quote};
use ion_system::metrics::Metrics;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use uuid::Uuid;

use self::held::Held;
pub use self::identity::{known_plane_id, plane_id};
use crate::registry::KnownRegistry;

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no blob of that key.
    #[error("there is no blob {0:?}")]
    NoSuchBlob(String),
    /// A blob does not hold the bytes that were written.
    #[error("blob {0:?} does not hold what was written")]
    DamagedBlob(String),
    /// The guard of a write does not hold any more: of [`Collection::Jobs`], a later attempt has begun.
    #[error("what the write depends on has changed, in {}", .0.as_str())]
    Fenced(Collection),
    /// A question that must be answered as a whole has more answers than are read at once.
    #[error(
        "more than {most} documents in {collection} answer one question; nothing was done, as not all can be known"
    )]
    TooMany {
        /// Where.
        collection: &'static str,
        /// How many are read at most.
        most: usize,
    },
    /// The store could not be reached or failed; asking again may help.
    #[error("{store}: {what}")]
    Unavailable {
        /// Which store: its URL without credentials.
        store: String,
        /// What was being done.
        what: String,
        /// The backend's own error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A stored document does not have the shape it must have.
    #[error("document {} in {collection} is malformed", quote(.id))]
    Malformed {
        /// Its id.
        id: String,
        /// Its collection.
        collection: &'static str,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A URL that names no store.
    #[error("{url:?} is no {kind} store: {reason}")]
    Url {
        /// The URL as given, without credentials.
        url: String,
        /// `blob`, `document` or `bus`.
        kind: &'static str,
        /// What is wrong, and what is allowed.
        reason: String,
    },
}

/// Files' bytes. A key is written once and never changed; readers need no coherence.
#[async_trait]
pub trait Blobs: Send + Sync + fmt::Debug {
    /// Makes the blob `key` of all bytes of `body`, durable when this returns; gives its length. Bytes arrive in
    /// pieces; memory use is bounded whatever the length. A failed put leaves no blob to be read.
    async fn put(&self, key: &str, body: BoxStream<'_, std::io::Result<Bytes>>) -> Result<u64, StoreError>;

    /// As [`Blobs::put`], of bytes at hand, for what is followed by [`Blobs::settle`] before anybody is told of it: until
    /// then the blob can be read, and a crash of the machine may leave anything in its place.
    async fn put_soon(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        let body = futures_util::stream::once(async move { Ok(bytes) }).boxed();
        self.put(key, body).await.map(drop)
    }

    /// Whether [`Blobs::put_soon`] leaves something to [`Blobs::settle`].
    fn settles(&self) -> bool {
        false
    }

    /// Makes these blobs durable, in less than each alone would take.
    async fn settle(&self, _keys: &[&str]) -> Result<(), StoreError> {
        Ok(())
    }

    /// The bytes of a range; shorter only where the blob ends.
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError>;

    /// The bytes of a range as they arrive.
    async fn get(
        &self,
        key: &str,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, StoreError>>, StoreError>;

    /// The blob's length, none if there is no such blob.
    async fn size(&self, key: &str) -> Result<Option<u64>, StoreError>;

    /// Every blob whose key begins with `prefix` (whole components), in no order.
    async fn list(&self, prefix: &str) -> Result<BoxStream<'_, Result<BlobInfo, StoreError>>, StoreError>;

    /// Removes the blob of this key; it is no error if it was gone.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;

    /// Removes the blobs of these keys, many with one request where the store can; it is no error if some were gone. The
    /// first failure is told when all were tried.
    async fn delete_all(&self, keys: &[String]) -> Result<(), StoreError>;

    /// Removes a blob that [`Blobs::list`] gave.
    async fn delete_listed(&self, listed: &BlobInfo) -> Result<(), StoreError>;

    /// Ends uploads that were begun before `before` and never finished, as a killed process leaves them; gives how many.
    async fn abandon_uploads(&self, before: Millis, how: Abandon) -> Result<usize, StoreError>;

    /// The key as a listing shows it: a store may escape or shorten what it cannot hold as a name. The canonical
    /// form of a canonical key need not be itself.
    fn canonical(&self, key: &str) -> String {
        key.to_owned()
    }

    /// A URL at which whoever has it may read the blob for so long; none where the store makes no such URLs.
    async fn signed_url(&self, _key: &str, _lasts: Duration) -> Result<Option<String>, StoreError> {
        Ok(None)
    }

    /// The blob as a local file opened for reading, where the store has one. It spares a copy into the node's
    /// cache and lets the kernel read it directly; its bytes are checked like any others.
    fn open_local(&self, _key: &str) -> Option<std::fs::File> {
        None
    }
}

/// Whether unfinished uploads are ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abandon {
    /// They are only counted.
    Count,
    /// They are.
    End,
}

/// One blob in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its key.
    pub key: String,
    /// Its length in bytes.
    pub size: u64,
    /// When it was stored.
    pub modified: Millis,
}

/// The collections of documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Collection {
    /// Events, insights and module logs: older Ion's one collection.
    Events,
    /// The job ledger.
    Jobs,
    /// Registered modules.
    Modules,
    /// Running dispatchers, for people to see.
    Dispatchers,
    /// Attempts whose trees pods have: see [`ion_csi::ticket`].
    Tickets,
    /// What is known of the plane as a whole: see [`crate::registry`] and [`plane_id`].
    Plane,
}

impl Collection {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Events, Self::Jobs, Self::Modules, Self::Dispatchers, Self::Tickets, Self::Plane];

    /// Its name in a store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Jobs => "jobs",
            Self::Modules => "modules",
            Self::Dispatchers => "dispatchers",
            Self::Tickets => "tickets",
            Self::Plane => "plane",
        }
    }
}

/// The fields that queries name, for each collection: a row for each index. The last of a row may be what it is sorted by.
fn indexes(collection: Collection) -> &'static [&'static [&'static str]] {
    match collection {
        Collection::Events => &[
            &["context.correlationId", "created"],
            &["context.parentEventId", "jobId"],
            &["publication", "created"],
            &["unclaimed", "created"],
            &["type", "created"],
            &["context.documentType", "created"],
        ],
        Collection::Jobs => &[
            &["correlationId", "created"],
            &["eventId"],
            &["module", "state", "due"],
            &["state", "due"],
            &["outbox"],
        ],
        Collection::Modules | Collection::Dispatchers | Collection::Tickets | Collection::Plane => &[],
    }
}

/// One of every kind of query the system makes: tests show that no backend scans a collection for any of them.
pub fn known_queries() -> Vec<Query> {
    let equal = |collection, fields: &[&'static str]| {
        Query::equal(collection, fields.iter().map(|field| (*field, json!("x"))).collect())
    };
    let behind = || Page::Behind(json!("x"), "x".into());
    vec![
        equal(Collection::Events, &["context.correlationId"]).order_by("created").page(behind()),
        equal(Collection::Events, &["context.documentType"]).order_by("created").page(behind()),
        equal(Collection::Events, &["unclaimed", "publication"]).order_by("created").page(behind()),
        equal(Collection::Events, &["context.parentEventId"]).order_by("jobId").page(behind()),
        equal(Collection::Jobs, &["state"]).order_by("due").page(behind()),
        equal(Collection::Events, &["context.correlationId", "context.documentType"]).order_by("created"),
        equal(Collection::Events, &["context.parentEventId", "jobId", "publication"]),
        equal(Collection::Events, &["publication"]).order_by("created"),
        equal(Collection::Events, &["type", "context.documentType"]).order_by("created"),
        equal(Collection::Events, &["context.documentType"]).order_by("created"),
        equal(Collection::Jobs, &["correlationId"]).order_by("created"),
        equal(Collection::Jobs, &["correlationId", "module"]).order_by("created").page(behind()),
        equal(Collection::Jobs, &["eventId"]).order_by("created"),
        equal(Collection::Jobs, &["module", "state"]).order_by("created"),
        equal(Collection::Jobs, &["module", "state"]).order_by("due"),
        equal(Collection::Jobs, &["state"]).order_by("due"),
        equal(Collection::Jobs, &["outbox"]),
    ]
}

/// A field of a document (a dotted path) and the value it must have; a missing field equals null.
pub type Equals = (&'static str, Value);

/// What must hold of other documents at the moment of a write.
#[derive(Clone, Debug)]
pub struct Guard(Vec<Condition>);

/// What must hold of one document.
#[derive(Clone, Debug)]
pub(crate) struct Condition {
    pub(crate) collection: Collection,
    pub(crate) id: String,
    pub(crate) equals: Vec<Equals>,
}

impl Guard {
    /// The document of an id must be there and have these fields.
    pub fn new(collection: Collection, id: impl Into<String>, equals: Vec<Equals>) -> Self {
        Self(vec![Condition { collection, id: id.into(), equals }])
    }

    /// Requires both. When neither holds, the error names the first.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    pub(crate) fn conditions(&self) -> &[Condition] {
        &self.0
    }
}

/// What an insert found.
#[derive(Clone, Debug, PartialEq)]
pub enum Inserted {
    /// The document is new and durable.
    New,
    /// A document of this id was there before; it is unchanged.
    Existing(Value),
}

/// Which documents to find.
#[derive(Clone, Debug)]
pub struct Query {
    /// Where.
    pub collection: Collection,
    /// What must hold; at least one of the indexed fields.
    pub equals: Vec<Equals>,
    /// Sorted by this field; those that are equal in an order of the store's own. By id when none.
    pub order_by: Option<&'static str>,
    /// The largest first, not the smallest.
    pub descending: bool,
    /// At most this many.
    pub limit: usize,
    /// From where on; none: from the start. With one, those that are equal are in the order of their ids.
    pub page: Option<Page>,
}

/// Where in its order the answer to a query begins.
#[derive(Clone, Debug, PartialEq)]
pub enum Page {
    /// With the first.
    First,
    /// Behind the document that has this value in the field it is sorted by, and this id.
    Behind(Value, String),
}

impl Query {
    /// All documents of a collection with these fields, bounded by [`Query::LIMIT`].
    pub fn equal(collection: Collection, equals: Vec<Equals>) -> Self {
        Self { collection, equals, order_by: None, descending: false, limit: Self::LIMIT, page: None }
    }

    /// Documents that are read at once at most. Who has to know all of more reads them by [`Pages`].
    pub const LIMIT: usize = 1_000_000;

    /// From there on, in the order of a field and, of those that are equal, of their ids.
    #[must_use]
    pub fn page(mut self, page: Page) -> Self {
        self.page = Some(page);
        self
    }

    /// Sorted by a field.
    #[must_use]
    pub fn order_by(mut self, field: &'static str) -> Self {
        self.order_by = Some(field);
        self
    }

    /// The largest first.
    #[must_use]
    pub fn descending(mut self) -> Self {
        self.descending = true;
        self
    }

    /// Bounded.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }
}

/// Reads all documents that fit, however many, a page at a time.
///
/// # Guarantees
/// Every document that fits all the time, and whose place in the order does not change, is given once. One that comes,
/// goes or moves meanwhile may be or not.
#[derive(Debug)]
pub struct Pages {
    query: Option<Query>,
}

impl Pages {
    /// Documents in a page. One may have 300 kB: more take memory, fewer cost more questions.
    const SIZE: usize = 128;

    /// All that fit `query`, in the order of `field`.
    pub fn new(query: Query, field: &'static str) -> Self {
        let query = Query { limit: Self::SIZE, ..query.order_by(field).page(Page::First) };
        Self { query: Some(query) }
    }

    /// The next page; none behind the last.
    ///
    /// # Errors
    /// When the store cannot be read. The same page is given when it is asked again.
    pub async fn next(&mut self, documents: &dyn Documents) -> Result<Option<Vec<Value>>, StoreError> {
        let Some(query) = &self.query else { return Ok(None) };
        let found = documents.find(query.clone()).await?;
        let last = found.last().filter(|_| found.len() == query.limit).and_then(|last| {
            let path = query.order_by.unwrap_or("id");
            let value = path.split('.').try_fold(last, |at, part| at.get(part)).cloned();
            Some(Page::Behind(value.unwrap_or_default(), last.get("id")?.as_str()?.to_owned()))
        });
        self.query = last.map(|last| query.clone().page(last));
        Ok((!found.is_empty()).then_some(found))
    }
}

/// JSON documents under ids. Each write is durable when it returns and atomic by itself; nothing needs a
/// transaction over several documents.
#[async_trait]
pub trait Documents: Send + Sync + fmt::Debug {
    /// Inserts `document` (its `id` field is its key) unless one of that id is there. With a guard that does not
    /// hold: [`StoreError::Fenced`], and nothing was written.
    async fn insert(
        &self,
        collection: Collection,
        document: Value,
        guard: Option<Guard>,
    ) -> Result<Inserted, StoreError>;

    /// As [`Documents::insert`], for what is followed by a write to the same log or by [`Documents::seal`] before anybody is
    /// told of it, or what would only be done again.
    async fn insert_soon(
        &self,
        collection: Collection,
        document: Value,
        guard: Option<Guard>,
    ) -> Result<Inserted, StoreError> {
        self.insert(collection, document, guard).await
    }

    /// As [`Documents::insert_soon`] of each, in this order where the store has one.
    async fn insert_all_soon(
        &self,
        documents: Vec<(Collection, Value)>,
        guard: Option<Guard>,
    ) -> Result<Vec<Inserted>, StoreError> {
        let insert = |(collection, document)| self.insert_soon(collection, document, guard.clone());
        futures_util::future::try_join_all(documents.into_iter().map(insert)).await
    }

    /// Everything written so far is on the disk when this returns.
    async fn seal(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Of these ids those of which there is a document.
    async fn present(&self, collection: Collection, ids: Vec<String>) -> Result<HashSet<String>, StoreError>;

    /// As [`Documents::replace_soon`] of each; gives how many were replaced.
    async fn replace_all_soon(
        &self,
        collection: Collection,
        documents: Vec<Value>,
        expect: Vec<Equals>,
    ) -> Result<usize, StoreError> {
        let replace = |document| self.replace_soon(collection, document, expect.clone());
        let replaced = futures_util::future::try_join_all(documents.into_iter().map(replace)).await?;
        Ok(replaced.into_iter().filter(|replaced| *replaced).count())
    }

    /// Replaces the document of the same id if it has the fields of `expect`; false, and nothing written, when it
    /// has not or is missing.
    async fn replace(
        &self,
        collection: Collection,
        document: Value,
        expect: Vec<Equals>,
        guard: Option<Guard>,
    ) -> Result<bool, StoreError>;

    /// As [`Documents::replace`], for what may be lost with the machine's power, together with all that is written after it:
    /// it is on the disk with the next write, where that spares a sync.
    async fn replace_soon(
        &self,
        collection: Collection,
        document: Value,
        expect: Vec<Equals>,
    ) -> Result<bool, StoreError> {
        self.replace(collection, document, expect, None).await
    }

    /// The document of an id.
    async fn get(&self, collection: Collection, id: &str) -> Result<Option<Value>, StoreError>;

    /// The documents that fit.
    async fn find(&self, query: Query) -> Result<Vec<Value>, StoreError>;

    /// Removes a document if it has the fields of `expect`; whether one was removed.
    async fn delete(&self, collection: Collection, id: &str, expect: Vec<Equals>)
    -> Result<bool, StoreError>;

    /// Takes leave of the server, where there is one: the last call.
    async fn close(&self) {}
}

/// Reads a stored document as what it must be.
pub fn decode<T: DeserializeOwned>(collection: Collection, document: Value) -> Result<T, StoreError> {
    let id = document.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
    serde_json::from_value(document).map_err(|source| StoreError::Malformed {
        id,
        collection: collection.as_str(),
        source,
    })
}

/// The JSON form of a record of ours.
pub fn encode<T: Serialize>(record: &T) -> Value {
    serde_json::to_value(record).expect("a record has string keys only, so it has a JSON form")
}

/// Tries of a put that others undo.
const PUT_TRIES: usize = 8;

impl dyn Documents {
    /// The document of an id, as a record.
    pub async fn get_as<T: DeserializeOwned>(
        &self,
        collection: Collection,
        id: &str,
    ) -> Result<Option<T>, StoreError> {
        self.get(collection, id).await?.map(|document| decode(collection, document)).transpose()
    }

    /// The documents that fit, as records.
    ///
    /// # Errors
    /// [`StoreError::TooMany`] when there may be more than [`Query::LIMIT`], unless the query asked for so many only.
    pub async fn find_as<T: DeserializeOwned>(&self, query: Query) -> Result<Vec<T>, StoreError> {
        let collection = query.collection;
        let found = self.find(query).await?;
        if found.len() >= Query::LIMIT {
            return Err(StoreError::TooMany { collection: collection.as_str(), most: Query::LIMIT });
        }
        found.into_iter().map(|document| decode(collection, document)).collect()
    }

    /// Inserts the document, or replaces the one that is there.
    pub async fn put(
        &self,
        collection: Collection,
        document: Value,
        guard: Option<Guard>,
    ) -> Result<(), StoreError> {
        for _ in 0..PUT_TRIES {
            if self.insert(collection, document.clone(), guard.clone()).await? == Inserted::New {
                return Ok(());
            }
            // Removed between the two calls: insert again.
            if self.replace(collection, document.clone(), vec![], guard.clone()).await? {
                return Ok(());
            }
        }
        Err(StoreError::Unavailable {
            store: collection.as_str().into(),
            what: "putting a document".into(),
            source: "others keep removing it".into(),
        })
    }
}

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

/// Bytes of a message that its dead letter keeps. Ion's own have fewer than 1 KiB; a broker takes 128 MiB.
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
    /// A letter that any broker can hold: what is longer than a message of Ion's is cut, and an id that is too long to be
    /// one becomes a name for it.
    pub fn new(module: &str, event_id: &str, body: String, reason: String, at: Millis) -> Self {
        let event_id = match event_id.len() > ID_BYTES_MAX {
            true => format!("long-{}", Uuid::new_v5(&Uuid::NAMESPACE_OID, event_id.as_bytes()).simple()),
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
    /// Makes the module's queue, bound to these event types and no longer to those of `former`. Idempotent; messages
    /// in it stay.
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

    /// How many messages the module's queue holds that nobody is at work on, counted up to `most`; none: it has no queue.
    async fn depth(&self, module: &str, most: usize) -> Result<Option<usize>, StoreError>;

    /// Puts a dead letter aside for people to look at. Idempotent by module and event.
    async fn bury(&self, letter: DeadLetter) -> Result<(), StoreError>;

    /// The dead letters, oldest first.
    async fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter>, StoreError>;

    /// Removes these dead letters, by module and event; how many there were.
    async fn exhume(&self, letters: &[(String, String)]) -> Result<usize, StoreError>;

    /// Looks at these modules' queues and at the rights to use them. Where nobody else can change them there is nothing to
    /// say.
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

    /// Receives no more until [`Subscription::next`] is called again; gives what the broker had sent ahead, to be
    /// settled like any other.
    async fn pause(&mut self) -> Result<Vec<Delivery>, StoreError>;
}

/// The three stores together.
#[derive(Clone, Debug)]
pub struct DataPlane {
    /// Files' bytes.
    pub blobs: Arc<dyn Blobs>,
    /// Events, jobs, modules.
    pub documents: Arc<dyn Documents>,
    /// Who is told of events.
    pub bus: Arc<dyn Bus>,
    /// Both write to one log: once a message is on the disk, so is every document that was written before it.
    pub one_log: bool,
    /// Small blobs whose bytes that log holds until their files are durable.
    held: Option<Arc<Held>>,
    /// Which modules an event is for, as it was read last.
    registry: Arc<KnownRegistry>,
    /// What is done with them, counted and timed.
    pub metrics: Arc<Metrics>,
}

impl DataPlane {
    /// Inserts documents, and makes the blobs durable that they name and that were [put soon](Blobs::put_soon), these bytes
    /// under these keys: before the documents are, or with them. The documents are as [`Documents::insert_all_soon`] has
    /// them.
    ///
    /// # Errors
    /// When a store fails, or the guard does not hold.
    pub async fn insert_with_blobs(
        &self,
        blobs: Vec<(String, Bytes)>,
        documents: Vec<(Collection, Value)>,
        guard: Option<Guard>,
    ) -> Result<Vec<Inserted>, StoreError> {
        if let Some(held) = self.held.as_ref().filter(|held| held.takes(&blobs)) {
            return held.add(blobs, documents, None, guard).await;
        }
        self.blobs.settle(&blobs.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>()).await?;
        self.documents.insert_all_soon(documents, guard).await
    }

    /// Writes into an event which modules it is for, and gives what must hold for that when the event is written.
    ///
    /// # Errors
    /// When the registry cannot be read.
    pub async fn address(&self, event: &mut Event) -> Result<Guard, StoreError> {
        self.registry.address(&self.documents, event).await
    }

    /// The registry has changed since it was read: it is read again when it is needed.
    pub fn forget_registry(&self) {
        self.registry.forget();
    }

    /// The same, and an event after them which is published, all in one transaction and durable when this returns; the event
    /// is the last of what was inserted, and not published if it was there. None, and nothing done, where that cannot be.
    pub async fn insert_and_publish(
        &self,
        blobs: &[(String, Bytes)],
        documents: &[(Collection, Value)],
        event: &Event,
        guard: Option<&Guard>,
    ) -> Result<Option<Vec<Inserted>>, StoreError> {
        let Some(held) = self.held.as_ref().filter(|held| held.takes(blobs)) else { return Ok(None) };
        let mut event = event.clone();
        let registered = self.address(&mut event).await?;
        let guard = guard.cloned().into_iter().fold(registered, |all, guard| guard.and(all));
        match held.add(blobs.to_vec(), documents.to_vec(), Some(event), Some(guard)).await {
            // In parts, which begin anew with the modules that are registered now.
            Err(StoreError::Fenced(Collection::Plane)) => {
                self.forget_registry();
                Ok(None)
            }
            added => added.map(Some),
        }
    }
}
