//! Makes small blobs durable before their files are.
//!
//! A file is durable after syncs of the file and of its folders. These syncs take longer than
//! everything else that a small blob costs. Where documents and messages share one log on this
//! machine's disk, the bytes of a small blob go into that log too, together with the documents that
//! name the blob, and are on the disk with the log's next sync. The file exists from the beginning,
//! for everybody to read. It is synced soon, together with many others, and then the log drops the
//! bytes. After a crash of the machine, the first process that opens the stores puts the blobs
//! again that the log still holds.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ion_model::errors::error_chain;
use ion_model::event::Event;
use ion_system::run_blocking;
use serde_json::Value;
use uuid::Uuid;

use super::sqlite::{HeldBlob, HeldDuring, Sqlite};
use super::{Blobs, Collection, Durability, Guard, Inserted, StoreError};

/// The most bytes that one call puts into the log. Larger blobs are synced as files, because
/// writing them twice takes longer.
const TOGETHER_MAX: usize = 64 << 10;

/// The most bytes of this process that the log may hold. Beyond that blobs are synced as files,
/// because the disk does not keep up.
const HELD_MAX: usize = 16 << 20;

/// How long blobs collect before their files are synced.
const GATHER: Duration = Duration::from_secs(1);

/// The longest wait between syncs. The wait doubles with each failure up to this.
const GATHER_MAX: Duration = Duration::from_secs(60);

/// The number of files that are synced together.
const ROUND: usize = 512;

/// The file with the id of this boot of the machine. Unsynced files from before this boot may have
/// any content.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// The small blobs that the log holds until their files are durable.
#[derive(Debug)]
pub(super) struct BlobLog {
    log: Arc<Sqlite>,
    blobs: Arc<dyn Blobs>,
    boot: String,
    state: Mutex<BlobLogState>,
}

#[derive(Debug, Default)]
struct BlobLogState {
    /// The bytes that this process has added and the log has not released yet.
    bytes: usize,
    /// The number of calls that have added blobs.
    added: u64,
    /// Whether a task of this process is syncing the files.
    syncing: bool,
}

impl BlobLog {
    /// Puts the blobs again that an earlier boot of the machine left in the log, then returns the
    /// log.
    pub(super) async fn open(
        log: Arc<Sqlite>,
        blobs: Arc<dyn Blobs>,
    ) -> Result<Arc<Self>, StoreError> {
        // Without a boot id each start counts as another boot: then more blobs are put again than
        // necessary.
        let boot = run_blocking(|| std::fs::read_to_string(BOOT)).await;
        let boot = boot.map_or_else(|_| Uuid::new_v4().to_string(), |boot| boot.trim().to_owned());
        let held = Self { log, blobs, boot, state: Mutex::default() };
        loop {
            let left = held.log.list_held_blobs(&held.boot, HeldDuring::OtherBoots, ROUND).await?;
            if left.is_empty() {
                return Ok(Arc::new(held));
            }
            for blob in &left {
                held.put(blob).await?;
            }
            held.log.remove_held_blobs(&left).await?;
            tracing::info!(
                blobs = left.len(),
                "small blobs were put again after a restart of the machine"
            );
        }
    }

    async fn put(&self, blob: &HeldBlob) -> Result<(), StoreError> {
        self.blobs.put_bytes(&blob.key, blob.bytes.clone(), Durability::Now).await
    }

    fn lock_state(&self) -> MutexGuard<'_, BlobLogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether the log has room for these blobs: they are small, and this process has not
    /// filled its part of the log.
    pub(super) fn has_room_for(&self, blobs: &[(String, Bytes)]) -> bool {
        let bytes = total_bytes(blobs);
        bytes <= TOGETHER_MAX && self.lock_state().bytes + bytes <= HELD_MAX
    }

    /// Makes blobs durable with the log's next sync, together with the documents that name them.
    /// With an event, all of it is durable when this returns, and the event is published.
    pub(super) async fn add(
        self: &Arc<Self>,
        blobs: Vec<(String, Bytes)>,
        documents: Vec<(Collection, Value)>,
        event: Option<Event>,
        guard: Option<Guard>,
    ) -> Result<Vec<Inserted>, StoreError> {
        let (some, bytes) = (!blobs.is_empty(), total_bytes(&blobs));
        let inserted =
            self.log.hold_blobs(self.boot.clone(), blobs, documents, event, guard).await?;
        if some {
            let mut state = self.lock_state();
            state.bytes += bytes;
            state.added += 1;
            if !std::mem::replace(&mut state.syncing, true) {
                tokio::spawn(self.clone().sync_files());
            }
        }
        Ok(inserted)
    }

    /// Syncs files until the log holds no more blobs.
    async fn sync_files(self: Arc<Self>) {
        let mut wait = GATHER;
        loop {
            tokio::time::sleep(wait).await;
            let added = self.lock_state().added;
            match self.sync_round().await {
                Ok(None) => {
                    let mut state = self.lock_state();
                    state.bytes = 0;
                    if state.added == added {
                        state.syncing = false;
                        return;
                    }
                }
                Ok(Some(bytes)) => {
                    let mut state = self.lock_state();
                    state.bytes = state.bytes.saturating_sub(bytes);
                    wait = GATHER;
                }
                Err(error) => {
                    tracing::warn!(
                        error = error_chain(&error),
                        "small blobs stay in the log because their files could not be synced; Ion \
                         tries again"
                    );
                    wait = (wait * 2).min(GATHER_MAX);
                }
            }
        }
    }

    /// Makes the files of up to [`ROUND`] held blobs durable, of any process on this machine, and
    /// releases the blobs. Returns their total size in bytes, or `None` if the log holds no blobs.
    async fn sync_round(&self) -> Result<Option<usize>, StoreError> {
        let held = self.log.list_held_blobs(&self.boot, HeldDuring::ThisBoot, ROUND).await?;
        if held.is_empty() {
            return Ok(None);
        }
        let keys: Vec<&str> = held.iter().map(|blob| blob.key.as_str()).collect();
        if self.blobs.sync(&keys).await.is_err() {
            // A file whose sync failed once cannot be trusted again, so it is put again; a blob
            // that was removed meanwhile is not.
            for blob in &held {
                if self.blobs.size(&blob.key).await?.is_some() {
                    self.put(blob).await?;
                }
            }
        }
        self.log.remove_held_blobs(&held).await?;
        Ok(Some(held.iter().map(|blob| blob.bytes.len()).sum()))
    }
}

fn total_bytes(blobs: &[(String, Bytes)]) -> usize {
    blobs.iter().map(|(_, bytes)| bytes.len()).sum()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Documents as _;
    use crate::object::ObjectBlobs;

    struct HeldStores {
        log: Arc<Sqlite>,
        blobs: Arc<dyn Blobs>,
        _folder: tempfile::TempDir,
    }

    fn open_stores() -> HeldStores {
        let folder = tempfile::tempdir().unwrap();
        let log = Arc::new(Sqlite::open(&folder.path().join("ion.db")).unwrap());
        let blobs = Arc::new(ObjectBlobs::local(&folder.path().join("blobs")).unwrap());
        HeldStores { log, blobs, _folder: folder }
    }

    fn small_blob(key: &str) -> (String, Bytes) {
        (key.to_owned(), Bytes::from(format!("the bytes of {key}")))
    }

    #[tokio::test]
    async fn what_an_earlier_boot_left_in_the_log_is_put_anew() {
        let HeldStores { log, blobs, _folder } = open_stores();
        let many: Vec<_> = (0..ROUND + 1).map(|n| small_blob(&format!("c/j/{n}"))).collect();
        log.hold_blobs("another boot".into(), many.clone(), vec![], None, None).await.unwrap();
        // A crash may leave a file like this: a name without bytes.
        blobs.put_bytes("c/j/7", Bytes::new(), Durability::WithNextSync).await.unwrap();
        let held = BlobLog::open(log.clone(), blobs.clone()).await.unwrap();
        for (key, bytes) in &many {
            assert_eq!(blobs.get_range(key, 0..bytes.len() as u64).await.unwrap(), bytes);
        }
        assert!(
            log.list_held_blobs(&held.boot, HeldDuring::OtherBoots, ROUND)
                .await
                .unwrap()
                .is_empty()
        );
    }

    #[tokio::test]
    async fn the_log_holds_bytes_until_their_files_are_durable() {
        let HeldStores { log, blobs, _folder } = open_stores();
        let held = BlobLog::open(log.clone(), blobs.clone()).await.unwrap();
        let (kept, removed) = (small_blob("c/kept"), small_blob("c/removed"));
        for (key, bytes) in [&kept, &removed] {
            blobs.put_bytes(key, bytes.clone(), Durability::WithNextSync).await.unwrap();
        }
        let both = vec![kept.clone(), removed];
        assert!(held.has_room_for(&both));
        let document = (Collection::Events, json!({"id": "e"}));
        let inserted = held.add(both, vec![document], None, None).await.unwrap();
        assert_eq!(inserted, [Inserted::New]);
        assert!(log.get(Collection::Events, "e").await.unwrap().is_some());
        let keys = |held: Vec<HeldBlob>| held.into_iter().map(|blob| blob.key).collect::<Vec<_>>();
        assert_eq!(
            keys(log.list_held_blobs(&held.boot, HeldDuring::ThisBoot, 9).await.unwrap()),
            ["c/kept", "c/removed"]
        );
        // A process that opens the stores during the same boot leaves the blobs in the log.
        BlobLog::open(log.clone(), blobs.clone()).await.unwrap();
        assert_eq!(
            log.list_held_blobs(&held.boot, HeldDuring::ThisBoot, 9).await.unwrap().len(),
            2
        );
        // A blob that is removed meanwhile stays removed.
        blobs.delete("c/removed").await.unwrap();
        let gone = async {
            while held.lock_state().syncing {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
        assert!(log.list_held_blobs(&held.boot, HeldDuring::ThisBoot, 9).await.unwrap().is_empty());
        assert_eq!(blobs.size("c/kept").await.unwrap(), Some(kept.1.len() as u64));
        assert_eq!(blobs.size("c/removed").await.unwrap(), None);
        assert_eq!(held.lock_state().bytes, 0);
    }

    #[tokio::test]
    async fn what_is_large_is_not_for_the_log() {
        let HeldStores { log, blobs, _folder } = open_stores();
        let held = BlobLog::open(log, blobs).await.unwrap();
        assert!(!held.has_room_for(&[("large".into(), Bytes::from(vec![0; TOGETHER_MAX + 1]))]));
        held.lock_state().bytes = HELD_MAX;
        assert!(!held.has_room_for(&[small_blob("small")]));
    }
}
