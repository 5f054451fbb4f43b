//! A client's connection, and the detection of clients that have gone.
//!
//! A client that has sent its request may close its side for writing and continue to read (`nc -N`,
//! some proxies). The gateway cannot tell this from a client that has gone: both send a FIN. So a
//! FIN after a whole request does not cancel anything yet. When the client has had no answer for
//! [`PROBE_AFTER`], the gateway sends it a probe, and again every [`PROBE_EVERY`]: `100 Continue`,
//! which every HTTP/1.1 client ignores. If the client has gone, its operating system answers with a
//! reset, and a reset ends the connection: the work that was done for this client alone is
//! cancelled.
//!
//! Where nothing can be sent (to an HTTP/1.0 client, or once the answer has begun), TCP keep-alives
//! take the place of `100 Continue`. They also detect hosts that have vanished.

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

/// How long after a client's FIN the gateway probes it first. Most answers have been sent by then,
/// so few clients receive a probe. Longer continues work for a client that has gone.
const PROBE_AFTER: Duration = Duration::from_secs(2);

/// The time between two probes.
const PROBE_EVERY: Duration = Duration::from_secs(15);

/// The probe that is sent to a client.
const PROBE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// How long a connection may be silent before TCP sends a keep-alive, and the time between
/// keep-alives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The number of unanswered keep-alives after which a host counts as vanished.
const KEEP_ALIVES: u32 = 4;

/// A client's connection: the HTTP server reads and writes it, and the gateway watches it
/// meanwhile.
#[derive(Clone, Debug)]
pub(super) struct WatchedConnection {
    stream: Arc<TcpStream>,
    stage: Arc<ProbeState>,
}

/// The state that decides whether a probe may be written between the pieces of the HTTP server.
#[derive(Debug)]
struct ProbeState {
    /// Whether an HTTP/1.1 request is being handled and its answer has not begun.
    working: AtomicBool,
    /// Whether the operating system has taken all bytes that were to be written.
    all_written: AtomicBool,
}

impl WatchedConnection {
    /// Wraps an accepted connection.
    pub(super) fn new(stream: TcpStream) -> Self {
        // An answer is small, and no more data follows that it could be sent together with.
        let _ = stream.set_nodelay(true);
        let keep_alive = sockopt::set_socket_keepalive(&stream, true)
            .and_then(|()| sockopt::set_tcp_keepidle(&stream, KEEP_ALIVE))
            .and_then(|()| sockopt::set_tcp_keepintvl(&stream, KEEP_ALIVE))
            .and_then(|()| sockopt::set_tcp_keepcnt(&stream, KEEP_ALIVES));
        if let Err(error) = keep_alive {
            tracing::debug!(%error, "keep-alives cannot be set on a connection");
        }
        let stage =
            ProbeState { working: AtomicBool::new(false), all_written: AtomicBool::new(true) };
        Self { stream: Arc::new(stream), stage: Arc::new(stage) }
    }

    /// Marks that the handling of a request begins.
    pub(super) fn begin_request(&self, version: Version) {
        self.stage.working.store(version == Version::HTTP_11, Ordering::Relaxed);
    }

    /// Marks that the answer to the request comes next.
    pub(super) fn begin_answer(&self) {
        self.stage.working.store(false, Ordering::Relaxed);
    }

    /// Makes the connection end with a reset instead of a FIN: after a FIN, an HTTP/1.0 client
    /// would take an answer without a length for complete.
    pub(super) fn reset_on_close(&self) {
        let _ = sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO));
    }

    /// Waits until the client has gone. The task that serves the connection must poll it, so that
    /// no probe is written between the pieces of an answer.
    pub(super) async fn wait_until_gone(&self) {
        tokio::select! {
            // The error state is set by a reset and never cleared.
            _ = self.stream.ready(Interest::ERROR) => {}
            () = self.probe_until_refused() => {}
        }
    }

    async fn probe_until_refused(&self) {
        // The socket becomes ready when the client has closed its side. Urgent data does not count:
        // the socket is not registered for it.
        let _ = self.stream.ready(Interest::PRIORITY).await;
        tokio::time::sleep(PROBE_AFTER).await;
        while self.try_to_probe() {
            tokio::time::sleep(PROBE_EVERY).await;
        }
    }

    /// Sends a probe, if the client must ignore one now. Returns false only if a probe could not be
    /// sent. A reset that answers a probe is found by [`Self::wait_until_gone`].
    fn try_to_probe(&self) -> bool {
        if !self.stage.working.load(Ordering::Relaxed)
            || !self.stage.all_written.load(Ordering::Relaxed)
        {
            return true;
        }
        match self.stream.try_write(PROBE) {
            Ok(written) => written == PROBE.len(),
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }

    fn poll_write_with(
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

impl AsyncRead for WatchedConnection {
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

impl AsyncWrite for WatchedConnection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(context, bytes.len(), |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = pieces.iter().map(|piece| piece.len()).sum();
        self.poll_write_with(context, length, |stream| stream.try_write_vectored(pieces))
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
