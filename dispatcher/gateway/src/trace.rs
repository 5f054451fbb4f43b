//! The results of an event: correlations and events as documents, and waiting for the end of a
//! correlation.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use ion_jobs::progress::{DocumentCursor, Verdict};
use ion_model::event::Event;
use ion_model::id::EventId;
use ion_model::text::quote;
use serde_json::json;
use tokio::time::Instant;

use super::auth::Scope;
use super::looks::{CorrelationLook, LookNeed, SharedDocuments};
use super::problem::{Problem, ProblemKind};
use super::route::{Access, PathParams, Route, parse_query};
use super::{SharedState, openapi};

/// The longest wait. Proxies cut off requests that stay silent for longer; a client that still
/// waits asks again.
const WAIT_MAX: Duration = Duration::from_secs(300);

/// The first pause between two looks. Shorter asks the stores more often than a fast job needs.
const PAUSE: Duration = Duration::from_millis(20);

/// The longest pause between two looks: the end of a correlation that takes minutes is noticed this
/// much later.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The header that states a correlation's outcome.
const OUTCOME: HeaderName = HeaderName::from_static("ion-outcome");

/// Returns the routes.
pub(super) fn routes() -> Vec<Route> {
    let id = |name: &str, what: &str| json!({"name": name, "in": "path", "required": true, "description": what, "schema": {"type": "string", "minLength": 1}});
    let mut trace = openapi::json_answer(
        "Its events, insights and jobs, as `ion trace --json` prints them; of more than 10,000 the \
         first ones.",
        json!({"type": "array", "items": {"type": "object"}}),
    );
    trace["headers"] = json!({
        "Ion-Outcome": {
            "description": "The correlation's outcome so far.", "required": true, "schema": {"enum": ["running", "succeeded", "failed"]},
        },
        "Link": {
            "description":
                "The path by which to go on, as `<path>; rel=\"next\"`, if further documents \
                 follow.",
            "schema": {"type": "string"},
        },
    });
    let after = json!({
        "name": "after", "in": "query",
        "description": "Go on after this place, which the header Link of an earlier answer names.",
        "schema": {"type": "string", "pattern": "^[eij]\\.-?[0-9]{1,18}\\.[\\s\\S]+$"},
    });
    let missing = openapi::problem("It does not exist.");
    let malformed = openapi::problem("The path or a parameter cannot be read.");
    vec![
        Route::get(
            "/correlations/{correlation}",
            Access::Needs(Scope::EventsRead),
            show_correlation,
            json!({
                "operationId": "correlation", "summary": "All that came of one first event",
                "parameters": [id("correlation", "The correlation's id."), openapi::wait_parameter(), after],
                "responses": {"200": trace, "400": malformed, "404": missing},
            }),
        ),
        Route::get(
            "/events/{event}",
            Access::Needs(Scope::EventsRead),
            show_event,
            json!({
                "operationId": "event", "summary": "An event's document",
                "parameters": [id("event", "The event's id.")],
                "responses": {
                    "200": openapi::json_answer("The document.", json!({
                        "type": "object", "required": ["id", "context", "type", "files", "data", "created"],
                    })),
                    "400": malformed, "404": missing,
                },
            }),
        ),
    ]
}

/// Returns the parameter `wait` as a duration, at most [`WAIT_MAX`].
pub(super) fn parse_wait(
    parameters: &HashMap<String, String>,
) -> Result<Option<Duration>, Problem> {
    let Some(text) = parameters.get("wait") else { return Ok(None) };
    let (digits, unit) =
        text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number = digits.parse::<u64>().ok().filter(|_| digits.len() <= 4);
    let wait = match (number, unit) {
        (Some(number), "ms") => Duration::from_millis(number),
        (Some(number), "s") => Duration::from_secs(number),
        (Some(number), "m") => Duration::from_secs(number * 60),
        _ => {
            let detail = format!(
                "wait={text:?} is not a duration: write up to four digits and ms, s or m, as in 30s"
            );
            return Err(Problem::new(ProblemKind::Malformed, detail));
        }
    };
    Ok(Some(wait.min(WAIT_MAX)))
}

/// Waits until a correlation has ended, for at most `longest`. Returns the last look, with what
/// `need` asks for.
pub(super) async fn wait_for_end(
    gate: &SharedState,
    correlation: &str,
    longest: Duration,
    need: LookNeed,
) -> Result<Arc<CorrelationLook>, Problem> {
    let asked = Instant::now();
    let deadline = asked + longest;
    let watched = gate.looks.watched_correlation(correlation);
    let mut pause = PAUSE;
    let mut ended = false;
    loop {
        let over = Instant::now() >= deadline || gate.stopping.is_cancelled();
        // Only the last look needs the documents, and they must be at most [`PAUSE_MAX`] old.
        let (need_now, since) = match over {
            true => (need, Instant::now().checked_sub(PAUSE_MAX).unwrap_or(asked).max(asked)),
            false => (if ended { need } else { LookNeed::Verdict }, asked),
        };
        let look = gate.looks.get_or_read(&gate.ledger, (correlation, &watched), need_now, since);
        let seen = gate.within_deadline(look).await?;
        ended = seen.verdict != Verdict::Running;
        if over || !seen.found || (ended && (seen.documents.is_some() || need == LookNeed::Verdict))
        {
            return Ok(seen);
        }
        if ended {
            continue;
        }
        tokio::select! {
            () = gate.stopping.cancelled() => {}
            () = tokio::time::sleep_until(deadline.min(Instant::now() + pause)) => {}
        }
        pause = (pause * 3 / 2).min(PAUSE_MAX);
    }
}

async fn show_correlation(
    State(gate): State<SharedState>,
    PathParams(id): PathParams<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let parameters = parse_query(query.as_deref(), &["wait", "after"])?;
    let longest = parse_wait(&parameters)?.unwrap_or_default();
    let after = parse_after(&parameters)?;
    let need = if after.is_some() { LookNeed::Verdict } else { LookNeed::Documents };
    let seen = wait_for_end(&gate, &id, longest, need).await?;
    let documents = match &after {
        None => seen.documents.clone(),
        Some(cursor) => {
            let read = gate.looks.read_documents_after(&gate.ledger, &id, cursor);
            Some(gate.within_deadline(read).await?)
        }
    };
    let Some(documents) = documents.filter(|_| seen.found) else {
        return Err(Problem::new(
            ProblemKind::NotFound,
            format!("there is no correlation {}", quote(&id)),
        ));
    };
    let mut response =
        streamed_answer(StatusCode::OK, documents.body(String::new(), String::new()));
    response.headers_mut().insert(OUTCOME, HeaderValue::from_static(seen.verdict.as_str()));
    add_next_link(&mut response, &documents);
    Ok(response)
}

/// Returns the parameter `after`, a place among the documents of a correlation.
fn parse_after(parameters: &HashMap<String, String>) -> Result<Option<DocumentCursor>, Problem> {
    let Some(text) = parameters.get("after") else { return Ok(None) };
    text.parse().map(Some).map_err(|error| {
        let detail =
            format!("after={text:?}: {error}; take the path from the header Link as it is");
        Problem::new(ProblemKind::Malformed, detail)
    })
}

/// Says in an answer by which path a client gets the documents that follow, if any do.
pub(super) fn add_next_link(response: &mut Response, documents: &SharedDocuments) {
    let Some(path) = &documents.next else { return };
    let link = HeaderValue::try_from(format!("<{path}>; rel=\"next\""));
    response.headers_mut().insert(header::LINK, link.expect("an escaped path is ASCII"));
}

/// Builds an answer whose JSON document is sent as it is read.
pub(super) fn streamed_answer(status: StatusCode, (body, length): (Body, u64)) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CONTENT_LENGTH, length.into());
    response
}

async fn show_event(
    State(gate): State<SharedState>,
    PathParams(id): PathParams<String>,
) -> Result<Response, Problem> {
    let event = find_event(&gate, &id).await?;
    let text = serde_json::to_vec(&event)
        .map_err(|error| Problem::new(ProblemKind::Internal, error.to_string()))?;
    // A document with many values and files is large, and its reader may be slow, so it counts as
    // an answer in memory.
    let length = text.len() as u64;
    Ok(streamed_answer(StatusCode::OK, (gate.looks.counted_body(text)?, length)))
}

/// Returns the event with this id.
pub(super) async fn find_event(gate: &SharedState, id: &str) -> Result<Event, Problem> {
    let found = gate.within_deadline(gate.ledger.visible_event(&EventId::new(id))).await?;
    found.ok_or_else(|| {
        Problem::new(ProblemKind::NotFound, format!("there is no event {}", quote(id)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_a_time_and_has_an_end() {
        let wait = |text: &str| parse_wait(&HashMap::from([("wait".to_owned(), text.to_owned())]));
        assert_eq!(wait("250ms").unwrap(), Some(Duration::from_millis(250)));
        assert_eq!(wait("2m").unwrap(), Some(Duration::from_secs(120)));
        assert_eq!(wait("9999m").unwrap(), Some(WAIT_MAX));
        for wrong in ["", "s", "30", "30 s", "-1s", "1h", "00030s", "1s "] {
            assert!(wait(wrong).is_err(), "{wrong}");
        }
        assert!(parse_wait(&HashMap::new()).unwrap().is_none());
    }
}
