//! The client of Azure Blob storage.

use std::sync::Arc;

use ion_system::environment::taken;
use object_store::azure::MicrosoftAzureBuilder;

use super::cloud::{CloudClient, options, retry};

/// Returns a client of this container, configured by the environment.
pub(super) fn client(container: &str) -> object_store::Result<CloudClient> {
    build(from_env(), container)
}

/// Returns a client of this container with the given account and key, otherwise configured by the
/// environment.
pub(super) fn client_with_key(
    account: &str,
    key: &str,
    container: &str,
) -> object_store::Result<CloudClient> {
    build(from_env().with_account(account).with_access_key(key), container)
}

fn build(builder: MicrosoftAzureBuilder, container: &str) -> object_store::Result<CloudClient> {
    let builder = builder.with_container_name(container).with_client_options(options("AZURE"));
    let store = Arc::new(builder.with_retry(retry()).build()?);
    // Azure itself drops uncommitted blocks after a week, so nothing has to end unfinished uploads.
    Ok(CloudClient { store: store.clone(), multipart: None, signer: store })
}

/// Reads the configuration from the environment and from the variables that were taken out of it:
/// when a store is opened, credentials are no longer in the environment.
fn from_env() -> MicrosoftAzureBuilder {
    taken("AZURE_").fold(MicrosoftAzureBuilder::from_env(), |builder, (name, value)| {
        match name.to_ascii_lowercase().parse() {
            Ok(key) => builder.with_config(key, value),
            Err(_) => builder,
        }
    })
}
