//! Small blobs that are durable before their files are.
//!
//! A file is durable after syncs of itself and of its folders, which take longer than all else that
//! a small blob costs. Where documents and messages have one log on this machine's disk, a small
//! blob's bytes go into it too, together with the documents that name it, and are on the disk with
//! its next sync. The file is there from the beginning, for everybody to read; it is synced soon,
//! together with many others, and then the log lets the bytes go. After a crash of the machine,
//! whoever opens the stores first puts anew what the log still holds.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use ion_model::errors::chain;
use ion_model::event::Event;
use ion_system::run_blocking;
use serde_json::Value;
use uuid::Uuid;

use super::sqlite::{HeldBlob, Sqlite};
use super::{Blobs, Collection, Guard, Inserted, StoreError};

/// Bytes that are kept at a time. More are synced as files: writing them twice takes longer.
const TOGETHER_MAX: usize = 64 << 10;

/// Bytes of this process that the log may hold. More are synced as files: the disk does not keep
/// up.
const HELD_MAX: usize = 16 << 20;

/// How long blobs gather before their files are synced.
const GATHER: Duration = Duration::from_secs(1);

/// The longest wait after a failure; it doubles up to this.
const GATHER_MAX: Duration = Duration::from_secs(60);

/// Files that are synced together.
const ROUND: usize = 512;

/// What names this boot of the machine: files put before it may be anything.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// The blobs that the log holds.
#[derive(Debug)]
pub(super) struct Held {
    log: Arc<Sqlite>,
    blobs: Arc<dyn Blobs>,
    boot: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes that this process has added, and that are not let go yet.
    bytes: usize,
    /// Raised by each that adds some.
    added: u64,
    /// Somebody syncs their files.
    syncing: bool,
}

impl Held {
    /// Puts anew what an earlier boot of the machine has left in the log.
    pub(super) async fn open(
        log: Arc<Sqlite>,
        blobs: Arc<dyn Blobs>,
    ) -> Result<Arc<Self>, StoreError> {
        // A machine that does not say is another one each time: then more is put anew than must be.
        let boot = run_blocking(|| std::fs::read_to_string(BOOT)).await;
        let boot = boot.map_or_else(|_| Uuid::new_v4().to_string(), |boot| boot.trim().to_owned());
        let held = Self { log, blobs, boot, state: Mutex::default() };
        loop {
            let left = held.log.held(&held.boot, false, ROUND).await?;
            if left.is_empty() {
                return Ok(Arc::new(held));
            }
            tracing::info!(blobs = left.len(), "put anew after a crash of the machine");
            for blob in &left {
                held.put(blob).await?;
            }
            held.log.release(&left).await?;
        }
    }

    async fn put(&self, blob: &HeldBlob) -> Result<(), StoreError> {
        let bytes = blob.bytes.clone();
        self.blobs.put(&blob.key, stream::once(async { Ok(bytes) }).boxed()).await.map(drop)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether these are for the log.
    pub(super) fn takes(&self, blobs: &[(String, Bytes)]) -> bool {
        let bytes = size(blobs);
        bytes <= TOGETHER_MAX && self.state().bytes + bytes <= HELD_MAX
    }

    /// Makes them durable with the log's next sync, together with documents that name them; at once
    /// together with an event, which is published.
    pub(super) async fn add(
        self: &Arc<Self>,
        blobs: Vec<(String, Bytes)>,
        documents: Vec<(Collection, Value)>,
        event: Option<Event>,
        guard: Option<Guard>,
    ) -> Result<Vec<Inserted>, StoreError> {
        let (some, bytes) = (!blobs.is_empty(), size(&blobs));
        let inserted = self.log.hold(self.boot.clone(), blobs, documents, event, guard).await?;
        if some {
            let mut state = self.state();
            state.bytes += bytes;
            state.added += 1;
            if !std::mem::replace(&mut state.syncing, true) {
                tokio::spawn(self.clone().sync());
            }
        }
        Ok(inserted)
    }

    /// Makes files durable until the log holds none.
    async fn sync(self: Arc<Self>) {
        let mut wait = GATHER;
        loop {
            tokio::time::sleep(wait).await;
            let added = self.state().added;
            match self.round().await {
                Ok(None) => {
                    let mut state = self.state();
                    state.bytes = 0;
                    if state.added == added {
                        state.syncing = false;
                        return;
                    }
                }
                Ok(Some(bytes)) => {
                    let mut state = self.state();
                    state.bytes = state.bytes.saturating_sub(bytes);
                    wait = GATHER;
                }
                Err(error) => {
                    tracing::warn!(
                        error = chain(&error),
                        "small blobs stay in the log: their files are not durable"
                    );
                    wait = (wait * 2).min(GATHER_MAX);
                }
            }
        }
    }

    /// Makes the files of some durable, of whichever process of this machine; gives their bytes,
    /// none if there are none.
    async fn round(&self) -> Result<Option<usize>, StoreError> {
        let held = self.log.held(&self.boot, true, ROUND).await?;
        if held.is_empty() {
            return Ok(None);
        }
        let keys: Vec<&str> = held.iter().map(|blob| blob.key.as_str()).collect();
        if self.blobs.settle(&keys).await.is_err() {
            // A file whose sync failed once cannot be trusted again; and one may have been removed
            // meanwhile.
            for blob in &held {
                if self.blobs.size(&blob.key).await?.is_some() {
                    self.put(blob).await?;
                }
            }
        }
        self.log.release(&held).await?;
        Ok(Some(held.iter().map(|blob| blob.bytes.len()).sum()))
    }
}

fn size(blobs: &[(String, Bytes)]) -> usize {
    blobs.iter().map(|(_, bytes)| bytes.len()).sum()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Documents as _;
    use crate::object::ObjectBlobs;

    struct Stores {
        log: Arc<Sqlite>,
        blobs: Arc<dyn Blobs>,
        _folder: tempfile::TempDir,
    }

    fn stores() -> Stores {
        let folder = tempfile::tempdir().unwrap();
        let log = Arc::new(Sqlite::open(&folder.path().join("ion.db")).unwrap());
        let blobs = Arc::new(ObjectBlobs::local(&folder.path().join("blobs")).unwrap());
        Stores { log, blobs, _folder: folder }
    }

    fn small(key: &str) -> (String, Bytes) {
        (key.to_owned(), Bytes::from(format!("the bytes of {key}")))
    }

    #[tokio::test]
    async fn what_an_earlier_boot_left_in_the_log_is_put_anew() {
        let Stores { log, blobs, _folder } = stores();
        let many: Vec<_> = (0..ROUND + 1).map(|n| small(&format!("c/j/{n}"))).collect();
        log.hold("another boot".into(), many.clone(), vec![], None, None).await.unwrap();
        // As a crash leaves one: a name, and no bytes.
        blobs.put_soon("c/j/7", Bytes::new()).await.unwrap();
        let held = Held::open(log.clone(), blobs.clone()).await.unwrap();
        for (key, bytes) in &many {
            assert_eq!(blobs.get_range(key, 0..bytes.len() as u64).await.unwrap(), bytes);
        }
        assert!(log.held(&held.boot, false, ROUND).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn the_log_holds_bytes_until_their_files_are_durable() {
        let Stores { log, blobs, _folder } = stores();
        let held = Held::open(log.clone(), blobs.clone()).await.unwrap();
        let (kept, removed) = (small("c/kept"), small("c/removed"));
        for (key, bytes) in [&kept, &removed] {
            blobs.put_soon(key, bytes.clone()).await.unwrap();
        }
        let both = vec![kept.clone(), removed];
        assert!(held.takes(&both));
        let document = (Collection::Events, json!({"id": "e"}));
        let inserted = held.add(both, vec![document], None, None).await.unwrap();
        assert_eq!(inserted, [Inserted::New]);
        assert!(log.get(Collection::Events, "e").await.unwrap().is_some());
        let keys = |held: Vec<HeldBlob>| held.into_iter().map(|blob| blob.key).collect::<Vec<_>>();
        assert_eq!(keys(log.held(&held.boot, true, 9).await.unwrap()), ["c/kept", "c/removed"]);
        // Whoever opens the stores on the same boot leaves them to it.
        Held::open(log.clone(), blobs.clone()).await.unwrap();
        assert_eq!(log.held(&held.boot, true, 9).await.unwrap().len(), 2);
        // What was removed meanwhile stays so.
        blobs.delete("c/removed").await.unwrap();
        let gone = async {
            while held.state().syncing {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
        assert!(log.held(&held.boot, true, 9).await.unwrap().is_empty());
        assert_eq!(blobs.size("c/kept").await.unwrap(), Some(kept.1.len() as u64));
        assert_eq!(blobs.size("c/removed").await.unwrap(), None);
        assert_eq!(held.state().bytes, 0);
    }

    #[tokio::test]
    async fn what_is_large_is_not_for_the_log() {
        let Stores { log, blobs, _folder } = stores();
        let held = Held::open(log, blobs).await.unwrap();
        assert!(!held.takes(&[("large".into(), Bytes::from(vec![0; TOGETHER_MAX + 1]))]));
        held.state().bytes = HELD_MAX;
        assert!(!held.takes(&[small("small")]));
    }
}
