//! Searches over HTTP: insights and events by their values, one JSON document a line.
//!
//! The answer is written while the search goes on, so a search of any length takes the memory of a
//! page. A search that a store interrupts ends the answer early, without the end of the chunked
//! body, which clients report as an error.

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use ion_model::clock::Millis;
use ion_model::id::JobId;
use ion_model::record::InsightRecord;
use ion_plane::search::{Search, SearchHits, SearchKind, SearchPace, parse_search_terms};
use ion_stores::{Collection, StoreError, TimeRange};
use serde_json::{Value, json};

use super::auth::Scope;
use super::problem::{Problem, ProblemKind};
use super::route::{Access, PathParams, Route};
use super::{SharedState, openapi};

/// The media type of the answer.
const NDJSON: &str = "application/x-ndjson";

/// Returns the routes.
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get(
            "/find/insights/{module}",
            Access::Needs(Scope::EventsRead),
            find_insights,
            describe(
                "findInsights",
                "Find insights by their values",
                "module",
                "The job that kept an insight",
            ),
        ),
        Route::get(
            "/find/events/{type}",
            Access::Needs(Scope::EventsRead),
            find_events,
            describe("findEvents", "Find events by their values", "type", "An event"),
        ),
    ]
}

fn describe(id: &str, summary: &str, parameter: &str, after: &str) -> Value {
    let string = json!({"type": "string"});
    let query = |name: &str, what: String, schema: &Value| json!({"name": name, "in": "query", "description": what, "schema": schema});
    let lines = json!({NDJSON: {"schema": {"type": "string"}}});
    let number = json!({"type": "integer", "format": "int64", "minimum": 0});
    let time = "in milliseconds since 1970.";
    json!({
        "operationId": id, "summary": summary,
        "parameters": [
            {"name": parameter, "in": "path", "required": true, "description": format!("The {parameter}."), "schema": string},
            query("where", "A term that must hold, such as kind=car or score>=0.8; give it several times for several terms.".into(),
                &json!({"type": "array", "items": string})),
            query("up", "Find with each hit the nearest event of this type at or above it.".into(), &string),
            query("since", format!("Only hits of this time or later, {time}"), &number),
            query("until", format!("Only hits before this time, {time}"), &number),
            query("limit", "How many hits there are at most.".into(), &number),
            query("after", format!("{after} by its id: the hits after it are found."), &string),
        ],
        "responses": {
            "200": {"description": "The hits, newest first, one JSON document a line.", "content": lines},
            "400": openapi::problem("A parameter cannot be read."),
            "404": openapi::problem("The document that `after` names does not exist."),
        },
    })
}

async fn find_insights(
    State(gate): State<SharedState>,
    PathParams(module): PathParams<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    find(gate, SearchKind::Insights(module), query.as_deref()).await
}

async fn find_events(
    State(gate): State<SharedState>,
    PathParams(event_type): PathParams<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    find(gate, SearchKind::Events(event_type), query.as_deref()).await
}

/// The parameters of a search.
#[derive(Debug, Default)]
struct FindParameters {
    terms: Vec<String>,
    up: Option<String>,
    time: TimeRange,
    limit: Option<u64>,
    after: Option<String>,
}

impl FindParameters {
    fn parse(query: &str) -> Result<Self, Problem> {
        let mut parameters = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let malformed = |what: &str| {
                Problem::new(ProblemKind::Malformed, format!("parameter {name:?} {what}"))
            };
            let millis = || {
                let time = value.parse::<Millis>().ok().filter(|time| *time >= 0);
                time.ok_or_else(|| malformed("is not a number of milliseconds since 1970"))
            };
            let is_new = match &*name {
                "where" => {
                    parameters.terms.push(value.into_owned());
                    true
                }
                "up" => parameters.up.replace(value.into_owned()).is_none(),
                "after" => parameters.after.replace(value.into_owned()).is_none(),
                "since" => parameters.time.since.replace(millis()?).is_none(),
                "until" => parameters.time.until.replace(millis()?).is_none(),
                "limit" => {
                    let limit =
                        value.parse::<i64>().ok().and_then(|limit| u64::try_from(limit).ok());
                    let limit = limit.ok_or_else(|| malformed("is not a number from 0 on"))?;
                    parameters.limit.replace(limit).is_none()
                }
                _ => {
                    let allowed = "where, up, since, until, limit, after";
                    return Err(malformed(&format!("is not known here; allowed: {allowed}")));
                }
            };
            if !is_new {
                return Err(malformed("is given twice"));
            }
        }
        Ok(parameters)
    }
}

async fn find(
    gate: SharedState,
    kind: SearchKind,
    query: Option<&str>,
) -> Result<Response, Problem> {
    let parameters = FindParameters::parse(query.unwrap_or_default())?;
    let (terms, above) = parse_search_terms(&parameters.terms)
        .map_err(|error| Problem::new(ProblemKind::Malformed, error.to_string()))?;
    let plane = gate.node.plane.clone();
    let begin = async {
        let after = match &parameters.after {
            None => None,
            Some(id) => {
                let id = match &kind {
                    SearchKind::Insights(_) => InsightRecord::id(&JobId::new(id.as_str())),
                    SearchKind::Events(_) => id.clone(),
                };
                let found = plane.documents.get(Collection::Events, &id).await?;
                if found.is_none() {
                    return Ok(None);
                }
                found
            }
        };
        let (above, time) = (above.or(parameters.up), parameters.time);
        let search = Search { kind, terms, above, time, after, pace: SearchPace::Fastest };
        search.begin(&plane).await.map(Some)
    };
    let Some(hits) = gate.within_deadline(begin).await? else {
        let id = parameters.after.unwrap_or_default();
        return Err(Problem::new(
            ProblemKind::NotFound,
            format!("there is no {id:?} to go on after"),
        ));
    };
    let left = parameters.limit.unwrap_or(u64::MAX);
    let mut response = Response::new(Body::from_stream(lines(hits, left)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(NDJSON));
    Ok(response)
}

/// Returns the hits as lines.
fn lines(
    hits: SearchHits,
    left: u64,
) -> impl futures_util::Stream<Item = Result<Bytes, StoreError>> {
    stream::try_unfold((hits, left), |(mut hits, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let Some(hit) = hits.next().await? else { return Ok(None) };
        let line = format!("{}\n", hit.document());
        Ok(Some((Bytes::from(line), (hits, left - 1))))
    })
}
