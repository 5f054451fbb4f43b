//! A route: its path, its access rule, its handler, and its OpenAPI operation. All four are in one
//! place, so that none is forgotten.

use std::collections::HashMap;

use axum::extract::{FromRequestParts, Path, Request, State};
use axum::handler::Handler;
use axum::http::request::Parts;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, delete, get, patch, post, put};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::SharedState;
use super::auth::Scope;
use super::problem::{Problem, ProblemKind};

/// The access rule of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Every client: the answer is not worth protecting by a token.
    Open,
    /// Every client that signs with a secret of this route's own; the handler checks the signature.
    Signed,
    /// Every client whose token has this scope, if the gateway has tokens.
    Needs(Scope),
}

/// One route of the gateway.
pub(super) struct Route {
    /// The method, as OpenAPI names it.
    pub(super) method: &'static str,
    /// The path, with `{name}` for a variable segment and `{*name}` for all that follows.
    pub(super) path: &'static str,
    /// The access rule.
    pub(super) access: Access,
    /// The OpenAPI operation; `openapi` adds the parts that all operations share.
    pub(super) operation: Value,
    serves: MethodRouter<SharedState>,
}

impl Route {
    /// Creates a route for GET and HEAD.
    pub(super) fn get<H, T>(
        path: &'static str,
        access: Access,
        handler: H,
        operation: Value,
    ) -> Self
    where
        H: Handler<T, SharedState>,
        T: 'static,
    {
        Self { method: "get", path, access, operation, serves: get(handler) }
    }

    /// Creates a route for POST.
    pub(super) fn post<H, T>(
        path: &'static str,
        access: Access,
        handler: H,
        operation: Value,
    ) -> Self
    where
        H: Handler<T, SharedState>,
        T: 'static,
    {
        Self { method: "post", path, access, operation, serves: post(handler) }
    }

    /// Creates a route for PUT.
    pub(super) fn put<H, T>(
        path: &'static str,
        access: Access,
        handler: H,
        operation: Value,
    ) -> Self
    where
        H: Handler<T, SharedState>,
        T: 'static,
    {
        Self { method: "put", path, access, operation, serves: put(handler) }
    }

    /// Creates a route for PATCH.
    pub(super) fn patch<H, T>(
        path: &'static str,
        access: Access,
        handler: H,
        operation: Value,
    ) -> Self
    where
        H: Handler<T, SharedState>,
        T: 'static,
    {
        Self { method: "patch", path, access, operation, serves: patch(handler) }
    }

    /// Creates a route for DELETE.
    pub(super) fn delete<H, T>(
        path: &'static str,
        access: Access,
        handler: H,
        operation: Value,
    ) -> Self
    where
        H: Handler<T, SharedState>,
        T: 'static,
    {
        Self { method: "delete", path, access, operation, serves: delete(handler) }
    }

    /// Returns the handler, behind the check of its access rule.
    pub(super) fn guarded_handler(self, gate: &SharedState) -> MethodRouter<SharedState> {
        let door = RouteGuard { access: self.access, path: self.path, gate: gate.clone() };
        self.serves.route_layer(middleware::from_fn_with_state(door, check_access))
    }
}

#[derive(Clone)]
struct RouteGuard {
    access: Access,
    path: &'static str,
    gate: SharedState,
}

/// Checks the access rule, and gives the handler the sender as a
/// [`Principal`](super::auth::Principal).
async fn check_access(
    State(door): State<RouteGuard>,
    mut request: Request,
    next: Next,
) -> Response {
    let admitted = match door.access {
        Access::Open | Access::Signed => Ok(None),
        Access::Needs(scope) => {
            door.gate.settings.tokens.authorize(request.headers(), scope).map(Some)
        }
    };
    let response = match admitted {
        Ok(principal) => {
            if let Some(principal) = principal {
                request.extensions_mut().insert(principal);
            }
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    };
    door.gate.metrics.count_answer(door.path, response.status().as_u16());
    response
}

/// The variable segments of a path.
pub(super) struct PathParams<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for PathParams<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let wrong = |error: axum::extract::rejection::PathRejection| {
            Problem::new(
                ProblemKind::Malformed,
                format!("the path cannot be read: {}", error.body_text()),
            )
        };
        let Path(found) = Path::<T>::from_request_parts(parts, state).await.map_err(wrong)?;
        Ok(Self(found))
    }
}

/// Returns the parameters after the question mark: only the allowed names, each at most once.
pub(super) fn parse_query(
    query: Option<&str>,
    allowed: &[&str],
) -> Result<HashMap<String, String>, Problem> {
    let mut found = HashMap::new();
    for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        let wrong = |what: &str| {
            let allowed = if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") };
            Err(Problem::new(
                ProblemKind::Malformed,
                format!("parameter {name:?} {what}; allowed: {allowed}"),
            ))
        };
        if !allowed.contains(&&*name) {
            return wrong("is not known here");
        }
        if found.insert(name.clone().into_owned(), value.into_owned()).is_some() {
            return wrong("is given twice");
        }
    }
    Ok(found)
}
