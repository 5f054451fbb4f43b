//! The name of the index of an item, made from a pattern and the item's own date.

use std::fmt::Write as _;
use std::str::FromStr;

use jiff::Timestamp;
use thiserror::Error;

/// What may stand behind a `%`: year, month, day, hour, day of the year, ISO year and week.
const FIELDS: &str = "YmdHjGV";

/// What stands in the name of the index of items without a date, in place of the date.
const UNDATED: &str = "undated";

/// The longest name that a server accepts, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// A pattern such as `news-%Y.%m`: each item's index follows from the item's own date, so that an
/// item that is sent again meets itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexPattern(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(char),
}

/// Why a text is no pattern of index names.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum InvalidPattern {
    /// A `%` is followed by something else.
    #[error(
        "\"%{0}\" is not known; use %Y, %m, %d, %H, %j (day of the year), %G and %V (ISO week)"
    )]
    UnknownField(String),
    /// A character may not stand in the name of an index.
    #[error(
        "{0:?} may not stand in the name of an index; use small letters, digits, \"-\", \"_\" and \
         \".\""
    )]
    Character(char),
    /// The first character may not stand at the beginning of the name of an index.
    #[error("the name of an index does not begin with {0:?}; put a letter before it")]
    Beginning(char),
    /// The pattern is empty or a folder's name.
    #[error("{0:?} is not the name of an index")]
    NoName(String),
    /// The names would be too long.
    #[error("the names of an index have at most {NAME_BYTES_MAX} bytes")]
    TooLong,
}

impl FromStr for IndexPattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let mut parts = vec![];
        let mut literal = String::new();
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            match character {
                '%' => match characters.next() {
                    Some(field) if FIELDS.contains(field) => {
                        if !literal.is_empty() {
                            parts.push(Part::Text(std::mem::take(&mut literal)));
                        }
                        parts.push(Part::Field(field));
                    }
                    other => return Err(InvalidPattern::UnknownField(String::from_iter(other))),
                },
                _ if character.is_uppercase()
                    || character.is_whitespace()
                    || character.is_control()
                    || "\\/*?\"<>|,#:".contains(character) =>
                {
                    return Err(InvalidPattern::Character(character));
                }
                _ => literal.push(character),
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        match text.chars().next() {
            Some(first) if "-_+".contains(first) => return Err(InvalidPattern::Beginning(first)),
            None => return Err(InvalidPattern::NoName(String::new())),
            _ if text == "." || text == ".." => {
                return Err(InvalidPattern::NoName(text.to_owned()));
            }
            Some(_) => {}
        }
        let pattern = Self(parts);
        let longest = pattern.name(None).len().max(pattern.name(Some(Timestamp::MAX)).len());
        if longest > NAME_BYTES_MAX {
            return Err(InvalidPattern::TooLong);
        }
        Ok(pattern)
    }
}

impl IndexPattern {
    /// Returns the name of the index of an item with this date, in UTC. An item without a date has
    /// an index of its own: `news-undated` if the pattern is `news-%Y.%m`.
    #[must_use]
    pub fn name(&self, date: Option<Timestamp>) -> String {
        let mut name = String::new();
        match date {
            Some(date) => {
                for part in &self.0 {
                    match part {
                        Part::Text(text) => name.push_str(text),
                        Part::Field(field) => {
                            write!(name, "{}", date.strftime(&format!("%{field}")))
                                .expect("the fields of a pattern were checked");
                        }
                    }
                }
            }
            None => {
                // All between the first and the last field belongs to the date.
                let is_field = |part: &Part| matches!(part, Part::Field(_));
                let first = self.0.iter().position(is_field);
                let last = self.0.iter().rposition(is_field);
                for (n, part) in self.0.iter().enumerate() {
                    if Some(n) == first {
                        name.push_str(UNDATED);
                    }
                    let is_date =
                        first.is_some_and(|first| first <= n) && last.is_some_and(|last| n <= last);
                    if let (Part::Text(text), false) = (part, is_date) {
                        name.push_str(text);
                    }
                }
            }
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(pattern: &str, date: Option<&str>) -> String {
        let pattern: IndexPattern = pattern.parse().unwrap();
        pattern.name(date.map(|date| date.parse().unwrap()))
    }

    #[test]
    fn an_item_s_own_date_names_its_index() {
        let date = Some("2026-01-02T23:30:00-05:00");
        assert_eq!(named("news-%Y.%m", date), "news-2026.01");
        assert_eq!(named("news-%Y.%m.%d-x", date), "news-2026.01.03-x");
        assert_eq!(named("%Y%j", date), "2026003");
        assert_eq!(named("w%G.%V", Some("2027-01-01T00:00:00Z")), "w2026.53");
        assert_eq!(named("all", date), "all");
    }

    #[test]
    fn items_without_a_date_have_an_index_of_their_own() {
        assert_eq!(named("news-%Y.%m", None), "news-undated");
        assert_eq!(named("%Y-news", None), "undated-news");
        assert_eq!(named("a-%Y-b-%m-c", None), "a-undated-c");
        assert_eq!(named("all", None), "all");
    }

    #[test]
    fn a_wrong_pattern_is_refused_with_words() {
        let refused = |text: &str| text.parse::<IndexPattern>().unwrap_err();
        assert_eq!(refused("news-%y"), InvalidPattern::UnknownField("y".into()));
        assert_eq!(refused("news-%"), InvalidPattern::UnknownField(String::new()));
        assert_eq!(refused("News"), InvalidPattern::Character('N'));
        for wrong in ["a b", "a,b", "a*", "a/b", "a\"b", "a:b", "a\nb"] {
            assert!(matches!(refused(wrong), InvalidPattern::Character(_)), "{wrong:?}");
        }
        assert_eq!(refused("_all"), InvalidPattern::Beginning('_'));
        assert_eq!(refused(".."), InvalidPattern::NoName("..".into()));
        assert_eq!(refused(""), InvalidPattern::NoName(String::new()));
        assert_eq!(refused(&"a".repeat(256)), InvalidPattern::TooLong);
        assert_eq!(refused(&format!("{}%Y", "a".repeat(252))), InvalidPattern::TooLong);
        assert!("a".repeat(255).parse::<IndexPattern>().is_ok());
    }
}
