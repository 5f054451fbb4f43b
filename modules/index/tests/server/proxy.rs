//! A proxy between the program and the server under test, which fails as a test plans it. It has
//! real sockets, so that a connection can be cut at any point.

use std::io::{BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::search;

/// What the proxy does with a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fault {
    /// Hands it on, and the answer back.
    None,
    /// Answers with this status, headers and JSON, without the server.
    Answer(u16, Vec<(&'static str, String)>, Value),
    /// Closes the connection before the server gets anything.
    CutBefore,
    /// Closes the connection when the server has done it.
    CutAfter,
    /// Sends the first half of the server's answer, and closes the connection.
    CutAnswer,
    /// Hands on some documents of a bulk request, and answers for each other one with this status.
    Partial { refused: Vec<usize>, status: u16 },
    /// Takes this long before it hands the request on.
    Slow(Duration),
    /// Answers that each document was created, without the server.
    Pretend,
}

impl Fault {
    /// An answer with a status and nothing else.
    pub(crate) fn status(status: u16) -> Self {
        Self::Answer(status, vec![], Value::Null)
    }
}

/// A request as it came, decompressed.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The bytes of the body on the wire.
    pub(crate) wire_bytes: usize,
    pub(crate) at: Instant,
}

impl Seen {
    pub(crate) fn is_bulk(&self) -> bool {
        self.path.starts_with("/_bulk?filter_path=")
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Returns the documents of a bulk request with the lines that say what to do with them.
    pub(crate) fn documents(&self) -> Vec<(&str, &str)> {
        let text = std::str::from_utf8(&self.body).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len() % 2, 0);
        lines.chunks(2).map(|pair| (pair[0], pair[1])).collect()
    }
}

type Plan = Box<dyn FnMut(&Seen) -> Fault + Send>;

/// A running proxy. It takes no connections any more when it is dropped.
pub(crate) struct Proxy {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

struct Shared {
    plan: Mutex<Plan>,
    seen: Mutex<Vec<Seen>>,
    tls: Option<Arc<ServerConfig>>,
}

impl Proxy {
    /// Starts a proxy that asks `plan` about each request.
    pub(crate) fn start(plan: impl FnMut(&Seen) -> Fault + Send + 'static) -> Self {
        Self::start_with(Box::new(plan), None)
    }

    /// Starts a proxy that speaks TLS and hands everything on.
    pub(crate) fn start_tls(config: ServerConfig) -> Self {
        Self::start_with(Box::new(|_| Fault::None), Some(Arc::new(config)))
    }

    /// Starts a proxy that asks `plan` about each bulk request, with its number from 0.
    pub(crate) fn for_bulks(mut plan: impl FnMut(usize, &Seen) -> Fault + Send + 'static) -> Self {
        let mut number = 0;
        Self::start(move |seen| {
            if !seen.is_bulk() {
                return Fault::None;
            }
            number += 1;
            plan(number - 1, seen)
        })
    }

    fn start_with(plan: Plan, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let shared = Arc::new(Shared { plan: Mutex::new(plan), seen: Mutex::default(), tls });
        let weak = Arc::downgrade(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Some(shared) = weak.upgrade() else { return };
                thread::spawn(move || shared.serve(stream.unwrap()));
            }
        });
        Self { url: format!("{scheme}://{address}"), shared }
    }

    /// Returns the requests so far.
    pub(crate) fn seen(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.shared.seen.lock().unwrap()
    }

    /// Returns the bulk requests so far.
    pub(crate) fn bulks(&self) -> Vec<Seen> {
        self.seen().iter().filter(|seen| seen.is_bulk()).cloned().collect()
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) {
        stream.set_nodelay(true).unwrap();
        match &self.tls {
            None => self.serve_requests(stream),
            Some(config) => {
                let connection = ServerConnection::new(config.clone()).unwrap();
                self.serve_requests(StreamOwned::new(connection, stream));
            }
        }
    }

    /// Serves one connection until it is cut, by either side.
    fn serve_requests(&self, stream: impl Read + Write) {
        let mut stream = BufReader::new(stream);
        while let Some(seen) = read_request(&mut stream) {
            self.seen.lock().unwrap().push(seen.clone());
            let fault = (self.plan.lock().unwrap())(&seen);
            let Some(answer) = answer(&seen, &fault) else { return };
            let end = if fault == Fault::CutAnswer { answer.len() / 2 } else { answer.len() };
            let sent = stream.get_mut().write_all(&answer[..end]);
            if sent.and_then(|()| stream.get_mut().flush()).is_err() || end < answer.len() {
                return;
            }
        }
    }
}

fn read_request(stream: &mut impl std::io::BufRead) -> Option<Seen> {
    let mut lines = vec![];
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        match line.trim_end() {
            "" if lines.is_empty() => return None,
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut words = lines[0].split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let headers: Vec<_> = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let header = |name: &str| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value);
    let length = header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    if header("content-encoding").is_some_and(|coding| coding == "gzip") {
        let mut plain = vec![];
        GzDecoder::new(&body[..]).read_to_end(&mut plain).unwrap();
        body = plain;
    }
    Some(Seen { method, path, headers, body, wire_bytes: length, at: Instant::now() })
}

/// Returns the answer to a request, or `None` if the connection is to be cut.
fn answer(seen: &Seen, fault: &Fault) -> Option<Vec<u8>> {
    match fault {
        Fault::None | Fault::CutAnswer => Some(forward(seen)),
        Fault::CutBefore => None,
        Fault::CutAfter => {
            forward(seen);
            None
        }
        Fault::Slow(time) => {
            thread::sleep(*time);
            Some(forward(seen))
        }
        Fault::Answer(status, headers, body) => {
            let body = if body.is_null() { String::new() } else { body.to_string() };
            Some(response(*status, "application/json", headers, body.as_bytes()))
        }
        Fault::Pretend => {
            let items = vec![json!({"create": {"status": 201}}); seen.documents().len()];
            let body = json!({"items": items}).to_string();
            Some(response(200, "application/json", &[], body.as_bytes()))
        }
        Fault::Partial { refused, status } => Some(forward_partly(seen, refused, *status)),
    }
}

fn forward(seen: &Seen) -> Vec<u8> {
    let kind = seen.header("content-type").unwrap_or("application/json");
    let (status, kind, body) = search::send(&seen.method, &seen.path, kind, seen.body.clone());
    response(status, &kind, &[], &body)
}

/// Hands on all documents but the refused ones.
fn forward_partly(seen: &Seen, refused: &[usize], status: u16) -> Vec<u8> {
    let documents = seen.documents();
    let is_taken = |n: &usize| !refused.contains(n);
    let taken: Vec<_> = (0..documents.len()).filter(is_taken).collect();
    let mut answers = vec![].into_iter();
    if !taken.is_empty() {
        let body: String =
            taken.iter().map(|n| format!("{}\n{}\n", documents[*n].0, documents[*n].1)).collect();
        let (_, _, answer) =
            search::send("POST", &seen.path, "application/x-ndjson", body.into_bytes());
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        answers = answer["items"].as_array().unwrap().clone().into_iter();
    }
    let error = json!({"type": "rejected_execution_exception", "reason": "the queue is full"});
    let items: Vec<_> = documents
        .iter()
        .enumerate()
        .map(|(n, (action, _))| {
            if is_taken(&n) {
                return answers.next().unwrap();
            }
            let action: Value = serde_json::from_str(action).unwrap();
            let verb = action.as_object().unwrap().keys().next().unwrap();
            json!({verb: {"status": status, "error": error}})
        })
        .collect();
    response(200, "application/json", &[], json!({"items": items}).to_string().as_bytes())
}

fn response(status: u16, kind: &str, headers: &[(&str, String)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n", body.len());
    for (key, value) in [("content-type", kind.to_owned())].iter().chain(headers) {
        head.push_str(&format!("{key}: {value}\r\n"));
    }
    [head.as_bytes(), b"\r\n", body].concat()
}
