//! The test suites that need neither root nor servers. They run Ion on its embedded stores, as its
//! users do.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![allow(clippy::disallowed_methods, reason = "tests start programs")]

mod asking;
mod batches;
mod carried;
mod closing;
mod crash;
mod data;
mod debugging;
mod files;
mod hostile;
mod inbox;
mod keeping;
mod large;
mod listing;
mod manual;
mod model;
mod observing;
mod output;
mod pipelines;
mod reports;
mod requests;
mod secrets;
mod sources;
mod staging;
#[path = "../support/mod.rs"]
mod support;
mod tidy;
mod trial;
mod usage;
