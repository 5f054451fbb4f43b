//! Credentials in the environment: removed from it when the process starts, and kept in this module
//! for its callers.
//!
//! The environment of a process can be read in `/proc`, in a core dump, and in every program that
//! the process starts. So each of Ion's programs empties the variables that hold credentials before
//! it does anything else.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use crate::sys;

static TAKEN_VARIABLES: OnceLock<BTreeMap<String, String>> = OnceLock::new();

/// Words in the names of variables that hold credentials.
const CREDENTIAL_WORDS: [&str; 7] =
    ["KEY", "SECRET", "TOKEN", "PASSWORD", "PASSWD", "CREDENTIAL", "CONNECTION_STRING"];

/// Endings of the names of variables that say where a credential is, and do not hold it.
const LOCATION_ENDINGS: [&str; 6] =
    ["_FILE", "_DIRECTORY", "_DIR", "_PATH", "_URI", "_CREDENTIALS"];

/// The ending of the names of variables for proxies. Their URLs may have a password, but they stay:
/// the libraries that connect read them from the environment.
const PROXY_ENDING: &str = "_PROXY";

/// The beginning of the names of OpenTelemetry's variables. They stay, because its library reads
/// them from the environment.
const OTEL_PREFIX: &str = "OTEL_";

/// Whether a text is a URL with a user name or a password.
fn is_url_with_password(text: &str) -> bool {
    let authority = text.split_once("://").and_then(|(_, rest)| rest.split('/').next());
    authority.is_some_and(|authority| authority.contains('@'))
}

/// Whether a variable holds a credential that must leave the environment.
fn is_credential(name: &str, value: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let stays = name.ends_with(PROXY_ENDING) || name.starts_with(OTEL_PREFIX);
    if stays || LOCATION_ENDINGS.iter().any(|ending| name.ends_with(ending)) {
        return false;
    }
    CREDENTIAL_WORDS.iter().any(|word| name.contains(word)) || is_url_with_password(value)
}

/// Moves every variable that holds a credential out of the environment. Call it at the start of a
/// process, after the arguments are read and before a second thread starts.
pub fn take_credentials() {
    TAKEN_VARIABLES.get_or_init(|| {
        let all =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        let credentials: Vec<String> = all
            .filter(|(name, value)| value.to_str().is_some_and(|value| is_credential(name, value)))
            .map(|(name, _)| name)
            .collect();
        let taken = credentials.into_iter().filter_map(|name| {
            let value = sys::take_variable(&name)?;
            Some((name, value))
        });
        taken.collect()
    });
}

/// Returns a variable of the environment that this process was started with.
pub fn variable(name: &str) -> Option<String> {
    let taken = TAKEN_VARIABLES.get().and_then(|taken| taken.get(name)).cloned();
    taken.or_else(|| std::env::var(name).ok())
}

/// Returns the names and values of the removed variables whose names begin with `prefix`.
pub fn taken_variables(prefix: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let all = TAKEN_VARIABLES.get().into_iter().flatten();
    all.filter(move |(name, _)| name.starts_with(prefix)).map(|(name, value)| (&**name, &**value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_known_by_their_name_or_by_a_password_in_a_url() {
        for name in
            ["AWS_SECRET_ACCESS_KEY", "ION_GATEWAY_TOKENS", "ION_TICKET_KEY", "shared_secret"]
        {
            assert!(is_credential(name, "x"), "{name}");
        }
        assert!(is_credential("ION_DOCUMENTS", "mongodb://ion:pw@db/ion"));
        let others = [
            ("ION_DOCUMENTS", "sqlite:///var/lib/ion.db"),
            ("CREDENTIALS_DIRECTORY", "/run/x"),
            ("GOOGLE_APPLICATION_CREDENTIALS", "/key.json"),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "/token"),
            ("HTTPS_PROXY", "http://me:pw@proxy"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/key.pem"),
            ("PATH", "/bin"),
        ];
        for (name, value) in others {
            assert!(!is_credential(name, value), "{name}");
        }
    }
}
