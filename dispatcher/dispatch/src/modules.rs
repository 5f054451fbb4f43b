//! The modules that a dispatcher serves: the given ones, or those of the plane as they are
//! registered, changed and removed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ion_jobs::ledger::{LedgerError, RegisteredModules};
use ion_jobs::pipeline::Module;
use ion_model::errors::error_chain;
use ion_model::source::SourceDefinition;
use ion_stores::registry::Registration;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::{DispatchNotice, DispatchState, warn_once};
use crate::queues::QueueWatch;
use crate::serve::ModuleTask;
use crate::served::ServedModule;

/// How often the plane's modules are read.
const LOOK: Duration = Duration::from_secs(2);

/// How often the queues, their arguments and their policies are inspected.
const QUEUES_LOOK: Duration = Duration::from_secs(30);

/// Which modules a dispatcher serves.
#[derive(Clone, Debug)]
pub enum ModuleSelection {
    /// These modules, which the dispatcher registers, with the sources that start them.
    These {
        /// The modules.
        modules: Vec<Module>,
        /// Their sources.
        sources: DeclaredSources,
    },
    /// The registered modules, including those that are registered later.
    Registered {
        /// Only the modules with these names; all if it is empty.
        only: Vec<String>,
    },
}

/// The sources that a pipeline file declares.
#[derive(Clone, Debug, Default)]
pub struct DeclaredSources {
    /// The file's path; none if there is no file, and nothing is declared.
    pub pipeline: Option<String>,
    /// The sources, by name.
    pub sources: BTreeMap<String, SourceDefinition>,
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

impl DispatchState {
    /// Begins to serve a module. It replaces the module that was served under the same name.
    pub(super) async fn serve_module(
        self: &Arc<Self>,
        module: Module,
        registration: Registration,
        tasks: &mut JoinSet<()>,
    ) -> Result<(), LedgerError> {
        let bus = &self.ledger.plane().bus;
        // The queue may have been removed while no dispatcher served it.
        bus.declare(&module.name, &module.subscribed_types(), &[]).await?;
        let ahead = module.concurrency.saturating_mul(module.jobs_at_once());
        let queue = bus.clone().subscribe(&module.name, ahead).await?;
        let served = Arc::new(ServedModule {
            module: Arc::new(module),
            registration,
            due: Notify::new(),
            left: Mutex::default(),
            stopping: self.stopping.child_token(),
            removed: AtomicBool::new(false),
        });
        let former = self.served.lock().insert(served.module.name.clone(), served.clone());
        if let Some(former) = former {
            former.stopping.cancel();
        }
        tasks.spawn(ModuleTask::new(self.clone(), served, queue).run());
        Ok(())
    }

    /// Serves the plane's modules as they are registered, changed and removed, until the dispatcher
    /// stops. The running jobs of a changed module end with its former definition.
    pub(super) async fn follow_modules(
        self: Arc<Self>,
        wanted: WantedModules,
        mut tasks: JoinSet<()>,
    ) {
        let mut unread = false;
        while !self.stopping.is_cancelled() {
            let read = self.update_served_modules(&wanted, &mut tasks).await;
            let read = match read {
                Ok(changes) => {
                    for change in changes {
                        self.notices.send(change);
                    }
                    Ok(())
                }
                Err(error) => Err(error),
            };
            warn_once(read, &mut unread, "the registered modules cannot be read");
            self.sleep_unless_stopped(LOOK).await;
            while tasks.try_join_next().is_some() {}
        }
        while tasks.join_next().await.is_some() {}
    }

    /// Removes the queue of a module that was removed. A subscription makes a removed queue again,
    /// so this happens after the dispatcher's own subscription has ended.
    pub(super) async fn remove_retired_queue(&self, served: &ServedModule) {
        if !served.removed.load(Ordering::Relaxed) {
            return;
        }
        let name = &served.module.name;
        let retired = async {
            // If the module is registered again at this moment, the messages that its queue loses
            // are sent again.
            match self.ledger.registered_modules().await?.module(name) {
                Some(_) => Ok(()),
                None => self.ledger.plane().bus.remove_queue(name).await,
            }
        };
        if let Err(error) = retired.await {
            tracing::warn!(
                module = name,
                error = error_chain(&error),
                "cannot remove the queue of a removed module"
            );
        }
    }

    /// Reports what others have changed about the queues, until the dispatcher stops.
    pub(super) async fn watch_queues(self: Arc<Self>) {
        let mut watch = QueueWatch::default();
        while !self.stopping.is_cancelled() {
            watch.report_changes(&*self.ledger.plane().bus, &self.served.names()).await;
            self.sleep_unless_stopped(QUEUES_LOOK).await;
        }
    }

    /// Serves the modules that are to be served now. Returns the changes.
    pub(super) async fn update_served_modules(
        self: &Arc<Self>,
        wanted: &WantedModules,
        tasks: &mut JoinSet<()>,
    ) -> Result<Vec<DispatchNotice>, LedgerError> {
        let (mut changes, mut failed) = (Vec::new(), Ok(()));
        let registered = self.ledger.registered_modules().await?;
        let RegisteredModules { modules, registry } = &*registered;
        let wanted = modules.iter().filter(|module| wanted.has(module));
        let wanted: BTreeMap<&str, &Module> =
            wanted.map(|module| (module.name.as_str(), module)).collect();
        let gone: Vec<Arc<ServedModule>> = {
            let mut served = self.served.lock();
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
            // One queue that cannot be declared must not prevent the dispatcher from serving the
            // others.
            if let Err(error) = self.serve_module(module.clone(), registration, tasks).await {
                failed = Err(error);
                continue;
            }
            let now = if serves.is_some() { "has changed" } else { "is served" };
            changes.push(DispatchNotice::Module { name: name.to_owned(), now });
        }
        failed.map(|()| changes)
    }
}
