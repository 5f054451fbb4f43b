//! The CSI driver of a node: one daemon on each node mounts the trees of pods over the Container
//! Storage Interface.
//!
//! A pod has an ephemeral inline volume whose attribute `token` names the
//! [`Ticket`](crate::ticket::Ticket) of its attempt. The kubelet asks the driver to mount the
//! volume before the pod's containers start, and to unmount it as soon as they have ended. All pods
//! of a node share the daemon's clients, memory and cache. A pod needs no privilege for this, and
//! sees no credential.
//!
//! # What is promised
//! - The driver answers a publish call once it serves the tree. Publishing and unpublishing are
//!   idempotent.
//! - The driver answers an unpublish call once everything that the pod left is committed or
//!   refused, and the ticket says so. If a store is unavailable, the call fails and the kubelet
//!   calls again.
//! - When the daemon ends, for whatever reason, the trees that it served end with it: the kernel
//!   answers every call in them at once with an error. The next daemon unmounts what is left of
//!   them and records in their tickets that they are lost.

mod authority;
mod driver;
pub mod ticket;
mod volumes;

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use ion_plane::node::Node;
use tokio::io::DuplexStream;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use self::api::csi::identity_server::IdentityServer;
use self::api::csi::node_server::NodeServer;
use self::api::registration::registration_server::RegistrationServer;
use self::driver::{Driver, Registrar};
use crate::ticket::TicketKey;

/// The driver's name, in the CSIDriver object and in pods' volumes.
pub const DRIVER_NAME: &str = "csi.ionfs";

/// The attribute of a volume that holds its token.
pub const TOKEN_ATTRIBUTE: &str = "token";

/// How long calls in progress may take after the driver was asked to stop. The driver's own pod has
/// 30 seconds to end.
const STOP_WAIT: Duration = Duration::from_secs(10);

/// The messages of the protocols that other programs speak to the driver.
#[allow(
    missing_docs,
    clippy::all,
    clippy::unwrap_used,
    reason = "generated from proto/, where the messages are described"
)]
pub mod api {
    /// The Container Storage Interface.
    pub mod csi {
        tonic::include_proto!("csi.v1");
    }
    /// The protocol by which a kubelet finds a driver.
    pub mod registration {
        tonic::include_proto!("pluginregistration");
    }
}

/// The addresses of a driver, and the name of its node.
#[derive(Clone, Debug)]
pub struct CsiSettings {
    /// The path of the driver's socket.
    pub endpoint: PathBuf,
    /// The path of the registration socket in the kubelet's folder `plugins_registry`; `None` if
    /// another program registers the driver.
    pub registration: Option<PathBuf>,
    /// The path of the driver's socket as the kubelet sees it.
    pub kubelet_endpoint: PathBuf,
    /// This node's name.
    pub node_id: String,
}

/// Why a driver cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum CsiError {
    /// A socket cannot be made.
    #[error("the socket {path:?} cannot be served")]
    Socket {
        /// The socket's path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The folder with the notes of published volumes cannot be used.
    #[error("the folder {path:?} of published volumes cannot be used")]
    Notes {
        /// The folder's path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The server of the protocol failed.
    #[error("the driver cannot serve")]
    Server(#[from] tonic::transport::Error),
}

/// Serves the driver until `stop` is cancelled. Calls `ready` once the driver's socket exists.
///
/// # Errors
/// Returns an error when a socket cannot be made, when the folder with the notes of an earlier
/// daemon cannot be used, or when the server fails.
pub async fn serve(
    node: Arc<Node>,
    key: TicketKey,
    settings: CsiSettings,
    stop: CancellationToken,
    ready: impl FnOnce(),
) -> Result<(), CsiError> {
    let driver = Driver::new(node, key, settings.node_id.clone())?;
    driver.remove_lost_trees().await;
    let csi = listen(&settings.endpoint)?;
    let services = Server::builder()
        .add_service(IdentityServer::new(driver.clone()))
        .add_service(NodeServer::new(driver.clone()))
        .serve_with_incoming_shutdown(csi, stop.clone().cancelled_owned());
    let registration = async {
        let Some(at) = &settings.registration else { return Ok(()) };
        let registrar = Registrar { endpoint: settings.kubelet_endpoint.clone() };
        let server = Server::builder().add_service(RegistrationServer::new(registrar));
        // The driver's own socket exists already: the kubelet calls it as soon as it is registered.
        Ok(server.serve_with_incoming_shutdown(listen(at)?, stop.clone().cancelled_owned()).await?)
    };
    ready();
    let calls_wait = async {
        stop.cancelled().await;
        tokio::time::sleep(STOP_WAIT).await;
    };
    let (served, registered) = tokio::select! {
        ended = async { tokio::join!(services, registration) } => ended,
        // The kubelet repeats the unanswered calls to the next daemon.
        () = calls_wait => (Ok(()), Ok(())),
    };
    for socket in [Some(&settings.endpoint), settings.registration.as_ref()].into_iter().flatten() {
        let _ = std::fs::remove_file(socket);
    }
    driver.close().await;
    served?;
    registered
}

/// Listens on a socket. Replaces the socket that a killed daemon left at the same path.
fn listen(path: &Path) -> Result<impl Stream<Item = io::Result<DuplexStream>> + use<>, CsiError> {
    let socket_error = |source| CsiError::Socket { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(socket_error)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(socket_error(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(socket_error)?;
    // A program that can connect to the driver can mount and unmount anywhere.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(socket_error)?;
    Ok(UnixListenerStream::new(listener).map(|client| client.map(authority::filter_connection)))
}
