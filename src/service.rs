//! Tells the service manager that this process is ready, alive or stopping, if the manager asks for
//! that.
//!
//! systemd names a datagram socket in `NOTIFY_SOCKET` (`Type=notify`, sd_notify(3)); the whole
//! protocol is a datagram of lines. If the manager does not listen, this process goes on: the
//! manager has time-outs of its own. Modules never see the socket.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use tokio::time::MissedTickBehavior;

use crate::output;
use crate::settings::{notify_socket, watchdog_interval};

/// Waits until the process receives SIGINT or SIGTERM.
pub(crate) async fn wait_for_stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    output::note_signal_handling();
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
        _ => std::future::pending().await,
    }
}

/// Tells the manager that this process takes work from now on. If the manager has a watchdog, also
/// starts a task that sends it signs of life until the runtime ends or stands still.
pub(crate) fn notify_ready() {
    notify("READY=1");
    let Some(interval) = watchdog_interval() else { return };
    tokio::spawn(async move {
        // Two signs of life in each interval, so that one may come late.
        let mut beat = tokio::time::interval(interval / 2);
        // After the runtime stood still, one sign is enough: sending all that were missed would
        // fill the manager's queue.
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beat.tick().await;
            notify("WATCHDOG=1");
        }
    });
}

/// Tells the manager that this process takes no more work and ends what runs.
pub(crate) fn notify_stopping() {
    notify("STOPPING=1");
}

fn notify(state: &str) {
    let Some(socket) = notify_socket() else { return };
    if let Err(error) = send_state(&socket, state) {
        tracing::warn!(%error, state, "the service manager cannot be notified");
    }
}

fn send_state(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        // An abstract name, which has no file; some containers use one.
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    // A manager whose queue is full must not hold a thread of the runtime.
    sender.set_nonblocking(true)?;
    sender.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}
