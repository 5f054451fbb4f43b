//! Terms: conditions on the values and the file names of an event or an insight.
//!
//! A term is a short text. A module's `where`, `ion find`, the gateway and paths of a mount use the
//! same terms. A document must meet all terms of a list.
//!
//! | term | a document meets it if |
//! | --- | --- |
//! | `KEY=V` | a value of the key is V; `V\|W` accepts several values |
//! | `KEY!=V` | no value of the key is V, or the key is missing |
//! | `KEY>=N`, `>`, `<=`, `<` | a value of the key is a number in that range |
//! | `KEY` | the key is there |
//! | `!KEY` | the key is missing |
//!
//! In V, `*` stands for any characters and `?` for one. `\` takes the special meaning from the
//! character after it. The key `files` stands for the names of a document's files. A key may have
//! several values: one that meets the term is enough, and `!=` needs that none is equal.
//!
//! `KEY=V` and `KEY!=V` are each other's opposite for every document, so two modules with these
//! terms are a branch. There is no OR across keys and there are no functions: each term can be
//! answered by an index, and each ends.

mod index;

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use regex::Regex;
use serde::{Deserialize, Serialize};

pub use self::index::{IndexRange, index_texts, module_text};
use crate::event::KeyValue;
use crate::text::{QUOTE_MAX, cut, quote};

/// The most bytes of a term. A longer term is hardly a condition that a person wrote, and a
/// pattern's matcher takes some hundred times as much memory.
pub const TERM_BYTES_MAX: usize = 4096;

/// The most terms of one list. Each term of a module is judged for each event of its types.
pub const TERMS_MAX: usize = 32;

/// The key that stands for the names of a document's files.
pub const FILES_KEY: &str = "files";

/// The reasons why a text is not a term.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TermError {
    /// The key is empty.
    #[error("the term {0} has no key; a term is, for example, kind=car or score>=0.8")]
    NoKey(String),
    /// A range needs a number.
    #[error(
        "the term {term} compares with {value}, which is no number; a term is, for example, \
         score>=0.8"
    )]
    NoNumber {
        /// The term.
        term: String,
        /// What stands for the number.
        value: String,
    },
    /// `!KEY` and a comparison in one term.
    #[error(
        "the term {0} has both a '!' before its key and a comparison; write KEY!=VALUE, or !KEY for \
         a missing key"
    )]
    TwoTests(String),
    /// The text ends in a backslash.
    #[error("the term {0} ends in a backslash, which needs a character after it")]
    EndsInEscape(String),
    /// Files have names, and no numbers.
    #[error(
        "the term {0} compares names of files with a number; a term is, for example, files=*.png"
    )]
    FilesAreNames(String),
    /// `@TYPE` outside of a search.
    #[error(
        "the term {0} begins with '@', which only `ion find` takes; a key that begins with '@' is \
         written \\@"
    )]
    Above(String),
    /// The text is too long.
    #[error("the term {term} has {bytes} bytes; a term has at most {TERM_BYTES_MAX}")]
    TooLong {
        /// The beginning of the term.
        term: String,
        /// Its bytes.
        bytes: usize,
    },
    /// The list is too long.
    #[error("there are {0} terms; a list has at most {TERMS_MAX}")]
    TooMany(usize),
}

/// What a term is judged by: the values of a document and the names of its files.
#[derive(Clone, Copy, Debug, Default)]
pub struct TermSubject<'a> {
    /// The values.
    pub data: &'a [KeyValue],
    /// The names of the files.
    pub files: &'a [&'a str],
}

impl<'a> TermSubject<'a> {
    fn values<'s>(&'s self, key: &'s str) -> impl Iterator<Item = &'a str> + 's {
        let files = if key == FILES_KEY { self.files } else { &[] };
        let values = self.data.iter().filter(move |pair| pair.key == key);
        files.iter().copied().chain(values.map(|pair| pair.value.as_str()))
    }
}

/// A condition on the values and the file names of a document.
#[derive(Clone, Debug)]
pub struct Term {
    text: String,
    key: String,
    test: TermTest,
}

/// What a term tests.
#[derive(Clone, Debug)]
enum TermTest {
    OneOf(Vec<ValuePattern>),
    NoneOf(Vec<ValuePattern>),
    InRange(NumberRange, TermNumber),
    Present,
    Missing,
}

/// The side of a number on which a value must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NumberRange {
    AtLeast,
    Above,
    AtMost,
    Below,
}

impl NumberRange {
    fn has(self, ordering: Ordering) -> bool {
        match self {
            Self::AtLeast => ordering.is_ge(),
            Self::Above => ordering.is_gt(),
            Self::AtMost => ordering.is_le(),
            Self::Below => ordering.is_lt(),
        }
    }
}

/// A value that a term accepts.
#[derive(Clone, Debug)]
enum ValuePattern {
    Text(String),
    Wild(Regex),
}

impl ValuePattern {
    fn matches(&self, value: &str) -> bool {
        match self {
            Self::Text(text) => text == value,
            Self::Wild(pattern) => pattern.is_match(value),
        }
    }
}

/// A number as a value or a term gives it. Whole numbers are compared exactly, others as doubles.
#[derive(Clone, Copy, Debug)]
struct TermNumber {
    whole: Option<i128>,
    double: f64,
}

impl TermNumber {
    /// Reads a decimal number. Words such as `inf` and `nan` are no numbers.
    fn parse(text: &str) -> Option<Self> {
        let is_numeric = |byte: &u8| byte.is_ascii_digit() || b"+-.eE".contains(byte);
        if !text.as_bytes().iter().all(is_numeric) {
            return None;
        }
        let double: f64 = text.parse().ok()?;
        double.is_finite().then(|| Self { whole: text.parse().ok(), double })
    }

    fn compare(self, other: Self) -> Ordering {
        match (self.whole, other.whole) {
            (Some(one), Some(other)) => one.cmp(&other),
            _ => self.double.partial_cmp(&other.double).expect("both are finite"),
        }
    }
}

impl Term {
    /// Returns whether the document meets the term.
    pub fn holds(&self, subject: &TermSubject<'_>) -> bool {
        let mut values = subject.values(&self.key);
        match &self.test {
            TermTest::OneOf(patterns) => values.any(|value| accepts(patterns, value)),
            TermTest::NoneOf(patterns) => !values.any(|value| accepts(patterns, value)),
            TermTest::InRange(range, bound) => values.any(|value| {
                TermNumber::parse(value).is_some_and(|value| range.has(value.compare(*bound)))
            }),
            TermTest::Present => values.next().is_some(),
            TermTest::Missing => values.next().is_none(),
        }
    }

    /// Describes what the document has in place of what the term needs, as `score>=0.8
    /// (score=0.41)`.
    pub fn compared_with(&self, subject: &TermSubject<'_>) -> String {
        let mut values = subject.values(&self.key);
        let key = cut(&self.key, QUOTE_MAX);
        let found = match (values.next(), values.count()) {
            (None, _) => format!("no {key}"),
            (Some(value), 0) => format!("{key}={}", cut(value, QUOTE_MAX)),
            (Some(value), more) => format!("{key}={} and {more} more", cut(value, QUOTE_MAX)),
        };
        format!("{} ({found})", cut(&self.text, QUOTE_MAX))
    }

    /// Returns the key that the term is about.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns whether the term is about the names of files.
    pub fn is_about_files(&self) -> bool {
        self.key == FILES_KEY
    }
}

fn accepts(patterns: &[ValuePattern], value: &str) -> bool {
    patterns.iter().any(|pattern| pattern.matches(value))
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for Term {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Term {}

impl Hash for Term {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl FromStr for Term {
    type Err = TermError;

    fn from_str(text: &str) -> Result<Self, TermError> {
        if text.len() > TERM_BYTES_MAX {
            return Err(TermError::TooLong { term: quote(text).to_string(), bytes: text.len() });
        }
        let letters = letters(text)?;
        let begins_with = |special| letters.first() == Some(&TermLetter::Special(special));
        if begins_with('@') {
            return Err(TermError::Above(quote(text).to_string()));
        }
        let is_negated = begins_with('!') && letters.get(1) != Some(&TermLetter::Special('='));
        let letters = if is_negated { &letters[1..] } else { &letters[..] };
        let (key, test) = match comparison(letters) {
            Some(_) if is_negated => return Err(TermError::TwoTests(quote(text).to_string())),
            Some((at, operator, length)) => {
                let (key, value) = (plain(&letters[..at]), &letters[at + length..]);
                (key, test_of(text, operator, value)?)
            }
            None if is_negated => (plain(letters), TermTest::Missing),
            None => (plain(letters), TermTest::Present),
        };
        if key.is_empty() {
            return Err(TermError::NoKey(quote(text).to_string()));
        }
        if key == FILES_KEY && matches!(test, TermTest::InRange(..)) {
            return Err(TermError::FilesAreNames(quote(text).to_string()));
        }
        Ok(Self { text: text.to_owned(), key, test })
    }
}

/// A character of a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TermLetter {
    /// A character that may have a special meaning where it stands.
    Special(char),
    /// A character that stands for itself.
    Plain(char),
}

impl TermLetter {
    fn char(self) -> char {
        match self {
            Self::Special(char) | Self::Plain(char) => char,
        }
    }
}

/// Reads the escapes of a term.
fn letters(text: &str) -> Result<Vec<TermLetter>, TermError> {
    let mut chars = text.chars();
    let mut letters = Vec::with_capacity(text.len());
    while let Some(char) = chars.next() {
        letters.push(match char {
            '\\' => match chars.next() {
                Some(escaped) => TermLetter::Plain(escaped),
                None => return Err(TermError::EndsInEscape(quote(text).to_string())),
            },
            '=' | '!' | '<' | '>' | '|' | '*' | '?' | '@' => TermLetter::Special(char),
            _ => TermLetter::Plain(char),
        });
    }
    Ok(letters)
}

fn plain(letters: &[TermLetter]) -> String {
    letters.iter().map(|letter| letter.char()).collect()
}

/// Returns the text of the term that holds if a key has this value and no other.
pub fn equality_term(key: &str, value: &str) -> String {
    let mut text = String::with_capacity(key.len() + value.len() + 1);
    for (part, after) in [(key, Some('=')), (value, None)] {
        for char in part.chars() {
            if matches!(char, '\\' | '=' | '!' | '<' | '>' | '|' | '*' | '?' | '@') {
                text.push('\\');
            }
            text.push(char);
        }
        text.extend(after);
    }
    text
}

/// The operator between a key and a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TermOperator {
    Equals,
    Differs,
    Compares(NumberRange),
}

/// Finds the first operator: its position, what it is, and its length.
fn comparison(letters: &[TermLetter]) -> Option<(usize, TermOperator, usize)> {
    let special = |at: usize| match letters.get(at) {
        Some(TermLetter::Special(char)) => Some(*char),
        _ => None,
    };
    (0..letters.len()).find_map(|at| {
        let (operator, length) = match (special(at)?, special(at + 1)) {
            ('=', _) => (TermOperator::Equals, 1),
            ('!', Some('=')) => (TermOperator::Differs, 2),
            ('>', Some('=')) => (TermOperator::Compares(NumberRange::AtLeast), 2),
            ('>', _) => (TermOperator::Compares(NumberRange::Above), 1),
            ('<', Some('=')) => (TermOperator::Compares(NumberRange::AtMost), 2),
            ('<', _) => (TermOperator::Compares(NumberRange::Below), 1),
            _ => return None,
        };
        Some((at, operator, length))
    })
}

fn test_of(
    text: &str,
    operator: TermOperator,
    value: &[TermLetter],
) -> Result<TermTest, TermError> {
    let patterns = || {
        let is_bar = |letter: &TermLetter| *letter == TermLetter::Special('|');
        value.split(is_bar).map(value_pattern).collect()
    };
    Ok(match operator {
        TermOperator::Equals => TermTest::OneOf(patterns()),
        TermOperator::Differs => TermTest::NoneOf(patterns()),
        TermOperator::Compares(range) => {
            let value = plain(value);
            let bound = TermNumber::parse(&value);
            let none = || TermError::NoNumber {
                term: quote(text).to_string(),
                value: quote(&value).to_string(),
            };
            TermTest::InRange(range, bound.ok_or_else(none)?)
        }
    })
}

fn value_pattern(letters: &[TermLetter]) -> ValuePattern {
    let is_wild = |letter: &TermLetter| matches!(letter, TermLetter::Special('*' | '?'));
    if !letters.iter().any(is_wild) {
        return ValuePattern::Text(plain(letters));
    }
    let mut pattern = String::from("^(?s:");
    for letter in letters {
        match letter {
            TermLetter::Special('*') => pattern.push_str(".*"),
            TermLetter::Special('?') => pattern.push('.'),
            letter => {
                pattern.push_str(&regex::escape(letter.char().encode_utf8(&mut [0; 4])));
            }
        }
    }
    pattern.push_str(")$");
    // A text of at most 4 KiB is far below the limit of a pattern's size.
    ValuePattern::Wild(Regex::new(&pattern).expect("an escaped text with wildcards is a pattern"))
}

/// A list of terms. A document must meet all of them; it meets an empty list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Terms(Vec<Term>);

impl Terms {
    /// Reads the terms of a list.
    ///
    /// # Errors
    /// [`TermError`] of the first text that is not a term.
    pub fn parse<S: AsRef<str>>(texts: &[S]) -> Result<Self, TermError> {
        if texts.len() > TERMS_MAX {
            return Err(TermError::TooMany(texts.len()));
        }
        texts.iter().map(|text| text.as_ref().parse()).collect::<Result<_, _>>().map(Self)
    }

    /// Returns whether there are no terms.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the terms.
    pub fn iter(&self) -> impl Iterator<Item = &Term> {
        self.0.iter()
    }

    /// Returns whether the document meets all terms.
    pub fn hold(&self, subject: &TermSubject<'_>) -> bool {
        self.0.iter().all(|term| term.holds(subject))
    }

    /// Returns the first term that the document does not meet.
    pub fn first_unmet(&self, subject: &TermSubject<'_>) -> Option<&Term> {
        self.0.iter().find(|term| !term.holds(subject))
    }

    /// Returns whether a term is about the names of files, which are not in the document of an
    /// event with very many files.
    pub fn are_about_files(&self) -> bool {
        self.0.iter().any(Term::is_about_files)
    }
}

/// Shows the terms, separated by commas.
impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, term) in self.0.iter().enumerate() {
            write!(f, "{}{term}", if n == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl TryFrom<Vec<String>> for Terms {
    type Error = TermError;

    fn try_from(texts: Vec<String>) -> Result<Self, TermError> {
        Self::parse(&texts)
    }
}

impl From<Terms> for Vec<String> {
    fn from(terms: Terms) -> Self {
        terms.0.into_iter().map(|term| term.text).collect()
    }
}

#[cfg(test)]
mod tests;
