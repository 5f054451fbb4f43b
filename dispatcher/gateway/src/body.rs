//! Request bodies: each has a size limit and a minimum pace, and all bodies in memory share a
//! budget of bytes.
//!
//! The pace counts the bytes on the wire. The size limit holds for these bytes, and also for the
//! decoded bytes of an encoded body.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt as _};
use ion_model::limits::bytes_in_words;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::problem::{Problem, ProblemKind};

/// Bytes that must arrive within one `stall` of waiting for the sender: 137 a second at 30 s. Less
/// lets a client hold a connection with a byte now and then; more cuts off clients on a bad line.
const PACE: u64 = 4096;

/// Bytes of one permit of [`BodyMemory`].
const PERMIT: usize = 1024;

/// The reasons a body cannot be read to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    /// The body is over its size limit, given in bytes.
    #[error("the body is longer than {}", bytes_in_words(*.0))]
    TooBig(u64),
    /// The sender was slower than the minimum pace.
    #[error("fewer than {PACE} bytes of the body came within {} s; send the body faster, or in one piece", .0.as_secs_f32())]
    Stalled(Duration),
    /// The connection broke, or its framing is wrong.
    #[error("the body broke off: {0}")]
    Broken(String),
    /// The bytes do not match the Content-Encoding.
    #[error("the body cannot be decoded as its Content-Encoding says: {0}")]
    Undecodable(String),
    /// The memory for bodies is used up.
    #[error("the memory for request bodies is used up; send the request again in a moment")]
    NoRoom,
}

impl From<BodyError> for Problem {
    fn from(error: BodyError) -> Self {
        let kind = match error {
            BodyError::TooBig(_) => ProblemKind::TooBig,
            BodyError::Stalled(_) => ProblemKind::TooSlow,
            BodyError::Broken(_) | BodyError::Undecodable(_) => ProblemKind::Malformed,
            BodyError::NoRoom => ProblemKind::Busy,
        };
        Self::new(kind, error.to_string())
    }
}

/// The pieces of a body, as a stream.
pub(super) type PieceStream = BoxStream<'static, Result<Bytes, BodyError>>;

/// A request body that is read piece by piece.
pub(super) struct IncomingBody {
    source: BodySource,
    most: u64,
    left: u64,
    /// The memory reserved for the decoders' buffers, held as long as the decoders.
    _memory: Option<MemoryReservation>,
}

/// The source of a body's pieces.
enum BodySource {
    /// The connection.
    Sent(PacedBody),
    /// A decoder.
    Decoded(PieceStream),
}

impl IncomingBody {
    /// Creates a body of at most `most` bytes. `stall` is the time in which [`PACE`] bytes must
    /// come.
    pub(super) fn new(body: Body, most: u64, stall: Duration) -> Self {
        let body = body.into_data_stream();
        let sent = PacedBody { body, stall, waited: Duration::ZERO, brought: 0 };
        Self { source: BodySource::Sent(sent), most, left: most, _memory: None }
    }

    /// Returns the body decoded by `decode`, of at most as many bytes; `memory` is kept for the
    /// decoders.
    pub(super) fn decode_with(
        self,
        decode: impl FnOnce(PieceStream) -> PieceStream,
        memory: MemoryReservation,
    ) -> Self {
        let most = self.most;
        let source = BodySource::Decoded(decode(self.into_pieces().boxed()));
        Self { source, most, left: most, _memory: Some(memory) }
    }

    /// Returns the next piece, or none at the end of the body.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        let piece = match &mut self.source {
            BodySource::Sent(sent) => sent.next().await?,
            BodySource::Decoded(pieces) => pieces.next().await.transpose()?,
        };
        let length = piece.as_ref().map_or(0, |piece| piece.len() as u64);
        self.left = self.left.checked_sub(length).ok_or(BodyError::TooBig(self.most))?;
        Ok(piece)
    }

    /// Returns the pieces as a stream. The stream yields to the runtime after each piece, so that a
    /// consumer that gathers all ready pieces receives one at a time.
    pub(super) fn into_pieces(self) -> impl Stream<Item = Result<Bytes, BodyError>> + Send {
        stream::unfold((self, false), |(mut incoming, again)| async move {
            if again {
                tokio::task::yield_now().await;
            }
            let piece = incoming.next().await.transpose()?;
            Some((piece, (incoming, true)))
        })
    }

    /// Reads the whole body into memory.
    ///
    /// # Errors
    /// When the body cannot be read to its end, or `room` has too few bytes left.
    pub(super) async fn read_whole(mut self, room: &BodyMemory) -> Result<BufferedBody, BodyError> {
        let mut held = room.new_buffer();
        while let Some(piece) = self.next().await? {
            held.add(&piece)?;
        }
        Ok(held)
    }
}

/// A body on its connection, with the time spent waiting for its sender.
struct PacedBody {
    body: BodyDataStream,
    stall: Duration,
    /// The time spent waiting for the sender since the pace was last checked, and the bytes that
    /// came in it.
    waited: Duration,
    brought: u64,
}

impl PacedBody {
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
                    return Err(BodyError::Broken(ion_model::errors::error_chain(&error)));
                }
                Ok(Some(Ok(piece))) => piece,
            };
            self.brought += piece.len() as u64;
            return Ok(Some(piece));
        }
    }
}

/// The memory for all bodies that are read whole, and for decoders. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct BodyMemory(Arc<Semaphore>);

impl BodyMemory {
    /// Creates a memory of this many bytes.
    pub(super) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes / PERMIT)))
    }

    /// Returns an empty buffer that reserves its memory here.
    pub(super) fn new_buffer(&self) -> BufferedBody {
        BufferedBody { bytes: Vec::new(), reserved: self.new_reservation() }
    }

    /// Returns a reservation of zero bytes.
    pub(super) fn new_reservation(&self) -> MemoryReservation {
        MemoryReservation { bytes: 0, room: self.clone(), permits: None }
    }
}

/// A reservation of memory for bytes that are kept elsewhere. Dropping it gives the memory back.
#[derive(Debug)]
pub(super) struct MemoryReservation {
    bytes: usize,
    room: BodyMemory,
    permits: Option<OwnedSemaphorePermit>,
}

impl MemoryReservation {
    /// Reserves this many more bytes.
    ///
    /// # Errors
    /// [`BodyError::NoRoom`] when too few bytes are left.
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

/// Bytes in memory, with their reservation. It grows with the bytes that arrive, so a client that
/// announces a large body and sends nothing takes no memory. Dropping the value gives the memory
/// back.
#[derive(Debug)]
pub(super) struct BufferedBody {
    bytes: Vec<u8>,
    reserved: MemoryReservation,
}

impl BufferedBody {
    /// Appends bytes.
    pub(super) fn add(&mut self, piece: &[u8]) -> Result<(), BodyError> {
        self.reserved.add(piece.len())?;
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    /// Returns the bytes.
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
        let room = BodyMemory::new(4 * PERMIT);
        let sent = || body(vec![b"one ", b"two ", b"three"]);
        let stall = Duration::from_secs(5);
        let held = IncomingBody::new(sent(), 13, stall).read_whole(&room).await.unwrap();
        assert_eq!(held.bytes(), b"one two three");
        let over = IncomingBody::new(sent(), 12, stall).read_whole(&room).await;
        assert!(matches!(over, Err(BodyError::TooBig(12))), "{over:?}");
    }

    #[tokio::test]
    async fn memory_is_taken_by_what_came_and_given_back() {
        let room = BodyMemory::new(2 * PERMIT);
        let mut one = room.new_buffer();
        one.add(&[0; PERMIT]).unwrap();
        one.add(&[0; PERMIT]).unwrap();
        let mut other = room.new_buffer();
        assert!(matches!(other.add(b"x"), Err(BodyError::NoRoom)));
        drop(one);
        other.add(b"x").unwrap();
    }

    #[tokio::test]
    async fn a_sender_that_stands_still_is_given_up_and_one_that_goes_on_is_not() {
        let stall = Duration::from_millis(40);
        let still = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let given_up = IncomingBody::new(still, 100, stall).next().await;
        assert!(matches!(given_up, Err(BodyError::Stalled(_))), "{given_up:?}");
        // Six times the stall time, in pieces of enough bytes.
        let slow = stream::unfold(0, |n| async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let piece = Bytes::from(vec![0; usize::try_from(PACE).unwrap()]);
            (n < 12).then_some((Ok::<_, std::io::Error>(piece), n + 1))
        });
        let room = BodyMemory::new(1 << 20);
        assert!(
            IncomingBody::new(Body::from_stream(slow), 1 << 20, stall)
                .read_whole(&room)
                .await
                .is_ok()
        );
    }
}
