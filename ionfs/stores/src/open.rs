//! Opens stores by URL.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ion_system::run_blocking;

#[cfg(feature = "amqp")]
use super::amqp::Amqp;
use super::held::BlobLog;
use super::identity::{get_or_set_plane_id, set_plane_id};
use super::layout::bring_up_to_date;
#[cfg(feature = "mongodb")]
use super::mongo::Mongo;
use super::object::ObjectBlobs;
use super::sqlite::Sqlite;
use super::url::{no_backend_error, path_in_url, scheme};
use super::{Blobs, Bus, DataPlane, Documents, StoreError};

/// The id of the document that names the plane of a bus. A bus that has its own SQLite file holds
/// this document.
const BUS_OF: &str = "bus";

/// The file name of the embedded stores' database, below their home.
pub const DATABASE: &str = "ion.db";

/// The URLs of the three stores of a plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreUrls {
    /// `file:///folder`, `s3://bucket/prefix`, `az://container/prefix` or `gs://bucket/prefix`
    pub blobs: String,
    /// `sqlite:///file`, `mongodb://host/database` or `mongodb+srv://host/database`
    pub documents: String,
    /// `sqlite:///file`, `amqp://host:5672/vhost` or `amqps://host:5671/vhost`
    pub bus: String,
}

impl StoreUrls {
    /// Returns the URLs of the embedded stores below `home`.
    pub fn embedded(home: &Path) -> Self {
        let home = std::path::absolute(home).unwrap_or_else(|_| home.to_owned());
        let database = format!("sqlite://{}", home.join(DATABASE).display());
        Self {
            blobs: format!("file://{}", home.join("blobs").display()),
            documents: database.clone(),
            bus: database,
        }
    }
}

impl StoreUrls {
    /// Returns the path of the SQLite database if the documents are kept in one and its file does
    /// not exist yet.
    pub fn missing_database(&self) -> Option<PathBuf> {
        let database = (scheme(&self.documents) == "sqlite")
            .then(|| path_in_url(&self.documents, "document").ok());
        database.flatten().filter(|database| !database.exists())
    }

    /// Returns these URLs with the embedded stores below `home` replaced by the embedded stores
    /// below `to`. Other URLs stay as they are.
    pub fn with_moved_home(&self, home: &Path, to: &Path) -> Self {
        let (from, to) = (Self::embedded(home), Self::embedded(to));
        let moved =
            |url: &String, from: String, to: String| if *url == from { to } else { url.clone() };
        Self {
            blobs: moved(&self.blobs, from.blobs, to.blobs),
            documents: moved(&self.documents, from.documents, to.documents),
            bus: moved(&self.bus, from.bus, to.bus),
        }
    }

    /// Returns the local folders and files of the `file:` and `sqlite:` stores.
    pub fn local_paths(&self) -> Vec<PathBuf> {
        let local = |url: &str| matches!(scheme(url), "file" | "sqlite");
        let urls = [&self.blobs, &self.documents, &self.bus].into_iter().filter(|url| local(url));
        urls.filter_map(|url| path_in_url(url, "blob").ok()).collect()
    }
}

/// Opens the three stores, and connects to the server of the documents, because nothing works
/// without it.
///
/// # Errors
/// [`StoreError::Url`] for a URL that names no store; [`StoreError::Unavailable`] when a store
/// cannot be opened.
pub async fn open(urls: &StoreUrls) -> Result<DataPlane, StoreError> {
    open_with_blobs(open_blobs(&urls.blobs).await?, urls).await
}

/// Opens the other two stores and combines them with a blob store that is already open.
///
/// # Errors
/// As [`open`].
pub async fn open_with_blobs(
    blobs: Arc<dyn Blobs>,
    urls: &StoreUrls,
) -> Result<DataPlane, StoreError> {
    if urls.documents == urls.bus && scheme(&urls.bus) == "sqlite" {
        let path = path_in_url(&urls.documents, "document")?;
        let open = move || Ok::<_, StoreError>(Sqlite::open(&path)?.with_bus_in_same_file());
        let shared = Arc::new(run_blocking(open).await?);
        let documents = shared.clone();
        bring_up_to_date(&*documents).await?;
        let held = if blobs.defers_sync() {
            Some(BlobLog::open(shared.clone(), blobs.clone()).await?)
        } else {
            None
        };
        let plane = DataPlane::new(blobs, documents, shared);
        return Ok(DataPlane { held, ..plane });
    }
    let documents = open_documents(&urls.documents).await?;
    bring_up_to_date(&*documents).await?;
    let plane = get_or_set_plane_id(&*documents).await?;
    let bus = open_bus(&urls.bus, Some(&plane)).await?;
    Ok(DataPlane::new(blobs, documents, bus))
}

/// Opens a blob store.
///
/// # Errors
/// As [`open`].
pub async fn open_blobs(url: &str) -> Result<Arc<dyn Blobs>, StoreError> {
    match scheme(url) {
        "file" => {
            let path = path_in_url(url, "blob")?;
            Ok(Arc::new(run_blocking(move || ObjectBlobs::local(&path)).await?))
        }
        #[cfg(any(feature = "azure", feature = "gcs", feature = "s3"))]
        known if ObjectBlobs::SCHEMES.contains(&known) => Ok(Arc::new(ObjectBlobs::cloud(url)?)),
        _ => Err(no_backend_error(
            url,
            "blob",
            "file:///folder, s3://bucket, az://container, gs://bucket",
        )),
    }
}

/// Opens a document store.
///
/// # Errors
/// As [`open`].
pub async fn open_documents(url: &str) -> Result<Arc<dyn Documents>, StoreError> {
    match scheme(url) {
        "sqlite" => Ok(open_sqlite(url, "document").await?),
        #[cfg(feature = "mongodb")]
        "mongodb" | "mongodb+srv" => Ok(Arc::new(Mongo::open(url).await?)),
        _ => Err(no_backend_error(url, "document", "sqlite:///file, mongodb://host/database")),
    }
}

/// Opens a bus for the plane with this id. A bus that belongs to another plane is refused: SQLite
/// refuses at once, a broker at the first use.
///
/// # Errors
/// As [`open`].
pub async fn open_bus(url: &str, plane: Option<&str>) -> Result<Arc<dyn Bus>, StoreError> {
    match (scheme(url), plane) {
        ("sqlite", None) => Ok(open_sqlite(url, "bus").await?),
        ("sqlite", Some(plane)) => {
            let bus = open_sqlite(url, "bus").await?;
            match set_plane_id(&*bus, BUS_OF, plane).await? {
                known if known == plane => Ok(bus),
                other => Err(StoreError::Unavailable {
                    store: url.to_owned(),
                    what: "opening the bus".into(),
                    source: format!(
                        "this file belongs to plane {other}, and these documents are of plane \
                         {plane}; name a file of its own in ION_BUS"
                    )
                    .into(),
                }),
            }
        }
        #[cfg(feature = "amqp")]
        ("amqp" | "amqps", None) => Ok(Arc::new(Amqp::open(url)?)),
        #[cfg(feature = "amqp")]
        ("amqp" | "amqps", Some(plane)) => Ok(Arc::new(Amqp::open(url)?.with_plane(plane))),
        _ => Err(no_backend_error(url, "bus", "sqlite:///file, amqp://host, amqps://host")),
    }
}

async fn open_sqlite(url: &str, kind: &'static str) -> Result<Arc<Sqlite>, StoreError> {
    let path = path_in_url(url, kind)?;
    Ok(Arc::new(run_blocking(move || Sqlite::open(&path)).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_url_of_no_store_is_refused_without_its_password() {
        let embedded = StoreUrls::embedded(Path::new("/nowhere"));
        let error =
            open_documents("postgres://ion:s3cret@db.example/ion").await.unwrap_err().to_string();
        assert!(error.contains("mongodb://host"), "{error}");
        assert!(error.contains("***@db.example") && !error.contains("s3cret"), "{error}");
        let relative = StoreUrls { blobs: "file://relative".into(), ..embedded };
        let error = open(&relative).await.unwrap_err().to_string();
        assert!(error.contains("file:///var/lib/ion"), "{error}");
    }

    /// `make test` runs this test both with and without the optional backends.
    #[tokio::test]
    async fn a_backend_that_this_build_lacks_is_named_with_the_way_to_have_it() {
        let lacks = |error: StoreError, feature: &str| {
            let words = error.to_string();
            assert!(words.contains(&format!("--features {feature}`")), "{words}");
            assert!(!words.contains("s3cret"), "{words}");
        };
        if !cfg!(feature = "s3") {
            lacks(open_blobs("s3://bucket").await.unwrap_err(), "s3");
        }
        if !cfg!(feature = "azure") {
            lacks(open_blobs("az://container").await.unwrap_err(), "azure");
        }
        if !cfg!(feature = "gcs") {
            lacks(open_blobs("gs://bucket").await.unwrap_err(), "gcs");
        }
        if !cfg!(feature = "mongodb") {
            lacks(open_documents("mongodb://ion:s3cret@host/ion").await.unwrap_err(), "mongodb");
        }
        if !cfg!(feature = "amqp") {
            lacks(open_bus("amqp://ion:s3cret@host", None).await.unwrap_err(), "amqp");
        }
    }
}
