//! The volumes that a node's daemon has published, and a note of each on the disk: after the
//! daemon's death the next one knows what it left.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ion_fs::job::{JobTree, Outcome};
use ion_fs::mount::Mounted;
use ion_model::id::JobId;
use rustix::fs::{FlockOperation, flock};
use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex as AsyncMutex;
use uuid::Uuid;

use crate::ticket::Ticket;

/// Mounts on top of each other at one place that are taken away. More are nobody's doing but an
/// attacker's.
const MOUNTS_MAX: usize = 16;

/// What is noted of a volume while it is published.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) volume: String,
    pub(super) target: PathBuf,
    pub(super) job: JobId,
    pub(super) attempt: u32,
}

impl Note {
    /// The attempt's ticket.
    pub(super) fn ticket(&self) -> String {
        Ticket::id(&self.job, self.attempt)
    }
}

/// One published volume.
#[derive(Debug)]
pub(super) struct Volume {
    pub(super) note: Note,
    pub(super) state: State,
}

/// How far it is. Each state is kept until the next is reached: unpublishing may be asked again.
#[derive(Debug)]
pub(super) enum State {
    Served(JobTree, Mounted),
    /// Everything was decided upon; the ticket does not say so yet.
    Decided(Outcome),
}

/// One place for each volume id: whoever works on a volume holds it.
pub(super) type Place = Arc<AsyncMutex<Option<Volume>>>;

/// All of them.
#[derive(Debug)]
pub(super) struct Volumes {
    notes: PathBuf,
    places: Mutex<HashMap<String, Place>>,
    /// Held while the daemon lives, however it ends.
    _lock: File,
}

impl Volumes {
    /// Those noted below `notes`, a folder that is made if it is missing. Of one daemon only:
    /// another one would take for lost what this one serves.
    pub(super) fn new(notes: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&notes)?;
        let lock = File::create(notes.with_extension("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| io::Error::other("another daemon serves them; each node has one"))?;
        Ok(Self { notes, places: Mutex::default(), _lock: lock })
    }

    /// The place of this volume.
    pub(super) fn place(&self, volume: &str) -> Place {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        // Empty ones that nobody works on are of no use.
        places.retain(|_, place| {
            Arc::strong_count(place) > 1 || place.try_lock().is_ok_and(|held| held.is_some())
        });
        places.entry(volume.to_owned()).or_default().clone()
    }

    /// All places there are.
    pub(super) fn all(&self) -> Vec<Place> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// A volume's id may be anything; this is a name.
    fn path(&self, volume: &str) -> PathBuf {
        self.notes.join(Uuid::new_v5(&Uuid::NAMESPACE_OID, volume.as_bytes()).to_string())
    }

    /// Notes a volume, before it is mounted.
    pub(super) fn note(&self, note: &Note) -> io::Result<()> {
        let path = self.path(&note.volume);
        let beside = path.with_extension("new");
        std::fs::write(&beside, serde_json::to_vec(note)?)?;
        std::fs::rename(beside, path)
    }

    /// It is not published any more.
    pub(super) fn forget(&self, volume: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path(volume)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// What an earlier daemon noted and did not forget.
    pub(super) fn noted(&self) -> io::Result<Vec<Note>> {
        let mut notes = Vec::new();
        for entry in std::fs::read_dir(&self.notes)? {
            let path = entry?.path();
            match std::fs::read(&path).map(|bytes| serde_json::from_slice(&bytes)) {
                Ok(Ok(note)) => notes.push(note),
                // Written half: what it would say was not mounted yet.
                _ => drop(std::fs::remove_file(&path)),
            }
        }
        Ok(notes)
    }

    /// The note of one volume.
    pub(super) fn noted_of(&self, volume: &str) -> Option<Note> {
        serde_json::from_slice(&std::fs::read(self.path(volume)).ok()?).ok()
    }
}

/// Takes away whatever is mounted at `target`, and the folder. Blocks, but never on a filesystem
/// that does not answer.
pub(super) fn clear(target: &Path) -> io::Result<()> {
    for _ in 0..MOUNTS_MAX {
        match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Not mounted, or not there.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => break,
            Err(error) => return Err(error.into()),
        }
    }
    match std::fs::remove_dir(target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
