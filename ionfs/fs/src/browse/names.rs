//! Ids and values as names of files, and back.

use std::borrow::Cow;

use super::time::day_of_name;

/// The length of a UUID's text, and where it has the number of its version.
const UUID_LENGTH: usize = 36;
const UUID_VERSION: usize = 14;

/// The most bytes of an id in a name that has other parts. A name has 255 at most, and an escaped
/// character takes three.
const ID_PART_MAX: usize = 60;

/// The bytes of the part of a name that is the beginning of an id.
pub(super) const SHORT_PART: usize = 8;

/// Stands for the middle of a long id.
pub(super) const CUT: char = '~';

/// Returns a text as a name.
pub(super) fn name_of(text: &str) -> Cow<'_, str> {
    match text {
        "." => "%2E".into(),
        ".." => "%2E%2E".into(),
        text if !text.contains(['%', '/', '\0']) => text.into(),
        text => {
            let mut name = String::with_capacity(text.len() + 8);
            for char in text.chars() {
                match char {
                    '%' => name.push_str("%25"),
                    '/' => name.push_str("%2F"),
                    '\0' => name.push_str("%00"),
                    char => name.push(char),
                }
            }
            name.into()
        }
    }
}

/// Returns the id of a correlation as a name, which is not the name of a day.
pub(super) fn correlation_name(id: &str) -> Cow<'_, str> {
    match (day_of_name(id), id.chars().next()) {
        (Some(_), Some(first)) => format!("%{:02X}{}", u32::from(first), &id[1..]).into(),
        _ => name_of(id),
    }
}

/// Returns the text of a name.
pub(super) fn text_of(name: &str) -> Cow<'_, str> {
    let escape = |at: usize| {
        let digits = name.get(at + 1..at + 3)?;
        u8::from_str_radix(digits, 16).ok().filter(u8::is_ascii)
    };
    let mut parts = name.split('%');
    let mut text = String::from(parts.next().unwrap_or_default());
    let mut at = text.len();
    for part in parts {
        match escape(at) {
            Some(byte) => {
                text.push(char::from(byte));
                text.push_str(&part[2..]);
            }
            None => text.extend(["%", part]),
        }
        at += 1 + part.len();
    }
    text.into()
}

/// Returns the part of a name that tells one id from others: the first eight characters of a UUID
/// that is random or a hash; the whole of another id, which may begin as many others do. Of a very
/// long id the middle is left out.
pub(super) fn id_part(id: &str) -> Cow<'_, str> {
    let is_random_uuid = id.len() == UUID_LENGTH
        && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
        && id.bytes().filter(|byte| *byte == b'-').count() == 4
        && matches!(id.as_bytes()[UUID_VERSION], b'4' | b'5');
    if is_random_uuid {
        return Cow::Borrowed(&id[..SHORT_PART]);
    }
    if id.len() <= ID_PART_MAX {
        return name_of(id);
    }
    let half = ID_PART_MAX / 2;
    let begin = (0..=half).rev().find(|at| id.is_char_boundary(*at)).unwrap_or_default();
    let end = (id.len() - half..id.len()).find(|at| id.is_char_boundary(*at));
    let end = &id[end.unwrap_or(id.len())..];
    format!("{}{CUT}{}", name_of(&id[..begin]), name_of(end)).into()
}

/// Returns what stands behind each dash of a name: one of these is the part of an id with which the
/// name ends. Types, modules and ids may have dashes.
pub(super) fn name_suffixes(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('-').map(|(at, dash)| &name[at + dash.len()..])
}

/// Returns a text as a word of a shell's command line.
pub(super) fn shell_word(text: &str) -> Cow<'_, str> {
    let is_plain = |char: char| char.is_ascii_alphanumeric() || "-_.,:/@=+%".contains(char);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.into(),
        false => format!("'{}'", text.replace('\'', "'\\''")).into(),
    }
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
        assert_eq!(text_of("100%-%zz%2"), "100%-%zz%2");
        let day = correlation_name("2026-05-01");
        assert_eq!((day_of_name(&day), text_of(&day)), (None, "2026-05-01".into()));
        assert_eq!(correlation_name("2026-05-01-a"), "2026-05-01-a");
    }

    #[test]
    fn a_shell_reads_a_word_as_the_text_that_it_was_made_of() {
        for text in ["crop", "score>=0.5", "it's", "a b", "", "$HOME", "x\ny"] {
            let script = format!("printf %s {}", shell_word(text));
            #[expect(clippy::disallowed_methods, reason = "a test starts a shell")]
            let ran = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(ran.stdout).unwrap(), text, "{script}");
        }
    }

    #[test]
    fn the_part_of_an_id_tells_it_from_others_that_begin_so() {
        assert_eq!(id_part("3f2b91c0-1111-4222-8333-444455556666"), "3f2b91c0");
        assert_eq!(id_part("video-frame-1"), "video-frame-1");
        assert_eq!(id_part("x/1"), "x%2F1");
        let v7 = "019a2b3c-4d5e-7222-8333-444455556666";
        assert_eq!(id_part(v7), v7, "others of the same minute begin so");
        let long = |n: usize| format!("s3://bucket/{}/clip-{n}", "\u{e9}".repeat(60));
        assert_ne!(id_part(&long(1)), id_part(&long(2)));
        assert!(id_part(&long(1)).len() < 80 && id_part(&long(1)).contains(CUT));
    }
}
