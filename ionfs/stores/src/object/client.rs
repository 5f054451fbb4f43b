//! What the clients of S3, Azure Blob and Google Cloud Storage have in common: how their requests
//! are retried, and how their builders get what the environment says.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ion_system::environment::taken_variables;
use object_store::multipart::MultipartStore;
use object_store::signer::Signer;
use object_store::{ClientOptions, ObjectStore, RetryConfig};

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

/// Returns how often and how long a request is retried.
pub(super) fn retry_config() -> RetryConfig {
    RetryConfig { max_retries: 5, retry_timeout: RETRY_TIME, ..RetryConfig::default() }
}

/// Returns the options of the HTTP client. HTTP without TLS is allowed only if the user set an
/// `http://` endpoint in an environment variable whose name begins with `family`.
pub(super) fn client_options(family: &str) -> ClientOptions {
    let plain = std::env::vars().any(|(key, value)| {
        key.starts_with(family) && key.contains("ENDPOINT") && value.starts_with("http://")
    });
    ClientOptions::new()
        .with_allow_http(plain)
        .with_timeout_disabled()
        .with_connect_timeout(CONNECT_WAIT)
        .with_read_timeout(STALL)
}

/// Configures a builder with the environment variables of this family that Ion has taken out of the
/// environment (the credentials). The builder has read the other variables itself.
pub(super) fn apply_taken_variables<B, K: FromStr>(
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
