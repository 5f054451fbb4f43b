//! The flow of bytes from link to link, as in a shell, and into the blob store at the same time.
//!
//! Each link reads what the link before it writes, while that one writes it. Every channel has a
//! bound, so the slowest of the links, the stores and the reader of the answer sets the pace.
//!
//! When a link closes its stdin early, the link before it ends, as in a shell: its next write
//! fails, with SIGPIPE unless it ignores that signal. The trace keeps what that link had written,
//! and its exit status does not count. The input of a client is stored whole in any case.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::future::{OptionFuture, join_all};
use ion_jobs::pipeline::Module;
use ion_model::clock;
use ion_model::errors::error_chain;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::{SetOnce, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::outcome::{LinkEnd, LinkExit};
use super::pool::{LinkProcess, LinkStartError, PoolLease};
use super::record::{FlowOutcome, Recording};
use super::spool::{Spool, SpooledBlob, Storing};
use super::{Input, PIECES};
use crate::sandbox::{PipedStreams, ProcessExit, ProcessUsage, Sandbox, SandboxError};
use crate::secrets::SecretMask;

/// The most bytes of one read from a link: what a pipe holds.
const PIECE: usize = 64 << 10;

/// The most bytes of a link's stderr that are kept: the last ones.
const STDERR_MAX: usize = 64 << 10;

/// How long a link may go on after another one has failed: it may be about to end too, and its
/// failure may be the cause of the other's.
const GIVE_UP_WAIT: Duration = Duration::from_millis(50);

/// How long a link may go on after the next one has closed its stdin. In a shell it could go on for
/// ever.
const UNWANTED_WAIT: Duration = Duration::from_secs(10);

/// How long a killed link may take to end.
const GONE_WAIT: Duration = Duration::from_secs(10);

/// One run's links and where their bytes are kept.
pub(super) struct Flow<'a> {
    pub(super) used: &'a PoolLease,
    pub(super) module: &'a Module,
    pub(super) recording: &'a Recording,
}

/// The receiver of a link's output.
enum OutputReceiver {
    Link(mpsc::Sender<Bytes>),
    /// The caller of the run. If it is gone, the run is cancelled.
    Asker(mpsc::Sender<Bytes>),
    Nobody,
}

impl Flow<'_> {
    pub(super) async fn run(
        &self,
        input: Input,
        live: Option<mpsc::Sender<Bytes>>,
        stop: CancellationToken,
    ) -> FlowOutcome {
        let give_up = stop.child_token();
        let links = &self.module.links;
        let taken = self.used.take_processes().await;
        let (first, mut from) = mpsc::channel(PIECES);
        let mut stages = Vec::with_capacity(links.len());
        let mut live = live.map_or(OutputReceiver::Nobody, OutputReceiver::Asker);
        for (index, taken) in taken.into_iter().enumerate() {
            let (to, next) = if index + 1 < links.len() {
                let (to, next) = mpsc::channel(PIECES);
                (OutputReceiver::Link(to), Some(next))
            } else {
                (std::mem::replace(&mut live, OutputReceiver::Nobody), None)
            };
            let before = match next {
                Some(next) => std::mem::replace(&mut from, next),
                None => std::mem::replace(&mut from, mpsc::channel(1).1),
            };
            stages.push(self.run_link(index, taken, before, to, &give_up));
        }
        let last = stages.pop();
        let last_ended = AtomicBool::new(false);
        let before = async {
            let (fed, links) =
                tokio::join!(self.feed_input(input, first, &give_up), join_all(stages));
            let (input, cut_off, unread) = fed;
            let well = unread.is_none() && links.iter().all(|end| end.how.ended_well());
            // This happens while the last link still runs, so that less is left to do when it has
            // ended.
            let begun = match well && !last_ended.load(Ordering::Relaxed) {
                true => self
                    .recording
                    .record_first_links(input.as_ref(), cut_off, &links)
                    .await
                    .map(Some),
                false => Ok(None),
            };
            if begun.is_err() {
                give_up.cancel();
            }
            (input, cut_off, unread, links, begun)
        };
        let last = async {
            let end = OptionFuture::from(last).await;
            last_ended.store(true, Ordering::Relaxed);
            end
        };
        let ((input, cut_off, unread, mut links, begun), last) = tokio::join!(before, last);
        links.extend(last);
        let not_stored = links.iter().find_map(|end| match &end.how {
            LinkExit::NotStored(reason) => Some(reason.clone()),
            _ => None,
        });
        let (begun, not_begun) = match begun {
            Ok(begun) => (begun, None),
            Err(error) => (None, Some(error_chain(&error))),
        };
        let broken = unread.or(not_stored).or(not_begun);
        FlowOutcome { links, input, cut_off, stopped: stop.is_cancelled(), begun, broken }
    }

    /// Passes the input to the first link. Returns the stored input, whether it was cut off, and
    /// why it could not be read or stored.
    async fn feed_input(
        &self,
        mut input: Input,
        to: mpsc::Sender<Bytes>,
        give_up: &CancellationToken,
    ) -> (Option<SpooledBlob>, bool, Option<String>) {
        let mut to = Some(to);
        let mut spool = self.recording.input_spool();
        let cut_off = loop {
            let piece = tokio::select! {
                biased;
                () = give_up.cancelled() => break true,
                piece = input.next() => piece,
            };
            match piece {
                Some(Ok(piece)) => {
                    if let Some(spool) = &mut spool {
                        spool.add(&piece).await;
                    }
                    if let Some(link) = &to
                        && link.send(piece).await.is_err()
                    {
                        // The link has closed its stdin. The rest of the input is stored all the
                        // same.
                        to = None;
                        if spool.is_none() {
                            break false;
                        }
                    }
                }
                Some(Err(error)) => {
                    give_up.cancel();
                    return (
                        None,
                        true,
                        Some(format!("the input broke off: {}", error_chain(&error))),
                    );
                }
                None => break false,
            }
        };
        drop(to);
        match spool {
            None => (None, cut_off, None),
            Some(spool) => match spool.finish().await {
                Ok(blob) => (Some(blob), cut_off, None),
                Err(error) => (None, cut_off, Some(error_chain(&error))),
            },
        }
    }

    /// Runs one link from its start to its end.
    async fn run_link(
        &self,
        index: usize,
        taken: Result<LinkProcess, LinkStartError>,
        from: mpsc::Receiver<Bytes>,
        to: OutputReceiver,
        give_up: &CancellationToken,
    ) -> LinkEnd {
        let started = clock::now();
        let kept = Mutex::new(BytesMut::new());
        let (how, used, wrote) = match taken {
            Ok(process) => self.supervise_link(index, process, from, to, &kept, give_up).await,
            Err(error) => (LinkExit::NotStarted(error_chain(&error)), None, None),
        };
        let (storing, left) = wrote.unzip();
        if !how.ended_well() {
            give_up.cancel();
        }
        let stored = match storing {
            Some(storing) => Some(storing.await),
            None => None,
        };
        let (how, output) = match stored {
            None => (how, None),
            Some(Ok(blob)) if how.ended_well() => (how, Some(blob)),
            // No event will name this blob.
            Some(Ok(blob)) => {
                self.recording.delete_blob(&blob.entry.key).await;
                (how, None)
            }
            Some(Err(error)) => {
                give_up.cancel();
                (LinkExit::NotStored(error_chain(&error)), None)
            }
        };
        let link = self.module.links[index].clone();
        let stderr = kept.into_inner().unwrap_or_else(PoisonError::into_inner).freeze();
        LinkEnd { link, how, started, ended: clock::now(), stderr, output, used, _left: left }
    }

    async fn supervise_link(
        &self,
        index: usize,
        process: LinkProcess,
        from: mpsc::Receiver<Bytes>,
        to: OutputReceiver,
        kept: &Mutex<BytesMut>,
        give_up: &CancellationToken,
    ) -> (LinkExit, Option<ProcessUsage>, Option<(Storing, Sandbox)>) {
        let LinkProcess { piped, secrets } = process;
        let PipedStreams { mut sandbox, stdin, stdout, stderr } = piped;
        let mask = secrets.mask();
        let timeout = self.module.timeout;
        // When the next link closed its stdin, if it did.
        let unwanted = SetOnce::new();
        let over = async || {
            let since: &Instant = unwanted.wait().await;
            tokio::time::sleep_until(*since + UNWANTED_WAIT).await;
        };
        let work = async {
            let beside = async {
                let copies = async {
                    tokio::join!(write_input(stdin, from), keep_stderr(stderr, kept, mask))
                };
                tokio::select! {
                    _ = copies => {}
                    () = over() => {}
                }
                Ok(())
            };
            let ((), spool) =
                tokio::try_join!(beside, self.copy_output(index, stdout, to, &unwanted, give_up))?;
            // The link has written all, and is about to end: meanwhile its output is stored.
            let storing = spool.finish();
            let exit = tokio::select! {
                exit = sandbox.wait_for_exit() => exit,
                () = over() => {
                    sandbox.kill().await;
                    sandbox.wait_for_exit().await
                }
            };
            Ok((
                if unwanted.initialized() { LinkExit::Unwanted } else { to_link_exit(exit) },
                storing,
            ))
        };
        let done = {
            tokio::pin!(work);
            let asked = async {
                give_up.cancelled().await;
                tokio::time::sleep(GIVE_UP_WAIT).await;
            };
            tokio::select! {
                biased;
                done = &mut work => done,
                () = asked => Err(LinkExit::GivenUp),
                () = tokio::time::sleep(timeout) => Err(LinkExit::TimedOut(timeout)),
            }
        };
        match done {
            Ok((how, storing)) => (how, sandbox.usage(), Some((storing, sandbox))),
            Err(why) => {
                kill_link(&mut sandbox).await;
                (why, sandbox.usage(), None)
            }
        }
    }

    /// Copies a link's output to the store and to the next link, until all is written or the next
    /// link closes its stdin.
    async fn copy_output(
        &self,
        index: usize,
        mut stdout: Receiver,
        to: OutputReceiver,
        unwanted: &SetOnce<Instant>,
        give_up: &CancellationToken,
    ) -> Result<Spool, LinkExit> {
        let most = self.module.link_settings.output_bytes;
        let mut spool = self.recording.output_spool(index);
        let mut buffer = BytesMut::with_capacity(PIECE);
        loop {
            buffer.reserve(PIECE);
            match stdout.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return Ok(spool),
                Ok(_) => {}
            }
            let piece = buffer.split().freeze();
            if spool.length() + piece.len() as u64 > most {
                return Err(LinkExit::WroteTooMuch(most));
            }
            spool.add(&piece).await;
            match &to {
                OutputReceiver::Link(link) => {
                    if link.send(piece).await.is_err() {
                        // It is set only here. This function's end closes `stdout`, and so the
                        // pipe.
                        let _ = unwanted.set(Instant::now());
                        return Ok(spool);
                    }
                }
                OutputReceiver::Asker(asker) => {
                    if asker.send(piece).await.is_err() {
                        give_up.cancel();
                        return Err(LinkExit::GivenUp);
                    }
                }
                OutputReceiver::Nobody => {}
            }
        }
    }
}

/// Writes a link's input, until there is no more or the link has closed its stdin.
async fn write_input(mut stdin: Sender, mut from: mpsc::Receiver<Bytes>) {
    while let Some(piece) = from.recv().await {
        if stdin.write_all(&piece).await.is_err() {
            return;
        }
    }
}

/// Keeps the last [`STDERR_MAX`] bytes of a link's stderr in `kept`, without the values of its
/// secrets.
async fn keep_stderr(mut stderr: Receiver, kept: &Mutex<BytesMut>, mut mask: Option<SecretMask>) {
    let keep = |bytes: &[u8]| {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(bytes);
        let over = kept.len().saturating_sub(STDERR_MAX);
        let _ = kept.split_to(over);
    };
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(4 << 10);
        match stderr.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let piece = buffer.split();
        match &mut mask {
            None => keep(&piece),
            Some(mask) => keep(&mask.add(&piece)),
        }
    }
    if let Some(mask) = &mut mask {
        keep(&mask.finish());
    }
}

fn to_link_exit(exit: Result<ProcessExit, SandboxError>) -> LinkExit {
    match exit {
        Ok(exit) => LinkExit::Exited(exit),
        Err(error) => LinkExit::Vanished(error_chain(&error)),
    }
}

/// Kills a link's processes and waits until they have ended.
async fn kill_link(sandbox: &mut Sandbox) {
    sandbox.kill().await;
    if tokio::time::timeout(GONE_WAIT, sandbox.wait_for_exit()).await.is_err() {
        tracing::warn!("a killed link has not ended yet");
    }
}
