//! The modules that a dispatcher serves: those it was given, or the plane's as they come, change
//! and go.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ion_jobs::ledger::{LedgerError, RegisteredModules};
use ion_jobs::pipeline::Module;
use ion_model::errors::chain;
use ion_model::record::JobRecord;
use ion_stores::registry::Registration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{DispatchNotice, DispatchState, warn_once};
use crate::queues::QueueWatch;

/// How often the plane's modules are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// How often the queues, their arguments and policies are looked at.
const QUEUES_LOOK: Duration = Duration::from_secs(30);

/// Which modules a dispatcher serves.
#[derive(Clone, Debug)]
pub enum ModuleSelection {
    /// These, which it registers.
    These(Vec<Module>),
    /// The registered ones, also those to come.
    Registered {
        /// Of them only those of these names; empty: all.
        only: Vec<String>,
    },
}

/// Which modules of the plane a dispatcher serves.
#[derive(Clone, Debug)]
pub(super) enum WantedModules {
    All,
    These(Vec<String>),
}

impl WantedModules {
    fn has(&self, module: &Module) -> bool {
        match self {
            Self::All => true,
            Self::These(names) => names.contains(&module.name),
        }
    }
}

/// A module that is served, as the plane has it: whatever the file says that this process was
/// started with, another may have registered it otherwise since.
#[derive(Debug)]
pub(super) struct ServedModule {
    pub(super) module: Arc<Module>,
    /// Which events are for it.
    pub(super) registration: Registration,
    /// Rung when a job of it waits in the ledger.
    pub(super) due: Notify,
    /// Jobs of it that go on and that nobody holds any more.
    pub(super) left: Mutex<Vec<JobRecord>>,
    /// It is not served any more: the dispatcher stops, or the module has changed or is gone.
    pub(super) stopping: CancellationToken,
    /// It is gone.
    pub(super) removed: AtomicBool,
}

/// All of them, by name.
#[derive(Debug, Default)]
pub(super) struct ServedModules(Mutex<HashMap<String, Arc<ServedModule>>>);

impl ServedModules {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Arc<ServedModule>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, name: &str) -> Option<Arc<ServedModule>> {
        self.all().get(name).cloned()
    }

    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.all().keys().cloned().collect();
        names.sort();
        names
    }

    /// A job of the module waits in the ledger.
    pub(super) fn ring(&self, name: &str) {
        if let Some(served) = self.get(name) {
            served.due.notify_one();
        }
    }
}

impl DispatchState {
    /// Begins to serve a module; in place of what was served under its name.
    pub(super) async fn begin(
        self: &Arc<Self>,
        module: Module,
        registration: Registration,
        tasks: &mut JoinSet<()>,
    ) -> Result<(), LedgerError> {
        let bus = &self.ledger.plane().bus;
        // Somebody may have removed the queue while nobody served it.
        bus.declare(&module.name, &module.subscribes(), &[]).await?;
        let queue = bus.clone().subscribe(&module.name, module.concurrency).await?;
        let served = Arc::new(ServedModule {
            module: Arc::new(module),
            registration,
            due: Notify::new(),
            left: Mutex::default(),
            stopping: self.stopping.child_token(),
            removed: AtomicBool::new(false),
        });
        let former = self.served.all().insert(served.module.name.clone(), served.clone());
        if let Some(former) = former {
            former.stopping.cancel();
        }
        tasks.spawn(self.clone().serve(served, queue));
        Ok(())
    }

    /// Serves the plane's modules as they come, change and go, until the dispatcher stops. What
    /// runs of a module that has changed ends as it began.
    pub(super) async fn follow_modules(
        self: Arc<Self>,
        wanted: WantedModules,
        mut tasks: JoinSet<()>,
    ) {
        let mut unread = false;
        while !self.stopping.is_cancelled() {
            let read = self.look_at_modules(&wanted, &mut tasks).await;
            let read = match read {
                Ok(changes) => {
                    for change in changes {
                        self.notice(change).await;
                    }
                    Ok(())
                }
                Err(error) => Err(error),
            };
            warn_once(read, &mut unread, "the registered modules cannot be read");
            self.rest(LOOK).await;
            while tasks.try_join_next().is_some() {}
        }
        while tasks.join_next().await.is_some() {}
    }

    /// Removes the queue of a module that is gone. A subscription makes a queue anew that somebody
    /// removes, so this is done after the dispatcher's own has ended.
    pub(super) async fn retire_if_removed(&self, served: &ServedModule) {
        if !served.removed.load(Ordering::Relaxed) {
            return;
        }
        let name = &served.module.name;
        let retired = async {
            // Should it be registered again at this very moment, what its queue loses is sent
            // again.
            match self.ledger.registered().await?.module(name) {
                Some(_) => Ok(()),
                None => self.ledger.plane().bus.retire(name).await,
            }
        };
        if let Err(error) = retired.await {
            tracing::warn!(
                module = name,
                error = chain(&error),
                "the queue of a module that is gone was not removed"
            );
        }
    }

    /// Tells of what others have changed about the queues, until the dispatcher stops.
    pub(super) async fn watch_queues(self: Arc<Self>) {
        let mut watch = QueueWatch::default();
        while !self.stopping.is_cancelled() {
            watch.look(&*self.ledger.plane().bus, &self.served.names()).await;
            self.rest(QUEUES_LOOK).await;
        }
    }

    /// Serves what is to be served now; gives what has changed.
    pub(super) async fn look_at_modules(
        self: &Arc<Self>,
        wanted: &WantedModules,
        tasks: &mut JoinSet<()>,
    ) -> Result<Vec<DispatchNotice>, LedgerError> {
        let (mut changes, mut failed) = (Vec::new(), Ok(()));
        let registered = self.ledger.registered().await?;
        let RegisteredModules { modules, registry } = &*registered;
        let wanted = modules.iter().filter(|module| wanted.has(module));
        let wanted: BTreeMap<&str, &Module> =
            wanted.map(|module| (module.name.as_str(), module)).collect();
        let gone: Vec<Arc<ServedModule>> = {
            let mut served = self.served.all();
            let names: Vec<String> =
                served.keys().filter(|name| !wanted.contains_key(name.as_str())).cloned().collect();
            names.iter().filter_map(|name| served.remove(name)).collect()
        };
        for served in gone {
            served.removed.store(true, Ordering::Relaxed);
            served.stopping.cancel();
            let name = served.module.name.clone();
            changes.push(DispatchNotice::Module { name, now: "is not registered any more" });
        }
        for (name, module) in wanted {
            let serves = self.served.get(name);
            let Some(registration) = registry.registration(name).cloned() else { continue };
            let same = |served: &Arc<ServedModule>| {
                *served.module == *module && served.registration == registration
            };
            if serves.as_ref().is_some_and(same) {
                continue;
            }
            // One queue that cannot be declared must not keep the dispatcher from all others.
            if let Err(error) = self.begin(module.clone(), registration, tasks).await {
                failed = Err(error);
                continue;
            }
            let now = if serves.is_some() { "has changed" } else { "is served" };
            changes.push(DispatchNotice::Module { name: name.to_owned(), now });
        }
        failed.map(|()| changes)
    }
}
