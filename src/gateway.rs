//! `ion gateway`, and `ion up --gateway`: the HTTP gateway.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args as ClapArgs;
use dispatcher::gateway::{
    Gateway, GatewayError, GatewaySettings, Portal, PrivateFileError, Tokens, Vitals, Webhooks,
    read_private_file,
};
use dispatcher::pipeline::{ExecutorKind, Module, Network};
use dispatcher::sources::older::OlderType;
use ionfs::errors::error_chain;
use ionfs::node::Node;

use crate::metrics::MetricsArgs;
use crate::service::wait_for_stop_signal;
use crate::settings::{CommandSettings, gateway_tokens, is_credential, parse_deadline};
use crate::{CommandFailure, CommandResult, CommandVerdict, output, service};

/// The flags of every command that can run a gateway.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Gateway options")]
pub(crate) struct GatewayFlags {
    /// A file of the tokens that requests must bring, with a line NAME SCOPE,SCOPE TOKEN for each;
    /// only its owner may be allowed to read it. ION_GATEWAY_TOKENS may hold such lines itself.
    /// Tokens are needed for an address that other machines can reach
    #[arg(long = "gateway-tokens", env = "ION_GATEWAY_TOKENS_FILE", value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// A file that lists the signed webhooks to accept at /webhooks/NAME, with a line NAME SCHEME
    /// TYPE SECRET-FILE... for each; SCHEME is github or stripe, TYPE is the type of the events it
    /// creates; only the owner may be allowed to read the secret files. docs/http.md has an example
    #[arg(long = "gateway-webhooks", env = "ION_GATEWAY_WEBHOOKS", value_name = "FILE")]
    webhooks: Option<PathBuf>,
    /// A host name besides localhost, such as that of a proxy, to which a gateway without tokens
    /// answers; may be repeated
    #[arg(
        long = "gateway-host",
        env = "ION_GATEWAY_HOSTS",
        value_delimiter = ',',
        value_name = "NAME"
    )]
    hosts: Vec<String>,
    /// The largest request with files
    #[arg(long = "gateway-upload-max", env = "ION_GATEWAY_UPLOAD_MAX", value_name = "SIZE")]
    #[arg(value_parser = ionfs::limits::parse_bytes, default_value = "64GiB")]
    upload_max: u64,
    /// How many connections may be open at the same time
    #[arg(
        long = "gateway-connections",
        env = "ION_GATEWAY_CONNECTIONS",
        default_value_t = 4096,
        value_name = "N"
    )]
    connections: u32,
    /// Answer the interface of the older ingest service, with the module for each type of its jobs,
    /// such as ARTICLE=feed: GET, POST and DELETE of /data list, add and remove jobs, which are
    /// sources here, and GET of /settings lists the types with their parameters. May be repeated.
    /// docs/sources.md says more
    #[arg(
        long = "older-ingest",
        env = "ION_OLDER_INGEST",
        value_delimiter = ',',
        value_name = "TYPE=MODULE"
    )]
    older_ingest: Vec<OlderType>,
    /// How long a client may send or take nothing before its connection is closed
    #[arg(long = "gateway-stall", env = "ION_GATEWAY_STALL", default_value = "30s", value_parser = parse_deadline, value_name = "TIME")]
    stall: Duration,
    /// How long the gateway lets open requests finish when it stops
    #[arg(long = "gateway-grace", env = "ION_GATEWAY_GRACE", default_value = "30s", value_parser = parse_deadline, value_name = "TIME")]
    grace: Duration,
}

impl GatewayFlags {
    /// Reads the tokens that requests must bring, from the file and from the environment.
    fn read_tokens(&self) -> Result<Tokens, CommandFailure> {
        let from_file = match &self.tokens {
            // systemd itself keeps other users from reading these. On some machines it does so with
            // an access list, which the mode does not show, so the mode is not checked.
            Some(file) if is_credential(file) => Tokens::parse(&std::fs::read_to_string(file)?)?,
            Some(file) => Tokens::load(file)?,
            None => Tokens::default(),
        };
        let from_environment = gateway_tokens().map(|lines| Tokens::parse(&lines)).transpose();
        let from_environment = from_environment.map_err(|error| {
            CommandFailure(format!("ION_GATEWAY_TOKENS: {}", error_chain(&error)))
        })?;
        Ok(from_file.merged_with(from_environment.unwrap_or_default()))
    }

    /// Reads the list of webhooks and their secrets.
    fn read_webhooks(&self) -> Result<Webhooks, CommandFailure> {
        let Some(list) = &self.webhooks else { return Ok(Webhooks::default()) };
        let text = std::fs::read_to_string(list).map_err(|error| {
            CommandFailure(format!(
                "the list of webhooks {} cannot be read: {error}",
                list.display()
            ))
        })?;
        let secret = |file: &Path| match is_credential(file) {
            true => std::fs::read(file).map_err(|source| PrivateFileError::Read {
                path: file.display().to_string(),
                source,
            }),
            false => read_private_file(file),
        };
        Ok(Webhooks::parse(list, &text, secret)?)
    }

    /// Checks that a gateway without tokens does not run beside a module that can reach it from a
    /// container: a program in a container is not trusted to publish any event.
    ///
    /// # Errors
    /// When it would. The error names the module and the way out.
    pub(crate) fn check_modules(&self, modules: &[Module]) -> Result<(), CommandFailure> {
        let on_this_machine = |module: &&Module| {
            module.executor == ExecutorKind::Container
                && module
                    .container
                    .as_ref()
                    .is_some_and(|container| container.network == Network::Host)
        };
        match modules.iter().find(on_this_machine) {
            Some(module) if self.read_tokens()?.is_empty() => Err(CommandFailure(format!(
                "module {:?} has \"network: host\" and could publish any event at the gateway: name a file of tokens with \
                 --gateway-tokens, or set ION_GATEWAY_TOKENS (docs/http.md)",
                module.name
            ))),
            _ => Ok(()),
        }
    }

    /// Starts a gateway at an address.
    pub(crate) async fn open(
        self,
        address: SocketAddr,
        node: Arc<Node>,
        vitals: Arc<Vitals>,
        portal: Option<Portal>,
    ) -> Result<Gateway, CommandFailure> {
        let settings = GatewaySettings {
            tokens: self.read_tokens()?,
            webhooks: self.read_webhooks()?,
            hosts: self.hosts,
            connections_max: usize::try_from(self.connections.max(1))?,
            upload_bytes_max: self.upload_max,
            stall: self.stall,
            older_ingest: self.older_ingest.into_iter().collect(),
            grace: self.grace,
            ..GatewaySettings::new(address)
        };
        let gateway =
            Gateway::open(node, vitals, portal, settings).await.map_err(|error| match error {
                GatewayError::Unguarded(_) => CommandFailure(format!(
                    "the gateway at {error}: name a file of tokens with --gateway-tokens \
                     (docs/http.md), or listen at 127.0.0.1"
                )),
                GatewayError::Listen { .. } => {
                    CommandFailure(format!("the gateway at {}", CommandFailure::from(error).0))
                }
                GatewayError::Staging { .. } => CommandFailure::from(error),
            })?;
        output::print_message(&format!("the gateway is at http://{}", gateway.address()));
        Ok(gateway)
    }
}

/// Serve HTTP, until Ctrl-C: requests start pipelines, and read what came of them
///
/// Any number of gateways and dispatchers can use the same stores. `ion up --gateway ADDRESS` runs
/// a gateway and a dispatcher in one process.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  ion gateway &
  curl -F file=@clip.mp4 'http://127.0.0.1:8080/events/new_video?wait=1m'
  curl http://127.0.0.1:8080/openapi.json")]
pub(crate) struct GatewayArgs {
    /// The address to listen at. One that other machines can reach needs tokens
    #[arg(long, env = "ION_GATEWAY", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    listen: SocketAddr,
    #[command(flatten)]
    flags: GatewayFlags,
    #[command(flatten)]
    metrics: MetricsArgs,
}

pub(crate) async fn run(settings: &CommandSettings, args: GatewayArgs) -> CommandResult {
    let endpoint = args.metrics.open().await?;
    let node = Node::new(settings.open_plane().await?, settings.node_settings())?;
    endpoint.vitals.describe(|registry| node.describe(registry));
    let gateway = args.flags.open(args.listen, node, endpoint.vitals.clone(), None).await?;
    endpoint.vitals.mark_ready();
    service::notify_ready();
    output::print_message("ready");
    wait_for_stop_signal().await;
    endpoint.vitals.mark_not_ready();
    service::notify_stopping();
    output::print_message("stopping: requests under way are answered");
    tokio::select! {
        () = gateway.close() => {}
        // A second signal ends the process at once.
        () = wait_for_stop_signal() => std::process::exit(130),
    }
    endpoint.close().await;
    Ok(CommandVerdict::Well)
}
