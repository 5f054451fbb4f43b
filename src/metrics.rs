//! `--metrics`: serves metrics for Prometheus, and whether this process is ready, at an address of
//! its own.

use std::net::SocketAddr;
use std::sync::Arc;

use clap::Args as ClapArgs;
use dispatcher::gateway::{GatewayError, MetricsServer, Vitals};

use crate::settings::metrics_token;
use crate::{CommandFailure, output};

/// The flags of commands that run until they are told to stop.
#[derive(Debug, ClapArgs)]
pub(crate) struct MetricsArgs {
    /// Serve metrics for Prometheus at http://ADDRESS/metrics, and at http://ADDRESS/ready whether
    /// this process takes work; for instance 127.0.0.1:9464 [default: off]. An address that other
    /// machines can reach needs a token in ION_METRICS_TOKEN
    #[arg(long, env = "ION_METRICS", value_name = "ADDRESS")]
    metrics: Option<SocketAddr>,
}

impl MetricsArgs {
    /// Starts to serve metrics if `--metrics` is given.
    pub(crate) async fn open(&self) -> Result<MetricsEndpoint, CommandFailure> {
        let vitals = Arc::new(Vitals::default());
        let Some(address) = self.metrics else {
            return Ok(MetricsEndpoint { vitals, server: None });
        };
        let server = MetricsServer::open(address, vitals.clone(), metrics_token().as_deref()).await;
        let server = server.map_err(|error| match error {
            GatewayError::Unguarded(_) => CommandFailure(format!(
                "--metrics {error}: set ION_METRICS_TOKEN, which requests must then bring as a bearer token, or \
                 listen at 127.0.0.1"
            )),
            error => CommandFailure(format!("--metrics {}", CommandFailure::from(error).0)),
        })?;
        output::print_message(&format!("metrics are at http://{}/metrics", server.address()));
        Ok(MetricsEndpoint { vitals, server: Some(server) })
    }
}

/// The metrics of this process, and the server that shows them if `--metrics` is given.
#[derive(Debug)]
pub(crate) struct MetricsEndpoint {
    /// The metrics. Without `--metrics` and without a gateway nothing shows them.
    pub(crate) vitals: Arc<Vitals>,
    server: Option<MetricsServer>,
}

impl MetricsEndpoint {
    /// Answers the requests that have come, and takes no more.
    pub(crate) async fn close(self) {
        if let Some(server) = self.server {
            server.close().await;
        }
    }
}
