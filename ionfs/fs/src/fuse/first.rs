//! How long a job waits for its first byte: from its mount to the answer of its first read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use ion_system::metrics::PlaneMetrics;
use ion_system::spans;
use tracing::{Span, info_span};

use crate::Tree;

/// Measures a job's first read of what it was given. The mount reports every read; only the first
/// one counts.
#[derive(Debug)]
pub(super) struct FirstRead {
    /// None if the mount is not a job's.
    of_job: Option<(Arc<PlaneMetrics>, Span)>,
    mounted: OnceLock<(Instant, SystemTime)>,
    answered: AtomicBool,
}

impl FirstRead {
    pub(super) fn new(tree: &Tree) -> Self {
        let of_job = tree.job_span().map(|span| (tree.daemon().metrics.clone(), span.clone()));
        Self { of_job, mounted: OnceLock::new(), answered: AtomicBool::new(false) }
    }

    /// Notes that the FUSE handshake is done: the tree is mounted.
    pub(super) fn note_mount(&self) {
        let _ = self.mounted.set((Instant::now(), SystemTime::now()));
    }

    /// Notes that a read was answered.
    pub(super) fn note_answer(&self) {
        // Load first: a swap by every reader would move the cache line between processors.
        if self.answered.load(Ordering::Relaxed) || self.answered.swap(true, Ordering::Relaxed) {
            return;
        }
        if let (Some((metrics, job)), Some((begun, at))) = (&self.of_job, self.mounted.get()) {
            metrics.first_reads.observe_since(*begun);
            let begun = spans::unix_nanos(*at);
            drop(
                info_span!(target: spans::TARGET, parent: job, "first read", start_time_unix_nano = begun),
            );
        }
    }
}
