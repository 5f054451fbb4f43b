//! Object stores by URL: `s3://bucket/prefix`, `az://container/prefix`, `gs://bucket/prefix`.
//!
//! Endpoint, region and credentials come from the environment variables that the stores' own tools use.

use std::sync::Arc;
use std::time::Duration;

use ion_system::environment::taken;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{ClientOptions, RetryConfig};

use super::{ObjectBlobs, STALL};
use crate::StoreError;
use crate::open::{choose_tls, without_credentials};

/// How long to connect.
const CONNECT_WAIT: Duration = Duration::from_secs(5);

/// How long a request is repeated that a store answered with "not now". Commits and reads repeat on their own after.
const RETRY_TIME: Duration = Duration::from_secs(15);

/// The schemes of this module.
pub(crate) const SCHEMES: [&str; 3] = ["s3", "az", "gs"];

impl ObjectBlobs {
    /// Blobs in the bucket or container of this URL. Connects to nothing yet.
    ///
    /// # Errors
    /// [`StoreError::Url`] when the URL, or what the environment says beside it, cannot be right.
    pub fn cloud(url: &str) -> Result<Self, StoreError> {
        let refused =
            |reason: String| StoreError::Url { url: without_credentials(url), kind: "blob", reason };
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() || bucket.contains(['@', '?', ':']) {
            return Err(refused(format!(
                "a bucket's name and at most a prefix belong here, as in {scheme}://bucket/prefix; credentials and endpoint come from the environment"
            )));
        }
        let prefix = Path::parse(prefix).map_err(|error| refused(error.to_string()))?;
        let wrong = |error: object_store::Error| refused(ion_model::errors::chain(&error));
        choose_tls();
        let retry = retry();
        let name = url.to_owned();
        let (store, multipart, signer): (Arc<dyn object_store::ObjectStore>, _, Arc<dyn Signer>) =
            match scheme {
                "s3" => {
                    let builder = s3().with_client_options(client("AWS"));
                    let built = builder.with_bucket_name(bucket).with_retry(retry).build();
                    let store = Arc::new(built.map_err(wrong)?);
                    (
                        store.clone(),
                        Some(store.clone() as Arc<dyn object_store::multipart::MultipartStore>),
                        store,
                    )
                }
                "gs" => {
                    let builder = gcs().with_client_options(client("GOOGLE"));
                    let built = builder.with_bucket_name(bucket).with_retry(retry).build();
                    let store = Arc::new(built.map_err(wrong)?);
                    (
                        store.clone(),
                        Some(store.clone() as Arc<dyn object_store::multipart::MultipartStore>),
                        store,
                    )
                }
                // Azure drops blocks that were never committed by itself, after a week.
                _ => {
                    let builder = azure().with_client_options(client("AZURE"));
                    let built = builder.with_container_name(bucket).with_retry(retry).build();
                    let store = Arc::new(built.map_err(wrong)?);
                    (store.clone(), None, store)
                }
            };
        Ok(Self { store, multipart, signer: Some(signer), local: None, prefix, name })
    }

    /// Blobs in a container of Azure Blob, with a key at hand instead of in the environment. Connects to nothing yet.
    ///
    /// # Errors
    /// [`StoreError::Url`] when names or key cannot be right; the key is not in the words.
    pub fn azure(account: &str, key: &str, container: &str) -> Result<Self, StoreError> {
        let name = format!("az://{container}");
        choose_tls();
        let builder = azure().with_client_options(client("AZURE"));
        let builder = builder.with_account(account).with_access_key(key).with_container_name(container);
        let built = builder.with_retry(retry()).build().map_err(|error| StoreError::Url {
            url: name.clone(),
            kind: "blob",
            reason: format!("account {account:?}: {}", ion_model::errors::chain(&error)),
        });
        let store = Arc::new(built?);
        let (signer, prefix) = (Some(store.clone() as Arc<dyn Signer>), Path::default());
        Ok(Self { store, multipart: None, signer, local: None, prefix, name })
    }
}

/// What the environment says of S3. Credentials are no longer in it when a store is opened.
fn s3() -> AmazonS3Builder {
    taken("AWS_").fold(AmazonS3Builder::from_env(), |builder, (name, value)| {
        match name.to_ascii_lowercase().parse() {
            Ok(key) => builder.with_config(key, value),
            Err(_) => builder,
        }
    })
}

/// The same of Google's store.
fn gcs() -> GoogleCloudStorageBuilder {
    taken("GOOGLE_").fold(GoogleCloudStorageBuilder::from_env(), |builder, (name, value)| {
        match name.to_ascii_lowercase().parse() {
            Ok(key) => builder.with_config(key, value),
            Err(_) => builder,
        }
    })
}

/// The same of Azure's.
fn azure() -> MicrosoftAzureBuilder {
    taken("AZURE_").fold(MicrosoftAzureBuilder::from_env(), |builder, (name, value)| {
        match name.to_ascii_lowercase().parse() {
            Ok(key) => builder.with_config(key, value),
            Err(_) => builder,
        }
    })
}

/// How long a store is asked again.
fn retry() -> RetryConfig {
    RetryConfig { max_retries: 5, retry_timeout: RETRY_TIME, ..RetryConfig::default() }
}

/// HTTP without TLS only to an endpoint that the user wrote so.
fn client(family: &str) -> ClientOptions {
    let plain = std::env::vars().any(|(key, value)| {
        key.starts_with(family) && key.contains("ENDPOINT") && value.starts_with("http://")
    });
    ClientOptions::new()
        .with_allow_http(plain)
        .with_timeout_disabled()
        .with_connect_timeout(CONNECT_WAIT)
        .with_read_timeout(STALL)
}
