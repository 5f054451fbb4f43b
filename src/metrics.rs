//! `--metrics`: numbers for Prometheus, and whether this process is ready, over HTTP.
//!
//! What is counted is said where it is counted; here the numbers are written out, in the OpenMetrics text format. The
//! endpoint never holds up the work: it runs beside it, and is given up at the end if somebody does not hang up.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use clap::Args as ClapArgs;
use ionfs::metrics::Registry;
use prometheus_client::encoding::text::encode;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::settings::metrics_token;
use crate::{Failure, output};

/// As the OpenMetrics specification writes it; Prometheus chooses its parser by this.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How long the end waits for requests under way.
const END: Duration = Duration::from_secs(1);

/// Flags of commands that work until they are told to stop.
#[derive(Debug, ClapArgs)]
pub(crate) struct MetricsArgs {
    /// Show numbers for Prometheus at http://ADDRESS/metrics, 127.0.0.1:9464 for instance, and at /ready whether work is
    /// taken [default: off]. An address that other machines reach needs a token in ION_METRICS_TOKEN
    #[arg(long, env = "ION_METRICS", value_name = "ADDRESS")]
    metrics: Option<SocketAddr>,
}

impl MetricsArgs {
    /// Begins to answer, if that is wanted.
    pub(crate) async fn open(&self) -> Result<Endpoint, Failure> {
        let shared = Arc::new(Shared {
            registry: Mutex::new(Registry::with_prefix("ion")),
            ready: AtomicBool::new(false),
            token: metrics_token(),
        });
        let stop = CancellationToken::new();
        let serving = match self.metrics {
            Some(address) => Some(serve(address, shared.clone(), stop.clone()).await?),
            None => None,
        };
        Ok(Endpoint { shared, stop, serving })
    }
}

/// What `--metrics` shows. Without it all of this does nothing that anybody sees.
#[derive(Debug)]
pub(crate) struct Endpoint {
    shared: Arc<Shared>,
    stop: CancellationToken,
    serving: Option<JoinHandle<()>>,
}

impl Endpoint {
    /// Adds numbers.
    pub(crate) fn describe(&self, describe: impl FnOnce(&mut Registry)) {
        describe(&mut self.shared.registry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Who says whether work is taken.
    pub(crate) fn readiness(&self) -> Readiness {
        Readiness(self.shared.clone())
    }

    /// Answers what was asked, and nothing more.
    pub(crate) async fn close(self) {
        self.stop.cancel();
        if let Some(mut serving) = self.serving
            && tokio::time::timeout(END, &mut serving).await.is_err()
        {
            serving.abort();
        }
    }
}

/// Says whether work is taken.
#[derive(Clone, Debug)]
pub(crate) struct Readiness(Arc<Shared>);

impl Readiness {
    /// From now on.
    pub(crate) fn begins(&self) {
        self.0.ready.store(true, Ordering::Relaxed);
    }

    /// Not any more.
    pub(crate) fn ends(&self) {
        self.0.ready.store(false, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Shared {
    registry: Mutex<Registry>,
    ready: AtomicBool,
    token: Option<String>,
}

async fn serve(
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
) -> Result<JoinHandle<()>, Failure> {
    if !address.ip().is_loopback() && shared.token.is_none() {
        return Err(Failure(format!(
            "--metrics {address} can be reached from other machines: set ION_METRICS_TOKEN, which their requests then \
             bring along as a bearer token, or listen at 127.0.0.1"
        )));
    }
    let listener = TcpListener::bind(address).await;
    let listener =
        listener.map_err(|error| Failure(format!("--metrics {address} cannot be served: {error}")))?;
    output::say(&format!("metrics are at http://{}/metrics", listener.local_addr()?));
    let router = Router::new().route("/metrics", get(metrics)).route("/ready", get(ready)).with_state(shared);
    Ok(tokio::spawn(async move {
        let server = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
        if let Err(error) = server.await {
            tracing::warn!(%error, "metrics are not served any more");
        }
    }))
}

async fn metrics(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    if !shared.token.as_deref().is_none_or(|token| brings(&headers, token)) {
        let ask = [(header::WWW_AUTHENTICATE, "Bearer")];
        return (StatusCode::UNAUTHORIZED, ask, "ION_METRICS_TOKEN is needed as a bearer token\n")
            .into_response();
    }
    let mut text = String::new();
    let written = encode(&mut text, &shared.registry.lock().unwrap_or_else(PoisonError::into_inner));
    match written {
        Ok(()) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn ready(State(shared): State<Arc<Shared>>) -> (StatusCode, &'static str) {
    if shared.ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

/// Whether a request brings the token. Takes as long for any other of its length: the time tells nothing of how much of
/// it is right.
fn brings(headers: &HeaderMap, token: &str) -> bool {
    let said = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let Some(said) = said.and_then(|said| said.strip_prefix(b"Bearer ")) else { return false };
    let differs = said.iter().zip(token.as_bytes()).fold(0, |differs, (a, b)| differs | (a ^ b));
    said.len() == token.len() && std::hint::black_box(differs) == 0
}
