//! The data plane: what Ion does with its stores.
//!
//! Reading: [`cache`] gives verified bytes of blobs. Writing: [`upload`] makes blobs of closed
//! files, [`commit`] makes an event of them in four steps, and [`relay`] publishes what a dead
//! process did not. Care: [`audit`] checks everything, [`collect`] removes what nobody names,
//! [`probe`] says what a store lets us do. [`node`] is what all mounts of one daemon share. It must
//! not know the kernel's calls, FUSE, modules or who runs jobs.
//!
//! Begin with [`commit`]: its steps are Ion's promise.

pub mod address;
pub mod audit;
pub mod cache;
pub mod collect;
pub mod commit;
pub mod node;
pub mod probe;
pub mod relay;
pub mod upload;
