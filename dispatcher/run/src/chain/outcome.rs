//! How a link of a chain ended.

use std::time::Duration;

use bytes::Bytes;
use ion_jobs::pipeline::Link;
use ion_model::clock::Millis;
use ion_model::usage::AttemptUsage;

use super::spool::SpooledBlob;
use crate::sandbox::{ProcessExit, ProcessUsage, Sandbox, out_of_memory_words};

/// How one link ended, and what it wrote.
#[derive(Debug)]
pub(super) struct LinkEnd {
    pub(super) link: Link,
    pub(super) how: LinkExit,
    pub(super) started: Millis,
    pub(super) ended: Millis,
    pub(super) stderr: Bytes,
    /// All that it wrote, if it ended well.
    pub(super) output: Option<SpooledBlob>,
    /// What its processes used, if that is known.
    pub(super) used: Option<ProcessUsage>,
    /// What is left of its processes. They are removed only after the run's answer is sent.
    pub(super) _left: Option<Sandbox>,
}

impl LinkEnd {
    /// Returns what the link used, with the bytes that were stored of its output.
    pub(super) fn usage(&self) -> AttemptUsage {
        let stored = self.output.as_ref().map_or(0, |output| output.entry.size);
        let used = self.used.map(ProcessUsage::to_attempt_usage).unwrap_or_default();
        AttemptUsage { stored_bytes: Some(stored), ..used }
    }
}

/// Returns what links used together: they run at the same time.
pub(super) fn total_usage(links: &[LinkEnd]) -> AttemptUsage {
    links.iter().map(LinkEnd::usage).fold(AttemptUsage::default(), AttemptUsage::plus_concurrent)
}

/// How a link ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LinkExit {
    Exited(ProcessExit),
    /// The next link had closed its stdin, as in `yes | head`. The exit status after that does not
    /// count.
    Unwanted,
    TimedOut(Duration),
    WroteTooMuch(u64),
    NotStarted(String),
    Vanished(String),
    /// Another link failed, or the run was asked to stop.
    GivenUp,
    /// Its output could not be stored.
    NotStored(String),
}

impl LinkExit {
    pub(super) fn ended_well(&self) -> bool {
        matches!(self, Self::Exited(ProcessExit::Code(0)) | Self::Unwanted)
    }

    /// Returns the exit status, if the program ended by itself.
    pub(super) fn exit_code(&self) -> Option<i32> {
        match self {
            Self::Exited(ProcessExit::Code(code)) => Some(*code),
            _ => None,
        }
    }

    /// Describes the end as the reason of a failure.
    pub(super) fn in_words(&self) -> String {
        match self {
            Self::Exited(ProcessExit::Code(code)) => format!("exit status {code}"),
            Self::Exited(ProcessExit::Signal(signal)) => format!("killed by signal {signal}"),
            Self::Exited(ProcessExit::OutOfMemory(bytes)) => out_of_memory_words(*bytes),
            Self::TimedOut(timeout) => {
                format!("over its timeout of {}", humantime::format_duration(*timeout))
            }
            Self::WroteTooMuch(most) => {
                format!("it wrote more than {most} bytes, which is its output limit")
            }
            Self::Unwanted => "ended early: the next link had closed its stdin".into(),
            Self::GivenUp => "stopped: another link failed, or the run was cancelled".into(),
            Self::NotStarted(reason) | Self::Vanished(reason) | Self::NotStored(reason) => {
                reason.clone()
            }
        }
    }
}
