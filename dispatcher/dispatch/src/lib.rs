//! Turns messages of queues into jobs, within limits.
//!
//! # How it works
//! Each module has a task ([`serve`]) that receives its messages. The task looks for a free slot
//! before it takes a message, claims the job in the ledger ([`claims`]), and only then acknowledges
//! the message, so a message is never lost with its dispatcher. The same task takes jobs that wait
//! in the ledger ([`due`]): retries, released jobs and gathering jobs. Each job has a task that
//! runs it, renews its lease and writes how it ended ([`attempt`]). One more task does the
//! housekeeping ([`housekeeping`]): the outbox, expired leases, gathering. Another begins the runs
//! of sources ([`clock`]).
//!
//! What a module's task and the holder of a lease do next is decided by functions without I/O
//! (`serve::plan`, [`lease`]).
//!
//! # After a crash
//! No state is in memory only. Another dispatcher, or this one after a restart, finds the job's
//! record. A dispatcher on the same machine knows at once that the holder is dead, because the
//! holder's lock file is free.

pub mod attempt;
pub mod audit;
mod claims;
mod clock;
mod due;
mod gathers;
mod handover;
mod housekeeping;
mod lease;
mod modules;
mod presence;
pub mod queues;
mod running;
mod serve;
mod served;
pub mod single;
mod slots;
pub mod trial;
mod unclaimed;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use ion_fs::job::remove_attempt;
use ion_jobs::job::AttemptOutcome;
use ion_jobs::ledger::{Ledger, LedgerError};
use ion_jobs::metrics::DispatchMetrics;
use ion_jobs::pipeline::{AT_A_TIME_MAX, Module};
use ion_jobs::sources::{SourceError, Sources};
use ion_model::clock::{Millis, millis};
use ion_model::errors::error_chain;
use ion_model::id::JobId;
use ion_model::record::JobRecord;
use ion_plane::relay;
use ion_run::executor::{Executor, RunResult, StopReason};
use ion_stores::{DataPlane, StoreError};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span};

use self::attempt::{AttemptRunner, ClaimedJobs, RanAttempt, StopSender};
use self::modules::WantedModules;
pub use self::modules::{DeclaredSources, ModuleSelection};
use self::presence::Presence;
pub use self::presence::{ServedWatch, served_modules};
use self::running::RunningJobs;
use self::served::ServedModules;
use self::slots::JobSlot;

/// How many ends of a batch are followed up at the same time: their events are published then.
const ENDS_AT_ONCE: usize = 16;

/// The wait after a store failed, before the next try. The stores have their own deadlines.
const STORE_WAIT: Duration = Duration::from_secs(1);

/// The settings of a dispatcher.
#[derive(Clone, Debug)]
pub struct DispatchSettings {
    /// The folder of all state. It has the presence locks.
    pub home: PathBuf,
    /// The `PATH` in which programs without a slash are found.
    pub search_path: String,
    /// How long a job stays with a dispatcher that died on another host; a dispatcher on the same
    /// host is known to be dead at once. Default 60 s. A holder that cannot renew the lease gives
    /// the job up after two thirds of that time, so a document store that is unavailable for less
    /// kills no job. Clocks of other hosts are not used.
    pub lease: Duration,
    /// How many jobs of all modules may run at the same time. Default: twice the number of
    /// processors.
    pub slots: usize,
}

impl DispatchSettings {
    /// Returns the default settings.
    pub fn new(home: impl Into<PathBuf>, search_path: impl Into<String>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            home: home.into(),
            search_path: search_path.into(),
            lease: Duration::from_secs(60),
            slots: 2 * processors,
        }
    }
}

/// What a dispatcher reports to a person who watches it.
#[derive(Clone, Debug)]
pub enum DispatchNotice {
    /// An attempt has started.
    Started(JobRecord),
    /// An attempt has ended. The record says what follows.
    Ended(JobRecord),
    /// A module was registered, changed or removed while the dispatcher runs.
    Module {
        /// Its name.
        name: String,
        /// What the module does from now on, in words.
        now: &'static str,
    },
}

/// Why a dispatcher cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DispatchError {
    /// The modules cannot be registered, or jobs cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The stores failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A source cannot be declared.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// Sends notices to a person who watches, if there is one.
#[derive(Clone, Debug, Default)]
struct NoticeSender(Option<mpsc::Sender<DispatchNotice>>);

impl NoticeSender {
    /// Sends a notice. A receiver that does not keep up misses it, so that it cannot stop the work.
    fn send(&self, notice: DispatchNotice) {
        if let Some(notices) = &self.0 {
            let _ = notices.try_send(notice);
        }
    }
}

/// A dispatcher: it runs modules on the events of a plane.
pub struct Dispatcher {
    shared: Arc<DispatchState>,
    modules: ModuleSelection,
}

struct DispatchState {
    ledger: Ledger,
    sources: Sources,
    executor: Arc<dyn Executor>,
    attempts: AttemptRunner,
    settings: DispatchSettings,
    id: String,
    slots: Arc<Semaphore>,
    notices: NoticeSender,
    served: ServedModules,
    /// Notified when a job has ended: a gathering job may be ready.
    ended: Notify,
    /// Notified when a slot was given back.
    freed: Notify,
    running: RunningJobs,
    stopping: CancellationToken,
    metrics: Arc<DispatchMetrics>,
}

impl Dispatcher {
    /// Creates a dispatcher of these modules.
    pub fn new(
        plane: DataPlane,
        executor: Arc<dyn Executor>,
        modules: ModuleSelection,
        settings: DispatchSettings,
        notices: Option<mpsc::Sender<DispatchNotice>>,
    ) -> Self {
        let (ledger, notices) = (Ledger::new(plane), NoticeSender(notices));
        let stopping = CancellationToken::new();
        let (path, lease) = (&settings.search_path, settings.lease);
        let attempts = AttemptRunner::new(ledger.clone(), executor.clone(), path, lease)
            .for_dispatcher(notices.clone(), stopping.clone());
        let shared = DispatchState {
            sources: Sources::new(ledger.clone()),
            ledger,
            executor,
            attempts,
            id: presence::fresh_id(),
            slots: Arc::new(Semaphore::new(settings.slots.clamp(1, AT_A_TIME_MAX))),
            settings,
            notices,
            served: ServedModules::default(),
            ended: Notify::new(),
            freed: Notify::new(),
            running: RunningJobs::default(),
            stopping,
            metrics: Arc::default(),
        };
        Self { shared: Arc::new(shared), modules }
    }

    /// Returns its metrics, which can be read while it runs.
    pub fn metrics(&self) -> Arc<DispatchMetrics> {
        self.shared.metrics.clone()
    }

    /// Registers the modules and runs their jobs until `shutdown`. Sends `ready` when it serves
    /// every queue.
    ///
    /// # Guarantees
    /// When this returns, the dispatcher holds no running attempt any more. Each attempt that it
    /// stopped has ended, and its job is queued again. An attempt that outlives its dispatcher is
    /// handed over. If the stores are unavailable meanwhile, other dispatchers do both when the
    /// leases have expired.
    ///
    /// # Errors
    /// When the modules or their sources cannot be registered at the start.
    pub async fn run(
        self,
        shutdown: CancellationToken,
        ready: oneshot::Sender<()>,
    ) -> Result<(), DispatchError> {
        let Self { shared, modules } = self;
        let mut tasks = JoinSet::new();
        let wanted = match modules {
            ModuleSelection::These { modules, sources } => {
                for module in &modules {
                    if let Some(former) = shared.ledger.put_module(module).await? {
                        let (name, now) = (
                            module.name.clone(),
                            "was registered with another definition: this one replaces it",
                        );
                        tracing::info!(
                            module = name,
                            fields = ?module.differing_fields(&former),
                            "registered anew"
                        );
                        shared.notices.send(DispatchNotice::Module { name, now });
                    }
                }
                shared.declare_sources(&sources).await?;
                WantedModules::These(modules.into_iter().map(|module| module.name).collect())
            }
            ModuleSelection::Registered { only } if only.is_empty() => WantedModules::All,
            ModuleSelection::Registered { only } => WantedModules::These(only),
        };
        let mut served = JoinSet::new();
        for change in shared.update_served_modules(&wanted, &mut served).await? {
            // The modules that the dispatcher was started with need no notice.
            if matches!(wanted, WantedModules::All) {
                shared.notices.send(change);
            }
        }
        tasks.spawn(shared.clone().follow_modules(wanted, served));
        tasks.spawn(shared.clone().watch_queues());
        let presence = Presence::announce(
            &shared.ledger,
            &shared.settings.home,
            &shared.id,
            shared.served.names(),
        )
        .await?;
        for dead in presence.dead_neighbours() {
            for job in shared.ledger.jobs_held_by(&dead).await? {
                match shared.outlives_dispatcher(&job.module).await? {
                    true => shared.hand_over(&job).await,
                    false => shared.mark_lost(&job).await,
                }
                remove_attempt(&shared.settings.home, &job.id, job.attempt).await;
            }
            presence.remove_neighbour(&shared.ledger, &dead).await?;
        }
        tasks.spawn(shared.clone().run_housekeeping(presence));
        tasks.spawn(shared.clone().run_clock());
        let _ = ready.send(());
        shutdown.cancelled().await;
        shared.stopping.cancel();
        shared.running.stop_all(StopReason::Shutdown);
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a dispatcher task ended badly");
            }
        }
        presence::withdraw(&shared.ledger, &shared.settings.home, &shared.id).await;
        Ok(())
    }
}

impl DispatchState {
    /// Makes the sources of a pipeline file those that it declares.
    async fn declare_sources(&self, declared: &DeclaredSources) -> Result<(), SourceError> {
        let Some(pipeline) = &declared.pipeline else { return Ok(()) };
        for name in self.sources.declare(pipeline, &declared.sources).await? {
            tracing::info!(
                source = name,
                pipeline,
                "removed: the file does not declare it any more"
            );
        }
        Ok(())
    }

    fn lease(&self) -> Millis {
        millis(self.settings.lease)
    }

    /// Sleeps for this time, or until the dispatcher stops.
    async fn sleep_unless_stopped(&self, time: Duration) {
        let _ = tokio::time::timeout(time, self.stopping.cancelled()).await;
    }

    /// Runs attempts to their ends, in their slot.
    async fn run_jobs(self: Arc<Self>, claimed: ClaimedJobs, slot: JobSlot) {
        let module = claimed.module.clone();
        let ids: Vec<JobId> = claimed.jobs.iter().map(|claimed| claimed.job.id.clone()).collect();
        let stops: Vec<StopSender> = ids.iter().map(|_| watch::Sender::new(None)).collect();
        for (id, stop) in ids.iter().zip(&stops) {
            self.running.insert(id.clone(), stop.clone());
        }
        if self.stopping.is_cancelled() {
            for stop in &stops {
                stop.send_replace(Some(StopReason::Shutdown));
            }
        }
        let counted: Vec<_> = ids.iter().map(|_| self.metrics.count_start(&module.name)).collect();
        let ran = self.attempts.run(claimed, &stops).await;
        ids.iter().for_each(|id| self.running.remove(id));
        drop(counted);
        let (mut ended, mut spans) = (Vec::new(), Vec::new());
        for RanAttempt { job, result, span } in ran {
            match result {
                RunResult::Ended(outcome) => {
                    ended.push((job, outcome));
                    spans.push(span);
                }
                RunResult::Left => self.hand_over(&job).await,
            }
        }
        let span = spans.into_iter().next().unwrap_or_else(Span::none);
        self.end_attempts(&module, ended).instrument(span).await;
        drop(slot);
        self.freed.notify_waiters();
    }

    /// Writes how attempts of a module ended, and wakes the tasks that wait for it.
    async fn end_attempts(&self, module: &Module, ended: Vec<(JobRecord, AttemptOutcome)>) {
        for (_, outcome) in &ended {
            self.metrics.count_end(&module.name, outcome.end, outcome.usage);
        }
        let jobs: Vec<JobRecord> = ended.iter().map(|(job, _)| job.clone()).collect();
        let written = match self.attempts.write_ends(module, ended).await {
            Ok(written) => written,
            Err(error) => {
                let (error, job) = (error_chain(&error), jobs.first().map(|job| job.id.as_str()));
                tracing::warn!(job, error, jobs = jobs.len(), "the ends of jobs were not written");
                return;
            }
        };
        let follow = |(job, written): (JobRecord, Result<JobRecord, LedgerError>)| async move {
            match written {
                Ok(record) => self.follow_end(module, &job, record).await,
                Err(error) => {
                    let error = error_chain(&error);
                    tracing::warn!(job = %job.id, error, "a job's end was not written");
                }
            }
        };
        let ends = stream::iter(jobs.into_iter().zip(written));
        ends.for_each_concurrent(ENDS_AT_ONCE, follow).await;
    }

    /// Does what follows the end of an attempt once it is written.
    async fn follow_end(&self, module: &Module, job: &JobRecord, record: JobRecord) {
        if record.outbox
            && let Err(error) = relay::empty_outbox(self.ledger.plane(), &record.id).await
        {
            let error = error_chain(&error);
            tracing::warn!(
                job = %job.id,
                error,
                "the job's outbox is not published yet; a relay will do it"
            );
        }
        self.executor.clean_up(module, job).await;
        self.note_run_end(&record).await;
        self.ended.notify_one();
        self.notices.send(DispatchNotice::Ended(record));
    }
}

/// Logs a failure once for each time that a store is unavailable. `failing` is whether the last
/// call failed.
fn warn_once(outcome: Result<(), LedgerError>, failing: &mut bool, what: &str) {
    let failed = outcome.is_err();
    if let Err(error) = outcome
        && !*failing
    {
        tracing::warn!(error = error_chain(&error), "{what}; trying again");
    }
    *failing = failed;
}
