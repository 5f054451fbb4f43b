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

use super::printer::{OutputStream, Printer, WhenFull, printer, wait};
use super::{one_line, say};

/// How many bytes of a log are shown before it is another job's turn.
const TURN: usize = 64 << 10;

/// How many bytes the shown lines may be behind what the job has written.
const BEHIND_MAX: u64 = 8 << 20;

/// How many bytes of a log's end are shown when it is further behind than that.
const END: u64 = 1 << 20;

/// How many bytes of one line are shown at most.
const LINE_MAX: usize = 64 << 10;

/// How often a line is shown that its program overwrites again and again.
const OVERWRITTEN_EVERY: Duration = Duration::from_secs(1);

/// How many new attempts, and how many messages, may wait while nobody reads.
const WAITING_MAX: usize = 256;
const MESSAGES_MAX: usize = 4096;

/// How the output of jobs is shown.
#[derive(Debug)]
pub(crate) struct LiveStyle {
    /// Returns the prefix of each line of an attempt's output.
    pub(crate) prefix: fn(&LiveOutput) -> String,
    pub(crate) stream: OutputStream,
    /// Whether everything is shown, however long that takes. Otherwise output that is too far
    /// behind is left out.
    pub(crate) whole: bool,
}

/// The view of running jobs, which a thread of its own prints.
#[derive(Debug)]
pub(crate) struct LiveView {
    style: LiveStyle,
    told: Mutex<LiveReports>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LiveReports {
    new: Vec<Arc<LiveOutput>>,
    /// How many attempts are not shown at all, because too many were waiting.
    not_shown: u64,
    /// Lines, each with the job whose output is shown before it.
    messages: VecDeque<(JobId, String)>,
    messages_left_out: u64,
    goes_on: bool,
    ends: bool,
    has_ended: bool,
}

impl OutputWatcher for LiveView {
    fn begins(&self, output: Arc<LiveOutput>) {
        let mut told = self.told();
        if told.new.len() < WAITING_MAX {
            told.new.push(output);
        } else {
            told.not_shown += 1;
        }
        self.changed.notify_all();
    }

    fn goes_on(&self) {
        self.told().goes_on = true;
        self.changed.notify_all();
    }
}

impl LiveView {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system cannot start a thread.
    pub(crate) fn start(style: LiveStyle) -> std::io::Result<Arc<Self>> {
        let live = Arc::new(Self { style, told: Mutex::default(), changed: Condvar::new() });
        let shows = live.clone();
        thread::Builder::new().name("live-view".into()).spawn(move || {
            shows.work();
            shows.told().has_ended = true;
            shows.changed.notify_all();
        })?;
        Ok(live)
    }

    fn told(&self) -> MutexGuard<'_, LiveReports> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows a line after the output that the job has written so far.
    pub(crate) fn message(&self, job: &JobId, line: &str) {
        let mut told = self.told();
        if told.messages.len() < MESSAGES_MAX {
            told.messages.push_back((job.clone(), one_line(line)));
        } else {
            told.messages_left_out += 1;
        }
        self.changed.notify_all();
    }

    /// Ends the view: waits until everything has been shown, for `most` at most if it is given.
    /// Nothing may be reported afterwards.
    pub(crate) fn finish(&self, most: Option<Duration>) {
        let deadline = most.map(|most| Instant::now() + most);
        let mut told = self.told();
        told.ends = true;
        self.changed.notify_all();
        while !told.has_ended {
            let Ok(later) = wait(&self.changed, told, deadline) else { return };
            told = later;
        }
    }

    /// Waits until there is something to show, or until the deadline, and takes what was reported.
    fn wait(&self, deadline: Option<Instant>) -> LiveReports {
        let mut told = self.told();
        while told.new.is_empty() && told.messages.is_empty() && !told.goes_on && !told.ends {
            told = match wait(&self.changed, told, deadline) {
                Ok(told) => told,
                Err(late) => {
                    told = late;
                    break;
                }
            };
        }
        let ends = told.ends;
        std::mem::replace(&mut *told, LiveReports { ends, ..LiveReports::default() })
    }

    fn work(&self) {
        let paper = LinePrinter { printer: printer(self.style.stream), style: &self.style };
        let mut shown: Vec<ShownOutput> = Vec::new();
        let mut more = false;
        let mut in_trouble = false;
        loop {
            let next = shown.iter().filter_map(|shown| shown.lines.due()).min();
            let told = self.wait(if more { Some(Instant::now()) } else { next });
            let trouble = paper.printer.trouble();
            if let Some(trouble) = trouble.as_ref().filter(|_| !in_trouble) {
                say(&format!(
                    "the output of jobs, and how they end, cannot be shown: {trouble}. `ion job \
                     list` and `ion job logs` have it"
                ));
            }
            in_trouble = trouble.is_some();
            shown.extend(told.new.into_iter().map(ShownOutput::new));
            more = false;
            shown.retain_mut(|shown| {
                // This is asked before its bytes are read: once the output has ended, all of its
                // bytes are there.
                let ended = shown.output.has_ended();
                let all = if ended { shown.rest(&paper) } else { shown.turn(&paper) };
                more |= !all;
                if ended {
                    shown.lines.finish(&mut |text| paper.line(&shown.output, text));
                }
                !ended
            });
            for (job, line) in told.messages {
                for shown in shown.iter_mut().filter(|shown| shown.output.job == job) {
                    shown.rest(&paper);
                }
                paper.text(format!("{line}\n"));
            }
            if told.not_shown > 0 {
                paper.text(format!(
                    "ion: the output of {} attempts is not shown: `ion job logs` has it\n",
                    told.not_shown
                ));
            }
            if told.messages_left_out > 0 {
                paper.text(format!(
                    "ion: {} messages are missing here: `ion job list` shows how jobs ended\n",
                    told.messages_left_out
                ));
            }
            if told.ends && !more {
                for shown in &mut shown {
                    shown.rest(&paper);
                    shown.lines.finish(&mut |text| paper.line(&shown.output, text));
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
    fn text(&self, text: String) {
        self.printer.put(self.style.stream, text.into_bytes(), WhenFull::Wait);
    }

    fn line(&self, output: &LiveOutput, text: &str) {
        self.text(format!("{}{}\n", (self.style.prefix)(output), one_line(text)));
    }
}

/// The output of an attempt, and how much of it has been shown.
struct ShownOutput {
    output: Arc<LiveOutput>,
    at: u64,
    lines: LineAssembler,
}

impl ShownOutput {
    fn new(output: Arc<LiveOutput>) -> Self {
        Self { output, at: 0, lines: LineAssembler::default() }
    }

    /// Shows the next piece of the output. Returns whether that was all there is now.
    fn turn(&mut self, paper: &LinePrinter<'_>) -> bool {
        self.catch_up(paper);
        let piece = match self.output.read(self.at, TURN) {
            Ok(piece) => piece,
            Err(error) => {
                tracing::warn!(job = %self.output.job, %error, "a job's output cannot be shown");
                return true;
            }
        };
        self.at += piece.length();
        let mut show = |text: &str| paper.line(&self.output, text);
        if let Some(words) = piece.words() {
            self.lines.add(words.as_bytes(), &mut show);
        }
        self.lines.add(&piece.bytes, &mut show);
        self.lines.show_overwritten(&mut show);
        piece.bytes.len() < TURN
    }

    /// Shows all the output there is now, and returns true.
    fn rest(&mut self, paper: &LinePrinter<'_>) -> bool {
        while !self.turn(paper) {}
        true
    }

    /// Leaves out the output that is too far behind, or all of it if nobody reads.
    fn catch_up(&mut self, paper: &LinePrinter<'_>) {
        let Ok(length) = self.output.length() else { return };
        let nobody_reads = paper.printer.is_gone();
        if nobody_reads {
            self.at = length;
        } else if !paper.style.whole && length.saturating_sub(self.at) > BEHIND_MAX {
            let to = length - END;
            let mut show = |text: &str| paper.line(&self.output, text);
            self.lines.finish(&mut show);
            show(&format!(
                "(ion leaves out {} here, because output comes faster than it is shown: `ion job \
                 logs {}` has all of it)",
                super::size(to - self.at),
                self.output.job.short()
            ));
            self.at = to;
        }
    }
}

/// Makes lines from the pieces that a program writes.
///
/// After a carriage return the next text overwrites the one before, as on a terminal. Of a row of
/// texts that overwrite each other, one is shown every [`OVERWRITTEN_EVERY`], and the last one.
#[derive(Debug, Default)]
struct LineAssembler {
    line: Vec<u8>,
    /// How many bytes of the line were cut off.
    cut: u64,
    /// The text ended with a carriage return, so the next one overwrites it.
    returned: bool,
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
                        self.show(show);
                    }
                    self.clear();
                    bytes = &bytes[1..];
                }
                b'\r' => {
                    self.returned = !self.line.is_empty();
                    bytes = &bytes[1..];
                }
                _ => {
                    if self.returned {
                        self.show_overwritten(show);
                        self.clear();
                    }
                    let end = bytes
                        .iter()
                        .position(|byte| matches!(byte, b'\n' | b'\r'))
                        .unwrap_or(bytes.len());
                    let kept = end.min(LINE_MAX.saturating_sub(self.line.len()));
                    self.line.extend_from_slice(&bytes[..kept]);
                    self.cut += (end - kept) as u64;
                    bytes = &bytes[end..];
                }
            }
        }
    }

    /// Shows a text that will be overwritten, unless another one was shown less than
    /// [`OVERWRITTEN_EVERY`] ago.
    fn show_overwritten(&mut self, show: &mut impl FnMut(&str)) {
        if self.due().is_some_and(|due| due <= Instant::now()) {
            self.show(show);
            (self.is_shown, self.shown_at) = (true, Some(Instant::now()));
        }
    }

    /// Returns when the text in `line` must be shown although its line has not ended.
    fn due(&self) -> Option<Instant> {
        let waits = self.returned && !self.is_shown;
        waits.then(|| self.shown_at.map_or_else(Instant::now, |at| at + OVERWRITTEN_EVERY))
    }

    /// Ends the output: shows the text that is left, as a line.
    fn finish(&mut self, show: &mut impl FnMut(&str)) {
        if !self.line.is_empty() && !self.is_shown {
            self.show(show);
        }
        self.clear();
    }

    fn clear(&mut self) {
        self.line.clear();
        (self.cut, self.returned, self.is_shown) = (0, false, false);
    }

    fn show(&self, show: &mut impl FnMut(&str)) {
        let text = String::from_utf8_lossy(&self.line);
        match self.cut {
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
        let long = lines_of(&["x".repeat(LINE_MAX).as_str(), "yz\nend"]);
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
