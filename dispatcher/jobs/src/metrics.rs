//! What a dispatcher and a gateway count, for operators. How it is shown is not known here.

use ion_model::record::AttemptEnd;
use ion_system::metrics::{Latency, Registry};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::ledger::Claim;

/// Whose jobs. A dispatcher's modules are named in its pipeline, so their number is bounded.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfModule {
    module: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ending {
    module: String,
    verdict: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Claiming {
    outcome: &'static str,
}

/// What one dispatcher has done since it started.
#[derive(Debug, Default)]
pub struct Metrics {
    started: Family<OfModule, Counter>,
    ended: Family<Ending, Counter>,
    running: Family<OfModule, Gauge>,
    claims: Family<Claiming, Counter>,
}

impl Metrics {
    /// Gives all of them their names. docs/metrics.md is the same list for people.
    pub fn describe(&self, registry: &mut Registry) {
        registry.register("jobs_started", "Attempts of jobs started", self.started.clone());
        registry.register("jobs_ended", "Attempts of jobs ended, by verdict", self.ended.clone());
        registry.register("jobs_running", "Attempts of jobs running now", self.running.clone());
        registry.register(
            "claims",
            "Jobs claimed, by what became of the claim",
            self.claims.clone(),
        );
    }

    /// An attempt runs until what this gives is dropped.
    pub fn runs(&self, module: &str) -> Running {
        let of = OfModule { module: module.to_owned() };
        self.started.get_or_create(&of).inc();
        Level(self.running.get_or_create_owned(&of)).rises()
    }

    /// An attempt has ended so.
    pub fn ended(&self, module: &str, end: AttemptEnd) {
        self.ended
            .get_or_create(&Ending { module: module.to_owned(), verdict: end.as_str() })
            .inc();
    }

    /// A message asked for a job, and this came of it.
    pub fn claimed(&self, claim: &Claim) {
        self.claim(match claim {
            Claim::Won(job) if job.holder.is_some() => "started",
            Claim::Won(_) => "queued",
            Claim::Known(_) => "known",
        });
    }

    /// A job that waited in the ledger starts here.
    pub fn taken(&self) {
        self.claim("taken");
    }

    /// A job that another dispatcher left is gone on with here.
    pub fn adopted(&self) {
        self.claim("adopted");
    }

    fn claim(&self, outcome: &'static str) {
        self.claims.get_or_create(&Claiming { outcome }).inc();
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Starting {
    start: &'static str,
}

/// What the chains of one dispatcher have done since it started.
#[derive(Debug, Default)]
pub struct ChainMetrics {
    processes: Family<Starting, Counter>,
    runs: Family<Ending, Counter>,
    /// From the use of the last process of a link that waited to the next one that waits.
    pub pool_empty: Latency,
}

impl ChainMetrics {
    /// Gives all of them their names. docs/metrics.md is the same list for people.
    pub fn describe(&self, registry: &mut Registry) {
        let processes =
            "Processes of links used, by whether they were started ahead or when they were needed";
        registry.register("link_processes", processes, self.processes.clone());
        self.pool_empty.describe(
            registry,
            "link_pool_empty",
            "From the use of the last process of a link that waited to the next one that waits",
        );
        registry.register("chain_runs", "Runs of chains ended, by verdict", self.runs.clone());
    }

    /// A process that was started ahead is used, or one that had to be started now.
    pub fn process(&self, ahead: bool) {
        let start = if ahead { "ahead" } else { "late" };
        self.processes.get_or_create(&Starting { start }).inc();
    }

    /// A run has ended so.
    pub fn ran(&self, module: &str, verdict: &'static str) {
        self.runs.get_or_create(&Ending { module: module.to_owned(), verdict }).inc();
    }
}

/// Which answers. Routes and statuses are the program's own, so their number is bounded.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    route: &'static str,
    status: u16,
}

/// What one gateway has done since it started.
#[derive(Debug, Default)]
pub struct GatewayMetrics {
    requests: Family<Answered, Counter>,
    /// Connections open now.
    pub connections: Level,
}

impl GatewayMetrics {
    /// Gives all of them their names. docs/metrics.md is the same list for people.
    pub fn describe(&self, registry: &mut Registry) {
        registry.register(
            "gateway_requests",
            "Requests answered, by route and status",
            self.requests.clone(),
        );
        registry.register(
            "gateway_connections",
            "Connections open now",
            self.connections.0.clone(),
        );
    }

    /// A request was answered so.
    pub fn answered(&self, route: &'static str, status: u16) {
        self.requests.get_or_create(&Answered { route, status }).inc();
    }
}

/// How many of something there are now.
#[derive(Clone, Debug, Default)]
pub struct Level(Gauge);

impl Level {
    /// One more, until what this gives is dropped.
    pub fn rises(&self) -> Running {
        self.0.inc();
        Running(self.0.clone())
    }
}

/// One of those that a gauge counts.
#[derive(Debug)]
pub struct Running(Gauge);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dec();
    }
}
