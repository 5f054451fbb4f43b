//! Counters of what the data plane does, for tests, benches and operators.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one daemon has done since it started.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Bytes of blobs read from the blob store and checked.
    pub bytes_fetched: Counter,
    /// Bytes of blobs read from the node's disk and checked.
    pub bytes_cached: Counter,
    /// Bytes of files written to the blob store.
    pub bytes_uploaded: Counter,
    /// Opens that the kernel serves by itself.
    pub opens_passthrough: Counter,
    /// Opens that the daemon serves.
    pub opens_served: Counter,
    /// Events committed.
    pub commits: Counter,
    /// Events refused.
    pub refusals: Counter,
}

impl Metrics {
    /// Each counter's name and number.
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
}
