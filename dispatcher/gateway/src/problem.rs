//! Errors as RFC 9457 problem documents: programs distinguish them by `type`, and people read them.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ion_jobs::ledger::LedgerError;
use ion_jobs::pipeline::SourceProblems;
use ion_jobs::sources::SourceError;
use ion_model::errors::error_chain;
use ion_model::text::{REASON_MAX, cut_owned};
use ion_plane::commit::Refusal;
use ion_plane::upload::UploadError;
use ion_stores::StoreError;
use serde_json::{Map, Value, json};

/// The media type of problem documents.
pub(super) const PROBLEM_JSON: &str = "application/problem+json";

/// The prefix of each kind's name in `type`.
pub(super) const TYPES: &str = "urn:ion:problem:";

/// Seconds after which a client may try again when a store does not answer or there is no room.
const RETRY_AFTER: &str = "5";

/// The kinds of problems. docs/http.md has a row for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProblemKind {
    /// The request cannot be read.
    Malformed,
    /// The request has no known token.
    TokenNeeded,
    /// The token lacks the scope.
    ScopeNeeded,
    /// The request has no valid signature.
    Unsigned,
    /// A page of another site sent the request.
    ForeignOrigin,
    /// The event, correlation, job, file, chain or route does not exist.
    NotFound,
    /// The route exists, but not for this method.
    WrongMethod,
    /// The body came too slowly.
    TooSlow,
    /// An event with this id exists with other content.
    Differs,
    /// A pipeline file declares the source.
    Declared,
    /// The file, or the source, is not one that `If-Match` names.
    Changed,
    /// The body, its values or its files are over a limit.
    TooBig,
    /// The body has an unsupported Content-Type.
    WrongForm,
    /// The body has an unknown encoding.
    UnknownEncoding,
    /// The file has no such bytes.
    NoSuchRange,
    /// The request is for another host.
    ForeignHost,
    /// The request can be read, but its event is refused.
    Refused,
    /// The source, or the job of the older ingest service, is wrong.
    InvalidSource,
    /// The idempotency key was used for another event.
    KeyReused,
    /// A stored file is missing or damaged.
    Damaged,
    /// A store does not answer.
    StoresAway,
    /// The gateway has no room now, or it is starting or stopping.
    Busy,
    /// The disk that holds uploads is full.
    DiskFull,
    /// A link of a chain failed.
    LinkFailed,
    /// A link of a chain timed out.
    LinkTimedOut,
    /// The gateway failed.
    Internal,
}

impl ProblemKind {
    /// All kinds.
    #[cfg(test)]
    pub(super) const ALL: [Self; 26] = [
        Self::Malformed,
        Self::TokenNeeded,
        Self::ScopeNeeded,
        Self::Unsigned,
        Self::ForeignOrigin,
        Self::NotFound,
        Self::WrongMethod,
        Self::TooSlow,
        Self::Differs,
        Self::Declared,
        Self::Changed,
        Self::TooBig,
        Self::WrongForm,
        Self::UnknownEncoding,
        Self::NoSuchRange,
        Self::ForeignHost,
        Self::Refused,
        Self::InvalidSource,
        Self::KeyReused,
        Self::Damaged,
        Self::StoresAway,
        Self::Busy,
        Self::DiskFull,
        Self::LinkFailed,
        Self::LinkTimedOut,
        Self::Internal,
    ];

    /// Returns the kind's status, name and title.
    pub(super) fn details(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::Malformed => (StatusCode::BAD_REQUEST, "malformed", "The request cannot be read"),
            Self::TokenNeeded => {
                (StatusCode::UNAUTHORIZED, "token-needed", "A bearer token is needed")
            }
            Self::ScopeNeeded => {
                (StatusCode::FORBIDDEN, "scope-needed", "The token may not do this")
            }
            Self::Unsigned => {
                (StatusCode::FORBIDDEN, "unsigned", "The request has no valid signature")
            }
            Self::ForeignOrigin => (
                StatusCode::FORBIDDEN,
                "foreign-origin",
                "Requests of other sites' pages are refused",
            ),
            Self::NotFound => (StatusCode::NOT_FOUND, "not-found", "It does not exist"),
            Self::WrongMethod => {
                (StatusCode::METHOD_NOT_ALLOWED, "wrong-method", "The method is not allowed here")
            }
            Self::TooSlow => {
                (StatusCode::REQUEST_TIMEOUT, "too-slow", "The request came too slowly")
            }
            Self::Differs => {
                (StatusCode::CONFLICT, "differs", "The event exists with other content")
            }
            Self::Declared => {
                (StatusCode::CONFLICT, "declared", "A pipeline file declares the source")
            }
            Self::Changed => (StatusCode::PRECONDITION_FAILED, "changed", "It is another version"),
            Self::TooBig => (StatusCode::PAYLOAD_TOO_LARGE, "too-big", "The request is too big"),
            Self::WrongForm => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "wrong-form",
                "The body's Content-Type is not supported",
            ),
            Self::UnknownEncoding => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unknown-encoding",
                "The body's encoding is not known",
            ),
            Self::NoSuchRange => {
                (StatusCode::RANGE_NOT_SATISFIABLE, "no-such-range", "The file has no such bytes")
            }
            Self::ForeignHost => {
                (StatusCode::MISDIRECTED_REQUEST, "foreign-host", "The request is for another host")
            }
            Self::Refused => (StatusCode::UNPROCESSABLE_ENTITY, "refused", "The event is refused"),
            Self::InvalidSource => {
                (StatusCode::UNPROCESSABLE_ENTITY, "invalid-source", "The source is wrong")
            }
            Self::KeyReused => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "key-reused",
                "The key was used for another event",
            ),
            Self::Damaged => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "damaged",
                "A stored file is missing or damaged",
            ),
            Self::StoresAway => {
                (StatusCode::SERVICE_UNAVAILABLE, "stores-away", "The stores do not answer")
            }
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy", "The gateway has no room now"),
            Self::DiskFull => (StatusCode::INSUFFICIENT_STORAGE, "disk-full", "The disk is full"),
            Self::LinkFailed => {
                (StatusCode::BAD_GATEWAY, "link-failed", "A link of the chain failed")
            }
            Self::LinkTimedOut => {
                (StatusCode::GATEWAY_TIMEOUT, "link-timed-out", "A link of the chain timed out")
            }
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "The gateway failed"),
        }
    }
}

/// A problem: what went wrong, and what the client can do about it.
#[derive(Debug)]
pub(super) struct Problem(Box<ProblemParts>);

#[derive(Debug)]
struct ProblemParts {
    kind: ProblemKind,
    detail: String,
    more: Map<String, Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    /// Creates a problem with its detail text.
    pub(super) fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        // The text may quote the request, so its length is limited.
        let detail = cut_owned(detail.into(), REASON_MAX);
        let parts = ProblemParts { kind, detail, more: Map::new(), headers: vec![] };
        let mut problem = Self(Box::new(parts));
        if matches!(kind, ProblemKind::StoresAway | ProblemKind::Busy) {
            problem =
                problem.with_header(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
        }
        problem
    }

    /// Adds a member for programs.
    #[must_use]
    pub(super) fn with_member(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.more.insert(name.to_owned(), value.into());
        self
    }

    /// Adds a header.
    #[must_use]
    pub(super) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    /// States that the problem is of one event of a batch, by its place.
    #[must_use]
    pub(super) fn for_batch_event(mut self, place: usize) -> Self {
        self.0.detail =
            cut_owned(format!("event {place} of the batch: {}", self.0.detail), REASON_MAX);
        self.with_member("index", place)
    }

    /// Returns the problem document.
    pub(super) fn document(&self) -> Value {
        let (status, name, title) = self.0.kind.details();
        let mut document = json!({
            "type": format!("{TYPES}{name}"), "title": title, "status": status.as_u16(), "detail": self.0.detail,
        });
        if let Value::Object(members) = &mut document {
            members.extend(self.0.more.clone());
        }
        document
    }

    /// Returns the kind.
    pub(super) fn kind(&self) -> ProblemKind {
        self.0.kind
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, name, _) = self.kind().details();
        if status.is_server_error() {
            tracing::warn!(problem = name, detail = self.0.detail, "a request failed");
        }
        let mut response = Response::new(Body::from(self.document().to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        headers.extend(self.0.headers);
        response
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let detail = error_chain(&error);
        match error {
            StoreError::Unavailable { .. } => {
                Self::new(ProblemKind::StoresAway, format!("{detail}; try again later"))
            }
            StoreError::NoSuchBlob(_) => Self::new(
                ProblemKind::Damaged,
                format!("{detail}; `ion check` lists everything that is missing"),
            ),
            _ => Self::new(ProblemKind::Internal, detail),
        }
    }
}

impl From<LedgerError> for Problem {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Store(error) => error.into(),
            error => Self::new(ProblemKind::Internal, error_chain(&error)),
        }
    }
}

impl From<SourceError> for Problem {
    fn from(error: SourceError) -> Self {
        let kind = match error {
            SourceError::Store(error) => return error.into(),
            SourceError::Ledger(error) => return error.into(),
            SourceError::Upload(error) => return error.into(),
            SourceError::Refused(error) => return error.into(),
            SourceError::NoSuchSource(_) => ProblemKind::NotFound,
            SourceError::OfPipeline { .. } => ProblemKind::Declared,
            SourceError::Exists(_) | SourceError::Changed(_) => ProblemKind::Changed,
            SourceError::Schedule { .. } => ProblemKind::InvalidSource,
            SourceError::Contended(_) => ProblemKind::Busy,
        };
        Self::new(kind, error_chain(&error))
    }
}

impl From<SourceProblems> for Problem {
    fn from(problems: SourceProblems) -> Self {
        Self::new(ProblemKind::InvalidSource, problems.to_string())
            .with_member("problems", problems.to_json())
    }
}

impl From<UploadError> for Problem {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::Store { source, .. } | UploadError::Documents(source) => source.into(),
            error @ UploadError::Read { .. } => {
                Self::new(ProblemKind::Internal, error_chain(&error))
            }
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Stores(_) => Self::new(
                ProblemKind::StoresAway,
                format!("{refusal}; send it again, best with the same Idempotency-Key"),
            ),
            Refusal::Differs(_) => Self::new(ProblemKind::Differs, refusal.to_string()),
            Refusal::TooBig(_) => Self::new(ProblemKind::TooBig, refusal.to_string()),
            refusal => Self::new(ProblemKind::Refused, refusal.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_has_a_row_for_each_problem() {
        let page =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/http.md"))
                .unwrap();
        for kind in ProblemKind::ALL {
            let (status, name, _) = kind.details();
            assert!(page.contains(&format!("| `{name}` | {} |", status.as_u16())), "{name}");
        }
    }

    #[test]
    fn a_problem_is_a_document_with_its_headers() {
        let response =
            Problem::new(ProblemKind::Busy, "later").with_member("key", "value").into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::CONTENT_TYPE], PROBLEM_JSON);
        assert_eq!(response.headers()[header::RETRY_AFTER], RETRY_AFTER);
    }
}
