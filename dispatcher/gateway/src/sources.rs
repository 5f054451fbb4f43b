//! Sources over HTTP: listing, adding, changing and removing them, their runs, and the modules that
//! they may start.
//!
//! What a change does is decided in `ion_jobs::sources`, which `ion source` uses too. This file
//! reads requests and describes sources.

mod description;

use std::collections::HashMap;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use ion_jobs::pipeline::{
    Module, SourceFields, SourceProblem, SourceProblems, define_source_from_json,
};
use ion_jobs::sources::{
    EditOutcome, ExpectedSource, SourceError, SourceRuns, SourceTag, Sources, WantedSource,
};
use ion_model::source::{SourceRecord, is_source_name};
use ion_model::text::quote;
use ion_stores::{Collection, Query, StartAt, StoreError, decode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};

use self::description::{
    definition_schema, describe_kind, describe_operations, describe_run, describe_source,
    source_schema,
};
use super::auth::Scope;
use super::encoding::json_text;
use super::file::names_tag;
use super::problem::{Problem, ProblemKind};
use super::route::{Access, PathParams, Route, parse_query};
use super::trace::streamed_answer;
use super::{GatewayState, SharedState, json_answer};

/// How many sources a page has unless the client says otherwise, and at most.
const PAGE: usize = 100;
const PAGE_MAX: usize = 1000;

/// How many runs a page has unless the client says otherwise, and at most. Each run costs three
/// queries.
const RUNS: usize = 20;
const RUNS_MAX: usize = 100;

/// How many sources are read at once.
const READ_ROWS: usize = 128;

/// The bytes after which a page ends early. A source's values may take a MiB, and all answers share
/// their memory.
const PAGE_BYTES: usize = 1 << 20;

/// The member of a definition that says whether the source is paused.
const PAUSED: &str = "paused";

/// Returns the routes.
pub(super) fn routes() -> Vec<Route> {
    let [list, get, put, patch, delete, run, runs, kinds] = describe_operations();
    let (read, write) = (Access::Needs(Scope::SourcesRead), Access::Needs(Scope::SourcesWrite));
    vec![
        Route::get("/sources", read, list_sources, list),
        Route::get("/sources/{name}", read, get_source, get),
        Route::put("/sources/{name}", write, put_source, put),
        Route::patch("/sources/{name}", write, patch_source, patch),
        Route::delete("/sources/{name}", write, delete_source, delete),
        Route::post("/sources/{name}/runs", write, run_source, run),
        Route::get("/sources/{name}/runs", read, list_runs, runs),
        Route::get("/source-kinds", read, list_kinds, kinds),
    ]
}

/// Returns the schemas of sources, by name.
pub(super) fn schemas() -> [(&'static str, Value); 2] {
    [("Source", source_schema()), ("SourceDefinition", definition_schema())]
}

impl GatewayState {
    /// Returns the sources of the plane.
    pub(super) fn sources(&self) -> Sources {
        Sources::new(self.ledger.clone())
    }
}

// ---- reading ----

async fn list_sources(
    State(gate): State<SharedState>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let parameters = parse_query(query.as_deref(), &["cursor", "limit"])?;
    let limit = parse_limit(&parameters, PAGE, PAGE_MAX)?;
    let cursor = parameters.get("cursor");
    if let Some(wrong) = cursor.filter(|cursor| !is_source_name(cursor)) {
        let detail = format!("cursor={wrong:?} is not one that an answer has named as \"next\"");
        return Err(Problem::new(ProblemKind::Malformed, detail));
    }
    let _reading = gate.looks.read_permits().acquire().await;
    let (text, next) = gate.within_deadline(read_page(&gate, cursor.cloned(), limit)).await?;
    let length = text.len() as u64;
    let mut response = streamed_answer(StatusCode::OK, (gate.looks.counted_body(text)?, length));
    add_next(&mut response, "/sources", next.as_deref(), limit);
    Ok(response)
}

/// Reads a page of sources by name. Returns its JSON document, and where the next page begins.
async fn read_page(
    gate: &SharedState,
    mut cursor: Option<String>,
    limit: usize,
) -> Result<(Vec<u8>, Option<String>), StoreError> {
    let documents = &*gate.ledger.plane().documents;
    let (mut text, mut count) = (b"{\"sources\":[".to_vec(), 0);
    let next = 'page: loop {
        let start = match &cursor {
            Some(name) => StartAt::After { value: json!(name), id: name.clone() },
            None => StartAt::Beginning,
        };
        // One row more than is wanted tells whether more follow.
        let rows = READ_ROWS.min(limit - count + 1);
        let query = Query::all(Collection::Sources).start_at(start).limit(rows);
        let found = documents.find(query).await?;
        let is_last = found.len() < rows;
        for document in found {
            let source: SourceRecord = decode(Collection::Sources, document)?;
            if count == limit || text.len() > PAGE_BYTES {
                break 'page cursor;
            }
            if count > 0 {
                text.push(b',');
            }
            text.extend(describe_source(&source).to_string().into_bytes());
            count += 1;
            cursor = Some(source.id);
        }
        if is_last {
            break None;
        }
    };
    text.extend(format!("],\"next\":{}}}", json!(next)).into_bytes());
    Ok((text, next))
}

fn parse_limit(
    parameters: &HashMap<String, String>,
    usual: usize,
    most: usize,
) -> Result<usize, Problem> {
    let Some(text) = parameters.get("limit") else { return Ok(usual) };
    let limit = text.parse::<usize>().ok().filter(|limit| (1..=most).contains(limit));
    limit.ok_or_else(|| {
        let detail = format!("limit={text:?} is not a number from 1 to {most}");
        Problem::new(ProblemKind::Malformed, detail)
    })
}

/// Says in the header Link by which path a client gets the next page, if there is one.
fn add_next(response: &mut Response, path: &str, cursor: Option<&str>, limit: usize) {
    let Some(cursor) = cursor else { return };
    let cursor = utf8_percent_encode(cursor, NON_ALPHANUMERIC);
    let link =
        HeaderValue::try_from(format!("<{path}?cursor={cursor}&limit={limit}>; rel=\"next\""));
    response.headers_mut().insert(header::LINK, link.expect("an escaped path is ASCII"));
}

async fn get_source(
    State(gate): State<SharedState>,
    PathParams(name): PathParams<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let source = gate.within_deadline(gate.sources().get(&name)).await?;
    let tag = tag_of(&source);
    if headers.get(header::IF_NONE_MATCH).is_some_and(|list| names_tag(list, &tag, true)) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    Ok(source_answer(StatusCode::OK, &source))
}

async fn list_runs(
    State(gate): State<SharedState>,
    PathParams(name): PathParams<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let parameters = parse_query(query.as_deref(), &["cursor", "limit"])?;
    let limit = parse_limit(&parameters, RUNS, RUNS_MAX)?;
    gate.within_deadline(gate.sources().get(&name)).await?;
    let cursor = parameters.get("cursor").map(String::as_str);
    let mut runs = SourceRuns::latest_first(&name, cursor)
        .map_err(|error| Problem::new(ProblemKind::Malformed, error.to_string()))?;
    let _reading = gate.looks.read_permits().acquire().await;
    let read = async {
        let mut page = Vec::new();
        // One run more than is wanted tells whether more follow.
        while page.len() <= limit
            && let Some(run) = runs.next(gate.ledger.plane()).await?
        {
            page.push(run);
        }
        Ok::<_, StoreError>(page)
    };
    let mut page = gate.within_deadline(read).await?;
    let has_more = page.len() > limit;
    page.truncate(limit);
    let next = page.last().filter(|_| has_more).map(|run| run.run.to_string());
    let runs: Vec<Value> = page.iter().map(describe_run).collect();
    let text = json!({"runs": runs, "next": next}).to_string().into_bytes();
    let length = text.len() as u64;
    let mut response = streamed_answer(StatusCode::OK, (gate.looks.counted_body(text)?, length));
    add_next(&mut response, &format!("/sources/{name}/runs"), next.as_deref(), limit);
    Ok(response)
}

async fn list_kinds(State(gate): State<SharedState>) -> Result<Response, Problem> {
    let modules = gate.within_deadline(gate.sources().modules()).await?;
    let kinds: Vec<Value> =
        modules.iter().filter(|module| module.params.is_some()).map(describe_kind).collect();
    Ok(json_answer(StatusCode::OK, &json!({"kinds": kinds})))
}

// ---- changing ----

/// Why a source is not changed.
enum EditError {
    Source(SourceError),
    Problems(SourceProblems),
}

impl From<SourceError> for EditError {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}

impl From<EditError> for Problem {
    fn from(error: EditError) -> Self {
        match error {
            EditError::Source(error) => error.into(),
            EditError::Problems(problems) => problems.into(),
        }
    }
}

async fn put_source(
    State(gate): State<SharedState>,
    PathParams(name): PathParams<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let expected = expected_source(&headers)?;
    let mut object = read_object(&gate, &headers, body).await?;
    let paused = take_paused(&mut object);
    let modules = gate.within_deadline(gate.sources().modules()).await?;
    let want = |_: Option<&SourceRecord>| -> Result<WantedSource, EditError> {
        let wanted = define(&name, object.clone(), &modules, &paused)?;
        Ok(WantedSource { paused: Some(wanted.paused.unwrap_or(false)), ..wanted })
    };
    let sources = gate.sources();
    let edit = async {
        match sources.edit(&name, &expected, want).await {
            // RFC 9110: `If-Match: *` fails where there is nothing.
            Err(EditError::Source(error @ SourceError::NoSuchSource(_))) => {
                let detail = format!("{error}, and If-Match asks for one");
                Err(Problem::new(ProblemKind::Changed, detail))
            }
            edited => Ok(edited?),
        }
    };
    let (source, outcome) = gate.within_deadline(edit).await?;
    let status = match outcome {
        EditOutcome::Added => StatusCode::CREATED,
        EditOutcome::Changed | EditOutcome::Unchanged => StatusCode::OK,
    };
    Ok(source_answer(status, &source))
}

async fn patch_source(
    State(gate): State<SharedState>,
    PathParams(name): PathParams<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let expected = expected_source(&headers)?;
    let mut patch = read_object(&gate, &headers, body).await?;
    let paused = take_paused(&mut patch);
    // A source that does not exist has no version, either; the client is told the former.
    gate.within_deadline(gate.sources().get(&name)).await?;
    let expected = match expected {
        ExpectedSource::Any => ExpectedSource::Existing,
        expected => expected,
    };
    let modules = gate.within_deadline(gate.sources().modules()).await?;
    let want = |found: Option<&SourceRecord>| -> Result<WantedSource, EditError> {
        let missing = || SourceError::NoSuchSource(name.clone());
        let found = found.ok_or_else(missing)?;
        // A source whose module is gone can still be paused.
        if patch.is_empty() && paused.is_ok() {
            let definition = found.definition.clone();
            return Ok(WantedSource { definition, paused: paused.clone().unwrap_or_default() });
        }
        define(&name, SourceFields::patched(&found.definition, &patch), &modules, &paused)
    };
    let sources = gate.sources();
    let edited = sources.edit(&name, &expected, want);
    let (source, _) = gate.within_deadline(edited).await?;
    Ok(source_answer(StatusCode::OK, &source))
}

async fn delete_source(
    State(gate): State<SharedState>,
    PathParams(name): PathParams<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let expected = expected_source(&headers)?;
    gate.within_deadline(gate.sources().delete(&name, &expected)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn run_source(
    State(gate): State<SharedState>,
    PathParams(name): PathParams<String>,
) -> Result<Response, Problem> {
    let source = gate.within_deadline(gate.sources().ask_for_run(&name)).await?;
    let mut response = source_answer(StatusCode::ACCEPTED, &source);
    let runs = HeaderValue::try_from(format!("/sources/{}/runs", source.id));
    response.headers_mut().insert(header::LOCATION, runs.expect("a source's name is ASCII"));
    Ok(response)
}

/// Checks a definition. `paused` is what its member of that name says.
fn define(
    name: &str,
    object: Map<String, Value>,
    modules: &[Module],
    paused: &Result<Option<bool>, String>,
) -> Result<WantedSource, EditError> {
    let module = |name: &str| modules.iter().find(|module| module.name == name);
    let defined = define_source_from_json(name, object, module);
    match (defined, paused) {
        (Ok(definition), Ok(paused)) => Ok(WantedSource { definition, paused: *paused }),
        (defined, paused) => {
            let mut problems = defined.err().map_or_else(Vec::new, |problems| problems.0);
            if let Err(problem) = paused {
                let (field, problem) = (PAUSED.to_owned(), problem.clone());
                problems.push(SourceProblem::Field { field, problem });
            }
            Err(EditError::Problems(SourceProblems(problems)))
        }
    }
}

/// Takes the member out of a definition that says whether the source is paused.
fn take_paused(object: &mut Map<String, Value>) -> Result<Option<bool>, String> {
    match object.remove(PAUSED) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(paused)) => Ok(Some(paused)),
        Some(_) => Err("must be true or false".to_owned()),
    }
}

/// Reads a body that is a JSON object.
pub(super) async fn read_object(
    gate: &SharedState,
    headers: &HeaderMap,
    body: Body,
) -> Result<Map<String, Value>, Problem> {
    let given = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
    let form = given.and_then(|text| text.parse::<mime::Mime>().ok());
    let is_json = form.is_some_and(|form| {
        form.subtype() == mime::JSON || form.suffix().is_some_and(|suffix| suffix == mime::JSON)
    });
    if !is_json {
        let detail = format!(
            "a source is sent as application/json, and this is {}",
            given.map_or_else(|| "no Content-Type".to_owned(), |given| quote(given).to_string())
        );
        return Err(Problem::new(ProblemKind::WrongForm, detail));
    }
    parse_object(gate, headers, body).await
}

/// Reads a body that is a JSON object, whatever its Content-Type says.
pub(super) async fn parse_object(
    gate: &SharedState,
    headers: &HeaderMap,
    body: Body,
) -> Result<Map<String, Value>, Problem> {
    let held = gate.body_of_values(headers, body)?.read_whole(&gate.room).await?;
    serde_json::from_slice(json_text(held.bytes())?).map_err(|error| {
        let detail = format!("the body is no JSON object: {error}");
        Problem::new(ProblemKind::Malformed, detail)
    })
}

/// Returns which source a client expects to change, by `If-Match` and `If-None-Match`.
fn expected_source(headers: &HeaderMap) -> Result<ExpectedSource, Problem> {
    let text = |name: HeaderName| {
        headers.get(name).map(|list: &HeaderValue| list.to_str().unwrap_or_default())
    };
    let malformed = |detail: &str| Err(Problem::new(ProblemKind::Malformed, detail));
    match (text(header::IF_MATCH), text(header::IF_NONE_MATCH)) {
        (None, None) => Ok(ExpectedSource::Any),
        (None, Some(list)) if list.trim() == "*" => Ok(ExpectedSource::Missing),
        (None, Some(_)) => malformed("If-None-Match may only be * when a source is changed"),
        (Some(_), Some(_)) => malformed("If-Match and If-None-Match exclude each other"),
        (Some(list), None) if list.trim() == "*" => Ok(ExpectedSource::Existing),
        // A tag that no source can have matches none.
        (Some(list), None) => Ok(ExpectedSource::Version(
            list.split(',')
                .filter_map(|tag| tag.trim().strip_prefix('"')?.strip_suffix('"')?.parse().ok())
                .collect(),
        )),
    }
}

fn tag_of(source: &SourceRecord) -> String {
    format!("\"{}\"", SourceTag::of(source))
}

fn source_answer(status: StatusCode, source: &SourceRecord) -> Response {
    let mut response = json_answer(status, &describe_source(source));
    let tag = HeaderValue::try_from(tag_of(source)).expect("digits in quotes are a header");
    let headers = response.headers_mut();
    headers.insert(header::ETAG, tag);
    if status == StatusCode::CREATED {
        let path = HeaderValue::try_from(format!("/sources/{}", source.id));
        headers.insert(header::LOCATION, path.expect("a source's name is ASCII"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_header_says_which_source_is_expected() {
        let of = |pairs: &[(&'static str, &str)]| expected_source(&headers(pairs));
        assert_eq!(of(&[]).unwrap(), ExpectedSource::Any);
        assert_eq!(of(&[("if-match", "*")]).unwrap(), ExpectedSource::Existing);
        assert_eq!(of(&[("if-none-match", "*")]).unwrap(), ExpectedSource::Missing);
        let tags = |texts: &[&str]| {
            ExpectedSource::Version(texts.iter().map(|text| text.parse().unwrap()).collect())
        };
        assert_eq!(of(&[("if-match", "\"7-12\", W/\"8\" ,\"9\"")]).unwrap(), tags(&["7-12", "9"]));
        assert_eq!(of(&[("if-match", "nonsense")]).unwrap(), tags(&[]));
        assert!(of(&[("if-none-match", "\"7\"")]).is_err());
        assert!(of(&[("if-none-match", "*"), ("if-match", "*")]).is_err());
    }
}
