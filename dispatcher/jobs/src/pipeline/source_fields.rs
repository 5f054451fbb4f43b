//! What a person says about a source, as texts. A pipeline file, a command and a request have the
//! same fields.

use std::collections::BTreeMap;
use std::time::Duration;

use ion_model::clock::Millis;
use ion_model::source::{MissedRuns, ScheduleRule, SourceDefinition};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::ValueText;
use super::source_problem::{FIRST, SourceProblem, SourceProblems};

/// The fields, for people who wrote another one.
const KNOWN: &str = "module, every, at, zone, jitter, missed, first, with, secrets";

/// The fields of a source.
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

impl SourceFields {
    /// Returns the fields that make this definition.
    pub fn of(definition: &SourceDefinition) -> Self {
        let SourceDefinition { module, schedule, with, secrets, .. } = definition;
        let period = |millis: Millis| {
            let duration = Duration::from_millis(millis.unsigned_abs());
            humantime::format_duration(duration).to_string()
        };
        let (every, at, zone) = match &schedule.rule {
            ScheduleRule::Every(millis) => (Some(period(*millis)), None, None),
            ScheduleRule::At { cron, zone } => (None, Some(cron.clone()), Some(zone.clone())),
        };
        let mut with = with.clone();
        let first = with.remove(FIRST).map(ValueText);
        Self {
            module: module.clone(),
            every,
            at,
            zone,
            jitter: (schedule.jitter > 0).then(|| period(schedule.jitter)),
            missed: schedule.missed,
            first,
            with: with.into_iter().map(|(key, value)| (key, ValueText(value))).collect(),
            secrets: secrets.iter().map(|(key, at)| (key.clone(), at.to_string())).collect(),
        }
    }

    /// Returns the fields of a definition as a JSON object, changed by a merge patch (RFC 7396): a
    /// field of the patch replaces the one of the definition, and null removes it. A patch that
    /// names a period removes the times of the day, and the other way round.
    pub fn patched(
        definition: &SourceDefinition,
        patch: &Map<String, Value>,
    ) -> Map<String, Value> {
        let fields = serde_json::to_value(Self::of(definition));
        let mut fields = match fields {
            Ok(Value::Object(fields)) => fields,
            _ => Map::new(),
        };
        let names = |field: &str| patch.get(field).is_some_and(|value| !value.is_null());
        if names("every") {
            fields.remove("at");
            fields.remove("zone");
        }
        if names("at") {
            fields.remove("every");
        }
        merge(&mut fields, patch);
        fields
    }

    /// Reads the fields of a JSON object. A field that is null counts as left out. Returns the
    /// fields that can be read, and what is wrong with each of the others.
    pub fn from_json(object: Map<String, Value>) -> (Self, Vec<SourceProblem>) {
        let (mut fields, mut problems) = (Self::default(), Vec::new());
        let mut note = |field: String, problem: String| {
            problems.push(SourceProblem::Field { field, problem });
        };
        for (name, value) in object {
            if value.is_null() {
                continue;
            }
            let read = match name.as_str() {
                "module" => read_text(value).map(|text| fields.module = text),
                "every" => read_text(value).map(|text| fields.every = Some(text)),
                "at" => read_text(value).map(|text| fields.at = Some(text)),
                "zone" => read_text(value).map(|text| fields.zone = Some(text)),
                "jitter" => read_text(value).map(|text| fields.jitter = Some(text)),
                "missed" => serde_json::from_value(value)
                    .map(|missed| fields.missed = missed)
                    .map_err(|_| "must be last, skip or all".to_owned()),
                "first" => read_value(value).map(|text| fields.first = Some(text)),
                "with" => match value {
                    Value::Object(values) => {
                        for (key, value) in values.into_iter().filter(|(_, it)| !it.is_null()) {
                            match read_value(value) {
                                Ok(text) => drop(fields.with.insert(key, text)),
                                Err(problem) => note(format!("with.{key}"), problem),
                            }
                        }
                        Ok(())
                    }
                    _ => Err("must be an object of parameters and their values".to_owned()),
                },
                "secrets" => match value {
                    Value::Object(origins) => {
                        for (key, origin) in origins.into_iter().filter(|(_, it)| !it.is_null()) {
                            match origin {
                                Value::String(origin) => {
                                    fields.secrets.insert(key, origin);
                                }
                                // It may be a value by mistake, so it is not repeated.
                                _ => note(
                                    format!("secrets.{key}"),
                                    "must be the name of a secret".to_owned(),
                                ),
                            }
                        }
                        Ok(())
                    }
                    _ => Err("must be an object of parameters and names of secrets".to_owned()),
                },
                _ => Err(format!("is no field of a source; allowed: {KNOWN}")),
            };
            if let Err(problem) = read {
                note(name, problem);
            }
        }
        if fields.module.is_empty() {
            note("module".to_owned(), "is missing: it names the module to start".to_owned());
        }
        (fields, problems)
    }
}

/// Adds what is wrong with the fields that could be read to what is wrong with the others. Each
/// field is named once.
pub(super) fn joined_problems(
    unreadable: Vec<SourceProblem>,
    others: Vec<SourceProblem>,
) -> SourceProblems {
    let is_unreadable = |field: &str| unreadable.iter().any(|problem| problem.field() == field);
    let names_times = is_unreadable("every") || is_unreadable("at");
    let is_new = |problem: &SourceProblem| match problem {
        // Nobody knows what an unreadable field would have said.
        SourceProblem::When | SourceProblem::ZoneWithoutTimes if names_times => false,
        problem => !is_unreadable(&problem.field()),
    };
    let new: Vec<SourceProblem> = others.into_iter().filter(is_new).collect();
    SourceProblems(unreadable.into_iter().chain(new).collect())
}

/// Merges a patch into an object, as RFC 7396 says.
fn merge(object: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (name, value) in patch {
        match (object.get_mut(name), value) {
            (_, Value::Null) => drop(object.remove(name)),
            (Some(Value::Object(inner)), Value::Object(patch)) => merge(inner, patch),
            _ => drop(object.insert(name.clone(), value.clone())),
        }
    }
}

fn read_text(value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(format!("is {other}; it must be a text")),
    }
}

fn read_value(value: Value) -> Result<ValueText, String> {
    serde_json::from_value(value).map_err(|_| "must be a text, a number, true or false".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> (SourceFields, Vec<String>) {
        let Value::Object(object) = value else { panic!("{value} is no object") };
        let (fields, problems) = SourceFields::from_json(object);
        (fields, problems.iter().map(SourceProblem::field).collect())
    }

    #[test]
    fn each_field_that_cannot_be_read_is_named() {
        let (_, wrong) = read(json!({
            "evry": "1m", "every": 5, "missed": "never", "first": [],
            "with": {"url": "x", "deep": {}, "list": []},
        }));
        let mut sorted = wrong.clone();
        sorted.sort();
        let expected = ["every", "evry", "first", "missed", "module", "with.deep", "with.list"];
        assert_eq!(sorted, expected);
        let (_, wrong) = read(json!({"module": "m", "with": "url=x"}));
        assert_eq!(wrong, ["with"]);
    }

    #[test]
    fn the_fields_of_a_definition_can_be_read_again() {
        let (fields, wrong) = read(json!({
            "module": "m", "every": "15m", "jitter": "2m", "first": 3, "zone": null,
            "with": {"n": 1.5, "yes": true, "text": "t", "none": null},
        }));
        assert!(wrong.is_empty(), "{wrong:?}");
        assert_eq!(fields.first, Some(ValueText("3".into())));
        let values: Vec<&str> = fields.with.values().map(|value| value.0.as_str()).collect();
        assert_eq!(values, ["1.5", "t", "true"]);
        let Value::Object(again) = serde_json::to_value(&fields).unwrap() else { panic!() };
        assert_eq!(SourceFields::from_json(again).0, fields);
    }

    #[test]
    fn a_patch_changes_what_it_names_and_removes_what_is_null() {
        let rule = ScheduleRule::At { cron: "0 6 * * *".into(), zone: "Europe/London".into() };
        let schedule =
            ion_model::source::SourceSchedule { rule, jitter: 120_000, missed: MissedRuns::Skip };
        let with = [("n", "1"), ("url", "x")].map(|(key, value)| (key.into(), value.into()));
        let definition = SourceDefinition {
            module: "m".into(),
            schedule,
            with: with.into(),
            secrets: BTreeMap::new(),
            pipeline: None,
        };
        let patch = json!({"every": "5m", "jitter": null, "with": {"n": null, "page": true}});
        let patched = SourceFields::patched(&definition, patch.as_object().unwrap());
        let expected = json!({
            "module": "m", "every": "5m", "missed": "skip", "with": {"url": "x", "page": true},
        });
        assert_eq!(Value::Object(patched), expected);
    }
}
