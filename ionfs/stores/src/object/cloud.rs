//! Object stores by URL: `s3://bucket/prefix`, `az://container/prefix`, `gs://bucket/prefix`.
//!
//! Endpoint, region and credentials come from the environment variables that the stores' own tools
//! use.

use object_store::path::Path;

use super::ObjectBlobs;
use super::client::CloudClient;
use crate::StoreError;
use crate::tls::install_tls_provider;
use crate::url::{no_backend_error, without_credentials};

impl CloudClient {
    fn into_blobs(self, prefix: Path, name: String) -> ObjectBlobs {
        let Self { store, multipart, signer } = self;
        ObjectBlobs { store, multipart, signer: Some(signer), local: None, prefix, name }
    }
}

impl ObjectBlobs {
    /// The URL schemes that name a bucket or container.
    pub const SCHEMES: [&str; 3] = ["s3", "az", "gs"];

    /// Makes a blob store over the bucket or container of this URL. Does not connect yet.
    ///
    /// # Errors
    /// [`StoreError::Url`] when the URL, or the configuration in the environment, is invalid.
    pub fn cloud(url: &str) -> Result<Self, StoreError> {
        let refused = |reason: String| StoreError::Url {
            url: without_credentials(url),
            kind: "blob",
            reason,
        };
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() || bucket.contains(['@', '?', ':']) {
            return Err(refused(format!(
                "the URL may hold only a bucket's name and a prefix, as in \
                 {scheme}://bucket/prefix; set credentials and endpoint in the environment"
            )));
        }
        let prefix = Path::parse(prefix).map_err(|error| refused(error.to_string()))?;
        install_tls_provider();
        let client = match scheme {
            #[cfg(feature = "s3")]
            "s3" => super::s3::client(bucket),
            #[cfg(feature = "gcs")]
            "gs" => super::gcs::client(bucket),
            #[cfg(feature = "azure")]
            "az" => super::azure::client(bucket),
            _ => return Err(no_backend_error(url, "blob", &Self::SCHEMES.join("://bucket, "))),
        };
        let client = client.map_err(|error| refused(ion_model::errors::error_chain(&error)))?;
        Ok(client.into_blobs(prefix, url.to_owned()))
    }

    /// Makes a blob store over a container of Azure Blob, with the given key instead of one from
    /// the environment. Does not connect yet.
    ///
    /// # Errors
    /// [`StoreError::Url`] when a name or the key is invalid. The error text does not contain the
    /// key.
    #[cfg(feature = "azure")]
    pub fn azure(account: &str, key: &str, container: &str) -> Result<Self, StoreError> {
        let name = format!("az://{container}");
        install_tls_provider();
        let client = super::azure::client_with_key(account, key, container);
        let client = client.map_err(|error| StoreError::Url {
            url: name.clone(),
            kind: "blob",
            reason: format!("account {account:?}: {}", ion_model::errors::error_chain(&error)),
        })?;
        Ok(client.into_blobs(Path::default(), name))
    }
}
