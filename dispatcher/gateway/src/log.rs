//! The log of a job: as text, all that is there now; as server-sent events, until the job ends.
//!
//! Each event of the stream holds whole lines; a carriage return also ends a line. The event's id
//! is `<attempt>:<byte after the lines>`, so that a client that lost its connection continues where
//! it was (`Last-Event-ID`). The last event has the type `end`. A browser that reconnects after it
//! receives a 204: there is nothing more.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use ion_jobs::ledger::LedgerError;
use ion_jobs::logs::{LogError, LogRead, LogReader};
use ion_model::id::JobId;
use ion_model::record::JobRecord;
use serde_json::json;
use tokio::time::Instant;

use super::auth::Scope;
use super::problem::{Problem, ProblemKind};
use super::route::{Access, PathParams, Route, parse_query};
use super::{SharedState, openapi};

/// The media type of server-sent events.
const EVENT_STREAM: &str = "text/event-stream";

/// The first pause when there is nothing new; it doubles up to [`LOOK_MAX`] while the job stays
/// silent.
const LOOK: Duration = Duration::from_millis(100);

/// The longest pause; each look reads the job's record.
const LOOK_MAX: Duration = Duration::from_secs(1);

/// How long a stream may be silent before a comment is sent: proxies close a silent connection.
const ALIVE: Duration = Duration::from_secs(15);

/// The maximum bytes of a line that are held until the line ends.
const LINE_MAX: usize = 64 << 10;

/// Returns the routes.
pub(super) fn routes() -> Vec<Route> {
    vec![Route::get(
        "/jobs/{job}/log",
        Access::Needs(Scope::JobsRead),
        send_log,
        json!({
            "operationId": "log", "summary": "What a job wrote to stdout and stderr",
            "description": "With `Accept: text/event-stream`, server-sent events until the job ends.",
            "parameters": [
                {"name": "job", "in": "path", "required": true, "description": "The job's id.", "schema": {"type": "string", "minLength": 1}},
                {"name": "attempt", "in": "query", "description": "The attempt; without it, the latest.",
                 "schema": {"type": "integer", "minimum": 1, "maximum": u32::MAX}},
                {"name": "Last-Event-ID", "in": "header", "description": "The id of the last event that was received.",
                 "schema": {"type": "string", "pattern": "^([0-9]{1,9}:[0-9]{1,15}|end)$"}},
            ],
            "responses": {
                "200": {"description": "The job's output.", "content": {
                    "text/plain": {"schema": {"type": "string"}}, EVENT_STREAM: {"schema": {"type": "string"}},
                }},
                "204": {"description": "The client has already received the last event."},
                "400": openapi::problem("The path, a parameter or a header cannot be read."),
                "404": openapi::problem("The job does not exist, or it has no such attempt."),
            },
        }),
    )]
}

impl From<LogError> for Problem {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Ledger(LedgerError::Store(error)) | LogError::Store(error) => error.into(),
            error @ (LogError::Ledger(LedgerError::NoSuchJob(_)) | LogError::NoAttempt { .. }) => {
                Self::new(ProblemKind::NotFound, error.to_string())
            }
            error => Self::new(ProblemKind::Internal, ion_model::errors::error_chain(&error)),
        }
    }
}

async fn send_log(
    State(gate): State<SharedState>,
    PathParams(job): PathParams<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let parameters = parse_query(query.as_deref(), &["attempt"])?;
    let number = |text: &String| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
        let number = text.parse::<u32>().ok().filter(|_| digits);
        number.ok_or_else(|| {
            Problem::new(
                ProblemKind::Malformed,
                format!("attempt={text:?} is not a number from 1 on"),
            )
        })
    };
    let choice = match parameters.get("attempt").map(number).transpose()? {
        None => AttemptChoice::Latest,
        Some(attempt) => AttemptChoice::Only(attempt),
    };
    let last = headers.get("last-event-id").map(parse_position).transpose()?;
    let job = gate
        .within_deadline(async { Ok::<_, LogError>(gate.ledger.get(&JobId::new(job)).await?) })
        .await?;
    let accepts =
        headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let (form, body) = if accepts.contains(EVENT_STREAM) {
        let (attempt, at) = match last {
            Some(StreamPosition::End) => return Ok(StatusCode::NO_CONTENT.into_response()),
            Some(StreamPosition::After(attempt, at)) => (attempt, at),
            None => (choice.first_attempt(&job), 0),
        };
        (EVENT_STREAM, LogFollower::new(&gate, &job, attempt, at, choice).into_body().await?)
    } else {
        let attempt = choice.first_attempt(&job);
        ("text/plain; charset=utf-8", text_body(&gate, &job, attempt).await?)
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(form));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// The attempts whose output a client receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AttemptChoice {
    /// The latest attempt; a stream goes on with the attempts that begin after it.
    Latest,
    /// The attempt of this number, which is not 0.
    Only(u32),
}

impl AttemptChoice {
    /// Returns the number of the first attempt to read: 0 if the job has not begun.
    fn first_attempt(self, job: &JobRecord) -> u32 {
        match self {
            Self::Latest => job.attempt,
            Self::Only(attempt) => attempt,
        }
    }
}

/// The place in a stream that a client has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StreamPosition {
    /// After this byte of this attempt.
    After(u32, u64),
    /// The client has received the last event.
    End,
}

fn parse_position(id: &HeaderValue) -> Result<StreamPosition, Problem> {
    let id = id.to_str().unwrap_or_default();
    let after = |id: &str| {
        let (attempt, at) = id.split_once(':')?;
        Some(StreamPosition::After(attempt.parse().ok()?, at.parse().ok()?))
    };
    match id {
        "end" => Ok(StreamPosition::End),
        id => after(id).ok_or_else(|| {
            Problem::new(
                ProblemKind::Malformed,
                format!(
                    "Last-Event-ID {id:?} is not an id of this stream; write ATTEMPT:BYTE or end"
                ),
            )
        }),
    }
}

/// Returns the log as it is now. A job that has not begun has an empty log.
async fn text_body(gate: &SharedState, job: &JobRecord, attempt: u32) -> Result<Body, Problem> {
    if attempt == 0 {
        return Ok(Body::empty());
    }
    let mut log =
        LogReader::new(gate.ledger.clone(), &gate.node.settings.home, &job.id, attempt, 0);
    let LogRead::More(first) = gate.within_deadline(log.next()).await? else {
        return Ok(Body::empty());
    };
    let rest = stream::try_unfold(log, |mut log| async move {
        match log.next().await {
            Ok(LogRead::More(piece)) => Ok(Some((piece, log))),
            Ok(LogRead::NothingYet | LogRead::Nothing) => Ok(None),
            Err(error) => Err(error),
        }
    });
    Ok(Body::from_stream(stream::once(async move { Ok::<Bytes, LogError>(first) }).chain(rest)))
}

/// The stream of one client that follows a job.
struct LogFollower {
    gate: SharedState,
    job: JobId,
    attempt: u32,
    /// Whether the stream goes on with later attempts.
    choice: AttemptChoice,
    log: LogReader,
    /// The bytes of a line that has not ended.
    rest: Vec<u8>,
    /// Whether the last line that was sent ended with a carriage return: a newline after it does
    /// not end another line.
    ended_by_return: bool,
    pause: Duration,
    silent_since: Instant,
    ended: bool,
}

impl LogFollower {
    fn new(
        gate: &SharedState,
        job: &JobRecord,
        attempt: u32,
        at: u64,
        choice: AttemptChoice,
    ) -> Self {
        Self {
            gate: gate.clone(),
            job: job.id.clone(),
            attempt,
            choice,
            log: LogReader::new(
                gate.ledger.clone(),
                &gate.node.settings.home,
                &job.id,
                attempt,
                at,
            ),
            rest: Vec::new(),
            ended_by_return: false,
            pause: LOOK,
            silent_since: Instant::now(),
            ended: false,
        }
    }

    /// Returns the stream. The first look is taken before this returns, so that an error is
    /// answered with a problem and not with a stream that breaks off.
    async fn into_body(mut self) -> Result<Body, Problem> {
        let gate = self.gate.clone();
        let first = if self.attempt == 0 {
            Bytes::new()
        } else {
            gate.within_deadline(self.read_news()).await?.unwrap_or_default()
        };
        let begin = stream::once(async move { Ok::<Bytes, LogError>(first) });
        let rest = stream::try_unfold(self, |mut this| async move {
            let next = this.next().await?;
            Ok::<_, LogError>(next.map(|next| (next, this)))
        });
        Ok(Body::from_stream(begin.chain(rest)))
    }

    /// Returns the bytes to send next, or none at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, LogError> {
        while !self.ended && !self.gate.stopping.is_cancelled() {
            if let Some(news) = self.read_news().await? {
                self.pause = LOOK;
                self.silent_since = Instant::now();
                return Ok(Some(news));
            }
            if self.silent_since.elapsed() >= ALIVE {
                self.silent_since = Instant::now();
                return Ok(Some(Bytes::from_static(b":\n\n")));
            }
            tokio::select! {
                () = self.gate.stopping.cancelled() => {}
                () = tokio::time::sleep(self.pause) => {}
            }
            self.pause = (self.pause * 2).min(LOOK_MAX);
        }
        Ok(None)
    }

    /// Reads the log once, and returns what is new.
    async fn read_news(&mut self) -> Result<Option<Bytes>, LogError> {
        let read = if self.attempt == 0 { LogRead::Nothing } else { self.log.next().await? };
        match read {
            LogRead::More(piece) => {
                // The line was sent when its carriage return came.
                let after_return = std::mem::take(&mut self.ended_by_return);
                let piece = piece.strip_prefix(b"\n").filter(|_| after_return).unwrap_or(&piece);
                self.rest.extend_from_slice(piece);
                // Programs show their progress with lines that end with a carriage return, so such
                // a line is sent at once.
                let whole = match self.rest.iter().rposition(|byte| matches!(byte, b'\n' | b'\r')) {
                    Some(last) => last + 1,
                    None if self.rest.len() > LINE_MAX => self.rest.len(),
                    None => return Ok(None),
                };
                Ok(Some(self.take_lines(whole)))
            }
            LogRead::NothingYet => Ok(None),
            LogRead::Nothing if !self.rest.is_empty() => Ok(Some(self.take_lines(self.rest.len()))),
            LogRead::Nothing => self.end_or_next_attempt().await,
        }
    }

    /// Takes the first bytes of the held text as an event.
    fn take_lines(&mut self, bytes: usize) -> Bytes {
        let text: Vec<u8> = self.rest.drain(..bytes).collect();
        self.ended_by_return = text.ends_with(b"\r");
        let text = String::from_utf8_lossy(&text);
        let mut event =
            format!("id: {}:{}\n", self.attempt, self.log.offset() - self.rest.len() as u64);
        // A carriage return ends a line of the event stream as well.
        for line in text.strip_suffix(['\n', '\r']).unwrap_or(&text).split('\n') {
            for part in line.strip_suffix('\r').unwrap_or(line).split('\r') {
                event.push_str("data: ");
                event.push_str(part);
                event.push('\n');
            }
        }
        event.push('\n');
        event.into()
    }

    /// Sends the end of the job, or goes on to its next attempt.
    async fn end_or_next_attempt(&mut self) -> Result<Option<Bytes>, LogError> {
        let job = self.gate.ledger.get(&self.job).await?;
        let follows_later = self.choice == AttemptChoice::Latest;
        if follows_later && job.attempt > self.attempt {
            self.attempt += 1;
            self.ended_by_return = false;
            self.log = LogReader::new(
                self.gate.ledger.clone(),
                &self.gate.node.settings.home,
                &self.job,
                self.attempt,
                0,
            );
            return Ok(None);
        }
        if follows_later && !job.state.is_final() {
            return Ok(None);
        }
        self.ended = true;
        let attempt = job.attempts.iter().find(|attempt| attempt.number == self.attempt);
        let end = json!({
            "state": job.state, "attempt": self.attempt, "end": attempt.and_then(|attempt| attempt.end),
            "reason": attempt.and_then(|attempt| attempt.reason.as_ref()),
        });
        Ok(Some(format!("event: end\nid: end\ndata: {end}\n\n").into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_goes_on_where_it_was() {
        let at = |id: &'static str| {
            parse_position(&HeaderValue::from_static(id)).map_err(|problem| problem.kind())
        };
        assert_eq!(at("2:1024"), Ok(StreamPosition::After(2, 1024)));
        assert_eq!(at("end"), Ok(StreamPosition::End));
        for wrong in ["", "2", "2:", ":1", "-1:2", "a:b"] {
            assert_eq!(at(wrong), Err(ProblemKind::Malformed), "{wrong}");
        }
    }
}
