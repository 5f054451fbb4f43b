//! The files of an event, whole or as a range. Every byte is compared with its checksum before it
//! is sent, as for any reader.
//!
//! Files are sent as `application/octet-stream`, so that a browser never shows a page that a module
//! wrote as a page of this gateway.

use std::ops::Range;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use ion_model::checksum::hex;
use ion_model::errors::error_chain;
use ion_model::event::{FileEntry, clean_path};
use ion_plane::cache::{BlobReader, CacheError};
use ion_stores::StoreError;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::auth::Scope;
use super::problem::{Problem, ProblemKind};
use super::route::{Access, PathParams, Route};
use super::{SharedState, openapi, trace};

/// Bytes that are read from the cache at once. Less asks the cache more often, more takes memory
/// for each client.
const PIECE: u64 = 1 << 20;

/// Returns the routes.
pub(super) fn routes() -> Vec<Route> {
    let string = json!({"type": "string"});
    let bytes = |what: &str, headers: serde_json::Value| {
        json!({
            "description": what, "headers": headers,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        })
    };
    let header =
        |what: &str| json!({"description": what, "required": true, "schema": {"type": "string"}});
    let in_header =
        |name: &str| json!({"name": name, "in": "header", "schema": {"type": "string"}});
    vec![Route::get(
        "/events/{event}/data/{*path}",
        Access::Needs(Scope::EventsRead),
        send_file,
        json!({
            "operationId": "file", "summary": "A file of an event, whole or a single range of it",
            "parameters": [
                {"name": "event", "in": "path", "required": true, "description": "The event's id.", "schema": string},
                {"name": "path", "in": "path", "required": true, "description":
                    "The file's path, with slashes as they are or as %2F.", "schema": {"type": "string", "minLength": 1}},
                in_header("Range"), in_header("If-Range"), in_header("If-None-Match"), in_header("If-Match"),
            ],
            "responses": {
                "200": bytes("The file.", json!({"ETag": header("The tag of the file.")})),
                "206": bytes("The range.", json!({"ETag": header("The tag of the whole file."), "Content-Range": header("The range, and the file's size.")})),
                "304": {"description": "The file is one that `If-None-Match` names."},
                "400": openapi::problem("The path cannot be read."),
                "404": openapi::problem("The event does not exist, or it has no such file."),
                "412": openapi::problem("The file is not one that `If-Match` names."),
                "416": openapi::problem("The range begins beyond the end of the file."),
            },
        }),
    )]
}

/// The part of a file that a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum RequestedRange {
    All,
    Part(Range<u64>),
    /// A range beyond the file's end.
    Beyond,
}

/// Reads a `Range` header for a file of this size. A header that cannot be read, or that names
/// several ranges, is ignored, as RFC 9110 allows.
fn parse_range(range: &str, size: u64) -> RequestedRange {
    let Some((unit, spec)) = range.split_once('=') else { return RequestedRange::All };
    let Some((from, to)) = spec.trim().split_once('-') else { return RequestedRange::All };
    let number = |text: &str| match text {
        _ if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) => None,
        // A number too large for `u64` is beyond every file.
        _ => Some(text.parse::<u64>().unwrap_or(u64::MAX)),
    };
    if !unit.eq_ignore_ascii_case("bytes") {
        return RequestedRange::All;
    }
    let range = match (number(from), number(to), from.is_empty(), to.is_empty()) {
        (Some(from), Some(to), ..) if from <= to => from..to.saturating_add(1).min(size),
        (Some(from), None, _, true) => from..size,
        (None, Some(last), true, _) => size.saturating_sub(last)..size,
        _ => return RequestedRange::All,
    };
    if range.is_empty() { RequestedRange::Beyond } else { RequestedRange::Part(range) }
}

/// Returns the ETag of a file: files with the same bytes have the same tag.
fn etag(entry: &FileEntry) -> String {
    let sums = serde_json::to_vec(&entry.checksums).expect("sums have string keys only");
    let digest = Sha256::new().chain_update(entry.size.to_be_bytes()).chain_update(sums).finalize();
    format!("\"{}\"", hex(&digest[..16]))
}

/// Returns whether a list of tags contains this one. With `weak`, weak tags (`W/`) count too.
pub(super) fn names_tag(list: &HeaderValue, tag: &str, weak: bool) -> bool {
    let list = list.to_str().unwrap_or_default();
    list.split(',').map(str::trim).any(|one| {
        one == "*" || one == tag || (weak && one.strip_prefix("W/").is_some_and(|one| one == tag))
    })
}

async fn send_file(
    State(gate): State<SharedState>,
    PathParams((event, path)): PathParams<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let entry = find_file(&gate, &event, &path).await?;
    let tag = etag(&entry);
    let named = HeaderValue::try_from(&tag).expect("digits in quotes are a header");
    if headers.get(header::IF_MATCH).is_some_and(|list| !names_tag(list, &tag, false)) {
        let detail = format!(
            "file {path:?} of event {event} has the ETag {tag}, which If-Match does not name"
        );
        return Err(Problem::new(ProblemKind::Changed, detail));
    }
    if headers.get(header::IF_NONE_MATCH).is_some_and(|list| names_tag(list, &tag, true)) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, named)]).into_response());
    }
    let same = headers.get(header::IF_RANGE).is_none_or(|one| one.as_bytes() == tag.as_bytes());
    let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok());
    let range =
        range.filter(|_| same && method == Method::GET).map(|range| parse_range(range, entry.size));
    let (status, range) = match range.unwrap_or(RequestedRange::All) {
        RequestedRange::All => (StatusCode::OK, 0..entry.size),
        RequestedRange::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        RequestedRange::Beyond => {
            let detail = format!("file {path:?} of event {event} has {} bytes", entry.size);
            let size = HeaderValue::try_from(format!("bytes */{}", entry.size))
                .expect("digits are a header");
            return Err(Problem::new(ProblemKind::NoSuchRange, detail)
                .with_header(header::CONTENT_RANGE, size));
        }
    };
    let length = range.end - range.start;
    let content_range =
        format!("bytes {}-{}/{}", range.start, range.end.saturating_sub(1), entry.size);
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        stream_range(&gate, entry, range).await?
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::ETAG, named);
    // The files of an event never change.
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("private, max-age=31536000, immutable"),
    );
    if status == StatusCode::PARTIAL_CONTENT {
        let which = HeaderValue::try_from(content_range).expect("digits are a header");
        headers.insert(header::CONTENT_RANGE, which);
    }
    Ok(response)
}

/// Returns the entry of an event's file.
async fn find_file(gate: &SharedState, event: &str, path: &str) -> Result<FileEntry, Problem> {
    let found = trace::find_event(gate, event).await?;
    let files = {
        // A long list of files is in memory as a whole, so few may be read at once.
        let _look = gate.looks.read_permits().acquire().await;
        gate.within_deadline(gate.node.plane.files_of(&found)).await?
    };
    let clean = clean_path(path);
    let file = files.into_iter().find(|file| Some(&file.name) == clean.as_ref());
    file.ok_or_else(|| {
        let detail =
            format!("event {event} has no file {path:?}; the event's document lists its files");
        Problem::new(ProblemKind::NotFound, detail)
    })
}

/// Returns a body with the bytes of a range. The first piece is read before this returns, so that
/// an unreadable file is answered with a problem and not with a body that breaks off.
pub(super) async fn stream_range(
    gate: &SharedState,
    entry: FileEntry,
    range: Range<u64>,
) -> Result<Body, Problem> {
    if range.is_empty() {
        return Ok(Body::empty());
    }
    let reader =
        BlobReader::new(gate.node.cache.open(&entry).map_err(|error| cache_problem(&error))?);
    let read = async move |gate: &SharedState, reader: BlobReader, at: u64, end: u64| {
        let piece = async {
            reader.read(at, PIECE.min(end - at)).await.map_err(|error| cache_problem(&error))
        };
        let piece = gate.within_deadline(piece).await?;
        Ok::<_, Problem>((piece, reader))
    };
    let (first, reader) = read(gate, reader, range.start, range.end).await?;
    let at = range.start + first.len() as u64;
    let rest =
        stream::try_unfold((gate.clone(), reader, at), move |(gate, reader, at)| async move {
            if at >= range.end {
                return Ok(None);
            }
            let (piece, reader) =
                read(&gate, reader, at, range.end).await.map_err(|_| broken_answer_error())?;
            let next = at + piece.len() as u64;
            if piece.is_empty() {
                Err(broken_answer_error())
            } else {
                Ok(Some((piece, (gate, reader, next))))
            }
        });
    Ok(Body::from_stream(
        stream::once(async move { Ok::<Bytes, std::io::Error>(first) }).chain(rest),
    ))
}

/// The error that ends an answer that has begun. Its cause was logged where it happened.
fn broken_answer_error() -> std::io::Error {
    std::io::Error::other("the rest of the file cannot be read")
}

fn cache_problem(error: &CacheError) -> Problem {
    let detail = error_chain(error);
    match error {
        CacheError::Store { source: StoreError::Unavailable { .. }, .. } => {
            Problem::new(ProblemKind::StoresAway, format!("{detail}; try again later"))
        }
        CacheError::Local { .. } => Problem::new(ProblemKind::Internal, detail),
        _ => Problem::new(
            ProblemKind::Damaged,
            format!("{detail}; `ion check --deep` lists everything that is damaged"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_what_rfc_9110_says() {
        for (range, expected) in [
            ("bytes=0-0", RequestedRange::Part(0..1)),
            ("bytes=3-", RequestedRange::Part(3..10)),
            ("bytes=-4", RequestedRange::Part(6..10)),
            ("bytes=-99", RequestedRange::Part(0..10)),
            ("Bytes=2-99", RequestedRange::Part(2..10)),
            ("bytes=0-99999999999999999999", RequestedRange::Part(0..10)),
            ("bytes=10-", RequestedRange::Beyond),
            ("bytes=99999999999999999999-", RequestedRange::Beyond),
            ("bytes=-0", RequestedRange::Beyond),
            ("bytes=5-4", RequestedRange::All),
            ("bytes=0-1,3-4", RequestedRange::All),
            ("bytes=-", RequestedRange::All),
            ("bytes=+1-2", RequestedRange::All),
            ("lines=0-1", RequestedRange::All),
            ("bytes", RequestedRange::All),
        ] {
            assert_eq!(parse_range(range, 10), expected, "{range}");
        }
        assert_eq!(parse_range("bytes=0-", 0), RequestedRange::Beyond);
    }
}
