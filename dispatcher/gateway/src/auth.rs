//! Access control: bearer tokens with scopes, and which browser pages are served.
//!
//! A token has 16 bytes or more and is known only to its holder and this process. The process keeps
//! only its SHA-256, so that neither a log nor a core dump holds a token longer than a request
//! lasts. A request's token is compared with all tokens in constant time, so the time of a
//! comparison reveals nothing about a correct token.
//!
//! Without tokens every client that reaches the address may do everything. The address is a
//! loopback address then, and its clients are programs of this machine and pages in its browser. A
//! page of another site is recognised by its `Origin`; a page that made its own name resolve to
//! this machine (DNS rebinding), by its `Host`.

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Request, Version, header};
use ion_model::text::{QUOTE_MAX, cut, quote};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};

use super::problem::{Problem, ProblemKind};

/// The minimum bytes of a token: a shorter one can be guessed.
const TOKEN_MIN: usize = 16;

/// A permission of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Create events.
    EventsWrite,
    /// Read events, their files, and traces.
    EventsRead,
    /// Read the logs of jobs.
    JobsRead,
    /// Cancel jobs.
    JobsWrite,
    /// Send payloads through chains.
    ChainsRun,
    /// Read metrics.
    MetricsRead,
    /// Read sources, their runs, and what they may be made of.
    SourcesRead,
    /// Add, change, run and remove sources.
    SourcesWrite,
}

impl Scope {
    /// All scopes.
    pub const ALL: [Self; 8] = [
        Self::EventsWrite,
        Self::EventsRead,
        Self::JobsRead,
        Self::JobsWrite,
        Self::ChainsRun,
        Self::MetricsRead,
        Self::SourcesRead,
        Self::SourcesWrite,
    ];

    /// Returns the scope's name in a list of tokens.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EventsWrite => "events:write",
            Self::EventsRead => "events:read",
            Self::JobsRead => "jobs:read",
            Self::JobsWrite => "jobs:write",
            Self::ChainsRun => "chains:run",
            Self::MetricsRead => "metrics:read",
            Self::SourcesRead => "sources:read",
            Self::SourcesWrite => "sources:write",
        }
    }
}

/// The reasons a file that only its owner may read is not read.
#[derive(Debug, thiserror::Error)]
pub enum PrivateFileError {
    /// The file cannot be read.
    #[error("{path} cannot be read")]
    Read {
        /// The file.
        path: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Other users may read the file.
    #[error("{path} holds secrets, but other users may read it; run `chmod 600 {path}`")]
    Open {
        /// The file.
        path: String,
    },
}

/// Reads a file that only its owner may read.
///
/// # Errors
/// When other users may read the file too, or it cannot be read.
pub fn read_private_file(path: &Path) -> Result<Vec<u8>, PrivateFileError> {
    let name = || path.display().to_string();
    let read = |source| PrivateFileError::Read { path: name(), source };
    let mode = path.metadata().map_err(read)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(PrivateFileError::Open { path: name() });
    }
    std::fs::read(path).map_err(read)
}

/// The reasons a list of tokens cannot be used. No error contains a token.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// The file cannot be read, or other users may read it.
    #[error(transparent)]
    File(#[from] PrivateFileError),
    /// The line is not a valid token entry.
    #[error("line {line} of the tokens")]
    Wrong {
        /// The line's number, from 1.
        line: usize,
        /// What is wrong, and what is allowed.
        #[source]
        problem: TokenProblem,
    },
}

/// What is wrong with one line of a list of tokens.
#[derive(Debug, thiserror::Error)]
pub enum TokenProblem {
    /// The line does not have three words.
    #[error("NAME SCOPE,SCOPE TOKEN is needed")]
    Form,
    /// No scope has this name.
    #[error("no scope is {0:?}; allowed: all, {all}", all = Scope::ALL.map(Scope::as_str).join(", "))]
    NoScope(String),
    /// The digest of the token has the wrong length, or is not hexadecimal.
    #[error("\"sha256:\" needs 64 hexadecimal digits after it")]
    Digest,
    /// The token of this name can be guessed.
    #[error(
        "the token of {0:?} is short: it needs at least {TOKEN_MIN} characters; `openssl rand -hex \
         16` prints a good one"
    )]
    Short(String),
    /// An earlier line has a token of this name.
    #[error("there is a token {0:?} already")]
    Twice(String),
}

/// The authenticated sender of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Principal {
    /// The name of the sender's token; `anybody` on a gateway without tokens.
    pub(super) name: String,
    scopes: Vec<Scope>,
}

impl Principal {
    /// Returns the sender of a request to a gateway without tokens, who may do everything.
    pub(super) fn anybody() -> Self {
        Self { name: "anybody".into(), scopes: Scope::ALL.to_vec() }
    }

    /// Returns whether the sender's token has this scope.
    pub(super) fn has_scope(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }
}

#[derive(Clone, Debug)]
struct Token {
    name: String,
    scopes: Vec<Scope>,
    digest: [u8; 32],
}

/// The tokens that a gateway accepts.
#[derive(Clone, Debug, Default)]
pub struct Tokens(Vec<Token>);

impl Tokens {
    /// Parses a list of tokens, one per line: `NAME SCOPE,SCOPE TOKEN`. `all` stands for every
    /// scope, `sha256:HEX` for a token of which only the SHA-256 is given. Empty lines and lines
    /// that begin with `#` are ignored.
    ///
    /// # Errors
    /// The first line that is not a valid entry.
    pub fn parse(text: &str) -> Result<Self, TokensError> {
        let mut tokens: Vec<Token> = Vec::new();
        for (n, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |problem| TokensError::Wrong { line: n + 1, problem };
            let token = Token::parse(line).map_err(wrong)?;
            if tokens.iter().any(|other| other.name == token.name) {
                return Err(wrong(TokenProblem::Twice(token.name)));
            }
            tokens.push(token);
        }
        Ok(Self(tokens))
    }

    /// Reads the tokens from a file that only its owner may read.
    ///
    /// # Errors
    /// When other users may read the file too, or it is not a list of tokens.
    pub fn load(path: &Path) -> Result<Self, TokensError> {
        Self::parse(&String::from_utf8_lossy(&read_private_file(path)?))
    }

    /// Returns a list with one token of one scope.
    pub fn single(name: &str, scope: Scope, token: &str) -> Self {
        Self(vec![Token {
            name: name.to_owned(),
            scopes: vec![scope],
            digest: digest(token.as_bytes()),
        }])
    }

    /// Returns these tokens and the others. Two tokens with the same name are both accepted.
    #[must_use]
    pub fn merged_with(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    /// Returns whether there are no tokens, so that every client may do everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the sender of a request with these headers, or the problem if they lack the scope.
    pub(super) fn authorize(
        &self,
        headers: &HeaderMap,
        scope: Scope,
    ) -> Result<Principal, Problem> {
        if self.is_empty() {
            return Ok(Principal::anybody());
        }
        let challenge = |parameters: &str| {
            let text = format!("Bearer realm=\"ion\"{parameters}");
            HeaderValue::try_from(text).expect("the program's own text is a valid header value")
        };
        let Some(presented) = bearer_token(headers) else {
            let detail = "send the header \"Authorization: Bearer TOKEN\" with a token of the \
                          gateway's list";
            return Err(Problem::new(ProblemKind::TokenNeeded, detail)
                .with_header(header::WWW_AUTHENTICATE, challenge("")));
        };
        let presented = digest(presented);
        let (mut found, mut at) = (Choice::from(0), 0_u32);
        for (n, token) in (0_u32..).zip(&self.0) {
            let same = token.digest.ct_eq(&presented);
            at.conditional_assign(&n, same);
            found |= same;
        }
        let token = self.0.get(usize::try_from(at).unwrap_or(usize::MAX)).filter(|_| found.into());
        let Some(token) = token else {
            let value = challenge(", error=\"invalid_token\"");
            let detail = "the gateway does not know this token; send one of its list of tokens";
            return Err(Problem::new(ProblemKind::TokenNeeded, detail)
                .with_header(header::WWW_AUTHENTICATE, value));
        };
        if !token.scopes.contains(&scope) {
            let scope = scope.as_str();
            let value = challenge(&format!(", error=\"insufficient_scope\", scope=\"{scope}\""));
            let detail = format!(
                "token {:?} lacks the scope {scope}; add it in the gateway's list of tokens",
                token.name
            );
            let problem =
                Problem::new(ProblemKind::ScopeNeeded, detail).with_member("scope", scope);
            return Err(problem.with_header(header::WWW_AUTHENTICATE, value));
        }
        Ok(Principal { name: token.name.clone(), scopes: token.scopes.clone() })
    }
}

impl Token {
    fn parse(line: &str) -> Result<Self, TokenProblem> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, scopes, secret] = words[..] else {
            return Err(TokenProblem::Form);
        };
        let scopes = if scopes == "all" {
            Scope::ALL.to_vec()
        } else {
            let known = |word: &str| Scope::ALL.into_iter().find(|scope| scope.as_str() == word);
            let scope =
                |word: &str| known(word).ok_or_else(|| TokenProblem::NoScope(word.to_owned()));
            scopes.split(',').map(scope).collect::<Result<_, _>>()?
        };
        let digest = match secret.strip_prefix("sha256:") {
            Some(hex) => unhex(hex).ok_or(TokenProblem::Digest)?,
            None if secret.len() < TOKEN_MIN => {
                return Err(TokenProblem::Short(name.to_owned()));
            }
            None => digest(secret.as_bytes()),
        };
        Ok(Self { name: name.to_owned(), scopes, digest })
    }
}

fn digest(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
}

/// Returns the bytes of 64 hexadecimal digits.
pub(super) fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text
        .chars()
        .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    if digits.len() == 64 { bytes.try_into().ok() } else { None }
}

/// Returns the bearer token of a request.
fn bearer_token(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token.trim_ascii())
}

/// The host names that this gateway answers to, and so which pages are its own.
#[derive(Clone, Debug)]
pub(super) struct AllowedHosts {
    /// Allowed host names, beside this machine's own.
    pub(super) allowed: Vec<String>,
    /// Whether every other name is allowed too: with tokens it is, because a foreign page knows no
    /// token.
    pub(super) any: bool,
}

impl AllowedHosts {
    /// Refuses requests that a page of another site sends, and requests for a host that is not this
    /// machine's.
    pub(super) fn check_request<B>(&self, request: &Request<B>) -> Result<(), Problem> {
        let (method, headers) = (request.method(), request.headers());
        let host = host_of(request)?;
        // A request may name a host in its first line too. A proxy may act on that one, so both are
        // checked.
        let in_target = request.uri().authority().map(Authority::as_str);
        if in_target.is_some_and(|named| named.contains('@')) {
            let detail = "the request's first line names a user before the host; leave it out";
            return Err(Problem::new(ProblemKind::Malformed, detail));
        }
        for named in [Some(host), in_target].into_iter().flatten() {
            let authority = named.parse::<Authority>().ok();
            let name = authority.as_ref().map_or("", Authority::host);
            if !self.any && !self.answers_to(name) {
                let named = quote(named);
                let detail = format!(
                    "{named} is not a name of this machine; allow it with --gateway-host, or use \
                     localhost"
                );
                return Err(Problem::new(ProblemKind::ForeignHost, detail));
            }
        }
        let host = in_target.unwrap_or(host);
        let foreign = |from: &str| {
            let from = cut(from, QUOTE_MAX);
            let detail = format!(
                "a page of {from} sent this request, and the gateway only serves its own pages"
            );
            Err(Problem::new(ProblemKind::ForeignOrigin, detail))
        };
        if let Some(origin) = headers.get(header::ORIGIN) {
            let origin = origin.to_str().unwrap_or("an unreadable origin");
            let of = origin.split_once("://").map_or("", |(_, authority)| authority);
            // A proxy may have changed the Host header, so an origin with an allowed name is
            // accepted.
            let of_name = of.parse::<Authority>().is_ok_and(|of| self.allows(of.host()));
            if !of.eq_ignore_ascii_case(host) && !of_name {
                return foreign(origin);
            }
        }
        // Browsers send this header where they leave out the origin. A link that opens a document
        // does no harm.
        let site = headers.get("sec-fetch-site").and_then(|site| site.to_str().ok());
        if matches!(site, Some("cross-site" | "same-site")) && !method.is_safe() {
            return foreign("another site");
        }
        Ok(())
    }

    fn answers_to(&self, name: &str) -> bool {
        let plain = name.trim_start_matches('[').trim_end_matches(']');
        let own = plain.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        own || name.eq_ignore_ascii_case("localhost") || self.allows(name)
    }

    fn allows(&self, name: &str) -> bool {
        self.allowed.iter().any(|allowed| name.eq_ignore_ascii_case(allowed))
    }
}

/// Returns the host of a request, from its Host header; empty if HTTP/1.0 leaves it out. RFC 9112
/// requires that everything else is refused: two servers in a row must not take one request for
/// requests to different hosts.
fn host_of<B>(request: &Request<B>) -> Result<&str, Problem> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let malformed = |detail| Err(Problem::new(ProblemKind::Malformed, detail));
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host,
        (Some(_), Some(_)) => {
            return malformed("the request has several Host headers; one is allowed");
        }
        (None, _) if request.version() < Version::HTTP_11 => return Ok(""),
        (None, _) => return malformed("the request has no Host header; HTTP/1.1 needs one"),
    };
    match host.to_str() {
        Ok("") => Ok(""),
        Ok(host) if !host.contains('@') && host.parse::<Authority>().is_ok() => Ok(host),
        _ => {
            malformed("the Host header is not a host with or without a port, as in localhost:8080")
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Method;
    use ion_model::errors::error_chain;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn request(method: Method, target: &str, pairs: &[(&'static str, &str)]) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() = target.parse().unwrap();
        for (name, value) in pairs {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        request
    }

    #[test]
    fn a_token_may_do_what_its_scopes_say() {
        let digest = ion_model::checksum::hex(&digest(b"of which only the sum is known"));
        let list = format!(
            "# who\n\nci events:write,events:read 0123456789abcdef\nops all sha256:{digest}\nend metrics:read 0123456789abcdeg\n"
        );
        let tokens = Tokens::parse(&list).unwrap();
        let with =
            |token: &str, scope| tokens.authorize(&headers(&[("authorization", token)]), scope);
        let name = |token: &str, scope| with(token, scope).map(|principal| principal.name).ok();
        let kind = |token: &str, scope| with(token, scope).map_err(|problem| problem.kind()).err();
        assert_eq!(name("Bearer 0123456789abcdef", Scope::EventsWrite).as_deref(), Some("ci"));
        assert_eq!(name("bearer  0123456789abcdef", Scope::EventsRead).as_deref(), Some("ci"));
        assert_eq!(
            name("Bearer of which only the sum is known", Scope::ChainsRun).as_deref(),
            Some("ops")
        );
        assert_eq!(name("Bearer 0123456789abcdeg", Scope::MetricsRead).as_deref(), Some("end"));
        assert_eq!(
            kind("Bearer 0123456789abcdef", Scope::JobsRead),
            Some(ProblemKind::ScopeNeeded)
        );
        for wrong in ["Bearer 0123456789abcdeh", "Bearer ", "Bearer", "Basic 0123456789abcdef", ""]
        {
            assert_eq!(kind(wrong, Scope::EventsRead), Some(ProblemKind::TokenNeeded), "{wrong}");
        }
        assert!(tokens.authorize(&HeaderMap::new(), Scope::EventsRead).is_err());
        assert!(Tokens::default().authorize(&HeaderMap::new(), Scope::EventsRead).is_ok());
    }

    #[test]
    fn a_list_that_is_wrong_is_refused_without_its_tokens() {
        for (line, why) in [
            ("ci events:write", "is needed"),
            ("ci events:all 0123456789abcdef", "allowed: all, events:write"),
            ("ci all short", "openssl"),
            ("ci all sha256:0123456789abcdef", "64 hexadecimal"),
            ("a all 0123456789abcdef\na all 0123456789abcdef", "already"),
        ] {
            let error = error_chain(&Tokens::parse(line).unwrap_err());
            assert!(error.contains(why) && !error.contains("0123456789abcdef"), "{error}");
        }
    }

    #[test]
    fn pages_of_other_sites_are_refused_and_programs_are_not() {
        let hosts = AllowedHosts { allowed: vec!["ion.example".into()], any: false };
        let kind = |method: Method, pairs: &[(&'static str, &str)]| {
            hosts
                .check_request(&request(method, "/", pairs))
                .map_err(|problem| problem.kind())
                .err()
        };
        for host in ["localhost:8080", "127.0.0.1:8080", "127.8.9.1", "[::1]:8080", "ION.example"] {
            assert_eq!(kind(Method::POST, &[("host", host)]), None, "{host}");
        }
        for host in ["evil.example:8080", "", "localhost.evil.example", "10.0.0.1"] {
            assert_eq!(
                kind(Method::GET, &[("host", host)]),
                Some(ProblemKind::ForeignHost),
                "{host}"
            );
        }
        let page = |origin| [("host", "localhost:8080"), ("origin", origin)];
        assert_eq!(kind(Method::POST, &page("http://localhost:8080")), None);
        assert_eq!(
            kind(Method::POST, &page("https://ion.example")),
            None,
            "a proxy stands before the gateway"
        );
        for origin in ["http://evil.example", "null", "http://localhost:9999"] {
            assert_eq!(
                kind(Method::POST, &page(origin)),
                Some(ProblemKind::ForeignOrigin),
                "{origin}"
            );
        }
        let quiet = [("host", "localhost"), ("sec-fetch-site", "cross-site")];
        assert_eq!(kind(Method::POST, &quiet), Some(ProblemKind::ForeignOrigin));
        assert_eq!(kind(Method::GET, &quiet), None);
        let open = AllowedHosts { allowed: vec![], any: true };
        assert!(open.check_request(&request(Method::GET, "/", &[("host", "any.example")])).is_ok());
    }

    #[test]
    fn a_request_names_one_host_and_names_it_once() {
        let closed = AllowedHosts { allowed: vec![], any: false };
        let open = AllowedHosts { allowed: vec![], any: true };
        let kind = |hosts: &AllowedHosts, target: &str, pairs: &[(&'static str, &str)]| {
            hosts
                .check_request(&request(Method::GET, target, pairs))
                .map_err(|problem| problem.kind())
                .err()
        };
        for wrong in [
            &[][..],
            &[("host", "localhost"), ("host", "localhost")],
            &[("host", "localhost"), ("host", "evil.example")],
            &[("host", "evil.example@localhost")],
            &[("host", "local host")],
        ] {
            for hosts in [&closed, &open] {
                assert_eq!(kind(hosts, "/", wrong), Some(ProblemKind::Malformed), "{wrong:?}");
            }
        }
        let local = [("host", "localhost:8080")];
        assert_eq!(kind(&closed, "http://localhost:8080/healthz", &local), None);
        assert_eq!(
            kind(&closed, "http://evil.example/healthz", &local),
            Some(ProblemKind::ForeignHost)
        );
        assert_eq!(
            kind(&closed, "http://localhost/", &[("host", "evil.example")]),
            Some(ProblemKind::ForeignHost)
        );
        assert_eq!(kind(&open, "http://any.example/healthz", &local), None);
        for hosts in [&closed, &open] {
            assert_eq!(
                kind(hosts, "http://evil.example@localhost:8080/", &local),
                Some(ProblemKind::Malformed)
            );
        }
        let mut old = request(Method::GET, "/", &[]);
        *old.version_mut() = Version::HTTP_10;
        assert!(open.check_request(&old).is_ok());
        assert_eq!(
            closed.check_request(&old).map_err(|problem| problem.kind()).err(),
            Some(ProblemKind::ForeignHost)
        );
    }
}
