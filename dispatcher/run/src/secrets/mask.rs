//! What replaces the values of secrets in the output of a job.
//!
//! # How it works
//! The output comes in pieces of any length. A value may begin in one piece and end in another, so
//! the end of a piece that could be the beginning of a value waits for the next piece. Everything
//! else passes at once. A job without secrets has no mask, and its output passes as it is.
//!
//! # What it never does
//! Find a value that the module has changed: encoded, split by something else, or in part.

use std::collections::HashMap;

/// The fewest bytes of a text that is replaced. Shorter ones occur by chance: their replacement would
/// make a log unreadable, and show the value by the places that are replaced.
const LENGTH_MIN: usize = 8;

/// Replaces the exact values of secrets by `***NAME***`. Its `Debug` form shows no value.
pub struct SecretMask {
    /// The texts to replace, by their first byte; of those with the same one, longer ones first.
    texts: HashMap<u8, Vec<MaskedText>>,
    /// Whether a byte is the first one of a text.
    begins: Box<[bool; 256]>,
    /// What may be the beginning of a value that goes on in the next piece.
    waiting: Vec<u8>,
}

struct MaskedText {
    text: Vec<u8>,
    shown: Vec<u8>,
}

impl std::fmt::Debug for SecretMask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let texts = self.texts.values().flatten();
        f.debug_set().entries(texts.map(|text| String::from_utf8_lossy(&text.shown))).finish()
    }
}

/// What is at one place of the output.
enum Found<'m> {
    /// No text begins here.
    Nothing,
    /// This text is here.
    Text(&'m MaskedText),
    /// A text may begin here, and go on in the next piece.
    Beginning,
}

/// Whether more output may follow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    MayFollow,
    Ended,
}

impl SecretMask {
    /// Returns a mask for these names and values; none if no value is long enough.
    pub fn new<'v>(secrets: impl IntoIterator<Item = (&'v str, &'v [u8])>) -> Option<Self> {
        let mut texts: HashMap<u8, Vec<MaskedText>> = HashMap::new();
        for (name, value) in secrets {
            let shown = format!("***{name}***").into_bytes();
            for text in texts_of(value) {
                let known = texts.entry(text[0]).or_default();
                if known.iter().all(|other| other.text != text) {
                    known.push(MaskedText { text: text.to_vec(), shown: shown.clone() });
                }
            }
        }
        let mut begins = Box::new([false; 256]);
        for (first, texts) in &mut texts {
            begins[usize::from(*first)] = true;
            texts.sort_by_key(|text| std::cmp::Reverse(text.text.len()));
        }
        (!texts.is_empty()).then(|| Self { texts, begins, waiting: Vec::new() })
    }

    /// Takes the next piece of the output. Returns what can be shown by now.
    pub fn add(&mut self, piece: &[u8]) -> Vec<u8> {
        self.waiting.extend_from_slice(piece);
        self.replace(Rest::MayFollow)
    }

    /// Returns what can be shown of the end of the output.
    pub fn finish(&mut self) -> Vec<u8> {
        self.replace(Rest::Ended)
    }

    /// Returns a whole text with its values replaced.
    pub fn apply(&self, text: &str) -> String {
        let mut shown = Vec::new();
        self.replace_in(text.as_bytes(), Rest::Ended, &mut shown);
        String::from_utf8_lossy(&shown).into_owned()
    }

    fn replace(&mut self, rest: Rest) -> Vec<u8> {
        let mut shown = Vec::with_capacity(self.waiting.len());
        let end = self.replace_in(&self.waiting, rest, &mut shown);
        self.waiting.drain(..end);
        shown
    }

    /// Appends to `shown` what can be shown of `bytes`. Returns how many bytes that stands for.
    fn replace_in(&self, bytes: &[u8], rest: Rest, shown: &mut Vec<u8>) -> usize {
        let (mut at, mut from) = (0, 0);
        while at < bytes.len() {
            match self.look(&bytes[at..], rest) {
                Found::Nothing => at += 1,
                Found::Text(found) => {
                    shown.extend_from_slice(&bytes[from..at]);
                    shown.extend_from_slice(&found.shown);
                    at += found.text.len();
                    from = at;
                }
                Found::Beginning => break,
            }
        }
        shown.extend_from_slice(&bytes[from..at]);
        at
    }

    fn look(&self, bytes: &[u8], rest: Rest) -> Found<'_> {
        if !self.begins[usize::from(bytes[0])] {
            return Found::Nothing;
        }
        for text in self.texts.get(&bytes[0]).into_iter().flatten() {
            if bytes.starts_with(&text.text) {
                return Found::Text(text);
            }
            if rest == Rest::MayFollow && text.text.starts_with(bytes) {
                return Found::Beginning;
            }
        }
        Found::Nothing
    }
}

/// Returns the texts that stand for a value: the value without the line ends that files have at their
/// end, and each of its lines, because a program may write them one by one.
fn texts_of(value: &[u8]) -> Vec<&[u8]> {
    let whole = value.trim_ascii();
    let lines = whole.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let mut texts: Vec<&[u8]> = [whole].into_iter().chain(lines).collect();
    texts.retain(|text| text.len() >= LENGTH_MIN);
    texts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "-----BEGIN KEY-----\nMIIEvAIBADANBg\nkqhkiG9w0BAQEF\n-----END KEY-----\n";

    fn mask() -> SecretMask {
        let secrets = [
            ("SHORT", "seven77\n"),
            ("TOKEN", "hunter2-and-more\n"),
            ("LONGER", "hunter2-and-more-of-it"),
            ("KEY", KEY),
        ];
        SecretMask::new(secrets.map(|(name, value)| (name, value.as_bytes()))).unwrap()
    }

    fn masked(pieces: &[&str]) -> String {
        let mut mask = mask();
        let mut shown: Vec<u8> =
            pieces.iter().flat_map(|piece| mask.add(piece.as_bytes())).collect();
        shown.extend(mask.finish());
        String::from_utf8(shown).unwrap()
    }

    #[test]
    fn values_become_their_names_however_they_are_cut() {
        for (pieces, expected) in [
            (&["x hunter2-and-more y"][..], "x ***TOKEN*** y"),
            (&["hunter2-and-more-of-it."], "***LONGER***."),
            (&["hunter2-and-more-of-i."], "***TOKEN***-of-i."),
            (&["hunter2-and", "-more", "\n"], "***TOKEN***\n"),
            (&["hunter2-and-more", "-of", "-it"], "***LONGER***"),
            (&["hunter2-hunter2-and-more"], "hunter2-***TOKEN***"),
            (&["hunter2-and-morehunter2-and-more"], "***TOKEN******TOKEN***"),
            (&["hunter2-and-mor"], "hunter2-and-mor"),
            (&["seven77"], "seven77"),
            (&[KEY], "***KEY***\n"),
            (&[&KEY[..30], &KEY[30..]], "***KEY***\n"),
            // Written line by line, with something before each.
            (&["a: MIIEvAIBADANBg\nb: kqhkiG9w0BAQEF\n"], "a: ***KEY***\nb: ***KEY***\n"),
            (&[""], ""),
        ] {
            assert_eq!(masked(pieces), expected, "{pieces:?}");
        }
        assert_eq!(mask().apply("got hunter2-and-more"), "got ***TOKEN***");
    }

    #[test]
    fn only_what_may_be_the_beginning_of_a_value_waits() {
        let mut mask = mask();
        assert_eq!(mask.add(b"ready"), b"ready");
        assert_eq!(mask.add(b" hunt"), b" ");
        assert_eq!(mask.add(b"s"), b"hunts");
        assert_eq!(mask.add(b"hunter2-and-more\n"), b"***TOKEN***\n");
        assert!(mask.finish().is_empty());
    }

    #[test]
    fn there_is_no_mask_without_a_value_of_eight_bytes() {
        assert!(SecretMask::new([]).is_none());
        assert!(SecretMask::new([("A", &b"seven77\n"[..]), ("B", &b""[..])]).is_none());
        let debug = format!("{:?}", mask());
        assert!(!debug.contains("hunter2"), "{debug}");
    }

    proptest! {
        /// However the output is cut into pieces, the result is that of the whole.
        #[test]
        fn the_cuts_of_the_output_make_no_difference(
            parts in prop::collection::vec(0_usize..7, 0..12),
            cuts in prop::collection::vec(0_usize..400, 0..9),
        ) {
            let words = ["hunter2-and-more", "hunter2-", "-of-it", "x", "\n", KEY, "MIIEvAIB"];
            let text: String = parts.iter().map(|part| words[*part]).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (text.len() + 1)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|two| &text[two[0]..two[1]]).collect();
            prop_assert_eq!(masked(&pieces), mask().apply(&text));
            prop_assert!(!masked(&pieces).contains("hunter2-and-more"));
        }
    }
}
