//! The OpenAPI document: the operation of each route, and the parts that all routes share.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Map, Value, json};

use super::auth::Tokens;
use super::problem::{PROBLEM_JSON, TYPES};
use super::route::{Access, Route};
use super::{SharedState, intake, sources};

/// Returns the route that shows the document.
pub(super) fn routes() -> Vec<Route> {
    vec![Route::get(
        "/openapi.json",
        Access::Open,
        show_document,
        json!({
            "operationId": "openapi", "summary": "This document",
            "responses": {"200": json_answer("OpenAPI 3.1.", json!({"type": "object", "required": ["openapi", "paths"]}))},
        }),
    )]
}

/// Describes an answer that is a JSON document of this schema.
pub(super) fn json_answer(description: &str, schema: Value) -> Value {
    json!({"description": description, "content": {"application/json": {"schema": schema}}})
}

/// Describes an answer that is a problem document.
pub(super) fn problem(description: &str) -> Value {
    json!({"description": description, "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}})
}

/// Describes an answer of 415, which may name the known encodings.
pub(super) fn unknown_encoding(description: &str) -> Value {
    let mut answer = problem(description);
    answer["headers"] = json!({"Accept-Encoding": {
        "description": "The known encodings, if the encoding is the problem.", "schema": {"type": "string"},
    }});
    answer
}

/// Describes the parameter `wait`.
pub(super) fn wait_parameter() -> Value {
    json!({
        "name": "wait", "in": "query", "description":
            "How long to wait until every job that comes of it has ended: 500ms, 30s, 2m; at most \
             five minutes.",
        "schema": {"type": "string", "pattern": "^[0-9]{1,4}(ms|s|m)$"}, "example": "30s",
    })
}

/// Builds the document of these routes, for a gateway with or without tokens.
pub(super) fn document(routes: &[Route], tokens: &Tokens) -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for route in routes {
        let mut operation = route.operation.clone();
        let answers = &mut operation["responses"];
        let common = [
            ("403", "A page of another site sent the request, or the token lacks the scope."),
            ("421", "The request is for another host."),
            ("500", "The gateway failed, or a stored file is damaged."),
            ("503", "A store does not answer, or the gateway has no room; try again later."),
        ];
        for (status, description) in common {
            if answers.get(status).is_none() {
                answers[status] = problem(description);
            }
        }
        if let Access::Needs(scope) = route.access {
            if !tokens.is_empty() {
                answers["401"] = problem("A token is needed.");
                operation["security"] = json!([{"token": []}]);
            }
            let before = operation["description"]
                .as_str()
                .map(|text| format!("{text} "))
                .unwrap_or_default();
            operation["description"] = format!("{before}Scope: `{}`.", scope.as_str()).into();
        }
        let path = route.path.replace("{*", "{");
        let item = paths.entry(path).or_insert_with(|| json!({}));
        item[route.method] = operation;
    }
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Ion", "version": env!("CARGO_PKG_VERSION"), "license": {"name": "Apache-2.0"},
            "description": "Starts pipelines, and shows their results.",
        },
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "Made": intake::schema(),
                "MadeBatch": intake::batch_schema(),
                "Problem": {
                    "type": "object", "description": "A problem document (RFC 9457).",
                    "required": ["type", "title", "status", "detail"],
                    "properties": {
                        "type": {"type": "string", "pattern": format!("^{TYPES}")}, "title": {"type": "string"},
                        "status": {"type": "integer"},
                        "detail": {"type": "string", "description": "What went wrong, and what to do about it."},
                    },
                },
            },
        },
    });
    for (name, schema) in sources::schemas() {
        document["components"]["schemas"][name] = schema;
    }
    document
}

async fn show_document(State(gate): State<SharedState>) -> Response {
    let form = [(header::CONTENT_TYPE, "application/json")];
    (StatusCode::OK, form, gate.document.clone()).into_response()
}
