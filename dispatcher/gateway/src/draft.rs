//! The event that a request makes, before it is committed: its identity, its id, its commit.

use std::sync::Arc;

use axum::http::HeaderMap;
use ion_jobs::ledger::RegisteredModules;
use ion_jobs::pipeline::why_nothing_starts;
use ion_model::event::{Event, KeyValue};
use ion_model::id::{CorrelationId, EventId};
use ion_plane::commit::{Refusal, create_event};
use ion_plane::first::FirstEvent;
use ion_system::failpoint;
use serde_json::{Value, json};
use uuid::Uuid;

use super::SharedState;
use super::auth::Principal;
use super::cloudevent::Attributes;
use super::problem::{Problem, ProblemKind};
use super::upload::Uploads;

/// The maximum bytes of an idempotency key.
const KEY_MAX: usize = 255;

/// The context name of an event that was created by HTTP.
pub(super) const NAME: &str = "gateway";

/// What identifies an event, so that two requests with the same identity create one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum EventIdentity {
    /// The sender's key.
    Key(String),
    /// The sender's key for a batch, and the event's place in the batch.
    KeyAt(String, usize),
    /// The name of a webhook, and the id of its delivery.
    Delivery(String, String),
    /// A CloudEvent's source and id.
    Cloud(String, String),
    /// No identity: each request creates a new event.
    None,
}

impl EventIdentity {
    /// Reads the request's `Idempotency-Key`.
    pub(super) fn from_headers(headers: &HeaderMap) -> Result<Self, Problem> {
        let Some(value) = headers.get("idempotency-key") else { return Ok(Self::None) };
        let wrong = || {
            let detail = format!(
                "an Idempotency-Key has 1 to {KEY_MAX} printable characters, with or without quotes"
            );
            Problem::new(ProblemKind::Malformed, detail)
        };
        if headers.get_all("idempotency-key").iter().count() > 1 {
            return Err(Problem::new(
                ProblemKind::Malformed,
                "the request has several Idempotency-Key headers; send one",
            ));
        }
        let key = value.to_str().map_err(|_| wrong())?;
        let bare = key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(key);
        let fits =
            (1..=KEY_MAX).contains(&bare.len()) && bare.bytes().all(|byte| byte.is_ascii_graphic());
        if fits && !bare.contains(['"', '\\']) {
            Ok(Self::Key(bare.to_owned()))
        } else {
            Err(wrong())
        }
    }

    pub(super) fn or_cloudevent(self, cloud: &Attributes) -> Self {
        match self {
            Self::None => Self::Cloud(cloud.source.clone(), cloud.id.clone()),
            key => key,
        }
    }

    /// Returns the identity of the event at this place of a batch.
    pub(super) fn in_batch(&self, place: usize) -> Self {
        match self {
            Self::Key(key) => Self::KeyAt(key.clone(), place),
            other => other.clone(),
        }
    }

    /// Returns the ids of the event and of its correlation. A key belongs to its sender: the same
    /// key of another sender gives other ids.
    pub(super) fn ids(&self, sender: &Principal) -> (EventId, CorrelationId) {
        let parts = match self {
            Self::Key(key) => json!([NAME, "key", sender.name, key]),
            Self::KeyAt(key, place) => json!([NAME, "key", sender.name, key, place]),
            Self::Delivery(webhook, id) => json!([NAME, "webhook", webhook, id]),
            Self::Cloud(source, id) => json!([NAME, "cloudevent", sender.name, source, id]),
            Self::None => return (EventId::random(), CorrelationId::random()),
        };
        let id = EventId::derive(&EventId::new(NAME), NAME, &parts.to_string());
        let correlation = EventId::derive(&id, NAME, "correlation");
        (id, CorrelationId::new(correlation.as_str()))
    }
}

/// The parts of an event that the request gives, without its files.
pub(super) struct EventDraft {
    pub(super) id: EventId,
    pub(super) correlation_id: CorrelationId,
    pub(super) name: &'static str,
    pub(super) parent: &'static str,
    pub(super) event_type: String,
    pub(super) data: Vec<KeyValue>,
}

impl EventDraft {
    pub(super) fn new(
        event_type: &str,
        (id, correlation_id): (EventId, CorrelationId),
        data: Vec<KeyValue>,
    ) -> Self {
        Self { id, correlation_id, name: NAME, parent: "", event_type: event_type.to_owned(), data }
    }
}

/// Refuses more values, or more bytes of values, than an event may have.
pub(super) fn check_values(gate: &SharedState, data: &[KeyValue]) -> Result<(), Problem> {
    let limits = &gate.node.settings.limits;
    let bytes: u64 = data.iter().map(|pair| (pair.key.len() + pair.value.len()) as u64).sum();
    if bytes > limits.event_value_bytes || data.len() as u64 > limits.event_values {
        let detail = format!(
            "an event may have {} values of {} bytes in all; send more as a file",
            limits.event_values, limits.event_value_bytes
        );
        return Err(Problem::new(ProblemKind::TooBig, detail));
    }
    Ok(())
}

/// Commits an event and returns its document.
pub(super) async fn commit(
    gate: &SharedState,
    made: EventDraft,
    mut uploads: Uploads,
    same: &EventIdentity,
) -> Result<Event, Problem> {
    check_values(gate, &made.data)?;
    let first = FirstEvent {
        id: made.id,
        correlation_id: made.correlation_id,
        name: made.name.into(),
        parent: made.parent.into(),
        event_type: made.event_type,
        files: uploads.entries().to_vec(),
        directories: vec![],
        data: made.data,
    };
    let event = first.into_event(&gate.node.plane, uploads.prefix()).await?;
    match (try_commit(gate, &event, &mut uploads).await?, same) {
        (CommitAnswer::Committed, EventIdentity::None) => Ok(event),
        (CommitAnswer::Committed, _) => {
            // If the event already existed with blobs of its own, these uploads are not needed.
            if let Ok(Some(stored)) =
                gate.within_deadline(gate.ledger.visible_event(&event.id)).await
                && !name_same_blobs(&stored, &event)
            {
                uploads.mark_unnamed();
            }
            Ok(event)
        }
        (CommitAnswer::Refused(Refusal::Differs(id)), same) => {
            uploads.mark_unnamed();
            Err(match same {
                EventIdentity::Key(key) | EventIdentity::KeyAt(key, _) => Problem::new(
                    ProblemKind::KeyReused,
                    format!(
                        "Idempotency-Key {key:?} was used for event {id}, which has other \
                         content; use a new key"
                    ),
                ),
                _ => Problem::new(
                    ProblemKind::Differs,
                    format!("event {id} exists with other content; send a new id"),
                ),
            }
            .with_member("eventId", id.to_string()))
        }
        (CommitAnswer::Refused(refusal), _) => Err(refusal.into()),
    }
}

/// The answer of the commit protocol to an event.
enum CommitAnswer {
    Committed,
    Refused(Refusal),
}

/// Commits an event whose files are `uploads`, and publishes it.
async fn try_commit(
    gate: &SharedState,
    event: &Event,
    uploads: &mut Uploads,
) -> Result<CommitAnswer, Problem> {
    failpoint::hit("gateway.stored");
    uploads.mark_named();
    // The commit runs in its own task: a client that disconnects must not stop it between insert
    // and publish.
    let committing = gate.tasks.spawn({
        let (plane, event) = (gate.node.plane.clone(), event.clone());
        async move { create_event(&plane, event).await }
    });
    let deadline = gate.node.settings.commit_deadline;
    let Ok(ended) = tokio::time::timeout(deadline, committing).await else {
        let detail = format!(
            "the stores did not answer within {} s, so it is not known whether the event is \
             committed; send it again, best with the same Idempotency-Key",
            deadline.as_secs()
        );
        return Err(Problem::new(ProblemKind::StoresAway, detail));
    };
    let Ok(committed) = ended else {
        let detail = "the commit broke off, so it is not known whether the event is committed; \
                      send it again with the same Idempotency-Key";
        return Err(Problem::new(ProblemKind::Internal, detail));
    };
    Ok(match committed {
        Ok(()) => CommitAnswer::Committed,
        Err(refusal) => CommitAnswer::Refused(refusal),
    })
}

/// Commits and publishes an event whose id is new, so that any refusal is a problem.
pub(super) async fn commit_new(
    gate: &SharedState,
    event: &Event,
    uploads: &mut Uploads,
) -> Result<(), Problem> {
    match try_commit(gate, event, uploads).await? {
        CommitAnswer::Committed => Ok(()),
        CommitAnswer::Refused(refusal) => Err(refusal.into()),
    }
}

/// Returns an empty set of uploads for one request.
pub(super) fn new_uploads(ids: &(EventId, CorrelationId), gate: &SharedState) -> Uploads {
    // The prefix belongs to this request alone: another request with the same key writes elsewhere.
    Uploads::new(gate, format!("{}/{}/{}", ids.1, ids.0, Uuid::new_v4().simple()))
}

/// Returns whether two documents of one event name the same blobs.
fn name_same_blobs(stored: &Event, event: &Event) -> bool {
    let keys = |event: &Event| -> Vec<String> {
        event.files.iter().chain(&event.file_list).map(|entry| entry.key.clone()).collect()
    };
    keys(stored) == keys(event)
}

/// Returns the registered modules, or none if they cannot be read: the event is committed all the
/// same.
pub(super) async fn registered_modules(gate: &SharedState) -> Option<Arc<RegisteredModules>> {
    gate.within_deadline(gate.ledger.registered_modules()).await.ok()
}

/// Returns the document that names a created event. If no registered module starts on the event,
/// the document says so.
pub(super) fn describe_created_event(
    (id, correlation): (&EventId, &CorrelationId),
    event_type: &str,
    registered: Option<&RegisteredModules>,
) -> Value {
    let mut document = json!({"eventId": id, "correlationId": correlation, "type": event_type});
    if let Some(words) =
        registered.and_then(|registered| why_nothing_starts(event_type, &registered.modules))
    {
        document["startsNothing"] = words.into();
    }
    document
}
