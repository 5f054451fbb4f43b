//! The HTTP server: how many connections may be open, how long each may make no progress, and how
//! they end.
//!
//! No connection delays another: one that sends no whole request head in time, or does not read its
//! answer, is closed. When the maximum number of connections is open, the next ones wait in the
//! kernel until one ends. The pace of bodies is checked in `body`.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use ion_jobs::metrics::CountGauge;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;

use super::client::WatchedConnection;

/// The maximum bytes of a request's head. A longer head is answered with 431.
const HEAD_MAX: usize = 64 << 10;

/// The pause after a connection could not be accepted: the process may have no descriptors left,
/// and trying again at once would keep a processor busy for nothing.
const ACCEPT_WAIT: Duration = Duration::from_millis(100);

/// The limits of connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionLimits {
    /// The maximum number of open connections.
    pub(super) connections_max: usize,
    /// How long a client may take to send a whole head, or to read anything of an answer.
    pub(super) stall: Duration,
    /// How long running requests may take to end after `stop`.
    pub(super) grace: Duration,
}

/// Serves until `stop` is cancelled. Then it accepts no more connections and waits up to the grace
/// period for the open ones.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: ConnectionLimits,
    open: CountGauge,
    stop: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(limits.connections_max));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    loop {
        let next = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            next = accept(&listener, slots.clone()) => next,
        };
        let (stream, slot) = match next {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted; the gateway tries again");
                tokio::time::sleep(ACCEPT_WAIT).await;
                continue;
            }
        };
        let client = WatchedConnection::new(stream);
        let mut stream = TimeoutStream::new(client.clone());
        stream.set_write_timeout(Some(limits.stall));
        let routed = TowerToHyperService::new(router.clone());
        let service = service_fn({
            let client = client.clone();
            move |request: Request<Incoming>| {
                client.begin_request(request.version());
                let (answer, client) = (routed.call(request), client.clone());
                async move {
                    let answer = answer.await;
                    client.begin_answer();
                    answer
                }
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.stall)
            .max_buf_size(HEAD_MAX)
            // A client that has closed its side may still read; `client` finds out whether it does.
            .half_close(true)
            .serve_connection(TokioIo::new(Box::pin(stream)), service);
        let connection = graceful.watch(connection);
        let open = open.count_one();
        connections.spawn(async move {
            let _held = (slot, open);
            let ended = tokio::select! {
                ended = connection => ended,
                () = client.wait_until_gone() => {
                    tracing::debug!("a client has gone; its connection ends");
                    return;
                }
            };
            if let Err(error) = ended {
                tracing::debug!(
                    error = ion_model::errors::error_chain(&error),
                    "a connection ended early"
                );
                // The gateway's answer broke off, not the client's connection.
                if error.is_user() {
                    client.reset_on_close();
                }
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(limits.grace, graceful.shutdown()).await.is_err() {
        tracing::warn!(
            "requests did not end within {} s; they are cut off",
            limits.grace.as_secs()
        );
    }
    connections.shutdown().await;
}

/// Waits for a slot and accepts a connection. If the future is dropped, it has taken no connection.
async fn accept(
    listener: &TcpListener,
    slots: Arc<Semaphore>,
) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let slot = slots.acquire_owned().await.expect("the semaphore is never closed");
    Ok((listener.accept().await?.0, slot))
}
