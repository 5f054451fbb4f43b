//! The data plane: everything that Ion does with its stores.
//!
//! For reading, [`cache`] provides verified bytes of blobs. For writing, [`upload`] makes blobs of
//! closed files, [`commit`] makes an event of them in four steps, and [`relay`] publishes the
//! events that a dead process left unpublished. For maintenance, [`audit`] checks everything,
//! [`collect`] removes blobs that no document names, [`resume`] notes how far such a command is, and
//! [`probe`] finds out what a store allows. [`search`] finds insights and events by terms, and
//! [`gathered`] is the list of events that a gathering job is given, [`runs`] are those of a source.
//! [`node`] holds what all mounts
//! of one daemon share. This crate must not know the kernel's calls, FUSE, modules or who runs jobs.
//!
//! Begin with [`commit`]: Ion's guarantees rest on its steps.

pub mod address;
pub mod audit;
pub mod cache;
pub mod collect;
pub mod commit;
pub mod fetch;
pub mod first;
pub mod gathered;
pub mod node;
pub mod probe;
pub mod relay;
pub mod resume;
pub mod runs;
pub mod search;
pub mod upload;
