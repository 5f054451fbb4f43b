//! What an answer of the server means, for a whole request and for each document.
//!
//! Everything here is a function of the answer alone.

use std::fmt;

use serde::Deserialize;
use serde_json::value::RawValue;

/// How much of an answer that is no JSON, or of a reason, is repeated to people.
const SHOWN_CHARACTERS: usize = 300;

/// What the server says about a bulk request.
#[derive(Debug)]
pub(crate) enum BulkAnswer {
    /// It has decided each document, in the order of the request.
    Documents(Vec<Fate>),
    /// The request is too large, or is no valid bulk request: each half has to be tried.
    TryHalves { status: u16, error: ServerError },
    /// It cannot do it now, or its answer is damaged: the same request has to be sent again.
    SendAgain(String),
    /// It will not do it.
    Refused(ServerError),
}

/// What has become of one document.
#[derive(Debug)]
pub(crate) enum Fate {
    /// A new document is in the index.
    Created,
    /// An older state of the document was replaced.
    Updated,
    /// The index has it already, from an earlier request or in a newer state.
    AlreadyThere,
    /// The server had no room for it at the moment.
    SendAgain(ServerError),
    /// The server will never take this document.
    Rejected { status: u16, error: Box<RawValue> },
    /// The server will take no document of this kind, so the job cannot succeed.
    Refused(ServerError),
}

/// An error as the server tells it, shortened for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerError {
    status: u16,
    text: String,
}

impl ServerError {
    /// Reads the error in the body of an answer.
    pub(crate) fn of_body(status: u16, body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Failure<'a> {
            #[serde(borrow)]
            error: &'a RawValue,
        }
        match serde_json::from_slice::<Failure<'_>>(body) {
            Ok(failure) => Self::of_json(status, failure.error),
            Err(_) => Self { status, text: shortened(&String::from_utf8_lossy(body)) },
        }
    }

    /// Reads an error in the two forms that servers use: a text, or a type with a reason.
    fn of_json(status: u16, error: &RawValue) -> Self {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Told {
            Text(String),
            Typed {
                #[serde(rename = "type")]
                kind: String,
                reason: Option<String>,
            },
        }
        let text = match serde_json::from_str(error.get()) {
            Ok(Told::Text(text)) => text,
            Ok(Told::Typed { kind, reason: Some(reason) }) => format!("{kind}: {reason}"),
            Ok(Told::Typed { kind, reason: None }) => kind,
            Err(_) => error.get().to_owned(),
        };
        Self { status, text: shortened(&text) }
    }

    /// The status of HTTP.
    pub(crate) fn status(&self) -> u16 {
        self.status
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "status {}", self.status)?;
        if !self.text.is_empty() {
            write!(formatter, ", {}", self.text)?;
        }
        Ok(())
    }
}

/// Returns a text of others in one line, cut to what people read.
fn shortened(text: &str) -> String {
    let line: Vec<_> = text.split(|c: char| c.is_whitespace() || c.is_control()).collect();
    let line = line.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHOWN_CHARACTERS) {
        None => line,
        Some((end, _)) => format!("{}...", &line[..end]),
    }
}

/// Says what can be done about a refusal.
pub(crate) fn advice(status: u16) -> &'static str {
    match status {
        401 => {
            "; the server does not accept these credentials: see --user-from, --password-from and \
             --api-key-from"
        }
        403 => {
            "; this user may not do that, or the index is blocked: give the user the right, or \
             remove the block"
        }
        404 => {
            "; there is no such index, alias or address: check --url and --index, and whether the \
             server makes indices by itself"
        }
        300..=399 => "; the server is elsewhere: give --url its real address",
        _ => "",
    }
}

/// Says whether a status means that the same request may succeed later.
pub(crate) fn is_temporary(status: u16) -> bool {
    matches!(status, 408 | 429 | 500..=599)
}

/// Judges the answer to a bulk request of `sent` documents.
pub(crate) fn judge(status: u16, body: &[u8], sent: usize) -> BulkAnswer {
    match status {
        200 => judge_documents(body, sent),
        400 | 413 => BulkAnswer::TryHalves { status, error: ServerError::of_body(status, body) },
        _ if is_temporary(status) => {
            BulkAnswer::SendAgain(ServerError::of_body(status, body).to_string())
        }
        _ => BulkAnswer::Refused(ServerError::of_body(status, body)),
    }
}

#[derive(Deserialize)]
struct DocumentAnswers {
    items: Vec<ActionAnswer>,
}

#[derive(Deserialize)]
struct ActionAnswer {
    #[serde(alias = "create", alias = "index")]
    action: DocumentAnswer,
}

#[derive(Deserialize)]
struct DocumentAnswer {
    status: u16,
    error: Option<Box<RawValue>>,
}

fn judge_documents(body: &[u8], sent: usize) -> BulkAnswer {
    match serde_json::from_slice::<DocumentAnswers>(body) {
        Ok(answers) if answers.items.len() == sent => BulkAnswer::Documents(
            answers.items.into_iter().map(|answer| judge_document(answer.action)).collect(),
        ),
        Ok(answers) => BulkAnswer::SendAgain(format!(
            "the answer is about {} documents, and {sent} were sent",
            answers.items.len()
        )),
        Err(error) => {
            BulkAnswer::SendAgain(format!("the answer is not that of a bulk request: {error}"))
        }
    }
}

fn judge_document(answer: DocumentAnswer) -> Fate {
    let error = || {
        let none = ServerError { status: answer.status, text: String::new() };
        answer.error.as_deref().map_or(none, |error| ServerError::of_json(answer.status, error))
    };
    match answer.status {
        201 => Fate::Created,
        200..=299 => Fate::Updated,
        // To `create`: the index has the document. To `index`: it has one of a newer version.
        409 => Fate::AlreadyThere,
        status if is_temporary(status) => Fate::SendAgain(error()),
        400 | 402 | 405..=499 => Fate::Rejected {
            status: answer.status,
            error: answer.error.unwrap_or_else(|| RawValue::NULL.to_owned()),
        },
        _ => Fate::Refused(error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(status: u16, body: &str, sent: usize) -> String {
        match judge(status, body.as_bytes(), sent) {
            BulkAnswer::Documents(fates) => {
                let fates: Vec<_> = fates.iter().map(told).collect();
                fates.join(" ")
            }
            BulkAnswer::TryHalves { status, error } => format!("halves {status} ({error})"),
            BulkAnswer::SendAgain(why) => format!("again ({why})"),
            BulkAnswer::Refused(error) => format!("refused ({error})"),
        }
    }

    fn told(fate: &Fate) -> String {
        match fate {
            Fate::Created => "created".into(),
            Fate::Updated => "updated".into(),
            Fate::AlreadyThere => "there".into(),
            Fate::SendAgain(error) => format!("again({error})"),
            Fate::Rejected { status, error } => format!("rejected({status} {error})"),
            Fate::Refused(error) => format!("refused({error})"),
        }
    }

    #[test]
    fn each_document_of_an_answer_has_its_own_fate() {
        let answer = |statuses: &[u16]| {
            let one = |status: &u16| format!(r#"{{"create":{{"status":{status}}}}}"#);
            let items: Vec<_> = statuses.iter().map(one).collect();
            format!(r#"{{"errors":true,"items":[{}],"took":1}}"#, items.join(","))
        };
        assert_eq!(judged(200, &answer(&[201, 200, 409]), 3), "created updated there");
        assert_eq!(
            judged(200, &answer(&[429, 503, 400]), 3),
            "again(status 429) again(status 503) rejected(400 null)"
        );
        assert_eq!(
            judged(200, &answer(&[401, 403, 404, 301]), 4),
            "refused(status 401) refused(status 403) refused(status 404) refused(status 301)"
        );
        let updates =
            r#"{"items":[{"index":{"status":200}},{"index":{"status":400,"error":{"a": 1}}}]}"#;
        assert_eq!(judged(200, updates, 2), "updated rejected(400 {\"a\": 1})");
    }

    #[test]
    fn every_status_has_a_fate() {
        for status in 100..=599_u16 {
            let document = DocumentAnswer { status, error: None };
            let expected = match status {
                201 => "created".to_owned(),
                200..=299 => "updated".to_owned(),
                409 => "there".to_owned(),
                408 | 429 | 500..=599 => format!("again(status {status})"),
                100..=199 | 300..=399 | 401 | 403 | 404 => format!("refused(status {status})"),
                _ => format!("rejected({status} null)"),
            };
            assert_eq!(told(&judge_document(document)), expected);
        }
    }

    #[test]
    fn an_answer_that_does_not_fit_is_no_answer() {
        for body in [r#"{"items":[]}"#, "{\"items\":[{\"create\":{\"status\":201}}", "", "<html>"] {
            assert!(judged(200, body, 1).starts_with("again"), "{body}");
        }
    }

    #[test]
    fn a_whole_request_is_judged_by_its_status() {
        assert_eq!(judged(413, "", 1), "halves 413 (status 413)");
        let typed = r#"{"error":{"type":"t","reason":"a\n  b"},"status":400}"#;
        assert_eq!(judged(400, typed, 1), "halves 400 (status 400, t: a b)");
        assert_eq!(judged(429, r#"{"error":"busy"}"#, 1), "again (status 429, busy)");
        for status in [408, 500, 502, 503, 504] {
            assert!(judged(status, "", 1).starts_with("again"), "{status}");
        }
        for status in [201, 301, 401, 403, 404, 405, 406] {
            assert!(judged(status, "", 1).starts_with("refused"), "{status}");
        }
    }

    #[test]
    fn what_the_server_says_is_cut_to_one_short_line() {
        let long = ServerError::of_body(500, "é\n\u{1b}[31m ".repeat(1000).as_bytes()).to_string();
        assert!(long.ends_with("..."), "{long}");
        assert!(long.chars().count() < SHOWN_CHARACTERS + 30 && !long.contains('\u{1b}'));
        assert_eq!(ServerError::of_body(400, b"").to_string(), "status 400");
    }
}
