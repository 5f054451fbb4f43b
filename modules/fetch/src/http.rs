//! Asking servers politely, and trusting nothing that they answer.
//!
//! [`Client::get`] makes one request and follows its redirects itself: to few places, never from
//! https to http, and never to a private address unless that is allowed. Addresses are checked
//! where names become addresses, which are the ones that are connected to, so a name that changes
//! between a check and its use changes nothing. A body is read and unpacked up to a bound, within a
//! deadline. One host gets one request at a time.

mod address;
mod body;
mod waits;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use url::{Host, Url};

pub use self::address::is_public;
pub use self::body::{BodyError, unpack};
pub use self::waits::{fresh_for, retry_after};

/// How many hosts are remembered. More than one batch has only cost memory.
const HOSTS_MAX: usize = 4096;

/// What a request may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long a request with its redirects and its body may take (1 minute). Shorter fails on
    /// slow servers, longer holds up what waits for this one.
    pub timeout: Duration,
    /// How many redirects are followed (5).
    pub redirects: usize,
    /// How many bytes a body may have, packed and unpacked (16 MiB).
    pub body_bytes: usize,
    /// Whether addresses of this machine and of private networks may be connected to (no).
    pub allow_private: bool,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    /// The address.
    pub url: Url,
    /// Headers beside those that every request has.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// How many bytes its body may have, if fewer than usual.
    pub body_bytes: Option<usize>,
}

impl Request {
    /// Returns a request without further headers.
    pub fn get(url: Url) -> Self {
        Self { url, headers: Vec::new(), body_bytes: None }
    }
}

/// What a server answered.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, unpacked.
    pub body: Vec<u8>,
    /// The address that answered, after redirects.
    pub url: Url,
    /// Where permanent redirects lead. Nothing if there was none, or one that was not permanent.
    pub moved_to: Option<Url>,
}

impl Answer {
    /// Returns a header, if it is text.
    pub fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Returns the content type.
    pub fn content_type(&self) -> Option<&str> {
        self.header(header::CONTENT_TYPE)
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address has another scheme.
    #[error("{0} is no address of the web; it must begin with https:// or http://")]
    Scheme(String),
    /// The address belongs to this machine or to a private network.
    #[error("{0} is a private address, which is refused; --allow-private allows it")]
    Private(String),
    /// A redirect leads out of encryption.
    #[error(
        "{from} redirects from https to {to}, which is refused; give the new address if you trust it"
    )]
    Unencrypted {
        /// Where the redirect came from.
        from: String,
        /// Where it leads.
        to: String,
    },
    /// There are too many redirects.
    #[error(
        "{url} redirects more than {most} times; open it in a browser to see where it should end"
    )]
    Redirects {
        /// The first address.
        url: String,
        /// How many redirects are followed.
        most: usize,
    },
    /// A redirect leads nowhere.
    #[error("{url} redirects to {location:?}, which is no address")]
    Location {
        /// Where the redirect came from.
        url: String,
        /// Where it leads.
        location: String,
    },
    /// The time is over.
    #[error("{url} took longer than {limit:?}; --timeout gives it more")]
    Timeout {
        /// The address.
        url: String,
        /// The limit.
        limit: Duration,
    },
    /// The body is too large or damaged.
    #[error("the answer of {url} cannot be used")]
    Body {
        /// The address.
        url: String,
        /// What is wrong.
        #[source]
        source: BodyError,
    },
    /// The server cannot be reached, or broke off.
    #[error("{url} does not answer")]
    Transport {
        /// The address.
        url: String,
        /// What happened.
        #[source]
        source: reqwest::Error,
    },
    /// The client cannot be made.
    #[error("cannot set up TLS; are the certificates of authorities (ca-certificates) installed?")]
    Setup(#[source] reqwest::Error),
}

/// A client of servers.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    limits: Limits,
    /// The turns of hosts: who has a host's lock may ask it.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Client {
    /// Makes a client that introduces itself with this user agent.
    ///
    /// # Errors
    ///
    /// TLS cannot be set up.
    pub fn new(user_agent: &str, limits: Limits) -> Result<Self, HttpError> {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // An error means that there is a provider already.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        let http = reqwest::Client::builder()
            .user_agent(user_agent)
            .redirect(reqwest::redirect::Policy::none())
            // A proxy would connect to addresses that are not checked here.
            .no_proxy()
            .referer(false)
            .dns_resolver(Arc::new(address::CheckedNames { allow_private: limits.allow_private }))
            .connect_timeout(limits.timeout)
            .build()
            .map_err(HttpError::Setup)?;
        Ok(Self { http, limits, turns: Mutex::default() })
    }

    /// Returns what requests may take.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Makes a request and follows its redirects.
    ///
    /// # Errors
    ///
    /// There is no answer, or it is not acceptable. An answer with any status is an answer.
    pub async fn get(&self, request: Request) -> Result<Answer, HttpError> {
        let body_bytes = request.body_bytes.unwrap_or(self.limits.body_bytes);
        let mut headers: HeaderMap = request.headers.iter().cloned().collect();
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip, br, deflate"));
        let mut url = request.url.clone();
        let mut all_permanent = true;
        let mut left = self.limits.timeout;
        for _ in 0..=self.limits.redirects {
            let turn = self.turn_of(&url);
            // The wait for others who ask the same host does not count.
            let turn = turn.lock().await;
            let begin = Instant::now();
            let hop = tokio::time::timeout(left, self.ask(&url, &headers, body_bytes)).await;
            drop(turn);
            left = left.saturating_sub(begin.elapsed());
            match hop {
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    let (url, limit) = (shown(&request.url), self.limits.timeout);
                    return Err(HttpError::Timeout { url, limit });
                }
                Ok(Ok(Hop::Final { status, headers, body })) => {
                    let moved_to = (all_permanent && url != request.url).then(|| url.clone());
                    return Ok(Answer { status, headers, body, url, moved_to });
                }
                Ok(Ok(Hop::Redirect { status, location })) => {
                    let next = next_address(&url, &location)?;
                    all_permanent &= matches!(status, 301 | 308);
                    if next.origin() != url.origin() {
                        remove_secrets(&mut headers);
                    }
                    url = next;
                }
            }
        }
        Err(HttpError::Redirects { url: shown(&request.url), most: self.limits.redirects })
    }

    /// Asks one address once.
    async fn ask(
        &self,
        url: &Url,
        headers: &HeaderMap,
        body_bytes: usize,
    ) -> Result<Hop, HttpError> {
        let response = self.send(url, headers).await?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        if let (301 | 302 | 303 | 307 | 308, Some(location)) =
            (status, headers.get(header::LOCATION))
        {
            return Ok(Hop::Redirect { status, location: location.clone() });
        }
        let body = self.read_body(url, response, body_bytes).await?;
        Ok(Hop::Final { status, headers, body })
    }

    async fn send(&self, url: &Url, headers: &HeaderMap) -> Result<reqwest::Response, HttpError> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(HttpError::Scheme(shown(url)));
        }
        let literal = match url.host() {
            Some(Host::Ipv4(ip)) => Some(ip.into()),
            Some(Host::Ipv6(ip)) => Some(ip.into()),
            Some(Host::Domain(_)) | None => None,
        };
        let is_refused = |ip| !self.limits.allow_private && !is_public(ip);
        if literal.is_some_and(is_refused) {
            return Err(HttpError::Private(shown(url)));
        }
        let sent = self.http.get(url.clone()).headers(headers.clone()).send().await;
        let response = sent.map_err(|error| transport_error(url, error))?;
        // The name was checked already; this is for whatever else may have chosen the peer.
        if response.remote_addr().as_ref().map(SocketAddr::ip).is_some_and(is_refused) {
            return Err(HttpError::Private(shown(url)));
        }
        Ok(response)
    }

    async fn read_body(
        &self,
        url: &Url,
        mut response: reqwest::Response,
        body_bytes: usize,
    ) -> Result<Vec<u8>, HttpError> {
        let body_error = |source| HttpError::Body { url: shown(url), source };
        let mut packed = Vec::new();
        while let Some(piece) =
            response.chunk().await.map_err(|error| transport_error(url, error))?
        {
            if packed.len() + piece.len() > body_bytes {
                return Err(body_error(BodyError::TooLarge { most: body_bytes }));
            }
            packed.extend_from_slice(&piece);
        }
        let coding = response.headers().get(header::CONTENT_ENCODING);
        let coding = coding.and_then(|coding| coding.to_str().ok()).unwrap_or_default();
        unpack(packed, coding, body_bytes).map_err(body_error)
    }

    /// Returns the lock of the host's turns.
    fn turn_of(&self, url: &Url) -> Arc<tokio::sync::Mutex<()>> {
        let host = url.host_str().unwrap_or_default().to_owned();
        let mut turns = self.turns.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if turns.len() >= HOSTS_MAX {
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        }
        turns.entry(host).or_default().clone()
    }
}

/// What one address answered.
enum Hop {
    /// That another address is to be asked.
    Redirect { status: u16, location: HeaderValue },
    /// Anything else.
    Final { status: u16, headers: HeaderMap, body: Vec<u8> },
}

/// Removes what only the host that it was given for may know.
fn remove_secrets(headers: &mut HeaderMap) {
    let secret = headers.iter().filter(|(_, value)| value.is_sensitive());
    let secret: Vec<HeaderName> = secret.map(|(name, _)| name.clone()).collect();
    for name in secret {
        headers.remove(name);
    }
}

/// Returns the address without a password and without what may be a secret behind the `?`.
pub fn shown(url: &Url) -> String {
    let mut url = url.clone();
    if url.password().is_some() || !url.username().is_empty() {
        let _ = url.set_username("");
        let _ = url.set_password(None);
    }
    if url.query().is_some() {
        url.set_query(Some("..."));
    }
    url.into()
}

/// Returns where a redirect leads.
fn next_address(from: &Url, location: &HeaderValue) -> Result<Url, HttpError> {
    // Locations are often UTF-8, though the rules say ASCII.
    let location = String::from_utf8_lossy(location.as_bytes());
    let Ok(mut next) = from.join(location.trim()) else {
        return Err(HttpError::Location { url: shown(from), location: location.into_owned() });
    };
    if from.scheme() == "https" && next.scheme() != "https" {
        return Err(HttpError::Unencrypted { from: shown(from), to: shown(&next) });
    }
    next.set_fragment(None);
    Ok(next)
}

fn transport_error(url: &Url, error: reqwest::Error) -> HttpError {
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(error) = cause {
        if error.is::<address::PrivateName>() {
            return HttpError::Private(shown(url));
        }
        cause = error.source();
    }
    // reqwest repeats the address, with its query.
    HttpError::Transport { url: shown(url), source: error.without_url() }
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;
    use url::Url;

    use super::{HttpError, next_address, shown};

    fn next(from: &str, location: &str) -> Result<String, HttpError> {
        let from = Url::parse(from).unwrap();
        next_address(&from, &HeaderValue::from_bytes(location.as_bytes()).unwrap())
            .map(String::from)
    }

    #[test]
    fn a_redirect_leads_anywhere_but_out_of_encryption() {
        assert_eq!(next("http://a.example/x", "/y").unwrap(), "http://a.example/y");
        assert_eq!(
            next("http://a.example/x", "https://b.example/é#z").unwrap(),
            "https://b.example/%C3%A9"
        );
        let refused = next("https://a.example/x", "http://a.example/y");
        assert!(matches!(refused, Err(HttpError::Unencrypted { .. })));
        assert!(matches!(
            next("https://a.example/", "ftp://b/"),
            Err(HttpError::Unencrypted { .. })
        ));
        assert!(matches!(next("http://a.example/", "http://[/"), Err(HttpError::Location { .. })));
    }

    #[test]
    fn passwords_and_queries_are_not_shown() {
        let url = Url::parse("https://me:secret@example.org/x?token=secret").unwrap();
        assert_eq!(shown(&url), "https://example.org/x?...");
    }
}
