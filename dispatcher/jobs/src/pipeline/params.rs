//! The parameters of a module: what its sources pass to it. Forms, help texts and the check of a
//! source's values are made from them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize};

use super::bounds::{TIME_MAX, parse_time_within};

/// What is wrong with a value of a secret parameter: that it is there.
const SECRET_VALUE: &str = "is a secret, so its value stands in no source; say where it is: in a \
                            pipeline file with secrets: {token: NAME}, in a command with --secret \
                            token=NAME";

/// The most bytes of a parameter's value.
const VALUE_MAX: usize = 64 << 10;

/// What a value of a parameter must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ParameterKind {
    /// Any text.
    #[default]
    Text,
    /// An address that begins with `http://` or `https://`.
    Url,
    /// A number, whole or with a fraction.
    Number,
    /// `true` or `false`.
    Bool,
    /// A time, such as `90s` or `2h`.
    Duration,
    /// One of the `choices`.
    Choice,
    /// A secret. Its value is in no source: a source says where it is, and the module reads it as a
    /// file.
    Secret,
}

/// One parameter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameter {
    /// What its value must be.
    #[serde(rename = "type", default)]
    pub kind: ParameterKind,
    /// Whether each source must set it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub required: bool,
    /// The value that a source has which does not set it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<ValueText>,
    /// The values that are allowed, for the type `choice`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<String>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub about: String,
}

/// A value as a person writes it in a file: a text, a number, or `true` or `false`. The module
/// receives its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ValueText(pub String);

impl<'de> Deserialize<'de> for ValueText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalar;
        impl Visitor<'_> for Scalar {
            type Value = ValueText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a number, true or false")
            }

            fn visit_bool<E>(self, value: bool) -> Result<ValueText, E> {
                Ok(ValueText(value.to_string()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<ValueText, E> {
                Ok(ValueText(value.to_string()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<ValueText, E> {
                Ok(ValueText(value.to_string()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<ValueText, E> {
                Ok(ValueText(value.to_string()))
            }

            fn visit_str<E>(self, value: &str) -> Result<ValueText, E> {
                Ok(ValueText(value.to_owned()))
            }
        }
        deserializer.deserialize_any(Scalar)
    }
}

/// The parameters of a module, by name.
pub type Parameters = BTreeMap<String, Parameter>;

/// What is wrong with one value of a source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize)]
#[error("{parameter:?} {problem}")]
pub struct ParameterError {
    /// The parameter.
    pub parameter: String,
    /// What is wrong, and what is allowed.
    pub problem: String,
}

impl ParameterKind {
    /// Returns what is wrong with a value, in words.
    fn check(self, value: &str, choices: &[String]) -> Result<(), String> {
        let is_right = match self {
            Self::Text => !value.contains('\0'),
            Self::Url => is_http_url(value),
            Self::Number => value.parse::<f64>().is_ok_and(f64::is_finite),
            Self::Bool => matches!(value, "true" | "false"),
            Self::Duration => parse_time_within(value, Duration::ZERO, TIME_MAX).is_ok(),
            Self::Choice => choices.iter().any(|choice| choice == value),
            Self::Secret => false,
        };
        let allowed = match self {
            _ if is_right => return Ok(()),
            Self::Text => "a text without a zero byte".to_owned(),
            Self::Url => "an address that begins with http:// or https://".to_owned(),
            Self::Number => "a number".to_owned(),
            Self::Bool => "true or false".to_owned(),
            Self::Duration => "a time, such as 90s or 2h".to_owned(),
            Self::Choice => format!("one of {}", choices.join(", ")),
            // The value is not repeated.
            Self::Secret => return Err(SECRET_VALUE.to_owned()),
        };
        Err(format!("is {value:?}; it must be {allowed}"))
    }
}

fn is_http_url(value: &str) -> bool {
    let rest = value.strip_prefix("https://").or_else(|| value.strip_prefix("http://"));
    rest.is_some_and(|rest| {
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        !host.is_empty() && !value.contains(|c: char| c.is_whitespace() || c.is_control())
    })
}

impl Parameter {
    /// Returns what is wrong with its declaration, in words.
    pub(super) fn check(&self) -> Result<(), String> {
        if (self.kind == ParameterKind::Choice) == self.choices.is_empty() {
            return Err("\"choices\" and \"type: choice\" belong together".to_owned());
        }
        match &self.default {
            Some(_) if self.kind == ParameterKind::Secret => {
                Err("a secret has no default: each source says where its value is".to_owned())
            }
            Some(_) if self.required => {
                Err("it is required, so its default would never be used".to_owned())
            }
            Some(default) => {
                let checked = self.kind.check(&default.0, &self.choices);
                checked.map_err(|problem| format!("its default {problem}"))
            }
            None => Ok(()),
        }
    }
}

/// Checks the values of a source, and adds the defaults.
///
/// # Errors
/// What is wrong with each value.
pub fn check_values(
    parameters: &Parameters,
    values: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, Vec<ParameterError>> {
    let mut wrong = Vec::new();
    let mut note = |parameter: &str, problem: String| {
        wrong.push(ParameterError { parameter: parameter.to_owned(), problem });
    };
    for (name, value) in values {
        let Some(parameter) = parameters.get(name) else {
            let known: Vec<&str> = parameters.keys().map(String::as_str).collect();
            let nearest = known.iter().min_by_key(|known| strsim::levenshtein(known, name));
            let hint = match nearest {
                Some(nearest) if strsim::levenshtein(nearest, name) <= 3 => {
                    format!("; did you mean {nearest:?}?")
                }
                _ => String::new(),
            };
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            note(name, format!("is no parameter of the module{hint} (parameters: {known})"));
            continue;
        };
        if value.len() > VALUE_MAX {
            note(name, format!("has {} bytes; at most {VALUE_MAX} are allowed", value.len()));
        } else if let Err(problem) = parameter.kind.check(value, &parameter.choices) {
            note(name, problem);
        }
    }
    let mut complete = values.clone();
    for (name, parameter) in parameters {
        if complete.contains_key(name) {
            continue;
        }
        match &parameter.default {
            Some(default) => drop(complete.insert(name.clone(), default.0.clone())),
            None if parameter.kind == ParameterKind::Secret => {}
            None if parameter.required => note(name, "is missing".to_owned()),
            None => {}
        }
    }
    if wrong.is_empty() { Ok(complete) } else { Err(wrong) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(yaml: &str) -> Parameters {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn values_are_checked_and_defaults_are_added() {
        let parameters = parameters(
            "url: {type: url, required: true}\nupdates: {type: bool, default: false}\n\
             size: {type: number, default: 2.5}\nage: {type: duration}\n\
             kind: {type: choice, choices: [a, b], default: b}\n",
        );
        assert!(parameters.values().all(|parameter| parameter.check().is_ok()));
        let values = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let right = check_values(&parameters, &values(&[("url", "https://a.example/x?y")]));
        let expected = [
            ("kind", "b"),
            ("size", "2.5"),
            ("updates", "false"),
            ("url", "https://a.example/x?y"),
        ];
        assert_eq!(right, Ok(values(&expected)));
        let wrong = values(&[
            ("size", "many"),
            ("updates", "yes"),
            ("age", "old"),
            ("kind", "c"),
            ("urll", "https://a.example"),
        ]);
        let told: Vec<String> = check_values(&parameters, &wrong)
            .unwrap_err()
            .iter()
            .map(ToString::to_string)
            .collect();
        let expected = [
            "\"age\" is \"old\"; it must be a time, such as 90s or 2h",
            "\"kind\" is \"c\"; it must be one of a, b",
            "\"size\" is \"many\"; it must be a number",
            "\"updates\" is \"yes\"; it must be true or false",
            "\"urll\" is no parameter of the module; did you mean \"url\"? (parameters: age, kind, size, updates, url)",
            "\"url\" is missing",
        ];
        assert_eq!(told, expected);
        for no_url in ["", "ftp://a", "https://", "https:///x", "https://a b", "http://a\n"] {
            assert!(check_values(&parameters, &values(&[("url", no_url)])).is_err(), "{no_url:?}");
        }
    }

    #[test]
    fn a_declaration_that_contradicts_itself_is_refused() {
        for wrong in [
            "{type: choice}",
            "{choices: [a]}",
            "{required: true, default: a}",
            "{type: number, default: a}",
            "{type: choice, choices: [a], default: b}",
            "{type: secret, default: very-secret}",
        ] {
            let parameter: Parameter = serde_saphyr::from_str(wrong).unwrap();
            assert!(parameter.check().is_err(), "{wrong}");
        }
    }
}
