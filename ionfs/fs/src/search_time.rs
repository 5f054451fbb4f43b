//! How long one request for a name or a listing goes through documents that it does not show.

use std::time::{Duration, Instant};

use ion_plane::node::Node as Daemon;

/// The part of a request's deadline that a search may take: 3 of 30 seconds. A larger part leaves a
/// slow store less time for the documents that are read when the search ends, and a request beyond
/// its deadline is an error. With a smaller one, fewer folders with few names among many documents
/// are listed to their end.
const PART_OF_DEADLINE: u32 = 10;

/// The time that a search of one request may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SearchTime {
    began: Instant,
    most: Duration,
}

impl SearchTime {
    /// Begins a search of this daemon now.
    pub(crate) fn begin(daemon: &Daemon) -> Self {
        Self { began: Instant::now(), most: daemon.settings.read_deadline / PART_OF_DEADLINE }
    }

    /// Returns whether the search must end.
    pub(crate) fn is_over(&self) -> bool {
        self.began.elapsed() >= self.most
    }
}
