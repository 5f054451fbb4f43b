//! The client of Google Cloud Storage.

use std::sync::Arc;

use object_store::gcp::GoogleCloudStorageBuilder;

use super::client::{CloudClient, options, retry, with_taken};

/// Returns a client of this bucket, configured by the environment.
pub(super) fn client(bucket: &str) -> object_store::Result<CloudClient> {
    let builder = from_env().with_bucket_name(bucket);
    let store =
        Arc::new(builder.with_client_options(options("GOOGLE")).with_retry(retry()).build()?);
    Ok(CloudClient { store: store.clone(), multipart: Some(store.clone()), signer: store })
}

/// A builder that the environment has set up.
fn from_env() -> GoogleCloudStorageBuilder {
    with_taken(
        "GOOGLE_",
        GoogleCloudStorageBuilder::from_env(),
        GoogleCloudStorageBuilder::with_config,
    )
}
