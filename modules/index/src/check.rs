//! Says whether a server can be used, and what to do about the rest. Changes nothing on it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::answer::{ServerError, advice};
use crate::error::error_chain;
use crate::index_name::IndexPattern;
use crate::server::{Answer, Request, Server};
use crate::settings::ServerSettings;
use crate::templates::{Template, TemplateState};

/// The id of the document of the question about rights. There is never such a document.
const NO_DOCUMENT: &str = "ion-index-check";

/// The oldest Elasticsearch that has index templates of today's form.
const ELASTICSEARCH_MIN: (u64, u64) = (7, 8);

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: `server`, `version`, `rights` or `template`.
    pub what: &'static str,
    /// Whether it is as it has to be.
    pub good: bool,
    /// Whether runs fail without it.
    pub needed: bool,
    /// What was found, and what to do about it.
    pub text: String,
}

impl Finding {
    fn good(what: &'static str, text: String) -> Self {
        Self { what, good: true, needed: true, text }
    }

    fn bad(what: &'static str, text: String) -> Self {
        Self { what, good: false, needed: true, text }
    }

    fn unclear(what: &'static str, text: String) -> Self {
        Self { what, good: false, needed: false, text }
    }
}

/// Looks at a server: whether it answers, which one it is, whether documents may be written to the
/// index, and whether the templates are there. Each question is asked once.
pub async fn check(
    settings: &ServerSettings,
    index: &IndexPattern,
    templates: &[PathBuf],
) -> Vec<Finding> {
    let server = match Server::connect(settings) {
        Ok(server) => server,
        Err(error) => return vec![Finding::bad("server", error_chain(&error))],
    };
    let mut findings = vec![];
    match server.ask(&Request::get("", "say its version")).await {
        Err(unanswered) => {
            let text = format!("{} does not answer: {}", server.address(), unanswered.reason);
            return vec![Finding::bad("server", text)];
        }
        Ok(answer) if answer.status == 200 => {
            findings.push(Finding::good("server", format!("{} answers", server.address())));
            findings.push(judge_version(&answer.json()));
        }
        // A user that may only write into an index is not told the version.
        Ok(answer) if answer.status == 403 => {
            findings.push(Finding::good("server", format!("{} answers", server.address())));
            findings.push(Finding::unclear("version", "this user may not see it".to_owned()));
        }
        Ok(answer) => {
            let refused = server.refused("say its version", answer.error());
            return vec![Finding::bad("server", refused.to_string())];
        }
    }
    findings.push(check_rights(&server, index).await);
    for path in templates {
        findings.push(check_template(&server, path).await);
    }
    findings
}

/// Judges what a server says about itself.
fn judge_version(told: &Value) -> Finding {
    let text = |pointer: &str| told.pointer(pointer).and_then(Value::as_str);
    let Some(number) = text("/version/number") else {
        return Finding::bad(
            "version",
            "the answer is neither Elasticsearch's nor OpenSearch's: check --url".to_owned(),
        );
    };
    let is_opensearch = text("/version/distribution") == Some("opensearch");
    let name = if is_opensearch { "OpenSearch" } else { "Elasticsearch" };
    let mut parts = number.split('.').map(|part| part.parse().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if !is_opensearch && version < ELASTICSEARCH_MIN {
        let (major, minor) = ELASTICSEARCH_MIN;
        return Finding::bad(
            "version",
            format!("{name} {number} is too old: {major}.{minor} is the oldest that works"),
        );
    }
    Finding::good("version", format!("{name} {number}"))
}

/// Asks whether documents may be written, by a bulk request that writes nothing: it asks for an
/// alias of this name, and its document is no object. So it fails whether or not there is one.
async fn check_rights(server: &Server, index: &IndexPattern) -> Finding {
    let name = index.name(Some(jiff::Timestamp::now()));
    let body = format!("{{\"create\":{{\"_index\":\"{name}\",\"_id\":\"{NO_DOCUMENT}\"}}}}\n[]\n");
    let act = "take a bulk request";
    let request = Request::bulk("_bulk?require_alias=true", &body, act);
    match server.ask(&request).await {
        Err(unanswered) => Finding::bad("rights", unanswered.reason),
        Ok(answer) => judge_rights(&answer, &name),
    }
}

fn judge_rights(answer: &Answer, index: &str) -> Finding {
    let refused = |error: ServerError| {
        let advice = advice(error.status());
        Finding::bad("rights", format!("documents may not be written to {index}: {error}{advice}"))
    };
    #[derive(Deserialize)]
    struct Slots {
        items: Vec<Slot>,
    }
    #[derive(Deserialize)]
    struct Slot {
        create: Value,
    }
    if answer.status != 200 {
        return refused(answer.error());
    }
    let slots = serde_json::from_slice::<Slots>(&answer.body);
    let Some(document) = slots.ok().and_then(|slots| slots.items.into_iter().next()) else {
        return Finding::unclear("rights", "the answer to a bulk request is not readable".into());
    };
    let status = document.create["status"].as_u64().and_then(|status| u16::try_from(status).ok());
    match status {
        // There is no alias of this name, or there is one and the document is no object.
        Some(400 | 404) => Finding::good("rights", format!("bulk requests to {index} are taken")),
        Some(status) => {
            refused(ServerError::of_body(status, document.create.to_string().as_bytes()))
        }
        None => Finding::unclear("rights", "the answer to a bulk request is not readable".into()),
    }
}

async fn check_template(server: &Server, path: &std::path::Path) -> Finding {
    let template = match Template::read(path) {
        Ok(template) => template,
        Err(error) => return Finding::bad("template", error_chain(&error)),
    };
    let request = template.question("show an index template");
    let answer = match server.ask(&request).await {
        Ok(answer) => answer,
        Err(unanswered) => return Finding::bad("template", unanswered.reason),
    };
    let (name, file) = (template.name(), template.path().display());
    if !matches!(answer.status, 200 | 404) {
        let refused = server.refused("show an index template", answer.error());
        return Finding::bad("template", refused.to_string());
    }
    match template.compare(&answer) {
        TemplateState::Same => Finding::good("template", format!("\"{name}\" is as in {file}")),
        TemplateState::Different => Finding::unclear(
            "template",
            format!("\"{name}\" is not that of {file}; the next run with this file replaces it"),
        ),
        TemplateState::Missing => Finding::unclear(
            "template",
            format!("\"{name}\" is not there; the first run with {file} puts it"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_version_is_judged_by_its_distribution() {
        let judged = |told: Value| {
            let finding = judge_version(&told);
            (finding.good, finding.text)
        };
        let opensearch = json!({"version": {"distribution": "opensearch", "number": "1.3.20"}});
        assert_eq!(judged(opensearch), (true, "OpenSearch 1.3.20".into()));
        for (number, good) in
            [("7.8.0", true), ("7.7.1", false), ("6.8.23", false), ("9.2.1", true)]
        {
            let told = json!({"version": {"number": number, "build_flavor": "default"}});
            assert_eq!(judged(told).0, good, "{number}");
        }
        assert!(!judged(json!({"hello": "world"})).0);
    }

    #[test]
    fn rights_are_judged_by_a_request_that_writes_nothing() {
        let judged = |status, body: Value| {
            let body = body.to_string().into_bytes();
            let finding = judge_rights(&Answer { status, retry_after: None, body }, "news");
            (finding.good, finding.needed)
        };
        let document = |status: u16| {
            let error = json!({"type": "t", "reason": "r"});
            json!({"items": [{"create": {"status": status, "error": error}}]})
        };
        assert_eq!(judged(200, document(404)), (true, true));
        assert_eq!(judged(200, document(400)), (true, true));
        assert_eq!(judged(200, document(403)), (false, true));
        assert_eq!(judged(403, json!({"error": "no"})), (false, true));
        assert_eq!(judged(401, json!({})), (false, true));
        assert_eq!(judged(200, json!({})), (false, false));
    }
}
