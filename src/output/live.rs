//! Shows the output of jobs, and how they end, as it happens: for `ion up` and `ion run`.
//!
//! # How it works
//! A thread of its own reads the logs of all running attempts, a piece of each by turns, and prints
//! their lines. The output of an attempt is printed before the line that says how it ended.
//!
//! # What it never does
//! Hold up a thread that reports something to it. A reader that is slower than the jobs sees the
//! end of what each job has written, and how much is left out before it; the logs have all of it.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use dispatcher::executor::{LiveOutput, OutputWatcher};
use ionfs::id::JobId;

use super::printer::{OutputStream, Printer, WhenFull, printer, wait_for_change};
use super::{escape_line, print_message};

/// How many bytes of a log are shown before it is another job's turn.
const TURN_BYTES: usize = 64 << 10;

/// How many bytes the shown lines may be behind what the job has written.
const BEHIND_BYTES_MAX: u64 = 8 << 20;

/// How many bytes of a log's end are shown when it is further behind than that.
const TAIL_BYTES: u64 = 1 << 20;

/// How many bytes of one line are shown at most.
const LINE_BYTES_MAX: usize = 64 << 10;

/// How often a line is shown that its program overwrites again and again.
const OVERWRITTEN_INTERVAL: Duration = Duration::from_secs(1);

/// How many new attempts, and how many messages, may wait while nobody reads.
const NEW_OUTPUTS_MAX: usize = 256;
const MESSAGES_MAX: usize = 4096;

/// How the output of jobs is shown.
#[derive(Debug)]
pub(crate) struct LiveStyle {
    /// Returns the prefix of each line of an attempt's output.
    pub(crate) prefix: fn(&LiveOutput) -> String,
    pub(crate) stream: OutputStream,
    /// Whether everything is shown, however long that takes. Otherwise output that is too far
    /// behind is left out.
    pub(crate) shows_all: bool,
}

/// The view of running jobs, which a thread of its own prints.
#[derive(Debug)]
pub(crate) struct LiveView {
    style: LiveStyle,
    reports: Mutex<LiveReports>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LiveReports {
    new_outputs: Vec<Arc<LiveOutput>>,
    /// How many attempts are not shown at all, because too many were waiting.
    not_shown: u64,
    /// Lines, each with the job whose output is shown before it.
    messages: VecDeque<(JobId, String)>,
    messages_left_out: u64,
    has_output: bool,
    is_ending: bool,
    has_ended: bool,
}

impl OutputWatcher for LiveView {
    fn on_begin(&self, output: Arc<LiveOutput>) {
        let mut reports = self.lock_reports();
        if reports.new_outputs.len() < NEW_OUTPUTS_MAX {
            reports.new_outputs.push(output);
        } else {
            reports.not_shown += 1;
        }
        self.changed.notify_all();
    }

    fn on_change(&self) {
        self.lock_reports().has_output = true;
        self.changed.notify_all();
    }
}

impl LiveView {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system cannot start a thread.
    pub(crate) fn start(style: LiveStyle) -> std::io::Result<Arc<Self>> {
        let live = Arc::new(Self { style, reports: Mutex::default(), changed: Condvar::new() });
        let view = live.clone();
        thread::Builder::new().name("live-view".into()).spawn(move || {
            view.run();
            view.lock_reports().has_ended = true;
            view.changed.notify_all();
        })?;
        Ok(live)
    }

    fn lock_reports(&self) -> MutexGuard<'_, LiveReports> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows a line after the output that the job has written so far.
    pub(crate) fn show_message(&self, job: &JobId, line: &str) {
        let mut reports = self.lock_reports();
        if reports.messages.len() < MESSAGES_MAX {
            reports.messages.push_back((job.clone(), escape_line(line)));
        } else {
            reports.messages_left_out += 1;
        }
        self.changed.notify_all();
    }

    /// Ends the view: waits until everything has been shown, for `timeout` at most if it is given.
    /// Nothing may be reported afterwards.
    pub(crate) fn finish(&self, timeout: Option<Duration>) {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut reports = self.lock_reports();
        reports.is_ending = true;
        self.changed.notify_all();
        while !reports.has_ended {
            let Ok(later) = wait_for_change(&self.changed, reports, deadline) else { return };
            reports = later;
        }
    }

    /// Waits until there is something to show, or until the deadline, and takes what was reported.
    fn take_reports(&self, deadline: Option<Instant>) -> LiveReports {
        let mut reports = self.lock_reports();
        while reports.new_outputs.is_empty()
            && reports.messages.is_empty()
            && !reports.has_output
            && !reports.is_ending
        {
            reports = match wait_for_change(&self.changed, reports, deadline) {
                Ok(reports) => reports,
                Err(late) => {
                    reports = late;
                    break;
                }
            };
        }
        let is_ending = reports.is_ending;
        std::mem::replace(&mut *reports, LiveReports { is_ending, ..LiveReports::default() })
    }

    fn run(&self) {
        let out = LinePrinter { printer: printer(self.style.stream), style: &self.style };
        let mut shown: Vec<ShownOutput> = Vec::new();
        let mut more = false;
        let mut was_failing = false;
        loop {
            let next = shown.iter().filter_map(|shown| shown.lines.show_deadline()).min();
            let reports = self.take_reports(if more { Some(Instant::now()) } else { next });
            let failure = out.printer.failure_reason();
            if let Some(failure) = failure.as_ref().filter(|_| !was_failing) {
                print_message(&format!(
                    "the output of jobs, and how they end, cannot be shown: {failure}. `ion job \
                     list` and `ion job logs` have it"
                ));
            }
            was_failing = failure.is_some();
            shown.extend(reports.new_outputs.into_iter().map(ShownOutput::new));
            more = false;
            shown.retain_mut(|shown| {
                // This is asked before its bytes are read: once the output has ended, all of its
                // bytes are there.
                let ended = shown.output.has_ended();
                let all = if ended { shown.show_rest(&out) } else { shown.show_piece(&out) };
                more |= !all;
                if ended {
                    shown.lines.finish(&mut |text| out.print_line(&shown.output, text));
                }
                !ended
            });
            for (job, line) in reports.messages {
                for shown in shown.iter_mut().filter(|shown| shown.output.job == job) {
                    shown.show_rest(&out);
                }
                out.print_text(format!("{line}\n"));
            }
            if reports.not_shown > 0 {
                out.print_text(format!(
                    "ion: the output of {} attempts is not shown: `ion job logs` has it\n",
                    reports.not_shown
                ));
            }
            if reports.messages_left_out > 0 {
                out.print_text(format!(
                    "ion: {} messages are missing here: `ion job list` shows how jobs ended\n",
                    reports.messages_left_out
                ));
            }
            if reports.is_ending && !more {
                for shown in &mut shown {
                    shown.show_rest(&out);
                    shown.lines.finish(&mut |text| out.print_line(&shown.output, text));
                }
                return;
            }
        }
    }
}

/// The stream that lines are printed on, and their style.
struct LinePrinter<'a> {
    printer: &'static Printer,
    style: &'a LiveStyle,
}

impl LinePrinter<'_> {
    fn print_text(&self, text: String) {
        self.printer.queue(self.style.stream, text.into_bytes(), WhenFull::Wait);
    }

    fn print_line(&self, output: &LiveOutput, text: &str) {
        self.print_text(format!("{}{}\n", (self.style.prefix)(output), escape_line(text)));
    }
}

/// The output of an attempt, and how much of it has been shown.
struct ShownOutput {
    output: Arc<LiveOutput>,
    position: u64,
    lines: LineAssembler,
}

impl ShownOutput {
    fn new(output: Arc<LiveOutput>) -> Self {
        Self { output, position: 0, lines: LineAssembler::default() }
    }

    /// Shows the next piece of the output. Returns whether that was all there is now.
    fn show_piece(&mut self, out: &LinePrinter<'_>) -> bool {
        self.skip_ahead(out);
        let piece = match self.output.read(self.position, TURN_BYTES) {
            Ok(piece) => piece,
            Err(error) => {
                tracing::warn!(job = %self.output.job, %error, "a job's output cannot be shown");
                return true;
            }
        };
        self.position += piece.length();
        let mut show = |text: &str| out.print_line(&self.output, text);
        if let Some(words) = piece.left_out_line() {
            self.lines.add(words.as_bytes(), &mut show);
        }
        self.lines.add(&piece.bytes, &mut show);
        self.lines.show_overwritten(&mut show);
        piece.bytes.len() < TURN_BYTES
    }

    /// Shows all the output there is now, and returns true.
    fn show_rest(&mut self, out: &LinePrinter<'_>) -> bool {
        while !self.show_piece(out) {}
        true
    }

    /// Leaves out the output that is too far behind, or all of it if nobody reads.
    fn skip_ahead(&mut self, out: &LinePrinter<'_>) {
        let Ok(length) = self.output.length() else { return };
        let nobody_reads = out.printer.is_reader_gone();
        if nobody_reads {
            self.position = length;
        } else if !out.style.shows_all && length.saturating_sub(self.position) > BEHIND_BYTES_MAX {
            let to = length - TAIL_BYTES;
            let mut show = |text: &str| out.print_line(&self.output, text);
            self.lines.finish(&mut show);
            show(&format!(
                "(ion leaves out {} here, because output comes faster than it is shown: `ion job \
                 logs {}` has all of it)",
                super::format_size(to - self.position),
                self.output.job.short()
            ));
            self.position = to;
        }
    }
}

/// Makes lines from the pieces that a program writes.
///
/// After a carriage return the next text overwrites the one before, as on a terminal. Of a row of
/// texts that overwrite each other, one is shown every [`OVERWRITTEN_INTERVAL`], and the last one.
#[derive(Debug, Default)]
struct LineAssembler {
    line: Vec<u8>,
    /// How many bytes of the line were cut off.
    cut_bytes: u64,
    /// The text ended with a carriage return, so the next one overwrites it.
    is_returned: bool,
    /// The text in `line` has been shown.
    is_shown: bool,
    shown_at: Option<Instant>,
}

impl LineAssembler {
    fn add(&mut self, mut bytes: &[u8], show: &mut impl FnMut(&str)) {
        while let Some(first) = bytes.first() {
            match first {
                b'\n' => {
                    if !self.is_shown {
                        self.show_line(show);
                    }
                    self.clear();
                    bytes = &bytes[1..];
                }
                b'\r' => {
                    self.is_returned = !self.line.is_empty();
                    bytes = &bytes[1..];
                }
                _ => {
                    if self.is_returned {
                        self.show_overwritten(show);
                        self.clear();
                    }
                    let end = bytes
                        .iter()
                        .position(|byte| matches!(byte, b'\n' | b'\r'))
                        .unwrap_or(bytes.len());
                    let kept = end.min(LINE_BYTES_MAX.saturating_sub(self.line.len()));
                    self.line.extend_from_slice(&bytes[..kept]);
                    self.cut_bytes += (end - kept) as u64;
                    bytes = &bytes[end..];
                }
            }
        }
    }

    /// Shows a text that will be overwritten, unless another one was shown less than
    /// [`OVERWRITTEN_INTERVAL`] ago.
    fn show_overwritten(&mut self, show: &mut impl FnMut(&str)) {
        if self.show_deadline().is_some_and(|due| due <= Instant::now()) {
            self.show_line(show);
            (self.is_shown, self.shown_at) = (true, Some(Instant::now()));
        }
    }

    /// Returns when the text in `line` must be shown although its line has not ended.
    fn show_deadline(&self) -> Option<Instant> {
        let waits = self.is_returned && !self.is_shown;
        waits.then(|| self.shown_at.map_or_else(Instant::now, |at| at + OVERWRITTEN_INTERVAL))
    }

    /// Ends the output: shows the text that is left, as a line.
    fn finish(&mut self, show: &mut impl FnMut(&str)) {
        if !self.line.is_empty() && !self.is_shown {
            self.show_line(show);
        }
        self.clear();
    }

    fn clear(&mut self) {
        self.line.clear();
        (self.cut_bytes, self.is_returned, self.is_shown) = (0, false, false);
    }

    fn show_line(&self, show: &mut impl FnMut(&str)) {
        let text = String::from_utf8_lossy(&self.line);
        match self.cut_bytes {
            0 => show(&text),
            cut => show(&format!("{text}... ({cut} more bytes)")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(pieces: &[&str]) -> Vec<String> {
        let mut lines = LineAssembler::default();
        let mut shown = Vec::new();
        let mut show = |text: &str| shown.push(text.to_owned());
        for piece in pieces {
            lines.add(piece.as_bytes(), &mut show);
            lines.show_overwritten(&mut show);
        }
        lines.finish(&mut show);
        shown
    }

    #[test]
    fn lines_are_whole_however_their_pieces_come() {
        assert_eq!(lines_of(&["a\nb", "c\n\nd"]), ["a", "bc", "", "d"]);
        assert_eq!(lines_of(&["a\r", "\nb\r\n"]), ["a", "b"]);
        assert_eq!(lines_of(&[]), [""; 0]);
        let long = lines_of(&["x".repeat(LINE_BYTES_MAX).as_str(), "yz\nend"]);
        assert!(long[0].ends_with("x... (2 more bytes)") && long[1] == "end", "{}", long[1]);
    }

    #[test]
    fn of_texts_that_stand_over_each_other_the_first_and_the_last_are_shown() {
        assert_eq!(lines_of(&["1%\r2%\r3%\r", "99%\r", "100%\ndone\n"]), ["1%", "100%", "done"]);
        assert_eq!(lines_of(&["1%\r", "2%\r"]), ["1%", "2%"]);
        // The last one is shown though its line never ends otherwise.
        assert_eq!(lines_of(&["1%\r2%"]), ["1%", "2%"]);
        assert_eq!(lines_of(&["1%\r\n2%\r\n"]), ["1%", "2%"]);
    }
}
