//! Reads a request body by its format: values, files, a CloudEvent, or several events.

use axum::body::Body;
use axum::http::{HeaderMap, header};
use ion_model::event::KeyValue;
use ion_model::limits::Limits;
use ion_model::text::quote;
use percent_encoding::percent_decode;

use super::SharedState;
use super::auth::Principal;
use super::batch::{self, Batch};
use super::body::{BodyError, BufferedBody};
use super::cloudevent::{self, Attributes, BATCH, CloudEventData, DATA, STRUCTURED, parse_values};
use super::draft::{EventDraft, EventIdentity, new_uploads};
use super::encoding::json_text;
use super::problem::{Problem, ProblemKind};
use super::upload::Uploads;

/// The events of a request body.
pub(super) enum ParsedBody {
    /// One event.
    One(Box<OneEvent>),
    /// Several.
    Batch(Batch),
}

/// One event, with its files and its identity.
pub(super) struct OneEvent {
    pub(super) made: EventDraft,
    pub(super) uploads: Uploads,
    pub(super) same: EventIdentity,
}

/// Reads a request body in any of its formats.
pub(super) async fn read(
    gate: &SharedState,
    sender: &Principal,
    event_type: &str,
    same: EventIdentity,
    headers: &HeaderMap,
    body: Body,
) -> Result<ParsedBody, Problem> {
    let limits = &gate.node.settings.limits;
    let length =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| gate.settings.upload_bytes_max < length) {
        return Err(BodyError::TooBig(gate.settings.upload_bytes_max).into());
    }
    let one = |ids, data, uploads, same| {
        ParsedBody::One(Box::new(OneEvent {
            made: EventDraft::new(event_type, ids, data),
            uploads,
            same,
        }))
    };
    let form = BodyForm::from_headers(headers)?;
    match form {
        BodyForm::BinaryCloudEvent { attributes, is_json } => {
            let same = same.or_cloudevent(&attributes);
            let ids = same.ids(sender);
            let mut uploads = new_uploads(&ids, gate);
            let mut data = attributes.values;
            if is_json {
                let held = read_whole(gate, headers, body).await?;
                match json_text(held.bytes())?.trim_ascii_start() {
                    [] => {}
                    object @ [b'{', ..] => data.extend(parse_values(object, limits)?),
                    _ => uploads.store_bytes(DATA, held.bytes().to_vec()).await?,
                }
            } else {
                uploads.store_body(DATA, gate.body_of_files(headers, body)?).await?;
            }
            Ok(one(ids, data, uploads, same))
        }
        BodyForm::CloudEvent => {
            let held = read_whole(gate, headers, body).await?;
            let (attributes, carried) =
                cloudevent::read_structured(json_text(held.bytes())?, limits)?;
            let same = same.or_cloudevent(&attributes);
            let ids = same.ids(sender);
            let mut uploads = new_uploads(&ids, gate);
            let mut data = attributes.values;
            match carried {
                CloudEventData::Values(values) => data.extend(values),
                CloudEventData::File(bytes) => uploads.store_bytes(DATA, bytes).await?,
            }
            Ok(one(ids, data, uploads, same))
        }
        BodyForm::CloudEvents => {
            let held = read_whole(gate, headers, body).await?;
            Ok(ParsedBody::Batch(batch::from_cloudevents(gate, sender, event_type, &same, held)?))
        }
        BodyForm::Multipart { boundary } => {
            let ids = same.ids(sender);
            let mut uploads = new_uploads(&ids, gate);
            let data = uploads.read_form(gate.body_of_files(headers, body)?, &boundary).await?;
            Ok(one(ids, data, uploads, same))
        }
        BodyForm::UrlEncoded(_) | BodyForm::Json | BodyForm::Unsaid => {
            let held = read_whole(gate, headers, body).await?;
            let data = match (&form, held.bytes()) {
                (BodyForm::Unsaid, b"") => vec![],
                (BodyForm::Unsaid, _) => return Err(wrong_form("no Content-Type")),
                (BodyForm::UrlEncoded(charset), text) => parse_form_values(text, *charset, limits)?,
                (_, text) => match json_text(text)? {
                    array if array.trim_ascii_start().starts_with(b"[") => {
                        return Ok(ParsedBody::Batch(batch::from_objects(
                            gate, sender, event_type, &same, held,
                        )?));
                    }
                    object => parse_values(object, limits)?,
                },
            };
            let ids = same.ids(sender);
            let uploads = new_uploads(&ids, gate);
            Ok(one(ids, data, uploads, same))
        }
    }
}

async fn read_whole(
    gate: &SharedState,
    headers: &HeaderMap,
    body: Body,
) -> Result<BufferedBody, Problem> {
    Ok(gate.body_of_values(headers, body)?.read_whole(&gate.room).await?)
}

/// The character encoding of a form without files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FormCharset {
    Utf8,
    /// ISO-8859-1, the default of Java's clients.
    Latin1,
}

/// The format of a body.
#[derive(Debug)]
enum BodyForm {
    /// A CloudEvent with its attributes in headers.
    BinaryCloudEvent {
        attributes: Attributes,
        /// Whether the Content-Type says that the data is JSON.
        is_json: bool,
    },
    /// A CloudEvent as one JSON document.
    CloudEvent,
    /// A batch of CloudEvents.
    CloudEvents,
    /// A form that may have files.
    Multipart { boundary: String },
    /// A form without files.
    UrlEncoded(FormCharset),
    /// A JSON object of values, or an array of such objects.
    Json,
    /// There is no Content-Type; only an empty body is accepted.
    Unsaid,
}

impl BodyForm {
    fn from_headers(headers: &HeaderMap) -> Result<Self, Problem> {
        let content_type = match headers.get(header::CONTENT_TYPE) {
            Some(value) => {
                value.to_str().map_err(|_| wrong_form("a Content-Type that is not text"))?
            }
            None => "",
        };
        let parsed = content_type.parse::<mime::Mime>().ok();
        let essence = parsed.as_ref().map_or("", |form| form.essence_str());
        let is_json = parsed.as_ref().is_some_and(|form| {
            form.subtype() == mime::JSON || form.suffix().is_some_and(|suffix| suffix == mime::JSON)
        });
        match essence {
            // The Content-Type takes precedence over `ce-` headers.
            STRUCTURED => Ok(Self::CloudEvent),
            BATCH => Ok(Self::CloudEvents),
            _ if essence.starts_with("application/cloudevents") => Err(wrong_form(content_type)),
            _ if cloudevent::is_binary(headers) => Ok(Self::BinaryCloudEvent {
                attributes: Attributes::from_headers(headers)?,
                is_json,
            }),
            "multipart/form-data" => {
                let boundary = multer::parse_boundary(content_type);
                let wrong = |_| {
                    Problem::new(
                        ProblemKind::Malformed,
                        "the form's Content-Type names no boundary",
                    )
                };
                Ok(Self::Multipart { boundary: boundary.map_err(wrong)? })
            }
            "application/x-www-form-urlencoded" => {
                let charset = parsed.as_ref().and_then(|form| form.get_param(mime::CHARSET));
                match charset.map(|charset| charset.as_str().to_ascii_lowercase()).as_deref() {
                    None | Some("utf-8" | "utf8" | "us-ascii") => {
                        Ok(Self::UrlEncoded(FormCharset::Utf8))
                    }
                    Some("iso-8859-1" | "latin1") => Ok(Self::UrlEncoded(FormCharset::Latin1)),
                    Some(_) => {
                        let detail =
                            format!("{}: send forms in UTF-8 or ISO-8859-1", quote(content_type));
                        Err(Problem::new(ProblemKind::WrongForm, detail))
                    }
                }
            }
            _ if is_json => Ok(Self::Json),
            _ if content_type.is_empty() => Ok(Self::Unsaid),
            _ => Err(wrong_form(content_type)),
        }
    }
}

fn wrong_form(content_type: &str) -> Problem {
    Problem::new(
        ProblemKind::WrongForm,
        format!(
            "{} is not supported; send application/json or application/x-www-form-urlencoded (values), multipart/form-data (files and values), \
             or a CloudEvent (ce- headers, {STRUCTURED} or {BATCH})",
            quote(content_type)
        ),
    )
}

/// Reads the values of a form without files: `a=1&b=two+words`. A name that occurs several times
/// gives several values.
fn parse_form_values(
    body: &[u8],
    charset: FormCharset,
    limits: &Limits,
) -> Result<Vec<KeyValue>, Problem> {
    // A form never begins with these bytes, because they are escaped in it. `curl -d` labels every
    // body as a form.
    if matches!(body.trim_ascii_start().first(), Some(b'{' | b'[')) {
        let detail = "the body is JSON, but its Content-Type says that it is a form; \
                      send the header \"Content-Type: application/json\"";
        return Err(Problem::new(ProblemKind::WrongForm, detail));
    }
    let mut values = Vec::new();
    for pair in body.split(|&byte| byte == b'&').filter(|pair| !pair.is_empty()) {
        if values.len() as u64 >= limits.event_values {
            let detail = format!("an event may have {} values", limits.event_values);
            return Err(Problem::new(ProblemKind::TooBig, detail));
        }
        let at = pair.iter().position(|&byte| byte == b'=');
        let (key, value) = at.map_or((pair, &[][..]), |at| (&pair[..at], &pair[at + 1..]));
        let read = |text: &[u8]| {
            let spaced: Vec<u8> =
                text.iter().map(|&byte| if byte == b'+' { b' ' } else { byte }).collect();
            let bytes: Vec<u8> = percent_decode(&spaced).collect();
            match charset {
                FormCharset::Utf8 => String::from_utf8(bytes).ok(),
                FormCharset::Latin1 => Some(bytes.into_iter().map(char::from).collect()),
            }
        };
        let not_text = || {
            let key = String::from_utf8_lossy(key);
            let key = quote(&key);
            let detail = format!(
                "value {key} is not UTF-8; name its charset in the Content-Type, or send the value \
                 as a file"
            );
            Problem::new(ProblemKind::Refused, detail)
        };
        let (key, value) = (read(key).ok_or_else(not_text)?, read(value).ok_or_else(not_text)?);
        if key.is_empty() {
            return Err(Problem::new(ProblemKind::Malformed, "a value of the form has no name"));
        }
        values.push(KeyValue { key, value });
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn pairs(body: &str, charset: FormCharset) -> Result<Vec<(String, String)>, ProblemKind> {
        let values = parse_form_values(body.as_bytes(), charset, &Limits::default());
        let values = values.map_err(|problem| problem.kind())?;
        Ok(values.into_iter().map(|pair| (pair.key, pair.value)).collect())
    }

    #[test]
    fn a_form_is_read_as_browsers_and_programs_write_it() {
        let read = |body| pairs(body, FormCharset::Utf8);
        let expected = |pairs: &[(&str, &str)]| {
            Ok(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
        };
        assert_eq!(read(""), expected(&[]));
        assert_eq!(read("a=1&a=2&b"), expected(&[("a", "1"), ("a", "2"), ("b", "")]));
        assert_eq!(
            read("two+words=%2B%26%3D&x=a=b&"),
            expected(&[("two words", "+&="), ("x", "a=b")])
        );
        assert_eq!(read("%C3%A4=%F0%9F%98%80&100%=%zz"), expected(&[("ä", "😀"), ("100%", "%zz")]));
        assert_eq!(read("ä=ö"), expected(&[("ä", "ö")]));
        assert_eq!(pairs("%E4=%F6", FormCharset::Latin1), expected(&[("ä", "ö")]));
        assert_eq!(read("a=%E4"), Err(ProblemKind::Refused));
        assert_eq!(read("=1"), Err(ProblemKind::Malformed));
        assert_eq!(read(" {\"a\": 1}"), Err(ProblemKind::WrongForm));
        assert_eq!(read("%7B=1"), expected(&[("{", "1")]));
        assert_eq!(read(&"a&".repeat(10_001)), Err(ProblemKind::TooBig));
    }

    #[test]
    fn a_content_type_says_which_form_it_is() {
        let of = |content_type: &'static str, ce: bool| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
            if ce {
                for (name, value) in [
                    ("ce-specversion", "1.0"),
                    ("ce-id", "1"),
                    ("ce-source", "s"),
                    ("ce-type", "t"),
                ] {
                    headers.insert(name, HeaderValue::from_static(value));
                }
            }
            match BodyForm::from_headers(&headers) {
                Ok(BodyForm::BinaryCloudEvent { is_json, .. }) => {
                    if is_json {
                        "binary json"
                    } else {
                        "binary"
                    }
                }
                Ok(BodyForm::CloudEvent) => "cloudevent",
                Ok(BodyForm::CloudEvents) => "cloudevents",
                Ok(BodyForm::Multipart { .. }) => "multipart",
                Ok(BodyForm::UrlEncoded(FormCharset::Utf8)) => "form",
                Ok(BodyForm::UrlEncoded(FormCharset::Latin1)) => "latin form",
                Ok(BodyForm::Json) => "json",
                Ok(BodyForm::Unsaid) => "unsaid",
                Err(problem) => problem.kind().details().1,
            }
        };
        for (content_type, form) in [
            ("application/json", "json"),
            ("Application/JSON; charset=\"utf-8\"", "json"),
            ("text/json", "json"),
            ("application/vnd.github+json", "json"),
            ("application/ld+json; profile=\"x\"", "json"),
            ("application/x-www-form-urlencoded", "form"),
            ("application/x-www-form-urlencoded; charset=UTF-8", "form"),
            ("application/x-www-form-urlencoded;charset=ISO-8859-1", "latin form"),
            ("application/x-www-form-urlencoded; charset=koi8-r", "wrong-form"),
            ("multipart/form-data; boundary=x", "multipart"),
            ("multipart/form-data", "malformed"),
            ("application/cloudevents+json; charset=utf-8", "cloudevent"),
            ("application/cloudevents-batch+json", "cloudevents"),
            ("application/cloudevents+avro", "wrong-form"),
            ("text/plain", "wrong-form"),
            ("json", "wrong-form"),
            ("", "unsaid"),
        ] {
            assert_eq!(of(content_type, false), form, "{content_type}");
        }
        for (content_type, form) in [
            ("application/cloudevents+json", "cloudevent"),
            ("application/vnd.x+json", "binary json"),
            ("multipart/form-data; boundary=x", "binary"),
            ("", "binary"),
        ] {
            assert_eq!(of(content_type, true), form, "{content_type} with headers of a CloudEvent");
        }
    }
}
