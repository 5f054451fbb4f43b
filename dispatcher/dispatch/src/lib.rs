//! Turns messages of queues into jobs, within limits.
//!
//! # How it works
//! Each module has a task that receives its messages. The task looks for a free slot before it
//! takes a message, claims the job in the ledger, and only then acknowledges the message, so a
//! message is never lost with its dispatcher. The same task takes jobs that wait in the ledger:
//! retries, released jobs and gathering jobs. Each job has a task that runs it, renews its lease
//! and writes how it ended. One more task does the housekeeping: the outbox, expired leases,
//! gathering.
//!
//! # After a crash
//! No state is in memory only. Another dispatcher, or this one after a restart, finds the job's
//! record. A dispatcher on the same machine knows at once that the holder is dead, because the
//! holder's lock file is free.

pub mod audit;
mod claims;
mod gathers;
mod house;
mod left;
mod modules;
mod presence;
pub mod queues;
mod unclaimed;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ion_fs::job::remove_attempt;
use ion_jobs::job::{AttemptOutcome, EndedAttempt, Transition};
use ion_jobs::ledger::{Ledger, LedgerError};
use ion_jobs::metrics::DispatchMetrics;
use ion_jobs::pipeline::{AT_A_TIME_MAX, Module};
use ion_model::clock::{Millis, millis};
use ion_model::errors::chain;
use ion_model::event::Event;
use ion_model::id::JobId;
use ion_model::record::{AttemptEnd, JobRecord, JobState};
use ion_plane::relay;
use ion_run::executor::{AttemptStart, Executor, RunResult, StopReason, tell};
use ion_stores::{DataPlane, Delivery, Subscription};
use ion_system::failpoint;
use ion_system::patience::StateAges;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use self::claims::JobMaterials;
use self::house::KEEP;
pub use self::modules::ModuleSelection;
use self::modules::{ServedModule, ServedModules, WantedModules};
use self::presence::Presence;
pub use self::presence::{ServedWatch, served_modules};

/// How often a module's task looks for jobs that wait in the ledger, unless it is notified of one.
const LOOK: Duration = Duration::from_millis(500);

/// The wait after a store failed, before the next try. The stores have their own deadlines.
const STORE_WAIT: Duration = Duration::from_secs(1);

/// How often the claim of a message's job is tried before the message goes back to its queue. With
/// [`STORE_WAIT`] between them, all tries take far less than the half hour after which a broker
/// takes a message back.
const CLAIM_TRIES: u32 = 600;

/// How often the documents that a job begins with are read before the job goes back to its queue.
const MATERIAL_TRIES: u32 = 20;

/// How long all slots may be taken before the messages that the bus has sent ahead are queued in
/// the ledger.
const FULL: Duration = Duration::from_secs(1);

/// How often the write that ends a job is tried. With [`STORE_WAIT`] between them, the tries
/// outlast a store's restart. After that the lease expires, and another attempt finds the commits
/// of this one.
const END_TRIES: u32 = 60;

/// The settings of a dispatcher.
#[derive(Clone, Debug)]
pub struct DispatchSettings {
    /// The folder of all state. It has the presence locks.
    pub home: PathBuf,
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
    pub fn new(home: impl Into<PathBuf>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { home: home.into(), lease: Duration::from_secs(60), slots: 2 * processors }
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

/// A dispatcher: it runs modules on the events of a plane.
pub struct Dispatcher {
    shared: Arc<DispatchState>,
    modules: ModuleSelection,
}

struct DispatchState {
    ledger: Ledger,
    executor: Arc<dyn Executor>,
    settings: DispatchSettings,
    id: String,
    slots: Arc<Semaphore>,
    notices: Option<mpsc::Sender<DispatchNotice>>,
    served: ServedModules,
    /// Notified when a job has ended: a gathering job may be ready.
    ended: Notify,
    /// Notified when a slot was given back.
    freed: Notify,
    running: Mutex<HashMap<JobId, watch::Sender<Option<StopReason>>>>,
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
        let shared = DispatchState {
            ledger: Ledger::new(plane),
            executor,
            id: presence::fresh_id(),
            slots: Arc::new(Semaphore::new(settings.slots.clamp(1, AT_A_TIME_MAX))),
            settings,
            notices,
            served: ServedModules::default(),
            ended: Notify::new(),
            freed: Notify::new(),
            running: Mutex::default(),
            stopping: CancellationToken::new(),
            metrics: Arc::default(),
        };
        Self { shared: Arc::new(shared), modules }
    }

    /// Returns its metrics, which can be read while it runs.
    pub fn metrics(&self) -> Arc<DispatchMetrics> {
        self.shared.metrics.clone()
    }

    /// Registers the modules and runs their jobs until `shutdown`. It calls `ready` when it serves
    /// every queue.
    ///
    /// # Guarantees
    /// When this returns, none of its jobs runs. The jobs that ran are queued again.
    ///
    /// # Errors
    /// When the modules cannot be registered at the start.
    pub async fn run(
        self,
        shutdown: CancellationToken,
        ready: oneshot::Sender<()>,
    ) -> Result<(), LedgerError> {
        let Self { shared, modules } = self;
        let mut tasks = JoinSet::new();
        let wanted = match modules {
            ModuleSelection::These(modules) => {
                for module in &modules {
                    if let Some(former) = shared.ledger.put_module(module).await? {
                        let (name, now) = (
                            module.name.clone(),
                            "was registered otherwise: it is served as said here",
                        );
                        tracing::info!(module = name, fields = ?module.differs_in(&former), "registered \
                                                                                             anew");
                        shared.notice(DispatchNotice::Module { name, now }).await;
                    }
                }
                WantedModules::These(modules.into_iter().map(|module| module.name).collect())
            }
            ModuleSelection::Registered { only } if only.is_empty() => WantedModules::All,
            ModuleSelection::Registered { only } => WantedModules::These(only),
        };
        let mut served = JoinSet::new();
        for change in shared.look_at_modules(&wanted, &mut served).await? {
            // The modules that the dispatcher was started with need no notice.
            if matches!(wanted, WantedModules::All) {
                shared.notice(change).await;
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
            for job in shared.ledger.held_by(&dead).await? {
                match shared.outlives(&job.module).await? {
                    true => shared.leave(&job).await,
                    false => shared.lose(&job).await,
                }
                remove_attempt(&shared.settings.home, &job.id, job.attempt).await;
            }
            presence.forget(&shared.ledger, &dead).await?;
        }
        tasks.spawn(shared.clone().keep_house(presence));
        let _ = ready.send(());
        shutdown.cancelled().await;
        shared.stopping.cancel();
        shared.stop_all(StopReason::Shutdown);
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a dispatcher task ended badly");
            }
        }
        presence::withdraw(&shared.ledger, &shared.settings.home, &shared.id).await;
        Ok(())
    }
}

/// The right to run one job: a slot of its module and a slot of the dispatcher.
type JobSlot = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// A job to run, with its event.
type JobToRun = (JobRecord, Event);

/// A job that was taken from the ledger.
struct TakenJob {
    job: JobRecord,
    /// Whether its attempt runs already, since its former dispatcher has handed it over.
    adopted: bool,
    slot: JobSlot,
}

/// A message whose job was claimed.
struct ClaimedMessage {
    tag: u64,
    /// The job to run now and its slot. None if another dispatcher runs it, or if it runs later. An
    /// error if it could not be claimed.
    job: Result<Option<(JobToRun, JobSlot)>, LedgerError>,
}

/// What a look into the ledger found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DueLook {
    /// There is no more job that could run now.
    Nothing,
    /// All slots are taken, and more jobs may wait.
    Behind,
    /// The dispatcher is stopping.
    Stopping,
}

impl DispatchState {
    fn lease(&self) -> Millis {
        millis(self.settings.lease)
    }

    fn runs(&self, job: &JobId) -> bool {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).contains_key(job)
    }

    fn stop_all(&self, stop: StopReason) {
        for running in self.running.lock().unwrap_or_else(PoisonError::into_inner).values() {
            running.send_replace(Some(stop));
        }
    }

    async fn notice(&self, notice: DispatchNotice) {
        if let Some(notices) = &self.notices {
            // A receiver that does not keep up must not stop the work.
            let _ = notices.try_send(notice);
        }
    }

    /// Returns a slot for one job of a module, if both kinds are free.
    fn slot(&self, of_module: &Arc<Semaphore>) -> Option<JobSlot> {
        Some((
            of_module.clone().try_acquire_owned().ok()?,
            self.slots.clone().try_acquire_owned().ok()?,
        ))
    }

    /// Serves one module: its queue, and its jobs in the ledger.
    async fn serve(self: Arc<Self>, served: Arc<ServedModule>, mut queue: Box<dyn Subscription>) {
        let module = served.module.clone();
        let of_module = Arc::new(Semaphore::new(module.concurrency.clamp(1, AT_A_TIME_MAX)));
        let (mut claims, mut jobs) = (JoinSet::new(), JoinSet::new());
        let mut full_since: Option<Instant> = None;
        let mut unheard = false;
        let mut seen = StateAges::default();
        // The ledger is not read for each message, but when a job may wait there that could run.
        let (mut look_at, mut behind) = (Instant::now(), false);
        loop {
            let freed = self.freed.notified();
            let place = of_module.available_permits() > 0 && self.slots.available_permits() > 0;
            if look_at <= Instant::now() || (behind && place) {
                look_at = Instant::now() + LOOK;
                match self.run_due(&served, &of_module, &mut seen, &mut jobs).await {
                    DueLook::Stopping => break,
                    due => behind = due == DueLook::Behind,
                }
            }
            // Without a free slot no message is taken: another dispatcher may have a slot for its
            // job.
            let place = of_module.available_permits() > 0 && self.slots.available_permits() > 0;
            full_since = if place { None } else { full_since.or_else(|| Some(Instant::now())) };
            if full_since.is_some_and(|since| since.elapsed() >= FULL)
                && !self.pause(&served, &mut *queue, &mut jobs).await
            {
                break;
            }
            tokio::select! {
                biased;
                () = served.stopping.cancelled() => break,
                Some(claimed) = claims.join_next() => {
                    if !self.settle(&module, &mut *queue, claimed, &mut jobs).await {
                        break;
                    }
                }
                delivery = queue.next(), if place => match delivery {
                    Ok(delivery) => {
                        unheard = false;
                        // Another module may have taken the last slot meanwhile.
                        let slot = self.slot(&of_module);
                        claims.spawn(self.clone().claim_patiently(served.clone(), delivery, slot));
                    }
                    Err(error) => {
                        // The warning is logged once for each time that the queue is unavailable.
                        if !std::mem::replace(&mut unheard, true) {
                            tracing::warn!(
                                module = module.name,
                                error = chain(&error),
                                "the queue cannot be read; trying again"
                            );
                        }
                        self.rest(STORE_WAIT).await;
                    }
                },
                // Only a task that waits for a slot listens. The others would look into their
                // queues at each end of a job.
                () = freed, if !place || behind => {}
                () = served.due.notified() => look_at = Instant::now(),
                Some(_) = jobs.join_next() => {}
                () = tokio::time::sleep_until(look_at.into()) => {}
            }
        }
        while let Some(claimed) = claims.join_next().await {
            self.settle(&module, &mut *queue, claimed, &mut jobs).await;
        }
        // The messages that the bus has sent ahead are queued in the ledger. Returning them would
        // count as a delivery.
        self.pause(&served, &mut *queue, &mut jobs).await;
        drop(queue);
        self.retire_if_removed(&served).await;
        while jobs.join_next().await.is_some() {}
    }

    /// Sleeps for this time, or until the dispatcher stops.
    async fn rest(&self, time: Duration) {
        let _ = tokio::time::timeout(time, self.stopping.cancelled()).await;
    }

    /// Queues the messages that the bus has sent ahead in the ledger, because all slots have been
    /// taken for a while. The messages must not stay here unacknowledged for as long as a job may
    /// run; in the ledger any dispatcher with a free slot finds their jobs. Returns false when the
    /// dispatcher stops.
    async fn pause(
        self: &Arc<Self>,
        served: &Arc<ServedModule>,
        queue: &mut dyn Subscription,
        jobs: &mut JoinSet<()>,
    ) -> bool {
        let module = &served.module;
        match queue.pause().await {
            Ok(ahead) => {
                for delivery in ahead {
                    let claimed =
                        self.clone().claim_patiently(served.clone(), delivery, None).await;
                    if !self.settle(module, queue, Ok(claimed), jobs).await {
                        return false;
                    }
                }
            }
            Err(error) => {
                tracing::warn!(
                    module = module.name,
                    error = chain(&error),
                    "the queue cannot be paused"
                );
            }
        }
        true
    }

    /// Claims the job of a message: to run it here if there is a slot, or to queue it. It waits for
    /// a store that is unavailable, because a broker counts each return of a message and gives the
    /// message up in the end.
    async fn claim_patiently(
        self: Arc<Self>,
        served: Arc<ServedModule>,
        delivery: Delivery,
        slot: Option<JobSlot>,
    ) -> ClaimedMessage {
        let module = &served.module;
        let tag = delivery.tag;
        let mut tries = 0;
        loop {
            match self.claim(&served, &delivery, slot.is_some(), tries > 0).await {
                Ok(job) => return ClaimedMessage { tag, job: Ok(job.zip(slot)) },
                Err(error) if tries < CLAIM_TRIES && !self.stopping.is_cancelled() => {
                    tries += 1;
                    tracing::warn!(
                        module = module.name,
                        error = chain(&error),
                        "a job could not be claimed yet"
                    );
                    self.rest(STORE_WAIT).await;
                }
                Err(error) => return ClaimedMessage { tag, job: Err(error) },
            }
        }
    }

    /// Acknowledges a message whose job was claimed, and runs the job if this dispatcher holds it.
    /// Returns false when the dispatcher stops before the message was settled.
    async fn settle(
        self: &Arc<Self>,
        module: &Arc<Module>,
        queue: &mut dyn Subscription,
        claimed: Result<ClaimedMessage, JoinError>,
        jobs: &mut JoinSet<()>,
    ) -> bool {
        let ClaimedMessage { tag, job } = match claimed {
            Ok(claimed) => claimed,
            Err(error) => {
                tracing::error!(%error, "a claim ended badly; its message comes again");
                return true;
            }
        };
        let job = match job {
            Ok(job) => job,
            Err(error) => {
                tracing::warn!(
                    module = module.name,
                    error = chain(&error),
                    "a job could not be claimed; its message goes back"
                );
                let _ = queue.give_back(tag).await;
                return !self.stopping.is_cancelled();
            }
        };
        // The job is in the ledger now, so the message is not needed any more.
        failpoint::reach("claim.settled");
        if let Some(((job, event), slot)) = job {
            jobs.spawn(self.clone().run(module.clone(), job, event, None, slot));
        }
        if let Err(error) = queue.acknowledge(tag).await {
            tracing::warn!(
                error = chain(&error),
                "a message could not be acknowledged; it will come again and find its job there"
            );
        }
        true
    }

    /// Starts jobs that wait in the ledger while there are free slots.
    async fn run_due(
        self: &Arc<Self>,
        served: &ServedModule,
        of_module: &Arc<Semaphore>,
        seen: &mut StateAges<i64>,
        jobs: &mut JoinSet<()>,
    ) -> DueLook {
        let module = &served.module;
        loop {
            if served.stopping.is_cancelled() {
                return DueLook::Stopping;
            }
            let TakenJob { job, adopted, slot } = match self.take_due(served, of_module, seen).await
            {
                Ok(taken) => taken,
                Err(due) => return due,
            };
            let mut tries = 0;
            let materials = loop {
                match self.materials(&job, module).await {
                    // An unavailable store is not a failure of the module.
                    Err(LedgerError::Store(error))
                        if tries < MATERIAL_TRIES && !self.stopping.is_cancelled() =>
                    {
                        tries += 1;
                        tracing::debug!(job = %job.id, error = chain(&error), "its event cannot be \
                                                                               read yet");
                        self.rest(STORE_WAIT).await;
                    }
                    outcome => break outcome,
                }
            };
            match materials {
                Ok(JobMaterials::Ready(event, None)) => {
                    jobs.spawn(self.clone().run(module.clone(), job, *event, None, slot));
                }
                Ok(JobMaterials::Ready(event, Some((gathered, without)))) => {
                    let job = self.note_without(job, without).await;
                    jobs.spawn(self.clone().run(module.clone(), job, *event, Some(gathered), slot));
                }
                // The attempt that runs goes on as it began. If the job were put back, another
                // attempt would get the same number, find the pod of this attempt with what that
                // has gathered, and take it for its own.
                Ok(JobMaterials::WaitsAgain) if adopted => self.leave(&job).await,
                Ok(JobMaterials::WaitsAgain) => {
                    if let Err(error) = self.ledger.advance(&job, &Transition::WaitsAgain).await {
                        tracing::warn!(job = %job.id, error = chain(&error), "that it waits again \
                                                                              was not written");
                    }
                }
                Ok(JobMaterials::Missing(reason)) => {
                    self.end(&job, module, AttemptOutcome::failed(reason)).await
                }
                Err(error) if adopted => {
                    tracing::warn!(job = %job.id, error = chain(&error), "an adopted job's event \
                                                                          cannot be read; it goes on");
                    self.leave(&job).await;
                    return DueLook::Nothing;
                }
                Err(error) => {
                    let released = AttemptOutcome {
                        end: AttemptEnd::Released,
                        ..AttemptOutcome::failed(chain(&error))
                    };
                    self.end(&job, module, released).await;
                    return DueLook::Nothing;
                }
            }
        }
    }

    /// Takes a slot and one job of a module: one that was handed over, else one that is due.
    async fn take_due(
        &self,
        served: &ServedModule,
        of_module: &Arc<Semaphore>,
        seen: &mut StateAges<i64>,
    ) -> Result<TakenJob, DueLook> {
        let module = &served.module.name;
        let unreadable = |error: &LedgerError| {
            tracing::debug!(module, error = chain(error), "the ledger cannot be read");
            DueLook::Nothing
        };
        // The look itself takes no slot, so modules that have nothing to run take none from the
        // others.
        while !served.left.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            let slot = self.slot(of_module).ok_or(DueLook::Behind)?;
            if let Some(job) = self.adopt(served).await {
                return Ok(TakenJob { job, adopted: true, slot });
            }
        }
        let due = self.ledger.due(module, seen).await.map_err(|error| unreadable(&error.into()))?;
        if due.is_empty() {
            return Err(DueLook::Nothing);
        }
        let slot = self.slot(of_module).ok_or(DueLook::Behind)?;
        let taken = self.ledger.take(&due, &self.id, self.lease()).await;
        let job = taken.map_err(|error| unreadable(&error))?.ok_or(DueLook::Nothing)?;
        self.metrics.taken();
        Ok(TakenJob { job, adopted: false, slot })
    }

    /// Runs one attempt to its end.
    async fn run(
        self: Arc<Self>,
        module: Arc<Module>,
        job: JobRecord,
        event: Event,
        gathered: Option<Vec<Event>>,
        slot: JobSlot,
    ) {
        let (stop, stopped) = watch::channel(None);
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(job.id.clone(), stop.clone());
        if self.stopping.is_cancelled() {
            stop.send_replace(Some(StopReason::Shutdown));
        }
        let (running, runs) = oneshot::channel();
        let start =
            AttemptStart { job: job.clone(), module: (*module).clone(), event, gathered, running };
        let (span, counted) = (start.span(), self.metrics.runs(&module.name));
        let work = self.executor.run(start, stopped).instrument(span.clone());
        let ended = tokio::select! {
            ended = work => ended,
            never = self.hold(&job, runs, &stop) => match never {},
        };
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&job.id);
        drop(counted);
        match ended {
            RunResult::Ended(ended) => {
                tell(&ended, &span);
                self.end(&job, &module, ended).instrument(span).await;
            }
            RunResult::Left => self.leave(&job).await,
        }
        drop(slot);
        self.freed.notify_waiters();
    }

    /// Keeps the record of a running job up to date: marks it as running, renews its lease, and
    /// stops the attempt when the job is cancelled. Never returns.
    async fn hold(
        &self,
        job: &JobRecord,
        mut runs: oneshot::Receiver<()>,
        stop: &watch::Sender<Option<StopReason>>,
    ) -> std::convert::Infallible {
        let (mut told, mut said) = (false, job.state == JobState::Running);
        let mut every = tokio::time::interval(KEEP.min(self.settings.lease / 3));
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                biased;
                started = &mut runs, if !told => {
                    told = true;
                    // The sender was dropped: the process never ran.
                    said |= started.is_err();
                    said = said || self.say_it_runs(job).await;
                }
                _ = every.tick() => {
                    if told && !said {
                        said = self.say_it_runs(job).await;
                    }
                    let due = renewed.elapsed() >= self.settings.lease / 3;
                    // The lease counts from before the write, because others may see the write
                    // before its answer arrives.
                    let asked = Instant::now();
                    let seen = async {
                        match due {
                            true => self.ledger.advance(job, &Transition::Renewed).await,
                            false => self.ledger.get(&job.id).await,
                        }
                    };
                    // A store that does not answer must not prevent this dispatcher from giving the
                    // job up in time.
                    let Ok(seen) = tokio::time::timeout(self.patience(renewed), seen).await else {
                        tracing::warn!(job = %job.id, "the lease could not be renewed: the store does not answer");
                        stop.send_replace(Some(StopReason::LostLease));
                        continue;
                    };
                    match seen {
                        Ok(record) if record.attempt != job.attempt || record.holder != job.holder => {
                            stop.send_replace(Some(StopReason::LostLease));
                        }
                        Ok(record) => {
                            if due {
                                renewed = asked;
                                failpoint::reach("lease.renewed");
                            }
                            if record.cancel {
                                stop.send_replace(Some(StopReason::Cancel));
                            }
                        }
                        Err(LedgerError::Store(error)) => {
                            tracing::warn!(job = %job.id, error = chain(&error), "the lease could \
                                                                                  not be renewed");
                            // This happens by the own clock, well before others may take the job.
                            if renewed.elapsed() > self.settings.lease * 2 / 3 {
                                stop.send_replace(Some(StopReason::LostLease));
                            }
                        }
                        Err(_) => {
                            stop.send_replace(Some(StopReason::LostLease));
                        }
                    }
                }
            }
        }
    }

    /// Returns how long the store may take to answer a renewal if the last one was at `renewed`: until
    /// three quarters of the lease after it, which is before others may take the job. The store has
    /// a short time in any case, since perhaps nobody has taken the job.
    fn patience(&self, renewed: Instant) -> Duration {
        let lease = self.settings.lease;
        (lease * 3 / 4).saturating_sub(renewed.elapsed()).max(lease / 12)
    }

    /// Writes that the attempt runs; commits of a pod count only after that. Returns whether it was
    /// written.
    async fn say_it_runs(&self, job: &JobRecord) -> bool {
        match self.ledger.advance(job, &Transition::Running).await {
            Ok(record) => self.notice(DispatchNotice::Started(record)).await,
            Err(LedgerError::Store(error)) => {
                tracing::warn!(job = %job.id, error = chain(&error), "that a job runs could not be \
                                                                      written yet");
                return false;
            }
            Err(_) => {}
        }
        true
    }

    /// Writes how an attempt ended, and wakes the tasks that wait for it.
    async fn end(&self, job: &JobRecord, module: &Module, ended: AttemptOutcome) {
        self.metrics.ended(&module.name, ended.end);
        let (retries, jitter) = (module.retries, jitter(job));
        let happening = Transition::Ended(EndedAttempt { outcome: ended, retries, jitter });
        let mut tries = 0;
        let record = loop {
            match self.ledger.advance(job, &happening).await {
                Ok(record) => break record,
                Err(LedgerError::Store(error))
                    if tries < END_TRIES && !self.stopping.is_cancelled() =>
                {
                    tries += 1;
                    tracing::warn!(job = %job.id, error = chain(&error), "a job's end could not be \
                                                                          written yet");
                    tokio::time::sleep(STORE_WAIT).await;
                }
                Err(error) => {
                    tracing::warn!(job = %job.id, error = chain(&error), "a job's end was not \
                                                                          written");
                    return;
                }
            }
        };
        if record.outbox
            && let Err(error) = relay::promote(self.ledger.plane(), &record.id).await
        {
            tracing::warn!(job = %job.id, error = chain(&error), "the bus is not told of its end \
                                                                  yet; the relay will");
        }
        self.executor.settled(module, job).await;
        self.ended.notify_one();
        self.notice(DispatchNotice::Ended(record)).await;
    }
}

/// Logs a failure once for each time that a store is unavailable. `failing` is whether the last
/// call failed.
fn warn_once(outcome: Result<(), LedgerError>, failing: &mut bool, what: &str) {
    let failed = outcome.is_err();
    if let Err(error) = outcome
        && !*failing
    {
        tracing::warn!(error = chain(&error), "{what}; trying again");
    }
    *failing = failed;
}

/// Spreads retries by the job's id. It is not random, so a test sees the same wait each time.
fn jitter(job: &JobRecord) -> f64 {
    let sum: u32 = job.id.as_str().bytes().map(u32::from).sum();
    f64::from(sum % 256) / 256.0
}
