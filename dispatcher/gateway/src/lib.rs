//! The HTTP gateway: it turns requests into events that start pipelines, and serves their results.
//!
//! | room | what it holds |
//! | --- | --- |
//! | `server`, `client` | connections: how many, timeouts, how they end, lost clients |
//! | `auth` | tokens and scopes; which browser pages are served |
//! | `problem` | errors as RFC 9457 problem documents |
//! | `route`, `openapi` | the definition of a route; the OpenAPI document built from all of them |
//! | `body`, `encoding`, `upload` | request bodies: pace and limits, decoding, staging of files |
//! | `intake`, `form`, `cloudevent`, `batch` | requests become events: body formats, batches |
//! | `webhook`, `signed` | requests of other systems: the list of webhooks, and their signatures |
//! | `trace`, `looks`, `file`, `log`, `cancel` | results: traces and shared reads, files, logs |
//! | `portal` | payloads sent through chains |
//! | `sources`, `older_ingest` | sources; the interface of the older ingest service |
//! | `vitals` | health, readiness and metrics; also for `--metrics` alone |
//!
//! A room with routes returns them from its `routes()`, and [`all_routes`] lists the rooms. The
//! route's door checks access before the handler runs; the handler returns a response or a
//! `Problem`.
//!
//! # Guarantees
//! The gateway keeps no state in memory that is not also in the stores: any number of gateways
//! serve one plane, and each may be killed.

mod auth;
mod batch;
mod body;
mod cancel;
mod client;
mod cloudevent;
mod disposition;
mod draft;
mod encoding;
mod file;
mod find;
mod form;
mod intake;
mod log;
mod looks;
mod older_ingest;
mod openapi;
mod portal;
mod problem;
mod route;
mod server;
mod signed;
mod sources;
mod trace;
mod upload;
mod vitals;
mod webhook;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use ion_dispatch::ServedWatch;
use ion_jobs::ledger::Ledger;
use ion_jobs::metrics::GatewayMetrics;
use ion_jobs::sources::older::OlderTypes;
use ion_model::text::quote;
use ion_plane::node::Node;
use ion_system::home::make_private_folder;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::auth::AllowedHosts;
pub use self::auth::{
    PrivateFileError, Scope, TokenProblem, Tokens, TokensError, read_private_file,
};
use self::body::{BodyMemory, IncomingBody};
use self::looks::CorrelationLooks;
pub use self::portal::Portal;
use self::problem::{Problem, ProblemKind};
use self::route::Route;
use self::server::{ConnectionLimits, serve};
pub use self::vitals::{MetricsServer, Vitals};
pub use self::webhook::{WebhookProblem, Webhooks, WebhooksError};

/// Bytes of memory for request bodies that are held whole, and for decoders. When they are used up,
/// the gateway answers `busy`, and the client tries again later.
const ROOM: usize = 256 << 20;

/// Bytes that a body of values may have beyond three times its values: brackets and quotes. The
/// factor three: a non-ASCII letter takes three times as much where a client escapes it, as forms
/// and Python's `json` do.
const VALUES_EXTRA: u64 = 64 << 10;

/// The reasons a gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The address is reachable from other machines, and no token is configured.
    #[error("{0} can be reached from other machines and has no token")]
    Unguarded(SocketAddr),
    /// The address cannot be listened on.
    #[error("{address} cannot be served")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The folder for uploads cannot be created.
    #[error("the gateway's folder for uploads, {path}, cannot be created")]
    Staging {
        /// The folder.
        path: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

/// The settings of a gateway.
#[derive(Clone, Debug)]
pub struct GatewaySettings {
    /// The address to listen on.
    pub address: SocketAddr,
    /// The tokens and their scopes; an address that other machines can reach needs at least one.
    pub tokens: Tokens,
    /// The accepted webhooks. They need no token, because each request is signed.
    pub webhooks: Webhooks,
    /// Host names that a gateway without tokens answers to, beside this machine's own: those of a
    /// proxy in front of it.
    pub hosts: Vec<String>,
    /// The maximum number of open connections. Default 4,096: each takes a descriptor and, while it
    /// sends a file, another.
    pub connections_max: usize,
    /// The maximum bytes of a body with files. Default 64 GiB: a staged body takes that much of the
    /// disk.
    pub upload_bytes_max: u64,
    /// How long a client may make no progress: sending a head, sending a body, reading an answer,
    /// or idle between requests. Default 30 s: shorter cuts off clients on bad lines, longer keeps
    /// dead ones.
    pub stall: Duration,
    /// The modules that stand for the types of jobs of the older ingest service, whose interface the
    /// gateway then answers. Default none: there is no such interface.
    pub older_ingest: OlderTypes,
    /// How long running requests may take to end when the gateway stops. Default 30 s, as long as
    /// Kubernetes waits.
    pub grace: Duration,
}

impl GatewaySettings {
    /// Returns the default settings for an address.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            tokens: Tokens::default(),
            webhooks: Webhooks::default(),
            hosts: vec![],
            connections_max: 4096,
            upload_bytes_max: 64 << 30,
            stall: Duration::from_secs(30),
            older_ingest: OlderTypes::default(),
            grace: Duration::from_secs(30),
        }
    }
}

/// The state that all requests share.
struct GatewayState {
    settings: GatewaySettings,
    node: Arc<Node>,
    ledger: Ledger,
    vitals: Arc<Vitals>,
    portal: Option<Portal>,
    metrics: Arc<GatewayMetrics>,
    hosts: AllowedHosts,
    room: BodyMemory,
    /// For webhook bodies: their senders are not authenticated until the whole body is read.
    webhook_room: BodyMemory,
    looks: CorrelationLooks,
    /// Knows which chains other processes serve.
    served: tokio::sync::Mutex<ServedWatch>,
    /// The OpenAPI document.
    document: Bytes,
    /// The folder in which uploaded files are staged.
    staging: std::path::PathBuf,
    /// Tasks that outlive their request: commits, and removals of blobs that no event names.
    tasks: TaskTracker,
    stopping: CancellationToken,
}

type SharedState = Arc<GatewayState>;

impl GatewayState {
    /// Returns the decoded body of a request that carries values.
    fn body_of_values(&self, headers: &HeaderMap, body: Body) -> Result<IncomingBody, Problem> {
        let most = self
            .node
            .settings
            .limits
            .event_value_bytes
            .saturating_mul(3)
            .saturating_add(VALUES_EXTRA);
        let body =
            IncomingBody::new(body, most.min(self.settings.upload_bytes_max), self.settings.stall);
        encoding::decode_body(headers, body, &self.room)
    }

    /// Returns what the stores answer. If they do not answer within the read deadline, returns the
    /// problem `stores-away`.
    async fn within_deadline<T, E>(
        &self,
        read: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Problem>
    where
        Problem: From<E>,
    {
        let deadline = self.node.settings.read_deadline;
        match tokio::time::timeout(deadline, read).await {
            Ok(answer) => Ok(answer?),
            Err(_) => {
                let detail = format!(
                    "the stores did not answer within {} s; try again later",
                    deadline.as_secs()
                );
                Err(Problem::new(ProblemKind::StoresAway, detail))
            }
        }
    }

    /// Returns the decoded body of a request that carries files.
    fn body_of_files(&self, headers: &HeaderMap, body: Body) -> Result<IncomingBody, Problem> {
        let body = IncomingBody::new(body, self.settings.upload_bytes_max, self.settings.stall);
        encoding::decode_body(headers, body, &self.room)
    }
}

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    address: SocketAddr,
    stopping: CancellationToken,
    tasks: TaskTracker,
    grace: Duration,
    serving: JoinHandle<()>,
}

impl Gateway {
    /// Starts the gateway. It runs the chains of `portal` in this process.
    ///
    /// # Errors
    /// When the address cannot be listened on, when the folder for uploads cannot be created, or
    /// when other machines can reach the address and no token is configured.
    pub async fn open(
        node: Arc<Node>,
        vitals: Arc<Vitals>,
        portal: Option<Portal>,
        settings: GatewaySettings,
    ) -> Result<Self, GatewayError> {
        let address = settings.address;
        if !address.ip().is_loopback() && settings.tokens.is_empty() {
            return Err(GatewayError::Unguarded(address));
        }
        let staging = upload::staging_folder(&node.settings.home);
        let made = make_private_folder(&staging);
        made.map_err(|source| GatewayError::Staging {
            path: staging.display().to_string(),
            source,
        })?;
        let failed = |source| GatewayError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let metrics = Arc::new(GatewayMetrics::default());
        vitals.describe(|registry| metrics.describe(registry));
        let (stopping, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (stall, grace) = (settings.stall, settings.grace);
        let limits = ConnectionLimits { connections_max: settings.connections_max, stall, grace };
        let mut routes = all_routes();
        if !settings.older_ingest.is_empty() {
            routes.extend(older_ingest::routes());
        }
        let gate = Arc::new(GatewayState {
            hosts: AllowedHosts {
                allowed: settings.hosts.clone(),
                any: !settings.tokens.is_empty(),
            },
            ledger: Ledger::new(node.plane.clone()),
            room: BodyMemory::new(ROOM),
            webhook_room: BodyMemory::new(webhook::ROOM),
            looks: CorrelationLooks::new(),
            served: tokio::sync::Mutex::default(),
            document: openapi::document(&routes, &settings.tokens).to_string().into(),
            staging,
            tasks: tasks.clone(),
            stopping: stopping.clone(),
            settings,
            node,
            vitals,
            portal,
            metrics: metrics.clone(),
        });
        let open = metrics.connections.clone();
        let serving =
            tokio::spawn(serve(listener, router(&gate, routes), limits, open, stopping.clone()));
        Ok(Self { address, stopping, tasks, grace, serving })
    }

    /// Returns the address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts no more connections, waits up to the grace period for running requests, and stops.
    /// Clients that follow a log or wait for a result receive the current state at once.
    pub async fn close(self) {
        self.stopping.cancel();
        let _ = self.serving.await;
        self.tasks.close();
        if tokio::time::timeout(self.grace, self.tasks.wait()).await.is_err() {
            tracing::warn!("a commit did not end in time; a relay continues it");
        }
    }
}

/// Returns every route of the gateway, but for those of the older ingest service.
fn all_routes() -> Vec<Route> {
    [
        intake::routes(),
        webhook::routes(),
        portal::routes(),
        trace::routes(),
        cancel::routes(),
        file::routes(),
        find::routes(),
        sources::routes(),
        log::routes(),
        vitals::routes(),
        openapi::routes(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn router(gate: &SharedState, routes: Vec<Route>) -> Router {
    let mut router = Router::new();
    for route in routes {
        router = router.route(route.path, route.guarded_handler(gate));
    }
    router
        .fallback(answer_unknown_route)
        .method_not_allowed_fallback(answer_wrong_method)
        .layer(middleware::from_fn_with_state(gate.clone(), check_host))
        .with_state(gate.clone())
}

/// Runs before every handler: checks that the request is for this host and was not sent by a page
/// of another site.
async fn check_host(State(gate): State<SharedState>, request: Request, next: Next) -> Response {
    let mut response = match gate.hosts.check_request(&request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    // A browser must use the Content-Type of the answer and not guess one from what a module wrote.
    response
        .headers_mut()
        .insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

async fn answer_unknown_route(request: Request) -> Problem {
    let path = request.uri().path();
    let detail = format!("there is no route {}; /openapi.json lists the routes", quote(path));
    Problem::new(ProblemKind::NotFound, detail)
}

async fn answer_wrong_method(request: Request) -> Problem {
    let (method, path) = (request.method(), request.uri().path());
    Problem::new(
        ProblemKind::WrongMethod,
        format!(
            "{method} is not allowed at {}; the header Allow names the allowed methods",
            quote(path)
        ),
    )
}

/// Builds an answer whose body is a JSON document.
fn json_answer(status: StatusCode, document: &impl Serialize) -> Response {
    match serde_json::to_vec(document) {
        Ok(text) => (status, [(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => Problem::new(ProblemKind::Internal, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_document_has_every_route_once_and_every_parameter_of_its_path() {
        let mut routes = all_routes();
        routes.extend(older_ingest::routes());
        let document = openapi::document(&routes, &Tokens::default());
        let mut seen = HashSet::new();
        for route in &routes {
            let path = route.path.replace("{*", "{");
            let operation = &document["paths"][&path][route.method];
            let id = operation["operationId"].as_str().unwrap().to_owned();
            assert!(seen.insert(id), "{path} has another's operationId");
            let empty = vec![];
            let named = operation["parameters"].as_array().unwrap_or(&empty);
            for part in path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
            {
                assert!(
                    named.iter().any(|one| one["name"] == part && one["in"] == "path"),
                    "{path}: {part}"
                );
            }
            assert!(operation["responses"]["503"].is_object(), "{path}");
        }
    }
}
