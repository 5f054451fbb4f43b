//! The blobs that a job, or an inbox, has made: keeps those that an event names, and removes all
//! others.
//!
//! A file is stored before the event that will name it, and may be removed or written again before
//! that event exists. Its blob is then removed at once, many blobs in one request where the store
//! can do that. So a job keeps no more in the store than it has staged.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ion_stores::Blobs;
use tokio::runtime::Handle as Runtime;
use tokio::sync::Notify;

/// The most blobs removed by one call of the store: as many as S3 takes in one request.
const REMOVED_AT_ONCE: usize = 1000;

/// Whether an event names one of these blobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BlobFate {
    /// No event names it yet.
    Unnamed,
    /// An event names it, or is about to.
    Named,
}

/// The blobs of one job, or of one inbox.
#[derive(Debug)]
pub(super) struct OwnBlobs {
    store: Arc<dyn Blobs>,
    runtime: Runtime,
    /// How many keys were made.
    keys: AtomicU64,
    state: Mutex<OwnBlobsState>,
    /// Notified when no blob is left to be removed.
    removed: Notify,
}

#[derive(Debug, Default)]
struct OwnBlobsState {
    fates: HashMap<String, BlobFate>,
    discarded: Vec<String>,
    removing: bool,
}

impl OwnBlobs {
    pub(super) fn new(store: Arc<dyn Blobs>, runtime: Runtime) -> Arc<Self> {
        let (keys, state, removed) = (AtomicU64::new(0), Mutex::default(), Notify::new());
        Arc::new(Self { store, runtime, keys, state, removed })
    }

    fn with_state<T>(&self, work: impl FnOnce(&mut OwnBlobsState) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns a new key for a blob of the file at `path`: `prefix` and a number. Each key is written
    /// once, also when a later attempt makes the same file again.
    pub(super) fn fresh_key(&self, prefix: &str, path: &str) -> String {
        let number = self.keys.fetch_add(1, Ordering::Relaxed);
        format!("{prefix}.{number}/{path}")
    }

    /// Notes that a blob of this key may be in the store from now on.
    pub(super) fn note_upload(&self, key: &str) {
        self.with_state(|state| state.fates.insert(key.to_owned(), BlobFate::Unnamed));
    }

    /// Marks a blob that an event is about to name, so that it stays. Returns false if the blob is
    /// removed or being removed. Must be called before the event's document is written: `ion gc`
    /// removes a blob that no event names, but an event whose blob is missing is lost data.
    pub(super) fn keep_for_event(&self, key: &str) -> bool {
        self.with_state(|state| state.fates.get_mut(key).map(|fate| *fate = BlobFate::Named))
            .is_some()
    }

    /// Forgets blobs that an event names: they stay. An inbox names any number of blobs.
    pub(super) fn forget_named<'k>(&self, keys: impl IntoIterator<Item = &'k str>) {
        self.with_state(|state| {
            for key in keys {
                if state.fates.get(key) == Some(&BlobFate::Named) {
                    state.fates.remove(key);
                }
            }
        });
    }

    /// Removes a blob that its file no longer needs, unless an event has named it.
    pub(super) fn discard(self: &Arc<Self>, key: &str) {
        let begins = self.with_state(|state| {
            if state.fates.get(key) != Some(&BlobFate::Unnamed) {
                return false;
            }
            state.fates.remove(key);
            state.discarded.push(key.to_owned());
            !std::mem::replace(&mut state.removing, true)
        });
        if begins {
            let this = self.clone();
            self.runtime.spawn(async move { this.remove_discarded().await });
        }
    }

    async fn remove_discarded(&self) {
        loop {
            let keys = self.with_state(|state| {
                let some = state.discarded.len().saturating_sub(REMOVED_AT_ONCE);
                let keys = state.discarded.split_off(some);
                state.removing = !keys.is_empty();
                keys
            });
            if keys.is_empty() {
                break;
            }
            self.remove(&keys).await;
        }
        self.removed.notify_waiters();
    }

    async fn remove(&self, keys: &[String]) {
        if let Err(error) = self.store.delete_all(keys).await {
            let blobs = keys.len();
            tracing::debug!(
                blobs,
                %error,
                "cannot remove blobs that no event names; `ion gc` will remove them"
            );
        }
    }

    /// Removes all blobs that no event names, and waits until they are removed. Called when the job
    /// has ended.
    pub(super) async fn discard_unnamed(self: &Arc<Self>) {
        let unnamed: Vec<String> = self.with_state(|state| {
            let unnamed = state.fates.iter().filter(|(_, fate)| **fate == BlobFate::Unnamed);
            unnamed.map(|(key, _)| key.clone()).collect()
        });
        for key in &unnamed {
            self.discard(key);
        }
        loop {
            let removed = self.removed.notified();
            if !self.with_state(|state| state.removing) {
                return;
            }
            removed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::TryStreamExt as _;

    use super::*;
    use ion_stores::Durability;
    use ion_stores::object::ObjectBlobs;

    #[tokio::test]
    async fn what_no_event_names_goes_and_what_one_names_stays() {
        let store: Arc<dyn Blobs> = Arc::new(ObjectBlobs::in_memory());
        let own = OwnBlobs::new(store.clone(), Runtime::current());
        let keys: Vec<String> = (0..2500).map(|_| own.fresh_key("c/j/1", "f")).collect();
        assert_eq!(keys[2499], "c/j/1.2499/f");
        for key in &keys {
            own.note_upload(key);
            let bytes = Bytes::from_static(b"x");
            store.put_bytes(key, bytes, Durability::WithNextSync).await.unwrap();
        }
        assert!(own.keep_for_event(&keys[3]));
        for key in &keys[..2000] {
            own.discard(key);
        }
        assert!(!own.keep_for_event(&keys[4]), "it is being removed");
        assert!(own.keep_for_event(&keys[3]) && own.keep_for_event(&keys[2400]));
        own.forget_named([&*keys[3], &keys[2401]]);
        own.discard(&keys[3]);
        own.discard_unnamed().await;
        let left: Vec<_> = store.list("c").await.unwrap().try_collect().await.unwrap();
        let mut left: Vec<&str> = left.iter().map(|blob| blob.key.as_str()).collect();
        left.sort_unstable();
        assert_eq!(left, [keys[2400].as_str(), keys[3].as_str()]);
    }
}
