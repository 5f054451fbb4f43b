//! What became of a job, in plain lines for people: `state`.

use std::fmt::Write as _;
use std::time::Duration;

use ion_model::clock::Millis;
use ion_model::record::{Attempt, AttemptEnd, JobRecord, JobState};
use ion_model::text::{escape_controls, quote};

use super::time::time_name;

/// Returns the lines that say what state a job is in, since when and why, and what each attempt
/// took.
pub(super) fn describe_job(job: &JobRecord) -> String {
    let mut text = String::new();
    let entered = time_name(job.due.saturating_sub(job.term));
    let attempts = match job.attempt {
        1 => "1 attempt".to_owned(),
        attempts => format!("{attempts} attempts"),
    };
    let _ = match job.state {
        JobState::Waiting | JobState::Queued => {
            let state = job.state.as_str();
            writeln!(text, "{state} since {entered}Z: {}", waits_for(job).unwrap_or_default())
        }
        JobState::Starting | JobState::Running => {
            let since = job.attempts.last().map_or(job.created, |attempt| attempt.started);
            let holder = job.holder.as_deref().unwrap_or("no dispatcher");
            let (state, since) = (job.state.as_str(), time_name(since));
            writeln!(text, "{state} since {since}Z: attempt {} by {holder}", job.attempt)
        }
        JobState::Succeeded => writeln!(text, "succeeded at {entered}Z after {attempts}"),
        JobState::Dead => {
            let id = job.id.short();
            writeln!(
                text,
                "dead since {entered}Z after {attempts}\n`ion dead retry {id}` runs it again, `ion \
                 dead drop {id}` gives it up"
            )
        }
        JobState::Cancelled => writeln!(text, "cancelled at {entered}Z after {attempts}"),
    };
    if !job.without.is_empty() {
        let count = job.without.count();
        let _ = writeln!(text, "it began without the output of {count} dead or cancelled jobs");
    }
    for (attempt, waits_since) in attempts_of(job) {
        describe_attempt(&mut text, attempt, waits_since);
    }
    text
}

fn describe_attempt(text: &mut String, attempt: &Attempt, waits_since: Option<Millis>) {
    let (number, started) = (attempt.number, time_name(attempt.started));
    let end = attempt.end.map_or("in progress", AttemptEnd::as_str);
    let reason = attempt.reason.as_deref();
    let reason = reason.map(|reason| format!(": {}", escape_controls(reason)));
    let _ = writeln!(text, "attempt {number}: {end}{}", reason.unwrap_or_default());
    let steps = attempt_steps(attempt, waits_since).into_iter();
    let known = steps.filter_map(|(step, took)| Some(format!("{step} {}", duration(took?))));
    let steps = known.collect::<Vec<_>>().join(", ");
    let _ = writeln!(text, "  started {started}Z; {steps}");
    for refused in &attempt.rejected.first {
        let (name, errno, reason) = (quote(&refused.name), &refused.errno, &refused.reason);
        let _ = writeln!(text, "  refused: {name}: {errno}: {}", escape_controls(reason));
    }
    if attempt.rejected.more > 0 {
        let _ = writeln!(text, "  refused: {} more files", attempt.rejected.more);
    }
    for read in &attempt.failed_reads.first {
        let (path, cause) = (quote(&read.path), read.cause.as_str());
        let _ = writeln!(text, "  not read: {path}: {cause}: {}", escape_controls(&read.reason));
    }
    if attempt.failed_reads.more > 0 {
        let _ = writeln!(text, "  not read: {} more files", attempt.failed_reads.more);
    }
}

/// Returns what a job that has not begun waits for; none for other jobs.
pub(super) fn waits_for(job: &JobRecord) -> Option<String> {
    Some(match (job.state, &job.waits_for) {
        (JobState::Waiting, Some(obstacles)) => obstacles.in_words(),
        (JobState::Waiting, None) => "waits until all work below its event has ended".to_owned(),
        (JobState::Queued, _) if job.term > 0 => {
            let (next, until) = (job.attempt + 1, time_name(job.due));
            format!(
                "waits until {until}Z for attempt {next}, because attempt {} failed",
                job.attempt
            )
        }
        (JobState::Queued, _) => {
            format!("waits for a dispatcher with a free place that serves {:?}", job.module)
        }
        _ => return None,
    })
}

/// Returns each attempt of a job, and the time since which the job waited for it: its creation, or
/// the end of the attempt before, which may not be known.
pub(super) fn attempts_of(job: &JobRecord) -> impl Iterator<Item = (&Attempt, Option<Millis>)> {
    let ends = job.attempts.iter().map(|attempt| attempt.ended);
    job.attempts.iter().zip(std::iter::once(Some(job.created)).chain(ends))
}

/// Returns how long each step of an attempt took: the wait before it, the preparation of its tree
/// and its process, and the run of the process together with what it committed. None for a step
/// that has not ended, or whose time is not known.
pub(super) fn attempt_steps(
    attempt: &Attempt,
    waits_since: Option<Millis>,
) -> [(&'static str, Option<Millis>); 3] {
    let took = |from: Option<Millis>, to: Option<Millis>| Some(to?.saturating_sub(from?).max(0));
    [
        ("waited", took(waits_since, Some(attempt.started))),
        ("prepared", took(Some(attempt.started), attempt.process_started)),
        ("ran", took(attempt.process_started, attempt.ended)),
    ]
}

fn duration(took: Millis) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_millis(took.unsigned_abs()))
}
