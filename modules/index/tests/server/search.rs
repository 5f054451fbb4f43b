//! The server under test, and the names that a test has on it.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// An answer: status, the header `Content-Type`, body.
pub(crate) type HttpAnswer = (u16, String, Vec<u8>);

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());
static CLIENT: LazyLock<Client> = LazyLock::new(|| {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().build().unwrap()
});
static URL: LazyLock<String> = LazyLock::new(|| {
    std::env::var("ION_TEST_OPENSEARCH")
        .map_or_else(|_| start_emulator(), |url| url.trim_end_matches('/').to_owned())
});

/// Starts the emulator on a free port.
#[expect(clippy::zombie_processes, reason = "it ends by itself when this process does")]
fn start_emulator() -> String {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/ion-test");
    let cache = std::env::var_os("ION_TEST_CACHE").map_or_else(home, PathBuf::from);
    let program = cache.join("bin/osmem-server");
    assert!(program.exists(), "{program:?} is missing; scripts/setup-tests.sh installs it");
    let mut emulator = Command::new(program)
        .args(["-addr", "127.0.0.1:0", "-no-stdin-watch", "-no-ja", "-parent-pid"])
        .arg(std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(emulator.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let started: Value = serde_json::from_str(&line).unwrap();
    started["url"].as_str().unwrap().to_owned()
}

/// Returns the address of the server under test.
pub(crate) fn url() -> &'static str {
    &URL
}

/// Sends a request to the server under test and waits for the answer.
pub(crate) fn send(method: &str, path: &str, kind: &str, body: Vec<u8>) -> HttpAnswer {
    let method: Method = method.parse().unwrap();
    let request = CLIENT
        .request(method, format!("{}/{}", url(), path.trim_start_matches('/')))
        .header("content-type", kind)
        .body(body);
    RUNTIME.block_on(async {
        let answer = request.send().await.unwrap();
        let kind = answer.headers().get("content-type");
        let kind = kind.map_or("", |kind| kind.to_str().unwrap()).to_owned();
        (answer.status().as_u16(), kind, answer.bytes().await.unwrap().to_vec())
    })
}

/// Sends JSON and returns the status with the answer's JSON.
pub(crate) fn ask(method: &str, path: &str, body: &Value) -> (u16, Value) {
    let body = if body.is_null() { vec![] } else { body.to_string().into_bytes() };
    let (status, _, answer) = send(method, path, "application/json", body);
    (status, serde_json::from_slice(&answer).unwrap_or_default())
}

/// Names that belong to one test. What has them is removed in the end.
pub(crate) struct Names {
    pub(crate) prefix: String,
}

/// A document in an index.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Document {
    pub(crate) index: String,
    pub(crate) id: String,
    pub(crate) version: u64,
    pub(crate) source: Value,
}

impl Names {
    pub(crate) fn new() -> Self {
        static GIVEN: AtomicU32 = AtomicU32::new(0);
        let number = GIVEN.fetch_add(1, Ordering::Relaxed);
        Self { prefix: format!("ion-test-{}-{number:04}", std::process::id()) }
    }

    /// Returns a template for all indices of the test, in which `n` is a whole number.
    pub(crate) fn template(&self) -> Value {
        json!({
            "index_patterns": [format!("{}*", self.prefix)],
            "template": {
                "settings": {"number_of_shards": 1, "number_of_replicas": 0},
                "mappings": {"properties": {"n": {"type": "long"}, "id": {"type": "keyword"}}}
            }
        })
    }

    /// Returns all documents of the test, in the order of their field `n`, which has to be different
    /// in each.
    pub(crate) fn documents(&self) -> Vec<Document> {
        let pattern = format!("{}*", self.prefix);
        let (status, _) = ask("POST", &format!("{pattern}/_refresh"), &Value::Null);
        assert_eq!(status, 200);
        let mut all: Vec<Document> = vec![];
        loop {
            let mut query = json!({"size": 1000, "version": true, "sort": [{"n": "asc"}]});
            if let Some(last) = all.last() {
                query["search_after"] = json!([last.source["n"]]);
            }
            let (status, found) = ask("POST", &format!("{pattern}/_search"), &query);
            assert_eq!(status, 200, "{found}");
            let hits = found["hits"]["hits"].as_array().unwrap();
            if hits.is_empty() {
                let (_, counted) = ask("GET", &format!("{pattern}/_count"), &Value::Null);
                assert_eq!(counted["count"], all.len(), "documents without their own n");
                return all;
            }
            all.extend(hits.iter().map(|hit| Document {
                index: hit["_index"].as_str().unwrap().to_owned(),
                id: hit["_id"].as_str().unwrap().to_owned(),
                version: hit["_version"].as_u64().unwrap(),
                source: hit["_source"].clone(),
            }));
        }
    }

    /// Returns the names of the test's indices.
    pub(crate) fn indices(&self) -> Vec<String> {
        let (_, found) = ask("GET", &format!("{}*/_alias", self.prefix), &Value::Null);
        let mut names: Vec<_> = found.as_object().unwrap().keys().cloned().collect();
        names.sort();
        names
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        for index in self.indices() {
            ask("DELETE", &index, &Value::Null);
        }
        ask("DELETE", &format!("_index_template/{}", self.prefix), &Value::Null);
    }
}
