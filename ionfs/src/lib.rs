//! Ion's data plane: the event model, the stores, the commit protocol and the filesystem at `/ion`.
//!
//! This crate is the front of six, of which each names only those above it in this list:
//!
//! | crate | what it holds |
//! | --- | --- |
//! | `ion-model` | ids, times, events and the other documents, limits, checksums: plain data |
//! | `ion-system` | what Ion needs of its process and of the operating system |
//! | `ion-stores` | the traits `Blobs`, `Documents`, `Bus`; their backends; opening by URL |
//! | `ion-plane` | verified reads, uploads, commits, the outbox, `check` and `gc` |
//! | `ion-fs` | the filesystem in Ion's own types, and its mounts |
//! | `ion-csi` | the driver that mounts jobs' trees for the pods of a Kubernetes node |
//!
//! # Commit an event, and read it back
//!
//! ```
//! use ionfs::commit::create_event;
//! use ionfs::first::FirstEvent;
//! use ionfs::id::{CorrelationId, EventId};
//! use ionfs::event::{Event, KeyValue};
//! use ionfs::stores::{Collection, DataPlane};
//! use ionfs::upload::store_bytes;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let plane = DataPlane::in_memory()?;
//! let file = store_bytes(&*plane.blobs, "frames/1".into(), "frame".into(), "pixels".into()).await?;
//! let event = FirstEvent {
//!     id: EventId::new("first"),
//!     correlation_id: CorrelationId::random(),
//!     name: "example".into(),
//!     parent: String::new(),
//!     event_type: "frame".into(),
//!     files: vec![file],
//!     directories: vec![],
//!     data: vec![KeyValue { key: "camera".into(), value: "3".into() }],
//! };
//! create_event(&plane, event.into_event(&plane, "frames/list").await?).await?;
//!
//! let found: Option<Event> = plane.documents.get_as(Collection::Events, "first").await?;
//! let event = found.expect("the event was committed");
//! assert_eq!(event.event_type, "frame");
//! let bytes = plane.blobs.get_range(&event.files[0].key, 0..6).await?;
//! assert_eq!(&bytes[..], b"pixels");
//! # Ok(())
//! # }
//! ```
//!
//! # Use a store of your own
//!
//! A plane takes any [`Blobs`](stores::Blobs), [`Documents`](stores::Documents) and
//! [`Bus`](stores::Bus). With the feature `testing` a test of yours runs the contract that Ion's
//! own stores pass. Here a store in memory stands for yours:
//!
//! ```
//! use std::sync::Arc;
//!
//! use ionfs::stores::object::ObjectBlobs;
//! use ionfs::stores::sqlite::Sqlite;
//! use ionfs::stores::testing::{blobs_contract, documents_contract};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! blobs_contract(&ObjectBlobs::in_memory()).await;
//!
//! let documents = Arc::new(Sqlite::in_memory()?);
//! documents_contract(documents.clone(), documents).await;
//! # Ok(())
//! # }
//! ```
//!
//! # Mount a plane, to browse it
//!
//! ```no_run
//! use std::path::Path;
//!
//! use ionfs::fs::browse;
//! use ionfs::mount::{Visitors, mount_at};
//! use ionfs::node::{Node, NodeSettings};
//! use ionfs::stores::open::{StoreUrls, open};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let home = Path::new("/var/lib/ion");
//! let plane = open(&StoreUrls::embedded(home)).await?;
//! let node = Node::new(plane, NodeSettings::new(home))?;
//! let mut mounted = mount_at(Path::new("/mnt/ion"), browse::tree(node), Visitors::Owner).await?;
//! mounted.wait_for_end().await?;
//! # Ok(())
//! # }
//! ```

pub use ion_csi::{self as csi, ticket};
pub use ion_fs::{self as fs, mount};
pub use ion_model::{
    checksum, clock, errors, event, id, limits, record, secret, source, term, text, usage, version,
};
pub use ion_plane::{
    address, audit, cache, collect, commit, fetch, first, node, probe, relay, resume, runs, search,
    upload,
};
pub use ion_stores::{self as stores, registry};
pub use ion_system::{beneath, environment, failpoint, home, metrics, patience, spans, sys};
