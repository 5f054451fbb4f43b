//! The test suites that need more of the machine than an ordinary user has: root, container images,
//! cgroups, systemd, a cluster, or programs that test filesystems.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![allow(clippy::disallowed_methods, reason = "tests start programs")]

mod containers;
mod deploy;
mod kubernetes;
mod posix;
mod programs;
mod readers;
mod secrets;
mod security;
mod storms;
#[path = "../support/mod.rs"]
mod support;
mod systemd;
mod users;
