//! Several events in one request: a JSON array of objects, or a batch of CloudEvents. Each element
//! becomes its own event.
//!
//! # Flow
//! 1. All elements are read. If one cannot be an event, the whole request is refused and nothing is
//!    committed.
//! 2. The events are committed, at most [`AT_A_TIME`] at once, each as if it had come alone.
//!
//! # Guarantees
//! Not every store that Ion runs on can commit several events at once, so a batch is not atomic if
//! a store fails in the middle. The client can send the whole batch again: an event that is known
//! by its CloudEvent's source and id, or by the request's key and its place in the batch, is
//! committed once. The answer states the outcome of each event.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::Response;
use futures_util::{StreamExt as _, stream};
use ion_jobs::progress::Verdict;
use ion_model::event::{Event, KeyValue};
use ion_model::id::{CorrelationId, EventId};
use serde::de::{Deserialize, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::auth::Principal;
use super::body::BufferedBody;
use super::cloudevent::{self, CloudEventData, DATA, parse_values};
use super::draft::{
    EventDraft, EventIdentity, check_values, commit, describe_created_event, new_uploads,
    registered_modules,
};
use super::encoding::json_text;
use super::looks::LookNeed;
use super::problem::{Problem, ProblemKind};
use super::{SharedState, json_answer, trace};

/// The maximum number of events in one request. Each takes a commit of milliseconds, on a busy
/// machine ten: more keep a client waiting for longer than it is willing to.
pub(super) const EVENTS_MAX: usize = 200;

/// How many events are committed at once. Fewer leave a store idle, more crowd out other requests.
const AT_A_TIME: usize = 8;

/// Several events that are ready to be committed.
pub(super) struct Batch {
    event_type: String,
    members: Vec<BatchMember>,
    /// For each event of the request its index in `members`: an event that the request contains
    /// twice is committed once.
    places: Vec<usize>,
    /// The request's body, which the members were read from. It keeps its reserved memory until
    /// they are committed.
    _held: BufferedBody,
}

/// One event of the batch.
#[derive(PartialEq, Eq)]
struct BatchMember {
    ids: (EventId, CorrelationId),
    same: EventIdentity,
    data: Vec<KeyValue>,
    file: Option<Vec<u8>>,
}

/// The outcome of one event.
enum MemberOutcome {
    Committed(Box<Event>),
    Failed(Problem),
    /// An earlier event failed for a reason that would have failed this one too.
    NotTried,
}

/// Reads an array of objects. Each object holds the values of one event.
pub(super) fn from_objects(
    gate: &SharedState,
    sender: &Principal,
    event_type: &str,
    same: &EventIdentity,
    held: BufferedBody,
) -> Result<Batch, Problem> {
    let limits = &gate.node.settings.limits;
    let members = read_members(&held, sender, |item, place| {
        Ok((same.in_batch(place), parse_values(item, limits)?, None))
    })?;
    let is_pair = |member: &BatchMember| matches!(&member.data[..], [a, b] if a.key == "key" && b.key == "value");
    if !members.is_empty() && members.iter().all(is_pair) {
        let detail = "an array of objects with \"key\" and \"value\" could be the values of one event, or one event each; \
                      send one object with a member for each value";
        return Err(Problem::new(ProblemKind::Malformed, detail));
    }
    Batch::new(gate, event_type, members, held)
}

/// Reads a batch of CloudEvents.
pub(super) fn from_cloudevents(
    gate: &SharedState,
    sender: &Principal,
    event_type: &str,
    same: &EventIdentity,
    held: BufferedBody,
) -> Result<Batch, Problem> {
    let limits = &gate.node.settings.limits;
    let members = read_members(&held, sender, |item, place| {
        let (attributes, carried) = cloudevent::read_structured(item, limits)?;
        let same = same.in_batch(place).or_cloudevent(&attributes);
        let mut data = attributes.values;
        match carried {
            CloudEventData::Values(values) => {
                data.extend(values);
                Ok((same, data, None))
            }
            CloudEventData::File(bytes) => Ok((same, data, Some(bytes))),
        }
    })?;
    Batch::new(gate, event_type, members, held)
}

/// Reads each item into a member; `read` receives the item's text and its place. A problem names
/// the place of its item.
fn read_members(
    held: &BufferedBody,
    sender: &Principal,
    read: impl Fn(&[u8], usize) -> Result<(EventIdentity, Vec<KeyValue>, Option<Vec<u8>>), Problem>,
) -> Result<Vec<BatchMember>, Problem> {
    let member = |(place, item): (usize, &RawValue)| {
        let (same, data, file) =
            read(item.get().as_bytes(), place).map_err(|problem| problem.for_batch_event(place))?;
        Ok(BatchMember { ids: same.ids(sender), same, data, file })
    };
    parse_items(held)?.into_iter().enumerate().map(member).collect()
}

impl Batch {
    /// Builds the batch. Refuses events whose commit is known to fail before it is tried.
    fn new(
        gate: &SharedState,
        event_type: &str,
        all: Vec<BatchMember>,
        held: BufferedBody,
    ) -> Result<Self, Problem> {
        let mut known: HashMap<EventId, usize> = HashMap::new();
        let (mut members, mut places): (Vec<BatchMember>, Vec<usize>) = (Vec::new(), Vec::new());
        for (place, member) in all.into_iter().enumerate() {
            check_values(gate, &member.data).map_err(|problem| problem.for_batch_event(place))?;
            let at = *known.entry(member.ids.0.clone()).or_insert(members.len());
            places.push(at);
            match members.get(at) {
                None => members.push(member),
                Some(same) if *same == member => {}
                Some(_) => {
                    let detail =
                        "another event of the batch has the same source and id, but other content";
                    return Err(Problem::new(ProblemKind::Differs, detail).for_batch_event(place));
                }
            }
        }
        Ok(Self { event_type: event_type.to_owned(), members, places, _held: held })
    }

    /// Commits the events, and answers with the outcome of each.
    pub(super) async fn commit_and_answer(
        self,
        gate: &SharedState,
        wait: Option<Duration>,
    ) -> Result<Response, Problem> {
        let Self { event_type, members, places, _held } = self;
        let stopped = AtomicBool::new(false);
        let commits = members.into_iter().map(|member| {
            let (event_type, stopped) = (&event_type, &stopped);
            async move {
                if stopped.load(Ordering::Relaxed) {
                    return MemberOutcome::NotTried;
                }
                match member.commit(gate, event_type).await {
                    Ok(event) => MemberOutcome::Committed(Box::new(event)),
                    Err(problem) => {
                        // A problem of this event alone does not stop the others.
                        let its_own = [ProblemKind::Differs, ProblemKind::KeyReused]
                            .contains(&problem.kind());
                        stopped.fetch_or(!its_own, Ordering::Relaxed);
                        MemberOutcome::Failed(problem)
                    }
                }
            }
        });
        let outcomes: Vec<MemberOutcome> =
            stream::iter(commits).buffered(AT_A_TIME).collect().await;
        if outcomes.iter().all(|outcome| matches!(outcome, MemberOutcome::Committed(_))) {
            return answer_all_committed(gate, &outcomes, &places, wait).await;
        }
        Err(incomplete_problem(outcomes, &places))
    }
}

impl BatchMember {
    async fn commit(self, gate: &SharedState, event_type: &str) -> Result<Event, Problem> {
        let mut uploads = new_uploads(&self.ids, gate);
        if let Some(bytes) = self.file {
            uploads.store_bytes(DATA, bytes).await?;
        }
        commit(gate, EventDraft::new(event_type, self.ids, self.data), uploads, &self.same).await
    }
}

/// Answers when all events are committed. With `wait`, the answer states how each ended.
async fn answer_all_committed(
    gate: &SharedState,
    outcomes: &[MemberOutcome],
    places: &[usize],
    wait: Option<Duration>,
) -> Result<Response, Problem> {
    let deadline = wait.map(|wait| Instant::now() + wait);
    let mut running = wait.is_none();
    let mut documents = Vec::with_capacity(outcomes.len());
    let registered = registered_modules(gate).await;
    for outcome in outcomes {
        let MemberOutcome::Committed(event) = outcome else { continue };
        let mut made = describe_created_event(
            (&event.id, &event.context.correlation_id),
            &event.event_type,
            registered.as_deref(),
        );
        if let Some(deadline) = deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            let seen = trace::wait_for_end(
                gate,
                event.context.correlation_id.as_str(),
                left,
                LookNeed::Verdict,
            )
            .await?;
            running |= seen.verdict == Verdict::Running;
            made["outcome"] = seen.verdict.as_str().into();
        }
        documents.push(made);
    }
    let status = if running { StatusCode::ACCEPTED } else { StatusCode::OK };
    let events: Vec<&Value> = places.iter().map(|&at| &documents[at]).collect();
    Ok(json_answer(status, &json!({"events": events})))
}

/// Answers when some events are not committed: with the problem of the first that failed, and the
/// outcome of each.
fn incomplete_problem(outcomes: Vec<MemberOutcome>, places: &[usize]) -> Problem {
    let documents: Vec<Value> = outcomes
        .iter()
        .map(|outcome| match outcome {
            MemberOutcome::Committed(event) => describe_created_event(
                (&event.id, &event.context.correlation_id),
                &event.event_type,
                None,
            ),
            MemberOutcome::Failed(problem) => json!({"problem": problem.document()}),
            MemberOutcome::NotTried => json!({"problem": null}),
        })
        .collect();
    let events: Vec<&Value> = places.iter().map(|&at| &documents[at]).collect();
    let events = json!(events);
    let first = outcomes.into_iter().enumerate().find_map(|(at, outcome)| match outcome {
        MemberOutcome::Failed(problem) => Some((at, problem)),
        _ => None,
    });
    let (at, problem) =
        first.expect("an event that is not committed failed, or an earlier one did");
    let place = places.iter().position(|&one| one == at).unwrap_or_default();
    problem.for_batch_event(place).with_member("events", events)
}

/// The elements of an array, at most [`EVENTS_MAX`].
struct BatchItems<'a> {
    items: Vec<&'a RawValue>,
    /// Whether the array had more elements.
    more: bool,
}

impl<'de> Deserialize<'de> for BatchItems<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements;
        impl<'de> Visitor<'de> for Elements {
            type Value = BatchItems<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an array of events")
            }

            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut elements: A,
            ) -> Result<Self::Value, A::Error> {
                let (mut items, mut more) = (Vec::new(), false);
                while items.len() < EVENTS_MAX {
                    let Some(item) = elements.next_element()? else {
                        return Ok(BatchItems { items, more });
                    };
                    items.push(item);
                }
                while elements.next_element::<IgnoredAny>()?.is_some() {
                    more = true;
                }
                Ok(BatchItems { items, more })
            }
        }
        deserializer.deserialize_seq(Elements)
    }
}

fn parse_items(held: &BufferedBody) -> Result<Vec<&RawValue>, Problem> {
    match serde_json::from_slice::<BatchItems<'_>>(json_text(held.bytes())?) {
        Ok(BatchItems { items, more: false }) => Ok(items),
        Ok(_) => {
            let detail = format!(
                "a batch may have {EVENTS_MAX} events; send more events in several requests"
            );
            Err(Problem::new(ProblemKind::TooBig, detail))
        }
        Err(error) => Err(Problem::new(
            ProblemKind::Malformed,
            format!("the body is not an array of events: {error}"),
        )),
    }
}
