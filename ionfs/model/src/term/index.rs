//! The texts by which an index finds the insights that meet a term.
//!
//! An insight has one text for its module, and for each of its values one that has the value, and
//! one that has the value's number, if it is a number. Numbers are written so that their texts have
//! the order of the numbers. Long values are cut. So a range of these texts has every insight that
//! meets a term, and perhaps others: each that is found must be judged by [`super::Terms::hold`].

use std::collections::BTreeSet;

use super::{NumberRange, Term, TermNumber, TermTest, ValuePattern};
use crate::event::KeyValue;
use crate::text::prefix_end;

/// The character between the parts of a text. A key or a value may have it too: then two values
/// have the same text, and are told apart when they are judged.
const SEPARATOR: char = '\u{1f}';

/// The most bytes of a key or a value in a text. More make the index larger, fewer find more that
/// does not meet a term.
const PART_BYTES_MAX: usize = 128;

/// A range of index texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IndexRange {
    /// This text.
    Is(String),
    /// The texts from the first one on, and before the second one.
    Between(String, String),
}

impl IndexRange {
    /// Makes the range of texts that begin with `prefix`.
    pub fn prefix(prefix: String) -> Self {
        let end = prefix_end(&prefix).unwrap_or_else(|| char::MAX.to_string());
        Self::Between(prefix, end)
    }
}

/// Returns the index texts of an insight of `module` with these values.
pub fn index_texts(module: &str, data: &[KeyValue]) -> Vec<String> {
    let mut texts = BTreeSet::from([module_text(module)]);
    for KeyValue { key, value } in data {
        texts.insert(value_text(module, key, value));
        texts
            .extend(TermNumber::parse(value).map(|number| number_text(module, key, number.double)));
    }
    texts.into_iter().collect()
}

/// Returns the index text that all insights of a module have.
pub fn module_text(module: &str) -> String {
    format!("{module}{SEPARATOR}")
}

fn key_prefix(module: &str, kind: char, key: &str) -> String {
    format!("{module}{SEPARATOR}{kind}{}{SEPARATOR}", cut_part(key))
}

/// Cuts a part at a character, without a mark: two values with the same beginning have one text.
fn cut_part(part: &str) -> &str {
    let end = (0..=part.len().min(PART_BYTES_MAX)).rev().find(|at| part.is_char_boundary(*at));
    &part[..end.unwrap_or_default()]
}

fn value_text(module: &str, key: &str, value: &str) -> String {
    key_prefix(module, '=', key) + cut_part(value)
}

fn number_text(module: &str, key: &str, number: f64) -> String {
    key_prefix(module, '#', key) + &ordered_digits(number)
}

/// Returns sixteen digits whose order as texts is the order of the numbers.
fn ordered_digits(number: f64) -> String {
    // Adding zero makes a positive zero of a negative one.
    let bits = (number + 0.0).to_bits();
    let ordered = if bits >> 63 == 1 { !bits } else { bits | 1 << 63 };
    format!("{ordered:016x}")
}

impl Term {
    /// Returns ranges of index texts of which each insight of `module` that meets the term has at
    /// least one; none if no range has them all.
    pub fn index_ranges(&self, module: &str) -> Option<Vec<IndexRange>> {
        let values = || IndexRange::prefix(key_prefix(module, '=', &self.key));
        match &self.test {
            TermTest::OneOf(patterns) => {
                let text = |pattern: &ValuePattern| match pattern {
                    ValuePattern::Text(value) => {
                        Some(IndexRange::Is(value_text(module, &self.key, value)))
                    }
                    ValuePattern::Wild(_) => None,
                };
                let texts: Option<Vec<IndexRange>> = patterns.iter().map(text).collect();
                Some(texts.unwrap_or_else(|| vec![values()]))
            }
            TermTest::InRange(range, bound) => {
                // Whole numbers are compared exactly and are rounded here, so both ends belong to
                // the range.
                let bound = number_text(module, &self.key, bound.double);
                let prefix = key_prefix(module, '#', &self.key);
                Some(vec![match range {
                    NumberRange::AtLeast | NumberRange::Above => {
                        IndexRange::Between(bound, prefix + "g")
                    }
                    NumberRange::AtMost | NumberRange::Below => {
                        IndexRange::Between(prefix, bound + "g")
                    }
                }])
            }
            TermTest::Present => Some(vec![values()]),
            TermTest::NoneOf(_) | TermTest::Missing => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::term::TermSubject;

    fn has(range: &IndexRange, text: &str) -> bool {
        match range {
            IndexRange::Is(one) => text == one,
            IndexRange::Between(from, below) => from.as_str() <= text && text < below.as_str(),
        }
    }

    fn pairs() -> impl Strategy<Value = Vec<KeyValue>> {
        let value = prop_oneof![
            "[ab*?]{0,3}",
            any::<i64>().prop_map(|number| number.to_string()),
            (-20..20_i32).prop_map(|number| (f64::from(number) / 8.0).to_string()),
            Just("x".repeat(300)),
            Just("-0".to_owned()),
            Just("9007199254740993".to_owned()),
        ];
        let pair = ("[kl]", value).prop_map(|(key, value)| KeyValue { key, value });
        proptest::collection::vec(pair, 0..4)
    }

    proptest! {
        /// Whatever meets a term is in the ranges that the index is asked for.
        #[test]
        fn an_index_finds_all_that_meets_a_term(
            data in pairs(),
            key in "[kl]",
            operator in prop_oneof![Just("="), Just(">="), Just(">"), Just("<="), Just("<"), Just("")],
            value in prop_oneof![
                "[ab*|]{0,3}",
                (-20..20_i32).prop_map(|number| (f64::from(number) / 8.0).to_string()),
                Just("9007199254740992".to_owned()),
                Just("0".to_owned()),
                Just("x".repeat(300)),
            ],
        ) {
            let text = if operator.is_empty() { key } else { format!("{key}{operator}{value}") };
            let Ok(term) = text.parse::<Term>() else { return Ok(()) };
            let subject = TermSubject { data: &data, files: &[] };
            if term.holds(&subject) {
                let texts = index_texts("m", &data);
                let ranges = term.index_ranges("m").unwrap();
                prop_assert!(
                    texts.iter().any(|text| ranges.iter().any(|range| has(range, text))),
                    "{term} {data:?} {ranges:?}"
                );
            }
        }

        #[test]
        fn the_texts_of_numbers_have_their_order(one in any::<f64>(), other in any::<f64>()) {
            prop_assume!(one.is_finite() && other.is_finite());
            let (first, second) = (ordered_digits(one), ordered_digits(other));
            prop_assert_eq!(Some(first.cmp(&second)), one.partial_cmp(&other));
        }
    }

    #[test]
    fn another_module_has_no_text_in_common() {
        let data = [KeyValue { key: "k".into(), value: "1".into() }];
        let (one, other) = (index_texts("m", &data), index_texts("m2", &data));
        assert_eq!(one.len(), 3);
        assert!(one.iter().all(|text| !other.contains(text)));
    }
}
