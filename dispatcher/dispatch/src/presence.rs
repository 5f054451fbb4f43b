//! Who dispatches: a document that people see, and a lock file that proves life to neighbours on
//! the same machine.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ion_jobs::ledger::{Ledger, LedgerError};
use ion_model::clock::{self, Millis, millis};
use ion_stores::{Collection, Query, StoreError};
use ion_system::home::private_folder;
use ion_system::patience::StateAges;
use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

/// How often the document says that its dispatcher lives.
const RENEW: Duration = Duration::from_secs(5);

/// A document not renewed for so long is of a dispatcher that is gone.
const GONE: Duration = Duration::from_secs(30);

/// One dispatcher's presence; its lock goes with it, however it ends.
pub(super) struct Presence {
    folder: PathBuf,
    id: String,
    renewed: Millis,
    _lock: File,
}

/// An id that no other dispatcher has: host, process and chance.
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
        let locked = private_folder(&folder).and_then(|()| {
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

    /// Says again that it lives and what it serves, if it is time.
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

    /// The dispatchers that ran from this folder and do not live any more: nobody holds their lock.
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

    /// Removes what a dead neighbour left.
    pub(super) async fn forget(&self, ledger: &Ledger, id: &str) -> Result<(), StoreError> {
        ledger.plane().documents.delete(Collection::Dispatchers, id, vec![]).await?;
        let _ = std::fs::remove_file(lock_path(&self.folder, id));
        Ok(())
    }
}

/// Removes a dispatcher's own traces at its orderly end.
pub(super) async fn withdraw(ledger: &Ledger, home: &Path, id: &str) {
    let _ = ledger.plane().documents.delete(Collection::Dispatchers, id, vec![]).await;
    let _ = std::fs::remove_file(lock_path(&home.join("dispatchers"), id));
}

/// Which modules living dispatchers serve, as somebody sees it who looks again and again: one lives
/// that renews its document, whatever time it writes there.
#[derive(Debug, Default)]
pub struct ServedWatch(StateAges<Millis>);

impl ServedWatch {
    /// The modules now. A dispatcher that is seen for the first time may have been killed lately.
    ///
    /// # Errors
    /// When the documents cannot be read.
    pub async fn look(&mut self, ledger: &Ledger) -> Result<Vec<String>, StoreError> {
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
            self.0.look(all.iter().map(|dispatcher| (dispatcher.id.clone(), dispatcher.seen)));
        let living = all.into_iter().zip(stood).filter(|(dispatcher, stood)| {
            *stood < GONE && !clock::has_passed_everywhere(dispatcher.seen + millis(GONE))
        });
        Ok(living.flat_map(|(dispatcher, _)| dispatcher.modules).collect())
    }
}

/// The modules that some dispatcher serves that lives, or was killed within some minutes.
///
/// # Errors
/// When the documents cannot be read.
pub async fn served_modules(ledger: &Ledger) -> Result<Vec<String>, StoreError> {
    ServedWatch::default().look(ledger).await
}
