//! The threads that write to stdout and stderr. No other thread ever writes to them.
//!
//! # How it works
//! Each of the two streams has a bounded queue and a thread that writes the texts in it. If both
//! are the same file, one thread serves both, which keeps the order of their texts. The result of a
//! command waits for room in the queue ([`WhenFull::Wait`]), as in any program whose reader is
//! slow. All other texts are left out while the queue is full ([`WhenFull::LeaveOut`]); once there
//! is room again, a line in their place says how many are missing.
//!
//! # What it never does
//! - Hold up a job, a signal or the gateway because nobody reads.
//! - End the program because a reader went away.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::fstat;
use rustix::io::{Errno, write};

/// A queue holds about this many bytes. A longer one would only be read later.
const QUEUE_BYTES_MAX: usize = 1 << 20;

/// After a failed write, as to a full disk, texts are dropped for this long before the next try.
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// The stream that a text is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputStream {
    Stdout,
    Stderr,
}

impl OutputStream {
    fn fd(self) -> BorrowedFd<'static> {
        match self {
            Self::Stdout => rustix::stdio::stdout(),
            Self::Stderr => rustix::stdio::stderr(),
        }
    }

    /// Writes the whole text. If another program made the descriptor non-blocking, waits until it
    /// can be written.
    fn write_all(self, mut text: &[u8]) -> io::Result<()> {
        let to = self.fd();
        while !text.is_empty() {
            match write(to, text) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => text = &text[length..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => drop(poll(&mut [PollFd::new(&to, PollFlags::OUT)], None)),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Waits for one change of the state, until the deadline at most. Without a deadline it waits for
/// as long as it takes.
///
/// # Errors
/// When the deadline has passed. The error holds the guard of the state.
pub(super) fn wait_for_change<'a, T>(
    changed: &Condvar,
    state: MutexGuard<'a, T>,
    deadline: Option<Instant>,
) -> Result<MutexGuard<'a, T>, MutexGuard<'a, T>> {
    match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
        None => Ok(changed.wait(state).unwrap_or_else(PoisonError::into_inner)),
        Some(Duration::ZERO) => Err(state),
        Some(left) => {
            Ok(changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0)
        }
    }
}

/// What happens to a text when the queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhenFull {
    /// The caller waits for room. Only for threads that may block.
    Wait,
    /// The text is left out, and counted.
    LeaveOut,
    /// The text is left out and not counted, because a later one replaces it.
    Forget,
}

/// Returns the printer of a stream, and starts the printers at the first call.
pub(crate) fn printer(stream: OutputStream) -> &'static Printer {
    static PRINTERS: OnceLock<[Arc<Printer>; 2]> = OnceLock::new();
    let [stdout, stderr] = PRINTERS.get_or_init(|| {
        let stdout = Printer::start();
        let stderr = if are_same_file() { stdout.clone() } else { Printer::start() };
        [stdout, stderr]
    });
    match stream {
        OutputStream::Stdout => stdout,
        OutputStream::Stderr => stderr,
    }
}

fn are_same_file() -> bool {
    match (fstat(rustix::stdio::stdout()), fstat(rustix::stdio::stderr())) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        _ => false,
    }
}

/// A queue of texts, which a thread of its own writes.
#[derive(Debug, Default)]
pub(crate) struct Printer {
    state: Mutex<PrinterState>,
    changed: Condvar,
}

#[derive(Debug)]
struct QueuedText {
    stream: OutputStream,
    bytes: Vec<u8>,
    /// How many texts are missing if this one cannot be written.
    text_count: u64,
}

#[derive(Debug, Default)]
struct PrinterState {
    waiting: VecDeque<QueuedText>,
    /// The bytes of the waiting texts.
    bytes: usize,
    is_writing: bool,
    left_out: u64,
    /// The reader went away, so all further texts are dropped.
    is_reader_gone: bool,
    /// The first error of a write, other than that the reader went away.
    failure: Option<io::Error>,
    /// Whether the last text could not be written.
    is_failing: bool,
}

impl Printer {
    fn start() -> Arc<Self> {
        let printer = Arc::new(Self::default());
        let writer = printer.clone();
        let started =
            thread::Builder::new().name("printer".into()).spawn(move || writer.write_texts());
        if let Err(error) = started {
            // Nothing can be printed without the thread, so no caller may wait for room.
            let mut state = printer.lock_state();
            (state.is_reader_gone, state.failure) = (true, Some(error));
        }
        printer
    }

    fn lock_state(&self) -> MutexGuard<'_, PrinterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a text for the thread to write.
    pub(crate) fn queue(&self, stream: OutputStream, text: Vec<u8>, when_full: WhenFull) {
        let mut state = self.lock_state();
        while when_full == WhenFull::Wait && state.bytes >= QUEUE_BYTES_MAX && !state.is_reader_gone
        {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.is_reader_gone {
            return;
        }
        if state.bytes >= QUEUE_BYTES_MAX {
            state.left_out += u64::from(when_full == WhenFull::LeaveOut);
            return;
        }
        state.queue_left_out_line(stream);
        state.push(QueuedText {
            stream,
            bytes: text,
            text_count: u64::from(when_full != WhenFull::Forget),
        });
        self.changed.notify_all();
    }

    /// Returns whether the reader went away, so that nobody will read what is written now.
    pub(crate) fn is_reader_gone(&self) -> bool {
        self.lock_state().is_reader_gone
    }

    /// Returns why texts that are queued now will not be read, in words, if there is a reason.
    pub(crate) fn failure_reason(&self) -> Option<String> {
        let state = self.lock_state();
        match &state.failure {
            _ if state.is_reader_gone => Some("its reader has gone".into()),
            Some(error) if state.is_failing => Some(error.to_string()),
            _ => None,
        }
    }

    /// Waits until all texts are written, for `timeout` at most if it is given.
    ///
    /// # Errors
    /// The first error of a write, if one failed for another reason than that the reader went away.
    pub(crate) fn finish(&self, timeout: Option<Duration>) -> io::Result<()> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut state = self.lock_state();
        if state.left_out > 0 {
            state.queue_left_out_line(OutputStream::Stderr);
            self.changed.notify_all();
        }
        while (state.is_writing || !state.waiting.is_empty()) && !state.is_reader_gone {
            state = match wait_for_change(&self.changed, state, deadline) {
                Ok(state) => state,
                Err(late) => {
                    state = late;
                    break;
                }
            };
        }
        state.failure.take().map_or(Ok(()), Err)
    }

    /// Waits for the next text to write. The thread has written the one before.
    fn next_text(&self) -> QueuedText {
        let mut state = self.lock_state();
        state.is_writing = false;
        self.changed.notify_all();
        loop {
            if let Some(text) = state.waiting.pop_front() {
                state.bytes -= text.bytes.len();
                state.is_writing = true;
                return text;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Writes the queued texts until the reader goes away.
    fn write_texts(&self) {
        let mut failing_since: Option<Instant> = None;
        loop {
            let text = self.next_text();
            if failing_since.is_some_and(|since| since.elapsed() < RETRY_WAIT) {
                self.lock_state().left_out += text.text_count;
                continue;
            }
            match text.stream.write_all(&text.bytes) {
                Ok(()) => {
                    if failing_since.take().is_some() {
                        self.lock_state().is_failing = false;
                    }
                }
                Err(error) => {
                    let mut state = self.lock_state();
                    if error.raw_os_error() == Some(Errno::PIPE.raw_os_error()) {
                        state.is_reader_gone = true;
                        state.waiting.clear();
                        state.is_writing = false;
                        self.changed.notify_all();
                        return;
                    }
                    state.left_out += text.text_count;
                    state.failure.get_or_insert(error);
                    state.is_failing = true;
                    failing_since = Some(Instant::now());
                }
            }
        }
    }
}

impl PrinterState {
    fn push(&mut self, text: QueuedText) {
        self.bytes += text.bytes.len();
        self.waiting.push_back(text);
    }

    /// Queues a line that says how many texts are missing in its place, if any are.
    fn queue_left_out_line(&mut self, stream: OutputStream) {
        let missing = std::mem::take(&mut self.left_out);
        if missing > 0 {
            let what = if missing == 1 { "text is" } else { "texts are" };
            let words =
                format!("ion: {missing} {what} missing here: they could not be written in time\n");
            self.push(QueuedText { stream, bytes: words.into_bytes(), text_count: missing });
        }
    }
}
