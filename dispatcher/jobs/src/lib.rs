//! Pipelines and jobs: what is to run, and what became of it.
//!
//! [`pipeline`] reads pipeline files. [`job`] says what a job may become next, a pure function;
//! [`ledger`] keeps the jobs' documents by it. [`gather`] judges when everything below an event has
//! ended, [`cancel`] ends all that came of an event, [`progress`] and [`logs`] say how far it is
//! and what a job wrote, [`retention`] removes what is old, [`metrics`] counts. It must not know
//! how a job is run, nor who asks.
//!
//! Begin with [`job`], then [`ledger`].

pub mod cancel;
pub mod first;
pub mod gather;
pub mod job;
pub mod ledger;
pub mod logs;
pub mod metrics;
pub mod pipeline;
pub mod progress;
pub mod retention;
