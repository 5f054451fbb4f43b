//! The state that one run of a source leaves for the next.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::clock::Millis;
use crate::file::FileEntry;
use crate::id::CorrelationId;
use crate::secret::SecretOrigin;

/// What the keys of all blobs begin with that hold the states of sources.
pub const STATE_KEYS: &str = "state/";

/// Returns the prefix of the keys of the blobs that hold the state which a run leaves. It differs
/// from the prefix of the correlation's files, because state outlives its run.
pub fn state_prefix(correlation: &CorrelationId) -> String {
    format!("{STATE_KEYS}{correlation}")
}

/// The files that a run leaves for the next run of its source: `out/state`, then `in/state`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StateFiles {
    /// Its files; empty when `file_list` names the blob that lists them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileEntry>,
    /// The blob that holds the list of files as JSON, if the list is too long for a document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_list: Option<FileEntry>,
    /// Its empty directories.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub directories: Vec<String>,
}

impl StateFiles {
    /// Whether there is no file and no directory.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.file_list.is_none() && self.directories.is_empty()
    }
}

/// What a run leaves: its state, and what it asks of the clock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeftState {
    /// The files below `out/state`.
    #[serde(default, skip_serializing_if = "StateFiles::is_empty")]
    pub state: StateFiles,
    /// The time in `out/state/not-before`: no scheduled run begins earlier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Millis>,
    /// The reason in `out/state/gone`: what the source reads is not there any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<String>,
}

/// What the event of a run says beside its values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceTick {
    /// The source's name.
    pub source: String,
    /// The scheduled time of the run.
    pub scheduled: Millis,
    /// What the last succeeded run left. Every attempt of the run begins with it.
    #[serde(default, skip_serializing_if = "StateFiles::is_empty")]
    pub state: StateFiles,
    /// Where the values of the module's secret parameters are, by parameter. Every attempt reads
    /// them anew.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, SecretOrigin>,
}
