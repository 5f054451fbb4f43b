//! The URLs that name stores.

use std::path::PathBuf;

use crate::error::StoreError;

/// Returns the scheme of a URL; empty where it has none.
pub(crate) fn scheme(url: &str) -> &str {
    url.split_once("://").map_or("", |(scheme, _)| scheme)
}

/// A backend that a build may lack.
struct OptionalBackend {
    kind: &'static str,
    scheme: &'static str,
    /// The cargo feature that adds the backend.
    feature: &'static str,
}

const fn optional_backend(
    kind: &'static str,
    scheme: &'static str,
    feature: &'static str,
) -> OptionalBackend {
    OptionalBackend { kind, scheme, feature }
}

const OPTIONAL: [OptionalBackend; 7] = [
    optional_backend("blob", "s3", "s3"),
    optional_backend("blob", "az", "azure"),
    optional_backend("blob", "gs", "gcs"),
    optional_backend("document", "mongodb", "mongodb"),
    optional_backend("document", "mongodb+srv", "mongodb"),
    optional_backend("bus", "amqp", "amqp"),
    optional_backend("bus", "amqps", "amqp"),
];

/// Returns the error for a URL for which this build has no backend.
pub(crate) fn no_backend_error(url: &str, kind: &'static str, known: &str) -> StoreError {
    let lacking = OPTIONAL.iter().find(|one| one.kind == kind && one.scheme == scheme(url));
    let reason = match lacking {
        Some(OptionalBackend { feature, .. }) => format!(
            "this ion was built without {feature}; `cargo build --release --features {feature}` \
             builds one that has it"
        ),
        None => format!("these are known: {known}"),
    };
    StoreError::Url { url: without_credentials(url), kind, reason }
}

/// Returns the absolute path that a URL of an embedded store names.
pub(crate) fn path_in_url(url: &str, kind: &'static str) -> Result<PathBuf, StoreError> {
    match url.split_once("://") {
        Some((_, path)) if path.starts_with('/') => Ok(PathBuf::from(path)),
        _ => Err(StoreError::Url {
            url: url.to_owned(),
            kind,
            reason: format!("an absolute path is needed, as in {}:///var/lib/ion", scheme(url)),
        }),
    }
}

/// Returns the URL in a form that may be shown: whatever precedes an `@` in its authority is secret
/// and is replaced by `***`.
pub fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://***@{host}{path}"),
        None => url.to_owned(),
    }
}
