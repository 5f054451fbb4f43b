//! `ion-fetch`: reads feeds, HTTP APIs and watched folders, and writes what is new as plain files.
//!
//! The program knows nothing of who starts it. It finds its parameters and its state in `in/`, and
//! leaves results, events and its new state in `out/`.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`feed`] | from the bytes of a feed to its items: a pure function |
//! | [`feed_state`] | from state, answer and time to the next state: a pure function |
//! | [`seen`] | which items are remembered, and which are published |
//! | [`pause`] | how long a source waits |
//! | [`api`] | from a declared file and the answer of an API to its items: pure functions |
//! | [`page`] | from a web page to its readable text: a pure function |
//! | [`http`] | asks servers, politely and with bounds |
//! | [`folder`] | the plain folder with parameters, state, results and events |
//! | [`feed_run`] | one run over one feed: puts the others together |
//! | [`api_run`] | one run over one API |
//! | [`watch_run`] | one run over one folder that files appear in |
//! | [`run`] | what the runs of all sources have in common |
//! | [`cli`] | the command line |

pub mod api;
pub mod api_run;
pub(crate) mod charset;
pub mod cli;
pub(crate) mod dates;
pub mod feed;
pub mod feed_run;
pub mod feed_state;
pub mod folder;
pub(crate) mod html;
pub mod http;
pub mod page;
pub mod pause;
pub mod run;
pub mod seen;
pub mod watch_run;
