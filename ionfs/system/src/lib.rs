//! What Ion needs from its process and from the operating system.
//!
//! It has the system calls that the standard library lacks ([`sys`] has every `unsafe` line), safe
//! access to files that others may change at the same time ([`beneath`]), the folder of all state
//! ([`home`]), the removal of credentials from the environment ([`environment`]), waiting with
//! deadlines ([`patience`]), metrics ([`metrics`]), the names of spans ([`spans`]), how other
//! processes end ([`process`]), folders that go with their process ([`scratch`]), and the points at
//! which tests kill the process ([`failpoint`]). It must not know what an event, a store or a job
//! is.
//!
//! Begin with [`beneath`], which is the reason for most of the rest.

mod blocking;

pub mod beneath;
pub mod environment;
pub mod failpoint;
pub mod home;
pub mod metrics;
pub mod patience;
pub mod process;
pub mod scratch;
pub mod spans;
pub mod sys;

pub use self::blocking::run_blocking;
