//! What comes in: a request becomes a first event, by the same commit protocol as any other.
//!
//! # Flow
//! 1. Who sends the request and its `Idempotency-Key` decide the event's id; a CloudEvent's source and id do where there is
//!    no key; else it is a new one.
//! 2. The body is read: files are staged and stored, each durable before the next step.
//! 3. The document goes in by one insert: this is the commit. Then it is published and marked.
//!
//! # Guarantees
//! A request that was answered with an id: the event will be published, whatever dies. One that was not answered, sent
//! again with the same key and body, to this gateway or another of the plane, before or after a restart: the same event,
//! once. With another body: refused, and the first one stays as it is.
//!
//! # After a crash
//! Before step 3 nothing happened but blobs that `gc` removes. After it a relay publishes.

use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use ionfs::commit::{Refusal, create_event};
use ionfs::event::{Event, KeyValue, TYPE_BYTES_MAX, is_event_type};
use ionfs::failpoint;
use ionfs::id::{CorrelationId, EventId};
use ionfs::text::quote;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::auth::{Principal, Scope};
use super::cloudevent::{self, Attributes, Carried, DATA, STRUCTURED, values_of};
use super::looks::Need;
use super::problem::{Kind, Problem};
use super::route::{Access, InPath, Route, query};
use super::trace::{self, wait_in};
use super::upload::Uploads;
use super::{Shared, json_answer, openapi};
use crate::first::FirstEvent;
use crate::progress::Verdict;

/// Bytes of an idempotency key.
const KEY_MAX: usize = 255;

/// Who makes an event that came by HTTP: its context's name.
pub(super) const NAME: &str = "gateway";

/// The name and parent that older Ion's front API gives its events.
const FRONT: &str = "frontapi";

/// The event type of older Ion's front API.
const FRONT_TYPE: &str = "frontapi.new_link";

/// The routes.
pub(super) fn routes() -> Vec<Route> {
    let key = json!({
        "name": "Idempotency-Key", "in": "header", "description":
            "The same key with the same body is the same event, however often it is sent. Keys are each token's own; a UUID is a good one.",
        "schema": {"type": "string", "pattern": "^(\"[!#-\\[\\]-~]{1,255}\"|[!#-\\[\\]-~]{1,255})$"}
    });
    let context = json!({
        "type": "object", "required": ["name", "eventId", "correlationId", "parentEventId", "documentType"],
        "properties": {
            "name": {"const": FRONT}, "eventId": {"type": "string"}, "correlationId": {"type": "string"},
            "parentEventId": {"const": FRONT}, "documentType": {"const": "eventMeta"},
        },
    });
    let front = json!({
        "operationId": "newLink", "summary": "Publish frontapi.new_link, as older Ion's front API does",
        "parameters": [key],
        "requestBody": {"required": true, "content": {"application/json": {"schema": {
            "type": "object", "required": ["url"],
            "properties": {"url": {"type": "string", "minLength": 1}},
        }}}},
        "responses": {
            "200": openapi::json_answer("The event.", json!({
                "type": "object", "required": ["context", "type"],
                "properties": {"context": context, "type": {"const": FRONT_TYPE}},
            })),
            "400": openapi::problem("The body is not what it has to be."),
            "413": openapi::problem("The body is too long."),
            "415": openapi::unknown_encoding("The body has an encoding that is not known."),
            "422": openapi::problem("The key was used for another body."),
        },
    });
    let made = json!({"$ref": "#/components/schemas/Made"});
    let links = json!({
        "event": {"operationId": "event", "parameters": {"event": "$response.body#/eventId"}},
        "correlation": {"operationId": "correlation", "parameters": {"correlation": "$response.body#/correlationId"}},
    });
    let mut accepted = openapi::json_answer(
        "It is committed and will be published. With `wait`: not all that comes of it has ended in that time.",
        made.clone(),
    );
    accepted["headers"] = json!({"Location": {
        "description": "Its correlation.", "required": true, "schema": {"type": "string"},
    }});
    accepted["links"] = links.clone();
    let mut ended = openapi::json_answer("With `wait`: all that came of it has ended.", made);
    ended["links"] = links;
    let create = json!({
        "operationId": "createEvent", "summary": "Create an event, and start every module that subscribes to its type",
        "description": "JSON values, a form with files, or a CloudEvent in binary or structured mode.",
        "parameters": [
            {"name": "event", "in": "path", "required": true, "description": "The event type.",
             "schema": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$"}, "example": "new_text"},
            openapi::wait_parameter(), key,
        ],
        "requestBody": {"content": {
            "application/json": {"schema": {
                "type": "object", "description": "Values; those that are no strings are kept as their JSON text.",
                "propertyNames": {"not": {"enum": ["eventType", "files"]}},
            }},
            "multipart/form-data": {"schema": {
                "type": "object", "description": "Parts with a file name are files, the others values.",
                // All but what cannot stand in a part's head.
                "propertyNames": {"pattern": "^[^\\u0000-\\u0008\\u000b\\u000c\\u000e-\\u001f\\u007f]+$"},
                "properties": {"file": {"contentMediaType": "application/octet-stream"}, "note": {}},
            }},
            STRUCTURED: {"schema": {
                "type": "object", "required": ["specversion", "id", "source", "type"], "properties": {
                    "specversion": {"const": "1.0"}, "id": {"type": "string", "minLength": 1},
                    "source": {"type": "string", "minLength": 1}, "type": {"type": "string", "minLength": 1},
                    "data": {"propertyNames": {"not": {"enum": ["eventType", "files"]}}},
                    "data_base64": {"type": ["string", "null"], "pattern": "^([A-Za-z0-9+/]{4})*$"},
                },
                "propertyNames": {"pattern": "^([a-z0-9]+|data_base64)$"},
                "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
                "not": {"required": ["data", "data_base64"]},
            }},
        }},
        "responses": {
            "200": ended, "202": accepted,
            "400": openapi::problem("The request is not what it has to be."),
            "408": openapi::problem("The body did not go on."),
            "409": openapi::problem("A CloudEvent of this source and id is there and says something else."),
            "413": openapi::problem("The body, its values or its files are too much."),
            "415": openapi::unknown_encoding("The body is in another form, or has an encoding that is not known."),
            "422": openapi::problem("The event is refused, or the key was used for another body."),
            "507": openapi::problem("The gateway's disk is full."),
        },
    });
    vec![
        Route::post("/", Access::Needs(Scope::EventsWrite), front_api, front),
        Route::post("/events/{event}", Access::Needs(Scope::EventsWrite), create_one, create),
    ]
}

/// The document that describes an event that was made; for `openapi`.
pub(super) fn schema() -> Value {
    json!({
        "type": "object", "required": ["eventId", "correlationId", "type"],
        "properties": {
            "eventId": {"type": "string"}, "correlationId": {"type": "string"}, "type": {"type": "string"},
            "outcome": {"enum": ["running", "succeeded", "failed"], "description": "With `wait`."},
            "trace": {"type": "array", "items": {"type": "object"},
                "description": "With `wait`, for a token that has the scope `events:read`: as of its correlation."},
        },
    })
}

/// What makes two requests one event.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sameness {
    /// The sender's key.
    Key(String),
    /// A CloudEvent's source and id.
    Cloud(String, String),
    /// Nothing: each request is an event of its own.
    None,
}

impl Sameness {
    /// What a request says of it.
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let Some(said) = headers.get("idempotency-key") else { return Ok(Self::None) };
        let wrong = || {
            let detail =
                format!("an Idempotency-Key has 1 to {KEY_MAX} printable characters, in quotes or not");
            Problem::new(Kind::Malformed, detail)
        };
        if headers.get_all("idempotency-key").iter().count() > 1 {
            return Err(Problem::new(Kind::Malformed, "one Idempotency-Key is needed, not several"));
        }
        let said = said.to_str().map_err(|_| wrong())?;
        let bare = said.strip_prefix('"').and_then(|said| said.strip_suffix('"')).unwrap_or(said);
        let fits = (1..=KEY_MAX).contains(&bare.len()) && bare.bytes().all(|byte| byte.is_ascii_graphic());
        if fits && !bare.contains(['"', '\\']) { Ok(Self::Key(bare.to_owned())) } else { Err(wrong()) }
    }

    fn or_of(self, cloud: &Attributes) -> Self {
        match self {
            Self::None => Self::Cloud(cloud.source.clone(), cloud.id.clone()),
            key => key,
        }
    }

    /// The ids of the event and of its correlation. Those of a key are the sender's own: nobody else's key meets them.
    fn ids(&self, sender: &Principal) -> (EventId, CorrelationId) {
        let parts = match self {
            Self::Key(key) => json!([NAME, "key", sender.name, key]),
            Self::Cloud(source, id) => json!([NAME, "cloudevent", sender.name, source, id]),
            Self::None => return (EventId::random(), CorrelationId::random()),
        };
        let id = EventId::derive(&EventId::new(NAME), NAME, &parts.to_string());
        let correlation = EventId::derive(&id, NAME, "correlation");
        (id, CorrelationId::new(correlation.as_str()))
    }
}

/// What a request says of the event, before its files.
struct Made {
    id: EventId,
    correlation_id: CorrelationId,
    name: &'static str,
    parent: &'static str,
    event_type: String,
    data: Vec<KeyValue>,
}

impl Made {
    fn new(event_type: &str, (id, correlation_id): (EventId, CorrelationId), data: Vec<KeyValue>) -> Self {
        Self { id, correlation_id, name: NAME, parent: "", event_type: event_type.to_owned(), data }
    }
}

/// Commits an event; gives its document.
async fn commit(gate: &Shared, made: Made, mut uploads: Uploads, same: &Sameness) -> Result<Event, Problem> {
    let limits = &gate.node.settings.limits;
    let bytes: u64 = made.data.iter().map(|pair| (pair.key.len() + pair.value.len()) as u64).sum();
    if bytes > limits.event_value_bytes || made.data.len() as u64 > limits.event_values {
        let detail = format!(
            "an event may have {} values of {} bytes in all; put more into a file",
            limits.event_values, limits.event_value_bytes
        );
        return Err(Problem::new(Kind::TooBig, detail));
    }
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
    let event = first.document(&gate.node.plane, uploads.prefix()).await?;
    match (try_commit(gate, &event, &mut uploads).await?, same) {
        (Ok(()), Sameness::None) => Ok(event),
        (Ok(()), _) => {
            // The one that was there before names its own blobs: these are not needed.
            if let Ok(Some(stored)) = gate.in_time(gate.ledger.visible_event(&event.id)).await
                && !names_the_same(&stored, &event)
            {
                uploads.are_not_named();
            }
            Ok(event)
        }
        (Err(Refusal::Differs(id)), same) => {
            uploads.are_not_named();
            Err(match same {
                Sameness::Key(key) => Problem::new(
                    Kind::KeyReused,
                    format!("Idempotency-Key {key:?} was used for event {id}, which says something else; use a new key"),
                ),
                _ => Problem::new(Kind::Differs, format!("event {id} is there and says something else; send a new id")),
            }
            .with("eventId", id.to_string()))
        }
        (Err(refusal), _) => Err(refusal.into()),
    }
}

/// Commits an event whose files are `uploads`, and publishes it.
pub(super) async fn try_commit(
    gate: &Shared,
    event: &Event,
    uploads: &mut Uploads,
) -> Result<Result<(), Refusal>, Problem> {
    failpoint::reach("gateway.stored");
    uploads.are_named();
    // In a task of its own: a client that goes away must not leave it between insert and publish.
    let committing = gate.tasks.spawn({
        let (plane, event) = (gate.node.plane.clone(), event.clone());
        async move { create_event(&plane, event).await }
    });
    let deadline = gate.node.settings.commit_deadline;
    match tokio::time::timeout(deadline, committing).await {
        Ok(Ok(committed)) => Ok(committed),
        Ok(Err(_)) => {
            Err(Problem::new(Kind::Internal, "the commit did not end; send it again with the same key"))
        }
        Err(_) => {
            let detail = format!(
                "the stores gave no answer within {} s, so it is not known whether the event is in; send it again, best with \
                 the same Idempotency-Key",
                deadline.as_secs()
            );
            Err(Problem::new(Kind::StoresAway, detail))
        }
    }
}

/// The same where the event can only be new.
pub(super) async fn publish(gate: &Shared, event: &Event, uploads: &mut Uploads) -> Result<(), Problem> {
    Ok(try_commit(gate, event, uploads).await??)
}

/// The files of one request.
pub(super) fn uploads(ids: &(EventId, CorrelationId), gate: &Shared) -> Uploads {
    // Of this request alone: another one with the same key writes elsewhere.
    Uploads::new(gate, format!("{}/{}/{}", ids.1, ids.0, Uuid::new_v4().simple()))
}

/// Whether two documents of one event name the same blobs.
fn names_the_same(stored: &Event, event: &Event) -> bool {
    let keys = |event: &Event| -> Vec<String> {
        event.files.iter().chain(&event.file_list).map(|entry| entry.key.clone()).collect()
    };
    keys(stored) == keys(event)
}

#[derive(Deserialize)]
struct NewLink {
    url: String,
}

/// `POST /`, for programs written for older Ion: whatever they call their body's form.
async fn front_api(
    State(gate): State<Shared>,
    Extension(sender): Extension<Principal>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let same = Sameness::of(&headers)?;
    let held = gate.body_of_values(&headers, body)?.whole(&gate.room).await?;
    let wanted =
        |why: String| Problem::new(Kind::Malformed, format!("{{\"url\": \"...\"}} is needed: {why}"));
    let link: NewLink = serde_json::from_slice(held.bytes()).map_err(|error| wanted(error.to_string()))?;
    if link.url.is_empty() {
        return Err(wanted("the url is empty".into()));
    }
    let ids = same.ids(&sender);
    let uploads = uploads(&ids, &gate);
    let data = vec![KeyValue { key: "url".into(), value: link.url }];
    let made = Made { name: FRONT, parent: FRONT, ..Made::new(FRONT_TYPE, ids, data) };
    let event = commit(&gate, made, uploads, &same).await?;
    // Its message is what older Ion answered.
    Ok(json_answer(StatusCode::OK, &event.message()))
}

/// `POST /events/<type>`.
async fn create_one(
    State(gate): State<Shared>,
    Extension(sender): Extension<Principal>,
    InPath(event_type): InPath<String>,
    RawQuery(asked): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    if !is_event_type(&event_type) {
        let detail = format!(
            "{} cannot be an event type: letters, digits, '.', '_' and '-', at most {TYPE_BYTES_MAX}, are allowed",
            quote(&event_type)
        );
        return Err(Problem::new(Kind::Malformed, detail));
    }
    let wait = wait_in(&query(asked.as_deref(), &["wait"])?)?;
    let same = Sameness::of(&headers)?;
    let event = take(&gate, &sender, &event_type, same, &headers, body).await?;
    answer(&gate, &sender, &event, wait).await
}

/// Reads a request's body in whichever form it is, and commits the event.
async fn take(
    gate: &Shared,
    sender: &Principal,
    event_type: &str,
    same: Sameness,
    headers: &HeaderMap,
    body: Body,
) -> Result<Event, Problem> {
    let limits = &gate.node.settings.limits;
    if let Some(length) =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok())
        && gate.settings.upload_bytes_max < length
    {
        return Err(super::body::BodyError::TooBig(gate.settings.upload_bytes_max).into());
    }
    let form = Form::of(headers)?;
    let (same, made, uploads) = match form {
        Form::Binary(attributes, is_json) => {
            let same = same.or_of(&attributes);
            let ids = same.ids(sender);
            let mut uploads = uploads(&ids, gate);
            let mut data = attributes.values;
            if is_json {
                let held = gate.body_of_values(headers, body)?.whole(&gate.room).await?;
                match held.bytes().trim_ascii_start().first() {
                    Some(b'{') => data.extend(values_of(held.bytes(), limits)?),
                    Some(_) => uploads.take_bytes(DATA, held.bytes().to_vec()).await?,
                    None => {}
                }
            } else {
                uploads.take_body(DATA, gate.body_of_files(headers, body)?).await?;
            }
            (same, Made::new(event_type, ids, data), uploads)
        }
        Form::Structured => {
            let held = gate.body_of_values(headers, body)?.whole(&gate.room).await?;
            let (attributes, carried) = cloudevent::read_structured(held.bytes(), limits)?;
            let same = same.or_of(&attributes);
            let ids = same.ids(sender);
            let mut uploads = uploads(&ids, gate);
            let mut data = attributes.values;
            match carried {
                Carried::Values(values) => data.extend(values),
                Carried::File(bytes) => uploads.take_bytes(DATA, bytes).await?,
            }
            (same, Made::new(event_type, ids, data), uploads)
        }
        Form::Multipart(boundary) => {
            let ids = same.ids(sender);
            let mut uploads = uploads(&ids, gate);
            let data = uploads.take_form(gate.body_of_files(headers, body)?, &boundary).await?;
            (same, Made::new(event_type, ids, data), uploads)
        }
        Form::Values | Form::Unsaid => {
            let ids = same.ids(sender);
            let held = gate.body_of_values(headers, body)?.whole(&gate.room).await?;
            let data = match (&form, held.bytes()) {
                (Form::Unsaid, b"") => vec![],
                (Form::Unsaid, _) => return Err(wrong_form("no Content-Type")),
                (_, bytes) => values_of(bytes, limits)?,
            };
            let uploads = uploads(&ids, gate);
            (same, Made::new(event_type, ids, data), uploads)
        }
    };
    commit(gate, made, uploads, &same).await
}

/// In which form a body is.
enum Form {
    /// A CloudEvent with its attributes in headers; whether its data says that it is JSON.
    Binary(Attributes, bool),
    /// A CloudEvent as one document.
    Structured,
    /// A form, with its boundary.
    Multipart(String),
    /// A JSON object.
    Values,
    /// It does not say; only an empty one is taken.
    Unsaid,
}

impl Form {
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let said = match headers.get(header::CONTENT_TYPE) {
            Some(said) => said.to_str().map_err(|_| wrong_form("a Content-Type that is no text"))?,
            None => "",
        };
        let parsed = said.parse::<mime::Mime>().ok();
        let essence = parsed.as_ref().map_or("", |form| form.essence_str());
        let is_json = |essence: &str| essence == "application/json";
        match essence {
            _ if cloudevent::is_binary(headers) => {
                let attributes = Attributes::from_headers(headers)?;
                Ok(Self::Binary(attributes, is_json(essence)))
            }
            STRUCTURED => Ok(Self::Structured),
            "multipart/form-data" => {
                let boundary = multer::parse_boundary(said);
                let wrong = |_| Problem::new(Kind::Malformed, "the form's Content-Type names no boundary");
                Ok(Self::Multipart(boundary.map_err(wrong)?))
            }
            essence if is_json(essence) => Ok(Self::Values),
            _ if said.is_empty() => Ok(Self::Unsaid),
            _ => Err(wrong_form(said)),
        }
    }
}

fn wrong_form(said: &str) -> Problem {
    Problem::new(
        Kind::WrongForm,
        format!(
            "{said}: application/json (values), multipart/form-data (files and values) and CloudEvents (ce- headers, \
             or {STRUCTURED}) are read"
        ),
    )
}

/// What the sender is told: the ids; if it waits, how it ended; and what came of it, if its token may read events.
async fn answer(
    gate: &Shared,
    sender: &Principal,
    event: &Event,
    wait: Option<Duration>,
) -> Result<Response, Problem> {
    let correlation = event.context.correlation_id.as_str();
    let mut said = json!({
        "eventId": event.id, "correlationId": correlation, "type": event.event_type,
    });
    let mut response = match wait {
        None => json_answer(StatusCode::ACCEPTED, &said),
        Some(wait) => {
            let need = if sender.may(Scope::EventsRead) { Need::Documents } else { Need::Verdict };
            let seen = trace::wait(gate, correlation, wait, need).await?;
            let running = seen.verdict == Verdict::Running;
            let status = if running { StatusCode::ACCEPTED } else { StatusCode::OK };
            said["outcome"] = seen.verdict.as_str().into();
            match seen.documents.as_ref().filter(|_| need == Need::Documents) {
                None => json_answer(status, &said),
                Some(documents) => {
                    let mut before = said.to_string();
                    before.truncate(before.len() - 1);
                    before.push_str(",\"trace\":");
                    trace::streamed(status, documents.body(before, "}".into()))
                }
            }
        }
    };
    let location = HeaderValue::try_from(format!("/correlations/{correlation}"));
    response.headers_mut().insert(header::LOCATION, location.expect("an id of ours is a header"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_an_event_and_each_senders_own() {
        let key = |text: &'static str| {
            let headers = [("idempotency-key".parse().unwrap(), HeaderValue::from_static(text))];
            Sameness::of(&headers.into_iter().collect()).map_err(|problem| problem.kind())
        };
        let named = |name: &str| {
            let mut principal = Principal::anybody();
            principal.name = name.into();
            principal
        };
        let (one, other) = (named("one"), named("other"));
        let quoted = key("\"a-1\"").unwrap();
        assert_eq!(quoted, key("a-1").unwrap());
        assert_eq!(quoted.ids(&one), key("a-1").unwrap().ids(&one));
        assert_ne!(quoted.ids(&one), quoted.ids(&other));
        assert_ne!(quoted.ids(&one), key("a-2").unwrap().ids(&one));
        assert_ne!(quoted.ids(&one).0.as_str(), quoted.ids(&one).1.as_str());
        for wrong in ["", "\"\"", "a b", "a\"b", "\"a"] {
            assert_eq!(key(wrong), Err(Kind::Malformed), "{wrong}");
        }
        assert_ne!(Sameness::None.ids(&one), Sameness::None.ids(&one));
        // Neither part of a CloudEvent's name runs into the other.
        let cloud = |source: &str, id: &str| Sameness::Cloud(source.into(), id.into()).ids(&one);
        assert_ne!(cloud("a", "bc"), cloud("ab", "c"));
    }
}
