//! The outbox: tells the bus what was committed and not published, what on-success jobs staged, and
//! who is dead.
//!
//! Any number of relays may run. What has stood in the outbox for a while was left there by a
//! writer that died or could not reach the bus; one relay writes itself into the event's document
//! and publishes it. If that relay dies too, the document has stood still for another while, and
//! the next one takes it. Each step is idempotent all the same.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::join_all;
use ion_model::clock;
use ion_model::errors::chain;
use ion_model::event::{Event, Publication};
use ion_model::id::JobId;
use ion_model::record::{CommitMode, InsightRecord, JobRecord, JobState};
use ion_stores::{Collection, DataPlane, DeadLetter, Equals, Query, StoreError, decode, encode};
use ion_system::failpoint;
use ion_system::patience::Standing;
use ion_system::spans;
use serde_json::json;
use tracing::{Instrument as _, info_span};
use uuid::Uuid;

use crate::commit::steps::Step;
use crate::commit::{OUTDATED_MAX, changed, publish, timed};

/// How long what is committed is left to its own writer, and what a relay took on to that relay.
/// Shorter makes relays publish what the writer is about to.
pub const GRACE: Duration = Duration::from_secs(10);

/// Events and jobs looked at in one round.
const BATCH: usize = 1000;

/// Events published at the same time.
const AT_A_TIME: usize = 16;

/// One relay: it remembers what it has seen, and for how long.
#[derive(Debug)]
pub struct Relay {
    plane: DataPlane,
    id: String,
    grace: Duration,
    events: Standing<Option<String>>,
    jobs: Standing<i64>,
}

impl Relay {
    /// A relay that leaves everything to its writer for `grace`; [`GRACE`] unless a test has no
    /// time.
    pub fn new(plane: DataPlane, grace: Duration) -> Self {
        let id = Uuid::new_v4().simple().to_string();
        Self { plane, id, grace, events: Standing::default(), jobs: Standing::default() }
    }

    /// Looks once and publishes what has stood still for the grace; gives how many events it
    /// published.
    ///
    /// # Errors
    /// When a store failed. What could be done is done all the same: a queue that is broken must
    /// not hold up the events of all others, so for the rest of the round only its type is left
    /// alone.
    pub async fn round(&mut self) -> Result<usize, StoreError> {
        let mut published = 0;
        let unpublished = Query::equal(
            Collection::Events,
            vec![("publication", json!(Publication::Unpublished))],
        )
        .order_by("created")
        .limit(BATCH);
        // One that cannot be read must not hold up all others; `ion check` tells of it.
        let unpublished = self.plane.documents.find(unpublished).await?.into_iter();
        let unpublished: Vec<Event> = unpublished
            .filter_map(|document| {
                let event = decode(Collection::Events, document);
                event
                    .inspect_err(|error| {
                        tracing::debug!(error = chain(error), "an event is left unpublished")
                    })
                    .ok()
            })
            .collect();
        self.plane.metrics.outbox.set(unpublished.len());
        let seen = unpublished.iter().map(|event| (event.id.to_string(), event.publisher.clone()));
        let stood = self.events.look(seen);
        let left: Vec<&Event> = unpublished
            .iter()
            .zip(stood)
            .filter(|(event, stood)| {
                let ours = event.publisher.as_ref() == Some(&self.id);
                ours || *stood >= self.grace || clock::has_passed_everywhere(event.created)
            })
            .map(|(event, _)| event)
            .collect();
        let mut broken: HashSet<&str> = HashSet::new();
        let mut failed = None;
        for some in left.chunks(AT_A_TIME) {
            let some: Vec<&&Event> =
                some.iter().filter(|event| !broken.contains(event.event_type.as_str())).collect();
            let outcomes = join_all(some.iter().map(|event| self.publish((**event).clone()))).await;
            for (event, outcome) in some.iter().zip(outcomes) {
                match outcome {
                    Ok(ours) => published += usize::from(ours),
                    Err(error) => {
                        broken.insert(&event.event_type);
                        failed = Some(error);
                    }
                }
            }
        }
        let waiting = Query::equal(Collection::Jobs, vec![("outbox", json!(true))]).limit(BATCH);
        let waiting = self.plane.documents.find_as::<JobRecord>(waiting).await?;
        let stood = self.jobs.look(waiting.iter().map(|job| (job.id.to_string(), job.version)));
        for (job, _) in waiting.iter().zip(stood).filter(|(_, stood)| *stood >= self.grace) {
            match promote(&self.plane, &job.id).await {
                Ok(promoted) => published += promoted,
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(published),
        }
    }

    /// Takes the event on and publishes it; false when somebody else has.
    pub(crate) async fn publish(&self, event: Event) -> Result<bool, StoreError> {
        let span = info_span!(
            target: spans::TARGET, parent: None, "relay",
            ion.event.id = event.id.as_str(), ion.correlation.id = event.context.correlation_id.as_str(),
            ion.parent.job.id = event.job_id.as_ref().map(JobId::as_str), ion.parent.attempt = event.attempt
        );
        let published = self.adopt_and_publish(event).instrument(span).await;
        if let Ok(true) = published {
            self.plane.metrics.relayed.add(1);
        }
        published
    }

    async fn adopt_and_publish(&self, mut event: Event) -> Result<bool, StoreError> {
        let mut step = Step::Publish;
        if event.publisher.as_ref() != Some(&self.id) {
            let expect = vec![
                ("publication", json!(Publication::Unpublished)),
                ("publisher", json!(event.publisher)),
            ];
            event.publisher = Some(self.id.clone());
            let adopted =
                self.plane.documents.replace(Collection::Events, encode(&event), expect, None);
            let adopted = timed(&self.plane, Step::Adopt, adopted).await?;
            step = Step::Adopt.after(changed(adopted), event.attempt, CommitMode::OnClose);
            failpoint::reach("relay.adopted");
        }
        let ours = step == Step::Publish;
        publish(&self.plane, event, step, None).await.map(|()| ours)
    }
}

/// Tells the bus what a job's end has left to be told, and clears its outbox: publishes what a
/// succeeded on-success job staged, buries the message of a dead one. Gives how many events it
/// published.
///
/// # Guarantees
/// The job's own record says how it ended: that one write committed all of this, which is only
/// carried out here. Repeating it, or two at once, changes nothing.
pub async fn promote(plane: &DataPlane, job_id: &JobId) -> Result<usize, StoreError> {
    let documents = &plane.documents;
    let Some(job) = documents.get_as::<JobRecord>(Collection::Jobs, job_id.as_str()).await? else {
        return Ok(0);
    };
    if !job.outbox {
        return Ok(0);
    }
    let promoted = match job.state {
        JobState::Succeeded => promote_staged(plane, &job).await?,
        JobState::Dead => bury(plane, &job).await.map(|()| 0)?,
        _ => 0,
    };
    failpoint::reach("promote.told");
    let mut done = job.clone();
    done.outbox = false;
    done.version += 1;
    documents
        .replace(Collection::Jobs, encode(&done), vec![("version", json!(job.version))], None)
        .await?;
    Ok(promoted)
}

/// The message of a job with no retries left becomes a dead letter.
async fn bury(plane: &DataPlane, job: &JobRecord) -> Result<(), StoreError> {
    let event = plane.documents.get_as::<Event>(Collection::Events, job.event_id.as_str()).await?;
    let reason = job.attempts.last().and_then(|attempt| attempt.reason.clone());
    let body = event.map(|event| encode(&event.message()).to_string()).unwrap_or_default();
    let reason = reason.unwrap_or_else(|| "it failed".into());
    let at = job.ended.unwrap_or_else(clock::now);
    plane.bus.bury(DeadLetter::new(&job.module, job.event_id.as_str(), body, reason, at)).await
}

/// Makes a staged event visible, for the modules that are registered now: this is its commit.
/// Whether it was as expected.
async fn reveal(
    plane: &DataPlane,
    event: &mut Event,
    expect: Vec<Equals>,
) -> Result<bool, StoreError> {
    let documents = &plane.documents;
    let mut tries = 0;
    loop {
        let registered = plane.address(event).await?;
        let revealed =
            documents.replace(Collection::Events, encode(event), expect.clone(), Some(registered));
        match revealed.await {
            Err(StoreError::Fenced(Collection::Plane)) if tries < OUTDATED_MAX => {
                plane.forget_registry();
                tries += 1;
            }
            revealed => return revealed,
        }
    }
}

async fn promote_staged(plane: &DataPlane, job: &JobRecord) -> Result<usize, StoreError> {
    let (documents, job_id) = (&plane.documents, &job.id);
    let of_job = vec![("context.parentEventId", json!(job.event_id)), ("jobId", json!(job_id))];
    let staged = |mut equals: Vec<(&'static str, serde_json::Value)>| {
        equals.push(("publication", json!(Publication::Staged)));
        Query::equal(Collection::Events, equals)
    };
    let mut promoted = 0;
    for mut event in documents.find_as::<Event>(staged(of_job)).await? {
        let expect =
            vec![("publication", json!(Publication::Staged)), ("attempt", json!(event.attempt))];
        if event.attempt != Some(job.attempt) {
            // Of an attempt that failed: it was never committed.
            documents.delete(Collection::Events, event.id.as_str(), expect).await?;
            continue;
        }
        event.publication = Publication::Unpublished;
        let revealed = timed(plane, Step::Reveal, reveal(plane, &mut event, expect)).await?;
        let step = Step::Reveal.after(changed(revealed), event.attempt, CommitMode::OnSuccess);
        failpoint::reach("promote.revealed");
        publish(plane, event, step, None).await?;
        promoted += usize::from(step == Step::Publish);
    }
    let insight =
        documents.get_as::<InsightRecord>(Collection::Events, &InsightRecord::id(job_id)).await?;
    if let Some(mut insight) = insight.filter(|insight| insight.staged) {
        let expect = vec![("staged", json!(true)), ("attempt", json!(insight.attempt))];
        if insight.attempt == job.attempt {
            insight.staged = false;
            documents.replace(Collection::Events, encode(&insight), expect, None).await?;
        } else {
            // Of an attempt that failed: nobody may see them.
            documents.delete(Collection::Events, &insight.id, expect).await?;
        }
    }
    Ok(promoted)
}
