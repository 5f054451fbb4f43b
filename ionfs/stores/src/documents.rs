//! The document store.

mod query;

use std::collections::HashSet;
use std::fmt;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub(crate) use self::query::indexes;
pub use self::query::{Page, Pages, Query, known_queries};
use crate::collection::Collection;
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
    /// The document is new. It is durable if the insert promises that.
    New,
    /// A document with this id existed before and is unchanged. This is that document.
    Existing(Value),
}

/// Stores JSON documents under ids. Each write is atomic by itself, and durable when it returns
/// unless its name ends in `_soon`. Nothing needs a transaction over several documents.
#[async_trait]
pub trait Documents: Send + Sync + fmt::Debug {
    /// Inserts `document` (its `id` field is its key) unless a document with that id exists. If the
    /// guard does not hold, writes nothing and returns [`StoreError::Fenced`].
    async fn insert(
        &self,
        collection: Collection,
        document: Value,
        guard: Option<Guard>,
    ) -> Result<Inserted, StoreError>;

    /// Inserts like [`Documents::insert`], but the document need not be durable when this returns.
    /// The caller either writes durably to the same log, or calls [`Documents::seal`], before it
    /// tells anybody of the document; or a loss only means that the work is repeated.
    async fn insert_soon(
        &self,
        collection: Collection,
        document: Value,
        guard: Option<Guard>,
    ) -> Result<Inserted, StoreError> {
        self.insert(collection, document, guard).await
    }

    /// Inserts each document like [`Documents::insert_soon`], in this order where the store keeps
    /// an order.
    async fn insert_all_soon(
        &self,
        documents: Vec<(Collection, Value)>,
        guard: Option<Guard>,
    ) -> Result<Vec<Inserted>, StoreError> {
        let insert = |(collection, document)| self.insert_soon(collection, document, guard.clone());
        futures_util::future::try_join_all(documents.into_iter().map(insert)).await
    }

    /// Makes everything written so far durable.
    async fn seal(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Returns those of these ids for which a document exists.
    async fn present(
        &self,
        collection: Collection,
        ids: Vec<String>,
    ) -> Result<HashSet<String>, StoreError>;

    /// Replaces each document like [`Documents::replace_soon`]. Returns how many were replaced.
    async fn replace_all_soon(
        &self,
        collection: Collection,
        documents: Vec<Value>,
        expect: Vec<Equals>,
    ) -> Result<usize, StoreError> {
        let replace = |document| self.replace_soon(collection, document, expect.clone());
        let replaced =
            futures_util::future::try_join_all(documents.into_iter().map(replace)).await?;
        Ok(replaced.into_iter().filter(|replaced| *replaced).count())
    }

    /// Replaces the document with the same id if it has the fields of `expect`. If it has not, or
    /// is missing, writes nothing and returns false.
    async fn replace(
        &self,
        collection: Collection,
        document: Value,
        expect: Vec<Equals>,
        guard: Option<Guard>,
    ) -> Result<bool, StoreError>;

    /// Replaces like [`Documents::replace`], but where it saves a sync, the write becomes durable
    /// only with the next durable write. A loss of the machine's power may undo it, together with
    /// everything written after it.
    async fn replace_soon(
        &self,
        collection: Collection,
        document: Value,
        expect: Vec<Equals>,
    ) -> Result<bool, StoreError> {
        self.replace(collection, document, expect, None).await
    }

    /// Returns the document with this id.
    async fn get(&self, collection: Collection, id: &str) -> Result<Option<Value>, StoreError>;

    /// Returns the documents that match the query.
    async fn find(&self, query: Query) -> Result<Vec<Value>, StoreError>;

    /// Removes the document with this id if it has the fields of `expect`. Returns whether it was
    /// removed.
    async fn delete(
        &self,
        collection: Collection,
        id: &str,
        expect: Vec<Equals>,
    ) -> Result<bool, StoreError>;

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

    /// Inserts the document, or replaces the one with the same id.
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
            // If neither call has an effect, the document was removed between them, and the loop
            // inserts it again.
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
