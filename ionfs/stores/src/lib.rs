//! The stores: blobs, documents and the bus, each behind a small trait, each chosen by one URL.
//!
//! The traits hide everything that belongs to one backend: SQL, file paths, the broker's frames.
//! The traits document what every backend promises, and one contract (the module `testing`, with
//! the feature of that name) checks it for each backend: `tests/servers/stores.rs` on real servers.
//! This crate must not know what its callers commit, read or dispatch.
//!
//! Begin with [`Documents`], then read its embedded backend in [`sqlite`]. [`open`](mod@open)
//! chooses the backends by URL, and [`DataPlane`] is the three stores together.

#[cfg(feature = "amqp")]
pub mod amqp;
mod blobs;
mod bus;
mod collection;
mod documents;
mod durability;
mod error;
mod held;
mod identity;
mod layout;
#[cfg(feature = "mongodb")]
pub mod mongo;
pub mod object;
pub mod open;
mod overlay;
mod plane;
pub mod registry;
pub mod sqlite;
#[cfg(feature = "testing")]
pub mod testing;
mod tls;
mod url;

pub use self::blobs::{BlobInfo, Blobs, UnfinishedUploads};
pub use self::bus::{
    Bus, BusReport, DeadLetter, Delivery, ID_BYTES_MAX, QueueLength, Routed, Subscription,
    Unreadable,
};
pub use self::collection::Collection;
pub use self::documents::{
    Documents, Equals, FieldRange, Guard, Inserted, Pages, Query, StartAt, TallyRow, TimeRange,
    decode, encode, known_queries,
};
pub(crate) use self::documents::{QueryPart, TERMS_FIELD, indexes};
pub use self::durability::Durability;
pub use self::error::StoreError;
pub use self::identity::{find_plane_id, get_or_set_plane_id};
pub use self::overlay::OverlayBlobs;
pub use self::plane::DataPlane;
pub use self::tls::install_tls_provider;
pub use self::url::without_credentials;
