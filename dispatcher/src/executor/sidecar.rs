//! The localhost API of older Ion's second generation, beside a job whose module says `api: sidecar`.
//!
//! `GET /ready`, then `GET /done`, each with the header `secret: $SHARED_SECRET`, at `127.0.0.1:$HANDLER_PORT`. The port is
//! free and the secret random for each attempt: jobs share the machine's loopback, and a secret that is not in the header
//! gets 401 and learns nothing.
//!
//! # What the answers mean
//! - `/ready`: 200 at once, as the tree is there before the module starts and its files are fetched when they are read.
//! - `/done`: every file in `out/events`, and what is kept for analysis, is decided upon as it is now. 200: each event is
//!   durable, and the job has succeeded whatever the module still does or exits with. Under `commit: on-success` (what
//!   `api: sidecar` has unless the pipeline says otherwise) all of them become visible together with the one write that
//!   ends the job; if the machine dies before that write, the job runs again and makes the same events. Under
//!   `commit: on-close` each was committed when its file was closed.
//! - An event that is refused: 422, or 503 where a store was the reason, with the file's name and the reason. The module may
//!   write that file anew and ask again.
//! - Anything in the wrong order: 400.
//!
//! A module that ends without a 200 from `/done` has failed.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::serve::Listener;
use ionfs::fs::job::{JobTree, Outcome};
use serde_json::{Value, json};
use subtle::ConstantTimeEq as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use uuid::Uuid;

/// Connections of one job's API at a time. A module needs one; each takes a descriptor of the daemon, which all jobs share.
const CONNECTIONS_MAX: usize = 16;

/// Where a module stands in what it has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Begun,
    Ready,
    Done,
}

/// What a module has said of its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// Nothing is asked of it: its exit status says all.
    NotAsked,
    /// It was asked for, and has not come.
    NotDone,
    /// `/done` was answered with 200.
    Done,
}

/// The API of one attempt. Dropped, it is not served any more.
#[derive(Debug)]
pub(super) struct Sidecar {
    port: u16,
    shared: Arc<Shared>,
    serving: AbortOnDropHandle<()>,
    /// Dropped, every connection ends: whoever holds one open must not keep the tree.
    over: DropGuard,
}

#[derive(Debug)]
struct Shared {
    secret: String,
    tree: Arc<JobTree>,
    /// One request decides at a time.
    stage: Mutex<Stage>,
    /// Decisions go on when whoever asked hangs up: one that is cut off half-way would leave its event undecided.
    deciding: TaskTracker,
}

impl Sidecar {
    /// Begins to answer for the tree, at a port of its own.
    pub(super) async fn serve(tree: Arc<JobTree>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            secret: Uuid::new_v4().simple().to_string(),
            tree,
            stage: Mutex::new(Stage::Begun),
            deciding: TaskTracker::new(),
        });
        let router =
            Router::new().route("/ready", get(ready)).route("/done", get(done)).with_state(shared.clone());
        let over = CancellationToken::new();
        let listener =
            Bounded { listener, places: Arc::new(Semaphore::new(CONNECTIONS_MAX)), over: over.clone() };
        let serving = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::warn!(%error, "a job's localhost API is not served any more");
            }
        });
        Ok(Self { port, shared, serving: AbortOnDropHandle::new(serving), over: over.drop_guard() })
    }

    /// What the module finds in its environment.
    pub(super) fn environment(&self) -> [(&'static str, String); 3] {
        let port = self.port.to_string();
        [
            ("HANDLER_PORT", port.clone()),
            ("SIDECAR_PORT", port),
            ("SHARED_SECRET", self.shared.secret.clone()),
        ]
    }

    /// The module has ended: answers no more, and gives its word.
    pub(super) async fn close(self) -> Word {
        drop((self.serving, self.over));
        self.shared.deciding.close();
        self.shared.deciding.wait().await;
        match *self.shared.stage.lock().await {
            Stage::Done => Word::Done,
            Stage::Begun | Stage::Ready => Word::NotDone,
        }
    }
}

async fn ready(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    if let Some(refused) = refused(&headers, &shared.secret) {
        return refused;
    }
    let mut stage = shared.stage.lock().await;
    if *stage != Stage::Begun {
        return answer(StatusCode::BAD_REQUEST, "GET /ready was answered before; what follows is GET /done");
    }
    *stage = Stage::Ready;
    (StatusCode::OK, "ready\n").into_response()
}

async fn done(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    if let Some(refused) = refused(&headers, &shared.secret) {
        return refused;
    }
    let asked = shared.clone();
    let decided = shared.deciding.spawn(async move { decide(&asked).await });
    decided.await.unwrap_or_else(|_| answer(StatusCode::SERVICE_UNAVAILABLE, "the job is ending"))
}

async fn decide(shared: &Shared) -> Response {
    let mut stage = shared.stage.lock().await;
    match *stage {
        Stage::Begun => return answer(StatusCode::BAD_REQUEST, "GET /ready comes before GET /done"),
        Stage::Done => return answer(StatusCode::BAD_REQUEST, "GET /done was answered before"),
        Stage::Ready => {}
    }
    let outcome = shared.tree.settle().await;
    if let Some((status, message)) = wrong(&outcome) {
        return answer(status, &message);
    }
    *stage = Stage::Done;
    json_answer(StatusCode::OK, &json!({"events": outcome.receipts}))
}

/// What stands against the module's work being done, if anything.
fn wrong(outcome: &Outcome) -> Option<(StatusCode, String)> {
    if let Some(first) = outcome.rejections.first() {
        let others = outcome.rejections.len() - 1;
        let more = if others > 0 { format!(" (and {others} more)") } else { String::new() };
        let message =
            format!("event file {:?} was rejected: {}: {}{more}", first.name, first.errno, first.reason);
        let stores = first.errno == "EIO";
        let status = if stores { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::UNPROCESSABLE_ENTITY };
        return Some((status, message));
    }
    outcome.exceeded.clone().map(|exceeded| (StatusCode::UNPROCESSABLE_ENTITY, exceeded))
}

/// The answer to a request without the secret.
fn refused(headers: &HeaderMap, secret: &str) -> Option<Response> {
    let said = headers.get("secret").map(|value| value.as_bytes()).unwrap_or_default();
    // As long for any other of its length: the time tells nothing of how much of it is right.
    let same = said.ct_eq(secret.as_bytes());
    bool::from(!same).then(|| {
        answer(StatusCode::UNAUTHORIZED, "the header \"secret\" with the value of SHARED_SECRET is needed")
    })
}

/// An error as the oldest modules read it.
fn answer(status: StatusCode, message: &str) -> Response {
    json_answer(status, &json!({"statusCode": status.as_u16(), "message": message}))
}

fn json_answer(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}

/// Takes so many connections at a time; others wait in the kernel's queue.
struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
    over: CancellationToken,
}

impl Listener for Bounded {
    type Io = Placed;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Placed, SocketAddr) {
        let place = self.places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (stream, from) = Listener::accept(&mut self.listener).await;
        let over = Box::pin(self.over.clone().cancelled_owned());
        (Placed { stream, over, _place: place }, from)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection and its place.
struct Placed {
    stream: TcpStream,
    /// The job's end, which ends the connection.
    over: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Placed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.over.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Placed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
