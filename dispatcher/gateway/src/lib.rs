//! The gateway: HTTP starts pipelines, and shows what came of them.
//!
//! | room | what it holds |
//! | --- | --- |
//! | `server`, `client` | connections: how many, how slow, how they end; whether their clients are still there |
//! | `auth` | tokens and scopes; which pages of browsers are served |
//! | `problem` | what went wrong, as RFC 9457 has it said |
//! | `route`, `openapi` | what a route is; the document made of all of them |
//! | `body`, `encoding`, `upload` | bodies at a pace and within limits; what they are decoded to; files on their way to the store |
//! | `intake`, `form`, `cloudevent`, `batch` | requests become events: in which form, and how many |
//! | `webhook`, `signed` | what other systems tell: which are known, and whether they signed it |
//! | `trace`, `looks`, `file`, `log` | what came of them, to be read; one look for all who wait |
//! | `portal` | payloads through chains |
//! | `vitals` | health, readiness, numbers; also for `--metrics` alone |
//!
//! A room of routes gives them by its `routes()`, and [`all_routes`] lists the rooms. Who takes a
//! route has been let in by its door when a handler begins; a handler gives an answer or a
//! `Problem`.
//!
//! # Guarantees
//! The gateway holds nothing in memory that is not in the stores: any number of them serve one
//! plane, and each may be killed.

mod auth;
mod batch;
mod body;
mod cancel;
mod client;
mod cloudevent;
mod disposition;
mod encoding;
mod file;
mod form;
mod intake;
mod log;
mod looks;
mod openapi;
mod portal;
mod problem;
mod route;
mod server;
mod signed;
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
use ion_model::text::quote;
use ion_plane::node::Node;
use ion_system::home::private_folder;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::auth::Hosts;
pub use self::auth::{PrivateFileError, Scope, Tokens, TokensError, read_private};
use self::body::{Incoming, Room};
use self::looks::Looks;
pub use self::portal::Portal;
use self::problem::{Kind, Problem};
use self::route::Route;
use self::server::{Terms, serve};
pub use self::vitals::{Reading, Vitals};
pub use self::webhook::{Webhooks, WebhooksError};

/// Bytes of all bodies that are read whole: over it requests are told to come again.
const ROOM: usize = 256 << 20;

/// Bytes of a body of values beside three times its values: brackets and quotes. Letters that are
/// not ASCII take three times as much where a client escapes them, as forms and Python's `json` do.
const VALUES_EXTRA: u64 = 64 << 10;

/// Why a gateway cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// Others may reach it and nothing is asked of them.
    #[error("{0} can be reached from other machines and has no token to ask for")]
    Unguarded(SocketAddr),
    /// Nobody can listen there.
    #[error("{address} cannot be served")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The folder for uploads cannot be made.
    #[error("the folder for uploads, {path}, cannot be made")]
    Staging {
        /// The folder.
        path: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

/// How a gateway behaves.
#[derive(Clone, Debug)]
pub struct GatewaySettings {
    /// Where it listens.
    pub address: SocketAddr,
    /// Who may do what; an address that other machines reach needs some.
    pub tokens: Tokens,
    /// The webhooks that are taken, without a token: they are signed.
    pub webhooks: Webhooks,
    /// Names it answers to without tokens, beside this machine's own: those of a proxy before it.
    pub hosts: Vec<String>,
    /// Connections at a time. Default 4,096: each takes a descriptor and, while it sends a file,
    /// another.
    pub connections_max: usize,
    /// Bytes of a body with files. Default 64 GiB: what is staged takes that much of the disk.
    pub upload_bytes_max: u64,
    /// How long a client may stand still: sending a head, sending a body, taking an answer, or idle
    /// between requests. Default 30 s: shorter cuts off clients on bad lines, longer keeps dead
    /// ones.
    pub stall: Duration,
    /// How long requests under way have when it stops. Default 30 s, as long as Kubernetes waits.
    pub grace: Duration,
}

impl GatewaySettings {
    /// The defaults.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            tokens: Tokens::default(),
            webhooks: Webhooks::default(),
            hosts: vec![],
            connections_max: 4096,
            upload_bytes_max: 64 << 30,
            stall: Duration::from_secs(30),
            grace: Duration::from_secs(30),
        }
    }
}

/// What all requests share.
struct Gate {
    settings: GatewaySettings,
    node: Arc<Node>,
    ledger: Ledger,
    vitals: Arc<Vitals>,
    portal: Option<Portal>,
    metrics: Arc<GatewayMetrics>,
    hosts: Hosts,
    room: Room,
    /// For bodies of webhooks: whoever sends one has shown nothing yet.
    webhook_room: Room,
    looks: Looks,
    /// Who serves chains elsewhere.
    served: tokio::sync::Mutex<ServedWatch>,
    /// The OpenAPI document.
    document: Bytes,
    /// Where what requests bring is staged.
    staging: std::path::PathBuf,
    /// What goes on when its request has gone: commits, removals of what no event names.
    tasks: TaskTracker,
    stopping: CancellationToken,
}

type Shared = Arc<Gate>;

impl Gate {
    /// A body that becomes values.
    fn body_of_values(&self, headers: &HeaderMap, body: Body) -> Result<Incoming, Problem> {
        let most = self
            .node
            .settings
            .limits
            .event_value_bytes
            .saturating_mul(3)
            .saturating_add(VALUES_EXTRA);
        let body =
            Incoming::new(body, most.min(self.settings.upload_bytes_max), self.settings.stall);
        encoding::decoded(headers, body, &self.room)
    }

    /// What a store answers, or that it did not in time.
    async fn in_time<T, E>(&self, asked: impl Future<Output = Result<T, E>>) -> Result<T, Problem>
    where
        Problem: From<E>,
    {
        let deadline = self.node.settings.read_deadline;
        match tokio::time::timeout(deadline, asked).await {
            Ok(answer) => Ok(answer?),
            Err(_) => {
                let detail = format!(
                    "the stores gave no answer within {} s; try again later",
                    deadline.as_secs()
                );
                Err(Problem::new(Kind::StoresAway, detail))
            }
        }
    }

    /// A body that has files.
    fn body_of_files(&self, headers: &HeaderMap, body: Body) -> Result<Incoming, Problem> {
        let body = Incoming::new(body, self.settings.upload_bytes_max, self.settings.stall);
        encoding::decoded(headers, body, &self.room)
    }
}

/// A gateway that answers.
#[derive(Debug)]
pub struct Gateway {
    address: SocketAddr,
    stopping: CancellationToken,
    tasks: TaskTracker,
    grace: Duration,
    serving: JoinHandle<()>,
}

impl Gateway {
    /// Begins to answer. Chains of `portal` are run in this process.
    ///
    /// # Errors
    /// When nobody can listen at its address, or others could and no token is asked for.
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
        let staging = upload::staging(&node.settings.home);
        let made = private_folder(&staging);
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
        let terms = Terms { connections_max: settings.connections_max, stall, grace };
        let routes = all_routes();
        let gate = Arc::new(Gate {
            hosts: Hosts { allowed: settings.hosts.clone(), any: !settings.tokens.is_empty() },
            ledger: Ledger::new(node.plane.clone()),
            room: Room::new(ROOM),
            webhook_room: Room::new(webhook::ROOM),
            looks: Looks::new(),
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
            tokio::spawn(serve(listener, router(&gate, routes), terms, open, stopping.clone()));
        Ok(Self { address, stopping, tasks, grace, serving })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections, gives requests under way their grace, and ends. Who follows or
    /// waits is told at once how it stands.
    pub async fn close(self) {
        self.stopping.cancel();
        let _ = self.serving.await;
        self.tasks.close();
        if tokio::time::timeout(self.grace, self.tasks.wait()).await.is_err() {
            tracing::warn!("a commit did not end; a relay takes it on from where it is");
        }
    }
}

/// Every route there is.
fn all_routes() -> Vec<Route> {
    [
        intake::routes(),
        webhook::routes(),
        portal::routes(),
        trace::routes(),
        cancel::routes(),
        file::routes(),
        log::routes(),
        vitals::routes(),
        openapi::routes(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn router(gate: &Shared, routes: Vec<Route>) -> Router {
    let mut router = Router::new();
    for route in routes {
        router = router.route(route.path, route.behind_its_door(gate));
    }
    router
        .fallback(nowhere)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(gate.clone(), admit))
        .with_state(gate.clone())
}

/// Before everything else: is the request for this host, and no trick of a web page?
async fn admit(State(gate): State<Shared>, request: Request, next: Next) -> Response {
    let mut response = match gate.hosts.admit(&request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    // What a module wrote is shown as what it is said to be, and not as what a browser takes it
    // for.
    response
        .headers_mut()
        .insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

async fn nowhere(request: Request) -> Problem {
    let path = request.uri().path();
    let detail = format!("nothing is at {}; /openapi.json lists what is here", quote(path));
    Problem::new(Kind::NotFound, detail)
}

async fn wrong_method(request: Request) -> Problem {
    let (method, path) = (request.method(), request.uri().path());
    Problem::new(
        Kind::WrongMethod,
        format!("{method} does nothing at {}; the header Allow names what does", quote(path)),
    )
}

/// An answer that is a JSON document.
fn json_answer(status: StatusCode, document: &impl Serialize) -> Response {
    match serde_json::to_vec(document) {
        Ok(text) => (status, [(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => Problem::new(Kind::Internal, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_document_has_every_route_once_and_every_parameter_of_its_path() {
        let routes = all_routes();
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
