//! What people see: tables, colours, times and sizes. The only place that prints.
#![expect(clippy::print_stderr, reason = "the one place that prints")]

use std::io::{self, IsTerminal as _, Write as _};

use ionfs::clock::{self, Millis};
use serde::Serialize;

/// Prints a line. A reader that went away ends the command quietly.
pub(crate) fn line(text: impl AsRef<str>) {
    let mut out = io::stdout().lock();
    if writeln!(out, "{}", text.as_ref()).is_err() {
        std::process::exit(0);
    }
}

/// Prints bytes as they are.
pub(crate) fn raw(bytes: &[u8]) {
    let mut out = io::stdout().lock();
    if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Prints a JSON document.
pub(crate) fn json(value: &impl Serialize) {
    line(serde_json::to_string_pretty(value).unwrap_or_default());
}

/// Says something beside the result.
pub(crate) fn say(text: &str) {
    eprintln!("ion: {text}");
}

/// Says why the command failed.
pub(crate) fn complain(text: &str) {
    eprintln!("ion: {text}");
}

/// Whether results go to a terminal.
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

/// The text in a colour, where there is a terminal that shows it.
pub(crate) fn coloured(text: &str, colour: Colour) -> String {
    if !is_terminal() {
        return text.to_owned();
    }
    let code = match colour {
        Colour::Red => 31,
        Colour::Green => 32,
        Colour::Yellow => 33,
        Colour::Blue => 34,
        Colour::Grey => 90,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// The colour of a job's state.
pub(crate) fn state(text: &str) -> String {
    let colour = match text {
        "succeeded" => Colour::Green,
        "dead" | "failed" => Colour::Red,
        "running" | "starting" => Colour::Blue,
        "cancelled" => Colour::Grey,
        _ => Colour::Yellow,
    };
    coloured(text, colour)
}

/// Prints rows under a heading, each column as wide as its widest cell.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) {
    for text in layout(heading, rows) {
        line(text);
    }
}

fn layout(heading: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let heading: Vec<String> = heading.iter().map(|cell| (*cell).to_owned()).collect();
    let all: Vec<&Vec<String>> = std::iter::once(&heading).chain(rows).collect();
    let widths: Vec<usize> = (0..heading.len())
        .map(|column| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    all.iter()
        .map(|row| {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            cells.join("  ").trim_end().to_owned()
        })
        .collect()
}

/// A length for people: `1.5 MiB`.
pub(crate) fn size(bytes: u64) -> String {
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

/// A duration for people: `12 ms`, `3.4 s`, `2 min`.
pub(crate) fn duration(milliseconds: Millis) -> String {
    match milliseconds {
        ..=999 => format!("{milliseconds} ms"),
        1_000..=59_999 => format!("{}.{} s", milliseconds / 1000, milliseconds % 1000 / 100),
        60_000..=3_599_999 => format!("{} min", milliseconds / 60_000),
        3_600_000..=86_399_999 => format!("{} h", milliseconds / 3_600_000),
        _ => format!("{} d", milliseconds / 86_400_000),
    }
}

/// How long ago a moment was.
pub(crate) fn ago(at: Millis) -> String {
    format!("{} ago", duration((clock::now() - at).max(0)))
}

/// A moment, in full.
pub(crate) fn moment(at: Millis) -> String {
    humantime::format_rfc3339_millis(clock::system_time(at)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = vec![vec!["a".to_owned(), "long cell".to_owned()], vec!["bcd".to_owned(), "x".to_owned()]];
        assert_eq!(layout(&["ID", "WHAT"], &rows), ["ID   WHAT", "a    long cell", "bcd  x"]);
    }

    #[test]
    fn sizes_and_durations_are_short() {
        assert_eq!(size(999), "999 B");
        assert_eq!(size(1_572_864), "1.5 MiB");
        assert_eq!(duration(3_400), "3.4 s");
        assert_eq!(duration(120_000), "2 min");
    }
}
