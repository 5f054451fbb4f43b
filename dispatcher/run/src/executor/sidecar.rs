//! The localhost API of older Ion's second generation, beside a job whose module says `api:
//! sidecar`.
//!
//! A module sends `GET /ready`, then `GET /done`, each with the header `secret: $SHARED_SECRET`, to
//! `127.0.0.1:$HANDLER_PORT`. Each attempt gets a free port and a random secret, because all jobs
//! share the machine's loopback. A request without the secret in its header gets 401 and no other
//! information.
//!
//! # What the answers mean
//! - `/ready`: 200 at once, because the tree exists before the module starts and its files are
//!   fetched when they are read.
//! - `/done`: Ion decides on every file in `out/events`, and on the values kept for analysis, as
//!   they are now. 200 means that each event is durable and that the job has succeeded, whatever
//!   the module still does and whatever its exit status. Under `commit: on-success` (the default
//!   with `api: sidecar`) all events become visible together with the one write that ends the job;
//!   if the machine dies before that write, the job runs again and makes the same events. Under
//!   `commit: on-close` each event was committed when its file was closed.
//! - If an event is refused: 422, or 503 where a store was the reason, with the file's name and the
//!   reason. The module may write that file again and repeat the request.
//! - A request in the wrong order: 400.
//!
//! A module that ends without a 200 from `/done` has failed.

use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use ion_fs::job::{JobTree, TreeOutcome};
use ion_plane::commit::RefusalErrno;
use serde_json::{Value, json};
use subtle::ConstantTimeEq as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use uuid::Uuid;

use super::rejection_words;

/// The most open connections of one job's API. A module needs one; each takes a descriptor of the
/// daemon, which all jobs share. With fewer, strangers take all of them sooner, and each stranger
/// stays for [`STAY`].
const CONNECTIONS_MAX: usize = 32;

/// How long a connection may take to send its request, and to take its answer. A shorter wait would
/// cut off modules on a busy machine.
const HEAD_WAIT: Duration = Duration::from_secs(10);

/// How long a connection that has not sent the secret keeps its place when others wait for one. A
/// shorter time could end the module's own connection before its request is read; a longer time
/// lets strangers delay the module by as much.
const STAY: Duration = Duration::from_millis(50);

/// The most bytes of a request's head.
const HEAD_MAX: usize = 16 << 10;

/// The last request of the module that was answered with 200.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DoneState {
    Begun,
    Ready,
    Done,
}

/// Whether a module has reported its work done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CompletionReport {
    /// No report is required: the exit status alone decides.
    NotAsked,
    /// A report is required, and the module has not sent it.
    NotDone,
    /// `/done` was answered with 200.
    Done,
}

/// The API of one attempt. It is served until it is dropped.
#[derive(Debug)]
pub(super) struct Sidecar {
    port: u16,
    shared: Arc<SidecarState>,
    /// Dropping it ends every connection: an open connection must not keep the tree.
    serving: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct SidecarState {
    secret: String,
    tree: Arc<JobTree>,
    /// Locked by a request while it decides, so that only one decides at a time.
    stage: Mutex<DoneState>,
    /// Decisions, which go on when the client hangs up: a decision that is cut off half-way would
    /// leave its event undecided.
    deciding: TaskTracker,
}

impl Sidecar {
    /// Starts to serve the API for the tree, on a port of its own.
    pub(super) async fn start(tree: Arc<JobTree>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(SidecarState {
            secret: Uuid::new_v4().simple().to_string(),
            tree,
            stage: Mutex::new(DoneState::Begun),
            deciding: TaskTracker::new(),
        });
        let router = Router::new()
            .route("/ready", get(answer_ready))
            .route("/done", get(answer_done))
            .with_state(shared.clone());
        let serving = AbortOnDropHandle::new(tokio::spawn(accept_connections(listener, router)));
        Ok(Self { port, shared, serving })
    }

    /// Returns the variables that the module finds in its environment.
    pub(super) fn environment(&self) -> [(String, String); 3] {
        let port = self.port.to_string();
        [
            ("HANDLER_PORT", port.clone()),
            ("SIDECAR_PORT", port),
            ("SHARED_SECRET", self.shared.secret.clone()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
    }

    /// Stops serving, after the module has ended, and returns what the module reported.
    pub(super) async fn close(self) -> CompletionReport {
        drop(self.serving);
        self.shared.deciding.close();
        self.shared.deciding.wait().await;
        match *self.shared.stage.lock().await {
            DoneState::Done => CompletionReport::Done,
            DoneState::Begun | DoneState::Ready => CompletionReport::NotDone,
        }
    }
}

async fn answer_ready(
    State(shared): State<Arc<SidecarState>>,
    Extension(visit): Extension<Arc<SidecarConnection>>,
    headers: HeaderMap,
) -> Response {
    if let Some(refused) = refuse_without_secret(&headers, &shared.secret, &visit) {
        return refused;
    }
    let mut stage = shared.stage.lock().await;
    if *stage != DoneState::Begun {
        return error_answer(
            StatusCode::BAD_REQUEST,
            "GET /ready was answered before; what follows is GET /done",
        );
    }
    *stage = DoneState::Ready;
    (StatusCode::OK, "ready\n").into_response()
}

async fn answer_done(
    State(shared): State<Arc<SidecarState>>,
    Extension(visit): Extension<Arc<SidecarConnection>>,
    headers: HeaderMap,
) -> Response {
    if let Some(refused) = refuse_without_secret(&headers, &shared.secret, &visit) {
        return refused;
    }
    let asked = shared.clone();
    let decided = shared.deciding.spawn(async move { decide_done(&asked).await });
    decided
        .await
        .unwrap_or_else(|_| error_answer(StatusCode::SERVICE_UNAVAILABLE, "the job is ending"))
}

async fn decide_done(shared: &SidecarState) -> Response {
    let mut stage = shared.stage.lock().await;
    match *stage {
        DoneState::Begun => {
            return error_answer(StatusCode::BAD_REQUEST, "GET /ready comes before GET /done");
        }
        DoneState::Done => {
            return error_answer(StatusCode::BAD_REQUEST, "GET /done was answered before");
        }
        DoneState::Ready => {}
    }
    let outcome = shared.tree.decide_event_files().await;
    if let Some((status, message)) = undone_reason(&outcome) {
        return error_answer(status, &message);
    }
    *stage = DoneState::Done;
    json_answer(StatusCode::OK, &json!({"events": outcome.receipts}))
}

/// Returns why the module's work cannot count as done: a status and a message; none if it can.
fn undone_reason(outcome: &TreeOutcome) -> Option<(StatusCode, String)> {
    if let Some(first) = outcome.rejections.first() {
        let message = rejection_words(first, outcome.rejections.len());
        let stores = first.errno == RefusalErrno::Io;
        let status =
            if stores { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::UNPROCESSABLE_ENTITY };
        return Some((status, message));
    }
    if let Some(failed) = outcome.failed_reads.in_words() {
        // A repeated request would get the same answer: what this attempt makes may rest on what it
        // could not read.
        return Some((StatusCode::UNPROCESSABLE_ENTITY, failed));
    }
    outcome.exceeded.clone().map(|exceeded| (StatusCode::UNPROCESSABLE_ENTITY, exceeded))
}

/// Returns the refusal of a request without the secret. A connection that sends the secret is
/// marked as trusted.
fn refuse_without_secret(
    headers: &HeaderMap,
    secret: &str,
    visit: &SidecarConnection,
) -> Option<Response> {
    let sent = headers.get("secret").map(|value| value.as_bytes()).unwrap_or_default();
    // A comparison in constant time: its duration does not tell how much of the secret is right.
    let same = sent.ct_eq(secret.as_bytes());
    visit.trusted.store(same.into(), Ordering::Relaxed);
    bool::from(!same).then(|| {
        error_answer(
            StatusCode::UNAUTHORIZED,
            "the header \"secret\" with the value of SHARED_SECRET is needed",
        )
    })
}

/// Returns an error in the form that the oldest modules read.
fn error_answer(status: StatusCode, message: &str) -> Response {
    json_answer(status, &json!({"statusCode": status.as_u16(), "message": message}))
}

fn json_answer(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}

/// The state of a connection that other tasks see.
#[derive(Debug, Default)]
struct SidecarConnection {
    /// Whether it has sent the secret; its request is being answered.
    trusted: AtomicBool,
    /// Cancelled when another connection needs its place.
    evicted: CancellationToken,
}

/// Answers connections, one task each, until it is dropped.
///
/// Any process of the machine may connect and send nothing. So a connection has to send its request
/// within [`HEAD_WAIT`], and when all places are taken, a new connection takes the place of the
/// oldest one that has not sent the secret. A connection that has sent it is never ended for
/// another.
async fn accept_connections(listener: TcpListener, router: Router) {
    let mut connections = JoinSet::new();
    let mut visits: VecDeque<(Instant, Arc<SidecarConnection>)> = VecDeque::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(
                        %error,
                        "a connection to a job's localhost API cannot be accepted"
                    );
                    tokio::time::sleep(STAY).await;
                    continue;
                }
            },
            Some(_) = connections.join_next() => continue,
        };
        make_place(&mut connections, &mut visits).await;
        let visit = Arc::new(SidecarConnection::default());
        visits.push_back((Instant::now(), visit.clone()));
        connections.spawn(serve_connection(stream, router.clone(), visit));
    }
}

/// Waits until there is a place for one more connection.
async fn make_place(
    connections: &mut JoinSet<()>,
    visits: &mut VecDeque<(Instant, Arc<SidecarConnection>)>,
) {
    while connections.try_join_next().is_some() {}
    // While a connection is open, its task holds the other reference.
    visits.retain(|(_, visit)| Arc::strong_count(visit) > 1);
    while connections.len() >= CONNECTIONS_MAX {
        let stranger = visits.iter().position(|(_, visit)| !visit.trusted.load(Ordering::Relaxed));
        if let Some((since, visit)) = stranger.and_then(|place| visits.remove(place)) {
            // It may stay long enough to send its request, however many connections come.
            tokio::time::sleep_until(since + STAY).await;
            if visit.trusted.load(Ordering::Relaxed) {
                visits.push_front((since, visit));
                continue;
            }
            visit.evicted.cancel();
        }
        connections.join_next().await;
    }
}

async fn serve_connection(stream: TcpStream, router: Router, visit: Arc<SidecarConnection>) {
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(HEAD_WAIT));
    let router = router.layer(Extension(visit.clone()));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT)
        .max_buf_size(HEAD_MAX)
        // A job sends only two requests, perhaps hours apart: no connection is kept open for the
        // next one.
        .keep_alive(false)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router));
    tokio::select! {
        ended = connection => if let Err(error) = ended {
            tracing::debug!(
                error = ion_model::errors::error_chain(&error),
                "a connection to a job's localhost API ended early"
            );
        },
        () = visit.evicted.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    use ion_stores::StoreError;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Answers a request with the secret, slowly, and any other with 401.
    async fn answer_slowly(
        Extension(visit): Extension<Arc<SidecarConnection>>,
        headers: HeaderMap,
    ) -> StatusCode {
        if headers.get("secret").is_none_or(|secret| secret != "s") {
            return StatusCode::UNAUTHORIZED;
        }
        visit.trusted.store(true, Ordering::Relaxed);
        tokio::time::sleep(STAY * 4).await;
        StatusCode::OK
    }

    #[tokio::test]
    async fn silent_connections_take_no_place_from_the_holder_of_the_secret() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = AbortOnDropHandle::new(tokio::spawn(accept_connections(
            listener,
            Router::new().route("/", get(answer_slowly)),
        )));
        let connect = || async { TcpStream::connect(address).await.unwrap() };
        let mut silent = Vec::new();
        for _ in 0..3 * CONNECTIONS_MAX {
            silent.push(connect().await);
        }
        let mut holder = connect().await;
        holder.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nsecret: s\r\n\r\n").await.unwrap();
        // More silent connections come while the holder's request is answered.
        for _ in 0..CONNECTIONS_MAX {
            silent.push(connect().await);
        }
        let mut answer = Vec::new();
        let all = tokio::time::timeout(HEAD_WAIT, holder.read_to_end(&mut answer)).await;
        all.expect("it is answered before any silent connection is given up").unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
        // The oldest silent connections were ended for later ones.
        assert_eq!(silent[0].read(&mut [0]).await.unwrap_or(0), 0);
        drop(serving);
    }

    #[test]
    fn work_that_rests_on_a_read_that_failed_is_not_done() {
        assert!(undone_reason(&TreeOutcome::default()).is_none());
        let error = ion_fs::job::OpenError::from(StoreError::NoSuchBlob("k".into()));
        let outcome = TreeOutcome { failed_reads: error.failed_reads(), ..TreeOutcome::default() };
        let (status, message) = undone_reason(&outcome).unwrap();
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
        assert!(message.contains("\"in/data\" failed: blob missing"), "{message}");
    }
}
