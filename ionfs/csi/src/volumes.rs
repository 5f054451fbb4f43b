//! The volumes that the daemon of a node has published, and a note of each on the disk. From the
//! notes the next daemon knows what a daemon that died has left.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ion_fs::job::{JobTree, TreeOutcome};
use ion_fs::mount::ServedMount;
use ion_model::id::JobId;
use rustix::fs::{FlockOperation, flock};
use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex as AsyncMutex;
use uuid::Uuid;

use crate::ticket::Ticket;

/// The extension of a note that is being written.
const UNFINISHED_EXTENSION: &str = "new";

/// The most mounts on top of each other that are unmounted at one target. Only an attacker would
/// stack more.
const MOUNTS_MAX: usize = 16;

/// The note of a volume, which is kept on the disk while the volume is published.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct VolumeNote {
    pub(super) volume: String,
    pub(super) target: PathBuf,
    pub(super) job: JobId,
    pub(super) attempt: u32,
}

impl VolumeNote {
    /// Returns the id of the attempt's ticket.
    pub(super) fn ticket_id(&self) -> String {
        Ticket::id(&self.job, self.attempt)
    }
}

/// One published volume.
#[derive(Debug)]
pub(super) struct Volume {
    pub(super) note: VolumeNote,
    pub(super) state: VolumeState,
}

/// The state of a published volume. A volume keeps its state until it reaches the next, because the
/// kubelet may repeat an unpublish call that failed.
#[derive(Debug)]
pub(super) enum VolumeState {
    /// The tree is mounted and served.
    Served(JobTree, ServedMount),
    /// Everything that the pod left is committed or refused; the ticket does not say so yet.
    Decided(TreeOutcome),
}

/// The slot of one volume id: the volume, while it is published. A call that publishes or
/// unpublishes the volume holds its lock.
pub(super) type VolumeSlot = Arc<AsyncMutex<Option<Volume>>>;

/// All volumes of a node's daemon.
#[derive(Debug)]
pub(super) struct Volumes {
    notes: PathBuf,
    slots: Mutex<HashMap<String, VolumeSlot>>,
    /// A file lock that is held while the daemon lives. The kernel releases it however the daemon
    /// ends.
    _lock: File,
}

impl Volumes {
    /// Opens the folder `notes` with the notes of published volumes, and makes it if it is missing.
    /// Only one daemon may have it: a second one would treat the volumes that the first one serves
    /// as lost.
    pub(super) fn new(notes: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&notes)?;
        let lock = File::create(notes.with_extension("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| io::Error::other("another daemon serves them; each node has one"))?;
        Ok(Self { notes, slots: Mutex::default(), _lock: lock })
    }

    /// Returns the slot of a volume id. Makes the slot if the volume has none yet.
    pub(super) fn slot(&self, volume: &str) -> VolumeSlot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        // Removes empty slots that no call uses.
        slots.retain(|_, slot| {
            Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|volume| volume.is_some())
        });
        slots.entry(volume.to_owned()).or_default().clone()
    }

    /// Returns the slots of all volume ids, empty ones too.
    pub(super) fn slots(&self) -> Vec<VolumeSlot> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Returns the path of a volume's note. A volume's id may be any text, so the file's name is
    /// derived from it.
    fn note_path(&self, volume: &str) -> PathBuf {
        self.notes.join(Uuid::new_v5(&Uuid::NAMESPACE_OID, volume.as_bytes()).to_string())
    }

    /// Writes the note of a volume. Call it before the volume is mounted.
    pub(super) fn write_note(&self, note: &VolumeNote) -> io::Result<()> {
        let path = self.note_path(&note.volume);
        let unfinished = path.with_extension(UNFINISHED_EXTENSION);
        std::fs::write(&unfinished, serde_json::to_vec(note)?)?;
        std::fs::rename(unfinished, path)
    }

    /// Removes the note of a volume that is not published any more.
    pub(super) fn remove_note(&self, volume: &str) -> io::Result<()> {
        match std::fs::remove_file(self.note_path(volume)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Reads the notes that an earlier daemon wrote and did not remove.
    pub(super) fn read_notes(&self) -> io::Result<Vec<VolumeNote>> {
        let mut notes = Vec::new();
        for entry in std::fs::read_dir(&self.notes)? {
            let path = entry?.path();
            // The daemon ended while it wrote the note, so the volume was not mounted yet.
            if path.extension().is_some_and(|extension| extension == UNFINISHED_EXTENSION) {
                std::fs::remove_file(&path)?;
                continue;
            }
            match std::fs::read(&path).map(|bytes| serde_json::from_slice(&bytes)) {
                Ok(Ok(note)) => notes.push(note),
                // The note was written only in part, so its volume was not mounted yet.
                _ => drop(std::fs::remove_file(&path)),
            }
        }
        Ok(notes)
    }

    /// Reads the note of one volume.
    pub(super) fn read_note(&self, volume: &str) -> Option<VolumeNote> {
        serde_json::from_slice(&std::fs::read(self.note_path(volume)).ok()?).ok()
    }
}

/// Unmounts everything that is mounted at `target`, and removes the folder. Blocks, but never waits
/// for a filesystem that does not answer.
pub(super) fn unmount_and_remove(target: &Path) -> io::Result<()> {
    for _ in 0..MOUNTS_MAX {
        match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Nothing is mounted there, or the target does not exist.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => break,
            Err(error) => return Err(error.into()),
        }
    }
    match std::fs::remove_dir(target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_that_was_being_written_is_none() {
        let home = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(home.path().join("notes")).unwrap();
        let note = |volume: &str| VolumeNote {
            volume: volume.into(),
            target: "/nowhere".into(),
            job: JobId::new("j"),
            attempt: 1,
        };
        volumes.write_note(&note("published")).unwrap();
        volumes.write_note(&note("begun")).unwrap();
        let path = volumes.note_path("begun");
        std::fs::rename(&path, path.with_extension(UNFINISHED_EXTENSION)).unwrap();
        let notes = volumes.read_notes().unwrap();
        assert_eq!(
            notes.iter().map(|note| note.volume.as_str()).collect::<Vec<_>>(),
            ["published"]
        );
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
