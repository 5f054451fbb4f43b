//! The links of a chain, as its module has them.

use std::time::Duration;

use ion_model::checksum::hex;
use md5::{Digest as _, Md5};
use serde::{Deserialize, Serialize};

use super::milliseconds;

/// Bytes that one link may write, unless its chain says otherwise.
pub const OUTPUT_MAX: u64 = 1 << 30;

/// Processes of each link that wait, unless its chain says otherwise.
const WARM: usize = 2;

/// How long a link that nobody uses keeps its processes, unless its chain says otherwise.
const IDLE: Duration = Duration::from_secs(300);

/// One program of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// What people call it: said in the file, else the program's own name.
    pub name: String,
    /// The image it is to run from; empty: this machine.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// The program.
    pub command: String,
    /// Its arguments.
    #[serde(default)]
    pub arguments: Vec<String>,
}

impl Link {
    /// The MD5 of image, command and arguments: links of all chains that say the same are the same,
    /// and share their processes. A zero byte stands between the parts, which none of them can
    /// hold.
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

/// What the runs of a chain may take, and how it is kept ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkSettings {
    /// Processes of each link that are started ahead.
    pub warm: usize,
    /// How long a link that nobody uses keeps its processes.
    #[serde(with = "milliseconds", rename = "idleMs", default = "idle")]
    pub idle: Duration,
    /// Bytes that one link may write in one run.
    pub output_bytes: u64,
}

fn idle() -> Duration {
    IDLE
}

impl Default for LinkSettings {
    fn default() -> Self {
        Self { warm: WARM, idle: IDLE, output_bytes: OUTPUT_MAX }
    }
}
