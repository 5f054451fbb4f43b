//! Intake: a request becomes a first event, by the same commit protocol as every other event.
//!
//! # Flow
//! 1. The sender and the request's `Idempotency-Key` determine the event's id. Without a key, the
//!    sender and a CloudEvent's source and id do; without either, the id is random.
//! 2. The body is read: files are staged and stored, each durable before the next step.
//! 3. The event document is inserted by one write: this is the commit. Then the event is published
//!    and marked as published.
//!
//! # Guarantees
//! If a request was answered with an id, the event will be published, whatever dies. If a request
//! was not answered, the client can send it again with the same key and body, to this gateway or
//! another of the plane, before or after a restart: it is the same event, committed once. The same
//! key with another body is refused, and the first event stays as it is.
//!
//! # After a crash
//! Before step 3 nothing has happened, except that blobs may be stored, which `gc` removes. After
//! it a relay publishes the event.

use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use ion_jobs::progress::Verdict;
use ion_model::event::{Event, KeyValue, TYPE_BYTES_MAX, is_event_type};
use ion_model::text::quote;
use serde::Deserialize;
use serde_json::{Value, json};

use super::auth::{Principal, Scope};
use super::cloudevent::{BATCH, STRUCTURED};
use super::draft::{
    EventDraft, EventIdentity, commit, describe_created_event, new_uploads, registered_modules,
};
use super::encoding::json_text;
use super::form::{self, OneEvent, ParsedBody};
use super::looks::LookNeed;
use super::problem::{Problem, ProblemKind};
use super::route::{Access, PathParams, Route, parse_query};
use super::trace::{self, parse_wait};
use super::{SharedState, batch, json_answer, openapi};

/// The name and parent that older Ion's front API gives its events.
const FRONT: &str = "frontapi";

/// The event type of older Ion's front API.
const FRONT_TYPE: &str = "frontapi.new_link";

/// Returns the routes.
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::post("/", Access::Needs(Scope::EventsWrite), create_new_link, new_link_operation()),
        Route::post(
            "/events/{event}",
            Access::Needs(Scope::EventsWrite),
            create_events,
            create_operation(),
        ),
    ]
}

/// Describes `POST /`.
fn new_link_operation() -> Value {
    let context = json!({
        "type": "object", "required": ["name", "eventId", "correlationId", "parentEventId", "documentType"],
        "properties": {
            "name": {"const": FRONT}, "eventId": {"type": "string"}, "correlationId": {"type": "string"},
            "parentEventId": {"const": FRONT}, "documentType": {"const": "eventMeta"},
        },
    });
    json!({
        "operationId": "newLink", "summary": "Publish frontapi.new_link, as older Ion's front API does",
        "parameters": [key_parameter()],
        "requestBody": {"required": true, "content": {"application/json": {"schema": {
            "type": "object", "required": ["url"],
            "properties": {"url": {"type": "string", "minLength": 1}},
        }}}},
        "responses": {
            "200": openapi::json_answer("The event.", json!({
                "type": "object", "required": ["context", "type"],
                "properties": {"context": context, "type": {"const": FRONT_TYPE}},
            })),
            "400": openapi::problem("The body is not {\"url\": \"...\"}."),
            "413": openapi::problem("The body is too long."),
            "415": openapi::unknown_encoding("The body has an unknown encoding."),
            "422": openapi::problem("The key was used for another body."),
        },
    })
}

/// Describes `POST /events/<type>`.
fn create_operation() -> Value {
    let made = json!({"anyOf": [{"$ref": "#/components/schemas/Made"}, {"$ref": "#/components/schemas/MadeBatch"}]});
    let values = json!({
        "type": "object", "description": "Values; a value that is not a string is kept as its JSON text.",
        "propertyNames": {"not": {"enum": ["eventType", "files"]}},
    });
    let cloudevent = json!({
        "type": "object", "required": ["specversion", "id", "source", "type"], "properties": {
            "specversion": {"const": "1.0"}, "id": {"type": "string", "minLength": 1},
            "source": {"type": "string", "minLength": 1}, "type": {"type": "string", "minLength": 1},
            "data": {"propertyNames": {"not": {"enum": ["eventType", "files"]}}},
            "data_base64": {"type": ["string", "null"], "pattern": "^([A-Za-z0-9+/]{4})*$"},
        },
        "propertyNames": {"pattern": "^([a-z0-9]+|data_base64)$"},
        "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
        "not": {"required": ["data", "data_base64"]},
    });
    let links = json!({
        "event": {"operationId": "event", "parameters": {"event": "$response.body#/eventId"}},
        "correlation": {"operationId": "correlation", "parameters": {"correlation": "$response.body#/correlationId"}},
    });
    let mut accepted = openapi::json_answer(
        "The event is committed and will be published. With `wait`: some of its jobs have not \
         ended in that time.",
        made.clone(),
    );
    accepted["headers"] = json!({"Location": {
        "description": "The event's correlation; not sent for a batch, whose answer names each correlation.", "schema": {"type": "string"},
    }});
    accepted["links"] = links.clone();
    let mut ended =
        openapi::json_answer("With `wait`: every job that came of the event has ended.", made);
    ended["links"] = links;
    json!({
        "operationId": "createEvent", "summary": "Create an event, and start every module that subscribes to its type",
        "description":
            "JSON values, a form with or without files, or a CloudEvent in binary or structured mode; an array or a batch \
             of them creates one event for each element. Bodies may be encoded: gzip, deflate, zstd.",
        "parameters": [
            {"name": "event", "in": "path", "required": true, "description": "The event type.",
             "schema": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$"}, "example": "new_text"},
            openapi::wait_parameter(), key_parameter(),
        ],
        "requestBody": {"content": {
            "application/json": {"schema": {"anyOf": [values, {
                "type": "array", "description": "One event for each object.", "items": values, "maxItems": batch::EVENTS_MAX,
                // Such an array could also be the values of one event.
                "not": {"minItems": 1, "items": {"required": ["key", "value"], "maxProperties": 2}},
            }]}},
            "application/x-www-form-urlencoded": {"schema": {
                "type": "object", "description": "Values.", "propertyNames": {"minLength": 1},
                "additionalProperties": {"type": "string"},
            }},
            "multipart/form-data": {"schema": {
                "type": "object", "description": "Parts with a file name are files, the others values.",
                // Every character but those that a part's head cannot contain.
                "propertyNames": {"pattern": "^[^\\u0000-\\u0008\\u000b\\u000c\\u000e-\\u001f\\u007f]+$"},
                "properties": {"file": {"contentMediaType": "application/octet-stream"}, "note": {}},
            }},
            STRUCTURED: {"schema": cloudevent},
            BATCH: {"schema": {"type": "array", "items": cloudevent, "maxItems": batch::EVENTS_MAX}},
        }},
        "responses": {
            "200": ended, "202": accepted,
            "400": openapi::problem("The path, a parameter, a header or the body cannot be read."),
            "408": openapi::problem("The body came too slowly."),
            "409": openapi::problem("A CloudEvent with this source and id exists with other content."),
            "413": openapi::problem("The body, its values or its files are over a limit."),
            "415": openapi::unknown_encoding("The body has another Content-Type, or an unknown encoding."),
            "422": openapi::problem("The event is refused, or the key was used for another body."),
            "507": openapi::problem("The gateway's disk is full."),
        },
    })
}

/// Describes the header `Idempotency-Key`.
fn key_parameter() -> Value {
    json!({
        "name": "Idempotency-Key", "in": "header", "description":
            "Requests with the same key and the same body create one event, however often they are \
             sent. Each token has its own keys; a UUID is a good key.",
        "schema": {"type": "string", "pattern": "^(\"[!#-\\[\\]-~]{1,255}\"|[!#-\\[\\]-~]{1,255})$"}
    })
}

/// The schema of the document that describes a created event; for `openapi`.
pub(super) fn schema() -> Value {
    json!({
        "type": "object", "required": ["eventId", "correlationId", "type"],
        "properties": {
            "eventId": {"type": "string"}, "correlationId": {"type": "string"}, "type": {"type": "string"},
            "startsNothing": {"type": "string", "description": "Says that no module subscribes to the type, and which type may have been meant."},
            "outcome": {"enum": ["running", "succeeded", "failed"], "description": "With `wait`."},
            "trace": {"type": "array", "items": {"type": "object"},
                "description": "With `wait`, for a token with the scope `events:read`: the trace, as `/correlations/{correlation}` shows it."},
            "next": {"type": "string", "description": "The path by which the trace goes on, if it is longer than an answer."},
        },
    })
}

/// The schema of the answer for a batch of events.
pub(super) fn batch_schema() -> Value {
    json!({
        "type": "object", "required": ["events"],
        "properties": {"events": {"type": "array", "items": {"$ref": "#/components/schemas/Made"}}},
    })
}

#[derive(Deserialize)]
struct NewLink {
    url: String,
}

/// Handles `POST /`, for programs written for older Ion. It ignores the Content-Type, because these
/// programs may send any.
async fn create_new_link(
    State(gate): State<SharedState>,
    Extension(sender): Extension<Principal>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let same = EventIdentity::from_headers(&headers)?;
    let held = gate.body_of_values(&headers, body)?.read_whole(&gate.room).await?;
    let wanted = |why: String| {
        Problem::new(ProblemKind::Malformed, format!("{{\"url\": \"...\"}} is needed: {why}"))
    };
    let link: NewLink = serde_json::from_slice(json_text(held.bytes())?)
        .map_err(|error| wanted(error.to_string()))?;
    if link.url.is_empty() {
        return Err(wanted("the url is empty".into()));
    }
    let ids = same.ids(&sender);
    let uploads = new_uploads(&ids, &gate);
    let data = vec![KeyValue { key: "url".into(), value: link.url }];
    let made = EventDraft { name: FRONT, parent: FRONT, ..EventDraft::new(FRONT_TYPE, ids, data) };
    let event = commit(&gate, made, uploads, &same).await?;
    // Older Ion answered with the event's message.
    Ok(json_answer(StatusCode::OK, &event.message()))
}

/// Handles `POST /events/<type>`: one event, or a batch.
async fn create_events(
    State(gate): State<SharedState>,
    Extension(sender): Extension<Principal>,
    PathParams(event_type): PathParams<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    if !is_event_type(&event_type) {
        let detail = format!(
            "{} cannot be an event type: letters, digits, '.', '_' and '-', at most \
             {TYPE_BYTES_MAX}, are allowed",
            quote(&event_type)
        );
        return Err(Problem::new(ProblemKind::Malformed, detail));
    }
    let wait = parse_wait(&parse_query(query.as_deref(), &["wait"])?)?;
    let same = EventIdentity::from_headers(&headers)?;
    match form::read(&gate, &sender, &event_type, same, &headers, body).await? {
        ParsedBody::One(one) => {
            let OneEvent { made, uploads, same } = *one;
            let event = commit(&gate, made, uploads, &same).await?;
            answer_created(&gate, &sender, &event, wait).await
        }
        ParsedBody::Batch(batch) => batch.commit_and_answer(&gate, wait).await,
    }
}

/// Answers the sender with the ids; with `wait`, also with the outcome; and with the trace, if the
/// sender's token may read events.
async fn answer_created(
    gate: &SharedState,
    sender: &Principal,
    event: &Event,
    wait: Option<Duration>,
) -> Result<Response, Problem> {
    let correlation = event.context.correlation_id.as_str();
    let registered = registered_modules(gate).await;
    let mut answer = describe_created_event(
        (&event.id, &event.context.correlation_id),
        &event.event_type,
        registered.as_deref(),
    );
    let mut response = match wait {
        None => json_answer(StatusCode::ACCEPTED, &answer),
        Some(wait) => {
            let need = if sender.has_scope(Scope::EventsRead) {
                LookNeed::Documents
            } else {
                LookNeed::Verdict
            };
            let seen = trace::wait_for_end(gate, correlation, wait, need).await?;
            let running = seen.verdict == Verdict::Running;
            let status = if running { StatusCode::ACCEPTED } else { StatusCode::OK };
            answer["outcome"] = seen.verdict.as_str().into();
            match seen.documents.as_ref().filter(|_| need == LookNeed::Documents) {
                None => json_answer(status, &answer),
                Some(documents) => {
                    if let Some(next) = &documents.next {
                        answer["next"] = next.as_str().into();
                    }
                    let mut before = answer.to_string();
                    before.truncate(before.len() - 1);
                    before.push_str(",\"trace\":");
                    trace::streamed_answer(status, documents.body(before, "}".into()))
                }
            }
        }
    };
    let location = HeaderValue::try_from(format!("/correlations/{correlation}"));
    response
        .headers_mut()
        .insert(header::LOCATION, location.expect("a generated id is a valid header value"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_an_event_and_each_senders_own() {
        let key = |text: &'static str| {
            let headers = [("idempotency-key".parse().unwrap(), HeaderValue::from_static(text))];
            EventIdentity::from_headers(&headers.into_iter().collect())
                .map_err(|problem| problem.kind())
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
            assert_eq!(key(wrong), Err(ProblemKind::Malformed), "{wrong}");
        }
        assert_ne!(EventIdentity::None.ids(&one), EventIdentity::None.ids(&one));
        // The source and the id of a CloudEvent are kept apart.
        let cloud =
            |source: &str, id: &str| EventIdentity::Cloud(source.into(), id.into()).ids(&one);
        assert_ne!(cloud("a", "bc"), cloud("ab", "c"));
    }
}
