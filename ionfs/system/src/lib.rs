//! What Ion needs of its process and of the operating system.
//!
//! System calls that the standard library lacks ([`sys`] has every `unsafe` line), files that
//! others may change at the same time ([`beneath`]), the folder of all state ([`home`]), secrets
//! taken out of the environment, waiting, counting, and the points at which tests kill the process
//! ([`failpoint`]). It must not know what an event, a store or a job is.
//!
//! Begin with [`beneath`], which is the reason for most of the rest.

mod blocking;

pub mod beneath;
pub mod environment;
pub mod failpoint;
pub mod home;
pub mod metrics;
pub mod patience;
pub mod spans;
pub mod sys;

pub use self::blocking::run_blocking;
