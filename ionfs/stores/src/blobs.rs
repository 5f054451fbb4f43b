//! The blob store.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use ion_model::clock::Millis;

use crate::error::StoreError;

/// Files' bytes. A key is written once and never changed; readers need no coherence.
#[async_trait]
pub trait Blobs: Send + Sync + fmt::Debug {
    /// Makes the blob `key` of all bytes of `body`, durable when this returns; gives its length.
    /// Bytes arrive in pieces; memory use is bounded whatever the length. A failed put leaves no
    /// blob to be read.
    async fn put(
        &self,
        key: &str,
        body: BoxStream<'_, std::io::Result<Bytes>>,
    ) -> Result<u64, StoreError>;

    /// As [`Blobs::put`], of bytes at hand, for what is followed by [`Blobs::settle`] before
    /// anybody is told of it: until then the blob can be read, and a crash of the machine may leave
    /// anything in its place.
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
    async fn list(
        &self,
        prefix: &str,
    ) -> Result<BoxStream<'_, Result<BlobInfo, StoreError>>, StoreError>;

    /// Removes the blob of this key; it is no error if it was gone.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;

    /// Removes the blobs of these keys, many with one request where the store can; it is no error
    /// if some were gone. The first failure is told when all were tried.
    async fn delete_all(&self, keys: &[String]) -> Result<(), StoreError>;

    /// Removes a blob that [`Blobs::list`] gave.
    async fn delete_listed(&self, listed: &BlobInfo) -> Result<(), StoreError>;

    /// Ends uploads that were begun before `before` and never finished, as a killed process leaves
    /// them; gives how many.
    async fn abandon_uploads(&self, before: Millis, how: Abandon) -> Result<usize, StoreError>;

    /// The key as a listing shows it: a store may escape or shorten what it cannot hold as a name.
    /// The canonical form of a canonical key need not be itself.
    fn canonical(&self, key: &str) -> String {
        key.to_owned()
    }

    /// A URL at which whoever has it may read the blob for so long; none where the store makes no
    /// such URLs.
    async fn signed_url(&self, _key: &str, _lasts: Duration) -> Result<Option<String>, StoreError> {
        Ok(None)
    }

    /// The blob as a local file opened for reading, where the store has one. It spares a copy into
    /// the node's cache and lets the kernel read it directly; its bytes are checked like any
    /// others.
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
