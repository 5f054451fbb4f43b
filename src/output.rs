//! What users see: tables, colours, times and sizes. This is the only module that prints.
//!
//! Modules choose names, types, values and lines freely. Characters in them that a terminal would
//! obey are shown as `\u{1b}` or `\n`, so that no module can move the cursor or forge a line of a
//! table, a trace or a log. Bytes are printed unchanged only where the user asks for them and
//! stdout is not a terminal.

pub(crate) mod live;
mod printer;
mod progress;
mod table;

use std::io::{self, IsTerminal as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ionfs::clock::{self, Millis};
use ionfs::text::{cut, escape_controls, escape_controls_except, is_terminal_control};
use serde::Serialize;

pub(crate) use self::printer::OutputStream;
use self::printer::{WhenFull, printer};
pub(crate) use self::progress::{LogWriter, bar_target};
pub(crate) use self::table::Table;
use crate::settings::wants_colours;

/// The longest cell of a table, and the longest text of a module within a line, in bytes. Commands
/// such as `ion job get` show all of it.
const CELL_MAX: usize = 500;

/// How long a command that catches signals waits at its end for a reader that does not read.
pub(crate) const READER_WAIT: Duration = Duration::from_secs(2);

/// A result is printed in pieces of this many bytes.
const PIECE_BYTES: usize = 64 << 10;

/// Whether this command handles SIGINT and SIGTERM itself. These signals end any other command.
static CATCHES_SIGNALS: AtomicBool = AtomicBool::new(false);

/// Prints one line.
pub(crate) fn print_line(text: impl AsRef<str>) {
    print_bytes(format!("{}\n", escape_line(text.as_ref())).as_bytes());
}

/// Prints a part of the result. It waits for a slow reader. A reader that went away does not end
/// the command, which goes on with its other work.
fn print_bytes(bytes: &[u8]) {
    for piece in bytes.chunks(PIECE_BYTES) {
        printer(OutputStream::Stdout).queue(OutputStream::Stdout, piece.to_vec(), WhenFull::Wait);
    }
}

/// Returns whether the reader of stdout went away, so that nobody will read what is printed now.
pub(crate) fn has_no_reader() -> bool {
    printer(OutputStream::Stdout).is_reader_gone()
}

/// Notes that this command handles signals itself from now on, so that they do not end it at once.
pub(crate) fn note_signal_handling() {
    CATCHES_SIGNALS.store(true, Ordering::Relaxed);
}

/// Waits until everything is printed. A command that catches signals waits for [`READER_WAIT`] at
/// most.
///
/// # Errors
/// When the result could not be written for another reason than that its reader went away. A
/// command that catches signals gets no error.
pub(crate) fn finish() -> io::Result<()> {
    let timeout = CATCHES_SIGNALS.load(Ordering::Relaxed).then_some(READER_WAIT);
    let stdout = printer(OutputStream::Stdout).finish(timeout);
    // Messages on stderr are not part of the result, so losing one is no error.
    let _ = printer(OutputStream::Stderr).finish(timeout);
    if timeout.is_some() { Ok(()) } else { stdout }
}

/// Returns the text in one line. Tabs and the colours of [`coloured`] stay; all else that a
/// terminal would obey is escaped.
fn escape_line(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\x1b') {
        let (before, escape) = rest.split_at(at);
        escaped.push_str(&escape_controls_except(before, |c| c == '\t'));
        let colour_codes =
            Colour::ALL.iter().map(|colour| colour.escape_code()).chain([COLOUR_END.to_owned()]);
        let colour_code = colour_codes.into_iter().find(|code| escape.starts_with(code.as_str()));
        let length = colour_code.as_ref().map_or(1, String::len);
        escaped.push_str(colour_code.as_deref().unwrap_or(r"\u{1b}"));
        rest = &escape[length..];
    }
    escaped.push_str(&escape_controls_except(rest, |c| c == '\t'));
    escaped
}

/// Returns a text that a module or another program has chosen, escaped to fit in one line and cut
/// to [`CELL_MAX`] bytes.
pub(crate) fn escape_foreign(text: &str) -> String {
    escape_controls(&cut(text, CELL_MAX)).into_owned()
}

/// Prints the output of a job: escaped on a terminal, byte by byte anywhere else.
pub(crate) fn print_raw(bytes: &[u8]) {
    let escaped = is_terminal().then(|| {
        let text = String::from_utf8_lossy(bytes);
        escape_controls_except(&text, |c| matches!(c, '\t' | '\n')).into_owned().into_bytes()
    });
    print_bytes(escaped.as_deref().unwrap_or(bytes));
}

/// Prints a JSON document. Characters in its strings that a terminal would obey are printed as JSON
/// escapes.
pub(crate) fn print_json(value: &impl Serialize) {
    print_bytes(
        format!("{}\n", escape_json(&serde_json::to_string_pretty(value).unwrap_or_default()))
            .as_bytes(),
    );
}

/// Prints a JSON document in one line. Its characters are escaped as by [`print_json`].
pub(crate) fn print_json_line(value: &impl Serialize) {
    let text = serde_json::to_string(value).unwrap_or_default();
    print_bytes(format!("{}\n", escape_json(&text)).as_bytes());
}

/// Prints one row of CSV (RFC 4180, with lines that end as on Unix). On a terminal, control
/// characters in it are escaped.
pub(crate) fn print_csv(row: &[String]) {
    let needs_quotes = |cell: &String| cell.contains([',', '"', '\n', '\r']);
    let cells: Vec<String> = row
        .iter()
        .map(|cell| match needs_quotes(cell) {
            true => format!("\"{}\"", cell.replace('"', "\"\"")),
            false => cell.clone(),
        })
        .collect();
    print_raw(format!("{}\n", cells.join(",")).as_bytes());
}

/// Escapes the characters in a JSON text that a terminal would obey and that JSON allows as they
/// are. Control characters below a space are either escaped already or white space between values.
fn escape_json(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match is_terminal_control(c) && c != '\n' {
            true => c
                .encode_utf16(&mut [0; 2])
                .iter()
                .for_each(|unit| escaped.push_str(&format!("\\u{unit:04x}"))),
            false => escaped.push(c),
        }
    }
    escaped
}

/// Prints a message on stderr: what the command does, what it waits for, why it failed. A message
/// for which there is no room, because nobody reads, is left out.
pub(crate) fn print_message(text: &str) {
    let line = format!("ion: {}\n", escape_line(text));
    printer(OutputStream::Stderr).queue(
        OutputStream::Stderr,
        line.into_bytes(),
        WhenFull::LeaveOut,
    );
}

/// Returns whether stdout is a terminal.
pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// A colour of the terminal.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Colour {
    Red,
    Green,
    Yellow,
    Blue,
    Grey,
}

/// The escape sequence that ends a colour.
const COLOUR_END: &str = "\x1b[0m";

impl Colour {
    const ALL: [Self; 5] = [Self::Red, Self::Green, Self::Yellow, Self::Blue, Self::Grey];

    /// Returns the escape sequence that begins the colour.
    fn escape_code(self) -> String {
        let code = match self {
            Self::Red => 31,
            Self::Green => 32,
            Self::Yellow => 33,
            Self::Blue => 34,
            Self::Grey => 90,
        };
        format!("\x1b[{code}m")
    }
}

/// Returns the text in a colour if stdout is a terminal and the user wants colours.
pub(crate) fn coloured(text: &str, colour: Colour) -> String {
    let text = escape_controls(text);
    match is_terminal() && wants_colours() {
        true => format!("{}{text}{COLOUR_END}", colour.escape_code()),
        false => text.into_owned(),
    }
}

/// Returns the state of a job in its colour.
pub(crate) fn coloured_state(text: &str) -> String {
    let colour = match text {
        "succeeded" => Colour::Green,
        "dead" | "failed" => Colour::Red,
        "running" | "starting" => Colour::Blue,
        "cancelled" => Colour::Grey,
        _ => Colour::Yellow,
    };
    coloured(text, colour)
}

/// Formats a number of bytes for people: `1.5 MiB`.
pub(crate) fn format_size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = bytes as f64;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// Formats a duration for people: `12 ms`, `3.4 s`, `2 min`.
pub(crate) fn format_duration(milliseconds: Millis) -> String {
    match milliseconds {
        ..=999 => format!("{milliseconds} ms"),
        1_000..=59_999 => format!("{}.{} s", milliseconds / 1000, milliseconds % 1000 / 100),
        60_000..=3_599_999 => format!("{} min", milliseconds / 60_000),
        3_600_000..=86_399_999 => format!("{} h", milliseconds / 3_600_000),
        _ => format!("{} d", milliseconds / 86_400_000),
    }
}

/// Formats how long ago a moment was.
pub(crate) fn format_age(at: Millis) -> String {
    format!("{} ago", format_duration((clock::now() - at).max(0)))
}

/// Formats a moment in full, as RFC 3339 with milliseconds.
pub(crate) fn format_time(at: Millis) -> String {
    humantime::format_rfc3339_millis(clock::system_time(at)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_chose_stays_in_its_line_and_is_not_obeyed() {
        let forged = "a\nsucceeded  b\r\x1b[2J\x1b[31mred\x1b[0m\u{9b}1m\tend";
        // Only Ion's own colour codes stay: a module that writes the same codes gets no more than
        // colours.
        assert_eq!(
            escape_line(forged),
            "a\\nsucceeded  b\\r\\u{1b}[2J\x1b[31mred\x1b[0m\\u{9b}1m\tend"
        );
        assert_eq!(escape_foreign("a\n\x1b[31mb"), r"a\n\u{1b}[31mb");
        assert!(escape_foreign(&"x".repeat(15 << 20)).len() < CELL_MAX + 50);
        let json =
            escape_json(&serde_json::to_string(&["\u{9b}2J\u{7f}\u{202e}\x1b\n", "é"]).unwrap());
        assert_eq!(json, r#"["\u009b2J\u007f\u202e\u001b\n","é"]"#);
        assert_eq!(
            serde_json::from_str::<Vec<String>>(&json).unwrap()[0],
            "\u{9b}2J\u{7f}\u{202e}\x1b\n"
        );
    }

    #[test]
    fn sizes_and_durations_are_short() {
        assert_eq!(format_size(999), "999 B");
        assert_eq!(format_size(1_572_864), "1.5 MiB");
        assert_eq!(format_duration(3_400), "3.4 s");
        assert_eq!(format_duration(120_000), "2 min");
    }
}
