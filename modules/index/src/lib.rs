//! `ion-index`: a module that writes items into Elasticsearch or OpenSearch.
//!
//! A job reads the items of its event (`item.json`, or `items.ndjson` with one item a line), sends
//! them to the server in bulk requests, and ends when the server has answered for each of them.
//! Every item is then in the index exactly once, or a line of `rejected.ndjson`.
//!
//! - `input` finds and reads the files, line by line; `item` takes id, date and version from an
//!   item; `document_id`, `index_name` and `shape` say what becomes of it.
//! - `batch` puts documents together into the body of one bulk request, and takes them apart again.
//! - `answer` judges what the server says about each document; `send` sends a batch until every
//!   document is decided, with the waits of `retry`.
//! - `reading` makes batches of files, and `run` keeps a few of them in flight. `rejected` and `report` write what the
//!   next module reads.
//! - `server` is the only room that knows HTTP and TLS; `templates` and `aliases` use it, and so does
//!   `check`, which says whether a server can be used.
//!
//! The crate is a plain program: it knows nothing of Ion beyond the files below `--dir`, and uses
//! no other crate of Ion.

mod aliases;
mod answer;
mod batch;
pub mod check;
mod date;
mod document_id;
mod error;
mod folder;
mod index_name;
mod input;
mod item;
mod reading;
mod rejected;
mod report;
mod retry;
pub mod run;
mod send;
mod server;
pub mod settings;
mod shape;
mod templates;

pub use error::{IndexError, error_chain};
pub use index_name::{IndexPattern, InvalidPattern};
pub use item::FieldPath;
pub use shape::Shape;
