//! Where an event's files are, for modules that ask for addresses: older ones, which find them
//! among their values.
//!
//! `ion://<event>/<path>` names a file of an event and says nothing of the store: the gateway
//! serves it as `/events/<event>/data/<path>`, and the module itself has it as `in/data/<path>`. A
//! signed URL can be given to any HTTP client; whoever has one may read that file, so it stands in
//! the job's own tree only, never in a document or a log.

use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use ion_model::event::{FileEntry, KeyValue};
use ion_model::id::EventId;
use ion_stores::{DataPlane, StoreError};
use serde::{Deserialize, Serialize};

/// How long a signed URL can be read from: longer than most jobs take, shorter than the seven days
/// after which S3 refuses. Each attempt has its own.
const SIGNED_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// URLs signed at a time. Most stores sign without asking anybody; Google's may have to be asked.
const SIGNING_MAX: usize = 16;

/// Whether files' addresses stand in a module's `in/eventmeta.json`, each under the file's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileUrls {
    /// No: that file holds the event's values and nothing else.
    #[default]
    None,
    /// As `ion://<event>/<path>`.
    Ion,
    /// As a URL of the store that needs no credential; `ion://` where the store makes none.
    Signed,
}

impl FileUrls {
    /// The kind of this name, as pipeline files and flags say it.
    ///
    /// # Errors
    /// What is allowed, in words.
    pub fn named(name: &str) -> Result<Self, String> {
        match name {
            "none" => Ok(Self::None),
            "ion" => Ok(Self::Ion),
            "signed" => Ok(Self::Signed),
            _ => Err(format!("{name:?} is no kind of address; allowed: none, ion, signed")),
        }
    }
}

/// The addresses of an event's files, each under the name by which the module finds it below
/// `in/data`: the file's own, after `below`.
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
            (format!("{below}{}", file.name), ion(event, &file.name), file.key.clone());
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

/// `ion://<event>/<path>`, with what is not allowed in a URL escaped.
fn ion(event: &EventId, path: &str) -> String {
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
        assert_eq!(ion(&event, "a/b c?#.png"), "ion://3f-9/a/b%20c%3F%23.png");
        assert_eq!(ion(&EventId::new("x/y"), "\u{e9}"), "ion://x%2Fy/%C3%A9");
    }
}
