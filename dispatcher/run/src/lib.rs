//! The execution of jobs.
//!
//! [`executor`] has one small trait for every kind of machine, and its implementations: a process
//! of this machine in a sandbox, the same in a container, a pod of a Kubernetes cluster. [`chain`]
//! runs programs through which bytes pass from stdin to stdout. [`secrets`] finds what modules read as
//! secrets. This crate must not know about
//! queues, the ledger's claims or HTTP requests: it receives one attempt, and returns how that
//! attempt ended.
//!
//! Begin with [`executor`].

pub mod chain;
pub mod container;
pub mod executor;
pub mod image;
pub mod sandbox;
pub mod secrets;
