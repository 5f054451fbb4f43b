//! A simulated network link between a node and a remote object store.
//!
//! # How it works
//! The link is a TCP proxy in front of the store. All connections share one wire per direction,
//! which carries [`RATE`]; a byte that has left the wire arrives [`DELAY`] later. A connection
//! reads no further ahead than the one piece that waits for the wire, so all connections get a fair
//! share and no queue builds up. The first bytes of a connection come one round trip later, for the
//! handshake.
//!
//! The kernel's own `netem` is not in every kernel, and would slow everything else that runs on the
//! machine.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

/// Bytes per second in each direction: 1 Gbit/s.
pub(crate) const RATE: f64 = 1e9 / 8.0;

/// The delay of one direction; a round trip takes 20 ms.
const DELAY: Duration = Duration::from_millis(10);

/// How much idle time the wire may make up for: timers fire a millisecond late, more on a busy
/// machine. Longer would let a burst pass faster than the wire.
const SLACK: Duration = Duration::from_millis(5);

/// Bytes that the wire carries as one piece: half a millisecond of the wire.
const PIECE: usize = 64 << 10;

/// The maximum number of a connection's pieces that have left the wire and not arrived: what the
/// wire carries in [`DELAY`], and some more.
const UNDER_WAY: usize = 64;

/// The proxy, which stops on drop.
pub(crate) struct Link {
    _runtime: Runtime,
    pub(crate) port: u16,
}

impl Link {
    /// Creates a link to a port of this machine.
    pub(crate) fn to(port: u16) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0))).unwrap();
        let here = listener.local_addr().unwrap().port();
        runtime.spawn(async move {
            let (there, back) = (Arc::new(Wire::new()), Arc::new(Wire::new()));
            while let Ok((client, _)) = listener.accept().await {
                let (there, back) = (there.clone(), back.clone());
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    client.set_nodelay(true).unwrap();
                    server.set_nodelay(true).unwrap();
                    let (client, server) = (client.into_split(), server.into_split());
                    tokio::spawn(carry(server.0, client.1, back, Duration::ZERO));
                    carry(client.0, server.1, there, 2 * DELAY).await;
                });
            }
        });
        Self { _runtime: runtime, port: here }
    }
}

/// One direction of the link, shared by all connections.
struct Wire {
    /// The time at which the wire has carried all bytes that were given to it.
    free: Mutex<Instant>,
}

impl Wire {
    fn new() -> Self {
        Self { free: Mutex::new(Instant::now()) }
    }

    /// Gives bytes to the wire. Returns the time at which the last of them has left.
    fn carries(&self, bytes: usize) -> Instant {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        *free = (*free).max(Instant::now() - SLACK) + Duration::from_secs_f64(bytes as f64 / RATE);
        *free
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    wire: Arc<Wire>,
    handshake: Duration,
) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let arriving = async move {
        while let Some((at, piece)) = receiver.recv().await {
            sleep_until(at).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    let leaving = async move {
        sleep(handshake).await;
        let mut buffer = vec![0; PIECE];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let left = wire.carries(length);
            sleep_until(left).await;
            if sender.send((left + DELAY, buffer[..length].to_vec())).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(arriving, leaving);
}
