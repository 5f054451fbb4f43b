//! `--metrics`: numbers for Prometheus, and whether this process is ready, at an address of their
//! own.

use std::net::SocketAddr;
use std::sync::Arc;

use clap::Args as ClapArgs;
use dispatcher::gateway::{GatewayError, Reading, Vitals};

use crate::settings::metrics_token;
use crate::{Failure, output};

/// Flags of commands that work until they are told to stop.
#[derive(Debug, ClapArgs)]
pub(crate) struct MetricsArgs {
    /// Show numbers for Prometheus at http://ADDRESS/metrics, 127.0.0.1:9464 for instance, and at
    /// /ready whether work is taken [default: off]. An address that other machines reach needs a
    /// token in ION_METRICS_TOKEN
    #[arg(long, env = "ION_METRICS", value_name = "ADDRESS")]
    metrics: Option<SocketAddr>,
}

impl MetricsArgs {
    /// Begins to answer, if that is wanted.
    pub(crate) async fn open(&self) -> Result<Endpoint, Failure> {
        let vitals = Arc::new(Vitals::default());
        let Some(address) = self.metrics else { return Ok(Endpoint { vitals, reading: None }) };
        let reading = Reading::open(address, vitals.clone(), metrics_token().as_deref()).await;
        let reading = reading.map_err(|error| match error {
            GatewayError::Unguarded(_) => Failure(format!(
                "--metrics {error}: set ION_METRICS_TOKEN, which its requests then bring along as a bearer token, or \
                 listen at 127.0.0.1"
            )),
            error => Failure(format!("--metrics {}", Failure::from(error).0)),
        })?;
        output::say(&format!("metrics are at http://{}/metrics", reading.address()));
        Ok(Endpoint { vitals, reading: Some(reading) })
    }
}

/// The numbers of this process, and what `--metrics` shows of them.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// The numbers. Without `--metrics` and without a gateway nobody sees them.
    pub(crate) vitals: Arc<Vitals>,
    reading: Option<Reading>,
}

impl Endpoint {
    /// Answers what was asked, and nothing more.
    pub(crate) async fn close(self) {
        if let Some(reading) = self.reading {
            reading.close().await;
        }
    }
}
