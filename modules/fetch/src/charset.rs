//! The characters of a feed or a page: which encoding its bytes are in, and the text that they are.
//!
//! Three places name an encoding: the `Content-Type` of the answer, a byte order mark, and the XML
//! declaration. They are asked in this order. Servers often name a wrong one, so an encoding that
//! the bytes contradict is passed over, and UTF-8 and windows-1252 are tried last. windows-1252
//! fits any bytes, so every feed has a text.

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE, WINDOWS_1252};

/// How many bytes of a document are searched for an XML declaration. Fewer miss a declaration that
/// follows blank lines; more only cost time.
const DECLARATION_BYTES: usize = 1024;

/// Returns the text of an XML document that came with this `Content-Type`, without a byte order
/// mark.
pub(crate) fn text_of_document(bytes: &[u8], content_type: Option<&str>) -> String {
    text_in(bytes, content_type, declared_encoding(bytes))
}

/// Returns the text of a web page that came with this `Content-Type`, without a byte order mark.
pub(crate) fn text_of_page(bytes: &[u8], content_type: Option<&str>) -> String {
    text_in(bytes, content_type, encoding_of_meta(bytes))
}

fn text_in(
    bytes: &[u8],
    content_type: Option<&str>,
    declared: Option<&'static Encoding>,
) -> String {
    if let Some(text) = utf_32(bytes) {
        return text;
    }
    let from_http = content_type.and_then(charset_of_content_type);
    let from_bytes = encoding_of_first_bytes(bytes);
    let proposals = [from_http, from_bytes, declared, Some(UTF_8)];
    for encoding in proposals.into_iter().flatten() {
        if let Some(text) = decode_exactly(bytes, encoding) {
            return text;
        }
    }
    // A feed that is UTF-8 but for a few damaged characters stays readable.
    let (lossy, _) = UTF_8.decode_without_bom_handling(bytes);
    let damaged = lossy.matches('\u{FFFD}').count();
    let is_mostly_utf8 = lossy.chars().filter(|c| !c.is_ascii()).count() > 2 * damaged;
    if is_mostly_utf8 {
        return without_mark(lossy.into_owned());
    }
    without_mark(WINDOWS_1252.decode_without_bom_handling(bytes).0.into_owned())
}

/// Returns the encoding that the `charset` of a `Content-Type` names, if this program knows it.
fn charset_of_content_type(content_type: &str) -> Option<&'static Encoding> {
    content_type.split(';').skip(1).find_map(|parameter| {
        let (key, value) = parameter.split_once('=')?;
        if !key.trim().eq_ignore_ascii_case("charset") {
            return None;
        }
        encoding_named(value.trim().trim_matches(['"', '\'']).as_bytes())
    })
}

/// Returns the encoding with this name.
fn encoding_named(name: &[u8]) -> Option<&'static Encoding> {
    let hyphens = name.iter().map(|byte| if *byte == b'_' { b'-' } else { *byte });
    let known =
        Encoding::for_label(name).or_else(|| Encoding::for_label(&hyphens.collect::<Vec<_>>()));
    known.or_else(|| match name.to_ascii_lowercase().as_slice() {
        // Other names of UTF-16 that XML documents have.
        b"u16" | b"utf16" | b"utf_16" | b"csucs2" => Some(UTF_16LE),
        b"u8" | b"utf" | b"utf_8" => Some(UTF_8),
        _ => None,
    })
}

/// Returns the encoding that a byte order mark shows, or the first characters of a declaration
/// where they have two bytes each.
fn encoding_of_first_bytes(bytes: &[u8]) -> Option<&'static Encoding> {
    match bytes {
        [0xEF, 0xBB, 0xBF, ..] => Some(UTF_8),
        [0xFE, 0xFF, ..] | [0, b'<', 0, ..] => Some(UTF_16BE),
        [0xFF, 0xFE, ..] | [b'<', 0, _, 0, ..] => Some(UTF_16LE),
        _ => None,
    }
}

/// Returns the encoding that an XML declaration names in ASCII.
fn declared_encoding(bytes: &[u8]) -> Option<&'static Encoding> {
    let start = &bytes[..bytes.len().min(DECLARATION_BYTES)];
    let start = &start[start.windows(5).position(|window| window == b"<?xml")?..];
    let start = &start[..start.windows(2).position(|window| window == b"?>")?];
    let name = &start[start.windows(8).position(|window| window == b"encoding")? + 8..];
    let name = name.trim_ascii_start().strip_prefix(b"=")?.trim_ascii_start();
    let (quote, name) = name.split_first()?;
    let name = &name[..name.iter().position(|byte| byte == quote)?];
    match encoding_named(name) {
        // ASCII characters name it, so it cannot be true.
        Some(wide) if wide == UTF_16LE || wide == UTF_16BE => None,
        found => found,
    }
}

/// Returns the encoding that a `<meta>` of a web page names.
fn encoding_of_meta(bytes: &[u8]) -> Option<&'static Encoding> {
    let start = bytes[..bytes.len().min(DECLARATION_BYTES)].to_ascii_lowercase();
    let meta = start.windows(5).position(|window| window == b"<meta")?;
    let start = &start[meta..];
    let name = &start[start.windows(8).position(|window| window == b"charset=")? + 8..];
    let name = name.trim_ascii_start();
    let name = name.strip_prefix(b"\"").or_else(|| name.strip_prefix(b"'")).unwrap_or(name);
    let end =
        name.iter().position(|byte| matches!(byte, b'"' | b'\'' | b'>' | b';' | b'/' | b' '))?;
    encoding_named(&name[..end]).filter(|found| *found != UTF_16LE && *found != UTF_16BE)
}

/// Returns the text if the bytes are valid in this encoding.
fn decode_exactly(bytes: &[u8], encoding: &'static Encoding) -> Option<String> {
    // A file cut in the middle of a UTF-16 character is still a UTF-16 file.
    let is_wide = encoding == UTF_16LE || encoding == UTF_16BE;
    let bytes = if is_wide { &bytes[..bytes.len() & !1] } else { bytes };
    let text = encoding.decode_without_bom_handling_and_without_replacement(bytes)?;
    // Almost any bytes are valid UTF-16. A document has a bracket near its beginning.
    if is_wide && !text.chars().take(DECLARATION_BYTES).any(|c| matches!(c, '<' | '{')) {
        return None;
    }
    Some(without_mark(text.into_owned()))
}

/// Returns the text of a document in UTF-32, which the encodings of the web leave out.
fn utf_32(bytes: &[u8]) -> Option<String> {
    let from_bytes: fn([u8; 4]) -> u32 = match bytes {
        [0, 0, 0xFE, 0xFF, ..] | [0, 0, 0, b'<', ..] => u32::from_be_bytes,
        [0xFF, 0xFE, 0, 0, ..] | [b'<', 0, 0, 0, ..] => u32::from_le_bytes,
        _ => return None,
    };
    let (characters, _) = bytes.as_chunks::<4>();
    let text = characters
        .iter()
        .map(|four| char::from_u32(from_bytes(*four)).unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect();
    Some(without_mark(text))
}

fn without_mark(text: String) -> String {
    match text.strip_prefix('\u{FEFF}') {
        Some(rest) => rest.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::{text_of_document, text_of_page};

    #[test]
    fn the_charset_of_http_comes_before_the_declaration() {
        let latin = b"<?xml version='1.0' encoding='koi8-r'?><a>\xE9</a>";
        let text = text_of_document(latin, Some("text/xml; charset=\"iso-8859-1\""));
        assert!(text.contains("<a>é</a>"), "{text}");
        let text = text_of_document(latin, Some("text/xml"));
        assert!(text.contains("<a>И</a>"), "{text}");
    }

    #[test]
    fn an_encoding_that_the_bytes_contradict_is_passed_over() {
        let utf8 = "<?xml version='1.0' encoding='utf-8'?><a>é€</a>".as_bytes();
        assert!(text_of_document(utf8, Some("text/xml; charset=us-latin-99")).contains("é€"));
        assert!(text_of_document(utf8, Some("text/xml; charset=utf-16")).contains("é€"));
        let wrong = b"<?xml version='1.0' encoding='utf-8'?><a>caf\xE9</a>";
        assert!(text_of_document(wrong, None).contains("café"));
        let utf16_in_ascii = b"<?xml version='1.0' encoding='utf-16'?><a>x</a>";
        assert!(text_of_document(utf16_in_ascii, None).contains("<a>x</a>"));
    }

    #[test]
    fn byte_order_marks_and_wide_characters_are_seen() {
        let text = "<?xml version='1.0'?><a>é</a>";
        let wide = |to: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(to).collect::<Vec<u8>>();
        let wider =
            |to: fn(u32) -> [u8; 4]| text.chars().flat_map(|c| to(c.into())).collect::<Vec<u8>>();
        let marked = |mark: &[u8], bytes: &[u8]| [mark, bytes].concat();
        for bytes in [
            marked(&[0xEF, 0xBB, 0xBF], text.as_bytes()),
            marked(&[0xFE, 0xFF], &wide(u16::to_be_bytes)),
            marked(&[0xFF, 0xFE], &wide(u16::to_le_bytes)),
            wide(u16::to_be_bytes),
            wide(u16::to_le_bytes),
            marked(&[0, 0, 0xFE, 0xFF], &wider(u32::to_be_bytes)),
            wider(u32::to_le_bytes),
        ] {
            assert_eq!(text_of_document(&bytes, None), text, "{:x?}", &bytes[..6]);
        }
    }

    #[test]
    fn a_page_names_its_encoding_in_its_head() {
        for meta in
            ["<meta charset=koi8-r>", "<meta http-equiv=x content='text/html; charset=koi8-r'>"]
        {
            let bytes = [meta.as_bytes(), b"\xE9"].concat();
            assert_eq!(text_of_page(&bytes, Some("text/html")), format!("{meta}И"));
            assert_eq!(text_of_page(&bytes, Some("text/html; charset=latin1")), format!("{meta}é"));
        }
    }

    #[test]
    fn a_few_damaged_characters_do_not_turn_a_feed_into_latin() {
        let mut bytes = "ééééééé".as_bytes().to_vec();
        bytes.push(0xFF);
        assert_eq!(text_of_document(&bytes, Some("text/xml; charset=utf-8")), "ééééééé\u{FFFD}");
    }
}
