//! From events to jobs.
//!
//! The way of an event: a module's queue gives a message; the ledger claims the job by one insert;
//! the message is acknowledged; an executor runs the module; what it committed is in other queues
//! by then, and the ledger has how it ended.
//!
//! This crate is the front of four, of which each names only those above it in this list:
//!
//! | crate | what it holds |
//! | --- | --- |
//! | `ion-jobs` | pipelines, what a job may become next, the ledger, gathering, progress |
//! | `ion-run` | how a job is run: sandbox, container, pod, chain |
//! | `ion-dispatch` | queues to jobs, within limits |
//! | `ion-gateway` | all of it over HTTP |

pub use ion_dispatch::{self as dispatch, audit, queues};
pub use ion_gateway as gateway;
pub use ion_jobs::{
    cancel, counts, find, gather, job, ledger, lineage, list, logs, metrics, pipeline, progress,
    retention, sources, summary, usage, version,
};
pub use ion_run::{chain, container, executor, image, sandbox, secrets};
