//! What can be wrong with a pipeline file, and with what a command line says in its place.

use ion_model::limits::LimitError;
use serde_saphyr::Location;

use super::bounds::BoundError;
use super::image::ImageReferenceError;
use super::module::{BASE_DIR, MOUNT_AT, ProgramError};
use super::source_problem::SourceProblems;

/// Why a pipeline file is refused.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The file cannot be read.
    #[error("{path} cannot be read")]
    Read {
        /// The file.
        path: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The file contains something that is not allowed.
    #[error("{path}:{line}:{column}")]
    Wrong {
        /// The file.
        path: String,
        /// The line, from 1.
        line: u64,
        /// The column, from 1.
        column: u64,
        /// What is wrong and what is allowed.
        #[source]
        problem: Box<PipelineProblem>,
    },
}

/// What is wrong at one place of a pipeline file, and what is allowed there.
#[derive(Debug, thiserror::Error)]
pub enum PipelineProblem {
    /// The bytes are not text.
    #[error("the file is not UTF-8")]
    NotUtf8,
    /// The text is not YAML, or a value does not have the type of its field. The text is the
    /// parser's, with the field and an example.
    #[error("{0}")]
    Syntax(String),
    /// The file has neither modules nor a chain.
    #[error("there is no \"modules\": a map from names to modules")]
    NoModules,
    /// A field is missing, empty, or set where it does not belong.
    #[error("{field:?} {what}")]
    Field {
        /// The field.
        field: &'static str,
        /// What is wrong with it, and the way out.
        what: &'static str,
    },
    /// Fields of a module do not go together. The sentence names them.
    #[error("{0}")]
    Together(&'static str),
    /// A field's value is not one of those that are allowed.
    #[error("{field:?} {value:?}; allowed: {allowed}")]
    Value {
        /// The field.
        field: &'static str,
        /// The value in the file.
        value: String,
        /// The values that are allowed.
        allowed: &'static str,
    },
    /// A number is out of its bounds.
    #[error("{field:?} is {number}: {allowed}")]
    Number {
        /// The field.
        field: &'static str,
        /// The number in the file.
        number: usize,
        /// What is allowed.
        allowed: String,
    },
    /// A time cannot be read, or is out of its bounds.
    #[error("{field:?} {source}")]
    Time {
        /// The field.
        field: &'static str,
        /// What is wrong with the time.
        #[source]
        source: BoundError,
    },
    /// A field's value cannot be read.
    #[error("{field:?}: {source}")]
    Unreadable {
        /// The field.
        field: &'static str,
        /// What is wrong with the value.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A user of a container has no such form.
    #[error("\"user\" {0:?}: a name or number, with a group or without, as in 1000:1000")]
    User(String),
    /// The environment names a path where no tree can be.
    #[error("{BASE_DIR} {0:?} is not a folder directly below /, as {MOUNT_AT} is")]
    NotBelowRoot(String),
    /// The environment names a path where a tree would hide what every program needs.
    #[error("{BASE_DIR} {0:?} would hide the machine's own folder; {MOUNT_AT} hides nothing")]
    HidesSystem(String),
    /// A limit of the module is not one.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// An image's reference cannot be read.
    #[error(transparent)]
    Image(#[from] ImageReferenceError),
    /// A module's programs cannot be run.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// No executor has this name.
    #[error("this build has no executor {0:?}; allowed: local, container, kubernetes")]
    Executor(String),
    /// The executor runs images only.
    #[error("executor: {0} needs an \"image\"")]
    NeedsImage(String),
    /// A module cannot have this name.
    #[error("{0:?} cannot be a module's name: letters, digits, '.', '_' and '-' are allowed")]
    ModuleName(String),
    /// A chain cannot have this name.
    #[error("\"name\" {0:?} is the chain's name: letters, digits, '.', '_' and '-' are allowed")]
    ChainName(String),
    /// An event type cannot have this name.
    #[error(
        "{0:?} cannot be an event type: letters, digits, '.', '_' and '-' are allowed, at most 200"
    )]
    EventType(String),
    /// A gathering module would never start: no module emits what it gathers.
    #[error("it gathers {0:?}, which no module emits")]
    GathersNothing(String),
    /// A gathering module would wait for itself.
    #[error("what it emits leads to {0:?}, which it waits for")]
    GathersItself(String),
    /// A source has a problem.
    #[error("source {name:?}")]
    Source {
        /// The source's name.
        name: String,
        /// What is wrong with it.
        #[source]
        problem: Box<SourceProblems>,
    },
    /// A module has a problem.
    #[error("module {name:?}")]
    Module {
        /// The module's name.
        name: String,
        /// What is wrong with it.
        #[source]
        problem: Box<Self>,
    },
}

/// A problem, and its place in the file.
#[derive(Debug)]
pub(super) struct Mistake {
    pub(super) place: Location,
    pub(super) problem: Box<PipelineProblem>,
}

impl PipelineProblem {
    /// Returns the problem with its place in the file.
    pub(super) fn at_place(self, place: Location) -> Mistake {
        Mistake { place, problem: Box::new(self) }
    }

    /// Returns the problem as one of the module `name`.
    pub(super) fn of_module(self, name: &str) -> Self {
        Self::Module { name: name.to_owned(), problem: self.into() }
    }

    /// Returns the problem of a field whose value cannot be read.
    pub(super) fn unreadable(
        field: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Unreadable { field, source: source.into() }
    }
}

impl Mistake {
    /// Returns the error of the file `path`. An empty file has no places: the error names its first
    /// line.
    pub(super) fn in_file(self, path: &str) -> PipelineError {
        PipelineError::Wrong {
            path: path.to_owned(),
            line: self.place.line().max(1),
            column: self.place.column().max(1),
            problem: self.problem,
        }
    }
}
