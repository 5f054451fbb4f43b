//! The data model: the content of Ion's documents, messages and files as plain data, and how it is
//! read and written.
//!
//! Every other crate of Ion depends on this one. It defines ids, times, events, job records, limits
//! and checksums. It must not know a store, a file, a thread or the kernel: nothing in here does
//! I/O, apart from reading the clock.
//!
//! Begin with [`event`]: modules exchange events. [`record`] has the other documents.

pub mod checksum;
pub mod clock;
pub mod errors;
pub mod event;
pub mod file;
pub mod id;
pub mod limits;
pub mod record;
pub mod secret;
pub mod source;
pub mod state;
pub mod term;
pub mod text;
pub mod usage;
pub mod version;
