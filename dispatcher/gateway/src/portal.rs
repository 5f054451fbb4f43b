//! The portal: a client sends a payload through a chain, and the answer is what the last link
//! writes.
//!
//! This process runs the chains that it serves itself, on link processes that were started ahead,
//! and the answer begins with the first bytes of output. The event of any other chain is published
//! like any event: a dispatcher of the plane claims it and runs the chain, and the portal reads the
//! answer from the store when the run has ended. The portal need not know which dispatcher that
//! was.
//!
//! # Guarantees
//! An answer that ends completely says that every link ended well and that the run is recorded. A
//! run that fails before its answer has begun is answered with a problem document. A run that fails
//! later breaks the answer off, so that no client takes a part for the whole.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Version, header};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use ion_jobs::ledger::LedgerError;
use ion_jobs::pipeline::Module;
use ion_model::event::{Event, FileEntry};
use ion_model::id::{CorrelationId, EventId, JobId};
use ion_model::record::{AttemptEnd, JobRecord, JobState};
use ion_model::text::{format_tail, quote};
use ion_plane::first::FirstEvent;
use ion_run::chain::{
    ChainEnd, ChainRequest, ChainRun, Chains, InputState, LinkFailure, STDIN, derive_steps,
};
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::auth::Scope;
use super::body::IncomingBody;
use super::problem::{Problem, ProblemKind};
use super::route::{Access, PathParams, Route, parse_query};
use super::{SharedState, draft, file, openapi};

/// How long the first bytes of an answer are held back in case a link fails: most chains end within
/// it, and a status code states their outcome.
const HOLD: Duration = Duration::from_millis(50);

/// The maximum bytes that are held back.
const HOLD_BYTES: usize = 256 << 10;

/// The first and the longest pause between two looks at a run elsewhere.
const PAUSE: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// The maximum bytes of a failed link's log that a problem shows: the last ones.
const STDERR_MAX: u64 = 8 << 10;

/// The header with the correlation of a run.
const CORRELATION: HeaderName = HeaderName::from_static("ion-correlation-id");

/// The chains that this process runs itself.
#[derive(Clone, Debug)]
pub struct Portal {
    chains: Arc<Chains>,
    modules: HashMap<String, Arc<Module>>,
}

impl Portal {
    /// Returns a portal for the chains among these modules.
    pub fn new(chains: Arc<Chains>, modules: &[Module]) -> Self {
        let chained = modules.iter().filter(|module| !module.links.is_empty());
        let modules =
            chained.map(|module| (module.name.clone(), Arc::new(module.clone()))).collect();
        Self { chains, modules }
    }
}

/// Returns the routes.
pub(super) fn routes() -> Vec<Route> {
    let output = json!({
        "description": "The output of the last link, as it comes.",
        "headers": {"Ion-Correlation-Id": {
            "description": "The correlation of the run.", "required": true, "schema": {"type": "string"},
        }},
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    });
    vec![Route::post(
        "/chains/{chain}",
        Access::Needs(Scope::ChainsRun),
        run_chain,
        json!({
            "operationId": "runChain", "summary": "Send a payload through a chain",
            "description": "The body goes to the first link's stdin. The answer is what the last link writes to stdout; it \
                            breaks off if a link fails after the answer has begun.",
            "parameters": [{
                "name": "chain", "in": "path", "required": true, "description": "The chain's name.",
                "schema": {"type": "string", "minLength": 1},
            }],
            "requestBody": {"content": {"application/octet-stream": {"schema": {}}}},
            "responses": {
                "200": output,
                "400": openapi::problem("The path, a parameter or a header cannot be read."),
                "404": openapi::problem("The chain does not exist."),
                "408": openapi::problem("The body came too slowly."),
                "413": openapi::problem("The body is too long."),
                "415": openapi::unknown_encoding("The body has an unknown encoding."),
                "502": openapi::problem(
                    "A link failed: `link`, `linkId`, `job`, `exitCode` and `stderr` say which one \
                     and how.",
                ),
                "504": openapi::problem("A link timed out."),
                "507": openapi::problem("The gateway's disk is full."),
            },
        }),
    )]
}

/// Handles `POST /chains/<name>`.
async fn run_chain(
    State(gate): State<SharedState>,
    PathParams(name): PathParams<String>,
    RawQuery(query): RawQuery,
    version: Version,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    parse_query(query.as_deref(), &[])?;
    if headers.contains_key("idempotency-key") {
        let detail =
            "a chain takes no Idempotency-Key, because each request is a new run; leave it out";
        return Err(Problem::new(ProblemKind::Malformed, detail));
    }
    let ids = (EventId::random(), CorrelationId::random());
    if let Some(portal) = &gate.portal
        && let Some(module) = portal.modules.get(&name)
    {
        let body = gate.body_of_files(&headers, body)?;
        let running = begin_local_run(&gate, portal, module.clone(), ids, body).await?;
        return match version {
            Version::HTTP_09 | Version::HTTP_10 => answer_when_ended(&gate, running).await,
            _ => stream_answer(running).await,
        };
    }
    let module = match gate.within_deadline(gate.ledger.module(&name)).await? {
        Some(module) if !module.links.is_empty() => module,
        Some(_) => {
            let detail =
                format!("module {} is not a chain: it reads and writes files", quote(&name));
            return Err(Problem::new(ProblemKind::NotFound, detail));
        }
        None => {
            let detail =
                format!("there is no chain {}; `ion module list` shows the modules", quote(&name));
            return Err(Problem::new(ProblemKind::NotFound, detail));
        }
    };
    run_elsewhere(&gate, module, ids, gate.body_of_files(&headers, body)?).await
}

/// Returns the document of the event that begins a run.
async fn first_event(
    gate: &SharedState,
    module: &Module,
    (id, correlation_id): (EventId, CorrelationId),
    files: Vec<FileEntry>,
) -> Result<Event, Problem> {
    let first = FirstEvent {
        id,
        correlation_id,
        name: draft::NAME.into(),
        parent: String::new(),
        event_type: module.first_start_type().unwrap_or_default().to_owned(),
        files,
        directories: vec![],
        data: vec![],
    };
    // There is at most one file, so the list of files needs no blob of its own.
    Ok(first.into_event(&gate.node.plane, "").await?)
}

// ---- runs in this process ----

/// A run in this process whose client waits for it.
struct LocalRun {
    running: ChainRun,
    correlation: CorrelationId,
    /// Why the request body broke off: the run itself only knows that it did.
    broke: Arc<Mutex<Option<Problem>>>,
}

impl LocalRun {
    /// Returns why there is no whole answer.
    fn problem(&self, end: ChainEnd) -> Problem {
        let broke = self.broke.lock().unwrap_or_else(PoisonError::into_inner).take();
        broke.unwrap_or_else(|| end_problem(end, &self.correlation))
    }

    /// Waits for the end of the run.
    async fn wait_for_end(&mut self) -> ChainEnd {
        (&mut self.running.ended).await.unwrap_or(ChainEnd::Cancelled)
    }
}

async fn begin_local_run(
    gate: &SharedState,
    portal: &Portal,
    module: Arc<Module>,
    ids: (EventId, CorrelationId),
    body: IncomingBody,
) -> Result<LocalRun, Problem> {
    let event = first_event(gate, &module, ids, vec![]).await?;
    let correlation = event.context.correlation_id.clone();
    let broke: Arc<Mutex<Option<Problem>>> = Arc::default();
    let noted = broke.clone();
    let input = body.into_pieces().map_err(move |error| {
        let failure = std::io::Error::other(error.to_string());
        *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.into());
        failure
    });
    let run = ChainRequest { module, event, stored: InputState::Not, input: input.boxed() };
    let full = |full: ion_run::chain::ChainQueueFull| {
        Problem::new(ProblemKind::Busy, format!("{full}; send the request again later"))
    };
    let running = portal.chains.start(run).map_err(full)?;
    Ok(LocalRun { running, correlation, broke })
}

/// Answers with the output of the last link while the link writes it. If the run fails, the answer
/// breaks off: it is sent in chunks, and the last chunk is never sent.
async fn stream_answer(mut run: LocalRun) -> Result<Response, Problem> {
    let mut held = BytesMut::new();
    let mut until = None;
    let ended = loop {
        tokio::select! {
            biased;
            piece = run.running.output.recv() => match piece {
                Some(piece) => {
                    held.extend_from_slice(&piece);
                    until.get_or_insert_with(|| Instant::now() + HOLD);
                    if held.len() > HOLD_BYTES {
                        break None;
                    }
                }
                // All output is written; the run is now being recorded.
                None => break Some(run.wait_for_end().await),
            },
            () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => break None,
        }
    };
    let held = held.freeze();
    match ended {
        None => {
            let correlation = run.correlation.clone();
            Ok(output_answer(Body::from_stream(rest_of_output(held, run.running)), &correlation))
        }
        Some(ChainEnd::Well { .. }) => Ok(output_answer(Body::from(held), &run.correlation)),
        Some(end) => Err(run.problem(end)),
    }
}

/// Answers once the run has ended. HTTP/1.0 has no chunks, so an answer that breaks off would look
/// complete to the client and to each proxy on the way.
async fn answer_when_ended(gate: &SharedState, mut run: LocalRun) -> Result<Response, Problem> {
    while run.running.output.recv().await.is_some() {}
    match run.wait_for_end().await {
        ChainEnd::Well { event } => answer_from_store(gate, &event, &run.correlation).await,
        end => Err(run.problem(end)),
    }
}

/// Answers with the output of the last link, read from the store.
async fn answer_from_store(
    gate: &SharedState,
    last: &EventId,
    correlation: &CorrelationId,
) -> Result<Response, Problem> {
    let event = gate.within_deadline(gate.ledger.event(last)).await?;
    let Some(answer) = event.and_then(|event| event.files.into_iter().next()) else {
        return Err(Problem::new(
            ProblemKind::Internal,
            "the run ended well, but its last event is missing",
        ));
    };
    let (length, all) = (answer.size, 0..answer.size);
    let mut response = output_answer(file::stream_range(gate, answer, all).await?, correlation);
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    Ok(response)
}

/// Returns a stream of the held bytes and the rest of the output. The stream ends with an error if
/// the run does not end well.
fn rest_of_output(
    held: Bytes,
    running: ChainRun,
) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    let rest = stream::unfold(Some(running), |running| async move {
        let mut running = running?;
        if let Some(piece) = running.output.recv().await {
            return Some((Ok(piece), Some(running)));
        }
        match (&mut running.ended).await {
            Ok(ChainEnd::Well { .. }) => None,
            end => {
                tracing::warn!(?end, "the answer of a chain broke off");
                Some((Err(std::io::Error::other("the chain failed")), None))
            }
        }
    });
    stream::iter([Ok(held)]).chain(rest)
}

fn output_answer(body: Body, correlation: &CorrelationId) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    let correlation = HeaderValue::try_from(correlation.as_str());
    headers.insert(CORRELATION, correlation.expect("a generated id is a valid header value"));
    response
}

fn end_problem(end: ChainEnd, correlation: &CorrelationId) -> Problem {
    let problem = match end {
        ChainEnd::Failed(failure) => link_problem(failure),
        ChainEnd::Broken { reason } => {
            Problem::new(ProblemKind::StoresAway, format!("{reason}; try again later"))
        }
        ChainEnd::NoPlace => Problem::new(
            ProblemKind::Busy,
            "too many chain runs are under way; send the request again later",
        ),
        ChainEnd::Cancelled => Problem::new(
            ProblemKind::Busy,
            "the run was cancelled before its end; send the request again",
        ),
        ChainEnd::Well { .. } => Problem::new(ProblemKind::Internal, "the run ended well"),
    };
    problem.with_member("correlation", correlation.as_str())
}

fn link_problem(failure: LinkFailure) -> Problem {
    let kind = if failure.timed_out { ProblemKind::LinkTimedOut } else { ProblemKind::LinkFailed };
    Problem::new(kind, format!("link {:?}: {}", failure.link, failure.reason))
        .with_member("link", failure.link)
        .with_member("linkId", failure.link_id)
        .with_member("job", failure.job.to_string())
        .with_member("exitCode", failure.exit_code)
        .with_member("stderr", failure.stderr)
}

// ---- runs elsewhere ----

async fn run_elsewhere(
    gate: &SharedState,
    module: Module,
    ids: (EventId, CorrelationId),
    body: IncomingBody,
) -> Result<Response, Problem> {
    let served = async { gate.served.lock().await.read_served_modules(&gate.ledger).await };
    if !gate.within_deadline(served).await?.contains(&module.name) {
        let detail =
            format!("no dispatcher serves chain {:?}; start one with `ion up`", module.name);
        return Err(Problem::new(ProblemKind::Busy, detail));
    }
    let correlation = ids.1.clone();
    let mut uploads = draft::new_uploads(&ids, gate);
    uploads.store_body(STDIN, body).await?;
    let event = first_event(gate, &module, ids, uploads.entries().to_vec()).await?;
    draft::commit_new(gate, &event, &mut uploads).await?;
    let job = JobId::derive(&event.id, &module.name);
    let record = wait_for_job(gate, &module, &job).await;
    let record =
        record.map_err(|problem| problem.with_member("correlation", correlation.as_str()))?;
    let steps = derive_steps(&module, &event.id);
    if record.state != JobState::Succeeded {
        let problem = link_problem(find_link_failure(gate, &module, &steps, &record).await?);
        return Err(problem.with_member("correlation", correlation.as_str()));
    }
    match steps.last() {
        Some((last, _)) => answer_from_store(gate, last, &correlation).await,
        None => Err(Problem::new(
            ProblemKind::Internal,
            format!("chain {:?} has no links", module.name),
        )),
    }
}

/// Returns a job; none if no dispatcher has claimed it.
async fn find_job(gate: &SharedState, job: &JobId) -> Result<Option<JobRecord>, Problem> {
    let found = async {
        match gate.ledger.get(job).await {
            Err(LedgerError::NoSuchJob(_)) => Ok(None),
            found => found.map(Some),
        }
    };
    gate.within_deadline(found).await
}

/// Waits until the chain's job has ended. If the client stops waiting, the job is cancelled.
async fn wait_for_job(
    gate: &SharedState,
    module: &Module,
    job: &JobId,
) -> Result<JobRecord, Problem> {
    // Each link has its own timeout, and a message may wait for a free place.
    let limit = module.timeout * 2 + gate.settings.stall;
    let over = Instant::now() + limit;
    let cancel = CancelJob { gate: gate.clone(), job: Some(job.clone()) };
    let mut pause = PAUSE;
    loop {
        if let Some(record) = find_job(gate, job).await?.filter(|record| record.state.is_final()) {
            cancel.disarm();
            return Ok(record);
        }
        if Instant::now() > over {
            let detail = format!("the run has not ended within {} s", limit.as_secs());
            return Err(Problem::new(ProblemKind::LinkTimedOut, detail));
        }
        if gate.stopping.is_cancelled() {
            return Err(Problem::new(
                ProblemKind::Busy,
                "the gateway is stopping; send the request again",
            ));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 5 / 4).min(PAUSE_MAX);
    }
}

/// Cancels a job on drop, unless it is kept.
struct CancelJob {
    gate: SharedState,
    job: Option<JobId>,
}

impl CancelJob {
    fn disarm(mut self) {
        self.job = None;
    }
}

impl Drop for CancelJob {
    fn drop(&mut self) {
        let Some(job) = self.job.take() else { return };
        let gate = self.gate.clone();
        self.gate.tasks.spawn(async move {
            if let Err(error) = gate.ledger.cancel(&job).await {
                tracing::debug!(
                    %job,
                    error = ion_model::errors::error_chain(&error),
                    "a run that no client waits for cannot be cancelled"
                );
            }
        });
    }
}

/// Returns which link of a run elsewhere failed, and how.
async fn find_link_failure(
    gate: &SharedState,
    module: &Module,
    steps: &[(EventId, JobId)],
    of_chain: &JobRecord,
) -> Result<LinkFailure, Problem> {
    let reason = |record: &JobRecord| {
        let attempt = record.attempts.last();
        attempt
            .and_then(|attempt| attempt.reason.clone())
            .unwrap_or_else(|| record.state.as_str().to_owned())
    };
    for (link, (_, job)) in module.links.iter().zip(steps) {
        let record = find_job(gate, job).await?.filter(|record| record.state == JobState::Dead);
        let Some(record) = record else { continue };
        let attempt = record.attempts.last();
        let stderr = match attempt.and_then(|attempt| attempt.log.as_ref()) {
            Some(log) => {
                let tail = log.size.saturating_sub(STDERR_MAX)..log.size;
                let tail =
                    gate.within_deadline(gate.node.plane.blobs.get_range(&log.key, tail)).await?;
                format_tail(log.size, &tail)
            }
            None => String::new(),
        };
        return Ok(LinkFailure {
            link: link.name.clone(),
            link_id: link.id(),
            job: job.clone(),
            reason: reason(&record),
            exit_code: attempt.and_then(|attempt| attempt.exit_code),
            timed_out: attempt.and_then(|attempt| attempt.end) == Some(AttemptEnd::TimedOut),
            stderr,
        });
    }
    Ok(LinkFailure {
        link: module.name.clone(),
        link_id: String::new(),
        job: of_chain.id.clone(),
        reason: reason(of_chain),
        exit_code: None,
        timed_out: false,
        stderr: String::new(),
    })
}
