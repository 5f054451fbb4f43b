//! Ids and values as names of files, and back.

use std::borrow::Cow;

/// What a name may not contain, and the sign of an escape, each with its escape. The sign comes
/// first: the signs of the other escapes stay.
const ESCAPES: [(&str, &str); 3] = [("%", "%25"), ("/", "%2F"), ("\0", "%00")];

/// The length of a UUID's text.
const UUID_LENGTH: usize = 36;

/// The most bytes of an id in a name that has other parts. A name has 255 at most, and an escaped
/// character takes three.
const ID_PART_MAX: usize = 60;

/// Returns a text as a name.
pub(super) fn name_of(text: &str) -> Cow<'_, str> {
    match text {
        "." => "%2E".into(),
        ".." => "%2E%2E".into(),
        text if !text.contains(['%', '/', '\0']) => text.into(),
        text => {
            let escape = |name: String, (plain, escape): (&str, &str)| name.replace(plain, escape);
            ESCAPES.into_iter().fold(text.to_owned(), escape).into()
        }
    }
}

/// Returns the text of a name.
pub(super) fn text_of(name: &str) -> Cow<'_, str> {
    if !name.contains('%') {
        return name.into();
    }
    let plain = |text: String, (plain, escape): (&str, &str)| text.replace(escape, plain);
    ESCAPES.into_iter().rev().fold(name.replace("%2E", "."), plain).into()
}

/// Returns the part of a name that tells one id from others: the first eight characters of a UUID,
/// or the whole id, which somebody has chosen.
pub(super) fn id_part(id: &str) -> Cow<'_, str> {
    let is_uuid = id.len() == UUID_LENGTH
        && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
        && id.bytes().filter(|byte| *byte == b'-').count() == 4;
    if is_uuid {
        return Cow::Borrowed(&id[..8]);
    }
    let end = (0..=id.len().min(ID_PART_MAX)).rev().find(|at| id.is_char_boundary(*at));
    name_of(&id[..end.unwrap_or_default()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_the_text_that_it_was_made_of() {
        for text in ["clip 1", "a/b", "a%2Fb", "..", ".", "100%", "\u{e9}\0", "%"] {
            let name = name_of(text);
            assert!(!name.contains('/') && name != "." && name != "..", "{name}");
            assert_eq!(text_of(&name), text, "{name}");
        }
    }

    #[test]
    fn the_part_of_an_id_tells_it_from_others_that_begin_so() {
        assert_eq!(id_part("3f2b91c0-1111-4222-8333-444455556666"), "3f2b91c0");
        assert_eq!(id_part("video-frame-1"), "video-frame-1");
        assert_eq!(id_part("x/1"), "x%2F1");
        assert_eq!(id_part(&"\u{e9}".repeat(100)).chars().count(), 30);
    }
}
