//! What a service manager is told, where one started this process and wants to hear: ready, alive,
//! stopping.
//!
//! systemd names a socket of datagrams in `NOTIFY_SOCKET` (`Type=notify`, sd_notify(3)); a datagram
//! of lines is the whole protocol. A manager that does not listen is no reason to stop: it has
//! time-outs of its own. Modules never see the socket.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use tokio::time::MissedTickBehavior;

use crate::settings::{notify_socket, watchdog_interval};

/// Work is taken from now on. If the manager wants to hear regularly that this process is alive, it
/// does until the runtime ends or stands still.
pub(crate) fn ready() {
    tell("READY=1");
    let Some(interval) = watchdog_interval() else { return };
    tokio::spawn(async move {
        // Twice in each interval: one that comes late does no harm.
        let mut beat = tokio::time::interval(interval / 2);
        // After it stood still one is enough: many at a time would fill the manager's queue.
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beat.tick().await;
            tell("WATCHDOG=1");
        }
    });
}

/// No more work is taken; what runs is being ended.
pub(crate) fn stopping() {
    tell("STOPPING=1");
}

fn tell(state: &str) {
    let Some(socket) = notify_socket() else { return };
    if let Err(error) = send(&socket, state) {
        tracing::warn!(%error, state, "the service manager does not hear");
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        // A name without a file, as inside some containers.
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    // A manager whose queue is full must not hold a thread of the runtime.
    sender.set_nonblocking(true)?;
    sender.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}
