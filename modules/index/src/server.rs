//! The server, over HTTP. No other file names the library that speaks it.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER,
};
use reqwest::{Certificate, Client, Method, Url};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::answer::{ServerError, advice, is_temporary};
use crate::error::{IndexError, error_chain};
use crate::retry::{Patience, RetrySettings, read_retry_after, wait};
use crate::settings::{SecretNames, ServerSettings};

/// How long a connection may take. 10 s outlasts a lost packet or two; a server that takes longer
/// is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest answer. The answer to 100,000 documents with long errors has 64 MiB.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The largest secret. 64 KiB: nobody's password is longer, and a wrong file is not read whole.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// What of the answer to a bulk request is asked for. The rest repeats what was sent.
const BULK_PATH: &str = "_bulk?filter_path=items.*.status,items.*.error,error,status";

/// A server and the right to use it.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    client: Client,
    base: Url,
    gzip: bool,
}

/// An answer, whatever its status.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) body: Vec<u8>,
}

/// A request without an answer.
#[derive(Debug)]
pub(crate) struct Unanswered {
    pub(crate) reason: String,
    /// Whether the server may have got the request, so that nobody knows what it did.
    pub(crate) was_sent: bool,
    /// Whether the same will come of every other request.
    pub(crate) is_final: bool,
}

/// One request that is not a bulk request.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    method: Method,
    path: String,
    body: Option<(&'static str, Vec<u8>)>,
    /// What the server is asked to do, for people.
    act: &'a str,
}

impl<'a> Request<'a> {
    pub(crate) fn get(path: impl Into<String>, act: &'a str) -> Self {
        Self { method: Method::GET, path: path.into(), body: None, act }
    }

    pub(crate) fn put(path: impl Into<String>, body: &Value, act: &'a str) -> Self {
        let body = Some(("application/json", body.to_string().into_bytes()));
        Self { method: Method::PUT, path: path.into(), body, act }
    }

    pub(crate) fn post(path: impl Into<String>, body: &Value, act: &'a str) -> Self {
        Self { method: Method::POST, ..Self::put(path, body, act) }
    }

    pub(crate) fn bulk(path: impl Into<String>, body: &str, act: &'a str) -> Self {
        let body = Some(("application/x-ndjson", body.as_bytes().to_vec()));
        Self { method: Method::POST, path: path.into(), body, act }
    }
}

impl Server {
    /// Reads the credentials and prepares the client. Nothing is sent yet.
    pub(crate) fn connect(settings: &ServerSettings) -> Result<Self, IndexError> {
        let base = parse_url(&settings.url)?;
        let mut headers = HeaderMap::new();
        if let Some(credentials) = authorization(&settings.secrets)? {
            if base.scheme() == "http" && !is_loopback(&base) {
                tracing::warn!(
                    "{base} gets the credentials over plain http, so everybody on the way can read \
                     them: use https"
                );
            }
            headers.insert(AUTHORIZATION, credentials);
        }
        // Another provider may already be installed by the process that uses this crate.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = Client::builder()
            .http1_only()
            .user_agent(concat!("ion-index/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(settings.timeout)
            // A busy server may leave a request unread for long. Without this, the library gives
            // up the connection after 30 s, whatever the time-out is.
            .tcp_user_timeout(settings.timeout)
            // A redirection would carry the credentials elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never());
        if let Some(path) = &settings.ca {
            builder = builder.tls_certs_only(read_certificates(path)?);
        }
        let client = builder
            .build()
            .map_err(|source| IndexError::Client { url: base.to_string(), source })?;
        Ok(Self { client, base, gzip: settings.gzip })
    }

    /// Returns the server's address, for people.
    pub(crate) fn address(&self) -> String {
        self.base.as_str().trim_end_matches('/').to_owned()
    }

    /// Sends a bulk request once.
    pub(crate) async fn bulk(&self, body: &[u8]) -> Result<Answer, Unanswered> {
        let request =
            self.client.post(self.locate(BULK_PATH)).header(CONTENT_TYPE, "application/x-ndjson");
        let body = Bytes::copy_from_slice(body);
        let request = if self.gzip {
            let compressed = tokio::task::spawn_blocking(move || compress(&body));
            let compressed = compressed.await.expect("compressing does not panic");
            request.header(CONTENT_ENCODING, "gzip").body(compressed)
        } else {
            request.body(body)
        };
        receive(request).await
    }

    /// Sends a request once.
    pub(crate) async fn ask(&self, request: &Request<'_>) -> Result<Answer, Unanswered> {
        let mut sent = self.client.request(request.method.clone(), self.locate(&request.path));
        if let Some((kind, body)) = &request.body {
            sent = sent.header(CONTENT_TYPE, *kind).body(body.clone());
        }
        receive(sent).await
    }

    /// Sends a request until it is answered, and answered with more than "later". It has to be one
    /// that may be done twice.
    pub(crate) async fn ask_patiently(
        &self,
        request: &Request<'_>,
        retry: RetrySettings,
        stop: &CancellationToken,
    ) -> Result<Answer, IndexError> {
        let mut patience = Patience::new(retry, Instant::now());
        loop {
            let answer = tokio::select! {
                () = stop.cancelled() => return Err(IndexError::Stopped),
                answer = self.ask(request) => answer,
            };
            let (reason, asked, is_final) = match answer {
                Ok(answer) if !is_temporary(answer.status) => return Ok(answer),
                Ok(answer) => (answer.error().to_string(), answer.retry_after, false),
                Err(unanswered) => (unanswered.reason, None, unanswered.is_final),
            };
            let next = patience.next_wait(Instant::now(), asked).filter(|_| !is_final);
            let Some(next) = next else {
                return Err(self.gave_up(request.act, patience.tried(), reason));
            };
            tracing::info!("{} has to be asked again to {}: {reason}", self.address(), request.act);
            wait(next, stop).await?;
        }
    }

    /// Returns an answer, unless it is a refusal.
    pub(crate) fn accepted(
        &self,
        answer: Answer,
        request: &Request<'_>,
    ) -> Result<Answer, IndexError> {
        match answer.status {
            200..=299 => Ok(answer),
            _ => Err(self.refused(request.act, answer.error())),
        }
    }

    pub(crate) fn refused(&self, act: &str, answer: ServerError) -> IndexError {
        let advice = advice(answer.status());
        IndexError::Refused { server: self.address(), act: act.to_owned(), answer, advice }
    }

    pub(crate) fn gave_up(&self, act: &str, tries: u32, reason: String) -> IndexError {
        IndexError::GaveUp { server: self.address(), act: act.to_owned(), tries, reason }
    }

    fn locate(&self, path: &str) -> Url {
        self.base.join(path).expect("a path of the server's interface can be joined")
    }
}

impl Answer {
    /// Reads the answer as an error.
    pub(crate) fn error(&self) -> ServerError {
        ServerError::of_body(self.status, &self.body)
    }

    /// Reads the answer as JSON; `null` stands for what is none.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

async fn receive(request: reqwest::RequestBuilder) -> Result<Answer, Unanswered> {
    let unanswered = |error: reqwest::Error| {
        let is_final = is_bad_certificate(&error);
        let was_sent = !error.is_connect();
        let mut reason = error_chain(&error.without_url());
        if is_final {
            reason.push_str("; name the file with the certificate of its authority with --ca FILE");
        }
        Unanswered { reason, was_sent, is_final }
    };
    let mut response = request.send().await.map_err(unanswered)?;
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(unanswered)? {
        if body.len() + piece.len() > ANSWER_BYTES_MAX {
            return Err(Unanswered {
                reason: format!("the answer is longer than {ANSWER_BYTES_MAX} bytes"),
                was_sent: true,
                is_final: false,
            });
        }
        body.extend_from_slice(&piece);
    }
    let header = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let retry_after = header.and_then(|text| read_retry_after(text, SystemTime::now()));
    Ok(Answer { status: response.status().as_u16(), retry_after, body })
}

/// Says whether the server's certificate is not accepted.
fn is_bad_certificate(error: &reqwest::Error) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_))) {
            return true;
        }
        // An `io::Error` does not name the error that it wraps as its source.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    false
}

fn compress(body: &[u8]) -> Vec<u8> {
    // The fastest level: documents shrink to a fifth, and better levels gain little.
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
    encoder.write_all(body).and_then(|()| encoder.finish()).expect("memory can be written")
}

fn parse_url(text: &str) -> Result<Url, IndexError> {
    let refused = |what: &str| {
        let text = "--url needs the address of a server, such as https://search.example:9200";
        Err(IndexError::Setting(format!("{text}{what}")))
    };
    // The text is not repeated: it may hold a password.
    let Ok(mut url) = Url::parse(text) else { return refused("") };
    if !url.username().is_empty() || url.password().is_some() {
        return refused(
            ", without a user and a password: put these into files, and name the files with \
             --user-from and --password-from",
        );
    }
    if !matches!(url.scheme(), "http" | "https") {
        return refused(", with http or https");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return refused(", without \"?\" and \"#\"");
    }
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(|host| {
        let address = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost"
            || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    })
}

fn read_certificates(path: &Path) -> Result<Vec<Certificate>, IndexError> {
    let text = std::fs::read(path).map_err(IndexError::file("read", path))?;
    match Certificate::from_pem_bundle(&text) {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(IndexError::Setting(format!(
            "{} has no certificate in the form PEM (\"-----BEGIN CERTIFICATE-----\"), which --ca \
             needs",
            path.display()
        ))),
    }
}

/// Returns the credentials as the value of a header, which is not shown in logs.
fn authorization(names: &SecretNames) -> Result<Option<HeaderValue>, IndexError> {
    let read = |option, name: &Option<String>| {
        name.as_deref().map(|name| read_secret(option, &names.folder, name)).transpose()
    };
    let user = read("--user-from", &names.user)?;
    let password = read("--password-from", &names.password)?;
    let api_key = read("--api-key-from", &names.api_key)?;
    let text = match (user, password, api_key) {
        (None, None, None) => return Ok(None),
        (Some(user), Some(password), None) => {
            format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
        }
        // The server gives a key as `id` and `api_key`, and as `encoded`, which is both.
        (None, None, Some(key)) if key.contains(':') => format!("ApiKey {}", STANDARD.encode(key)),
        (None, None, Some(key)) => format!("ApiKey {key}"),
        _ => {
            return Err(IndexError::Setting(
                "give either --user-from and --password-from, or --api-key-from alone".to_owned(),
            ));
        }
    };
    let mut value = HeaderValue::from_str(&text).map_err(|_| {
        IndexError::Setting(
            "the file of --api-key-from holds characters that no API key has".to_owned(),
        )
    })?;
    value.set_sensitive(true);
    Ok(Some(value))
}

fn read_secret(option: &'static str, folder: &Path, name: &str) -> Result<String, IndexError> {
    let wrong = |reason: &str| IndexError::Secret {
        option,
        folder: folder.to_owned(),
        reason: reason.to_owned(),
    };
    // A name that leads elsewhere is a mistake, or a secret in the place of a name.
    if name.is_empty() || name.contains('/') || name == ".." {
        return Err(wrong(
            "it needs the name of a file there, and not a path or the secret itself",
        ));
    }
    let path = folder.join(name);
    let unread = |error: std::io::Error| wrong(&error.kind().to_string());
    if std::fs::metadata(&path).map_err(unread)?.len() > SECRET_BYTES_MAX {
        return Err(wrong("the file is too large to be a secret"));
    }
    let text = std::fs::read_to_string(&path).map_err(unread)?;
    match text.trim_end_matches(['\n', '\r']) {
        "" => Err(wrong("the file is empty")),
        secret => Ok(secret.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> SecretNames {
        SecretNames { folder: folder.to_owned(), user: None, password: None, api_key: None }
    }

    #[test]
    fn credentials_come_from_files_and_are_not_shown() {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("user", "elastic\n"),
            ("password", "s3cret-word\n"),
            ("pair", "id:key"),
            ("key", "aWQ6a2V5\n"),
        ] {
            std::fs::write(root.path().join(name), text).unwrap();
        }
        let mut names = names(root.path());
        assert_eq!(authorization(&names).unwrap(), None);
        names.user = Some("user".into());
        assert!(matches!(authorization(&names), Err(IndexError::Setting(_))));
        names.password = Some("password".into());
        let value = authorization(&names).unwrap().unwrap();
        assert_eq!(value, format!("Basic {}", STANDARD.encode("elastic:s3cret-word")).as_str());
        assert_eq!(format!("{value:?}"), "Sensitive");
        names.api_key = Some("key".into());
        assert!(matches!(authorization(&names), Err(IndexError::Setting(_))));
        (names.user, names.password) = (None, None);
        assert_eq!(authorization(&names).unwrap().unwrap(), "ApiKey aWQ6a2V5");
        names.api_key = Some("pair".into());
        assert_eq!(authorization(&names).unwrap().unwrap(), "ApiKey aWQ6a2V5");
    }

    #[test]
    fn a_secret_in_the_place_of_its_name_is_not_repeated() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("empty"), "\n").unwrap();
        for secret in ["s3cret-word", "s3cret/word", "../s3cret-word", "empty"] {
            let names = SecretNames { password: Some(secret.into()), ..names(root.path()) };
            let error = authorization(&names).unwrap_err().to_string();
            assert!(error.contains("--password-from names no readable file in"), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn an_address_has_no_credentials() {
        assert_eq!(parse_url("https://a.example:9200").unwrap().path(), "/");
        assert_eq!(parse_url("http://a.example/search").unwrap().path(), "/search/");
        for wrong in [
            "https://elastic:s3cret-word@a.example",
            "https://s3cret-word@a.example",
            "s3cret-word",
            "ftp://a.example/s3cret-word",
            "http://a.example/?s3cret-word",
        ] {
            let error = parse_url(wrong).unwrap_err().to_string();
            assert!(error.starts_with("--url needs") && !error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for (url, expected) in [
            ("http://localhost:9200", true),
            ("http://127.0.0.1", true),
            ("http://[::1]:9200", true),
            ("http://10.0.0.1", false),
            ("http://localhost.example", false),
        ] {
            assert_eq!(is_loopback(&parse_url(url).unwrap()), expected, "{url}");
        }
    }
}
