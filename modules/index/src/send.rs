//! Sends one batch until the server has decided about each of its documents.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::answer::{BulkAnswer, Fate, judge};
use crate::batch::Batch;
use crate::error::IndexError;
use crate::rejected::RejectedItem;
use crate::retry::{Patience, RetrySettings, wait};
use crate::server::Server;

/// After so many requests in a row that were sent and not answered, a batch is halved. Some servers
/// and proxies close the connection on a request that is too large, instead of answering 413.
const CUTS_BEFORE_HALVES: u32 = 3;

/// What a bulk request asks for, in the words of errors.
const ACT: &str = "index documents";

/// What has become of a batch.
#[derive(Debug, Default)]
pub(crate) struct BatchOutcome {
    pub(crate) counts: Counts,
    pub(crate) rejected: Vec<RejectedItem>,
    /// The indices that have a document of the batch.
    pub(crate) indices: BTreeSet<Arc<str>>,
}

/// What was done, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) created: u64,
    pub(crate) updated: u64,
    pub(crate) already_there: u64,
    pub(crate) requests: u64,
    /// Documents that were sent once more.
    pub(crate) sent_again: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        let Self { created, updated, already_there, requests, sent_again } = other;
        self.created += created;
        self.updated += updated;
        self.already_there += already_there;
        self.requests += requests;
        self.sent_again += sent_again;
    }
}

/// Sends a batch. Each document is then in its index, or among the rejected ones.
///
/// Flow: a request is sent; documents that the server had no room for are sent again after a wait,
/// and so is a whole request of which nobody knows what became. A request that is too large, or that
/// the server cannot read, is halved until the document that is the cause stands alone.
///
/// Guarantees: sending a document again is harmless, because its id, and with versions its version,
/// says which document it is.
///
/// Errors: when the server refuses such documents altogether, and when tries or time are used up.
pub(crate) async fn send_batch(
    server: &Server,
    batch: Batch,
    retry: RetrySettings,
    stop: &CancellationToken,
) -> Result<BatchOutcome, IndexError> {
    let mut outcome = BatchOutcome::default();
    let mut patience = Patience::new(retry, Instant::now());
    let mut cuts = 0;
    let mut unsent = vec![batch];
    while let Some(batch) = unsent.pop() {
        outcome.counts.requests += 1;
        let next = match send_once(server, &batch, stop).await? {
            Sent::Judged(BulkAnswer::Documents(fates), asked) => {
                cuts = 0;
                let (again, reason) = outcome.settle(server, &batch, fates)?;
                if again.len() < batch.len() {
                    patience.progressed();
                }
                if again.is_empty() {
                    continue;
                }
                Again { batch: batch.subset(again), reason, asked }
            }
            Sent::Judged(BulkAnswer::TryHalves { status, error }, _) => {
                cuts = 0;
                match batch.halves() {
                    Some((first, second)) => unsent.extend([second, first]),
                    None => outcome.reject_whole(&batch, status, &error.to_string()),
                }
                continue;
            }
            Sent::Judged(BulkAnswer::SendAgain(reason), asked) => Again { batch, reason, asked },
            Sent::Judged(BulkAnswer::Refused(error), _) => return Err(server.refused(ACT, error)),
            Sent::Lost(reason) => {
                cuts += 1;
                Again { batch, reason, asked: None }
            }
            Sent::Unreachable(reason) => Again { batch, reason, asked: None },
        };
        outcome.counts.sent_again += next.batch.len() as u64;
        let Some(pause) = patience.next_wait(Instant::now(), next.asked) else {
            return Err(server.gave_up(ACT, patience.tried(), next.reason));
        };
        tracing::info!(
            "{} documents have to be sent again in {pause:.1?}: {}",
            next.batch.len(),
            next.reason
        );
        wait(pause, stop).await?;
        match next.batch.halves().filter(|_| cuts >= CUTS_BEFORE_HALVES) {
            None => unsent.push(next.batch),
            Some((first, second)) => {
                cuts = 0;
                patience.shrunk();
                unsent.extend([second, first]);
            }
        }
    }
    Ok(outcome)
}

/// What came of one request.
enum Sent {
    Judged(BulkAnswer, Option<Duration>),
    /// The request went out, and no answer came back.
    Lost(String),
    /// The request did not go out.
    Unreachable(String),
}

/// Documents that have to be sent again.
struct Again {
    batch: Batch,
    reason: String,
    /// How long the server asks to be left alone.
    asked: Option<Duration>,
}

async fn send_once(
    server: &Server,
    batch: &Batch,
    stop: &CancellationToken,
) -> Result<Sent, IndexError> {
    let answer = tokio::select! {
        () = stop.cancelled() => return Err(IndexError::Stopped),
        answer = server.bulk(batch.body()) => answer,
    };
    match answer {
        Ok(answer) => {
            let judged = judge(answer.status, &answer.body, batch.len());
            Ok(Sent::Judged(judged, answer.retry_after))
        }
        Err(unanswered) if unanswered.is_final => Err(server.gave_up(ACT, 1, unanswered.reason)),
        Err(unanswered) if unanswered.was_sent => Ok(Sent::Lost(unanswered.reason)),
        Err(unanswered) => Ok(Sent::Unreachable(unanswered.reason)),
    }
}

impl BatchOutcome {
    /// Counts the documents that are decided. Returns those that have to be sent again, with the
    /// server's reason for one of them.
    fn settle(
        &mut self,
        server: &Server,
        batch: &Batch,
        fates: Vec<Fate>,
    ) -> Result<(Vec<usize>, String), IndexError> {
        let mut again = vec![];
        let mut reason = String::new();
        for (n, fate) in fates.into_iter().enumerate() {
            match fate {
                Fate::Created => self.counts.created += 1,
                Fate::Updated => self.counts.updated += 1,
                Fate::AlreadyThere => self.counts.already_there += 1,
                Fate::SendAgain(error) => {
                    reason = error.to_string();
                    again.push(n);
                    continue;
                }
                Fate::Rejected { status, error } => {
                    self.rejected.push(RejectedItem::refused(batch, n, status, error));
                    continue;
                }
                Fate::Refused(error) => return Err(server.refused(ACT, error)),
            }
            if !self.indices.contains(batch.index(n)) {
                self.indices.insert(batch.index(n).clone());
            }
        }
        Ok((again, reason))
    }

    /// Rejects the one document of a request that the server does not take.
    fn reject_whole(&mut self, batch: &Batch, status: u16, reason: &str) {
        let error = serde_json::value::to_raw_value(reason).expect("a text is JSON");
        self.rejected.push(RejectedItem::refused(batch, 0, status, error));
    }
}
