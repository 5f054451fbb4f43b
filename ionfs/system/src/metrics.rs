//! The metrics of the data plane, for operators, tests and benchmarks.
//!
//! The numbers have the types of the crate `prometheus_client`, and [`PlaneMetrics::describe`]
//! names them. This module does not know which program shows them, nor how. A read touches only
//! atomics: labels are looked up once, when a [`PlaneMetrics`] is made.

use std::fmt;
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, text};
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter as Total;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge as Level};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Unit;

/// The registry in which metrics get their names.
pub use prometheus_client::registry::Registry;

/// The media type of the text that [`encode_openmetrics`] returns, as the OpenMetrics specification
/// writes it. Prometheus chooses its parser by this type.
pub const OPENMETRICS_MEDIA_TYPE: &str =
    "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Returns all metrics of a registry in the OpenMetrics text format.
///
/// # Errors
/// Returns an error when a metric cannot be encoded.
pub fn encode_openmetrics(registry: &Registry) -> Result<String, fmt::Error> {
    let mut written = String::new();
    text::encode(&mut written, registry)?;
    Ok(written)
}

/// Upper bounds of the buckets of all latencies, in seconds. An embedded store answers within the
/// first buckets; a commit that outlasts a store's restart falls into the last ones. Each further
/// bucket costs one time series for each label.
const LATENCY_BUCKETS: [f64; 15] =
    [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// One label and its value. Both are constants of the program, so their number is bounded.
type Label = [(&'static str, &'static str); 1];

/// A number that only grows.
#[derive(Clone, Debug, Default)]
pub struct Counter(Total);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.inc_by(n);
    }

    /// Returns the current number.
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

/// A number that goes up and down.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Level);

impl Gauge {
    /// Sets the number.
    pub fn set(&self, n: usize) {
        self.0.set(i64::try_from(n).unwrap_or(i64::MAX));
    }
}

/// A histogram of how long something took. An observation takes a short lock, so it is meant for
/// what happens once for each job or commit, and not for each read.
#[derive(Clone, Debug)]
pub struct Latency(Histogram);

impl Latency {
    /// Observes the time from `start` until now.
    pub fn observe_since(&self, start: Instant) {
        self.0.observe(start.elapsed().as_secs_f64());
    }

    /// Observes a duration.
    pub fn observe(&self, took: Duration) {
        self.0.observe(took.as_secs_f64());
    }

    /// Registers it under a name, to which `_seconds` is added.
    pub fn describe(&self, registry: &mut Registry, name: &str, help: &str) {
        registry.register_with_unit(name, help, Unit::Seconds, self.0.clone());
    }
}

impl Default for Latency {
    fn default() -> Self {
        Self(Histogram::new(LATENCY_BUCKETS))
    }
}

/// The metrics of one process since it started.
#[derive(Debug)]
pub struct PlaneMetrics {
    /// Bytes of blobs read from the blob store and checked.
    pub bytes_fetched: Counter,
    /// Bytes of blobs read from the node's disk and checked.
    pub bytes_cached: Counter,
    /// Bytes of blobs that readers asked for and found in memory.
    pub bytes_remembered: Counter,
    /// Blocks that readers asked for and found in memory.
    pub cache_hits: Counter,
    /// Blocks that readers asked for and had to wait for.
    pub cache_misses: Counter,
    /// Bytes of files written to the blob store.
    pub bytes_uploaded: Counter,
    /// Opens that the kernel serves by itself.
    pub opens_passthrough: Counter,
    /// Opens that the daemon serves.
    pub opens_served: Counter,
    /// Events committed.
    pub commits: Counter,
    /// Event files refused.
    pub refusals: Counter,
    /// Events that a relay published.
    pub relayed: Counter,
    /// Committed events that were not published yet when a relay last looked.
    pub outbox: Gauge,
    /// The time from the close of an event file, or the rename to its name, to the answer.
    pub closes: Latency,
    /// The time from a job's mount to the answer of its first read.
    pub first_reads: Latency,
    /// The time from the start of a job's process until its tree is served.
    pub mounts: Latency,
    steps: Family<Label, Histogram, fn() -> Histogram>,
    requests: Family<Label, Total>,
    read: Family<Label, Total>,
    opens: Family<Label, Total>,
}

impl Default for PlaneMetrics {
    fn default() -> Self {
        let read = Family::<Label, Total>::default();
        let origin = |name| Counter(read.get_or_create_owned(&[("origin", name)]));
        let opens = Family::<Label, Total>::default();
        let mode = |name| Counter(opens.get_or_create_owned(&[("mode", name)]));
        Self {
            bytes_fetched: origin("store"),
            bytes_cached: origin("disk"),
            bytes_remembered: origin("memory"),
            cache_hits: Counter::default(),
            cache_misses: Counter::default(),
            bytes_uploaded: Counter::default(),
            opens_passthrough: mode("passthrough"),
            opens_served: mode("served"),
            commits: Counter::default(),
            refusals: Counter::default(),
            relayed: Counter::default(),
            outbox: Gauge::default(),
            closes: Latency::default(),
            first_reads: Latency::default(),
            mounts: Latency::default(),
            steps: Family::new_with_constructor(|| Histogram::new(LATENCY_BUCKETS)),
            requests: Family::default(),
            read,
            opens,
        }
    }
}

impl PlaneMetrics {
    /// Returns the latency of the commit step of this name.
    pub fn step_latency(&self, name: &'static str) -> Latency {
        Latency(self.steps.get_or_create_owned(&[("step", name)]))
    }

    /// Returns the counter of requests of this kind that all mounts have answered.
    pub fn request_counter(&self, kind: &'static str) -> Counter {
        Counter(self.requests.get_or_create_owned(&[("kind", kind)]))
    }

    /// Returns the counters of bytes, opens, commits and refusals, each with its name.
    pub fn snapshot(&self) -> [(&'static str, u64); 7] {
        [
            ("bytesFetched", self.bytes_fetched.get()),
            ("bytesCached", self.bytes_cached.get()),
            ("bytesUploaded", self.bytes_uploaded.get()),
            ("opensPassthrough", self.opens_passthrough.get()),
            ("opensServed", self.opens_served.get()),
            ("commits", self.commits.get()),
            ("refusals", self.refusals.get()),
        ]
    }

    /// Registers all metrics under their names. docs/metrics.md describes the same list for people.
    pub fn describe(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "read",
            "Bytes of blobs brought into memory and checked, or found there, by origin",
            Unit::Bytes,
            self.read.clone(),
        );
        registry.register(
            "requests",
            "Requests of the kernel that mounts have answered, by kind",
            self.requests.clone(),
        );
        registry.register("opens", "Files opened, by who moves their bytes", self.opens.clone());
        registry.register_with_unit(
            "uploaded",
            "Bytes of files stored in the blob store",
            Unit::Bytes,
            self.bytes_uploaded.0.clone(),
        );
        for (name, help, counter) in [
            ("cache_hits", "Blocks asked for that were in memory", &self.cache_hits),
            ("cache_misses", "Blocks asked for that had to be brought", &self.cache_misses),
            ("commits", "Events committed", &self.commits),
            ("refusals", "Event files refused", &self.refusals),
            (
                "relayed_events",
                "Events published by a relay and not by the process that committed them",
                &self.relayed,
            ),
        ] {
            registry.register(name, help, counter.0.clone());
        }
        registry.register(
            "outbox_events",
            "Committed events not published yet when a relay last looked",
            self.outbox.0.clone(),
        );
        for (name, help, latency) in [
            ("event_close", "From the close of an event file to its answer", &self.closes),
            (
                "job_first_read",
                "From a job's mount to the answer of its first read",
                &self.first_reads,
            ),
            (
                "job_mount",
                "From the start of a job's process to its tree being served",
                &self.mounts,
            ),
        ] {
            latency.describe(registry, name, help);
        }
        registry.register_with_unit(
            "commit_step",
            "Steps of commits",
            Unit::Seconds,
            self.steps.clone(),
        );
    }
}

/// Registers a number of bytes that `read` returns each time the metrics are read.
pub fn describe_bytes(
    registry: &mut Registry,
    name: &'static str,
    help: &'static str,
    read: impl Fn() -> u64 + Send + Sync + 'static,
) {
    registry.register_collector(Box::new(PolledBytes { name, help, read }));
}

struct PolledBytes<F> {
    name: &'static str,
    help: &'static str,
    read: F,
}

impl<F> fmt::Debug for PolledBytes<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl<F: Fn() -> u64 + Send + Sync + 'static> Collector for PolledBytes<F> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let now = ConstGauge::new(i64::try_from((self.read)()).unwrap_or(i64::MAX));
        let metric = encoder.encode_descriptor(
            self.name,
            self.help,
            Some(&Unit::Bytes),
            ConstGauge::<i64>::TYPE,
        )?;
        now.encode(metric)
    }
}
