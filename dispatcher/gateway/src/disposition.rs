//! The names of a form's part: `Content-Disposition` as clients really send it.
//!
//! RFC 7578 defines the header, and few clients follow it. Browsers and curl write a quote as `%22`
//! and leave a backslash as it is. Go, Java and httpx put a backslash before both. Python's
//! requests and .NET repeat non-ASCII names as `filename*` (RFC 8187), and .NET writes the plain
//! `filename` as an encoded word (RFC 2047). Older clients send Latin-1.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode;

/// The names of a part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Disposition {
    /// The field's name.
    pub(super) name: Option<String>,
    /// The file's name; a part without a file name is a value.
    pub(super) file_name: Option<String>,
}

impl Disposition {
    /// Reads the header. Unknown parts of it are ignored.
    pub(super) fn parse(header: &[u8]) -> Self {
        let (mut name, mut file_name, mut extended) = (None, None, None);
        let mut rest = skip_kind(header);
        while let Some((key, value, after)) = next_parameter(rest) {
            rest = after;
            match key.to_ascii_lowercase().as_slice() {
                b"name" => name = name.or_else(|| Some(value_text(value))),
                b"filename" => file_name = file_name.or_else(|| Some(value_text(value))),
                b"filename*" => {
                    extended = extended.or_else(|| decode_rfc_8187(&value_bytes(value)))
                }
                _ => {}
            }
        }
        // An old browser sends the file's path on its machine.
        let file_name = extended.or(file_name).map(|name| match name.as_bytes() {
            [drive, b':', b'\\', ..] if drive.is_ascii_alphabetic() => {
                name.rsplit('\\').next().unwrap_or_default().to_owned()
            }
            _ => name,
        });
        Self { name, file_name }
    }
}

/// A parameter's value as it is written in the header.
#[derive(Clone, Copy)]
enum ParameterValue<'a> {
    /// The bytes between the quotes.
    Quoted(&'a [u8]),
    Bare(&'a [u8]),
}

fn skip_kind(header: &[u8]) -> &[u8] {
    header.iter().position(|&byte| byte == b';').map_or(&[], |at| &header[at..])
}

/// Returns the next parameter: its key, its value, and the rest of the header. Returns none after
/// the last.
fn next_parameter(text: &[u8]) -> Option<(&[u8], ParameterValue<'_>, &[u8])> {
    let mut rest = text;
    loop {
        let begin = rest.iter().position(|byte| !matches!(byte, b';' | b' ' | b'\t'))?;
        rest = &rest[begin..];
        let end = rest.iter().position(|byte| matches!(byte, b'=' | b';'))?;
        let key = rest[..end].trim_ascii();
        if rest[end] == b';' {
            rest = &rest[end..];
            continue;
        }
        let value = rest[end + 1..].trim_ascii_start();
        let Some(quoted) = value.strip_prefix(b"\"") else {
            let end = value.iter().position(|&byte| byte == b';').unwrap_or(value.len());
            return Some((key, ParameterValue::Bare(value[..end].trim_ascii()), &value[end..]));
        };
        let end = closing_quote(quoted);
        let after = quoted.get(end + 1..).unwrap_or_default();
        return Some((key, ParameterValue::Quoted(&quoted[..end]), after));
    }
}

/// Returns the end of a quoted value. A quote after a backslash belongs to the value, unless no
/// other quote could end it: then the backslash is one that a browser wrote as it is.
fn closing_quote(quoted: &[u8]) -> usize {
    let mut at = 0;
    while let Some(&byte) = quoted.get(at) {
        match byte {
            b'"' => return at,
            b'\\' if quoted.get(at + 1) == Some(&b'"') && !can_follow_value(&quoted[at + 2..]) => {
                at += 2
            }
            b'\\' if quoted.get(at + 1) == Some(&b'\\') => at += 2,
            _ => at += 1,
        }
    }
    quoted.len()
}

/// Returns whether this text can follow a value: it is empty, or another parameter.
fn can_follow_value(text: &[u8]) -> bool {
    let text = text.trim_ascii_start();
    let Some(next) = text.strip_prefix(b";") else { return text.is_empty() };
    let next = next.trim_ascii_start().to_ascii_lowercase();
    ["name=", "filename=", "filename*="].iter().any(|key| next.starts_with(key.as_bytes()))
}

/// Returns the bytes of a value, without the backslashes that escape quotes and backslashes.
fn value_bytes(value: ParameterValue<'_>) -> Vec<u8> {
    match value {
        ParameterValue::Bare(bytes) => bytes.to_vec(),
        ParameterValue::Quoted(bytes) => {
            let mut plain = Vec::with_capacity(bytes.len());
            let mut at = 0;
            while let Some(&byte) = bytes.get(at) {
                // Before any other byte a backslash stands for itself, as in `C:\dir`.
                let protects = byte == b'\\' && matches!(bytes.get(at + 1), Some(b'"' | b'\\'));
                at += usize::from(protects);
                plain.push(bytes[at]);
                at += 1;
            }
            plain
        }
    }
}

/// Returns a value as text.
fn value_text(value: ParameterValue<'_>) -> String {
    let bytes = value_bytes(value);
    if let Some(word) = decode_words(&bytes) {
        return word;
    }
    let text = decode_text(bytes);
    // Only the sequences that browsers write for characters that cannot stand in quotes are
    // decoded: any other `%` stands for itself.
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find('%') {
        let byte = match rest.get(at..at + 3).map(str::to_ascii_uppercase).as_deref() {
            Some("%22") => '"',
            Some("%0D") => '\r',
            Some("%0A") => '\n',
            _ => {
                plain.push_str(&rest[..=at]);
                rest = &rest[at + 1..];
                continue;
            }
        };
        plain.push_str(&rest[..at]);
        plain.push(byte);
        rest = &rest[at + 3..];
    }
    plain + rest
}

/// Reads bytes as UTF-8, or else as Latin-1, which older clients send.
fn decode_text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| decode_latin_1(error.as_bytes()))
}

fn decode_latin_1(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

/// Decodes an RFC 8187 value, as in `utf-8'en'na%C3%AFve.txt`.
fn decode_rfc_8187(value: &[u8]) -> Option<String> {
    let mut parts = value.splitn(3, |&byte| byte == b'\'');
    let (charset, _language, encoded) = (parts.next()?, parts.next()?, parts.next()?);
    decode_charset(charset, percent_decode(encoded).collect())
}

/// Decodes RFC 2047 encoded words, as in `=?utf-8?B?bmHDr3Zl?=`, one or several.
fn decode_words(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut words = String::new();
    for word in text.split_ascii_whitespace() {
        let inner = word.strip_prefix("=?")?.strip_suffix("?=")?;
        let mut parts = inner.splitn(3, '?');
        let (charset, encoding, encoded) = (parts.next()?, parts.next()?, parts.next()?);
        let bytes = match encoding {
            "B" | "b" => STANDARD.decode(encoded).ok()?,
            "Q" | "q" => percent_decode(
                encoded.replace('%', "%25").replace('_', " ").replace('=', "%").as_bytes(),
            )
            .collect(),
            _ => return None,
        };
        words.push_str(&decode_charset(charset.as_bytes(), bytes)?);
    }
    (!words.is_empty()).then_some(words)
}

fn decode_charset(charset: &[u8], bytes: Vec<u8>) -> Option<String> {
    match charset.to_ascii_lowercase().as_slice() {
        b"utf-8" => String::from_utf8(bytes).ok(),
        b"iso-8859-1" | b"us-ascii" => Some(decode_latin_1(&bytes)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A client, the header it sends, and the names it means: of the field, of the file.
    type Sent = (&'static str, &'static [u8], Option<&'static str>, Option<&'static str>);

    /// The headers are taken from the clients' sources and from captures.
    #[test]
    fn names_are_what_their_clients_mean() {
        let cases: &[Sent] = &[
            ("browsers, curl", b"form-data; name=\"f\"; filename=\"a b.txt\"", Some("f"), Some("a b.txt")),
            (
                "browsers",
                "form-data; name=\"f\"; filename=\"\u{e4}\u{1f600}.txt\"".as_bytes(),
                Some("f"),
                Some("\u{e4}\u{1f600}.txt"),
            ),
            (
                "browsers: a quote",
                b"form-data; name=\"a%22b\"; filename=\"x%22.txt\"",
                Some("a\"b"),
                Some("x\".txt"),
            ),
            ("browsers: a line's end", b"form-data; name=\"a%0D%0Ab\"", Some("a\r\nb"), None),
            (
                "a percent sign is one",
                b"form-data; name=\"100%\"; filename=\"50%25 off%2.txt\"",
                Some("100%"),
                Some("50%25 off%2.txt"),
            ),
            (
                "browsers: a backslash",
                b"form-data; name=\"a\\b\"; filename=\"c\\d.txt\"",
                Some("a\\b"),
                Some("c\\d.txt"),
            ),
            ("browsers: a backslash at the end", b"form-data; name=\"f\\\"", Some("f\\"), None),
            (
                "the same before a file name",
                b"form-data; name=\"f\\\"; filename=\"x\"",
                Some("f\\"),
                Some("x"),
            ),
            (
                "Internet Explorer",
                b"form-data; name=\"f\"; filename=\"C:\\dir\\x.txt\"",
                Some("f"),
                Some("x.txt"),
            ),
            (
                "Go, Java, older curl: a quote",
                b"form-data; name=\"f\"; filename=\"a\\\"b\\\\c.txt\"",
                Some("f"),
                Some("a\"b\\c.txt"),
            ),
            (
                "no quotes (.NET)",
                b"form-data; name=f; filename=x.txt; filename*=utf-8''x.txt",
                Some("f"),
                Some("x.txt"),
            ),
            (
                ".NET",
                b"form-data; name=\"f\"; filename=\"=?utf-8?B?w6QudHh0?=\"; filename*=utf-8''%C3%A4.txt",
                Some("f"),
                Some("\u{e4}.txt"),
            ),
            (".NET: a value's name", b"form-data; name=\"=?utf-8?B?w6Q=?=\"", Some("\u{e4}"), None),
            ("quoted printable", b"form-data; name=\"=?iso-8859-1?Q?=E4_b?=\"", Some("\u{e4} b"), None),
            (
                "Python requests",
                b"form-data; name=\"f\"; filename*=utf-8''%C3%A4.txt",
                Some("f"),
                Some("\u{e4}.txt"),
            ),
            (
                "it stands before the other",
                b"form-data; filename*=UTF-8'en'%e2%82%ac%20rates; filename=\"EURO rates\"; name=\"f\"",
                Some("f"),
                Some("\u{20ac} rates"),
            ),
            (
                "of a charset that is not known",
                b"form-data; name=f; filename*=koi8-r''%C4; filename=\"d\"",
                Some("f"),
                Some("d"),
            ),
            ("Latin-1", b"form-data; name=\"f\"; filename=\"\xe4.txt\"", Some("f"), Some("\u{e4}.txt")),
            ("a value, not a file", b"form-data; name=\"a; filename=b\"", Some("a; filename=b"), None),
            ("an empty file name", b"form-data; name=\"f\"; filename=\"\"", Some("f"), Some("")),
            (
                "capitals, and spaces around",
                b"Form-Data ; NAME = \"f\" ; FileName=\"x\"",
                Some("f"),
                Some("x"),
            ),
            ("the first of two counts", b"form-data; name=\"one\"; name=\"two\"", Some("one"), None),
            ("no end", b"form-data; name=\"f", Some("f"), None),
            ("nothing", b"form-data", None, None),
        ];
        for (who, header, name, file_name) in cases {
            let expected = Disposition {
                name: name.map(str::to_owned),
                file_name: file_name.map(str::to_owned),
            };
            assert_eq!(Disposition::parse(header), expected, "{who}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read(header in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Disposition::parse(&header);
        }

        /// Any name that a browser writes is read back.
        #[test]
        fn what_a_browser_writes_is_read(name in "[^\\\\]{1,20}") {
            let written = name.replace('"', "%22").replace('\r', "%0D").replace('\n', "%0A");
            // A name that contains such a sequence itself is decoded to the character that the
            // sequence stands for.
            let means_another = |part: &str| name.to_ascii_lowercase().contains(part);
            prop_assume!(!means_another("%22") && !means_another("%0") && !name.starts_with("=?"));
            let header = format!("form-data; name=\"{written}\"; filename=\"{written}\"");
            let read = Disposition::parse(header.as_bytes());
            prop_assert_eq!(read.name.as_ref(), Some(&name));
        }
    }
}
