//! What Ion's documents, messages and files say: plain data, and how it is read and written.
//!
//! Every other crate of Ion stands on this one. It knows ids, times, events, jobs' records, limits
//! and checksums. It must not know a store, a file, a thread or the kernel: nothing in here does
//! I/O, apart from reading the clock.
//!
//! Begin with [`event`]: an event is what modules exchange. [`record`] has the other documents.

pub mod checksum;
pub mod clock;
pub mod errors;
pub mod event;
pub mod id;
pub mod limits;
pub mod record;
pub mod text;
