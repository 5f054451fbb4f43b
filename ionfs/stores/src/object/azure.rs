//! The client of Azure Blob storage.

use std::sync::Arc;

use object_store::azure::MicrosoftAzureBuilder;

use super::client::{CloudClient, apply_taken_variables, client_options, retry_config};

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
    let builder =
        builder.with_container_name(container).with_client_options(client_options("AZURE"));
    let store = Arc::new(builder.with_retry(retry_config()).build()?);
    // Azure itself drops uncommitted blocks after a week, so nothing has to end unfinished uploads.
    Ok(CloudClient { store: store.clone(), multipart: None, signer: store })
}

/// Returns a builder with the settings and credentials of the environment.
fn from_env() -> MicrosoftAzureBuilder {
    apply_taken_variables(
        "AZURE_",
        MicrosoftAzureBuilder::from_env(),
        MicrosoftAzureBuilder::with_config,
    )
}
