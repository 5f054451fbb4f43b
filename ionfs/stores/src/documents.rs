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

/// JSON documents under ids. Each write is durable when it returns and atomic by itself; nothing
/// needs a transaction over several documents.
#[async_trait]
pub trait Documents: Send + Sync + fmt::Debug {
    /// Inserts `document` (its `id` field is its key) unless one of that id is there. With a guard
    /// that does not hold: [`StoreError::Fenced`], and nothing was written.
    async fn insert(
        &self,
        collection: Collection,
        document: Value,
        guard: Option<Guard>,
    ) -> Result<Inserted, StoreError>;

    /// As [`Documents::insert`], for what is followed by a write to the same log or by
    /// [`Documents::seal`] before anybody is told of it, or what would only be done again.
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
    async fn present(
        &self,
        collection: Collection,
        ids: Vec<String>,
    ) -> Result<HashSet<String>, StoreError>;

    /// As [`Documents::replace_soon`] of each; gives how many were replaced.
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

    /// Replaces the document of the same id if it has the fields of `expect`; false, and nothing
    /// written, when it has not or is missing.
    async fn replace(
        &self,
        collection: Collection,
        document: Value,
        expect: Vec<Equals>,
        guard: Option<Guard>,
    ) -> Result<bool, StoreError>;

    /// As [`Documents::replace`], for what may be lost with the machine's power, together with all
    /// that is written after it: it is on the disk with the next write, where that spares a sync.
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
    async fn delete(
        &self,
        collection: Collection,
        id: &str,
        expect: Vec<Equals>,
    ) -> Result<bool, StoreError>;

    /// Takes leave of the server, where there is one: the last call.
    async fn close(&self) {}
}

/// Reads a stored document as what it must be.
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
    /// [`StoreError::TooMany`] when there may be more than [`Query::LIMIT`], unless the query asked
    /// for so many only.
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
