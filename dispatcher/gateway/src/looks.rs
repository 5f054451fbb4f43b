//! Reads of correlations ("looks"), shared by all clients that wait for the same one.
//!
//! A look counts the jobs of a correlation, and reads its documents if a client needs them. There is
//! at most one look at a time at each correlation, and its result serves every client that asked
//! before it began: hundreds of clients that wait for one correlation cost as much as one. While a
//! job is known to be under way, a look reads the record of that job alone.
//!
//! The documents of a look are serialized once, in pieces. Every answer sends the same pieces. They
//! are the first [`DOCUMENTS_MAX`] of the correlation; an answer says where the others begin, and a
//! client that asks for those has an answer of its own.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex as Lock, PoisonError, Weak};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use ion_jobs::ledger::Ledger;
use ion_jobs::progress::{CorrelationWatch, DocumentCursor, DocumentPages, Verdict, is_under_way};
use ion_model::id::JobId;
use ion_stores::Documents;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::problem::{Problem, ProblemKind};

/// How many correlations may be read at once: each has a page of documents in memory meanwhile.
const READ_MAX: usize = 4;

/// How many documents an answer has, at most. A client that wants more goes on where the answer ends;
/// a larger number makes one client hold more of the memory for answers.
pub(super) const DOCUMENTS_MAX: usize = 10_000;

/// How many documents are read together.
const PAGE_DOCUMENTS: usize = 128;

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

/// How long a job that has not ended spares counting the correlation's jobs. The limit is needed
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
#[derive(Debug)]
pub(super) struct WatchedCorrelation {
    /// The task that looks holds the lock; the others wait for its result.
    state: Mutex<WatchState>,
}

#[derive(Debug)]
struct WatchState {
    watch: CorrelationWatch,
    last: Option<Arc<CorrelationLook>>,
}

impl WatchedCorrelation {
    fn new(correlation: &str) -> Self {
        let watch = CorrelationWatch::new(correlation);
        Self { state: Mutex::new(WatchState { watch, last: None }) }
    }
}

/// The result of a look.
#[derive(Debug)]
pub(super) struct CorrelationLook {
    begun: Instant,
    took: Duration,
    /// When the correlation's jobs were last counted.
    whole: Instant,
    under_way: Vec<JobId>,
    /// Whether the correlation exists.
    pub(super) found: bool,
    /// The correlation's verdict.
    pub(super) verdict: Verdict,
    /// The correlation's first documents, if a client needs them.
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
        let watched = Arc::new(WatchedCorrelation::new(correlation));
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
        let mut state = watched.state.lock().await;
        if let Some(seen) = state.last.as_ref().filter(|seen| seen.can_answer(need, asked)) {
            return Ok(seen.clone());
        }
        // The documents of the previous look are no longer needed.
        let before = state.last.take();
        let before = before.as_deref();
        let watch = &mut state.watch;
        let seen = self.read_correlation(ledger, (correlation, watch), need, before).await?;
        Ok(state.last.insert(Arc::new(seen)).clone())
    }

    /// Reads the documents that come after a place, for one client.
    pub(super) async fn read_documents_after(
        &self,
        ledger: &Ledger,
        correlation: &str,
        cursor: &DocumentCursor,
    ) -> Result<SharedDocuments, Problem> {
        let _reading = self.reading.acquire().await;
        let pages = DocumentPages::after(correlation, cursor);
        let documents = &*ledger.plane().documents;
        SharedDocuments::read(documents, correlation, pages, self.answers.clone()).await
    }

    async fn read_correlation(
        &self,
        ledger: &Ledger,
        (correlation, watch): (&str, &mut CorrelationWatch),
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
        let registered = ledger.registered_modules().await?;
        let status = watch.read(ledger, &registered).await?;
        let verdict = status.verdict();
        // A client that waits for the end needs the documents then.
        let documents = match need == LookNeed::Documents || verdict != Verdict::Running {
            false => None,
            true => {
                let (pages, answers) = (DocumentPages::new(correlation), self.answers.clone());
                let documents = &*ledger.plane().documents;
                Some(SharedDocuments::read(documents, correlation, pages, answers).await?)
            }
        };
        Ok(CorrelationLook {
            begun,
            took: begun.elapsed(),
            whole: begun,
            under_way: status.under_way,
            found: status.exists,
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

/// Documents of a correlation: a JSON array, in pieces that all answers share.
#[derive(Clone, Debug)]
pub(super) struct SharedDocuments {
    pieces: Arc<AnswerPieces>,
    /// The path by which a client gets the documents that follow, if any do.
    pub(super) next: Option<String>,
}

#[derive(Debug)]
struct AnswerPieces {
    all: Vec<Bytes>,
    bytes: u64,
    _room: Option<OwnedSemaphorePermit>,
}

impl SharedDocuments {
    /// Reads the next documents of these pages, at most [`DOCUMENTS_MAX`].
    async fn read(
        documents: &dyn Documents,
        correlation: &str,
        mut pages: DocumentPages,
        room: Arc<Semaphore>,
    ) -> Result<Self, Problem> {
        let mut text =
            PieceWriter { all: Vec::new(), open: Vec::with_capacity(PIECE), room, held: None };
        text.put(b"[")?;
        let (mut count, mut last) = (0, None);
        let mut page = pages.next(documents, PAGE_DOCUMENTS).await?;
        while !page.is_empty() && count < DOCUMENTS_MAX {
            for (cursor, document) in page {
                if count > 0 {
                    text.put(b",")?;
                }
                serde_json::to_writer(&mut text, &document).map_err(|_| AnswersFull)?;
                (count, last) = (count + 1, Some(cursor));
            }
            page = pages.next(documents, PAGE_DOCUMENTS.min(DOCUMENTS_MAX - count).max(1)).await?;
        }
        text.put(b"]")?;
        text.end_piece()?;
        let bytes = text.all.iter().map(|piece| piece.len() as u64).sum();
        let next = last.filter(|_| !page.is_empty()).map(|last| path_after(correlation, &last));
        let pieces = Arc::new(AnswerPieces { all: text.all, bytes, _room: text.held });
        Ok(Self { pieces, next })
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

/// Returns the path of the documents of a correlation that come after a place.
fn path_after(correlation: &str, cursor: &DocumentCursor) -> String {
    let correlation = utf8_percent_encode(correlation, NON_ALPHANUMERIC);
    let cursor = cursor.to_string();
    format!("/correlations/{correlation}?after={}", utf8_percent_encode(&cursor, NON_ALPHANUMERIC))
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
