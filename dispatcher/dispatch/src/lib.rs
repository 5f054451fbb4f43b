//! Queues to jobs, within limits.
//!
//! # How it works
//! One task a module receives: it holds a free slot *before* it takes a message, claims the job in
//! the ledger, and only then acknowledges, so that a message is never lost with its dispatcher. The
//! same task takes jobs that wait in the ledger (retries, released, gathered ones). Each job has a
//! task that runs it, renews its lease and writes how it ended. One more task keeps house: the
//! outbox, expired leases, gathering.
//!
//! # After a crash
//! Nothing is in memory only. Another dispatcher, or this one started again, finds the job's
//! record; one on the same machine knows at once that its holder is dead, because the holder's lock
//! file is free.

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

/// How often a module looks into the ledger for jobs that wait there, unless it is told of one.
const LOOK: Duration = Duration::from_millis(500);

/// The wait after a store failed, before the same is tried again. The stores have deadlines of
/// their own.
const STORE_WAIT: Duration = Duration::from_secs(1);

/// Tries to claim a message's job before the message goes back. With [`STORE_WAIT`] between them
/// they stay far below the half hour after which brokers take a message back by themselves.
const CLAIM_TRIES: u32 = 600;

/// Tries to read what a job begins with, before it goes back to its queue.
const MATERIAL_TRIES: u32 = 20;

/// How long all places may be taken before what the bus has sent ahead is queued in the ledger.
const FULL: Duration = Duration::from_secs(1);

/// Tries of a write that ends a job. With [`STORE_WAIT`] between them they outlast a store's
/// restart; after that the lease runs out and another attempt finds its commits there.
const END_TRIES: u32 = 60;

/// How a dispatcher behaves.
#[derive(Clone, Debug)]
pub struct DispatchSettings {
    /// The folder of all state; presence locks lie there.
    pub home: PathBuf,
    /// How long a job is a dead dispatcher's on another host (one on the same host is known to be
    /// dead at once). Default 60 s: its holder gives it up after two thirds of that, and a document
    /// store that is away for a shorter time kills no job. No clock of another host is asked.
    pub lease: Duration,
    /// Jobs at a time of all modules together. Default: twice the processors.
    pub slots: usize,
}

impl DispatchSettings {
    /// The defaults.
    pub fn new(home: impl Into<PathBuf>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { home: home.into(), lease: Duration::from_secs(60), slots: 2 * processors }
    }
}

/// Something a person who watches wants to know.
#[derive(Clone, Debug)]
pub enum DispatchNotice {
    /// An attempt runs.
    Started(JobRecord),
    /// An attempt ended; the record says what follows.
    Ended(JobRecord),
    /// A module came, changed or went while the dispatcher runs.
    Module {
        /// Its name.
        name: String,
        /// What it does from now on, in words.
        now: &'static str,
    },
}

/// Runs modules on the events of a plane.
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
    /// Rung when a job ended: something gathered may be ready.
    ended: Notify,
    /// Rung when a slot was given back.
    freed: Notify,
    running: Mutex<HashMap<JobId, watch::Sender<Option<StopReason>>>>,
    stopping: CancellationToken,
    metrics: Arc<DispatchMetrics>,
}

impl Dispatcher {
    /// A dispatcher of these modules.
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

    /// What it counts, also while it runs.
    pub fn metrics(&self) -> Arc<DispatchMetrics> {
        self.shared.metrics.clone()
    }

    /// Registers the modules and runs their jobs until `shutdown`; `ready` is told when every queue
    /// is served.
    ///
    /// # Guarantees
    /// When this returns no job of it runs; those that did are queued again.
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
                        tracing::info!(module = name, fields = ?module.differs_in(&former), "registered anew");
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
            // Those that it was started for need not be told.
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

/// A place to run one job: of its module and of the whole dispatcher.
type JobSlot = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// A job to run, and its event.
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
    /// What to run now, and where; none if somebody else does, or later. The error: it could not be
    /// claimed.
    job: Result<Option<(JobToRun, JobSlot)>, LedgerError>,
}

/// What a look into the ledger found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DueLook {
    /// No more that could run now.
    Nothing,
    /// All places are taken, and more may wait.
    Behind,
    /// The dispatcher stops.
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
            // A watcher that does not keep up must not stop the work.
            let _ = notices.try_send(notice);
        }
    }

    /// A place to run one job of a module, if there is one.
    fn slot(&self, of_module: &Arc<Semaphore>) -> Option<JobSlot> {
        Some((
            of_module.clone().try_acquire_owned().ok()?,
            self.slots.clone().try_acquire_owned().ok()?,
        ))
    }

    /// One module's queue and its jobs in the ledger.
    async fn serve(self: Arc<Self>, served: Arc<ServedModule>, mut queue: Box<dyn Subscription>) {
        let module = served.module.clone();
        let of_module = Arc::new(Semaphore::new(module.concurrency.clamp(1, AT_A_TIME_MAX)));
        let (mut claims, mut jobs) = (JoinSet::new(), JoinSet::new());
        let mut full_since: Option<Instant> = None;
        let mut unheard = false;
        let mut seen = StateAges::default();
        // The ledger is not asked with each message, but when something may wait there that could
        // run.
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
            // No message without a place to run its job: another dispatcher may have one.
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
                        // Another module may have taken the last place meanwhile.
                        let slot = self.slot(&of_module);
                        claims.spawn(self.clone().claim_patiently(served.clone(), delivery, slot));
                    }
                    Err(error) => {
                        // Once for each time that it is away.
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
                // Only who waits for a slot: others would look into their queues at each job's end.
                () = freed, if !place || behind => {}
                () = served.due.notified() => look_at = Instant::now(),
                Some(_) = jobs.join_next() => {}
                () = tokio::time::sleep_until(look_at.into()) => {}
            }
        }
        while let Some(claimed) = claims.join_next().await {
            self.settle(&module, &mut *queue, claimed, &mut jobs).await;
        }
        // What the bus has sent ahead is not returned, which it would count, but left in the
        // ledger.
        self.pause(&served, &mut *queue, &mut jobs).await;
        drop(queue);
        self.retire_if_removed(&served).await;
        while jobs.join_next().await.is_some() {}
    }

    /// Waits, but not beyond the end.
    async fn rest(&self, time: Duration) {
        let _ = tokio::time::timeout(time, self.stopping.cancelled()).await;
    }

    /// All places are taken for longer than a moment: what the bus has sent ahead must not wait
    /// here, unacknowledged, for as long as a job may run. It is queued in the ledger, where
    /// whoever has a free slot finds it. False when the dispatcher stops.
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

    /// Claims the job that a message asks for, to run it here if there is a slot, or to queue it. A
    /// store that is away is waited for: a message that goes back is counted by the broker, and
    /// dead in the end.
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

    /// Acknowledges a message whose job was claimed, and runs the job if it is ours. False when the
    /// dispatcher stops before the message was dealt with.
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
        // After the claim: the job is in the ledger, so the message has done its work.
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

    /// Starts what waits in the ledger while there are free slots.
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
                    // A store that is away is no failure of the module's.
                    Err(LedgerError::Store(error))
                        if tries < MATERIAL_TRIES && !self.stopping.is_cancelled() =>
                    {
                        tries += 1;
                        tracing::debug!(job = %job.id, error = chain(&error), "its event cannot be read yet");
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
                // What runs of it goes on as it began. Put back, its attempt's number would be
                // given to another attempt, which would find the former one's pod, with what that
                // has gathered, and take it for its own.
                Ok(JobMaterials::WaitsAgain) if adopted => self.leave(&job).await,
                Ok(JobMaterials::WaitsAgain) => {
                    if let Err(error) = self.ledger.advance(&job, &Transition::WaitsAgain).await {
                        tracing::warn!(job = %job.id, error = chain(&error), "that it waits again was not written");
                    }
                }
                Ok(JobMaterials::Missing(reason)) => {
                    self.end(&job, module, AttemptOutcome::failed(reason)).await
                }
                Err(error) if adopted => {
                    tracing::warn!(job = %job.id, error = chain(&error), "an adopted job's event cannot be read; it goes on");
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
        // A look holds no slot: modules that have nothing to run take none from those that have.
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

    /// Keeps a running job's record true: marks it running, renews its lease, sees that it is to be
    /// cancelled. Never returns.
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
                    // Gone without a word: it never ran.
                    said |= started.is_err();
                    said = said || self.say_it_runs(job).await;
                }
                _ = every.tick() => {
                    if told && !said {
                        said = self.say_it_runs(job).await;
                    }
                    let due = renewed.elapsed() >= self.settings.lease / 3;
                    // The lease counts from before the write: it may have been seen before the
                    // answer comes.
                    let asked = Instant::now();
                    let seen = async {
                        match due {
                            true => self.ledger.advance(job, &Transition::Renewed).await,
                            false => self.ledger.get(&job.id).await,
                        }
                    };
                    // A store that does not answer at all must not keep it from giving the job up
                    // in time.
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
                            tracing::warn!(job = %job.id, error = chain(&error), "the lease could not be renewed");
                            // By its own clock, well before others may take the job.
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

    /// How long the store may take to answer whoever has renewed a lease then: three quarters of
    /// the lease after that, which is before others may take the job. It has a moment in any case,
    /// as nobody may have taken it.
    fn patience(&self, renewed: Instant) -> Duration {
        let lease = self.settings.lease;
        (lease * 3 / 4).saturating_sub(renewed.elapsed()).max(lease / 12)
    }

    /// Writes that the attempt runs: what a pod commits counts only then. Whether that was done.
    async fn say_it_runs(&self, job: &JobRecord) -> bool {
        match self.ledger.advance(job, &Transition::Running).await {
            Ok(record) => self.notice(DispatchNotice::Started(record)).await,
            Err(LedgerError::Store(error)) => {
                tracing::warn!(job = %job.id, error = chain(&error), "that a job runs could not be written yet");
                return false;
            }
            Err(_) => {}
        }
        true
    }

    /// Writes how an attempt ended and wakes whoever waits for it.
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
                    tracing::warn!(job = %job.id, error = chain(&error), "a job's end could not be written yet");
                    tokio::time::sleep(STORE_WAIT).await;
                }
                Err(error) => {
                    tracing::warn!(job = %job.id, error = chain(&error), "a job's end was not written");
                    return;
                }
            }
        };
        if record.outbox
            && let Err(error) = relay::promote(self.ledger.plane(), &record.id).await
        {
            tracing::warn!(job = %job.id, error = chain(&error), "the bus is not told of its end yet; the relay will");
        }
        self.executor.settled(module, job).await;
        self.ended.notify_one();
        self.notice(DispatchNotice::Ended(record)).await;
    }
}

/// Says that something fails, once for each time that a store is away; `failing` is whether it did
/// before.
fn warn_once(outcome: Result<(), LedgerError>, failing: &mut bool, what: &str) {
    let failed = outcome.is_err();
    if let Err(error) = outcome
        && !*failing
    {
        tracing::warn!(error = chain(&error), "{what}; trying again");
    }
    *failing = failed;
}

/// Spreads retries by the job's own id: no randomness, so a test sees the same wait each time.
fn jitter(job: &JobRecord) -> f64 {
    let sum: u32 = job.id.as_str().bytes().map(u32::from).sum();
    f64::from(sum % 256) / 256.0
}
