//! Why a store fails.

use ion_model::text::quote;

use crate::collection::Collection;

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no blob of that key.
    #[error("there is no blob {0:?}")]
    NoSuchBlob(String),
    /// A blob does not hold the bytes that were written.
    #[error("blob {0:?} does not hold what was written")]
    DamagedBlob(String),
    /// The guard of a write does not hold any more: of [`Collection::Jobs`], a later attempt has
    /// begun.
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
