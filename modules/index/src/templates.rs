//! Index templates: what the server gives to an index when it is made.
//!
//! A template that was put has a mark with the hash of its file, so that a run whose file has not
//! changed asks one question and changes nothing: a change of a template is work for the whole
//! cluster.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use crate::document_id::to_hex;
use crate::error::IndexError;
use crate::retry::RetrySettings;
use crate::server::{Answer, Request, Server};

/// The key of the mark, below the template's `_meta`.
const MARK: &str = "ion-index";

/// A template, as it is put.
#[derive(Debug)]
pub(crate) struct Template {
    path: PathBuf,
    name: String,
    body: Value,
    mark: String,
}

/// How the server's template of this name compares with the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TemplateState {
    Same,
    Different,
    Missing,
}

impl Template {
    /// Reads a template. The name of the file, without `.json`, is the name of the template.
    pub(crate) fn read(path: &Path) -> Result<Self, IndexError> {
        let wrong = |what: &str| {
            Err(IndexError::Setting(format!("the template {} {what}", path.display())))
        };
        let text = std::fs::read_to_string(path).map_err(IndexError::file("read", path))?;
        let mut body: Value = match serde_json::from_str(&text) {
            Ok(body) => body,
            Err(error) => return wrong(&format!("is not JSON: {error}")),
        };
        if !body.get("index_patterns").is_some_and(Value::is_array) {
            return wrong("has no list \"index_patterns\", which says for which indices it counts");
        }
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        let is_letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
        if !name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            || !name.chars().all(is_letter)
        {
            return wrong(
                "needs another file name, which is the template's name: small letters, digits, \
                 \"-\", \"_\" and \".\"",
            );
        }
        let mark = to_hex(&Sha256::digest(body.to_string())[..16]);
        let meta = &mut body["_meta"];
        if !meta.is_object() && !meta.is_null() {
            return wrong("has a \"_meta\" that is not an object");
        }
        meta[MARK] = json!(mark);
        Ok(Self { path: path.to_owned(), name: name.to_owned(), body, mark })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn address(&self) -> String {
        format!("_index_template/{}", self.name)
    }

    /// Returns the request whose answer [`Self::compare`] reads.
    pub(crate) fn question<'a>(&self, act: &'a str) -> Request<'a> {
        Request::get(self.address(), act)
    }

    /// Compares the server's template with the file.
    pub(crate) fn compare(&self, answer: &Answer) -> TemplateState {
        if answer.status == 404 {
            return TemplateState::Missing;
        }
        let answer = answer.json();
        match answer.pointer("/index_templates/0/index_template/_meta") {
            Some(meta) if meta.get(MARK).and_then(Value::as_str) == Some(&self.mark) => {
                TemplateState::Same
            }
            _ => TemplateState::Different,
        }
    }

    /// Makes sure that the server has the template.
    pub(crate) async fn put(
        &self,
        server: &Server,
        retry: RetrySettings,
        stop: &CancellationToken,
    ) -> Result<(), IndexError> {
        let act = format!("show the index template \"{}\"", self.name);
        let request = self.question(&act);
        let answer = server.ask_patiently(&request, retry, stop).await?;
        let answer = match answer.status {
            404 => answer,
            _ => server.accepted(answer, &request)?,
        };
        if self.compare(&answer) == TemplateState::Same {
            return Ok(());
        }
        let act = format!("put the index template \"{}\"", self.name);
        let request = Request::put(self.address(), &self.body, &act);
        let answer = server.ask_patiently(&request, retry, stop).await?;
        server.accepted(answer, &request)?;
        tracing::info!("the index template \"{}\" was put", self.name);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &Value) -> Answer {
        Answer { status, retry_after: None, body: body.to_string().into_bytes() }
    }

    #[test]
    fn a_template_is_known_again_by_its_mark() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("news.json");
        std::fs::write(&path, r#"{"index_patterns": ["news-*"], "_meta": {"owner": "x"}}"#)
            .unwrap();
        let template = Template::read(&path).unwrap();
        assert_eq!((template.name(), &template.body["_meta"]["owner"]), ("news", &json!("x")));
        let shown = json!({"index_templates": [{"name": "news", "index_template": template.body}]});
        assert_eq!(template.compare(&answer(200, &shown)), TemplateState::Same);
        assert_eq!(template.compare(&answer(404, &json!({}))), TemplateState::Missing);
        assert_eq!(template.compare(&answer(200, &json!({}))), TemplateState::Different);
        std::fs::write(&path, r#"{"index_patterns": ["old-*"], "_meta": {"owner": "x"}}"#).unwrap();
        let changed = Template::read(&path).unwrap();
        assert_eq!(changed.compare(&answer(200, &shown)), TemplateState::Different);
    }

    #[test]
    fn a_wrong_template_is_refused_with_words() {
        let root = tempfile::tempdir().unwrap();
        for (name, text, expected) in [
            ("a.json", "{", "is not JSON"),
            ("a.json", "[]", "has no list \"index_patterns\""),
            ("a.json", r#"{"index_patterns": "x"}"#, "has no list \"index_patterns\""),
            ("A b.json", r#"{"index_patterns": []}"#, "needs another file name"),
            ("a.json", r#"{"index_patterns": [], "_meta": 1}"#, "is not an object"),
        ] {
            let path = root.path().join(name);
            std::fs::write(&path, text).unwrap();
            let error = Template::read(&path).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
