//! The sources of a pipeline file, and the parameters of the modules that they start.

use std::collections::BTreeMap;
use std::time::Duration;

use ion_model::clock::millis;
use ion_model::event::TYPE_BYTES_MAX;
use ion_model::record::CommitMode;
use ion_model::source::{
    ScheduleRule, SourceDefinition, SourceSchedule, is_source_name, tick_type,
};
use serde::Deserialize;
use serde_json::{Map, Value};
use serde_saphyr::Spanned;

use super::secrets::{first_file_in_pod, read_secret_origins};
use super::source_fields::{SourceFields, joined_problems};
use super::source_problem::{FIRST, SourceProblem, SourceProblems};
use super::{
    Mistake, Module, ModuleApi, Parameter, ParameterKind, Parameters, PipelineProblem, TIME_MAX,
    ValueText, check_values, parse_time_within,
};
use crate::schedule::ScheduledTimes;

/// The shortest period of a source.
const PERIOD_MIN: Duration = Duration::from_secs(1);

/// The `params` of a module: a map, or a list of names. A name in a list means a text that is
/// required.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum ParamsEntry {
    Names(Vec<String>),
    Map(BTreeMap<String, Option<Parameter>>),
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
        let wrong = |problem: SourceProblems| {
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
/// Everything that is wrong, and what is allowed.
pub fn define_source(
    name: &str,
    fields: SourceFields,
    module: Option<&Module>,
) -> Result<SourceDefinition, SourceProblems> {
    let defined = define(name, fields, module)?;
    match defined.secrets.iter().find(|(_, origin)| origin.file().is_some()) {
        Some((parameter, _)) => Err(SourceProblem::File(parameter.clone()).into()),
        None => Ok(defined),
    }
}

/// Checks what is said about a source, wherever it is said.
fn define(
    name: &str,
    fields: SourceFields,
    module: Option<&Module>,
) -> Result<SourceDefinition, SourceProblems> {
    let mut problems = Vec::new();
    if !is_source_name(name) {
        problems.push(SourceProblem::Name(name.to_owned()));
    }
    let parameters = match module {
        None => Err(SourceProblem::NoModule(fields.module.clone())),
        Some(module) => {
            let missing = || SourceProblem::NoParameters(module.name.clone());
            module.params.as_ref().ok_or_else(missing)
        }
    };
    let schedule = read_schedule(name, &fields).map_err(|problem| problems.push(problem)).ok();
    let values = fields.with.into_iter().map(|(key, value)| (key, value.0)).collect();
    let (mut with, mut secrets) = (BTreeMap::new(), BTreeMap::new());
    match parameters {
        Ok(parameters) => {
            match check_values(parameters, &values) {
                Ok(complete) => with = complete,
                Err(errors) => problems.extend(errors.into_iter().map(SourceProblem::Value)),
            }
            match read_secret_origins(parameters, &fields.secrets) {
                Ok(origins) => secrets = origins,
                Err(errors) => problems.extend(errors.into_iter().map(SourceProblem::Secret)),
            }
        }
        Err(problem) => problems.push(problem),
    }
    if let Some(module) = module
        && let Some(parameter) = first_file_in_pod(module, &secrets)
    {
        let secret = module.kubernetes.secret_name().to_owned();
        problems.push(SourceProblem::FileInPod { parameter: parameter.to_owned(), secret });
    }
    if let Some(ValueText(first)) = fields.first {
        if first != "new" && first != "all" && first.parse::<u32>().is_err() {
            problems.push(SourceProblem::First(first));
        } else {
            with.insert(FIRST.to_owned(), first);
        }
    }
    match schedule.filter(|_| problems.is_empty()) {
        Some(schedule) => {
            let module = fields.module;
            Ok(SourceDefinition { module, schedule, with, secrets, pipeline: None })
        }
        None => Err(SourceProblems(problems)),
    }
}

/// Checks a JSON object that describes a source, as [`define_source`] checks fields. `module` finds
/// the module of a name.
///
/// # Errors
/// Everything that is wrong, and what is allowed.
pub fn define_source_from_json<'m>(
    name: &str,
    object: Map<String, Value>,
    module: impl FnOnce(&str) -> Option<&'m Module>,
) -> Result<SourceDefinition, SourceProblems> {
    define_from_json(name, object, module, define_source)
}

/// Like [`define_source_from_json`], for a source that is tried on this machine by a person, who may
/// name files of the machine.
///
/// # Errors
/// Everything that is wrong, and what is allowed.
pub fn define_tried_source<'m>(
    name: &str,
    object: Map<String, Value>,
    module: impl FnOnce(&str) -> Option<&'m Module>,
) -> Result<SourceDefinition, SourceProblems> {
    define_from_json(name, object, module, define)
}

fn define_from_json<'m>(
    name: &str,
    object: Map<String, Value>,
    module: impl FnOnce(&str) -> Option<&'m Module>,
    define: impl FnOnce(&str, SourceFields, Option<&Module>) -> Result<SourceDefinition, SourceProblems>,
) -> Result<SourceDefinition, SourceProblems> {
    let (fields, unreadable) = SourceFields::from_json(object);
    let module = module(&fields.module);
    match define(name, fields, module) {
        Ok(definition) if unreadable.is_empty() => Ok(definition),
        Ok(_) => Err(SourceProblems(unreadable)),
        Err(SourceProblems(others)) => Err(joined_problems(unreadable, others)),
    }
}

fn read_schedule(name: &str, fields: &SourceFields) -> Result<SourceSchedule, SourceProblem> {
    let period = |field, text: &str, least| {
        parse_time_within(text, least, TIME_MAX)
            .map(millis)
            .map_err(|source| SourceProblem::Time { field, source })
    };
    let rule = match (&fields.every, &fields.at) {
        (Some(_), None) if fields.zone.is_some() => return Err(SourceProblem::ZoneWithoutTimes),
        (Some(every), None) => ScheduleRule::Every(period("every", every, PERIOD_MIN)?),
        (None, Some(cron)) => ScheduleRule::At {
            cron: cron.clone(),
            zone: fields.zone.clone().unwrap_or_else(|| "UTC".to_owned()),
        },
        _ => return Err(SourceProblem::When),
    };
    let jitter = fields.jitter.as_ref().map(|text| period("jitter", text, Duration::ZERO));
    let jitter = jitter.transpose()?.unwrap_or_default();
    let schedule = SourceSchedule { rule, jitter, missed: fields.missed };
    ScheduledTimes::new(name, &schedule)?;
    Ok(schedule)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn module() -> Module {
        let mut module = Module::new("feed", vec!["true".into()], std::path::PathBuf::from("/"));
        let parameters = "url: {type: url, required: true}\npages: {type: number}\n";
        module.params = Some(serde_saphyr::from_str(parameters).unwrap());
        module
    }

    fn wrong_fields(value: Value) -> Vec<String> {
        let Value::Object(object) = value else { panic!("{value} is no object") };
        let feed = module();
        let defined =
            define_source_from_json("s", object, |name| (name == "feed").then_some(&feed));
        let mut fields: Vec<String> = match defined {
            Ok(_) => vec![],
            Err(problems) => problems.0.iter().map(SourceProblem::field).collect(),
        };
        fields.sort();
        fields
    }

    #[test]
    fn everything_that_is_wrong_with_a_source_is_named_once() {
        let url = "https://a.example/x";
        assert!(
            wrong_fields(json!({"module": "feed", "every": "1m", "with": {"url": url}})).is_empty()
        );
        let wrong = json!({"module": "feed", "every": "often", "first": "some", "with": {"pages": "many", "urk": "x"}});
        assert_eq!(wrong_fields(wrong), ["every", "first", "with.pages", "with.urk", "with.url"]);
        assert_eq!(wrong_fields(json!({"module": "none"})), ["every", "module"]);
        assert_eq!(wrong_fields(json!({})), ["every", "module"]);
        let unreadable =
            json!({"module": "feed", "every": 5, "zone": "UTC", "with": {"url": ["x"]}});
        assert_eq!(wrong_fields(unreadable), ["every", "with.url"]);
        let zone =
            json!({"module": "feed", "at": "0 6 * * *", "zone": "Mars", "with": {"url": url}});
        assert_eq!(wrong_fields(zone), ["zone"]);
    }
}
