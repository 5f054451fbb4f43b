//! Texts with `{name}` in them.

use std::collections::HashMap;

use serde::Deserialize;

/// A text in which `{name}` stands for a value. `{{` is a bracket.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Name(String),
}

/// The values of names.
pub type Values = HashMap<String, String>;

/// Why a template cannot be read or filled.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A bracket is not closed, or has no name in it.
    #[error("a \"{{\" begins no name; write \"{{{{\" for a bracket that is meant")]
    Bracket,
    /// A name has no value.
    #[error("there is no {0}; give --set {0}=VALUE, or write it to in/meta/{0}")]
    Missing(String),
}

impl TryFrom<String> for Template {
    type Error = TemplateError;

    fn try_from(text: String) -> Result<Self, TemplateError> {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = &*text;
        while let Some(at) = rest.find('{') {
            plain.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('{') {
                plain.push('{');
                rest = after;
                continue;
            }
            let (name, after) = rest.split_once('}').ok_or(TemplateError::Bracket)?;
            let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
            if name.is_empty() || !name.chars().all(is_name) {
                return Err(TemplateError::Bracket);
            }
            pieces.push(Piece::Text(std::mem::take(&mut plain)));
            pieces.push(Piece::Name(name.to_owned()));
            rest = after;
        }
        plain.push_str(rest);
        pieces.push(Piece::Text(plain));
        Ok(Self(pieces))
    }
}

impl Template {
    /// Returns the names in it.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Name(name) => Some(&**name),
            Piece::Text(_) => None,
        })
    }

    /// Returns the text with the values as they are.
    ///
    /// # Errors
    ///
    /// A name has no value.
    pub fn fill(&self, values: &Values) -> Result<String, TemplateError> {
        self.fill_with(values, |value, text| text.push_str(value))
    }

    /// Returns the text as an address: in values, what has a meaning in addresses is escaped.
    ///
    /// # Errors
    ///
    /// A name has no value.
    pub fn fill_address(&self, values: &Values) -> Result<String, TemplateError> {
        self.fill_with(values, |value, text| {
            for byte in value.bytes() {
                match byte {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                        text.push(char::from(byte));
                    }
                    _ => text.push_str(&format!("%{byte:02X}")),
                }
            }
        })
    }

    fn fill_with(
        &self,
        values: &Values,
        add: impl Fn(&str, &mut String),
    ) -> Result<String, TemplateError> {
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(plain) => text.push_str(plain),
                Piece::Name(name) => {
                    let value = values.get(name);
                    add(value.ok_or_else(|| TemplateError::Missing(name.clone()))?, &mut text);
                }
            }
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::{Template, TemplateError, Values};

    fn template(text: &str) -> Result<Template, TemplateError> {
        Template::try_from(text.to_owned())
    }

    #[test]
    fn names_are_replaced_and_their_values_are_escaped_in_addresses() {
        let values = Values::from([("q".to_owned(), "a b/ü&c".to_owned())]);
        let filled = template("https://x/{q}?y={q}&z={{").unwrap();
        assert_eq!(filled.fill(&values).unwrap(), "https://x/a b/ü&c?y=a b/ü&c&z={");
        let address = filled.fill_address(&values).unwrap();
        assert_eq!(address, "https://x/a%20b%2F%C3%BC%26c?y=a%20b%2F%C3%BC%26c&z={");
        assert_eq!(filled.names().collect::<Vec<_>>(), ["q", "q"]);
    }

    #[test]
    fn a_name_without_a_value_and_a_lonely_bracket_are_errors() {
        let error = template("{a}").unwrap().fill(&Values::new()).unwrap_err();
        assert_eq!(error, TemplateError::Missing("a".to_owned()));
        for wrong in ["{", "{}", "{a b}", "x{a"] {
            assert_eq!(template(wrong).unwrap_err(), TemplateError::Bracket, "{wrong}");
        }
    }
}
