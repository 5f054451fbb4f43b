//! The document store.

mod query;

use std::collections::{HashMap, HashSet};
use std::fmt;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use self::query::{FieldRange, Pages, Query, StartAt, TimeRange, known_queries};
pub(crate) use self::query::{QueryPart, TERMS_FIELD, indexes};
use crate::collection::Collection;
use crate::durability::Durability;
use crate::error::StoreError;

/// A field of a document (a dotted path) and the value that it must have. A missing field equals
/// null.
pub type Equals = (&'static str, Value);

/// Conditions on other documents that must hold at the moment of a write.
#[derive(Clone, Debug)]
pub struct Guard(Vec<Condition>);

/// A condition on one document.
#[derive(Clone, Debug)]
pub(crate) struct Condition {
    pub(crate) collection: Collection,
    pub(crate) id: String,
    pub(crate) equals: Vec<Equals>,
}

impl Guard {
    /// Requires that the document with this id exists and has these fields.
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

/// The outcome of an insert.
#[derive(Clone, Debug, PartialEq)]
pub enum Inserted {
    /// The document is new. It is as durable as the insert asked for.
    New,
    /// A document with this id existed before and is unchanged. This is that document. It may have
    /// been written with any [`Durability`]; [`Documents::sync`] makes it durable.
    Existing(Value),
}

/// How many documents have the same values in some fields.
#[derive(Clone, Debug, PartialEq)]
pub struct TallyRow {
    /// The values, in the order in which the fields were asked for; null where a field is missing.
    pub values: Vec<Value>,
    /// How many documents have them.
    pub count: u64,
}

/// Stores JSON documents under ids. Nothing needs a transaction over several documents.
///
/// # Guarantees
/// Each write is atomic by itself, and everybody sees it when its call returns. Its [`Durability`]
/// says when it is durable.
///
/// # After a crash
/// A crash of a process undoes no write. A crash of the machine may undo writes that were not yet
/// durable. A store that keeps an order undoes with such a write all that were made after it.
///
/// # Errors
/// [`StoreError::Unavailable`] when the store failed or did not answer in time. A write may have
/// happened all the same: a caller that repeats it finds the document. A write whose guard does not
/// hold writes nothing, and returns [`StoreError::Fenced`].
#[async_trait]
pub trait Documents: Send + Sync + fmt::Debug {
    /// Inserts `document` (its `id` field is its key) unless a document with that id exists, and if
    /// the guard holds.
    async fn insert(
        &self,
        collection: Collection,
        document: Value,
        guard: Option<Guard>,
        durability: Durability,
    ) -> Result<Inserted, StoreError>;

    /// Inserts each document like [`Documents::insert`], in this order where the store keeps an
    /// order. Returns the outcomes in the same order.
    ///
    /// # After a crash
    /// Some of the documents may have been inserted.
    async fn insert_all(
        &self,
        documents: Vec<(Collection, Value)>,
        guard: Option<Guard>,
        durability: Durability,
    ) -> Result<Vec<Inserted>, StoreError> {
        let insert =
            |(collection, document)| self.insert(collection, document, guard.clone(), durability);
        futures_util::future::try_join_all(documents.into_iter().map(insert)).await
    }

    /// Replaces the document with the same id if it has the fields of `expect`, and if the guard
    /// holds. If the document does not have the fields, or is missing, writes nothing and returns
    /// false.
    async fn replace(
        &self,
        collection: Collection,
        document: Value,
        expect: Vec<Equals>,
        guard: Option<Guard>,
        durability: Durability,
    ) -> Result<bool, StoreError>;

    /// Replaces each document like [`Documents::replace`], if it has the fields that stand beside
    /// it. Returns in the same order whether it was replaced.
    ///
    /// # After a crash
    /// Some of the documents may have been replaced.
    async fn replace_all(
        &self,
        collection: Collection,
        documents: Vec<(Value, Vec<Equals>)>,
        durability: Durability,
    ) -> Result<Vec<bool>, StoreError> {
        let replace =
            |(document, expect)| self.replace(collection, document, expect, None, durability);
        futures_util::future::try_join_all(documents.into_iter().map(replace)).await
    }

    /// Removes the document with this id if it has the fields of `expect`, durably. Returns whether
    /// it was removed.
    async fn delete(
        &self,
        collection: Collection,
        id: &str,
        expect: Vec<Equals>,
    ) -> Result<bool, StoreError>;

    /// Makes every write durable that returned before this call, of any process.
    async fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Returns the document with this id.
    async fn get(&self, collection: Collection, id: &str) -> Result<Option<Value>, StoreError>;

    /// Returns the documents with these ids, by their ids. An id without a document is left out.
    async fn get_all(
        &self,
        collection: Collection,
        ids: Vec<String>,
    ) -> Result<HashMap<String, Value>, StoreError>;

    /// Returns the documents that match the query.
    async fn find(&self, query: Query) -> Result<Vec<Value>, StoreError>;

    /// Returns how many documents match the query, but not more than its limit. Its order and
    /// start have no influence.
    async fn count(&self, query: Query) -> Result<usize, StoreError>;

    /// Counts the documents that match the query, for each combination of values of the fields
    /// `by`. Its limit, order and start have no influence. The cost grows with the number of
    /// matching entries of an index that has these fields.
    async fn tally(
        &self,
        query: Query,
        by: &'static [&'static str],
    ) -> Result<Vec<TallyRow>, StoreError>;

    /// Returns those of these ids for which a document exists.
    async fn find_existing_ids(
        &self,
        collection: Collection,
        ids: Vec<String>,
    ) -> Result<HashSet<String>, StoreError>;

    /// Does some of the work that the store has put off, for a short time. A dispatcher calls it in
    /// its spare time, again and again.
    async fn maintain(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Closes the connection to the server, where there is one. This must be the last call.
    async fn close(&self) {}
}

/// Decodes a stored document to a record.
///
/// # Errors
/// [`StoreError::Malformed`] when the document does not have the record's shape.
pub fn decode<T: DeserializeOwned>(
    collection: Collection,
    document: Value,
) -> Result<T, StoreError> {
    let id = document.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
    serde_json::from_value(document).map_err(|source| StoreError::Malformed {
        id,
        collection: collection.as_str(),
        source,
    })
}

/// Returns the JSON form of a record.
pub fn encode<T: Serialize>(record: &T) -> Value {
    serde_json::to_value(record).expect("a record has string keys only, so it has a JSON form")
}

/// How often a put is tried while other writers keep removing the document.
const PUT_TRIES: usize = 8;

impl dyn Documents {
    /// Returns the document with this id, decoded to a record.
    pub async fn get_as<T: DeserializeOwned>(
        &self,
        collection: Collection,
        id: &str,
    ) -> Result<Option<T>, StoreError> {
        self.get(collection, id).await?.map(|document| decode(collection, document)).transpose()
    }

    /// Returns the documents that match the query, decoded to records.
    ///
    /// # Errors
    /// [`StoreError::TooMany`] when as many documents as [`Query::LIMIT`] match, because there may
    /// be more. A query with a smaller limit never fails in this way.
    pub async fn find_as<T: DeserializeOwned>(&self, query: Query) -> Result<Vec<T>, StoreError> {
        let collection = query.collection;
        let found = self.find(query).await?;
        if found.len() >= Query::LIMIT {
            return Err(StoreError::TooMany {
                collection: collection.as_str(),
                most: Query::LIMIT,
            });
        }
        found.into_iter().map(|document| decode(collection, document)).collect()
    }

    /// Returns the first and the last correlation whose id begins with `beginning`, by the order of
    /// ids; none if no event has such a correlation.
    pub async fn correlations_beginning_with(
        &self,
        beginning: &str,
    ) -> Result<Option<(String, String)>, StoreError> {
        const FIELD: &str = "context.correlationId";
        let within = Query::all(Collection::Events)
            .within(FieldRange::prefix(FIELD, beginning))
            .order_by(FIELD)
            .only(&[FIELD])
            .limit(1);
        let id = |found: &[Value]| {
            let id = found.first()?["context"]["correlationId"].as_str()?;
            Some(id.to_owned())
        };
        let first = id(&self.find(within.clone()).await?);
        let last = id(&self.find(within.descending()).await?);
        Ok(first.zip(last))
    }

    /// Inserts the document, or replaces the one with the same id. It is durable when this returns.
    pub async fn put(
        &self,
        collection: Collection,
        document: Value,
        guard: Option<Guard>,
    ) -> Result<(), StoreError> {
        for _ in 0..PUT_TRIES {
            let inserted =
                self.insert(collection, document.clone(), guard.clone(), Durability::Now);
            if inserted.await? == Inserted::New {
                return Ok(());
            }
            // If neither call has an effect, the document was removed between them, and the loop
            // inserts it again.
            let (document, guard) = (document.clone(), guard.clone());
            if self.replace(collection, document, vec![], guard, Durability::Now).await? {
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
