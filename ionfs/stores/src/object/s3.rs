//! The client of S3 and of stores that speak its protocol.

use std::sync::Arc;

use object_store::aws::AmazonS3Builder;

use super::client::{CloudClient, apply_taken_variables, client_options, retry_config};

/// Returns a client of this bucket, configured by the environment.
pub(super) fn client(bucket: &str) -> object_store::Result<CloudClient> {
    let builder = from_env().with_bucket_name(bucket);
    let store = Arc::new(
        builder.with_client_options(client_options("AWS")).with_retry(retry_config()).build()?,
    );
    Ok(CloudClient { store: store.clone(), multipart: Some(store.clone()), signer: store })
}

/// Returns a builder with the settings and credentials of the environment.
fn from_env() -> AmazonS3Builder {
    apply_taken_variables("AWS_", AmazonS3Builder::from_env(), AmazonS3Builder::with_config)
}
