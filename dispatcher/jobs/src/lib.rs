//! Pipelines and jobs: what has to run, and what became of it.
//!
//! [`pipeline`] reads pipeline files. [`job`] is the state machine of a job, a pure function;
//! [`ledger`] stores the job documents and changes them by that function only. [`gather`] decides
//! when everything below an event has ended, [`cancel`] cancels an event and everything below it,
//! [`progress`] shows how far a correlation has come, [`summary`] what a large one consists of, both
//! by [`counts`], and [`lineage`] walks through it. [`find`] finds things by their ids, [`list`]
//! reads lists of any length, [`logs`] reads what a job wrote, [`retention`] removes old
//! correlations, [`sources`] decides when sources run by a [`schedule`], [`version`] says what attempts ran and [`usage`] what they used, [`metrics`]
//! counts. This crate must not know how a job is run, nor which program calls it.
//!
//! Begin with [`job`], then [`ledger`].

pub mod cancel;
pub mod counts;
pub mod find;
pub mod gather;
pub mod job;
pub mod ledger;
pub mod lineage;
pub mod list;
pub mod logs;
pub mod metrics;
pub mod pipeline;
pub mod progress;
pub mod retention;
pub mod schedule;
pub mod sources;
pub mod summary;
pub mod usage;
pub mod version;
