//! The suites of which at least one test needs real servers: RabbitMQ, S3, Azure Blob, or a
//! document store that speaks MongoDB's protocol. The tests start these servers themselves;
//! `scripts/setup-tests.sh` installs them.

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
