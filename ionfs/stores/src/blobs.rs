//! The blob store.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use ion_model::clock::Millis;

use crate::durability::Durability;
use crate::error::StoreError;

/// Stores the bytes of files. A key is written once and never changed, so readers need no cache
/// coherence.
///
/// # Guarantees
/// A put that returned `Ok` can be read by everybody. A put that failed leaves no readable blob,
/// unless only its answer was lost: then the blob is whole.
///
/// # After a crash
/// A crash of a process leaves the blob whole or not at all. A crash of the machine may leave
/// anything in place of a blob that was put with [`Durability::WithNextSync`] and not synced.
///
/// # Errors
/// [`StoreError::Unavailable`] when the store failed or did not answer in time. A caller that tries
/// a put again uses another key.
#[async_trait]
pub trait Blobs: Send + Sync + fmt::Debug {
    /// Makes the blob `key` of all bytes of `body`. Returns its length in bytes. The bytes arrive
    /// in pieces, and memory use is bounded whatever the length. With [`Durability::WithNextSync`]
    /// the caller must call [`Blobs::sync`] before it tells anybody of the blob; otherwise the blob
    /// is durable when this returns.
    async fn put(
        &self,
        key: &str,
        body: BoxStream<'_, std::io::Result<Bytes>>,
        durability: Durability,
    ) -> Result<u64, StoreError>;

    /// Returns whether [`Durability::WithNextSync`] saves work at a put and leaves it to
    /// [`Blobs::sync`]. Otherwise every blob is durable when its put returns.
    fn defers_sync(&self) -> bool {
        false
    }

    /// Makes these blobs durable, all together in less time than one by one.
    async fn sync(&self, _keys: &[&str]) -> Result<(), StoreError> {
        Ok(())
    }

    /// Returns the bytes of a range. They are fewer than the range only where the blob ends.
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError>;

    /// Returns the bytes of a range as a stream, as they arrive.
    async fn get_stream(
        &self,
        key: &str,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, StoreError>>, StoreError>;

    /// Returns the blob's length in bytes, or `None` if there is no such blob.
    async fn size(&self, key: &str) -> Result<Option<u64>, StoreError>;

    /// Returns every blob whose key begins with `prefix` (whole components), in no particular
    /// order.
    async fn list(
        &self,
        prefix: &str,
    ) -> Result<BoxStream<'_, Result<BlobInfo, StoreError>>, StoreError>;

    /// Removes the blob with this key. A missing blob is no error.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;

    /// Removes the blobs with these keys, many with one request where the store can. Missing blobs
    /// are no error. All keys are tried before the first failure is returned.
    async fn delete_all(&self, keys: &[String]) -> Result<(), StoreError>;

    /// Removes a blob that [`Blobs::list`] returned.
    async fn delete_listed(&self, listed: &BlobInfo) -> Result<(), StoreError>;

    /// Ends uploads that were begun before `before` and never finished; killed processes leave such
    /// uploads. Returns their number.
    async fn end_unfinished_uploads(
        &self,
        before: Millis,
        how: UnfinishedUploads,
    ) -> Result<usize, StoreError>;

    /// Returns the key as a listing shows it: a store may escape or shorten a key that it cannot
    /// hold as a name. Applying this to a canonical key again may give another key.
    fn canonical_key(&self, key: &str) -> String {
        key.to_owned()
    }

    /// Returns a URL that lets anybody who has it read the blob for the time `lasts`, or `None` if
    /// the store makes no such URLs.
    async fn signed_url(&self, _key: &str, _lasts: Duration) -> Result<Option<String>, StoreError> {
        Ok(None)
    }

    /// Opens the blob's local file for reading, where the store has one. This avoids a copy in the
    /// node's cache and lets the kernel read the file directly. Its bytes are checked like any
    /// others.
    fn open_local(&self, _key: &str) -> Option<std::fs::File> {
        None
    }
}

impl dyn Blobs + '_ {
    /// Puts bytes like [`Blobs::put`].
    ///
    /// # Errors
    /// As [`Blobs::put`].
    pub async fn put_bytes(
        &self,
        key: &str,
        bytes: Bytes,
        durability: Durability,
    ) -> Result<(), StoreError> {
        let body = futures_util::stream::once(async move { Ok(bytes) }).boxed();
        self.put(key, body, durability).await.map(drop)
    }
}

/// What to do with unfinished uploads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnfinishedUploads {
    /// Only count them.
    Count,
    /// End them.
    End,
}

/// A blob in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobInfo {
    /// The blob's key.
    pub key: String,
    /// The blob's length in bytes.
    pub size: u64,
    /// The time at which the blob was stored.
    pub modified: Millis,
}
