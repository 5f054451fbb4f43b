//! The job ledger: the only source of truth about jobs. Every write names the version it read, so a
//! stale write is refused.

#[cfg(test)]
mod definitions;
mod many;
#[cfg(test)]
mod model;

use std::sync::{Arc, Mutex, PoisonError};

use ion_model::clock::{self, Millis, millis};
use ion_model::errors::error_chain;
use ion_model::event::{Event, PublicationState, is_event, is_staged};
use ion_model::id::{EventId, JobId};
use ion_model::record::{AttemptEnd, JobRecord, JobState};
use ion_model::term::TermSubject;
use ion_stores::registry::{Registration, Registry};
use ion_stores::{
    Collection, DataPlane, Durability, Equals, Inserted, Pages, Query, StoreError, decode, encode,
};
use ion_system::failpoint;
use ion_system::patience::StateAges;
use serde_json::json;

use crate::job::{AttemptOutcome, EndedAttempt, IllegalStep, Transition, next_record};
use crate::pipeline::Module;

/// How often a write is tried when other writes come first. Each lost race means that another
/// writer made progress.
const RACES_MAX: usize = 16;

/// How many queued jobs are read to take one of them: other dispatchers may take the first ones
/// meanwhile.
const LOOKED_AT: usize = 8;

/// How long a lease is watched, at most, if it has ended by the clock.
const WATCHED_MAX: Millis = 600_000;

/// What changes in a record while the job's holder lives: the attempt's number, and `due`, which
/// every renewal moves.
pub type LeaseMark = (u32, Millis);

/// Returns how long other dispatchers must have seen a lease unchanged before they may take the
/// job. The holder gives the job up before three quarters of the lease are over. A dispatcher looks
/// once in a sixth of the lease, so the job is taken within a lease and a sixth, and never before
/// its holder gave it up.
fn takeover_wait(lease: Millis) -> Millis {
    lease / 6 * 5
}

/// Returns whether other dispatchers may take a job whose lease they have seen unchanged for
/// `stood`. `over` says that the lease has ended by the clock, on whatever host it was written.
/// `ledger/model.rs` explores what clocks, stores and dispatchers may do meanwhile.
fn is_expired(lease: Millis, stood: Millis, over: bool) -> bool {
    let watched = takeover_wait(lease);
    // A lease of a day, as `ion-handler` takes, is not watched for a day. The clock alone proves
    // nothing, because it may have stepped: the lease must also have been watched for `WATCHED_MAX`
    // without a renewal.
    stood >= if over { watched.min(WATCHED_MAX) } else { watched }
}

/// Returns the stored definition if it is not the registered one. Then another process has defined
/// the module meanwhile, and may have registered it before this one did.
fn other_definition(registered: &Module, defined: Option<Module>) -> Option<Module> {
    defined.filter(|defined| defined != registered)
}

/// Why an operation of the ledger failed.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The document store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no such job.
    #[error("there is no job {0}")]
    NoSuchJob(String),
    /// The step is not allowed in the state of the job.
    #[error("job {id}: {source}")]
    Illegal {
        /// The job.
        id: JobId,
        /// The step and the state.
        #[source]
        source: IllegalStep,
    },
    /// Another dispatcher holds the job, or a later attempt of it has begun.
    #[error("job {0} is not held any more: another dispatcher took it over")]
    Lost(JobId),
    /// No registered module could run the job.
    #[error(
        "job {id}: no module {module:?} is registered that could run it (a link of a chain is run again by sending the \
         request again)"
    )]
    NoModule {
        /// The job.
        id: JobId,
        /// The module of the job.
        module: String,
    },
    /// A later run of a source has begun.
    #[error(
        "job {id} is a run of source {name:?}, and a later run has begun; run the source again \
         instead: `ion source run {name}`"
    )]
    Superseded {
        /// The job.
        id: JobId,
        /// The source.
        name: String,
    },
    /// More cancellations are under way than the registry holds.
    #[error("too many cancellations are under way; wait until one of them has ended")]
    TooManyCancellations,
    /// Other writes came first too often.
    #[error("job {0} was written by others again and again; try once more")]
    Contended(JobId),
}

/// The registered modules of a plane.
#[derive(Clone, Debug)]
pub struct RegisteredModules {
    /// Their definitions, by name: how their jobs run.
    pub modules: Vec<Module>,
    /// Which events are for them.
    pub registry: Registry,
}

impl RegisteredModules {
    /// Returns the module of this name.
    pub fn module(&self, name: &str) -> Option<&Module> {
        self.modules.iter().find(|module| module.name == name)
    }

    /// Returns the modules that an event is for.
    pub fn modules_for<'a>(&'a self, event: &'a Event) -> impl Iterator<Item = &'a Module> {
        self.registry.modules_for(event).filter_map(|name| self.module(name))
    }

    /// Returns the modules that subscribe to an event's type and whose `where` kept the event from
    /// them, each with a term that the event does not meet, in words.
    pub fn modules_with_unmet_terms<'a>(
        &'a self,
        event: &'a Event,
    ) -> impl Iterator<Item = (&'a Module, String)> {
        let is_subscribed =
            |module: &&Module| module.subscribed_types().contains(&event.event_type);
        let is_for = |module: &&Module| {
            event.expected_by.as_ref().is_none_or(|names| names.contains(&module.name))
        };
        let modules = self.modules.iter().filter(|module| !module.terms.is_empty());
        let files: Vec<&str> = event.files.iter().map(|file| file.name.as_str()).collect();
        modules.filter(is_subscribed).filter(move |module| !is_for(module)).filter_map(
            move |module| {
                let subject = TermSubject { data: &event.data, files: &files };
                let unmet = module.terms.first_unmet(&subject)?;
                // The document of an event with very many files does not name them.
                let is_unknown = unmet.is_about_files() && event.file_list.is_some();
                (!is_unknown).then(|| (module, unmet.compared_with(&subject)))
            },
        )
    }
}

/// The outcome of a claim.
#[derive(Clone, Debug)]
pub enum ClaimOutcome {
    /// The job is new, and the caller's holder has to start it. Exceptions: a gathering job is
    /// waiting, and a job without a holder is queued.
    Won(JobRecord),
    /// The job existed before.
    Known(JobRecord),
}

/// What a message names.
#[derive(Clone, Debug)]
pub enum MessageSubject {
    /// A committed event.
    Event(Box<Event>),
    /// An event that an on-success job has staged: it is published when that job succeeds, and not
    /// before.
    NotYet,
    /// Nothing that a job could work on; the text says why.
    NoEvent(String),
}

/// The job ledger of a plane.
#[derive(Clone, Debug)]
pub struct Ledger {
    plane: DataPlane,
    /// The modules as they were read last.
    known: Arc<Mutex<Option<Arc<RegisteredModules>>>>,
}

impl Ledger {
    /// Returns the ledger of this plane.
    pub fn new(plane: DataPlane) -> Self {
        Self { plane, known: Arc::default() }
    }

    /// Returns the plane that it belongs to.
    pub fn plane(&self) -> &DataPlane {
        &self.plane
    }

    // ---- modules ----

    /// Registers a module. Returns the former definition under its name, if that is a different
    /// one.
    ///
    /// # Guarantees
    /// First the queue is declared, then the definition is stored, then the registry says that
    /// events are for the module. So an event that is for the module finds its queue, and a reader
    /// of the registry finds how its jobs run. The queue still takes the types that the module
    /// subscribed to before, until the registry has changed. If this function is interrupted, the
    /// module is not registered; calling it again registers it. If several definitions are
    /// registered at the same time, the one that was written last remains, and the registry says
    /// which events are for that one.
    ///
    /// # Errors
    /// When a store fails.
    pub async fn put_module(&self, module: &Module) -> Result<Option<Module>, StoreError> {
        let former = self.module(&module.name).await?;
        let subscribes = module.subscribed_types();
        let gone = self.former_types(module, former.as_ref(), &subscribes).await?;
        let bus = &self.plane.bus;
        bus.declare(&module.name, &[&subscribes[..], &gone].concat(), &[]).await?;
        failpoint::hit("module.declared");
        if former.as_ref() != Some(module) {
            self.plane.documents.put(Collection::Modules, encode(module), None).await?;
        }
        failpoint::hit("module.defined");
        let mut registered = module.clone();
        for _ in 0..RACES_MAX {
            let (selector, fingerprint) = (registered.selector(), registered.fingerprint());
            let documents = &self.plane.documents;
            Registry::register(documents, &module.name, &selector, &fingerprint).await?;
            let Some(defined) = self.module(&module.name).await? else {
                // Another process was removing the module, and has deleted its definition.
                self.plane.documents.put(Collection::Modules, encode(&registered), None).await?;
                continue;
            };
            match other_definition(&registered, Some(defined)) {
                Some(other) => registered = other,
                None => break,
            }
        }
        failpoint::hit("module.registered");
        // Not before the registry has changed: until then, committed events of the former types are
        // for the module, and an unbound queue would miss them.
        if !gone.is_empty() {
            bus.declare(&module.name, &registered.subscribed_types(), &gone).await?;
        }
        Ok(former.filter(|former| former != module))
    }

    /// Returns the types that a module's queue may be bound to and that the module does not
    /// subscribe to any more: the types that it is registered for, and those of the former
    /// definition, which its process may not have registered.
    async fn former_types(
        &self,
        module: &Module,
        former: Option<&Module>,
        subscribes: &[String],
    ) -> Result<Vec<String>, StoreError> {
        let registry = Registry::read(&self.plane.documents).await?;
        let registered =
            registry.registration(&module.name).map(Registration::event_types).unwrap_or_default();
        let mut gone = former.map(Module::subscribed_types).unwrap_or_default();
        gone.extend_from_slice(registered);
        gone.retain(|event_type| !subscribes.contains(event_type));
        gone.sort();
        gone.dedup();
        Ok(gone)
    }

    /// Returns the registered modules, by name.
    pub async fn modules(&self) -> Result<Vec<Module>, StoreError> {
        Ok(self.registered_modules().await?.modules.clone())
    }

    /// Returns the registered modules, and which events are for them. The modules are read again
    /// only when the registry has changed: each change of a module changes the registry.
    ///
    /// # Errors
    /// When the documents cannot be read.
    pub async fn registered_modules(&self) -> Result<Arc<RegisteredModules>, StoreError> {
        let documents = &self.plane.documents;
        // The registry is read first: the definitions of the modules that it names are stored
        // already.
        let registry = Registry::read(documents).await?;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(known) = known.filter(|known| known.registry == registry) {
            return Ok(known);
        }
        let mut modules: Vec<Module> =
            documents.find_as(Query::equal(Collection::Modules, vec![])).await?;
        modules.retain(|module| registry.registration(&module.name).is_some());
        let registered = Arc::new(RegisteredModules { modules, registry });
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(registered.clone());
        Ok(registered)
    }

    /// Returns whether the same modules are still registered as when `registered` was read, without
    /// any change in between.
    ///
    /// # Errors
    /// When the documents cannot be read.
    pub async fn is_registry_unchanged(
        &self,
        registered: &RegisteredModules,
    ) -> Result<bool, StoreError> {
        // Every change raises the registry's version.
        Ok(Registry::read(&self.plane.documents).await? == registered.registry)
    }

    /// Returns the stored definition of a module.
    pub async fn module(&self, name: &str) -> Result<Option<Module>, StoreError> {
        self.plane.documents.get_as(Collection::Modules, name).await
    }

    /// Removes a module and its queue. Returns whether the module existed. Its jobs stay in the
    /// ledger. Events that are for the module and that it has not claimed start nothing any more.
    pub async fn delete_module(&self, name: &str) -> Result<bool, StoreError> {
        Registry::remove(&self.plane.documents, name).await?;
        failpoint::hit("module.removed");
        self.plane.bus.remove_queue(name).await?;
        let documents = &self.plane.documents;
        let definition = documents.get(Collection::Modules, name).await?;
        failpoint::delay("module.deleting");
        let deleted = documents.delete(Collection::Modules, name, vec![]).await?;
        // Another process may have registered the module again meanwhile, and have found the
        // definition that was then deleted here.
        if let Some(definition) = definition
            && Registry::read(documents).await?.registration(name).is_some()
        {
            documents.insert(Collection::Modules, definition, None, Durability::Now).await?;
        }
        Ok(deleted)
    }

    /// Returns the published events that are marked as not yet claimed by all their modules, oldest
    /// first.
    pub fn unclaimed_events() -> Pages {
        Pages::new(Query::equal(Collection::Events, Self::unclaimed_conditions()), "created")
    }

    /// Returns the conditions that select the events of [`Ledger::unclaimed_events`].
    pub fn unclaimed_conditions() -> Vec<Equals> {
        vec![("unclaimed", json!(true)), ("publication", json!(PublicationState::Published))]
    }

    /// Sends an event's message to a module's queue again. If the queue was removed, it is declared
    /// again.
    ///
    /// # Errors
    /// When the bus fails.
    pub async fn send_again(&self, module: &Module, event: &Event) -> Result<(), StoreError> {
        let bus = &self.plane.bus;
        bus.declare(&module.name, &module.subscribed_types(), &[]).await?;
        bus.send(&module.name, &event.message()).await
    }

    // ---- jobs ----

    /// Claims the job of a module on an event by one insert. If several callers try, one wins. With
    /// a holder and its lease, the holder has to start the job; without, the job is queued in the
    /// ledger for any dispatcher that has a free slot.
    pub async fn claim(
        &self,
        module: &Module,
        event: &Event,
        holder: Option<(&str, Millis)>,
    ) -> Result<ClaimOutcome, LedgerError> {
        self.insert(claimed_record(module, event, holder)?).await
    }

    /// Claims a job that no dispatcher may start: it is inserted as cancelled.
    pub async fn claim_cancelled(
        &self,
        module: &Module,
        event: &Event,
    ) -> Result<ClaimOutcome, LedgerError> {
        self.insert(apply_transition(&new_record(module, event), &Transition::CancelAsked)?).await
    }

    async fn insert(&self, record: JobRecord) -> Result<ClaimOutcome, LedgerError> {
        let documents = &self.plane.documents;
        // A power failure that loses this insert also loses the acknowledgement of the message and
        // all that the job did. The job is then claimed again.
        let inserted = documents
            .insert(Collection::Jobs, encode(&record), None, Durability::BeforeNextMessage)
            .await?;
        failpoint::hit("claim.one-inserted");
        Ok(match inserted {
            Inserted::New => ClaimOutcome::Won(record),
            Inserted::Existing(existing) => {
                ClaimOutcome::Known(decode(Collection::Jobs, existing)?)
            }
        })
    }

    /// Returns the job of this id.
    pub async fn get(&self, id: &JobId) -> Result<JobRecord, LedgerError> {
        let found = self.plane.documents.get_as(Collection::Jobs, id.as_str()).await?;
        found.ok_or_else(|| LedgerError::NoSuchJob(id.to_string()))
    }

    /// Applies `happening` to the job, whose attempt and holder must still be those of `job`.
    ///
    /// # Errors
    /// [`LedgerError::Lost`] when another dispatcher holds the job by now, or a later attempt has
    /// begun.
    pub async fn advance(
        &self,
        job: &JobRecord,
        happening: &Transition,
    ) -> Result<JobRecord, LedgerError> {
        let mut current = job.clone();
        for _ in 0..RACES_MAX {
            let after = apply_transition(&current, happening)?;
            if self.write(&current, &after).await? {
                return Ok(after);
            }
            // A person may have cancelled the job meanwhile; that changes the version, not the
            // holder.
            current = self.get(&job.id).await?;
            if current.attempt != job.attempt || current.holder != job.holder {
                return Err(LedgerError::Lost(job.id.clone()));
            }
        }
        Err(LedgerError::Contended(job.id.clone()))
    }

    /// Ends the attempt as lost, because the job's holder is gone. The job is queued for another
    /// attempt, or dead.
    pub async fn mark_lost(&self, job: &JobRecord, reason: &str) -> Result<JobRecord, LedgerError> {
        let outcome = AttemptOutcome {
            reason: Some(reason.to_owned()),
            ..AttemptOutcome::from_end(AttemptEnd::Lost)
        };
        let lost = Transition::Ended(Box::new(EndedAttempt { outcome, retries: 0, jitter: 0.0 }));
        self.advance(job, &lost).await
    }

    /// Applies `happening` to the job as it is now, whatever its attempt and its holder.
    async fn apply_to_latest(
        &self,
        id: &JobId,
        happening: &Transition,
    ) -> Result<JobRecord, LedgerError> {
        for _ in 0..RACES_MAX {
            let current = self.get(id).await?;
            let after = apply_transition(&current, happening)?;
            if self.write(&current, &after).await? {
                if current.state == JobState::Dead {
                    self.remove_dead_letter(&after).await;
                }
                return Ok(after);
            }
        }
        Err(LedgerError::Contended(id.clone()))
    }

    async fn write(&self, before: &JobRecord, after: &JobRecord) -> Result<bool, LedgerError> {
        let documents = &self.plane.documents;
        let expect = vec![("version", json!(before.version))];
        let durability = durability_of(before, after);
        let written =
            documents.replace(Collection::Jobs, encode(after), expect, None, durability).await?;
        failpoint::hit("ledger.one-written");
        Ok(written)
    }

    /// Returns the module's next queued jobs that may run now, at most [`LOOKED_AT`] or as many as
    /// the module takes into a batch: retries, released jobs and gathering jobs. `seen` is what this caller has seen of them. A wait is
    /// over when `due`, a time by its writer's clock, has passed, or when the caller has watched
    /// the wait to its end; so a writer's clock that is minutes ahead delays no job.
    pub async fn due_jobs(
        &self,
        module: &Module,
        seen: &mut StateAges<i64>,
    ) -> Result<Vec<JobRecord>, StoreError> {
        let queued = vec![("module", json!(module.name)), ("state", json!(JobState::Queued))];
        let most = LOOKED_AT.max(module.jobs_at_once());
        let query = Query::equal(Collection::Jobs, queued).order_by("due").limit(most);
        let queued = self.plane.documents.find_as::<JobRecord>(query).await?;
        let stood = seen.update(queued.iter().map(|job| (job.id.to_string(), job.version)));
        let due = queued.into_iter().zip(stood);
        let due = due.filter(|(job, stood)| {
            job.term == 0 || job.due <= clock::now() || millis(*stood) >= job.term
        });
        Ok(due.map(|(job, _)| job).collect())
    }

    /// Claims the first of these queued jobs that no other dispatcher has claimed.
    pub async fn claim_queued(
        &self,
        due: &[JobRecord],
        holder: &str,
        lease: Millis,
    ) -> Result<Option<JobRecord>, LedgerError> {
        for job in due {
            let claimed =
                apply_transition(job, &Transition::Claimed { holder: holder.to_owned(), lease })?;
            if self.write(job, &claimed).await? {
                return Ok(Some(claimed));
            }
        }
        Ok(None)
    }

    /// Returns the active jobs whose lease was not renewed in time. `seen` is what this caller has
    /// seen of the leases. The caller has to call this repeatedly: at its first call it has seen
    /// none.
    pub async fn expired_jobs(
        &self,
        seen: &mut StateAges<LeaseMark>,
    ) -> Result<Vec<JobRecord>, StoreError> {
        let active = self.active_jobs().await?;
        let stood =
            seen.update(active.iter().map(|job| (job.id.to_string(), (job.attempt, job.due))));
        let expired = active.into_iter().zip(stood).filter(|(job, stood)| {
            is_expired(job.term, millis(*stood), clock::has_passed_everywhere(job.due))
        });
        Ok(expired.map(|(job, _)| job).collect())
    }

    async fn active_jobs(&self) -> Result<Vec<JobRecord>, StoreError> {
        let mut active = Vec::new();
        for state in [JobState::Starting, JobState::Running] {
            let query =
                Query::equal(Collection::Jobs, vec![("state", json!(state))]).order_by("due");
            active.extend(self.plane.documents.find_as::<JobRecord>(query).await?);
        }
        Ok(active)
    }

    /// Returns the active jobs that a dispatcher holds.
    pub async fn jobs_held_by(&self, holder: &str) -> Result<Vec<JobRecord>, StoreError> {
        let mut held = self.active_jobs().await?;
        held.retain(|job| job.holder.as_deref() == Some(holder));
        Ok(held)
    }

    /// Returns the gathering jobs that are waiting.
    pub async fn waiting_jobs(&self) -> Result<Vec<JobRecord>, StoreError> {
        let waiting = vec![("state", json!(JobState::Waiting))];
        let query = Query::equal(Collection::Jobs, waiting).order_by("due");
        self.plane.documents.find_as(query).await
    }

    /// Cancels a job: at once if it does not run, otherwise as soon as its dispatcher sees the
    /// request. A job that has succeeded cannot be cancelled.
    pub async fn cancel(&self, id: &JobId) -> Result<JobRecord, LedgerError> {
        self.apply_to_latest(id, &Transition::CancelAsked).await
    }

    /// Cancels a job like [`Ledger::cancel`], unless it has ended by now: a dead job stays dead.
    /// Then returns none.
    pub async fn cancel_unless_ended(&self, id: &JobId) -> Result<Option<JobRecord>, LedgerError> {
        for _ in 0..RACES_MAX {
            let current = self.get(id).await?;
            if current.state.is_final() {
                return Ok(None);
            }
            let after = apply_transition(&current, &Transition::CancelAsked)?;
            if self.write(&current, &after).await? {
                return Ok(Some(after));
            }
        }
        Err(LedgerError::Contended(id.clone()))
    }

    /// Queues a dead or cancelled job again, with all its retries.
    pub async fn retry(&self, id: &JobId) -> Result<JobRecord, LedgerError> {
        let JobRecord { module, source, superseded, .. } = self.get(id).await?;
        if let (true, Some(name)) = (superseded, source) {
            return Err(LedgerError::Superseded { id: id.clone(), name });
        }
        if self.module(&module).await?.is_none() {
            return Err(LedgerError::NoModule { id: id.clone(), module });
        }
        self.apply_to_latest(id, &Transition::Revived).await
    }

    /// Makes sure that a run of a source, which has ended badly, is never retried: a later run is
    /// about to begin. Returns false if the job has changed meanwhile.
    ///
    /// # Errors
    /// When the run may still be going on, or the store fails.
    pub(crate) async fn supersede(&self, job: &JobRecord) -> Result<bool, LedgerError> {
        let after = apply_transition(job, &Transition::Superseded)?;
        if !self.write(job, &after).await? {
            return Ok(false);
        }
        if job.state == JobState::Dead {
            self.remove_dead_letter(&after).await;
        }
        Ok(true)
    }

    /// Removes the job's dead letter. The record decides: if the broker is unavailable and the
    /// letter stays, people see one letter too many, and nothing else is wrong.
    async fn remove_dead_letter(&self, job: &JobRecord) {
        if let Err(error) = self.plane.bus.remove_dead_letters(&[dead_letter_key(job)]).await {
            tracing::warn!(
                job = %job.id,
                error = error_chain(&error),
                "its dead letter could not be removed"
            );
        }
    }

    /// Returns the gathering jobs that have begun without the events of this job.
    pub async fn gathers_without(&self, job: &JobRecord) -> Result<Vec<JobRecord>, StoreError> {
        let documents = &*self.plane.documents;
        let registered = self.registered_modules().await?;
        let mut found = Vec::new();
        for module in registered.modules.iter().filter(|module| module.gather.is_some()) {
            let of_module =
                vec![("correlationId", json!(job.correlation_id)), ("module", json!(module.name))];
            let mut pages = Pages::new(Query::equal(Collection::Jobs, of_module), "created");
            while let Some(page) = pages.next(documents).await? {
                for document in page {
                    let gatherer: JobRecord = decode(Collection::Jobs, document)?;
                    if gatherer.without.jobs.contains(&job.id) {
                        found.push(gatherer);
                    }
                }
            }
        }
        Ok(found)
    }

    /// Returns the visible events of a correlation, oldest first.
    pub async fn correlation_events(&self, correlation: &str) -> Result<Vec<Event>, StoreError> {
        let equals = vec![
            ("context.correlationId", json!(correlation)),
            ("context.documentType", json!("eventMeta")),
        ];
        let mut events: Vec<Event> = self
            .plane
            .documents
            .find_as(Query::equal(Collection::Events, equals).order_by("created"))
            .await?;
        events.retain(|event| event.publication != PublicationState::Staged);
        Ok(events)
    }

    /// Returns a visible event: not an insight or log of this id, and not an event that is only
    /// staged.
    pub async fn visible_event(&self, id: &EventId) -> Result<Option<Event>, StoreError> {
        let found = self.plane.documents.get(Collection::Events, id.as_str()).await?;
        let found = found.filter(|document| is_event(document) && !is_staged(document));
        found.map(|found| decode(Collection::Events, found)).transpose()
    }

    /// Returns the event of this id, staged or not.
    pub async fn event(&self, id: &EventId) -> Result<Option<Event>, StoreError> {
        self.plane.documents.get_as(Collection::Events, id.as_str()).await
    }
}

/// Returns the key of a job's dead letter: its module and the id of its event.
pub(crate) fn dead_letter_key(job: &JobRecord) -> (String, String) {
    (job.module.clone(), job.event_id.to_string())
}

/// Returns a new record of the job of a module on an event, before it is claimed.
fn new_record(module: &Module, event: &Event) -> JobRecord {
    let state = if module.gather.is_some() { JobState::Waiting } else { JobState::Queued };
    JobRecord::new(JobId::derive(&event.id, &module.name), &module.name, event, state, clock::now())
}

/// Returns the record of the job of a module on an event as it is claimed: by this holder for the
/// time of a lease, or by nobody.
fn claimed_record(
    module: &Module,
    event: &Event,
    holder: Option<(&str, Millis)>,
) -> Result<JobRecord, LedgerError> {
    let queued = new_record(module, event);
    match (queued.state, holder) {
        (JobState::Waiting, _) | (_, None) => Ok(queued),
        (_, Some((holder, lease))) => {
            apply_transition(&queued, &Transition::Claimed { holder: holder.to_owned(), lease })
        }
    }
}

/// Returns how durable a change of a job's record has to be.
fn durability_of(before: &JobRecord, after: &JobRecord) -> Durability {
    match (before.state, after.state) {
        // A power failure may lose the record that the job runs, or a renewal of its lease: then
        // the job's dispatcher is gone, too.
        (JobState::Starting | JobState::Running, JobState::Running)
            if before.cancel == after.cancel =>
        {
            Durability::WithNextSync
        }
        // As for a claim by message: if a power failure loses this write, the job is still queued.
        (JobState::Queued, JobState::Starting) => Durability::BeforeNextMessage,
        _ => Durability::Now,
    }
}

/// Returns the record after `happening`, with its version raised.
fn apply_transition(job: &JobRecord, happening: &Transition) -> Result<JobRecord, LedgerError> {
    let after = next_record(job, happening, clock::now());
    let mut after = after.map_err(|source| LedgerError::Illegal { id: job.id.clone(), source })?;
    after.version += 1;
    Ok(after)
}
