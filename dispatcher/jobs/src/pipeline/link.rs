//! The links of a chain, as its module stores them.

use std::time::Duration;

use ion_model::checksum::hex;
use md5::{Digest as _, Md5};
use serde::{Deserialize, Serialize};

use super::module::milliseconds;

/// How many bytes one link may write in one run, unless its chain sets `output`.
pub const OUTPUT_MAX: u64 = 1 << 30;

/// How many processes of each link are started ahead, unless its chain sets `warm`.
const WARM: usize = 2;

/// How long an unused link keeps its processes, unless its chain sets `idle`.
const IDLE: Duration = Duration::from_secs(300);

/// One program of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its name for people: the one in the file, or else the program's own name.
    pub name: String,
    /// The image it runs from; empty: it is a program of this machine.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// The program.
    pub command: String,
    /// Its arguments.
    #[serde(default)]
    pub arguments: Vec<String>,
}

impl Link {
    /// Returns the MD5 of image, command and arguments. Links of all chains that have the same
    /// image, command and arguments are one link, and share their processes. A zero byte is between
    /// the parts; no part can contain one.
    pub fn id(&self) -> String {
        let mut hash = Md5::new();
        for (n, part) in [&self.image, &self.command].into_iter().chain(&self.arguments).enumerate()
        {
            if n > 0 {
                hash.update([0]);
            }
            hash.update(part);
        }
        hex(&hash.finalize())
    }
}

/// What the runs of a chain may use, and how its links are kept ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkSettings {
    /// Processes of each link that are started ahead.
    pub warm: usize,
    /// How long an unused link keeps its processes.
    #[serde(with = "milliseconds", rename = "idleMs", default = "default_idle")]
    pub idle: Duration,
    /// Bytes that one link may write in one run.
    pub output_bytes: u64,
}

fn default_idle() -> Duration {
    IDLE
}

impl Default for LinkSettings {
    fn default() -> Self {
        Self { warm: WARM, idle: IDLE, output_bytes: OUTPUT_MAX }
    }
}
