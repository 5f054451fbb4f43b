//! The client of Google Cloud Storage.

use std::sync::Arc;

use object_store::gcp::GoogleCloudStorageBuilder;

use super::client::{CloudClient, apply_taken_variables, client_options, retry_config};

/// Returns a client of this bucket, configured by the environment.
pub(super) fn client(bucket: &str) -> object_store::Result<CloudClient> {
    let builder = from_env().with_bucket_name(bucket);
    let store = Arc::new(
        builder.with_client_options(client_options("GOOGLE")).with_retry(retry_config()).build()?,
    );
    Ok(CloudClient { store: store.clone(), multipart: Some(store.clone()), signer: store })
}

/// Returns a builder with the settings and credentials of the environment.
fn from_env() -> GoogleCloudStorageBuilder {
    apply_taken_variables(
        "GOOGLE_",
        GoogleCloudStorageBuilder::from_env(),
        GoogleCloudStorageBuilder::with_config,
    )
}
