//! Health, readiness and metrics of this process, for load balancers and Prometheus.
//!
//! `--metrics` serves them at an address of their own; a gateway serves them beside its other
//! routes. Each metric is described where it is counted.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use ion_jobs::metrics::CountGauge;
use ion_stores::Collection;
use ion_system::metrics::{OPENMETRICS_MEDIA_TYPE, Registry, encode_openmetrics};
use rustix::fs::statvfs;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::auth::{AllowedHosts, Scope, Tokens};
use super::openapi;
use super::problem::{Problem, ProblemKind};
use super::route::{Access, Route};
use super::server::{ConnectionLimits, serve};
use super::{GatewayError, SharedState, json_answer};

/// How long a readiness check waits for the stores.
const READY_WAIT: Duration = Duration::from_secs(2);

/// The maximum number of open connections of a [`MetricsServer`]: a few collectors and balancers
/// use it.
const READERS_MAX: usize = 64;

/// How long a connection of a [`MetricsServer`] may make no progress.
const READER_STALL: Duration = Duration::from_secs(30);

/// How long a [`MetricsServer`] waits for running requests when it closes.
const READER_GRACE: Duration = Duration::from_secs(1);

/// The metrics of a process, and whether it takes work.
pub struct Vitals {
    registry: Mutex<Registry>,
    ready: AtomicBool,
}

impl Default for Vitals {
    fn default() -> Self {
        Self { registry: Mutex::new(Registry::with_prefix("ion")), ready: AtomicBool::new(false) }
    }
}

impl fmt::Debug for Vitals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vitals").field("ready", &self.ready).finish_non_exhaustive()
    }
}

impl Vitals {
    /// Registers metrics.
    pub fn describe(&self, describe: impl FnOnce(&mut Registry)) {
        describe(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Marks the process as ready: it takes work from now on.
    pub fn mark_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    /// Marks the process as not ready: it takes no more work.
    pub fn mark_not_ready(&self) {
        self.ready.store(false, Ordering::Relaxed);
    }

    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    fn metrics_response(&self) -> Response {
        let written =
            encode_openmetrics(&self.registry.lock().unwrap_or_else(PoisonError::into_inner));
        match written {
            Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS_MEDIA_TYPE)], text).into_response(),
            Err(error) => Problem::new(ProblemKind::Internal, error.to_string()).into_response(),
        }
    }
}

/// A server that only shows metrics and readiness, at an address of its own.
#[derive(Debug)]
pub struct MetricsServer {
    address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl MetricsServer {
    /// Starts the server. Requests for metrics must bring `token`; an address that other machines
    /// can reach needs one.
    ///
    /// # Errors
    /// When the address needs a token and none is given, or the address cannot be listened on.
    pub async fn open(
        address: SocketAddr,
        vitals: Arc<Vitals>,
        token: Option<&str>,
    ) -> Result<Self, GatewayError> {
        if !address.ip().is_loopback() && token.is_none() {
            return Err(GatewayError::Unguarded(address));
        }
        let tokens = token
            .map(|token| Tokens::single("metrics", Scope::MetricsRead, token))
            .unwrap_or_default();
        let failed = |source| GatewayError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let hosts = Arc::new(AllowedHosts { allowed: vec![], any: !tokens.is_empty() });
        let router = Router::new()
            .route("/metrics", get(show_guarded_metrics))
            .route("/ready", get(show_readiness))
            .route("/healthz", get(healthz))
            .layer(middleware::from_fn_with_state(hosts, check_reader_host))
            .with_state((vitals, tokens));
        let limits = ConnectionLimits {
            connections_max: READERS_MAX,
            stall: READER_STALL,
            grace: READER_GRACE,
        };
        let stop = CancellationToken::new();
        let serving =
            tokio::spawn(serve(listener, router, limits, CountGauge::default(), stop.clone()));
        Ok(Self { address, stop, serving })
    }

    /// Returns the address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers the running requests, and stops.
    pub async fn close(self) {
        self.stop.cancel();
        let _ = self.serving.await;
    }
}

/// Checks the request as a gateway does: without a token a page of another site must not read the
/// metrics.
async fn check_reader_host(
    State(hosts): State<Arc<AllowedHosts>>,
    request: Request,
    next: Next,
) -> Response {
    match hosts.check_request(&request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

async fn show_guarded_metrics(
    State((vitals, tokens)): State<(Arc<Vitals>, Tokens)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    tokens.authorize(&headers, Scope::MetricsRead)?;
    Ok(vitals.metrics_response())
}

async fn show_readiness(
    State((vitals, _)): State<(Arc<Vitals>, Tokens)>,
) -> (StatusCode, &'static str) {
    if vitals.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

/// The routes by which a gateway shows its vitals.
pub(super) fn routes() -> Vec<Route> {
    let status = |word: &str| {
        openapi::json_answer(
            "The state is as named.",
            json!({
                "type": "object", "required": ["status"], "properties": {"status": {"const": word}},
            }),
        )
    };
    vec![
        Route::get(
            "/healthz",
            Access::Open,
            healthz,
            json!({
                "operationId": "health", "summary": "Whether this process answers at all",
                "responses": {"200": status("alive")},
            }),
        ),
        Route::get(
            "/readyz",
            Access::Open,
            readyz,
            json!({
                "operationId": "readiness", "summary": "Whether the gateway takes events and the stores answer",
                "responses": {"200": status("ready"), "503": openapi::problem("The gateway does not take events now, or the stores do not answer."),
                    "507": openapi::problem("The gateway's disk is full.")},
            }),
        ),
        Route::get(
            "/metrics",
            Access::Needs(Scope::MetricsRead),
            show_metrics,
            json!({
                "operationId": "metrics", "summary": "Metrics for Prometheus, in the OpenMetrics text format",
                "responses": {"200": {
                    "description": "All metrics of this process.", "content": {OPENMETRICS_MEDIA_TYPE: {"schema": {"type": "string"}}},
                }},
            }),
        ),
    ]
}

/// The least free bytes and files of a disk that accepts requests. Running requests may use up less
/// than that.
const ROOM_MIN: u64 = 16 << 20;
const FILES_MIN: u64 = 100;

async fn healthz() -> Response {
    json_answer(StatusCode::OK, &json!({"status": "alive"}))
}

async fn readyz(State(gate): State<SharedState>) -> Result<Response, Problem> {
    if !gate.vitals.is_ready() || gate.stopping.is_cancelled() {
        return Err(Problem::new(
            ProblemKind::Busy,
            "this gateway is starting or stopping; ask another gateway of the plane",
        ));
    }
    // Any read works, and a read of an id that does not exist costs least.
    let read = gate.node.plane.documents.get(Collection::Modules, "");
    match tokio::time::timeout(READY_WAIT, read).await {
        Ok(answer) => answer?,
        Err(_) => {
            let detail =
                format!("the document store did not answer within {} s", READY_WAIT.as_secs());
            return Err(Problem::new(ProblemKind::StoresAway, detail));
        }
    };
    let disk = statvfs(&gate.staging)
        .map_err(|error| Problem::new(ProblemKind::Internal, error.to_string()))?;
    let left = disk.f_bavail.saturating_mul(disk.f_frsize);
    // Filesystems without a limit on the number of files report 0.
    if left < ROOM_MIN || (disk.f_files > 0 && disk.f_favail < FILES_MIN) {
        let detail = format!(
            "the disk of {} is full: it has room for {left} bytes and {} files, so uploads would \
             fail; free some space",
            gate.node.settings.home.display(),
            disk.f_favail
        );
        return Err(Problem::new(ProblemKind::DiskFull, detail));
    }
    Ok(json_answer(StatusCode::OK, &json!({"status": "ready"})))
}

async fn show_metrics(State(gate): State<SharedState>) -> Response {
    gate.vitals.metrics_response()
}
