//! What an attempt of a job used: processor time, memory, and bytes of blobs.

use serde::{Deserialize, Serialize};

/// What an attempt used. A value that is not known is absent and never 0: that of an attempt whose
/// dispatcher died, and the processor time and memory of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttemptUsage {
    /// The processor time of its processes, in user and in kernel mode, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<u64>,
    /// The most memory, in bytes: of its largest process, or of all of a container's processes
    /// together where the container has a control group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<u64>,
    /// The bytes that were fetched from the blob store for what it read. Bytes that the node had
    /// already, in memory or on its disk, do not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched_bytes: Option<u64>,
    /// The bytes of its files that were stored in the blob store. A reference to a blob of an
    /// ancestor does not count, nor does its log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<u64>,
}

impl AttemptUsage {
    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns what two parts of an attempt that ran at the same time used together. A value that
    /// is known of one part only is that part's.
    #[must_use]
    pub fn plus_concurrent(self, other: Self) -> Self {
        let sum = |one: Option<u64>, other: Option<u64>| match (one, other) {
            (Some(one), Some(other)) => Some(one.saturating_add(other)),
            (one, other) => one.or(other),
        };
        Self {
            cpu_ms: sum(self.cpu_ms, other.cpu_ms),
            peak_bytes: sum(self.peak_bytes, other.peak_bytes),
            fetched_bytes: sum(self.fetched_bytes, other.fetched_bytes),
            stored_bytes: sum(self.stored_bytes, other.stored_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::record::Attempt;

    #[test]
    fn what_is_not_known_stays_absent() {
        let one = AttemptUsage { cpu_ms: Some(2), peak_bytes: Some(10), ..AttemptUsage::default() };
        let other = AttemptUsage { cpu_ms: Some(3), stored_bytes: Some(0), ..one };
        let both = one.plus_concurrent(other);
        assert_eq!(json!(both), json!({"cpuMs": 5, "peakBytes": 20, "storedBytes": 0}));
        assert_eq!(serde_json::from_value::<AttemptUsage>(json!({})).unwrap().cpu_ms, None);
        assert!(AttemptUsage::default().is_empty() && !other.is_empty());
    }

    #[test]
    fn the_record_of_an_attempt_of_an_older_ion_is_read_and_written_as_it_was() {
        let older =
            json!({"number": 1, "started": 5, "ended": 7, "end": "succeeded", "exitCode": 0});
        let attempt: Attempt = serde_json::from_value(older.clone()).unwrap();
        assert_eq!((attempt.usage, attempt.version.as_ref()), (AttemptUsage::default(), None));
        assert_eq!(json!(attempt), older);
    }
}
