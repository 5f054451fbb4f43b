//! Files, as documents list them.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::checksum::Checksums;
use crate::clock::{self, Millis};

/// One file of an event, as the event document lists it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileEntry {
    /// The path below `in/data`: relative, `/` between components, none of them `.` or `..`.
    pub name: String,
    /// The blob's key.
    pub key: String,
    /// Length in bytes.
    pub size: u64,
    /// Modification time.
    pub mtime: Millis,
    /// Nanoseconds after `mtime`, fewer than a million. Older Ion neither writes nor reads them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mtime_nanos: u32,
    /// Permission bits (`0o7777`).
    pub mode: u32,
    /// The checksums that every read is checked against.
    pub checksums: Checksums,
}

impl FileEntry {
    /// Returns the modification time, to the nanosecond.
    pub fn modified(&self) -> SystemTime {
        clock::system_time_nanos(self.mtime, self.mtime_nanos)
    }

    /// Whether `bytes` are the file's whole content as it was written: the length agrees, and each
    /// block matches its checksum.
    pub fn has_content(&self, bytes: &[u8]) -> bool {
        let Some(block) = usize::try_from(self.checksums.block).ok().filter(|block| *block > 0)
        else {
            return false;
        };
        bytes.len() as u64 == self.size
            && (0..)
                .zip(bytes.chunks(block))
                .all(|(index, bytes)| self.checksums.block_matches(index, bytes))
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
pub(crate) fn is_zero(number: &u32) -> bool {
    *number == 0
}
