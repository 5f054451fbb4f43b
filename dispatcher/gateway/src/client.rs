//! A client's connection, and whether the client is still there.
//!
//! A client that has sent its request may close its side for writing and read on (`nc -N`, some
//! proxies). From here that looks as if it had gone: both send a FIN. So a FIN alone cancels
//! nothing once a request has come whole. It is a question: when the client has had no answer for
//! [`ASK_AFTER`], it is sent `100 Continue`, which every client of HTTP/1.1 passes over, and again
//! every [`ASK_EVERY`]. The system of a client that has gone answers that with a reset, and a reset
//! ends the connection: what was done for this client alone is cancelled.
//!
//! Where nothing can be sent (to a client of HTTP/1.0, or when the answer has begun), TCP's
//! keep-alives ask. They find hosts that have vanished, too.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::Version;
use rustix::net::{Shutdown, shutdown, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// How long after its FIN a client is asked whether it is there. Most answers have gone by then, so
/// that few clients see the question. Longer keeps what is done for one that has gone.
const ASK_AFTER: Duration = Duration::from_secs(2);

/// How often it is asked again.
const ASK_EVERY: Duration = Duration::from_secs(15);

/// What a client is asked with.
const QUESTION: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// How long a connection may be silent before TCP asks, and how often it asks then.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// After how many keep-alives without an answer a host has vanished.
const KEEP_ALIVES: u32 = 4;

/// A connection that the server of HTTP reads and writes, and that is watched meanwhile.
#[derive(Clone, Debug)]
pub(super) struct Client {
    stream: Arc<TcpStream>,
    stage: Arc<Stage>,
}

/// What may be written between the pieces that the server of HTTP writes.
#[derive(Debug)]
struct Stage {
    /// Whether a request of HTTP/1.1 is worked on and its answer has not begun.
    working: AtomicBool,
    /// Whether the system has taken all that was to be written.
    all_written: AtomicBool,
}

impl Client {
    /// A connection that was accepted.
    pub(super) fn new(stream: TcpStream) -> Self {
        // An answer is small, and nothing follows that it could wait for.
        let _ = stream.set_nodelay(true);
        let keep_alive = sockopt::set_socket_keepalive(&stream, true)
            .and_then(|()| sockopt::set_tcp_keepidle(&stream, KEEP_ALIVE))
            .and_then(|()| sockopt::set_tcp_keepintvl(&stream, KEEP_ALIVE))
            .and_then(|()| sockopt::set_tcp_keepcnt(&stream, KEEP_ALIVES));
        if let Err(error) = keep_alive {
            tracing::debug!(%error, "a connection has no keep-alives");
        }
        let stage = Stage { working: AtomicBool::new(false), all_written: AtomicBool::new(true) };
        Self { stream: Arc::new(stream), stage: Arc::new(stage) }
    }

    /// A request is worked on from now on.
    pub(super) fn begins(&self, version: Version) {
        self.stage.working.store(version == Version::HTTP_11, Ordering::Relaxed);
    }

    /// Its answer comes next.
    pub(super) fn answers(&self) {
        self.stage.working.store(false, Ordering::Relaxed);
    }

    /// The connection ends by a reset, and not by a FIN: that of an answer without a length would
    /// look whole to a client of HTTP/1.0.
    pub(super) fn is_to_be_reset(&self) {
        let _ = sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO));
    }

    /// Returns when the client has gone. It has to be polled by the task that serves the
    /// connection, so that no question comes between the pieces of an answer.
    pub(super) async fn gone(&self) {
        tokio::select! {
            // Set by a reset, and never cleared.
            _ = self.stream.ready(Interest::ERROR) => {}
            () = self.does_not_take_questions() => {}
        }
    }

    async fn does_not_take_questions(&self) {
        // Ready when the client has closed its side; urgent data is not asked for.
        let _ = self.stream.ready(Interest::PRIORITY).await;
        tokio::time::sleep(ASK_AFTER).await;
        while self.can_be_asked() {
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Asks the client whether it is there, if it has to pass over the question now. An answer by
    /// reset comes later.
    fn can_be_asked(&self) -> bool {
        if !self.stage.working.load(Ordering::Relaxed)
            || !self.stage.all_written.load(Ordering::Relaxed)
        {
            return true;
        }
        match self.stream.try_write(QUESTION) {
            Ok(written) => written == QUESTION.len(),
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }

    fn poll_written(
        &self,
        context: &mut Context<'_>,
        length: usize,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        self.stage.all_written.store(false, Ordering::Relaxed);
        loop {
            ready!(self.stream.poll_write_ready(context))?;
            match write(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(written) => {
                    self.stage.all_written.store(written == length, Ordering::Relaxed);
                    return Poll::Ready(Ok(written));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncRead for Client {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(context))?;
            match self.stream.try_read(into.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(read) => {
                    into.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Client {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_written(context, bytes.len(), |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = pieces.iter().map(|piece| piece.len()).sum();
        self.poll_written(context, length, |stream| stream.try_write_vectored(pieces))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown(&*self.stream, Shutdown::Write).map_err(io::Error::from))
    }
}
