//! The sources of a pipeline file, and the parameters of the modules that they start.

use std::collections::BTreeMap;
use std::time::Duration;

use ion_model::clock::millis;
use ion_model::event::TYPE_BYTES_MAX;
use ion_model::record::CommitMode;
use ion_model::source::{
    MissedRuns, SOURCE_NAME_MAX, ScheduleRule, SourceDefinition, SourceSchedule, is_source_name,
    tick_type,
};
use serde::{Deserialize, Serialize};
use serde_saphyr::Spanned;

use super::bounds::BoundError;
use super::secrets::{first_file_in_pod, read_secret_origins};
use super::{
    Mistake, Module, ModuleApi, Parameter, ParameterError, ParameterKind, Parameters,
    PipelineProblem, TIME_MAX, ValueText, check_values, parse_time_within,
};
use crate::schedule::{ScheduleError, ScheduledTimes};

/// The shortest period of a source.
const PERIOD_MIN: Duration = Duration::from_secs(1);

/// The value by which a module learns how much of what is there its first run publishes.
const FIRST: &str = "first";

/// The `params` of a module: a map, or a list of names. A name in a list means a text that is
/// required.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum ParamsEntry {
    Names(Vec<String>),
    Map(BTreeMap<String, Option<Parameter>>),
}

/// What is wrong with a source.
#[derive(Debug, thiserror::Error)]
pub enum SourceProblem {
    /// A source cannot have this name.
    #[error(
        "{0:?} cannot be a source's name: letters, digits, '.', '_' and '-', at most \
         {SOURCE_NAME_MAX}, are allowed"
    )]
    Name(String),
    /// There is no such module.
    #[error("there is no module {0:?}")]
    NoModule(String),
    /// The module is started by events only.
    #[error(
        "no source may start module {0:?}, because it has no \"params\"; write \"params: {{}}\" if \
         it needs none"
    )]
    NoParameters(String),
    /// A source says neither when it runs, or says it twice.
    #[error(
        "one of \"every\" and \"at\" says when it runs, as in every: 15m, or at: \"30 6 * * *\""
    )]
    When,
    /// A zone without times of the day.
    #[error("\"zone\" belongs to \"at\"")]
    ZoneWithoutTimes,
    /// A time cannot be read.
    #[error("{field:?} {source}")]
    Time {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        #[source]
        source: BoundError,
    },
    /// The schedule cannot be used.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// Values are wrong.
    #[error("{}", in_words(.0))]
    Values(Vec<ParameterError>),
    /// Somebody who does not write the pipeline file names a file of the dispatchers' machines.
    #[error(
        "secret {0:?} names a file, which only a pipeline file may: put the value where dispatchers \
         find their secrets, and say its name, as in --secret {0}=NAME"
    )]
    File(String),
    /// The module's pods have no file of a dispatcher's machine.
    #[error(
        "secret {parameter:?} names a file of a dispatcher's machine, which a pod does not have; \
         name a key of the Secret {secret:?} in the namespace of jobs"
    )]
    FileInPod {
        /// The secret parameter.
        parameter: String,
        /// The Secret that the module's pods have.
        secret: String,
    },
    /// How much the first run publishes is none of the words.
    #[error("\"first\" is {0:?}; allowed: new, all, or a number")]
    First(String),
}

fn in_words(errors: &[ParameterError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// What a person says about a source, as texts. A pipeline file, a command and a request have the
/// same fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceFields {
    /// The module that it starts.
    pub module: String,
    /// Its period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<String>,
    /// Its cron expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// The time zone of the expression; UTC if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// By how much a run may begin late, to spread the load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<String>,
    /// What happens about missed times.
    #[serde(default)]
    pub missed: MissedRuns,
    /// How much of what is there the first run publishes: `new`, `all`, or a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<ValueText>,
    /// The values of its module's parameters.
    #[serde(default)]
    pub with: BTreeMap<String, ValueText>,
    /// Where the values of its module's secret parameters are: a secret's name, or in a pipeline
    /// file also `file:` and a path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, String>,
}

/// Reads the `params` of a module.
pub(super) fn build_params(entry: Spanned<ParamsEntry>) -> Result<Parameters, Mistake> {
    let place = entry.referenced;
    let required = |name: String| (name, Parameter { required: true, ..Parameter::default() });
    let parameters: Parameters = match entry.value {
        ParamsEntry::Names(names) => names.into_iter().map(required).collect(),
        ParamsEntry::Map(map) => {
            map.into_iter().map(|(name, declared)| (name, declared.unwrap_or_default())).collect()
        }
    };
    for (name, parameter) in &parameters {
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        {
            let problem = format!("{name:?}: letters, digits, '.', '_' and '-' are allowed");
            return Err(PipelineProblem::unreadable("params", problem).at_place(place));
        }
        if parameter.kind == ParameterKind::Secret && name.starts_with('.') {
            let problem = format!("{name:?}: a secret is a file, whose name begins with no dot");
            return Err(PipelineProblem::unreadable("params", problem).at_place(place));
        }
        parameter.check().map_err(|problem| {
            PipelineProblem::unreadable("params", format!("{name:?}: {problem}")).at_place(place)
        })?;
    }
    Ok(parameters)
}

/// Checks that a module with parameters can be started by sources.
pub(super) fn check_started_by_sources(module: &Module) -> Result<(), PipelineProblem> {
    if module.commit != CommitMode::OnSuccess {
        let words = "a module with \"params\" needs \"commit: on-success\": its events and its \
                     state are committed together";
        return Err(PipelineProblem::Together(words));
    }
    if module.gather.is_some() || !module.links.is_empty() || module.api != ModuleApi::None {
        let words = "\"params\" goes with neither \"gather\", \"stdio\" nor \"api\"";
        return Err(PipelineProblem::Together(words));
    }
    if tick_type(&module.name).len() > TYPE_BYTES_MAX {
        return Err(PipelineProblem::Together("the name is too long for a module of sources"));
    }
    Ok(())
}

/// Reads the sources of a file, whose modules are these.
pub(super) fn build_sources(
    entries: BTreeMap<String, Spanned<SourceFields>>,
    modules: &[Module],
) -> Result<BTreeMap<String, SourceDefinition>, Mistake> {
    let build = |(name, entry): (String, Spanned<SourceFields>)| {
        let module = modules.iter().find(|module| module.name == entry.value.module);
        let defined = define(&name, entry.value, module);
        let place = entry.referenced;
        let wrong = |problem: SourceProblem| {
            let problem = Box::new(problem);
            PipelineProblem::Source { name: name.clone(), problem }.at_place(place)
        };
        Ok((name.clone(), defined.map_err(wrong)?))
    };
    entries.into_iter().map(build).collect()
}

/// Checks what a person says about a source beside a pipeline file, and returns its definition.
/// `module` is the module that it names, if there is one.
///
/// # Errors
/// What is wrong, and what is allowed.
pub fn define_source(
    name: &str,
    fields: SourceFields,
    module: Option<&Module>,
) -> Result<SourceDefinition, SourceProblem> {
    let defined = define(name, fields, module)?;
    match defined.secrets.iter().find(|(_, origin)| origin.file().is_some()) {
        Some((parameter, _)) => Err(SourceProblem::File(parameter.clone())),
        None => Ok(defined),
    }
}

/// Checks what is said about a source, wherever it is said.
fn define(
    name: &str,
    fields: SourceFields,
    module: Option<&Module>,
) -> Result<SourceDefinition, SourceProblem> {
    if !is_source_name(name) {
        return Err(SourceProblem::Name(name.to_owned()));
    }
    let module = module.ok_or_else(|| SourceProblem::NoModule(fields.module.clone()))?;
    let parameters = module.params.as_ref();
    let parameters = parameters.ok_or_else(|| SourceProblem::NoParameters(module.name.clone()))?;
    let period = |field, text: &str, least| {
        parse_time_within(text, least, TIME_MAX)
            .map(millis)
            .map_err(|source| SourceProblem::Time { field, source })
    };
    let rule = match (fields.every, fields.at) {
        (Some(_), None) if fields.zone.is_some() => return Err(SourceProblem::ZoneWithoutTimes),
        (Some(every), None) => ScheduleRule::Every(period("every", &every, PERIOD_MIN)?),
        (None, Some(cron)) => {
            ScheduleRule::At { cron, zone: fields.zone.unwrap_or_else(|| "UTC".to_owned()) }
        }
        _ => return Err(SourceProblem::When),
    };
    let jitter = fields.jitter.map(|text| period("jitter", &text, Duration::ZERO)).transpose()?;
    let schedule =
        SourceSchedule { rule, jitter: jitter.unwrap_or_default(), missed: fields.missed };
    ScheduledTimes::new(name, &schedule)?;
    let values = fields.with.into_iter().map(|(key, value)| (key, value.0)).collect();
    let checked = check_values(parameters, &values);
    let (mut with, secrets) = match (checked, read_secret_origins(parameters, &fields.secrets)) {
        (Ok(with), Ok(secrets)) => (with, secrets),
        (with, secrets) => {
            let wrong = with.err().into_iter().chain(secrets.err()).flatten();
            return Err(SourceProblem::Values(wrong.collect()));
        }
    };
    if let Some(parameter) = first_file_in_pod(module, &secrets) {
        let secret = module.kubernetes.secret_name().to_owned();
        return Err(SourceProblem::FileInPod { parameter: parameter.to_owned(), secret });
    }
    if let Some(ValueText(first)) = fields.first {
        if first != "new" && first != "all" && first.parse::<u32>().is_err() {
            return Err(SourceProblem::First(first));
        }
        with.insert(FIRST.to_owned(), first);
    }
    Ok(SourceDefinition { module: module.name.clone(), schedule, with, secrets, pipeline: None })
}
