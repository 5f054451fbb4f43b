//! `ion csi`: the driver that mounts the trees of jobs for the pods of a Kubernetes node.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use ionfs::csi::{CsiSettings, DRIVER_NAME, serve};
use ionfs::node::Node;
use tokio_util::sync::CancellationToken;

use crate::metrics::MetricsArgs;
use crate::service::wait_for_stop_signal;
use crate::settings::{ArgumentError, CommandSettings, ticket_key};
use crate::{CommandResult, CommandVerdict, output};

/// Mount the trees of jobs for the pods of this Kubernetes node, until SIGTERM
///
/// It is a driver of the Container Storage Interface, named csi.ionfs; one runs on each node. A
/// dispatcher with modules of `executor: kubernetes` makes the pods; each pod has one inline volume
/// of this driver, mounted at /ion before the pod starts. Stores are named as for every command.
/// ION_TICKET_KEY must be the same as the dispatchers' (`openssl rand -hex 32` makes one). Unix
/// sockets may be written as unix:///path. docs/kubernetes.md says how to deploy it.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:\n  ion csi --node-id \"$NODE_NAME\"")]
pub(crate) struct CsiArgs {
    /// The driver's socket
    #[arg(long, env = "ION_CSI_ENDPOINT", value_name = "SOCKET", value_parser = parse_socket, default_value = "/csi/csi.sock")]
    endpoint: PathBuf,
    /// The socket in the kubelet's folder plugins_registry, by which the kubelet finds the driver;
    /// an empty value makes none
    #[arg(long, env = "ION_CSI_REGISTRATION", value_name = "SOCKET", value_parser = parse_socket)]
    #[arg(default_value = "/registration/csi.ionfs-reg.sock")]
    registration: PathBuf,
    /// The path of the driver's socket for the kubelet
    #[arg(long, env = "ION_CSI_KUBELET_ENDPOINT", value_name = "SOCKET")]
    #[arg(value_parser = parse_socket)]
    #[arg(default_value = "/var/lib/kubelet/plugins/csi.ionfs/csi.sock")]
    kubelet_endpoint: PathBuf,
    /// This node's name
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    node_id: String,
    #[command(flatten)]
    metrics: MetricsArgs,
}

fn parse_socket(text: &str) -> Result<PathBuf, ArgumentError> {
    let path = PathBuf::from(text.strip_prefix("unix://").unwrap_or(text));
    if path.is_absolute() || text.is_empty() { Ok(path) } else { Err(ArgumentError::Path) }
}

pub(crate) async fn run(settings: &CommandSettings, args: CsiArgs) -> CommandResult {
    let key = ticket_key()?;
    let endpoint = args.metrics.open().await?;
    let node = Node::new(settings.open_plane().await?, settings.node_settings())?;
    endpoint.vitals.describe(|registry| node.describe(registry));
    let at = args.endpoint.display().to_string();
    let registration = Some(args.registration).filter(|path| !path.as_os_str().is_empty());
    let settings = CsiSettings {
        endpoint: args.endpoint,
        registration,
        kubelet_endpoint: args.kubelet_endpoint,
        node_id: args.node_id,
    };
    let stop = CancellationToken::new();
    let (stopping, vitals) = (stop.clone(), endpoint.vitals.clone());
    let ending = vitals.clone();
    tokio::spawn(async move {
        wait_for_stop_signal().await;
        ending.mark_not_ready();
        stopping.cancel();
    });
    let ready = || {
        output::print_message(&format!("ready: {DRIVER_NAME} serves {at}"));
        vitals.mark_ready();
    };
    serve(node, key, settings, stop, ready).await?;
    endpoint.close().await;
    Ok(CommandVerdict::Well)
}
