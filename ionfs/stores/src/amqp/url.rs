//! Reads the broker's address from `amqp://` and `amqps://` URLs.

use std::path::Path;

use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPUri, SASLMechanism};

use crate::StoreError;
use crate::url::without_credentials;

/// The seconds between two heartbeats. A connection that is silent for twice as long is broken.
const HEARTBEAT: u16 = 10;

/// A broker's address, and the settings of a TLS connection.
#[derive(Clone)]
pub(super) struct Address {
    pub(super) uri: AMQPUri,
    pub(super) tls: OwnedTLSConfig,
}

impl std::fmt::Debug for Address {
    /// Writes host and port, without the password and the key.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}:{}", self.uri.authority.host, self.uri.authority.port)
    }
}

impl Address {
    /// Reads a URL with RabbitMQ's query parameters `cacertfile`, `certfile` and `keyfile` (PEM
    /// files), and `auth_mechanism=external` for a client that its certificate names.
    pub(super) fn parse(url: &str) -> Result<Self, StoreError> {
        let refused = |reason: String| StoreError::Url {
            url: without_credentials(url),
            kind: "bus",
            reason: format!("{reason}; as in amqp://user:password@host:5672/vhost"),
        };
        let mut uri: AMQPUri = url.parse().map_err(refused)?;
        if uri.vhost.is_empty() {
            // People who write `amqp://host/` mean the broker's default virtual host.
            uri.vhost = "/".into();
        }
        uri.query.heartbeat.get_or_insert(HEARTBEAT);
        let mut tls = OwnedTLSConfig::default();
        let (mut certificate, mut key) = (None, None);
        let parsed = reqwest::Url::parse(url).map_err(|error| refused(error.to_string()))?;
        for (name, value) in parsed.query_pairs() {
            let file = |what: &str| {
                std::fs::read(Path::new(&*value))
                    .map_err(|error| refused(format!("{what} {value:?} cannot be read: {error}")))
            };
            match &*name {
                "cacertfile" => {
                    let pem = String::from_utf8_lossy(&file("the CA's certificate")?).into_owned();
                    tls.cert_chain = Some(pem);
                }
                "certfile" => certificate = Some(file("the client's certificate")?),
                "keyfile" => key = Some(file("the client's key")?),
                _ => {}
            }
        }
        tls.identity = match (certificate, key) {
            (Some(pem), Some(key)) => Some(OwnedIdentity::PKCS8 { pem, key }),
            (None, None) => None,
            _ => return Err(refused("certfile and keyfile belong together".into())),
        };
        if tls.identity.is_some() && uri.authority.userinfo.username.is_empty() {
            uri.query.auth_mechanism.get_or_insert(SASLMechanism::External);
        }
        Ok(Self { uri, tls })
    }
}
