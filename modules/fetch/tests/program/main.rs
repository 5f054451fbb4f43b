//! The program on plain folders, against servers on real sockets that answer like those of the
//! internet: well, badly, slowly, too much and not at all.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![allow(clippy::disallowed_methods, reason = "tests start programs")]

mod api;
mod feed;
mod folder;
mod origin;
mod watch;
