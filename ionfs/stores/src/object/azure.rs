//! Azure Blob.

use std::sync::Arc;

use ion_system::environment::taken;
use object_store::azure::MicrosoftAzureBuilder;

use super::cloud::{Client, options, retry};

/// A client of this container, set up by the environment.
pub(super) fn client(container: &str) -> object_store::Result<Client> {
    build(from_env(), container)
}

/// The same, with a key at hand.
pub(super) fn client_with_key(
    account: &str,
    key: &str,
    container: &str,
) -> object_store::Result<Client> {
    build(from_env().with_account(account).with_access_key(key), container)
}

fn build(builder: MicrosoftAzureBuilder, container: &str) -> object_store::Result<Client> {
    let builder = builder.with_container_name(container).with_client_options(options("AZURE"));
    let store = Arc::new(builder.with_retry(retry()).build()?);
    // Azure drops blocks that were never committed by itself, after a week.
    Ok(Client { store: store.clone(), multipart: None, signer: store })
}

/// What the environment says. Credentials are no longer in it when a store is opened.
fn from_env() -> MicrosoftAzureBuilder {
    taken("AZURE_").fold(MicrosoftAzureBuilder::from_env(), |builder, (name, value)| {
        match name.to_ascii_lowercase().parse() {
            Ok(key) => builder.with_config(key, value),
            Err(_) => builder,
        }
    })
}
