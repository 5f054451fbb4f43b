//! Bodies of requests: within a limit, at a pace, and never more of them in memory than there is
//! room for.
//!
//! The pace is that of the bytes on the wire. The limit holds for them and, where they were
//! encoded, once more for what they are decoded to.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt as _};
use ion_model::limits::bytes_in_words;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::problem::{Kind, Problem};

/// Bytes that a body must bring while its sender is waited for once: 137 a second at 30 s. Less
/// lets a client hold a connection with a byte now and then; more cuts off those on a bad line.
const PACE: u64 = 4096;

/// Bytes of one permit of [`Room`].
const PERMIT: usize = 1024;

/// Why a body did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    /// It is longer than it may be.
    #[error("the body is longer than {}", bytes_in_words(*.0))]
    TooBig(u64),
    /// Its sender did not go on.
    #[error("fewer than {PACE} bytes of the body came within {} s; send it faster, or in one piece", .0.as_secs_f32())]
    Stalled(Duration),
    /// The connection broke, or its framing is wrong.
    #[error("the body broke off: {0}")]
    Broken(String),
    /// It is not what its Content-Encoding says.
    #[error("the body cannot be decoded as its Content-Encoding says: {0}")]
    Undecodable(String),
    /// The memory for bodies is taken.
    #[error("the memory for request bodies is taken; send it again in a moment")]
    NoRoom,
}

impl From<BodyError> for Problem {
    fn from(error: BodyError) -> Self {
        let kind = match error {
            BodyError::TooBig(_) => Kind::TooBig,
            BodyError::Stalled(_) => Kind::TooSlow,
            BodyError::Broken(_) | BodyError::Undecodable(_) => Kind::Malformed,
            BodyError::NoRoom => Kind::Busy,
        };
        Self::new(kind, error.to_string())
    }
}

/// Pieces of a body as they come.
pub(super) type PieceStream = BoxStream<'static, Result<Bytes, BodyError>>;

/// A body that is read piece by piece.
pub(super) struct Incoming {
    source: Source,
    most: u64,
    left: u64,
    /// Room for the buffers of decoders, as long as they are there.
    _memory: Option<Reserved>,
}

/// Where the pieces of a body come from.
enum Source {
    /// From its sender.
    Sent(Sent),
    /// From a decoder.
    Decoded(PieceStream),
}

impl Incoming {
    /// A body of at most so many bytes, whose sender may be waited for so long.
    pub(super) fn new(body: Body, most: u64, stall: Duration) -> Self {
        let body = body.into_data_stream();
        let sent = Sent { body, stall, waited: Duration::ZERO, brought: 0 };
        Self { source: Source::Sent(sent), most, left: most, _memory: None }
    }

    /// What `decode` makes of it, of at most as many bytes.
    pub(super) fn decoded(
        self,
        decode: impl FnOnce(PieceStream) -> PieceStream,
        memory: Reserved,
    ) -> Self {
        let most = self.most;
        let source = Source::Decoded(decode(self.pieces().boxed()));
        Self { source, most, left: most, _memory: Some(memory) }
    }

    /// The next piece; none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        let piece = match &mut self.source {
            Source::Sent(sent) => sent.next().await?,
            Source::Decoded(pieces) => pieces.next().await.transpose()?,
        };
        let length = piece.as_ref().map_or(0, |piece| piece.len() as u64);
        self.left = self.left.checked_sub(length).ok_or(BodyError::TooBig(self.most))?;
        Ok(piece)
    }

    /// The pieces as they come, one each time it is polled: who gathers all that is ready gets no
    /// more than that.
    pub(super) fn pieces(self) -> impl Stream<Item = Result<Bytes, BodyError>> + Send {
        stream::unfold((self, false), |(mut incoming, again)| async move {
            if again {
                tokio::task::yield_now().await;
            }
            let piece = incoming.next().await.transpose()?;
            Some((piece, (incoming, true)))
        })
    }

    /// All of it, in memory, as long as there is room.
    pub(super) async fn whole(mut self, room: &Room) -> Result<Held, BodyError> {
        let mut held = room.empty();
        while let Some(piece) = self.next().await? {
            held.add(&piece)?;
        }
        Ok(held)
    }
}

/// What a sender sends, and how long it was waited for.
struct Sent {
    body: BodyDataStream,
    stall: Duration,
    /// How long its sender has been waited for, and what came meanwhile.
    waited: Duration,
    brought: u64,
}

impl Sent {
    async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            let begun = Instant::now();
            let next = timeout(self.stall.saturating_sub(self.waited), self.body.next()).await;
            self.waited += begun.elapsed();
            let piece = match next {
                Err(_) if self.brought >= PACE => {
                    (self.waited, self.brought) = (Duration::ZERO, 0);
                    continue;
                }
                Err(_) => return Err(BodyError::Stalled(self.stall)),
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => {
                    return Err(BodyError::Broken(ion_model::errors::chain(&error)));
                }
                Ok(Some(Ok(piece))) => piece,
            };
            self.brought += piece.len() as u64;
            return Ok(Some(piece));
        }
    }
}

/// The memory for all bodies that are read whole, and for decoders.
#[derive(Clone, Debug)]
pub(super) struct Room(Arc<Semaphore>);

impl Room {
    /// Of so many bytes.
    pub(super) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes / PERMIT)))
    }

    /// Nothing yet.
    pub(super) fn empty(&self) -> Held {
        Held { bytes: Vec::new(), reserved: self.reserve() }
    }

    /// Room for nothing yet.
    pub(super) fn reserve(&self) -> Reserved {
        Reserved { bytes: 0, room: self.clone(), permits: None }
    }
}

/// Room for bytes that are kept elsewhere. It is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Reserved {
    bytes: usize,
    room: Room,
    permits: Option<OwnedSemaphorePermit>,
}

impl Reserved {
    /// Takes room for so many more bytes.
    pub(super) fn add(&mut self, bytes: usize) -> Result<(), BodyError> {
        let has = self.permits.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let needs = (self.bytes + bytes).div_ceil(PERMIT);
        if needs > has {
            let more = u32::try_from(needs - has).map_err(|_| BodyError::NoRoom)?;
            let more =
                self.room.0.clone().try_acquire_many_owned(more).map_err(|_| BodyError::NoRoom)?;
            match &mut self.permits {
                Some(permits) => permits.merge(more),
                None => self.permits = Some(more),
            }
        }
        self.bytes += bytes;
        Ok(())
    }
}

/// Bytes in memory. What is taken is given back when they are dropped: a client that promises much
/// and sends nothing takes nothing.
#[derive(Debug)]
pub(super) struct Held {
    bytes: Vec<u8>,
    reserved: Reserved,
}

impl Held {
    /// Takes more in.
    pub(super) fn add(&mut self, piece: &[u8]) -> Result<(), BodyError> {
        self.reserved.add(piece.len())?;
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    /// What is there.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(pieces: Vec<&'static [u8]>) -> Body {
        let pieces =
            pieces.into_iter().map(|piece| Ok::<_, std::io::Error>(Bytes::from_static(piece)));
        Body::from_stream(stream::iter(pieces))
    }

    #[tokio::test]
    async fn what_is_read_is_what_was_sent_and_no_more_than_allowed() {
        let room = Room::new(4 * PERMIT);
        let sent = || body(vec![b"one ", b"two ", b"three"]);
        let stall = Duration::from_secs(5);
        let held = Incoming::new(sent(), 13, stall).whole(&room).await.unwrap();
        assert_eq!(held.bytes(), b"one two three");
        let over = Incoming::new(sent(), 12, stall).whole(&room).await;
        assert!(matches!(over, Err(BodyError::TooBig(12))), "{over:?}");
    }

    #[tokio::test]
    async fn memory_is_taken_by_what_came_and_given_back() {
        let room = Room::new(2 * PERMIT);
        let mut one = room.empty();
        one.add(&[0; PERMIT]).unwrap();
        one.add(&[0; PERMIT]).unwrap();
        let mut other = room.empty();
        assert!(matches!(other.add(b"x"), Err(BodyError::NoRoom)));
        drop(one);
        other.add(b"x").unwrap();
    }

    #[tokio::test]
    async fn a_sender_that_stands_still_is_given_up_and_one_that_goes_on_is_not() {
        let stall = Duration::from_millis(40);
        let still = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let given_up = Incoming::new(still, 100, stall).next().await;
        assert!(matches!(given_up, Err(BodyError::Stalled(_))), "{given_up:?}");
        // Six times as long as it may stand still, in pieces of enough bytes.
        let slow = stream::unfold(0, |n| async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let piece = Bytes::from(vec![0; usize::try_from(PACE).unwrap()]);
            (n < 12).then_some((Ok::<_, std::io::Error>(piece), n + 1))
        });
        let room = Room::new(1 << 20);
        assert!(Incoming::new(Body::from_stream(slow), 1 << 20, stall).whole(&room).await.is_ok());
    }
}
