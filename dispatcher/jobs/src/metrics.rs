//! The metrics of a dispatcher and a gateway, for operators. This module does not know how they are
//! shown.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use ion_model::record::{AttemptEnd, JobState};
use ion_model::usage::AttemptUsage;
use ion_system::metrics::{Latency, Registry};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Unit;

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

/// Upper bounds of the buckets of memory, in bytes: 4 MiB to 64 GiB, each four times the one
/// before. Each bucket costs one time series for each module.
const MEMORY_BUCKETS: [f64; 8] = [
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
    268_435_456.0,
    1_073_741_824.0,
    4_294_967_296.0,
    17_179_869_184.0,
    68_719_476_736.0,
];

/// A histogram of memory for each module.
#[derive(Debug)]
struct MemoryFamily(Family<ModuleLabel, Histogram, fn() -> Histogram>);

impl Default for MemoryFamily {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| Histogram::new(MEMORY_BUCKETS)))
    }
}

/// What one dispatcher has done since it started.
#[derive(Debug, Default)]
pub struct DispatchMetrics {
    started: Family<ModuleLabel, Counter>,
    ended: Family<EndLabels, Counter>,
    running: Family<ModuleLabel, Gauge>,
    claims: Family<ClaimLabel, Counter>,
    cpu_seconds: Family<ModuleLabel, Counter<f64, AtomicU64>>,
    fetched_bytes: Family<ModuleLabel, Counter>,
    stored_bytes: Family<ModuleLabel, Counter>,
    peak_bytes: MemoryFamily,
    source_runs: Family<EndLabels, Counter>,
    /// From the time at which a run was due until its event was there.
    source_lateness: Latency,
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
        registry.register_with_unit(
            "job_cpu",
            "Processor time of the attempts that ended",
            Unit::Seconds,
            self.cpu_seconds.clone(),
        );
        registry.register_with_unit(
            "job_fetched",
            "Bytes fetched from the object store for the attempts that ended",
            Unit::Bytes,
            self.fetched_bytes.clone(),
        );
        registry.register_with_unit(
            "job_stored",
            "Bytes of files stored by the attempts that ended",
            Unit::Bytes,
            self.stored_bytes.clone(),
        );
        registry.register_with_unit(
            "job_peak_memory",
            "Most memory of each attempt that ended",
            Unit::Bytes,
            self.peak_bytes.0.clone(),
        );
        registry.register(
            "source_runs",
            "Runs of sources ended on this dispatcher, by module and verdict",
            self.source_runs.clone(),
        );
        self.source_lateness.describe(
            registry,
            "source_lateness",
            "From the time at which a run of a source was due until its event was there",
        );
    }

    /// Counts a run of a source that has ended.
    pub fn count_run(&self, module: &str, end: JobState) {
        let of = EndLabels { module: module.to_owned(), verdict: end.as_str() };
        self.source_runs.get_or_create(&of).inc();
    }

    /// Notes how late a run of a source began.
    pub fn observe_lateness(&self, late: Duration) {
        self.source_lateness.observe(late);
    }

    /// Counts an attempt that starts. It counts as running until the returned guard is dropped.
    pub fn count_start(&self, module: &str) -> GaugeGuard {
        let of = ModuleLabel { module: module.to_owned() };
        self.started.get_or_create(&of).inc();
        CountGauge(self.running.get_or_create_owned(&of)).count_one()
    }

    /// Counts an attempt that has ended, and what it used as far as that is known.
    pub fn count_end(&self, module: &str, end: AttemptEnd, usage: AttemptUsage) {
        self.ended
            .get_or_create(&EndLabels { module: module.to_owned(), verdict: end.as_str() })
            .inc();
        let AttemptUsage { cpu_ms, peak_bytes, fetched_bytes, stored_bytes } = usage;
        let of = ModuleLabel { module: module.to_owned() };
        if let Some(cpu) = cpu_ms {
            self.cpu_seconds.get_or_create(&of).inc_by(Duration::from_millis(cpu).as_secs_f64());
        }
        if let Some(bytes) = fetched_bytes {
            self.fetched_bytes.get_or_create(&of).inc_by(bytes);
        }
        if let Some(bytes) = stored_bytes {
            self.stored_bytes.get_or_create(&of).inc_by(bytes);
        }
        if let Some(bytes) = peak_bytes {
            #[expect(clippy::cast_precision_loss, reason = "a bucket is chosen by it")]
            self.peak_bytes.0.get_or_create(&of).observe(bytes as f64);
        }
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

#[cfg(test)]
mod tests {
    use ion_system::metrics::encode_openmetrics;

    use super::*;

    #[test]
    fn what_attempts_used_is_counted_as_far_as_it_is_known() {
        let (metrics, mut registry) = (DispatchMetrics::default(), Registry::default());
        metrics.describe(&mut registry);
        let usage = AttemptUsage {
            cpu_ms: Some(1500),
            peak_bytes: Some(5 << 20),
            fetched_bytes: Some(7),
            stored_bytes: None,
        };
        metrics.count_end("m", AttemptEnd::Succeeded, usage);
        metrics.count_end("m", AttemptEnd::Failed, usage);
        metrics.count_end("m", AttemptEnd::Lost, AttemptUsage::default());
        let text = encode_openmetrics(&registry).unwrap();
        for line in [
            "job_cpu_seconds_total{module=\"m\"} 3.0",
            "job_fetched_bytes_total{module=\"m\"} 14",
            "job_peak_memory_bytes_count{module=\"m\"} 2",
            "job_peak_memory_bytes_bucket{le=\"4194304.0\",module=\"m\"} 0",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(!text.contains("job_stored_bytes_total{"), "{text}");
    }
}
