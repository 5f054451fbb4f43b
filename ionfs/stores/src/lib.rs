//! The stores: blobs, documents and the bus, each behind a small trait, each chosen by one URL.
//!
//! Nothing of a backend leaks through: no SQL, no path, no broker's frame. What every backend
//! promises is written at the traits and checked by one contract (`tests/stores.rs`) that each
//! backend runs, on real servers. It must not know what is committed, read or dispatched by it.
//!
//! Begin with [`Documents`], then with its embedded backend in [`sqlite`]; [`open`](mod@open)
//! chooses backends by URLs, and [`DataPlane`] is the three stores together.

#[cfg(feature = "amqp")]
pub mod amqp;
mod blobs;
mod bus;
mod collection;
mod documents;
mod error;
mod held;
mod identity;
#[cfg(feature = "mongodb")]
pub mod mongo;
pub mod object;
pub mod open;
mod plane;
pub mod registry;
pub mod sqlite;

pub use self::blobs::{Abandon, BlobInfo, Blobs};
pub use self::bus::{
    Bus, BusReport, DeadLetter, Delivery, ID_BYTES_MAX, QueueLength, Routed, Subscription,
    Unreadable,
};
pub use self::collection::Collection;
pub(crate) use self::documents::indexes;
pub use self::documents::{
    Documents, Equals, Guard, Inserted, Page, Pages, Query, decode, encode, known_queries,
};
pub use self::error::StoreError;
pub use self::identity::{known_plane_id, plane_id};
pub use self::plane::DataPlane;
