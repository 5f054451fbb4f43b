//! The spans of a job, for whoever collects them: one target, so that a log never shows them and a
//! collector takes nothing else.
//!
//! Ids that other processes must find again are derived, not handed on: all jobs of a correlation
//! are one trace, and a job's parent is the attempt that published its event.

use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

/// The target of all spans.
pub const TARGET: &str = "ion::spans";

/// The field that gives a span another name than the one in the code.
pub const NAME: &str = "otel.name";

/// The field of a span that is told of when it is over: when it began, in nanoseconds since 1970.
pub const BEGUN: &str = "start_time_unix_nano";

/// The field that says why what the span covers failed.
pub const ERROR: &str = "error";

/// The field with the correlation: a span that has it and no parent here belongs to that
/// correlation's trace.
pub const CORRELATION: &str = "ion.correlation.id";

/// The fields with the attempt that a span covers.
pub const JOB: (&str, &str) = ("ion.job.id", "ion.attempt");

/// The fields with the attempt that published the event.
pub const PARENT: (&str, &str) = ("ion.parent.job.id", "ion.parent.attempt");

/// The trace of a correlation: its own id where that is a UUID, so that people find one by the
/// other.
pub fn trace_id(correlation: &str) -> [u8; 16] {
    let id = Uuid::parse_str(correlation).ok().filter(|id| !id.is_nil());
    *id.unwrap_or_else(|| Uuid::new_v5(&Uuid::NAMESPACE_OID, correlation.as_bytes())).as_bytes()
}

/// The span of an attempt of a job.
pub fn span_id(job: &str, attempt: u64) -> [u8; 8] {
    let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{job}/{attempt}").as_bytes()).into_bytes();
    let [a, b, c, d, e, f, _, h, i, ..] = id;
    // Without the version's byte, which is the same in all.
    [a, b, c, d, e, f, h, i]
}

/// Nanoseconds since 1970, for [`BEGUN`].
pub fn nanoseconds(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_has_the_id_of_its_correlation_and_attempts_differ() {
        let id = Uuid::new_v4();
        assert_eq!(trace_id(&id.to_string()), *id.as_bytes());
        assert_eq!(trace_id("frontapi"), trace_id("frontapi"));
        assert_ne!(trace_id(&Uuid::nil().to_string()), [0; 16], "not a valid trace");
        assert_eq!(span_id("j", 1), span_id("j", 1));
        assert_ne!(span_id("j", 1), span_id("j", 2));
    }
}
