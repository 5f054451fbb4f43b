//! The secrets of modules and sources: names in a module's `secrets`, and where a source's secret
//! parameters are. A value is never in a pipeline file.

use std::collections::{BTreeMap, BTreeSet};

use ion_model::secret::{SecretOrigin, SecretOriginError, is_secret_name};
use serde_saphyr::Spanned;

use super::params::{ParameterError, ParameterKind, Parameters};
use super::{ExecutorKind, Mistake, Module, PipelineProblem};

/// How many secrets a module may have. Each is read for each attempt: more would delay small jobs by
/// milliseconds, and no module is known that needs as many.
pub const MODULE_SECRETS_MAX: usize = 64;

/// Why a list of secrets cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum SecretNameError {
    /// The text is no name. It may be a value by mistake, so it is not repeated.
    #[error(
        "one of them is no name: letters, digits, '.', '_' and '-' are allowed, as in secrets: \
         [SLACK_URL]; a value never stands here"
    )]
    Name,
    /// A name is there twice.
    #[error("{0:?} is named twice")]
    Twice(String),
    /// A parameter of the module is a secret of the same name.
    #[error(
        "{0:?} is also a parameter of \"type: secret\", whose value each source names; leave one \
         of them out"
    )]
    Parameter(String),
    /// There are too many.
    #[error("there are {0}; at most {MODULE_SECRETS_MAX} are allowed")]
    TooMany(usize),
}

/// Sets the secrets of a module, whose parameters are set already.
pub(super) fn set_secrets(module: &mut Module, names: Vec<Spanned<String>>) -> Result<(), Mistake> {
    let count = names.len();
    let mut seen = BTreeSet::new();
    for name in &names {
        let text = &name.value;
        let is_parameter = module.params.iter().flatten().any(|(parameter, declared)| {
            parameter == text && declared.kind == ParameterKind::Secret
        });
        let wrong = if !is_secret_name(text) {
            SecretNameError::Name
        } else if !seen.insert(text) {
            SecretNameError::Twice(text.clone())
        } else if is_parameter {
            SecretNameError::Parameter(text.clone())
        } else if count > MODULE_SECRETS_MAX {
            SecretNameError::TooMany(count)
        } else {
            continue;
        };
        return Err(PipelineProblem::unreadable("secrets", wrong).at_place(name.referenced));
    }
    module.secrets = names.into_iter().map(|name| name.value).collect();
    Ok(())
}

/// Reads where a source's secret parameters are, and checks them.
///
/// # Errors
/// What is wrong with each of them. No error repeats a text that may be a value.
pub(super) fn read_secret_origins(
    parameters: &Parameters,
    texts: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, SecretOrigin>, Vec<ParameterError>> {
    let is_secret = |name: &str| {
        parameters.get(name).is_some_and(|parameter| parameter.kind == ParameterKind::Secret)
    };
    let mut wrong = Vec::new();
    let mut note = |parameter: &str, problem: String| {
        wrong.push(ParameterError { parameter: parameter.to_owned(), problem });
    };
    let mut origins = BTreeMap::new();
    for (name, text) in texts {
        if !is_secret(name) {
            let secret = |(name, _): (&String, _)| is_secret(name).then(|| name.clone());
            let known: Vec<String> = parameters.iter().filter_map(secret).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            note(name, format!("is no parameter of \"type: secret\" (those are: {known})"));
            continue;
        }
        match text.parse() {
            Ok(origin) => drop(origins.insert(name.clone(), origin)),
            Err(error) => note(name, SecretOriginError::to_string(&error)),
        }
    }
    for (name, parameter) in parameters {
        if is_secret(name) && parameter.required && !texts.contains_key(name) {
            note(name, format!("is missing; say where it is, as in secrets: {{{name}: NAME}}"));
        }
    }
    if wrong.is_empty() { Ok(origins) } else { Err(wrong) }
}

/// Returns the first secret that is a file, where no file of a dispatcher's machine can be used: a
/// pod has its secrets from its cluster.
pub(super) fn first_file_in_pod<'a>(
    module: &Module,
    origins: &'a BTreeMap<String, SecretOrigin>,
) -> Option<&'a str> {
    let is_pod = module.executor == ExecutorKind::Kubernetes;
    let file = origins.iter().find(|(_, origin)| is_pod && origin.file().is_some());
    file.map(|(name, _)| name.as_str())
}
