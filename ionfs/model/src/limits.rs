//! Limits on what one job may use, so that a greedy job harms neither its neighbours nor the
//! daemon.
//!
//! Each limit has one unit, one default and one errno. The module receives the errno; the job's
//! record holds the reason for which the job failed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::text::quote;

/// The most bytes of a path below `out/data` that every store can hold: keys of S3 and Azure have
/// at most 1,024 bytes, of which the ids before the path take up to 124.
pub const PATH_BYTES_MAX: u64 = 900;

/// Why a path is over a limit, or a limit cannot be set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// The path has too many bytes.
    #[error(
        "a path that an event names may have at most {most} bytes; {} has {}",
        quote(.path),
        .path.len()
    )]
    PathTooLong {
        /// The path.
        path: String,
        /// The most bytes that it may have.
        most: u64,
    },
    /// The path has too many components.
    #[error(
        "a path that an event names may be at most {most} names deep; {} is deeper",
        quote(.path)
    )]
    PathTooDeep {
        /// The path.
        path: String,
        /// The most components that it may have.
        most: u64,
    },
    /// No limit has this name.
    #[error("there is no limit {0:?}; allowed: {names}", names = names())]
    Unknown(String),
    /// The limit cannot have this value.
    #[error("{name:?} cannot be {text:?}: {allowed} is allowed, from 1 on{}", at_most(*.most))]
    Value {
        /// The limit's name.
        name: &'static str,
        /// The value as the user wrote it.
        text: String,
        /// How a value is written.
        allowed: &'static str,
        /// The highest value.
        most: u64,
    },
    /// An argument of `--job-limit` has no `=`.
    #[error("--job-limit {0:?}: NAME=VALUE is needed")]
    Form(String),
    /// An argument of `--job-limit` sets no limit.
    #[error("--job-limit")]
    Argument(#[source] Box<Self>),
    /// The text is not a number of bytes.
    #[error("{0:?} is not a size: {SIZES}")]
    Size(String),
}

/// Says how a number of bytes is written.
const SIZES: &str = "bytes as in 500, 16MiB or 2GiB";

fn names() -> String {
    LIMITS.map(|limit| limit.name).join(", ")
}

fn at_most(most: u64) -> String {
    if most == u64::MAX { String::new() } else { format!(", at most {most}") }
}

/// The limits of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of an event file or of `insights.json`. Default 16 MiB: an event file of this size
    /// names about 200,000 files; a larger one is more likely data than an event. Over it, a write
    /// fails with EFBIG and the close with E2BIG.
    pub event_bytes: u64,
    /// Values of an event. Default 10,000: each value becomes a file in the next module's
    /// `in/meta`. Over it: E2BIG.
    pub event_values: u64,
    /// Bytes of all keys and values of an event together. Default 1 MiB: a document holds at most
    /// 16 MiB on MongoDB and 2 MiB on Cosmos DB. Over it: E2BIG.
    pub event_value_bytes: u64,
    /// Files that an event names. Default 200,000: a longer list is slow for every module that
    /// follows. Over it: E2BIG.
    pub event_files: u64,
    /// Bytes of a path that an event names. Default 900, and never more ([`PATH_BYTES_MAX`]). Over
    /// it, the event's close fails with ENAMETOOLONG. A path that no event names may be as long as
    /// in any other filesystem.
    pub path_bytes: u64,
    /// Components of a path that an event names. Default 100: each becomes a directory in the next
    /// module's `in/data`. Over it, the event's close fails with ENAMETOOLONG.
    pub path_depth: u64,
    /// Generations from the first event of a correlation to an event
    /// ([`depth`](crate::event::Event::depth)). Default 1,000: no sensible pipeline is as deep, and
    /// modules that feed each other stop at this depth. Over it, the event's close fails with
    /// ELOOP.
    pub lineage_depth: u64,
    /// Bytes that `out/` stages at the same time. Holes count as bytes, because the store would
    /// hold them as bytes. Files that refer to a blob of the input count as 0. Default 256 GiB:
    /// more than most disks have free, less than a mistaken `truncate`. Over it: EDQUOT, and the
    /// job fails.
    pub staged_bytes: u64,
    /// Files, directories and links that `out/` stages at the same time. Default 500,000: each
    /// takes about a kilobyte of the daemon's memory and an inode of the disk, which all jobs of
    /// the daemon share. Over it: EDQUOT, and the job fails.
    pub staged_files: u64,
    /// Files and directories of the tree that are open at the same time. Default 4,096: each takes
    /// a descriptor of the daemon, which all jobs of the daemon share. Over it: EMFILE.
    pub open_files: u64,
    /// Processes and threads that the job has at the same time. Default 4,096. Over it, fork()
    /// fails with EAGAIN. The kernel enforces this limit where it can do so for one job alone: as
    /// an ordinary user since Linux 5.14, as root since Linux 6.14.
    pub processes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            event_bytes: 16 << 20,
            event_values: 10_000,
            event_value_bytes: 1 << 20,
            event_files: 200_000,
            path_bytes: PATH_BYTES_MAX,
            path_depth: 100,
            lineage_depth: 1000,
            staged_bytes: 256 << 30,
            staged_files: 500_000,
            open_files: 4096,
            processes: 4096,
        }
    }
}

impl Limits {
    /// Checks that an event may name this path.
    ///
    /// # Errors
    /// Returns the limit that the path exceeds.
    pub fn check_path(&self, path: &str) -> Result<(), LimitError> {
        if path.len() as u64 > self.path_bytes {
            return Err(LimitError::PathTooLong { path: path.to_owned(), most: self.path_bytes });
        }
        if path.split('/').count() as u64 > self.path_depth {
            return Err(LimitError::PathTooDeep { path: path.to_owned(), most: self.path_depth });
        }
        Ok(())
    }
}

/// The unit of a limit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Bytes,
    Count,
}

/// A limit as users set it, by its name.
struct Limit {
    name: &'static str,
    unit: Unit,
    /// The highest value that users may set.
    max: u64,
    field: fn(&mut Limits) -> &mut u64,
}

/// The highest limit that users may set for the bytes of an event file or of its values. The daemon
/// reads them whole into memory.
const EVENT_BYTES_MAX: u64 = 256 << 20;

const fn limit(
    name: &'static str,
    unit: Unit,
    max: u64,
    field: fn(&mut Limits) -> &mut u64,
) -> Limit {
    Limit { name, unit, max, field }
}

const LIMITS: [Limit; 11] = [
    limit("event-bytes", Unit::Bytes, EVENT_BYTES_MAX, |limits| &mut limits.event_bytes),
    limit("event-values", Unit::Count, u64::MAX, |limits| &mut limits.event_values),
    limit("event-value-bytes", Unit::Bytes, EVENT_BYTES_MAX, |limits| {
        &mut limits.event_value_bytes
    }),
    limit("event-files", Unit::Count, u64::MAX, |limits| &mut limits.event_files),
    limit("path-bytes", Unit::Bytes, PATH_BYTES_MAX, |limits| &mut limits.path_bytes),
    limit("path-depth", Unit::Count, PATH_BYTES_MAX, |limits| &mut limits.path_depth),
    limit("lineage-depth", Unit::Count, u32::MAX as u64, |limits| &mut limits.lineage_depth),
    limit("staged-bytes", Unit::Bytes, u64::MAX, |limits| &mut limits.staged_bytes),
    limit("staged-files", Unit::Count, u64::MAX, |limits| &mut limits.staged_files),
    limit("open-files", Unit::Count, u64::MAX, |limits| &mut limits.open_files),
    limit("processes", Unit::Count, u32::MAX as u64, |limits| &mut limits.processes),
];

/// The limits that a user has set, by name. All other limits are left open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitOverrides(BTreeMap<String, u64>);

impl LimitOverrides {
    /// Sets the limit `name` to the value in `text`: a number as in `1000`, or bytes as in `16MiB`.
    ///
    /// # Errors
    /// [`LimitError::Unknown`] when no limit has this name, [`LimitError::Value`] when the limit
    /// cannot have this value.
    pub fn set(&mut self, name: &str, text: &str) -> Result<(), LimitError> {
        let limit = LIMITS.iter().find(|limit| limit.name == name);
        let limit = limit.ok_or_else(|| LimitError::Unknown(name.to_owned()))?;
        let value = parse_amount(text, limit.unit).filter(|value| (1..=limit.max).contains(value));
        let value = value.ok_or_else(|| LimitError::Value {
            name: limit.name,
            text: text.to_owned(),
            allowed: match limit.unit {
                Unit::Bytes => SIZES,
                Unit::Count => "a number as in 1000",
            },
            most: limit.max,
        })?;
        self.0.insert(name.to_owned(), value);
        Ok(())
    }

    /// Reads limits from the arguments of `--job-limit`, such as `open-files=100`.
    ///
    /// # Errors
    /// Returns why the first argument that sets no limit does not, and what is allowed.
    pub fn from_arguments(words: &[String]) -> Result<Self, LimitError> {
        let mut overrides = Self::default();
        for word in words {
            let (name, value) =
                word.split_once('=').ok_or_else(|| LimitError::Form(word.clone()))?;
            overrides
                .set(name.trim(), value)
                .map_err(|error| LimitError::Argument(error.into()))?;
        }
        Ok(overrides)
    }

    /// Returns `limits` with the limits that are set here in place of its own.
    pub fn apply_to(&self, mut limits: Limits) -> Limits {
        for limit in &LIMITS {
            if let Some(value) = self.0.get(limit.name) {
                *(limit.field)(&mut limits) = *value;
            }
        }
        limits
    }

    /// Whether no limit is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Reads a number of bytes as people write it: `500`, `16MiB`, `2 GiB`.
///
/// # Errors
/// [`LimitError::Size`], which says what is allowed.
pub fn parse_bytes(text: &str) -> Result<u64, LimitError> {
    parse_amount(text, Unit::Bytes).ok_or_else(|| LimitError::Size(text.to_owned()))
}

/// Reads a number as in `10000`, or for bytes also as in `900 KiB`, `16MiB`, `2GiB` or `1TiB`.
fn parse_amount(text: &str, unit: Unit) -> Option<u64> {
    let text = text.trim();
    let (digits, unit_text) =
        text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match (unit_text.trim_start(), unit) {
        ("", _) => 1,
        ("KiB", Unit::Bytes) => 1 << 10,
        ("MiB", Unit::Bytes) => 1 << 20,
        ("GiB", Unit::Bytes) => 1 << 30,
        ("TiB", Unit::Bytes) => 1 << 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// Returns a number of bytes in words, exact: in the largest unit that leaves no remainder.
pub fn bytes_in_words(bytes: u64) -> String {
    let unit = [(30, "GiB"), (20, "MiB"), (10, "KiB")]
        .into_iter()
        .find(|(bits, _)| bytes >= 1 << bits && bytes.is_multiple_of(1 << bits));
    match unit {
        Some((bits, unit)) => format!("{} {unit}", bytes >> bits),
        None => format!("{bytes} bytes"),
    }
}
