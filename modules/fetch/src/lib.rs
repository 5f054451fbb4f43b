//! `ion-fetch`: reads feeds, HTTP APIs and watched folders, and writes what is new as plain files.
//!
//! The program knows nothing of who starts it. It finds its parameters and its state in `in/`, and
//! leaves results, events and its new state in `out/`.

pub mod feed;
pub(crate) mod html;
