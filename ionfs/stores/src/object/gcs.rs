//! The client of Google Cloud Storage.

use std::sync::Arc;

use ion_system::environment::taken;
use object_store::gcp::GoogleCloudStorageBuilder;

use super::cloud::{CloudClient, options, retry};

/// Returns a client of this bucket, configured by the environment.
pub(super) fn client(bucket: &str) -> object_store::Result<CloudClient> {
    let builder = from_env().with_bucket_name(bucket);
    let store =
        Arc::new(builder.with_client_options(options("GOOGLE")).with_retry(retry()).build()?);
    Ok(CloudClient { store: store.clone(), multipart: Some(store.clone()), signer: store })
}

/// Reads the configuration from the environment and from the variables that were taken out of it:
/// when a store is opened, credentials are no longer in the environment.
fn from_env() -> GoogleCloudStorageBuilder {
    taken("GOOGLE_").fold(
        GoogleCloudStorageBuilder::from_env(),
        |builder, (name, value)| match name.to_ascii_lowercase().parse() {
            Ok(key) => builder.with_config(key, value),
            Err(_) => builder,
        },
    )
}
