//! Several events in one request: a JSON array of objects, or a batch of CloudEvents; each is an
//! event of its own.
//!
//! # Flow
//! 1. All of them are read. One that cannot be an event refuses the whole request: nothing has
//!    happened.
//! 2. They are committed, a few at a time, as if each had come alone.
//!
//! # Guarantees
//! No store that Ion runs on can be relied on to commit several events at once, so a batch is not
//! atomic once a store fails in the middle. It can be sent again whole: an event that is known by
//! its CloudEvent's source and id, or by the request's key and its place, is committed once. The
//! answer says of each what became of it.

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
use super::body::Held;
use super::cloudevent::{self, Carried, DATA, values_of};
use super::form::json_text;
use super::intake::{Made, Sameness, check_values, commit, made_answer, registered, uploads};
use super::looks::Need;
use super::problem::{Kind, Problem};
use super::{Shared, json_answer, trace};

/// Events of one request. Each takes a commit of milliseconds, on a busy machine ten: more keep a
/// client waiting for longer than it is willing to.
pub(super) const EVENTS_MAX: usize = 200;

/// How many are committed at a time. Fewer leave a store idle, more crowd out other requests.
const AT_A_TIME: usize = 8;

/// Several events that can be committed.
pub(super) struct Batch {
    event_type: String,
    members: Vec<Member>,
    /// For each event of the request its place in `members`: an event that is there twice is
    /// committed once.
    places: Vec<usize>,
    /// The request's body, which the members were read from, has its room until they are committed.
    _held: Held,
}

/// One of them.
#[derive(PartialEq, Eq)]
struct Member {
    ids: (EventId, CorrelationId),
    same: Sameness,
    data: Vec<KeyValue>,
    file: Option<Vec<u8>>,
}

/// What became of one of them.
enum Outcome {
    Committed(Box<Event>),
    Failed(Problem),
    /// One before it failed in a way that this one would have, too.
    NotTried,
}

/// An array of objects, each of which holds an event's values.
pub(super) fn of_objects(
    gate: &Shared,
    sender: &Principal,
    event_type: &str,
    same: &Sameness,
    held: Held,
) -> Result<Batch, Problem> {
    let limits = &gate.node.settings.limits;
    let members =
        members(&held, sender, |item, place| Ok((same.at(place), values_of(item, limits)?, None)))?;
    let is_pair =
        |member: &Member| matches!(&member.data[..], [a, b] if a.key == "key" && b.key == "value");
    if !members.is_empty() && members.iter().all(is_pair) {
        let detail = "an array of objects with \"key\" and \"value\" could be one event's values or an event for each; \
                      send one object with a member for each value";
        return Err(Problem::new(Kind::Malformed, detail));
    }
    Batch::new(gate, event_type, members, held)
}

/// A batch of CloudEvents.
pub(super) fn of_cloudevents(
    gate: &Shared,
    sender: &Principal,
    event_type: &str,
    same: &Sameness,
    held: Held,
) -> Result<Batch, Problem> {
    let limits = &gate.node.settings.limits;
    let members = members(&held, sender, |item, place| {
        let (attributes, carried) = cloudevent::read_structured(item, limits)?;
        let same = same.at(place).or_of(&attributes);
        let mut data = attributes.values;
        match carried {
            Carried::Values(values) => {
                data.extend(values);
                Ok((same, data, None))
            }
            Carried::File(bytes) => Ok((same, data, Some(bytes))),
        }
    })?;
    Batch::new(gate, event_type, members, held)
}

/// An event of each item, as `read` makes it of the item's text and place. Its mistakes name the
/// place.
fn members(
    held: &Held,
    sender: &Principal,
    read: impl Fn(&[u8], usize) -> Result<(Sameness, Vec<KeyValue>, Option<Vec<u8>>), Problem>,
) -> Result<Vec<Member>, Problem> {
    let member = |(place, item): (usize, &RawValue)| {
        let (same, data, file) =
            read(item.get().as_bytes(), place).map_err(|problem| problem.of_event(place))?;
        Ok(Member { ids: same.ids(sender), same, data, file })
    };
    items(held)?.into_iter().enumerate().map(member).collect()
}

impl Batch {
    /// Refuses what could not be committed, as far as that can be known before.
    fn new(gate: &Shared, event_type: &str, all: Vec<Member>, held: Held) -> Result<Self, Problem> {
        let mut known: HashMap<EventId, usize> = HashMap::new();
        let (mut members, mut places): (Vec<Member>, Vec<usize>) = (Vec::new(), Vec::new());
        for (place, member) in all.into_iter().enumerate() {
            check_values(gate, &member.data).map_err(|problem| problem.of_event(place))?;
            let at = *known.entry(member.ids.0.clone()).or_insert(members.len());
            places.push(at);
            match members.get(at) {
                None => members.push(member),
                Some(same) if *same == member => {}
                Some(_) => {
                    let detail =
                        "another one of the batch has its source and id, and says something else";
                    return Err(Problem::new(Kind::Differs, detail).of_event(place));
                }
            }
        }
        Ok(Self { event_type: event_type.to_owned(), members, places, _held: held })
    }

    /// Commits them, and says what became of each.
    pub(super) async fn create(
        self,
        gate: &Shared,
        wait: Option<Duration>,
    ) -> Result<Response, Problem> {
        let Self { event_type, members, places, _held } = self;
        let stopped = AtomicBool::new(false);
        let commits = members.into_iter().map(|member| {
            let (event_type, stopped) = (&event_type, &stopped);
            async move {
                if stopped.load(Ordering::Relaxed) {
                    return Outcome::NotTried;
                }
                match member.commit(gate, event_type).await {
                    Ok(event) => Outcome::Committed(Box::new(event)),
                    Err(problem) => {
                        // What is wrong with this one alone says nothing of the others.
                        let its_own = [Kind::Differs, Kind::KeyReused].contains(&problem.kind());
                        stopped.fetch_or(!its_own, Ordering::Relaxed);
                        Outcome::Failed(problem)
                    }
                }
            }
        });
        let outcomes: Vec<Outcome> = stream::iter(commits).buffered(AT_A_TIME).collect().await;
        if outcomes.iter().all(|outcome| matches!(outcome, Outcome::Committed(_))) {
            return answer(gate, &outcomes, &places, wait).await;
        }
        Err(incomplete(outcomes, &places))
    }
}

impl Member {
    async fn commit(self, gate: &Shared, event_type: &str) -> Result<Event, Problem> {
        let mut uploads = uploads(&self.ids, gate);
        if let Some(bytes) = self.file {
            uploads.take_bytes(DATA, bytes).await?;
        }
        commit(gate, Made::new(event_type, self.ids, self.data), uploads, &self.same).await
    }
}

/// All of them are committed. Whoever waits is told how each ended.
async fn answer(
    gate: &Shared,
    outcomes: &[Outcome],
    places: &[usize],
    wait: Option<Duration>,
) -> Result<Response, Problem> {
    let deadline = wait.map(|wait| Instant::now() + wait);
    let mut running = wait.is_none();
    let mut said = Vec::with_capacity(outcomes.len());
    let registered = registered(gate).await;
    for outcome in outcomes {
        let Outcome::Committed(event) = outcome else { continue };
        let mut made = made_answer(
            (&event.id, &event.context.correlation_id),
            &event.event_type,
            registered.as_deref(),
        );
        if let Some(deadline) = deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            let seen =
                trace::wait(gate, event.context.correlation_id.as_str(), left, Need::Verdict)
                    .await?;
            running |= seen.verdict == Verdict::Running;
            made["outcome"] = seen.verdict.as_str().into();
        }
        said.push(made);
    }
    let status = if running { StatusCode::ACCEPTED } else { StatusCode::OK };
    let events: Vec<&Value> = places.iter().map(|&at| &said[at]).collect();
    Ok(json_answer(status, &json!({"events": events})))
}

/// Some of them are not: the problem of the first that failed, and what became of each.
fn incomplete(outcomes: Vec<Outcome>, places: &[usize]) -> Problem {
    let said: Vec<Value> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Outcome::Committed(event) => {
                made_answer((&event.id, &event.context.correlation_id), &event.event_type, None)
            }
            Outcome::Failed(problem) => json!({"problem": problem.document()}),
            Outcome::NotTried => json!({"problem": null}),
        })
        .collect();
    let events: Vec<&Value> = places.iter().map(|&at| &said[at]).collect();
    let events = json!(events);
    let first = outcomes.into_iter().enumerate().find_map(|(at, outcome)| match outcome {
        Outcome::Failed(problem) => Some((at, problem)),
        _ => None,
    });
    let (at, problem) = first.expect("one that is not committed failed, or one before it did");
    let place = places.iter().position(|&one| one == at).unwrap_or_default();
    problem.of_event(place).with("events", events)
}

/// The elements of an array, and no more of them than a batch may have.
struct Items<'a> {
    items: Vec<&'a RawValue>,
    /// Whether there were more.
    more: bool,
}

impl<'de> Deserialize<'de> for Items<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements;
        impl<'de> Visitor<'de> for Elements {
            type Value = Items<'de>;

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
                        return Ok(Items { items, more });
                    };
                    items.push(item);
                }
                while elements.next_element::<IgnoredAny>()?.is_some() {
                    more = true;
                }
                Ok(Items { items, more })
            }
        }
        deserializer.deserialize_seq(Elements)
    }
}

fn items(held: &Held) -> Result<Vec<&RawValue>, Problem> {
    match serde_json::from_slice::<Items<'_>>(json_text(held.bytes())?) {
        Ok(Items { items, more: false }) => Ok(items),
        Ok(_) => {
            let detail = format!(
                "a batch may have {EVENTS_MAX} events; send more of them in several requests"
            );
            Err(Problem::new(Kind::TooBig, detail))
        }
        Err(error) => {
            Err(Problem::new(Kind::Malformed, format!("the body is no array of events: {error}")))
        }
    }
}
