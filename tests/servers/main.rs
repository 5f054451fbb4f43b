//! The suites that talk to real servers (MongoDB, RabbitMQ, S3, Azure's and others), which the
//! tests start themselves: `scripts/setup-tests.sh` installs them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![allow(clippy::disallowed_methods, reason = "tests start programs")]

mod cancelling;
mod chains;
mod csi;
mod delivery;
mod engines;
mod gateway;
mod messages;
mod older;
mod operating;
mod planes;
mod rolling;
mod stores;
#[path = "../support/mod.rs"]
mod support;
mod torture;
