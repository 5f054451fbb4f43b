//! The interface of the older ingest service: its page and its scripts list, add and delete jobs by
//! it. Each job is a source. The gateway answers it only where an operator has asked for it.
//!
//! The service answered `success` to each change. Errors are problem documents, as everywhere in
//! this gateway; the service answered 500 with a text.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use ion_jobs::pipeline::SourceFields;
use ion_jobs::sources::older::{OlderImport, OlderJob, OlderJobError, PERIOD};
use ion_model::source::SourceRecord;
use ion_stores::{Collection, Pages, Query, StoreError, decode};
use serde_json::{Value, json};

use super::auth::Scope;
use super::problem::{Problem, ProblemKind};
use super::route::{Access, Route};
use super::sources::parse_object;
use super::{SharedState, json_answer, openapi};

/// What follows the list of jobs. The service listed its workers there.
const AFTER_JOBS: &str = "],\"Metric\":null,\"Time\":\"\",\"Service\":[]}";

/// Returns the routes.
pub(super) fn routes() -> Vec<Route> {
    let (read, write) = (Access::Needs(Scope::SourcesRead), Access::Needs(Scope::SourcesWrite));
    let text = json!({"type": "string"});
    let job = json!({
        "type": "object", "required": ["name", "type"],
        "properties": {
            "id": {"description": "Where the job runs."}, "time": {"description": "When it ran."},
            "name": text, "type": text,
            "parmas": {
                "type": ["string", "object", "null"],
                "description": "The parameters, as the text of a JSON object.",
            },
        },
    });
    let success = json!({
        "description": "It is done.", "content": {"text/plain": {"schema": {"const": "success"}}},
    });
    let malformed = openapi::problem("The body cannot be read.");
    let changes = |mut answers: Value| {
        answers["200"] = success.clone();
        answers["400"] = malformed.clone();
        answers["408"] = openapi::problem("The body came too slowly.");
        answers["413"] = openapi::problem("The body is too big.");
        answers["415"] = openapi::unknown_encoding("The body has an unknown encoding.");
        answers
    };
    let named = json!({"type": "object", "required": ["name"], "properties": {"name": text}});
    let body = |schema: &Value| json!({"required": true, "content": {"application/json": {"schema": schema}}});
    vec![
        Route::get(
            "/data",
            read,
            list_jobs,
            json!({
                "operationId": "olderJobs", "summary": "The sources, as the older ingest service listed its jobs",
                "responses": {"200": openapi::json_answer("The jobs.", json!({
                    "type": "object", "required": ["Jobs"],
                    "properties": {"Jobs": {"type": "array", "items": job}},
                }))},
            }),
        ),
        Route::post(
            "/data",
            write,
            add_job,
            json!({
                "operationId": "addOlderJob", "summary": "Add a source for a job of the older ingest service",
                "requestBody": body(&job),
                "responses": changes(json!({
                    "422": openapi::problem("No source can be made from the job."),
                })),
            }),
        ),
        Route::delete(
            "/data",
            write,
            delete_jobs,
            json!({
                "operationId": "deleteOlderJobs", "summary": "Remove all sources of a job's name",
                "requestBody": body(&named),
                "responses": changes(json!({
                    "409": openapi::problem("A pipeline file declares one of them; none is removed."),
                })),
            }),
        ),
        Route::get(
            "/settings",
            read,
            list_types,
            json!({
                "operationId": "olderTypes", "summary": "The types of jobs of the older ingest service, with their parameters",
                "responses": {"200": openapi::json_answer("The types.", json!({
                    "type": "array", "items": {
                        "type": "object", "required": ["type", "params"],
                        "properties": {"type": text, "params": {"type": "array", "items": text}},
                    },
                }))},
            }),
        ),
    ]
}

/// Lists the sources as jobs. The answer is written while they are read, because the service's
/// clients know no pages.
async fn list_jobs(State(gate): State<SharedState>) -> Result<Response, Problem> {
    let mut pages = Pages::by_id(Query::all(Collection::Sources));
    let documents = &*gate.ledger.plane().documents;
    // A store that is unavailable is told as a problem, and not by an answer that breaks off.
    let first = gate.within_deadline(pages.next(documents)).await?;
    let begin = (gate.clone(), pages, first, true);
    let lines = stream::try_unfold(Some(begin), |state| async move {
        let Some((gate, mut pages, page, is_first)) = state else { return Ok(None) };
        let Some(page) = page else { return Ok(Some((Bytes::from(AFTER_JOBS), None))) };
        let mut text = String::new();
        for document in page {
            let source: SourceRecord = decode(Collection::Sources, document)?;
            let separator = if is_first && text.is_empty() { "" } else { "," };
            let job = gate.settings.older_ingest.describe(&source);
            text.push_str(&format!("{separator}{job}"));
        }
        let next = pages.next(&*gate.ledger.plane().documents).await?;
        Ok::<_, StoreError>(Some((Bytes::from(text), Some((gate, pages, next, false)))))
    });
    let begin = stream::once(async { Ok::<_, StoreError>(Bytes::from("{\"Jobs\":[")) });
    let mut response = Response::new(Body::from_stream(begin.chain(lines)));
    let form = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, form);
    Ok(response)
}

async fn add_job(
    State(gate): State<SharedState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let object = parse_object(&gate, &headers, body).await?;
    let job = OlderJob::from_json(&Value::Object(object))?;
    let modules = gate.within_deadline(gate.sources().modules()).await?;
    let fields = SourceFields { every: Some(PERIOD.to_owned()), ..SourceFields::default() };
    let (sources, types) = (gate.sources(), &gate.settings.older_ingest);
    let added = sources.add_older(&job, types, &modules, &fields, OlderImport::Store);
    let outcome = gate.within_deadline(added).await?;
    if !outcome.left_out.is_empty() {
        tracing::warn!(
            source = outcome.source,
            left_out = outcome.left_out.join(", "),
            "a job of the older ingest service had credentials that its module does not declare"
        );
    }
    Ok(say_success())
}

async fn delete_jobs(
    State(gate): State<SharedState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let object = parse_object(&gate, &headers, body).await?;
    let Some(name) = object.get("name").and_then(Value::as_str) else {
        let detail = "the body has no text \"name\", which says which jobs to delete";
        return Err(Problem::new(ProblemKind::Malformed, detail));
    };
    gate.within_deadline(gate.sources().remove_older(name)).await?;
    Ok(say_success())
}

async fn list_types(State(gate): State<SharedState>) -> Result<Response, Problem> {
    let modules = gate.within_deadline(gate.sources().modules()).await?;
    Ok(json_answer(StatusCode::OK, &gate.settings.older_ingest.parameters(&modules)))
}

/// Answers as the service did.
fn say_success() -> Response {
    (StatusCode::OK, [(header::CONTENT_TYPE, "text/plain")], "success").into_response()
}

impl From<OlderJobError> for Problem {
    fn from(error: OlderJobError) -> Self {
        match error {
            OlderJobError::Problems(problems) => problems.into(),
            OlderJobError::Source(error) => error.into(),
            error => Self::new(ProblemKind::InvalidSource, format!("the job: {error}")),
        }
    }
}
