//! Object stores by URL: `s3://bucket/prefix`, `az://container/prefix`, `gs://bucket/prefix`.
//!
//! Endpoint, region and credentials come from the environment variables that the stores' own tools
//! use.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ion_system::environment::taken_variables;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{ClientOptions, ObjectStore, RetryConfig};

use super::ObjectBlobs;
use crate::StoreError;
use crate::tls::choose_tls;
use crate::url::{unknown, without_credentials};

/// How long connecting to a store may take.
const CONNECT_WAIT: Duration = Duration::from_secs(5);

/// How long a request is retried when a store answers that it is temporarily unable. After that,
/// commits and reads retry by themselves.
const RETRY_TIME: Duration = Duration::from_secs(15);

/// How long a request may make no progress before it fails. One part must get through in this time:
/// 8 MiB at 140 KiB/s.
const STALL: Duration = Duration::from_secs(60);

/// A client of one bucket or container.
pub(super) struct CloudClient {
    pub(super) store: Arc<dyn ObjectStore>,
    /// Set where the parts of an unfinished upload stay until somebody removes them.
    pub(super) multipart: Option<Arc<dyn MultipartStore>>,
    pub(super) signer: Arc<dyn Signer>,
}

impl CloudClient {
    fn blobs(self, prefix: Path, name: String) -> ObjectBlobs {
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
        choose_tls();
        let client = match scheme {
            #[cfg(feature = "s3")]
            "s3" => super::s3::client(bucket),
            #[cfg(feature = "gcs")]
            "gs" => super::gcs::client(bucket),
            #[cfg(feature = "azure")]
            "az" => super::azure::client(bucket),
            _ => return Err(unknown(url, "blob", &Self::SCHEMES.join("://bucket, "))),
        };
        let client = client.map_err(|error| refused(ion_model::errors::error_chain(&error)))?;
        Ok(client.blobs(prefix, url.to_owned()))
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
        choose_tls();
        let client = super::azure::client_with_key(account, key, container);
        let client = client.map_err(|error| StoreError::Url {
            url: name.clone(),
            kind: "blob",
            reason: format!("account {account:?}: {}", ion_model::errors::error_chain(&error)),
        })?;
        Ok(client.blobs(Path::default(), name))
    }
}

/// Returns how often and how long a request is retried.
pub(super) fn retry() -> RetryConfig {
    RetryConfig { max_retries: 5, retry_timeout: RETRY_TIME, ..RetryConfig::default() }
}

/// Returns the options of the HTTP client. HTTP without TLS is allowed only if the user set an
/// `http://` endpoint in an environment variable whose name begins with `family`.
pub(super) fn options(family: &str) -> ClientOptions {
    let plain = std::env::vars().any(|(key, value)| {
        key.starts_with(family) && key.contains("ENDPOINT") && value.starts_with("http://")
    });
    ClientOptions::new()
        .with_allow_http(plain)
        .with_timeout_disabled()
        .with_connect_timeout(CONNECT_WAIT)
        .with_read_timeout(STALL)
}

/// Sets what the taken variables of this family say. A builder reads the rest from the environment
/// by itself; credentials are no longer in it when a store is opened.
pub(super) fn with_taken<B, K: FromStr>(
    family: &str,
    builder: B,
    with_config: fn(B, K, &'static str) -> B,
) -> B {
    taken_variables(family).fold(builder, |builder, (name, value)| {
        match name.to_ascii_lowercase().parse() {
            Ok(key) => with_config(builder, key, value),
            Err(_) => builder,
        }
    })
}
