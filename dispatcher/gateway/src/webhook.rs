//! Webhooks: other systems report what happened there; their signature takes the place of a token.
//!
//! # Flow
//! 1. The request names a webhook of the list, and its headers are checked as far as possible
//!    without the body.
//! 2. The body is read into memory that is reserved for webhooks, and passed to the signature check
//!    as it arrives: a sender without a secret can take no memory of other requests, and nothing
//!    that it sends is stored.
//! 3. A body with a valid signature becomes an event, whose id is derived from the delivery's id.
//!
//! # Guarantees
//! A delivery that is sent again is the same event, committed once, at every gateway of the plane.

use std::path::{Path, PathBuf};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use ion_model::clock;
use ion_model::event::{KeyValue, is_event_type};
use ion_model::text::quote;
use serde_json::json;

use super::auth::{Principal, PrivateFileError};
use super::body::IncomingBody;
use super::draft::{self, EventDraft, EventIdentity};
use super::encoding::is_encoded;
use super::problem::{Problem, ProblemKind};
use super::route::{Access, PathParams, Route};
use super::signed::{ShortSecret, SignatureScheme, WebhookSecrets};
use super::{SharedState, json_answer, openapi};

/// The maximum bytes of a body: as many as GitHub sends at most.
const BODY_MAX: u64 = 25 << 20;

/// The maximum bytes of all webhook bodies in memory. They have a limit of their own because
/// anybody may send them.
pub(super) const ROOM: usize = 64 << 20;

/// The name of the file that holds the body.
const FILE: &str = "body.json";

/// The webhooks that a gateway accepts.
#[derive(Clone, Debug, Default)]
pub struct Webhooks(Vec<Webhook>);

#[derive(Clone, Debug)]
struct Webhook {
    name: String,
    scheme: SignatureScheme,
    event_type: String,
    secrets: WebhookSecrets,
}

/// The reason a list of webhooks cannot be used. It contains no secret.
#[derive(Debug, thiserror::Error)]
#[error("line {line} of {path}")]
pub struct WebhooksError {
    path: String,
    /// The line's number, from 1.
    line: usize,
    #[source]
    problem: WebhookProblem,
}

/// What is wrong with one line of a list of webhooks.
#[derive(Debug, thiserror::Error)]
pub enum WebhookProblem {
    /// The line has too few words.
    #[error("NAME SCHEME TYPE SECRET-FILE... is needed")]
    Form,
    /// A webhook cannot have this name.
    #[error("{0:?} cannot be the name of a webhook; letters, digits, '.', '_' and '-' are allowed")]
    Name(String),
    /// An event type cannot have this name.
    #[error("{0:?} cannot be an event type")]
    EventType(String),
    /// No scheme of signatures has this name.
    #[error("no scheme is {0:?}; allowed: github, stripe")]
    Scheme(String),
    /// The line names no secret.
    #[error("the file of a secret is needed after the event type")]
    NoSecret,
    /// The file of a secret cannot be read, or other users may read it.
    #[error(transparent)]
    File(#[from] PrivateFileError),
    /// A secret can be guessed.
    #[error(transparent)]
    Short(#[from] ShortSecret),
    /// An earlier line has a webhook of this name.
    #[error("there is a webhook {0:?} already")]
    Twice(String),
}

impl Webhooks {
    /// Parses a list of webhooks, one per line: `NAME SCHEME TYPE SECRET-FILE...`. Secret files are
    /// relative to the list's folder, and `read` reads them. Empty lines and lines that begin with
    /// `#` are ignored.
    ///
    /// # Errors
    /// The first line that is not a valid entry, or whose secrets cannot be read.
    pub fn parse(
        path: &Path,
        text: &str,
        read: impl Fn(&Path) -> Result<Vec<u8>, PrivateFileError>,
    ) -> Result<Self, WebhooksError> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut webhooks: Vec<Webhook> = Vec::new();
        for (n, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong =
                |problem| WebhooksError { path: path.display().to_string(), line: n + 1, problem };
            let webhook = Webhook::parse(line, |file| read(&folder.join(file))).map_err(wrong)?;
            if webhooks.iter().any(|other| other.name == webhook.name) {
                return Err(wrong(WebhookProblem::Twice(webhook.name)));
            }
            webhooks.push(webhook);
        }
        Ok(Self(webhooks))
    }
}

impl Webhook {
    fn parse(
        line: &str,
        read: impl Fn(PathBuf) -> Result<Vec<u8>, PrivateFileError>,
    ) -> Result<Self, WebhookProblem> {
        let mut words = line.split_whitespace();
        let mut word = || words.next().ok_or(WebhookProblem::Form);
        let (name, scheme, event_type) = (word()?, word()?, word()?);
        if !is_event_type(name) {
            return Err(WebhookProblem::Name(name.to_owned()));
        }
        if !is_event_type(event_type) {
            return Err(WebhookProblem::EventType(event_type.to_owned()));
        }
        let scheme = SignatureScheme::from_name(scheme)
            .ok_or_else(|| WebhookProblem::Scheme(scheme.to_owned()))?;
        let texts = words.map(|file| read(file.into())).collect::<Result<Vec<_>, _>>()?;
        if texts.is_empty() {
            return Err(WebhookProblem::NoSecret);
        }
        let secrets = WebhookSecrets::new(texts.iter().map(Vec::as_slice))?;
        Ok(Self { name: name.to_owned(), scheme, event_type: event_type.to_owned(), secrets })
    }
}

/// Returns the routes.
pub(super) fn routes() -> Vec<Route> {
    let name = json!({
        "name": "webhook", "in": "path", "required": true, "description": "The webhook's name.",
        "schema": {"type": "string", "minLength": 1},
    });
    let operation = json!({
        "operationId": "takeWebhook", "summary": "Accept a signed request of another system as an event",
        "description":
            "Signed by `X-Hub-Signature-256` with `X-GitHub-Delivery`, or by `Stripe-Signature`, \
             as the gateway's list of webhooks says.",
        "parameters": [name],
        "requestBody": {"required": true, "content": {"application/json": {"schema": {}}}},
        "responses": {
            "200": openapi::json_answer("The delivery is a ping, which creates no event.", json!({"type": "object"})),
            "202": openapi::json_answer(
                "The event is committed and will be published.", json!({"$ref": "#/components/schemas/Made"}),
            ),
            "400": openapi::problem("The path, a header or the body cannot be read."),
            "403": openapi::problem("The request is not signed with a secret of the webhook, or the signature is too old."),
            "404": openapi::problem("The webhook does not exist."),
            "408": openapi::problem("The body came too slowly."),
            "409": openapi::problem("The delivery is known with another body."),
            "413": openapi::problem("The body is too long."),
            "415": openapi::problem("The body is encoded."),
            "507": openapi::problem("The gateway's disk is full."),
        },
    });
    vec![Route::post("/webhooks/{webhook}", Access::Signed, take_delivery, operation)]
}

/// Handles `POST /webhooks/<name>`.
async fn take_delivery(
    State(gate): State<SharedState>,
    PathParams(name): PathParams<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let Some(webhook) = gate.settings.webhooks.0.iter().find(|webhook| webhook.name == name) else {
        let name = quote(&name);
        let detail = format!(
            "there is no webhook {name}; the list of --gateway-webhooks names the accepted webhooks"
        );
        return Err(Problem::new(ProblemKind::NotFound, detail));
    };
    if is_encoded(&headers) {
        let detail = "a webhook's signature covers the body as it is sent; send the body without a \
                      Content-Encoding";
        return Err(Problem::new(ProblemKind::UnknownEncoding, detail));
    }
    let mut check = webhook.secrets.begin_check(webhook.scheme.read_signatures(&headers)?);
    let mut body =
        IncomingBody::new(body, BODY_MAX.min(gate.settings.upload_bytes_max), gate.settings.stall);
    let mut held = gate.webhook_room.new_buffer();
    while let Some(piece) = body.next().await? {
        check.update(&piece);
        held.add(&piece)?;
    }
    check.finish(clock::now())?;

    let delivery = webhook.scheme.read_delivery(&headers, held.bytes())?;
    if webhook.scheme == SignatureScheme::Github && delivery.event == "ping" {
        return Ok(json_answer(StatusCode::OK, &json!({"ping": "the webhook is set up well"})));
    }
    let same = EventIdentity::Delivery(webhook.name.clone(), delivery.id.clone());
    let ids = same.ids(&Principal::anybody());
    let mut uploads = draft::new_uploads(&ids, &gate);
    uploads.store_bytes(FILE, json_payload(&headers, held.bytes())?).await?;
    let values = [
        ("webhook", webhook.name.clone()),
        ("webhook-id", delivery.id),
        ("webhook-event", delivery.event),
    ];
    let data = values.map(|(key, value)| KeyValue { key: key.into(), value }).into();
    let made = EventDraft::new(&webhook.event_type, ids.clone(), data);
    match draft::commit(&gate, made, uploads, &same).await {
        Ok(_) => {}
        // A Stripe event counts the deliveries that are still pending, so an event that is sent
        // again may have other content. Its id is covered by the signature, so it is the same
        // event.
        Err(problem)
            if webhook.scheme == SignatureScheme::Stripe
                && problem.kind() == ProblemKind::Differs => {}
        Err(problem) => return Err(problem),
    }
    let registered = draft::registered_modules(&gate).await;
    let answer =
        draft::describe_created_event((&ids.0, &ids.1), &webhook.event_type, registered.as_deref());
    let mut response = json_answer(StatusCode::ACCEPTED, &answer);
    let location = HeaderValue::try_from(format!("/correlations/{}", ids.1));
    response
        .headers_mut()
        .insert(header::LOCATION, location.expect("a generated id is a valid header value"));
    Ok(response)
}

/// Returns the JSON document of a body. GitHub sends it as a field of a form unless it is
/// configured otherwise.
fn json_payload(headers: &HeaderMap, body: &[u8]) -> Result<Vec<u8>, Problem> {
    let content_type =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return Ok(body.to_vec());
    }
    let payload = form_urlencoded::parse(body).find(|(name, _)| name == "payload");
    match payload {
        Some((_, payload)) => Ok(payload.into_owned().into_bytes()),
        None => Err(Problem::new(ProblemKind::Malformed, "the form has no field \"payload\"")),
    }
}

#[cfg(test)]
mod tests {
    use ion_model::errors::error_chain;

    use super::*;

    #[test]
    fn a_list_that_is_wrong_is_refused_without_its_secrets() {
        let parse = |text: &str| {
            let read = |file: &Path| match file.to_str().unwrap() {
                "etc/good" => Ok(b"0123456789abcdef\n".to_vec()),
                "etc/short" => Ok(b"hush".to_vec()),
                other => Err(PrivateFileError::Read {
                    path: other.to_owned(),
                    source: std::io::ErrorKind::NotFound.into(),
                }),
            };
            Webhooks::parse(Path::new("etc/webhooks"), text, read)
        };
        assert_eq!(
            parse("# none\n\npushes github code.pushed good good\npaid stripe paid good\n")
                .unwrap()
                .0
                .len(),
            2
        );
        for (text, why) in [
            ("pushes github", "line 1 of etc/webhooks: NAME SCHEME"),
            ("pushes github code.pushed", "the file of a secret"),
            ("pushes gitlab code.pushed good", "allowed: github, stripe"),
            ("a/b github code.pushed good", "cannot be the name"),
            ("pushes github ../x good", "event type"),
            ("\npushes github x short", "line 2 of etc/webhooks: a secret is short"),
            ("pushes github x missing", "etc/missing cannot be read: entity not found"),
            ("a github x good\na stripe y good", "already"),
        ] {
            let error = error_chain(&parse(text).unwrap_err());
            assert!(
                error.contains(why) && !error.contains("hush") && !error.contains("0123"),
                "{error}"
            );
        }
    }
}
