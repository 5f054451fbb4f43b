//! The contract of the stores, as a suite that runs against any store: also one of your own.
//!
//! A backend passes if its contract returns. What it breaks is the message of the panic. Ion's own
//! backends pass on real servers (`tests/servers/stores.rs`). This module is there with the cargo
//! feature `testing`.

#![expect(clippy::unwrap_used, reason = "a store that fails breaks its contract")]

mod blobs;
mod bus;
mod documents;
mod queries;

pub use self::blobs::blobs_contract;
pub use self::bus::{bus_beside_documents_contract, bus_contract, message};
pub use self::documents::documents_contract;
