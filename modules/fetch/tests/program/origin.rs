//! A server on a real socket that answers as a test wants.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request that the server got.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// The path with its query.
    pub(crate) path: String,
    /// The headers, their names in small letters.
    pub(crate) headers: HashMap<String, String>,
}

/// How the server answers.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// How many bytes of the body are sent before the connection is closed.
    cut_at: Option<usize>,
    /// How long the server waits before each byte of the body.
    drip: Option<Duration>,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), cut_at: None, drip: None }
    }

    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::new(200, body)
    }

    pub(crate) fn redirect(status: u16, to: &str) -> Self {
        Self::new(status, "").with("Location", to)
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn cut_at(self, bytes: usize) -> Self {
        Self { cut_at: Some(bytes), ..self }
    }

    pub(crate) fn dripping(self, wait: Duration) -> Self {
        Self { drip: Some(wait), ..self }
    }
}

type Answers = Arc<dyn Fn(&Asked) -> Reply + Send + Sync>;

/// A running server. Its thread ends with the test's process.
pub(crate) struct Origin {
    address: String,
    scheme: &'static str,
    asked: Arc<Mutex<Vec<Asked>>>,
    answers: Arc<Mutex<Answers>>,
}

impl Origin {
    /// Starts a server that answers each request so.
    pub(crate) fn start(answers: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_over("http", answers, |stream| Box::new(stream))
    }

    /// Starts a server over TLS, with a certificate for `localhost`.
    pub(crate) fn start_tls(
        config: Arc<rustls::ServerConfig>,
        answers: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::start_over("https", answers, move |stream| {
            let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            Box::new(rustls::StreamOwned::new(connection, stream))
        })
    }

    fn start_over(
        scheme: &'static str,
        answers: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
        wrap: impl Fn(TcpStream) -> Box<dyn ReadWrite> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let origin = Self {
            address: format!("localhost:{}", listener.local_addr().unwrap().port()),
            scheme,
            asked: Arc::default(),
            answers: Arc::new(Mutex::new(Arc::new(answers))),
        };
        let (asked, answers, wrap) =
            (Arc::clone(&origin.asked), Arc::clone(&origin.answers), Arc::new(wrap));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (asked, answers, wrap) =
                    (Arc::clone(&asked), Arc::clone(&answers), Arc::clone(&wrap));
                std::thread::spawn(move || serve(wrap(stream), &asked, &answers));
            }
        });
        origin
    }

    /// Returns the whole address of a path.
    pub(crate) fn at(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address)
    }

    pub(crate) fn port(&self) -> &str {
        self.address.rsplit(':').next().unwrap()
    }

    /// Answers otherwise from now on.
    pub(crate) fn answer(&self, answers: impl Fn(&Asked) -> Reply + Send + Sync + 'static) {
        *self.answers.lock().unwrap() = Arc::new(answers);
    }

    /// Returns the requests since the last call.
    pub(crate) fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

/// Answers one request. The client may close the connection at any time.
fn serve(stream: Box<dyn ReadWrite>, asked: &Mutex<Vec<Asked>>, answers: &Mutex<Answers>) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    if stream.read_line(&mut line).is_err() {
        return;
    }
    let Some(path) = line.split(' ').nth(1).map(str::to_owned) else { return };
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).is_err() || line.trim().is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').unwrap();
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let request = Asked { path, headers };
    let answer = Arc::clone(&answers.lock().unwrap());
    let reply = answer(&request);
    asked.lock().unwrap().push(request);
    let _ = write_reply(stream.get_mut(), &reply);
}

fn write_reply(stream: &mut dyn ReadWrite, reply: &Reply) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} Status\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if reply.status != 304 {
        head.push_str(&format!("Content-Length: {}\r\n", reply.body.len()));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    let body = &reply.body[..reply.cut_at.unwrap_or(reply.body.len())];
    match reply.drip {
        None => stream.write_all(body)?,
        Some(wait) => {
            for byte in body {
                std::thread::sleep(wait);
                stream.write_all(&[*byte])?;
                stream.flush()?;
            }
        }
    }
    stream.flush()
}
