//! The relay of the outbox. It publishes committed events that are still unpublished, publishes
//! what on-success jobs have staged, and makes dead letters of the messages of dead jobs.
//!
//! Any number of relays may run. An event that has been in the outbox for [`GRACE`] was left there
//! by a writer that died or could not reach the bus. One relay writes its own id into the event's
//! document and publishes the event. If that relay dies too, the document stays unchanged for
//! another [`GRACE`], and the next relay takes it. In addition, each step is idempotent.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::join_all;
use ion_model::clock;
use ion_model::errors::error_chain;
use ion_model::event::{Event, PublicationState};
use ion_model::id::JobId;
use ion_model::record::{CommitMode, InsightRecord, JobRecord, JobState};
use ion_stores::{
    Collection, DataPlane, DeadLetter, Durability, Equals, Query, StoreError, decode, encode,
};
use ion_system::failpoint;
use ion_system::patience::{FailedTry, Retry, StateAges};
use ion_system::spans;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tracing::{Instrument as _, info_span};
use uuid::Uuid;

use crate::commit::steps::CommitStep;
use crate::commit::{OUTDATED_MAX, answer_from_written, publish_and_mark, run_step};

/// How long a committed event is left to its writer, and an adopted event to its relay. With a
/// shorter time relays publish events that the writer is about to publish.
pub const GRACE: Duration = Duration::from_secs(10);

/// The number of events, and of jobs, that one round reads at most.
const BATCH: usize = 1000;

/// The number of events that are published concurrently.
const AT_A_TIME: usize = 16;

/// A relay. It remembers which events and jobs it has seen, and for how long they have stayed
/// unchanged.
#[derive(Debug)]
pub struct Relay {
    plane: DataPlane,
    id: String,
    grace: Duration,
    events: StateAges<Option<String>>,
    jobs: StateAges<i64>,
}

impl Relay {
    /// Makes a relay that leaves every event to its writer for `grace`. This is [`GRACE`], except
    /// in tests that cannot wait.
    pub fn new(plane: DataPlane, grace: Duration) -> Self {
        let id = Uuid::new_v4().simple().to_string();
        Self { plane, id, grace, events: StateAges::default(), jobs: StateAges::default() }
    }

    /// Reads the outbox once and publishes the events that have stayed unchanged for the grace
    /// period. Returns how many events it published.
    ///
    /// # Errors
    /// When a store failed. The round still does everything that it can: a broken queue must not
    /// hold up the events of other queues, so the rest of the round skips only events of its type.
    pub async fn run_round(&mut self) -> Result<usize, StoreError> {
        let mut published = 0;
        let unpublished = Query::equal(
            Collection::Events,
            vec![("publication", json!(PublicationState::Unpublished))],
        )
        .order_by("created")
        .limit(BATCH);
        let unpublished: Vec<Event> =
            decode_readable(unpublished.collection, self.plane.documents.find(unpublished).await?);
        self.plane.metrics.outbox.set(unpublished.len());
        let seen = unpublished.iter().map(|event| (event.id.to_string(), event.publisher.clone()));
        let stood = self.events.update(seen);
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
        let waiting: Vec<JobRecord> =
            decode_readable(waiting.collection, self.plane.documents.find(waiting).await?);
        let stood = self.jobs.update(waiting.iter().map(|job| (job.id.to_string(), job.version)));
        for (job, _) in waiting.iter().zip(stood).filter(|(_, stood)| *stood >= self.grace) {
            match empty_outbox(&self.plane, &job.id).await {
                Ok(promoted) => published += promoted,
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(published),
        }
    }

    /// Adopts the event and publishes it. Returns false if another process has adopted or published
    /// it.
    pub(crate) async fn publish(&self, event: Event) -> Result<bool, StoreError> {
        let span = info_span!(
            target: spans::TARGET, parent: None, "relay",
            ion.event.id = event.id.as_str(),
            ion.correlation.id = event.context.correlation_id.as_str(),
            ion.parent.job.id = event.job_id.as_ref().map(JobId::as_str),
            ion.parent.attempt = event.attempt
        );
        let published = self.adopt_and_publish(event).instrument(span).await;
        if let Ok(true) = published {
            self.plane.metrics.relayed.add(1);
        }
        published
    }

    async fn adopt_and_publish(&self, mut event: Event) -> Result<bool, StoreError> {
        let mut step = CommitStep::Publish;
        if event.publisher.as_ref() != Some(&self.id) {
            let expect = vec![
                ("publication", json!(PublicationState::Unpublished)),
                ("publisher", json!(event.publisher)),
            ];
            event.publisher = Some(self.id.clone());
            let adopted = self.plane.documents.replace(
                Collection::Events,
                encode(&event),
                expect,
                None,
                Durability::Now,
            );
            let adopted = run_step(&self.plane, CommitStep::Adopt, adopted).await?;
            step = CommitStep::Adopt.next_step(
                answer_from_written(adopted),
                event.attempt,
                CommitMode::OnClose,
            );
            failpoint::hit("relay.adopted");
        }
        let publishes = step == CommitStep::Publish;
        publish_and_mark(&self.plane, event, step, None).await.map(|()| publishes)
    }
}

/// Carries out what a job's end has left for the bus, and clears the job's outbox: publishes the
/// staged events of a succeeded on-success job, and makes a dead letter of the message of a dead
/// job. Returns how many events it published.
///
/// # Guarantees
/// The write of the job's record that says how it ended has committed all of this; this function
/// only carries it out. Repeating it, or running it twice at once, changes nothing.
///
/// # Errors
/// When a store fails. The caller may call it again, or leave the job's outbox to a relay.
pub async fn empty_outbox(plane: &DataPlane, job_id: &JobId) -> Result<usize, StoreError> {
    let documents = &plane.documents;
    let Some(job) = documents.get_as::<JobRecord>(Collection::Jobs, job_id.as_str()).await? else {
        return Ok(0);
    };
    if !job.outbox {
        return Ok(0);
    }
    let promoted = match job.state {
        JobState::Succeeded => reveal_staged(plane, &job).await?,
        JobState::Dead => add_dead_letter(plane, &job).await.map(|()| 0)?,
        _ => 0,
    };
    failpoint::hit("promote.told");
    let mut done = job.clone();
    done.outbox = false;
    done.version += 1;
    documents
        .replace(
            Collection::Jobs,
            encode(&done),
            vec![("version", json!(job.version))],
            None,
            Durability::Now,
        )
        .await?;
    Ok(promoted)
}

/// Makes the message of a job that has no retries left a dead letter.
async fn add_dead_letter(plane: &DataPlane, job: &JobRecord) -> Result<(), StoreError> {
    let event = plane.documents.get_as::<Event>(Collection::Events, job.event_id.as_str()).await?;
    let reason = job.attempts.last().and_then(|attempt| attempt.reason.clone());
    let body = event.map(|event| encode(&event.message()).to_string()).unwrap_or_default();
    let reason = reason.unwrap_or_else(|| "it failed".into());
    let at = job.ended.unwrap_or_else(clock::now);
    plane
        .bus
        .add_dead_letter(DeadLetter::new(&job.module, job.event_id.as_str(), body, reason, at))
        .await
}

/// Reads the documents that can be read. One that cannot must not hold up the others; `ion check`
/// reports it.
fn decode_readable<T: DeserializeOwned>(collection: Collection, documents: Vec<Value>) -> Vec<T> {
    let read = documents.into_iter().map(|document| decode(collection, document));
    let read = read.map(|read: Result<T, StoreError>| {
        read.inspect_err(|error| {
            tracing::debug!(
                error = error_chain(error),
                "a document of the outbox cannot be read; `ion check` reports it"
            )
        })
    });
    read.flatten().collect()
}

/// Makes a staged event visible, for the modules that are registered now. This is the event's
/// commit. Returns whether the document had the fields of `expect`.
async fn reveal(
    plane: &DataPlane,
    event: &mut Event,
    expect: Vec<Equals>,
) -> Result<bool, StoreError> {
    let documents = &plane.documents;
    let before = event.clone();
    let reveal = async |_| {
        let mut event = before.clone();
        let registered = Some(plane.address_event(&mut event).await?);
        let (at, expect) = (Collection::Events, expect.clone());
        let replaced =
            documents.replace(at, encode(&event), expect, registered, Durability::Now).await?;
        Ok((event, replaced))
    };
    let is_outdated = |error: &StoreError| matches!(error, StoreError::Fenced(Collection::Plane));
    let again = |failed: FailedTry<'_, _>| {
        let outdated = is_outdated(failed.error);
        if outdated {
            plane.forget_registry();
        }
        outdated
    };
    let (addressed, replaced) = Retry::times(OUTDATED_MAX + 1).run(reveal, again).await?;
    *event = addressed;
    Ok(replaced)
}

async fn reveal_staged(plane: &DataPlane, job: &JobRecord) -> Result<usize, StoreError> {
    let (documents, job_id) = (&plane.documents, &job.id);
    let of_job = vec![("context.parentEventId", json!(job.event_id)), ("jobId", json!(job_id))];
    let staged = |mut equals: Vec<(&'static str, serde_json::Value)>| {
        equals.push(("publication", json!(PublicationState::Staged)));
        Query::equal(Collection::Events, equals)
    };
    let mut promoted = 0;
    for mut event in documents.find_as::<Event>(staged(of_job)).await? {
        let expect = vec![
            ("publication", json!(PublicationState::Staged)),
            ("attempt", json!(event.attempt)),
        ];
        if event.attempt != Some(job.attempt) {
            // The event is of an attempt that failed, so it was never committed.
            documents.delete(Collection::Events, event.id.as_str(), expect).await?;
            continue;
        }
        event.publication = PublicationState::Unpublished;
        let revealed =
            run_step(plane, CommitStep::Reveal, reveal(plane, &mut event, expect)).await?;
        let step = CommitStep::Reveal.next_step(
            answer_from_written(revealed),
            event.attempt,
            CommitMode::OnSuccess,
        );
        failpoint::hit("promote.revealed");
        publish_and_mark(plane, event, step, None).await?;
        promoted += usize::from(step == CommitStep::Publish);
    }
    let insight =
        documents.get_as::<InsightRecord>(Collection::Events, &InsightRecord::id(job_id)).await?;
    if let Some(mut insight) = insight.filter(|insight| insight.staged) {
        let expect = vec![("staged", json!(true)), ("attempt", json!(insight.attempt))];
        if insight.attempt == job.attempt {
            insight.staged = false;
            documents
                .replace(Collection::Events, encode(&insight), expect, None, Durability::Now)
                .await?;
        } else {
            // The insights are of an attempt that failed, so nobody may see them.
            documents.delete(Collection::Events, &insight.id, expect).await?;
        }
    }
    Ok(promoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody wrote into the document store by hand, or a newer Ion did.
    #[tokio::test]
    async fn a_job_that_cannot_be_read_holds_up_no_other() {
        let plane = DataPlane::in_memory().unwrap();
        let unreadable = json!({"id": "a", "outbox": true, "state": "asleep"});
        let dead = json!({
            "id": "b", "version": 1, "module": "m", "eventId": "e", "eventType": "t",
            "correlationId": "c", "state": "dead", "attempt": 1, "attempts": [], "due": 0,
            "term": 0, "created": 0, "ended": 1, "cancel": false, "outbox": true, "failures": 1,
            "losses": 0,
        });
        for job in [unreadable, dead] {
            plane.documents.insert(Collection::Jobs, job, None, Durability::Now).await.unwrap();
        }
        let mut relay = Relay::new(plane.clone(), Duration::ZERO);
        relay.run_round().await.unwrap();
        let letters = plane.bus.list_dead_letters(10).await.unwrap();
        let [letter] = &letters[..] else { panic!("{letters:?}") };
        assert_eq!((letter.module.as_str(), letter.event_id.as_str()), ("m", "e"));
    }
}
