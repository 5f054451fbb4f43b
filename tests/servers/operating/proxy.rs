//! A proxy in front of an S3 store, which meddles with the completion of multipart uploads. The
//! tests of `operating.rs` use it.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::support::servers::Env;

/// What the proxy does with the next completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Completion {
    /// The store completes the upload, and its answer is lost.
    AnswerLost,
    /// The store does not receive the request. The answer says that the upload is gone, as after a
    /// clean-up.
    Refused,
}

pub(crate) struct Proxy {
    pub(crate) url: String,
    next: Arc<Mutex<Option<Completion>>>,
}

const GONE: &str =
    "<?xml version=\"1.0\"?><Error><Code>NoSuchUpload</Code><Message>gone</Message></Error>";

impl Proxy {
    pub(crate) fn start(store: &Env) -> Self {
        let endpoint = store.iter().find(|(name, _)| name == "AWS_ENDPOINT_URL").unwrap().1.clone();
        let upstream = endpoint.strip_prefix("http://").unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let next: Arc<Mutex<Option<Completion>>> = Arc::default();
        let shared = next.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (upstream, next) = (upstream.clone(), shared.clone());
                std::thread::spawn(move || {
                    let server = TcpStream::connect(&upstream).unwrap();
                    pass_on(client, server, &next);
                });
            }
        });
        Self { url, next }
    }

    pub(crate) fn next(&self, completion: Completion) {
        *self.next.lock().unwrap() = Some(completion);
    }

    /// Returns whether the completion has reached the proxy.
    pub(crate) fn met(&self) -> bool {
        self.next.lock().unwrap().is_none()
    }
}

/// Returns whether these bytes begin with the request that completes an upload.
fn is_completion(bytes: &[u8]) -> bool {
    let line =
        String::from_utf8_lossy(bytes.split(|byte| *byte == b'\r').next().unwrap_or_default())
            .into_owned();
    line.starts_with("POST ") && line.contains("uploadId=")
}

fn pass_on(mut client: TcpStream, mut server: TcpStream, next: &Mutex<Option<Completion>>) {
    let (mut answers, mut to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    let lost = Arc::new(Mutex::new(false));
    let losing = lost.clone();
    let back = std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(read @ 1..) = answers.read(&mut buffer) {
            if *losing.lock().unwrap() || to_client.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        let _ = to_client.shutdown(Shutdown::Both);
        let _ = answers.shutdown(Shutdown::Both);
    });
    let mut buffer = vec![0; 1 << 16];
    while let Ok(read @ 1..) = client.read(&mut buffer) {
        let meddled =
            if is_completion(&buffer[..read]) { next.lock().unwrap().take() } else { None };
        match meddled {
            Some(Completion::AnswerLost) => *lost.lock().unwrap() = true,
            Some(Completion::Refused) => {
                let answer = format!(
                    "HTTP/1.1 404 Not Found\r\ncontent-type: application/xml\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{GONE}",
                    GONE.len()
                );
                let _ = client.write_all(answer.as_bytes());
                break;
            }
            None => {}
        }
        if server.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
    let _ = back.join();
}
