//! Runs the program `ion-index` against a server that speaks OpenSearch, most often behind a proxy
//! of the test's own that answers as overloaded, limited and failing servers do.
//!
//! The server is `osmem-server`, an emulator that `scripts/setup-tests.sh` installs.
//! `ION_TEST_OPENSEARCH=URL` runs the same tests against a real one: each test has indices of its
//! own there and removes them.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests start programs, wait, and panic when they cannot continue"
)]

mod check;
mod faults;
mod indexing;
mod job;
mod limits;
mod proxy;
mod search;
mod security;
