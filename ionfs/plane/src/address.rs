//! The addresses of an event's files, for older modules, which expect the addresses among their
//! event's values.
//!
//! `ion://<event>/<path>` names a file of an event independently of the store: the gateway serves
//! the file as `/events/<event>/data/<path>`, and the module itself sees it as `in/data/<path>`. A
//! signed URL works with any HTTP client. Anybody who has the URL may read the file, so it is
//! written only into the job's own tree, never into a document or a log.

use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use ion_model::event::{FileEntry, KeyValue};
use ion_model::id::EventId;
use ion_stores::{DataPlane, StoreError};
use serde::{Deserialize, Serialize};

/// How long a signed URL is valid: longer than most jobs take, and shorter than seven days, the
/// most that S3 accepts. Each attempt gets new URLs.
const SIGNED_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// The number of URLs that are signed concurrently. The clients of most stores sign locally;
/// Google's may need a request.
const SIGNING_MAX: usize = 16;

/// The kind of file addresses in a module's `in/eventmeta.json`, each under the file's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileUrls {
    /// No addresses: `in/eventmeta.json` holds only the event's values.
    #[default]
    None,
    /// Addresses such as `ion://<event>/<path>`.
    Ion,
    /// URLs of the store that need no credential, or `ion://` addresses if the store makes no such
    /// URLs.
    Signed,
}

/// There is no kind of file addresses with this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no kind of address; allowed: none, ion, signed")]
pub struct UnknownFileUrls(String);

impl FileUrls {
    /// Returns the kind with this name, as pipeline files and flags write it.
    ///
    /// # Errors
    /// When there is no such kind. The error names the allowed kinds.
    pub fn parse(name: &str) -> Result<Self, UnknownFileUrls> {
        match name {
            "none" => Ok(Self::None),
            "ion" => Ok(Self::Ion),
            "signed" => Ok(Self::Signed),
            _ => Err(UnknownFileUrls(name.to_owned())),
        }
    }
}

/// Returns the addresses of an event's files. The key of each is the name by which the module finds
/// the file below `in/data`: `below` followed by the file's own name.
///
/// # Errors
/// When the store cannot sign a URL.
pub async fn addresses(
    plane: &DataPlane,
    urls: FileUrls,
    event: &EventId,
    files: &[FileEntry],
    below: &str,
) -> Result<Vec<KeyValue>, StoreError> {
    if urls == FileUrls::None {
        return Ok(vec![]);
    }
    let address = |file: &FileEntry| {
        let (name, own, key) =
            (format!("{below}{}", file.name), ion_address(event, &file.name), file.key.clone());
        async move {
            let signed = match urls {
                FileUrls::Signed => plane.blobs.signed_url(&key, SIGNED_FOR).await?,
                _ => None,
            };
            Ok(KeyValue { key: name, value: signed.unwrap_or(own) })
        }
    };
    let all: Vec<_> = files.iter().map(address).collect();
    stream::iter(all).buffered(SIGNING_MAX).try_collect().await
}

/// Returns `ion://<event>/<path>`, with the characters escaped that a URL may not contain.
fn ion_address(event: &EventId, path: &str) -> String {
    let mut uri = String::from("ion://");
    escape(event.as_str(), &mut uri);
    for part in path.split('/') {
        uri.push('/');
        escape(part, &mut uri);
    }
    uri
}

fn escape(part: &str, into: &mut String) {
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            into.push(char::from(byte));
        } else {
            into.push_str(&format!("%{byte:02X}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_url_whatever_the_files_name() {
        let event = EventId::new("3f-9");
        assert_eq!(ion_address(&event, "a/b c?#.png"), "ion://3f-9/a/b%20c%3F%23.png");
        assert_eq!(ion_address(&EventId::new("x/y"), "\u{e9}"), "ion://x%2Fy/%C3%A9");
    }
}
