//! Reads of correlations ("looks"), shared by all clients that wait for the same one.
//!
//! A look reads a correlation from the stores. This takes long, and for a large correlation it
//! takes much memory. So there is at most one look at a time at each correlation, and its result
//! serves every client that asked before it began: hundreds of clients that wait for one
//! correlation cost as much as one. While a job is known to be under way, a look reads the record
//! of that job alone.
//!
//! The documents of a look are serialized once, in pieces. Every answer sends the same pieces.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex as Lock, PoisonError, Weak};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use ion_jobs::ledger::Ledger;
use ion_jobs::progress::{Trace, Verdict, is_under_way};
use ion_model::id::JobId;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::problem::{Problem, ProblemKind};

/// How many whole correlations may be read at once: each is in memory as records meanwhile.
const READ_MAX: usize = 4;

/// The maximum bytes of all answers in memory. A correlation of 10,000 events has about 20 MiB.
const ANSWERS_MAX: usize = 256 << 20;

/// Bytes of one permit of the memory for answers.
const PERMIT: usize = 1024;

/// Bytes of a piece of an answer.
const PIECE: usize = 64 << 10;

/// How long a look that found the correlation running is reused for clients that only need its
/// verdict: the minimum and the maximum. Between them it is [`STANDS_TIMES`] the time that the look
/// took, so that looks take only a part of the time.
const STANDS: Duration = Duration::from_millis(20);
const STANDS_MAX: Duration = Duration::from_secs(5);
const STANDS_TIMES: u32 = 4;

/// How long a job that has not ended spares reading the whole correlation. The limit is needed
/// because the job's module may have been removed.
const WHOLE_EVERY: Duration = Duration::from_secs(10);

/// The looks of a gateway.
#[derive(Debug)]
pub(super) struct CorrelationLooks {
    open: Lock<HashMap<String, Weak<WatchedCorrelation>>>,
    reading: Semaphore,
    answers: Arc<Semaphore>,
}

/// What a client needs from a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LookNeed {
    /// The correlation's verdict.
    Verdict,
    /// The verdict and the documents.
    Documents,
}

/// One correlation that clients wait for.
#[derive(Debug, Default)]
pub(super) struct WatchedCorrelation {
    /// The task that looks holds the lock; the others wait for its result.
    last: Mutex<Option<Arc<CorrelationLook>>>,
}

/// The result of a look.
#[derive(Debug)]
pub(super) struct CorrelationLook {
    begun: Instant,
    took: Duration,
    /// When the whole correlation was last read.
    whole: Instant,
    under_way: Vec<JobId>,
    /// Whether the correlation exists.
    pub(super) found: bool,
    /// The correlation's verdict.
    pub(super) verdict: Verdict,
    /// The correlation's documents, if a client needs them.
    pub(super) documents: Option<SharedDocuments>,
}

impl CorrelationLook {
    /// Returns whether this look answers a client that asked at `asked`: it began after that, or it
    /// found the correlation running and is recent.
    fn can_answer(&self, need: LookNeed, asked: Instant) -> bool {
        let stands = (self.took * STANDS_TIMES).clamp(STANDS, STANDS_MAX);
        match need {
            LookNeed::Documents => self.documents.is_some() && self.begun >= asked,
            // A client that receives `Running` asks again.
            LookNeed::Verdict if self.found && self.verdict == Verdict::Running => {
                self.begun.elapsed() < stands
            }
            LookNeed::Verdict => self.begun >= asked,
        }
    }
}

impl CorrelationLooks {
    pub(super) fn new() -> Self {
        Self {
            open: Lock::default(),
            reading: Semaphore::new(READ_MAX),
            answers: Arc::new(Semaphore::new(ANSWERS_MAX / PERMIT)),
        }
    }

    /// Returns the semaphore that limits how many large lists may be read into memory at once.
    pub(super) fn read_permits(&self) -> &Semaphore {
        &self.reading
    }

    /// Returns a body of this text, which counts as an answer in memory until it is sent or
    /// dropped.
    pub(super) fn counted_body(&self, text: Vec<u8>) -> Result<Body, AnswersFull> {
        let permits = u32::try_from(text.len().div_ceil(PERMIT)).map_err(|_| AnswersFull)?;
        let held = self.answers.clone().try_acquire_many_owned(permits).map_err(|_| AnswersFull)?;
        let pieces = stream::unfold((Bytes::from(text), held), |(mut text, held)| async move {
            let piece = text.split_to(text.len().min(PIECE));
            (!piece.is_empty()).then_some((Ok::<_, std::convert::Infallible>(piece), (text, held)))
        });
        Ok(Body::from_stream(pieces))
    }

    /// Returns the shared looks at a correlation. A client keeps the value as long as it waits.
    pub(super) fn watched_correlation(&self, correlation: &str) -> Arc<WatchedCorrelation> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watched) = open.get(correlation).and_then(Weak::upgrade) {
            return watched;
        }
        open.retain(|_, watched| watched.strong_count() > 0);
        let watched = Arc::<WatchedCorrelation>::default();
        open.insert(correlation.to_owned(), Arc::downgrade(&watched));
        watched
    }

    /// Returns a look that answers a client that asked at `asked`.
    pub(super) async fn get_or_read(
        &self,
        ledger: &Ledger,
        (correlation, watched): (&str, &WatchedCorrelation),
        need: LookNeed,
        asked: Instant,
    ) -> Result<Arc<CorrelationLook>, Problem> {
        let mut last = watched.last.lock().await;
        if let Some(seen) = last.as_ref().filter(|seen| seen.can_answer(need, asked)) {
            return Ok(seen.clone());
        }
        // The documents of the previous look are no longer needed.
        let before = last.take();
        let seen = self.read_correlation(ledger, correlation, need, before.as_deref()).await?;
        Ok(last.insert(Arc::new(seen)).clone())
    }

    async fn read_correlation(
        &self,
        ledger: &Ledger,
        correlation: &str,
        need: LookNeed,
        before: Option<&CorrelationLook>,
    ) -> Result<CorrelationLook, Problem> {
        let begun = Instant::now();
        if let Some(before) = before.filter(|_| need == LookNeed::Verdict)
            && before.whole.elapsed() < WHOLE_EVERY
            && is_under_way(ledger, &before.under_way).await?
        {
            let (took, under_way) = (begun.elapsed(), before.under_way.clone());
            let verdict = Verdict::Running;
            return Ok(CorrelationLook {
                begun,
                took,
                whole: before.whole,
                under_way,
                found: true,
                verdict,
                documents: None,
            });
        }
        let _reading = self.reading.acquire().await;
        let begun = Instant::now();
        let trace = Trace::read(ledger, correlation).await?;
        let (found, verdict) = (!trace.status.events.is_empty(), trace.status.verdict());
        let under_way = trace.status.under_way.clone();
        // A client that waits for the end needs the documents then.
        let wanted = need == LookNeed::Documents || verdict != Verdict::Running;
        let answers = self.answers.clone();
        let documents = tokio::task::spawn_blocking(move || {
            wanted.then(|| SharedDocuments::from_trace(&trace, answers)).transpose()
        });
        let documents = documents
            .await
            .map_err(|error| Problem::new(ProblemKind::Internal, error.to_string()))??;
        Ok(CorrelationLook {
            begun,
            took: begun.elapsed(),
            whole: begun,
            under_way,
            found,
            verdict,
            documents,
        })
    }
}

impl From<AnswersFull> for Problem {
    fn from(full: AnswersFull) -> Self {
        Self::new(ProblemKind::Busy, full.to_string())
    }
}

/// The memory for answers is used up.
#[derive(Debug, thiserror::Error)]
#[error("the memory for answers is used up; ask again in a moment, or use `ion trace`")]
pub(super) struct AnswersFull;

/// The documents of a correlation: a JSON array, in pieces that all answers share.
#[derive(Clone, Debug)]
pub(super) struct SharedDocuments {
    pieces: Arc<AnswerPieces>,
}

#[derive(Debug)]
struct AnswerPieces {
    all: Vec<Bytes>,
    bytes: u64,
    _room: Option<OwnedSemaphorePermit>,
}

impl SharedDocuments {
    fn from_trace(trace: &Trace, room: Arc<Semaphore>) -> Result<Self, AnswersFull> {
        let mut text =
            PieceWriter { all: Vec::new(), open: Vec::with_capacity(PIECE), room, held: None };
        text.put(b"[")?;
        let mut first = true;
        trace.for_each_document(|document| {
            if !std::mem::replace(&mut first, false) {
                text.put(b",")?;
            }
            serde_json::to_writer(&mut text, document).map_err(|_| AnswersFull)
        })?;
        text.put(b"]")?;
        text.end_piece()?;
        let bytes = text.all.iter().map(|piece| piece.len() as u64).sum();
        Ok(Self { pieces: Arc::new(AnswerPieces { all: text.all, bytes, _room: text.held }) })
    }

    /// Returns a body of these documents between two texts, and its length.
    pub(super) fn body(&self, before: String, after: String) -> (Body, u64) {
        let length = before.len() as u64 + self.pieces.bytes + after.len() as u64;
        let (pieces, mut next) = (self.pieces.clone(), 0);
        let shared = stream::iter(std::iter::from_fn(move || {
            next += 1;
            pieces.all.get(next - 1).cloned()
        }));
        let ends = |text: String| stream::iter((!text.is_empty()).then(|| Bytes::from(text)));
        let all = ends(before).chain(shared).chain(ends(after));
        (Body::from_stream(all.map(Ok::<_, std::convert::Infallible>)), length)
    }
}

/// A writer that collects text in pieces.
struct PieceWriter {
    all: Vec<Bytes>,
    open: Vec<u8>,
    room: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

impl PieceWriter {
    fn put(&mut self, text: &[u8]) -> Result<(), AnswersFull> {
        if self.open.len() + text.len() > PIECE {
            self.end_piece()?;
        }
        self.open.extend_from_slice(text);
        Ok(())
    }

    fn end_piece(&mut self) -> Result<(), AnswersFull> {
        let piece = Bytes::from(std::mem::replace(&mut self.open, Vec::with_capacity(PIECE)));
        // A piece counts with the memory it takes, not with the bytes in it.
        let permits =
            u32::try_from(piece.len().max(PIECE).div_ceil(PERMIT)).map_err(|_| AnswersFull)?;
        let more = self.room.clone().try_acquire_many_owned(permits).map_err(|_| AnswersFull)?;
        match &mut self.held {
            Some(held) => held.merge(more),
            None => self.held = Some(more),
        }
        self.all.push(piece);
        Ok(())
    }
}

impl io::Write for PieceWriter {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.put(text).map_err(io::Error::other)?;
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
