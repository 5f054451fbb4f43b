//! From events to jobs.
//!
//! The way of an event: a module's queue gives a message; the ledger claims the job by one insert; the message is
//! acknowledged; an executor runs the module; what it committed is in other queues by then, and the ledger has how
//! it ended.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`pipeline`] | modules, and the pipeline file that declares them |
//! | [`job`] | what a job may become next, without any I/O |
//! | [`ledger`] | job documents: claims, leases, retries, the dead |
//! | [`gather`] | when everything below an event has ended |
//! | [`executor`] | how a job runs on this machine |
//! | [`chain`] | programs through which bytes go from stdin to stdout |
//! | [`dispatch`] | queues to jobs, within limits |
//! | [`metrics`] | what a dispatcher counts |
//! | [`queues`] | what is wrong with the modules' queues |
//! | [`cancel`] | all that came of an event, ended |
//! | [`progress`], [`logs`] | how far a correlation has come; what a job says |
//! | [`first`] | events that no job makes |
//! | [`gateway`] | all of it over HTTP |
//! | [`audit`], [`retention`] | the ledger's part of `ion check`; `ion gc --older-than` |

pub mod audit;
pub mod cancel;
pub mod chain;
pub mod dispatch;
pub mod executor;
pub mod first;
pub mod gateway;
pub mod gather;
pub mod job;
pub mod ledger;
pub mod logs;
pub mod metrics;
pub mod pipeline;
pub mod progress;
pub mod queues;
pub mod retention;
