//! How a job is run.
//!
//! [`executor`] has one small trait for every kind of machine, and its kinds: a process of this
//! machine in a sandbox, the same in a container, a pod of a Kubernetes cluster. [`chain`] runs
//! programs through which bytes go from stdin to stdout. It must not know queues, the ledger's
//! claims or HTTP requests: it is given one attempt, and says how that ended.
//!
//! Begin with [`executor`].

pub mod chain;
pub mod executor;
