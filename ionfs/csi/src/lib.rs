//! The node's driver: pods' trees, mounted by one daemon a node over the Container Storage
//! Interface.
//!
//! A pod has an ephemeral inline volume whose attribute `token` names its attempt's
//! [`Ticket`](crate::ticket::Ticket); the kubelet asks the driver to mount it before the pod's
//! containers start, and to unmount it as soon as they have ended. All pods of a node share the
//! daemon's clients, memory and cache. No pod needs a right for it, and none sees a credential.
//!
//! # What is promised
//! - A tree is served when its publishing is answered; publishing and unpublishing may be asked
//!   again and change nothing.
//! - Unpublishing answers when everything the pod left was decided upon and the ticket says so; a
//!   store that is away is waited for by being asked again.
//! - When the daemon ends, however, the trees it served end with it: the kernel answers every call
//!   in them at once with an error. The next daemon takes away what is left of them and says in
//!   their tickets that they are lost.

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
pub const NAME: &str = "csi.ionfs";

/// The volume's attribute that holds its token.
pub const TOKEN: &str = "token";

/// How long calls under way may go on when the driver is to stop: a pod has 30 seconds for its own
/// end.
const CALLS_WAIT: Duration = Duration::from_secs(10);

/// The messages of the protocols, as other programs speak them to the driver.
#[allow(
    missing_docs,
    clippy::all,
    clippy::unwrap_used,
    reason = "made from proto/, where they are described"
)]
pub mod api {
    /// The Container Storage Interface.
    pub mod csi {
        tonic::include_proto!("csi.v1");
    }
    /// How a kubelet learns of a driver.
    pub mod registration {
        tonic::include_proto!("pluginregistration");
    }
}

/// Where a driver listens and who it is.
#[derive(Clone, Debug)]
pub struct CsiSettings {
    /// The socket of the driver.
    pub endpoint: PathBuf,
    /// The socket in the kubelet's folder `plugins_registry`; none: somebody else registers the
    /// driver.
    pub registration: Option<PathBuf>,
    /// The driver's socket, as the kubelet finds it.
    pub kubelet_endpoint: PathBuf,
    /// This node's name.
    pub node_id: String,
}

/// Why a driver cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum CsiError {
    /// A socket.
    #[error("the socket {path:?} cannot be served")]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What an earlier daemon noted.
    #[error("the folder {path:?} of published volumes cannot be used")]
    Notes {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The protocol's server.
    #[error("the driver cannot serve")]
    Server(#[from] tonic::transport::Error),
}

/// Serves the driver until `stop`; `ready` is called once it answers.
///
/// # Errors
/// When a socket cannot be made, or what an earlier daemon left cannot be read.
pub async fn serve(
    node: Arc<Node>,
    key: TicketKey,
    settings: CsiSettings,
    stop: CancellationToken,
    ready: impl FnOnce(),
) -> Result<(), CsiError> {
    let driver = Driver::new(node, key, settings.node_id.clone())?;
    driver.take_away_what_is_lost().await;
    let csi = listen(&settings.endpoint)?;
    let services = Server::builder()
        .add_service(IdentityServer::new(driver.clone()))
        .add_service(NodeServer::new(driver.clone()))
        .serve_with_incoming_shutdown(csi, stop.clone().cancelled_owned());
    let registration = async {
        let Some(at) = &settings.registration else { return Ok(()) };
        let registrar = Registrar { endpoint: settings.kubelet_endpoint.clone() };
        let server = Server::builder().add_service(RegistrationServer::new(registrar));
        // The driver's own socket is there: the kubelet calls it as soon as it has heard of it.
        Ok(server.serve_with_incoming_shutdown(listen(at)?, stop.clone().cancelled_owned()).await?)
    };
    ready();
    let calls = async {
        stop.cancelled().await;
        tokio::time::sleep(CALLS_WAIT).await;
    };
    let (served, registered) = tokio::select! {
        ended = async { tokio::join!(services, registration) } => ended,
        // What is still asked for is asked again of the next daemon.
        () = calls => (Ok(()), Ok(())),
    };
    for socket in [Some(&settings.endpoint), settings.registration.as_ref()].into_iter().flatten() {
        let _ = std::fs::remove_file(socket);
    }
    driver.close().await;
    served?;
    registered
}

/// A socket in place of what a killed daemon left of it.
fn listen(path: &Path) -> Result<impl Stream<Item = io::Result<DuplexStream>> + use<>, CsiError> {
    let failed = |source| CsiError::Socket { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    // Who speaks to the driver may mount and unmount anywhere.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(UnixListenerStream::new(listener).map(|client| client.map(authority::readable)))
}
