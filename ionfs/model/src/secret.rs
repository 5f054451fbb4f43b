//! The names of secrets, and where their values are. No document has a value: what Ion writes down
//! is a name or a path.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The most bytes of a secret's name. A key of a Kubernetes Secret may have a few more.
const NAME_MAX: usize = 200;

/// What a text begins with that says where a secret is by the path of a file.
const FILE: &str = "file:";

/// Where a module finds its secrets, each as a file of this folder.
pub const SECRETS_FOLDER: &str = "/run/secrets";

/// The variable that tells a module where its secrets are: [`SECRETS_FOLDER`], unless the job has no
/// mount namespace of its own.
pub const SECRETS_VARIABLE: &str = "ION_SECRETS_DIR";

/// Returns whether a text can be a secret's name. It is the name of a file, and a key of a
/// Kubernetes Secret.
pub fn is_secret_name(text: &str) -> bool {
    (1..=NAME_MAX).contains(&text.len())
        && !text.starts_with('.')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// Where the value of a secret is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SecretOrigin {
    /// Among the secrets of each dispatcher, under this name.
    Named(String),
    /// In this file of each dispatcher's machine.
    File(PathBuf),
}

/// Why a text does not say where a secret is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretOriginError {
    /// The path does not begin at the root.
    #[error("names the file {0:?}, whose path has to begin at the root, as in file:/etc/ion/token")]
    Relative(String),
    /// The text is no name. It may be the secret itself, so it is not repeated.
    #[error(
        "is neither a secret's name (letters, digits, '.', '_' and '-') nor a file, as in \
         file:/etc/ion/token; a value never stands here"
    )]
    Name,
}

impl SecretOrigin {
    /// Returns the file, if it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Named(_) => None,
            Self::File(path) => Some(path),
        }
    }
}

impl FromStr for SecretOrigin {
    type Err = SecretOriginError;

    fn from_str(text: &str) -> Result<Self, SecretOriginError> {
        match text.strip_prefix(FILE) {
            Some(path) if path.starts_with('/') && !path.contains('\0') => {
                Ok(Self::File(path.into()))
            }
            Some(path) => Err(SecretOriginError::Relative(path.to_owned())),
            None if is_secret_name(text) => Ok(Self::Named(text.to_owned())),
            None => Err(SecretOriginError::Name),
        }
    }
}

impl TryFrom<String> for SecretOrigin {
    type Error = SecretOriginError;

    fn try_from(text: String) -> Result<Self, SecretOriginError> {
        text.parse()
    }
}

impl From<SecretOrigin> for String {
    fn from(origin: SecretOrigin) -> Self {
        origin.to_string()
    }
}

impl fmt::Display for SecretOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::File(path) => write!(f, "{FILE}{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_said_by_name_or_by_file() {
        let named = SecretOrigin::Named("SLACK_URL".into());
        let file = SecretOrigin::File("/etc/ion/token".into());
        for (text, origin) in [("SLACK_URL", named), ("file:/etc/ion/token", file)] {
            assert_eq!(text.parse(), Ok(origin.clone()));
            assert_eq!(serde_json::json!(origin), serde_json::json!(text));
        }
        let relative = "file:token".parse::<SecretOrigin>();
        assert_eq!(relative, Err(SecretOriginError::Relative("token".into())));
        for no_name in ["", "a/b", ".hidden", "https://hooks.example/T0/very-secret", "two words"] {
            let refused = no_name.parse::<SecretOrigin>().unwrap_err().to_string();
            assert!(no_name.is_empty() || !refused.contains(no_name), "{refused}");
        }
    }
}
