//! What went wrong, as RFC 9457 has it said: a document that programs tell apart by its `type` and
//! people read.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ion_jobs::ledger::LedgerError;
use ion_model::errors::chain;
use ion_model::text::{REASON_MAX, cut_off};
use ion_plane::commit::Refusal;
use ion_plane::upload::UploadError;
use ion_stores::StoreError;
use serde_json::{Map, Value, json};

/// The media type of problem documents.
pub(super) const PROBLEM_JSON: &str = "application/problem+json";

/// Before each kind's name in `type`.
pub(super) const TYPES: &str = "urn:ion:problem:";

/// When to come back after a store was away or everything was taken.
const RETRY_AFTER: &str = "5";

/// What can go wrong. docs/http.md has a row for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The request is not what it has to be.
    Malformed,
    /// It brings no token that is known.
    TokenNeeded,
    /// Its token may not do this.
    ScopeNeeded,
    /// It is not signed by whom it has to be.
    Unsigned,
    /// A web page of another site sent it.
    ForeignOrigin,
    /// There is no such thing.
    NotFound,
    /// The thing is there, and this cannot be done with it.
    WrongMethod,
    /// Its body did not go on.
    TooSlow,
    /// An event of this id is there and says something else.
    Differs,
    /// What it wanted to be so is not.
    Changed,
    /// It is longer than it may be.
    TooBig,
    /// Its body is in a form that is not read.
    WrongForm,
    /// Its body has an encoding that is not known.
    UnknownEncoding,
    /// The file has no such bytes.
    NoSuchRange,
    /// It is for a host that this is not.
    ForeignHost,
    /// It says something that cannot be done.
    Refused,
    /// Its idempotency key was used for something else.
    KeyReused,
    /// A stored file is not what was written.
    Damaged,
    /// A store does not answer.
    StoresAway,
    /// There is no room for it now.
    Busy,
    /// The disk that holds uploads is full.
    DiskFull,
    /// A link of a chain did not end well.
    LinkFailed,
    /// A link of a chain was over its time.
    LinkTimedOut,
    /// Something of ours failed.
    Internal,
}

impl Kind {
    /// All of them.
    #[cfg(test)]
    pub(super) const ALL: [Self; 24] = [
        Self::Malformed,
        Self::TokenNeeded,
        Self::ScopeNeeded,
        Self::Unsigned,
        Self::ForeignOrigin,
        Self::NotFound,
        Self::WrongMethod,
        Self::TooSlow,
        Self::Differs,
        Self::Changed,
        Self::TooBig,
        Self::WrongForm,
        Self::UnknownEncoding,
        Self::NoSuchRange,
        Self::ForeignHost,
        Self::Refused,
        Self::KeyReused,
        Self::Damaged,
        Self::StoresAway,
        Self::Busy,
        Self::DiskFull,
        Self::LinkFailed,
        Self::LinkTimedOut,
        Self::Internal,
    ];

    /// Its status, its name and its title.
    pub(super) fn said(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::Malformed => (StatusCode::BAD_REQUEST, "malformed", "The request cannot be read"),
            Self::TokenNeeded => {
                (StatusCode::UNAUTHORIZED, "token-needed", "A bearer token is needed")
            }
            Self::ScopeNeeded => {
                (StatusCode::FORBIDDEN, "scope-needed", "The token may not do this")
            }
            Self::Unsigned => (StatusCode::FORBIDDEN, "unsigned", "The request is not signed well"),
            Self::ForeignOrigin => {
                (StatusCode::FORBIDDEN, "foreign-origin", "Pages of other sites are not served")
            }
            Self::NotFound => (StatusCode::NOT_FOUND, "not-found", "There is no such thing"),
            Self::WrongMethod => {
                (StatusCode::METHOD_NOT_ALLOWED, "wrong-method", "This cannot be done here")
            }
            Self::TooSlow => (StatusCode::REQUEST_TIMEOUT, "too-slow", "The request did not go on"),
            Self::Differs => {
                (StatusCode::CONFLICT, "differs", "The event is there and says something else")
            }
            Self::Changed => {
                (StatusCode::PRECONDITION_FAILED, "changed", "It is another one by now")
            }
            Self::TooBig => (StatusCode::PAYLOAD_TOO_LARGE, "too-big", "The request is too big"),
            Self::WrongForm => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "wrong-form", "The body's form is not read")
            }
            Self::UnknownEncoding => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unknown-encoding",
                "The body's encoding is not known",
            ),
            Self::NoSuchRange => {
                (StatusCode::RANGE_NOT_SATISFIABLE, "no-such-range", "The file has no such bytes")
            }
            Self::ForeignHost => (
                StatusCode::MISDIRECTED_REQUEST,
                "foreign-host",
                "This is not the host that was asked",
            ),
            Self::Refused => (StatusCode::UNPROCESSABLE_ENTITY, "refused", "The event is refused"),
            Self::KeyReused => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "key-reused",
                "The key was used for another event",
            ),
            Self::Damaged => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "damaged",
                "A stored file is not what was written",
            ),
            Self::StoresAway => {
                (StatusCode::SERVICE_UNAVAILABLE, "stores-away", "The stores do not answer")
            }
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy", "There is no room now"),
            Self::DiskFull => (StatusCode::INSUFFICIENT_STORAGE, "disk-full", "The disk is full"),
            Self::LinkFailed => {
                (StatusCode::BAD_GATEWAY, "link-failed", "A link of the chain failed")
            }
            Self::LinkTimedOut => (
                StatusCode::GATEWAY_TIMEOUT,
                "link-timed-out",
                "A link of the chain was over its time",
            ),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "The gateway failed"),
        }
    }
}

/// One thing that went wrong: what it was, in words that name it and the way out.
#[derive(Debug)]
pub(super) struct Problem(Box<Parts>);

#[derive(Debug)]
struct Parts {
    kind: Kind,
    detail: String,
    more: Map<String, Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    /// A problem in words.
    pub(super) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        // A request chooses some of the words.
        let detail = cut_off(detail.into(), REASON_MAX);
        let parts = Parts { kind, detail, more: Map::new(), headers: vec![] };
        let mut problem = Self(Box::new(parts));
        if matches!(kind, Kind::StoresAway | Kind::Busy) {
            problem = problem.header(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
        }
        problem
    }

    /// With a member for programs.
    #[must_use]
    pub(super) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.more.insert(name.to_owned(), value.into());
        self
    }

    /// With a header.
    #[must_use]
    pub(super) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    /// The same, of one event of several.
    #[must_use]
    pub(super) fn of_event(mut self, place: usize) -> Self {
        self.0.detail =
            cut_off(format!("event {place} of the batch: {}", self.0.detail), REASON_MAX);
        self.with("index", place)
    }

    /// Its document.
    pub(super) fn document(&self) -> Value {
        let (status, name, title) = self.0.kind.said();
        let mut document = json!({
            "type": format!("{TYPES}{name}"), "title": title, "status": status.as_u16(), "detail": self.0.detail,
        });
        if let Value::Object(members) = &mut document {
            members.extend(self.0.more.clone());
        }
        document
    }

    /// Of what kind it is.
    pub(super) fn kind(&self) -> Kind {
        self.0.kind
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, name, _) = self.kind().said();
        if status.is_server_error() {
            tracing::warn!(problem = name, detail = self.0.detail, "a request failed");
        }
        let mut response = Response::new(Body::from(self.document().to_string()));
        *response.status_mut() = status;
        let said = response.headers_mut();
        said.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        said.extend(self.0.headers);
        response
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let detail = chain(&error);
        match error {
            StoreError::Unavailable { .. } => {
                Self::new(Kind::StoresAway, format!("{detail}; try again later"))
            }
            StoreError::NoSuchBlob(_) => {
                Self::new(Kind::Damaged, format!("{detail}; `ion check` says what else is missing"))
            }
            _ => Self::new(Kind::Internal, detail),
        }
    }
}

impl From<LedgerError> for Problem {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Store(error) => error.into(),
            error => Self::new(Kind::Internal, chain(&error)),
        }
    }
}

impl From<UploadError> for Problem {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::Store { source, .. } | UploadError::Documents(source) => source.into(),
            error @ UploadError::Read { .. } => Self::new(Kind::Internal, chain(&error)),
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Stores(_) => Self::new(
                Kind::StoresAway,
                format!("{refusal}; send it again, best with the same Idempotency-Key"),
            ),
            Refusal::Differs(_) => Self::new(Kind::Differs, refusal.to_string()),
            Refusal::TooBig(_) => Self::new(Kind::TooBig, refusal.to_string()),
            refusal => Self::new(Kind::Refused, refusal.to_string()),
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
        for kind in Kind::ALL {
            let (status, name, _) = kind.said();
            assert!(page.contains(&format!("| `{name}` | {} |", status.as_u16())), "{name}");
        }
    }

    #[test]
    fn a_problem_is_a_document_with_its_headers() {
        let response = Problem::new(Kind::Busy, "later").with("key", "value").into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::CONTENT_TYPE], PROBLEM_JSON);
        assert_eq!(response.headers()[header::RETRY_AFTER], RETRY_AFTER);
    }
}
