//! Foreign text that Ion quotes in its own texts.
//!
//! A module, a request or a message chooses names, types and values freely. Ion quotes them in
//! logs, reasons, records, tables and errors. A long text is cut, so that one name cannot fill a
//! log or a document. Characters that a terminal would obey are shown as escapes, so that a foreign
//! text cannot forge a line.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

/// The most bytes of a name, a type or a value that a sentence quotes. A longer quote hides the
/// rest of the sentence; a shorter limit would cut real file names (255 bytes are allowed, most
/// have fewer than 100). An event type may have as many bytes.
pub const QUOTE_MAX: usize = 200;

/// The most bytes of a whole reason in job records, dead letters and answers. A sentence with
/// several quotes fits. So does a reason in the headers of an AMQP message, whose frames may be
/// limited to 4 KiB.
pub const REASON_MAX: usize = 2000;

/// Returns at most `bytes_max` bytes from the beginning of the text, and never a part of a
/// character.
fn beginning(text: &str, bytes_max: usize) -> &str {
    let end = (0..=bytes_max.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// Returns the text if it has at most `bytes_max` bytes. Otherwise returns its first `bytes_max`
/// bytes, up to the end of a character, and how many bytes were left out.
pub fn cut(text: &str, bytes_max: usize) -> Cow<'_, str> {
    if text.len() <= bytes_max {
        return Cow::Borrowed(text);
    }
    let head = beginning(text, bytes_max);
    Cow::Owned(format!("{head}... ({} more bytes)", text.len() - head.len()))
}

/// Like [`cut`], for a text that the caller gives away: a short text is not copied.
pub fn cut_owned(text: String, bytes_max: usize) -> String {
    match cut(&text, bytes_max) {
        Cow::Borrowed(_) => text,
        Cow::Owned(cut) => cut,
    }
}

/// Returns the end of a text as a string, with the number of bytes before it. The whole text has
/// `all` bytes, of which `end` holds the last ones.
pub fn format_tail(all: u64, end: &[u8]) -> String {
    let before = all.saturating_sub(end.len() as u64);
    if before == 0 {
        return String::from_utf8_lossy(end).into_owned();
    }
    // Skips the rest of a character that was cut in the middle.
    let skipped = end.iter().take(3).take_while(|byte| **byte & 0xc0 == 0x80).count();
    format!(
        "({} bytes before) ...{}",
        before + skipped as u64,
        String::from_utf8_lossy(&end[skipped..])
    )
}

/// Returns a name, a type or a value for display in quotes: escaped, and cut after [`QUOTE_MAX`]
/// bytes.
pub fn quote<T: AsRef<str> + ?Sized>(text: &T) -> Quoted<'_> {
    Quoted(text.as_ref())
}

/// A text that is displayed in quotes: see [`quote`].
#[derive(Clone, Copy, Debug)]
pub struct Quoted<'t>(&'t str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = beginning(self.0, QUOTE_MAX);
        match self.0.len() - head.len() {
            0 => write!(f, "{head:?}"),
            left_out => write!(f, "{head:?}... ({left_out} more bytes)"),
        }
    }
}

/// Whether a terminal or a program that reads lines would obey this character instead of showing
/// it: control characters, line separators, and characters that change the direction of writing or
/// have no width.
pub fn is_terminal_control(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

/// Returns the text in one line: each character that a terminal would obey
/// ([`is_terminal_control`]) is replaced by its escape, such as `\n` or `\u{1b}`.
pub fn escape_controls(text: &str) -> Cow<'_, str> {
    escape_controls_except(text, |_| false)
}

/// Like [`escape_controls`], but keeps the characters for which `keep` returns true.
pub fn escape_controls_except(text: &str, keep: impl Fn(char) -> bool) -> Cow<'_, str> {
    let is_escaped = |c: char| is_terminal_control(c) && !keep(c);
    if !text.chars().any(is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_escaped(c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// Writes a value as a field of a log line: in one line, cut after [`REASON_MAX`] bytes. It needs
/// little memory, however long the value is.
pub fn write_field(out: &mut dyn fmt::Write, value: &dyn fmt::Debug) -> fmt::Result {
    let mut field = Field { out, left: REASON_MAX, left_out: 0 };
    write!(field, "{value:?}")?;
    match field.left_out {
        0 => Ok(()),
        left_out => write!(field.out, "... ({left_out} more bytes)"),
    }
}

struct Field<'o> {
    out: &'o mut dyn fmt::Write,
    left: usize,
    left_out: usize,
}

impl fmt::Write for Field<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let head = beginning(text, self.left);
        self.left_out += text.len() - head.len();
        // After the first text that is cut, nothing more is written.
        self.left = if head.len() < text.len() { 0 } else { self.left - head.len() };
        self.out.write_str(&escape_controls(head))
    }
}

/// Returns the smallest text that is larger than every text with this prefix; `None` if there is no
/// such text.
pub fn prefix_end(prefix: &str) -> Option<String> {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        // Texts are compared by their bytes, which is the order of their characters.
        if let Some(above) = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32) {
            chars.push(above);
            return Some(chars.into_iter().collect());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters_and_says_how_much_is_left_out() {
        assert_eq!(cut("short", 5), "short");
        assert_eq!(cut("longer", 5), "longe... (1 more bytes)");
        assert_eq!(cut("aé€", 5), "aé... (3 more bytes)", "no character is cut in two");
        assert_eq!(
            cut_owned("x".repeat(15 << 20), 10),
            format!("xxxxxxxxxx... ({} more bytes)", (15 << 20) - 10)
        );
        assert_eq!(format_tail(3, b"all"), "all");
        assert_eq!(
            format_tail(100, &"é and more".as_bytes()[1..]),
            "(91 bytes before) ... and more"
        );
        assert_eq!(quote("a\n\u{1b}[31m\u{202e}").to_string(), r#""a\n\u{1b}[31m\u{202e}""#);
        let long = quote(&"y".repeat(QUOTE_MAX + 7)).to_string();
        assert!(long.ends_with("y\"... (7 more bytes)") && long.len() < QUOTE_MAX + 40, "{long}");
    }

    #[test]
    fn what_a_terminal_would_obey_is_shown_and_all_else_stays() {
        assert_eq!(
            escape_controls("plain, é, 日本, e\u{301} and \u{1f469}\u{200d}\u{1f52c}"),
            "plain, é, 日本, e\u{301} and \u{1f469}\u{200d}\u{1f52c}"
        );
        assert_eq!(
            escape_controls("a\nb\r\tc\u{1b}[2J\u{7f}\u{9b}1m"),
            r"a\nb\r\tc\u{1b}[2J\u{7f}\u{9b}1m"
        );
        assert_eq!(escape_controls("\u{202e}txt\u{2028}\u{feff}"), r"\u{202e}txt\u{2028}\u{feff}");
        assert_eq!(escape_controls_except("a\tb\n", |c| c == '\t'), "a\tb\\n");
    }

    #[test]
    fn a_field_of_a_log_is_one_short_line() {
        let mut line = String::new();
        write_field(&mut line, &format_args!("{}\nforged {}", "é".repeat(2000), "z".repeat(2000)))
            .unwrap();
        assert!(!line.contains('\n') && line.len() < REASON_MAX + 50, "{line}");
        assert!(line.ends_with("(4008 more bytes)"), "{line}");
    }
}
