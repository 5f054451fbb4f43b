//! The portal: a payload goes through a chain, and what its last link writes is the answer.
//!
//! A chain that this process serves is run here, on processes that wait for it, and its answer
//! begins with the first bytes that come out. Any other goes the way of every event: whichever
//! dispatcher of the plane claims it runs it, and the answer is read from the store when it is
//! done. The portal need not know where that was.
//!
//! # Guarantees
//! The end of an answer says that every link ended well and that the run is recorded. One that
//! fails before its answer has begun is a problem document; one that fails later breaks off, and no
//! client takes what it got for all there is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Version, header};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use ion_jobs::first::FirstEvent;
use ion_jobs::ledger::LedgerError;
use ion_jobs::pipeline::Module;
use ion_model::event::{Event, FileEntry};
use ion_model::id::{CorrelationId, EventId, JobId};
use ion_model::record::{AttemptEnd, JobRecord, JobState};
use ion_model::text::{ending, quote};
use ion_run::chain::{Chains, End, Failure, Run, Running, STDIN, Stored, steps};
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::auth::Scope;
use super::body::Incoming;
use super::problem::{Kind, Problem};
use super::route::{Access, InPath, Route, query};
use super::{Shared, file, intake, openapi};

/// How long an answer that has bytes is held back in case a link fails: most chains end within it,
/// and are told of by their status.
const HOLD: Duration = Duration::from_millis(50);

/// Bytes that are held back at most.
const HOLD_BYTES: usize = 256 << 10;

/// The first pause of who waits for a run elsewhere, and the longest.
const PAUSE: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// Bytes of a failed link's log that are shown: the last ones.
const SAID_MAX: u64 = 8 << 10;

/// Where a run can be looked at.
const CORRELATION: HeaderName = HeaderName::from_static("ion-correlation-id");

/// The chains that this process runs itself.
#[derive(Clone, Debug)]
pub struct Portal {
    chains: Arc<Chains>,
    modules: HashMap<String, Arc<Module>>,
}

impl Portal {
    /// Those of these modules that are chains.
    pub fn new(chains: Arc<Chains>, modules: &[Module]) -> Self {
        let chained = modules.iter().filter(|module| !module.links.is_empty());
        let modules =
            chained.map(|module| (module.name.clone(), Arc::new(module.clone()))).collect();
        Self { chains, modules }
    }
}

/// The routes.
pub(super) fn routes() -> Vec<Route> {
    let said = json!({
        "description": "What the last link wrote, as it comes.",
        "headers": {"Ion-Correlation-Id": {
            "description": "The run's trace.", "required": true, "schema": {"type": "string"},
        }},
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    });
    vec![Route::post(
        "/chains/{chain}",
        Access::Needs(Scope::ChainsRun),
        send_through,
        json!({
            "operationId": "runChain", "summary": "Send a payload through a chain",
            "description": "The body goes to the first link's stdin. The answer is what the last one writes to stdout; it \
                breaks off if a link fails once it has begun.",
            "parameters": [{
                "name": "chain", "in": "path", "required": true, "description": "The chain's name.",
                "schema": {"type": "string", "minLength": 1},
            }],
            "requestBody": {"content": {"application/octet-stream": {"schema": {}}}},
            "responses": {
                "200": said,
                "400": openapi::problem("The request is not what it has to be."),
                "404": openapi::problem("There is no such chain."),
                "408": openapi::problem("The body did not go on."),
                "413": openapi::problem("The body is too long."),
                "415": openapi::unknown_encoding("The body has an encoding that is not known."),
                "502": openapi::problem(
                    "A link failed: `link`, `linkId`, `job`, `exitCode` and `stderr` say which and how.",
                ),
                "504": openapi::problem("A link was over its time."),
                "507": openapi::problem("The gateway's disk is full."),
            },
        }),
    )]
}

/// `POST /chains/<name>`.
async fn send_through(
    State(gate): State<Shared>,
    InPath(name): InPath<String>,
    RawQuery(asked): RawQuery,
    version: Version,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    query(asked.as_deref(), &[])?;
    if headers.contains_key("idempotency-key") {
        let detail =
            "a chain takes no Idempotency-Key: each request is a run of its own; leave it out";
        return Err(Problem::new(Kind::Malformed, detail));
    }
    let ids = (EventId::random(), CorrelationId::random());
    if let Some(portal) = &gate.portal
        && let Some(module) = portal.modules.get(&name)
    {
        let body = gate.body_of_files(&headers, body)?;
        let running = begin(&gate, portal, module.clone(), ids, body).await?;
        return match version {
            Version::HTTP_09 | Version::HTTP_10 => whole_answer(&gate, running).await,
            _ => answer_as_it_comes(running).await,
        };
    }
    let module = match gate.in_time(gate.ledger.module(&name)).await? {
        Some(module) if !module.links.is_empty() => module,
        Some(_) => {
            let detail = format!("module {} is no chain: it reads and writes files", quote(&name));
            return Err(Problem::new(Kind::NotFound, detail));
        }
        None => {
            let detail = format!(
                "there is no chain {}; `ion module list` shows what there is",
                quote(&name)
            );
            return Err(Problem::new(Kind::NotFound, detail));
        }
    };
    run_elsewhere(&gate, module, ids, gate.body_of_files(&headers, body)?).await
}

/// The event that begins a run.
async fn first_event(
    gate: &Shared,
    module: &Module,
    (id, correlation_id): (EventId, CorrelationId),
    files: Vec<FileEntry>,
) -> Result<Event, Problem> {
    let first = FirstEvent {
        id,
        correlation_id,
        name: intake::NAME.into(),
        parent: String::new(),
        event_type: module.starts_on().unwrap_or_default().to_owned(),
        files,
        directories: vec![],
        data: vec![],
    };
    // One file at most: its list needs no blob of its own.
    Ok(first.document(&gate.node.plane, "").await?)
}

// ---- here ----

/// A run in this process that somebody waits for.
struct RunHere {
    running: Running,
    correlation: CorrelationId,
    /// Why the body broke off: the run only knows that it did.
    broke: Arc<Mutex<Option<Problem>>>,
}

impl RunHere {
    /// Why there is no answer, or none that is whole.
    fn problem(&self, end: End) -> Problem {
        let broke = self.broke.lock().unwrap_or_else(PoisonError::into_inner).take();
        broke.unwrap_or_else(|| problem_of(end, &self.correlation))
    }

    /// How it ended.
    async fn end(&mut self) -> End {
        (&mut self.running.ended).await.unwrap_or(End::Cancelled)
    }
}

async fn begin(
    gate: &Shared,
    portal: &Portal,
    module: Arc<Module>,
    ids: (EventId, CorrelationId),
    body: Incoming,
) -> Result<RunHere, Problem> {
    let event = first_event(gate, &module, ids, vec![]).await?;
    let correlation = event.context.correlation_id.clone();
    let broke: Arc<Mutex<Option<Problem>>> = Arc::default();
    let noted = broke.clone();
    let input = body.pieces().map_err(move |error| {
        let said = std::io::Error::other(error.to_string());
        *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.into());
        said
    });
    let run = Run { module, event, stored: Stored::Not, input: input.boxed() };
    let full = |full: ion_run::chain::Full| {
        Problem::new(Kind::Busy, format!("{full}; send it again later"))
    };
    let running = portal.chains.start(run).map_err(full)?;
    Ok(RunHere { running, correlation, broke })
}

/// What the last link writes, while it writes it. A run that fails then breaks the answer off: it
/// comes in chunks, and its last chunk never comes.
async fn answer_as_it_comes(mut run: RunHere) -> Result<Response, Problem> {
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
                // All is written; now it is recorded.
                None => break Some(run.end().await),
            },
            () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => break None,
        }
    };
    let held = held.freeze();
    match ended {
        None => {
            let correlation = run.correlation.clone();
            Ok(answer_of(Body::from_stream(rest(held, run.running)), &correlation))
        }
        Some(End::Well { .. }) => Ok(answer_of(Body::from(held), &run.correlation)),
        Some(end) => Err(run.problem(end)),
    }
}

/// The answer once its run has ended. HTTP/1.0 has no chunks, so an answer that breaks off would
/// look like one that is whole, to the client and to each proxy on the way.
async fn whole_answer(gate: &Shared, mut run: RunHere) -> Result<Response, Problem> {
    while run.running.output.recv().await.is_some() {}
    match run.end().await {
        End::Well { event } => stored_answer(gate, &event, &run.correlation).await,
        end => Err(run.problem(end)),
    }
}

/// What the last link wrote, from the store.
async fn stored_answer(
    gate: &Shared,
    last: &EventId,
    correlation: &CorrelationId,
) -> Result<Response, Problem> {
    let event = gate.in_time(gate.ledger.event(last)).await?;
    let Some(answer) = event.and_then(|event| event.files.into_iter().next()) else {
        return Err(Problem::new(
            Kind::Internal,
            "the run ended well and its last event is not there",
        ));
    };
    let (length, all) = (answer.size, 0..answer.size);
    let mut response = answer_of(file::bytes(gate, answer, all).await?, correlation);
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    Ok(response)
}

/// What is held, and what comes after it; an error if the run does not end well.
fn rest(
    held: Bytes,
    running: Running,
) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    let rest = stream::unfold(Some(running), |running| async move {
        let mut running = running?;
        if let Some(piece) = running.output.recv().await {
            return Some((Ok(piece), Some(running)));
        }
        match (&mut running.ended).await {
            Ok(End::Well { .. }) => None,
            end => {
                tracing::warn!(?end, "the answer of a chain broke off");
                Some((Err(std::io::Error::other("the chain failed")), None))
            }
        }
    });
    stream::iter([Ok(held)]).chain(rest)
}

fn answer_of(body: Body, correlation: &CorrelationId) -> Response {
    let mut response = Response::new(body);
    let said = response.headers_mut();
    said.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    let correlation = HeaderValue::try_from(correlation.as_str());
    said.insert(CORRELATION, correlation.expect("an id of ours is a header"));
    response
}

fn problem_of(end: End, correlation: &CorrelationId) -> Problem {
    let problem = match end {
        End::Failed(failure) => failed(failure),
        End::Broken { reason } => {
            Problem::new(Kind::StoresAway, format!("{reason}; try again later"))
        }
        End::NoPlace => {
            Problem::new(Kind::Busy, "all places of chain runs are taken; send it again later")
        }
        End::Cancelled => {
            Problem::new(Kind::Busy, "the run was ended before it was done; send it again")
        }
        End::Well { .. } => Problem::new(Kind::Internal, "the run ended well"),
    };
    problem.with("correlation", correlation.as_str())
}

fn failed(failure: Failure) -> Problem {
    let kind = if failure.timed_out { Kind::LinkTimedOut } else { Kind::LinkFailed };
    Problem::new(kind, format!("link {:?}: {}", failure.link, failure.reason))
        .with("link", failure.link)
        .with("linkId", failure.link_id)
        .with("job", failure.job.to_string())
        .with("exitCode", failure.exit_code)
        .with("stderr", failure.stderr)
}

// ---- elsewhere ----

async fn run_elsewhere(
    gate: &Shared,
    module: Module,
    ids: (EventId, CorrelationId),
    body: Incoming,
) -> Result<Response, Problem> {
    let served = async { gate.served.lock().await.look(&gate.ledger).await };
    if !gate.in_time(served).await?.contains(&module.name) {
        let detail =
            format!("no dispatcher serves chain {:?}; start one with `ion up`", module.name);
        return Err(Problem::new(Kind::Busy, detail));
    }
    let correlation = ids.1.clone();
    let mut uploads = intake::uploads(&ids, gate);
    uploads.take_body(STDIN, body).await?;
    let event = first_event(gate, &module, ids, uploads.entries().to_vec()).await?;
    intake::publish(gate, &event, &mut uploads).await?;
    let job = JobId::derive(&event.id, &module.name);
    let record = final_record(gate, &module, &job).await;
    let record = record.map_err(|problem| problem.with("correlation", correlation.as_str()))?;
    let steps = steps(&module, &event.id);
    if record.state != JobState::Succeeded {
        let problem = failed(failure(gate, &module, &steps, &record).await?);
        return Err(problem.with("correlation", correlation.as_str()));
    }
    match steps.last() {
        Some((last, _)) => stored_answer(gate, last, &correlation).await,
        None => Err(Problem::new(Kind::Internal, format!("chain {:?} has no links", module.name))),
    }
}

/// A job; none if nobody has claimed it, or none ever will.
async fn job_of(gate: &Shared, job: &JobId) -> Result<Option<JobRecord>, Problem> {
    let found = async {
        match gate.ledger.get(job).await {
            Err(LedgerError::NoSuchJob(_)) => Ok(None),
            found => found.map(Some),
        }
    };
    gate.in_time(found).await
}

/// The chain's job once it has ended; it is cancelled if nobody waits for it any more.
async fn final_record(gate: &Shared, module: &Module, job: &JobId) -> Result<JobRecord, Problem> {
    // Each link has its time, and a message may wait for a place.
    let limit = module.timeout * 2 + gate.settings.stall;
    let over = Instant::now() + limit;
    let cancel = CancelJob { gate: gate.clone(), job: Some(job.clone()) };
    let mut pause = PAUSE;
    loop {
        if let Some(record) = job_of(gate, job).await?.filter(|record| record.state.is_final()) {
            cancel.keep();
            return Ok(record);
        }
        if Instant::now() > over {
            let detail = format!("the run has not ended within {} s", limit.as_secs());
            return Err(Problem::new(Kind::LinkTimedOut, detail));
        }
        if gate.stopping.is_cancelled() {
            return Err(Problem::new(Kind::Busy, "the gateway is stopping; send it again"));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 5 / 4).min(PAUSE_MAX);
    }
}

/// Asks for a job's end when nobody waits for it any more.
struct CancelJob {
    gate: Shared,
    job: Option<JobId>,
}

impl CancelJob {
    fn keep(mut self) {
        self.job = None;
    }
}

impl Drop for CancelJob {
    fn drop(&mut self) {
        let Some(job) = self.job.take() else { return };
        let gate = self.gate.clone();
        self.gate.tasks.spawn(async move {
            if let Err(error) = gate.ledger.cancel(&job).await {
                tracing::debug!(%job, error = ion_model::errors::chain(&error), "it was not ours to cancel");
            }
        });
    }
}

/// Which link of a run elsewhere failed.
async fn failure(
    gate: &Shared,
    module: &Module,
    steps: &[(EventId, JobId)],
    of_chain: &JobRecord,
) -> Result<Failure, Problem> {
    let reason = |record: &JobRecord| {
        let attempt = record.attempts.last();
        attempt
            .and_then(|attempt| attempt.reason.clone())
            .unwrap_or_else(|| record.state.as_str().to_owned())
    };
    for (link, (_, job)) in module.links.iter().zip(steps) {
        let record = job_of(gate, job).await?.filter(|record| record.state == JobState::Dead);
        let Some(record) = record else { continue };
        let attempt = record.attempts.last();
        let stderr = match attempt.and_then(|attempt| attempt.log.as_ref()) {
            Some(log) => {
                let said = log.size.saturating_sub(SAID_MAX)..log.size;
                let said = gate.in_time(gate.node.plane.blobs.get_range(&log.key, said)).await?;
                ending(log.size, &said)
            }
            None => String::new(),
        };
        return Ok(Failure {
            link: link.name.clone(),
            link_id: link.id(),
            job: job.clone(),
            reason: reason(&record),
            exit_code: attempt.and_then(|attempt| attempt.exit_code),
            timed_out: attempt.and_then(|attempt| attempt.end) == Some(AttemptEnd::TimedOut),
            stderr,
        });
    }
    Ok(Failure {
        link: module.name.clone(),
        link_id: String::new(),
        job: of_chain.id.clone(),
        reason: reason(of_chain),
        exit_code: None,
        timed_out: false,
        stderr: String::new(),
    })
}
