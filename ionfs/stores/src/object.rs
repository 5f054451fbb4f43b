//! Blobs through the crate `object_store`: local files, S3, Azure Blob, Google Cloud Storage, and
//! memory for tests.
//!
//! # How it works
//! A body of at most one part is put with one request. A longer body is a multipart upload, which
//! every backend publishes as a whole or not at all. On local files a put syncs the file and the
//! folders it made before it returns, unless its caller leaves that to [`Blobs::sync`]. No put is
//! conditional: keys are written once, and not every S3 implementation supports "put if absent".
//!
//! # Deadlines
//! Deadlines measure progress, not size: every request to a cloud store carries at most one part,
//! and fails when no bytes move for `client::STALL`.
//!
//! # After a crash
//! An upload that a killed process left open takes up space and appears in no listing. So each
//! upload has a small marker blob below [`UPLOADS`] while it runs. `ion gc` ends the uploads whose
//! markers are left there.

#[cfg(feature = "azure")]
mod azure;
#[cfg(any(feature = "azure", feature = "gcs", feature = "s3"))]
mod client;
#[cfg(any(feature = "azure", feature = "gcs", feature = "s3"))]
mod cloud;
#[cfg(feature = "gcs")]
mod gcs;
mod parts;
#[cfg(feature = "s3")]
mod s3;

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use ion_model::clock::Millis;
use ion_system::home::make_private_folder;
use ion_system::run_blocking;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt as _, PutPayload};
use uuid::Uuid;

use super::{BlobInfo, Blobs, Durability, StoreError, UnfinishedUploads};

/// Bytes of one part. S3 requires parts of at least 5 MiB and at most 10,000 parts: 8 MiB allow
/// blobs of 78 GiB, and each part in flight needs one buffer of that size.
const PART: usize = 8 << 20;

/// The number of parts of one blob that are in flight at most. With [`PART`] it bounds the memory
/// of an upload.
const PARTS_MAX: usize = 4;

/// The number of bytes of a body that a put may have read before the store has received any of
/// them.
pub const IN_FLIGHT_MAX: u64 = (PART * (PARTS_MAX + 1)) as u64;

/// The longest component of a key, in bytes. File systems allow 255, and the local backend appends
/// a suffix to the name of a file while it writes the file.
const COMPONENT_MAX: usize = 200;

/// The folder for the markers of unfinished uploads. No correlation has this name.
const UPLOADS: &str = ".ion-uploads";

/// Blobs in an object store.
pub struct ObjectBlobs {
    store: Arc<dyn ObjectStore>,
    /// The multipart interface of a store where an unfinished upload outlives the process that
    /// began it: S3 and GCS.
    multipart: Option<Arc<dyn MultipartStore>>,
    /// Makes URLs that need no credential.
    signer: Option<Arc<dyn Signer>>,
    local: Option<LocalFolder>,
    /// The prefix of every key.
    prefix: Path,
    name: String,
}

/// The blob store's local folder.
struct LocalFolder {
    /// The same store as [`ObjectBlobs::store`]: it syncs every put.
    synced: Arc<LocalFileSystem>,
    /// A store over the same folder that does not sync. It serves puts that leave syncing to
    /// [`Blobs::sync`], and removals: if a crash of the machine brings a removed blob back, `ion
    /// gc` removes it again.
    unsynced: LocalFileSystem,
    directory: PathBuf,
}

impl std::fmt::Debug for ObjectBlobs {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.name)
    }
}

impl ObjectBlobs {
    /// Opens blobs as files below `directory`, which is made if it is missing.
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
        make_private_folder(directory).map_err(|error| failed(error.into()))?;
        let unsynced =
            LocalFileSystem::new_with_prefix(directory).map_err(|error| failed(error.into()))?;
        let unsynced = unsynced.with_automatic_cleanup(true);
        let store = Arc::new(unsynced.clone().with_fsync(true));
        let local =
            Some(LocalFolder { synced: store.clone(), unsynced, directory: directory.to_owned() });
        Ok(Self { store, multipart: None, signer: None, local, prefix: Path::default(), name })
    }

    /// Makes a blob store in memory. Its blobs are lost when it is dropped.
    pub fn in_memory() -> Self {
        let store = Arc::new(InMemory::new());
        let (prefix, name) = (Path::default(), "memory://".into());
        Self { store, multipart: None, signer: None, local: None, prefix, name }
    }

    /// Converts a key to a path of the store. Characters that the store cannot hold are escaped. A
    /// component that is too long is shortened to its beginning and a hash of the whole component.
    fn to_location(&self, key: &str) -> Path {
        let mut location = self.prefix.clone();
        for component in key.split('/') {
            let escaped: Path = Path::from_iter([component]);
            location = if escaped.as_ref().len() <= COMPONENT_MAX {
                location.join(component)
            } else {
                let hash = Uuid::new_v5(&Uuid::NAMESPACE_OID, component.as_bytes()).simple();
                let kept: String =
                    component.chars().filter(char::is_ascii_alphanumeric).take(100).collect();
                location.join(format!("{kept}~{hash}"))
            };
        }
        location
    }

    /// Returns the key of a location as listings show it: without the prefix.
    fn listed_key(&self, location: &Path) -> String {
        match location.prefix_match(&self.prefix) {
            Some(parts) => Path::from_iter(parts).to_string(),
            None => location.to_string(),
        }
    }

    async fn remove(&self, location: &Path) -> Result<(), StoreError> {
        match self.removal_store().delete(location).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.unavailable(format!("removing {location}"))(error)),
        }
    }

    fn removal_store(&self) -> &dyn ObjectStore {
        self.local.as_ref().map_or(&*self.store, |local| &local.unsynced)
    }

    fn unavailable(
        &self,
        what: impl Into<String>,
    ) -> impl FnOnce(object_store::Error) -> StoreError {
        let (store, what) = (self.name.clone(), what.into());
        move |source| StoreError::Unavailable { store, what, source: source.into() }
    }
}

/// Syncs the files and all their folders up to and including `directory`.
fn sync_files_and_folders(directory: &FilePath, paths: &[PathBuf]) -> std::io::Result<()> {
    let files = paths.iter().map(File::open).collect::<Result<Vec<_>, _>>()?;
    for file in &files {
        // Writeback begins for all files first: then the first sync also writes the names of the
        // others, and their syncs have little left to do.
        ion_system::sys::begin_writeback(file);
    }
    for file in &files {
        file.sync_all()?;
    }
    let above = |path: &PathBuf| {
        let within = path.ancestors().skip(1).take_while(|folder| folder.starts_with(directory));
        within.map(FilePath::to_owned).collect::<Vec<_>>()
    };
    let folders: BTreeSet<PathBuf> = paths.iter().flat_map(above).collect();
    // The deepest folder comes first: a durable folder is of no use if a crash loses its parent's
    // entry for it.
    folders.iter().rev().try_for_each(|folder| File::open(folder)?.sync_all())
}

#[async_trait]
impl Blobs for ObjectBlobs {
    async fn put(
        &self,
        key: &str,
        mut body: BoxStream<'_, std::io::Result<Bytes>>,
        durability: Durability,
    ) -> Result<u64, StoreError> {
        let location = self.to_location(key);
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
            let store = match (&self.local, durability) {
                (Some(local), Durability::WithNextSync) => &local.unsynced,
                _ => &*self.store,
            };
            let put = store.put(&location, PutPayload::from_iter(first)).await;
            put.map_err(self.unavailable(format!("putting {key:?}")))?;
            return Ok(length);
        }
        let failed = || self.unavailable(format!("putting {key:?}"));
        let mut upload = parts::MultipartUpload::begin(self, &location).await.map_err(failed())?;
        for piece in first {
            upload.write(piece).await.map_err(failed())?;
        }
        while let Some(piece) = body.try_next().await.map_err(unreadable)? {
            length += piece.len() as u64;
            upload.write(piece).await.map_err(failed())?;
        }
        upload.finish().await.map_err(failed())?;
        Ok(length)
    }

    fn defers_sync(&self) -> bool {
        self.local.is_some()
    }

    async fn sync(&self, keys: &[&str]) -> Result<(), StoreError> {
        let Some(local) = &self.local else { return Ok(()) };
        let path_of = |key: &&str| local.unsynced.path_to_filesystem(&self.to_location(key));
        let paths: Result<Vec<PathBuf>, _> = keys.iter().map(path_of).collect();
        let paths = paths.map_err(self.unavailable("naming files"))?;
        let directory = local.directory.clone();
        let synced = run_blocking(move || sync_files_and_folders(&directory, &paths)).await;
        synced.map_err(|source| StoreError::Unavailable {
            store: self.name.clone(),
            what: "syncing files".into(),
            source: source.into(),
        })
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        match self.store.get_range(&self.to_location(key), range).await {
            Ok(bytes) => Ok(bytes),
            Err(object_store::Error::NotFound { .. }) => {
                Err(StoreError::NoSuchBlob(key.to_owned()))
            }
            Err(error) => Err(self.unavailable(format!("reading {key:?}"))(error)),
        }
    }

    async fn get_stream(
        &self,
        key: &str,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, StoreError>>, StoreError> {
        let options = GetOptions { range: Some(range.into()), ..GetOptions::default() };
        let what = format!("reading {key:?}");
        let body = match self.store.get_opts(&self.to_location(key), options).await {
            Ok(found) => found.into_stream(),
            Err(object_store::Error::NotFound { .. }) => {
                return Err(StoreError::NoSuchBlob(key.to_owned()));
            }
            Err(error) => return Err(self.unavailable(what)(error)),
        };
        let store = self.name.clone();
        let failed = move |source: object_store::Error| StoreError::Unavailable {
            store: store.clone(),
            what: what.clone(),
            source: source.into(),
        };
        Ok(body.map_err(failed).boxed())
    }

    async fn size(&self, key: &str) -> Result<Option<u64>, StoreError> {
        match self.store.head(&self.to_location(key)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.unavailable(format!("looking for {key:?}"))(error)),
        }
    }

    async fn list(
        &self,
        prefix: &str,
    ) -> Result<BoxStream<'_, Result<BlobInfo, StoreError>>, StoreError> {
        let prefix = if prefix.is_empty() { self.prefix.clone() } else { self.to_location(prefix) };
        let listing = self.store.list((!prefix.as_ref().is_empty()).then_some(&prefix));
        let listing = listing.map(|meta| match meta {
            Ok(meta) => Ok(BlobInfo {
                key: self.listed_key(&meta.location),
                size: meta.size,
                modified: meta.last_modified.timestamp_millis(),
            }),
            Err(error) => Err(self.unavailable("listing")(error)),
        });
        let marker = format!("{UPLOADS}/");
        let visible = move |blob: &Result<BlobInfo, StoreError>| {
            std::future::ready(!matches!(blob, Ok(blob) if blob.key.starts_with(&marker)))
        };
        Ok(listing.filter(visible).boxed())
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.remove(&self.to_location(key)).await
    }

    async fn delete_all(&self, keys: &[String]) -> Result<(), StoreError> {
        let locations: Vec<_> = keys.iter().map(|key| Ok(self.to_location(key))).collect();
        let mut removed =
            self.removal_store().delete_stream(futures_util::stream::iter(locations).boxed());
        let mut failure = None;
        while let Some(one) = removed.next().await {
            match one {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(()), |error| Err(self.unavailable("removing blobs")(error)))
    }

    async fn delete_listed(&self, listed: &BlobInfo) -> Result<(), StoreError> {
        let key = Path::parse(&listed.key)
            .map_err(|error| self.unavailable("removing a blob")(error.into()))?;
        let location = self.prefix.parts().chain(key.parts()).collect();
        self.remove(&location).await
    }

    async fn end_unfinished_uploads(
        &self,
        before: Millis,
        how: UnfinishedUploads,
    ) -> Result<usize, StoreError> {
        if let Some(LocalFolder { directory, .. }) = &self.local {
            let (directory, name) = (directory.clone(), self.name.clone());
            let swept = ion_system::run_blocking(move || {
                parts::remove_partial_files(&directory, before, how)
            })
            .await;
            return swept.map_err(|source| StoreError::Unavailable {
                store: name,
                what: "looking for unfinished uploads".into(),
                source: source.into(),
            });
        }
        parts::end_uploads(self, before, how)
            .await
            .map_err(self.unavailable("ending unfinished uploads"))
    }

    fn canonical_key(&self, key: &str) -> String {
        self.listed_key(&self.to_location(key))
    }

    async fn signed_url(&self, key: &str, lasts: Duration) -> Result<Option<String>, StoreError> {
        let Some(signer) = &self.signer else { return Ok(None) };
        let signed = signer.signed_url(reqwest::Method::GET, &self.to_location(key), lasts).await;
        signed
            .map(|url| Some(url.into()))
            .map_err(self.unavailable(format!("signing a URL of {key:?}")))
    }

    fn open_local(&self, key: &str) -> Option<File> {
        let path = self.local.as_ref()?.synced.path_to_filesystem(&self.to_location(key)).ok()?;
        File::open(path).ok()
    }
}
