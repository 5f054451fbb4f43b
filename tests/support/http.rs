//! An HTTP/1.1 client that sends exactly what a test tells it to, even what no client should send.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use super::DEADLINE;

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.text()))
    }

    /// Asserts the status, and returns the JSON document.
    #[track_caller]
    pub fn says(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        self.json()
    }

    /// Asserts that the answer is a problem document of this type with a title and a detail, and
    /// returns it.
    #[track_caller]
    pub fn problem(self, status: u16, name: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem = self.json();
        assert_eq!(problem["type"], format!("urn:ion:problem:{name}"), "{problem}");
        assert_eq!(problem["status"], status);
        assert!(
            problem["title"].as_str().unwrap().len() > 5
                && problem["detail"].as_str().unwrap().len() > 10
        );
        problem
    }
}

/// A connection to a server.
pub struct Http {
    reader: BufReader<TcpStream>,
    address: String,
}

impl Http {
    pub fn to(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        // Clients do so too: otherwise a body would wait until the head is acknowledged.
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Self { reader: BufReader::new(stream), address: address.to_owned() }
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// Sends the head of a request.
    pub fn begin(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) {
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head.push_str(&format!("host: {}\r\n", self.address));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.send(head.as_bytes()).unwrap();
    }

    /// Reads the head of an answer.
    pub fn head(&mut self) -> std::io::Result<Answer> {
        let mut line = || {
            let mut line = String::new();
            match self.reader.read_line(&mut line)? {
                0 => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)),
                _ => Ok(line.trim_end().to_owned()),
            }
        };
        let status = line()?.split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let line = line()?;
            match line.split_once(": ") {
                Some((name, value)) => headers.push((name.to_owned(), value.to_owned())),
                None => return Ok(Answer { status, headers, body: vec![] }),
            }
        }
    }

    /// Returns a second handle of the connection, for another thread to write to.
    pub fn another_end(&mut self) -> TcpStream {
        self.reader.get_mut().try_clone().unwrap()
    }

    /// Returns the connection itself.
    pub fn into_stream(self) -> TcpStream {
        self.reader.into_inner()
    }

    /// Returns whether the server closes the connection within the deadline.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.reader.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    /// Reads a chunk of a chunked body, or none at the end.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        let length =
            usize::from_str_radix(line.trim_end(), 16).unwrap_or_else(|_| panic!("{line:?}"));
        let mut piece = vec![0; length + 2];
        self.reader.read_exact(&mut piece).unwrap();
        piece.truncate(length);
        (length > 0).then_some(piece)
    }

    /// Reads the whole answer to a request with this method.
    pub fn answer(&mut self, method: &str) -> std::io::Result<Answer> {
        let mut answer = self.head()?;
        while answer.status == 100 {
            answer = self.head()?;
        }
        if method == "HEAD" || answer.status == 204 || answer.status == 304 {
            return Ok(answer);
        }
        if answer.header("transfer-encoding").is_some() {
            while let Some(piece) = self.chunk() {
                answer.body.extend(piece);
            }
        } else {
            let length = answer.header("content-length").map(|length| length.parse().unwrap());
            answer.body = vec![0; length.unwrap_or(0)];
            self.reader.read_exact(&mut answer.body)?;
        }
        Ok(answer)
    }

    /// Returns the reader of the connection.
    pub fn reader(&mut self) -> &mut impl Read {
        &mut self.reader
    }
}

/// Sends one request on a new connection.
pub fn request(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let mut http = Http::to(address);
    let length = body.len().to_string();
    let mut all = headers.to_vec();
    if method != "GET" && method != "HEAD" {
        all.push(("content-length", &length));
    }
    http.begin(method, path, &all);
    // A server that has refused the head may have closed the connection by now; its answer can
    // still be read.
    let _ = http.send(body);
    http.answer(method).unwrap()
}

pub fn get(address: &str, path: &str) -> Answer {
    request(address, "GET", path, &[], b"")
}

/// Builds a form from its parts: file name or none, name, content. Returns the Content-Type and the
/// body.
pub fn form(parts: &[(Option<&str>, &str, &[u8])]) -> (&'static str, Vec<u8>) {
    let mut body = Vec::new();
    for (file, name, content) in parts {
        let file = file.map(|file| format!("; filename=\"{file}\"")).unwrap_or_default();
        body.extend(
            format!("--XyZ\r\ncontent-disposition: form-data; name=\"{name}\"{file}\r\n\r\n")
                .as_bytes(),
        );
        body.extend(*content);
        body.extend(b"\r\n");
    }
    body.extend(b"--XyZ--\r\n");
    ("multipart/form-data; boundary=XyZ", body)
}
