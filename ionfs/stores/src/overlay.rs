//! A blob store that lies over another: it reads both, and writes only its own.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use ion_model::clock::Millis;

use super::{BlobInfo, Blobs, Durability, StoreError, UnfinishedUploads};

/// Blobs that lie over those of another store. Nothing is ever written to the store below, and
/// nothing is removed from it. Listings show the upper store only.
#[derive(Debug)]
pub struct OverlayBlobs {
    upper: Arc<dyn Blobs>,
    below: Arc<dyn Blobs>,
}

impl OverlayBlobs {
    /// Lays `upper` over `below`.
    pub fn new(upper: Arc<dyn Blobs>, below: Arc<dyn Blobs>) -> Self {
        Self { upper, below }
    }

    /// Returns the store that has this blob: the lower one unless the upper one has it.
    async fn holder(&self, key: &str) -> Result<&dyn Blobs, StoreError> {
        let is_upper = self.upper.size(key).await?.is_some();
        Ok(if is_upper { &*self.upper } else { &*self.below })
    }
}

#[async_trait]
impl Blobs for OverlayBlobs {
    async fn put(
        &self,
        key: &str,
        body: BoxStream<'_, std::io::Result<Bytes>>,
        durability: Durability,
    ) -> Result<u64, StoreError> {
        self.upper.put(key, body, durability).await
    }

    async fn sync(&self, keys: &[&str]) -> Result<(), StoreError> {
        let mut own = Vec::new();
        for key in keys {
            if self.upper.size(key).await?.is_some() {
                own.push(*key);
            }
        }
        self.upper.sync(&own).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.holder(key).await?.get_range(key, range).await
    }

    async fn get_stream(
        &self,
        key: &str,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, StoreError>>, StoreError> {
        self.holder(key).await?.get_stream(key, range).await
    }

    async fn size(&self, key: &str) -> Result<Option<u64>, StoreError> {
        match self.upper.size(key).await? {
            None => self.below.size(key).await,
            own => Ok(own),
        }
    }

    async fn list(
        &self,
        prefix: &str,
    ) -> Result<BoxStream<'_, Result<BlobInfo, StoreError>>, StoreError> {
        self.upper.list(prefix).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.upper.delete(key).await
    }

    async fn delete_all(&self, keys: &[String]) -> Result<(), StoreError> {
        self.upper.delete_all(keys).await
    }

    async fn delete_listed(&self, listed: &BlobInfo) -> Result<(), StoreError> {
        self.upper.delete_listed(listed).await
    }

    async fn end_unfinished_uploads(
        &self,
        before: Millis,
        how: UnfinishedUploads,
    ) -> Result<usize, StoreError> {
        self.upper.end_unfinished_uploads(before, how).await
    }

    fn canonical_key(&self, key: &str) -> String {
        self.upper.canonical_key(key)
    }

    async fn signed_url(&self, key: &str, lasts: Duration) -> Result<Option<String>, StoreError> {
        self.holder(key).await?.signed_url(key, lasts).await
    }

    fn open_local(&self, key: &str) -> Option<File> {
        self.upper.open_local(key).or_else(|| self.below.open_local(key))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;
    use crate::object::ObjectBlobs;

    #[tokio::test]
    async fn the_store_below_is_read_and_never_changed() {
        let below: Arc<dyn Blobs> = Arc::new(ObjectBlobs::in_memory());
        below.put_bytes("a/old", "old".into(), Durability::Now).await.unwrap();
        let upper: Arc<dyn Blobs> = Arc::new(ObjectBlobs::in_memory());
        let both: Arc<dyn Blobs> = Arc::new(OverlayBlobs::new(upper, below.clone()));
        both.put_bytes("a/new", "new".into(), Durability::Now).await.unwrap();
        both.put_bytes("a/old2", "x".into(), Durability::WithNextSync).await.unwrap();
        both.sync(&["a/old", "a/old2"]).await.unwrap();
        for (key, content) in [("a/old", "old"), ("a/new", "new")] {
            assert_eq!(both.get_range(key, 0..9).await.unwrap(), content, "{key}");
            assert_eq!(both.size(key).await.unwrap(), Some(3), "{key}");
            let mut stream = both.get_stream(key, 1..3).await.unwrap();
            assert_eq!(stream.next().await.unwrap().unwrap(), content[1..], "{key}");
        }
        both.delete("a/old").await.unwrap();
        both.delete_all(&["a/old".to_owned(), "a/new".to_owned()]).await.unwrap();
        assert_eq!(both.size("a/new").await.unwrap(), None);
        assert_eq!(below.size("a/old").await.unwrap(), Some(3));
        let listed: Vec<_> = below.list("a").await.unwrap().collect().await;
        assert_eq!(listed.len(), 1, "nothing was written to the store below");
    }
}
