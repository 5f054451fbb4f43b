//! The job ledger: the only truth about jobs. Every write names the version it read, so a stale one
//! is refused.

/// What a job's dead letter is known by.
pub(crate) fn letter_of(job: &JobRecord) -> (String, String) {
    (job.module.clone(), job.event_id.to_string())
}

#[cfg(test)]
mod definitions;
#[cfg(test)]
mod model;

use std::sync::{Arc, Mutex, PoisonError};

use ion_model::clock::{self, Millis, millis};
use ion_model::errors::chain;
use ion_model::event::{DocumentType, Event, Publication};
use ion_model::id::{EventId, JobId};
use ion_model::record::{AttemptEnd, FailedReads, JobRecord, JobState};
use ion_model::text::quote;
use ion_stores::registry::{Registration, Registry};
use ion_stores::{
    Collection, DataPlane, Equals, ID_BYTES_MAX, Inserted, Pages, Query, StoreError, decode, encode,
};
use ion_system::failpoint;
use ion_system::patience::Standing;
use serde_json::{Value, json};

use crate::job::{Ended, Happening, IllegalStep, next};
use crate::pipeline::Module;

/// Times a write is tried again when another one came first. Each loss means somebody else made
/// progress.
const RACES_MAX: usize = 16;

/// Queued jobs looked at when one is to be taken: others may take the first ones meanwhile.
const LOOKED_AT: usize = 8;

/// How long a lease is watched that is over by the clock.
const WATCHED_MAX: Millis = 600_000;

/// What changes while a job's holder lives: the attempt, and `due`, which every renewal moves.
pub type Lease = (u32, Millis);

/// When others may take a job over, counted from when they saw its last renewal: its holder gives
/// it up before three quarters of the lease are over. Whoever takes it looks once in a sixth, so it
/// is taken within a lease and a sixth, and never before it was given up.
fn taken_after(lease: Millis) -> Millis {
    lease / 6 * 5
}

/// Whether others may take a job over whose lease they have seen to stand still for so long;
/// `over`: by the clock it has ended, wherever that was written. `ledger/model.rs` explores what
/// clocks, stores and dispatchers may do meanwhile.
fn is_expired(lease: Millis, stood: Millis, over: bool) -> bool {
    let watched = taken_after(lease);
    // A lease of a day, as `ion-handler` takes, is not watched for a day. The clock alone proves
    // nothing, as it may have stepped: so long without a renewal is required besides.
    stood >= if over { watched.min(WATCHED_MAX) } else { watched }
}

/// The definition that is there, if it is another one than was registered: somebody else has
/// defined the module meanwhile, and may have registered it before.
fn defined_otherwise(registered: &Module, defined: Option<Module>) -> Option<Module> {
    defined.filter(|defined| defined != registered)
}

/// Why the ledger did not do something.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The document store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no such job.
    #[error("there is no job {0}")]
    NoSuchJob(String),
    /// The job is in a state where that cannot happen.
    #[error("job {id}: {source}")]
    Illegal {
        /// The job.
        id: JobId,
        /// What cannot happen.
        #[source]
        source: IllegalStep,
    },
    /// Another dispatcher has the job, or a later attempt of it.
    #[error("job {0} is not held any more: another dispatcher took it over")]
    Lost(JobId),
    /// Nobody would take it.
    #[error(
        "job {id}: no module {module:?} is registered that could run it (a link of a chain is run again by sending the \
         request again)"
    )]
    NoModule {
        /// The job.
        id: JobId,
        /// What it is of.
        module: String,
    },
    /// More is being cancelled than the registry holds.
    #[error("too much is being cancelled at a time; wait until some of it has ended")]
    TooManyCancellations,
    /// Others kept writing first.
    #[error("job {0} was written by others again and again; try once more")]
    Contended(JobId),
}

/// Which jobs to list. What is none does not matter.
#[derive(Clone, Debug, Default)]
pub struct JobFilter {
    /// Of this module.
    pub module: Option<String>,
    /// In this state.
    pub state: Option<JobState>,
    /// Of this correlation.
    pub correlation: Option<String>,
}

/// The modules of a plane.
#[derive(Clone, Debug)]
pub struct Registered {
    /// How their jobs run, by name.
    pub modules: Vec<Module>,
    /// Which events are for them.
    pub registry: Registry,
}

impl Registered {
    /// The module of this name.
    pub fn module(&self, name: &str) -> Option<&Module> {
        self.modules.iter().find(|module| module.name == name)
    }

    /// The modules that an event is for.
    pub fn expected<'a>(&'a self, event: &'a Event) -> impl Iterator<Item = &'a Module> {
        self.registry.expected(event).filter_map(|name| self.module(name))
    }
}

/// What a claim found.
#[derive(Clone, Debug)]
pub enum Claim {
    /// The job is new and ours to start (a gathering one waits, one without a holder is queued).
    Won(JobRecord),
    /// It was there before.
    Known(JobRecord),
}

/// What a message is about.
#[derive(Clone, Debug)]
pub enum Announced {
    /// A committed event.
    Event(Box<Event>),
    /// An event that an on-success job has staged: it is published when that job succeeds, and not
    /// before.
    NotYet,
    /// Nothing that a job could work on; why, in words.
    NoEvent(String),
}

/// The job ledger of a plane.
#[derive(Clone, Debug)]
pub struct Ledger {
    plane: DataPlane,
    /// The modules as they were read last.
    known: Arc<Mutex<Option<Arc<Registered>>>>,
}

impl Ledger {
    /// The ledger of this plane.
    pub fn new(plane: DataPlane) -> Self {
        Self { plane, known: Arc::default() }
    }

    /// The plane it is part of.
    pub fn plane(&self) -> &DataPlane {
        &self.plane
    }

    // ---- modules ----

    /// Registers a module; gives what was registered under its name, if that says something else.
    ///
    /// # Guarantees
    /// Its queue is there first, then its definition, then the registry says that events are for
    /// it: an event that is for it finds its queue, and a reader of the registry finds how its jobs
    /// run. The queue goes on to take what the module subscribed to before until the registry says
    /// otherwise. Cut short, it is not registered, and done again it is. Of several definitions at
    /// the same time the one that was written last stands in the end, and events are for it as that
    /// one says.
    ///
    /// # Errors
    /// When a store does not do its part.
    pub async fn put_module(&self, module: &Module) -> Result<Option<Module>, StoreError> {
        let former = self.module(&module.name).await?;
        let subscribes = module.subscribes();
        let gone = self.gone(module, former.as_ref(), &subscribes).await?;
        let bus = &self.plane.bus;
        bus.declare(&module.name, &[&subscribes[..], &gone].concat(), &[]).await?;
        failpoint::reach("module.declared");
        if former.as_ref() != Some(module) {
            self.plane.documents.put(Collection::Modules, encode(module), None).await?;
        }
        failpoint::reach("module.defined");
        let mut registered = module.clone();
        for _ in 0..RACES_MAX {
            let (on, fingerprint) = (registered.subscribes(), registered.fingerprint());
            Registry::register(&self.plane.documents, &module.name, &on, &fingerprint).await?;
            let Some(defined) = self.module(&module.name).await? else {
                // Somebody was about to remove the module, and has taken its definition away.
                self.plane.documents.put(Collection::Modules, encode(&registered), None).await?;
                continue;
            };
            match defined_otherwise(&registered, Some(defined)) {
                Some(other) => registered = other,
                None => break,
            }
        }
        failpoint::reach("module.registered");
        // Unbound before, the queue would miss events that are committed until then, and that are
        // for the module.
        if !gone.is_empty() {
            bus.declare(&module.name, &registered.subscribes(), &gone).await?;
        }
        Ok(former.filter(|former| former != module))
    }

    /// The types that a module's queue may be bound to, and that it does not subscribe to any more:
    /// those that it is registered for, and those of a definition that somebody may not have come
    /// to register.
    async fn gone(
        &self,
        module: &Module,
        former: Option<&Module>,
        subscribes: &[String],
    ) -> Result<Vec<String>, StoreError> {
        let registry = Registry::read(&self.plane.documents).await?;
        let registered =
            registry.registration(&module.name).map(Registration::subscribes).unwrap_or_default();
        let mut gone = former.map(Module::subscribes).unwrap_or_default();
        gone.extend_from_slice(registered);
        gone.retain(|event_type| !subscribes.contains(event_type));
        gone.sort();
        gone.dedup();
        Ok(gone)
    }

    /// The registered modules, by name.
    pub async fn modules(&self) -> Result<Vec<Module>, StoreError> {
        Ok(self.registered().await?.modules.clone())
    }

    /// The registered modules, and which events are for them. Modules are read again when the
    /// registry has changed, and not before: it changes with each of them.
    ///
    /// # Errors
    /// When the documents cannot be read.
    pub async fn registered(&self) -> Result<Arc<Registered>, StoreError> {
        let documents = &self.plane.documents;
        // The registry first: what it names has been defined.
        let registry = Registry::read(documents).await?;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(known) = known.filter(|known| known.registry == registry) {
            return Ok(known);
        }
        let mut modules: Vec<Module> =
            documents.find_as(Query::equal(Collection::Modules, vec![])).await?;
        modules.retain(|module| registry.registration(&module.name).is_some());
        let registered = Arc::new(Registered { modules, registry });
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(registered.clone());
        Ok(registered)
    }

    /// Whether the same modules are registered still as when `registered` was read, and were all
    /// the time.
    ///
    /// # Errors
    /// When the documents cannot be read.
    pub async fn is_still(&self, registered: &Registered) -> Result<bool, StoreError> {
        // Every change raises its version.
        Ok(Registry::read(&self.plane.documents).await? == registered.registry)
    }

    /// One module.
    pub async fn module(&self, name: &str) -> Result<Option<Module>, StoreError> {
        self.plane.documents.get_as(Collection::Modules, name).await
    }

    /// Removes a module and its queue; its jobs stay in the ledger. Whether it was there. Events
    /// that are for it and that it has not claimed start nothing any more.
    pub async fn delete_module(&self, name: &str) -> Result<bool, StoreError> {
        Registry::remove(&self.plane.documents, name).await?;
        failpoint::reach("module.removed");
        self.plane.bus.retire(name).await?;
        let documents = &self.plane.documents;
        let definition = documents.get(Collection::Modules, name).await?;
        failpoint::linger("module.deleting");
        let deleted = documents.delete(Collection::Modules, name, vec![]).await?;
        // Somebody may have registered it again meanwhile, and found its definition there.
        if let Some(definition) = definition
            && Registry::read(documents).await?.registration(name).is_some()
        {
            documents.insert(Collection::Modules, definition, None).await?;
        }
        Ok(deleted)
    }

    /// The events that are published and that some module has yet to claim, as far as anybody has
    /// seen; oldest first.
    pub fn unclaimed_events() -> Pages {
        Pages::new(Query::equal(Collection::Events, Self::unclaimed()), "created")
    }

    /// What holds of them.
    pub fn unclaimed() -> Vec<Equals> {
        vec![("unclaimed", json!(true)), ("publication", json!(Publication::Published))]
    }

    /// Puts an event's message into a module's queue once more, which is made anew if somebody has
    /// removed it.
    ///
    /// # Errors
    /// When the bus does not do it.
    pub async fn send_again(&self, module: &Module, event: &Event) -> Result<(), StoreError> {
        let bus = &self.plane.bus;
        bus.declare(&module.name, &module.subscribes(), &[]).await?;
        bus.send(&module.name, &event.message()).await
    }

    // ---- jobs ----

    /// Claims the job of a module on an event by one insert. Of many who try, one wins. With a
    /// holder and its lease the job is the holder's to start; without, it is queued in the ledger
    /// for whoever has a free slot.
    pub async fn claim(
        &self,
        module: &Module,
        event: &Event,
        holder: Option<(&str, Millis)>,
    ) -> Result<Claim, LedgerError> {
        let queued = fresh(module, event);
        let record = match (queued.state, holder) {
            (JobState::Waiting, _) | (_, None) => queued,
            (_, Some((holder, lease))) => {
                step(&queued, &Happening::Claimed { holder: holder.to_owned(), lease })?
            }
        };
        self.insert(record).await
    }

    /// The same of a job that nobody is to start: it is cancelled from the beginning.
    pub async fn claim_cancelled(
        &self,
        module: &Module,
        event: &Event,
    ) -> Result<Claim, LedgerError> {
        self.insert(step(&fresh(module, event), &Happening::CancelAsked)?).await
    }

    async fn insert(&self, record: JobRecord) -> Result<Claim, LedgerError> {
        let documents = &self.plane.documents;
        // One log: what is lost with the machine's power takes with it the acknowledgement of the
        // message and all that the job did. So the job is claimed again, and no sync is waited for.
        let inserted = match self.plane.one_log {
            true => documents.insert_soon(Collection::Jobs, encode(&record), None).await?,
            false => documents.insert(Collection::Jobs, encode(&record), None).await?,
        };
        failpoint::reach("claim.inserted");
        Ok(match inserted {
            Inserted::New => Claim::Won(record),
            Inserted::Existing(existing) => Claim::Known(decode(Collection::Jobs, existing)?),
        })
    }

    /// The job of this id.
    pub async fn get(&self, id: &JobId) -> Result<JobRecord, LedgerError> {
        let found = self.plane.documents.get_as(Collection::Jobs, id.as_str()).await?;
        found.ok_or_else(|| LedgerError::NoSuchJob(id.to_string()))
    }

    /// The latest jobs, at most `limit`, oldest first.
    pub async fn list(
        &self,
        filter: &JobFilter,
        limit: usize,
    ) -> Result<Vec<JobRecord>, StoreError> {
        let mut equals: Vec<(&'static str, Value)> = Vec::new();
        equals.extend(filter.correlation.as_ref().map(|id| ("correlationId", json!(id))));
        equals.extend(filter.module.as_ref().map(|name| ("module", json!(name))));
        equals.extend(filter.state.map(|state| ("state", json!(state))));
        let query =
            Query::equal(Collection::Jobs, equals).order_by("created").descending().limit(limit);
        let mut jobs = self.plane.documents.find_as(query).await?;
        jobs.reverse();
        Ok(jobs)
    }

    /// Lets `happening` happen to the job as its holder knows it.
    ///
    /// # Errors
    /// [`LedgerError::Lost`] when somebody else holds the job by now, or a later attempt has begun.
    pub async fn advance(
        &self,
        job: &JobRecord,
        happening: &Happening,
    ) -> Result<JobRecord, LedgerError> {
        let mut current = job.clone();
        for _ in 0..RACES_MAX {
            let after = step(&current, happening)?;
            if self.write(&current, &after).await? {
                return Ok(after);
            }
            // A person may have asked for its end meanwhile; that changes the version, not the
            // holder.
            current = self.get(&job.id).await?;
            if current.attempt != job.attempt || current.holder != job.holder {
                return Err(LedgerError::Lost(job.id.clone()));
            }
        }
        Err(LedgerError::Contended(job.id.clone()))
    }

    /// The job's holder is gone: another attempt, or dead.
    pub async fn lose(&self, job: &JobRecord, reason: &str) -> Result<JobRecord, LedgerError> {
        let lost = Happening::Ended(Ended {
            end: AttemptEnd::Lost,
            exit_code: None,
            reason: Some(reason.to_owned()),
            log: None,
            staged: false,
            failed_reads: FailedReads::default(),
            retries: 0,
            jitter: 0.0,
        });
        self.advance(job, &lost).await
    }

    /// Lets `happening` happen to whatever the job is by now.
    async fn force(&self, id: &JobId, happening: &Happening) -> Result<JobRecord, LedgerError> {
        for _ in 0..RACES_MAX {
            let current = self.get(id).await?;
            let after = step(&current, happening)?;
            if self.write(&current, &after).await? {
                if current.state == JobState::Dead {
                    self.forget_letter(&after).await;
                }
                return Ok(after);
            }
        }
        Err(LedgerError::Contended(id.clone()))
    }

    async fn write(&self, before: &JobRecord, after: &JobRecord) -> Result<bool, LedgerError> {
        let documents = &self.plane.documents;
        let expect = vec![("version", json!(before.version))];
        let written = match (before.state, after.state) {
            // That it runs, or runs on, may be lost with the machine's power: then its dispatcher
            // is gone too.
            (JobState::Starting | JobState::Running, JobState::Running)
                if before.cancel == after.cancel =>
            {
                documents.replace_soon(Collection::Jobs, encode(after), expect).await?
            }
            // As for a claim by message: then it is queued still.
            (JobState::Queued, JobState::Starting) if self.plane.one_log => {
                documents.replace_soon(Collection::Jobs, encode(after), expect).await?
            }
            _ => documents.replace(Collection::Jobs, encode(after), expect, None).await?,
        };
        failpoint::reach("ledger.written");
        Ok(written)
    }

    /// The module's next jobs that wait in the ledger and may run now, at most [`LOOKED_AT`]:
    /// retries, released and gathered ones. `seen` is what this caller has seen of them: a wait is
    /// over when the writer's clock says so or when it was watched to its end, so that a clock that
    /// is minutes ahead delays nothing.
    pub async fn due(
        &self,
        module: &str,
        seen: &mut Standing<i64>,
    ) -> Result<Vec<JobRecord>, StoreError> {
        let queued = vec![("module", json!(module)), ("state", json!(JobState::Queued))];
        let query = Query::equal(Collection::Jobs, queued).order_by("due").limit(LOOKED_AT);
        let queued = self.plane.documents.find_as::<JobRecord>(query).await?;
        let stood = seen.look(queued.iter().map(|job| (job.id.to_string(), job.version)));
        let due = queued.into_iter().zip(stood);
        let due = due.filter(|(job, stood)| {
            job.term == 0 || job.due <= clock::now() || millis(*stood) >= job.term
        });
        Ok(due.map(|(job, _)| job).collect())
    }

    /// Takes the first of these queued jobs that no other dispatcher takes.
    pub async fn take(
        &self,
        due: &[JobRecord],
        holder: &str,
        lease: Millis,
    ) -> Result<Option<JobRecord>, LedgerError> {
        for job in due {
            let claimed = step(job, &Happening::Claimed { holder: holder.to_owned(), lease })?;
            if self.write(job, &claimed).await? {
                return Ok(Some(claimed));
            }
        }
        Ok(None)
    }

    /// The active jobs whose holder has given no sign of life for a lease, as far as this caller
    /// has `seen`. It has to be asked again and again: who asks for the first time has seen nobody
    /// for long.
    pub async fn expired(&self, seen: &mut Standing<Lease>) -> Result<Vec<JobRecord>, StoreError> {
        let active = self.active().await?;
        let stood =
            seen.look(active.iter().map(|job| (job.id.to_string(), (job.attempt, job.due))));
        let expired = active.into_iter().zip(stood).filter(|(job, stood)| {
            is_expired(job.term, millis(*stood), clock::has_passed_everywhere(job.due))
        });
        Ok(expired.map(|(job, _)| job).collect())
    }

    async fn active(&self) -> Result<Vec<JobRecord>, StoreError> {
        let mut active = Vec::new();
        for state in [JobState::Starting, JobState::Running] {
            let query =
                Query::equal(Collection::Jobs, vec![("state", json!(state))]).order_by("due");
            active.extend(self.plane.documents.find_as::<JobRecord>(query).await?);
        }
        Ok(active)
    }

    /// The jobs that a dispatcher holds.
    pub async fn held_by(&self, holder: &str) -> Result<Vec<JobRecord>, StoreError> {
        let mut held = self.active().await?;
        held.retain(|job| job.holder.as_deref() == Some(holder));
        Ok(held)
    }

    /// The gathering jobs that wait.
    pub async fn waiting(&self) -> Result<Vec<JobRecord>, StoreError> {
        self.list(
            &JobFilter { state: Some(JobState::Waiting), ..JobFilter::default() },
            Query::LIMIT,
        )
        .await
    }

    /// Stops a job: at once if it does not run, else as soon as its dispatcher sees it. A succeeded
    /// job cannot be.
    pub async fn cancel(&self, id: &JobId) -> Result<JobRecord, LedgerError> {
        self.force(id, &Happening::CancelAsked).await
    }

    /// Lets a dead or cancelled job run again, with all its retries.
    pub async fn retry(&self, id: &JobId) -> Result<JobRecord, LedgerError> {
        let module = self.get(id).await?.module;
        if self.module(&module).await?.is_none() {
            return Err(LedgerError::NoModule { id: id.clone(), module });
        }
        self.force(id, &Happening::Revived).await
    }

    /// The record is the truth; a letter that stays, because the broker is away, is one too many to
    /// look at.
    async fn forget_letter(&self, job: &JobRecord) {
        if let Err(error) = self.plane.bus.exhume(&[letter_of(job)]).await {
            tracing::warn!(job = %job.id, error = chain(&error), "its dead letter could not be removed");
        }
    }

    /// The gathering jobs that have begun without what this job makes.
    pub async fn ran_without(&self, job: &JobRecord) -> Result<Vec<JobRecord>, StoreError> {
        let documents = &*self.plane.documents;
        let registered = self.registered().await?;
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

    /// The visible events of a correlation, oldest first.
    pub async fn events_of(&self, correlation: &str) -> Result<Vec<Event>, StoreError> {
        let equals = vec![
            ("context.correlationId", json!(correlation)),
            ("context.documentType", json!("eventMeta")),
        ];
        let mut events: Vec<Event> = self
            .plane
            .documents
            .find_as(Query::equal(Collection::Events, equals).order_by("created"))
            .await?;
        events.retain(|event| event.publication != Publication::Staged);
        Ok(events)
    }

    /// An event that everybody may see: no insight or log that has this id, and none that is only
    /// staged.
    pub async fn visible_event(&self, id: &EventId) -> Result<Option<Event>, StoreError> {
        let found = self.plane.documents.get(Collection::Events, id.as_str()).await?;
        let kind = DocumentType::EventMeta.as_str();
        let found = found.filter(|document| document["context"]["documentType"] == kind);
        let event: Option<Event> =
            found.map(|found| decode(Collection::Events, found)).transpose()?;
        Ok(event.filter(|event| event.publication != Publication::Staged))
    }

    /// What a message is about. Whoever may write to the broker names any id in it.
    ///
    /// # Errors
    /// When the store cannot be read; never because of what the document says.
    pub async fn announced(&self, id: &EventId) -> Result<Announced, StoreError> {
        if id.as_str().len() > ID_BYTES_MAX {
            return Ok(Announced::NoEvent(format!(
                "{} is too long for an event's id",
                quote(id.as_str())
            )));
        }
        let Some(document) = self.plane.documents.get(Collection::Events, id.as_str()).await?
        else {
            // The document is inserted before its message is published, so this event never was, or
            // was removed.
            return Ok(Announced::NoEvent(format!("event {id} is not in the document store")));
        };
        let event: Event = match decode(Collection::Events, document) {
            Ok(event) => event,
            Err(error) => return Ok(Announced::NoEvent(chain(&error))),
        };
        let context = &event.context;
        Ok(match event.publication {
            _ if context.document_type != DocumentType::EventMeta => {
                let kind = context.document_type.as_str();
                Announced::NoEvent(format!("document {id} is no event: its type is {kind:?}"))
            }
            _ if context.correlation_id.as_str().len() > ID_BYTES_MAX => {
                Announced::NoEvent(format!("the correlation of event {id} is too long for an id"))
            }
            Publication::Staged => Announced::NotYet,
            Publication::Unpublished | Publication::Published => Announced::Event(Box::new(event)),
        })
    }

    /// An event.
    pub async fn event(&self, id: &EventId) -> Result<Option<Event>, StoreError> {
        self.plane.documents.get_as(Collection::Events, id.as_str()).await
    }
}

/// The job of a module on an event, which nobody has claimed yet.
fn fresh(module: &Module, event: &Event) -> JobRecord {
    let state = if module.gather.is_some() { JobState::Waiting } else { JobState::Queued };
    JobRecord::new(JobId::derive(&event.id, &module.name), &module.name, event, state, clock::now())
}

/// The record after a happening, its version raised.
fn step(job: &JobRecord, happening: &Happening) -> Result<JobRecord, LedgerError> {
    let after = next(job, happening, clock::now());
    let mut after = after.map_err(|source| LedgerError::Illegal { id: job.id.clone(), source })?;
    after.version += 1;
    Ok(after)
}
