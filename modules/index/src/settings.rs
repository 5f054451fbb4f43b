//! What a run, or the look at a server, is told to do.

use std::path::PathBuf;
use std::time::Duration;

use crate::index_name::IndexPattern;
use crate::item::FieldPath;
pub use crate::retry::RetrySettings;
use crate::shape::Shape;

/// Which server is used, and how.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// The address, such as `https://search.example:9200`. It holds no credentials.
    pub url: String,
    /// A file with the certificates in PEM that sign the server's. Only these count then; without
    /// it the machine's own do.
    pub ca: Option<PathBuf>,
    /// Where the credentials are.
    pub secrets: SecretNames,
    /// How long one request may take. After it nobody knows whether the server has done it, and it
    /// is sent again.
    pub timeout: Duration,
    /// Whether the bodies of bulk requests are compressed: saves the network and costs processor
    /// time.
    pub gzip: bool,
}

/// The files that hold the credentials. Their contents are never in a setting.
#[derive(Clone, Debug)]
pub struct SecretNames {
    /// The folder of the secrets: `/run/secrets` unless set.
    pub folder: PathBuf,
    /// The file with the name of the user.
    pub user: Option<String>,
    /// The file with the user's password.
    pub password: Option<String>,
    /// The file with an API key: as the server gave it in `encoded`, or as `id:key`.
    pub api_key: Option<String>,
}

/// Everything that a run is told.
#[derive(Clone, Debug)]
pub struct RunSettings {
    /// The tree of the job: `/ion`, or any folder with `in/data`.
    pub folder: PathBuf,
    /// The server.
    pub server: ServerSettings,
    /// The names of the indices.
    pub index: IndexPattern,
    /// An alias that every index of the run gets.
    pub alias: Option<String>,
    /// Index templates, put before the first item is sent.
    pub templates: Vec<PathBuf>,
    /// The source of the items; without it the event says it.
    pub source: Option<String>,
    /// The field with an item's id.
    pub id: FieldPath,
    /// The fields with an item's date; the first that has one counts.
    pub dates: Vec<FieldPath>,
    /// The fields with an item's version. With any, newer states of an item replace older ones;
    /// without, the first state stays.
    pub versions: Vec<FieldPath>,
    /// The shape of the documents.
    pub shape: Shape,
    /// The type of the event about rejected items.
    pub rejected_event: String,
    /// The largest number of documents of a request.
    pub batch_items: usize,
    /// The largest size of a request, before it is compressed. A larger document goes alone.
    pub batch_bytes: usize,
    /// The largest item; a larger one is rejected without being read.
    pub item_bytes: usize,
    /// How many requests are under way at the same time.
    pub in_flight: usize,
    /// How often and how long a request is sent again.
    pub retry: RetrySettings,
}
