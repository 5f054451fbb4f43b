//! The presence of a dispatcher: a document for people, and a lock file that shows other processes
//! of the machine that it lives.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ion_jobs::ledger::{Ledger, LedgerError};
use ion_model::clock::{self, Millis, millis};
use ion_stores::{Collection, Query, StoreError};
use ion_system::home::make_private_folder;
use ion_system::patience::StateAges;
use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

/// How often a dispatcher renews its document.
const RENEW: Duration = Duration::from_secs(5);

/// A dispatcher whose document was not renewed for this time is gone.
const GONE: Duration = Duration::from_secs(30);

/// The presence of one dispatcher. The kernel releases its lock however the process ends.
pub(super) struct Presence {
    folder: PathBuf,
    id: String,
    renewed: Millis,
    _lock: File,
}

/// Makes an id that no other dispatcher has, of the host, the process and a random part.
pub(super) fn fresh_id() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let random = Uuid::new_v4().simple().to_string();
    format!("{host}-{}-{}", rustix::process::getpid().as_raw_nonzero(), &random[..8])
}

fn lock_path(folder: &Path, id: &str) -> PathBuf {
    folder.join(format!("{id}.lock"))
}

impl Presence {
    pub(super) async fn announce(
        ledger: &Ledger,
        home: &Path,
        id: &str,
        modules: Vec<String>,
    ) -> Result<Self, LedgerError> {
        let folder = home.join("dispatchers");
        let locked = make_private_folder(&folder).and_then(|()| {
            let file = File::create(lock_path(&folder, id))?;
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            Ok(file)
        });
        let lock = locked.map_err(|source| StoreError::Unavailable {
            store: folder.display().to_string(),
            what: "the dispatcher's lock cannot be taken".into(),
            source: source.into(),
        })?;
        let mut presence = Self { folder, id: id.to_owned(), renewed: 0, _lock: lock };
        presence.renew(ledger, || modules).await?;
        Ok(presence)
    }

    /// Renews the document with the modules that it serves, if it is time.
    pub(super) async fn renew(
        &mut self,
        ledger: &Ledger,
        modules: impl FnOnce() -> Vec<String>,
    ) -> Result<(), StoreError> {
        let now = clock::now();
        if now - self.renewed < millis(RENEW) {
            return Ok(());
        }
        self.renewed = now;
        let document = json!({"id": self.id, "modules": modules(), "seen": now});
        ledger.plane().documents.put(Collection::Dispatchers, document, None).await
    }

    /// Returns the dispatchers of this folder that are dead: no process holds their lock.
    pub(super) fn dead_neighbours(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let id = entry.file_name().to_str()?.strip_suffix(".lock")?.to_owned();
                let file = File::open(entry.path()).ok()?;
                (id != self.id && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok())
                    .then_some(id)
            })
            .collect()
    }

    /// Removes the lock file and the document of a dead dispatcher.
    pub(super) async fn remove_neighbour(
        &self,
        ledger: &Ledger,
        id: &str,
    ) -> Result<(), StoreError> {
        ledger.plane().documents.delete(Collection::Dispatchers, id, vec![]).await?;
        let _ = std::fs::remove_file(lock_path(&self.folder, id));
        Ok(())
    }
}

/// Removes a dispatcher's own lock file and document at its orderly end.
pub(super) async fn withdraw(ledger: &Ledger, home: &Path, id: &str) {
    let _ = ledger.plane().documents.delete(Collection::Dispatchers, id, vec![]).await;
    let _ = std::fs::remove_file(lock_path(&home.join("dispatchers"), id));
}

/// Which modules living dispatchers serve, as seen by repeated looks. A dispatcher lives if it
/// renews its document, whatever time it writes there.
#[derive(Debug, Default)]
pub struct ServedWatch(StateAges<Millis>);

impl ServedWatch {
    /// Returns the modules that are served now. A dispatcher that is seen for the first time may
    /// have been killed recently.
    ///
    /// # Errors
    /// When the documents cannot be read.
    pub async fn read_served_modules(
        &mut self,
        ledger: &Ledger,
    ) -> Result<Vec<String>, StoreError> {
        #[derive(Deserialize)]
        struct DispatcherRecord {
            id: String,
            seen: Millis,
            #[serde(default)]
            modules: Vec<String>,
        }
        let all = Query::equal(Collection::Dispatchers, vec![]);
        let all: Vec<DispatcherRecord> = ledger.plane().documents.find_as(all).await?;
        let stood =
            self.0.update(all.iter().map(|dispatcher| (dispatcher.id.clone(), dispatcher.seen)));
        let living = all.into_iter().zip(stood).filter(|(dispatcher, stood)| {
            *stood < GONE && !clock::has_passed_everywhere(dispatcher.seen + millis(GONE))
        });
        Ok(living.flat_map(|(dispatcher, _)| dispatcher.modules).collect())
    }
}

/// Returns the modules of the dispatchers that live, or were killed within the last minutes.
///
/// # Errors
/// When the documents cannot be read.
pub async fn served_modules(ledger: &Ledger) -> Result<Vec<String>, StoreError> {
    ServedWatch::default().read_served_modules(ledger).await
}
