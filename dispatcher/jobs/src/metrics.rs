//! The metrics of a dispatcher and a gateway, for operators. This module does not know how they are
//! shown.

use ion_model::record::AttemptEnd;
use ion_system::metrics::{Latency, Registry};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::ledger::ClaimOutcome;

/// The label of metrics by module. A dispatcher's modules are named in its pipeline, so their
/// number is bounded.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModuleLabel {
    module: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    module: String,
    verdict: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClaimLabel {
    outcome: &'static str,
}

/// What one dispatcher has done since it started.
#[derive(Debug, Default)]
pub struct DispatchMetrics {
    started: Family<ModuleLabel, Counter>,
    ended: Family<EndLabels, Counter>,
    running: Family<ModuleLabel, Gauge>,
    claims: Family<ClaimLabel, Counter>,
}

impl DispatchMetrics {
    /// Registers all metrics under their names. docs/metrics.md has the same list for people.
    pub fn describe(&self, registry: &mut Registry) {
        registry.register("jobs_started", "Attempts of jobs started", self.started.clone());
        registry.register("jobs_ended", "Attempts of jobs ended, by verdict", self.ended.clone());
        registry.register("jobs_running", "Attempts of jobs running now", self.running.clone());
        registry.register(
            "claims",
            "Jobs claimed, by the outcome of the claim",
            self.claims.clone(),
        );
    }

    /// Counts an attempt that starts. It counts as running until the returned guard is dropped.
    pub fn count_start(&self, module: &str) -> GaugeGuard {
        let of = ModuleLabel { module: module.to_owned() };
        self.started.get_or_create(&of).inc();
        CountGauge(self.running.get_or_create_owned(&of)).count_one()
    }

    /// Counts an attempt that has ended.
    pub fn count_end(&self, module: &str, end: AttemptEnd) {
        self.ended
            .get_or_create(&EndLabels { module: module.to_owned(), verdict: end.as_str() })
            .inc();
    }

    /// Counts the claim of a job that a message announced, by its outcome.
    pub fn count_claim(&self, claim: &ClaimOutcome) {
        self.count_outcome(match claim {
            ClaimOutcome::Won(job) if job.holder.is_some() => "started",
            ClaimOutcome::Won(_) => "queued",
            ClaimOutcome::Known(_) => "known",
        });
    }

    /// Counts a queued job that this dispatcher has claimed from the ledger.
    pub fn count_taken(&self) {
        self.count_outcome("taken");
    }

    /// Counts a job that this dispatcher has adopted from another one.
    pub fn count_adopted(&self) {
        self.count_outcome("adopted");
    }

    fn count_outcome(&self, outcome: &'static str) {
        self.claims.get_or_create(&ClaimLabel { outcome }).inc();
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StartLabel {
    start: &'static str,
}

/// What the chains of one dispatcher have done since it started.
#[derive(Debug, Default)]
pub struct ChainMetrics {
    processes: Family<StartLabel, Counter>,
    runs: Family<EndLabels, Counter>,
    /// The time from the use of a link's last waiting process until the next process waits.
    pub pool_empty: Latency,
}

impl ChainMetrics {
    /// Registers all metrics under their names. docs/metrics.md has the same list for people.
    pub fn describe(&self, registry: &mut Registry) {
        let processes =
            "Processes of links used, by whether they were started ahead or when they were needed";
        registry.register("link_processes", processes, self.processes.clone());
        self.pool_empty.describe(
            registry,
            "link_pool_empty",
            "From the use of a link's last waiting process until the next process waits",
        );
        registry.register("chain_runs", "Runs of chains ended, by verdict", self.runs.clone());
    }

    /// Counts a process that is used, by whether it was started ahead or only when it was needed.
    pub fn count_process(&self, ahead: bool) {
        let start = if ahead { "ahead" } else { "late" };
        self.processes.get_or_create(&StartLabel { start }).inc();
    }

    /// Counts a run that has ended.
    pub fn count_run(&self, module: &str, verdict: &'static str) {
        self.runs.get_or_create(&EndLabels { module: module.to_owned(), verdict }).inc();
    }
}

/// The labels of an answer. The program itself defines all routes and statuses, so their number is
/// bounded.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnswerLabels {
    route: &'static str,
    status: u16,
}

/// What one gateway has done since it started.
#[derive(Debug, Default)]
pub struct GatewayMetrics {
    requests: Family<AnswerLabels, Counter>,
    /// Connections open now.
    pub connections: CountGauge,
}

impl GatewayMetrics {
    /// Registers all metrics under their names. docs/metrics.md has the same list for people.
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

    /// Counts a request that was answered.
    pub fn count_answer(&self, route: &'static str, status: u16) {
        self.requests.get_or_create(&AnswerLabels { route, status }).inc();
    }
}

/// A gauge of how many of something there are now.
#[derive(Clone, Debug, Default)]
pub struct CountGauge(Gauge);

impl CountGauge {
    /// Counts one more until the returned guard is dropped.
    pub fn count_one(&self) -> GaugeGuard {
        self.0.inc();
        GaugeGuard(self.0.clone())
    }
}

/// Counts as one in a gauge until it is dropped.
#[derive(Debug)]
pub struct GaugeGuard(Gauge);

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
