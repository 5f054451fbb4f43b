//! Stores by URL.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::object::ObjectBlobs;
use super::sqlite::Sqlite;
use super::{Blobs, DataPlane, StoreError};

/// Which stores a plane is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreUrls {
    /// `file:///folder`
    pub blobs: String,
    /// `sqlite:///file`
    pub documents: String,
    /// `sqlite:///file`, usually the same
    pub bus: String,
}

impl StoreUrls {
    /// The embedded stores below `home`.
    pub fn embedded(home: &Path) -> Self {
        let home = std::path::absolute(home).unwrap_or_else(|_| home.to_owned());
        let database = format!("sqlite://{}", home.join("ion.db").display());
        Self {
            blobs: format!("file://{}", home.join("blobs").display()),
            documents: database.clone(),
            bus: database,
        }
    }
}

/// Opens the three stores.
///
/// # Errors
/// [`StoreError::Url`] for a URL that names no store of this build; [`StoreError::Unavailable`] when one cannot be opened.
pub async fn open(urls: &StoreUrls) -> Result<DataPlane, StoreError> {
    let blobs = path_of(&urls.blobs, "blob", "file")?;
    let documents = path_of(&urls.documents, "document", "sqlite")?;
    let bus = path_of(&urls.bus, "bus", "sqlite")?;
    crate::cache::blocking(move || {
        let blobs: Arc<dyn Blobs> = Arc::new(ObjectBlobs::local(&blobs)?);
        let database = Arc::new(Sqlite::open(&documents)?);
        let bus = if bus == documents { database.clone() } else { Arc::new(Sqlite::open(&bus)?) };
        Ok(DataPlane { blobs, documents: database, bus })
    })
    .await
}

/// The path of a URL that must have this scheme.
fn path_of(url: &str, kind: &'static str, scheme: &str) -> Result<PathBuf, StoreError> {
    let refused = |reason: String| StoreError::Url { url: without_credentials(url), kind, reason };
    match url.split_once("://") {
        Some((found, path)) if found == scheme && path.starts_with('/') => Ok(PathBuf::from(path)),
        Some((found, _)) if found == scheme => Err(refused(format!(
            "an absolute path is needed after {scheme}://, as in {scheme}:///var/lib/ion"
        ))),
        _ => Err(refused(format!("this build has {scheme}:///path only"))),
    }
}

/// A URL as it may be shown: what stands before an `@` in its authority is a secret.
pub fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://***@{host}{path}"),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_of_no_store_is_refused_without_its_password() {
        let error =
            path_of("mongodb://ion:s3cret@db.example/ion", "document", "sqlite").unwrap_err().to_string();
        assert!(error.contains("sqlite:///path"), "{error}");
        assert!(error.contains("***@db.example") && !error.contains("s3cret"), "{error}");
        assert!(path_of("file://relative", "blob", "file").is_err());
    }
}
