//! Cancelling: stops everything that comes of an event or of a correlation.

use std::time::{Duration, Instant};

use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use ion_jobs::cancel::Cancellation;
use ion_model::id::CorrelationId;
use ion_model::text::quote;
use ion_stores::registry::CancelOrder;
use ion_stores::{Collection, Query};
use serde_json::{Value, json};

use super::auth::Scope;
use super::problem::{Problem, ProblemKind};
use super::route::{Access, PathParams, Route, parse_query};
use super::trace::{find_event, parse_wait};
use super::{SharedState, openapi};

/// The least time that a request spends on the cancellation: most correlations are done by then.
const AT_LEAST: Duration = Duration::from_secs(1);

/// The pause between two checks whether running jobs have stopped.
const LOOK: Duration = Duration::from_millis(200);

/// Returns the routes.
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::post(
            "/correlations/{correlation}/cancel",
            Access::Needs(Scope::JobsWrite),
            cancel_correlation,
            describe_operation(
                "cancelCorrelation",
                "Stop all that came of one first event",
                "correlation",
            ),
        ),
        Route::post(
            "/events/{event}/cancel",
            Access::Needs(Scope::JobsWrite),
            cancel_event,
            describe_operation("cancelEvent", "Stop all that comes of an event", "event"),
        ),
    ]
}

fn describe_operation(id: &str, summary: &str, of: &str) -> Value {
    let mut wait = openapi::wait_parameter();
    wait["description"] = json!(
        "How long to wait until jobs that run have stopped: 500ms, 30s, 2m; at most five minutes."
    );
    let number = |what: &str| json!({"type": "integer", "minimum": 0, "description": what});
    let answer = |description: &str| {
        openapi::json_answer(
            description,
            json!({
                "type": "object", "required": ["ended", "done"],
                "properties": {
                    "ended": {"type": "boolean", "description": "Whether no job of it runs or will be started."},
                    "done": {"type": "object", "properties": {
                        "events": number("Events that were checked."),
                        "queued": number("Jobs that were waiting or queued, and are cancelled."),
                        "prevented": number("Jobs that were not started yet, and will not be."),
                        "stopped": number("Jobs that were running and were asked to stop."),
                        "running": number("Jobs that still run."),
                        "dead": number("Dead jobs, which are left as they are."),
                    }},
                },
            }),
        )
    };
    json!({
        "operationId": id, "summary": summary,
        "description":
            "Queued jobs are cancelled, running jobs are asked to stop, and no further job is started. \
             After an answer of 202 the dispatchers finish the cancellation.",
        "parameters": [
            {
                "name": of, "in": "path", "required": true, "description": format!("The {of}'s id."),
                "schema": {"type": "string", "minLength": 1},
            },
            wait,
        ],
        "responses": {
            "200": answer("No job of it runs any more."),
            "202": answer("Some jobs still run, or there are many events: the cancellation continues."),
            "400": openapi::problem("The path or a parameter cannot be read."),
            "404": openapi::problem("It does not exist."),
        },
    })
}

async fn cancel_correlation(
    State(gate): State<SharedState>,
    PathParams(id): PathParams<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let of_it = vec![("context.correlationId", json!(id))];
    let one = Query::equal(Collection::Events, of_it).order_by("created").limit(1);
    if gate.within_deadline(gate.ledger.plane().documents.find(one)).await?.is_empty() {
        return Err(Problem::new(
            ProblemKind::NotFound,
            format!("there is no correlation {}", quote(&id)),
        ));
    }
    run_cancellation(&gate, CancelOrder::for_correlation(CorrelationId::new(id)), query.as_deref())
        .await
}

async fn cancel_event(
    State(gate): State<SharedState>,
    PathParams(id): PathParams<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let event = find_event(&gate, &id).await?;
    run_cancellation(&gate, CancelOrder::for_event(&event), query.as_deref()).await
}

async fn run_cancellation(
    gate: &SharedState,
    what: CancelOrder,
    query: Option<&str>,
) -> Result<Response, Problem> {
    let longest = parse_wait(&parse_query(query, &["wait"])?)?.unwrap_or_default();
    let deadline = Instant::now() + longest.max(AT_LEAST);
    let mut cancellation = gate.within_deadline(Cancellation::begin(&gate.ledger, what)).await?;
    let ended = loop {
        let soon = deadline.min(Instant::now() + LOOK);
        if gate.within_deadline(cancellation.work_until(&gate.ledger, soon)).await? {
            break true;
        }
        if Instant::now() >= deadline || gate.stopping.is_cancelled() {
            break false;
        }
        if cancellation.progress().running > 0 {
            tokio::time::sleep(LOOK).await;
        }
    };
    let status = if ended { StatusCode::OK } else { StatusCode::ACCEPTED };
    let answer = json!({"ended": ended, "done": cancellation.progress()}).to_string();
    Ok((status, [(header::CONTENT_TYPE, "application/json")], answer).into_response())
}
