//! Blobs through the crate `object_store`: local files, and memory for tests.
//!
//! Bodies up to one part are put at once; longer ones as multipart uploads, which every backend publishes as a
//! whole or not at all. On local files every put is synced, with the folders it made, before it returns.

use std::fs::File;
use std::ops::Range;
use std::path::Path as FilePath;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload, WriteMultipart};
use uuid::Uuid;

use super::{BlobInfo, Blobs, StoreError};

/// Bytes of one part. S3 wants at least 5 MiB and at most 10,000 parts: 8 MiB allow blobs of 78 GiB with one buffer
/// of that size for each part under way.
const PART: usize = 8 << 20;

/// Parts of one blob under way at a time; with [`PART`] it bounds the memory of an upload.
const PARTS_MAX: usize = 4;

/// Bytes of one component of a key. File systems allow 255, and the local backend appends to a name while it is
/// being written.
const COMPONENT_MAX: usize = 200;

/// Blobs in an object store.
#[derive(Debug)]
pub struct ObjectBlobs {
    store: Arc<dyn ObjectStore>,
    local: Option<Arc<LocalFileSystem>>,
    name: String,
}

impl ObjectBlobs {
    /// Blobs as files below `directory`, which is made if it is missing.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn local(directory: &FilePath) -> Result<Self, StoreError> {
        let name = format!("file://{}", directory.display());
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Unavailable {
            store: name.clone(),
            what: "the folder cannot be opened".into(),
            source,
        };
        std::fs::create_dir_all(directory).map_err(|error| failed(error.into()))?;
        let store = LocalFileSystem::new_with_prefix(directory).map_err(|error| failed(error.into()))?;
        let store = Arc::new(store.with_fsync(true).with_automatic_cleanup(true));
        Ok(Self { store: store.clone(), local: Some(store), name })
    }

    /// Blobs in memory, gone with this value.
    pub fn memory() -> Self {
        Self { store: Arc::new(InMemory::new()), local: None, name: "memory://".into() }
    }

    async fn remove(&self, location: &Path) -> Result<(), StoreError> {
        match self.store.delete(location).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed(format!("removing {location}"))(error)),
        }
    }

    fn failed(&self, what: impl Into<String>) -> impl FnOnce(object_store::Error) -> StoreError {
        let (store, what) = (self.name.clone(), what.into());
        move |source| StoreError::Unavailable { store, what, source: source.into() }
    }
}

/// A key as a path of the store: what it cannot hold is escaped, a component that is too long is shortened to
/// its beginning and a hash of the whole.
fn location(key: &str) -> Path {
    Path::from_iter(key.split('/').map(|component| {
        let escaped: Path = Path::from_iter([component]);
        if escaped.as_ref().len() <= COMPONENT_MAX {
            return component.to_owned();
        }
        let hash = Uuid::new_v5(&Uuid::NAMESPACE_OID, component.as_bytes()).simple();
        let kept: String = component.chars().filter(char::is_ascii_alphanumeric).take(100).collect();
        format!("{kept}~{hash}")
    }))
}

#[async_trait]
impl Blobs for ObjectBlobs {
    async fn put(
        &self,
        key: &str,
        mut body: BoxStream<'_, std::io::Result<Bytes>>,
    ) -> Result<u64, StoreError> {
        let location = location(key);
        let unreadable = |source: std::io::Error| StoreError::Unavailable {
            store: self.name.clone(),
            what: format!("the body of {key:?} could not be read"),
            source: source.into(),
        };
        let mut first = Vec::new();
        let mut length = 0;
        while let Some(piece) = body.try_next().await.map_err(unreadable)? {
            length += piece.len() as u64;
            first.push(piece);
            if length > PART as u64 {
                break;
            }
        }
        if length <= PART as u64 {
            let put = self.store.put(&location, PutPayload::from_iter(first)).await;
            put.map_err(self.failed(format!("putting {key:?}")))?;
            return Ok(length);
        }
        let upload = self.store.put_multipart(&location).await;
        let mut writer = WriteMultipart::new_with_chunk_size(
            upload.map_err(self.failed(format!("putting {key:?}")))?,
            PART,
        );
        for piece in first {
            writer.put(piece);
        }
        loop {
            if let Err(error) = writer.wait_for_capacity(PARTS_MAX).await {
                // The upload is lost either way; its parts are `gc`'s if this fails too.
                let _ = writer.abort().await;
                return Err(self.failed(format!("putting {key:?}"))(error));
            }
            match body.try_next().await {
                Ok(Some(piece)) => {
                    length += piece.len() as u64;
                    writer.put(piece);
                }
                Ok(None) => break,
                Err(error) => {
                    let _ = writer.abort().await;
                    return Err(unreadable(error));
                }
            }
        }
        writer.finish().await.map_err(self.failed(format!("putting {key:?}")))?;
        Ok(length)
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        match self.store.get_range(&location(key), range).await {
            Ok(bytes) => Ok(bytes),
            Err(object_store::Error::NotFound { .. }) => Err(StoreError::NoSuchBlob(key.to_owned())),
            Err(error) => Err(self.failed(format!("reading {key:?}"))(error)),
        }
    }

    async fn size(&self, key: &str) -> Result<Option<u64>, StoreError> {
        match self.store.head(&location(key)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(format!("looking for {key:?}"))(error)),
        }
    }

    async fn list(&self, prefix: &str) -> Result<BoxStream<'_, Result<BlobInfo, StoreError>>, StoreError> {
        let prefix = (!prefix.is_empty()).then(|| location(prefix));
        let listing = self.store.list(prefix.as_ref()).map(|meta| match meta {
            Ok(meta) => Ok(BlobInfo {
                key: meta.location.to_string(),
                size: meta.size,
                modified: meta.last_modified.timestamp_millis(),
            }),
            Err(error) => Err(self.failed("listing")(error)),
        });
        Ok(listing.boxed())
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.remove(&location(key)).await
    }

    async fn delete_listed(&self, listed: &BlobInfo) -> Result<(), StoreError> {
        let location =
            Path::parse(&listed.key).map_err(|error| self.failed("removing a blob")(error.into()))?;
        self.remove(&location).await
    }

    fn canonical(&self, key: &str) -> String {
        location(key).to_string()
    }

    fn open_local(&self, key: &str) -> Option<File> {
        let path = self.local.as_ref()?.path_to_filesystem(&location(key)).ok()?;
        File::open(path).ok()
    }
}
