//! What one job may take, so that its neighbours and the daemon do not notice a greedy one.
//!
//! Each limit has one unit, one default and one errno. A module is told by the errno; whoever looks
//! at its job, by the reason it failed for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::text::quote;

/// Bytes of a path below `out/data` that any store can hold: keys of S3 and Azure have 1,024, of
/// which the ids before the path take up to 124.
pub const PATH_BYTES_MAX: u64 = 900;

/// The limits of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of an event file or of `insights.json`. Default 16 MiB: it names about 200,000 files;
    /// a larger one is more likely data than an event. Over it: EFBIG to its writer, E2BIG to its
    /// close.
    pub event_bytes: u64,
    /// Values of an event. Default 10,000: each becomes a file in the next module's `in/meta`. Over
    /// it: E2BIG.
    pub event_values: u64,
    /// Bytes of all keys and values of an event. Default 1 MiB: event documents hold 16 MiB on
    /// MongoDB, on Cosmos DB 2. Over it: E2BIG.
    pub event_value_bytes: u64,
    /// Files that an event names. Default 200,000: more is slow to list for every module that
    /// follows. Over it: E2BIG.
    pub event_files: u64,
    /// Bytes of a path that an event names. Default 900, and never more ([`PATH_BYTES_MAX`]). Over
    /// it: ENAMETOOLONG to the event's close. What no event names may be as long as everywhere.
    pub path_bytes: u64,
    /// Names in a path that an event names. Default 100: each becomes a directory in the next
    /// module's `in/data`. Over it: ENAMETOOLONG to the event's close.
    pub path_depth: u64,
    /// Events between an event and the first one of its correlation. Default 1,000: no pipeline
    /// that was meant so is as deep, and modules that feed each other come to an end. Over it:
    /// ELOOP to the event's close.
    pub lineage_depth: u64,
    /// Bytes that are staged in `out/` at a time, holes counted as bytes: they would be in the
    /// store. What refers to a blob of the input counts nothing. Default 256 GiB: more than most
    /// disks have free, less than a mistaken `truncate`. Over it: EDQUOT, and the job fails.
    pub staged_bytes: u64,
    /// Files, directories and links that are staged in `out/` at a time. Default 500,000: each
    /// takes about a kilobyte of the daemon's memory and an inode of the disk, which all its jobs
    /// share. Over it: EDQUOT, and the job fails.
    pub staged_files: u64,
    /// Files and directories of the tree that are open at a time. Default 4,096: each takes a
    /// descriptor of the daemon, which all its jobs share. Over it: EMFILE.
    pub open_files: u64,
    /// Processes and threads of the job at a time. Default 4,096. Over it: EAGAIN from fork().
    /// Bound by the kernel where it can do so for one job alone: as an ordinary user since Linux
    /// 5.14, as root since Linux 6.14.
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
    /// Whether an event may name this path.
    ///
    /// # Errors
    /// The limit it is over, in words.
    pub fn may_name(&self, path: &str) -> Result<(), String> {
        let (bytes, depth) = (self.path_bytes, self.path_depth);
        if path.len() as u64 > bytes {
            let length = path.len();
            let path = quote(path);
            return Err(format!(
                "a path that an event names may have {bytes} bytes; {path} has {length}"
            ));
        }
        if path.split('/').count() as u64 > depth {
            let path = quote(path);
            return Err(format!(
                "a path that an event names may be {depth} names deep; {path} is deeper"
            ));
        }
        Ok(())
    }
}

/// What a number of a limit counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Bytes,
    Count,
}

/// A limit as users set it.
struct Limit {
    name: &'static str,
    unit: Unit,
    /// The most it may be set to.
    most: u64,
    of: fn(&mut Limits) -> &mut u64,
}

/// The most that an event file or its values may be allowed: the daemon reads them whole.
const EVENT_BYTES_MAX: u64 = 256 << 20;

const fn limit(
    name: &'static str,
    unit: Unit,
    most: u64,
    of: fn(&mut Limits) -> &mut u64,
) -> Limit {
    Limit { name, unit, most, of }
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

/// Limits that somebody set; of the others nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetLimits(BTreeMap<String, u64>);

impl SetLimits {
    /// Sets the limit `name` to what `text` says: a number as in `1000`, or bytes as in `16MiB`.
    ///
    /// # Errors
    /// In words: no limit has this name, or it cannot be this much.
    pub fn set(&mut self, name: &str, text: &str) -> Result<(), String> {
        let Some(limit) = LIMITS.iter().find(|limit| limit.name == name) else {
            let names = LIMITS.map(|limit| limit.name).join(", ");
            return Err(format!("there is no limit {name:?}; allowed: {names}"));
        };
        match amount(text, limit.unit).filter(|value| (1..=limit.most).contains(value)) {
            Some(value) => {
                self.0.insert(name.to_owned(), value);
                Ok(())
            }
            None => {
                let bytes = limit.unit == Unit::Bytes;
                let example =
                    if bytes { "bytes as in 500, 16MiB or 2GiB" } else { "a number as in 1000" };
                let most = if limit.most == u64::MAX {
                    String::new()
                } else {
                    format!(", at most {}", limit.most)
                };
                Err(format!("{name:?} cannot be {text:?}: {example} is allowed, from 1 on{most}"))
            }
        }
    }

    /// The limits that words such as `open-files=100` set, as `--job-limit` has them.
    ///
    /// # Errors
    /// The first word that sets none, and what is allowed.
    pub fn said(words: &[String]) -> Result<Self, String> {
        let mut set = Self::default();
        for word in words {
            let (name, value) = word
                .split_once('=')
                .ok_or_else(|| format!("--job-limit {word:?}: NAME=VALUE is needed"))?;
            set.set(name.trim(), value).map_err(|wrong| format!("--job-limit: {wrong}"))?;
        }
        Ok(set)
    }

    /// These limits, and of the others those in `limits`.
    pub fn over(&self, mut limits: Limits) -> Limits {
        for limit in &LIMITS {
            if let Some(value) = self.0.get(limit.name) {
                *(limit.of)(&mut limits) = *value;
            }
        }
        limits
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Bytes as people write them: `500`, `16MiB`, `2 GiB`.
///
/// # Errors
/// In words, what is allowed.
pub fn bytes(text: &str) -> Result<u64, String> {
    amount(text, Unit::Bytes)
        .ok_or_else(|| format!("{text:?} is no size: bytes as in 500, 16MiB or 2GiB"))
}

/// `10000`, or for bytes also `900 KiB`, `16MiB`, `2GiB`, `1TiB`.
fn amount(text: &str, unit: Unit) -> Option<u64> {
    let text = text.trim();
    let (digits, rest) =
        text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match (rest.trim_start(), unit) {
        ("", _) => 1,
        ("KiB", Unit::Bytes) => 1 << 10,
        ("MiB", Unit::Bytes) => 1 << 20,
        ("GiB", Unit::Bytes) => 1 << 30,
        ("TiB", Unit::Bytes) => 1 << 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// Bytes in words, exact: the largest unit that leaves no remainder.
pub fn bytes_in_words(bytes: u64) -> String {
    let unit = [(30, "GiB"), (20, "MiB"), (10, "KiB")]
        .into_iter()
        .find(|(bits, _)| bytes >= 1 << bits && bytes.is_multiple_of(1 << bits));
    match unit {
        Some((bits, unit)) => format!("{} {unit}", bytes >> bits),
        None => format!("{bytes} bytes"),
    }
}
