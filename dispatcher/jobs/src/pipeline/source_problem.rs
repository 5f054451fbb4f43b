//! What can be wrong with what a person says about a source.

use ion_model::source::SOURCE_NAME_MAX;
use ion_model::text::{REASON_MAX, cut_owned};
use serde_json::{Value, json};

use super::ParameterError;
use super::bounds::BoundError;
use crate::schedule::ScheduleError;

/// The value by which a module learns how much of what is there its first run publishes.
pub(super) const FIRST: &str = "first";

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
    /// The value of a parameter is wrong.
    #[error(transparent)]
    Value(ParameterError),
    /// The place of a secret parameter's value is wrong.
    #[error(transparent)]
    Secret(ParameterError),
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
    /// A field cannot be read.
    #[error("{field:?} {problem}")]
    Field {
        /// The field; `with.NAME` for the value of a parameter.
        field: String,
        /// What is wrong, and what is allowed.
        problem: String,
    },
}

impl SourceProblem {
    /// Returns the field that is wrong; `with.NAME` for the value of a parameter, `secrets.NAME` for
    /// the place of one, and `name` for the name of the source.
    pub fn field(&self) -> String {
        match self {
            Self::Name(_) => "name".to_owned(),
            Self::NoModule(_) | Self::NoParameters(_) => "module".to_owned(),
            Self::When => "every".to_owned(),
            Self::ZoneWithoutTimes | Self::Schedule(ScheduleError::Zone(_)) => "zone".to_owned(),
            Self::Time { field, .. } => (*field).to_owned(),
            Self::Schedule(ScheduleError::TooOften) => "every".to_owned(),
            Self::Schedule(ScheduleError::Jitter) => "jitter".to_owned(),
            Self::Schedule(ScheduleError::Cron { .. } | ScheduleError::Never(_)) => "at".to_owned(),
            Self::Value(error) => format!("with.{}", error.parameter),
            Self::Secret(error) => format!("secrets.{}", error.parameter),
            Self::File(parameter) | Self::FileInPod { parameter, .. } => {
                format!("secrets.{parameter}")
            }
            Self::First(_) => FIRST.to_owned(),
            Self::Field { field, .. } => field.clone(),
        }
    }
}

/// Everything that is wrong with a source.
#[derive(Debug, thiserror::Error)]
#[error("{}", in_words(.0))]
pub struct SourceProblems(pub Vec<SourceProblem>);

impl SourceProblems {
    /// Returns the problems for a program: the field of each, and what is wrong in words.
    pub fn to_json(&self) -> Value {
        let short = |text: String| cut_owned(text, REASON_MAX);
        let one = |problem: &SourceProblem| json!({"field": short(problem.field()), "problem": short(problem.to_string())});
        self.0.iter().map(one).collect()
    }
}

impl From<SourceProblem> for SourceProblems {
    fn from(problem: SourceProblem) -> Self {
        Self(vec![problem])
    }
}

fn in_words(problems: &[SourceProblem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
