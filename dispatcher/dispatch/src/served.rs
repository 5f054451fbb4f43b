//! The modules that a dispatcher serves at the moment.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ion_jobs::pipeline::Module;
use ion_model::record::JobRecord;
use ion_stores::registry::Registration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// A module that is served, with the definition of the plane. Another process may have registered a
/// different definition than the file that this process was started with.
#[derive(Debug)]
pub(super) struct ServedModule {
    pub(super) module: Arc<Module>,
    /// The registrations that say which events are for it.
    pub(super) registration: Registration,
    /// Notified when a job of the module waits in the ledger.
    pub(super) due: Notify,
    /// Jobs of the module that run on and have no holder.
    pub(super) left: Mutex<Vec<JobRecord>>,
    /// Cancelled when the module is not served any more: the dispatcher stops, or the module was
    /// changed or removed.
    pub(super) stopping: CancellationToken,
    /// Set when the module was removed.
    pub(super) removed: AtomicBool,
}

/// All served modules, by name.
#[derive(Debug, Default)]
pub(super) struct ServedModules(Mutex<HashMap<String, Arc<ServedModule>>>);

impl ServedModules {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<ServedModule>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, name: &str) -> Option<Arc<ServedModule>> {
        self.lock().get(name).cloned()
    }

    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.lock().keys().cloned().collect();
        names.sort();
        names
    }

    /// Notifies the module's task that a job waits in the ledger.
    pub(super) fn wake_module(&self, name: &str) {
        if let Some(served) = self.get(name) {
            served.due.notify_one();
        }
    }
}
