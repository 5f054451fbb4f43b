//! The error of the stores.

use ion_model::text::quote;

use crate::collection::Collection;

/// The reason why a store did not carry out a call.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no blob with this key.
    #[error("there is no blob {0:?}")]
    NoSuchBlob(String),
    /// A blob does not hold the bytes that were written to it.
    #[error("blob {0:?} does not hold what was written")]
    DamagedBlob(String),
    /// The guard of a write no longer holds. The field is the collection of the guard's document:
    /// with [`Collection::Jobs`], a later attempt has begun.
    #[error("a document that the write depends on has changed, in collection {}", .0.as_str())]
    Fenced(Collection),
    /// A query whose answer must be complete matches more documents than are read at once.
    #[error(
        "one query matches more than {most} documents in {collection}, too many to read at once; \
         nothing was done"
    )]
    TooMany {
        /// The collection that was queried.
        collection: &'static str,
        /// The number of documents that are read at most.
        most: usize,
    },
    /// The store could not be reached or failed. A retry may help.
    #[error("{store}: {what}")]
    Unavailable {
        /// The store's URL, without credentials.
        store: String,
        /// The operation that failed.
        what: String,
        /// The backend's own error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A stored document does not have the required shape.
    #[error("document {} in {collection} is malformed", quote(.id))]
    Malformed {
        /// The document's id.
        id: String,
        /// The document's collection.
        collection: &'static str,
        /// What is wrong with the document.
        #[source]
        source: serde_json::Error,
    },
    /// A URL does not name a store.
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
