//! Names and ids of the spans of jobs. All spans have one target, so that a log leaves them out and
//! a collector takes nothing else.
//!
//! Ids that several processes need are derived and not passed on: all jobs of a correlation are one
//! trace, and the parent of a job's span is the span of the attempt that published its event.

use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

/// The target of all spans.
pub const TARGET: &str = "ion::spans";

/// The field that gives a span a name other than the one in the code.
pub const NAME: &str = "otel.name";

/// The field of a span that is made only after its work is over: when the work began, in
/// nanoseconds since 1970.
pub const START_TIME: &str = "start_time_unix_nano";

/// The field that says why the work of a span failed.
pub const ERROR: &str = "error";

/// The field with the correlation's id. A span that has it and has no parent in this process
/// belongs to that correlation's trace.
pub const CORRELATION: &str = "ion.correlation.id";

/// The fields with the job's id and the attempt that a span covers.
pub const JOB: (&str, &str) = ("ion.job.id", "ion.attempt");

/// The fields with the job's id and the attempt that published the event.
pub const PARENT: (&str, &str) = ("ion.parent.job.id", "ion.parent.attempt");

/// Returns the trace id of a correlation: the correlation's own id if that is a UUID, so that
/// people can find one by the other.
pub fn trace_id(correlation: &str) -> [u8; 16] {
    let id = Uuid::parse_str(correlation).ok().filter(|id| !id.is_nil());
    *id.unwrap_or_else(|| Uuid::new_v5(&Uuid::NAMESPACE_OID, correlation.as_bytes())).as_bytes()
}

/// Returns the span id of an attempt of a job.
pub fn span_id(job: &str, attempt: u64) -> [u8; 8] {
    let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{job}/{attempt}").as_bytes()).into_bytes();
    let [a, b, c, d, e, f, _, h, i, ..] = id;
    // Leaves out the byte that holds the UUID's version, half of which is the same in all ids.
    [a, b, c, d, e, f, h, i]
}

/// Returns the nanoseconds from 1970 to `at`, for [`START_TIME`].
pub fn unix_nanos(at: SystemTime) -> u64 {
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
