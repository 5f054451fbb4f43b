//! Log lines and progress bars, which the printing threads write.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressDrawTarget, TermLike};

use super::printer::{OutputStream, WhenFull, printer};

/// The writer of log lines. Each call of `write` has one line.
#[derive(Debug)]
pub(crate) struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        printer(OutputStream::Stderr).queue(
            OutputStream::Stderr,
            line.to_vec(),
            WhenFull::LeaveOut,
        );
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns where progress bars are drawn: on stderr if it is a terminal, else nowhere.
pub(crate) fn bar_target() -> ProgressDrawTarget {
    match io::IsTerminal::is_terminal(&io::stderr()) {
        true => {
            ProgressDrawTarget::term_like_with_hz(Box::new(Terminal::default()), FRAMES_PER_SECOND)
        }
        false => ProgressDrawTarget::hidden(),
    }
}

/// How many frames a second are drawn.
const FRAMES_PER_SECOND: u8 = 10;

/// A terminal that is written in whole frames. A frame that cannot be written in time is left out:
/// the next one shows the same bars.
#[derive(Debug, Default)]
struct Terminal {
    frame: Mutex<String>,
}

impl Terminal {
    fn push(&self, text: &str) -> io::Result<()> {
        self.frame.lock().unwrap_or_else(PoisonError::into_inner).push_str(text);
        Ok(())
    }

    fn push_control(&self, count: usize, command: char) -> io::Result<()> {
        if count == 0 { Ok(()) } else { self.push(&format!("\x1b[{count}{command}")) }
    }
}

impl TermLike for Terminal {
    fn width(&self) -> u16 {
        rustix::termios::tcgetwinsize(rustix::stdio::stderr()).map_or(80, |size| size.ws_col.max(1))
    }

    fn height(&self) -> u16 {
        rustix::termios::tcgetwinsize(rustix::stdio::stderr()).map_or(24, |size| size.ws_row.max(1))
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.push_control(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.push_control(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.push_control(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.push_control(n, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.push(text)?;
        self.push("\r\n")
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.push(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.push("\r\x1b[2K")
    }

    fn flush(&self) -> io::Result<()> {
        let frame = std::mem::take(&mut *self.frame.lock().unwrap_or_else(PoisonError::into_inner));
        printer(OutputStream::Stderr).queue(
            OutputStream::Stderr,
            frame.into_bytes(),
            WhenFull::Forget,
        );
        Ok(())
    }
}
